# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers estimate`: what a speech language model will cost, before anything is trained."""

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

from speech_tokenizers.evaluation.speech_lm.budget import (
    ALIGNMENTS,
    LAYOUTS,
    ClipPositions,
    LanguageModelSizes,
    Layout,
    SpeechSizes,
    cache_bytes,
    clip_positions,
    longest_seconds,
    positions_a_second,
    training_hours,
    training_operations,
    vocabulary_size,
)


if TYPE_CHECKING:
    from transformers import PreTrainedConfig


BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers estimate`."""
    from speech_tokenizers.coding.command_options import count

    parser.add_argument("--seconds", type=float, required=True, help="length of a clip in seconds")
    parser.add_argument("--model", metavar="CODEC", help="codec: a checkpoint's name, a folder or a Hub id")
    parser.add_argument("--frame-rate", type=float, metavar="HZ", help="frames a second of a codec that is not named")
    parser.add_argument("--codebooks", type=count, help="number of codebooks, the first ones; default: the codec's")
    parser.add_argument("--codebook-size", type=count, help="entries a codebook of a codec that is not named")
    parser.add_argument(
        "--lm",
        metavar="CONFIG",
        required=True,
        help="language model: a JSON file, a folder, a released voice or a Hub id; no weights. A speech language model"
        " knows its codec's sizes",
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="flat", help="layout of the speech (default: flat)")
    parser.add_argument(
        "--text-alignment",
        choices=ALIGNMENTS,
        help="pieces of the text that stand before their frames (default: none, or that of a speech language model)",
    )
    parser.add_argument("--phones", type=count, default=41, help="phones that have an id of their own (default: 41)")
    parser.add_argument(
        "--text-ids",
        type=float,
        metavar="N",
        help="ids of the text a second of speech; default: 12 with phones, else 4, as read English has",
    )
    parser.add_argument("--dtype", choices=BYTES, default="bfloat16", help="type of the cache (default: bfloat16)")
    parser.add_argument("--hours", type=float, metavar="H", help="hours of speech to train on")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over these hours (default: 1)")
    parser.add_argument(
        "--device-tflops",
        type=float,
        metavar="T",
        help="10^12 operations a second that the device reaches in training, which is 20 to 50 %% of its peak",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers estimate`; returns the exit code."""
    # What it needs takes seconds to import, which `--help` should not.
    from speech_tokenizers.evaluation.speech_lm.language_model_sizes import (
        count_language_model,
        empty_language_model,
        read_language_model_config,
    )

    for name in ("hours", "epochs", "device_tflops"):
        if (value := getattr(args, name)) is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be positive and finite, but is {value:g}.")
    config, own = text_config(read_language_model_config(args.lm))
    if own is None:
        speech = speech_sizes(args.model, args.frame_rate, args.codebooks, args.codebook_size, args.layout)
    else:
        speech = own_sizes(own, args)
    args.text_alignment = args.text_alignment or (own.text_alignment if own is not None else "none")
    num_pieces = args.phones if args.text_alignment == "phone" else 0
    rows = config.get_text_config(decoder=True).vocab_size
    if own is None:
        rows = vocabulary_size(rows, speech, args.layout, num_pieces)
    model = count_language_model(empty_language_model(config, rows))
    clip = clip_positions(args.seconds, speech, args.layout, args.text_alignment, args.text_ids)
    check_context(clip, model, speech, args)
    for name, value in describe(args, speech, model, clip, rows):
        print(f"{name:<28}{value}")
    return 0


def speech_sizes(
    codec: str | None, frame_rate: float | None, num_codebooks: int | None, codebook_size: int | None, layout: Layout
) -> SpeechSizes:
    """
    The sizes that the options give.

    Args:
        codec (`str`, *optional*): Checkpoint of a codec, which gives what the others leave open.
        frame_rate (`float`, *optional*), codebook_size (`int`, *optional*): Sizes of a codec that is not named.
        num_codebooks (`int`, *optional*): Number of codebooks. Defaults to all of the codec.
        layout (`str`): Layout of the speech; the continuous one needs no codebooks.

    Raises:
        ValueError: If the options say too little, contradict the codec, or it has not so many codebooks.
    """
    if codec is not None:
        if frame_rate is not None or codebook_size is not None:
            raise ValueError("--model knows its frame rate and sizes; leave --frame-rate and --codebook-size out.")
        from transformers.utils import logging

        from speech_tokenizers.coding.loading import load
        from speech_tokenizers.modeling.transformers_codecs import as_speech_codec

        logging.disable_progress_bar()
        model = as_speech_codec(*load(codec))
        if layout == "continuous":
            return SpeechSizes(model.frame_rate)
        if model.kind != "codes":
            raise ValueError(f"--model {codec} has no codes; choose --layout continuous.")
        if num_codebooks is not None and num_codebooks > model.num_quantizers:
            raise ValueError(f"--codebooks is {num_codebooks}, but {codec} has {model.num_quantizers}.")
        return SpeechSizes(model.frame_rate, num_codebooks or model.num_quantizers, model.codebook_size)
    if frame_rate is None:
        raise ValueError("Name a codec by --model, or give --frame-rate, --codebooks and --codebook-size.")
    if layout == "continuous":
        return SpeechSizes(frame_rate)
    if num_codebooks is None or codebook_size is None:
        raise ValueError(f"--layout {layout} needs --codebooks and --codebook-size, or a codec by --model.")
    return SpeechSizes(frame_rate, num_codebooks, codebook_size)


def text_config(config: Any) -> "tuple[PreTrainedConfig, Any]":
    """The configuration of the language model, and that of the speech language model around it, if there is one."""
    is_inner = hasattr(config, "text_config") and hasattr(config, "layout")
    return (config.text_config, config) if is_inner else (config, None)


def own_sizes(config: Any, args: argparse.Namespace) -> SpeechSizes:
    """
    The sizes of a speech language model.

    Raises:
        ValueError: If the options ask for others.
    """
    given = ("model", "frame_rate", "codebooks", "codebook_size")
    others = [name for name in given if getattr(args, name) is not None]
    others += [
        name for name in ("layout", "text_alignment") if getattr(args, name) not in (None, getattr(config, name))
    ]
    if others:
        named = ", ".join("--" + name.replace("_", "-") for name in others)
        raise ValueError(f"--lm {args.lm} is a speech language model, which has sizes of its own; leave out {named}.")
    return SpeechSizes(config.frame_rate, config.num_codebooks, config.codebook_size)


def check_context(
    clip: ClipPositions, model: LanguageModelSizes, speech: SpeechSizes, args: argparse.Namespace
) -> None:
    """
    Warn if the clip is longer than the context that the model was made for.

    Raises:
        ValueError: If the model has no vectors for further positions.
    """
    if model.max_positions is None or clip.total <= model.max_positions:
        return
    longest = longest_shown(model.max_positions, speech, args)
    told = (
        f"a clip of {args.seconds:g} s takes {clip.total:,} positions, but {args.lm} was made for"
        f" {model.max_positions:,}, which is {longest:g} s; cut the clips, use fewer codebooks or another layout"
    )
    if model.has_learned_positions:
        raise ValueError(f"{told}. It has no vectors for further positions.")
    print(f"warning: {told}, or expect worse speech beyond them", file=sys.stderr)


def longest_shown(max_positions: int, speech: SpeechSizes, args: argparse.Namespace) -> float:
    """The longest clip that fits, in seconds, rounded down to a hundredth."""
    longest = longest_seconds(max_positions, speech, args.layout, args.text_alignment, args.text_ids)
    return math.floor(round(100 * longest, 6)) / 100


def describe(
    args: argparse.Namespace, speech: SpeechSizes, model: LanguageModelSizes, clip: ClipPositions, rows: int
) -> list[tuple[str, str]]:
    """Name and value of each line that the command prints."""
    layout, alignment = args.layout, args.text_alignment
    rate = positions_a_second(speech, layout, alignment, args.text_ids)
    fits = "any" if model.max_positions is None else f"{model.max_positions:,} positions"
    if model.max_positions is not None:
        longest = longest_shown(model.max_positions, speech, args)
        fits += f", {longest:g} s of speech"
    codes = f", {speech.num_codebooks} codebooks of {speech.codebook_size:,}" if speech.num_codebooks else ""
    outside = "" if layout == "flat" else ", without the tables and heads of the speech"
    lines = [
        ("speech", f"{speech.frame_rate:g} frames/s{codes}, layout {layout}"),
        ("positions a second", f"{rate:g}"),
        (
            f"positions of {args.seconds:g} s",
            f"{clip.total:,} ({clip.prompt:,} prompt, {clip.audio:,} speech, {clip.marks} marks)",
        ),
        ("context", fits),
        ("rows of the vocabulary", f"{rows:,}"),
        ("parameters", f"{model.num_parameters:,}{outside}"),
        ("cache of a clip", f"{cache_bytes(model, clip.total, BYTES[args.dtype]) / 1e6:,.2f} MB in {args.dtype}"),
    ]
    return lines + (describe_training(args, model, clip) if args.hours is not None else [])


def describe_training(
    args: argparse.Namespace, model: LanguageModelSizes, clip: ClipPositions
) -> list[tuple[str, str]]:
    """The lines about a training on `args.hours` of clips of `args.seconds`."""
    epoch, total, operations = training_totals(model, clip, args.seconds, args.hours, args.epochs)
    lines = [
        ("positions of an epoch", f"{epoch:,}"),
        ("positions of the training", f"{total:,}"),
        ("operations of the training", f"{operations:.3g} (6 a parameter and position, and attention)"),
    ]
    if args.device_tflops is not None:
        hours = training_hours(operations, args.device_tflops)
        lines.append(("time of the training", f"{hours:,.2f} h at {args.device_tflops:g} TFLOP/s"))
    return lines


def training_totals(
    model: LanguageModelSizes, clip: ClipPositions, seconds: float, hours: float, epochs: float = 1.0
) -> tuple[int, int, float]:
    """
    Positions of an epoch, positions of a training, and its floating-point operations.

    Args:
        model ([`LanguageModelSizes`]): Sizes of the language model.
        clip ([`ClipPositions`]): Positions of a clip.
        seconds (`float`): Length of a clip in seconds.
        hours (`float`): Hours of speech.
        epochs (`float`, *optional*, defaults to 1.0): Passes over the hours.
    """
    epoch = round(hours * 3600 / seconds * clip.total)
    total = round(epoch * epochs)
    return epoch, total, training_operations(model, total, clip.total)


__all__ = ["add_arguments", "check_context", "run", "speech_sizes", "training_totals"]
