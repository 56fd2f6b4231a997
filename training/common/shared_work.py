# SPDX-License-Identifier: Apache-2.0
"""Jobs that do not depend on each other, shared by the processes of one machine."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch


def share_work(
    work: Callable[[Any, Any], Any],
    jobs: Sequence[Any],
    num_workers: int,
    begin: Callable[..., Any],
    begin_args: Sequence[Any] = (),
    jobs_at_once: int = 1,
) -> Iterator[Any]:
    """
    Do jobs, and yield what each gives, in their order. An error of one ends all.

    Args:
        work (callable): Gets what `begin` gave, and a job.
        jobs (sequence): Jobs.
        num_workers (`int`): Processes, each of one thread. With 1, or of one job alone, this process does them.
        begin (callable): Called once in each process.
        begin_args (sequence): Its arguments. Functions, arguments and jobs must be such that `pickle` can send them.
        jobs_at_once (`int`): Jobs that a process is sent together.
    """
    if num_workers == 1 or len(jobs) < 2:
        state = begin(*begin_args) if jobs else None
        yield from (work(state, job) for job in jobs)
        return
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        min(num_workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(work, begin, tuple(begin_args)),
    ) as pool:
        parts = [jobs[start : start + jobs_at_once] for start in range(0, len(jobs), jobs_at_once)]
        promised = [pool.submit(_work, part) for part in parts]
        try:
            for part in promised:
                yield from part.result()
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:  # what they have begun is begun anew later
                worker.terminate()
            raise


# What a process works with: the function, and what `begin` gave.
_WORK: list[Any] = []


def _begin(work: Callable[[Any, Any], Any], begin: Callable[..., Any], begin_args: tuple) -> None:
    torch.set_num_threads(1)
    _WORK[:] = [work, begin(*begin_args)]


def _work(jobs: Sequence[Any]) -> list[Any]:
    return [_WORK[0](_WORK[1], job) for job in jobs]


__all__ = ["share_work"]
