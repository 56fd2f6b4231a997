# SPDX-License-Identifier: Apache-2.0
"""What `load_codes` would refuse is not written, and files of odd types are refused by name, not by a traceback."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from speech_tokenizers import CodeFileError, load_codes, save_codes
from speech_tokenizers.cli import main
from speech_tokenizers.processing.latent_files import load_latents, save_latents


METADATA = {
    "num_samples": 3200,
    "sampling_rate": 16000,
    "codebook_size": 32,
    "hop_length": 40,
    "model_name": "a-codec",
}
CODES = np.zeros((4, 80), dtype=int)
ODD_TYPES = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64, torch.bool]
ODD_TYPES += [torch.complex64]


def write_odd_file(path, tensor, name="audio_codes", text_format="speech-tokenizers audio codes"):
    texts = {name: str(value) for name, value in METADATA.items()}
    texts |= {"format": text_format, "format_version": "1", "hidden_size": "80", "dtype": "float32"}
    save_file({name: tensor}, path, metadata=texts)


@pytest.mark.parametrize("name", ["num_samples", "sampling_rate", "codebook_size", "hop_length"])
@pytest.mark.parametrize("value", [3200.7, float("nan"), float("inf"), "3200", None, True, 0, -1, np.float32(40.5)])
def test_save_codes_refuses_numbers_that_load_codes_refuses(tmp_path, name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        save_codes(tmp_path / "a.safetensors", CODES, METADATA | {name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model_name", "model_fingerprint", "recording_fingerprint"])
@pytest.mark.parametrize("value", [None, 3, b"a-codec", "\udcff"])
def test_save_codes_refuses_texts_that_cannot_be_written(tmp_path, name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        save_codes(tmp_path / "a.safetensors", CODES, METADATA | {name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": np.int32(3200), "sampling_rate": np.float64(16000), "hop_length": torch.tensor(40)},
        {"num_samples": 3200.0, "sampling_rate": np.uint16(16000)},
        {"codebook_size": 1 << 31},
        {"recording_fingerprint": "0123", "model_name": "Ä/ \n\t"},
    ],
)
def test_what_save_codes_writes_is_what_load_codes_reads(tmp_path, change):
    save_codes(tmp_path / "a.safetensors", CODES, METADATA | change)
    loaded = load_codes(tmp_path / "a.safetensors")
    for name, value in (METADATA | change).items():
        assert getattr(loaded, name) == value
        assert type(getattr(loaded, name)) in (int, str)


def test_a_codebook_beyond_32_bits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at most 2\\^31"):
        save_codes(tmp_path / "a.safetensors", CODES, METADATA | {"codebook_size": (1 << 31) + 1})


def test_save_latents_refuses_the_same(tmp_path):
    metadata = {name: value for name, value in METADATA.items() if name != "codebook_size"}
    for change in ({"num_samples": 3200.7}, {"hop_length": "40"}, {"model_name": None}):
        with pytest.raises((TypeError, ValueError)):
            save_latents(tmp_path / "a.safetensors", np.zeros((80, 2), dtype=np.float32), metadata | change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ODD_TYPES, ids=str)
def test_codes_of_an_odd_type_are_refused_by_name(tmp_path, dtype):
    write_odd_file(tmp_path / "a.safetensors", torch.zeros(4, 80).to(dtype))
    with pytest.raises(CodeFileError, match="has `audio_codes` of the type .* encode the recording again"):
        load_codes(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [*ODD_TYPES[:3], torch.int64], ids=str)
def test_latents_of_an_odd_type_are_refused_by_name(tmp_path, dtype):
    write_odd_file(tmp_path / "a.safetensors", torch.zeros(4, 80).to(dtype), "latents", "speech-tokenizers latents")
    with pytest.raises(CodeFileError, match="has `latents` of the type"):
        load_latents(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int64], ids=str)
def test_integers_of_any_type_are_codes(tmp_path, dtype):
    write_odd_file(tmp_path / "a.safetensors", torch.ones(4, 80, dtype=torch.int64).to(dtype))
    assert load_codes(tmp_path / "a.safetensors").audio_codes.tolist() == [[1] * 80] * 4


def test_a_type_that_safetensors_does_not_know_is_a_damaged_file(tmp_path):
    header = {"audio_codes": {"dtype": "I4", "shape": [2, 2], "data_offsets": [0, 2]}}
    content = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + b"\0\0")
    with pytest.raises(CodeFileError, match="no valid safetensors file"):
        load_codes(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", ["3200.0", "3_200", " 3200", "٣٢٠٠", "1e3", "", "9" * 30])
def test_numbers_in_a_file_are_digits(tmp_path, text):
    texts = {name: str(value) for name, value in METADATA.items()} | {"num_samples": text}
    texts |= {"format": "speech-tokenizers audio codes", "format_version": "1"}
    save_file({"audio_codes": torch.zeros(4, 80, dtype=torch.int16)}, tmp_path / "a.safetensors", metadata=texts)
    with pytest.raises(CodeFileError, match="`num_samples` must be a whole number"):
        load_codes(tmp_path / "a.safetensors")


def test_one_odd_file_of_codes_stops_no_other(tmp_path, tiny_checkpoint, capsys):
    folder = tmp_path / "codes"
    metadata = METADATA | {"model_name": str(tiny_checkpoint)}
    for name in ("a", "z"):
        save_codes(folder / f"{name}.safetensors", CODES, metadata)
    for dtype in ODD_TYPES:
        write_odd_file(folder / f"{dtype}.safetensors", torch.zeros(4, 80).to(dtype))
    write_odd_file(folder / "none.safetensors", torch.zeros(0, 80, dtype=torch.int16))
    write_odd_file(folder / "other.safetensors", torch.zeros(4, 80, dtype=torch.int16), "weights")
    assert main(["decode", str(folder), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 1
    errors = capsys.readouterr().err
    assert f"decode: 2 of {len(ODD_TYPES) + 4} files written, 0 skipped, {len(ODD_TYPES) + 2} failed" in errors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.wav", "z.wav"]
