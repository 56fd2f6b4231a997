# SPDX-License-Identifier: Apache-2.0
"""
Recordings for codec training: found by `datasets` and decoded once by soundfile.

No part of this needs torchcodec: audio columns are read undecoded.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from .audio_files import AudioFileError, find_audio_files, load_audio
from .whole_files import WholeFile, write_whole


METADATA_FILES = ("metadata.jsonl", "metadata.csv")


def load_recordings(
    path: str,
    filter_by: dict[str, Any] | None = None,
    file_list: str | None = None,
    split: str = "train",
    audio_column: str = "audio",
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Recordings as a dataset with a column `audio` of undecoded audio: `{"path": str | None, "bytes": bytes | None}`.

    Args:
        path (`str`): Folder of audio files, with or without `metadata.jsonl` or `metadata.csv` (whose `file_name`
            column is relative to it); such a file itself; a Parquet file or a folder of them; or a dataset's id on the
            Hub.
        filter_by (`dict`, *optional*): Value, or list of values, for each column. Only rows that have one of them in
            each of these columns are kept.
        file_list (`str`, *optional*): Text file with the `file_name`s to keep, one a line.
        split (`str`): Split of a Hub dataset.
        audio_column (`str`): Column of a Parquet or Hub dataset that holds the audio.
        streaming (`bool`): Whether to return an `IterableDataset`.

    Raises:
        ValueError: If nothing is found, a column does not exist, or no row is left.
    """
    source = Path(path)
    if source.is_dir():
        metadata = next((source / name for name in METADATA_FILES if (source / name).is_file()), None)
        parquet_files = sorted(str(file) for file in source.rglob("*.parquet"))
        if metadata is not None:
            recordings = _load_metadata(metadata)
        elif parquet_files:
            recordings = _load_parquet(parquet_files, audio_column, streaming)
        else:
            files = sorted(find_audio_files([source]))
            names = [os.path.relpath(file, source) for file in files]
            recordings = _from_files(names, [str(file) for file in files], {})
    elif source.suffix in (".jsonl", ".csv"):
        recordings = _load_metadata(source)
    elif source.suffix == ".parquet":
        recordings = _load_parquet([path], audio_column, streaming)
    elif source.exists():
        raise ValueError(f"`{path}` is no folder, no .jsonl, .csv or .parquet file.")
    else:
        try:
            recordings = datasets.load_dataset(path, split=split, streaming=streaming)
        except (FileNotFoundError, ConnectionError) as error:
            raise ValueError(f"`{path}` is neither here nor a dataset on the Hub ({error}).") from error
        recordings = _undecoded(recordings, audio_column, path)

    recordings = _keep_rows(recordings, filter_by or {}, file_list, path)
    if streaming and isinstance(recordings, datasets.Dataset):
        return recordings.to_iterable_dataset()
    if isinstance(recordings, datasets.Dataset) and len(recordings) == 0:
        raise ValueError(f"`{path}` has no recording left after filtering by {filter_by or file_list or 'nothing'}.")
    return recordings


def _load_metadata(path: Path) -> datasets.Dataset:
    kind = "json" if path.suffix == ".jsonl" else "csv"
    table = datasets.load_dataset(kind, data_files=str(path), split="train")
    if "file_name" not in table.column_names:
        raise ValueError(f"`{path}` must have a column `file_name`; it has {table.column_names}.")
    columns = {name: table[name][:] for name in table.column_names if name not in ("file_name", "audio")}
    names = table["file_name"][:]
    return _from_files(names, [str(path.parent / name) for name in names], columns)


def _from_files(names: list[str], paths: list[str], columns: dict[str, list]) -> datasets.Dataset:
    audio = [{"path": path, "bytes": None} for path in paths]
    return datasets.Dataset.from_dict({"audio": audio, "file_name": names, **columns})


def _load_parquet(files: list[str], audio_column: str, streaming: bool):
    recordings = datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    return _undecoded(recordings, audio_column, files[0])


def _undecoded(recordings, audio_column: str, path: str):
    features = recordings.features or {}
    if features and audio_column not in features:
        raise ValueError(f"`audio_column` is {audio_column!r}, but `{path}` has the columns {list(features)}.")
    if isinstance(features.get(audio_column), datasets.Audio):
        recordings = recordings.cast_column(audio_column, datasets.Audio(decode=False))
    return recordings if audio_column == "audio" else recordings.rename_column(audio_column, "audio")


def _keep_rows(recordings, filter_by: dict[str, Any], file_list: str | None, path: str):
    wanted = {column: value if isinstance(value, list) else [value] for column, value in filter_by.items()}
    if file_list is not None:
        lines = Path(file_list).read_text(encoding="utf-8").splitlines()
        wanted["file_name"] = [line.strip() for line in lines if line.strip()]
    for column, values in wanted.items():
        if recordings.features is not None and column not in recordings.features:
            raise ValueError(f"`{path}` has no column {column!r} to filter by; it has {list(recordings.features)}.")
        allowed = set(values)
        if isinstance(recordings, datasets.Dataset):
            kept = [i for i, value in enumerate(recordings[column][:]) if value in allowed]
            recordings = recordings.select(kept)
        else:
            recordings = recordings.filter(lambda row, column=column, allowed=allowed: row[column] in allowed)
    return recordings


def decode_recording(row: dict[str, Any], sampling_rate: int) -> np.ndarray:
    """
    Decode the `audio` of a row to mono float32 of shape `(num_samples,)`.

    Raises:
        AudioFileError: If it cannot be decoded or holds nothing.
    """
    audio = row["audio"]
    if isinstance(audio, str):
        return load_audio(audio, sampling_rate)
    if audio.get("bytes") is None:
        return load_audio(audio["path"], sampling_rate)
    name = audio.get("path") or "audio in a row"
    try:
        samples, file_rate = soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioFileError(name, f"cannot be decoded ({error.error_string})") from error
    if len(samples) == 0 or not np.isfinite(samples).all():
        raise AudioFileError(name, "contains no samples, or NaN or infinity")
    samples = samples.mean(axis=1)
    return samples if file_rate == sampling_rate else soxr.resample(samples, file_rate, sampling_rate)


def recording_name(row: dict[str, Any], index: int) -> str:
    audio = row["audio"]
    path = audio if isinstance(audio, str) else audio.get("path")
    return str(row.get("file_name") or path or f"row {index}")


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

    Files that cannot be decoded are left out and named, with the reason, in the result's `rejected`.

    Raises:
        ValueError: If not one recording can be decoded.
    """
    cache_dir = Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    key = _fingerprint(recordings, sampling_rate)
    samples_path, index_path = cache_dir / f"{key}.int16", cache_dir / f"{key}.json"
    if not index_path.is_file():
        _write_cache(recordings, sampling_rate, samples_path, index_path, show_progress)
    index = json.loads(index_path.read_text(encoding="utf-8"))
    if not index["names"]:
        raise ValueError(f"Not one recording could be decoded; the first reason: {index['rejected'][0]}.")
    return DecodedRecordings(
        samples_path,
        sampling_rate,
        np.array(index["starts"]),
        index["names"],
        index["rejected"],
        recordings.select(index["rows"]).remove_columns("audio"),
    )


def _fingerprint(recordings: datasets.Dataset, sampling_rate: int) -> str:
    digest = hashlib.sha256(f"{sampling_rate} Hz, with rows".encode())
    for index, row in enumerate(recordings.select_columns(["audio"])):
        audio = row["audio"] if isinstance(row["audio"], dict) else {"path": row["audio"], "bytes": None}
        if audio["bytes"] is not None:
            digest.update(hashlib.sha256(audio["bytes"]).digest())
        elif os.path.exists(audio["path"]):
            status = os.stat(audio["path"])
            digest.update(f"{audio['path']} {status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(f"{index} {audio['path']} missing".encode())
    return digest.hexdigest()[:20]


def _write_cache(
    recordings: datasets.Dataset, sampling_rate: int, samples_path: Path, index_path: Path, show_progress: bool
) -> None:
    def decoded(row: dict[str, Any]) -> np.ndarray | AudioFileError:
        try:
            return decode_recording(row, sampling_rate)
        except AudioFileError as error:
            return error

    starts, names, rows_kept, rejected = [0], [], [], []
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
                    file.write(np.round(result.clip(-1.0, 1.0) * 32767.0).astype(np.int16).tobytes())
                    starts.append(starts[-1] + len(result))
                    names.append(recording_name(row, index))
                    rows_kept.append(index)
            progress.update(len(rows))
    contents = {"sampling_rate": sampling_rate, "starts": starts, "names": names, "rows": rows_kept}
    contents["rejected"] = rejected
    # The index is written last: where it exists, the samples are complete.
    write_whole(index_path, json.dumps(contents))


def parse_filter(pairs: Iterable[str]) -> dict[str, list[str]]:
    """
    Filters of a command line, `COLUMN=VALUE[,VALUE]` each, as [`load_recordings`] takes them.

    Raises:
        ValueError: If one has no `=`.
    """
    filter_by = {}
    for pair in pairs:
        column, equals, values = pair.partition("=")
        if not equals:
            raise ValueError(f"a filter must be COLUMN=VALUE[,VALUE], but got {pair!r}.")
        filter_by[column] = values.split(",")
    return filter_by


def append_rejected(path: Path, rejected: Iterable[dict[str, str]]) -> None:
    """Add lines to a JSONL file of rejected recordings."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected)
