# SPDX-License-Identifier: Apache-2.0
"""Parts of figures in a report: colours that follow the page, intervals, and panels of scores."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend


# A colour that no plot uses: the page puts its own text colour in its place, so that plots follow light and dark.
INK = "#010203"

Score = Mapping[str, Any]  # `value`, `low` and `high`; an interval that is not known is `None`


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a width and a height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def dress(axes: "Axes", title: str = "", x: str = "", y: str = "") -> None:
    """Set the title and the labels of a panel, and give its text and lines the page's colour."""
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.tick_params(which="both", colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_alpha(0.4)
    if legend := axes.get_legend():
        dress_legend(legend)


def dress_legend(legend: "Legend") -> None:
    """Give a legend the page's colours."""
    for text in legend.get_texts():
        text.set_color(INK)
    legend.get_frame().set_facecolor("none")


def error_bars(scores: Sequence[Score]) -> list[list[float]] | None:
    """Lengths of the intervals below and above the values; `None` where a score has no interval."""
    if any(score["low"] is None for score in scores):
        return None
    below = [max(0.0, score["value"] - score["low"]) for score in scores]
    return [below, [max(0.0, score["high"] - score["value"]) for score in scores]]


def plot_panels(
    names: Sequence[str], panels: Sequence[tuple[str, Sequence[Score | None]]], about_zero: bool = False
) -> "Figure":
    """
    A panel for each score: one bar a system, with its interval.

    Args:
        names (sequence of `str`): Names of the systems, from top to bottom.
        panels (sequence of `tuple`): Title of a panel, and the score of each system or `None`. At least one panel.
        about_zero (`bool`, *optional*, defaults to `False`): Whether to show differences: points about a line at 0
            instead of bars.
    """
    columns = min(3, len(panels))
    num_rows = -(-len(panels) // columns)
    figure = new_figure(4.6 * columns, (0.8 + 0.26 * len(names)) * num_rows)
    for number, (title, scores) in enumerate(panels, 1):
        axes = figure.add_subplot(num_rows, columns, number)
        if about_zero:
            axes.axvline(0.0, color=INK, alpha=0.4, linewidth=1)
        for position, score in enumerate(scores):
            if score is None:
                continue
            errors, colour = error_bars([score]), f"C{position % 10}"
            if about_zero:
                axes.errorbar(score["value"], position, xerr=errors, fmt="o", capsize=3, color=colour)
            else:
                axes.barh(position, score["value"], xerr=errors, capsize=2, ecolor=INK, color=colour)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        dress(axes, title)
    return figure
