# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear under their names only once they are complete."""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


# Bytes that a file system takes for a name.
_LONGEST_NAME = 255


class WholeFile:
    """
    A file that is written whole or not at all.

    What is written to `temporary` becomes the file on `finish`. On `discard` it is removed, and an older file of that
    name stays as it was. As a context manager it gives the temporary path, and does the one or the other at the end of
    the block, the latter after an exception. What is neither finished nor discarded is removed when Python ends.

    Args:
        path (`str` or `Path`): The file. Missing folders are created.

    Raises:
        OSError: If a folder cannot be created, the name is too long, or `path` is a folder, a device or a pipe.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        check_replaceable(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.lstat(self.path)  # a name that is too long is refused here, and not when all is written
        # In the same folder, where a rename is atomic. Its length is fixed, so that the longest names can be written.
        self.temporary = self.path.with_name(f".{secrets.token_hex(8)}.tmp")
        # A signal may come before `with` has begun or while it ends.
        self._remove = weakref.finalize(self, _remove, self.temporary)

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
        self._remove()

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.finish()
        else:
            self.discard()


def _remove(path: Path) -> None:
    # Where the folder has gone or can no longer be written, the error that led here says so.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """
    Raises:
        OSError: If `path` is there and no regular file: a new file would take the place of a device or a pipe.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder, where a file is to be written", os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is a device or a pipe, where a file is to be written", os.fspath(path))


def check_folder_is_writable(path: str | os.PathLike[str]) -> None:
    """
    Try whether files can be written into a folder, or into the one where it would be created. Nothing is left there.

    Raises:
        OSError: If not.
    """
    path = Path(path).absolute()
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    with tempfile.TemporaryFile(dir=there):
        pass


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


class LinesFile:
    """
    A file to which lines are appended, each of them whole or not at all, by one process at a time. Where the file's
    last line lacks its end, the first append adds it.

    Args:
        path (`str` or `Path`): The file, which is created if it is missing.

    Raises:
        OSError: If it cannot be opened, or another process appends to it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        check_replaceable(self.path)
        # Unbuffered: what a full disk has refused must not be written later.
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            _lock(self._file, self.path)
        except BaseException:
            self._file.close()
            raise

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """
        Remove what follows.

        Args:
            size (`int`): Bytes that stay.

        Raises:
            OSError: If it cannot be changed.
        """
        os.ftruncate(self._file.fileno(), size)

    def _ends_in_newline(self) -> bool:
        self._file.seek(0, os.SEEK_END)
        if not self._file.tell():
            return True
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"

    def append(self, line: str) -> None:
        """
        Args:
            line (`str`): A line without its end.

        Raises:
            OSError: If it cannot be written, or the file has been removed or replaced. The file has only whole lines
                then.
        """
        file, length = self._file, self.size
        end = "" if self._ends_in_newline() else "\n"
        rest = memoryview((end + line + "\n").encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), length)
            raise
        if not (self.path.exists() and os.path.samestat(os.stat(self.path), os.fstat(file.fileno()))):
            raise FileNotFoundError(errno.ENOENT, "was removed or replaced while it was written", str(self.path))

    def __enter__(self) -> "LinesFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def while_unwritten(path: str | os.PathLike[str]) -> Iterator[None]:
    """
    Nobody appends to a [`LinesFile`] within the block.

    Args:
        path (`str` or `Path`): The file.

    Raises:
        OSError: If it cannot be read, or another process appends to it.
    """
    with open(path, "rb") as file:
        _lock(file, Path(path))
        yield


def _lock(file: IO[bytes], path: Path) -> None:
    # Until the file is closed.
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        reason = "is being written by another process; wait until that has ended, or name another output"
        raise OSError(errno.EBUSY, reason, str(path)) from None
    except OSError:
        pass  # a file system without locks


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
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", ignore_cleanup_errors=True) as parent:
        folder, older = Path(parent, "new", path.name), Path(parent, "old")
        folder.mkdir(parents=True)
        yield folder
        if not any(folder.iterdir()):
            raise FileNotFoundError(f"{path}: nothing was written that could be put there.")
        try:
            if path.exists():
                os.replace(path, older)
            os.replace(folder, path)
        except BaseException:  # a signal may come between the two
            if older.exists() and not path.exists():
                os.replace(older, path)
            raise


__all__ = [
    "LinesFile",
    "WholeFile",
    "beside",
    "check_folder_is_writable",
    "check_replaceable",
    "whole_folder",
    "write_whole",
]
