# SPDX-License-Identifier: Apache-2.0
"""One shard of speech rows, written whole or not at all. Any number of processes may write shards of one folder."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from .speech_row_format import METADATA_KEY, ROWS_FORMAT, RowsFacts, rows_schema, shard_name
from .whole_files import WholeFile


# Of float16; a latent beyond it would become infinite.
LARGEST_LATENT = 65504.0


@dataclasses.dataclass(frozen=True)
class SpeechRowShards:
    """
    The shards of a corpus, each of which is a function of its recordings alone.

    Args:
        folder (`Path`): Folder of the shards.
        facts ([`RowsFacts`]): What makes the codes or latents.
        rows_per_shard (`int`): Number of recordings in a shard.
        others (iterable of `pyarrow.Field`, *optional*): Columns besides those of [`rows_schema`].

    Raises:
        ValueError: If `rows_per_shard` is not positive, or a column has the name of one that rows have.
    """

    folder: Path
    facts: RowsFacts
    rows_per_shard: int
    others: Iterable[pyarrow.Field] = ()
    schema: pyarrow.Schema = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1:
            raise ValueError(f"`rows_per_shard` must be at least 1, but got {self.rows_per_shard}.")
        object.__setattr__(self, "schema", rows_schema(self.facts, self.others))

    def digest(self, inputs: Iterable[str]) -> str:
        """Of fingerprints of recordings and what is known of them, and of the columns: 24 hexadecimal digits."""
        return hashlib.sha256("\n".join([str(self.schema), *inputs]).encode()).hexdigest()[:24]

    def write(self, number: int, rows: Sequence[Mapping[str, Any]], inputs: Sequence[str]) -> dict[str, Any]:
        """
        Write a shard. One without rows has no file, since `datasets` reads none without rows.

        Args:
            number (`int`): Number of the shard, from 0.
            rows (sequence of `dict`): For each recording a row, or `{"name", "reason"}` where it is set aside. What
                [`RowsFacts`] knows, and `num_frames`, are filled in.
            inputs (sequence of `str`): Fingerprint of each recording and of what is known of it.

        Returns:
            `dict`: What the shard says of itself.

        Raises:
            ValueError: If there are more than `rows_per_shard`, or a row is not what the columns hold.
            OSError: If it cannot be written.
        """
        if len(rows) > self.rows_per_shard or len(rows) != len(inputs):
            raise ValueError(
                f"`rows` has {len(rows)} entries and `inputs` {len(inputs)}, but a shard takes up to"
                f" {self.rows_per_shard} recordings with one of each."
            )
        present = [position for position, row in enumerate(rows) if "reason" not in row]
        set_aside = [{"position": at, **row} for at, row in enumerate(rows) if "reason" in row]
        filled = [self._filled(rows[position]) for position in present]
        said = {
            "format": ROWS_FORMAT,
            "format_version": self.facts.format_version,
            **self.facts.said(),
            "rows_per_shard": self.rows_per_shard,
            "num_rows": len(filled),
            "seconds": sum(row["seconds"] for row in filled),
            "inputs": self.digest(inputs[position] for position in present),
            "set_aside": set_aside,
        }
        if filled:
            self._write_table(number, filled, said)
        return said

    def _filled(self, row: Mapping[str, Any]) -> dict[str, Any]:
        made_by = ("codec", "codec_fingerprint", "encoder_fingerprint", "num_quantizers", "latent_dim")
        filled = {name: row.get(name) for name in self.schema.names}
        filled |= {name: getattr(self.facts, name) for name in made_by if name in filled}
        if unknown := sorted(set(row) - set(filled)):
            raise ValueError(f"`rows` has columns {unknown}, which were not announced; pass them as `others`.")
        tokens, num_frames = self._latents(row) if self.facts.kind == "latents" else self._codes(row)
        if self.facts.deduplicated:
            num_frames = self._num_lasting_frames(row, num_frames)
        return {**filled, self.facts.column: tokens, "num_frames": num_frames}

    def _codes(self, row: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        # Row by row, and the number of frames.
        assert self.facts.codebook_size is not None
        codes = np.asarray(row["audio_codes"])
        if codes.ndim != 2 or len(codes) != self.facts.num_quantizers or not codes.shape[1]:
            expected = f"({self.facts.num_quantizers}, num_frames)"
            raise ValueError(f"`audio_codes` of {row['id']!r} must have shape {expected}, but got {codes.shape}.")
        if codes.min() < 0 or codes.max() >= self.facts.codebook_size:
            raise ValueError(
                f"`audio_codes` of {row['id']!r} must lie between 0 and {self.facts.codebook_size - 1}, but range from"
                f" {codes.min()} to {codes.max()}."
            )
        return codes.reshape(-1), codes.shape[1]

    def _num_lasting_frames(self, row: Mapping[str, Any], num_runs: int) -> int:
        durations = np.asarray(row["durations"])
        if durations.shape != (num_runs,) or durations.min() < 1:
            raise ValueError(f"`durations` of {row['id']!r} must be {num_runs} positive numbers, one of each code.")
        return int(durations.sum())

    def _latents(self, row: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        # Frame by frame, and the number of frames.
        latents = np.asarray(row["audio_latents"])
        if latents.ndim != 2 or latents.shape[1] != self.facts.latent_dim or not len(latents):
            expected = f"(num_frames, {self.facts.latent_dim})"
            raise ValueError(f"`audio_latents` of {row['id']!r} must have shape {expected}, but got {latents.shape}.")
        if reason := unstorable_latent(latents):
            raise ValueError(f"`audio_latents`: {row['id']!r} {reason} Leave the recording out.")
        return latents.reshape(-1), len(latents)

    def _encodings(self) -> dict[str, Any]:
        # Codes go through Parquet's dictionary, which packs them into as few bits as they need. Latents hardly repeat;
        # their bytes of signs and exponents, beside each other, are what compression makes smaller.
        if self.facts.kind != "latents":
            return {}
        column = self.facts.column
        others = [name for name in self.schema.names if name != column]
        return {"use_dictionary": others, "use_byte_stream_split": [f"{column}.list.element"]}

    def _write_table(self, number: int, rows: list[dict[str, Any]], said: Mapping[str, Any]) -> None:
        schema = self.schema.with_metadata({METADATA_KEY: json.dumps(said, ensure_ascii=False).encode()})
        column = self.facts.column
        token = schema.field(column).type.value_type.to_pandas_dtype()
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in schema.names}
        columns[column] = [tokens.astype(token) for tokens in columns[column]]
        try:
            table = pyarrow.table(columns, schema=schema)
        except (pyarrow.ArrowException, TypeError) as error:
            raise ValueError(f"`rows` from {rows[0]['id']!r} on do not fit the columns: {error}.") from error
        with WholeFile(self.folder / shard_name(number)) as temporary:
            pyarrow.parquet.write_table(table, temporary, compression="zstd", **self._encodings())


def unstorable_latent(latents: np.ndarray) -> str | None:
    """Why rows cannot hold latents `(num_frames, latent_dim)`, or `None` where they can."""
    if (np.abs(latents) <= LARGEST_LATENT).all():  # false for what is no number, too
        return None
    largest = float(np.abs(latents).max())
    return f"has a latent of {largest:g}, but the float16 of rows ends at {LARGEST_LATENT:.0f}."


def folder_info(shards: SpeechRowShards, said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    What `dataset_info.json` says of a folder.

    Args:
        shards ([`SpeechRowShards`]): Its shards.
        said (sequence of `dict`): What each of them says of itself, in order.
    """
    return {
        "format": ROWS_FORMAT,
        "format_version": shards.facts.format_version,
        **shards.facts.said(),
        "rows_per_shard": shards.rows_per_shard,
        "num_rows": sum(shard["num_rows"] for shard in said),
        "num_set_aside": sum(len(shard["set_aside"]) for shard in said),
        "seconds": round(sum(shard["seconds"] for shard in said), 3),
        "shards": {shard_name(number): shard["num_rows"] for number, shard in enumerate(said) if shard["num_rows"]},
    }


__all__ = ["LARGEST_LATENT", "SpeechRowShards", "folder_info", "unstorable_latent"]
