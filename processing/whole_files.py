# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear under their names only once they are complete."""

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# Bytes that a file system takes for a name.
_LONGEST_NAME = 255


class WholeFile:
    """
    A file that is written whole or not at all.

    What is written to `temporary` becomes the file on `finish`. On `discard` it is removed, and an older file of that
    name stays as it was. As a context manager it gives the temporary path, and does the one or the other at the end of
    the block, the latter after an exception.

    Args:
        path (`str` or `Path`): The file. Missing folders are created.

    Raises:
        OSError: If a folder cannot be created, or the name is too long.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.lstat(self.path)  # a name that is too long is refused here, and not when all is written
        # In the same folder, where a rename is atomic. Its length is fixed, so that the longest names can be written.
        self.temporary = self.path.with_name(f".{secrets.token_hex(8)}.tmp")

    def finish(self) -> None:
        """
        Move what was written into place.

        Raises:
            OSError: If that fails; what was written is removed then.
        """
        try:
            os.replace(self.temporary, self.path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what was written."""
        self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.finish()
        else:
            self.discard()


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """
    Write a file whole or not at all.

    Args:
        path (`str` or `Path`): The file. Missing folders are created.
        content (`bytes` or `str`): All of the file; text is written as UTF-8.

    Returns:
        `Path`: The file.

    Raises:
        OSError: If it cannot be written; an older file of that name stays as it was.
    """
    path = Path(path)
    with WholeFile(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def beside(path: str | os.PathLike[str], suffix: str) -> Path:
    """
    A file that belongs to another one, such as the list of what could not be written to it.

    Args:
        path (`str` or `Path`): The file.
        suffix (`str`): What is appended to its name.

    Returns:
        `Path`: `path` with the suffix appended. A name that no file system takes is shortened, and a hash tells it
        from others.
    """
    path = Path(path)
    name = path.name + suffix
    if len(os.fsencode(name)) > _LONGEST_NAME:
        mark = "~" + hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8] + suffix
        stem = os.fsencode(path.name)[: _LONGEST_NAME - len(os.fsencode(mark))].decode(errors="ignore")
        name = stem + mark
    return path.with_name(name)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A folder that is written whole or not at all.

    Gives an empty folder of the same name, to fill. It replaces `path` at the end of the block. After an exception it
    is removed, and an older folder stays as it was.

    Args:
        path (`str` or `Path`): The folder. Missing parents are created.

    Raises:
        OSError: If it cannot be written, or nothing was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as parent:
        folder, older = Path(parent, "new", path.name), Path(parent, "old")
        folder.mkdir(parents=True)
        yield folder
        if not any(folder.iterdir()):
            raise FileNotFoundError(f"{path}: nothing was written that could be put there.")
        if path.exists():
            os.replace(path, older)
        try:
            os.replace(folder, path)
        except OSError:
            if older.exists():
                os.replace(older, path)
            raise


__all__ = ["WholeFile", "beside", "whole_folder", "write_whole"]
