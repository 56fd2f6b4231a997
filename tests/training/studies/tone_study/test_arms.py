# SPDX-License-Identifier: Apache-2.0
"""What arms of a study of tone make of a hand-made fold."""

from types import SimpleNamespace

import numpy as np
import pytest

from speech_tokenizers.training.studies.tone_study.arguments import ArmArguments, StreamArguments
from speech_tokenizers.training.studies.tone_study.arms import FoldFrames, rate_facts, system_coded
from speech_tokenizers.training.studies.tone_study.folds import Fold
from speech_tokenizers.training.studies.tone_study.frames import ClipCodes, ClipFrames
from speech_tokenizers.training.studies.tone_study.syllables import Syllable


ARGS = SimpleNamespace(num_segments=4, fit_frames=2000, fit_epochs=3)


@pytest.fixture(scope="module")
def fold_frames():
    generator = np.random.default_rng(0)
    tones = [str(1 + number % 4) for number in range(60)]
    syllables = [
        Syllable(f"clip {number}", f"clip {number}", "x", None, "a", f"s{number}", {"tone": tone}, None)
        for number, tone in enumerate(tones)
    ]
    lengths = generator.integers(5, 14, size=60)
    heights = np.repeat([int(tone) for tone in tones], lengths)
    values = generator.normal(size=(lengths.sum(), 6)) * [9, 1, 1, 1, 1, 1]
    values[:, 3] += heights
    pitch = np.where(
        generator.random(lengths.sum()) < 0.3, np.nan, heights + 0.1 * generator.normal(size=len(heights))
    )
    frames = ClipFrames(syllables, values.astype(np.float32), np.cumsum(lengths), pitch, 50.0)
    fold = Fold("0", np.arange(0, 40), np.arange(40, 50), np.arange(50, 60))
    return FoldFrames(ARGS, frames, fold, None)


def coded(fold_frames, **fields):
    return fold_frames.coded(ArmArguments({"stream": StreamArguments(**fields)}), 0)


def test_a_slow_stream_has_a_code_for_each_group_and_begins_anywhere(fold_frames):
    found = coded(fold_frames, num_units=12, stride=4)
    firsts = set()
    for clip, entries in zip(fold_frames.by_clip(found.codes[0]), fold_frames.by_clip(found.entries), strict=True):
        changes = np.flatnonzero(np.diff(entries[:, 0])) + 1
        assert set(changes % 4) <= {changes[0] % 4} if len(changes) else True
        assert (np.diff(changes) % 4 == 0).all()
        firsts |= set(changes[:1] % 4)
        assert len(clip) == len(entries)
    assert firsts == {0, 1, 2, 3}


def test_a_group_is_voiced_where_half_of_it_is(fold_frames):
    groups, sizes = fold_frames._groups(3)
    voiced = np.bincount(groups, ~np.isnan(fold_frames.pitch))
    found = coded(fold_frames, num_units=5, source="f0", stride=3)
    assert np.array_equal(found.codes[0] > 0, (2 * voiced >= sizes)[groups])
    for group in range(len(sizes)):
        assert len(set(found.codes[0][groups == group])) == 1
    assert rate_facts(found, 50.0, np.ones(len(groups), bool))["nominal"] == pytest.approx(50 * np.log2(5) / 3)


def test_told_and_dealt_labels_are_not_taken_for_each_other(fold_frames):
    told = StreamArguments(num_units=8, told={"tone": 4.0})
    dealt = StreamArguments(num_units=8, told={"tone": 4.0}, deals_labels=True)
    one = fold_frames._weighted(told, 0)
    other = fold_frames._weighted(dealt, 0)
    assert not np.allclose(one, other)
    assert np.array_equal(one, fold_frames._weighted(told, 0))
    assert not np.allclose(other, fold_frames._weighted(dealt, 1))
    slow = fold_frames._weighted(StreamArguments(num_units=8, told={"tone": 4.0}, stride=2), 0)
    assert not np.allclose(one, slow)
    # Dimensions stay where they were, and what is told becomes the largest.
    assert one.var(0).argmax() == 3 != fold_frames.values.var(0).argmax()


def test_sizes_and_strides_of_a_system_count(fold_frames):
    clips = [np.stack([np.arange(8) % 4, np.repeat([0, 1], 4)]) for _ in range(3)]
    vectors = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    codes = ClipCodes(fold_frames.syllables[:3], clips, False, vectors, [6, 2], [1, 4], 50.0)
    both, first = (system_coded(codes, np.arange(3), count, 4) for count in (2, 1))
    tested = np.ones(24, bool)
    assert rate_facts(both, 50.0, tested)["nominal"] == pytest.approx(50 * (np.log2(6) + 1 / 4))
    assert rate_facts(first, 50.0, tested) == pytest.approx({"nominal": 50 * np.log2(6), "entropy": 100.0})
