# SPDX-License-Identifier: Apache-2.0
"""
`speech-tokenizers ablate`: train a recipe in several variants, the arms, and compare what came of them.

An arm is a name and changes to the recipe. Without others the four arms are those of DM-Codec's missing ablation: no
distillation, from the speech model, from the language model, and from both, with the same seed, data and steps.
"""

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speech_tokenizers.coding.command_options import choose_device
from speech_tokenizers.evaluation.reconstruction.command import add_measuring_arguments
from speech_tokenizers.processing.termination import interruption
from speech_tokenizers.processing.whole_files import write_whole
from speech_tokenizers.training.common.child_process import run_command


DISTILLATION_ARMS = {
    "none": (
        "distillation.speech_teacher=null",
        "distillation.language_teacher=null",
        "model.overrides.semantic_dimension=null",
        "model.overrides.contextual_dimension=null",
        "model.overrides.share_projection=false",
    ),
    "speech": (
        "distillation.language_teacher=null",
        "model.overrides.contextual_dimension=null",
        "model.overrides.share_projection=false",
    ),
    "language": (
        "distillation.speech_teacher=null",
        "model.overrides.semantic_dimension=null",
        "model.overrides.share_projection=false",
    ),
    "both": (),
}
"""Changes to a recipe with both teachers that leave none, one or both of them."""

METRIC_NAMES = ("pesq", "stoi", "mel_distance", "speaker_similarity")
# Settings of a recipe that say where and how, not what is trained.
_INCIDENTAL = (
    "output_dir",
    "resume_from_checkpoint",
    "report_to",
    "save_steps",
    "save_total_limit",
    "data.cache_dir",
    "distillation.cache_dir",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers ablate`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of this installation")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings of all arms")
    parser.add_argument(
        "--arms",
        nargs="*",
        default=[],
        choices=DISTILLATION_ARMS,
        metavar="ARM",
        help=f"teachers of the recipe to keep: {', '.join(DISTILLATION_ARMS)}; default: all, unless --arm",
    )
    parser.add_argument(
        "--arm",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "key=value"),
        help="an arm of your own: its name and its settings; may be given several times",
    )
    parser.add_argument("--baseline", help="arm that the others are compared with; default: the first")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each arm is trained with each; default: 0")
    parser.add_argument("--data", metavar="RECORDINGS", type=Path, required=True, help="recordings to measure on")
    add_measuring_arguments(parser, METRIC_NAMES)
    parser.add_argument(
        "--num-quantizers",
        nargs="*",
        type=int,
        default=[1],
        help="besides all codebooks, decode from the first so many; default: 1",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        help="labels for the frame probe: JSON lines with file_name, labels, as `align --unit label` writes them",
    )
    parser.add_argument(
        "--labels-data", metavar="FOLDER", type=Path, help="recordings of --labels; default: those of --data"
    )
    parser.add_argument(
        "--held-out",
        metavar="COLUMN=VALUE",
        help="rows of the metadata that the frame probe is tested on; default: a quarter of the speakers",
    )
    parser.add_argument(
        "--probe-stages", nargs="+", default=["1"], metavar="K|K-L", help="codebooks to probe; default: 1"
    )
    parser.add_argument(
        "--cost-steps",
        type=int,
        default=20,
        help="steps that all arms take in turn once they are trained, to compare costs; default: 20",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers ablate`; returns the exit code."""
    from speech_tokenizers.training.codec.arguments import load_codec_recipe
    from speech_tokenizers.training.common.recipe_files import recipe_errors

    args.device = choose_device(args.device)
    arms = choose_arms(args.arms, args.arm)
    baseline = args.baseline or next(iter(arms))
    if baseline not in arms:
        raise ValueError(f"`--baseline` must be one of {', '.join(arms)}, but got {baseline!r}.")
    stages = [parse_stages(text) for text in args.probe_stages]
    frame_labels = None
    if args.labels is not None:
        from speech_tokenizers.evaluation.reconstruction.arms import read_frame_labels

        frame_labels = read_frame_labels(args.labels, args.labels_data or args.data, args.held_out)
    plans = [
        plan_arm(args.recipe, args.overrides, name, changes, seed, args.output)
        for name, changes in arms.items()
        for seed in args.seeds
    ]
    with recipe_errors():
        recipes = {plan.name: load_codec_recipe(args.recipe, plan.overrides) for plan in plans}
    for plan in plans:  # before hours of training
        check_settings(plan.folder, recipes[plan.name].to_dict())
        check_data(plan.folder, recipes[plan.name])
    if args.cost_steps:
        from speech_tokenizers.training.studies.step_cost import check_one_precision

        check_one_precision(recipes)
    return train_and_compare(args, plans, arms, baseline, frame_labels, stages)


def train_and_compare(
    args: argparse.Namespace,
    plans: Sequence["ArmPlan"],
    arms: Mapping[str, Sequence[str]],
    baseline: str,
    frame_labels: Any,
    stages: Sequence[tuple[int, int]],
) -> int:
    """Train and compare, once the command line is found to be right; returns the exit code."""
    import torch
    from transformers.utils import logging

    from speech_tokenizers.evaluation.reconstruction.arm_report import build_report
    from speech_tokenizers.evaluation.reconstruction.arms import TrainedArm, compare_arms
    from speech_tokenizers.evaluation.reconstruction.comparison import prepare_comparison

    try:
        comparison, skipped, num_unreadable = prepare_comparison(args)
        for plan in plans:
            plan.train(args.recipe)
        costs = step_costs(args, [plan for plan in plans if plan.seed == args.seeds[0]]) if args.cost_steps else {}
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)

    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    trained = [TrainedArm(plan.name, plan.seed, plan.final, plan.cost() | costs.get(plan.name, {})) for plan in plans]
    results = compare_arms(
        trained,
        comparison,
        baseline,
        [None, *args.num_quantizers],
        frame_labels,
        stages,
        args.device,
    )
    for name, changes in arms.items():
        results["arms"][name]["overrides"] = list(changes)
    results |= {"recipe": args.recipe, "overrides": args.overrides, "skipped": skipped}
    report = build_report(results)
    written = report.write(args.output, "ablation")
    print(report.markdown())
    print("written: " + ", ".join(str(path) for path in written))
    return int(num_unreadable > 0)


def choose_arms(named: Sequence[str], own: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """
    The arms by name, each with its changes to the recipe.

    Args:
        named (sequence of `str`): Names of `DISTILLATION_ARMS`.
        own (sequence of sequences of `str`): Arms of the user, each a name and its changes.

    Raises:
        ValueError: If a name is given twice or cannot be a folder's, or there are fewer than two arms.
    """
    if not named and not own:
        named = list(DISTILLATION_ARMS)
    pairs = [(name, DISTILLATION_ARMS[name]) for name in named] + [(name, tuple(rest)) for name, *rest in own]
    arms = dict(pairs)
    if len(arms) < len(pairs):
        raise ValueError("Two arms have one name; give each its own.")
    for name in arms:
        if "=" in name or name != Path(name).name:
            raise ValueError(f"An arm's name comes first and becomes a folder's, which {name!r} cannot.")
    if len(arms) < 2:
        raise ValueError(f"An ablation compares at least two arms, but got {', '.join(arms)}.")
    return arms


def parse_stages(text: str) -> tuple[int, int]:
    """First and last codebook of `K` or `K-L`."""
    first, _, last = text.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise ValueError(f"`--probe-stages` are numbers of codebooks such as 1 or 1-8, but got {text!r}.")
    return int(first), int(last or first)


def plan_arm(
    recipe: str, overrides: Sequence[str], name: str, changes: Sequence[str], seed: int, output: Path
) -> "ArmPlan":
    """
    Plan of one arm with one seed: the recipe with the settings of all arms and its own, in a folder of its own.

    Decoded recordings and teachers' features are shared by all arms, unless the recipe says where to keep them.
    """
    from speech_tokenizers.training.codec.arguments import load_codec_recipe

    folder = output / "runs" / name / f"seed-{seed}"
    chosen = load_codec_recipe(recipe, [*overrides, *changes])
    settings = {"seed": seed, "output_dir": str(folder), "resume_from_checkpoint": "latest"}
    if chosen.data.cache_dir is None:
        settings["data.cache_dir"] = str(output / "audio_cache")
    if chosen.distillation.cache_dir is None:
        settings["distillation.cache_dir"] = str(output / "teacher_cache")
    # JSON is YAML, and keeps a path's colons and blanks.
    own = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return ArmPlan(name, seed, folder, [*overrides, *changes, *own])


class ArmPlan:
    """
    One training of an ablation.

    Args:
        name (`str`), seed (`int`): Name and seed of the arm.
        folder (`Path`): Folder of the run, its `output_dir`.
        overrides (sequence of `str`): Settings that differ from the recipe, as `key=value` pairs.
    """

    def __init__(self, name: str, seed: int, folder: Path, overrides: Sequence[str]):
        self.name, self.seed, self.folder, self.overrides = name, seed, folder, list(overrides)
        self.final = folder / "final"
        self._sessions = folder / "sessions.jsonl"

    def train(self, recipe: str) -> None:
        """
        Train until it is finished, from its newest checkpoint if there is one. It runs in a process with memory of its
        own.

        Raises:
            KeyboardInterrupt: If it was told to stop; it has saved a checkpoint.
            ChildProcessError: If it failed.
        """
        if (self.final / "config.json").is_file():
            return
        print(f"training {self.name}, seed {self.seed}: {self.folder}", file=sys.stderr)
        finished = run_command(["train", recipe, *self.overrides])
        session = {"seconds": finished.seconds, "peak_memory_gb": finished.peak_memory_gb}
        if self.folder.is_dir():
            with self._sessions.open("a", encoding="utf-8") as file:
                file.write(json.dumps(session) + "\n")
        if finished.stopped_by:
            raise interruption(finished.stopped_by)
        if finished.returncode or not (self.final / "config.json").is_file():
            raise ChildProcessError(
                f"The training of {self.name}, seed {self.seed} ended with code {finished.returncode}; its words are"
                " above. The same command goes on from its newest checkpoint."
            )

    def cost(self) -> dict[str, float]:
        """
        Cost of the training: `steps`; `seconds_per_step`, the median of the log's windows, which other work on the
        machine moves least; and the peak memory of the process, and of a GPU.
        """
        from speech_tokenizers.training.common.reporting import read_log

        log = [entry for entry in read_log(self.folder / "training_log.jsonl") if "steps_per_second" in entry]
        cost: dict[str, float] = {}
        if log:
            cost["steps"] = log[-1]["step"]
            cost["seconds_per_step"] = statistics.median(1 / entry["steps_per_second"] for entry in log)
            if "peak_memory_gb" in log[-1]:
                cost["peak_gpu_memory_gb"] = max(entry["peak_memory_gb"] for entry in log)
        if self._sessions.is_file():
            sessions = map(json.loads, self._sessions.read_text(encoding="utf-8").splitlines())
            cost["peak_memory_gb"] = max(session["peak_memory_gb"] for session in sessions)
        return cost


def step_costs(args: argparse.Namespace, plans: Sequence[ArmPlan]) -> dict[str, dict[str, float]]:
    """
    Cost of a step of each arm when the arms take their steps in turn. It is read from the output folder if it is known
    there.
    """
    from speech_tokenizers.training.codec.arguments import load_codec_recipe
    from speech_tokenizers.training.studies.step_cost import measure_steps

    recipes = {plan.name: load_codec_recipe(args.recipe, plan.overrides) for plan in plans}
    settings = {name: essential(recipe.to_dict()) for name, recipe in recipes.items()}
    content = json.dumps([args.cost_steps, settings], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    path = args.output / "step_cost.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["key"] == key:
            return known["arms"]
    costs = measure_steps(recipes, args.cost_steps)
    write_whole(path, json.dumps({"key": key, "steps": args.cost_steps, "arms": costs}, indent=1) + "\n")
    return costs


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """
    Raise `ValueError` if what was trained in `folder`, by its `recipe.yaml`, had other settings than `settings`.
    """
    from speech_tokenizers.training.codec.arguments import load_codec_recipe

    path = folder / "recipe.yaml"
    if not path.is_file():
        return
    before, now = essential(load_codec_recipe(str(path)).to_dict()), essential(settings)
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{folder} was trained with other settings ({', '.join(differing)}; `{key}` was {before.get(key)!r} and is"
            f" {now.get(key)!r}); choose another --output, or delete that folder."
        )


def check_data(folder: Path, recipe: Any) -> None:
    """Raise `ValueError` if what was trained in `folder` learnt from other data than `recipe` names."""
    if not (folder / "inputs.json").is_file():
        return
    from speech_tokenizers.training.codec.codec_record import columns, sources
    from speech_tokenizers.training.common.run_record import RunRecord, recordings_named

    inputs: dict[str, Any] = dict(sources(recipe))
    if not recipe.data.streaming:
        inputs["data.train"] = recordings_named(recipe.data, "train", columns(recipe))
    RunRecord(folder, recipe, inputs, finished=("",)).check()


def essential(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what is trained, by dotted keys."""
    return {key: value for key, value in flatten(settings).items() if not key.startswith(_INCIDENTAL)}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys; what is `None` is left out."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
