# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from speech_tokenizers.evaluation.bootstrap import bootstrap, bootstrap_sums, paired_difference, ratio


def test_means_and_ratios_by_hand():
    assert bootstrap([1.0, 2.0, 6.0]).value == 3.0
    # 3 errors in 6 words, not the mean of 1/1 and 2/5.
    assert bootstrap([1, 2], [1, 5]).value == 0.5
    assert bootstrap([4.0]) == bootstrap([4.0])
    assert (bootstrap([4.0]).low, bootstrap([4.0]).high, bootstrap([4.0]).num_clips) == (4.0, 4.0, 1)


def test_the_interval_of_a_normal_sample_is_the_textbook_one():
    sample = np.random.default_rng(0).standard_normal(400)
    estimate = bootstrap(sample)
    half_width = 1.96 * sample.std() / np.sqrt(len(sample))
    assert estimate.high - estimate.value == pytest.approx(half_width, rel=0.1)
    assert estimate.value - estimate.low == pytest.approx(half_width, rel=0.1)


def test_the_seed_decides_the_interval():
    sample = [1.0, 5.0, 2.0, 8.0]
    assert bootstrap(sample, seed=1) == bootstrap(sample, seed=1)


@pytest.mark.parametrize(("top", "bottom"), [([], None), ([0.0, 0.0], [0, 0])])
def test_nothing_to_average_is_none(top, bottom):
    assert bootstrap(top, bottom) is None


def test_any_statistic_of_sums_is_bootstrapped_like_the_ratio():
    generator = np.random.default_rng(0)
    errors, words = generator.integers(0, 5, 30), generator.integers(5, 20, 30)
    table = np.stack([errors, words], axis=1)
    assert bootstrap_sums(table, lambda sums: sums[..., 0] / sums[..., 1]) == bootstrap(errors, words)
    assert bootstrap_sums(np.zeros((3, 2)), ratio) is None
    assert bootstrap_sums(np.zeros((0, 2)), ratio) is None


def test_a_paired_difference_by_hand():
    # 6 / 10 against 3 / 12 words.
    estimate = paired_difference([[2, 4], [4, 6]], [[1, 6], [2, 6]], ratio)
    assert estimate.value == pytest.approx(6 / 10 - 3 / 12)
    # With two clips there are three samples: both, or one of them twice.
    assert estimate.low == pytest.approx(2 / 4 - 1 / 6)
    assert estimate.high == pytest.approx(max(6 / 10 - 3 / 12, 4 / 6 - 2 / 6))


def test_pairing_takes_out_what_both_systems_share():
    generator = np.random.default_rng(0)
    difficulty = generator.standard_normal(200)
    one, other = difficulty + 0.1, difficulty + 0.01 * generator.standard_normal(200)
    tables = [np.stack([scores, np.ones(200)], axis=1) for scores in (one, other)]
    difference = paired_difference(*tables, ratio)
    assert difference.low > 0.09
    assert difference.high < 0.11
    assert bootstrap(one).low < bootstrap(other).high  # the unpaired intervals overlap
    same = paired_difference(tables[0], tables[0], ratio)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_tables_of_different_clips_are_refused():
    with pytest.raises(ValueError, match="of one shape"):
        paired_difference(np.ones((2, 2)), np.ones((3, 2)), ratio)
