# SPDX-License-Identifier: Apache-2.0
"""
Another speaker says the same: fundamental frequency and formants are where they were sent, the length stays.

Formants are measured by linear prediction, of which the implementation knows nothing: the shift in log frequency at
which the mean spectral envelopes of two recordings are most alike.
"""

import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import signal
from scipy.linalg import solve_toeplitz

from speech_tokenizers.processing.pitch_tracking import track_pitch
from speech_tokenizers.processing.speaker_perturbation import SpeakerChange, SpeakerPerturbation, coloured_noise
from speech_tokenizers.processing.voice_change import change_voice


RATE = 16000
FIXTURE = Path(__file__).parents[1] / "fixtures" / "speaker_perturbation.safetensors"
VOICES = ["male", "female", "speech_f"]
# Ratios of formants, fundamental frequency and its range.
CHANGES = [
    (1.4, 1.0, 1.0),
    (1 / 1.4, 1.0, 1.0),
    (1.0, 2.0, 1.0),
    (1.0, 0.5, 1.0),
    (1.0, 1.0, 1.5),
    (1.2, 1.5, 1.2),
    (0.8, 0.6, 0.8),
]


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURE)


GRID = np.exp(np.linspace(np.log(250), np.log(5500), 600))  # Hz


def mean_envelope(waveform: np.ndarray, order: int = 14) -> np.ndarray:
    """Mean over the louder frames of the spectrum of a linear predictor, in dB, at `GRID`."""
    size = 480
    emphasized = np.append(waveform[0], waveform[1:] - 0.97 * waveform[:-1]).astype(np.float64)
    frames = emphasized[np.arange(0, len(emphasized) - size, 80)[:, None] + np.arange(size)] * np.hanning(size)
    energies = np.square(frames).sum(axis=1)
    lags = np.arange(order + 1)
    # A window on the lags, so that single harmonics are not taken for formants.
    window = np.exp(-0.5 * (2 * np.pi * 60 / RATE * lags) ** 2)
    response = np.exp(-2j * np.pi * np.outer(lags, GRID) / RATE)
    envelopes = []
    for frame in frames[energies > 0.03 * np.quantile(energies, 0.95)]:
        correlation = np.correlate(frame, frame, "full")[size - 1 : size + order] * window
        correlation[0] *= 1 + 1e-5
        predictor = np.append(1, -solve_toeplitz(correlation[:-1], correlation[1:]))
        envelopes.append(-20 * np.log10(np.abs(predictor @ response)))
    return np.mean(envelopes, axis=0)


def measured_formant_ratio(before: np.ndarray, after: np.ndarray) -> float:
    """By how much the envelope moved, between 1/1.8 and 1.8."""
    first, second = mean_envelope(before), mean_envelope(after)
    step = np.log(GRID[1] / GRID[0])
    shifts = range(-int(np.log(1.8) / step), int(np.log(1.8) / step) + 1)

    def likeness(shift: int) -> float:
        length = len(GRID) - abs(shift)
        return np.corrcoef(first[max(0, -shift) :][:length], second[max(0, shift) :][:length])[0, 1]

    return float(np.exp(step * max(shifts, key=likeness)))


def vowels(formant_ratio: float, f0: float = 120.0) -> np.ndarray:
    """Pulses through resonators, whose frequencies are multiplied."""
    pulses = np.zeros(RATE)
    pulses[(np.arange(1, f0) * RATE / f0).astype(int)] = 1.0
    for frequency in (500, 1500, 2500, 3500):
        radius, angle = np.exp(-np.pi * 80 / RATE), 2 * np.pi * frequency * formant_ratio / RATE
        pulses = signal.lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], pulses)
    return pulses


@pytest.mark.parametrize("ratio", [0.75, 0.9, 1.0, 1.15, 1.35])
def test_the_measure_of_formants_measures_formants(ratio):
    assert measured_formant_ratio(vowels(1.0), vowels(ratio, f0=170.0)) == pytest.approx(ratio, rel=0.02)


def test_the_measure_agrees_with_praat(expected):
    # Formant ratio 1.2, fundamental frequency 1.5 times as high.
    before, after = expected["male.input"], expected["male.change_gender6"]
    assert measured_formant_ratio(before, after) == pytest.approx(1.2, rel=0.02)
    assert track_pitch(after, RATE).median / track_pitch(before, RATE).median == pytest.approx(1.5, rel=0.005)


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("ratios", CHANGES)
def test_pitch_formants_and_length_are_as_asked(expected, voice, ratios):
    waveform = expected[f"{voice}.input"]
    formant_ratio, f0_ratio, _ = ratios
    changed = SpeakerPerturbation().apply(waveform, SpeakerChange(*ratios))
    assert changed.shape == waveform.shape
    assert changed.dtype == np.float32
    wanted = f0_ratio * float(expected[f"{voice}.f0_median"])
    assert track_pitch(changed, RATE, 40, 900).median == pytest.approx(wanted, rel=0.02)
    assert measured_formant_ratio(waveform, changed) == pytest.approx(formant_ratio, rel=0.05)


def test_the_range_is_as_asked(expected):
    waveform = expected["female.input"]
    before = track_pitch(waveform, RATE)
    for ratio in (0.7, 1.4):
        after = track_pitch(change_voice(waveform, RATE, f0_range_ratio=ratio), RATE)
        spreads = [np.subtract(*np.quantile(t.frequencies[t.voiced], [0.9, 0.1])) for t in (before, after)]
        assert spreads[1] / spreads[0] == pytest.approx(ratio, rel=0.05)


def test_the_time_of_what_is_said_stays(expected):
    # Loudness over time, which moving the words would change.
    waveform = expected["speech_f.input"]
    changed = change_voice(waveform, RATE, 1.2, 1.5, 1.2)
    levels = [np.log(np.square(x[: len(x) // 400 * 400].reshape(-1, 400)).mean(1) + 1e-6) for x in (waveform, changed)]
    assert np.corrcoef(*levels)[0, 1] > 0.95


@pytest.mark.parametrize("length", [1, 2, 100, 799, 800, 1601, 16001])
def test_any_length_is_kept(expected, length):
    waveform = expected["male.input"][4000 : 4000 + length]
    perturbed = SpeakerPerturbation()(waveform, np.random.default_rng(length))
    assert perturbed.shape == waveform.shape
    assert np.isfinite(perturbed).all()
    assert np.abs(perturbed).max() <= 1


def test_what_is_unvoiced_gets_the_equalizer_alone():
    noise = 0.1 * np.random.default_rng(0).standard_normal(200)  # too short to have a pitch
    change = SpeakerPerturbation().draw(np.random.default_rng(1))
    assert change.formant_ratio != 1
    equalized = SpeakerChange(gains=change.gains, qualities=change.qualities)
    perturbation = SpeakerPerturbation()
    assert np.array_equal(perturbation.apply(noise, change), perturbation.apply(noise, equalized))
    assert not np.allclose(perturbation.apply(noise, change), noise, atol=1e-3)
    assert not perturbation.apply(np.zeros(8000), change).any()


def test_no_change_is_a_copy(expected):
    waveform = expected["male.input"]
    same = SpeakerPerturbation().apply(waveform, SpeakerChange())
    assert np.array_equal(same, waveform)
    assert not np.shares_memory(same, waveform)


def test_pieces_at_their_own_places_add_up_to_the_recording(expected):
    # A change too small to hear goes through all of the machinery.
    waveform = expected["male.input"].astype(np.float64)
    changed = change_voice(waveform, RATE, f0_range_ratio=1 + 1e-9)
    assert np.sqrt(np.mean((changed - waveform) ** 2) / np.mean(waveform**2)) < 0.2


@pytest.mark.parametrize(("voice", "number", "seed"), [("female", 0, 9001), ("male", 1, 9011)])
def test_draws_are_the_originals(expected, voice, number, seed):
    change = SpeakerPerturbation().draw(np.random.default_rng(seed))
    prefix = f"{voice}.perturb{number}"
    assert change.formant_ratio == pytest.approx(float(expected[f"{prefix}.ratio_fs"]), abs=1e-12)
    assert change.f0_ratio == pytest.approx(float(expected[f"{prefix}.ratio_ps"]), abs=1e-12)
    assert change.f0_range_ratio == pytest.approx(float(expected[f"{prefix}.ratio_pr"]), abs=1e-12)
    assert np.allclose(change.gains, expected[f"{prefix}.G"], atol=1e-12)
    assert np.allclose(np.log(change.qualities / 2) / np.log(2.5), expected[f"{prefix}.z"], atol=1e-12)


def test_the_generator_alone_decides(expected):
    waveform, perturbation = expected["female.input"], SpeakerPerturbation()
    first = perturbation(waveform, np.random.default_rng(3))
    assert np.array_equal(first, SpeakerPerturbation()(waveform, np.random.default_rng(3)))
    assert not np.array_equal(first, perturbation(waveform, np.random.default_rng(4)))
    assert np.array_equal(waveform, expected["female.input"])


def test_parts_that_are_off_change_nothing_and_move_no_draw(expected):
    # As for a tone language: the pitch stays where it is.
    whole = SpeakerPerturbation().draw(np.random.default_rng(5))
    toneless = SpeakerPerturbation(f0_ratio=None, f0_range_ratio=None).draw(np.random.default_rng(5))
    assert (toneless.f0_ratio, toneless.f0_range_ratio) == (1.0, 1.0)
    assert toneless.formant_ratio == whole.formant_ratio
    assert np.array_equal(toneless.gains, whole.gains)
    assert SpeakerPerturbation(equalizer=False).draw(np.random.default_rng(5)).gains is None

    waveform = expected["female.input"]
    before = track_pitch(waveform, RATE)
    after = track_pitch(change_voice(waveform, RATE, formant_ratio=1.3), RATE)
    both = before.voiced & after.voiced
    assert both.sum() > 0.9 * before.voiced.sum()
    assert np.median(np.abs(after.frequencies[both] / before.frequencies[both] - 1)) < 0.01


@pytest.mark.parametrize("snr", [-5.0, 10.0])
def test_noise_is_as_loud_as_asked_and_comes_last(expected, snr):
    speech = 0.3 * expected["speech_f.input"] / np.abs(expected["speech_f.input"]).max()
    quiet, noisy = (SpeakerPerturbation(noise_snr=noise) for noise in (None, (snr, snr)))
    without, within = (one.draw(np.random.default_rng(3)) for one in (quiet, noisy))
    assert without.noise_snr is None
    assert (within.formant_ratio, within.f0_ratio, within.gains[0]) == (
        without.formant_ratio,
        without.f0_ratio,
        without.gains[0],
    )
    clean, disturbed = quiet.apply(speech, without).astype(np.float64), noisy.apply(speech, within)
    whole = np.abs(disturbed) < 1  # what was clipped is less of both
    assert whole.mean() > 0.95
    measured = 10 * np.log10(np.mean(clean**2) / np.mean((disturbed - clean)[whole] ** 2))
    assert measured == pytest.approx(snr, abs=0.5)
    np.testing.assert_array_equal(noisy.apply(speech, within), disturbed)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_the_power_of_noise_falls_by_its_slope(slope):
    noise = coloured_noise(1 << 16, slope, np.random.default_rng(0), RATE)
    assert np.mean(noise**2) == pytest.approx(1)
    frequencies, power = signal.welch(noise, RATE, nperseg=2048)
    within = (frequencies > 100) & (frequencies < 7000)
    fitted = np.polyfit(np.log(frequencies[within]), np.log(power[within]), 1)[0]
    assert -fitted == pytest.approx(slope, abs=0.1)
    assert not coloured_noise(1, slope, np.random.default_rng(0), RATE).any()
    # Whatever the colour and the length, all of it lies where speech does.
    for num_samples in (RATE, 6 * RATE):
        noise = coloured_noise(num_samples, slope, np.random.default_rng(1), RATE)
        power = np.square(np.abs(np.fft.rfft(noise)))
        assert power[np.fft.rfftfreq(num_samples, 1 / RATE) >= 100].sum() / power.sum() > 0.999


def test_half_of_the_ratios_are_inverted():
    generator, perturbation = np.random.default_rng(0), SpeakerPerturbation()
    ratios = np.array([perturbation.draw(generator).f0_ratio for _ in range(400)])
    assert 0.5 <= ratios.min() < 0.55
    assert 1.9 < ratios.max() <= 2.0
    assert 0.42 < np.mean(ratios > 1) < 0.58


def test_what_cannot_be_is_refused():
    perturbation, generator = SpeakerPerturbation(), np.random.default_rng(0)
    with pytest.raises(ValueError, match="NaN or infinite samples"):
        perturbation(np.array([0.1, np.nan]), generator)
    with pytest.raises(ValueError, match="not empty"):
        perturbation(np.zeros(0), generator)
    with pytest.raises(ValueError, match="shape \\(1, 100\\)"):
        perturbation(np.zeros((1, 100)), generator)
    with pytest.raises(ValueError, match="`f0_ratio` must be a pair"):
        SpeakerPerturbation(f0_ratio=(0.5, 2.0))
    for noise in ((20.0, 5.0), (5.0,), 5.0, (0.0, np.inf)):
        with pytest.raises(ValueError, match="`noise_snr` must be a pair that rises, in dB"):
            SpeakerPerturbation(noise_snr=noise)
    with pytest.raises(ValueError, match="`backend` must be one of"):
        SpeakerPerturbation(backend="world")
    with pytest.raises(ValueError, match="equalizer=False"):
        SpeakerPerturbation(sampling_rate=8000)
    with pytest.raises(ValueError, match="`f0_ratio` must be positive"):
        change_voice(np.zeros(100), RATE, f0_ratio=0.0)


@pytest.mark.slow
def test_it_is_thirty_times_faster_than_the_speech(expected):
    # Of this process, so that others on the machine do not count.
    waveform = np.tile(expected["speech_f.input"], 6)  # 16 s
    perturbation, generator = SpeakerPerturbation(), np.random.default_rng(0)
    perturbation(waveform, generator)
    start = time.process_time()
    for _ in range(4):
        perturbation(waveform, generator)
    factor = 4 * len(waveform) / RATE / (time.process_time() - start)
    print(f"{factor:.0f} times faster than the speech")
    assert factor > 30
