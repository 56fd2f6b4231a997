# SPDX-License-Identifier: Apache-2.0
"""Recordings that a page is given: read, or refused with a sentence that says what to do."""

import os
from pathlib import Path

import numpy as np

from speech_tokenizers.processing.audio_files import AudioReader


MIN_SECONDS, MAX_SECONDS = 0.5, 60.0
# Below it, at 60 dB under full scale, a recording is silent for any listener.
_SILENT_PEAK = 1e-3


class PageError(ValueError):
    """What a page was asked for cannot be done; the message is a sentence for the person in front of it."""


def read_recording(path: str | os.PathLike[str] | None, sampling_rate: int) -> np.ndarray:
    """
    Read what was recorded or uploaded.

    Args:
        path (`str` or `Path`, *optional*): Audio file at any rate; `None` where nothing was given.
        sampling_rate (`int`): Sampling rate of the result, in Hz.

    Returns:
        `np.ndarray` of shape `(num_samples,)` and dtype float32, in [-1, 1].

    Raises:
        PageError: If there is no recording, or it is too short, too long or silent.
        AudioFileError: If the file cannot be read as audio.
    """
    if path is None:
        raise PageError("There is no recording yet. Record one at the top, upload an audio file, or take the example.")
    with AudioReader(path, sampling_rate, name=Path(path).name) as reader:
        # By the header, so that hours of audio are refused before they are read.
        if reader.seconds > MAX_SECONDS:
            raise _too_long(reader.seconds)
        waveform = np.concatenate(list(reader))
    check_recording(waveform, sampling_rate)
    return waveform


def check_recording(waveform: np.ndarray, sampling_rate: int) -> None:
    """Raises `PageError` if a recording `(num_samples,)` is too short, too long or silent."""
    seconds = len(waveform) / sampling_rate
    if seconds > MAX_SECONDS:
        raise _too_long(seconds)
    if seconds < MIN_SECONDS:
        raise PageError(
            f"The recording lasts {seconds:.2f} s, but {MIN_SECONDS:g} s are needed. Record or upload a longer one."
        )
    if np.abs(waveform).max() < _SILENT_PEAK:
        raise PageError(
            "The recording is silent: there is no speech in it. Check the microphone, or choose another file."
        )


def _too_long(seconds: float) -> PageError:
    return PageError(
        f"The recording lasts {spoken_length(seconds)}, but this page takes at most {MAX_SECONDS:g} s. Cut a part out"
        " with the scissors under the waveform, or give the whole file to `speech-tokenizers reconstruct` or"
        " `speech-tokenizers units`, which take any length."
    )


def spoken_length(seconds: float) -> str:
    """A length in words: `12.3 s`, or in minutes from two on: `30 min 0 s`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
