# SPDX-License-Identifier: Apache-2.0
"""Programs in processes of their own, alone or as the ranks of one training."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path


def start(program: str | Path, *args: object, **variables: str) -> subprocess.Popen:
    """
    Start Python on the CPU, with one thread and its output in a pipe.

    Args:
        program (`str` or `Path`): File to run, or `-m`.
        args: Arguments of the program; after `-m`, the module and its arguments.
        variables: Environment variables that are added or changed.
    """
    return subprocess.Popen(
        [sys.executable, str(program), *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_ranks(program: str | Path, *args: object, world_size: int = 2, timeout: float = 300) -> list[str]:
    """
    Run the same program in several processes that see each other, as a launcher does.

    Args:
        program, args: See [`start`].
        world_size (`int`): Number of processes.
        timeout (`float`): Seconds after which they are killed.

    Returns:
        `list[str]`: What each printed, by rank.

    Raises:
        AssertionError: If one of them fails; the message is what they printed.
        subprocess.TimeoutExpired: If they take longer than `timeout`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [start(program, *args, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(world_size)]
    deadline = time.monotonic() + timeout
    try:
        outputs = [process.communicate(timeout=deadline - time.monotonic())[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0] * world_size, "\n".join(outputs)
    return outputs
