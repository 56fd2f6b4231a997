# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers say`: speech from text, by a speech language model."""

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    from speech_tokenizers.coding.command_options import add_device_argument

    parser.add_argument(
        "text", metavar="TEXT", help="text to say; `-` reads standard input, a text a line; `@FILE` a file of lines"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="audio file to write; for several texts a folder, which gets 0001.wav, 0002.wav, ...; with --stream one"
        " file, or `-` for samples on standard output (mono, 16 bits, little-endian)",
    )
    parser.add_argument("--model", default=None, help="name, folder or Hub id of a speech language model")
    parser.add_argument("--codec", default=None, help="name or folder of its codec, where it is not found by its name")
    parser.add_argument(
        "--temperature",
        type=float,
        default=None,
        help="temperature of the draws; 0 takes the likeliest code (default: 0 with an alignment, else 0.8)",
    )
    parser.add_argument("--top-k", type=int, default=None, metavar="K", help="draw from the K likeliest codes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--voice", type=Path, default=None, metavar="FILE", help="voice that `make-voice` made")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="say a text again, at most N times, that did not end, is far too short or repeats itself",
    )
    parser.add_argument("--times", action="store_true", help="print when each word is said, as JSON lines")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="write audio while the model speaks, and say texts of several lines sentence by sentence, as they arrive",
    )
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    import torch
    from transformers.utils import logging

    from speech_tokenizers.coding.command_options import choose_device
    from speech_tokenizers.coding.speech_lm_loading import DEFAULT_VOICE, load_speech_lm
    from speech_tokenizers.commands.frame import UsageError
    from speech_tokenizers.modeling.speech_lm_voices import Voice

    arriving = args.stream and args.text == "-"
    texts = [] if arriving else list(_texts(args.text))
    if not texts and not arriving:
        raise UsageError(f"{args.text}: there is no text to say")
    is_folder = _is_folder(args, len(texts))
    if args.retries < 0:
        raise UsageError(f"--retries must be at least 0, but is {args.retries}")
    if args.top_k is not None and args.top_k < 1:
        raise UsageError(f"--top-k must be at least 1, but is {args.top_k}")
    logging.disable_progress_bar()
    model, processor = load_speech_lm(args.model or DEFAULT_VOICE, args.codec)
    model.to(choose_device(args.device))
    options: dict[str, Any] = {"top_k": args.top_k}
    if args.voice is not None:
        options["voice"] = Voice.load(args.voice)
    if args.times and model.config.text_alignment == "none":
        raise UsageError("--times needs a model with a `text_alignment`; this one does not know when words are said")
    # All texts are looked at before the first is said.
    for place, text in texts:
        _check(text, place, model, processor, options.get("voice"))
    temperature = args.temperature
    if temperature is None:
        temperature = 0.8 if model.config.text_alignment == "none" else 0.0
    if args.retries and not temperature:
        raise UsageError("--retries need a --temperature above 0; without one, every try says the same")
    options["temperature"] = temperature
    if args.stream:
        options["generators"] = [torch.Generator(model.device).manual_seed(args.seed)]
        lines = sys.stdin if arriving else [f"{text}\n" for _, text in texts]
        whole = args.text if not arriving and not args.text.startswith("@") else None
        return _stream(args.output, model, processor, lines if whole is None else whole, options)
    cut = 0
    for number, (_, text) in enumerate(texts, 1):
        options["generators"] = [torch.Generator(model.device).manual_seed(args.seed)]
        said = model.generate_speech(text, processor, retries=args.retries, **options)
        path = args.output / f"{number:04d}.wav" if is_folder else args.output
        _write(path, said, model.config.sampling_rate)
        cut += _told(path, text, said, model.config.sampling_rate, args.times)
    return 1 if cut else 0


def _is_folder(args: argparse.Namespace, num_texts: int) -> bool:
    from speech_tokenizers.commands.frame import UsageError

    if args.stream:
        if args.times:
            raise UsageError("--times are known once a text is said; leave out --stream")
        if args.retries:
            raise UsageError("--retries: what was heard cannot be said again; leave out --stream")
        if args.output.is_dir():
            raise UsageError(f"--output {args.output} is a folder, but --stream writes one file; name a file, or `-`")
        return False
    if str(args.output) == "-":
        raise UsageError("--output - writes samples as they come; add --stream, or name a file")
    is_folder = num_texts > 1 or args.output.is_dir() or (args.text.startswith("@") and not args.output.suffix)
    if is_folder and args.output.suffix and not args.output.is_dir():
        raise UsageError(f"--output {args.output} names a file, but there are {num_texts} texts; name a folder")
    return is_folder


def _texts(argument: str) -> Iterator[tuple[str, str]]:
    # Each text with the name by which messages call it.
    from speech_tokenizers.processing.metadata_files import read_text_lines

    if argument == "-":
        lines: Iterator[tuple[int, str]] = enumerate(sys.stdin, 1)
    elif argument.startswith("@"):
        lines = iter(read_text_lines(argument[1:]))
    else:
        yield "the text", argument
        return
    for number, line in lines:
        if line.strip():
            yield f"line {number}", line.strip()


def _check(text: str, place: str, model, processor, voice) -> None:
    from speech_tokenizers.commands.frame import UsageError

    try:
        model.check_text(text, processor, voice)
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from error


def _write(path: Path, said, sampling_rate: int) -> None:
    from speech_tokenizers.processing.audio_files import AudioWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    length = int(said.audio_mask[0].sum())
    with AudioWriter(path, sampling_rate) as writer:
        writer.write(said.audio_values[0, 0, :length].numpy())


def _told(path: Path, text: str, said, sampling_rate: int, times: bool) -> bool:
    # Says what was said, and whether it was cut.
    import json

    from speech_tokenizers.commands.frame import say

    for number, alarm in enumerate(said.alarms[0], 1):
        say(f"{path}: try {number} of {said.tries[0]}: {alarm}")
    if not said.ended[0]:
        say(f"{path}: speech did not end by itself and was cut; train longer, or say the text in parts")
    if times:
        words = [
            {"word": word, "start": round(start, 3), "end": round(end, 3)} for word, start, end in said.word_times[0]
        ]
        print(json.dumps({"file_name": path.name, "text": text, "words": words}, ensure_ascii=False))
    else:
        print(f"{path}: {said.audio_mask.sum() / sampling_rate:.2f} s in {said.seconds:.2f} s")
    return not said.ended[0]


class _StandardOutput:
    # Samples of 16 bits, as they come.

    def __enter__(self) -> "_StandardOutput":
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.buffer.flush()

    def write(self, block) -> None:
        sys.stdout.buffer.write((block.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
        sys.stdout.buffer.flush()


def _stream(output: Path, model, processor, text: str | Iterable[str], options: dict[str, Any]) -> int:
    import time

    from speech_tokenizers.commands.frame import say
    from speech_tokenizers.processing.audio_files import AudioWriter

    rate, is_file = model.config.sampling_rate, str(output) != "-"
    if is_file:
        output.parent.mkdir(parents=True, exist_ok=True)
    opened: contextlib.AbstractContextManager[Any] = AudioWriter(output, rate) if is_file else _StandardOutput()
    first, cut, num_samples, begun = None, 0, 0, time.perf_counter()
    with opened as writer:
        for chunk in model.stream_speech(text, processor, **options):
            writer.write(chunk.audio_values[0, 0].numpy())
            num_samples += chunk.audio_values.shape[-1]
            first = chunk.seconds if first is None else first
            if chunk.alarm:
                say(f"{chunk.text}: {chunk.alarm}")
            cut += chunk.is_last and not chunk.ended
    spent = time.perf_counter() - begun
    told = f"{output}: {num_samples / rate:.2f} s in {spent:.2f} s, first audio after {first:.2f} s"
    told = f"{told}, look-ahead {model.look_ahead_seconds:.2f} s"
    print(told, file=sys.stdout if is_file else sys.stderr)
    return 1 if cut else 0
