# SPDX-License-Identifier: Apache-2.0
"""Configurations of models that are small enough for a test."""

from typing import Any

from transformers import HubertConfig


# The front end of HuBERT, of 320 samples a frame, with few channels: changes of `tiny_hubert`.
FULL_FRONT_END: dict[str, Any] = {
    "conv_dim": (8,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
}


def tiny_hubert(config_class: type = HubertConfig, **changes: Any) -> HubertConfig:
    r"""
    A HuBERT of two layers, 16 features and 20 samples a frame.

    Args:
        config_class (`type`): Class of the configuration, with the fields of HuBERT's.
        changes: Fields with other values than these.
    """
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": (8, 8),
        "conv_kernel": (10, 4),
        "conv_stride": (5, 4),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    return config_class(**sizes | changes)
