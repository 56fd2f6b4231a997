# SPDX-License-Identifier: Apache-2.0
"""Recordings to learn from and, of the same data, to measure on."""

import sys
from typing import Any

import datasets
from tqdm import tqdm

from speech_tokenizers.processing.labelled_rows import check_one_row_each, recording_keys
from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint
from speech_tokenizers.processing.recordings import load_recordings
from speech_tokenizers.training.recognition.ctc_targets import check_column


def load_to_learn_and_measure(
    data: str, filter_by: dict[str, Any], eval_filter: dict[str, Any], column: str, is_main_process: bool = True
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """
    Recordings to learn from, without those to measure on, and these.

    Where `filter_by` chooses none but recordings to measure on, these are learnt from; see [`tell_of_overlap`].

    Args:
        data (`str`): Where they lie; see [`load_recordings`].
        filter_by (`dict`): Rows to learn from, as for [`load_recordings`].
        eval_filter (`dict`): Rows to measure on. An empty one means none.
        column (`str`): Column of the texts or phones.
        is_main_process (`bool`, *optional*, defaults to `True`): Whether to say how many are left out.

    Raises:
        ValueError: If two rows are of one recording, the column holds no texts, or all are to be measured on.
    """
    recordings = _load(data, filter_by, column)
    if not eval_filter:
        return recordings, None
    measured = _load(data, eval_filter, column)
    keys, apart = recording_keys(recordings), set(recording_keys(measured))
    kept = [index for index, key in enumerate(keys) if key not in apart]
    if not kept and not filter_by:
        raise ValueError(
            f"{data}: every recording is one to measure on; choose fewer by `eval_filter` (--eval-filter)."
        )
    if 0 < len(kept) < len(keys):
        if is_main_process:
            first = next(key for key in keys if key in apart)
            which = f"{len(keys) - len(kept)} of {len(keys)} recordings (first {first!r})"
            tqdm.write(f"left out of training, since they are measured on: {which}", file=sys.stderr)
        recordings = recordings.select(kept)
    return recordings, measured


def tell_of_overlap(recordings: datasets.Dataset, measured: datasets.Dataset) -> None:
    """Say how many recordings are learnt from and measured on."""
    places = {key: index for index, key in enumerate(recording_keys(recordings))}
    both = [
        key
        for index, key in enumerate(recording_keys(measured))
        if key in places and recording_fingerprint(measured[index]) == recording_fingerprint(recordings[places[key]])
    ]
    if both:
        which = f"{len(both)} of {len(measured)} recordings to measure on (first {both[0]!r})"
        tqdm.write(f"warning: {which} are learnt from, too; the error rates will be too low", file=sys.stderr)


def _load(data: str, filter_by: dict[str, Any], column: str) -> datasets.Dataset:
    recordings = load_recordings(data, filter_by)
    check_one_row_each(recordings, data)
    check_column(column, recordings, data)
    return recordings
