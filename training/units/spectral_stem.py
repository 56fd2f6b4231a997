# SPDX-License-Identifier: Apache-2.0
"""
Initial values of a convolutional front end that make it hear a mel spectrum, rather than noise, before its first step.

A front end of random filters finds the spectrum only after very many steps, which a machine without an accelerator
does not have; see `hubert_small_16khz`.
"""

import math
from typing import Any

import torch
from torch import nn


PHASES = 4  # of a band's filters, a quarter of a cycle apart: rectified and summed, they give its magnitude
MIN_SECONDS = 0.008  # of the first filters; shorter ones tell no bands of speech apart
# Speech falls by about 6 dB an octave above this frequency; the filters rise by as much.
CORNER_FREQUENCY = 500.0
# Share of the second convolution's values that is drawn for each channel rather than for each band.
NOISE = 0.1


@torch.no_grad()
def init_spectral_stem(
    stem: nn.Module, sampling_rate: int = 16000, min_frequency: float = 80.0, max_frequency: float | None = None
) -> None:
    """
    Make the first convolution a bank of windowed cosines, evenly spaced on the mel scale in four phases each, and let
    the second one mix bands at random but take the phases of a band alike, so that it hears magnitudes.

    These are initial values: both are trained as any others. The random ones come from the global generator.

    Args:
        stem (`nn.Module`): The `feature_extractor` of a `HubertModel` or its relatives, changed in place.
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate of the front end's input, in Hz.
        min_frequency (`float`, *optional*, defaults to 80.0), max_frequency (`float`, *optional*): Frequencies of the
            first and the last band, in Hz. The last defaults to 0.475 of the rate.

    Raises:
        ValueError: If the front end has one convolution only, its first filters are shorter than 8 ms, or their number
            is not a multiple of four.
    """
    check_spectral_stem(stem, sampling_rate)
    convolutions: list[Any] = [layer.conv for layer in stem.conv_layers]
    first, second = convolutions[:2]
    num_bands = first.out_channels // PHASES
    ends = torch.tensor([min_frequency, max_frequency or 0.475 * sampling_rate], dtype=torch.float64)
    mels = torch.linspace(*torch.log1p(ends / 700).tolist(), num_bands, dtype=torch.float64)
    frequencies = 700 * torch.expm1(mels)  # (bands,)
    length = first.kernel_size[0]
    times = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2) / sampling_rate
    phases = math.tau / PHASES * torch.arange(PHASES, dtype=torch.float64)
    angles = math.tau * frequencies[:, None, None] * times + phases[:, None]  # (bands, phases, length)
    filters = torch.hann_window(length, periodic=False, dtype=torch.float64) * angles.cos()
    filters /= filters.norm(dim=-1, keepdim=True)
    filters *= (1 + (frequencies / CORNER_FREQUENCY).square()).sqrt()[:, None, None]
    first.weight.copy_(filters.reshape(-1, 1, length))

    taps = second.kernel_size[0]
    of_band = torch.randn(second.out_channels, num_bands, 1, 1) / math.sqrt(num_bands)
    of_band = (of_band * (2 / (PHASES * taps))).expand(-1, -1, PHASES, taps)
    second.weight.mul_(NOISE).add_(of_band.reshape(second.weight.shape))


def check_spectral_stem(stem: nn.Module, sampling_rate: int = 16000) -> None:
    """Raise what [`init_spectral_stem`] raises, for a front end that may be on the meta device."""
    convolutions: list[Any] = [layer.conv for layer in stem.conv_layers]
    first, shortest = convolutions[0], math.ceil(MIN_SECONDS * sampling_rate)
    if len(convolutions) < 2:
        problem = "it has two convolutions or more"
    elif first.kernel_size[0] < shortest:
        problem = f"`conv_kernel[0]` is at least {shortest} samples, but it is {first.kernel_size[0]}"
    elif first.out_channels % PHASES:
        problem = f"`conv_dim[0]` is a multiple of {PHASES}, but it is {first.out_channels}"
    else:
        return
    raise ValueError(f"A front end can begin as a mel spectrum only if {problem}.")
