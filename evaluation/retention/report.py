# SPDX-License-Identifier: Apache-2.0
"""The report of what tokenizers retain of each frequency."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speech_tokenizers.evaluation.report_figures import dress, dress_legend, new_figure
from speech_tokenizers.evaluation.report_pages import Figure, Report, Section, interval


if TYPE_CHECKING:
    import matplotlib.figure


TITLES = {
    "transfer": "Transfer |H|",
    "coherence": "Coherence",
    "gain": "Gain",
    "magnitude_transfer": "Magnitude transfer",
    "magnitude_correlation": "Magnitude correlation",
}
# A waveform that correlates less with the recording's is not kept, so that it cannot be late either.
KEPT_CORRELATION = 0.3


def range_titles(results: Mapping[str, Any], quantity: str) -> list[str]:
    """Ranges of frequencies that any rate has: the paper's frequencies, the top, the bands."""
    titles: dict[str, float] = {}
    for system in results["systems"]:
        for rate in system["rates"].values():
            for window in rate["windows"].values() if rate else ():
                for title in window["scores"][quantity]:
                    start = float(title.partition(" ")[0].partition("–")[0]) if title != "top" else 0.0
                    titles[title] = (1e3 if "–" in title else 0.0) + (1e2 if title == "top" else start)
    return sorted(titles, key=lambda title: titles[title])


def quantity_rows(results: Mapping[str, Any], quantity: str) -> list[list[str]]:
    """Header and a row for each original rate and system, at the first window."""
    window = f"{results['settings']['windows'][0]:g}"
    titles = range_titles(results, quantity)
    rows = [["original rate", "tokenizer", *titles]]
    for rate in results["settings"]["rates"]:
        for system in results["systems"]:
            measured = system["rates"][str(rate)]
            scores = measured["windows"][window]["scores"][quantity] if measured else {}
            cells = [interval(scores.get(title), 2) for title in titles]
            rows.append([f"{rate / 1000:g} kHz", system["system"], *cells])
    return rows


def window_rows(results: Mapping[str, Any], quantity: str) -> list[list[str]]:
    """
    Header and a row for each tokenizer and frequency of the paper: the value for each original rate and window, and
    the largest less the smallest.
    """
    settings = results["settings"]
    pairs = [(rate, f"{window:g}") for rate in settings["rates"] for window in settings["windows"]]
    rows = [["tokenizer", "at", *[f"{rate / 1000:g} kHz, {window} ms" for rate, window in pairs], "spread"]]
    for system in results["systems"]:
        for title in range_titles(results, quantity):
            if title == "top" or "–" in title:
                continue
            values = []
            for rate, window in pairs:
                measured = system["rates"][str(rate)]
                found = measured["windows"][window]["scores"][quantity].get(title) if measured else None
                values.append(None if found is None else found["value"])
            known = [value for value in values if value is not None]
            if known:
                rows.append([system["system"], title, *[interval(value, 2) for value in values]])
                rows[-1].append(interval(max(known) - min(known), 2))
    return rows


def notes(results: Mapping[str, Any]) -> list[str]:
    """Sentences that say how the numbers came about."""
    data, settings = results["data"], results["settings"]
    groups = ", ".join(f"{count} {name}" for name, count in data["groups"].items())
    redrawn = "clips" if data["num_speakers"] is None else f"the {data['num_speakers']} speakers"
    lines = [
        f"{data['num_clips']} clips ({groups}); {results['date']}; data key {data['key']}; windows of "
        f"{', '.join(f'{window:g}' for window in settings['windows'])} ms (tables and curves: the first).",
        "A recording is brought to the original rate, from there to the tokenizer's, and its reconstruction back. "
        "`none` is that without a tokenizer.",
        "Transfer: |S_xy| / S_xx, the part of the reconstruction that is a filtered recording; 1 is right. Coherence: "
        "|S_xy|^2 / (S_xx S_yy), which levels and filters do not change. Gain: sqrt(S_yy / S_xx), whatever the phase. "
        "Welch's method, Hann windows that overlap by half, pooled over clips of equal power.",
        "Magnitude transfer and correlation: slope and correlation of |Y| over |X|, for decoders that do not keep the "
        "waveform; 1 is right, and 0 is what has nothing to do with the recording.",
        "Frequencies of a clip count where it has more than ten times the power of 16-bit rounding and up to 95 % of "
        "what its file and the original rate hold; a dash is where no clip does, as at 8 kHz of 16 kHz. `top` is from "
        "80 to 95 %. A frequency is averaged over 500 Hz.",
        f"Intervals: 95 %, by redrawing {redrawn}.",
    ]
    for system in results["systems"]:
        rates = [rate for rate in system["rates"].values() if rate]
        if rates and max(rate["correlation"] for rate in rates) < KEPT_CORRELATION:
            best = max(rate["correlation"] for rate in rates)
            lines.append(
                f"{system['system']} does not keep the waveform (its correlation with the recording's, wherever it is "
                f"best within 50 ms, is {best:.2f} at most), so that transfer and coherence tell nothing of it but "
                "this."
            )
        elif (late := max((abs(rate["residual_delay_ms"]) for rate in rates), default=0.0)) >= 0.5:
            lines.append(
                f"{system['system']} is late or early by {late:.2f} ms (median), which lowers its transfer and "
                "coherence where windows are not much longer."
            )
    return lines + [f"Skipped {name}: {reason}" for name, reason in results["skipped"].items()]


def failure_lines(results: Mapping[str, Any]) -> list[str]:
    """What failed at which original rate, how often and why."""
    return [
        f"{system['system']}, {rate} Hz: {count} × {reason}"
        for system in results["systems"]
        for rate, reasons in system["failures"].items()
        for reason, count in reasons.items()
    ]


def plot_retention(results: Mapping[str, Any]) -> "matplotlib.figure.Figure":
    """Curves over the frequency: a row for each quantity, a column for each original rate, bands for intervals."""
    rates = results["settings"]["rates"]
    figure = new_figure(4.6 * len(rates) + 1.5, 2.4 * len(TITLES))
    axes = figure.subplots(len(TITLES), len(rates), sharey="row", sharex="col", squeeze=False)
    for row, (quantity, title) in enumerate(TITLES.items()):
        for column, rate in enumerate(rates):
            panel = axes[row][column]
            for number, system in enumerate(results["systems"]):
                measured = system["rates"][str(rate)]
                curves = measured["curves"] if measured else {"frequencies": [], quantity: []}
                known = [
                    (frequency / 1000, estimate["value"], estimate["low"], estimate["high"])
                    for frequency, estimate in zip(curves["frequencies"], curves[quantity], strict=True)
                    if estimate is not None
                ]
                if not known:
                    continue
                frequencies, values, low, high = zip(*known, strict=True)
                is_baseline = system["system"].startswith("none, ")
                style = {"color": "0.6", "linestyle": "--"} if is_baseline else {"color": f"C{number % 10}"}
                panel.plot(frequencies, values, label=system["system"], **style)
                panel.fill_between(frequencies, low, high, alpha=0.2, color=style["color"], linewidth=0)
            panel.set_xlim(0, rate / 2000)
            panel.set_ylim(0, 1.75 if quantity == "gain" else 1.1)
            panel.grid(alpha=0.3)
            dress(
                panel,
                f"original rate {rate / 1000:g} kHz" if row == 0 else "",
                "kHz" if row == len(TITLES) - 1 else "",
                title if column == 0 else "",
            )
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        dress_legend(figure.legend(handles, labels, loc="outside right upper", fontsize=8))
    return figure


def build_report(results: Mapping[str, Any]) -> Report:
    """
    The report that is written as `retention`.

    Args:
        results (mapping): What `speech-tokenizers evaluate retention` measured.
    """
    figure = Figure(plot_retention(results), "Retention over the frequency, with intervals.", "retention.png")
    sections = [Section("", figures=[figure])]
    sections += [Section(title, tables=[quantity_rows(results, quantity)]) for quantity, title in TITLES.items()]
    sections += [
        Section(f"{TITLES[quantity]} by original rate and window", tables=[window_rows(results, quantity)])
        for quantity in ("transfer", "magnitude_transfer", "magnitude_correlation")
    ]
    return Report("Information retention", notes(results), sections, failure_lines(results), results)
