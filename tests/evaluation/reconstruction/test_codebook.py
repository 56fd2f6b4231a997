# SPDX-License-Identifier: Apache-2.0
import math
from collections import Counter

import numpy as np
import pytest

from speech_tokenizers.evaluation.reconstruction.codebook import (
    entropy_bits_per_second,
    nominal_bits_per_second,
    stage_statistics,
)


def test_hand_computed_stages():
    # Stage 1 uses four codes evenly: 2 bits. Stage 2 uses one: 0 bits. Stage 3: half, quarter, quarter: 1.5 bits.
    codes = [np.array([[0, 1], [5, 5], [7, 7]]), np.array([[2, 3], [5, 5], [1, 2]])]
    stages = stage_statistics(codes, 8)
    assert [stage.entropy for stage in stages] == [2.0, 0.0, 1.5]
    assert [stage.num_used for stage in stages] == [4, 1, 3]
    assert [stage.share_used for stage in stages] == [0.5, 0.125, 0.375]
    assert [stage.perplexity for stage in stages] == pytest.approx([4.0, 1.0, 2**1.5])
    assert entropy_bits_per_second(stages, 50.0) == 175.0
    assert nominal_bits_per_second([8, 8, 8], 50.0) == 450.0


def test_entropy_equals_a_naive_version():
    codes = np.random.default_rng(0).integers(0, 20, (2, 500)) ** 2 // 20
    for stage, row in zip(stage_statistics([codes[:, :100], codes[:, 100:]], 20), codes.tolist(), strict=True):
        counts = Counter(row)
        assert stage.entropy == pytest.approx(-sum(n / 500 * math.log2(n / 500) for n in counts.values()))
        assert stage.num_used == len(counts)


def test_codebooks_of_different_sizes_are_counted_each_by_its_own():
    codes = [np.array([[0, 7, 3, 2], [0, 1, 1, 0]])]
    stages = stage_statistics(codes, [8, 2])
    assert [stage.share_used for stage in stages] == [0.5, 1.0]
    assert nominal_bits_per_second([stage.codebook_size for stage in stages], 50.0) == 50 * (3 + 1)
    with pytest.raises(ValueError, match="Codes of stage 2 must lie in 0 to 1"):
        stage_statistics([np.array([[0], [2]])], [8, 2])
    with pytest.raises(ValueError, match="Sizes of 3 codebooks were given, but there are 2 stages"):
        stage_statistics(codes, [8, 2, 2])


def test_no_codes_have_no_statistics():
    assert stage_statistics([], 8) == []


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must lie in 0 to 7, but got 0 to 8"):
        stage_statistics([np.array([[0, 8]])], 8)
    with pytest.raises(ValueError, match="must have 1 stages, but one has 2"):
        stage_statistics([np.zeros((1, 3), int), np.zeros((2, 3), int)], 8)
