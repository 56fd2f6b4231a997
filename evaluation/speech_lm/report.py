# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation of synthesis: error rates beside their ceilings, and every sentence to listen to."""

from collections.abc import Mapping, Sequence
from typing import Any

from speech_tokenizers.evaluation.report_figures import plot_panels
from speech_tokenizers.evaluation.report_pages import (
    DASH,
    Figure,
    Player,
    Report,
    Section,
    Table,
    interval,
    score_cell,
)


# Titles and digits of what only a model has.
BEHAVIOUR = {
    "ended": ("ended by itself %", 1),
    "invalid_frames": ("invalid frames %", 2),
    "dropped_codes": ("dropped codes %", 2),
    "skipped_pieces": ("skipped pieces %", 2),
    "added_pieces": ("repeated or added pieces %", 2),
    "length_ratio": ("length ratio", 3),
    "real_time_factor": ("RTF", 3),
    "real_time_factor_cpu": ("RTF processor", 3),
    "first_audio": ("first audio s", 3),
    "first_audio_cpu": ("first audio processor s", 3),
}
_DIGITS = {"wer": 1, "cer": 1, "spe": 3, "dns": 2}


def quality_titles(results: Mapping[str, Any]) -> dict[str, str]:
    """Title of each score of what is heard, in the order of the columns."""
    titles = {
        f"{rate}[{name}]": f"{rate.upper()} % ({name})" for name in results["recognizers"] for rate in ("wer", "cer")
    }
    titles |= results["metrics"]
    return {name: title for name, title in titles.items() if any(name in s["scores"] for s in results["systems"])}


def cell(system: Mapping[str, Any], name: str, digits: int) -> str:
    """A score with its interval, over how many sentences where not all have it, and how many failed."""
    failed = sum(system["failures"].get(name, {}).values())
    score = system["scores"].get(name)
    if score is None:
        return f"failed ({failed})" if failed else DASH
    return score_cell(score, digits, failed, system["num_clips"])


def quality_table(results: Mapping[str, Any]) -> Table:
    """Header and a row a system: the ceilings from the highest to the lowest, and then the model."""
    titles = quality_titles(results)
    rows = [["speaker", *titles.values()]]
    for system in results["systems"]:
        rows.append([system["system"], *[cell(system, name, _DIGITS[name[:3]]) for name in titles]])
    return rows


def behaviour_table(results: Mapping[str, Any]) -> Table:
    """Header and a row for each system that is a model."""
    spoken = [system for system in results["systems"] if "ended" in system["scores"]]
    names = [name for name in BEHAVIOUR if any(name in system["scores"] for system in spoken)]
    rows = [["speaker", *[BEHAVIOUR[name][0] for name in names]]]
    for system in spoken:
        rows.append([system["system"], *[cell(system, name, BEHAVIOUR[name][1]) for name in names]])
    return rows


def difference_table(results: Mapping[str, Any]) -> Table:
    """Header and a row a ceiling: the model's score less that of the ceiling."""
    titles = quality_titles(results)
    rows = [["model minus", *titles.values()]]
    for ceiling, found in results["differences"].items():
        rows.append([ceiling, *[interval(found.get(name), _DIGITS[name[:3]], signed=True) for name in titles]])
    return rows


def notes(results: Mapping[str, Any]) -> list[str]:
    """Sentences that say how the numbers came about."""
    settings = results["settings"]
    chosen = ", ".join(
        f"{name} {settings[name]:g}" for name in ("temperature", "top_k", "top_p", "seed") if name in settings
    )
    lines = [
        f"{results['num_sentences']} sentences, {results['seconds'] / 60:.1f} minutes as recorded; {results['date']}.",
        f"{results['model']} speaks {results['num_codebooks']} codebooks of {results['codec']}, layout "
        f"{results['layout']}, text alignment {results['text_alignment']}; {chosen}, the rest as by default.",
        "Values over all sentences, with 95 % bootstrap intervals over sentences.",
        "WER and CER: errors per word and character of the text, in what a recogniser hears. Read them beside those "
        "of the ceilings: the recordings, the codec's decoding of their codes at the same number of codebooks, and "
        "the model with the durations of the recordings.",
        "Invalid frames have a code outside its codebook. Dropped codes are in no whole frame.",
        "Pieces are the ids of phones or words that the model wrote among its codes, against those of the text.",
        f"RTF: seconds a second of speech, median, {settings['threads']} thread(s), {settings['device']}, one "
        "sentence at a time, from the text to the whole waveform.",
        "RTF processor, first audio processor: the same in seconds of the processor, which other work slows less.",
    ]
    look_ahead = results["look_ahead_seconds"]
    if look_ahead is not None:
        lines.append(
            "First audio: median time from the text to the first samples of `stream_speech`. The model first writes "
            f"the frames of one chunk and a look-ahead of {look_ahead:.2f} s of speech."
        )
    if "dnsmos" in results["metrics"]:
        lines.append(f"DNSMOS: {settings['dnsmos_windows']} windows of 9.01 s, short sentences repeated.")
    return lines + [f"Skipped {name}: {reason}" for name, reason in results["skipped"].items()]


def failure_lines(results: Mapping[str, Any]) -> list[str]:
    """What could not be spoken or measured, how often and why."""
    lines = []
    for system in results["systems"]:
        lines += [f"{system['system']}: {count} × {reason}" for reason, count in system["not_spoken"].items()]
        for name, reasons in system["failures"].items():
            others = {reason: count for reason, count in reasons.items() if reason not in system["not_spoken"]}
            lines += [f"{system['system']}, {name}: {count} × {reason}" for reason, count in others.items()]
    return lines


def figures(results: Mapping[str, Any]) -> list[Figure]:
    """Error rates of all systems, and the differences to the ceilings."""
    rates = {name: title for name, title in quality_titles(results).items() if name[:3] in ("wer", "cer")}
    systems, found = results["systems"], []
    panels = [(title, [system["scores"].get(name) for system in systems]) for name, title in rates.items()]
    panels = [(title, scores) for title, scores in panels if any(scores)]
    if panels:
        drawn = plot_panels([system["system"] for system in systems], panels)
        found.append(Figure(drawn, "Error rates of the ceilings and of the model: bars with their intervals."))
    differences = results["differences"]
    panels = [(title, [found.get(name) for found in differences.values()]) for name, title in rates.items()]
    panels = [(title, scores) for title, scores in panels if any(scores)]
    if panels:
        drawn = plot_panels(list(differences), panels, about_zero=True)
        found.append(Figure(drawn, "Error rates of the model minus those of each ceiling, with their intervals."))
    return found


def sentence_section(sentence: Mapping[str, Any], recognizers: Sequence[str]) -> Section:
    """A sentence's text, the speech of each system, and what each recogniser heard in it."""
    rows: list[list[str | Player]] = [["speaker", "speech", *[f"heard by {name}" for name in recognizers]]]
    for name, spoken in sentence["systems"].items():
        if "failure" in spoken:
            rows.append([name, spoken["failure"], *[DASH for _ in recognizers]])
        else:
            heard = [spoken["heard"][recognizer] or "(nothing)" for recognizer in recognizers]
            rows.append([name, Player(spoken["audio"]), *heard])
    return Section(sentence["id"], sentence["text"], tables=[rows])


def build_report(results: Mapping[str, Any], with_sentences: bool = True) -> Report:
    """
    The report that is written as `results`.

    Args:
        results (mapping): What `speech-tokenizers evaluate speech-lm` measured.
        with_sentences (`bool`, *optional*, defaults to `True`): Whether it has every sentence to listen to.
    """
    sections = [
        Section("What is heard", tables=[quality_table(results)], figures=figures(results)),
        Section(
            "Beside the ceilings",
            "The model's scores less those of each ceiling, on the same sentences. *: the interval excludes 0.",
            tables=[difference_table(results)],
        ),
        Section("How it speaks", tables=[behaviour_table(results)]),
    ]
    if with_sentences:
        sections += [sentence_section(sentence, results["recognizers"]) for sentence in results["sentences"]]
    return Report("Synthesis of speech", notes(results), sections, failure_lines(results), results)
