# SPDX-License-Identifier: Apache-2.0
"""
Sinkhorn, the swapped loss, its gradients, training steps and a whole model are those of the original Spin.

The expected values were computed by vectominist/spin at commit 73edb7a, on s3prl at commit ec8064b. Of DC-Spin no code
is public: the two codebooks' values come from two of the original's modules, so they show the wiring alone.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import HubertConfig

from speech_tokenizers.conversion.spin import LEFT_OVER, rename_spin
from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.modeling.padding_invariance import frame_mask
from speech_tokenizers.modeling.swapped_prediction import SwappedPrediction, sinkhorn


FIXTURES = Path(__file__).parents[1] / "fixtures"


def cases_of(name: str) -> list[dict]:
    with safe_open(FIXTURES / f"{name}.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["cases"])


@pytest.mark.parametrize("case", cases_of("sinkhorn"), ids=str)
def test_sinkhorn(case):
    tensors = load_file(FIXTURES / "sinkhorn.safetensors")
    target = sinkhorn(tensors[f"case{case['case']}.logits"], case["epsilon"], case["iters"])
    torch.testing.assert_close(target, tensors[f"case{case['case']}.target"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("logits_at_once", [2**24, 100], ids=["at-once", "in-chunks"])
@pytest.mark.parametrize("case", cases_of("swapped_prediction"), ids=str)
def test_swapped_prediction_with_gradients(case, logits_at_once):
    tensors = load_file(FIXTURES / "swapped_prediction.safetensors")
    expected = {
        name.split(".", 1)[1]: value for name, value in tensors.items() if name.startswith(f"case{case['case']}.")
    }
    module = SwappedPrediction(
        case["num_vars"],
        case["dim"],
        temperature=case["temp"],
        epsilon=case["epsilon"],
        iterations=case["sinkhorn_iters"],
        hard_target=case["hard_target"],
        target_mix=case["prob_ratio"],
        normalize=case["l2_norm"],
        logits_at_once=logits_at_once,
    )
    module.codebook.data.copy_(expected["codebook_normalized"])
    views = [expected[name].requires_grad_() for name in ("z1", "z2")]
    outputs = module(*views)
    outputs.loss.backward()
    torch.testing.assert_close(outputs.loss.detach(), expected["loss"], rtol=0, atol=1e-5)
    for ours, name in ((views[0], "z1"), (views[1], "z2"), (module.codebook, "codebook")):
        torch.testing.assert_close(ours.grad, expected[f"grad_{name}"], rtol=0, atol=1e-5)
    accuracy = (expected["acc_1"] + expected["acc_2"]) / 2
    torch.testing.assert_close(outputs.accuracy, accuracy, rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.code_perplexity, expected["code_perplexity"], rtol=1e-5, atol=0)
    torch.testing.assert_close(outputs.probability_perplexity, expected["prob_perplexity"], rtol=1e-5, atol=0)
    latents = module.latents(views[0])
    logits = module.logits(latents) / case["temp"]
    torch.testing.assert_close(logits, expected["produce_logits"], rtol=0, atol=1e-5)
    assert torch.equal(module.encode(latents[None])[0], expected["produce_codes"])


def test_eight_steps_of_training():
    """In the original's order, whose first forward sees codes that have not been normalised."""
    expected = load_file(FIXTURES / "spin_trajectory.safetensors")
    head, module = nn.Linear(24, 16), SwappedPrediction(30, 16)
    with torch.no_grad():
        head.weight.copy_(expected["init.head.weight"])
        head.bias.copy_(expected["init.head.bias"])
        module.codebook.copy_(expected["init.codebook"])
    parameters = [*head.parameters(), *module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3, weight_decay=1e-6)
    for step in range(8):
        inputs, noise = expected["inputs"][step]
        length = module.codebook.detach().norm(dim=1).mean()
        torch.testing.assert_close(
            length.double(), expected["codebook_row_norm_mean_at_forward"][step], rtol=0, atol=1e-5
        )
        outputs = module(head(inputs), head(inputs + 0.3 * noise))
        torch.testing.assert_close(outputs.loss.detach().double(), expected["losses"][step], rtol=0, atol=1e-5)
        optimizer.zero_grad()
        outputs.loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        module.normalize_codebook()
        optimizer.param_groups[0]["lr"] = float(expected["lrs"][step])
        optimizer.step()
        for ours, name in ((head.weight, "head.weight"), (head.bias, "head.bias"), (module.codebook, "codebook")):
            torch.testing.assert_close(ours.detach(), expected[f"step{step}.{name}"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def original(spin_encoder):
    """Weights, inputs, outputs and gradients of the original SpinModel."""
    return {**spin_encoder, **load_file(FIXTURES / "spin_model.safetensors")}


@pytest.fixture(scope="module")
def spin_model(original):
    """Function: the original's model as ours, with fields of the configuration."""

    def make(**fields) -> DCSpinModel:
        encoder_config = HubertConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            conv_dim=[24] * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            hidden_dropout=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
        )
        config = DCSpinConfig(
            encoder_config=encoder_config,
            encoder_layer=3,
            projection_dim=16,
            primary_codebook_size=20,
            auxiliary_codebook_size=None,
            **fields,
        )
        model = DCSpinModel(config)
        names = [name for name in original if name.startswith("param.")]
        names = [name for name in names if not LEFT_OVER.match(name.removeprefix("param."))]
        model.load_state_dict({rename_spin(name.removeprefix("param.")): original[name] for name in names})
        return model.eval()

    return make


def test_the_whole_model_with_gradients(spin_model, original):
    """By the original's rule of frames, which counts some that hear padding, and its hearing of padding."""
    model = spin_model(frame_rule="fairseq", padding_invariant=False).train()
    waveforms = original["wavs"]
    mask = frame_mask(original["wav_lens"], waveforms.shape[1]).long()
    outputs = model(waveforms[0::2], waveforms[1::2], mask[0::2])
    outputs.loss.backward()
    torch.testing.assert_close(outputs.loss.detach(), original["train.loss"], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.primary_accuracy, original["train.acc"], rtol=0, atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {rename_spin(name[5:]): value for name, value in original.items() if name.startswith("grad.")}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_units_of_the_padded_batch(spin_model, original):
    model = spin_model(frame_rule="fairseq", padding_invariant=False)
    waveforms = original["wavs"]
    mask = frame_mask(original["wav_lens"], waveforms.shape[1]).long()
    outputs = model.encode(waveforms, mask)
    real = ~original["eval.frame_padding_mask"]
    assert torch.equal(outputs.audio_codes_mask.bool(), real)
    torch.testing.assert_close(outputs.latents[real], original["eval.repr_l2"][real], rtol=0, atol=1e-5)
    assert torch.equal(outputs.audio_codes[:, 0][real], original["eval.codes"][real])


def test_our_batches_give_the_units_that_the_original_gives_each_recording_alone(spin_model, original):
    model = spin_model()
    waveforms = original["wavs"]
    mask = frame_mask(original["wav_lens"], waveforms.shape[1]).long()
    outputs = model.encode(waveforms, mask)
    for row in range(len(waveforms)):
        expected = original[f"single{row}.codes"][0]
        assert int(outputs.audio_codes_mask[row].sum()) == len(expected)
        assert torch.equal(outputs.audio_codes[row, 0, : len(expected)], expected)
        logits = model.primary.logits(outputs.latents[row, : len(expected)]) / 0.1
        torch.testing.assert_close(logits.detach(), original[f"single{row}.logits"][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("share_projection", [False, True])
def test_two_codebooks(share_projection, spin_model):
    """An assumption of how DC-Spin is wired, not an original."""
    prefix = "shared_head." if share_projection else "separate_heads."
    expected = {
        name.removeprefix(prefix): value
        for name, value in load_file(FIXTURES / "spin_two_codebooks.safetensors").items()
        if name.startswith(prefix)
    }
    config = DCSpinConfig(
        **{
            **spin_model().config.to_dict(),
            "auxiliary_codebook_size": 64,
            "share_projection": share_projection,
        }
    )
    model = DCSpinModel(config)
    with torch.no_grad():
        for name in ("primary", "auxiliary"):
            getattr(model, name).codebook.copy_(expected[f"codebook_{name}"])
            if f"head_{name}.weight" in expected:
                projection = getattr(model, f"{name}_projection")
                projection.weight.copy_(expected[f"head_{name}.weight"])
                projection.bias.copy_(expected[f"head_{name}.bias"])
    assert (model.auxiliary_projection is None) == share_projection
    views = [expected[name].requires_grad_() for name in ("x1", "x2")]
    model.features = lambda *_: (torch.stack(views), torch.ones(2, 150, dtype=torch.bool))
    outputs = model(torch.zeros(1, 1, 800), torch.zeros(1, 1, 800))
    outputs.loss.backward()
    for ours, name in (
        (outputs.loss, "loss_sum"),
        (outputs.primary_swapped_prediction_loss, "loss_primary"),
        (outputs.auxiliary_swapped_prediction_loss, "loss_auxiliary"),
    ):
        torch.testing.assert_close(ours.detach(), expected[name], rtol=0, atol=1e-5)
    for ours, name in (
        (views[0], "x1"),
        (views[1], "x2"),
        (model.primary_projection.weight, "head_primary.weight"),
        (model.primary.codebook, "codebook_primary"),
        (model.auxiliary.codebook, "codebook_auxiliary"),
    ):
        torch.testing.assert_close(ours.grad, expected[f"grad_{name}"], rtol=0, atol=1e-5)
    if not share_projection:
        torch.testing.assert_close(
            model.auxiliary_projection.weight.grad, expected["grad_head_auxiliary.weight"], rtol=0, atol=1e-5
        )
    for name in ("primary", "auxiliary"):
        codes = model.encode(torch.zeros(1, 1, 800), codebook=name).audio_codes[0, 0]
        assert torch.equal(codes, expected[f"codes_{name}"])
