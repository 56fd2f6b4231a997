# SPDX-License-Identifier: Apache-2.0
"""MFCC beside a computation of each number from its definition in Kaldi's sources."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dct
from scipy.signal import lfilter

from speech_tokenizers.training.units import mfcc
from speech_tokenizers.training.units.mfcc import mfcc_features, num_mfcc_frames


def mel(frequency: float) -> float:
    return 1127 * math.log(1 + frequency / 700)


def defined_cepstrum(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """(num_frames, 13), by a discrete Fourier transform and triangles that are written out."""
    length, hop = sampling_rate // 40, sampling_rate // 100
    size = 1
    while size < length:
        size *= 2
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))) ** 0.85
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(size // 2), np.arange(length)) / size)
    edges = np.linspace(mel(20), mel(sampling_rate / 2), 25)
    rows = []
    for start in range(0, len(waveform) - length + 1, hop):
        frame = waveform[start : start + length].astype(np.float64)
        frame = frame - frame.mean()
        frame = lfilter([1, -0.97], [1], frame, zi=[-0.97 * frame[0]])[0]  # as if the first sample had come before
        power = np.abs(fourier @ (window * frame)) ** 2
        energies = np.zeros(23)
        for number in range(23):
            left, centre, right = edges[number : number + 3]
            for k, value in enumerate(power):
                place = mel(k * sampling_rate / size)
                if left < place < right:
                    rise, fall = (place - left) / (centre - left), (right - place) / (right - centre)
                    energies[number] += min(rise, fall) * value
        logarithms = np.log(np.maximum(energies, np.finfo(np.float32).eps))
        cepstrum = dct(logarithms, type=2, norm="ortho")[:13]
        rows.append([value * (1 + 11 * math.sin(math.pi * n / 22)) for n, value in enumerate(cepstrum)])
    return np.array(rows)


def defined_differences(rows: np.ndarray) -> np.ndarray:
    last = len(rows) - 1
    return np.array(
        [
            sum(k * (rows[min(t + k, last)] - rows[max(t - k, 0)]) for k in (1, 2)) / (2 * (1 + 4))
            for t in range(len(rows))
        ]
    )


@pytest.mark.parametrize("sampling_rate", [8000, 16000])
@pytest.mark.parametrize("num_samples", [400, 1999, 4321])
def test_each_number_is_that_of_the_definition(sampling_rate, num_samples):
    generator = np.random.default_rng(num_samples)
    waveform = 0.3 * np.sin(np.arange(num_samples) * 0.05) + 0.05 * generator.standard_normal(num_samples) + 0.1
    features = mfcc_features(torch.from_numpy(waveform), sampling_rate)
    cepstrum = defined_cepstrum(waveform, sampling_rate)
    deltas = defined_differences(cepstrum)
    expected = np.concatenate([cepstrum, deltas, defined_differences(deltas)], axis=1)
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_samples", [399, 400, 559, 560, 16000, 16079, 16080])
def test_frames_lie_within_the_recording(num_samples):
    expected = len(range(0, num_samples - 400 + 1, 160))
    assert num_mfcc_frames(num_samples) == expected
    if expected:
        assert mfcc_features(np.zeros(num_samples, dtype=np.float32)).shape == (expected, 39)


def test_a_constant_level_is_silence():
    silence = mfcc_features(np.zeros(2000))
    assert torch.isfinite(silence).all()
    torch.testing.assert_close(mfcc_features(np.full(2000, 0.25)), silence)
    assert not silence[:, 13:].any()  # nothing changes in time


def test_the_level_of_a_recording_leaves_with_its_mean():
    waveform = np.random.default_rng(0).normal(0, 0.1, 8000)
    quiet, loud = (mfcc_features(gain * waveform, subtract_mean=True) for gain in (0.1, 1.0))
    torch.testing.assert_close(quiet, loud, rtol=0, atol=1e-3)
    torch.testing.assert_close(loud.mean(0), torch.zeros(39), rtol=0, atol=1e-4)
    assert (mfcc_features(0.1 * waveform) - mfcc_features(waveform)).abs().max() > 1


def test_long_recordings_are_taken_in_blocks(monkeypatch):
    waveform = np.random.default_rng(0).uniform(-1, 1, 9000)
    whole = mfcc_features(waveform)
    monkeypatch.setattr(mfcc, "FRAMES_PER_BLOCK", 7)
    torch.testing.assert_close(mfcc_features(waveform), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(399), "has 399 samples, but a frame takes 400"),
        (np.zeros(0), "has 0 samples"),
        (np.zeros((1, 800)), r"shape \(num_samples,\)"),
        (np.full(800, np.nan), "NaN or infinity"),
        (np.full(800, np.inf), "NaN or infinity"),
    ],
    ids=["short", "empty", "batch", "nan", "infinite"],
)
def test_what_has_no_frames_is_refused(waveform, message):
    with pytest.raises(ValueError, match=message):
        mfcc_features(waveform)
