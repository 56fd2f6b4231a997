# SPDX-License-Identifier: Apache-2.0
"""The outputs of `units`, one class a format. Each output keeps what made it; see [`Provenance`]."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from speech_tokenizers.coding.recording_coding import EncodedRecording
    from speech_tokenizers.processing.provenance import Provenance


class UnitOutput:
    """
    An output of `units`, which is written within `with`.

    Args:
        path (`Path`): What the user named.
    """

    # All units go to one file; they come in the order of the recordings; they are written together at the end.
    is_one_file = True
    in_order = False
    at_the_end = False

    def __init__(self, path: Path):
        self.path = path

    def targets(self, names: Iterable[str]) -> list[Path]:
        """All files that are written for recordings of these names."""
        return [self.path]

    def fault_of_name(self, name: str, path: Path) -> str | None:
        """
        Why a recording cannot stand in this format, whatever its units are; it is set aside then.

        Raises:
            ValueError: If its name would break the others.
        """
        return None if _is_unicode(name) else "its name is no valid UTF-8, which this format needs; rename it."

    def provenances(self, names: Iterable[str]) -> "dict[str, Provenance | None]":
        """
        The recordings that are there, and what made their units; `None` where they do not say.

        Raises:
            ValueError: If what is there is no output of `units`.
        """
        raise NotImplementedError

    def remove(self) -> None:
        """Remove what is there where it would be continued."""

    def add(
        self, name: str, path: Path, result: "EncodedRecording", made_by: str, bpe_ids: list[int] | None = None
    ) -> None:
        """
        Write the units of a recording, or keep them for the end.

        Args:
            name (`str`): Name of the recording.
            path (`Path`): File of the recording.
            result ([`EncodedRecording`]): Units of the recording.
            made_by (`str`): [`Provenance`] of the units.
            bpe_ids (list of `int`, *optional*): Merged units.

        Raises:
            OSError, ValueError: If they cannot be written.
        """
        raise NotImplementedError

    def finish(self) -> int:
        """Write what was kept for the end; returns the number of recordings."""
        return 0

    def __enter__(self) -> "UnitOutput":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class JsonLines(UnitOutput):
    """slamkit's JSON lines, appended as they come."""

    _size = 0  # of what was read
    _end: int | None = None  # of the finished lines in it, where something follows that is none

    def provenances(self, names: Iterable[str]) -> "dict[str, Provenance | None]":
        from speech_tokenizers.processing.whole_files import while_unwritten

        if not self.path.exists():
            return {}
        with while_unwritten(self.path):
            found = self._read(names)
            self._size = self.path.stat().st_size
        return found

    def _read(self, names: Iterable[str]) -> "dict[str, Provenance | None]":
        from speech_tokenizers.processing.provenance import Provenance
        from speech_tokenizers.processing.unit_exports import UnitFileError, load_unit_lines

        content = self.path.read_bytes()
        if _is_finished(content[content.rfind(b"\n") + 1 :]):
            content += b"\n"  # only the end of its last line is missing
        end = content.rfind(b"\n") + 1
        names = set(names)
        if content[end:] and not _begins_a_line(content[end:].decode(errors="replace"), names):
            raise UnitFileError(
                self.path,
                f"ends within line {content.count(10) + 1}, which `units` did not write; choose another output, or "
                "pass --overwrite to replace the file.",
            )
        lines = load_unit_lines(self.path, content[:end])
        entries = [json.loads(line) for line in content[:end].split(b"\n")[:-1]]
        found = {entry["file_name"]: Provenance.parse(entry.get("made_by")) for entry in entries}
        foreign = [name for name, said in found.items() if said is None and name not in names]
        if foreign:
            raise UnitFileError(
                self.path,
                f"holds {foreign[0]!r} and does not say what made it; choose another output, or pass --overwrite to "
                "replace the file.",
            )
        self._end = end if content[end:] else None
        for line, entry in zip(lines, entries, strict=True):
            if found[line.file_name] is None:  # an older release wrote it; the line itself tells something
                options = {
                    "deduplicate": "no" if line.durations is None else "yes",
                    "bpe": "no" if "bpe_ids" not in entry else "",
                }
                found[line.file_name] = Provenance({"codebooks": "", **options})
        return found

    def remove(self) -> None:
        from speech_tokenizers.processing.whole_files import while_unwritten

        if self.path.exists():
            with while_unwritten(self.path):
                self.path.unlink()

    def __enter__(self) -> "JsonLines":
        from speech_tokenizers.processing.whole_files import LinesFile

        self._file = LinesFile(self.path)
        if self._file.size != self._size:
            self._file.__exit__()
            raise OSError(errno.EBUSY, "was written by another process meanwhile; call `units` again", str(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__()

    def add(
        self, name: str, path: Path, result: "EncodedRecording", made_by: str, bpe_ids: list[int] | None = None
    ) -> None:
        from speech_tokenizers.processing.unit_exports import UnitLine, format_unit_line

        merged = {} if bpe_ids is None else {"bpe_ids": bpe_ids}
        if self._end is not None:
            self._file.cut(self._end)  # an interrupted run left the rest unfinished
            self._end = None
        self._file.append(format_unit_line(UnitLine(name, result.units, result.durations), **merged, made_by=made_by))


class Textless(UnitOutput):
    """textlesslib's dictionary, a file a recording."""

    is_one_file = False

    def targets(self, names: Iterable[str]) -> list[Path]:
        return [self._item(name) for name in names]

    def fault_of_name(self, name: str, path: Path) -> str | None:
        return None

    def provenances(self, names: Iterable[str]) -> "dict[str, Provenance | None]":
        from speech_tokenizers.processing.provenance import Provenance
        from speech_tokenizers.processing.unit_exports import load_made_by

        there = [name for name in names if os.path.exists(self._item(name))]
        return {name: Provenance.parse(load_made_by(self._item(name))) for name in there}

    def add(
        self, name: str, path: Path, result: "EncodedRecording", made_by: str, bpe_ids: list[int] | None = None
    ) -> None:
        from speech_tokenizers.processing.unit_exports import save_textless, to_textless

        save_textless(self._item(name), to_textless(result.units, result.durations, result.latents), made_by)

    def _item(self, name: str) -> Path:
        # The suffix stays: a.wav and a.flac are two recordings.
        return self.path / f"{name}.safetensors"


class _AtTheEnd(UnitOutput):
    in_order = True
    at_the_end = True

    def __init__(self, path: Path):
        super().__init__(path)
        self._kept: list[tuple[str, Path, EncodedRecording, str]] = []

    def add(
        self, name: str, path: Path, result: "EncodedRecording", made_by: str, bpe_ids: list[int] | None = None
    ) -> None:
        self._kept.append((name, path, result, made_by))

    def finish(self) -> int:
        if self._kept:
            self._save()
        return len(self._kept)

    def _save(self) -> None:
        raise NotImplementedError


class KMeansLines(_AtTheEnd):
    """fairseq's `.km`, with `.tsv` and, if de-duplicated, `.durations` beside it, and in `.made_by` what made them."""

    def targets(self, names: Iterable[str]) -> list[Path]:
        return [self.path, *(self.path.with_suffix(suffix) for suffix in (".tsv", ".durations", ".made_by"))]

    def fault_of_name(self, name: str, path: Path) -> str | None:
        place = os.path.abspath(path)
        if any(character in place for character in "\t\r\n"):
            raise ValueError(
                f"{place!r} has a tab or a line break in its path, which a .tsv cannot hold; rename it, or choose "
                "another --format."
            )
        return super().fault_of_name(place, path)

    def provenances(self, names: Iterable[str]) -> "dict[str, Provenance | None]":
        from speech_tokenizers.processing.provenance import Provenance
        from speech_tokenizers.processing.unit_exports import UnitFileError, load_sources

        beside = self.path.with_suffix(".made_by")
        if not self.path.exists():
            return {}
        if not beside.exists():
            raise UnitFileError(self.path, "does not say what made it; pass --overwrite to replace it.")
        if not self.path.with_suffix(".tsv").exists():
            raise self._incomplete(".tsv")
        sources = load_sources(beside)
        found = {name: Provenance.parse(made_by) for name, made_by in sources}
        has_durations = any(said is not None and said.facts.get("deduplicate") == "yes" for said in found.values())
        if has_durations and not self.path.with_suffix(".durations").exists():
            raise self._incomplete(".durations")
        self._check_lines(len(sources), has_durations)
        return found

    def _check_lines(self, count: int, has_durations: bool) -> None:
        # That all files have a line for each recording of `.made_by`, and as many durations as units in it.
        from speech_tokenizers.processing.unit_exports import UnitFileError, load_km, load_manifest

        def check(path: Path, num_lines: int) -> None:
            if num_lines != count:
                raise UnitFileError(
                    path,
                    f"has lines for {num_lines} recordings, but {self.path.with_suffix('.made_by')} has {count}; pass"
                    " --overwrite to make all files anew.",
                )

        units = load_km(self.path)
        check(self.path, len(units))
        check(self.path.with_suffix(".tsv"), len(load_manifest(self.path.with_suffix(".tsv"))[1]))
        if has_durations:
            path = self.path.with_suffix(".durations")
            durations = load_km(path)
            check(path, len(durations))
            for number, (values, lasting) in enumerate(zip(units, durations, strict=True), start=1):
                if len(values) != len(lasting):
                    raise UnitFileError(
                        path,
                        f"line {number} has {len(lasting)} durations, but {self.path} has {len(values)} units there; "
                        "pass --overwrite to make all files anew.",
                    )

    def _incomplete(self, suffix: str) -> ValueError:
        from speech_tokenizers.processing.unit_exports import UnitFileError

        return UnitFileError(
            self.path,
            f"is one of several files that belong together, and {self.path.with_suffix(suffix)} is missing; pass "
            "--overwrite to make them all anew.",
        )

    def _save(self) -> None:
        from speech_tokenizers.processing.unit_exports import save_km, save_manifest, save_sources
        from speech_tokenizers.processing.whole_files import WholeFile

        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for _, path, _, _ in self._kept])
        manifest = [(os.path.relpath(path, root), result.num_samples) for _, path, result, _ in self._kept]
        durations = [result.durations for _, _, result, _ in self._kept if result.durations is not None]
        sources = [(name, said) for name, _, _, said in self._kept]
        beside = {suffix: self.path.with_suffix(suffix) for suffix in (".tsv", ".durations", ".made_by")}
        # All are written before one of them appears. What is opened first is finished last: where the .km is, the
        # others are.
        with contextlib.ExitStack() as stack:
            whole = {".km": stack.enter_context(WholeFile(self.path))}
            for suffix, path in beside.items():
                if durations or suffix != ".durations":
                    whole[suffix] = stack.enter_context(WholeFile(path))
            save_km(whole[".km"], [result.units for _, _, result, _ in self._kept])
            save_manifest(whole[".tsv"], root, manifest)
            save_sources(whole[".made_by"], sources)
            if durations:
                save_km(whole[".durations"], durations)
        if not durations:
            beside[".durations"].unlink(missing_ok=True)


class Arrays(_AtTheEnd):
    """One array of (batch, time, codebooks) with lengths and names."""

    def provenances(self, names: Iterable[str]) -> "dict[str, Provenance | None]":
        from speech_tokenizers.processing.provenance import Provenance
        from speech_tokenizers.processing.unit_exports import load_code_arrays, load_made_by

        if not self.path.exists():
            return {}
        there, _ = load_code_arrays(self.path)
        said: Any = load_made_by(self.path)
        said = json.loads(said) if said is not None else [None] * len(there)
        return {name: Provenance.parse(made_by) for name, made_by in zip(there, said, strict=True)}

    def _save(self) -> None:
        from speech_tokenizers.processing.unit_exports import save_code_arrays

        codes = [result.audio_codes for _, _, result, _ in self._kept if result.audio_codes is not None]
        made_by = json.dumps([said for _, _, _, said in self._kept])
        save_code_arrays(self.path, [name for name, _, _, _ in self._kept], codes, made_by)


OUTPUTS: Mapping[str, type[UnitOutput]] = {
    "jsonl": JsonLines,
    "km": KMeansLines,
    "textless": Textless,
    "array": Arrays,
}


# What may follow the units in a line: a key, and its value or the beginning of one.
_FURTHER_KEYS = (
    (', "duration": [', r"[0-9, ]*\]?"),
    (', "bpe_ids": [', r"[0-9, ]*\]?"),
    (', "made_by": "', r'[^"]*"?'),
)


def _is_finished(line: bytes) -> bool:
    # Whether it is all of a line of JSON. One object does not begin another.
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _begins_a_line(text: str, names: Iterable[str]) -> bool:
    # Whether a line without an end can only be one that `units` has begun to write for one of these recordings.
    for name in names:
        head = f'{{"file_name": {json.dumps(name, ensure_ascii=False)}'
        if text.startswith(head):
            break
    else:
        return False
    rest, key = text[len(head) :], ', "audio_repr": "'
    if key.startswith(rest):
        return True
    if not rest.startswith(key):
        return False
    rest = re.sub(r"^[<>QUn0-9_]*", "", rest[len(key) :])
    if not rest:
        return True
    if not rest.startswith('"'):
        return False
    rest = rest[1:]
    for key, value in _FURTHER_KEYS:
        if key.startswith(rest):
            return True
        if rest.startswith(key):
            rest = re.sub(f"^{value}", "", rest[len(key) :])
    return rest in ("", "}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
