# SPDX-License-Identifier: Apache-2.0
"""Parts of the pages that a comparison writes."""

import base64
import html
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_text(path: Path, text: str) -> Path:
    r"""Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def markdown_table(rows: list[list[str]]) -> str:
    r"""A Markdown table whose first row is the header."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def html_table(rows: list[list[str]]) -> str:
    r"""An HTML table whose first row is the header."""
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def embed_figure(figure: "Figure") -> str:
    r"""An `<img>` that holds the figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight")
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="">'


STYLE = """
body{font-family:sans-serif;margin:2em;max-width:90em}
table{border-collapse:collapse;margin:1em 0;font-size:85%}
td,th{border:1px solid #ccc;padding:.3em .5em;text-align:left}
img{max-width:100%}
"""
