# SPDX-License-Identifier: Apache-2.0
"""What each position of aligned speech is told of its text: never what stands behind it, and the same in a cache."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from helpers.tiny_speaking_lm import tiny_row, tiny_speech_lm
from speech_tokenizers.conversion.causal_lm_export import export_causal_lm
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.speech_lm_ids import SpeechIds
from speech_tokenizers.modeling.speech_lm_pieces import PieceContext, piece_context
from speech_tokenizers.training.language_models.speech_lm_collator import without_text


IDS = SpeechIds(
    audio_start=1, audio_end=2, audio_offset=20, num_codebooks=2, codebook_size=5, piece_offset=10, num_pieces=4
)
A, B, C, D = 10, 11, 12, 13
LAYOUTS = ("flat", "delay", "continuous")


def speaking(layout, **fields):
    """A tiny model that is told where it is in its text, beside the flat layout by default, and its processor."""
    if layout == "flat":
        fields["piece_context"] = 2
    return tiny_speech_lm(text_alignment="phone", layout=layout, fields=fields)


@pytest.fixture
def told(monkeypatch):
    """What models are told from now on, call by call."""
    calls, forward = [], SpeechLMForConditionalGeneration.forward

    def watched(self, *args, **kwargs):
        calls.append(kwargs.get("piece_context"))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SpeechLMForConditionalGeneration, "forward", watched)
    return calls


def test_what_is_told_is_the_own_phone_those_that_come_and_the_frames_since():
    # Text, the phones A B A, a clip of them in frames of two codes, and a text behind it.
    ids = [5, A, B, A, 1, A, 20, 25, 21, 26, B, 20, 25, A, 22, 27, 2, 5, B]
    none = [-1, -1, -1, -1]
    told = piece_context(torch.tensor([ids]), IDS, num_coming=2, positions_per_frame=2)[0].tolist()
    assert told[:4] == [none] * 4
    assert told[4] == [-1, 0, 1, 0]  # the start: A and B come
    assert told[5] == [0, 1, 0, 0]  # A sounds; B and A come
    assert told[6:10] == [[0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 2]]
    assert told[10:13] == [[1, 0, -1, 0], [1, 0, -1, 0], [1, 0, -1, 1]]
    assert told[13:16] == [[0, -1, -1, 0], [0, -1, -1, 0], [0, -1, -1, 1]]
    assert told[16:] == [none] * 3


def test_each_clip_has_the_phones_that_stand_between_it_and_the_one_before():
    ids = [A, B, 1, A, 20, 25, B, 20, 25, 2, 5, C, D, 1, C, 20, 25, D]
    told = piece_context(torch.tensor([ids]), IDS, num_coming=1, positions_per_frame=2)[0]
    assert told[13:, :2].tolist() == [[-1, 2], [2, 3], [2, 3], [2, 3], [3, -1]]
    assert told[2:4, :2].tolist() == [[-1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("ids", "places"),
    [
        ([5, 1, 20, 25, 21, 2], []),
        ([1, A, 20, 25], []),  # said, and not asked for
        ([5, 6, 7], []),
        ([A, B, A], []),
        ([A, 1, A, 2, 1, 20, 25], [1, 2]),  # the second clip was asked for nothing
    ],
)
def test_nothing_is_told_without_phones_that_were_asked_for(ids, places):
    told = piece_context(torch.tensor([ids]), IDS, num_coming=2)[0]
    assert (told != -1).any(-1).nonzero()[:, 0].tolist() == places


def test_a_position_tells_nothing_of_those_behind_it_and_padding_nothing_at_all():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        length = int(torch.randint(1, 30, (), generator=generator))
        ids = torch.randint(1, 30, (3, length), generator=generator)
        whole = piece_context(ids, IDS, 2, 2)
        place = int(torch.randint(length, (), generator=generator))
        torch.testing.assert_close(piece_context(ids[:, : place + 1], IDS, 2, 2), whole[:, : place + 1])
        padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids, torch.zeros(3, 2, dtype=torch.long)], dim=1)
        torch.testing.assert_close(piece_context(padded, IDS, 2, 2)[:, 4:-2], whole)


def test_no_state_tells_more_than_is_told():
    torch.manual_seed(0)
    module = PieceContext(num_pieces=4, num_coming=2, input_size=8)
    assert bool((module(torch.full((1, 3, 4), -1)) == 0).all())
    long, longer = (module(torch.tensor([[[0, 1, 2, age]]])) for age in (63, 1000))
    torch.testing.assert_close(long, longer)
    # The same phone means another thing as the own one, the next and the next but one.
    own, coming, last = (module(torch.tensor([[row]])) for row in ([1, -1, -1, 0], [-1, 1, -1, 0], [-1, -1, 1, 0]))
    assert not torch.allclose(own, coming)
    assert not torch.allclose(coming, last)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_told_changes_the_scores_and_is_kept(layout, tmp_path):
    model, processor = speaking(layout)
    assert model.config.piece_context == 2
    row = processor.row_inputs(tiny_row("hi tim", num_frames=12, codec=model.codec), "tts")
    batch = {name: part[None] for name, part in row.items() if name != "labels"}
    with torch.no_grad():
        scores = model(**batch).logits
        without = model(**batch, piece_context=torch.full_like(model.context_of_pieces(batch["input_ids"]), -1)).logits
    start = int((batch["input_ids"][0] == model.config.audio_start_token_id).nonzero()[0])
    torch.testing.assert_close(scores[:, :start], without[:, :start])
    assert float((scores[:, start:] - without[:, start:]).abs().amax(-1).min()) > 1e-4
    model.save_pretrained(tmp_path)
    again = SpeechLMForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, scores)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cache_says_what_reading_all_again_says(layout):
    model, processor = speaking(layout)
    row = processor.row_inputs(tiny_row("hi tim", num_frames=12, codec=model.codec), "tts")
    batch = {name: part[None] for name, part in row.items() if name != "labels"}
    told = model.context_of_pieces(batch["input_ids"])
    cut = batch["input_ids"].shape[1] - 8
    parts = {"input_ids": -1, "audio_codes": -1, "audio_mask": -1, "audio_latents": 1}
    first = {name: part.narrow(parts[name], 0, cut) for name, part in batch.items()}
    rest = {name: part.narrow(parts[name], cut, 8) for name, part in batch.items()}
    with torch.no_grad():
        whole = model(**batch).logits[:, cut:]
        past = model(**first, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="has read positions before these ids.*`context_of_pieces`"):
            model(**rest, past_key_values=past)
        with pytest.raises(ValueError, match="has read positions before these ids"):
            model(**rest, position_ids=torch.arange(cut, cut + 8)[None])
        for wrong in (told, told[:, cut:, :3]):
            with pytest.raises(ValueError, match=r"must have shape \(1, 8, 4\) for these ids, but has"):
                model(**rest, past_key_values=past, piece_context=wrong)
        torch.testing.assert_close(
            model(**rest, past_key_values=past, piece_context=told[:, cut:]).logits, whole, atol=1e-5, rtol=1e-5
        )


def voice_of(model, processor, cache):
    """A voice of a row of "hi"."""
    row = tiny_row("hi", 3, codec=model.codec)
    codes = torch.tensor(row["audio_codes"]).view(2, -1)
    clip = {"audio_codes": codes}
    if model.config.layout == "continuous":
        clip = {"audio_latents": torch.randn(codes.shape[1], 8, generator=torch.Generator().manual_seed(0))}
    return model.make_voice("hi", processor, **clip, audio_pieces=row["phones"], cache=cache)


@pytest.mark.parametrize("voice", ["none", "read", "cached"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_speech_is_told_what_training_on_it_tells(layout, voice, told):
    model, processor = speaking(layout)
    texts = ["hi tim", "lime", "die"]
    voices = None
    if voice == "read":
        voices = [voice_of(model, processor, False), None, voice_of(model, processor, False)]
    elif voice == "cached":
        texts, voices = texts[:1], voice_of(model, processor, True)
    told.clear()  # of making the voices
    output = model.generate_speech(texts, processor, temperature=0.0, voice=voices, decode=False)
    known = len(voices.input_ids) if voice == "cached" else 0
    found = torch.cat(told, dim=1)
    assert found.shape[1] > 10
    wanted = model.context_of_pieces(output.sequences)[:, known : known + found.shape[1]]
    assert torch.equal(found, wanted)
    if layout == "flat":
        assert torch.equal(
            model.context_of_pieces(output.sequences),
            piece_context(output.sequences, model.config.speech_ids, 2, positions_per_frame=2),
        )


def test_generate_of_transformers_tells_the_same_as_our_loop():
    model, processor = speaking("flat")
    inputs = processor(text=processor.speech_prompt("hi tim", ["hh", "ay", "t", "ay", "m"]), return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=9, do_sample=False, renormalize_logits=False)
    for place in range(inputs["input_ids"].shape[1], ids.shape[1]):
        with torch.no_grad():
            assert int(model(input_ids=ids[:, :place]).logits[0, -1].argmax()) == int(ids[0, place])
    for wrong in ({"inputs_embeds": model.embed_inputs(inputs["input_ids"])}, {**inputs, "prefill_chunk_size": 3}):
        with pytest.raises(ValueError, match="needs all `input_ids`"):
            model.generate(**wrong, max_new_tokens=3)
    with pytest.raises(ValueError, match="`generate_batch` gives a model ids alone"):
        model.generate_batch([inputs["input_ids"][0].tolist()])


def test_without_its_text_a_row_is_told_nothing():
    model, processor = speaking("continuous", condition_dropout=0.5)
    row = without_text(processor.row_inputs(tiny_row("hi tim", num_frames=12, codec=model.codec), "tts"), processor)
    assert bool((model.context_of_pieces(row["input_ids"][None]) == -1).all())


def test_guidance_reads_its_second_branch_without_the_text(told):
    model, processor = speaking("continuous", condition_dropout=0.5)
    model.generate_speech("hi tim", processor, temperature=0.0, cfg_scale=2.0, decode=False)
    assert len(told) > 5
    for context in told:
        assert len(context) == 2
        assert bool((context[1] == -1).all())
        assert bool((context[0, -1] >= 0).any())


def test_only_speech_by_phones_is_told_its_text(tmp_path):
    for alignment in ("none", "word"):
        model, _ = tiny_speech_lm(text_alignment=alignment, layout="delay")
        assert model.pieces is None
        with pytest.raises(StrictDataclassError, match="`piece_context` is 2, but must be at least 0, and 0 without"):
            tiny_speech_lm(text_alignment=alignment, layout="delay", fields={"piece_context": 2})
    assert tiny_speech_lm(text_alignment="phone")[0].pieces is None  # others can serve it
    assert tiny_speech_lm(text_alignment="phone", layout="delay", fields={"piece_context": 0})[0].pieces is None
    model, processor = speaking("flat")
    with pytest.raises(ValueError, match="which no server tells it"):
        export_causal_lm(model, processor, tmp_path / "served")


def test_what_trainers_multiply_by_the_output_table_is_not_the_language_model_alone():
    assert speaking("flat")[0].base_model is not speaking("flat")[0].language_model
    model, _ = speaking("flat")
    assert model.base_model is model
    plain, _ = tiny_speech_lm(text_alignment="phone")
    assert plain.base_model is plain.get_decoder()
    with pytest.raises(AttributeError, match="a flat model with `piece_context=0`"):
        _ = model(input_ids=torch.tensor([[5, 6]])).last_hidden_state
    with pytest.raises(ValueError, match="this model was made without"):
        plain(input_ids=torch.tensor([[5, 6]]), piece_context=torch.zeros(1, 2, 4, dtype=torch.long))
