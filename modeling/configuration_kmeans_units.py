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
        kept_dims (`int`, defaults to 0): Dimensions that are appended to each stream's frames before clustering, of
            directions in which labels are told apart.
        kept_codebook_size (`int`, defaults to 0): With a number above 0, the frames are clustered without what is
            appended, and that is clustered by itself, of all streams together: one codebook more, the last one, with
            so many centroids. It must not be larger than the others.
        kwargs: Fields of [`UnitsConfig`].
    """

    model_type = "speech_tokenizers_kmeans_units"

    layers: list[int] | tuple[int, ...] = (6,)
    layer_weights: list[float] | None = None
    num_stages: int = 1
    codebook_size: int = 100
    normalization: str | None = None
    kept_dims: int = 0
    kept_codebook_size: int = 0

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
        return len(self.unit_codebook_sizes) + self.num_f0_rows

    @property
    def unit_codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each codebook of units."""
        sizes = (self.codebook_size,) * (self.num_streams * self.num_stages)
        return (*sizes, self.kept_codebook_size) if self.kept_codebook_size else sizes

    @property
    def stream_dim(self) -> int:
        """Dimension of a stream's frames with what is appended."""
        return self.hidden_size + self.kept_dims

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
        if self.kept_dims < 0:
            raise ValueError(f"`kept_dims` must not be negative, but is {self.kept_dims}.")
        if self.kept_codebook_size and not 2 <= self.kept_codebook_size <= self.codebook_size:
            raise ValueError(
                f"`kept_codebook_size` must be 0, or lie between 2 and `codebook_size`, {self.codebook_size}, but is"
                f" {self.kept_codebook_size}."
            )
        if self.kept_codebook_size and not self.kept_dims:
            raise ValueError("`kept_codebook_size` is for directions that are kept, but `kept_dims` is 0.")
        if self.normalization not in (None, "layer_norm", "standardize"):
            raise ValueError(
                f"`normalization` must be 'layer_norm', 'standardize' or None, but got {self.normalization!r}."
            )


__all__ = ["KMeansUnitsConfig"]
