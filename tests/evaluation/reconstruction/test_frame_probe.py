# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch

from speech_tokenizers.evaluation.codec_systems import ModelSystem
from speech_tokenizers.evaluation.frame_labels import label_frames, read_labels
from speech_tokenizers.evaluation.reconstruction.frame_probe import (
    ProbedUtterance,
    fit_linear,
    held_out_speakers,
    macro_f1,
    probe,
    probe_system,
)
from speech_tokenizers.processing.timed_labels import TimedLabel


ENTRIES = np.random.default_rng(0).standard_normal((3, 16, 24))  # stages, codes, dimensions


def look_up(codes: np.ndarray) -> np.ndarray:
    return sum((ENTRIES[stage, row] for stage, row in enumerate(codes)), np.zeros((codes.shape[1], 24)))


def make_utterances(count: int, seed: int, informative: int | None) -> list[ProbedUtterance]:
    """Random codes of three stages; the label is the code of the stage `informative`, halved, or random."""
    generator = np.random.default_rng(seed)
    utterances = []
    for number in range(count):
        codes = generator.integers(0, 8, (3, 60))
        labels = generator.integers(0, 4, 60) if informative is None else codes[informative] // 2
        labels = np.where(generator.random(60) < 0.1, -1, labels)
        utterances.append(ProbedUtterance(f"{seed}/{number}", codes, labels))
    return utterances


def score(result, name: str) -> float:
    return result.scores[name].estimate().value


def test_a_frame_has_the_label_at_its_middle():
    classes = {"a": 0, "b": 1}
    spans = [TimedLabel("a", 0.0, 0.05), TimedLabel("b", 0.05, 0.08), TimedLabel("|", 0.08, 0.2)]
    # Middles at 0.01, 0.03, 0.05, 0.07, 0.09 s.
    assert label_frames(spans, 5, 50.0, classes).tolist() == [0, 0, 1, 1, -1]
    assert label_frames([], 2, 50.0, classes).tolist() == [-1, -1]


def test_macro_f1_by_hand():
    # Class 0: 2 hits, 3 predicted, 2 true: 0.8. Class 1: 1 hit, 1 predicted, 2 true: 2/3. Class 2 never occurs.
    sums = np.array([2, 1, 0, 3, 1, 0, 2, 2, 0])
    assert macro_f1(sums) == pytest.approx(100 * (0.8 + 2 / 3) / 2)
    assert np.isnan(macro_f1(np.zeros(9)))


def test_held_out_speakers_do_not_move_when_others_come():
    speakers = [f"speaker {number}" for number in range(20)]
    held_out = held_out_speakers(speakers * 3)
    assert len(held_out) == 5
    assert held_out_speakers(speakers) == held_out
    # Four more may add one to the held out, and push none but the last out.
    assert len(held_out & held_out_speakers([*speakers, "w", "x", "y", "z"])) >= 2
    assert held_out_speakers(["one", "other"]) < {"one", "other"}
    with pytest.raises(ValueError, match="at least two speakers"):
        held_out_speakers(["one"])


def test_logistic_regression_is_at_its_minimum():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    counts = torch.randint(0, 5, (30, 3), generator=generator).double()
    weights, biases = fit_linear(features, counts, decay=0.01)
    # The gradient by hand: features' (softmax - shares) + decay * weights.
    shares = counts / counts.sum()
    difference = shares.sum(-1, keepdim=True) * torch.softmax(features @ weights + biases, -1) - shares
    assert (features.T @ difference + 0.01 * weights).abs().max() < 1e-5
    assert difference.sum(0).abs().max() < 1e-5


@pytest.mark.parametrize("stage", [0, 2])
def test_the_stage_that_knows_the_label_is_found(stage):
    train, test = make_utterances(40, 0, stage), make_utterances(10, 1, stage)
    other = 1
    for stages, best in (((stage + 1, stage + 1), 95.0), ((1, 3), 95.0)):
        result = probe(train, test, list("abcd"), look_up, stages)
        # Three times eight entries of 24 dimensions: any labels of them are linearly separable.
        assert score(result, "accuracy[linear]") > best
        assert score(result, "accuracy[linear, shuffled]") < 40
    assert score(probe(train, test, list("abcd"), look_up, (stage + 1, stage + 1)), "macro_f1[majority]") == 100
    ignorant = probe(train, test, list("abcd"), look_up, (other + 1, other + 1))
    assert 15 < score(ignorant, "accuracy[linear]") < 35
    assert 15 < score(ignorant, "accuracy[majority]") < 35


def test_majority_by_hand_and_unlabelled_frames_do_not_count():
    # Code 0: a, a, b; code 1: b, b. Code 2 was never seen: the commonest label, b.
    train = [ProbedUtterance("t", np.array([[0, 0, 0, 1, 1, 0]]), np.array([0, 0, 1, 1, 1, -1]))]
    test = [
        ProbedUtterance("u", np.array([[0, 1, 2, 2]]), np.array([0, 1, 0, -1])),
        ProbedUtterance("v", np.array([[2]]), np.array([1])),
    ]
    result = probe(train, test, ["a", "b"], look_up)
    assert result.scores["accuracy[majority]"].counts == {"u": (200.0, 3), "v": (100.0, 1)}
    assert score(result, "accuracy[majority]") == 75.0
    # a: 1 hit, 1 predicted, 2 true; b: 2 hits, 3 predicted, 2 true.
    assert score(result, "macro_f1[majority]") == pytest.approx(100 * (2 / 3 + 4 / 5) / 2)
    assert (result.num_train, result.num_test) == (5, 4)


def test_wrong_stages_and_missing_labels_are_refused():
    train, test = make_utterances(2, 0, 0), make_utterances(2, 1, 0)
    with pytest.raises(ValueError, match="within 1 to 3, but got 2 to 4"):
        probe(train, test, list("abcd"), look_up, (2, 4))
    silent = [ProbedUtterance("s", np.zeros((3, 4), int), np.full(4, -1))]
    with pytest.raises(ValueError, match="test set has a label"):
        probe(train, silent, list("abcd"), look_up)


def test_a_codec_is_probed_on_held_out_recordings_only(make_rvq_codec):
    system = ModelSystem(*make_rvq_codec(), "codec")
    time = np.arange(8000) / 16000
    tones = {"low": 200, "high": 1500}
    # Half a second each of low and high, so that a frame's label is its pitch.
    audio = np.concatenate([0.3 * np.sin(2 * np.pi * hertz * time) for hertz in tones.values()]).astype(np.float32)
    spans = [TimedLabel("low", 0.0, 0.5), TimedLabel("high", 0.5, 1.0), TimedLabel("|", 1.0, 1.1)]
    names = [f"{number}.wav" for number in range(4)]
    noise = np.random.default_rng(0)
    recordings = {name: audio + 0.001 * noise.standard_normal(len(audio)).astype(np.float32) for name in names}
    results = probe_system(
        system, recordings.__getitem__, dict.fromkeys(names, spans), {"3.wav"}, stages=[(1, 1), (1, 4)]
    )
    assert list(results) == [(1, 1), (1, 4)]
    result = results[1, 1]
    assert result.labels == ["high", "low"]
    assert list(result.scores["accuracy[linear]"].counts) == ["3.wav"]
    assert (result.num_train, result.num_test) == (150, 50)
    assert score(results[1, 4], "accuracy[linear]") > 65
    assert "accuracy[majority]" not in results[1, 4].scores


def test_labels_are_read_and_a_wrong_line_is_named(tmp_path):
    path = tmp_path / "labels.jsonl"
    row = {"file_name": "a.wav", "text": "a", "labels": [{"label": "AH", "start": 0, "end": 0.5}]}
    path.write_text(json.dumps(row) + "\n")
    assert read_labels(path) == {"a.wav": [TimedLabel("AH", 0.0, 0.5)]}
    path.write_text(json.dumps(row) + "\n" + json.dumps({"file_name": "b.wav"}) + "\n")
    with pytest.raises(ValueError, match="line 2: `file_name` and `labels`"):
        read_labels(path)
