# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest

from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint, recordings_fingerprint


@pytest.mark.parametrize("size", [0, 10, 70_000, 131_073, 1_000_000])
def test_a_moved_file_and_its_bytes_have_one_fingerprint(tmp_path, size):
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "a.wav").write_bytes(content)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.wav").write_bytes(content)
    moved = {"audio": {"path": str(tmp_path / "elsewhere" / "b.wav"), "bytes": None}}
    row = {"audio": {"path": "gone.wav", "bytes": content}}
    of_file = recording_fingerprint(tmp_path / "a.wav")
    assert of_file == recording_fingerprint(content) == recording_fingerprint(moved) == recording_fingerprint(row)


@pytest.mark.parametrize("place", [0, 50_000, 250_000, 500_000, 800_000, 999_999])
def test_a_changed_byte_changes_it(place):
    content = bytearray(np.random.default_rng(0).bytes(1_000_000))
    before = recording_fingerprint(bytes(content))
    content[place] ^= 1
    assert recording_fingerprint(bytes(content)) != before


def test_silence_in_the_place_of_sound_changes_it(tmp_path):
    content = bytearray(np.random.default_rng(0).bytes(3_000_000))
    (tmp_path / "a.wav").write_bytes(content)
    before = recording_fingerprint(tmp_path / "a.wav")
    content[500_000:900_000] = bytes(400_000)
    (tmp_path / "a.wav").write_bytes(content)
    assert recording_fingerprint(tmp_path / "a.wav") != before


def test_many_recordings_count_in_their_order():
    recordings = [bytes([number]) for number in range(200)]
    changed = [*recordings[:150], b"x", *recordings[151:]]
    assert recordings_fingerprint(iter(recordings)) == recordings_fingerprint(recordings)
    assert len({recordings_fingerprint(rows) for rows in (recordings, recordings[::-1], changed)}) == 3


def test_size_and_order_count(tmp_path):
    assert recording_fingerprint(bytes(5)) != recording_fingerprint(bytes(6))
    assert recordings_fingerprint([b"a", b"b"]) != recordings_fingerprint([b"b", b"a"])
    assert recording_fingerprint(tmp_path / "none.wav") == "missing"
    samples = np.zeros(5, dtype=np.float32)
    assert recording_fingerprint({"audio": samples}) != recording_fingerprint(samples + 1)
