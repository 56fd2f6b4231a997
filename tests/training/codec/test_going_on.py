# SPDX-License-Identifier: Apache-2.0
"""The run of a codec goes on with what it was begun with, from the newest sound checkpoint, or says what differs."""

import os
import shutil

import pytest
import torch

from speech_tokenizers.cli import main
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe


LATEST = "resume_from_checkpoint=latest"


@pytest.fixture
def speech(tmp_path, audio_folder):
    """A copy of the recordings, to change."""
    return shutil.copytree(audio_folder, tmp_path / "speech")


@pytest.fixture
def recipe(recipe_file, speech):
    path = recipe_file(max_steps=4, save_steps=2)
    text = path.read_text(encoding="utf-8")
    lines = [f"  train: {speech}" if line.startswith("  train:") else line for line in text.splitlines()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("optimizer.learning_rate=0.01", "`optimizer.learning_rate` was 0.001 and is 0.01"),
        ("loss_weights.mel=1.0", "`loss_weights.mel` was 15.0 and is 1.0"),
        ("seed=4", "`seed` was 3 and is 4"),
        ("data.segment_seconds=0.2", "`data.segment_seconds` was 0.1 and is 0.2"),
        ("weight_ema_decay=null", "`weight_ema_decay` was 0.9 and is None"),
    ],
)
def test_another_setting_is_refused_by_its_name(recipe, capsys, override, difference):
    assert main(["train", recipe]) == 0
    assert main(["train", recipe, LATEST, override]) == 2
    line = last_line(capsys)
    assert difference in line
    assert f"give `allow_changes=[{override.partition('=')[0]}]`" in line


def test_other_recordings_under_the_same_names_are_refused(recipe, speech, write_audio, capsys):
    assert main(["train", recipe]) == 0
    write_audio(speech / "3.wav", seconds=0.4)
    assert main(["train", recipe, LATEST]) == 2
    assert "`data.train`: recordings 1 ('3.wav') with other audio under the same name" in last_line(capsys)


@pytest.mark.parametrize(("change", "word"), [("add", "added"), ("remove", "removed")])
def test_recordings_that_came_or_went_are_refused(recipe, speech, write_audio, capsys, change, word):
    assert main(["train", recipe]) == 0
    if change == "add":
        write_audio(speech / "9.wav", seconds=0.4)
    else:
        (speech / "3.wav").unlink()
    assert main(["train", recipe, LATEST]) == 2
    assert word in last_line(capsys)


def test_a_moved_run_and_moved_recordings_go_on(recipe, speech, tmp_path):
    assert main(["train", recipe]) == 0
    for folder in (speech, tmp_path / "run"):
        shutil.move(folder, f"{folder} moved")
    places = [f"data.train={speech} moved", f"output_dir={tmp_path / 'run'} moved"]
    assert train_from_recipe(recipe, [LATEST, "max_steps=6", *places]).step == 6


def test_a_run_that_begins_anew_counts_no_checkpoint_of_an_earlier_one(recipe, tmp_path, capsys):
    """Its own would have been deleted as the oldest, and the earlier run's been gone on from."""
    assert main(["train", recipe]) == 0
    assert main(["train", recipe, "seed=4", "max_steps=3", "save_steps=1"]) == 0
    assert (
        "its checkpoints are now earlier-checkpoint-00000002, earlier-checkpoint-00000004" in capsys.readouterr().out
    )
    assert {path.name for path in (tmp_path / "run").glob("*checkpoint*")} == {
        *("earlier-checkpoint-00000002", "earlier-checkpoint-00000004"),
        *("checkpoint-00000002", "checkpoint-00000003"),
    }
    assert main(["train", recipe, LATEST]) == 2
    assert "`seed` was 4 and is 3" in last_line(capsys)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("codec.safetensors", "cut"),
        ("codec.safetensors", "zeros"),
        ("discriminator.safetensors", "missing"),
        ("optimization.pt", "zeros"),
        ("process_0.pt", "cut"),
        ("trainer_state.json", "cut"),
    ],
)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(recipe, tmp_path, capsys, name, damage):
    trainer = train_from_recipe(recipe, ["adversarial.start_step=1"])
    expected = trainer.unwrapped_model.state_dict()
    path = tmp_path / "run" / "checkpoint-00000004" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else bytes(len(content)))
    trainer = train_from_recipe(recipe, [LATEST, "adversarial.start_step=1"])
    error = capsys.readouterr().err
    assert f"checkpoint-00000004: {name} is " in error
    assert "going on from checkpoint-00000002" in error
    assert trainer.step == 4
    for key, value in trainer.unwrapped_model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_damaged_checkpoint_that_is_named_is_refused(recipe, tmp_path, capsys):
    assert main(["train", recipe]) == 0
    folder = tmp_path / "run" / "checkpoint-00000004"
    (folder / "optimization.pt").write_bytes(b"")
    assert main(["train", recipe, f"resume_from_checkpoint={folder}"]) == 2
    line = last_line(capsys)
    assert "whose optimization.pt is empty" in line
    assert "`latest` for the newest sound one" in line


def test_a_run_without_a_sound_checkpoint_says_what_to_do(recipe, tmp_path, capsys):
    assert main(["train", recipe]) == 0
    for path in (tmp_path / "run").glob("checkpoint-*/trainer_state.json"):
        path.write_text("{}")
        path.with_name("checksums.json").unlink()  # as older versions wrote none
    assert main(["train", recipe, LATEST]) == 2
    line = last_line(capsys)
    assert "trainer_state.json lacks global_batch_size" in line
    assert "delete these folders to begin anew" in line


def test_what_is_no_file_of_tensors_is_not_run(recipe, tmp_path, capsys):
    assert main(["train", recipe]) == 0
    checkpoint = tmp_path / "run" / "checkpoint-00000004"
    torch.save({"codec_optimizer": os.system}, checkpoint / "optimization.pt")
    (checkpoint / "checksums.json").unlink()  # by which it is known for another file
    assert main(["train", recipe, LATEST]) == 2
    assert "optimization.pt is damaged, or no file of tensors" in last_line(capsys)


def test_a_checkpoint_whose_weights_changed_is_passed_over(recipe, tmp_path, capsys):
    assert main(["train", recipe]) == 0
    (weights,) = (tmp_path / "run" / "checkpoint-00000004").glob("codec.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    assert main(["train", recipe, LATEST]) == 0
    assert "codec.safetensors is damaged (it has other bytes than were written)" in capsys.readouterr().err
