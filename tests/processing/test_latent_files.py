# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from speech_tokenizers import AudioCodes, AudioLatents, CodeFileError, load_encoded, load_latents, save_codes
from speech_tokenizers.processing.latent_files import save_latents


METADATA = {
    "num_samples": 1500,
    "sampling_rate": 16000,
    "hop_length": 320,
    "model_name": "tokens",
    "model_fingerprint": "0123",
}


@pytest.fixture
def latents():
    return np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_latents_and_metadata_come_back(tmp_path, latents, dtype):
    path = tmp_path / "new" / "a.safetensors"
    save_latents(path, latents.astype(dtype), METADATA)
    loaded = load_latents(path)
    assert loaded.latents.dtype == dtype
    assert np.array_equal(loaded.latents, latents.astype(dtype))
    assert {name: getattr(loaded, name) for name in METADATA} == METADATA
    assert (loaded.num_frames, loaded.hidden_size, loaded.dtype) == (5, 8, dtype)
    assert loaded.seconds == pytest.approx(1500 / 16000)
    # 50 frames a second of 8 numbers.
    assert loaded.bits_per_second == 50 * 8 * {"float32": 32, "float16": 16}[dtype]
    assert os.listdir(tmp_path / "new") == ["a.safetensors"]


def test_any_reader_of_safetensors_finds_shape_type_and_model(tmp_path, latents):
    save_latents(tmp_path / "a.safetensors", torch.from_numpy(latents), METADATA)
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        texts = file.metadata()
    assert (texts["hidden_size"], texts["dtype"], texts["model_name"]) == ("8", "float32", "tokens")
    assert texts["format"] == "speech-tokenizers latents"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 1601}, "must have 6 frames of 320 for 1601 samples, but got 5"),
        ({"num_samples": 1280}, "must have 4 frames"),
        ({"hop_length": 0}, "`hop_length` must be at least 1"),
    ],
)
def test_latents_that_contradict_their_metadata_are_not_written(tmp_path, latents, change, message):
    with pytest.raises(ValueError, match=message):
        save_latents(tmp_path / "a.safetensors", latents, METADATA | change)
    assert not os.listdir(tmp_path)


def test_wrong_types_shapes_and_values_are_refused(latents):
    with pytest.raises(TypeError, match="must be float32 or float16, but got float64"):
        AudioLatents(latents.astype(np.float64), **METADATA)
    with pytest.raises(ValueError, match="must have shape"):
        AudioLatents(latents[None], **METADATA)
    latents[2, 3] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        AudioLatents(latents, **METADATA)
    with pytest.raises(TypeError, match="sample_rate"):
        AudioLatents(latents, **METADATA, sample_rate=1)


def test_codes_and_latents_are_told_apart(tmp_path, latents):
    save_latents(tmp_path / "latents.safetensors", latents, METADATA)
    save_codes(tmp_path / "codes.safetensors", np.zeros((2, 5), int), METADATA | {"codebook_size": 4})
    assert isinstance(load_encoded(tmp_path / "latents.safetensors"), AudioLatents)
    assert isinstance(load_encoded(tmp_path / "codes.safetensors"), AudioCodes)
    with pytest.raises(CodeFileError, match="holds no latents"):
        load_latents(tmp_path / "codes.safetensors")
    save_file({"weight": latents}, tmp_path / "other.safetensors")
    with pytest.raises(CodeFileError, match="holds no audio codes"):
        load_encoded(tmp_path / "other.safetensors")
    with pytest.raises(CodeFileError, match="no such file"):
        load_encoded(tmp_path / "missing.safetensors")


def test_a_file_that_contradicts_itself_is_refused(tmp_path, latents):
    path = tmp_path / "a.safetensors"
    save_latents(path, latents, METADATA)
    with safe_open(path, "numpy") as file:
        texts = file.metadata()
    changes = {
        "contradicts itself: `hidden_size` is 9, but the tensor has 8": {"hidden_size": "9"},
        "contradicts itself: `dtype` is float16": {"dtype": "float16"},
        "has format version 2, but this release reads 1": {"format_version": "2"},
    }
    for message, change in changes.items():
        save_file(load_file(path), tmp_path / "b.safetensors", metadata=texts | change)
        with pytest.raises(CodeFileError, match=message):
            load_latents(tmp_path / "b.safetensors")
    del texts["num_samples"]
    save_file(load_file(path), tmp_path / "b.safetensors", metadata=texts)
    with pytest.raises(CodeFileError, match="lacks the metadata 'num_samples'"):
        load_latents(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CodeFileError, match="is no valid safetensors file"):
        load_latents(tmp_path / "b.safetensors")
