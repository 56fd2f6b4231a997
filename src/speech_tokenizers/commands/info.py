# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers info`: what a checkpoint or a file is."""

import argparse
import os

from speech_tokenizers import __version__
from speech_tokenizers.commands.frame import UsageError, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "subject",
        metavar="MODEL|CODES|AUDIO",
        nargs="?",
        help="a checkpoint, a file of codes or latents, or an audio file; without it, the checkpoints of this "
        "installation",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.coding.loading import DEFAULT_CHECKPOINT, list_checkpoints, released_checkpoints
    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES

    if args.subject is None:
        print(f"speech-tokenizers {__version__}")
        names = list_checkpoints()
        print("checkpoints:" if names else "checkpoints: none")
        for name in names:
            print(f"  {name}{' (default)' if name == DEFAULT_CHECKPOINT else ''}")
        if others := sorted(released_checkpoints().keys() - {*names}):
            print(f"not installed, in speech-tokenizers-checkpoints: {', '.join(others)}")
        return 0
    if args.subject not in list_checkpoints() and os.path.isfile(args.subject):
        is_codes = args.subject.endswith(".safetensors")
        facts = _code_facts(args.subject) if is_codes else _audio_facts(args.subject)
    elif args.subject.lower().endswith((*AUDIO_SUFFIXES, ".safetensors")) and not os.path.exists(args.subject):
        raise UsageError(f"{args.subject}: there is no such file; check the spelling.")
    else:
        facts = _model_facts(args.subject)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _code_facts(path: str) -> dict[str, object]:
    from speech_tokenizers.processing.code_files import AudioCodes, CodeFileError
    from speech_tokenizers.processing.latent_files import load_encoded

    try:
        encoded = load_encoded(path)
    except CodeFileError as error:
        raise UsageError(str(error)) from error
    if isinstance(encoded, AudioCodes):
        kind = {"codebooks": f"{encoded.num_quantizers} of {encoded.codebook_size} entries"}
    else:
        kind = {"latents": f"{encoded.hidden_size} numbers a frame, {encoded.dtype}"}
    return {
        "codec": encoded.model_name,
        **kind,
        "frames": f"{encoded.num_frames} of {encoded.hop_length} samples",
        "duration": f"{encoded.seconds:.3f} s ({encoded.num_samples} samples at {encoded.sampling_rate} Hz)",
        "bit rate": f"{encoded.bits_per_second / 1000:.3f} kbit/s",
    }


def _audio_facts(path: str) -> dict[str, object]:
    from speech_tokenizers.processing.audio_files import AudioFileError, AudioReader

    try:
        with AudioReader(path, 16000) as reader:
            return {
                "sampling rate": f"{reader.file_sampling_rate} Hz",
                "channels": reader.num_channels,
                "duration": f"{reader.seconds:.3f} s",
            }
    except AudioFileError as error:
        raise UsageError(str(error)) from error


def _model_facts(name: str) -> dict[str, object]:
    from speech_tokenizers.modeling.codec_interface import codebook_sizes, codebook_strides

    model, _ = load_model(name, "cpu")
    kilobits = model.bits_per_second / 1000
    facts: dict[str, object] = {
        "model": model.family,
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} million",
        "sampling rate": f"{model.sampling_rate} Hz",
        "frame rate": f"{model.frame_rate:g} Hz ({model.hop_length} samples a frame)",
    }
    if model.kind == "latents":
        facts["latents"] = f"{model.latent_dim} numbers a frame"
        facts["bit rate"] = f"{kilobits:g} kbit/s in half precision"
    else:
        sizes = codebook_sizes(model)
        facts["codebooks"] = f"{len(sizes)} of {model.codebook_size} entries"
        facts["bit rate"] = f"{kilobits:g} kbit/s, or {kilobits / len(sizes):g} a codebook"
        if len({*sizes}) > 1:
            facts["codebooks"] = f"{len(sizes)} of {', '.join(map(str, sizes))} entries"
        if len({*zip(sizes, codebook_strides(model), strict=True)}) > 1:
            facts["bit rate"] = f"{kilobits:g} kbit/s"
    facts["streaming"] = "frame by frame" if model.is_streamable else "in windows with look-ahead"
    facts["decodes"] = ", ".join(model.decodable_kinds) or "nothing, for want of a vocoder"
    facts["fingerprint"] = model.fingerprint() or "none yet"
    return facts
