# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers evaluate speech-lm`: whether a speech language model says what is written."""

import argparse
from pathlib import Path

from speech_tokenizers.coding.command_options import add_device_argument, choose_device, count


METRIC_NAMES = ("speaker_similarity", "dnsmos")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers evaluate speech-lm`."""
    parser.add_argument("model", help="speech language model: a checkpoint's name, a folder or a Hub id")
    parser.add_argument(
        "--rows",
        metavar="ROWS",
        type=Path,
        required=True,
        help="folder of held-out rows that encode-rows wrote, with texts and, for true durations, times",
    )
    parser.add_argument("--split", metavar="NAME", help="value of the column `split` whose rows are spoken")
    parser.add_argument(
        "--recordings",
        metavar="DIR",
        type=Path,
        help="folder of the recordings that the rows were made of; without it nothing is compared with them",
    )
    parser.add_argument(
        "--recognizer",
        nargs="*",
        default=[],
        metavar="FOLDER",
        help="recognisers for error rates: a Vosk folder, or a folder or Hub id of a transformers speech recogniser",
    )
    parser.add_argument(
        "--metrics",
        nargs="*",
        choices=METRIC_NAMES,
        default=METRIC_NAMES,
        help=f"further measures; default: {' '.join(METRIC_NAMES)}",
    )
    parser.add_argument("--language", default="en", help="language of the texts, as a code; default: en")
    parser.add_argument("--limit", type=count, help="use only the first so many sentences")
    parser.add_argument("--temperature", type=float, help="temperature of the draws, 0 for none; default: 1")
    parser.add_argument("--top-k", type=count, help="number of likeliest ids to draw from; default: all")
    parser.add_argument("--top-p", type=float, help="probability of the ids to draw from; default: 1")
    parser.add_argument("--seed", type=int, default=0, help="seed for what is drawn; default: 0")
    add_device_argument(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads of the model; default: 1")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder for results and speech; a later run goes on from them",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers evaluate speech-lm`; returns the exit code."""
    # What it needs takes seconds to import, which `--help` should not.
    from speech_tokenizers.evaluation.speech_lm.comparison import compare

    args.device = choose_device(args.device)
    return compare(args)
