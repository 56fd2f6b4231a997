# SPDX-License-Identifier: Apache-2.0
"""The tiny codecs that the tests of this folder measure, and a reader of the pages that reports write."""

import html.parser

import pytest
import torch
from transformers import (
    DacConfig,
    DacFeatureExtractor,
    DacModel,
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    MimiConfig,
    MimiModel,
    VibeVoiceAcousticTokenizerConfig,
    VibeVoiceAcousticTokenizerFeatureExtractor,
    VibeVoiceAcousticTokenizerModel,
)

from speech_tokenizers.modeling.configuration_cst import CSTConfig
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.processing.feature_extraction_cst import CSTFeatureExtractor
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


class PageReader(html.parser.HTMLParser):
    """
    Reads a page: `tags` of its elements, `references` to other files, `alts` of its figures. Every element must be
    closed, every figure described, and all text of a figure in the page's colour.
    """

    NEVER_CLOSED = ("meta", "br")

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.references, self.alts = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []
        assert "color-scheme:light dark" in page

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        found = [given.get(name, "#") for name in ("src", "href", "xlink:href")]
        self.references += [value for value in found if not value.startswith(("#", "data:"))]
        if tag == "svg":
            assert given["role"] == "img"
            self.alts.append(given["aria-label"])
        if tag == "text":  # the text of a formula has no style; its group has
            style = given.get("style") or self.open[-1][1].get("style", "")
            assert "fill: currentColor" in style
        if tag not in self.NEVER_CLOSED:
            self.open.append((tag, given))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in self.NEVER_CLOSED:
            assert self.open.pop()[0] == tag


@pytest.fixture
def read_page():
    """A function from the HTML of a page to a reader of it, which fails where the page is not whole."""
    return PageReader


@pytest.fixture
def make_rvq_codec():
    """A function from a seed to a codec (50 frames a second, 4 codebooks of 32 entries) and its feature extractor."""

    def make(seed: int = 0) -> tuple[RVQCodecModel, RVQCodecFeatureExtractor]:
        torch.manual_seed(seed)
        config = RVQCodecConfig.from_preset(
            "fast-16khz",
            hidden_size=16,
            encoder_hidden_size=16,
            decoder_hidden_size=16,
            encoder_num_layers=1,
            decoder_num_layers=1,
            num_quantizers=4,
            codebook_size=32,
        )
        return RVQCodecModel(config).eval(), RVQCodecFeatureExtractor(sampling_rate=16000, hop_length=320)

    return make


@pytest.fixture
def make_cst():
    """A function from a seed to continuous tokens (25 latents of 6 numbers a second) and their feature extractor."""

    def make(seed: int = 0) -> tuple[CSTModel, CSTFeatureExtractor]:
        torch.manual_seed(seed)
        config = CSTConfig.from_preset(
            "cst-fast-16khz",
            hidden_size=6,
            network_hidden_size=16,
            encoder_hidden_size=16,
            decoder_hidden_size=16,
            encoder_num_layers=1,
            decoder_num_layers=1,
        )
        return CSTModel(config).eval(), CSTFeatureExtractor(sampling_rate=16000, hop_length=640)

    return make


@pytest.fixture
def make_transformers_codec():
    """A function from the name of a codec to one with random weights and its feature extractor."""
    makers = {"encodec": _make_encodec, "dac": _make_dac, "mimi": _make_mimi, "vibevoice": _make_vibevoice}
    return lambda name: makers[name]()


def _make_encodec() -> tuple[EncodecModel, EncodecFeatureExtractor]:
    torch.manual_seed(0)
    config = EncodecConfig(
        target_bandwidths=[0.5, 1.0, 2.0],
        sampling_rate=16000,
        hidden_size=16,
        codebook_dim=16,
        num_filters=4,
        codebook_size=1024,
        upsampling_ratios=[8, 5, 4, 2],
    )
    return EncodecModel(config).eval(), EncodecFeatureExtractor(sampling_rate=16000)


def _make_dac() -> tuple[DacModel, DacFeatureExtractor]:
    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=8,
        decoder_hidden_size=16,
        downsampling_ratios=[2, 4, 5, 8],
        n_codebooks=4,
        codebook_size=64,
        codebook_dim=4,
        sampling_rate=16000,
    )
    return DacModel(config).eval(), DacFeatureExtractor(sampling_rate=16000, hop_length=320)


def _make_mimi() -> tuple[MimiModel, EncodecFeatureExtractor]:
    torch.manual_seed(0)
    config = MimiConfig(
        hidden_size=32,
        num_filters=4,
        codebook_size=64,
        codebook_dim=16,
        vector_quantization_hidden_dimension=16,
        num_quantizers=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=32,
        upsample_groups=32,
    )
    return MimiModel(config).eval(), EncodecFeatureExtractor(sampling_rate=24000)


def _make_vibevoice() -> tuple[VibeVoiceAcousticTokenizerModel, VibeVoiceAcousticTokenizerFeatureExtractor]:
    torch.manual_seed(0)
    config = VibeVoiceAcousticTokenizerConfig(
        hidden_size=8, num_filters=4, downsampling_ratios=[2, 4, 5, 8], depths=[1] * 5, kernel_size=3
    )
    return VibeVoiceAcousticTokenizerModel(config).eval(), VibeVoiceAcousticTokenizerFeatureExtractor()
