# SPDX-License-Identifier: Apache-2.0
"""The tokens of a study's clips: encoded once, as rows below its output, and read from there."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
from tqdm import tqdm

from speech_tokenizers.coding.row_coding import RowCoding, encode_speech_rows
from speech_tokenizers.processing.speech_row_format import shards_in
from speech_tokenizers.processing.speech_rows import SpeechRowsError, read_rows_facts, set_aside_path


# A kill costs at most the encoding of so many clips.
_ROWS_PER_SHARD = 250


def encode_clips(
    coding: RowCoding, recordings: datasets.Dataset, folder: Path, description: str, show_progress: bool | None = None
) -> None:
    """
    Write the tokens of clips as rows. What is there is kept; rows of other clips or of another model are made anew.

    Args:
        coding ([`RowCoding`]): Model, and the fields that the rows get.
        recordings (`datasets.Dataset`): Clips.
        folder (`Path`): Folder of the rows. What cannot be encoded is named beside it; see [`set_aside_path`].
        description (`str`): Words for the progress bar and for messages.
        show_progress (`bool`, *optional*): Whether to show a bar. Defaults to whether standard error is a terminal.
    """
    disable = None if show_progress is None else not show_progress

    def write(overwrite: bool) -> None:
        with tqdm(total=len(recordings), desc=description, unit="clip", disable=disable) as progress:
            for shard in encode_speech_rows(coding, recordings, folder, _ROWS_PER_SHARD, overwrite, progress.update):
                if shard.is_kept:
                    progress.update(shard.num_rows)

    make_current(write)
    if (path := set_aside_path(folder)).is_file():
        print(f"{len(read_set_aside(path))} clips of {description} could not be encoded; see {path}", file=sys.stderr)


def read_set_aside(path: Path) -> list[dict[str, Any]]:
    """What a file of JSON lines names as set aside, each with its `name` and `reason`."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def make_current(write: Callable[[bool], None]) -> None:
    """Call `write(False)`, and `write(True)`, which overwrites, where rows of another recipe are in the way."""
    try:
        write(False)
    except SpeechRowsError as error:
        print(f"{error} They belong to this study, and are made anew.", file=sys.stderr)
        write(True)


def read_tokens(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """
    The tokens of rows, without a copy in the cache of `datasets`.

    Args:
        folder (`str` or `Path`): Finished folder of rows.

    Returns:
        `dict`: By the `id` of each row its codes `(num_quantizers, num_frames)`, int64, or its latents `(num_frames,
        latent_dim)`, float16.

    Raises:
        SpeechRowsError: If the rows are not whole.
    """
    facts = read_rows_facts(folder)
    found = {}
    for path in shards_in(Path(folder)).values():
        table = pyarrow.parquet.read_table(path, columns=["id", "num_frames", facts.column])
        for batch in table.to_batches():
            tokens, lengths = batch[facts.column], batch["num_frames"].to_numpy()
            ends = np.asarray(tokens.offsets) - tokens.offsets[0].as_py()
            values = tokens.flatten().to_numpy(zero_copy_only=False)
            for index, name in enumerate(batch["id"].to_pylist()):
                row = values[ends[index] : ends[index + 1]]
                if facts.kind == "latents":
                    found[name] = row.reshape(lengths[index], -1)
                else:
                    found[name] = row.reshape(-1, lengths[index]).astype(np.int64)
    return found
