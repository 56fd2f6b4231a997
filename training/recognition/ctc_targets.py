# SPDX-License-Identifier: Apache-2.0
"""Targets of a CTC recogniser: texts that it can learn from, and the rate of its errors."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import normalize

import datasets
import numpy as np
from transformers import EvalPrediction

from speech_tokenizers.processing.ctc_labels import CTCLabels, is_number
from speech_tokenizers.processing.labelled_rows import texts_in
from speech_tokenizers.processing.text_normalization import is_symbol
from speech_tokenizers.processing.word_alignment import edit_distance


# Column of the metadata that holds what is said, by the unit that it is written in.
COLUMNS = {"character": "text", "phone": "phones"}


def add_language_argument(parser: argparse.ArgumentParser) -> None:
    """The option `--language` of what trains on texts."""
    parser.add_argument(
        "--language", metavar="CODE", default="en", help="language of the texts, such as tr (default: en)"
    )


def column_of(unit: str, column: str | None = None, is_phonemized: bool = False) -> str:
    """The column of what is said, where it is not named; phones may be made of texts."""
    return COLUMNS["character" if is_phonemized else unit] if column is None else column


class UnusableText(ValueError):
    """A recording whose text cannot be learnt from; the message says why."""


def check_column(column: str, recordings: datasets.Dataset, data: str | None = None) -> None:
    """
    Args:
        column (`str`): Name of a column of texts.
        recordings (`datasets.Dataset`): Recordings.
        data (`str`, *optional*): Where they were loaded from, for the message.

    Raises:
        ValueError: If the recordings have no such column, or it holds something else; the message names a row.
    """
    if column not in recordings.column_names:
        raise ValueError(f"`column` is {column!r}, but the recordings have the columns {recordings.column_names}.")
    texts_in(recordings, column, data)


def learnable_labels(labels: CTCLabels, text: str | None) -> list[int]:
    """
    The labels of a text to learn from.

    Args:
        labels ([`CTCLabels`]): Labels of the recogniser.
        text (`str`, *optional*): Text that is said.

    Raises:
        UnusableText: If the text has no label, letters or phones without one, or numbers or symbols that would have
            to be spelt first.
    """
    sequence = reference_labels(labels, text)
    unknown = labels.unknown_in(text or "")
    if unknown:
        names = ", ".join(map(repr, unknown[:5]))
        raise UnusableText(f"its text has what the recogniser has no label for ({names}): {text!r}")
    return sequence


def reference_labels(labels: CTCLabels, text: str | None) -> list[int]:
    """
    The labels of a text to measure on. Letters and phones without a label are labelled as unknown, so that they count
    as errors.

    Args:
        labels ([`CTCLabels`]), text (`str`, *optional*): As for [`learnable_labels`].

    Raises:
        UnusableText: If the text has no label, numbers or symbols that would have to be spelt first, or unknown
            letters where the recogniser has no label for these.
    """
    text = text or ""
    if not labels.is_phones:
        _check_spelt(labels, text)
    try:
        sequence = labels.sequence(text)
    except ValueError as error:
        raise UnusableText(str(error)) from error
    if not sequence:
        raise UnusableText(f"its text has no label: {text!r}")
    return sequence


def _check_spelt(labels: CTCLabels, text: str) -> None:
    # Numbers and symbols without a label of their own would have to be written in letters.
    if any(is_number(character) for name in labels.unknown_in(text) for character in name):
        raise UnusableText(f"its text has digits, whose spelling is not known: {text!r}")
    signs = [sign for sign in dict.fromkeys(text) if is_symbol(sign)]
    if unspelt := [sign for sign in signs if not labels.knows(sign) and not labels.knows(normalize("NFKC", sign))]:
        names = ", ".join(map(repr, unspelt[:5]))
        raise UnusableText(f"its text has symbols, whose spelling is not known ({names}): {text!r}")


def check_num_frames(num_frames: int, sequence: Sequence[int]) -> None:
    """
    Raises:
        UnusableText: If the recording has too few frames to write the labels, with a blank between equal neighbours.
    """
    repeats = sum(first == second for first, second in zip(sequence, sequence[1:], strict=False))
    if num_frames < len(sequence) + repeats:
        raise UnusableText(f"its {num_frames} frames are too few for {len(sequence)} labels")


@dataclass
class LabelErrorRate:
    """
    Edits per label, in percent, over all recordings: the character error rate (spaces count) and the word error rate,
    or the phone error rate (word boundaries do not count). A true label that stands for what the recogniser does not
    know is an error, whatever it writes there.

    Args:
        labels ([`CTCLabels`]): Labels of the recogniser.
    """

    labels: CTCLabels

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """
        Args:
            prediction (`EvalPrediction`): Predictions and truth. `predictions` of shape `(num_recordings, num_frames)`
                are the most probable label of each frame. `label_ids` of shape `(num_recordings, num_labels)` are the
                true labels, as [`reference_labels`] gives them. A -100 is ignored in both.
        """
        pairs = [
            (self._written(_collapsed(path)), self._true(sequence))
            for path, sequence in zip(prediction.predictions, prediction.label_ids, strict=True)
        ]
        if self.labels.is_phones:
            phones = [tuple([x for x in side if x != self.labels.delimiter] for side in pair) for pair in pairs]
            return {"phone_error_rate": _error_rate(phones)}
        words = [tuple(self._words(side) for side in pair) for pair in pairs]
        return {"character_error_rate": _error_rate(pairs), "word_error_rate": _error_rate(words)}

    def _written(self, sequence: np.ndarray) -> list[int]:
        # Special labels are no part of a text.
        silent = self.labels.special_ids - {self.labels.delimiter}
        return [int(label) for label in sequence if label not in silent]

    def _true(self, sequence: np.ndarray) -> list[int]:
        return [int(label) for label in sequence if label not in (-100, self.labels.blank)]

    def _words(self, sequence: Sequence[int]) -> list[tuple[int, ...]]:
        words: list[tuple[int, ...]] = [()]
        for label in sequence:
            words = [*words, ()] if label == self.labels.delimiter else [*words[:-1], (*words[-1], label)]
        return [word for word in words if word]


def _error_rate(pairs: Sequence[tuple[Sequence, ...]]) -> float:
    errors = sum(edit_distance(said, true) for said, true in pairs)
    return 100 * errors / max(1, sum(len(true) for _, true in pairs))


def _collapsed(path: np.ndarray) -> np.ndarray:
    path = path[path >= 0]
    return path[np.concatenate([[True], path[1:] != path[:-1]])] if len(path) else path
