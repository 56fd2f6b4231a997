# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison of tokens for language models: a table, and a picture of what they cost and say."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_tokenizers.evaluation.bootstrap import paired_difference, ratio
from speech_tokenizers.evaluation.report_figures import INK, dress, dress_legend, error_bars, new_figure
from speech_tokenizers.evaluation.report_pages import Figure, Report, Section, interval


if TYPE_CHECKING:
    import matplotlib.figure


Results = Mapping[str, Mapping[str, Any]]
_MARKERS = {"flat": "o", "delay": "s", "continuous": "^"}


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
        " codec's decoding of the recordings, from the same codebooks. *: the interval excludes 0.",
        "RTF: seconds of the processor for a second of speech, from the text to the waveform. First audio: seconds of"
        " the processor until a stream gives its first samples.",
    ]
    sections = [Section("", tables=[token_table(results, differences, reference)])]
    for number, rate in enumerate(_rates(results)):
        alt = f"Word errors heard by {_name(rate)} against what tokens cost. Bars: 95 % intervals. Hollow: the codec."
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
    rates = _rates(results)
    held_out = ["held-out bits/s: codes", "text and pieces", "both"]
    header = ["tokens", "layout", "positions/s", "bits/s", *held_out]
    for rate in rates:
        header += [f"WER % ({_name(rate)})", "of the codec", *([f"less {reference}"] if reference else [])]
    table = [[*header, "ended %", "RTF", "parameters"]]
    for name, arm in results.items():
        codes, text = arm["held_out_audio_bits_per_second"], arm["held_out_text_bits_per_second"]
        row = [
            name,
            arm["layout"],
            interval(arm["positions_per_second"], 1),
            interval(arm["nominal_bits_per_second"], 0),
        ]
        row += [interval(value, 0) for value in (codes, text, None if codes is None else codes + text)]
        for rate in rates:
            row += [interval(arm.get("wer", {}).get(rate), 1), _value(arm.get("wer_of_codec", {}).get(rate), 1)]
            row += [interval(differences[name].get(rate), 1, signed=True)] if reference else []
        row += [_value(arm.get("ended"), 0), _value(arm.get("real_time_factor"), 2)]
        row += [_value(arm.get("first_audio_seconds"), 2), f"{arm['parameters'] / 1e6:.2f} M"]
        table.append(row)
    return table


def plot_tokens(results: Results, rate: str) -> "matplotlib.figure.Figure":
    """Word error rate against positions a second and against the real-time factor; a colour is a codec."""
    figure = new_figure(10.0, 4.6)
    heard = {name: arm for name, arm in results.items() if arm.get("wer", {}).get(rate)}
    codecs = list(dict.fromkeys(arm["codec"] for arm in heard.values()))
    panels = {
        "positions a second": lambda arm: arm["positions_per_second"],
        "real-time factor": lambda arm: (arm["real_time_factor"] or {}).get("value"),
    }
    for number, (title, cost) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        for name, arm in heard.items():
            if (x := cost(arm)) is None:
                continue
            score, ceiling = arm["wer"][rate], arm["wer_of_codec"].get(rate)
            style = {"color": f"C{codecs.index(arm['codec']) % 10}", "marker": _MARKERS[arm["layout"]]}
            axes.errorbar(x, score["value"], yerr=error_bars([score]), capsize=2, alpha=0.85, **style)
            axes.annotate(name, (x, score["value"]), (5, 3), textcoords="offset points", fontsize=7, color=INK)
            if ceiling:
                axes.plot(x, ceiling["value"], fillstyle="none", linestyle="none", **style)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        dress(axes, "", title, f"word error rate % ({_name(rate)})")
    axes = figure.axes[0]
    for layout, marker in _MARKERS.items():
        if any(arm["layout"] == layout for arm in heard.values()):
            axes.plot([], [], marker, color=INK, label=layout)
    dress_legend(axes.legend(fontsize=8))
    return figure


def _rates(results: Results) -> list[str]:
    return list(dict.fromkeys(rate for arm in results.values() for rate in arm.get("wer", {})))


def _name(rate: str) -> str:
    return rate.removeprefix("wer[").removesuffix("]")


def _value(score: Mapping[str, Any] | None, digits: int) -> str:
    return interval(None if score is None else score["value"], digits)
