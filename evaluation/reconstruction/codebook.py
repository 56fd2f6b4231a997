# SPDX-License-Identifier: Apache-2.0
"""
How a codec uses its codebooks: share of codes used, entropy, perplexity and the bit rate that entropy coding would
reach.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StageStatistics:
    """
    Use of one codebook over a set of clips.

    Args:
        num_used (`int`): Codes that occur at least once.
        codebook_size (`int`): Codes that there are.
        entropy (`float`): Empirical entropy of the codes, in bits a frame; at most log2 of `codebook_size`.
    """

    num_used: int
    codebook_size: int
    entropy: float

    @property
    def share_used(self) -> float:
        """Share of the codes that occur, 0 to 1."""
        return self.num_used / self.codebook_size

    @property
    def perplexity(self) -> float:
        """Size of the evenly used codebook that has the same entropy."""
        return 2.0**self.entropy


def stage_statistics(audio_codes: Iterable[np.ndarray], codebook_size: int | Sequence[int]) -> list[StageStatistics]:
    """
    Args:
        audio_codes (iterable of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of the clips, equal in
            `num_quantizers`.
        codebook_size (`int` or sequence of `int`): Entries per codebook, or of each.

    Returns:
        `list` of [`StageStatistics`]: One entry for each stage. The entropy is that of the sample. With few frames
        (fewer than some ten times `codebook_size`) it is too low, and codes may look unused.

    Raises:
        ValueError: If a code lies outside the codebook, or the clips differ in their number of stages.
    """
    counts: np.ndarray | None = None
    sizes = (codebook_size,) if isinstance(codebook_size, int) else tuple(codebook_size)
    largest = max(sizes)
    for codes in audio_codes:
        codes = np.asarray(codes)
        if codes.size and not (codes.min() >= 0 and codes.max() < largest):
            raise ValueError(f"Codes must lie in 0 to {largest - 1}, but got {codes.min()} to {codes.max()}.")
        if counts is None:
            counts = np.zeros((len(codes), largest), np.int64)
        if len(codes) != len(counts):
            raise ValueError(f"Every clip must have {len(counts)} stages, but one has {len(codes)}.")
        for stage, row in enumerate(codes):
            counts[stage] += np.bincount(row, minlength=largest)
    if counts is None or not counts.sum():
        return []
    sizes = sizes * len(counts) if isinstance(codebook_size, int) else sizes
    if len(sizes) != len(counts):
        raise ValueError(f"Sizes of {len(sizes)} codebooks were given, but there are {len(counts)} stages.")
    statistics = []
    for stage, (row, size) in enumerate(zip(counts, sizes, strict=True)):
        if row[size:].any():
            raise ValueError(f"Codes of stage {stage + 1} must lie in 0 to {size - 1}, but got larger ones.")
        shares = row[row > 0] / row.sum()
        # Adding zero turns the -0.0 of a codebook with a single used code into 0.0.
        statistics.append(StageStatistics(len(shares), size, float(-(shares * np.log2(shares)).sum()) + 0.0))
    return statistics


def entropy_bits_per_second(
    statistics: Iterable[StageStatistics], frame_rate: float, codebook_strides: Sequence[int] | None = None
) -> float:
    """
    Bit rate of an ideal entropy coder that treats stages and codes as independent, in bit/s.

    Args:
        statistics (iterable of [`StageStatistics`]): Use of each codebook.
        frame_rate (`float`): Frames a second.
        codebook_strides (sequence of `int`, *optional*): Frames that a code of each codebook lasts, and for which it
            is sent once. Defaults to one each.
    """
    return _bits_per_second([stage.entropy for stage in statistics], frame_rate, codebook_strides)


def nominal_bits_per_second(
    codebook_sizes: Sequence[int], frame_rate: float, codebook_strides: Sequence[int] | None = None
) -> float:
    """
    Bit rate of codes stored with log2 of their codebook's size in bits each, in bit/s.

    Args:
        codebook_sizes (sequence of `int`): Entries of each codebook.
        frame_rate (`float`): Frames a second.
        codebook_strides (sequence of `int`, *optional*): As in [`entropy_bits_per_second`].
    """
    return _bits_per_second([math.log2(size) for size in codebook_sizes], frame_rate, codebook_strides)


def _bits_per_second(bits: Sequence[float], frame_rate: float, strides: Sequence[int] | None) -> float:
    strides = [1] * len(bits) if strides is None else strides
    return frame_rate * sum(code / stride for code, stride in zip(bits, strides, strict=True))
