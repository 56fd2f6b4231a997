# SPDX-License-Identifier: Apache-2.0
"""Processors of speech language models as files, and what they refuse."""

import copy
import json
import sys
import types

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from helpers.tiny_speech_lm import (
    PHONES,
    Lexicon,
    bpe_tokenizer,
    make_row,
    tiny_codec,
    tiny_processor,
    waveform,
)
from speech_tokenizers import CSTConfig, CSTModel, RVQCodecFeatureExtractor
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor


@pytest.fixture(scope="module")
def chat():
    return tiny_processor(bpe_tokenizer())


@pytest.fixture(scope="module")
def spoken():
    processor = tiny_processor(bpe_tokenizer(chat=False), "phone")
    processor.attach_pronouncer(Lexicon())
    return processor


# --- Saving ---


@pytest.mark.parametrize("text_alignment", ["none", "word", "phone"])
def test_a_processor_is_loaded_as_it_was_saved(tmp_path, text_alignment):
    processor = tiny_processor(bpe_tokenizer(), text_alignment, max_length=200, codec_name="some/codec")
    processor.chat_template = processor.chat_template.replace("assistant\\n", "assistant\\n\\n")
    processor.save_pretrained(tmp_path)
    loaded = SpeechLMProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.speech_ids == processor.speech_ids
    assert loaded.chat_template == processor.chat_template
    assert (loaded.codec, loaded.pronouncer) == (None, None)
    row = make_row(processor)
    assert torch.equal(loaded.row_inputs(row)["input_ids"], processor.row_inputs(row)["input_ids"])
    facts = json.loads((tmp_path / "processor_config.json").read_text())
    assert facts["codec_name"] == "some/codec"
    assert "codec" not in facts


def test_the_saved_tokenizer_writes_the_same_prompts_alone(chat, tmp_path):
    chat.save_pretrained(tmp_path)
    alone = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Say\nhello"}]
    prompt = alone.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt + "<|audio_start|>" == chat.speech_prompt("hello")


def test_the_lexicon_is_saved_beside(spoken, tmp_path, monkeypatch):
    module = types.ModuleType("speech_tokenizers.modeling.pronunciations")
    module.PronunciationLexicon = Lexicon
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spoken.save_pretrained(tmp_path)
    loaded = SpeechLMProcessor.from_pretrained(tmp_path)
    assert loaded.speech_prompt("hello") == spoken.speech_prompt("hello")


def test_a_copy_keeps_the_codec_without_copying_it(chat):
    copied = copy.deepcopy(chat)
    assert copied.codec is chat.codec
    assert copied.tokenizer is not chat.tokenizer
    row = make_row(chat)
    assert torch.equal(copied.row_inputs(row)["input_ids"], chat.row_inputs(row)["input_ids"])
    copied.attach_pronouncer(Lexicon())
    assert chat.pronouncer is None
    copied.tokenizer.add_tokens(["more"])
    assert chat.speech_ids is not None  # of its own tokenizer


def test_the_base_tokenizer_stays_as_it_is():
    tokenizer = bpe_tokenizer()
    size = len(tokenizer)
    processor = tiny_processor(tokenizer, "phone")
    assert len(tokenizer) == size
    assert len(processor.tokenizer) == size + 3 + len(PHONES) == processor.audio_offset
    assert processor.vocab_size_needed == processor.audio_offset + 2 * 32


# --- What is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec_fingerprint": "0123", "codec": "other"}, "Row 'clip-0'.*'other', fingerprint 0123.*encode.*anew"),
        ({"codec_fingerprint": None}, "Row 'clip-0' is of an unknown codec"),
        ({"num_frames": 13}, "Row 'clip-0' has 48 numbers in `audio_codes`.*52"),
        ({"num_quantizers": 1, "num_frames": 48}, "Row 'clip-0'.*1 codebooks.*needs 2"),
        ({"audio_codes": [32] * 48}, "Row 'clip-0'.*between 0 and 31.*32 to 32"),
        ({"audio_codes": []}, "Row 'clip-0' has no `audio_codes`"),
        ({"text": "  "}, "Row 'clip-0' has no `text`, or it is empty.*'tts'"),
        ({"text": None}, "Row 'clip-0' has no `text`"),
    ],
)
def test_bad_rows_are_refused_by_their_id(chat, changes, message):
    with pytest.raises(ValueError, match=message):
        chat.row_inputs({**make_row(chat), **changes})


@pytest.mark.parametrize(
    ("phones", "message"),
    [
        ([{"label": "zh", "end": 0.03}], "Row 'clip-0' has the phone 'zh'.*piece_labels.*pau, hh"),
        ([], "Row 'clip-0' has no `phones`"),
        ([{"label": "hh", "end": 0.02}, {"label": "ow", "end": 0.01}], "Row 'clip-0': the times.*backwards"),
        ([{"label": "hh", "end": 0.001}] * 13, "Row 'clip-0': the times.*12 frames.*13 pieces"),
        ([{"label": "hh"}], "Row 'clip-0': the times.*`end` is missing"),
        ([{"end": 0.03}], "Row 'clip-0': piece 0 has no `label`"),
    ],
)
def test_bad_phones_are_refused_with_the_row(spoken, phones, message):
    with pytest.raises(ValueError, match=message):
        spoken.row_inputs(make_row(spoken, phones=phones))


def test_a_long_row_is_refused_and_not_cut(chat):
    row = make_row(chat)
    length = len(chat.row_inputs(row)["input_ids"])
    processor = copy.deepcopy(chat)
    processor.max_length = length
    assert len(processor.row_inputs(row)["input_ids"]) == length
    processor.max_length = length - 1
    with pytest.raises(ValueError, match=f"Row 'clip-0' has {length} positions.*at most {length - 1}"):
        processor.row_inputs(row)


@pytest.mark.parametrize("text", ["", "  \n", None, 3])
def test_an_empty_text_is_refused(chat, text):
    with pytest.raises(ValueError, match="`text` must be a text that is not empty"):
        chat.speech_prompt(text)


def test_a_text_without_pronunciation_or_lexicon_is_refused(spoken):
    with pytest.raises(ValueError, match="no pronunciation: xyzzy"):
        spoken.speech_prompt("hello xyzzy")
    with pytest.raises(ValueError, match="`attach_pronouncer`"):
        tiny_processor(bpe_tokenizer(), "phone").speech_prompt("hello")
    with pytest.raises(ValueError, match="phone 'zh', which is not among"):
        spoken.speech_prompt("hello", ["zh"])


def test_a_tokenizer_that_has_grown_is_refused(chat, tmp_path):
    processor = copy.deepcopy(chat)
    processor(text="hello")
    processor.tokenizer.add_tokens(["one more"])
    with pytest.raises(ValueError, match="tokenizer has .* ids, but audio begins at"):
        processor.row_inputs(make_row(processor))
    with pytest.raises(ValueError, match="tokenizer has .* ids, but audio begins at"):
        processor(text="hello")
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer has .* ids, but audio begins at"):
        SpeechLMProcessor.from_pretrained(tmp_path)


def test_another_codec_none_or_one_in_training_is_refused(chat, tmp_path):
    with pytest.raises(ValueError, match="fingerprint .*, but the processor needs the codec"):
        chat.attach_codec(tiny_codec(seed=1))
    chat.save_pretrained(tmp_path)
    loaded = SpeechLMProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="No codec is attached.*`attach_codec`"):
        loaded(text="<|audio|>", audio=waveform())
    loaded.attach_codec(tiny_codec().train())
    with pytest.raises(ValueError, match="training mode"):
        loaded(text="<|audio|>", audio=waveform())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": "hello", "audio_latents": torch.zeros(1, 4, 8)}, ValueError, "need `layout='continuous'`"),
        ({"text": "<|audio|>"}, ValueError, "no clip left"),
        ({"text": "hello", "audio_codes": torch.zeros(2, 3).long()}, ValueError, "1 clips, but places .* for 0"),
        ({"text": ""}, ValueError, "Row 0 of `text` is empty"),
        ({}, ValueError, "`text` is missing"),
        ({"text": "a", "output_labels": True}, ValueError, "needs `text_target`"),
        ({"text": ["a", "b"], "text_target": ["c"]}, ValueError, "2 rows, but `text_target` has 1"),
        ({"text": "<|audio|>", "audio_codes": torch.zeros(1, 3).long()}, ValueError, "Clip 0.*1 codebooks"),
        ({"text": "<|audio|>", "audio_codes": torch.full((2, 3), 32)}, ValueError, "Clip 0.*between 0 and 31"),
        ({"text": "<|audio|>", "audio_codes": torch.zeros(2, 3)}, TypeError, "integers"),
        ({"text": "<|audio|>", "audio_codes": torch.zeros(2, 0).long()}, ValueError, "at least one frame"),
        ({"text": "<|audio|>", "audio": [None], "audio_codes": [None]}, ValueError, "by neither"),
        ({"text": "<|audio|>", "audio": waveform(), "sampling_rate": 8000}, ValueError, "8000 Hz.*needs 16000"),
        ({"text": "<|audio|>", "audio": [np.zeros((2, 9))]}, ValueError, "must be mono"),
        ({"text": "a", "return_tensors": "tf"}, ValueError, "'pt' or None"),
        ({"text": "a", "padding_side": "top"}, ValueError, "`padding_side`"),
    ],
)
def test_bad_calls_are_refused(chat, arguments, error, message):
    with pytest.raises(error, match=message):
        chat(**arguments)


def test_pieces_without_alignment_are_refused(chat):
    codes = torch.zeros(2, 3).long()
    with pytest.raises(ValueError, match="Clip 0 has pieces.*'none'"):
        chat(text="<|audio|>", audio_codes=codes, audio_pieces=[{"word": "a", "end": 1.0}])
    with pytest.raises(ValueError, match="has no pieces"):
        chat.speech_pieces("hello")


def test_what_cannot_make_a_processor_is_refused():
    config = CSTConfig(
        encoder_type="stft",
        decoder_type="istft",
        downsampling_ratios=(2, 4, 5),
        hidden_size=16,
        encoder_hidden_size=16,
        decoder_hidden_size=16,
        encoder_num_layers=1,
        decoder_num_layers=1,
    )
    with pytest.raises(ValueError, match="is not trained yet"):
        SpeechLMProcessor.from_tokenizer(bpe_tokenizer(), CSTModel(config).eval(), RVQCodecFeatureExtractor())
    endless = bpe_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="no `eos_token`"):
        tiny_processor(endless)
    with pytest.raises(ValueError, match="`piece_labels` must be the distinct labels"):
        tiny_processor(bpe_tokenizer(), "phone", piece_labels=["a", "a"])
    with pytest.raises(ValueError, match="`piece_labels` must be the distinct labels"):
        tiny_processor(bpe_tokenizer(), "none", piece_labels=["a"])
    with pytest.raises(ValueError, match="num_quantizers"):
        tiny_processor(bpe_tokenizer(), num_codebooks=5)
    processor = tiny_processor(bpe_tokenizer())
    with pytest.raises(ValueError, match="`layout` must be one of"):
        SpeechLMProcessor(processor.feature_extractor, processor.tokenizer, layout="diagonal")
    with pytest.raises(ValueError, match="does not read '<|audio|>' as one token"):
        SpeechLMProcessor(processor.feature_extractor, bpe_tokenizer())
