# SPDX-License-Identifier: Apache-2.0
"""Means over clips with bootstrap confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    r"""
    A mean (or a ratio of sums) over clips.

    Args:
        value (`float`): The estimate.
        low, high (`float`): Ends of its 95 % bootstrap interval over clips.
        num_clips (`int`): Clips that it is taken over.
    """

    value: float
    low: float
    high: float
    num_clips: int


def bootstrap(
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    r"""
    Estimate sum(numerators) / sum(denominators) over clips, with its percentile interval when clips are redrawn with
    replacement.

    Args:
        numerators (sequence of `float`): A clip's score, or its number of errors.
        denominators (sequence of `float`, *optional*): A clip's number of words. Defaults to 1 each, which gives the
            mean.
        num_resamples (`int`, *optional*, defaults to 2000): Bootstrap samples.
        confidence (`float`, *optional*, defaults to 0.95): Coverage of the interval.
        seed (`int`, *optional*, defaults to 0): Of the resampling; equal input gives an equal interval.

    Returns:
        [`Estimate`], or `None` where there are no clips or the denominators sum to zero.
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    if not len(top) or bottom.sum() == 0:
        return None
    draws = np.random.default_rng(seed).integers(0, len(top), (num_resamples, len(top)))
    sums = bottom[draws].sum(1)
    ratios = top[draws].sum(1)[sums > 0] / sums[sums > 0]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high), len(top))
