# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers evaluate`: how well codecs reconstruct speech, side by side on the same clips."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from speech_tokenizers.coding.command_options import add_device_argument, choose_device, count


MODELS_HELP = (
    "codecs and models of continuous latents: checkpoint names, local folders or Hub ids; NAME:latents is a codec "
    "whose decoder gets the frames before quantization"
)
METRIC_NAMES = ("pesq", "stoi", "estoi", "mel_distance", "si_sdr", "dnsmos", "speaker_similarity")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers evaluate`."""
    parser.add_argument("models", nargs="*", help=MODELS_HELP)
    parser.add_argument("--data", metavar="RECORDINGS", type=Path, required=True, help="folder of recordings")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=[],
        metavar="PEER",
        help="opus:KBPS, codec2:KBPS, lyra:KBPS=FOLDER, or files:NAME=FOLDER[:OLD=NEW] for a codec that has decoded "
        "the same clips into the files of FOLDER; where recordings have OLD in their names, these have NEW",
    )
    parser.add_argument(
        "--num-quantizers",
        nargs="*",
        type=int,
        help="measure the models with these numbers of codebooks; default: all",
    )
    add_measuring_arguments(parser, METRIC_NAMES)


def add_measuring_arguments(parser: argparse.ArgumentParser, metrics: Sequence[str]) -> None:
    """
    The arguments that say on which clips of the data to measure what.

    Args:
        metrics (sequence of `str`): Names of the metrics that are measured by default.
    """
    parser.add_argument("--list", type=Path, help="text file of paths relative to the data; default: all audio files")
    parser.add_argument("--pattern", metavar="GLOB", help="use only recordings whose path in the data matches")
    parser.add_argument(
        "--transcripts",
        type=Path,
        nargs="+",
        help="JSON lines with file_name and text, or .tsv lines of the two; the last file that has a clip counts; "
        "default: metadata.jsonl of the data",
    )
    parser.add_argument("--limit", type=count, help="use only the first so many clips")
    parser.add_argument(
        "--metrics", nargs="*", choices=METRIC_NAMES, default=metrics, help=f"default: {' '.join(metrics)}"
    )
    parser.add_argument(
        "--recognizer",
        nargs="*",
        default=[],
        metavar="FOLDER",
        help="recognisers for error rates: a Vosk folder, or a folder or Hub id of a transformers speech recogniser",
    )
    parser.add_argument("--language", default="en", help="language of the speech, as a code; default: en")
    add_device_argument(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads of the models; default: 1")
    parser.add_argument("--examples", type=int, default=3, help="clips to listen to in the HTML page; default: 3")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder for results; a later run goes on from them",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers evaluate`; returns the exit code."""
    # What it needs takes seconds to import, which `--help` should not.
    from speech_tokenizers.evaluation.reconstruction.comparison import compare

    args.device = choose_device(args.device)
    return compare(args)
