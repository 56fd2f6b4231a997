# SPDX-License-Identifier: Apache-2.0
"""A front end that begins as a mel spectrum."""

import math

import pytest
import torch
from transformers import HubertConfig, HubertModel

from speech_tokenizers.training.units.spectral_stem import check_spectral_stem, init_spectral_stem


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def stem(conv_dim=(64, 32, 16), conv_kernel=(240, 2, 2), conv_stride=(80, 2, 2)):
    torch.manual_seed(0)
    geometry = {"conv_dim": conv_dim, "conv_kernel": conv_kernel, "conv_stride": conv_stride}
    return HubertModel(HubertConfig(**SIZES, **geometry, num_feat_extract_layers=len(conv_dim))).feature_extractor


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 3000.0])
def test_a_tone_is_loudest_in_the_band_of_its_frequency(frequency):
    model = stem()
    init_spectral_stem(model)
    tone = torch.sin(math.tau * frequency / 16000 * torch.arange(8000))
    filtered = model.conv_layers[0].conv(tone[None, None])[0]  # (64, F)
    loudest = filtered.view(16, 4, -1).square().sum(dim=(1, 2)).argmax()
    mel = [math.log1p(hertz / 700) for hertz in (80.0, 7600.0, frequency)]
    assert abs(int(loudest) - 15 * (mel[2] - mel[0]) / (mel[1] - mel[0])) <= 1


def test_a_tone_sounds_alike_in_any_phase_unless_the_filters_are_random():
    times, spread = torch.arange(8000) / 16000, {}
    tones = torch.stack([torch.sin(math.tau * 700 * times + phase) for phase in torch.linspace(0, 3, 16)])
    for kind in ("random", "spectral"):
        model = stem()
        if kind == "spectral":
            init_spectral_stem(model)
        with torch.no_grad():
            hidden = model.conv_layers[1].conv(model.conv_layers[0](tones[:, None]))  # (16, 32, F)
        over_phases = hidden.std(dim=0).mean()
        spread[kind] = float(over_phases / hidden.mean(dim=(0, 2)).std())
    assert spread["spectral"] < 0.5 * spread["random"]


def test_the_generator_decides_the_values_and_they_can_be_trained():
    models = [stem(), stem(), stem()]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(seed)
        init_spectral_stem(model)
    one, same, other = [model.conv_layers[1].conv.weight for model in models]
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert all(parameter.requires_grad for parameter in models[0].parameters())


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"conv_dim": (64,), "conv_kernel": (240,), "conv_stride": (320,)}, "two convolutions or more"),
        ({"conv_kernel": (10, 2, 2)}, r"`conv_kernel\[0\]` is at least 128 samples, but it is 10"),
        ({"conv_dim": (66, 32, 16)}, r"`conv_dim\[0\]` is a multiple of 4, but it is 66"),
    ],
)
def test_front_ends_that_cannot_hear_a_spectrum_are_refused(geometry, message):
    with pytest.raises(ValueError, match=message):
        check_spectral_stem(stem(**geometry))
