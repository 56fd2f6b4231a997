# SPDX-License-Identifier: Apache-2.0
"""Voices of known F0: pulses through two resonances."""

import numpy as np
import torch


RATE = 16000
FORMANTS = ((700, 1200), (300, 2300), (350, 800))  # Hz: a, i, u


def voice(f0: np.ndarray, formants=FORMANTS[0], every: int = 1, depth: float = 0.0, seed: int = 0) -> torch.Tensor:
    """A voice of the F0 `(num_samples,)` in Hz, `(1, num_samples)`; each `every`-th pulse is weaker by `depth`."""
    phase = np.cumsum(f0) / RATE
    pulses = np.flatnonzero(np.diff(np.floor(phase)) > 0)
    source = np.zeros(len(f0))
    source[pulses] = np.where(np.arange(len(pulses)) % every, 1.0 - depth, 1.0)
    times = np.arange(800) / RATE
    for formant in formants:
        response = np.exp(-2 * np.pi * 60 * times) * np.sin(2 * np.pi * formant * times)
        source = np.convolve(source, response)[: len(f0)]
    noise = np.random.default_rng(seed).normal(size=len(f0)) * 1e-3
    return torch.from_numpy(0.3 * source / np.abs(source).max() + noise).float()[None]
