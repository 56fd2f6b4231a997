# SPDX-License-Identifier: Apache-2.0
"""
Adapters of speech language models by LoRA (https://huggingface.co/papers/2106.09685), with the package `peft`.

An adapter says what it was trained on: the rows of the vocabulary, the layout, the codec and the language model. That
stands in its `adapter_config.json`, whoever saves it.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from speech_tokenizers.coding.loading import find_checkpoint, load_config
from speech_tokenizers.coding.speech_lm_loading import SPEECH_LM, load_speech_lm
from speech_tokenizers.modeling.checked_loading import ModelFilesError, describe_damage, is_finite, read_fields
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.speech_lm_unit_coding import CODING_FIELDS
from speech_tokenizers.processing.optional_packages import require_package
from speech_tokenizers.processing.whole_files import whole_folder


require_package("peft", "LoRA", command="pip install 'speech-tokenizers[speech-lm]'")

from peft import (  # noqa: E402 - above, its absence is told with what to do
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils.other import TrainableTokensWrapper  # noqa: E402


# Modules beside the language model. They are small, and new with the model, so they are trained whole.
AUDIO_MODULES = ("frames", "pieces")
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# What a training measures or settles beside the weights, by which the model then speaks.
_MEASURED = ("frames_per_character", "piece_frames", "condition_dropout", "longest_loop_seconds")
# Numbers of each tensor that tell one language model from another.
_SAMPLED = 256
_HOW_TO_ENLARGE = (
    "Enlarge the language model for speech first: `SpeechLMForConditionalGeneration.from_causal_lm(LM, codec,"
    " processor)`, with the processor that was saved with the adapter."
)


@dataclass
class SpeechLoraConfig(LoraConfig):
    """
    A `peft.LoraConfig` that says which speech language model it is for.

    Args:
        speech_lm (`dict`): What the speech language model must have; see [`speech_facts`].
        kwargs: See `peft.LoraConfig`.
    """

    speech_lm: dict[str, Any] = field(default_factory=dict)


def lora_config(
    model: SpeechLMForConditionalGeneration, r: int = 16, alpha: int = 32, dropout: float = 0.0, **kwargs: Any
) -> SpeechLoraConfig:
    """
    A configuration for `peft.get_peft_model` by which a speech language model learns with few weights.

    The linear layers of attention and MLP get LoRA. The rows of marks, pieces and codes are trained themselves, in
    both tables where they are not tied. (An adapter on the input table alone could read codes, but not write them.)
    Modules of audio are trained whole.

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model. It is not changed.
        r (`int`, *optional*, defaults to 16): Rank of the adapter's matrices.
        alpha (`int`, *optional*, defaults to 32): Scale; what the matrices give is multiplied by `alpha / r`.
        dropout (`float`, *optional*, defaults to 0.0): Share of the inputs of the matrices that training leaves out.
        kwargs: Further fields of `peft.LoraConfig`.

    Returns:
        [`SpeechLoraConfig`]: The configuration.

    Raises:
        TypeError: If it is another kind of model, such as a language model that was not enlarged for speech.
        ValueError: If the model has an adapter already, or a part that peft would train wrongly.
    """
    check_base(model)
    linear = linear_layers(model)
    output = model.get_output_embeddings()
    if output is not None and getattr(output, "bias", None) is not None:
        raise ValueError(
            "The language model's output table has a bias, which `peft` drops where it trains single rows. Train the"
            " whole model, or begin with another one."
        )
    ids = new_ids(model)
    tables = [model.get_input_embeddings()]
    if output is not None and output.weight is not tables[0].weight:
        tables.append(output)
    names = {module: name for name, module in model.named_modules()}
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": _pattern(linear),
        "fan_in_fan_out": any(isinstance(model.get_submodule(name), Conv1D) for name in linear),
        "trainable_token_indices": {names[table]: list(ids) for table in tables},
        "modules_to_save": audio_modules(model) or None,
    }
    return SpeechLoraConfig(**(settings | kwargs), speech_lm=speech_facts(model))


def add_adapter(
    model: SpeechLMForConditionalGeneration, r: int = 16, alpha: int = 32, dropout: float = 0.0, **kwargs: Any
) -> PeftModel:
    """
    Put a new adapter on a speech language model: `peft.get_peft_model` by [`lora_config`].

    `trl.SFTTrainer` takes what this returns. (With a `peft_config` it would ask the output table for a bias, which
    `peft` hides.)

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model, which is changed.
        r, alpha, dropout, kwargs: See [`lora_config`].

    Returns:
        `peft.PeftModel`: The model with the adapter, which computes what it did before.

    Raises:
        TypeError, ValueError: See [`lora_config`].
    """
    return _wrapped(model, lora_config(model, r, alpha, dropout, **kwargs))


def _wrapped(model: SpeechLMForConditionalGeneration, config: SpeechLoraConfig) -> PeftModel:
    learner = get_peft_model(model, config)
    output = model.get_output_embeddings()
    if isinstance(output, TrainableTokensWrapper):
        output.bias = None  # `lora_config` has seen to it
    return learner


def check_base(model: Any) -> None:
    """
    Check that an adapter can be put on a model.

    Raises:
        TypeError: If it is no speech language model.
        ValueError: If it has an adapter already.
    """
    if isinstance(model, PeftModel) or getattr(model, "peft_config", None):
        raise ValueError("The model has an adapter already; merge that by `merge_adapter` first.")
    if not isinstance(model, SpeechLMForConditionalGeneration):
        raise TypeError(f"A {type(model).__name__} has no rows for the codes. {_HOW_TO_ENLARGE}")


def linear_layers(model: SpeechLMForConditionalGeneration) -> list[str]:
    """Names of the linear layers in the blocks of the language model: those of attention and MLP."""
    inside = list(model.language_model.named_modules(prefix="language_model"))
    blocks = tuple(f"{name}." for name, module in inside if isinstance(module, nn.ModuleList))
    linear = [name for name, part in inside if isinstance(part, nn.Linear | Conv1D) and name.startswith(blocks)]
    experts = [
        name
        for name, parameter in model.language_model.named_parameters(prefix="language_model")
        if parameter.ndim == 3 and name.startswith(blocks)
    ]
    if experts or not linear:
        what = f"weights of experts ({experts[0]}, ...)" if experts else "no linear layers in its blocks"
        raise ValueError(
            f"The language model has {what}, for which `lora_config` knows no LoRA. Begin with a language model whose"
            " blocks have linear layers only."
        )
    return linear


def _pattern(names: Iterable[str]) -> str:
    # One expression for all blocks: `peft` matches it whole, where it takes a list for ends of names.
    parts = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in names})
    return "|".join(parts)


def new_ids(model: SpeechLMForConditionalGeneration) -> list[int]:
    """Ids of marks, pieces and, where they are ids, codes, in order."""
    ids, config = model.config.speech_ids, model.config
    new = {ids.audio_start, ids.audio_end, config.audio_token_id}
    new.update(range(ids.piece_offset, ids.piece_offset + ids.num_pieces))
    if config.layout == "flat":
        new.update(range(ids.audio_offset, ids.audio_stop))
    return sorted(new)


def audio_modules(model: nn.Module) -> list[str]:
    """
    Names of the modules of audio that a model has, as `peft` finds exactly them.

    Of a module without tensors of its own these are its parts: `peft` puts another module in the place of each, and a
    model may ask of which class its modules are.

    Raises:
        ValueError: If one has tensors of its own and a name in which another module's ends.
    """
    found = []
    for name in AUDIO_MODULES:
        module = getattr(model, name, None)
        if isinstance(module, nn.Module):
            parts = [name] if _own_tensors(module) else [f"{name}.{child}" for child, _ in module.named_children()]
            found += [exact for part in parts for exact in _found_exactly(model, part)]
    return found


def _own_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def _found_exactly(model: nn.Module, name: str) -> list[str]:
    # `peft` takes each module whose name ends so: `head` would be `language_model.lm_head`, too.
    module = model.get_submodule(name)
    is_alone = [other for other, _ in model.named_modules() if other.endswith(name)] == [name]
    if is_alone and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [name] if module.state_dict() else []
    if _own_tensors(module):
        raise ValueError(f"`peft` cannot tell {name}, which has weights, from a module whose name ends so; rename it.")
    return [part for child, _ in module.named_children() for part in _found_exactly(model, f"{name}.{child}")]


def speech_facts(model: SpeechLMForConditionalGeneration) -> dict[str, Any]:
    """
    What a speech language model must have in common with the one that an adapter was trained on.

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model, without an adapter.

    Returns:
        `dict`: Rows of the tables, ids of speech, layout, codec and language model. The latter is told by
        `weights`, a short hash of samples of its weights but for the new rows, rounded to bfloat16, and has a name.
    """
    config = model.config
    names = ("layout", "text_alignment", "num_codebooks", "codebook_size", "codec_name", "codec_fingerprint")
    ids = ("audio_start_token_id", "audio_end_token_id", "audio_token_id", "audio_offset", "piece_offset")
    of_layouts = ("delays", "latent_dim", "head", "head_options", "piece_context", *CODING_FIELDS)
    facts = {name: getattr(config, name) for name in (*names, *ids, *of_layouts) if hasattr(config, name)}
    return {
        "rows": model.get_input_embeddings().weight.shape[0],
        **facts,
        "piece_labels": list(config.piece_labels),
        "language_model": getattr(config.text_config, "_name_or_path", "") or config.text_config.model_type,
        "weights": _weights_fingerprint(model),
    }


@torch.no_grad()
def _weights_fingerprint(model: SpeechLMForConditionalGeneration) -> str:
    output = model.get_output_embeddings()
    tables = {id(table.weight) for table in (model.get_input_embeddings(), output) if table is not None}
    first_new = new_ids(model)[0]
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in sorted(model.language_model.named_parameters()):
        numbers = (parameter[:first_new] if id(parameter) in tables else parameter).reshape(-1)
        places = torch.linspace(0, max(0, len(numbers) - 1), min(_SAMPLED, len(numbers)), dtype=torch.float64)
        # So that a model is known in bfloat16, too.
        sample = numbers[places.long().to(numbers.device)].to(torch.bfloat16).cpu()
        digest.update(f"{name} {len(numbers)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: PeftModel, folder: str | Path, processor: Any = None) -> Path:
    """
    Save an adapter alone, without the model that it is on, as a whole or not at all.

    Args:
        model (`peft.PeftModel`): The model with the adapter.
        folder (`str` or `Path`): Folder to write or replace.
        processor ([`SpeechLMProcessor`], *optional*): The processor, which whoever enlarges the language model again
            needs.

    Returns:
        `Path`: The folder.

    Raises:
        TypeError: If the model has no adapter that [`lora_config`] configured.
    """
    if not isinstance(getattr(model, "active_peft_config", None), SpeechLoraConfig):
        raise TypeError("`model` must have an adapter that `lora_config` configured.")
    learnt: Any = model.get_base_model()
    model.active_peft_config.speech_lm["measured"] = {name: getattr(learnt.config, name) for name in _MEASURED}
    with whole_folder(folder) as temporary:
        # The rows that were trained are in the adapter; the others are the language model's.
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        if processor is not None:
            processor.save_pretrained(temporary)
    return Path(folder)


def load_adapter(base: Any, folder: str | Path, is_trainable: bool = False) -> PeftModel:
    """
    Put an adapter on the speech language model that it was trained on.

    Args:
        base ([`SpeechLMForConditionalGeneration`], `str` or `Path`): The model, which is changed; or its name, folder
            or Hub id.
        folder (`str` or `Path`): Folder of the adapter. Only safetensors are read.
        is_trainable (`bool`, *optional*, defaults to `False`): Whether the adapter is to learn on.

    Returns:
        `peft.PeftModel`: The model with the adapter; in evaluation mode, unless it is to learn on.

    Raises:
        TypeError: If `base` is a language model that was not enlarged for speech, or none at all.
        ValueError: If `base` is not the model that the adapter was trained on, or has an adapter already; or a file of
            the adapter is missing, damaged, or no adapter's that [`lora_config`] configured.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if isinstance(base, str | Path):
        checkpoint = find_checkpoint(base, argument="base")
        if (kind := load_config(checkpoint).model_type) != SPEECH_LM:
            raise TypeError(f"{base}, a model of type {kind!r}, has no rows for the codes. {_HOW_TO_ENLARGE}")
        base = load_speech_lm(checkpoint)[0]
    check_base(base)
    _check_facts(folder, config.speech_lm, speech_facts(base))
    if (damage := describe_damage(folder / WEIGHTS_FILE)) is not None:
        raise ModelFilesError(folder / WEIGHTS_FILE, damage)
    stored = load_file(folder / WEIGHTS_FILE)
    config.inference_mode = not is_trainable
    config.base_model_name_or_path = None  # the base is given
    model = _wrapped(base, config)
    try:
        _check_tensors(folder, stored, get_peft_model_state_dict(model, save_embedding_layers=False))
    except ValueError:
        model.unload()  # the caller's model is as it was
        raise
    set_peft_model_state_dict(model, stored)
    for name, value in config.speech_lm.get("measured", {}).items():
        if name in _MEASURED:
            setattr(base.config, name, value)
    return model.train(is_trainable)


def _read_config(folder: Path) -> SpeechLoraConfig:
    read = read_fields(folder / CONFIG_FILE)
    if read.get("peft_type") != "LORA" or not isinstance(read.get("speech_lm"), dict) or not read["speech_lm"]:
        raise ModelFilesError(
            folder / CONFIG_FILE,
            "does not say which speech language model it was trained on (`speech_lm`), as an adapter of `lora_config`"
            " does; train it with that, or load it with `peft` itself, unchecked.",
        )
    known = {entry.name for entry in fields(SpeechLoraConfig) if entry.init}
    if unknown := sorted(set(read) - known):
        raise ModelFilesError(
            folder / CONFIG_FILE,
            f"has fields that this version of `peft` does not know ({', '.join(unknown)}); update it.",
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelFilesError(
            folder / WEIGHTS_FILE, "is missing. Other files of weights could run code, so they are never read."
        )
    return SpeechLoraConfig(**read)


def _check_facts(folder: Path, trained_on: dict[str, Any], given: dict[str, Any]) -> None:
    names = {"codec_name", "language_model"}
    trained_on = {"piece_context": 0, **trained_on}  # adapters of old do not say so
    differing = [name for name in given if name not in names and trained_on.get(name) != given[name]]
    if not differing:
        return
    listed = "; ".join(f"`{name}` was {trained_on.get(name)!r} and is {given[name]!r}" for name in differing)
    if "codec_fingerprint" in differing:
        codec = trained_on.get("codec_name") or "the codec that it was trained with"
        advice = f"Load the model that reads and writes the codes of {codec}."
    elif differing == ["weights"]:
        advice = (
            f"It was trained on {trained_on.get('language_model')}, whose weights are others; load that one, in"
            " float32 or bfloat16."
        )
    elif differing == ["piece_context"]:
        advice = f"Make the model by `from_causal_lm(..., piece_context={trained_on['piece_context']})`."
    else:
        advice = _HOW_TO_ENLARGE
    raise ValueError(f"The adapter of {folder} was trained on another speech language model ({listed}). {advice}")


def _check_tensors(folder: Path, stored: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    path = folder / WEIGHTS_FILE
    for what, names in (("lacks", expected.keys() - stored.keys()), ("has besides", stored.keys() - expected.keys())):
        if names:
            raise ModelFilesError(path, f"{what} {min(names)} ({len(names)} tensors); save the adapter again.")
    for name, tensor in stored.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, but {tuple(expected[name].shape)} is needed"
            raise ModelFilesError(path, f"`{name}` has shape {shapes}; save the adapter again.")
        if not is_finite(tensor):
            raise ModelFilesError(path, f"`{name}` holds values that are not finite; train the adapter again.")


def merge_adapter(model: PeftModel) -> SpeechLMForConditionalGeneration:
    """
    Make a model with an adapter an ordinary speech language model, which computes the same in float32.

    Args:
        model (`peft.PeftModel`): The model; it is used up.

    Returns:
        [`SpeechLMForConditionalGeneration`]: The model with the adapter in its weights, in evaluation mode. All of its
        weights can learn on.

    Raises:
        TypeError: If the model has no adapter.
        ValueError: If the adapter holds values that are not finite.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"`model` must have an adapter, but is a {type(model).__name__}.")
    return model.merge_and_unload(safe_merge=True).requires_grad_(True).eval()


__all__ = [
    "SpeechLoraConfig",
    "add_adapter",
    "load_adapter",
    "lora_config",
    "merge_adapter",
    "save_adapter",
    "speech_facts",
]
