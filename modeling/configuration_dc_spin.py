# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of DC-Spin and Spin units."""

from huggingface_hub.dataclasses import strict

from .configuration_units import UnitsConfig
from .encoder_geometry import num_encoder_layers


@strict
class DCSpinConfig(UnitsConfig):
    """
    Configuration of a [`DCSpinModel`]: a speech encoder of transformers, and codebooks learnt by swapped prediction.

    The defaults are those of Spin's recipe (its code, of May 2023) with the codebooks of DC-Spin (arXiv 2410.24177).
    What is public about DC-Spin does not settle `share_projection`, `auxiliary_loss_weight` and `trainable_layers`:
    their defaults are assumptions.

    Args:
        encoder_layer (`int`, defaults to 12): The layer whose output is coded, counted from 1. Of Whisper's and other
            pre-norm encoders, the last layer's is taken before the final layer norm.
        projection_dim (`int`, defaults to 256): Dimension to which frames are projected, and of a code.
        primary_codebook_size (`int`, defaults to 500): Codes of the primary codebook, which gives the units.
        auxiliary_codebook_size (`int` or `None`, defaults to 4096): Codes of a second codebook, which is learnt beside
            the first so that the encoder keeps finer phonetic detail. `None` leaves it out: plain Spin.
        share_projection (`bool`, defaults to `False`): Whether both codebooks code the same projection. The default, a
            projection for each, is an assumption.
        auxiliary_loss_weight (`float`, defaults to 1.0): Weight of the auxiliary codebook's loss, where the primary's
            has weight 1. An assumption.
        trainable_layers (`int`, defaults to 2): Layers up to `encoder_layer` that are trained, from the top; all else
            of the encoder stays frozen. An assumption: as in Spin.
        temperature (`float`, defaults to 0.1): Divisor of the cosines that predict targets.
        sinkhorn_epsilon (`float`, defaults to 0.02): Divisor of the cosines that make targets.
        sinkhorn_iterations (`int`, defaults to 3): Number of Sinkhorn's iterations; see [`sinkhorn`].
        hard_target (`bool`, defaults to `False`): Whether only the likeliest code of a target is predicted.
        target_mix (`float`, defaults to 1.0): Share of a view's own cosines in its target, the rest being those of the
            other view (`prob_ratio` of the original).
        normalize_latents (`bool`, defaults to `True`): Whether projected frames and codes have unit length.
        kwargs: Fields of [`UnitsConfig`].
    """

    model_type = "speech_tokenizers_dc_spin"

    encoder_layer: int = 12
    projection_dim: int = 256
    primary_codebook_size: int = 500
    auxiliary_codebook_size: int | None = 4096
    share_projection: bool = False
    auxiliary_loss_weight: float | int = 1.0
    trainable_layers: int = 2
    temperature: float | int = 0.1
    sinkhorn_epsilon: float | int = 0.02
    sinkhorn_iterations: int = 3
    hard_target: bool = False
    target_mix: float | int = 1.0
    normalize_latents: bool = True

    @property
    def codebook_size(self) -> int:
        """Number of different units: those of the primary codebook."""
        return self.primary_codebook_size

    @property
    def num_quantizers(self) -> int:
        """Codes per frame: one, as the auxiliary codebook's are not transmitted, and perhaps one of F0."""
        return 1 + self.num_f0_rows

    @property
    def layers(self) -> list[int]:
        """The layers that are read: one."""
        return [self.encoder_layer]

    @property
    def highest_layer(self) -> int:
        """The encoder's layers above are not needed."""
        return self.encoder_layer

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        super().validate_architecture()
        num_layers = num_encoder_layers(self.encoder_config)
        if not 1 <= self.encoder_layer <= num_layers:
            raise ValueError(f"`encoder_layer` must lie between 1 and {num_layers}, but got {self.encoder_layer}.")
        if not 0 <= self.trainable_layers <= self.encoder_layer:
            raise ValueError(
                f"`trainable_layers` must lie between 0 and `encoder_layer` ({self.encoder_layer}), but got "
                f"{self.trainable_layers}."
            )
        for name in ("primary_codebook_size", "auxiliary_codebook_size"):
            size = getattr(self, name)
            if size is not None and size < 2:
                raise ValueError(f"`{name}` must be at least 2, but got {size}.")
        for name in ("projection_dim", "sinkhorn_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        for name in ("temperature", "sinkhorn_epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, but got {getattr(self, name)}.")
        if self.auxiliary_loss_weight < 0:
            raise ValueError(f"`auxiliary_loss_weight` must not be negative, but got {self.auxiliary_loss_weight}.")
        if not 0 <= self.target_mix <= 1:
            raise ValueError(f"`target_mix` must lie between 0 and 1, but got {self.target_mix}.")


__all__ = ["DCSpinConfig"]
