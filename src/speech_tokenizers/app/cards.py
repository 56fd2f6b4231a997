# SPDX-License-Identifier: Apache-2.0
"""
HTML of a page's results. A group holds players, and words or units that light up while one of them plays; see
`looks.py`.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path


def note(sentence: str) -> str:
    """A sentence of help in place of a result; what stands in backticks looks like code."""
    return f'<div class="st-note" role="alert">{_with_code(sentence)}</div>'


def heading(title: str, sentence: str = "") -> str:
    """A title, with a sentence that says what is seen."""
    return f"<h3>{escape(title)}</h3>" + (f"<p>{_with_code(sentence)}</p>" if sentence else "")


def card(title: str, facts: Iterable[str], strip: Path, audio: Path) -> str:
    """
    One player under its spectrogram.

    Args:
        title (`str`): What is heard.
        facts (iterable of `str`): Short facts of it.
        strip, audio (`Path`): Picture and sound, files of [`PageFiles`].
    """
    told = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    label = escape(title, quote=True)
    return (
        f'<figure class="st-card"><figcaption><b>{escape(title)}</b>{told}</figcaption>'
        f'<div class="st-strip"><img src="{_address(strip)}" alt="Spectrogram: {label}"><i></i></div>'
        f'<audio controls preload="metadata" src="{_address(audio)}" aria-label="{label}"></audio></figure>'
    )


def cards(parts: Iterable[str]) -> str:
    """Cards side by side, or below each other where the screen is narrow."""
    return f'<div class="st-cards">{"".join(parts)}</div>'


def group(*parts: str) -> str:
    """What belongs together: players, and what lights up while they play."""
    return f'<div class="st-group">{"".join(parts)}</div>'


def picture(path: Path, description: str) -> str:
    """A wide picture, which scrolls where the screen is narrow."""
    description = escape(description, quote=True)
    return f'<div class="st-wide"><img src="{_address(path)}" alt="{description}"></div>'


def words(timed: Sequence[tuple[str, float, float]]) -> str:
    """Words with their start and end in seconds; each starts the player at its time."""
    buttons = " ".join(
        f'<button type="button" data-start="{start:.3f}" data-end="{end:.3f}"'
        f' title="{start:.2f} to {end:.2f} s">{escape(word)}</button>'
        for word, start, end in timed
    )
    return f'<p class="st-words">{buttons}</p>'


def unit_chips(
    units: Sequence[int], durations: Sequence[int], times: Sequence[tuple[float, float]], colours: Sequence[str]
) -> str:
    """
    Runs of units, each as wide as it lasts.

    Args:
        units, durations (sequence of `int`): Units, and how many frames each lasts.
        times (sequence of `tuple`): Start and end of each, in seconds.
        colours (sequence of `str`): Colour of each unit, by its number.
    """
    chips = "".join(
        f'<span data-start="{start:.3f}" data-end="{end:.3f}" title="unit {unit}, {count} frames from {start:.2f} s"'
        f' style="background:{colours[unit]};min-width:{2.2 + 0.45 * count:.2f}em">{unit}<sub>×{count}</sub></span>'
        for unit, count, (start, end) in zip(units, durations, times, strict=True)
    )
    return f'<div class="st-units" tabindex="0" aria-label="Units and their durations in frames">{chips}</div>'


def _address(path: Path) -> str:
    # Relative, so that it also holds behind a proxy that serves the page from a folder.
    return escape(f"gradio_api/file={path.as_posix()}", quote=True)


def _with_code(sentence: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(sentence))
