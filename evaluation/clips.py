# SPDX-License-Identifier: Apache-2.0
"""The recordings that an evaluation listens to."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speech_tokenizers.processing.audio_files import AudioFileError, find_audio_files, load_audio


SAMPLING_RATE = 16000  # the rate at which every metric listens


@dataclass(frozen=True)
class Clip:
    """
    One recording of the evaluation.

    Args:
        name (`str`): Name of the clip: its path relative to the data folder.
        path (`Path`): Path of the recording.
        key (`str`): Hash of the recording's bytes.
        text (`str`, *optional*): Text that is said, where known.
    """

    name: str
    path: Path
    key: str
    text: str | None = None

    @property
    def group(self) -> str:
        """Name of the folder it lies in."""
        return Path(self.name).parent.name or "."

    def load(self) -> np.ndarray:
        """Waveform of shape `(num_samples,)` at 16 kHz."""
        return load_audio(self.path, SAMPLING_RATE)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """
    The objects of a file of JSON lines.

    Raises:
        ValueError: If a line is no JSON object; the message names it.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error}).") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: an object with `file_name` was expected, but got {row!r}.")
            rows.append(row)
    return rows


def read_transcripts(path: Path) -> dict[str, str | None]:
    """
    What is said in each recording, by its file name.

    Args:
        path (`Path`): Path of JSON lines with `file_name` and `text`. With the suffix `.tsv`, each line holds the two,
            parted by a tab.

    Raises:
        ValueError: If a line is neither; the message names it.
    """
    if path.suffix != ".tsv":
        return {row.get("file_name", ""): row.get("text") for row in read_rows(path)}
    texts: dict[str, str | None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            name, tab, text = line.partition("\t")
            if not tab or "\t" in text:
                raise ValueError(
                    f"{path}, line {number}: a file name, a tab and a text were expected, but got {line!r}."
                )
            texts[name] = text
    return texts


def read_clips(
    folder: Path,
    list_file: Path | None,
    transcripts: Sequence[Path] | None,
    limit: int | None,
    pattern: str | None = None,
) -> list[Clip]:
    """
    Args:
        folder (`Path`): Folder of recordings.
        list_file (`Path`, *optional*): Text file with a path relative to `folder` on each line. Defaults to every
            audio file.
        transcripts (sequence of `Path`, *optional*): Files of transcripts; see [`read_transcripts`]. Where several
            have a clip, the last one counts. Defaults to `metadata.jsonl` in `folder`, if any.
        limit (`int`, *optional*): Largest number of recordings, the first ones, that are taken.
        pattern (`str`, *optional*): Pattern that the path of a file within `folder` must match, such as `Original_*`.
    """
    if list_file is None:
        paths = find_audio_files([folder])
    else:
        lines = list_file.read_text(encoding="utf-8").splitlines()
        paths = [folder / line.strip() for line in lines if line.strip()]
    if pattern is not None:
        paths = [path for path in paths if path.relative_to(folder).match(pattern)]
    files = [path for path in [folder / "metadata.jsonl"] if path.is_file()] if transcripts is None else transcripts
    texts: dict[str, str | None] = {}
    for file in files:
        texts |= read_transcripts(file)
    clips = []
    for path in paths[:limit]:
        if not path.is_file():
            raise AudioFileError(path, "no such file; check the spelling.")
        name = path.relative_to(folder).as_posix()
        clips.append(Clip(name, path, hashlib.sha256(path.read_bytes()).hexdigest()[:16], texts.get(name)))
    if not clips:
        raise ValueError(f"There is no clip to evaluate in {list_file or folder}.")
    if transcripts and not any(clip.name in texts for clip in clips):
        raise ValueError(
            f"{', '.join(map(str, transcripts))}: no transcript is of a clip; names there, such as"
            f" {next(iter(texts), '')!r}, must be paths within the data, such as {clips[0].name!r}."
        )
    return clips


def set_aside_unreadable(clips: list[Clip]) -> tuple[list[Clip], int]:
    """The clips that can be read, and the number of those that cannot. Each of these is named with the reason."""
    readable = []
    for clip in clips:
        try:
            clip.load()
        except AudioFileError as error:
            print(f"set aside: {error}", file=sys.stderr)
        else:
            readable.append(clip)
    if not readable:
        raise ValueError("No clip can be read.")
    return readable, len(clips) - len(readable)
