# SPDX-License-Identifier: Apache-2.0
"""The settings by which a recipe trains an adapter in place of all weights. They need no further package."""

import dataclasses
from typing import Any

from transformers import set_seed

from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.processing.optional_packages import require_package
from speech_tokenizers.training.common.recipe_files import check_positive


@dataclasses.dataclass(kw_only=True)
class LoraArguments:
    """
    An adapter by LoRA; see [`lora_config`].

    Args:
        r (`int`): Rank of the adapter's matrices.
        alpha (`int`): Scale; what the matrices give is multiplied by `alpha / r`.
        dropout (`float`): Share of the inputs of the matrices that training leaves out.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0

    def __post_init__(self):
        check_positive(self, "r", "alpha", prefix="lora.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`lora.dropout` must lie from 0 to below 1, but got {self.dropout}.")

    def add_to(self, model: SpeechLMForConditionalGeneration, seed: int) -> Any:
        """
        The model with an adapter that has learnt nothing yet, drawn by the seed alone.

        Raises:
            MissingPackageError: If `peft` is not installed.
        """
        self.require()
        from speech_tokenizers.training.language_models.speech_lm_adapters import add_adapter

        set_seed(seed)
        return add_adapter(model, self.r, self.alpha, self.dropout)

    def require(self) -> None:
        """Raises `MissingPackageError` if `peft` is not installed."""
        require_package("peft", "`lora`", command="pip install 'speech-tokenizers[speech-lm]'")


__all__ = ["LoraArguments"]
