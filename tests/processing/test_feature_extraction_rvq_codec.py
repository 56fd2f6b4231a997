# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from speech_tokenizers import RVQCodecFeatureExtractor


@pytest.fixture
def waveforms():
    generator = np.random.default_rng(0)
    return [0.1 * generator.standard_normal(length).astype(np.float32) for length in (700, 1, 320)]


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_batch_is_padded_on_the_side_that_was_chosen(waveforms, padding_side):
    extractor = RVQCodecFeatureExtractor(padding_side=padding_side)
    batch = extractor(waveforms, sampling_rate=16000, return_tensors="pt")
    assert batch["input_values"].shape == (3, 1, 700)
    assert batch["padding_mask"].shape == (3, 700)
    for item, mask, waveform in zip(batch["input_values"], batch["padding_mask"], waveforms, strict=True):
        real = slice(0, len(waveform)) if padding_side == "right" else slice(700 - len(waveform), None)
        assert np.array_equal(item[0, real].numpy(), waveform)
        assert mask[real].all()
        assert mask.sum() == len(waveform)
        assert not item[0, mask == 0].any()


def test_every_container_of_the_same_samples_gives_the_same_values(waveforms):
    extractor = RVQCodecFeatureExtractor()
    expected = extractor(waveforms[0], sampling_rate=16000, return_tensors="np")["input_values"]
    for container in (
        waveforms[0].tolist(),
        list(waveforms[0]),
        torch.from_numpy(waveforms[0]),
        waveforms[0][None],
        [waveforms[0]],
        (torch.from_numpy(waveforms[0]),),
        waveforms[0].astype(np.float64),
    ):
        values = extractor(container, sampling_rate=16000, return_tensors="np")["input_values"]
        assert values.dtype == np.float32
        assert np.array_equal(values, expected)


def test_without_padding_each_item_keeps_its_length(waveforms):
    batch = RVQCodecFeatureExtractor()(waveforms, padding=False, sampling_rate=16000)
    assert [values.shape for values in batch["input_values"]] == [(1, 700), (1, 1), (1, 320)]
    assert [mask.shape for mask in batch["padding_mask"]] == [(700,), (1,), (320,)]


def test_max_length_pads_and_truncates(waveforms):
    batch = RVQCodecFeatureExtractor()(
        waveforms, padding="max_length", max_length=500, truncation=True, sampling_rate=16000, return_tensors="np"
    )
    assert batch["input_values"].shape == (3, 1, 500)
    assert batch["padding_mask"].sum(axis=1).tolist() == [500, 1, 320]


def test_the_input_is_not_changed(waveforms):
    before = [waveform.copy() for waveform in waveforms]
    RVQCodecFeatureExtractor()(waveforms, sampling_rate=16000)
    assert all(np.array_equal(old, new) for old, new in zip(before, waveforms, strict=True))


def test_silence_and_a_single_sample_are_fine():
    extractor = RVQCodecFeatureExtractor()
    for num_samples in (1, 3, 319):
        batch = extractor(np.zeros(num_samples, dtype=np.float32), sampling_rate=16000, return_tensors="pt")
        assert batch["input_values"].shape == (1, 1, num_samples)


def test_save_and_load_through_the_auto_class(tmp_path):
    RVQCodecFeatureExtractor(sampling_rate=24000, padding_side="left").save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is RVQCodecFeatureExtractor
    assert (loaded.sampling_rate, loaded.padding_side) == (24000, "left")


def test_a_wrong_sampling_rate_is_refused_and_says_how_to_resample(waveforms):
    with pytest.raises(ValueError, match=r"is 44100, but this codec was trained at 16000 Hz; pass.*44100, 16000"):
        RVQCodecFeatureExtractor()(waveforms, sampling_rate=44100)


def test_a_missing_sampling_rate_warns(waveforms, monkeypatch):
    messages = []
    monkeypatch.setattr("speech_tokenizers.processing.feature_extraction_rvq_codec.logger.warning", messages.append)
    RVQCodecFeatureExtractor()(waveforms)
    assert len(messages) == 1
    assert "pass the rate" in messages[0]


@pytest.mark.parametrize(
    ("raw_audio", "error", "message"),
    [
        (np.zeros((2, 100), np.float32), ValueError, r"mono.*\(2, 100\); average the channels"),
        ([np.zeros((100, 2), np.float32)], ValueError, r"mono.*\(100, 2\); average the channels"),
        (np.zeros((1, 1, 100), np.float32), ValueError, "mono"),
        (np.array([0.0, np.nan]), ValueError, "1 NaN or infinite"),
        (torch.tensor([float("inf"), float("-inf")]), ValueError, "2 NaN or infinite"),
        (np.zeros(10, np.int16), TypeError, "int16; divide 16-bit integers by 32768"),
        (torch.zeros(10, dtype=torch.int32), TypeError, "torch.int32; divide"),
        ([1, 2, 3], TypeError, "int64; divide"),
        (np.array([True, False]), TypeError, "bool"),
        (["a"], TypeError, "floats"),
        ([], ValueError, "empty"),
        ([[]], ValueError, "empty"),
        (np.zeros(0, np.float32), ValueError, "empty"),
        ([np.zeros(5, np.float32), np.zeros(0, np.float32)], ValueError, "empty"),
    ],
)
def test_bad_audio_is_refused(raw_audio, error, message):
    with pytest.raises(error, match=message):
        RVQCodecFeatureExtractor()(raw_audio, sampling_rate=16000)


def test_what_is_too_loud_warns_and_unscaled_integers_in_disguise_are_refused(monkeypatch):
    messages = []
    monkeypatch.setattr("speech_tokenizers.processing.waveform_rows.logger.warning", messages.append)
    RVQCodecFeatureExtractor()(np.array([0.0, -12.0]), sampling_rate=16000)
    assert "reaches 12" in messages[0]
    with pytest.raises(ValueError, match="reaches 12000.*divide 16-bit integers by 32768"):
        RVQCodecFeatureExtractor()(np.array([0.0, -12000.0]), sampling_rate=16000)


def test_the_codec_is_mono():
    with pytest.raises(ValueError, match="`feature_size` must be 1"):
        RVQCodecFeatureExtractor(feature_size=2)
