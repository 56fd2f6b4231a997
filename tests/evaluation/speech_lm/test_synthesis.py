# SPDX-License-Identifier: Apache-2.0
"""How a voice is asked to speak, and how its time is taken."""

import math
import types

import numpy as np
import pytest
import torch

from helpers.tiny_speaking_lm import tiny_speech_lm
from speech_tokenizers.evaluation import stopwatch
from speech_tokenizers.evaluation.speech_lm.sentences import read_sentences
from speech_tokenizers.evaluation.speech_lm.synthesis import SynthesisItem, Voice
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
def passes(monkeypatch):
    """Function: let the clock show the number of a model's forward passes, and that of the processor half of it."""

    def count(model):
        made = []
        model.get_output_embeddings().register_forward_pre_hook(lambda *_: made.append(1))
        clocks = {"perf_counter": lambda: len(made), "process_time": lambda: len(made) / 2}
        monkeypatch.setattr(stopwatch, "time", types.SimpleNamespace(**clocks))
        return made

    return count


def tiny_voice(layout, alignment="none", causal=True, **options):
    fields = {"head": "energy", "head_options": {"hidden_size": 16, "num_layers": 1}} if layout == "continuous" else {}
    model, processor = tiny_speech_lm(
        text_alignment=alignment, layout=layout, fields=fields, num_quantizers=3, causal=causal
    )
    return Voice(model, processor, "tiny", options)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "look-ahead"])
@pytest.mark.parametrize("layout", ["flat", "delay", "continuous"])
def test_the_first_audio_comes_after_its_chunk_and_the_look_ahead_and_no_more_is_written(layout, causal, passes):
    voice = tiny_voice(layout, causal=causal, min_frames=60, max_frames=60)
    made = passes(voice.model)
    (result,) = voice.synthesize([SynthesisItem("hi tim", "a")])
    look_ahead = round(voice.model.look_ahead_seconds * voice.frame_rate)
    assert (look_ahead > 3) == (not causal)
    assert result.first_audio_seconds == (3 + look_ahead) * voice.model.config.positions_per_frame
    assert result.first_audio_cpu_seconds == result.first_audio_seconds / 2
    assert result.first_audio_seconds < result.seconds
    assert len(made) == result.seconds + result.first_audio_seconds
    assert result.no_first_audio is None


@pytest.mark.parametrize("alignment", ["none", "phone"])
@pytest.mark.parametrize("layout", ["flat", "delay", "continuous"])
def test_the_first_audio_is_the_beginning_of_the_whole(layout, alignment, monkeypatch):
    voice = tiny_voice(layout, alignment, temperature=0.8)
    chunks, stream_speech = [], voice.model.stream_speech

    def noting(*arguments, **options):
        for chunk in stream_speech(*arguments, **options):
            chunks.append(chunk.audio_values[0, 0].numpy())
            yield chunk

    monkeypatch.setattr(voice.model, "stream_speech", noting)
    durations = None if alignment == "none" else [4] * 7
    for name in ("a", "b"):
        chunks.clear()
        (result,) = voice.synthesize([SynthesisItem("hi tim", name, durations)])
        (first,) = chunks
        assert 0 < len(first) <= 3 * voice.codec.hop_length
        assert first == pytest.approx(result.audio_values[: len(first)], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda voice: setattr(voice.model, "look_ahead_seconds", math.inf), "the codec decodes the whole at once"),
        (lambda voice: voice.model.misread.update(alpha=None), "nothing was said"),
    ],
)
def test_where_the_first_audio_cannot_be_told_there_is_a_reason_and_no_time(make_voice, change, reason):
    voice = make_voice()
    change(voice)
    (result,) = voice.synthesize([SynthesisItem("alpha")])
    assert result.first_audio_seconds is None
    assert result.first_audio_cpu_seconds is None
    assert result.no_first_audio == reason
    assert voice.model.num_closed == len(voice.model.streamed) == (0 if "codec" in reason else 1)


def test_options_that_forbid_a_stream_are_the_reason():
    voice = tiny_voice("flat", max_frames=5, retries=1)
    (result,) = voice.synthesize([SynthesisItem("hi tim")])
    assert result.first_audio_seconds is None
    assert result.no_first_audio.startswith("it cannot be streamed: What was heard cannot be said again;")


def test_the_stream_is_asked_for_the_same_and_closed(make_voice):
    voice = make_voice({"temperature": 0.7, "top_k": 5})
    items = [SynthesisItem("alpha echo", "a", [3, 4], ["bravo", "zero"]), SynthesisItem("alpha", "b")]
    voice.synthesize(items)
    assert voice.model.streamed == voice.model.options
    assert voice.model.num_closed == 2


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
