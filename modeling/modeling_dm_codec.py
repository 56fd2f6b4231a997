# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""DM-Codec: an RVQ codec whose codebooks also learn from a speech model and a language model."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_dm_codec import DMCodecConfig
from .modeling_rvq_codec import RVQCodecModel, RVQCodecOutput


@dataclass
class DMCodecOutput(RVQCodecOutput):
    """
    What an [`RVQCodecOutput`] holds, and the features that distillation compares with its teachers' (Q' = W Q).

    Args:
        semantic_features (`torch.FloatTensor` of shape `(batch, num_frames, semantic_dimension)`): Features that are
            compared with the speech model's, if the configuration has `semantic_dimension`.
        contextual_features (`torch.FloatTensor` of shape `(batch, num_frames, contextual_dimension)`): Features that
            are compared with the language model's, if the configuration has `contextual_dimension`.
    """

    semantic_features: torch.FloatTensor | None = None
    contextual_features: torch.FloatTensor | None = None


class DMCodecModel(RVQCodecModel):
    """
    DM-Codec (arXiv 2410.15017), whose network at inference is that of SpeechTokenizer (arXiv 2308.16692).

    It codes and decodes as an [`RVQCodecModel`]. Linear projections of codebook outputs serve training alone; the
    teachers that they are compared with are no part of the model.

    Args:
        config ([`DMCodecConfig`]): Sizes and kinds of the networks; see its presets.
    """

    config_class = DMCodecConfig
    base_model_prefix = "dm_codec"

    def __init__(self, config: DMCodecConfig):
        super().__init__(config)

        def projection(dimension: int | None) -> nn.Linear | None:
            return None if dimension is None else nn.Linear(config.codebook_dim, dimension)

        self.semantic_projection = projection(config.semantic_dimension)
        self.contextual_projection = None if config.share_projection else projection(config.contextual_dimension)
        self.post_init()

    @property
    def trained_parts(self) -> dict[str, str]:
        """See [`SpeechCodec.trained_parts`]."""
        parts = {}
        if self.config.semantic_dimension is not None:
            parts["semantic_distillation"] = "semantic_projection"
        if self.config.contextual_dimension is not None:
            shared = self.config.share_projection
            parts["contextual_distillation"] = "semantic_projection" if shared else "contextual_projection"
        return parts

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DMCodecOutput:
        """
        Encode, quantize and decode, with gradients. For the arguments see [`RVQCodecModel.forward`].

        Features of a stage that the batch does not use (`num_quantizers`, quantizer dropout) are `None`.
        """
        outputs = super().forward(input_values, padding_mask, num_quantizers, return_loss, **kwargs, return_dict=True)
        config, stages = self.config, outputs.stage_latents
        mask = None if padding_mask is None else outputs.audio_codes_mask
        contextual_projection = self.semantic_projection if config.share_projection else self.contextual_projection
        return DMCodecOutput(
            **outputs,
            semantic_features=self._project(stages, config.semantic_stage, self.semantic_projection, mask),
            contextual_features=self._project(stages, config.contextual_stage, contextual_projection, mask),
        )

    @staticmethod
    def _project(stages, stage, projection, mask):
        if projection is None or len(stages) < (stage if isinstance(stage, int) else 1):
            return None
        if isinstance(stage, int):
            chosen = stages[stage - 1]
        else:
            chosen = torch.stack(stages)
            chosen = chosen.mean(dim=0) if stage == "mean" else chosen.sum(dim=0)
        features = projection(chosen.to(projection.weight.dtype))
        return features if mask is None else features * mask.unsqueeze(-1)  # padding would have the projection's bias


__all__ = ["DMCodecModel", "DMCodecOutput"]
