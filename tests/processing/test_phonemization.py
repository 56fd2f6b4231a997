# SPDX-License-Identifier: Apache-2.0
import shutil
import stat
import sys
import unicodedata

import pytest

from speech_tokenizers.processing.optional_packages import MissingPackageError
from speech_tokenizers.processing.phonemization import EspeakPhonemizer


needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the program espeak-ng is not installed")


@pytest.fixture
def make_program(tmp_path):
    """Function: a program that stands in for espeak-ng, whose body reads lines from stdin; returns its path."""

    def make(body: str) -> str:
        path = tmp_path / "espeak"
        lines = f"#!{sys.executable}\nimport sys\nsys.stdout.reconfigure(encoding='utf-8')\n{body}\n"
        path.write_text(lines, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        return str(path)

    return make


# Speaks each letter, with stress on the first one of a word.
SPELLER = """
for line in sys.stdin:
    print(' '.join('_'.join(('ˈ' if i == 0 else '') + c for i, c in enumerate(word)) for word in line.split()))
"""


@pytest.mark.parametrize(
    ("with_stress", "phones"),
    [(False, ["a b | c", "", "d | e | f | g"]), (True, ["ˈa b | ˈc", "", "ˈd | ˈe | ˈf | ˈg"])],
)
def test_clauses_of_texts_are_put_together_again(with_stress, phones, make_program):
    phonemizer = EspeakPhonemizer(with_stress=with_stress, program=make_program(SPELLER))
    assert phonemizer(["ab c", "?!", "d — (e), f.\ng!"]) == phones
    assert phonemizer([]) == []


def test_a_clause_that_the_program_divides_costs_no_other_text_its_phones(make_program):
    # Two lines for a clause, as the original gives them where it sees a pause that we do not.
    phonemizer = EspeakPhonemizer(program=make_program(SPELLER.replace("' '.join", "'\\n'.join")))
    assert phonemizer(["a b", "c"]) == ["a | b", "c"]


def test_long_clauses_are_cut_between_words(make_program):
    body = "print('\\n'.join(str(len(line.encode()) < 1000) for line in sys.stdin))"
    assert set(EspeakPhonemizer(program=make_program(body))(["многословие " * 300])[0].split(" | ")) == {"True"}


def test_a_line_without_spaces_is_cut_between_letters_and_not_before_their_marks(make_program):
    body = "print('\\n'.join('_'.join(line.strip()) for line in sys.stdin))"
    text = "a" + "กำ" * 50 + "น้" * 150 + "ง" * 300
    phonemizer = EspeakPhonemizer(program=make_program(body))
    words = phonemizer([text])[0].split(" | ")
    assert "".join(words).replace(" ", "") == text
    assert len(words) == 4
    assert not any(unicodedata.category(word[0])[0] == "M" for word in words)


def test_decomposed_letters_and_pauses_of_other_scripts_are_understood(make_program):
    phonemizer = EspeakPhonemizer(program=make_program(SPELLER))
    assert phonemizer(["e\u0301te\u0301", "你好。世界！", "नम। या"]) == ["é t é", "你 好 | 世 界", "न म | य ा"]


def test_switches_of_language_are_no_phones(make_program):
    body = "print('\\n'.join('(en)_m_aɪ_(de) n_a_m_ə' for line in sys.stdin))"
    assert EspeakPhonemizer("de", program=make_program(body))(["My Name"]) == ["m aɪ | n a m ə"]


def test_what_is_missing_or_unknown_is_named(make_program):
    with pytest.raises(MissingPackageError, match="install it with `apt-get install no-such-program`"):
        EspeakPhonemizer(program="no-such-program")
    body = "print('Error: The specified espeak-ng voice does not exist.', file=sys.stderr); sys.exit(1)"
    with pytest.raises(ValueError, match="`language` is 'xx', unknown to espeak-ng"):
        EspeakPhonemizer("xx", program=make_program(body))
    with pytest.raises(RuntimeError, match="exit code 3: no memory"):
        EspeakPhonemizer(program=make_program("print('no memory', file=sys.stderr); sys.exit(3)"))


@needs_espeak
def test_espeak_speaks_english():
    texts = ["Hello, world!", "12 cats", "", "It’s “just” one…", "dogs"]
    expected = ["h ə l oʊ | w ɜː l d", "t w ɛ l v | k æ t s", "", "ɪ t s | dʒ ʌ s t | w ʌ n", "d ɑː ɡ z"]
    phonemizer = EspeakPhonemizer("en-us")
    assert phonemizer(texts) == expected
    # The same for each text, whatever the texts around it.
    assert [phonemizer([text])[0] for text in texts] == expected
    assert phonemizer(texts[::-1]) == expected[::-1]


@needs_espeak
def test_espeak_speaks_other_languages_and_knows_which():
    assert EspeakPhonemizer("de", with_stress=True)(["Guten Tag"]) == ["ɡ ˈuː t ə n | t ˈɑː k"]
    with pytest.raises(ValueError, match="`language` is 'xx-none'"):
        EspeakPhonemizer("xx-none")
