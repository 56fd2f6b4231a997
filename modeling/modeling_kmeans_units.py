# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""K-means units: the frames of a speech encoder by the number of their nearest centroid."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_kmeans_units import KMeansUnitsConfig
from .f0_codebook import F0_DIM
from .input_checks import check_arguments, check_encoded, numbers_are_known
from .mixed_precision import warn_of_half_precision
from .unit_model import UnitPreTrainedModel, with_f0
from .unit_runs import deduplicate_codes


# Frames whose distances to all centroids are held at once.
_FRAMES_AT_ONCE = 16384


@dataclass
class KMeansUnitsOutput(ModelOutput):
    """
    Args:
        audio_codes (`torch.LongTensor` of shape `(batch, num_quantizers, num_frames)`): Numbers of the nearest
            centroids; 0 where the mask is 0.
        latents (`torch.FloatTensor` of shape `(batch, num_frames, num_streams * stream_dim)`): The frames that were
            clustered; 0 where the mask is 0. `None` when de-duplicated. With F0 two dimensions more, which are 1 for
            voiced frames and log2 F0 in deviations from the speaker's mean.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): Mask with 1 for frames of real audio.
        durations (`torch.LongTensor` of shape `(batch, num_frames)`): Frames that each unit lasts, if the units were
            de-duplicated; 0 where the mask is 0.
    """

    audio_codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None
    durations: torch.LongTensor | None = None


class KMeansQuantizer(nn.Module):
    """
    Centroids, a product of streams with residual stages each.

    Args:
        num_streams (`int`): Number of sequences of frames.
        num_stages (`int`): Number of codebooks of each stream. A stage codes what those before it leave over.
        codebook_size (`int`): Centroids per codebook.
        hidden_size (`int`): Dimension of a frame of the encoder.
        kept_dims (`int`, *optional*, defaults to 0): Dimensions that are appended to the frames of each stream.
        kept_codebook_size (`int`, *optional*, defaults to 0): Centroids of a codebook of what is appended, of all
            streams together. With 0, there is none, and frames are clustered with what is appended.
    """

    def __init__(
        self,
        num_streams: int,
        num_stages: int,
        codebook_size: int,
        hidden_size: int,
        kept_dims: int = 0,
        kept_codebook_size: int = 0,
    ):
        super().__init__()
        self.num_streams, self.num_stages = num_streams, num_stages
        self.hidden_size, self.kept_dims, self.kept_codebook_size = hidden_size, kept_dims, kept_codebook_size
        dim = hidden_size if kept_codebook_size else hidden_size + kept_dims
        self.register_buffer("centroids", torch.zeros(num_streams * num_stages, codebook_size, dim))
        self.register_buffer("features_mean", torch.zeros(num_streams, hidden_size))
        self.register_buffer("features_std", torch.ones(num_streams, hidden_size))
        if kept_dims:
            self.register_buffer("kept_matrix", torch.zeros(num_streams, hidden_size, kept_dims))
            self.register_buffer("kept_offset", torch.zeros(num_streams, kept_dims))
        if kept_codebook_size:
            self.register_buffer("kept_centroids", torch.zeros(kept_codebook_size, num_streams * kept_dims))
        elif kept_dims:
            self.register_buffer("base_scale", torch.ones(num_streams))
            self.register_buffer("base_offset", torch.zeros(num_streams, hidden_size))

    def weigh(self, streams: torch.Tensor) -> torch.Tensor:
        """
        Streams `(batch, num_streams, num_frames, hidden_size)` with what is kept of them appended, `(batch,
        num_streams, num_frames, hidden_size + kept_dims)`; without `kept_dims`, the same streams.
        """
        if not self.kept_dims:
            return streams
        with torch.autocast(streams.device.type, enabled=False):
            streams = streams.to(self.kept_matrix.dtype)
            kept = streams @ self.kept_matrix + self.kept_offset[:, None]
            if not self.kept_codebook_size:
                streams = streams * self.base_scale[:, None, None] + self.base_offset[:, None]
            return torch.cat([streams, kept], dim=-1)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes `(batch, num_quantizers, num_frames)` of weighed streams."""
        batch_size, _, num_frames, _ = features.shape
        codes = []
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.centroids.dtype)
            plain, kept = features, None
            if self.kept_codebook_size:
                plain, kept = features.split([self.hidden_size, self.kept_dims], dim=-1)
                plain = plain.contiguous()
            for stream, centroids in enumerate(self.centroids.unflatten(0, (self.num_streams, self.num_stages))):
                residual = plain[:, stream].flatten(0, 1)  # (B * F, D)
                for stage_centroids in centroids:
                    nearest = nearest_centroids(residual, stage_centroids)
                    codes.append(nearest.view(batch_size, num_frames))
                    residual = residual - stage_centroids[nearest]
            if kept is not None:
                beside = kept.transpose(1, 2).flatten(2).flatten(0, 1)  # (B * F, S * kept_dims)
                codes.append(nearest_centroids(beside, self.kept_centroids).view(batch_size, num_frames))
        return torch.stack(codes, dim=1)

    def decode(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """
        Sums of centroids, `(batch, num_frames, num_streams * (hidden_size + kept_dims))`, of codes of all codebooks.
        Raises `ValueError` if a code of the last one lies outside it.
        """
        size = self.kept_codebook_size
        if size and numbers_are_known() and bool((audio_codes[:, -1] >= size).any()):
            raise ValueError(
                f"The last codebook has {size} codes, but `audio_codes` holds {int(audio_codes[:, -1].max())} there."
            )
        plain_codes = audio_codes[:, : len(self.centroids)]
        entries = torch.stack(
            [table[codes] for table, codes in zip(self.centroids, plain_codes.unbind(1), strict=True)]
        )
        streams = entries.unflatten(0, (self.num_streams, self.num_stages)).sum(1)  # (S, B, F, D)
        streams = streams.permute(1, 2, 0, 3)
        if self.kept_codebook_size:
            kept = self.kept_centroids[audio_codes[:, -1]].unflatten(-1, (self.num_streams, self.kept_dims))
            streams = torch.cat([streams, kept], dim=-1)
        return streams.flatten(2)


def nearest_centroids(frames: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """
    Args:
        frames (`torch.Tensor` of shape `(num_frames, dim)`): Frames to code.
        centroids (`torch.Tensor` of shape `(num_centroids, dim)`): Centroids, of which the nearest by Euclidean
            distance is chosen; of equally near ones, the first.

    Returns:
        `torch.LongTensor` of shape `(num_frames,)`.
    """
    half_norms = centroids.square().sum(-1) / 2
    parts = [(part @ centroids.T - half_norms).argmax(-1) for part in frames.split(_FRAMES_AT_ONCE)]
    return torch.cat(parts) if parts else frames.new_zeros(0, dtype=torch.long)


class KMeansUnitsPreTrainedModel(UnitPreTrainedModel):
    """Weight initialisation and loading."""

    config_class = KMeansUnitsConfig
    base_model_prefix = "kmeans_units"
    _keep_in_fp32_modules_strict = ["quantizer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, KMeansQuantizer):
            init.zeros_(module.centroids)
            init.zeros_(module.features_mean)
            init.ones_(module.features_std)
            if module.kept_dims:
                init.zeros_(module.kept_matrix)
                init.zeros_(module.kept_offset)
            if module.kept_codebook_size:
                init.zeros_(module.kept_centroids)
            elif module.kept_dims:
                init.ones_(module.base_scale)
                init.zeros_(module.base_offset)
        else:
            super()._init_weights(module)


class KMeansUnitsModel(KMeansUnitsPreTrainedModel):
    """
    Discrete units: layers of a frozen speech encoder, clustered by k-means (GSLM, arXiv 2102.01192; HuBERT, arXiv
    2106.07447).

    A padded batch gives each item the units that it gets alone. `training.units.units_fitting` finds the centroids.

    Args:
        config ([`KMeansUnitsConfig`]): The encoder, and the frames that are clustered.
    """

    def __init__(self, config: KMeansUnitsConfig):
        super().__init__(config)
        self.quantizer = KMeansQuantizer(
            config.num_streams,
            config.num_stages,
            config.codebook_size,
            config.hidden_size,
            config.kept_dims,
            config.kept_codebook_size,
        )
        # transformers wants none that are absent.
        self._keep_in_fp32_modules_strict = ["quantizer", *["f0_codebook"] * config.num_f0_rows]
        self.post_init()

    @property
    def latent_dim(self) -> int:
        """See [`SpeechCodec.latent_dim`]; the streams beside each other."""
        return self.config.num_streams * self.config.stream_dim + F0_DIM * self.config.num_f0_rows

    @property
    def centroids(self) -> torch.Tensor:
        """
        Centroids of the units, `(num_streams * num_stages, codebook_size, stream_dim)`; with a codebook of what is
        kept, those of the other codebooks, `(num_streams * num_stages, codebook_size, hidden_size)`.
        """
        return self.quantizer.centroids

    @torch.no_grad()
    def unit_vectors(self) -> torch.Tensor:
        """
        See [`~UnitPreTrainedModel.unit_vectors`]: the centroids. With a codebook of what is kept, `(num_codebooks,
        codebook_size, num_streams * stream_dim)`, with zeros for the codes that this codebook does not have.
        """
        config, quantizer = self.config, self.quantizer
        if not config.kept_codebook_size:
            return super().unit_vectors()
        vectors = quantizer.centroids.new_zeros(
            len(quantizer.centroids) + 1, config.codebook_size, config.num_streams, config.stream_dim
        )
        for row, table in enumerate(quantizer.centroids):
            vectors[row, :, row // config.num_stages, : config.hidden_size] = table
        kept = quantizer.kept_centroids.unflatten(-1, (config.num_streams, config.kept_dims))
        vectors[-1, : len(kept), :, config.hidden_size :] = kept
        return vectors.flatten(2).float()

    def _fingerprinted(self) -> list[torch.Tensor]:
        own = [self.quantizer.kept_centroids] if self.config.kept_codebook_size else []
        return [*super()._fingerprinted(), *own]

    @torch.no_grad()
    def features(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The frames that are clustered.

        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveforms in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples,
                padded on the right.

        Returns:
            The features `(batch, num_streams, num_frames, stream_dim)`, 0 beyond the end of a row, and the boolean
            mask of their frames `(batch, num_frames)`.

        Raises:
            TypeError, ValueError: See [`~UnitPreTrainedModel.encoder_states`].
        """
        states, mask = self.encoder_states(input_values, padding_mask, self.config.layers)
        return self.streams(states) * mask[:, None, :, None], mask

    def set_centroids(self, centroids: torch.Tensor) -> None:
        """
        Args:
            centroids (`torch.Tensor`): The new centroids, of the shape of [`~KMeansUnitsModel.centroids`].

        Raises:
            ValueError: If the shape is wrong or a number is not finite.
        """
        self._set(centroids=centroids)

    def set_kept_centroids(self, centroids: torch.Tensor) -> None:
        """
        Args:
            centroids (`torch.Tensor` of shape `(kept_codebook_size, num_streams * kept_dims)`): The new centroids of
                the codebook of what is kept.

        Raises:
            ValueError: If there is no such codebook, the shape is wrong, or a number is not finite.
        """
        if not self.config.kept_codebook_size:
            raise ValueError("The model has no codebook of what is kept; its `kept_codebook_size` is 0.")
        self._set(kept_centroids=centroids)

    def set_weighting(
        self,
        matrix: torch.Tensor,
        offset: torch.Tensor,
        base_scale: torch.Tensor | None = None,
        base_offset: torch.Tensor | None = None,
    ) -> None:
        """
        Set what is appended to the frames of each stream, `frames @ matrix + offset`, and what becomes of the frames
        themselves, `frames * base_scale + base_offset`.

        Args:
            matrix (`torch.Tensor` of shape `(num_streams, hidden_size, kept_dims)`), offset (`torch.Tensor` of shape
                `(num_streams, kept_dims)`): What is appended.
            base_scale (`torch.Tensor` of shape `(num_streams,)`), base_offset (`torch.Tensor` of shape `(num_streams,
                hidden_size)`, *optional*): Of the frames themselves. With `kept_codebook_size` these stay as they
                are, and both must be left out.

        Raises:
            ValueError: If `kept_dims` is 0, a shape is wrong, a number is not finite, or something is missing or too
                much.
        """
        if not self.config.kept_dims:
            raise ValueError("The model keeps no directions; its `kept_dims` is 0.")
        base = {"base_scale": base_scale, "base_offset": base_offset}
        given = {name: values for name, values in base.items() if values is not None}
        if len(given) != (0 if self.config.kept_codebook_size else 2):
            raise ValueError("`base_scale` and `base_offset` are both needed, but with `kept_codebook_size` neither.")
        self._set(kept_matrix=matrix, kept_offset=offset, **given)

    def _set(self, **values: torch.Tensor) -> None:
        # All or nothing.
        for name, value in values.items():
            expected = tuple(getattr(self.quantizer, name).shape)
            if tuple(value.shape) != expected or not torch.isfinite(value).all():
                raise ValueError(
                    f"`{name.removeprefix('kept_')}` must be finite, of shape {expected}, but has"
                    f" {tuple(value.shape)}."
                )
        for name, value in values.items():
            getattr(self.quantizer, name).copy_(value)

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """
        Set the mean and deviation that `normalization="standardize"` subtracts and divides by.

        Args:
            mean, std (`torch.Tensor` of shape `(num_streams, hidden_size)`): Mean and standard deviation of the data
                that is clustered.

        Raises:
            ValueError: If a shape is wrong, a number is not finite, or a deviation is not positive.
        """
        shape = tuple(self.quantizer.features_mean.shape)
        for name, values in (("mean", mean), ("std", std)):
            if tuple(values.shape) != shape or not bool(values.isfinite().all()):
                raise ValueError(f"`{name}` must hold finite numbers of shape {shape}, but has {tuple(values.shape)}.")
        if not bool((std > 0).all()):
            raise ValueError("`std` must be positive everywhere; a feature that never changes has none.")
        self.quantizer.features_mean.copy_(mean)
        self.quantizer.features_std.copy_(std)

    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        deduplicate: bool = False,
        speaker_f0: torch.Tensor | None = None,
    ) -> KMeansUnitsOutput:
        """
        Args:
            input_values, padding_mask: Waveforms and their mask; see [`~KMeansUnitsModel.features`].
            deduplicate (`bool`, *optional*, defaults to `False`): Whether to return runs of equal units as one, with
                `durations`. With several codebooks a run lasts as long as all of them stay.
            speaker_f0 (`torch.Tensor` of shape `(batch, 2)`, *optional*): Mean and deviation of log2 F0 in Hz of each
                row's speaker, where they are known. Defaults to those that run along; see [`F0Codebook`].

        Raises:
            ValueError: If there are no centroids yet, or `speaker_f0` is wrong or given without F0; and see
                [`~KMeansUnitsModel.features`].
        """
        self._check_fitted()
        warn_of_half_precision(self)
        features, mask = self.features(input_values, padding_mask)
        check_encoded(features)
        return self._units(features, mask, deduplicate, self._f0_of(input_values, padding_mask, mask, speaker_f0))

    @torch.no_grad()
    def unit_codes(self, input_values: torch.Tensor) -> torch.Tensor:
        """See [`UnitPreTrainedModel.unit_codes`]."""
        self._check_fitted()
        features, mask = self.features(input_values)
        check_encoded(features)
        return self.quantizer.encode(features) * mask[:, None]

    def _units(
        self,
        features: torch.Tensor,
        mask: torch.Tensor,
        deduplicate: bool,
        f0: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> KMeansUnitsOutput:
        audio_codes = self.quantizer.encode(features) * mask[:, None]
        audio_codes, latents = with_f0(audio_codes, features.transpose(1, 2).flatten(2), f0)
        if deduplicate:
            audio_codes, unit_mask, durations = deduplicate_codes(audio_codes, mask)
            return KMeansUnitsOutput(audio_codes, None, unit_mask.long(), durations)
        return KMeansUnitsOutput(audio_codes=audio_codes, latents=latents, audio_codes_mask=mask.long())

    def dequantize(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """
        The frames that codes stand for.

        Args:
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Codes of all codebooks; those
                of F0 may be left out.

        Returns:
            `torch.Tensor` of shape `(batch, num_frames, num_streams * stream_dim)`: Centroids, those of the stages of
            a stream summed up; with F0 two dimensions more, as of `latents`, which are 0 where its codes are left out.

        Raises:
            ValueError: If the shape is wrong, or a code lies outside the codebook.
        """
        units, f0 = self._split_codes(audio_codes, self.config.codebook_size)
        frames = self.quantizer.decode(units)
        return frames if f0 is None else torch.cat([frames, f0.to(frames.dtype)], dim=-1)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        deduplicate: bool = False,
        speaker_f0: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> KMeansUnitsOutput:
        """
        As [`~KMeansUnitsModel.encode`].

        Args:
            input_values, padding_mask, deduplicate, speaker_f0: See [`~KMeansUnitsModel.encode`], also for the errors.
            kwargs: What transformers passes to any model, such as `output_attentions`, of which units have none.

        Raises:
            TypeError: If another argument is given.
        """
        check_arguments(kwargs)
        self._check_fitted()
        features, mask = self.features(input_values, padding_mask)
        return self._units(features, mask, deduplicate, self._f0_of(input_values, padding_mask, mask, speaker_f0))

    def _check_fitted(self) -> None:
        tables = [self.quantizer.centroids]
        if self.config.kept_codebook_size:
            tables.append(self.quantizer.kept_centroids)
        if not all(table.any() for table in tables):
            raise ValueError("The model has no centroids yet; fit it first, e.g. with `speech-tokenizers fit-units`.")

    def streams(self, states: torch.Tensor) -> torch.Tensor:
        """
        The frames that are clustered, from states of the encoder: mixed, normalized and weighed as the configuration
        says.

        Args:
            states (`torch.Tensor` of shape `(batch, num_layers, num_frames, hidden_size)`): States of
                `config.layers`; see [`~UnitPreTrainedModel.encoder_states`].

        Returns:
            `torch.Tensor` of shape `(batch, num_streams, num_frames, stream_dim)`.
        """
        return self.quantizer.weigh(self._normalized_streams(states))

    def _normalized_streams(self, states: torch.Tensor) -> torch.Tensor:
        if self.config.layer_weights is not None:
            weights = torch.tensor(self.config.layer_weights, dtype=states.dtype, device=states.device)
            states = torch.einsum("l,blfd->bfd", weights, states)[:, None]
        if self.config.normalization == "layer_norm":
            return F.layer_norm(states, states.shape[-1:])
        if self.config.normalization == "standardize":
            return (states - self.quantizer.features_mean[:, None]) / self.quantizer.features_std[:, None]
        return states


__all__ = ["KMeansUnitsModel"]
