# SPDX-License-Identifier: Apache-2.0
"""A report of measurements: notes, tables and figures, which one object writes as Markdown and as a page of HTML."""

import csv
import html
import io
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_tokenizers.evaluation.report_figures import INK
from speech_tokenizers.processing.whole_files import write_whole


if TYPE_CHECKING:
    import matplotlib.figure


DASH = "–"  # a value that was not measured or does not apply
STYLE = """
:root{color-scheme:light dark}
body{font-family:sans-serif;margin:2em;max-width:90em;line-height:1.4}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:1em 0;font-size:85%}
td,th{border:1px solid #8886;padding:.3em .5em;text-align:left}
td:not(:first-child){white-space:nowrap}
figure{margin:1em 0}
figure svg{max-width:100%;height:auto}
figcaption,.caption{max-width:60em;font-size:90%;opacity:.85}
"""


@dataclass(frozen=True)
class Player:
    """
    A cell of a table that plays a recording.

    Args:
        path (`str`): Path of the audio file, from the folder of the pages.
    """

    path: str

    def markdown(self) -> str:
        """A link to the recording."""
        return f"[listen]({urllib.parse.quote(self.path)})"

    def html(self) -> str:
        """An audio player."""
        return f"<audio controls preload='none' src='{urllib.parse.quote(self.path)}'></audio>"


Table = Sequence[Sequence[str | Player]]  # rows of cells; the first row is the header


@dataclass(frozen=True)
class Figure:
    """
    A figure that follows the light or dark colours of the page.

    Args:
        figure (`matplotlib.figure.Figure`): The drawing, with text and lines in `INK`.
        alt (`str`): Description for readers who do not see the figure. All readers see it as the caption.
        picture (`str`, *optional*): Name of a PNG file beside the pages. Markdown shows only figures that have one.
    """

    figure: "matplotlib.figure.Figure"
    alt: str
    picture: str | None = None

    def markdown(self) -> str:
        """A link to the picture; empty where there is none."""
        alt = re.sub(r"([\[\]])", r"\\\1", self.alt)
        return f"![{alt}]({urllib.parse.quote(self.picture)})" if self.picture else ""

    def html(self) -> str:
        """An inline SVG with its description and caption."""
        import matplotlib

        buffer = io.StringIO()
        # A page is a function of the results: neither the date nor the version of matplotlib is in it. The salt makes
        # the names within the SVG differ from those in other figures of the page.
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.alt}):
            self.figure.savefig(buffer, format="svg", transparent=True, dpi=96, metadata=metadata)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        alt = html.escape(self.alt)
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)
        return f"<figure>{svg}<figcaption>{_html_text(self.alt)}</figcaption></figure>"

    def png(self) -> bytes:
        """The figure on white, as a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=110, facecolor="white")
        return buffer.getvalue()


@dataclass(frozen=True)
class Section:
    """
    A part of a report. It shows its caption, figures, tables and lines in this order.

    Args:
        title (`str`): Heading; empty for a section without one.
        caption (`str`, *optional*): Paragraph that says what the numbers are.
        tables (sequence of `Table`, *optional*): Tables; those without a row below the header are not shown.
        figures (sequence of [`Figure`], *optional*): Figures.
        lines (sequence of `str`, *optional*): Items of a list.
    """

    title: str
    caption: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    lines: Sequence[str] = ()

    def markdown(self) -> str:
        """The section with a heading of the third level; empty where it has nothing below its heading."""
        parts = [_markdown_text(self.caption), *[figure.markdown() for figure in self.figures]]
        parts += [markdown_table(table) for table in self.tables if len(table) > 1]
        parts += [_markdown_list(self.lines)]
        body = "\n\n".join(part for part in parts if part)
        return f"### {_markdown_text(self.title)}\n\n{body}" if body and self.title else body

    def html(self) -> str:
        """The section with a heading of the second level; empty where it has nothing below its heading."""
        parts = [f"<p class='caption'>{_html_text(self.caption)}</p>" if self.caption else ""]
        parts += [figure.html() for figure in self.figures]
        parts += [_html_table(table) for table in self.tables if len(table) > 1]
        parts += [_html_list(self.lines)]
        body = "\n".join(part for part in parts if part)
        return f"<h2>{_html_text(self.title)}</h2>\n{body}" if body and self.title else body


@dataclass(frozen=True)
class Report:
    """
    What was measured, for readers and for programs.

    Args:
        title (`str`): Title of the page.
        notes (sequence of `str`): Sentences that say how the numbers came about.
        sections (sequence of [`Section`]): Parts of the report. Empty ones are left out.
        failures (sequence of `str`, *optional*): Lines that say what failed and why, for a last section.
        results (mapping, *optional*): All that was measured, as plain values for JSON. Defaults to no JSON.
        records (`Table`, *optional*): Header and a row for each score, for CSV. Defaults to no CSV.
    """

    title: str
    notes: Sequence[str]
    sections: Sequence[Section]
    failures: Sequence[str] = ()
    results: Mapping[str, Any] | None = None
    records: Sequence[Sequence[Any]] = ()

    def markdown(self) -> str:
        """The report without its title, to stand under a heading of a card or of a document."""
        parts = [_markdown_list(self.notes)]
        parts += [section.markdown() for section in self._all_sections()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def html(self) -> str:
        """A page that needs no other file, except for the recordings of its players."""
        title = html.escape(self.title)
        parts = [
            "<!doctype html><html lang='en'><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>",
            _html_list(self.notes),
            *[section.html() for section in self._all_sections()],
        ]
        return "\n".join(part for part in parts if part) + "\n</html>\n"

    def csv(self) -> str:
        """The records, a line each."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(self.records)
        return buffer.getvalue()

    def write(self, folder: Path, stem: str) -> list[Path]:
        """
        Write `stem.json` where there are results, `stem.csv` where there are records, `stem.md` and `stem.html`, and
        the figures that have a picture.

        Args:
            folder (`Path`): Folder for the files; it is created.
            stem (`str`): Name of the files without their ending.

        Returns:
            `list` of `Path`: The files that were written.
        """
        texts = {}
        if self.results is not None:
            texts[".json"] = json.dumps(self.results, indent=1) + "\n"
        if self.records:
            texts[".csv"] = self.csv()
        texts |= {".md": self.markdown(), ".html": self.html()}
        written = [write_whole(folder / f"{stem}{ending}", text) for ending, text in texts.items()]
        for section in self.sections:
            for figure in section.figures:
                if figure.picture:
                    written.append(write_whole(folder / figure.picture, figure.png()))
        return written

    def _all_sections(self) -> list[Section]:
        return [*self.sections, Section("Failures", lines=self.failures)]


def interval(estimate: Mapping[str, Any] | float | None, digits: int, signed: bool = False) -> str:
    """
    `value [low, high]` of an estimate.

    Args:
        estimate (mapping or `float`, *optional*): `value`, `low` and `high`, or a value that has no interval. `None`
            gives a dash.
        digits (`int`): Digits after the point.
        signed (`bool`, *optional*, defaults to `False`): Whether the value is a difference. Its numbers have signs,
            and an asterisk follows where the interval excludes 0.
    """
    if estimate is None:
        return DASH
    found = estimate if isinstance(estimate, Mapping) else {"value": estimate}
    form = f"{'+' if signed else ''}.{digits}f"
    if found.get("low") is None:
        return f"{found['value']:{form}}"
    value, low, high = (f"{found[end]:{form}}" for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" + (" *" if signed and excludes_zero(found) else "")


def score_cell(score: Mapping[str, Any], digits: int, num_failed: int, num_clips: int | None = None) -> str:
    """
    `interval` of a score, with the number of its clips where that is not the number of all, and of those that failed.

    Args:
        score (mapping): Fields of an [`Estimate`].
        digits (`int`): Digits after the point.
        num_failed (`int`): Number of clips where it failed.
        num_clips (`int`, *optional*): Number of all clips. Defaults to those that have the score.
    """
    text = interval(score, digits)
    if num_failed or num_clips not in (None, score.get("num_clips")):
        text += f", n={score['num_clips']}"
    return f"{text}, {num_failed} failed" if num_failed else text


def excludes_zero(estimate: Mapping[str, Any]) -> bool:
    """Whether 0 lies outside the interval of a difference."""
    return estimate["low"] > 0 or estimate["high"] < 0


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    rows = [[_markdown_cell(cell) for cell in row] for row in table]
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _markdown_text(text: str) -> str:
    # Outside of code, `<` would begin a tag.
    return re.sub(r"`[^`]+`|<", lambda found: "\\<" if found[0] == "<" else found[0], text)


def _markdown_list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_markdown_text(line)}" for line in lines)


def _markdown_cell(cell: str | Player) -> str:
    return (_markdown_text(cell) if isinstance(cell, str) else cell.markdown()).replace("|", "\\|")


def _html_cell(cell: str | Player) -> str:
    return _html_text(cell) if isinstance(cell, str) else cell.html()


def _html_text(text: str) -> str:
    # Notes are written for Markdown too, in which backticks mark code.
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _html_list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_html_text(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _html_table(table: Table) -> str:
    lines = ["<tr>" + "".join(f"<th scope='col'>{_html_cell(cell)}</th>" for cell in table[0]) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{_html_cell(cell)}</td>" for cell in row) + "</tr>" for row in table[1:]]
    return "<div class='wide'><table>" + "\n".join(lines) + "</table></div>"
