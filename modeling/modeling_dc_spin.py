# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""DC-Spin: speaker-invariant units, by swapped prediction with two codebooks; and Spin, with one."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_dc_spin import DCSpinConfig
from .f0_codebook import F0_DIM
from .input_checks import check_arguments, check_encoded, check_waveforms
from .mixed_precision import warn_of_half_precision
from .speech_encoders import transformer_layers
from .swapped_prediction import SwappedPrediction
from .unit_model import UnitPreTrainedModel, with_f0
from .unit_runs import deduplicate_codes


_CODEBOOKS = ("primary", "auxiliary")
_KEPT_IN_FP32 = (*_CODEBOOKS, "f0_codebook")


@dataclass
class DCSpinOutput(ModelOutput):
    """
    Units, of `encode`, or losses, of `forward` with two views.

    Args:
        loss (`torch.Tensor`): `primary_swapped_prediction_loss`, and the auxiliary one by its weight.
        primary_swapped_prediction_loss, auxiliary_swapped_prediction_loss (`torch.Tensor`): Losses of the codebooks,
            in nats; see [`SwappedPrediction`].
        primary_accuracy, auxiliary_accuracy (`torch.Tensor`): Share of frames whose nearest code in one view is the
            likeliest target in the other.
        primary_code_perplexity, auxiliary_code_perplexity (`torch.Tensor`): Effective number of codes in use: with
            equal use of that many codes the entropy would be the same.
        primary_probability_perplexity, auxiliary_probability_perplexity (`torch.Tensor`): The same number for the
            predicted probabilities.
        audio_codes (`torch.LongTensor` of shape `(batch, 1, num_frames)`): Numbers of the nearest codes; 0 where the
            mask is 0. With F0 a second row, of its codes.
        latents (`torch.FloatTensor` of shape `(batch, num_frames, projection_dim)`): The projected frames as they were
            compared with the codes, in the space of [`~DCSpinModel.dequantize`]: of unit length; 0 where the mask is
            0. `None` when de-duplicated. With F0 two dimensions more, which are 1 for voiced frames and log2 F0 in
            deviations from the speaker's mean.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): Mask with 1 for frames of real audio.
        durations (`torch.LongTensor` of shape `(batch, num_frames)`): Frames that each unit lasts, if the units were
            de-duplicated; 0 where the mask is 0.
    """

    loss: torch.FloatTensor | None = None
    primary_swapped_prediction_loss: torch.FloatTensor | None = None
    auxiliary_swapped_prediction_loss: torch.FloatTensor | None = None
    primary_accuracy: torch.FloatTensor | None = None
    auxiliary_accuracy: torch.FloatTensor | None = None
    primary_code_perplexity: torch.FloatTensor | None = None
    auxiliary_code_perplexity: torch.FloatTensor | None = None
    primary_probability_perplexity: torch.FloatTensor | None = None
    auxiliary_probability_perplexity: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None
    durations: torch.LongTensor | None = None


class DCSpinPreTrainedModel(UnitPreTrainedModel):
    """Weight initialisation and loading."""

    config_class = DCSpinConfig
    base_model_prefix = "dc_spin"
    # The loss is a mean, which `Trainer` has to divide among accumulated batches itself.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SwappedPrediction):
            module.reset_parameters()
        else:
            super()._init_weights(module)


class DCSpinModel(DCSpinPreTrainedModel):
    """
    Units of speech that a change of speaker leaves as they are (DC-Spin, https://huggingface.co/papers/2410.24177;
    Spin, https://huggingface.co/papers/2305.11072).

    A layer of a speech encoder is projected and compared with codes. Top layers, projection and codes are learnt: a
    recording and the same in another voice have to predict each other's codes. Beside the primary codebook, whose
    codes are the units, an auxiliary one with more codes is learnt, whose part it is to refine the encoder.

    The trained layers keep the encoder's own dropout in training mode. The frozen layers stay in evaluation mode, so
    that they have no SpecAugment, layer drop or dropout. The original leaves their dropout on.

    Args:
        config ([`DCSpinConfig`]): The encoder, the codebooks and their losses.
    """

    def __init__(self, config: DCSpinConfig):
        super().__init__(config)

        def codebook(size: int) -> SwappedPrediction:
            return SwappedPrediction(
                size,
                config.projection_dim,
                temperature=config.temperature,
                epsilon=config.sinkhorn_epsilon,
                iterations=config.sinkhorn_iterations,
                hard_target=config.hard_target,
                target_mix=config.target_mix,
                normalize=config.normalize_latents,
            )

        self.primary_projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.primary = codebook(config.primary_codebook_size)
        self.auxiliary_projection = self.auxiliary = None
        if config.auxiliary_codebook_size is not None:
            self.auxiliary = codebook(config.auxiliary_codebook_size)
            if not config.share_projection:
                self.auxiliary_projection = nn.Linear(config.hidden_size, config.projection_dim)
        # Codebooks and projections; transformers wants none that are absent.
        self._keep_in_fp32_modules_strict = [
            name for name, _ in self.named_children() if name.startswith(_KEPT_IN_FP32)
        ]
        self.post_init()

    @property
    def trained_layers(self) -> nn.ModuleList:
        """The layers of the encoder that are trained."""
        top = self.config.encoder_layer
        return transformer_layers(self.encoder)[top - self.config.trainable_layers : top]

    def _freeze_encoder(self) -> None:
        super()._freeze_encoder()
        # The layers alone, as SpecAugment and layer drop go by the mode of what is around them.
        self.trained_layers.train(self.training).requires_grad_(True)

    @property
    def latent_dim(self) -> int:
        """See [`SpeechCodec.latent_dim`]."""
        return self.config.projection_dim + F0_DIM * self.config.num_f0_rows

    @property
    def centroids(self) -> torch.Tensor:
        """Codes of the primary codebook, `(1, codebook_size, projection_dim)`."""
        return self.primary.codebook.detach()[None]

    def normalize_codebooks(self) -> None:
        """Give all codes unit length; see [`~SwappedPrediction.normalize_codebook`]."""
        for codebook in (self.primary, self.auxiliary):
            if codebook is not None:
                codebook.normalize_codebook()

    def features(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The encoder's frames that are projected and coded.

        Args:
            input_values, padding_mask: Waveforms and their mask; see [`~UnitPreTrainedModel.encoder_states`], also for
                the errors.

        Returns:
            The frames `(batch, num_frames, hidden_size)`, 0 beyond the end of a row, and their boolean mask
            `(batch, num_frames)`.
        """
        states, mask = self.encoder_states(input_values, padding_mask, [self.config.encoder_layer])
        return states[:, 0] * mask[..., None], mask

    @can_return_tuple
    @torch.no_grad()
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        codebook: str = "primary",
        deduplicate: bool = False,
        speaker_f0: torch.Tensor | None = None,
    ) -> DCSpinOutput:
        """
        Args:
            input_values, padding_mask: Waveforms and their mask; see [`~UnitPreTrainedModel.encoder_states`], also for
                the errors.
            codebook (`str`, *optional*, defaults to `"primary"`): Codebook whose codes are returned: `"primary"` or
                `"auxiliary"`.
            deduplicate (`bool`, *optional*, defaults to `False`): Whether to return runs of equal units as one, with
                `durations`.
            speaker_f0 (`torch.Tensor` of shape `(batch, 2)`, *optional*): Mean and deviation of log2 F0 in Hz of each
                row's speaker, where they are known. Defaults to those that run along; see [`F0Codebook`].

        Raises:
            ValueError: If there is no such codebook, or `speaker_f0` is wrong or given without F0.
        """
        warn_of_half_precision(self)
        features, mask = self.features(input_values, padding_mask)
        check_encoded(features)
        f0 = self._f0_of(input_values, padding_mask, mask, speaker_f0)
        return self._units(features, mask, codebook, deduplicate, f0)

    @torch.no_grad()
    def unit_codes(self, input_values: torch.Tensor) -> torch.Tensor:
        """See [`UnitPreTrainedModel.unit_codes`]."""
        features, mask = self.features(input_values)
        check_encoded(features)
        return self._units(features, mask, "primary", False, None).audio_codes

    def _units(
        self,
        features: torch.Tensor,
        mask: torch.Tensor,
        codebook: str,
        deduplicate: bool,
        f0: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> DCSpinOutput:
        projection, swapped_prediction = self._codebook(codebook)
        with torch.autocast(features.device.type, enabled=False):
            latents = swapped_prediction.latents(projection(features.to(projection.weight.dtype))) * mask[..., None]
            audio_codes = swapped_prediction.encode(latents)[:, None] * mask[:, None]
        audio_codes, latents = with_f0(audio_codes, latents, f0)
        if deduplicate:
            audio_codes, unit_mask, durations = deduplicate_codes(audio_codes, mask)
            return DCSpinOutput(audio_codes=audio_codes, audio_codes_mask=unit_mask.long(), durations=durations)
        return DCSpinOutput(audio_codes=audio_codes, latents=latents, audio_codes_mask=mask.long())

    def dequantize(self, audio_codes: torch.Tensor, codebook: str = "primary") -> torch.Tensor:
        """
        The codes' places among the latents.

        Args:
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Units, with F0 if there is, or
                without.
            codebook (`str`, *optional*, defaults to `"primary"`): Codebook that the codes belong to: `"primary"` or
                `"auxiliary"`.

        Returns:
            `torch.Tensor` of shape `(batch, num_frames, projection_dim)`; with F0 two dimensions more, which are 0
            where its codes are left out.

        Raises:
            ValueError: If the shape is wrong, there is no such codebook, or a code lies outside it.
        """
        entries = self._codebook(codebook)[1].codebook
        units, f0 = self._split_codes(audio_codes, len(entries))
        frames = entries[units[:, 0]]
        return frames if f0 is None else torch.cat([frames, f0.to(frames.dtype)], dim=-1)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        perturbed_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        codebook: str = "primary",
        deduplicate: bool = False,
        return_loss: bool = True,
        speaker_f0: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DCSpinOutput:
        """
        The losses of two views; or, of one, what [`~DCSpinModel.encode`] returns.

        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveforms in
                [-1, 1].
            perturbed_values (`torch.Tensor`, of the shape of `input_values`, *optional*): The same speech in other
                voices, sample for sample.
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples of
                both views, padded on the right. The frames of the others do not count.
            codebook, deduplicate, speaker_f0: Arguments of [`~DCSpinModel.encode`], if there are no losses.
            return_loss (`bool`, *optional*, defaults to `True`): Whether to compute losses. `False` encodes also where
                there are two views.
            kwargs: Arguments that transformers passes to any model, such as `output_attentions`.

        Raises:
            TypeError: If an argument is unknown.
            ValueError: If the views differ in shape; and see [`~UnitPreTrainedModel.encoder_states`].
        """
        check_arguments(kwargs)
        if perturbed_values is None or not return_loss:
            with torch.no_grad():
                features, mask = self.features(input_values, padding_mask)
                f0 = self._f0_of(input_values, padding_mask, mask, speaker_f0)
                return self._units(features, mask, codebook, deduplicate, f0)
        views = [check_waveforms(values)[0] for values in (input_values, perturbed_values)]
        if views[0].shape != views[1].shape:
            raise ValueError(
                f"`perturbed_values` must have the shape of `input_values`, {tuple(input_values.shape)}, but has "
                f"{tuple(perturbed_values.shape)}."
            )
        _, padding_mask = check_waveforms(input_values, padding_mask, side="right")
        masks = None if padding_mask is None else torch.cat([padding_mask, padding_mask])
        features, mask = self.features(torch.cat(views), masks)
        first, second = (part[part_mask] for part, part_mask in zip(features.chunk(2), mask.chunk(2), strict=True))
        losses, loss = {}, torch.zeros((), device=features.device)
        for name, weight in zip(_CODEBOOKS, (1.0, self.config.auxiliary_loss_weight), strict=True):
            if getattr(self, name) is None:
                continue
            projection, swapped_prediction = self._codebook(name)
            with torch.autocast(features.device.type, enabled=False):
                projected = [projection(view.to(projection.weight.dtype)) for view in (first, second)]
                result = swapped_prediction(*projected)
            loss = loss + weight * result.loss
            losses[f"{name}_swapped_prediction_loss"] = result.loss
            losses[f"{name}_accuracy"] = result.accuracy
            losses[f"{name}_code_perplexity"] = result.code_perplexity
            losses[f"{name}_probability_perplexity"] = result.probability_perplexity
        return DCSpinOutput(loss=loss, **losses)

    def _codebook(self, name: str) -> tuple[nn.Linear, SwappedPrediction]:
        # A codebook, and the projection to it.
        if name == "primary":
            return self.primary_projection, self.primary
        if name != "auxiliary" or self.auxiliary is None:
            known = "'primary'" if self.auxiliary is None else "'primary' or 'auxiliary'"
            raise ValueError(f"`codebook` must be {known}, but got {name!r}.")
        return self.auxiliary_projection or self.primary_projection, self.auxiliary


__all__ = ["DCSpinModel", "DCSpinOutput"]
