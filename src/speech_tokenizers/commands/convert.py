# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers convert`: a checkpoint of another project to one of ours."""

import argparse
from pathlib import Path

from speech_tokenizers.commands.frame import UsageError, check_output_folder, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="weights of a SpeechTokenizer or DM-Codec, or what its trainer saved (.pt or .safetensors)",
    )
    parser.add_argument("--config", type=Path, help="config.json of the checkpoint; default: the one beside it")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="the folder to write")
    parser.add_argument(
        "--projection",
        choices=("semantic", "contextual", "shared"),
        default="semantic",
        help="purpose of its projection in training: features of a speech model (SpeechTokenizer, the default), of a "
        "language model, or both (DM-Codec)",
    )
    parser.add_argument(
        "--with-code", action="store_true", help="write the code too, for use without this package installed"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model in the folder")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from transformers.utils import logging

    from speech_tokenizers.conversion.speechtokenizer import convert_checkpoint

    logging.disable_progress_bar()
    check_output_folder(args.output.absolute().parent)
    try:
        model, ignored_fields = convert_checkpoint(
            args.checkpoint, args.output, args.config, args.projection, args.with_code, args.overwrite
        )
    except (ValueError, OSError) as error:
        raise UsageError(one_line(error)) from error
    if ignored_fields:
        print(f"ignored fields of the config, which do not shape the network: {', '.join(ignored_fields)}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.output}: {type(model).__name__}, {parameters / 1e6:.2f} million parameters, equal to the original's")
    return 0
