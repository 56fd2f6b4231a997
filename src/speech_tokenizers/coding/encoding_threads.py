# SPDX-License-Identifier: Apache-2.0
"""Threads that encode side by side, each on a core of its own, so that no bit depends on how many there are."""

import collections
import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from types import FunctionType, TracebackType
from typing import Any

import torch


class EncodingThreads:
    """
    Threads that call a model, as a context manager.

    On a CPU there are as many as torch would use for one call, and each computes by itself: they need not wait for
    each other at every layer, and what they find does not depend on their number. Each has the model's weights, but
    modules of its own, since encoders keep notes in their modules while they run. The caller's autocast holds in them.
    Other threads of the process that begin meanwhile also compute by themselves.

    On a GPU, where torch has one thread, and where a copy of the model would differ, the caller works by itself.

    Args:
        model: Model in evaluation mode.

    Attributes:
        num_threads (`int`): Number of threads.
    """

    def __init__(self, model: Any):
        self._torch_threads = _torch_threads
        kind = model.device.type
        models = _copies(model, self._torch_threads.outside() if kind == "cpu" else 1)
        self.num_threads = len(models)
        self._model = model
        self._pool: ThreadPoolExecutor | None = None
        if self.num_threads == 1:
            return
        self._models: SimpleQueue[Any] = SimpleQueue()
        for each in models:
            self._models.put(each)
        self._autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        self._torch_threads.enter()
        self._pool = ThreadPoolExecutor(self.num_threads, initializer=_use_one_thread)

    def map(self, function: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Results of `function(model, item)`, in the order in which they are done. Each thread is one ahead."""
        if self._pool is None:
            yield from self._one_behind(function, items)
            return
        waiting: set[Future[Any]] = set()
        try:
            for item in items:
                waiting.add(self._pool.submit(self._call, function, item))
                while len(waiting) > self.num_threads:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in waiting:
                future.cancel()

    def _one_behind(self, function: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        # A result is given once the next one is under way, lest a GPU waits until it was fetched.
        results: collections.deque[Any] = collections.deque()
        for item in items:
            results.append(function(self._model, item))
            if len(results) > 1:
                yield results.popleft()
        yield from results

    def _call(self, function: Callable[[Any, Any], Any], item: Any) -> Any:
        model = self._models.get()
        try:
            with torch.autocast(**self._autocast):
                return function(model, item)
        finally:
            self._models.put(model)

    def __enter__(self) -> "EncodingThreads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._torch_threads.leave()


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
    # The model, and copies of its modules with the same tensors; the model alone where these would not be equal to it.
    parts = [part for part in (model, getattr(model, "model", None)) if isinstance(part, torch.nn.Module)]
    modules = [module for part in parts for module in part.modules()]
    if number == 1 or any(map(_is_changed, modules)) or _is_changed(model):
        return [model]
    shared = {id(tensor): tensor for part in parts for tensor in (*part.parameters(), *part.buffers())}
    try:
        return [model, *(copy.deepcopy(model, dict(shared)) for _ in range(number - 1))]
    except Exception:  # noqa: BLE001 - whatever it is, the model itself is there
        return [model]


def _is_changed(module: Any) -> bool:
    # Whether functions were put in place of methods, or a hook holds variables of its own: a copy would call them for
    # the original. Or whether the module was compiled, which a copy is not.
    held = vars(module)
    hooks = [hook for value in held.values() if isinstance(value, dict) for hook in value.values()]
    return held.get("_compiled_call_impl") is not None or any(
        isinstance(function, FunctionType) and function.__closure__ is not None
        for function in (*held.values(), *hooks)
    )


def _use_one_thread() -> None:
    torch.set_num_threads(1)


class _TorchThreads:
    # Remembers torch's number of threads as long as any `EncodingThreads` are there. A thread that sets its own number
    # sets that of all threads that begin after it.
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_users = 0
        self._num_outside = 1

    def outside(self) -> int:
        with self._lock:
            return self._num_outside if self._num_users else torch.get_num_threads()

    def enter(self) -> None:
        with self._lock:
            if not self._num_users:
                self._num_outside = torch.get_num_threads()
            self._num_users += 1

    def leave(self) -> None:
        with self._lock:
            self._num_users -= 1
            if not self._num_users:
                torch.set_num_threads(self._num_outside)


_torch_threads = _TorchThreads()


__all__ = ["EncodingThreads", "map_ahead"]
