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
    audio_provenance,
    check_kept_outputs,
    plan,
    work,
)
from speech_tokenizers.commands.frame import UsageError, load_model, say


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
    parser.add_argument(
        "--speech",
        metavar="FILE",
        type=Path,
        default=None,
        help="the speech.json of an exported language model: inputs are answers of a server, a JSON list of ids"
        " (.json) or text with the names of codes (.txt)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.processing.code_files import CODE_FILE_SUFFIX, CodeFileError
    from speech_tokenizers.processing.latent_files import load_encoded

    reader, suffixes = load_encoded, (CODE_FILE_SUFFIX,)
    if args.speech is not None:
        reader, suffixes = _answer_reader(args.speech), (".json", ".txt")
    planned = plan(args, "decode", suffixes, (".wav", ".flac", ".ogg", ".opus"), f".{args.format}")
    models: dict[str, Any] = {}  # by name, or why it cannot be loaded
    if args.model is not None:
        models[args.model], _ = load_model(args.model, args.device)

    def model_for(source: Path) -> Any:
        name = args.model or reader(source).model_name
        if name not in models:
            try:
                models[name], _ = load_model(name, args.device)
            except UsageError as error:
                models[name] = error
        if isinstance(models[name], UsageError):
            raise CodeFileError(source, f"its codec cannot be loaded ({models[name]}) Name one with --model.")
        return models[name]

    from speech_tokenizers.coding.file_coding import decode_file, model_facts, provenance

    facts: dict[int, dict[str, str]] = {}  # by the identity of a model

    def facts_for(source: Path) -> dict[str, str]:
        model = model_for(source)
        if id(model) not in facts:
            facts[id(model)] = model_facts(model)
        return facts[id(model)]

    check_kept_outputs(planned, audio_provenance, lambda source: provenance(reader(source), facts_for(source)))

    def decode(source: Path, target: Path, on_progress: Callable[[float], object]) -> None:
        encoded = source if args.speech is None else reader(source)
        decode_file(model_for(source), encoded, target, on_progress, facts_for(source))

    return work(planned, decode, lambda source: reader(source).seconds)


def _answer_reader(path: Path) -> Callable[[Path], Any]:
    # Reads an answer, and tells once what is left out of it.
    from speech_tokenizers.coding.served_speech import read_answer, read_served_speech

    speech = read_served_speech(path)
    told: set[Path] = set()

    def read(source: Path) -> Any:
        codes, num_dropped = read_answer(source, speech)
        if num_dropped and source not in told:
            told.add(source)
            say(f"{source}: {num_dropped} codes are in no whole frame and are left out")
        return codes

    return read
