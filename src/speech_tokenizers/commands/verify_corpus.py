# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers verify-corpus`: encode a sample of a corpus again, and compare."""

import argparse
import statistics
from pathlib import Path

from speech_tokenizers.coding.command_options import (
    add_batch_seconds_argument,
    add_device_argument,
    check_batch_seconds,
    count,
)
from speech_tokenizers.commands.frame import UsageError, say
from speech_tokenizers.commands.interruption import raise_lost_interruption


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("rows", metavar="ROWS", type=Path, help="a folder that `encode-corpus` wrote")
    parser.add_argument("--sample", metavar="N", type=count, default=100, help="recordings to encode again")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of these")
    parser.add_argument("--model", metavar="CODEC", help="checkpoint name, folder or Hub id; default: what rows name")
    parser.add_argument(
        "--plan", metavar="FOLDER", type=Path, help="the plan of `encode-corpus`; default: ROWS.plan beside ROWS"
    )
    parser.add_argument(
        "--least-agreement",
        metavar="SHARE",
        type=float,
        default=1.0,
        help="share of the frames of each recording that must be the same; default: 1. A code may differ where two"
        " entries are equally near up to rounding, as on another kind of processor",
    )
    add_batch_seconds_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from tqdm import tqdm

    from speech_tokenizers.coding.corpus.plan import CorpusPlan, plan_folder
    from speech_tokenizers.coding.corpus.step import CorpusStep
    from speech_tokenizers.coding.corpus.verification import verify_corpus
    from speech_tokenizers.processing.speech_rows import read_rows_facts

    check_batch_seconds(args.batch_seconds)
    if not 0.0 < args.least_agreement <= 1.0:
        raise UsageError(f"--least-agreement must be above 0 and at most 1, but is {args.least_agreement:g}.")
    facts = read_rows_facts(args.rows)  # which checks that the folder is whole
    plan = CorpusPlan.read(args.plan or plan_folder(args.rows), args.rows)
    faults = []
    for number in tqdm(range(plan.num_tasks), desc="files", unit="shard", disable=args.quiet or None):
        faults += plan.faults(number)
        raise_lost_interruption()
    for fault in faults:
        say(f"failed: {fault}")
    if faults:
        say(f"verify-corpus: {len(faults)} of the files of {plan.num_tasks} shards are not as they were written")
        return 1
    step = CorpusStep(str(plan.folder), args.model or facts.codec, args.device, args.batch_seconds)
    verified, failed, num_set_aside = [], 0, 0
    total = min(args.sample, plan.num_recordings)
    with tqdm(total=total, desc="recordings", unit="file", disable=args.quiet or None) as bar:
        for row in verify_corpus(plan, step, args.sample, args.seed):
            raise_lost_interruption()
            bar.update()
            if row.is_set_aside:
                num_set_aside += 1
                continue
            verified.append(row)
            if row.reason is not None or row.agreement < args.least_agreement:
                failed += 1
                say(f"failed: {row.name}: {row.reason or f'{100 * row.agreement:.3f} % of its frames are the same'}")
    if not verified:
        say(f"verify-corpus: all {num_set_aside} recordings of the sample were set aside; raise --sample")
        return 1
    mean = statistics.fmean(row.agreement for row in verified)
    say(
        f"verify-corpus: {plan.num_tasks} shards hold what was written; of {len(verified)} recordings that were"
        f" encoded again, {len(verified) - failed} agree, {100 * mean:.4f} % of frames on average"
        + (f"; {num_set_aside} more were set aside, and would be so again" if num_set_aside else "")
    )
    return int(failed > 0)
