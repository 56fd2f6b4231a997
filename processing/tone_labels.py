# SPDX-License-Identifier: Apache-2.0
"""
Syllables with tones, as corpora write them, and the initial, final and vowel of a syllable of Mandarin.

A tone may stand behind the syllable as digits (`ma1`, or by Chao's five levels `ma51`, raised or not), above its vowel
as in pinyin (`mā`), or behind it as tone letters of the IPA (`ma˥˩`). Initials and finals are those of the Chinese
Pinyin Scheme; what is one sound and written in two ways is one final (`yi` and `bi` have `i`, `you` and `liu` have
`iou`).
"""

import re
import unicodedata
from typing import NamedTuple


# Combining marks of pinyin, and the tone that each stands for.
_MARKS = {"\u0304": "1", "\u0301": "2", "\u030c": "3", "\u0300": "4"}
_TONE_LETTERS = "˥˦˧˨˩"
INITIALS = (
    *("b", "p", "m", "f", "d", "t", "n", "l", "g", "k", "h", "j", "q", "x"),
    *("zh", "ch", "sh", "r", "z", "c", "s"),
)
# What a syllable without an initial is given as its initial.
NO_INITIAL = "-"
# The vowel that a final is heard by. `ï` is that of `zi` and `zhi`, `E` that of `ye`, `@` that of `e`, `en` and `er`.
VOWELS = {
    **dict.fromkeys(("a", "ia", "ua", "ai", "iai", "uai", "ao", "iao", "an", "uan", "ang", "iang", "uang"), "a"),
    **dict.fromkeys(("ê", "ie", "üe", "ian", "üan"), "E"),
    **dict.fromkeys(("e", "en", "uen", "eng", "ueng", "er"), "@"),
    **dict.fromkeys(("ei", "uei"), "ei"),
    **dict.fromkeys(("i", "in", "ing"), "i"),
    "ï": "ï",
    **dict.fromkeys(("u", "ong", "iong"), "u"),
    **dict.fromkeys(("o", "uo", "io", "ou", "iou"), "o"),
    **dict.fromkeys(("ü", "ün"), "ü"),
}
# Finals that are written shorter behind an initial, and those that stand for themselves with y and w.
_SHORT = {"iu": "iou", "ui": "uei", "un": "uen"}
_ALONE = {
    **{
        "yi": "i",
        "ya": "ia",
        "yai": "iai",
        "ye": "ie",
        "yao": "iao",
        "you": "iou",
        "yan": "ian",
        "yin": "in",
        "yang": "iang",
    },
    **{"ying": "ing", "yong": "iong", "yo": "io", "wu": "u", "wa": "ua", "wo": "uo", "wai": "uai", "wei": "uei"},
    **{"wan": "uan", "wen": "uen", "wang": "uang", "weng": "ueng", "yu": "ü", "yue": "üe", "yuan": "üan", "yun": "ün"},
}


class ToneSyllable(NamedTuple):
    """
    A syllable and its tone.

    Args:
        syllable (`str`): Syllable without the tone, in lower case.
        tone (`str`, *optional*): Digits, or tone letters of the IPA; `None` where none is written.
    """

    syllable: str
    tone: str | None


class MandarinParts(NamedTuple):
    """
    Args:
        initial (`str`): Initial consonant, one of `INITIALS`, or `NO_INITIAL`.
        final (`str`): Rest of the syllable, one of the keys of `VOWELS`.
        vowel (`str`): Vowel group of the final.
    """

    initial: str
    final: str
    vowel: str


def parse_tone(text: str) -> ToneSyllable:
    """
    Part a written syllable from its tone.

    Args:
        text (`str`): Such as `"ma1"`, `"mā"`, `"ma˥˥"` or `"ma"`.

    Raises:
        ValueError: If there is no syllable, or it has two tones.
    """
    marks: list[str] = []
    letters = []
    for letter in unicodedata.normalize("NFKD", text.strip().lower()):
        if letter in _MARKS:
            marks.append(_MARKS[letter])
        else:
            letters.append(letter)
    plain = unicodedata.normalize("NFC", "".join(letters)).replace("u:", "ü")
    found = re.fullmatch(rf"(\D*?)(?:([0-9]{{1,3}})|([{_TONE_LETTERS}]+))?", plain)
    if found is None or not found[1] or any(letter in found[1] for letter in _TONE_LETTERS):
        raise ValueError(f"{text!r} is no syllable with at most one tone, such as 'ma1', 'mā' or 'ma˥˥'.")
    tones = [*marks, *(tone for tone in found.groups()[1:] if tone)]
    if len(tones) > 1:
        raise ValueError(f"{text!r} has more than one tone; write one.")
    return ToneSyllable(found[1], tones[0] if tones else None)


def mandarin_parts(syllable: str) -> MandarinParts:
    """
    Initial, final and vowel of a syllable of Mandarin.

    Args:
        syllable (`str`): Pinyin without a tone; `v`, `uu` and `u:` stand for `ü`, as does `u` in `nue` and `lue`.

    Raises:
        ValueError: If it is none.
    """
    written = re.sub("v|uu|u:|(?<=^[nl])u(?=e$)", "ü", syllable.strip().lower())
    if written in _ALONE:
        return _parts(NO_INITIAL, _ALONE[written])
    initial = next((known for known in sorted(INITIALS, key=len, reverse=True) if written.startswith(known)), "")
    final = written[len(initial) :]
    if final == "i" and initial in ("zh", "ch", "sh", "r", "z", "c", "s"):
        final = "ï"
    elif initial in ("j", "q", "x") and final.startswith("u"):
        final = "ü" + final[1:]
    elif initial:
        final = _SHORT.get(final, final)
    if final not in VOWELS:
        raise ValueError(
            f"{syllable!r} is no syllable of pinyin; for other languages give columns such as `final` and `vowel`."
        )
    return _parts(initial or NO_INITIAL, final)


def _parts(initial: str, final: str) -> MandarinParts:
    return MandarinParts(initial, final, VOWELS[final])


__all__ = [
    *("INITIALS", "NO_INITIAL", "VOWELS", "MandarinParts", "ToneSyllable", "mandarin_parts", "parse_tone"),
]
