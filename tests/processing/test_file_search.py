# SPDX-License-Identifier: Apache-2.0
import glob
import os

import pytest

from speech_tokenizers import AudioFileError, find_audio_files
from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES, find_files


@pytest.fixture
def tree(tmp_path):
    def make(*names: str, **links: str):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        for name, target in links.items():
            (tmp_path / "data" / name).symlink_to(target)
        return tmp_path / "data"

    return make


def relative(*patterns) -> list[str]:
    return [str(path) for _, path in find_files(patterns, AUDIO_SUFFIXES)]


def test_linked_folders_are_searched(tree):
    data = tree("data/a.wav", "elsewhere/b.wav", "elsewhere/deep/c.flac", linked="../elsewhere")
    assert relative(data) == ["a.wav", "linked/b.wav", "linked/deep/c.flac"]
    assert relative(data / "*") == relative(data)
    assert relative(data / "linked") == ["b.wav", "deep/c.flac"]


def test_a_link_to_a_folder_above_is_followed_once(tree):
    data = tree("data/a.wav", "data/deep/b.wav", "beside/c.wav", loop=".", up="..")
    assert relative(data) == ["a.wav", "deep/b.wav", "up/beside/c.wav"]
    assert sorted(relative(data / "**" / "*.wav")) == sorted(relative(data))
    assert len(find_audio_files([data, data / "deep", data / "up"])) == 3


def test_two_links_to_one_folder_are_searched_once(tree):
    data = tree("data/a.wav", "elsewhere/b.wav", second="../elsewhere", first="../elsewhere")
    assert relative(data) == ["a.wav", "first/b.wav"]
    assert [path.name for path in find_audio_files([data / "first", data / "second", data])] == ["b.wav", "a.wav"]


def test_a_folder_keeps_its_own_name_though_a_link_to_it_comes_first(tree):
    data = tree("data/real/deep/a.wav", a_link="real/deep", b_link="real")
    assert relative(data) == ["real/deep/a.wav"]


def test_links_that_lead_in_circles_end(tree):
    data = tree("data/one/a.wav", "data/two/b.wav", itself="itself")
    for name in "pqrstuvw":
        (data / "one" / name).symlink_to("../two")
        (data / "two" / name).symlink_to("../one")
    assert relative(data) == ["one/a.wav", "two/b.wav"]
    assert relative(data / "**" / "*.wav") == ["one/a.wav", "two/b.wav"]


def test_a_linked_file_is_a_file_of_its_own_and_a_broken_link_is_not_passed_over(tree):
    data = tree("data/a.wav", **{"b.wav": "a.wav", "c.wav": "nowhere.wav"})
    assert relative(data) == ["a.wav", "b.wav", "c.wav"]


@pytest.mark.parametrize("pattern", ["", "*", "**", "**/*.wav", "*.wav", "[a-z]*"])
def test_links_that_lead_to_themselves_are_found_like_other_files(tree, pattern):
    # So that whoever opens them tells of them.
    links = {"self.wav": "self.wav", "p.wav": "q.wav", "q.wav": "p.wav", "lost.wav": "nowhere.wav"}
    data = tree("data/a.wav", "data/b/c.wav", **links)
    (data / "b" / "d.wav").symlink_to("../self.wav")
    names = sorted(str(path.relative_to(data)) for path, _ in find_files([data / pattern], AUDIO_SUFFIXES))
    below = [] if pattern == "*.wav" else ["b/c.wav", "b/d.wav"]
    assert names == ["a.wav", *below, "lost.wav", "p.wav", "q.wav", "self.wav"]


def test_a_folder_that_cannot_be_searched_is_named(tree, monkeypatch):
    data = tree("data/a.wav", "data/secret/b.wav")
    list_folder = os.listdir

    def refuse(folder):
        if os.path.basename(folder) == "secret":
            raise PermissionError(13, "Permission denied")
        return list_folder(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(AudioFileError, match="secret: cannot be searched"):
        relative(data)


@pytest.mark.parametrize(
    "pattern",
    ["*", "**/*.wav", "*/*", "*/**", "**", ".h/*", "b/.*", "[ab]*/*", "**/d/*", "b/?.wav", "**/b-1/*", "B/*"],
)
def test_globs_find_what_glob_finds(tree, pattern):
    names = ["a.wav", "b/c.wav", "b/notes.txt", "b/d/e.wav", ".h/x.wav", "b/.y.wav", "b-1/z.wav"]
    data = tree(*(f"data/{name}" for name in names))
    expected = {name for name in glob.glob(str(data / pattern), recursive=True) if os.path.isfile(name)}
    folders = [name for name in glob.glob(str(data / pattern), recursive=True) if os.path.isdir(name)]
    expected |= {str(path) for folder in folders for path in find_audio_files([folder])}
    if not expected:
        with pytest.raises(AudioFileError, match="no file matches"):
            relative(data / pattern)
        return
    assert {str(path) for path, _ in find_files([data / pattern], AUDIO_SUFFIXES)} == expected
