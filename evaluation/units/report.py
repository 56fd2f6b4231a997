# SPDX-License-Identifier: Apache-2.0
"""The report of measures of units."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from speech_tokenizers.evaluation.report_pages import DASH, Figure, Report, Section, interval, score_cell
from speech_tokenizers.evaluation.units.report_plots import (
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
    ScoreSection,
    score_title,
    section_scores,
    split_name,
)


if TYPE_CHECKING:
    import matplotlib.figure


def format_cell(system: Mapping[str, Any], name: str) -> str:
    """`value [low, high]`, `failed`, or a dash where it was not measured; how many clips failed."""
    if name not in system["scores"]:
        return DASH
    score = system["scores"][name]
    failed = sum(len(names) for names in system["failures"].get(name, {}).values())
    return "failed" if score is None else score_cell(score, SCORE_KINDS[split_name(name)[0]].digits, failed)


def score_rows(results: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Header and a row a system."""
    rows = [["system", *map(score_title, names)]]
    for system in results["systems"]:
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


def probe_rows(results: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Header, and a row for what is told, from which input, of which system; a column a classifier."""
    inputs = dict.fromkeys((split_name(name)[0], split_name(name)[1].split(", ")[0]) for name in names)
    rows = [["told", "from", "system", *PROBE_COLUMNS]]
    for kind, view in inputs:
        for system in results["systems"]:
            cells = [format_cell(system, f"{kind}[{view}]{suffix}") for suffix in PROBE_COLUMNS.values()]
            rows.append([SCORE_KINDS[kind].title, view, system["system"], *cells])
    return rows


def section_rows(results: Mapping[str, Any], section: ScoreSection, names: Sequence[str]) -> list[list[str]]:
    """The table of a section."""
    return (probe_rows if section.kinds[0] == "probe_speaker" else score_rows)(results, names)


SUMMARY = ("pnmi", "phone_purity", "cluster_purity", "abx_within[centroids]", "abx_across[centroids]", "bits_entropy")


def summary_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The table at the top: what the systems are, and the scores that are asked for first."""
    present = {name for system in results["systems"] for name in system["scores"]}
    names = [name for name in SUMMARY if name in present]
    rows = [["system", "layer", "codes", "frames/s", *map(score_title, names)]]
    for system in results["systems"]:
        layers = "+".join(map(str, system["layers"])) or DASH
        codes = f"{system['num_quantizers']} × {system['codebook_size']}"
        if system["num_quantizers"] == 1:
            codes = str(system["codebook_size"])
        cells = [format_cell(system, name) for name in names]
        rows.append([system["system"], layers, codes, f"{system['frame_rate']:g}", *cells])
    return rows


def codebook_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """PNMI, use and UED of each codebook of the systems that have several; only a header where none has."""
    changes = dict.fromkeys(
        name for system in results["systems"] for name in system["details"].get("ued_by_codebook", ())
    )
    titles = [score_title(f"ued[{name}]") for name in changes]
    rows = [["system", "codebook", "PNMI", "share of codes used", "perplexity", *titles]]
    for system in results["systems"]:
        if system["num_quantizers"] == 1:
            continue
        pnmi, usage = (system["details"].get(name, []) for name in ("pnmi_by_codebook", "usage_by_codebook"))
        distances = system["details"].get("ued_by_codebook", {})
        for number in range(system["num_quantizers"]):
            used = usage[number] if usage else {}
            cells = [interval(pnmi[number] if pnmi else None, 3)]
            cells += [interval(used.get("share_used"), 3), interval(used.get("perplexity"), 1)]
            cells += [interval(distances[name][number] if name in distances else None, 1) for name in changes]
            rows.append([system["system"], str(number + 1), *cells])
    return rows


def notes(results: Mapping[str, Any]) -> list[str]:
    """Sentences that say how the numbers came about."""
    data, settings = results["data"], results["settings"]
    redrawn = "speakers" if data["num_speakers"] else "clips"
    lines = [
        f"{data['num_clips']} clips of {data['num_speakers']} named speakers, {data['num_labelled']} of them with "
        f"phones; {results['date']}; data key {data['key']}.",
        f"In brackets 95 % bootstrap intervals when {redrawn} are redrawn: how far other speech would move a value, "
        "not how far another training would. Bit rates have none.",
        "A clip that failed is in no score, and is named below.",
    ]
    if "robustness" in results["measures"]:
        lines.append(f"Robustness: at most {settings['robustness_clips']} clips, drawn by seed {settings['seed']}.")
        changes = {
            name: words
            for system in results["systems"]
            for name, words in system["details"].get("perturbations", {}).items()
        }
        lines += [f"Robustness, {name.replace('_', ' ')}: {words}." for name, words in changes.items()]
    if "abx" in results["measures"]:
        context = "the same neighbours" if settings["abx_context"] == "triphone" else "any neighbours"
        lines.append(f"ABX: {context}, at most {settings['abx_tokens']} tokens of a phone and speaker.")
    tasks: dict[str, Mapping[str, int]] = {}
    for system in results["systems"]:
        tasks = system["details"].get("probes", {}) | tasks
    for target, task in tasks.items():
        of = "clips" if target == "speaker" else "speakers"
        items = "frames" if target == "phone" else "clips"
        lines.append(
            f"Probes of the {target}: {task['num_classes']} classes, {task['num_items']} {items}, {task['num_folds']} "
            f"folds of {task['num_groups']} {of}."
        )
    if any(system["num_quantizers"] > 1 for system in results["systems"]):
        lines.append(
            "Of systems with several codebooks, phones and use are those of the first codebook where nothing else is "
            "said; ABX, robustness and bit rates are those of all together. PNMI of all together is left out where a "
            "combination of codes comes less than ten times on average: it would be near 1 by chance."
        )
    lines += [f"Skipped {name}: {reason}." for name, reason in results["skipped"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return [*lines, f"Versions: {versions}."] if versions else lines


def failure_lines(results: Mapping[str, Any]) -> list[str]:
    """What failed, why, and for which clips."""
    lines = []
    for system in results["systems"]:
        for reason, clips in system["encoding_failures"].items():
            lines.append(f"{system['system']} cannot encode {_listed(clips)}: {reason}")
        for name, reasons in system["failures"].items():
            for reason, clips in reasons.items():
                lines.append(f"{system['system']}, {name}: {reason}" + (f" ({_listed(clips)})" if clips else ""))
    return lines


def _listed(clips: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(clips) - shown} more" if len(clips) > shown else ""
    return ", ".join(clips[:shown]) + more


def score_records(results: Mapping[str, Any]) -> list[list[Any]]:
    """Header, and a row for every score of every system."""
    rows: list[list[Any]] = [["system", "score", "value", "low", "high", "num_clips", "num_failed"]]
    for system in results["systems"]:
        for name, score in system["scores"].items():
            failed = sum(len(clips) for clips in system["failures"].get(name, {}).values())
            values = [None] * 4 if score is None else [score[field] for field in ("value", "low", "high", "num_clips")]
            rows.append([system["system"], name, *values, failed])
    return rows


# A drawing with its alternative text; `None` where nothing that it shows was measured.
Drawing = tuple["matplotlib.figure.Figure | None", str]


def _phone_figures(results: Mapping[str, Any], names: Sequence[str]) -> list[Drawing]:
    figures: list[Drawing] = [
        (plot_phones(results), "PNMI, with intervals: higher is better, and at fewer units or bits still more so.")
    ]
    for system in results["systems"]:
        if "pnmi_confusion" in system["details"]:
            text = (
                f"Share of each phone among the frames of each unit of {system['system']}. Good units have one bright "
                "phone each, and few phones have none."
            )
            figures.append((plot_confusion(system), text))
    return figures


def _bar_figures(results: Mapping[str, Any], names: Sequence[str]) -> list[Drawing]:
    shown = _measured(results, names)
    titles = ", ".join(dict.fromkeys(SCORE_KINDS[split_name(name)[0]].title for name in shown))
    return [(plot_bars(results, shown) if shown else None, f"{titles}: bars of the systems, with intervals.")]


def _streaming_figures(results: Mapping[str, Any], names: Sequence[str]) -> list[Drawing]:
    text = "Where a line ends low, a stream of that latency gives nearly the units of the whole recording."
    return [(plot_streaming(results), text)]


def _usage_figures(results: Mapping[str, Any], names: Sequence[str]) -> list[Drawing]:
    text = "The flatter, the more evenly the codes are used; a line that ends before 1 leaves codes unused."
    return [(plot_usage(results), text)]


def _probe_figures(results: Mapping[str, Any], names: Sequence[str]) -> list[Drawing]:
    text = "Macro F1 (%) with intervals: linear dark, MLP light below it; the ticks are those of shuffled labels."
    return [(plot_probes(results, names) if _measured(results, names) else None, text)]


def _measured(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(system["scores"].get(name) for system in results["systems"])]


# Figures of a section by the first kind of its scores.
FIGURES: dict[str, Callable[[Mapping[str, Any], Sequence[str]], list[Drawing]]] = {
    "pnmi": _phone_figures,
    "abx_within": _bar_figures,
    "ued": _bar_figures,
    "ued_streaming": _streaming_figures,
    "share_used": _usage_figures,
    "probe_speaker": _probe_figures,
}


def score_section(results: Mapping[str, Any], section: ScoreSection) -> Section | None:
    """A section with its table and its figures; `None` where no system has one of its scores."""
    names = section_scores(results, section)
    if not names:
        return None
    draw = FIGURES.get(section.kinds[0])
    drawings = draw(results, names) if draw else []
    figures = [Figure(figure, text) for figure, text in drawings if figure is not None]
    return Section(section.title, section.caption, [section_rows(results, section, names)], figures)


def build_report(results: Mapping[str, Any]) -> Report:
    """
    The report that is written as `units`.

    Args:
        results (mapping): What `speech-tokenizers evaluate units` measured.
    """
    sections = [Section("", tables=[summary_rows(results)])]
    sections += [section for kinds in SECTIONS if (section := score_section(results, kinds)) is not None]
    sections.append(Section("Codebooks", tables=[codebook_rows(results)]))
    return Report("Units", notes(results), sections, failure_lines(results), results, score_records(results))
