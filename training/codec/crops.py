# SPDX-License-Identifier: Apache-2.0
"""Training crops that a seed and a position determine, and which process gets which of them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from speech_tokenizers.processing.audio_files import AudioFileError
from speech_tokenizers.processing.recordings import append_rejected, decode_recording, recording_name
from speech_tokenizers.training.common.data import DataArguments


@dataclass(frozen=True)
class CropSettings:
    """
    Length and loudness of a crop. See [`DataArguments`] for the other fields.

    Args:
        num_samples (`int`): Length of a crop in samples. Shorter recordings are followed by silence.
        hop_length (`int`): Number of samples between two frames. A crop begins at a multiple of it, where a frame of
            the recording does.
    """

    num_samples: int
    target_level_db: float | None = None
    gain_db: tuple[float, float] = (0.0, 0.0)
    min_level_db: float = -60.0
    hop_length: int = 1

    def cut(self, recording: np.ndarray, generator: np.random.Generator) -> tuple[torch.Tensor, int]:
        """
        A random crop of an int16 or float32 recording `(n,)`, as float32 of shape `(1, num_samples)`, and its first
        sample's index.
        """
        last_start = max(0, len(recording) - self.num_samples)
        for _ in range(8):
            start = self.hop_length * int(generator.integers(last_start // self.hop_length + 1))
            crop = np.asarray(recording[start : start + self.num_samples], dtype=np.float32)
            if recording.dtype == np.int16:
                crop = crop / 32767.0
            level = 10.0 * np.log10(np.mean(np.square(crop)) + 1e-12) if len(crop) else -120.0
            if level >= self.min_level_db or last_start == 0:
                break
        gain_db = generator.uniform(*self.gain_db)
        if self.target_level_db is not None and level >= self.min_level_db:
            gain_db += self.target_level_db - level
        gain = 10.0 ** (gain_db / 20.0)
        peak = float(np.abs(crop).max(initial=0.0))
        if peak * gain > 0.99:
            gain = max(0.99 / peak, min(gain, 1.0))
        padded = np.zeros((1, self.num_samples), dtype=np.float32)
        padded[0, : len(crop)] = crop * np.float32(gain)
        return torch.from_numpy(padded), start


class AudioCropDataset(torch.utils.data.Dataset):
    """
    Random crops of decoded recordings. In an epoch a recording is drawn once for each crop length that it holds.

    A crop depends on the seed, the epoch and its index only, not on workers, processes or what was drawn before.
    Indices beyond the length belong to later epochs. The dataset works with `transformers.Trainer`, which announces
    epochs by `set_epoch`.

    Args:
        recordings ([`DecodedRecordings`] or a sequence of `(num_samples,)` arrays): Recordings as int16 or float32
            audio.
        settings ([`CropSettings`] or `int`): Settings of the cut. An integer is a length in samples.
        seed (`int`, *optional*, defaults to 0): Seed of the crops.
        targets (callable, *optional*): Function called with the index of a crop's recording, the index of its first
            sample and its number of samples. It returns a dict of tensors to add to the crop.
    """

    def __init__(
        self,
        recordings: Sequence[np.ndarray],
        settings: CropSettings | int,
        seed: int = 0,
        targets: Callable[[int, int, int], dict[str, torch.Tensor]] | None = None,
    ):
        self.recordings = recordings
        self.targets = targets
        self.settings = CropSettings(settings) if isinstance(settings, int) else settings
        self.seed = seed
        self.epoch = 0
        crops_per_recording = [max(1, round(len(r) / self.settings.num_samples)) for r in recordings]
        self.recording_of_crop = np.repeat(np.arange(len(recordings)), crops_per_recording)

    def __len__(self) -> int:
        return len(self.recording_of_crop)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self[index] for index in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops under the same indices."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`{"input_values": (1, num_samples)}`, and what `targets` adds."""
        later_epochs, crop = divmod(index, len(self))
        generator = np.random.default_rng((self.seed, self.epoch + later_epochs, crop))
        recording = int(self.recording_of_crop[crop])
        input_values, first_sample = self.settings.cut(self.recordings[recording], generator)
        added = {} if self.targets is None else self.targets(recording, first_sample, self.settings.num_samples)
        return {"input_values": input_values, **added}


class StreamedCropDataset(torch.utils.data.IterableDataset):
    """
    Random crops of a stream of recordings, one crop a recording, decoded as they come.

    The crop at a position depends on the seed and the position only. A recording that cannot be decoded leaves silence
    in its place, so that the batches of all processes stay as they were. It is noted in `rejected_path`.

    Args:
        recordings (`datasets.IterableDataset`): Stream as [`load_recordings`] returns it.
        sampling_rate (`int`): Sampling rate to decode at, in Hz.
        settings ([`CropSettings`]): Settings of the cut.
        positions (iterable of lists of `int`): The batches of this process, ascending positions in the endless
            shuffled stream.
        seed (`int`), shuffle_buffer (`int`): Seed for the order, and size of the buffer in which the stream is
            shuffled anew each epoch.
        rejected_path (`Path`, *optional*): File to note in what could not be decoded.
    """

    def __init__(
        self, recordings, sampling_rate, settings, positions, seed=0, shuffle_buffer=1000, rejected_path=None
    ):
        self.recordings = recordings
        self.sampling_rate = sampling_rate
        self.settings = settings
        self.positions = positions
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.rejected_path = rejected_path

    def _rows(self) -> Iterator[dict[str, Any]]:
        shuffled = self.recordings.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        for epoch in itertools.count():
            shuffled.set_epoch(epoch)
            empty = True
            for row in shuffled:
                empty = False
                yield row
            if empty:
                raise ValueError("The stream of recordings is empty; check `data.train` and its filter.")

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rows = enumerate(self._rows())
        for batch in self.positions:
            crops = []
            for wanted in batch:
                position, row = next((p, r) for p, r in rows if p == wanted)
                generator = np.random.default_rng((self.seed, position))
                crops.append(self.settings.cut(self._decode(row, position), generator)[0])
            yield {"input_values": torch.stack(crops)}

    def _decode(self, row: dict[str, Any], position: int) -> np.ndarray:
        try:
            return decode_recording(row, self.sampling_rate)
        except AudioFileError as error:
            if self.rejected_path is not None:
                append_rejected(self.rejected_path, [{"name": recording_name(row, position), "reason": str(error)}])
            return np.zeros(self.settings.num_samples, dtype=np.float32)


class GlobalBatchSampler:
    """
    The micro-batches of one process: lists of indices that, over all processes, make up the same global batch at every
    step.

    Step s takes the entries s * B to (s + 1) * B - 1 of an endless sequence in which each epoch is a permutation drawn
    from the seed and the epoch. Nothing has to be saved to continue at a step but its number.

    Args:
        num_crops (`int`, *optional*): Number of crops per epoch. `None` stands for a stream, whose positions are not
            permuted.
        global_batch_size (`int`): Number B of crops per step over all processes.
        seed (`int`): Seed of the permutations.
        steps (`range`): Steps to prepare.
        rank, world_size (`int`): Number of this process, and number of processes.
        accumulation (`int`): Number of micro-batches per step and process.

    Raises:
        ValueError: If the global batch cannot be divided evenly.
    """

    def __init__(
        self,
        num_crops: int | None,
        global_batch_size: int,
        seed: int,
        steps: range,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
    ):
        if global_batch_size % (world_size * accumulation):
            raise ValueError(
                f"`global_batch_size` ({global_batch_size}) must be a multiple of the number of processes"
                f" ({world_size}) times `gradient_accumulation_steps` ({accumulation})."
            )
        self.num_crops, self.global_batch_size, self.seed, self.steps = num_crops, global_batch_size, seed, steps
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        size = self.global_batch_size // (self.world_size * self.accumulation)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            indices = []
            for position in range(step * self.global_batch_size, (step + 1) * self.global_batch_size):
                if self.num_crops is not None:
                    if position // self.num_crops != epoch:
                        epoch = position // self.num_crops
                        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_crops)
                    position = epoch * self.num_crops + int(order[position % self.num_crops])
                indices.append(position)
            for micro in range(self.accumulation):
                start = (micro * self.world_size + self.rank) * size
                yield indices[start : start + size]


def training_batches(
    recordings: Any,
    args: DataArguments,
    sampling_rate: int,
    seed: int,
    global_batch_size: int,
    accumulation: int,
    steps: range,
    accelerator: Accelerator,
    rejected_path: Path,
    targets: Callable[[int, int, int], dict[str, torch.Tensor]] | None = None,
    hop_length: int = 1,
) -> torch.utils.data.DataLoader:
    """
    The micro-batches of this process for `steps`: dicts with `input_values` of shape `(batch, 1, num_samples)`.

    Args:
        recordings: Sequence of recordings, or a `datasets.IterableDataset` of undecoded ones.
        args ([`DataArguments`]): Settings of crops and loudness.
        sampling_rate (`int`), seed (`int`), global_batch_size (`int`), accumulation (`int`), steps (`range`): Sampling
            rate in Hz, and arguments of [`GlobalBatchSampler`].
        accelerator (`Accelerator`): Accelerator of the run. It knows the rank of this process and its device.
        rejected_path (`Path`): File in which a stream notes what it cannot decode.
        targets (callable, *optional*): Function that gives tensors to add to a crop; see [`AudioCropDataset`]. A
            stream has none.
        hop_length (`int`): Number of samples between two frames; see [`CropSettings`].
    """
    settings = CropSettings(
        num_samples=round(args.segment_seconds * sampling_rate),
        target_level_db=args.target_level_db,
        gain_db=(args.gain_db[0], args.gain_db[1]),
        min_level_db=args.min_level_db,
        hop_length=hop_length,
    )
    streaming = isinstance(recordings, torch.utils.data.IterableDataset)
    crops = None if streaming else AudioCropDataset(recordings, settings, seed, targets)
    sampler = GlobalBatchSampler(
        None if crops is None else len(crops),
        global_batch_size,
        seed,
        steps,
        accelerator.process_index,
        accelerator.num_processes,
        accumulation,
    )
    # Its own generator: iterating would otherwise draw from the global one, which a resumed run has in another state.
    loading = {"generator": torch.Generator(), "pin_memory": accelerator.device.type == "cuda"}
    if crops is not None:
        return torch.utils.data.DataLoader(crops, batch_sampler=sampler, num_workers=args.num_workers, **loading)
    stream = StreamedCropDataset(
        recordings, sampling_rate, settings, sampler, seed, args.shuffle_buffer, rejected_path
    )
    # One worker at most, which decodes ahead: a second one would read the same stream again.
    return torch.utils.data.DataLoader(stream, batch_size=None, num_workers=min(1, args.num_workers), **loading)
