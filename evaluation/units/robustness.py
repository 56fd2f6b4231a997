# SPDX-License-Identifier: Apache-2.0
"""
Unit edit distance: how much units change when a recording changes in ways that leave what is said as it is.

Both sequences are de-duplicated, so that a sound that lasts longer costs nothing. The distance is the least number of
units to be replaced, left out or put in, a hundred units of the clean recording, over all clips together, so that long
clips count more (NAST, https://huggingface.co/papers/2406.11037; first Gat et al. 2023,
https://huggingface.co/papers/2209.15483). It can exceed 100, and is 0 for units that never change at all: it is to be
read beside a measure of what units say.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np

from speech_tokenizers.evaluation.bootstrap import ratio
from speech_tokenizers.evaluation.units.agreement import joint_symbols
from speech_tokenizers.evaluation.units.code_statistics import run_lengths
from speech_tokenizers.processing.word_alignment import edit_distance


class UnitEdits(NamedTuple):
    """
    Args:
        edits (`int`): Least number of de-duplicated units to be replaced, left out or put in.
        num_units (`int`): Number of de-duplicated units of the clean recording.
    """

    edits: int
    num_units: int


def unit_edits(clean: np.ndarray, changed: np.ndarray) -> UnitEdits:
    """
    Compare the codes of a recording with those of its changed version.

    Args:
        clean, changed (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codes; of several quantizers all those
            of a frame together are one unit.

    Raises:
        ValueError: If the numbers of quantizers differ.
    """
    if clean.ndim != 2 or changed.ndim != 2 or len(clean) != len(changed):
        raise ValueError(
            "`clean` and `changed` must be of shape (num_quantizers, num_frames) with as many quantizers, but are of "
            f"shapes {clean.shape} and {changed.shape}."
        )
    units, changed_units = joint_symbols([run_lengths(clean)[0], run_lengths(changed)[0]])
    return UnitEdits(edit_distance(changed_units.tolist(), units.tolist()), len(units))


def unit_edit_distance(sums: np.ndarray) -> np.ndarray:
    """
    The distance in percent, of shape `(...)`; NaN where there are no units.

    Args:
        sums (`np.ndarray` of shape `(..., 2)`): Sums of [`UnitEdits`] over clips.
    """
    return 100 * ratio(np.asarray(sums, np.float64))


class UnitEditDistance(evaluate.Metric):
    """
    Unit edit distance over all clips, in percent.

    `compute(predictions=..., references=...)` takes the units of each changed and of each clean recording, frame by
    frame or de-duplicated, as lists of integers. It returns `ued`, `None` where there is no clean unit, `num_units`,
    the de-duplicated clean units, and `num_clips`.
    """

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=(self.__doc__ or "").strip(),
            citation="",
            inputs_description="predictions, references: units of the frames of each changed and each clean recording",
            features=datasets.Features({"predictions": numbers, "references": numbers}),
        )

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, Any]:
        edits = [
            unit_edits(np.asarray([clean], np.int64), np.asarray([changed], np.int64))
            for changed, clean in zip(predictions, references, strict=True)
        ]
        sums = np.array(edits, np.int64).reshape(-1, 2).sum(axis=0)
        return {
            "ued": float(unit_edit_distance(sums)) if sums[1] else None,
            "num_units": int(sums[1]),
            "num_clips": len(edits),
        }
