# SPDX-License-Identifier: Apache-2.0
"""What is said in recordings, checked before the work: one row a recording, and a text in each."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from .metadata_files import MetadataRow, as_text, by_file_name, read_metadata
from .metadata_folders import read_folder_metadata
from .recording_tables import check_names_differ, with_names


def recording_keys(recordings: datasets.Dataset) -> list[str]:
    """What tells recordings of the same data apart: their `file_name`s, where `./a.wav` is `a.wav`."""
    return [str(PurePosixPath(name)) for name in with_names(recordings)["file_name"][:]]


def check_one_row_each(recordings: datasets.Dataset, data: str | None = None) -> None:
    """
    Args:
        recordings (`datasets.Dataset`): Recordings, as [`load_recordings`] returns them.
        data (`str`, *optional*): Where they were loaded from, for the message.

    Raises:
        ValueError: If two rows are of one recording; the message names both, where it can by their lines.
    """
    keys = recording_keys(recordings)
    known: dict[str, int] = {}
    for index, key in enumerate(keys):
        if (other := known.setdefault(key, index)) != index:
            by_file_name([row for number in (other, index) for row in _rows_of(recordings, number, data)])
            where = "the recordings" if data is None else f"`{data}`"
            check_names_differ(keys, where=where)


def texts_in(recordings: datasets.Dataset, column: str, data: str | None = None) -> list[str | None]:
    """
    The texts of a column.

    Args:
        recordings (`datasets.Dataset`), data (`str`, *optional*): As for [`check_one_row_each`].
        column (`str`): Name of the column.

    Raises:
        ValueError: If the column holds something else; the message names the first such row.
    """
    texts = [as_text(text) for text in recordings[column][:]]
    for index, text in enumerate(texts):
        if not isinstance(text, str | None):
            kind = "a list" if isinstance(text, list) else "an object" if isinstance(text, dict) else "no text"
            raise ValueError(
                f"{_place_of(recordings, index, data)}: `{column}` is {kind}, but must be text; write one text in"
                " quotes, or name another column."
            )
    return texts


def _place_of(recordings: datasets.Dataset, index: int, data: str | None) -> str:
    if rows := _rows_of(recordings, index, data):
        return rows[0].place
    place = f"{'the recordings' if data is None else data}, row {index} (from 0)"
    return f"{place}, {recordings['file_name'][index]!r}" if "file_name" in recordings.column_names else place


def _rows_of(recordings: datasets.Dataset, index: int, data: str | None) -> Sequence[MetadataRow]:
    # The rows of the metadata, if any, that say of a recording what its row says.
    if data is None or "file_name" not in recordings.column_names:
        return []
    columns = [name for name in recordings.column_names if name != "audio"]
    row = {name: as_text(value) for name, value in recordings.select_columns(columns)[index].items()}
    path = Path(data)
    try:
        rows = read_folder_metadata(path) if path.is_dir() else read_metadata(path) if path.is_file() else []
    except (OSError, ValueError):  # no metadata, but audio in Parquet or the like
        return []
    return [found for found in rows if _says(found.fields, row)]


def _says(fields: dict[str, Any], row: dict[str, Any]) -> bool:
    if PurePosixPath(str(fields["file_name"])) != PurePosixPath(row["file_name"]):
        return False
    return all(
        as_text(value) == row.get(name) for name, value in fields.items() if name in row and name != "file_name"
    )
