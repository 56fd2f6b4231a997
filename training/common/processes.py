# SPDX-License-Identifier: Apache-2.0
"""This process among those that train together."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, LoggerType, broadcast_object_list, parse_flag_from_env
from torch import nn

from speech_tokenizers.processing.termination import interruption
from speech_tokenizers.training.common.precision import resolve_precision


Decision = TypeVar("Decision")


def process_state() -> PartialState:
    """
    State of the processes of a run and their device, as `accelerate.Accelerator` will see them.

    The first `PartialState` of a process decides for all that follow, and by itself it ignores `ACCELERATE_USE_CPU`:
    each of several processes on the CPU would train alone.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def leave_together() -> None:
    """
    Wait for the other processes, then end what joins them. It is the last thing that a command does in each of its
    processes.

    A process that ends while it is still joined to others, or while another still waits for it, may be aborted.
    Does nothing where a process is alone.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def agreed_signal(accelerator: Accelerator, signal_number: int, step: int, logging_steps: int) -> int:
    """
    The signal that told any of the processes to stop. Several of them ask each other when they log, to save time.

    Args:
        accelerator (`Accelerator`): Accelerator of the run.
        signal_number (`int`): Signal that this process got; 0 if none.
        step (`int`): Number of steps taken.
        logging_steps (`int`): Steps between logs.
    """
    if accelerator.num_processes == 1:
        return signal_number
    if step % logging_steps:
        return 0
    return int(accelerator.gather(torch.tensor([signal_number], device=accelerator.device)).max())


def decided_by_main(decide: Callable[[], Decision]) -> Decision:
    """
    What the main process finds, for all processes; a `ValueError` of its too.

    Args:
        decide (callable): Function that the main process alone calls. What it returns can be pickled.
    """
    processes = process_state()
    outcome: list[Any] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = decide()
        except ValueError as error:
            if processes.num_processes == 1:
                raise
            outcome[1] = str(error)
    if processes.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def stop_together(signal_number: int) -> NoReturn:
    """End all processes of a run, which have agreed on a signal, by the exception of that signal."""
    leave_together()
    raise interruption(signal_number)


def make_accelerator(args: Any, find_unused_parameters: bool) -> Accelerator:
    """
    Accelerator of a run.

    Args:
        args (dataclass): Recipe with `mixed_precision`, `report_to` and `output_dir`.
        find_unused_parameters (`bool`): Whether some parameters get no gradient.
    """
    # Buffers are not broadcast: a quantizer itself keeps codebooks equal on all processes.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=find_unused_parameters)
    precision = resolve_precision(args.mixed_precision, process_state().device.type)
    known = [kind.value for kind in LoggerType]
    if unknown := [name for name in args.report_to if name not in known]:
        listed = ", ".join(known)
        raise ValueError(f"`report_to` names the tracker {unknown[0]!r}, which is unknown; known are {listed}.")
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=list(args.report_to) or None,
        project_dir=args.output_dir,
        kwargs_handlers=[parallel],
    )
    if accelerator.device.type == "cpu":
        # Denormal numbers, as in fading silence, are slow and inaudible.
        torch.set_flush_denormal(True)
    return accelerator


@contextmanager
def without_synchronization(accelerator: Accelerator, modules: Iterable[nn.Module | None]) -> Iterator[None]:
    """Within this context the gradients of modules stay on their process, as between micro-batches."""
    with ExitStack() as stack:
        for module in modules:
            if module is not None:
                stack.enter_context(accelerator.no_sync(module))
        yield
