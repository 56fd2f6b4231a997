# SPDX-License-Identifier: Apache-2.0
"""Parts of recordings whose frames units are fitted on, and where their frames are in the file of frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech_tokenizers.modeling.unit_model import UnitPreTrainedModel
from speech_tokenizers.processing.recordings import DecodedRecordings


@dataclass(frozen=True)
class Excerpt:
    """
    A part of a recording, heard at once.

    Args:
        recording (`int`): Number of the recording.
        start (`int`), num_samples (`int`): Where the part is.
    """

    recording: int
    start: int
    num_samples: int


def draw_excerpts(
    recordings: DecodedRecordings,
    max_samples: int,
    min_samples: int,
    fit_seconds: float | None = None,
    seed: int = 0,
) -> list[Excerpt]:
    """
    Whole recordings in a random order, long ones in parts, until there is enough.

    Args:
        recordings ([`DecodedRecordings`]): To draw from.
        max_samples (`int`): Longer recordings are cut into parts of this length.
        min_samples (`int`): Shorter recordings and remainders are left out.
        fit_seconds (`float`, *optional*): Audio to draw. Defaults to all.
        seed (`int`): Of the order.

    Raises:
        ValueError: If nothing is long enough.
    """
    left = float("inf") if fit_seconds is None else fit_seconds * recordings.sampling_rate
    lengths = np.diff(recordings.starts)
    excerpts = []
    for index in np.random.default_rng(seed).permutation(len(recordings)).tolist():
        for start in range(0, int(lengths[index]), max_samples):
            num_samples = min(max_samples, int(lengths[index]) - start)
            if num_samples >= min_samples and left > 0:
                excerpts.append(Excerpt(index, start, num_samples))
                left -= num_samples
    if not excerpts:
        raise ValueError(
            f"Not one of the {len(recordings)} recordings has the {min_samples} samples that a frame needs; give "
            "longer ones."
        )
    return excerpts


def frame_places(model: UnitPreTrainedModel, excerpts: Sequence[Excerpt]) -> list[slice]:
    """
    Where the frames of each excerpt are in the file of all frames: the longest excerpt's first.

    Args:
        model ([`UnitPreTrainedModel`]): What hears the excerpts.
        excerpts (sequence of [`Excerpt`]): All of the file.
    """
    lengths = np.array([excerpt.num_samples for excerpt in excerpts])
    order = np.argsort(-lengths, kind="stable").tolist()
    num_frames = [int(model.get_encoded_length(int(length))) for length in lengths]
    starts = np.cumsum([0, *(num_frames[i] for i in order)]).tolist()
    places = {i: slice(start, start + num_frames[i]) for i, start in zip(order, starts, strict=False)}
    return [places[i] for i in range(len(excerpts))]
