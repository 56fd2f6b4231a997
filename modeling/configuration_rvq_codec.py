# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of the RVQ codec and its named presets."""

import math
from typing import ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


# Every preset is 16 kHz speech at 50 frames per second and 8 codebooks of 1024 entries: 4 kbps at most, 0.5 kbps at
# least.
RVQ_CODEC_PRESETS = {
    # The embedded checkpoint's shape. Both networks work at the frame rate, so a CPU decodes some hundred times
    # faster than real time.
    "fast-16khz": {
        "encoder_type": "stft",
        "decoder_type": "istft",
        "encoder_lstm": "none",
        "decoder_lstm": "none",
        "hidden_size": 64,
        "encoder_hidden_size": 192,
        "encoder_num_layers": 4,
        "decoder_hidden_size": 320,
        "decoder_num_layers": 6,
        "n_fft": 640,
        "use_weight_norm": False,
    },
    # SEANet on both sides: the better choice where a GPU trains and runs it.
    "seanet-16khz": {"activation": "snake", "num_filters": 32, "encoder_lstm": "none", "decoder_lstm": "none"},
    # No look-ahead: encodes and decodes frame by frame with one frame (20 ms) of latency.
    "streaming-16khz": {"num_filters": 32, "encoder_lstm": "none", "decoder_lstm": "none", "causal": True},
    # EnCodec's architecture (arXiv 2210.13438) at 16 kHz.
    "encodec-16khz": {"activation": "elu", "num_filters": 32, "causal": True, "pad_mode": "reflect"},
}


@strict
class RVQCodecConfig(PreTrainedConfig):
    r"""
    Configuration of an [`RVQCodecModel`]: an encoder, a residual vector quantizer and a decoder.

    Args:
        sampling_rate (`int`, defaults to 16000): Samples per second of the waveform, in Hz.
        encoder_type (`str`, defaults to `"seanet"`): `"seanet"` (strided convolutions on the waveform; SoundStream,
            arXiv 2107.03312) or `"stft"` (ConvNeXt blocks on the short-time Fourier transform, at the frame rate).
        decoder_type (`str`, defaults to `"seanet"`): `"seanet"` (transposed convolutions) or `"istft"` (ConvNeXt
            blocks and an inverse-STFT head at the frame rate; Vocos, arXiv 2306.00814).
        hidden_size (`int`, defaults to 128): Dimension of the latents between encoder, quantizer and decoder.
        downsampling_ratios (`list[int]`, defaults to `(2, 4, 5, 8)`): Strides of the encoder in order; the decoder has
            them in reverse. Their product is `hop_length`.
        num_filters (`int`, defaults to 32): SEANet's channels at the sampling rate; they double with each stride.
        kernel_size (`int`, defaults to 7): Kernel of SEANet's outer convolutions at the sampling rate.
        last_kernel_size (`int`, defaults to 7): Kernel of SEANet's convolutions at the frame rate.
        residual_kernel_size (`int`, defaults to 3): Kernel inside residual units.
        num_residual_layers (`int`, defaults to 1): Residual units per stride.
        dilation_growth_rate (`int`, defaults to 2): Residual unit number j has dilation `dilation_growth_rate**j`.
        compress (`int`, defaults to 2): Channel reduction inside residual units.
        use_conv_shortcut (`bool`, defaults to `True`): A 1x1 convolution as the residual units' shortcut instead of
            the identity.
        activation (`str`, defaults to `"elu"`): `"elu"` or `"snake"` (x + sin(alpha x)^2 / alpha; arXiv 2006.08195).
        encoder_lstm, decoder_lstm (`str`, default to `"unidirectional"`): SEANet's recurrent layers: `"none"`,
            `"unidirectional"` or `"bidirectional"`.
        num_lstm_layers (`int`, defaults to 2): Layers of each LSTM.
        causal (`bool`, defaults to `False`): No layer looks ahead.
        pad_mode (`str`, defaults to `"constant"`): Padding of convolutions: `"constant"` (zeros), `"reflect"` or
            `"replicate"`. Streaming needs `"constant"`, since the others look at samples that have not arrived.
        trim_right_ratio (`float`, defaults to 1.0): Share of a causal transposed convolution's surplus trimmed on the
            right.
        use_weight_norm (`bool`, defaults to `True`): Weight normalisation of SEANet's convolutions.
        encoder_hidden_size, decoder_hidden_size (`int`, default to 256 and 512): Width of the ConvNeXt blocks.
        encoder_num_layers, decoder_num_layers (`int`, default to 4 and 8): Number of ConvNeXt blocks.
        convnext_kernel_size (`int`, defaults to 7): Kernel of the blocks' depthwise convolutions, in frames.
        convnext_expansion (`int`, defaults to 3): Inner width of a block relative to its width.
        n_fft (`int`, *optional*): Window of the STFT encoder and decoder, in samples; a multiple of `hop_length`.
            Defaults to four hops.
        num_quantizers (`int`, defaults to 8): Codebooks.
        codebook_size (`int`, defaults to 1024): Entries per codebook.
        codebook_dim (`int`, *optional*): Dimension of an entry. Where it differs from `hidden_size`, a linear layer
            before and one after the quantizer map between the two (factorised codes). Defaults to `hidden_size`.
        quantizer_dropout (`float`, defaults to 0.0): Probability that a training batch uses only the first k
            codebooks, k uniform, so that every bit rate is trained (SoundStream, section III-C).
        ema_decay (`float`, defaults to 0.99): Decay of the codebooks' moving averages.
        kmeans_iterations (`int`, defaults to 50): Lloyd iterations that initialise a codebook from its first training
            batch; 0 keeps the random initialisation.
        dead_code_threshold (`float`, defaults to 0.1): An entry used less than this share of the uniform use is
            replaced by a latent of the batch. (EnCodec states an absolute count, 2, which depends on the batch size.)
            0 switches it off.
        mel_loss_weight, waveform_loss_weight, commitment_loss_weight (`float`, default to 15.0, 1.0, 0.25): Weights of
            the terms in the loss that `forward` returns.
    """

    model_type = "speech_tokenizers_rvq_codec"
    presets: ClassVar[dict[str, dict]] = RVQ_CODEC_PRESETS

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
    num_quantizers: int = 8
    codebook_size: int = 1024
    codebook_dim: int | None = None
    quantizer_dropout: float | int = 0.0
    ema_decay: float | int = 0.99
    kmeans_iterations: int = 50
    dead_code_threshold: float | int = 0.1
    mel_loss_weight: float | int = 15.0
    waveform_loss_weight: float | int = 1.0
    commitment_loss_weight: float | int = 0.25

    def __post_init__(self, **kwargs):
        self.downsampling_ratios = list(self.downsampling_ratios)
        if self.n_fft is None:
            self.n_fft = 4 * self.hop_length
        if self.codebook_dim is None:
            self.codebook_dim = self.hidden_size
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> Self:
        r"""
        Args:
            name (`str`): One of `presets`.
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
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.downsampling_ratios)

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sampling_rate / self.hop_length

    @property
    def bits_per_second(self) -> float:
        """Nominal bit rate with all codebooks, in bit/s."""
        return self.frame_rate * self.num_quantizers * math.log2(self.codebook_size)

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
            "num_quantizers",
            "codebook_dim",
        ]
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        for name in ("mel_loss_weight", "waveform_loss_weight", "commitment_loss_weight", "kmeans_iterations"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, but got {getattr(self, name)}.")
        if not self.downsampling_ratios or min(self.downsampling_ratios) < 1:
            raise ValueError(f"`downsampling_ratios` must be positive strides, but got {self.downsampling_ratios}.")
        if self.codebook_size < 2:
            raise ValueError(f"`codebook_size` must be at least 2, but got {self.codebook_size}.")
        for name in ("quantizer_dropout", "dead_code_threshold", "trim_right_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, but got {getattr(self, name)}.")
        if not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie strictly between 0 and 1, but got {self.ema_decay}.")
        if self.num_filters % self.compress:
            raise ValueError(f"`num_filters` ({self.num_filters}) must be a multiple of `compress` ({self.compress}).")
        if self.n_fft % self.hop_length:
            raise ValueError(f"`n_fft` ({self.n_fft}) must be a multiple of `hop_length` ({self.hop_length}).")
        if not self.causal and (self.n_fft - self.hop_length) % 2:
            raise ValueError(
                f"`n_fft` ({self.n_fft}) must exceed `hop_length` ({self.hop_length}) by an even number of samples."
            )
        if self.causal and "bidirectional" in (self.encoder_lstm, self.decoder_lstm):
            raise ValueError(
                "`causal=True` contradicts a bidirectional LSTM, which reads the future; use 'unidirectional'."
            )


__all__ = ["RVQ_CODEC_PRESETS", "RVQCodecConfig"]
