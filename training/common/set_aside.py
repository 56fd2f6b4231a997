# SPDX-License-Identifier: Apache-2.0
"""Recordings that a training sets aside, in a file that names each with the reason."""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from speech_tokenizers.processing.recordings import DecodedRecordings, append_rejected
from speech_tokenizers.training.common.processes import process_state


def shorter_than(recordings: DecodedRecordings, min_samples: float, what: str) -> list[dict[str, str]]:
    """
    The recordings that are too short, each as `{"name", "reason"}`.

    Args:
        recordings ([`DecodedRecordings`]): Recordings to look through.
        min_samples (`float`): Least number of samples.
        what (`str`): What needs so many, such as "a frame of the encoder".
    """
    lengths = np.diff(recordings.starts)
    rate = recordings.sampling_rate
    return [
        {
            "name": name,
            "reason": f"it is {length / rate:.3g} s long, and {what} needs {min_samples / rate:.3g} s",
        }
        for name, length in zip(recordings.names, lengths.tolist(), strict=True)
        if length < min_samples
    ]


def write_set_aside(path: Path, rejected: Iterable[dict[str, str]]) -> None:
    """
    Write a file of what is set aside, and say so on the terminal; with nothing set aside, there is no file.

    The main process of a training writes it, in place of an earlier file.

    Args:
        path (`Path`): File of JSON lines.
        rejected (iterable of `dict`): `{"name", "reason"}` of each recording.
    """
    rejected = list(rejected)
    if not process_state().is_main_process:
        return
    path.unlink(missing_ok=True)
    if rejected:
        path.parent.mkdir(parents=True, exist_ok=True)
        append_rejected(path, rejected)
        number = "1 recording was" if len(rejected) == 1 else f"{len(rejected)} recordings were"
        print(f"{number} set aside; see {path}.", file=sys.stderr)
