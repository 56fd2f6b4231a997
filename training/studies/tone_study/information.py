# SPDX-License-Identifier: Apache-2.0
"""How much units tell of a tone beyond what the final tells, in bits a frame."""

from collections.abc import Sequence

import numpy as np


# Tones that are dealt out anew within finals, to measure what chance alone gives.
_NUM_DEALS = 5


def conditional_information(
    units: Sequence[np.ndarray], labels: Sequence[str], given: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """
    I(label; unit | given) of the frames of clips, estimated by counting.

    With many units and few clips, counts find information where there is none. So labels are dealt out anew among the
    clips that share what is given, and what is found then, on average, is subtracted.

    Args:
        units (sequence of `np.ndarray` of shape `(num_frames,)`): Units of each clip, whole numbers.
        labels (sequence of `str`): Label of each clip, such as its tone.
        given (sequence of `str`): What is known of each clip, such as its final.
        seed (`int`, *optional*, defaults to 0): Seed of the dealing.

    Returns:
        `dict`: `bits`, the corrected estimate in bits a frame; `chance`, what was subtracted; and `label_bits`,
            H(label | given), which no unit can exceed.
    """
    lengths = np.array([len(row) for row in units])
    _, unit_of = np.unique(np.concatenate(units), return_inverse=True)
    _, label_of = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    _, given_of = np.unique(np.asarray(given, dtype=object).astype(str), return_inverse=True)
    context = np.repeat(given_of, lengths)
    with_unit = context * (unit_of.max() + 1) + unit_of
    generator = np.random.default_rng(seed)

    def found(numbers: np.ndarray) -> float:
        label = np.repeat(numbers, lengths)
        of_label, size = label_of.max() + 1, len(label)

        def bits(values: np.ndarray) -> float:
            shares = np.unique(values, return_counts=True)[1] / size
            return float(-(shares * np.log2(shares)).sum())

        return bits(context * of_label + label) - bits(context) - bits(with_unit * of_label + label) + bits(with_unit)

    dealt = []
    for _ in range(_NUM_DEALS):
        numbers = label_of.copy()
        for value in range(given_of.max() + 1):
            places = np.flatnonzero(given_of == value)
            numbers[places] = numbers[generator.permutation(places)]
        dealt.append(found(numbers))
    chance = float(np.mean(dealt))
    joint = np.repeat(given_of * (label_of.max() + 1) + label_of, lengths)
    shares = np.unique(joint, return_counts=True)[1] / len(joint)
    shares_given = np.unique(context, return_counts=True)[1] / len(joint)
    label_bits = float((shares_given * np.log2(shares_given)).sum() - (shares * np.log2(shares)).sum())
    return {"bits": found(label_of) - chance, "chance": chance, "label_bits": label_bits}


__all__ = ["conditional_information"]
