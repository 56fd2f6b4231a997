# SPDX-License-Identifier: Apache-2.0
"""
The words of a text, spelt in one way: what recognisers learn to write, and what words are compared by.

What is written alike becomes equal: case, composed and decomposed letters, full-width and half-width forms, shapes of
apostrophes, digits of any script. What tells words of a script apart stays: vowel signs, tone marks, vowel points,
voicing marks, the prolonged sound mark, and joiners where they change a word. Symbols that are spoken, such as `%`,
are words of their own. Punctuation goes.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache


# What is typed where an apostrophe is meant.
_APOSTROPHES: dict[int, str | int] = dict.fromkeys(map(ord, "\u2019\u2018\u201b\u2032`\u00b4\u055a"), "'")
# The article of Afrikaans in one character.
_APOSTROPHES[0x149] = "'n"
# Letters that look like apostrophes; within a word they are typed as such.
_APOSTROPHE_LETTERS = re.compile("(?<=[^\\W_])[\u02bb\u02bc\u02b9](?=[^\\W_])")
# Raised and lowered letters that are letters of their own, as in tʰ and kʷ.
_MODIFIERS = "".join(
    chr(code)
    for first, end in ((0x2B0, 0x300), (0x10FC, 0x10FD), (0x1D00, 0x1DC0), (0x2071, 0x20A0), (0x2C7C, 0x2C7E))
    + ((0xA690, 0xA800), (0xAB5C, 0xAB60), (0x10780, 0x107C0), (0x1E030, 0x1E06E))
    for code in range(first, end)
    if unicodedata.category(chr(code)) == "Lm"
    and unicodedata.decomposition(chr(code)).startswith(("<super>", "<sub>"))
)
_BOPOMOFO = "\u3105-\u312f\u31a0-\u31bf"
_NEUTRAL_TONE = "\u02d9"
# Symbols that are spoken and that Unicode counts as punctuation.
_SPOKEN_PUNCTUATION = "%‰‱&@#§٪؉؊"
# The sign of numbers, which NFKC would turn into a word.
_NUMERO = "№"
# Hearts, notes, emoji: what is drawn and not said. Signs of sharp and flat are said.
_PICTURE = re.compile("[\u231a-\u23ff\u2600-\u266c\u2670-\u27bf\u2b05-\u2b55\U0001f000-\U0001faff]")
# What Unicode counts as symbols and is punctuation: the slash of fractions, and the wave dash of other keyboards.
_SILENT_SYMBOLS: dict[int, str | int] = {0x2044: "/", 0xFF5E: "\u301c"}
# As digits of any script are those of Latin, so are these.
_ARABIC_SIGNS: dict[int, str | int] = {0x66A: "%", 0x609: "‰", 0x60A: "‱"}
# What NFKC would fold, and stays: modifier letters, the sign of numbers, and the dot that is the neutral tone of
# Bopomofo.
_UNFOLDED = re.compile(f"([{_MODIFIERS}{_NUMERO}]|(?<=[{_BOPOMOFO}]){_NEUTRAL_TONE}|{_NEUTRAL_TONE}(?=[{_BOPOMOFO}]))")
# Marks of tones and a colon of spelling, which stand alone and are symbols to Unicode.
_LETTERS_AMONG_SYMBOLS = re.compile("[\u02e5-\u02eb\ua700-\ua716\ua720\ua721\ua789\ua78a]")
# Signs of Armenian that stand over a vowel: emphasis, exclamation, question, abbreviation.
_ARMENIAN_SIGNS = "\u055b\u055c\u055e\u055f"
# Letters between which a raised dot stands: those of Catalan, and of Gascon.
_INTERPUNCT_PAIRS = ("ll", "nh", "sh")
# Voicing marks that stand alone combine, as those of half-width letters do.
_VOICING_MARKS: dict[int, str | int] = {0x309B: 0x3099, 0x309C: 0x309A}
_RETYPED = _APOSTROPHES | _VOICING_MARKS | _SILENT_SYMBOLS | _ARABIC_SIGNS
# The vowels AM of Thai and Lao, which NFKC takes apart and keyboards do not.
_VOWELS_AM = {"\u0e4d\u0e32": "\u0e33", "\u0ecd\u0eb2": "\u0eb3"}
# Letters of Malayalam that older texts write as a consonant, a virama and a joiner.
_CHILLU = {f"{letter}\u0d4d\u200d": form for letter, form in zip("ണനരലളക", "ൺൻർൽൾൿ", strict=True)}
_RESPELLINGS = re.compile("|".join([*_VOWELS_AM, *_CHILLU]))
# Abbreviations of Hebrew: a double quote between letters, and a single one after a letter.
_GERSHAYIM = re.compile('(?<=[\u05d0-\u05ea])["\u201c\u201d\u201e](?=[\u05d0-\u05ea])')
_GERESH = re.compile("(?<=[\u05d0-\u05ea])'(?=[\u05d0-\u05ea])")
_QUOTE_OR_GERESH = re.compile("(?P<opening>(?<![\\w'])'(?=[\u05d0-\u05ea]))|(?<=[\u05d0-\u05ea])'(?!\\w)")
# Arabic letters that do not join the next one, so that a non-joiner after them changes nothing.
_NOT_JOINING = re.compile(
    "[\u0621-\u0625\u0627\u0629\u062f-\u0632\u0648\u0671-\u0677\u0688-\u0699\u06c0-\u06cb\u06d5]"
)
# Stretches a word for the eye.
_STRETCHES = "\u0640\u07fa"
# Characters without a look that are letters or marks to Unicode, beside those of the category Cf.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_JOINERS = "\u200c\u200d"
_ZERO_WIDTH_SPACE = "\u200b"
_TURKIC = ("tr", "az", "tur", "aze", "turkish", "azerbaijani")

# Beginnings of the names of characters in whose scripts words follow each other without spaces.
_UNSPACED_SCRIPTS = (
    *("CJK UNIFIED", "CJK COMPATIBILITY", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI SYLLABLE", "THAI"),
    *("LAO", "KHMER", "MYANMAR", "TAI THAM", "TAI LE", "NEW TAI LUE", "TAI VIET", "JAVANESE", "BALINESE"),
)


def words_of(text: str, language: str | None = None, keep_case: bool = False) -> list[str]:
    """
    The words of a text: runs of letters, marks and digits, and of apostrophes between them; and each symbol that is
    spoken (see [`is_symbol`]; pictures, such as `♪`, are not).

    A hyphen, a space and any other punctuation part words. The function changes nothing in words that it gave.

    Args:
        text (`str`): Text of any script.
        language (`str`, *optional*): Language, as a code. It matters for `"tr"` and `"az"`, where `I` is the capital
            of `ı`.
        keep_case (`bool`, *optional*, defaults to `False`): Whether capitals stay.
    """
    text = folded(text, language, keep_case)
    words: list[list[str]] = [[]]
    for index, character in enumerate(text):
        if is_symbol(character) and not _PICTURE.match(character):
            words += [[character], []]
        elif _is_kept(text, index, words[-1]):
            words[-1].append(character)
        elif _parts_words(character):
            words.append([])
    return [_with_final_sigma("".join(word)) for word in words if word]


@lru_cache(maxsize=4096)
def is_symbol(character: str) -> bool:
    """
    Whether a character stands for words that it does not spell: a sign of a currency or of mathematics, `%`, `&`, `@`,
    `#`, `°` or the like, or a picture.
    """
    folded_one = character if character == _NUMERO else unicodedata.normalize("NFKC", character)
    if folded_one in _SPOKEN_PUNCTUATION:
        return True
    if ord(character) in _SILENT_SYMBOLS or _LETTERS_AMONG_SYMBOLS.match(character):
        return False
    return unicodedata.category(character) in ("Sc", "Sm", "So")


def normalized_word(word: str) -> str:
    """The words of what stands between two spaces, in one; what words are compared by."""
    return "".join(words_of(word))


def folded(text: str, language: str | None = None, keep_case: bool = True) -> str:
    """A text whose characters are those of [`words_of`], with its punctuation and spaces."""
    text = _composed(text.translate(_RETYPED), _before_composition)
    if not keep_case:
        if has_dotless_i(language):
            text = text.replace("İ", "i").replace("I", "ı")
        # A whole text at once, since a capital sigma becomes another letter at the end of a word.
        text = _composed(text.lower().replace("i\u0307", "i"))
    text = _RESPELLINGS.sub(lambda found: (_VOWELS_AM | _CHILLU)[found[0]], text)
    text = "".join(c for c in text if not _is_ignored(c)).translate(_APOSTROPHES)
    text = _GERSHAYIM.sub("\u05f4", _with_final_geresh(_GERESH.sub("\u05f3", text)))
    return _APOSTROPHE_LETTERS.sub("'", text)


def has_dotless_i(language: str | None) -> bool:
    """Whether a language, given as a code, has `ı` beside `i`, whose capitals are `I` and `İ`."""
    return (language or "").lower().replace("_", "-").split("-")[0] in _TURKIC


def in_capitals(word: str, language: str | None = None) -> str:
    """A word of [`words_of`] in capitals."""
    return (word.replace("i", "İ") if has_dotless_i(language) else word).upper()


@lru_cache(maxsize=8192)
def is_unspaced(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words, such as Chinese or Thai."""
    return unicodedata.name(character, "").startswith(_UNSPACED_SCRIPTS)


def counted_words(text: str) -> list[str]:
    """
    What an error rate counts as words: those between spaces, and in scripts without spaces each character with its
    marks.

    Args:
        text (`str`): Words of [`words_of`], parted by spaces.
    """
    units: list[str] = []
    for word in text.split():
        for index, character in enumerate(word):
            continues = index > 0 and unicodedata.category(character)[0] in "MC"
            if continues or (index > 0 and not is_unspaced(character) and not is_unspaced(units[-1][0])):
                units[-1] += character
            else:
                units.append(character)
    return units


def without_free_spaces(text: str) -> str:
    """
    A text with spaces only where they say something.

    In scripts without spaces between words a space is the writer's choice. It goes there, and stands between such a
    script and another one.

    Args:
        text (`str`): Words of [`words_of`], parted by spaces.
    """
    units = counted_words(text)
    gaps = ["" if is_unspaced(a[0]) and is_unspaced(b[0]) else " " for a, b in itertools.pairwise(units)]
    return "".join(unit + gap for unit, gap in zip(units, [*gaps, ""], strict=False))


def _composed(text: str, spelt: Callable[[str], str] = str) -> str:
    # NFKC, after each character was spelt anew, of all but what stays.
    parts = _UNFOLDED.split(text)
    parts[::2] = [unicodedata.normalize("NFKC", "".join(map(spelt, part))) for part in parts[::2]]
    return "".join(parts)


def _with_final_geresh(text: str) -> str:
    # A single quote after a Hebrew letter is a geresh, unless it closes a quotation.
    is_open = False

    def spelt(found: re.Match[str]) -> str:
        nonlocal is_open
        closes, is_open = is_open, bool(found["opening"])
        return "'" if closes or is_open else "\u05f3"

    return _QUOTE_OR_GERESH.sub(spelt, text)


@lru_cache(maxsize=4096)
def _before_composition(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "No":  # else 10² would be 102, and 1½ would be 11/2
        return f" {character} "
    if category == "Sk" and unicodedata.decomposition(character).startswith("<compat> 0020"):
        return " "  # an accent without a letter
    return character


@lru_cache(maxsize=4096)
def _is_ignored(character: str) -> bool:
    if character in _JOINERS or character == _ZERO_WIDTH_SPACE:
        return False
    return (
        unicodedata.category(character) in ("Cf", "Me")
        or character in _STRETCHES
        or character in _ARMENIAN_SIGNS
        or _INVISIBLE.match(character) is not None
    )


def _is_kept(text: str, index: int, word: list[str]) -> bool:
    character, following = text[index], text[index + 1 : index + 2]
    kind = unicodedata.category(character)[0]
    if kind in "LN" or _LETTERS_AMONG_SYMBOLS.match(character):
        return True
    if character == _NEUTRAL_TONE:
        return any(unicodedata.name(c, "").startswith("BOPOMOFO") for c in (following, *word[-1:]) if c)
    if not word:
        return False
    if kind == "M":
        return True
    if character == "'":
        return word[-1] != "'" and bool(following) and unicodedata.category(following)[0] in "LN"
    if character == "\u05f3":
        return "\u05d0" <= word[-1] <= "\u05ea"
    if character == "\u05f4":
        return "\u05d0" <= word[-1] <= "\u05ea" and "\u05d0" <= following <= "\u05ea"
    if character == "\u00b7":
        return (word[-1] + following).lower() in _INTERPUNCT_PAIRS
    if character in _JOINERS:
        return _joiner_matters(character, word, following)
    return False


def _joiner_matters(joiner: str, word: list[str], following: str) -> bool:
    # By the contexts of Unicode's Annex 31: beside a virama, and a non-joiner between Arabic letters that would join.
    if word[-1] in _JOINERS:
        return False
    viramas = [c for c in (word[-1], following) if c and unicodedata.combining(c) == 9]
    if viramas:
        is_inside = bool(following) and unicodedata.category(following)[0] in "LM"
        return is_inside or (joiner == "\u200d" and not following.strip())
    before = next(c for c in reversed(word) if unicodedata.category(c)[0] != "M")
    is_arabic = all(c and unicodedata.bidirectional(c) == "AL" for c in (before, following))
    return joiner == "\u200c" and is_arabic and not _NOT_JOINING.match(before)


def _parts_words(character: str) -> bool:
    # An orphaned mark or joiner disappears; anything else that is not kept stands between words.
    return unicodedata.category(character)[0] != "M" and character not in _JOINERS


def _with_final_sigma(word: str) -> str:
    if "σ" not in word and "ς" not in word:
        return word
    letters = [index for index, c in enumerate(word) if unicodedata.category(c)[0] == "L"]
    spelt = list(word)
    for place, index in enumerate(letters):
        if spelt[index] in "σς" and len(letters) > 1:
            spelt[index] = "ς" if place == len(letters) - 1 else "σ"
    return "".join(spelt)
