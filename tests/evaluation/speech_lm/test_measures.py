# SPDX-License-Identifier: Apache-2.0
import itertools
import random

import numpy as np
import pytest

from speech_tokenizers.evaluation.speech_lm.measures import bootstrap_median, count_slips


@pytest.mark.parametrize(
    ("said", "skipped", "added"),
    [
        ("a b c a", 0, 0),
        ("a c a", 1, 0),
        ("a b b c a", 0, 1),  # repeated
        ("a b c a b c a", 0, 3),  # begun anew
        ("a x c a", 1, 1),  # replaced
        ("", 4, 0),
        ("a c b a", 1, 1),  # in another order
    ],
)
def test_slips_of_hand_counted_cases(said, skipped, added):
    slips = count_slips(said.split(), ["a", "b", "c", "a"])
    assert (slips.asked, slips.skipped, slips.added) == (4, skipped, added)


def test_slips_are_those_of_the_longest_common_subsequence_that_a_search_finds():
    generator = random.Random(0)
    for _ in range(100):
        said, asked = (generator.choices("ab", k=generator.randrange(7)) for _ in range(2))
        subsequences = [
            {kept for size in range(len(pieces) + 1) for kept in itertools.combinations(pieces, size)}
            for pieces in (said, asked)
        ]
        longest = max(map(len, subsequences[0] & subsequences[1]))
        slips = count_slips(said, asked)
        assert (slips.skipped, slips.added) == (len(asked) - longest, len(said) - longest)


def test_a_median_has_an_interval_that_one_outlier_does_not_move():
    values = [*np.linspace(1, 2, 99), 1e6]
    estimate = bootstrap_median(values)
    assert estimate.value == np.median(values)
    assert 1.3 < estimate.low < estimate.value < estimate.high < 1.7
    assert estimate.num_clips == 100
    assert bootstrap_median(values) == estimate
    assert bootstrap_median([]) is None


def test_the_interval_of_a_median_covers_the_truth_in_about_95_of_100_samples():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        estimate = bootstrap_median(generator.exponential(size=41), num_resamples=500)
        covered += estimate.low <= np.log(2) <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99
