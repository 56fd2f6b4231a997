# SPDX-License-Identifier: Apache-2.0
"""Units go to the files of other toolkits and come back, and damaged files are named."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from speech_tokenizers.processing.unit_exports import (
    UnitFileError,
    UnitLine,
    format_unit_line,
    from_batch_time_codebook,
    load_code_arrays,
    load_km,
    load_manifest,
    load_textless,
    load_unit_lines,
    save_code_arrays,
    save_km,
    save_manifest,
    save_textless,
    save_unit_lines,
    to_batch_time_codebook,
    to_textless,
)
from speech_tokenizers.processing.unit_sequences import deduplicate


def random_codes(seed: int, num_quantizers: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 4, (num_quantizers, int(generator.integers(1, 50))))


def assert_equal(found: UnitLine, expected: UnitLine) -> None:
    assert found.file_name == expected.file_name
    assert np.array_equal(found.units, expected.units)
    assert (found.durations is None) == (expected.durations is None)
    assert expected.durations is None or np.array_equal(found.durations, expected.durations)


def test_the_dictionary_of_textlesslib():
    dense = torch.arange(6.0).reshape(3, 2)
    item = to_textless([7, 9], [2, 1], dense)
    assert [item["units"].tolist(), item["durations"].tolist()] == [[7, 9], [2, 1]]
    assert torch.equal(item["dense"], dense)
    assert to_textless([7, 7])["durations"].tolist() == [1, 1]
    item = to_textless([7, 9], [2, 1], dense, codebook_size=100)
    assert [item["units"].tolist(), item["durations"].tolist()] == [[100, 7, 9, 101], [0, 2, 1, 0]]
    assert item["dense"].tolist() == [[0, 0], [0, 1], [2, 3], [4, 5], [0, 0]]


@pytest.mark.parametrize("codebook_size", [None, 4])
def test_textless_files_come_back(tmp_path, codebook_size):
    for seed in range(5):
        units, durations = deduplicate(random_codes(seed)[0])
        item = to_textless(units, durations, torch.randn(int(durations.sum()), 3), codebook_size)
        save_textless(tmp_path / "folder" / "a.safetensors", item)
        loaded = load_textless(tmp_path / "folder" / "a.safetensors")
        assert loaded.keys() == item.keys()
        assert all(torch.equal(loaded[name], item[name]) for name in item)
        assert loaded["units"].dtype == loaded["durations"].dtype == torch.int64
    assert os.listdir(tmp_path / "folder") == ["a.safetensors"]


def test_km_and_manifest_are_those_of_fairseq(tmp_path):
    save_km(tmp_path / "train.km", [[12, 12, 7], [0], []])
    assert (tmp_path / "train.km").read_text() == "12 12 7\n0\n\n"
    save_manifest(tmp_path / "train.tsv", "/speech", [("a/b.flac", 16000), ("c d.wav", 5)])
    assert (tmp_path / "train.tsv").read_text() == "/speech\na/b.flac\t16000\nc d.wav\t5\n"
    assert load_manifest(tmp_path / "train.tsv") == ("/speech", [("a/b.flac", 16000), ("c d.wav", 5)])
    assert [units.tolist() for units in load_km(tmp_path / "train.km")] == [[12, 12, 7], [0], []]


def test_km_comes_back(tmp_path):
    sequences = [random_codes(seed)[0] for seed in range(20)]
    save_km(tmp_path / "a.km", iter(sequences))
    assert all(map(np.array_equal, load_km(tmp_path / "a.km"), sequences))


def test_a_line_is_that_of_slamkit():
    line = UnitLine("a.wav", np.array([12, 7]))
    assert json.loads(format_unit_line(line)) == {"file_name": "a.wav", "audio_repr": "<Un12><Un7>"}
    line = line._replace(durations=np.array([3, 1]))
    assert json.loads(format_unit_line(line, speaker="x")) == {
        "file_name": "a.wav",
        "audio_repr": "<Un12><Un7>",
        "duration": [3, 1],
        "speaker": "x",
    }


def test_lines_come_back_with_any_number_of_codebooks(tmp_path):
    lines = []
    for seed in range(20):
        codes = random_codes(seed, num_quantizers=1 + seed % 3)
        units, durations = deduplicate(codes if len(codes) > 1 else codes[0])
        lines.append(UnitLine(f"\u97f3/{seed}.wav", units, durations if seed % 2 else None))
    save_unit_lines(tmp_path / "a.jsonl", lines)
    for found, expected in zip(load_unit_lines(tmp_path / "a.jsonl"), lines, strict=True):
        assert_equal(found, expected)


def test_arrays_come_back(tmp_path):
    sequences = [random_codes(seed) for seed in range(6)]
    names = [f"{seed}.wav" for seed in range(6)]
    batch, lengths = to_batch_time_codebook(sequences)
    assert batch.shape == (6, max(lengths), 3)
    assert (batch[0, lengths[0] :] == 0).all()
    assert batch[2, 1].tolist() == sequences[2][:, 1].tolist()
    save_code_arrays(tmp_path / "a.safetensors", names, sequences)
    found_names, found = load_code_arrays(tmp_path / "a.safetensors")
    assert found_names == names
    assert all(map(np.array_equal, found, sequences))
    assert all(map(np.array_equal, from_batch_time_codebook(batch, lengths), sequences))


def test_several_codebooks_are_refused_where_one_is_expected(tmp_path):
    with pytest.raises(ValueError, match="this format holds one codebook"):
        save_km(tmp_path / "a.km", [random_codes(0)])
    with pytest.raises(ValueError, match="this format holds one codebook"):
        to_textless(random_codes(0))
    assert not os.listdir(tmp_path)


def test_what_contradicts_itself_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="one entry a unit, 2, but got 1"):
        to_textless([1, 2], [1])
    with pytest.raises(ValueError, match=r"with 3 frames, but got \(2, 5\)"):
        to_textless([1, 2], [1, 2], torch.zeros(2, 5))
    with pytest.raises(ValueError, match="one entry a unit, but got 1"):
        save_unit_lines(tmp_path / "a.jsonl", [UnitLine("a", np.array([1, 2]), np.array([1]))])
    with pytest.raises(ValueError, match="cannot stand in a manifest"):
        save_manifest(tmp_path / "a.tsv", "/speech", [("a\tb.wav", 1)])
    with pytest.raises(ValueError, match="at least 1 sample, but 'a.wav' has 0"):
        save_manifest(tmp_path / "a.tsv", "/speech", [("a.wav", 0)])
    with pytest.raises(ValueError, match="all with the same number of codebooks"):
        save_code_arrays(tmp_path / "a.safetensors", ["a", "b"], [random_codes(0, 1), random_codes(0, 2)])
    with pytest.raises(ValueError, match="`names` must have one entry a recording, 1, but got 2"):
        save_code_arrays(tmp_path / "a.safetensors", ["a", "b"], [random_codes(0)])
    with pytest.raises(ValueError, match="`lengths` must lie between 0 and 4"):
        from_batch_time_codebook(np.zeros((1, 4, 2), dtype=int), np.array([5]))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2\n3  4\n", "line 2 must hold units"),
        ("1 2 \n", "line 1 must hold units"),
        ("1\t2\n", "line 1 must hold units"),
        ("1 -2\n", "line 1 must hold units"),
        ("1 2.0\n", "line 1 must hold units"),
        ("1 2\r\n", "line 1 must hold units"),
        ("1 2\n3", "ends within a line"),
    ],
)
def test_malformed_km_is_refused_with_its_line(tmp_path, content, message):
    (tmp_path / "a.km").write_bytes(content.encode())
    with pytest.raises(UnitFileError, match=message):
        load_km(tmp_path / "a.km")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "recordings' folder in the first line"),
        ("\na.wav\t1\n", "recordings' folder in the first line"),
        ("/speech\na.wav 1\n", "line 2 must be a path"),
        ("/speech\na.wav\t1\n\n", "line 3 must be a path"),
        ("/speech\na.wav\t0\n", "line 2 must be a path"),
        ("/speech\na.wav\t1\t2\n", "line 2 must be a path"),
        ("/speech\na.wav\t1\na.wav\t2\n", "line 3 repeats a path"),
        ("/speech\na.wav\t1", "ends within a line"),
    ],
)
def test_malformed_manifests_are_refused_with_their_line(tmp_path, content, message):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(UnitFileError, match=message):
        load_manifest(tmp_path / "a.tsv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]\n", "line 1 holds no units"),
        ("{\n", "line 1 holds no units"),
        ('{"file_name": "a"}\n', "line 1 holds no units .'audio_repr'"),
        ('{"file_name": 1, "audio_repr": ""}\n', "must be strings"),
        ('{"file_name": "a", "audio_repr": "<Un1> <Un2>"}\n', "at character 5"),
        ('{"file_name": "a", "audio_repr": "<Un1>", "duration": [1, 2]}\n', "2 entries for 1 units"),
        ('{"file_name": "a", "audio_repr": "<Un1>", "duration": [0]}\n', "at least 1 frame"),
        ('{"file_name": "a", "audio_repr": ""}\n' * 2, "line 2 repeats 'a'"),
        ('{"file_name": "a", "audio_repr": ""}', "ends within a line"),
    ],
)
def test_malformed_lines_are_refused(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UnitFileError, match=message):
        load_unit_lines(tmp_path / "a.jsonl")


@pytest.mark.parametrize("load", [load_textless, load_code_arrays])
def test_damaged_foreign_and_pickled_files_are_refused(tmp_path, load):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UnitFileError, match="no such file"):
        load(path)
    save_code_arrays(path, ["a"], [random_codes(0)])
    for content in (b"", path.read_bytes()[:-1], pickle.dumps({"units": [1]})):
        path.write_bytes(content)
        with pytest.raises(UnitFileError, match="is no valid safetensors file"):
            load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(UnitFileError, match="holds"):
        load(path)
    with pytest.raises(UnitFileError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("codes", "lengths", "names", "message"),
    [
        (np.zeros((1, 4, 2), dtype=int), np.array([5]), '["a"]', "`lengths` must lie"),
        (np.zeros((1, 4), dtype=int), np.array([4]), '["a"]', "must have shape"),
        (np.zeros((1, 4, 2)), np.array([4]), '["a"]', "must be integers"),
        (np.full((1, 4, 2), -1), np.array([4]), '["a"]', "must not be negative"),
        (np.zeros((1, 4, 2), dtype=int), np.array([4]), '["a", "b"]', "2 names for 1 recordings"),
        (np.zeros((1, 4, 2), dtype=int), np.array([4]), "a", "contradicts itself"),
    ],
)
def test_arrays_that_contradict_themselves_are_refused(tmp_path, codes, lengths, names, message):
    metadata = {"format": "speech-tokenizers code arrays", "names": names}
    save_file({"audio_codes": codes, "lengths": lengths}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(UnitFileError, match=message):
        load_code_arrays(tmp_path / "a.safetensors")


def test_an_older_file_stays_when_writing_fails(tmp_path):
    save_km(tmp_path / "a.km", [[1]])
    with pytest.raises(ValueError):
        save_km(tmp_path / "a.km", [[2], [-1]])
    assert (tmp_path / "a.km").read_text() == "1\n"
    assert os.listdir(tmp_path) == ["a.km"]
    with pytest.raises(UnitFileError, match="cannot be written"):
        save_km(tmp_path / "a.km" / "b.km", [[1]])
