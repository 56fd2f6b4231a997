# SPDX-License-Identifier: Apache-2.0
import os

import pytest
import torch

from speech_tokenizers.training.common.shared_work import share_work


def begin(offset):
    return offset, os.getpid()


def work(state, job):
    if job < 0:
        raise ValueError(f"{job} cannot be done")
    return job + state[0], os.getpid() == state[1], torch.get_num_threads()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(num_workers):
    found = list(share_work(work, range(7), num_workers, begin, (10,), jobs_at_once=2))
    assert [result for result, _, _ in found] == list(range(10, 17))
    assert all(began_here for _, began_here, _ in found)
    if num_workers == 2:
        assert {threads for _, _, threads in found} == {1}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_ends_all(num_workers):
    with pytest.raises(ValueError, match="-1 cannot be done"):
        list(share_work(work, [1, -1, *range(50)], num_workers, begin, (0,)))


def test_nothing_is_begun_for_nothing():
    assert list(share_work(work, [], 2, lambda: 1 / 0)) == []
