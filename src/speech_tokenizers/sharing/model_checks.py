# SPDX-License-Identifier: Apache-2.0
"""Checks of what makes the model: its configuration, its weights and what prepares its input."""

import json
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from speech_tokenizers.auto_registration import AUTO_CLASSES, SPEECH_LM_CLASSES
from speech_tokenizers.modeling.checked_loading import StoredTensor
from speech_tokenizers.sharing.code_checks import auto_map_of
from speech_tokenizers.sharing.findings import LARGEST_JSON, Finding, error, read_json, warning
from speech_tokenizers.sharing.repository_files import RepositoryFiles, is_safe_name


CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OWN = "speech_tokenizers_"
_SAVE = "save the model anew by `save_pretrained` or `push`"


def check_model(files: RepositoryFiles, settings: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """
    Args:
        files ([`RepositoryFiles`]): The repository.
        settings (`dict`): Fields of its JSON files by the files' names; those that are damaged are left out.
    """
    config = settings.get(CONFIG)
    if config is None:
        if CONFIG not in files.entries:
            yield error(CONFIG, "is missing: nothing says what model this is", "name the folder of a saved model")
    else:
        yield from _check_config(config)
    tensors, found = _read_weights(files)
    yield from found
    if config is None:
        return
    if tensors:
        yield from _check_shapes(config, tensors)
    yield from _check_preprocessors(files, config, settings)
    if config.get("model_type") in SPEECH_LM_CLASSES:
        yield from _check_speech_lm(files, config, settings.get(PROCESSOR) or {})


def kind_of(config: dict[str, Any]) -> str:
    """What a configuration describes: `"codec"`, `"speech lm"`, or `"other"`, which needs no preprocessor of ours."""
    if config.get("model_type") in SPEECH_LM_CLASSES:
        return "speech lm"
    if config.get("model_type") in AUTO_CLASSES:
        return "codec"
    if any(auto_class == "AutoModelForAudioTokenization" for auto_class, _ in auto_map_of(config)):
        return "codec"
    return "other"


def _check_config(config: dict[str, Any]) -> Iterator[Finding]:
    from transformers import CONFIG_MAPPING

    kind, mapped = config.get("model_type"), {auto_class for auto_class, _ in auto_map_of(config)}
    if not isinstance(kind, str) or not kind:
        yield error(CONFIG, f"has the `model_type` {kind!r}, which names no model", _SAVE)
    elif "AutoConfig" not in mapped and kind not in CONFIG_MAPPING:
        what = f"has the `model_type` {kind!r}, which neither this package nor transformers has, and no `auto_map`"
        yield error(CONFIG, what, "save it with its code, as `push` does, or correct the name")
    elif kind.startswith(_OWN) and not mapped:
        what = "names no code, so that the model loads only where this package is installed"
        yield warning(CONFIG, what, "push it with its code, or say so in the card")
    if not isinstance(config.get("architectures"), list) or not config["architectures"]:
        yield warning(CONFIG, "does not name the model's class (`architectures`)", _SAVE)
    if config.get("quantization_config"):
        yield warning(CONFIG, "asks for quantized weights, which no model of this package has", _SAVE)


def _read_weights(files: RepositoryFiles) -> tuple[dict[str, StoredTensor], list[Finding]]:
    found: list[Finding] = []
    names = [_WEIGHTS] if _WEIGHTS in files.entries else []
    if not names and _INDEX in files.entries:
        index = read_json(files, _INDEX, found)
        places = (index or {}).get("weight_map")
        if isinstance(places, dict) and all(isinstance(place, str) for place in places.values()):
            names = sorted(set(places.values()))
        elif index is not None:
            found.append(error(_INDEX, "is no index of weights", _SAVE))
    elif not names:
        found.append(error(_WEIGHTS, "is missing: there are no weights that can be loaded safely", _SAVE))
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        if not is_safe_name(name):
            found.append(error(_INDEX, f"names {name!r}, which leads out of the folder", "do not load it"))
        elif name not in files.entries:
            found.append(error(_INDEX, f"names {name}, which is not there", "add that file"))
        else:
            try:
                part, damage = files.weights(name)
            except OSError as reason:
                part, damage = {}, f"cannot be read ({reason})"
            tensors |= part
            if damage is not None:
                found.append(error(name, damage.rstrip("."), "fetch or save it again"))
            elif not part:
                found.append(error(name, "holds no tensors", _SAVE))
    return tensors, found


def _check_shapes(config: dict[str, Any], tensors: dict[str, StoredTensor]) -> Iterator[Finding]:
    # Only of models whose code is installed: that of the repository is not run.
    if not str(config.get("model_type")).startswith(_OWN):
        return
    wanted, reason = _expected(config, tensors)
    if wanted is None:
        yield error(CONFIG, f"describes no model ({reason})", _SAVE)
        return
    lost = sorted(wanted.keys() - tensors.keys())
    foreign = sorted(tensors.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & tensors.keys() if wanted[name] != tensors[name].shape)
    if lost:
        yield error(_WEIGHTS, f"lacks {len(lost)} of {len(wanted)} tensors of the model, such as {lost[0]}", _SAVE)
    if foreign:
        what = f"holds {len(foreign)} tensors that the configuration does not have, such as {foreign[0]}"
        yield error(_WEIGHTS, what, "is config.json that of another model? " + _SAVE)
    for name in other[:3]:
        what = f"`{name}` has shape {tensors[name].shape}, but the configuration implies {wanted[name]}"
        yield error(_WEIGHTS, what, "is config.json that of another model? " + _SAVE)


def _expected(config: dict[str, Any], stored: Collection[str]) -> tuple[dict[str, tuple[int, ...]] | None, str]:
    # Shapes by name of the model that a configuration describes, or why there is none.
    import torch
    from transformers import AutoConfig, AutoModel

    from speech_tokenizers.coding.loading import load_config
    from speech_tokenizers.modeling.checked_loading import check_counts, quiet_report

    fields = without_auto_maps(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, CONFIG)
        path.write_text(json.dumps(fields), encoding="utf-8")
        try:
            check_counts(fields, len(stored), path)
            load_config(folder)
            with quiet_report(), torch.device("meta"):
                model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, OSError) as reason:
            return None, " ".join(str(reason).split()).replace(f"{folder}{os.sep}", "")
    # Of tensors that are one and the same, a file holds one, under any of their names.
    held: dict[int, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = held.setdefault(id(tensor), name)
        if first == name or name in stored:
            shapes[name] = tuple(tensor.shape)
        if first != name and name in stored and first not in stored:
            del shapes[first]
            held[id(tensor)] = name
    return shapes, ""


def without_auto_maps(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields without what would lead to code in a repository."""
    kept = {name: value for name, value in fields.items() if name != "auto_map"}
    return {name: without_auto_maps(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _check_preprocessors(
    files: RepositoryFiles, config: dict[str, Any], settings: dict[str, dict[str, Any]]
) -> Iterator[Finding]:
    kind = kind_of(config)
    if kind == "codec" and PREPROCESSOR not in files.entries and PROCESSOR not in files.entries:
        what = "is missing: nothing says at which rate the model takes sound"
        yield error(PREPROCESSOR, what, "save the feature extractor beside the model")
    if kind == "speech lm":
        for name in (PROCESSOR, "tokenizer.json", "tokenizer_config.json"):
            if name not in files.entries:
                yield error(name, "is missing: text cannot be prepared", "save the processor beside the model")
    rates = {CONFIG: config.get("sampling_rate")}
    rates[PREPROCESSOR] = (settings.get(PREPROCESSOR) or {}).get("sampling_rate")
    processor = settings.get(PROCESSOR) or {}
    rates[PROCESSOR] = processor.get("sampling_rate")
    part = processor.get("feature_extractor")
    rates[f"{PROCESSOR}'s `feature_extractor`"] = part.get("sampling_rate") if isinstance(part, dict) else None
    stated = {name: rate for name, rate in rates.items() if rate is not None}
    if len(set(map(str, stated.values()))) > 1:
        told = ", ".join(f"{rate} Hz in {name}" for name, rate in stated.items())
        file = next(name for name in stated if name != CONFIG or len(stated) == 1).partition("'")[0]
        yield error(file, f"disagrees about the sampling rate: {told}", "save the feature extractor of this model")


def _check_speech_lm(files: RepositoryFiles, config: dict[str, Any], processor: dict[str, Any]) -> Iterator[Finding]:
    fingerprint, name = config.get("codec_fingerprint"), config.get("codec_name")
    if not fingerprint:
        what = "has no fingerprint of the codec, so that a wrong one would make noise"
        yield error(CONFIG, what, "attach the codec and save the model anew")
    if fingerprint and processor.get("codec_fingerprint") not in (None, fingerprint):
        yield error(PROCESSOR, "has the fingerprint of another codec than config.json", "save both anew")
    if any(path.startswith("codec/") for path in files.entries):
        return
    if not name:
        what = "does not name the codec, whose repository is another"
        yield error(CONFIG, what, "push it by `push MODEL ID --codec NAMESPACE/CODEC`")
    elif not isinstance(name, str) or "/" not in name or name.startswith(("/", ".", "~")):
        what = f"names the codec {name!r}, which is none of the Hub, so that a stranger does not find it"
        yield warning(CONFIG, what, "push the codec too, and this model with --codec NAMESPACE/CODEC")


__all__ = ["CONFIG", "LARGEST_JSON", "PREPROCESSOR", "PROCESSOR", "check_model", "kind_of", "without_auto_maps"]
