# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of a CTC recogniser on a frozen speech encoder."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .encoder_geometry import num_encoder_layers


@strict
class SpeechEncoderCTCConfig(PreTrainedConfig):
    """
    Configuration of a [`SpeechEncoderForCTC`]: any speech encoder of transformers, and a linear map to labels.

    Args:
        encoder_config (`PreTrainedConfig` or `dict`, *optional*): Configuration of the encoder, such as HuBERT's or
            Whisper's. Of an encoder-decoder, the encoder is used. Defaults to that of wav2vec 2.0.
        layer (`int` or `str`, defaults to `"weighted"`): Layer that the labels are read from: `"weighted"` (a learnt
            mean of the embedding output and all layers), `"average"`, `"last"` (the output of the encoder), or a layer
            counted from 1; 0 is the embedding output.
        window (`str`, defaults to `"padded"`): Form of the input of Whisper, whose encoder always hears 30 seconds:
            `"padded"` with silence, or `"tight"`, which drops the positions after the end and costs a fraction of the
            time.
        kernel_size (`int`, defaults to 1): Number of frames that a label is read from; an odd number.
        vocab_size (`int`, defaults to 32): Number of labels, with the blank.
        pad_token_id (`int`, defaults to 0): Index of the blank.
        inputs_to_logits_ratio (`int`, defaults to 320): Samples per frame.
        first_frame_centre (`int`, defaults to 200): Sample in the middle of what the first frame hears.
    """

    model_type = "speech_tokenizers_speech_encoder_ctc"
    sub_configs = {"encoder_config": AutoConfig}

    encoder_config: dict | PreTrainedConfig | None = None
    layer: int | str = "weighted"
    window: str = "padded"
    kernel_size: int = 1
    vocab_size: int = 32
    pad_token_id: int | None = 0
    inputs_to_logits_ratio: int = 320
    first_frame_centre: int = 200

    def __post_init__(self, **kwargs):
        if self.encoder_config is None:
            self.encoder_config = AutoConfig.for_model("wav2vec2")
        elif isinstance(self.encoder_config, dict):
            self.encoder_config = AutoConfig.for_model(**self.encoder_config)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Dimension of the encoder's states."""
        return self.encoder_config.hidden_size  # type: ignore[union-attr]

    @property
    def num_encoder_layers(self) -> int:
        """Layers of the encoder."""
        return num_encoder_layers(self.encoder_config)

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        if isinstance(self.layer, str) and self.layer not in ("weighted", "average", "last"):
            raise ValueError(f"`layer` must be 'weighted', 'average', 'last' or a number, but got {self.layer!r}.")
        if not isinstance(self.layer, str) and not 0 <= self.layer <= self.num_encoder_layers:
            raise ValueError(f"`layer` must lie between 0 and {self.num_encoder_layers}, but got {self.layer}.")
        if self.window not in ("padded", "tight"):
            raise ValueError(f"`window` must be 'padded' or 'tight', but got {self.window!r}.")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be a positive odd number, but got {self.kernel_size}.")
        if self.pad_token_id is None or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` must be a label below `vocab_size` ({self.vocab_size}), but got {self.pad_token_id}."
            )


__all__ = ["SpeechEncoderCTCConfig"]
