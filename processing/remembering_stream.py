# SPDX-License-Identifier: Apache-2.0
"""A binary file that is written by a C library, whose callbacks swallow exceptions."""

from collections.abc import Callable
from typing import Any, BinaryIO


class RememberingStream:
    """
    A binary file whose methods raise nothing; `check` raises what went wrong first, be it an error or a signal.

    Args:
        file (`BinaryIO`): The file.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        return self._try(lambda: self._file.read(size), b"")

    def write(self, data: bytes) -> int:
        return self._try(lambda: self._file.write(data), 0)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._try(lambda: self._file.seek(offset, whence), 0)

    def tell(self) -> int:
        return self._try(self._file.tell, 0)

    def check(self) -> None:
        """Raises the first exception of the other methods, if there was one."""
        if self._error is not None:
            raise self._error

    def _try(self, call: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return call()
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self._error = self._error or error
            return otherwise


__all__ = ["RememberingStream"]
