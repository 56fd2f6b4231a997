# SPDX-License-Identifier: Apache-2.0
"""What files of speech rows hold: their columns, their names, and what each says of the codec that made it."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from .file_errors import FileError


ROWS_FORMAT = "speech-tokenizers speech rows"
ROWS_VERSION = 1
# What stands in a shard's metadata, as JSON.
METADATA_KEY = b"speech_rows"
_SHARD_NAME = re.compile(r"rows-(\d{5,})\.parquet")


class SpeechRowsError(FileError):
    """A folder or file of rows that cannot be read or continued; see [`FileError`]."""


@dataclasses.dataclass(frozen=True)
class RowsFacts:
    """
    What made the codes of rows.

    Args:
        codec (`str`): Name of the codec, as [`speech_tokenizers.load`] takes it.
        codec_fingerprint (`str`): [`SpeechCodec.fingerprint`], which decides how codes are read.
        encoder_fingerprint (`str`): [`SpeechCodec.encoder_fingerprint`], which decides what codes are given.
        num_quantizers (`int`): Number of codebooks in the rows.
        codebook_size (`int`): Number of entries of a codebook; all codes are below it.
        frame_rate (`float`): Frames per second, in Hz.
        sampling_rate (`int`): Sampling rate of the codec, in Hz.
    """

    codec: str
    codec_fingerprint: str
    encoder_fingerprint: str
    num_quantizers: int
    codebook_size: int
    frame_rate: float
    sampling_rate: int

    @classmethod
    def of_codec(cls, codec: Any, name: str, num_quantizers: int | None = None) -> "RowsFacts":
        """
        Args:
            codec ([`SpeechCodec`]): Codec with codebooks.
            name (`str`): Name of the codec.
            num_quantizers (`int`, *optional*): Number of first codebooks to keep. Defaults to all.

        Raises:
            ValueError: If it has no codebooks, not so many, or such as are not decided yet.
        """
        codec.check_kind("codes")
        fingerprint = codec.fingerprint()
        if not fingerprint:
            raise ValueError(f"{name} has no codebooks yet, such as a model before its training; train it first.")
        return cls(
            codec=name,
            codec_fingerprint=fingerprint,
            encoder_fingerprint=codec.encoder_fingerprint(),
            num_quantizers=codec.check_num_quantizers(num_quantizers) or codec.num_quantizers,
            codebook_size=codec.codebook_size,
            frame_rate=float(codec.frame_rate),
            sampling_rate=codec.sampling_rate,
        )

    @property
    def command(self) -> str:
        """Command that makes rows like these."""
        return encoding_command(self.codec, self.num_quantizers)

    def difference(self, other: "RowsFacts") -> str | None:
        """How `other` differs, as the end of a sentence such as `num_quantizers=4 instead of num_quantizers=2`."""
        for name, here in dataclasses.asdict(self).items():
            if (there := getattr(other, name)) != here:
                return f"{name}={there} instead of {name}={here}"
        return None


def encoding_command(codec: str = "CODEC", num_quantizers: int | None = None) -> str:
    """The command that encodes a corpus by a codec of that name."""
    chosen = "" if num_quantizers is None else f" --num-quantizers {num_quantizers}"
    return f"speech-tokenizers encode-rows DATA -o NEW_FOLDER --model {codec}{chosen}"


ENCODE_ANEW = f"encode the corpus anew, into a folder of its own: {encoding_command()}"


def rows_schema(facts: RowsFacts, others: Iterable[pyarrow.Field] = ()) -> pyarrow.Schema:
    """
    The columns of rows.

    Args:
        facts ([`RowsFacts`]): What makes the codes. They take 16 bits each, or 32 where a codebook needs them.
        others (iterable of `pyarrow.Field`): Further columns.

    Raises:
        ValueError: If one of these has the name of a column that rows have.
    """
    code = pyarrow.uint16() if facts.codebook_size <= 1 << 16 else pyarrow.uint32()
    schema = pyarrow.schema(
        [
            ("id", pyarrow.string()),
            ("text", pyarrow.string()),
            ("audio_codes", pyarrow.list_(code)),
            ("num_quantizers", pyarrow.int32()),
            ("num_frames", pyarrow.int32()),
            ("seconds", pyarrow.float64()),
            ("speaker", pyarrow.string()),
            ("language", pyarrow.string()),
            ("words", pyarrow.list_(_timed("word"))),
            ("phones", pyarrow.list_(_timed("label"))),
            *((name, pyarrow.string()) for name in ("codec", "codec_fingerprint", "encoder_fingerprint")),
        ]
    )
    others = list(others)
    if taken := [field.name for field in others if field.name in schema.names]:
        raise ValueError(f"rows have {', '.join(map(repr, taken))} of their own; rename the other column.")
    return pyarrow.schema([*schema, *others])


def _timed(name: str) -> pyarrow.StructType:
    return pyarrow.struct([(name, pyarrow.string()), ("start", pyarrow.float64()), ("end", pyarrow.float64())])


def shard_name(number: int) -> str:
    """Name of a shard's file, by its number from 0."""
    return f"rows-{number:05d}.parquet"


def shards_in(folder: Path) -> dict[int, Path]:
    """The files of shards in a folder, by their numbers and in order."""
    found = {}
    for path in folder.iterdir():
        if match := _SHARD_NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def read_shard_metadata(path: Path) -> dict[str, Any]:
    """
    What a shard says of itself.

    Raises:
        SpeechRowsError: If there is no such file, it is damaged, or it holds something else.
    """
    if not path.exists():
        raise SpeechRowsError(path, "there is no such file or folder; check the spelling.")
    try:
        footer = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise SpeechRowsError(path, f"is no whole Parquet file ({error}); copy or encode it anew.") from error
    content = (footer.metadata or {}).get(METADATA_KEY)
    if content is None:
        raise SpeechRowsError(path, f"is Parquet, but no rows of codes; {ENCODE_ANEW}.")
    said = json.loads(content)
    check_format(path, said)
    return said


def check_format(path: Path, said: Mapping[str, Any]) -> None:
    """Raises [`SpeechRowsError`] if a file says that it is of another format, or of another version of it."""
    if said.get("format") != ROWS_FORMAT:
        raise SpeechRowsError(path, f"is not what `encode-rows` writes; {ENCODE_ANEW}.")
    if said["format_version"] != ROWS_VERSION:
        raise SpeechRowsError(
            path,
            f"has version {said['format_version']} of the format, but this package reads {ROWS_VERSION}; update the"
            f" package, or {ENCODE_ANEW}.",
        )


def facts_in(said: Mapping[str, Any]) -> RowsFacts:
    """The facts among what a shard, or a whole folder, says of itself."""
    return RowsFacts(**{field.name: said[field.name] for field in dataclasses.fields(RowsFacts)})
