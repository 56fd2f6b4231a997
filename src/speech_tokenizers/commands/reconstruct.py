# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers reconstruct`: speech through the codec and back."""

import argparse
from collections.abc import Callable
from pathlib import Path

from speech_tokenizers.commands.file_jobs import (
    add_format_argument,
    add_input_arguments,
    add_latents_argument,
    add_model_argument,
    add_num_quantizers_argument,
    audio_seconds,
    check_kind,
    plan,
    work,
)
from speech_tokenizers.commands.frame import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_input_arguments(
        parser, "AUDIO", "audio files, folders of them, or globs", "a folder, or for one file an audio file"
    )
    add_model_argument(parser)
    add_num_quantizers_argument(parser)
    add_latents_argument(parser)
    add_format_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES

    jobs = plan(args, AUDIO_SUFFIXES, (".wav", ".flac", ".ogg", ".opus"), f".{args.format}")
    model = load_model(args.model, args.device)
    check_kind(model, args)

    def reconstruct(source: Path, target: Path, on_progress: Callable[[float], object]) -> None:
        from speech_tokenizers.coding.file_coding import reconstruct_file

        reconstruct_file(
            model, source, target, args.num_quantizers, lambda seconds: on_progress(seconds / 2), args.latents
        )

    return work(jobs, reconstruct, "reconstruct", audio_seconds)
