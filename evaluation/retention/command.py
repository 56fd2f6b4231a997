# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers evaluate retention`: how much of each frequency survives a tokenizer."""

import argparse
from pathlib import Path

from speech_tokenizers.coding.command_options import add_device_argument, choose_device, count
from speech_tokenizers.evaluation.reconstruction.command import MODELS_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers evaluate retention`."""
    parser.add_argument("models", nargs="*", help=MODELS_HELP)
    parser.add_argument("--data", metavar="RECORDINGS", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--peers", nargs="*", default=[], metavar="PEER", help="opus:KBPS, codec2:KBPS, lyra:...")
    parser.add_argument("--num-quantizers", nargs="*", type=int, help="numbers of codebooks; default: all")
    parser.add_argument("--list", type=Path, help="text file of paths relative to the data; default: all audio files")
    parser.add_argument("--pattern", metavar="GLOB", help="use only recordings whose path in the data matches")
    parser.add_argument("--limit", type=count, help="use only the first so many clips")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=int,
        default=[8000, 16000, 24000],
        metavar="HZ",
        help="original sampling rates: a recording is resampled to such a rate, which is what the user has, then to "
        "the tokenizer's, and the result back; default: 8000 16000 24000",
    )
    parser.add_argument(
        "--windows",
        nargs="+",
        type=float,
        default=[25.0, 10.0, 100.0],
        metavar="MS",
        help="lengths of the analysis window in ms; curves are drawn at the first; default: 25 10 100",
    )
    parser.add_argument(
        "--resample",
        choices=("clips", "speakers"),
        default="clips",
        help="unit that the bootstrap redraws; speakers need the column `speaker` in metadata.jsonl of the data. "
        "Default: clips",
    )
    add_device_argument(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads of the models; default: 1")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder for results; a later run goes on from them",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers evaluate retention`; returns the exit code."""
    # What it needs takes seconds to import, which `--help` should not.
    from speech_tokenizers.evaluation.retention.comparison import compare

    args.device = choose_device(args.device)
    return compare(args)
