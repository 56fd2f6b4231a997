# SPDX-License-Identifier: Apache-2.0
"""Spectrograms of the demo's pictures."""

from typing import Any

import numpy as np


def spectrogram(waveform: np.ndarray, window_length: int = 512, step: int = 128) -> np.ndarray:
    """
    Power in decibels.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): Waveform, padded with zeros at the end if shorter than a
            window.
        window_length, step (`int`): Length of the Hann window and distance between windows, in samples.

    Returns:
        `np.ndarray` of shape `(window_length // 2 + 1, num_frames)`.
    """
    padded = np.pad(waveform, (0, max(0, window_length - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window_length)[::step] * np.hanning(window_length)
    return 10 * np.log10(np.abs(np.fft.rfft(frames, axis=-1)).T ** 2 + 1e-10)


def draw_spectrogram(axis: Any, power: np.ndarray, num_samples: int, sampling_rate: int, cmap: str) -> Any:
    """
    Show a spectrogram over seconds and kilohertz, 80 dB deep.

    Args:
        axis (`matplotlib.axes.Axes`): Axes to draw on.
        power (`np.ndarray` of shape `(num_frequencies, num_frames)`): Power in decibels below the loudest.
        num_samples (`int`), sampling_rate (`int`): Length of the waveform in samples, and its sampling rate in Hz.
        cmap (`str`): Name of the colour map.

    Returns:
        `matplotlib.image.AxesImage`: Image, from which a colour bar can be made.
    """
    return axis.imshow(
        power,
        origin="lower",
        aspect="auto",
        cmap=cmap,
        vmin=-80,
        vmax=0,
        interpolation="bilinear",
        extent=(0, num_samples / sampling_rate, 0, sampling_rate / 2000),
    )
