# SPDX-License-Identifier: Apache-2.0
"""Speech language models, and codecs for them, that are small enough for a test."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.pronunciations import PronunciationLexicon
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


PHONES = ["ay", "d", "hh", "l", "m", "pau", "t"]
LEXICON = {"hi": ["hh", "ay"], "tim": ["t", "ay", "m"], "lime": ["l", "ay", "m"], "die": ["d", "ay"]}

# Sizes of the six kinds of language models that the wrapper is tested on.
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_HEADS = {"num_key_value_heads": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _SIZES | _HEADS,
    "qwen2": _SIZES | _HEADS,
    "qwen3": _SIZES | _HEADS | {"head_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "gemma3_text": _SIZES | _HEADS | {"head_dim": 16, "sliding_window": 8},
    "opt": {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16},
}


def tiny_codec(num_quantizers: int = 2, codebook_size: int = 16, causal: bool = False) -> RVQCodecModel:
    """An RVQ codec of 50 frames a second at 800 Hz, with codebooks that are not all zero."""
    torch.manual_seed(0)
    config = RVQCodecConfig(
        sampling_rate=800,
        downsampling_ratios=[4, 4],
        num_quantizers=num_quantizers,
        codebook_size=codebook_size,
        hidden_size=8,
        num_filters=4,
        encoder_lstm="none",
        decoder_lstm="none",
        kmeans_iterations=0,
        **({"causal": True, "pad_mode": "constant", "trim_right_ratio": 1.0} if causal else {}),
    )
    return RVQCodecModel(config).eval()


def tiny_processor(
    codec: Any, text_alignment: str = "none", num_codebooks: int | None = None, layout: str | None = None
) -> SpeechLMProcessor:
    """A processor with letters as its names and, for phones, a lexicon of four words."""
    processor = SpeechLMProcessor.from_tokenizer(
        build_speech_vocabulary(),
        codec,
        RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate),
        text_alignment=text_alignment,
        piece_labels=PHONES if text_alignment == "phone" else (),
        num_codebooks=num_codebooks,
        codec_name="tiny-codec",
        layout=layout,
    )
    if text_alignment == "phone":
        lexicon = PronunciationLexicon()
        for word, phones in LEXICON.items():
            lexicon.add(word, phones)
        processor.attach_pronouncer(lexicon)
    return processor


def tiny_lm(kind: str = "llama", vocab_size: int = 64, tied: bool = True, **changes: Any) -> Any:
    """A causal language model of two layers with random weights, in evaluation mode."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"vocab_size": vocab_size, "tie_word_embeddings": tied, **ends, **ARCHITECTURES[kind], **changes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()


def tiny_speech_lm(
    kind: str = "llama",
    text_alignment: str = "none",
    tied: bool = True,
    num_codebooks: int | None = None,
    layout: str = "flat",
    fields: Mapping[str, Any] | None = None,
    num_quantizers: int = 2,
    causal: bool = False,
    **changes: Any,
) -> tuple[SpeechLMForConditionalGeneration, SpeechLMProcessor]:
    """A speech language model around a [`tiny_lm`], and its processor; both have the codec."""
    codec = tiny_codec(num_quantizers, causal=causal)
    processor = tiny_processor(codec, text_alignment, num_codebooks, layout)
    lm = tiny_lm(kind, vocab_size=processor.audio_offset, tied=tied, **changes)
    return SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, processor, **(fields or {})), processor


def tiny_row(text: str = "hi", seed: int = 0, num_frames: int = 7, codec: Any = None) -> dict[str, Any]:
    """A row of an encoded corpus with phones and words of equal lengths, and random codes."""
    codec = tiny_codec() if codec is None else codec
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(codec.codebook_size, (codec.num_quantizers, num_frames), generator=generator)
    phones = ["pau", *(phone for word in text.split() for phone in LEXICON[word]), "pau"]
    words, seconds = text.split(), num_frames / codec.frame_rate

    def times(key: str, names: list[str]) -> list[dict[str, Any]]:
        step = seconds / len(names)
        return [{key: name, "start": place * step, "end": (place + 1) * step} for place, name in enumerate(names)]

    return {
        "id": f"row-{seed}",
        "text": text,
        "audio_codes": codes.flatten().tolist(),
        "num_quantizers": codec.num_quantizers,
        "num_frames": num_frames,
        "seconds": seconds,
        "speaker": "a",
        "language": "en",
        "words": times("word", words),
        "phones": times("label", phones),
        "codec": "tiny-codec",
        "codec_fingerprint": codec.fingerprint(),
        "encoder_fingerprint": codec.encoder_fingerprint(),
    }
