# SPDX-License-Identifier: Apache-2.0
"""The whole study on two tones by six speakers: probes, language models, controls, resuming, and the report."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from speech_tokenizers.modeling.speech_lm_tasks import TASKS
from speech_tokenizers.processing.task_manifests import read_manifest
from speech_tokenizers.training.language_models.recipe_tasks import NewTaskArguments
from speech_tokenizers.training.studies.token_study import cells
from speech_tokenizers.training.studies.token_study.arguments import (
    LMLevelArguments,
    LMLevelName,
    RobustnessArguments,
    VariantArguments,
)
from speech_tokenizers.training.studies.token_study.cells import cell_path, chosen_clips, level_key, read_cell
from speech_tokenizers.training.studies.token_study.clips import prepare_clips
from speech_tokenizers.training.studies.token_study.lm_level import LMLevel
from speech_tokenizers.training.studies.token_study.study import study_results, study_tokens
from speech_tokenizers.training.studies.token_study.systems import StudySystems


LM = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LM |= {"intermediate_size": 48, "max_position_embeddings": 256, "tie_word_embeddings": True}
QUICK = {"batch_seconds": 8.0, "max_steps": 60, "warmup_steps": 2, "learning_rate": 1e-2, "eval_steps": 20}
QUICK |= {"logging_steps": 10, "save_steps": 30, "weight_decay": 0.0}


@pytest.fixture
def study(study):
    """As in other tests, with units enough to tell the tones apart."""

    def make(*args, **changes):
        made = study(*args, **changes)
        return dataclasses.replace(made, encoder=dataclasses.replace(made.encoder, num_units=24, bpe_tokens=32))

    return make


@pytest.fixture
def with_models(study):
    """Function: the study with a tiny language model, at the level `lm`."""

    def make(arms, **changes):
        args = study(layer=1, trim=True)
        lm = LMLevelArguments(sizes={"tiny": LM}, overrides={**QUICK, **changes})
        return dataclasses.replace(args, level="lm", arms=arms, lm=lm)

    return make


TINY = LMLevelName("tiny", "steps")


def answers(args, arm, level="probe", seed=0):
    place = (level, "tone", arm, seed)
    cell = read_cell(cell_path(args, *place), level_key(args, *place))
    assert cell is not None
    return cell


def share_right(cell):
    return sum(one == other for one, other in zip(cell.answers, cell.targets, strict=True)) / len(cell.targets)


def test_the_level_of_probes_reads_what_is_there_and_no_more(study, capsys):
    args = dataclasses.replace(
        study(layer=1, trim=True, expected="units lose nothing"), robustness=RobustnessArguments(["tone"], [20.0, 0.0])
    )
    told = study_tokens(args)
    for arm in ("continuous", "units", "centroids", "continuous+units", "units+bpe"):
        assert share_right(answers(args, arm)) == 1.0, arm
    # Two speakers with four clips each: another clip's audio has the other label in about half of them.
    assert share_right(answers(args, "other-audio")) < 1.0
    assert len(set(answers(args, "no-audio").answers)) == 1
    assert "units lose nothing" in told
    assert "| paper: HuBERT-L discrete | 93.70 / 93.85 |" in told
    assert "ASR WER | phones PER | ST BLEU | intents % | emotions %" in told
    assert "probes neither confirm nor refute" in told
    results = json.loads((args_output(args) / "results.json").read_text())
    assert results["levels"]["probe"]["tone"]["num_groups"] == 2
    assert set(results["robustness"]["tone"]["scores"]["units"]) == {"clean", "noise_20db", "noise_0db", "room", "far"}
    moved = results["robustness"]["tone"]["unit_edit_distance"]
    assert moved["noise_20db"]["value"] <= moved["noise_0db"]["value"]
    assert results["facts"]["tone"]["units"]["rates"]["nominal"] == pytest.approx(50 * math.log2(24), rel=1e-3)
    assert set(results["layers"]["tone"]) == {
        f"{view} {layer}" for view in ("continuous", "units") for layer in (1, 2)
    }
    assert (args_output(args) / "probe-scores.png").is_file()


def args_output(args):
    return cell_path(args, "x", "x", "x", 0).parents[3]


def test_a_second_run_gives_the_same_numbers_and_a_finished_one_measures_nothing(study, tmp_path, monkeypatch):
    arms = ["continuous", "units", "shuffled-labels"]
    first, second = (dataclasses.replace(study(tmp_path / name, layer=1), arms=arms) for name in ("one", "two"))
    told = study_tokens(first)
    assert study_tokens(second) == told
    kept = {path.name: path.read_bytes() for path in sorted((tmp_path / "one" / "probe").rglob("*.json"))}

    def fail(*_, **__):
        raise AssertionError("nothing is left to measure")

    monkeypatch.setattr("speech_tokenizers.training.studies.token_study.probe_level.ridge_probe", fail)
    monkeypatch.setattr("speech_tokenizers.training.studies.token_study.systems.prepare_clips", fail)
    assert study_tokens(first) == told
    with pytest.raises(AssertionError, match="nothing is left"):
        study_tokens(dataclasses.replace(first, arms=[*arms, "centroids"]))
    assert kept == {path.name: path.read_bytes() for path in sorted((tmp_path / "one" / "probe").rglob("*.json"))}


def test_a_cell_of_other_settings_or_damaged_is_measured_anew(study, tmp_path, capsys):
    args = dataclasses.replace(study(layer=1), arms=["continuous"])
    study_tokens(args)
    path = cell_path(args, "probe", "tone", "continuous", 0)
    before = json.loads(path.read_text())
    study_tokens(dataclasses.replace(study(layer=2), arms=["continuous"]))
    assert "other settings" in capsys.readouterr().err
    assert json.loads(path.read_text())["made_of"] != before["made_of"]
    path.write_text(path.read_text()[:40])
    study_tokens(dataclasses.replace(study(layer=2), arms=["continuous"]))
    assert "damaged" in capsys.readouterr().err


def test_what_was_measured_counts_for_the_same_recordings_wherever_they_lie(study, two_labels, tmp_path):
    args = study(layer=1, trim=True)
    place = ("tone", "continuous", 0)
    moved = tmp_path / "moved"
    shutil.copytree(two_labels.parent, moved)
    of_copy = {"tone": dataclasses.replace(args.tasks["tone"], manifest=str(moved / two_labels.name))}
    copied = dataclasses.replace(args, tasks=of_copy, output_dir=str(tmp_path / "copied"))
    assert level_key(copied, "probe", *place) == level_key(args, "probe", *place)
    names = [sorted(Path(clip.path).name for clip in prepare_clips(made, "tone").clips) for made in (args, copied)]
    assert names[0] == names[1]
    # Another recording is another one, though it has the same name and length.
    path = next(moved.rglob("*.wav"))
    path.write_bytes(path.read_bytes()[:-2] + b"\x01\x02")
    os.utime(moved / two_labels.name)
    assert level_key(copied, "probe", *place) != level_key(args, "probe", *place)


def test_a_cell_depends_on_what_recipes_and_models_hold(with_models, tmp_path):
    args = with_models(["continuous"])

    def key(**changes):
        lm = dataclasses.replace(args.lm, **changes)
        return level_key(dataclasses.replace(args, lm=lm), TINY, "tone", "continuous", 0)

    recipe = tmp_path / "mine.yaml"
    recipe.write_text("trainer: speech_lm\nmax_grad_norm: 1.0\n")
    first = key(recipe=str(recipe))
    assert key(recipe=str(recipe)) == first
    recipe.write_text("trainer: speech_lm\nmax_grad_norm: 2.0\n")
    assert key(recipe=str(recipe)) != first
    folder = tmp_path / "language_model"
    keys = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        sizes = {name: value for name, value in LM.items() if name != "model_type"}
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=8, **sizes)).save_pretrained(folder)
        cells._model_key.cache_clear()
        keys.add(key(sizes={"tiny": str(folder)}))
    assert len(keys) == 2


def test_development_clips_are_taken_from_whole_groups(two_labels):
    clips = [clip for clip in read_manifest(two_labels).clips if clip.split != "dev"]
    chosen = chosen_clips(clips, None, 0)
    assert chosen.of("dev")
    many = [dataclasses.replace(clip, groups={"speaker": f"s{place}"}) for place, clip in enumerate(clips)]
    dealt = chosen_clips(many, None, 0)
    by_split = {name: {dealt.clips[place].group for place in dealt.of(name)} for name in ("train", "dev")}
    assert by_split["dev"]
    assert not by_split["train"] & by_split["dev"]


def test_language_models_learn_a_task_from_every_kind_of_tokens(with_models):
    arms = ["continuous", "units", "units+bpe", "centroids", "continuous+units", "no-audio", "other-audio"]
    args = with_models(arms)
    args.lm.variants["random"] = VariantArguments("units", {"init": "normal"})
    told = study_tokens(args)
    random = answers(args, "random", TINY)
    assert random.facts["curve"]["losses"] != answers(args, "units", TINY).facts["curve"]["losses"]
    assert random.facts["parameters"] == answers(args, "units", TINY).facts["parameters"]
    for arm in ("continuous", "units", "units+bpe", "centroids", "continuous+units"):
        cell = answers(args, arm, TINY)
        assert share_right(cell) >= 0.75, arm
        assert len(cell.facts["curve"]["losses"]) == 3
    assert share_right(answers(args, "no-audio", TINY)) == 0.5
    others, own = answers(args, "other-audio", TINY), answers(args, "continuous", TINY)
    assert sorted(others.answers) == sorted(own.answers)
    assert others.facts["parameters"] == own.facts["parameters"]
    results = study_results(args)
    curves = results["convergence"]["tiny, tone"]
    assert curves["units"]["positions"][-1] != curves["continuous"]["positions"][-1]
    fewest = min(curves, key=lambda arm: curves[arm]["positions"][-1])
    assert curves[fewest]["at_equal_positions"] == pytest.approx(curves[fewest]["losses"][-1])
    assert "Language model `tiny`" in told


def test_a_task_of_the_recipe_is_learnt_and_kept_with_the_model(with_models, monkeypatch):
    monkeypatch.setattr("speech_tokenizers.modeling.speech_lm_tasks.TASKS", dict(TASKS))
    args = with_models(["units"], max_steps=2)
    pitch = NewTaskArguments(instruction="Name the pitch", target="height", is_closed=True)
    tasks = {"tone": dataclasses.replace(args.tasks["tone"], task="pitch")}
    args = dataclasses.replace(args, tasks=tasks, new_tasks={"pitch": pitch})
    cell = LMLevel(args, StudySystems(args)).cell(TINY, "tone", "units", 0)
    assert set(cell.answers) <= {"high", "low"}
    (config,) = Path(args.output_dir).rglob("final/config.json")
    told = json.loads(config.read_text())
    assert (told["tasks"], told["task_labels"]) == (["pitch"], {"pitch": ["high", "low"]})
    assert told["new_tasks"]["pitch"]["instruction"] == "Name the pitch"
    # Another definition of the same name is another cell.
    before = level_key(args, TINY, "tone", "units", 0)
    args.new_tasks["pitch"] = dataclasses.replace(pitch, instruction="Which pitch is it")
    assert level_key(args, TINY, "tone", "units", 0) != before


def test_at_equal_positions_each_arm_has_as_many_as_continuous(with_models):
    args = with_models(["continuous", "units", "centroids", "other-audio"], max_steps=20, batch_seconds=1.5)
    args.lm.matched.append("positions")
    told = study_tokens(args)
    same = TINY._replace(matched="positions")
    seen = {arm: answers(args, arm, same).facts["curve"]["positions"][-1] for arm in ("continuous", "units")}
    assert seen["units"] == seen["continuous"]
    units, at_steps = answers(args, "units", same), answers(args, "units", TINY)
    assert at_steps.facts["curve"]["positions"][-1] != seen["units"]
    assert at_steps.facts["curve"]["steps"] == units.facts["curve"]["steps"]
    assert at_steps.facts["curve"]["losses"] != units.facts["curve"]["losses"]
    # What has as many already is not trained again.
    for arm in ("continuous", "centroids", "other-audio"):
        assert answers(args, arm, same) == answers(args, arm, TINY)
    assert "Language model `tiny`, at equal positions" in told
    assert "tiny@positions, tone" in study_results(args)["convergence"]


def test_only_what_is_chosen_is_trained_now(with_models):
    args = with_models(["continuous", "units"], max_steps=4)
    args = dataclasses.replace(args, seeds=[0, 1])
    chosen = dataclasses.replace(args.lm, arm_names=["units"], seeds_now=[1])
    study_tokens(dataclasses.replace(args, lm=chosen))
    found = {
        (arm, seed): read_cell(cell_path(args, *place), level_key(args, *place)) is not None
        for arm in args.arms
        for seed in args.seeds
        if (place := (TINY, "tone", arm, seed))
    }
    assert found == {("continuous", 0): False, ("continuous", 1): False, ("units", 0): False, ("units", 1): True}


def test_a_training_that_was_stopped_goes_on_to_the_same_answers(with_models, monkeypatch):
    whole = with_models(["units"])
    level = LMLevel(whole, StudySystems(whole))
    expected = level.measure(TINY, "tone", "units", 0)
    stopped = dataclasses.replace(whole, output_dir=whole.output_dir + "-stopped")
    from speech_tokenizers.training.language_models import speech_lm

    train = speech_lm.SpeechLMTrainer.training_step
    steps = []

    def stop(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 40:
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    monkeypatch.setattr(speech_lm.SpeechLMTrainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        LMLevel(stopped, StudySystems(stopped)).measure(TINY, "tone", "units", 0)
    again = LMLevel(stopped, StudySystems(stopped)).measure(TINY, "tone", "units", 0)
    assert len(steps) == 40 + 30
    assert again.answers == expected.answers
    assert again.facts["bits"] == expected.facts["bits"]


def test_a_training_of_other_answers_is_another_one(with_models, two_labels, tmp_path):
    args = with_models(["continuous"], max_steps=20)
    study_tokens(args)
    flipped = tmp_path / "flipped.jsonl"
    lines = [json.loads(line) for line in two_labels.read_text().splitlines()]
    for row in lines:
        row["target"] = {"high": "low", "low": "high"}[row["target"]]
        row["file_name"] = str(two_labels.parent / row["file_name"])
    flipped.write_text("".join(json.dumps(row) + "\n" for row in lines))
    before = answers(args, "continuous", TINY)
    other = dataclasses.replace(args, tasks={"tone": dataclasses.replace(args.tasks["tone"], manifest=str(flipped))})
    study_tokens(other)
    after = answers(other, "continuous", TINY)
    assert after.targets != before.targets
    assert share_right(after) == share_right(before)
    more = dataclasses.replace(args, lm=dataclasses.replace(args.lm, overrides={**args.lm.overrides, "max_steps": 24}))
    study_tokens(more)
    assert answers(more, "continuous", TINY).facts["curve"]["steps"] == before.facts["curve"]["steps"]


def test_few_shots_are_few_and_the_same_for_all_systems(two_labels):
    clips = list(read_manifest(two_labels).clips)
    for seed in range(3):
        whole = chosen_clips(clips, 1, seed)
        assert len(whole.of("train")) == 2
        lacking = [clip for clip in clips if clip.name != whole.clips[whole.of("train")[0]].name]
        left = chosen_clips(lacking, 1, seed, clips)
        names = [{chosen.clips[place].name for place in chosen.of("train")} for chosen in (whole, left)]
        assert names[1] < names[0]
    without_dev = chosen_clips([clip for clip in clips if clip.split != "dev"], 2, 0)
    assert len(without_dev.of("train")) == 4
    assert len(without_dev.of("dev")) == 8


def test_units_are_not_fitted_on_what_another_task_holds_out(study, two_labels, tmp_path):
    args = study()
    swapped = tmp_path / "swapped.jsonl"
    lines = [json.loads(line) for line in two_labels.read_text().splitlines()]
    for row in lines:
        row["split"] = {"anna": "test", "bert": "dev"}.get(row["speaker"], "train")
        row["file_name"] = str(two_labels.parent / row["file_name"])
    swapped.write_text("".join(json.dumps(row) + "\n" for row in lines))
    both = {**args.tasks, "again": dataclasses.replace(args.tasks["tone"], manifest=str(swapped))}
    systems = StudySystems(dataclasses.replace(args, tasks=both))
    assert {name.split("-")[0] for _, name in systems._training_clips()} == {"cleo"}


def test_what_is_wrong_is_said_before_anything_is_measured(study):
    args = study(task="slots", is_closed=False)
    with pytest.raises(ValueError, match="slots"):
        study_tokens(args)
    assert not (args_output(args) / "encoded").exists()
