# SPDX-License-Identifier: Apache-2.0
"""Times of alternatives in turn, memory, and the machine that they were measured on."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speech_tokenizers.evaluation.speed.processor import BF16_FLAGS, cpu_flags


def synthetic_sound(num_samples: int, sampling_rate: int, seed: int = 0) -> np.ndarray:
    """
    A voice-like buzz with gliding pitch, pauses and breath noise, of shape `(num_samples,)`, float32 in [-1, 1].
    """
    generator = np.random.default_rng(seed)
    time_axis = np.arange(num_samples) / sampling_rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time_axis)
    phase = 2 * np.pi * np.cumsum(pitch) / sampling_rate
    buzz = sum(np.sin(order * phase) / order for order in range(1, 20))
    loudness = np.clip(np.sin(2 * np.pi * 1.3 * time_axis) + 0.5, 0, 1)
    return (0.1 * loudness * buzz + 0.01 * generator.standard_normal(num_samples)).astype(np.float32)


def interleave(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """
    Time functions in turn, so that a change of the machine's load meets all of them.

    Args:
        functions (`dict`): Functions to time, by name. Each is called once before, untimed.
        repeats (`int`): Number of rounds.

    Returns:
        `dict` of `list`: Seconds of each round, by name. With one thread they are the process's processor time, which
        other processes do not lengthen; otherwise wall-clock time.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return seconds


def compare_times(times: dict[str, list[float]], baseline: str, audio_seconds: float) -> list[dict[str, Any]]:
    """
    One row a name: median time, real-time factor, and the median, lowest and highest ratio of the time of `baseline`
    to its own.
    """
    rows = []
    for name, seconds in times.items():
        ratios = np.array(times[baseline]) / np.array(seconds)
        rows.append(
            {
                "name": name,
                "median_seconds": float(np.median(seconds)),
                "real_time_factor": float(np.median(seconds)) / audio_seconds,
                "speed_up": float(np.median(ratios)),
                "speed_up_range": [float(ratios.min()), float(ratios.max())],
            }
        )
    return rows


def num_parameters(model: torch.nn.Module) -> int:
    """Trained numbers in a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def memory_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the most so far) of this process, in bytes; Linux only."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"The system does not report {field}.")


def machine() -> dict[str, Any]:
    """Description of the machine that the numbers were measured on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    notable = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", *BF16_FLAGS)
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in notable if flag in cpu_flags()],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
