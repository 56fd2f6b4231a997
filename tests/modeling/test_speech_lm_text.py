# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of characters, and words as pieces."""

import pytest
from transformers import AutoTokenizer

from helpers.tiny_speech_lm import bpe_tokenizer, word_tokenizer
from speech_tokenizers.modeling.speech_lm_text import ControlTokens, build_speech_vocabulary, spoken_words


def test_each_character_is_one_id_in_lower_case(tmp_path):
    vocabulary = build_speech_vocabulary()
    ids = vocabulary("It's a TEST: (yes)!\n")["input_ids"]
    assert ids[0] == vocabulary.bos_token_id == 1
    assert len(ids) == 1 + len("It's a TEST: (yes)!\n")
    assert vocabulary.unk_token_id not in ids
    assert vocabulary.decode(ids, skip_special_tokens=True) == "it's a test: (yes)!\n"
    vocabulary.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("It's a TEST: (yes)!\n")["input_ids"] == ids


def test_characters_can_be_chosen_and_prompts_can_always_be_written():
    vocabulary = build_speech_vocabulary("äb")
    ids = vocabulary("Äb:\n", add_special_tokens=False)["input_ids"]
    assert ids == [4, 5, 6, 7]
    assert vocabulary("c", add_special_tokens=False)["input_ids"] == [vocabulary.unk_token_id]
    with pytest.raises(ValueError, match="`characters` must hold"):
        build_speech_vocabulary("")


def test_words_are_written_without_the_punctuation_around_them():
    assert spoken_words(' "Hello," it\'s - well-known… (OK)') == ["hello", "it's", "well-known", "ok"]


@pytest.mark.parametrize("tokenizer", [bpe_tokenizer(), word_tokenizer(), build_speech_vocabulary()])
def test_a_word_has_the_ids_that_it_has_in_a_sentence(tokenizer):
    control = ControlTokens(tokenizer)
    sentence = tokenizer("say hello there", add_special_tokens=False)["input_ids"]
    first = tokenizer("say", add_special_tokens=False)["input_ids"]
    assert first + control.word_ids("hello") + control.word_ids("there") == sentence


def test_ordinary_text_has_the_ids_that_the_tokenizer_gives():
    tokenizer = bpe_tokenizer()
    control = ControlTokens(tokenizer)
    text = "hello <there>, <|nothing|> = \U0001f600 ä"
    assert control.mark(text) == text
    assert control.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
