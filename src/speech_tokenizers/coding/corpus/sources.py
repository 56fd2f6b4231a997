# SPDX-License-Identifier: Apache-2.0
"""
Where a corpus stands: folders, manifests, Parquet, WebDataset tars, saved datasets, the Hub. What is known of its
recordings is read, and where their audio lies; no audio is read.
"""

import glob
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    import datasets
    import pyarrow

_INDEX = "place_in_corpus"


class Place(NamedTuple):
    """
    Where the audio of a recording lies.

    Args:
        path (`str`): File or address (`hf://...`). Of `"files"` it is the recording itself.
        offset (`int`, *optional*): First byte in a tar.
        size (`int`, *optional*): Number of bytes in a tar.
        row (`int`, *optional*): Row of a Parquet file, or of what [`load_recordings`] returns, from 0.
    """

    path: str
    offset: int | None = None
    size: int | None = None
    row: int | None = None


@dataclass(frozen=True)
class CorpusSource:
    """
    A corpus as it is found.

    Args:
        kind (`str`): How its audio is found: `"files"`, `"tar"` (a range of bytes), `"parquet"` (a row of a file), or
            `"rows"` (a row of what [`load_recordings`] returns).
        recordings (`datasets.Dataset`): What is known of the recordings, as [`RowFields`] takes it. Its audio has
            paths alone.
        places (list of [`Place`]): Where the audio of each lies.
        faults (`dict`): Why a recording cannot be read, by its position; known before the work, as of a broken tar.
        loading (`dict`): Arguments of [`load_recordings`], for `"rows"`.
        audio_column (`str`): Column of audio, for `"parquet"`.
    """

    kind: str
    recordings: "datasets.Dataset"
    places: list[Place]
    faults: Mapping[int, str]
    loading: Mapping[str, Any]
    audio_column: str = "audio"


def find_corpus(
    data: str,
    filter_by: Mapping[str, Any] | None = None,
    file_list: str | None = None,
    split: str | None = None,
    audio_column: str = "audio",
    config: str | None = None,
) -> CorpusSource:
    """
    Find the recordings of a corpus.

    Args:
        data (`str`): Folder of audio files, with or without metadata; a file of metadata; a Parquet file or a folder
            of them; a tar of WebDataset, a folder of them or a pattern (`"shards/*.tar"`); a folder that
            `save_to_disk` wrote; or a dataset's id on the Hub, of which only what is asked for is read.
        filter_by (`dict`, *optional*), file_list (`str`, *optional*): See [`load_recordings`].
        split (`str`, *optional*): Split of a dataset that is saved or on the Hub, `"train"` by default; of others the
            rows whose column `split` is that.
        audio_column (`str`, *optional*, defaults to `"audio"`): Column of audio.
        config (`str`, *optional*): Configuration of a dataset on the Hub, such as a language.

    Raises:
        ValueError: If nothing is found, a table cannot be read (see [`load_recordings`]), or `config` is given for
            what is not on the Hub.
    """
    from speech_tokenizers.processing.metadata_folders import is_saved_dataset
    from speech_tokenizers.processing.recording_tables import check_column_is_read

    source, chosen = Path(data), dict(filter_by or {})
    tars = _local_tars(data)
    if config is not None and (tars or source.exists()):
        raise ValueError(f"`config` {config!r} is for datasets of the Hub, but {data} is here; leave it out.")
    if split is not None and (tars or source.exists()) and not is_saved_dataset(source):
        if "split" in chosen:
            raise ValueError("`split` and a filter by `split` say the same; leave one out.")
        chosen["split"] = [split]
    if tars:
        check_column_is_read(audio_column, data)
        found = _tar_source(tars, os.path.commonpath([os.path.dirname(os.path.abspath(tar)) for tar in tars]))
        _tell_unread(source)
    elif files := _local_parquet(source, audio_column):
        found = _parquet_source(files, audio_column, data)
    elif source.exists():
        return _loaded_source(data, chosen, file_list, split, audio_column)
    else:
        found = _hub_source(data, split or "train", audio_column, config)
    return _kept(found, chosen, file_list, data)


def _kept(source: CorpusSource, filter_by: dict[str, Any], file_list: str | None, data: str) -> CorpusSource:
    from speech_tokenizers.processing.labelled_rows import check_one_row_each
    from speech_tokenizers.processing.recordings import keep_rows

    if not filter_by and file_list is None:
        check_one_row_each(source.recordings)
        return source
    import pyarrow

    numbered = source.recordings.add_column(_INDEX, pyarrow.array(range(len(source.recordings))))
    kept = keep_rows(numbered, filter_by, file_list, data)
    indices = kept[_INDEX][:]
    check_one_row_each(kept)
    return CorpusSource(
        source.kind,
        kept.remove_columns(_INDEX),
        [source.places[index] for index in indices],
        {position: source.faults[index] for position, index in enumerate(indices) if index in source.faults},
        source.loading,
        source.audio_column,
    )


# Files of audio, and rows whose audio is within a dataset


def _loaded_source(
    data: str,
    chosen: dict[str, Any],
    file_list: str | None,
    split: str | None,
    audio_column: str,
) -> CorpusSource:
    from speech_tokenizers.processing.labelled_rows import check_one_row_each
    from speech_tokenizers.processing.metadata_folders import is_saved_dataset
    from speech_tokenizers.processing.recordings import load_recordings

    options = {"split": split} if split is not None and is_saved_dataset(Path(data)) else {}
    loading: dict[str, Any] = {
        "path": os.path.abspath(data),
        "filter_by": chosen,
        "file_list": file_list,
        "audio_column": audio_column,
        "unique_names": True,
        **options,
    }
    recordings = load_recordings(**loading)
    check_one_row_each(recordings, data)
    paths = _paths_alone(recordings)
    if paths is None:
        places = [Place(loading["path"], row=row) for row in range(len(recordings))]
        return CorpusSource("rows", _with_paths(recordings, [None] * len(recordings)), places, {}, loading)
    places = [Place(os.path.abspath(path)) for path in paths]
    return CorpusSource("files", recordings, places, {}, {})


def _paths_alone(recordings: "datasets.Dataset") -> list[str] | None:
    # The paths of audio files, unless audio is within the rows.
    import pyarrow
    import pyarrow.compute

    audio = recordings.data.column("audio")
    kind = audio.type
    if pyarrow.types.is_string(kind):
        return audio.to_pylist() if not audio.null_count else None
    if not pyarrow.types.is_struct(kind) or {kind.field(index).name for index in range(kind.num_fields)} != {
        "bytes",
        "path",
    }:
        return None
    if recordings._indices is not None:
        audio = recordings.select_columns(["audio"]).flatten_indices().data.column("audio")
    inner = [pyarrow.compute.struct_field(chunk, "bytes") for chunk in audio.chunks]
    if any(chunk.null_count != len(chunk) for chunk in inner):
        return None
    paths = [path for chunk in audio.chunks for path in pyarrow.compute.struct_field(chunk, "path").to_pylist()]
    return paths if all(paths) else None


def _with_paths(recordings: "datasets.Dataset", paths: Sequence[str | None]) -> "datasets.Dataset":
    import pyarrow

    kind = pyarrow.struct({"path": pyarrow.string(), "bytes": pyarrow.binary()})
    audio = pyarrow.array([{"path": path, "bytes": None} for path in paths], kind)
    if "audio" in recordings.column_names:
        recordings = recordings.remove_columns("audio")
    return recordings.add_column("audio", audio)


# Parquet


def _local_parquet(source: Path, audio_column: str) -> list[str]:
    # Files whose audio lies in them.
    from speech_tokenizers.processing.metadata_folders import is_saved_dataset, tables_in

    if source.is_file() and source.suffix.lower() == ".parquet":
        files = [source]
    elif source.is_dir() and not is_saved_dataset(source):
        tables = tables_in(source, audio_column)
        files = [] if tables.metadata else list(tables.parquet)
    else:
        files = []
    return [str(file) for file in files] if files and _holds_bytes(str(files[0]), audio_column) else []


def _holds_bytes(file: str, audio_column: str) -> bool:
    import pyarrow

    from speech_tokenizers.processing.metadata_folders import parquet_columns

    parquet_columns(Path(file))  # which refuses a damaged file by its name
    schema = pyarrow.parquet.read_schema(file)
    if audio_column not in schema.names:
        return False
    kind = schema.field(audio_column).type
    return pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _parquet_source(files: Sequence[str], audio_column: str, data: str) -> CorpusSource:
    import datasets
    import pyarrow

    from speech_tokenizers.processing.recording_tables import as_read

    tables, paths, places = [], [], []
    features: dict[str, Any] = {}
    for file in files:
        table, names, own = _parquet_facts(file, audio_column)
        tables.append(table)
        paths += names
        places += [Place(_absolute(file), row=row) for row in range(len(names))]
        for name, feature in own.items():
            if features.setdefault(name, feature) != feature:
                raise ValueError(
                    f"`{name}` is {feature} in {file}, but {features[name]} in {files[0]}; write all files alike."
                )
    try:
        table = pyarrow.concat_tables(tables, promote_options="default")
    except pyarrow.ArrowException as error:
        raise ValueError(f"{data}: its Parquet files have different columns ({error}); write all alike.") from error
    info = datasets.DatasetInfo(features=datasets.Features(features))
    recordings = _with_paths(datasets.Dataset(table.cast(info.features.arrow_schema), info=info), paths)
    recordings = as_read(recordings, [None] * len(recordings))
    return CorpusSource("parquet", recordings, places, {}, {}, audio_column)


def _parquet_facts(file: str, audio_column: str) -> tuple["pyarrow.Table", list[str | None], dict[str, Any]]:
    # What is known of the recordings, the paths of their audio, and the types of what is known.
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        with open_place(file) as stream:
            opened = pyarrow.parquet.ParquetFile(stream)
            schema = opened.schema_arrow
            if audio_column not in schema.names:
                raise ValueError(f"{file}: has no column {audio_column!r} of audio; it has {schema.names}.")
            columns = [name for name in schema.names if name != audio_column]
            kind = schema.field(audio_column).type
            has_paths = pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0
            wanted = [*columns, *([f"{audio_column}.path"] if has_paths else [])]
            table = opened.read(columns=wanted) if wanted else None
            num_rows = opened.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: is no whole Parquet file ({error}); copy it anew.") from error
    paths: list[str | None] = [None] * num_rows
    if has_paths and table is not None:
        paths = [None if value is None else value["path"] for value in table.column(audio_column).to_pylist()]
    known = datasets.Features.from_arrow_schema(schema)
    if table is None:
        table = pyarrow.table({"file_name": pyarrow.nulls(num_rows, pyarrow.string())})
        return table, paths, {"file_name": datasets.Value("string")}
    table = table.select(columns).replace_schema_metadata(None)
    return table, paths, {name: known[name] for name in columns}


# Tars


def _local_tars(data: str) -> list[str]:
    from speech_tokenizers.processing.metadata_folders import tables_in

    path = Path(data)
    if path.is_file():
        found = [data]
    elif path.is_dir():
        found = sorted(str(tar) for tar in path.rglob("*.tar*") if tar.is_file())
        if found and (tables := tables_in(path)) and (tables.metadata or tables.parquet):
            return []
    else:
        found = sorted(glob.glob(data, recursive=True))
    tars = [tar for tar in found if Path(tar).suffix == ".tar"]
    if packed := next((tar for tar in found if tar.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))), None):
        raise ValueError(f"{packed}: a compressed tar cannot be read from the middle; unpack it to a .tar.")
    return tars


def _tell_unread(folder: Path) -> None:
    # Audio files beside tars, which nobody expects to be left out.
    from speech_tokenizers.processing.audio_files import AudioFileError, find_audio_files

    if not folder.is_dir():
        return
    try:
        names = find_audio_files([folder])
    except AudioFileError:
        return
    print(
        f"{folder}: {len(names)} audio files are left out, such as {names[0]}, since there are tars; name another"
        " folder for these",
        file=sys.stderr,
    )


def _tar_source(tars: Sequence[str], root: str | None) -> CorpusSource:
    import datasets

    from speech_tokenizers.processing.metadata_files import MetadataRow, as_columns

    rows: list[MetadataRow] = []
    places: list[Place] = []
    faults: dict[int, str] = {}
    paths: list[str] = []
    names: set[str] = set()
    for tar in tars:
        shown = tar.rsplit("/", 1)[-1] if root is None else os.path.relpath(os.path.abspath(tar), root)
        for sample in _samples_in(tar):
            name, number = f"{shown}/{sample.name}", 2
            while name in names:
                name, number = f"{shown}/{sample.name} ({number})", number + 1
                faults[len(rows)] = f"the tar holds {sample.name!r} twice; rename one of them."
            if sample.fault is not None:
                faults[len(rows)] = sample.fault
            names.add(name)
            paths.append(sample.name)
            rows.append(MetadataRow(f"{tar}, {sample.name}", {**sample.fields, "file_name": name}))
            places.append(Place(_absolute(tar), sample.offset, sample.size))
    if not rows:
        raise ValueError(f"{tars[0]}: holds no audio file; name tars of WebDataset, with members such as 0001.flac.")
    columns = as_columns(rows)
    recordings = _with_paths(datasets.Dataset.from_dict(columns), paths)
    return CorpusSource("tar", recordings, places, faults, {})


@dataclass
class _Sample:
    # The files of a tar that have one name but for its ending.
    name: str
    fields: dict[str, Any]
    offset: int = 0
    size: int = 0
    fault: str | None = None


def _samples_in(tar: str) -> Iterator[_Sample]:
    # One for each audio file. Members beside it, `.json` and `.txt`, say what is known.
    import tarfile

    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES

    known: dict[str, dict[str, Any]] = {}
    broken: dict[str, str] = {}
    order: list[_Sample] = []
    try:
        with open_place(tar) as stream, tarfile.open(fileobj=stream, mode="r:") as opened:
            for member in opened:
                key, suffix = os.path.splitext(member.name)
                suffix = suffix.lower()
                if not member.isfile() or member.name.rpartition("/")[-1].startswith("."):
                    continue
                if suffix in AUDIO_SUFFIXES:
                    order.append(_Sample(member.name, {}, member.offset_data, member.size))
                elif suffix in (".json", ".txt"):
                    file = opened.extractfile(member)
                    assert file is not None
                    content = file.read()
                    try:
                        known.setdefault(key, {}).update(_fields_of(content, suffix))
                    except ValueError as error:
                        broken[key] = (
                            f"{os.path.basename(member.name)} beside it cannot be read ({error}); correct it."
                        )
                # `tarfile` remembers all members, of which a large tar has very many.
                opened.members.clear()  # type: ignore[attr-defined]
    except (tarfile.TarError, OSError) as error:
        order.append(_Sample("(the rest)", {}, fault=f"the tar is not whole ({error}); copy it anew."))
    for sample in order:
        # WebDataset's own names end at the first full stop, those of others at the last.
        folder, slash, base = sample.name.rpartition("/")
        for key in (f"{folder}{slash}{base.partition('.')[0]}", os.path.splitext(sample.name)[0]):
            sample.fields = {**sample.fields, **known.get(key, {})}
            sample.fault = sample.fault or broken.get(key)
    yield from order


def _fields_of(content: bytes, suffix: str) -> dict[str, Any]:
    from speech_tokenizers.processing.metadata_files import as_text

    if suffix == ".txt":
        return {"text": content.decode().strip()}
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("a .json in it holds no object")
    return {name: as_text(value) for name, value in found.items() if name not in ("audio", "file_name")}


# The Hub


def _hub_source(data: str, split: str, audio_column: str, config: str | None) -> CorpusSource:
    import datasets

    from speech_tokenizers.processing.recording_tables import ask_hub

    parent = Path(data).parent
    if data.startswith((".", "~", "/")) or data.count("/") > 1 or (str(parent) != "." and parent.is_dir()):
        raise ValueError(f"{data}: there is no such file or folder; check the spelling.")
    try:
        ask_hub(data)
        builder = datasets.load_dataset_builder(data, config)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{data}: there is no such file or folder here, and no dataset of that name can be had from the Hub"
            f" ({' '.join(str(error).split())}); check the spelling."
        ) from error
    by_split = builder.config.data_files or {}
    if split not in by_split:
        known = ", ".join(repr(str(name)) for name in by_split) or "none"
        raise ValueError(f"{data}: has no split {split!r}; it has {known}.")
    files = [str(file) for file in by_split[split]]
    kind = type(builder).__module__.rsplit(".", 1)[-1]
    if kind == "webdataset":
        return _tar_source(files, None)
    if kind == "parquet":
        return _parquet_source(files, audio_column, data)
    raise ValueError(
        f"{data}: is of the kind {kind!r}, which cannot be read from the Hub recording by recording; download it by"
        f" `hf download {data} --repo-type dataset --local-dir FOLDER`, and name the folder."
    )


def open_place(path: str) -> Any:
    """A file or an address (`hf://...`), opened to read bytes. Of an address only what is asked for is transferred."""
    if "://" not in path:
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def file_mark(path: str) -> str:
    """What tells whether a file is still the same: its size and time. Empty for an address, whose version is told."""
    if "://" in path:
        return ""
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"


__all__ = ["CorpusSource", "Place", "file_mark", "find_corpus", "open_place"]
