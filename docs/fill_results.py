# SPDX-License-Identifier: Apache-2.0
"""
Write the tables of README.md and of the pages in docs/ from docs/results.json, where their numbers are typed.

A page holds `<!-- results NAME -->` and `<!-- end -->`, each on a line of its own; between them stands the table NAME,
with the commands that gave its numbers and the model cards that hold the rest. `{TABLE/ROW/COLUMN}` in a cell is a
value of another table, and `{TABLE/ROW/COLUMN!}` the same without its interval.

Run `make results`, or `python docs/fill_results.py`.
"""

import json
import re
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
MARKED = re.compile(r"(?ms)^<!-- results (\S+) -->\n.*?^<!-- end -->$")
REFERENCE = re.compile(r"\{([^{}/]+)/([^{}/]+)/([^{}]+?)(!?)\}")


def fill(text: str, tables: dict[str, Any]) -> str:
    """
    Args:
        text (`str`): Markdown of a page.
        tables (`dict`): Contents of results.json.

    Returns:
        `str`: The page with every marked table written anew.

    Raises:
        KeyError: If a marker or a cell names a table, a row or a column that results.json lacks.
    """
    return MARKED.sub(lambda match: f"<!-- results {match[1]} -->\n{section(tables, match[1])}<!-- end -->", text)


def section(tables: dict[str, Any], name: str) -> str:
    """The table `name` in Markdown, with its commands and cards."""
    table = tables[name]
    rows = [[resolve(tables, cell) for cell in row] for row in table["rows"]]
    lines = ["| " + " | ".join(row) + " |" for row in [table["columns"], ["---"] * len(table["columns"]), *rows]]
    if table["command"]:
        lines += ["", "```bash", *(wrap(command) for command in table["command"]), "```"]
    if table["cards"]:
        links = [f"[{card}](../model_cards/{card}/README.md)" for card in table["cards"]]
        lines += ["", "More in the model cards:" if len(links) > 1 else "More in the model card:", *with_commas(links)]
    return "\n".join(lines) + "\n"


def resolve(tables: dict[str, Any], cell: str) -> str:
    """The cell with its references replaced by the values that they name."""

    def value(match: re.Match[str]) -> str:
        name, row_name, column, short = match.groups()
        table = tables[name]
        rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
        found = rows[row_name][column]
        return found.partition(" [")[0] if short else found

    return REFERENCE.sub(value, cell)


def wrap(command: str) -> str:
    """The command on lines of at most 100 characters, where its words allow that, joined by backslashes."""
    lines = [""]
    for word in re.findall(r"(?:'[^']*'|[^\s'])+", command):
        if lines[-1].strip() and len(lines[-1]) + len(word) + 3 > WIDTH:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def with_commas(items: list[str]) -> list[str]:
    """The items as lines of a list in a sentence."""
    return [*(f"{item}," for item in items[:-1]), f"{items[-1]}."]


def main() -> None:
    """Write every page anew."""
    tables = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        path.write_text(fill(path.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
