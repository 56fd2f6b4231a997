# SPDX-License-Identifier: Apache-2.0
"""The end that a signal asks for, as an exception."""

import signal


class Terminated(KeyboardInterrupt):
    """
    A signal asked this process to end. As after Ctrl-C, every cleanup runs, and what catches errors lets it pass.

    Args:
        signal_number (`int`): Number of the signal. The process should end with the exit code 128 + this number.
    """

    def __init__(self, signal_number: int = signal.SIGTERM):
        super().__init__(f"ended by signal {int(signal_number)}")
        self.signal_number = int(signal_number)


def interruption(signal_number: int) -> KeyboardInterrupt:
    """The exception for a signal: `KeyboardInterrupt` itself for Ctrl-C."""
    return KeyboardInterrupt() if signal_number == signal.SIGINT else Terminated(signal_number)


__all__ = ["Terminated", "interruption"]
