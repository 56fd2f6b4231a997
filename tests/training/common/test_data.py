# SPDX-License-Identifier: Apache-2.0
"""The recordings of a recipe: what is listed, filtered and cannot be read."""

import json

import pytest

from speech_tokenizers.training.common.data import RecordingsArguments, decode_part


def test_recordings_that_cannot_be_read_are_named(audio_folder, tmp_path, capsys):
    rows = [{"file_name": f"{index}.wav"} for index in (0, 1, 9)]
    (tmp_path / "list.txt").write_text("0.wav\n1.wav\n9.wav\n")
    (tmp_path / "data").mkdir()
    for index in (0, 1):
        (tmp_path / "data" / f"{index}.wav").write_bytes((audio_folder / f"{index}.wav").read_bytes())
    (tmp_path / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = RecordingsArguments(train=str(tmp_path / "data"), train_files=str(tmp_path / "list.txt"))
    assert decode_part(args, "train", 16000, tmp_path / "cache").names == ["0.wav", "1.wav"]
    (line,) = (tmp_path / "cache" / "train.rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "9.wav"
    assert "1 cannot be read" in capsys.readouterr().err


def test_a_recipe_that_lists_recordings_that_do_not_exist_is_refused(audio_folder, tmp_path):
    (tmp_path / "list.txt").write_text("0.wav\n9.wav\n")
    args = RecordingsArguments(train=str(audio_folder), train_files=str(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match="list.txt: 1 of 2 names are not in .*, first '9.wav'"):
        decode_part(args, "train", 16000, tmp_path / "cache")


def test_a_filter_of_a_recipe_compares_texts(audio_folder, tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,split\n0.wav,0\n1.wav,1\n")
    for index in (0, 1):
        (tmp_path / f"{index}.wav").write_bytes((audio_folder / f"{index}.wav").read_bytes())
    args = RecordingsArguments(train=str(tmp_path), train_filter={"split": 0})
    assert decode_part(args, "train", 16000, tmp_path / "cache").names == ["0.wav"]
