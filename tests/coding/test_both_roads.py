# SPDX-License-Identifier: Apache-2.0
"""`load` and `AutoModel.from_pretrained` compute the same; what is damaged beside the weights is refused by `load`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from speech_tokenizers import find_checkpoint, list_checkpoints, load, store_in_half
from speech_tokenizers.cli import main
from speech_tokenizers.modeling.checked_loading import ModelFilesError


@pytest.fixture
def folder(tmp_path, tiny_checkpoint) -> Path:
    """A copy of the tiny codec."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def tokens(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(2, 1, 8000, generator=generator)
    with torch.no_grad():
        encoded = model.encode(waveform)
    return encoded.audio_codes if model.kind == "codes" else encoded.latents


# What older and newer versions of transformers wrote, and what somebody may leave out.
DTYPES = [{"dtype": "float16"}, {"torch_dtype": "float16"}, {"dtype": "bfloat16"}, {"dtype": "float32"}, {}]


@pytest.mark.filterwarnings("ignore:.*tokens are others")
@pytest.mark.parametrize("stored_in_half", [False, True])
@pytest.mark.parametrize("fields", DTYPES)
def test_both_roads_compute_in_the_dtype_of_the_configuration(folder, fields, stored_in_half):
    if stored_in_half:
        store_in_half(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: content[name] for name in content if name != "dtype"} | fields))
    loaded, direct = load(folder)[0], AutoModel.from_pretrained(folder)
    named = fields.get("dtype", fields.get("torch_dtype", "float16" if stored_in_half else "float32"))
    assert loaded.dtype == direct.dtype == getattr(torch, named)
    assert torch.equal(tokens(loaded), tokens(direct))
    # What is asked for counts more, under either name.
    for asked in ({"dtype": torch.float32}, {"torch_dtype": "float32"}, {"dtype": "float32"}):
        assert load(folder, **asked)[0].dtype == torch.float32


@pytest.mark.parametrize("name", list_checkpoints())
def test_both_roads_give_the_tokens_of_a_released_checkpoint_in_float32(name):
    loaded, direct = load(name)[0], AutoModel.from_pretrained(find_checkpoint(name))
    assert loaded.dtype == direct.dtype == torch.float32
    assert torch.equal(tokens(loaded), tokens(direct))


@pytest.mark.parametrize("dtype", ["float17", torch.int8, "int64", 3, "nn", "Tensor"])
def test_a_dtype_that_is_none_to_compute_in_is_refused(folder, dtype):
    with pytest.raises(ValueError, match="`dtype` must be a floating-point type"):
        load(folder, dtype=dtype)


def refused(folder: Path, message: str, capsys) -> None:
    with pytest.raises(ModelFilesError, match=message):
        load(folder)
    capsys.readouterr()
    assert main(["info", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON file"),
        ("{no", "is no JSON file"),
        ("[" * 100_000, "is no JSON file"),
        ("[1]", "must hold named fields"),
        ("3", "must hold named fields"),
        ("null", "must hold named fields"),
        ('"text"', "must hold named fields"),
        ("\xe9", "is no JSON file"),
    ],
)
def test_a_file_of_fields_that_holds_none_is_named(folder, name, content, message, capsys):
    (folder / name).write_bytes(content.encode("latin-1"))
    refused(folder, rf"/{name}: {message}", capsys)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "foo"}, "`model_type` is 'foo', which neither"),
        ({"model_type": None}, "`model_type` is None"),
        ({"model_type": ["speech_tokenizers_rvq_codec"]}, "`model_type` is"),
        ({"model_type": "wav2vec2"}, "describes a RVQCodecModel"),
        ({"model_type": "hubert"}, "describes a RVQCodecModel"),
        ({"model_type": "encodec"}, "describes"),
        ({"model_type": "speech_tokenizers_dm_codec"}, "describes a RVQCodecModel"),
        ({"sampling_rate": "fast"}, "expected int, got str"),
        ({"sampling_rate": -1}, "`sampling_rate` must be at least 1"),
        ({"sampling_rate": None}, "expected int, got NoneType"),
        ({"downsampling_ratios": [0]}, "must be positive strides"),
        ({"dtype": "float17"}, "float17"),
        ({"dtype": "int8"}, "`dtype` is torch.int8"),
        ({"dtype": 3}, "`dtype` is 3"),
    ],
)
def test_a_wrong_field_of_a_configuration_is_named(folder, fields, message, capsys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    refused(folder, rf"config\.json: .*{message}", capsys)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling_rate": 44100}, "`sampling_rate` is 44100, but the model in config.json has 16000 Hz"),
        ({"sampling_rate": "16000"}, "`sampling_rate` must be a positive whole number of Hz"),
        ({"feature_extractor_type": "NoSuchExtractor"}, "`feature_extractor_type` is none"),
        ({"feature_extractor_type": 3}, "describes no feature extractor"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "describes a Wav2Vec2FeatureExtractor"),
        ({"feature_size": 2}, "`feature_size` must be 1"),
        ({"padding_side": "up"}, "`padding_side` must be 'right' or 'left', but got 'up'"),
    ],
)
def test_a_wrong_field_of_a_feature_extractor_is_named(folder, fields, message, capsys):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    refused(folder, rf"preprocessor_config\.json: {message}", capsys)
