# SPDX-License-Identifier: Apache-2.0
"""Probes of units against scikit-learn, hand counts, and codes of which it is known what they tell."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from speech_tokenizers.evaluation.clips import Clip
from speech_tokenizers.evaluation.reconstruction.frame_probe import macro_f1
from speech_tokenizers.evaluation.units import probes as unit_probes
from speech_tokenizers.evaluation.units.agreement import joint_symbols
from speech_tokenizers.evaluation.units.encoded_clips import EncodedClips, SpokenClips, UnitSettings
from speech_tokenizers.evaluation.units.probes import (
    CodeRows,
    ProbeInputs,
    balanced_accuracy,
    class_counts,
    class_weights,
    cross_validate,
    fit_mlp,
    measure_probes,
    mlp_scores,
    probe_task,
)
from speech_tokenizers.processing.timed_labels import TimedLabel


@pytest.fixture
def skewed():
    """Items of three classes, of which the last is rare, that overlap; ten groups."""
    generator = np.random.default_rng(0)
    classes = generator.choice(3, 300, p=[0.6, 0.35, 0.05])
    values = 3 + generator.standard_normal((300, 6)) @ np.diag([1, 5, 0.1, 1, 2, 1])
    values[:, :2] += 1.5 * np.stack([classes == 1, classes == 2], axis=1) * [1, 5]
    task = probe_task([f"class {number}" for number in classes], [f"group {number % 10}" for number in range(300)])
    return ProbeInputs(torch.from_numpy(values).float()), task


def test_linear_probe_is_the_balanced_logistic_regression_of_scikit_learn(skewed):
    inputs, task = skewed
    expected = np.empty(len(task.classes), int)
    for fold in range(5):
        known, tested = task.folds != fold, task.folds == fold
        scaler = StandardScaler().fit(inputs.values.numpy()[known])
        model = LogisticRegression(
            C=1 / (unit_probes.DECAY * known.sum()), class_weight="balanced", tol=1e-8, max_iter=5000
        ).fit(scaler.transform(inputs.values.numpy()[known]), task.classes[known])
        expected[tested] = model.predict(scaler.transform(inputs.values.numpy()[tested]))
    predicted = cross_validate(inputs, task, "linear")
    assert (predicted == expected).mean() > 0.99
    assert (predicted == task.classes).mean() > 0.6


def test_scores_are_those_of_scikit_learn(skewed):
    inputs, task = skewed
    predicted = cross_validate(inputs, task, "linear")
    counts = class_counts(task, predicted)
    assert counts.shape == (10, 9)
    expected = 100 * f1_score(task.classes, predicted, average="macro")
    assert macro_f1(counts.sum(0)) == pytest.approx(expected)
    expected = 100 * balanced_accuracy_score(task.classes, predicted)
    assert balanced_accuracy(counts.sum(0)) == pytest.approx(expected)
    own = task.groups == 3
    assert counts[3, 6:].tolist() == np.bincount(task.classes[own], minlength=3).tolist()


def test_scores_by_hand():
    task = probe_task(list("aabbabbb"), list("12121212"))
    # True a a b b a b b b; said a b b b a a b b. F1 of a: 2 of 3 and 3, 2/3; of b: 4 of 5 and 5, 4/5.
    counts = class_counts(task, np.array([0, 1, 1, 1, 0, 0, 1, 1]))
    assert counts.sum(0).tolist() == [2, 4, 3, 5, 3, 5]
    assert macro_f1(counts.sum(0)) == pytest.approx(100 * (2 / 3 + 4 / 5) / 2)
    assert balanced_accuracy(counts.sum(0)) == pytest.approx(100 * (2 / 3 + 4 / 5) / 2)
    # A class that does not occur has no part; without items there is no value.
    assert balanced_accuracy(np.array([1, 0, 2, 1, 2, 0])) == pytest.approx(50.0)
    assert np.isnan(balanced_accuracy(np.zeros(6)))


def test_classes_weigh_the_same():
    weights = class_weights(torch.tensor([0, 0, 0, 2]), 4)
    assert weights.tolist() == pytest.approx([2 / 3] * 3 + [2.0])
    assert weights.mean() == pytest.approx(1.0)


def test_groups_stay_in_one_fold_and_classes_are_spread():
    generator = np.random.default_rng(0)
    speakers = [f"s{number}" for number in generator.integers(0, 23, 400)]
    genders = ["fm"[int(speaker[1:]) % 2] for speaker in speakers]
    task = probe_task(genders, speakers, seed=1)
    assert np.array_equal(task.items, np.arange(400))
    pairs = set(zip(speakers, task.folds.tolist(), strict=True))
    assert len(pairs) == 23
    for label in range(2):
        sizes = [len(set(task.groups[(task.folds == fold) & (task.classes == label)])) for fold in range(5)]
        assert max(sizes) - min(sizes) <= 1
    again, other = (probe_task(genders, speakers, seed=seed) for seed in (1, 2))
    assert np.array_equal(task.folds, again.folds)
    assert not np.array_equal(task.folds, other.folds)


def test_clips_of_a_speaker_are_never_all_held_out():
    generator = np.random.default_rng(0)
    speakers = np.repeat([f"s{number}" for number in range(20)], generator.integers(2, 9, 20)).tolist()
    task = probe_task(speakers, [f"clip {number}" for number in range(len(speakers))])
    for fold in range(5):
        assert set(task.classes[task.folds != fold]) == set(range(20))


def test_classes_of_a_single_group_are_left_out():
    task = probe_task(["a", "b", "a", "c", "b", "c"], ["1", "1", "2", "3", "2", "3"])
    assert (task.labels, task.left_out) == (["a", "b"], ["c"])
    assert task.items.tolist() == [0, 1, 2, 4]
    assert task.classes.tolist() == [0, 1, 0, 1]
    assert task.groups.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="at least two classes"):
        probe_task(["a", "a", "b"], ["1", "2", "3"])


def test_what_is_tested_is_not_known_while_learning(skewed, monkeypatch):
    monkeypatch.setattr(unit_probes, "NUM_STEPS", 20)
    inputs, task = skewed
    for classifier in unit_probes.CLASSIFIERS:
        before = cross_validate(inputs, task, classifier)
        changed = inputs.values.clone()
        (first, *others) = np.flatnonzero(task.folds == 0)
        changed[first] = 1e4
        after = cross_validate(ProbeInputs(changed), task, classifier)
        assert np.array_equal(after[others], before[others])
        # Labels of the tested fold neither.
        other_classes = np.where(task.folds == 0, 0, task.classes)
        blind = dataclasses.replace(task, classes=other_classes)
        assert np.array_equal(cross_validate(inputs, blind, classifier)[task.folds == 0], before[task.folds == 0])


def test_codes_are_the_one_hot_rows_that_they_stand_for():
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(0, 4, (30,), generator=generator), 4 + torch.arange(30) % 5], dim=1)
    dense = torch.zeros(30, 9).scatter_(1, codes, 1.0)
    rows = CodeRows(codes, 9)
    weights = torch.randn(9, 3, generator=generator, requires_grad=True)
    torch.testing.assert_close(rows @ weights, dense @ weights)
    torch.testing.assert_close(rows[torch.tensor([3, 1])] @ weights, dense[[3, 1]] @ weights)
    gradients = [torch.autograd.grad((part @ weights).square().sum(), weights)[0] for part in (rows, dense)]
    torch.testing.assert_close(*gradients)
    classes = (codes[:, 0] + codes[:, 1]) % 3
    task = probe_task([str(int(number)) for number in classes], [str(number % 6) for number in range(30)])
    said = [
        cross_validate(ProbeInputs(rows), task, "linear"),
        # Of the same spread already, so that nothing is scaled.
        cross_validate(types.SimpleNamespace(standardized=lambda _: dense), task, "linear"),
    ]
    assert np.array_equal(*said)


def test_the_mlp_learns_what_is_not_linear():
    generator = np.random.default_rng(0)
    values = generator.choice([-1.0, 1.0], (400, 2)) + 0.2 * generator.standard_normal((400, 2))
    labels = ["same" if a * b > 0 else "other" for a, b in values]
    task = probe_task(labels, [str(number % 20) for number in range(400)])
    inputs = ProbeInputs(torch.from_numpy(values).float())
    hits = {name: (cross_validate(inputs, task, name) == task.classes).mean() for name in unit_probes.CLASSIFIERS}
    assert hits["mlp"] > 0.97
    assert hits["linear"] < 0.7
    shuffled = cross_validate(inputs, task, "mlp", shuffled=True)
    assert 0.35 < (shuffled == task.classes).mean() < 0.65


def test_the_mlp_is_seeded_and_gives_nothing_for_codes_that_it_never_saw(skewed):
    inputs, task = skewed
    classes = torch.from_numpy(task.classes)
    state = torch.get_rng_state()
    first, again, other = (fit_mlp(inputs.standardized(torch.arange(300)), classes, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    layers = fit_mlp(CodeRows(classes[:, None] % 2, 5), classes, 3)
    assert not layers[0][2:].any()
    nothing = mlp_scores(layers, CodeRows(torch.tensor([[3], [4]]), 5))
    assert torch.equal(nothing[0], nothing[1])


class Encoded(EncodedClips):
    """Clips of 12 speakers whose codes are their phones, and whose features tell the speaker and gender besides."""

    def __init__(self, speakers=None, genders=None, has_features=True, num_quantizers=1):
        generator = np.random.default_rng(0)
        numbers = np.repeat(np.arange(12), 5)
        names = [f"{number}.wav" for number in range(60)]
        voices = 2 * generator.standard_normal((12, 8)) + 4 * (np.arange(12)[:, None] % 2)
        said = [generator.integers(0, 4, 200) for _ in names]
        sounds = 6 * generator.standard_normal((4, 8))
        labels = {
            name: [TimedLabel("AEIO"[k], place / 50, (place + 1) / 50) for place, k in enumerate(phones)]
            for name, phones in zip(names, said, strict=True)
        }
        self.entries = sounds
        self.data = SpokenClips(
            [Clip(name, None, name, None) for name in names],
            [f"speaker {number}" for number in numbers] if speakers is None else speakers,
            ["fm"[number % 2] for number in numbers] if genders is None else genders,
            labels,
        )
        self.system = types.SimpleNamespace(
            codebook_size=16, frame_rate=50.0, frame_centres=lambda count: (np.arange(count) + 0.5) / 50
        )
        self.numbers = list(range(60))
        self.codes = [np.stack([part] + (num_quantizers - 1) * [0 * part]) for part in said]
        self._features = [sounds[part] + voices[number] for part, number in zip(said, numbers, strict=True)]
        if not has_features:
            self._features = None

    def symbols(self):
        return joint_symbols(self.codes), self.entries


def test_what_the_units_keep_and_lose_is_found(monkeypatch):
    monkeypatch.setattr(unit_probes, "NUM_STEPS", 60)
    measured = measure_probes(Encoded(num_quantizers=2), UnitSettings(probe_frames=10))
    assert measured.failures == {}
    values = {name: score["value"] for name, score in measured.scores.items()}
    for classifier in ("linear", "mlp"):
        for view in ("units", "centroids", "features"):
            expected = 85 if view == "features" else 99
            assert values[f"probe_phone[{view}][{classifier}]"] > expected
            assert values[f"probe_phone[{view}][{classifier}][balanced_accuracy]"] > expected
            assert values[f"probe_phone[{view}][{classifier}][shuffled]"] < 45
        assert values[f"probe_speaker[features][{classifier}]"] > 60
        assert values[f"probe_gender[features][{classifier}]"] > 85
        for view in ("units", "centroids"):
            assert values[f"probe_speaker[{view}][{classifier}]"] < 35
            assert values[f"probe_gender[{view}][{classifier}]"] < 75
    assert measured.details["probes"] == {
        "speaker": {"num_items": 60, "num_classes": 12, "num_groups": 60, "num_folds": 5},
        "gender": {"num_items": 60, "num_classes": 2, "num_groups": 12, "num_folds": 5},
        "phone": {"num_items": 60 * 10, "num_classes": 4, "num_groups": 12, "num_folds": 5},
    }
    for name, score in measured.scores.items():
        assert score["low"] <= score["high"], name
        assert score["num_clips"] == 60


def test_equal_settings_give_equal_scores(monkeypatch):
    monkeypatch.setattr(unit_probes, "NUM_STEPS", 5)
    monkeypatch.setattr(unit_probes, "INPUTS", ("units",))
    one, again, other = (measure_probes(Encoded(), UnitSettings(seed=seed)).scores for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_what_cannot_be_probed_has_a_reason(monkeypatch):
    monkeypatch.setattr(unit_probes, "NUM_STEPS", 5)
    speakers = [f"speaker {number // 5}" for number in range(60)]
    speakers[:2], speakers[5] = [None, None], "alone"
    measured = measure_probes(Encoded(speakers, [None] * 60, has_features=False), UnitSettings())
    assert measured.failures["probe_gender"] == {"it needs a column `gender` in the metadata": []}
    assert measured.failures["probe_speaker"] == {
        "the speaker is not known": ["0.wav", "1.wav"],
        "left out, with a single clip": ["alone"],
    }
    assert measured.failures["probe_speaker[features]"] == {"the model does not tell what it quantizes": []}
    assert measured.failures["probe_phone"] == {
        "no frame has a label, or the speaker is not known": ["0.wav", "1.wav"]
    }
    assert measured.scores["probe_phone[features][mlp]"] is None
    assert measured.scores["probe_phone[units][linear]"]["num_clips"] == 58
    assert measured.scores["probe_speaker[units][linear]"]["num_clips"] == 57
    assert not any(name.startswith("probe_gender") for name in measured.scores)


def test_features_that_are_not_finite_have_a_reason_and_no_score(monkeypatch):
    monkeypatch.setattr(unit_probes, "NUM_STEPS", 5)
    encoded = Encoded()
    encoded.features[7][3] = np.nan
    measured = measure_probes(encoded, UnitSettings())
    for classifier in unit_probes.CLASSIFIERS:
        for suffix in ("", "[balanced_accuracy]", "[shuffled]"):
            name = f"probe_speaker[features][{classifier}]{suffix}"
            assert measured.scores[name] is None
            assert measured.failures[name] == {"what it would learn from is not finite": []}
    assert measured.scores["probe_speaker[units][linear]"]["num_clips"] == 60
