# SPDX-License-Identifier: Apache-2.0
"""Errors that name a file."""

import os
from pathlib import Path


class FileError(ValueError):
    """
    A file that cannot be read or written.

    Args:
        path (`str` or `Path`): The file.
        reason (`str`): Sentence that says what is wrong and what to do, in one line.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str):
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self):
        # Data loader workers send exceptions through pickle, which would call `__init__` with the joined message
        # alone.
        return type(self), (self.path, self.reason)
