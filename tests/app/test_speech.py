# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest
import torch

from speech_tokenizers import list_checkpoints, load
from speech_tokenizers.app.models import ModelShelf, OfferedModel, load_models
from speech_tokenizers.app.recordings import PageError
from speech_tokenizers.app.speech import decode_all, decode_levels, find_units, measured_stoi, say_text
from speech_tokenizers.coding.loading import DEFAULT_UNITS


def test_each_level_is_what_the_codec_decodes_from_so_many_codebooks(codec, tone):
    levels = decode_levels(codec, tone)
    model = codec.model
    with torch.no_grad():
        codes = model.encode(torch.from_numpy(tone)[None, None]).audio_codes
        expected = [model.decode(codes[:, :count]).audio_values[0, 0, : len(tone)].numpy() for count in (1, 2, 3, 4)]
    assert [len(heard.tokens) for heard in levels] == [1, 2, 3, 4]
    for heard, waveform in zip(levels, expected, strict=True):
        assert np.allclose(heard.waveform, waveform, atol=1e-5)
    # 400 frames a second of 5 bits a codebook.
    assert [heard.bits_per_second for heard in levels] == [2000, 4000, 6000, 8000]
    assert np.array_equal(decode_all(codec, tone).waveform, levels[-1].waveform)


def test_continuous_tokens_have_one_level(tone):
    cst = "cst-16khz-25hz"
    assert cst in list_checkpoints()
    (heard,) = decode_levels(load_models([cst], "cpu")[cst], tone)
    assert heard.tokens.shape == (25, 32)
    assert heard.waveform.shape == tone.shape


def test_units_come_with_durations_and_times(units, tone):
    runs = find_units(units, tone)
    with torch.no_grad():
        codes = units.model.encode(torch.from_numpy(tone)[None, None]).audio_codes[0, 0].numpy()
    assert np.array_equal(np.repeat(runs.units, runs.durations), codes)
    assert runs.times[0, 0] == 0
    assert np.array_equal(runs.times[1:, 0], runs.times[:-1, 1])
    assert runs.times[-1, 1] == pytest.approx(len(codes) / units.model.frame_rate)
    assert runs.num_units == 8
    assert runs.spoken is None


def test_a_vocoder_says_its_units(tone):
    spoken = find_units(OfferedModel("units", load(DEFAULT_UNITS)[0]), tone).spoken
    assert spoken.shape == tone.shape
    assert np.abs(spoken).max() > 0.01


def test_a_voice_says_a_text_with_word_times_and_the_same_each_time(voice):
    said, again = say_text(voice, " hi \n tim "), say_text(voice, "hi tim")
    assert [word for word, _, _ in said.words] == ["hi", "tim"]
    assert all(0 <= start <= end for _, start, end in said.words)
    assert np.array_equal(said.waveform, again.waveform)


@pytest.mark.parametrize(
    ("text", "told"),
    [(" \n", "no sentence yet"), ("hi " * 101, "has 302 characters, but this page takes at most 300")],
)
def test_texts_that_cannot_be_said_are_refused(voice, text, told):
    with pytest.raises(PageError, match=told):
        say_text(voice, text)


def test_stoi_is_1_of_the_recording_and_none_without_speech():
    speech = np.random.default_rng(0).standard_normal(16000) * np.abs(np.sin(np.arange(16000) / 800))
    assert measured_stoi(speech, speech, 16000) == pytest.approx(1, abs=1e-6)
    click = np.zeros(16000)
    click[8000] = 1
    assert measured_stoi(click, click, 16000) is None


def test_the_shelf_knows_what_each_model_can_do(shelf):
    assert shelf.codecs == ["codec", "codec two"]
    assert shelf.units == ["units"]
    assert shelf.speaking == ["codec", "codec two"]  # the units have no vocoder
    assert shelf.voices == ["voice"]


def test_models_are_loaded_by_name_and_wrong_names_are_told(tiny_checkpoint):
    seen = []
    shelf = load_models([str(tiny_checkpoint), DEFAULT_UNITS, DEFAULT_UNITS], "cpu", seen.append)
    assert seen == [str(tiny_checkpoint), DEFAULT_UNITS]
    assert isinstance(shelf, ModelShelf)
    assert shelf.speaking == seen
    with pytest.raises(ValueError, match="--model.*no such file or folder"):
        load_models(["rvq-codec-17khz"], "cpu")


def test_who_asks_for_a_model_in_use_waits(codec):
    done = threading.Event()

    def ask():
        with codec.in_use():
            done.set()

    with codec.in_use():
        other = threading.Thread(target=ask)
        other.start()
        assert not done.wait(0.2)
    other.join(60)
    assert done.is_set()
