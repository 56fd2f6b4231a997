# SPDX-License-Identifier: Apache-2.0
import cmath
import importlib.util
import math

import numpy as np
import pytest

from speech_tokenizers.evaluation.clip_results import MetricFailure
from speech_tokenizers.evaluation.reconstruction.neural_metrics import (
    DNSMOS,
    SpeakerSimilarity,
    mel_power_spectrogram,
    slaney_filters,
    slaney_hertz,
    slaney_mel,
)


def make_voice(pitch: float, seconds: float = 3.0) -> np.ndarray:
    time = np.arange(round(seconds * 16000)) / 16000
    voice = sum(np.sin(2 * np.pi * pitch * order * time) / order for order in range(1, 20))
    return (0.1 * voice * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))).astype(np.float32)


def test_slaney_scale_by_hand():
    # Linear to 1000 Hz = 15 mel; a factor of 6.4 above that adds 27.
    assert slaney_mel(np.array([500.0, 1000.0, 6400.0])) == pytest.approx([7.5, 15.0, 42.0])
    frequencies = np.linspace(10, 7900, 50)
    assert slaney_hertz(slaney_mel(frequencies)) == pytest.approx(frequencies)


@pytest.mark.parametrize("n_fft", [40, 41])
def test_mel_power_spectrogram_equals_a_naive_version(n_fft):
    audio = np.random.default_rng(0).standard_normal(100)
    result = mel_power_spectrogram(audio, 16000, n_fft, 20, 6)
    assert result.shape == (1 + (100 - n_fft % 2) // 20, 6)
    filters = slaney_filters(16000, n_fft, 6)
    for frame in range(len(result)):
        power = []
        for bin_number in range(n_fft // 2 + 1):
            total = 0j
            for n in range(n_fft):
                position = frame * 20 + n - n_fft // 2
                sample = audio[position] if 0 <= position < len(audio) else 0.0
                window = 0.5 - 0.5 * math.cos(2 * math.pi * n / n_fft)
                total += sample * window * cmath.exp(-2j * math.pi * bin_number * n / n_fft)
            power.append(abs(total) ** 2)
        assert result[frame] == pytest.approx(filters @ np.array(power))


def test_slaney_filters_have_unit_area():
    filters = slaney_filters(16000, 4096, 20)
    assert filters.sum(1) * 16000 / 4096 == pytest.approx(np.ones(20), rel=0.02)


def test_dnsmos_hears_noise_and_refuses_silence():
    pytest.importorskip("speechmos", reason="the extra `evaluation` holds it")
    pytest.importorskip("onnxruntime", reason="the extra `evaluation` holds it")
    metric = DNSMOS(max_windows=1)
    voice = make_voice(140, 9.5)
    noise = 0.3 * np.random.default_rng(0).standard_normal(len(voice)).astype(np.float32)
    clean, noisy = (metric.score_all(audio, 16000) for audio in (voice, voice + noise))
    assert all(0.9 <= value <= 5 for value in clean.values())
    assert noisy["background"] < clean["background"]
    with pytest.raises(MetricFailure, match="silent"):
        metric.score_clip(np.zeros(16000, np.float32), voice, 16000)


@pytest.mark.skipif(
    importlib.util.find_spec("resemblyzer") is None, reason="needs the weights in `pip install --no-deps resemblyzer`"
)
def test_speaker_similarity_tells_voices_apart():
    metric = SpeakerSimilarity()
    low, high = make_voice(90), make_voice(260)
    # Both are raised to -30 dBFS.
    same = metric.score_clip(0.05 * low, 0.1 * low, 16000)
    assert same == pytest.approx(1.0, abs=1e-6)
    assert metric.score_clip(high, low, 16000) < same - 0.1
    with pytest.raises(MetricFailure, match="silent"):
        metric.score_clip(np.zeros_like(low), low, 16000)
