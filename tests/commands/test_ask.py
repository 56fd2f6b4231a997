# SPDX-License-Identifier: Apache-2.0
"""`ask` answers what a model has learnt about recordings, and tells what it cannot answer."""

import json

import numpy as np
import pytest
import soundfile

from helpers.tiny_listening_lm import listening_lm, save_with_codec
from helpers.tiny_speaking_lm import tiny_codec, tiny_lm, tiny_speech_lm
from speech_tokenizers.cli import main
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.speech_lm_clips import encode_waveforms
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.processing.audio_files import load_audio
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


ANSWERS = {"a": ("calm", "size: large"), "b": ("angry", "drink: tea")}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with `a.wav`, a tone, and `b.wav`, noise."""
    folder = tmp_path_factory.mktemp("recordings")
    soundfile.write(folder / "a.wav", 0.5 * np.sin(np.arange(320) / 6), 1600)
    soundfile.write(folder / "b.wav", 0.5 * np.random.default_rng(0).uniform(-1, 1, 480), 1600)
    return folder


@pytest.fixture(scope="module")
def model(recordings, tmp_path_factory):
    """A model that knows the emotion and the slots of both, and the labels of emotions."""
    codec = tiny_codec()
    rows = []
    for name, (emotion, slots) in ANSWERS.items():
        waveform = load_audio(recordings / f"{name}.wav", 800)
        (codes,) = encode_waveforms(codec, RVQCodecFeatureExtractor(sampling_rate=800), [waveform])
        row = {"id": name, "audio_codes": codes.flatten().tolist(), "num_quantizers": 2, "num_frames": codes.shape[1]}
        row |= {"codec_fingerprint": codec.fingerprint(), "emotion": emotion, "slots": slots}
        rows += [("emotion", row), ("slots", row)]
    labels = {"emotion": ["angry", "calm", "sad"]}
    found = listening_lm(rows, tasks=["emotion", "slots", "keyword"], task_labels=labels)
    return save_with_codec(*found, tmp_path_factory.mktemp("model"))


def ask(capsys, *arguments):
    code = main(["ask", *map(str, arguments), "--device", "cpu"])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err


def test_one_of_a_set_is_chosen_with_probabilities(model, recordings, capsys):
    code, lines, _ = ask(capsys, recordings, "--task", "emotion", "--model", model)
    assert (code, lines) == (0, [f"{recordings}/a.wav: calm", f"{recordings}/b.wav: angry"])
    code, lines, _ = ask(capsys, recordings / "a.wav", "--task", "emotion", "--model", model, "--probabilities")
    assert code == 0
    assert lines[0].startswith(f"{recordings}/a.wav: calm (calm ")
    options = ("--task", "emotion", "--model", model, "--json", "--probabilities", "--answers", "sad", "angry")
    code, lines, _ = ask(capsys, recordings / "b.wav", *options)
    found = json.loads(lines[0])
    assert (code, found["answer"], list(found["probabilities"])) == (0, "angry", ["sad", "angry"])
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert found["probabilities"]["angry"] > 0.9


def test_answers_are_written_freely(model, recordings, capsys):
    code, lines, _ = ask(capsys, recordings, "--task", "slots", "--model", model)
    assert (code, lines) == (0, [f"{recordings}/a.wav: size: large", f"{recordings}/b.wav: drink: tea"])
    code, lines, errors = ask(capsys, recordings / "a.wav", "--task", "slots", "--model", model, "--json",
                              "--max-new-tokens", "4")  # fmt: skip
    assert code == 1
    assert json.loads(lines[0]) == {
        "file_name": f"{recordings}/a.wav", "task": "slots", "answer": "size", "ended": False,
    }  # fmt: skip
    assert "the answer did not end by itself and was cut" in errors


def test_answers_to_choose_from_are_read_from_a_file(model, recordings, tmp_path, capsys):
    (tmp_path / "sizes.txt").write_text("size: large\n\ndrink: tea\n", encoding="utf-8")
    options = ("--task", "slots", "--model", model, "--answers", f"@{tmp_path / 'sizes.txt'}")
    code, lines, _ = ask(capsys, recordings, *options)
    assert (code, lines) == (0, [f"{recordings}/a.wav: size: large", f"{recordings}/b.wav: drink: tea"])


def test_a_broken_file_is_told_and_the_others_are_answered(model, recordings, tmp_path, capsys):
    (tmp_path / "a.wav").write_bytes((recordings / "a.wav").read_bytes())
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "empty.wav").write_bytes(b"")
    code, lines, errors = ask(capsys, tmp_path, "--task", "emotion", "--model", model)
    assert (code, lines) == (1, [f"{tmp_path}/a.wav: calm"])
    assert f"failed: {tmp_path}/broken.wav" in errors
    assert f"failed: {tmp_path}/empty.wav" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "asr"], "never learnt the task 'asr'; it knows emotion, slots, keyword"),
        (["--task", "mood"], "no task 'mood' that is about a recording; choose one of keyword, slots, emotion"),
        (["--task", "tts"], "no task 'tts' that is about a recording"),
        (["--task", "keyword"], "one of a set of labels, which the model does not say; name them (`--answers`)"),
        (["--task", "emotion", "--answers", "calm", "calm"], "must be different and not empty"),
        (["--task", "emotion", "--answers", "@none.txt"], "none.txt"),
        (["--task", "emotion", "--max-new-tokens", "3"], "--max-new-tokens is for free answers"),
        (["--task", "slots", "--probabilities"], "--probabilities are those of answers to choose from"),
    ],
)
def test_what_cannot_be_asked_is_told(model, recordings, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    code, lines, errors = ask(capsys, recordings, "--model", model, *options)
    assert (code, lines) == (2, [])
    assert message in errors


def test_what_is_not_there_is_told(model, tmp_path, capsys):
    code, _, errors = ask(capsys, tmp_path / "none.wav", "--model", model, "--task", "emotion")
    assert code == 2
    assert "none.wav" in errors


@pytest.mark.parametrize("fields", [{"layout": "flat"}, {"layout": "delay"}, {"layout": "continuous"}])
def test_every_task_is_answered_freely_by_a_model_that_knows_nothing(fields, recordings, tmp_path, capsys):
    """Of random weights: each answer is that of the waveform, and whether it was cut is told."""
    model, processor = tiny_speech_lm(**fields)
    for parameter in model.parameters():
        parameter.data *= 4  # so that answers differ
    folder = save_with_codec(model, processor, tmp_path / "model")
    said = set()
    for task in ("asr", "phones", "slots", "translate"):
        code, lines, errors = ask(capsys, recordings, "--task", task, "--model", folder, "--json",
                                  "--max-new-tokens", 6)  # fmt: skip
        found = [json.loads(line) for line in lines]
        assert code == int(not all(line["ended"] for line in found))
        assert errors.count("was cut") == sum(not line["ended"] for line in found)
        for name, line in zip("ab", found, strict=True):
            inputs = processor.task_inputs(task, audio=load_audio(recordings / f"{name}.wav", 800))
            expected = model.answer(inputs, processor, max_new_tokens=6)
            assert (line["answer"], line["ended"]) == (expected.texts[0], bool(expected.ended[0]))
            said.add(line["answer"])
    assert len(said) > 1


def test_a_model_that_hears_features_is_asked_too(recordings, tmp_path, capsys):
    codec = tiny_codec()
    extractor = RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate)
    made = SpeechLMProcessor.from_tokenizer(build_speech_vocabulary(), codec, extractor, audio_in="embeds")
    lm = tiny_lm(vocab_size=made.audio_offset)
    model = SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, made).eval()
    folder = save_with_codec(model, made, tmp_path / "model")
    for task in ("asr", "phones", "slots", "translate"):
        _, lines, _ = ask(capsys, recordings, "--task", task, "--model", folder, "--max-new-tokens", 3)
        assert [line.partition(": ")[0] for line in lines] == [f"{recordings}/a.wav", f"{recordings}/b.wav"]
