# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers benchmark`: speed, latency and memory, side by side in one run."""

import argparse
from pathlib import Path


SECTIONS = ("encodec", "decoders", "bf16", "streaming", "tokens", "memory", "training", "units")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers benchmark`."""
    parser.add_argument(
        "--sections",
        nargs="*",
        choices=SECTIONS,
        default=SECTIONS,
        help="encodec: against transformers' EncodecModel of the same architecture; decoders: inverse STFT against "
        "SEANet; bf16: against fp32, with the agreement of codes; streaming: latency of a 20 ms frame; tokens: "
        "continuous tokens, streamed; memory: a long file; training: where the time of a step goes, and its memory on "
        "a GPU; units: against their encoder alone; default: all",
    )
    parser.add_argument(
        "--model",
        help="checkpoint for bf16, memory, tokens and training, where it suits them: name, folder or Hub id; default: "
        "presets with random weights",
    )
    parser.add_argument(
        "--recipe",
        nargs="+",
        metavar=("RECIPE", "key=value"),
        help="recipe of the training section and what differs from it, such as mixed_precision=bf16; its recordings "
        "are --audio; default: rvq_codec_16khz_4kbps",
    )
    parser.add_argument(
        "--audio", type=Path, help="recording for training, and for bf16 with --model; default: synthetic sound"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the timed audio; default: 4")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats; default: 5")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--memory-minutes", type=float, default=60.0, help="length of the long file; default: 60")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="folder for benchmark.json, benchmark.md and benchmark.html"
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers benchmark`; returns the exit code."""
    # What it needs takes seconds to import, which `--help` should not.
    from speech_tokenizers.evaluation.speed.benchmark import benchmark

    return benchmark(args)
