# SPDX-License-Identifier: Apache-2.0
"""Word times as `speech-tokenizers align` writes them."""

import json
from collections.abc import Sequence
from pathlib import Path

from speech_tokenizers.processing.word_alignment import TimedWord
from speech_tokenizers.training.codec.distillation import timed_words


def read_word_times(path: Path, names: Sequence[str]) -> dict[int, list[TimedWord]]:
    r"""
    Args:
        path (`Path`): JSON lines with `file_name` and `words`.
        names (sequence of `str`): Of the recordings.

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
