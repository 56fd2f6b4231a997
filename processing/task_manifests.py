# SPDX-License-Identifier: Apache-2.0
"""
Manifests of understanding tasks: which answer belongs to which recording, in which split, and who speaks.

A split is honest only if nothing that tells the answer stands on both sides of it. So a manifest names the speaker,
the voice or the scene of each recording, and one in which they cross splits is refused.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .metadata_files import MetadataRow, TableError, probably_meant, read_metadata


SPLITS = ("train", "dev", "test")
# What a recording shares with others, and what must not cross splits. The first that is there is redrawn in intervals.
GROUP_COLUMNS = ("speaker", "voice", "scene")
# What others call these splits.
OTHER_SPLIT_NAMES = {
    "training": "train",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "development": "dev",
    "eval": "dev or test",
    "evaluation": "dev or test",
    "testing": "test",
}


@dataclass(frozen=True)
class TaskClip:
    """
    A recording of a task.

    Args:
        name (`str`): Name of the recording, which no other has: its `id`, or else its `file_name`.
        path (`str`): Path of the audio file.
        target (`str`): Answer: a label, or a text.
        split (`str`): `"train"`, `"dev"` or `"test"`.
        groups (mapping of `str` to `str`): Value of each group column, such as `{"speaker": "ls103"}`.
        fields (mapping): Further columns of the manifest.
    """

    name: str
    path: str
    target: str
    split: str
    groups: Mapping[str, str]
    fields: Mapping[str, Any]

    @property
    def group(self) -> str:
        """What intervals redraw: the value of the first group column, or the name where there is no such column."""
        return next(iter(self.groups.values()), self.name)


@dataclass(frozen=True)
class TaskManifest:
    """
    The recordings of a task.

    Args:
        clips (tuple of [`TaskClip`]): All recordings, in the order of the manifest.
        group_columns (tuple of `str`): Columns whose values do not cross splits. Empty if nothing was checked.
    """

    clips: tuple[TaskClip, ...]
    group_columns: tuple[str, ...]

    def of(self, split: str) -> list[TaskClip]:
        """
        The recordings of a split, in the order of the manifest; none where a manifest has no `dev`.

        Raises:
            ValueError: If there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, but got {split!r}.")
        return [clip for clip in self.clips if clip.split == split]

    @property
    def labels(self) -> list[str]:
        """The different answers of training, sorted."""
        return sorted({clip.target for clip in self.of("train")})


def read_manifest(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    group: str | Sequence[str] | None = None,
    is_closed: bool = False,
) -> TaskManifest:
    """
    Read the manifest of a task, and refuse one that would give a wrong number.

    Args:
        path (`str` or `Path`): JSON lines, CSV (`.csv`) or Parquet (`.parquet`), a row a recording, with `file_name`,
            `target` and `split`; see [`read_metadata`].
        folder (`str` or `Path`, *optional*): Folder that each `file_name` is relative to. Defaults to that of the
            manifest.
        group (`str` or sequence of `str`, *optional*): Columns whose values must not cross splits; clips of one value
            of the first are redrawn together in intervals. Defaults to those of `speaker`, `voice` and `scene` that
            hold something. `()` checks nothing, and takes each recording for a group of its own.
        is_closed (`bool`, *optional*, defaults to `False`): Whether the answer is one of the labels of training.

    Raises:
        ValueError: If the table cannot be read, a column or an answer is missing, a file is missing or named twice, a
            split is unknown, a group crosses splits, there is nothing to train on or to test, or, of a closed task, a
            label is unknown to training or there is one label alone. The message names the file and the row.
        OSError: If the table cannot be read.
    """
    root = Path(path).parent if folder is None else Path(folder)
    return manifest_of(path, read_metadata(path, root), root, group, is_closed)


def manifest_of(
    path: str | os.PathLike[str],
    rows: Sequence[MetadataRow],
    root: Path,
    group: str | Sequence[str] | None = None,
    is_closed: bool = False,
) -> TaskManifest:
    """
    The manifest that rows are, which need not be written yet.

    Args:
        path (`str` or `Path`): Where the rows are from, for messages.
        rows (sequence of [`MetadataRow`]): Rows with `file_name`, `target`, `split` and groups.
        root (`Path`): Folder that each `file_name` is relative to.
        group, is_closed: See [`read_manifest`], also for the errors.
    """
    path = Path(path)
    for column in ("target", "split"):
        _check_column(path, rows, column)
    groups = _group_columns(path, rows, group)
    clips = [_clip(row, root, groups) for row in rows]
    _check_differ(rows, clips)
    _check_files(rows, clips, root)
    _check_splits(path, rows, clips)
    for column in groups:
        _check_disjoint(rows, clips, column)
    manifest = TaskManifest(tuple(clips), groups)
    if is_closed:
        _check_labels(path, rows, manifest)
    return manifest


def _columns(rows: Iterable[MetadataRow]) -> list[str]:
    return list(dict.fromkeys(name for _, fields in rows for name in fields))


def _check_column(path: Path, rows: Sequence[MetadataRow], column: str) -> None:
    if column not in (known := _columns(rows)):
        raise ValueError(
            f"{path}: must have a column `{column}`; it has {known}; add it, or make the manifest by"
            f" `speech-tokenizers make-manifest`{probably_meant(column, known)}."
        )


def _group_columns(path: Path, rows: Sequence[MetadataRow], group: str | Sequence[str] | None) -> tuple[str, ...]:
    if group is not None:
        chosen = (group,) if isinstance(group, str) else tuple(group)
        for column in chosen:
            _check_column(path, rows, column)
        return chosen
    found = tuple(name for name in GROUP_COLUMNS if any(_is_given(fields.get(name)) for _, fields in rows))
    if not found:
        listed = ", ".join(f"`{name}`" for name in GROUP_COLUMNS)
        raise ValueError(
            f"{path}: must have one of the columns {listed}, or another that `group` names, since a speaker who stands"
            f" in training and in test makes a number too good; it has {_columns(rows)}. Add one, or pass an empty"
            " `group` if nothing is known."
        )
    return found


def _is_given(value: Any) -> bool:
    return value is not None and str(value).strip() != ""


def _clip(row: MetadataRow, root: Path, groups: Sequence[str]) -> TaskClip:
    place, fields = row
    target, split = fields.get("target"), fields.get("split")
    if isinstance(target, list | dict):
        kind = "a list" if isinstance(target, list) else "an object"
        raise TableError(
            place,
            f"`target` is {kind}, but must be a text; `speech-tokenizers make-manifest` writes slots as text.",
        )
    if not _is_given(target):
        raise TableError(place, f"`target` is {target!r}; give the answer, or leave the recording out.")
    if split not in SPLITS:
        hint = OTHER_SPLIT_NAMES.get(str(split).strip().lower(), "")
        meant = f" ({hint} was probably meant)" if hint else ""
        raise TableError(place, f"`split` is {split!r}, but must be train, dev or test{meant}; rename it.")
    values = {}
    for column in groups:
        value = fields.get(column)
        if not _is_given(value) or isinstance(value, list | dict):
            raise TableError(
                place,
                f"`{column}` is {value!r}, so that nobody can tell whether it stands in another split too; give it, or"
                " name other columns as `group`.",
            )
        values[column] = str(value).strip()
    name = fields["file_name"]
    others = {key: value for key, value in fields.items() if key not in ("file_name", "target", "split")}
    known_as = str(fields["id"]) if _is_given(fields.get("id")) else name
    return TaskClip(known_as, os.path.normpath(root / name), str(target).strip(), str(split), values, others)


def _check_differ(rows: Sequence[MetadataRow], clips: Sequence[TaskClip]) -> None:
    for what, key in (("the file", lambda clip: os.path.realpath(clip.path)), ("the `id`", lambda clip: clip.name)):
        first: dict[str, MetadataRow] = {}
        for row, clip in zip(rows, clips, strict=True):
            other = first.setdefault(key(clip), row)
            if other is not row:
                where = other.place.rsplit(", ", 1)[-1]
                raise TableError(
                    row.place, f"{what} {key(clip)!r} stands in {where} too; give each recording one row."
                )


def _within(row: MetadataRow) -> str:
    return row.place.rsplit(", ", 1)[-1]


def _check_files(rows: Sequence[MetadataRow], clips: Sequence[TaskClip], root: Path) -> None:
    missing = [index for index, clip in enumerate(clips) if not os.path.isfile(clip.path)]
    if missing:
        place, fields = rows[missing[0]]
        raise TableError(
            place,
            f"there is no file {clips[missing[0]].path!r} ({len(missing)} of {len(clips)} files are missing); put it"
            f" there, or say which folder the names are relative to (now {str(root)!r}).",
        )


def _check_splits(path: Path, rows: Sequence[MetadataRow], clips: Sequence[TaskClip]) -> None:
    known = {clip.split for clip in clips}
    for split, purpose in (("train", "to learn from"), ("test", "to measure on")):
        if split not in known:
            raise ValueError(
                f"{path}: none of the {len(rows)} rows has the split {split!r}, so that there is nothing {purpose};"
                f" its splits are {', '.join(sorted(known))}."
            )


def _check_disjoint(rows: Sequence[MetadataRow], clips: Sequence[TaskClip], column: str) -> None:
    first: dict[str, dict[str, int]] = {}
    for index, clip in enumerate(clips):
        first.setdefault(clip.groups[column], {}).setdefault(clip.split, index)
    crossing = {value: splits for value, splits in first.items() if len(splits) > 1}
    if not crossing:
        return
    value, splits = min(crossing.items(), key=lambda entry: sorted(entry[1].values())[1])
    where = ", ".join(f"{split} ({_within(rows[index])})" for split, index in splits.items())
    raise TableError(
        rows[sorted(splits.values())[1]].place,
        f"`{column}` {value!r} stands in more than one split: {where}; {len(crossing)} of {len(first)} values cross."
        " What is measured would be too good. Keep each in one split; if they may cross here, name the columns that"
        " must not as `group`.",
    )


def _check_labels(path: Path, rows: Sequence[MetadataRow], manifest: TaskManifest) -> None:
    labels = manifest.labels
    if len(labels) < 2:
        raise ValueError(
            f"{path}: `target` of all training rows is {labels[0]!r}, so that there is nothing to tell apart; choose"
            " another column as `target`."
        )
    known = set(labels)
    unknown = [index for index, clip in enumerate(manifest.clips) if clip.target not in known]
    if unknown:
        clip = manifest.clips[unknown[0]]
        values = {manifest.clips[index].target for index in unknown}
        listed = ", ".join(labels[:5]) + (f", ... ({len(labels)} in all)" if len(labels) > 5 else "")
        raise TableError(
            rows[unknown[0]].place,
            f"the label {clip.target!r} of the split {clip.split!r} does not occur in training, so that no model could"
            f" answer it ({len(unknown)} rows of {len(values)} such labels); training has {listed}. Correct it, or"
            " leave it out.",
        )


__all__ = ["GROUP_COLUMNS", "OTHER_SPLIT_NAMES", "SPLITS", "TaskClip", "TaskManifest", "manifest_of", "read_manifest"]
