# SPDX-License-Identifier: Apache-2.0
"""The recipe of an output folder: which changes of the settings are refused, and what an older folder lacks."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import yaml

from speech_tokenizers.training.common.recipe_files import convert, load_recipe, override_key
from speech_tokenizers.training.common.recipe_yaml import parse_yaml
from speech_tokenizers.training.common.run_record import RunRecord, settings_changed


@dataclass
class Part:
    size: int
    width: int = 3


@dataclass
class Settings:
    trainer: ClassVar[str] = "tiny"

    output_dir: str
    part: Part
    parts: dict[str, Part] = field(default_factory=dict)
    spare: Part | None = None
    rate: float = 0.5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])


def keep(args, folder):
    RunRecord(folder, args).keep()


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "run", "part": {"size": 1}, "parts": {"one": {"size": 2}}}))
    return lambda *overrides: load_recipe(str(path), overrides, Settings)


def test_a_kept_recipe_can_be_trained_by_again(settings, tmp_path):
    path = tmp_path / "recipe.yaml"
    keep(settings("rate=2"), tmp_path)
    assert yaml.safe_load(path.read_text())["trainer"] == "tiny"
    assert load_recipe(str(path), [], Settings) == settings("rate=2")


def test_a_folder_that_is_older_than_a_setting_had_its_default(settings, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "run", "part": {"size": 1}, "parts": {"one": {"size": 2}}}))
    for override in ("rate=2", "betas=[0.9, 0.99]", "part.width=4", "parts.one.width=4", "spare={size: 1}"):
        with pytest.raises(ValueError, match=f"begun with other settings \\(`{override.partition('=')[0]}"):
            keep(settings(override), tmp_path)
    keep(settings(), tmp_path)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("part.size=2", "part.size"),
        ("parts.one.size=3", "parts.one.size"),
        ("parts.two={size: 1}", "parts.two.size"),
        ("spare={size: 1}", "spare.size"),
    ],
)
def test_what_was_begun_is_not_turned_into_something_else(settings, tmp_path, override, key):
    path = tmp_path / "recipe.yaml"
    keep(settings(), tmp_path)
    assert not settings_changed(path, settings("output_dir=elsewhere"))
    with pytest.raises(ValueError, match=f"`{key}`"):
        keep(settings(override), tmp_path)


def test_a_recipe_for_another_trainer_is_refused(settings):
    with pytest.raises(ValueError, match="is a recipe for the trainer `large`, but one for `tiny` is needed here"):
        settings("trainer=large")


@pytest.mark.parametrize(
    "text", ["h #2", "#b", "=&x", "&x", "*x", "a: b", "- a", "!!map [a]", "007", "1e3", "@x", "%x"]
)
def test_a_text_of_the_command_line_is_what_was_typed(text):
    recipe = {}
    override_key(recipe, f"data.train={text}")
    assert convert(recipe["data"]["train"], str, "data.train") == text


@pytest.mark.parametrize("value", ["!!map [a]", "!!timestamp 5", "!!timestamp 2020-01-01", "!!set [a]", "!!int x"])
def test_a_value_that_does_not_fit_its_tag_is_one_line(value):
    with pytest.raises(ValueError, match=r"^The recipe (has|is).*\.$"):
        parse_yaml(f"seed: {value}", "The recipe")
