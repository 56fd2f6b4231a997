# SPDX-License-Identifier: Apache-2.0
"""A corpus becomes rows of latents: those that `encode` gives to each recording alone, rounded to float16."""

import json

import numpy as np
import pytest
import soundfile
import torch
from transformers.utils import ModelOutput

from helpers.tiny_codecs import make_dc_spin
from speech_tokenizers import KMeansUnitsFeatureExtractor
from speech_tokenizers.coding.loading import load
from speech_tokenizers.coding.recording_coding import encode_recordings
from speech_tokenizers.coding.row_coding import RowCoding, RowFields, encode_speech_rows
from speech_tokenizers.modeling.transformers_codecs import TransformersCodec, as_speech_codec
from speech_tokenizers.processing.audio_files import load_audio
from speech_tokenizers.processing.recordings import load_recordings
from speech_tokenizers.processing.speech_rows import (
    SpeechRowsError,
    read_rows_facts,
    read_speech_rows,
    row_audio_codes,
    row_audio_latents,
    set_aside_path,
)


LENGTHS = [4000, 9000, 2000, 6500, 4001]


@pytest.fixture
def recordings(tmp_path):
    """Recordings of `LENGTHS` samples with texts and times."""
    folder = tmp_path / "speech"
    folder.mkdir()
    words = [{"word": "a", "start": 0.0, "end": 0.1}]
    with (folder / "metadata.jsonl").open("w") as file:
        for number, length in enumerate(LENGTHS):
            soundfile.write(folder / f"{number}.wav", np.random.default_rng(number).normal(0, 0.1, length), 16000)
            print(json.dumps({"file_name": f"{number}.wav", "text": "a", "words": words}), file=file)
    return load_recordings(str(folder))


@pytest.fixture
def make(make_cst, make_transformers_codec, tiny_checkpoint):
    """A function from a name to a model that gives latents, and its feature extractor."""

    def made(name):
        if name == "rvq":
            return load(tiny_checkpoint)
        if name == "dc_spin":
            return make_dc_spin(), KMeansUnitsFeatureExtractor()
        if name != "cst":
            return make_transformers_codec(name)
        model, feature_extractor = make_cst()
        model.statistics.num_updates.fill_(1)
        return model, feature_extractor

    return made


def whole(model, waveform):
    """Latents that `encode` gives."""
    with torch.no_grad():
        return model.encode(torch.as_tensor(waveform)[None, None])["latents"][0].numpy()


@pytest.mark.parametrize("name", ["cst", "rvq", "dc_spin", "encodec", "dac", "mimi", "vibevoice"])
def test_a_row_holds_the_latents_that_the_recording_gives_alone(make, recordings, tmp_path, name):
    model, feature_extractor = make(name)
    codec = as_speech_codec(model, feature_extractor)
    kind = None if codec.kind == "latents" else "latents"
    coding = RowCoding(model, feature_extractor, name, RowFields(recordings), kind=kind)
    list(encode_speech_rows(coding, recordings, tmp_path / "rows"))
    rows = read_speech_rows(tmp_path / "rows", codec, kind="latents")
    assert (rows["text"][:], rows[0]["words"][0]["end"]) == (["a"] * 5, 0.1)
    assert not {"audio_codes", "num_quantizers"} & set(rows.column_names)
    for row, recording, length in zip(rows, recordings, LENGTHS, strict=True):
        expected = whole(codec, load_audio(recording["audio"]["path"], codec.sampling_rate))
        latents = row_audio_latents(row)
        assert latents.dtype == np.float32
        assert np.array_equal(latents, expected.astype(np.float16))
        assert np.abs(latents - expected).max() > 0  # rounded; else the test compares nothing
        assert (row["num_frames"], row["latent_dim"]) == expected.shape == (len(expected), codec.latent_dim)
        assert row["seconds"] == pytest.approx(length / 16000, abs=1e-4)
    with pytest.raises(ValueError, match=r"`row` '0\.wav' holds latents, but codes are needed"):
        row_audio_codes(rows[0])


@pytest.mark.parametrize("name", ["cst", "rvq"])
def test_no_bit_of_latents_depends_on_the_other_recordings(make, name):
    model, feature_extractor = make(name)
    waveforms = [np.random.default_rng(seed).normal(0, 0.1, 3000 + seed).astype(np.float32) for seed in range(9)]
    for seconds in (0.2, 60.0):
        for result in encode_recordings(model, feature_extractor, waveforms, seconds, kind="latents"):
            assert result.audio_codes is None
            assert np.array_equal(result.latents, whole(model, waveforms[result.index]))


def test_latents_of_a_long_recording_come_from_a_stream_or_not_at_all(make):
    samples = np.random.default_rng(0).normal(0, 0.1, 61 * 16000).astype(np.float32)
    model, feature_extractor = make("cst")
    (result,) = encode_recordings(model, feature_extractor, [samples], kind="latents")
    expected = whole(model, samples)
    assert result.latents.shape == expected.shape == (1525, 6)
    assert np.allclose(result.latents, expected, atol=1e-4)
    (result,) = encode_recordings(*make("dc_spin"), [samples], kind="latents")
    assert result.reason == "is longer than 60 s and needs windows, which give no latents; cut it."


def test_a_latent_beyond_float16_sets_the_recording_aside_and_no_other(make, recordings, tmp_path, monkeypatch):
    model, feature_extractor = make("cst")
    really = model.encode

    def encode(input_values, **options):
        output = really(input_values, **options)
        if input_values.shape[-1] == LENGTHS[3]:
            output.latents[0, 1, 2] = -65505.0
        if input_values.shape[-1] == LENGTHS[2]:
            output.latents[0, 1, 2] = 65504.0
        return output

    monkeypatch.setattr(model, "encode", encode)
    coding = RowCoding(model, feature_extractor, "cst", RowFields(recordings))
    list(encode_speech_rows(coding, recordings, tmp_path / "rows"))
    rows = read_speech_rows(tmp_path / "rows")
    assert rows["id"][:] == ["0.wav", "1.wav", "2.wav", "4.wav"]
    assert row_audio_latents(rows[2])[1, 2] == 65504
    (line,) = set_aside_path(tmp_path / "rows").read_text().splitlines()
    reason = "has a latent of 65505, but the float16 of rows ends at 65504."
    assert json.loads(line) == {"name": "3.wav", "reason": reason}


def test_units_of_another_encoder_are_refused_where_their_latents_are_all_there_is(make, recordings, tmp_path, capsys):
    for name in ("dc_spin", "rvq"):
        model, feature_extractor = make(name)
        coding = RowCoding(model, feature_extractor, name, RowFields(recordings), kind="latents")
        list(encode_speech_rows(coding, recordings, tmp_path / name))
        with torch.no_grad():
            next(model.encoder.parameters()).mul_(2)
    with pytest.raises(SpeechRowsError, match="another encoder gave these latents .* without which they mean nothing"):
        read_speech_rows(tmp_path / "dc_spin", _changed(make("dc_spin")[0]))
    assert len(read_speech_rows(tmp_path / "rvq", model)) == 5
    assert "another encoder gave these latents" in capsys.readouterr().err
    assert read_rows_facts(tmp_path / "rvq").command.endswith("--model rvq --kind latents")


def _changed(model):
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(2)
    return model


def test_a_model_that_gives_no_such_rows_is_refused(make, make_transformers_codec, recordings, monkeypatch):
    fields = RowFields(recordings)
    with pytest.raises(ValueError, match="`num_quantizers` chooses among codebooks, of which latents have none"):
        RowCoding(*make("rvq"), "tiny", fields, num_quantizers=2, kind="latents")
    with pytest.raises(ValueError, match="`kind` must be 'codes' or 'latents', but got 'units'"):
        RowCoding(*make("rvq"), "tiny", fields, kind="units")
    with pytest.raises(ValueError, match="`deduplicate` merges equal codes"):
        encode_recordings(*make("rvq"), [], deduplicate=True, kind="latents")
    really = TransformersCodec.encode_features

    def without_latents(*args, **options):
        output = really(*args, **options)
        return ModelOutput(**{name: output[name] for name in ("audio_codes", "audio_codes_mask")})

    monkeypatch.setattr(TransformersCodec, "encode_features", without_latents)
    with pytest.raises(ValueError, match="A DacModel tells no latents, only codes"):
        RowCoding(*make_transformers_codec("dac"), "dac", fields, kind="latents")
