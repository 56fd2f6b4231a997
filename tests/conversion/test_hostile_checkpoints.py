# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are not what they seem cost one line of error, and no memory."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speech_tokenizers.cli import main
from speech_tokenizers.conversion.foreign_files import CheckpointError
from speech_tokenizers.conversion.speechtokenizer import convert_checkpoint
from speech_tokenizers.conversion.spin import convert_spin


FIXTURES = Path(__file__).parents[1] / "fixtures"
CODEBOOK = "quantizer.vq.layers.0._codebook.embed"
SPIN_CODEBOOK = "loss_module.codebook.weight"


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.zeros(4, 4), 0.1, 0, torch.qint8)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


# What may stand in place of a tensor, and what is said of it.
FAULTS = {
    "meta": (lambda: torch.empty(4, 4, device="meta"), "no values"),
    "huge meta": (lambda: torch.empty(10**9, 10**6, device="meta"), "no values"),
    "sparse": (lambda: torch.zeros(4, 4).to_sparse(), "sparse or nested"),
    "compressed": (lambda: torch.zeros(4, 4).to_sparse_csr(), "sparse or nested"),
    "complex": (lambda: torch.zeros(4, 4, dtype=torch.complex64), "must hold real numbers"),
    "quantized": (quantized, "must hold real numbers|objects besides tensors|no PyTorch checkpoint"),
    "nested": (nested, "sparse or nested|objects besides tensors|no PyTorch checkpoint"),
    "declared": (lambda: torch.zeros(1).expand(10**6, 10**6), "too few values"),
    "a number": (lambda: 3, "must be a tensor"),
    "a dictionary": (lambda: {"weight": torch.zeros(2)}, "must be a tensor"),
    "nothing": (lambda: None, "must be a tensor"),
    "no dimension": (lambda: torch.tensor(1.0), "has shape|describes no Spin"),
    "empty": (lambda: torch.zeros(0, 0), "has shape|describes no Spin|impossible sizes"),
    "infinite": (None, "not finite"),
    "half and not finite": (None, "not finite"),
}


def fault(name: str, whole: torch.Tensor) -> object:
    make = FAULTS[name][0]
    if make is not None:
        return make()
    broken = whole.clone().to(torch.float16 if "half" in name else torch.float32)
    broken.view(-1)[-1] = torch.inf
    return broken


def converted(folder: Path, state: object, fields: object) -> None:
    torch.save(state, folder / "original.pt")
    (folder / "config.json").write_text(fields if isinstance(fields, str) else json.dumps(fields))
    convert_checkpoint(folder / "original.pt", folder / "converted")


@pytest.fixture(scope="module")
def spin_state():
    original = {**load_file(FIXTURES / "spin_encoder.safetensors"), **load_file(FIXTURES / "spin_model.safetensors")}
    return {name.removeprefix("param."): value for name, value in original.items() if name.startswith("param.")}


@pytest.mark.parametrize("name", FAULTS)
def test_a_codec_s_weight_that_is_no_array_of_numbers_is_named(tmp_path, load_original, name):
    _, state, fields, _ = load_original("elu_small")
    with pytest.raises(CheckpointError, match=FAULTS[name][1]):
        converted(tmp_path, {**state, CODEBOOK: fault(name, state[CODEBOOK])}, fields)
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("name", FAULTS)
def test_a_weight_of_spin_that_is_no_array_of_numbers_is_named(tmp_path, spin_state, name):
    content = {"state_dict": {**spin_state, SPIN_CODEBOOK: fault(name, spin_state[SPIN_CODEBOOK])}}
    torch.save(content, tmp_path / "spin.ckpt")
    with pytest.raises(CheckpointError, match=FAULTS[name][1]):
        convert_spin(tmp_path / "spin.ckpt", tmp_path / "units", num_attention_heads=4)
    assert not (tmp_path / "units").exists()


def test_an_archive_whose_bytes_have_changed_is_refused(tmp_path, load_original, spin_state):
    _, state, fields, _ = load_original("elu_small")
    torch.save(state, tmp_path / "original.pt")
    torch.save({"state_dict": spin_state}, tmp_path / "spin.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for name, convert in (("original.pt", convert_checkpoint), ("spin.ckpt", convert_spin)):
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is damaged: the checksum of `.*` does not fit"):
            convert(tmp_path / name, tmp_path / "converted")
        assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("key", [0, -1, 1.5, None, True, (1, 2), b"weight"])
def test_a_key_that_is_no_name_is_shown(tmp_path, load_original, spin_state, key):
    _, state, fields, _ = load_original("elu_small")
    shown = re.escape(f"has the key {key!r}, but weights have names")
    with pytest.raises(CheckpointError, match=shown):
        converted(tmp_path, {**state, key: torch.zeros(2)}, fields)
    torch.save({"state_dict": {**spin_state, key: torch.zeros(2)}}, tmp_path / "spin.ckpt")
    with pytest.raises(CheckpointError, match=shown):
        convert_spin(tmp_path / "spin.ckpt", tmp_path / "units")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_q": 1_000_000}, "`n_q` describes 1000000 layers"),
        ({"n_q": 10**30}, "`n_q` describes"),
        ({"n_residual_layers": 1_000_000}, "`n_residual_layers` describes"),
        ({"lstm_layers": 1_000_000}, "`lstm_layers` describes"),
        ({"strides": [2] * 100_000}, "`strides` describes 100000 layers"),
        ({"n_residual_layers": 60, "dilation_base": 10**9}, "makes dilations"),
        ({"codebook_size": 10**12}, "has shape|impossible sizes"),
        ({"codebook_size": 10**30}, "impossible sizes|describes no codec"),
        ({"dimension": 10**9, "semantic_dimension": 10**9}, "has shape|impossible sizes"),
        ({"n_filters": 10**7}, "has shape|impossible sizes"),
        ({"residual_kernel_size": 10**9}, "has shape|impossible sizes"),
        ({"semantic_dimension": 10**12}, "has shape|impossible sizes"),
        ({"strides": [10**6, 10**6]}, "has shape|impossible sizes|does not hold the network"),
        ({"sample_rate": 0}, "describes no codec"),
        ({"n_q": -1}, "describes no codec"),
        ({"dimension": -8}, "describes no codec"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_memory_is_taken(
    tmp_path, load_original, change, message, monkeypatch
):
    _, state, fields, _ = load_original("elu_small")
    made = []
    whole = torch.nn.Module.__init__

    def counted(module, *args, **kwargs):
        made.append(type(module))
        assert len(made) < 5_000
        whole(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__init__", counted)
    # Only shapes are made: a tensor with values, of a size that the weights do not have, fails here.
    real_empty = torch.empty

    def bounded(*size, **kwargs):
        tensor = real_empty(*size, **kwargs)
        assert tensor.is_meta or tensor.numel() < 10**6
        return tensor

    monkeypatch.setattr(torch, "empty", bounded)
    with pytest.raises(CheckpointError, match=message):
        converted(tmp_path, state, {**fields, **change})


@pytest.mark.parametrize("config", ["[" * 100_000, "3", "null", '"text"', "[]", "{}", '{"n_q": 1e999}', "\x00"])
def test_a_config_that_describes_nothing_is_refused(tmp_path, load_original, config):
    _, state, _, _ = load_original("elu_small")
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        converted(tmp_path, state, config)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": {"use_layer": "three"}},
        {"encoder": {"use_layer": 10**9}},
        {"encoder": {"freeze_layers": 3}},
        {"encoder": [1, 2]},
        {"loss": {"temp": "warm"}},
        {"loss": {"sinkhorn_iters": -1}},
        {"loss": 3},
    ],
)
def test_settings_of_spin_that_make_no_sense_are_refused(tmp_path, spin_state, settings):
    torch.save({"state_dict": spin_state, "hyper_parameters": {"model": settings}}, tmp_path / "spin.ckpt")
    with pytest.raises(CheckpointError, match="describes no Spin"):
        convert_spin(tmp_path / "spin.ckpt", tmp_path / "units", num_attention_heads=4)


@pytest.mark.parametrize("name", ["post_extract_proj.weight", "encoder.pos_conv.0.weight_v"])
@pytest.mark.parametrize("shape", [(), (0,), (4,), (4, 0), (4, 4), (2, 2, 2, 2)])
def test_shapes_that_spin_does_not_have_are_refused(tmp_path, spin_state, name, shape):
    changed = {**spin_state, f"encoder.model.{name}": torch.zeros(shape)}
    torch.save({"state_dict": changed}, tmp_path / "spin.ckpt")
    with pytest.raises(CheckpointError):
        convert_spin(tmp_path / "spin.ckpt", tmp_path / "units", num_attention_heads=4)


def test_wide_weights_of_spin_are_compared_before_memory_is_taken(tmp_path, spin_state):
    """A width of 400,000 would ask for attention weights of 640 GB."""
    wide = torch.zeros(400_000, 1)
    torch.save({"state_dict": {**spin_state, "encoder.model.post_extract_proj.weight": wide}}, tmp_path / "spin.ckpt")
    with pytest.raises(CheckpointError, match=r"has shape|describes no Spin"):
        convert_spin(tmp_path / "spin.ckpt", tmp_path / "units", num_attention_heads=4)


def test_the_command_line_tells_it_in_one_line(tmp_path, load_original, capsys):
    _, state, fields, _ = load_original("elu_small")
    torch.save({**state, 0: torch.zeros(2)}, tmp_path / "original.pt")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert main(["convert", str(tmp_path / "original.pt"), "-o", str(tmp_path / "converted")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "original.pt: has the key 0, but weights have names" in error
