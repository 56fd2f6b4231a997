# SPDX-License-Identifier: Apache-2.0
"""Pictures of the measures of units."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_tokenizers.evaluation.report_figures import INK, dress, error_bars, new_figure, plot_panels
from speech_tokenizers.evaluation.units.scores import SCORE_KINDS, score_title, split_name


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_bars(results: Mapping[str, Any], names: Sequence[str]) -> "Figure":
    """A panel for each score: bars of the systems with their intervals."""
    systems = results["systems"]
    panels = []
    for name in names:
        kind, view = split_name(name)
        better = None if view.endswith("chance") else SCORE_KINDS[kind].higher_is_better
        words = {True: " (higher is better)", False: " (lower is better)", None: ""}
        panels.append((score_title(name) + words[better], [system["scores"].get(name) for system in systems]))
    return plot_panels([system["system"] for system in systems], panels)


def plot_probes(results: Mapping[str, Any], names: Sequence[str]) -> "Figure":
    """A row of panels for what is told, one for each input: bars of both classifiers, and ticks at their controls."""
    systems = results["systems"]
    kinds = list(dict.fromkeys(split_name(name)[0] for name in names))
    inputs = list(dict.fromkeys(split_name(name)[1].split(", ")[0] for name in names))
    figure = new_figure(4.4 * len(inputs), (0.9 + 0.36 * len(systems)) * len(kinds))
    for number, (kind, view) in enumerate(((kind, view) for kind in kinds for view in inputs), 1):
        axes = figure.add_subplot(len(kinds), len(inputs), number)
        for position, system in enumerate(systems):
            for place, classifier, alpha in ((-0.2, "linear", 1.0), (0.2, "mlp", 0.5)):
                name = f"{kind}[{view}][{classifier}]"
                if score := system["scores"].get(name):
                    style = {"ecolor": INK, "capsize": 2, "color": f"C{position % 10}", "alpha": alpha, "height": 0.38}
                    axes.barh(position + place, score["value"], xerr=error_bars([score]), **style)
                if control := system["scores"].get(f"{name}[shuffled]"):
                    axes.plot(control["value"], position + place, "|", color=INK, markersize=9, markeredgewidth=2)
        axes.set_yticks(range(len(systems)), [system["system"] for system in systems])
        axes.set_ylim(len(systems) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        better = "higher" if SCORE_KINDS[kind].higher_is_better else "lower"
        dress(axes, f"{SCORE_KINDS[kind].title} from {view} ({better} is better)")
    return figure


def plot_phones(results: Mapping[str, Any]) -> "Figure | None":
    """PNMI against the codebook's size, a line a layer; against the layer, a line a size; and against bits."""
    systems = [system for system in results["systems"] if system["scores"].get("pnmi")]
    if not systems:
        return None
    by_layer = [system for system in systems if len(system["layers"]) == 1]
    panels: list[tuple[str, str, list, Any, Any]] = [
        (
            "PNMI by number of units",
            "codes in the codebook",
            systems,
            lambda system: system["codebook_size"],
            lambda system: f"{system['family']}{_layer_words(system)}",
        )
    ]
    if len({system["layers"][0] for system in by_layer}) > 1:
        panels.append(
            (
                "PNMI by layer",
                "layer",
                by_layer,
                lambda system: system["layers"][0],
                lambda system: f"{system['family']}, {system['codebook_size']} codes",
            )
        )
    with_bits = [system for system in systems if system["scores"].get("bits_entropy")]
    if with_bits:
        panels.append(
            (
                "PNMI by bit rate",
                "bit/s of the whole code, by entropy",
                with_bits,
                lambda system: system["scores"]["bits_entropy"]["value"],
                lambda system: system["system"],
            )
        )
    figure = new_figure(5.2 * len(panels), 4.4)
    for number, (title, label, members, x_of, line_of) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        for line in dict.fromkeys(map(line_of, members)):
            on_line = sorted((system for system in members if line_of(system) == line), key=x_of)
            scores = [system["scores"]["pnmi"] for system in on_line]
            values = [score["value"] for score in scores]
            style = {"marker": "o", "capsize": 2, "linewidth": 1, "label": line}
            axes.errorbar(list(map(x_of, on_line)), values, yerr=error_bars(scores), **style)
        if "layer" not in title:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7, loc="best")
        dress(axes, title, label, "PNMI")
    return figure


def _layer_words(system: Mapping[str, Any]) -> str:
    return f", layer {'+'.join(map(str, system['layers']))}" if system["layers"] else ""


def plot_streaming(results: Mapping[str, Any]) -> "Figure | None":
    """Unit edit distance of streams against their latency, a line a system."""
    systems = [system for system in results["systems"] if system["details"].get("streaming")]
    if not systems:
        return None
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    for system in systems:
        known = {name: facts for name, facts in system["details"]["streaming"].items() if system["scores"].get(name)}
        scores = [system["scores"][name] for name in known]
        latencies = [facts["latency"] for facts in known.values()]
        values = [score["value"] for score in scores]
        axes.errorbar(latencies, values, yerr=error_bars(scores), marker="o", capsize=2, label=system["system"])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    dress(axes, "Streamed units against those of the whole", "latency in seconds", "unit edit distance (%)")
    return figure


def plot_usage(results: Mapping[str, Any]) -> "Figure | None":
    """How often codes are used, the commonest first, relative to even use."""
    systems = [system for system in results["systems"] if "rank_frequency" in system["details"]]
    if not systems:
        return None
    figure = new_figure(8, 4.2)
    axes = figure.add_subplot()
    for system in systems:
        counts = np.array(system["details"]["rank_frequency"], np.float64)
        used = counts[counts > 0]
        relative = used / counts.sum() * len(counts)
        axes.plot(np.arange(1, len(used) + 1) / len(counts), relative, label=system["system"], linewidth=1)
    axes.axhline(1.0, color=INK, alpha=0.4, linestyle=":")
    axes.set_yscale("log")
    axes.legend(fontsize=7, loc="lower left")
    dress(axes, "Codes by how often they occur", "rank, as a share of the codebook", "times as often as in even use")
    return figure


def plot_confusion(system: Mapping[str, Any]) -> "Figure":
    """P(phone | unit) as a heat map: units from left to right, sorted by their commonest phone."""
    confusion = system["details"]["pnmi_confusion"]
    counts = np.array(confusion["counts"], np.float64)  # (num_units, num_labels)
    by_frequency = np.argsort(-counts.sum(0), kind="stable")
    shares = (counts / counts.sum(1, keepdims=True))[:, by_frequency]
    best = shares.argmax(1)
    shares = shares[np.lexsort((-shares.max(1), best))]
    figure = new_figure(9, 1.0 + 0.13 * shares.shape[1])
    axes = figure.add_subplot()
    image = axes.imshow(shares.T, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks(range(len(by_frequency)), [confusion["labels"][number] for number in by_frequency])
    dress(figure.colorbar(image, ax=axes, pad=0.01).ax)
    dress(axes, f"P(phone | unit), {system['system']}", "units, sorted by their commonest phone", "")
    axes.tick_params(axis="y", labelsize=6)
    return figure
