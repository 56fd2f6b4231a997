# SPDX-License-Identifier: Apache-2.0
"""The step of `encode-corpus`: tasks of a plan to shards of rows, in any number of processes, by any engine."""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_tokenizers.coding.corpus.places import read_groups
from speech_tokenizers.coding.corpus.plan import CorpusPlan, PlannedRecording


if TYPE_CHECKING:
    from speech_tokenizers.coding.row_coding import RowCoding


@dataclass(frozen=True)
class CorpusStep:
    """
    Make the shards of a plan, each whole or not at all. What is there already stays.

    It is a step of a datatrove pipeline, and can be sent to other processes and machines: it holds names alone.

    Args:
        plan (`str`): Folder of the plan, which all machines see.
        model (`str`): Name, folder or Hub id of the model.
        device (`str`, *optional*): Device. Defaults to a GPU if there is one, else the CPU. Where there are several
            GPUs, `"cuda"` is one for each worker in turn.
        batch_seconds (`float`, *optional*): Length of the audio in a batch, in seconds; see [`encode_recordings`].
        decoding_threads (`int`, *optional*, defaults to 2): Threads of a worker that read and decode audio.
        torch_threads (`int`, *optional*): Threads of a worker that encode on a CPU, each a batch of its own. Defaults
            to torch's own choice.
        webdataset (`str`, *optional*): Folder for tars of WebDataset, which are written beside the rows.
    """

    plan: str
    model: str
    device: str | None = None
    batch_seconds: float | None = None
    decoding_threads: int = 2
    torch_threads: int | None = None
    webdataset: str | None = None

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """
        Do the tasks of a rank: those of numbers `rank`, `rank + world_size` and so on.

        Args:
            data: What the step before gave; there is none.
            rank (`int`): Rank of the caller, from 0.
            world_size (`int`): Number of ranks. With as many ranks as tasks, each does one.

        Raises:
            CorpusPlanError: If the plan is missing or damaged.
            SpeechRowsError: If a shard that is there was made otherwise.
        """
        plan = CorpusPlan.read(self.plan)
        for number in range(rank, plan.num_tasks, world_size):
            if plan.done(number) is None:
                self.run(plan, number)
        if plan.num_done() == plan.num_tasks:
            finish_if_done(plan)

    def run(self, plan: CorpusPlan, number: int, on_recording: Callable[[], object] | None = None) -> dict[str, Any]:
        """
        Do a task.

        Args:
            plan ([`CorpusPlan`]): The plan.
            number (`int`): Number of the task, from 0.
            on_recording (callable, *optional*): Function that is called after each recording.

        Returns:
            `dict`: What the shard says of itself.

        Raises:
            SpeechRowsError: If the shard that is there was made otherwise.
            OSError: If it cannot be written.
        """
        from speech_tokenizers.processing.speech_row_format import shard_name

        shard = plan.shards.folder / shard_name(number)
        recordings = plan.recordings(number)
        rows: list[dict[str, Any]] = [
            {"name": recording.fields["id"], "reason": recording.fault or "was not read."} for recording in recordings
        ]
        inputs: list[str] = [""] * len(rows)
        said = kept_shard(plan, number, recordings) if shard.exists() else None
        if said is None:
            coding: RowCoding | None = None
            for group in read_groups(plan, recordings):
                coding = self.coding(plan) if coding is None else coding
                _code_group(coding, recordings, group, rows, inputs, on_recording)
            said = plan.shards.write(number, rows, inputs)
        files = [shard] if said["num_rows"] else []
        if not files:
            shard.unlink(missing_ok=True)
        if self.webdataset is not None:
            from speech_tokenizers.coding.corpus.webdataset import write_tar

            tar = Path(self.webdataset) / shard.with_suffix(".tar").name
            if files:
                files.append(write_tar(shard, tar))
            else:
                tar.unlink(missing_ok=True)
        plan.mark_done(number, said, files)
        return said

    def coding(self, plan: CorpusPlan) -> "RowCoding":
        """
        The step from recordings to rows, for a plan.

        Raises:
            ValueError: If the model of that name is not the one of the plan.
        """
        from speech_tokenizers.coding.row_coding import RowCoding

        facts = plan.shards.facts
        if self.torch_threads is not None:
            import torch

            torch.set_num_threads(self.torch_threads)
        model, feature_extractor = loaded_model(self.model, worker_device(self.device))
        coding = RowCoding(
            model,
            feature_extractor,
            facts.codec,
            None,
            facts.num_quantizers,
            self.batch_seconds,
            facts.kind,
            facts.deduplicated,
            self.decoding_threads,
        )
        if difference := facts.difference(coding.facts):
            raise ValueError(f"{self.model} is another model than that of {self.plan}: {difference}.")
        return coding


def kept_shard(plan: CorpusPlan, number: int, recordings: list[PlannedRecording]) -> dict[str, Any] | None:
    """
    What a shard that is there says of itself, if it was made from the same recordings; `None` if it is damaged.

    Args:
        plan ([`CorpusPlan`]): The plan.
        number (`int`): Number of the task.
        recordings (list of [`PlannedRecording`]): Those of the task.

    Raises:
        SpeechRowsError: If it was made otherwise.
    """
    from speech_tokenizers.processing.speech_row_format import (
        SpeechRowsError,
        facts_in,
        read_shard_metadata,
        shard_name,
    )

    path = plan.shards.folder / shard_name(number)
    try:
        said = read_shard_metadata(path)
    except SpeechRowsError as error:
        if error.__cause__ is None:
            raise
        return None
    difference = plan.shards.facts.difference(facts_in(said))
    missing = {entry["position"] for entry in said["set_aside"]}
    inputs = {
        position: fingerprint
        for group in read_groups(plan, recordings)
        for position, fingerprint in _fingerprints(recordings, group)
    }
    wanted = [inputs.get(position, "") for position in range(len(recordings)) if position not in missing]
    if (
        difference
        or said["rows_per_shard"] != plan.shards.rows_per_shard
        or said["inputs"] != plan.shards.digest(wanted)
    ):
        what = f"with {difference}" if difference else "from other recordings, texts, times or columns"
        raise SpeechRowsError(
            path, f"was made {what}; choose another folder, or pass --overwrite to make the rows anew."
        )
    return said


def _fingerprints(
    recordings: list[PlannedRecording], group: list[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[int, str]]:
    from speech_tokenizers.coding.row_coding import row_fingerprint
    from speech_tokenizers.processing.recording_fingerprint import recording_fingerprints

    readable = [(position, row) for position, row in group if "reason" not in row]
    found = recording_fingerprints([row for _, row in readable])
    for (position, _), fingerprint in zip(readable, found, strict=True):
        yield position, row_fingerprint(fingerprint, recordings[position].fields)


def _code_group(
    coding: "RowCoding",
    recordings: list[PlannedRecording],
    group: list[tuple[int, dict[str, Any]]],
    rows: list[dict[str, Any]],
    inputs: list[str],
    on_recording: Callable[[], object] | None,
) -> None:
    # Fills in the rows and the fingerprints of a group.
    for position, row in group:
        if "reason" in row:
            rows[position] = {"name": recordings[position].fields["id"], "reason": row["reason"]}
    positions = [position for position, row in group if "reason" not in row]
    audio = [row for _, row in group if "reason" not in row]
    with ThreadPoolExecutor(1) as pool:
        fingerprints = pool.submit(lambda: list(_fingerprints(recordings, group)))
        coded = coding.code([recordings[position].fields for position in positions], audio, on_recording)
        for position, row in zip(positions, coded, strict=True):
            rows[position] = row
        for position, fingerprint in fingerprints.result():
            inputs[position] = fingerprint


@functools.lru_cache(maxsize=1)
def loaded_model(name: str, device: str) -> tuple[Any, Any]:
    """A model, in evaluation mode on a device, and its feature extractor; loaded once in a process."""
    from transformers.utils import logging

    from speech_tokenizers.coding.loading import load
    from speech_tokenizers.modeling.transformers_codecs import as_speech_codec

    logging.disable_progress_bar()
    model, feature_extractor = load(name)
    return as_speech_codec(model.to(device), feature_extractor), feature_extractor


def worker_device(device: str | None) -> str:
    """The device of this worker: of several GPUs one for each worker of a machine in turn."""
    from speech_tokenizers.coding.command_options import choose_device

    chosen = choose_device(device)
    if chosen == "cuda":
        import torch

        return f"cuda:{_worker_number() % torch.cuda.device_count()}"
    return chosen


def _worker_number() -> int:
    # From 0, among the processes of a pool. `multiprocess` is what datatrove starts them by.
    import sys

    for name in ("multiprocess.process", "multiprocessing.process"):
        if (module := sys.modules.get(name)) is not None and (identity := module.current_process()._identity):
            return identity[-1] - 1
    return int(os.environ.get("SLURM_LOCALID", 0))


def finish_if_done(plan: CorpusPlan) -> bool:
    """
    Say that the folder of rows is complete, if all tasks are done.

    Args:
        plan ([`CorpusPlan`]): The plan.

    Returns:
        `bool`: Whether they are.
    """
    from speech_tokenizers.processing.speech_rows import finish_folder

    said = list(_done(plan))
    if len(said) < plan.num_tasks:
        return False
    finish_folder(plan.shards, said)
    return True


def _done(plan: CorpusPlan) -> Iterator[dict[str, Any]]:
    for number in range(plan.num_tasks):
        if (said := plan.done(number)) is None:
            return
        yield said


__all__ = ["CorpusStep", "finish_if_done", "kept_shard", "loaded_model", "worker_device"]
