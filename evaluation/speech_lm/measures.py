# SPDX-License-Identifier: Apache-2.0
"""Measures of synthesis that no codec has: what was skipped or repeated, and medians with their intervals."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from speech_tokenizers.evaluation.bootstrap import Estimate


@dataclass(frozen=True)
class PieceSlips:
    """
    How the pieces that were said differ from those that were asked for.

    Args:
        asked (`int`): Number of pieces that were asked for.
        skipped (`int`): Number of these that were not said in their place.
        added (`int`): Number of pieces that were said and not asked for, such as repeated ones.
    """

    asked: int
    skipped: int
    added: int


def count_slips(said: Sequence[Hashable], asked: Sequence[Hashable]) -> PieceSlips:
    """
    Compare pieces by their longest common subsequence. A piece that was replaced counts as skipped and as added.

    Args:
        said, asked (sequence): Pieces in order, such as phones or their ids.
    """
    # Longest common subsequence of all of `said` so far with each beginning of `asked`.
    common = [0] * (len(asked) + 1)
    for piece in said:
        before = 0
        for place, wanted in enumerate(asked, 1):
            before, common[place] = (
                common[place],
                before + 1 if piece == wanted else max(common[place], common[place - 1]),
            )
    return PieceSlips(len(asked), len(asked) - common[-1], len(said) - common[-1])


def bootstrap_median(
    values: Sequence[float], num_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Estimate | None:
    """
    The median, with its percentile interval when values are redrawn with replacement.

    Args:
        values (sequence of `float`): Value of each sentence.
        num_resamples, confidence, seed: See [`bootstrap_sums`].

    Returns:
        [`Estimate`], or `None` where there are no values.
    """
    if not len(values):
        return None
    table = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(table), (num_resamples, len(table)))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.median(table[draws], axis=1), [tail, 100 - tail])
    return Estimate(float(np.median(table)), float(low), float(high), len(table))
