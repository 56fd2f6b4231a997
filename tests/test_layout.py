# SPDX-License-Identifier: Apache-2.0
"""The plan of the house as a test: who may import whom, and how long a file and a class may grow."""

import ast
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
# From the ground up. A file imports from its own floor and from lower ones; what stands on one line is one floor.
FLOORS = [
    ["modeling"],
    ["processing"],
    ["coding"],
    ["evaluation"],
    ["sharing"],
    ["training"],
    ["commands", "conversion", "demo", "app", "cli", "__main__"],
]
# Within `training/`: a room imports from itself and from rooms of earlier lines.
ROOMS = [["common"], ["recognition"], ["units"], ["codec", "language_models"], ["studies"]]
LONGEST_FILE, LONGEST_CLASS = 600, 400


def source_files() -> dict[str, Path]:
    """Every module of the package by its dotted name below `speech_tokenizers`."""
    files = {}
    for folder in (ROOT / "src" / "speech_tokenizers", *(ROOT / floor for floor in FLOORS_AT_TOP)):
        base = folder if folder.parent.name == "src" else ROOT
        for path in folder.rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FLOORS_AT_TOP = ("modeling", "processing", "evaluation", "training")
FILES = source_files()


def imports_of(name: str) -> set[str]:
    """Modules of the package that a module imports anywhere, in functions too; not for type checkers alone."""
    path = FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("speech_tokenizers.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])]).removeprefix("speech_tokenizers.")
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names}
    return found & FILES.keys() - {name}


IMPORTS = {name: imports_of(name) for name in FILES if name}  # the facade, "", knows all


def place(part: str, order: list[list[str]]) -> int | None:
    return next((number for number, parts in enumerate(order) if part in parts), None)


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_imports_come_from_lower_floors(name):
    floor, *inner = name.split(".")
    for other in IMPORTS[name]:
        other_floor, *other_inner = other.split(".")
        if place(floor, FLOORS) is None:  # a file of the facade's own, which everyone may import
            pytest.fail(f"{name} imports {other}, but is on no floor")
        assert place(other_floor, FLOORS) is None or place(other_floor, FLOORS) <= place(floor, FLOORS), other
        if floor == other_floor == "training" and "recipes" not in (inner[0], other_inner[0]):
            room, other_room = place(inner[0], ROOMS), place(other_inner[0], ROOMS)
            assert other_room < room or inner[0] == other_inner[0], other
        if floor in ("modeling", "processing"):
            assert other_floor == floor, f"{other}: only siblings travel to the Hub with {name}"


def test_no_file_imports_itself_through_others():
    left = dict(IMPORTS)
    while ready := [name for name, others in left.items() if not others & left.keys()]:
        for name in ready:
            del left[name]
    assert not left, "a circle among these files"


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_read_in_one_sitting(name):
    text = FILES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < LONGEST_CLASS, node.name


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = {f"speech_tokenizers.{name}".rstrip(".") for name, path in FILES.items() if path.name == "__init__.py"}
    assert set(listed) - {"speech_tokenizers.model_cards"} == there
