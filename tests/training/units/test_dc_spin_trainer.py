# SPDX-License-Identifier: Apache-2.0
"""Training of DC-Spin: what it is fed, its schedule, that it learns, and that kills and processes change nothing."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from scipy import signal
from transformers import AutoFeatureExtractor, AutoModel, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from helpers.processes import run_ranks, start
from speech_tokenizers import load
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.processing.speaker_perturbation import SpeakerPerturbation
from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.common.reporting import read_log
from speech_tokenizers.training.recognition.ctc_recipe import CTCRecipeArguments
from speech_tokenizers.training.units.dc_spin_trainer import (
    DCSpinTrainer,
    DCSpinTrainingArguments,
    build_model,
    train_dc_spin,
    warmup_decay_rate,
)
from speech_tokenizers.training.units.hubert_pretraining import load_pretraining_recipe, pretrain
from speech_tokenizers.training.units.perturbed_views import PerturbedViewsDataset, pad_views


PROGRAM = Path(__file__).with_name("train_dc_spin.py")
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """An untrained HuBERT of three layers with 50 frames a second and dropout."""
    folder = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HubertModel(HubertConfig(**TINY)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path, audio_folder, encoder):
    """A recipe of tiny units as a YAML file, with changes."""

    def write(name="run", **changes) -> Path:
        contents = {
            "trainer": "dc_spin",
            "output_dir": str(tmp_path / name),
            "model": {
                "encoder": str(encoder),
                "encoder_layer": 2,
                "trainable_layers": 1,
                "projection_dim": 8,
                "primary_codebook_size": 6,
                "auxiliary_codebook_size": 10,
            },
            "data": {
                "train": str(audio_folder),
                "cache_dir": str(tmp_path / "audio"),
                "min_seconds": 0.2,
                "max_seconds": 0.4,
            },
            "perturbation": {},
            "batch_seconds": 1.2,
            "max_steps": 4,
            "warmup_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 2,
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(contents), encoding="utf-8")
        return path

    return write


def arguments(path: Path, *overrides: str) -> DCSpinTrainingArguments:
    return load_recipe(str(path), overrides, DCSpinTrainingArguments)


def log_of(folder: Path) -> list[dict]:
    entries = read_log(folder / "training_log.jsonl")
    return [{k: v for k, v in entry.items() if k != "audio_seconds_per_second"} for entry in entries]


@pytest.fixture
def dataset(audio_folder, tmp_path):
    decoded = decode_all(load_recordings(str(audio_folder)), 16000, tmp_path / "audio", show_progress=False)
    return PerturbedViewsDataset(decoded, SpeakerPerturbation(), 0.3, 0.35)


@pytest.mark.parametrize(("warmup_steps", "max_steps"), [(2500, 5000), (20, 100)])
def test_the_learning_rate_is_that_of_spin(warmup_steps, max_steps):
    def rate(step):
        return warmup_decay_rate(step, 1e-4, warmup_steps, max_steps, 1e-6, 1e-6)

    # Values that Spin's scheduler gave to Adam.
    expected = {2500: {0: 1e-6, 1: 1.0396e-6, 2: 1.0792e-6, 2500: 1e-4, 4998: 1.0396158463385355e-6, 4999: 1e-6}}
    expected[20] = {0: 1e-6, 1: 5.95e-6, 2: 1.09e-5, 20: 1e-4, 98: 2.2531645569620253e-6, 99: 1e-6}
    for step, value in expected[warmup_steps].items():
        assert rate(step) == pytest.approx(value, rel=1e-6)
    assert max(map(rate, range(max_steps))) == rate(warmup_steps)
    assert warmup_decay_rate(0, 1e-4, 0, 10, 1e-6, 1e-6) == 1e-4


def test_views_are_one_moment_in_two_voices(dataset):
    starts = set()
    for index in range(6 * len(dataset)):
        item = dataset[index]
        recording = dataset.recordings[dataset.recording_of_item[index % len(dataset)]]
        whole = torch.from_numpy(recording.astype(np.float32)) / np.float32(32767)
        view, other = item["input_values"], item["perturbed_values"]
        assert len(view) == dataset.lengths[index % len(dataset)]
        assert view.shape == other.shape
        matches = [s for s in range(len(whole) - len(view) + 1) if torch.equal(whole[s : s + 8], view[:8])]
        assert any(torch.equal(whole[s : s + len(view)], view) for s in matches)
        starts.add(matches[0])
        assert not torch.allclose(view, other, atol=1e-3)
    assert len(starts) > 3


def test_an_item_depends_on_its_index_alone(dataset):
    first = dataset[2]
    np.random.seed(1)
    dataset[1]
    assert all(torch.equal(value, dataset[2][name]) for name, value in first.items())
    later = dataset[2 + len(dataset)]
    assert not torch.equal(first["perturbed_values"], later["perturbed_values"])


def test_padding_is_masked(dataset):
    items = [dataset[index] for index in range(len(dataset))]
    batch = pad_views(items)
    longest = max(len(item["input_values"]) for item in items)
    assert batch["input_values"].shape == batch["perturbed_values"].shape == (len(items), 1, longest)
    for row, item in enumerate(items):
        length = len(item["input_values"])
        assert batch["padding_mask"][row].tolist() == [1] * length + [0] * (longest - length)
        assert torch.equal(batch["perturbed_values"][row, 0, :length], item["perturbed_values"])
        assert not batch["input_values"][row, 0, length:].any()


def test_workers_change_nothing(recipe, tmp_path):
    for workers in (0, 2):
        train_dc_spin(arguments(recipe(f"run{workers}"), f"num_workers={workers}", "max_steps=2"))
    assert log_of(tmp_path / "run0") == log_of(tmp_path / "run2")


@pytest.fixture
def trainer(recipe, dataset):
    args = arguments(recipe(), "save_steps=1000")
    return DCSpinTrainer(build_model(args), args, dataset)


def test_only_what_should_be_is_trained(trainer):
    model = trainer.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed <= trained
    assert {"primary.codebook", "auxiliary.codebook", "primary_projection.weight"} <= changed
    # The second of the layers, which is the last that is read.
    layers = {name.split("layers.")[-1].split(".")[0] for name in changed if "encoder.encoder.layers" in name}
    assert layers == {"1"}


def test_the_optimizer_is_adam_and_codes_have_unit_length_before_its_update(trainer):
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["weight_decay"] == 1e-6
    codebook = trainer.model.primary.codebook
    before, after = [], []
    optimizer.register_step_pre_hook(lambda *_: before.append(codebook.detach().norm(dim=-1)))
    optimizer.register_step_post_hook(lambda *_: after.append(codebook.detach().norm(dim=-1)))
    trainer.train()
    assert len(before) == len(after) == 4
    for norms in before:
        torch.testing.assert_close(norms, torch.ones(6))
    # An update moves them off a little.
    assert 1e-4 < max((norms - 1).abs().max() for norms in after) < 0.1


def test_the_final_folder_is_a_complete_model_and_is_kept(recipe, tmp_path, audio_folder):
    path = recipe()
    final = train_dc_spin(arguments(path))
    model, extractor = AutoModel.from_pretrained(final), AutoFeatureExtractor.from_pretrained(final)
    assert type(model) is DCSpinModel
    inputs = extractor(np.zeros(8000, np.float32), sampling_rate=16000, return_tensors="pt")
    units = model.encode(**inputs).audio_codes
    assert units.shape == (1, 1, 24)
    torch.testing.assert_close(model.primary.codebook.detach().norm(dim=-1), torch.ones(6))
    assert (tmp_path / "run" / "loss_curves.png").is_file()
    names = {"loss", "primary_accuracy", "auxiliary_code_perplexity", "primary_swapped_prediction_loss", "grad_norm"}
    assert all(names <= set(entry) for entry in log_of(tmp_path / "run"))
    assert [entry["step"] for entry in log_of(tmp_path / "run")] == [1, 2, 3, 4]

    time_of = (final / "model.safetensors").stat().st_mtime_ns
    train_dc_spin(arguments(path))
    assert (final / "model.safetensors").stat().st_mtime_ns == time_of
    with pytest.raises(ValueError, match="begun with other settings"):
        train_dc_spin(arguments(path, "learning_rate=1"))


def test_a_checkpoint_of_a_run_loads_with_its_feature_extractor(recipe, tmp_path):
    train_dc_spin(arguments(recipe(save_steps=2)))
    checkpoints = sorted((tmp_path / "run").glob("**/checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        model, extractor = load(checkpoint)
        assert type(model) is DCSpinModel
        assert extractor.sampling_rate == model.sampling_rate


@pytest.mark.slow
def test_it_learns(recipe, tmp_path):
    # Sounds of six bands of noise, which an equalizer changes and does not hide.
    folder, generator = tmp_path / "bands", np.random.default_rng(0)
    folder.mkdir()
    for number in range(6):
        parts = []
        for _ in range(10):
            low = (100, 400, 900, 1600, 2800, 4500)[generator.integers(6)]
            band = signal.butter(4, [low, 1.5 * low], "band", fs=16000, output="sos")
            parts.append(signal.sosfilt(band, generator.standard_normal(1600)))
        sounds = np.concatenate(parts)
        soundfile.write(folder / f"{number}.wav", sounds / np.std(sounds) / 15, 16000)
    data = {"train": str(folder), "min_seconds": 0.2, "max_seconds": 1.0}
    changes = {"max_steps": 60, "warmup_steps": 5, "learning_rate": 1e-3, "save_steps": 100}
    train_dc_spin(arguments(recipe(data=data, batch_seconds=6.0, **changes)))
    losses = [entry["loss"] for entry in log_of(tmp_path / "run")]
    assert losses[0] > 5
    # Who knows nothing of the other view predicts all codes alike, as they are used alike.
    assert np.mean(losses[-5:]) < np.log(6) + np.log(10) - 0.2


def test_resuming_equals_going_through(recipe, tmp_path):
    # With dropout, whose random numbers are part of what goes on.
    train_dc_spin(arguments(recipe("whole", save_steps=100)))
    path = recipe("halves")
    halves = arguments(path)
    train = DCSpinTrainer.train

    class Killed(Exception):
        pass

    def killed(self, *args, **kwargs):
        callback = self.callback_handler.callbacks[-1]
        begin = type(callback).on_pre_optimizer_step

        def stop(self_, args_, state, control, **kwargs_):
            if state.global_step == 2:
                raise Killed
            return begin(self_, args_, state, control, **kwargs_)

        type(callback).on_pre_optimizer_step = stop
        try:
            return train(self, *args, **kwargs)
        finally:
            type(callback).on_pre_optimizer_step = begin

    DCSpinTrainer.train = killed
    try:
        with pytest.raises(Killed):
            train_dc_spin(halves)
    finally:
        DCSpinTrainer.train = train
    assert (tmp_path / "halves" / "checkpoints" / "checkpoint-2").is_dir()
    train_dc_spin(halves)
    assert log_of(tmp_path / "halves") == log_of(tmp_path / "whole")
    whole, resumed = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(recipe, tmp_path):
    path = recipe("killed", max_steps=40, save_steps=3)
    process = start(PROGRAM, path)
    log = tmp_path / "killed" / "training_log.jsonl"
    kill_after, deadline = random.Random(time.time_ns()).randint(7, 25), time.monotonic() + 300
    while not (log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= kill_after):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    for again in (["killed"], ["whole"]):
        process = start(PROGRAM, recipe(*again, max_steps=40, save_steps=3))
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    whole, resumed = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.slow
def test_two_processes_equal_one(recipe, tmp_path, encoder):
    # Dropout draws other numbers for other shapes, so there is none. Both take their part of the same batches.
    model = HubertModel.from_pretrained(
        encoder, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0
    )
    model.save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "encoder")
    changes = [f"model.encoder={tmp_path / 'encoder'}", "gradient_accumulation_steps=2", "learning_rate=1e-3"]
    train_dc_spin(arguments(recipe("alone"), *changes))

    run_ranks(PROGRAM, recipe("two"), *changes)
    alone, two = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("alone", "two"))
    for name, value in alone.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
    for expected, shared in zip(log_of(tmp_path / "alone"), log_of(tmp_path / "two"), strict=True):
        assert shared["step"] == expected["step"]
        for name in ("primary_swapped_prediction_loss", "auxiliary_swapped_prediction_loss", "grad_norm"):
            assert shared[name] == pytest.approx(expected[name], rel=1e-3), (name, expected["step"])


def test_spin_hubert_learns_the_units(recipe, tmp_path, audio_folder):
    # Stage I: pre-training on the codes of a trained model, frame by frame.
    units = train_dc_spin(arguments(recipe()))
    pretraining = {
        "output_dir": str(tmp_path / "spin-hubert"),
        "model": {**TINY, "final_dim": 8, "mask_length": 3},
        "data": {
            "train": str(audio_folder),
            "cache_dir": str(tmp_path / "audio"),
            "min_seconds": 0.2,
            "max_seconds": 0.4,
        },
        "iterations": {"spin": {"labels": {"kind": "codes", "model": str(units)}, "max_steps": 2}},
        "batch_seconds": 1.2,
    }
    path = tmp_path / "spin-hubert.yaml"
    path.write_text(yaml.safe_dump(pretraining), encoding="utf-8")
    final = pretrain(load_pretraining_recipe(str(path)))
    assert type(AutoModel.from_pretrained(final)) is HubertModel

    # As many labels as frames, and those that the model gives the recording alone.
    from speech_tokenizers.training.units.pseudo_labels import PseudoLabels

    [index] = (tmp_path / "spin-hubert" / "spin" / "labels").glob("*.json")
    labels = PseudoLabels(index)
    assert (labels.label_rate, labels.num_labels) == (50.0, 6)
    recordings = decode_all(load_recordings(str(audio_folder)), 16000, tmp_path / "audio", show_progress=False)
    model = DCSpinModel.from_pretrained(units).eval()
    for number, recording in enumerate(recordings):
        waveform = torch.from_numpy(recording.astype(np.float32) / np.float32(32767))
        assert labels[number].tolist() == model.encode(waveform[None, None]).audio_codes[0, 0].tolist()

    # And its encoder begins another training of units.
    again = train_dc_spin(arguments(recipe("again"), f"model.encoder={final}", "max_steps=1"))
    assert AutoModel.from_pretrained(again).config.codebook_size == 6


@pytest.mark.parametrize("name", ["dc_spin_16khz", "dc_spin_small_16khz"])
def test_recipes_of_the_package_are_read(name):
    args = load_recipe(name, ["data.train=x", "model.encoder=y"], DCSpinTrainingArguments)
    assert args.model["encoder"] == "y"
    # Sinkhorn should have more frames than codes.
    assert args.batch_seconds * 50 > args.model["auxiliary_codebook_size"]


def test_recipes_of_the_other_stages_are_read():
    args = load_pretraining_recipe("spin_hubert_16khz", ["data.train=x", "iterations.spin.labels.model=y"])
    assert args.iterations["spin"].labels.kind == "codes"
    with pytest.raises(ValueError, match="needs `labels.model`"):
        load_pretraining_recipe("spin_hubert_16khz", ["data.train=x"])
    args = load_recipe("spin_ctc_16khz", ["data.train=x"], CTCRecipeArguments)
    assert args.unit == "phone"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.primary_codebok_size=3", "did you mean `model.primary_codebook_size`"),
        ("model.encoder=null", "lacks `model.encoder`"),
        ("model.encoder_layer=9", "`encoder_layer` must lie between"),
        ("max_steps=0", "`max_steps` must be at least 1"),
        ("batch_seconds=0.1", "must hold a recording of `data.max_seconds`"),
        ("perturbation.backend=world", "`backend` must be one of"),
        ("perturbation.f0_ratio=[2.0, 1.0]", "`f0_ratio` must be a pair"),
    ],
)
def test_what_cannot_be_is_refused(recipe, override, message):
    with pytest.raises(ValueError, match=message):
        train_dc_spin(arguments(recipe(), override))


def test_recordings_that_are_too_short_are_refused(recipe):
    with pytest.raises(ValueError, match="Every recording is shorter"):
        train_dc_spin(arguments(recipe(), "data.min_seconds=2", "data.max_seconds=2", "batch_seconds=2"))
