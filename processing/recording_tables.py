# SPDX-License-Identifier: Apache-2.0
"""Where recordings stand: folders with or without metadata, Parquet, saved datasets and the Hub, as datasets."""

import bisect
import collections
import glob
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from .audio_files import AudioFileError, find_audio_files
from .column_texts import holds_one_value, text_as_bytes, text_of
from .metadata_files import MetadataRow, as_columns, as_text, check_file_names, probably_meant, read_metadata
from .metadata_folders import METADATA_NAMES, parquet_columns, read_folder_metadata, tables_in


# Seconds that the Hub has for saying whether it knows a name. `datasets` asks again for half a minute.
_PATIENCE = 5.0


def check_column_is_read(audio_column: str, path: str | os.PathLike[str]) -> None:
    """
    Args:
        audio_column (`str`): Column of audio that was asked for.
        path (`str` or `Path`): Recordings that lie in files of their own.

    Raises:
        ValueError: If it is not the usual one: there are no columns of audio, and another choice would do nothing.
    """
    if audio_column != "audio":
        raise ValueError(
            f"the audio column {audio_column!r} is for tables that hold audio, but the recordings of {path} are files"
            " of their own; leave it out."
        )


def read_folder(folder: Path, audio_column: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """
    The recordings of a folder: those that its metadata name, else those of its Parquet files, else its audio files.

    Raises:
        ValueError: If there are none, or the metadata cannot be read.
    """
    tables = tables_in(folder, audio_column)
    for saved in tables.saved:
        print(
            f"{saved}: not read, since it is a dataset that `save_to_disk` wrote within {folder}; name it by itself",
            file=sys.stderr,
        )
    if not tables.parquet or tables.metadata:
        check_column_is_read(audio_column, folder)
    if tables.metadata:
        recordings = from_metadata(read_folder_metadata(folder, tables.metadata), folder)
        if tables.parquet:
            count = sum(parquet_columns(file)[0] for file in tables.parquet)
            print(
                f"{folder}: {count} recordings of {_files_in_words(tables.parquet)} are left out, since"
                f" {_files_in_words(tables.metadata)} says which recordings there are; name a Parquet file to read it",
                file=sys.stderr,
            )
        if all(file.parent != folder for file in tables.metadata):
            _tell_unlisted(folder, set(recordings["file_name"][:]), tables.metadata)
        return recordings
    if tables.parquet:
        named = _names_in_parquet(tables.parquet, audio_column)
        _tell_unlisted(folder, {os.path.relpath(name, folder) for name in named}, tables.parquet)
        return read_parquet(tables.parquet, audio_column, streaming)
    files = sorted(find_audio_files([folder]))
    for table in tables.unread[:1]:
        more = f" and {len(tables.unread) - 1} more" if len(tables.unread) > 1 else ""
        print(
            f"{table}{more}: not read, since only {', '.join(METADATA_NAMES)} are; the recordings of {folder} have no"
            " texts",
            file=sys.stderr,
        )
    rows = []
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            # Arrow, which holds the rows, has no such names.
            print(f"left out: {str(file)!r}: the name is not UTF-8; rename the file", file=sys.stderr)
        else:
            rows.append(MetadataRow(str(file), {"file_name": os.path.relpath(file, folder)}))
    if not rows:
        raise ValueError(f"{str(folder)!r}: no recording in it has a name in UTF-8; rename the files or the folder.")
    return from_metadata(rows, folder)


def _tell_unlisted(folder: Path, listed: set[str], metadata: Sequence[Path]) -> None:
    # Parquet files, and metadata of folders within a folder, may leave out whole folders, which no reader expects.
    try:
        names = [os.path.relpath(file, folder) for file in find_audio_files([folder])]
    except AudioFileError:
        return
    if unlisted := [name for name in names if name not in listed]:
        print(
            f"{folder}: {len(unlisted)} audio files are left out, such as {unlisted[0]!r}, since no metadata names"
            f" them ({_files_in_words(metadata)})",
            file=sys.stderr,
        )


def _files_in_words(files: Sequence[Path]) -> str:
    return f"{files[0]}{' and others' if len(files) > 1 else ''}"


def _names_in_parquet(files: Sequence[Path], audio_column: str) -> list[Path]:
    # The audio files that Parquet files name; no audio is read.
    named = []
    for file in files:
        _schema_text(file)  # which refuses a damaged one by its name
        schema = pyarrow.parquet.read_schema(file)
        column = audio_column if audio_column in schema.names else "file_name"
        kind = schema.field(column).type if column in schema.names else pyarrow.null()
        if pyarrow.types.is_struct(kind) and "path" in _field_names(kind):
            values = pyarrow.parquet.read_table(file, columns=[f"{column}.path"]).column(0).to_pylist()
            values = [value["path"] if isinstance(value, dict) else value for value in values]
        elif _is_string(kind):
            values = pyarrow.parquet.read_table(file, columns=[column]).column(0).to_pylist()
        else:
            values = []
        named += [file.parent / value for value in values if value]
    return named


def from_metadata(rows: Sequence[MetadataRow], folder: Path) -> datasets.Dataset:
    """
    Recordings that rows name, with columns `audio` and `file_name` and the rows' others.

    Args:
        rows (sequence of [`MetadataRow`]): Rows with `file_name`.
        folder (`Path`): Folder that each `file_name` is relative to.

    Raises:
        ValueError: If a row has a column `audio` of its own, or a column holds values of different kinds.
    """
    for place, fields in rows:
        if fields.get("audio") is not None:
            raise ValueError(
                f"{place}: `audio` stands beside `file_name`, and only one can name the recording; remove or rename"
                " the column `audio`."
            )
    columns = as_columns(rows)
    columns.pop("audio", None)
    paths = [str(folder / fields["file_name"]) for _, fields in rows]
    audio = [{"path": path, "bytes": None} for path in paths]
    kind = pyarrow.struct({"path": pyarrow.string(), "bytes": pyarrow.binary()})
    return datasets.Dataset.from_dict({"audio": pyarrow.array(audio, kind), **columns})


def read_parquet(
    files: Sequence[Path], audio_column: str, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """
    The recordings of Parquet files. Relative paths in them count from the folder of each file.

    A file that has `file_name` and no column of audio is metadata.

    Raises:
        ValueError: If a file is damaged, or has neither.
    """
    parts: list[Any] = []
    folders: list[Path | None] = []
    firsts: list[Path] = []
    for (folder, _), group in itertools.groupby(files, key=lambda file: (file.parent, _schema_text(file))):
        names, counts = [], []
        for file in group:
            num_rows, columns = parquet_columns(file)
            if audio_column in columns:
                if num_rows:  # `datasets` cannot read files without rows
                    names.append(str(file))
                    counts.append(num_rows)
                continue
            if "file_name" not in columns:
                _check_audio_column(audio_column, columns, file)
            parts.append(from_metadata(read_metadata(file), folder))
            folders.append(None)  # its paths are whole
            firsts.append(file)
        if names:
            part = undecoded(_load_parquet(names, streaming), audio_column, names[0])
            # Files of another type are joined as text, as which 7 and 007 differ.
            parts.append(part if streaming else _texts_in_columns(part, _places(names, counts)))
            folders.append(folder)
            firsts.append(Path(names[0]))
    if not parts:
        raise ValueError(f"{files[0]}: holds no recording.")
    parts, features = _alike(parts, firsts)
    if streaming:
        parts = [
            part.to_iterable_dataset()
            if isinstance(part, datasets.Dataset)
            else stream_as_read(part, folder, features)
            for part, folder in zip(parts, folders, strict=True)
        ]
    what = f"{files[0]} and {len(files) - 1} more"
    joined = parts[0] if len(parts) == 1 else _read_whole(lambda: datasets.concatenate_datasets(parts), what)
    if streaming:
        return joined
    return as_read(joined, [folder for part, folder in zip(parts, folders, strict=True) for _ in range(len(part))])


def _schema_text(file: Path) -> tuple[str, bytes]:
    parquet_columns(file)  # which refuses a damaged file by its name
    schema = pyarrow.parquet.read_schema(file)
    return str(schema.remove_metadata()), (schema.metadata or {}).get(b"huggingface", b"")


def _places(names: Sequence[str], counts: Sequence[int]) -> Callable[[int], str]:
    # The file and the row in it, by the row among all.
    starts = list(itertools.accumulate(counts, initial=0))

    def place(row: int) -> str:
        index = bisect.bisect_right(starts, row) - 1
        return f"{names[index]}, row {row - starts[index]} (from 0)"

    return place


def _alike(parts: Sequence[Any], firsts: Sequence[Path]) -> tuple[list[Any], datasets.Features]:
    # The parts with the same columns, of the same types, and these. What a part does not say is missing.
    parts = [_with_text_features(part, file) for part, file in zip(parts, firsts, strict=True)]
    if len(parts) == 1:
        return parts, _features_as_read(parts[0].features) or datasets.Features()
    features, places = datasets.Features(), {}
    for part, file in zip(parts, firsts, strict=True):
        for name, kind in _features_as_read(part.features).items():
            if name == "audio" and (
                isinstance(kind, datasets.Audio) or isinstance(kind, dict) and set(kind) == {"bytes", "path"}
            ):
                kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
            if name not in features or _is_null(features[name]):
                features[name], places[name] = kind, file
            elif not _is_null(kind) and features[name] != kind:
                raise ValueError(
                    f"`{name}` is {_kind_in_words(features[name])} in {places[name]}, but {_kind_in_words(kind)} in"
                    f" {file}; write all files alike."
                )
    for index, part in enumerate(parts):
        if not isinstance(part, datasets.Dataset):
            if part.features["audio"] != features["audio"]:
                parts[index] = part.cast_column("audio", features["audio"])
            continue
        for name in [name for name in features if name not in part.column_names]:
            nothing = pyarrow.nulls(len(part), pyarrow.string() if _is_text(features[name]) else pyarrow.null())
            part = part.add_column(name, nothing)
        parts[index] = part.select_columns(list(features)).cast(features)
    return parts, features


def _with_text_features(part: Any, file: Path) -> Any:
    # A stream cannot look ahead, so that the file says whether a column of bytes holds text.
    if isinstance(part, datasets.Dataset):
        return part
    for name, kind in part.features.items():
        if name == "audio" or not isinstance(kind, datasets.Value) or "binary" not in kind.dtype:
            continue
        if text_as_bytes(kind, pyarrow.parquet.read_table(file, columns=[name]).column(0).to_pylist()):
            features = datasets.Features({**part.features, name: datasets.Value("string")})
            told = {"column": name, "place": str(file.parent)}
            part = part.map(_decoded_column, fn_kwargs=told, features=features)
    return part


def _decoded_column(row: dict[str, Any], column: str, place: str) -> dict[str, Any]:
    name = row.get("file_name")
    place = place if name is None else f"{place}, file_name {name!r}"
    return {**row, column: text_of(row[column], None, column, place)}


def _is_null(kind: Any) -> bool:
    return isinstance(kind, datasets.Value) and kind.dtype == "null"


def _is_text(kind: Any) -> bool:
    return isinstance(kind, datasets.Value) and kind.dtype == "string"


def _kind_in_words(kind: Any) -> str:
    return "text" if _is_text(kind) else str(kind)


def _load_parquet(names: Sequence[str], streaming: bool) -> Any:
    def read() -> Any:
        # `datasets` takes a name for a pattern.
        files = [glob.escape(name) for name in names]
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)

    return _read_whole(read, f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}")


def read_saved_dataset(folder: Path, split: str, audio_column: str) -> datasets.Dataset:
    """
    A dataset that `save_to_disk` wrote; of several splits, the one that is named, or the only one.

    Raises:
        ValueError: If it is damaged, or there is no such split or column.
    """
    saved = _read_whole(lambda: datasets.load_from_disk(str(folder)), str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved and len(saved) > 1 or not saved:
            raise ValueError(
                f"{folder}: has no split {split!r}; name the folder of one that it has:"
                f" {', '.join(str(folder / name) for name in saved)}."
            )
        folder = folder / (split if split in saved else next(iter(saved)))
        saved = saved[folder.name]
    if audio_column not in saved.column_names and "file_name" in saved.column_names:
        place = _places([str(folder)], [len(saved)])
        rows = [MetadataRow(place(number), row) for number, row in enumerate(_texts_in_columns(saved, place))]
        check_file_names(rows, folder)
        return from_metadata(rows, folder)
    _check_audio_column(audio_column, saved.column_names, folder)
    saved = _texts_in_columns(undecoded(saved, audio_column, folder), _places([str(folder)], [len(saved)]))
    return as_read(saved, [folder] * len(saved))


def read_hub(path: str, split: str, audio_column: str, streaming: bool) -> Any:
    """
    A split of a dataset on the Hub.

    Raises:
        ValueError: If there is none.
    """
    parent = Path(path).parent
    is_path = path.startswith((".", "~", "/")) or path.count("/") > 1 or "\\" in path
    if (
        is_path
        or Path(path).suffix.lower() in (".jsonl", ".csv", ".parquet")
        or (str(parent) != "." and parent.is_dir())
    ):
        raise ValueError(f"{path}: there is no such file or folder; check the spelling.")
    try:
        ask_hub(path)
        recordings = datasets.load_dataset(path, split=split, streaming=streaming)
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{path}: there is no such file or folder here, and no dataset of that name can be had from the Hub"
            f" ({' '.join(str(error).split())}); check the spelling."
        ) from error
    if recordings.features:
        _check_audio_column(audio_column, recordings.features, path)
    recordings = undecoded(recordings, audio_column, path)
    if isinstance(recordings, datasets.Dataset):
        return as_read(recordings, [None] * len(recordings))
    return stream_as_read(recordings, None)


def ask_hub(name: str) -> None:
    """
    Ask the Hub for a dataset, so that an error comes at once.

    Args:
        name (`str`): Id of the dataset.

    Raises:
        OSError: If the Hub has no such dataset, or is not reached and there is no copy of it here.
    """
    if is_offline_mode():
        return  # then `datasets` does not wait either
    try:
        HfApi().dataset_info(name, timeout=_PATIENCE)
    except RepositoryNotFoundError as error:
        raise FileNotFoundError("it has none, or none that you may read") from error
    except HfHubHTTPError:
        return  # the Hub knows it and refuses, for a reason that loading tells
    except Exception as error:
        owner, _, title = name.rpartition("/")
        folder = "___".join([*([owner] if owner else []), datasets.naming.camelcase_to_snakecase(title)])
        if not Path(datasets.config.HF_DATASETS_CACHE, folder).is_dir():
            raise ConnectionError(f"the Hub cannot be reached: {str(error) or type(error).__name__}") from error


def _read_whole(read: Callable[[], Any], what: str) -> Any:
    # Errors of `datasets` and Arrow, which are of many kinds, name what cannot be read.
    try:
        return read()
    except (pyarrow.ArrowException, datasets.exceptions.DatasetsError, OSError, ValueError, TypeError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"{what}: cannot be read ({reason}); copy or write it anew.") from error


def _check_audio_column(audio_column: str, columns: Any, where: Any) -> None:
    if audio_column not in columns:
        hint = probably_meant(audio_column, columns)
        raise ValueError(f"`audio_column` is {audio_column!r}, but `{where}` has the columns {list(columns)}{hint}.")


def undecoded(recordings: Any, audio_column: str, where: Any) -> Any:
    """The same recordings, whose audio is not decoded and stands in the column `audio`."""
    features = recordings.features or {}
    if isinstance(features.get(audio_column), datasets.Audio):
        recordings = recordings.cast_column(audio_column, datasets.Audio(decode=False))
    if audio_column == "audio":
        return recordings
    if "audio" in features:
        raise ValueError(f"`{where}` has a column `audio` beside `{audio_column}`; remove or rename it.")
    return recordings.rename_column(audio_column, "audio")


def as_read(recordings: datasets.Dataset, folders: Sequence[Path | None]) -> datasets.Dataset:
    """
    Recordings with text in the columns of single values, a `file_name` each (see [`with_names`]), and paths of audio
    that count from a folder each.
    """
    return _anchored(with_names(_texts_in_columns(recordings)), folders)


def stream_as_read(
    recordings: datasets.IterableDataset, folder: Path | None, features: datasets.Features | None = None
) -> datasets.IterableDataset:
    """
    A stream with text in the columns of single values, and paths of audio that count from a folder.

    Args:
        recordings (`datasets.IterableDataset`): The stream.
        folder (`Path`, *optional*): The folder.
        features (`datasets.Features`, *optional*): Columns of the result; those that the stream lacks are `None`.
            Defaults to its own.
    """
    given = recordings.features
    features = features or _features_as_read(given)
    return recordings.map(
        _row_as_read, fn_kwargs={"folder": folder, "given": given, "wanted": features}, features=features
    )


def _texts_in_columns(recordings: datasets.Dataset, place: Callable[[int], str] = str) -> datasets.Dataset:
    for name, feature in recordings.features.items():
        if name == "audio" or _is_string(feature.pa_type if isinstance(feature, datasets.Value) else pyarrow.null()):
            continue
        if not holds_one_value(feature) and not text_as_bytes(feature, recordings[name]):
            continue
        texts = [text_of(value, feature, name, place(row)) for row, value in enumerate(recordings[name][:])]
        recordings = recordings.remove_columns(name).add_column(name, pyarrow.array(texts, pyarrow.string()))
    return recordings


def _row_as_read(
    row: dict[str, Any], folder: Path | None, given: datasets.Features | None, wanted: datasets.Features | None
) -> dict[str, Any]:
    audio = row["audio"]
    if folder is not None:
        if isinstance(audio, str):
            audio = _below(folder, audio)
        elif isinstance(audio, dict) and audio.get("bytes") is None and audio.get("array") is None:
            audio = {**audio, "path": _below(folder, audio.get("path"))}
    texts = {}
    for name in row if wanted is None else wanted:
        value, kind = row.get(name), (given or {}).get(name)
        is_label = isinstance(kind, datasets.ClassLabel)
        texts[name] = text_of(value, kind, name, "") if is_label else as_text(value)
    return {**texts, "audio": audio}


def _features_as_read(features: datasets.Features | None) -> datasets.Features | None:
    if features is None:
        return None
    text = datasets.Value("string")
    return datasets.Features(
        {name: text if name != "audio" and holds_one_value(kind) else kind for name, kind in features.items()}
    )


def _below(folder: Path | None, path: str | None) -> str | None:
    return path if folder is None or not path or "://" in path else str(folder / path)


def _anchored(recordings: datasets.Dataset, folders: Sequence[Path | None]) -> datasets.Dataset:
    # Relative paths of recordings whose bytes are not there count from a folder each. No bytes are copied.
    audio, start, chunks, differ = recordings.data.column("audio"), 0, [], False
    is_struct = pyarrow.types.is_struct(audio.type)
    if is_struct and "path" not in _field_names(audio.type) or not is_struct and not _is_string(audio.type):
        return recordings
    for chunk in audio.chunks:
        fields = {"path": chunk}
        if is_struct:
            fields = {name: pyarrow.compute.struct_field(chunk, name) for name in _field_names(audio.type)}
        is_apart = [True] * len(chunk)
        for name in {"bytes", "array"} & fields.keys():
            is_apart = [a and b for a, b in zip(is_apart, fields[name].is_null().to_pylist(), strict=True)]
        paths = fields["path"].to_pylist()
        places = zip(folders[start : start + len(chunk)], paths, is_apart, strict=True)
        anchored = [_below(folder, path) if apart else path for folder, path, apart in places]
        differ = differ or anchored != paths
        fields["path"] = pyarrow.array(anchored, pyarrow.string())
        if is_struct:
            chunk = pyarrow.StructArray.from_arrays(list(fields.values()), list(fields), mask=chunk.is_null())
        chunks.append(chunk if is_struct else fields["path"])
        start += len(chunk)
    if not differ:
        return recordings
    return recordings.remove_columns("audio").add_column("audio", pyarrow.chunked_array(chunks))


def _is_string(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _field_names(kind: pyarrow.StructType) -> list[str]:
    return [kind.field(index).name for index in range(kind.num_fields)]


def with_names(recordings: datasets.Dataset) -> datasets.Dataset:
    """
    Recordings with a `file_name` each.

    A row without one is named by the path of its audio, or, where it has none or other rows have the same, by its
    number: `row 3`, `a.wav (row 3)`; rows count from 0. So a name stays the same whatever is filtered later.
    """
    count = len(recordings)
    given: list[str | None] = [None] * count
    if "file_name" in recordings.column_names:
        given = [as_text(name) for name in recordings["file_name"][:]]
        if all(given):
            return recordings
        recordings = recordings.remove_columns("file_name")
    audio = recordings.select_columns(["audio"]).with_format("arrow")[:]["audio"] if count else None
    paths: list[str | None] = [None] * count
    if audio is not None and pyarrow.types.is_struct(audio.type) and "path" in _field_names(audio.type):
        paths = pyarrow.compute.struct_field(audio, "path").to_pylist()
    elif audio is not None and _is_string(audio.type):
        paths = audio.to_pylist()
    known = collections.Counter([*paths, *given])
    names = []
    for number, (name, path) in enumerate(zip(given, paths, strict=True)):
        if not name and path:
            name = path if known[path] == 1 else f"{path} (row {number})"
        names.append(name or f"row {number}")
    return recordings.add_column("file_name", pyarrow.array(names, pyarrow.string()))


def check_names_differ(names: Sequence[str], rows: Sequence[int] | None = None, where: str = "the recordings") -> None:
    """
    Args:
        names (sequence of `str`): Names of recordings.
        rows (sequence of `int`, *optional*): Number of the row of each. Defaults to their order, from 0.
        where (`str`, *optional*): What has the rows.

    Raises:
        ValueError: If two have the same name; the message names both rows.
    """
    places: dict[str, int] = {}
    for number, name in zip(range(len(names)) if rows is None else rows, names, strict=True):
        if places.setdefault(name, number) != number:
            raise ValueError(
                f"`file_name` {name!r} stands in the rows {places[name]} and {number} (from 0) of {where}; give each"
                " recording a name of its own, or leave one out by a filter."
            )
