# SPDX-License-Identifier: Apache-2.0
"""The comparison of tokens for language models: its commands, that nothing is done twice, and its table."""

import json
from pathlib import Path

import pytest

from speech_tokenizers.cli import _build_parser, _join_command
from speech_tokenizers.training.common.child_process import Finished
from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.language_models import speech_lm_items
from speech_tokenizers.training.language_models.speech_lm import SpeechLMArguments
from speech_tokenizers.training.studies import stages as study_stages
from speech_tokenizers.training.studies.lm_token_study import (
    LMTokenStudyArguments,
    compare_lm_tokens,
    nominal_bits_per_second,
    stages,
)


@pytest.fixture
def study(tmp_path):
    """A function that makes the settings of a study."""

    def make(*overrides: str) -> LMTokenStudyArguments:
        given = [f"output_dir={tmp_path}", "pronunciations=lexicon.txt.gz", "evaluation.recognizer=[heard]"]
        return load_recipe("lm_tokens_16khz_cpu", [*given, *overrides], LMTokenStudyArguments)

    return make


@pytest.fixture
def commands(monkeypatch):
    """The commands that are run; each writes what such a command writes, unless `outcomes` say otherwise."""
    run, outcomes = [], []

    def run_command(arguments):
        run.append(list(arguments))
        if outcomes:
            return outcomes.pop(0)
        if arguments[0] == "train":
            given = dict(part.split("=", 1) for part in arguments[2:])
            folder = Path(json.loads(given["output_dir"]))
            layout = json.loads(given.get("layout", '"flat"'))
            config = {"layout": layout, "frame_rate": 50.0, "num_codebooks": 2, "codebook_size": 1024}
            rates = {"held_out_audio_bits_per_second": 640.0, "held_out_text_bits_per_second": 30.0}
            results = {"parameters": 1_500_000, "positions_per_second": 75.0, "held_out_audio_loss": 3.0, **rates}
            (folder / "final").mkdir(parents=True)
            (folder / "final" / "config.json").write_text(json.dumps(config))
        else:
            folder = Path(arguments[arguments.index("--output") + 1])
            score = {"value": 41.25, "low": 35.0, "high": 48.0, "num_clips": 40}
            model = {"system": "final", "scores": {"wer[heard]": score, "ended": score, "real_time_factor_cpu": score}}
            ceiling = {"system": "codec (2 codebooks)", "scores": {"wer[heard]": {**score, "value": 30.0}}}
            heard = {"good": "hello world", "bad": "hello"} if "rvq-2" in str(folder) else {"good": "help", "bad": ""}
            sentences = [
                {"id": name, "text": "hello world", "systems": {"final": {"heard": {"heard": text}}}}
                for name, text in heard.items()
            ]
            results = {"systems": [ceiling, model], "seconds": 100.0, "num_sentences": 40, "sentences": sentences}
            folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results))
        return Finished(0, 1.0, 1.0, 0)

    monkeypatch.setattr(study_stages, "run_command", run_command)
    monkeypatch.setattr(speech_lm_items, "rows_fingerprint", lambda path: path)
    run_command.commands, run_command.outcomes = run, outcomes
    return run_command


def test_every_command_is_one_that_the_command_line_takes(study):
    for stage in stages(study()):
        arguments = _join_command(stage.arguments)
        _build_parser(arguments[0]).parse_args(arguments)
        if arguments[0] == "train":
            recipe = load_recipe(stage.arguments[1], stage.arguments[2:], SpeechLMArguments)
            assert recipe.batch_seconds == 16.0
            assert recipe.language_model["hidden_size"] == 256


def test_arms_differ_in_their_tokens_alone(study):
    recipes = {}
    for stage in stages(study()):
        if stage.arguments[0] == "train":
            recipes[stage.title] = load_recipe(*[stage.arguments[1], stage.arguments[2:]], SpeechLMArguments)
    flat, delay = recipes["training rvq-2 flat"], recipes["training rvq-2 delay"]
    assert (flat.layout, delay.layout) == (None, "delay")
    for name in ("data", "num_codebooks", "seed", "max_steps", "language_model", "learning_rate"):
        assert getattr(flat, name) == getattr(delay, name)
    assert recipes["training cst energy"].latents.head == "energy"


def test_what_is_finished_is_not_run_again_and_arms_may_join(study, commands, tmp_path):
    table = compare_lm_tokens(study("chosen=[rvq-2 flat, cst flow]"))
    assert [command[0] for command in commands.commands] == ["train", "evaluate"] * 2
    assert table.count("\n| ") == 4  # the header, the line below it, and the arms
    commands.commands.clear()
    table = compare_lm_tokens(study("chosen=[rvq-2 flat, rvq-1 flat]"))
    assert len(commands.commands) == 2
    assert "| rvq-1 flat | flat | 75.0 | 1000 | 640 | 30 | 670 | 41.2 [35.0, 48.0] | 30.0" in table
    assert {"results.json", "results.md", "results.html", "tokens.png"} <= {file.name for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="begun with other settings"):
        compare_lm_tokens(study("batch_seconds=10"))
    commands.outcomes.append(Finished(2, 1.0, 1.0, 0))
    with pytest.raises(ChildProcessError, match="training kmeans ended with code 2"):
        compare_lm_tokens(study("chosen=[kmeans]"))


def test_word_errors_are_compared_sentence_by_sentence(study, commands, tmp_path):
    chosen = "chosen=[rvq-2 flat, rvq-1 flat]"
    table = compare_lm_tokens(study(chosen, "reference=rvq-2 flat"))
    # All four words are wrong, of the reference one: 100 % less 0 % in one sentence, less 50 % in the other.
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rvq-1 flat"]["wer_difference"]["wer[heard]"]["value"] == 75.0
    assert results["rvq-2 flat"]["wer_difference"] == {}
    assert "30.0 | +75.0 [+50.0, +100.0] *" in table
    header, _, *rows = (line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|"))
    assert {len(row) for row in rows} == {len(header)}
    assert (header[0], header[-1], rows[0][-1]) == ("tokens", "parameters", "1.50 M")


def test_what_cannot_be_heard_is_not_spoken(study, commands):
    arm = "arms={kmeans: {rows: kmeans, speaks: false}, rvq-1 flat: {rows: rvq}}"
    table = compare_lm_tokens(study(arm, "reference=null"))
    assert [command[0] for command in commands.commands] == ["train", "train", "evaluate"]
    assert "| kmeans | flat | 75.0 | 1000 | 640 | 30 | 670 | – | – | – | – | – | 1.50 M |" in table


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("chosen=[nothing]", "`chosen` must be among rvq-1 flat.*got 'nothing'"),
        ("reference=nothing", "`reference` must be among rvq-1 flat.*got 'nothing'"),
        ("arms={a: {rows: none}}", "`arms.a.rows` must be among rvq"),
        ("arms={}", "must name at least one"),
        ("rows={rvq: {codec: a}}", "`rows` need codec, train, eval and test"),
    ],
)
def test_wrong_studies_are_refused(study, override, message):
    with pytest.raises(ValueError, match=message):
        study(override)


def test_latents_have_no_nominal_bit_rate():
    config = {"layout": "flat", "frame_rate": 50.0, "num_codebooks": 4, "codebook_size": 1024}
    assert nominal_bits_per_second(config) == 2000.0
    assert nominal_bits_per_second({**config, "layout": "continuous"}) is None
    runs = {"unit_coding": "runs", "num_units": 128, "max_duration": 32, "unit_merges": [], "unit_durations": []}
    assert nominal_bits_per_second({**config, **runs}, symbols_per_second=30.0) == 30.0 * (7 + 5)
