# SPDX-License-Identifier: Apache-2.0
"""Sizes that do not fit an encoder are named by the recipe's words, before the recordings are decoded."""

import pytest
import torch
import yaml
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main


MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.fixture
def nothing_is_decoded(monkeypatch):
    for module in ("hubert_pretraining", "dc_spin_trainer"):
        monkeypatch.setattr(f"speech_tokenizers.training.units.{module}.decode_part", None)


def refusal(folder, contents, overrides, capsys):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "run"), **contents}), encoding="utf-8")
    assert main(["train", str(path), *overrides]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden_size=7"], "`model` cannot be built from its sizes: "),
        (["model.num_attention_heads=0"], "`model` cannot be built from its sizes: "),
        (["model.layerdrop=3"], "`model.layerdrop` must lie between 0 and 1, but got 3"),
        (["data.min_seconds=0.001"], "`data.min_seconds` is 0.001, but a frame of the encoder needs 0.025 s"),
        (["betas=[2, 3]"], "`betas` must be two numbers from 0 to below 1"),
        (["max_grad_norm=0"], "`max_grad_norm` must be positive"),
        (["save_total_limit=0"], "`save_total_limit` must be at least 1"),
        (["iterations.first.labels.num_clusters=0"], "`labels.num_clusters` must be positive"),
        (["iterations.first.labels.fit_seconds=0"], "`labels.fit_seconds` must be positive"),
    ],
)
def test_a_pretraining_that_does_not_fit_is_named(
    tmp_path, audio_folder, nothing_is_decoded, capsys, overrides, message
):
    contents = {
        "trainer": "hubert",
        "model": {**MODEL, "final_dim": 8, "mask_length": 3},
        "data": {"train": str(audio_folder), "min_seconds": 0.2, "max_seconds": 0.4},
        "iterations": {"first": {"labels": {"kind": "mfcc", "num_clusters": 6}, "max_steps": 1}},
        "batch_seconds": 0.8,
    }
    assert message in refusal(tmp_path, contents, overrides, capsys)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.min_seconds=0.001"], "`data.min_seconds` is 0.001, but a frame of the encoder needs 0.025 s"),
        (["model.encoder=3"], "`model.encoder`, folder or Hub id of a speech encoder, in quotes"),
        (["perturbation.f0_ratio=[2, 1]"], "`f0_ratio` must be a pair that rises"),
        (["initial_learning_rate=-1"], "`initial_learning_rate` must be positive"),
        (["seed=-1"], "`seed` must lie between 0 and 2**32 - 1"),
    ],
)
def test_units_that_do_not_fit_are_named(tmp_path, audio_folder, nothing_is_decoded, capsys, overrides, message):
    torch.manual_seed(0)
    HubertModel(tiny_hubert(conv_dim=(8,) * 7)).save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "encoder")
    contents = {
        "trainer": "dc_spin",
        "model": {
            "encoder": str(tmp_path / "encoder"),
            "encoder_layer": 2,
            "trainable_layers": 1,
            "projection_dim": 8,
            "primary_codebook_size": 6,
            "auxiliary_codebook_size": None,
        },
        "data": {"train": str(audio_folder), "min_seconds": 0.2, "max_seconds": 0.4},
        "batch_seconds": 1.2,
        "max_steps": 1,
    }
    assert message in refusal(tmp_path, contents, overrides, capsys)
