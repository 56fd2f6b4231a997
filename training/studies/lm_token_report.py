# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison of tokens for language models: a table, and a picture of what they cost and say."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_tokenizers.evaluation.bootstrap import paired_difference, ratio
from speech_tokenizers.evaluation.report_figures import dress, error_bars, new_figure
from speech_tokenizers.evaluation.report_pages import Figure, Report, Section, interval


if TYPE_CHECKING:
    import matplotlib.figure


Results = Mapping[str, Mapping[str, Any]]


def token_report(results: Results, reference: str | None = None) -> Report:
    """
    Args:
        results (mapping of `str` to mapping): What was measured of each arm, as `arm_results` gives it.
        reference (`str`, *optional*): Arm that the others' word error rates are compared with.
    """
    differences = rate_differences(results, reference)
    notes = [
        "The same small model learnt from the same sentences for as many steps; a step has the same seconds of speech."
        " This is toy scale.",
        "Positions/s: positions of the sequence for a second of speech, with the text. Bits/s: what the tokens of a"
        " second take if all are alike.",
        "Held-out: bits that the model needs for a second of speech that it did not learn from. Where a frame or a"
        " piece of text comes next is told by codes in the flat layout and by text in the others, so compare the sum."
        " Latents have densities instead, which are not compared.",
        "WER: words that a recogniser gets wrong, with 95 % bootstrap intervals over sentences. Of the codec: in the"
        " codec's decoding of the recordings, from the same codebooks. Minus another arm: above 0 is worse than that"
        " one, on the sentences that both spoke; *: the interval excludes 0.",
        "RTF: seconds of the processor for a second of speech, from the text to the waveform. First audio: seconds of"
        " the processor until a stream gives its first samples.",
    ]
    sections = [Section("", tables=[token_table(results, differences, reference)])]
    for number, rate in enumerate(_rates(results)):
        alt = (
            f"Word errors heard by {_name(rate)}, with 95 % intervals, and what the tokens cost. A colour is a codec."
        )
        picture = "tokens.png" if number == 0 else f"tokens-{number + 1}.png"
        sections.append(Section("What they cost and say", figures=[Figure(plot_tokens(results, rate), alt, picture)]))
    failures = [
        f"{name}: {count} × {reason}"
        for name, arm in results.items()
        for reason, count in arm.get("not_spoken", {}).items()
    ]
    plain = {
        name: {
            **{key: value for key, value in arm.items() if key != "word_counts"},
            "wer_difference": differences[name],
        }
        for name, arm in results.items()
    }
    return Report("Tokens for a language model", notes, sections, failures, results=plain)


def rate_differences(results: Results, reference: str | None) -> dict[str, dict[str, Any]]:
    """By how much each arm's word error rates exceed those of `reference`, on the sentences that both spoke."""
    found: dict[str, dict[str, Any]] = {name: {} for name in results}
    counts_of_reference = results.get(reference or "", {}).get("word_counts", {})
    for name, arm in results.items():
        for rate, counts in arm.get("word_counts", {}).items():
            others = counts_of_reference.get(rate, {})
            both = [sentence for sentence in counts if sentence in others]
            if name != reference and both:
                own, other = (np.array([table[sentence] for sentence in both]) for table in (counts, others))
                estimate = paired_difference(own, other, ratio)
                found[name][rate] = None if estimate is None else vars(estimate)
    return found


def token_table(
    results: Results, differences: Mapping[str, Mapping[str, Any]], reference: str | None
) -> list[list[str]]:
    """Header and a row for each arm."""
    rows = [_cells(name, arm, _rates(results), differences[name], reference) for name, arm in results.items()]
    return [list(rows[0]), *[list(row.values()) for row in rows]] if rows else []


def _cells(
    name: str, arm: Mapping[str, Any], rates: list[str], differences: Mapping[str, Any], reference: str | None
) -> dict[str, str]:
    # Cells of a row by their titles.
    codes, text = arm["held_out_audio_bits_per_second"], arm["held_out_text_bits_per_second"]
    cells = {
        "tokens": name,
        "layout": arm["layout"],
        "positions/s": interval(arm["positions_per_second"], 1),
        "bits/s": interval(arm["nominal_bits_per_second"], 0),
        "held-out bits/s: codes": interval(codes, 0),
        "text and pieces": interval(text, 0),
        "both": interval(None if codes is None else codes + text, 0),
    }
    for rate in rates:
        cells[f"WER % ({_name(rate)})"] = interval(arm.get("wer", {}).get(rate), 1)
        cells[f"of the codec ({_name(rate)})"] = _value(arm.get("wer_of_codec", {}).get(rate), 1)
        if reference:
            cells[f"minus {reference} ({_name(rate)})"] = interval(differences.get(rate), 1, signed=True)
    return {
        **cells,
        "ended %": _value(arm.get("ended"), 0),
        "RTF": _value(arm.get("real_time_factor"), 2),
        "first audio s": _value(arm.get("first_audio_seconds"), 2),
        "parameters": f"{arm['parameters'] / 1e6:.2f} M",
    }


def plot_tokens(results: Results, rate: str) -> "matplotlib.figure.Figure":
    """Word error rates with those of the codecs, and what the tokens cost, arm by arm."""
    bars: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
        "positions a second": lambda arm: arm["positions_per_second"],
        "held-out bits a second": lambda arm: arm["held_out_audio_bits_per_second"],
        "real-time factor (processor)": lambda arm: (arm.get("real_time_factor") or {}).get("value"),
    }
    figure = new_figure(13.0, 1.0 + 0.3 * len(results))
    grid = figure.add_gridspec(1, 1 + len(bars), width_ratios=[1.8, *[1.0] * len(bars)])
    codecs = list(dict.fromkeys(arm["codec"] for arm in results.values()))
    colours = [f"C{codecs.index(arm['codec']) % 10}" for arm in results.values()]
    panels = [figure.add_subplot(grid[0, column]) for column in range(1 + len(bars))]
    for place, (arm, colour) in enumerate(zip(results.values(), colours, strict=True)):
        if score := arm.get("wer", {}).get(rate):
            panels[0].errorbar(score["value"], place, xerr=error_bars([score]), fmt="o", capsize=3, color=colour)
        if ceiling := arm.get("wer_of_codec", {}).get(rate):
            panels[0].plot(ceiling["value"], place, "o", fillstyle="none", color=colour)
        for axes, value_of in zip(panels[1:], bars.values(), strict=True):
            if (value := value_of(arm)) is not None:
                axes.barh(place, value, color=colour)
    for axes, title in zip(panels, [f"word error rate % ({_name(rate)}); hollow: the codec", *bars], strict=True):
        axes.set_yticks(range(len(results)), list(results) if axes is panels[0] else [])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlim(left=0)
        dress(axes, title)
    return figure


def _rates(results: Results) -> list[str]:
    return list(dict.fromkeys(rate for arm in results.values() for rate in arm.get("wer", {})))


def _name(rate: str) -> str:
    return rate.removeprefix("wer[").removesuffix("]")


def _value(score: Mapping[str, Any] | None, digits: int) -> str:
    return interval(None if score is None else score["value"], digits)
