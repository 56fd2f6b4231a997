# SPDX-License-Identifier: Apache-2.0
"""Word and character error rates and word information lost of decoded speech."""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from speech_tokenizers.processing.optional_packages import MissingPackageError, require_package
from speech_tokenizers.processing.text_normalization import (
    counted_words,
    folded,
    is_symbol,
    without_free_spaces,
    words_of,
)


# What transcripts and recognisers write for sounds that are no words, such as `[noise]` and `<unk>`.
_ANNOTATION = re.compile(r"[<\[][^>\]]*[>\]]")
# Symbols that Whisper's normaliser keeps, and also puts in place of their names beside numbers.
_WHISPER_SYMBOLS = "%$¢€£"
_APART = re.compile(r"(?<=\d) +(?=[%¢€])|(?<=[$£€]) +(?=\d)")
# The codes of two letters of ISO 639-1, with those of it that were replaced and that Whisper has.
_TWO_LETTERS = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee"
    " el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik in io"
    " is it iu iw ja ji jv jw ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk"
    " ml mn mo mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc"
    " sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve"
    " vi vo wa wo xh yi yo za zh zu"
)
# Codes of three letters of the languages that are normalised in a way of their own.
_THREE_LETTERS = {"eng": "en", "tur": "tr", "aze": "az"}


def language_code(language: str) -> str:
    """
    The code of a language without its region: `en` for `en-GB`, `EN`, `eng` and `english`.

    Args:
        language (`str`): A code of two or three letters, with or without a region, or a name that Whisper knows.
    """
    plain = language.strip().lower()
    plain = TO_LANGUAGE_CODE.get(plain, plain).replace("_", "-").split("-")[0]
    return _THREE_LETTERS.get(plain, plain)


def check_language(language: str) -> None:
    """
    Raises `ValueError` if what a user gives is no code of a language. Which codes of three letters there are is not
    checked.
    """
    code = language_code(language)
    if not (code in _TWO_LETTERS.split() or len(code) == 3 and code.isascii() and code.isalpha()):
        raise ValueError(f"`language` is {language!r}, which is no code of a language; give one such as en, de or tr.")


def text_normalizer(language: str = "en") -> Callable[[str], str]:
    """
    Function that texts pass through before they are compared.

    It spells words in one way, by [`words_of`]: case and punctuation go, and whatever tells words of a script apart
    stays. Spaces count only in scripts that part words by them. What stands in square or angle brackets is left out.
    For English, words of plain letters pass through Whisper's normaliser instead: it drops fillers, writes out
    contractions, and turns number words into digits.

    Args:
        language (`str`, *optional*, defaults to `"en"`): Language of the texts, as a code; see [`language_code`].
    """
    language = language_code(language)
    english = EnglishTextNormalizer({}) if language == "en" else None

    def general(text: str) -> str:
        return " ".join(words_of(text, language))

    def normalize(text: str) -> str:
        text = _ANNOTATION.sub("", text)
        if english is None:
            return without_free_spaces(general(text))
        runs = itertools.groupby(folded(text).split(), key=_is_plain)
        parts = [_in_english(english, run) if is_plain else general(" ".join(run)) for is_plain, run in runs]
        return without_free_spaces(" ".join(parts))

    return normalize


def _is_plain(word: str) -> bool:
    # Whisper's normaliser would take the accents from letters, the vowels from words of other scripts, and symbols.
    return not any(
        (unicodedata.category(character)[0] in "LM" and not character.isascii())
        or (is_symbol(character) and character not in _WHISPER_SYMBOLS)
        for character in word
    )


def _in_english(english: EnglishTextNormalizer, words: Iterable[str]) -> str:
    # Whisper's normaliser leaves out what stands in parentheses, which is said as the rest is, and leaves full stops.
    text = _APART.sub("", " ".join(words))  # it keeps signs that touch their number alone
    words = english(text.replace("(", " ").replace(")", " ")).split()
    # A symbol is a word of its own, as `words_of` has it.
    words = "".join(f" {character} " if is_symbol(character) else character for character in " ".join(words)).split()
    return " ".join(word for word in words if any(map(str.isalnum, word)) or is_symbol(word[0]))


class TextMatch(NamedTuple):
    """
    Agreement of a text with the true one in their alignment of fewest errors.

    Args:
        errors (`int`): Number of substitutions, deletions and insertions together.
        hits (`int`): Number of words or characters that agree.
        reference_length, hypothesis_length (`int`): Number of words or characters of the true and of the other text.
    """

    errors: int
    hits: int
    reference_length: int
    hypothesis_length: int


def match_texts(hypothesis: str, reference: str, unit: str = "word") -> TextMatch:
    """
    Args:
        hypothesis (`str`): Recognised text, normalised.
        reference (`str`): True text, normalised. Against an empty one, all that was recognised is inserted.
        unit (`str`, *optional*, defaults to `"word"`): Unit that is compared: `"word"`, as [`counted_words`] gives
            them, or `"character"`, spaces included.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingPackageError("jiwer", "The error rate") from error
    if unit == "word":
        hypothesis, reference = (" ".join(counted_words(text)) for text in (hypothesis, reference))
    hypothesis, reference = hypothesis.strip(), reference.strip()
    if not reference:
        length = len(hypothesis.split()) if unit == "word" else len(hypothesis)
        return TextMatch(length, 0, 0, length)
    result = (jiwer.process_words if unit == "word" else jiwer.process_characters)(reference, hypothesis)
    return TextMatch(
        errors=result.substitutions + result.deletions + result.insertions,
        hits=result.hits,
        reference_length=result.hits + result.substitutions + result.deletions,
        hypothesis_length=result.hits + result.substitutions + result.insertions,
    )


def word_information_lost(sums: np.ndarray) -> np.ndarray:
    """
    Word information lost (Morris et al. 2004, "From WER and RIL to MER and WIL"), in percent: 100 (1 - H/N H/P).

    Unlike the word error rate it never exceeds 100 and counts an invented word as much as a lost one.

    Args:
        sums (`np.ndarray` of shape `(..., 3)`): Sums over all clips: H hits, N words of the true texts, P recognised
            words.

    Returns:
        `np.ndarray` of shape `(...)`, NaN where there is no true word, 100 where none was recognised.
    """
    hits, reference_length, hypothesis_length = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        preserved = np.where(hypothesis_length > 0, hits / reference_length * hits / hypothesis_length, 0.0)
    return np.where(reference_length > 0, 100 * (1 - preserved), np.nan)


class TextMetric(evaluate.Metric):
    """
    A score of texts over all clips together, so that long clips count more.

    Subclasses write `score_matches`. Class attributes: `score_name`, `title` and `unit`.

    Args:
        language (`str`, *optional*, defaults to `"en"`): Language that chooses the normaliser of both texts.
    """

    score_name: str
    title: str
    unit = "word"

    def __init__(self, language: str = "en", **kwargs: Any):
        self.normalize = text_normalizer(language)
        super().__init__(**{"keep_in_memory": True, **kwargs})
        require_package("jiwer", self.title)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.title,
            citation="",
            inputs_description="predictions, references: texts",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        pairs = zip(predictions, references, strict=True)
        matches = [match_texts(self.normalize(said), self.normalize(true), self.unit) for said, true in pairs]
        total = TextMatch(*(sum(match[i] for match in matches) for i in range(4)))
        score = self.score_total(total) if total.reference_length else None
        return {self.score_name: score, "num_clips": len(matches)}

    def score_total(self, total: TextMatch) -> float:
        """The score of the sums over clips, where there is a true word."""
        raise NotImplementedError


class ErrorRate(TextMetric):
    """
    Errors per reference word or character, in percent.

    `compute(predictions=texts, references=texts)` gives `wer` or `cer`, and `num_clips`.

    Args:
        unit (`str`, *optional*, defaults to `"word"`): Unit that is compared: `"word"` or `"character"`.
        language (`str`, *optional*, defaults to `"en"`): Language that chooses the normaliser of both texts.
    """

    def __init__(self, unit: str = "word", language: str = "en", **kwargs: Any):
        if unit not in ("word", "character"):
            raise ValueError(f"`unit` must be 'word' or 'character', but got {unit!r}.")
        self.unit, self.score_name = unit, "wer" if unit == "word" else "cer"
        self.title = f"Errors per reference {unit}, in percent"
        super().__init__(language, **kwargs)

    def score_total(self, total: TextMatch) -> float:
        return 100 * total.errors / total.reference_length


class WordInformationLost(TextMetric):
    """
    Word information lost, in percent; see [`word_information_lost`].

    `compute(predictions=texts, references=texts)` gives `wil`, and `num_clips`.
    """

    score_name = "wil"
    title = "Word information lost, in percent"

    def score_total(self, total: TextMatch) -> float:
        sums = np.array([total.hits, total.reference_length, total.hypothesis_length])
        return float(word_information_lost(sums))
