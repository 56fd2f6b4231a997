# SPDX-License-Identifier: Apache-2.0
"""Waveforms at another sampling rate."""

import math

import numpy as np

from .sampling_rates import PLAUSIBLE_RATES, whole_sampling_rate


# Zero crossings of the interpolation's sinc on either side, and the Kaiser window's shape: 80 dB of stop band.
_NUM_ZEROS, _KAISER_BETA = 32, 8.0


def resample_waveform(waveform: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """
    Resample by a Kaiser-windowed sinc.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): Samples, as floats.
        source_rate, target_rate (`int`): Sampling rates of the waveform and of the result, in Hz.

    Returns:
        `np.ndarray` of shape `(ceil(num_samples * target_rate / source_rate),)`: Resampled waveform in float32, in
            time with the original.

    Raises:
        ValueError: If a rate is no whole number, or far from those of speech.
    """
    source_rate = whole_sampling_rate(source_rate, "source_rate")
    target_rate = whole_sampling_rate(target_rate, "target_rate")
    for rate in (source_rate, target_rate):
        if rate not in PLAUSIBLE_RATES:
            raise ValueError(
                f"Audio is resampled between {PLAUSIBLE_RATES[0]} and {PLAUSIBLE_RATES[-1]} Hz, but a rate is {rate}"
                " Hz; check where it comes from."
            )
    divisor = math.gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    # The pass band, relative to the source's; a little is left for the slope of the filter.
    cutoff = min(1.0, up / down) * (1 - 2.0 / _NUM_ZEROS)
    reach = math.ceil(_NUM_ZEROS / cutoff)
    padded = np.pad(waveform.astype(np.float64), (reach, reach + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)  # window k is centred on sample k
    num_samples = -(-len(waveform) * up // down)
    result = np.empty(num_samples)
    for phase in range(min(up, num_samples)):
        # Output samples phase, phase + up, ... lie at the same fraction behind a sample of the input.
        first, numerator = divmod(phase * down, up)
        offsets = np.arange(-reach, reach + 1) - numerator / up
        taper = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (offsets / (reach + 1)) ** 2, 0, None))) / np.i0(_KAISER_BETA)
        taps = cutoff * np.sinc(cutoff * offsets) * taper
        taps /= taps.sum()  # a constant stays what it is
        count = -(-(num_samples - phase) // up)
        result[phase::up] = windows[first : first + (count - 1) * down + 1 : down] @ taps
    return result.astype(np.float32)


__all__ = ["resample_waveform"]
