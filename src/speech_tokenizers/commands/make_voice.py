# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers make-voice`: a recording and its text become a voice, in one file."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    from speech_tokenizers.coding.command_options import add_device_argument

    parser.add_argument("recording", metavar="RECORDING", type=Path, help="audio file, some seconds of one voice")
    parser.add_argument("--text", required=True, help="words of the recording, as text")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="file to write, such as voice.safetensors; `say --voice`"
    )
    parser.add_argument("--model", default=None, help="name, folder or Hub id of a speech language model")
    parser.add_argument("--codec", default=None, help="name or folder of its codec, where it is not found by its name")
    parser.add_argument(
        "--cache",
        action="store_true",
        help="keep what the model remembers of the recording, so that it need not read it again; the file is larger,"
        " and fits these weights alone",
    )
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from transformers.utils import logging

    from speech_tokenizers.coding.command_options import choose_device
    from speech_tokenizers.coding.speech_lm_loading import DEFAULT_VOICE, load_speech_lm
    from speech_tokenizers.commands.frame import say
    from speech_tokenizers.processing.audio_files import load_audio
    from speech_tokenizers.processing.whole_files import check_replaceable

    check_replaceable(args.output)
    logging.disable_progress_bar()
    model, processor = load_speech_lm(args.model or DEFAULT_VOICE, args.codec)
    model.to(choose_device(args.device))
    waveform = load_audio(args.recording, model.config.sampling_rate)
    voice = model.make_voice(args.text, processor, audio=waveform, cache=args.cache)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    voice.save(args.output)
    if model.config.text_alignment != "none":
        say(
            f"this model learnt speech with its {model.config.text_alignment}s before their frames, and the voice has"
            " none: it may be imitated worse. `make_voice(audio_pieces=...)` of Python takes them"
        )
    seconds = voice.num_frames / model.config.frame_rate
    print(f"{args.output}: {seconds:.2f} s, {len(voice.input_ids)} positions{' with a cache' if args.cache else ''}")
    return 0
