# SPDX-License-Identifier: Apache-2.0
"""What `train-ctc` refuses, and when."""

import json
import shutil

import pytest
import torch
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.training.recognition import ctc_training


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
