# SPDX-License-Identifier: Apache-2.0
"""Word times as `speech-tokenizers align` writes them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


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
        ValueError: If a line is something else, or not one recording is known.
    """
    places = {name: index for index, name in enumerate(names)}
    found: dict[int, list[TimedWord]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
                name, words = row["file_name"], row["words"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"`word_times`: {where}, is no object with `file_name` and `words`.") from error
            if name in places:
                found[places[name]] = timed_words(words, where)
    if not found:
        raise ValueError(f"`word_times`: {path} names none of the recordings, such as {names[0]!r}.")
    return found


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
