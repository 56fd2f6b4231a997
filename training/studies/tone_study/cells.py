# SPDX-License-Identifier: Apache-2.0
"""
Cells of a study of tone: what an arm answered to the tested syllables of one fold, in a file of its own.

A job is a fold of a view, or of the other models: its frames are read once, and all cells that are missing are
measured. Jobs do not depend on each other, so that several processes share them.
"""

import dataclasses
import functools
import hashlib
import json
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from speech_tokenizers.evaluation.understanding.lstm_probe import lstm_probe
from speech_tokenizers.evaluation.understanding.probes import PROBES_VERSION, ridge_probes, shuffle_targets
from speech_tokenizers.training.common.run_record import fingerprint_of
from speech_tokenizers.training.common.shared_work import share_work
from speech_tokenizers.training.studies.measured_files import plain, read_measured, write_measured
from speech_tokenizers.training.studies.tone_study.arguments import (
    ALL_DIMS,
    CONTINUOUS,
    SHUFFLED,
    ToneStudyArguments,
    View,
)
from speech_tokenizers.training.studies.tone_study.arms import (
    Coded,
    FoldFrames,
    rate_facts,
    splits_of,
    system_coded,
)
from speech_tokenizers.training.studies.tone_study.folds import Fold, make_folds, settings_of
from speech_tokenizers.training.studies.tone_study.frames import ClipCodes, ClipFrames, StudyModels
from speech_tokenizers.training.studies.tone_study.information import conditional_information
from speech_tokenizers.training.studies.tone_study.syllables import TRACKER, PreparedSyllables, Syllable


# Raise it with every change of what a cell holds.
VERSION = 4
# The view whose arms are the models that were trained elsewhere.
SYSTEMS = "systems"
# The paper's probe, beside the pooled one.
LSTM_SUFFIX = "@lstm"


class Place(NamedTuple):
    """
    A cell.

    Args:
        view (`str`): Name of the view, or `SYSTEMS`.
        setting (`str`), fold (`str`): Setting, and name of its fold.
        arm (`str`): Name of the arm. That of the LSTM ends in `LSTM_SUFFIX`, that of a system in the number of its
            codebooks, such as `rvq/1`.
        seed (`int`): Seed of the arm.
    """

    view: str
    setting: str
    fold: str
    arm: str
    seed: int


@dataclass(frozen=True)
class ToneCell:
    """
    Args:
        names (list of `str`): Names of the tested syllables.
        answers (`dict` of lists of `str`): What was answered to each, by the target.
        facts (`dict`): Bit rates, information, how well F0 is decoded, and seconds, as plain values.
    """

    names: list[str]
    answers: dict[str, list[str]]
    facts: dict[str, Any]


class ToneCells:
    """
    The cells of a study.

    Args:
        args ([`ToneStudyArguments`]): The study.
        prepared ([`PreparedSyllables`]): Its syllables.
    """

    def __init__(self, args: ToneStudyArguments, prepared: PreparedSyllables):
        self.args, self.prepared = args, prepared
        self.models = StudyModels(args, prepared)
        self._frames: dict[View, ClipFrames] = {}  # of the last view
        self._codes: dict[str, ClipCodes] = {}

    @functools.cached_property
    def settings(self) -> list[str]:
        """Settings that the syllables allow."""
        return settings_of(self.prepared.syllables)

    @functools.cached_property
    def folds(self) -> dict[str, dict[str, Fold]]:
        """The folds of each setting by their names. Raises `ValueError` where one would leak."""
        syllables = self.prepared.syllables
        return {
            setting: {fold.name: fold for fold in make_folds(syllables, setting, self.args.num_folds)}
            for setting in self.settings
        }

    def never_learnt(self) -> dict[str, dict[str, int]]:
        """By the setting and the target, the tested syllables whose label the training of their fold lacks."""
        syllables, found = self.prepared.syllables, {}
        for setting, folds in self.folds.items():
            counts = dict.fromkeys(self.args.targets, 0)
            for fold in folds.values():
                for target in counts:
                    known = {syllables[number].labels[target] for number in fold.learnt}
                    counts[target] += sum(syllables[number].labels[target] not in known for number in fold.test)
            found[setting] = {target: count for target, count in counts.items() if count}
        return found

    def places(self, view: View | str) -> list[tuple[str, int]]:
        """Arm and seed of each cell of a view's fold."""
        args = self.args
        if isinstance(view, str):
            return [(arm, args.seeds[0]) for arm in system_arms(args)]
        found = [(CONTINUOUS, args.seeds[0])]
        if view == args.main_view:
            found += [(ALL_DIMS, args.seeds[0])] if args.pca_dims is not None else []
            found += [(SHUFFLED, seed) for seed in args.seeds]
        for arm in args.arms_of(view):
            found += [(arm, seed) for seed in args.seeds_of(view)]
            if view == args.main_view and arm in args.lstm.arms:
                found.append((arm + LSTM_SUFFIX, args.seeds[0]))
        return found

    @property
    def views(self) -> list[View | str]:
        """All views, and `SYSTEMS` where there are such."""
        return [*self.args.views, *([SYSTEMS] if self.args.systems else [])]

    def jobs(self) -> list[tuple[View | str, str, str]]:
        """View, setting and fold of all that has a cell which is missing."""
        return [
            (view, setting, fold)
            for view in self.views
            for setting, folds in self.folds.items()
            for fold in folds
            if self._missing(view, setting, fold)
        ]

    def path(self, place: Place) -> Path:
        """File of a cell."""
        named = f"{place.arm.replace('/', '-of-')}-seed{place.seed}.json"
        fold = urllib.parse.quote(place.fold, safe="")
        return Path(self.args.output_dir) / "cells" / place.view / place.setting / fold / named

    def key(self, place: Place) -> str:
        """Hash of all that a cell depends on."""
        args = self.args
        common = ("num_folds", "num_segments", "pca_dims", "fit_frames", "fit_epochs", "trim", "targets")
        content: list[Any] = [
            VERSION,
            PROBES_VERSION,
            TRACKER,
            self._syllables_key,
            {name: getattr(args, name) for name in common},
        ]
        if place.view == SYSTEMS:
            content.append(_model_key(args.systems[place.arm.split("/")[0]]))
        else:
            view = next(view for view in args.views if str(view) == place.view)
            encoder = args.encoders[view.encoder]
            content += [_model_key(encoder.name), encoder.window, view.layer, view.is_normalized]
        arm = place.arm.removesuffix(LSTM_SUFFIX)
        if arm in args.arms:
            content.append(dataclasses.asdict(args.arms[arm]))
        if arm != place.arm:
            content.append(dataclasses.asdict(dataclasses.replace(args.lstm, arms=[])))
        content += list(place)[1:]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]

    @functools.cached_property
    def _syllables_key(self) -> str:
        said = [
            [one.name, one.span, one.speaker, one.syllable, dict(one.labels), one.split, str(path)]
            for one, path in zip(
                self.prepared.syllables,
                [Path(path).name for path in self.prepared.recordings["file_name"][:]],
                strict=True,
            )
        ]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def read(self, place: Place) -> ToneCell | None:
        """A cell, if it is measured."""
        found = read_measured(self.path(place), self.key(place))
        return None if found is None else ToneCell(found["names"], found["answers"], found["facts"])

    def _missing(self, view: View | str, setting: str, fold: str) -> list[tuple[str, int]]:
        return [
            (arm, seed)
            for arm, seed in self.places(view)
            if self.read(Place(str(view), setting, fold, arm, seed)) is None
        ]

    def run(self, show_progress: bool | None = None) -> None:
        """Measure all cells that are missing, in `args.num_workers` processes."""
        jobs = self.jobs()
        disable = None if show_progress is None else not show_progress
        with tqdm(total=len(jobs), desc="folds", unit="fold", disable=disable) as bar:
            for _ in share_work(_measure, jobs, self.args.num_workers, ToneCells, (self.args, self.prepared)):
                bar.update()

    def measure(self, view: View | str, setting: str, fold_name: str) -> None:
        """Measure the cells of a job that are missing."""
        missing = self._missing(view, setting, fold_name)
        if isinstance(view, str):
            for arm, seed in missing:
                name, num_quantizers = arm.split("/")
                if name not in self._codes:
                    self._codes[name] = self.models.codes(name)
                codes = self._codes[name]
                self._measure_system(codes, int(num_quantizers), Place(view, setting, fold_name, arm, seed))
            return
        if view not in self._frames:
            self._frames = {view: self.models.frames(view)}
        frames = self._frames[view]
        fold = self._fold(frames.syllables, setting, fold_name)
        reduced = None
        for arm, seed in missing:
            if arm == ALL_DIMS:
                of_fold = FoldFrames(self.args, frames, fold, None)
            else:
                reduced = of_fold = reduced or FoldFrames(self.args, frames, fold, self.args.pca_dims)
            self._measure_arm(of_fold, Place(str(view), setting, fold_name, arm, seed))

    def _fold(self, heard: Sequence[Syllable], setting: str, name: str) -> Fold:
        # Of the syllables that a model could hear.
        names = {syllable.name for syllable in heard}
        kept = [number for number, syllable in enumerate(self.prepared.syllables) if syllable.name in names]
        return self.folds[setting][name].among(kept)

    def _measure_arm(self, of_fold: FoldFrames, place: Place) -> None:
        begun = time.perf_counter()
        arm = place.arm.removesuffix(LSTM_SUFFIX)
        coded = of_fold.coded(self.args.arms[arm], place.seed) if arm in self.args.arms else of_fold.continuous()
        facts: dict[str, Any] = {}
        is_voiced = bool((of_fold.is_learnt & ~np.isnan(of_fold.pitch)).any())
        if place.arm == arm and arm != SHUFFLED and is_voiced:
            pitch = of_fold.decoded_pitch(coded)
            facts["f0"] = _agreement_of_pitch(of_fold.pitch, pitch, ~of_fold.is_learnt)
            facts["contours"] = _contours(of_fold, pitch)
        facts["frame_rate"] = of_fold.frame_rate
        self._finish(place, of_fold.syllables, of_fold.splits, of_fold.by_clip, coded, begun, facts)

    def _measure_system(self, codes: ClipCodes, num_quantizers: int, place: Place) -> None:
        begun = time.perf_counter()
        fold = self._fold(codes.syllables, place.setting, place.fold)
        numbers = np.sort(np.concatenate([fold.learnt, fold.test]))
        coded = system_coded(codes, numbers, num_quantizers, self.args.num_segments)
        cuts = np.cumsum([codes.codes[number].shape[1] for number in numbers])[:-1]
        syllables = [codes.syllables[number] for number in numbers]
        facts = {"frame_rate": codes.frame_rate}
        self._finish(
            place, syllables, splits_of(fold, numbers), lambda rows: np.split(rows, cuts), coded, begun, facts
        )

    def _finish(
        self,
        place: Place,
        syllables: Sequence[Syllable],
        splits: list[str],
        by_clip: Any,
        coded: Coded,
        begun: float,
        facts: dict[str, Any],
    ) -> None:
        targets = {target: [one.labels[target] for one in syllables] for target in self.args.targets}
        if place.arm == SHUFFLED:
            targets = {name: shuffle_targets(asked, splits, place.seed) for name, asked in targets.items()}
        is_test = np.array([split == "test" for split in splits])
        codes = None if coded.codes is None else [rows.T for rows in by_clip(coded.codes.T)]
        if place.arm.endswith(LSTM_SUFFIX):
            assert codes is not None
            settings = dataclasses.asdict(self.args.lstm)
            settings.pop("arms")
            answers = {
                name: lstm_probe(codes, coded.sizes, targets[name], splits, place.seed, **settings).answers
                for name in settings.pop("targets")
            }
        else:
            answers = {name: said.answers for name, said in ridge_probes(coded.blocks, targets, splits).items()}
        if codes is not None:
            tested = np.repeat(is_test, [clip.shape[1] for clip in codes])
            facts["rates"] = rate_facts(coded, facts["frame_rate"], tested)
            if "final" in targets:
                told = [
                    conditional_information([clip[row] for clip in codes], targets["tone"], targets["final"], ~is_test)
                    for row in range(len(coded.sizes))
                ]
                facts["information"] = {"bits": max(told)}
        facts["seconds"] = time.perf_counter() - begun
        names = [one.name for one, chosen in zip(syllables, is_test, strict=True) if chosen]
        write_measured(self.path(place), self.key(place), {"names": names, "answers": answers, "facts": plain(facts)})


def system_arms(args: ToneStudyArguments) -> list[str]:
    """The arms of models that were trained elsewhere: their first codebook, and all where there are several."""
    found = []
    for name, path in args.systems.items():
        num_quantizers = _num_quantizers(path)
        found += [f"{name}/{number}" for number in dict.fromkeys((1, num_quantizers))]
    return found


@functools.lru_cache
def _num_quantizers(path: str) -> int:
    from speech_tokenizers.coding.loading import load

    return load(path)[0].num_quantizers


# A study asks for it at each cell, and weights take long to read.
_model_key = functools.lru_cache(fingerprint_of)


def forget_models() -> None:
    """Look at the models anew for the keys of cells: a model of the Hub is known by its commit once it is here."""
    _model_key.cache_clear()


def _agreement_of_pitch(true: np.ndarray, decoded: np.ndarray, tested: np.ndarray) -> dict[str, float]:
    # Sums by which correlations over folds can be pooled.
    chosen = tested & ~np.isnan(true)
    x, y = true[chosen], decoded[chosen]
    return {
        "n": int(chosen.sum()),
        **{
            name: float(value.sum()) for name, value in {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}.items()
        },
    }


def _contours(of_fold: FoldFrames, decoded: np.ndarray) -> list[dict[str, Any]]:
    # F0 of a few tested syllables, as tracked and as decoded: the first syllable with the most tones.
    tested = [number for number, split in enumerate(of_fold.splits) if split == "test"]
    of_syllable: dict[str, dict[str, int]] = {}
    for number in tested:
        one = of_fold.syllables[number]
        of_syllable.setdefault(one.group, {}).setdefault(one.labels["tone"], number)
    group = max(sorted(of_syllable), key=lambda name: len(of_syllable[name]))
    true, said = of_fold.by_clip(of_fold.pitch), of_fold.by_clip(decoded)
    return [
        {
            "name": of_fold.syllables[number].name,
            "tone": tone,
            "f0": [None if np.isnan(value) else round(float(value), 3) for value in true[number]],
            "decoded": [round(float(value), 3) for value in said[number]],
        }
        for tone, number in sorted(of_syllable[group].items())
    ]


def _measure(cells: ToneCells, job: tuple[View | str, str, str]) -> None:
    cells.measure(*job)


__all__ = ["forget_models", "LSTM_SUFFIX", "SYSTEMS", "Place", "ToneCell", "ToneCells", "system_arms"]
