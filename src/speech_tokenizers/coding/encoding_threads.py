# SPDX-License-Identifier: Apache-2.0
"""Threads that encode side by side, each on a core of its own, so that no bit depends on how many there are."""

import collections
import copy
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch


class EncodingThreads:
    """
    Threads that call a model, as a context manager.

    On a CPU there are as many as torch would use for one call, and each computes by itself: they need not wait for
    each other at every layer, and what they find does not depend on their number. Each has the model's weights, but
    modules of its own, since encoders keep notes in their modules while they run. Of a model that cannot be copied,
    and on a GPU, there is one thread.

    Args:
        model: Model in evaluation mode.

    Attributes:
        num_threads (`int`): Number of threads.
    """

    def __init__(self, model: Any):
        self._is_shared = model.device.type == "cpu"
        wanted = _single_threads.enter() if self._is_shared else 1
        models = _copies(model, wanted)
        self.num_threads = len(models)
        self._models: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for each in models:
            self._models.put(each)
        self._pool = ThreadPoolExecutor(self.num_threads, initializer=self._begin)

    def map(self, function: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Results of `function(model, item)`, in the order of the items, of which some are under way ahead of time."""
        return map_ahead(lambda item: self._call(function, item), items, self._pool, self.num_threads + 1)

    def _begin(self) -> None:
        # In each thread.
        if self._is_shared:
            torch.set_num_threads(1)

    def _call(self, function: Callable[[Any, Any], Any], item: Any) -> Any:
        model = self._models.get()
        try:
            return function(model, item)
        finally:
            self._models.put(model)

    def __enter__(self) -> "EncodingThreads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._is_shared:
            _single_threads.leave()


def map_ahead(
    function: Callable[[Any], Any], items: Iterable[Any], pool: ThreadPoolExecutor, num_ahead: int
) -> Iterator[Any]:
    """
    Results of a function, in the order of its arguments, which threads make before they are asked for.

    Args:
        function (callable): The function.
        items (iterable): Its arguments.
        pool (`ThreadPoolExecutor`): The threads.
        num_ahead (`int`): Number of results that may be under way.
    """
    waiting: collections.deque[Future[Any]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _copies(model: Any, number: int) -> list[Any]:
    # The model, and copies of its modules with the same tensors.
    models = [model]
    modules = [part for part in (model, getattr(model, "model", None)) if isinstance(part, torch.nn.Module)]
    shared = {id(tensor): tensor for part in modules for tensor in (*part.parameters(), *part.buffers())}
    try:
        models += [copy.deepcopy(model, dict(shared)) for _ in range(number - 1)]
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        return [model]
    return models


class _SingleThreads:
    # Remembers how many threads torch has outside, as long as any `EncodingThreads` are there: torch keeps one number
    # for threads that begin and for its matrix products.
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_users = 0
        self._num_outside = 1

    def enter(self) -> int:
        with self._lock:
            if not self._num_users:
                self._num_outside = torch.get_num_threads()
            self._num_users += 1
            return self._num_outside

    def leave(self) -> None:
        with self._lock:
            self._num_users -= 1
            if not self._num_users:
                torch.set_num_threads(self._num_outside)


_single_threads = _SingleThreads()


__all__ = ["EncodingThreads", "map_ahead"]
