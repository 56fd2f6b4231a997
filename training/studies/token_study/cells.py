# SPDX-License-Identifier: Apache-2.0
"""Cells of a study: what one arm answered to the test clips of one task with one seed, in a file of its own."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech_tokenizers.evaluation.understanding.probes import PROBES_VERSION
from speech_tokenizers.processing.metadata_files import read_metadata
from speech_tokenizers.processing.recording_fingerprint import recordings_fingerprint
from speech_tokenizers.processing.task_manifests import TaskClip
from speech_tokenizers.training.common.recipe_files import read_recipe
from speech_tokenizers.training.common.run_record import fingerprint_of
from speech_tokenizers.training.studies.measured_files import plain, read_measured, write_measured
from speech_tokenizers.training.studies.token_study.arguments import (
    MATCHED,
    LMLevelName,
    TaskArguments,
    TokenStudyArguments,
)
from speech_tokenizers.training.studies.token_study.clips import few_shot


# Where a manifest has no development clips, every so many groups of its training clips become these.
_DEV_SHARE = 6
# Raise it with every change of how language models are trained and asked, so that cells of before do not count.
LM_VERSION = 1


@dataclass(frozen=True)
class ChosenClips:
    """
    The clips that a cell learns from and is tested on.

    Args:
        indices (`list[int]`): Their numbers among the clips of the task.
        clips (`list` of [`TaskClip`]): The clips.
        splits (`list[str]`): Split of each, with development clips in any case.
    """

    indices: list[int]
    clips: list[TaskClip]
    splits: list[str]

    @property
    def targets(self) -> list[str]:
        """The answer to each clip."""
        return [clip.target for clip in self.clips]

    def of(self, split: str) -> list[int]:
        """Places of a split in `clips`."""
        return [place for place, name in enumerate(self.splits) if name == split]


def chosen_clips(
    clips: Sequence[TaskClip], clips_per_label: int | None, seed: int, drawn_from: Sequence[TaskClip] | None = None
) -> ChosenClips:
    """
    The clips of a task as one seed has them.

    Args:
        clips (sequence of [`TaskClip`]): The clips that a system has of the task.
        clips_per_label (`int`, *optional*): Few-shot training; see [`few_shot`].
        seed (`int`): Seed of the draw.
        drawn_from (sequence of [`TaskClip`], *optional*): All clips of the task, so that all systems have the same
            draw. Defaults to `clips`.

    Returns:
        [`ChosenClips`]: In the order of `clips`. Without development clips, training clips that were not drawn take
        their place, or those of every sixth group of training, or every sixth training clip.
    """
    pool = clips if drawn_from is None else drawn_from
    training = {clip.name for clip in few_shot(pool, clips_per_label, seed)}
    if not any(clip.split == "dev" for clip in clips):
        left = {clip.name for clip in clips if clip.split == "train"} - training
        if left:
            indices = [
                index for index, clip in enumerate(clips) if clip.split != "train" or clip.name in left | training
            ]
            kept = [clips[index] for index in indices]
            return ChosenClips(indices, kept, ["dev" if clip.name in left else clip.split for clip in kept])
    indices = [index for index, clip in enumerate(clips) if clip.split != "train" or clip.name in training]
    kept = [clips[index] for index in indices]
    splits = [clip.split for clip in kept]
    if "dev" not in splits:
        groups = sorted({clip.group for clip in kept if clip.split == "train"})
        moved = set(groups[_DEV_SHARE - 1 :: _DEV_SHARE])
        if moved:
            splits = ["dev" if clip.split == "train" and clip.group in moved else clip.split for clip in kept]
        else:
            places = [place for place, name in enumerate(splits) if name == "train"]
            for place in places[_DEV_SHARE - 1 :: _DEV_SHARE] or places[-1:]:
                splits[place] = "dev"
    return ChosenClips(indices, kept, splits)


@dataclass
class Cell:
    """
    What an arm answered.

    Args:
        names, targets, groups (`list[str]`): Name, true answer and group of each test clip.
        answers (`list[str]`): Answer to each.
        facts (`dict`): What else is known, such as losses, as plain values.
    """

    names: list[str]
    targets: list[str]
    groups: list[str]
    answers: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, clips: Sequence[TaskClip], answers: Sequence[str], **facts: Any) -> "Cell":
        """The cell of answers to some clips."""
        if len(clips) != len(answers):
            raise ValueError(f"There are {len(clips)} clips, but {len(answers)} answers.")
        return cls(
            [clip.name for clip in clips],
            [clip.target for clip in clips],
            [clip.group for clip in clips],
            list(answers),
            facts,
        )


def cell_path(args: TokenStudyArguments, level: str | LMLevelName, task: str, arm: str, seed: int) -> Path:
    """File of a cell."""
    return Path(args.output_dir) / str(level) / task / arm / f"seed{seed}.json"


def cell_key(args: TokenStudyArguments, task: str, arm: str, seed: int, **more: Any) -> str:
    """
    Hash of the settings that a cell depends on; what is expected is not among them.

    Args:
        args ([`TokenStudyArguments`]): The study.
        task (`str`), arm (`str`), seed (`int`): The cell.
        more: Further settings, as plain values.
    """
    encoder = dataclasses.asdict(args.encoder)
    for name in ("name", "batch_seconds"):
        encoder.pop(name)
    # Units are fitted on the clips of all tasks, few-shot ones on those of all seeds.
    tasks = {name: _settings(given) for name, given in sorted(args.tasks.items())}
    seeds = sorted(args.seeds) if any(given.clips_per_label for given in args.tasks.values()) else None
    for name, given in args.tasks.items():
        if (new := args.new_tasks.get(given.task)) is not None:
            tasks[name]["definition"] = dataclasses.asdict(new)
    content = [task, tasks, seeds, encoder, arm, seed, more]
    of = args.lm.variants[arm].arm if arm in args.lm.variants else arm
    content.append(_model_key(args.systems.get(of, args.encoder.name)))
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]


def level_key(args: TokenStudyArguments, level: str | LMLevelName, task: str, arm: str, seed: int) -> str:
    """[`cell_key`] of a cell of a level: `"probe"`, or one of language models."""
    if isinstance(level, str):
        return cell_key(args, task, arm, seed, ctc_steps=args.ctc_steps, version=PROBES_VERSION)
    size = args.lm.sizes[level.size]
    overrides = [f"{name}={json.dumps(value)}" for name, value in args.lm.settings_of(task).items()]
    settings = [
        LM_VERSION,
        read_recipe(args.lm.recipe, overrides),
        _model_key(size) if isinstance(size, str) else size,
    ]
    if level.matched != MATCHED[0]:
        settings.append(level.matched)
    if (variant := args.lm.variants.get(arm)) is not None:
        settings.append(dataclasses.asdict(variant))
    return cell_key(args, task, arm, seed, settings=settings)


def kept_analysis(
    args: TokenStudyArguments, kind: str, task: str, measure: Callable[[], Mapping[str, Any]] | None = None
) -> dict[str, Any] | None:
    """
    An analysis of a task, measured if it was not yet with these settings.

    Args:
        args ([`TokenStudyArguments`]): The study.
        kind (`str`): `"facts"`, `"layers"` or `"robustness"`.
        task (`str`): Name of the task.
        measure (callable, *optional*): Function that gives it as plain values. Without one, what is not there is
            `None`.
    """
    path = Path(args.output_dir) / kind / f"{task}.json"
    probes = [PROBES_VERSION, args.metrics_of(task)[0]]
    more = {
        "facts": {name: _model_key(system) for name, system in args.systems.items()},
        "layers": probes,
        "robustness": [*probes, dataclasses.asdict(args.robustness)],
    }[kind]
    key = cell_key(args, task, kind, args.seeds[0], more=more)
    if (kept := read_measured(path, key)) is not None:
        return kept["found"]
    if measure is None:
        return None
    found = plain(measure())
    write_measured(path, key, {"found": found})
    return found


def read_cell(path: Path, key: str) -> Cell | None:
    """
    A cell that was finished, or `None`.

    Args:
        path (`Path`): Its file.
        key (`str`): What [`level_key`] gives. A cell of other settings is not returned.
    """
    found = read_measured(path, key)
    return None if found is None else Cell(**{name: found[name] for name in Cell.__dataclass_fields__})


def is_measured(args: TokenStudyArguments, level: str | LMLevelName, task: str, arm: str, seed: int) -> bool:
    """Whether a cell of these settings is there."""
    place = (level, task, arm, seed)
    return read_cell(cell_path(args, *place), level_key(args, *place)) is not None


def finished_cell(path: Path, key: str, measure: Callable[[], Cell]) -> Cell:
    """
    A cell, measured if it was not yet.

    Args:
        path (`Path`): Its file.
        key (`str`): What [`level_key`] gives.
        measure (callable): Function that gives the cell.
    """
    cell = read_cell(path, key)
    if cell is None:
        cell = measure()
        write_measured(path, key, dataclasses.asdict(cell))
    return cell


def answers_of(cells: Sequence[Cell], names: Sequence[str]) -> list[list[str]]:
    """The answers of each seed's cell to some clips, in their order."""
    found = []
    for cell in cells:
        answers = dict(zip(cell.names, cell.answers, strict=True))
        found.append([answers[name] for name in names])
    return found


def common_names(cells: Sequence[Cell]) -> list[str]:
    """The clips that all cells answered, in the order of the first."""
    shared = set.intersection(*(set(cell.names) for cell in cells))
    return [name for name in cells[0].names if name in shared]


def facts_of(cell: Cell, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Targets and groups of some clips."""
    known = dict(zip(cell.names, zip(cell.targets, cell.groups, strict=True), strict=True))
    pairs = [known[name] for name in names]
    return [target for target, _ in pairs], [group for _, group in pairs]


def _settings(task: TaskArguments) -> dict[str, Any]:
    # What the clips of a task follow from.
    settings = dataclasses.asdict(task)
    for name in ("expected", "num_seeds", "metrics", "claim", "folder"):
        settings.pop(name)
    return {**settings, "manifest": _manifest_key(task.manifest, task.folder, os.stat(task.manifest).st_mtime_ns)}


# A study asks for it at each cell, and weights take long to read.
_model_key = functools.lru_cache(fingerprint_of)


@functools.lru_cache
def _manifest_key(manifest: str, folder: str | None, _: int) -> str:
    # Of the manifest, and of what its files hold: dates and folders are others on another machine.
    root = Path(manifest).parent if folder is None else Path(folder)
    files = recordings_fingerprint(root / str(row.fields.get("file_name")) for row in read_metadata(manifest))
    return hashlib.sha256(Path(manifest).read_bytes() + files.encode()).hexdigest()[:16]
