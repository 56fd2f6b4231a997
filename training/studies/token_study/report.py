# SPDX-License-Identifier: Apache-2.0
"""The report of a study of tokens: arms and tasks beside the paper's table, pictures, and what follows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from speech_tokenizers.evaluation.report_figures import dress, dress_legend, error_bars, new_figure, plot_panels
from speech_tokenizers.evaluation.report_pages import Figure, Report, Section, excludes_zero, interval
from speech_tokenizers.evaluation.understanding.metrics import METRICS, TaskMetric, by_seed, difference, score
from speech_tokenizers.training.studies.token_study.arguments import CONTROL_ARMS, TokenStudyArguments
from speech_tokenizers.training.studies.token_study.cells import (
    Cell,
    answers_of,
    common_names,
    facts_of,
    plain,
)


REFERENCE = "continuous"
# Table 1 of https://huggingface.co/papers/2411.08742 (Qwen1.5-0.5B), as others have transcribed it. ASR is LibriSpeech
# clean / other; two values of ST and KS are those of its two test sets.
PAPER_COLUMNS = ("ASR WER", "phones PER", "ST BLEU", "keywords %", "intents %", "emotions %")
PAPER_ROWS = {
    "HuBERT-L discrete": ("4.56 / 9.79", "9.69", "22.75 / 20.14", "93.70 / 93.85", "57.04", "38.65"),
    "WavLM-L discrete": ("4.72 / 10.45", "9.64", "24.62 / 21.22", "92.87 / 92.45", "59.96", "37.98"),
    "HuBERT-L continuous": ("4.91 / 6.43", "12.84", "26.63 / 25.42", "95.38 / 95.70", "76.84", "56.72"),
    "WavLM-L continuous": ("2.92 / 4.61", "12.62", "29.44 / 28.12", "97.76 / 97.36", "81.35", "59.45"),
}
# Below so many groups an interval says little.
FEWEST_GROUPS = 8

# Arm -> seed -> cell, of one task.
TaskCells = Mapping[str, Mapping[int, Cell]]


def compared(args: TokenStudyArguments, task: str, cells: TaskCells) -> dict[str, Any]:
    """
    The scores of all arms of a task, and by how much they exceed the reference arm's, on the clips that all answered.

    Args:
        args ([`TokenStudyArguments`]): The study.
        task (`str`): Name of the task.
        cells (mapping of `str` to mapping of `int` to [`Cell`]): The cells of each arm by their seeds.

    Returns:
        `dict`: `metrics`, `num_clips`, `num_groups` and, by arm, `scores`, `seeds` and `differences` by metric, and
        `facts` of the first seed.
    """
    every = [cell for of_seeds in cells.values() for cell in of_seeds.values()]
    names = common_names(every)
    targets, groups = facts_of(every[0], names)
    if any(facts_of(cell, names) != (targets, groups) for cell in every):
        raise ValueError(f"the cells of the task {task!r} have different true answers; remove them to measure anew.")
    metrics = args.metrics_of(task)
    found: dict[str, Any] = {
        "task": args.tasks[task].task,
        "expected": args.tasks[task].expected,
        "claim": args.tasks[task].claim,
        "metrics": metrics,
        "num_clips": len(names),
        "num_groups": len(set(groups)),
        "arms": {},
    }
    controls = [arm for arm in CONTROL_ARMS if arm in cells]
    main = METRICS[metrics[0]]

    def less(metric: str, arm: str, other: str) -> dict[str, Any]:
        one, two = (answers_of(part, names) for part in same_seeds(cells[arm], cells[other]))
        return plain(difference(metric, one, two, targets, groups))

    for arm, of_seeds in cells.items():
        answers = answers_of(list(of_seeds.values()), names)
        first = next(iter(of_seeds.values()))
        entry: dict[str, Any] = {"facts": first.facts, "scores": {}, "seeds": {}, "differences": {}}
        for metric in metrics:
            entry["scores"][metric] = plain(score(metric, answers, targets, groups))
            entry["seeds"][metric] = dict(zip(of_seeds, by_seed(metric, answers, targets), strict=True))
            if REFERENCE in cells and arm != REFERENCE:
                entry["differences"][metric] = less(metric, arm, REFERENCE)
        if arm not in controls:
            over = [less(metrics[0], arm, control) for control in controls]
            entry["above_controls"] = all(_is_better(main, told) for told in over)
        if "centroids" in cells and arm == "units":
            entry["path"] = less(metrics[0], arm, "centroids")
        found["arms"][arm] = entry
    return found


def same_seeds(one: Mapping[int, Cell], other: Mapping[int, Cell]) -> tuple[list[Cell], list[Cell]]:
    """The cells of two arms with the same seeds; an arm of one seed, such as an exact probe, stands beside all."""
    if 1 in (len(one), len(other)):
        return list(one.values()), list(other.values())
    shared = [seed for seed in one if seed in other]
    return [one[seed] for seed in shared], [other[seed] for seed in shared]


def study_report(args: TokenStudyArguments, results: Mapping[str, Any]) -> Report:
    """
    Args:
        args ([`TokenStudyArguments`]): The study.
        results (mapping): `levels` (by its name, the tasks that [`compared`] gives), and where measured `facts`,
            `layers`, `robustness` and `convergence`.
    """
    sections = []
    for level, tasks in results["levels"].items():
        title = "Probes" if level == "probe" else _of_model(level)
        sections.append(Section(title, _level_caption(level), [_table(tasks)], _level_figures(level, tasks)))
        sections.append(
            Section(
                f"{title}: less {REFERENCE}",
                f"By how much each arm exceeds {REFERENCE}, paired, in points; *: the 95 % interval excludes 0.",
                [_difference_table(tasks)],
                [_difference_figure(level, tasks)] if any(len(task["arms"]) > 1 for task in tasks.values()) else [],
            )
        )
        sections.append(Section(f"{title}: seeds", "Each seed by itself.", [_seed_table(tasks)]))
        if level != "probe":
            caption = "Bits of an id of the true answer, with its end, that the model needs; the first seed."
            sections.append(Section(f"{title}: bits", caption, [_bits_table(tasks)]))
        sections.append(Section(f"{title}: what follows", lines=verdicts(tasks, level)))
    sections.append(
        Section(
            "The paper's table",
            "The numbers of arXiv 2411.08742 (Qwen1.5-0.5B, encoders of 300 M parameters, hundreds of hours), as"
            " others have transcribed its table: the paper's, not ours, and of other data.",
            [[["encoder and tokens", *PAPER_COLUMNS], *([name, *row] for name, row in PAPER_ROWS.items())]],
        )
    )
    sections += _cost_sections(results)
    sections += _analysis_sections(results)
    expected = [f"{name}: {task.expected}" for name, task in args.tasks.items() if task.expected]
    sections.insert(0, Section("What was expected", "Written in the recipe before the run.", lines=expected))
    failures = [
        f"{task}: {entry['name']}: {entry['reason']}"
        for task, entries in results["set_aside"].items()
        for entry in entries
    ]
    return Report("Discrete and continuous speech tokens", _notes(args), sections, failures, results=results)


def _notes(args: TokenStudyArguments) -> list[str]:
    return [
        f"Encoder: {args.encoder.name.rsplit('/', 1)[-1]}, frozen; {args.encoder.num_units} k-means units of its"
        " frames, fitted on training clips alone.",
        "continuous: the encoder's frames. units: their k-means units. centroids: the frames that the units stand for,"
        " by the way of continuous; less continuous it is what quantizing costs. units less centroids is what the"
        " other way in costs or gains: in probes shares of units against means of frames, in language models runs of"
        " units without durations against stacked frames. Other arms are other models' tokens.",
        f"Controls: {', '.join(arm for arm in args.arms_of('lm') if arm in CONTROL_ARMS) or 'none'}.",
        "Intervals: 95 %, by redrawing groups (speakers, voices or scenes; single clips where a task names none). With"
        " several seeds, counts are averaged over them; how far seeds lie apart stands in a table of its own.",
        *args.notes,
    ]


def _of_model(level: str) -> str:
    size, _, matched = level.partition("/")[2].partition("@")
    return f"Language model `{size}`" + (f", at equal {matched}" if matched else "")


def _level_caption(level: str) -> str:
    if level == "probe":
        return "Ridge regression from the whole clip, and for phones a linear map with CTC; no language model."
    if level.endswith("@positions"):
        return (
            "As many steps as above, and in each as many positions of the sequence for every arm as for continuous, so"
            " that arms of more positions a second hear less speech. Arms of as many as continuous stand as above."
        )
    return "The same language model, prompt, targets, steps and seeds for every arm; closed answers by likelihood."


def _is_better(metric: TaskMetric, less: Mapping[str, Any]) -> bool:
    # Whether a difference is one for the better.
    return less["low"] > 0 if metric.higher_is_better else less["high"] < 0


def _title(task: Mapping[str, Any], name: str) -> str:
    metric = METRICS[task["metrics"][0]]
    return f"{name}: {metric.title} {'↑' if metric.higher_is_better else '↓'}"


def _arms(tasks: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(arm for task in tasks.values() for arm in task["arms"]))


def _main(task: Mapping[str, Any], arm: str, kind: str) -> Mapping[str, Any] | None:
    return task["arms"].get(arm, {}).get(kind, {}).get(task["metrics"][0])


def _table(tasks: Mapping[str, Any]) -> list[list[str]]:
    header = ["arm", *(_title(task, name) for name, task in tasks.items())]
    rows = [[arm, *(interval(_main(task, arm, "scores"), 1) for task in tasks.values())] for arm in _arms(tasks)]
    counts = [f"{task['num_clips']} clips, {task['num_groups']} groups" for task in tasks.values()]
    return [header, *rows, ["tested on", *counts]]


def _seed_table(tasks: Mapping[str, Any]) -> list[list[str]]:
    header = ["arm", *(_title(task, name) for name, task in tasks.items())]
    rows = []
    for arm in _arms(tasks):
        told = [(_main(task, arm, "seeds") or {}).values() for task in tasks.values()]
        rows.append([arm, *(" / ".join(f"{value:.1f}" for value in values) or "-" for values in told)])
    return [header, *rows]


def _bits_table(tasks: Mapping[str, Any]) -> list[list[str]]:
    rows = [["arm", *tasks]]
    for arm in _arms(tasks):
        facts = [task["arms"].get(arm, {}).get("facts", {}) for task in tasks.values()]
        told = [sum(found["bits"]) / sum(found["num_tokens"]) if "bits" in found else None for found in facts]
        rows.append([arm, *(interval(value, 2) for value in told)])
    return rows


def _difference_table(tasks: Mapping[str, Any]) -> list[list[str]]:
    header = ["arm", *(_title(task, name) for name, task in tasks.items())]
    rows = [
        [arm, *(interval(_main(task, arm, "differences"), 1, signed=True) for task in tasks.values())]
        for arm in _arms(tasks)
        if arm != REFERENCE
    ]
    path = [interval(task["arms"].get("units", {}).get("path"), 1, signed=True) for task in tasks.values()]
    return [header, *rows, ["units less centroids", *path]]


def verdicts(tasks: Mapping[str, Any], level: str) -> list[str]:
    """
    For each task a sentence on units against continuous, beside what a paper found.

    Args:
        tasks (mapping): Tasks of a level, as [`compared`] gives them.
        level (`str`): The level; linear probes neither confirm nor refute what was found with language models.
    """
    lines = []
    for name, task in tasks.items():
        found = _main(task, "units", "differences")
        if found is None:
            continue
        metric, claim = METRICS[task["metrics"][0]], task["claim"]
        told = f"units less continuous {interval(found, 1, signed=True)}"
        if not any(task["arms"][arm]["above_controls"] for arm in (REFERENCE, "units")):
            lines.append(f"{name}: neither continuous nor units are above all controls, so that nothing follows.")
            continue
        if not excludes_zero(found):
            line = f"{name}: {told}: no difference is shown"
            agrees = "neither confirmed nor refuted"
        else:
            better = "units" if (found["value"] > 0) == metric.higher_is_better else REFERENCE
            line = f"{name}: {told}: {better} better"
            agrees = "confirmed" if better == claim else "refuted"
        if claim is not None:
            line += f"; the paper: {claim} better" + (f" ({agrees} here)" if level != "probe" else "")
        if task["num_groups"] < FEWEST_GROUPS:
            line += f"; only {task['num_groups']} groups: an indication"
        lines.append(line + ".")
    return lines


def _level_figures(level: str, tasks: Mapping[str, Any]) -> list[Figure]:
    if not tasks:
        return []
    arms = _arms(tasks)
    panels = [(_title(task, name), [_main(task, arm, "scores") for arm in arms]) for name, task in tasks.items()]
    alt = "Scores of the arms with 95 % intervals, a panel a task."
    return [Figure(plot_panels(arms, panels), alt, f"{level.replace('/', '-')}-scores.png")]


def _difference_figure(level: str, tasks: Mapping[str, Any]) -> Figure:
    arms = [arm for arm in _arms(tasks) if arm != REFERENCE and arm not in CONTROL_ARMS]
    panels = []
    for name, task in tasks.items():
        metric = METRICS[task["metrics"][0]]
        better = "right" if metric.higher_is_better else "left"
        told = [_main(task, arm, "differences") for arm in arms]
        panels.append((f"{name}: {metric.title} less {REFERENCE} (better: {better})", told))
    alt = f"Paired differences to {REFERENCE} with 95 % intervals, a panel a task."
    return Figure(plot_panels(arms, panels, about_zero=True), alt, f"{level.replace('/', '-')}-differences.png")


# --- What tokens cost ---


def _cost_sections(results: Mapping[str, Any]) -> list[Section]:
    facts = results.get("facts", {})
    rows = [["task", "tokens", "bit/s nominal", "bit/s entropy", "tokens/s", "runs/s", "merged/s", "merged bit/s"]]
    usage = [["task", "tokens", "units", "never used", "perplexity", "share of the rarest fifth %"]]
    for task, arms in facts.items():
        for arm, fact in arms.items():
            rates = fact["rates"]
            merged = (fact["merged_per_second"], fact["merged_entropy_bits_per_second"])
            rows.append(
                [
                    task,
                    arm,
                    *(f"{rates[name]:.0f}" for name in ("nominal", "entropy")),
                    f"{fact['frames_per_second'] * len(fact['frames']):.1f}",
                    f"{fact['runs_per_second']:.1f}",
                    *("-" if value is None else f"{value:.1f}" for value in merged),
                ]
            )
            first = fact["frames"][0]
            usage.append(
                [
                    task,
                    arm,
                    str(first["num_units"]),
                    str(first["num_dead"]),
                    f"{first['perplexity']:.0f}",
                    f"{100 * first['rarest_share']:.1f}",
                ]
            )
    caption = "Runs are equal neighbours taken as one; merged: byte-pair merges of runs. Rates without durations."
    figures = [] if not facts else [_zipf_figure(facts)]
    return [
        Section("What tokens cost", caption, [rows]),
        Section("How evenly units are used", "Of the first codebook.", [usage], figures),
    ]


def _zipf_figure(facts: Mapping[str, Any]) -> Figure:
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot(1, 1, 1)
    for number, (task, arms) in enumerate(facts.items()):
        points = np.array(arms["units"]["frames"][0]["zipf"])
        axes.loglog(points[:, 0], points[:, 1], color=f"C{number % 10}", label=task)
    dress(axes, "", "rank of the unit", "share of the frames")
    dress_legend(axes.legend())
    return Figure(
        figure, "Share of the frames that each unit of the encoder has, by its rank (Zipf's curve).", "zipf.png"
    )


# --- Analyses ---


def _analysis_sections(results: Mapping[str, Any]) -> list[Section]:
    sections = []
    layers = results.get("layers", {})
    if layers:
        rows = [["task", "layer", "continuous", "units"]]
        for task, scores in layers.items():
            for layer in dict.fromkeys(name.split()[1] for name in scores):
                told = [interval(scores.get(f"{view} {layer}"), 1) for view in ("continuous", "units")]
                rows.append([task, layer, *told])
        sections.append(Section("Layers of the encoder", "Probes of the first seed.", [rows]))
    robustness = results.get("robustness", {})
    if robustness:
        rows = [["task", "condition", "continuous", "units", "centroids", "units that change %"]]
        for task, facts in robustness.items():
            for condition in facts["scores"]["continuous"]:
                told = [interval(facts["scores"][arm][condition], 1) for arm in ("continuous", "units", "centroids")]
                moved = interval(facts["unit_edit_distance"].get(condition), 1)
                rows.append([task, condition, *told, moved])
        caption = (
            "Test clips that are disturbed after training on clean ones, with the first seed. Units that change: edit"
            " distance of the de-duplicated units to those of the clean clip, over their number."
        )
        sections.append(Section("Noise, rooms and distance", caption, [rows], [_robustness_figure(robustness)]))
    rarity = _rarity_table(results["levels"])
    if len(rarity) > 1:
        caption = (
            "Bits of an id of the true answer, in fifths of the test clips: those whose units are rarest in training"
            " first. The first seed."
        )
        sections.append(Section("Rare units", caption, [rarity]))
    if convergence := results.get("convergence"):
        sections.append(_convergence_section(convergence))
    return sections


def _rarity_table(levels: Mapping[str, Any]) -> list[list[str]]:
    rows = [["language model, task", "arm", "rarest", *("" for _ in range(3)), "most frequent"]]
    for level, tasks in levels.items():
        for name, task in tasks.items():
            for arm, told in task["arms"].items():
                if buckets := told["facts"].get("rarity"):
                    cells = [interval(bucket["loss"], 2) for bucket in buckets]
                    rows.append([f"{level.removeprefix('lm/')}, {name}", arm, *cells])
    return rows


def _robustness_figure(robustness: Mapping[str, Any]) -> Figure:
    figure = new_figure(4.6 * len(robustness), 3.0)
    for number, (task, facts) in enumerate(robustness.items(), 1):
        axes = figure.add_subplot(1, len(robustness), number)
        for place, (arm, scores) in enumerate(facts["scores"].items()):
            told = list(scores.values())
            values = [entry["value"] for entry in told]
            axes.errorbar(
                range(len(told)), values, yerr=error_bars(told), marker="o", capsize=2, color=f"C{place}", label=arm
            )
        axes.set_xticks(range(len(scores)), list(scores), rotation=40, ha="right")
        dress(axes, task)
        if number == 1:
            dress_legend(axes.legend())
    return Figure(figure, "Scores of disturbed test clips, with 95 % intervals.", "robustness.png")


def _convergence_section(convergence: Mapping[str, Any]) -> Section:
    rows = [["level, task", "arm", "positions seen", "held-out nats at equal steps", "at equal positions"]]
    for name, arms in convergence.items():
        for arm, told in arms.items():
            rows.append(
                [
                    name,
                    arm,
                    f"{told['positions'][-1]:,.0f}",
                    f"{told['losses'][-1]:.3f}",
                    "-" if told["at_equal_positions"] is None else f"{told['at_equal_positions']:.3f}",
                ]
            )
    figure = new_figure(4.6 * min(3, len(convergence)), 2.8 * -(-len(convergence) // 3))
    for number, (name, arms) in enumerate(convergence.items(), 1):
        axes = figure.add_subplot(-(-len(convergence) // 3), min(3, len(convergence)), number)
        for place, (arm, told) in enumerate(arms.items()):
            axes.plot(told["positions"], told["losses"], color=f"C{place % 10}", label=arm)
        dress(axes, name, "positions seen", "held-out nats")
        if number == 1:
            dress_legend(axes.legend())
    caption = (
        "Loss of the answers of held-out clips, in nats an id, against the positions of the sequence that training has"
        " seen, about. At equal positions: where the arm with the fewest positions ends; the learning rate of the"
        " others has not fallen to 0 there, so that they look somewhat worse than after a training of that length."
    )
    alt = "Held-out loss against the positions that training has seen, a line an arm."
    return Section("Convergence", caption, [rows], [Figure(figure, alt, "convergence.png")])


__all__ = ["compared", "same_seeds", "study_report", "verdicts"]
