# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers evaluate units`: what discrete units keep of speech, side by side on the same clips."""

import argparse
from pathlib import Path

from speech_tokenizers.coding.command_options import add_device_argument, choose_device, count


MEASURE_NAMES = (
    "agreement",
    "characters",
    "abx",
    "robustness",
    "streaming",
    "rate",
    "usage",
    "ngrams",
    "probes",
    "resynthesis",
)
PERTURBATION_NAMES = ("noise", "noise_nast", "reverberation", "gain", "pitch_shift", "time_stretch", "opus", "mp3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers evaluate units`."""
    parser.add_argument("models", nargs="*", help="unit models or codecs: checkpoint names, local folders or Hub ids")
    parser.add_argument(
        "--systems", nargs="*", default=[], metavar="NAME=MODEL", help="models under the names that tables shall show"
    )
    parser.add_argument(
        "--data",
        metavar="RECORDINGS",
        required=True,
        help="folder of recordings; probes of speakers and gender need the columns `speaker` and `gender` of its "
        "metadata.jsonl",
    )
    parser.add_argument("--list", metavar="FILE", help="the `file_name`s to use, one a line")
    parser.add_argument(
        "--filter",
        metavar="COLUMN=VALUE[,VALUE]",
        nargs="*",
        action="extend",
        default=[],
        help="the rows of the metadata to use",
    )
    parser.add_argument("--limit", type=count, help="use only so many clips, drawn by the seed; default: all")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="JSONL",
        help="phones and their times, of `speech-tokenizers align --unit label`",
    )
    parser.add_argument("--character-labels", type=Path, metavar="JSONL", help="characters and their times, likewise")
    parser.add_argument(
        "--measures",
        nargs="*",
        choices=MEASURE_NAMES,
        default=MEASURE_NAMES,
        help="agreement with phones (PNMI, purities), with characters (CNMI); ABX; robustness and streaming (unit "
        "edit distances); bit rates; code usage; n-gram perplexity; probes; resynthesis (word error rate of the "
        "spoken units); default: all",
    )
    parser.add_argument(
        "--num-quantizers", type=int, help="use the first so many codebooks of each model; default: all"
    )
    parser.add_argument(
        "--robustness-clips", type=int, default=60, help="clips that are perturbed, drawn by the seed; default: 60"
    )
    parser.add_argument(
        "--perturbations", nargs="*", choices=PERTURBATION_NAMES, default=PERTURBATION_NAMES, help="default: all"
    )
    parser.add_argument("--noise", metavar="FOLDER", help="recordings of noise; default: generated, speech-shaped")
    parser.add_argument("--abx-context", choices=("triphone", "any"), default="any", help="default: any")
    parser.add_argument(
        "--abx-tokens", type=int, default=5, help="tokens of a phone and speaker, drawn by the seed; default: 5"
    )
    parser.add_argument(
        "--probe-frames",
        type=int,
        default=20,
        help="labelled frames of a clip for the phone probe, drawn by the seed; default: 20",
    )
    parser.add_argument(
        "--recognizer", metavar="NAME", help="hears the units as the model's vocoder speaks them: see `evaluate`"
    )
    parser.add_argument("--language", default="en", help="language of the speech, as a code; default: en")
    parser.add_argument("--voice", metavar="SPEAKER", help="voice of the vocoder; default: its own, or the first")
    parser.add_argument(
        "--resynthesis-clips", type=int, default=60, help="clips that it speaks, drawn by the seed; default: 60"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of whatever is drawn; default: 0")
    add_device_argument(parser)
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder for results; a later run goes on from them",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers evaluate units`; returns the exit code."""
    # What it needs takes seconds to import, which `--help` should not.
    from speech_tokenizers.evaluation.units.comparison import compare

    args.device = choose_device(args.device)
    return compare(args)
