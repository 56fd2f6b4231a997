# SPDX-License-Identifier: Apache-2.0
"""`study tone` on syllables made by a source and a filter, of which the right order of the arms is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_tokenizers.cli import main
from tests.helpers.synthetic_tones import VOWELS, write_syllables


_RECIPE = """
trainer: tone_study
output_dir: {output}
manifest: {manifest}
targets: [tone, vowel]
seeds: [0]
num_folds: 3
pca_dims: 48
fit_frames: 3000
fit_epochs: 6
encoders:
  hubert: {{name: kmeans-units-small-16khz, layers: [3]}}
main_encoder: hubert
main_layer: 3
arms:
  units: {{streams: {{units: {{num_units: 32}}}}}}
  units+f0: {{streams: {{units: {{num_units: 8}}, f0: {{source: f0, num_units: 4}}}}}}
  told: {{streams: {{units: {{num_units: 32, told: {{tone: 1.0, vowel: 1.0}}}}}}}}
  product: {{streams: {{units: {{num_units: 32}}, tone: {{num_units: 8, told: {{tone: 1.0}}, base: 0.0}}}}}}
  slow-f0: {{streams: {{units: {{num_units: 8}}, f0: {{source: f0, num_units: 16, stride: 4}}}}}}
  slow-tone: {{streams: {{tone: {{num_units: 16, stride: 4, told: {{tone: 1.0}}, base: 0.0}}}}}}
other_arms: [units]
lstm: {{arms: [units], epochs: 2}}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_syllables(tmp_path_factory.mktemp("syllables"))


@pytest.fixture(scope="module")
def study(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    recipe = folder / "recipe.yaml"
    recipe.write_text(_RECIPE.format(output=folder / "out", manifest=corpus))
    assert main(["study", "tone", str(recipe)]) == 0
    return recipe


def _results(study, name="out"):
    return json.loads((study.parent / name / "results.json").read_text())


def _tone(study, setting, arm):
    return _results(study)["views"]["hubert-layer3-by-speaker"][setting]["arms"][arm]["scores"]["tone"]["macro_f1"]


def test_the_right_order_is_found(study):
    for setting in "AB":
        # Three quarters of F0 are the tone, whoever speaks; eight units of timbre know nothing of it.
        assert _tone(study, setting, "units+f0")["low"] > 85
        assert _tone(study, setting, "units+f0")["low"] > _tone(study, setting, "told")["high"]
        assert _tone(study, setting, "shuffled-labels")["value"] < 40
        # F0 moves slowly: a code each 80 ms tells as much of the tone as half of them in vain.
        assert _tone(study, setting, "slow-f0")["low"] > 85
    known = {arm: _tone(study, "B", arm)["value"] for arm in ("continuous", "units", "told", "product")}
    assert known["units"] < min(known["told"], known["product"]) < known["continuous"]
    # What known speakers' frames tell does not carry to a new one.
    assert _tone(study, "A", "continuous")["high"] < _tone(study, "B", "continuous")["low"]


def test_the_papers_probe_stands_beside(study):
    arms = _results(study)["views"]["hubert-layer3-by-speaker"]["B"]["arms"]
    assert list(arms["units@lstm"]["scores"]) == ["tone"]
    page = (study.parent / "out" / "results.md").read_text()
    assert "| units | LSTM |" in page


def test_rates_information_and_contours_are_told(study):
    arms = _results(study)["views"]["hubert-layer3-by-speaker"]["B"]["arms"]
    assert arms["units"]["facts"]["rates"]["nominal"] == pytest.approx(250)
    assert arms["units+f0"]["facts"]["rates"]["nominal"] == pytest.approx(250)
    assert arms["product"]["facts"]["rates"]["nominal"] == pytest.approx(400)
    assert arms["units"]["facts"]["rates"]["entropy"] < 250
    assert arms["slow-f0"]["facts"]["rates"]["nominal"] == pytest.approx(200)
    assert arms["slow-tone"]["facts"]["rates"]["entropy"] <= 50
    assert arms["units+f0"]["facts"]["f0_correlation"] > 0.9 > arms["units"]["facts"]["f0_correlation"]
    assert [clip["tone"] for clip in arms["units"]["contours"]] == ["1", "2", "3", "4"]
    assert "information" not in arms["units"]["facts"]  # nobody asked for finals
    for picture in ("tone-a-frontier.png", "tone-b-confusions.png", "tone-a-contours.png"):
        assert (study.parent / "out" / picture).stat().st_size > 1000


def test_a_finished_study_reads_nothing_again_and_a_lost_cell_comes_back_the_same(study, capsys):
    output = study.parent / "out"
    before = {path: path.read_text() for path in sorted((output / "cells").rglob("*.json"))}
    stamps = {path: path.stat().st_mtime_ns for path in before}
    assert main(["study", "tone", str(study)]) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in before}
    lost = [path for path in before if "told" in path.name][:2]
    for path in lost:
        path.unlink()
    assert main(["study", "tone", str(study)]) == 0
    for path in lost:
        one, other = json.loads(path.read_text()), json.loads(before[path])
        assert one["answers"] == other["answers"]
        assert one["made_of"] == other["made_of"]
    capsys.readouterr()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(study):
    output = study.parent / "out"
    assert main(["study", "tone", str(study), f"output_dir={study.parent / 'two'}", "num_workers=2"]) == 0
    for path in sorted((output / "cells").rglob("*.json")):
        one, other = (
            json.loads(found.read_text()) for found in (path, study.parent / "two" / path.relative_to(output))
        )
        assert one["answers"] == other["answers"]
        assert one["made_of"] == other["made_of"]


def test_silence_too_short_and_unvoiced_clips_are_told(corpus, tmp_path, capsys):
    folder = corpus.parent
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    generator = np.random.default_rng(0)
    soundfile.write(folder / "noise.flac", 0.1 * generator.standard_normal(4800), 16000)
    soundfile.write(folder / "short.flac", np.zeros(40), 16000)
    added = [{**rows[0], "file_name": name, "speaker": "low", "tone": "1"} for name in ("noise.flac", "short.flac")]
    manifest = folder / "more.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *added]))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_RECIPE.format(output=tmp_path / "out", manifest=manifest))
    small = ["lstm.arms=[]", "num_folds=2"]
    assert main(["study", "tone", str(recipe), *small, "arms={units: {streams: {units: {num_units: 4}}}}"]) == 0
    captured = capsys.readouterr()
    assert "have no voiced frame" in captured.err
    assert "short.flac" in captured.out
    assert "syllables have no voiced frame" in captured.out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("main_layer=4", "main_layer"),
        ("targets=[vowel]", "must name `tone`"),
        ("arms={continuous: {streams: {units: {num_units: 4}}}}", "give yours another name"),
        ("arms={x: {streams: {units: {num_units: 4, told: {emotion: 1.0}}}}}", "emotion"),
        ("arms={x: {streams: {units: {num_units: 4, base: 0.0}}}}", "told"),
        ("arms={x: {streams: {f0: {source: f0, num_units: 8, num_stages: 2}}}}", "one stage"),
        ("other_arms=[nobody]", "nobody"),
        ("lstm.arms=[nobody]", "nobody"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(study, override, message, capsys):
    assert main(["study", "tone", str(study), "other_arms=[]", "lstm.arms=[]", override]) == 2
    assert message in capsys.readouterr().err


def test_the_corpus_is_what_it_says(corpus):
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    assert len(rows) == 3 * 3 * 4 * len(VOWELS)
    assert all((Path(corpus).parent / row["file_name"]).is_file() for row in rows)
