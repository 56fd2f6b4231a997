# SPDX-License-Identifier: Apache-2.0
"""What counts as a sampling rate."""

import math
import numbers
from typing import Any


# Rates of audio, in Hz. Others are mistakes, and a second of audio at 1 Hz would become hours of work.
PLAUSIBLE_RATES = range(1000, 1_000_001)


def whole_sampling_rate(sampling_rate: Any, name: str = "sampling_rate") -> int:
    """
    Args:
        sampling_rate (`int` or `float`): Sampling rate in Hz, as a user gave it. A whole number of any type counts:
            44100.0 is 44100.
        name (`str`, *optional*, defaults to `"sampling_rate"`): Name of the argument, for messages.

    Returns:
        `int`: The rate.

    Raises:
        ValueError: If it is no number, not positive or not whole.
    """
    # NumPy's and torch's numbers.
    number = sampling_rate.item() if getattr(sampling_rate, "shape", None) == () else sampling_rate
    is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
    if not is_number or not math.isfinite(number) or number <= 0 or number != int(number):
        raise ValueError(f"`{name}` must be a positive whole number of Hz, such as 16000, but got {sampling_rate!r}.")
    return int(number)


__all__ = ["PLAUSIBLE_RATES", "whole_sampling_rate"]
