# SPDX-License-Identifier: Apache-2.0
"""Programs in processes of their own, alone or as the ranks of one training."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple


# Seconds that a rank is given to find out that another one has failed.
GRACE = 60.0


class Rank(NamedTuple):
    """
    End of a process.

    Args:
        returncode (`int`, *optional*): Its exit code; `None` if it had to be killed.
        output (`str`): What it printed.
    """

    returncode: int | None
    output: str


def start(program: str | Path, *args: object, stdout: int | IO = subprocess.PIPE, **variables: str):
    """
    Start Python on the CPU, with one thread and all that it prints in one place.

    Args:
        program (`str` or `Path`): File to run, or `-m`.
        args: Arguments of the program; after `-m`, the module and its arguments.
        stdout (`int` or file, *optional*): Place of what it prints. Defaults to a pipe.
        variables: Environment variables that are added or changed.

    Returns:
        `subprocess.Popen`: The process.
    """
    return subprocess.Popen(
        [sys.executable, str(program), *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **variables},
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_of_ranks(program: str | Path, *args: object, world_size: int = 2, timeout: float = 300) -> list[Rank]:
    """
    Run the same program in several processes that see each other, as a launcher does, and say how each ended.

    Where one fails, the others have `GRACE` seconds to end by themselves.

    Args:
        program, args: See [`start`].
        world_size (`int`): Number of processes.
        timeout (`float`): Seconds after which they are killed.

    Returns:
        `list[Rank]`: How each ended, by rank.
    """
    for _ in range(3):
        ranks = _run(program, args, world_size, timeout)
        # Between our look at a free port and its use, another program may have taken it.
        if not any("EADDRINUSE" in rank.output or "address already in use" in rank.output for rank in ranks):
            break
    return ranks


def run_ranks(program: str | Path, *args: object, world_size: int = 2, timeout: float = 300) -> list[str]:
    """
    Run the same program in several processes that see each other, all of which should end well.

    Args:
        program, args, world_size, timeout: See [`end_of_ranks`].

    Returns:
        `list[str]`: What each printed, by rank.

    Raises:
        AssertionError: If one of them fails or takes too long; the message is what they printed.
    """
    ranks = end_of_ranks(program, *args, world_size=world_size, timeout=timeout)
    outputs = [rank.output for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(outputs)
    return outputs


def _run(program: str | Path, args: Sequence[object], world_size: int, timeout: float) -> list[Rank]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with contextlib.ExitStack() as stack:
        # Files, since a rank would wait for a full pipe to be read while another one waits for it.
        files = [
            stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            for _ in range(world_size)
        ]
        ranks = [
            start(program, *args, stdout=file, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
            for rank, file in enumerate(files)
        ]
        codes = _codes(ranks, time.monotonic() + timeout)
        for file in files:
            file.seek(0)
        return [Rank(code, file.read()) for code, file in zip(codes, files, strict=True)]


def _codes(ranks: Sequence[subprocess.Popen], deadline: float) -> list[int | None]:
    # Exit codes; those that still run at the deadline, or `GRACE` seconds after one failed, are killed.
    has_failed = False
    while None in (codes := [process.poll() for process in ranks]) and time.monotonic() < deadline:
        if any(codes) and not has_failed:
            has_failed, deadline = True, min(deadline, time.monotonic() + GRACE)
        time.sleep(0.05)
    for process in ranks:
        process.kill()
        process.wait()
    return codes
