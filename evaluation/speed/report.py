# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark: what each measure found, in a section of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speech_tokenizers.evaluation.report_pages import Report, Section


Values = Mapping[str, Any]  # what a measure of `benchmark.MEASURES` found


def profile_table(values: Values) -> list[list[str]]:
    """Header, and a row for each part of a training step."""
    step = values["step_ms"]
    parts = {
        # What has no name of its own comes last.
        **dict(sorted(values["parts_ms"].items(), key=lambda row: row[0] == "other")),
        **{f"loss {name}, forward and backward, by itself": ms for name, ms in values["losses_ms"].items()},
        "whole step": step,
    }
    return [["", "ms", "share of the step"], *[[name, f"{ms:.1f}", f"{ms / step:.0%}"] for name, ms in parts.items()]]


def time_table(side: str, values: Values) -> list[list[str]]:
    """Header, and a row for each of the compared systems; `side` is `"encode"` or `"decode"`."""
    title = f"{side}, {values['audio_seconds']:g} s of audio"
    rows = [[title, "seconds", "real-time factor", "times faster (range)"]]
    for row in values[side]:
        low, high = row["speed_up_range"]
        cells = [f"{row['median_seconds']:.3f}", f"{row['real_time_factor']:.4f}"]
        rows.append([row["name"], *cells, f"{row['speed_up']:.2f} ({low:.2f} to {high:.2f})"])
    return rows


def time_tables(values: Values) -> list[list[list[str]]]:
    """A table for each of `"encode"` and `"decode"` that was timed."""
    return [time_table(side, values) for side in ("encode", "decode") if side in values]


def token_table(models: Sequence[Values]) -> list[list[str]]:
    """Header, and a row for each model whose streams were timed."""
    calls = "a call that answers, median (95 %)"
    rows = [["", "look-ahead", "RTF encode", "RTF decode", f"encode: {calls}", f"decode: {calls}"]]
    for row in models:
        cells = [f"{row['name']}, {row['parameters'] / 1e6:.2f} M"]
        cells.append(f"none, {row['frame_ms']:g} ms a latent" if row["is_streamable"] else "in windows")
        cells += [f"{row[f'real_time_factor_{side}']:.4f}" for side in ("encode", "decode")]
        for side in ("encode", "decode"):
            cells.append(f"{row[f'{side}_median_ms']:.2f} ({row[f'{side}_p95_ms']:.2f}) ms")
        rows.append(cells)
    return rows


def describe_encodec(title: str, values: Values) -> Section:
    """Section of `measure_encodec`."""
    counts = (f"{name} {count / 1e6:.2f} M" for name, count in values["parameters"].items())
    return Section(title, f"Parameters: {', '.join(counts)}.", time_tables(values))


def describe_decoders(title: str, values: Values) -> Section:
    """Section of `measure_decoders`."""
    return Section(title, tables=time_tables(values))


def describe_bfloat16(title: str, values: Values) -> Section:
    """Section of `measure_bfloat16`."""
    stages = ", ".join(f"{share:.1%}" for share in values["code_agreement_by_stage"])
    units = ", ".join(values["bf16_units"]) or "none, so it is emulated"
    caption = (
        f"{values['model']}: {values['code_agreement']:.2%} of codes equal (by stage {stages}). "
        f"bfloat16 units of this processor: {units}."
    )
    return Section(title, caption, time_tables(values))


def describe_streaming(title: str, values: Values) -> Section:
    """Section of `measure_streaming`."""
    lines = []
    for clock in ("wall", "processor"):
        row = values[clock]
        lines.append(
            f"{clock} time: mean {row['mean_ms']:.2f} ms, median {row['median_ms']:.2f} ms, 95th percentile "
            f"{row['p95_ms']:.2f} ms for a frame of {values['frame_ms']:g} ms ({values['num_frames']} frames)"
        )
    return Section(title, lines=lines)


def describe_tokens(title: str, values: Values) -> Section:
    """Section of `measure_tokens`."""
    return Section(title, "RTF: processor seconds per second of audio.", [token_table(values["models"])])


def describe_memory(title: str, values: Values) -> Section:
    """Section of `measure_file_memory`."""
    decoded = f", decoded in {values['decode_seconds']:.0f} s" if "decode_seconds" in values else ""
    lines = [
        f"{values['model']}, {values['minutes']:g} minutes: {values['extra_bytes'] / 1e6:.0f} MB beyond the loaded "
        f"model ({values['with_model_bytes'] / 1e6:.0f} MB with Python and torch); encoded in "
        f"{values['encode_seconds']:.0f} s{decoded}."
    ]
    effect = values.get("window_effect")
    if effect is not None:
        lines.append(
            f"In windows of {effect['window_seconds']:g} s with {effect['context_seconds']:g} s of context before and "
            f"after, {effect['seconds']:.0f} s of it get units that differ from those of the whole by a unit edit "
            f"distance of {effect['unit_edit_distance']:.2f} %; {effect['frames_equal']:.2%} of the frames are equal."
        )
    return Section(title, " ".join(lines))


def describe_training(title: str, values: Values) -> Section:
    """Section of `measure_training`."""
    memory = f", peak {values['peak_memory_gb']:.2f} GB" if "peak_memory_gb" in values else ""
    caption = (
        f"{values['recipe']} ({values['model']}), {values['batch']} x {values['segment_seconds']:g} s on "
        f"{values['device']}, precision {values['mixed_precision']}, {values['clock']} time: "
        f"{values['audio_seconds_per_second']:.1f} s of audio a second{memory}."
    )
    return Section(title, caption, [profile_table(values)])


def describe_units(title: str, values: Values) -> Section:
    """Section of `measure_units`."""
    return Section(title, f"{values['model']}.", time_tables(values))


# Heading of each measure, and what writes its section.
SECTIONS: dict[str, tuple[str, Callable[[str, Values], Section]]] = {
    "encodec": ("Against transformers' EncodecModel, same architecture", describe_encodec),
    "decoders": ("Inverse-STFT decoder against SEANet decoder", describe_decoders),
    "bf16": ("bfloat16 against float32", describe_bfloat16),
    "streaming": ("One streamed frame, encoded and decoded", describe_streaming),
    "tokens": ("Continuous tokens, streamed a latent at a time", describe_tokens),
    "memory": ("A long file, encoded and decoded", describe_memory),
    "training": ("A training step", describe_training),
    "units": ("Units in batches against the plain forward pass of their encoder", describe_units),
}


def describe(name: str, values: Values) -> Section:
    """The section of a measure, which says why where the measure was skipped."""
    title, describe_values = SECTIONS[name]
    if "skipped" in values:
        return Section(title, f"Skipped: {values['skipped']}.")
    return describe_values(title, values)


def build_report(results: Mapping[str, Any]) -> Report:
    """
    The report that is written as `benchmark`.

    Args:
        results (mapping): What `speech-tokenizers benchmark` measured.
    """
    host = results["machine"]
    notes = [
        f"{host['processor']}, {host['cores']} cores ({', '.join(host['flags'])}; torch uses {host['capability']}), "
        f"torch {host['torch']}, {results['threads']} thread(s), load {host['load_average']:.1f} at the start.",
        f"Medians of {results['repeats']} interleaved repeats; seconds are {results['clock']} time.",
    ]
    sections = [describe(name, values) for name, values in results["sections"].items()]
    return Report("Speed and memory", notes, sections, results=results)
