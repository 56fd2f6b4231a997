# SPDX-License-Identifier: Apache-2.0
"""An exported speech language model is an ordinary one: without this package it says the same ids."""

import dataclasses
import json
import re
import shutil

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2Tokenizer

from helpers.strangers import run_without_this_package
from helpers.tiny_speaking_lm import PHONES, tiny_codec, tiny_lm, tiny_processor, tiny_speech_lm
from helpers.tiny_speech_lm import bpe_tokenizer
from speech_tokenizers import (
    RVQCodecFeatureExtractor,
    SpeechLMForConditionalGeneration,
    SpeechLMProcessor,
    check_export,
    codes_from_ids,
    export_causal_lm,
    read_served_speech,
)
from speech_tokenizers.cli import main
from speech_tokenizers.conversion.speech_grammar import numbers_below, speech_grammar, speech_regex


# Another head_dim than the default, a learnt table of positions, and biases are among them.
KINDS = [(kind, tied) for kind in ("llama", "qwen2", "qwen3", "gpt2") for tied in (True, False)]


def speech_lm_of(kind: str, alignment: str = "none", tied: bool = True):
    """A tiny model and its processor; transformers reads every Qwen2 by the vocabulary of that family."""
    if kind != "qwen2":
        return tiny_speech_lm(kind, alignment, tied=tied)
    learnt = json.loads(bpe_tokenizer().backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=learnt["vocab"], merges=merges, eos_token="<|im_end|>")
    codec = tiny_codec()
    extractor = RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate)
    processor = SpeechLMProcessor.from_tokenizer(tokenizer, codec, extractor, codec_name="tiny-codec")
    lm = tiny_lm(kind, vocab_size=processor.audio_offset, tied=tied)
    return SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, processor), processor


STRANGER = """
    import json
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told = {}
    for folder in map(Path, sys.argv[1:]):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        speech = json.loads((folder / "speech.json").read_text())
        prompt = speech["prompt"].replace("{text}", "hi tim").replace("{phones}", "<|phone:hh|><|phone:ay|>")
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        written = model.generate(ids, do_sample=False, max_new_tokens=24, min_new_tokens=24)
        units = list(range(speech["audio_offset"], len(tokenizer)))
        told[folder.name] = {
            "kind": type(model).__module__,
            "prompt": ids[0].tolist(),
            "written": written[0, ids.shape[1]:].tolist(),
            "units": tokenizer.decode(units, skip_special_tokens=True),
            "again": tokenizer("".join(tokenizer.convert_ids_to_tokens(units)), add_special_tokens=False).input_ids,
            "ends": model.generation_config.eos_token_id,
            "chat": tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False),
            "modules": sorted(name for name in sys.modules if name.startswith("speech_tokenizers")),
        }
    Path("told.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A good folder: phones and two codebooks."""
    model, processor = tiny_speech_lm("llama", "phone")
    return export_causal_lm(model, processor, tmp_path_factory.mktemp("good") / "voice")


def test_it_loads_without_this_package_and_says_the_same_ids(tmp_path):
    expected = {}
    for alignment in ("none", "phone", "word"):
        for kind, tied in KINDS if alignment == "none" else KINDS[:1]:
            model, processor = speech_lm_of(kind, alignment, tied)
            folder = export_causal_lm(model, processor, tmp_path / f"{kind}-{tied}-{alignment}")
            phones = ["hh", "ay"] if alignment == "phone" else None
            ids = processor(text=processor.speech_prompt("hi tim", phones))["input_ids"]
            written = model.generate(ids, do_sample=False, max_new_tokens=24, min_new_tokens=24)
            assert len(set(written[0].tolist())) > 4
            expected[folder.name] = (ids[0].tolist(), written[0, ids.shape[1] :].tolist(), processor)
    run_without_this_package(STRANGER, tmp_path, *(str(tmp_path / name) for name in expected))
    told = json.loads((tmp_path / "told.json").read_text())
    assert told.keys() == expected.keys()
    for name, (prompt, written, processor) in expected.items():
        found, ids = told[name], processor.speech_ids
        assert found["kind"].startswith("transformers.models.")
        assert found["modules"] == []
        assert found["prompt"] == prompt
        assert found["written"] == written
        units = [f"<a{q}_{code}>" for q in range(2) for code in range(16)]
        assert found["units"].replace(" ", "") == "".join(units)  # not left out as special tokens
        assert found["again"] == list(range(ids.audio_offset, ids.audio_stop))
        assert found["ends"][0] == processor.tokenizer.eos_token_id
        assert found["ends"][-1] == ids.audio_end
        assert "hi" in found["chat"]


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_the_models_in_one_type(tmp_path, tied):
    model, processor = speech_lm_of("qwen2", tied=tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = export_causal_lm(model, processor, tmp_path / "half", dtype="bfloat16")
    weights = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in weights) is not tied
    for name, weight in weights.items():
        assert torch.equal(weight, before[f"language_model.{name}"].bfloat16()), name
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is tied
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert not {"auto_map", "text_config", "audio_offset"} & config.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.dtype == torch.float32


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path):
    model, processor = tiny_speech_lm()
    model.get_input_embeddings().weight.data[3, 3] = 1e6
    with pytest.raises(ValueError, match="too large for torch.float16"):
        export_causal_lm(model, processor, tmp_path / "voice", dtype="float16")
    assert not (tmp_path / "voice").exists()
    with pytest.raises(ValueError, match="`dtype` must be float32"):
        export_causal_lm(model, processor, tmp_path / "voice", dtype="int8")


def test_a_delay_model_is_refused_with_what_to_do(tmp_path):
    model, processor = tiny_speech_lm()
    model.config.layout = "delay"
    with pytest.raises(ValueError, match="layout 'delay', with heads of its own .* `generate_speech`"):
        export_causal_lm(model, processor, tmp_path / "voice")


def test_a_model_of_runs_is_refused(tmp_path):
    model, processor = tiny_speech_lm()
    model.config.unit_coding = "runs"
    with pytest.raises(ValueError, match="runs of units .* Train one with `unit_coding: frames`"):
        export_causal_lm(model, processor, tmp_path / "served")


def test_an_adapter_that_is_not_merged_is_refused(tmp_path):
    model, processor = tiny_speech_lm()
    attention = model.language_model.model.layers[0].self_attn
    # A class of PEFT, as it stands where an adapter was put.
    adapted = type("Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    attention.q_proj = adapted(32, 32, bias=False)
    with pytest.raises(ValueError, match="adapter that is not merged.*merge_and_unload"):
        export_causal_lm(model, processor, tmp_path / "voice")


def test_an_adapter_of_peft_is_exported_once_it_is_merged(tmp_path):
    peft = pytest.importorskip("peft")
    model, processor = tiny_speech_lm()
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    with pytest.raises(ValueError, match="merge_and_unload"):
        export_causal_lm(adapted, processor, tmp_path / "voice")
    merged = adapted.merge_and_unload()
    weights = load_file(export_causal_lm(merged, processor, tmp_path / "voice") / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(weights[name], merged.language_model.state_dict()[name])


def test_a_vocabulary_that_transformers_would_read_otherwise_is_refused(tmp_path):
    # Single characters, lower-cased: `AutoTokenizer` makes a Qwen2Tokenizer of it, which would lose some of them.
    model, processor = tiny_speech_lm("qwen2")
    with pytest.raises(ValueError, match="tokenizer_class: .* a Qwen2Tokenizer"):
        export_causal_lm(model, processor, tmp_path / "voice")
    assert not (tmp_path / "voice").exists()


def test_a_folder_with_files_in_it_is_left_alone(tmp_path):
    model, processor = tiny_speech_lm()
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        export_causal_lm(model, processor, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_processor_of_another_model_is_refused(tmp_path):
    model, _ = tiny_speech_lm()
    other = tiny_processor(tiny_codec(), num_codebooks=1)
    with pytest.raises(ValueError, match="do not belong together"):
        export_causal_lm(model, other, tmp_path / "voice")


def test_what_lies_beside_says_what_the_model_knows(exported):
    speech = read_served_speech(exported)
    assert (speech.num_codebooks, speech.codebook_size, speech.codec_name) == (2, 16, "tiny-codec")
    assert speech.codec_fingerprint == tiny_codec().fingerprint()
    assert speech.piece_labels == PHONES
    readme = (exported / "README.md").read_text()
    assert f"```\n{speech.prompt}\n```" in readme
    assert ", ".join(map(str, speech.stop_token_ids)) in readme
    assert (exported / "pronunciations.txt.gz").is_file()
    assert check_export(exported, tiny_codec()) == []


# --- Grammars ---


def test_numbers_are_matched_without_leading_zeros():
    for stop in (1, 2, 9, 10, 11, 16, 99, 100, 101, 320, 512, 1000, 1024, 2048):
        pattern = "|".join("".join(f"[{low}-{high}]" for low, high in digits) for digits in numbers_below(stop))
        matched = {number for number in range(12000) if re.fullmatch(pattern, str(number))}
        assert matched == set(range(stop))
        assert not re.fullmatch(pattern, "00")
        assert not re.fullmatch(pattern, "01")


def as_regex(grammar: str) -> str:
    """A grammar of llama.cpp whose rules do not call themselves, as a regular expression."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())

    def expand(body: str) -> str:
        parts = re.findall(r'"(?:\\.|[^"\\])*"|\[[^\]]*\]|[a-z][a-z0-9]*|\S', body)
        return "".join(
            re.escape(json.loads(part)) if part[0] == '"' else f"(?:{expand(rules[part])})" if part in rules else part
            for part in (f"{part}" for part in parts)
        )

    return expand(rules["root"].replace('"<|audio_end|>"?', '("<|audio_end|>")?'))


@pytest.mark.parametrize("alignment", ["none", "phone", "word"])
@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_grammars_allow_whole_frames_alone(alignment, num_codebooks, tmp_path):
    model, processor = tiny_speech_lm("llama", alignment, num_codebooks=num_codebooks)
    speech = read_served_speech(export_causal_lm(model, processor, tmp_path / "voice"))
    frame = "".join(f"<a{q}_15>" for q in range(num_codebooks))
    good = [frame, frame * 3, f"{frame}<|audio_end|>"]
    bad = ["", "<|audio_end|>", f"{frame}<|audio_end|>{frame}", frame.replace("15", "16"), frame.replace("15", "01")]
    bad += [f"{frame}<a{num_codebooks}_0>", f"{frame}<|audio_start|>", f"{frame[:-1]}"]
    if num_codebooks == 2:
        bad += ["<a0_1>", "<a1_1><a0_1>", f"{frame}<a0_1>", f"{frame}<a0_1><|audio_end|>", "<a0_1><a0_1>"]
    piece = {"none": None, "phone": "<|phone:hh|>", "word": " hello"}[alignment]
    if piece is None:
        bad += [f"<|phone:hh|>{frame}", f" hello{frame}"]
    else:
        good += [piece + frame * 2 + piece + frame + "<|audio_end|>"]
        bad += [piece, frame + piece, frame + piece + "<|audio_end|>"]
        if num_codebooks == 2:
            bad += [f"<a0_1>{piece}<a1_1>"]
    if alignment == "phone":
        bad += [f"<|phone:zz|>{frame}"]
    for pattern in (speech_regex(speech), as_regex(speech_grammar(speech))):
        assert all(re.fullmatch(pattern, text) for text in good)
        assert not [text for text in bad if re.fullmatch(pattern, text)]


def test_grammars_know_codebooks_of_their_own_sizes(tmp_path):
    model, processor = tiny_speech_lm("llama", "none", num_codebooks=2)
    plain = read_served_speech(export_causal_lm(model, processor, tmp_path / "voice"))
    assert plain.codebook_sizes is None
    assert "codebook_sizes" not in (tmp_path / "voice/speech.json").read_text(encoding="utf-8")
    dataclasses.replace(plain, codebook_sizes=[16, 5]).save(tmp_path / "speech.json")
    speech = read_served_speech(tmp_path / "speech.json")
    assert speech.speech_ids.sizes == (16, 5)
    for pattern in (speech_regex(speech), as_regex(speech_grammar(speech))):
        for second in range(16):
            assert bool(re.fullmatch(pattern, f"<a0_15><a1_{second}>")) == (second < 5)
    with pytest.raises(ValueError, match="codebook_sizes"):
        dataclasses.replace(plain, codebook_sizes=[16])


# --- Answers ---


def test_ids_and_text_give_the_same_codes_as_the_processor(exported):
    speech = read_served_speech(exported)
    ids = speech.speech_ids
    codes = torch.randint(16, (2, 5), generator=torch.Generator().manual_seed(0))
    frames = [[ids.audio_offset + int(a), ids.audio_offset + 16 + int(b)] for a, b in codes.T]
    answer = [ids.piece_offset, *frames[0], *frames[1], ids.piece_offset + 1, *frames[2], *frames[3], *frames[4]]
    names = dict(zip(range(ids.audio_offset, ids.audio_stop), speech.unit_names(), strict=True))
    names |= {ids.audio_start: "<|audio_start|>", ids.audio_end: "<|audio_end|>"}

    def text(numbers):
        return " ".join(names.get(number, "<|phone:hh|> words") for number in numbers)

    for sent, dropped in (
        (answer, 0),
        ([*answer, ids.audio_end, 2], 0),
        ([*answer, ids.audio_end, *frames[0], frames[1][0]], 3),  # behind the end nothing is speech
        ([*answer, frames[0][0]], 1),  # cut by a limit
        ([frames[0][1], *answer], 1),  # the second codebook out of turn
        ([ids.audio_start, *frames[0], ids.audio_end, ids.audio_start, *answer], 0),  # a prompt with a clip
    ):
        for form in (sent, text(sent)):
            found, num_dropped = codes_from_ids(form, speech)
            assert found.tolist() == codes.tolist()
            assert num_dropped == dropped
    for nothing in ([], "", [1, 2, ids.audio_end], "hello <|audio_end|>"):
        assert codes_from_ids(nothing, speech)[0].shape == (2, 0)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ("<a0_1><a1_16>", ValueError, "<a1_16>, but the model has 2 codebooks of 16 codes"),
        ("<a2_0>", ValueError, "<a2_0>"),
        ([1.5], TypeError, "whole numbers"),
        ([True], TypeError, "whole numbers"),
        ([[1, 2]], TypeError, "one answer at a time"),
        ([-1], ValueError, "negative"),
    ],
)
def test_answers_of_other_models_are_refused(exported, answer, error, message):
    with pytest.raises(error, match=message):
        codes_from_ids(answer, read_served_speech(exported))


# --- Commands ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model beside its codec, and the folder of an export that the command wrote."""
    folder = tmp_path_factory.mktemp("saved")
    model, processor = tiny_speech_lm()
    codec = tiny_codec()
    for part, place in ((model, "model"), (processor, "model"), (codec, "codec")):
        part.save_pretrained(folder / place)
    processor.feature_extractor.save_pretrained(folder / "codec")
    assert main(["export-lm", str(folder / "model"), "-o", str(folder / "voice")]) == 0
    return folder


def test_answers_become_audio(saved, tmp_path, capsys):
    speech = read_served_speech(saved / "voice")
    codes = torch.randint(16, (2, 30), generator=torch.Generator().manual_seed(1))
    ids = [speech.audio_offset + 16 * q + int(codes[q, t]) for t in range(30) for q in range(2)]
    (tmp_path / "a.json").write_text(json.dumps([*ids, ids[0], speech.audio_end_token_id]))
    (tmp_path / "b.txt").write_text("".join(f"<a{q}_{int(codes[q, t])}>" for t in range(30) for q in range(2)))
    expected = tiny_codec().decode(codes[None]).audio_values[0, 0].clamp(-1, 1)
    for name in ("a.json", "b.txt"):
        command = ["decode", str(tmp_path / name), "--speech", str(saved / "voice" / "speech.json")]
        assert (
            main([*command, "--model", str(saved / "codec"), "--device", "cpu", "-o", str(tmp_path / "out.wav")]) == 0
        )
        told = capsys.readouterr().err
        assert told.count("1 codes are in no whole frame") == (name == "a.json")
        audio, sampling_rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
        audio = torch.from_numpy(audio)
        assert sampling_rate == speech.sampling_rate
        assert audio.shape == expected.shape
        assert (audio - expected).abs().max() < 1e-3
        (tmp_path / "out.wav").unlink()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{}", "must hold a list of ids or a text"),
        ("a.json", "[1, 2", "is no JSON"),
        ("a.json", "[1, 2, 3]", "has no whole frame of 2 codes"),
        ("a.txt", "hello", "has no whole frame of 2 codes"),
    ],
)
def test_answers_without_speech_are_refused(saved, tmp_path, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    command = ["decode", str(tmp_path / name), "--speech", str(saved / "voice"), "--model", str(saved / "codec")]
    assert main([*command, "--device", "cpu", "-o", str(tmp_path / "out.wav")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()


def test_the_command_finds_defects(saved, tmp_path, capsys):
    assert main(["export-lm", "--check", str(saved / "voice")]) == 0
    assert "no defect" in capsys.readouterr().out
    shutil.copytree(saved / "voice", tmp_path / "voice")
    (tmp_path / "voice" / "chat_template.jinja").unlink()
    assert main(["export-lm", "--check", str(tmp_path / "voice")]) == 1
    assert capsys.readouterr().out.startswith("template: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "name a MODEL and an --output folder"),
        (["-o", "OUT"], "name a MODEL and an --output folder"),
        (["MODEL", "-o", "OUT", "--codec", "x"], "--codec belongs to --check"),
        (["MODEL", "--check", "OUT"], "leave out MODEL"),
        (["--check", "NOWHERE"], "is no folder"),
        (["MODEL", "-o", "MODEL"], "not empty"),
        (["ADAPTER", "-o", "OUT"], "adapter that is not merged"),
    ],
)
def test_wrong_usage_is_told(saved, tmp_path, capsys, arguments, message):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    places = {"MODEL": saved / "model", "OUT": tmp_path / "out", "NOWHERE": tmp_path / "nowhere"}
    places["ADAPTER"] = tmp_path / "adapter"
    assert main(["export-lm", *(str(places.get(argument, argument)) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
