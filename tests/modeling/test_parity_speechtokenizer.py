# SPDX-License-Identifier: Apache-2.0
r"""
The RVQ codec computes what the network of SpeechTokenizer and DM-Codec computes.

`tests/fixtures/speechtokenizer_*_small.safetensors` hold random weights (`state.*`, under the names of the original
code) and what the original code, DM-Codec at commit 25c742a, computed from them (`io.*`); the one with Snake has no
encoder, to keep it small. The SpeechTokenizer code at commit 30c96fb computes the same to the bit.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel


FIXTURES = Path(__file__).parents[1] / "fixtures"
TOLERANCE = {"rtol": 0, "atol": 1e-5}

RENAMED = [
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.conv\.conv\.|\.convtr\.convtr\.", ".conv."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.embed$", r"quantizer.quantizers.\1.codebook"),
    (r"^transform\.", "semantic_projection."),
]


def rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def load_original(name: str) -> tuple[RVQCodecModel, dict[str, torch.Tensor]]:
    with safe_open(FIXTURES / f"speechtokenizer_{name}.safetensors", framework="pt") as file:
        original = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    config = RVQCodecConfig(
        sampling_rate=original["sample_rate"],
        num_filters=original["n_filters"],
        hidden_size=original["dimension"],
        downsampling_ratios=original["strides"][::-1],
        residual_kernel_size=original["residual_kernel_size"],
        num_residual_layers=original["n_residual_layers"],
        dilation_growth_rate=original["dilation_base"],
        num_lstm_layers=original["lstm_layers"],
        encoder_lstm="bidirectional" if original["bidirectional"] else "unidirectional",
        decoder_lstm="unidirectional",
        activation=original["activation"].lower(),
        pad_mode="reflect",
        num_quantizers=original["n_q"],
        codebook_size=original["codebook_size"],
        semantic_dimension=original["semantic_dimension"],
    )
    model = RVQCodecModel(config).eval()
    state = {rename(key.removeprefix("state.")): value for key, value in tensors.items() if key.startswith("state.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    learnt_elsewhere = ("codebook_sum", "cluster_size", "initialized", "num_updates")
    missing = [key for key in missing if not key.endswith(learnt_elsewhere)]
    assert all(key.startswith("encoder.") for key in missing) if name == "snake_small" else not missing
    return model, {key.removeprefix("io."): value for key, value in tensors.items() if key.startswith("io.")}


@pytest.fixture(scope="module")
def elu_small():
    return load_original("elu_small")


@pytest.fixture(scope="module", params=["elu_small", "snake_small"])
def either(request):
    return load_original(request.param)


@pytest.mark.parametrize("suffix", ["", "_odd"])
@torch.no_grad()
def test_codes_are_the_original_s(elu_small, suffix):
    model, expected = elu_small
    encoded = model.encode(expected[f"x{suffix}"])
    assert torch.equal(encoded.audio_codes, expected[f"codes{suffix}"].transpose(0, 1).long())


@torch.no_grad()
def test_encoder_output_and_shorter_codes_are_the_original_s(elu_small):
    model, expected = elu_small
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
def test_forward_is_the_original_s(elu_small):
    model, expected = elu_small
    outputs = model(expected["x"], return_loss=False)
    torch.testing.assert_close(outputs.audio_values, expected["decode_wav"], **TOLERANCE)
    torch.testing.assert_close(outputs.semantic_features, expected["forward_feature"], **TOLERANCE)


@torch.no_grad()
def test_semantic_features_of_codes_are_the_original_s(either):
    model, expected = either
    first = model.quantizer.quantizers[0].decode(expected["codes"][0].long())
    torch.testing.assert_close(model.semantic_projection(first), expected["forward_feature"], **TOLERANCE)
