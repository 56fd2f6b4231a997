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


@pytest.mark.parametrize("place", [0, 50_000, 500_000, 999_999])
def test_a_changed_byte_changes_it(place):
    content = bytearray(np.random.default_rng(0).bytes(1_000_000))
    before = recording_fingerprint(bytes(content))
    content[place] ^= 1
    assert recording_fingerprint(bytes(content)) != before


def test_size_and_order_count(tmp_path):
    assert recording_fingerprint(bytes(5)) != recording_fingerprint(bytes(6))
    assert recordings_fingerprint([b"a", b"b"]) != recordings_fingerprint([b"b", b"a"])
    assert recording_fingerprint(tmp_path / "none.wav") == "missing"
    samples = np.zeros(5, dtype=np.float32)
    assert recording_fingerprint({"audio": samples}) != recording_fingerprint(samples + 1)
