# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from speech_tokenizers import CodeFileError, load_codes, save_codes


METADATA = {
    "num_samples": 1500,
    "sampling_rate": 16000,
    "codebook_size": 1024,
    "hop_length": 320,
    "model_name": "a-codec",
    "model_fingerprint": "0123",
}


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(0, 1024, (8, 5))


@pytest.mark.parametrize(
    ("codebook_size", "dtype"),
    [(256, np.uint8), (257, np.int16), (32768, np.int16), (32769, np.int32)],
)
def test_codes_come_back_from_the_smallest_type_that_holds_them(tmp_path, codebook_size, dtype):
    codes = np.random.default_rng(0).integers(0, codebook_size, (8, 5))
    codes[0, 0] = codebook_size - 1
    save_codes(tmp_path / "new" / "a.safetensors", codes, METADATA | {"codebook_size": codebook_size})
    loaded = load_codes(tmp_path / "new" / "a.safetensors")
    assert np.array_equal(loaded.audio_codes, codes)
    assert loaded.audio_codes.dtype == np.int64
    assert load_file(tmp_path / "new" / "a.safetensors")["audio_codes"].dtype == dtype


def test_metadata_comes_back(tmp_path, codes):
    save_codes(tmp_path / "a.safetensors", torch.from_numpy(codes), METADATA)
    loaded = load_codes(tmp_path / "a.safetensors")
    assert {name: getattr(loaded, name) for name in METADATA} == METADATA
    assert (loaded.num_quantizers, loaded.num_frames, loaded.bits_per_second) == (8, 5, 4000)
    assert loaded.seconds == pytest.approx(1500 / 16000)
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 2241}, "must have 8 frames"),
        ({"num_samples": 1280}, "must have 4 frames"),
        ({"num_samples": 0}, "`num_samples` must be at least 1"),
        ({"codebook_size": 512}, "must lie between 0 and 511"),
    ],
)
def test_codes_that_contradict_their_metadata_are_not_written(tmp_path, codes, change, message):
    with pytest.raises(ValueError, match=message):
        save_codes(tmp_path / "a.safetensors", codes, METADATA | change)
    assert not os.listdir(tmp_path)


def test_misspelt_metadata_and_wrong_types_and_shapes_are_refused(tmp_path, codes):
    with pytest.raises(TypeError, match="sample_rate"):
        save_codes(tmp_path / "a.safetensors", codes, METADATA | {"sample_rate": 1})
    with pytest.raises(TypeError, match="must be integers"):
        save_codes(tmp_path / "a.safetensors", codes.astype(float), METADATA)
    with pytest.raises(ValueError, match="must have shape"):
        save_codes(tmp_path / "a.safetensors", codes[None], METADATA)


def test_what_cannot_be_written_is_refused(tmp_path, codes):
    (tmp_path / "file").touch()
    with pytest.raises(CodeFileError, match="cannot be written"):
        save_codes(tmp_path / "file" / "a.safetensors", codes, METADATA)


def test_missing_corrupt_and_truncated_files_are_refused_in_one_line(tmp_path, codes):
    path = tmp_path / "a.safetensors"
    with pytest.raises(CodeFileError, match="no such file"):
        load_codes(path)
    save_codes(path, codes, METADATA)
    content = path.read_bytes()
    for damaged in (b"", content[:5], content[:-1], b"x" * len(content), content[:100]):
        path.write_bytes(damaged)
        with pytest.raises(CodeFileError, match="is no valid safetensors file") as caught:
            load_codes(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(CodeFileError, match="cannot be read"):
        load_codes(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": None}, "holds no audio codes"),
        ({"format": "weights"}, "holds no audio codes"),
        ({"format_version": "2"}, "has format version 2, but this release reads 1; upgrade"),
        ({"hop_length": None}, "lacks the metadata 'hop_length'"),
        ({"hop_length": "many"}, "contradicts itself"),
        ({"hop_length": "0"}, "contradicts itself"),
        ({"codebook_size": "16"}, "must lie between 0 and 15"),
        ({"num_samples": "999999"}, "must have 3125 frames"),
    ],
)
def test_foreign_and_contradictory_files_are_refused(tmp_path, codes, change, message):
    texts = {name: str(value) for name, value in METADATA.items()}
    texts |= {"format": "speech-tokenizers audio codes", "format_version": "1"} | change
    texts = {name: value for name, value in texts.items() if value is not None}
    save_file({"audio_codes": codes.astype(np.int16)}, tmp_path / "a.safetensors", metadata=texts)
    with pytest.raises(CodeFileError, match=message):
        load_codes(tmp_path / "a.safetensors")
    save_file({"weight": codes.astype(np.int16)}, tmp_path / "a.safetensors", metadata=texts)
    with pytest.raises(CodeFileError):
        load_codes(tmp_path / "a.safetensors")
