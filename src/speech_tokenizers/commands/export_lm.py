# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers export-lm`: a speech language model as a plain one, which servers load without code of ours."""

import argparse
from pathlib import Path

from speech_tokenizers.commands.frame import UsageError, check_output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="name, folder or Hub id of a flat speech language model",
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="the folder to write, new or empty")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default=None,
        help="type of the weights (default: the model's own)",
    )
    parser.add_argument(
        "--check",
        metavar="FOLDER",
        type=Path,
        help="write nothing, and find in an exported folder what would break a server",
    )
    parser.add_argument("--codec", metavar="NAME", default=None, help="codec whose codes --check expects")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 0 without a defect, 1 with one."""
    if args.check is not None:
        if args.model is not None or args.output is not None or args.dtype is not None:
            raise UsageError("--check looks at a folder that is there; leave out MODEL, --output and --dtype")
        return _check(args.check, args.codec)
    if args.model is None or args.output is None:
        raise UsageError("name a MODEL and an --output folder, or an exported folder with --check")
    if args.codec is not None:
        raise UsageError("--codec belongs to --check; an export needs no codec")
    return _export(args.model, args.output, args.dtype)


def _export(name: str, output: Path, dtype: str | None) -> int:
    from transformers.utils import logging

    from speech_tokenizers.coding.speech_lm_loading import load_speech_lm_without_codec
    from speech_tokenizers.conversion.causal_lm_export import export_causal_lm

    check_output_folder(output.absolute().parent)
    if Path(name, "adapter_config.json").is_file():
        raise UsageError(
            f"{name} has an adapter that is not merged. Merge it in Python: load the model with it, call"
            " `merge_and_unload()`, save that by `save_pretrained`, and export the saved folder."
        )
    logging.disable_progress_bar()
    model, processor = load_speech_lm_without_codec(name)
    export_causal_lm(model, processor, output, dtype)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kind = type(model.language_model).__name__
    print(f"{output}: {kind}, {parameters / 1e6:.2f} million parameters; README.md there has the prompt")
    return 0


def _check(folder: Path, codec: str | None) -> int:
    from speech_tokenizers.commands.frame import load_model
    from speech_tokenizers.conversion.causal_lm_checks import check_export

    defects = check_export(folder, None if codec is None else load_model(codec, "cpu")[0])
    for defect in defects:
        print(defect)
    if not defects:
        print(f"{folder}: no defect")
    return 1 if defects else 0
