# SPDX-License-Identifier: Apache-2.0
"""Batches of recordings of like length, filled by their length and not by their number."""

from collections.abc import Mapping, Sequence

import numpy as np


def pack_by_length(
    lengths: Sequence[int] | Mapping[int, int] | np.ndarray, order: Sequence[int] | np.ndarray, size: int
) -> list[list[int]]:
    """
    Cut an order of recordings into batches that are as full as they can be.

    Args:
        lengths (sequence or mapping of `int`): Length of each recording.
        order (sequence of `int`): Indices of recordings, those of like length beside each other.
        size (`int`): Largest product of the longest length in a batch and the number of its recordings. A recording
            that is longer alone is a batch of its own.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        length = int(lengths[index])
        if batches and max(longest, length) * (len(batches[-1]) + 1) <= size:
            batches[-1].append(int(index))
            longest = max(longest, length)
        else:
            batches.append([int(index)])
            longest = length
    return batches
