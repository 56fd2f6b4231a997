# SPDX-License-Identifier: Apache-2.0
"""
How far units agree with phones or characters, frame by frame: normalised mutual information and the two purities.

With p(u, l) the share of frames that hold unit u and label l (HuBERT, section IV-D: https://huggingface.co/papers/2106.07447):

- normalised mutual information I(u; l) / H(l), PNMI where labels are phones and CNMI where they are characters;
- label purity (phone purity), sum over u of max over l of p(u, l): the accuracy of naming each unit by its label;
- unit purity (cluster purity), sum over l of max over u of p(u, l).

All three grow with the number of units even where units say nothing: with U units, L labels and N independent frames
chance alone adds about (U - 1)(L - 1) / (2 N) nats to the mutual information (Miller 1955), and more where frames that
are neighbours are alike. [`roll_labels`] gives the value that chance reaches on the same frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np
from scipy import sparse

from speech_tokenizers.evaluation.bootstrap import Estimate


class Agreement(NamedTuple):
    """
    How far units agree with labels, each from 0 to 1; NaN where there are no frames.

    Args:
        mutual_information (`float` or `np.ndarray`): I(unit; label) / H(label); NaN where there is one label only.
        label_purity (`float` or `np.ndarray`): Share of frames whose label is the commonest of their unit.
        unit_purity (`float` or `np.ndarray`): Share of frames whose unit is the commonest of their label.
    """

    mutual_information: Any
    label_purity: Any
    unit_purity: Any


def agreement(table: np.ndarray) -> Agreement:
    """
    Args:
        table (`np.ndarray` of shape `(num_units, num_labels)`): Number of frames of each unit and label.
    """
    units, labels = np.nonzero(table)
    measured = _CellMeasure(units, labels)(np.asarray(table, np.float64)[units, labels])
    return Agreement(*(float(value) for value in measured))


def joint_symbols(audio_codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """
    One number for the codes of all quantizers at a frame, equal where all are equal, over all clips.

    Args:
        audio_codes (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of the clips.

    Returns:
        `list` of `np.ndarray` of shape `(num_frames,)`: Number of each frame's tuple of codes, from 0, in the order of
        the tuples.
    """
    lengths = [codes.shape[1] for codes in audio_codes]
    _, numbers = np.unique(np.concatenate(audio_codes, axis=1), axis=1, return_inverse=True)
    return np.split(numbers.reshape(-1), np.cumsum(lengths)[:-1])


def repeat_units(units: np.ndarray, labels: np.ndarray, upsample: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Bring units to the rate of labels as the published PNMI does: repeat each, then cut both to the shorter.

    Args:
        units (`np.ndarray` of shape `(num_frames,)`), labels (`np.ndarray` of shape `(num_labels,)`): Units and labels
            of one clip.
        upsample (`int`): Number of labels for each unit: 2 for units at 50 Hz and phones at 100 Hz.
    """
    repeated = np.repeat(units, upsample)
    length = min(len(repeated), len(labels))
    return repeated[:length], labels[:length]


def roll_labels(labels: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """
    The control: labels keep their order and their durations, and are moved to where other sounds are.

    The labels of all clips form one ring. It is turned by a random part, between a quarter and three quarters, so that
    the shares of labels and the lengths of sounds stay. Shuffling single frames would hide how much chance agreement
    comes from neighbours that are alike.

    Args:
        labels (sequence of `np.ndarray` of shape `(num_frames,)`): Labels of each clip. A -1, which stands for no
            label, stays where it is.
        seed (`int`, *optional*, defaults to 0): Seed for the turn.
    """
    together = np.concatenate(labels)
    labelled = together >= 0
    num_labelled = int(labelled.sum())
    turn = int(np.random.default_rng(seed).integers(num_labelled // 4, 3 * num_labelled // 4 + 1))
    together[labelled] = np.roll(together[labelled], turn)
    return np.split(together, np.cumsum([len(part) for part in labels])[:-1])


def joint_counts(
    units: Sequence[np.ndarray], labels: Sequence[np.ndarray], groups: Sequence[str] | None = None
) -> "JointCounts":
    """
    Count how often each unit falls together with each label.

    Args:
        units (sequence of `np.ndarray` of shape `(num_frames,)`): Units of each clip. With several quantizers, they
            are the codes of one of them, or [`joint_symbols`].
        labels (sequence of `np.ndarray` of shape `(num_frames,)`): Label of each frame as a number, -1 for none, as
            [`~evaluation.frame_labels.label_frames`] gives it.
        groups (sequence of `str`, *optional*): Group of each clip, such as its speaker. The bootstrap redraws whole
            groups. Defaults to a group for each clip.

    Raises:
        ValueError: If units and labels differ in length, or no frame has a label.
    """
    units, labels = [np.asarray(part) for part in units], [np.asarray(part) for part in labels]
    names = range(len(units)) if groups is None else groups
    if not len(units) == len(labels) == len(names):
        raise ValueError(
            f"`units`, `labels` and `groups` must have an entry a clip, but have {len(units)}, {len(labels)} and"
            f" {len(names)}."
        )
    for number, (clip_units, clip_labels) in enumerate(zip(units, labels, strict=True)):
        if clip_units.shape != clip_labels.shape or clip_units.ndim != 1:
            raise ValueError(
                f"`units` and `labels` must be of one shape (num_frames,), but clip {number} has {clip_units.shape}"
                f" and {clip_labels.shape}; label the frames of the units, or use `repeat_units`."
            )
    if not any((part >= 0).any() for part in labels):
        raise ValueError("`labels` holds no labelled frame.")

    keep = np.concatenate(labels) >= 0
    _, group_numbers = np.unique(np.asarray(names), return_inverse=True)
    frame_groups = np.repeat(group_numbers, [len(part) for part in units])[keep]
    unit_numbers, frame_units = np.unique(np.concatenate(units)[keep], return_inverse=True)
    label_numbers, frame_labels = np.unique(np.concatenate(labels)[keep], return_inverse=True)
    cells, frame_cells = np.unique(frame_units * len(label_numbers) + frame_labels, return_inverse=True)
    counts = sparse.coo_array(
        (np.ones(len(frame_cells)), (frame_groups, frame_cells)), shape=(group_numbers.max() + 1, len(cells))
    ).tocsr()
    return JointCounts(unit_numbers, label_numbers, *np.divmod(cells, len(label_numbers)), counts)


@dataclass(frozen=True)
class JointCounts:
    """
    Frames of each unit and label, by clip or group of clips; only pairs that occur take memory.

    Args:
        units (`np.ndarray` of shape `(num_units,)`), labels (`np.ndarray` of shape `(num_labels,)`): Units and labels
            that occur.
        cell_units, cell_labels (`np.ndarray` of shape `(num_cells,)`): Pairs that occur, as positions in `units` and
            `labels`.
        counts (`scipy.sparse.csr_array` of shape `(num_groups, num_cells)`): Number of frames of each pair in each
            group.
    """

    units: np.ndarray
    labels: np.ndarray
    cell_units: np.ndarray
    cell_labels: np.ndarray
    counts: sparse.csr_array

    @property
    def num_units(self) -> int:
        """Number of units that occur."""
        return len(self.units)

    @property
    def num_labels(self) -> int:
        """Number of labels that occur."""
        return len(self.labels)

    @property
    def num_frames(self) -> int:
        """Number of frames with a label."""
        return int(self.counts.sum())

    def table(self) -> np.ndarray:
        """
        Number of frames over all clips, of shape `(num_units, num_labels)`, without units and labels that never occur.
        """
        table = np.zeros((self.num_units, self.num_labels), np.int64)
        table[self.cell_units, self.cell_labels] = self.counts.sum(axis=0)
        return table

    def value(self) -> Agreement:
        """The agreement over all clips."""
        return agreement(self.table())

    def estimates(self, num_resamples: int = 500, confidence: float = 0.95, seed: int = 0) -> dict[str, Estimate]:
        """
        The agreement, with intervals when clips (or groups) are redrawn with replacement.

        Redrawn clips repeat each other, which adds to the bias that the value has already. So the percentile interval
        is moved until the mean of the redrawn values is the value. The interval shows the spread; [`roll_labels`]
        shows the bias.

        Args:
            num_resamples (`int`, *optional*, defaults to 500): Number of bootstrap samples.
            confidence (`float`, *optional*, defaults to 0.95): Coverage of the intervals.
            seed (`int`, *optional*, defaults to 0): Seed for the resampling.

        Returns:
            `dict` of `str` to [`Estimate`]: Estimates by the names of [`Agreement`]. Their `num_clips` counts clips or
            groups.
        """
        measure = _CellMeasure(self.cell_units, self.cell_labels)
        generator = np.random.default_rng(seed)
        num_groups, num_cells = self.counts.shape
        # Some 4 million sums at a time bound the memory.
        at_once = max(1, min(num_resamples, 4_000_000 // num_cells))
        redrawn = []
        for start in range(0, num_resamples, at_once):
            size = min(at_once, num_resamples - start)
            times_drawn = generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size)
            redrawn.append(np.stack(measure((self.counts.T @ times_drawn.T).T)))
        tail = 100 * (1 - confidence) / 2
        estimates = {}
        for name, value, values in zip(Agreement._fields, self.value(), np.concatenate(redrawn, axis=1), strict=True):
            low, high = value - np.nanmean(values) + np.nanpercentile(values, [tail, 100 - tail])
            estimates[name] = Estimate(value, float(low), float(high), num_groups)
        return estimates


class _CellMeasure:
    # The agreement from sums by cell, (..., num_cells), where cell k is unit `units[k]` with label `labels[k]`.
    def __init__(self, units: np.ndarray, labels: np.ndarray):
        self.by_unit, self.unit_starts = _grouping(units)
        self.by_label, self.label_starts = _grouping(labels)

    def __call__(self, sums: np.ndarray) -> Agreement:
        by_unit, by_label = sums[..., self.by_unit], sums[..., self.by_label]
        num_frames = sums.sum(-1)
        unit_sums = np.add.reduceat(by_unit, self.unit_starts, axis=-1)
        label_sums = np.add.reduceat(by_label, self.label_starts, axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            label_entropy = _entropy(label_sums, num_frames)
            shared = label_entropy + _entropy(unit_sums, num_frames) - _entropy(sums, num_frames)
            return Agreement(
                np.where(label_entropy > 0, shared / label_entropy, np.nan),
                np.maximum.reduceat(by_unit, self.unit_starts, axis=-1).sum(-1) / num_frames,
                np.maximum.reduceat(by_label, self.label_starts, axis=-1).sum(-1) / num_frames,
            )


def _grouping(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # An order that puts equal numbers together, and where each number starts in it.
    order = np.argsort(numbers, kind="stable")
    return order, np.flatnonzero(np.diff(numbers[order], prepend=-1))


def _entropy(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    shares = counts / total[..., None]
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1)


class UnitAgreement(evaluate.Metric):
    """
    Agreement of units with phones or characters, frame by frame, over all clips.

    `compute(predictions=..., references=..., upsample=1)` takes the units and the labels of each clip, lists of
    integers, -1 for a frame without a label. It returns `mutual_information`, `label_purity` and `unit_purity` (see
    [`Agreement`]) and `num_frames`. Each unit stands for `upsample` labels, and the longer of the two is cut, see
    [`repeat_units`].
    """

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=(self.__doc__ or "").strip(),
            citation="",
            inputs_description="predictions, references: units and labels of the frames of each clip",
            features=datasets.Features({"predictions": numbers, "references": numbers}),
        )

    def _compute(
        self, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], upsample: int = 1
    ) -> dict[str, Any]:
        pairs = [
            repeat_units(np.asarray(units, np.int64), np.asarray(labels, np.int64), upsample)
            for units, labels in zip(predictions, references, strict=True)
        ]
        counts = joint_counts([units for units, _ in pairs], [labels for _, labels in pairs])
        return {**counts.value()._asdict(), "num_frames": counts.num_frames}
