# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of k-means units."""

from huggingface_hub.dataclasses import strict

from .configuration_units import UnitsConfig
from .encoder_geometry import num_encoder_layers


@strict
class KMeansUnitsConfig(UnitsConfig):
    """
    Configuration of a [`KMeansUnitsModel`]: a speech encoder of transformers, and centroids of its frames.

    Args:
        layers (`list[int]`, defaults to `[6]`): Layers whose output is clustered, counted from 1 (0 is the embedding
            output). Each has codebooks of its own (product quantization). The last layer of Whisper's and other
            pre-norm encoders is taken before the final layer norm.
        layer_weights (`list[float]`, *optional*): Weights of the layers, to cluster their weighted sum instead.
        num_stages (`int`, defaults to 1): Codebooks per layer, each of what those before it leave over (residual
            quantization). The stages of a layer are neighbours in `audio_codes`.
        codebook_size (`int`, defaults to 100): Centroids per codebook.
        normalization (`str`, *optional*): Normalization of each frame before clustering: `"layer_norm"` (over its
            dimensions), `"standardize"` (each dimension by the mean and deviation of the data that was clustered), or
            `None`.
        kwargs: Fields of [`UnitsConfig`].
    """

    model_type = "speech_tokenizers_kmeans_units"

    layers: list[int] | tuple[int, ...] = (6,)
    layer_weights: list[float] | None = None
    num_stages: int = 1
    codebook_size: int = 100
    normalization: str | None = None

    def __post_init__(self, **kwargs):
        self.layers = list(self.layers)
        super().__post_init__(**kwargs)

    @property
    def num_streams(self) -> int:
        """Sequences of frames that are clustered apart."""
        return 1 if self.layer_weights is not None else len(self.layers)

    @property
    def num_quantizers(self) -> int:
        """Codes per frame, that of F0 among them."""
        return self.num_streams * self.num_stages + self.num_f0_rows

    @property
    def highest_layer(self) -> int:
        """The encoder's layers above are not needed."""
        return max(self.layers)

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        super().validate_architecture()
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


__all__ = ["KMeansUnitsConfig"]
