# SPDX-License-Identifier: Apache-2.0
"""A sampling rate of 44100.0 is 44100, in every function of processing that takes one."""

import numpy as np
import pytest
import torch

from speech_tokenizers import AudioWriter, load_audio
from speech_tokenizers.processing.parametric_equalizer import NUM_BANDS, equalizer_sections
from speech_tokenizers.processing.pitch_tracking import track_pitch
from speech_tokenizers.processing.sampling_rates import whole_sampling_rate
from speech_tokenizers.processing.speaker_perturbation import SpeakerPerturbation, coloured_noise
from speech_tokenizers.processing.voice_change import change_voice


WAVEFORM = 0.3 * np.sin(2 * np.pi * 150 * np.arange(8000) / 24000)


def written_and_read(rate, folder):
    with AudioWriter(folder / "a.wav", rate) as writer:
        writer.write(WAVEFORM)
    return load_audio(folder / "a.wav", rate)


FUNCTIONS = {
    "audio files": written_and_read,
    "pitch": lambda rate, _: track_pitch(WAVEFORM, rate).frequencies,
    "voice": lambda rate, _: change_voice(WAVEFORM, rate, 1.2, 1.1),
    "equalizer": lambda rate, _: equalizer_sections(np.ones(NUM_BANDS), np.ones(NUM_BANDS), rate),
    "noise": lambda rate, _: coloured_noise(1000, -1.0, np.random.default_rng(0), rate),
    "perturbation": lambda rate, _: SpeakerPerturbation(sampling_rate=rate)(WAVEFORM, np.random.default_rng(0)),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_rate_of_24000_0_is_24000(tmp_path, function):
    expected = FUNCTIONS[function](24000, tmp_path)
    for rate in (24000.0, np.float32(24000), np.int64(24000)):
        assert np.array_equal(FUNCTIONS[function](rate, tmp_path), expected, equal_nan=True)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "rate", [24000.5, True, "24000", float("nan"), float("inf"), 0, -24000, None, [24000], 24000j]
)
def test_what_is_no_rate_is_refused_by_name(tmp_path, function, rate):
    with pytest.raises(ValueError, match="`sampling_rate` must be a positive whole number of Hz"):
        FUNCTIONS[function](rate, tmp_path)


def test_numbers_of_torch_and_numpy_are_rates_and_truth_values_are_not():
    assert whole_sampling_rate(torch.tensor(16000)) == whole_sampling_rate(np.array(16000.0)) == 16000
    for value in (np.True_, torch.tensor(True), torch.tensor([16000])):
        with pytest.raises(ValueError, match="`rate` must be"):
            whole_sampling_rate(value, "rate")
