# SPDX-License-Identifier: Apache-2.0
"""The command `align`: when the words of recordings are spoken, as a JSONL file."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


TEXT_COLUMN = "text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="RECORDINGS", help="a folder of recordings, with or without metadata, or a dataset"
    )
    parser.add_argument(
        "-o", "--output", metavar="JSONL", required=True, type=Path, help="a line a recording; known ones are skipped"
    )
    parser.add_argument(
        "--aligner",
        metavar="NAME",
        required=True,
        help="a Vosk folder, a CTC model's folder or Hub id, or pocketsphinx (English, phones with --unit label)",
    )
    parser.add_argument("--list", metavar="FILE", help="the `file_name`s to align, one a line")
    parser.add_argument(
        "--filter", metavar="COLUMN=VALUE[,VALUE]", nargs="*", default=[], help="the rows of the metadata to align"
    )
    parser.add_argument(
        "--unit", choices=("word", "label"), default="word", help="label: characters or phones too; not with Vosk"
    )
    parser.add_argument(
        "--phones-column",
        metavar="COLUMN",
        help="column of the metadata with phones (`AO1 R | DH AH0`), labels that share their word's time evenly",
    )
    parser.add_argument(
        "--text-column",
        metavar="COLUMN",
        help="column of the metadata with what is said, or with phones (`AO1 R | DH AH0`) for a model of phones; "
        "default: `text`, and what is recognised where there is none",
    )
    parser.add_argument("--device", default="cpu", help="device of a CTC model, such as cuda:0 (default: cpu)")


def run(args: argparse.Namespace) -> int:
    from transformers.utils import logging

    from speech_tokenizers.processing.recordings import load_recordings, parse_filter
    from speech_tokenizers.processing.word_alignment import load_word_aligner

    logging.disable_progress_bar()
    recordings = load_recordings(args.data, parse_filter(args.filter), args.list)
    aligner = load_word_aligner(args.aligner, args.device)
    num_failed = align_recordings(
        aligner, recordings, args.output, args.text_column, args.unit == "label", args.phones_column
    )
    return int(num_failed > 0)


def align_recordings(
    aligner: Any,
    recordings: Any,
    output: str | os.PathLike[str],
    text_column: str | None = None,
    with_labels: bool = False,
    phones_column: str | None = None,
) -> int:
    """
    Append a line to a JSONL file for each recording that it does not hold yet.

    A line holds `file_name`, `text`, and in `words` a `word`, `start` and `end` (in seconds) for each
    whitespace-separated word of the text, and with labels, in `labels`, a `label`, `start` and `end` for each
    character or phone. What cannot be read or aligned is named, with the reason, in `<output>.rejected.jsonl`.

    Args:
        aligner ([`WordAligner`]): Aligner that finds the times.
        recordings (`datasets.Dataset`): Recordings, as [`load_recordings`] returns them.
        output (`str` or `Path`): File to append to.
        text_column (`str`, *optional*): Column that holds what is said. Defaults to `"text"`. Where a recording has no
            text, the aligner writes what it hears.
        with_labels (`bool`, *optional*, defaults to `False`): Whether to write labels too, characters or phones. Only
            a CTC model or pocketsphinx knows them.
        phones_column (`str`, *optional*): Column that holds phones, which become labels; see [`share_word_times`].

    Returns:
        `int`: Number of recordings that were rejected.

    Raises:
        ValueError: If there is no such column, `output` is another kind of file, or the aligner knows no labels.
    """
    from tqdm import tqdm

    from speech_tokenizers.processing.audio_files import AudioFileError
    from speech_tokenizers.processing.recordings import append_rejected, decode_recording, recording_name
    from speech_tokenizers.processing.whole_files import beside
    from speech_tokenizers.processing.word_alignment import share_word_times

    output = Path(output)
    columns = recordings.column_names
    if text_column is not None and text_column not in columns:
        raise ValueError(f"`text_column` is {text_column!r}, but the recordings have the columns {columns}.")
    if phones_column is not None and (with_labels or phones_column not in columns):
        raise ValueError(
            f"`phones_column` is {phones_column!r}, in place of a model's labels, and the recordings have the columns"
            f" {columns}."
        )
    text_column = TEXT_COLUMN if text_column is None else text_column
    if with_labels and not hasattr(aligner, "align_labels"):
        raise ValueError(f"{aligner.name} gives times of words only; labels need a CTC model or pocketsphinx.")

    output.parent.mkdir(parents=True, exist_ok=True)
    known = _complete_lines(output)
    rejected_path = beside(output, ".rejected.jsonl")
    rejected_path.unlink(missing_ok=True)  # what failed before is tried again
    num_rejected = 0
    with output.open("a", encoding="utf-8") as file:
        for index, row in enumerate(tqdm(recordings, desc="align", unit="file", disable=None)):
            name = recording_name(row, index)
            if name in known:
                continue
            text = row.get(text_column) or None
            try:
                audio = decode_recording(row, 16000)
                words, labels = _align(aligner, audio, text, with_labels)
                if phones_column is not None:
                    labels = share_word_times(words, row[phones_column] or "")
            except (AudioFileError, ValueError) as error:
                append_rejected(rejected_path, [{"name": name, "reason": str(error)}])
                num_rejected += 1
                continue
            line = {"file_name": name, "text": " ".join(word.word for word in words) if text is None else text}
            line["words"] = _rounded(words)
            if with_labels or phones_column is not None:
                line["labels"] = _rounded(labels)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    if num_rejected:
        print(f"{num_rejected} of {len(recordings)} recordings failed: see {rejected_path}", file=sys.stderr)
    return num_rejected


def _align(aligner: Any, audio: Any, text: str | None, with_labels: bool) -> tuple[Sequence[Any], Sequence[Any]]:
    return aligner.align_labels(audio, text) if with_labels else (aligner.align(audio, text), [])


def _rounded(timed: Iterable[Any]) -> list[dict[str, Any]]:
    return [{**entry._asdict(), "start": round(entry.start, 3), "end": round(entry.end, 3)} for entry in timed]


def _complete_lines(path: Path) -> set[str]:
    # The names that a file holds; a line that an interrupted run left unfinished is cut off.
    if not path.exists():
        return set()
    names, length = set(), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                names.add(json.loads(line)["file_name"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no word times; choose another output.") from error
            length += len(line)
    os.truncate(path, length)
    return names
