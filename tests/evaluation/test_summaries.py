# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from speech_tokenizers.evaluation.summaries import bootstrap


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
