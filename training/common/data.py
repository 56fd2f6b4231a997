# SPDX-License-Identifier: Apache-2.0
"""Where a recipe finds its recordings, and how they are decoded for training."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from accelerate import Accelerator
from tqdm import tqdm

from speech_tokenizers.processing.recordings import DecodedRecordings, append_rejected, decode_all, load_recordings
from speech_tokenizers.training.common.processes import process_state
from speech_tokenizers.training.common.recipe_files import check_not_negative, check_positive


@dataclass
class DataArguments:
    """
    Where the recordings are and how they become crops.

    Args:
        train, eval (`str`, *optional*): A folder of audio files, with or without `metadata.jsonl`, `metadata.csv` or
            `metadata.parquet`; such a file itself; a Parquet file or a folder of them; a folder that `save_to_disk`
            wrote; or the id of a dataset on the Hub. See [`load_recordings`].
        train_filter, eval_filter (`dict`): Keep only rows where each named column has this value, or one of these
            values. They are compared as text.
        train_files, eval_files (`str`, *optional*): A text file that lists, one a line, the `file_name`s to keep.
        train_split, eval_split (`str`): Split of a dataset that is saved or on the Hub.
        audio_column (`str`): Column of Parquet, saved and Hub datasets that holds the audio.
        streaming (`bool`): Read the training data as a stream, decoded as it comes, instead of decoding all of it
            first.
        shuffle_buffer (`int`): Recordings among which a stream is shuffled.
        segment_seconds (`float`): Length of a training crop.
        max_eval_seconds (`float`): Recordings are cut to this length for evaluation.
        max_eval_recordings (`int`, *optional*): Evaluate on so many of the recordings that `eval` names, spread evenly
            over them. Defaults to all.
        cache_dir (`str`, *optional*): Where decoded audio is kept. Defaults to `audio_cache` in the output folder.
        target_level_db (`float`, *optional*): Bring every crop to this RMS level (dB relative to full scale) first.
        gain_db (`list` of two `float`): Range of a random gain. Peaks are kept below full scale.
        min_level_db (`float`): A crop below this level is drawn again, eight times in all, so that few crops are
            silence.
        num_workers (`int`): Worker processes that prepare crops. Crops do not depend on it. Reading decoded audio
            needs none.
    """

    train: str | None = None
    eval: str | None = None
    train_filter: dict[str, str | list[str]] = field(default_factory=dict)
    eval_filter: dict[str, str | list[str]] = field(default_factory=dict)
    train_files: str | None = None
    eval_files: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    audio_column: str = "audio"
    streaming: bool = False
    shuffle_buffer: int = 1000
    segment_seconds: float = 1.0
    max_eval_seconds: float = 10.0
    max_eval_recordings: int | None = None
    cache_dir: str | None = None
    target_level_db: float | None = None
    gain_db: list[float] = field(default_factory=lambda: [0.0, 0.0])
    min_level_db: float = -60.0
    num_workers: int = 0

    def __post_init__(self):
        check_positive(self, "segment_seconds", "max_eval_seconds", "shuffle_buffer", prefix="data.")
        if self.max_eval_recordings is not None and self.max_eval_recordings < 1:
            raise ValueError(f"`max_eval_recordings` must be at least 1, but got {self.max_eval_recordings}.")
        check_not_negative(self, "num_workers", prefix="data.")
        if len(self.gain_db) != 2 or self.gain_db[0] > self.gain_db[1]:
            raise ValueError(f"`gain_db` must be a pair [lowest, highest], but got {self.gain_db}.")


def prepare_recordings(
    args: DataArguments, sampling_rate: int, cache_dir: Path, accelerator: Accelerator, rejected_path: Path
) -> tuple["DecodedRecordings | datasets.IterableDataset", DecodedRecordings | None]:
    """
    Training and evaluation recordings as a recipe names them, decoded once for all epochs and processes.

    Args:
        args ([`DataArguments`]): Where they are.
        sampling_rate (`int`): Rate to decode at.
        cache_dir (`Path`): Where to keep decoded audio.
        accelerator (`Accelerator`): Its main process decodes while the others wait.
        rejected_path (`Path`): File of JSON lines for what cannot be decoded.

    Returns:
        The training recordings, and the evaluation recordings if there are any.
    """
    if args.train is None:
        raise ValueError("`data.train` must name the training recordings; give it as data.train=PATH.")
    rejected: list[dict[str, str]] = []

    def decoded(
        path: str, split: str, filter_by: dict[str, Any], files: str | None, at_most: int | None = None
    ) -> DecodedRecordings:
        with accelerator.main_process_first():
            recordings = load_recordings(path, filter_by, files, split, args.audio_column)
            if at_most is not None and at_most < len(recordings):
                recordings = recordings.select([i * len(recordings) // at_most for i in range(at_most)])
            result = decode_all(recordings, sampling_rate, cache_dir, accelerator.is_main_process)
        rejected.extend(result.rejected)
        return result

    train: DecodedRecordings | datasets.IterableDataset
    if args.streaming:
        train = load_recordings(
            args.train, args.train_filter, args.train_files, args.train_split, args.audio_column, streaming=True
        )
    else:
        train = decoded(args.train, args.train_split, args.train_filter, args.train_files)
    evaluation = None
    if args.eval is not None:
        evaluation = decoded(args.eval, args.eval_split, args.eval_filter, args.eval_files, args.max_eval_recordings)
    if accelerator.is_main_process:
        rejected_path.parent.mkdir(parents=True, exist_ok=True)
        rejected_path.unlink(missing_ok=True)
        if rejected:
            append_rejected(rejected_path, rejected)
            tqdm.write(f"{len(rejected)} recordings were set aside; see {rejected_path}.")
    return train, evaluation


@dataclass(kw_only=True)
class RecordingsArguments:
    """
    Where the recordings of a recipe on `transformers.Trainer` are; see [`load_recordings`].

    Args:
        train (`str`): A folder, a file of metadata, Parquet, or a dataset's id on the Hub.
        train_filter (`dict`), train_files (`str`, *optional*), train_split (`str`), audio_column (`str`): Choice among
            them.
        cache_dir (`str`, *optional*): Folder of decoded audio. Defaults to `audio_cache` in the output folder.
        min_seconds (`float`): Length below which a recording is left out.
        max_seconds (`float`): Length of the part that is drawn of a longer recording, anew each time.
    """

    train: str
    train_filter: dict[str, str | list[str]] = field(default_factory=dict)
    train_files: str | None = None
    train_split: str = "train"
    audio_column: str = "audio"
    cache_dir: str | None = None
    min_seconds: float = 0.5
    max_seconds: float = 15.6

    def __post_init__(self):
        if not 0 < self.min_seconds <= self.max_seconds:
            raise ValueError("`data.min_seconds` must be positive and not above `data.max_seconds`.")


@dataclass(kw_only=True)
class EvaluatedRecordingsArguments(RecordingsArguments):
    """
    Recordings to train on and others to measure on.

    Args:
        eval (`str`), eval_filter (`dict`), eval_files (`str`, *optional*), eval_split (`str`): Like those of `train`,
            for measuring. Of a recording longer than `max_seconds`, the first part is taken.
        max_eval_recordings (`int`): Number of held-out recordings to measure on, spread evenly over all.
    """

    eval: str
    eval_filter: dict[str, str | list[str]] = field(default_factory=dict)
    eval_files: str | None = None
    eval_split: str = "validation"
    max_eval_recordings: int = 40

    def __post_init__(self):
        super().__post_init__()
        if self.max_eval_recordings < 1:
            raise ValueError(f"`data.max_eval_recordings` must be at least 1, but got {self.max_eval_recordings}.")


def check_shortest(args: RecordingsArguments, sampling_rate: int, shortest: int) -> None:
    """
    Check that an encoder can hear the shortest recording that is not left out.

    Args:
        args ([`RecordingsArguments`]): Section of the recipe.
        sampling_rate (`int`): Sampling rate of the encoder, in Hz.
        shortest (`int`): Number of samples that a frame of the encoder needs.

    Raises:
        ValueError: If it cannot.
    """
    if round(args.min_seconds * sampling_rate) < shortest:
        raise ValueError(
            f"`data.min_seconds` is {args.min_seconds}, but a frame of the encoder needs {shortest / sampling_rate:g}"
            " s; raise it, so that shorter recordings are left out."
        )


def decode_part(args: RecordingsArguments, part: str, sampling_rate: int, cache_dir: Path) -> DecodedRecordings:
    """
    The recordings that a recipe names, decoded by the main process while the others wait. The terminal shows how long
    they are. What cannot be decoded is named, with the reason, in `<part>.rejected.jsonl` in `cache_dir`.

    Args:
        args ([`RecordingsArguments`]): Their places.
        part (`str`): `"train"` or `"eval"`.
        sampling_rate (`int`): Rate to decode at, in Hz.
        cache_dir (`Path`): Folder of decoded audio.

    Raises:
        ValueError: If there are none, or none can be decoded.
    """
    source, kept, files, split = (getattr(args, f"{part}{suffix}") for suffix in ("", "_filter", "_files", "_split"))
    processes = process_state()
    with processes.main_process_first():
        recordings = decode_all(
            load_recordings(source, kept, files, split, args.audio_column),
            sampling_rate,
            cache_dir,
            processes.is_main_process,
        )
    if processes.is_main_process:
        summary = f"{source}: {len(recordings)} recordings, {recordings.seconds / 3600:.2f} h"
        rejected_path = Path(cache_dir) / f"{part}.rejected.jsonl"
        rejected_path.unlink(missing_ok=True)
        if recordings.rejected:
            append_rejected(rejected_path, recordings.rejected)
            summary += f"; {len(recordings.rejected)} cannot be read, see {rejected_path}"
        print(summary, file=sys.stderr)
    return recordings
