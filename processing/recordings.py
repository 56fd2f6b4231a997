# SPDX-License-Identifier: Apache-2.0
"""
Recordings for codec training: found by `datasets` and decoded once by soundfile.

No part of this needs torchcodec: audio columns are read undecoded.
"""

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import soxr
import xxhash
from tqdm import tqdm

from .audio_files import AudioFileError, load_audio
from .column_texts import holds_one_value, text_as_bytes, text_of
from .metadata_files import URL_ADVICE, as_text, chosen_names, probably_meant, read_metadata, read_names
from .metadata_folders import is_saved_dataset, tables_in
from .recording_tables import (
    check_column_is_read,
    check_names_differ,
    from_metadata,
    read_folder,
    read_hub,
    read_parquet,
    read_saved_dataset,
)
from .sampling_rates import PLAUSIBLE_RATES, whole_sampling_rate
from .waveform_rows import as_samples
from .whole_files import WholeFile, write_whole


def load_recordings(
    path: str,
    filter_by: dict[str, Any] | None = None,
    file_list: str | None = None,
    split: str = "train",
    audio_column: str = "audio",
    streaming: bool = False,
    unique_names: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Recordings as a dataset with a column `audio` of undecoded audio, such as `{"path": str, "bytes": None}`; see
    [`decode_recording`].

    A value of any other column is text, as it is written: `0`, `true` and `2020-01-01` are. A missing value is `None`,
    as is an empty cell of CSV. Lists and objects are left as they are. Each row has a `file_name`, which filters
    do not change; see [`with_names`]. (A stream has what its files have.)

    Args:
        path (`str`): Folder of audio files, with or without `metadata.jsonl`, `metadata.csv` or `metadata.parquet` in
            it or in folders in it (whose `file_name` column is relative to their folder); such a file itself; a
            Parquet file or a folder of them; a folder that `save_to_disk` wrote; or a dataset's id on the Hub.
        filter_by (`dict`, *optional*): Value, or list of values, for each column. Only rows that have one of them in
            each of these columns are kept. Values are compared as text.
        file_list (`str`, *optional*): Text file with the `file_name`s to keep, one a line.
        split (`str`): Split of a dataset that is saved or on the Hub.
        audio_column (`str`): Column of a Parquet, saved or Hub dataset that holds the audio. Relative paths in it
            count from the folder of the file.
        streaming (`bool`): Whether to return an `IterableDataset`.
        unique_names (`bool`): Whether to refuse rows of the same `file_name`, for what knows recordings by their
            names.

    Raises:
        ValueError: If nothing is found, a table cannot be read as it stands, a column, a filter's value or a name in
            the list does not exist, no row is left, or two rows have one name and must not.
    """
    source = Path(path)
    recordings: datasets.Dataset | datasets.IterableDataset
    parquet_files: Sequence[Path] = ()
    if source.is_dir() and is_saved_dataset(source):
        recordings = read_saved_dataset(source, split, audio_column)
    elif source.is_dir():
        recordings = read_folder(source, audio_column, streaming)
        if isinstance(recordings, datasets.IterableDataset):
            parquet_files = tables_in(source, audio_column).parquet
    elif source.is_file() and source.suffix.lower() in (".jsonl", ".csv"):
        check_column_is_read(audio_column, source)
        recordings = from_metadata(read_metadata(source), source.parent)
    elif source.is_file() and source.suffix.lower() == ".parquet":
        parquet_files = [source]
        recordings = read_parquet(parquet_files, audio_column, streaming)
    elif source.exists():
        raise ValueError(f"`{path}` is no folder, no .jsonl, .csv or .parquet file.")
    else:
        recordings = read_hub(path, split, audio_column, streaming)

    if isinstance(recordings, datasets.Dataset) and not len(recordings):
        raise ValueError(f"`{path}` holds no recording.")
    recordings = keep_rows(recordings, filter_by or {}, file_list, path, parquet_files, unique_names)
    if streaming and isinstance(recordings, datasets.Dataset):
        return recordings.to_iterable_dataset()
    return recordings


def keep_rows(
    recordings: Any,
    filter_by: dict[str, Any],
    file_list: str | None,
    path: str,
    parquet_files: Sequence[Path] = (),
    unique_names: bool = False,
) -> Any:
    """
    The rows that filters and a list choose; see [`load_recordings`], which has the same arguments.

    Args:
        parquet_files (sequence of `Path`, *optional*): Files of a stream, whose columns are known by them.
    """
    conditions: list[tuple[str, set[str | None] | None]] = []
    for column, values in filter_by.items():
        values = values if isinstance(values, list | tuple | set) else [values]
        conditions.append((column, {as_text(value) for value in values}))
    if file_list is not None:
        conditions.append(("file_name", None))
    for column, _ in conditions:
        if recordings.features is not None and column not in recordings.features:
            hint = probably_meant(column, recordings.features)
            raise ValueError(
                f"`{path}` has no column {column!r} to filter by; it has {list(recordings.features)}{hint}."
            )

    kept = list(range(len(recordings))) if isinstance(recordings, datasets.Dataset) else []
    for column, wanted in conditions:
        known = _known_values(recordings, column, parquet_files)
        if known is not None and any(isinstance(value, list | dict) for value in known):
            raise ValueError(f"column {column!r} of `{path}` holds lists, by which nothing can be filtered.")
        allowed: set[str | None]
        if wanted is None:
            assert file_list is not None
            allowed = set(read_names(file_list) if known is None else chosen_names(file_list, known, f"`{path}`"))
        else:
            allowed = wanted
            _check_values_exist(column, allowed, known, path)
        if known is not None and isinstance(recordings, datasets.Dataset):
            kept = [index for index in kept if known[index] in allowed]
        else:
            recordings = recordings.filter(_is_allowed, fn_kwargs={"column": column, "allowed": allowed})
    if isinstance(recordings, datasets.Dataset) and unique_names:
        names = recordings["file_name"][:]
        check_names_differ([names[index] for index in kept], kept, f"`{path}`")
    if not isinstance(recordings, datasets.Dataset) or not conditions:
        return recordings
    if not kept:
        given = [*filter_by.items()] + ([file_list] if file_list is not None else [])
        raise ValueError(f"`{path}` has no recording left after filtering by {' and '.join(map(str, given))}.")
    return recordings.select(kept)


def _check_values_exist(column: str, wanted: set[str | None], known: list[Any] | None, path: str) -> None:
    if known is not None and (absent := wanted - set(known)):
        values = sorted(map(repr, set(known)))
        holds = f"{', '.join(values[:5])}{', ...' if len(values) > 5 else ''}"
        lacks = "recording left" if absent == wanted else "row"
        raise ValueError(f"`{path}` has no {lacks} with {column}={min(map(str, absent))}; there is {holds}.")


def _known_values(recordings: Any, column: str, parquet_files: Sequence[Path]) -> list[Any] | None:
    # The values of a column, of a stream of Parquet by reading that column alone; of a stream from the Hub `None`.
    if isinstance(recordings, datasets.Dataset):
        return recordings[column][:]
    if not parquet_files:
        return None
    known: list[Any] = []
    for file in parquet_files:
        schema = pyarrow.parquet.read_schema(file)
        if column not in schema.names:
            known.append(None)
            continue
        feature = datasets.Features.from_arrow_schema(schema)[column]
        values = pyarrow.parquet.read_table(file, columns=[column]).column(0).to_pylist()
        is_text = holds_one_value(feature) or text_as_bytes(feature, values)
        known += [text_of(value, feature, column, str(file)) if is_text else value for value in values]
    return known


def _is_allowed(row: dict[str, Any], column: str, allowed: set[str | None]) -> bool:
    return as_text(row[column]) in allowed


def decode_recording(row: dict[str, Any], sampling_rate: int) -> np.ndarray:
    """
    Decode the `audio` of a row to mono float32 of shape `(num_samples,)`.

    Args:
        row (`dict`): Row whose `audio` is a path, the bytes of an audio file, `{"path", "bytes"}`, samples as floats
            `{"array", "sampling_rate"}`, or a list of such samples beside a column `sampling_rate`.
        sampling_rate (`int`): Sampling rate of the result, in Hz.

    Raises:
        AudioFileError: If it cannot be decoded or holds nothing.
    """
    audio, file_rate = row["audio"], row.get("sampling_rate")
    name = recording_name(row)
    if isinstance(audio, dict):
        file_rate = audio.get("sampling_rate", file_rate)
        path = audio.get("path")
        audio = next((value for key in ("bytes", "array") if (value := audio.get(key)) is not None), path)
    if isinstance(audio, bytes | bytearray | memoryview):
        return load_audio(audio, sampling_rate, name=name)
    if isinstance(audio, str) and "://" in audio and not os.path.exists(audio):
        raise AudioFileError(audio, f"is a URL, which is not read; {URL_ADVICE}.")
    if isinstance(audio, str | os.PathLike) and str(audio):
        return load_audio(audio, sampling_rate)
    if isinstance(audio, list | tuple | np.ndarray):
        return _resampled(audio, file_rate, name, sampling_rate)
    raise AudioFileError(name, "has no audio: neither a path, nor the bytes of a file, nor samples.")


def _resampled(samples: Any, file_rate: Any, name: str, sampling_rate: int) -> np.ndarray:
    try:
        waveform = as_samples(samples, "samples")
    except (TypeError, ValueError) as error:
        raise AudioFileError(name, str(error)) from error
    try:
        # A column of a table holds text.
        rate = whole_sampling_rate(float(file_rate) if isinstance(file_rate, str) else file_rate)
    except ValueError:
        rate = 0
    if rate not in PLAUSIBLE_RATES:
        raise AudioFileError(
            name,
            f"the sampling rate of its samples is {file_rate!r}; store them as {{'array', 'sampling_rate'}}, or give"
            " a column `sampling_rate`.",
        )
    resampled = waveform if rate == sampling_rate else soxr.resample(waveform, rate, sampling_rate)
    if not len(resampled):
        raise AudioFileError(name, f"is too short at {rate} Hz: nothing is left at {sampling_rate} Hz.")
    return resampled


def recording_name(row: dict[str, Any], index: int | None = None) -> str:
    """The name of a row: its `file_name`, else the path of its audio, else its number."""
    audio = row["audio"]
    path = audio.get("path") if isinstance(audio, dict) else audio if isinstance(audio, str) else None
    return str(row.get("file_name") or path or ("audio in a row" if index is None else f"row {index}"))


@dataclass(frozen=True)
class DecodedRecordings(Sequence):
    """
    Decoded recordings in one memory-mapped file of 16-bit samples, so that no epoch decodes again.

    Args:
        path (`Path`): The file of samples.
        sampling_rate (`int`): Sampling rate of the recordings, in Hz.
        starts (`np.ndarray` of shape `(num_recordings + 1,)`): First sample of each recording; the last entry is the
            total number of samples.
        names (`list[str]`): Name of each recording.
        rejected (`list[dict]`): `{"name", "reason"}` of what could not be decoded.
        metadata (`datasets.Dataset`): The other columns of the recordings that could be decoded, a row each.
    """

    path: Path
    sampling_rate: int
    starts: np.ndarray
    names: list[str]
    rejected: list[dict[str, str]]
    metadata: datasets.Dataset

    def __post_init__(self):
        object.__setattr__(self, "_samples", np.memmap(self.path, dtype=np.int16, mode="r"))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        """Recording `index` as int16 of shape `(num_samples,)`, a view of the file; a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} recordings, but got the index {index}.")
        index %= len(self)
        return self._samples[self.starts[index] : self.starts[index + 1]]

    def __reduce__(self):
        return type(self), (
            self.path,
            self.sampling_rate,
            self.starts,
            self.names,
            self.rejected,
            self.metadata,
        )

    @property
    def seconds(self) -> float:
        """Total duration."""
        return float(self.starts[-1]) / self.sampling_rate


def decode_all(
    recordings: datasets.Dataset, sampling_rate: int, cache_dir: str | os.PathLike, show_progress: bool = True
) -> DecodedRecordings:
    """
    Decode recordings once and keep them in `cache_dir`; a second call with the same files reads what the first one
    wrote.

    Files that cannot be decoded are left out and named, with the reason, in the result's `rejected`. What was kept and
    is damaged, as its size or checksum tells, is decoded anew, with a word.

    Raises:
        ValueError: If not one recording can be decoded.
    """
    cache_dir = Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    key = _fingerprint(recordings, sampling_rate)
    samples_path, index_path = cache_dir / f"{key}.int16", cache_dir / f"{key}.json"
    if not index_path.is_file():
        _write_cache(recordings, sampling_rate, samples_path, index_path, show_progress)
    elif (fault := _cache_fault(samples_path, index_path, len(recordings))) is not None:
        tqdm.write(f"{fault}; the recordings are decoded anew.", file=sys.stderr)
        index_path.unlink()
        _write_cache(recordings, sampling_rate, samples_path, index_path, show_progress)
    index = json.loads(index_path.read_text(encoding="utf-8"))
    if not index["names"]:
        raise ValueError(f"Not one recording could be decoded; the first reason: {index['rejected'][0]['reason']}")
    return DecodedRecordings(
        samples_path,
        sampling_rate,
        np.array(index["starts"]),
        index["names"],
        index["rejected"],
        recordings.select(index["rows"]).remove_columns("audio"),
    )


def _cache_fault(samples_path: Path, index_path: Path, count: int) -> str | None:
    # What is wrong with what was kept of `count` recordings.
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
        starts, names, rows, rejected = (index[name] for name in ("starts", "names", "rows", "rejected"))
        fits = len(starts) - 1 == len(names) == len(rows) == count - len(rejected) and starts[0] == 0
        if not fits or any(end <= start for start, end in itertools.pairwise(starts)):
            return f"{index_path} is damaged (its numbers of recordings or samples do not fit together)"
    except (ValueError, TypeError, KeyError) as error:
        return f"{index_path} is damaged ({type(error).__name__}: {error})"
    known = index.get("checksum")  # those of older versions have none
    size, expected = samples_path.stat().st_size if samples_path.is_file() else None, 2 * starts[-1]
    if size == expected:
        if known is None or _checksum(samples_path) == known:
            return None
        return f"{samples_path} is damaged (it has other bytes than were written)"
    return f"{samples_path} {'is missing' if size is None else f'has {size} bytes, but {expected} were written'}"


def _checksum(path: Path) -> str:
    # 0.07 s for an hour at 16 kHz that the system has read before; the disk is slower else.
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fingerprint(recordings: datasets.Dataset, sampling_rate: int) -> str:
    # Names count, since they are kept beside the samples.
    digest = hashlib.sha256(f"{sampling_rate} Hz, with names".encode())
    columns = [name for name in ("audio", "file_name", "sampling_rate") if name in recordings.column_names]
    for index, row in enumerate(recordings.select_columns(columns)):
        audio = row["audio"]
        path = audio.get("path") if isinstance(audio, dict) else audio
        holds_more = isinstance(audio, dict) and any(audio.get(key) is not None for key in ("bytes", "array"))
        digest.update(f"{recording_name(row, index)!r} {row.get('sampling_rate')} ".encode())
        if holds_more or not isinstance(path, str):
            digest.update(_content_digest(audio))
        elif os.path.exists(path):
            status = os.stat(path)
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(f"{index} {path} missing".encode())
    return digest.hexdigest()[:20]


def _content_digest(audio: Any) -> bytes:
    # Of all that a row holds itself.
    if isinstance(audio, dict):
        parts = [audio.get("bytes"), audio.get("array"), audio.get("sampling_rate")]
        return hashlib.sha256(b"".join(map(_content_digest, parts))).digest()
    if isinstance(audio, bytes):
        return hashlib.sha256(audio).digest()
    return hashlib.sha256(repr(audio).encode()).digest()


def _write_cache(
    recordings: datasets.Dataset, sampling_rate: int, samples_path: Path, index_path: Path, show_progress: bool
) -> None:
    def decoded(row: dict[str, Any]) -> np.ndarray | AudioFileError:
        try:
            return decode_recording(row, sampling_rate)
        except AudioFileError as error:
            return error

    starts, names, rows_kept, rejected = [0], [], [], []
    digest = xxhash.xxh3_128()
    with (
        WholeFile(samples_path) as temporary,
        temporary.open("wb") as file,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(recordings), desc="Decoding", unit="file", disable=not show_progress) as progress,
    ):
        # In blocks, since the pool would otherwise decode everything into memory.
        for first in range(0, len(recordings), 64):
            rows = [recordings[i] for i in range(first, min(first + 64, len(recordings)))]
            for index, (row, result) in enumerate(zip(rows, pool.map(decoded, rows), strict=True), start=first):
                if isinstance(result, AudioFileError):
                    rejected.append({"name": recording_name(row, index), "reason": str(result)})
                else:
                    samples = np.round(result.clip(-1.0, 1.0) * 32767.0).astype(np.int16).tobytes()
                    file.write(samples)
                    digest.update(samples)
                    starts.append(starts[-1] + len(result))
                    names.append(recording_name(row, index))
                    rows_kept.append(index)
            progress.update(len(rows))
    contents = {"sampling_rate": sampling_rate, "starts": starts, "names": names, "rows": rows_kept}
    contents |= {"rejected": rejected, "checksum": digest.hexdigest()}
    # The index is written last: where it exists, the samples are complete.
    write_whole(index_path, json.dumps(contents))


def parse_filter(pairs: Iterable[str]) -> dict[str, list[str]]:
    """
    Filters of a command line, `COLUMN=VALUE[,VALUE]` each, as [`load_recordings`] takes them.

    Raises:
        ValueError: If one has no `=`, or two are of one column.
    """
    filter_by = {}
    for pair in pairs:
        column, equals, values = pair.partition("=")
        if not equals:
            raise ValueError(f"a filter must be COLUMN=VALUE[,VALUE], but got {pair!r}.")
        if column in filter_by:
            raise ValueError(f"{column!r} is filtered twice; give its values once: {column}=VALUE,VALUE.")
        filter_by[column] = values.split(",")
    return filter_by


def append_rejected(path: Path, rejected: Iterable[dict[str, str]]) -> None:
    """Add lines to a JSONL file of rejected recordings."""
    # A name that is no Unicode becomes an escape, which JSON has too.
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected)
