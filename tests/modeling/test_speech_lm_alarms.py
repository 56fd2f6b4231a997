# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Speech that seems wrong is told, and drawn again as often as is allowed."""

import pytest
import torch

from helpers.tiny_speaking_lm import tiny_speech_lm
from speech_tokenizers.modeling.speech_lm_alarms import alarm_of, longest_loop


LAYOUTS = ["flat", "delay", "continuous"]
SMALL_HEAD = {"head": "energy", "head_options": {"hidden_size": 16, "num_layers": 1}}


def speaker(layout="flat", alignment="none"):
    fields = SMALL_HEAD if layout == "continuous" else {}
    model, processor = tiny_speech_lm(text_alignment=alignment, layout=layout, fields=fields)
    model.config.frames_per_character = [4.0, 8.0]
    return model, processor


def drawn(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise(num_frames, seed=0):
    return torch.randint(16, (2, num_frames), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("period", [1, 2, 7, 30])
def test_a_pattern_that_repeats_is_found_where_it_is(period):
    pattern = noise(period)
    looped = torch.cat([noise(9, 1), pattern.repeat(1, -(-60 // period) + 1)[:, :60], noise(9, 2)], dim=1)
    found = longest_loop(looped, 50)
    assert found[0] == period
    assert found[2] >= 60
    assert found[1] <= 9
    latents = torch.nn.functional.one_hot(looped[0], 16) + 0.01 * torch.rand(looped.shape[1], 16)
    assert longest_loop(latents, 50, torch.ones(16))[2] >= 60


def test_what_does_not_repeat_is_no_loop():
    assert longest_loop(noise(300), 50)[2] < 10
    assert longest_loop(torch.randn(300, 8), 50, torch.ones(8)) == (0, 0, 0)
    for num_frames in (0, 1):
        assert longest_loop(noise(num_frames), 50) == (0, 0, 0)


def test_each_sign_is_told():
    model, _ = speaker()
    assert alarm_of(noise(20), True, "hi tim", model) is None
    assert "was cut at 20 frames" in alarm_of(noise(20), False, "hi tim", model)
    assert "has 9 frames, where a text of its length usually has 28" in alarm_of(noise(9), True, "hi tim", model)
    assert alarm_of(noise(9), True, "hi tim", model, judges_length=False) is None
    looped = torch.cat([noise(10), noise(3, 1).repeat(1, 20)], dim=1)
    assert "repeats 3 frames for 1.20 s, from 0.20 s on" in alarm_of(looped, True, "hi tim", model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_failing_rows_are_drawn_again_and_told(layout):
    model, processor = speaker(layout)
    model.config.frames_per_character = [6.0, 9.0]
    texts, seeds = ["hi tim", "die", "lime lime hi"], (3, 4, 5)
    first = model.generate_speech(texts, processor, generators=drawn(*seeds))
    again = model.generate_speech(texts, processor, generators=drawn(*seeds), retries=2)
    assert first.tries.tolist() == [1, 1, 1]
    assert again.tries.max() > 1
    name = "audio_latents" if layout == "continuous" else "audio_codes"
    for row in range(3):
        assert again.alarms[row][: len(first.alarms[row])] == first.alarms[row]
        tries, failed = int(again.tries[row]), len(again.alarms[row])
        assert failed == tries - 1 or (failed == tries == 3)
        # A batch gives what single texts give, however often they are drawn.
        alone = model.generate_speech(texts[row], processor, generators=drawn(seeds[row]), retries=2)
        assert alone.alarms[0] == again.alarms[row]
        assert alone.tries[0] == tries
        length = int(alone.audio_codes_mask.sum())
        axis = 0 if layout == "continuous" else 1
        assert int(again.audio_codes_mask[row].sum()) == length
        said = again[name][row].narrow(axis, 0, length)
        torch.testing.assert_close(said, alone[name][0].narrow(axis, 0, length), atol=1e-5, rtol=0)


def test_a_retry_of_one_row_of_a_batch_may_use_the_cache_of_its_voice():
    model, processor = speaker()
    voice = model.make_voice("tim", processor, audio_codes=noise(6), cache=True)
    texts, options = ["hi tim", "lime lime hi tim die"], {"voice": voice, "retries": 3}
    spoken = model.generate_speech(texts, processor, generators=drawn(3, 4), **options)
    for row, text in enumerate(texts):
        alone = model.generate_speech(text, processor, generators=drawn(3 + row), **options)
        assert alone.tries[0] == spoken.tries[row]
        assert torch.equal(alone.audio_codes[0], spoken.audio_codes[row, :, : alone.audio_codes.shape[2]])
    assert spoken.tries.max() > 1


def test_another_try_draws_by_another_seed():
    model, processor = speaker()
    once = model.generate_speech("lime hi", processor, generators=drawn(0), max_frames=4, min_frames=4)
    again = model.generate_speech("lime hi", processor, generators=drawn(0), max_frames=4, min_frames=4, retries=1)
    assert again.tries.tolist() == [2]
    assert len(again.alarms[0]) == 2  # the last try failed, too
    assert not torch.equal(once.audio_codes, again.audio_codes)


def test_retries_that_mean_nothing_are_refused():
    model, processor = speaker()
    with pytest.raises(ValueError, match="`retries` is 2, but with `temperature=0` every try says the same"):
        model.generate_speech("hi", processor, temperature=0, retries=2)
    with pytest.raises(ValueError, match="`retries` must be at least 0"):
        model.generate_speech("hi", processor, retries=-1)
    with pytest.raises(ValueError, match="What was heard cannot be said again"):
        model.stream_speech("hi", processor, retries=1)


def test_the_last_chunk_of_a_stream_tells_what_is_wrong():
    model, processor = speaker()
    *others, last = model.stream_speech("hi tim", processor, max_frames=9, min_frames=9, temperature=0)
    assert "was cut at 9 frames" in last.alarm
    assert not any(chunk.alarm for chunk in others)
