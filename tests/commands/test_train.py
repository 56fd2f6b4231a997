# SPDX-License-Identifier: Apache-2.0
"""`train`: a recipe names its trainer, and every recipe of the package can be trained by."""

import importlib
from importlib import resources

import pytest
import yaml

from speech_tokenizers.cli import main
from speech_tokenizers.commands.train import TRAINERS
from speech_tokenizers.training.common.recipe_files import load_recipe, recipe_names, trainer_name
from speech_tokenizers.training.recognition.ctc_recipe import CTCRecipeArguments
from speech_tokenizers.training.studies.lm_token_study import LMTokenStudyArguments
from speech_tokenizers.training.studies.token_study.arguments import TokenStudyArguments
from speech_tokenizers.training.studies.tone_study.arguments import ToneStudyArguments
from speech_tokenizers.training.studies.unit_study import UnitStudyArguments


@pytest.fixture
def trained(monkeypatch):
    """What is trained in place of a training: pairs of a trainer and the command's arguments."""
    seen = []
    for name, module in TRAINERS.items():
        trainer = importlib.import_module(f"speech_tokenizers.{module}")
        monkeypatch.setattr(
            trainer, "run_recipe", lambda recipe, overrides, name=name: seen.append((name, recipe, overrides)) or "ok"
        )
    return seen


@pytest.mark.parametrize(
    ("recipe", "trainer"),
    [
        ("dc_spin_16khz", "dc_spin"),
        ("spin_hubert_16khz", "hubert"),
        ("hubert_small_16khz", "hubert"),
        ("spin_ctc_16khz", "ctc"),
        ("latent_lm_16khz", "latent_lm"),
        ("rvq_codec_16khz_4kbps", "codec"),
    ],
)
def test_a_recipe_is_trained_by_the_trainer_that_it_names(recipe, trainer, trained, capsys):
    assert main(["train", recipe, "seed=1"]) == 0
    assert trained == [(trainer, recipe, ["seed=1"])]
    assert capsys.readouterr().out == "ok\n"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_names_its_trainer(name):
    path = resources.files("speech_tokenizers.training") / "recipes" / f"{name}.yaml"
    named = yaml.safe_load(path.read_text(encoding="utf-8"))["trainer"]
    assert named == trainer_name(name)
    studies = (UnitStudyArguments, LMTokenStudyArguments, TokenStudyArguments, ToneStudyArguments)
    assert named in {*TRAINERS, *(study.trainer for study in studies)}


def test_a_recipe_without_the_key_is_for_a_codec_unless_the_command_says_otherwise(tmp_path, trained):
    path = tmp_path / "recipe.yaml"
    path.write_text("output_dir: run\n")
    assert main(["train", str(path)]) == 0
    assert main(["train", str(path), "trainer=dc_spin"]) == 0
    assert [name for name, *_ in trained] == ["codec", "dc_spin"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rvq_codec_16khz_4kbps", "trainer=dc-spin"], "`dc-spin` is unknown; did you mean `dc_spin`?"),
        (
            ["unit_comparison_16khz_cpu"],
            "`unit_study` is unknown; known are codec, hubert, ctc, dc_spin, latent_lm, speech_lm.",
        ),
        (["rvq_codec_16khz_4kbps", "trainer=[codec]"], "`['codec']` is unknown"),
    ],
)
def test_a_trainer_that_does_not_exist_is_one_line(arguments, message, trained, capsys):
    assert main(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("speech-tokenizers train: error: The recipe's trainer")
    assert message in line
    assert not trained


def test_a_recipe_for_another_trainer_is_told_from_a_wrong_one():
    with pytest.raises(ValueError, match="`dc_spin_16khz` is a recipe for the trainer `dc_spin`, but one for `ctc`"):
        load_recipe("dc_spin_16khz", ["data.train=x"], CTCRecipeArguments)
