# SPDX-License-Identifier: Apache-2.0
"""Whatever a model gives, what is generated can be decoded, says the text once and in order, and ends."""

import math
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

from speech_tokenizers.modeling.audio_logits import AudioOnly, GuidedText, MinFrames, RowSampling, WindowedRepetition
from speech_tokenizers.modeling.speech_lm_layouts import SpeechIds, flat_to_codes, split_pieces


PAD, EOS, START, END, PHONES = 0, 1, 20, 21, 10
INF = float("inf")


def ids_with(num_codebooks: int, codebook_size: int = 5) -> SpeechIds:
    """Text 2 to 9, phones 10 to 19, start 20, end 21, units from 22 on, then rows that stand for nothing."""
    return SpeechIds(START, END, 22, num_codebooks, codebook_size, piece_offset=PHONES, num_pieces=10)


def vocab_size(ids: SpeechIds) -> int:
    return ids.audio_stop + 7


def speak(ids: SpeechIds, processors: list, generator: torch.Generator, prompt: list[int], steps: int) -> list[int]:
    """What a model of random scores says behind a prompt, greedily; it stops at the end of audio."""
    row = torch.tensor([prompt])
    for _ in range(steps):
        scores = 5 * torch.randn(1, vocab_size(ids), generator=generator)
        for processor in processors:
            scores = processor(row, scores)
        row = torch.cat([row, scores.argmax(-1, keepdim=True)], dim=1)
        if row[0, -1] == END:
            break
    return row[0, len(prompt) :].tolist()


def tiny_llama(ids: SpeechIds, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size(ids),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=1.0,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    # In double precision the size of a batch changes no id.
    return LlamaForCausalLM(config).double().eval()


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    rows = [[PAD] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def generate(model: LlamaForCausalLM, prompts: list[list[int]], processors: list, **arguments) -> list[list[int]]:
    """What follows each prompt, up to the end of audio; one list for each returned row."""
    inputs = left_padded(prompts)
    arguments = {"do_sample": False, "max_new_tokens": 150, **arguments}
    rows = model.generate(**inputs, logits_processor=LogitsProcessorList(processors), **arguments)
    said = [row[inputs["input_ids"].shape[1] :].tolist() for row in rows]
    return [row[: row.index(END) + 1] if END in row else row for row in said]


def random_pieces(random_state: random.Random, longest: int = 1) -> list[list[int]]:
    """One to six pieces of some ids of text each."""
    sizes = [random_state.randint(1, longest) for _ in range(random_state.randint(1, 6))]
    return [[random_state.randint(2, 19) for _ in range(size)] for size in sizes]


def check_said_once_in_order(said: list[int], pieces: list[list[int]], ids: SpeechIds, low: int, high: int) -> None:
    assert said[-1] == END
    assert said.count(END) == 1
    split = split_pieces(torch.tensor(said), ids, pieces)
    assert split.pieces == pieces
    assert split.num_dropped == 0
    assert [number for number in said if not 22 <= number < ids.audio_stop][:-1] == sum(pieces, [])
    durations = split.ends - split.starts
    assert int(durations.min()) >= low
    assert int(durations.max()) <= high
    assert int(split.ends[-1]) == split.audio_codes.shape[1]


# --- Whole frames ---


@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 4])
def test_random_logits_never_give_an_invalid_frame(num_codebooks):
    ids = ids_with(num_codebooks)
    num_ended = 0
    for seed in range(60):
        said = speak(ids, [AudioOnly(ids)], torch.Generator().manual_seed(seed), [3, 4, START], 40)
        ended = said[-1] == END
        units = said[:-1] if ended else said
        codes = flat_to_codes(torch.tensor(units, dtype=torch.long), ids)
        assert bool(ids.is_unit(torch.tensor(units, dtype=torch.long)).all())
        assert codes.num_dropped == (0 if ended else len(units) % num_codebooks)
        num_ended += ended
    assert num_ended > 10


@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 4])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generated_batches_have_no_invalid_frame(num_codebooks, num_beams):
    ids = ids_with(num_codebooks)
    for seed in range(4):
        model = tiny_llama(ids, seed)
        prompts = [[3, START], [4, 5, 6, START], [7, 8, START]]
        for said in generate(model, prompts, [AudioOnly(ids)], num_beams=num_beams, max_new_tokens=40):
            ended = END in said
            units = said[:-1] if ended else said
            codes = flat_to_codes(torch.tensor(units, dtype=torch.long), ids)
            assert codes.num_dropped == (0 if ended else len(units) % num_codebooks)
            assert codes.audio_codes.numel() + codes.num_dropped == len(units)


def test_the_allowed_ids_are_those_of_the_turn_since_the_last_start():
    ids = ids_with(2)
    first, second, all_ids = set(range(22, 27)), set(range(27, 32)), set(range(vocab_size(ids)))
    text = all_ids - first - second - {END}
    rows = {
        (PAD, 3, 4, 5, START): first | {END},
        (PAD, 3, 4, START, 22): second,
        # A voice prompt holds a clip of its own, of three units here.
        (START, 22, 27, 23, START): first | {END},
        (PAD, START, 22, END, EOS): text,
        (3, 4, 5, 6, 7): text,
    }
    legal = AudioOnly(ids)(torch.tensor(list(rows)), torch.zeros(len(rows), vocab_size(ids))) == 0
    assert [set(row.nonzero()[:, 0].tolist()) for row in legal] == list(rows.values())


def test_phones_stand_between_whole_frames_if_asked_for():
    ids = ids_with(2)
    rows = torch.tensor([[START, 12, 22, 27], [START, 22, 27, 22]])
    legal = AudioOnly(ids, pieces=True)(rows, torch.zeros(2, vocab_size(ids))) == 0
    assert bool(legal[0, 10:20].all())
    assert not bool(legal[1, 10:20].any())
    assert not bool(legal[:, 2:10].any())
    said = speak(ids, [AudioOnly(ids, pieces=True)], torch.Generator().manual_seed(0), [START], 200)
    assert split_pieces(torch.tensor(said), ids).num_dropped <= 1


def test_scores_of_legal_ids_and_the_given_tensors_stay_as_they_are():
    ids = ids_with(2)
    rows, scores = torch.tensor([[3, START, 12, 22, 27]]), torch.randn(1, vocab_size(ids))
    kept_rows, kept_scores = rows.clone(), scores.clone()
    for processor in [
        AudioOnly(ids),
        GuidedText(ids, [[[12], [13]]]),
        WindowedRepetition(ids, 3, limit=1),
        WindowedRepetition(ids, 3, penalty=1.0),
        MinFrames(ids, 5),
    ]:
        after = processor(rows, scores)
        if getattr(processor, "penalty", None) is None:
            same = (after == scores) | (after == -INF)
            # But for the next piece, which stands for all that is no unit.
            assert same.logical_not().nonzero().tolist() == ([[0, 13]] if isinstance(processor, GuidedText) else [])
        assert not torch.equal(after, scores)
        assert torch.equal(rows, kept_rows)
        assert torch.equal(scores, kept_scores)


# --- Guided text ---


@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 4])
@pytest.mark.parametrize("longest", [1, 3])
def test_guided_text_is_said_once_in_order_and_ends_with_random_logits(num_codebooks, longest):
    ids, random_state = ids_with(num_codebooks), random.Random(num_codebooks)
    for seed in range(40):
        pieces = random_pieces(random_state, longest)
        low = random_state.randint(1, 3)
        high = low + random_state.randint(0, 3)
        guide = GuidedText(ids, [pieces], low, high)
        # What the prompt holds, a clip of its own too, counts for nothing.
        prompt = [3, START, 22, 12, END, *sum(pieces, []), START]
        said = speak(ids, [guide], torch.Generator().manual_seed(seed), prompt, 400)
        check_said_once_in_order(said, pieces, ids, low, high)


@pytest.mark.parametrize("num_codebooks", [1, 2])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_guided_batches_say_their_own_text_and_end(num_codebooks, num_beams):
    ids, random_state = ids_with(num_codebooks), random.Random(num_codebooks)
    for seed in range(4):
        pieces = [random_pieces(random_state, 2) for _ in range(3)]
        prompts = [[*sum(item, []), START] for item in pieces]
        guide = GuidedText(ids, pieces, 1, 4)
        returned = 2 if num_beams > 1 else 1
        rows = generate(tiny_llama(ids, seed), prompts, [guide], num_beams=num_beams, num_return_sequences=returned)
        for row, said in enumerate(rows):
            check_said_once_in_order(said, pieces[row // returned], ids, 1, 4)


def test_true_durations_are_forced():
    ids, random_state = ids_with(2), random.Random(0)
    pieces = [random_pieces(random_state, 2) for _ in range(4)]
    durations = [[random_state.randint(1, 7) for _ in item] for item in pieces]
    guide = GuidedText(ids, pieces, durations, durations)
    prompts = [[*sum(item, []), START] for item in pieces]
    for item, said in enumerate(generate(tiny_llama(ids, 0), prompts, [guide])):
        split = split_pieces(torch.tensor(said), ids, pieces[item])
        assert (split.ends - split.starts).tolist() == durations[item]
        assert said[-1] == END


def test_each_step_allows_units_in_turn_and_exactly_the_next_piece():
    ids = ids_with(2)
    guide = GuidedText(ids, [[[12], [13, 14]]], min_frames=1, max_frames=2)
    first, second = set(range(22, 27)), set(range(27, 32))
    steps = [
        ([], {12}),
        ([12], first),
        ([12, 22], second),
        ([12, 22, 27], first | {13}),
        ([12, 22, 27, 22], second),
        ([12, 22, 27, 22, 27], {13}),
        ([12, 22, 27, 13], {14}),
        ([12, 22, 27, 13, 14], first),
        ([12, 22, 27, 13, 14, 22, 27], first | {END}),
        ([12, 22, 27, 13, 14, 22, 27, 22, 27], {END}),
    ]
    for said, expected in steps:
        legal = guide(torch.tensor([[13, START, *said]]), torch.zeros(1, vocab_size(ids)))[0].isfinite()
        assert set(legal.nonzero()[:, 0].tolist()) == expected


def test_without_a_limit_a_piece_lasts_as_long_as_the_model_likes():
    ids = ids_with(1)
    scores = torch.zeros(1, vocab_size(ids))
    legal = GuidedText(ids, [[[12], [13]]])(torch.tensor([[START, 12, *[22] * 500]]), scores)[0].isfinite()
    assert set(legal.nonzero()[:, 0].tolist()) == {22, 23, 24, 25, 26, 13}


def test_a_row_that_has_ended_is_guided_no_more():
    ids = ids_with(1)
    rows = torch.tensor([[START, 12, 22, END, PAD], [PAD, PAD, START, 12, 22]])
    scores = GuidedText(ids, [[[12]], [[12], [13]]])(rows, torch.zeros(2, vocab_size(ids)))
    assert scores[0, PAD] == 0
    assert scores[0, EOS] == 0
    assert set(scores[1].isfinite().nonzero()[:, 0].tolist()) == {22, 23, 24, 25, 26, 13}


def test_the_next_piece_stands_for_all_that_is_no_unit():
    """A model that is sure that a piece is over, but not which one follows, goes on to the one of the text."""
    ids = ids_with(1)
    scores = torch.full((1, vocab_size(ids)), -INF)
    scores[0, [12, 13, 14, END]] = math.log(0.15)
    scores[0, 24] = math.log(0.4)
    after = GuidedText(ids, [[[12], [13]]])(torch.tensor([[START, 12, 22]]), scores)
    assert float(after[0, 13].exp()) == pytest.approx(0.6)
    assert int(after.argmax()) == 13


def test_guiding_takes_what_another_processor_leaves():
    ids = ids_with(1)
    scores = torch.full((1, vocab_size(ids)), -INF)
    scores[0, 24] = 1.5
    after = GuidedText(ids, [[[12], [13]]])(torch.tensor([[START, 12]]), scores)
    assert torch.equal(after, scores)
    with pytest.raises(ValueError, match="No id is left in row 0 after GuidedText"):
        GuidedText(ids, [[[12], [13]]])(torch.tensor([[START]]), scores)


# --- Repetition and ends ---


@pytest.mark.parametrize("arguments", [{"limit": 1}, {"penalty": 2.0}])
def test_repetition_control_touches_neither_pieces_nor_ends(arguments):
    ids = ids_with(2)
    control = WindowedRepetition(ids, 4, **arguments)
    row = [3, START, 12, 22, 27, 12, 22, 28, 12, 23, 27]
    scores = torch.randn(1, vocab_size(ids))
    changed = set((control(torch.tensor([row]), scores) != scores)[0].nonzero()[:, 0].tolist())
    assert changed == {22, 23, 27, 28}


def test_only_units_since_the_last_start_count():
    ids = ids_with(1)
    control = WindowedRepetition(ids, 4, limit=1)
    rows = torch.tensor([[START, 22, 23, END, START, 24], [PAD, 22, 22, START, 12, 25], [START, 22, 23, 24, END, PAD]])
    banned = control(rows, torch.zeros(3, vocab_size(ids))) == -INF
    assert [row.nonzero()[:, 0].tolist() for row in banned] == [[24], [25], []]


@pytest.mark.parametrize("num_codebooks", [1, 2, 3])
def test_each_codebook_has_its_own_window(num_codebooks):
    ids, generator = ids_with(num_codebooks, 9), torch.Generator().manual_seed(0)
    for _ in range(30):
        said = speak(ids, [AudioOnly(ids), MinFrames(ids, 99)], generator, [START], 10 * num_codebooks + 1)
        aligned = [START, *said[:3], 12, *said[3:]]
        penalties = -WindowedRepetition(ids, 4, penalty=0.5)(torch.tensor([aligned]), torch.zeros(1, vocab_size(ids)))
        for codebook in range(num_codebooks):
            codes = said[codebook::num_codebooks][-4:]
            unit = ids.audio_offset + codebook * 9
            expected = [0.5 * codes.count(number) for number in range(unit, unit + 9)]
            assert penalties[0, unit : unit + 9].tolist() == expected


def test_no_code_exceeds_its_limit_in_any_window():
    ids = ids_with(2)
    processors = [AudioOnly(ids), WindowedRepetition(ids, 6, limit=2), MinFrames(ids, 50)]
    said = speak(ids, processors, torch.Generator().manual_seed(0), [START], 100)
    codes = flat_to_codes(torch.tensor(said), ids).audio_codes.tolist()
    for row in codes:
        for place in range(6, len(row)):
            # Six frames and the one that follows: a third one was not allowed while the six held two.
            assert row[place - 6 : place].count(row[place]) < 2


def test_a_clip_has_its_least_frames_and_no_more_by_force():
    ids = ids_with(2)
    scores = torch.zeros(1, vocab_size(ids))
    scores[0, END] = 9.0
    for least in range(4):
        row = torch.tensor([[START, 22, 27, 12, START]])
        while row[0, -1] != END:
            after = MinFrames(ids, least)(row, AudioOnly(ids)(row, scores))
            row = torch.cat([row, after.argmax(-1, keepdim=True)], dim=1)
        assert row.shape[1] == 5 + 2 * least + 1


def test_least_frames_are_those_of_the_item():
    ids = ids_with(1)
    rows = torch.tensor([[START, 22, 22]] * 4)
    scores = MinFrames(ids, [2, 3])(rows, torch.zeros(4, vocab_size(ids)))
    assert (scores[:, END] == -INF).tolist() == [False, False, True, True]


def test_rows_outside_of_a_clip_may_end_as_they_like():
    rows, scores = torch.tensor([[3, 4, 5], [START, 22, END], [3, START, 22]]), torch.zeros(3, 50)
    assert (MinFrames(ids_with(1), 2)(rows, scores)[:, END] == 0).tolist() == [True, True, False]


# --- Sampling ---


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_draws_follow_the_softmax():
    scores = torch.tensor([[0.0, 1.0, 2.0, -INF, 0.5]]).expand(40_000, 5)
    for temperature in (0.5, 1.0, 2.0):
        drawn = RowSampling(temperature, generators=generators([0]))(None, scores).argmax(-1)
        shares = torch.bincount(drawn, minlength=5) / len(drawn)
        assert (shares - (scores[0] / temperature).softmax(-1)).abs().max() < 0.01


def test_cut_scores_are_those_that_transformers_keeps():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = 3 * torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    scores[:, ::3] = -INF
    for top_k, top_p in [(None, 0.9), (20, None), (20, 0.7), (5, 0.01), (999, 1.0)]:
        expected = TemperatureLogitsWarper(0.7)(None, scores)
        if top_k is not None:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p is not None:
            expected = TopPLogitsWarper(top_p)(None, expected)
        after = RowSampling(0.7, top_k, top_p)(None, scores)
        assert torch.equal(after == -INF, expected == -INF)


def test_noise_is_finite_where_a_generator_gives_zero_or_one(monkeypatch):
    scores = torch.tensor([[-INF, -3.0, -INF], [-INF, -INF, 2.0]])
    for number in (0.0, 1 - 2**-24, 1.0):
        monkeypatch.setattr(torch, "rand_like", lambda like, number=number: torch.full_like(like, number))
        after = RowSampling()(None, scores)
        assert after.isfinite().tolist() == scores.isfinite().tolist()
        assert after.argmax(-1).tolist() == [1, 2]


@pytest.mark.parametrize("is_guided", [True, False])
def test_a_batch_says_what_each_row_says_alone(is_guided):
    ids, random_state = ids_with(2), random.Random(0)
    for seed in range(3):
        model = tiny_llama(ids, seed)
        pieces = [random_pieces(random_state, 2) for _ in range(3)]
        prompts = [[*sum(item, []), START] for item in pieces]
        seeds = [seed, seed + 10, seed + 20]

        def processors(items: list[int], pieces=pieces, seeds=seeds) -> list:
            allowed = GuidedText(ids, [pieces[item] for item in items], 1, 5) if is_guided else AudioOnly(ids)
            return [
                allowed,
                WindowedRepetition(ids, 5, limit=3),
                RowSampling(1.0, top_k=8, top_p=0.95, generators=generators([seeds[item] for item in items])),
            ]

        together = generate(model, prompts, processors([0, 1, 2]), max_new_tokens=60)
        alone = [generate(model, [prompts[item]], processors([item]), max_new_tokens=60)[0] for item in range(3)]
        assert together == alone
        seeds[1] += 1
        assert generate(model, prompts, processors([0, 1, 2]), max_new_tokens=60)[1] != together[1]


def test_rows_of_an_item_draw_different_noise_from_its_generator():
    scores = torch.zeros(4, 50)
    after = RowSampling(generators=generators([3, 4]))(None, scores)
    alone = RowSampling(generators=generators([4]))(None, scores[:2])
    assert torch.equal(after[2:], alone)
    assert not torch.equal(after[0], after[1])


def test_half_precision_scores_are_sampled_in_single_precision():
    scores = torch.randn(2, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    after = RowSampling(generators=generators([0]))(None, scores)
    assert after.dtype == torch.float32
    assert torch.equal(after, RowSampling(generators=generators([0]))(None, scores.float()))


# --- Bad input ---


@pytest.mark.parametrize("number", [-INF, float("nan")])
def test_a_row_without_a_score_is_refused(number):
    ids = ids_with(2)
    scores = torch.zeros(2, vocab_size(ids))
    scores[1] = number
    rows = torch.tensor([[START], [START]])
    for processor, name in [
        (AudioOnly(ids), "AudioOnly"),
        (MinFrames(ids, 0), "MinFrames"),
        (WindowedRepetition(ids, 3, limit=1), "WindowedRepetition"),
        (RowSampling(), "RowSampling"),
    ]:
        with pytest.raises(ValueError, match=f"row 1 after .*{name}"):
            processor(rows, scores)


def test_ends_that_are_both_forced_and_forbidden_are_refused():
    ids = ids_with(1)
    rows, scores = torch.tensor([[START, 12, 22]]), torch.zeros(1, vocab_size(ids))
    with pytest.raises(ValueError, match="No id is left in row 0 after MinFrames"):
        MinFrames(ids, 2)(rows, GuidedText(ids, [[[12]]], 1, 1)(rows, scores))


@pytest.mark.parametrize(
    ("pieces", "arguments", "match"),
    [
        ([], {}, "`pieces` has no item"),
        ([[[12]], []], {}, "Item 1 of `pieces` has no pieces"),
        ([[[12], []]], {}, "Piece 1 has no ids"),
        ([[[22]]], {}, "id 22"),
        ([[[START]]], {}, "id 20"),
        ([[[-5]]], {}, "id -5"),
        ([[[12]]], {"min_frames": 0}, "at least 1"),
        ([[[12]]], {"min_frames": 3, "max_frames": 2}, "not above `max_frames`, but they are 3 and 2"),
        ([[[12], [13]]], {"max_frames": [[2]]}, r"\[2\] pieces, but it has \[1\] numbers"),
        ([[[12], [13]]], {"min_frames": [[2, 3], [1]]}, r"`min_frames` must be a number, or hold a number for each"),
    ],
)
def test_text_that_cannot_be_guided_is_refused(pieces, arguments, match):
    with pytest.raises(ValueError, match=match):
        GuidedText(ids_with(2), pieces, **arguments)


def test_rows_that_cannot_be_guided_are_refused():
    ids = ids_with(2)
    guide, scores = GuidedText(ids, [[[12]], [[13]]]), torch.zeros(2, vocab_size(ids))
    with pytest.raises(ValueError, match="Row 1 of `input_ids` holds no `audio_start`"):
        guide(torch.tensor([[3, START], [3, 4]]), scores)
    with pytest.raises(ValueError, match="holds no `audio_start`"):
        guide(torch.zeros(2, 0, dtype=torch.long), scores)
    with pytest.raises(ValueError, match="2 items, but there are 3 rows"):
        guide(torch.tensor([[START]] * 3), scores[:1].expand(3, -1))
    with pytest.raises(ValueError, match="has 30 rows, but speech needs 32"):
        guide(torch.tensor([[START]] * 2), scores[:, :30])
    with pytest.raises(ValueError, match="hold the id 99, but the model has 39 ids"):
        GuidedText(ids, [[[99]]])(torch.tensor([[START]]), scores[:1])


@pytest.mark.parametrize(
    ("processor", "arguments", "match"),
    [
        (WindowedRepetition, {"window": 0, "limit": 1}, "`window` must be at least 1"),
        (WindowedRepetition, {"window": 4}, "Give one of"),
        (WindowedRepetition, {"window": 4, "limit": 1, "penalty": 1.0}, "Give one of"),
        (WindowedRepetition, {"window": 10, "limit": 2}, "leave one of 5 codes in a window of 10"),
        (WindowedRepetition, {"window": 4, "limit": 0}, "`limit` must be at least 1"),
        (WindowedRepetition, {"window": 4, "penalty": -1.0}, "`penalty` must be a number above 0"),
        (MinFrames, {"num_frames": -1}, "not negative"),
        (MinFrames, {"num_frames": []}, "not negative"),
    ],
)
def test_impossible_limits_are_refused(processor, arguments, match):
    with pytest.raises(ValueError, match=match):
        processor(ids_with(2), **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"temperature": 0.0}, "leave out `RowSampling`"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"top_k": 0}, "`top_k`"),
        ({"top_p": 0.0}, "`top_p`"),
        ({"top_p": 1.1}, "`top_p`"),
        ({"generators": []}, "`generators` is empty"),
    ],
)
def test_impossible_sampling_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        RowSampling(**arguments)


def test_phones_of_ids_without_phones_are_refused():
    with pytest.raises(ValueError, match="`ids.num_pieces` is 0"):
        AudioOnly(SpeechIds(START, END, 22, 2, 5), pieces=True)
