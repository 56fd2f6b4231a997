# SPDX-License-Identifier: Apache-2.0
"""Recipes of a study of tokens: what is filled in, and what is refused."""

import pytest

from speech_tokenizers.modeling.speech_lm_tasks import TASKS, find_task
from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.studies.token_study.arguments import TokenStudyArguments


RECIPE = """
trainer: token_study
output_dir: runs/study
encoder: {name: somewhere, layers: [2, 4]}
systems: {rvq: rvq-codec-16khz-4kbps}
tasks:
  words: {manifest: words.jsonl, task: asr, group: []}
  colours: {manifest: colours.csv, task: asr, is_closed: true, layer: 2, clips_per_label: 5, noise_snr: 0}
lm: {overrides: {max_steps: 100}}
"""


@pytest.fixture
def load(tmp_path):
    """Function: read the recipe with overrides."""
    (tmp_path / "study.yaml").write_text(RECIPE)
    return lambda *overrides: load_recipe(str(tmp_path / "study.yaml"), overrides, TokenStudyArguments)


def test_what_is_filled_in(load):
    args = load()
    assert (args.encoder.layer, args.encoder.window, args.encoder.num_units) == (4, "tight", 500)
    assert (args.layer_of("words"), args.layer_of("colours")) == (4, 2)
    assert load("encoder.layer=2").layer_of("words") == 2
    assert args.is_closed("colours")
    assert args.tasks["words"].group == []
    assert args.tasks["colours"].noise_snr == 0.0
    assert args.seeds == [0, 1, 2]
    assert args.arms == [
        *("continuous", "units", "units+bpe", "centroids", "continuous+units", "rvq"),
        *("no-audio", "other-audio", "shuffled-labels"),
    ]
    assert args.lm.settings_of("words") == {"max_steps": 100}
    assert load("robustness.tasks=[colours]", "robustness.snr=[5]").robustness.snr == [5.0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("level=test", "`level` must be among probe, lm, but got 'test'"),
        ("seeds=[]", "`seeds` must name at least one seed"),
        ("seeds=[1, 1]", "none twice"),
        ("seeds=[-1]", "`seed` must lie between 0"),
        ("seeds=[3000000000]", "`seeds` must lie below"),
        ("tasks={}", "`tasks` must name at least one"),
        ("arms=[]", "`arms` must name at least one arm"),
        ("arms=[units, cst]", "`arms` must be among continuous, .*rvq, no-audio.*but got 'cst'"),
        ("encoder.layers=[]", "`layers` must name at least one layer"),
        ("encoder.layer=3", "`layer` must be among 2, 4, but got 3"),
        ("encoder.window=loose", "`window` must be among tight, padded"),
        ("encoder.normalization=l2", "`normalization` must be among null, standardize"),
        ("encoder.num_units=1", "`num_units` must be at least 2"),
        ("encoder.bpe_tokens=501", "`bpe_tokens` must be at least 502"),
        ("encoder.fit_seconds=0", "`fit_seconds` must be positive"),
        ("tasks.words.task=tts", "`tasks.words.task` must be one that answers in text, but 'tts' speaks"),
        ("tasks.words.task=sing", "There is no task 'sing'"),
        (
            "new_tasks={asr: {instruction: Write, target: text}}",
            "the task 'asr' has instruction='Write', but the task",
        ),
        ("new_tasks={mood: {instruction: Name}}", "lacks `new_tasks.mood.target`"),
        ("tasks.words.layer=3", "`tasks.words.layer` must be among 2, 4, but got 3"),
        ("tasks.words.noise=brown", "`noise` must be among speech_shaped, pink, white"),
        ("tasks.colours.clips_per_label=0", "`clips_per_label` must be positive"),
        ("tasks.colours.is_closed=false", "`tasks.colours.clips_per_label` is for closed tasks"),
        ("systems.units=x", "`systems.units` has the name of an arm"),
        ("systems.layer2-seed1=x", "`systems.layer2-seed1` has the name of an arm, or of units"),
        ("tasks.words.trimm=true", "`tasks.words.trimm` is unknown; did you mean `tasks.words.trim`"),
        ("robustness.tasks=[sounds]", "`robustness.tasks` must be among words, colours"),
        ("robustness.snr=[5, 5]", "`snr` must name no ratio twice"),
        ("lm.overrides.seed=5", "`lm.overrides` has `seed`, but the study decides `seed` itself"),
        ("lm.overrides={tasks.asr: 1}", "has `tasks.asr`, but the study decides `tasks` itself"),
        ("lm.overrides={language_model.hidden_size: 8}", "has `language_model.hidden_size`, but the study"),
        ("lm.overrides={data.train_split: dev}", "has `data.train_split`, but the study decides `data.train_split`"),
        ("lm.overrides={data.eval_split: dev}", "has `data.eval_split`, but the study decides `data.eval_split`"),
        ("lm.overrides={data: {max_length: 5}}", "has `data`, but the study decides `data.train` itself"),
        ("lm.task_overrides={words: {new_tasks: {}}}", "`lm.task_overrides.words` has `new_tasks`"),
        ("lm.variants={mine: {arm: units, overrides: {tasks.asr: 1}}}", "`lm.variants.mine.overrides` has `tasks"),
        ("lm.matched=[positions]", r"`lm.matched` must name steps, but got \['positions'\]"),
        ("lm.matched=[]", r"`lm.matched` must name steps, but got \[\]"),
        ("lm.matched=[steps, steps]", "`lm.matched` must name at least one, none twice"),
        ("lm.seeds_now=[]", "`lm.seeds_now` must name at least one"),
        ("lm.seeds_now=[1, 1]", "`lm.seeds_now` must name at least one, none twice"),
        ("lm.arm_names=[]", "`lm.arm_names` must name at least one"),
        ("lm.task_names=[]", "`lm.task_names` must name at least one"),
        ("lm.size_names=[]", "`lm.size_names` must name at least one"),
        ("tasks.words.metrics=[]", "`tasks.words.metrics` must name a measure; leave it out for those of the task"),
        ("tasks.words.metrics=[wers]", "`tasks.words.metrics`: `wers` is unknown; did you mean `wer`"),
        ("robustness.tasks=[words]", "`robustness.tasks` has 'words', but only tasks with labels"),
        ("lm.task_overrides={words: {unit_coding: runs}}", "`lm.task_overrides.words` has `unit_coding`"),
        ("lm.variants={mine: {arm: units, overrides: {codec: x}}}", "`lm.variants.mine.overrides` has `codec`"),
    ],
)
def test_what_is_refused(load, override, message):
    with pytest.raises(ValueError, match=message):
        load(override)


MOOD = "new_tasks={mood: {instruction: Name the mood, target: mood"


def test_a_task_of_the_recipe_is_known(load, monkeypatch):
    monkeypatch.setattr("speech_tokenizers.modeling.speech_lm_tasks.TASKS", dict(TASKS))
    args = load(MOOD + ", is_closed: true}}", "tasks.words.task=mood")
    assert args.is_closed("words")
    assert args.metrics_of("words") == ["accuracy", "macro_f1"]
    assert find_task("mood").instruction == "Name the mood"
    load(MOOD + ", is_closed: true}}", "tasks.words.task=mood")  # the same recipe again
    with pytest.raises(ValueError, match="'mood' has metrics="):
        load(MOOD + ", metrics: [wer]}}", "tasks.words.task=mood")


def test_an_open_task_needs_a_measure(load):
    with pytest.raises(ValueError, match="`tasks.words.metrics` must name a measure; the task 'mood' has none"):
        load(MOOD + "}}", "tasks.words.task=mood")
    assert "mood" not in TASKS


def test_a_task_of_the_study_hears(load):
    with pytest.raises(ValueError, match="`tasks.words.task` must be one that hears speech, but 'mood' reads `text`"):
        load(MOOD + ", source: text, metrics: [wer]}}", "tasks.words.task=mood")
    assert "mood" not in TASKS


def test_what_overrides_may_say(load):
    assert load("lm.overrides={data.max_length: 5, seeds: 1}").lm.overrides == {"data.max_length": 5, "seeds": 1}
    args = load("lm.matched=[positions, steps]", "lm.seeds_now=[2, 0]", "lm.sizes={tiny: x}")
    assert [str(level) for level in args.lm.chosen_levels] == ["lm/tiny@positions", "lm/tiny"]


@pytest.mark.parametrize("name", ["../up", "a b", ""])
def test_names_that_are_no_folders(load, name):
    args = load()
    with pytest.raises(ValueError, match="names are of letters, digits"):
        TokenStudyArguments("out", args.encoder, {name: args.tasks["words"]})
