# SPDX-License-Identifier: Apache-2.0
"""
Discriminators that tell recorded from decoded speech: over spectrograms, over periods, over scales of the waveform.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from speech_tokenizers.training.common.recipe_files import check_names


class DiscriminatorOutput(NamedTuple):
    """
    Opinion of one discriminator.

    Args:
        logits (`torch.Tensor` of shape `(batch, ...)`): Scores of the input, high where it seems recorded.
        features (`list[torch.Tensor]`): Outputs of the layers, for feature matching.
    """

    logits: torch.Tensor
    features: list[torch.Tensor]


class STFTDiscriminator(nn.Module):
    """
    2-D convolutions over the complex spectrogram at one resolution. (EnCodec, section 3.4:
    https://huggingface.co/papers/2210.13438)

    Args:
        num_filters (`int`): Number of channels of every layer.
        n_fft (`int`): Window and transform length in samples; the hop is a quarter of it.
        dilations (sequence of `int`): Dilation in time of each strided layer.
        bins_per_position (`int`): Neighbouring frequencies that the first layer takes as channels of one position.
            With 8 a discriminator costs a CPU a fifth of what it does with 1, EnCodec's.
    """

    def __init__(self, num_filters: int, n_fft: int, dilations: Sequence[int] = (1, 2, 4), bins_per_position: int = 1):
        super().__init__()
        self.n_fft = n_fft
        self.bins_per_position = bins_per_position
        window = torch.hann_window(n_fft)
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        # As in EnCodec, the first layer has no weight normalisation.
        layers: list[nn.Module] = [nn.Conv2d(2 * bins_per_position, num_filters, (3, 9), padding=(1, 4))]
        layers += [
            weight_norm(nn.Conv2d(num_filters, num_filters, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4)))
            for d in dilations
        ]
        layers.append(weight_norm(nn.Conv2d(num_filters, num_filters, (3, 3), padding=(1, 1))))
        self.layers = nn.ModuleList(layers)
        self.head = weight_norm(nn.Conv2d(num_filters, 1, (3, 3), padding=(1, 1)))

    def forward(self, audio: torch.Tensor) -> DiscriminatorOutput:
        """
        Args:
            audio (`torch.Tensor` of shape `(batch, 1, num_samples)`): Waveform of at least `n_fft` samples.
        """
        with torch.autocast(device_type=audio.device.type, enabled=False):
            spectrum = torch.fft.rfft(audio[:, 0].float().unfold(-1, self.n_fft, self.n_fft // 4) * self.window)
            hidden = torch.stack([spectrum.real, spectrum.imag], dim=1)  # (B, 2, frames, bins)
            positions = hidden.shape[-1] // self.bins_per_position
            hidden = hidden[..., : positions * self.bins_per_position].unflatten(-1, (positions, -1))
            # (B, 2 * bins_per_position, frames, positions); few channels are convolved faster when they lie side by
            # side.
            hidden = hidden.movedim(-1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), 0.2, inplace=True)  # keeps one tensor a layer, not two
            features.append(hidden)
        return DiscriminatorOutput(self.head(hidden), features)


class PeriodDiscriminator(nn.Module):
    """
    Convolutions over every `period`-th sample. (HiFi-GAN, section 2.3: https://huggingface.co/papers/2010.05646)

    Args:
        period (`int`): Distance of the samples seen together, in samples.
        channels (sequence of `int`): Channels of the layers; all but the last have stride 3.
    """

    def __init__(self, period: int, channels: Sequence[int] = (32, 128, 512, 1024, 1024)):
        super().__init__()
        self.period = period
        sizes = list(zip((1, *channels[:-1]), channels, strict=True))
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (5, 1), stride=(3 if i < len(sizes) - 1 else 1, 1), padding=(2, 0)))
            for i, (before, after) in enumerate(sizes)
        )
        self.head = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: torch.Tensor) -> DiscriminatorOutput:
        """
        Args:
            audio (`torch.Tensor` of shape `(batch, 1, num_samples)`): Waveform.
        """
        missing = -audio.shape[-1] % self.period
        hidden = F.pad(audio, (0, missing), mode="reflect").unflatten(
            -1, (-1, self.period)
        )  # (B, 1, T / period, period)
        features = []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), 0.1, inplace=True)
            features.append(hidden)
        logits = self.head(hidden)
        return DiscriminatorOutput(logits.flatten(1), [*features, logits])


class ScaleDiscriminator(nn.Module):
    """
    Strided grouped 1-D convolutions over the waveform. (MelGAN and HiFi-GAN, section 2.3)

    Args:
        width (`int`): Channels of the first layer; the widest have eight times as many. HiFi-GAN has 128.
        normalization (callable): Function that normalizes the weights: `weight_norm` or `spectral_norm`.
    """

    def __init__(self, width: int = 128, normalization=weight_norm):
        super().__init__()
        # Output channels relative to the width, kernel, stride, groups.
        sizes = [
            (1, 15, 1, 1),
            (1, 41, 2, 4),
            (2, 41, 2, 16),
            (4, 41, 4, 16),
            (8, 41, 4, 16),
            (8, 41, 1, 16),
            (8, 5, 1, 1),
        ]
        layers, before = [], 1
        for factor, kernel, stride, groups in sizes:
            after = factor * width
            layers.append(normalization(nn.Conv1d(before, after, kernel, stride, padding=kernel // 2, groups=groups)))
            before = after
        self.layers = nn.ModuleList(layers)
        self.head = normalization(nn.Conv1d(before, 1, 3, padding=1))

    def forward(self, audio: torch.Tensor) -> DiscriminatorOutput:
        """
        Args:
            audio (`torch.Tensor` of shape `(batch, 1, num_samples)`): Waveform.
        """
        hidden, features = audio, []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), 0.1, inplace=True)
            features.append(hidden)
        logits = self.head(hidden)
        return DiscriminatorOutput(logits.flatten(1), [*features, logits])


class MultiScaleSTFTDiscriminator(nn.Module):
    """
    One [`STFTDiscriminator`] per window length.

    Args:
        num_filters (`int`, *optional*, defaults to 32): Number of channels of every layer.
        n_ffts (sequence of `int`, *optional*): Window lengths in samples.
        dilations (sequence of `int`, *optional*): Dilations in time.
        bins_per_position (`int`, *optional*, defaults to 1): Neighbouring frequencies folded into channels, for speed.
    """

    def __init__(
        self,
        num_filters: int = 32,
        n_ffts: Sequence[int] = (1024, 2048, 512, 256, 128),
        dilations: Sequence[int] = (1, 2, 4),
        bins_per_position: int = 1,
    ):
        super().__init__()
        self.discriminators = nn.ModuleList(
            STFTDiscriminator(num_filters, n_fft, dilations, bins_per_position) for n_fft in n_ffts
        )

    def forward(self, audio: torch.Tensor) -> list[DiscriminatorOutput]:
        """(batch, 1, num_samples) -> one output a window length."""
        return [discriminator(audio) for discriminator in self.discriminators]


class MultiPeriodDiscriminator(nn.Module):
    """
    One [`PeriodDiscriminator`] per period.

    Args:
        periods (sequence of `int`, *optional*): Periods in samples.
        channels (sequence of `int`, *optional*): Channels of the layers.
    """

    def __init__(
        self, periods: Sequence[int] = (2, 3, 5, 7, 11), channels: Sequence[int] = (32, 128, 512, 1024, 1024)
    ):
        super().__init__()
        self.discriminators = nn.ModuleList(PeriodDiscriminator(period, channels) for period in periods)

    def forward(self, audio: torch.Tensor) -> list[DiscriminatorOutput]:
        """(batch, 1, num_samples) -> one output a period."""
        return [discriminator(audio) for discriminator in self.discriminators]


class MultiScaleDiscriminator(nn.Module):
    """
    [`ScaleDiscriminator`]s on the waveform and on its repeated averages; the first has spectral normalisation, as in
    HiFi-GAN.

    Args:
        num_scales (`int`, *optional*, defaults to 3): Number of scales; each has half the rate of the one before.
        width (`int`, *optional*, defaults to 128): Channels of the first layer, a multiple of 16.
    """

    def __init__(self, num_scales: int = 3, width: int = 128):
        super().__init__()
        self.discriminators = nn.ModuleList(
            ScaleDiscriminator(width, spectral_norm if scale == 0 else weight_norm) for scale in range(num_scales)
        )

    def forward(self, audio: torch.Tensor) -> list[DiscriminatorOutput]:
        """(batch, 1, num_samples) -> one output a scale."""
        outputs = []
        for scale, discriminator in enumerate(self.discriminators):
            if scale > 0:
                audio = F.avg_pool1d(audio, 4, 2, padding=2)
            outputs.append(discriminator(audio))
        return outputs


DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "multi_scale_stft": MultiScaleSTFTDiscriminator,
    "multi_period": MultiPeriodDiscriminator,
    "multi_scale": MultiScaleDiscriminator,
}


def _check_sizes(value: Any, name: str) -> None:
    if isinstance(value, list | tuple) and value:
        for size in value:
            _check_sizes(size, name)
    elif not isinstance(value, bool) and not (isinstance(value, int) and value >= 1):
        raise ValueError(f"`{name}` must hold whole numbers of at least 1, but got {value!r}.")


class DiscriminatorEnsemble(nn.Module):
    """
    Several kinds of discriminators as one module.

    Args:
        sizes (`dict`): Arguments of each kind's class, by the kind's name in `DISCRIMINATORS`; `{}` for its defaults.

    Raises:
        ValueError: If a kind, or one of its arguments, is unknown.
    """

    def __init__(self, **sizes: dict):
        super().__init__()
        check_names(sizes, DISCRIMINATORS, "The discriminator")
        for kind, given in sizes.items():
            known = inspect.signature(DISCRIMINATORS[kind]).parameters
            check_names(given, known, "The size of a discriminator", f"{kind}.")
            for name, value in given.items():
                _check_sizes(value, f"adversarial.discriminators.{kind}.{name}")
                if isinstance(known[name].default, tuple) and not isinstance(value, list | tuple):
                    raise ValueError(f"`adversarial.discriminators.{kind}.{name}` must be a list, but got {value!r}.")
        # In one order, whatever that of the recipe: it names the weights.
        self.members = nn.ModuleList(made(**sizes[kind]) for kind, made in DISCRIMINATORS.items() if kind in sizes)

    def forward(self, audio: torch.Tensor) -> list[DiscriminatorOutput]:
        """(batch, 1, num_samples) -> the outputs of all members."""
        return [output for member in self.members for output in member(audio)]
