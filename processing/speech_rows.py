# SPDX-License-Identifier: Apache-2.0
"""
Encoded corpora as Parquet, a row a recording: what is said, by whom, when, and the codes or latents of a codec.

No row holds ids of a language model, so that one encoded corpus serves every model, layout and template. A row has

- `id`, `text`, `speaker`, `language` (text, or null where it is unknown);
- `audio_codes`, the codes of `(num_quantizers, num_frames)` row by row, with `num_quantizers`, `num_frames` and
  `seconds`; or `audio_latents`, the latents of `(num_frames, latent_dim)` frame by frame in float16 (relative error
  2^-11 at most, from 6.1e-5 on), with `latent_dim`, `num_frames` and `seconds`;
- `words`, a list of `{word, start, end}`, and `phones`, a list of `{label, start, end}`, in seconds, or null;
- where rows were de-duplicated, `durations`: the frames that each code of `(num_quantizers, num_runs)` lasts;
- `codec`, `codec_fingerprint`, `encoder_fingerprint`, and the other columns of the corpus.

A folder holds `rows-00000.parquet` and so on and, once it is complete, `dataset_info.json`. Each shard says in its
metadata what made it. Where recordings were left out, `FOLDER.set_aside.jsonl` beside the folder names each with the
reason; within it, `load_dataset("parquet", data_dir=FOLDER)` would take that file for Parquet.
"""

import dataclasses
import glob
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet

from .metadata_files import probably_meant
from .speech_row_format import (
    ENCODE_ANEW,
    RowsFacts,
    SpeechRowsError,
    check_format,
    encoding_command,
    facts_in,
    read_shard_metadata,
    rows_schema,
    shard_name,
    shards_in,
)
from .speech_row_shards import SpeechRowShards, folder_info, unstorable_latent
from .unit_sequences import expand
from .whole_files import LinesFile, beside, check_folder_is_writable, write_whole


INFO_NAME = "dataset_info.json"
ROWS_PER_SHARD = 1000
_LOCK_NAME = ".writing"
# What a killed process leaves of a `WholeFile`.
_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{16}\.tmp")
_ANEW = "choose another folder, or pass --overwrite to make the rows anew"


@dataclasses.dataclass(frozen=True)
class WrittenShard:
    """
    What a shard holds.

    Args:
        num_rows (`int`): Number of its rows; 0 where there is no file.
        seconds (`float`): Length of its recordings, in seconds.
        set_aside (`dict`): `{"name", "reason"}` of each recording that it lacks, by its position in the shard.
        is_kept (`bool`): Whether it was there already.
    """

    num_rows: int
    seconds: float
    set_aside: dict[int, dict[str, str]]
    is_kept: bool = False


class SpeechRowsWriter:
    """
    Writes shards of rows, each of them whole or not at all, and goes on where a killed process stopped.

    Shard `k` holds the recordings from `k * rows_per_shard` on, less those that were set aside. So its bytes depend on
    the corpus alone, and not on interruptions. A shard of which all recordings were set aside has no file, since
    `datasets` reads none without rows.

    Use it as a context manager. One process at a time writes a folder.

    Args:
        folder (`str` or `Path`): Folder to write or to continue. Missing folders are created.
        facts ([`RowsFacts`]): What makes the codes or latents.
        rows_per_shard (`int`, *optional*, defaults to 1000): Number of recordings in a shard.
        others (iterable of `pyarrow.Field`, *optional*): Columns besides those of [`rows_schema`].
        overwrite (`bool`, *optional*, defaults to `False`): Whether to remove the rows that are there.

    Raises:
        SpeechRowsError: If the folder holds rows that were made otherwise, or other files of such names.
        OSError: If it cannot be written, or another process writes it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        facts: RowsFacts,
        rows_per_shard: int = ROWS_PER_SHARD,
        others: Iterable[pyarrow.Field] = (),
        overwrite: bool = False,
    ):
        self.folder, self.facts, self.rows_per_shard = Path(folder), facts, rows_per_shard
        self.shards = SpeechRowShards(self.folder, facts, rows_per_shard, others)
        check_folder_is_writable(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = LinesFile(self.folder / _LOCK_NAME)
        self._is_closed = False
        self._written: dict[int, dict[str, Any]] = {}
        try:
            for path in self.folder.iterdir():
                if _TEMPORARY_NAME.fullmatch(path.name):
                    path.unlink()
            if overwrite:
                self._remove_all()
            self._there = self._read_shards()
        except BaseException:
            self.close()
            raise

    def _remove_all(self) -> None:
        self.unfinish()
        for path in shards_in(self.folder).values():
            path.unlink()

    def unfinish(self) -> None:
        """Say that the folder is not complete, before anything in it changes."""
        (self.folder / INFO_NAME).unlink(missing_ok=True)
        set_aside_path(self.folder).unlink(missing_ok=True)

    def _read_shards(self) -> dict[int, dict[str, Any]]:
        # What each shard that is there says of itself. One that is damaged is written again.
        found = {}
        for number, path in shards_in(self.folder).items():
            try:
                said = read_shard_metadata(path)
            except SpeechRowsError as error:
                if not isinstance(error.__cause__, pyarrow.ArrowException):
                    raise  # a file of somebody else's
                print(f"{path}: is damaged, and written anew", file=sys.stderr)
                self.unfinish()
                path.unlink()
                continue
            difference = self.facts.difference(facts_in(said))
            if difference is None and said["rows_per_shard"] != self.rows_per_shard:
                difference = f"rows_per_shard={said['rows_per_shard']} instead of rows_per_shard={self.rows_per_shard}"
            if difference is not None:
                raise SpeechRowsError(path, f"was made with {difference}; {_ANEW}.")
            found[number] = said
        return found

    def check_number_of_shards(self, num_shards: int) -> None:
        """Raises [`SpeechRowsError`] if the folder holds shards beyond the first `num_shards`."""
        if beyond := sorted(number for number in self._there if number >= num_shards):
            path = self.folder / shard_name(beyond[0])
            raise SpeechRowsError(path, f"is of a larger corpus, which this one would not fill; {_ANEW}.")

    def kept(self, number: int, inputs: Sequence[str]) -> WrittenShard | None:
        """
        The shard of a number, if it is there.

        Args:
            number (`int`): Number of the shard, from 0.
            inputs (sequence of `str`): Fingerprint of each of its recordings and of what is known of it, in order.

        Raises:
            SpeechRowsError: If its rows were made from other recordings, or other metadata.
        """
        if (said := self._there.get(number)) is None:
            return None
        missing = {entry["position"] for entry in said["set_aside"]}
        present = [digest for position, digest in enumerate(inputs) if position not in missing]
        if said["inputs"] != self.shards.digest(present):
            path = self.folder / shard_name(number)
            raise SpeechRowsError(path, f"was made from other recordings, texts, times or columns; {_ANEW}.")
        self._written[number] = said
        return _shard_of(said, is_kept=True)

    def write(
        self,
        number: int,
        rows: Sequence[Mapping[str, Any]],
        inputs: Sequence[str],
    ) -> WrittenShard:
        """
        Write a shard.

        Args:
            number (`int`): Number of the shard, from 0.
            rows (sequence of `dict`): For each recording a row, or `{"name", "reason"}` where it is set aside. What
                [`RowsFacts`] knows, and `num_frames`, are filled in.
            inputs (sequence of `str`): Fingerprint of each recording and of what is known of it.

        Raises:
            ValueError: If there are more than `rows_per_shard`, or a row is not what the columns hold.
            OSError: If it cannot be written.
        """
        self.unfinish()
        said = self.shards.write(number, rows, inputs)
        self._there[number] = self._written[number] = said
        return _shard_of(said)

    def finish(self, num_shards: int) -> None:
        """
        Say that the folder is complete.

        Args:
            num_shards (`int`): Number of shards, all of which were written or kept.

        Raises:
            SpeechRowsError: If one was not, or there are others.
        """
        self.check_number_of_shards(num_shards)
        if unwritten := [number for number in range(num_shards) if number not in self._written]:
            raise SpeechRowsError(self.folder / shard_name(unwritten[0]), "was not written; write it before the end.")
        finish_folder(self.shards, [self._written[number] for number in range(num_shards)])

    def close(self) -> None:
        """Let other processes write."""
        if not self._is_closed:
            self._is_closed = True
            (self.folder / _LOCK_NAME).unlink(missing_ok=True)
            self._lock.__exit__()

    def __enter__(self) -> "SpeechRowsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def finish_folder(shards: SpeechRowShards, said: Sequence[Mapping[str, Any]]) -> None:
    """
    Say that a folder is complete: write the list of what was set aside, and then `dataset_info.json`.

    Args:
        shards ([`SpeechRowShards`]): Its shards.
        said (sequence of `dict`): What each of them says of itself, in order.

    Raises:
        OSError: If these cannot be written.
    """
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for shard in said for entry in _named(shard))
    if lines:
        write_whole(set_aside_path(shards.folder), lines.encode(errors="backslashreplace"))
    else:
        set_aside_path(shards.folder).unlink(missing_ok=True)
    write_whole(shards.folder / INFO_NAME, json.dumps(folder_info(shards, said), indent=2) + "\n")


def _named(said: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": entry["name"], "reason": entry["reason"]} for entry in said["set_aside"]]


def set_aside_path(folder: str | os.PathLike[str]) -> Path:
    """The file, beside a folder of rows, of recordings that were set aside."""
    return beside(os.path.abspath(folder), ".set_aside.jsonl")


def _shard_of(said: Mapping[str, Any], is_kept: bool = False) -> WrittenShard:
    positions = [entry["position"] for entry in said["set_aside"]]
    set_aside = dict(zip(positions, _named(said), strict=True))
    return WrittenShard(said["num_rows"], said["seconds"], set_aside, is_kept)


def read_rows_facts(folder_or_files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> RowsFacts:
    """
    What made the codes or latents of rows; see [`read_speech_rows`], which takes and refuses the same.

    Raises:
        SpeechRowsError: If the rows are not whole, or of several codecs.
    """
    return _checked_shards(folder_or_files)[1]


def read_speech_rows(
    folder_or_files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    codec: Any = None,
    columns: Sequence[str] | None = None,
    kind: str | None = None,
) -> datasets.Dataset:
    """
    Rows as a dataset. `datasets` writes them once into its cache, from where they are mapped into memory.

    Args:
        folder_or_files (`str`, `Path` or a sequence of these): A folder that [`SpeechRowsWriter`] finished, or shards.
        codec ([`SpeechCodec`] or `str`, *optional*): Codec that is to read the rows, or its fingerprint. Where its
            encoder differs from that of the rows, they are read as before, and a word is said on standard error.
            Latents that the codec does not decode, such as those of units, mean nothing without their encoder, and
            are refused then.
        columns (sequence of `str`, *optional*): Columns to read. Defaults to all. [`row_audio_codes`] needs
            `audio_codes`, `num_quantizers` and `num_frames`; [`row_audio_latents`] needs `audio_latents`, `latent_dim`
            and `num_frames`.
        kind (`str`, *optional*): What is needed: `"codes"` or `"latents"`. Defaults to what the rows hold.

    Raises:
        SpeechRowsError: If there are no rows, a shard is missing, damaged or of another codec than the first, the
            codec reads them otherwise, or they are of another kind.
        TypeError: If `codec` has no fingerprint.
        ValueError: If there is no such column.
    """
    paths, facts = _checked_shards(folder_or_files)
    if kind is not None and kind != facts.kind:
        raise SpeechRowsError(
            paths[0].parent, f"holds {facts.kind}, but {kind} are needed; {_of_kind(kind, facts.codec)}."
        )
    if codec is not None:
        _check_codec(paths[0].parent, facts, codec)
    known = pyarrow.parquet.read_schema(paths[0]).names
    for column in columns or ():
        if column not in known:
            raise ValueError(f"`columns` has {column!r}, but rows have {known}{probably_meant(column, known)}.")
    # `datasets` takes a name for a pattern.
    files = [glob.escape(str(path)) for path in paths]
    return datasets.Dataset.from_parquet(files, columns=None if columns is None else list(columns))


def _checked_shards(folder_or_files: Any) -> tuple[list[Path], RowsFacts]:
    if not isinstance(folder_or_files, str | os.PathLike):
        paths = [Path(path) for path in folder_or_files]
        if not paths:
            raise ValueError("`folder_or_files` is empty; name a folder of rows, or its shards.")
        return paths, _common_facts({path: read_shard_metadata(path) for path in paths})
    folder = Path(folder_or_files)
    if not folder.is_dir():
        return [folder], facts_in(read_shard_metadata(folder))
    shards = shards_in(folder)
    info = _read_info(folder, bool(shards))
    expected = info["shards"]
    for name in expected:
        if not (folder / name).is_file():
            missing = sum(not (folder / other).is_file() for other in expected)
            raise SpeechRowsError(
                folder,
                f"{missing} of {len(expected)} shards are missing, first {name}; copy them there, or start the command"
                f" that made the folder again: {facts_in(info).command}",
            )
    if unknown := [path.name for path in shards.values() if path.name not in expected]:
        raise SpeechRowsError(
            folder, f"holds {unknown[0]}, of which {INFO_NAME} knows nothing; keep the rows of each run in one folder."
        )
    said = {folder / name: read_shard_metadata(folder / name) for name in expected}
    facts = _common_facts(said)
    if difference := facts_in(info).difference(facts):
        raise SpeechRowsError(folder, f"its shards have {difference} as {INFO_NAME} says; {ENCODE_ANEW}.")
    for path, metadata in said.items():
        if metadata["num_rows"] != expected[path.name]:
            raise SpeechRowsError(
                path, f"has {metadata['num_rows']} rows, but {expected[path.name]} were written; copy it anew."
            )
    return list(said), facts


def _read_info(folder: Path, has_shards: bool) -> dict[str, Any]:
    path = folder / INFO_NAME
    if not path.is_file():
        if has_shards:
            raise SpeechRowsError(
                folder,
                f"has no {INFO_NAME}, so its writing has not ended; start the same command again, which goes on"
                " where it stopped.",
            )
        raise SpeechRowsError(folder, f"holds no rows; write them by {encoding_command()}")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        check_format(path, info)
        expected = info["shards"]
        if not isinstance(expected, dict):
            raise TypeError
        facts_in(info)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, SpeechRowsError):
            raise
        raise SpeechRowsError(path, f"is not what `encode-rows` writes; {ENCODE_ANEW}.") from error
    if not expected:
        raise SpeechRowsError(folder, f"holds no row: all recordings were set aside; see {set_aside_path(folder)}.")
    return info


def _common_facts(said: Mapping[Path, Mapping[str, Any]]) -> RowsFacts:
    first, *others = said
    facts = facts_in(said[first])
    for path in others:
        if difference := facts.difference(facts_in(said[path]), with_name=False):
            raise SpeechRowsError(path, f"was made with {difference}, which {first.name} has; {ENCODE_ANEW}.")
    return facts


def _check_codec(place: Path, facts: RowsFacts, codec: Any) -> None:
    if not isinstance(codec, str) and not callable(getattr(codec, "fingerprint", None)):
        raise TypeError(
            f"`codec` is a {type(codec).__name__}, which has no fingerprint; pass what `speech_tokenizers.load` or"
            " `as_speech_codec` returns, or a fingerprint."
        )
    known = codec if isinstance(codec, str) else codec.fingerprint()
    if known != facts.codec_fingerprint:
        name = getattr(getattr(codec, "config", None), "name_or_path", "") or "CODEC"
        raise SpeechRowsError(
            place,
            f"holds {facts.kind} of {facts.codec!r} (fingerprint {facts.codec_fingerprint}), which this codec"
            f" (fingerprint {known}) would read as noise; encode the recordings anew by it:"
            f" {encoding_command(name, facts.num_quantizers, facts.kind)}",
        )
    encoder = "" if isinstance(codec, str) else codec.encoder_fingerprint()
    if encoder and encoder != facts.encoder_fingerprint:
        told = f"another encoder gave these {facts.kind} (fingerprint {facts.encoder_fingerprint}, here {encoder})"
        if facts.kind == "latents" and "latents" not in codec.decodable_kinds:
            raise SpeechRowsError(place, f"{told}, without which they mean nothing; {ENCODE_ANEW}.")
        print(
            f"{place}: {told}; they are read as before, but this codec would give others",
            file=sys.stderr,
        )


def row_audio_codes(row: Mapping[str, Any]) -> np.ndarray:
    """
    The codes of a row.

    Args:
        row (mapping): Row with `audio_codes`, `num_quantizers` and `num_frames`, and of de-duplicated rows with
            `durations`.

    Returns:
        `np.ndarray` of shape `(num_quantizers, num_frames)`, int64. De-duplicated codes are spread over their frames.

    Raises:
        ValueError: If one of these is missing, or the numbers do not fit.
    """
    _check_columns(row, "codes", "num_quantizers")
    codes = np.asarray(row["audio_codes"], dtype=np.int64)
    shape = int(row["num_quantizers"]), int(row["num_frames"])
    if row.get("durations") is not None and codes.ndim == 1 and len(codes) % shape[0] == 0:
        codes = expand(codes.reshape(shape[0], -1), np.asarray(row["durations"], dtype=np.int64)).reshape(-1)
    if codes.ndim != 1 or len(codes) != shape[0] * shape[1]:
        raise ValueError(
            f"`audio_codes` of {row.get('id')!r} has {codes.size} codes, but {shape[0]} codebooks of {shape[1]} frames"
            " were expected; encode the recording anew."
        )
    return codes.reshape(shape)


def row_audio_latents(row: Mapping[str, Any]) -> np.ndarray:
    """
    The latents of a row.

    Args:
        row (mapping): Row with `audio_latents`, `latent_dim` and `num_frames`.

    Returns:
        `np.ndarray` of shape `(num_frames, latent_dim)`, float32 with the values of float16.

    Raises:
        ValueError: If one of these is missing, the numbers do not fit, or one is not finite.
    """
    _check_columns(row, "latents", "latent_dim")
    latents = np.asarray(row["audio_latents"], dtype=np.float32)
    shape = int(row["num_frames"]), int(row["latent_dim"])
    if latents.ndim != 1 or len(latents) != shape[0] * shape[1]:
        raise ValueError(
            f"`audio_latents` of {row.get('id')!r} has {latents.size} numbers, but {shape[0]} frames of {shape[1]}"
            " were expected; encode the recording anew."
        )
    if not np.isfinite(latents).all():
        raise ValueError(f"`audio_latents` of {row.get('id')!r} are not all finite; encode the recording anew.")
    return latents.reshape(shape)


def _check_columns(row: Mapping[str, Any], kind: str, size: str) -> None:
    other = "latents" if kind == "codes" else "codes"
    if f"audio_{kind}" not in row and f"audio_{other}" in row:
        raise ValueError(
            f"`row` {row.get('id')!r} holds {other}, but {kind} are needed; {_of_kind(kind, row.get('codec'))}."
        )
    if lacking := [name for name in (f"audio_{kind}", size, "num_frames") if name not in row]:
        raise ValueError(f"`row` lacks {', '.join(map(repr, lacking))}; read these columns too.")


def _of_kind(kind: str, codec: str | None) -> str:
    # What to do where rows of the other kind are given. A model of latents has perhaps no codes.
    name = "CODEC" if codec is None or kind == "codes" else codec
    by = " by a codec with codebooks" if kind == "codes" else ""
    return f"encode the corpus into rows of {kind}{by}: {encoding_command(name, kind=kind)}"


__all__ = [
    "RowsFacts",
    "SpeechRowsError",
    "SpeechRowsWriter",
    "WrittenShard",
    "finish_folder",
    "read_rows_facts",
    "read_speech_rows",
    "row_audio_codes",
    "row_audio_latents",
    "rows_schema",
    "set_aside_path",
    "unstorable_latent",
]
