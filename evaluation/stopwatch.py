# SPDX-License-Identifier: Apache-2.0
"""Time on the clock and on the processor."""

import time


class Stopwatch:
    """Context manager that measures wall-clock `seconds` and the process's `cpu_seconds`."""

    def __enter__(self) -> "Stopwatch":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu
