# SPDX-License-Identifier: Apache-2.0
"""Recordings shorter than a frame of an encoder, and longer than it hears, in the trainings that run one."""

import json

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import synthetic_speech
from transformers import (
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.coding.file_coding import encode_blocks
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.language_models.latent_lm import LatentDataArguments, LatentLMArguments, cached_latents
from speech_tokenizers.training.units.pseudo_labels import TokenLabeler, as_float, label_all


SECONDS = {"a.wav": 1.0, "b.wav": 0.8, "long.wav": 31.0, "short.wav": 0.02, "tiny.wav": 0.005}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lengths")
    for seed, (name, seconds) in enumerate(SECONDS.items()):
        soundfile.write(folder / name, synthetic_speech(seed, round(16000 * seconds)), 16000)
    rows = [{"file_name": name, "text": "ab"} for name in SECONDS]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A folder with untrained encoders: `hubert`, whose frames need 400 samples, and `whisper`, which hears 30 s."""
    folder = tmp_path_factory.mktemp("encoders")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HubertModel(tiny_hubert(conv_dim=(8,) * 7)).save_pretrained(folder / "hubert")
        sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in SIZES.items()}
        config = WhisperConfig(d_model=8, num_mel_bins=8, vocab_size=20, pad_token_id=0, **sizes)
        WhisperModel(config).save_pretrained(folder / "whisper")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder / "hubert")
    WhisperFeatureExtractor(feature_size=8).save_pretrained(folder / "whisper")
    return folder


SIZES = {"layers": 1, "attention_heads": 1, "ffn_dim": 8}


def reasons(path) -> dict[str, str]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["name"]: row["reason"] for row in rows}


@pytest.fixture
def units(encoders):
    """Function: units of an encoder with random centroids."""

    def make(encoder: str) -> KMeansUnitsModel:
        model = KMeansUnitsModel.from_encoder(str(encoders / encoder), layers=[1], codebook_size=4, window="tight")
        generator = torch.Generator().manual_seed(0)
        model.set_centroids(torch.randn(1, 4, model.config.hidden_size, generator=generator))
        return model.eval()

    return make


@pytest.mark.parametrize("encoder", ["hubert", "whisper"])
def test_labels_of_a_recording_of_any_length_are_the_units_of_the_command(encoder, units, speech, tmp_path):
    recordings = decode_all(load_recordings(str(speech)), 16000, tmp_path, False)
    model = units(encoder)
    labels = label_all(recordings, TokenLabeler(model, codebook=0), tmp_path / "labels", 40.0, 0.0, False)
    for name, found in zip(recordings.names, labels, strict=True):
        waveform = torch.from_numpy(as_float(recordings[recordings.names.index(name)]))
        if len(waveform) >= model.shortest_input:
            expected = torch.cat(list(encode_blocks(model, [waveform])), dim=-1)[0]
            assert np.array_equal(found, expected)
            assert len(found) == model.get_encoded_length(len(waveform))
        else:
            assert len(found) == 1


def test_fit_units_names_recordings_shorter_than_a_frame(encoders, speech, tmp_path, capsys):
    command = f"fit-units {encoders / 'hubert'} {speech} -o {tmp_path / 'units'} --layers 1 --codebook-size 2"
    assert main([*command.split(), "--max-epochs", "1", "--fit-seconds", "5"]) == 0
    found = reasons(tmp_path / "units.rejected.jsonl")
    assert found.keys() == {"short.wav", "tiny.wav"}
    assert found["tiny.wav"] == "it is 0.005 s long, and a frame of the encoder needs 0.025 s"
    assert "2 recordings were set aside; see" in capsys.readouterr().err


def test_pretraining_on_labels_of_whisper_hears_long_recordings_in_windows(encoders, speech, tmp_path, capsys):
    sizes = tiny_hubert(conv_dim=(8,) * 7).to_diff_dict()
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim")
    fields += ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups")
    labels = {"kind": "layer", "model": str(encoders / "whisper"), "layer": 1, "num_clusters": 3, "fit_seconds": 3.0}
    recipe = {
        "trainer": "hubert",
        "output_dir": str(tmp_path / "run"),
        "data": {"train": str(speech), "min_seconds": 0.025, "max_seconds": 1.0},
        "model": {"mask_length": 3} | {name: sizes[name] for name in fields},
        "iterations": {"first": {"labels": labels, "max_steps": 1, "warmup_steps": 0}},
        "batch_seconds": 3.0,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0, capsys.readouterr().err
    found = reasons(tmp_path / "run" / "rejected.jsonl")
    assert found.keys() == {"short.wav", "tiny.wav"}
    assert "the training needs 0.1 s" in found["short.wav"]


@pytest.mark.parametrize(
    ("encoder", "min_seconds", "expected"),
    [("hubert", 0.025, {"short.wav", "tiny.wav"}), ("whisper", 0.02, {"tiny.wav"})],
)
def test_dc_spin_sets_aside_what_is_shorter_than_a_frame(
    encoder, min_seconds, expected, encoders, speech, tmp_path, capsys
):
    recipe = {
        "trainer": "dc_spin",
        "output_dir": str(tmp_path / "run"),
        "data": {"train": str(speech), "min_seconds": min_seconds, "max_seconds": 0.5},
        "model": {
            "encoder": str(encoders / encoder),
            "encoder_layer": 1,
            "trainable_layers": 1,
            "primary_codebook_size": 2,
            "auxiliary_codebook_size": None,
        },
        "batch_seconds": 3.0,
        "max_steps": 1,
        "warmup_steps": 0,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0, capsys.readouterr().err
    assert reasons(tmp_path / "run" / "rejected.jsonl").keys() == expected


def test_a_latent_language_model_names_what_is_too_short(make_cst, speech, tmp_path):
    model, _ = make_cst()
    places = {"train": str(speech), "eval": str(speech), "min_seconds": 0.001}
    args = LatentLMArguments(
        data=LatentDataArguments(**places), model="", heads={"mse": {}}, output_dir=str(tmp_path / "run")
    )
    train, held_out = cached_latents(model, args)
    assert sorted(name for name, _, _ in held_out) == ["a", "b", "long"]
    assert max(len(train[index]) for index in range(len(train))) == 31 * 25
    assert reasons(tmp_path / "run" / "rejected.jsonl").keys() == {"short.wav", "tiny.wav"}


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("hubert", {"short.wav": "320 samples are too few for a frame", "tiny.wav": "80 samples are too few"}),
        (
            "whisper",
            {
                "long.wav": "longer than the 30 s that the encoder hears",
                "short.wav": "1 frames are too few for 2 labels",
                "tiny.wav": "1 frames are too few",
            },
        ),
    ],
)
def test_train_ctc_names_what_the_encoder_cannot_hear(encoder, expected, encoders, speech, tmp_path, capsys):
    command = f"train-ctc {encoders / encoder} {speech} -o {tmp_path / 'out'} --layer 1 --epochs 1"
    assert main(command.split()) == 0, capsys.readouterr().err
    found = reasons(tmp_path / "out" / "rejected.jsonl")
    assert found.keys() == expected.keys()
    assert all(expected[name] in found[name] for name in found)
    assert (
        main([*command.replace("epochs 1", "epochs 2").split(), "--overwrite", "--filter", "file_name=tiny.wav"]) == 2
    )
    assert "No recording is left to learn from; the first reason: tiny.wav: " in capsys.readouterr().err
