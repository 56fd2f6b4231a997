# SPDX-License-Identifier: Apache-2.0
"""Syllables with tones, in the ways that corpora write them."""

import pytest

from speech_tokenizers.processing.tone_labels import INITIALS, NO_INITIAL, VOWELS, mandarin_parts, parse_tone


@pytest.mark.parametrize(
    ("text", "syllable", "tone"),
    [
        ("ma1", "ma", "1"),
        (" Zhuang4 ", "zhuang", "4"),
        ("mā", "ma", "1"),
        ("nǚ", "nü", "3"),
        ("lu:e4", "lüe", "4"),
        ("ma˥˩", "ma", "˥˩"),
        ("ma⁵¹", "ma", "51"),
        ("ma", "ma", None),
    ],
)
def test_a_tone_is_read_however_it_is_written(text, syllable, tone):
    assert parse_tone(text) == (syllable, tone)


@pytest.mark.parametrize("text", ["", "4", "mā1", "ma1234", "m5a"])
def test_what_is_no_syllable_with_one_tone_is_refused(text):
    with pytest.raises(ValueError, match="tone"):
        parse_tone(text)


@pytest.mark.parametrize(
    ("syllable", "parts"),
    [
        ("zhi", ("zh", "ï", "ï")),
        ("yi", (NO_INITIAL, "i", "i")),
        ("bi", ("b", "i", "i")),
        ("liu", ("l", "iou", "o")),
        ("you", (NO_INITIAL, "iou", "o")),
        ("dui", ("d", "uei", "ei")),
        ("jun", ("j", "ün", "ü")),
        ("dun", ("d", "uen", "@")),
        ("xue", ("x", "üe", "E")),
        ("nue", ("n", "üe", "E")),
        ("lv", ("l", "ü", "ü")),
        ("luu", ("l", "ü", "ü")),
        ("yuan", (NO_INITIAL, "üan", "E")),
        ("er", (NO_INITIAL, "er", "@")),
        ("guang", ("g", "uang", "a")),
    ],
)
def test_one_sound_is_one_final_whatever_its_spelling(syllable, parts):
    assert mandarin_parts(syllable) == parts


def test_every_initial_and_vowel_can_be_met():
    assert len(set(INITIALS)) == 21
    assert set(VOWELS.values()) == {"a", "E", "@", "ei", "i", "ï", "u", "o", "ü"}


@pytest.mark.parametrize("syllable", ["strength", "b", "", "baq"])
def test_what_is_no_pinyin_is_refused(syllable):
    with pytest.raises(ValueError, match="pinyin"):
        mandarin_parts(syllable)
