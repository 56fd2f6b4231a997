# SPDX-License-Identifier: Apache-2.0
"""
What the answers of a task's arms say: scores, paired differences, and bits of the true answers, with intervals.

All that is compared is a function of counts, clip by clip, so that one bootstrap of groups serves percent and bits.
Seeds are averaged over; a difference is taken over the seeds that both arms have.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speech_tokenizers.evaluation.bootstrap import Estimate, Statistic, bootstrap_sums, paired_difference, ratio
from speech_tokenizers.evaluation.understanding.metrics import METRICS, counts
from speech_tokenizers.evaluation.units.measures import grouped
from speech_tokenizers.training.studies.measured_files import plain
from speech_tokenizers.training.studies.token_study.arguments import CONTROL_ARMS, TokenStudyArguments
from speech_tokenizers.training.studies.token_study.cells import Cell, answers_of, common_names, facts_of


REFERENCE, UNITS, MERGED, CENTROIDS = "continuous", "units", "units+bpe", "centroids"
NO_AUDIO, OTHER_AUDIO = "no-audio", "other-audio"
# The measure that language models have of every task: bits of an id of the true answer, its end among them.
BITS = "bits"
_NUM_RESAMPLES = 1000

# Arm -> seed -> cell, of one task.
TaskCells = Mapping[str, Mapping[int, Cell]]


@dataclass(frozen=True)
class Measure:
    """
    What arms are compared by: a metric of answers, or bits.

    Args:
        title (`str`): Title for tables.
        higher_is_better (`bool`): Whether a higher value is better.
        statistic (`Callable`): Function of summed counts that gives the value.
        digits (`int`): Digits after the point that are shown.
    """

    title: str
    higher_is_better: bool
    statistic: Statistic = dataclasses.field(repr=False)
    digits: int = 1

    @property
    def heading(self) -> str:
        """The title with an arrow to the better side."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"

    def is_better(self, less: Mapping[str, Any]) -> bool:
        """Whether the interval of a difference lies on the better side of 0."""
        return less["low"] > 0 if self.higher_is_better else less["high"] < 0


def measure_of(name: str) -> Measure:
    """The measure of a name: `"bits"`, or a key of `METRICS`."""
    if name == BITS:
        return Measure("Bits an id", False, ratio, digits=2)
    metric = METRICS[name]
    return Measure(metric.title, metric.higher_is_better, metric.statistic)


class TaskCounts:
    """
    Counts of the answers of a task's arms to the clips that all answered. Each is counted once.

    Args:
        task (`str`): Name of the task, for errors.
        cells (mapping of `str` to mapping of `int` to [`Cell`]): The cells of each arm by their seeds.
        fixed (collection of `str`, *optional*): Arms of one seed that would answer the same with any other, such as
            exact probes; they stand beside all seeds of others.

    Raises:
        ValueError: If the cells have different true answers, or fewer than two groups.
    """

    def __init__(self, task: str, cells: TaskCells, fixed: Collection[str] = ()):
        every = [cell for of_seeds in cells.values() for cell in of_seeds.values()]
        self.task, self.cells, self.fixed = task, cells, fixed
        self.names = common_names(every)
        self.targets, self.groups = facts_of(every[0], self.names)
        if any(facts_of(cell, self.names) != (self.targets, self.groups) for cell in every):
            raise ValueError(
                f"the cells of the task {task!r} have different true answers; remove them to measure anew."
            )
        if len(set(self.groups)) < 2:
            raise ValueError(f"the clips that all arms of {task!r} answered have one group; an interval needs two.")
        self._tables: dict[tuple[str, str, int], np.ndarray] = {}

    def has_bits(self, arm: str) -> bool:
        """Whether the bits of the true answers are known with all seeds of an arm."""
        return arm in self.cells and all(BITS in cell.facts for cell in self.cells[arm].values())

    def by_seed(self, measure: str, arm: str) -> dict[int, float]:
        """Value of a measure with each seed of an arm."""
        statistic = measure_of(measure).statistic
        return {seed: float(statistic(self._table(measure, arm, seed).sum(0))) for seed in self.cells[arm]}

    def value(self, measure: str, arm: str) -> Estimate:
        """Value of a measure for an arm, its seeds averaged over."""
        table = self._mean(measure, arm, list(self.cells[arm]))
        return self._told(bootstrap_sums(self._grouped(table), measure_of(measure).statistic, _NUM_RESAMPLES), measure)

    def less(self, measure: str, one: str, other: str) -> Estimate | None:
        """By how much an arm exceeds another, paired; `None` where they have no seed in common."""
        tables = self._pair(measure, one, other)
        if tables is None:
            return None
        mine, others = (self._grouped(table) for table in tables)
        return self._told(paired_difference(mine, others, measure_of(measure).statistic, _NUM_RESAMPLES), measure)

    def less_by_seed(self, measure: str, one: str, other: str) -> dict[int, float]:
        """[`less`] with each seed that both arms have; a fixed arm has all seeds of the other."""
        mine, others = self.by_seed(measure, one), self.by_seed(measure, other)
        if one in self.fixed:
            mine = dict.fromkeys(others, next(iter(mine.values())))
        elif other in self.fixed:
            others = dict.fromkeys(mine, next(iter(others.values())))
        return {seed: value - others[seed] for seed, value in mine.items() if seed in others}

    def change_of_difference(self, larger: "TaskCounts", measure: str, one: str, other: str) -> Estimate | None:
        """
        By how much the difference of two arms at another level exceeds that at this one, on the clips of both.

        Args:
            larger ([`TaskCounts`]): The answers at the other level.
            measure (`str`), one (`str`), other (`str`): See [`less`].
        """
        tables: list[np.ndarray] = []
        for level in (larger, self):
            pair = level._pair(measure, one, other)
            if pair is None:
                return None
            tables += pair
        shared = [name for name in self.names if name in set(larger.names)]
        known = [dict(zip(level.names, range(len(level.names)), strict=True)) for level in (larger, self)]
        rows = [[places[name] for name in shared] for places in known]
        groups = dict(zip(self.names, self.groups, strict=True))
        parts = [table[rows[place // 2]] for place, table in enumerate(tables)]
        by_group = grouped(np.concatenate(parts, axis=1), [groups[name] for name in shared])
        statistic = measure_of(measure).statistic

        def change(sums: np.ndarray) -> np.ndarray:
            values = [statistic(part) for part in np.split(sums, 4, axis=-1)]
            return values[0] - values[1] - values[2] + values[3]

        found = bootstrap_sums(by_group, change, _NUM_RESAMPLES)
        return None if found is None else dataclasses.replace(found, num_clips=len(shared))

    def rarity_gaps(self) -> dict[str, Any] | None:
        """
        How many bits an id the clips of the rarest units take more than those of the most frequent ones.

        Clips are of the fifths that the units arm found, with the first seed that it shares with the reference. Each
        bootstrap sample takes both arms' bits of the same groups.

        Returns:
            `dict` with the gap of [`UNITS`] and of [`REFERENCE`], `more`, the first less the second, and `num_groups`,
            the fewest groups that a fifth has; or `None` where the arms share no seed, a fifth has fewer than two
            groups, or cells do not tell which clips a fifth has.
        """
        shared = [seed for seed in self.cells.get(UNITS, ()) if seed in self.cells.get(REFERENCE, ())]
        if not shared or not (self.has_bits(UNITS) and self.has_bits(REFERENCE)):
            return None
        cell = self.cells[UNITS][shared[0]]
        fifths = [fifth.get("clips") for fifth in cell.facts.get("rarity", ())]
        # Clips are numbered among those that the encoder could hear; only where these are all, numbers tell names.
        if not fifths or None in fifths or sum(map(len, fifths)) != len(cell.names):
            return None
        ends = [{cell.names[number] for number in fifth} for fifth in (fifths[0], fifths[-1])]
        belongs = np.array([[name in end for end in ends] for name in self.names], np.float64)
        num_groups = [
            len({group for group, inside in zip(self.groups, end, strict=True) if inside}) for end in belongs.T
        ]
        if min(num_groups) < 2:
            return None
        # Columns (bits of units, bits of the reference, clips) of the rarest fifth, and of the most frequent one.
        losses = [
            table[:, 0] / table[:, 1] for table in (self._table(BITS, arm, shared[0]) for arm in (UNITS, REFERENCE))
        ]
        told = np.stack([*losses, np.ones(len(self.names))], axis=-1)
        by_group = self._grouped((belongs[:, :, None] * told[:, None]).reshape(len(told), -1))

        def gap(sums: np.ndarray, arm: int) -> np.ndarray:
            return ratio(sums[..., [arm, 2]]) - ratio(sums[..., [3 + arm, 5]])

        statistics: dict[str, Statistic] = {
            UNITS: lambda sums: gap(sums, 0),
            REFERENCE: lambda sums: gap(sums, 1),
            "more": lambda sums: gap(sums, 0) - gap(sums, 1),
        }
        found: dict[str, Any] = {"num_groups": min(num_groups)}
        for name, statistic in statistics.items():
            estimate = self._told(bootstrap_sums(by_group, statistic, _NUM_RESAMPLES), BITS)
            of_ends = {**plain(estimate), "num_clips": int(belongs.sum())}
            found[name] = {**of_ends, "seeds": {shared[0]: estimate.value}}
        return found

    def _pair(self, measure: str, one: str, other: str) -> tuple[np.ndarray, np.ndarray] | None:
        mine, others = list(self.cells[one]), list(self.cells[other])
        if one not in self.fixed and other not in self.fixed:
            mine = others = [seed for seed in mine if seed in self.cells[other]]
        return (self._mean(measure, one, mine), self._mean(measure, other, others)) if mine and others else None

    def _mean(self, measure: str, arm: str, seeds: Sequence[int]) -> np.ndarray:
        return np.mean([self._table(measure, arm, seed) for seed in seeds], axis=0)

    def _table(self, measure: str, arm: str, seed: int) -> np.ndarray:
        # Counts (num_clips, num_counts) of the clips of `names`.
        place = (measure, arm, seed)
        if place not in self._tables:
            cell = self.cells[arm][seed]
            if measure == BITS:
                pairs = zip(cell.facts[BITS], cell.facts["num_tokens"], strict=True)
                known = dict(zip(cell.names, pairs, strict=True))
                self._tables[place] = np.array([known[name] for name in self.names], np.float64)
            else:
                (answers,) = answers_of([cell], self.names)
                self._tables[place] = counts(measure, answers, self.targets)
        return self._tables[place]

    def _grouped(self, table: np.ndarray) -> np.ndarray:
        return grouped(table, self.groups)

    def _told(self, estimate: Estimate | None, measure: str) -> Estimate:
        if estimate is None:
            raise ValueError(f"`{measure}` of the task {self.task!r} has no value; choose another of `metrics`.")
        return dataclasses.replace(estimate, num_clips=len(self.names))


def compared(args: TokenStudyArguments, task: str, told: TaskCounts) -> dict[str, Any]:
    """
    The scores of all arms of a task, and by how much they exceed others.

    Args:
        args ([`TokenStudyArguments`]): The study.
        task (`str`): Name of the task.
        told ([`TaskCounts`]): The answers of its arms at a level.

    Returns:
        `dict`: `metrics`, `judge` (the measure that verdicts rest on: bits where no metric tells weak models apart),
        `num_clips`, `num_groups`; `rarity` (see [`TaskCounts.rarity_gaps`]);
        by arm `scores`, `seeds` (by seed), `differences` (to the reference) and `controls`
        (to each control), each by measure, `above_controls` and `facts` of the first seed; and in `pairs` by how
        much one arm exceeds another that it differs from in one thing, by the judge. Each difference has its value
        with each seed in `seeds`. Wrong audio misleads the model of the reference, and so `other-audio` is a control
        of the reference alone. `above_controls` is `None` where an arm shares no seed with any control.
    """
    metrics = args.metrics_of(task)
    with_bits = [arm for arm in told.cells if told.has_bits(arm)]
    is_hard = all(METRICS[metric].needs_fluency for metric in metrics)
    judge = BITS if is_hard and len(with_bits) == len(told.cells) else metrics[0]
    controls = [arm for arm in CONTROL_ARMS if arm in told.cells]
    arms: dict[str, Any] = {}
    for arm, of_seeds in told.cells.items():
        measures = [*metrics, *([BITS] if arm in with_bits else ())]
        entry: dict[str, Any] = {"facts": next(iter(of_seeds.values())).facts, "differences": {}, "controls": {}}
        entry["scores"] = {name: plain(told.value(name, arm)) for name in measures}
        entry["seeds"] = {name: told.by_seed(name, arm) for name in measures}
        for name in measures:
            others = told.cells if name != BITS else with_bits
            if REFERENCE in others and arm != REFERENCE:
                entry["differences"] |= _known({name: _less(told, name, arm, REFERENCE)})
            if name in (judge, BITS) and arm not in controls:
                own = [control for control in controls if control != OTHER_AUDIO or arm == REFERENCE]
                over = {control: _less(told, name, arm, control) for control in own if control in others}
                entry["controls"][name] = _known(over)
        if arm not in controls:
            over = entry["controls"][judge]
            is_above = all(measure_of(judge).is_better(less) for less in over.values())
            entry["above_controls"] = is_above if over else None
        arms[arm] = entry
    return {
        "task": args.tasks[task].task,
        "expected": args.tasks[task].expected,
        "claim": args.tasks[task].claim,
        "metrics": metrics,
        "judge": judge,
        "num_clips": len(told.names),
        "num_groups": len(set(told.groups)),
        "arms": arms,
        "rarity": told.rarity_gaps(),
        "pairs": [
            {"arm": one, "other": other, "less": less}
            for one, other in _pairs(args)
            if one in arms and other in arms and (less := _less(told, judge, one, other)) is not None
        ],
    }


def sizes_compared(smaller: TaskCounts, larger: TaskCounts, judge: str) -> dict[str, Any] | None:
    """
    How the difference of units to the reference changes with the size of the language model.

    Args:
        smaller, larger ([`TaskCounts`]): The answers of a task with the two sizes.
        judge (`str`): The measure.

    Returns:
        `dict` with `smaller` and `larger`, the difference at each size, and `change`, the second less the first, each
        with its values by seed in `seeds`; or `None` where it is not known.
    """
    if any(arm not in level.cells for level in (smaller, larger) for arm in (REFERENCE, UNITS)):
        return None
    change = smaller.change_of_difference(larger, judge, UNITS, REFERENCE)
    sizes = {"smaller": smaller, "larger": larger}
    if change is None:
        return None
    found = {name: _less(told, judge, UNITS, REFERENCE) for name, told in sizes.items()}
    one, other = (told.less_by_seed(judge, UNITS, REFERENCE) for told in sizes.values())
    seeds = {seed: value - one[seed] for seed, value in other.items() if seed in one}
    return {"change": {**plain(change), "seeds": seeds}, **found}


def _less(told: TaskCounts, measure: str, one: str, other: str) -> dict[str, Any] | None:
    # A difference as plain values, with that of each seed.
    estimate = told.less(measure, one, other)
    return None if estimate is None else {**plain(estimate), "seeds": told.less_by_seed(measure, one, other)}


def _known(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: less for name, less in found.items() if less is not None}


def _pairs(args: TokenStudyArguments) -> list[tuple[str, str]]:
    # Arms that differ in one thing: the way into the model, merges, the settings of a variant; and variants that
    # read the encoder's units beside units as they are.
    found = [(UNITS, CENTROIDS), (MERGED, UNITS)]
    for name, variant in args.lm.variants.items():
        found.append((name, variant.arm))
        if variant.arm in (MERGED, CENTROIDS):
            found.append((name, UNITS))
    return found


__all__ = [
    "BITS",
    "NO_AUDIO",
    "OTHER_AUDIO",
    "REFERENCE",
    "Measure",
    "TaskCounts",
    "compared",
    "measure_of",
    "sizes_compared",
]
