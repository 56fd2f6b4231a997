# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest

from speech_tokenizers.evaluation.recognition import (
    ErrorRate,
    TextMatch,
    WordInformationLost,
    match_texts,
    text_normalizer,
    word_information_lost,
)


def naive_distance(hypothesis: list[str], reference: list[str]) -> int:
    """Levenshtein distance by the full table."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(reference) + 1)] for i in range(len(hypothesis) + 1)]
    for i, said in enumerate(hypothesis, 1):
        for j, true in enumerate(reference, 1):
            substituted = table[i - 1][j - 1] + (said != true)
            table[i][j] = min(substituted, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


def test_error_rates_of_a_hand_computed_case():
    # One substitution and one insertion against three words.
    assert match_texts("the bat sat down", "the cat sat") == TextMatch(2, 2, 3, 4)
    assert match_texts("bat", "cat", "character") == TextMatch(1, 2, 3, 3)
    rate = ErrorRate().compute(predictions=["the bat sat down", "a"], references=["the cat sat", "a"])
    assert rate == {"wer": pytest.approx(50.0), "num_clips": 2}
    assert ErrorRate("character").compute(predictions=["bat"], references=["cat"])["cer"] == pytest.approx(100 / 3)


def test_word_information_lost_of_a_hand_computed_case():
    # 3 of 4 true and of 5 recognised words agree: the, sat; a.
    lost = WordInformationLost().compute(predictions=["the bat sat down", "a"], references=["the cat sat", "a"])
    assert lost == {"wil": pytest.approx(100 * (1 - 3 / 4 * 3 / 5)), "num_clips": 2}
    # Not the mean of the clips' own, 1 - 2/3 * 2/4 and 0.
    assert lost["wil"] != pytest.approx(100 * (1 - 2 / 3 * 2 / 4) / 2)


def test_word_information_lost_is_bounded():
    # Hits, true words, recognised words: all invented words would make an error rate of 500 %.
    assert word_information_lost(np.array([[1, 1, 6], [0, 3, 0], [4, 4, 4], [0, 2, 2]])) == pytest.approx(
        [100 * (1 - 1 / 6), 100, 0, 100]
    )
    assert np.isnan(word_information_lost(np.array([0, 0, 2])))
    assert WordInformationLost().compute(predictions=["two words"], references=[""])["wil"] is None


def test_error_counts_equal_a_naive_version():
    draw = random.Random(0)
    for _ in range(30):
        said, true = ([draw.choice("abc") for _ in range(draw.randint(1, 8))] for _ in range(2))
        match = match_texts(" ".join(said), " ".join(true))
        assert match.errors == naive_distance(said, true)
        assert (match.hypothesis_length, match.reference_length) == (len(said), len(true))
        assert match.hits <= min(len(said), len(true))


def test_an_empty_reference_counts_insertions_only():
    assert match_texts("two words", "") == TextMatch(2, 0, 0, 2)
    assert ErrorRate().compute(predictions=["two words"], references=[""])["wer"] is None


def test_case_punctuation_and_spelling_of_numbers_do_not_count():
    normalize = text_normalizer()
    assert normalize("Twenty-one cats, isn't it?") == normalize("21 cats is not it")
    with pytest.raises(ValueError, match="'word' or 'character'"):
        ErrorRate("syllable")


@pytest.mark.parametrize("language", ["en", "de"])
def test_symbols_that_are_spoken_are_words_for_error_rates(language):
    normalize = text_normalizer(language)
    apart = [
        "50 %",
        "50 €",
        "50 $",
        "50",
        "C++",
        "C#",
        "C",
        "rock & roll",
        "rock roll",
        "user@mail",
        "user mail",
        "5°",
        "5",
    ]
    found = [normalize(text) for text in apart]
    assert len(set(found)) == len(apart)
    assert [normalize(text) for text in found] == found
    assert normalize("50%") == normalize("50 %")
    assert normalize("50€") == normalize("50 €")


def test_english_names_of_symbols_are_the_symbols_beside_numbers():
    normalize = text_normalizer("en")
    assert normalize("fifty percent") == normalize("50%") == normalize("50 %")
    assert normalize("fifty dollars") == normalize("$50") == normalize("$ 50")
