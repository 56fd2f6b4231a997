# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning goes on with what it was begun with, from the newest sound checkpoint, or says what differs."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.training.recognition import ctc_finetuning


@pytest.fixture
def encoder(tmp_path):
    return save_encoder(tmp_path / "encoder", 0)


def save_encoder(folder, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        HubertModel(tiny_hubert(conv_dim=(8,) * 7)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


@pytest.fixture
def speech(tmp_path, audio_folder):
    folder = shutil.copytree(audio_folder, tmp_path / "speech")
    write_texts(folder)
    return folder


def write_texts(folder, **changed):
    rows = [
        {"file_name": f"{n}.wav", "text": changed.get(f"n{n}", f"{letter} be")} for n, letter in enumerate("abcdef")
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def finetune(encoder, speech, tmp_path):
    """Function: run `finetune-ctc` with further options, and return its exit code."""

    def run(*options, output="out"):
        given = ["--max-steps", "4", "--save-steps", "2", "--batch-seconds", "1", "--mask-feature-length", "2"]
        return main(["finetune-ctc", str(encoder), str(speech), "-o", str(tmp_path / output), *given, *options])

    return run


def test_resuming_with_another_learning_rate_is_refused(finetune, capsys):
    assert finetune() == 0
    assert finetune("--resume", "--learning-rate", "0.01") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "begun with other settings (`learning_rate` was 2e-05 and is 0.01)" in line


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("--seed 1", "seed"),
        ("--layerdrop 0", "layerdrop"),
        ("--mask-time-prob 0.1", "mask_time_prob"),
        ("--gradient-accumulation-steps 2", "gradient_accumulation_steps"),
        ("--unit phone --column text", "unit"),
    ],
)
def test_resuming_with_another_setting_is_refused_by_its_name(finetune, capsys, options, name):
    assert finetune() == 0
    assert finetune("--resume", *options.split()) == 2
    assert f"`{name}` was " in capsys.readouterr().err.splitlines()[-1]


def test_a_longer_fine_tuning_goes_on_with_a_word(finetune, tmp_path, capsys):
    assert finetune() == 0
    assert finetune("--resume", "--max-steps", "6", "--save-steps", "3") == 0
    assert "`max_steps` was 4 and is 6" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 6


def test_resuming_with_other_transcripts_or_recordings_is_refused(finetune, speech, write_audio, capsys):
    assert finetune() == 0
    write_texts(speech, n2="bed")
    assert finetune("--resume") == 2
    assert "`recordings`: `text` has other values for 1 ('2.wav')" in capsys.readouterr().err
    write_texts(speech)
    write_audio(speech / "2.wav", seconds=0.4)
    assert finetune("--resume") == 2
    assert "1 ('2.wav') with other audio under the same name" in capsys.readouterr().err


def test_resuming_from_another_encoder_of_the_same_name_is_refused(finetune, encoder, capsys):
    assert finetune() == 0
    save_encoder(encoder, 1)
    assert finetune("--resume") == 2
    assert "`encoder`: it has other contents" in capsys.readouterr().err


def test_another_vocabulary_is_refused_by_its_letters(finetune, tmp_path, capsys):
    assert finetune() == 0
    path = tmp_path / "out" / "inputs.json"
    inputs = json.loads(path.read_text())
    path.write_text(json.dumps({**inputs, "vocabulary": [*inputs["vocabulary"][:-1], "ß"]}))
    assert finetune("--resume") == 2
    assert "gone 'ß'" in capsys.readouterr().err


def test_moved_recordings_and_a_moved_run_go_on(finetune, encoder, speech, tmp_path, capsys):
    assert finetune() == 0
    for folder in (encoder, speech, tmp_path / "out"):
        shutil.move(folder, f"{folder} moved")
    command = ["finetune-ctc", f"{encoder} moved", f"{speech} moved", "-o", str(tmp_path / "out moved"), "--resume"]
    command += ["--max-steps", "4", "--save-steps", "2", "--batch-seconds", "1", "--mask-feature-length", "2"]
    assert main(command) == 0
    assert "other settings" not in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_is_passed_over(finetune, tmp_path, capsys):
    assert finetune() == 0
    expected = load_file(tmp_path / "out" / "model.safetensors")
    state = tmp_path / "out" / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:200])  # what ended in "Unterminated string"
    assert finetune("--resume") == 0
    error = capsys.readouterr().err
    assert "checkpoint-4: trainer_state.json is damaged" in error
    assert "going on from checkpoint-2" in error
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("left", [[], ["config.json"], ["all but trainer_state.json"]])
@pytest.mark.parametrize("has_sums", [True, False])
def test_a_newest_checkpoint_of_which_files_are_gone_is_named(finetune, tmp_path, capsys, left, has_sums):
    assert finetune() == 0
    checkpoint = tmp_path / "out" / "checkpoint-4"
    for path in checkpoint.iterdir():
        is_kept = path.name in left or left[0:1] == ["all but trainer_state.json"] and path.stem != "trainer_state"
        if not is_kept or not has_sums and path.name == "checksums.json":
            path.unlink()
    assert finetune("--resume") == 0
    error = capsys.readouterr().err
    assert "checkpoint-4: trainer_state.json is missing; going on from checkpoint-2" in error


def test_a_run_whose_only_checkpoint_is_empty_is_not_begun_anew(finetune, tmp_path, capsys):
    (tmp_path / "out" / "checkpoint-4").mkdir(parents=True)
    assert finetune("--resume") == 2
    assert "No checkpoint is sound" in capsys.readouterr().err
    assert finetune() == 2


def test_settings_that_were_deleted_are_those_of_the_checkpoint(finetune, tmp_path, capsys):
    assert finetune() == 0
    settings = tmp_path / "out" / "settings.yaml"
    before = settings.read_text()
    settings.unlink()
    assert finetune("--resume", "--learning-rate", "0.01", "--seed", "1") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "`learning_rate` was 2e-05 and is 0.01" in line
    assert "`seed` was 42 and is 1" in line
    assert not settings.exists()
    assert finetune("--resume") == 0
    assert settings.read_text() == before


def test_recordings_that_were_learnt_are_known_without_their_list(finetune, speech, tmp_path, capsys):
    assert finetune() == 0
    (tmp_path / "out" / "inputs.json").unlink()
    write_texts(speech, n2="bed")
    assert finetune("--resume") == 2
    assert "`recordings`: `text` has other values for 1 ('2.wav')" in capsys.readouterr().err


def test_an_older_checkpoint_without_settings_is_known_by_its_learning_rate(finetune, tmp_path, capsys):
    assert finetune() == 0
    for path in (tmp_path / "out").rglob("settings.yaml"):
        path.unlink()
    for path in (tmp_path / "out").rglob("checksums.json"):
        path.unlink()
    assert finetune("--resume", "--learning-rate", "0.01") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint-4 was trained at the learning rate 2e-05, but `learning_rate` is 0.01; give it" in line
    assert finetune("--resume") == 0
    assert "settings.yaml is missing, so its settings are taken to be these" in capsys.readouterr().err


def test_masks_wider_than_the_encoder_are_refused_before_decoding(finetune, monkeypatch, capsys):
    monkeypatch.setattr(ctc_finetuning, "decode_all", None)
    assert finetune("--mask-feature-length", "17") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--mask-feature-length) is 17, but the encoder has 16 channels" in line


def test_a_recipe_whose_recordings_were_replaced_is_not_taken_for_finished(encoder, speech, tmp_path, capsys):
    contents = {
        "trainer": "ctc",
        "output_dir": str(tmp_path / "run"),
        "encoder": str(encoder),
        "data": {"train": str(speech)},
        "unit": "character",
        "finetuning": {"max_steps": 1, "batch_seconds": 1.0, "mask_feature_length": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(contents))
    assert main(["train", str(path)]) == 0
    write_texts(speech, n2="bed")
    assert main(["train", str(path)]) == 2
    assert "`data.train`: `text` has other values for 1 ('2.wav')" in capsys.readouterr().err


def test_resuming_on_another_column_is_refused_by_its_name(finetune, speech, capsys):
    rows = [{"file_name": f"{n}.wav", "text": f"{a} be", "text2": f"be {a}"} for n, a in enumerate("abcdef")]
    (speech / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finetune("--column", "text") == 0
    assert finetune("--resume", "--column", "text2") == 2
    assert "`column` was 'text' and is 'text2'" in capsys.readouterr().err.splitlines()[-1]
    assert finetune("--resume") == 0  # it is the default


def test_other_transcripts_are_refused_where_the_column_is_not_known(finetune, speech, tmp_path, capsys):
    rows = [{"file_name": f"{n}.wav", "text": f"{a} be", "text2": f"be {a}"} for n, a in enumerate("abcdef")]
    (speech / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finetune() == 0
    path = tmp_path / "out" / "settings.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({name: value for name, value in settings.items() if name != "column"}))
    assert finetune("--resume", "--column", "text2") == 2
    assert "`transcripts`: it has other contents" in capsys.readouterr().err.splitlines()[-1]
