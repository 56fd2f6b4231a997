# SPDX-License-Identifier: Apache-2.0
"""
What `generate` of transformers does with the speech language model, around four architectures, tied and untied.

It stands in the place of transformers' own `GenerationTesterMixin`, whose file, `tests/generation/test_utils.py`, is
not in the source distribution. Each mode of decoding is held against the scores of `forward` without a cache. Not
tested: contrastive search, group beams and DoLa, which version 5 of transformers has no more; compilation and
quantized or offloaded caches, which belong to the language model inside.
"""

import itertools

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from helpers.tiny_speaking_lm import tiny_speech_lm
from speech_tokenizers.modeling.audio_logits import AudioOnly, GuidedText, RowSampling
from speech_tokenizers.modeling.speech_lm_layouts import split_pieces


KINDS = ("llama", "gpt2", "opt", "gemma3_text")
LENGTH, NEW = 9, 6


@pytest.fixture(scope="module", params=itertools.product(KINDS, (True, False)), ids=lambda p: f"{p[0]}-{p[1]}")
def model(request):
    kind, tied = request.param
    model, _ = tiny_speech_lm(kind, text_alignment="phone", tied=tied)
    # Rows of ids that are further apart: of the tiny ones many are nearly equal, and which comes first is chance.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


@pytest.fixture
def prompts(model):
    """(3, LENGTH): ids of text."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(8, model.config.audio_start_token_id, (3, LENGTH), generator=generator)


def scores_of(model, ids: torch.Tensor) -> torch.Tensor:
    """Log probabilities of each next id, (batch, num_positions, vocab_size), computed without a cache."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.log_softmax(-1)


def greedy(model, ids: torch.Tensor, steps: int = NEW) -> torch.Tensor:
    """The likeliest next id, step by step."""
    for _ in range(steps):
        ids = torch.cat([ids, scores_of(model, ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


def write(model, ids: torch.Tensor, **options):
    """`generate` without an end, unless one is given."""
    return model.generate(ids, **{"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0, **options})


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_greedy_ids_are_the_likeliest_with_and_without_a_cache(model, prompts, options):
    assert torch.equal(write(model, prompts, do_sample=False, **options), greedy(model, prompts))


def test_the_scores_told_are_those_of_forward(model, prompts):
    told = write(model, prompts, do_sample=False, return_dict_in_generate=True, output_logits=True)
    scores = scores_of(model, told.sequences)[:, LENGTH - 1 : -1]
    torch.testing.assert_close(torch.stack(told.logits, dim=1).log_softmax(-1), scores, atol=1e-4, rtol=1e-4)


def test_states_and_attentions_of_each_step_are_told(model, prompts):
    asked = {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True}
    model.set_attn_implementation("eager")  # others compute no attentions
    told = write(model, prompts, do_sample=False, **asked)
    model.set_attn_implementation("sdpa")
    assert len(told.hidden_states) == len(told.attentions) == NEW
    assert [len(layers) for layers in told.hidden_states] == [3] * NEW  # the embeddings, and two layers
    assert told.hidden_states[0][1].shape == (3, LENGTH, 32)
    assert told.attentions[-1][0].shape[:3] == (3, 2, 1)


def test_a_batch_with_left_padding_says_what_single_prompts_say(model, prompts):
    ids, mask = prompts.clone(), torch.ones_like(prompts)
    for row, length in enumerate((LENGTH, 6, 3)):
        ids[row, : LENGTH - length] = 0
        mask[row, : LENGTH - length] = 0
    together = write(model, ids, attention_mask=mask, do_sample=False)[:, LENGTH:]
    for row, length in enumerate((LENGTH, 6, 3)):
        alone = greedy(model, prompts[row : row + 1, LENGTH - length :])[0, length:]
        assert torch.equal(together[row], alone)


def test_vectors_in_place_of_ids_are_continued_alike(model, prompts):
    vectors = model.get_input_embeddings()(prompts)
    written = model.generate(inputs_embeds=vectors, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0)
    assert torch.equal(written, greedy(model, prompts)[:, LENGTH:])


def test_a_sequence_is_continued_from_its_cache(model, prompts):
    first = write(model, prompts, do_sample=False, max_new_tokens=2, return_dict_in_generate=True)
    all_real = torch.ones_like(first.sequences)  # also an id that is that of padding
    kept = {"attention_mask": all_real, "past_key_values": first.past_key_values}
    rest = write(model, first.sequences, do_sample=False, max_new_tokens=NEW - 2, **kept)
    assert torch.equal(rest, greedy(model, prompts))


def test_drawn_ids_depend_on_the_seed_alone(model, prompts):
    def drawn(seed: int, **options) -> torch.Tensor:
        torch.manual_seed(seed)
        return write(model, prompts, do_sample=True, temperature=2.0, **options)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(drawn(1), drawn(1, use_cache=False))
    assert torch.equal(drawn(1, top_k=1), greedy(model, prompts))


def test_a_generator_a_row_draws_the_same_alone_and_in_a_batch(model, prompts):
    def drawn(ids: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        rows = RowSampling(2.0, None, None, [torch.Generator().manual_seed(seed) for seed in seeds])
        return write(model, ids, do_sample=False, logits_processor=LogitsProcessorList([rows]))

    together = drawn(prompts, [3, 4, 5])
    for row, seed in enumerate((3, 4, 5)):
        assert torch.equal(drawn(prompts[row : row + 1], [seed])[0], together[row])
    assert not torch.equal(drawn(prompts, [6, 7, 8]), together)


def test_drawn_ids_are_among_those_that_are_allowed(model, prompts):
    torch.manual_seed(0)
    written = write(model, prompts, do_sample=True, temperature=5.0, top_k=2, num_return_sequences=4)
    assert written.shape == (12, LENGTH + NEW)
    likeliest = scores_of(model, written)[:, LENGTH - 1 : -1].topk(2).indices
    assert (likeliest == written[:, LENGTH:, None]).any(-1).all()
    assert len({tuple(row) for row in written.tolist()}) > 3


def test_as_many_beams_as_ids_find_the_likeliest_pair(model, prompts):
    size = model.config.text_config.vocab_size
    options = {"num_beams": size, "length_penalty": 0.0, "return_dict_in_generate": True, "output_scores": True}
    found = write(model, prompts[:1], do_sample=False, max_new_tokens=2, **options)
    first = scores_of(model, prompts[:1])[0, -1]  # (V,)
    begun = torch.cat([prompts[:1].expand(size, -1), torch.arange(size)[:, None]], dim=1)
    pairs = first[:, None] + scores_of(model, begun)[:, -1]  # (V, V)
    best = int(pairs.argmax())
    assert found.sequences[0, LENGTH:].tolist() == [best // size, best % size]
    torch.testing.assert_close(found.sequences_scores[0], pairs.max(), atol=1e-4, rtol=1e-4)


def test_beams_are_at_least_as_likely_as_greedy_and_tell_their_likelihood(model, prompts):
    options = {"num_beams": 4, "length_penalty": 0.0, "num_return_sequences": 2}
    found = write(model, prompts, do_sample=False, return_dict_in_generate=True, output_scores=True, **options)

    def likelihood(ids: torch.Tensor) -> torch.Tensor:
        scores = scores_of(model, ids)[:, LENGTH - 1 : -1]
        return scores.gather(-1, ids[:, LENGTH:, None]).sum((1, 2))

    torch.testing.assert_close(found.sequences_scores, likelihood(found.sequences), atol=1e-3, rtol=1e-4)
    two = found.sequences_scores.view(3, 2)
    assert (two[:, 0] >= two[:, 1]).all()
    wide = write(model, prompts, do_sample=False, num_beams=4, length_penalty=0.0, use_cache=False)
    assert torch.equal(wide, found.sequences[::2])


def test_beams_say_each_phone_once_in_order_and_end(model):
    _, processor = tiny_speech_lm(text_alignment="phone")
    ids, texts = processor.speech_ids, ["hi tim", "die"]
    pieces = [processor.speech_pieces(text)[1] for text in texts]
    inputs = processor(text=[processor.speech_prompt(text) for text in texts], padding_side="left")
    written = model.generate(
        **inputs,
        logits_processor=LogitsProcessorList([GuidedText(ids, pieces, 1, 3)]),
        num_beams=3,
        do_sample=False,
        max_new_tokens=80,
    )
    for row, wanted in zip(written[:, inputs["input_ids"].shape[1] :], pieces, strict=True):
        end = int((row == ids.audio_end).nonzero()[0])
        assert [number for number in row[:end].tolist() if number < ids.audio_offset] == sum(wanted, [])
        assert int(split_pieces(row[:end], ids, wanted).num_dropped) == 0


def test_only_whole_frames_are_written_whatever_the_mode(model):
    _, processor = tiny_speech_lm()
    model_ids = model.config.speech_ids
    start = torch.full((2, 1), model_ids.audio_start)
    for mode in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 3}):
        torch.manual_seed(0)
        limits = LogitsProcessorList([AudioOnly(model_ids)])
        written = write(model, start, logits_processor=limits, eos_token_id=model_ids.audio_end, **mode)
        for row in written[:, 1:].tolist():
            units = row[: row.index(model_ids.audio_end)] if model_ids.audio_end in row else row
            assert len(units) % 2 == 0
            for place, unit in enumerate(units):
                first = model_ids.audio_offset + place % 2 * model_ids.codebook_size
                assert first <= unit < first + model_ids.codebook_size


def test_a_longest_length_counts_the_prompt_and_the_most_new_ids_do_not(model, prompts):
    by_length = model.generate(prompts, max_length=LENGTH + 4, eos_token_id=None, pad_token_id=0, do_sample=False)
    assert torch.equal(by_length, greedy(model, prompts, 4))
    assert write(model, prompts, max_new_tokens=1).shape == (3, LENGTH + 1)


def test_a_row_stops_at_whichever_end_comes_first(model, prompts):
    free = greedy(model, prompts)
    ends = [int(free[0, LENGTH + 1]), int(free[1, LENGTH + 3])]
    written = write(model, prompts, do_sample=False, eos_token_id=ends, pad_token_id=0)
    for row, said in zip(written, free, strict=True):
        places = [place for place in range(LENGTH, LENGTH + NEW) if int(said[place]) in ends]
        stop = places[0] + 1 if places else LENGTH + NEW
        assert torch.equal(row[:stop], said[:stop])
        assert (row[stop:] == 0).all()


def test_the_saved_ends_stop_it(model, prompts):
    """Those of `generation_config`: the base's own end, and the end of audio."""
    assert model.generation_config.eos_token_id == [2, model.config.audio_end_token_id]
    for end in model.generation_config.eos_token_id:

        def only_end(ids, scores, end=end):
            return torch.full_like(scores, float("-inf")).index_fill_(1, torch.tensor([end]), 0.0)

        written = model.generate(prompts, logits_processor=LogitsProcessorList([only_end]), max_new_tokens=NEW)
        assert written.shape == (3, LENGTH + 1)


def test_an_assistant_changes_no_id(model, prompts):
    helper, _ = tiny_speech_lm(model.config.text_config.model_type, text_alignment="phone")
    plain = greedy(model, prompts[:1])
    assert torch.equal(write(model, prompts[:1], do_sample=False, assistant_model=helper), plain)
    assert torch.equal(write(model, prompts[:1], do_sample=False, prompt_lookup_num_tokens=2), plain)


def test_a_streamer_hears_every_id_in_order(model, prompts):
    class Heard(BaseStreamer):
        def __init__(self):
            self.ids, self.has_ended = [], False

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.has_ended = True

    heard = Heard()
    written = write(model, prompts[:1], do_sample=False, streamer=heard)
    assert heard.ids == written[0].tolist()
    assert heard.has_ended
