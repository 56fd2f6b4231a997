# SPDX-License-Identifier: Apache-2.0
"""What the perturbations do to a synthetic voice, measured on the waveforms."""

import dataclasses

import numpy as np
import pytest
import soundfile
from scipy import signal

from speech_tokenizers.evaluation.peers import estimate_delay
from speech_tokenizers.evaluation.units.perturbations import (
    FarMicrophone,
    Gain,
    Noise,
    NoiseFolder,
    PitchShift,
    Reverberation,
    TimeStretch,
    Transcoding,
    default_perturbations,
    generate_noise,
    listening_conditions,
    perturb,
    room_response,
    shift_pitch,
    stretch_time,
)


RATE = 16000
F0 = 120.0


@pytest.fixture(scope="module")
def voice():
    """Two seconds of a voice of 120 Hz: pulses through three resonances, in syllables of 0.25 s."""
    pulses = np.zeros(2 * RATE)
    pulses[np.round(np.arange(0, 2, 1 / F0) * RATE).astype(int)] = 1.0
    for centre, width in ((600, 80), (1300, 100), (2600, 150)):
        radius = np.exp(-np.pi * width / RATE)
        pulses = signal.lfilter([1.0], [1.0, -2 * radius * np.cos(2 * np.pi * centre / RATE), radius**2], pulses)
    times = np.arange(len(pulses)) / RATE
    pulses *= 0.02 + np.sin(np.pi * 4 * times) ** 2
    return (0.4 * pulses / np.abs(pulses).max()).astype(np.float32)


def level(audio):
    return 20 * np.log10(np.sqrt(np.mean(np.asarray(audio, np.float64) ** 2)))


def fundamental(audio):
    """The pitch by the first high peak of the autocorrelation, between 60 and 400 Hz."""
    spectrum = np.abs(np.fft.rfft(audio, 4 * len(audio))) ** 2
    correlation = np.fft.irfft(spectrum)
    low, high = RATE // 400, RATE // 60
    peak = low + signal.find_peaks(correlation[low:high], height=0.85 * correlation[low:high].max())[0][0]
    left, middle, right = correlation[peak - 1 : peak + 2]
    return RATE / (peak + 0.5 * (left - right) / (left - 2 * middle + right))


@pytest.mark.parametrize("name", default_perturbations())
def test_changes_are_drawn_by_the_seed_and_the_clip_alone(name, voice):
    perturbation = default_perturbations()[name]
    untouched = voice.copy()
    first = perturb(voice, perturbation, 0, "clip")
    assert np.array_equal(first, perturb(voice, default_perturbations()[name], 0, "clip"))
    assert np.array_equal(voice, untouched)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    if name not in ("pitch_shift", "opus", "mp3"):  # these draw nothing
        for seed, clip in ((1, "clip"), (0, "other clip")):
            other = perturb(voice, perturbation, seed, clip)
            assert len(other) != len(first) or not np.array_equal(other, first)
    if name != "time_stretch":
        assert len(first) == len(voice)
    assert not np.array_equal(first, voice)


@pytest.mark.parametrize("name", default_perturbations())
@pytest.mark.parametrize("num_samples", [1, 79, 400, 16001])
def test_any_length_keeps_its_length_and_silence_stays_silent(name, num_samples):
    perturbation = default_perturbations()[name]
    generator = np.random.default_rng(0)
    for audio in (0.1 * generator.standard_normal(num_samples), np.zeros(num_samples)):
        changed = perturb(audio, perturbation, 0)
        if name == "time_stretch":
            assert 0.8 * len(changed) - 1 <= num_samples <= 1.2 * len(changed) + 1
        else:
            assert len(changed) == num_samples
        assert np.isfinite(changed).all()
    assert np.abs(changed).max() < 1e-4


def test_what_cannot_be_changed_is_refused():
    for audio in (np.zeros((1, 100)), np.zeros(0)):
        with pytest.raises(ValueError, match="not empty"):
            perturb(audio, Gain(), 0)
    with pytest.raises(ValueError, match="must be finite"):
        perturb(np.array([0.0, np.nan]), Gain(), 0)


@pytest.mark.parametrize("source", ["speech_shaped", "pink", "white"])
@pytest.mark.parametrize("decibels", [-5.0, 0.0, 12.5])
def test_noise_has_the_ratio_that_was_asked_for(voice, source, decibels):
    noisy = perturb(voice, Noise(decibels, decibels, source=source), 0)
    noise = noisy.astype(np.float64) - voice
    assert level(voice) - level(noise) == pytest.approx(decibels, abs=0.01)
    assert abs(np.corrcoef(noise, voice)[0, 1]) < 0.15


@pytest.mark.parametrize("drawn", [5.0, 12.0, 30.0])
def test_nasts_convention_halves_the_ratio_and_sets_the_level(voice, drawn):
    noisy = perturb(voice, Noise(drawn, drawn, convention="nast"), 0).astype(np.float64)
    speech = voice * 10 ** ((-25 - level(voice)) / 20)
    assert level(speech) == pytest.approx(-25, abs=1e-5)
    assert level(speech) - level(noisy - speech) == pytest.approx(drawn / 2, abs=0.01)


@pytest.mark.parametrize("drawn", [5.0, 17.0, 30.0])
def test_nasts_convention_is_that_of_its_mixer(voice, drawn, tmp_path):
    """The steps of NAST's mixer: both at -25 dBFS, then the noise by the root of the factor of amplitudes."""
    recorded = np.random.default_rng(1).standard_normal(len(voice))
    soundfile.write(tmp_path / "noise.wav", 0.1 * recorded, RATE, subtype="FLOAT")

    def at_25_dbfs(audio):
        return audio * (10 ** (-25 / 20) / np.sqrt(np.mean(audio**2)))

    speech, noise = at_25_dbfs(voice.astype(np.float64)), at_25_dbfs(recorded)
    amplitudes = [np.sqrt(np.mean(audio**2)) for audio in (speech, noise)]
    factor = np.sqrt(amplitudes[0] / 10 ** (drawn / 20) / amplitudes[1])
    mixed = perturb(voice, Noise(drawn, drawn, "nast", NoiseFolder(tmp_path)), 0)
    np.testing.assert_allclose(mixed, speech + factor * noise, atol=2e-4)
    assert level(speech) - level(factor * noise) == pytest.approx(drawn / 2)


def test_the_two_conventions_are_drawn_alike_and_keep_to_their_ranges(voice):
    ratios = {"exact": [], "nast": []}
    for convention, found in ratios.items():
        for number in range(40):
            noisy = perturb(voice, Noise(convention=convention), 0, str(number)).astype(np.float64)
            scale = 10 ** ((-25 - level(voice)) / 20) if convention == "nast" else 1.0
            found.append(level(scale * voice) - level(noisy - scale * voice))
    exact, nast = (np.array(found) for found in ratios.values())
    np.testing.assert_allclose(nast, exact / 2, atol=0.02)
    assert 5 <= exact.min() < 8
    assert 27 < exact.max() <= 30


def test_noise_has_its_colour(voice):
    generator = np.random.default_rng(0)
    length = 20 * RATE
    bands = [(100, 200), (400, 800), (1600, 3200)]

    def powers(audio):
        frequencies, density = signal.welch(audio, RATE, nperseg=4096)
        return np.array([density[(frequencies >= low) & (frequencies < high)].sum() for low, high in bands])

    long_voice = np.tile(voice, 10)
    pink = powers(generate_noise(long_voice, RATE, "pink", generator))  # equal power an octave
    np.testing.assert_allclose(pink / pink[0], 1, rtol=0.15)
    white = powers(generate_noise(long_voice, RATE, "white", generator))  # equal power a hertz
    np.testing.assert_allclose(white / white[0], [1, 4, 16], rtol=0.15)
    shaped = generate_noise(long_voice, RATE, "speech_shaped", generator)
    assert len(shaped) == length
    np.testing.assert_allclose(powers(shaped), powers(long_voice), rtol=0.1)
    # It has the voice's spectrum, but neither its syllables nor its pulses.
    syllables = [np.std([piece.std() for piece in np.split(sound, 320)]) / sound.std() for sound in (shaped, voice)]
    assert syllables[0] < 0.3 * syllables[1]


def test_recorded_noise_is_repeated_and_known_by_its_content(voice, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    short = 0.1 * generator.standard_normal(RATE // 2)
    soundfile.write(tmp_path / "deep" / "short.wav", short, RATE, subtype="FLOAT")
    perturbation = Noise(10, 10, source=NoiseFolder(tmp_path))
    noise = perturb(voice, perturbation, 0).astype(np.float64) - voice
    np.testing.assert_allclose(noise[: RATE // 2], noise[RATE // 2 : RATE], atol=1e-6)
    assert np.corrcoef(noise[: RATE // 2], short)[0, 1] > 0.999
    assert level(voice) - level(noise) == pytest.approx(10, abs=0.01)
    key = perturbation.key
    assert str(tmp_path) not in key
    soundfile.write(tmp_path / "silent.wav", np.zeros(100), RATE)
    changed = Noise(10, 10, source=NoiseFolder(tmp_path))
    assert changed.key != key
    drawn = np.random.default_rng(0)
    with pytest.raises(ValueError, match="silent.wav is silent"):
        [changed(voice, RATE, drawn) for _ in range(20)]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing"):
        NoiseFolder(tmp_path / "nothing")


@pytest.mark.parametrize("decay_time", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [-6.0, 0.0, 10.0])
def test_a_room_decays_by_sixty_decibels_in_its_time(decay_time, ratio):
    response = room_response(decay_time, RATE, ratio, np.random.default_rng(0))
    assert response[0] == 1
    assert 10 * np.log10(1 / np.sum(response[1:] ** 2)) == pytest.approx(ratio)
    # Schroeder's backward integral between -5 and -25 dB, as ISO 3382 has it for T20.
    energy = np.cumsum(response[:0:-1] ** 2)[::-1]
    decibels = 10 * np.log10(energy / energy[0])
    part = np.flatnonzero((decibels < -5) & (decibels > -25))
    slope = np.polyfit(part / RATE, decibels[part], 1)[0]
    assert -60 / slope == pytest.approx(decay_time, rel=0.1)


def test_decay_times_are_drawn_as_stated():
    generator = np.random.default_rng(0)
    drawn = np.array([Reverberation().draw_decay_time(generator) for _ in range(4000)])
    assert drawn.min() >= 0.1
    assert drawn.max() <= 1.0
    # Below 0.2 s: half of the low range. Above 0.6 s: two thirds of the high one.
    assert np.mean(drawn < 0.2) == pytest.approx(0.5 * 0.5, abs=0.02)
    assert np.mean(drawn > 0.6) == pytest.approx(0.2 * 2 / 3, abs=0.02)
    with pytest.raises(ValueError, match="add up to 0.5"):
        Reverberation(rooms=((0.5, 0.1, 0.3),))


def test_reverberation_moves_nothing_in_time_and_keeps_the_level(voice):
    reverberant = perturb(voice, Reverberation(((1.0, 0.5, 0.5),)), 0)
    assert abs(estimate_delay(reverberant, voice, 4000)) <= 2
    assert level(reverberant) == pytest.approx(level(voice), abs=1e-3)
    click = np.zeros(RATE)
    click[3000] = 1.0
    response = perturb(click, Reverberation(((1.0, 0.2, 0.2),)), 0)
    assert not response[:2990].round(6).any()
    assert np.argmax(np.abs(response)) == 3000


def test_a_far_microphone_hears_the_room_more_than_the_voice_and_noise(voice):
    click = np.zeros(2 * RATE)
    click[3000] = 1.0
    quiet = FarMicrophone(0.5, 0.5, -6.0, signal_to_noise=200.0)
    response = perturb(click, quiet, 0)
    rest = np.delete(response, 3000)
    assert 10 * np.log10(response[3000] ** 2 / np.sum(rest**2)) == pytest.approx(-6, abs=0.1)
    # The same draw without noise, and with it: what is added has the stated ratio.
    reverberant, noisy = (
        perturb(voice, FarMicrophone(signal_to_noise=ratio), 0, "clip").astype(np.float64) for ratio in (200.0, 15.0)
    )
    assert level(reverberant) - level(noisy - reverberant) == pytest.approx(15, abs=0.01)
    assert level(reverberant) == pytest.approx(level(voice), abs=1e-3)
    assert len(noisy) == len(voice)
    assert not perturb(np.zeros(RATE), FarMicrophone(), 0).any()
    with pytest.raises(ValueError, match="above 0 s"):
        FarMicrophone(low=0.0)
    with pytest.raises(ValueError, match="`source`"):
        FarMicrophone(source="brown")


def test_listening_conditions_share_their_noise_and_have_the_stated_ratios(voice):
    conditions = listening_conditions((20.0, 0.0), far=False)
    assert list(conditions) == ["noise_20db", "noise_0db", "room"]
    assert list(listening_conditions((), room=False)) == ["far"]
    weak, strong = (
        perturb(voice, conditions[name], 0, "clip").astype(np.float64) - voice for name in ("noise_20db", "noise_0db")
    )
    assert level(voice) - level(strong) == pytest.approx(0, abs=1e-3)
    np.testing.assert_allclose(10 * weak, strong, atol=1e-5)


def test_gain_is_within_its_range_and_never_clips(voice):
    factors = np.array(
        [perturb(voice, Gain(), 0, str(number))[1000:2000].std() / voice[1000:2000].std() for number in range(60)]
    )
    decibels = 20 * np.log10(factors)
    assert -12.01 <= decibels.min() < -9
    assert decibels.max() == pytest.approx(20 * np.log10(1 / 0.4), abs=0.01)  # where the peak of 0.4 reaches 1
    changed = perturb(voice, Gain(-6, -6), 0)
    np.testing.assert_allclose(changed, voice * 10 ** (-6 / 20), rtol=1e-5)
    assert np.array_equal(perturb(2 * voice / 0.4, Gain(3, 3), 0), 2 * voice / np.float32(0.4))


@pytest.mark.parametrize("semitones", [4.0, -4.0, 12.0])
def test_pitch_moves_by_semitones_and_the_length_stays(voice, semitones):
    assert fundamental(voice) == pytest.approx(F0, rel=0.005)
    shifted = shift_pitch(voice, semitones, RATE)
    assert len(shifted) == len(voice)
    assert fundamental(shifted) == pytest.approx(F0 * 2 ** (semitones / 12), rel=0.01)
    assert np.abs(perturb(voice, PitchShift(semitones), 0)).max() == pytest.approx(1.0, abs=1e-6)
    # The syllables are where they were.
    smooth = np.hanning(1600)
    before, after = (np.convolve(np.abs(sound), smooth, "same") for sound in (voice, shifted))
    assert abs(estimate_delay(after, before, 1600)) < 0.005 * RATE


@pytest.mark.parametrize("tempo", [0.8, 0.93, 1.2])
def test_tempo_changes_times_and_not_the_pitch(voice, tempo):
    stretched = stretch_time(voice, tempo, RATE)
    assert len(stretched) == round(len(voice) / tempo)
    assert fundamental(stretched) == pytest.approx(F0, rel=0.01)
    assert level(stretched) == pytest.approx(level(voice), abs=0.5)
    # Syllables, whose middles are at 0.125, 0.375, ... s of the recording, are where the tempo has them.
    smooth = np.hanning(1600)
    envelope = np.convolve(np.abs(stretched), smooth, "same")
    middles = signal.find_peaks(envelope, distance=0.15 * RATE)[0] / RATE
    np.testing.assert_allclose(middles * tempo, np.arange(0.125, 2, 0.25), atol=0.012)


def test_the_tempo_of_one_changes_nothing(voice):
    assert np.array_equal(stretch_time(voice, 1.0, RATE), voice)
    assert np.array_equal(perturb(voice, TimeStretch(1, 1), 0), voice)
    # Nearly so for a tempo of nearly one: windows follow where the recording goes on.
    np.testing.assert_allclose(stretch_time(voice, 1 + 1e-9, RATE), voice, atol=1e-6)


@pytest.mark.parametrize(("codec", "kbps"), [("opus", 8), ("opus", 32), ("mp3", 16), ("mp3", 24), ("mp3", 64)])
@pytest.mark.parametrize("num_samples", [5 * RATE, 5 * RATE - 123])
def test_coding_keeps_its_place_and_its_rate(voice, codec, kbps, num_samples):
    audio = np.tile(voice, 3)[:num_samples]
    perturbation = Transcoding(codec, kbps)
    decoded = perturb(audio, perturbation, 0)
    assert len(decoded) == len(audio)
    assert abs(estimate_delay(decoded, audio, 2400)) <= 2
    assert np.corrcoef(decoded, audio)[0, 1] > 0.8
    assert not np.allclose(decoded, audio, atol=1e-4)
    rate = 8 * len(perturbation.encode(audio, RATE)) / (len(audio) / RATE) / 1000
    assert rate == pytest.approx(kbps, rel=0.35 if codec == "opus" else 0.06)


def test_settings_that_make_no_sense_are_refused(voice):
    for wrong, message in (
        (lambda: Noise(convention="nist"), "'exact' or 'nast'"),
        (lambda: Noise(source="brown"), "'pink'"),
        (lambda: Noise(30, 5), "must not exceed"),
        (lambda: TimeStretch(0, 1), "above 0"),
        (lambda: Transcoding("aac", 16), "'opus' or 'mp3'"),
        (lambda: Transcoding("opus", 2), "between 6 and 256"),
        (lambda: perturb(voice, Transcoding("opus", 16), 0, sampling_rate=22050), "must be one of 8000"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_the_key_tells_every_setting():
    perturbations = default_perturbations()
    assert len({perturbation.key for perturbation in perturbations.values()}) == len(perturbations)
    assert perturbations["gain"].key == "Gain(low=-12.0, high=12.0)"
    for perturbation in perturbations.values():
        for field in dataclasses.fields(perturbation):
            assert f"{field.name}={getattr(perturbation, field.name)!r}" in perturbation.key
        assert perturbation.description
