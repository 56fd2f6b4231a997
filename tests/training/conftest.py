# SPDX-License-Identifier: Apache-2.0
"""Synthetic recordings and a recipe of a tiny codec that the tests of this folder share."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.codec.codec_building import build_model, build_objectives
from speech_tokenizers.training.codec.codec_trainer import CodecTrainer
from speech_tokenizers.training.common.recipe_files import build_section


SAMPLING_RATE = 16000

# 160 samples a frame, 2 codebooks of 16 entries, two discriminators that act from step 3 on.
TINY_RECIPE = {
    "seed": 3,
    "model": {
        "preset": "fast-16khz",
        "overrides": {
            "downsampling_ratios": [4, 5, 8],
            "hidden_size": 16,
            "encoder_hidden_size": 16,
            "decoder_hidden_size": 16,
            "encoder_num_layers": 1,
            "decoder_num_layers": 1,
            "num_quantizers": 2,
            "codebook_size": 16,
            "kmeans_iterations": 3,
            "quantizer_dropout": 0.3,
        },
    },
    "data": {"segment_seconds": 0.1, "gain_db": [-6.0, 0.0], "max_eval_seconds": 1.0},
    "loss_weights": {
        "mel": 15.0,
        "waveform": 1.0,
        "commitment": 0.25,
        "adversarial": 1.0,
        "feature_matching": 2.0,
    },
    "mel_scales": [{"n_fft": 256, "hop_length": 64, "num_mels": 20}],
    "adversarial": {
        "objective": "hinge",
        "start_step": 3,
        "warmup_steps": 4,
        "discriminators": {
            "multi_scale_stft": {"num_filters": 2, "n_ffts": [128]},
            "multi_period": {"periods": [3], "channels": [2, 4]},
        },
    },
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3, "max_grad_norm": 1.0},
    "discriminator_optimizer": {"learning_rate": 1e-3, "schedule": "exponential", "decay_steps": 10},
    "global_batch_size": 4,
    "max_steps": 6,
    "weight_ema_decay": 0.9,
    "logging_steps": 1,
    "eval_steps": 0,
    "save_steps": 0,
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Tiny trainings are the same everywhere on the CPU only. Each test chooses its precision anew."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)


def merged(base: dict, changes: dict) -> dict:
    result = copy.deepcopy(base)
    for key, value in changes.items():
        # Discriminators and lists are replaced, sections are changed.
        if (
            isinstance(value, dict)
            and isinstance(result.get(key), dict)
            and key not in ("discriminators", "loss_weights")
        ):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


@pytest.fixture
def make_args(tmp_path):
    """Arguments of the tiny recipe with changes."""

    def make(**changes) -> CodecTrainingArguments:
        recipe = merged({**TINY_RECIPE, "output_dir": str(tmp_path / "run")}, changes)
        return build_section(CodecTrainingArguments, recipe, "")

    return make


@pytest.fixture
def make_trainer(make_args, recordings):
    """A trainer of the tiny recipe with changes, with the same initial weights each time."""

    def make(trainer_class=CodecTrainer, train=recordings, **changes) -> CodecTrainer:
        args = make_args(**changes)
        torch.manual_seed(args.seed)
        return trainer_class(build_model(args), args, train, recordings[:2], objectives=build_objectives(args))

    return make


@pytest.fixture
def recipe_file(tmp_path, audio_folder):
    """The tiny recipe as a YAML file, reading the folder of recordings."""

    def write(**changes) -> Path:
        recipe = merged({**TINY_RECIPE, "output_dir": str(tmp_path / "run")}, changes)
        recipe["data"] |= {"train": str(audio_folder), "cache_dir": str(tmp_path / "cache")}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def speech_teacher_folder(tmp_path_factory) -> Path:
    """An untrained HuBERT of two layers, 24 features, 100 frames a second."""
    folder = tmp_path_factory.mktemp("teachers") / "hubert"
    config = tiny_hubert(
        hidden_size=24, intermediate_size=32, conv_dim=(8, 8, 8), conv_kernel=(10, 4, 4), conv_stride=(8, 5, 4)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory) -> Path:
    """An untrained Whisper of two layers and 16 features, whose window is two seconds."""
    folder = tmp_path_factory.mktemp("teachers") / "whisper"
    config = WhisperConfig(
        vocab_size=20,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=100,
        max_target_positions=8,
        num_mel_bins=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_teacher_folder(tmp_path_factory) -> Path:
    """An untrained BERT of two layers and 12 features, which reads 16 tokens at once."""
    folder = tmp_path_factory.mktemp("teachers") / "bert"
    folder.mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", "four", "##teen", ",", "."]
    tokenizer = BertTokenizerFast(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=16)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder
