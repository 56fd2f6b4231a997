# SPDX-License-Identifier: Apache-2.0
"""The vocabulary reads and writes unit strings exactly, in the layouts that other toolkits use."""

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from speech_tokenizers.processing.unit_sequences import units_to_string
from speech_tokenizers.processing.unit_vocabulary import build_unit_vocabulary


def test_the_layout_of_slamkit():
    vocabulary = build_unit_vocabulary(500)
    assert isinstance(vocabulary, PreTrainedTokenizerFast)
    assert len(vocabulary) == 502
    assert (vocabulary.pad_token_id, vocabulary.bos_token_id, vocabulary.eos_token_id) == (0, 1, 1)
    assert vocabulary("<Un12><Un7>").input_ids == [1, 14, 9, 1]
    assert vocabulary("<Un0><Un499>", add_special_tokens=False).input_ids == [2, 501]


def test_the_layout_of_textlesslib():
    vocabulary = build_unit_vocabulary(100, layout="textlesslib")
    assert vocabulary("<Un12><Un99>").input_ids == [100, 12, 99, 101]
    assert (vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.pad_token_id) == (100, 101, 102)


def test_the_codebooks_follow_each_other():
    vocabulary = build_unit_vocabulary(10, num_quantizers=3)
    assert len(vocabulary) == 32
    units = np.array([[1, 2], [9, 0], [4, 4]])
    ids = vocabulary(units_to_string(units), add_special_tokens=False).input_ids
    assert ids == [3, 21, 26, 4, 12, 26]
    assert (np.array(ids).reshape(2, 3).T - 2 - 10 * np.arange(3)[:, None]).tolist() == units.tolist()


@pytest.mark.parametrize("layout", ["slamkit", "textlesslib"])
@pytest.mark.parametrize("num_quantizers", [1, 4])
def test_strings_come_back_also_from_a_saved_vocabulary(tmp_path, layout, num_quantizers):
    vocabulary = build_unit_vocabulary(64, num_quantizers, layout)
    vocabulary.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == vocabulary.get_vocab()
    generator = np.random.default_rng(0)
    for length in (1, 3, 300):
        shape = length if num_quantizers == 1 else (num_quantizers, length)
        text = units_to_string(generator.integers(0, 64, shape))
        for either in (vocabulary, loaded):
            ids = either(text).input_ids
            assert len(ids) == length * num_quantizers + 2
            assert either.decode(ids, skip_special_tokens=True) == text
            assert either.decode(ids) == f"{either.bos_token}{text}{either.eos_token}"


def test_a_batch_is_padded_on_the_right():
    batch = build_unit_vocabulary(8)(["<Un1><Un2>", "<Un3>"], padding=True, return_tensors="np")
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch.input_ids.tolist() == [[1, 3, 4, 1], [1, 5, 1, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize("text", ["<Un8>", "<Un01>", "<Un1> <Un2>", "words", "<Q1_Un1>", "<Un1><Un2"])
def test_what_is_no_unit_is_refused_and_not_dropped(text):
    with pytest.raises(Exception, match="WordLevel error"):
        build_unit_vocabulary(8)(text)


def test_impossible_vocabularies_are_refused():
    with pytest.raises(ValueError, match="`codebook_size` must be at least 1, but got 0"):
        build_unit_vocabulary(0)
    with pytest.raises(ValueError, match="`num_quantizers` must be at least 1"):
        build_unit_vocabulary(8, num_quantizers=0)
    with pytest.raises(ValueError, match="`layout` must be 'slamkit' or 'textlesslib', but got 'fairseq'"):
        build_unit_vocabulary(8, layout="fairseq")
