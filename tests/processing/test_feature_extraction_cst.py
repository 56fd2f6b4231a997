# SPDX-License-Identifier: Apache-2.0
"""Waveforms of another rate are refused, or resampled where that is asked for."""

import numpy as np
import pytest
import soxr
import torch
from transformers import AutoFeatureExtractor

from speech_tokenizers.processing.feature_extraction_cst import CSTFeatureExtractor
from speech_tokenizers.processing.resampling import resample_waveform


def noise(num_samples: int) -> np.ndarray:
    """Noise below 3 kHz at 44.1 kHz."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(num_samples))
    spectrum[round(3000 / 44100 * num_samples) :] = 0
    waveform = np.fft.irfft(spectrum, num_samples)
    return (0.1 * waveform / waveform.std()).astype(np.float32)


@pytest.mark.parametrize(
    ("source_rate", "target_rate"), [(44100, 16000), (48000, 16000), (8000, 16000), (16000, 24000), (22050, 16000)]
)
def test_resampling_agrees_with_soxr(source_rate, target_rate):
    waveform = noise(44100)[: source_rate // 2]
    found = resample_waveform(waveform, source_rate, target_rate)
    expected = soxr.resample(waveform, source_rate, target_rate, quality="VHQ")
    assert abs(len(found) - len(expected)) <= 1
    assert len(found) == -(-len(waveform) * target_rate // source_rate)
    inside = slice(500, min(len(found), len(expected)) - 500)
    # The two cut off at slightly different frequencies where that of the noise is near.
    if 3000 * source_rate / 44100 < 0.4 * min(source_rate, target_rate):
        difference = found[inside] - expected[inside]
        assert 20 * np.log10(difference.std() / expected[inside].std()) < -70


def test_a_tone_keeps_its_time_and_what_the_target_lacks_is_removed():
    seconds = np.arange(24000) / 24000
    found = resample_waveform(np.cos(2 * np.pi * 1000 * seconds), 24000, 16000)
    expected = np.cos(2 * np.pi * 1000 * np.arange(16000) / 16000)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=1e-4)
    removed = resample_waveform(np.cos(2 * np.pi * 9000 * seconds), 24000, 16000)
    assert np.abs(removed[200:-200]).max() < 1e-3


def test_batches_are_resampled_item_by_item():
    extractor = CSTFeatureExtractor()
    items = [noise(44100)[:5000], torch.from_numpy(noise(44100)[:3000])]
    inputs = extractor(items, sampling_rate=24000, resample=True, return_tensors="np")
    assert inputs["padding_mask"].sum(-1).tolist() == [3334, 2000]
    for k, item in enumerate(items):
        alone = extractor(item, sampling_rate=24000, resample=True, return_tensors="np")["input_values"]
        expected = resample_waveform(np.asarray(item), 24000, 16000)
        np.testing.assert_array_equal(alone[0, 0], expected)
        np.testing.assert_array_equal(inputs["input_values"][k, 0, : len(expected)], expected)
    plain = extractor(items, sampling_rate=16000, resample=True, return_tensors="np")["input_values"]
    np.testing.assert_array_equal(plain[0, 0], items[0])


def test_another_rate_is_an_error_unless_resampling_is_asked_for(tmp_path):
    CSTFeatureExtractor(sampling_rate=24000).save_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(extractor) is CSTFeatureExtractor
    assert extractor.sampling_rate == 24000
    with pytest.raises(ValueError, match="`sampling_rate` is 16000, but this codec was trained at 24000 Hz"):
        extractor(noise(1000), sampling_rate=16000)
    with pytest.raises(ValueError, match="`resample=True` needs the `sampling_rate`"):
        extractor(noise(1000), resample=True)
    with pytest.raises(ValueError, match="must be a positive whole number"):
        resample_waveform(noise(1000), 0, 16000)


@pytest.mark.parametrize(
    ("raw_audio", "error", "message"),
    [
        (np.zeros(100, dtype=np.int16), TypeError, "must hold floats"),
        (np.zeros((2, 100)), ValueError, "must hold mono waveforms"),
        (np.zeros(0), ValueError, "is empty"),
        ([], ValueError, "is empty"),
    ],
)
def test_what_is_no_waveform_is_refused_with_the_reason(raw_audio, error, message):
    with pytest.raises(error, match=message):
        CSTFeatureExtractor()(raw_audio, sampling_rate=24000, resample=True)
