# SPDX-License-Identifier: Apache-2.0
"""Tokenizers, a codec, a lexicon and rows that are small enough for tests of speech language models."""

import json
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from speech_tokenizers import RVQCodecConfig, RVQCodecFeatureExtractor, RVQCodecModel
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor


SENTENCES = [
    "hello there my friend, say it again: hello hello",
    "Transcribe what the speaker says, and Say the words",
    "Continue the recording where it ends. audio start and audio end",
    "user assistant system user assistant",
]
PHONES = ("pau", "hh", "ax", "l", "ow")


def bpe_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE that was learnt from a few sentences; with ChatML tokens, or without them."""
    specials = ["<|endoftext|>", *(["<|im_start|>", "<|im_end|>"] if chat else [])]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=340,
        special_tokens=specials,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|im_end|>" if chat else None,
        model_input_names=["input_ids", "attention_mask"],
    )


def word_tokenizer(lower: bool = False) -> PreTrainedTokenizerFast:
    """Words as they are, without ChatML tokens, with a beginning of sequence of its own; unknown words are `[UNK]`."""
    words = sorted({word for sentence in SENTENCES for word in sentence.lower().replace(":", " :").split()})
    vocabulary = {name: place for place, name in enumerate(["[PAD]", "<s>", "</s>", "[UNK]", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if lower:
        tokenizer.normalizer = Lowercase()
        tokenizer.add_special_tokens([AddedToken("<|stop|>", special=True, normalized=True)])
    tokenizer.post_processor = TemplateProcessing(single="<s> $0", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]", pad_token="[PAD]"
    )


def tiny_codec(seed: int = 0) -> RVQCodecModel:
    """An untrained codec: 40 samples a frame at 16 kHz, 4 codebooks of 32 entries, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = RVQCodecConfig(
            encoder_type="stft",
            decoder_type="istft",
            downsampling_ratios=(2, 4, 5),
            hidden_size=16,
            encoder_hidden_size=16,
            decoder_hidden_size=16,
            encoder_num_layers=2,
            decoder_num_layers=2,
            num_quantizers=4,
            codebook_size=32,
            use_weight_norm=False,
        )
        model = RVQCodecModel(config).eval()
        for parameter in model.parameters():  # codebooks too, so that the fingerprints of two seeds differ
            parameter.data += 0.01 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if "codebook" in name and buffer.is_floating_point():
                buffer.data = torch.randn_like(buffer)
    return model


def tiny_processor(tokenizer: Any, text_alignment: str = "none", **changes: Any) -> SpeechLMProcessor:
    """A processor of a language model that uses two of the four codebooks of [`tiny_codec`]."""
    options = {"num_codebooks": 2, "piece_labels": PHONES if text_alignment == "phone" else (), **changes}
    return SpeechLMProcessor.from_tokenizer(
        tokenizer, tiny_codec(), RVQCodecFeatureExtractor(), text_alignment=text_alignment, **options
    )


class Lexicon:
    """Stands in for a pronunciation lexicon."""

    def __init__(self, phones=PHONES):
        self.phones = list(phones)

    def pronounce(self, text):
        if "xyzzy" in text:
            raise ValueError("no pronunciation: xyzzy")
        return self.phones

    def save(self, path):
        path.write_text(json.dumps(self.phones))

    @classmethod
    def from_file(cls, path):
        with open(path, encoding="utf-8") as file:
            return cls(json.load(file))


def waveform(num_samples=900, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def make_row(processor: SpeechLMProcessor, num_frames: int = 12, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of a corpus with four codebooks, words and phones, as the reader of rows gives it."""
    codes = np.random.default_rng(seed).integers(0, 32, (4, num_frames)).astype(np.uint16)
    seconds = num_frames / processor.frame_rate
    ends = [seconds * share for share in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
    phones = [{"label": label, "start": 0.0, "end": end} for label, end in zip([*PHONES, "pau"], ends, strict=True)]
    words = [{"word": "hello", "start": 0.0, "end": ends[2]}, {"word": "There,", "start": ends[2], "end": ends[5]}]
    return {
        "id": f"clip-{seed}",
        "text": "hello there",
        "audio_codes": codes.reshape(-1).tolist(),
        "num_quantizers": 4,
        "num_frames": num_frames,
        "seconds": seconds,
        "words": words,
        "phones": phones,
        "codec": "tiny",
        "codec_fingerprint": processor.codec_fingerprint,
        **changes,
    }
