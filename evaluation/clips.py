# SPDX-License-Identifier: Apache-2.0
"""The recordings that an evaluation listens to."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech_tokenizers.processing.audio_files import AudioFileError, find_audio_files, load_audio
from speech_tokenizers.processing.metadata_files import (
    MetadataRow,
    by_file_name,
    check_file_names,
    probably_meant,
    read_metadata,
    read_names,
    read_text_lines,
)
from speech_tokenizers.processing.metadata_folders import read_folder_metadata


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


def read_transcripts(path: Path, folder: Path | None = None) -> dict[str, str | None]:
    """
    What is said in each recording, by its file name; `None` where the file does not say.

    Args:
        path (`Path`): Path of JSON lines, CSV or Parquet with `file_name` and `text`. With the suffix `.tsv`, each
            line holds the two, parted by a tab.
        folder (`Path`, *optional*): Folder that the names are relative to. Defaults to that of the file.

    Raises:
        ValueError: If a line is neither, or two have one name; the message names it.
    """
    if path.suffix.lower() != ".tsv":
        rows = read_metadata(path, folder)
        if not any("text" in fields for _, fields in rows):
            columns = list(rows[0].fields)
            hint = probably_meant("text", columns)
            raise ValueError(f"{path}: has no column `text`, but {columns}; name what is said `text`{hint}.")
        return _texts(rows)
    rows = []
    for number, line in read_text_lines(path):
        if line.strip():
            name, tab, text = line.partition("\t")
            place = f"{path}, line {number}"
            if not tab or "\t" in text:
                raise ValueError(f"{place}: a file name, a tab and a text were expected, but got {line!r}.")
            rows.append(MetadataRow(place, {"file_name": name, "text": text}))
    check_file_names(rows, path.parent if folder is None else folder)
    return _texts(rows)


def _texts(rows: Sequence[MetadataRow]) -> dict[str, str | None]:
    for place, fields in rows:
        if not isinstance(fields.get("text"), str | None):
            raise ValueError(f"{place}: `text` must be text, but got {fields['text']!r}.")
    return {name: fields.get("text") for name, (_, fields) in by_file_name(rows).items()}


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
            have a clip, the last one counts. How many of their rows name no file is said. Defaults to the metadata
            in `folder`, if any.
        limit (`int`, *optional*): Largest number of recordings, the first ones, that are taken; at least 1.
        pattern (`str`, *optional*): Pattern that the path of a file within `folder` must match, such as `Original_*`.
    """
    check_limit(limit)
    unused: dict[Path, list[str]] = {}
    if list_file is None:
        paths = find_audio_files([folder])
    else:
        paths = _listed(list_file, folder)
    if pattern is not None:
        paths = [path for path in paths if path.relative_to(folder).match(pattern)]
    texts: dict[str, str | None] = {}
    if transcripts is None:
        texts = _texts(read_folder_metadata(folder))
    else:
        for file in transcripts:
            found = read_transcripts(file, folder)
            unused[file] = [name for name in found if not (folder / name).is_file()]
            texts |= found
    clips = []
    for path in paths[:limit]:
        name = path.relative_to(folder).as_posix()
        clips.append(Clip(name, path, hashlib.sha256(path.read_bytes()).hexdigest()[:16], texts.get(name)))
    if not clips:
        raise ValueError(f"There is no clip to evaluate in {list_file or folder}.")
    if transcripts and not any(clip.name in texts for clip in clips):
        raise ValueError(
            f"{', '.join(map(str, transcripts))}: no transcript is of a clip; names there, such as"
            f" {next(iter(texts), '')!r}, must be paths within the data, such as {clips[0].name!r}."
        )
    for file, names in unused.items():
        if names:
            print(f"{file}: {len(names)} rows name no file in {folder}, first {names[0]!r}", file=sys.stderr)
    return clips


def tell_missing_texts(clips: Sequence[Clip]) -> None:
    """Say how many clips have no text where others have one, for what is measured by texts."""
    without = [clip.name for clip in clips if clip.text is None]
    if 0 < len(without) < len(clips):
        print(
            f"{len(without)} of {len(clips)} clips have no text, first {without[0]!r}; error rates against transcripts"
            " leave them out",
            file=sys.stderr,
        )


def check_limit(limit: int | None) -> None:
    """Raises `ValueError` if there is a `limit` of clips that leaves none."""
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1, but got {limit}; leave it out to take every clip.")


def _listed(list_file: Path, folder: Path) -> list[Path]:
    # The files that a list names, once each.
    listed = list(dict.fromkeys(read_names(list_file)))
    names = [name if (folder / name).is_file() else name.strip() for name in listed]
    if unknown := [name for name in names if not (folder / name).is_file()]:
        raise AudioFileError(
            list_file, f"{len(unknown)} of {len(names)} names are no files in {folder}, first {unknown[0]!r}."
        )
    if outside := [name for name in names if ".." in Path(name).parts or Path(name).is_absolute()]:
        raise AudioFileError(
            list_file, f"{outside[0]!r} leads out of {folder}; write a path relative to this folder, below it."
        )
    return [folder / name for name in names]


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
