# SPDX-License-Identifier: Apache-2.0
"""Discriminators against EnCodec's and HiFi-GAN's, whose weights and outputs SpeechTokenizer's code gave."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speech_tokenizers.training.codec.discriminators import (
    DiscriminatorEnsemble,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
)
from speech_tokenizers.training.codec.losses import adversarial_loss, discriminator_loss, feature_matching_loss


FIXTURES = Path(__file__).parents[2] / "fixtures"


def our_key(key: str) -> str:
    key = key.replace(".conv.", ".").replace(".convs.", ".layers.").replace(".conv_post.", ".head.")
    key = key.replace("weight_g", "parametrizations.weight.original0")
    return key.replace("weight_v", "parametrizations.weight.original1")


def statistics(features):
    return torch.stack([torch.stack([f.mean(), f.abs().mean(), f.square().mean().sqrt()]) for f in features])


def test_stft_discriminator_equals_encodec():
    reference = load_file(FIXTURES / "speechtokenizer_msstft.safetensors")
    weights = {
        our_key(key.removeprefix("weights.")): value
        for key, value in reference.items()
        if key.startswith("weights.") and "spec_transform" not in key
    }
    model = MultiScaleSTFTDiscriminator(num_filters=4)
    model.load_state_dict(weights)
    with torch.no_grad():
        real, fake = model(reference["x"]), model(reference["x_hat"])
    for kind, outputs in (("real", real), ("fake", fake)):
        for i, output in enumerate(outputs):
            expected = reference[f"msstft_logit_{kind}.{i}"]
            torch.testing.assert_close(output.logits[:1], expected, atol=1e-5, rtol=1e-4)
            expected = reference[f"msstft_fmap_{kind}_stats.{i}"]
            torch.testing.assert_close(statistics(f.double() for f in output.features), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(discriminator_loss(real, fake), reference["loss_disc"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adversarial_loss(fake), reference["loss_adv"], atol=1e-5, rtol=1e-5)
    feature_loss = 2 * feature_matching_loss(real, fake)
    torch.testing.assert_close(feature_loss, reference["loss_feature"], atol=1e-5, rtol=1e-5)


def original_keys(model: torch.nn.Module) -> dict[str, str]:
    """Our keys -> HiFi-GAN's."""
    keys = {}
    for key in model.state_dict():
        original = key.replace(".layers.", ".convs.").replace(".head.", ".conv_post.")
        original = original.replace("parametrizations.weight.original0", "weight_g")
        original = original.replace("parametrizations.weight.original1", "weight_v")
        original = original.replace("parametrizations.weight.original", "weight_orig")
        original = original.replace("parametrizations.weight.0._", "weight_")
        keys[key] = original
    return keys


# 71 million weights: a quarter of a minute of hashing and convolving.
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "build"), [("mpd", MultiPeriodDiscriminator), ("msd", MultiScaleDiscriminator)])
def test_waveform_discriminators_equal_hifigan(kind, build, hashed_uniform):
    reference = load_file(FIXTURES / "hifigan_discriminators.safetensors")
    model, weights = build(), {}
    for key, original in original_keys(model).items():
        tensor = model.state_dict()[key]
        if f"{kind}_sn.{original}" in reference:
            weights[key] = reference[f"{kind}_sn.{original}"]
            continue
        scale, offset = {"bias": (0.05, 0.0), "weight_g": (0.1, 1.5)}.get(original.rsplit(".", 1)[1], (1.0, 0.0))
        values = offset + scale * hashed_uniform(f"{kind}.{original}", tensor.numel(), seed=21)
        weights[key] = torch.from_numpy(values.astype(np.float32)).view(tensor.shape)
    model.load_state_dict(weights)
    model.eval()

    decoded = reference["y_hat"].requires_grad_(True)
    with torch.no_grad():
        real = model(reference["y"])
    fake = model(decoded)
    for name, outputs in (("real", real), ("fake", fake)):
        for i, output in enumerate(outputs):
            torch.testing.assert_close(output.logits, reference[f"{kind}_logit_{name}.{i}"], atol=1e-4, rtol=1e-4)
            expected = reference[f"{kind}_fmap_{name}_stats.{i}"]
            computed = statistics(f.detach().double() for f in output.features)
            torch.testing.assert_close(computed, expected, atol=1e-5, rtol=1e-4)
    loss_feature, loss_adv = 2 * feature_matching_loss(real, fake), adversarial_loss(fake)
    torch.testing.assert_close(discriminator_loss(real, fake), reference[f"{kind}_loss_disc"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(loss_feature, reference[f"{kind}_loss_feature"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(loss_adv, reference[f"{kind}_loss_adv"], atol=1e-4, rtol=1e-5)
    (loss_feature + loss_adv).backward()
    torch.testing.assert_close(decoded.grad, reference[f"{kind}_grad_y_hat"], atol=1e-4, rtol=1e-3)


def test_sizes_are_chosen_and_kinds_left_out():
    ensemble = DiscriminatorEnsemble(
        multi_scale_stft={"num_filters": 2, "n_ffts": [64, 128], "bins_per_position": 4},
        multi_period={"periods": [2, 3], "channels": [2, 4]},
        multi_scale={"num_scales": 2, "width": 16},
    )
    audio = torch.randn(3, 1, 501)
    outputs = ensemble(audio)
    assert len(outputs) == 6
    assert all(len(output.logits) == 3 for output in outputs)
    assert len(DiscriminatorEnsemble(multi_period={"periods": [2], "channels": [2]})(audio)) == 1


def test_a_misspelt_kind_or_size_is_an_error():
    with pytest.raises(ValueError, match="did you mean `multi_scale_stft.num_filters`"):
        DiscriminatorEnsemble(multi_scale_stft={"num_filter": 4})
    with pytest.raises(ValueError, match="did you mean `multi_period`"):
        DiscriminatorEnsemble(multi_periods={})


def test_default_sizes_are_those_of_the_papers():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in kind().parameters())
            for kind in (MultiScaleSTFTDiscriminator, MultiPeriodDiscriminator, MultiScaleDiscriminator)
        ]
    assert [round(count / 1e6, 1) for count in counts] == [0.5, 41.1, 29.6]
