# SPDX-License-Identifier: Apache-2.0
"""
DM-Codec computes what the original code of SpeechTokenizer and DM-Codec computes from the same weights.

The weights are random; those of the full size are not stored, since a rule makes them from their names. The expected
values are those of DM-Codec at commit 25c742a; SpeechTokenizer at commit 30c96fb computes the same to the bit.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from speech_tokenizers.conversion.speechtokenizer import (
    LineageNetwork,
    codec_config_of,
    compare_with_original,
    rename_state,
)
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel


FIXTURE = Path(__file__).parents[1] / "fixtures" / "dm_codec_full_size.safetensors"
TOLERANCE = {"rtol": 0, "atol": 1e-5}
FULL_SIZE_TOLERANCE = {"encoder": {"rtol": 0, "atol": 1e-4}, "waveform": {"rtol": 0, "atol": 5e-4}}


@pytest.fixture(scope="module", params=["elu_small", "snake_small"])
def either(request, load_original):
    model, _, _, expected = load_original(request.param)
    return model, expected


@pytest.mark.parametrize("suffix", ["", "_odd"])
@torch.no_grad()
def test_codes_are_the_original_s(either, suffix):
    model, expected = either
    encoded = model.encode(expected[f"x{suffix}"])
    assert torch.equal(encoded.audio_codes, expected[f"codes{suffix}"].transpose(0, 1).long())


@torch.no_grad()
def test_encoder_output_and_shorter_codes_are_the_original_s(either):
    model, expected = either
    encoded = model.encode(expected["x"], num_quantizers=2)
    torch.testing.assert_close(encoded.latents.transpose(1, 2), expected["encoder_out"], **TOLERANCE)
    assert torch.equal(encoded.audio_codes, expected["codes_nq2"].transpose(0, 1).long())


@pytest.mark.parametrize("suffix", ["", "_odd"])
@torch.no_grad()
def test_decoded_waveform_is_the_original_s(either, suffix):
    model, expected = either
    decoded = model.decode(expected[f"codes{suffix}"].transpose(0, 1)).audio_values
    # The original returns whole frames; here `num_samples` cuts to the length of the input.
    torch.testing.assert_close(decoded, expected[f"decode{suffix}_wav"], **TOLERANCE)


@torch.no_grad()
def test_waveform_of_the_first_codebook_is_the_original_s(either):
    model, expected = either
    decoded = model.decode(expected["codes"][:1].transpose(0, 1)).audio_values
    torch.testing.assert_close(decoded, expected["decode_first_wav"], **TOLERANCE)


@torch.no_grad()
def test_forward_is_the_original_s(either):
    model, expected = either
    outputs = model(expected["x"], return_loss=False)
    torch.testing.assert_close(outputs.audio_values, expected["decode_wav"], **TOLERANCE)
    for features in (outputs.semantic_features, outputs.contextual_features):
        torch.testing.assert_close(features, expected["forward_feature"], **TOLERANCE)


@pytest.mark.parametrize("name", ["elu_small", "snake_small"])
@torch.no_grad()
def test_features_of_the_second_codebook_are_the_original_s(name, load_original):
    model, _, _, expected = load_original(name, "contextual")
    model.config.contextual_stage = 2
    outputs = model(expected["x"], num_quantizers=2, return_loss=False)
    assert outputs.semantic_features is None
    torch.testing.assert_close(outputs.contextual_features, expected["forward_nq2_layer1_feature"], **TOLERANCE)


@pytest.mark.parametrize("name", ["elu_small", "snake_small"])
@torch.no_grad()
def test_the_network_that_conversions_are_checked_with_is_the_original_s(name, load_original):
    model, state, fields, expected = load_original(name)
    original, codes = LineageNetwork(state, fields), expected["codes"].transpose(0, 1).long()
    torch.testing.assert_close(original.encode(expected["x"]).transpose(1, 2), expected["encoder_out"], **TOLERANCE)
    torch.testing.assert_close(original.decode(codes), expected["decode_wav"], **TOLERANCE)
    torch.testing.assert_close(original.features(codes), expected["forward_feature"], **TOLERANCE)
    assert original.distances(original.encode(expected["x"]), codes).max() < 1e-6
    assert max(compare_with_original(model, original, expected["x"], Path(name)).values()) < 1e-5


# 104 million weights: half a minute of hashing and of the network.
@pytest.mark.slow
@torch.no_grad()
def test_the_full_size_is_the_original_s(hashed_uniform):
    with safe_open(FIXTURE, framework="pt") as file:
        metadata, expected = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    fields, seed = json.loads(metadata["config"]), int(metadata["hash_seed"])
    state = {}
    for key, (shape, rule, offset, digest) in json.loads(metadata["tensors"]).items():
        if rule == "constant":
            state[key] = torch.full(shape, offset)
        elif isinstance(rule, str):  # a copy of another
            state[key] = state[rule]
        else:
            values = (offset + rule * hashed_uniform(key, int(np.prod(shape)), seed)).astype(np.float32)
            assert hashlib.sha256(values.tobytes()).hexdigest().startswith(digest), key
            state[key] = torch.from_numpy(values).view(shape)
    model = DMCodecModel(codec_config_of(fields, "shared", Path("full size"))).eval()
    model.load_state_dict(rename_state(state, fields, model, Path("full size")))
    assert sum(parameter.numel() for parameter in model.parameters()) == 103_675_586

    outputs = model(expected["x"], return_loss=False)
    assert torch.equal(outputs.audio_codes, expected["codes"].transpose(0, 1).long())
    latents, features = outputs.latents.transpose(1, 2)[:, ::16], outputs.semantic_features[..., ::16]
    torch.testing.assert_close(latents, expected["encoder_out"], **FULL_SIZE_TOLERANCE["encoder"])
    torch.testing.assert_close(features, expected["forward_feature"], **FULL_SIZE_TOLERANCE["encoder"])
    torch.testing.assert_close(outputs.audio_values, expected["decode_wav"], **FULL_SIZE_TOLERANCE["waveform"])
    audio_codes = model.encode(expected["x_odd"]).audio_codes
    assert torch.equal(audio_codes, expected["codes_odd"].transpose(0, 1).long())
    decoded = model.decode(audio_codes).audio_values
    torch.testing.assert_close(decoded, expected["decode_odd_wav"], **FULL_SIZE_TOLERANCE["waveform"])
    assert torch.equal(model.encode(expected["x"], num_quantizers=2).audio_codes, outputs.audio_codes[:, :2])
