# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""A codebook of the fundamental frequency (F0), relative to the speaker's, beside units that do not keep it."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .encoder_geometry import first_frame_centre
from .pitch_frames import PitchFrames, PitchState


# Dimensions that an F0 code has among latents: whether it is voiced, and log2 F0 in deviations from the mean.
F0_DIM = 2
# Octaves: no speaker's deviation is taken to be less.
LEAST_DEVIATION = 0.02


class F0Codebook(nn.Module):
    """
    Codes of F0: 0 for what is unvoiced, and bins of log2 F0 in deviations from the speaker's mean.

    Mean and deviation run along: those of the recording's voiced frames up to this one, and of a prior that counts for
    `f0_prior_frames` frames. Who knows the speaker can give them instead. Silence, clips without a voice and voices
    outside `f0_floor` to `f0_ceiling` have code 0 everywhere. A code lasts `f0_stride` frames: unvoiced if fewer than
    half of them are voiced, else the mean of those that are.

    Args:
        config ([`UnitsConfig`]): With `f0_bins` and the other fields of F0.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        boundaries, centres = default_bins(config.f0_bins)
        self.register_buffer("boundaries", boundaries)
        self.register_buffer("centres", centres)

    def reset_parameters(self) -> None:
        """Bins that a normal distribution fills alike."""
        boundaries, centres = default_bins(self.config.f0_bins)
        self.boundaries.copy_(boundaries)
        self.centres.copy_(centres)

    def set_bins(self, boundaries: torch.Tensor, centres: torch.Tensor) -> None:
        """
        Args:
            boundaries (`torch.Tensor` of shape `(f0_bins - 2,)`): Where one bin ends and the next begins, rising, in
                deviations from the mean.
            centres (`torch.Tensor` of shape `(f0_bins - 1,)`): What each bin stands for.

        Raises:
            ValueError: If a shape is wrong, a number not finite, or the boundaries do not rise.
        """
        for name, values in (("boundaries", boundaries), ("centres", centres)):
            expected = tuple(getattr(self, name).shape)
            if tuple(values.shape) != expected or not bool(values.isfinite().all()):
                raise ValueError(f"`{name}` must be finite, of shape {expected}, but has {tuple(values.shape)}.")
        if not bool((boundaries.diff() > 0).all()):
            raise ValueError(
                "`boundaries` must rise: there are fewer distinct values of F0 than bins; give more speech or fewer"
                " bins."
            )
        self.boundaries.copy_(boundaries)
        self.centres.copy_(centres)

    def pitch_frames(self) -> PitchFrames:
        """The tracker of F0 at the encoder's frames."""
        config = self.config
        first = first_frame_centre(config.encoder_config)
        return PitchFrames(config.hop_length, first, config.sampling_rate, config.f0_floor, config.f0_ceiling)

    def needed_samples(self, num_frames: int) -> int:
        """Samples that have to arrive for the codes of the first frames."""
        pitch, stride = self.pitch_frames(), self.config.f0_stride
        last = -(-num_frames // stride) * stride - 1
        return pitch.first_centre + last * pitch.hop_length + pitch.look_ahead_samples + 1

    def encode(
        self,
        waveforms: torch.Tensor,
        num_samples: torch.Tensor,
        mask: torch.Tensor,
        speaker_f0: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            waveforms (`torch.Tensor` of shape `(batch, max_num_samples)`): Waveforms in [-1, 1].
            num_samples (`torch.Tensor` of shape `(batch,)`): Their lengths.
            mask (`torch.Tensor` of shape `(batch, num_frames)`): Mask of their frames.
            speaker_f0 (`torch.Tensor` of shape `(batch, 2)`, *optional*): Mean and deviation of log2 F0 in Hz.

        Returns:
            Codes `(batch, num_frames)`, and what they code `(batch, num_frames, 2)`: 1 for voiced, and log2 F0 in
            deviations from the mean, 0 where it is unvoiced.

        Raises:
            ValueError: If `speaker_f0` has another shape, is not finite, or a deviation is not positive.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            octaves = self.pitch_frames().track(waveforms, num_samples, mask.shape[1])
        is_real = mask.bool().cpu()
        deviations, _ = self.normalized(octaves, is_real, speaker_f0)
        latents = _averaged(deviations, (octaves > 0) & is_real, is_real, self.config.f0_stride)
        return self.codes(latents).to(mask.device), latents.to(mask.device, torch.float32)

    def normalized(
        self,
        octaves: torch.Tensor,
        is_real: torch.Tensor,
        speaker_f0: torch.Tensor | None = None,
        sums: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            octaves (`torch.Tensor` of shape `(batch, num_frames)`): log2 of F0 in Hz; 0 where it is unvoiced.
            is_real (`torch.Tensor` of shape `(batch, num_frames)`): Which frames count.
            speaker_f0 (`torch.Tensor` of shape `(batch, 2)`, *optional*): See `encode`.
            sums (`torch.Tensor` of shape `(3, batch, 1)`, *optional*): Number, sum and sum of squares of the voiced
                frames before.

        Returns:
            Deviations from the mean `(batch, num_frames)`, and the sums behind these frames.
        """
        voiced = ((octaves > 0) & is_real).to(octaves.dtype)
        values = octaves * voiced
        running = torch.stack([voiced, values, values.square()]).cumsum(-1)
        if sums is not None:
            running = running + sums
        if speaker_f0 is not None:
            mean, deviation = check_speaker_f0(speaker_f0, len(octaves)).unsqueeze(-1).unbind(1)
        else:
            config, (count, total, square) = self.config, running
            weight = count + config.f0_prior_frames
            mean = (config.f0_prior_frames * config.f0_prior_mean + total) / weight
            spread = (square - total.square() / count.clamp(min=1)).clamp(min=0)
            deviation = ((config.f0_prior_frames * config.f0_prior_deviation**2 + spread) / weight).sqrt()
        last = running[..., -1:] if running.shape[-1] else sums
        return (octaves - mean) / deviation.clamp(min=LEAST_DEVIATION) * voiced, last

    def averaged(self, octaves: torch.Tensor, speaker_f0: torch.Tensor) -> torch.Tensor:
        """
        What codes of a known speaker's F0 code, as `encode` gives it.

        Args:
            octaves (`torch.Tensor` of shape `(batch, num_frames)`): log2 of F0 in Hz; 0 where it is unvoiced.
            speaker_f0 (`torch.Tensor` of shape `(batch, 2)`): See `encode`.
        """
        is_real = torch.ones_like(octaves, dtype=torch.bool)
        deviations, _ = self.normalized(octaves, is_real, speaker_f0)
        return _averaged(deviations, octaves > 0, is_real, self.config.f0_stride)

    def codes(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes `(batch, num_frames)` of `latents` as `encode` gives them."""
        is_voiced, deviations = latents.unbind(-1)
        boundaries = self.boundaries.to(latents.device, latents.dtype)
        return (torch.searchsorted(boundaries, deviations.contiguous()) + 1) * is_voiced.long()

    def vectors(self) -> torch.Tensor:
        """What each code stands for, `(f0_bins, 2)`: 1 for voiced, and log2 F0 in deviations from the mean."""
        voiced = torch.stack([torch.ones_like(self.centres), self.centres], dim=-1)
        return F.pad(voiced, (0, 0, 1, 0))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """
        What codes stand for, `(batch, num_frames, 2)`.

        Raises:
            ValueError: If a code lies outside the codebook.
        """
        if codes.numel() and int(codes.max()) >= self.config.f0_bins:
            raise ValueError(
                f"The last row of `audio_codes` holds F0 codes below `f0_bins`, {self.config.f0_bins}, but has"
                f" {int(codes.max())}."
            )
        return self.vectors()[codes]


class F0Stream:
    """
    The F0 codes of recordings that are still arriving: those of [`~F0Codebook.encode`], however samples are split.

    Args:
        codebook ([`F0Codebook`]): The codes.
        speaker_f0 (`torch.Tensor` of shape `(batch, 2)`, *optional*): See [`~F0Codebook.encode`].
    """

    def __init__(self, codebook: F0Codebook, speaker_f0: torch.Tensor | None = None):
        self.codebook, self.speaker_f0 = codebook, speaker_f0
        self.pitch = PitchState(codebook.pitch_frames())
        self.sums: torch.Tensor | None = None
        self.deviations = self.octaves = torch.zeros(1, 0, dtype=torch.float64)  # of a code that is not whole

    def copied(self) -> "F0Stream":
        """A copy that can change while this one stays."""
        copied = object.__new__(F0Stream)
        copied.__dict__.update(self.__dict__)
        copied.pitch = object.__new__(PitchState)
        copied.pitch.__dict__.update(self.pitch.__dict__)
        return copied

    def push(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Codes `(batch, num_frames)` that samples `(batch, num_samples)` settle."""
        return self._coded(self.pitch.push(waveforms), at_end=False)

    def finish(self, num_frames: int) -> torch.Tensor:
        """The recordings have ended; the rest of `num_frames` codes."""
        return self._coded(self.pitch.finish(num_frames), at_end=True)

    def _coded(self, octaves: torch.Tensor, at_end: bool) -> torch.Tensor:
        is_real = torch.ones_like(octaves, dtype=torch.bool)
        deviations, self.sums = self.codebook.normalized(octaves, is_real, self.speaker_f0, self.sums)
        waits = self.octaves.shape[1] > 0
        octaves = torch.cat([self.octaves, octaves], dim=1) if waits else octaves
        deviations = torch.cat([self.deviations, deviations], dim=1) if waits else deviations
        stride = self.codebook.config.f0_stride
        ready = octaves.shape[1] if at_end else octaves.shape[1] // stride * stride
        self.octaves, self.deviations = octaves[:, ready:], deviations[:, ready:]
        is_voiced = octaves[:, :ready] > 0
        return self.codebook.codes(_averaged(deviations[:, :ready], is_voiced, torch.ones_like(is_voiced), stride))


def _averaged(deviations: torch.Tensor, is_voiced: torch.Tensor, is_real: torch.Tensor, stride: int) -> torch.Tensor:
    # Voicing and mean deviation of each group of frames, at each of its frames: (batch, num_frames, 2).
    num_frames = deviations.shape[1]
    missing = -num_frames % stride
    deviations, voiced, real = (
        F.pad(part, (0, missing)).unflatten(1, (-1, stride)).sum(-1)
        for part in (deviations, is_voiced.double(), is_real.double())
    )
    group_voiced = (voiced > 0) & (2 * voiced >= real)
    mean = torch.where(group_voiced, deviations / voiced.clamp(min=1), 0.0)
    latents = torch.stack([group_voiced.to(mean.dtype), mean], dim=-1)
    return latents.repeat_interleave(stride, dim=1)[:, :num_frames] * is_real[..., None]


def default_bins(f0_bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boundaries `(f0_bins - 2,)` and centres `(f0_bins - 1,)` of bins that a normal distribution fills alike."""
    num_bins = f0_bins - 1
    quantiles = torch.arange(1, 2 * num_bins, dtype=torch.float32) / (2 * num_bins)
    values = 2**0.5 * torch.erfinv(2 * quantiles - 1)
    return values[1::2].clone(), values[::2].clone()


def check_speaker_f0(speaker_f0: torch.Tensor, batch_size: int) -> torch.Tensor:
    """
    Mean and deviation of log2 F0 in Hz, `(batch, 2)` in float64.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it has another shape, is not finite, or a deviation is not positive.
    """
    if not torch.is_tensor(speaker_f0):
        raise TypeError(f"`speaker_f0` must be a tensor, but is {type(speaker_f0).__name__}.")
    if tuple(speaker_f0.shape) != (batch_size, 2) or not bool(speaker_f0.isfinite().all()):
        raise ValueError(
            f"`speaker_f0` must hold a finite mean and deviation of log2 F0 a row, of shape {(batch_size, 2)}, but has"
            f" {tuple(speaker_f0.shape)}."
        )
    if not bool((speaker_f0[:, 1] > 0).all()):
        raise ValueError("`speaker_f0` must have positive deviations (of log2 F0, in octaves, e.g. 0.3).")
    return speaker_f0.detach().cpu().double()


__all__ = ["F0_DIM", "F0Codebook", "F0Stream", "check_speaker_f0"]
