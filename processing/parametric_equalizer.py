# SPDX-License-Identifier: Apache-2.0
"""
A parametric equalizer: a low shelf, peaks and a high shelf in a row.

The filters are those of R. Bristow-Johnson, "Cookbook formulae for audio equalizer biquad filter coefficients"
(https://www.w3.org/TR/audio-eq-cookbook); the bands are those of NANSY (https://huggingface.co/papers/2110.14513).
"""

import numpy as np
from scipy import signal

from .sampling_rates import whole_sampling_rate


LOWEST_CENTRE, HIGHEST_CENTRE = 60.0, 7600.0  # Hz
NUM_BANDS = 10


def band_centres(num_bands: int = NUM_BANDS) -> np.ndarray:
    """Centres of the bands in Hz, evenly spaced in their logarithm, of shape `(num_bands,)`."""
    return np.exp(np.linspace(np.log(LOWEST_CENTRE), np.log(HIGHEST_CENTRE), num_bands))


def equalizer_sections(gains: np.ndarray, qualities: np.ndarray, sampling_rate: float) -> np.ndarray:
    """
    Second-order sections for `scipy.signal.sosfilt`.

    Args:
        gains (`np.ndarray` of shape `(num_bands,)`): Gain of each band, in dB. The first band is a low shelf, the last
            a high shelf.
        qualities (`np.ndarray` of shape `(num_bands,)`): Q of each band; the higher, the narrower.
        sampling_rate (`int`): Sampling rate of the audio to filter, in Hz.

    Returns:
        `np.ndarray` of shape `(num_bands, 6)`: Numerator and denominator of each section; the denominator begins with
            1.

    Raises:
        ValueError: If the shapes differ, there are fewer than two bands, or the highest centre is not below half the
            sampling rate.
    """
    gains, qualities = np.asarray(gains, np.float64), np.asarray(qualities, np.float64)
    if gains.ndim != 1 or gains.shape != qualities.shape or len(gains) < 2:
        raise ValueError(
            f"`gains` and `qualities` must have one shape (num_bands,), but have {gains.shape} and {qualities.shape}."
        )
    sampling_rate = whole_sampling_rate(sampling_rate)
    if sampling_rate <= 2 * HIGHEST_CENTRE:
        raise ValueError(
            f"`sampling_rate` must be above {2 * HIGHEST_CENTRE:g} Hz for the equalizer, but is {sampling_rate}."
        )
    angle = 2 * np.pi * band_centres(len(gains)) / sampling_rate
    cosine, amplitude = np.cos(angle), 10 ** (gains / 40)
    alpha, beta = np.sin(angle) / (2 * qualities), np.sin(angle) * np.sqrt(amplitude) / qualities
    sections = np.stack(
        [
            1 + alpha * amplitude,
            -2 * cosine,
            1 - alpha * amplitude,
            1 + alpha / amplitude,
            -2 * cosine,
            1 - alpha / amplitude,
        ],
        axis=1,
    )
    # A high shelf is a low shelf with the frequency axis turned round, which is a change of sign of the cosine.
    for band, sign in ((0, 1.0), (-1, -1.0)):
        up, down = amplitude[band] + 1, amplitude[band] - 1
        tilt, width = sign * cosine[band], beta[band]
        numerator = [up - down * tilt + width, sign * 2 * (down - up * tilt), up - down * tilt - width]
        denominator = [up + down * tilt + width, sign * -2 * (down + up * tilt), up + down * tilt - width]
        sections[band] = [*(amplitude[band] * np.array(numerator)), *denominator]
    return sections / sections[:, 3:4]


def equalize(waveform: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """`waveform` `(num_samples,)` through the sections that [`equalizer_sections`] gives, in float64."""
    return signal.sosfilt(sections, waveform)
