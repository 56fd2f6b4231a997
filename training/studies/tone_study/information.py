# SPDX-License-Identifier: Apache-2.0
"""How much units tell of a tone beyond what the final tells, in bits a frame."""

from collections.abc import Sequence

import numpy as np


# Frames that the shares of all frames count for beside those of a unit, or of a final.
_BACKED_OFF = 10.0


def conditional_information(
    units: Sequence[np.ndarray], labels: Sequence[str], given: Sequence[str], is_learnt: Sequence[bool] | np.ndarray
) -> float:
    """
    A lower bound of I(label; unit | given) in bits a frame, of clips that nothing was learnt from.

    Counting alone finds information where there is none, the more units there are. So the shares of labels for each
    unit, and for what is given, are learnt from some clips, and the bound is by how many bits a frame the unit lessens
    the surprise at the labels of the others. It is below 0 where units mislead. Unit and final are taken to speak
    independently of the label, which can only lower the bound. Shares lean on those of all frames, as if ten frames of
    these had been seen, so that rare units say little.

    Args:
        units (sequence of `np.ndarray` of shape `(num_frames,)`): Units of each clip, whole numbers.
        labels (sequence of `str`): Label of each clip, such as its tone.
        given (sequence of `str`): What is known of each clip, such as its final.
        is_learnt (sequence of `bool`): Whether the shares are learnt from a clip; the others are measured.

    Raises:
        ValueError: If there is nothing to learn from, or nothing to measure.
    """
    lengths = np.array([len(row) for row in units])
    learnt = np.repeat(np.asarray(is_learnt, bool), lengths)
    if learnt.all() or not learnt.any():
        raise ValueError("There must be frames to learn from, and others to measure.")
    unit_of = np.unique(np.concatenate(units), return_inverse=True)[1]
    label_of, given_of = (
        np.repeat(np.unique(np.asarray(values, dtype=str), return_inverse=True)[1], lengths)
        for values in (labels, given)
    )
    num_labels = label_of.max() + 1

    def counted(context: np.ndarray) -> np.ndarray:
        counts = np.bincount(
            context[learnt] * num_labels + label_of[learnt], minlength=(context.max() + 1) * num_labels
        )
        return counts.reshape(-1, num_labels).astype(float)

    overall = counted(np.zeros_like(label_of)) + 1
    overall /= overall.sum()
    of_given = counted(given_of) + _BACKED_OFF * overall
    of_given /= of_given.sum(1, keepdims=True)
    expected = of_given[given_of[~learnt]]
    of_unit = counted(unit_of) + _BACKED_OFF * overall
    told = expected * (of_unit / of_unit.sum(1, keepdims=True))[unit_of[~learnt]] / overall
    told /= told.sum(1, keepdims=True)
    places = np.arange(len(told)), label_of[~learnt]
    return float(np.log2(told[places] / expected[places]).mean())


__all__ = ["conditional_information"]
