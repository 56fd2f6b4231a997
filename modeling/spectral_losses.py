# SPDX-License-Identifier: Apache-2.0
"""Log-mel spectrograms and the multi-scale mel loss, computed in float32 whatever the precision around them."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class MelScale:
    """
    One resolution of the multi-scale mel loss.

    Args:
        n_fft (`int`): Length of the window and of the Fourier transform, in samples.
        hop_length (`int`): Samples between two frames.
        num_mels (`int`): Number of mel filters.
        weight (`float`, *optional*, defaults to 1.0): Weight of this resolution in the sum.
    """

    n_fft: int
    hop_length: int
    num_mels: int
    weight: float = 1.0

    def __post_init__(self):
        if not 0 < self.hop_length <= self.n_fft or self.num_mels < 1:
            raise ValueError(f"A mel scale needs 0 < `hop_length` <= `n_fft` and `num_mels` >= 1, but got {self}.")


SPEECHTOKENIZER_MEL_SCALES = (
    MelScale(1024, 240, 80, 45.0),
    MelScale(512, 120, 80, 1.0),
    MelScale(256, 60, 80, 1.0),
    MelScale(128, 30, 80, 1.0),
)
"""Scales and weights of SpeechTokenizer and DM-Codec. The two shortest windows leave 2 and 13 of 80 filters empty."""

DEFAULT_MEL_SCALES = (
    MelScale(2048, 512, 128, 0.2),
    MelScale(1024, 256, 80, 0.2),
    MelScale(512, 128, 40, 0.2),
    MelScale(256, 64, 20, 0.2),
    MelScale(128, 32, 10, 0.2),
)
"""Windows of 8 to 128 ms at 16 kHz, as many filters as each can tell apart; the weights make the loss a mean."""


def hertz_to_mel(frequency: float) -> float:
    """The mel scale of HTK, 2595 log10(1 + f / 700)."""
    return 2595.0 * math.log10(1.0 + frequency / 700.0)


@functools.cache
def mel_filters(
    sampling_rate: int, n_fft: int, num_mels: int, f_min: float, f_max: float, device: torch.device
) -> torch.Tensor:
    """Triangular filters of unit area (Slaney) on the HTK mel scale, of shape `(num_mels, n_fft // 2 + 1)`."""
    with torch.inference_mode(False), torch.no_grad():
        frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sampling_rate / n_fft)
        mels = torch.linspace(hertz_to_mel(f_min), hertz_to_mel(f_max), num_mels + 2, dtype=torch.float64)
        edges = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
        widths = edges.diff()
        rising = (frequencies - edges[:-2, None]) / widths[:-1, None]
        falling = (edges[2:, None] - frequencies) / widths[1:, None]
        triangles = torch.minimum(rising, falling).clamp_min(0.0)
        return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).float().to(device)


@functools.cache
def hann_window(n_fft: int, device: torch.device) -> torch.Tensor:
    """The periodic Hann window of `n_fft` samples."""
    with torch.inference_mode(False):
        return torch.hann_window(n_fft, dtype=torch.float32, device=device)


class RealFourierTransform(torch.autograd.Function):
    """
    `torch.fft.rfft` of the last dimension, of even length, whose gradient is a real transform too: PyTorch's own takes
    a complex one, of twice the size, which costs a sixth of the mel loss.
    """

    @staticmethod
    def forward(ctx, frames: torch.Tensor) -> torch.Tensor:
        ctx.length = frames.shape[-1]
        return torch.fft.rfft(frames)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        # The inverse counts each bin twice, for its mirror image, but for the first and the last.
        weights = torch.full(gradient.shape[-1:], 0.5, device=gradient.device)
        weights[0] = weights[-1] = 1.0
        return torch.fft.irfft(gradient * weights, n=ctx.length, norm="forward")


def short_time_spectrum(audio: torch.Tensor, n_fft: int, hop_length: int) -> torch.Tensor:
    """
    Hann-windowed Fourier transforms, in float32.

    The signal is extended by `(n_fft - hop_length) // 2` reflected samples at each end, and frames are not centred, so
    that there are `num_samples // hop_length` of them. Signals too short to be reflected are extended by zeros.

    Args:
        audio (`torch.Tensor` of shape `(batch, num_samples)`): Waveform in [-1, 1].
        n_fft (`int`): Length of the window and of the Fourier transform, in samples.
        hop_length (`int`): Samples between two frames.

    Returns:
        `torch.Tensor` of shape `(batch, num_frames, n_fft // 2 + 1)`, complex.
    """
    with torch.autocast(device_type=audio.device.type, enabled=False):
        audio = audio.float()
        extension = (n_fft - hop_length) // 2
        if audio.shape[-1] > extension:
            audio = F.pad(audio[:, None], (extension, extension), mode="reflect")[:, 0]
        else:
            audio = F.pad(audio, (extension, extension))
        audio = F.pad(audio, (0, max(0, n_fft - audio.shape[-1])))
        frames = audio.unfold(-1, n_fft, hop_length) * hann_window(n_fft, audio.device)
        return torch.fft.rfft(frames) if n_fft % 2 else RealFourierTransform.apply(frames)


def log_mel_spectrogram(
    audio: torch.Tensor,
    sampling_rate: int,
    n_fft: int,
    hop_length: int,
    num_mels: int,
    f_min: float = 0.0,
    f_max: float | None = None,
) -> torch.Tensor:
    """
    Natural logarithm of the mel magnitude spectrogram, floored at 1e-5, as HiFi-GAN and SpeechTokenizer define it.

    Args:
        audio (`torch.Tensor` of shape `(batch, num_samples)`): Waveform in [-1, 1].
        sampling_rate (`int`): Sampling rate of the waveform, in Hz.
        n_fft, hop_length (`int`): Length of the window and distance of the frames, in samples; see
            [`short_time_spectrum`].
        num_mels (`int`): Number of mel filters.
        f_min (`float`, *optional*, defaults to 0.0): Lower edge of the first filter in Hz.
        f_max (`float`, *optional*): Upper edge of the last filter in Hz. Defaults to half the sampling rate.

    Returns:
        `torch.Tensor` of shape `(batch, num_mels, num_frames)`, float32.
    """
    spectrum = short_time_spectrum(audio, n_fft, hop_length)
    return log_mel(spectrum, sampling_rate, n_fft, num_mels, f_min, f_max)


def log_mel(
    spectrum: torch.Tensor,
    sampling_rate: int,
    n_fft: int,
    num_mels: int,
    f_min: float = 0.0,
    f_max: float | None = None,
) -> torch.Tensor:
    """[`log_mel_spectrogram`] of what [`short_time_spectrum`] gives."""
    f_max = sampling_rate / 2 if f_max is None else f_max
    with torch.autocast(device_type=spectrum.device.type, enabled=False):
        # The constant under the root keeps the gradient finite where the spectrum is zero.
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
        filters = mel_filters(sampling_rate, n_fft, num_mels, float(f_min), float(f_max), spectrum.device)
        return (magnitude @ filters.T).clamp_min(1e-5).log().transpose(1, 2)


def multi_scale_mel_loss(
    decoded: torch.Tensor,
    recorded: torch.Tensor,
    sampling_rate: int,
    scales: tuple[MelScale, ...] = DEFAULT_MEL_SCALES,
    padding_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Weighted sum over `scales` of the mean absolute difference of two log-mel spectrograms.

    Args:
        decoded (`torch.Tensor` of shape `(batch, 1, num_samples)`): The codec's output.
        recorded (`torch.Tensor` of shape `(batch, 1, num_samples)`): The recording. The longer of both is cut.
        sampling_rate (`int`): Rate of both in Hz.
        scales (`tuple` of [`MelScale`], *optional*): Resolutions and weights. Defaults to `DEFAULT_MEL_SCALES`.
        padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples.
            Samples of the padding are silenced, and frames centred on padding do not count.

    Returns:
        `torch.Tensor`: A scalar, float32.
    """
    num_samples = min(decoded.shape[-1], recorded.shape[-1])
    decoded, recorded = decoded[:, 0, :num_samples], recorded[:, 0, :num_samples]
    if padding_mask is not None:
        padding_mask = padding_mask[:, :num_samples].to(recorded.device, torch.float32)
        decoded, recorded = decoded * padding_mask, recorded * padding_mask

    def spectra(n_fft: int, hop_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        return short_time_spectrum(decoded, n_fft, hop_length), short_time_spectrum(recorded, n_fft, hop_length)

    return mel_loss_of_spectra(spectra, sampling_rate, scales, padding_mask)


def mel_loss_of_spectra(
    spectra: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]],
    sampling_rate: int,
    scales: tuple[MelScale, ...] = DEFAULT_MEL_SCALES,
    padding_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    [`multi_scale_mel_loss`] of spectra that other losses may need as well.

    Args:
        spectra (callable): Function of `n_fft` and `hop_length` that returns the spectra of the decoded and of the
            recorded waveforms, which have one length; see [`short_time_spectrum`].
        sampling_rate (`int`): Rate of both in Hz.
        scales (`tuple` of [`MelScale`], *optional*): Resolutions and weights. Defaults to `DEFAULT_MEL_SCALES`.
        padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples,
            floating-point. Frames centred on padding do not count.

    Returns:
        `torch.Tensor`: A scalar, float32.
    """
    terms = []
    for scale in scales:
        decoded, recorded = (
            log_mel(spectrum, sampling_rate, scale.n_fft, scale.num_mels)
            for spectrum in spectra(scale.n_fft, scale.hop_length)
        )
        difference = (decoded - recorded).abs()
        if padding_mask is None:
            terms.append(scale.weight * difference.mean())
        else:
            # Frame i is centred on sample (i + 1/2) * hop_length of the signal.
            centres = torch.arange(difference.shape[-1], device=difference.device) * scale.hop_length
            centres = (centres + scale.hop_length // 2).clamp_max(padding_mask.shape[-1] - 1)
            weights = padding_mask[:, centres]  # (B, frames)
            terms.append(scale.weight * (difference.mean(1) * weights).sum() / weights.sum().clamp_min(1.0))
    return torch.stack(terms).sum()
