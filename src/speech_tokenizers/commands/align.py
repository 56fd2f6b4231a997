# SPDX-License-Identifier: Apache-2.0
"""The command `align`: when the words of recordings are spoken, as a JSONL file."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from speech_tokenizers.coding.command_options import add_device_argument, choose_device
from speech_tokenizers.commands.file_jobs import Tally
from speech_tokenizers.commands.frame import one_line
from speech_tokenizers.commands.interruption import raise_lost_interruption


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
    parser.add_argument(
        "--language",
        metavar="CODE",
        help="language of the texts, such as tr; default: what the aligner was trained on, where it says that, or en",
    )
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    from transformers.utils import logging

    from speech_tokenizers.modeling.model_names import find_model
    from speech_tokenizers.processing.labelled_rows import check_one_row_each, texts_in
    from speech_tokenizers.processing.recordings import load_recordings, parse_filter
    from speech_tokenizers.processing.word_alignment import load_word_aligner

    logging.disable_progress_bar()
    name = args.aligner if args.aligner == "pocketsphinx" else find_model(args.aligner, argument="--aligner")
    device = choose_device(args.device)
    recordings = load_recordings(args.data, parse_filter(args.filter), args.list, unique_names=True)
    check_one_row_each(recordings, args.data)
    for column in (args.text_column or TEXT_COLUMN, args.phones_column):
        if column in recordings.column_names:
            texts_in(recordings, column, args.data)
    language = {} if args.language is None else {"language": args.language}
    aligner = load_word_aligner(name, device, **language)
    num_failed = align_recordings(
        aligner,
        recordings,
        args.output,
        args.text_column,
        args.unit == "label",
        args.phones_column,
        args.quiet,
        args.verbose,
    )
    return int(num_failed > 0)


def align_recordings(
    aligner: Any,
    recordings: Any,
    output: str | os.PathLike[str],
    text_column: str | None = None,
    with_labels: bool = False,
    phones_column: str | None = None,
    quiet: bool = False,
    verbose: bool = False,
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
        quiet, verbose (`bool`, *optional*, defaults to `False`): Whether to say less or more; see [`Tally`].

    Returns:
        `int`: Number of recordings that were rejected.

    Raises:
        ValueError: If there is no such column, or it holds no texts, two rows are of one recording, `output` is
            another kind of file or was written from other audio, other texts or by another aligner, or the aligner
            knows no labels.
    """
    from tqdm import tqdm

    from speech_tokenizers.processing.labelled_rows import check_one_row_each, texts_in
    from speech_tokenizers.processing.recording_tables import with_names
    from speech_tokenizers.processing.recordings import append_rejected, decode_recording
    from speech_tokenizers.processing.whole_files import beside
    from speech_tokenizers.processing.word_alignment import share_word_times

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
    check_one_row_each(recordings)
    texts = texts_in(recordings, text_column) if text_column in columns else [None] * len(names)
    phones = [None] * len(names) if phones_column is None else texts_in(recordings, phones_column)
    maker = aligner.key + (", labels" if with_labels else "")
    if phones_column is not None:
        maker += f", phones of {phones_column!r}"
    word_times = _WordTimesFile(Path(output), maker, with_labels or phones_column is not None)
    missing = word_times.missing(recordings, names, texts)
    if untold := sum(texts[index] is None for index in missing):
        which = f"{untold} of {len(missing)} recordings have no text in a column {text_column!r}"
        print(f"{which}; what {aligner.name} hears is written", file=sys.stderr)

    rejected_path = beside(word_times.path, ".rejected.jsonl")
    rejected_path.unlink(missing_ok=True)  # what failed before is tried again
    num_known = len(names) - len(missing)
    with Tally("align", len(names), num_known, word_times.path, quiet, verbose) as tally:
        for index in tqdm(missing, desc="align", unit="file", disable=quiet or None):
            raise_lost_interruption()
            row, text = recordings[index], texts[index]
            try:
                audio = decode_recording(row, 16000)
                words, labels = _align(aligner, audio, text, with_labels)
                if phones_column is not None:
                    if (spoken := phones[index]) is None:
                        raise ValueError(f"there are no phones in the column {phones_column!r}.")
                    labels = share_word_times(words, spoken)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other recordings are aligned
                append_rejected(rejected_path, [{"name": names[index], "reason": one_line(error)}])
                tally.failed(names[index], error)
                continue
            said = " ".join(word.word for word in words) if text is None else text
            word_times.append(row, names[index], said, words, labels)
            tally.wrote(names[index])
        if tally.failures:
            print(f"{len(tally.failures)} recordings failed: see {rejected_path}", file=sys.stderr)
    return len(tally.failures)


def _align(aligner: Any, audio: Any, text: str | None, with_labels: bool) -> tuple[Sequence[Any], Sequence[Any]]:
    return aligner.align_labels(audio, text) if with_labels else (aligner.align(audio, text), [])


class _WordTimesFile:
    # The output, and beside it what each line was made from and by what (`maker`).

    def __init__(self, path: Path, maker: str, has_labels: bool):
        from speech_tokenizers.processing.whole_files import beside

        self.path, self.maker, self.has_labels = path, maker, has_labels
        self.sources_path = beside(path, ".sources.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.known = _read_known(path, "words")
        self.sources = _read_known(self.sources_path, "aligner") if self.known else {}
        for name, (number, line) in self.known.items():
            made_by = self.sources[name][1]["aligner"] if name in self.sources else maker
            if made_by != maker or ("labels" in line) != has_labels:
                raise ValueError(
                    f"{path}, line {number}: {name!r} was aligned by {made_by} with{'' if 'labels' in line else 'out'}"
                    f" labels, not by {maker} with{'' if has_labels else 'out'}; choose another output."
                )

    def missing(self, recordings: Any, names: Sequence[str], texts: Sequence[str | None]) -> list[int]:
        # Indices of the recordings without a line; an error where a line is of another recording or text.
        from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint

        for index, (name, text) in enumerate(zip(names, texts, strict=True)):
            if name not in self.known:
                continue
            number, line = self.known[name]
            what = None
            if text is not None and line.get("text", text) != text:
                what = f"its text was {line['text']!r} and now is {text!r}"
            elif name in self.sources and self._recording(name) != recording_fingerprint(recordings[index]):
                what = "its audio was another"
            if what is not None:
                raise ValueError(
                    f"{self.path}, line {number}: when {name!r} was aligned, {what}; remove the line, or choose"
                    " another output."
                )
        _end_last_line(self.path, self.known)
        if self.known:
            _end_last_line(self.sources_path, self.sources)
        else:
            self.sources_path.unlink(missing_ok=True)
        return [index for index, name in enumerate(names) if name not in self.known]

    def _recording(self, name: str) -> Any:
        return self.sources[name][1].get("recording")

    def append(self, row: Any, name: str, text: str, words: Iterable[Any], labels: Iterable[Any]) -> None:
        from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint

        # The source is written first, so that no line is without one.
        source = {"file_name": name, "recording": recording_fingerprint(row), "aligner": self.maker}
        _append_line(self.sources_path, source)
        line = {"file_name": name, "text": text, "words": _rounded(words)}
        if self.has_labels:
            line["labels"] = _rounded(labels)
        _append_line(self.path, line)


def _append_line(path: Path, content: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")


def _rounded(timed: Iterable[Any]) -> list[dict[str, Any]]:
    return [{**entry._asdict(), "start": round(entry.start, 3), "end": round(entry.end, 3)} for entry in timed]


def _read_known(path: Path, field: str) -> dict[str, tuple[int, dict[str, Any]]]:
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
