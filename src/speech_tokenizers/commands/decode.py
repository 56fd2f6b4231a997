# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers decode`: files of codes to speech."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speech_tokenizers.commands.file_jobs import (
    add_format_argument,
    add_input_arguments,
    add_model_argument,
    plan,
    work,
)
from speech_tokenizers.commands.frame import UsageError, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_input_arguments(
        parser,
        "CODES",
        "files of codes or latents, folders of them, or globs",
        "a folder, or for one file an audio file",
    )
    add_model_argument(parser, "the codec to use instead of the one that the codes name")
    add_format_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.processing.code_files import CODE_FILE_SUFFIX, CodeFileError
    from speech_tokenizers.processing.latent_files import load_encoded

    jobs = plan(args, (CODE_FILE_SUFFIX,), (".wav", ".flac", ".ogg", ".opus"), f".{args.format}")
    models: dict[str, Any] = {}
    if args.model is not None:
        models[args.model] = load_model(args.model, args.device)

    def decode(source: Path, target: Path, on_progress: Callable[[float], object]) -> None:
        from speech_tokenizers.coding.file_coding import decode_file

        name = args.model or load_encoded(source).model_name
        if name not in models:
            try:
                models[name] = load_model(name, args.device)
            except UsageError as error:
                raise CodeFileError(source, f"its codec cannot be loaded ({error}) Name one with --model.") from error
        decode_file(models[name], source, target, on_progress)

    return work(jobs, decode, "decode", lambda source: load_encoded(source).seconds)
