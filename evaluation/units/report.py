# SPDX-License-Identifier: Apache-2.0
"""Measures of units as JSON, CSV, Markdown tables and one HTML page that holds its plots."""

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from speech_tokenizers.evaluation.reconstruction.report import html_table, markdown_table, write_text


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class ScoreKind(NamedTuple):
    r"""
    How a score is shown.

    Args:
        title (`str`): Of its column.
        digits (`int`): After the point.
        higher_is_better (`bool`, *optional*): `None` where neither is.
    """

    title: str
    digits: int
    higher_is_better: bool | None


SCORE_KINDS = {
    "pnmi": ScoreKind("PNMI", 3, True),
    "phone_purity": ScoreKind("phone purity", 3, True),
    "cluster_purity": ScoreKind("cluster purity", 3, True),
    "cnmi": ScoreKind("CNMI", 3, True),
    "character_purity": ScoreKind("character purity", 3, True),
    "abx_within": ScoreKind("ABX error % within speakers", 1, False),
    "abx_across": ScoreKind("ABX error % across speakers", 1, False),
    "ued": ScoreKind("UED %", 1, False),
    "ued_streaming": ScoreKind("UED % at a latency of", 1, False),
    "bits_nominal": ScoreKind("bit/s nominal", 0, None),
    "bits_entropy": ScoreKind("bit/s by entropy", 0, None),
    "bits_deduplicated": ScoreKind("bit/s de-duplicated", 0, None),
    "bits_deduplicated_entropy": ScoreKind("bit/s de-duplicated, by entropy", 0, None),
    "bits_deduplicated_entropy_with_durations": ScoreKind("the same with durations", 0, None),
    "units_per_second": ScoreKind("units/s de-duplicated", 1, None),
    "share_used": ScoreKind("share of codes used", 3, True),
    "perplexity": ScoreKind("perplexity", 1, True),
    "entropy": ScoreKind("entropy (bits)", 2, True),
    "rarest_share": ScoreKind("share of the rarest 20 %", 3, True),
    "ngram_perplexity": ScoreKind("n-gram perplexity, order", 1, False),
    "probe_speaker": ScoreKind("speaker", 1, False),
    "probe_gender": ScoreKind("gender", 1, False),
    "probe_phone": ScoreKind("phone", 1, True),
    "resynthesis_wer": ScoreKind("word error rate %", 1, False),
}


class Section(NamedTuple):
    r"""
    A heading of the page.

    Args:
        title (`str`): Its words.
        kinds (`tuple` of `str`): The scores of its table, as in `SCORE_KINDS`.
        caption (`str`): What the numbers are, and which are good.
    """

    title: str
    kinds: tuple[str, ...]
    caption: str


SECTIONS = (
    Section(
        "Phones in the units",
        ("pnmi", "phone_purity", "cluster_purity"),
        "PNMI is the share of what there is to know about a frame's phone that its unit tells (0 to 1, higher is "
        "better). Phone purity: frames whose phone is the commonest of their unit; it grows with the number of units. "
        "Cluster purity: frames whose unit is the commonest of their phone; it falls with it. Chance: the same with "
        "the labels turned against the units, what as many frames reach that have nothing to do with each other.",
    ),
    Section(
        "Characters in the units",
        ("cnmi", "character_purity"),
        "As with phones, for the characters of the transcript (higher is better).",
    ),
    Section(
        "ABX",
        ("abx_within", "abx_across"),
        "How often a phone is nearer to another phone than to its like, by dynamic time warping over angles between "
        "frames; 50 is chance, lower is better. Centroids: frames as the entries of their units. Features: as they "
        "were before they were quantized. Intervals over speakers.",
    ),
    Section(
        "Robustness",
        ("ued",),
        "Unit edit distance: edits that lead from the de-duplicated units of the recording to those of the changed "
        "recording, a hundred units; lower is better. Units that say little change little, so read it beside PNMI or "
        "ABX. Chance: the distance to the units of another recording of about the same length.",
    ),
    Section(
        "Streaming",
        ("ued_streaming",),
        "Unit edit distance from the units of the whole recording when it is encoded chunk by chunk while it arrives, "
        "with 4 s of it before each chunk and some after. Latency: from the beginning of a chunk to the last sample "
        "that its units need. Lower is better.",
    ),
    Section(
        "Bit rates",
        (
            "bits_nominal",
            "bits_entropy",
            "bits_deduplicated",
            "bits_deduplicated_entropy",
            "bits_deduplicated_entropy_with_durations",
            "units_per_second",
        ),
        "All codebooks together. Nominal: log2 of the codebook's size a frame; by entropy: of single units without "
        "regard to their neighbours; de-duplicated: one unit for each run of equal frames, without the durations that "
        "decoding needs.",
    ),
    Section(
        "Use of the codes",
        ("share_used", "perplexity", "entropy", "rarest_share", "ngram_perplexity"),
        "Of the first codebook. Perplexity: as many evenly used codes have the same entropy. The rarest 20 % of the "
        "codes carry 0.2 of the frames where use is even, and less where it is not. N-gram perplexity of "
        "de-duplicated units under models of other speakers: lower where units follow each other more predictably.",
    ),
    Section(
        "Probes",
        ("probe_speaker", "probe_gender", "probe_phone"),
        "Macro F1 (%) of classifiers that see nothing but the units (of a clip how often each comes), their entries "
        "(centroids), or the features before they were quantized (of a clip the mean and spread of either). Speakers "
        "and genders are told from a clip and should be hard to tell (lower is better), phones from a "
        "frame and should be easy (higher is better). Linear: logistic regression; MLP: one hidden layer. Every clip "
        "is tested once, in folds: of speakers for gender and phones, so that no speaker is both learnt from and "
        "tested; of clips for speakers, since a speaker who was never heard cannot be named, so that microphone and "
        "room may help. All classes weigh the same. Shuffled: macro F1 after learning from shuffled labels, what "
        "chance reaches. Balanced accuracy: mean over the classes of the share that is told. Intervals over speakers, "
        "for the speaker over clips.",
    ),
    Section(
        "Resynthesis",
        ("resynthesis_wer",),
        "Words that a recogniser gets wrong when a vocoder speaks the units in one voice, and in the recordings; "
        "lower is better. Intervals over speakers.",
    ),
)


def split_name(name: str) -> tuple[str, str]:
    r"""Kind and view of a score: `abx_within[features]` has the kind `abx_within` and the view `features`."""
    kind, view = re.fullmatch(r"([^\[]*)(.*)", name).groups()
    return kind, view[1:-1].replace("][", ", ")


def score_title(name: str) -> str:
    r"""Heading of a score's column."""
    kind, view = split_name(name)
    return SCORE_KINDS[kind].title + (f" ({view.replace('_', ' ')})" if view else "")


def section_scores(report: Mapping[str, Any], section: Section) -> list[str]:
    r"""Names of the scores of a section that any system has, those of a kind side by side."""
    names = dict.fromkeys(name for system in report["systems"] for name in system["scores"])
    return [name for kind in section.kinds for name in names if split_name(name)[0] == kind]


def format_cell(system: Mapping[str, Any], name: str) -> str:
    r"""`value [low, high]`, `failed`, or a dash where it was not measured; how many clips failed."""
    if name not in system["scores"]:
        return "–"
    failed = sum(len(names) for names in system["failures"].get(name, {}).values())
    score = system["scores"][name]
    if score is None:
        return "failed"
    digits = SCORE_KINDS[split_name(name)[0]].digits
    text = f"{score['value']:.{digits}f}"
    if score["low"] is not None:
        text += f" [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"
    return f"{text}, n={score['num_clips']}, {failed} failed" if failed else text


def score_rows(report: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    r"""Header and a row a system."""
    rows = [["system", *map(score_title, names)]]
    for system in report["systems"]:
        rows.append([system["system"], *[format_cell(system, name) for name in names]])
    return rows


PROBE_COLUMNS = {
    "macro F1, linear": "[linear]",
    "macro F1, MLP": "[mlp]",
    "linear, shuffled": "[linear][shuffled]",
    "MLP, shuffled": "[mlp][shuffled]",
    "balanced accuracy, linear": "[linear][balanced_accuracy]",
    "balanced accuracy, MLP": "[mlp][balanced_accuracy]",
}


def probe_rows(report: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    r"""Header, and a row for what is told, from which input, of which system; a column a classifier."""
    inputs = dict.fromkeys((split_name(name)[0], split_name(name)[1].split(", ")[0]) for name in names)
    rows = [["told", "from", "system", *PROBE_COLUMNS]]
    for kind, view in inputs:
        for system in report["systems"]:
            cells = [format_cell(system, f"{kind}[{view}]{suffix}") for suffix in PROBE_COLUMNS.values()]
            rows.append([SCORE_KINDS[kind].title, view, system["system"], *cells])
    return rows


def section_rows(report: Mapping[str, Any], section: Section, names: Sequence[str]) -> list[list[str]]:
    r"""The table of a section."""
    return (probe_rows if section.kinds[0] == "probe_speaker" else score_rows)(report, names)


SUMMARY = ("pnmi", "phone_purity", "cluster_purity", "abx_within[centroids]", "abx_across[centroids]", "bits_entropy")


def summary_rows(report: Mapping[str, Any]) -> list[list[str]]:
    r"""The table at the top: what the systems are, and the scores that are asked for first."""
    present = {name for system in report["systems"] for name in system["scores"]}
    names = [name for name in SUMMARY if name in present]
    rows = [["system", "layer", "codes", "frames/s", *map(score_title, names)]]
    for system in report["systems"]:
        layers = "+".join(map(str, system["layers"])) or "–"
        codes = f"{system['num_quantizers']} × {system['codebook_size']}"
        if system["num_quantizers"] == 1:
            codes = str(system["codebook_size"])
        cells = [format_cell(system, name) for name in names]
        rows.append([system["system"], layers, codes, f"{system['frame_rate']:g}", *cells])
    return rows


def codebook_rows(report: Mapping[str, Any]) -> list[list[str]]:
    r"""PNMI, use and UED of each codebook of the systems that have several; only a header where none has."""
    changes = dict.fromkeys(
        name for system in report["systems"] for name in system["details"].get("ued_by_codebook", ())
    )
    titles = [score_title(f"ued[{name}]") for name in changes]
    rows = [["system", "codebook", "PNMI", "share of codes used", "perplexity", *titles]]
    for system in report["systems"]:
        if system["num_quantizers"] == 1:
            continue
        pnmi, usage = (system["details"].get(name, []) for name in ("pnmi_by_codebook", "usage_by_codebook"))
        distances = system["details"].get("ued_by_codebook", {})
        for number in range(system["num_quantizers"]):
            cells = [f"{pnmi[number]:.3f}" if pnmi else "–"]
            cells += [f"{usage[number]['share_used']:.3f}", f"{usage[number]['perplexity']:.1f}"] if usage else "––"
            cells += [f"{distances[name][number]:.1f}" if name in distances else "–" for name in changes]
            rows.append([system["system"], str(number + 1), *cells])
    return rows


def notes(report: Mapping[str, Any]) -> list[str]:
    r"""Sentences that say how the numbers came about."""
    data, settings = report["data"], report["settings"]
    redrawn = "speakers" if data["num_speakers"] else "clips"
    lines = [
        f"{data['num_clips']} clips of {data['num_speakers']} named speakers, {data['num_labelled']} of them with "
        f"phones; {report['date']}; data key {data['key']}.",
        f"In brackets 95 % bootstrap intervals when {redrawn} are redrawn: how far other speech would move a value, "
        "not how far another training would. Bit rates have none.",
        "A clip that failed is in no score, and is named below.",
    ]
    if "robustness" in report["measures"]:
        lines.append(f"Robustness: at most {settings['robustness_clips']} clips, drawn by seed {settings['seed']}.")
        changes = {
            name: words
            for system in report["systems"]
            for name, words in system["details"].get("perturbations", {}).items()
        }
        lines += [f"Robustness, {name.replace('_', ' ')}: {words}." for name, words in changes.items()]
    if "abx" in report["measures"]:
        context = "the same neighbours" if settings["abx_context"] == "triphone" else "any neighbours"
        lines.append(f"ABX: {context}, at most {settings['abx_tokens']} tokens of a phone and speaker.")
    tasks: dict[str, Mapping[str, int]] = {}
    for system in report["systems"]:
        tasks = system["details"].get("probes", {}) | tasks
    for target, task in tasks.items():
        of = "clips" if target == "speaker" else "speakers"
        items = "frames" if target == "phone" else "clips"
        lines.append(
            f"Probes of the {target}: {task['num_classes']} classes, {task['num_items']} {items}, {task['num_folds']} "
            f"folds of {task['num_groups']} {of}."
        )
    if any(system["num_quantizers"] > 1 for system in report["systems"]):
        lines.append(
            "Of systems with several codebooks, phones and use are those of the first codebook where nothing else is "
            "said; ABX, robustness and bit rates are those of all together. PNMI of all together is left out where a "
            "combination of codes comes less than ten times on average: it would be near 1 by chance."
        )
    return lines + [f"Skipped {name}: {reason}." for name, reason in report["skipped"].items()]


def failure_lines(report: Mapping[str, Any]) -> list[str]:
    r"""What failed, why, and for which clips."""
    lines = []
    for system in report["systems"]:
        for reason, clips in system["encoding_failures"].items():
            lines.append(f"{system['system']} cannot encode {_listed(clips)}: {reason}")
        for name, reasons in system["failures"].items():
            for reason, clips in reasons.items():
                lines.append(f"{system['system']}, {name}: {reason}" + (f" ({_listed(clips)})" if clips else ""))
    return lines


def _listed(clips: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(clips) - shown} more" if len(clips) > shown else ""
    return ", ".join(clips[:shown]) + more


def markdown_page(report: Mapping[str, Any]) -> str:
    r"""All tables in Markdown."""
    parts = ["\n".join(f"- {line}" for line in notes(report)), markdown_table(summary_rows(report))]
    for section in SECTIONS:
        if names := section_scores(report, section):
            parts += [f"### {section.title}", section.caption, markdown_table(section_rows(report, section, names))]
    if len(rows := codebook_rows(report)) > 1:
        parts += ["### Codebooks", markdown_table(rows)]
    if failures := failure_lines(report):
        parts += ["### Failures", "\n".join(f"- {line}" for line in failures)]
    return "\n\n".join(parts) + "\n"


def csv_table(report: Mapping[str, Any]) -> str:
    r"""Every score of every system, a line each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["system", "score", "value", "low", "high", "num_clips", "num_failed"])
    for system in report["systems"]:
        for name, score in system["scores"].items():
            failed = sum(len(clips) for clips in system["failures"].get(name, {}).values())
            values = [None] * 4 if score is None else [score[field] for field in ("value", "low", "high", "num_clips")]
            writer.writerow([system["system"], name, *values, failed])
    return buffer.getvalue()


# A colour that no plot uses: the page puts its own text colour in its place, so that plots follow light and dark.
INK = "#010203"


def embed_figure(figure: "Figure", description: str) -> str:
    r"""An inline SVG with a description for those who do not see it, and for all as its caption."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "units"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
    return f"<figure>{svg}<figcaption>{html.escape(description)}</figcaption></figure>"


def _new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _dress(axes: "Axes", title: str, x: str = "", y: str = "") -> None:
    # Text and lines in the page's colour.
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.tick_params(colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_alpha(0.4)
    if legend := axes.get_legend():
        for text in legend.get_texts():
            text.set_color(INK)
        legend.get_frame().set_facecolor("none")


def _errors(scores: Sequence[Mapping[str, Any]]) -> list[list[float]] | None:
    if any(score["low"] is None for score in scores):
        return None
    below = [max(0.0, score["value"] - score["low"]) for score in scores]
    return [below, [max(0.0, score["high"] - score["value"]) for score in scores]]


def plot_bars(report: Mapping[str, Any], names: Sequence[str]) -> "Figure":
    r"""A panel for each score: bars of the systems with their intervals."""
    systems = report["systems"]
    columns = min(3, len(names))
    num_rows = -(-len(names) // columns)
    figure = _new_figure(4.6 * columns, (0.8 + 0.24 * len(systems)) * num_rows)
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(num_rows, columns, number)
        for position, system in enumerate(systems):
            score = system["scores"].get(name)
            if score is not None:
                style = {"ecolor": INK, "capsize": 2, "color": f"C{position % 10}"}
                axes.barh(position, score["value"], xerr=_errors([score]), **style)
        axes.set_yticks(range(len(systems)), [system["system"] for system in systems])
        axes.set_ylim(len(systems) - 0.5, -0.5)
        kind, view = split_name(name)
        better = None if view.endswith("chance") else SCORE_KINDS[kind].higher_is_better
        words = {True: " (higher is better)", False: " (lower is better)", None: ""}
        _dress(axes, score_title(name) + words[better])
    return figure


def plot_probes(report: Mapping[str, Any], names: Sequence[str]) -> "Figure":
    r"""A row of panels for what is told, one for each input: bars of both classifiers, and ticks at their controls."""
    systems = report["systems"]
    kinds = list(dict.fromkeys(split_name(name)[0] for name in names))
    inputs = list(dict.fromkeys(split_name(name)[1].split(", ")[0] for name in names))
    figure = _new_figure(4.4 * len(inputs), (0.9 + 0.36 * len(systems)) * len(kinds))
    for number, (kind, view) in enumerate(((kind, view) for kind in kinds for view in inputs), 1):
        axes = figure.add_subplot(len(kinds), len(inputs), number)
        for position, system in enumerate(systems):
            for place, classifier, alpha in ((-0.2, "linear", 1.0), (0.2, "mlp", 0.5)):
                name = f"{kind}[{view}][{classifier}]"
                if score := system["scores"].get(name):
                    style = {"ecolor": INK, "capsize": 2, "color": f"C{position % 10}", "alpha": alpha, "height": 0.38}
                    axes.barh(position + place, score["value"], xerr=_errors([score]), **style)
                if control := system["scores"].get(f"{name}[shuffled]"):
                    axes.plot(control["value"], position + place, "|", color=INK, markersize=9, markeredgewidth=2)
        axes.set_yticks(range(len(systems)), [system["system"] for system in systems])
        axes.set_ylim(len(systems) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        better = "higher" if SCORE_KINDS[kind].higher_is_better else "lower"
        _dress(axes, f"{SCORE_KINDS[kind].title} from {view} ({better} is better)")
    return figure


def plot_phones(report: Mapping[str, Any]) -> "Figure | None":
    r"""PNMI against the codebook's size, a line a layer; against the layer, a line a size; and against bits."""
    systems = [system for system in report["systems"] if system["scores"].get("pnmi")]
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
    figure = _new_figure(5.2 * len(panels), 4.4)
    for number, (title, label, members, x_of, line_of) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        for line in dict.fromkeys(map(line_of, members)):
            on_line = sorted((system for system in members if line_of(system) == line), key=x_of)
            scores = [system["scores"]["pnmi"] for system in on_line]
            values = [score["value"] for score in scores]
            axes.errorbar(
                list(map(x_of, on_line)), values, yerr=_errors(scores), marker="o", capsize=2, label=line, linewidth=1
            )
        if "layer" not in title:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7, loc="best")
        _dress(axes, title, label, "PNMI")
    return figure


def _layer_words(system: Mapping[str, Any]) -> str:
    return f", layer {'+'.join(map(str, system['layers']))}" if system["layers"] else ""


def plot_streaming(report: Mapping[str, Any]) -> "Figure | None":
    r"""Unit edit distance of streams against their latency, a line a system."""
    systems = [system for system in report["systems"] if system["details"].get("streaming")]
    if not systems:
        return None
    figure = _new_figure(7, 4.2)
    axes = figure.add_subplot()
    for system in systems:
        known = {name: facts for name, facts in system["details"]["streaming"].items() if system["scores"].get(name)}
        scores = [system["scores"][name] for name in known]
        latencies = [facts["latency"] for facts in known.values()]
        values = [score["value"] for score in scores]
        axes.errorbar(latencies, values, yerr=_errors(scores), marker="o", capsize=2, label=system["system"])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    _dress(axes, "Streamed units against those of the whole", "latency in seconds", "unit edit distance (%)")
    return figure


def plot_usage(report: Mapping[str, Any]) -> "Figure | None":
    r"""How often codes are used, the commonest first, relative to even use."""
    systems = [system for system in report["systems"] if "rank_frequency" in system["details"]]
    if not systems:
        return None
    figure = _new_figure(8, 4.2)
    axes = figure.add_subplot()
    for system in systems:
        counts = np.array(system["details"]["rank_frequency"], np.float64)
        used = counts[counts > 0]
        relative = used / counts.sum() * len(counts)
        axes.plot(np.arange(1, len(used) + 1) / len(counts), relative, label=system["system"], linewidth=1)
    axes.axhline(1.0, color=INK, alpha=0.4, linestyle=":")
    axes.set_yscale("log")
    axes.legend(fontsize=7, loc="lower left")
    _dress(axes, "Codes by how often they occur", "rank, as a share of the codebook", "times as often as in even use")
    return figure


def plot_confusion(system: Mapping[str, Any]) -> "Figure":
    r"""P(phone | unit) as a heat map: units from left to right, sorted by their commonest phone."""
    confusion = system["details"]["pnmi_confusion"]
    counts = np.array(confusion["counts"], np.float64)  # (num_units, num_labels)
    by_frequency = np.argsort(-counts.sum(0), kind="stable")
    shares = (counts / counts.sum(1, keepdims=True))[:, by_frequency]
    best = shares.argmax(1)
    shares = shares[np.lexsort((-shares.max(1), best))]
    figure = _new_figure(9, 1.0 + 0.13 * shares.shape[1])
    axes = figure.add_subplot()
    image = axes.imshow(shares.T, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks(range(len(by_frequency)), [confusion["labels"][number] for number in by_frequency])
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.ax.tick_params(colors=INK, labelsize=7)
    _dress(axes, f"P(phone | unit), {system['system']}", "units, sorted by their commonest phone", "")
    axes.tick_params(axis="y", labelsize=6)
    return figure


STYLE = """
:root{color-scheme:light dark}
body{font-family:sans-serif;margin:2em;max-width:90em;line-height:1.4}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:1em 0;font-size:85%}
td,th{border:1px solid #8886;padding:.3em .5em;text-align:left}
td:not(:first-child){white-space:nowrap}
figure{margin:1em 0}
figure svg{max-width:100%;height:auto}
figcaption,.caption{max-width:60em;font-size:90%;opacity:.85}
"""


def html_page(report: Mapping[str, Any]) -> str:
    r"""The page, which needs no other file."""

    def table(rows: list[list[str]]) -> str:
        return f"<div class='wide'>{html_table(rows)}</div>"

    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Units</title><style>{STYLE}</style><h1>Units</h1>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in notes(report)) + "</ul>",
        table(summary_rows(report)),
    ]
    for section in SECTIONS:
        names = section_scores(report, section)
        if not names:
            continue
        parts.append(f"<h2>{html.escape(section.title)}</h2><p class='caption'>{html.escape(section.caption)}</p>")
        parts += [embed_figure(figure, text) for figure, text in _figures(report, section, names)]
        parts.append(table(section_rows(report, section, names)))
    if len(rows := codebook_rows(report)) > 1:
        parts += ["<h2>Codebooks</h2>", table(rows)]
    if failures := failure_lines(report):
        parts.append("<h2>Failures</h2><ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in failures) + "</ul>")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*parts, f"<p class='caption'>{html.escape(versions)}</p></html>"])


def _figures(report: Mapping[str, Any], section: Section, names: Sequence[str]) -> list[tuple["Figure", str]]:
    # The plots of a section with their captions.
    if "pnmi" in section.kinds:
        figures = [
            (plot_phones(report), "PNMI, with intervals: higher is better, and at fewer units or bits still more so.")
        ]
        for system in report["systems"]:
            if "pnmi_confusion" in system["details"]:
                text = (
                    f"Share of each phone among the frames of each unit of {system['system']}. Good units have one "
                    "bright phone each, and few phones have none."
                )
                figures.append((plot_confusion(system), text))
    elif "share_used" in section.kinds:
        text = "The flatter, the more evenly the codes are used; a line that ends before 1 leaves codes unused."
        figures = [(plot_usage(report), text)]
    elif section.kinds[0] == "ued_streaming":
        text = "Where a line ends low, a stream of that latency gives nearly the units of the whole recording."
        figures = [(plot_streaming(report), text)]
    elif section.kinds[0] == "probe_speaker":
        text = "Macro F1 (%) with intervals: linear dark, MLP light below it; the ticks are those of shuffled labels."
        measured = any(system["scores"].get(name) for name in names for system in report["systems"])
        figures = [(plot_probes(report, names) if measured else None, text)]
    elif section.kinds[0] in ("ued", "abx_within"):
        shown = [name for name in names if any(system["scores"].get(name) for system in report["systems"])]
        bars = plot_bars(report, shown) if shown else None
        figures = [(bars, f"{section.title}: bars of the systems, with intervals.")]
    else:
        figures = []
    return [(figure, text) for figure, text in figures if figure is not None]


def write_unit_reports(report: Mapping[str, Any], folder: Path) -> list[Path]:
    r"""
    Write `units.json`, `units.csv`, `units.md` and `units.html`.

    Args:
        report (mapping): What `speech-tokenizers evaluate units` measured.
        folder (`Path`): Where to.
    """
    return [
        write_text(folder / "units.json", json.dumps(report) + "\n"),
        write_text(folder / "units.csv", csv_table(report)),
        write_text(folder / "units.md", markdown_page(report)),
        write_text(folder / "units.html", html_page(report)),
    ]
