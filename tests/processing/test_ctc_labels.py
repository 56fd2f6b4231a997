# SPDX-License-Identifier: Apache-2.0
import pytest
from transformers import AutoTokenizer

from speech_tokenizers.processing.ctc_labels import CTCLabels, build_tokenizer


@pytest.mark.parametrize(
    ("unit", "text", "words"),
    [
        ("character", "It’s JÜST 12, ok", [("It’s", "it's"), ("JÜST", "jüst"), ("12,", ""), ("ok", "ok")]),
        ("phone", "AO1 R | HH AH0", [("AO1 R", "AO R"), ("HH AH0", "HH AH")]),
    ],
)
def test_a_saved_tokenizer_writes_what_it_was_built_from(unit, text, words, tmp_path):
    build_tokenizer([text], unit).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    labels = CTCLabels(tokenizer)
    assert [(word, labels.join(spelling)) for word, spelling in labels.words(text)] == words
    assert labels.is_phones == (unit == "phone")
    assert (labels.blank, labels.delimiter) == (0, 2)
    # A path with a blank between all labels is read as the text.
    path = [label for each in labels.sequence(text) for label in (each, labels.blank)]
    expected = " ".join(spelling for _, spelling in words if spelling)
    assert tokenizer.decode(path, skip_special_tokens=True) == expected


def test_words_are_parted_by_the_delimiter():
    labels = CTCLabels(build_tokenizer(["ab c"], "character"))
    a, b, c = (labels.words(name)[0][1][0] for name in "abc")
    assert labels.sequence("ab ! c") == [a, b, labels.delimiter, c]


def test_no_labels_are_an_error():
    with pytest.raises(ValueError, match="hold no phone"):
        build_tokenizer([" | "], "phone")
    with pytest.raises(ValueError, match="'character' or 'phone'"):
        build_tokenizer(["a"], "word")
