# SPDX-License-Identifier: Apache-2.0
"""Batches of recordings of like length, filled by their seconds and not by their number."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from speech_tokenizers.processing.packing import pack_by_length


class LengthBatchSampler(torch.utils.data.Sampler[list[int]]):
    """
    The micro-batches of one process, for a whole training. Recordings of like length lie beside each other. A batch is
    filled by length with padding. Each recording comes once an epoch.

    An epoch orders the recordings by length, where those within one bucket come in random order; cuts this order into
    batches; and shuffles the batches. All of it follows from the seed and the epoch, so that only the number of
    batches taken has to be saved to continue. Epochs follow each other without a gap, in which a step may span two.

    Processes take turns with micro-batches: in a step, process r takes those numbered r, r + `world_size`, ...; or
    they share each of them, so that it does not matter how many they are.

    Args:
        lengths (sequence of `int`): Length of each recording, such as its samples.
        batch_size (`int`): Size of a micro-batch, in the unit of `lengths`, with padding; see [`pack_by_length`].
        num_batches (`int`): Number of micro-batches that this process takes in all.
        seed (`int`, *optional*, defaults to 0): Seed for the order.
        bucket_size (`int`, *optional*): Width of a bucket of lengths. Recordings within one bucket count as alike.
            Defaults to a 32nd of the longest length.
        rank, world_size (`int`): Number of this process, and number of processes.
        share_batches (`bool`, *optional*, defaults to `False`): Whether every process takes its part of every
            micro-batch: process r takes the recordings numbered r, r + `world_size`, ... in it. `batch_size` is then
            that of all parts.
        drop_incomplete (`bool`, *optional*, defaults to `False`): Whether to leave out the last batch that an epoch is
            cut into, unless it is the only one. It has the shortest recordings.

    Yields:
        Lists of indices. Those of epoch e are `e * len(lengths)` and up, so that a dataset can crop and mask a
        recording anew each time.

    Raises:
        ValueError: If there is no recording, or a number is not positive; while iterating, if a batch that is shared
            has fewer recordings than there are processes.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        num_batches: int,
        seed: int = 0,
        bucket_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        share_batches: bool = False,
        drop_incomplete: bool = False,
    ):
        self.lengths = np.asarray(lengths)
        if len(self.lengths) == 0 or self.lengths.min() <= 0:
            raise ValueError("`lengths` must hold at least one recording, and none of length 0.")
        if batch_size < 1 or num_batches < 1:
            raise ValueError(
                f"`batch_size` and `num_batches` must be positive, but got {batch_size} and {num_batches}."
            )
        self.batch_size, self.num_batches, self.seed = batch_size, num_batches, seed
        self.bucket_size = max(1, int(self.lengths.max()) // 32) if bucket_size is None else bucket_size
        self.rank, self.world_size = rank, world_size
        self.share_batches, self.drop_incomplete = share_batches, drop_incomplete

    def __len__(self) -> int:
        return self.num_batches

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """The micro-batches of an epoch, of all processes, in order."""
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(len(self.lengths))
        order = order[np.argsort(self.lengths[order] // self.bucket_size, kind="stable")]
        if self.drop_incomplete:
            batches = pack_by_length(self.lengths, order[::-1], self.batch_size)
            batches = batches[: max(1, len(batches) - 1)]
        else:
            batches = pack_by_length(self.lengths, order, self.batch_size)
        first = epoch * len(self.lengths)
        return [[first + index for index in batches[i]] for i in generator.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[int]]:
        taken, position, epoch = 0, 0, 0
        while True:
            for batch in self.epoch_batches(epoch):
                if self.share_batches or position % self.world_size == self.rank:
                    yield self._part(batch) if self.share_batches else batch
                    taken += 1
                    if taken == self.num_batches:
                        return
                position += 1
            epoch += 1

    def _part(self, batch: list[int]) -> list[int]:
        if len(batch) < self.world_size:
            raise ValueError(
                f"A batch has {len(batch)} recordings for {self.world_size} processes; make batches larger."
            )
        return batch[self.rank :: self.world_size]


def length_batch_loader(trainer: Any, batch_size: int, **options: bool) -> torch.utils.data.DataLoader:
    """
    All batches of a process's whole training as one epoch, so that a resumed training skips those it has taken.

    Args:
        trainer (`transformers.Trainer`): Trainer whose `train_dataset` has `lengths`.
        batch_size (`int`): Size of a micro-batch, in the unit of `lengths`, with padding.
        options: Arguments `share_batches` and `drop_incomplete` of the [`LengthBatchSampler`].
    """
    args = trainer.args
    sampler = LengthBatchSampler(
        trainer.train_dataset.lengths,
        batch_size,
        args.max_steps * args.gradient_accumulation_steps,
        args.seed,
        rank=args.process_index,
        world_size=args.world_size,
        **options,
    )
    return torch.utils.data.DataLoader(
        trainer.train_dataset,
        batch_sampler=sampler,
        collate_fn=trainer.data_collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        # A generator of its own: iterating would otherwise draw from the global one, which dropout uses.
        generator=torch.Generator(),
    )
