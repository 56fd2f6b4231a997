# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of DM-Codec and its named presets."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_rvq_codec import RVQ_CODEC_PRESETS, RVQCodecConfig


# SpeechTokenizer's network (arXiv 2308.16692), which DM-Codec (arXiv 2410.15017) shares: 103.7 M parameters.
SPEECHTOKENIZER_NETWORK = {
    "activation": "elu",
    "num_filters": 64,
    "hidden_size": 1024,
    "encoder_lstm": "bidirectional",
    "decoder_lstm": "unidirectional",
    "pad_mode": "reflect",
}

DM_CODEC_PRESETS = {
    # The paper's: one projection meets the 768 features of HuBERT-base and of BERT-base.
    "dm-codec-16khz": {
        **SPEECHTOKENIZER_NETWORK,
        "semantic_dimension": 768,
        "contextual_dimension": 768,
        "share_projection": True,
    },
    # SpeechTokenizer has the speech teacher only.
    "speechtokenizer-16khz": {**SPEECHTOKENIZER_NETWORK, "semantic_dimension": 768},
    # For CPUs: both networks at the frame rate.
    "dm-codec-fast-16khz": RVQ_CODEC_PRESETS["fast-16khz"],
}


@strict
class DMCodecConfig(RVQCodecConfig):
    """
    Configuration of a [`DMCodecModel`]: an RVQ codec whose codebooks also learn from a speech model and a language
    model (DM-Codec, arXiv 2410.15017; with the speech model alone it is SpeechTokenizer, arXiv 2308.16692).

    Args:
        semantic_dimension (`int`, *optional*): Size of the speech model's features. Without it there is no projection
            to them.
        contextual_dimension (`int`, *optional*): Size of the language model's features. Without it there is no
            projection to them.
        semantic_stage, contextual_stage (`int` or `str`, default to 1): Number of the codebook whose output is
            projected, counted from 1, or `"mean"` or `"sum"` of all (paper, Table 4: RVQ-1, RVQ-8, RVQ-1:8).
        share_projection (`bool`, defaults to `False`): Whether both features share one projection, as in the original
            code; their two sizes are then equal.
        kwargs: Fields of [`RVQCodecConfig`].
    """

    model_type = "speech_tokenizers_dm_codec"
    presets: ClassVar[dict[str, dict]] = DM_CODEC_PRESETS

    semantic_dimension: int | None = None
    contextual_dimension: int | None = None
    semantic_stage: int | str = 1
    contextual_stage: int | str = 1
    share_projection: bool = False

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        super().validate_architecture()
        for kind in ("semantic", "contextual"):
            dimension, stage = getattr(self, f"{kind}_dimension"), getattr(self, f"{kind}_stage")
            if dimension is not None and dimension < 1:
                raise ValueError(f"`{kind}_dimension` must be at least 1, but got {dimension}.")
            if isinstance(stage, str):
                if stage not in ("mean", "sum"):
                    raise ValueError(f"`{kind}_stage` must be a number, 'mean' or 'sum', but got {stage!r}.")
            elif not 1 <= stage <= self.num_quantizers:
                raise ValueError(f"`{kind}_stage` must lie between 1 and {self.num_quantizers}, but got {stage}.")
        if self.share_projection and self.semantic_dimension != self.contextual_dimension:
            raise ValueError(
                "`share_projection` needs `semantic_dimension` and `contextual_dimension` to be equal, but they are "
                f"{self.semantic_dimension} and {self.contextual_dimension}."
            )


__all__ = ["DM_CODEC_PRESETS", "DMCodecConfig"]
