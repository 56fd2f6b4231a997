# SPDX-License-Identifier: Apache-2.0
"""Many recordings to units, in batches of about equal length, and the command `units` that writes them."""

import argparse
import collections
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import numpy as np
    import torch


# Batches that are decoded and padded before the encoder asks for them.
_BATCHES_AHEAD = 2
_SUFFIXES = {"jsonl": ".jsonl", "km": ".km", "textless": "", "array": ".safetensors"}


@dataclass(frozen=True)
class EncodedRecording:
    r"""
    What [`encode_recordings`] finds in one recording.

    Args:
        index (`int`): Its place among the recordings.
        name (`str`): Its path, or the `file_name` of its row.
        num_samples (`int`): Its length at the model's rate; 0 if it could not be read.
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`, *optional*): Codes, int64; without runs if
            they are de-duplicated. `None` if it failed.
        durations (`np.ndarray` of shape `(num_units,)`, *optional*): In frames, if de-duplicated.
        latents (`torch.Tensor` of shape `(num_frames, dim)`, *optional*): The frames that were coded, on the CPU.
        reason (`str`, *optional*): Why it failed, in one line.
    """

    index: int
    name: str
    num_samples: int = 0
    audio_codes: "np.ndarray | None" = None
    durations: "np.ndarray | None" = None
    latents: "torch.Tensor | None" = None
    reason: str | None = None

    @property
    def units(self) -> "np.ndarray | None":
        """The codes without the dimension of codebooks if there is one of these, as files of units have it."""
        only_one = self.audio_codes is not None and len(self.audio_codes) == 1
        return self.audio_codes[0] if only_one else self.audio_codes


@dataclass
class _Batch:
    # Decoded by the background thread. `inputs` is missing where not all recordings can be taken together.
    recordings: list[tuple[int, "np.ndarray"]]
    failed: list[EncodedRecording]
    inputs: Any = None


def encode_recordings(
    model: Any,
    feature_extractor: Any,
    recordings: Sequence[Any],
    batch_seconds: float = 60.0,
    deduplicate: bool = False,
    with_latents: bool = False,
    in_order: bool = True,
    num_threads: int = 2,
) -> Iterator[EncodedRecording]:
    r"""
    Encode recordings in batches, while threads decode those to come.

    Recordings of about equal length go together, the longest first. Those that are longer than `batch_seconds`, or than
    the encoder can hear, are read in blocks and encoded in windows, see [`WindowedEncoder`] and [`CodecStream`]; so
    memory holds some batches, and the codes that wait for their turn.

    Args:
        model: A model of the common interface, in evaluation mode, such as a [`KMeansUnitsModel`].
        feature_extractor: Its feature extractor.
        recordings (sequence): Paths; waveforms (`np.ndarray` of shape `(num_samples,)`) at the model's rate; or rows
            with an undecoded `audio`, such as the dataset of [`load_recordings`].
        batch_seconds (`float`, *optional*, defaults to 60.0): Audio in a batch with its padding.
        deduplicate (`bool`, *optional*, defaults to `False`): Merge runs of equal frames; see `processing`'s
            [`deduplicate`].
        with_latents (`bool`, *optional*, defaults to `False`): Give the frames that were coded too. Recordings that
            need windows fail then.
        in_order (`bool`, *optional*, defaults to `True`): Give the results in the order of `recordings`, or else as
            they come.
        num_threads (`int`, *optional*, defaults to 2): That decode audio.

    Returns:
        `Iterator[EncodedRecording]`: One for each recording; those that cannot be read or encoded have a `reason`.

    Raises:
        ValueError: If `batch_seconds` is not positive.
    """
    if batch_seconds <= 0:
        raise ValueError(f"`batch_seconds` must be positive, but got {batch_seconds}.")
    coder = _Coder(model, feature_extractor, recordings, deduplicate, with_latents)
    results = coder.encode(batch_seconds, num_threads)
    return _in_order(results) if in_order else results


class _Coder:
    def __init__(self, model: Any, feature_extractor: Any, recordings: Any, deduplicate: bool, with_latents: bool):
        self.model = model
        self.feature_extractor = feature_extractor
        self.recordings = recordings
        self.deduplicate = deduplicate
        self.with_latents = with_latents
        self.sampling_rate: int = feature_extractor.sampling_rate

    def encode(self, batch_seconds: float, num_threads: int) -> Iterator[EncodedRecording]:
        samples_per_batch = int(batch_seconds * self.sampling_rate)
        longest_input = getattr(self.model, "longest_input", None) or samples_per_batch
        with ThreadPoolExecutor(num_threads) as pool:
            lengths: dict[int, int] = {}
            for index, length in enumerate(pool.map(self._length, range(len(self.recordings)))):
                if isinstance(length, int):
                    lengths[index] = length
                else:
                    yield self._failed(index, length)
            longest_first = sorted(lengths, key=lambda index: -lengths[index])
            limit = min(samples_per_batch, longest_input)
            for index in longest_first:
                if lengths[index] > limit:
                    yield self._encode_in_windows(index)
            short = [(index, lengths[index]) for index in longest_first if lengths[index] <= limit]
            decoded = (self._decode_batch(batch, pool) for batch in _batches(short, samples_per_batch))
            # What a batch gives is fetched once the next one is under way, so that a GPU does not wait for it.
            finish: Callable[[], Iterator[EncodedRecording]] = lambda: iter(())  # noqa: E731
            for batch in _ahead(decoded, _BATCHES_AHEAD):
                finish_previous, finish = finish, self._start(batch)
                yield from finish_previous()
            yield from finish()

    def _failed(self, index: int, error: Exception) -> EncodedRecording:
        return EncodedRecording(index, self._name(index), reason=" ".join(str(error).split()))
