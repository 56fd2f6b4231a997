# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from speech_tokenizers.processing.timed_labels import TimedLabel
from speech_tokenizers.training.units import kept_directions
from speech_tokenizers.training.units.kept_directions import (
    discriminative_directions,
    fit_weighting,
    framewise_classes,
)


def gaussians(num_frames=3000, dim=6, seed=0):
    """Three classes that lie apart in dimension 2 (far) and 4 (less), in noise that is largest in dimension 0."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=num_frames)
    deviations = np.array([20.0, 1.0, 0.5, 1.0, 2.0, 1.0])[:dim]
    frames = generator.normal(size=(num_frames, dim)) * deviations + 7
    frames[:, 2] += np.array([-3.0, 0.0, 3.0])[labels]
    frames[:, 4] += np.array([1.0, -2.0, 1.0])[labels]
    return frames, labels


def test_the_known_directions_are_found_in_order():
    frames, labels = gaussians()
    found = discriminative_directions(frames, labels)
    assert found.num_directions == 2
    unit = found.projection * np.array([20.0, 1.0, 0.5, 1.0, 2.0, 1.0])[:, None]
    unit /= np.linalg.norm(unit, axis=0)
    assert abs(unit[2, 0]) > 0.99
    assert abs(unit[4, 1]) > 0.99
    # Variance of the means over that within: 6 / 0.25, and 2 / 4.
    assert found.eigenvalues == pytest.approx([24, 0.5], rel=0.1)


def test_the_variance_within_a_class_is_one_without_correlation():
    frames, labels = gaussians()
    projected = discriminative_directions(frames, labels, shrinkage=0.0)(frames)
    within = projected - np.stack([projected[labels == number].mean(0) for number in range(3)])[labels]
    assert np.allclose(within.T @ within / (len(frames) - 3), np.eye(2), atol=1e-6)
    assert np.allclose(projected.mean(0), 0, atol=1e-9)


def test_frames_without_a_label_and_gaps_in_the_numbers_change_nothing():
    frames, labels = gaussians()
    expected = discriminative_directions(frames, labels)
    noise = np.full((500, frames.shape[1]), 1e6)
    joined = np.concatenate([frames, noise])
    found = discriminative_directions(joined, np.concatenate([labels * 5, np.full(500, -1)]))
    assert np.allclose(found.projection, expected.projection)
    assert np.allclose(found.mean, expected.mean)


def test_blocks_and_order_of_frames_and_numbers_of_classes_change_nothing(monkeypatch):
    frames, labels = gaussians()
    expected = discriminative_directions(frames, labels)
    monkeypatch.setattr(kept_directions, "_FRAMES_AT_ONCE", 700)
    order = np.random.default_rng(1).permutation(len(frames))
    found = discriminative_directions(frames[order], (2 - labels)[order])
    assert np.allclose(found.projection, expected.projection)
    assert np.allclose(fit_weighting(frames, 1, [(found, 1)]).matrix, fit_weighting(frames, 1, [(expected, 1)]).matrix)


def test_a_dimension_that_never_changes_is_no_obstacle():
    frames, labels = gaussians()
    constant = np.concatenate([frames, np.ones((len(frames), 1))], axis=1)
    found = discriminative_directions(constant, labels)
    assert np.allclose(found.projection[:6], discriminative_directions(frames, labels).projection)
    assert np.isfinite(found(constant)).all()


def test_shrinkage_keeps_directions_from_fitting_few_frames_by_heart():
    generator = np.random.default_rng(0)
    frames, labels = generator.normal(size=(60, 50)), generator.integers(2, size=60)
    new, new_labels = generator.normal(size=(2000, 50)), generator.integers(2, size=2000)

    def claimed(shrinkage):
        return discriminative_directions(frames, labels, shrinkage=shrinkage).eigenvalues[0]

    assert claimed(1.0) < claimed(1e-3) < claimed(0.0)
    projected = discriminative_directions(frames, labels)(new)[:, 0]
    assert abs(np.corrcoef(projected, new_labels)[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames, labels: (frames, np.zeros_like(labels)), "two classes or more, but have 1"),
        (lambda frames, labels: (frames, np.full_like(labels, -1)), "two classes or more, but have 0"),
        (lambda frames, labels: (frames * np.nan, labels), "NaN or infinity"),
        (lambda frames, labels: (frames[:3], np.arange(3)), "3 labelled frames of 3 classes"),
        (lambda frames, labels: (frames, labels[:-1]), "they have"),
        (lambda frames, labels: (frames, labels.astype(float)), "whole numbers"),
        (lambda frames, labels: (np.ones_like(frames), labels), "means of all classes are the same"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        discriminative_directions(*change(*gaussians()))


@pytest.mark.parametrize("number", [0, 3])
def test_an_impossible_number_of_directions_is_refused(number):
    with pytest.raises(ValueError, match="between 1 and 2"):
        discriminative_directions(*gaussians(), num_directions=number)


def test_each_block_has_the_squared_norm_of_its_weight():
    frames, labels = gaussians()
    coarse = discriminative_directions(frames, labels, num_directions=1)
    fine = discriminative_directions(frames, (frames[:, 5] > 7).astype(int))
    weighting = fit_weighting(frames, 0.5, [(coarse, 1.0), (fine, 2.0)])
    weighted = weighting(frames)
    assert weighted.shape == (len(frames), 6 + 2)
    assert np.allclose(weighted.mean(0), 0)
    norms = [np.square(block).sum(1).mean() for block in (weighted[:, :6], weighted[:, 6:7], weighted[:, 7:])]
    assert norms == pytest.approx([0.25, 1.0, 4.0])
    # One affine map, also for frames that it was not fitted on.
    other = gaussians(seed=1)[0]
    assert np.allclose(weighting(other)[:, 6:], other @ weighting.matrix + weighting.offset)
    assert np.allclose(weighting.kept(other), weighting(other)[:, 6:])
    compact, weighted = weighting.compact(other), weighting(other)
    assert compact.shape == (len(other), 6)
    differences = [part[1:] - part[:-1] for part in (compact, weighted)]
    assert np.allclose(differences[0] @ differences[0].T, differences[1] @ differences[1].T)


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (1.0, np.nan), (0.0, 0.0)])
def test_impossible_weights_are_refused(weights):
    frames, labels = gaussians()
    with pytest.raises(ValueError, match="Weights must not be negative"):
        fit_weighting(frames, weights[0], [(discriminative_directions(frames, labels), weights[1])])


def test_frames_that_have_nothing_to_weigh_are_refused():
    frames, labels = gaussians()
    directions = discriminative_directions(frames, labels)
    with pytest.raises(ValueError, match="All frames are the same"):
        fit_weighting(np.ones_like(frames), 1, [(directions, 1)])
    with pytest.raises(ValueError, match="of dimension 6, but `frames` have 5"):
        fit_weighting(frames[:, :5], 1, [(directions, 1)])
    with pytest.raises(ValueError, match="is empty"):
        fit_weighting(frames, 1, [])


def test_a_class_is_a_label_and_the_part_of_its_time():
    labels = [TimedLabel("a", 0.0, 0.4), TimedLabel("b", 0.5, 0.7), TimedLabel("?", 0.8, 1.0)]
    centres = np.arange(10) / 10 + 0.05
    classes = {"a": 0, "b": 1}
    assert framewise_classes(labels, centres, classes).tolist() == [0, 0, 0, 0, -1, 1, 1, -1, -1, -1]
    assert framewise_classes(labels, centres, classes, 2).tolist() == [0, 0, 1, 1, -1, 2, 3, -1, -1, -1]
    assert framewise_classes([], centres, classes).tolist() == [-1] * 10


def test_parts_let_a_contour_be_told_that_its_label_alone_does_not_tell():
    # Rising and falling: every frame's value occurs in both.
    generator = np.random.default_rng(0)
    classes, frames = [], []
    for number in range(400):
        rising = number % 2
        contour = np.linspace(-1, 1, 8) * (1 if rising else -1)
        frames.append(np.stack([contour, generator.normal(size=8)], axis=1) + generator.normal(size=(8, 2)) * 0.1)
        label = [TimedLabel("r" if rising else "f", 0.0, 0.8)]
        classes.append([framewise_classes(label, np.arange(8) / 10 + 0.05, {"f": 0, "r": 1}, p) for p in (1, 4)])
    frames, classes = np.concatenate(frames), np.concatenate(classes, axis=1)
    assert discriminative_directions(frames, classes[0]).eigenvalues[0] < 0.05
    found = discriminative_directions(frames, classes[1])
    assert found.eigenvalues[0] > 5
    assert abs(found.projection[0, 0]) > 10 * abs(found.projection[1, 0])


def test_impossible_parts_and_times_are_refused():
    with pytest.raises(ValueError, match="`parts` must be at least 1"):
        framewise_classes([], np.zeros(1), {}, 0)
    with pytest.raises(ValueError, match="ends at 1 s, before"):
        framewise_classes([TimedLabel("a", 2.0, 1.0)], np.zeros(1), {"a": 0})
