# SPDX-License-Identifier: Apache-2.0
"""Clips of an evaluation: their texts are those of the data, as they are written, and no listed one is lost."""

import json

import numpy as np
import pytest
import soundfile

from speech_tokenizers.evaluation.clips import Clip, read_clips, read_transcripts
from speech_tokenizers.evaluation.frame_labels import read_labels


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    for name in ("north/0.wav", "north/1.wav", "south/0.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(100), 16000)
    return folder


def texts(*arguments):
    return {clip.name: clip.text for clip in read_clips(*arguments)}


def test_texts_of_csv_in_folders_are_found(folder):
    (folder / "north" / "metadata.csv").write_text("file_name,text\n0.wav,0\n1.wav,\n")
    expected = {"north/0.wav": "0", "north/1.wav": None, "south/0.wav": None}
    assert texts(folder, None, None, None) == expected
    assert texts(folder, None, [], None) == dict.fromkeys(expected)


@pytest.mark.parametrize("name", ["true.jsonl", "true.csv", "true.tsv"])
@pytest.mark.parametrize("text", ["0", "a\u2028b", "a\u0085b", "a, b", "null"])
def test_a_transcript_is_what_is_written(folder, tmp_path, name, text):
    lines = {
        "true.jsonl": json.dumps({"file_name": "north/0.wav", "text": text}, ensure_ascii=False),
        "true.csv": f'file_name,text\nnorth/0.wav,"{text}"',
        "true.tsv": f"\ufeffnorth/0.wav\t{text}\r",
    }
    (tmp_path / name).write_text(lines[name] + "\n", encoding="utf-8", newline="")
    assert texts(folder, None, [tmp_path / name], None)["north/0.wav"] == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("true.tsv", b"a.wav\tx\nb.wav\t\xe4\n", "true.tsv, line 2: is not UTF-8"),
        ("true.tsv", b"a.wav\tx\nb.wav\tx\na.wav\ty\n", "true.tsv, line 3: `file_name` 'a.wav' stands in line 1 too"),
        ("true.jsonl", b'{"file_name": "a.wav", "text": ["x"]}\n', "true.jsonl, line 1: `text` must be text"),
        ("true.jsonl", b'{"file_name": "a.wav", "txt": "x"}\n', "true.jsonl: has no column `text`"),
        ("true.jsonl", b'{"file_name": "a.wav", "text": "x"}\n{"file_na', "true.jsonl, line 2: .*cut off"),
        ("true.csv", b"file_name,text\na.wav,one, two\n", "true.csv, line 2: the number of cells is 3"),
    ],
)
def test_transcripts_that_cannot_be_read_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_transcripts(tmp_path / name)


def test_listed_clips_that_do_not_exist_are_counted_even_beyond_the_limit(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("north/1.wav\nnorth/2.wav\nnorth/3.wav\n")
    with pytest.raises(ValueError, match="2 of 3 names are no files in .*, first 'north/2.wav'"):
        read_clips(folder, listed, None, 1)
    listed.write_bytes(b"\xef\xbb\xbfnorth/1.wav \r\n\r\nnorth/1.wav\r\nsouth/0.wav")
    assert list(texts(folder, listed, None, None)) == ["north/1.wav", "south/0.wav"]
    listed.write_text("../data/north/0.wav\n")
    with pytest.raises(ValueError, match="leads out of"):
        read_clips(folder, listed, None, None)


def test_labels_of_two_lines_for_one_recording_are_refused(tmp_path):
    line = json.dumps(
        {"file_name": "a\u2028.wav", "labels": [{"label": 1, "start": 0, "end": 0.5}]}, ensure_ascii=False
    )
    (tmp_path / "labels.jsonl").write_text(f"{line}\n", encoding="utf-8")
    ((name, labels),) = read_labels(tmp_path / "labels.jsonl").items()
    assert (name, labels[0].label, labels[0].end) == ("a\u2028.wav", "1", 0.5)
    (tmp_path / "labels.jsonl").write_text(f"{line}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 3: .*stands in an earlier line"):
        read_labels(tmp_path / "labels.jsonl")


def test_speakers_are_found_in_csv(folder):
    from speech_tokenizers.evaluation.retention.comparison import speakers_of

    (folder / "metadata.csv").write_text("file_name,speaker\nnorth/0.wav,0\nnorth/1.wav,7\nsouth/0.wav,0\n")
    clips = [Clip(name, folder / name, "") for name in ("north/0.wav", "north/1.wav", "south/0.wav")]
    assert speakers_of(clips, folder) == [0, 1, 0]
