# SPDX-License-Identifier: Apache-2.0
"""
`speech-tokenizers study tokens`: discrete against continuous tokens of one encoder, and others' tokens, on
understanding tasks.

The question is that of https://huggingface.co/papers/2411.08742. Each cell (task, arm, seed) is measured once; after
an interruption, the same command continues.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.studies.token_study.arguments import TokenStudyArguments
from speech_tokenizers.training.studies.token_study.cells import Cell, cell_path, kept_analysis, level_key, read_cell


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
    for task in args.tasks:
        systems.prepared(task)  # what is wrong with a manifest is said before anything is measured
    level: Any = ProbeLevel(args, systems) if args.level == "probe" else LMLevel(args, systems)
    level.run()
    report = study_report(args, study_results(args))
    report.write(Path(args.output_dir), "results")
    return report.markdown()


def study_results(args: TokenStudyArguments) -> dict[str, Any]:
    """What was measured so far, as plain values; see [`study_report`]."""
    from speech_tokenizers.training.studies.token_study.report import compared

    output = Path(args.output_dir)
    sizes = [size for size in args.lm.sizes if (output / "lm" / size).is_dir()]
    results: dict[str, Any] = {"levels": {}}
    for level in ("probe", *(f"lm/{size}" for size in sizes)):
        tasks = {}
        for task in args.tasks:
            cells = _cells(args, level, task)
            if cells:
                tasks[task] = compared(args, task, cells)
        if tasks:
            results["levels"][level] = tasks
    for kind in ("facts", "layers", "robustness"):
        found = {task: kept_analysis(args, kind, task) for task in args.tasks}
        results[kind] = {task: told for task, told in found.items() if told}
    results["convergence"] = {
        f"{level.removeprefix('lm/')}, {task}": told
        for level, tasks in results["levels"].items()
        if level != "probe"
        for task, found in tasks.items()
        if (told := _convergence(found["arms"]))
    }
    return results


def _cells(args: TokenStudyArguments, level: str, task: str) -> dict[str, list[Cell]]:
    # The finished cells of each arm, of these settings.
    found = {}
    for arm in args.arms_of(level):
        places = [(level, task, arm, seed) for seed in args.seeds_of(task)]
        cells = [read_cell(cell_path(args, *place), level_key(args, *place)) for place in places]
        if finished := [cell for cell in cells if cell is not None]:
            found[arm] = finished
    return found


def _convergence(arms: dict[str, Any]) -> dict[str, Any]:
    # Losses of held-out clips against positions, of the first seed, and where the arm with the fewest positions ends.
    curves = {arm: told["facts"]["curve"] for arm, told in arms.items() if told["facts"].get("curve")}
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
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of this installation")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe")


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers study tokens`; returns the exit code."""
    try:
        print(study_tokens(load_recipe(args.recipe, args.overrides, TokenStudyArguments)))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise
    return 0
