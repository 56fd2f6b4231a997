# SPDX-License-Identifier: Apache-2.0
"""The equalizer is that of Spin's code, and raises and lowers the bands that it should."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import signal

from speech_tokenizers.processing.parametric_equalizer import band_centres, equalize, equalizer_sections


FIXTURE = Path(__file__).parents[1] / "fixtures" / "speaker_perturbation.safetensors"


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURE)


def test_sections_are_the_originals(expected):
    assert np.abs(band_centres() - expected["eq.Fc"]).max() < 1e-9
    for case in range(4):
        sections = equalizer_sections(expected[f"eq{case}.G_dB"], expected[f"eq{case}.Q"], 16000)
        assert np.abs(sections - expected[f"eq{case}.sos"]).max() < 1e-9


def test_output_is_the_originals(expected):
    sections = equalizer_sections(expected["eq0.G_dB"], expected["eq0.Q"], 16000)
    assert np.abs(equalize(expected["eq.input"], sections) - expected["eq0.output"]).max() < 1e-9


def test_no_gain_changes_nothing():
    waveform = np.random.default_rng(0).standard_normal(500)
    sections = equalizer_sections(np.zeros(10), np.full(10, 3.0), 16000)
    assert np.abs(equalize(waveform, sections) - waveform).max() < 1e-9


@pytest.mark.parametrize("band", range(10))
def test_a_band_has_its_gain(band):
    gains = np.zeros(10)
    gains[band] = 9.0
    sections = equalizer_sections(gains, np.full(10, 4.0), 24000)
    # Shelves have their gain at the ends, peaks at their centres.
    frequency = {0: 0.0, 9: 12000.0}.get(band, band_centres()[band])
    _, response = signal.sosfreqz(sections, [frequency], fs=24000)
    assert 20 * np.log10(abs(response[0])) == pytest.approx(9.0, abs=0.01)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        equalizer_sections(np.zeros(10), np.ones(9), 16000)
    with pytest.raises(ValueError, match="`sampling_rate` must be above 15200 Hz"):
        equalizer_sections(np.zeros(10), np.ones(10), 8000)
