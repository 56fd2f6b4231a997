# SPDX-License-Identifier: Apache-2.0
"""
SIGTERM, SIGHUP, Ctrl-C and what batch systems send before they stop a job end a command in one way: by an exception,
so that every cleanup runs.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from speech_tokenizers.commands.frame import say
from speech_tokenizers.processing.termination import interruption


# A batch system tells a job by SIGUSR1 or SIGUSR2 that its time ends, and by SIGXCPU that it has used it up.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
# The signals that this command was sent.
_received: list[int] = []


@contextlib.contextmanager
def interruptions() -> Iterator[None]:
    """
    Within this context the first of these signals raises what [`interruption`] gives. Further ones do not disturb the
    cleanup, but for the third Ctrl-C. A signal that is ignored, as under `nohup`, stays ignored.
    """
    _received.clear()
    process = os.getpid()

    def receive(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a child that was forked from this process: none of its cleanups is ours
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _received.append(number)
        num_pressed = _received.count(signal.SIGINT)
        if len(_received) == 1 or (number == signal.SIGINT and num_pressed > 2):
            raise interruption(number)
        if number == signal.SIGINT:
            say("stopping; Ctrl-C once more stops at once")

    previous: dict[int, Any] = {}
    # ValueError: signals can only be caught in the main thread.
    with contextlib.suppress(ValueError):
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, receive)
                previous[number] = handler
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def raise_lost_interruption() -> None:
    """
    Raise the exception of a signal that has come already, if one has.

    C libraries swallow an exception that is raised while they call Python, as soundfile's does. Work that goes on from
    file to file asks between them.
    """
    if _received:
        raise interruption(_received[0])
