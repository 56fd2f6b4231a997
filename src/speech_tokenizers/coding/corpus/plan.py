# SPDX-License-Identifier: Apache-2.0
"""
The plan of a corpus: one small file a shard, with all that a process needs to make it.

A plan lies beside the folder of rows, as `FOLDER.plan/`. It holds `plan.json`, `tasks/00000.parquet` and so on, and
`done/00000.json` once that shard is written. It depends on the corpus and the options alone. Where it was made, paths
and times of files stand in it; the rows have none of these.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_tokenizers.coding.corpus.sources import CorpusSource, Place, file_mark


if TYPE_CHECKING:
    from speech_tokenizers.coding.row_coding import RowFields
    from speech_tokenizers.processing.speech_row_shards import SpeechRowShards

PLAN_FORMAT = "speech-tokenizers corpus plan"
PLAN_VERSION = 1
_PLACE = ("place_path", "place_offset", "place_size", "place_row", "place_mark")
_FAULT = "place_fault"


class CorpusPlanError(ValueError):
    """A plan that is missing or damaged, or of another corpus than the one that is given."""


@dataclass(frozen=True)
class PlannedRecording:
    """
    A recording of a task.

    Args:
        fields (`dict`): What is known of it, as [`RowFields.of`] gives it.
        place ([`Place`]): Where its audio lies.
        fault (`str`, *optional*): Why it cannot be a row, as far as that is known before the work.
    """

    fields: dict[str, Any]
    place: Place
    fault: str | None = None


@dataclass(frozen=True)
class CorpusPlan:
    """
    A plan that was written.

    Args:
        folder (`Path`): Its folder.
        said (`dict`): What `plan.json` holds.
        output (`Path`, *optional*): Folder of the rows, where it is not the one that the plan names, since both were
            moved.
    """

    folder: Path
    said: Mapping[str, Any]
    output: Path | None = None

    @classmethod
    def read(cls, folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> "CorpusPlan":
        """
        Args:
            folder (`str` or `Path`): Folder of the plan.
            output (`str` or `Path`, *optional*): Folder of the rows. Defaults to the one that the plan names.

        Raises:
            CorpusPlanError: If there is none, or it is of another version.
        """
        path = Path(folder) / "plan.json"
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            if said["format"] != PLAN_FORMAT or said["version"] != PLAN_VERSION:
                raise CorpusPlanError(f"{path}: is of another version of this package; make the plan anew.")
        except FileNotFoundError:
            raise CorpusPlanError(f"{folder}: holds no plan; start `encode-corpus` with the corpus first.") from None
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise CorpusPlanError(f"{path}: is no plan of `encode-corpus`; remove the folder.") from error
        return cls(Path(folder), said, None if output is None else Path(os.path.abspath(output)))

    @property
    def num_tasks(self) -> int:
        """Number of tasks, each of which makes one shard."""
        return self.said["num_tasks"]

    @property
    def num_recordings(self) -> int:
        """Number of recordings in all."""
        return self.said["num_recordings"]

    @cached_property
    def shards(self) -> "SpeechRowShards":
        """The shards that the plan describes."""
        import pyarrow

        from speech_tokenizers.processing.speech_row_format import facts_in
        from speech_tokenizers.processing.speech_row_shards import SpeechRowShards

        others = pyarrow.ipc.read_schema(pyarrow.py_buffer(bytes.fromhex(self.said["columns"])))
        return SpeechRowShards(
            self.output or Path(self.said["output"]),
            facts_in(self.said["facts"]),
            self.said["rows_per_shard"],
            list(others),
        )

    def recordings(self, number: int) -> list[PlannedRecording]:
        """
        The recordings of a task, in their order.

        Raises:
            CorpusPlanError: If its file is missing or damaged.
        """
        import pyarrow
        import pyarrow.parquet

        path = self.task_path(number)
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise CorpusPlanError(
                f"{path}: is no whole task ({error}); remove {self.folder} and start anew."
            ) from error
        found = []
        for row in rows:
            path, offset, size, at, _ = (row.pop(name) for name in _PLACE)
            fault = row.pop(_FAULT)
            found.append(PlannedRecording(row, Place(path, offset, size, at), fault))
        return found

    def task_path(self, number: int) -> Path:
        """File of a task."""
        return self.folder / "tasks" / f"{number:05d}.parquet"

    def done_path(self, number: int) -> Path:
        """File that says that a task is done, and what its shard says of itself."""
        return self.folder / "done" / f"{number:05d}.json"

    def done(self, number: int) -> dict[str, Any] | None:
        """What the shard of a task says of itself, if the task is done and its files are there in their sizes."""
        try:
            said = json.loads(self.done_path(number).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        for name, (size, _) in said["files"].items():
            path = self.shards.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return None
        return said["shard"]

    def mark_done(self, number: int, shard: Mapping[str, Any], files: list[Path]) -> None:
        """Say that a task is done; see [`CorpusPlan.done`]."""
        from speech_tokenizers.processing.whole_files import write_whole

        # Rows may be moved together with the plan; tars of WebDataset are elsewhere.
        known = {
            path.name if path.parent == self.shards.folder else str(path): (path.stat().st_size, _sha256(path))
            for path in files
        }
        write_whole(self.done_path(number), json.dumps({"shard": shard, "files": known}, ensure_ascii=False))

    def faults(self, number: int) -> list[str]:
        """What is wrong with the files of a task: those that are missing, or hold other bytes than were written."""
        try:
            files = json.loads(self.done_path(number).read_text(encoding="utf-8"))["files"]
        except (FileNotFoundError, json.JSONDecodeError):
            return [f"the shard {number} is not done; start the same `encode-corpus` again"]
        found = []
        for name, (_, digest) in files.items():
            path = self.shards.folder / name
            if not path.is_file():
                found.append(f"{path}: is missing; start the same `encode-corpus` again, which makes it")
            elif _sha256(path) != digest:
                found.append(f"{path}: holds other bytes than were written; remove it and start the same again")
        return found

    def num_done(self) -> int:
        """Number of tasks that say that they are done, by the names of files alone."""
        return sum(entry.name.endswith(".json") for entry in os.scandir(self.folder / "done"))

    def undone(self) -> list[int]:
        """Numbers of the tasks that are not done."""
        return [number for number in range(self.num_tasks) if self.done(number) is None]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan_folder(output: str | os.PathLike[str]) -> Path:
    """The folder of the plan, beside the folder of rows."""
    from speech_tokenizers.processing.whole_files import beside

    return beside(os.path.abspath(output), ".plan")


def write_plan(
    folder: Path, source: CorpusSource, fields: "RowFields", shards: "SpeechRowShards", coding: Mapping[str, Any]
) -> CorpusPlan:
    """
    Write a plan, whole or not at all.

    Args:
        folder (`Path`): Folder to write.
        source ([`CorpusSource`]): The corpus.
        fields ([`RowFields`]): What is known of its recordings.
        shards ([`SpeechRowShards`]): The shards that are to be made.
        coding (`dict`): Options on which the rows depend.

    Raises:
        OSError: If it cannot be written.
    """
    from speech_tokenizers.processing.whole_files import whole_folder

    digest, num_tasks = hashlib.sha256(), 0
    with whole_folder(folder) as temporary:
        (temporary / "tasks").mkdir()
        (temporary / "done").mkdir()
        plan = CorpusPlan(temporary, {})
        for table in _task_tables(source, fields, shards):
            digest.update(_write_table(plan.task_path(num_tasks), table))
            num_tasks += 1
        said = {
            "format": PLAN_FORMAT,
            "version": PLAN_VERSION,
            "output": os.path.abspath(shards.folder),
            "kind": source.kind,
            "audio_column": source.audio_column,
            "loading": dict(source.loading),
            "coding": dict(coding),
            "facts": shards.facts.said(),
            "rows_per_shard": shards.rows_per_shard,
            "columns": _schema_text(shards),
            "num_recordings": len(source.recordings),
            "num_tasks": num_tasks,
            "recordings": digest.hexdigest()[:24],
        }
        (temporary / "plan.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return CorpusPlan(folder, said)


def _task_tables(source: CorpusSource, fields: "RowFields", shards: "SpeechRowShards") -> Iterator[Any]:
    import pyarrow

    recordings = source.recordings.remove_columns("audio")
    schema = pyarrow.schema(
        [
            *(field for field in shards.schema if field.name in _field_names(fields)),
            ("place_path", pyarrow.string()),
            ("place_offset", pyarrow.int64()),
            ("place_size", pyarrow.int64()),
            ("place_row", pyarrow.int64()),
            ("place_mark", pyarrow.string()),
            (_FAULT, pyarrow.string()),
        ]
    )
    marks: dict[str, str] = {}
    for start in range(0, len(recordings), shards.rows_per_shard):
        rows = []
        block = recordings.select(range(start, min(start + shards.rows_per_shard, len(recordings))))
        for position, row in enumerate(block, start):
            place, fault = source.places[position], source.faults.get(position)
            try:
                known = fields.of(row)
            except ValueError as error:
                known = {"id": row[fields.id_column]}
                fault = fault or str(error)
            # A folder of recordings has a mark for each, larger files for thousands.
            mark = file_mark(place.path) if source.kind == "files" else marks.get(place.path)
            if mark is None:
                mark = marks[place.path] = file_mark(place.path)
            rows.append({**known, **dict(zip(_PLACE, (*place, mark), strict=True)), _FAULT: fault})
        yield pyarrow.Table.from_pylist(rows, schema=schema)


def _field_names(fields: "RowFields") -> set[str]:
    return {"id", "text", "speaker", "language", "words", "phones", *(other.name for other in fields.others)}


def _write_table(path: Path, table: Any) -> bytes:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path, compression="zstd")
    return hashlib.sha256(path.read_bytes()).digest()


def _schema_text(shards: "SpeechRowShards") -> str:
    import pyarrow

    return pyarrow.schema(list(shards.others)).serialize().to_pybytes().hex()


def continue_plan(folder: Path, new: CorpusPlan) -> CorpusPlan:
    """
    The plan that is there, if it is the one that would be made now, and else the new one, in its place.

    Args:
        folder (`Path`): Where the plan lies.
        new ([`CorpusPlan`]): A plan that was made now, elsewhere. It is removed or moved.

    Raises:
        CorpusPlanError: If the plan that is there is another one; the message says in what.
    """
    try:
        old = CorpusPlan.read(folder)
    except CorpusPlanError:
        if folder.exists():
            raise
        os.replace(new.folder, folder)
        return CorpusPlan(folder, new.said)
    old = CorpusPlan(folder, old.said, Path(new.said["output"]))
    shutil.rmtree(new.folder)
    if difference := _difference(old.said, new.said):
        raise CorpusPlanError(
            f"{folder}: was made {difference}; name another output, or pass --overwrite to make the rows anew."
        )
    return old


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    from speech_tokenizers.processing.speech_row_format import facts_in

    if facts := facts_in(new["facts"]).difference(facts_in(old["facts"])):
        return f"with {facts}"
    if (before := old["num_recordings"]) != new["num_recordings"]:
        return f"of {before} recordings, but there are {new['num_recordings']} now"
    for name, value in new["coding"].items():
        if (other := old["coding"].get(name)) != value:
            return f"with {name}={other!r} instead of {value!r}"
    for name in ("rows_per_shard", "kind"):
        if old[name] != new[name]:
            return f"with {name}={old[name]!r} instead of {new[name]!r}"
    if {**old, "output": None} != {**new, "output": None}:
        return "of other files, texts, times or columns; the recordings or their metadata have changed since"
    return None


__all__ = [
    "CorpusPlan",
    "CorpusPlanError",
    "PlannedRecording",
    "continue_plan",
    "plan_folder",
    "write_plan",
]
