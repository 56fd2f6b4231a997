# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of k-means units."""

import math

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_unit_vocoder import UnitVocoderConfig
from .encoder_geometry import frame_geometry, has_fixed_window, num_encoder_layers
from .padding_invariance import FRAME_RULES, num_conv_frames


@strict
class KMeansUnitsConfig(PreTrainedConfig):
    r"""
    Configuration of a [`KMeansUnitsModel`]: a speech encoder of transformers, and centroids of its frames.

    Args:
        encoder_config (`PreTrainedConfig` or `dict`, *optional*): Of the encoder: one with a convolutional front end
            on the waveform, such as HuBERT's, or Whisper's; of an encoder-decoder the encoder is used. Defaults to
            that of HuBERT-base.
        layers (`list[int]`, defaults to `[6]`): What is clustered: the output of these layers, counted from 1 (0 is
            the embedding output), each with codebooks of its own (product quantization). Of Whisper's and other
            pre-norm encoders, the last layer's is taken before the final layer norm.
        layer_weights (`list[float]`, *optional*): Cluster the sum of the layers with these weights instead.
        num_stages (`int`, defaults to 1): Codebooks per layer, each of what those before it leave over (residual
            quantization). The stages of a layer are neighbours in `audio_codes`.
        codebook_size (`int`, defaults to 100): Centroids per codebook.
        normalization (`str`, *optional*): Of each frame before clustering: `"layer_norm"` (over its dimensions),
            `"standardize"` (each dimension by the mean and deviation of the data that was clustered), or `None`.
        do_normalize (`bool`, defaults to `False`): Bring each waveform to zero mean and unit variance, as the large
            wav2vec 2.0, HuBERT and WavLM want it.
        frame_rule (`str`, defaults to `"conv"`): Which frames of a padded row are real: `"conv"`, those that the row
            has alone, or `"fairseq"`, one or two more; see [`num_mask_frames`].
        padding_invariant (`bool`, defaults to `True`): Give each row of a padded batch the units that it gets alone.
            `False` lets the encoder hear the padding, as transformers and fairseq do.
        window (`str`, defaults to `"padded"`): Of Whisper's encoder; see [`WaveformEncoder`].
        sampling_rate (`int`, defaults to 16000): Of the encoder, in Hz.
        vocoder_config (`UnitVocoderConfig` or `dict`, *optional*): Of the vocoder that `decode` uses, if one is
            attached.
    """

    model_type = "speech_tokenizers_kmeans_units"
    sub_configs = {"encoder_config": AutoConfig, "vocoder_config": UnitVocoderConfig}

    encoder_config: dict | PreTrainedConfig | None = None
    layers: list[int] | tuple[int, ...] = (6,)
    layer_weights: list[float] | None = None
    num_stages: int = 1
    codebook_size: int = 100
    normalization: str | None = None
    do_normalize: bool = False
    frame_rule: str = "conv"
    padding_invariant: bool = True
    window: str = "padded"
    sampling_rate: int = 16000
    vocoder_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        if self.encoder_config is None:
            self.encoder_config = AutoConfig.for_model("hubert")
        elif isinstance(self.encoder_config, dict):
            self.encoder_config = AutoConfig.for_model(**self.encoder_config)
        if isinstance(self.vocoder_config, dict):
            self.vocoder_config = UnitVocoderConfig(**self.vocoder_config)
        self.layers = list(self.layers)
        super().__post_init__(**kwargs)

    @property
    def num_streams(self) -> int:
        """Sequences of frames that are clustered apart."""
        return 1 if self.layer_weights is not None else len(self.layers)

    @property
    def num_quantizers(self) -> int:
        """Codes per frame."""
        return self.num_streams * self.num_stages

    @property
    def hidden_size(self) -> int:
        """Dimension of the encoder's frames, and of a centroid."""
        return self.encoder_config.hidden_size

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return frame_geometry(self.encoder_config)[0]

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def bits_per_second(self) -> float:
        """Nominal bit rate, in bit/s."""
        return self.frame_rate * self.num_quantizers * math.log2(self.codebook_size)

    def get_encoded_length(self, num_samples):
        """Frames for a number of samples (integer or integer tensor)."""
        if has_fixed_window(self.encoder_config):
            return -(-num_samples // self.hop_length)
        return num_conv_frames(self.encoder_config, num_samples)

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        frame_geometry(self.encoder_config)
        num_layers = num_encoder_layers(self.encoder_config)
        if not self.layers or not all(0 <= layer <= num_layers for layer in self.layers):
            raise ValueError(f"`layers` must lie between 0 and {num_layers}, but got {self.layers}.")
        if self.layer_weights is not None and len(self.layer_weights) != len(self.layers):
            raise ValueError(
                f"`layer_weights` must have a weight for each of the {len(self.layers)} layers, but has "
                f"{len(self.layer_weights)}."
            )
        if self.num_stages < 1 or self.codebook_size < 2:
            raise ValueError(
                f"`num_stages` must be at least 1 and `codebook_size` at least 2, but got {self.num_stages} and "
                f"{self.codebook_size}."
            )
        if self.normalization not in (None, "layer_norm", "standardize"):
            raise ValueError(
                f"`normalization` must be 'layer_norm', 'standardize' or None, but got {self.normalization!r}."
            )
        if self.frame_rule not in FRAME_RULES:
            raise ValueError(f"`frame_rule` must be 'conv' or 'fairseq', but got {self.frame_rule!r}.")
        if self.frame_rule == "fairseq" and has_fixed_window(self.encoder_config):
            raise ValueError("`frame_rule` 'fairseq' is for encoders with a convolutional front end; use 'conv'.")
        if self.window not in ("padded", "tight"):
            raise ValueError(f"`window` must be 'padded' or 'tight', but got {self.window!r}.")
        if self.vocoder_config is not None:
            for name in ("num_quantizers", "codebook_size", "hop_length", "sampling_rate"):
                wanted, given = getattr(self, name), getattr(self.vocoder_config, name)
                if wanted != given:
                    raise ValueError(f"The vocoder's `{name}` must be that of the units, {wanted}, but is {given}.")


__all__ = ["KMeansUnitsConfig"]
