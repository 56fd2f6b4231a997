# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as Spin's trainer saves them are converted exactly, and nothing in them runs."""

import argparse
import collections
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, WavLMConfig, WavLMModel

from speech_tokenizers import cli
from speech_tokenizers.conversion.foreign_files import CheckpointError
from speech_tokenizers.conversion.spin import RENAMED, SpinNetwork, convert_spin, rename_spin


FIXTURES = Path(__file__).parents[1] / "fixtures"
SETTINGS = {
    "encoder": {"type": "HuBERT", "use_layer": 3, "normalize": False, "freeze_layers": ["pos", 0, 1]},
    "pred_head": {"type": "DNN", "hid_dims": [16]},
    "loss": {"num_vars": 20, "epsilon": 0.02, "sinkhorn_iters": 3, "temp": 0.1, "l2_norm": True, "prob_ratio": 1.0},
}


@pytest.fixture(scope="module")
def original():
    """Weights, inputs and outputs of the original SpinModel."""
    return {**load_file(FIXTURES / "spin_encoder.safetensors"), **load_file(FIXTURES / "spin_model.safetensors")}


@pytest.fixture(scope="module")
def state(original):
    return {name.removeprefix("param."): value for name, value in original.items() if name.startswith("param.")}


def lightning_content(state, **changes) -> dict:
    """What Lightning saves with a model: the optimizer, the schedule, its loops and callbacks."""
    model = torch.nn.ParameterList([torch.nn.Parameter(value.clone()) for value in state.values()])
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "epoch": 3,
        "global_step": 5000,
        "pytorch-lightning_version": "1.9.5",
        "state_dict": collections.OrderedDict(state),
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0), "dirpath": "x"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 5000, "lr_lambdas": [None]}],
        "native_amp_scaling_state": {"scale": 65536.0, "_growth_tracker": 0},
        "hparams_name": "config",
        "hyper_parameters": {"config": {"data": {}, "model": SETTINGS, "optim": {}}},
        **changes,
    }


def save(tmp_path, content, **kwargs):
    path = tmp_path / "spin.ckpt"
    torch.save(content, path, **kwargs)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_the_trainer_gives_the_original_s_units(tmp_path, original, state, zipped):
    path = save(tmp_path, lightning_content(state), _use_new_zipfile_serialization=zipped)
    model = convert_spin(path, tmp_path / "units", num_attention_heads=4)
    assert model.config.auxiliary_codebook_size is None
    assert (model.config.encoder_layer, model.config.trainable_layers, model.config.codebook_size) == (3, 2, 20)
    for loaded in (model, AutoModel.from_pretrained(tmp_path / "units")):
        for row in range(6):
            waveform = original["wavs"][row, : int(original["wav_lens"][row])]
            codes = loaded.encode(waveform[None, None]).audio_codes[0, 0]
            assert torch.equal(codes, original[f"single{row}.codes"][0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spin.ckpt", "units"]


def test_the_network_that_conversions_are_compared_with_is_the_original(original, state):
    network = SpinNetwork({k: v for k, v in state.items() if "label_embs" not in k}, num_attention_heads=4)
    for row in range(6):
        waveform = original["wavs"][row, : int(original["wav_lens"][row])]
        logits = network.logits(network.latents(waveform[None, None], layer=3)) / 0.1
        torch.testing.assert_close(logits, original[f"single{row}.logits"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def wavlm_state():
    """A tiny WavLM of transformers under the original's names, with a head and a codebook."""
    config = WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[24] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        num_buckets=32,
    )
    torch.manual_seed(0)
    encoder = WavLMModel(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        encoder.encoder.layers[0].attention.rel_attn_embed.weight.normal_()
    original_names = {rename_spin(name): name for name in candidate_names(num_layers=2)}
    state = {original_names[f"encoder.{name}"]: value for name, value in encoder.state_dict().items()}
    state["pred_head.layers.0.weight"] = torch.randn(16, 32)
    state["pred_head.layers.0.bias"] = torch.randn(16)
    state["loss_module.codebook.weight"] = torch.nn.functional.normalize(torch.randn(20, 16), dim=-1)
    return encoder, state


def candidate_names(num_layers: int) -> list[str]:
    """Names of the original WavLM (microsoft/unilm), in `encoder.model`."""
    names = ["mask_emb", "encoder.pos_conv.0.bias", "encoder.pos_conv.0.weight_g", "encoder.pos_conv.0.weight_v"]
    names += [f"feature_extractor.conv_layers.{i}.0.weight" for i in range(7)]
    modules = ["feature_extractor.conv_layers.0.2", "layer_norm", "post_extract_proj", "encoder.layer_norm"]
    for layer in range(num_layers):
        modules += [f"encoder.layers.{layer}.self_attn.{kind}_proj" for kind in ("q", "k", "v", "out")]
        modules += [f"encoder.layers.{layer}.{part}" for part in ("self_attn_layer_norm", "fc1", "fc2")]
        modules += [f"encoder.layers.{layer}.final_layer_norm", f"encoder.layers.{layer}.self_attn.grep_linear"]
        names.append(f"encoder.layers.{layer}.self_attn.grep_a")
    names.append("encoder.layers.0.self_attn.relative_attention_bias.weight")
    names += [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
    return [f"encoder.model.{name}" for name in names]


def test_a_checkpoint_on_wavlm_is_known_by_its_gates(tmp_path, wavlm_state):
    """Positions farther than the exact buckets reach are among the frames."""
    encoder, state = wavlm_state
    path = save(tmp_path, lightning_content(state, hyper_parameters={}))
    model = convert_spin(path, tmp_path / "units")
    assert model.config.encoder_config.model_type == "wavlm"
    assert model.config.encoder_layer == 2
    generator = torch.Generator().manual_seed(1)
    waveform = 0.1 * torch.randn(1, 9000, generator=generator)
    with torch.no_grad():
        frames = encoder(waveform).last_hidden_state
        projected = frames @ state["pred_head.layers.0.weight"].T + state["pred_head.layers.0.bias"]
        codes = (projected @ state["loss_module.codebook.weight"].T).argmax(-1)
    assert torch.equal(model.encode(waveform[None]).audio_codes[0], codes)


def test_what_lightning_saves_beside_tensors_is_passed_over(tmp_path, state):
    """Its own dictionary of settings, which is a class of its package."""
    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    attribute_dict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = attribute_dict
    packages = {name: types.ModuleType(name) for name in ("pytorch_lightning", "pytorch_lightning.utilities")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**packages, module.__name__: module}.items():
            patch.setitem(sys.modules, name, value)
        settings = attribute_dict(config={"model": SETTINGS})
        others = {"arguments": argparse.Namespace(a=1), "paths": [Path("a") / "b"]}
        path = save(tmp_path, lightning_content(state, hyper_parameters=settings, **others))
    model = convert_spin(path, tmp_path / "units", num_attention_heads=4)
    assert model.config.trainable_layers == 2


class RunsCode:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("place", ["hyper_parameters", "callbacks", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, state, place, zipped):
    marker = tmp_path / "ran"
    content = lightning_content(state, **{place: RunsCode(marker)})
    path = save(tmp_path, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run code when they are loaded"):
        convert_spin(path, tmp_path / "units", num_attention_heads=4)
    assert not marker.exists()
    assert not (tmp_path / "units").exists()


def test_a_bare_pickle_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "spin.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": RunsCode(marker)}, protocol=2))
    with pytest.raises(CheckpointError):
        convert_spin(path, tmp_path / "units")
    assert not marker.exists()


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "encoder.model.layer_norm.bias"), "1 weights are missing .*feature_projection"),
        (lambda s: {**s, "encoder.model.extra": torch.zeros(1)}, r"1 are unexpected \(encoder.model.extra\)"),
        (lambda s: {**s, "pred_head.layers.2.weight": torch.zeros(1)}, "1 are unexpected"),
        (lambda s: without(s, "loss_module.codebook.weight"), "no checkpoint of Spin"),
        (lambda s: without(s, "encoder.model.post_extract_proj.weight"), "lacks encoder.model.post_extract_proj"),
        (lambda s: {**s, "pred_head.layers.0.bias": torch.zeros(15)}, r"shape \(15,\), but \(16,\) was expected"),
        (lambda s: {**s, "encoder.model.mask_emb": torch.full((32,), torch.nan)}, "not finite"),
    ],
)
def test_another_network_is_refused(tmp_path, state, change, message):
    path = save(tmp_path, {"state_dict": change(state), "hyper_parameters": {"model": SETTINGS}})
    with pytest.raises(CheckpointError, match=message):
        convert_spin(path, tmp_path / "units", num_attention_heads=4)
    assert not (tmp_path / "units").exists()


def test_a_wrong_number_of_heads_is_refused(tmp_path, state):
    path = save(tmp_path, lightning_content(state))
    with pytest.raises(CheckpointError, match="give the number of heads"):
        convert_spin(path, tmp_path / "units")


def test_a_wrong_mapping_is_seen_by_the_comparison(tmp_path, state, monkeypatch):
    """Queries for keys: every name and every shape fits."""
    swapped = [(r"\.self_attn\.(q|k)_proj", lambda m: f".self_attn.{'k' if m[1] == 'q' else 'q'}_proj"), *RENAMED]
    monkeypatch.setattr("speech_tokenizers.conversion.spin.RENAMED", swapped)
    path = save(tmp_path, lightning_content(state))
    with pytest.raises(CheckpointError, match="gives other (latents|codes)"):
        convert_spin(path, tmp_path / "units", num_attention_heads=4)
    assert not (tmp_path / "units").exists()


def test_a_model_in_the_folder_is_replaced_only_on_demand(tmp_path, state):
    path = save(tmp_path, lightning_content(state))
    convert_spin(path, tmp_path / "units", num_attention_heads=4)
    with pytest.raises(ValueError, match="exists"):
        convert_spin(path, tmp_path / "units", num_attention_heads=4)
    convert_spin(path, tmp_path / "units", num_attention_heads=4, overwrite=True)


def test_the_command_line(tmp_path, state, capsys):
    path = save(tmp_path, lightning_content(state))
    arguments = ["convert-spin", str(path), "-o", str(tmp_path / "units"), "--num-attention-heads", "4", "--with-code"]
    assert cli.main(arguments) == 0
    assert "20 units on a HubertModel" in capsys.readouterr().out
    assert (tmp_path / "units" / "modeling_dc_spin.py").is_file()
    assert cli.main(arguments) == 2
    assert "exists" in capsys.readouterr().err
