# SPDX-License-Identifier: Apache-2.0
"""Tell models apart by what they compute."""

import hashlib
from typing import Any

import torch
from torch import nn


def model_fingerprint(model: nn.Module, **settings: Any) -> str:
    r"""Short hash of a model's class, configuration, weights and buffers, and of further settings."""
    digest = hashlib.sha256(f"{type(model).__name__} {sorted(settings.items())}".encode())
    digest.update(model.config.to_json_string(use_diff=False).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
