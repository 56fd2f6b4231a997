# SPDX-License-Identifier: Apache-2.0
"""Analyses in the report of a study of tokens: what tokens cost, layers, noise, rare units and convergence."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from speech_tokenizers.evaluation.report_figures import dress, dress_legend, error_bars, new_figure
from speech_tokenizers.evaluation.report_pages import Figure, Section, interval


# --- What tokens cost ---


def cost_sections(results: Mapping[str, Any]) -> list[Section]:
    """Rates of the tokens, and how evenly they are used."""
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


def analysis_sections(results: Mapping[str, Any]) -> list[Section]:
    """Layers, noise, rare units and convergence, where they are measured."""
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
            " first. The first seed of each arm. A fifth whose clips have one group has no interval, and is left out."
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
                    # Cells of earlier versions hold intervals of one group, which have no width.
                    losses = [
                        loss if (loss := bucket["loss"]) and loss["low"] < loss["high"] else None for bucket in buckets
                    ]
                    cells = [interval(loss, 2) for loss in losses]
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


__all__ = ["analysis_sections", "cost_sections"]
