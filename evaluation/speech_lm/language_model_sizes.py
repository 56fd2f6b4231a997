# SPDX-License-Identifier: Apache-2.0
"""The sizes of any causal language model of transformers, counted without its weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from speech_tokenizers.coding.loading import find_checkpoint
from speech_tokenizers.evaluation.speech_lm.budget import LanguageModelSizes


# Kinds of layers whose cache grows with the sequence, or stops growing at a window.
_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_language_model_config(name_or_path: str) -> PreTrainedConfig:
    """
    The configuration of a language model; no weights are read.

    Args:
        name_or_path (`str`): A JSON file, a folder that has a `config.json`, a released voice, or a Hub id.

    Raises:
        ValueError: If there is none, or it is damaged or of a kind that transformers does not know.
    """
    path = Path(name_or_path).expanduser()
    is_file = path.exists() and not path.is_dir()  # a pipe, too
    where = str(path) if is_file else find_checkpoint(name_or_path, argument="--lm")
    try:
        return AutoConfig.from_pretrained(where)
    except (TypeError, ValueError, LookupError, AttributeError, OSError) as error:
        raise ValueError(f"--lm {name_or_path}: describes no model ({' '.join(str(error).split())}).") from error


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """
    Positions that each layer looks back, itself included; `None` for all.

    Args:
        config (`PreTrainedConfig`): Configuration of a decoder.

    Raises:
        ValueError: If the layers have no attention, or one that is neither full nor sliding; its memory is another.
    """
    if getattr(config, "num_attention_heads", None) is None:
        raise ValueError(f"{config.model_type} has no attention, whose memory and operations are counted here.")
    kinds = getattr(config, "layer_types", None) or [_FULL] * config.num_hidden_layers
    if others := sorted(set(kinds) - {_FULL, _SLIDING}):
        raise ValueError(
            f"{config.model_type} has layers of {', '.join(others)}, whose memory and operations are not counted;"
            " choose a model of full or sliding attention."
        )
    return tuple(config.sliding_window if kind == _SLIDING else None for kind in kinds)


def empty_language_model(config: PreTrainedConfig, vocab_size: int | None = None) -> PreTrainedModel:
    """
    A language model of shapes without numbers, which takes no memory.

    Args:
        config (`PreTrainedConfig`): Configuration of a causal language model.
        vocab_size (`int`, *optional*): Rows of its embedding. Defaults to the configuration's.

    Raises:
        ValueError: If transformers has no causal language model of this kind.
    """
    config = type(config).from_dict(config.to_dict())
    if vocab_size is not None:
        config.get_text_config(decoder=True).vocab_size = vocab_size
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def count_language_model(model: PreTrainedModel) -> LanguageModelSizes:
    """
    Args:
        model (`PreTrainedModel`): A causal language model, which need not have numbers.

    Raises:
        ValueError: If it has layers that are not counted; see [`layer_windows`].
    """
    config: Any = model.config.get_text_config(decoder=True)
    windows = layer_windows(config)
    token_embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    # By identity: a parameter that two modules share is one.
    looked_up = {id(table.weight) for table in tables} - {id(getattr(output, "weight", None))}
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    multiplied = sum(p.numel() for key, p in parameters.items() if p.ndim > 1 and key not in looked_up)
    max_positions = getattr(config, "max_position_embeddings", None)
    num_heads = config.num_attention_heads
    return LanguageModelSizes(
        num_parameters=sum(p.numel() for p in parameters.values()),
        num_multiplied=multiplied,
        num_heads=num_heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        windows=windows,
        max_positions=max_positions,
        has_learned_positions=any(
            table is not token_embedding and table.num_embeddings >= (max_positions or 1) for table in tables
        ),
    )
