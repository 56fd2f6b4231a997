# SPDX-License-Identifier: Apache-2.0
"""Fingerprints that tell whether recordings are still those of an earlier run, wherever they lie now."""

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


# Bytes read at the beginning, in the middle and at the end of a file, so that long files cost no more than short ones.
_PIECE = 1 << 16


def recording_fingerprint(recording: Any) -> str:
    """
    Fingerprint of one recording: its size and three pieces of 64 KiB, from the beginning, the middle and the end.

    The path and the times of a file do not count, and a file's bytes have the fingerprint of the file. Two files of
    the same size that differ between the pieces alone look equal.

    Args:
        recording: A path, the bytes of a file, samples (`np.ndarray` or list), a dictionary `{"path", "bytes"}` or
            `{"array", "sampling_rate"}`, or a row with such an `audio`.

    Returns:
        `str`: 24 hexadecimal digits; `"missing"` if there is no such file.
    """
    if isinstance(recording, dict) and "audio" in recording:
        recording = recording["audio"]
    if isinstance(recording, dict):
        if recording.get("array") is not None:
            recording = [list(recording["array"]), recording.get("sampling_rate")]
        else:
            recording = recording.get("path") if recording.get("bytes") is None else recording["bytes"]
    if recording is None:
        return "missing"
    if isinstance(recording, list):
        recording = repr(recording).encode()
    if isinstance(recording, np.ndarray):
        # A view: of an array that is mapped to a file, only the pieces are read.
        recording = np.ascontiguousarray(recording).reshape(-1).view(np.uint8)
    if isinstance(recording, (bytes, np.ndarray)):
        return _digest(lambda start: bytes(recording[start : start + _PIECE]), len(recording))
    try:
        with open(recording, "rb") as file:

            def read(start: int) -> bytes:
                file.seek(start)
                return file.read(_PIECE)

            return _digest(read, os.fstat(file.fileno()).st_size)
    except OSError:
        return "missing"


def recordings_fingerprint(recordings: Iterable[Any]) -> str:
    """
    Fingerprint of recordings in their order; see [`recording_fingerprint`].

    Args:
        recordings (iterable): Recordings, such as the rows of the dataset that [`load_recordings`] returns.

    Returns:
        `str`: 24 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for recording in recordings:
        digest.update(recording_fingerprint(recording).encode())
    return digest.hexdigest()[:24]


def _digest(read: Callable[[int], bytes], size: int) -> str:
    digest = hashlib.sha256(f"{size} ".encode())
    for start in sorted({0, max(0, size // 2 - _PIECE // 2), max(0, size - _PIECE)}):
        digest.update(read(start))
    return digest.hexdigest()[:24]
