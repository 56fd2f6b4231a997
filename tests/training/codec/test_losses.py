# SPDX-License-Identifier: Apache-2.0
"""Losses against SpeechTokenizer's own numbers and values computed by hand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speech_tokenizers.training.codec.discriminators import DiscriminatorOutput
from speech_tokenizers.training.codec.losses import (
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    parse_mel_scales,
    waveform_loss,
)


@pytest.fixture(scope="module")
def reference():
    return load_file(Path(__file__).parents[2] / "fixtures" / "speechtokenizer_losses.safetensors")


def outputs_of(reference, kind):
    return [
        DiscriminatorOutput(
            reference[f"gan.logit_{kind}.{i}"], [reference[f"gan.fmap_{kind}.{i}.{j}"] for j in range(3)]
        )
        for i in range(2)
    ]


def test_adversarial_losses_equal_speechtokenizer(reference):
    real, fake = outputs_of(reference, "real"), outputs_of(reference, "fake")
    torch.testing.assert_close(discriminator_loss(real, fake), reference["gan.discriminator_loss"])
    torch.testing.assert_close(adversarial_loss(fake), reference["gan.adversarial_loss"])
    # HiFi-GAN's code, and SpeechTokenizer's after it, doubles the sum.
    torch.testing.assert_close(2 * feature_matching_loss(real, fake), reference["gan.feature_loss"])


def test_waveform_loss_equals_speechtokenizer(reference):
    torch.testing.assert_close(waveform_loss(reference["wav_hat"], reference["wav"]), reference["recon_loss"])
    short = reference["wav_hat"][..., :15800]
    torch.testing.assert_close(waveform_loss(short, reference["wav"]), reference["recon_loss_short"])


def test_hinge_losses_by_hand():
    real = [DiscriminatorOutput(torch.tensor([[2.0, 0.0]]), [])]
    fake = [DiscriminatorOutput(torch.tensor([[-3.0, 0.5]]), [])]
    # max(0, 1 - 2) = 0, max(0, 1 - 0) = 1; max(0, 1 - 3) = 0, max(0, 1 + 0.5) = 1.5
    assert discriminator_loss(real, fake, "hinge") == 0.5 + 0.75
    assert adversarial_loss(fake, "hinge") == 1.25


def test_relative_feature_matching_does_not_depend_on_the_scale():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 3, 4, 5, generator=generator)
    loss = feature_matching_loss(
        [DiscriminatorOutput(real, [real])], [DiscriminatorOutput(fake, [fake])], relative=True
    )
    scaled = feature_matching_loss(
        [DiscriminatorOutput(real, [100 * real])], [DiscriminatorOutput(fake, [100 * fake])], relative=True
    )
    torch.testing.assert_close(scaled, loss)


def test_no_gradient_flows_into_features_of_the_recording():
    real, fake = torch.ones(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    feature_matching_loss([DiscriminatorOutput(real, [real])], [DiscriminatorOutput(fake, [fake])]).backward()
    assert real.grad is None
    assert fake.grad is not None


def test_mel_scales_by_name_and_by_list():
    assert sum(scale.weight for scale in parse_mel_scales("default")) == pytest.approx(1.0)
    (scale,) = parse_mel_scales([{"n_fft": 256, "hop_length": 64, "num_mels": 20}])
    assert (scale.n_fft, scale.weight) == (256, 1.0)
    with pytest.raises(ValueError, match="did you mean `num_mels`"):
        parse_mel_scales([{"n_fft": 256, "hop_length": 64, "num_mel": 20}])
    with pytest.raises(ValueError, match="speechtokenizer"):
        parse_mel_scales("speech")
