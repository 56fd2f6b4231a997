# SPDX-License-Identifier: Apache-2.0
"""Tiny models of each kind that a page offers."""

import numpy as np
import pytest
import torch

from helpers.tiny_models import tiny_hubert
from helpers.tiny_speaking_lm import tiny_speech_lm
from speech_tokenizers import KMeansUnitsConfig, KMeansUnitsModel, as_speech_codec, load
from speech_tokenizers.app.models import ModelShelf, OfferedModel


@pytest.fixture(scope="session")
def codec(tiny_checkpoint):
    """A codec of 4 codebooks of 32 entries."""
    return OfferedModel("codec", as_speech_codec(*load(tiny_checkpoint)))


@pytest.fixture(scope="session")
def units():
    """Units of an untrained encoder, 8 of them, without a vocoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = tiny_hubert(num_hidden_layers=1, conv_dim=(8, 8), conv_kernel=(40, 8), conv_stride=(40, 8))
        model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder, layers=[1], codebook_size=8))
        model.set_centroids(torch.randn(model.centroids.shape))
    return OfferedModel("units", model.eval())


@pytest.fixture(scope="session")
def voice():
    """An untrained voice that knows the words `hi`, `tim`, `lime` and `die`, and when it says them."""
    with torch.random.fork_rng():
        return OfferedModel("voice", *tiny_speech_lm(text_alignment="phone"))


@pytest.fixture(scope="session")
def shelf(codec, units, voice, tiny_checkpoint):
    """All of them, and a second codec to compare with."""
    second = OfferedModel("codec two", as_speech_codec(*load(tiny_checkpoint)))
    return ModelShelf([codec, second, units, voice])


@pytest.fixture
def tone():
    """A second of a noisy tone at 16 kHz."""
    noise = np.random.default_rng(0).standard_normal(16000)
    return (0.3 * np.sin(np.arange(16000) * 0.08) + 0.03 * noise).astype(np.float32)
