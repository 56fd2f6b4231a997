# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from speech_tokenizers.evaluation.clip_results import MetricFailure
from speech_tokenizers.evaluation.reconstruction.signal_metrics import PESQ, STOI, MelDistance, ScaleInvariantSDR
from speech_tokenizers.modeling.spectral_losses import MelScale
from speech_tokenizers.processing.optional_packages import MissingPackageError, require_package


def make_speech(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """A buzz of changing loudness in a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    buzz = sum(np.sin(2 * np.pi * 140 * order * time) / order for order in range(1, 25))
    loudness = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * time) * np.sin(2 * np.pi * 1.3 * time)
    return (0.1 * loudness * buzz + 0.01 * generator.standard_normal(len(time))).astype(np.float32)


def add_noise(audio: np.ndarray, level: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(len(audio))
    return (audio + level * noise).astype(np.float32)


def test_si_sdr_of_a_hand_computed_case():
    # The error has a hundredth of the energy and is orthogonal: 10 log10(100) = 20 dB, whatever the gain and offset.
    recorded = np.array([1, -1, 1, -1] * 4, np.float32)
    error = 0.1 * np.array([1, 1, -1, -1] * 4, np.float32)
    metric = ScaleInvariantSDR()
    assert metric.score_clip(recorded + error, recorded, 16000) == pytest.approx(20.0, abs=1e-5)
    assert metric.score_clip(0.3 * (recorded + error) + 0.2, recorded, 16000) == pytest.approx(20.0, abs=1e-4)


def test_si_sdr_equals_a_naive_version():
    recorded, decoded = make_speech(0.1), add_noise(make_speech(0.1), 0.05)
    mean_recorded, mean_decoded = sum(map(float, recorded)) / len(recorded), sum(map(float, decoded)) / len(decoded)
    pairs = [(float(s) - mean_recorded, float(d) - mean_decoded) for s, d in zip(recorded, decoded, strict=True)]
    gain = sum(s * d for s, d in pairs) / sum(s * s for s, _ in pairs)
    signal, distortion = sum((gain * s) ** 2 for s, _ in pairs), sum((gain * s - d) ** 2 for s, d in pairs)
    expected = 10 * math.log10(signal / distortion)
    assert ScaleInvariantSDR().score_clip(decoded, recorded, 16000) == pytest.approx(expected, abs=1e-6)


def naive_log_mel(audio: np.ndarray, n_fft: int, hop_length: int, num_mels: int) -> np.ndarray:
    """The definition of `log_mel_spectrogram`, a frame and a filter at a time."""
    extension = (n_fft - hop_length) // 2
    audio = np.concatenate([audio[extension:0:-1], audio, audio[-2 : -extension - 2 : -1]]).astype(np.float64)
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / n_fft) for n in range(n_fft)]
    top = 2595 * math.log10(1 + 8000 / 700)
    edges = [700 * (10 ** (top * k / (num_mels + 1) / 2595) - 1) for k in range(num_mels + 2)]
    frames = []
    for start in range(0, len(audio) - n_fft + 1, hop_length):
        magnitudes = np.sqrt(np.abs(np.fft.rfft(audio[start : start + n_fft] * window)) ** 2 + 1e-9)
        mels = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for number, magnitude in enumerate(magnitudes):
                frequency = number * 16000 / n_fft
                weight = min((frequency - low) / (middle - low), (high - frequency) / (high - middle))
                total += max(0.0, weight) * 2 / (high - low) * magnitude
            mels.append(math.log(max(total, 1e-5)))
        frames.append(mels)
    return np.array(frames)


def test_mel_distance_equals_a_naive_version():
    recorded, decoded = make_speech(0.15), add_noise(make_speech(0.15), 0.02)
    scales = (MelScale(512, 128, 20, 0.75), MelScale(256, 64, 10, 0.25))
    expected = 0.0
    for scale in scales:
        sizes = (scale.n_fft, scale.hop_length, scale.num_mels)
        expected += scale.weight * np.abs(naive_log_mel(decoded, *sizes) - naive_log_mel(recorded, *sizes)).mean()
    assert MelDistance(scales=scales).score_clip(decoded, recorded, 16000) == pytest.approx(expected, abs=1e-4)


def test_mel_distance_of_twice_the_level_is_the_logarithm_of_two():
    recorded = 0.2 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    distance = MelDistance().score_clip(2 * recorded, recorded, 16000)
    assert distance == pytest.approx(math.log(2), abs=1e-3)


def naive_stoi(recorded: np.ndarray, decoded: np.ndarray, extended: bool) -> float:
    """STOI (Taal et al. 2011) and ESTOI (Jensen and Taal 2016) at 10 kHz for signals without silent frames."""
    window = np.hanning(258)[1:-1]

    def resynthesised(audio):  # what the removal of silent frames makes of a signal that has none
        starts = range(0, len(audio) - 256, 128)
        total = np.zeros((len(starts) + 1) * 128)
        for start in starts:
            total[start : start + 256] += window * audio[start : start + 256]
        return total

    def bands(audio):
        rows = []
        for start in range(0, len(audio) - 256, 128):
            power = np.abs(np.fft.rfft(window * audio[start : start + 256], 512)) ** 2
            frequencies = np.linspace(0, 10000, 513)[:257]
            row = []
            for number in range(15):
                low, high = (150 * 2 ** ((2 * number + side) / 6) for side in (-1, 1))
                first, last = (np.argmin((frequencies - edge) ** 2) for edge in (low, high))
                row.append(math.sqrt(power[first:last].sum()))
            rows.append(row)
        return np.array(rows).T  # (15, frames)

    clean, processed = bands(resynthesised(recorded)), bands(resynthesised(decoded))
    scores = []
    for end in range(30, clean.shape[1] + 1):
        x, y = clean[:, end - 30 : end], processed[:, end - 30 : end]
        if extended:
            x, y = ((part - part.mean(1, keepdims=True)) for part in (x, y))
            x, y = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, y))
            x, y = ((part - part.mean(0)) / np.linalg.norm(part - part.mean(0), axis=0) for part in (x, y))
            scores.append((x * y).sum() / 30)
        else:
            for band in range(15):
                scaled = y[band] * np.linalg.norm(x[band]) / np.linalg.norm(y[band])
                clipped = np.minimum(scaled, x[band] * (1 + 10 ** (15 / 20)))
                scores.append(np.corrcoef(x[band], clipped)[0, 1])
    return float(np.mean(scores))


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_equals_a_naive_version(extended):
    generator = np.random.default_rng(0)
    recorded = generator.standard_normal(10000)
    decoded = recorded + 0.7 * generator.standard_normal(10000)
    score = STOI(extended=extended).score_clip(decoded.astype(np.float32), recorded.astype(np.float32), 10000)
    assert score == pytest.approx(naive_stoi(recorded, decoded, extended), abs=2e-3)


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_of_the_recording_is_one_and_falls_with_noise(extended):
    metric, recorded = STOI(extended=extended), make_speech()
    scores = [metric.score_clip(add_noise(recorded, level), recorded, 16000) for level in (0.0, 0.05, 0.5)]
    assert scores[0] == pytest.approx(1.0, abs=1e-6)
    assert scores[0] > scores[1] > scores[2]


def test_pesq_of_the_recording_is_the_top_of_its_scale():
    pytest.importorskip("pesq", reason="the extra `evaluation` holds it: it needs a C compiler")
    # P.862.2 maps the raw score 4.5 to 0.999 + 4 / (1 + exp(-1.3669 * 4.5 + 3.8224)).
    top = 0.999 + 4 / (1 + math.exp(-1.3669 * 4.5 + 3.8224))
    recorded = make_speech()
    metric = PESQ()
    assert metric.score_clip(recorded, recorded, 16000) == pytest.approx(top, abs=1e-4)
    assert metric.score_clip(add_noise(recorded, 0.05), recorded, 16000) < top - 1
    with pytest.raises(MetricFailure):
        metric.score_clip(recorded[:1000], recorded[:1000], 16000)
    with pytest.raises(ValueError, match="must be 16000 Hz"):
        metric.score_clip(recorded, recorded, 8000)


def test_a_clip_that_fails_gets_no_score_and_is_counted_out_of_the_mean():
    recorded = make_speech()
    silence = np.zeros_like(recorded)
    decoded = [add_noise(recorded, 0.05), recorded, add_noise(recorded, 0.1)]
    result = STOI().compute(predictions=decoded, references=[recorded, silence, recorded], sampling_rate=16000)
    assert result["scores"][1] is None
    assert result["failures"] == {1: "the recorded clip is silent"}
    assert result["num_clips"] == 2
    assert result["stoi"] == pytest.approx((result["scores"][0] + result["scores"][2]) / 2)


def test_where_every_clip_fails_the_mean_is_none():
    silence = np.zeros(16000, np.float32)
    result = ScaleInvariantSDR().compute(predictions=[silence], references=[silence])
    assert (result["si_sdr"], result["num_clips"]) == (None, 0)


@pytest.mark.parametrize("metric", [STOI(), STOI(extended=True), MelDistance(), ScaleInvariantSDR()])
def test_bad_clips_are_refused(metric):
    recorded = make_speech()
    with pytest.raises(ValueError, match=r"must both have shape \(num_samples,\)"):
        metric.score_clip(recorded[:-1], recorded, 16000)
    broken = recorded.copy()
    broken[100] = np.nan
    with pytest.raises(MetricFailure, match="NaN or infinite"):
        metric.score_clip(broken, recorded, 16000)
    with pytest.raises(MetricFailure, match="empty"):
        metric.score_clip(recorded[:0], recorded[:0], 16000)


@pytest.mark.parametrize("seconds", [0.01, 0.3])
def test_stoi_fails_where_too_little_is_speech(seconds):
    recorded = make_speech(seconds)
    with pytest.raises(MetricFailure):
        STOI().score_clip(recorded, recorded, 16000)


def test_an_exact_copy_has_no_si_sdr():
    recorded = make_speech()
    with pytest.raises(MetricFailure, match="infinite"):
        ScaleInvariantSDR().score_clip(recorded, recorded, 16000)


def test_a_missing_package_names_the_extra():
    with pytest.raises(MissingPackageError, match=r"pip install 'speech-tokenizers\[evaluation\]'"):
        require_package("no_such_package_at_all", "A metric")
