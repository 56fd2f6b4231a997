# SPDX-License-Identifier: Apache-2.0
"""Word times as `speech-tokenizers align` writes them."""

import collections
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .metadata_files import TableError, read_json_lines


class TimedWord(NamedTuple):
    """
    A word and when it is spoken.

    Args:
        word (`str`): Word, as it is written.
        start (`float`): Start of the word, in seconds from the start of the recording.
        end (`float`): End of the word, in seconds from the start of the recording; not before `start`.
    """

    word: str
    start: float
    end: float


class TimedLabel(NamedTuple):
    """
    A character or phone, and when it is spoken.

    Args:
        label (`str`): Label, as the recogniser's vocabulary writes it.
        start (`float`): Start of the label, in seconds from the start of the recording.
        end (`float`): End of the label, in seconds from the start of the recording; not before `start`.
    """

    label: str
    start: float
    end: float


def read_word_times(path: Path, names: Sequence[str]) -> dict[int, list[TimedWord]]:
    """
    Args:
        path (`Path`): File of JSON lines with `file_name` and `words`.
        names (sequence of `str`): Names of the recordings.

    Returns:
        `dict`: The words of a recording by its index in `names`; those that the file does not know are left out.

    Raises:
        ValueError: If a line is something else, two lines are of one recording, or not one recording is known.
    """
    found, _ = find_word_times(path, names)
    if not found:
        raise ValueError(f"`word_times`: {path} names none of the recordings, such as {names[0]!r}.")
    return found


def find_word_times(path: Path, names: Sequence[str]) -> tuple[dict[int, list[TimedWord]], list[str]]:
    """
    As [`read_word_times`], but the file may know none of the recordings.

    Returns:
        `tuple`: The words of a recording by its index in `names`, and the names of other recordings in the file.

    Raises:
        ValueError: If a line is something else, or two lines are of one recording.
    """
    places = {name: index for index, name in enumerate(names)}
    counts = collections.Counter(names)
    found: dict[int, list[TimedWord]] = {}
    seen: dict[str, int] = {}
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        name, words = row.get("file_name"), row.get("words")
        if not isinstance(name, str) or not isinstance(words, list):
            raise ValueError(f"`word_times`: {where}, is no object with `file_name` and `words`.")
        if seen.setdefault(name, number) != number:
            raise ValueError(f"`word_times`: {where}: {name!r} stands in line {seen[name]} too; keep one of them.")
        if name in places:
            if counts[name] > 1:
                raise ValueError(
                    f"`word_times`: {where}: two recordings are named {name!r}, which cannot be told apart; give each"
                    " a name of its own."
                )
            found[places[name]] = timed_words(words, where)
    return found, [name for name in seen if name not in places]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        yield from read_json_lines(path)
    except TableError as error:
        raise ValueError(
            f"`word_times`: {error.place}, is no object with `file_name` and `words`: {error.reason}"
        ) from error


def timed_words(rows: Any, where: str) -> list[TimedWord]:
    """
    Word times as data state them: a list of `{"word", "start", "end"}`, in seconds and in order.

    Raises:
        ValueError: If they are something else; `where` they are stands in the error.
    """
    try:
        words = [TimedWord(str(row["word"]), float(row["start"]), float(row["end"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Word times ({where}) must be a list of `word`, `start` and `end` (seconds).") from error
    for before, word in zip([TimedWord("", 0.0, 0.0), *words], words, strict=False):
        if not (before.start <= word.start <= word.end < math.inf):
            raise ValueError(
                f"Word times ({where}) must be in order and end after they start, but {word.word!r} is from"
                f" {word.start} to {word.end} s after one from {before.start} s."
            )
    return words
