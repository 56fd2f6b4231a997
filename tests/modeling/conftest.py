# SPDX-License-Identifier: Apache-2.0
"""Tiny codecs and signals that the tests of this folder share."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_codecs import THEIRS, make_dc_spin, make_kmeans, with_vocoder
from speech_tokenizers.modeling.configuration_dm_codec import DMCodecConfig
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec


# 40 samples a frame, 400 frames a second, 4 codebooks of 32 entries.
TINY_CONFIG = {
    "downsampling_ratios": (2, 4, 5),
    "num_filters": 4,
    "hidden_size": 16,
    "encoder_hidden_size": 16,
    "decoder_hidden_size": 16,
    "encoder_num_layers": 2,
    "decoder_num_layers": 2,
    "num_quantizers": 4,
    "codebook_size": 32,
    "kmeans_iterations": 5,
}


def make_tiny_config(**overrides) -> RVQCodecConfig:
    """A [`DMCodecConfig`] where the overrides name one of its own fields, else an [`RVQCodecConfig`]."""
    of_dm_codec = set(DMCodecConfig.__dataclass_fields__) - set(RVQCodecConfig.__dataclass_fields__)
    config_class = DMCodecConfig if of_dm_codec & overrides.keys() else RVQCodecConfig
    return config_class(**{**TINY_CONFIG, **overrides})


def make_signal(batch_size: int, num_samples: int, seed: int = 0) -> torch.Tensor:
    """Harmonics of a random pitch in noise, (batch_size, 1, num_samples), within [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(num_samples) / 16000
    pitch = 80 + 200 * torch.rand(batch_size, 1, 1, generator=generator)
    level = 0.1 + 0.4 * torch.rand(batch_size, 1, 1, generator=generator)
    signal = sum(torch.sin(2 * torch.pi * k * pitch * time + k) / k for k in range(1, 6)) / 2
    signal = level * signal * (0.6 + 0.4 * torch.sin(2 * torch.pi * 9 * time))
    return signal + 0.05 * torch.randn(batch_size, 1, num_samples, generator=generator).clamp(-3, 3)


def make_codec(**overrides) -> RVQCodecModel:
    """
    Build a tiny codec whose parameters are all away from zero and whose codebooks fit its latents, in evaluation mode.

    A zero bias hides every error in the padding, and codebooks far from the latents hide every error in the latents.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        config = make_tiny_config(**overrides)
        model = DMCodecModel(config) if isinstance(config, DMCodecConfig) else RVQCodecModel(config)
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "alpha")):
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
            elif name.endswith(("conv.weight", "original0")):
                # A signal keeps its level from layer to layer.
                parameter.mul_(1.2 if model.config.activation == "snake" else 1.7)
        model.train()
        model(make_signal(4, 4000, seed=1), return_loss=False)
    return model.eval()


@functools.cache
def shared_codec(**overrides) -> RVQCodecModel:
    return make_codec(**overrides)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny layers only wait for each other on several threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def tiny_config():
    """Function: configuration of a tiny codec, with overrides."""
    return make_tiny_config


@pytest.fixture(scope="session")
def signal():
    """Function: reproducible waveforms, (batch_size, 1, num_samples)."""
    return make_signal


@pytest.fixture(scope="session")
def new_codec():
    """Function: a tiny codec of the caller's own, with overrides of its config."""
    return make_codec


@pytest.fixture(scope="session")
def codec():
    """Function: a tiny codec that is shared between tests, which must leave it as it is."""
    return shared_codec


@pytest.fixture(scope="session", name="make_encoder")
def make_encoder_fixture():
    return make_encoder


@pytest.fixture(scope="session")
def spin_encoder():
    """Weights, inputs and outputs of the original Spin's encoder, a random tiny HuBERT (see tests/fixtures)."""
    return load_file(Path(__file__).parents[1] / "fixtures" / "spin_encoder.safetensors")


def make_encoder(config_class, model_class, pre_norm: bool = False, **fields):
    """A tiny encoder of the HuBERT kind in evaluation mode, none of whose norms is trivial."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [24] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "do_stable_layer_norm": pre_norm,
        "feat_extract_norm": "layer" if pre_norm else "group",
    }
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        encoder = model_class(config_class(**{**sizes, **fields}))
        for parameter in encoder.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


@pytest.fixture
def make_model(new_codec, make_cst, make_transformers_codec):
    """Function: a model by a name of `OURS` or `THEIRS`, as the interface has it; units also with a `-vocoder`."""

    def make(name: str):
        if name in THEIRS:
            model, feature_extractor = make_transformers_codec(name)
            for key, buffer in model.named_buffers():
                if "embed" in key:  # zeros before they are trained
                    buffer.normal_()
            return as_speech_codec(model, feature_extractor)
        makers = {
            "rvq": lambda: new_codec(encoder_type="stft", decoder_type="istft"),
            "factorised": lambda: new_codec(encoder_type="stft", decoder_type="istft", codebook_dim=4),
            "causal": lambda: new_codec(causal=True, pad_mode="constant"),
            "dm": lambda: new_codec(semantic_dimension=5, contextual_dimension=7, contextual_stage=1),
            "cst": lambda: make_cst()[0],
            "kmeans": make_kmeans,
            "dc_spin": make_dc_spin,
            "kmeans-vocoder": lambda: with_vocoder(make_kmeans()),
            "dc_spin-vocoder": lambda: with_vocoder(make_dc_spin()),
        }
        return as_speech_codec(makers[name]())

    return make
