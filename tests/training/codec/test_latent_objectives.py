# SPDX-License-Identifier: Apache-2.0
"""Continuous tokens in training: noise that a crop determines, texts in crops, and collapse that stops the run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
import yaml

from helpers.processes import run_ranks
from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.processing.ctc_labels import CTCLabels, build_tokenizer
from speech_tokenizers.processing.timed_labels import TimedWord, read_word_times
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments, load_codec_recipe
from speech_tokenizers.training.codec.codec_building import build_model, build_objectives
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
from speech_tokenizers.training.codec.latent_arguments import LatentArguments, RecognitionArguments
from speech_tokenizers.training.codec.latent_health import CollapseGuard, LatentCollapseError, latent_health
from speech_tokenizers.training.codec.latent_objectives import (
    CropLabels,
    labels_of,
    span_ctc_loss,
)
from speech_tokenizers.training.codec.reconstruction_losses import RECONSTRUCTION_LOSSES
from speech_tokenizers.training.common.recipe_files import build_section
from speech_tokenizers.training.common.reporting import read_log


TIMINGS = {"steps_per_second", "audio_seconds_per_second", "training_seconds", "training_minutes"}
# 320 samples a latent, 6 dimensions.
TINY_RECIPE = {
    "seed": 3,
    "model": {
        "preset": "cst-fast-16khz",
        "overrides": {
            "downsampling_ratios": [4, 5, 8],
            "n_fft": 320,
            "hidden_size": 6,
            "network_hidden_size": 16,
            "encoder_hidden_size": 16,
            "decoder_hidden_size": 16,
            "encoder_num_layers": 1,
            "decoder_num_layers": 1,
            "ctc_hidden_size": 16,
            "statistics_steps": 4,
        },
    },
    "data": {"segment_seconds": 0.1, "gain_db": [-6.0, 0.0], "max_eval_seconds": 1.0},
    "loss_weights": {"mel": 15.0, "waveform": 1.0, "kl": 0.01},
    "mel_scales": [{"n_fft": 256, "hop_length": 64, "num_mels": 20}],
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3, "max_grad_norm": 1.0},
    "global_batch_size": 4,
    "max_steps": 6,
    "weight_ema_decay": 0.9,
    "logging_steps": 1,
    "eval_steps": 0,
    "save_steps": 0,
}
WITH_HEAD = {**TINY_RECIPE["loss_weights"], "latent_ctc": 1.0}


@pytest.fixture
def make_args(tmp_path):
    """Arguments of the tiny recipe with changes; sections but the losses are completed by it."""

    def make(**changes) -> CodecTrainingArguments:
        recipe = {**TINY_RECIPE, "output_dir": str(tmp_path / "run")}
        for key, value in changes.items():
            completed = isinstance(value, dict) and key in recipe and key != "loss_weights"
            recipe[key] = {**recipe[key], **value} if completed else value
        return build_section(CodecTrainingArguments, recipe, "")

    return make


@pytest.fixture(scope="module")
def spoken_folder(tmp_path_factory, recordings):
    """Recordings with texts; the first ones also have word times."""
    folder = tmp_path_factory.mktemp("spoken")
    rows, times = [], []
    for index, recording in enumerate(recordings):
        name = f"{index}.wav"
        soundfile.write(folder / name, recording, 16000)
        rows.append({"file_name": name, "text": "abba cab"})
        words = [{"word": "abba", "start": 0.02, "end": 0.1}, {"word": "cab", "start": 0.12, "end": 0.22}]
        if index < 4:
            times.append({"file_name": name, "words": words})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder.parent / "word_times.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in times), encoding="utf-8")
    return folder, path


def test_health_by_hand():
    # Two dimensions of variances 4 and 1 that do not correlate, and one that stays.
    values = torch.tensor([[2.0, 1.0, 7.0], [-2.0, 1.0, 7.0], [2.0, -1.0, 7.0], [-2.0, -1.0, 7.0]])
    health = latent_health(values[None])
    expected = math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    assert health["latent_rank"].item() == pytest.approx(expected)
    assert health["active_dimensions"] == 2
    assert health["latent_variance"].item() == pytest.approx(5 / 3)

    padded = torch.cat([values, torch.full((2, 3), 100.0)])[None]
    masked = latent_health(padded, torch.tensor([[1, 1, 1, 1, 0, 0]]))
    assert masked == health


@pytest.mark.parametrize("constant", [0.0, 3.0, -1e4])
def test_constant_latents_have_no_rank(constant):
    health = latent_health(torch.full((2, 50, 8), constant))
    assert health["latent_rank"] == health["active_dimensions"] == health["latent_variance"] == 0


def test_isotropic_latents_have_full_rank():
    latents = 1e-3 * torch.randn(4, 5000, 16, generator=torch.Generator().manual_seed(0))
    assert 15.9 < latent_health(latents)["latent_rank"] <= 16
    assert latent_health(latents)["active_dimensions"] == 0  # but they are drowned in the noise


@pytest.mark.parametrize(
    ("latents", "collapsed"),
    [
        (torch.randn(2, 100, 8, generator=torch.Generator().manual_seed(0)), False),
        (0.01 * torch.randn(2, 100, 8, generator=torch.Generator().manual_seed(0)), True),  # no dimension is active
        (torch.randn(2, 100, 1, generator=torch.Generator().manual_seed(0)).expand(2, 100, 8), True),  # rank 1
        (torch.full((2, 100, 8), torch.nan), True),
    ],
)
def test_the_guard_stops_at_collapse_after_its_grace(latents, collapsed):
    guard = CollapseGuard(LatentArguments(grace_steps=3, window_steps=2), dim=8)
    health = latent_health(torch.nan_to_num(latents)) if latents.isnan().any() else latent_health(latents)
    if latents.isnan().any():
        health = {name: value * torch.nan for name, value in health.items()}
    for _ in range(4):
        guard(health)
    if collapsed:
        with pytest.raises(LatentCollapseError, match="The latents have collapsed: over the last 2 batches"):
            guard(health)
    else:
        guard(health)


def test_frozen_statistics_tell_what_variance_is_normal():
    latents = 0.5 * torch.randn(2, 100, 8, generator=torch.Generator().manual_seed(0))  # variance 0.25
    for normal, collapsed in ((1.0, False), (4.0, True)):
        guard = CollapseGuard(LatentArguments(grace_steps=0, window_steps=1), 8, normal_variance=normal)
        if collapsed:
            with pytest.raises(LatentCollapseError, match=r"mean variance is 2.* \(at least 4.00e-01 is wanted\)"):
                guard(latent_health(latents))
        else:
            guard(latent_health(latents))


@pytest.fixture(scope="module")
def labels():
    return CTCLabels(build_tokenizer(["abc"], "character"))


def test_a_crop_has_the_words_that_lie_wholly_in_it(labels):
    words = [
        TimedWord("a", 0.5, 1.0),
        TimedWord("bb", 1.2, 2.0),
        TimedWord("c", 2.4, 2.6),
        TimedWord("abc", 3.0, 4.0),
    ]
    crops = CropLabels(labels, [words], [5.0])
    a, b, c = (labels.sequence(x)[0] for x in "abc")
    bar = labels.delimiter
    # Cuts the last word: half of the pause before it is this crop's.
    found, span = crops.of_crop(0, 1.1, 3.5)
    assert found == [b, b, bar, c]
    assert span == pytest.approx((0.0, 2.8 - 1.1))
    # Cuts the first two, and ends after the recording.
    found, span = crops.of_crop(0, 1.5, 6.0)
    assert found == [c, bar, a, b, c]
    assert span == pytest.approx((2.2 - 1.5, 5.0 - 1.5))
    assert crops.of_crop(0, 0.0, 5.0)[0] == labels.sequence("a bb c abc")
    assert crops.of_crop(0, 0.6, 1.9)[0] == []


def test_a_text_without_times_is_learnt_from_whole_recordings_alone(labels):
    crops = CropLabels(labels, ["ab", None, "a 2 b"], [1.0, 1.0, 1.0])
    assert crops.of_crop(0, 0.0, 2.0) == (labels.sequence("ab"), (0.0, 1.0))
    assert crops.of_crop(0, 0.0, 0.9)[0] == []
    assert crops.of_crop(0, 0.1, 2.0)[0] == []
    assert crops.of_crop(1, 0.0, 2.0)[0] == []
    assert crops.of_crop(2, 0.0, 2.0)[0] == []  # how is 2 spelt?


def test_the_loss_of_a_span_is_that_of_its_frames_alone():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 20, 5, generator=generator, requires_grad=True)
    labels = torch.tensor([[1, 2, 2, -100], [3, -100, -100, -100], [-100] * 4, [1, 1, 1, 1]])
    spans = torch.tensor([[0.25, 1.0], [0.0, 0.5], [0.0, 1.0], [0.0, 0.2]])  # the last has 4 frames for 4 + 3 steps
    loss = span_ctc_loss(logits, labels, spans, seconds=1.0, blank=0)
    terms = []
    for item, frames in ((0, slice(5, 20)), (1, slice(0, 10))):
        target = labels[item][labels[item] >= 0]
        part = logits[item, frames].log_softmax(-1)[:, None]
        terms.append(F.ctc_loss(part, target[None], [part.shape[0]], [len(target)], reduction="sum") / len(target))
    torch.testing.assert_close(loss, sum(terms) / 4)
    loss.backward()
    assert not logits.grad[0, :5].any()
    assert logits.grad[0, 5:].any()
    assert not logits.grad[2:].any()
    assert logits.grad.isfinite().all()


def test_recipes_with_labels_get_a_head_that_fits_the_texts(make_args, spoken_folder):
    args = make_args(data={"train": str(spoken_folder[0])}, recognition={"unit": "character"})
    model = build_model(args)
    assert isinstance(model, CSTModel)
    assert model.config.ctc_labels == ["<pad>", "<unk>", "|", "a", "b", "c"]
    assert labels_of(model.config.ctc_labels, "character").sequence("AB c") == [3, 4, 2, 5]
    with pytest.raises(ValueError, match="`ctc_labels` must be"):
        labels_of(["<pad>", "<unk>", "|", "c", "a"], "character")


def test_word_times_of_other_recordings_are_refused(spoken_folder):
    _, path = spoken_folder
    assert read_word_times(path, ["x.wav", "2.wav"])[1] == [TimedWord("abba", 0.02, 0.1), TimedWord("cab", 0.12, 0.22)]
    with pytest.raises(ValueError, match=r"names none of the recordings, such as 'x.wav'"):
        read_word_times(path, ["x.wav"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unit": "word"}, "`unit` must be 'character' or 'phone'"),
        ({"head": False}, "needs `head=true`, a `recognizer`, or both"),
        ({"unit": "phone", "word_times": "x"}, "`word_times` hold words"),
    ],
)
def test_contradictory_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RecognitionArguments(**fields)


def test_a_stream_has_no_texts(make_trainer, spoken_folder):
    changes = {"loss_weights": WITH_HEAD}
    trainer = make_trainer(**changes, data={"train": str(spoken_folder[0])}, recognition={})
    with pytest.raises(ValueError, match="Texts are learnt from decoded recordings"):
        trainer.train()


def losses_of(folder):
    entries = read_log(folder / "training_log.jsonl")
    return [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in entries]


def test_noise_depends_on_the_crop_alone(make_trainer):
    first, second = make_trainer(), make_trainer(global_batch_size=2)
    for trainer in (first, second):
        trainer.objectives[0].prepare(None, trainer.unwrapped_model, trainer.accelerator, None)
    torch.rand(3)
    one, two = (trainer.objectives[0].targets(4, 160, 1600)["noise"] for trainer in (first, second))
    assert one.shape == (5, 6)
    assert torch.equal(one, two)
    assert not torch.equal(one, first.objectives[0].targets(4, 161, 1600)["noise"])


def test_training_lowers_the_losses_and_reports_the_latents(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=60, optimizer={"learning_rate": 3e-3}, logging_steps=10)
    trainer.train()
    log = losses_of(tmp_path / "run")
    assert log[-1]["mel"] < 0.7 * log[0]["mel"]
    assert {"kl", "latent_rank", "active_dimensions", "latent_variance"} <= log[-1].keys()
    assert 1 <= log[-1]["latent_rank"] <= 6
    values = trainer.evaluate()
    latents = {"eval_latent_participation_ratio", "eval_latent_live_directions"}
    assert {"eval_mel", "eval_waveform", "eval_kl", *latents} == values.keys()
    loaded = CSTModel.from_pretrained(trainer.save_model())
    assert loaded.statistics.num_updates == 4


def test_resumed_training_equals_an_uninterrupted_one(make_trainer, tmp_path):
    changes = {"max_steps": 8}
    make_trainer(**changes, output_dir=str(tmp_path / "whole")).train()
    make_trainer(**changes, output_dir=str(tmp_path / "parts"), save_steps=3).train()
    expected = losses_of(tmp_path / "whole")
    resumed = make_trainer(**changes, output_dir=str(tmp_path / "parts"))
    torch.rand(7)
    resumed.train(str(tmp_path / "parts" / "checkpoint-00000006"))
    assert losses_of(tmp_path / "parts") == expected


def test_accumulated_micro_batches_equal_one_batch(make_trainer):
    weights = []
    for accumulation in (1, 2):
        trainer = make_trainer(gradient_accumulation_steps=accumulation, weight_ema_decay=None)
        trainer.train()
        weights.append(dict(trainer.unwrapped_model.named_parameters()))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=2e-5, msg=name)


def test_collapse_stops_the_run(make_trainer):
    # A noise that drowns everything and a divergence that outweighs the reconstruction.
    trainer = make_trainer(
        loss_weights={"mel": 0.0, "waveform": 0.0, "kl": 1.0},
        latents={"grace_steps": 60, "window_steps": 20},
        optimizer={"learning_rate": 1e-2},
        max_steps=200,
        weight_ema_decay=None,
    )
    with pytest.raises(LatentCollapseError, match="0.0 of 6 dimensions are active"):
        trainer.train()
    assert 60 < trainer.step < 200


def test_the_head_learns_what_is_said(make_args, spoken_folder, tmp_path):
    folder, times = spoken_folder
    recipe = make_args(
        loss_weights={"mel": 1.0, "waveform": 0.0, "kl": 0.0, "latent_ctc": 1.0},
        data={"train": str(folder), "segment_seconds": 0.3, "cache_dir": str(tmp_path / "cache")},
        recognition={"word_times": str(times)},
        optimizer={"learning_rate": 5e-3},
        max_steps=40,
        logging_steps=5,
    ).to_dict()
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    trainer = train_from_recipe(str(path))
    log = losses_of(trainer.output_dir)
    assert log[-1]["latent_ctc"] < 0.7 * log[0]["latent_ctc"]
    assert math.isfinite(log[-1]["latent_ctc"])


@pytest.mark.parametrize("name", ["cst_16khz", "cst_16khz_cpu"])
def test_the_recipes_name_exactly_their_losses(name):
    args = load_codec_recipe(name)
    objectives = build_objectives(args)
    names = {"mel", "waveform", "kl", *(loss for objective in objectives for loss in objective.loss_names)}
    adversarial = {"adversarial", "feature_matching"} if args.adversarial.discriminators else set()
    assert names | adversarial <= set(args.loss_weights) <= names | adversarial | set(RECONSTRUCTION_LOSSES)
    assert args.model.overrides["statistics_steps"] == args.max_steps


def test_crops_of_recordings_have_labels(make_trainer, spoken_folder, tmp_path):
    folder, times = spoken_folder
    changes = {"loss_weights": WITH_HEAD}
    trainer = make_trainer(
        train=None,
        **changes,
        data={"train": str(folder), "eval": str(folder), "cache_dir": str(tmp_path / "cache")},
        recognition={"word_times": str(times)},
    )
    trainer.data.find()
    recognition = trainer.objectives[1]
    recognition.prepare(trainer.data.train, trainer.unwrapped_model, trainer.accelerator, tmp_path)
    with_times = trainer.data.train.names.index("1.wav")
    found = recognition.targets(with_times, round(0.11 * 16000), round(0.12 * 16000))
    labels = found["latent_ctc_labels"]
    assert labels[labels >= 0].tolist() == [5, 3, 4]  # cab
    assert len(labels) == 6
    np.testing.assert_allclose(found["latent_ctc_span"], [0.0, 0.12], atol=1e-6)
    without = trainer.data.train.names.index("5.wav")
    assert (recognition.targets(without, 0, 1600)["latent_ctc_labels"] == -100).all()
    whole = recognition.targets(without, 0, 16000)["latent_ctc_labels"]
    assert whole[whole >= 0].tolist() == [3, 4, 4, 3, 2, 5, 3, 4]


@pytest.mark.slow
def test_two_processes_equal_one(make_args, spoken_folder, tmp_path):
    # Noise, statistics and texts take part.
    folder, times = spoken_folder
    data = {"train": str(folder), "segment_seconds": 0.3, "cache_dir": str(tmp_path / "cache")}
    recipes = {}
    for name in ("alone", "two"):
        recipe = make_args(
            loss_weights=WITH_HEAD,
            data=data,
            recognition={"word_times": str(times)},
            output_dir=str(tmp_path / name),
            optimizer={"learning_rate": 1e-4},
        ).to_dict()
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(yaml.safe_dump(recipe), encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train_from_recipe(str(recipes["alone"]))
    torch.set_num_threads(threads)
    run_ranks(Path(__file__).with_name("train_and_dump.py"), recipes["two"], tmp_path / "state")
    states = [torch.load(tmp_path / f"state.{rank}", weights_only=True) for rank in range(2)]
    assert [state["world_size"] for state in states] == [2, 2]
    for name, value in alone.unwrapped_model.state_dict().items():
        assert torch.equal(states[0]["codec"][name], states[1]["codec"][name]), name
        torch.testing.assert_close(states[0]["codec"][name], value, atol=1e-5, rtol=1e-5, msg=name)
