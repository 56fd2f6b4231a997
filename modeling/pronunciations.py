# SPDX-License-Identifier: Apache-2.0
"""From text to phones by a lexicon, and from timed phones back to timed words."""

import gzip
import os
import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .atomic_files import write_atomically


PAUSE = "pau"
# Bytes of a lexicon once it is unpacked, a hundred times those of ours: a small file could fill the memory.
_LARGEST = 200_000_000
# What may follow a word in the lexicon, in round brackets: the word is spoken so before a vowel, or before a pause.
BEFORE_VOWEL, BEFORE_PAUSE = "vowel", "pause"

# Letters, with apostrophes and hyphens between them.
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
# What a whitespace-separated part of a text consists of. A dot between letters, as in `e.g.`, is no pause.
_PIECE = re.compile(rf"(?P<word>{_WORD.pattern})|(?P<dot>\.(?=\w))|(?P<dash>--+|[\u2013\u2014])|(?P<mark>.)")
_PAUSING = frozenset(',;:.?!\u2026)]}\u00bb\u201d"')
_SILENT = frozenset("'([{\u00ab\u201c\u201e\u00a1\u00bf-")
_PLAIN = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u2010": "-", "\u2011": "-", "\u00ad": None})

# How `'s` and its like are spoken after a last phone, in ARPAbet. The first row whose phones hold it decides.
_HISSING, _VOICELESS = frozenset(["s", "z", "sh", "zh", "ch", "jh"]), frozenset(["p", "t", "k", "f", "th", "hh"])
_ENDINGS: dict[str, list[tuple[frozenset[str] | None, str]]] = {
    "'s": [(_HISSING, "ax z"), (_VOICELESS, "s"), (None, "z")],
    "'ll": [(None, "ax l")],
    "'d": [(None, "ax d")],
    "'ve": [(None, "ax v")],
    "'re": [(None, "r")],
}


class PronunciationError(ValueError):
    """
    A text cannot be pronounced.

    Args:
        message (`str`): What is wrong and what to do.
        words (sequence of `str`, *optional*): Words without a pronunciation, as the text has them.
    """

    def __init__(self, message: str, words: Sequence[str] = ()):
        super().__init__(message)
        self.words = list(words)


class PronouncedWord(NamedTuple):
    """
    A word of a text and its phones.

    Args:
        word (`str`): Whitespace-separated word as the text has it, with its punctuation; empty for a pause.
        phones (`tuple[str, ...]`): Phones of the word, or the pause.
    """

    word: str
    phones: tuple[str, ...]


class PronunciationLexicon:
    """
    Pronunciations of words, and the phones of a text by them.

    A word is looked up in lower case. A compound such as `well-known` is looked up whole, and then by its parts. A
    word with `'s`, `'ll`, `'d`, `'ve` or `'re` that has no entry is spoken as the word before it and this ending, by
    the rules of English in ARPAbet. A word with accents that has no entry is looked up without them.

    An entry may hold in one context only. `the(vowel)` is for `the` before a vowel, which is a phone whose label
    begins with a, e, i, o or u, and `a(pause)` is for `a` before a pause.

    Args:
        entries (mapping from `str` to `str` or sequence of `str`, *optional*): Phones of each word, separated by
            spaces if they are one text.

    Example:

    ```python
    >>> from speech_tokenizers.modeling.pronunciations import PronunciationLexicon

    >>> lexicon = PronunciationLexicon({"the": "dh ax", "the(vowel)": "dh iy", "owl": "aw l", "cat": "k ae t"})
    >>> lexicon.pronounce("The cat, the owl.")
    ['pau', 'dh', 'ax', 'k', 'ae', 't', 'pau', 'dh', 'iy', 'aw', 'l', 'pau']
    ```
    """

    def __init__(self, entries: Mapping[str, str | Sequence[str]] | None = None):
        # Phones as one text, which loads in a tenth of the time that lists need.
        self._entries: dict[str, str] = {}
        for word, phones in (entries or {}).items():
            self.add(word, phones)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "PronunciationLexicon":
        """
        Read a lexicon: a line for each word, `word ph ph ph`. Empty lines and lines that begin with `#` are skipped.

        Args:
            path (`str` or `Path`): Text file in UTF-8, compressed by gzip if its name ends in `.gz`.

        Raises:
            ValueError: If a line has no phones, a word is there twice, or the file is no such text.
            OSError: If it cannot be read.
        """
        content = Path(path).read_bytes()
        try:
            if os.fspath(path).endswith(".gz"):
                with gzip.open(path) as file:
                    content = file.read(_LARGEST + 1)
                if len(content) > _LARGEST:
                    raise ValueError(f"{path} unpacks to more than {_LARGEST // 10**6} MB, too much for a lexicon.")
            text = content.decode()
        except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is no lexicon of lines `word ph ph ph` in UTF-8: {error}.") from error
        lexicon = cls()
        entries = lexicon._entries
        for number, line in enumerate(text.splitlines(), 1):
            word, _, phones = line.partition(" ")
            if not word or word[0] == "#":
                if line.startswith(" ") and line.strip():
                    raise ValueError(f"{path}, line {number}: begins with a space, where a word was expected.")
            elif not phones.strip():
                raise ValueError(f"{path}, line {number}: {word!r} has no phones; write `word ph ph ph`.")
            elif entries.setdefault(word.lower(), phones) is not phones:
                raise ValueError(f"{path}, line {number}: {word!r} is there twice; remove one of the two lines.")
        for key in entries:
            if "(" in key:
                _check_key(key)
        return lexicon

    def save(self, path: str | os.PathLike[str], comments: Iterable[str] = ()) -> None:
        """
        Write the lexicon, sorted by word. The file appears whole, and equal lexicons give equal files.

        Args:
            path (`str` or `Path`): File to write, compressed by gzip if its name ends in `.gz`.
            comments (iterable of `str`, *optional*): Lines for its beginning, such as its licence.

        Raises:
            OSError: If it cannot be written.
        """
        path = Path(path)
        lines = [f"# {comment}".rstrip() for comment in comments]
        lines += [f"{word} {self._entries[word]}" for word in sorted(self._entries)]
        content = "".join(f"{line}\n" for line in lines).encode()
        if path.suffix == ".gz":
            content = gzip.compress(content, mtime=0)
        write_atomically(path, content)

    def add(self, word: str, phones: str | Sequence[str]) -> None:
        """
        Add the pronunciation of a word, or replace it.

        Args:
            word (`str`): Word of letters, apostrophes and hyphens, in any case, with its context if it has one.
            phones (`str` or sequence of `str`): Phones, separated by spaces if they are one text.

        Raises:
            ValueError: If there is no phone, or the word is none.
        """
        labels = phones.split() if isinstance(phones, str) else list(phones)
        if not labels or any(not label or label.split() != [label] for label in labels):
            raise ValueError(f"`phones` of {word!r} must be labels such as `k ae t`, but got {phones!r}.")
        self._entries[_check_key(word.translate(_PLAIN).lower())] = " ".join(labels)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, word: object) -> bool:
        return word in self._entries

    def __getitem__(self, word: str) -> list[str]:
        """Phones of an entry."""
        return self._entries[word].split()

    @property
    def labels(self) -> list[str]:
        """Every label that occurs, the pause first and the others sorted."""
        return [PAUSE, *sorted(set(" ".join(self._entries.values()).split()) - {PAUSE})]

    def pronounce(self, text: str) -> list[str]:
        """
        Phones of a text.

        Pauses (`pau`) stand at its start and end, and at punctuation and dashes, never two in a row. Quotation marks
        and opening brackets have none.

        Args:
            text (`str`): Text of one utterance.

        Raises:
            PronunciationError: If a word has no pronunciation, or the text has numbers, symbols or no words.
        """
        return [phone for item in self.pronounce_words(text) for phone in item.phones]

    def words(self, text: str) -> list[str]:
        """
        Words of a text as the lexicon is asked for them: in lower case, without punctuation, and compounds that have
        no entry split.

        Raises:
            PronunciationError: If the text has numbers, symbols or no words.
        """
        return [word for _, pieces in self._read(text) for word in pieces if word != PAUSE]

    def pronounce_words(self, text: str) -> list[PronouncedWord]:
        """
        Phones of each word of a text. They are those of [`~PronunciationLexicon.pronounce`] in the same order.

        Args:
            text (`str`): Text of one utterance.

        Returns:
            `list[PronouncedWord]`: Words as the text separates them by whitespace, and the pauses beside them.

        Raises:
            PronunciationError: If a word has no pronunciation, or the text has numbers, symbols or no words.
        """
        following, unknown = PAUSE, []
        items = [PronouncedWord("", (PAUSE,))]  # from the last one to the first one
        for written, pieces in reversed(self._read(text)):
            phones: list[str] = []  # the last one first, too
            for piece in reversed(pieces):
                found = [PAUSE] if piece == PAUSE else self._look_up(piece, following)
                if found is None:
                    unknown.append(piece)
                    continue
                following = found[0]
                phones.extend(reversed(found))
            items.extend(_items(written, tuple(reversed(phones))))
        if unknown:
            listed = list(dict.fromkeys(reversed(unknown)))
            raise PronunciationError(
                f"`text` has words without a pronunciation: {_quoted(listed)}. Write them otherwise, add"
                " each as a line `word phone phone ...` to `pronunciations.txt.gz`, or call `.add(word, phones)`.",
                listed,
            )
        items.append(PronouncedWord("", (PAUSE,)))
        return _without_double_pauses(items[::-1])

    def _read(self, text: str) -> list[tuple[str, list[str]]]:
        # Each part of the text between whitespace, with its words in lower case and its pauses.
        parts = [(written, self._pieces(written)) for written in unicodedata.normalize("NFC", text).split()]
        faulty = [written for written, pieces in parts if pieces is None]
        if numbers := [written for written in faulty if any(map(str.isnumeric, written))]:
            raise PronunciationError(
                f"`text` has digits, which the lexicon does not read: {_quoted(numbers)}. Write numbers as words, such"
                " as `twenty-one`.",
                numbers,
            )
        if faulty:
            raise PronunciationError(
                f"`text` has symbols, which the lexicon does not read: {_quoted(faulty)}. Write them as words, such as"
                " `and` for `&`, or leave them out.",
                faulty,
            )
        if not any(piece != PAUSE for _, pieces in parts for piece in pieces or ()):
            raise PronunciationError(f"`text` must have words, but got {text!r}.")
        return [(written, pieces) for written, pieces in parts if pieces]

    def _pieces(self, written: str) -> list[str] | None:
        pieces: list[str] = []
        plain = written.translate(_PLAIN)
        if re.fullmatch("-+", plain):
            return [PAUSE]  # a dash between words
        for match in _PIECE.finditer(plain):
            kind, found = match.lastgroup, match.group().lower()
            if kind == "word":
                pieces.extend([found] if self._is_known(found) else found.split("-"))
            elif kind == "dash" or (kind == "mark" and found in _PAUSING):
                if found != '"' or match.start():  # a quotation mark pauses where it closes
                    pieces.append(PAUSE)
            elif kind == "mark" and found not in _SILENT:
                return None
        return pieces

    def _is_known(self, word: str) -> bool:
        return self._look_up(word, PAUSE) is not None

    def _look_up(self, word: str, following: str) -> list[str] | None:
        # `following`: the phone after the word.
        entries = self._entries
        context = BEFORE_PAUSE if following == PAUSE else BEFORE_VOWEL if following[:1] in tuple("aeiou") else ""
        if (found := entries.get(f"{word}({context})") or entries.get(word)) is not None:
            return found.split()
        stem, apostrophe, ending = word.rpartition("'")
        if (rows := _ENDINGS.get(apostrophe + ending)) and (phones := self._look_up(stem, "")):
            spoken = next(spoken for ends, spoken in rows if ends is None or phones[-1] in ends)
            return [*phones, *spoken.split()]
        unaccented = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
        return None if unaccented == word else self._look_up(unaccented, following)


def time_words(
    pronounced: Sequence[PronouncedWord], phones: Sequence[Mapping[str, Any]], max_difference: float = 0.34
) -> list[dict[str, Any]]:
    """
    Find when words are spoken from the times of phones.

    Where the phones are not those of the words, as when a synthesiser says `read` otherwise, the cheapest alignment
    decides: it changes, adds and leaves out as few phones as possible, and pairs pauses with pauses only.

    Args:
        pronounced (sequence of [`PronouncedWord`]): Words as [`~PronunciationLexicon.pronounce_words`] gives them.
        phones (sequence of mappings): What was spoken, each with `label`, `start` and `end` in seconds.
        max_difference (`float`, *optional*, defaults to 0.34): Greatest share of phones that may differ.

    Returns:
        `list[dict]`: Each word with `word`, `start` and `end` in seconds.

    Raises:
        ValueError: If more phones differ, or no phone is left for a word.
    """
    spans = [
        {"word": pronounced[index].word, "start": spoken[0]["start"], "end": spoken[-1]["end"]}
        for index, spoken in phones_of_words(pronounced, phones, max_difference).items()
    ]
    return spans


def phones_of_words(
    pronounced: Sequence[PronouncedWord], phones: Sequence[Mapping[str, Any]], max_difference: float = 0.34
) -> dict[int, list[Mapping[str, Any]]]:
    """
    Share what was spoken among the words; see [`time_words`].

    Returns:
        `dict[int, list]`: Spoken phones of each word, by the word's index in `pronounced`. Pauses are left out.

    Raises:
        ValueError: If too many phones differ, or no phone is left for a word.
    """
    owners = [index for index, item in enumerate(pronounced) for _ in item.phones]
    expected = [phone for item in pronounced for phone in item.phones]
    spoken = [phone["label"] for phone in phones]
    if spoken == expected:
        pairs, cost = list(range(len(expected))), 0
    else:
        pairs, cost = _align(expected, spoken)
    if cost > max_difference * len(expected):
        raise ValueError(f"it has the phones `{' '.join(spoken)}`, but the lexicon gives `{' '.join(expected)}`.")

    shared: dict[int, list[Mapping[str, Any]]] = {index: [] for index, item in enumerate(pronounced) if item.word}
    for phone, pair in zip(phones, pairs, strict=True):
        if phone["label"] != PAUSE and owners[pair] in shared:
            shared[owners[pair]].append(phone)
    for index, own in shared.items():
        if not own:
            raise ValueError(
                f"none of the phones `{' '.join(spoken)}` is left for the word {pronounced[index].word!r}."
            )
    return shared


def _align(expected: list[str], spoken: list[str]) -> tuple[list[int], int]:
    # For each spoken phone the index of the expected one that it belongs to, and the number of edits. A phone that is
    # added belongs to the expected one before it.
    apart = len(expected) + len(spoken)
    costs = [list(range(len(spoken) + 1))]
    for row, label in enumerate(expected, 1):
        line = [row]
        for column, other in enumerate(spoken, 1):
            change = 0 if label == other else apart if PAUSE in (label, other) else 1
            line.append(min(costs[-1][column - 1] + change, costs[-1][column] + 1, line[-1] + 1))
        costs.append(line)

    row, column = len(expected), len(spoken)
    pairs = [0] * len(spoken)
    while column:
        here = costs[row][column]
        label, other = expected[row - 1], spoken[column - 1]
        change = 0 if label == other else apart if PAUSE in (label, other) else 1
        if row and here == costs[row - 1][column - 1] + change:
            row, column = row - 1, column - 1
            pairs[column] = row
        elif here == costs[row][column - 1] + 1:
            column -= 1
            pairs[column] = max(row - 1, 0)
        else:
            row -= 1
    return pairs, costs[-1][-1]


def _check_key(key: str) -> str:
    # The word of an entry, with its context.
    word, bracket, context = key.partition("(")
    if not _WORD.fullmatch(word):
        raise ValueError(f"a word must have letters, apostrophes and hyphens only, but got {key!r}.")
    if bracket and context not in (f"{BEFORE_VOWEL})", f"{BEFORE_PAUSE})"):
        raise ValueError(f"the context of a word must be (vowel) or (pause), but got {key!r}.")
    return key


def _items(written: str, phones: tuple[str, ...]) -> list[PronouncedWord]:
    # A word with the pauses around it, the last one first.
    inner = list(phones)
    items = []
    while inner and inner[-1] == PAUSE:
        items.append(PronouncedWord("", (PAUSE,)))
        inner.pop()
    before = next((count for count, phone in enumerate(inner) if phone != PAUSE), len(inner))
    if inner[before:]:
        items.append(PronouncedWord(written, tuple(inner[before:])))
    return items + [PronouncedWord("", (PAUSE,))] * before


def _without_double_pauses(items: list[PronouncedWord]) -> list[PronouncedWord]:
    kept: list[PronouncedWord] = []
    for item in items:
        if item.word or not kept or kept[-1].word:
            phones = [
                phone for n, phone in enumerate(item.phones) if phone != PAUSE or item.phones[n - 1 : n] != (PAUSE,)
            ]
            kept.append(PronouncedWord(item.word, tuple(phones)))
    return kept


def _quoted(words: Sequence[str], most: int = 20) -> str:
    listed = ", ".join(map(repr, words[:most]))
    return listed if len(words) <= most else f"{listed} and {len(words) - most} more"


__all__ = [
    "PAUSE",
    "PronouncedWord",
    "PronunciationError",
    "PronunciationLexicon",
    "phones_of_words",
    "time_words",
]
