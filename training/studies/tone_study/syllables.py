# SPDX-License-Identifier: Apache-2.0
"""The syllables of a study of tone: the manifest, and the recordings as the encoders hear them."""

import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from tqdm import tqdm

from speech_tokenizers.modeling.pitch_frames import PITCH_VERSION, PitchFrames
from speech_tokenizers.processing.audio_files import AudioWriter, load_audio
from speech_tokenizers.processing.metadata_files import MetadataRow, TableError, probably_meant, read_metadata
from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint
from speech_tokenizers.processing.recording_tables import from_metadata
from speech_tokenizers.processing.tone_labels import NO_INITIAL, mandarin_parts, parse_tone
from speech_tokenizers.processing.whole_files import write_whole
from speech_tokenizers.training.common.set_aside import write_set_aside
from speech_tokenizers.training.common.shared_work import share_work
from speech_tokenizers.training.studies.token_study.clips import (
    SAMPLING_RATE,
    check_share_set_aside,
    trim_silence,
)


# The range of F0 in Hz, and samples between its frames.
_FLOOR, _CEILING, _PITCH_HOP = 55.0, 550.0, 160
# Of the tracker of F0 and its range; another gives other files.
TRACKER = f"frames{PITCH_VERSION}-{_FLOOR:g}-{_CEILING:g}-{_PITCH_HOP}"
# Aligners count in frames of their own, so that a last label may end a little after the recording.
_SECONDS_AFTER_END = 0.1


@dataclass(frozen=True)
class Syllable:
    """
    A spoken syllable.

    Args:
        name (`str`): Name that no other has.
        recording (`str`): Recording that it is in, as the manifest names it.
        path (`str`): Path of the recording.
        span (tuple of `float`, *optional*): Its start and end there, in seconds. `None` is all of the recording.
        speaker (`str`): Who speaks.
        syllable (`str`): What is spoken, without the tone.
        labels (mapping of `str` to `str`): Answer to each target.
        split (`str`, *optional*): `"train"` or `"test"`, where the manifest says so.
    """

    name: str
    recording: str
    path: str
    span: tuple[float, float] | None
    speaker: str
    syllable: str
    labels: Mapping[str, str]
    split: str | None

    @property
    def group(self) -> str:
        """What intervals redraw."""
        return f"{self.speaker}/{self.syllable}"


def read_syllables(
    path: str | os.PathLike[str], targets: Sequence[str], folder: str | os.PathLike[str] | None = None
) -> list[Syllable]:
    """
    Read a manifest of syllables.

    Args:
        path (`str` or `Path`): JSON lines, CSV or Parquet, a row a syllable, with `file_name`, `speaker`, `syllable`
            and `tone`. Without `tone`, it is written in the syllable: `ma1`, `mā` or `ma˥˥`. `start` and `end`, in
            seconds, say where in the recording it is. `split` may say `train` or `test`. Each target is a
            column; those of `vowel`, `final` and `initial` that are not, follow from pinyin. A row with `labels`, as
            `align` writes them, is a recording with a syllable, or a final, for each label that has a tone.
        targets (sequence of `str`): What is to be told of a syllable.
        folder (`str` or `Path`, *optional*): Folder that each `file_name` is relative to. Defaults to that of the
            manifest.

    Raises:
        ValueError: If a column is missing or empty, a syllable cannot be read, a file is missing, there is one label
            alone of a target, or training and test of the manifest share a syllable of a speaker, or a recording.
        OSError: If the table cannot be read.
    """
    root = Path(path).parent if folder is None else Path(folder)
    rows = [part for row in read_metadata(path, root) for part in _labelled_parts(row)]
    known = list(dict.fromkeys(name for _, fields in rows for name in fields))
    if not rows:
        raise ValueError(f"{path}: has no syllable with a tone.")
    for column in ("speaker", "syllable"):
        if column not in known:
            raise ValueError(
                f"{path}: must have a column `{column}`; it has {known}{probably_meant(column, known)}. Without"
                " speakers nobody can tell whether tone carries to a new one."
            )
    found = [_syllable(row, root, targets, known) for row in rows]
    _check_names(rows, found)
    if len({syllable.span is None for syllable in found}) > 1:
        raise ValueError(f"{path}: some rows have `start` and `end`, and others have not; give all of them, or none.")
    for target in targets:
        counts = Counter(syllable.labels[target] for syllable in found)
        if len(counts) < 2:
            raise ValueError(
                f"{path}: `{target}` of all {len(found)} syllables is {next(iter(counts))!r}, so that there is nothing"
                " to tell apart."
            )
    _check_given_split(path, found)
    return found


def _labelled_parts(row: MetadataRow) -> list[MetadataRow]:
    # A row for each label of `align` that has a tone; any other row as it is.
    place, fields = row
    if "labels" not in fields:
        return [row]
    others = {name: value for name, value in fields.items() if name not in ("labels", "words", "text")}
    found = []
    for item in fields["labels"] or []:
        try:
            written, start, end = parse_tone(str(item["label"])), item["start"], item["end"]
        except (KeyError, TypeError) as error:
            raise TableError(place, "`labels` must be a list of `label`, `start` and `end`.") from error
        except ValueError:  # a boundary between words
            continue
        if written.tone is not None:
            parts = {"syllable": written.syllable, "tone": written.tone, "start": start, "end": end}
            found.append(MetadataRow(place, {**others, **parts}))
    return found


def _syllable(row: MetadataRow, root: Path, targets: Sequence[str], known: Sequence[str]) -> Syllable:
    place, fields = row
    values = {}
    for column in ("speaker", "syllable", *(name for name in targets if name in known)):
        value = fields.get(column)
        if column == "tone" and value is None:  # then it is written in the syllable
            continue
        if value is None or isinstance(value, list | dict) or not str(value).strip():
            raise TableError(place, f"`{column}` is {value!r}; give it, or leave the syllable out.")
        values[column] = str(value).strip()
    try:
        written = parse_tone(values["syllable"])
        tone = values.get("tone", written.tone)
        if tone is None:
            raise ValueError("there is no `tone`, neither as a column nor in the syllable.")
        if str(tone).isdigit() and (written.tone or "").isdigit() and written.tone != tone:
            raise ValueError(f"`tone` is {tone!r}, but the syllable says {written.tone!r}.")
        missing = [target for target in targets if target not in values and target != "tone"]
        parts = mandarin_parts(written.syllable)._asdict() if missing else {}
        # One sound is one syllable, however it is spelt.
        spoken = (parts["initial"] + parts["final"]).removeprefix(NO_INITIAL) if parts else written.syllable
    except ValueError as error:
        raise TableError(place, str(error)) from error
    if unknown := [target for target in missing if target not in parts]:
        raise TableError(place, f"there is no column `{unknown[0]}`, which is among the targets; add it.")
    known_labels = {**parts, **values, "tone": tone}
    labels = {target: str(known_labels[target]) for target in targets}
    file = os.path.normpath(root / str(fields["file_name"]))
    if not os.path.isfile(file):
        raise TableError(place, f"there is no file {file!r}; put it there, or say which folder the names are in.")
    span, split = _span(place, fields), fields.get("split")
    if split not in (None, "train", "test"):
        raise TableError(place, f"`split` is {split!r}, but must be train or test.")
    recording = os.path.normpath(str(fields["file_name"]))
    name = recording if span is None else f"{recording} {span[0]!r}-{span[1]!r}"
    return Syllable(name, recording, file, span, values["speaker"], spoken, labels, split)


def _span(place: str, fields: Mapping[str, Any]) -> tuple[float, float] | None:
    start: Any = fields.get("start")
    end: Any = fields.get("end")
    if start is None and end is None:
        return None
    try:
        span = float(start), float(end)
    except (TypeError, ValueError):
        raise TableError(place, f"`start` and `end` must be seconds, but are {start!r} and {end!r}.") from None
    if not 0 <= span[0] < span[1] < float("inf"):
        raise TableError(place, f"`end` must lie behind `start`, but they are {start} and {end}.")
    return span


def _check_names(rows: Sequence[MetadataRow], found: Sequence[Syllable]) -> None:
    first: dict[str, MetadataRow] = {}
    for row, syllable in zip(rows, found, strict=True):
        other = first.setdefault(syllable.name, row)
        if other is not row:
            raise TableError(row.place, f"{syllable.name!r} stands in an earlier row too ({other.place}); keep one.")


def _check_given_split(path: str | os.PathLike[str], found: Sequence[Syllable]) -> None:
    splits = {syllable.split for syllable in found}
    if splits == {None}:
        return
    if splits != {"train", "test"}:
        raise ValueError(f"{path}: `split` must say train or test in each row, and both must occur, or be left out.")
    keys: list[tuple[str, Callable[[Syllable], str]]] = [("the recording", lambda syllable: syllable.recording)]
    if found[0].span is None:
        keys.append(("the syllable", lambda syllable: f"{syllable.syllable!r} of {syllable.speaker!r}"))
    for what, key in keys:
        sides = [{key(syllable) for syllable in found if syllable.split == side} for side in ("train", "test")]
        if shared := sorted(sides[0] & sides[1]):
            raise ValueError(
                f"{path}: {what} {shared[0]} stands in training and in test ({len(shared)} do), so that what is"
                " measured would be too good. Keep each in one split, or leave `split` out: the study makes splits"
                " of its own."
            )


@dataclass(frozen=True)
class PreparedSyllables:
    """
    Syllables as the encoders hear them.

    Args:
        syllables (list of [`Syllable`]): In the order of the manifest.
        recordings (`datasets.Dataset`): A recording of each, with `file_name`, `audio` and `id`, its name.
        pitch_times, pitches (lists of `np.ndarray`): F0 of each: times in seconds, and log2 of Hz, NaN where unvoiced.
        set_aside (list of `dict`): `{"name", "reason"}` of what cannot be read.
    """

    syllables: list[Syllable]
    recordings: datasets.Dataset
    pitch_times: list[np.ndarray]
    pitches: list[np.ndarray]
    set_aside: list[dict[str, str]]

    @property
    def unvoiced(self) -> list[str]:
        """Names of those in which no frame is voiced."""
        return [
            syllable.name
            for syllable, pitch in zip(self.syllables, self.pitches, strict=True)
            if np.isnan(pitch).all()
        ]


def prepare_syllables(
    syllables: Sequence[Syllable], trim: bool, folder: Path, show_progress: bool | None = None, num_workers: int = 1
) -> PreparedSyllables:
    """
    Cut syllables out of their recordings and track their F0. Cuts are FLAC files of 16 bits and 16 kHz in `folder`;
    those that are there are not made again.

    Args:
        syllables (sequence of [`Syllable`]): What [`read_syllables`] gives.
        trim (`bool`): Whether to cut silence off both ends.
        folder (`Path`): Folder for the cuts.
        show_progress (`bool`, *optional*): Whether to show a bar. Defaults to whether standard error is a terminal.
        num_workers (`int`): Processes that share the work.

    Raises:
        ValueError: If more than 5 % cannot be read. `folder/set_aside.jsonl` names them.
    """
    kept, rows, set_aside = [], [], []
    times: list[np.ndarray] = []
    pitches: list[np.ndarray] = []
    disable = None if show_progress is None else not show_progress
    work = share_work(_prepared, syllables, num_workers, _Preparation, (trim, folder), jobs_at_once=32)
    for syllable, found in tqdm(
        zip(syllables, work, strict=True), desc="syllables", unit="clip", total=len(syllables), disable=disable
    ):
        if isinstance(found, str):
            set_aside.append({"name": syllable.name, "reason": found})
            continue
        path, track_times, track = found
        kept.append(syllable)
        rows.append(MetadataRow(str(path), {"file_name": str(path), "id": syllable.name}))
        times.append(track_times)
        pitches.append(track)
    write_set_aside(folder / "set_aside.jsonl", set_aside)
    check_share_set_aside("tone", set_aside, len(syllables), folder / "set_aside.jsonl")
    prepared = PreparedSyllables(kept, from_metadata(rows, Path()), times, pitches, set_aside)
    if unvoiced := prepared.unvoiced:
        print(
            f"{len(unvoiced)} of {len(kept)} syllables have no voiced frame (F0 was looked for from {_FLOOR:g} to"
            f" {_CEILING:g} Hz), such as {unvoiced[0]!r}; all their codes of F0 say so",
            file=sys.stderr,
        )
    return prepared


class _Preparation(NamedTuple):
    # What is done with each syllable.
    trim: bool
    folder: Path


def _prepared(how: _Preparation, syllable: Syllable) -> tuple[Path, np.ndarray, np.ndarray] | str:
    # The cut, and times and values of its F0; or the reason why there is none.
    try:
        path = _cut(syllable, how.trim, how.folder)
        return path, *_pitch(path)
    except (ValueError, RuntimeError, MemoryError) as error:
        return str(error)


def _cut(syllable: Syllable, trim: bool, folder: Path) -> Path:
    source = Path(syllable.path)
    made_of = json.dumps([recording_fingerprint(source), syllable.span, trim])
    target = folder / f"{hashlib.sha256(made_of.encode()).hexdigest()[:20]}.flac"
    if target.is_file():
        return target
    audio = load_audio(source, SAMPLING_RATE)
    if syllable.span is not None:
        start, end = (round(second * SAMPLING_RATE) for second in syllable.span)
        if end > len(audio) + _SECONDS_AFTER_END * SAMPLING_RATE or start >= len(audio):
            raise ValueError(
                f"it lies from {syllable.span[0]:g} to {syllable.span[1]:g} s, but {source} is"
                f" {len(audio) / SAMPLING_RATE:.3f} s long."
            )
        audio = audio[start:end]
    if trim:
        audio = trim_silence(audio, SAMPLING_RATE)
    with AudioWriter(target, SAMPLING_RATE) as writer:
        writer.write(audio)
    return target


def _pitch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    # Kept beside the cut, since it takes longer than all else.
    known = path.with_suffix(f".f0-{TRACKER}.npy")
    if known.is_file():
        times, pitch = np.load(known, allow_pickle=False)
        return times, pitch
    waveform = torch.from_numpy(load_audio(path, SAMPLING_RATE))[None]
    num_samples = waveform.shape[1]
    tracker = PitchFrames(_PITCH_HOP, 0, SAMPLING_RATE, _FLOOR, _CEILING)
    octaves = tracker.track(waveform, torch.tensor([num_samples]), num_samples // _PITCH_HOP + 1)[0].numpy()
    pitch = np.where(octaves > 0, octaves, np.nan)
    times = np.arange(len(pitch)) * _PITCH_HOP / SAMPLING_RATE
    content = io.BytesIO()
    np.save(content, np.stack([times, pitch]))
    write_whole(known, content.getvalue())
    return times, pitch
