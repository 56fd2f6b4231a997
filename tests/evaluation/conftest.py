# SPDX-License-Identifier: Apache-2.0
"""The tiny codec that the tests of this folder measure."""

import pytest
import torch

from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


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
