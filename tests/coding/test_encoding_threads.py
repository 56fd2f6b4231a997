# SPDX-License-Identifier: Apache-2.0
"""Threads call a model side by side, as the caller's thread would, and not further ahead than they are told."""

import copy
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


def test_threads_share_weights_and_no_notes(two_cores):
    model = Remembering()
    with EncodingThreads(model) as threads:
        assert threads.num_threads == 2
        found = list(threads.map(lambda each, number: (each, each(number), torch.get_num_threads()), range(8)))
    assert sorted(number for _, number, _ in found) == list(range(8))
    assert {num_threads for _, _, num_threads in found} == {1}
    assert {each.weight.data_ptr() for each, _, _ in found} == {model.weight.data_ptr()}
    assert len({id(each) for each, _, _ in found}) == 2
    assert torch.get_num_threads() == 2


class Uncopied(Remembering):
    def __deepcopy__(self, memo):
        raise copy.Error("not this one")


def with_a_function():
    model = Remembering()
    forward = model.forward
    model.forward = lambda number: forward(number)
    return model


def with_a_hook():
    model, seen = torch.nn.Sequential(Remembering()), []
    model.device = torch.device("cpu")
    model[0].register_forward_hook(lambda module, args, output: seen.append(module))
    return model


def compiled():
    model = Remembering()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("make", [Uncopied, with_a_function, with_a_hook, compiled])
def test_of_a_model_whose_copy_would_differ_the_caller_makes_use_alone(two_cores, make):
    model = make()
    with EncodingThreads(model) as threads:
        assert threads.num_threads == 1
        found = list(threads.map(lambda each, _: (each, threading.current_thread()), range(3)))
        assert torch.get_num_threads() == 2
    assert found == [(model, threading.main_thread())] * 3
    with ThreadPoolExecutor(1) as pool:  # nothing is left behind
        assert pool.submit(torch.get_num_threads).result() == 2


def test_several_at_once_leave_the_number_of_threads_as_it_was(two_cores):
    first, second = EncodingThreads(Remembering()), EncodingThreads(Remembering())
    assert second.num_threads == 2
    with second, first:
        list(first.map(lambda each, _: None, range(3)))
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_the_caller_s_autocast_holds_in_the_threads(two_cores):
    def product(model, number):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    with EncodingThreads(Remembering()) as threads:
        assert set(threads.map(product, range(4))) == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16), EncodingThreads(Remembering()) as threads:
        assert set(threads.map(product, range(4))) == {torch.bfloat16}


def test_what_takes_long_holds_up_nothing_else(two_cores):
    others_are_done = threading.Event()

    def work(model, number):
        return number if number else others_are_done.wait(timeout=60)

    found = []
    with EncodingThreads(Remembering()) as threads:
        for result in threads.map(work, range(20)):
            found.append(result)
            if len(found) == 19:
                others_are_done.set()
    assert sorted(found[:19]) == list(range(1, 20))
    assert found[19] is True


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
