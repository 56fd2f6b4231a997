# SPDX-License-Identifier: Apache-2.0
"""With Praat's random numbers seeded, its perturbation is that of Spin's code."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from speech_tokenizers.processing.optional_packages import MissingPackageError
from speech_tokenizers.processing.pitch_tracking import track_pitch
from speech_tokenizers.processing.praat_voice_change import change_voice_by_praat
from speech_tokenizers.processing.speaker_perturbation import SpeakerPerturbation


FIXTURE = Path(__file__).parents[1] / "fixtures" / "speaker_perturbation.safetensors"
RATE = 16000
needs_praat = pytest.mark.skipif(
    importlib.util.find_spec("parselmouth") is None, reason="needs the extra `praat`, which is under the GPL"
)


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURE)


def f0_range(voice: str) -> dict[str, float]:
    with safe_open(FIXTURE, "np") as file:
        floor, ceiling = json.loads(file.metadata()["lo_hi"])[voice]
    return {"f0_floor": floor, "f0_ceiling": ceiling, "narrow": False}


@needs_praat
def test_a_change_is_the_originals(expected):
    changed = change_voice_by_praat(expected["male.input"], RATE, 1.2, 1.5, 1.2, **f0_range("male"))
    assert np.abs(changed - expected["male.change_gender6"]).max() < 1e-6


@needs_praat
def test_the_change_for_validation_is_the_originals(expected):
    changed = change_voice_by_praat(
        expected["female.input"], RATE, 0.8, f0_range_ratio=0.8, f0_median=100.0, **f0_range("female")
    )
    assert np.abs(changed - expected["female.perturb_valid"]).max() < 1e-6


@needs_praat
@pytest.mark.parametrize(("voice", "number", "seed"), [("female", 0, 9001), ("male", 1, 9011)])
def test_the_whole_perturbation_is_the_originals(expected, voice, number, seed):
    perturbation = SpeakerPerturbation(backend="praat", **f0_range(voice))
    perturbed = perturbation(expected[f"{voice}.input"], np.random.default_rng(seed))
    assert np.abs(perturbed - expected[f"{voice}.perturb{number}.output"]).max() < 1e-6


@needs_praat
def test_seeds_differ_and_the_range_is_found(expected):
    waveform = expected["male.input"]
    first, again, other = (change_voice_by_praat(waveform, RATE, 1.2, 1.5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    for changed in (first, other):
        assert track_pitch(changed, RATE).median / track_pitch(waveform, RATE).median == pytest.approx(1.5, rel=0.01)


@needs_praat
@pytest.mark.parametrize("narrow", [True, False])
def test_what_is_unvoiced_stays(narrow):
    for waveform in (np.zeros(16000), np.zeros(3), 0.1 * np.random.default_rng(0).standard_normal(500)):
        assert np.array_equal(change_voice_by_praat(waveform, RATE, 1.2, 1.5, narrow=narrow), waveform)


def test_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"speech-tokenizers\[praat\]"):
        change_voice_by_praat(np.zeros(16000), RATE)
