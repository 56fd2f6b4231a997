# SPDX-License-Identifier: Apache-2.0
"""Long work in a process of its own, which is asked to stop when this process is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Finished(NamedTuple):
    """
    End of a process.

    Args:
        returncode (`int`): Exit code of the process.
        seconds (`float`): Wall-clock time in seconds.
        peak_memory_gb (`float`): Greatest resident memory of the process, in GB.
        stopped_by (`int`): Number of the signal that told it to stop; 0 if none did.
    """

    returncode: int
    seconds: float
    peak_memory_gb: float
    stopped_by: int


def run_command(arguments: Sequence[str]) -> Finished:
    """
    Run `speech-tokenizers` with these arguments and wait for it. The first SIGTERM or Ctrl-C is passed on as SIGTERM;
    trainings then save a checkpoint.
    """
    command = [sys.executable, "-m", "speech_tokenizers", *arguments]
    started = time.perf_counter()
    # A session of its own, so that Ctrl-C reaches it once, from here.
    process = subprocess.Popen(command, start_new_session=True)
    with _passing_signals_on(process) as passed_on:
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Finished(
        process.returncode,
        time.perf_counter() - started,
        usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9,
        passed_on[0] if passed_on else 0,
    )


@contextlib.contextmanager
def _passing_signals_on(process: subprocess.Popen) -> Iterator[list[int]]:
    # The list holds the signals that were passed on.
    passed_on: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def pass_on(number: int, _: object) -> None:
        passed_on.append(number)
        process.send_signal(signal.SIGTERM)

    for number in previous:
        signal.signal(number, pass_on)
    try:
        yield passed_on
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
