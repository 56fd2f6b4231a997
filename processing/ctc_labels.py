# SPDX-License-Identifier: Apache-2.0
"""The labels of a CTC recogniser: characters of texts, or phones that a text lists."""

import json
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer

from .text_normalization import in_capitals, is_symbol, words_of


_BLANK, _UNKNOWN, _WORD_DELIMITER = "<pad>", "<unk>", "|"
# What ARPAbet writes behind a vowel: unstressed, primary and secondary stress.
_STRESS_DIGITS = "012"
# Field of a tokenizer's configuration: the language that its texts are normalised in.
_LANGUAGE = "text_language"


class CTCLabels:
    """
    The labels that a CTC tokenizer knows, as words of labels.

    Texts of a character tokenizer are normalised by [`words_of`], in the case that the tokenizer writes. Texts of a
    phone tokenizer have phones parted by whitespace and words parted by `|`; stress digits that the tokenizer does not
    know are dropped.

    Args:
        tokenizer (`Wav2Vec2CTCTokenizer` or `Wav2Vec2PhonemeCTCTokenizer`): Tokenizer of characters or phones, whose
            padding token is the blank.
        language (`str`, *optional*): Language of the texts, as a code; see [`words_of`]. Defaults to what the
            tokenizer keeps; see [`text_language`].

    Attributes:
        unknown (`int`, *optional*): Label of what the tokenizer does not know, if it has one.
    """

    def __init__(self, tokenizer: Any, language: str | None = None):
        self.tokenizer = tokenizer
        self.language = text_language(tokenizer) if language is None else language
        self.blank: int = tokenizer.pad_token_id
        self.is_phones = isinstance(tokenizer, Wav2Vec2PhonemeCTCTokenizer)
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._names = {index: name for name, index in self._ids.items()}
        delimiter = getattr(tokenizer, "word_delimiter_token", None)
        self.delimiter: int | None = self._ids.get(delimiter)
        self.unknown: int | None = self._ids.get(tokenizer.unk_token)
        special = {*tokenizer.all_special_tokens, delimiter}
        self.special_ids = {index for name, index in self._ids.items() if name in special}
        self._spellings = {name: index for name, index in self._ids.items() if index not in self.special_ids}

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """
        The words of a text as they are written, each with its labels; without those that the tokenizer does not know.

        Words of characters are what stands between spaces, so that `well-known` is one.
        """
        return [
            (word, [label for part in parts for label in part if isinstance(label, int)])
            for word, parts in self._words(text)
        ]

    def sequence(self, text: str) -> list[int]:
        """
        All labels of a text, with the word delimiter between words where the tokenizer has one.

        What the tokenizer does not know gets the label `unknown`; see `unknown_in`.

        Raises:
            ValueError: If the text has what the tokenizer does not know, and it has no label for that.
        """
        labels: list[int] = []
        for part in self._parts(text):
            if labels and self.delimiter is not None:
                labels.append(self.delimiter)
            labels += [self._or_unknown(label) for label in part]
        return labels

    def unknown_in(self, text: str) -> list[str]:
        """The characters or phones of a text that the tokenizer does not know, each once, in their order."""
        return list(dict.fromkeys(label for part in self._parts(text) for label in part if isinstance(label, str)))

    def knows(self, name: str) -> bool:
        """Whether a character or phone has a label, in this or in the other case."""
        return any(self._find(form) is not None for form in (name, name.lower(), name.upper()))

    def name(self, label: int) -> str:
        """A label as the vocabulary writes it."""
        return self._names[label]

    def join(self, labels: Iterable[int]) -> str:
        """A word of labels, as it is written."""
        return (" " if self.is_phones else "").join(self.name(label) for label in labels)

    def _parts(self, text: str) -> list[list[int | str]]:
        return [part for _, parts in self._words(text) for part in parts]

    def _words(self, text: str) -> list[tuple[str, list[list[int | str]]]]:
        # What is written, and the words that it has, in labels; what has none stands for itself.
        if self.is_phones:
            words = [word.split() for word in text.split(_WORD_DELIMITER)]
            return [(" ".join(phones), [self._spelt(phones)]) for phones in words if phones]
        return [(word, self._in_known_case(word)) for word in text.split()]

    def _in_known_case(self, word: str) -> list[list[int | str]]:
        # Vocabularies have small letters, capitals or both. A word changes its case as a whole, since a letter may
        # change with its neighbours: a small sigma has two forms, and the capital of one letter may be two.
        written, small = (words_of(word, self.language, keep_case) for keep_case in (True, False))
        capitals = [in_capitals(part, self.language) for part in small]
        forms = [[self._spelt(part) for part in form] for form in (written, small, capitals)]
        return min(forms, key=lambda form: sum(isinstance(label, str) for part in form for label in part))

    def _spelt(self, names: Iterable[str]) -> list[int | str]:
        return [label for name in names for label in self._labels_of(name)]

    def _labels_of(self, name: str) -> list[int | str]:
        label = self._find(name)
        if label is None and not self.is_phones:
            # A vocabulary may have a letter and its marks apart, or the sounds of a syllable of Korean.
            parts = [self._find(part) for part in unicodedata.normalize("NFKD", name)]
            if None not in parts:
                return [part for part in parts if part is not None]
        return [name if label is None else label]

    def _find(self, name: str) -> int | None:
        forms = (name, name.rstrip(_STRESS_DIGITS)) if self.is_phones else (name,)
        return next((self._spellings[form] for form in forms if form in self._spellings), None)

    def _or_unknown(self, label: int | str) -> int:
        if isinstance(label, int):
            return label
        if self.unknown is None:
            raise ValueError(f"the vocabulary of the recogniser has neither {label!r} nor a label for unknown ones.")
        return self.unknown


def text_language(tokenizer: Any) -> str | None:
    """The language that a tokenizer's texts are normalised in, where its configuration keeps it."""
    return getattr(tokenizer, "init_kwargs", {}).get(_LANGUAGE)


def keep_text_language(tokenizer: Any, language: str) -> None:
    """Keep in a tokenizer's configuration, with which it is saved, the language that its texts are normalised in."""
    tokenizer.init_kwargs[_LANGUAGE] = language


def build_tokenizer(
    texts: Iterable[str], unit: str, language: str | None = None
) -> Wav2Vec2CTCTokenizer | Wav2Vec2PhonemeCTCTokenizer:
    """
    A CTC tokenizer of the characters or phones that occur in texts.

    Args:
        texts (iterable of `str`): Texts of characters or phones, as [`CTCLabels`] describes them.
        unit (`str`): Kind of label: `"character"` (letters, marks and apostrophes of [`words_of`], without digits
            and symbols, whose spelling is not known) or `"phone"` (without stress digits).
        language (`str`, *optional*): Language of the texts, as a code, which the tokenizer of characters keeps.

    Raises:
        ValueError: If `unit` is another, or `texts` hold no label.
    """
    if unit not in ("character", "phone"):
        raise ValueError(f"`unit` must be 'character' or 'phone', but got {unit!r}.")
    if unit == "phone":
        phones = (phone for text in texts for phone in text.replace(_WORD_DELIMITER, " ").split())
        labels = {phone.rstrip(_STRESS_DIGITS) for phone in phones}
    else:
        characters = (character for text in texts for word in words_of(text, language) for character in word)
        labels = {character for character in characters if not is_number(character) and not is_symbol(character)}
    labels -= {""}
    if not labels:
        raise ValueError(f"`texts` hold no {unit}.")
    tokenizer = tokenizer_of(sorted(labels), unit)
    if language is not None and unit == "character":
        keep_text_language(tokenizer, language)
    return tokenizer


def tokenizer_of(labels: Iterable[str], unit: str) -> Wav2Vec2CTCTokenizer | Wav2Vec2PhonemeCTCTokenizer:
    """
    A CTC tokenizer of these labels, after the blank, the unknown label and the word delimiter.

    Args:
        labels (iterable of `str`): Characters or phones, in the order of their numbers.
        unit (`str`): `"character"` or `"phone"`.
    """
    vocabulary = {name: index for index, name in enumerate([_BLANK, _UNKNOWN, _WORD_DELIMITER, *labels])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.json")
        path.write_text(json.dumps(vocabulary), encoding="utf-8")
        names: dict[str, Any] = {"bos_token": None, "eos_token": None, "unk_token": _UNKNOWN, "pad_token": _BLANK}
        if unit == "phone":
            return Wav2Vec2PhonemeCTCTokenizer(
                str(path), do_phonemize=False, phone_delimiter_token=" ", word_delimiter_token=_WORD_DELIMITER, **names
            )
        return Wav2Vec2CTCTokenizer(str(path), word_delimiter_token=_WORD_DELIMITER, **names)


def is_number(character: str) -> bool:
    """Whether a character is a digit or another number, which a recogniser of letters would have to spell out."""
    return unicodedata.category(character)[0] == "N"
