# SPDX-License-Identifier: Apache-2.0
"""This process among those that train together."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    r"""
    The processes of a run and their device, as `accelerate.Accelerator` will see them.

    The first `PartialState` of a process decides for all that follow, and by itself it ignores `ACCELERATE_USE_CPU`:
    each of several processes on the CPU would train alone.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def leave_together() -> None:
    r"""
    Wait for the other processes, then end what joins them: the last that a command does in each of its processes.

    A process that ends while it is still joined to others, or while another still waits for it, may be aborted.
    Does nothing where a process is alone.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
