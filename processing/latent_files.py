# SPDX-License-Identifier: Apache-2.0
"""
Files of continuous latents: safetensors with one tensor, `latents` of shape `(num_frames, hidden_size)` in float32 or
float16, and the metadata that decoding needs.

The metadata (strings, as safetensors has it) are the fields of [`AudioLatents`] and `hidden_size`, `dtype`, `format`
and `format_version`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save

from .code_files import (
    TEXT_FIELDS,
    AudioCodes,
    CodeFileError,
    check_metadata,
    check_version,
    load_codes,
    read_metadata,
    read_tensor,
    write_code_file,
)


LATENT_FILE_FORMAT = "speech-tokenizers latents"
LATENT_FILE_VERSION = 1
LATENT_DTYPES = ("float32", "float16")

_INTEGER_FIELDS = ("num_samples", "sampling_rate", "hop_length")


@dataclass(frozen=True)
class AudioLatents:
    """
    The continuous frames of one recording.

    Args:
        latents (`np.ndarray` of shape `(num_frames, hidden_size)`): Frames, float32 or float16, all finite.
        num_samples (`int`): Length of the recording at `sampling_rate`, to which decoding trims.
        sampling_rate (`int`): Sampling rate of the model, in Hz.
        hop_length (`int`): Samples per frame.
        model_name (`str`): Name of the model, as [`speech_tokenizers.load`] takes it.
        model_fingerprint (`str`, *optional*, defaults to `""`):
            Hash of the latents' statistics or of the codec's codebooks, by which decoding refuses another model of the
            same shape. Empty if unknown.
        encoder_fingerprint (`str`, *optional*, defaults to `""`):
            Hash of the encoder's weights, which may differ where the statistics or codebooks do not. Empty if unknown.
        recording_fingerprint (`str`, *optional*, defaults to `""`):
            Hash of the recording; see [`recording_fingerprint`]. Empty if unknown.
    """

    latents: np.ndarray
    num_samples: int
    sampling_rate: int
    hop_length: int
    model_name: str
    model_fingerprint: str = ""
    encoder_fingerprint: str = ""
    recording_fingerprint: str = ""

    def __post_init__(self):
        latents = self.latents
        if latents.ndim != 2 or 0 in latents.shape:
            raise ValueError(f"`latents` must have shape (num_frames, hidden_size), but got {latents.shape}.")
        if latents.dtype.name not in LATENT_DTYPES:
            raise TypeError(f"`latents` must be {' or '.join(LATENT_DTYPES)}, but got {latents.dtype}.")
        if not np.isfinite(latents).all():
            raise ValueError("`latents` must be finite, but some are not.")
        check_metadata(self, _INTEGER_FIELDS)
        num_frames = -(-self.num_samples // self.hop_length)
        if len(latents) != num_frames:
            raise ValueError(
                f"`latents` must have {num_frames} frames of {self.hop_length} for {self.num_samples} samples, "
                f"but got {len(latents)}."
            )

    @property
    def num_frames(self) -> int:
        return self.latents.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.latents.shape[1]

    @property
    def dtype(self) -> str:
        return self.latents.dtype.name

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sampling_rate

    @property
    def bits_per_second(self) -> float:
        """What the file holds for each second: every number costs the bits of its type."""
        return self.sampling_rate / self.hop_length * self.hidden_size * 8 * self.latents.itemsize


def save_latents(path: str | os.PathLike[str], latents: np.ndarray, metadata: Mapping[str, str | int]) -> None:
    """
    Write the latents of one recording. The file appears under its name only once it is complete.

    Args:
        path (`str` or `Path`): File to write, conventionally ending in `.safetensors`. Missing folders are created.
        latents (`np.ndarray` or `torch.Tensor` of shape `(num_frames, hidden_size)`): Frames, float32 or float16,
            which are stored as they are.
        metadata (`Mapping`): The other fields of [`AudioLatents`]; misspelt or missing ones are errors.

    Raises:
        TypeError, ValueError: If the latents and the metadata contradict each other; see [`AudioLatents`].
        CodeFileError: If the file cannot be written.
    """
    checked = AudioLatents(np.asarray(latents), **metadata)  # type: ignore[arg-type]
    fields = (*_INTEGER_FIELDS, *TEXT_FIELDS, "hidden_size", "dtype")
    texts = {name: str(getattr(checked, name)) for name in fields}
    texts |= {"format": LATENT_FILE_FORMAT, "format_version": str(LATENT_FILE_VERSION)}
    write_code_file(path, save({"latents": np.ascontiguousarray(checked.latents)}, metadata=texts))


def load_latents(path: str | os.PathLike[str]) -> AudioLatents:
    """
    Read and check a file that [`save_latents`] wrote.

    Raises:
        CodeFileError: If the file is missing, corrupt, of another format or version, or contradicts itself.
    """
    metadata, latents = read_tensor(path, "latents", ("F16", "F32"))
    if metadata.get("format") != LATENT_FILE_FORMAT or latents is None:
        raise CodeFileError(path, "holds no latents; name a file that `speech-tokenizers encode` wrote.")
    check_version(path, metadata, LATENT_FILE_VERSION)
    try:
        fields: dict = read_metadata(metadata, _INTEGER_FIELDS)
        found = AudioLatents(latents, **fields)
        for name in ("hidden_size", "dtype"):
            if metadata[name] != str(getattr(found, name)):
                raise ValueError(f"`{name}` is {metadata[name]}, but the tensor has {getattr(found, name)}.")
    except KeyError as error:
        raise CodeFileError(path, f"lacks the metadata {error}; encode the recording again.") from error
    except (TypeError, ValueError) as error:
        raise CodeFileError(path, f"contradicts itself: {error} Encode the recording again.") from error
    return found


def load_encoded(path: str | os.PathLike[str]) -> AudioCodes | AudioLatents:
    """
    Read a file of codes or of latents, whichever it is; see [`load_codes`] and [`load_latents`].

    Raises:
        CodeFileError: If it is neither.
    """
    metadata, _ = read_tensor(path)
    return load_latents(path) if metadata.get("format") == LATENT_FILE_FORMAT else load_codes(path)
