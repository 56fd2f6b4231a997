# SPDX-License-Identifier: Apache-2.0
"""The audio of planned recordings, read in groups that fit into memory."""

from collections.abc import Iterator, Sequence
from typing import Any

from speech_tokenizers.coding.corpus.plan import CorpusPlan, PlannedRecording
from speech_tokenizers.coding.corpus.sources import open_place


# Bytes of audio files that are in memory at once. One recording alone may have more.
GROUP_BYTES = 128 << 20
# Rows of a Parquet file that are read at once.
_PARQUET_ROWS = 32


def read_groups(
    plan: CorpusPlan, recordings: Sequence[PlannedRecording], group_bytes: int = GROUP_BYTES
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """
    Read the audio of recordings, in their order.

    Args:
        plan ([`CorpusPlan`]): The plan, which says how audio is found.
        recordings (sequence of [`PlannedRecording`]): Recordings of a task.
        group_bytes (`int`, *optional*): Bytes that a group holds at most, unless one recording has more.

    Returns:
        `Iterator[list[tuple[int, dict]]]`: Groups of positions with rows, as [`encode_recordings`] takes them. A row
            whose audio cannot be read has a `reason` in its place.
    """
    kind = plan.said["kind"]
    usable = [position for position, recording in enumerate(recordings) if recording.fault is None]
    rows: Iterator[tuple[int, dict[str, Any]]]
    if kind == "files":
        rows = ((at, _row(recordings[at], {"path": recordings[at].place.path, "bytes": None})) for at in usable)
    elif kind == "tar":
        rows = _in_tars(recordings, usable)
    elif kind == "parquet":
        rows = _in_parquet(recordings, usable, plan.said["audio_column"])
    else:
        rows = _in_rows(recordings, usable, plan.said["loading"])
    group: list[tuple[int, dict[str, Any]]] = []
    total = 0
    for position, row in rows:
        size = _num_bytes(row.get("audio"))
        if group and total + size > group_bytes:
            yield group
            group, total = [], 0
        group.append((position, row))
        total += size
    if group:
        yield group


def _row(recording: PlannedRecording, audio: Any) -> dict[str, Any]:
    return {"audio": audio, "file_name": recording.fields.get("file_name") or recording.fields["id"]}


def _num_bytes(audio: Any) -> int:
    if isinstance(audio, dict):
        audio = next((value for key in ("bytes", "array") if (value := audio.get(key)) is not None), b"")
    return len(audio) if isinstance(audio, bytes) else 8 * len(audio or ())


def _in_tars(recordings: Sequence[PlannedRecording], positions: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    stream: Any = None
    path = None
    try:
        for position in positions:
            place = recordings[position].place
            try:
                if place.path != path:
                    if stream is not None:
                        stream.close()
                    stream, path = open_place(place.path), place.path
                stream.seek(place.offset)
                content = stream.read(place.size)
                if len(content) != place.size:
                    raise OSError(f"ends after {len(content)} of {place.size} bytes")
                yield position, _row(recordings[position], {"bytes": content, "path": None})
            except OSError as error:
                yield position, {"reason": f"cannot be read from its tar ({error}); copy it anew."}
    finally:
        if stream is not None:
            stream.close()


def _in_parquet(
    recordings: Sequence[PlannedRecording], positions: Sequence[int], column: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    by_file: dict[str, list[int]] = {}
    for position in positions:
        by_file.setdefault(recordings[position].place.path, []).append(position)
    for path, some in by_file.items():
        at_row = {recordings[position].place.row or 0: position for position in some}
        for row, audio in _audio_of_rows(path, column, at_row):
            position = at_row.pop(row)
            if isinstance(audio, Exception):
                yield position, {"reason": f"cannot be read from its file ({audio}); copy it anew."}
            else:
                yield position, _row(recordings[position], audio)
        for row, position in at_row.items():
            yield position, {"reason": f"its file has no row {row} any more; start anew with --overwrite."}


def _audio_of_rows(path: str, column: str, wanted: Any) -> Iterator[tuple[int, Any]]:
    # The wanted rows of a file, in their order. Row groups without one are not read.
    import pyarrow
    import pyarrow.parquet

    wanted, first, last = set(wanted), min(wanted), max(wanted)
    read: set[int] = set()
    try:
        with open_place(path) as stream, pyarrow.parquet.ParquetFile(stream) as file:
            start = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if start + count > first and start <= last:
                    row = start
                    for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=[column]):
                        values = batch.column(0)
                        for within in range(len(batch)):
                            if row in wanted:
                                read.add(row)
                                yield row, values[within].as_py()
                            row += 1
                start += count
    except (pyarrow.ArrowException, OSError) as error:
        for row in sorted(wanted - read):
            yield row, error


def _in_rows(
    recordings: Sequence[PlannedRecording], positions: Sequence[int], loading: dict[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    from speech_tokenizers.processing.recordings import load_recordings

    loaded = load_recordings(**loading)
    for position in positions:
        yield position, loaded[recordings[position].place.row]


__all__ = ["GROUP_BYTES", "read_groups"]
