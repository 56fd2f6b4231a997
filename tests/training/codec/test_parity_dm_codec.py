# SPDX-License-Identifier: Apache-2.0
"""
One training step of DM-Codec computes what the original code (commit 25c742a) computes from the same weights: every
loss, every gradient, every buffer. So do the losses of distillation by themselves.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speech_tokenizers.conversion.speechtokenizer import rename
from speech_tokenizers.modeling.spectral_losses import SPEECHTOKENIZER_MEL_SCALES, multi_scale_mel_loss
from speech_tokenizers.modeling.vector_quantization import ResidualVectorQuantizer
from speech_tokenizers.training.codec.discriminators import DiscriminatorOutput, MultiScaleSTFTDiscriminator
from speech_tokenizers.training.codec.losses import (
    adversarial_loss,
    discriminator_loss,
    distillation_loss,
    feature_matching_loss,
    waveform_loss,
)


FIXTURES = Path(__file__).parents[2] / "fixtures"
# As in its code, where the mel scales have weights of their own (45, 1, 1, 1).
ORIGINAL_LOSS_WEIGHTS = {
    "feature": 1.0,
    "adv": 1.0,
    "mel_total": 1.0,
    "commit": 10.0,
    "recon": 500.0,
    "distill": 120.0,
}


class LineageQuantizer(ResidualVectorQuantizer):
    """As in the EnCodec lineage, whose stages after the first send the encoder no gradient (EnCodec issue 25)."""

    def remainder(self, residual: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        return super().remainder(residual, entry).detach()


@pytest.fixture(scope="module")
def step(load_original):
    """Codec after the forward and backward pass of a step, its outputs, its losses, and the original's values."""
    expected = load_file(FIXTURES / "dm_codec_train_step.safetensors")
    of_discriminator = load_file(FIXTURES / "speechtokenizer_msstft.safetensors")
    expected |= {name: of_discriminator[name] for name in ("x", "x_hat")}
    model, _, _, _ = load_original("elu_small")
    model.quantizer.__class__ = LineageQuantizer
    for quantizer in model.quantizer.quantizers:
        quantizer.dead_code_threshold = 0.0  # entries are never replaced there, whatever its setting
    discriminator = MultiScaleSTFTDiscriminator(num_filters=4).eval()
    discriminator.load_state_dict(
        {
            rename(key.removeprefix("weights."))
            .replace(".convs.", ".layers.")
            .replace(".conv_post.", ".head.")
            .replace(".conv.", "."): value
            for key, value in of_discriminator.items()
            if key.startswith("weights.") and "spec_transform" not in key
        }
    )

    recorded = expected["x"]
    outputs = model.train()(recorded, return_loss=False)
    decoded = outputs.audio_values
    real, fake = discriminator(recorded), discriminator(decoded)
    losses = {
        "feature": 2 * feature_matching_loss(real, fake),
        "adv": adversarial_loss(fake),
        "mel_total": multi_scale_mel_loss(decoded, recorded, 16000, SPEECHTOKENIZER_MEL_SCALES),
        "commit": outputs.commitment_loss,
        "recon": waveform_loss(decoded, recorded),
        "distill_sem": distillation_loss(outputs.semantic_features, expected["sem_target"]),
        "distill_ctx": distillation_loss(outputs.contextual_features, expected["ctx_target"]),
    }
    losses["distill"] = (losses["distill_sem"] + losses["distill_ctx"]) / 2
    losses["total"] = sum(weight * losses[name] for name, weight in ORIGINAL_LOSS_WEIGHTS.items())
    losses["total"].backward()
    of_decoded = [DiscriminatorOutput(opinion.logits.detach(), []) for opinion in fake]
    losses["disc"] = discriminator_loss(real, of_decoded)
    return model, outputs, losses, expected


def test_every_loss_is_the_original_s(step):
    _, outputs, losses, expected = step
    torch.testing.assert_close(outputs.audio_values, expected["x_hat"], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.semantic_features, expected["feature"], rtol=0, atol=1e-5)
    assert torch.equal(outputs.semantic_features, outputs.contextual_features)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[f"loss_{name}"], rtol=1e-5, atol=0, msg=name)


def test_every_gradient_is_the_original_s(step):
    model, _, _, expected = step
    gradients = {
        rename(name.removeprefix("grad.")): value for name, value in expected.items() if name.startswith("grad.")
    }
    assert len(gradients) == 134
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        # The large ones are stored in half precision.
        precision = 1e-3 if gradients[name].dtype == torch.float16 else 1e-5
        largest = gradients[name].abs().max().item()
        expected_gradient = gradients[name].float()
        torch.testing.assert_close(parameter.grad, expected_gradient, rtol=0, atol=precision * largest, msg=name)


def test_every_buffer_is_the_original_s(step):
    model, _, _, expected = step
    buffers = {
        rename(name.removeprefix("buffer_after.")): value
        for name, value in expected.items()
        if name.startswith("buffer_after.")
    }
    assert len(buffers) == 3 * 8  # entries, their sums and their counts, of each codebook
    for name, value in buffers.items():
        torch.testing.assert_close(model.get_buffer(name), value, rtol=0, atol=1e-5, msg=name)


def test_here_later_codebooks_teach_the_encoder_and_there_they_do_not(step, load_original):
    _, outputs, _, expected = step
    assert [latents.requires_grad for latents in outputs.stage_latents] == [True] + [False] * 7
    model, _, _, _ = load_original("elu_small")
    model.train()(expected["x"], return_loss=False).stage_latents[7].square().sum().backward()
    assert model.encoder.layers[0].conv.bias.grad.abs().sum() > 0


# Distillation alone


@pytest.fixture(scope="module")
def distillation():
    return load_file(FIXTURES / "dm_codec_distillation.safetensors")


@pytest.mark.parametrize("case", ["eq", "short_target", "long_target"])
def test_distillation_over_dimensions_is_the_original_s(distillation, case):
    features = distillation[f"d_axis.{case}.feature"].clone().requires_grad_()
    loss = distillation_loss(features, distillation[f"d_axis.{case}.target"])
    torch.testing.assert_close(loss, distillation[f"d_axis.{case}.loss"])
    loss.backward()
    torch.testing.assert_close(features.grad, distillation[f"d_axis.{case}.grad_feature"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("case", ["eq", "short_target", "long_target"])
def test_distillation_over_time_is_the_original_s(distillation, case):
    features, targets = distillation[f"d_axis.{case}.feature"], distillation[f"d_axis.{case}.target"]
    loss = distillation_loss(features, targets, axis="time")
    torch.testing.assert_close(loss, distillation[f"t_axis.{case}.loss_lambda_sim_1.0"])


@pytest.mark.parametrize(("name", "speech", "language"), [("default_mean", 0.5, 0.5), ("sm0.2_lm0.8", 0.2, 0.8)])
def test_the_weighted_sum_of_two_teachers_is_the_original_s(distillation, name, speech, language):
    features = distillation["combined.feature"]
    speech_loss = distillation_loss(features, distillation["combined.sm_target"])
    language_loss = distillation_loss(features, distillation["combined.lm_target"])
    torch.testing.assert_close(speech_loss, distillation["combined.loss_sm"])
    torch.testing.assert_close(language_loss, distillation["combined.loss_lm"])
    torch.testing.assert_close(speech * speech_loss + language * language_loss, distillation[f"combined.{name}"])
