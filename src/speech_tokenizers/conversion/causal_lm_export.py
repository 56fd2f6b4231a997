# SPDX-License-Identifier: Apache-2.0
"""A flat speech language model as an ordinary causal language model, which servers load without code of ours."""

import copy
import errno
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken

from speech_tokenizers.coding.served_speech import SPEECH_FILE, ServedSpeech
from speech_tokenizers.conversion.causal_lm_checks import check_export
from speech_tokenizers.conversion.causal_lm_readme import export_readme
from speech_tokenizers.conversion.speech_grammar import GRAMMAR_FILE, REGEX_FILE, speech_grammar, speech_regex
from speech_tokenizers.modeling.processing_speech_lm import PRONUNCIATIONS_FILE
from speech_tokenizers.modeling.speech_lm_text import TEMPLATE_VERSION, phone_token
from speech_tokenizers.processing.whole_files import whole_folder, write_whole


def export_causal_lm(
    model: Any, processor: Any, folder: str | os.PathLike[str], dtype: torch.dtype | str | None = None
) -> Path:
    """
    Write a flat speech language model as an ordinary causal language model.

    The folder needs no code of ours: transformers, vLLM, SGLang and llama.cpp's converter know its class by name. Each
    code is a word of the vocabulary, such as `<a0_17>` for code 17 of the first codebook, with the id that it had.
    Beside the model lie what servers ignore: `speech.json`, `grammar.gbnf`, `regex.txt`, and a README with the exact
    prompt. [`check_export`] has looked at the folder before it appears.

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model; it stays as it is. Adapters must be merged.
        processor ([`SpeechLMProcessor`]): The model's processor.
        folder (`str` or `Path`): The folder, new or empty.
        dtype (`torch.dtype` or `str`, *optional*): Type of the weights, such as `"bfloat16"`. Defaults to that of the
            table of words.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If the model is not flat or has an adapter that is not merged, the processor is another one's, the
            base's vocabulary has holes, or a weight is too large for `dtype`.
        OSError: If the folder has files in it, or cannot be written.
    """
    folder = Path(folder)
    _check_model(model, processor)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(errno.EEXIST, "exists and is not empty; name another folder, or remove it", str(folder))
    lm = model.language_model
    dtype = _known_dtype(dtype, lm.get_input_embeddings().weight.dtype)
    speech = _served_speech(model, processor)
    with whole_folder(folder) as new:
        _save_tokenizer(processor, speech, new)
        _save_model(model, processor, dtype, new)
        speech.save(new / SPEECH_FILE)
        write_whole(new / GRAMMAR_FILE, speech_grammar(speech))
        write_whole(new / REGEX_FILE, speech_regex(speech) + "\n")
        write_whole(new / "README.md", export_readme(speech, processor.tokenizer, folder.name))
        if processor.pronouncer is not None:
            processor.pronouncer.save(new / PRONUNCIATIONS_FILE)
        defects = check_export(new)
        if defects:
            told = " ".join(f"{defect.name}: {defect.message}" for defect in defects)
            raise ValueError(f"The model cannot be exported so that servers would load it. {told}")
    return folder


def _check_model(model: Any, processor: Any) -> None:
    layout = getattr(model.config, "layout", None)
    if layout is None:
        raise ValueError(f"A {type(model).__name__} is no speech language model; load one by `load_speech_lm`.")
    if layout != "flat":
        raise ValueError(
            f"The model has the layout {layout!r}, with heads of its own that no server knows, so that it cannot be"
            " exported. Serve it by `generate_speech` of this package, or train one with `layout: flat`."
        )
    if model.config.unit_coding != "frames":
        raise ValueError(
            f"The model writes runs of units (`unit_coding={model.config.unit_coding!r}`), whose durations nobody else"
            " can read, so that it cannot be exported. Train one with `unit_coding: frames`."
        )
    if model.config.piece_context:
        raise ValueError(
            f"The model reads where it is in its text beside the ids (`piece_context={model.config.piece_context}`),"
            " which no server tells it, so that it cannot be exported. Train one with `piece_context: 0`."
        )
    adapters = {name for name, module in model.named_modules() if type(module).__module__.split(".")[0] == "peft"}
    if adapters or type(model).__module__.split(".")[0] == "peft" or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "The model has an adapter that is not merged, which servers would leave out or refuse. Merge it:"
            " `model = peft_model.merge_and_unload()`, and export that."
        )
    lm = model.language_model
    if type(lm).__module__.split(".")[0] != "transformers":
        raise ValueError(f"The language model is a {type(lm).__name__}, which is none of transformers' own classes.")
    processor.check_model(model)


def _known_dtype(dtype: torch.dtype | str | None, default: torch.dtype) -> torch.dtype:
    found = default if dtype is None else dtype
    found = getattr(torch, found, None) if isinstance(found, str) else found
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype` must be float32, float16 or bfloat16, but is {dtype!r}.")
    return found


def _served_speech(model: Any, processor: Any) -> ServedSpeech:
    config = model.config
    if config.text_alignment == "phone":
        label = config.piece_labels[0]
        prompt = processor.speech_prompt("a", [label]).replace(phone_token(label), "{phones}")
    else:
        prompt = processor.speech_prompt("{text}")
    return ServedSpeech(
        codec_name=config.codec_name or "",
        codec_fingerprint=config.codec_fingerprint or "",
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        frame_rate=config.frame_rate,
        sampling_rate=config.sampling_rate,
        audio_offset=config.audio_offset,
        audio_start_token_id=config.audio_start_token_id,
        audio_end_token_id=config.audio_end_token_id,
        stop_token_ids=_stop_token_ids(model, processor),
        prompt=prompt,
        text_alignment=config.text_alignment,
        piece_offset=config.piece_offset,
        piece_labels=list(config.piece_labels),
        template_version=TEMPLATE_VERSION,
        codebook_sizes=config.codebook_sizes,
    )


def _save_tokenizer(processor: Any, speech: ServedSpeech, folder: Path) -> None:
    tokenizer = copy.deepcopy(processor.tokenizer)
    names, first = speech.unit_names(), speech.audio_offset
    known = set(names) & tokenizer.get_vocab().keys()
    if known:
        raise ValueError(
            f"The base's vocabulary has {min(known)!r} already: it is itself an export. Begin with the speech language"
            " model that was exported."
        )
    # Ordinary words, which servers keep in their texts; they would leave special ones out.
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    if tokenizer.convert_tokens_to_ids([names[0], names[-1]]) != [first, first + len(names) - 1]:
        raise ValueError(
            f"The base's vocabulary has ids without names below {first}, where the codes begin, so that the codes"
            " cannot be named. Name those ids, and make the processor and the model anew."
        )
    template = processor.chat_template
    tokenizer.chat_template = template["default"] if isinstance(template, dict) else template
    tokenizer._processor_class = None  # ours, which nobody could load there
    tokenizer.save_pretrained(folder)


def _save_model(model: Any, processor: Any, dtype: torch.dtype, folder: Path) -> None:
    lm = model.language_model
    table, output = lm.get_input_embeddings().weight, lm.get_output_embeddings()
    is_tied = output is not None and output.weight is table
    # A tied table has several names; a file has it under the first.
    copies = {name for name, weight in lm.named_parameters(remove_duplicate=False) if weight is table}
    copies -= {next(name for name, weight in lm.named_parameters() if weight is table)}
    weights = {name: _cast(name, weight, dtype) for name, weight in lm.state_dict().items() if name not in copies}
    lm.save_pretrained(folder, state_dict=weights)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # What readers would take from defaults of their own stands there in full.
    config.update(
        architectures=[type(lm).__name__],
        dtype=str(dtype).removeprefix("torch."),
        eos_token_id=processor.tokenizer.eos_token_id,  # one number; all ends are in generation_config.json
        tie_word_embeddings=is_tied,
        vocab_size=table.shape[0],
    )
    write_whole(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = copy.deepcopy(model.generation_config)
    generation.eos_token_id = _stop_token_ids(model, processor)
    generation._from_model_config = False
    generation.save_pretrained(folder)


def _cast(name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not weight.is_floating_point():
        raise ValueError(f"`{name}` is of the type {weight.dtype}: the model is quantised. Export it before that.")
    cast = weight.detach().to(dtype)
    if bool((cast.isinf() & weight.isfinite()).any()):
        raise ValueError(f"`{name}` has values too large for {dtype}; pass `dtype='bfloat16'`, or 'float32'.")
    return cast.contiguous()


def _stop_token_ids(model: Any, processor: Any) -> list[int]:
    """The ids at which a server is to stop: the end that every answer has, the base's others, the end of audio."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return list(dict.fromkeys([processor.tokenizer.eos_token_id, *ends, model.config.audio_end_token_id]))


__all__ = ["export_causal_lm"]
