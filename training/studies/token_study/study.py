# SPDX-License-Identifier: Apache-2.0
"""
`speech-tokenizers study tokens`: discrete against continuous tokens of one encoder, and others' tokens, on
understanding tasks.

The question is that of https://huggingface.co/papers/2411.08742. Each cell (task, arm, seed) is measured once; after
an interruption, the same command continues.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_tokenizers.processing.task_manifests import TaskClip
from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.studies.token_study.arguments import CONTROL_ARMS, LMLevelName, TokenStudyArguments
from speech_tokenizers.training.studies.token_study.cells import Cell, cell_path, kept_analysis, level_key, read_cell


if TYPE_CHECKING:
    from speech_tokenizers.training.studies.token_study.comparison import TaskCounts


def study_tokens(args: TokenStudyArguments) -> str:
    """
    Measure what was not measured yet at the study's level, and write the report of all that was.

    Args:
        args ([`TokenStudyArguments`]): The study.

    Returns:
        `str`: The report in Markdown. `output_dir` gets `results.html`, `.md` and `.json`, and pictures.

    Raises:
        ValueError: If a manifest is wrong, a system is not to be found, or clips cannot be read.
    """
    # Imported here, since it takes seconds, for which the help need not wait.
    from speech_tokenizers.training.studies.token_study.lm_level import LMLevel
    from speech_tokenizers.training.studies.token_study.probe_level import ProbeLevel
    from speech_tokenizers.training.studies.token_study.report import study_report
    from speech_tokenizers.training.studies.token_study.systems import StudySystems

    systems = StudySystems(args)
    level: Any = ProbeLevel(args, systems) if args.level == "probe" else LMLevel(args, systems)
    if not level.is_finished():  # else no clip need be opened
        for task in args.tasks:
            _check_clips(args, task, systems.prepared(task).clips)
        level.run()
    report = study_report(args, study_results(args))
    written = report.write(Path(args.output_dir), "results")
    print(f"written: {', '.join(str(path) for path in written)}", file=sys.stderr)
    return report.markdown()


def _check_clips(args: TokenStudyArguments, task: str, clips: Sequence[TaskClip]) -> None:
    from speech_tokenizers.evaluation.understanding.metrics import counts

    targets = [clip.target for clip in clips]
    for metric in args.metrics_of(task):
        counts(metric, targets, targets)
    groups = {clip.group for clip in clips if clip.split == "test"}
    if len(groups) < 2:
        raise ValueError(
            f"the test clips of {task!r} have one group, {sorted(groups)[0]!r}, so that no interval can be drawn; test"
            " on at least two, or say `group: []`, by which each clip is its own."
        )


def study_results(args: TokenStudyArguments) -> dict[str, Any]:
    """What was measured so far, as plain values; see [`study_report`]."""
    from speech_tokenizers.training.studies.token_study.comparison import TaskCounts, compared

    output = Path(args.output_dir)
    of_models = [LMLevelName(size, matched) for size in args.lm.sizes for matched in args.lm.matched]
    levels: list[str | LMLevelName] = ["probe", *of_models]
    results: dict[str, Any] = {"levels": {}}
    counted: dict[tuple[str, str], TaskCounts] = {}
    for level in levels:
        tasks = {}
        for task in args.tasks:
            cells = _cells(args, level, task)
            if cells:
                fixed = _fixed_arms(args, task) if level == "probe" else ()
                counted[str(level), task] = TaskCounts(task, cells, fixed)
                tasks[task] = compared(args, task, counted[str(level), task])
        if tasks:
            results["levels"][str(level)] = tasks
    results["sizes"] = _sizes(args, results["levels"], counted)
    for kind in ("facts", "layers", "robustness"):
        found = {task: kept_analysis(args, kind, task) for task in args.tasks}
        results[kind] = {task: told for task, told in found.items() if told}
    results["set_aside"] = {
        task: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for task in args.tasks
        if (path := output / "clips" / f"{task}.set_aside.jsonl").is_file()
    }
    results["convergence"] = {
        f"{level.removeprefix('lm/')}, {task}": told
        for level, tasks in results["levels"].items()
        if level != "probe"
        for task, found in tasks.items()
        if (told := _convergence(found["arms"]))
    }
    return results


def _fixed_arms(args: TokenStudyArguments, task: str) -> list[str]:
    # Arms whose probes are the same with all seeds, and so are measured with one.
    from speech_tokenizers.training.studies.token_study.probe_level import probe_arms, probe_seeds

    return [arm for arm in probe_arms(args, task) if len(probe_seeds(args, task, arm)) < len(args.seeds_of(task))]


def _sizes(
    args: TokenStudyArguments, levels: dict[str, Any], counted: dict[tuple[str, str], "TaskCounts"]
) -> list[dict[str, Any]]:
    # Of each task, the smallest language model beside each larger one, by the parameters of the reference arm.
    from speech_tokenizers.training.studies.token_study.comparison import REFERENCE, sizes_compared

    found = []
    for matched in args.lm.matched:
        for task in args.tasks:
            parameters = {
                size: levels[level][task]["arms"][REFERENCE]["facts"]["parameters"]
                for size in args.lm.sizes
                if (level := str(LMLevelName(size, matched))) in levels
                and REFERENCE in levels[level].get(task, {"arms": {}})["arms"]
            }
            smallest, *larger = sorted(parameters, key=parameters.__getitem__) or [""]
            for size in larger:
                small, large = (str(LMLevelName(name, matched)) for name in (smallest, size))
                judges = {levels[name][task]["judge"] for name in (small, large)}
                if len(judges) > 1:  # in one size an arm has no bits
                    continue
                told = sizes_compared(counted[small, task], counted[large, task], judges.pop())
                if told is not None:
                    found.append({"task": task, "levels": [small, large], **told})
    return found


def _cells(args: TokenStudyArguments, level: str | LMLevelName, task: str) -> dict[str, dict[int, Cell]]:
    # The finished cells of each arm, of these settings.
    found = {}
    for arm in args.arms_of("probe" if isinstance(level, str) else "lm"):
        places = {seed: (level, task, arm, seed) for seed in args.seeds_of(task)}
        cells = {seed: read_cell(cell_path(args, *place), level_key(args, *place)) for seed, place in places.items()}
        if finished := {seed: cell for seed, cell in cells.items() if cell is not None}:
            found[arm] = finished
    return found


def _convergence(arms: dict[str, Any]) -> dict[str, Any]:
    # Losses of held-out clips against positions, of the first seed, and where the arm with the fewest positions ends.
    # Controls have other audio or other answers.
    told = {arm: found["facts"].get("curve") for arm, found in arms.items() if arm not in CONTROL_ARMS}
    curves = {arm: curve for arm, curve in told.items() if curve and curve["positions"]}
    if not curves:
        return {}
    end = min(curve["positions"][-1] for curve in curves.values())
    return {arm: {**curve, "at_equal_positions": _at(curve, end)} for arm, curve in curves.items()}


def _at(curve: dict[str, list[float]], end: float) -> float | None:
    import numpy as np

    positions, losses = curve["positions"], curve["losses"]
    return float(np.interp(end, positions, losses)) if positions[0] <= end <= positions[-1] else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers study tokens`."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a YAML file, or the name of a recipe of this installation, such as token_study_16khz_cpu",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="settings that differ from the recipe, such as level=lm, lm.seeds_now=[0] or lm.task_names=[emotion]",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers study tokens`; returns the exit code."""
    try:
        print(study_tokens(load_recipe(args.recipe, args.overrides, TokenStudyArguments)))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise
    return 0
