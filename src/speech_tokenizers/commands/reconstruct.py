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
    audio_provenance,
    audio_seconds,
    check_kept_outputs,
    check_kind,
    made_option,
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

    planned = plan(args, "reconstruct", AUDIO_SUFFIXES, (".wav", ".flac", ".ogg", ".opus"), f".{args.format}")
    model, _ = load_model(args.model, args.device)
    check_kind(model, args)
    from speech_tokenizers.coding.file_coding import coding_provenance, model_facts, reconstruct_file
    from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint

    facts = model_facts(model)
    option = made_option(model, args.latents, args.num_quantizers)
    check_kept_outputs(
        planned,
        audio_provenance,
        lambda source: coding_provenance(facts, recording_fingerprint(source), **option),
    )

    def reconstruct(source: Path, target: Path, on_progress: Callable[[float], object]) -> None:
        reconstruct_file(
            model, source, target, args.num_quantizers, lambda seconds: on_progress(seconds / 2), args.latents, facts
        )

    return work(planned, reconstruct, audio_seconds)
