# SPDX-License-Identifier: Apache-2.0
"""
English sentences without digits from the examples of WordNet, and its words, for a corpus of synthetic speech.

WordNet (https://wordnet.princeton.edu) explains many of its 117,000 meanings with examples: `"he is presently our
ambassador"`. Its licence permits to use, copy and distribute it for any purpose, with its copyright notice: "WordNet
3.0 Copyright 2006 by Princeton University". Debian's package `wordnet-base` holds the files.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path


PARTS_OF_SPEECH = ("adj", "adv", "noun", "verb")
# An example stands in double quotes, after the definition (`|`) or after another example (`;`).
_EXAMPLE = re.compile(r'(?<=[|;] )"([^"]*)"')
# A word of letters, also `don't` and `well-known`. Capitals within a word are spelt or split by synthesisers.
_WORD = r"[A-Za-z][a-z]*(?:['-][A-Za-z][a-z]*)*"
_SENTENCE = re.compile(rf"{_WORD}(?:[,;]? {_WORD})*[?!]?")
_LOWER = re.compile("[a-z]+(?:'[a-z]+)*")
# Single letters that are words. Others are initials or names of letters.
_WORDS_OF_ONE_LETTER = {"a", "i", "o"}
# What a synthesiser expands: `St Mark` is spoken as `saint mark`.
_ABBREVIATIONS = re.compile(
    "ave|apt|blvd|capt|cf|co|col|corp|dept|dr|ed|est|etc|feb|ft|gen|gov|inc|jan|jr|lb|lt|ltd|maj|mr|mrs|ms|mt|nov|oct"
    "|oz|prof|pres|rd|rep|rev|sen|sept|sgt|sr|st|th|vs"
)
_CONTRACTIONS = frozenset(
    f"{pronoun}'{ending}"
    for endings, pronouns in {
        "ll d": "i you he she it we they that this there who what",
        "ve": "i you we they could should would might must who",
        "re": "you we they who what there",
        "s": "he she it that there here who what where when how let",
        "m": "i",
        "t": "isn aren wasn weren don doesn didn hasn haven hadn won wouldn can couldn shouldn mustn needn mightn ain",
    }.items()
    for ending in endings.split()
    for pronoun in pronouns.split()
)


def read_examples(folder: str | os.PathLike[str]) -> list[str]:
    """
    Every example of WordNet, as it stands there.

    Args:
        folder (`str` or `Path`): Folder of WordNet's files, such as `/usr/share/wordnet`.

    Raises:
        FileNotFoundError: If a file of WordNet is missing.
    """
    return [
        example
        for part in PARTS_OF_SPEECH
        for line in _lines(folder, f"data.{part}")
        for example in _EXAMPLE.findall(line)
    ]


def read_words(folder: str | os.PathLike[str]) -> list[str]:
    """
    Words of WordNet, in lower case, distinct and sorted; some 130,000.

    These are the words of its index, where `wild_cherry` gives `wild` and `cherry`; the words of its definitions and
    examples, which have the function words that the index lacks; and inflected forms, of all verbs, of the nouns that
    WordNet's authors met in texts, and irregular ones. Contractions such as `they've` come with them. What has digits
    or dots is left out.

    Args:
        folder (`str` or `Path`): Folder of WordNet's files.

    Raises:
        FileNotFoundError: If a file of WordNet is missing.
    """
    words = set(_CONTRACTIONS)
    for part in PARTS_OF_SPEECH:
        irregular: dict[str, list[str]] = {}
        for line in _lines(folder, f"{part}.exc"):
            form, *bases = line.split()
            for base in bases:
                irregular.setdefault(base, []).append(form)
        for line in _lines(folder, f"index.{part}"):
            lemma, *numbers = line.split()
            words.update(re.split("[_-]", lemma))
            if "_" not in lemma:
                words.update(_inflected(lemma, part, _is_met(numbers), irregular.get(lemma, [])))
        for line in _lines(folder, f"data.{part}"):
            words.update(sentence_words(line.partition("|")[2].replace("`", " ")))
    return sorted(word for word in words if _LOWER.fullmatch(word))


def _is_met(numbers: list[str]) -> bool:
    # An index line has: part of speech, number of meanings, number p of kinds of pointers, p kinds, number of
    # meanings, number of meanings that were met in texts, and more.
    return int(numbers[2 + int(numbers[2]) + 2]) > 0


def _inflected(lemma: str, part: str, is_met: bool, irregular: list[str]) -> list[str]:
    # Irregular forms include all that double a consonant, such as `stopped`.
    forms = list(irregular)
    consonant_y = re.search("[^aeiou]y$", lemma)
    if part == "verb" or (part == "noun" and is_met and not irregular):
        hisses = lemma.endswith(("s", "x", "z", "ch", "sh"))
        forms.append(f"{lemma[:-1]}ies" if consonant_y else f"{lemma}es" if hisses else f"{lemma}s")
    if part == "verb":
        if not any(form.endswith("ing") for form in irregular):
            is_dropped = lemma.endswith("e") and not lemma.endswith(("ee", "oe", "ye"))
            stem = f"{lemma[:-2]}y" if lemma.endswith("ie") else lemma[:-1] if is_dropped else lemma
            forms.append(f"{stem}ing")
        if all(form.endswith(("ing", "s")) for form in irregular):
            forms.append(f"{lemma}d" if lemma.endswith("e") else f"{lemma[:-1]}ied" if consonant_y else f"{lemma}ed")
    return forms


def clean_sentence(example: str, min_words: int = 4, max_words: int = 12) -> str | None:
    """
    An example as a sentence for a voice, or `None` if it does not suit.

    It suits if it has letters, apostrophes and hyphens within words, and `, ; ? !` only, no abbreviation, no letter
    as a name, and no word in capitals. A full stop at its end is removed.

    Args:
        example (`str`): Example of WordNet.
        min_words, max_words (`int`, *optional*): Least and greatest number of words. `well-known` is one word.
    """
    sentence = " ".join(example.split()).removesuffix(".")
    if not _SENTENCE.fullmatch(sentence) or not min_words <= len(sentence.split()) <= max_words:
        return None
    words = sentence_words(sentence)
    if any((len(word) == 1 and word not in _WORDS_OF_ONE_LETTER) or _ABBREVIATIONS.fullmatch(word) for word in words):
        return None
    return sentence


def sentence_words(sentence: str) -> list[str]:
    """Words of a sentence in lower case, without punctuation; two sentences are the same if these are."""
    return _LOWER.findall(sentence.lower())


def choose_sentences(
    examples: Iterable[str], parts: dict[str, int], min_words: int = 4, max_words: int = 12
) -> dict[str, list[str]]:
    """
    Draw distinct sentences for each part of a corpus. The same examples always give the same sentences.

    Sentences are drawn in the order of a hash. So a part that is drawn first stays as it is if a later part grows, and
    a greater last part begins with the smaller one. No sentence of one part is contained in a sentence of another one,
    as a run of its words.

    Args:
        examples (iterable of `str`): Examples of WordNet; those that do not suit are passed over.
        parts (`dict[str, int]`): Number of sentences for each part. Give the held-out parts first.
        min_words, max_words (`int`, *optional*): Least and greatest number of words of a sentence.

    Returns:
        `dict[str, list[str]]`: Sentences of each part, in the order of `parts`.

    Raises:
        ValueError: If there are too few sentences.
    """
    candidates: dict[tuple[str, ...], str] = {}
    for example in examples:
        if sentence := clean_sentence(example, min_words, max_words):
            candidates.setdefault(tuple(sentence_words(sentence)), sentence)
    left = sorted(candidates, key=lambda words: hashlib.sha256(" ".join(words).encode()).digest())

    chosen: dict[str, list[str]] = {}
    for part, count in parts.items():
        taken = left[:count]
        if len(taken) < count:
            raise ValueError(
                f"{sum(parts.values())} sentences were asked for, but {len(candidates)} suit, and the part {part!r}"
                f" gets only {len(taken)} of {count}; ask for fewer."
            )
        chosen[part] = [candidates[words] for words in taken]
        left = _unrelated(left[count:], taken)
    return chosen


def _unrelated(sentences: Iterable[tuple[str, ...]], others: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    # Those that contain none of the others and are contained in none.
    whole = set(others)
    lengths = {len(words) for words in others}
    within = {run for words in others for length in range(1, len(words) + 1) for run in _runs(words, length)}
    return [
        words
        for words in sentences
        if words not in within and not any(run in whole for length in lengths for run in _runs(words, length))
    ]


def _runs(words: tuple[str, ...], length: int) -> Iterator[tuple[str, ...]]:
    return (words[start : start + length] for start in range(len(words) - length + 1))


def _lines(folder: str | os.PathLike[str], name: str) -> Iterator[str]:
    # Lines of one of WordNet's files, but for the licence at its beginning, whose lines begin with spaces.
    path = Path(folder, name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; give the folder of WordNet's files, such as /usr/share/wordnet after"
            " `apt-get install wordnet-base` on Debian."
        )
    with open(path, encoding="utf-8", errors="replace") as file:
        yield from (line for line in file if not line.startswith(" "))
