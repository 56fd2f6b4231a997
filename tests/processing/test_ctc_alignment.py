# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from speech_tokenizers.processing.ctc_alignment import forced_alignment, greedy_labels, speech_frames, spread_labels


def most_probable_path(log_probs: np.ndarray, labels: list[int], blank: int) -> tuple[int, ...] | None:
    """The best of all paths that spell `labels`."""
    paths = [
        path
        for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs))
        if [label for label, _ in itertools.groupby(path) if label != blank] == labels
    ]
    return max(paths, key=lambda path: sum(log_probs[np.arange(len(path)), path]), default=None)


@pytest.mark.parametrize("seed", range(20))
def test_the_path_is_the_best_of_all(seed):
    draw = np.random.default_rng(seed)
    num_frames, vocabulary = draw.integers(1, 7), draw.integers(2, 5)
    blank = int(draw.integers(vocabulary))
    others = [label for label in range(vocabulary) if label != blank]
    labels = draw.choice(others, draw.integers(0, 4)).tolist()
    log_probs = np.log(draw.dirichlet(np.ones(vocabulary), num_frames))
    expected = most_probable_path(log_probs, labels, blank)
    if expected is None:
        with pytest.raises(ValueError, match="frames, but there are"):
            forced_alignment(log_probs, labels, blank)
        return
    path = [blank] * num_frames
    for label, start, end in zip(labels, *forced_alignment(log_probs, labels, blank), strict=True):
        path[start:end] = [label] * (end - start)
    assert tuple(path) == expected


def test_equal_neighbours_are_parted_by_a_blank():
    starts, ends = forced_alignment(np.log(np.full((3, 2), 0.5)), [1, 1], blank=0)
    assert (starts.tolist(), ends.tolist()) == ([0, 2], [1, 3])


def test_the_greedy_path_is_collapsed():
    path = [0, 2, 2, 0, 2, 1, 1, 0]
    labels, starts, ends = greedy_labels(np.log(np.eye(3)[path] * 0.9 + 0.03), blank=0)
    assert (labels.tolist(), starts.tolist(), ends.tolist()) == ([2, 2, 1], [1, 4, 5], [3, 5, 7])
    assert len(greedy_labels(np.zeros((0, 3)), blank=0)[0]) == 0


def test_blank_frames_belong_to_the_label_before_them_and_silence_to_none():
    # Two labels make a word, a third another, after a pause.
    is_speech = np.ones(14, dtype=bool)
    is_speech[[0, 4, 8, 9, 13]] = False
    starts, ends = spread_labels(np.array([2, 6, 11]), np.array([3, 7, 12]), np.array([False, True, True]), is_speech)
    assert (starts.tolist(), ends.tolist()) == ([2, 6, 11], [6, 8, 13])


def test_quiet_frames_are_silence():
    audio = np.concatenate([np.full(400, level) for level in (0.001, 0.5, 0.2, 0.0)])
    assert speech_frames(audio, np.arange(5) * 400).tolist() == [False, True, True, False]
    assert not speech_frames(np.zeros(800), np.arange(3) * 400).any()
