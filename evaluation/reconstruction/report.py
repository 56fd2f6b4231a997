# SPDX-License-Identifier: Apache-2.0
"""The evaluation's results as JSON, a Markdown table and an HTML page with plots and audio players."""

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from speech_tokenizers.evaluation.report_pages import STYLE, embed_figure, html_table, markdown_table, write_text


if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from speech_tokenizers.evaluation.clips import Clip


def score_titles(report: dict[str, Any]) -> dict[str, str]:
    r"""Title of each score in the report, error rates included, in the order of the columns."""
    titles = dict(report["titles"])
    for name in report["recognizers"]:
        for rate in ("wer", "wil", "cer"):
            for against in ("transcript", "recording"):
                key = f"{rate}_{against}[{name}]"
                if any(key in system["scores"] for system in report["systems"]):
                    titles[key] = f"{rate.upper()} % ({name}, to {against})"
    return titles


def score_digits(name: str) -> int:
    r"""Digits after the point that a table shows of a score."""
    if name[:3] in ("wer", "wil", "cer", "si_"):
        return 1
    return 3 if name in ("stoi", "estoi", "speaker_similarity") else 2


def format_score(system: dict[str, Any], name: str) -> str:
    r"""
    A cell: the mean, its interval, how many clips failed; `failed` where all did, a dash where it does not apply.
    """
    if name not in system["scores"]:
        return "–"
    failed = sum(system["failures"].get(name, {}).values())
    score = system["scores"][name]
    if score is None:
        return f"failed ({failed})" if failed else "–"
    digits = score_digits(name)
    text = f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"
    return f"{text}, n={score['num_clips']}, {failed} failed" if failed else text


def format_rates(system: dict[str, Any]) -> list[str]:
    r"""Cells for the bit rates (nominal, by entropy, measured) and the real-time factors."""
    keys = ("kbps_nominal", "kbps_entropy", "kbps_measured")
    rates = [f"{system[key]:.2f}" if key in system else "–" for key in keys]
    keys = ("real_time_factor_encode_cpu", "real_time_factor_decode_cpu")
    return rates + [f"{system[key]:.4f}" if key in system else "–" for key in keys]


RATE_TITLES = ["kbps nominal", "kbps entropy", "kbps measured", "RTF encode", "RTF decode"]


def table_rows(report: dict[str, Any], group: str | None = None) -> list[list[str]]:
    r"""Header and one row a system, over all clips or those of one group."""
    titles = score_titles(report)
    rows = [["system", *titles.values(), *RATE_TITLES]]
    for system in report["systems"]:
        part = system if group is None else system["groups"][group]
        rows.append([system["system"], *[format_score(part, name) for name in titles], *format_rates(part)])
    return rows


def stage_rows(system: dict[str, Any]) -> list[list[str]]:
    r"""Code use of each stage of one system."""
    rows = [["stage", "codes used", "share used", "entropy (bits)", "perplexity"]]
    for number, stage in enumerate(system["stages"], 1):
        used = f"{stage['num_used']} of {stage['codebook_size']}"
        rows.append(
            [str(number), used, f"{stage['share_used']:.1%}", f"{stage['entropy']:.2f}", f"{stage['perplexity']:.0f}"]
        )
    return rows


def notes(report: dict[str, Any]) -> list[str]:
    r"""Sentences that say how the numbers came about."""
    data, settings = report["data"], report["settings"]
    groups = ", ".join(f"{count} {name}" for name, count in data["groups"].items())
    lines = [
        f"{data['num_clips']} clips, {data['seconds'] / 60:.1f} minutes ({groups}); {report['date']}; "
        f"data key {data['key']}.",
        "Means over the clips where the metric worked, with 95 % bootstrap intervals over clips.",
        "kbps: nominal (codes times bits a code), by the entropy of each stage, and measured (size of the code, "
        "without headers).",
        f"RTF: processor seconds per second of audio, {settings['threads']} thread(s), {settings['device']}; "
        "wall-clock time is in results.json. For Opus and Codec2 it includes starting the program.",
    ]
    if continuous := [system for system in report["systems"] if "bits_per_number" in system]:
        names = ", ".join(system["system"] for system in continuous)
        lines.append(
            f"Continuous, with no code to count: {names}. The measured rate takes {continuous[0]['bits_per_number']} "
            "bits a number of their latents."
        )
    if "dnsmos" in report["titles"]:
        lines.append(f"DNSMOS: {settings['dnsmos_windows']} windows of 9.01 s a clip.")
    if report["recognizers"]:
        lines.append(
            "WER and CER: errors per word and character; WIL: word information lost; each against the transcript of "
            "the data and against what the same recogniser hears in the recording."
        )
    return lines + [f"Skipped {name}: {reason}" for name, reason in report["skipped"].items()]


def failure_lines(report: dict[str, Any]) -> list[str]:
    r"""What failed where, how often and why."""
    return [
        f"{system['system']}, {name}: {count} × {reason}"
        for system in report["systems"]
        for name, reasons in system["failures"].items()
        for reason, count in reasons.items()
    ]


def plot_scores(report: dict[str, Any]) -> "Figure":
    r"""A panel for each score: bars of the systems with their intervals."""
    from matplotlib.figure import Figure

    titles = score_titles(report)
    names = [name for name in titles if any(system["scores"].get(name) for system in report["systems"])]
    systems = report["systems"]
    columns = 3
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(4.6 * columns, (0.9 + 0.28 * len(systems)) * rows), layout="constrained")
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, number)
        for position, system in enumerate(systems):
            score = system["scores"].get(name)
            if score is None:
                continue
            errors = [[max(0.0, score["value"] - score["low"])], [max(0.0, score["high"] - score["value"])]]
            axes.barh(position, score["value"], xerr=errors, capsize=2, color=f"C{position % 10}")
        axes.set_yticks(range(len(systems)), [system["system"] for system in systems], fontsize=8)
        axes.set_ylim(len(systems) - 0.5, -0.5)
        higher = report["higher_is_better"].get(name, False)
        axes.set_title(f"{titles[name]} ({'higher' if higher else 'lower'} is better)", fontsize=9)
    return figure


def plot_spectrograms(waveforms: dict[str, np.ndarray], sampling_rate: int) -> "Figure":
    r"""Log-power spectrograms of one clip, a panel a system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.5 * len(waveforms)), layout="constrained")
    window = np.hanning(512)
    for number, (name, audio) in enumerate(waveforms.items(), 1):
        axes = figure.add_subplot(len(waveforms), 1, number)
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, 256), 512)[::128] * window
        decibels = 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-4)
        extent = (0.0, len(audio) / sampling_rate, 0.0, sampling_rate / 2000)
        axes.imshow(decibels, origin="lower", aspect="auto", extent=extent, vmin=-50, vmax=30, cmap="magma")
        axes.set_ylabel("kHz", fontsize=8)
        axes.set_title(name, fontsize=8, loc="left")
    return figure


def html_page(report: dict[str, Any], folder: Path, examples: dict[str, "Clip"]) -> str:
    r"""The page; its players point at the WAV files beside it."""
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>Reconstruction</title><style>{STYLE}</style>",
        "<h1>Reconstruction</h1>",
    ]
    parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in notes(report)) + "</ul>")
    parts += [html_table(table_rows(report)), embed_figure(plot_scores(report))]
    if failures := failure_lines(report):
        parts.append("<h2>Failures</h2><ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in failures) + "</ul>")
    for name, clip in examples.items():
        parts.append(f"<h2>{html.escape(clip.name)}</h2>" + (f"<p>{html.escape(clip.text)}</p>" if clip.text else ""))
        paths = {system["system"]: system["audio"][name] for system in report["systems"] if name in system["audio"]}
        rows = "".join(
            f"<tr><td>{html.escape(system)}</td><td><audio controls preload='none' src='{path}'></audio></td></tr>"
            for system, path in paths.items()
        )
        waveforms = {system: soundfile.read(folder / path, dtype="float32") for system, path in paths.items()}
        if waveforms:
            rate = next(iter(waveforms.values()))[1]
            figure = plot_spectrograms({system: audio for system, (audio, _) in waveforms.items()}, rate)
            parts.append(f"<table>{rows}</table>" + embed_figure(figure))
    for group in report["data"]["groups"] if len(report["data"]["groups"]) > 1 else ():
        parts.append(f"<h2>Only {html.escape(group)}</h2>" + html_table(table_rows(report, group)))
    for system in report["systems"]:
        if "stages" in system:
            parts.append(f"<h2>Codebooks of {html.escape(system['system'])}</h2>" + html_table(stage_rows(system)))
    return "\n".join(parts)


def markdown_page(report: dict[str, Any]) -> str:
    r"""The same tables in Markdown."""
    parts = ["\n".join(f"- {line}" for line in notes(report)), markdown_table(table_rows(report))]
    if failures := failure_lines(report):
        parts.append("Failures:\n" + "\n".join(f"- {line}" for line in failures))
    for group in report["data"]["groups"] if len(report["data"]["groups"]) > 1 else ():
        parts.append(f"### Only {group}\n\n" + markdown_table(table_rows(report, group)))
    for system in report["systems"]:
        if "stages" in system:
            parts.append(f"### Codebooks of {system['system']}\n\n" + markdown_table(stage_rows(system)))
    return "\n\n".join(parts) + "\n"


def write_reports(report: dict[str, Any], folder: Path, examples: dict[str, "Clip"]) -> list[Path]:
    r"""
    Write `results.json`, `results.md` and `results.html`.

    Args:
        report (`dict`): What `speech-tokenizers evaluate` measured.
        folder (`Path`): Where to; it also holds the decoded examples.
        examples (`dict` of `str` to [`Clip`]): Clips to listen to, by the name of their decoded files.
    """
    return [
        write_text(folder / "results.json", json.dumps(report, indent=1) + "\n"),
        write_text(folder / "results.md", markdown_page(report)),
        write_text(folder / "results.html", html_page(report, folder, examples)),
    ]
