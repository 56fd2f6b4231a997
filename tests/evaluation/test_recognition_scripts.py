# SPDX-License-Identifier: Apache-2.0
"""Error rates of texts of any script: what differs is counted, and what is only written differently is not."""

import unicodedata

import pytest

from speech_tokenizers.evaluation.clip_results import recognition_counts
from speech_tokenizers.evaluation.clips import Clip
from speech_tokenizers.evaluation.recognition import ErrorRate, TextMatch, check_language, match_texts, text_normalizer


def rate(said: str, true: str, unit: str = "word", language: str = "en") -> float:
    return ErrorRate(unit, language).compute(predictions=[said], references=[true])["wer" if unit == "word" else "cer"]


@pytest.mark.parametrize("language", ["en", "xx"])
@pytest.mark.parametrize(
    ("said", "true"),
    [
        ("यह कि है", "यह की है"),
        ("คำ ไม", "คำ ไม่"),
        ("كُتِبَ", "كَتَبَ"),
        ("má", "mà"),
        ("kiz", "kız"),
        ("masse", "maße"),
        ("かき", "がき"),
        ("おばさん", "おばーさん"),
        ("ποτέ", "πότε"),
        ("все", "всё"),
    ],
)
def test_what_tells_words_apart_is_counted_in_any_language(said, true, language):
    assert rate(said, true, "word", language) > 0
    assert rate(said, true, "character", language) > 0


@pytest.mark.parametrize("language", ["en", "xx"])
@pytest.mark.parametrize(
    ("said", "true"),
    [
        ("ΛΟΓΟΣ.", "λογος"),
        ("it’s", "It's!"),
        ("isn’t it", "isn't it"),
        ("ＨＥＬＬＯ", "hello"),
        ("今天 天气，很好。", "今天天气很好"),
        ("ไม่ใหม่", "ไม่ ใหม่"),
        ("[noise] hello <unk>", "Hello"),
        ("हिन्दी।", "हिन्दी"),
        ("la (belle) vie", "la belle vie"),
        (unicodedata.normalize("NFD", "việt 한국어 é"), "Việt 한국어 é"),
    ],
)
def test_what_is_only_written_differently_is_not_counted(said, true, language):
    assert rate(said, true, "word", language) == rate(said, true, "character", language) == 0


def test_words_in_parentheses_are_said_and_count():
    assert rate("he came", "he came (late)") == pytest.approx(100 / 3)
    assert rate("il vint", "il vint (tard)", language="fr") == pytest.approx(100 / 3)


def test_each_character_is_a_word_in_scripts_without_spaces():
    assert rate("今天天气很", "今天天气很好") == pytest.approx(100 / 6)
    assert rate("今天天气很", "今天 天气 很好", "character") == pytest.approx(100 / 6)


def test_english_keeps_the_digits_of_number_words():
    normalize = text_normalizer()
    assert normalize("Twenty-one cats (21) isn’t $3.14") == "21 cats 21 is not $ 3.14"
    assert text_normalizer("en-GB")("won't") == "will not"
    assert text_normalizer("de")("won't") == "won't"
    for turkish in ("tr", "TR", "tr_TR", "tur", "turkish"):
        assert text_normalizer(turkish)("IŞIK") == "ışık"
    for english in ("eng", "English", "en_US"):
        assert text_normalizer(english)("won't") == "will not"
    assert text_normalizer("gsw")("won't") == "won't"


@pytest.mark.parametrize("language", ["xx", "", "e", "klingon", "de de", "12", "x-klingon"])
def test_what_is_no_language_is_refused(language):
    with pytest.raises(ValueError, match="`language` is .*which is no code of a language; give one such as en"):
        check_language(language)


@pytest.mark.parametrize("language", ["en", "EN-gb", "pt_BR", "yue", "gsw", "Turkish", "cantonese"])
def test_codes_and_names_of_languages_are_taken(language):
    check_language(language)


def test_a_hypothesis_for_an_empty_reference_counts_insertions():
    assert match_texts(" two words ", " ") == TextMatch(2, 0, 0, 2)
    assert match_texts(" ab ", "", "character") == TextMatch(2, 0, 0, 2)
    assert match_texts("", "two words") == TextMatch(2, 0, 2, 0)
    assert match_texts("", "ab", "character") == TextMatch(2, 0, 2, 0)
    assert match_texts("", "") == TextMatch(0, 0, 0, 0)
    both = ErrorRate().compute(predictions=["um two words", "a b"], references=["...", "a b"])
    assert both["wer"] == pytest.approx(100)

    clips = [Clip(name, name, name) for name in ("silent", "known", "unknown")]
    records = [{"texts": {"ear": text}} for text in ("two words", "a b", "ab")]
    counts = recognition_counts("ear", clips, records, ["", "a b", None], "en")
    assert counts["wer"].counts == {"silent": (200, 0), "known": (0, 2)}
    assert counts["wer"].estimate().value == pytest.approx(100)
    assert counts["wil"].counts["silent"] == (0, 0, 2)
    alone = recognition_counts("ear", clips[:1], records[:1], ["-"], "en")
    assert alone["wer"].estimate() is None
