# SPDX-License-Identifier: Apache-2.0
"""Measures of units as JSON, CSV, Markdown tables and one HTML page that holds its plots."""

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_tokenizers.evaluation.report_pages import html_table, markdown_table, write_text
from speech_tokenizers.evaluation.units.report_plots import (
    embed_figure,
    plot_bars,
    plot_confusion,
    plot_phones,
    plot_probes,
    plot_streaming,
    plot_usage,
)
from speech_tokenizers.evaluation.units.scores import (
    SCORE_KINDS,
    SECTIONS,
    Section,
    score_title,
    section_scores,
    split_name,
)


if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
