# SPDX-License-Identifier: Apache-2.0
"""Commands that make files of files: what they are given, what is planned, and the work with its progress."""

import argparse
import contextlib
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from speech_tokenizers.coding.command_options import add_device_argument
from speech_tokenizers.commands.frame import UsageError, one_line, say
from speech_tokenizers.commands.interruption import raise_lost_interruption


# Kinds of files, besides audio, that nobody means by the name of a folder.
_FILE_SUFFIXES = (
    ".3gp", ".aac", ".ac3", ".aifc", ".alac", ".amr", ".ape", ".avi", ".csv", ".gsm", ".h5", ".json", ".jsonl", ".km",
    ".m4a", ".mkv", ".mov", ".mp2", ".mp4", ".npy", ".npz", ".parquet", ".pt", ".pth", ".raw", ".safetensors", ".tsv",
    ".txt", ".voc", ".webm", ".wma", ".wv", ".zip",
)  # fmt: skip


def add_input_arguments(parser: argparse.ArgumentParser, metavar: str, inputs: str, output: str) -> None:
    parser.add_argument("inputs", metavar=metavar, nargs="+", help=f"{inputs} (quote them, `**` crosses folders)")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, type=Path, help=f"{output}; folders keep their layout"
    )
    add_existing_arguments(parser)
    add_device_argument(parser)


def add_existing_arguments(parser: argparse.ArgumentParser, default: str = "") -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    choice.add_argument(
        "--skip-existing",
        action="store_true",
        help=f"keep outputs that exist, which are complete, and make the others{default}; refuses those that another "
        "model, other options or another recording made",
    )


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


@dataclass(frozen=True)
class Plan:
    """
    What a command will do.

    Args:
        verb (`str`): Name of the command.
        jobs (list of `tuple[Path, Path]`): Inputs paired with the outputs that are to be written.
        kept (list of `tuple[Path, Path]`): Inputs paired with outputs that exist and stay.
        output (`Path`): What the user named.
        quiet, verbose (`bool`): Whether the user asked for less or more to read.
    """

    verb: str
    jobs: list[tuple[Path, Path]]
    kept: list[tuple[Path, Path]]
    output: Path
    quiet: bool
    verbose: bool


def plan(
    args: argparse.Namespace,
    verb: str,
    suffixes: Sequence[str],
    output_suffixes: Sequence[str],
    suffix: str | None = None,
) -> Plan:
    """
    Pair inputs with outputs; whatever can go wrong is found before the first file is touched.

    Raises:
        UsageError: If an input is missing, or an output cannot be written, would be written twice, or exists.
    """
    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES, AudioFileError, find_files

    output: Path = args.output
    if output.suffix.lower() in {*AUDIO_SUFFIXES, *_FILE_SUFFIXES} - {*output_suffixes} and not output.is_dir():
        raise UsageError(
            f"--output {output} names a file of a kind that {verb} cannot write; it writes "
            f"{', '.join(output_suffixes)}. Name such a file, or a folder."
        )
    try:
        found = find_files(args.inputs, suffixes)
    except AudioFileError as error:
        raise UsageError(str(error)) from error
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
    inputs = {os.path.realpath(source) for source, _ in jobs}
    for _, target in jobs:
        if os.path.realpath(target) in inputs:
            raise UsageError(f"{target} is an input as well as an output; choose another output folder.")
    check_targets([target for _, target in jobs], folder)
    kept = [job for job in jobs if os.path.exists(job[1])] if not args.overwrite else []
    if kept and not args.skip_existing:
        raise UsageError(
            f"{len(kept)} of {len(jobs)} outputs exist, such as {kept[0][1]}; pass --overwrite to replace them, or "
            "--skip-existing to make the others."
        )
    there = {target for _, target in kept}
    return Plan(verb, [job for job in jobs if job[1] not in there], kept, output, args.quiet, args.verbose)


def check_targets(targets: Iterable[Path], folder: Path) -> None:
    """
    Check that files can be written to `targets`, all of which lie in `folder`.

    Raises:
        UsageError: If not.
    """
    from speech_tokenizers.processing.whole_files import check_folder_is_writable, check_replaceable

    try:
        check_folder_is_writable(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); choose another output folder.") from error
    targets = list(targets)
    for parent in {parent for target in targets for parent in target.parents if parent.is_relative_to(folder)}:
        if os.path.exists(parent) and not parent.is_dir():
            raise UsageError(f"{parent} is a file, where a folder is needed; choose another output folder.")
    for target in targets:
        try:
            os.lstat(target)  # it tells a name that is too long from one that is free
            check_replaceable(target)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"{one_line(error)}; choose another output.") from error


def check_kept_outputs(plan: Plan, found: Callable[[Path], Any], expected: Callable[[Path], Any]) -> None:
    """
    Check that the outputs which are kept are those that would be made now.

    Args:
        plan ([`Plan`]): What is planned.
        found (`Callable`): Function from an output to its [`Provenance`], or `None` if it says nothing.
        expected (`Callable`): Function from an input to the provenance that its output should have.

    Raises:
        UsageError: If not; the message tells how many, and how the first one was made.
    """
    from speech_tokenizers.processing.provenance import check_kept

    wanted = {}
    for source, target in list(plan.kept):
        try:
            wanted[target] = expected(source)
        except (ValueError, OSError):
            # An input that cannot be read fails when it is its turn, which leaves the output as it is.
            plan.kept.remove((source, target))
            plan.jobs.append((source, target))
    try:
        num_silent = check_kept((str(target), found(target), wanted[target]) for _, target in plan.kept)
    except (ValueError, OSError) as error:
        raise UsageError(one_line(error)) from error
    if num_silent:
        say(
            f"{num_silent} of the {len(plan.kept)} outputs that exist do not say what made them; they are kept as they"
            " are."
        )


def audio_provenance(path: Path) -> Any:
    """
    What an audio file that `decode` or `reconstruct` wrote says of itself; `None` if nothing.

    Raises:
        ValueError: If it cannot be read.
    """
    import soundfile

    from speech_tokenizers.processing.provenance import Provenance

    try:
        with path.open("rb") as stream, soundfile.SoundFile(stream) as file:
            return Provenance.parse(file.comment)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path} exists and is no audio; remove it, or pass --overwrite to replace it.") from error


def made_option(model: Any, latents: bool, num_quantizers: int | None, dtype: str = "float32") -> dict[str, Any]:
    """The argument of [`coding_provenance`] that says which tokens a model makes."""
    if latents or model.kind == "latents":
        return {"dtype": dtype}
    return {"num_quantizers": num_quantizers or model.num_quantizers}


def check_kind(model: Any, args: argparse.Namespace) -> None:
    """Raises `UsageError` if --num-quantizers or --latents does not suit the model."""
    try:
        model.encode_stream("latents" if args.latents else None, args.num_quantizers)
    except ValueError as error:
        option = "--latents" if args.num_quantizers is None else "--num-quantizers"
        raise UsageError(f"{option}: {error}") from error


class Tally:
    """
    What has become of the files of a command. As a context manager it says so in the end, however the end comes.

    Args:
        verb (`str`): Name of the command.
        num_files (`int`): Number of files in all.
        num_skipped (`int`): Number of those whose outputs exist and are kept.
        output (`Path`): What the user named.
        quiet (`bool`): Whether to say only what went wrong.
        verbose (`bool`): Whether to name each file that is written, and to show where in the code a file failed.
    """

    def __init__(self, verb: str, num_files: int, num_skipped: int, output: Path, quiet: bool, verbose: bool):
        self.verb = verb
        self.num_files = num_files
        self.num_skipped = num_skipped
        self.output = output
        self.quiet = quiet
        self.verbose = verbose
        self.num_written = 0
        self.failures: list[str] = []

    def wrote(self, name: object) -> None:
        """Count a file that is complete."""
        self.num_written += 1
        if self.verbose:
            say(f"written: {name}")

    def failed(self, name: object, error: BaseException | str) -> None:
        """Count a file that failed, and say why."""
        reason = error if isinstance(error, str) else one_line(error)
        self.failures.append(reason if str(name) in reason else f"{name}: {reason}")
        say(f"failed: {self.failures[-1]}")
        if self.verbose and isinstance(error, BaseException):
            say("".join(traceback.format_exception(error)).rstrip())

    @property
    def exit_code(self) -> int:
        return int(bool(self.failures))

    def __enter__(self) -> "Tally":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        num_left = self.num_files - self.num_skipped - self.num_written - len(self.failures)
        if self.failures and self.num_files > 1:
            say(f"{len(self.failures)} failed:\n  " + "\n  ".join(self.failures))
        if not self.quiet or self.failures or num_left:
            not_reached = f", {num_left} not reached" if num_left else ""
            say(
                f"{self.verb}: {self.num_written} of {self.num_files} files written, {self.num_skipped} skipped, "
                f"{len(self.failures)} failed{not_reached}: {self.output}"
            )


def work(
    plan: Plan,
    treat: Callable[[Path, Path, Callable[[float], object]], None],
    seconds_of: Callable[[Path], float],
) -> int:
    """
    Treat each file. One that fails is reported and does not stop the others, whatever its error is.

    Args:
        plan ([`Plan`]): What is planned.
        treat (`Callable`): Function that makes an output of an input and tells the seconds that it has done.
        seconds_of (`Callable`): Function that gives the length of an input, in seconds.

    Returns:
        `int`: The exit code.
    """
    from tqdm import tqdm

    jobs = plan.jobs
    num_files = len(jobs) + len(plan.kept)
    single = len(jobs) == 1
    with (
        Tally(plan.verb, num_files, len(plan.kept), plan.output, plan.quiet, plan.verbose) as tally,
        _progress_bar(tqdm, plan, seconds_of) as bar,
    ):
        # One progress bar: files, or for a single file its seconds.
        for source, target in jobs:
            try:
                treat(source, target, bar.update if single else _ignore)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other files are treated
                raise_lost_interruption()
                tally.failed(source, error)
            else:
                tally.wrote(target)
                raise_lost_interruption()
            if not single:
                bar.update(1)
    return tally.exit_code


@contextlib.contextmanager
def _progress_bar(tqdm: Any, plan: Plan, seconds_of: Callable[[Path], float]) -> Iterator[Any]:
    disable = plan.quiet or None  # `None`: where standard error is no terminal
    if len(plan.jobs) != 1:
        bar = tqdm(total=len(plan.jobs), desc=plan.verb, unit="file", disable=disable)
    else:
        try:
            total = seconds_of(plan.jobs[0][0])
        except Exception:  # noqa: BLE001
            total = None  # the file is broken, as will be reported when it is its turn
        bar = tqdm(
            total=total,
            desc=plan.verb,
            disable=disable,
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
