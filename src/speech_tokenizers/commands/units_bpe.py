# SPDX-License-Identifier: Apache-2.0
"""The command `units-bpe`: learn which units to merge, from files of units."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from speech_tokenizers.commands.frame import UsageError, check_output_folder


if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", metavar="UNITS", nargs="+", type=Path, help="files that `units` wrote as jsonl, or fairseq's .km"
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="the folder to write")
    parser.add_argument("--codebook-size", metavar="K", required=True, type=int, help="number of units")
    parser.add_argument(
        "--vocab-size", metavar="N", required=True, type=int, help="ids in all: K, two special ones, and merges"
    )
    parser.add_argument(
        "--min-frequency",
        metavar="N",
        type=int,
        default=2,
        help="least frequency of a pair that is merged (default: 2)",
    )
    parser.add_argument(
        "--frame-rate",
        metavar="HZ",
        type=float,
        default=50.0,
        help="frame rate of the units, for the bit rates (default: 50)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")


def run(args: argparse.Namespace) -> int:
    from speech_tokenizers.processing.unit_bpe import train_unit_bpe

    if (args.output / "tokenizer.json").exists() and not args.overwrite:
        raise UsageError(f"{args.output} holds a vocabulary; pass --overwrite to replace it.")
    check_output_folder(args.output)
    sequences = [frames for path in args.inputs for frames in load_frames(path)]
    bpe = train_unit_bpe(sequences, args.codebook_size, args.vocab_size, args.min_frequency)
    figures = bpe.compression(sequences, args.frame_rate)
    bpe.save_pretrained(args.output)
    print(f"{args.output}: {len(bpe)} ids for {bpe.codebook_size} units, from {len(sequences)} recordings")
    for name, value in figures.items():
        print(f"{name:<{max(map(len, figures))}}  {value:.4g}")
    return 0


def load_frames(path: Path) -> "list[np.ndarray]":
    """
    Units of one codebook from a file, one a frame where it has durations.

    Args:
        path (`Path`): A `.km` file, with `.durations` beside it if its units are de-duplicated, or slamkit's JSON
            lines.

    Raises:
        UnitFileError: If the file is missing or malformed.
        ValueError: If the durations do not fit.
    """
    from speech_tokenizers.processing.unit_exports import UnitLine, load_km, load_unit_lines
    from speech_tokenizers.processing.unit_sequences import expand
    from speech_tokenizers.processing.whole_files import beside

    if path.suffix != ".km":
        lines = load_unit_lines(path)
    else:
        durations_path = beside(path.with_suffix(""), ".durations")
        sequences = load_km(path)
        durations = load_km(durations_path) if durations_path.exists() else [None] * len(sequences)
        if len(durations) != len(sequences):
            raise ValueError(f"{durations_path} has {len(durations)} lines, but {path} has {len(sequences)}.")
        lines = [UnitLine(str(path), *pair) for pair in zip(sequences, durations, strict=True)]
    return [line.units if line.durations is None else expand(line.units, line.durations) for line in lines]
