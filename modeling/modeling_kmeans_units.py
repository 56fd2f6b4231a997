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
from .input_checks import check_arguments, check_encoded
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
        latents (`torch.FloatTensor` of shape `(batch, num_frames, num_streams * hidden_size)`): The frames that were
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
        hidden_size (`int`): Dimension of a frame.
    """

    def __init__(self, num_streams: int, num_stages: int, codebook_size: int, hidden_size: int):
        super().__init__()
        self.num_streams, self.num_stages = num_streams, num_stages
        self.register_buffer("centroids", torch.zeros(num_streams * num_stages, codebook_size, hidden_size))
        self.register_buffer("features_mean", torch.zeros(num_streams, hidden_size))
        self.register_buffer("features_std", torch.ones(num_streams, hidden_size))

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes `(batch, num_quantizers, num_frames)` of features `(batch, num_streams, num_frames, hidden_size)`."""
        batch_size, _, num_frames, _ = features.shape
        codes = []
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.centroids.dtype)
            for stream, centroids in enumerate(self.centroids.unflatten(0, (self.num_streams, self.num_stages))):
                residual = features[:, stream].flatten(0, 1)  # (B * F, D)
                for stage_centroids in centroids:
                    nearest = nearest_centroids(residual, stage_centroids)
                    codes.append(nearest.view(batch_size, num_frames))
                    residual = residual - stage_centroids[nearest]
        return torch.stack(codes, dim=1)

    def decode(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """Sums of centroids, `(batch, num_frames, num_streams * hidden_size)`, of codes of all codebooks."""
        entries = torch.stack(
            [table[codes] for table, codes in zip(self.centroids, audio_codes.unbind(1), strict=True)]
        )
        streams = entries.unflatten(0, (self.num_streams, self.num_stages)).sum(1)  # (S, B, F, D)
        return streams.permute(1, 2, 0, 3).flatten(2)


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
            config.num_streams, config.num_stages, config.codebook_size, config.hidden_size
        )
        # transformers wants none that are absent.
        self._keep_in_fp32_modules_strict = ["quantizer", *["f0_codebook"] * config.num_f0_rows]
        self.post_init()

    @property
    def latent_dim(self) -> int:
        """See [`SpeechCodec.latent_dim`]; the streams beside each other."""
        return self.config.num_streams * self.config.hidden_size + F0_DIM * self.config.num_f0_rows

    @property
    def centroids(self) -> torch.Tensor:
        """Centroids of the units, `(num_streams * num_stages, codebook_size, hidden_size)`."""
        return self.quantizer.centroids

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
            The features `(batch, num_streams, num_frames, hidden_size)`, 0 beyond the end of a row, and the boolean
            mask of their frames `(batch, num_frames)`.

        Raises:
            TypeError, ValueError: See [`~UnitPreTrainedModel.encoder_states`].
        """
        states, mask = self.encoder_states(input_values, padding_mask, self.config.layers)
        return self.streams(states) * mask[:, None, :, None], mask

    def set_centroids(self, centroids: torch.Tensor) -> None:
        """
        Args:
            centroids (`torch.Tensor` of shape `(num_streams * num_stages, codebook_size, hidden_size)`): The new
                centroids.

        Raises:
            ValueError: If the shape is wrong or a number is not finite.
        """
        expected = tuple(self.quantizer.centroids.shape)
        if tuple(centroids.shape) != expected or not torch.isfinite(centroids).all():
            raise ValueError(f"`centroids` must be finite, of shape {expected}, but has {tuple(centroids.shape)}.")
        self.quantizer.centroids.copy_(centroids)

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
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Codes of all codebooks.

        Returns:
            `torch.Tensor` of shape `(batch, num_frames, num_streams * hidden_size)`: Centroids, those of the stages of
            a stream summed up; with F0 two dimensions more, as of `latents`.

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
        if not self.quantizer.centroids.any():
            raise ValueError("The model has no centroids yet; fit it first, e.g. with `speech-tokenizers fit-units`.")

    def streams(self, states: torch.Tensor) -> torch.Tensor:
        """
        The frames that are clustered, from states of the encoder: mixed and normalized as the configuration says.

        Args:
            states (`torch.Tensor` of shape `(batch, num_layers, num_frames, hidden_size)`): States of
                `config.layers`; see [`~UnitPreTrainedModel.encoder_states`].

        Returns:
            `torch.Tensor` of shape `(batch, num_streams, num_frames, hidden_size)`.
        """
        if self.config.layer_weights is not None:
            weights = torch.tensor(self.config.layer_weights, dtype=states.dtype, device=states.device)
            states = torch.einsum("l,blfd->bfd", weights, states)[:, None]
        if self.config.normalization == "layer_norm":
            return F.layer_norm(states, states.shape[-1:])
        if self.config.normalization == "standardize":
            return (states - self.quantizer.features_mean[:, None]) / self.quantizer.features_std[:, None]
        return states


__all__ = ["KMeansUnitsModel"]
