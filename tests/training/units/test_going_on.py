# SPDX-License-Identifier: Apache-2.0
"""Trainers of encoders and units go on with what they were begun with, from what a full disk has left sound."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.training.units.kmeans import fit_kmeans


MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.fixture
def speech(tmp_path, audio_folder):
    """A copy of the recordings, to change."""
    return shutil.copytree(audio_folder, tmp_path / "speech")


@pytest.fixture
def encoder(tmp_path):
    return save_encoder(tmp_path / "encoder", 0)


def save_encoder(folder, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        HubertModel(HubertConfig(**MODEL)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


@pytest.fixture
def hubert(tmp_path, speech):
    contents = {
        "trainer": "hubert",
        "output_dir": str(tmp_path / "run"),
        "model": {**MODEL, "final_dim": 8, "mask_length": 3},
        "data": {"train": str(speech), "min_seconds": 0.2, "max_seconds": 0.4},
        "iterations": {"first": {"labels": {"kind": "mfcc", "num_clusters": 6}, "max_steps": 4}},
        "batch_seconds": 0.8,
        "save_steps": 2,
    }
    return written(tmp_path, contents)


@pytest.fixture
def dc_spin(tmp_path, speech, encoder):
    contents = {
        "trainer": "dc_spin",
        "output_dir": str(tmp_path / "run"),
        "model": {
            "encoder": str(encoder),
            "encoder_layer": 2,
            "trainable_layers": 1,
            "projection_dim": 8,
            "primary_codebook_size": 6,
            "auxiliary_codebook_size": None,
        },
        "data": {"train": str(speech), "min_seconds": 0.2, "max_seconds": 0.4},
        "batch_seconds": 1.2,
        "max_steps": 4,
        "warmup_steps": 2,
        "save_steps": 2,
    }
    return written(tmp_path, contents)


def written(folder, contents):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(contents), encoding="utf-8")
    return str(path)


def replace_recording(speech, write_audio):
    """Another recording under the same name."""
    write_audio(speech / "3.wav", seconds=0.4)


def test_pretraining_does_not_go_on_with_the_centroids_of_other_recordings(hubert, speech, write_audio, capsys):
    assert main(["train", hubert]) == 0
    replace_recording(speech, write_audio)
    assert main(["train", hubert]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "begun with other data (`data.train`: recordings 1 ('3.wav') with other audio under the same name)" in line


def test_a_longer_pretraining_goes_on_until_an_iteration_is_finished(hubert, tmp_path, capsys):
    assert main(["train", hubert]) == 0
    assert main(["train", hubert, "iterations.first.max_steps=6"]) == 2
    assert "`iterations.first.max_steps` was 4 and is 6" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "first" / "encoder")
    assert main(["train", hubert, "iterations.first.max_steps=6"]) == 0
    assert "`iterations.first.max_steps` was 4 and is 6" in capsys.readouterr().err
    assert (tmp_path / "run" / "first" / "checkpoints" / "checkpoint-6").is_dir()


def test_a_moved_run_and_moved_recordings_go_on(dc_spin, speech, encoder, tmp_path):
    assert main(["train", dc_spin]) == 0
    for folder in (speech, encoder, tmp_path / "run"):
        shutil.move(folder, folder.with_name(f"{folder.name} moved"))
    shutil.rmtree(tmp_path / "run moved" / "final")
    places = [("data.train", speech), ("model.encoder", encoder), ("output_dir", tmp_path / "run")]
    assert main(["train", dc_spin, *(f"{key}={path} moved" for key, path in places)]) == 0
    assert (tmp_path / "run moved" / "final" / "config.json").is_file()


def test_units_do_not_go_on_from_another_encoder_of_the_same_name(dc_spin, encoder, capsys):
    assert main(["train", dc_spin]) == 0
    save_encoder(encoder, 1)
    assert main(["train", dc_spin]) == 2
    assert "`model.encoder`: it has other contents" in capsys.readouterr().err


def test_another_seed_is_refused_by_its_name(dc_spin, tmp_path, capsys):
    assert main(["train", dc_spin]) == 0
    shutil.rmtree(tmp_path / "run" / "final")
    assert main(["train", dc_spin, "seed=1"]) == 2
    assert "`seed` was 0 and is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "is_missing"),
    [("model.safetensors", False), ("optimizer.pt", True), ("scheduler.pt", False), ("rng_state.pth", True)],
)
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(dc_spin, tmp_path, capsys, name, is_missing):
    assert main(["train", dc_spin]) == 0
    final = tmp_path / "run" / "final"
    expected = load_file(final / "model.safetensors")
    shutil.rmtree(final)
    path = tmp_path / "run" / "checkpoints" / "checkpoint-4" / name
    content = path.read_bytes()
    path.unlink() if is_missing else path.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert main(["train", dc_spin]) == 0
    error = capsys.readouterr().err
    assert f"checkpoint-4: {name.replace('rng_state', 'rng_state*') if is_missing else name} is " in error.replace(
        "*model*.*", "model.safetensors"
    )
    assert "going on from checkpoint-2" in error
    found = load_file(final / "model.safetensors")
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_training_does_not_begin_anew_where_all_checkpoints_are_damaged(dc_spin, tmp_path, capsys):
    assert main(["train", dc_spin]) == 0
    shutil.rmtree(tmp_path / "run" / "final")
    for path in (tmp_path / "run" / "checkpoints").glob("*/trainer_state.json"):
        path.write_text(path.read_text()[:100])
    assert main(["train", dc_spin]) == 2
    assert "No checkpoint is sound" in capsys.readouterr().err.splitlines()[-1]


def test_a_damaged_kmeans_begins_anew_to_the_same_centroids(tmp_path, capsys):
    frames = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
    options = {"batch_size": 100, "max_epochs": 3, "num_init": 2, "checkpoint": tmp_path / "fit.checkpoint"}
    expected = fit_kmeans(frames, 5, **options).centroids
    for size in (0, 700):
        content = options["checkpoint"].read_bytes()
        options["checkpoint"].write_bytes(content[:size])
        assert torch.equal(fit_kmeans(frames, 5, **options).centroids, expected)
        assert "fit.checkpoint is " in capsys.readouterr().err


def test_damaged_frames_centroids_and_labels_are_made_anew(hubert, speech, encoder, tmp_path, capsys):
    iteration = {"labels": {"kind": "layer", "layer": 1, "num_clusters": 5, "model": str(encoder)}, "max_steps": 2}
    command = ["train", hubert, f"iterations={json.dumps({'first': iteration})}"]
    assert main(command) == 0
    expected = load_file(tmp_path / "run" / "first" / "encoder" / "model.safetensors")
    labels = tmp_path / "run" / "first" / "labels"
    for index in labels.glob("*.json"):
        index.write_text(index.read_text()[:50])
    for name in ("encoder", "checkpoints"):
        shutil.rmtree(tmp_path / "run" / "first" / name)
    capsys.readouterr()
    assert main(command) == 0
    assert "labelled anew" in capsys.readouterr().err
    found = load_file(tmp_path / "run" / "first" / "encoder" / "model.safetensors")
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


@pytest.fixture
def small_encoder(tmp_path):
    folder = tmp_path / "small"
    torch.manual_seed(0)
    HubertModel(tiny_hubert(conv_dim=(8, 8, 8), conv_kernel=(10, 4, 4), conv_stride=(5, 4, 4))).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


def test_models_of_other_recordings_are_not_fitted_beside_finished_ones(
    small_encoder, speech, write_audio, tmp_path, capsys
):
    command = ["fit-units", str(small_encoder), str(speech), "-o", str(tmp_path / "units"), "--layers", "1"]
    sizes = ["--codebook-size", "4", "5"]
    assert main([*command, *sizes]) == 0
    assert main([*command, *sizes, "6"]) == 0
    assert main([*command, *sizes, "7", "--seed", "3"]) == 2
    assert "is finished and --seed was 0 and is 3" in capsys.readouterr().err
    replace_recording(speech, write_audio)
    assert main([*command, *sizes, "7"]) == 2
    assert "is finished and RECORDINGS has other contents" in capsys.readouterr().err


def test_damaged_centroids_of_a_stopped_fit_are_fitted_anew(small_encoder, speech, tmp_path, capsys):
    cache = tmp_path / "cache"
    command = ["fit-units", str(small_encoder), str(speech), "--layers", "1", "--codebook-size", "4"]
    command += ["--cache-dir", str(cache), "-o"]
    assert main([*command, str(tmp_path / "first")]) == 0
    for path in [*cache.rglob("codebook-0.safetensors"), *cache.rglob("*.npy")]:
        path.write_bytes(path.read_bytes()[:60])
    assert main([*command, str(tmp_path / "second")]) == 0
    assert "codebook-0.safetensors is damaged" in capsys.readouterr().err
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
