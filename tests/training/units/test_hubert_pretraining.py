# SPDX-License-Identifier: Apache-2.0
"""Pre-training of HuBERT: what it is fed, that it learns, and that a kill changes nothing."""

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, HubertConfig, HubertModel

from helpers.processes import run_ranks, start
from speech_tokenizers import cli
from speech_tokenizers.modeling.configuration_hubert_masked_prediction import HubertMaskedPredictionConfig
from speech_tokenizers.modeling.padding_invariance import num_conv_frames
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.common.reporting import read_log
from speech_tokenizers.training.units.hubert_pretraining import load_pretraining_recipe, pretrain
from speech_tokenizers.training.units.masked_prediction import MaskedPredictionDataset, pad_batch
from speech_tokenizers.training.units.pseudo_labels import label_all
from speech_tokenizers.training.units.spectral_stem import init_spectral_stem


MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "final_dim": 8,
    "mask_length": 3,
    "layerdrop": 0.3,
}


@pytest.fixture
def recipe(tmp_path, audio_folder):
    """A recipe of a tiny model as a YAML file, with changes."""

    def write(name="run", **changes) -> Path:
        contents = {
            "trainer": "hubert",
            "output_dir": str(tmp_path / name),
            "model": MODEL,
            "data": {
                "train": str(audio_folder),
                "cache_dir": str(tmp_path / "audio"),
                "min_seconds": 0.2,
                "max_seconds": 0.4,
            },
            "iterations": {
                "first": {"labels": {"kind": "mfcc", "num_clusters": 6}, "max_steps": 6, "learning_rate": 1e-3},
            },
            "batch_seconds": 0.8,
            "logging_steps": 1,
            "save_steps": 2,
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(contents), encoding="utf-8")
        return path

    return write


def log_of(folder: Path) -> list[dict]:
    entries = read_log(folder / "training_log.jsonl")
    return [{k: v for k, v in entry.items() if k != "audio_seconds_per_second"} for entry in entries]


class PositionLabeler:
    """The label of a moment is its number, 100 a second."""

    label_rate, num_labels = 100.0, 1000
    description = {"kind": "position"}

    def __call__(self, waveforms):
        return [np.arange(len(row) // 160) for row in waveforms]


@pytest.fixture
def dataset(audio_folder, tmp_path):
    decoded = decode_all(load_recordings(str(audio_folder)), 16000, tmp_path / "audio", show_progress=False)
    labels = label_all(decoded, PositionLabeler(), tmp_path / "labels", show_progress=False)
    return MaskedPredictionDataset(decoded, labels, HubertMaskedPredictionConfig(**MODEL), 0.3, 0.35)


def test_parts_keep_the_labels_of_their_frames(dataset):
    starts = set()
    for index in range(8 * len(dataset)):
        item = dataset[index]
        recording = dataset.recordings[dataset.recording_of_item[index % len(dataset)]]
        # Two labels a frame, numbered by their moment: the first tells where the part begins.
        first_frame, remainder = divmod(int(item["labels"][0]), 2)
        assert remainder == 0
        starts.add(first_frame)
        samples = torch.from_numpy(recording[320 * first_frame :][:5600].astype(np.float32)) / 32767
        assert torch.equal(item["input_values"], samples)
        assert len(item["labels"]) == len(item["mask_time_indices"]) == num_conv_frames(dataset.config, len(samples))
        assert item["labels"].tolist() == list(range(2 * first_frame, 2 * (first_frame + len(item["labels"])), 2))
    assert len(starts) > 3


def test_short_recordings_are_left_out_and_lengths_are_known(dataset):
    kept = [len(recording) for recording in dataset.recordings if len(recording) >= 4800]
    assert len(dataset) == len(kept) < len(dataset.recordings)
    assert [len(dataset[i]["input_values"]) for i in range(len(dataset))] == dataset.lengths.tolist()
    with pytest.raises(ValueError, match="Every recording is shorter than"):
        MaskedPredictionDataset(dataset.recordings, dataset.labels, dataset.config, 9.0, 9.0)


def test_an_item_depends_on_its_index_alone(dataset):
    torch.manual_seed(0)
    first = dataset[4]
    dataset[1]
    torch.manual_seed(1)
    assert all(torch.equal(value, dataset[4][name]) for name, value in first.items())
    masks = {tuple(dataset[epoch * len(dataset)]["mask_time_indices"].tolist()) for epoch in range(6)}
    assert len(masks) > 1


def test_padding_has_no_label_and_no_mask(dataset):
    items = [dataset[i] for i in range(len(dataset))]
    batch = pad_batch(items)
    for row, item in enumerate(items):
        frames, samples = len(item["labels"]), len(item["input_values"])
        padding = len(batch["attention_mask"][row]) - samples
        assert batch["attention_mask"][row].tolist() == [1] * samples + [0] * padding
        assert (batch["labels"][row, frames:] == -100).all()
        assert not batch["mask_time_indices"][row, frames:].any()
        assert torch.equal(batch["labels"][row, :frames], item["labels"])


def test_two_iterations_leave_encoders_that_transformers_reads(recipe, tmp_path):
    path = recipe(
        iterations={
            "first": {"labels": {"kind": "mfcc", "num_clusters": 6}, "max_steps": 2},
            "second": {
                "labels": {"kind": "layer", "layer": 1, "num_clusters": 5},
                "start_from": "previous",
                "max_steps": 2,
            },
        }
    )
    final = pretrain(load_pretraining_recipe(str(path)))
    for folder in (tmp_path / "run" / "first" / "encoder", tmp_path / "run" / "second" / "encoder", final):
        assert type(AutoModel.from_pretrained(folder)) is HubertModel
        assert AutoFeatureExtractor.from_pretrained(folder).sampling_rate == 16000
    first, second = (
        load_file(tmp_path / "run" / name / "encoder" / "model.safetensors") for name in ("first", "second")
    )
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    units = AutoModel.from_pretrained(tmp_path / "run" / "second" / "labels" / "units")
    assert units.config.codebook_size == 5

    # What is finished stays as it is, byte for byte.
    files = [file for file in (tmp_path / "run").rglob("*.safetensors") if "final" not in str(file)]
    times = {file: file.stat().st_mtime_ns for file in files}
    pretrain(load_pretraining_recipe(str(path)))
    assert times == {file: file.stat().st_mtime_ns for file in times}


TWO_ITERATIONS = {
    "first": {"labels": {"kind": "mfcc", "num_clusters": 6}, "max_steps": 12, "learning_rate": 1e-2},
    "second": {
        "labels": {"kind": "layer", "layer": 1, "num_clusters": 5},
        "start_from": "previous",
        "max_steps": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
    },
}


def test_a_killed_command_goes_on_bit_for_bit(recipe, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: the order of a sum depends on it
    pretrain(load_pretraining_recipe(str(recipe("whole", iterations=TWO_ITERATIONS))))
    path = recipe("killed", iterations=TWO_ITERATIONS)
    process = start("-m", "speech_tokenizers", "train", path)
    name, lines = random.choice([("first", random.randint(1, 11)), ("second", random.randint(1, 7))])
    log = tmp_path / "killed" / name / "training_log.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= lines):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "final").exists()

    pretrain(load_pretraining_recipe(str(path)))
    torch.set_num_threads(threads)
    for iteration in TWO_ITERATIONS:
        whole, killed = (tmp_path / run / iteration for run in ("whole", "killed"))
        expected, found = (load_file(folder / "encoder" / "model.safetensors") for folder in (whole, killed))
        assert all(torch.equal(value, found[key]) for key, value in expected.items()), iteration
        assert log_of(killed) == log_of(whole)
        assert len(log_of(killed)) == TWO_ITERATIONS[iteration]["max_steps"]


@pytest.mark.slow
def test_two_processes_equal_one_that_takes_their_batches_in_turn(recipe, tmp_path):
    # Batches have different numbers of frames, so that it matters that the loss is a mean over all of them.
    dropout = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
    changes = {"model": {**MODEL, **dropout, "layerdrop": 0.0}, "iterations": TWO_ITERATIONS}
    main, other = run_ranks("-m", "speech_tokenizers", "train", recipe("two", **changes))
    assert main.splitlines()[-1] == f"the encoder: {tmp_path / 'two' / 'final'}"
    assert "the encoder:" not in other
    pretrain(load_pretraining_recipe(str(recipe("alone", gradient_accumulation_steps=2, **changes))))
    for iteration in TWO_ITERATIONS:
        logs = [log_of(tmp_path / run / iteration) for run in ("two", "alone")]
        for together, alone in zip(*logs, strict=True):
            assert together == pytest.approx(alone, rel=1e-3)
        weights = [load_file(tmp_path / run / iteration / "encoder" / "model.safetensors") for run in ("two", "alone")]
        for name, value in weights[1].items():
            torch.testing.assert_close(weights[0][name], value, rtol=1e-3, atol=1e-4)


def test_the_labels_may_be_a_codec_s(recipe, tiny_checkpoint, tmp_path):
    labels = {"kind": "codes", "model": str(tiny_checkpoint), "codebook": 1}
    final = pretrain(load_pretraining_recipe(str(recipe(iterations={"first": {"labels": labels, "max_steps": 2}}))))
    assert type(AutoModel.from_pretrained(final)) is HubertModel
    assert len(log_of(tmp_path / "run" / "first")) == 2


def test_the_model_learns_labels_that_depend_on_the_sound(recipe, tmp_path):
    iterations = {"first": {"labels": {"kind": "mfcc", "num_clusters": 6}, "max_steps": 150, "learning_rate": 1e-2}}
    model = {**MODEL, "layerdrop": 0.0, "hidden_dropout": 0.0, "feat_proj_dropout": 0.0}
    pretrain(load_pretraining_recipe(str(recipe(iterations=iterations, model=model, save_steps=1000))))
    losses = [entry["masked_loss"] for entry in log_of(tmp_path / "run" / "first")]
    shares = np.mean(losses[-20:]) / np.mean(losses[:5])
    assert shares < 0.8


def test_a_spectral_stem_begins_only_what_begins_from_scratch(recipe, tmp_path):
    iterations = {
        "first": {"labels": {"kind": "mfcc", "num_clusters": 6, "subtract_mean": True}, "max_steps": 1},
        "second": {"labels": {"kind": "layer", "layer": 1}, "max_steps": 1, "start_from": "previous"},
    }
    iterations["second"]["labels"]["num_clusters"] = 6
    geometry = {"conv_dim": [8, 8, 8], "conv_kernel": [240, 2, 2], "conv_stride": [80, 2, 2]}
    pretrain(load_pretraining_recipe(str(recipe(iterations=iterations, model=MODEL | geometry, stem_init="spectral"))))
    first, second = (
        load_file(tmp_path / "run" / part / "encoder" / "model.safetensors") for part in ("first", "second")
    )
    torch.manual_seed(1)  # not that of the run: the filters are the same, what mixes them is not
    expected = HubertModel(HubertConfig(**MODEL | geometry)).feature_extractor
    init_spectral_stem(expected)
    filters, mixing = (f"feature_extractor.conv_layers.{layer}.conv.weight" for layer in (0, 1))
    # A step of Adam moves each value by its learning rate, and no more.
    torch.testing.assert_close(first[filters], expected.conv_layers[0].conv.weight, rtol=0, atol=2e-3)
    torch.testing.assert_close(second[mixing], first[mixing], rtol=0, atol=2e-3)
    assert (first[mixing] - expected.conv_layers[1].conv.weight).abs().max() > 0.01


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=/nowhere"], "/nowhere: there is no such file or folder"),
        (["model.hiden_size=5"], "`model.hiden_size` is unknown; did you mean `model.hidden_size`?"),
        (["model.num_attention_heads=3"], "num_heads"),
        (["model.mask_length=0"], "mask_length"),
        (["iterations.first.max_steps=0"], "`max_steps` must be at least 1"),
        (["iterations.first.labels.kind=nothing"], "'mfcc', 'layer' or 'codes'"),
        (["iterations.first.labels={kind: layer, layer: 1}"], "has none before it"),
        (["iterations.second={max_steps: 1, labels: {kind: layer, layer: 9}}"], "must lie between 0 and 2"),
        (["iterations.first.labels.num_clusters=100000"], "`num_clusters` is 100000, but there are only"),
        (["batch_seconds=0.1"], "must hold a recording of `data.max_seconds`"),
        (["data.min_seconds=9"], "`data.min_seconds` must be positive and not above"),
        (["data.min_seconds=9", "data.max_seconds=10", "batch_seconds=20"], "Every recording is shorter than"),
        (["learning_rate=1"], "`learning_rate` is unknown"),
        (
            ["iterations.first.labels={kind: codes, model: m, subtract_mean: true}"],
            "`labels.subtract_mean` is of MFCC",
        ),
        (["stem_init=gabor"], "`stem_init` must be 'random' or 'spectral'"),
        (["stem_init=spectral"], "`conv_kernel[0]` is at least 128 samples, but it is 10"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_one_line(overrides, message, recipe, capsys):
    assert cli.main(["train", str(recipe()), *overrides]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("speech-tokenizers train: error: ")
    assert message in line


def test_a_mistake_can_be_corrected_in_the_same_folder(recipe, capsys):
    path = str(recipe(iterations={"first": {"labels": {"kind": "mfcc", "num_clusters": 6}, "max_steps": 1}}))
    for mistake in ("data.train=/nowhere", "model.num_attention_heads=3"):
        assert cli.main(["train", path, mistake]) == 2
    assert cli.main(["train", path]) == 0
    # What has begun is not turned into something else.
    capsys.readouterr()
    assert cli.main(["train", path, "model.hidden_size=32"]) == 2
    assert "was begun with other settings (`model.hidden_size` was 16 and is 32)" in capsys.readouterr().err
    assert cli.main(["train", path, "save_steps=7"]) == 0
