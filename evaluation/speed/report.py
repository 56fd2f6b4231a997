# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark."""

from typing import Any


def profile_table(values: dict[str, Any]) -> list[str]:
    r"""Lines of a Markdown table of `measure_training`."""
    step = values["step_ms"]
    rows = {
        # What has no name of its own comes last.
        **dict(sorted(values["parts_ms"].items(), key=lambda row: row[0] == "other")),
        **{f"loss {name}, forward and backward, by itself": ms for name, ms in values["losses_ms"].items()},
        "whole step": step,
    }
    lines = ["| | ms | share of the step |", "| --- | --- | --- |"]
    return lines + [f"| {name} | {ms:.1f} | {ms / step:.0%} |" for name, ms in rows.items()]


def time_table(rows: list[dict[str, Any]], audio_seconds: float) -> list[str]:
    r"""Lines of a Markdown table of `compare_times`."""
    lines = ["| | seconds | real-time factor | times faster (range) |", "| --- | --- | --- | --- |"]
    for row in rows:
        low, high = row["speed_up_range"]
        lines.append(
            f"| {row['name']} | {row['median_seconds']:.3f} | {row['real_time_factor']:.4f} | "
            f"{row['speed_up']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return lines


def token_table(rows: list[dict[str, Any]]) -> list[str]:
    r"""Lines of a Markdown table of `measure_tokens`."""
    lines = [
        "| | look-ahead | RTF encode | RTF decode | encode: a call that answers, median (95 %) | decode: likewise |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [f"{row['name']}, {row['parameters'] / 1e6:.2f} M"]
        cells.append(f"none, {row['frame_ms']:g} ms a latent" if row["is_streamable"] else "in windows")
        cells += [f"{row[f'real_time_factor_{side}']:.4f}" for side in ("encode", "decode")]
        for side in ("encode", "decode"):
            cells.append(f"{row[f'{side}_median_ms']:.2f} ({row[f'{side}_p95_ms']:.2f}) ms")
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "RTF: processor seconds per second of audio."]


def describe(report: dict[str, Any]) -> str:
    r"""The report in Markdown."""
    host = report["machine"]
    lines = [
        f"{host['processor']}, {host['cores']} cores ({', '.join(host['flags'])}; torch uses {host['capability']}), "
        f"torch {host['torch']}, {report['threads']} thread(s), load {host['load_average']:.1f} at the start. "
        f"Medians of {report['repeats']} interleaved repeats; seconds are {report['clock']} time."
    ]
    headings = {
        "encodec": "Against transformers' EncodecModel, same architecture",
        "decoders": "Inverse-STFT decoder against SEANet decoder",
        "bf16": "bfloat16 against float32",
        "streaming": "One streamed frame, encoded and decoded",
        "tokens": "Continuous tokens, streamed a latent at a time",
        "memory": "A long file, encoded and decoded",
        "training": "A training step",
        "units": "Units in batches against the plain forward pass of their encoder",
    }
    for section, values in report["sections"].items():
        lines += ["", f"### {headings[section]}", ""]
        if "skipped" in values:
            lines.append(f"skipped: {values['skipped']}")
            continue
        for side in ("encode", "decode"):
            if side in values:
                lines += [f"{side}, {values['audio_seconds']:g} s of audio", ""]
                lines += [*time_table(values[side], values["audio_seconds"]), ""]
        if section == "units":
            lines.append(f"{values['model']}.")
        if section == "encodec":
            counts = (f"{name} {count / 1e6:.2f} M" for name, count in values["parameters"].items())
            lines.append("Parameters: " + ", ".join(counts))
        if section == "bf16":
            stages = ", ".join(f"{share:.1%}" for share in values["code_agreement_by_stage"])
            units = ", ".join(values["bf16_units"]) or "none, so it is emulated"
            lines.append(f"{values['model']}: {values['code_agreement']:.2%} of codes equal (by stage {stages}).")
            lines.append(f"bfloat16 units of this processor: {units}.")
        if section == "streaming":
            for clock in ("wall", "processor"):
                row = values[clock]
                lines.append(
                    f"- {clock} time: mean {row['mean_ms']:.2f} ms, median {row['median_ms']:.2f} ms, 95th percentile "
                    f"{row['p95_ms']:.2f} ms for a frame of {values['frame_ms']:g} ms ({values['num_frames']} frames)"
                )
        if section == "tokens":
            lines += token_table(values["models"])
        if section == "memory":
            decoded = f", decoded in {values['decode_seconds']:.0f} s" if "decode_seconds" in values else ""
            lines.append(
                f"{values['model']}, {values['minutes']:g} minutes: {values['extra_bytes'] / 1e6:.0f} MB beyond the "
                f"loaded model ({values['with_model_bytes'] / 1e6:.0f} MB with Python and torch); encoded in "
                f"{values['encode_seconds']:.0f} s{decoded}."
            )
            effect = values.get("window_effect")
            if effect is not None:
                lines.append(
                    f"In windows of {effect['window_seconds']:g} s with {effect['context_seconds']:g} s of context "
                    f"before and after, {effect['seconds']:.0f} s of it get units that differ from those of the whole "
                    f"by a unit edit distance of {effect['unit_edit_distance']:.2f} %; {effect['frames_equal']:.2%} "
                    "of the frames are equal."
                )
        if section == "training":
            lines += [*profile_table(values), ""]
            memory = f", peak {values['peak_memory_gb']:.2f} GB" if "peak_memory_gb" in values else ""
            lines.append(
                f"{values['recipe']} ({values['model']}), {values['batch']} x {values['segment_seconds']:g} s on "
                f"{values['device']}, precision {values['mixed_precision']}, {values['clock']} time: "
                f"{values['audio_seconds_per_second']:.1f} s of audio a second{memory}."
            )
    return "\n".join(lines) + "\n"
