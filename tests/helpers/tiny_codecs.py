# SPDX-License-Identifier: Apache-2.0
"""Unit models that are small enough for a test, and the names by which `make_model` gives any model."""

from typing import Any

import torch
from transformers import HubertConfig

from speech_tokenizers import (
    DCSpinConfig,
    DCSpinModel,
    KMeansUnitsConfig,
    KMeansUnitsModel,
    UnitVocoderConfig,
    UnitVocoderModel,
)


OURS = ("rvq", "factorised", "causal", "dm", "cst", "kmeans", "dc_spin")
THEIRS = ("encodec", "dac", "mimi", "xcodec", "vibevoice")
ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def make_kmeans() -> KMeansUnitsModel:
    """Two codebooks of 8 centroids, without a vocoder."""
    torch.manual_seed(0)
    config = KMeansUnitsConfig(encoder_config=HubertConfig(**ENCODER), layers=[1, 2], codebook_size=8)
    model = KMeansUnitsModel(config).eval()
    model.set_centroids(torch.randn(2, 8, 16))
    return model


def make_dc_spin() -> DCSpinModel:
    """A primary codebook of 12 codes and an auxiliary one, without a vocoder."""
    torch.manual_seed(0)
    config = DCSpinConfig(
        encoder_config=HubertConfig(**ENCODER),
        encoder_layer=1,
        trainable_layers=1,
        projection_dim=8,
        primary_codebook_size=12,
        auxiliary_codebook_size=32,
    )
    return DCSpinModel(config).eval()


def with_vocoder(units: Any) -> Any:
    """The same unit model, with a vocoder of its codes."""
    torch.manual_seed(0)
    config = UnitVocoderConfig(
        num_quantizers=units.num_quantizers,
        codebook_size=units.codebook_size,
        hidden_size=16,
        decoder_hidden_size=16,
        decoder_num_layers=1,
    )
    units.attach_vocoder(UnitVocoderModel(config).eval())
    return units
