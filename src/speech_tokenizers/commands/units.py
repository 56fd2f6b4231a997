# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers units`: recordings to discrete units, in the formats of other tools."""

import argparse
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_tokenizers.coding.command_options import (
    add_batch_seconds_argument,
    add_device_argument,
    check_batch_seconds,
)
from speech_tokenizers.coding.recording_coding import EncodedRecording, encode_recordings
from speech_tokenizers.commands.file_jobs import Tally, add_existing_arguments, check_targets
from speech_tokenizers.commands.frame import UsageError, load_model, one_line, say
from speech_tokenizers.commands.interruption import raise_lost_interruption
from speech_tokenizers.commands.unit_outputs import OUTPUTS


if TYPE_CHECKING:
    from speech_tokenizers.processing.provenance import Provenance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", metavar="AUDIO", nargs="+", help="audio files, folders of them, or globs (quote them)"
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="a file; textless: a folder")
    parser.add_argument("--model", metavar="NAME", required=True, help="checkpoint name, folder or Hub id")
    parser.add_argument(
        "--format",
        choices=tuple(OUTPUTS),
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
    add_batch_seconds_argument(parser)
    add_device_argument(parser)
    add_existing_arguments(parser, " (the default of jsonl and textless)")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES, find_files
    from speech_tokenizers.processing.whole_files import beside

    files: dict[str, Path] = {}
    for path, relative in find_files(args.inputs, AUDIO_SUFFIXES):
        other = files.setdefault(relative.as_posix(), path)
        if other != path:
            raise UsageError(f"{other} and {path} would both be named {relative}; treat them in two runs.")
    _check_arguments(args)
    output = OUTPUTS[args.format](args.output)
    unwritable = {name: reason for name in files if (reason := output.fault_of_name(name, files[name]))}
    _check_places(args, output, files)
    model, feature_extractor = load_model(args.model, args.device)
    bpe = _check_model(args, model)
    made = _Made(model, args, bpe, files)

    known = _known(args, output, made)
    if args.overwrite:
        output.remove()
    names = [name for name in files if name not in known and name not in unwritable]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rejected_path = beside(args.output, ".rejected.jsonl")
    rejected_path.unlink(missing_ok=True)  # what failed before is tried again
    with (
        Tally("units", len(files), len(known), args.output, args.quiet, args.verbose) as tally,
        _Rejected(rejected_path, tally) as rejected,
    ):
        for name, reason in unwritable.items():
            rejected.add(name, reason)
        if names:
            results = encode_recordings(
                model,
                feature_extractor,
                [files[name] for name in names],
                args.batch_seconds,
                args.deduplicate or bpe is not None,
                args.dense,
                in_order=output.in_order,
            )
            _write(args, output, _encoded(args, results, names, rejected), names, made, bpe, tally)
    return tally.exit_code


def _write(
    args: argparse.Namespace,
    output: Any,
    encoded: Iterator[EncodedRecording],
    names: Sequence[str],
    made: "_Made",
    bpe: Any,
    tally: Tally,
) -> None:
    # What is written at the end, as a whole, is counted at the end. Where one output has no room left, the others
    # would have none either: all of jsonl's are one file.
    name = str(args.output)
    try:
        with output:
            for result in encoded:
                name = names[result.index]
                try:
                    ids = None if bpe is None else bpe.encode(result.units, result.durations)[0].tolist()
                    output.add(name, made.files[name], result, str(made.of(name)), ids)
                except Exception as error:
                    if output.is_one_file and isinstance(error, OSError):
                        name = str(args.output)
                        raise
                    tally.failed(name, error)
                    continue
                if not output.at_the_end:
                    tally.wrote(name)
            name = str(args.output)
            num_added = output.finish()
        tally.num_written += num_added
    except (ValueError, OSError) as error:
        tally.failed(name, error)


def _encoded(
    args: argparse.Namespace, results: Iterator[EncodedRecording], names: Sequence[str], rejected: "_Rejected"
) -> Iterator[EncodedRecording]:
    # Those that did not fail; the others are set aside.
    from tqdm import tqdm

    for result in tqdm(results, total=len(names), desc="units", unit="file", disable=args.quiet or None):
        if result.reason is None:
            yield result
        else:
            rejected.add(names[result.index], result.reason)
        raise_lost_interruption()


class _Rejected:
    # What failed, with the reason, in a file beside the output.

    def __init__(self, path: Path, tally: Tally):
        self.path = path
        self.tally = tally
        self.num_rejected = 0

    def add(self, name: str, reason: str) -> None:
        from speech_tokenizers.processing.recordings import append_rejected

        self.num_rejected += 1
        self.tally.failed(name, reason)
        try:
            append_rejected(self.path, [{"name": name, "reason": reason}])
        except OSError as error:
            say(f"{self.path}: {one_line(error)}")

    def __enter__(self) -> "_Rejected":
        return self

    def __exit__(self, *_: object) -> None:
        if self.num_rejected and self.path.exists():
            say(f"{self.num_rejected} recordings failed: see {self.path}")


class _Made:
    # What makes the units of each recording.

    def __init__(self, model: Any, args: argparse.Namespace, bpe: Any, files: dict[str, Path]):
        self.files = files
        self.facts = {
            "model": model.fingerprint(),
            "encoder": model.encoder_fingerprint(),
            "codebooks": str(model.num_quantizers),
        }
        if args.deduplicate or bpe is not None:
            self.facts["deduplicate"] = "yes"
        if bpe is not None:
            content = bpe.tokenizer.backend_tokenizer.to_str()
            self.facts["bpe"] = hashlib.sha256(content.encode()).hexdigest()[:16]
        if args.dense:
            self.facts["dense"] = "yes"

    def of(self, name: str) -> "Provenance":
        from speech_tokenizers.processing.provenance import Provenance
        from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint

        recording = recording_fingerprint(self.files[name]) if name in self.files else "missing"
        return Provenance({**self.facts, "recording": "" if recording == "missing" else recording})


def _check_arguments(args: argparse.Namespace) -> None:
    if args.bpe is not None and args.format != "jsonl":
        raise UsageError("--bpe is for --format jsonl.")
    if args.dense and args.format != "textless":
        raise UsageError("--dense is for --format textless.")
    if args.deduplicate and args.format == "array":
        raise UsageError("--format array holds frames and no durations; leave out --deduplicate.")
    check_batch_seconds(args.batch_seconds)


def _check_places(args: argparse.Namespace, output: Any, files: dict[str, Path]) -> None:
    # Before the model is loaded, let alone anything is encoded.
    targets = output.targets(files)
    if output.is_one_file and args.output.is_dir():
        raise UsageError(f"{args.output} is a folder; --format {args.format} writes a file.")
    if len({*targets}) < len(targets):
        raise UsageError(f"{args.output} would be replaced by what is written beside it; name it .{args.format}.")
    inputs = {os.path.realpath(path) for path in files.values()}
    for target in targets:
        if os.path.realpath(target) in inputs:
            raise UsageError(f"{target} is an input as well as an output; choose another output.")
    check_targets(targets, args.output.parent if output.is_one_file else args.output)
    existing = [target for target in targets if os.path.exists(target)]
    if existing and output.at_the_end and not args.overwrite:
        if not args.skip_existing:
            raise UsageError(
                f"{existing[0]} exists; pass --overwrite to replace it, or --skip-existing to keep what is complete."
            )
        if not args.output.exists():
            raise UsageError(f"{existing[0]} exists without {args.output}; pass --overwrite to replace it.")


def _known(args: argparse.Namespace, output: Any, made: _Made) -> set[str]:
    # Names of the recordings whose units are there, and are those that would be written now.
    from speech_tokenizers.processing.provenance import check_kept

    if args.overwrite:
        return set()
    found = output.provenances(made.files)
    try:
        num_silent = check_kept((f"{name} in {args.output}", said, made.of(name)) for name, said in found.items())
    except ValueError as error:
        raise UsageError(str(error)) from error
    if num_silent:
        say(f"{num_silent} of the {len(found)} units in {args.output} do not say what made them; they are kept.")
    missing = [name for name in made.files if name not in found]
    if output.at_the_end and found and missing:
        raise UsageError(
            f"{args.output} lacks {len(missing)} of {len(made.files)} recordings, such as {missing[0]}, and is written"
            " as a whole; pass --overwrite to make it anew."
        )
    return found.keys() & made.files.keys()


def _check_model(args: argparse.Namespace, model: Any) -> Any:
    from speech_tokenizers.processing.unit_bpe import UnitBPE

    if model.kind == "latents":
        raise UsageError(
            f"{args.model} is a {model.family}, which has no units: its frames are continuous; `encode` writes them."
        )
    num_quantizers, codebook_size = model.num_quantizers, model.codebook_size
    if num_quantizers > 1 and (args.format in ("km", "textless") or args.bpe is not None):
        what = "--bpe" if args.bpe is not None else f"--format {args.format}"
        raise UsageError(f"{what} is for one codebook, but {args.model} has {num_quantizers}; use jsonl or array.")
    if args.bpe is None:
        return None
    from speech_tokenizers.modeling.model_names import find_model

    bpe = UnitBPE.from_pretrained(find_model(args.bpe, argument="--bpe", file="tokenizer.json"))
    if bpe.codebook_size != codebook_size:
        raise UsageError(f"{args.bpe} merges {bpe.codebook_size} units, but {args.model} has {codebook_size}.")
    return bpe
