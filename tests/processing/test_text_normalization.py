# SPDX-License-Identifier: Apache-2.0
"""What is written alike is one word; what tells words of a script apart stays."""

import unicodedata

import pytest

from speech_tokenizers.processing.text_normalization import counted_words, without_free_spaces, words_of


ALIKE = {
    "final sigma": ("ΛΟΓΟΣ", "λογος", "λογοσ"),
    "sigma before punctuation": ("ΛΌΓΟΣ, ΣΟΦΊΑ.", "λόγος σοφία"),
    "elided sigma": ("Σ’ ΑΓΑΠΏ", "σ' αγαπώ"),
    "composed and decomposed": ("é", "e\u0301"),
    "decomposed syllables of Korean": ("한국어", unicodedata.normalize("NFD", "한국어")),
    "full width": ("ＡＢ１２", "ab12"),
    "half-width katakana": ("ｶﾞｷﾞｰ", "ガギー"),
    "voicing mark that stands alone": ("か゛", "が"),
    "apostrophes": ("it’s", "it's", "it‘s", "it`s", "it´s", "itʼs", "it＇s"),
    "Uzbek and Hawaiian apostrophes": ("oʻzbek", "o'zbek", "o‘zbek"),
    "quotation marks": ("‘hello’", "'hello'", "“hello”", "«hello»", "hello"),
    "hyphens": ("well-known", "well known", "well‑known", "well–known"),
    "dotted capital i": ("İstanbul", "I\u0307stanbul", "istanbul"),
    "Thai vowel AM": ("น้ำ", "น้\u0e4dา"),
    "Malayalam chillu": ("അവൻ", "അവന\u0d4d\u200d"),
    "Arabic shapes and stretches": ("كتاب", "كتـــاب", "\ufedb\ufe98\ufe8e\ufe8f"),
    "Hebrew abbreviations": ('כתב"ע', "כתב״ע", "כתב”ע"),
    "digits of any script": ("१२", "١٢", "12", "１２"),
    "soft hyphens and marks of direction": ("speech", "spe\u00adech", "\u200espeech\ufeff"),
    "emoji and notes": ("♪ hello ❤️", "hello"),
    "joiners without effect": ("ab\u200dc", "abc", "abc\u200c"),
    "Catalan double l": ("col·lecció", "coŀlecció"),
    "Armenian signs over vowels": ("ինչո՞ւ", "ինչու", "ինչո՛ւ", "ինչո՜ւ"),
    "Hebrew geresh at the end": ("קולג'", "קולג׳", "קולג’"),
    "Hebrew quotation marks": ("'שלום עולם'", "שלום עולם"),
    "Afrikaans article": ("ŉ", "'n", "’n"),
    "capital sharp s": ("GROẞ", "groß"),
    "a mark without a letter": ("\u0301 a", "a", "´ a", "¨ a"),
}

UNLIKE = {
    "Devanagari vowel signs": ("कि", "की", "क"),
    "Devanagari nukta and nasal": ("खाना", "ख़ाना", "खाँना"),
    "Thai vowels and tones": ("ไม", "ไม่", "ไม้", "มา", "ม้า", "หมา"),
    "Arabic vowel points": ("كَتَبَ", "كُتِبَ", "كتب"),
    "Hebrew vowel points": ("סֵפֶר", "סַפָּר", "ספר"),
    "Vietnamese tones": ("ma", "má", "mà", "mả", "mã", "mạ", "mâ"),
    "Turkish i": ("kız", "kiz"),
    "sharp s": ("Maße", "Masse"),
    "Japanese voicing": ("かき", "がき", "かぎ"),
    "Japanese length": ("おばさん", "おばーさん", "おばあさん"),
    "Japanese small letters": ("びよういん", "びょういん"),
    "apostrophes within words": ("we're", "were"),
    "Hebrew geresh": ("צ׳ק", "צק"),
    "Hebrew geresh at the end": ("קולג׳", "קולג"),
    "Bopomofo tones": ("˙ㄇㄚ", "ㄇㄚ", "ㄇㄚˊ"),
    "modifier letters": ("kʷ", "kw", "k"),
    "aspiration": ("tʰ", "th"),
    "colon that is a letter": ("a꞉", "a", "aː"),
    "Gascon interpunct": ("in·hèrn", "inhèrn", "in hèrn"),
    "Persian non-joiner": ("نامه\u200cای", "نامهای"),
    "Bengali joiner": ("র\u200d্যাম", "র্যাম"),
    "Sinhala joiner": ("ශ්\u200dරී", "ශ්රී"),
    "Tamil non-joiner": ("க்\u200cஷ", "க்ஷ"),
    "Catalan double l of one sound": ("cel·la", "cella"),
    "raised and plain digits": ("10²", "102"),
    "fractions": ("1½", "112", "11/2"),
    "Greek accents": ("πότε", "ποτέ"),
    "Cyrillic": ("всё", "все", "мой", "мои"),
    "Myanmar marks": ("ကာ", "ကား", "က"),
    "Khmer vowels": ("កា", "កើ", "ក"),
    "tone letters": ("ma˥", "ma˩", "ma"),
    "Hawaiian okina at the start": ("ʻono", "ono"),
    "Polish and Danish letters": ("łaska", "laska", "øl", "ol"),
    "spaces between words": ("a b", "ab"),
    "digits": ("3.14", "314"),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_is_written_alike_is_one_word(kind):
    assert len({tuple(words_of(text)) for text in ALIKE[kind]}) == 1, [words_of(text) for text in ALIKE[kind]]
    assert words_of(ALIKE[kind][0])


@pytest.mark.parametrize("kind", UNLIKE)
def test_what_tells_words_apart_stays(kind):
    assert len({tuple(words_of(text)) for text in UNLIKE[kind]}) == len(UNLIKE[kind])


@pytest.mark.parametrize("text", [text for texts in [*ALIKE.values(), *UNLIKE.values()] for text in texts])
def test_words_stay_as_they_are_when_they_are_normalised_again_or_decomposed_or_in_capitals(text):
    words = words_of(text)
    assert words_of(" ".join(words)) == words
    assert words_of(unicodedata.normalize("NFD", text)) == words
    if "ß" not in text.lower() and "ı" not in text and "ŀ" not in text:  # whose capitals are other letters'
        assert words_of(" ".join(words).upper()) == words


@pytest.mark.parametrize("text", ["ինչո՞ւ", "קולג'", "˙ㄇㄚ", "ㄇㄚ˙", "kʷ", "ŉ", "in·hèrn", "IN·HÈRN", "a꞉b"])
def test_signs_within_a_word_do_not_part_it(text):
    assert len(words_of(text)) == 1


def test_a_greek_word_in_capitals_ends_in_the_final_sigma():
    assert words_of("ΛΟΓΟΣ ΣΟΦΟΣ") == ["λογος", "σοφος"]
    assert words_of("ς σ") == ["ς", "σ"]


def test_the_language_decides_what_a_turkish_capital_means():
    assert words_of("IŞIK İZMİR", "tr") == ["ışık", "izmir"]
    assert words_of("ISIK") == ["isik"]


def test_case_stays_where_it_is_wanted():
    assert words_of("It’s ΛΌΓΟΣ-A!", keep_case=True) == ["It's", "ΛΌΓΟΣ", "A"]


def test_punctuation_alone_has_no_word():
    assert words_of(" … — ' ’ ! ׳ ״ · \u200d \u200b ") == []


def test_spaces_in_scripts_without_them_are_the_writer_s_choice():
    assert without_free_spaces("今天 天气 很好") == "今天天气很好"
    assert without_free_spaces("今天hello天气 ok a1") == "今天 hello 天气 ok a1"
    assert without_free_spaces("ไม่ ใหม่") == "ไม่ใหม่"
    assert without_free_spaces("한국 사람") == "한국 사람"


def test_each_character_with_its_marks_counts_as_a_word_in_scripts_without_spaces():
    assert counted_words("今天 hello天気") == ["今", "天", "hello", "天", "気"]
    assert counted_words("น้ำ") == ["น้", "ำ"]
    assert counted_words("की한국 don't") == ["की한국", "don't"]


@pytest.mark.parametrize("sign", list("&+=%‰€$₹@°№#§©™♯×÷<|~∞"))
def test_a_symbol_that_is_spoken_is_a_word(sign):
    expected = ["a", *words_of(sign), "b"]
    assert len(expected) == 3
    assert words_of(f"a {sign} b") == expected
    assert words_of(" ".join(expected)) == expected


def test_symbols_tell_texts_apart():
    texts = ["50 %", "50 €", "50", "50 ‰", "50 °"]
    assert len({tuple(words_of(text)) for text in texts}) == len(texts)
    assert (words_of("C++"), words_of("C#")) == (["c", "+", "+"], ["c", "#"])
    assert words_of("user@mail R&D") == ["user", "@", "mail", "r", "&", "d"]


def test_symbols_that_are_written_alike_are_one():
    alike = ["５０％ 50 %", "20℃ 20 °C", "½ 1/2", "￥5 ¥ 5", "1～2 1〜2", "＃5 # 5", "٥٪ 5%"]
    for first, second in (text.split(" ", 1) for text in alike):
        assert words_of(first) == words_of(second), first


def test_punctuation_is_no_word():
    assert words_of(".,;:!?\"'()-–—…“”‘’«»‹›„「」『』《》、。¿¡·•*/\\_[]{}") == []
