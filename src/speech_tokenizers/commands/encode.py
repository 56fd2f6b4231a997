# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers encode`: speech to files of codes."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from speech_tokenizers.commands.file_jobs import (
    add_input_arguments,
    add_latents_argument,
    add_model_argument,
    add_num_quantizers_argument,
    audio_seconds,
    check_kept_outputs,
    check_kind,
    made_option,
    plan,
    work,
)
from speech_tokenizers.commands.frame import UsageError, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_input_arguments(
        parser, "AUDIO", "audio files, folders of them, or globs", "a folder, or for one file a `.safetensors`"
    )
    add_model_argument(parser)
    add_num_quantizers_argument(parser)
    add_latents_argument(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="type of latents in files; default: float32"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES
    from speech_tokenizers.processing.code_files import CODE_FILE_SUFFIX

    planned = plan(args, "encode", AUDIO_SUFFIXES, (CODE_FILE_SUFFIX,))
    model, _ = load_model(args.model, args.device)
    check_kind(model, args)
    if args.dtype != "float32" and not args.latents and model.kind != "latents":
        raise UsageError(
            f"--dtype {args.dtype} is for latents, but {args.model or 'the model'} gives codes; add --latents, or "
            "leave out --dtype."
        )
    from speech_tokenizers.coding.file_coding import coding_provenance, encode_file, model_facts, provenance
    from speech_tokenizers.coding.loading import DEFAULT_CHECKPOINT, list_checkpoints
    from speech_tokenizers.processing.latent_files import load_encoded
    from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint

    name = args.model or DEFAULT_CHECKPOINT
    if name not in list_checkpoints() and os.path.isdir(name):
        name = os.path.abspath(name)
    facts = model_facts(model)
    made_by = {name: facts[name] for name in ("model", "encoder")}
    option = made_option(model, args.latents, args.num_quantizers, args.dtype)
    check_kept_outputs(
        planned,
        lambda target: provenance(load_encoded(target)),
        lambda source: coding_provenance(made_by, recording_fingerprint(source), **option),
    )

    def encode(source: Path, target: Path, on_progress: Callable[[float], object]) -> None:
        encode_file(model, source, target, args.num_quantizers, name, on_progress, args.latents, args.dtype, facts)

    return work(planned, encode, audio_seconds)
