# SPDX-License-Identifier: Apache-2.0
"""
The masked-prediction loss and its gradients are those of the original HuBERT, from the same weights, masks and labels.

The expected values were computed by fairseq's model (as copied by s3prl at commit ec8064b), in a padded batch.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from speech_tokenizers.modeling.configuration_hubert_masked_prediction import HubertMaskedPredictionConfig
from speech_tokenizers.modeling.modeling_hubert_masked_prediction import HubertForMaskedPrediction


FIXTURE = Path(__file__).parents[1] / "fixtures" / "hubert_masked_prediction.safetensors"
NAMES = {
    r"^layer_norm\.": "feature_projection.layer_norm.",
    r"^post_extract_proj": "feature_projection.projection",
    r"^mask_emb": "masked_spec_embed",
    r"(conv_layers\.\d)\.0\.": r"\1.conv.",
    r"(conv_layers\.0)\.2\.": r"\1.layer_norm.",
    r"pos_conv\.0\.weight_g": "pos_conv_embed.conv.parametrizations.weight.original0",
    r"pos_conv\.0\.weight_v": "pos_conv_embed.conv.parametrizations.weight.original1",
    r"pos_conv\.0\.bias": "pos_conv_embed.conv.bias",
    r"self_attn_layer_norm": "layer_norm",
    r"self_attn": "attention",
    r"fc1": "feed_forward.intermediate_dense",
    r"fc2": "feed_forward.output_dense",
}


def our_name(name: str) -> str:
    if name == "label_embs_concat":
        return "label_embeddings"
    if name.startswith("final_proj"):
        return name
    for pattern, replacement in NAMES.items():
        name = re.sub(pattern, replacement, name)
    return f"hubert.{name}"


def tensors_of(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {our_name(name.removeprefix(prefix)): v for name, v in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def original():
    with safe_open(FIXTURE, framework="pt") as file:
        settings = json.loads(file.metadata()["model_cfg"])
    return load_file(FIXTURE), settings


@pytest.fixture(scope="module")
def trained_once(original):
    """The model and its output, after the gradients of the original's loss, a sum over masked frames."""
    expected, settings = original
    config = HubertMaskedPredictionConfig(
        hidden_size=settings["encoder_embed_dim"],
        num_hidden_layers=settings["encoder_layers"],
        num_attention_heads=settings["encoder_attention_heads"],
        intermediate_size=settings["encoder_ffn_embed_dim"],
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        conv_dim=(24,) * 7,
        num_conv_pos_embeddings=settings["conv_pos"],
        num_conv_pos_embedding_groups=settings["conv_pos_groups"],
        label_vocab_size=11,
        final_dim=settings["final_dim"],
        logit_temperature=settings["logit_temp"],
        feature_grad_mult=settings["feature_grad_mult"],
        mask_length=settings["mask_length"],
        padding_invariant=False,
        frame_rule="fairseq",
    )
    model = HubertForMaskedPrediction(config).train()
    model.load_state_dict(tensors_of("param.", expected))
    attention_mask = (torch.arange(expected["wavs"].shape[1]) < expected["wav_lens"][:, None]).long()
    outputs = model(expected["wavs"], attention_mask, expected["targets"], expected["mask_indices"])
    (outputs.loss * outputs.num_masked).backward()
    return model, outputs


def test_frames_and_sample_size_are_the_original_s(original, trained_once):
    expected, outputs = original[0], trained_once[1]
    assert torch.equal(~outputs.frame_mask, expected["frame_padding_mask"])
    assert outputs.num_masked == expected["sample_size"]


def test_parts_of_the_loss_are_the_original_s(original, trained_once):
    expected, outputs = original[0], trained_once[1]
    sums = {
        "loss_masked_sum": outputs.masked_loss * outputs.num_masked,
        "loss_unmasked_sum": outputs.unmasked_loss * outputs.num_unmasked,
        "features_pen": outputs.features_penalty,
        "total_loss_sum": outputs.loss * outputs.num_masked,
    }
    for name, value in sums.items():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-6, atol=1e-6)


def test_logits_are_the_original_s(original, trained_once):
    # There column 0 is the true label; it is taken out of the others, as minus infinity.
    expected, outputs = original[0], trained_once[1]
    masked = outputs.mask_time_indices
    labels = expected["targets"][:, : masked.shape[1]][masked]
    logits = outputs.logits.detach()[masked]
    torch.testing.assert_close(logits.gather(1, labels[:, None])[:, 0], expected["logits_masked"][:, 0])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    torch.testing.assert_close(others, expected["logits_masked"][:, 1:])


def test_every_gradient_is_the_original_s(original, trained_once):
    gradients = tensors_of("grad.", original[0])
    parameters = dict(trained_once[0].named_parameters())
    assert parameters.keys() == gradients.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(parameters[name].grad, expected, rtol=1e-4, atol=2e-5)
