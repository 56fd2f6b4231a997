# SPDX-License-Identifier: Apache-2.0
"""An ablation's results as JSON, Markdown tables and an HTML page with plots and audio players."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_tokenizers.evaluation.reconstruction.report import score_digits, score_titles
from speech_tokenizers.evaluation.report_pages import STYLE, embed_figure, html_table, markdown_table, write_text


if TYPE_CHECKING:
    from matplotlib.figure import Figure


Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]  # arm -> score -> estimate, difference, seeds, failed


def format_estimate(estimate: Mapping[str, Any] | None, name: str, signed: bool = False) -> str:
    r"""`value [low, high]`; with a sign, and an asterisk where the interval excludes 0, for a difference."""
    if estimate is None:
        return "–"
    form = f"{'+' if signed else ''}.{_digits(name)}f"
    value, low, high = (f"{estimate[end]:{form}}" for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" + (" *" if signed and excludes_zero(estimate) else "")


def _digits(name: str) -> int:
    return 1 if name.startswith(("accuracy", "macro_f1")) else score_digits(name)


def excludes_zero(estimate: Mapping[str, Any]) -> bool:
    r"""Whether 0 lies outside the interval of a difference."""
    return estimate["low"] > 0 or estimate["high"] < 0


def section_titles(report: Mapping[str, Any], scores: Scores) -> dict[str, str]:
    r"""Title of each score of a section, in the order of its columns."""
    if any(name in report["probe"]["titles"] for of_arm in scores.values() for name in of_arm):
        known = report["probe"]["titles"]
    else:
        systems = [{"scores": of_arm} for of_arm in scores.values()] + [{"scores": report["recording"]}]
        known = score_titles({**report, "systems": systems})
    return {name: title for name, title in known.items() if any(name in of_arm for of_arm in scores.values())}


def compared_titles(report: Mapping[str, Any], scores: Scores) -> dict[str, str]:
    r"""`section_titles` without the frame probe's control, whose differences are noise."""
    return {name: title for name, title in section_titles(report, scores).items() if "shuffled" not in name}


def higher_is_better(report: Mapping[str, Any], name: str) -> bool:
    r"""Whether a larger value of a score is the better one; error rates have no entry in the report."""
    return name in report["probe"]["titles"] or report["higher_is_better"].get(name, False)


def score_rows(report: Mapping[str, Any], scores: Scores, with_recording: bool = False) -> list[list[str]]:
    r"""Header and one row an arm: every score with its interval, and in brackets those of the seeds."""
    titles = section_titles(report, scores)
    rows = [["arm", *titles.values()]]
    if with_recording:
        cells = [format_estimate(report["recording"].get(name), name) for name in titles]
        rows.append(["(the recording)", *cells])
    for arm, of_arm in scores.items():
        rows.append([arm, *[_score_cell(of_arm[name], name) if name in of_arm else "–" for name in titles]])
    return rows


def _score_cell(score: Mapping[str, Any], name: str) -> str:
    cell = format_estimate(score["estimate"], name)
    if len(score["seeds"]) > 1:
        seeds = ["–" if value is None else f"{value:.{_digits(name)}f}" for value in score["seeds"]]
        cell += f" ({', '.join(seeds)})"
    return f"{cell}, {score['failed']} failed" if score["failed"] else cell


def difference_rows(report: Mapping[str, Any], scores: Scores) -> list[list[str]]:
    r"""Header and one row for each arm but the baseline: by how much each score exceeds the baseline's."""
    titles = compared_titles(report, scores)
    rows = [[f"minus {report['baseline']}", *titles.values()]]
    for arm, of_arm in scores.items():
        if arm != report["baseline"]:
            cells = [format_estimate(of_arm.get(name, {}).get("difference"), name, signed=True) for name in titles]
            rows.append([arm, *cells])
    return rows


def perplexity_rows(report: Mapping[str, Any]) -> list[list[str]]:
    r"""Perplexity of the codes of each stage, a row an arm."""
    arms = report["arms"]
    width = max((len(arm["perplexities"]) for arm in arms.values()), default=0)
    rows = [["arm", *[f"codebook {number}" for number in range(1, width + 1)], "kbps entropy"]]
    for name, arm in arms.items():
        rates = arm["kbps_entropy"]
        rate = f"{sum(rates) / len(rates):.2f}" if rates else "–"
        rows.append([name, *[f"{value:.0f}" for value in arm["perplexities"]], rate])
    return rows


def cost_rows(report: Mapping[str, Any]) -> list[list[str]]:
    r"""Time and memory of a training step of each arm, and relative to the baseline's."""
    columns = {
        "steps": ("steps", "{:.0f}"),
        "seconds_per_step": ("seconds a step, as it was trained", "{:.3f}"),
        "seconds_in_turn": ("seconds a step, arms in turn", "{:.3f}"),
        "cpu_seconds_in_turn": ("processor seconds a step, arms in turn", "{:.3f}"),
        "peak_memory_gb": ("peak memory (GB)", "{:.2f}"),
        "peak_gpu_memory_gb": ("peak GPU memory (GB)", "{:.2f}"),
    }
    costs = {name: arm["cost"] for name, arm in report["arms"].items()}
    used = [name for name in columns if any(name in cost for cost in costs.values())]
    rows = [["arm", *[columns[name][0] for name in used]]]
    for arm, cost in costs.items():
        cells = []
        for name in used:
            cell = columns[name][1].format(cost[name]) if name in cost else "–"
            base = costs[report["baseline"]].get(name)
            if name != "steps" and name in cost and base and arm != report["baseline"]:
                cell += f" ({cost[name] / base:.2f}x)"
            cells.append(cell)
        rows.append([arm, *cells])
    return rows


def verdicts(report: Mapping[str, Any]) -> list[str]:
    r"""For each arm and section a sentence: where it is better than the baseline, where worse, where neither shows."""
    sections = {f"decoded from {title}": scores for title, scores in report["decoded"].items()}
    sections |= {f"frame probe of {title}": scores for title, scores in report["probe"]["stages"].items()}
    lines = []
    for title, scores in sections.items():
        titles = compared_titles(report, scores)
        for arm, of_arm in scores.items():
            found: dict[str, list[str]] = {"better": [], "worse": [], "no difference shown": []}
            for name, score_title in titles.items():
                difference = of_arm.get(name, {}).get("difference")
                if difference is None:
                    continue
                if not excludes_zero(difference):
                    found["no difference shown"].append(score_title)
                elif (difference["value"] > 0) == higher_is_better(report, name):
                    found["better"].append(score_title)
                else:
                    found["worse"].append(score_title)
            parts = [f"{verdict}: {', '.join(names)}" for verdict, names in found.items() if names]
            if parts:
                lines.append(f"{arm} against {report['baseline']}, {title}: {'; '.join(parts)}.")
    return lines


def notes(report: Mapping[str, Any]) -> list[str]:
    r"""Sentences that say how the numbers came about."""
    data, probe = report["data"], report["probe"]
    lines = [
        f"{data['num_clips']} clips, {data['seconds'] / 60:.1f} minutes; {report['date']}; data key {data['key']}.",
        "Values with 95 % bootstrap intervals over clips; differences with those of the paired bootstrap (the same "
        "clips of both arms); * where the interval excludes 0. The many comparisons are not corrected for.",
        "An interval tells how far other clips would move a value, not how far other seeds of the training would."
        + (" Seeds are pooled; the value of each is in brackets." if _several_seeds(report) else " One seed each."),
    ]
    if report["recognizers"]:
        lines.append(
            "WER and CER: errors per word and character; WIL: word information lost; each against the transcript of "
            "the data and against what the same recogniser hears in the recording."
        )
    if any("seconds_in_turn" in arm["cost"] for arm in report["arms"].values()):
        lines.append(
            "Cost: medians. Steps that all arms take in turn meet the same load of the machine; those of the training "
            "do not."
        )
    if probe["stages"]:
        lines.append(
            f"Frame probe: single frames classified into {probe['num_labels']} labels; learnt from "
            f"{probe['num_train']} frames, tested on {probe['num_test']} of {probe['held_out']}."
        )
    return lines + [f"Skipped {name}: {reason}" for name, reason in report.get("skipped", {}).items()]


def _several_seeds(report: Mapping[str, Any]) -> bool:
    return any(len(arm["seeds"]) > 1 for arm in report["arms"].values())


def tables(report: Mapping[str, Any]) -> dict[str, list[list[list[str]]]]:
    r"""The tables under their headings."""
    found = {}
    for title, scores in report["decoded"].items():
        with_recording = any(report["recording"].values())
        found[f"Decoded from {title}"] = [
            score_rows(report, scores, with_recording),
            difference_rows(report, scores),
        ]
    for title, scores in report["probe"]["stages"].items():
        found[f"Frame probe of {title}"] = [score_rows(report, scores), difference_rows(report, scores)]
    if any(arm["perplexities"] for arm in report["arms"].values()):
        found["Perplexity of the codes"] = [perplexity_rows(report)]
    found["Cost of the training"] = [cost_rows(report)]
    return {title: [rows for rows in parts if len(rows) > 1] for title, parts in found.items()}


def arm_lines(report: Mapping[str, Any]) -> list[str]:
    r"""What sets each arm apart."""
    lines = []
    for name, arm in report["arms"].items():
        changes = ", ".join(f"`{override}`" for override in arm.get("overrides", [])) or "the recipe as it is"
        lines.append(f"{name}: {changes} (seeds {', '.join(map(str, arm['seeds']))})")
    return lines


def markdown_page(report: Mapping[str, Any]) -> str:
    r"""All of it in Markdown."""
    parts = ["\n".join(f"- {line}" for line in (*arm_lines(report), *notes(report)))]
    for title, of_title in tables(report).items():
        parts += [f"### {title}", *map(markdown_table, of_title)]
    if lines := verdicts(report):
        parts += ["### What the intervals show", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def plot_differences(report: Mapping[str, Any], scores: Scores) -> "Figure | None":
    r"""A panel for each score: differences of the arms from the baseline with their intervals, about a line at 0."""
    from matplotlib.figure import Figure

    arms = [arm for arm in scores if arm != report["baseline"]]
    titles = compared_titles(report, scores)
    names = [name for name in titles if any(scores[arm].get(name, {}).get("difference") for arm in arms)]
    if not names:
        return None
    columns = min(3, len(names))
    num_rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.6 * columns, (0.9 + 0.3 * len(arms)) * num_rows), layout="constrained")
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(num_rows, columns, number)
        axes.axvline(0.0, color="0.6", linewidth=1)
        for position, arm in enumerate(arms):
            difference = scores[arm].get(name, {}).get("difference")
            if difference is None:
                continue
            below, above = difference["value"] - difference["low"], difference["high"] - difference["value"]
            errors = [[max(0.0, below)], [max(0.0, above)]]
            axes.errorbar(difference["value"], position, xerr=errors, fmt="o", capsize=3, color=f"C{position % 10}")
        axes.set_yticks(range(len(arms)), arms, fontsize=8)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        better = "right" if higher_is_better(report, name) else "left"
        axes.set_title(f"{titles[name]} ({better} is better)", fontsize=9)
    return figure


def html_page(report: Mapping[str, Any]) -> str:
    r"""The page; its players point at the WAV files beside it."""
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>Ablation</title><style>{STYLE}</style><h1>Ablation</h1>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in (*arm_lines(report), *notes(report))) + "</ul>",
    ]
    plotted = {f"Decoded from {title}": scores for title, scores in report["decoded"].items()}
    plotted |= {f"Frame probe of {title}": scores for title, scores in report["probe"]["stages"].items()}
    for title, of_title in tables(report).items():
        parts += [f"<h2>{html.escape(title)}</h2>", *map(html_table, of_title)]
        figure = plot_differences(report, plotted[title]) if title in plotted else None
        if figure is not None:
            parts.append(f"<p>Differences from {html.escape(report['baseline'])}:</p>" + embed_figure(figure))
    if lines := verdicts(report):
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        parts.append(f"<h2>What the intervals show</h2><ul>{items}</ul>")
    clips = sorted({clip for paths in report["audio"].values() for clip in paths})
    for clip in clips:
        players = {
            system: f"<audio controls preload='none' src='{paths[clip]}'></audio>"
            for system, paths in report["audio"].items()
            if clip in paths
        }
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{player}</td></tr>" for name, player in players.items())
        parts.append(f"<h2>{html.escape(clip)}</h2><table>{rows}</table>")
    return "\n".join(parts)


def write_arm_reports(report: dict[str, Any], folder: Path) -> list[Path]:
    r"""
    Write `ablation.json`, `ablation.md` and `ablation.html`.

    Args:
        report (`dict`): What `compare_arms` found, with each arm's `overrides` where known.
        folder (`Path`): Where to; it also holds the decoded examples.
    """
    return [
        write_text(folder / "ablation.json", json.dumps(report, indent=1) + "\n"),
        write_text(folder / "ablation.md", markdown_page(report)),
        write_text(folder / "ablation.html", html_page(report)),
    ]
