# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers encode-corpus`: a corpus of any size to Parquet rows, by many processes or a cluster."""

import argparse
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech_tokenizers.coding.command_options import (
    add_batch_seconds_argument,
    add_device_argument,
    check_batch_seconds,
    count,
)
from speech_tokenizers.commands.frame import UsageError, say
from speech_tokenizers.commands.interruption import raise_lost_interruption
from speech_tokenizers.commands.row_options import add_row_arguments, check_rows_folder, lasting_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a folder of recordings, with or without metadata, a file of metadata, Parquet, tars of WebDataset"
        " (a folder or a quoted pattern), a saved dataset, or a dataset of the Hub, which is read piece by piece",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="ROWS",
        required=True,
        type=Path,
        help="a folder of Parquet files; what an interrupted run left there is continued. ROWS.plan is made beside it",
    )
    add_row_arguments(parser)
    parser.add_argument("--config", metavar="NAME", help="configuration of a dataset of the Hub, such as a language")
    parser.add_argument("--audio-column", metavar="COLUMN", default="audio", help="column of audio; default: `audio`")
    parser.add_argument(
        "--deduplicate", action="store_true", help="store runs of equal frames as one code with a duration"
    )
    parser.add_argument(
        "--webdataset", metavar="TARS", type=Path, help="a folder for tars of WebDataset, besides the rows"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "slurm", "ray"),
        default="local",
        help="place of the work: processes of this machine, a Slurm cluster, or Ray; default: local",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=count,
        default=None,
        help="processes at once; more than one need the extra `corpus`. Default: 1 on this machine, no limit on Slurm",
    )
    parser.add_argument(
        "--engine-options",
        metavar="NAME=VALUE",
        nargs="*",
        action="extend",
        default=[],
        help="options of the engine, as datatrove calls them: for Slurm time=24:00:00 partition=NAME, and perhaps"
        " cpus_per_task=4 gpus_per_task=1 mem_per_cpu_gb=4 tasks_per_job=20",
    )
    parser.add_argument(
        "--decoding-threads", metavar="N", type=count, default=2, help="threads of a process that decode audio"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--overwrite", action="store_true", help="remove the rows that are there, and begin anew")
    choice.add_argument(
        "--retry-set-aside", action="store_true", help="make shards anew whose recordings were set aside"
    )
    add_batch_seconds_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    check_batch_seconds(args.batch_seconds)
    check_rows_folder(args)
    options = _engine_options(args)
    step = _step(args)
    from speech_tokenizers.coding.corpus.preparation import CorpusRequest, prepared_corpus
    from speech_tokenizers.processing.recordings import parse_filter

    request = CorpusRequest(
        args.data,
        str(args.output),
        args.model,
        lasting_name(args.model),
        args.num_quantizers,
        args.kind,
        args.deduplicate,
        args.text_column,
        args.times,
        parse_filter(args.filter),
        args.list,
        args.split,
        args.config,
        args.audio_column,
        args.rows_per_shard,
    )
    with prepared_corpus(request, step, args.overwrite, args.retry_set_aside) as (plan, told):
        for line in told if not args.quiet else ():
            say(f"{args.data}: {line}")
        undone = plan.undone()
        if args.engine != "slurm":
            return _work(args, step, plan, options, undone)
    from speech_tokenizers.coding.corpus.engines import submit_to_slurm
    from speech_tokenizers.coding.corpus.step import finish_if_done

    if not undone:
        finish_if_done(plan)
        return _told(args, plan, 0, 0.0)
    job = submit_to_slurm(step, plan, options)
    say(
        f"encode-corpus: Slurm has {len(undone)} of {plan.num_tasks} shards to do, as job {job}, by"
        f" {plan.folder}/datatrove/launch_script.slurm. The last one completes {args.output}; the same command tells"
        " how far it is, and gives what is left to Slurm again once the job has ended."
    )
    return 0


def _step(args: argparse.Namespace) -> Any:
    from speech_tokenizers.coding.corpus.engines import num_cores
    from speech_tokenizers.coding.corpus.plan import plan_folder
    from speech_tokenizers.coding.corpus.step import CorpusStep
    from speech_tokenizers.coding.corpus.webdataset import tar_folder_is_apart

    if args.webdataset is not None and not tar_folder_is_apart(args.webdataset, args.output):
        raise UsageError(
            f"--webdataset {args.webdataset} lies within {args.output}, whose readers would take the tars for Parquet;"
            " name a folder elsewhere."
        )
    threads = max(1, num_cores() // args.workers) if args.engine == "local" and args.workers is not None else None
    return CorpusStep(
        str(plan_folder(args.output)),
        lasting_name(args.model),
        args.device,
        args.batch_seconds,
        args.decoding_threads,
        threads,
        None if args.webdataset is None else os.path.abspath(args.webdataset),
    )


def _engine_options(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in args.engine_options:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--engine-options {text}: must be NAME=VALUE, such as partition=gpu.")
        found[name] = int(value) if value.lstrip("-").isdigit() else value
    if found and args.engine == "local":
        raise UsageError("--engine-options are for --engine slurm and ray; leave them out.")
    if args.engine == "slurm":
        if missing := [name for name in ("time", "partition") if name not in found]:
            raise UsageError(f"--engine slurm needs --engine-options {' '.join(f'{name}=...' for name in missing)}.")
        if args.workers is not None:
            found.setdefault("workers", args.workers)
    return found


def _work(args: argparse.Namespace, step: Any, plan: Any, options: dict[str, Any], undone: list[int]) -> int:
    from speech_tokenizers.coding.corpus.engines import run_here, run_on_ray, run_workers
    from speech_tokenizers.coding.corpus.preparation import num_shards_there

    size, num_there = plan.shards.rows_per_shard, num_shards_there(plan, undone)
    num_left = sum(min(size, plan.num_recordings - number * size) for number in undone)
    started = time.perf_counter()
    with _progress(args, plan.num_recordings, plan.num_recordings - num_left) as bar:
        if args.engine == "ray":
            run_on_ray(step, plan, args.workers or 1, options)
        elif (args.workers or 1) > 1 and len(undone) > 1:

            def on_shard(num_done: int) -> None:
                bar.update(max(0, min(num_done * size, plan.num_recordings) - bar.n))

            run_workers(step, plan, args.workers, on_shard)
        else:

            def on_recording() -> None:
                bar.update()
                raise_lost_interruption()

            run_here(step, plan, on_recording)
    return _told(args, plan, len(undone) - num_there, time.perf_counter() - started)


@contextlib.contextmanager
def _progress(args: argparse.Namespace, total: int, initial: int) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=total, initial=initial, desc="encode-corpus", unit="file", disable=args.quiet or None) as bar:
        yield bar


def _told(args: argparse.Namespace, plan: Any, num_new: int, elapsed: float) -> int:
    # What was done, and what it takes; returns the exit code.
    from speech_tokenizers.coding.corpus.preparation import stored_rows
    from speech_tokenizers.processing.speech_rows import set_aside_path

    stored = stored_rows(args.output)
    hours = stored.seconds / 3600
    if not args.quiet:
        say(
            f"encode-corpus: {stored.num_rows} rows of {hours:.3f} hours in {plan.num_tasks} shards,"
            f" {stored.num_bytes / 1e6:.2f} MB: {args.output}"
        )
        if num_new == plan.num_tasks and elapsed:
            say(f"encode-corpus: {elapsed:.1f} s, {hours / elapsed:.5f} hours of speech a second")
        elif num_new:
            say(f"encode-corpus: {num_new} of {plan.num_tasks} shards were made now, in {elapsed:.1f} s")
        if stored.bits_per_code is not None:
            what = "code" if plan.shards.facts.kind == "codes" else "number"
            say(
                f"encode-corpus: a {what} takes {stored.bits_per_code:.2f} bits on the disk,"
                f" {stored.packed_bits_per_code:.2f} before compression"
            )
    if stored.num_set_aside:
        number = stored.num_set_aside
        what = "1 recording was" if number == 1 else f"{number} recordings were"
        say(f"{what} set aside; see {set_aside_path(args.output)}")
    return int(stored.num_set_aside > 0)
