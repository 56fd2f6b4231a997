# SPDX-License-Identifier: Apache-2.0
"""A name that stands for no model is told at once, offline and where no network is."""

import time

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from speech_tokenizers import find_checkpoint, load
from speech_tokenizers.cli import main
from speech_tokenizers.modeling import model_names
from speech_tokenizers.modeling.model_names import find_model


MISSING = "no such file or folder, nor a repository of that name"
NAMES = [
    *("model_cards/nam", "./nam", "../nam", "~/nam/x", "~nobody/nam", "/no/such/folder", "a/b/c", "nam", "nam/"),
    *("with space/name", "-x/y", "käse/brot", "a//b", "a\\b", "org/name.safetensors", "x" * 300, "a/" + "b" * 300),
    *("a/b\0c", "a\0b", "\n", "org/name\n"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_mistyped_path_is_no_such_file_nor_a_repository(name):
    for road in (find_checkpoint, load, find_model):
        with pytest.raises(ValueError, match=MISSING):
            road(name)


@pytest.mark.parametrize("name", ["model_cards/nam", "nam", "./nam"])
@pytest.mark.parametrize("command", ["encode", "reconstruct", "units", "info"])
def test_every_command_says_so_and_exits_with_2(tmp_path, write_audio, capsys, name, command):
    recording = str(write_audio(tmp_path / "a.wav", 0.1))
    arguments = [command, name] if command == "info" else [command, recording, "--model", name]
    if command != "info":
        arguments += ["-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no such file or folder" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit-units", "nosuch/dir", "IN", "-o", "OUT"],
        ["evaluate", "nosuch/dir", "--data", "IN", "-o", "OUT"],
        ["evaluate", "units", "nosuch/dir", "--data", "IN", "-o", "OUT"],
        ["evaluate", "retention", "nosuch/dir", "--data", "IN", "-o", "OUT"],
        ["benchmark", "--model", "nosuch/dir", "-o", "OUT"],
        ["card", "nosuch/dir"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_long_work_does_not_begin_for_a_model_that_does_not_exist(tmp_path, write_audio, capsys, arguments):
    (tmp_path / "in").mkdir()
    write_audio(tmp_path / "in" / "a.wav", 0.1)
    places = {"IN": str(tmp_path / "in"), "OUT": str(tmp_path / "out")}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    assert "is 'nosuch/dir', but there is no such file or folder" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.fixture
def online(monkeypatch):
    """Ask the Hub as if there were a network."""
    monkeypatch.setattr(model_names, "is_offline_mode", lambda: False)


def test_a_hub_that_is_not_reached_is_asked_once_and_not_for_long(online, monkeypatch):
    asked = []

    def refuse(api, name, timeout, **kwargs):
        asked.append((name, timeout))
        raise OSError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    begin = time.perf_counter()
    with pytest.raises(
        ValueError, match=rf"{MISSING} among those downloaded, and the Hub cannot be reached \(Name or"
    ):
        load("model_cards/nam")
    assert [name for name, _ in asked] == ["model_cards/nam"]
    assert asked[0][1] <= 10
    assert time.perf_counter() - begin < 10


def test_a_repository_that_the_hub_does_not_have_is_refused(online, monkeypatch):
    def absent(api, name, **kwargs):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(HfApi, "model_info", absent)
    with pytest.raises(ValueError, match=f"{MISSING} on the Hub"):
        load("org/name")


def test_a_repository_that_the_hub_has_keeps_its_name(online, monkeypatch):
    monkeypatch.setattr(HfApi, "model_info", lambda api, name, **kwargs: object())
    assert find_checkpoint("org/name") == "org/name"


def test_a_downloaded_copy_is_used_where_the_hub_is_not_reached(online, monkeypatch, tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("0" * 40)

    def unreachable(api, name, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    assert find_model("org/name", cache_dir=tmp_path) == str(snapshot)
    monkeypatch.setattr(model_names, "is_offline_mode", lambda: True)
    assert find_model("org/name", cache_dir=tmp_path) == "org/name"


def test_a_slip_of_the_keyboard_is_answered_by_the_name_nearby(tmp_path, monkeypatch):
    (tmp_path / "models" / "codec-v2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="did you mean models/codec-v2"):
        find_model("models/codec-v3")
    with pytest.raises(ValueError, match="did you mean rvq-codec-16khz-4kbps"):
        find_checkpoint("rvq-codec-16khz-4kbs")


def test_a_home_folder_is_found_and_a_file_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_model("~/model") == str(tmp_path / "model")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a file; name the folder"):
        find_model(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is empty"):
        find_model("")
