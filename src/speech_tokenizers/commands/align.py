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
        "--filter",
        metavar="COLUMN=VALUE[,VALUE]",
        nargs="*",
        action="extend",
        default=[],
        help="the rows of the metadata to align",
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
    character or phone. What cannot be read or aligned is named, with the reason, in `<output>.rejected.jsonl`. In
    `<output>.sources.jsonl`, a line for each recording says what was aligned (`recording`, see
    [`recording_fingerprint`]) and by what (`aligner`), so that a later call refuses what differs.

    Args:
        aligner ([`WordAligner`]): Aligner that finds the times.
        recordings (`datasets.Dataset`): Recordings, as [`load_recordings`] returns them.
        output (`str` or `Path`): File to append to.
        text_column (`str`, *optional*): Column that holds what is said. Defaults to `"text"`. Where a recording has no
            text (`None`; an empty text says that nothing is said), the aligner writes what it hears, and the number of
            these recordings is told.
        with_labels (`bool`, *optional*, defaults to `False`): Whether to write labels too, characters or phones. Only
            a CTC model or pocketsphinx knows them.
        phones_column (`str`, *optional*): Column that holds phones, which become labels; see [`share_word_times`].

    Returns:
        `int`: Number of recordings that were rejected.

    Raises:
        ValueError: If there is no such column, two recordings have one name, `output` is another kind of file or was
            written from other audio, other texts or by another aligner, or the aligner knows no labels.
    """
    from tqdm import tqdm

    from speech_tokenizers.processing.audio_files import AudioFileError
    from speech_tokenizers.processing.metadata_files import as_text
    from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint
    from speech_tokenizers.processing.recording_tables import with_names
    from speech_tokenizers.processing.recordings import append_rejected, decode_recording
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

    recordings = with_names(recordings)
    names = recordings["file_name"][:]
    texts = [as_text(text) for text in recordings[text_column][:]] if text_column in columns else [None] * len(names)
    maker = aligner.key + (", labels" if with_labels else "")
    if phones_column is not None:
        maker += f", phones of {phones_column!r}"

    output.parent.mkdir(parents=True, exist_ok=True)
    sources_path = output.with_name(f"{output.name}.sources.jsonl")
    known, sources = _known_lines(output, "words"), {}
    if known:
        sources = _known_lines(sources_path, "aligner")
    else:
        sources_path.unlink(missing_ok=True)
    has_labels = with_labels or phones_column is not None
    for name, (number, line) in known.items():
        made_by = sources[name][1]["aligner"] if name in sources else maker
        if made_by != maker or ("labels" in line) != has_labels:
            raise ValueError(
                f"{output}, line {number}: {name!r} was aligned by {made_by} with{'' if 'labels' in line else 'out'}"
                f" labels, not by {maker} with{'' if has_labels else 'out'}; choose another output."
            )
    for index, (name, text) in enumerate(zip(names, texts, strict=True)):
        if name in known:
            _check_is_same(output, *known[name], sources.get(name), recordings[index], text)
    _end_last_line(sources_path, sources)
    _end_last_line(output, known)
    missing = [index for index, name in enumerate(names) if name not in known]
    if untold := sum(texts[index] is None for index in missing):
        which = f"{untold} of {len(missing)} recordings have no text in a column {text_column!r}"
        print(f"{which}; what {aligner.name} hears is written", file=sys.stderr)

    rejected_path = output.with_name(f"{output.name}.rejected.jsonl")
    rejected_path.unlink(missing_ok=True)  # what failed before is tried again
    num_rejected = 0
    with output.open("a", encoding="utf-8") as file, sources_path.open("a", encoding="utf-8") as sources_file:
        for index in tqdm(missing, desc="align", unit="file", disable=None):
            row, name, text = recordings[index], names[index], texts[index]
            try:
                audio = decode_recording(row, 16000)
                words, labels = _align(aligner, audio, text, with_labels)
                if phones_column is not None:
                    if row[phones_column] is None:
                        raise ValueError(f"there are no phones in the column {phones_column!r}.")
                    labels = share_word_times(words, as_text(row[phones_column]))
            except (AudioFileError, ValueError) as error:
                append_rejected(rejected_path, [{"name": name, "reason": str(error)}])
                num_rejected += 1
                continue
            line = {"file_name": name, "text": " ".join(word.word for word in words) if text is None else text}
            line["words"] = _rounded(words)
            if has_labels:
                line["labels"] = _rounded(labels)
            source = {"file_name": name, "recording": recording_fingerprint(row), "aligner": maker}
            # First, so that no line is without its source.
            sources_file.write(json.dumps(source, ensure_ascii=False) + "\n")
            sources_file.flush()
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    failed = f", {num_rejected} failed: see {rejected_path}" if num_rejected else ""
    print(
        f"{len(missing) - num_rejected} recordings aligned, {len(names) - len(missing)} were there{failed}",
        file=sys.stderr,
    )
    return num_rejected


def _align(aligner: Any, audio: Any, text: str | None, with_labels: bool) -> tuple[Sequence[Any], Sequence[Any]]:
    return aligner.align_labels(audio, text) if with_labels else (aligner.align(audio, text), [])


def _rounded(timed: Iterable[Any]) -> list[dict[str, Any]]:
    return [{**entry._asdict(), "start": round(entry.start, 3), "end": round(entry.end, 3)} for entry in timed]


def _known_lines(path: Path, field: str) -> dict[str, tuple[int, dict[str, Any]]]:
    # Number and content of each recording's last line; what an interrupted run left unfinished is no line.
    from speech_tokenizers.processing.metadata_files import read_json_lines

    known: dict[str, tuple[int, dict[str, Any]]] = {}
    if not path.exists():
        return known
    try:
        for number, line in read_json_lines(path, _is_unfinished):
            if not isinstance(line.get("file_name"), str) or not line.get(field) and line.get(field) != []:
                raise ValueError(f"{path}, line {number}: no `file_name` and `{field}`.")
            known[line["file_name"]] = number, line
    except ValueError as error:
        raise ValueError(f"{error} This is not what `align` writes; choose another output.") from error
    return known


def _is_unfinished(line: str) -> bool:
    beginning = '{"file_name"'
    return line.startswith(beginning) or beginning.startswith(line)


def _end_last_line(path: Path, known: dict[str, tuple[int, dict[str, Any]]]) -> None:
    # A last line without a line feed is ended if it is whole, and else cut off.
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    if content.count(b"\n") + 1 in (number for number, _ in known.values()):
        with path.open("ab") as file:
            file.write(b"\n")
    else:
        os.truncate(path, end)


def _check_is_same(
    output: Path,
    number: int,
    line: dict[str, Any],
    source: tuple[int, dict[str, Any]] | None,
    row: dict[str, Any],
    text: str | None,
) -> None:
    from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint

    what = None
    if text is not None and line.get("text", text) != text:
        what = f"its text was {line['text']!r} and now is {text!r}"
    elif source is not None and source[1].get("recording") != recording_fingerprint(row):
        what = "its audio was another"
    if what is not None:
        raise ValueError(
            f"{output}, line {number}: when {line['file_name']!r} was aligned, {what}; remove the line, or choose"
            " another output."
        )
