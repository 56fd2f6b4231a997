# SPDX-License-Identifier: Apache-2.0
"""Values of recipes: what was written is what is trained with, and what cannot be is one line that names it."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from speech_tokenizers.cli import main
from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.common.recipe_yaml import parse_yaml, plain_value


@dataclass
class Settings:
    trainer: ClassVar[str] = "tiny"

    output_dir: str = "run"
    rate: float = 0.5
    steps: int = 1
    flag: bool = False
    limit: int | None = None
    rows: dict[str, str | list[str]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)


@pytest.fixture
def read(tmp_path):
    """Function: the settings of a YAML text, with overrides."""

    def load(text="{}", *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(str(path), overrides, Settings)

    return load


@pytest.mark.parametrize(
    "text",
    ["007", "0017", "1_000", "1.10", "0x10", "2024-01-01", "12:30", "yes", "No", "on", "12e5", "1e-4", ".5", "+3"],
)
def test_text_is_what_was_written(read, text):
    assert read(f"output_dir: {text}").output_dir == text
    assert read("{}", f"output_dir={text}").output_dir == text
    assert read(f"rows: {{speaker: [{text}, '{text}'], {text}: {text}}}").rows == {
        "speaker": [text, text],
        text: text,
    }


def test_numbers_are_those_that_everybody_reads(read):
    assert read("rate: 1e-4").rate == 1e-4
    assert read("rate: '1e-4'").rate == 1e-4
    assert read("steps: 010").steps == 10
    assert read("weights: {mel: 15, waveform: 1e2}").weights == {"mel": 15.0, "waveform": 100.0}
    # Where a setting may be of any type, too.
    options = read("options: {rate: 1e-4, size: 010, flag: yes, name: on call, none: null, list: [1, 2.5]}").options
    assert options == {"rate": 1e-4, "size": 10, "flag": True, "name": "on call", "none": None, "list": [1, 2.5]}
    assert [type(value) for value in options.values()][:2] == [float, int]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate: yes", "`rate` must be a number, but got yes"),
        ("rate: {a: 1}", "`rate` must be a number, but got {'a': '1'}"),
        ("rate: [1]", "`rate` must be a number"),
        ("rate: null", "`rate` must be a number, but got None"),
        ("rate: .nan", "`rate` must be a number, but got .nan"),
        ("rate: -.inf", "`rate` must be a number, but got -.inf"),
        ("rate: 1e400", "`rate` must be a number, but got 1e400"),
        (f"rate: 1{'0' * 400}", "`rate` must be a number"),
        ("rate: 1:30", "`rate` must be a number, but got '1:30'"),
        ("steps: 1.5", "`steps` must be of type int, but got 1.5"),
        ("steps: 1e3", "`steps` must be of type int, but got 1e3"),
        ("steps: true", "`steps` must be of type int, but got true"),
        ("steps: 1:30", "`steps` must be of type int, but got '1:30'"),
        ("limit: many", "`limit` must be of type int, but got 'many'"),
        ("flag: 1", "`flag` must be of type bool, but got 1"),
        ("flag: maybe", "`flag` must be of type bool, but got 'maybe'"),
        ("output_dir: [a]", "`output_dir` must be of type str, but got ['a']"),
        ("output_dir: null", "`output_dir` must be of type str, but got None"),
        ("sizes: 3", "`sizes` must be of type list, but got 3"),
        ("sizes: [1, two]", "`sizes[1]` must be of type int, but got 'two'"),
        ("weights: [1]", "`weights` must be of type dict, but got ['1']"),
        ("weights: {mel: {a: 1}}", "`weights.mel` must be a number"),
        ("rows: {speaker: {a: 1}}", "`rows.speaker` must be of type str"),
        ("rows: {speaker: null}", "`rows.speaker` must be of type str"),
        ("options: {rate: .nan}", "`options.rate` must be a finite number, but got nan"),
        ("options: {rates: [1, .inf]}", "`options.rates[1]` must be a finite number"),
        ("ratee: 1", "`ratee` is unknown; did you mean `rate`?"),
        ("rate: 1\nrate: 2", "line 2, column 1: `rate` stands twice"),
        ("weights: {mel: 1, mel: 2}", "`mel` stands twice"),
        ("? [a]\n: 1", "a key must be text"),
        ("rate: 1\n\trate: 2", "line 2"),
        ("rate: [1", "line 1"),
        ("rate: *one", "undefined alias"),
        ("rate: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("options: &a [*a]", "contains itself"),
        ("options: &a {b: *a}", "contains itself"),
        (f"options: {'[' * 3000}", "nested too deeply"),
        (f"options: {{a: {'[' * 100}{']' * 100}}}", "nested too deeply"),
        ("---\nrate: 1\n---\nrate: 2", "is no YAML"),
        ("- rate", "must hold a mapping"),
        ("", "must hold a mapping"),
        (b"rate: \xff", "is not written in UTF-8"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_named(read, text, message):
    with pytest.raises(ValueError) as caught:
        read(text)
    assert message in str(caught.value)


def test_a_few_lines_do_not_make_billions_of_values():
    names = "abcdefgh"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip(names, names[1:], strict=False)]
    with pytest.raises(ValueError, match="more than 100,000 values"):
        parse_yaml("\n".join(lines), "The recipe")


def test_anchors_and_merged_keys_are_taken(read):
    settings = read("options: {one: &one {size: 3}, two: {<<: *one, rate: 1e-1}}")
    assert settings.options == {"one": {"size": 3}, "two": {"size": 3, "rate": 0.1}}


def test_every_recipe_of_the_package_has_no_text_where_a_number_was_meant():
    from speech_tokenizers.training.common.recipe_files import read_recipe, recipe_names

    def texts(value):
        if isinstance(value, dict):
            return [text for element in value.values() for text in texts(element)]
        return [text for element in value for text in texts(element)] if isinstance(value, list) else [value]

    for name in recipe_names():
        for value in texts(plain_value(read_recipe(name, []), name)):
            assert not (isinstance(value, str) and value[:1].isdigit()), (name, value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss_weights.mel=-1", "`loss_weights.mel` must not be negative, but is -1.0"),
        ("loss_weights.mel=1e300", "`loss_weights.mel` must be at most 1e+12, but is 1e+300"),
        ("loss_weights.mel={a: 1}", "`loss_weights.mel` must be a number"),
        ("loss_weights=null", "`loss_weights` must be of type dict"),
        ("seed=-1", "`seed` must lie between 0 and 2**32 - 1"),
        ("discriminator_optimizer.betas=[0.9]", "In `discriminator_optimizer`: `betas` must be two numbers"),
        ("optimizer.max_grad_norm=-1", "In `optimizer`: `max_grad_norm` must be positive"),
        ("mel_scales=3", "`mel_scales` must be one of"),
        ("mel_scales=[]", "`mel_scales` must be one of"),
        ("mel_scales=[{n_fft: a, hop_length: 64, num_mels: 20}]", "`mel_scales[0].n_fft` must be of type int"),
        ("mel_scales=[{n_fft: -1, hop_length: 64, num_mels: 20}]", "In `mel_scales[0]`: A mel scale needs"),
        ("adversarial.discriminators={multi_period: {periods: [0]}}", "multi_period.periods` must hold whole numbers"),
        ("adversarial.discriminators={multi_scale_stft: {n_ffts: 128}}", "multi_scale_stft.n_ffts` must be a list"),
        ("data.segment_seconds=0.001", "which are 16 samples, but a frame of the codec has 160"),
        ("data.segment_seconds=0.00001", "which are 0 samples, but a frame of the codec has 160"),
        ("data.num_workers=-1", "`data.num_workers` must not be negative"),
        ("data.train_filter={split: {a: 1}}", "`data.train_filter.split` must be of type str"),
        ("report_to=[nothing]", "`report_to` names the tracker 'nothing'"),
        ("latent_health.kmeans_frames=0", "`latent_health.kmeans_frames` must be positive"),
    ],
)
def test_a_codec_that_cannot_be_trained_is_one_line(recipe_file, capsys, override, message):
    assert main(["train", str(recipe_file(max_steps=1)), override]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("speech-tokenizers train: error: ")
    assert message in line
