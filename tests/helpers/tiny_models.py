# SPDX-License-Identifier: Apache-2.0
"""Configurations of models that are small enough for a test."""

from pathlib import Path
from typing import Any

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor


def tiny_hubert(config_class: type = HubertConfig, **changes: Any) -> Any:
    """
    A HuBERT of two layers, 16 features and 20 samples a frame.

    Args:
        config_class (`type`): Class of the configuration, with the fields of HuBERT's, such as `WavLMConfig`.
        changes: Fields with other values than these. `conv_dim` without kernels and strides gives HuBERT's own front
            end of seven layers and 320 samples a frame.
    """
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    if "conv_dim" not in changes:
        sizes |= {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4)}
    return config_class(**sizes | changes)


def write_tiny_hubert(folder: Path, **changes: Any) -> Path:
    """Save a [`tiny_hubert`] with the same random weights each time, and its feature extractor; returns the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HubertModel(tiny_hubert(**changes)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder
