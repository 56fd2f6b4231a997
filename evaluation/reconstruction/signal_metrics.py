# SPDX-License-Identifier: Apache-2.0
"""Metrics of decoded speech against the recording: PESQ, STOI, mel distance and SI-SDR, all as `evaluate` metrics."""

import warnings
from typing import Any

import numpy as np
import torch

from speech_tokenizers.evaluation.clip_results import ClipMetric, MetricFailure
from speech_tokenizers.modeling.spectral_losses import DEFAULT_MEL_SCALES, MelScale, multi_scale_mel_loss
from speech_tokenizers.processing.optional_packages import require_package


def check_clips(decoded: np.ndarray, recorded: np.ndarray) -> None:
    """
    Raise `ValueError` unless both are waveforms of one length, and `MetricFailure` if a sample is not finite.
    """
    if decoded.ndim != 1 or decoded.shape != recorded.shape:
        raise ValueError(
            "`decoded` and `recorded` must both have shape (num_samples,), "
            f"but got {decoded.shape} and {recorded.shape}; cut or pad them to one length."
        )
    if not len(decoded):
        raise MetricFailure("the clip is empty")
    if not np.isfinite(decoded).all():
        raise MetricFailure("the decoded clip holds NaN or infinite samples")


def check_rate(sampling_rate: int, needed: int, title: str) -> None:
    """Raise `ValueError` if a metric is not defined at `sampling_rate`."""
    if sampling_rate != needed:
        raise ValueError(f"`sampling_rate` must be {needed} Hz for {title}, but got {sampling_rate}; resample first.")


class PESQ(ClipMetric):
    """Wide-band PESQ (ITU-T P.862.2), from 1.0 (bad) to 4.64, by the package `pesq`, at 16 kHz."""

    score_name = "pesq"
    title = "PESQ-wb"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        require_package("pesq", self.title)

    def score_clip(self, decoded: np.ndarray, recorded: np.ndarray, sampling_rate: int) -> float:
        from pesq import PesqError, pesq

        check_rate(sampling_rate, 16000, self.title)
        check_clips(decoded, recorded)
        if not recorded.any() or not decoded.any():
            raise MetricFailure("the recorded or the decoded clip is silent")
        try:
            score = float(pesq(sampling_rate, recorded, decoded, "wb"))
        except PesqError as error:
            reason = error.args[0] if error.args else type(error).__name__
            raise MetricFailure(reason.decode() if isinstance(reason, bytes) else str(reason)) from error
        if not np.isfinite(score):
            raise MetricFailure("PESQ is not a number")
        return score


class STOI(ClipMetric):
    """
    Short-time objective intelligibility, up to 1, by the package `pystoi`.

    Args:
        extended (`bool`, *optional*, defaults to `False`): Whether to compute ESTOI (Jensen and Taal 2016), which also
            hears fluctuating maskers.
    """

    def __init__(self, extended: bool = False, **kwargs: Any):
        self.extended = extended
        self.score_name, self.title = ("estoi", "ESTOI") if extended else ("stoi", "STOI")
        super().__init__(**kwargs)
        require_package("pystoi", self.title)

    def score_clip(self, decoded: np.ndarray, recorded: np.ndarray, sampling_rate: int) -> float:
        from pystoi import stoi

        check_clips(decoded, recorded)
        if not recorded.any():
            raise MetricFailure("the recorded clip is silent")
        with warnings.catch_warnings():
            # pystoi warns and returns 1e-5 where fewer than 30 frames hold speech: no score, though it looks like one.
            warnings.simplefilter("error", RuntimeWarning)
            try:
                score = float(stoi(recorded, decoded, sampling_rate, extended=self.extended))
            except RuntimeWarning as warning:
                raise MetricFailure("less than 0.4 s of the recording is speech") from warning
            except ValueError as error:
                raise MetricFailure(f"the clip is too short ({error})") from error
        if not np.isfinite(score):
            raise MetricFailure(f"{self.title} is not a number")
        return score


class MelDistance(ClipMetric):
    """
    Mean absolute difference of the natural log-mel spectrograms at several resolutions; 0 is equal.

    Args:
        scales (`tuple` of `MelScale`, *optional*): Resolutions of the spectrograms. With weights that sum to 1 the sum
            over them is a mean.
    """

    score_name = "mel_distance"
    title = "Mel distance (nepers)"
    higher_is_better = False

    def __init__(self, scales: tuple[MelScale, ...] = DEFAULT_MEL_SCALES, **kwargs: Any):
        self.scales = scales
        super().__init__(**kwargs)

    @torch.no_grad()
    def score_clip(self, decoded: np.ndarray, recorded: np.ndarray, sampling_rate: int) -> float:
        check_clips(decoded, recorded)
        pair = (torch.from_numpy(np.ascontiguousarray(audio))[None, None] for audio in (decoded, recorded))
        return float(multi_scale_mel_loss(*pair, sampling_rate, self.scales))


class ScaleInvariantSDR(ClipMetric):
    """
    Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508, equation 3), of zero-mean
    signals.

    With s the recording and d the decoded clip, a = <d, s> / |s|^2 and the ratio is 10 log10(|a s|^2 / |a s - d|^2).
    Codecs that keep no waveform, Codec2 among them, score far below zero whatever they sound like.
    """

    score_name = "si_sdr"
    title = "SI-SDR (dB)"

    def score_clip(self, decoded: np.ndarray, recorded: np.ndarray, sampling_rate: int) -> float:
        check_clips(decoded, recorded)
        decoded, recorded = decoded.astype(np.float64), recorded.astype(np.float64)
        decoded, recorded = decoded - decoded.mean(), recorded - recorded.mean()
        if not recorded.any() or not decoded.any():
            raise MetricFailure("the recorded or the decoded clip is silent")
        target = (decoded @ recorded) / (recorded @ recorded) * recorded
        distortion = target - decoded
        if not distortion.any():
            raise MetricFailure("the decoded clip equals the recording, so the ratio is infinite")
        if not target.any():
            raise MetricFailure("the decoded clip is orthogonal to the recording, so the ratio is minus infinity")
        return float(10 * np.log10((target @ target) / (distortion @ distortion)))
