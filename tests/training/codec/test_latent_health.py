# SPDX-License-Identifier: Apache-2.0
"""What is measured of latents against values by hand, and that revival and a late quantizer do what they promise."""

import math

import pytest
import torch
from torch.nn.utils import parametrize

from speech_tokenizers.modeling.configuration_dm_codec import DMCodecConfig
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.modeling.vector_quantization import kmeans
from speech_tokenizers.training.codec.arguments import DistillationArguments, SpeechTeacherArguments
from speech_tokenizers.training.codec.codec_building import build_model
from speech_tokenizers.training.codec.codec_trainer import CodecTrainer
from speech_tokenizers.training.codec.decorrelation import decorrelation_loss
from speech_tokenizers.training.codec.distillation import Distillation
from speech_tokenizers.training.codec.latent_arguments import LatentHealthArguments
from speech_tokenizers.training.codec.latent_health import (
    LatentMoments,
    LatentReport,
    collapse_warning,
    effective_rank,
    live_directions,
    participation_ratio,
)
from speech_tokenizers.training.codec.latent_revival import hidden_and_latents, revive_latents
from speech_tokenizers.training.codec.latent_schedule import LatentSchedule
from speech_tokenizers.training.common.reporting import read_log


TIMINGS = {"steps_per_second", "audio_seconds_per_second", "training_seconds", "training_minutes"}
# 100 frames a second, 8 latent dimensions, 24 channels before them, a batch of 4 crops of 10 frames.
SMALL = {
    "adversarial": {"discriminators": {}},
    "loss_weights": {"mel": 1.0, "waveform": 1.0, "commitment": 0.1},
    "model": {"overrides": {"encoder_hidden_size": 24, "hidden_size": 8}},
}
NETWORKS = {
    "stft": {"encoder_type": "stft", "decoder_type": "istft"},
    "seanet": {"encoder_type": "seanet", "decoder_type": "seanet", "encoder_lstm": "none", "decoder_lstm": "none"},
    "causal seanet": {"encoder_type": "seanet", "decoder_type": "seanet", "causal": True, "use_weight_norm": False},
}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def losses_of(folder):
    entries = read_log(folder / "training_log.jsonl")
    return [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in entries]


def small_codec(model_class=RVQCodecModel, config_class=RVQCodecConfig, **fields):
    config = config_class(
        **{
            "downsampling_ratios": [4, 5, 8],
            "num_filters": 4,
            "hidden_size": 8,
            "encoder_hidden_size": 24,
            "decoder_hidden_size": 16,
            "encoder_num_layers": 1,
            "decoder_num_layers": 1,
            "num_quantizers": 2,
            "codebook_size": 16,
            "kmeans_iterations": 3,
            **fields,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model_class(config).eval()


@torch.no_grad()
def collapse(model, rank: int = 3) -> None:
    """Let the latents have this rank, offset included."""
    conv = model.encoder.layers[-1].conv
    basis = torch.linalg.qr(gaussian(8, rank))[0]
    weight, bias = torch.einsum("de,eck->dck", basis @ basis.T, conv.weight), basis @ gaussian(rank, seed=2)
    if parametrize.is_parametrized(conv, "weight"):
        conv.weight = weight
    else:
        conv.weight.copy_(weight)
    conv.bias.copy_(bias)


# Measures


def test_participation_ratio_by_hand():
    # Variances 4 and 1 without correlation, and a dimension that stays: (4 + 1)^2 / (16 + 1).
    values = torch.tensor([[2.0, 1.0, 7.0], [-2.0, 1.0, 7.0], [2.0, -1.0, 7.0], [-2.0, -1.0, 7.0]])
    covariance = LatentMoments.of(values).covariance
    assert participation_ratio(covariance).item() == pytest.approx(25 / 17)
    assert live_directions(covariance) == 2
    rotation = torch.linalg.qr(gaussian(3, 3))[0]
    assert participation_ratio(LatentMoments.of(values @ rotation).covariance).item() == pytest.approx(25 / 17)


def test_latents_of_rank_three_have_three_live_directions():
    latents = gaussian(2, 500, 3) @ gaussian(3, 16, seed=1) + 5
    covariance = LatentMoments.of(latents).covariance
    assert live_directions(covariance) == 3
    assert participation_ratio(covariance) <= 3
    just_dead = torch.diag(torch.tensor([1.0, 1.1e-3, 0.9e-3]))
    assert live_directions(just_dead) == 2


@pytest.mark.parametrize("constant", [0.0, 3.3, -1e4])
def test_constant_latents_have_no_directions(constant):
    covariance = LatentMoments.of(torch.full((50, 8), constant)).covariance
    assert live_directions(covariance) == participation_ratio(covariance) == effective_rank(covariance) == 0


def test_moments_of_parts_are_those_of_the_whole():
    latents, mask = 100 + gaussian(6, 50, 8), (gaussian(6, 50, seed=1) > 0).long()
    parts = [LatentMoments.of(latents[i], mask[i]) for i in range(6)]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.plus(part)
    rows = latents[mask.bool()].double()
    assert joined.count == len(rows)
    torch.testing.assert_close(joined.covariance, torch.cov(rows.T, correction=0))
    for one, other in zip(joined, LatentMoments.of(latents, mask), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-9)


def test_reports_of_two_shards_add_up_to_that_of_all_recordings():
    recordings = [gaussian(1, 30 + i, 8, seed=i) for i in range(5)]
    stages = [[0.5 * latents, 0.25 * latents] for latents in recordings]
    whole, *shards = LatentReport(), LatentReport(), LatentReport(), LatentReport()
    for i, latents in enumerate(recordings):
        whole.add(latents, latents, stages[i])
        shards[i % 2].add(latents, latents, stages[i])  # the third process has none
    joined = LatentReport()
    for shard in reversed(shards):
        joined.merge(shard)
    assert joined.values() == pytest.approx(whole.values(), rel=1e-12)


def test_variance_left_by_hand():
    latents = torch.tensor([[[1.0, 3.0], [-1.0, 3.0], [1.0, -3.0], [-1.0, -3.0]]])  # variance 1 + 9
    first = torch.tensor([[[0.0, 3.0], [0.0, 3.0], [0.0, -3.0], [0.0, -3.0]]])  # leaves 1
    second = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])  # leaves half of that
    report = LatentReport()
    report.add(latents, latents, [first, second])
    values = report.values()
    assert values["variance_left_1"] == pytest.approx(0.1)
    assert values["variance_left_2"] == pytest.approx(0.05)
    assert LatentReport().values() == {}


def test_latents_that_are_not_finite_count_as_collapsed():
    report = LatentReport()
    report.add(torch.full((1, 20, 8), torch.nan), torch.full((1, 20, 8), torch.nan))
    values = report.values()
    assert math.isnan(values["latent_live_directions"])
    assert "nan of 8 directions are live" in collapse_warning(values, 0.5, 8)


def test_evaluation_tells_of_latents_and_warns_of_collapse(make_trainer, capsys):
    still = {"learning_rate": 1e-9}
    trainer = make_trainer(**SMALL, max_steps=1, eval_steps=1, optimizer=still, latent_health={"kmeans_frames": 200})
    collapse(trainer.model)
    trainer.train()
    text = capsys.readouterr()
    assert "The latents have collapsed: 3 of 8 directions are live (at least 4 are wanted)" in text.out + text.err
    measured = next(entry for entry in read_log(trainer.output_dir / "training_log.jsonl") if "eval_mel" in entry)
    assert measured["eval_latent_live_directions"] == 3
    assert 1 <= measured["eval_latent_participation_ratio"] <= 3
    assert 0 < measured["eval_variance_left_2"] < measured["eval_variance_left_1"] < 1
    assert measured["eval_mel_at_1"] != measured["eval_mel"]
    assert "eval_mel_at_2" not in measured  # that is all of them
    assert "revival_steps" in read_log(trainer.output_dir / "training_log.jsonl")[-1]["warning"]


@pytest.mark.parametrize(("least", "warns"), [(0.5, True), (0.375, False), (0.0, False)])
def test_the_warning_can_be_set_and_switched_off(least, warns):
    found = collapse_warning({"latent_live_directions": 3.0}, least, 8)
    assert bool(found) is warns
    assert collapse_warning({"mel": 1.0}, 1.0, 8) == ""


# Revival


@pytest.mark.parametrize("networks", NETWORKS)
def test_revival_keeps_what_the_decoder_computes_and_makes_all_directions_live(networks, recordings):
    model = small_codec(**NETWORKS[networks])
    collapse(model)
    batch = torch.stack([torch.from_numpy(recording[:3200]) for recording in recordings]).unsqueeze(1)
    with torch.no_grad():
        before = model(batch, num_quantizers=0)
        old = hidden_and_latents(model, batch)
        num_live, changed = revive_latents(model, LatentMoments.of(old), 1e-3)
        after = model(batch, num_quantizers=0)
        assert num_live == 3
        assert {id(p) for p in changed} == {
            id(p) for layer in (model.encoder.layers[-1], model.decoder.layers[0]) for p in layer.parameters()
        }
    torch.testing.assert_close(after.audio_values, before.audio_values, rtol=0, atol=1e-5)
    covariance = LatentMoments.of(after.latents).covariance
    assert live_directions(covariance) == 8
    # Uncorrelated, the largest of unit variance, the new ones around 0.
    torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), rtol=0, atol=1e-4)
    assert covariance[0, 0].item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(after.latents.mean((0, 1))[3:], torch.zeros(5), rtol=0, atol=1e-4)
    weight = model.decoder.layers[0].conv.weight
    assert not weight[:, 3:].any()
    assert weight[:, :3].any()


def test_the_mean_of_dead_directions_moves_into_the_decoder_s_bias(recordings):
    model = small_codec(**NETWORKS["stft"])
    collapse(model)
    with torch.no_grad():
        model.encoder.layers[-1].conv.bias.copy_(gaussian(8, seed=7))  # out of the live directions
    batch = torch.from_numpy(recordings[0][:3200])[None, None]
    with torch.no_grad():
        before, old = model.decoder.layers[0](model.encoder(batch)), hidden_and_latents(model, batch)
        revive_latents(model, LatentMoments.of(old), 1e-3)
        after = model.decoder.layers[0](model.encoder(batch))
    inside = slice(3, -3)  # its kernel of 7 sees no padding there
    torch.testing.assert_close(after[..., inside], before[..., inside], rtol=0, atol=1e-5)


def test_nothing_is_revived_where_all_directions_are_live(recordings):
    model = small_codec(**NETWORKS["stft"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = LatentMoments(torch.tensor(100.0), torch.zeros(32), 100 * torch.eye(32)).covariance
    assert live_directions(moments) == 32
    moments = LatentMoments(*(t.double() for t in (torch.tensor(100.0), torch.zeros(32), 100 * torch.eye(32))))
    assert revive_latents(model, moments, 1e-3) == (8, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stage", [1, "sum"])
def test_projections_to_teachers_change_with_the_latents(stage, recordings):
    model = small_codec(DMCodecModel, DMCodecConfig, **NETWORKS["stft"], semantic_dimension=5, semantic_stage=stage)
    collapse(model)
    with torch.no_grad():
        model.encoder.layers[-1].conv.bias.copy_(gaussian(8, seed=7))
        batch = torch.from_numpy(recordings[0][:3200])[None, None]
        old = hidden_and_latents(model, batch)
        before = model.semantic_projection(model.encoder(batch).transpose(1, 2))
        revive_latents(model, LatentMoments.of(old), 1e-3)
        after = model.semantic_projection(model.encoder(batch).transpose(1, 2))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_a_run_that_resumes_at_a_revival_equals_an_uninterrupted_one(make_trainer, tmp_path):
    changes = {
        **SMALL,
        "max_steps": 8,
        "eval_steps": 4,
        "latent_health": {"revival_steps": [4], "revival_seconds": 1.0, "kmeans_frames": 100, "live_threshold": 0.5},
    }
    whole = make_trainer(**changes, output_dir=str(tmp_path / "whole"))
    whole.train()
    assert whole.weight_average.num_updates == 4
    assert whole.optimizer.state[whole.unwrapped_model.encoder.layers[-1].conv.bias]["step"] == 4
    make_trainer(**changes, output_dir=str(tmp_path / "parts"), save_steps=4).train()
    resumed = make_trainer(**changes, output_dir=str(tmp_path / "parts"))
    torch.rand(7)
    resumed.train(str(tmp_path / "parts" / "checkpoint-00000004"))
    # The evaluation at step 4 came after the checkpoint and was cut off with what followed.
    assert losses_of(tmp_path / "parts")[-4:] == losses_of(tmp_path / "whole")[-4:]
    for name, value in whole.unwrapped_model.state_dict().items():
        assert torch.equal(resumed.unwrapped_model.state_dict()[name], value), name
    for name, value in whole.weight_average.averages.items():
        assert torch.equal(resumed.weight_average.averages[name], value), name


def test_revival_begins_anew_with_moments_and_averages(make_trainer):
    health = {"revival_steps": [3], "revival_seconds": 1.0, "live_threshold": 0.5}
    trainer = make_trainer(**SMALL, max_steps=4, latent_health=health)
    trainer.train()
    model = trainer.unwrapped_model
    changed = {*model.encoder.layers[-1].parameters(), *model.decoder.layers[0].parameters()}
    steps = {parameter: int(trainer.optimizer.state[parameter]["step"]) for parameter in model.parameters()}
    assert {steps[parameter] for parameter in changed} == {1}
    assert {steps[parameter] for parameter in model.parameters() if parameter not in changed} == {4}
    assert trainer.weight_average.num_updates == 1
    for name, value in trainer.weight_average.averages.items():
        assert torch.equal(value, model.state_dict()[name])
    assert model.quantizer.quantizers[0].cluster_size.sum() == pytest.approx(40, rel=1e-4)  # a batch's frames


def test_a_revival_that_finds_all_directions_live_changes_nothing(make_trainer, tmp_path):
    runs = {}
    for name, steps in (("without", []), ("with", [3])):
        health = {"revival_steps": steps, "revival_seconds": 1.0, "live_threshold": 1e-12}
        runs[name] = make_trainer(**SMALL, max_steps=4, latent_health=health, output_dir=str(tmp_path / name))
        runs[name].train()
    assert runs["with"].weight_average.num_updates == 4
    for name, value in runs["without"].weight_average.averages.items():
        assert torch.equal(runs["with"].weight_average.averages[name], value), name


# The start of the quantizer


def test_codebooks_start_from_many_coming_frames(make_trainer):
    frames = {}

    class Observed(CodecTrainer):
        def _step_over(self, batches):
            quantizer = self.unwrapped_model.quantizer
            frames.setdefault("codebook", quantizer.quantizers[0].codebook.clone())
            frames.setdefault("initialized", bool(quantizer.quantizers[1].initialized))
            return super()._step_over(batches)

    trainer = make_trainer(Observed, **SMALL, max_steps=3, latent_health={"kmeans_frames": 100})
    with torch.no_grad():
        coming = [trainer.model.encoder(batch["input_values"]).transpose(1, 2) for batch in trainer.train_batches()]
    latents = torch.cat(coming).flatten(0, 1)[:100]
    drawn = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:16]
    means, _ = kmeans(latents, latents[drawn], 3)
    trainer.train()
    assert frames["initialized"]
    torch.testing.assert_close(frames["codebook"], means)

    first_batch = {}

    class OfFirstBatch(CodecTrainer):
        def _step_over(self, batches):
            first_batch.setdefault("initialized", bool(self.unwrapped_model.quantizer.quantizers[0].initialized))
            losses = super()._step_over(batches)
            first_batch.setdefault("codebook", self.unwrapped_model.quantizer.quantizers[0].codebook.clone())
            return losses

    make_trainer(OfFirstBatch, **SMALL, max_steps=1).train()
    assert not first_batch["initialized"]
    assert not torch.allclose(first_batch["codebook"], means, atol=1e-2 * float(means.std()))


def test_codebooks_of_a_trained_codec_are_kept(make_trainer):
    trainer = make_trainer(**SMALL, latent_health={"kmeans_frames": 100})
    assert trainer.latent_schedule.has_work(0, 0.0, trainer.model)
    for quantizer in trainer.model.quantizer.quantizers:
        quantizer.initialized.fill_(True)
    assert not trainer.latent_schedule.has_work(0, 0.0, trainer.model)


def test_until_its_start_the_quantizer_does_nothing(make_trainer):
    used = []

    class Observed(CodecTrainer):
        def codec_losses(self, outputs, batch):
            used.append(outputs.audio_codes.shape[1])
            if not used[-1]:
                assert torch.equal(outputs.quantized_latents, outputs.latents)
                assert not self.unwrapped_model.quantizer.quantizers[0].initialized
            return super().codec_losses(outputs, batch)

    no_dropout = {"overrides": {**SMALL["model"]["overrides"], "quantizer_dropout": 0.0}}
    trainer = make_trainer(
        Observed,
        **{**SMALL, "model": no_dropout},
        max_steps=4,
        eval_steps=1,
        latent_health={"quantizer_start_step": 2, "kmeans_frames": 60},
    )
    trainer.train()
    assert used == [0, 0, 2, 2]
    log = read_log(trainer.output_dir / "training_log.jsonl")
    losses = [entry for entry in log if "commitment" in entry]
    assert [entry["commitment"] > 0 for entry in losses] == [False, False, True, True]
    evaluated = [entry for entry in log if "eval_mel" in entry]
    # The evaluation after step 2 comes before the codebooks start.
    assert ["eval_perplexity_1" in entry for entry in evaluated] == [False, False, True, True]
    assert all("eval_latent_live_directions" in entry for entry in evaluated)


def test_a_run_that_resumes_at_the_start_equals_an_uninterrupted_one(make_trainer, tmp_path):
    changes = {**SMALL, "max_steps": 6, "latent_health": {"quantizer_start_step": 3}}
    make_trainer(**changes, output_dir=str(tmp_path / "whole")).train()
    make_trainer(**changes, output_dir=str(tmp_path / "parts"), save_steps=3).train()
    make_trainer(**changes, output_dir=str(tmp_path / "parts")).train(str(tmp_path / "parts" / "checkpoint-00000003"))
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")


@pytest.mark.parametrize("max_steps", [2, 3])
def test_a_quantizer_that_would_never_start_is_refused(make_args, max_steps):
    with pytest.raises(ValueError, match=f"`latent_health.quantizer_start_step` is 3, but `max_steps` {max_steps}"):
        make_args(max_steps=max_steps, latent_health={"quantizer_start_step": 3})


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_late_quantizer_keeps_the_codebooks_of_a_trained_codec(make_trainer, is_trained):
    class OfCodec(CodecTrainer):
        def __init__(self, model, *rest, **named):
            for quantizer in model.quantizer.quantizers:
                quantizer.initialized.fill_(is_trained)
                quantizer.ema_decay = 1.0  # so that only a fit changes them
            super().__init__(model, *rest, **named)

    trainer = make_trainer(OfCodec, **SMALL, max_steps=3, latent_health={"quantizer_start_step": 2})
    before = trainer.model.quantizer.quantizers[0].codebook.clone()
    trainer.train()
    log = losses_of(trainer.output_dir)
    assert [entry["commitment"] > 0 for entry in log if "commitment" in entry] == [is_trained, is_trained, True]
    told = [entry for entry in log if "latents" in entry]
    assert told == ([] if is_trained else [{"step": 3, "latents": "the codebooks are fitted to 128 frames"}])
    assert torch.allclose(trainer.model.quantizer.quantizers[0].codebook, before, atol=1e-3) == is_trained


def test_accumulated_micro_batches_start_the_same_codebooks(make_trainer):
    weights = []
    for accumulation in (1, 2):
        trainer = make_trainer(
            **SMALL,
            max_steps=4,
            gradient_accumulation_steps=accumulation,
            latent_health={"quantizer_start_step": 2, "revival_steps": [1], "live_threshold": 0.5},
        )
        fitted = {}
        fit = trainer.model.quantizer.fit
        trainer.model.quantizer.fit = lambda latents, *rest, fit=fit, kept=fitted: fit(
            kept.setdefault("z", latents), *rest
        )
        trainer.train()
        weights.append(fitted["z"])
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("health", "overrides", "message"),
    [
        ({"revival_steps": [2]}, {"codebook_dim": 4}, "needs codebooks of the latents themselves"),
        ({"revival_steps": [2]}, {"encoder_hidden_size": 4}, "reads 4 channels, which cannot fill 8 directions"),
        ({"quantizer_start_step": 2}, {"kmeans_iterations": 0}, "`latent_health.quantizer_start_step` fits codebooks"),
        ({"kmeans_frames": 15}, {}, "15, but 16 entries need at least as many frames"),
    ],
)
def test_what_a_model_cannot_do_is_refused(make_trainer, health, overrides, message):
    model = {"overrides": {**SMALL["model"]["overrides"], **overrides}}
    with pytest.raises(ValueError, match=message):
        make_trainer(**{**SMALL, "model": model}, latent_health=health)


def test_parts_that_are_frozen_are_not_revived(make_trainer):
    with pytest.raises(ValueError, match="changes encoder, which `optimizer.learning_rate_scales` freezes"):
        make_trainer(
            **SMALL, latent_health={"revival_steps": [2]}, optimizer={"learning_rate_scales": {"encoder": 0.0}}
        )


def test_continuous_tokens_have_no_quantizer_to_start(make_args):
    model = {"preset": "cst-fast-16khz", "overrides": {}}
    args = make_args(**{**SMALL, "model": model, "loss_weights": {"mel": 1.0, "waveform": 1.0, "kl": 0.1}})
    args.model.overrides.clear()
    args.latent_health.quantizer_start_step = 5
    with pytest.raises(ValueError, match="residual vector quantizer, which a CSTModel has not"):
        CodecTrainer(build_model(args), args)


def test_teachers_need_codebooks_from_the_first_step(make_trainer):
    trainer = make_trainer(**SMALL)
    args = LatentHealthArguments(quantizer_start_step=2)
    LatentSchedule(args, trainer.model, trainer.loss_names)
    teacher = Distillation(DistillationArguments(speech_teacher=SpeechTeacherArguments("hubert")))
    with pytest.raises(ValueError, match="`semantic_distillation` needs the codebooks from the first step on"):
        LatentSchedule(args, trainer.model, [*trainer.loss_names, *teacher.loss_names])


# Decorrelation


def test_decorrelation_by_hand():
    first, second = gaussian(1, 200, 1), gaussian(1, 200, 1, seed=1)
    latents = torch.cat([first, second, -3 * first + 2, torch.ones_like(first)], dim=-1)
    squared = float(torch.corrcoef(torch.cat([first, second], -1)[0].T)[0, 1] ** 2)
    # The first and third are the same up to scale, each correlates with the second, and the constant with none.
    assert decorrelation_loss(latents).item() == pytest.approx(2 * (1 + 2 * squared) / 12, rel=1e-4)
    assert decorrelation_loss(first.expand(1, 200, 5)).item() == pytest.approx(1, rel=1e-4)
    padded = torch.cat([latents, torch.full((1, 9, 4), 50.0)], dim=1)
    mask = (torch.arange(209) < 200).long()[None]
    torch.testing.assert_close(decorrelation_loss(padded, mask), decorrelation_loss(latents))


def test_the_gradient_of_decorrelation_is_complete():
    latents = gaussian(2, 12, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(decorrelation_loss(latents), latents)
    correlations = torch.corrcoef(latents.flatten(0, 1).T)
    (expected,) = torch.autograd.grad((correlations.square().sum() - 4) / 12, latents)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_decorrelation_is_a_loss_by_name(make_trainer):
    weights = {"mel": 0.0, "waveform": 0.0, "commitment": 0.0, "decorrelation": 1.0}
    trainer = make_trainer(**{**SMALL, "loss_weights": weights}, max_steps=30, optimizer={"learning_rate": 1e-2})
    trainer.train()
    log = losses_of(trainer.output_dir)
    assert log[-1]["decorrelation"] < 0.7 * log[0]["decorrelation"]
    assert log[0]["loss"] == pytest.approx(log[0]["decorrelation"])
