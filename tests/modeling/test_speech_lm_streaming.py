# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Streamed speech: the same as speech in one go, chunk by chunk."""

import math
import threading

import pytest
import torch
from transformers import LogitsProcessorList

from helpers.speaking_frames import EVERY_KIND, speaking
from helpers.tiny_speaking_lm import tiny_lm, tiny_speech_lm
from speech_tokenizers import (
    AudioStreamer,
    SpeechLMForConditionalGeneration,
    SpeechLMProcessor,
    build_speech_vocabulary,
)
from speech_tokenizers.modeling.audio_logits import AudioOnly, MinFrames
from speech_tokenizers.modeling.speech_lm_layouts import flat_to_codes
from speech_tokenizers.modeling.speech_lm_streaming import FlatFrames, sentences


LAYOUTS = ["flat", "delay", "continuous"]


def drawn(seed=0):
    return [torch.Generator().manual_seed(seed)]


def speaker(layout, alignment="none", **options):
    """A tiny model; in the continuous layout with a head that is small, too."""
    fields = {"head": "energy", "head_options": {"hidden_size": 16, "num_layers": 1}}
    fields = fields if layout == "continuous" else {}
    return tiny_speech_lm(text_alignment=alignment, layout=layout, fields=fields, **options)


def joined(chunks):
    return torch.cat([chunk.audio_values for chunk in chunks], dim=-1)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "look-ahead"])
@pytest.mark.parametrize("alignment", ["none", "phone"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_stream_equals_whole(kind, alignment, causal):
    model, processor = speaking(kind, alignment, causal=causal)
    model.config.frames_per_character = [4.0, 8.0]
    options = {"min_frames": 24} if alignment == "none" else {"durations": [[4] * 7]}
    whole = model.generate_speech("hi tim", processor, generators=drawn(), **options)
    chunks = list(model.stream_speech("hi tim", processor, 4, 2, generators=drawn(), **options))
    torch.testing.assert_close(joined(chunks), whole.audio_values, atol=1e-5, rtol=0)
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].ended == whole.ended[0]
    hop, lengths = model.codec.hop_length, [chunk.audio_values.shape[-1] for chunk in chunks]
    assert len(chunks) > 2
    assert lengths[0] == 2 * hop
    assert lengths[1:-1] == [4 * hop] * (len(chunks) - 2)
    starts = [round(chunk.start * model.codec.sampling_rate) for chunk in chunks]
    assert starts == [sum(lengths[:place]) for place in range(len(chunks))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_chunk_comes_after_its_frames_and_the_look_ahead(layout):
    for causal in (True, False):
        model, processor = speaker(layout, num_quantizers=3, causal=causal)
        steps = []
        model.get_output_embeddings().register_forward_hook(lambda *_: steps.append(0))  # noqa: B023
        stream = model.stream_speech("hi tim", processor, first_chunk_frames=2, min_frames=40, max_frames=40)
        next(stream)
        look_ahead = round(model.look_ahead_seconds * model.config.frame_rate)
        assert look_ahead == (0 if causal else model.codec.decoder_context[1]) + (2 if layout == "delay" else 0)
        assert len(steps) == (2 + look_ahead) * model.config.positions_per_frame


def test_a_codec_of_transformers_streams_the_whole_at_its_end(make_transformers_codec):
    processor = SpeechLMProcessor.from_tokenizer(
        build_speech_vocabulary(), *make_transformers_codec("encodec"), num_codebooks=2, codec_name="tiny"
    )
    lm = tiny_lm(vocab_size=processor.audio_offset)
    model = SpeechLMForConditionalGeneration.from_causal_lm(lm, processor.codec, processor)
    whole = model.generate_speech("hi", processor, temperature=0, max_frames=6, min_frames=6)
    (chunk,) = model.stream_speech("hi", processor, temperature=0, max_frames=6, min_frames=6)
    torch.testing.assert_close(chunk.audio_values, whole.audio_values, atol=1e-5, rtol=0)
    assert model.look_ahead_seconds == math.inf


# --- Texts in pieces ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_sentence_is_said_as_it_is_alone(layout):
    model, processor = speaker(layout, causal=True)
    model.config.frames_per_character = [2.0, 3.0]
    chunks = list(model.stream_speech(iter(["Hi t", "im. Di", "e", "! lime"]), processor, temperature=0))
    texts = ["Hi tim.", "Die!", "lime"]
    alone = [model.generate_speech(text, processor, temperature=0).audio_values for text in texts]
    torch.testing.assert_close(joined(chunks), torch.cat(alone, dim=-1), atol=1e-5, rtol=0)
    assert [chunk.text for chunk in chunks if chunk.is_last] == texts


def test_a_sentence_is_said_before_the_next_arrives():
    model, processor = tiny_speech_lm(causal=True)
    asked = []

    def arriving():
        for piece in ("hi tim.", " ", "die."):
            asked.append(piece)
            yield piece

    stream = model.stream_speech(arriving(), processor, temperature=0, max_frames=5)
    assert next(stream).text == "hi tim."
    assert asked == ["hi tim.", " "]  # the space shows that no number goes on
    assert [chunk.text for chunk in stream if chunk.is_last] == ["hi tim.", "die."]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["It cost 3.", "50. Yes"], ["It cost 3.50.", "Yes"]),
        (['He said "no!', '" and left.\nOr'], ['He said "no!"', "and left.", "Or"]),
        (["...", " Well... ", "no."], ["... Well...", "no."]),
        (["one\n\ntwo\n"], ["one", "two"]),
        (["a \ud83d", "\ude00 b"], ["a \U0001f600 b"]),
        (["", "hi", ""], ["hi"]),
    ],
)
def test_where_texts_are_cut(pieces, expected):
    assert list(sentences(pieces)) == expected


# --- Bad input ---


def test_what_cannot_be_streamed_is_told():
    model, processor = tiny_speech_lm()
    with pytest.raises(ValueError, match="`chunk_frames` must be at least 1"):
        model.stream_speech("hi", processor, chunk_frames=0)
    with pytest.raises(TypeError, match="volume"):
        model.stream_speech("hi", processor, volume=3)
    with pytest.raises(ValueError, match="must be a text that is not empty"):
        model.stream_speech(" ", processor)
    with pytest.raises(ValueError, match="has ended without a word"):
        list(model.stream_speech(iter([" ", "..."]), processor))
    with pytest.raises(TypeError, match="`text` must give texts, but gives int"):
        list(model.stream_speech(iter([3]), processor))
    with pytest.raises(TypeError, match="`text` is a list"):
        model.stream_speech(["hi", "tim"], processor)
    with pytest.raises(ValueError, match="one a text \\(1\\), but has 2"):
        model.stream_speech("hi", processor, generators=[torch.Generator(), torch.Generator()])
    model, processor = tiny_speech_lm(text_alignment="word")
    with pytest.raises(ValueError, match="`durations` belong to one text"):
        model.stream_speech(iter(["hi"]), processor, durations=[[3]])


def test_half_of_a_surrogate_pair_is_told():
    model, processor = tiny_speech_lm()
    for text in ("hi \ud83d", "\ude00 hi", "h\ud83di"):
        with pytest.raises(ValueError, match="half of a surrogate pair at character"):
            model.generate_speech(text, processor)
        with pytest.raises(ValueError, match="half of a surrogate pair at character"):
            list(model.stream_speech(iter([text]), processor))


# --- Stock `generate` ---


def prompt_and_limits(processor):
    inputs = processor(text=processor.speech_prompt("hi tim"), return_tensors="pt")
    limits = LogitsProcessorList([AudioOnly(processor.speech_ids), MinFrames(processor.speech_ids, 12)])
    return dict(inputs), limits


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "look-ahead"])
def test_stock_generate_streams_what_its_ids_sound_like(causal):
    model, processor = tiny_speech_lm(causal=causal)
    inputs, limits = prompt_and_limits(processor)
    options = {**inputs, "logits_processor": limits, "do_sample": False, "max_new_tokens": 41}
    streamer = AudioStreamer(processor, chunk_frames=4, first_chunk_frames=2)
    for _ in range(2):  # it serves one generation after the other
        streamer.start(model.generate, **options)
        chunks = list(streamer)
        ids = model.generate(**options)[0]
        expected = processor.decode(ids[inputs["input_ids"].shape[1] :])
        torch.testing.assert_close(torch.cat(chunks, dim=-1)[0, 0], expected, atol=1e-5, rtol=0)
        assert len(chunks) > 3


def test_an_error_of_the_generating_thread_reaches_the_reader():
    model, processor = tiny_speech_lm(causal=True)
    inputs, limits = prompt_and_limits(processor)
    calls = []

    def fails_later(ids, scores):
        calls.append(0)
        if len(calls) > 9:
            raise ArithmeticError("the ninth was one too many")
        return scores

    streamer = AudioStreamer(processor, first_chunk_frames=2)
    streamer.start(
        model.generate, **inputs, logits_processor=LogitsProcessorList([*limits, fails_later]), max_new_tokens=60
    )
    with pytest.raises(ArithmeticError, match="the ninth was one too many"):
        list(streamer)
    streamer.start(model.generate, **inputs, no_such_option=3)
    with pytest.raises(ValueError, match="no_such_option"):
        list(streamer)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_does_not_hang_the_reader():
    model, processor = tiny_speech_lm(causal=True)
    inputs, _ = prompt_and_limits(processor)

    def dies(ids, scores):
        raise ArithmeticError

    streamer = AudioStreamer(processor)
    options = {**inputs, "streamer": streamer, "logits_processor": LogitsProcessorList([dies])}
    threading.Thread(target=model.generate, kwargs=options).start()
    with pytest.raises(RuntimeError, match="has died before it ended the audio"):
        list(streamer)
    with pytest.raises(TimeoutError, match="within 0.01 s"):
        next(AudioStreamer(processor, timeout=0.01))


def test_what_the_streamer_cannot_play_is_told():
    model, processor = tiny_speech_lm()
    inputs, limits = prompt_and_limits(processor)
    streamer = AudioStreamer(processor)
    twice = {name: values.repeat(2, 1) for name, values in inputs.items()}
    streamer.start(model.generate, **twice, max_new_tokens=4)
    with pytest.raises(ValueError, match="streams one row, but `generate` writes 2"):
        list(streamer)
    streamer.start(model.generate, **inputs, logits_processor=limits, max_new_tokens=1)
    with pytest.raises(ValueError, match="without a whole frame of audio"):
        list(streamer)
    with pytest.raises(ValueError, match="the layout 'delay'"):
        AudioStreamer(tiny_speech_lm(layout="delay")[1])


def test_frames_that_arrive_are_those_of_all_ids():
    ids = tiny_speech_lm(num_quantizers=3)[1].speech_ids
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        numbers = torch.randint(ids.audio_offset - 3, ids.audio_stop, (60,), generator=generator)
        reader = FlatFrames(ids)
        frames = [frame for frame in map(reader.push, numbers.tolist()) if frame is not None]
        expected = flat_to_codes(numbers, ids).audio_codes
        assert torch.equal(torch.stack(frames, dim=1) if frames else expected[:, :0], expected)
