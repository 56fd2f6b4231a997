# SPDX-License-Identifier: Apache-2.0
"""Text to phones, what is refused by name, and the times of words from the times of phones."""

import gzip
import random
import time

import pytest

from speech_tokenizers.modeling.pronunciations import PronunciationError, PronunciationLexicon, time_words


@pytest.fixture
def lexicon():
    return PronunciationLexicon(
        {
            "the": "dh ax",
            "the(vowel)": "dh iy",
            "a": "ax",
            "a(pause)": "ey",
            "owl": "aw l",
            "cat": "k ae t",
            "dog": "d ao g",
            "fish": ["f", "ih", "sh"],
            "well": "w eh l",
            "known": "n ow n",
            "co-op": "k ow aa p",
            "cafe": "k ae f ey",
            "don't": "d ow n t",
            "e": "iy",
            "g": "jh iy",
        }
    )


def timed(labels, seconds=0.1):
    return [{"label": x, "start": n * seconds, "end": (n + 1) * seconds} for n, x in enumerate(labels.split())]


@pytest.mark.parametrize(
    ("text", "phones"),
    [
        ("cat", "pau k ae t pau"),
        ("CAT!", "pau k ae t pau"),
        ("cat, dog", "pau k ae t pau d ao g pau"),
        ("cat ,;. dog ...", "pau k ae t pau d ao g pau"),
        ("cat - dog", "pau k ae t pau d ao g pau"),
        ("cat--dog", "pau k ae t pau d ao g pau"),
        ("\u2014 cat\u2014dog", "pau k ae t pau d ao g pau"),
        ("\u201ccat\u201d (dog) 'cat'", "pau k ae t pau d ao g pau k ae t pau"),
        ('"cat" dog', "pau k ae t pau d ao g pau"),
        ("well-known", "pau w eh l n ow n pau"),
        ("co-op", "pau k ow aa p pau"),
        ("don\u2019t", "pau d ow n t pau"),
        ("caf\u00e9", "pau k ae f ey pau"),
        ("cafe\u0301", "pau k ae f ey pau"),
        ("e.g. cat", "pau iy jh iy pau k ae t pau"),
        ("  cat\n\tdog ", "pau k ae t d ao g pau"),
        ("dog' cat", "pau d ao g k ae t pau"),
    ],
)
def test_case_and_punctuation_decide_pauses_and_nothing_else(lexicon, text, phones):
    assert lexicon.pronounce(text) == phones.split()


@pytest.mark.parametrize(
    ("word", "phones"),
    [("cat's", "k ae t s"), ("dog's", "d ao g z"), ("fish's", "f ih sh ax z"), ("cat'll", "k ae t ax l")],
)
def test_an_ending_after_an_apostrophe_follows_the_last_phone(lexicon, word, phones):
    assert lexicon.pronounce(word)[1:-1] == phones.split()


def test_an_entry_with_a_context_holds_there_only(lexicon):
    assert lexicon.pronounce("the owl, the cat, a dog, a")[1:-1] == (
        ["dh", "iy", "aw", "l", "pau", "dh", "ax", "k", "ae", "t", "pau", "ax", "d", "ao", "g", "pau", "ey"]
    )


def test_words_carry_the_phones_of_the_text_and_its_own_spelling(lexicon):
    text = "\u201cThe well-known OWL,\u201d \u2014 a cat\u2014dog"
    words = lexicon.pronounce_words(text)
    assert [word.word for word in words if word.word] == ["\u201cThe", "well-known", "OWL,\u201d", "a", "cat\u2014dog"]
    assert [phone for word in words for phone in word.phones] == lexicon.pronounce(text)
    assert lexicon.words(text) == ["the", "well", "known", "owl", "a", "cat", "dog"]


def test_two_pauses_never_follow_each_other(lexicon):
    parts = ["cat", "dog,", "--", "-", "\u2014", "(owl)", "...", "\u2014the", "a\u2014", '"', "cat.--dog", "?!"]
    draw = random.Random(0)
    for _ in range(500):
        phones = lexicon.pronounce(" ".join(["cat", *draw.choices(parts, k=6)]))
        assert phones[0] == phones[-1] == "pau"
        assert all(pair != ("pau", "pau") for pair in zip(phones, phones[1:], strict=False))


@pytest.mark.parametrize(
    ("text", "words", "advice"),
    [
        ("the zebra and the cat, zebra", ["zebra", "and"], r"\.add\(word, phones\)"),
        ("3 cats on the 21st", ["3", "21st"], "numbers as words"),
        ("cat & dog", ["&"], "`and` for `&`"),
        ("", [], "must have words"),
        (" ... ", [], "must have words"),
    ],
)
def test_what_cannot_be_said_is_named_with_what_to_do(lexicon, text, words, advice):
    with pytest.raises(PronunciationError, match=advice) as error:
        lexicon.pronounce(text)
    assert error.value.words == words
    assert all(repr(word) in str(error.value) for word in words)


def test_an_added_word_can_be_said(lexicon):
    lexicon.add("Zebra", "z iy b r ax")
    assert lexicon.pronounce("zebra")[1:-1] == ["z", "iy", "b", "r", "ax"]
    lexicon.add("zebra", ["z", "eh"])
    assert lexicon.pronounce("Zebra's")[1:-1] == ["z", "eh", "z"]


@pytest.mark.parametrize(
    ("word", "phones", "message"),
    [
        ("cat", "", "must be labels"),
        ("cat", ["k", ""], "must be labels"),
        ("cat", ["k ae"], "must be labels"),
        ("two words", "t uw", "letters, apostrophes"),
        ("b2b", "b iy", "letters, apostrophes"),
        ("read(past)", "r eh d", r"\(vowel\) or \(pause\)"),
    ],
)
def test_an_entry_that_could_never_be_used_is_refused(lexicon, word, phones, message):
    with pytest.raises(ValueError, match=message):
        lexicon.add(word, phones)


@pytest.mark.parametrize("name", ["words.txt", "pronunciations.txt.gz"])
def test_a_saved_lexicon_is_read_back_whole(lexicon, tmp_path, name):
    lexicon.save(tmp_path / name, ["A licence."])
    read = PronunciationLexicon.from_file(tmp_path / name)
    assert len(read) == len(lexicon)
    assert read.labels == lexicon.labels
    assert read.labels[0] == "pau"
    assert all(read[word] == lexicon[word] for word in ("the", "the(vowel)", "co-op"))
    read.save(tmp_path / f"again-{name}", ["A licence."])
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat k ae t\ndog\n", "line 2: 'dog' has no phones"),
        (b"cat k ae t\nCat k aa\n", "line 2: 'Cat' is there twice"),
        (b"cat k ae t\n dog d\n", "line 2: begins with a space"),
        (b"read(past) r eh d\n", "context of a word"),
        (b"\xff\xfe", "no lexicon"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, content, message):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        PronunciationLexicon.from_file(tmp_path / "words.txt")
    (tmp_path / "words.txt.gz").write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(ValueError, match="no lexicon"):
        PronunciationLexicon.from_file(tmp_path / "words.txt.gz")


def test_a_large_lexicon_loads_at_once(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [f"{a}{b}{c}{d}" for a in letters for b in letters for c in letters for d in letters[:8]][:130_000]
    (tmp_path / "words.txt").write_text("".join(f"{word} k ae t ax l\n" for word in words))
    started = time.process_time()
    assert len(PronunciationLexicon.from_file(tmp_path / "words.txt")) == 130_000
    assert time.process_time() - started < 0.5


def test_words_take_the_times_of_their_phones(lexicon):
    words = time_words(lexicon.pronounce_words("The cat, dog!"), timed("pau dh ax k ae t pau d ao g pau", 0.5))
    assert words == [
        {"word": "The", "start": 0.5, "end": 1.5},
        {"word": "cat,", "start": 1.5, "end": 3.0},
        {"word": "dog!", "start": 3.5, "end": 5.0},
    ]


@pytest.mark.parametrize(
    ("spoken", "ends"),
    [
        ("pau dh iy k ae t d ao g pau", [3, 6, 9]),  # a phone changed, and the pause left out
        ("pau dh ax k ae t pau pau d ao g pau", [3, 6, 11]),
        ("pau dh ax k t pau d ao g pau", [3, 5, 9]),
        ("pau dh ax k ae t s pau d ao g pau", [3, 7, 11]),
    ],
)
def test_phones_that_differ_move_no_other_word(lexicon, spoken, ends):
    words = time_words(lexicon.pronounce_words("the cat, dog"), timed(spoken, 1))
    assert [word["end"] for word in words] == ends
    assert all(before["end"] <= after["start"] for before, after in zip(words, words[1:], strict=False))


def test_another_text_has_no_times(lexicon):
    with pytest.raises(ValueError, match="but the lexicon gives"):
        time_words(lexicon.pronounce_words("the cat dog"), timed("pau f ih sh w eh l n ow n pau"))
    with pytest.raises(ValueError, match="is left for the word 'a'"):
        time_words(lexicon.pronounce_words("the cat a dog"), timed("pau dh ax k ae t d ao g pau"))
