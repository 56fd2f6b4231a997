# SPDX-License-Identifier: Apache-2.0
"""
What runs the tasks of a plan: this process, or datatrove's executors on one machine, a Slurm cluster or Ray.

datatrove counts a task as a rank, and remembers which ranks are complete. The plan alone decides what is done, so
that its memory is made to agree with the plan before each start.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from speech_tokenizers.coding.corpus.plan import CorpusPlan
from speech_tokenizers.coding.corpus.step import CorpusStep, finish_if_done
from speech_tokenizers.processing.whole_files import write_whole


if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor

# Seconds between two looks at how many tasks are done.
_GLANCE = 0.5
# Where the number of Slurm's job is kept.
_JOB = "slurm_job"


def run_here(step: CorpusStep, plan: CorpusPlan, on_recording: Callable[[], object] | None = None) -> None:
    """
    Do all tasks of a plan in this process.

    Args:
        step ([`CorpusStep`]): The step.
        plan ([`CorpusPlan`]): The plan.
        on_recording (callable, *optional*): Function that is called after each recording that is encoded.

    Raises:
        SpeechRowsError: If a shard that is there was made otherwise.
        OSError: If a shard cannot be written.
    """
    for number in plan.undone():
        step.run(plan, number, on_recording)
    finish_if_done(plan)


def run_workers(
    step: CorpusStep, plan: CorpusPlan, num_workers: int, on_shard: Callable[[int], object] | None = None
) -> None:
    """
    Do all tasks of a plan in processes of this machine, by datatrove.

    Args:
        step ([`CorpusStep`]): The step.
        plan ([`CorpusPlan`]): The plan.
        num_workers (`int`): Number of processes.
        on_shard (callable, *optional*): Function that is called now and then with the number of tasks that are done.

    Raises:
        MissingPackageError: If datatrove is not installed.
        RuntimeError: If a process was killed, as for lack of memory.
    """
    _require_datatrove()
    from concurrent.futures.process import BrokenProcessPool

    from speech_tokenizers.coding.corpus.pool_executor import PoolExecutor

    executor = PoolExecutor([step], tasks=plan.num_tasks, workers=num_workers, logging_dir=_logs(plan))
    _agree(executor, plan)
    with _watching(plan, on_shard):
        try:
            executor.run()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process was killed, perhaps for lack of memory; start the same command again, with fewer --workers."
            ) from error
    finish_if_done(plan)


def submit_to_slurm(step: CorpusStep, plan: CorpusPlan, options: Mapping[str, Any]) -> str | None:
    """
    Hand the tasks of a plan that are not done to Slurm. The last of them completes the folder.

    Args:
        step ([`CorpusStep`]): The step.
        plan ([`CorpusPlan`]): The plan, in a folder that all machines see.
        options (`dict`): Arguments of datatrove's `SlurmPipelineExecutor`, such as `time`, `partition`, `workers`,
            `cpus_per_task`, `gpus_per_task`, `tasks_per_job`, `env_command`.

    Returns:
        `str`: Number of the job; `None` if there was nothing to do. Where an earlier job still waits or runs, nothing
            is submitted, and its number is given.

    Raises:
        MissingPackageError: If datatrove is not installed.
        ValueError: If an option is missing or unknown, or this machine has no `sbatch`.
    """
    if (job := _running_job(plan)) is not None:
        return job
    if shutil.which("sbatch") is None:
        raise ValueError("this machine has no `sbatch`; start the command where jobs of Slurm are submitted.")
    _require_datatrove()
    from datatrove.executor.slurm import SlurmPipelineExecutor

    # The job finds the programs of this environment.
    environment = f"export PATH={shlex.quote(os.path.join(sys.prefix, 'bin'))}:$PATH"
    arguments = {
        "job_name": "encode-corpus",
        "qos": "",
        "env_command": environment,
        "logging_dir": _logs(plan),
        **options,
    }
    try:
        executor = SlurmPipelineExecutor([step], tasks=plan.num_tasks, **arguments)
    except TypeError as error:
        raise ValueError(
            f"`options` of Slurm: {error}; give `time` and `partition`, and what else the cluster asks for."
        ) from error
    _agree(executor, plan)
    executor.run()
    if executor.job_id in (None, -1):
        return None
    write_whole(plan.folder / _JOB, str(executor.job_id))
    return str(executor.job_id)


def _running_job(plan: CorpusPlan) -> str | None:
    # The job that has the tasks, if Slurm still knows it as waiting or running.
    path = plan.folder / _JOB
    if not path.is_file() or shutil.which("squeue") is None:
        return None
    job = path.read_text(encoding="utf-8")
    asked = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False)
    return job if asked.returncode == 0 and asked.stdout.strip() else None


def run_on_ray(step: CorpusStep, plan: CorpusPlan, num_workers: int, options: Mapping[str, Any]) -> None:
    """
    Do all tasks of a plan on a Ray cluster, or on a local one where there is none.

    Args:
        step ([`CorpusStep`]): The step.
        plan ([`CorpusPlan`]): The plan, in a folder that all machines see.
        num_workers (`int`): Number of tasks at once.
        options (`dict`): Further arguments of datatrove's `RayPipelineExecutor`, such as `cpus_per_task`.

    Raises:
        MissingPackageError: If datatrove or Ray is not installed.
        ValueError: If an option is unknown.
    """
    from speech_tokenizers.processing.optional_packages import require_package

    _require_datatrove()
    require_package("ray", "the engine `ray`", command="pip install 'datatrove[ray]'")
    from datatrove.executor.ray import RayPipelineExecutor

    arguments = {"workers": num_workers, "mem_per_cpu_gb": 1, "logging_dir": _logs(plan), **options}
    try:
        executor = RayPipelineExecutor([step], tasks=plan.num_tasks, **arguments)
    except TypeError as error:
        raise ValueError(f"`options` of Ray: {error}.") from error
    _agree(executor, plan)
    executor.run()
    if not finish_if_done(plan):
        undone = plan.undone()
        raise RuntimeError(
            f"{len(undone)} of {plan.num_tasks} tasks were not done, first {undone[0]}; {_logs(plan)}/logs tells why."
        )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_datatrove() -> None:
    from speech_tokenizers.processing.optional_packages import require_package

    # Its loggers take the level from here when they are made, in this process and in others.
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")
    require_package("datatrove", "more than one process", command="pip install 'speech-tokenizers[corpus]'")


def _logs(plan: CorpusPlan) -> str:
    return str(plan.folder / "datatrove")


def _agree(executor: "PipelineExecutor", plan: CorpusPlan) -> None:
    undone = set(plan.undone())
    for number in range(plan.num_tasks):
        if number not in undone:
            executor.mark_rank_as_completed(number)
        elif executor.is_rank_completed(number):
            executor.logging_dir.rm(f"completions/{number:05d}")


@contextlib.contextmanager
def _watching(plan: CorpusPlan, on_shard: Callable[[int], object] | None) -> Iterator[None]:
    # Tells how many tasks are done, as long as the block lasts.
    if on_shard is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_GLANCE):
            on_shard(plan.num_done())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        on_shard(plan.num_done())


__all__ = ["num_cores", "run_here", "run_on_ray", "run_workers", "submit_to_slurm"]
