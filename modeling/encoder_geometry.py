# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What the configuration of a speech encoder of transformers says of its layers and the times of its frames."""

from typing import Any


# Whisper's encoder takes a log-mel spectrogram of 100 frames a second and halves its rate.
WHISPER_SAMPLING_RATE = 16000
WHISPER_HOP_LENGTH = 320


def num_encoder_layers(config: Any) -> int:
    """Transformer layers of a speech encoder, by its configuration."""
    return getattr(config, "encoder_layers", None) or config.num_hidden_layers


def has_fixed_window(config: Any) -> bool:
    """Whether the encoder takes inputs of one length only, as Whisper's does."""
    return hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins")


def frame_geometry(config: Any) -> tuple[int, int]:
    """
    Samples from a frame to the next, and samples that the first one hears, of a speech encoder.

    Raises:
        ValueError: If they are not known.
    """
    if has_fixed_window(config):
        return WHISPER_HOP_LENGTH, WHISPER_HOP_LENGTH
    if not hasattr(config, "conv_kernel") or not hasattr(config, "conv_stride"):
        raise ValueError(
            f"The encoder is a `{config.model_type}`, but the times of frames are known only of Whisper's encoder and "
            "of those with a convolutional front end on the waveform, such as HuBERT's; use one of these."
        )
    span, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        span, hop = span + (kernel - 1) * hop, hop * stride
    return hop, span


def shortest_input(config: Any) -> int:
    """Samples that a speech encoder needs for a frame; 1 where it fills its input with silence, as Whisper's does."""
    return 1 if has_fixed_window(config) else frame_geometry(config)[1]


def first_frame_centre(config: Any) -> int:
    """Sample in the middle of what the first frame of a speech encoder hears."""
    return 0 if has_fixed_window(config) else (frame_geometry(config)[1] - 1) // 2
