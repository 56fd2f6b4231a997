# SPDX-License-Identifier: Apache-2.0
"""What a fit of units found."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class UnitsFit:
    """
    What a fit of units found.

    Args:
        num_frames (`int`): Frames that were clustered.
        seconds (`float`): Their duration.
        distortion (`list[float]`): Of each codebook, the mean squared distance of all frames from their centroids.
        explained (`list[float]`): Of each codebook, the share of the frames' variance that it and those before it in
            its stream account for.
        kept (`dict`, *optional*): What was done to keep labels that were named; see [`KeptPlan`].
    """

    num_frames: int
    seconds: float
    distortion: list[float]
    explained: list[float]
    kept: dict[str, Any] | None = None
