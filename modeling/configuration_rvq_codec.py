# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of the RVQ codec and its named presets."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_codec import CodecConfig


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
        "decoder_spectra": 2,
        "decoder_complex_residual": True,
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
class RVQCodecConfig(CodecConfig):
    """
    Configuration of an [`RVQCodecModel`]: an encoder, a residual vector quantizer and a decoder.

    Args:
        num_quantizers (`int`, defaults to 8): Number of codebooks.
        codebook_size (`int`, defaults to 1024): Entries per codebook.
        codebook_dim (`int`, *optional*): Dimension of an entry. Where it differs from `hidden_size`, a linear layer
            before and one after the quantizer map between the two (factorised codes). Defaults to `hidden_size`.
        quantizer_dropout (`float`, defaults to 0.0): Probability that a training batch uses only the first k
            codebooks, k uniform, so that every bit rate is trained (SoundStream, section III-C).
        ema_decay (`float`, defaults to 0.99): Decay of the codebooks' moving averages.
        kmeans_iterations (`int`, defaults to 50): Lloyd iterations that initialise a codebook from its first training
            batch; 0 keeps the random initialisation.
        dead_code_threshold (`float`, defaults to 0.1): Share of the uniform use below which an entry is replaced by a
            latent of the batch. (EnCodec states an absolute count, 2, which depends on the batch size.) 0 switches it
            off.
        mel_loss_weight, waveform_loss_weight, commitment_loss_weight (`float`, default to 15.0, 1.0, 0.25): Weights of
            the terms in the loss that `forward` returns.
        kwargs: Fields of [`CodecConfig`].
    """

    model_type = "speech_tokenizers_rvq_codec"
    presets: ClassVar[dict[str, dict]] = RVQ_CODEC_PRESETS

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
        super().__post_init__(**kwargs)
        if self.codebook_dim is None:
            self.codebook_dim = self.hidden_size

    @property
    def bits_per_second(self) -> float:
        """Nominal bit rate with all codebooks, in bit/s."""
        return self.frame_rate * self.num_quantizers * math.log2(self.codebook_size)

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        super().validate_architecture()
        for name in ("num_quantizers", "codebook_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        for name in ("mel_loss_weight", "waveform_loss_weight", "commitment_loss_weight", "kmeans_iterations"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, but got {getattr(self, name)}.")
        if self.codebook_size < 2:
            raise ValueError(f"`codebook_size` must be at least 2, but got {self.codebook_size}.")
        for name in ("quantizer_dropout", "dead_code_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, but got {getattr(self, name)}.")
        if not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie strictly between 0 and 1, but got {self.ema_decay}.")


__all__ = ["RVQ_CODEC_PRESETS", "RVQCodecConfig"]
