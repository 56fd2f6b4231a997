# SPDX-License-Identifier: Apache-2.0
"""The labels of a CTC recogniser: characters of texts, or phones that a text lists."""

import json
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer


_BLANK, _UNKNOWN, _WORD_DELIMITER = "<pad>", "<unk>", "|"
# What ARPAbet writes behind a vowel: unstressed, primary and secondary stress.
_STRESS_DIGITS = "012"


class CTCLabels:
    """
    The labels that a CTC tokenizer knows, as words of labels.

    Texts of a character tokenizer have words parted by whitespace. Texts of a phone tokenizer have phones parted by
    whitespace and words parted by `|`; stress digits that the tokenizer does not know are dropped.

    Args:
        tokenizer (`Wav2Vec2CTCTokenizer` or `Wav2Vec2PhonemeCTCTokenizer`): Tokenizer of characters or phones, whose
            padding token is the blank.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.blank: int = tokenizer.pad_token_id
        self.is_phones = isinstance(tokenizer, Wav2Vec2PhonemeCTCTokenizer)
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._names = {index: name for name, index in self._ids.items()}
        delimiter = getattr(tokenizer, "word_delimiter_token", None)
        self.delimiter: int | None = self._ids.get(delimiter)
        special = {*tokenizer.all_special_tokens, delimiter}
        self.special_ids = {index for name, index in self._ids.items() if name in special}
        # Characters may lie outside the vocabulary, and then in the other case.
        self._spellings = {name: index for name, index in self._ids.items() if index not in self.special_ids}

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """
        The words of a text as they are written, each with its labels; without those that the tokenizer does not know.
        """
        if self.is_phones:
            parts = [word.split() for word in text.split(_WORD_DELIMITER)]
            return [(" ".join(phones), self._known(phones)) for phones in parts if phones]
        return [(word, self._known(_composed(word))) for word in text.split()]

    def sequence(self, text: str) -> list[int]:
        """All labels of a text, with the word delimiter between words where the tokenizer has one."""
        labels: list[int] = []
        for _, word in self.words(text):
            if word and labels and self.delimiter is not None:
                labels.append(self.delimiter)
            labels += word
        return labels

    def name(self, label: int) -> str:
        """A label as the vocabulary writes it."""
        return self._names[label]

    def join(self, labels: Iterable[int]) -> str:
        """A word of labels, as it is written."""
        return (" " if self.is_phones else "").join(self.name(label) for label in labels)

    def _known(self, names: Iterable[str]) -> list[int]:
        found = (self._find(name) for name in names)
        return [label for label in found if label is not None]

    def _find(self, name: str) -> int | None:
        forms = (name, name.rstrip(_STRESS_DIGITS)) if self.is_phones else (name, name.lower(), name.upper())
        return next((self._spellings[form] for form in forms if form in self._spellings), None)


def build_tokenizer(texts: Iterable[str], unit: str) -> Wav2Vec2CTCTokenizer | Wav2Vec2PhonemeCTCTokenizer:
    """
    A CTC tokenizer of the characters or phones that occur in texts.

    Args:
        texts (iterable of `str`): Texts of characters or phones, as [`CTCLabels`] describes them.
        unit (`str`): Kind of label: `"character"` (letters, their marks and apostrophes, in lower case) or `"phone"`
            (without stress digits).

    Raises:
        ValueError: If `unit` is another, or `texts` hold no label.
    """
    if unit not in ("character", "phone"):
        raise ValueError(f"`unit` must be 'character' or 'phone', but got {unit!r}.")
    if unit == "phone":
        phones = (phone for text in texts for phone in text.replace(_WORD_DELIMITER, " ").split())
        labels = {phone.rstrip(_STRESS_DIGITS) for phone in phones}
    else:
        characters = (character for text in texts for character in _composed(text).lower())
        labels = {c for c in characters if c == "'" or unicodedata.category(c)[0] in "LM"}
    labels -= {""}
    if not labels:
        raise ValueError(f"`texts` hold no {unit}.")
    vocabulary = {name: index for index, name in enumerate([_BLANK, _UNKNOWN, _WORD_DELIMITER, *sorted(labels)])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.json")
        path.write_text(json.dumps(vocabulary), encoding="utf-8")
        names: dict[str, Any] = {"bos_token": None, "eos_token": None, "unk_token": _UNKNOWN, "pad_token": _BLANK}
        if unit == "phone":
            return Wav2Vec2PhonemeCTCTokenizer(
                str(path), do_phonemize=False, phone_delimiter_token=" ", word_delimiter_token=_WORD_DELIMITER, **names
            )
        return Wav2Vec2CTCTokenizer(str(path), word_delimiter_token=_WORD_DELIMITER, **names)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'")
