# SPDX-License-Identifier: Apache-2.0
"""Mel-frequency cepstral coefficients as in Kaldi, from which HuBERT's first pseudo-labels are made."""

from functools import cache

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank, window_function


MFCC_FRAME_RATE = 100
NUM_COEFFICIENTS = 13
NUM_MEL_FILTERS = 23
LIFTER = 22
PREEMPHASIS = 0.97
FRAMES_PER_BLOCK = 4096


def num_mfcc_frames(num_samples: int, sampling_rate: int = 16000) -> int:
    """Number of frames of a recording: 100 a second, each of 25 ms, all within the recording."""
    length, hop = _geometry(sampling_rate)
    return max(0, (num_samples - length) // hop + 1)


def mfcc_features(
    waveform: torch.Tensor | np.ndarray, sampling_rate: int = 16000, subtract_mean: bool = False
) -> torch.Tensor:
    """
    Thirteen cepstral coefficients (the first stands for the energy), with their first and second differences in time.

    They equal `torchaudio.compliance.kaldi.mfcc(..., use_energy=False)` followed twice by
    `torchaudio.functional.compute_deltas`, which is what HuBERT's authors clustered.

    Args:
        waveform (`torch.Tensor` or `np.ndarray` of shape `(num_samples,)`): Waveform in [-1, 1].
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate of the waveform, in Hz.
        subtract_mean (`bool`, *optional*, defaults to `False`): Whether to take the mean over time off each
            coefficient (cepstral mean normalisation).

    Returns:
        `torch.Tensor` of shape `(num_frames, 39)`, float32, on the CPU, 100 frames a second.

    Raises:
        ValueError: If the waveform is not one row of finite numbers, or shorter than a frame of 25 ms.
    """
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu().numpy()
    waveform = np.asarray(waveform, dtype=np.float64)
    if waveform.ndim != 1:
        raise ValueError(f"`waveform` must have the shape (num_samples,), but has {waveform.shape}.")
    if not np.isfinite(waveform).all():
        raise ValueError("`waveform` has NaN or infinity.")
    length, hop = _geometry(sampling_rate)
    num_frames = num_mfcc_frames(len(waveform), sampling_rate)
    if num_frames == 0:
        raise ValueError(f"`waveform` has {len(waveform)} samples, but a frame takes {length} of them.")
    frames = np.lib.stride_tricks.sliding_window_view(waveform, length)[::hop]  # (F, length), a view
    blocks = [frames[i : i + FRAMES_PER_BLOCK] for i in range(0, num_frames, FRAMES_PER_BLOCK)]
    cepstrum = np.concatenate([_cepstrum(block, sampling_rate) for block in blocks])
    deltas = _differences(cepstrum)
    features = np.concatenate([cepstrum, deltas, _differences(deltas)], axis=1)
    if subtract_mean:
        features -= features.mean(axis=0)
    return torch.from_numpy(features.astype(np.float32))


def _geometry(sampling_rate: int) -> tuple[int, int]:
    # Number of samples of a frame, and from one frame to the next.
    return sampling_rate * 25 // 1000, sampling_rate // MFCC_FRAME_RATE


def _cepstrum(frames: np.ndarray, sampling_rate: int) -> np.ndarray:
    window, filters, cosines = _constants(frames.shape[1], sampling_rate)
    frames = frames - frames.mean(axis=1, keepdims=True)
    previous = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = np.fft.rfft((frames - PREEMPHASIS * previous) * window, 2 * (len(filters) - 1))
    energies = np.square(np.abs(spectrum)) @ filters
    return np.log(np.maximum(energies, np.finfo(np.float32).eps)) @ cosines


@cache
def _constants(length: int, sampling_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    window = window_function(length, "povey", periodic=False)
    filters = mel_filter_bank(
        num_frequency_bins=(1 << (length - 1).bit_length()) // 2 + 1,
        num_mel_filters=NUM_MEL_FILTERS,
        min_frequency=20.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    # The orthonormal DCT-II, and the lifter that evens out the variances of its coefficients.
    order = np.arange(NUM_COEFFICIENTS)
    cosines = np.cos(np.pi / NUM_MEL_FILTERS * np.outer(np.arange(NUM_MEL_FILTERS) + 0.5, order))
    cosines *= np.sqrt(np.where(order == 0, 1.0, 2.0) / NUM_MEL_FILTERS)
    return window, filters, cosines * (1 + LIFTER / 2 * np.sin(np.pi * order / LIFTER))


def _differences(features: np.ndarray) -> np.ndarray:
    # Slope of the line through five frames; the first and the last frame are repeated beyond the ends.
    padded = np.pad(features, ((2, 2), (0, 0)), mode="edge")
    count = len(features)
    return sum(k * (padded[2 + k : 2 + k + count] - padded[2 - k : 2 - k + count]) for k in (1, 2)) / 10
