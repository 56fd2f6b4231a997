# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers ask`: what is said in recordings, or how, by a speech language model."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    from speech_tokenizers.coding.command_options import add_device_argument, count

    parser.add_argument("inputs", metavar="AUDIO", nargs="+", help="audio files, folders or globs")
    parser.add_argument(
        "--task",
        required=True,
        help="task to ask about: asr, phones, keyword, slots, emotion, translate, or one that the model defines",
    )
    parser.add_argument(
        "--model", help="name, folder or Hub id of a speech language model (default: the released one)"
    )
    parser.add_argument("--codec", default=None, help="name or folder of its codec, where it is not found by its name")
    parser.add_argument(
        "--answers",
        nargs="+",
        default=None,
        metavar="ANSWER",
        help="answers to choose from; `@FILE` reads them from a file of lines (default: those that the model knows for"
        " the task; without any it answers freely)",
    )
    parser.add_argument(
        "--max-new-tokens", type=count, default=None, metavar="N", help="most ids of a free answer (default: 256)"
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="print the probability of each answer that can be chosen"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON line for each recording")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from transformers.utils import logging

    from speech_tokenizers.coding.command_options import choose_device
    from speech_tokenizers.coding.speech_lm_loading import DEFAULT_LISTENER, load_speech_lm
    from speech_tokenizers.commands.frame import UsageError, say
    from speech_tokenizers.commands.interruption import raise_lost_interruption
    from speech_tokenizers.evaluation.understanding.answering import question_of, read_labels
    from speech_tokenizers.processing.audio_files import find_audio_files

    paths = find_audio_files(args.inputs)
    labels = None if args.answers is None else read_labels(args.answers)
    device = choose_device(args.device)
    logging.disable_progress_bar()
    model, processor = load_speech_lm(args.model or DEFAULT_LISTENER, args.codec)
    model.to(device)
    question = question_of(model.config, args.task, labels, args.max_new_tokens)
    if args.probabilities and question.labels is None:
        raise UsageError("--probabilities are those of answers to choose from; name these by --answers")
    if question.labels is not None:
        if args.max_new_tokens is not None:
            raise UsageError("--max-new-tokens is for free answers, but here one of a set is chosen; leave it out")
        processor.answer_ids(question.labels)  # refused before the first recording
    failed = 0
    for path in paths:
        try:
            (answer,) = question.answers(model, processor, _inputs(path, question.task, model, processor))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other recordings are asked about
            raise_lost_interruption()
            failed += 1
            _tell_failure(path, error)
            continue
        raise_lost_interruption()
        print(_told(path, args, answer), flush=True)
        if not answer.get("ended", True):
            failed += 1
            say(f"{path}: the answer did not end by itself and was cut; raise --max-new-tokens, or ask about less")
    return 1 if failed else 0


def _inputs(path: Path, task: Any, model: Any, processor: Any) -> Any:
    from speech_tokenizers.processing.audio_files import load_audio

    rate = model.config.sampling_rate
    return processor.task_inputs(task, audio=load_audio(path, rate), sampling_rate=rate)


def _tell_failure(path: Path, error: BaseException) -> None:
    from speech_tokenizers.commands.frame import one_line, say

    reason = one_line(error)
    say(f"failed: {reason if str(path) in reason else f'{path}: {reason}'}")


def _told(path: Path, args: argparse.Namespace, answer: dict[str, Any]) -> str:
    if args.json:
        kept = ("answer", "ended", *(("probabilities",) if args.probabilities else ()))
        found = {name: answer[name] for name in kept if name in answer}
        return json.dumps({"file_name": str(path), "task": args.task, **found}, ensure_ascii=False)
    text = f"{path}: {answer['answer']}"
    if not args.probabilities:
        return text
    likeliest = sorted(answer["probabilities"].items(), key=lambda pair: -pair[1])
    return f"{text} ({', '.join(f'{label} {probability:.3f}' for label, probability in likeliest)})"
