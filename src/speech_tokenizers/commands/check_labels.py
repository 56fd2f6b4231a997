# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers check-labels`: whether a model learns what its data mean."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "model", metavar="MODEL", help="folder or Hub id of a speech language model, or of any causal language model"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="rows of `encode-rows`, or a dataset with `input_ids` and `labels` (a folder of `save_to_disk`, Parquet)",
    )
    parser.add_argument("--task", default="tts", help="task in which rows of `encode-rows` are read (default: tts)")
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="rows to look at (default: 8)")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 0 without a fault, 1 with one."""
    from transformers.utils import logging

    from speech_tokenizers.coding.speech_lm_loading import load_any_causal_lm
    from speech_tokenizers.commands.frame import UsageError
    from speech_tokenizers.training.language_models.label_checks import check_labels

    if args.limit < 1:
        raise UsageError(f"--limit must be at least 1, but is {args.limit}")
    logging.disable_progress_bar()
    model, processor = load_any_causal_lm(args.model)
    rows = _rows(Path(args.data), processor, args.task, args.limit)
    codes = None if processor is None else processor.speech_ids
    report = check_labels(model, rows, _ends(model, processor, rows), codes=codes)
    print(report)
    return 1 if report.faults else 0


def _rows(path: Path, processor, task: str, limit: int) -> list:
    import datasets

    from speech_tokenizers.commands.frame import UsageError
    from speech_tokenizers.processing.speech_rows import read_speech_rows

    if not path.exists():
        raise UsageError(f"{path} is not there; name rows of `encode-rows` or a saved dataset")
    if (path / "dataset_dict.json").is_file():
        raise UsageError(f"{path} holds several splits; name the folder of one")
    if (path / "state.json").is_file():
        rows = datasets.load_from_disk(str(path))
    else:
        files = sorted(map(str, path.glob("*.parquet"))) if path.is_dir() else [str(path)]
        if not files:
            raise UsageError(f"{path} holds no Parquet files and is no saved dataset")
        rows = datasets.Dataset.from_parquet(files)
    if {"input_ids", "labels"} <= set(rows.column_names):
        return [rows[index] for index in range(min(limit, len(rows)))]
    if processor is None:
        raise UsageError(f"{path} has no `input_ids` and `labels`, and the model has no processor that makes them")
    rows = read_speech_rows(path)
    return [processor.row_inputs(rows[index], task) for index in range(min(limit, len(rows)))]


def _ends(model, processor, rows: list) -> list[int]:
    import torch

    # Speech that is said has an end of its own; that of the text comes after it.
    end = model.config.get_text_config(decoder=True).eos_token_id if processor is None else None
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    if processor is not None:
        ids = processor.speech_ids
        if any(_says_speech(torch.as_tensor(row["labels"]), ids) for row in rows):
            ends.append(ids.audio_end)
        if processor.tokenizer.eos_token_id is not None:
            ends.append(processor.tokenizer.eos_token_id)
    return ends


def _says_speech(labels, ids) -> bool:
    # Beside the flat layout, frames have labels of their own.
    return bool((labels[1:] != -100).any()) if labels.dim() == 2 else bool(ids.is_unit(labels).any())
