# SPDX-License-Identifier: Apache-2.0
"""Read and write audio files of any length in blocks, with errors that name the file, the reason and the remedy."""

import contextlib
import errno
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from .audio_bytes import AudioFileError, AudioPart, ByteSource, DamagedAudio, PiecedFile, is_whole
from .audio_parts import audio_parts
from .file_search import find_files
from .remembering_stream import RememberingStream
from .sampling_rates import PLAUSIBLE_RATES, whole_sampling_rate
from .whole_files import WholeFile


AudioSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

# Suffixes of what libsndfile decodes; used only to pick files out of a folder. Those that mostly stand for something
# else are left out, such as `.mat`, `.iff` and `.mpc`. A file that is named outright is tried whatever its suffix.
AUDIO_SUFFIXES = (
    ".8svx", ".aif", ".aifc", ".aiff", ".au", ".avr", ".bw64", ".bwf", ".caf", ".flac", ".ircam", ".mp2", ".mp3",
    ".nist", ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sds", ".snd", ".sph", ".svx", ".voc", ".w64", ".wav",
    ".wave", ".wve",
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
_WHAT_IS_READ = "pass a path, bytes or a file that was opened in binary mode"
# Mixing and resampling overshoot 1 a little; no audio is a hundred times as loud.
_LOUDEST_PLAUSIBLE = 100.0


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
        return reader.read()


def announced_num_samples(source: str | os.PathLike[str] | bytes, sampling_rate: float) -> int | None:
    """
    Length that a file announces, by a quick look that finds no fault: for what has to be sorted before it is read.

    Args:
        source (`str`, `Path` or `bytes`): Path of a file, or its content.
        sampling_rate (`int`): Sampling rate at which samples are counted, in Hz.

    Returns:
        `int`: Number of samples; `None` if the file announces no length, or cannot be read so.
    """
    if not isinstance(source, bytes) and not os.path.isfile(source):
        return None  # a pipe or a device may never answer
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else _native_name(source)) as file:
            known = 0 < file.frames < 1 << 62 and file.samplerate in PLAUSIBLE_RATES
            return round(file.frames * sampling_rate / file.samplerate) if known else None
    except (soundfile.SoundFileError, TypeError, OSError):
        return None


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
        self._native_path = source if isinstance(source, str | os.PathLike) else None
        self._stream, self._owns_stream = self._opened(source)
        try:
            self._source = ByteSource(self._stream)
            self._parts = self._found_parts()
            self._file = self._decoder(self._parts[0])
        except BaseException:
            self._close_stream()
            raise
        self.file_sampling_rate: int = self._file.samplerate
        self.num_channels: int = self._file.channels
        try:
            self._num_frames = self._count_frames()
        except BaseException:
            self.close()
            raise

    @property
    def seconds(self) -> float:
        """Duration that the header announces."""
        return self._num_frames / self.file_sampling_rate

    @property
    def expected_num_samples(self) -> int:
        """
        Length at `sampling_rate` that the header announces, e.g. for a progress bar; resampling may differ by a
        sample.
        """
        return round(self._num_frames * self.sampling_rate / self.file_sampling_rate)

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

    def read(self) -> np.ndarray:
        """All blocks, joined: `(num_samples,)`, or `(num_channels, num_samples)` if `mono` is false."""
        blocks = list(self)
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=-1)

    def _to_output(self, block: np.ndarray) -> np.ndarray:
        return block[:, 0] if self.mono else np.ascontiguousarray(block.T)

    def _recorded_blocks(self) -> Iterator[np.ndarray]:
        # Blocks `(n, C)` at the file's own rate, C = 1 if mono.
        num_read = 0
        for index, part in enumerate(self._parts):
            if index:
                self._file.close()
                self._file = self._decoder(part)
            for block in self._decoded_blocks(part, num_read):
                num_read += len(block)
                if self.mono and block.shape[1] > 1:
                    block = block.mean(axis=1, keepdims=True)
                self._check_samples(block)
                yield block

    def _decoded_blocks(self, part: AudioPart, num_before: int) -> Iterator[np.ndarray]:
        frames_per_block = max(1, round(self.block_seconds * self.file_sampling_rate))
        num_read = 0
        while True:
            try:
                block = self._file.read(frames_per_block, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                at = (num_before + num_read) / self.file_sampling_rate
                raise AudioFileError(
                    self.path, f"damaged after {at:.2f} s ({_reason(error)}); copy or convert it anew."
                ) from error
            if not len(block):
                break
            num_read += len(block)
            yield block
        # MPEG audio has a delay, which the decoder takes off; elsewhere a shortfall means that something is missing.
        expected = (part.num_frames or 0) - part.tolerance if part.tolerance else _num_frames(self._file, part)
        if num_read < expected:
            raise AudioFileError(
                self.path, f"truncated: {num_read} of {expected} announced samples; copy or convert it anew."
            )

    def _check_samples(self, block: np.ndarray) -> None:
        peak = max(block.max(), -block.min())  # NaN if there is one
        if not np.isfinite(peak):
            raise AudioFileError(self.path, "contains NaN or infinite samples; export it anew as 16-bit PCM.")
        if peak > _LOUDEST_PLAUSIBLE:
            raise AudioFileError(
                self.path,
                f"contains samples of up to {peak:.3g}, but audio lies in [-1, 1]; scale it, e.g. divide 16-bit "
                "integers by 32768, and export it anew.",
            )

    def _opened(self, source: AudioSource) -> tuple[BinaryIO, bool]:
        # A seekable file, and whether it is ours to close.
        if isinstance(source, bytes | bytearray | memoryview):
            return io.BytesIO(source), True
        if not isinstance(source, str | os.PathLike):
            try:
                content = source.read(0 if source.seekable() else -1)
            except (OSError, AttributeError, ValueError) as error:
                raise AudioFileError(self.path, f"cannot be read ({error}); {_WHAT_IS_READ}.") from error
            if not isinstance(content, bytes):
                raise AudioFileError(self.path, f"is no binary file; {_WHAT_IS_READ}.")
            return (source, False) if source.seekable() else (io.BytesIO(content), True)
        try:
            mode = os.stat(source).st_mode
            if stat.S_ISREG(mode):
                return open(source, "rb"), True
        except FileNotFoundError as error:
            raise AudioFileError(self.path, "no such file; check the spelling.") from error
        except OSError as error:
            raise AudioFileError(self.path, f"cannot be read ({error.strerror}); check its permissions.") from error
        if stat.S_ISDIR(mode):
            raise AudioFileError(self.path, "is a folder; name an audio file.")
        raise AudioFileError(self.path, "is a pipe or a device; save the audio to a file, and name that.")

    def _found_parts(self) -> list[AudioPart]:
        if not self._source.size:
            raise AudioFileError(self.path, "is empty (0 bytes).")
        try:
            return audio_parts(self._source)
        except DamagedAudio as error:
            raise AudioFileError(self.path, str(error)) from error
        except OSError as error:
            raise AudioFileError(self.path, f"cannot be read ({error.strerror}).") from error

    def _decoder(self, part: AudioPart) -> soundfile.SoundFile:
        try:
            file = soundfile.SoundFile(self._readable(part), closefd=False)
        except (soundfile.SoundFileError, TypeError) as error:
            # TypeError: soundfile takes the suffix `.raw` for headerless audio and asks for its rate.
            raise AudioFileError(
                self.path, f"is not readable as audio ({_reason(error)}); convert it to WAV or FLAC."
            ) from error
        if not part.is_known:
            warnings.warn(
                f"{self.path}: it cannot be told whether this {file.format} file is whole; convert it to WAV or FLAC.",
                stacklevel=2,
            )
        return file

    def _readable(self, part: AudioPart) -> Any:
        # What soundfile reads a part from; as it is where nothing is corrected, which is quicker than piece by piece.
        if not self._owns_stream or not is_whole(self._source, part.pieces):
            return PiecedFile(self._source, part.pieces)
        if self._native_path is None:
            self._stream.seek(0)
            return self._stream
        if not part.is_known:
            return _native_name(self._native_path)  # libsndfile knows some formats by their suffix alone
        if os.name != "posix":
            return PiecedFile(self._source, part.pieces)
        os.lseek(self._stream.fileno(), 0, os.SEEK_SET)
        return self._stream.fileno()

    def _count_frames(self) -> int:
        # Over all parts, which must be alike.
        rate, num_channels = self.file_sampling_rate, self.num_channels
        if rate not in PLAUSIBLE_RATES:
            raise AudioFileError(
                self.path,
                f"has a sampling rate of {rate} Hz by its header, outside {PLAUSIBLE_RATES[0]} to "
                f"{PLAUSIBLE_RATES[-1]} Hz; correct the header or convert the file anew.",
            )
        total = _num_frames(self._file, self._parts[0])
        for number, part in enumerate(self._parts[1:], start=2):
            with self._decoder(part) as file:
                if (file.samplerate, file.channels) != (rate, num_channels):
                    raise AudioFileError(
                        self.path,
                        f"holds {len(self._parts)} recordings one behind the other; number {number} has "
                        f"{file.samplerate} Hz and {file.channels} channels, and those before it {rate} Hz and "
                        f"{num_channels}; put each into a file of its own.",
                    )
                total += _num_frames(file, part)
        if not total:
            raise AudioFileError(self.path, "contains no samples.")
        return total


class AudioWriter:
    """
    Write a mono audio file block by block. The file appears under its name only once it is complete.

    Use it as a context manager. Leaving the block normally moves the finished file into place. An exception removes
    what was written and leaves an older file of that name as it was.

    Args:
        path (`str` or `Path`): File to write: `.wav` and `.flac` (16 bits), `.ogg` (Vorbis) or `.opus`. Missing
            folders are created.
        sampling_rate (`int`): Sampling rate of the file, in Hz.
        comment (`str`, *optional*, defaults to `""`): Comment that the file holds, as its format has it.

    Raises:
        AudioFileError: If the suffix is another or the file cannot be created.
        ValueError: If `sampling_rate` is no positive whole number.
    """

    def __init__(self, path: str | os.PathLike[str], sampling_rate: float, comment: str = ""):
        self.path = Path(path)
        if self.path.suffix.lower() not in _WRITABLE_FORMATS:
            raise AudioFileError(
                path, f"audio is written as {', '.join(_WRITABLE_FORMATS)}; choose one of these suffixes."
            )
        self.sampling_rate = whole_sampling_rate(sampling_rate)
        self.num_samples = 0
        kind, subtype = _WRITABLE_FORMATS[self.path.suffix.lower()]
        try:
            self._whole = WholeFile(self.path)
            # Opened here and not by libsndfile, whose message for any failure is "System error".
            self._stream = open(self._whole.temporary, "w+b")  # noqa: SIM115
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise AudioFileError(path, "its name is too long; choose a shorter one.") from error
            raise AudioFileError(
                path, f"cannot be written ({error.strerror}); choose another output folder."
            ) from error
        self._watched = RememberingStream(self._stream)
        try:
            self._file = soundfile.SoundFile(
                self._watched, "w", samplerate=self.sampling_rate, channels=1, format=kind, subtype=subtype
            )
            if comment:
                self._file.comment = comment
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
        for start in range(0, len(block), _FRAMES_PER_WRITE):
            self._call(self._file.write, block[start : start + _FRAMES_PER_WRITE])
        self.num_samples += len(block)

    def close(self) -> None:
        """
        Finish the file and move it into place.

        Raises:
            AudioFileError: If the disk is full or the folder has gone; nothing is left then.
        """
        try:
            self._call(self._file.close)
            self._call(self._stream.close)
            self._call(self._whole.finish)
        except BaseException:
            self.discard()
            raise

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            try:
                function(*arguments)
            finally:
                self._watched.check()  # whose words say more than libsndfile's
        except (soundfile.SoundFileError, AssertionError, OSError) as error:
            reason = getattr(error, "strerror", None) or _reason(error)
            raise AudioFileError(self.path, f"cannot be written ({reason}).") from error

    def discard(self) -> None:
        """Drop what was written."""
        with contextlib.suppress(soundfile.SoundFileError):
            if getattr(self, "_file", None) is not None:
                self._file.close()
        with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
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


def _name_of(source: AudioSource) -> str:
    if isinstance(source, bytes | bytearray | memoryview):
        return "audio in memory"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "audio in memory"


def _native_name(path: str | os.PathLike[str]) -> Any:
    # soundfile encodes no name that is not UTF-8.
    return os.fsencode(path) if os.name == "posix" else path


def _num_frames(file: soundfile.SoundFile, part: AudioPart) -> int:
    # libsndfile says 2^63 - 1 where it does not know.
    announced = file.frames if file.frames < 1 << 62 else 0
    return announced if part.tolerance and announced else max(part.num_frames or 0, announced)


def _reason(error: BaseException) -> str:
    # libsndfile repeats the path in "Error opening '...': reason."
    return str(getattr(error, "error_string", None) or error).strip().rstrip(".")


__all__ = [
    "AUDIO_SUFFIXES",
    "AudioFileError",
    "AudioReader",
    "AudioSource",
    "AudioWriter",
    "announced_num_samples",
    "find_audio_files",
    "find_files",
    "load_audio",
]
