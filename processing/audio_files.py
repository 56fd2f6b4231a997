# SPDX-License-Identifier: Apache-2.0
"""Read and write audio files of any length in blocks, with errors that name the file, the reason and the remedy."""

import glob
import io
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from .sampling_rates import whole_sampling_rate
from .whole_files import WholeFile


AudioSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

# What libsndfile decodes; used only to pick files out of a folder. A file that is named outright is tried whatever its
# suffix.
AUDIO_SUFFIXES = (
    ".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".sph", ".w64", ".wav", ".wave",
)  # fmt: skip

# Suffix of an output file -> libsndfile's (format, subtype).
_WRITABLE_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}
# libsndfile keeps a Vorbis block on the C stack and overflows it for long arrays.
_FRAMES_PER_WRITE = 1 << 16
# Sizes that writers put into a RIFF header when they cannot seek back to fill in the true one.
_UNKNOWN_RIFF_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)


class AudioFileError(ValueError):
    """
    An audio file that cannot be read or written.

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


def find_files(patterns: Iterable[str | os.PathLike[str]], suffixes: Iterable[str]) -> list[tuple[Path, Path]]:
    """
    Expand files, folders and globs into files.

    Args:
        patterns (iterable of `str` or `Path`):
            Files (taken as they are), folders (searched recursively for `suffixes`, hidden entries skipped) and globs
            (`**` crosses folders; folders that match are searched like folders named outright).
        suffixes (iterable of `str`): Lower-case suffixes that count inside folders, such as `.wav`.

    Returns:
        `list[tuple[Path, Path]]`: Each file once, in the order of `patterns` and sorted within each, with its path
        relative to the folder that was searched (or the fixed part of the glob), from which an output can keep the
        layout.

    Raises:
        AudioFileError: If a pattern matches nothing.
    """
    suffixes = tuple(suffixes)
    found: dict[Path, tuple[Path, Path]] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            matches = _files_below(path, path, suffixes)
            if not matches:
                raise AudioFileError(pattern, f"this folder holds no file that ends in {', '.join(suffixes)}.")
        elif path.exists():
            matches = [(path, Path(path.name))]
        elif glob.has_magic(pattern):
            base = _fixed_part(path)
            matches = []
            for match in sorted(glob.glob(pattern, recursive=True)):
                if os.path.isdir(match):
                    matches += _files_below(Path(match), base, suffixes)
                else:
                    matches.append((Path(match), Path(match).relative_to(base)))
            if not matches:
                raise AudioFileError(pattern, "no file matches this pattern.")
        else:
            raise AudioFileError(pattern, "no such file or folder; check the spelling.")
        for entry in matches:
            found.setdefault(Path(os.path.abspath(entry[0])), entry)
    return list(found.values())


def find_audio_files(patterns: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[Path]:
    """
    Expand files, folders and globs into audio files; see [`find_files`].

    Raises:
        AudioFileError: If a pattern matches nothing.
    """
    if isinstance(patterns, str | os.PathLike):
        patterns = [patterns]
    return [path for path, _ in find_files(patterns, AUDIO_SUFFIXES)]


def load_audio(source: AudioSource, sampling_rate: float, mono: bool = True, name: str | None = None) -> np.ndarray:
    """
    Read a whole audio file at a given rate.

    Args:
        source (`str`, `Path`, `bytes` or binary file): The path of a file in any format that libsndfile decodes: WAV,
            FLAC, Ogg Vorbis, Opus, MP3, AIFF, ... Its content as bytes or as an open file reads alike.
        sampling_rate (`int`): Sampling rate of the result, in Hz. A file with another rate is resampled by soxr
            ("HQ").
        mono (`bool`, *optional*, defaults to `True`): Whether to average the channels into one.
        name (`str`, *optional*): Name of the audio in errors. Defaults to the path, where there is one.

    Returns:
        `np.ndarray` of dtype float32: `(num_samples,)`, or `(num_channels, num_samples)` if `mono` is false.

    Raises:
        AudioFileError: If the file is missing, empty, corrupt, truncated, or holds NaN, infinity or what is no audio.
        ValueError: If `sampling_rate` is no positive whole number.
    """
    with AudioReader(source, sampling_rate, mono=mono, name=name) as reader:
        return np.concatenate(list(reader), axis=-1)


class AudioReader:
    """
    Iterate over an audio file in blocks at a given rate, in memory that does not grow with its length.

    The blocks, joined, are what [`load_audio`] returns. A reader is iterated once and is a context manager.

    Args:
        source (`str`, `Path`, `bytes` or binary file): The path of a file in any format that libsndfile decodes, its
            content, or a binary file that is open. The latter is read from where it stands, and left open.
        sampling_rate (`int`): Sampling rate of the blocks, in Hz.
        block_seconds (`float`, *optional*, defaults to 10.0): Audio that is read at a time, in seconds. Blocks are
            about this long, never empty.
        mono (`bool`, *optional*, defaults to `True`): Whether to average the channels. Blocks are `(num_samples,)`, or
            else `(num_channels, num_samples)`.
        name (`str`, *optional*): Name of the audio in errors. Defaults to the path, where there is one.

    Raises:
        AudioFileError: If the file cannot be opened (here) or turns out to be damaged (while iterating).
        ValueError: If `sampling_rate` is no positive whole number.
    """

    def __init__(
        self,
        source: AudioSource,
        sampling_rate: float,
        block_seconds: float = 10.0,
        mono: bool = True,
        name: str | None = None,
    ):
        self.sampling_rate = whole_sampling_rate(sampling_rate)
        if not block_seconds > 0:
            raise ValueError(f"`block_seconds` must be positive, but got {block_seconds}.")
        self.block_seconds = block_seconds
        self.mono = mono
        self.path = Path(name or _name_of(source))
        self._stream, self._owns_stream = self._opened(source)
        try:
            self._file = self._decoder()
        except BaseException:
            self._close_stream()
            raise
        self.file_sampling_rate: int = self._file.samplerate
        self.num_channels: int = self._file.channels

    @property
    def seconds(self) -> float:
        """Duration that the header announces."""
        return self._file.frames / self.file_sampling_rate

    @property
    def expected_num_samples(self) -> int:
        """
        Length at `sampling_rate` that the header announces, e.g. for a progress bar; resampling may differ by a
        sample.
        """
        return round(self._file.frames * self.sampling_rate / self.file_sampling_rate)

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._close_stream()

    def _close_stream(self) -> None:
        if self._owns_stream:
            self._stream.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        resampler = None
        if self.file_sampling_rate != self.sampling_rate:
            num_channels = 1 if self.mono else self.num_channels
            resampler = soxr.ResampleStream(self.file_sampling_rate, self.sampling_rate, num_channels, dtype="float32")

        for block in self._recorded_blocks():  # (n, C)
            if resampler is not None:
                block = resampler.resample_chunk(block)
            if len(block):
                yield self._to_output(block)
        if resampler is not None:
            num_channels = 1 if self.mono else self.num_channels
            block = resampler.resample_chunk(np.zeros((0, num_channels), dtype=np.float32), last=True)
            if len(block):
                yield self._to_output(block)

    def _to_output(self, block: np.ndarray) -> np.ndarray:
        return block[:, 0] if self.mono else np.ascontiguousarray(block.T)

    def _recorded_blocks(self) -> Iterator[np.ndarray]:
        # Blocks `(n, C)` at the file's own rate, C = 1 if mono.
        frames_per_block = max(1, round(self.block_seconds * self.file_sampling_rate))
        num_read = 0
        while True:
            try:
                block = self._file.read(frames_per_block, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                at = num_read / self.file_sampling_rate
                raise AudioFileError(
                    self.path, f"damaged after {at:.2f} s ({_reason(error)}); copy or convert it anew."
                ) from error
            if not len(block):
                break
            num_read += len(block)
            if self.mono:
                block = block.mean(axis=1, keepdims=True)
            if not np.isfinite(block).all():
                raise AudioFileError(self.path, "contains NaN or infinite samples; export it anew as 16-bit PCM.")
            yield block
        # MP3 has no exact length in its header; for the other formats a shortfall means that the end is missing.
        if num_read < self._file.frames and self._file.format != "MP3":
            raise AudioFileError(
                self.path, f"truncated: {num_read} of {self._file.frames} announced samples; copy or convert it anew."
            )
        if not num_read:
            raise AudioFileError(self.path, "contains no samples.")

    def _opened(self, source: AudioSource) -> tuple[BinaryIO, bool]:
        # A seekable file, and whether it is ours to close.
        if isinstance(source, bytes | bytearray | memoryview):
            return io.BytesIO(source), True
        if not isinstance(source, str | os.PathLike):
            try:
                return (source, False) if source.seekable() else (io.BytesIO(source.read()), True)
            except (OSError, AttributeError, ValueError) as error:
                raise AudioFileError(
                    self.path, f"cannot be read ({error}); pass a path, bytes or a binary file."
                ) from error
        try:
            mode = os.stat(source).st_mode
            if stat.S_ISDIR(mode):
                raise AudioFileError(self.path, "is a folder; name an audio file.")
            if not stat.S_ISREG(mode):
                raise AudioFileError(self.path, "is a pipe or a device; save the audio to a file, and name that.")
            return open(source, "rb"), True
        except FileNotFoundError as error:
            raise AudioFileError(self.path, "no such file; check the spelling.") from error
        except OSError as error:
            raise AudioFileError(self.path, f"cannot be read ({error.strerror}); check its permissions.") from error

    def _decoder(self) -> soundfile.SoundFile:
        start = self._stream.tell()
        head = self._stream.read(1 << 16)
        if not head:
            raise AudioFileError(self.path, "is empty (0 bytes).")
        size = self._stream.seek(0, os.SEEK_END) - start
        _check_riff_is_complete(self.path, head, size)
        self._stream.seek(start)
        try:
            file = soundfile.SoundFile(self._stream)
        except (soundfile.SoundFileError, TypeError) as error:
            # TypeError: soundfile takes the suffix `.raw` for headerless audio and asks for its rate.
            raise AudioFileError(
                self.path, f"is not readable as audio ({_reason(error)}); convert it to WAV or FLAC."
            ) from error
        if not file.frames:
            file.close()
            raise AudioFileError(self.path, "contains no samples.")
        return file


class AudioWriter:
    """
    Write a mono audio file block by block. The file appears under its name only once it is complete.

    Use it as a context manager. Leaving the block normally moves the finished file into place. An exception removes
    what was written and leaves an older file of that name as it was.

    Args:
        path (`str` or `Path`): File to write: `.wav` and `.flac` (16 bits), `.ogg` (Vorbis) or `.opus`. Missing
            folders are created.
        sampling_rate (`int`): Sampling rate of the file, in Hz.

    Raises:
        AudioFileError: If the suffix is another or the file cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str], sampling_rate: int):
        self.path = Path(path)
        if self.path.suffix.lower() not in _WRITABLE_FORMATS:
            raise AudioFileError(
                path, f"audio is written as {', '.join(_WRITABLE_FORMATS)}; choose one of these suffixes."
            )
        self.sampling_rate = sampling_rate
        self.num_samples = 0
        kind, subtype = _WRITABLE_FORMATS[self.path.suffix.lower()]
        try:
            self._whole = WholeFile(self.path)
            # Opened here and not by libsndfile, whose message for any failure is "System error".
            self._stream = open(self._whole.temporary, "w+b")  # noqa: SIM115
        except OSError as error:
            raise AudioFileError(
                path, f"cannot be written ({error.strerror}); choose another output folder."
            ) from error
        try:
            self._file = soundfile.SoundFile(
                self._stream, "w", samplerate=sampling_rate, channels=1, format=kind, subtype=subtype
            )
        except soundfile.SoundFileError as error:
            self.discard()
            raise AudioFileError(
                path, f"{kind} cannot hold audio at {sampling_rate} Hz ({_reason(error)})."
            ) from error

    def write(self, block: np.ndarray) -> None:
        """
        Append samples; values outside [-1, 1] are clipped.

        Args:
            block (`np.ndarray` of shape `(num_samples,)`): Samples to append, any number of them, as floats.

        Raises:
            ValueError: If `block` is not one-dimensional or holds NaN or infinity.
            AudioFileError: If the disk is full.
        """
        block = np.asarray(block, dtype=np.float32)
        if block.ndim != 1:
            raise ValueError(f"`block` must have shape (num_samples,), but got {block.shape}.")
        if not np.isfinite(block).all():
            raise ValueError("`block` contains NaN or infinite samples.")
        try:
            for start in range(0, len(block), _FRAMES_PER_WRITE):
                self._file.write(block[start : start + _FRAMES_PER_WRITE])
        except (soundfile.SoundFileError, OSError) as error:
            raise AudioFileError(self.path, f"cannot be written ({_reason(error)}).") from error
        self.num_samples += len(block)

    def close(self) -> None:
        """Finish the file and move it into place."""
        try:
            self._file.close()
            self._stream.close()
            self._whole.finish()
        except OSError as error:
            self.discard()
            raise AudioFileError(self.path, f"cannot be written ({error.strerror}).") from error

    def discard(self) -> None:
        """Drop what was written."""
        if getattr(self, "_file", None) is not None:
            self._file.close()
        self._stream.close()
        self._whole.discard()

    def __enter__(self) -> "AudioWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _files_below(folder: Path, base: Path, suffixes: tuple[str, ...]) -> list[tuple[Path, Path]]:
    # Sorted, so that a run over a folder is repeatable; names with a leading dot are other programs' bookkeeping.
    matches = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in suffixes and not name.startswith("."):
                matches.append((path, path.relative_to(base)))
    return matches


def _fixed_part(pattern: Path) -> Path:
    # The folder above the first component with a wildcard.
    fixed: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _name_of(source: AudioSource) -> str:
    if isinstance(source, bytes | bytearray | memoryview):
        return "audio in memory"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "audio in memory"


def _check_riff_is_complete(path: Path, head: bytes, size: int) -> None:
    # libsndfile quietly shortens a truncated WAV to what is there.
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(head):
        name, length = head[position : position + 4], struct.unpack("<I", head[position + 4 : position + 8])[0]
        if name == b"data":
            if length not in _UNKNOWN_RIFF_SIZES and position + 8 + length > size:
                missing = position + 8 + length - size
                raise AudioFileError(
                    path, f"truncated: the last {missing} bytes are missing; copy or convert it anew."
                )
            return
        position += 8 + length + length % 2


def _reason(error: BaseException) -> str:
    # libsndfile repeats the path in "Error opening '...': reason."
    return str(getattr(error, "error_string", None) or error).strip().rstrip(".")
