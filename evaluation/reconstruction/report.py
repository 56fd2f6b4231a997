# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation of codecs: scores of their reconstructions, bit rates, codebooks, examples."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from speech_tokenizers.evaluation.report_figures import dress, new_figure, plot_panels
from speech_tokenizers.evaluation.report_pages import DASH, Figure, Player, Report, Section, interval, score_cell


if TYPE_CHECKING:
    import matplotlib.figure

    from speech_tokenizers.evaluation.clips import Clip


def score_titles(results: Mapping[str, Any]) -> dict[str, str]:
    """Title of each score in the results, error rates included, in the order of the columns."""
    titles = dict(results["titles"])
    for name in results["recognizers"]:
        for rate in ("wer", "wil", "cer"):
            for against in ("transcript", "recording"):
                key = f"{rate}_{against}[{name}]"
                if any(key in system["scores"] for system in results["systems"]):
                    titles[key] = f"{rate.upper()} % ({name}, to {against})"
    return titles


def score_digits(name: str) -> int:
    """Digits after the point that a table shows of a score."""
    if name[:3] in ("wer", "wil", "cer", "si_"):
        return 1
    return 3 if name in ("stoi", "estoi", "speaker_similarity") else 2


def format_score(system: Mapping[str, Any], name: str) -> str:
    """
    A cell: the mean, its interval, over how many clips where not all have it, how many failed; `failed` where all did,
    a dash where it does not apply.
    """
    failed = sum(system["failures"].get(name, {}).values())
    score = system["scores"].get(name)
    if score is None:
        return f"failed ({failed})" if failed and name in system["scores"] else DASH
    return score_cell(score, score_digits(name), failed, system.get("num_clips"))


def format_rates(system: Mapping[str, Any]) -> list[str]:
    """Cells for the bit rates (nominal, by entropy, measured) and the real-time factors."""
    keys = ("kbps_nominal", "kbps_entropy", "kbps_measured")
    rates = [interval(system.get(key), 2) for key in keys]
    keys = ("real_time_factor_encode_cpu", "real_time_factor_decode_cpu")
    return rates + [interval(system.get(key), 4) for key in keys]


RATE_TITLES = ["kbps nominal", "kbps entropy", "kbps measured", "RTF encode", "RTF decode"]


def table_rows(results: Mapping[str, Any], group: str | None = None) -> list[list[str]]:
    """Header and one row a system, over all clips or those of one group."""
    titles = score_titles(results)
    rows = [["system", *titles.values(), *RATE_TITLES]]
    for system in results["systems"]:
        part = system if group is None else system["groups"][group]
        rows.append([system["system"], *[format_score(part, name) for name in titles], *format_rates(part)])
    return rows


def stage_rows(system: Mapping[str, Any]) -> list[list[str]]:
    """Code use of each stage of one system."""
    rows = [["stage", "codes used", "share used", "entropy (bits)", "perplexity"]]
    for number, stage in enumerate(system["stages"], 1):
        used = f"{stage['num_used']} of {stage['codebook_size']}"
        rows.append(
            [str(number), used, f"{stage['share_used']:.1%}", f"{stage['entropy']:.2f}", f"{stage['perplexity']:.0f}"]
        )
    return rows


ERROR_RATES_NOTE = (
    "WER and CER: errors per word and character; WIL: word information lost; each against the transcript of the data "
    "and against what the same recogniser hears in the recording."
)


def notes(results: Mapping[str, Any]) -> list[str]:
    """Sentences that say how the numbers came about."""
    data, settings = results["data"], results["settings"]
    named = [f"{count} {name}" for name, count in data["groups"].items() if name != "."]  # "." is the folder itself
    groups = f" ({', '.join(named)})" if named else ""
    lines = [
        f"{data['num_clips']} clips, {data['seconds'] / 60:.1f} minutes{groups}; {results['date']}; "
        f"data key {data['key']}.",
        "Means over the clips where the metric worked, with 95 % bootstrap intervals over clips.",
        "kbps: nominal (codes times bits a code), by the entropy of each stage, and measured (size of the code, "
        "without headers).",
        f"RTF: processor seconds per second of audio, {settings['threads']} thread(s), {settings['device']}; "
        "wall-clock time is in results.json. For Opus and Codec2 it includes starting the program.",
    ]
    if continuous := [system for system in results["systems"] if "bits_per_number" in system]:
        names = ", ".join(system["system"] for system in continuous)
        lines.append(
            f"Continuous, with no code to count: {names}. The measured rate takes {continuous[0]['bits_per_number']} "
            "bits a number of their latents."
        )
    if "dnsmos" in results["titles"]:
        lines.append(f"DNSMOS: {settings['dnsmos_windows']} windows of 9.01 s a clip.")
    if results["recognizers"]:
        lines.append(ERROR_RATES_NOTE)
    if any("n=" in format_score(system, name) for system in results["systems"] for name in score_titles(results)):
        lines.append(f"n: number of clips that have the score, where these are not all {data['num_clips']}.")
    return lines + [f"Skipped {name}: {reason}" for name, reason in results["skipped"].items()]


def failure_lines(results: Mapping[str, Any]) -> list[str]:
    """What failed where, how often and why."""
    return [
        f"{system['system']}, {name}: {count} × {reason}"
        for system in results["systems"]
        for name, reasons in system["failures"].items()
        for reason, count in reasons.items()
    ]


def plot_scores(results: Mapping[str, Any]) -> "matplotlib.figure.Figure | None":
    """A panel for each score: bars of the systems with their intervals. `None` where all scores failed."""
    systems = results["systems"]
    panels = []
    for name, title in score_titles(results).items():
        scores = [system["scores"].get(name) for system in systems]
        if any(scores):
            better = "higher" if results["higher_is_better"].get(name, False) else "lower"
            panels.append((f"{title} ({better} is better)", scores))
    return plot_panels([system["system"] for system in systems], panels) if panels else None


def plot_spectrograms(waveforms: Mapping[str, np.ndarray], sampling_rate: int) -> "matplotlib.figure.Figure":
    """Log-power spectrograms of one clip, a panel a system."""
    figure = new_figure(10, 1.5 * len(waveforms))
    window = np.hanning(512)
    for number, (name, audio) in enumerate(waveforms.items(), 1):
        axes = figure.add_subplot(len(waveforms), 1, number)
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, 256), 512)[::128] * window
        decibels = 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-4)
        extent = (0.0, len(audio) / sampling_rate, 0.0, sampling_rate / 2000)
        axes.imshow(decibels, origin="lower", aspect="auto", extent=extent, vmin=-50, vmax=30, cmap="magma")
        dress(axes, name, y="kHz")
    return figure


def example_section(results: Mapping[str, Any], folder: Path, name: str, clip: "Clip") -> Section:
    """Players and spectrograms of one clip, as each system decoded it."""
    paths = {system["system"]: system["audio"][name] for system in results["systems"] if name in system["audio"]}
    figures = []
    if paths:
        waveforms = {system: soundfile.read(folder / path, dtype="float32") for system, path in paths.items()}
        rate = next(iter(waveforms.values()))[1]
        figure = plot_spectrograms({system: audio for system, (audio, _) in waveforms.items()}, rate)
        figures.append(Figure(figure, f"Spectrograms of {clip.name}, as each system decoded it."))
    players = [["system", "recording"], *[[system, Player(path)] for system, path in paths.items()]]
    return Section(clip.name, clip.text or "", tables=[players], figures=figures)


def build_report(results: Mapping[str, Any], folder: Path, examples: Mapping[str, "Clip"]) -> Report:
    """
    The report that is written as `results`.

    Args:
        results (mapping): What `speech-tokenizers evaluate` measured.
        folder (`Path`): Folder of the report, which holds the decoded examples.
        examples (mapping of `str` to [`Clip`]): Clips to listen to, by the name of their decoded files.
    """
    figure = plot_scores(results)
    figures = [] if figure is None else [Figure(figure, "Scores of the systems: bars with their intervals.")]
    sections = [Section("", tables=[table_rows(results)], figures=figures)]
    sections += [example_section(results, folder, name, clip) for name, clip in examples.items()]
    groups = results["data"]["groups"]
    if len(groups) > 1:
        sections += [Section(f"Only {group}", tables=[table_rows(results, group)]) for group in groups]
    sections += [
        Section(f"Codebooks of {system['system']}", tables=[stage_rows(system)])
        for system in results["systems"]
        if "stages" in system
    ]
    return Report("Reconstruction", notes(results), sections, failure_lines(results), results)
