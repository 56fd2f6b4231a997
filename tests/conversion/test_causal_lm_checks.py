# SPDX-License-Identifier: Apache-2.0
"""`check_export` finds each defect: a good folder has none, and a folder with one mutation has that defect."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny_speaking_lm import tiny_codec, tiny_speech_lm
from speech_tokenizers import check_export, export_causal_lm


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[bool, Path]:
    """Good folders with a tied and an untied table."""
    folder = tmp_path_factory.mktemp("good")
    return {tied: export_causal_lm(*tiny_speech_lm(tied=tied), folder / f"tied-{tied}") for tied in (True, False)}


def edit(path: Path, change: Any) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def config(**changes: Any):
    """A change of config.json; `None` removes a field."""

    def mutate(folder: Path) -> None:
        def change(fields: dict) -> None:
            fields.update(changes)
            for name in [name for name, value in changes.items() if value is None]:
                del fields[name]

        edit(folder / "config.json", change)

    return mutate


def speech(**changes: Any):
    return lambda folder: edit(folder / "speech.json", lambda fields: fields.update(changes))


def units(**changes: Any):
    """A change of the words of codes in tokenizer.json."""

    def change(fields: dict) -> None:
        for entry in fields["added_tokens"]:
            if entry["content"].startswith("<a"):
                entry.update(changes)

    return lambda folder: edit(folder / "tokenizer.json", change)


def added_tokens(change: Any):
    return lambda folder: edit(folder / "tokenizer.json", lambda fields: change(fields["added_tokens"]))


def swap(entries: list[dict]) -> None:
    entries[-1]["content"], entries[-2]["content"] = entries[-2]["content"], entries[-1]["content"]


def leave_a_hole(entries: list[dict]) -> None:
    entries[-1]["id"] += 1


def tensors(change: Any):
    """A change of the weights."""

    def mutate(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return mutate


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def lengthen(folder: Path) -> None:
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"more")


def claim_a_long_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str):
    def mutate(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return mutate


def generation(ends: Any):
    return lambda folder: edit(folder / "generation_config.json", lambda fields: fields.update(eos_token_id=ends))


def first_layer(weights: dict) -> str:
    return next(name for name in weights if "layers.0" in name)


TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Name of the defect, whether the good folder is tied, and what is done to it.
MUTATIONS = {
    "another class": ("architectures", True, config(architectures=["Qwen2ForCausalLM"])),
    "our class": ("architectures", True, config(architectures=["SpeechLMForConditionalGeneration"])),
    "no class": ("architectures", True, config(architectures=None)),
    "two classes": ("architectures", True, config(architectures=["LlamaForCausalLM"] * 2)),
    "our type": ("model_type", True, config(model_type="speech_tokenizers_speech_lm")),
    "no config": ("config", True, remove("config.json")),
    "a broken config": ("config", True, write("config.json", "{")),
    "auto_map": ("auto_map", True, config(auto_map={"AutoModel": "modeling_x.X"})),
    "code": ("auto_map", True, write("modeling_x.py", "")),
    "fewer rows in the config": ("vocab_size", True, config(vocab_size=100)),
    "more rows in the config": ("vocab_size", False, config(vocab_size=192)),
    "more rows in the table": (
        "vocab_size",
        True,
        tensors(lambda weights: weights.update({TABLE: weights[TABLE].repeat(2, 1)})),
    ),
    "more rows in the head": (
        "vocab_size",
        False,
        tensors(lambda weights: weights.update({HEAD: weights[HEAD].repeat(2, 1)})),
    ),
    "ids behind the rows": ("tokenizer_ids", True, config(vocab_size=60)),
    "a hole": ("tokenizer_holes", True, added_tokens(leave_a_hole)),
    "a word left out": ("tokenizer_holes", True, added_tokens(lambda entries: entries.pop(5))),
    "tied, with a head": (
        "tied",
        True,
        tensors(lambda weights: weights.update({HEAD: weights[TABLE].clone()})),
    ),
    "untied, without a head": ("tied", False, tensors(lambda weights: weights.pop(HEAD))),
    "called untied": ("tied", True, config(tie_word_embeddings=False)),
    "called tied": ("tied", False, config(tie_word_embeddings=True)),
    "not called anything": ("tied", True, config(tie_word_embeddings=None)),
    "the base's end alone": ("generation_eos", True, generation(2)),
    "the end of audio alone": ("generation_eos", True, generation([44])),
    "no end": ("generation_eos", True, generation(None)),
    "no generation config": ("generation_eos", True, remove("generation_config.json")),
    "a list of ends": ("config_eos", True, config(eos_token_id=[2, 44])),
    "no end at the top": ("config_eos", True, config(eos_token_id=None, text_config={"eos_token_id": 2})),
    "special codes": ("units_special", True, units(special=True)),
    "normalized codes": ("units_normalized", True, units(normalized=True)),
    "codes that changed places": ("unit_names", True, added_tokens(swap)),
    "codes of another name": ("unit_names", True, units(content="<|x|>")),
    "no tokenizer": ("tokenizer", True, remove("tokenizer.json")),
    "a tokenizer that cannot be built": (
        "tokenizer",
        True,
        lambda folder: edit(folder / "tokenizer.json", lambda fields: fields.update(normalizer={"type": "None"})),
    ),
    "another class of tokenizer": ("tokenizer_class", True, config(model_type="qwen2")),
    "an adapter's tensor": (
        "extra_tensors",
        True,
        tensors(lambda weights: weights.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)})),
    ),
    "a buffer of ours": ("extra_tensors", True, tensors(lambda weights: weights.update(latent_mean=torch.zeros(3)))),
    "a codec's tensor": (
        "extra_tensors",
        True,
        tensors(lambda weights: weights.update({"codec.quantizer.codebook": torch.zeros(3)})),
    ),
    "the wrapper's names": (
        "extra_tensors",
        True,
        tensors(lambda weights: weights.update({f"language_model.{TABLE}": weights.pop(TABLE)})),
    ),
    "a tensor less": ("missing_tensors", True, tensors(lambda weights: weights.pop(first_layer(weights)))),
    "a tensor of another shape": (
        "shapes",
        True,
        tensors(lambda weights: weights.update({"model.norm.weight": torch.zeros(5)})),
    ),
    "an adapter": ("adapter", True, write("adapter_config.json", "{}")),
    "two types": (
        "dtype",
        True,
        tensors(lambda weights: weights.update({"model.norm.weight": weights["model.norm.weight"].half()})),
    ),
    "no template": ("template", True, remove("chat_template.jinja")),
    "no speech.json": ("speech_json", True, remove("speech.json")),
    "another offset": ("unit_names", True, speech(audio_offset=47)),
    "an offset behind the rows": ("speech_json", True, speech(audio_offset=1000)),
    "codebooks that are not there": ("speech_json", True, speech(num_codebooks=1)),
    "another size of codebooks": ("speech_json", True, speech(codebook_size=15)),
    "no fingerprint": ("speech_json", True, speech(codec_fingerprint="")),
    "another end of audio": ("unit_names", True, speech(audio_end_token_id=45, stop_token_ids=[2, 44, 45])),
    "codes on other words": ("speech_json", True, speech(audio_offset=40)),
    "a delay layout": ("speech_json", True, speech(layout="delay")),
    "a grammar of another model": ("grammar", True, write("grammar.gbnf", 'root ::= "a"\n')),
    "no regex": ("grammar", True, remove("regex.txt")),
    "a file that was cut": ("weights", True, cut),
    "a file with something behind": ("weights", True, lengthen),
    "a broken header": ("weights", True, claim_a_long_header),
    "no weights": ("weights", True, remove("model.safetensors")),
    "a shard that is not there": (
        "weights",
        True,
        write("model.safetensors.index.json", '{"weight_map": {"x": "model-00001-of-00001.safetensors"}}'),
    ),
    "a codec": ("codec", True, write("codec/config.json", "{}")),
    "a feature extractor": ("codec", True, write("preprocessor_config.json", "{}")),
}


@pytest.mark.parametrize("tied", [True, False])
def test_a_good_folder_has_no_defect(good, tied):
    assert check_export(good[tied]) == []
    assert check_export(good[tied], tiny_codec()) == []


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_each_defect_is_found(good, tmp_path, mutation):
    name, tied, mutate = MUTATIONS[mutation]
    folder = tmp_path / "voice"
    shutil.copytree(good[tied], folder)
    mutate(folder)
    defects = check_export(folder)
    assert name in {defect.name for defect in defects}, defects
    for defect in defects:
        assert str(defect) == f"{defect.name}: {defect.message}"
        assert len(defect.message) > 20


def test_another_codec_is_found(good):
    other = tiny_codec()
    other.quantizer.quantizers[0].codebook.data.mul_(-1)
    (defect,) = check_export(good[True], other)
    assert defect.name == "speech_json"
    assert "other sounds" in defect.message
    (defect,) = check_export(good[True], tiny_codec(num_quantizers=1))
    assert "another size" in defect.message


def test_weights_in_several_files_are_read_together(good, tmp_path):
    shutil.copytree(good[True], tmp_path / "voice")
    weights = load_file(tmp_path / "voice" / "model.safetensors")
    (tmp_path / "voice" / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:4], "model-00002-of-00002.safetensors": names[4:]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, tmp_path / "voice" / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "voice" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert check_export(tmp_path / "voice") == []


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match="export-lm"):
        check_export(tmp_path / "nowhere")
