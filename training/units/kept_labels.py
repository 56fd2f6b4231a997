# SPDX-License-Identifier: Apache-2.0
"""Labels that units are to keep: what was named, where they are in each recording, and the class of each frame."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import datasets
import numpy as np

from speech_tokenizers.evaluation.frame_labels import IGNORED_LABELS, read_labels
from speech_tokenizers.modeling.unit_model import UnitPreTrainedModel
from speech_tokenizers.processing.labelled_rows import recording_keys
from speech_tokenizers.processing.metadata_files import as_text
from speech_tokenizers.processing.recordings import DecodedRecordings
from speech_tokenizers.processing.timed_labels import TimedLabel
from speech_tokenizers.training.units.excerpts import Excerpt, frame_places
from speech_tokenizers.training.units.kept_directions import framewise_classes


@dataclass(frozen=True)
class NamedLabels:
    """
    What a user names.

    Args:
        source (`str`): A file of timed labels, or a column of the recordings.
        weight (`float`, *optional*): Its weight, if one is stated.
        parts (`int`): Parts of a label's time, with a class each; see [`framewise_classes`].
    """

    source: str
    weight: float | None = None
    parts: int = 1


def parse_labels(text: str, option: str = "--keep") -> NamedLabels:
    """
    Args:
        text (`str`): `LABELS[:weight[:parts]]`; a weight that is left empty is none.
        option (`str`): Name of the option, for messages. `--tell` takes no weight.

    Raises:
        ValueError: If it has another form, the weight is not positive and finite, or the parts are no whole number.
    """
    source, *rest = text.split(":")
    if not source or len(rest) > 2:
        raise ValueError(f"{option} is {text!r}, but must be LABELS[:weight[:parts]], such as tones.jsonl:0.5:4.")
    weight_text, parts_text = (*rest, "", "")[:2]
    try:
        weight = float(weight_text) if weight_text else None
        parts = int(parts_text) if parts_text else 1
    except ValueError as error:
        raise ValueError(
            f"{option} {text!r}: the weight must be a number and the parts a whole number; write"
            " LABELS[:weight[:parts]], such as tones.jsonl:0.5:4."
        ) from error
    if weight is not None and not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"{option} {text!r}: the weight must be positive and finite, but is {weight:g}.")
    if weight is not None and option == "--tell":
        raise ValueError(f"--tell {text!r}: labels that units are not told have no weight; write LABELS[::parts].")
    if parts < 1:
        raise ValueError(f"{option} {text!r}: there must be 1 part or more, but there are {parts}.")
    return NamedLabels(source, weight, parts)


@dataclass(frozen=True)
class LabelSet:
    """
    Labels of recordings.

    Args:
        name (`str`): Name for tables: the file's name without its suffix, or the column's.
        weight (`float`, *optional*): Its weight, if one is stated.
        parts (`int`): Parts of a label's time, with a class each.
        column (`str`, *optional*): The column that it is, if it is one.
        classes (`dict` of `str` to `int`): Number of each label.
        labels (`dict` of `str` to `list`): [`TimedLabel`]s of each recording, by its key; of a column, one without an
            end.
    """

    name: str
    weight: float | None
    parts: int
    column: str | None
    classes: dict[str, int]
    labels: dict[str, list[TimedLabel]]

    def of(self, name: str, seconds: float) -> list[TimedLabel]:
        """Labels of a recording of some seconds; none where there are none for it."""
        found = self.labels.get(_key(name), [])
        return [item._replace(end=min(item.end, seconds)) if math.isinf(item.end) else item for item in found]

    def fingerprint(self) -> str:
        """Short hash of all labels, and how they are divided."""
        digest = hashlib.sha256(str(self.parts).encode())
        for key in sorted(self.labels):
            digest.update(repr((key, [tuple(item) for item in self.labels[key]])).encode())
        return digest.hexdigest()[:16]

    def frame_classes(
        self, model: UnitPreTrainedModel, recordings: DecodedRecordings, excerpts: Sequence[Excerpt]
    ) -> np.ndarray:
        """The class of each frame of a file of frames, `(num_frames,)`; -1 where there is no label."""
        places = frame_places(model, excerpts)
        numbers = np.full(max(place.stop for place in places), -1)
        for excerpt, place in zip(excerpts, places, strict=True):
            labels = self.of(recordings.names[excerpt.recording], _seconds(recordings, excerpt.recording))
            centres = _centres(model, excerpt, place)
            numbers[place] = framewise_classes(labels, centres, self.classes, self.parts)
        return numbers

    def segments(
        self, model: UnitPreTrainedModel, recordings: DecodedRecordings, excerpts: Sequence[Excerpt]
    ) -> list[tuple[int, slice, str]]:
        """The number of the excerpt, the frames in a file of frames, and the label, of each label that has a frame."""
        found = []
        for number, (excerpt, place) in enumerate(zip(excerpts, frame_places(model, excerpts), strict=True)):
            centres = _centres(model, excerpt, place)
            for item in self.of(recordings.names[excerpt.recording], _seconds(recordings, excerpt.recording)):
                first, end = np.searchsorted(centres, [item.start, item.end]).tolist()
                if first < end and item.label in self.classes:
                    found.append((number, slice(place.start + first, place.start + end), item.label))
        return found


def _seconds(recordings: DecodedRecordings, index: int) -> float:
    return float(recordings.starts[index + 1] - recordings.starts[index]) / recordings.sampling_rate


def _centres(model: UnitPreTrainedModel, excerpt: Excerpt, place: slice) -> np.ndarray:
    # Middles of an excerpt's frames, in seconds from the recording's beginning.
    return model.frame_centres(place.stop - place.start).numpy() + excerpt.start / model.sampling_rate


def _key(name: str) -> str:
    return str(PurePosixPath(name))


def read_label_set(named: NamedLabels, recordings: datasets.Dataset, option: str = "--keep") -> LabelSet:
    """
    Find the labels that a user names: in a file of timed labels if there is one, else in a column of the recordings,
    whose value then holds for the whole recording.

    Args:
        named ([`NamedLabels`]): What was named.
        recordings (`datasets.Dataset`): Recordings, as [`load_recordings`] returns them.
        option (`str`): Name of the option, for messages.

    Raises:
        ValueError: If there is neither, the file is malformed, it names no recording, or there are fewer than two
            labels.
    """
    path, names = Path(named.source), recording_keys(recordings)
    column = None
    if path.is_file():
        known = {*names}
        read = {_key(name): items for name, items in read_labels(path).items()}
        labels = {key: items for key, items in read.items() if key in known}
        if not labels:
            example = f", but {next(iter(read))!r}" if read else ""
            raise ValueError(
                f"{option} {path} names none of the {len(names)} recordings, such as {names[0]!r}{example}; "
                "its `file_name`s must be those of the recordings."
            )
        name = path.stem
    elif named.source in recordings.column_names and named.source != "audio":
        column = name = named.source
        values = [as_text(value) for value in recordings[column][:]]
        if any(not isinstance(value, str | None) for value in values):
            raise ValueError(f"{option}: the column {column!r} holds lists, but a label must be a text or a number.")
        labels = {key: [TimedLabel(value, 0.0, math.inf)] for key, value in zip(names, values, strict=True) if value}
    else:
        columns = [column for column in recordings.column_names if column not in ("audio", "file_name")]
        raise ValueError(
            f"{option} is {named.source!r}, but there is no such file of labels, and the recordings have no such"
            f" column; they have {', '.join(columns) or 'none besides their names'}."
        )
    found = sorted({item.label for items in labels.values() for item in items} - {*IGNORED_LABELS})
    if len(found) < 2:
        raise ValueError(
            f"{option} {named.source} must have two labels or more to tell apart, but has"
            f" {f'only {found[0]!r}' if found else 'none'}."
        )
    return LabelSet(name, named.weight, named.parts, column, {label: i for i, label in enumerate(found)}, labels)
