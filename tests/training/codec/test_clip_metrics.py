# SPDX-License-Identifier: Apache-2.0
"""Metrics of `evaluate` in the evaluations of a training run, and the curves of several runs."""

import importlib.util

import numpy as np
import pytest

from speech_tokenizers.cli import main
from speech_tokenizers.evaluation.clip_results import MetricFailure
from speech_tokenizers.evaluation.reconstruction.comparison import METRICS
from speech_tokenizers.evaluation.reconstruction.signal_metrics import PESQ, STOI, ScaleInvariantSDR
from speech_tokenizers.processing.optional_packages import MissingPackageError
from speech_tokenizers.training.codec.clip_metrics import ClipMetrics
from speech_tokenizers.training.codec.codec_recipe import train_from_recipe
from speech_tokenizers.training.common.reporting import TrainingLog, draw_metric_curves, read_log


class FailingPESQ(PESQ):
    """Stands in for the package, which needs a compiler: finds no utterance in short recordings."""

    def __init__(self):
        super(PESQ, self).__init__()

    def score_clip(self, decoded, recorded, sampling_rate):
        if len(recorded) < 5000:
            raise MetricFailure("No utterances detected")
        return len(recorded) / 1000


@pytest.fixture
def failing_pesq(monkeypatch):
    monkeypatch.setitem(METRICS, "pesq", FailingPESQ)


def test_a_recipe_names_what_evaluation_measures(recipe_file, audio_folder, recordings, failing_pesq):
    recipe = recipe_file(
        max_steps=2, eval_steps=2, metrics=["stoi", "pesq", "si_sdr"], data={"eval": str(audio_folder)}
    )
    trainer = train_from_recipe(str(recipe))
    *_, training, evaluation = read_log(trainer.output_dir / "training_log.jsonl")
    lengths = [len(recording) for recording in recordings]
    scored = [length / 1000 for length in lengths if length >= 5000]
    assert len(scored) == 4
    assert evaluation["eval_pesq"] == pytest.approx(np.mean(scored))
    assert evaluation["eval_pesq_left_out"] == 2
    assert np.isfinite(evaluation["eval_si_sdr"])
    assert "eval_si_sdr_left_out" not in evaluation
    # The shorter ones lack the 0.4 s of speech that STOI wants.
    assert evaluation["eval_stoi_left_out"] == 4
    assert np.isfinite(evaluation["eval_stoi"])
    assert evaluation["training_minutes"] == training["training_minutes"] > 0
    assert (trainer.output_dir / "loss_curves.png").stat().st_size > 0


def test_metric_without_any_value_has_no_mean(make_trainer):
    trainer = make_trainer()
    trainer.compute_metrics = lambda recorded, decoded, rate: {"never": None, "always": 2.0}
    values = trainer.evaluate()
    assert values["eval_never_left_out"] == 2
    assert "eval_never" not in values
    assert values["eval_always"] == 2.0
    assert "eval_always_left_out" not in values


def test_scores_are_those_of_evaluate(recordings):
    recorded = np.concatenate(recordings)
    decoded = recorded + 0.01 * np.random.default_rng(0).standard_normal(len(recorded)).astype(np.float32)
    scores = ClipMetrics(["stoi", "si_sdr"], 16000)(recorded, decoded, 16000)
    assert scores == {
        "stoi": STOI().score_clip(decoded, recorded, 16000),
        "si_sdr": ScaleInvariantSDR().score_clip(decoded, recorded, 16000),
    }
    assert ClipMetrics(["si_sdr"], 16000)(recorded, recorded, 16000) == {"si_sdr": None}


def test_misspelt_metric_is_an_error_at_the_start(make_trainer):
    with pytest.raises(ValueError, match="`pesk` is unknown; did you mean `pesq`"):
        make_trainer(metrics=["pesk"])


def test_missing_package_is_an_error_at_the_start_that_names_the_extra(make_trainer, recipe_file, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pesq" else find_spec(name))
    with pytest.raises(MissingPackageError, match=r"speech-tokenizers\[evaluation\]"):
        make_trainer(metrics=["pesq"])
    assert main(["train", str(recipe_file(metrics=["pesq"]))]) == 2
    assert "speech-tokenizers[evaluation]" in capsys.readouterr().err


def test_metric_that_is_not_defined_at_the_codecs_rate_is_an_error_at_the_start():
    pytest.importorskip("pesq")
    with pytest.raises(ValueError, match="must be 16000 Hz for PESQ-wb"):
        ClipMetrics(["pesq"], 24000)


@pytest.mark.parametrize(
    ("at_most", "expected"), [(None, [0, 1, 2, 3, 4, 5]), (2, [0, 3]), (4, [0, 1, 3, 4]), (9, range(6))]
)
def test_evaluation_recordings_are_spread_over_the_list(recipe_file, audio_folder, recordings, at_most, expected):
    recipe = recipe_file(data={"eval": str(audio_folder), "max_eval_recordings": at_most}, max_steps=1)
    trainer = train_from_recipe(str(recipe))
    assert [len(recording) for recording in trainer.data.evaluation] == [len(recordings[i]) for i in expected]


def test_at_least_one_recording_is_evaluated(make_args):
    with pytest.raises(ValueError, match="`max_eval_recordings` must be at least 1"):
        make_args(data={"max_eval_recordings": 0})


def test_curves_of_several_runs_lie_in_one_picture(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    axes = []
    add_subplot = figure.Figure.add_subplot
    monkeypatch.setattr(
        figure.Figure, "add_subplot", lambda *arguments: axes.append(add_subplot(*arguments)) or axes[-1]
    )
    logs = {name: tmp_path / name for name in ("small", "large")}
    for shift, path in enumerate(logs.values()):
        log = TrainingLog(path)
        for step in (1, 2):
            log.write({"step": step, "training_minutes": step / 4, "loss": 1.0})
            log.write({"step": step, "training_minutes": step / 4, "eval_pesq": 1.5 + shift + step})
    draw_metric_curves(logs, tmp_path / "curves.png", "eval_pesq")
    assert (tmp_path / "curves.png").stat().st_size > 0
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes[0].lines}
    assert lines == {"small": [[0.25, 2.5], [0.5, 3.5]], "large": [[0.25, 3.5], [0.5, 4.5]]}
    with pytest.raises(ValueError, match="`eval_pesk` is unknown; did you mean `eval_pesq`"):
        draw_metric_curves(logs, tmp_path / "curves.png", "eval_pesk")
    TrainingLog(tmp_path / "old").write({"step": 1, "training_minutes": 2.0})
    with open(tmp_path / "old", "a") as file:
        file.write('{"step": 2, "eval_pesq": 2.0}\n')
    with pytest.raises(ValueError, match="in no entry both"):
        draw_metric_curves({"old": tmp_path / "old"}, tmp_path / "curves.png", "eval_pesq")
