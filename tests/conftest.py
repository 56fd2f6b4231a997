# SPDX-License-Identifier: Apache-2.0
"""Nothing here reaches a network, and a tiny checkpoint on disk that the tests of the command line share."""

import json
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


@pytest.fixture(scope="session")
def other_checkpoint(tiny_checkpoint, tmp_path_factory):
    """Folder of a codec like `tiny_checkpoint`, with other codebooks."""
    from speech_tokenizers import load

    model, feature_extractor = load(tiny_checkpoint)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.mul_(1.5)
    folder = tmp_path_factory.mktemp("checkpoint") / "other"
    model.save_pretrained(folder)
    feature_extractor.save_pretrained(folder)
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


@pytest.fixture(scope="session")
def hashed_uniform():
    """Function: numbers in [-1, 1) that a name and a seed determine (FNV-1a, then splitmix64), as float64."""

    def hashed(key: str, count: int, seed: int) -> np.ndarray:
        mask = 2**64 - 1
        name_hash = 0xCBF29CE484222325
        for byte in key.encode():
            name_hash = ((name_hash ^ byte) * 0x100000001B3) & mask
        base = np.uint64(name_hash ^ (seed * 0x9E3779B97F4A7C15 & mask))
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + base
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53 * 2 - 1

    return hashed


@pytest.fixture(scope="session")
def load_original():
    """
    Function: a small codec of the original code by the name of its fixture, as ours (a new one at each call), its
    original state dict, its original config, and what the original code computed (by the names that it has there).
    """

    def load(name: str, projection: str = "shared"):
        import torch
        from safetensors import safe_open

        from speech_tokenizers.conversion.speechtokenizer import codec_config_of, rename_state
        from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel

        path = Path(__file__).parent / "fixtures" / f"speechtokenizer_{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            fields = json.loads(file.metadata()["config"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
        for key in [key for key in state if key.endswith(".embed")]:
            # Left out of the file, since these two follow from the others.
            size = state[key.replace("embed", "cluster_size")]
            state[key.replace("embed", "embed_avg")] = state[key] * size.unsqueeze(-1)
            state[key.replace("embed", "inited")] = torch.ones(1)
        model = DMCodecModel(codec_config_of(fields, projection, path)).eval()
        model.load_state_dict(rename_state(state, fields, model, path))
        return model, state, fields, {key[3:]: value for key, value in tensors.items() if key.startswith("io.")}

    return load


def synthetic_speech(seed: int, num_samples: int) -> np.ndarray:
    """Harmonics of a gliding fundamental with a syllabic envelope and some noise, (num_samples,), float32."""
    generator = np.random.default_rng(seed)
    seconds = np.arange(num_samples) / 16000
    phase = 2 * np.pi * np.cumsum(100 + 20 * (seed % 5) + 20 * np.sin(2 * np.pi * seconds)) / 16000
    voice = sum(np.sin(k * phase) / k for k in range(1, 9))
    envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * seconds + seed)
    return (0.2 * voice * envelope + 0.01 * generator.standard_normal(num_samples)).astype(np.float32)


@pytest.fixture(scope="session")
def recordings() -> list[np.ndarray]:
    return [synthetic_speech(seed, 4000 + 700 * seed) for seed in range(6)]


@pytest.fixture(scope="session")
def audio_folder(tmp_path_factory, recordings) -> Path:
    """A folder of the recordings as WAV files, without metadata."""
    folder = tmp_path_factory.mktemp("audio")
    for i, recording in enumerate(recordings):
        soundfile.write(folder / f"{i}.wav", recording, 16000)
    return folder


@pytest.fixture
def make_rvq_codec():
    """A function from a seed to a codec (50 frames a second, 4 codebooks of 32 entries) and its feature extractor."""

    import torch

    from speech_tokenizers import RVQCodecConfig, RVQCodecFeatureExtractor, RVQCodecModel

    def make(seed: int = 0) -> tuple:
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

    import torch

    from speech_tokenizers import CSTConfig, CSTFeatureExtractor, CSTModel

    def make(seed: int = 0) -> tuple:
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
    makers = {
        "encodec": _make_encodec,
        "dac": _make_dac,
        "mimi": _make_mimi,
        "vibevoice": _make_vibevoice,
        "xcodec": _make_xcodec,
    }
    return lambda name: makers[name]()


def _make_encodec() -> tuple:
    import torch
    from transformers import EncodecConfig, EncodecFeatureExtractor, EncodecModel

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


def _make_dac() -> tuple:
    import torch
    from transformers import DacConfig, DacFeatureExtractor, DacModel

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


def _make_mimi() -> tuple:
    import torch
    from transformers import EncodecFeatureExtractor, MimiConfig, MimiModel

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


def _make_vibevoice() -> tuple:
    import torch
    from transformers import (
        VibeVoiceAcousticTokenizerConfig,
        VibeVoiceAcousticTokenizerFeatureExtractor,
        VibeVoiceAcousticTokenizerModel,
    )

    torch.manual_seed(0)
    config = VibeVoiceAcousticTokenizerConfig(
        hidden_size=8, num_filters=4, downsampling_ratios=[2, 4, 5, 8], depths=[1] * 5, kernel_size=3
    )
    return VibeVoiceAcousticTokenizerModel(config).eval(), VibeVoiceAcousticTokenizerFeatureExtractor()


def _make_xcodec() -> tuple:
    import torch
    from transformers import DacFeatureExtractor, XcodecConfig, XcodecModel

    torch.manual_seed(0)
    acoustic = {
        "model_type": "dac",
        "encoder_hidden_size": 8,
        "decoder_hidden_size": 32,
        "downsampling_ratios": [8, 5, 4, 2],
        "upsampling_ratios": [8, 5, 4, 2],
        "hidden_size": 32,
    }
    semantic = {
        "model_type": "hubert",
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    config = XcodecConfig(
        target_bandwidths=[0.5, 1.0],
        sample_rate=16000,
        acoustic_model_config=acoustic,
        semantic_model_config=semantic,
        codebook_size=32,
    )
    return XcodecModel(config).eval(), DacFeatureExtractor(sampling_rate=16000, hop_length=320)
