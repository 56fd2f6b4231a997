# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from transformers import EvalPrediction

from speech_tokenizers.processing.ctc_labels import CTCLabels, build_tokenizer, tokenizer_of
from speech_tokenizers.training.recognition.ctc_targets import (
    LabelErrorRate,
    UnusableText,
    check_num_frames,
    learnable_labels,
    reference_labels,
)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("character", {"character_error_rate": 100 * 2 / 8, "word_error_rate": 100 * 3 / 4}),
        ("phone", {"phone_error_rate": 100 * 1 / 6}),
    ],
)
def test_the_error_rate_counts_spaces_but_not_boundaries_of_phones(unit, expected):
    labels = CTCLabels(build_tokenizer(["A B" if unit == "phone" else "ab"], unit))
    a, b, gap, blank = 3, 4, labels.delimiter, labels.blank
    # "ab a" was said; "aba" was heard, then "ab b" for "ab a".
    paths = np.array([[a, a, blank, b, a, -100], [a, b, blank, gap, b, b]])
    true = np.array([[a, b, gap, a], [a, b, gap, a]])
    assert LabelErrorRate(labels)(EvalPrediction(paths, true)) == pytest.approx(expected)


@pytest.mark.parametrize("text", [None, "", "?!"])
def test_a_text_without_labels_is_unusable(text):
    labels = CTCLabels(build_tokenizer(["ab"], "character"))
    with pytest.raises(UnusableText, match="no label"):
        learnable_labels(labels, text)


def test_digits_are_unusable_as_characters_but_not_as_phones():
    with pytest.raises(UnusableText, match="digits"):
        learnable_labels(CTCLabels(build_tokenizer(["ab"], "character")), "ab 2")
    assert learnable_labels(CTCLabels(build_tokenizer(["AH"], "phone")), "AH0") == [3]


@pytest.mark.parametrize("sign", list("&+=%‰€@°№#§©％㎏♪٪"))
def test_symbols_are_unusable_as_characters_but_not_as_phones(sign):
    tokenizer = build_tokenizer([f"a {sign} kg"], "character")
    assert sign not in tokenizer.get_vocab()
    for label_text in (learnable_labels, reference_labels):
        for text in (f"a {sign}", f"a{sign}a", sign):
            with pytest.raises(UnusableText, match="symbols, whose spelling is not known"):
                label_text(CTCLabels(tokenizer), text)
    assert learnable_labels(CTCLabels(tokenizer_of([sign], "phone")), sign) == [3]


def test_a_symbol_with_a_label_of_its_own_can_be_learnt():
    assert learnable_labels(CTCLabels(tokenizer_of(["a", "&"], "character")), "a&a") == [3, 2, 4, 2, 3]


@pytest.mark.parametrize(
    "text", ["a. b, a; b: a! b? a", "“a” ‘b’ «a» „b“ 「a」 'b' \"a\"", "(a) [b] a-b a–b—a a/b * ¿a?"]
)
def test_punctuation_is_no_symbol(text):
    assert learnable_labels(CTCLabels(build_tokenizer(["ab"], "character")), text)


def test_equal_neighbours_need_a_frame_more():
    check_num_frames(3, [5, 6, 7])
    check_num_frames(4, [5, 5, 7])
    with pytest.raises(UnusableText, match="3 frames are too few for 3 labels"):
        check_num_frames(3, [5, 5, 7])
