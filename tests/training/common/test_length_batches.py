# SPDX-License-Identifier: Apache-2.0
"""Batches by length: each recording once an epoch, within the size, shared by processes, resumed by their number."""

import itertools

import numpy as np
import pytest

from speech_tokenizers.processing.packing import pack_by_length
from speech_tokenizers.training.common.length_batches import LengthBatchSampler


LENGTHS = np.random.default_rng(0).integers(100, 3000, 157)
SIZE = 6000


def sampler(num_batches=1000, **options) -> LengthBatchSampler:
    return LengthBatchSampler(LENGTHS, SIZE, num_batches, **options)


def test_packing_by_hand():
    # Three of 4 fill 12; a fourth would not, nor would 7 beside 5.
    assert pack_by_length([4, 4, 3, 4, 5, 7], [2, 0, 1, 3, 4, 5], 12) == [[2, 0, 1], [3, 4], [5]]


def test_a_recording_that_is_too_long_comes_alone():
    assert pack_by_length([2, 50, 2], [0, 1, 2], 10) == [[0], [1], [2]]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_has_every_recording_once(epoch):
    batches = sampler().epoch_batches(epoch)
    seen = sorted(itertools.chain(*batches))
    assert seen == list(range(epoch * len(LENGTHS), (epoch + 1) * len(LENGTHS)))


def test_batches_stay_within_their_size_and_waste_little():
    batches = [[index % len(LENGTHS) for index in batch] for batch in sampler().epoch_batches(0)]
    padded = [max(LENGTHS[batch]) * len(batch) for batch in batches]
    assert max(padded) <= SIZE
    assert sum(LENGTHS) / sum(padded) > 0.93
    assert np.mean(padded) > 0.75 * SIZE


def test_epochs_differ_in_batches_and_in_their_order():
    first, second = sampler().epoch_batches(0), sampler().epoch_batches(1)
    second = [[index - len(LENGTHS) for index in batch] for batch in second]
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    longest = [max(LENGTHS[batch]) for batch in first]
    assert longest != sorted(longest)


def test_epochs_follow_each_other():
    endless = sampler(60)
    expected = endless.epoch_batches(0) + endless.epoch_batches(1) + endless.epoch_batches(2)
    assert list(endless) == expected[:60]
    assert len(endless) == 60


def test_seed_alone_decides():
    assert list(sampler(30, seed=1)) == list(sampler(30, seed=1))
    assert list(sampler(30, seed=1)) != list(sampler(30, seed=2))


def test_processes_take_turns():
    alone = list(sampler(60))
    shares = [list(sampler(20, rank=rank, world_size=3)) for rank in range(3)]
    assert [batch for step in zip(*shares, strict=True) for batch in step] == alone


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="`lengths` must hold at least one recording"):
        LengthBatchSampler([], SIZE, 1)
    with pytest.raises(ValueError, match="none of length 0"):
        LengthBatchSampler([3, 0], SIZE, 1)
    with pytest.raises(ValueError, match="must be positive, but got 6000 and 0"):
        sampler(0)


def test_processes_share_batches():
    options = {"share_batches": True, "drop_incomplete": True}
    alone = list(sampler(30, drop_incomplete=True))
    shares = [list(sampler(30, rank=rank, world_size=2, **options)) for rank in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert abs(len(parts[0]) - len(parts[1])) <= 1
    with pytest.raises(ValueError, match="A batch has 2 recordings for 3 processes"):
        list(LengthBatchSampler([5, 5], 10, 1, rank=2, world_size=3, share_batches=True))


def test_an_incomplete_batch_is_left_out():
    # As in Spin's sampler: full batches alone, and what is left out is the shortest.
    for epoch in range(3):
        batches = [[i % len(LENGTHS) for i in b] for b in sampler(drop_incomplete=True).epoch_batches(epoch)]
        kept = list(itertools.chain(*batches))
        left_out = sorted(set(range(len(LENGTHS))) - set(kept))
        assert len(kept) == len(set(kept))
        assert max(max(LENGTHS[batch]) * len(batch) for batch in batches) <= SIZE
        assert 0 < len(left_out) < SIZE // LENGTHS.min()
        bucket = LENGTHS.max() // 32
        assert max(LENGTHS[left_out]) // bucket <= min(LENGTHS[kept]) // bucket
    assert LengthBatchSampler([5, 5], 20, 1, drop_incomplete=True).epoch_batches(0) != []
