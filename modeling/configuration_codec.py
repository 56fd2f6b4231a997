# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What the configurations of all codecs have in common: their encoder and decoder networks."""

import math
from typing import ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


def check_spectra(n_fft: int, num_spectra: int, hop_length: int, hop_name: str, causal: bool, name="decoder_n_fft"):
    """
    Raises `ValueError` where an inverse STFT with `num_spectra` windows of `n_fft` samples a hop does not work out.
    """
    if num_spectra < 1 or hop_length % num_spectra:
        raise ValueError(
            f"`decoder_spectra` ({num_spectra}) must be at least 1 and divide `{hop_name}` ({hop_length})."
        )
    hop = hop_length // num_spectra
    described = f"`{hop_name}`" if num_spectra == 1 else f"`{hop_name} / decoder_spectra`"
    if n_fft % hop:
        raise ValueError(f"`{name}` ({n_fft}) must be a multiple of {described} ({hop}).")
    if not causal and (n_fft - hop) % 2:
        raise ValueError(f"`{name}` ({n_fft}) must exceed {described} ({hop}) by an even number of samples.")


@strict
class CodecConfig(PreTrainedConfig):
    """
    The networks of a codec, which [`CodecPreTrainedModel`] runs. Families add what lies between encoder and decoder.

    Args:
        sampling_rate (`int`, defaults to 16000): Samples per second of the waveform, in Hz.
        encoder_type (`str`, defaults to `"seanet"`): Kind of encoder: `"seanet"` (strided convolutions on the
            waveform; SoundStream, arXiv 2107.03312) or `"stft"` (ConvNeXt blocks on the short-time Fourier transform,
            at the frame rate).
        decoder_type (`str`, defaults to `"seanet"`): Kind of decoder: `"seanet"` (transposed convolutions) or
            `"istft"` (ConvNeXt blocks and an inverse-STFT head at the frame rate; Vocos, arXiv 2306.00814).
        hidden_size (`int`, defaults to 128): Dimension of the latents between encoder, quantizer and decoder.
        downsampling_ratios (`list[int]`, defaults to `(2, 4, 5, 8)`): Strides of the encoder in order; the decoder has
            them in reverse. Their product is `hop_length`.
        num_filters (`int`, defaults to 32): SEANet's channels at the sampling rate; they double with each stride.
        kernel_size (`int`, defaults to 7): Kernel of SEANet's outer convolutions at the sampling rate.
        last_kernel_size (`int`, defaults to 7): Kernel of SEANet's convolutions at the frame rate.
        residual_kernel_size (`int`, defaults to 3): Kernel inside residual units.
        num_residual_layers (`int`, defaults to 1): Residual units per stride.
        dilation_growth_rate (`int`, defaults to 2): Base of the dilations: residual unit number j of a stride has
            dilation `dilation_growth_rate**j`.
        compress (`int`, defaults to 2): Channel reduction inside residual units.
        use_conv_shortcut (`bool`, defaults to `True`): A 1x1 convolution as the residual units' shortcut instead of
            the identity.
        activation (`str`, defaults to `"elu"`): Activation function: `"elu"` or `"snake"` (x + sin(alpha x)^2 / alpha;
            arXiv 2006.08195).
        encoder_lstm, decoder_lstm (`str`, default to `"unidirectional"`): Kind of SEANet's recurrent layers: `"none"`,
            `"unidirectional"` or `"bidirectional"`.
        num_lstm_layers (`int`, defaults to 2): Layers of each LSTM.
        causal (`bool`, defaults to `False`): Whether no layer looks ahead.
        pad_mode (`str`, defaults to `"constant"`): Padding of convolutions: `"constant"` (zeros), `"reflect"` or
            `"replicate"`. Streaming needs `"constant"`, since the others look at samples that have not arrived.
        trim_right_ratio (`float`, defaults to 1.0): Share of a causal transposed convolution's surplus trimmed on the
            right.
        use_weight_norm (`bool`, defaults to `True`): Weight normalisation of SEANet's convolutions.
        encoder_hidden_size, decoder_hidden_size (`int`, default to 256 and 512): Width of the ConvNeXt blocks.
        encoder_num_layers, decoder_num_layers (`int`, default to 4 and 8): Number of ConvNeXt blocks.
        convnext_kernel_size (`int`, defaults to 7): Kernel of the blocks' depthwise convolutions, in frames.
        convnext_expansion (`int`, defaults to 3): Inner width of a block relative to its width.
        n_fft (`int`, *optional*): Window of the STFT encoder, in samples; a multiple of `hop_length`. Defaults to four
            hops. Another `n_fft` for a saved checkpoint changes the encoder's window alone: the decoder keeps the one
            that it was trained with, also where the checkpoint was saved before `decoder_n_fft` existed.
        decoder_n_fft (`int`, *optional*): Window of the inverse-STFT decoder, in samples; a multiple of
            `hop_length / decoder_spectra`. Defaults to `n_fft`.
        decoder_spectra (`int`, defaults to 1): Spectra that the inverse-STFT decoder makes of a frame, evenly spaced:
            the more they overlap, the better they can carry the phase.
        decoder_complex_residual (`bool`, defaults to `False`): Whether the inverse-STFT decoder adds real and
            imaginary parts to what it makes of magnitude and phase; see [`InverseSpectrum`].
    """

    presets: ClassVar[dict[str, dict]] = {}

    sampling_rate: int = 16000
    encoder_type: str = "seanet"
    decoder_type: str = "seanet"
    hidden_size: int = 128
    downsampling_ratios: list[int] | tuple[int, ...] = (2, 4, 5, 8)
    num_filters: int = 32
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    num_residual_layers: int = 1
    dilation_growth_rate: int = 2
    compress: int = 2
    use_conv_shortcut: bool = True
    activation: str = "elu"
    encoder_lstm: str = "unidirectional"
    decoder_lstm: str = "unidirectional"
    num_lstm_layers: int = 2
    causal: bool = False
    pad_mode: str = "constant"
    trim_right_ratio: float | int = 1.0
    use_weight_norm: bool = True
    encoder_hidden_size: int = 256
    decoder_hidden_size: int = 512
    encoder_num_layers: int = 4
    decoder_num_layers: int = 8
    convnext_kernel_size: int = 7
    convnext_expansion: int = 3
    n_fft: int | None = None
    decoder_n_fft: int | None = None
    decoder_spectra: int = 1
    decoder_complex_residual: bool = False

    def __post_init__(self, **kwargs):
        self.downsampling_ratios = list(self.downsampling_ratios)
        if self.n_fft is None:
            self.n_fft = 4 * self.network_hop_length
        if self.decoder_n_fft is None:
            self.decoder_n_fft = self.n_fft
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> Self:
        """
        Args:
            name (`str`): Name of one of the `presets`.
            overrides: Fields that differ from the preset.

        Raises:
            ValueError: If there is no such preset, or an override is not a field.
        """
        if name not in cls.presets:
            raise ValueError(f"`name` must be one of {sorted(cls.presets)}, but got {name!r}.")
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"`overrides` names no field of {cls.__name__}: {unknown}.")
        return cls(**{**cls.presets[name], **overrides})

    @property
    def network_hop_length(self) -> int:
        """Samples per frame of the networks."""
        return math.prod(self.downsampling_ratios)

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.network_hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sampling_rate / self.hop_length

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        choices = {
            "encoder_type": ("seanet", "stft"),
            "decoder_type": ("seanet", "istft"),
            "activation": ("elu", "snake"),
            "encoder_lstm": ("none", "unidirectional", "bidirectional"),
            "decoder_lstm": ("none", "unidirectional", "bidirectional"),
            "pad_mode": ("constant", "reflect", "replicate"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, but got {getattr(self, name)!r}.")
        positive = [
            "sampling_rate",
            "hidden_size",
            "num_filters",
            "kernel_size",
            "last_kernel_size",
            "residual_kernel_size",
            "num_residual_layers",
            "dilation_growth_rate",
            "compress",
            "num_lstm_layers",
            "encoder_hidden_size",
            "decoder_hidden_size",
            "encoder_num_layers",
            "decoder_num_layers",
            "convnext_kernel_size",
            "convnext_expansion",
        ]
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        if not self.downsampling_ratios or min(self.downsampling_ratios) < 1:
            raise ValueError(f"`downsampling_ratios` must be positive strides, but got {self.downsampling_ratios}.")
        if not 0 <= self.trim_right_ratio <= 1:
            raise ValueError(f"`trim_right_ratio` must lie between 0 and 1, but got {self.trim_right_ratio}.")
        if self.num_filters % self.compress:
            raise ValueError(f"`num_filters` ({self.num_filters}) must be a multiple of `compress` ({self.compress}).")
        hop, name = self.network_hop_length, "hop_length"
        if hop != self.hop_length:
            name = "network_hop_length"
        if self.n_fft % hop:
            raise ValueError(f"`n_fft` ({self.n_fft}) must be a multiple of `{name}` ({hop}).")
        if not self.causal and (self.n_fft - hop) % 2:
            raise ValueError(f"`n_fft` ({self.n_fft}) must exceed `{name}` ({hop}) by an even number of samples.")
        if self.decoder_type == "istft":
            check_spectra(self.decoder_n_fft, self.decoder_spectra, hop, name, self.causal)
        if self.causal and "bidirectional" in (self.encoder_lstm, self.decoder_lstm):
            raise ValueError(
                "`causal=True` contradicts a bidirectional LSTM, which reads the future; use 'unidirectional'."
            )


__all__ = ["CodecConfig", "check_spectra"]
