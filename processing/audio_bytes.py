# SPDX-License-Identifier: Apache-2.0
"""The bytes of an audio file: read at any place, searched, and put together anew under a corrected header."""

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from .file_errors import FileError


_SEARCH_BYTES = 1 << 20
# What writers put for a size when they cannot seek back to fill in the true one lies close to 2^31, 2^32, 2^63 or
# 2^64: 0x7FFFF000 (SoX), 0x7F000000 (SoX, AIFF), 0x80000000 (arecord), 0xFFFFFFFF (FFmpeg), 0xFFFFFFDB (LAME), -1, ...
_BELOW_2_TO_31 = range(0x7EFE0000, 0x80020000)
_CLOSE = 0x20000


class AudioFileError(FileError):
    """An audio file that cannot be read or written; see [`FileError`]."""


class DamagedAudio(ValueError):
    """What is wrong with the bytes of an audio file, and what to do, in one line."""


@dataclass(frozen=True)
class AudioPart:
    """
    One recording in a file, which may hold several, one behind the other.

    Args:
        pieces (`tuple` of `bytes` and `range`): What a decoder gets: new bytes, and ranges of the file's bytes.
        stop (`int`): Where what follows begins in the file.
        num_frames (`int`, *optional*): Samples a channel, where they follow from the bytes.
        tolerance (`int`): Samples that a decoder may leave out.
        is_known (`bool`): Whether it can be told that nothing is missing.
    """

    pieces: tuple[bytes | range, ...]
    stop: int
    num_frames: int | None = None
    tolerance: int = 0
    is_known: bool = True


class ByteSource:
    """
    Bytes of a seekable file, from where it stands to its end.

    Args:
        file (binary file): The file; it stays open, and where it stands is lost.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self._start = file.tell()
        self.size = file.seek(0, os.SEEK_END) - self._start

    def read(self, position: int, length: int) -> bytes:
        """Bytes from `position` on; fewer than `length` at the end."""
        wanted = min(length, self.size - position)
        if position < 0 or wanted <= 0:
            return b""
        self.file.seek(self._start + position)
        found = self.file.read(wanted)
        while len(found) < wanted and (more := self.file.read(wanted - len(found))):
            found += more  # an unbuffered file may give less than was asked for
        return found

    def find(
        self, pattern: bytes, position: int, stop: int, accept: Callable[[int], bool] = lambda position: True
    ) -> int:
        """Where `pattern` stands first, and `accept` agrees; -1 if nowhere."""
        while position < stop:
            block = self.read(position, min(_SEARCH_BYTES, stop - position))
            at = block.find(pattern)
            while at >= 0:
                if accept(position + at):
                    return position + at
                at = block.find(pattern, at + 1)
            if len(block) < len(pattern) or position + len(block) >= stop:
                break
            position += len(block) - len(pattern) + 1
        return -1

    def after_zeros(self, position: int) -> int:
        """Where the first byte that is not 0 stands, or the end."""
        while position < self.size:
            is_set = np.frombuffer(self.read(position, _SEARCH_BYTES), dtype=np.uint8) != 0
            if is_set.any():
                return position + int(is_set.argmax())
            if not len(is_set):
                break
            position += len(is_set)
        return self.size


class PiecedFile(io.RawIOBase):
    """
    Pieces of a file and new bytes as one file, to be read by libsndfile.

    Args:
        source (`ByteSource`): The file.
        pieces (iterable of `bytes` and `range`): New bytes, and ranges of bytes of the file.

    libsndfile cannot pass an exception on, so `error` keeps the one that ended a read.
    """

    def __init__(self, source: ByteSource, pieces: Iterable[bytes | range]):
        self._source = source
        self._pieces = [piece for piece in pieces if len(piece)]
        self._length = sum(map(len, self._pieces))
        self._position = 0
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer) -> int:
        target = memoryview(buffer).cast("B")
        filled, begin = 0, 0
        for piece in self._pieces:
            offset = self._position - begin
            begin += len(piece)
            if filled == len(target):
                break
            if offset >= len(piece):
                continue
            part = piece[offset : offset + len(target) - filled]
            try:
                found = part if isinstance(part, bytes) else self._source.read(part.start, len(part))
            except OSError as error:
                self.error = error
                break
            target[filled : filled + len(found)] = found
            filled += len(found)
            self._position += len(found)
            if len(found) < len(part):
                break
        return filled


def is_whole(source: ByteSource, pieces: Iterable[bytes | range]) -> bool:
    """Whether pieces, joined, are all bytes of a file as they stand there."""
    position = 0
    for piece in pieces:
        if isinstance(piece, range):
            if len(piece) and piece.start != position:
                return False
        elif source.read(position, len(piece)) != piece:
            return False
        position += len(piece)
    return position == source.size


def is_unknown_size(size: int) -> bool:
    """Whether a size in a header is one that a writer puts there for "not known yet", other than 0."""
    return size in _BELOW_2_TO_31 or any(0 < top - size <= _CLOSE for top in (1 << 32, 1 << 63, 1 << 64)) or size < 0


def check_not_cut(announced: int, available: int) -> None:
    """
    Raises:
        DamagedAudio: If fewer bytes are there than a header announces.
    """
    if announced > available:
        missing = announced - available
        raise DamagedAudio(f"truncated: the last {missing} bytes are missing; copy or convert it anew.")


__all__ = [
    "AudioFileError",
    "AudioPart",
    "ByteSource",
    "DamagedAudio",
    "PiecedFile",
    "check_not_cut",
    "is_unknown_size",
    "is_whole",
]
