# SPDX-License-Identifier: Apache-2.0
"""What all feature extractors promise alike: inputs, rates, lengths, and batches for `Trainer`."""

import time
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding

from speech_tokenizers.processing.feature_extraction_cst import CSTFeatureExtractor
from speech_tokenizers.processing.feature_extraction_dc_spin import DCSpinFeatureExtractor
from speech_tokenizers.processing.feature_extraction_dm_codec import DMCodecFeatureExtractor
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.processing.resampling import resample_waveform


EXTRACTORS = (
    RVQCodecFeatureExtractor,
    DMCodecFeatureExtractor,
    CSTFeatureExtractor,
    KMeansUnitsFeatureExtractor,
    DCSpinFeatureExtractor,
)


@pytest.fixture(params=EXTRACTORS)
def extractor(request):
    return request.param()


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, length).astype(np.float32)


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_dtype_is_taken_whether_resampled_or_not(extractor, dtype, resample):
    waveform = torch.from_numpy(noise(4000)).to(dtype)
    rate = 24000 if resample else 16000
    values = extractor(waveform, sampling_rate=rate, resample=resample, return_tensors="pt")["input_values"]
    expected = waveform.double().numpy()
    expected = resample_waveform(expected, 24000, 16000) if resample else expected
    assert values.dtype == torch.float32
    np.testing.assert_allclose(values[0, 0], expected, atol=1e-6)
    if dtype != torch.bfloat16:
        inputs = extractor(waveform.numpy(), sampling_rate=rate, resample=resample, return_tensors="pt")
        assert torch.equal(inputs["input_values"], values)


@pytest.mark.parametrize("rate", [16000, 16000.0, np.float32(16000), np.int64(16000), torch.tensor(16000)])
def test_a_whole_rate_of_any_type_is_that_rate(extractor, rate):
    expected = extractor(noise(100), sampling_rate=16000, return_tensors="np")
    assert np.array_equal(
        extractor(noise(100), sampling_rate=rate, return_tensors="np")["input_values"], expected["input_values"]
    )
    assert type(type(extractor)(sampling_rate=44100.0).sampling_rate) is int


@pytest.mark.parametrize("rate", [16000.5, 0, -1, float("nan"), float("inf"), True, "16000", [16000]])
def test_what_is_no_rate_is_refused(extractor, rate):
    with pytest.raises(ValueError, match="`sampling_rate` must be a positive whole number of Hz"):
        extractor(noise(100), sampling_rate=rate)
    with pytest.raises(ValueError, match="`sampling_rate` must be a positive whole number of Hz"):
        type(extractor)(sampling_rate=rate)


def test_a_rate_of_no_recording_is_refused_before_hours_of_work(extractor):
    for rate in (1, 999, 10**9):
        with pytest.raises(ValueError, match="check where it comes from"):
            extractor(noise(16000), sampling_rate=rate, resample=True)


def test_a_row_of_datasets_brings_its_rate(extractor):
    rows = [
        {"array": noise(2400), "sampling_rate": 24000, "path": None},
        {"array": noise(500), "sampling_rate": 16000.0},
    ]
    inputs = extractor(rows, resample=True, return_tensors="np")
    assert inputs["padding_mask"].sum(1).tolist() == [1600, 500]
    np.testing.assert_array_equal(inputs["input_values"][0, 0], resample_waveform(rows[0]["array"], 24000, 16000))
    alone = extractor(rows[1], sampling_rate=16000, return_tensors="np")["input_values"]
    np.testing.assert_array_equal(alone[0, 0], rows[1]["array"])
    with pytest.raises(ValueError, match="`sampling_rate` is 24000, but this codec was trained at 16000 Hz"):
        extractor(rows)
    with pytest.raises(ValueError, match=r"`sampling_rate` is 16000, but `raw_audio\[0\]` has 24000 Hz"):
        extractor(rows, sampling_rate=16000, resample=True)
    with pytest.raises(ValueError, match="a row of audio has `array` and `sampling_rate`"):
        extractor([{"path": "a.wav", "bytes": b""}], sampling_rate=16000)


def test_a_decoder_of_torchcodec_is_read(extractor):
    samples = SimpleNamespace(data=torch.from_numpy(noise(300))[None], sample_rate=16000)
    decoder = SimpleNamespace(get_all_samples=lambda: samples)
    values = extractor([decoder], return_tensors="np")["input_values"]
    np.testing.assert_array_equal(values[0, 0], noise(300))


@pytest.mark.parametrize(
    ("raw_audio", "error", "message"),
    [
        (np.full(10, 1e30), ValueError, r"reaches 1e\+30, but samples must lie in \[-1, 1\]; divide"),
        (np.full(10, 1e300), ValueError, "reaches 1e"),
        (np.array([0.1, np.nan], np.float16), ValueError, "1 NaN or infinite"),
        ([0.1, [0.2]], ValueError, "mixes numbers and lists"),
        ([[0.1, [0.2]]], ValueError, "mixes numbers and lists"),
        (np.zeros(10, complex), TypeError, "complex128"),
        (np.array(["a"]), TypeError, "got str"),
        (np.ma.masked_array(np.zeros(10), np.arange(10) > 4), TypeError, "hides samples"),
        ([np.ma.masked_array(np.zeros(10), np.arange(10) > 4)], TypeError, "hides samples"),
        ([None], TypeError, "got NoneType"),
        (None, TypeError, "got NoneType"),
        ("speech.wav", TypeError, "got str"),
        (b"RIFF", TypeError, "must hold floats"),
        (np.float32(0.1), ValueError, "mono waveforms"),
        (np.zeros((2, 3, 10)), ValueError, "mono waveforms"),
        (np.zeros((1, 1, 10)), ValueError, r"`audio\.reshape\(-1\)`"),
        (np.zeros((10, 1)), ValueError, r"`audio\.reshape\(-1\)`"),
        ({"array": np.zeros(0), "sampling_rate": 16000}, ValueError, "empty"),
        ((), ValueError, "empty"),
    ],
)
def test_what_is_no_audio_is_refused_with_the_reason(extractor, raw_audio, error, message):
    with pytest.raises(error, match=message):
        extractor(raw_audio, sampling_rate=16000)


@pytest.mark.parametrize("value", [-1, 0, 1.5, True, "100"])
@pytest.mark.parametrize("name", ["max_length", "pad_to_multiple_of"])
def test_lengths_that_make_no_sense_are_refused(extractor, name, value):
    for options in ({"padding": "longest"}, {"padding": "max_length", "max_length": 100}, {"truncation": True}):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive number of samples, but got {value!r}"):
            extractor(noise(100), sampling_rate=16000, **{**options, name: value})


def test_rows_that_no_tensor_can_hold_are_refused_with_the_remedy(extractor):
    rows = [noise(100), noise(50)]
    with pytest.raises(ValueError, match="2 different lengths: pass `padding=True`"):
        extractor(rows, sampling_rate=16000, padding=False, return_tensors="pt")
    with pytest.raises(ValueError, match=r"longer than `max_length` \(60\); pass `truncation=True`"):
        extractor(rows, sampling_rate=16000, padding="max_length", max_length=60, return_tensors="pt")
    with pytest.raises(ValueError, match="`truncation=True` needs `max_length`"):
        extractor(rows, sampling_rate=16000, truncation=True)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({}, 960),
        ({"padding": "max_length", "max_length": 1000}, 1280),
        ({"truncation": True, "max_length": 500}, 640),
        ({"padding": "max_length", "max_length": 2000, "truncation": True}, 2240),
    ],
)
def test_pad_to_multiple_of_rounds_the_length_up(side, options, length):
    extractor = RVQCodecFeatureExtractor(padding_side=side)
    inputs = extractor(
        [noise(700), noise(20)], sampling_rate=16000, pad_to_multiple_of=320, return_tensors="pt", **options
    )
    assert inputs["input_values"].shape == (2, 1, length)
    assert inputs["padding_mask"].sum(1).tolist() == [min(700, length), 20]


def test_a_long_list_of_floats_takes_no_seconds(extractor):
    samples = noise(160_000).tolist()
    start = time.process_time()
    extractor(samples, sampling_rate=16000, return_tensors="np")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["np", "pt", "list"])
def test_pad_gives_what_the_call_gives(side, kind):
    extractor = RVQCodecFeatureExtractor(padding_side=side)
    waveforms = [noise(700), noise(20), noise(320)]
    expected = extractor(waveforms, sampling_rate=16000, return_tensors="pt", pad_to_multiple_of=64)
    rows = []
    for waveform in waveforms:
        row = {"input_values": waveform, "padding_mask": np.ones(len(waveform), int)}
        rows.append(
            {
                name: {"np": value, "pt": torch.tensor(value), "list": value.tolist()}[kind]
                for name, value in row.items()
            }
        )
    collated = DataCollatorWithPadding(extractor, pad_to_multiple_of=64)(rows)
    assert collated.keys() == expected.keys()
    for name in expected:
        assert torch.equal(collated[name], expected[name]), name
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert torch.equal(
        extractor.pad(columns, return_tensors="pt", pad_to_multiple_of=64)["input_values"],
        expected["input_values"][:, 0],
    )
    # What was padded before is padded anew, as single rows of a batch or as they come from `Dataset.map`.
    again = [{name: expected[name][k] for name in expected} for k in range(3)]
    assert torch.equal(extractor.pad(again)["padding_mask"][:, :700].sum(1), torch.tensor([700, 20, 320]))
    mapped = [extractor(waveform, sampling_rate=16000) for waveform in waveforms]
    assert torch.equal(
        extractor.pad(mapped, return_tensors="pt")["input_values"],
        extractor(waveforms, sampling_rate=16000, return_tensors="pt")["input_values"],
    )


def test_pad_keeps_other_columns_and_pads_further_waveforms():
    rows = [
        {"input_values": noise(n), "perturbed_values": noise(n, seed=1), "labels": n, "speaker_embedding": noise(4)}
        for n in (50, 80)
    ]
    batch = RVQCodecFeatureExtractor().pad(rows, return_tensors="pt")
    assert batch["perturbed_values"].shape == (2, 1, 80)
    assert not batch["perturbed_values"][0, 0, 50:].any()
    assert batch["labels"].tolist() == [50, 80]
    assert batch["speaker_embedding"].shape == (2, 4)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([1, 2, 1], "other values"),
        ([1, -1, 0], "other values"),
        ([1, 0.5, 0], "other values"),
        ([0, 0, 0], "0 everywhere"),
        ([1, 0, 1], "between real samples"),
        ([1, 1], r"must have shape \(3,\)"),
    ],
)
def test_a_malformed_mask_is_refused(extractor, mask, message):
    with pytest.raises(ValueError, match=message):
        extractor.pad([{"input_values": noise(3), "padding_mask": mask}])


def test_rows_that_do_not_fit_together_are_refused(extractor):
    with pytest.raises(ValueError, match="Row 1 has"):
        extractor.pad([{"input_values": noise(3)}, {"input_values": noise(3), "labels": 1}])
    with pytest.raises(ValueError, match="must have `input_values`"):
        extractor.pad([{"values": noise(3)}])
    with pytest.raises(ValueError, match="at least one"):
        extractor.pad([])
    with pytest.raises(ValueError, match="`labels` has different shapes"):
        extractor.pad([{"input_values": noise(3), "labels": [1]}, {"input_values": noise(3), "labels": [1, 2]}])
    with pytest.raises(ValueError, match="`perturbed_values` must be as long"):
        extractor.pad([{"input_values": noise(3), "perturbed_values": noise(4)}])


def test_options_without_an_effect_are_told(extractor, monkeypatch):
    messages = []
    monkeypatch.setattr("speech_tokenizers.processing.feature_extraction_rvq_codec.logger.warning", messages.append)
    extractor(noise(100), sampling_rate=16000, max_length=50)
    extractor(noise(100), sampling_rate=16000, padding=False, pad_to_multiple_of=64)
    assert ["does nothing" in message for message in messages] == [True, True]


def test_columns_and_arrays_of_waveforms_are_batches(extractor):
    waveforms = [noise(300), noise(200)]
    expected = extractor(waveforms, sampling_rate=16000, return_tensors="pt")["input_values"]
    ragged = np.empty(2, dtype=object)
    ragged[:] = waveforms
    column = datasets.Dataset.from_dict({"audio": waveforms})["audio"]
    for container in (ragged, column, tuple(waveforms)):
        assert torch.equal(extractor(container, sampling_rate=16000, return_tensors="pt")["input_values"], expected)


def test_an_error_names_the_row(extractor):
    with pytest.raises(ValueError, match=r"`raw_audio\[1\]` contains 1 NaN"):
        extractor([noise(3), np.array([0.0, np.nan])], sampling_rate=16000)
    with pytest.raises(ValueError, match=r"shape \(100, 2\); average.*axis=1"):
        extractor(np.zeros((100, 2)), sampling_rate=16000)


def test_settings_that_no_model_takes_are_refused(extractor):
    for value in (float("nan"), None, True, float("inf")):
        with pytest.raises(ValueError, match="`padding_value` must be a number"):
            type(extractor)(padding_value=value)
    with pytest.raises(ValueError, match="`padding_side` must be 'right'"):
        type(extractor)(padding_side="middle")
    if type(extractor) in (KMeansUnitsFeatureExtractor, DCSpinFeatureExtractor):
        with pytest.raises(ValueError, match="`padding_side` must be 'right', but got 'left'"):
            type(extractor)(padding_side="left")
