# SPDX-License-Identifier: Apache-2.0
"""Layers of codecs on spectra: an encoder of the Fourier transform, and a decoder that ends in its inverse."""

import torch
import torch.nn.functional as F
from torch import nn

from .codec_layers import (
    CodecConv1d,
    CodecLayer,
    CodecSequential,
    PointwiseConv1d,
    SlidingWindow,
    StreamingCache,
    ceil_divide,
    mask_beyond,
)


def hann_window(n_fft: int) -> torch.Tensor:
    """The periodic Hann window of `n_fft` samples, in float32 whatever PyTorch's default type is."""
    return torch.hann_window(n_fft, dtype=torch.float32)


class ConvNeXtBlock(CodecLayer):
    """Depthwise convolution and a two-layer perceptron beside the identity (ConvNeXt, arXiv 2201.03545)."""

    def __init__(self, config, num_channels: int, num_layers: int):
        super().__init__()
        self.depthwise = CodecConv1d(
            config, num_channels, num_channels, config.convnext_kernel_size, groups=num_channels
        )
        self.norm = nn.LayerNorm(num_channels, eps=1e-6)
        self.up = nn.Linear(num_channels, config.convnext_expansion * num_channels)
        self.down = nn.Linear(config.convnext_expansion * num_channels, num_channels)
        self.initial_scale = 1 / num_layers
        self.scale = nn.Parameter(torch.full((num_channels,), self.initial_scale))

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        update = self.depthwise(hidden_states, lengths, cache).transpose(1, 2)
        update = self.scale * self.down(F.gelu(self.up(self.norm(update))))
        return hidden_states + update.transpose(1, 2)

    def input_span(self, first: int, last: int) -> tuple[int, int]:
        return self.depthwise.input_span(first, last)


class ChannelNorm(CodecLayer):
    """Layer normalisation over the channels."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(num_channels, eps=1e-6)

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        return self.norm(hidden_states.transpose(1, 2)).transpose(1, 2)


class Spectrum(SlidingWindow):
    """
    Short-time Fourier features (batch, 1, T) -> (batch, 3 * (n_fft / 2 + 1), ceil(T / hop_length)).

    Log magnitude, and real and imaginary part with the magnitude compressed to its power of 0.3. Always computed in
    float32. The hop is the configuration's unless another is given.
    """

    def __init__(self, config, hop_length: int | None = None):
        super().__init__(config, config.n_fft, hop_length or config.hop_length)
        self.register_buffer("window", hann_window(config.n_fft).to(torch.get_default_dtype()), persistent=False)

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        padded = self.pad(hidden_states, lengths, cache).squeeze(1).float()
        hops = padded.unflatten(-1, (-1, self.stride))  # (B, F + overlap - 1, hop_length)
        overlap = self.span // self.stride
        num_frames = hops.shape[1] - overlap + 1
        frames = torch.cat([hops[:, k : k + num_frames] for k in range(overlap)], dim=-1)
        spectrum = torch.fft.rfft(frames * self.window.float())  # (B, F, bins)
        real, imaginary = spectrum.real, spectrum.imag
        power = (real.square() + imaginary.square()).clamp(min=1e-10)
        compression = power**-0.35
        features = torch.cat([0.5 * power.log(), real * compression, imaginary * compression], dim=-1)
        return features.transpose(1, 2).to(hidden_states.dtype)


class SpectralEncoder(CodecSequential):
    """
    Waveform (batch, 1, T) -> latents (batch, hidden_size, ceil(T / hop_length)), all layers at the frame rate.

    Args:
        config ([`CodecConfig`]): Sizes of the network.
        out_channels, hop_length (`int`, *optional*): Channels of the latents, and samples per frame. Default to
            `config.hidden_size` and `config.hop_length`.
    """

    def __init__(self, config, out_channels: int | None = None, hop_length: int | None = None):
        width = config.encoder_hidden_size
        super().__init__(
            Spectrum(config, hop_length),
            PointwiseConv1d(config, 3 * (config.n_fft // 2 + 1), width),
            ChannelNorm(width),
            *[ConvNeXtBlock(config, width, config.encoder_num_layers) for _ in range(config.encoder_num_layers)],
            ChannelNorm(width),
            PointwiseConv1d(config, width, out_channels or config.hidden_size),
        )


class InverseSpectrum(CodecLayer):
    """
    Spectra (batch, channels, F) -> waveform (batch, 1, F * hop_length) by windowed overlap-add, in float32.

    Each frame holds `decoder_spectra` spectra, `hop_length / decoder_spectra` samples apart: log magnitude m and phase
    p of the first, of the second, ...; with `decoder_complex_residual` then real and imaginary part of a residual r of
    the first, of the second, .... A spectrum is exp(m) (exp(ip) + r). A phase wraps, which a linear layer cannot do;
    real and imaginary parts don't.

    Spectra are centred on their hop, or, where the codec is causal, start with it (a causal decoder has to predict the
    rest of its window). The hop is the configuration's unless another is given.
    """

    def __init__(self, config, hop_length: int | None = None):
        super().__init__()
        self.num_spectra, self.has_residual = config.decoder_spectra, config.decoder_complex_residual
        self.hop_length = hop_length or config.hop_length
        self.n_fft, self.spectrum_hop = config.decoder_n_fft, self.hop_length // self.num_spectra
        self.overlap = self.n_fft // self.spectrum_hop
        self.trim_left = 0 if config.causal else (self.n_fft - self.spectrum_hop) // 2
        self.register_buffer("window", hann_window(self.n_fft).to(torch.get_default_dtype()), persistent=False)

    @staticmethod
    def num_channels(config) -> int:
        """Channels that a frame needs."""
        return (config.decoder_n_fft + 2) * config.decoder_spectra * (1 + config.decoder_complex_residual)

    def forward(self, hidden_states, lengths=None, cache: StreamingCache | None = None):
        spectra = self._spectra(hidden_states.float().transpose(1, 2))
        num_spectra = spectra.shape[1]
        window = torch.ones_like(self.window, dtype=torch.float32) if self.overlap == 1 else self.window.float()
        frames = (torch.fft.irfft(spectra, n=self.n_fft) * window).transpose(1, 2)  # (B, n_fft, F * num_spectra)
        presence = frames.new_ones(len(frames), 1, num_spectra)
        if lengths is not None:
            lengths = lengths * self.num_spectra
            frames, presence = mask_beyond(frames, lengths), mask_beyond(presence, lengths)
        past = 0
        if cache is not None:
            past = self.overlap - 1
            frames = cache.prepend(self, frames, past, "frames")
            presence = cache.prepend(self, presence, past, "presence")
        audio = self._overlap_add(frames)
        envelope = self._overlap_add(presence * window.square().unsqueeze(-1))
        start = self.trim_left + past * self.spectrum_hop
        # The floor only acts where a single frame's window begins, at the very start of a causal signal.
        audio = audio / envelope.clamp(min=0.1)
        return audio[:, None, start : start + num_spectra * self.spectrum_hop]

    def _spectra(self, channels: torch.Tensor) -> torch.Tensor:
        """(batch, F, channels) -> complex (batch, F * num_spectra, bins)."""
        polar, *residual = channels.chunk(1 + self.has_residual, dim=-1)
        log_magnitude, phase = polar.unflatten(-1, (self.num_spectra, -1)).flatten(1, 2).chunk(2, dim=-1)
        magnitude = log_magnitude.clamp(max=5.0).exp()
        spectra = torch.polar(magnitude, phase)
        for part in residual:
            real, imaginary = part.unflatten(-1, (self.num_spectra, -1)).flatten(1, 2).chunk(2, dim=-1)
            spectra = spectra + torch.complex(magnitude * real, magnitude * imaginary)
        return spectra

    def _overlap_add(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, n_fft, spectra) -> (batch, (spectra + overlap - 1) * spectrum_hop)."""
        pieces = frames.transpose(1, 2).unflatten(-1, (self.overlap, self.spectrum_hop))
        shifted = [F.pad(pieces[:, :, k], (0, 0, k, self.overlap - 1 - k)) for k in range(self.overlap)]
        return torch.stack(shifted).sum(dim=0).flatten(1)

    def output_length(self, length):
        return length * self.hop_length

    def input_span(self, first: int, last: int) -> tuple[int, int]:
        first, last = first + self.trim_left, last + self.trim_left
        first, last = ceil_divide(first - self.n_fft + 1, self.spectrum_hop), last // self.spectrum_hop
        return first // self.num_spectra, last // self.num_spectra


class SpectralDecoder(CodecSequential):
    """
    Latents (batch, hidden_size, F) -> waveform (batch, 1, F * hop_length), at the frame rate (arXiv 2306.00814).

    Args:
        config ([`CodecConfig`]): Sizes of the network.
        in_channels, hop_length (`int`, *optional*): Channels of the latents, and samples per frame. Default to
            `config.hidden_size` and `config.hop_length`.
    """

    def __init__(self, config, in_channels: int | None = None, hop_length: int | None = None):
        width = config.decoder_hidden_size
        super().__init__(
            CodecConv1d(config, in_channels or config.hidden_size, width, config.convnext_kernel_size),
            ChannelNorm(width),
            *[ConvNeXtBlock(config, width, config.decoder_num_layers) for _ in range(config.decoder_num_layers)],
            ChannelNorm(width),
            PointwiseConv1d(config, width, InverseSpectrum.num_channels(config)),
            InverseSpectrum(config, hop_length),
        )
