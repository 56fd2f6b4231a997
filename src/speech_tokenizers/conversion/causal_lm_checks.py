# SPDX-License-Identifier: Apache-2.0
"""
What keeps a server from loading an exported language model, or makes it answer wrongly: found in the files.

Nothing is loaded but the configuration, the names and shapes of the weights, and the vocabulary.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speech_tokenizers.coding.served_speech import (
    SPEECH_FILE,
    UNIT_NAME,
    ServedSpeech,
    SpeechFileError,
    read_served_speech,
)
from speech_tokenizers.conversion.speech_grammar import GRAMMAR_FILE, REGEX_FILE, speech_grammar, speech_regex
from speech_tokenizers.modeling.speech_lm_text import AUDIO_END, AUDIO_START


WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
# Parts of names of weights that belong to an adapter, to our wrapper or to a codec.
_FOREIGN = ("lora_", ".base_layer.", "modules_to_save", "trainable_tokens", "codebook", "quantizer")
_CODEC_FILES = ("codec", "preprocessor_config.json", "processor_config.json")
_SENTENCE = "Hello there, it's 5 o'clock!  NAÏVE\n"
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself allows


@dataclass(frozen=True)
class ExportDefect:
    """
    What is wrong with an exported language model.

    Args:
        name (`str`): Name of the kind of defect, such as `"vocab_size"`.
        message (`str`): What is wrong, whom it breaks, and what to do.
    """

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass
class _Folder:
    # What the files say; `None` or empty where a file is missing or broken, which `broken` tells.
    path: Path
    broken: list[ExportDefect] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)  # all words of the vocabulary
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # type and shape
    speech: ServedSpeech | None = None
    model: Any = None  # without weights


def check_export(folder: str | os.PathLike[str], codec: Any = None) -> list[ExportDefect]:
    """
    Find what would break a server that loads an exported language model.

    Args:
        folder (`str` or `Path`): Folder that [`export_causal_lm`] wrote.
        codec ([`SpeechCodec`], *optional*): The codec, to see whether the codes are its codes.

    Returns:
        `list` of [`ExportDefect`]: All that is wrong; empty for a good folder.

    Raises:
        NotADirectoryError: If there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is no folder; name one that `export-lm` wrote.")
    found = _read(path)
    defects = list(found.broken)
    for check in _CHECKS:
        defects += check(found)
    if codec is not None and found.speech is not None:
        defects += _codec_defects(found.speech, codec)
    return defects


# --- What is read ---


def _read(path: Path) -> _Folder:
    found = _Folder(path)

    def read_json(name: str, defect: str, whom: str) -> dict[str, Any]:
        try:
            fields = json.loads((path / name).read_text(encoding="utf-8"))
            if isinstance(fields, dict):
                return fields
            reason = "holds no fields"
        except FileNotFoundError:
            reason = "is missing"
        except (OSError, ValueError, RecursionError) as error:
            reason = f"cannot be read ({error})"
        found.broken.append(ExportDefect(defect, f"{name} {reason}; {whom}"))
        return {}

    found.config = read_json("config.json", "config", "every server chooses the model's class by it.")
    found.generation = read_json("generation_config.json", "generation_eos", "servers read from it where to stop.")
    found.tokenizer_config = read_json("tokenizer_config.json", "tokenizer", "servers read the vocabulary by it.")
    vocabulary = read_json("tokenizer.json", "tokenizer", "servers and converters read the vocabulary from it.")
    _read_vocabulary(found, vocabulary)
    _read_weights(found)
    try:
        found.speech = read_served_speech(path)
    except SpeechFileError as error:
        found.broken.append(ExportDefect("speech_json", f"{SPEECH_FILE} {error.reason}"))
    if found.config:
        found.model = _model_without_weights(found)
    return found


def _read_vocabulary(found: _Folder, vocabulary: dict[str, Any]) -> None:
    words = (vocabulary.get("model") or {}).get("vocab") or {}
    if isinstance(words, list):  # Unigram: words with their scores
        words = {entry[0]: place for place, entry in enumerate(words)}
    found.added = {entry["content"]: entry for entry in vocabulary.get("added_tokens") or []}
    found.names = {**words, **{name: entry["id"] for name, entry in found.added.items()}}
    # Older files say it here too, and readers believe this one.
    for entry in (found.tokenizer_config.get("added_tokens_decoder") or {}).values():
        known = found.added.setdefault(entry["content"], dict(entry))
        for flag in ("special", "normalized"):
            known[flag] = known.get(flag, False) or entry.get(flag, False)


def _read_weights(found: _Folder) -> None:
    def broken(message: str) -> None:
        found.broken.append(ExportDefect("weights", f"{message} Export the model again."))

    files = [WEIGHTS_FILE]
    if (found.path / INDEX_FILE).is_file():
        try:
            files = sorted(
                set(json.loads((found.path / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            broken(f"{INDEX_FILE} cannot be read ({error}).")
            return
    for name in files:
        try:
            tensors, missing = _safetensors_header(found.path / name)
        except FileNotFoundError:
            broken(f"{name} is missing, and with it the weights.")
            continue
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            broken(f"{name} is no whole safetensors file ({error}).")
            continue
        if missing:
            broken(f"{name} has {abs(missing)} bytes too {'few' if missing > 0 else 'many'}: it was cut or changed.")
        found.tensors |= tensors


def _safetensors_header(path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], int]:
    # Types and shapes by name, and the number of bytes that the file lacks.
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _LONGEST_HEADER:
            raise ValueError("it has no header")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    tensors = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    return tensors, 8 + length + end - path.stat().st_size


def _model_without_weights(found: _Folder) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    from speech_tokenizers.modeling.checked_loading import quiet_report

    fields = {name: value for name, value in found.config.items() if name != "auto_map"}
    try:
        with quiet_report(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    except Exception as error:  # noqa: BLE001 - configurations of other projects fail in all ways
        reason = " ".join(str(error).split())[:300]
        found.broken.append(ExportDefect("config", f"config.json describes no causal language model ({reason})."))
        return None


# --- What is checked ---


def _check_architecture(found: _Folder) -> Iterator[ExportDefect]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not found.config:
        return
    kind, architectures = found.config.get("model_type"), found.config.get("architectures")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    expected = [known] if isinstance(known, str) else list(known or [])
    if not expected:
        yield ExportDefect("model_type", f"`model_type` in config.json is {kind!r}, no causal language model.")
    elif not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in expected:
        yield ExportDefect(
            "architectures",
            f"`architectures` in config.json is {architectures!r}, but must be {expected[:1]}: vLLM, SGLang and the"
            " converter of llama.cpp choose the class by it.",
        )
    for name, fields in (("config.json", found.config), ("tokenizer_config.json", found.tokenizer_config)):
        if "auto_map" in fields:
            yield ExportDefect("auto_map", f"{name} has an `auto_map`, so that servers ask for code; remove it.")
    code = sorted(path.name for path in found.path.glob("*.py"))
    if code:
        yield ExportDefect("auto_map", f"The folder has code, {', '.join(code)}, which no server needs; remove it.")


def _check_tables(found: _Folder) -> Iterator[ExportDefect]:
    rows, tied = found.config.get("vocab_size"), found.config.get("tie_word_embeddings")
    if found.model is None:
        return
    if not isinstance(tied, bool):
        yield ExportDefect(
            "tied", "`tie_word_embeddings` is not in config.json, at the top; readers have different defaults for it."
        )
    table, output = _table_names(found.model)
    for name in [table] if output is None else [table, output]:
        if name in found.tensors and found.tensors[name][1][0] != rows:
            yield ExportDefect(
                "vocab_size",
                f"`vocab_size` in config.json is {rows}, but `{name}` has {found.tensors[name][1][0]} rows, and vLLM"
                " refuses that; export the model again.",
            )
    if output is None or not found.tensors:
        return
    if tied and output in found.tensors:
        yield ExportDefect(
            "tied",
            f"`tie_word_embeddings` is true, but the file has `{output}`: some servers use it and some do not. Export"
            " the model again.",
        )
    if tied is False and output not in found.tensors:
        yield ExportDefect(
            "tied",
            f"`tie_word_embeddings` is false, but the file has no `{output}`: servers would start with random numbers"
            " there, or fail. Export the model again.",
        )


def _table_names(model: Any) -> tuple[str, str | None]:
    # Names of the tables of words that are read and written.
    modules = {id(module): name for name, module in model.named_modules()}
    output = model.get_output_embeddings()
    table = f"{modules[id(model.get_input_embeddings())]}.weight"
    return table, None if output is None else f"{modules[id(output)]}.weight"


def _check_tensors(found: _Folder) -> Iterator[ExportDefect]:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if (found.path / "adapter_config.json").exists() or any(found.path.glob("adapter_model.*")):
        yield ExportDefect("adapter", "The folder has an adapter beside the weights; merge it and export again.")
    foreign = sorted(name for name in found.tensors if any(part in name for part in _FOREIGN))
    missing: list[str] = []
    if found.model is not None and found.tensors:
        expected = {name: tuple(weight.shape) for name, weight in found.model.state_dict().items()}
        tables = set(_table_names(found.model)) - {None}
        # Some models are saved under other names than they have in memory.
        if get_checkpoint_conversion_mapping(found.config.get("model_type")) is None:
            foreign = sorted({*foreign, *(found.tensors.keys() - expected.keys())})
            missing = sorted(expected.keys() - found.tensors.keys() - tables)
            missing += [name for name in _table_names(found.model)[:1] if name not in found.tensors]
        for name, shape in expected.items():
            has = found.tensors.get(name, ("", shape))[1]
            if has != shape and not (name in tables and has[1:] == shape[1:]):
                yield ExportDefect("shapes", f"`{name}` has the shape {has}, but config.json says {shape}.")
    if foreign:
        yield ExportDefect(
            "extra_tensors",
            f"The file has {len(foreign)} tensors that the model has not, such as `{foreign[0]}`: of an adapter, a"
            " codec or a wrapper. vLLM refuses them; export the merged model again.",
        )
    if missing and not any(defect.name == "weights" for defect in found.broken):
        yield ExportDefect("missing_tensors", f"The file lacks {len(missing)} tensors, such as `{missing[0]}`.")
    kinds = sorted({kind for kind, _ in found.tensors.values()})
    if len(kinds) > 1:
        yield ExportDefect("dtype", f"The weights have several types, {', '.join(kinds)}; export them in one.")


def _check_vocabulary(found: _Folder) -> Iterator[ExportDefect]:
    rows, ids = found.config.get("vocab_size"), set(found.names.values())
    if not ids:
        return
    if isinstance(rows, int) and max(ids) >= rows:
        yield ExportDefect(
            "tokenizer_ids",
            f"The tokenizer has ids up to {max(ids)}, but the model has {rows} rows; llama.cpp's converter stops at"
            " that, and servers fail at such ids.",
        )
    holes = max(ids) + 1 - len(ids)
    if holes:
        first = next(number for number in range(max(ids) + 1) if number not in ids)
        yield ExportDefect("tokenizer_holes", f"{holes} ids of the tokenizer have no names; the first one is {first}.")
    if "chat_template" not in found.tokenizer_config and not (found.path / "chat_template.jinja").is_file():
        yield ExportDefect("template", "There is no chat_template.jinja, without which servers refuse conversations.")


def _check_reading(found: _Folder) -> Iterator[ExportDefect]:
    # `AutoTokenizer` has classes of its own for some types of models, whatever the files say.
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    from speech_tokenizers.modeling.checked_loading import quiet_report

    if found.speech is None or any(defect.name in ("config", "tokenizer") for defect in found.broken):
        return
    phones = "".join(found.speech.phone_names()[:3])
    text = found.speech.prompt.replace("{text}", _SENTENCE).replace("{phones}", phones)
    text += "".join(found.speech.unit_names()[-2:])
    try:
        with quiet_report():
            tokenizer = AutoTokenizer.from_pretrained(found.path, local_files_only=True)
            read = tokenizer.encode(text, add_special_tokens=False)
        written = Tokenizer.from_file(str(found.path / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    except Exception as error:  # noqa: BLE001 - files of other projects fail in all ways
        reason = " ".join(str(error).split())[:300]
        yield ExportDefect("tokenizer", f"The tokenizer cannot be loaded ({reason}).")
        return
    if read != written:
        yield ExportDefect(
            "tokenizer_class",
            f"`AutoTokenizer` makes a {type(tokenizer).__name__} of the files, which reads texts otherwise than"
            f" tokenizer.json says: models of the type {found.config.get('model_type')!r} need a vocabulary of that"
            " class. Train on another type of model, or with the base's own vocabulary.",
        )


def _check_ends(found: _Folder) -> Iterator[ExportDefect]:
    end = found.config.get("eos_token_id")
    if found.config and (not isinstance(end, int) or isinstance(end, bool)):
        yield ExportDefect(
            "config_eos",
            f"`eos_token_id` at the top of config.json is {end!r}, but must be one number: lists and what is nested in"
            " a part are not read everywhere, and speech would not end.",
        )
    if found.speech is None or not found.generation:
        return
    ends = found.generation.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    missing = [number for number in found.speech.stop_token_ids if number not in ends]
    if missing:
        yield ExportDefect(
            "generation_eos",
            f"`eos_token_id` in generation_config.json is {ends}, but lacks {missing}, at which servers are to stop.",
        )


def _check_units(found: _Folder) -> Iterator[ExportDefect]:
    speech = found.speech
    if speech is None or not found.names:
        return
    units = speech.unit_names()
    there = [name for name in units if name in found.added]
    special = [name for name in there if found.added[name].get("special")]
    if special:
        yield ExportDefect(
            "units_special",
            f"{len(special)} codes, such as {special[0]}, are special tokens: servers would leave them out.",
        )
    normalized = [name for name in there if found.added[name].get("normalized")]
    if normalized:
        yield ExportDefect(
            "units_normalized",
            f"{len(normalized)} codes, such as {normalized[0]}, are normalized, so that their names may not be found"
            " in a text.",
        )
    expected = dict(zip(units, range(speech.audio_offset, speech.speech_ids.audio_stop), strict=True))
    pieces = speech.phone_names()
    expected |= dict(zip(pieces, range(speech.piece_offset, speech.piece_offset + len(pieces)), strict=True))
    expected |= {AUDIO_START: speech.audio_start_token_id, AUDIO_END: speech.audio_end_token_id}
    wrong = [name for name, number in expected.items() if found.names.get(name) != number]
    if wrong:
        yield ExportDefect(
            "unit_names",
            f"{len(wrong)} names are not at the ids that {SPEECH_FILE} says; the first one, {wrong[0]}, should have"
            f" {expected[wrong[0]]}, but has {found.names.get(wrong[0], 'none')}.",
        )


def _check_speech(found: _Folder) -> Iterator[ExportDefect]:
    speech, rows = found.speech, found.config.get("vocab_size")
    if speech is None:
        return
    if isinstance(rows, int) and speech.speech_ids.audio_stop > rows:
        yield ExportDefect(
            "speech_json",
            f"{SPEECH_FILE} says that codes have the ids {speech.audio_offset} to {speech.speech_ids.audio_stop - 1},"
            f" but the model has {rows} rows.",
        )
    named = sum(UNIT_NAME.fullmatch(name) is not None for name in found.added)
    if found.added and named != len(speech.unit_names()):
        yield ExportDefect(
            "speech_json",
            f"{SPEECH_FILE} says {speech.num_codebooks} codebooks of {speech.codebook_size} codes, but the tokenizer"
            f" names {named} codes.",
        )
    for name, text in ((GRAMMAR_FILE, speech_grammar(speech)), (REGEX_FILE, speech_regex(speech) + "\n")):
        path = found.path / name
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            yield ExportDefect("grammar", f"{name} is missing, or not that of {SPEECH_FILE}; export the model again.")


def _check_codec_is_elsewhere(found: _Folder) -> Iterator[ExportDefect]:
    inside = [name for name in _CODEC_FILES if (found.path / name).exists()]
    if inside:
        yield ExportDefect(
            "codec",
            f"The folder has {', '.join(inside)}, of a codec or of our processor, which servers would try to load;"
            " remove it.",
        )


def _codec_defects(speech: ServedSpeech, codec: Any) -> Iterator[ExportDefect]:
    sizes = (codec.codebook_size, codec.sampling_rate)
    if sizes != (speech.codebook_size, speech.sampling_rate) or codec.num_quantizers < speech.num_codebooks:
        yield ExportDefect("speech_json", f"{SPEECH_FILE} tells of a codec of another size than this one.")
    elif codec.fingerprint() != speech.codec_fingerprint:
        yield ExportDefect(
            "speech_json",
            f"{SPEECH_FILE} names the codec {speech.codec_name!r} of fingerprint {speech.codec_fingerprint}, but this"
            f" codec has {codec.fingerprint()}: the codes would mean other sounds.",
        )


_CHECKS: list[Callable[[_Folder], Iterator[ExportDefect]]] = [
    _check_architecture,
    _check_tables,
    _check_tensors,
    _check_vocabulary,
    _check_reading,
    _check_ends,
    _check_units,
    _check_speech,
    _check_codec_is_elsewhere,
]


__all__ = ["ExportDefect", "check_export"]
