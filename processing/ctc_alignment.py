# SPDX-License-Identifier: Apache-2.0
"""Which frames of a CTC recogniser belong to which label."""

from collections.abc import Sequence

import numpy as np


def forced_alignment(log_probs: np.ndarray, labels: Sequence[int], blank: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The frames of each label on the most probable path of a CTC that spells `labels` (Viterbi).

    The path stays in a label for one or more frames and in the blank for none or more before, between and after
    labels, where two equal neighbours need a blank between them. Time grows with frames times labels, and so does
    memory, by two bytes.

    Args:
        log_probs (`np.ndarray` of shape `(num_frames, vocabulary)`): Logarithms of the probabilities.
        labels (sequence of `int`): Labels that are said, without blanks.
        blank (`int`): Index of the blank.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: First frame of each label, and the frame after its last, both of shape
        `(num_labels,)`.

    Raises:
        ValueError: If the labels need more frames than there are.
    """
    labels = np.asarray(labels, dtype=np.int64)
    num_frames = len(log_probs)
    repeats = labels[1:] == labels[:-1]
    if num_frames < len(labels) + repeats.sum():
        raise ValueError(f"`labels` need {len(labels) + repeats.sum()} frames, but there are {num_frames}.")
    if not len(labels):
        return labels, labels

    # Blank, label, blank, ..., label, blank.
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    may_skip_blank = np.zeros(len(states), dtype=bool)
    may_skip_blank[3::2] = ~repeats
    score = np.full(len(states), -np.inf)
    score[:2] = log_probs[0, states[:2]]
    moves = np.zeros((num_frames, len(states)), dtype=np.int8)
    for frame in range(1, num_frames):
        best = score.copy()
        moved = np.concatenate([[-np.inf], score[:-1]])
        skipped = np.where(may_skip_blank, np.concatenate([[-np.inf, -np.inf], score[:-2]]), -np.inf)
        for step, reached in ((1, moved), (2, skipped)):
            better = reached > best
            moves[frame, better] = step
            best[better] = reached[better]
        score = best + log_probs[frame, states]

    path = np.empty(num_frames, dtype=np.int64)
    state = len(states) - 1 if score[-1] > score[-2] else len(states) - 2
    for frame in range(num_frames - 1, -1, -1):
        path[frame] = state
        state -= int(moves[frame, state])
    positions = 2 * np.arange(len(labels)) + 1
    return np.searchsorted(path, positions, side="left"), np.searchsorted(path, positions, side="right")


def greedy_labels(log_probs: np.ndarray, blank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    The labels of the best path of a CTC, with their frames.

    Args:
        log_probs (`np.ndarray` of shape `(num_frames, vocabulary)`): Logarithms of the probabilities.
        blank (`int`): Index of the blank.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: The labels, the first frame of each, and the frame after its last,
        all of shape `(num_labels,)`.
    """
    path = log_probs.argmax(-1)
    changes = np.flatnonzero(path[1:] != path[:-1]) + 1
    starts = np.concatenate([[0], changes])[: len(path)]
    ends = np.concatenate([changes, [len(path)]])[: len(path)]
    is_label = path[starts] != blank
    return path[starts][is_label], starts[is_label], ends[is_label]


def spread_labels(
    starts: np.ndarray, ends: np.ndarray, word_ends: np.ndarray, is_speech: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Give the blank frames after a label to it.

    A CTC marks a label where it begins, in a frame or two, and leaves the rest of it blank. So a label lasts until the
    next one is marked. The last label of a word lasts no longer than until the first silent frame.

    Args:
        starts, ends (`np.ndarray` of shape `(num_labels,)`): First frame of each label, and the frame after its last.
        word_ends (`np.ndarray` of shape `(num_labels,)`): Whether each label is the last of its word.
        is_speech (`np.ndarray` of shape `(num_frames,)`): Whether each frame is not silent.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: New `starts` and `ends`.
    """
    spread = np.append(starts[1:], len(is_speech))[: len(ends)]
    for index in np.flatnonzero(word_ends):
        silent = np.flatnonzero(~is_speech[ends[index] : spread[index]])
        if len(silent):
            spread[index] = ends[index] + silent[0]
    return starts, spread


def speech_frames(audio: np.ndarray, edges: np.ndarray, threshold_db: float = 30.0) -> np.ndarray:
    """
    Whether frames are not silent: within some decibels of the loud ones.

    Args:
        audio (`np.ndarray` of shape `(num_samples,)`): The recording.
        edges (`np.ndarray` of shape `(num_frames + 1,)`): First sample of each frame, and the sample after the last
            frame.
        threshold_db (`float`, *optional*, defaults to 30.0): Distance below the 95th percentile of the power, in
            decibels, from which on a frame is silent.

    Returns:
        `np.ndarray` of shape `(num_frames,)`: Booleans, one a frame.
    """
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
    power = np.diff(energy[edges]) / np.maximum(1, np.diff(edges))
    return power > np.percentile(power, 95) * 10 ** (-threshold_db / 10)
