# SPDX-License-Identifier: Apache-2.0
"""Labels of recordings, as `speech-tokenizers align --unit label` writes them, and the label of each frame."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from speech_tokenizers.processing.metadata_files import read_json_lines
from speech_tokenizers.processing.timed_labels import TimedLabel


# Neither sounds nor silence: the boundary between two words in characters and phones.
IGNORED_LABELS = ("", "|")


def read_labels(path: Path) -> dict[str, list[TimedLabel]]:
    """
    Labels of recordings.

    Args:
        path (`Path`): Path of JSON lines with `file_name` and `labels`, a list of `{"label", "start", "end"}` in
            seconds, as `speech-tokenizers align --unit label` writes them.

    Raises:
        ValueError: If a line has another form.
    """
    labels: dict[str, list[TimedLabel]] = {}
    for number, row in read_json_lines(path):
        try:
            name = row["file_name"]
            spans = [(str(item["label"]), float(item["start"]), float(item["end"])) for item in row["labels"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}: `file_name` and `labels` with `label`, `start` and `end` were expected"
                f" ({type(error).__name__}: {error})."
            ) from error
        if name in labels:
            raise ValueError(f"{path}, line {number}: {name!r} stands in an earlier line too; keep one of them.")
        labels[name] = [TimedLabel(*span) for span in spans]
    return labels


def label_frames(
    labels: Sequence[TimedLabel], num_frames: int, frame_rate: float, classes: Mapping[str, int]
) -> np.ndarray:
    """
    The class of the label that covers the middle of each frame, of shape `(num_frames,)`; -1 where there is none.

    Args:
        labels (sequence of [`TimedLabel`]): Labels of one recording. Of labels that overlap, the later one counts.
        num_frames (`int`), frame_rate (`float`): Number of frames, and frames per second. Frame k lasts from
            k / frame_rate to (k + 1) / frame_rate seconds.
        classes (mapping of `str` to `int`): Number of each label. Other labels are left out.
    """
    middles = (np.arange(num_frames) + 0.5) / frame_rate
    numbers = np.full(num_frames, -1)
    for item in labels:
        if item.label in classes:
            numbers[(middles >= item.start) & (middles < item.end)] = classes[item.label]
    return numbers
