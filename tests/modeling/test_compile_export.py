# SPDX-License-Identifier: Apache-2.0
"""Coding compiles and exports as one graph, and waits for the device only to check what it was given."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from speech_tokenizers.modeling import input_checks


# One stride is enough to trace every kind of layer, and halves the time that it takes.
CODECS = {
    "seanet": {"encoder_lstm": "none", "decoder_lstm": "none", "downsampling_ratios": (10,)},
    # DM-Codec and SpeechTokenizer as converted, with a bidirectional decoder to boot.
    "seanet-lstm": {
        "semantic_dimension": 6,
        "contextual_dimension": 10,
        "encoder_lstm": "bidirectional",
        "decoder_lstm": "bidirectional",
        "activation": "snake",
        "pad_mode": "reflect",
        "downsampling_ratios": (10,),
    },
    "seanet-causal": {"causal": True, "pad_mode": "replicate", "downsampling_ratios": (10,)},
    "spectral": {"encoder_type": "stft", "decoder_type": "istft", "codebook_dim": 6},
    "spectral-dm-codec": {"encoder_type": "stft", "decoder_type": "istft", "semantic_dimension": 6},
    "spectral-causal": {"encoder_type": "stft", "decoder_type": "istft", "causal": True},
    "spectral-fine": {
        "encoder_type": "stft",
        "decoder_type": "istft",
        "decoder_spectra": 2,
        "decoder_complex_residual": True,
    },
}
# Each trace takes seconds: `make test` runs the two that hold every layer, with masks, and the others are slow.
TRACED = [
    pytest.param(name, masked, marks=() if masked and name in ("seanet-lstm", "spectral") else pytest.mark.slow)
    for name, masked in itertools.product(CODECS, (False, True))
]
EXPORTED = [
    pytest.param(name, marks=() if name in ("seanet-lstm", "spectral") else pytest.mark.slow) for name in CODECS
]
TOLERANCE = {"rtol": 0, "atol": 1e-5}


class Encode(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_values, padding_mask=None):
        return self.model.encode(input_values, padding_mask=padding_mask).audio_codes


class Decode(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, audio_codes, audio_codes_mask=None):
        return self.model.decode(audio_codes, audio_codes_mask=audio_codes_mask).audio_values


def right_padded(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)).long()


@pytest.mark.parametrize(("name", "masked"), TRACED)
@torch.no_grad()
def test_coding_compiles_as_one_graph(codec, signal, name, masked):
    torch.compiler.reset()
    model = codec(**CODECS[name])
    encode = torch.compile(Encode(model), fullgraph=True, backend="eager")
    decode = torch.compile(Decode(model), fullgraph=True, backend="eager")
    waveform = signal(2, 777)
    mask = right_padded([777, 333]) if masked else None
    expected = model.encode(waveform, padding_mask=mask)
    frame_mask = expected.audio_codes_mask if masked else None
    assert torch.equal(encode(waveform, mask), expected.audio_codes)
    decoded = model.decode(expected.audio_codes, audio_codes_mask=frame_mask).audio_values
    torch.testing.assert_close(decode(expected.audio_codes, frame_mask), decoded, **TOLERANCE)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("seanet", "spectral")), "spectral-dm-codec"]
)
@torch.no_grad()
def test_the_forward_pass_with_its_losses_compiles_as_one_graph(codec, signal, name):
    torch.compiler.reset()
    model, waveform = codec(**CODECS[name]), signal(2, 4000)
    expected = model(waveform)
    outputs = torch.compile(model, fullgraph=True, backend="eager")(waveform)
    torch.testing.assert_close(outputs.loss, expected.loss)
    torch.testing.assert_close(outputs.audio_values, expected.audio_values, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seanet-lstm", "spectral"])
@torch.no_grad()
def test_inductor_computes_the_same(codec, signal, name):
    torch.compiler.reset()
    model, waveform = codec(**CODECS[name]), signal(2, 2000)
    expected = model.encode(waveform).audio_codes
    assert torch.equal(torch.compile(Encode(model), fullgraph=True)(waveform), expected)
    decoded = torch.compile(Decode(model), fullgraph=True)(expected)
    torch.testing.assert_close(decoded, model.decode(expected).audio_values, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", EXPORTED)
@torch.no_grad()
def test_coding_exports(codec, signal, name):
    model, waveform = codec(**CODECS[name]), signal(2, 777)
    audio_codes = model.encode(waveform).audio_codes
    encode = torch.export.export(Encode(model), (waveform,)).module()
    decode = torch.export.export(Decode(model), (audio_codes,)).module()
    other = signal(2, 777, seed=5)
    other_codes = model.encode(other).audio_codes
    assert not torch.equal(other_codes, audio_codes)
    assert torch.equal(encode(other), other_codes)
    torch.testing.assert_close(decode(other_codes), model.decode(other_codes).audio_values, **TOLERANCE)


@pytest.mark.parametrize("name", [pytest.param("seanet", marks=pytest.mark.slow), "spectral"])
@torch.no_grad()
def test_one_export_serves_every_number_of_frames(codec, signal, name):
    model = codec(**CODECS[name])
    frames = torch.export.Dim("frames", min=4, max=10_000)
    waveform, hop_length = signal(1, 800), model.hop_length
    audio_codes = model.encode(waveform).audio_codes
    encode = torch.export.export(Encode(model), (waveform,), dynamic_shapes=({2: hop_length * frames},))
    decode = torch.export.export(Decode(model), (audio_codes,), dynamic_shapes=({2: frames},))
    for num_frames in (4, 33):
        other = signal(1, num_frames * hop_length, seed=num_frames)
        expected = model.encode(other).audio_codes
        assert torch.equal(encode.module()(other), expected)
        torch.testing.assert_close(decode.module()(expected), model.decode(expected).audio_values, **TOLERANCE)


class NoDeviceWaits(TorchDispatchMode):
    """Refuse every operation whose result, or whose result's shape, the host has to wait for."""

    waiting = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if name in self.waiting:
            raise AssertionError(f"{function.name()} waits for the device")
        return function(*args, **(kwargs or {}))


def test_the_guard_against_device_waits_works():
    with NoDeviceWaits(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(3).sum().item()


@pytest.mark.parametrize(("name", "masked"), list(itertools.product(CODECS, [False, True])))
@torch.no_grad()
def test_coding_waits_for_the_device_only_to_check_its_input(codec, signal, name, masked, monkeypatch):
    monkeypatch.setattr(input_checks, "numbers_are_known", lambda: False)
    model, waveform = codec(**CODECS[name]), signal(2, 777)
    mask = right_padded([777, 333]) if masked else None
    with NoDeviceWaits():
        encoded = model.encode(waveform, padding_mask=mask)
        frame_mask = encoded.audio_codes_mask if masked else None
        model.decode(encoded.audio_codes, audio_codes_mask=frame_mask, num_samples=777)
        model.decode(latents=encoded.latents)
        model(waveform, padding_mask=mask)
