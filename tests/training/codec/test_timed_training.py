# SPDX-License-Identifier: Apache-2.0
"""Training that ends by time. The trainer's clock is replaced, so that nothing depends on how busy the machine is."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from speech_tokenizers.cli import main
from speech_tokenizers.training.codec import codec_trainer
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
from speech_tokenizers.training.common.optimization import learning_rate_factor
from speech_tokenizers.training.common.reporting import read_log
from speech_tokenizers.training.common.run_progress import RunProgress


TIMED = {"max_minutes": 1.0, "max_steps": 1000}


@pytest.fixture
def ten_seconds_a_step(monkeypatch):
    """The trainer reads its clock before and after a step."""
    set_clock(monkeypatch, itertools.count(0.0, 10.0))


def set_clock(monkeypatch, times) -> None:
    monkeypatch.setattr(codec_trainer, "time", SimpleNamespace(perf_counter=times.__next__))


def learning_rates(trainer) -> list[float]:
    log = read_log(trainer.output_dir / "training_log.jsonl")
    return [entry["learning_rate"] for entry in log if "learning_rate" in entry]


def cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def test_time_ends_the_run_and_leads_the_cosine(make_trainer, ten_seconds_a_step):
    trainer = make_trainer(**TIMED, optimizer={"warmup_steps": 0, "learning_rate": 1e-3})
    trainer.train()
    assert trainer.step == 6
    assert trainer.finished
    # A step is 1/1000 of the steps, but a sixth of the time.
    assert learning_rates(trainer) == pytest.approx([1e-3 * cosine(step / 6) for step in range(6)])


def test_steps_end_the_run_where_they_come_first(make_trainer, ten_seconds_a_step):
    trainer = make_trainer(max_minutes=60.0, max_steps=5, optimizer={"warmup_steps": 0, "learning_rate": 1e-3})
    trainer.train()
    assert trainer.step == 5
    assert learning_rates(trainer) == [1e-3 * learning_rate_factor(trainer.args.optimizer, k, 5) for k in range(5)]


def test_the_schedule_follows_the_larger_share_and_never_goes_back(make_trainer, monkeypatch):
    # Slow steps at first, so that time is ahead, then steps that take none.
    durations = [18.0, 12.0, *[0.0] * 8]
    starts, ends = itertools.accumulate(durations, initial=0.0), itertools.accumulate(durations)
    set_clock(monkeypatch, itertools.chain.from_iterable(zip(starts, ends, strict=False)))
    trainer = make_trainer(max_minutes=1.0, max_steps=10)
    progress = []
    step_over = trainer._step_over

    def observed(batches):
        progress.append(trainer.run.position)
        return step_over(batches)

    monkeypatch.setattr(trainer, "_step_over", observed)
    trainer.train()
    assert progress == [0, 3, 5, 5, 5, 5, 6, 7, 8, 9]
    assert trainer.step == 10


def test_revivals_that_the_time_did_not_allow_are_told(make_trainer, ten_seconds_a_step):
    trainer = make_trainer(**TIMED, latent_health={"revival_steps": [2, 6, 900]})
    trainer.train()
    log = read_log(trainer.output_dir / "training_log.jsonl")
    assert trainer.step == 6
    assert [entry["step"] for entry in log if "latents" in entry][0] == 3
    assert log[-1] == {"step": 6, "warning": "The time was over before the revivals after these steps: 6, 900."}


def test_the_discriminators_follow_the_time(make_trainer, ten_seconds_a_step):
    optimizer = {"schedule": "cosine", "warmup_steps": 0, "learning_rate": 1e-3}
    trainer = make_trainer(**TIMED, adversarial={"start_step": 1}, discriminator_optimizer=optimizer)
    rates = []
    trainer.adversary.discriminator.register_forward_pre_hook(
        lambda *_: rates.append(trainer.adversary.optimizer.param_groups[0]["lr"])
    )
    trainer.train()
    # Of steps 1 to 999, which are theirs, time has passed by 1000 / 6 at step 1.
    expected = [1e-3 * cosine((1000 * step / 6 - 1) / 999) for step in range(1, 6)]
    assert sorted(set(rates), reverse=True) == pytest.approx(expected)


def test_the_discriminators_begin_when_time_has_come_as_far_as_their_step(make_trainer, ten_seconds_a_step):
    optimizer = {"schedule": "constant", "warmup_steps": 4, "learning_rate": 1e-3}
    trainer = make_trainer(
        **TIMED, adversarial={"start_step": 500, "warmup_steps": 2}, discriminator_optimizer=optimizer
    )
    weights, rates = {}, {}
    weight_of = trainer.current_weight

    def observed(name):
        weights.setdefault((trainer.step, name), weight_of(name))
        rates[trainer.step] = trainer.adversary.optimizer.param_groups[0]["lr"]
        return weight_of(name)

    trainer.current_weight = observed
    trainer.train()
    log = read_log(trainer.output_dir / "training_log.jsonl")
    # Half of the steps is half of the minute, and both warm-ups begin there.
    assert [entry["step"] for entry in log if "adversarial" in entry] == [4, 5, 6]
    assert [weights[step, "feature_matching"] for step in (3, 4, 5)] == [1.0, 2.0, 2.0]
    assert [rates[step] for step in (3, 4, 5)] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3])


def test_discriminators_that_have_begun_go_on_when_a_run_gets_more_time(make_trainer, ten_seconds_a_step):
    changes = {"max_steps": 1000, "adversarial": {"start_step": 500, "warmup_steps": 4}}
    make_trainer(**changes, max_minutes=1.0).train()
    # Ten minutes, of which one has passed: steps and time have yet to come as far as step 500.
    trainer = make_trainer(**changes, max_minutes=10.0)
    weights = {}
    weight_of = trainer.current_weight

    def observed(name):
        weights[trainer.step, name] = weight_of(name)
        return weights[trainer.step, name]

    trainer.current_weight = observed
    trainer.run.agreed = lambda stop, logging_steps: trainer.step == 8
    trainer.train(resume_from_checkpoint="latest")
    log = read_log(trainer.output_dir / "training_log.jsonl")
    assert [entry["step"] for entry in log if "adversarial" in entry] == [4, 5, 6, 7, 8]
    # Three steps were theirs before.
    assert [weights[step, "feature_matching"] for step in (6, 7)] == [2.0, 2.0]


LATE = {"latent_health": {"quantizer_start_step": 500}, "adversarial": {"start_step": 500}}


def test_codebooks_start_after_a_tenth_of_the_time_if_their_step_has_not_come(make_trainer, ten_seconds_a_step):
    trainer = make_trainer(max_minutes=5.0, max_steps=1000, **LATE, eval_steps=1)
    trainer.draw_curves = lambda: None  # thirty pictures take a minute
    trainer.train()
    log = read_log(trainer.output_dir / "training_log.jsonl")
    trained = [entry for entry in log if "commitment" in entry]
    assert [entry["commitment"] > 0 for entry in trained] == [False] * 3 + [True] * 27
    # The evaluation after the third step comes before the codebooks start.
    evaluated = [entry for entry in log if "eval_mel" in entry]
    assert ["eval_perplexity_1" in entry for entry in evaluated] == [False] * 3 + [True] * 27


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_resumed_run_keeps_what_time_has_started(make_trainer, tmp_path, monkeypatch, step):
    # Codebooks start after step 1, discriminators after step 3.
    changes = {**TIMED, **LATE, "save_steps": 1, "save_total_limit": None}
    set_clock(monkeypatch, itertools.count(0.0, 10.0))
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **changes)
    whole.train()
    log = read_log(whole.output_dir / "training_log.jsonl")
    set_clock(monkeypatch, itertools.count(5000.0, 10.0))
    resumed = make_trainer(output_dir=str(tmp_path / "whole"), **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step:08d}"))
    assert read_log(resumed.output_dir / "training_log.jsonl") == log
    losses = [entry for entry in log if "loss" in entry]
    assert [entry["commitment"] > 0 for entry in losses] == [False] + [True] * 5
    assert ["adversarial" in entry for entry in losses] == [False] * 3 + [True] * 3
    for name, value in whole.unwrapped_model.state_dict().items():
        assert torch.equal(resumed.unwrapped_model.state_dict()[name], value), name


def test_a_codec_whose_codebooks_have_not_started_is_not_saved(recipe_file, tmp_path, monkeypatch):
    set_clock(monkeypatch, itertools.count(0.0, 1000.0))
    recipe = str(recipe_file(**TIMED, **LATE))
    with pytest.raises(ValueError, match="before its codebooks started.* raise `max_minutes`"):
        train_from_recipe(recipe)
    assert not (tmp_path / "run" / "final").exists()
    # As the message says: more time, and the run goes on.
    set_clock(monkeypatch, itertools.count(0.0, 1000.0))
    trainer = train_from_recipe(recipe, ["max_minutes=30", "resume_from_checkpoint=latest"])
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert all(quantizer.initialized for quantizer in trainer.unwrapped_model.quantizer.quantizers)


def test_every_schedule_takes_a_progress(make_args):
    exponential = {"schedule": "exponential", "warmup_steps": 10, "decay_rate": 0.5, "decay_steps": 10}
    exponential = make_args(optimizer=exponential).optimizer
    assert learning_rate_factor(exponential, 20, 100, 30.0) == learning_rate_factor(exponential, 30, 100) == 0.25
    constant = make_args(optimizer={"schedule": "constant", "warmup_steps": 0}).optimizer
    assert learning_rate_factor(constant, 20, 100, 99.0) == 1.0
    falling = make_args(optimizer={"warmup_steps": 10, "final_ratio": 0.1}).optimizer
    assert learning_rate_factor(falling, 20, 110, 60.0) == pytest.approx(0.55)
    # The warm-up follows the steps, but no rate is above what the time has left.
    assert learning_rate_factor(falling, 4, 110, 8.0) == 0.5
    assert learning_rate_factor(falling, 4, 110, 110.0) == pytest.approx(0.1)


def test_evaluations_and_saving_take_no_training_time(make_trainer, monkeypatch):
    # Each step takes ten seconds, and the next one starts an hour later.
    set_clock(monkeypatch, itertools.chain.from_iterable((hour, hour + 10.0) for hour in itertools.count(0.0, 3600.0)))
    trainer = make_trainer(**TIMED, eval_steps=1, save_steps=1)
    trainer.train()
    assert trainer.step == 6
    assert trainer.run.elapsed_seconds == 60.0


def test_a_resumed_run_continues_its_time(make_trainer, tmp_path, monkeypatch):
    # The checkpoint at step 3 lies within a logging interval.
    changes = {**TIMED, "logging_steps": 2, "save_steps": 3}
    runs = {}
    for name in ("whole", "cut"):
        set_clock(monkeypatch, itertools.count(0.0, 10.0))
        runs[name] = make_trainer(output_dir=str(tmp_path / name), **changes)
        runs[name].train()
    set_clock(monkeypatch, itertools.count(5000.0, 10.0))  # another session's clock
    resumed = make_trainer(output_dir=str(tmp_path / "cut"), **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-00000003"))
    assert resumed.step == runs["whole"].step == 6
    assert read_log(resumed.output_dir / "training_log.jsonl") == read_log(tmp_path / "whole" / "training_log.jsonl")
    for name, value in runs["whole"].unwrapped_model.state_dict().items():
        assert torch.equal(resumed.unwrapped_model.state_dict()[name], value), name


def test_a_run_that_time_ended_is_finished(recipe_file, tmp_path, ten_seconds_a_step, capsys):
    recipe = str(recipe_file(**TIMED))
    assert main(["train", recipe]) == 0
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert read_log(tmp_path / "run" / "training_log.jsonl")[-1]["step"] == 6
    assert "Stopped" not in capsys.readouterr().err
    # More time, and it goes on.
    trainer = train_from_recipe(recipe, ["max_minutes=1.5", "resume_from_checkpoint=latest"])
    assert trainer.step == 9
    assert trainer.run.elapsed_seconds == 90.0


def test_a_run_that_was_stopped_says_how_much_time_it_had(
    recipe_file, tmp_path, ten_seconds_a_step, monkeypatch, capsys
):
    monkeypatch.setattr(RunProgress, "agreed", lambda run, stop, logging_steps: run.step == 3)
    trainer = train_from_recipe(str(recipe_file(**TIMED)))
    assert not trainer.finished
    assert "Stopped at step 3 of 1000, after 0.5 of 1 minutes" in "".join(capsys.readouterr())
    assert not (tmp_path / "run" / "final").exists()


def test_time_must_be_positive(make_args):
    with pytest.raises(ValueError, match="`max_minutes` must be positive"):
        make_args(max_minutes=0)
