# SPDX-License-Identifier: Apache-2.0
"""The fundamental frequency that is found is the one that was synthesised, and the one that Praat finds."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from speech_tokenizers.processing.pitch_tracking import track_pitch


RATE = 16000
FIXTURE = Path(__file__).parents[1] / "fixtures" / "speaker_perturbation.safetensors"


def harmonics(f0: np.ndarray, seed: int = 0) -> np.ndarray:
    """Twenty harmonics that fall by 1/k, with a little noise."""
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    voice = sum(np.cos(k * phase + k) / k for k in range(1, 21) if k * f0.max() < RATE / 2)
    return voice + 0.01 * np.random.default_rng(seed).standard_normal(len(f0))


@pytest.mark.parametrize("f0", [70.0, 110.0, 180.0, 300.0, 480.0])
def test_a_constant_frequency_is_found(f0):
    track = track_pitch(harmonics(np.full(RATE, f0)), RATE)
    assert track.voiced.all()
    assert np.abs(track.frequencies / f0 - 1).max() < 0.005
    assert track.median == pytest.approx(f0, rel=0.002)


def test_a_gliding_frequency_is_followed():
    f0 = 120 * 2 ** (0.5 * np.sin(2 * np.pi * np.arange(2 * RATE) / RATE))
    track = track_pitch(harmonics(f0), RATE)
    assert track.voiced.all()
    expected = np.interp(track.times, np.arange(len(f0)) / RATE, f0)
    assert np.abs(track.frequencies / expected - 1).max() < 0.02
    assert np.allclose(np.diff(track.times), 0.01)


def test_level_and_offset_do_not_matter():
    voice = harmonics(np.full(RATE // 2, 140.0))
    expected = track_pitch(voice, RATE).frequencies
    for changed in (1e-3 * voice, 30 * voice, 0.1 * voice + 5):
        assert np.allclose(track_pitch(changed, RATE).frequencies, expected, rtol=1e-3)


def test_noise_and_silence_are_unvoiced():
    noise = np.random.default_rng(0).standard_normal(RATE)
    assert track_pitch(noise, RATE).voiced.mean() < 0.1
    for silent in (np.zeros(RATE), np.full(RATE, 0.3)):
        track = track_pitch(silent, RATE)
        assert not track.voiced.any()
        assert np.isnan(track.median)


def test_a_pause_is_unvoiced():
    voice = harmonics(np.full(2 * RATE, 150.0))
    voice[RATE // 2 : RATE] = 0
    track = track_pitch(voice, RATE)
    within = (track.times > 0.53) & (track.times < 0.97)
    assert not track.voiced[within].any()
    assert track.voiced[(track.times < 0.45) | (track.times > 1.05)].all()


@pytest.mark.parametrize("voice", ["male", "female", "speech_f"])
def test_it_is_what_praat_finds(voice):
    expected = load_file(FIXTURE)
    with safe_open(FIXTURE, "np") as file:
        floor, ceiling = json.loads(file.metadata()["lo_hi"])[voice]
    median = float(expected[f"{voice}.f0_median"])
    # The range of the speaker is found without being told.
    assert track_pitch(expected[f"{voice}.input"], RATE).median == pytest.approx(median, rel=0.005)

    track = track_pitch(expected[f"{voice}.input"], RATE, floor, ceiling, 0.8 / floor, narrow=False)
    by_praat = expected[f"{voice}.f0_track"]
    assert track.median == pytest.approx(median, rel=0.002)
    assert len(track.frequencies) == len(by_praat)
    assert np.mean(track.voiced == (by_praat > 0)) > 0.95
    both = track.voiced & (by_praat > 0)
    assert np.median(np.abs(track.frequencies[both] / by_praat[both] - 1)) < 0.005


def test_short_input_has_no_frames():
    for length in (0, 1, 799):
        assert len(track_pitch(np.ones(length), RATE).times) == 0
    assert len(track_pitch(np.ones(800), RATE).times) == 1  # three periods of 60 Hz


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="must be finite"):
        track_pitch(np.array([0.0, np.nan]), RATE)
    with pytest.raises(ValueError, match="shape \\(2, 100\\)"):
        track_pitch(np.zeros((2, 100)), RATE)
    with pytest.raises(ValueError, match="must rise and lie between 0 and 4000 Hz"):
        track_pitch(np.zeros(100), RATE, 200, 100)
    with pytest.raises(ValueError, match="`hop_seconds` must be positive"):
        track_pitch(np.zeros(100), RATE, hop_seconds=0)
