# SPDX-License-Identifier: Apache-2.0
"""What `say` and `check-labels` refuse, in one line each and before anything is written."""

import numpy as np
import pytest
import soundfile

from helpers.tiny_speaking_lm import tiny_codec, tiny_speech_lm
from speech_tokenizers.cli import main
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    """A saved voice of random weights with its codec."""
    return saved_voice(tmp_path_factory.mktemp("voice"), "phone")


@pytest.fixture(scope="module")
def voice_without_alignment(tmp_path_factory):
    return saved_voice(tmp_path_factory.mktemp("prefix"), "none")


def saved_voice(folder, text_alignment):
    model, processor = tiny_speech_lm(text_alignment=text_alignment)
    model.config.frames_per_character = [3.0, 4.0]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    codec = tiny_codec()
    codec.save_pretrained(folder / "codec")
    RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate).save_pretrained(folder / "codec")
    return folder


def test_each_line_of_a_file_becomes_a_recording(voice, tmp_path):
    (tmp_path / "lines.txt").write_text("hi tim\n\ndie\n", encoding="utf-8")
    command = ["say", f"@{tmp_path / 'lines.txt'}", "-o", str(tmp_path / "out"), "--model", str(voice)]
    assert main(command) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0001.wav", "0002.wav"]
    assert all(len(soundfile.read(path)[0]) > 0 for path in (tmp_path / "out").iterdir())


def test_a_file_of_one_line_becomes_an_audio_file(voice, tmp_path):
    (tmp_path / "line.txt").write_text("hi tim\n", encoding="utf-8")
    assert main(["say", f"@{tmp_path / 'line.txt'}", "-o", str(tmp_path / "a.wav"), "--model", str(voice)]) == 0
    assert len(soundfile.read(tmp_path / "a.wav")[0]) > 0


def test_times_are_refused_where_nobody_knows_them(voice_without_alignment, tmp_path, capsys):
    command = ["say", "hi", "-o", str(tmp_path / "a.wav"), "--model", str(voice_without_alignment), "--times"]
    assert main(command) == 2
    assert "--times needs a model with a `text_alignment`" in capsys.readouterr().err


def test_the_same_seed_says_the_same_and_another_one_does_not(voice, tmp_path):
    said = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        path = tmp_path / f"{name}.wav"
        options = ["--model", str(voice), "--temperature", "1", "--seed", seed]
        assert main(["say", "hi tim", "-o", str(path), *options]) == 0
        said.append(soundfile.read(path)[0])
    assert np.array_equal(said[0], said[1])
    assert len(said[0]) != len(said[2]) or not np.array_equal(said[0], said[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zebra"], "the text: "),
        (["@lines.txt"], "line 3: "),
        (["hi " * 600], "say it in parts"),
        (["@long.txt"], "line 2: The text"),
        (["hi", "--top-k", "3"], "a `temperature` above 0"),
        (["hi", "--top-k", "0"], "--top-k must be at least 1"),
        (["@missing.txt"], "missing.txt"),
    ],
    ids=["unknown word", "unknown word of a file", "too long", "too long in a file", "no draw", "top-k", "no file"],
)
def test_what_cannot_be_said_is_told_and_nothing_is_written(voice, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    lines = tmp_path.with_name(tmp_path.name + "-lines.txt")
    lines.write_text("\n\nzebra\n", encoding="utf-8")
    long = lines.with_name(lines.name + "-long.txt")
    long.write_text("hi\n" + "hi " * 600 + "\n", encoding="utf-8")
    files = {"@lines.txt": f"@{lines}", "@long.txt": f"@{long}"}
    arguments = [files.get(argument, argument) for argument in arguments]
    assert main(["say", *arguments, "-o", "said", "--model", str(voice)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_labels_of_rows_that_are_not_there_are_not_checked(voice, capsys):
    assert main(["check-labels", str(voice), "no-such-rows"]) == 2
    assert "no-such-rows is not there" in capsys.readouterr().err


def test_streamed_speech_is_that_of_one_go(voice, tmp_path, capfd):
    options = ["--model", str(voice), "--temperature", "1", "--seed", "3"]
    assert main(["say", "hi tim", "-o", str(tmp_path / "whole.wav"), *options]) == 0
    assert main(["say", "hi tim", "-o", str(tmp_path / "streamed.wav"), "--stream", *options]) == 0
    told = capfd.readouterr().out
    assert "first audio after" in told
    assert "look-ahead" in told
    whole, streamed = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("whole", "streamed"))
    np.testing.assert_allclose(streamed, whole, atol=1 / 2**15)
    assert main(["say", "hi tim", "-o", "-", "--stream", *options]) == 0
    told = capfd.readouterr()
    assert "first audio after" in told.err
    assert len(told.out) > 0


def test_lines_are_said_into_one_stream_as_they_arrive(voice, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", iter(["hi tim\n", "die\n"]))
    assert main(["say", "-", "-o", str(tmp_path / "a.wav"), "--stream", "--model", str(voice)]) == 0
    assert len(soundfile.read(tmp_path / "a.wav")[0]) > 0
    monkeypatch.setattr("sys.stdin", iter(["hi tim\n", "zebra\n"]))
    assert main(["say", "-", "-o", str(tmp_path / "b.wav"), "--stream", "--model", str(voice)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "-"], "add --stream, or name a file"),
        (["-o", ".", "--stream"], "--stream writes one file"),
        (["-o", "a.wav", "--stream", "--times"], "leave out --stream"),
        (["-o", "a.wav", "--stream", "--retries", "2"], "leave out --stream"),
        (["-o", "a.wav", "--retries", "2"], "--retries need a --temperature above 0"),
        (["-o", "a.wav", "--retries", "-1"], "--retries must be at least 0"),
    ],
    ids=["no stream", "folder", "times", "retries in a stream", "retries without draws", "retries below 0"],
)
def test_outputs_that_cannot_be_streamed_are_told(voice, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["say", "hi", *arguments, "--model", str(voice)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_voice_is_made_and_spoken_in(voice_without_alignment, tmp_path, capsys):
    soundfile.write(tmp_path / "tim.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 3000), 8000)
    model, path = ["--model", str(voice_without_alignment)], tmp_path / "tim.safetensors"
    said = ["say", "hi", "-o", str(tmp_path / "a.wav"), "--temperature", "0", *model]
    making = ["make-voice", str(tmp_path / "tim.wav"), "--text", "tim", "-o", str(path), *model]
    main(said)
    spoken = [(tmp_path / "a.wav").read_bytes()]
    for options in ([], ["--cache"]):
        assert main([*making, *options]) == 0
        main([*said, "--voice", str(path)])
        spoken.append((tmp_path / "a.wav").read_bytes())
    assert spoken[1] == spoken[2] != spoken[0]
    path.write_bytes(path.read_bytes()[:-4])
    assert main([*said, "--voice", str(path)]) == 2
    assert "was cut short" in capsys.readouterr().err
    assert main(["make-voice", str(tmp_path / "tom.wav"), "--text", "tom", "-o", str(path), *model]) == 2
