# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers evaluate understanding`: what a speech language model answers about recordings."""

import argparse
from pathlib import Path

from speech_tokenizers.coding.command_options import add_device_argument, choose_device, count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers evaluate understanding`."""
    parser.add_argument("model", help="speech language model: a checkpoint's name, a folder or a Hub id")
    parser.add_argument(
        "--rows", metavar="ROWS", type=Path, required=True, help="folder of held-out rows that encode-rows wrote"
    )
    parser.add_argument(
        "--task", required=True, help="task to ask about, such as asr or emotion, or one that the model defines"
    )
    parser.add_argument("--split", metavar="NAME", help="value of the column of splits whose rows are asked about")
    parser.add_argument("--split-column", metavar="COLUMN", default="split", help="column of splits; default: split")
    parser.add_argument("--target-column", metavar="COLUMN", help="column of true answers; default: the task's own")
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        help="column whose values are redrawn for intervals; default: speaker, voice or scene, whichever there is",
    )
    parser.add_argument(
        "--answers",
        nargs="+",
        metavar="ANSWER",
        help="answers to choose from; `@FILE` reads them from a file of lines; default: those that the model knows",
    )
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help="measures of answers; default: the task's own")
    parser.add_argument("--language", default="en", help="language of the answers, as a code; default: en")
    parser.add_argument(
        "--audio",
        choices=("own", "other", "none"),
        default="own",
        help="recording that is heard: the row's own, or as a control that of another row, or none; default: own",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed by which other recordings are drawn; default: 0")
    parser.add_argument("--limit", type=count, help="ask about the first so many rows only")
    parser.add_argument("--batch-size", type=count, default=8, help="rows that are asked about at once; default: 8")
    parser.add_argument("--max-new-tokens", type=count, help="most ids of a free answer; default: 256")
    parser.add_argument("--beams", type=count, default=1, help="beams of the search for a free answer; default: 1")
    add_device_argument(parser)
    parser.add_argument("--threads", type=count, default=1, help="threads of the model; default: 1")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder for answers and results; a later run goes on from them",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers evaluate understanding`; returns the exit code."""
    # What it needs takes seconds to import, which `--help` should not.
    from speech_tokenizers.evaluation.understanding.answer_report import evaluate_answers

    args.device = choose_device(args.device)
    return evaluate_answers(args)
