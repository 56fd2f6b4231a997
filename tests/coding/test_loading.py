# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by name or folder."""

import pytest
import torch
from transformers import AutoModel

from speech_tokenizers import (
    RVQCodecConfig,
    RVQCodecModel,
    UnitVocoderConfig,
    UnitVocoderModel,
    find_checkpoint,
    list_checkpoints,
    load,
    store_in_half,
)
from speech_tokenizers.coding.loading import DEFAULT_CHECKPOINT, DEFAULT_UNITS


@pytest.mark.skipif(not list_checkpoints(), reason="this tree carries no checkpoint")
@pytest.mark.parametrize("name", [DEFAULT_CHECKPOINT, DEFAULT_UNITS])
def test_the_checkpoints_of_the_demo_are_carried(name):
    model, feature_extractor = load(name)
    assert not model.training
    assert feature_extractor.sampling_rate == model.sampling_rate == 16000


def test_what_is_no_checkpoint_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder, nor a repository of that name"):
        load("rvq")
    with pytest.raises(ValueError, match=r"has no config\.json; name a saved model's folder"):
        load(tmp_path)


def test_a_vocoder_alone_says_how_to_load_it(tmp_path):
    sizes = {"hidden_size": 8, "decoder_hidden_size": 8, "decoder_num_layers": 1, "hop_length": 20}
    UnitVocoderModel(UnitVocoderConfig(codebook_size=4, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json.*`AutoModel\.from_pretrained`"):
        load(tmp_path)


@pytest.fixture
def saved(tmp_path):
    """A folder with a small codec, and its weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "codebook_size": 8, "codebook_dim": 16, "num_filters": 4}
    model = RVQCodecModel(RVQCodecConfig(**sizes)).eval()
    model.save_pretrained(tmp_path)
    return tmp_path, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_weights_stored_in_half_are_computed_with_in_single_precision(saved):
    folder, before = saved
    size = (folder / "model.safetensors").stat().st_size
    store_in_half(folder)
    assert (folder / "model.safetensors").stat().st_size < 0.6 * size
    after = AutoModel.from_pretrained(folder).state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        rounded = tensor.half().float() if tensor.is_floating_point() else tensor
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], rounded)


def test_what_half_precision_cannot_hold_leaves_the_folder_as_it_was(saved):
    folder, _ = saved
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = 1e5
    model.save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="has values beyond 65,504"):
        store_in_half(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_a_folder_without_weights_cannot_be_stored_in_half(tmp_path):
    with pytest.raises(ValueError, match=r"has no model\.safetensors; name the folder"):
        store_in_half(tmp_path)


@pytest.mark.parametrize("name", list_checkpoints())
def test_every_road_to_a_checkpoint_leads_to_the_same_weights(name):
    model, _ = load(name)
    direct = AutoModel.from_pretrained(find_checkpoint(name)).state_dict()
    for key, tensor in model.state_dict().items():
        assert direct[key].dtype == tensor.dtype
        assert torch.equal(direct[key], tensor)
