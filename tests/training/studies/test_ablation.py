# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers ablate` with arms of a tiny codec, without teachers."""

import json
import os
import signal
import sys
import threading

import pytest
import soundfile
import yaml
from accelerate.state import AcceleratorState

from speech_tokenizers.cli import main
from speech_tokenizers.processing.termination import Terminated
from speech_tokenizers.training.codec.arguments import load_codec_recipe
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
from speech_tokenizers.training.common.reporting import read_log
from speech_tokenizers.training.studies.ablation import (
    DISTILLATION_ARMS,
    ArmPlan,
    check_settings,
    choose_arms,
    flatten,
    parse_stages,
    plan_arm,
)
from speech_tokenizers.training.studies.step_cost import SteppedTrainer, measure_steps


RECONSTRUCTION = {"discriminators": {}}


def test_the_four_arms_are_the_default_and_others_replace_them():
    assert list(choose_arms([], [])) == ["none", "speech", "language", "both"]
    arms = choose_arms(["none"], [["mine", "a=1", "b=2"]])
    assert arms == {"none": DISTILLATION_ARMS["none"], "mine": ("a=1", "b=2")}
    assert choose_arms([], [["as-it-is"], ["mine", "a=1"]])["as-it-is"] == ()


@pytest.mark.parametrize(
    ("named", "own", "message"),
    [
        (["none"], [], "at least two arms, but got none"),
        (["none"], [["none", "a=1"]], "Two arms have one name"),
        ([], [["a=1", "b=2"], ["b"]], "name comes first"),
        ([], [["../up"], ["b"]], "name comes first"),
    ],
)
def test_arms_that_cannot_be_told_apart_are_refused(named, own, message):
    with pytest.raises(ValueError, match=message):
        choose_arms(named, own)


def test_the_arms_of_the_recipe_leave_the_teachers_that_they_name():
    kept = {}
    for name, changes in DISTILLATION_ARMS.items():
        args = load_codec_recipe("dm_codec_16khz_4kbps", changes)
        teachers = args.distillation.speech_teacher, args.distillation.language_teacher
        dimensions = tuple(args.model.overrides[f"{kind}_dimension"] for kind in ("semantic", "contextual"))
        kept[name] = tuple(teacher is not None for teacher in teachers)
        assert kept[name] == tuple(dimension is not None for dimension in dimensions)
    assert kept == {"none": (False, False), "speech": (True, False), "language": (False, True), "both": (True, True)}


def test_stages():
    assert parse_stages("3") == (3, 3)
    assert parse_stages("1-8") == (1, 8)
    with pytest.raises(ValueError, match="1 or 1-8, but got 'all'"):
        parse_stages("all")


def test_arms_share_what_is_computed_once_and_nothing_else(recipe_file, tmp_path):
    path = str(recipe_file())
    plans = [
        plan_arm(path, ["max_steps=2"], "a: b", ["loss_weights.mel=3"], seed, tmp_path / "out") for seed in (0, 7)
    ]
    args = [load_codec_recipe(path, plan.overrides) for plan in plans]
    assert [arm.seed for arm in args] == [0, 7]
    assert args[0].output_dir == str(tmp_path / "out" / "runs" / "a: b" / "seed-0") != args[1].output_dir
    assert args[0].loss_weights["mel"] == 3
    assert args[0].distillation.cache_dir == args[1].distillation.cache_dir == str(tmp_path / "out" / "teacher_cache")
    # The recipe says where its decoded audio is.
    assert args[0].data.cache_dir == str(tmp_path / "cache")


def test_an_arm_trained_with_other_settings_is_not_taken_for_it(recipe_file, tmp_path):
    same = ["optimizer.learning_rate=1e-3"]
    args = load_codec_recipe(str(recipe_file()), same)
    check_settings(tmp_path / "new", args.to_dict())
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(args.to_dict()))
    check_settings(
        run, load_codec_recipe(str(recipe_file()), [*same, "output_dir=elsewhere", "save_steps=9"]).to_dict()
    )
    changed = load_codec_recipe(
        str(recipe_file()), ["optimizer.learning_rate=2e-3", "model.overrides.hidden_size=null"]
    )
    with pytest.raises(ValueError, match="`model.overrides.hidden_size` was 16 and is None") as refused:
        check_settings(run, changed.to_dict())
    assert "optimizer.learning_rate" in str(refused.value)
    assert flatten({"a": {"b": 1, "c": None}, "d": 2}) == {"a.b": 1, "d": 2}


@pytest.fixture
def in_this_process(monkeypatch):
    """Train arms here, since a process of their own takes seconds to start; the folders of those trained."""
    trained = []

    def train(plan: ArmPlan, recipe: str) -> None:
        if (plan.final / "config.json").is_file():
            return
        AcceleratorState._reset_state(reset_partial_state=True)
        trained.append(plan.folder)
        train_from_recipe(recipe, plan.overrides)

    monkeypatch.setattr(ArmPlan, "train", train)
    return trained


@pytest.fixture
def evaluation_data(tmp_path, recordings):
    folder = tmp_path / "eval"
    folder.mkdir()
    rows, labels = [], []
    for number, recording in enumerate(recordings[:3]):
        soundfile.write(folder / f"{number}.wav", recording, 16000)
        rows.append({"file_name": f"{number}.wav", "speaker": f"speaker {number}"})
        spans = [{"label": label, "start": start, "end": start + 0.1} for label, start in (("a", 0.0), ("b", 0.1))]
        labels.append({"file_name": f"{number}.wav", "labels": spans})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    return folder


def ablate(tmp_path, recipe, *arguments: str) -> int:
    shared = ["--data", str(tmp_path / "eval"), "--output", str(tmp_path / "out")]
    own = ["--metrics", "mel_distance", "--labels", str(tmp_path / "labels.jsonl"), "--examples", "1"]
    own += ["--cost-steps", "1"]
    return main(["ablate", str(recipe), *arguments, *shared, *own])


def test_arms_are_trained_measured_and_compared_and_kept(
    tmp_path, recipe_file, evaluation_data, in_this_process, monkeypatch
):
    recipe = recipe_file(adversarial=RECONSTRUCTION, max_steps=3)
    slow = "optimizer.learning_rate=1e-9"
    arguments = ["--arm", "plain", "--arm", "mel", "loss_weights.mel=40", "--arm", "slow", slow]
    assert ablate(tmp_path, recipe, *arguments, "--baseline", "mel") == 0
    report = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert report["baseline"] == "mel"
    assert report["arms"]["slow"]["overrides"] == [slow]
    assert report["arms"]["slow"]["cost"]["steps"] == 3
    assert report["arms"]["slow"]["cost"]["seconds_per_step"] > 0
    assert report["arms"]["slow"]["cost"]["seconds_in_turn"] > 0
    decoded = report["decoded"]["all codebooks"]
    assert decoded["slow"]["mel_distance"]["difference"]["num_clips"] == 3
    assert decoded["mel"]["mel_distance"]["difference"] is None
    assert set(report["probe"]["stages"]["codebook 1"]) == {"plain", "mel", "slow"}
    # The same seed and data: arms begin with the same weights.
    runs = tmp_path / "out" / "runs"
    plain, mel = (read_log(runs / name / "seed-0" / "training_log.jsonl") for name in ("plain", "mel"))
    assert plain[0]["mel"] == mel[0]["mel"]
    assert plain[2]["mel"] != mel[2]["mel"]
    page = (tmp_path / "out" / "ablation.md").read_text()
    assert "minus mel" in page
    assert "- mel: `loss_weights.mel=40` (seeds 0)" in page

    # A second run has nothing to do; a further arm adds to it.
    in_this_process.clear()
    monkeypatch.setattr("speech_tokenizers.evaluation.reconstruction.comparison.measure_clip", None)
    monkeypatch.setattr(SteppedTrainer, "take_step", None)
    assert ablate(tmp_path, recipe, *arguments, "--baseline", "mel") == 0
    assert in_this_process == []
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == report
    # Other settings would not be the same ablation.
    assert ablate(tmp_path, recipe, "max_steps=4", *arguments) == 2
    assert in_this_process == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "none"], "at least two arms"),
        (["--arm", "a", "--arm", "b", "loss_weight.mel=3"], "did you mean `loss_weights`"),
        (["--arm", "a", "--arm", "b", "--baseline", "c"], "`--baseline` must be one of a, b"),
        (["--arm", "a", "--arm", "b", "--held-out", "split=eval"], "no `split`"),
    ],
)
def test_wrong_usage_is_one_line_before_any_training(
    tmp_path, recipe_file, evaluation_data, in_this_process, capsys, arguments, message
):
    assert ablate(tmp_path, recipe_file(), *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert in_this_process == []


def test_steps_of_all_arms_are_timed_in_turn(recipe_file, tmp_path, monkeypatch):
    recipe = str(recipe_file(adversarial=RECONSTRUCTION))
    recipes = {name: load_codec_recipe(recipe, [f"seed={seed}"]) for seed, name in enumerate(("one", "other"))}
    order = []
    take_step = SteppedTrainer.take_step

    def noted(trainer):
        order.append(trainer.args.seed)
        return take_step(trainer)

    monkeypatch.setattr(SteppedTrainer, "take_step", noted)
    costs = measure_steps(recipes, num_steps=3, num_warmup_steps=1)
    assert order == [0, 1] * 4
    for cost in costs.values():
        assert cost["seconds_in_turn"] > 0
        assert cost["cpu_seconds_in_turn"] > 0
    # The run itself would start anew.
    assert not (tmp_path / "run").exists()


def test_steps_of_different_precisions_are_refused_before_any_work(
    recipe_file, tmp_path, evaluation_data, in_this_process, capsys
):
    recipe = str(recipe_file(adversarial=RECONSTRUCTION))
    recipes = {name: load_codec_recipe(recipe, [f"mixed_precision={name}"]) for name in ("bf16", "null")}
    with pytest.raises(ValueError, match=r"differ in `mixed_precision` \(bf16: bf16, null: no\)"):
        measure_steps(recipes)
    assert not (tmp_path / "cache").exists()
    arms = ["--arm", "half", "mixed_precision=bf16", "--arm", "full"]
    assert ablate(tmp_path, recipe, *arms, "--cost-steps", "3") == 2
    assert "--cost-steps 0" in capsys.readouterr().err
    assert in_this_process == []


def test_an_arm_trains_in_a_process_of_its_own(tmp_path, recipe_file):
    recipe = str(recipe_file(adversarial=RECONSTRUCTION, max_steps=2))
    plan = plan_arm(recipe, [], "alone", [], 0, tmp_path / "out")
    plan.train(recipe)
    assert (plan.final / "model.safetensors").is_file()
    cost = plan.cost()
    assert cost["steps"] == 2
    # That of a process with PyTorch.
    assert 0.1 < cost["peak_memory_gb"] < 5
    wrong = plan_arm(recipe, [], "wrong", [], 0, tmp_path / "out")
    wrong.overrides.append("max_steps=0")
    with pytest.raises(ChildProcessError, match="wrong, seed 0 ended with code 2"):
        wrong.train(recipe)


def test_a_signal_asks_the_training_to_stop(tmp_path, monkeypatch, capfd):
    # Instead of Python: waits for SIGTERM, and ends as the trainer does once its checkpoint is saved.
    script = tmp_path / "training"
    script.write_text("#!/bin/sh\ntrap 'echo saved; exit 1' TERM\necho started\nwhile :; do sleep 0.05; done\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    plan = ArmPlan("arm", 0, tmp_path / "run", [])
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Terminated):
        plan.train("recipe")
    timer.join()
    assert "saved" in capfd.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
