# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from speech_tokenizers.evaluation.understanding.token_facts import (
    loss_by_clip_rarity,
    loss_by_unit_frequency,
    token_facts,
    unit_edit_distances,
    unit_usage,
)
from speech_tokenizers.processing.unit_bpe import train_unit_bpe


def test_rates_and_usage_by_hand():
    codes = [np.array([[0, 0, 1, 1, 0, 0, 1, 1]]), np.array([[2, 2, 2, 2]])]
    facts = token_facts(codes, 4, 2.0)
    assert facts.frames_per_second == 2
    assert facts.runs_per_second == pytest.approx(5 / 6)
    assert facts.rates.nominal == 2 * 2
    assert facts.rates.entropy == pytest.approx(2 * np.log2(3))
    assert facts.merged is facts.merged_per_second is facts.merged_bits_per_second is None
    (frames,), (runs,) = facts.frames, facts.runs
    assert (frames.num_units, frames.num_dead) == (runs.num_units, runs.num_dead) == (4, 1)
    assert frames.perplexity == pytest.approx(3)
    assert np.array(frames.zipf) == pytest.approx(np.array([(1, 1 / 3), (2, 1 / 3), (3, 1 / 3)]))
    assert np.array(runs.zipf) == pytest.approx(np.array([(1, 2 / 5), (2, 2 / 5), (3, 1 / 5)]))
    assert frames.rarest_share == 0


def test_merged_units_by_hand():
    codes = [np.array([[0, 0, 1, 0, 1, 0, 1, 2]])] * 3
    # 3 units and 2 special ids; one merge is left, of `0 1`.
    bpe = train_unit_bpe([units[0] for units in codes], 3, 6)
    facts = token_facts(codes, 3, 4.0, bpe)
    assert facts.merged.num_units == 4
    assert facts.merged.num_dead == 2  # neither 0 nor 1 stands alone
    assert facts.merged_per_second == pytest.approx(4 / 2)
    assert facts.merged_bits_per_second == pytest.approx(2 * 2)
    assert facts.merged_entropy_bits_per_second == pytest.approx(2 * -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))


def test_each_codebook_is_counted_by_itself():
    facts = token_facts([np.array([[0, 0, 1, 1], [0, 1, 1, 1]])], 2, 1.0)
    assert [usage.zipf for usage in facts.frames] == [[(1, 0.5), (2, 0.5)], [(1, 0.75), (2, 0.25)]]
    # Three runs: (0, 0), (0, 1), (1, 1).
    assert [usage.zipf[0][1] for usage in facts.runs] == pytest.approx([2 / 3, 2 / 3])


def test_the_rarest_fifth_of_even_units_has_a_fifth():
    assert unit_usage(np.full(10, 7)).rarest_share == pytest.approx(0.2)
    skewed = unit_usage(np.array([90, 3, 3, 3, 1]))
    assert skewed.rarest_share == pytest.approx(0.01)
    many = unit_usage(np.arange(2000), num_points=20)
    assert many.num_dead == 1
    assert len(many.zipf) <= 20
    assert many.zipf[0] == (1, 1999 / np.arange(2000).sum())
    assert many.zipf[-1] == (1999, 1 / np.arange(2000).sum())


def planted_losses(seed=0):
    """Clips of ten units; unit k occurs about k + 1 times as often as unit 0, and is 10 - k hard."""
    generator = np.random.default_rng(seed)
    shares = np.arange(1, 11) / 55
    tokens = [generator.choice(10, 40, p=shares) for _ in range(60)]
    losses = [10.0 - units + 0.1 * generator.standard_normal(40) for units in tokens]
    return losses, tokens, (1000 * shares).astype(int), [f"speaker {number % 6}" for number in range(60)]


def test_the_loss_at_rare_units_is_found():
    losses, tokens, counts, groups = planted_losses()
    buckets = loss_by_unit_frequency(losses, tokens, counts, groups)
    assert [bucket.count for bucket in buckets] == [2] * 5
    # Units 0 and 1 are the rarest: 10 a third of the time and 9 two thirds.
    assert [bucket.loss.value for bucket in buckets] == pytest.approx([9.33, 7.43, 5.45, 3.47, 1.47], abs=0.1)
    assert sum(bucket.share for bucket in buckets) == pytest.approx(1)
    assert buckets[0].share == pytest.approx(3 / 55, abs=0.02)
    assert all(bucket.loss.low < bucket.loss.value < bucket.loss.high for bucket in buckets)
    # What never occurs in training is the rarest.
    reversed_buckets = loss_by_unit_frequency(losses, tokens, np.arange(10)[::-1], groups)
    assert [bucket.loss.value for bucket in reversed_buckets] == [bucket.loss.value for bucket in reversed(buckets)]


def test_the_loss_of_rare_clips_is_found():
    losses, tokens, counts, groups = planted_losses()
    of_clips = [float(loss.mean()) for loss in losses]
    by_clip = loss_by_clip_rarity(of_clips, tokens, counts, groups)
    values = [bucket.loss.value for bucket in by_clip]
    assert values == sorted(values, reverse=True)
    assert [bucket.count for bucket in by_clip] == [12] * 5
    assert [bucket.share for bucket in by_clip] == pytest.approx([0.2] * 5)
    assert np.mean(values) == pytest.approx(np.mean(of_clips))
    # A clip's loss laid on each of its tokens hides most of it.
    by_unit = loss_by_unit_frequency(of_clips, tokens, counts, groups)
    assert by_unit[0].loss.value > by_unit[-1].loss.value
    assert by_unit[0].loss.value - by_unit[-1].loss.value < (values[0] - values[-1]) / 2


def test_a_bucket_that_does_not_occur_has_no_loss():
    buckets = loss_by_unit_frequency([1.0, 2.0], [np.array([3]), np.array([3, 3])], np.arange(4), ["a", "b"], 2)
    assert buckets[0].loss is None
    assert (buckets[0].share, buckets[1].share) == (0, 1)
    assert buckets[1].loss.value == pytest.approx(5 / 3)


def test_a_bucket_of_one_group_has_no_interval_and_clips_are_told():
    tokens, frequencies = [np.array([unit]) for unit in (3, 0, 2, 1)], np.arange(4)
    buckets = loss_by_clip_rarity([1.0, 2.0, 3.0, 4.0], tokens, frequencies, ["a", "b", "c", "b"], 2)
    assert [bucket.clips for bucket in buckets] == [[1, 3], [0, 2]]
    assert buckets[0].loss is None
    assert (buckets[1].loss.low, buckets[1].loss.value, buckets[1].loss.high) == (1, 2, 3)
    of_units = loss_by_unit_frequency([1.0, 2.0, 3.0, 4.0], tokens, frequencies, ["a", "b", "c", "b"], 2)
    assert of_units[0].loss is of_units[0].clips is None


def test_unit_edit_distances_by_hand():
    clean = [np.array([[1, 1, 2, 3]]), np.array([[4, 5]])]
    changed = {"same": clean, "far": [np.array([[1, 2, 2, 4]]), np.array([[4, 4]])]}
    distances = unit_edit_distances(clean, changed, ["a", "b"])
    assert distances["same"].value == 0
    assert distances["far"].value == pytest.approx(100 * 2 / 5)
    assert distances["far"].low == pytest.approx(100 / 3)
    assert distances["far"].high == pytest.approx(50)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: unit_usage(np.zeros(4)), "No unit occurs"),
        (lambda: token_facts([np.array([[4]])], 4, 50.0), "must lie in 0 to 3"),
        (lambda: loss_by_unit_frequency([1.0], [np.array([4])], np.ones(4), ["a"], 2), "below 4"),
        (lambda: loss_by_unit_frequency([1.0], [np.array([1])] * 2, np.ones(4), ["a"], 2), "there are 1, 2, 1"),
        (lambda: loss_by_unit_frequency([np.ones(3)], [np.array([1])], np.ones(4), ["a"], 2), "1 tokens, but 3"),
        (lambda: loss_by_unit_frequency([np.nan], [np.array([1])], np.ones(4), ["a"], 2), "not finite"),
        (lambda: loss_by_unit_frequency([1.0], [np.array([1])], np.ones(4), ["a"]), "number of units, 4"),
        (lambda: loss_by_clip_rarity([1.0], [np.array([1])], np.ones(4), ["a"]), "number of clips, 1"),
        (lambda: loss_by_clip_rarity([1.0], [np.array([], int)], np.ones(4), ["a"], 1), "at least one token"),
        (lambda: unit_edit_distances([np.ones((1, 1))], {"x": []}, ["a"]), "x must have 1 clips"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)


def test_units_are_merged_only_by_their_own_encoding():
    bpe = train_unit_bpe([np.array([0, 1, 0, 1])], 2, 5)
    with pytest.raises(ValueError, match="merges 2 units"):
        token_facts([np.array([[0, 2]])], 3, 50.0, bpe)
    with pytest.raises(ValueError, match="single codebook"):
        token_facts([np.array([[0, 1], [1, 0]])], 2, 50.0, bpe)
