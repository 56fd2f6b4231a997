# SPDX-License-Identifier: Apache-2.0
"""A corpus to rows, for language models: recordings with what is known of them, and their codes or latents."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from speech_tokenizers.coding.recording_coding import EncodedRecording, encode_recordings


if TYPE_CHECKING:
    import datasets
    import pyarrow

    from speech_tokenizers.processing.speech_rows import RowsFacts, WrittenShard

TEXT_COLUMN = "text"
# Lists of pieces with times, and the field that says what the piece is.
_TIMED = {"words": "word", "phones": "label"}
# Aligners count in frames of their own, so that a last piece may end a little after the recording.
_SECONDS_AFTER_END = 0.1


class RowFields:
    """
    What a corpus says of each recording besides its audio, as rows hold it.

    `id` is the metadata's, or else the `file_name`. `text`, `speaker` and `language` are text, or `None`. `words` and
    `phones` are lists with times, or `None`; a column of that name without times becomes `words_untimed` or
    `phones_untimed`. Rows measure `seconds` themselves. Other columns stay as they are.

    Args:
        recordings (`datasets.Dataset`): All recordings, as [`load_recordings`] returns them.
        text_column (`str`, *optional*): Column with what is said. Defaults to `"text"`, where there is one.
        times (`str` or `Path`, *optional*): File of `align` (JSON lines with `file_name`, `words`, and with `labels`
            too), which holds for the recordings that it names; the metadata's columns hold for the others.

    Attributes:
        others (list of `pyarrow.Field`): Columns besides those that all rows have.
        told (list of `str`): What a user should know of the columns.

    Raises:
        ValueError: If a column is missing or holds something else, two recordings have one `id`, or the times are of
            other recordings or texts.
    """

    def __init__(
        self,
        recordings: "datasets.Dataset",
        text_column: str | None = None,
        times: str | os.PathLike[str] | None = None,
    ):
        from speech_tokenizers.processing.labelled_rows import texts_in
        from speech_tokenizers.processing.metadata_files import probably_meant

        columns = recordings.column_names
        if text_column is not None and text_column not in columns:
            hint = probably_meant(text_column, columns)
            raise ValueError(f"there is no column {text_column!r} of texts; the recordings have {columns}{hint}.")
        self.told: list[str] = []
        self.text_column = text_column or TEXT_COLUMN
        self.id_column = "id" if "id" in columns else "file_name"
        for column in ("speaker", "language"):
            if column in columns:
                texts_in(recordings, column)
        texts = texts_in(recordings, self.text_column) if self.text_column in columns else [None] * len(recordings)
        _check_ids(texts_in(recordings, self.id_column), self.id_column)
        self.times = {} if times is None else _read_times(times, recordings["file_name"][:], texts)
        self._choose_columns(recordings.features.arrow_schema)
        if untold := sum(text is None for text in texts):
            self.told.append(f"{untold} of {len(texts)} recordings have no text in a column {self.text_column!r}")
        if times is not None and (untimed := len(texts) - len(self.times)):
            self.told.append(f"{untimed} of {len(texts)} recordings have no times in {os.fspath(times)}")

    def _choose_columns(self, schema: "pyarrow.Schema") -> None:
        import pyarrow

        self.timed_columns = [name for name in _TIMED if name in schema.names and _is_timed(schema.field(name))]
        self.others: list[pyarrow.Field] = []
        self.renamed: dict[str, str] = {}
        own = {"audio", "id", "text", "speaker", "language", "seconds", *self.timed_columns}
        if self.text_column != TEXT_COLUMN and TEXT_COLUMN in schema.names:
            self.told.append(f"the column 'text' is left out, since {self.text_column!r} takes its place")
        for field in schema:
            if field.name in own or (field.name in _TIMED and pyarrow.types.is_null(field.type)):
                continue
            if field.name in _TIMED:
                self.renamed[field.name] = f"{field.name}_untimed"
                self.told.append(f"the column {field.name!r} has no times, and becomes '{field.name}_untimed'")
            name = self.renamed.get(field.name, field.name)
            if name in [other.name for other in self.others] or name != field.name and name in schema.names:
                raise ValueError(f"two columns would be named {name!r}; rename one of them.")
            self.others.append(pyarrow.field(name, field.type))

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """
        The fields of a recording.

        Args:
            row (mapping): Row of the recordings.

        Raises:
            ValueError: If its times are out of order, or name nothing.
        """
        fields = {"id": row[self.id_column], "text": row.get(self.text_column)}
        fields |= {name: row.get(name) for name in ("speaker", "language")}
        known = self.times.get(row["file_name"])
        for column, name in _TIMED.items():
            entries = row.get(column) if column in self.timed_columns else None
            if known is not None and known[column] is not None:
                entries = known[column]
            fields[column] = None if entries is None else timed_pieces(entries, name)
        before = {new: old for old, new in self.renamed.items()}
        return fields | {other.name: row[before.get(other.name, other.name)] for other in self.others}

    def fingerprints(self, recordings: "datasets.Dataset") -> list[str]:
        """The [`row_fingerprint`] of each recording; each file is read as a whole."""
        from speech_tokenizers.processing.recording_fingerprint import recording_fingerprints

        found = []
        for row, recording in zip(_without_audio(recordings), recording_fingerprints(recordings), strict=True):
            try:
                fields: Any = self.of(row)
            except ValueError as error:
                fields = str(error)
            found.append(row_fingerprint(recording, fields))
        return found


@dataclass(frozen=True)
class RowCoding:
    """
    The step from recordings to rows. It knows no files and no order of work, so that any engine can run it.

    Args:
        model ([`SpeechCodec`] or `PreTrainedModel`): Codec, units or continuous tokens, in evaluation mode.
        feature_extractor: The model's feature extractor.
        codec_name (`str`): Name of the model, by which it is found again.
        fields ([`RowFields`], *optional*): What is known of the recordings, for whole datasets of them.
        num_quantizers (`int`, *optional*): Number of first codebooks to keep. Defaults to all.
        batch_seconds (`float`, *optional*): See [`encode_recordings`].
        kind (`str`, *optional*): What the rows hold: `"codes"`, or `"latents"` for continuous tokens, a codec's frames
            before quantization or an encoder's features. Defaults to the model's `kind`.
        deduplicate (`bool`, *optional*, defaults to `False`): Whether to merge runs of equal frames.
        num_threads (`int`, *optional*, defaults to 2): Number of threads that decode audio.

    Raises:
        ValueError: If the model gives nothing of that kind, has not so many codebooks, or is in training mode, where
            codes are random.
    """

    model: Any
    feature_extractor: Any
    codec_name: str
    fields: RowFields | None = None
    num_quantizers: int | None = None
    batch_seconds: float | None = None
    kind: str | None = None
    deduplicate: bool = False
    num_threads: int = 2

    def __post_init__(self) -> None:
        if getattr(self.model, "training", False):
            raise ValueError("`model` is in training mode, in which codes are random; call `model.eval()` first.")
        assert self.facts  # which raises where the model has no such codes

    @cached_property
    def facts(self) -> "RowsFacts":
        """What makes the codes or latents."""
        from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
        from speech_tokenizers.processing.speech_rows import RowsFacts

        model = as_speech_codec(self.model, self.feature_extractor)
        kind = model.kind if self.kind is None else self.kind
        if kind == "codes":
            model.encode_stream("codes", self.num_quantizers)  # refuses codebooks that cannot be chosen
        return RowsFacts.of_codec(model, self.codec_name, self.num_quantizers, kind, self.deduplicate)

    def __call__(
        self, recordings: "datasets.Dataset", on_recording: Callable[[], object] | None = None
    ) -> list[dict[str, Any]]:
        """
        Args:
            recordings (`datasets.Dataset`): Some of the recordings.
            on_recording (callable, *optional*): Function that is called after each recording.

        Returns:
            list of `dict`: For each recording, in order, its fields with `audio_codes` (`np.ndarray` of shape
                `(num_quantizers, num_frames)`) or `audio_latents` (`np.ndarray` of shape `(num_frames, latent_dim)`,
                float32) and `seconds`, or `{"name", "reason"}` where it cannot be a row.
        """
        assert self.fields is not None
        found: list[dict[str, Any]] = []
        for row in _without_audio(recordings):
            try:
                found.append(self.fields.of(row))
            except ValueError as error:
                found.append(_set_aside(row[self.fields.id_column], str(error)))
        usable = [index for index, fields in enumerate(found) if "reason" not in fields]
        coded = self.code([found[index] for index in usable], recordings.select(usable), on_recording)
        for index, row in zip(usable, coded, strict=True):
            found[index] = row
        return found

    def code(
        self,
        fields: Sequence[dict[str, Any]],
        recordings: Sequence[Any],
        on_recording: Callable[[], object] | None = None,
    ) -> list[dict[str, Any]]:
        """
        Args:
            fields (sequence of `dict`): What is known of each recording, as [`RowFields.of`] gives it.
            recordings (sequence): The recordings; see [`encode_recordings`].
            on_recording (callable, *optional*): Function that is called after each recording.

        Returns:
            list of `dict`: What a call of this object gives.
        """
        found = list(fields)
        results = encode_recordings(
            self.model,
            self.feature_extractor,
            recordings,
            self.batch_seconds,
            in_order=False,
            num_threads=self.num_threads,
            kind=self.facts.kind,
        )
        for result in results if found else ():
            found[result.index] = _without_path(self._row(found[result.index], result), recordings[result.index])
            if on_recording is not None:
                on_recording()
        return found

    def _row(self, fields: dict[str, Any], result: EncodedRecording) -> dict[str, Any]:
        from speech_tokenizers.processing.speech_rows import unstorable_latent
        from speech_tokenizers.processing.unit_sequences import deduplicate

        if result.reason is not None:
            return _set_aside(fields["id"], result.reason)
        seconds = result.num_samples / self.facts.sampling_rate
        for column in _TIMED:
            if fields[column] and (end := fields[column][-1]["end"]) > seconds + _SECONDS_AFTER_END:
                reason = f"`{column}` end at {end:g} s, but the recording at {seconds:.3f} s; align it anew."
                return _set_aside(fields["id"], reason)
        if self.facts.kind == "latents":
            assert result.latents is not None
            tokens = result.latents.numpy()
            num_frames = len(tokens)
        else:
            assert result.audio_codes is not None
            # Codebooks come coarse to fine, so that the first of all are those that would be given alone.
            tokens = result.audio_codes[: self.facts.num_quantizers]
            num_frames = tokens.shape[1]
        if not num_frames:
            return _set_aside(fields["id"], "is too short for a frame.")
        if self.facts.kind == "latents" and (fault := unstorable_latent(tokens)) is not None:
            return _set_aside(fields["id"], fault)
        if self.deduplicate:
            tokens, durations = deduplicate(tokens)
            fields = {**fields, "durations": durations}
        return {**fields, self.facts.column: tokens, "seconds": seconds}


def encode_speech_rows(
    coding: RowCoding,
    recordings: "datasets.Dataset",
    folder: str | os.PathLike[str],
    rows_per_shard: int | None = None,
    overwrite: bool = False,
    on_recording: Callable[[], object] | None = None,
) -> Iterator["WrittenShard"]:
    """
    Write a corpus as rows, shard by shard; a call that follows an interrupted one goes on with the next shard.

    The files depend on the arguments alone, and not on interruptions. What was set aside is tried again.

    Args:
        coding ([`RowCoding`]): Step from recordings to rows.
        recordings (`datasets.Dataset`): All recordings.
        folder (`str` or `Path`): Folder to write; see [`SpeechRowsWriter`].
        rows_per_shard (`int`, *optional*): Number of recordings in a shard. Defaults to 1000.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to remove rows that are there.
        on_recording (callable, *optional*): Function that is called after each recording that is encoded.

    Returns:
        `Iterator[WrittenShard]`: Each shard, once it is there.

    Raises:
        SpeechRowsError: If the folder holds rows that were made otherwise.
        OSError: If it cannot be written, or another process writes it.
    """
    from speech_tokenizers.processing.speech_rows import ROWS_PER_SHARD, SpeechRowsWriter

    size = ROWS_PER_SHARD if rows_per_shard is None else rows_per_shard
    assert coding.fields is not None
    with SpeechRowsWriter(folder, coding.facts, size, coding.fields.others, overwrite) as writer:
        starts = range(0, len(recordings), size)
        writer.check_number_of_shards(len(starts))
        for number, start in enumerate(starts):
            block = recordings.select(range(start, min(start + size, len(recordings))))
            inputs = coding.fields.fingerprints(block)
            shard = writer.kept(number, inputs)
            if shard is None or _is_mended(coding, block, shard):
                shard = writer.write(number, coding(block, on_recording), inputs)
            yield shard
        writer.finish(len(starts))


def _is_mended(coding: RowCoding, block: "datasets.Dataset", shard: "WrittenShard") -> bool:
    # Whether a recording that was set aside can be a row by now. The shard is written anew then.
    if not shard.set_aside:
        return False
    return any("reason" not in row for row in coding(block.select(list(shard.set_aside))))


def _without_path(row: dict[str, Any], recording: Any) -> dict[str, Any]:
    # Reasons stand in shards, whose bytes must not depend on where the corpus lies.
    if "reason" not in row or not isinstance(recording, dict):
        return row
    audio = recording.get("audio")
    reason = row["reason"]
    for path in (audio.get("path") if isinstance(audio, dict) else audio, recording.get("file_name")):
        if isinstance(path, str):
            reason = reason.removeprefix(f"{path}: ")
    return {**row, "reason": reason}


def row_fingerprint(recording: str, fields: Any) -> str:
    """
    Fingerprint of a recording with all that is known of it, 24 hexadecimal digits.

    Args:
        recording (`str`): [`recording_fingerprint`].
        fields (`dict` or `str`): Its fields, as [`RowFields.of`] gives them, or why it has none.
    """
    content = json.dumps([recording, fields], ensure_ascii=False, default=repr)
    return hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()[:24]


def _set_aside(name: str, reason: str) -> dict[str, Any]:
    return {"name": name, "reason": reason}


def _without_audio(recordings: "datasets.Dataset") -> "datasets.Dataset":
    return recordings.remove_columns("audio")


def timed_pieces(entries: Any, name: str) -> list[dict[str, Any]]:
    """
    Words or phones with their times, checked.

    Args:
        entries (sequence of mapping): Pieces in order, each with `name`, `start` and `end` (in seconds).
        name (`str`): Field that says what the piece is: `"word"` or `"label"`.

    Raises:
        ValueError: If a field is missing or empty, or the times are not finite, negative or out of order.
    """
    expected = f"a list of objects with `{name}`, `start` and `end` (in seconds)"
    try:
        pieces = [{name: entry[name], "start": float(entry["start"]), "end": float(entry["end"])} for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"times must be {expected}; correct them.") from error
    before = 0.0
    for number, piece in enumerate(pieces):
        if not isinstance(piece[name], str) or not piece[name].strip():
            raise ValueError(f"times must be {expected}, but the `{name}` of piece {number} is {piece[name]!r}.")
        if not before <= piece["start"] <= piece["end"] < math.inf:
            raise ValueError(
                f"times must be in order and end after they start, but {piece[name]!r} is from {piece['start']:g} to"
                f" {piece['end']:g} s, after a piece that begins at {before:g} s."
            )
        before = piece["start"]
    return pieces


def _is_timed(field: "pyarrow.Field") -> bool:
    import pyarrow

    kind = field.type
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)):
        return False
    if not pyarrow.types.is_struct(kind.value_type):
        return False
    names = {kind.value_type.field(index).name for index in range(kind.value_type.num_fields)}
    expected = [_TIMED[field.name], "start", "end"]
    if not names >= set(expected):
        raise ValueError(
            f"the column {field.name!r} holds objects with {sorted(names)}, but {expected} were expected; rename its"
            " fields, or the column."
        )
    return True


def _check_ids(ids: Sequence[str | None], column: str) -> None:
    known: dict[str, int] = {}
    for number, name in enumerate(ids):
        if not name:
            raise ValueError(f"the recording {number} (from 0) has no {column!r}; give it one, or rename the column.")
        if (other := known.setdefault(name, number)) != number:
            raise ValueError(
                f"the recordings {other} and {number} (from 0) have the same {column!r}, {name!r}; give each its own."
            )


def _read_times(
    path: str | os.PathLike[str], names: Sequence[str], texts: Sequence[str | None]
) -> dict[str, dict[str, Any]]:
    # `words` and `phones` of the recordings that a file of `align` names.
    from speech_tokenizers.processing.metadata_files import read_json_lines

    known = dict(zip(names, texts, strict=True))
    found: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    for number, line in read_json_lines(path):
        where, name = f"{path}, line {number}", line.get("file_name")
        if not isinstance(name, str) or not isinstance(line.get("words", line.get("phones")), list):
            raise ValueError(f"{where}: is no object with `file_name` and `words`, as `align` writes it.")
        if lines.setdefault(name, number) != number:
            raise ValueError(f"{where}: {name!r} stands in line {lines[name]} too; keep one of them.")
        if name not in known:
            continue
        text = line.get("text")
        if text is not None and known[name] is not None and text != known[name]:
            raise ValueError(
                f"{where}: the text of {name!r} was {text!r} when it was aligned, and now is {known[name]!r}; align it"
                " anew."
            )
        try:
            given = {"words": line.get("words"), "phones": line.get("phones", line.get("labels"))}
            found[name] = {
                column: None if entries is None else timed_pieces(entries, _TIMED[column])
                for column, entries in given.items()
            }
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not found:
        raise ValueError(f"{path}: names none of the recordings, such as {names[0]!r}; name the file of this corpus.")
    return found


__all__ = ["RowCoding", "RowFields", "encode_speech_rows", "row_fingerprint", "timed_pieces"]
