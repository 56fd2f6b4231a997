# SPDX-License-Identifier: Apache-2.0
"""
Units as other toolkits read them: textlesslib's dictionary, fairseq's `.km` and `.tsv`, slamkit's JSON lines, and the
`(batch, time, codebooks)` arrays of DASB and ESPnet.

Files appear under their names only once they are complete, hold no pickle, and are checked when they are read.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from .file_errors import FileError
from .unit_sequences import check_durations, check_units, string_to_units, units_to_string
from .whole_files import write_whole


_NUMBERS = re.compile(r"(?:[0-9]{1,9}(?: [0-9]{1,9})*)?")
_ARRAY_FORMAT = "speech-tokenizers code arrays"


class UnitFileError(FileError):
    """A file of units that cannot be read or written; see [`FileError`]."""


# textlesslib


def to_textless(
    units: np.ndarray,
    durations: np.ndarray | None = None,
    dense: torch.Tensor | None = None,
    codebook_size: int | None = None,
) -> dict[str, torch.Tensor]:
    """
    What textlesslib's `SpeechEncoder` returns for a recording.

    Args:
        units (`np.ndarray` of shape `(num_units,)`): Units, one a frame or de-duplicated.
        durations (`np.ndarray` of shape `(num_units,)`, *optional*): Frames that each unit lasts. Defaults to one
            frame each.
        dense (`torch.Tensor` of shape `(num_frames, dim)`, *optional*): The frames that were coded.
        codebook_size (`int`, *optional*): Size of the codebook. With it, a beginning and an end are added,
            `codebook_size` and `codebook_size + 1`, which last no frame (and are zeros in `dense`), as
            `add_bos_eos=True` does there.

    Returns:
        `dict`: `units` and `durations`, int64, and `dense` if it was given.

    Raises:
        TypeError, ValueError: If the units have several codebooks, or the lengths differ.
    """
    units = _one_codebook(units)
    durations = np.ones_like(units) if durations is None else check_durations(durations)
    if durations.shape != units.shape:
        raise ValueError(f"`durations` must have one entry a unit, {len(units)}, but got {len(durations)}.")
    item = {"units": torch.tensor(units), "durations": torch.tensor(durations)}
    if dense is not None:
        if dense.ndim != 2 or len(dense) != durations.sum():
            raise ValueError(
                f"`dense` must have shape (num_frames, dim) with {durations.sum()} frames, but got "
                f"{tuple(dense.shape)}."
            )
        item["dense"] = dense
    if codebook_size is not None:
        item["units"] = torch.tensor([codebook_size, *units, codebook_size + 1])
        item["durations"] = torch.tensor([0, *durations, 0])
        if dense is not None:
            item["dense"] = torch.nn.functional.pad(dense, (0, 0, 1, 1))
    return item


def save_textless(path: str | os.PathLike[str], item: dict[str, torch.Tensor], made_by: str | None = None) -> None:
    """
    Write the dictionary of [`to_textless`] as safetensors.

    Args:
        path (`str` or `Path`): The file. Missing folders are created.
        item (`dict`): What [`to_textless`] returns.
        made_by (`str`, *optional*): What made the units; see [`load_made_by`].

    Raises:
        UnitFileError: If the file cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in item.items()}
    _write(path, save_tensors(tensors, metadata=None if made_by is None else {"made_by": made_by}))


def load_made_by(path: str | os.PathLike[str]) -> str | None:
    """
    What made the units of a safetensors file, as [`save_textless`] and [`save_code_arrays`] were told, if they were.

    Raises:
        UnitFileError: If the file is missing or damaged.
    """
    _read(path, 1)  # whose errors tell missing from forbidden
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("made_by")
    except SafetensorError as error:
        raise UnitFileError(path, f"is no valid safetensors file ({error}); encode the recording again.") from error


def load_textless(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """
    Read what [`save_textless`] wrote.

    Raises:
        UnitFileError: If the file is missing, damaged, or holds something else.
    """
    try:
        item = load_tensors(_read(path))
    except SafetensorError as error:
        raise UnitFileError(path, f"is no valid safetensors file ({error}); encode the recording again.") from error
    if not {"units", "durations"} <= item.keys() <= {"units", "durations", "dense"}:
        raise UnitFileError(path, f"holds {sorted(item)} and not `units`, `durations` and at most `dense`.")
    units, durations = item["units"], item["durations"]
    if units.is_floating_point() or durations.is_floating_point() or units.ndim != 1 or units.shape != durations.shape:
        raise UnitFileError(path, "has no `units` and `durations` of one length; encode the recording again.")
    return item


# fairseq


def save_km(path: str | os.PathLike[str], sequences: Iterable[np.ndarray]) -> None:
    """
    Write units as fairseq's `.km`, `12 12 7`, a line a recording.

    Args:
        path (`str` or `Path`): The file. Missing folders are created.
        sequences (iterable of `np.ndarray` of shape `(num_units,)`): Units or durations; both are written alike.

    Raises:
        TypeError, ValueError: If the units are malformed or have several codebooks.
        UnitFileError: If the file cannot be written.
    """
    lines = (" ".join(map(str, _one_codebook(units).tolist())) + "\n" for units in sequences)
    _write(path, "".join(lines).encode())


def load_km(path: str | os.PathLike[str]) -> list[np.ndarray]:
    """
    Read fairseq's `.km`.

    Returns:
        `list[np.ndarray]`: Units of shape `(num_units,)`, int64, in the order of the lines.

    Raises:
        UnitFileError: If the file is missing, or a line holds anything but numbers parted by single spaces.
    """
    sequences = []
    for number, line in _lines(path):
        if not _NUMBERS.fullmatch(line):
            raise UnitFileError(path, f"line {number} must hold units such as `12 12 7`, but is {line[:40]!r}.")
        sequences.append(np.array(line.split(), dtype=np.int64))
    return sequences


def save_manifest(path: str | os.PathLike[str], root: str, files: Iterable[tuple[str, int]]) -> None:
    """
    Write fairseq's `.tsv`: the root, then `path<TAB>num_samples` for each recording.

    Args:
        path (`str` or `Path`): The file. Missing folders are created.
        root (`str`): Folder that the paths are relative to.
        files (iterable of `tuple[str, int]`): Path of each file, and its length in samples.

    Raises:
        ValueError: If a path holds a tab or a line break, or a length is not positive.
        UnitFileError: If the file cannot be written.
    """
    files = list(files)
    for name, num_samples in files:
        if num_samples < 1:
            raise ValueError(f"`files` must have lengths of at least 1 sample, but {name!r} has {num_samples}.")
    for name in (root, *(name for name, _ in files)):
        if not name or any(character in name for character in "\t\r\n"):
            raise ValueError(f"{name!r} cannot stand in a manifest; rename it.")
    _write(path, "".join([f"{root}\n", *(f"{name}\t{num_samples}\n" for name, num_samples in files)]).encode())


def load_manifest(path: str | os.PathLike[str]) -> tuple[str, list[tuple[str, int]]]:
    """
    Read fairseq's `.tsv`.

    Returns:
        `tuple`: The root, and path and number of samples of each recording.

    Raises:
        UnitFileError: If the file is missing or empty, or a line is malformed or repeats a path.
    """
    lines = _lines(path)
    if not lines or not lines[0][1]:
        raise UnitFileError(path, "must have the recordings' folder in the first line.")
    files: dict[str, int] = {}
    for number, line in lines[1:]:
        match = re.fullmatch(r"([^\t]+)\t([1-9][0-9]{0,17})", line)
        if match is None or match[1] in files:
            fault = "must be a path, a tab and a number of samples" if match is None else "repeats a path"
            raise UnitFileError(path, f"line {number} {fault}, but is {line[:80]!r}.")
        files[match[1]] = int(match[2])
    return lines[0][1], list(files.items())


def save_sources(path: str | os.PathLike[str], sources: Iterable[tuple[str, str]]) -> None:
    """
    Write what made each line of a `.km`, as `name<TAB>made by`, a line a recording.

    Args:
        path (`str` or `Path`): The file. Missing folders are created.
        sources (iterable of `tuple[str, str]`): Name of each recording, and what made its units.

    Raises:
        UnitFileError: If the file cannot be written.
    """
    _write(path, "".join(f"{name}\t{made_by}\n" for name, made_by in sources).encode())


def load_sources(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """
    Read what [`save_sources`] wrote.

    Raises:
        UnitFileError: If the file is missing, or a line is malformed.
    """
    sources = []
    for number, line in _lines(path):
        name, tab, made_by = line.partition("\t")
        if not tab or "\t" in made_by:
            raise UnitFileError(path, f"line {number} must be a name, a tab and what made it, but is {line[:80]!r}.")
        sources.append((name, made_by))
    return sources


# slamkit


class UnitLine(NamedTuple):
    """
    A recording in a file of JSON lines.

    Args:
        file_name (`str`): Name of the recording's file.
        units (`np.ndarray` of shape `(num_units,)` or `(num_quantizers, num_units)`): Units, int64.
        durations (`np.ndarray` of shape `(num_units,)`, *optional*): Frames that each unit lasts, if the units are
            de-duplicated.
    """

    file_name: str
    units: np.ndarray
    durations: np.ndarray | None = None


def format_unit_line(line: UnitLine, **others: object) -> str:
    """
    A line as slamkit reads it: JSON with `file_name`, the unit string `audio_repr`, and for de-duplicated units
    `duration`.

    Args:
        line ([`UnitLine`]): The recording.
        others: Further entries, which must be JSON.

    Raises:
        TypeError, ValueError: If the units or durations are malformed.
    """
    entry: dict[str, object] = {"file_name": line.file_name, "audio_repr": units_to_string(line.units)}
    if line.durations is not None:
        durations = check_durations(line.durations)
        if durations.shape != np.shape(line.units)[-1:]:
            raise ValueError(f"`durations` must have one entry a unit, but got {len(durations)}.")
        entry["duration"] = durations.tolist()
    return json.dumps(entry | others, ensure_ascii=False)


def save_unit_lines(path: str | os.PathLike[str], lines: Iterable[UnitLine]) -> None:
    """
    Write slamkit's JSON lines; see [`format_unit_line`].

    Raises:
        TypeError, ValueError: If a line is malformed.
        UnitFileError: If the file cannot be written.
    """
    _write(path, "".join(format_unit_line(line) + "\n" for line in lines).encode())


def load_unit_lines(path: str | os.PathLike[str], content: bytes | None = None) -> list[UnitLine]:
    """
    Read slamkit's JSON lines.

    Args:
        path (`str` or `Path`): The file.
        content (`bytes`, *optional*): What is read of it. Defaults to all.

    Raises:
        UnitFileError: If the file is missing, or a line is malformed, unfinished, or repeats a name.
    """
    lines: dict[str, UnitLine] = {}
    for number, text in _lines(path, content):
        try:
            line = _parse_unit_line(text)
        except (ValueError, TypeError, KeyError) as error:
            raise UnitFileError(
                path, f"line {number} holds no units ({error}); encode the recording again."
            ) from error
        if line.file_name in lines:
            raise UnitFileError(path, f"line {number} repeats {line.file_name!r}.")
        lines[line.file_name] = line
    return list(lines.values())


def _parse_unit_line(text: str) -> UnitLine:
    entry = json.loads(text)
    if (
        not isinstance(entry, dict)
        or not isinstance(entry["file_name"], str)
        or not isinstance(entry["audio_repr"], str)
    ):
        raise ValueError("`file_name` and `audio_repr` must be strings")
    units = string_to_units(entry["audio_repr"])
    durations = None if entry.get("duration") is None else check_durations(entry["duration"])
    if durations is not None and durations.shape != units.shape[-1:]:
        raise ValueError(f"`duration` has {len(durations)} entries for {units.shape[-1]} units")
    return UnitLine(entry["file_name"], units, durations)


# DASB, ESPnet


def to_batch_time_codebook(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """
    Codes of several recordings as one array, time before codebooks.

    Args:
        sequences (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): `audio_codes` of each recording.

    Returns:
        `tuple`: Codes of shape `(batch, max_num_frames, num_quantizers)`, 0 behind a recording's own frames, and their
        lengths in frames of shape `(batch,)`, int64 both.

    Raises:
        TypeError, ValueError: If there are none, or they are malformed or differ in their number of codebooks.
    """
    sequences = [np.atleast_2d(check_units(codes)) for codes in sequences]
    if len({len(codes) for codes in sequences}) != 1:
        raise ValueError("`sequences` must hold at least one recording, all with the same number of codebooks.")
    lengths = np.array([codes.shape[1] for codes in sequences], dtype=np.int64)
    batch = np.zeros((len(sequences), lengths.max(), len(sequences[0])), dtype=np.int64)
    for row, codes in zip(batch, sequences, strict=True):
        row[: codes.shape[1]] = codes.T
    return batch, lengths


def from_batch_time_codebook(codes: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """
    The inverse of [`to_batch_time_codebook`].

    Args:
        codes (`np.ndarray` of shape `(batch, max_num_frames, num_quantizers)`): Codes.
        lengths (`np.ndarray` of shape `(batch,)`): Number of frames of each recording.

    Returns:
        `list[np.ndarray]`: Codes of shape `(num_quantizers, num_frames)` each.

    Raises:
        ValueError: If the shapes do not fit, or a length exceeds the array.
    """
    codes, lengths = np.asarray(codes), np.asarray(lengths)
    if codes.ndim != 3 or lengths.shape != codes.shape[:1]:
        raise ValueError(
            "`codes` must have shape (batch, num_frames, num_quantizers) and `lengths` (batch,), but got "
            f"{codes.shape} and {lengths.shape}."
        )
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= codes.shape[1]:
        raise ValueError(f"`lengths` must lie between 0 and {codes.shape[1]}, but got {lengths.tolist()}.")
    return [check_units(row[:length].T) for row, length in zip(codes, lengths.tolist(), strict=True)]


def save_code_arrays(
    path: str | os.PathLike[str],
    names: Sequence[str],
    sequences: Sequence[np.ndarray],
    made_by: str | None = None,
) -> None:
    """
    Write codes of several recordings as safetensors with `audio_codes` `(batch, max_num_frames, num_quantizers)` and
    `lengths` `(batch,)`, and the names as JSON in the metadata.

    Args:
        path (`str` or `Path`): The file. Missing folders are created.
        names (sequence of `str`): Names of the recordings.
        sequences (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of each recording; see
            [`to_batch_time_codebook`].
        made_by (`str`, *optional*): What made the codes; see [`load_made_by`].

    Raises:
        TypeError, ValueError: If the codes are malformed, or the names do not fit.
        UnitFileError: If the file cannot be written.
    """
    if len(names) != len(sequences):
        raise ValueError(f"`names` must have one entry a recording, {len(sequences)}, but got {len(names)}.")
    codes, lengths = to_batch_time_codebook(sequences)
    metadata = {"format": _ARRAY_FORMAT, "names": json.dumps(list(names), ensure_ascii=False)}
    if made_by is not None:
        metadata["made_by"] = made_by
    _write(path, save_arrays({"audio_codes": codes, "lengths": lengths}, metadata=metadata))


def load_code_arrays(path: str | os.PathLike[str]) -> tuple[list[str], list[np.ndarray]]:
    """
    Read what [`save_code_arrays`] wrote.

    Returns:
        `tuple`: The names, and the codes of shape `(num_quantizers, num_frames)` of each.

    Raises:
        UnitFileError: If the file is missing, damaged, or holds something else.
    """
    _read(path, 1)  # whose errors tell missing from forbidden
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise UnitFileError(path, f"is no valid safetensors file ({error}); encode the recordings again.") from error
    if metadata.get("format") != _ARRAY_FORMAT or arrays.keys() != {"audio_codes", "lengths"}:
        raise UnitFileError(path, "holds no arrays of codes; name a file that `save_code_arrays` wrote.")
    try:
        names = json.loads(metadata["names"])
        sequences = from_batch_time_codebook(arrays["audio_codes"], arrays["lengths"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnitFileError(path, f"contradicts itself ({error}); encode the recordings again.") from error
    if len(names) != len(sequences):
        raise UnitFileError(path, f"has {len(names)} names for {len(sequences)} recordings; encode them again.")
    return names, sequences


def _one_codebook(units: np.ndarray) -> np.ndarray:
    units = check_units(units)
    if units.ndim != 1:
        raise ValueError(
            f"`units` must have shape (num_units,), but got {units.shape}; this format holds one codebook, so choose "
            "one, or JSON lines or arrays."
        )
    return units


def _lines(path: str | os.PathLike[str], content: bytes | None = None) -> list[tuple[int, str]]:
    try:
        text = (_read(path) if content is None else content).decode()
    except UnicodeDecodeError as error:
        raise UnitFileError(path, f"is no text in UTF-8 ({error.reason}).") from error
    if text and not text.endswith("\n"):
        raise UnitFileError(path, "ends within a line, so something is missing; write it again.")
    return list(enumerate(text.split("\n")[:-1], start=1))


def _read(path: str | os.PathLike[str], size: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except FileNotFoundError as error:
        raise UnitFileError(path, "no such file; check the spelling.") from error
    except OSError as error:
        raise UnitFileError(path, f"cannot be read ({error.strerror}); name a file that you may read.") from error


def _write(path: str | os.PathLike[str], content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise UnitFileError(path, f"cannot be written ({error.strerror}); choose another place.") from error
