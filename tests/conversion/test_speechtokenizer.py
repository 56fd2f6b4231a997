# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints of SpeechTokenizer and DM-Codec become folders that compute the same; all else is refused.

tests/modeling/test_parity_dm_codec.py compares what is computed with the original code's own numbers.
"""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import speech_tokenizers.conversion.speechtokenizer as conversion
from speech_tokenizers import load, load_codes
from speech_tokenizers.cli import main
from speech_tokenizers.conversion.speechtokenizer import CheckpointError, convert_checkpoint, read_checkpoint
from speech_tokenizers.modeling.codec_layers import CodecConvTranspose1d
from speech_tokenizers.modeling.configuration_dm_codec import DMCodecConfig
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel


# Extra fields that the published config.json files have.
TRAINING_FIELDS = {
    "learning_rate": 1e-4,
    "lr_decay": 0.98,
    "segment_size": 48000,
    "sampling_rate": 16000,
    "resblock": "1",
}
SMALL_FIELDS = {
    "sample_rate": 16000,
    "n_filters": 4,
    "strides": [5, 4],
    "dimension": 12,
    "semantic_dimension": 10,
    "bidirectional": True,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "lstm_layers": 1,
    "activation": "ELU",
    "codebook_size": 16,
    "n_q": 2,
}
INVERSE = [
    (r"\.conv\.(bias|parametrizations)", r".conv.conv.\1"),
    (r"^(encoder|decoder)\.layers\.", r"\1.model."),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    (r"^quantizer\.quantizers\.(\d+)\.", r"quantizer.vq.layers.\1._codebook."),
    (r"\.codebook$", ".embed"),
    (r"\.codebook_sum$", ".embed_avg"),
    (r"\.initialized$", ".inited"),
    (r"^semantic_projection\.", "transform."),
]


def original_state(**changes) -> tuple[dict[str, torch.Tensor], dict]:
    """State dict, under the original's names, and config of a random network."""
    fields = SMALL_FIELDS | changes
    torch.manual_seed(0)
    model = DMCodecModel(conversion.codec_config_of(fields, "semantic", Path("small")))
    transposed = [name for name, module in model.named_modules() if isinstance(module, CodecConvTranspose1d)]
    state = {}
    for name, value in model.state_dict().items():
        for pattern, replacement in INVERSE:
            if name.split(".conv.")[0] in transposed:
                name = name.replace(".conv.", ".convtr.convtr.")
            name = re.sub(pattern, replacement, name)
        if name != "quantizer.num_updates":
            state[name] = torch.ones(1) if name.endswith(".inited") else value.clone()
    return state, fields


def write(folder: Path, state: object, fields: dict, name: str = "SpeechTokenizer.pt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder / name


@pytest.fixture
def small(tmp_path):
    """Path of a small checkpoint with its config."""
    return write(tmp_path / "original", *original_state())


@pytest.mark.parametrize("name", ["elu_small", "snake_small"])
@torch.no_grad()
def test_a_converted_folder_computes_what_the_original_computes(load_original, tmp_path, name):
    _, state, fields, expected = load_original(name)
    checkpoint = write(tmp_path / "original", state, fields)
    model, ignored_fields = convert_checkpoint(checkpoint, tmp_path / "converted")
    assert ignored_fields == []
    assert sorted(os.listdir(tmp_path / "converted")) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert type(AutoModel.from_pretrained(tmp_path / "converted")) is type(model) is DMCodecModel
    codes = model.encode(expected["x"]).audio_codes
    assert torch.equal(codes, expected["codes"].transpose(0, 1).long())
    torch.testing.assert_close(model.decode(codes).audio_values, expected["decode_wav"], rtol=0, atol=1e-5)
    for stage, quantizer in enumerate(model.quantizer.quantizers):
        prefix = f"quantizer.vq.layers.{stage}._codebook"
        assert torch.equal(quantizer.codebook_sum, state[f"{prefix}.embed_avg"])
        assert torch.equal(quantizer.cluster_size, state[f"{prefix}.cluster_size"])
        assert quantizer.initialized
    assert not any(
        "weight_g" in key or "weight_v" in key for key in load_file(tmp_path / "converted/model.safetensors")
    )


@pytest.mark.parametrize("form", ["plain", "module", "trainer", "safetensors", "old format", "new names", "half"])
def test_every_form_gives_the_same_folder(tmp_path, form):
    state, fields = original_state()
    expected, _ = convert_checkpoint(write(tmp_path / "plain", state, fields), tmp_path / "expected")
    name = "SpeechTokenizer.pt"
    if form == "module":
        state = {f"module.{key}": value for key, value in state.items()}
    elif form == "trainer":
        discriminators = {"mpd": {"weight": torch.ones(2)}, "msd": {}, "mstftd": {}}
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99)}]}
        state = {
            "generator": {f"module.{key}": value for key, value in state.items()},
            "discriminators": discriminators,
            "optim_g": optimizer,
            "scheduler_g": {"T_max": 10, "_last_lr": [1e-4]},
            "best_dev_mel_loss": np.float64(1.5),
        }
        name = "ModelTrainer_00001000"
    elif form == "safetensors":
        name = "model.safetensors"
    elif form == "new names":
        old_to_new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
        state = {re.sub(r"weight_[gv]$", lambda m: old_to_new[m.group()], key): v for key, v in state.items()}
    elif form == "half":
        state = {key: value.half() for key, value in state.items()}
    checkpoint = write(tmp_path / form, state, fields, name)
    if form == "old format":
        torch.save(state, checkpoint, _use_new_zipfile_serialization=False)
    model, _ = convert_checkpoint(checkpoint, tmp_path / "converted")
    for key, value in expected.state_dict().items():
        tolerance = 1e-3 if form == "half" else 0
        torch.testing.assert_close(model.state_dict()[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_residual_layers": 2, "dilation_base": 3},
        {"lstm_layers": 0},
        {"bidirectional": False, "lstm_layers": 2},
        {"activation": "Snake", "residual_kernel_size": 5, "strides": [2, 3, 5]},
        {"sample_rate": 24000, "n_q": 3},
    ],
)
def test_other_networks_of_the_family_convert_too(tmp_path, changes):
    state, fields = original_state(**changes)
    model, _ = convert_checkpoint(write(tmp_path / "original", state, fields), tmp_path / "converted")
    assert model.sampling_rate == fields["sample_rate"]
    assert model.config.num_quantizers == fields["n_q"]


@pytest.mark.parametrize(
    ("projection", "dimensions"), [("semantic", (10, None)), ("contextual", (None, 10)), ("shared", (10, 10))]
)
@torch.no_grad()
def test_the_projection_is_what_it_was_trained_for(small, tmp_path, projection, dimensions):
    model, _ = convert_checkpoint(small, tmp_path / "converted", projection=projection)
    assert (model.config.semantic_dimension, model.config.contextual_dimension) == dimensions
    outputs = model(torch.rand(1, 1, 400) - 0.5)
    state = torch.load(small, weights_only=True)
    first = model.quantizer.quantizers[0].decode(outputs.audio_codes[:, 0])
    expected = first @ state["transform.weight"].t() + state["transform.bias"]
    for features, dimension in zip((outputs.semantic_features, outputs.contextual_features), dimensions, strict=True):
        assert (features is None) == (dimension is None)
        if features is not None:
            torch.testing.assert_close(features, expected)


@torch.no_grad()
def test_where_the_original_has_no_projection_ours_is_the_identity(tmp_path):
    state, fields = original_state(semantic_dimension=12)
    state = {name: value for name, value in state.items() if not name.startswith("transform.")}
    model, _ = convert_checkpoint(write(tmp_path / "original", state, fields), tmp_path / "converted")
    outputs = model(torch.rand(1, 1, 400) - 0.5)
    first = model.quantizer.quantizers[0].decode(outputs.audio_codes[:, 0])
    torch.testing.assert_close(outputs.semantic_features, first)


def test_the_folder_can_carry_its_code(small, tmp_path):
    convert_checkpoint(small, tmp_path / "converted", with_code=True)
    assert "modeling_dm_codec.py" in os.listdir(tmp_path / "converted")
    assert json.loads((tmp_path / "converted/config.json").read_text())["auto_map"]["AutoModel"].endswith(
        "DMCodecModel"
    )


# The command


def test_a_converted_folder_serves_every_command(small, tmp_path, write_audio, capsys):
    (small.parent / "config.json").write_text(json.dumps(SMALL_FIELDS | TRAINING_FIELDS))
    folder = tmp_path / "converted"
    assert main(["convert", str(small), "-o", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "ignored fields of the config" in printed
    assert all(name in printed for name in TRAINING_FIELDS)
    assert "DMCodecModel" in printed

    assert main(["info", str(folder)]) == 0
    assert "2 of 16 entries" in capsys.readouterr().out
    audio = write_audio(tmp_path / "a.wav", 0.3)
    model = ["--model", str(folder), "--device", "cpu"]
    assert main(["encode", str(audio), "-o", str(tmp_path / "a.safetensors"), *model]) == 0
    assert main(["decode", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "decoded.wav")]) == 0
    assert main(["reconstruct", str(audio), "-o", str(tmp_path / "reconstructed.wav"), *model]) == 0
    assert (tmp_path / "decoded.wav").read_bytes() == (tmp_path / "reconstructed.wav").read_bytes()
    assert load_codes(tmp_path / "a.safetensors").audio_codes.shape == (2, 240)


def test_an_existing_folder_is_replaced_only_if_asked_and_only_if_it_is_a_model(small, tmp_path, capsys):
    output = tmp_path / "converted"
    command = ["convert", str(small), "-o", str(output)]
    assert main(command) == 0
    before = (output / "model.safetensors").read_bytes()
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert (output / "model.safetensors").read_bytes() == before
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("keep")
    assert main(["convert", str(small), "-o", str(other), "--overwrite"]) == 2
    assert "no model's folder" in capsys.readouterr().err
    assert (other / "notes.txt").read_text() == "keep"
    assert sorted(os.listdir(tmp_path)) == ["converted", "mine", "original"]


def test_a_converted_codec_loads_by_its_folder(small, tmp_path):
    convert_checkpoint(small, tmp_path / "converted")
    model, feature_extractor = load(tmp_path / "converted")
    assert isinstance(model.config, DMCodecConfig)
    assert type(feature_extractor).__name__ == "DMCodecFeatureExtractor"


# What is refused


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:d0", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"no checkpoint at all\n" * 20, "is no PyTorch checkpoint, or is damaged or incomplete"),
        (bytes(range(256)) * 8, "is no PyTorch checkpoint, or is damaged or incomplete"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, content, message):
    (tmp_path / "SpeechTokenizer.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"SpeechTokenizer.pt: {message}"):
        read_checkpoint(tmp_path / "SpeechTokenizer.pt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("form", ["SpeechTokenizer.pt", "model.safetensors", "old format"])
def test_half_a_file_is_refused(tmp_path, form, share):
    name = "SpeechTokenizer.pt" if form == "old format" else form
    state, fields = original_state()
    checkpoint = write(tmp_path, state, fields, name)
    if form == "old format":
        torch.save(state, checkpoint, _use_new_zipfile_serialization=False)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content)) + 1])
    with pytest.raises(CheckpointError, match=r"damaged or incomplete|is it complete"):
        convert_checkpoint(checkpoint, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    content = {"weight": Malicious()}
    if form == "torch":
        torch.save(content, tmp_path / "evil.pt")
    else:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match=r"could run code|is no PyTorch checkpoint"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights"),
        ([1, 2], "holds no weights"),
        (torch.ones(3), "holds no weights"),
        ({"codec": {"weight": torch.ones(3)}, "step": 3}, "holds keys such as codec, step; expected the state dict"),
        ({"generator": {}}, "holds keys such as generator"),
    ],
)
def test_content_that_is_no_state_dict_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "other.pt")


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"holds Python objects besides tensors \(torch.nn.*Linear\)"):
        read_checkpoint(tmp_path / "module.pt")


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"bert.embeddings.weight": torch.ones(3, 3)}, r"does not hold the network .* are missing"),
        (
            lambda state: without(state, "transform.bias"),
            r"1 weights are missing \(here named semantic_projection.bias\)",
        ),
        (lambda state: without(state, "quantizer.vq.layers.1._codebook.embed_avg"), r"1 weights are missing"),
        (lambda state: state | {"extra.weight": torch.ones(1)}, r"1 are unexpected \(extra.weight\)"),
        (
            lambda state: state | {"transform.bias": torch.ones(9)},
            r"`transform.bias` has shape \(9,\), but .* \(10,\)",
        ),
        (
            lambda state: state | {"transform.bias": torch.full((10,), torch.nan)},
            r"`transform.bias` holds .* not finite",
        ),
    ],
)
def test_other_weights_are_refused(tmp_path, change, message):
    state, fields = original_state()
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(write(tmp_path / "original", change(state), fields), tmp_path / "converted")
    assert os.listdir(tmp_path) == ["original"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "is no JSON file"),
        ("[]", "holds no fields"),
        (json.dumps({"n_filters": 4}), r"lacks sample_rate, strides"),
        (json.dumps(SMALL_FIELDS | {"n_q": "2"}), r"`n_q` must be of type int, but is '2'"),
        (json.dumps(SMALL_FIELDS | {"n_q": True}), r"`n_q` must be of type int, but is True"),
        (json.dumps(SMALL_FIELDS | {"activation": "ReLU"}), r"describes no codec \(.*`activation` must be one of"),
        (json.dumps(SMALL_FIELDS | {"strides": [5, 0]}), r"describes no codec"),
        (json.dumps(SMALL_FIELDS | {"strides": ["5", 4]}), r"describes no codec"),
        (json.dumps(SMALL_FIELDS | {"n_q": 3}), r"weights are missing"),
        (json.dumps(SMALL_FIELDS | {"strides": [4, 5]}), r"is it the config of another checkpoint"),
    ],
)
def test_other_configs_are_refused(small, tmp_path, config, message, capsys):
    (small.parent / "config.json").write_text(config)
    assert main(["convert", str(small), "-o", str(tmp_path / "converted")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["original"]


def test_a_missing_file_is_named(small, tmp_path, capsys):
    assert main(["convert", str(tmp_path / "no.pt"), "-o", str(tmp_path / "converted")]) == 2
    assert "config.json: there is no such file" in capsys.readouterr().err
    config = ["--config", str(small.parent / "config.json")]
    assert main(["convert", str(tmp_path / "no.pt"), *config, "-o", str(tmp_path / "converted")]) == 2
    assert "no.pt: No such file" in capsys.readouterr().err


def test_a_wrong_mapping_does_not_get_through(small, tmp_path, monkeypatch):
    # Weights of equal shapes that change places.
    swap = [("_l0_reverse$", "_HELD"), ("_l0$", "_l0_reverse"), ("_HELD$", "_l0")]
    swapped = [(rf"(encoder.*lstm.*){pattern}", rf"\1{replacement}") for pattern, replacement in swap]
    monkeypatch.setattr(conversion, "RENAMED", [*conversion.RENAMED, *swapped])
    with pytest.raises(CheckpointError, match=r"gives other latents than the original's weights"):
        convert_checkpoint(small, tmp_path / "converted")
    assert os.listdir(tmp_path) == ["original"]
