# SPDX-License-Identifier: Apache-2.0
"""Options and checks of the commands that write rows."""

import argparse
import os
from pathlib import Path

from speech_tokenizers.coding.command_options import count
from speech_tokenizers.commands.file_jobs import add_num_quantizers_argument
from speech_tokenizers.commands.frame import UsageError, check_output_folder


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which recordings become rows, and of what."""
    parser.add_argument("--model", metavar="CODEC", required=True, help="checkpoint name, folder or Hub id")
    add_num_quantizers_argument(parser)
    parser.add_argument(
        "--kind",
        choices=("codes", "latents"),
        help="content of the rows: codes, or latents in float16 (continuous tokens, a codec's frames before"
        " quantization, an encoder's features); default: the model's own kind",
    )
    parser.add_argument(
        "--times",
        metavar="FILE",
        type=Path,
        help="times of words and phones, as `align` writes them; default: the metadata's columns `words` and `phones`",
    )
    parser.add_argument(
        "--text-column", metavar="COLUMN", help="column of the metadata with what is said; default: `text`"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="rows whose column `split` is NAME (default: all), or split of a saved or Hub dataset (default: train)",
    )
    parser.add_argument("--list", metavar="FILE", help="the `file_name`s to encode, one a line")
    parser.add_argument(
        "--filter",
        metavar="COLUMN=VALUE[,VALUE]",
        nargs="*",
        action="extend",
        default=[],
        help="the rows of the metadata to encode",
    )
    parser.add_argument(
        "--rows-per-shard", metavar="N", type=count, default=1000, help="recordings in a Parquet file (default: 1000)"
    )


def check_rows_folder(args: argparse.Namespace) -> None:
    """Raises `UsageError` if `--output` cannot be a folder of rows."""
    if args.output.suffix.lower() in (".parquet", ".jsonl", ".arrow") and not args.output.is_dir():
        raise UsageError(f"--output {args.output} names a file, but several are written; name a folder.")
    check_output_folder(args.output)
    data = Path(os.path.realpath(args.data))
    if data.is_dir() and Path(os.path.realpath(args.output)).is_relative_to(data):
        raise UsageError(
            f"--output {args.output} lies within {args.data}, whose readers would take the rows for recordings; name"
            " a folder elsewhere."
        )


def lasting_name(name: str) -> str:
    """The name of a model by which it is found from another folder, too."""
    from speech_tokenizers.coding.loading import list_checkpoints

    return os.path.abspath(name) if name not in list_checkpoints() and os.path.isdir(name) else name


__all__ = ["add_row_arguments", "check_rows_folder", "lasting_name"]
