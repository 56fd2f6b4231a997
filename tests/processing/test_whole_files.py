# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all."""

import errno
import os

import pytest

from speech_tokenizers.processing.audio_files import AudioFileError, AudioWriter
from speech_tokenizers.processing.code_files import CodeFileError, write_code_file
from speech_tokenizers.processing.unit_exports import UnitLine, load_unit_lines, save_unit_lines
from speech_tokenizers.processing.whole_files import WholeFile, beside, whole_folder, write_whole


# As long as file systems allow.
LONG_NAME = 240 * "n" + ".safetensors"


@pytest.fixture
def failing_rename(monkeypatch):
    """Lets every rename fail, as a full or a foreign disk does."""

    def fail(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "replace", fail)


@pytest.mark.parametrize(("content", "written"), [("ä\n", b"\xc3\xa4\n"), (b"\xff\r\n", b"\xff\r\n")])
def test_text_and_bytes_are_written_as_they_are(tmp_path, content, written):
    path = tmp_path / "new" / LONG_NAME
    assert write_whole(path, "older") == path
    write_whole(str(path), content)
    assert path.read_bytes() == written
    assert list(path.parent.iterdir()) == [path]


def test_long_names_can_be_written_by_everything_that_writes_whole_files(tmp_path):
    write_code_file(tmp_path / LONG_NAME, b"codes")
    save_unit_lines(tmp_path / f"{240 * 'u'}.txt", [UnitLine("a", [1, 2], None)])
    assert [line.units.tolist() for line in load_unit_lines(tmp_path / f"{240 * 'u'}.txt")] == [[1, 2]]
    with AudioWriter(tmp_path / f"{240 * 'a'}.wav", 16000) as writer:
        writer.write([0.5, -0.5])
    with whole_folder(tmp_path / (250 * "f")) as folder:
        (folder / "file").touch()
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [244, 244, 250, 252]


@pytest.mark.parametrize("name", [255 * "n", 83 * "語" + "ab.km", 125 * "é" + ".km"])
def test_a_file_beside_one_of_the_longest_name_can_be_written(tmp_path, name):
    path = tmp_path / name
    write_whole(path, "units")
    other = beside(path, ".rejected.jsonl")
    assert len(os.fsencode(other.name)) <= 255
    assert other.name.endswith(".rejected.jsonl")
    assert other.name[:50] == name[:50]
    write_whole(other, "rejected")
    assert beside(path.with_name(name[:-1] + "x"), ".rejected.jsonl") != other
    assert beside(tmp_path / "a.km", ".rejected.jsonl") == tmp_path / "a.km.rejected.jsonl"


def test_a_name_that_is_too_long_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="name too long"):
        WholeFile(tmp_path / (256 * "n"))
    with pytest.raises(AudioFileError, match="its name is too long; choose a shorter one"):
        AudioWriter(tmp_path / f"{252 * 'a'}.wav", 16000)
    assert not list(tmp_path.iterdir())


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "file"
    with WholeFile(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_meet(tmp_path):
    with WholeFile(tmp_path / "file") as first, WholeFile(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"  # which ends last


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_older_file_stays(tmp_path, error):
    path = write_whole(tmp_path / "file", "older")
    with pytest.raises(error), WholeFile(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the ne")
        raise error
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_nothing_behind(tmp_path, failing_rename):
    with pytest.raises(OSError, match="cross-device"):
        write_whole(tmp_path / "file", "new")
    with pytest.raises(CodeFileError, match=r"cannot be written \(Invalid cross-device link\); choose another output"):
        write_code_file(tmp_path / "codes", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_the_permissions_of_new_files(tmp_path):
    (tmp_path / "plain").touch()
    write_whole(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_replaces_an_older_one_at_the_end(tmp_path):
    path = tmp_path / "parent" / "folder"
    for content in ("older", "newer"):
        with whole_folder(path) as folder:
            assert folder.name == "folder"
            (folder / content).touch()
        assert [file.name for file in path.iterdir()] == [content]
    assert list(path.parent.iterdir()) == [path]


def test_after_an_exception_the_older_folder_stays(tmp_path):
    (tmp_path / "folder" / "older").mkdir(parents=True)
    with pytest.raises(ValueError), whole_folder(tmp_path / "folder") as folder:  # noqa: PT012
        (folder / "half").touch()
        raise ValueError
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "folder"):
        pass  # nothing was written that could take its place
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "older"]
