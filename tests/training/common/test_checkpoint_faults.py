# SPDX-License-Identifier: Apache-2.0
"""What a full disk does to a checkpoint is found in every file, and the run goes on from the one before."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from speech_tokenizers.training.common.checkpoint_faults import (
    NoSoundCheckpoint,
    checkpoint_fault,
    newest_sound,
    write_checksums,
)


REQUIRED = ["trainer_state.json", "optimizer.pt", "*model*.safetensors"]


@pytest.fixture
def checkpoints(tmp_path):
    """Three checkpoints, oldest first."""
    folders = [tmp_path / f"checkpoint-{step}" for step in (2, 4, 6)]
    for folder in folders:
        folder.mkdir()
        save_file({"weight": torch.arange(1000.0)}, folder / "model.safetensors")
        torch.save({"moments": torch.arange(1000.0)}, folder / "optimizer.pt")
        torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": [1.0] * 50}))
    return folders


def fault(folder):
    return checkpoint_fault(folder, REQUIRED)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


def zero_middle(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, zero, empty])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(checkpoints, name, damage, capsys):
    damage(checkpoints[-1] / name)
    assert newest_sound(checkpoints, fault) == checkpoints[1]
    told = capsys.readouterr().err
    assert f"checkpoint-6: {name} is " in told
    assert "going on from checkpoint-4" in told
    # It no longer takes a place among those that are kept, and nothing of it is lost.
    assert not checkpoints[-1].exists()
    assert len(list((checkpoints[-1].parent / "damaged-checkpoint-6").iterdir())) == 4


def test_bytes_that_a_crash_left_zero_are_found_in_a_file_of_tensors(checkpoints):
    zero_middle(checkpoints[-1] / "optimizer.pt")
    assert "optimizer.pt is damaged" in fault(checkpoints[-1])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_missing_file_is_named(checkpoints, name):
    (checkpoints[-1] / name).unlink()
    assert "is missing" in fault(checkpoints[-1])


def test_a_missing_shard_is_named(checkpoints):
    folder = checkpoints[-1]
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fault(folder) == "model-00002-of-00002.safetensors is missing"


def test_several_damaged_ones_are_passed_over(checkpoints):
    cut(checkpoints[2] / "optimizer.pt")
    empty(checkpoints[1] / "trainer_state.json")
    assert newest_sound(checkpoints, fault) == checkpoints[0]
    assert sorted(path.name for path in checkpoints[0].parent.iterdir()) == [
        "checkpoint-2",
        "damaged-checkpoint-4",
        "damaged-checkpoint-6",
    ]


def test_where_none_is_sound_it_is_said_what_to_do_and_nothing_is_moved(checkpoints):
    for folder in checkpoints:
        cut(folder / "optimizer.pt")
    with pytest.raises(NoSoundCheckpoint, match="checkpoint-6: optimizer.pt is damaged.*delete these folders"):
        newest_sound(checkpoints, fault)
    assert all(folder.is_dir() for folder in checkpoints)


def test_sound_checkpoints_and_none_are_as_they_are(checkpoints, capsys):
    assert newest_sound(checkpoints, fault) == checkpoints[-1]
    assert newest_sound([], fault) is None
    assert capsys.readouterr().err == ""


def test_a_second_damage_of_one_name_loses_nothing(checkpoints):
    for _ in range(2):
        if not checkpoints[-1].exists():
            shutil.copytree(checkpoints[1], checkpoints[-1])
        empty(checkpoints[-1] / "optimizer.pt")
        newest_sound(checkpoints, fault)
    assert {path.name for path in checkpoints[0].parent.glob("damaged-*")} == {
        "damaged-checkpoint-6",
        "damaged-checkpoint-6-1",
    }


def zero_second_half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


def lack_a_tensor(path):
    save_file({}, path)


@pytest.mark.parametrize("damage", [zero_second_half, lack_a_tensor, zero_middle])
def test_weights_with_other_bytes_than_were_written_are_found(checkpoints, damage):
    write_checksums(checkpoints[-1])
    assert fault(checkpoints[-1]) is None
    damage(checkpoints[-1] / "model.safetensors")
    assert "model.safetensors is damaged (it has " in fault(checkpoints[-1])


def test_weights_that_are_not_finite_are_found_without_checksums(checkpoints):
    save_file({"weight": torch.tensor([1.0, float("nan")])}, checkpoints[-1] / "model.safetensors")
    assert fault(checkpoints[-1]) == "model.safetensors has numbers that are not finite in `weight`"


@pytest.mark.parametrize("name", ["config.json", "trainer_state.json", "checksums.json"])
def test_json_of_another_shape_is_a_fault(checkpoints, name):
    (checkpoints[-1] / name).write_text("[]")
    assert f"{name} is damaged (it holds list" in fault(checkpoints[-1])
