# SPDX-License-Identifier: Apache-2.0
"""
Bootstrap confidence intervals over clips, for whatever is a function of counts summed over clips.

A mean is (sum of scores) / (number of clips), an error rate (sum of errors) / (sum of words), a macro-averaged F1 a
function of summed hits by class. Redrawing clips redraws rows of a table of counts, so one function serves them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


# A function of sums over clips, of shape (..., num_counts). It gives the value, of shape (...), NaN where there is
# none.
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """
    A statistic of a set of clips.

    Args:
        value (`float`): Value of the statistic.
        low, high (`float`): Ends of its 95 % bootstrap interval over clips.
        num_clips (`int`): Number of clips that it is taken over.
    """

    value: float
    low: float
    high: float
    num_clips: int


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first sum divided by the second: a mean where the second counts clips, an error rate where it is words."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def bootstrap_sums(
    counts: np.ndarray,
    statistic: Statistic,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """
    Estimate a statistic, with its percentile interval when clips are redrawn with replacement.

    Args:
        counts (`np.ndarray` of shape `(num_clips, num_counts)`): Contribution of each clip to the sums.
        statistic (`Callable`): Function that maps the sums `(..., num_counts)` to the value `(...)`.
        num_resamples (`int`, *optional*, defaults to 2000): Number of bootstrap samples.
        confidence (`float`, *optional*, defaults to 0.95): Coverage of the interval.
        seed (`int`, *optional*, defaults to 0): Seed for the resampling. Equal input gives an equal interval.

    Returns:
        [`Estimate`], or `None` where there are no clips or the statistic has no value.
    """
    return _estimate(np.asarray(counts, np.float64), statistic, num_resamples, confidence, seed)


def bootstrap(
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """
    `bootstrap_sums` of sum(numerators) / sum(denominators).

    Args:
        numerators (sequence of `float`): Score of each clip, or its number of errors.
        denominators (sequence of `float`, *optional*): Number of words of each clip. Defaults to 1 each, which gives
            the mean.
        num_resamples, confidence, seed: See [`bootstrap_sums`].
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    return bootstrap_sums(np.stack([top, bottom], axis=-1), ratio, num_resamples, confidence, seed)


def paired_difference(
    counts: np.ndarray,
    baseline: np.ndarray,
    statistic: Statistic,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """
    Estimate by how much a statistic of one system exceeds that of another on the same clips.

    Each bootstrap sample draws clips, and takes both systems' counts of these. What makes a clip hard for both
    cancels, so that the interval is narrower than that of either system.

    Args:
        counts, baseline (`np.ndarray` of shape `(num_clips, num_counts)`): Counts of the two systems, clip by clip.
        statistic, num_resamples, confidence, seed: See [`bootstrap_sums`].

    Raises:
        ValueError: If the two tables differ in shape.
    """
    counts, baseline = np.asarray(counts, np.float64), np.asarray(baseline, np.float64)
    if counts.shape != baseline.shape:
        raise ValueError(f"`counts` and `baseline` must be of one shape, but got {counts.shape} and {baseline.shape}.")
    width = counts.shape[-1]

    def difference(sums: np.ndarray) -> np.ndarray:
        return statistic(sums[..., :width]) - statistic(sums[..., width:])

    both = np.concatenate([counts, baseline], axis=-1)
    return _estimate(both, difference, num_resamples, confidence, seed)


def _estimate(
    counts: np.ndarray, statistic: Statistic, num_resamples: int, confidence: float, seed: int
) -> Estimate | None:
    if not len(counts):
        return None
    value = float(statistic(counts.sum(0)))
    if np.isnan(value):
        return None
    num_clips = len(counts)
    draws = np.random.default_rng(seed).integers(0, num_clips, (num_resamples, num_clips))
    # How often each sample has each clip, (num_resamples, num_clips).
    cells = draws + num_clips * np.arange(num_resamples)[:, None]
    times_drawn = np.bincount(cells.reshape(-1), minlength=cells.size).reshape(draws.shape)
    values = statistic(times_drawn @ counts)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values[~np.isnan(values)], [tail, 100 - tail])
    return Estimate(value, float(low), float(high), num_clips)
