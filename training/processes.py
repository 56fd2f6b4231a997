# SPDX-License-Identifier: Apache-2.0
"""This process among those that train together."""

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    r"""
    The processes of a run and their device, as `accelerate.Accelerator` will see them.

    The first `PartialState` of a process decides for all that follow, and by itself it ignores `ACCELERATE_USE_CPU`:
    each of several processes on the CPU would train alone.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
