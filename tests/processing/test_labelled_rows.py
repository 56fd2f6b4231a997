# SPDX-License-Identifier: Apache-2.0
"""A text that is none, and a second row of a recording, are named where they stand."""

import datasets
import pytest

from speech_tokenizers.processing.labelled_rows import check_one_row_each, texts_in
from speech_tokenizers.processing.recordings import load_recordings


def rows_of(**columns):
    return datasets.Dataset.from_dict({"audio": [[0.0]] * len(next(iter(columns.values()))), **columns})


def test_rows_without_metadata_are_named_by_their_numbers():
    with pytest.raises(ValueError, match=r"x.parquet, row 1 \(from 0\), 'b': `text` is a list"):
        texts_in(rows_of(file_name=["a", "b"], text=[None, ["b"]]), "text", "x.parquet")
    with pytest.raises(ValueError, match=r"the recordings, row 0 \(from 0\): `text` is an object"):
        texts_in(rows_of(text=[{"a": "b"}]), "text")
    with pytest.raises(ValueError, match=r"'a.wav' stands in the rows 0 and 2 \(from 0\) of the recordings"):
        check_one_row_each(rows_of(file_name=["a.wav", "b.wav", "./a.wav"]))


def test_equal_names_in_two_folders_are_two_recordings(tmp_path, write_audio):
    for name in "ab":
        write_audio(tmp_path / name / "c0.wav", seconds=0.1)
        (tmp_path / name / "metadata.csv").write_text(f"file_name,text\nc0.wav,{name}\n")
    recordings = load_recordings(str(tmp_path))
    check_one_row_each(recordings, str(tmp_path))
    assert sorted(texts_in(recordings, "text", str(tmp_path))) == ["a", "b"]


def test_the_line_is_that_of_the_row_that_a_filter_kept(tmp_path, write_audio):
    write_audio(tmp_path / "c0.wav", seconds=0.1)
    (tmp_path / "metadata.csv").write_text("file_name,text,take\nc0.wav,a,1\nc0.wav,b,2\nc0.wav,c,2\n")
    with pytest.raises(ValueError, match="line 4: `file_name` 'c0.wav' stands in line 3 too"):
        check_one_row_each(load_recordings(str(tmp_path), {"take": "2"}), str(tmp_path))
    check_one_row_each(load_recordings(str(tmp_path), {"take": "1"}), str(tmp_path))
