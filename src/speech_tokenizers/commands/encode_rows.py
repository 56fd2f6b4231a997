# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers encode-rows`: a corpus to Parquet rows of codes or latents, for speech language models."""

import argparse
from pathlib import Path
from typing import Any

from speech_tokenizers.coding.command_options import (
    add_batch_seconds_argument,
    add_device_argument,
    check_batch_seconds,
)
from speech_tokenizers.commands.file_jobs import Tally
from speech_tokenizers.commands.frame import UsageError, load_model, say
from speech_tokenizers.commands.interruption import raise_lost_interruption
from speech_tokenizers.commands.row_options import add_row_arguments, check_rows_folder, lasting_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("data", metavar="DATA", help="a folder of recordings, with or without metadata, or a dataset")
    parser.add_argument(
        "-o",
        "--output",
        metavar="ROWS",
        required=True,
        type=Path,
        help="a folder of Parquet files; what an interrupted run left there is continued",
    )
    add_row_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="remove the rows that are there, and begin anew")
    add_batch_seconds_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.coding.row_coding import RowCoding, RowFields

    check_batch_seconds(args.batch_seconds)
    check_rows_folder(args)
    recordings = _recordings(args)
    fields = RowFields(recordings, args.text_column, args.times)
    model, feature_extractor = load_model(args.model, args.device)
    try:
        coding = RowCoding(
            model,
            feature_extractor,
            lasting_name(args.model),
            fields,
            args.num_quantizers,
            args.batch_seconds,
            args.kind,
        )
    except ValueError as error:
        option = "--model" if args.kind is None else "--kind"
        option = option if args.num_quantizers is None else "--num-quantizers"
        raise UsageError(f"{option}: {error}") from error
    if not args.quiet:
        for told in fields.told:
            say(f"{args.data}: {told}")
    return _write(args, coding, recordings)


def _write(args: argparse.Namespace, coding: Any, recordings: Any) -> int:
    from tqdm import tqdm

    from speech_tokenizers.coding.row_coding import encode_speech_rows
    from speech_tokenizers.processing.speech_rows import set_aside_path

    with (
        Tally("encode-rows", len(recordings), 0, args.output, args.quiet, args.verbose) as tally,
        tqdm(total=len(recordings), desc="encode-rows", unit="file", disable=args.quiet or None) as bar,
    ):

        def on_recording() -> None:
            bar.update()
            raise_lost_interruption()

        shards = encode_speech_rows(
            coding, recordings, args.output, args.rows_per_shard, args.overwrite, on_recording=on_recording
        )
        for shard in shards:
            raise_lost_interruption()
            if shard.is_kept:
                tally.num_skipped += shard.num_rows
                bar.update(shard.num_rows)
            else:
                tally.num_written += shard.num_rows
            for entry in shard.set_aside.values():
                tally.failed(entry["name"], entry["reason"])
        if tally.failures:
            number = len(tally.failures)
            what = "1 recording was" if number == 1 else f"{number} recordings were"
            say(f"{what} set aside; see {set_aside_path(args.output)}")
    return tally.exit_code


def _recordings(args: argparse.Namespace) -> Any:
    from speech_tokenizers.processing.labelled_rows import check_one_row_each
    from speech_tokenizers.processing.metadata_folders import is_saved_dataset
    from speech_tokenizers.processing.recordings import load_recordings, parse_filter

    source, filter_by, split = Path(args.data), parse_filter(args.filter), {}
    if args.split is not None and source.exists() and not is_saved_dataset(source):
        if "split" in filter_by:
            raise UsageError("--split and --filter split=... say the same; leave one out.")
        filter_by["split"] = [args.split]
    elif args.split is not None:
        split["split"] = args.split
    recordings = load_recordings(args.data, filter_by, args.list, unique_names=True, **split)
    check_one_row_each(recordings, args.data)
    return recordings
