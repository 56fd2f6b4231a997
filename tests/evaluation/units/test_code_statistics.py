# SPDX-License-Identifier: Apache-2.0
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy import stats

from speech_tokenizers.evaluation.bootstrap import bootstrap_sums, ratio
from speech_tokenizers.evaluation.reconstruction.codebook import stage_statistics
from speech_tokenizers.evaluation.units.agreement import joint_symbols
from speech_tokenizers.evaluation.units.code_statistics import (
    NgramModel,
    bit_rates,
    entropy,
    ngram_bits,
    ngram_perplexity,
    perplexity,
    rarest_share,
    run_counts,
    run_lengths,
    share_used,
    usage_counts,
)


@pytest.fixture
def streams():
    """Units that mostly follow a rule, of nine clips."""
    generator = np.random.default_rng(0)
    streams = []
    for length in generator.integers(1, 60, 9):
        stream = [int(generator.integers(0, 7))]
        for _ in range(length):
            stream.append((3 * stream[-1] + 1) % 7 if generator.random() < 0.6 else int(generator.integers(0, 7)))
        streams.append(np.array(stream))
    return streams


def naive_probability(train: list[list[int]], history: tuple[int, ...], unit: int, vocabulary_size: int) -> float:
    """Interpolated Witten-Bell, straight from its definition."""
    followers = Counter(
        stream[place + len(history)]
        for stream in train
        for place in range(len(stream) - len(history))
        if tuple(stream[place : place + len(history)]) == history
    )
    shorter = naive_probability(train, history[1:], unit, vocabulary_size) if history else 1 / vocabulary_size
    total, distinct = sum(followers.values()), len(followers)
    return (followers[unit] + distinct * shorter) / (total + distinct) if total else shorter


def test_runs_by_hand():
    units, durations = run_lengths(np.array([[1, 1, 1, 2, 2, 1], [0, 0, 3, 3, 3, 3]]))
    assert units.tolist() == [[1, 1, 2, 1], [0, 3, 3, 3]]
    assert durations.tolist() == [2, 1, 2, 1]
    units, durations = run_lengths(np.zeros((2, 0), int))
    assert units.shape == (2, 0)
    assert durations.shape == (0,)


def test_runs_restore_the_frames():
    codes = np.random.default_rng(0).integers(0, 2, (2, 500))
    units, durations = run_lengths(codes)
    assert np.array_equal(np.repeat(units, durations, axis=1), codes)
    assert (units[:, 1:] != units[:, :-1]).any(0).all()


def test_bit_rates_by_hand():
    # 8 frames at 50 a second are 0.16 s; 4 runs of 3, 1, 2 and 2 frames with units 0, 1, 0, 2: 25 units a second.
    rates = bit_rates([np.array([[0, 0, 0, 1]]), np.array([[0, 0, 2, 2]])], 4, 50.0)
    assert rates.nominal == 100.0
    assert rates.entropy == pytest.approx(50 * (5 / 8 * math.log2(8 / 5) + 1 / 8 * 3 + 2 / 8 * 2))
    assert rates.units_per_second == 25.0
    assert rates.deduplicated == 50.0
    assert rates.deduplicated_entropy == 25 * 1.5
    # Durations 3, 1 once each and 2 twice: 1.5 bits too.
    assert rates.deduplicated_entropy_with_durations == 25 * 3.0


def test_units_without_repetitions_cost_the_same_deduplicated():
    rates = bit_rates([np.tile(np.arange(4), 25)[None]], 4, 50.0)
    assert rates.units_per_second == 50.0
    assert rates.nominal == rates.entropy == rates.deduplicated == rates.deduplicated_entropy == 100.0
    assert rates.deduplicated_entropy_with_durations == 100.0


def test_codes_that_last_several_frames_count_once():
    # Units of 2 bits, and codes of 1 bit that last 4 frames.
    codes = [np.stack([np.tile(np.arange(4), 4), np.repeat([0, 1, 0, 1], 4)])]
    rates = bit_rates(codes, [4, 2], 50.0, [1, 4])
    assert rates.nominal == rates.entropy == 50 * (2 + 1 / 4)
    assert rates.deduplicated == 50 * (2 + 1)  # each run has both
    assert bit_rates(codes, [4, 2], 50.0).nominal == 150.0


def test_no_frames_have_no_bit_rate():
    with pytest.raises(ValueError, match="holds no frame"):
        bit_rates([np.zeros((1, 0), int)], 4, 50.0)


def test_usage_by_clip_sums_to_the_statistics_of_all():
    codes = [np.random.default_rng(length).integers(0, 20, (2, length)) ** 2 // 20 for length in (50, 80)]
    counts = usage_counts(codes, 20)
    assert counts.shape == (2, 2, 20)
    for stage, whole in enumerate(stage_statistics(codes, 20)):
        sums = counts[:, stage].sum(0)
        assert entropy(sums) == pytest.approx(whole.entropy)
        assert perplexity(sums) == pytest.approx(whole.perplexity)
        assert share_used(sums) == whole.share_used
        estimate = bootstrap_sums(counts[:, stage], perplexity)
        assert estimate.value == pytest.approx(whole.perplexity)


def test_entropy_by_hand_and_as_in_scipy():
    assert entropy(np.array([4, 2, 2, 0])) == pytest.approx(1.5)
    assert perplexity(np.array([4, 2, 2, 0])) == pytest.approx(2**1.5)
    assert share_used(np.array([4, 2, 2, 0])) == 0.75
    counts = np.random.default_rng(0).integers(0, 5, (6, 40))
    np.testing.assert_allclose(entropy(counts), stats.entropy(counts, base=2, axis=-1))
    np.testing.assert_allclose(perplexity(counts), np.exp(stats.entropy(counts, axis=-1)))
    # Sorted shares, added up: the Lorenz curve at 8 of 40 codes.
    lorenz = np.cumsum(np.sort(counts / counts.sum(-1, keepdims=True), axis=-1), axis=-1)
    np.testing.assert_allclose(rarest_share(counts), lorenz[:, 7])


def test_units_a_second_by_clip():
    codes = [np.array([[0, 0, 0, 1]]), np.array([[0, 0, 2, 2, 1, 0]])]
    assert run_counts(codes, 50.0).tolist() == [[2, 0.08], [4, 0.12]]
    assert bootstrap_sums(run_counts(codes, 50.0), ratio).value == pytest.approx(30.0)


def test_rarest_share_by_hand():
    assert rarest_share(np.full(10, 7)) == pytest.approx(0.2)
    assert rarest_share(np.full(7, 3)) == pytest.approx(0.2)
    # The rarest two of ten carry 1 and 2 of 55 frames, in whichever order they stand.
    assert rarest_share(np.arange(1, 11)[::-1]) == pytest.approx(3 / 55)
    # Of seven codes 1.4 count: the unused one, and 0.4 of the next.
    assert rarest_share(np.array([4, 4, 4, 4, 0, 4, 4])) == pytest.approx(0.4 * 4 / 24)
    assert rarest_share(np.array([0, 0, 5, 5, 5])) == 0.0
    assert rarest_share(np.array([[1, 1], [1, 3]]), share=0.5).tolist() == [0.5, 0.25]
    assert np.isnan(rarest_share(np.zeros(4)))


def test_witten_bell_by_hand():
    model = NgramModel([np.array([0, 1, 0, 0])], 4, 2)
    # Without history: 0 three times, 1 once, two distinct, uniform 1/4. After 0: 1 and 0 once each.
    zero, one, unseen = (3 + 2 / 4) / 6, (1 + 2 / 4) / 6, (2 / 4) / 6
    assert model.bits(np.array([0, 1])) == pytest.approx([-math.log2(zero), -math.log2((1 + 2 * one) / 4)])
    # 3 was never seen: neither it, nor what follows it, has a history.
    assert model.bits(np.array([3, 0])) == pytest.approx([-math.log2(unseen), -math.log2(zero)])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_a_naive_witten_bell(streams, order):
    train, held_out = [stream.tolist() for stream in streams[:5]], streams[5:]
    model = NgramModel(streams[:5], 9, order)
    for stream in held_out:
        units = [*stream.tolist(), 8, 3]
        expected = [
            -math.log2(naive_probability(train, tuple(units[max(0, place + 1 - order) : place]), unit, 9))
            for place, unit in enumerate(units)
        ]
        np.testing.assert_allclose(model.bits(np.array(units)), expected)


@pytest.mark.parametrize("history", [(), (3,), (1, 3), (8, 3), (8, 8)])
def test_probabilities_sum_to_one(streams, history):
    model = NgramModel(streams, 9, 3)
    total = sum(2.0 ** -model.bits(np.array([*history, unit]))[-1] for unit in range(9))
    assert total == pytest.approx(1.0)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_random_units_have_the_perplexity_of_their_number(order):
    streams = list(np.random.default_rng(0).integers(0, 5, (40, 1000)))
    assert ngram_perplexity(ngram_bits(streams, 5, order).sum(0)) == pytest.approx(5.0, rel=0.02)


def test_a_cycle_is_foretold_from_its_last_unit():
    streams = [np.tile(np.arange(10), 50)] * 4
    by_order = [ngram_perplexity(ngram_bits(streams, 10, order).sum(0)) for order in (1, 2, 3)]
    assert by_order[0] == pytest.approx(10.0, rel=1e-3)
    assert by_order[1] == pytest.approx(1.0, abs=0.02)
    assert by_order[2] == pytest.approx(1.0, abs=0.02)


def test_deduplicated_random_units_never_repeat_and_are_one_fewer():
    codes = np.random.default_rng(0).integers(0, 5, (40, 1, 1000))
    streams = [run_lengths(clip)[0][0] for clip in codes]
    assert ngram_perplexity(ngram_bits(streams, 5, 2).sum(0)) == pytest.approx(4.0, rel=0.02)


def test_tuples_of_many_quantizers_need_no_table_of_their_size(streams):
    codes = [np.stack([stream] * 4) for stream in streams]
    alone = ngram_bits(streams, 7, 3)
    together = ngram_bits(joint_symbols(codes), 1024**4, 3)
    # Each clip costs more only for the first sight of a tuple, which the uniform floor makes dear.
    assert np.array_equal(alone[:, 1], together[:, 1])
    assert (together[:, 0] >= alone[:, 0]).all()


def test_folds_measure_each_clip_by_a_model_of_other_groups(streams):
    groups = list("aabbccdde")
    rows = ngram_bits(streams, 7, 2, groups, num_folds=2)
    by_fold = defaultdict(list)
    for number, group in enumerate(groups):
        by_fold["abcde".index(group) % 2].append(number)
    for fold, numbers in by_fold.items():
        model = NgramModel([streams[number] for number in by_fold[1 - fold]], 7, 2)
        for number in numbers:
            assert rows[number] == pytest.approx([model.bits(streams[number]).sum(), len(streams[number])])


def test_an_empty_clip_counts_nothing(streams):
    with_empty = ngram_bits([*streams, np.empty(0, np.int64)], 7, 3, num_folds=10)
    assert with_empty[-1].tolist() == [0.0, 0.0]
    assert np.isnan(ngram_perplexity(with_empty[-1]))


def test_what_does_not_fit_is_refused(streams):
    with pytest.raises(ValueError, match="must lie in 0 to 4, but got 0 to 6"):
        NgramModel([np.array([0, 6])], 5, 1)
    with pytest.raises(ValueError, match="must lie in 0 to 6, but got 7 to 7"):
        NgramModel(streams, 7, 1).bits(np.array([7]))
    with pytest.raises(ValueError, match="`order` must be at least 1, but got 0"):
        NgramModel(streams, 7, 0)
    with pytest.raises(ValueError, match="`order` is 4: too large for 60000 units"):
        NgramModel([np.arange(60000)], 60000, 4)
    with pytest.raises(ValueError, match="at least two clips or groups"):
        ngram_bits(streams, 7, 2, ["one"] * 9)
