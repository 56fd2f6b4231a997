# SPDX-License-Identifier: Apache-2.0
"""Rows of a speech corpus to batches for a speech language model."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speech_tokenizers.modeling.speech_lm_sequences import check_length, pad_sequences
from speech_tokenizers.modeling.speech_lm_writers import is_text


class SpeechLMCollator:
    """
    Turn rows of a corpus into `input_ids`, `attention_mask` and `labels`, padded on the right.

    Prompts are masked. `<|audio_end|>` and the base's end of sequence are targets, so that the model learns to stop.
    Labels stand at their own positions; the model shifts them.

    With several tasks each row gets one. It is drawn by the seed, the epoch and the row's place, which is its column
    `place` if there is one, else its `id`. So it depends neither on the batch nor on the process. A row that lacks the
    columns of a task is not drawn for it. The epoch changes by [`~SpeechLMCollator.set_epoch`] alone, so without that
    a row keeps its task.

    It works with `transformers.Trainer` and `remove_unused_columns=False`.

    Args:
        processor (`SpeechLMProcessor`): Processor of the language model.
        tasks (`Mapping[str, float]`, *optional*): Weight of each task. Defaults to `{"tts": 1.0}`.
        max_length (`int`, *optional*): Most positions of a row; a longer one is refused by its id, never cut. The
            processor's own limit holds as well.
        pad_to_multiple_of (`int`, *optional*): Number of which the length of a batch becomes the next multiple.
        seed (`int`, *optional*, defaults to 0): Seed for the draw of tasks.
        return_tasks (`bool`, *optional*, defaults to `False`): Whether batches have `tasks` of shape `(batch,)`: the
            place of each row's task in `tasks`. The model does not take it.
        condition_dropout (`float`, *optional*, defaults to 0.0): Share of spoken rows whose text is hidden, drawn from
            the seed, the epoch and the row; that of the model's configuration, so that it can be guided. See
            [`without_text`].

    Raises:
        ValueError: If a task is unknown, a weight is negative or not finite, none is positive, or the share is not
            below 1 or needs another layout.
    """

    def __init__(
        self,
        processor: Any,
        tasks: Mapping[str, float] | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
        return_tasks: bool = False,
        condition_dropout: float = 0.0,
    ):
        tasks = {"tts": 1.0} if tasks is None else dict(tasks)
        for name, weight in tasks.items():
            processor.find_task(name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"The weight of the task {name!r} must be a number of at least 0, but is {weight}.")
        if not any(tasks.values()):
            raise ValueError(f"`tasks` must give some task a positive weight, but is {tasks}.")
        self.processor, self.tasks, self.max_length = processor, tasks, max_length
        self.pad_to_multiple_of, self.seed, self.return_tasks = pad_to_multiple_of, seed, return_tasks
        if not 0 <= condition_dropout < 1 or (condition_dropout and processor.layout != "continuous"):
            raise ValueError(
                f"`condition_dropout` must lie in [0, 1), and be 0 but for the continuous layout, but is"
                f" {condition_dropout} with the layout {processor.layout!r}."
            )
        self.condition_dropout = condition_dropout
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw tasks anew; the same epoch draws the same."""
        self.epoch = epoch

    def draw_task(self, row: Mapping[str, Any]) -> str:
        """
        The task of a row.

        Raises:
            ValueError: If the row lacks columns of every task, or has neither `place` nor `id` to draw by.
        """
        wanted = {name: weight for name, weight in self.tasks.items() if weight}
        missing = {name: self.processor.missing_column(row, name) for name in wanted}
        possible = [name for name in wanted if missing[name] is None]
        if not possible:
            lacks = ", ".join(f"{name} needs `{column}`" for name, column in missing.items())
            raise ValueError(f"Row {row.get('id')!r} serves no task: {lacks}; leave it out, or add a task.")
        place = row.get("place", row.get("id"))
        if len(possible) > 1 and place is None:
            raise ValueError("A row has neither `place` nor `id`, by which its task is drawn; give it one.")
        return drawn_task({name: wanted[name] for name in possible}, self.seed, self.epoch, place)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows (sequence of `Mapping`): Rows, as [`SpeechLMProcessor.row_inputs`] takes them.

        Returns:
            `dict` of `torch.LongTensor` of shape `(batch, num_positions)`: `input_ids`, `attention_mask`, `labels`.
            Beside the flat layout the frames, too; see [`SpeechLMForConditionalGeneration`].

        Raises:
            ValueError: If there is no row, a row is too long, or it is not what the processor takes.
        """
        if not rows:
            raise ValueError("`rows` is empty; a batch needs at least one row.")
        tasks = [self.draw_task(row) for row in rows]
        sequences = [self.processor.row_inputs(row, task) for row, task in zip(rows, tasks, strict=True)]
        if self.condition_dropout:
            for place, row in enumerate(rows):
                facts = ("text", self.seed, self.epoch, row.get("place", row.get("id")))
                if drawn_share(*facts) < self.condition_dropout:
                    sequences[place] = without_text(sequences[place], self.processor)
        for row, sequence in zip(rows, sequences, strict=True):
            check_length(len(sequence["input_ids"]), self.max_length, f"Row {row.get('id')!r}")
        batch = pad_sequences(
            sequences,
            self.processor.pad_token_id,
            "right",
            self.pad_to_multiple_of,
        )
        if self.return_tasks:
            names = list(self.tasks)
            batch["tasks"] = torch.tensor([names.index(task) for task in tasks])
        return batch


def without_text(inputs: Mapping[str, torch.Tensor], processor: Any) -> dict[str, torch.Tensor]:
    """
    A sequence whose text is not seen, so that its frames are learnt from those before alone; a sequence that says no
    frames stays as it is.

    Args:
        inputs (`dict` of `torch.Tensor`): What [`SpeechLMProcessor.row_inputs`] gives.
        processor ([`SpeechLMProcessor`]): The processor, of a layout with frames.

    Returns:
        `dict` of `torch.Tensor`: The sequence with an `attention_mask`, without labels of text, and with the start of
        a clip in the place of text, since the state there tells the next frame.
    """
    labels = inputs["labels"].clone()
    if labels.dim() == 1 or not bool((labels[1:] != -100).any()):
        return dict(inputs)
    labels[0] = -100
    ids = processor.speech_ids
    is_hidden = is_text(inputs["input_ids"], ids)
    input_ids = inputs["input_ids"].masked_fill(is_hidden, ids.audio_start)
    return {**inputs, "input_ids": input_ids, "labels": labels, "attention_mask": (~is_hidden).long()}


def drawn_task(weights: Mapping[str, float], *facts: object) -> str:
    """
    One of several tasks, drawn by their weights and from facts alone, such as a seed, an epoch and a row's place.

    Args:
        weights (`Mapping[str, float]`): Weight of each task that is possible; at least one, none negative.
        facts: What the draw depends on.
    """
    left = drawn_share(*facts) * sum(weights.values())
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return name
    return next(reversed(weights))  # by rounding alone


def drawn_share(*facts: object) -> float:
    """A number in [0, 1) that is drawn from facts alone: the same in every process and after every restart."""
    digest = hashlib.blake2b("\0".join(map(str, facts)).encode(), digest_size=7).digest()
    return (int.from_bytes(digest, "big") >> 3) / 2**53


__all__ = ["SpeechLMCollator", "drawn_share", "drawn_task", "without_text"]
