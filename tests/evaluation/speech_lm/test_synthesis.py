# SPDX-License-Identifier: Apache-2.0
"""How a voice is asked to speak, and how its time is taken."""

import types

import numpy as np
import pytest
import torch

from speech_tokenizers.evaluation.speech_lm import synthesis
from speech_tokenizers.evaluation.speech_lm.sentences import read_sentences
from speech_tokenizers.evaluation.speech_lm.synthesis import SynthesisItem
from speech_tokenizers.evaluation.speech_lm.systems import Synthesis


def test_a_text_is_spoken_with_its_codes_pieces_and_end(make_voice):
    (result,) = make_voice().synthesize([SynthesisItem("alpha echo")])
    assert np.array_equal(result.frames, [[1] * 20 + [5] * 20] * 2)
    assert np.allclose(result.audio_values, np.repeat(result.frames[0] / 10, 160))
    assert (result.ended, result.said, result.asked, result.num_dropped) == (True, [1, 5], [1, 5], 0)
    assert make_voice(alignment="none").synthesize([SynthesisItem("alpha echo")])[0].said is None


def test_durations_and_options_reach_the_model(make_voice):
    voice = make_voice({"temperature": 0.7, "top_k": 5})
    (result,) = voice.synthesize([SynthesisItem("alpha echo", durations=[3, 4])])
    assert result.frames.shape == (2, 7)
    ((options, _, durations, pieces),) = voice.model.options
    assert (options, durations, pieces) == ({"temperature": 0.7, "top_k": 5}, [[3, 4]], None)


def test_what_is_drawn_depends_on_the_seed_and_the_sentence_and_not_on_the_others(make_voice):
    def drawn(seed, *names):
        voice = make_voice(seed=seed)
        voice.synthesize([SynthesisItem("alpha", name) for name in names])
        return [number for _, number, _, _ in voice.model.options]

    a, b = drawn(0, "a", "b")
    assert drawn(0, "b", "a") == [b, a]
    assert a != b
    assert drawn(1, "a") != [a]


def test_the_key_of_a_voice_tells_weights_settings_and_codecs_apart(make_voice):
    voice = make_voice()
    torch.manual_seed(0)
    same, other = make_voice(), make_voice(seed=1)
    for made in (same, other):
        made.model.load_state_dict(voice.model.state_dict())
        made.__post_init__()
    assert same.key == voice.key
    assert other.key != voice.key
    same.options = {"temperature": 0.5}
    same.__post_init__()
    assert same.key != voice.key
    same.options = {}
    same.model.codec.decoder_fingerprint = lambda: "fine-tuned"
    same.__post_init__()
    assert same.key != voice.key
    with torch.no_grad():
        voice.model.head.weight.add_(1)
    before = voice.key
    voice.__post_init__()
    assert voice.key != before


@pytest.fixture
def counting_steps(monkeypatch):
    """Function: let the clock of a voice show the number of forward passes; the time to decode is far below one."""

    def count(voice):
        passes = []
        voice.model.head.register_forward_pre_hook(lambda *_: passes.append(1))
        monkeypatch.setattr(synthesis, "time", types.SimpleNamespace(perf_counter=lambda: float(len(passes))))
        return voice

    return count


@pytest.mark.parametrize(
    ("alignment", "durations", "ids"),
    [
        ("none", None, 40),  # 20 frames of two codebooks
        ("word", None, 41),  # and the first word; the second one begins behind them
        ("word", [1, 1, 30], 43),
        ("word", [19, 1, 30], 42),
        ("word", [2, 2, 2], 15),  # no more is said
    ],
)
def test_the_first_audio_is_there_a_step_after_the_ids_of_a_fifth_of_a_second(
    make_voice, counting_steps, alignment, durations, ids
):
    voice = counting_steps(make_voice(alignment=alignment))
    (result,) = voice.synthesize([SynthesisItem("alpha echo bravo", durations=durations)])
    assert result.no_first_audio is None
    assert ids + 1 < result.first_audio_seconds < ids + 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda voice: setattr(voice.model, "steps_an_id", 2), "84 steps chose 41 ids"),
        (lambda voice: setattr(voice, "layout", "delay"), "in the flat layout only"),
        (lambda voice: voice.model.misread.update(alpha=None), "nothing was said"),
    ],
)
def test_where_the_first_audio_cannot_be_told_there_is_a_reason_and_no_time(make_voice, change, reason):
    voice = make_voice()
    change(voice)
    (result,) = voice.synthesize([SynthesisItem("alpha")])
    assert result.first_audio_seconds is None
    assert reason in result.no_first_audio


def test_no_hook_stays_on_the_model(make_voice):
    voice = make_voice()
    voice.synthesize([SynthesisItem("alpha")])
    voice.model.breaks_on = "alpha"
    with pytest.raises(RuntimeError, match="the cache is full"):
        voice.synthesize([SynthesisItem("alpha")])
    assert not voice.model.head._forward_hooks


def test_true_durations_are_those_of_the_recording(make_voice, make_rows):
    rows, _ = make_rows()
    _, second, *_ = read_sentences(rows, 2, "word")
    spoken = Synthesis(make_voice(), with_true_durations=True).speak(second)
    assert len(spoken.audio_values) == second.seconds * 16000
    assert np.array_equal(np.unique(np.round(10 * spoken.audio_values)), [1, 3, 4])


def test_true_durations_are_those_of_the_phones_of_the_row_whatever_the_lexicon_says(make_voice, make_rows):
    rows, _ = make_rows({0: {"text": "alpha bravo echo"}})
    first, *_ = read_sentences(rows, 2, "phone")
    spoken = Synthesis(make_voice(alignment="phone"), with_true_durations=True).speak(first)
    assert np.array_equal(np.round(10 * spoken.audio_values[::160]), [1] * 10 + [2] * 11)
    assert (spoken.facts["pieces"], spoken.facts["skipped_pieces"]) == (2, 0)
    assert Synthesis(make_voice(alignment="phone")).speak(first).facts["pieces"] == 3


def test_times_of_another_number_of_words_are_no_durations(make_voice, make_rows):
    rows, _ = make_rows({0: {"text": "alpha bravo echo"}})
    first, *_ = read_sentences(rows, 2, "word")
    with pytest.raises(ValueError, match="`durations` must have 3 entries"):
        Synthesis(make_voice(), with_true_durations=True).speak(first)


def test_frames_with_a_code_outside_its_codebook_are_counted(make_voice, make_rows):
    rows, _ = make_rows()
    first, *_ = read_sentences(rows, 2, "word")
    voice = make_voice()
    voice.codebook_size = 2  # so that `bravo`, 2, is outside
    facts = Synthesis(voice).speak(first).facts
    assert (facts["num_frames"], facts["invalid_frames"]) == (40, 20)
    assert Synthesis(make_voice()).speak(first).facts["invalid_frames"] == 0
