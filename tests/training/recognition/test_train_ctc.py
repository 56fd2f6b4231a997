# SPDX-License-Identifier: Apache-2.0
"""What `train-ctc` refuses, and when."""

import json
import shutil

import pytest
import torch
from transformers import HubertModel, TrainingArguments, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.processing.recordings import load_recordings
from speech_tokenizers.processing.word_alignment import load_word_aligner
from speech_tokenizers.training.recognition import ctc_finetuning, ctc_training


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HubertModel(tiny_hubert(conv_dim=(8,) * 7)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


def write_rows(folder, *rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS = [
    {"file_name": f"{number}.wav", "text": f"{letter} be", "speaker": "ab"[number % 2]}
    for number, letter in enumerate("abcdef")
]


@pytest.fixture
def speech(tmp_path, audio_folder):
    folder = shutil.copytree(audio_folder, tmp_path / "speech")
    write_rows(folder, *ROWS)
    return folder


@pytest.fixture
def train(encoder, speech, tmp_path):
    """Function: run `train-ctc` with further options, and return its exit code."""

    def run(*options, output="out"):
        command = ["train-ctc", str(encoder), str(speech), "-o", str(tmp_path / output), "--epochs", "1"]
        return main([*command, *options])

    return run


def test_an_output_that_exists_is_kept_unless_it_is_to_be_replaced(train, tmp_path, capsys):
    assert train() == 0
    (tmp_path / "out" / "old.txt").write_text("of the old one")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert train("--layer", "1") == 2
    assert "exists; pass --overwrite to replace it" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert train("--layer", "1", "--overwrite") == 0
    assert not (tmp_path / "out" / "old.txt").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layer"] == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_failed_training_leaves_the_old_recogniser(train, tmp_path, monkeypatch):
    assert train() == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(ctc_training, "train_on_states", lambda *_: [][0])
    with pytest.raises(IndexError):
        train("--overwrite")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("output", ["speech", "speech/0.wav"])
def test_what_is_no_recogniser_is_never_replaced(train, speech, output, capsys):
    assert train("--overwrite", output=output) == 2
    assert "choose another" in capsys.readouterr().err.splitlines()[-1]
    assert (speech / "0.wav").is_file()


def test_the_encoder_is_not_replaced_by_its_recogniser(encoder, speech, capsys):
    assert main(["train-ctc", str(encoder), str(speech), "-o", str(encoder), "--overwrite"]) == 2
    assert "holds the encoder" in capsys.readouterr().err.splitlines()[-1]


def test_a_recogniser_is_not_replaced_by_a_fine_tuned_one(train, encoder, speech, tmp_path, capsys):
    assert train() == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    command = ["finetune-ctc", str(encoder), str(speech), "-o", str(tmp_path / "out")]
    for resume in ([], ["--resume"]):
        assert main([*command, *resume]) == 2
        assert "holds a model and no checkpoint" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


COMMANDS = {
    "train-ctc": ["--epochs", "1"],
    "finetune-ctc": ["--max-steps", "1", "--batch-seconds", "1", "--mask-feature-length", "2"],
}


@pytest.fixture(params=COMMANDS)
def learn(request, encoder, speech, tmp_path):
    """Function: run either command with further options, and return its exit code."""

    def run(*options):
        command = [request.param, str(encoder), str(speech), "-o", str(tmp_path / "out"), *COMMANDS[request.param]]
        return main([*command, *options])

    return run


def set_aside(folder):
    path = folder / "rejected.jsonl"
    return [json.loads(line)["name"] for line in path.read_text().splitlines()] if path.is_file() else []


def test_what_is_measured_on_is_not_learnt_from(learn, speech, tmp_path, capsys):
    # Of the speaker who is measured on alone; a vocabulary of training texts has no such letter.
    write_rows(speech, *(row | {"text": "z"} if row["speaker"] == "a" else row for row in ROWS))
    assert learn("--eval-filter", "speaker=a") == 0
    output = capsys.readouterr()
    assert "left out of training, since they are measured on: 3 of 6 recordings (first '0.wav')" in output.err
    assert "character error rate: " in output.out
    assert "z" not in json.loads((tmp_path / "out" / "vocab.json").read_text())
    assert set_aside(tmp_path / "out") == []


def test_recordings_that_are_all_measured_on_cannot_be_learnt_from(learn, capsys):
    assert learn("--eval-filter", "speaker=a,b") == 2
    assert "every recording is one to measure on" in capsys.readouterr().err.splitlines()[-1]


def test_an_error_rate_of_the_training_recordings_is_told(learn, capsys):
    assert learn("--filter", "speaker=a", "--eval-filter", "speaker=a") == 0
    assert "3 of 3 recordings to measure on (first '0.wav') are learnt from, too" in capsys.readouterr().err


def test_filters_that_are_apart_need_no_word(learn, capsys):
    assert learn("--filter", "speaker=b", "--eval-filter", "speaker=a") == 0
    assert "measured on" not in capsys.readouterr().err


def test_an_overlap_that_python_code_gives_is_told(encoder, speech, tmp_path, capsys):
    recordings = load_recordings(str(speech))
    args = TrainingArguments(output_dir=str(tmp_path / "out"), num_train_epochs=1, report_to="none", use_cpu=True)
    ctc_training.train_recognizer(str(encoder), recordings, recordings.select([1, 2]), "character", args)
    assert "2 of 2 recordings to measure on (first '1.wav') are learnt from, too" in capsys.readouterr().err


def test_a_text_that_is_a_list_is_named_by_file_and_line(learn, speech, tmp_path, capsys):
    write_rows(speech, *(row | {"text": row["text"].split()} for row in ROWS))
    assert learn("--filter", "file_name=2.wav") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{speech / 'metadata.jsonl'}, line 3: `text` is a list, but must be text; write" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["0.wav", "./0.wav"])
def test_two_rows_of_one_recording_are_refused_by_their_lines(learn, speech, name, capsys):
    write_rows(speech, *ROWS, {"file_name": name, "text": "be", "speaker": "a"})
    assert learn() == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{speech / 'metadata.jsonl'}, line 7: `file_name` {name!r} stands in line 1 too" in line
    assert learn("--filter", "speaker=b") == 0  # they are left out


def test_a_row_to_measure_on_is_not_learnt_from_by_another_row(learn, speech, capsys):
    write_rows(speech, *ROWS, {"file_name": "./1.wav", "text": "be", "speaker": "c"})
    assert learn("--filter", "speaker=a,b", "--eval-filter", "speaker=c") == 0
    assert "1 of 6 recordings (first '1.wav')" in capsys.readouterr().err


def test_a_language_is_kept_with_the_recogniser_and_met_again_in_alignment(learn, speech, tmp_path, capsys):
    write_rows(speech, *(row | {"text": "IŞIK" if index else "ışık"} for index, row in enumerate(ROWS)))
    assert learn("--language", "tr", "--eval-filter", "speaker=a") == 0
    assert {"ı", "ş", "k"} < set(json.loads((tmp_path / "out" / "vocab.json").read_text()))
    assert "i" not in json.loads((tmp_path / "out" / "vocab.json").read_text())
    assert set_aside(tmp_path / "out") == []
    aligner = load_word_aligner(str(tmp_path / "out"))
    assert aligner.labels.language == "tr"
    assert aligner.labels.sequence("IŞIK") == aligner.labels.sequence("ışık")
    align = ["align", str(speech), "--aligner", str(tmp_path / "out"), "-o", str(tmp_path / "words.jsonl")]
    assert main([*align, "--language", "en"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "`language` (--language) is 'en', but" in line
    assert "was trained on texts in 'tr'" in line
    assert main([*align, "--unit", "label"]) == 0
    rows = [json.loads(row) for row in (tmp_path / "words.jsonl").read_text().splitlines()]
    assert {"".join(label["label"] for label in row["labels"]) for row in rows} == {"ışık"}


def test_a_fine_tuning_in_another_language_is_refused(encoder, speech, tmp_path, capsys):
    command = ["finetune-ctc", str(encoder), str(speech), "-o", str(tmp_path / "out"), *COMMANDS["finetune-ctc"]]
    assert main(command) == 0
    assert main([*command, "--resume", "--language", "tr"]) == 2
    assert "`language` was 'en' and is 'tr'" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--layer", ["9", "-1", "third"]),
        ("--kernel-size", ["0", "-1", "2"]),
        ("--epochs", ["nan", "inf", "0", "-1"]),
        ("--batch-size", ["0", "-1"]),
        ("--learning-rate", ["nan", "inf", "0", "-1"]),
        ("--seed", ["-1", "4294967296"]),
    ],
)
def test_an_option_out_of_range_is_named_before_the_work(train, option, values, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ctc_training, "load_to_learn_and_measure", None)
    for value in values:
        assert train(f"{option}={value}") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"speech-tokenizers train-ctc: error: {option}")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--max-steps", ["0", "-1"]),
        ("--batch-seconds", ["nan", "inf", "0", "-1"]),
        ("--learning-rate", ["nan", "inf", "0", "-1"]),
        ("--warmup-steps", ["nan", "inf", "-1"]),
        ("--hold-steps", ["nan", "inf", "-1"]),
        ("--freeze-encoder-steps", ["nan", "inf", "-1"]),
        ("--mask-time-prob", ["nan", "2", "-1"]),
        ("--mask-time-length", ["0"]),
        ("--layerdrop", ["nan", "2"]),
        ("--save-steps", ["0", "-1"]),
        ("--eval-steps", ["0", "-1"]),
        ("--seed", ["-1"]),
    ],
)
def test_an_option_of_fine_tuning_out_of_range_is_named(
    option, values, encoder, speech, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ctc_finetuning, "load_to_learn_and_measure", None)
    for value in values:
        command = ["finetune-ctc", str(encoder), str(speech), "-o", str(tmp_path / "out"), f"{option}={value}"]
        assert main(command) == 2
        assert option in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


def test_python_code_is_told_of_settings_out_of_range_before_the_work(encoder, speech, tmp_path):
    recordings = load_recordings(str(speech))
    for changes, message in (({"num_train_epochs": 0}, "--epochs"), ({"learning_rate": -1.0}, "--learning-rate")):
        args = TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, **changes)
        with pytest.raises(ValueError, match=message):
            ctc_training.train_recognizer(str(encoder), recordings, None, "character", args)
    args = TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="--layer: `layer` must lie between 0 and 2, but got 9"):
        ctc_training.train_recognizer(str(encoder), recordings, None, "character", args, layer=9)
