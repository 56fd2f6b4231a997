# SPDX-License-Identifier: Apache-2.0
"""The report of an ablation: scores of its arms, their differences from the baseline, and what they cost."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speech_tokenizers.evaluation.reconstruction.report import ERROR_RATES_NOTE, score_digits, score_titles
from speech_tokenizers.evaluation.report_figures import plot_panels
from speech_tokenizers.evaluation.report_pages import (
    DASH,
    Figure,
    Player,
    Report,
    Section,
    excludes_zero,
    interval,
)


if TYPE_CHECKING:
    import matplotlib.figure


Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]  # arm -> score -> estimate, difference, seeds, failed


def _digits(name: str) -> int:
    return 1 if name.startswith(("accuracy", "macro_f1")) else score_digits(name)


def section_titles(results: Mapping[str, Any], scores: Scores) -> dict[str, str]:
    """Title of each score of a section, in the order of its columns."""
    if any(name in results["probe"]["titles"] for of_arm in scores.values() for name in of_arm):
        known = results["probe"]["titles"]
    else:
        systems = [{"scores": of_arm} for of_arm in scores.values()] + [{"scores": results["recording"]}]
        known = score_titles({**results, "systems": systems})
    return {name: title for name, title in known.items() if any(name in of_arm for of_arm in scores.values())}


def compared_titles(results: Mapping[str, Any], scores: Scores) -> dict[str, str]:
    """`section_titles` without the frame probe's control, whose differences are noise."""
    return {name: title for name, title in section_titles(results, scores).items() if "shuffled" not in name}


def higher_is_better(results: Mapping[str, Any], name: str) -> bool:
    """Whether a larger value of a score is the better one; error rates have no entry in the results."""
    return name in results["probe"]["titles"] or results["higher_is_better"].get(name, False)


def score_rows(results: Mapping[str, Any], scores: Scores, with_recording: bool = False) -> list[list[str]]:
    """Header and one row an arm: every score with its interval, and in brackets those of the seeds."""
    titles = section_titles(results, scores)
    rows = [["arm", *titles.values()]]
    if with_recording:
        cells = [interval(results["recording"].get(name), _digits(name)) for name in titles]
        rows.append(["(the recording)", *cells])
    for arm, of_arm in scores.items():
        rows.append([arm, *[_score_cell(of_arm[name], name) if name in of_arm else DASH for name in titles]])
    return rows


def _score_cell(score: Mapping[str, Any], name: str) -> str:
    digits = _digits(name)
    cell = interval(score["estimate"], digits)
    if len(score["seeds"]) > 1:
        cell += f" ({', '.join(interval(value, digits) for value in score['seeds'])})"
    return f"{cell}, {score['failed']} failed" if score["failed"] else cell


def difference_rows(results: Mapping[str, Any], scores: Scores) -> list[list[str]]:
    """Header and one row for each arm but the baseline: by how much each score exceeds the baseline's."""
    titles = compared_titles(results, scores)
    rows = [[f"minus {results['baseline']}", *titles.values()]]
    for arm, of_arm in scores.items():
        if arm != results["baseline"]:
            differences = {name: of_arm.get(name, {}).get("difference") for name in titles}
            rows.append([arm, *[interval(value, _digits(name), signed=True) for name, value in differences.items()]])
    return rows


def perplexity_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Perplexity of the codes of each stage, a row an arm."""
    arms = results["arms"]
    width = max((len(arm["perplexities"]) for arm in arms.values()), default=0)
    rows = [["arm", *[f"codebook {number}" for number in range(1, width + 1)], "kbps entropy"]]
    for name, arm in arms.items():
        rates = arm["kbps_entropy"]
        rate = interval(sum(rates) / len(rates) if rates else None, 2)
        rows.append([name, *[f"{value:.0f}" for value in arm["perplexities"]], rate])
    return rows


def cost_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Time and memory of a training step of each arm, and relative to the baseline's."""
    columns = {
        "steps": ("steps", "{:.0f}"),
        "seconds_per_step": ("seconds a step, as it was trained", "{:.3f}"),
        "seconds_in_turn": ("seconds a step, arms in turn", "{:.3f}"),
        "cpu_seconds_in_turn": ("processor seconds a step, arms in turn", "{:.3f}"),
        "peak_memory_gb": ("peak memory (GB)", "{:.2f}"),
        "peak_gpu_memory_gb": ("peak GPU memory (GB)", "{:.2f}"),
    }
    costs = {name: arm["cost"] for name, arm in results["arms"].items()}
    used = [name for name in columns if any(name in cost for cost in costs.values())]
    rows = [["arm", *[columns[name][0] for name in used]]]
    for arm, cost in costs.items():
        cells = []
        for name in used:
            cell = columns[name][1].format(cost[name]) if name in cost else DASH
            base = costs[results["baseline"]].get(name)
            if name != "steps" and name in cost and base and arm != results["baseline"]:
                cell += f" ({cost[name] / base:.2f}x)"
            cells.append(cell)
        rows.append([arm, *cells])
    return rows


def verdicts(results: Mapping[str, Any]) -> list[str]:
    """For each arm and section a sentence: where it is better than the baseline, where worse, where neither shows."""
    sections = {f"decoded from {title}": scores for title, scores in results["decoded"].items()}
    sections |= {f"frame probe of {title}": scores for title, scores in results["probe"]["stages"].items()}
    lines = []
    for title, scores in sections.items():
        titles = compared_titles(results, scores)
        for arm, of_arm in scores.items():
            found: dict[str, list[str]] = {"better": [], "worse": [], "no difference shown": []}
            for name, score_title in titles.items():
                difference = of_arm.get(name, {}).get("difference")
                if difference is None:
                    continue
                if not excludes_zero(difference):
                    found["no difference shown"].append(score_title)
                elif (difference["value"] > 0) == higher_is_better(results, name):
                    found["better"].append(score_title)
                else:
                    found["worse"].append(score_title)
            parts = [f"{verdict}: {', '.join(names)}" for verdict, names in found.items() if names]
            if parts:
                lines.append(f"{arm} against {results['baseline']}, {title}: {'; '.join(parts)}.")
    return lines


def notes(results: Mapping[str, Any]) -> list[str]:
    """Sentences that say how the numbers came about."""
    data, probe = results["data"], results["probe"]
    lines = [
        f"{data['num_clips']} clips, {data['seconds'] / 60:.1f} minutes; {results['date']}; data key {data['key']}.",
        "Values with 95 % bootstrap intervals over clips; differences with those of the paired bootstrap (the same "
        "clips of both arms); * where the interval excludes 0. The many comparisons are not corrected for.",
        "An interval tells how far other clips would move a value, not how far other seeds of the training would."
        + (" Seeds are pooled; the value of each is in brackets." if _several_seeds(results) else " One seed each."),
    ]
    if results["recognizers"]:
        lines.append(ERROR_RATES_NOTE)
    if any("seconds_in_turn" in arm["cost"] for arm in results["arms"].values()):
        lines.append(
            "Cost: medians. Steps that all arms take in turn meet the same load of the machine; those of the training "
            "do not."
        )
    if probe["stages"]:
        lines.append(
            f"Frame probe: single frames classified into {probe['num_labels']} labels; learnt from "
            f"{probe['num_train']} frames, tested on {probe['num_test']} of {probe['held_out']}."
        )
    return lines + [f"Skipped {name}: {reason}" for name, reason in results.get("skipped", {}).items()]


def _several_seeds(results: Mapping[str, Any]) -> bool:
    return any(len(arm["seeds"]) > 1 for arm in results["arms"].values())


def arm_lines(results: Mapping[str, Any]) -> list[str]:
    """What sets each arm apart."""
    lines = []
    for name, arm in results["arms"].items():
        changes = ", ".join(f"`{override}`" for override in arm.get("overrides", [])) or "the recipe as it is"
        lines.append(f"{name}: {changes} (seeds {', '.join(map(str, arm['seeds']))})")
    return lines


def plot_differences(results: Mapping[str, Any], scores: Scores) -> "matplotlib.figure.Figure | None":
    """A panel for each score: differences of the arms from the baseline with their intervals, about a line at 0."""
    arms = [arm for arm in scores if arm != results["baseline"]]
    panels = []
    for name, title in compared_titles(results, scores).items():
        differences = [scores[arm].get(name, {}).get("difference") for arm in arms]
        if any(differences):
            better = "right" if higher_is_better(results, name) else "left"
            panels.append((f"{title} ({better} is better)", differences))
    return plot_panels(arms, panels, about_zero=True) if panels else None


def score_section(results: Mapping[str, Any], title: str, scores: Scores, with_recording: bool = False) -> Section:
    """The scores of the arms and their differences from the baseline, as tables and as a figure."""
    figure = plot_differences(results, scores)
    alt = f"Differences from {results['baseline']}, with intervals. {title}."
    return Section(
        title,
        tables=[score_rows(results, scores, with_recording), difference_rows(results, scores)],
        figures=[] if figure is None else [Figure(figure, alt)],
    )


def player_sections(results: Mapping[str, Any]) -> list[Section]:
    """A section for each example, with a player for each system that decoded it."""
    audio = results["audio"]
    sections = []
    for clip in sorted({clip for paths in audio.values() for clip in paths}):
        rows = [[system, Player(paths[clip])] for system, paths in audio.items() if clip in paths]
        sections.append(Section(clip, tables=[[["system", "recording"], *rows]]))
    return sections


def build_report(results: Mapping[str, Any]) -> Report:
    """
    The report that is written as `ablation`.

    Args:
        results (mapping): What `compare_arms` found, with each arm's `overrides` where known.
    """
    with_recording = any(results["recording"].values())
    sections = [
        score_section(results, f"Decoded from {title}", scores, with_recording)
        for title, scores in results["decoded"].items()
    ]
    sections += [
        score_section(results, f"Frame probe of {title}", scores)
        for title, scores in results["probe"]["stages"].items()
    ]
    if any(arm["perplexities"] for arm in results["arms"].values()):
        sections.append(Section("Perplexity of the codes", tables=[perplexity_rows(results)]))
    sections += [
        Section("Cost of the training", tables=[cost_rows(results)]),
        Section("What the intervals show", lines=verdicts(results)),
        *player_sections(results),
    ]
    return Report("Ablation", [*arm_lines(results), *notes(results)], sections, results=results)
