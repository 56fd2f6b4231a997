# SPDX-License-Identifier: Apache-2.0
"""Which tables a folder of recordings holds, and what they say."""

import itertools
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .metadata_files import MetadataRow, read_metadata


METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv")


@dataclass
class FolderContents:
    """
    The tables in a folder and the folders in it.

    Args:
        metadata (`list[Path]`): Files of metadata, which name recordings by `file_name`.
        parquet (`list[Path]`): Parquet files that hold the recordings.
        unread (`list[Path]`): Files that look like metadata, but are not read.
        saved (`list[Path]`): Folders within it that `save_to_disk` of `datasets` wrote.
    """

    metadata: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    saved: list[Path] = field(default_factory=list)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote a folder."""
    is_one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return is_one or (folder / "dataset_dict.json").is_file()


def tables_in(folder: Path, audio_column: str = "audio") -> FolderContents:
    """
    Find the tables in a folder. Hidden entries are skipped, and each real folder is searched once.

    Raises:
        ValueError: If two files of metadata would speak of the same recordings.
    """
    found, seen = FolderContents(), set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        if is_saved_dataset(Path(parent)):
            found.saved.append(Path(parent))
            folders.clear()
            continue
        for name in sorted(names):
            path, lower = Path(parent, name), name.lower()
            if lower == "metadata.parquet" and audio_column not in (columns := parquet_columns(path)[1]):
                (found.metadata if "file_name" in columns else found.unread).append(path)
            elif lower.endswith(".parquet") and not name.startswith("."):
                found.parquet.append(path)
            elif lower in METADATA_NAMES:
                found.metadata.append(path)
            elif lower.startswith("metadata.") or lower.endswith(_TABLE_SUFFIXES):
                found.unread.append(path)
    for first, second in itertools.combinations(found.metadata, 2):
        if first.parent in (second.parent, *second.parent.parents) or second.parent in first.parent.parents:
            raise ValueError(
                f"{first} and {second} both speak of the recordings in {second.parent}; name the one to read, or"
                " remove the other."
            )
    found.parquet.sort(key=str)
    return found


def read_folder_metadata(folder: Path, files: Sequence[Path] | None = None) -> list[MetadataRow]:
    """
    The rows of the metadata of a folder, with each `file_name` relative to the folder itself; none without metadata.

    Args:
        folder (`Path`): The folder.
        files (sequence of `Path`, *optional*): Files of metadata in it or in folders in it. Defaults to all.

    Raises:
        ValueError: If one cannot be read as it stands; see [`read_metadata`].
    """
    rows = []
    for file in tables_in(folder).metadata if files is None else files:
        within = file.parent.relative_to(folder).as_posix()
        for place, fields in read_metadata(file):
            name = fields["file_name"] if within == "." else posixpath.join(within, fields["file_name"])
            rows.append(MetadataRow(place, {**fields, "file_name": name}))
    return rows


def parquet_columns(path: Path) -> tuple[int, list[str]]:
    """
    Number of rows and names of the columns of a Parquet file.

    Raises:
        ValueError: If it is no Parquet file, or a damaged one.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        contents = pyarrow.parquet.read_metadata(path)
        return contents.num_rows, contents.schema.to_arrow_schema().names
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is no whole Parquet file ({error}); copy it anew.") from error
