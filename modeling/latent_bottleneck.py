# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""A bottleneck of few dimensions with noise, and the running statistics of what passes through it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import distributed
from transformers import initialization as init

from .codec_layers import CodecConv1d, CodecLayer, CodecSequential, PointwiseConv1d, StreamingCache
from .spectral_layers import ChannelNorm
from .vector_quantization import FreezableModule, several_processes


class BottleneckOutput(NamedTuple):
    """
    Attributes:
        latents: Latents (batch, num_frames, dim), with noise if it was asked for.
        mean: Latents (batch, num_frames, dim), without noise.
        kl_loss: Loss of the bottleneck, a scalar; see [`LatentBottleneck`].
    """

    latents: torch.Tensor
    mean: torch.Tensor
    kl_loss: torch.Tensor


class LatentBottleneck(FreezableModule):
    """
    Latents with noise in training mode, so that a decoder serves a neighbourhood of each, and the cost of escaping it.

    `"sigma"`: z = m + s e with e standard normal and s = `noise_std` times one standard normal number per item
    (sigma-VAE, LatentLM, arXiv 2412.08635); the loss is m^2 / 2, the part of KL(N(m, s^2) || N(0, 1)) that m decides.
    `"kl"`: z = m + exp(v / 2) e with a predicted v; the loss is (m^2 + exp(v) - 1 - v) / 2. Both are means over frames
    and dimensions, in nats.

    Args:
        kind (`str`): Kind of bottleneck: `"sigma"` or `"kl"`.
        noise_std (`float`): Factor on the standard deviation of the noise of `"sigma"`; `"kl"` does not use it.
    """

    # What exp can take; a standard deviation below exp(-15) is none.
    LOG_VARIANCE_RANGE = (-30.0, 20.0)

    def __init__(self, kind: str, noise_std: float):
        super().__init__()
        self.kind, self.noise_std = kind, noise_std

    def num_channels(self, dim: int) -> int:
        """Channels that the encoder has to give for latents of `dim` dimensions."""
        return dim if self.kind == "sigma" else 2 * dim

    def mean(self, moments: torch.Tensor) -> torch.Tensor:
        """(batch, num_frames, num_channels) -> (batch, num_frames, dim), without noise."""
        return moments if self.kind == "sigma" else moments.chunk(2, dim=-1)[0]

    def noise(self, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> torch.Tensor:
        """
        Noise that `forward` adds, up to the standard deviation.

        Args:
            shape (`tuple` of three `int`): Shape of the noise, (batch, num_frames, dim).
            generator (`torch.Generator`, *optional*): Generator of the noise. Defaults to PyTorch's global one.
        """
        draws = {"generator": generator, "device": "cpu" if generator is None else generator.device}
        noise = torch.randn(shape, **draws)
        return noise * torch.randn((shape[0], 1, 1), **draws) if self.kind == "sigma" else noise

    def forward(
        self,
        moments: torch.Tensor,
        mask: torch.Tensor | None = None,
        sample: bool = False,
        noise: torch.Tensor | None = None,
    ) -> BottleneckOutput:
        """
        Args:
            moments (`torch.Tensor` of shape `(batch, num_frames, num_channels)`): Encoder output.
            mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for frames that count.
            sample (`bool`): Whether to add noise.
            noise (`torch.Tensor` of shape `(batch, num_frames, dim)`, *optional*): Noise that `noise` drew, to add the
                same again. By default it is drawn.
        """
        mean, spread = self.mean(moments), self.noise_std
        terms = mean.float().square()
        if self.kind == "kl":
            log_variance = moments.chunk(2, dim=-1)[1].float().clamp(*self.LOG_VARIANCE_RANGE)
            terms = terms + log_variance.exp() - 1 - log_variance
            spread = (0.5 * log_variance).exp()
        weight = torch.ones_like(terms[..., :1]) if mask is None else mask.unsqueeze(-1).to(terms.dtype)
        kl_loss = 0.5 * (terms * weight).sum() / (weight.sum().clamp(min=1) * terms.shape[-1])
        latents = mean
        if sample:
            drawn = self.noise(tuple(mean.shape)) if noise is None else noise
            latents = mean + (spread * drawn.to(mean.device)).to(mean.dtype)
        return BottleneckOutput(latents, mean, kl_loss)


class LatentStatistics(FreezableModule):
    """
    Mean and standard deviation of each dimension, for latents of zero mean and unit variance.

    They follow the latents of the first `num_steps` batches in training mode, over all processes, and then stay.

    Args:
        dim (`int`): Number of dimensions.
        num_steps (`int`): Number of batches to follow.
        decay (`float`): Decay of the moving average, which is a plain one at first.
    """

    def __init__(self, dim: int, num_steps: int, decay: float):
        super().__init__()
        self.num_steps, self.decay = num_steps, decay
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("num_updates", torch.tensor(0))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin anew, with no batch followed."""
        init.zeros_(self.mean)
        init.ones_(self.variance)
        init.zeros_(self.num_updates)

    def set(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Mean and variance, each (dim,), that were measured elsewhere."""
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.num_updates.fill_(1)

    @property
    def std(self) -> torch.Tensor:
        """Standard deviations, (dim,); a dimension that never changes counts as 1e-3."""
        return self.variance.sqrt().clamp(min=1e-3)

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """(..., dim) -> (..., dim), in float32 or better."""
        return (latents - self.mean) / self.std

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """What `normalize` made of something, back again."""
        return latents * self.std + self.mean

    @property
    def follows(self) -> bool:
        """Whether the next batch in training mode is learnt from."""
        return self.training and bool(self.num_updates < self.num_steps)

    @torch.no_grad()
    def update(self, latents: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """
        Learn from a batch, unless there were enough or the module is in evaluation mode.

        Args:
            latents (`torch.Tensor` of shape `(batch, num_frames, dim)`): Latents without noise.
            mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for frames that count.
        """
        if not self.follows:
            return
        # In float64 around the present mean: sums of squares of a few numbers that lie far from zero would cancel.
        offsets = latents.detach().double() - self.mean.double()
        counts = offsets.isfinite().all(dim=-1, keepdim=True)
        if mask is not None:
            counts = counts & mask.unsqueeze(-1).bool()
        offsets = torch.where(counts, offsets, 0.0)
        sums = torch.stack([offsets.sum(dim=(0, 1)), offsets.square().sum(dim=(0, 1)), counts.sum().expand(self.dim)])
        if several_processes():
            distributed.all_reduce(sums)
        total, squares, count = sums
        if count[0] < 1:
            return
        share = max(1 - self.decay, 1 / (int(self.num_updates) + 1))
        shift = total / count
        spread = (squares / count - shift.square()).clamp(min=0)
        self.variance.copy_(
            (1 - share) * self.variance.double() + share * spread + share * (1 - share) * shift.square()
        )
        self.mean.copy_(self.mean.double() + share * shift)
        self.num_updates += 1

    @property
    def dim(self) -> int:
        return len(self.mean)


class Gelu(CodecLayer):
    """Gaussian error linear unit."""

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        return F.gelu(hidden_states)


class CTCProjection(CodecSequential):
    """Latents (batch, dim, F) -> logits of labels (batch, num_labels, F), each from five frames."""

    def __init__(self, config, dim: int, width: int, num_labels: int):
        super().__init__(
            CodecConv1d(config, dim, width, 5),
            ChannelNorm(width),
            Gelu(),
            PointwiseConv1d(config, width, num_labels),
        )
