# SPDX-License-Identifier: Apache-2.0
"""What the answers of a study of tone say: scores with intervals, differences, a column a speaker, and confusions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speech_tokenizers.evaluation.bootstrap import Estimate, bootstrap_sums, paired_difference
from speech_tokenizers.evaluation.reconstruction.frame_probe import macro_f1
from speech_tokenizers.evaluation.understanding.metrics import class_counts
from speech_tokenizers.evaluation.units.measures import grouped
from speech_tokenizers.evaluation.units.probes import balanced_accuracy
from speech_tokenizers.training.studies.measured_files import plain
from speech_tokenizers.training.studies.tone_study.arguments import CONTINUOUS, SHUFFLED
from speech_tokenizers.training.studies.tone_study.cells import Place, ToneCell, ToneCells


# The arm that others are compared with, whatever their rates.
PLAIN = "units"
_METRIC = "macro_f1"
_NUM_RESAMPLES = 1000


class _SettingCounts:
    # Counts of the answers of all arms of a view in a setting, on the syllables that all of them answered.

    def __init__(self, cells: ToneCells, found: Mapping[str, Mapping[int, list[ToneCell]]]):
        self.targets = cells.args.targets
        every = [
            {name for cell in folds for name in cell.names} for seeds in found.values() for folds in seeds.values()
        ]
        shared = set.intersection(*every)
        self.syllables = [one for one in cells.prepared.syllables if one.name in shared]
        self.groups = [one.group for one in self.syllables]
        self.speakers = np.array([one.speaker for one in self.syllables], dtype=object)
        self.found = {
            arm: {seed: _joined(folds, [one.name for one in self.syllables]) for seed, folds in seeds.items()}
            for arm, seeds in found.items()
        }
        self._tables: dict[tuple[str, str], np.ndarray] = {}

    def labels(self, target: str) -> list[str]:
        return [one.labels[target] for one in self.syllables]

    def told(self, arm: str) -> list[str]:
        """Targets that an arm answers."""
        return [target for target in self.targets if target in next(iter(self.found[arm].values()))]

    def by_seed(self, arm: str, target: str) -> dict[int, np.ndarray]:
        """Counts of each seed, `(num_syllables, num_counts)`."""
        return {seed: class_counts(answers[target], self.labels(target)) for seed, answers in self.found[arm].items()}

    def table(self, arm: str, target: str) -> np.ndarray:
        """Counts by (speaker, syllable), averaged over seeds."""
        if (arm, target) not in self._tables:
            mean = np.mean(list(self.by_seed(arm, target).values()), axis=0)
            self._tables[arm, target] = grouped(mean, self.groups)
        return self._tables[arm, target]

    def scores(self, arm: str) -> dict[str, Any]:
        """Scores of an arm by the target."""
        found = {}
        for target in self.told(arm):
            table = self.table(arm, target)
            by_seed = self.by_seed(arm, target)
            mean = np.mean(list(by_seed.values()), axis=0)
            found[target] = {
                _METRIC: bootstrap_sums(table, macro_f1, _NUM_RESAMPLES),
                "balanced_accuracy": bootstrap_sums(table, balanced_accuracy, _NUM_RESAMPLES),
                "by_seed": {str(seed): float(macro_f1(part.sum(0))) for seed, part in by_seed.items()},
                "by_speaker": {
                    speaker: float(macro_f1(mean[self.speakers == speaker].sum(0)))
                    for speaker in sorted(set(self.speakers.tolist()))
                },
            }
        return found

    def less(self, arm: str, other: str) -> dict[str, Any]:
        """By how much an arm exceeds another, by the target."""
        return {
            target: paired_difference(self.table(arm, target), self.table(other, target), macro_f1, _NUM_RESAMPLES)
            for target in self.told(arm)
        }

    def more_kept(self, arm: str, target: str, other: str) -> Estimate | None:
        """
        By how many points the share of a target that an arm keeps exceeds that of another target: of what continuous
        frames tell above chance, in percent. `None` where the controls are missing.
        """
        arms = (arm, CONTINUOUS, SHUFFLED)
        if not {*arms} <= {*self.found} or not {target, other} <= {*self.told(arm)}:
            return None
        tables = [self.table(name, asked) for asked in (target, other) for name in arms]
        edges = np.cumsum([table.shape[1] for table in tables])[:-1]

        def difference(sums: np.ndarray) -> np.ndarray:
            values = [macro_f1(part) for part in np.split(sums, edges, axis=-1)]
            with np.errstate(divide="ignore", invalid="ignore"):  # where continuous frames tell nothing
                shares = [(value - chance) / (most - chance) for value, most, chance in (values[:3], values[3:])]
            return 100 * (shares[0] - shares[1])

        return bootstrap_sums(np.concatenate(tables, axis=1), difference, _NUM_RESAMPLES)

    def confusion(self, arm: str) -> dict[str, Any] | None:
        """Shares of the answers to each true tone, averaged over seeds; `None` of an arm that was not asked."""
        if "tone" not in self.told(arm):
            return None
        true = self.labels("tone")
        tones = sorted({*true, *(tone for answers in self.found[arm].values() for tone in answers["tone"])})
        table = np.zeros((len(tones), len(tones)))
        for answers in self.found[arm].values():
            for said, tone in zip(answers["tone"], true, strict=True):
                table[tones.index(tone), tones.index(said)] += 1
        return {"tones": tones, "shares": (table / np.maximum(table.sum(1, keepdims=True), 1)).tolist()}


def _joined(folds: Sequence[ToneCell], names: Sequence[str]) -> dict[str, list[str]]:
    # Answers of all folds, by the target, in the order of the syllables.
    found: dict[str, dict[str, str]] = {}
    for cell in folds:
        for target, answers in cell.answers.items():
            found.setdefault(target, {}).update(zip(cell.names, answers, strict=True))
    return {target: [answers[name] for name in names] for target, answers in found.items()}


def _facts(cells: Sequence[ToneCell]) -> dict[str, Any]:
    # Over folds and seeds, by the number of tested syllables.
    sizes = np.array([len(cell.names) for cell in cells], dtype=float)
    told: dict[str, Any] = {"seconds": float(sum(cell.facts["seconds"] for cell in cells))}
    for kind in ("rates", "information"):
        if all(cell.facts.get(kind) for cell in cells):
            names = cells[0].facts[kind]
            told[kind] = {
                name: float(np.average([cell.facts[kind][name] for cell in cells], weights=sizes)) for name in names
            }
    if all("f0" in cell.facts for cell in cells):
        n, x, y, xx, yy, xy = (
            sum(cell.facts["f0"][name] for cell in cells) for name in ("n", "x", "y", "xx", "yy", "xy")
        )
        spread = (xx - x * x / max(n, 1)) * (yy - y * y / max(n, 1))
        told["f0_correlation"] = (xy - x * y / n) / math.sqrt(spread) if spread > 0 else None
    return told


def study_results(cells: ToneCells) -> dict[str, Any]:
    """
    What was measured so far, as plain values.

    Args:
        cells ([`ToneCells`]): The study's cells.

    Returns:
        `dict`: By the view and the setting, the arms with their `scores` by the target, the differences
            `less_continuous` and `less_units`, `facts`, `confusion` and `contours`.
    """
    results: dict[str, Any] = {}
    for view in cells.views:
        for setting in cells.settings:
            found: dict[str, dict[int, list[ToneCell]]] = {}
            for arm, seed in cells.places(view):
                folds = [cells.read(Place(str(view), setting, fold, arm, seed)) for fold in cells.folds[setting]]
                if all(cell is not None for cell in folds):
                    found.setdefault(arm, {})[seed] = [cell for cell in folds if cell is not None]
            if not found:
                continue
            counted = _SettingCounts(cells, found)
            arms = {}
            for arm, seeds in found.items():
                told: dict[str, Any] = {
                    "scores": counted.scores(arm),
                    "confusion": counted.confusion(arm),
                    "facts": _facts([cell for folds in seeds.values() for cell in folds]),
                    "seeds": list(seeds),
                    "vowel_kept_more_than_tone": counted.more_kept(arm, "vowel", "tone"),
                    "contours": next(iter(seeds.values()))[0].facts.get("contours", []),
                }
                if CONTINUOUS in found and arm not in (CONTINUOUS, SHUFFLED):
                    told["less_continuous"] = counted.less(arm, CONTINUOUS)
                if PLAIN in found and arm not in (PLAIN, SHUFFLED):
                    told["less_units"] = counted.less(arm, PLAIN)
                arms[arm] = told
            results.setdefault(str(view), {})[setting] = {
                "arms": arms,
                "num_syllables": len(counted.syllables),
                "num_groups": len(set(counted.groups)),
            }
    return plain(results)


__all__ = ["PLAIN", "study_results"]
