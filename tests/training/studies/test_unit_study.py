# SPDX-License-Identifier: Apache-2.0
"""The comparison of units: which commands it runs, in what order, and what it does not run again."""

from pathlib import Path

import pytest

from speech_tokenizers.cli import _build_parser, _join_command
from speech_tokenizers.processing.termination import Terminated
from speech_tokenizers.training.common import run_record
from speech_tokenizers.training.common.child_process import Finished
from speech_tokenizers.training.common.recipe_files import load_recipe, trainer_name
from speech_tokenizers.training.studies import stages as study_stages
from speech_tokenizers.training.studies import unit_study
from speech_tokenizers.training.studies.stages import as_options
from speech_tokenizers.training.studies.unit_study import UnitStudyArguments, compare_units, stages
from speech_tokenizers.training.units.dc_spin_trainer import DCSpinTrainingArguments


@pytest.fixture
def study(tmp_path):
    def make(*overrides: str) -> UnitStudyArguments:
        given = [f"output_dir={tmp_path}", "encoder=hubert", "data.train=speech", "data.eval=held out"]
        filters = ["data.train_filter={split: [a, b]}", "data.labels=phones.jsonl"]
        return load_recipe("unit_comparison_16khz_cpu", [*given, *filters, *overrides], UnitStudyArguments)

    return make


@pytest.fixture
def commands(monkeypatch):
    """The commands that are run; each of them finishes at once, with what the list `outcomes` holds or well."""
    run, outcomes = [], []

    def run_command(arguments):
        run.append(list(arguments))
        if outcomes:
            return outcomes.pop(0)
        for stage in run_command.stages:
            if stage.arguments == arguments:
                stage.done.parent.mkdir(parents=True, exist_ok=True)
                stage.done.write_text("{}")
        return Finished(0, 1.0, 1.0, 0)

    run_command.stages = []
    for module in (unit_study, study_stages):
        monkeypatch.setattr(module, "run_command", run_command)
    monkeypatch.setattr(run_record, "recordings_named", lambda *args: {"names": [], "audio": [], "columns": {}})
    monkeypatch.setattr(unit_study, "spoken_units", lambda args, name: Path("spoken") / name)
    run_command.commands, run_command.outcomes = run, outcomes
    return run_command


def test_every_command_is_one_that_the_command_line_takes(study):
    for stage in stages(study()):
        arguments = _join_command(stage.arguments)
        _build_parser(arguments[0]).parse_args(arguments)


def test_stage_two_comes_before_what_needs_it_and_units_before_their_vocoder(study):
    titles = [stage.title for stage in stages(study())]
    assert len(titles) == len(set(titles)) == 1 + 2 * 3 * 2
    assert titles.index("stage II") < min(i for i, title in enumerate(titles) if "finetuned" in title)
    for name in ("base-kmeans", "finetuned-dc_spin"):
        assert titles.index(f"units {name}") + 1 == titles.index(f"vocoder {name}")
    assert len(list(stages(study("finetuning=null", "vocoder=null")))) == 3
    alone = [stage.title for stage in stages(study("quantizers=[spin]", "skip=[base-spin]", "vocoder=null"))]
    assert alone == ["stage II", "units finetuned-spin"]


def test_variants_differ_from_dc_spin_in_what_they_say(study):
    recipes = {}
    noise = "variants.noise={perturbation.noise_snr: [0.0, 20.0]}"
    for stage in stages(study("codebook_size=20", noise)):
        if stage.title.startswith("units base-") and stage.arguments[0] == "train":
            assert trainer_name(stage.arguments[1]) == "dc_spin"
            recipes[stage.title] = load_recipe(*_recipe_of(stage), DCSpinTrainingArguments)
    noisy = recipes["units base-noise"]
    assert noisy.perturbation.noise_snr == [0.0, 20.0]
    assert noisy.model == recipes["units base-dc_spin"].model
    spin, dc_spin = recipes["units base-spin"].model, recipes["units base-dc_spin"].model
    assert spin == {**dc_spin, "auxiliary_codebook_size": None}
    assert dc_spin["auxiliary_codebook_size"] == 512
    assert dc_spin["primary_codebook_size"] == 20


def _recipe_of(stage):
    _, recipe, *overrides = stage.arguments
    return recipe, overrides


def test_what_is_finished_is_not_run_again(study, commands):
    args = study()
    commands.stages = list(stages(args))
    assert compare_units(args) == 0
    first = list(commands.commands)
    assert [command[0] for command in first].count("evaluate") == 1
    assert len(first) == 14
    commands.commands.clear()
    assert compare_units(args) == 0
    assert [command[:2] for command in commands.commands] == [["evaluate", "units"]]
    for changed in ("codebook_size=50", "variants.spin={model.auxiliary_codebook_size: 9}"):
        with pytest.raises(ValueError, match="begun with other settings"):
            compare_units(study(changed))
    assert compare_units(study("quantizers=[kmeans, spin]", "skip=[base-spin]")) == 0


def test_a_stage_that_fails_or_is_stopped_ends_the_study(study, commands):
    commands.outcomes.append(Finished(2, 1.0, 1.0, 0))
    with pytest.raises(ChildProcessError, match="units base-kmeans ended with code 2"):
        compare_units(study())
    commands.outcomes.append(Finished(143, 1.0, 1.0, 15))
    with pytest.raises(Terminated):
        compare_units(study())
    # A stage that says it went well and left nothing did not.
    commands.outcomes.append(Finished(0, 1.0, 1.0, 0))
    with pytest.raises(ChildProcessError, match="ended with code 0"):
        compare_units(study())


def test_settings_become_options():
    given = {"max_epochs": 30, "layers": [4, 5], "separately": True, "window": None, "filter": [], "quiet": False}
    assert as_options(given) == ["--max-epochs", "30", "--layers", "4", "5", "--separately"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quantizers=[vq]"], "`quantizers` must be among kmeans, spin, dc_spin, but got 'vq'"),
        (["quantizers=[]"], "must name at least one of kmeans, spin, dc_spin"),
        (["quantizers=[kmeans]", "skip=[base-kmeans, finetuned-kmeans]"], "and `skip` not all units"),
        (["skip=[spin]"], "`skip` must be among base-kmeans, base-spin, .* but got 'spin'"),
        (["variants.kmeans={}"], "must not be called `kmeans`"),
        (["variants.small={model.primary_codebook_sise: 3}"], "primary_codebook_sise"),
        (["variants.small={perturbation.noise: 3}"], "perturbation.noise"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(study, overrides, message):
    with pytest.raises(ValueError, match=message):
        study(*overrides)


def test_what_is_skipped_may_be_no_quantizer_of_this_comparison(study):
    assert len(list(stages(study("quantizers=[kmeans, kmeans]", "skip=[base-spin]", "vocoder=null")))) == 3
    skipped = "skip=[finetuned-kmeans, finetuned-spin, finetuned-dc_spin]"
    assert not any("stage II" in stage.title for stage in stages(study(skipped)))
