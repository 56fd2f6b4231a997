# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of a language model of continuous tokens."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .continuous_heads import HEADS


@strict
class LatentLMConfig(PreTrainedConfig):
    """
    Configuration of a [`LatentLanguageModel`].

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*): Configuration of the causal transformer between input
            and head, such as Llama's. Defaults to a Llama of four layers of 256.
        latent_dim (`int`, defaults to 32): Dimension of the continuous tokens.
        head (`str`, defaults to `"flow"`): Kind of head: `"mse"`, `"gaussian"`, `"flow"` or `"energy"`; see
            [`build_head`].
        head_options (`dict`): Arguments of the head's class.
        input_noise_std (`float`, defaults to 0.0): Standard deviation of the noise on the tokens that the model reads
            in training.
        stop_loss_weight (`float`, defaults to 1.0): Weight of the loss of the head that says where an utterance ends.
        stop_pos_weight (`float`, defaults to 10.0): Weight of an end against a token in that loss.
    """

    model_type = "speech_tokenizers_latent_lm"
    sub_configs = {"text_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    latent_dim: int = 32
    head: str = "flow"
    head_options: dict[str, Any] = field(default_factory=dict)
    input_noise_std: float | int = 0.0
    stop_loss_weight: float | int = 1.0
    stop_pos_weight: float | int = 10.0

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688}
            # There are no words, and a table of them would be in vain.
            self.text_config = AutoConfig.for_model("llama", vocab_size=1, bos_token_id=0, eos_token_id=0, **sizes)
        elif isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the transformer's states."""
        return self.text_config.hidden_size  # type: ignore[union-attr]

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        if self.head not in HEADS:
            raise ValueError(f"`head` must be one of {', '.join(HEADS)}, but got {self.head!r}.")
        if self.latent_dim < 1:
            raise ValueError(f"`latent_dim` must be at least 1, but got {self.latent_dim}.")
        for name in ("input_noise_std", "stop_loss_weight", "stop_pos_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, but got {getattr(self, name)}.")


__all__ = ["LatentLMConfig"]
