# SPDX-License-Identifier: Apache-2.0
"""Nothing here reaches a network, and a tiny checkpoint on disk that the tests of the command line share."""

import os


# Read when the libraries are imported, so set before any test module is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Folder of an untrained codec: 40 samples a frame, 4 codebooks of 32 entries, at the frame rate on both sides."""
    import torch

    from speech_tokenizers import RVQCodecConfig, RVQCodecFeatureExtractor, RVQCodecModel

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RVQCodecModel(config)
    model.save_pretrained(folder)
    RVQCodecFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture
def write_audio():
    """Function: write a noisy tone of so many seconds as an audio file, and return its path."""

    def write(path: Path, seconds: float = 0.5, sampling_rate: int = 16000, channels: int = 1, **kwargs) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(seconds * sampling_rate)) / sampling_rate
        noise = np.random.default_rng(0).standard_normal((len(time), channels))
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * 200 * time)[:, None] + 0.03 * noise, sampling_rate, **kwargs)
        return path

    return write
