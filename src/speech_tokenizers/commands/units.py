# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers units`: recordings to discrete units, in the formats of other tools."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    pass
from speech_tokenizers.coding.recording_coding import EncodedRecording, encode_recordings


FORMATS = ("jsonl", "km", "textless", "array")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", metavar="AUDIO", nargs="+", help="audio files, folders of them, or globs (quote them)"
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="a file; textless: a folder")
    parser.add_argument("--model", metavar="NAME", required=True, help="checkpoint name, folder or Hub id")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="jsonl",
        help="jsonl: a line a recording, as slamkit has them (default); km: fairseq's, with a .tsv beside it; "
        "textless: textlesslib's dictionary, a .safetensors a recording; array: (batch, time, codebooks) with lengths",
    )
    parser.add_argument(
        "--deduplicate", action="store_true", help="merge runs of equal frames, with durations (km: in .durations)"
    )
    parser.add_argument(
        "--bpe",
        metavar="FOLDER",
        help="vocabulary of `units-bpe`, to write merged ids too (jsonl: `bpe_ids`); de-duplicates",
    )
    parser.add_argument("--dense", action="store_true", help="textless: the frames that were coded too")
    parser.add_argument(
        "--batch-seconds", metavar="S", type=float, default=60.0, help="audio in a batch (default: 60)"
    )
    parser.add_argument("--device", default=None, help="device, such as cpu or cuda:0; default: a GPU if there is one")
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew; otherwise jsonl and textless keep what is there"
    )


def run(args: argparse.Namespace) -> int:
    num_failed = _write_units(args)
    return int(num_failed > 0)


def _write_units(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES, find_files
    from speech_tokenizers.processing.whole_files import beside

    files: dict[str, Path] = {}
    for path, relative in find_files(args.inputs, AUDIO_SUFFIXES):
        other = files.setdefault(relative.as_posix(), path)
        if other != path:
            raise ValueError(f"{other} and {path} would both be named {relative}; treat them in two runs.")
    _check_arguments(args)
    model, feature_extractor = _load_model(args.model, args.device)
    bpe = _check_model(args, model)

    args.output.parent.mkdir(parents=True, exist_ok=True)
    known = set() if args.overwrite else _known_names(args, files)
    if args.overwrite and args.format == "jsonl":
        args.output.unlink(missing_ok=True)
    names = [name for name in files if name not in known]
    rejected_path = beside(args.output, ".rejected.jsonl")
    rejected_path.unlink(missing_ok=True)  # what failed before is tried again
    deduplicate = args.deduplicate or bpe is not None
    results = encode_recordings(
        model,
        feature_extractor,
        [files[name] for name in names],
        args.batch_seconds,
        deduplicate,
        args.dense,
        in_order=args.format in ("km", "array"),
    )

    failed: list[EncodedRecording] = []

    def encoded() -> Iterator[EncodedRecording]:
        for result in tqdm(results, total=len(names), desc="units", unit="file", disable=None):
            if result.reason is None:
                yield result
                continue
            failed.append(result)
            with rejected_path.open("a", encoding="utf-8") as file:
                entry = {"name": names[result.index], "reason": result.reason}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    if args.format == "jsonl":
        _append_lines(args.output, encoded(), names, bpe)
    elif args.format == "textless":
        _save_items(args.output, encoded(), names)
    elif args.format == "km":
        _save_km(args.output, encoded(), [files[name] for name in names])
    else:
        _save_arrays(args.output, encoded(), names)
    if failed:
        print(f"{len(failed)} of {len(names)} recordings failed: see {rejected_path}", file=sys.stderr)
    return len(failed)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.bpe is not None and args.format != "jsonl":
        raise ValueError("--bpe is for --format jsonl.")
    if args.dense and args.format != "textless":
        raise ValueError("--dense is for --format textless.")
    if args.deduplicate and args.format == "array":
        raise ValueError("--format array holds frames and no durations; leave out --deduplicate.")
    if args.batch_seconds <= 0:
        raise ValueError(f"--batch-seconds must be positive, but is {args.batch_seconds}.")
    if args.format == "km" and args.output.suffix in (".tsv", ".durations"):
        raise ValueError(f"{args.output} would be replaced by what is written beside it; name it .km.")
    if args.format != "textless" and args.output.is_dir():
        raise ValueError(f"{args.output} is a folder; --format {args.format} writes a file.")
    if args.format in ("km", "array") and args.output.exists() and not args.overwrite:
        raise ValueError(f"{args.output} exists; pass --overwrite to replace it.")


def _load_model(name: str, device: str | None) -> tuple[Any, Any]:
    import torch
    from transformers.utils import logging

    from speech_tokenizers.coding.loading import load
    from speech_tokenizers.modeling.transformers_codecs import as_speech_codec

    logging.disable_progress_bar()
    model, feature_extractor = load(name)
    try:
        model = as_speech_codec(model, feature_extractor)
    except ValueError as error:
        raise ValueError(
            f"{name} is a {type(model).__name__}, which has no units; `speech-tokenizers fit-units` finds those of a"
            " speech encoder."
        ) from error
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device), feature_extractor
    except (RuntimeError, AssertionError) as error:
        # torch's words for a device that is misspelt or absent.
        raise ValueError(f"--device {device}: {error}") from error


def _check_model(args: argparse.Namespace, model: Any) -> Any:
    from speech_tokenizers.processing.unit_bpe import UnitBPE

    if model.kind == "latents":
        raise ValueError(
            f"{args.model} is a {model.family}, which has no units: its frames are continuous; `encode` writes them."
        )
    num_quantizers, codebook_size = model.num_quantizers, model.codebook_size
    if num_quantizers > 1 and (args.format in ("km", "textless") or args.bpe is not None):
        what = "--bpe" if args.bpe is not None else f"--format {args.format}"
        raise ValueError(f"{what} is for one codebook, but {args.model} has {num_quantizers}; use jsonl or array.")
    if args.bpe is None:
        return None
    bpe = UnitBPE.from_pretrained(args.bpe)
    if bpe.codebook_size != codebook_size:
        raise ValueError(f"{args.bpe} merges {bpe.codebook_size} units, but {args.model} has {codebook_size}.")
    return bpe


def _known_names(args: argparse.Namespace, names: Iterable[str]) -> set[str]:
    from speech_tokenizers.processing.unit_exports import load_unit_lines

    if args.format == "textless":
        return {name for name in names if _item_path(args.output, name).exists()}
    if args.format != "jsonl" or not args.output.exists():
        return set()
    content = args.output.read_bytes()
    end = content.rfind(b"\n") + 1
    if content[end:].startswith(b'{"file_name"'):
        os.truncate(args.output, end)  # an interrupted run left it unfinished
    lines = load_unit_lines(args.output)
    is_deduplicated = args.deduplicate or args.bpe is not None
    if any((line.durations is not None) != is_deduplicated for line in lines):
        raise ValueError(
            f"{args.output} holds units that are {'not ' * is_deduplicated}de-duplicated; choose another output."
        )
    return {line.file_name for line in lines}


def _append_lines(path: Path, results: Iterable[EncodedRecording], names: Sequence[str], bpe: Any) -> None:
    from speech_tokenizers.processing.unit_exports import UnitLine, format_unit_line

    with path.open("a", encoding="utf-8") as file:
        for result in results:
            merged = {} if bpe is None else {"bpe_ids": bpe.encode(result.units, result.durations)[0].tolist()}
            line = UnitLine(names[result.index], result.units, result.durations)
            file.write(format_unit_line(line, **merged) + "\n")
            file.flush()


def _save_items(folder: Path, results: Iterable[EncodedRecording], names: Sequence[str]) -> None:
    from speech_tokenizers.processing.unit_exports import save_textless, to_textless

    for result in results:
        item = to_textless(result.units, result.durations, result.latents)
        save_textless(_item_path(folder, names[result.index]), item)


def _item_path(folder: Path, name: str) -> Path:
    # The suffix stays: a.wav and a.flac are two recordings.
    return folder / f"{name}.safetensors"


def _save_km(path: Path, results: Iterable[EncodedRecording], files: Sequence[Path]) -> None:
    from speech_tokenizers.processing.unit_exports import save_km, save_manifest
    from speech_tokenizers.processing.whole_files import beside

    encoded = list(results)
    if not encoded:
        return
    root = os.path.commonpath([os.path.dirname(os.path.abspath(files[result.index])) for result in encoded])
    manifest = [(os.path.relpath(files[result.index], root), result.num_samples) for result in encoded]
    save_manifest(beside(path.with_suffix(""), ".tsv"), root, manifest)
    durations = [result.durations for result in encoded if result.durations is not None]
    if durations:
        save_km(beside(path.with_suffix(""), ".durations"), durations)
    save_km(path, [result.units for result in encoded])


def _save_arrays(path: Path, results: Iterable[EncodedRecording], names: Sequence[str]) -> None:
    from speech_tokenizers.processing.unit_exports import save_code_arrays

    encoded = list(results)
    if encoded:
        audio_codes = [result.audio_codes for result in encoded if result.audio_codes is not None]
        save_code_arrays(path, [names[result.index] for result in encoded], audio_codes)
