# SPDX-License-Identifier: Apache-2.0
"""Features of this machine's processor."""

from pathlib import Path

import torch


# Processor features without which bfloat16 arithmetic is emulated, on Linux.
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def cpu_flags() -> set[str]:
    """Feature flags of the processor; empty where the system does not list them."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def has_bf16_units(device: str) -> bool:
    """Whether a kind of device, `"cuda"` or `"cpu"`, computes in bfloat16 without emulating it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and not cpu_flags().isdisjoint(BF16_FLAGS)
