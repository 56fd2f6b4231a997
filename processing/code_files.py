# SPDX-License-Identifier: Apache-2.0
"""
Files of audio codes: safetensors with one tensor, `audio_codes` of shape `(num_quantizers, num_frames)`, and the
metadata that decoding needs.

Version 1 of the format keeps the codes in the smallest of uint8, int16 and int32 that holds `codebook_size - 1`. The
metadata (strings, as safetensors has it) are the fields of [`AudioCodes`] and `format` and `format_version`.
"""

import operator
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .file_errors import FileError
from .whole_files import write_whole


CODE_FILE_FORMAT = "speech-tokenizers audio codes"
CODE_FILE_VERSION = 1
CODE_FILE_SUFFIX = ".safetensors"

# Convolutions without padding, such as HuBERT's, give up to so many frames fewer than codecs do.
_FRAMES_AT_EDGES = 2
_INTEGER_FIELDS = ("num_samples", "sampling_rate", "codebook_size", "hop_length")
TEXT_FIELDS = ("model_name", "model_fingerprint", "encoder_fingerprint", "recording_fingerprint")
# Names of safetensors' types of integers.
_INTEGER_TYPES = {f"{kind}{bits}" for kind in "IU" for bits in (8, 16, 32, 64)}


class CodeFileError(FileError):
    """A file of audio codes that cannot be read or written; see [`FileError`]."""


@dataclass(frozen=True)
class AudioCodes:
    """
    The codes of one recording.

    Args:
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codebook indices, int64.
        num_samples (`int`): Length of the recording at `sampling_rate`, to which decoding trims.
        sampling_rate (`int`): Sampling rate of the codec, in Hz.
        codebook_size (`int`): Number of entries per codebook; all codes are below it.
        hop_length (`int`): Samples per frame.
        model_name (`str`): Name of the codec, as [`speech_tokenizers.load`] takes it.
        model_fingerprint (`str`, *optional*, defaults to `""`):
            Hash of the codec's codebooks, by which decoding refuses another codec of the same shape. Empty if unknown.
        encoder_fingerprint (`str`, *optional*, defaults to `""`):
            Hash of the encoder's weights, which may differ where the codebooks do not. Empty if unknown.
        recording_fingerprint (`str`, *optional*, defaults to `""`):
            Hash of the recording; see [`recording_fingerprint`]. Empty if unknown.
    """

    audio_codes: np.ndarray
    num_samples: int
    sampling_rate: int
    codebook_size: int
    hop_length: int
    model_name: str
    model_fingerprint: str = ""
    encoder_fingerprint: str = ""
    recording_fingerprint: str = ""

    def __post_init__(self):
        codes = self.audio_codes
        if codes.ndim != 2 or 0 in codes.shape:
            raise ValueError(f"`audio_codes` must have shape (num_quantizers, num_frames), but got {codes.shape}.")
        if not np.issubdtype(codes.dtype, np.integer):
            raise TypeError(f"`audio_codes` must be integers, but got {codes.dtype}.")
        check_metadata(self, _INTEGER_FIELDS)
        if self.codebook_size > 1 << 31:
            raise ValueError(f"`codebook_size` must be at most 2^31, but got {self.codebook_size}.")
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise ValueError(
                f"`audio_codes` must lie between 0 and {self.codebook_size - 1}, "
                f"but range from {codes.min()} to {codes.max()}."
            )
        num_frames = -(-self.num_samples // self.hop_length)
        if not num_frames - _FRAMES_AT_EDGES <= codes.shape[1] <= num_frames:
            raise ValueError(
                f"`audio_codes` must have {num_frames} frames of {self.hop_length} for {self.num_samples} samples, "
                f"or up to {_FRAMES_AT_EDGES} fewer, but got {codes.shape[1]}."
            )

    @property
    def num_quantizers(self) -> int:
        return self.audio_codes.shape[0]

    @property
    def num_frames(self) -> int:
        return self.audio_codes.shape[1]

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sampling_rate

    @property
    def bits_per_second(self) -> float:
        """
        Nominal bit rate: every code costs log2(codebook_size) bits. Where a model's codebooks are smaller, or their
        codes last for several frames (`codebook_sizes`, `codebook_strides`), its own `bits_per_second` is less.
        """
        frame_rate = self.sampling_rate / self.hop_length
        return float(frame_rate * self.num_quantizers * np.log2(self.codebook_size))


def save_codes(path: str | os.PathLike[str], audio_codes: np.ndarray, metadata: Mapping[str, str | int]) -> None:
    """
    Write the codes of one recording. The file appears under its name only once it is complete.

    Args:
        path (`str` or `Path`): File to write, conventionally ending in `.safetensors`. Missing folders are created.
        audio_codes (`np.ndarray` or `torch.Tensor` of shape `(num_quantizers, num_frames)`): Codebook indices.
        metadata (`Mapping`): The other fields of [`AudioCodes`]; misspelt or missing ones are errors.

    Raises:
        TypeError, ValueError: If the codes and the metadata contradict each other; see [`AudioCodes`].
        CodeFileError: If the file cannot be written.
    """
    codes = AudioCodes(np.asarray(audio_codes), **metadata)  # type: ignore[arg-type]
    dtype = next(kind for kind in (np.uint8, np.int16, np.int32) if np.iinfo(kind).max >= codes.codebook_size - 1)
    texts = {name: str(getattr(codes, name)) for name in (*_INTEGER_FIELDS, *TEXT_FIELDS)}
    texts |= {"format": CODE_FILE_FORMAT, "format_version": str(CODE_FILE_VERSION)}
    content = save({"audio_codes": np.ascontiguousarray(codes.audio_codes, dtype=dtype)}, metadata=texts)

    write_code_file(path, content)


def load_codes(path: str | os.PathLike[str]) -> AudioCodes:
    """
    Read and check a file that [`save_codes`] wrote.

    Raises:
        CodeFileError: If the file is missing, corrupt, of another format or version, or contradicts itself.
    """
    metadata, audio_codes = read_tensor(path, "audio_codes", _INTEGER_TYPES)
    if metadata.get("format") != CODE_FILE_FORMAT or audio_codes is None:
        raise CodeFileError(path, "holds no audio codes; name a file that `speech-tokenizers encode` wrote.")
    check_version(path, metadata, CODE_FILE_VERSION)
    try:
        if audio_codes.dtype == np.uint64 and audio_codes.size and audio_codes.max() >= 1 << 31:
            raise ValueError("`audio_codes` must be below 2^31.")
        fields: dict = read_metadata(metadata, _INTEGER_FIELDS)
        return AudioCodes(audio_codes.astype(np.int64), **fields)
    except KeyError as error:
        raise CodeFileError(path, f"lacks the metadata {error}; encode the recording again.") from error
    except (TypeError, ValueError) as error:
        raise CodeFileError(path, f"contradicts itself: {error} Encode the recording again.") from error


def check_metadata(encoded: object, integer_fields: Collection[str]) -> None:
    """
    Check the fields of codes or latents besides the tensor. Whole numbers of any type become `int`.

    Raises:
        TypeError: If a number is not whole, or a text is no string.
        ValueError: If a number is below 1, or a text cannot be written as UTF-8.
    """
    for name in integer_fields:
        value = getattr(encoded, name)
        try:
            # NumPy's and torch's numbers too, and 44100.0; a `bool` is no number here.
            if isinstance(value, bool) or (hasattr(value, "is_integer") and not value.is_integer()):
                raise TypeError
            number = int(value) if hasattr(value, "is_integer") else operator.index(value)
        except TypeError:
            raise TypeError(f"`{name}` must be a whole number, but got {value!r}.") from None
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {number}.")
        object.__setattr__(encoded, name, number)
    for name in TEXT_FIELDS:
        value = getattr(encoded, name)
        if not isinstance(value, str):
            raise TypeError(f"`{name}` must be a string, but got {value!r}.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"`{name}` is {value!r}, which cannot be written as UTF-8; rename it.") from error


def read_metadata(metadata: Mapping[str, str], integer_fields: Collection[str]) -> dict[str, int | str]:
    """
    The fields of codes or latents from the metadata of a file.

    Raises:
        KeyError: If one is missing.
        ValueError: If a number is not written in digits alone.
    """
    fields: dict[str, int | str] = {"model_name": metadata["model_name"]}
    for name in integer_fields:
        if not re.fullmatch(r"-?[0-9]{1,18}", metadata[name]):
            raise ValueError(f"`{name}` must be a whole number, but is {metadata[name][:40]!r}.")
        fields[name] = int(metadata[name])
    for name in TEXT_FIELDS[1:]:
        fields[name] = metadata.get(name, "")  # optional
    return fields


def write_code_file(path: str | os.PathLike[str], content: bytes) -> None:
    """
    Write a file whole or not at all; missing folders are created.

    Raises:
        CodeFileError: If it cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise CodeFileError(path, f"cannot be written ({error.strerror}); choose another output folder.") from error


def read_tensor(
    path: str | os.PathLike[str], name: str | None = None, types: Collection[str] = ()
) -> tuple[dict[str, str], np.ndarray | None]:
    """
    Metadata of a safetensors file, and the tensor of a name if it is there.

    Args:
        path (`str` or `Path`): The file.
        name (`str`, *optional*): Name of the tensor. Without it only the metadata are read.
        types (collection of `str`): Types that the tensor may have, as safetensors calls them, such as `"I16"`.

    Raises:
        CodeFileError: If the file is missing, cannot be read, or is corrupt, or the tensor is of another type.
    """
    try:
        # Opened once by Python, whose errors tell missing from forbidden.
        with open(path, "rb"):
            pass
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if name not in file.keys():  # noqa: SIM118 - no mapping
                return metadata, None
            kind = file.get_slice(name).get_dtype()
            if kind not in types:
                raise CodeFileError(
                    path,
                    f"has `{name}` of the type {kind}, but this must be {' or '.join(sorted(types))}; encode the "
                    "recording again.",
                )
            return metadata, file.get_tensor(name)
    except FileNotFoundError as error:
        raise CodeFileError(path, "no such file; check the spelling.") from error
    except OSError as error:
        raise CodeFileError(
            path, f"cannot be read ({error.strerror}); name a file of codes that you may read."
        ) from error
    except SafetensorError as error:
        raise CodeFileError(path, f"is no valid safetensors file ({error}); encode the recording again.") from error


def check_version(path: str | os.PathLike[str], metadata: Mapping[str, str], version: int) -> None:
    """Raises [`CodeFileError`] if a file is of another version of its format."""
    if metadata.get("format_version") != str(version):
        raise CodeFileError(
            path,
            f"has format version {metadata.get('format_version')}, but this release reads {version}; "
            "upgrade speech-tokenizers or encode the recording again.",
        )
