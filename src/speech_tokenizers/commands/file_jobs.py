# SPDX-License-Identifier: Apache-2.0
"""Commands that make a file of each file: what they are given, what is planned, and the work with its progress."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from speech_tokenizers.commands.frame import UsageError, one_line


def add_input_arguments(parser: argparse.ArgumentParser, metavar: str, inputs: str, output: str) -> None:
    parser.add_argument("inputs", metavar=metavar, nargs="+", help=f"{inputs} (quote them, `**` crosses folders)")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, type=Path, help=f"{output}; folders keep their layout"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--device", default=None, help="device, such as cpu or cuda:0; default: a GPU if there is one")


def add_model_argument(parser: argparse.ArgumentParser, text: str = "checkpoint name, folder or Hub id") -> None:
    parser.add_argument("--model", metavar="NAME", default=None, help=text)


def add_num_quantizers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-quantizers", metavar="K", type=int, default=None, help="use the first K codebooks, for a lower bit rate"
    )


def add_latents_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--latents",
        action="store_true",
        help="a codec's frames before quantization instead of codes; continuous tokens are latents in any case",
    )


def add_format_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("wav", "flac", "ogg"), default="wav", help="format of audio in an output folder"
    )


def plan(
    args: argparse.Namespace, suffixes: Sequence[str], output_suffixes: Sequence[str], suffix: str | None = None
) -> list[tuple[Path, Path]]:
    # Inputs paired with outputs; whatever can go wrong is found before the first file is touched.
    from speech_tokenizers.processing.audio_files import AudioFileError, find_files

    try:
        found = find_files(args.inputs, suffixes)
    except AudioFileError as error:
        raise UsageError(str(error)) from error
    output: Path = args.output
    if output.suffix.lower() in output_suffixes and not output.is_dir():
        if len(found) > 1:
            raise UsageError(f"--output names the file {output}, but there are {len(found)} inputs; name a folder.")
        jobs = [(found[0][0], output)]
        folder = output.parent
    else:
        jobs = [(source, output / relative.with_suffix(suffix or output_suffixes[0])) for source, relative in found]
        folder = output

    sources: dict[Path, Path] = {}
    for source, target in jobs:
        other = sources.setdefault(target, source)
        if other != source:
            raise UsageError(f"{other} and {source} would both be written to {target}; treat them in two runs.")
    inputs = {source.resolve() for source, _ in jobs}
    for _, target in jobs:
        if target.resolve() in inputs:
            raise UsageError(f"{target} is an input as well as an output; choose another output folder.")
    existing = [target for _, target in jobs if target.exists()]
    if existing and not args.overwrite:
        raise UsageError(
            f"{len(existing)} of {len(jobs)} outputs exist, such as {existing[0]}; pass --overwrite to replace them."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); choose another output folder.") from error
    return jobs


def check_kind(model: Any, args: argparse.Namespace) -> None:
    """Raises `UsageError` if --num-quantizers or --latents does not suit the model."""
    try:
        model.encode_stream("latents" if args.latents else None, args.num_quantizers)
    except ValueError as error:
        option = "--latents" if args.num_quantizers is None else "--num-quantizers"
        raise UsageError(f"{option}: {error}") from error


def work(
    jobs: Sequence[tuple[Path, Path]],
    treat: Callable[[Path, Path, Callable[[float], object]], None],
    verb: str,
    seconds_of: Callable[[Path], float],
) -> int:
    # One progress bar: files, or for a single file its seconds. A file that fails is reported and does not stop the
    # others.
    from tqdm import tqdm

    failures = []
    single = len(jobs) == 1
    with _progress_bar(tqdm, jobs, verb, seconds_of) as bar:
        for source, target in jobs:
            try:
                treat(source, target, bar.update if single else _ignore)
            except (ValueError, OSError) as error:
                reason = one_line(error)
                failures.append(reason if str(source) in reason else f"{source}: {reason}")
                tqdm.write(f"failed: {failures[-1]}", file=sys.stderr)
            if not single:
                bar.update(1)
    print(f"{len(jobs) - len(failures)} of {len(jobs)} files: {verb} done", file=sys.stderr)
    if failures and not single:
        print(f"{len(failures)} failed:\n  " + "\n  ".join(failures), file=sys.stderr)
    return 1 if failures else 0


@contextlib.contextmanager
def _progress_bar(
    tqdm: Any, jobs: Sequence[tuple[Path, Path]], verb: str, seconds_of: Callable[[Path], float]
) -> Iterator[Any]:
    if len(jobs) > 1:
        bar = tqdm(total=len(jobs), desc=verb, unit="file", disable=None)
    else:
        try:
            total = seconds_of(jobs[0][0])
        except (ValueError, OSError):
            total = None  # the file is broken, as will be reported when it is its turn
        bar = tqdm(
            total=total,
            desc=verb,
            disable=None,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s, {elapsed}",
        )
    with bar:
        yield bar


def audio_seconds(path: Path) -> float:
    from speech_tokenizers.processing.audio_files import AudioReader

    with AudioReader(path, 16000) as reader:
        return reader.seconds


def _ignore(seconds: float) -> None:
    pass
