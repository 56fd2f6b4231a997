# SPDX-License-Identifier: Apache-2.0
"""Fingerprints that tell whether recordings are still those of an earlier run, wherever they lie now."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


# Recordings hashed side by side. Rows may hold the bytes of their files, so few are in memory at once.
_NUM_THREADS = min(8, os.cpu_count() or 1)


def recording_fingerprint(recording: Any) -> str:
    """
    Fingerprint of one recording, a hash of its whole content.

    The path and the times of a file do not count, and a file's bytes have the fingerprint of the file.

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
        recording = np.ascontiguousarray(recording).reshape(-1).view(np.uint8)
    if isinstance(recording, (bytes, np.ndarray)):
        return hashlib.sha256(recording).hexdigest()[:24]
    try:
        if not os.path.isfile(recording):  # a pipe or a device may have no end
            return "missing"
        with open(recording, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:24]
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
    for fingerprint in recording_fingerprints(recordings):
        digest.update(fingerprint.encode())
    return digest.hexdigest()[:24]


def recording_fingerprints(recordings: Iterable[Any]) -> Iterator[str]:
    """The [`recording_fingerprint`] of each recording, in their order, with several files read at once."""
    remaining = iter(recordings)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        while some := list(itertools.islice(remaining, 4 * _NUM_THREADS)):
            yield from pool.map(recording_fingerprint, some)
