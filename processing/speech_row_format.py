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
# What a reader of that time would misread, it refuses by the version: there were rows of codes first, then of latents,
# then of codes without repetitions.
ROWS_VERSIONS = {"codes": 1, "latents": 2}
DEDUPLICATED_VERSION = 3
# What rows of one kind have, and those of the other lack.
_FACTS_OF_KIND = {"codes": ("num_quantizers", "codebook_size"), "latents": ("kind", "latent_dim")}
# What stands in a shard's metadata, as JSON.
METADATA_KEY = b"speech_rows"
_SHARD_NAME = re.compile(r"rows-(\d{5,})\.parquet")


class SpeechRowsError(FileError):
    """A folder or file of rows that cannot be read or continued; see [`FileError`]."""


@dataclasses.dataclass(frozen=True)
class RowsFacts:
    """
    What made the codes or latents of rows.

    Args:
        codec (`str`): Name of the codec, as [`speech_tokenizers.load`] takes it.
        codec_fingerprint (`str`): [`SpeechCodec.fingerprint`], which decides how codes are read.
        encoder_fingerprint (`str`): [`SpeechCodec.encoder_fingerprint`], which decides what codes are given.
        num_quantizers (`int`, *optional*): Number of codebooks in the rows; `None` for latents.
        codebook_size (`int`, *optional*): Number of entries of a codebook, below which all codes are; `None` for
            latents.
        frame_rate (`float`): Frames per second, in Hz.
        sampling_rate (`int`): Sampling rate of the codec, in Hz.
        kind (`str`, *optional*, defaults to `"codes"`): What the rows hold: `"codes"` or `"latents"`.
        latent_dim (`int`, *optional*): Numbers of a latent; `None` for codes.
        deduplicated (`bool`, *optional*, defaults to `False`): Whether runs of equal frames are one code, beside which
            `durations` says how many frames it lasts.

    Raises:
        ValueError: If a kind lacks what it has, or has what it lacks.
    """

    codec: str
    codec_fingerprint: str
    encoder_fingerprint: str
    num_quantizers: int | None
    codebook_size: int | None
    frame_rate: float
    sampling_rate: int
    kind: str = "codes"
    latent_dim: int | None = None
    deduplicated: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ROWS_VERSIONS:
            raise ValueError(f"`kind` must be 'codes' or 'latents', but got {self.kind!r}.")
        for name in ("num_quantizers", "codebook_size", "latent_dim"):
            value, is_needed = getattr(self, name), name in _FACTS_OF_KIND[self.kind]
            if is_needed and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"`{name}` of rows of {self.kind} must be a positive whole number, but got {value!r}."
                )
            if not is_needed and value is not None:
                raise ValueError(f"`{name}` must be left out of rows of {self.kind}, but got {value!r}.")
        if self.deduplicated and self.kind != "codes":
            raise ValueError("`deduplicated` merges equal codes, of which latents have none; leave it out.")

    @classmethod
    def of_codec(
        cls,
        codec: Any,
        name: str,
        num_quantizers: int | None = None,
        kind: str | None = None,
        deduplicated: bool = False,
    ) -> "RowsFacts":
        """
        Args:
            codec ([`SpeechCodec`]): Codec, units or continuous tokens.
            name (`str`): Name of the codec.
            num_quantizers (`int`, *optional*): Number of first codebooks to keep. Defaults to all.
            kind (`str`, *optional*): What the rows hold: `"codes"` or `"latents"`. Defaults to the codec's `kind`.
            deduplicated (`bool`, *optional*, defaults to `False`): Whether runs of equal frames are one code.

        Raises:
            ValueError: If it gives nothing of that kind, has not so many codebooks, or such as are not decided yet.
        """
        kind = codec.kind if kind is None else kind
        if kind == "latents":
            codec.check_gives_latents()
            if num_quantizers is not None:
                raise ValueError("`num_quantizers` chooses among codebooks, of which latents have none; leave it out.")
        else:
            codec.check_kind(kind)
        fingerprint = codec.fingerprint()
        if not fingerprint:
            lacking = "codebooks" if codec.kind == "codes" else "statistics of its latents"
            raise ValueError(f"{name} has no {lacking} yet, such as a model before its training; train it first.")
        of_kind: dict[str, Any] = {"num_quantizers": None, "codebook_size": None, "latent_dim": codec.latent_dim}
        if kind == "codes":
            chosen = codec.check_num_quantizers(num_quantizers) or codec.num_quantizers
            of_kind = {"num_quantizers": chosen, "codebook_size": codec.codebook_size}
        return cls(
            codec=name,
            codec_fingerprint=fingerprint,
            encoder_fingerprint=codec.encoder_fingerprint(),
            frame_rate=float(codec.frame_rate),
            sampling_rate=codec.sampling_rate,
            kind=kind,
            deduplicated=deduplicated,
            **of_kind,
        )

    @property
    def column(self) -> str:
        """Column of the codes or latents."""
        return f"audio_{self.kind}"

    @property
    def format_version(self) -> int:
        """Version of the format in which rows of this kind are written."""
        return format_version(self.kind, self.deduplicated)

    @property
    def command(self) -> str:
        """Command that makes rows like these."""
        return encoding_command(self.codec, self.num_quantizers, self.kind)

    def said(self) -> dict[str, Any]:
        """What a shard says of them; see [`facts_in`], which reads it."""
        (other,) = set(_FACTS_OF_KIND) - {self.kind}
        unsaid = {*_FACTS_OF_KIND[other], *([] if self.deduplicated else ["deduplicated"])}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in unsaid}

    def difference(self, other: "RowsFacts", with_name: bool = True) -> str | None:
        """
        How `other` differs, as the end of a sentence such as `num_quantizers=4 instead of num_quantizers=2`.

        Args:
            other ([`RowsFacts`]): Facts of other rows.
            with_name (`bool`, *optional*, defaults to `True`): Whether the name of the codec counts. One codec may
                have several, such as a name and a folder.
        """
        # With another kind, all that follows from it differs too.
        for name, here in {"kind": self.kind, **dataclasses.asdict(self)}.items():
            if (there := getattr(other, name)) != here and (with_name or name != "codec"):
                return f"{name}={there} instead of {name}={here}"
        return None


def format_version(kind: str, deduplicated: bool = False) -> int:
    """Version of the format of rows of a kind."""
    return DEDUPLICATED_VERSION if deduplicated else ROWS_VERSIONS[kind]


def encoding_command(codec: str = "CODEC", num_quantizers: int | None = None, kind: str = "codes") -> str:
    """The command that encodes a corpus by a codec of that name."""
    chosen = "" if num_quantizers is None else f" --num-quantizers {num_quantizers}"
    chosen += "" if kind == "codes" else f" --kind {kind}"
    return f"speech-tokenizers encode-rows DATA -o NEW_FOLDER --model {codec}{chosen}"


ENCODE_ANEW = f"encode the corpus anew, into a folder of its own: {encoding_command()}"


def rows_schema(facts: RowsFacts, others: Iterable[pyarrow.Field] = ()) -> pyarrow.Schema:
    """
    The columns of rows.

    Args:
        facts ([`RowsFacts`]): What makes the codes or latents. Codes take 16 bits each, or 32 where a codebook needs
            them. Latents are in float16.
        others (iterable of `pyarrow.Field`): Further columns.

    Raises:
        ValueError: If one of these has the name of a column that rows have.
    """
    if facts.kind == "latents":
        token, size = pyarrow.float16(), "latent_dim"
    else:
        assert facts.codebook_size is not None
        token, size = pyarrow.uint16() if facts.codebook_size <= 1 << 16 else pyarrow.uint32(), "num_quantizers"
    durations = [("durations", pyarrow.list_(pyarrow.uint32()))] if facts.deduplicated else []
    schema = pyarrow.schema(
        [
            ("id", pyarrow.string()),
            ("text", pyarrow.string()),
            (facts.column, pyarrow.list_(token)),
            *durations,
            (size, pyarrow.int32()),
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
        raise SpeechRowsError(path, f"is Parquet, but no rows of codes or latents; {ENCODE_ANEW}.")
    said = json.loads(content)
    check_format(path, said)
    try:
        facts_in(said)
    except (KeyError, TypeError, ValueError) as error:
        raise SpeechRowsError(path, f"contradicts itself ({error}); {ENCODE_ANEW}.") from error
    return said


def check_format(path: Path, said: Mapping[str, Any]) -> None:
    """Raises [`SpeechRowsError`] if a file says that it is of another format, or of another version of it."""
    if said.get("format") != ROWS_FORMAT:
        raise SpeechRowsError(path, f"is not what `encode-rows` writes; {ENCODE_ANEW}.")
    kind = said.get("kind", "codes")
    if kind not in ROWS_VERSIONS:
        raise SpeechRowsError(path, f"holds {kind!r}, of which this package knows nothing; update it.")
    if said["format_version"] != (known := format_version(kind, said.get("deduplicated", False))):
        raise SpeechRowsError(
            path,
            f"has version {said['format_version']} of the format, but this package reads {known} for rows of {kind};"
            f" update the package, or {ENCODE_ANEW}.",
        )


def facts_in(said: Mapping[str, Any]) -> RowsFacts:
    """
    The facts among what a shard, or a whole folder, says of itself.

    Raises:
        KeyError, ValueError: If it lacks some, or they contradict each other.
    """
    of_kind: dict[str, Any] = {name: said.get(name) for name in ("num_quantizers", "codebook_size", "latent_dim")}
    of_kind |= {"kind": said.get("kind", "codes"), "deduplicated": said.get("deduplicated", False)}
    others = [field.name for field in dataclasses.fields(RowsFacts) if field.name not in of_kind]
    return RowsFacts(**{name: said[name] for name in others}, **of_kind)
