# SPDX-License-Identifier: Apache-2.0
"""Threads call a model side by side, in order, and not further ahead than they are told."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from speech_tokenizers.coding.encoding_threads import EncodingThreads, map_ahead


class Remembering(torch.nn.Module):
    """A model that keeps a note in itself while it runs, as encoders of transformers do."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.device = torch.device("cpu")
        self.note = None

    def forward(self, number):
        self.note = number
        barrier.wait(timeout=60)  # both threads are here
        return self.note


barrier = threading.Barrier(2)


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_share_weights_and_no_notes(two_cores):
    model = Remembering()
    with EncodingThreads(model) as threads:
        assert threads.num_threads == 2
        found = list(threads.map(lambda each, number: (each, each(number), torch.get_num_threads()), range(8)))
    assert [number for _, number, _ in found] == list(range(8))
    assert {num_threads for _, _, num_threads in found} == {1}
    assert {each.weight.data_ptr() for each, _, _ in found} == {model.weight.data_ptr()}
    assert len({id(each) for each, _, _ in found}) == 2
    assert torch.get_num_threads() == 2


def test_a_model_that_cannot_be_copied_has_one_thread(two_cores):
    model = Remembering()
    model.lock = threading.Lock()
    with EncodingThreads(model) as threads:
        assert threads.num_threads == 1
        assert [each is model for each in threads.map(lambda each, _: each, range(3))] == [True] * 3


def test_several_at_once_leave_the_number_of_threads_as_it_was(two_cores):
    first, second = EncodingThreads(Remembering()), EncodingThreads(Remembering())
    assert second.num_threads == 2
    with second, first:
        list(first.map(lambda each, _: None, range(3)))
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_an_error_ends_it_where_it_stands_and_starts_nothing_more():
    asked = []

    def numbers():
        for number in range(100):
            asked.append(number)
            yield number

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(lambda number: 12 // (3 - number), numbers(), pool, 2)
        assert [next(results) for _ in range(3)] == [4, 6, 12]
        with pytest.raises(ZeroDivisionError):
            next(results)
    assert len(asked) <= 6
