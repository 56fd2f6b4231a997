# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers units add-f0`: a codebook of F0 beside the codebooks of fitted units."""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speech_tokenizers.commands.frame import UsageError, check_output_folder, load_model


F0_FILE = "f0.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from speech_tokenizers.training.units.f0_fitting import add_f0_arguments

    parser.add_argument("model", metavar="MODEL", help="checkpoint name, folder or Hub id of units without F0")
    parser.add_argument(
        "data", metavar="RECORDINGS", help="a folder, a file of metadata, Parquet, or a dataset's Hub id"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, type=Path, help="the folder to write: the same units, with F0"
    )
    add_f0_arguments(parser, required=True)
    kept: dict[str, Any] = {"metavar": "COLUMN=VALUE[,VALUE]", "nargs": "*", "action": "extend", "default": []}
    parser.add_argument("--filter", **kept, help="rows of RECORDINGS to use")
    parser.add_argument(
        "--fit-seconds", type=float, default=None, help="audio to use, drawn at random; default: 4 hours at most"
    )
    parser.add_argument("--max-seconds", type=float, default=20.0, help="longer recordings are cut (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn (default: 0)")
    parser.add_argument(
        "--drop-vocoder", action="store_true", help="leave out the vocoder of MODEL, which speaks units without F0"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.processing.recording_fingerprint import recordings_fingerprint
    from speech_tokenizers.processing.recordings import decode_all, load_recordings, parse_filter
    from speech_tokenizers.processing.whole_files import beside, whole_folder
    from speech_tokenizers.training.common.set_aside import write_set_aside
    from speech_tokenizers.training.units.f0_fitting import check_f0_sizes, fit_f0

    for name in ("fit_seconds", "max_seconds"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be positive, but is {value:g}.")
    if args.output.is_dir() and any(args.output.iterdir()):
        raise UsageError(f"--output {args.output} exists; choose another folder, or remove it.")
    check_output_folder(args.output)
    model, feature_extractor = _load_units(args)
    check_f0_sizes(args.f0_bins, args.f0_stride, model.codebook_size, f"the units' number, {model.codebook_size}")
    before = model.fingerprint()

    rows = load_recordings(args.data, parse_filter(args.filter))
    args.output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.absolute().parent, prefix=".") as cache:
        recordings = decode_all(rows, model.sampling_rate, cache, not args.quiet)
        write_set_aside(beside(args.output, ".rejected.jsonl"), recordings.rejected)
        fit = fit_f0(
            model, recordings, args.f0_bins, args.f0_stride, args.fit_seconds, args.max_seconds, seed=args.seed
        )
    facts = {**asdict(fit), "seed": args.seed, "units": before, "recordings": recordings_fingerprint(rows)}
    with whole_folder(args.output) as folder:
        # The default would undo any renaming that transformers knows of.
        model.save_pretrained(folder, save_original_format=False)
        feature_extractor.save_pretrained(folder)
        (folder / F0_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    kind = "speakers" if fit.by_speaker else "recordings"
    print(
        f"{args.output}: {fit.f0_bins} codes of F0 from {fit.seconds / 60:.1f} min of {fit.speakers} {kind}, "
        f"{fit.voiced:.0%} voiced; {model.bits_per_second:.0f} bit/s with the units"
    )
    return 0


def _load_units(args: argparse.Namespace) -> tuple[Any, Any]:
    # The model, ready for F0, before any recording is read.
    from speech_tokenizers.modeling.unit_model import UnitPreTrainedModel

    model, feature_extractor = load_model(args.model, "cpu")
    if not isinstance(model, UnitPreTrainedModel):
        raise UsageError(f"{args.model} is a {model.family}; an F0 codebook stands beside units, k-means or DC-Spin.")
    if model.f0_codebook is not None:
        raise UsageError(f"{args.model} has an F0 codebook already, of {model.config.f0_bins} codes.")
    if model.vocoder is not None:
        if not args.drop_vocoder:
            raise UsageError(
                f"{args.model} has a vocoder, which speaks units without F0; pass --drop-vocoder to leave it out, and"
                " train another."
            )
        model.vocoder = model.config.vocoder_config = None
    return model, feature_extractor
