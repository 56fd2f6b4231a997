# SPDX-License-Identifier: Apache-2.0
"""Rows of an encoded corpus as a language model learns from them, and what they say of how long speech takes."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.speech_lm_alarms import longest_loop
from speech_tokenizers.modeling.speech_lm_sequences import PIECE_COLUMNS, pad_sequences
from speech_tokenizers.modeling.speech_lm_tasks import TASKS
from speech_tokenizers.processing.speech_rows import row_audio_codes
from speech_tokenizers.processing.unit_sequences import deduplicate
from speech_tokenizers.training.common.processes import process_state
from speech_tokenizers.training.common.recipe_files import check_names
from speech_tokenizers.training.language_models.speech_lm_collator import drawn_share, drawn_task, without_text


class SpeechLMItems(torch.utils.data.Dataset):
    """
    Rows of a corpus, each with a task, as ids and labels.

    The task of a row is drawn anew each epoch, from the seed, the epoch and the row. Indices beyond the length belong
    to later epochs, as a [`LengthBatchSampler`] gives them.

    Args:
        rows (`datasets.Dataset`): Rows; see [`read_speech_rows`].
        processor ([`SpeechLMProcessor`]): The model's processor.
        tasks (mapping of `str` to `float`): Weights of the tasks; see [`TASKS`]. A row that lacks what a task needs is
            not drawn for it.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        max_length (`int`, *optional*): Most positions of a row.
        condition_dropout (`float`, *optional*, defaults to 0.0): Share of spoken rows whose text is hidden, drawn anew
            each epoch.

    Attributes:
        lengths (`np.ndarray` of shape `(len(items),)`): Positions of each row, with the task in which it is longest.
        tasks (`list[str]`): Names of the tasks, by the number that an item gives.

    Raises:
        ValueError: If a task is unknown, no row can be used for one, a row can be used for none, or is too long.
    """

    def __init__(
        self,
        rows: Any,
        processor: SpeechLMProcessor,
        tasks: Mapping[str, float] | None = None,
        seed: int = 0,
        max_length: int | None = None,
        condition_dropout: float = 0.0,
    ):
        tasks = {"tts": 1.0} if tasks is None else tasks
        self.condition_dropout = condition_dropout
        check_names(tasks, {**TASKS, **processor.new_tasks}, "`tasks`")
        self.rows, self.processor, self.seed = rows, processor, seed
        self.tasks = list(tasks)
        self.weights = dict(tasks)
        self.lengths = np.zeros(len(rows), dtype=np.int64)
        self.usable = np.zeros((len(rows), len(self.tasks)), dtype=bool)
        is_shown = process_state().is_main_process
        for index, row in enumerate(tqdm(rows, desc="measuring rows", leave=False, disable=not is_shown)):
            for number, name in enumerate(self.tasks):
                if processor.missing_column(row, name) is None:
                    self.usable[index, number] = True
                    length = len(processor.row_inputs(row, name)["input_ids"])
                    self.lengths[index] = max(self.lengths[index], length)
            self._check(index, row, max_length)
        for number, name in enumerate(self.tasks):
            if not self.usable[:, number].any():
                lacks = processor.missing_column(rows[0], name)
                raise ValueError(f"No row can be used for the task {name!r}: the first one lacks `{lacks}`.")

    def _check(self, index: int, row: Mapping[str, Any], max_length: int | None) -> None:
        if not self.usable[index].any():
            lacks = ", ".join(f"{name} needs `{self.processor.missing_column(row, name)}`" for name in self.tasks)
            raise ValueError(
                f"Row {row['id']!r} can be used for none of the tasks: {lacks}. `encode-rows` takes texts from the"
                " metadata, and times of words and phones from there or by `--times`."
            )
        if max_length is not None and self.lengths[index] > max_length:
            raise ValueError(
                f"Row {row['id']!r} takes {self.lengths[index]} positions, but at most {max_length} are allowed. Leave"
                " it out, or cut its recording and encode the parts."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def task_of(self, index: int) -> int:
        """Number of the task of an item; see `tasks`."""
        epoch, item = divmod(index, len(self))
        possible = {
            name: self.weights[name] for name, usable in zip(self.tasks, self.usable[item], strict=True) if usable
        }
        return self.tasks.index(drawn_task(possible, self.seed, epoch, item))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """What [`SpeechLMProcessor.row_inputs`] gives, and `tasks`, the number of the task."""
        task = self.task_of(index)
        inputs = self.processor.row_inputs(self.rows[index % len(self)], self.tasks[task])
        if (
            self.condition_dropout
            and drawn_share("text", self.seed, *divmod(index, len(self))) < self.condition_dropout
        ):
            inputs = without_text(inputs, self.processor)
        return {**inputs, "tasks": torch.tensor(task)}


def pad_items(processor: SpeechLMProcessor) -> Callable[[Sequence[dict[str, torch.Tensor]]], dict[str, torch.Tensor]]:
    """A function that makes a batch of [`SpeechLMItems`], padded on the right."""

    def collate(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        parts = [{name: part for name, part in item.items() if name != "tasks"} for item in items]
        batch = pad_sequences(parts, processor.pad_token_id, "right")
        return {**batch, "tasks": torch.stack([item["tasks"] for item in items])}

    return collate


def piece_frames(
    rows: Any,
    processor: SpeechLMProcessor,
    share: float = 0.001,
    known: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """
    Fewest and most frames, or runs, that each label takes, but for a share of its occurrences at either end.

    Args:
        rows (`datasets.Dataset`): Rows with `phones`.
        processor ([`SpeechLMProcessor`]): The processor, for its labels and frame rate.
        share (`float`, *optional*, defaults to 0.001): Share that is left out.
        known (sequence of pairs, *optional*): Limits of rows that a model has learnt before, which are widened only:
            it still says a label that the new rows lack.
    """
    frames: dict[str, list[int]] = {label: [] for label in processor.piece_labels}
    for row in rows.select_columns(["phones", *columns_of_counts(rows, processor)]):
        phones = row["phones"] or ()
        if not phones:
            continue
        for phone, count in zip(phones, processor.frame_counts(row, phones), strict=True):
            frames[phone["label"]].append(count)
    limits = []
    for counts, before in zip(frames.values(), known or [()] * len(frames), strict=True):
        ends = [*before]
        if counts or not ends:
            fewest, most = np.quantile(counts or [1], [share, 1 - share])
            ends += [max(1, int(np.floor(fewest))), max(1, int(np.ceil(most)))]
        limits.append([min(ends), max(ends)])
    return limits


def frames_per_character(rows: Any, processor: SpeechLMProcessor, share: float = 0.001) -> list[float] | None:
    """
    Mean number of frames, or runs, of a character of text, and the one that only a share of the texts exceeds.

    With `text_alignment: word` the second number is that of single words, which vary more than texts.

    Args:
        rows (`datasets.Dataset`): Rows.
        processor ([`SpeechLMProcessor`]): The processor, for its alignment and frame rate.
        share (`float`, *optional*, defaults to 0.001): Share of texts, or words, that exceed it.
    """
    of_words = processor.text_alignment == "word"
    of_texts, of_pieces = [], []
    for row in rows.select_columns(["text", *columns_of_counts(rows, processor), *(["words"] if of_words else [])]):
        if not row["text"]:
            continue
        of_texts.append(processor.frame_counts(row)[0] / (len(row["text"]) + 1))
        if words := of_words and row["words"]:
            counts = processor.frame_counts(row, words)
            of_pieces += [count / (len(word["word"]) + 1) for word, count in zip(words, counts, strict=True)]
    if not of_texts:
        return None
    return [float(np.mean(of_texts)), float(np.quantile(of_pieces or of_texts, 1 - share))]


def latent_moments(rows: Any, processor: SpeechLMProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean `(latent_dim,)` and covariance `(latent_dim, latent_dim)` of the latents of all rows, float64.

    Args:
        rows (`datasets.Dataset`): Rows of latents, or of codes that stand for some.
        processor ([`SpeechLMProcessor`]): The processor, of the continuous layout.
    """
    dim = processor.latent_dim
    total, products = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    count = 0
    for row in rows:
        latents = processor.row_frames(row).double()
        total, products, count = total + latents.sum(0), products + latents.T @ latents, count + len(latents)
    mean = total / max(1, count)
    return mean, products / max(1, count) - torch.outer(mean, mean)


def columns_of_counts(rows: Any, processor: SpeechLMProcessor) -> list[str]:
    """The columns of rows that [`SpeechLMProcessor.frame_counts`] reads; de-duplicated rows have durations."""
    return [*processor.count_columns, *(["durations"] if "durations" in rows.column_names else [])]


def unit_durations(rows: Any, num_units: int) -> list[float]:
    """
    Mean duration of each unit, in frames, over runs of equal frames; 1 for a unit that does not occur.

    Args:
        rows (`datasets.Dataset`): Rows with `audio_codes`, whose first codebook holds units.
        num_units (`int`): Number of units.
    """
    frames, runs = np.zeros(num_units), np.zeros(num_units)
    for row in rows:
        units, lasting = deduplicate(row_audio_codes(row)[0])
        np.add.at(frames, units, lasting)
        np.add.at(runs, units, 1)
    return [round(float(value), 3) for value in np.where(runs > 0, frames, 1) / np.maximum(runs, 1)]


def longest_loop_seconds(rows: Any, processor: SpeechLMProcessor, max_rows: int = 500) -> float:
    """
    Longest stretch, in seconds, in which frames repeat those before them; see [`longest_loop`].

    Args:
        rows (`datasets.Dataset`): Rows.
        processor ([`SpeechLMProcessor`]): The processor.
        max_rows (`int`, *optional*, defaults to 500): Most rows, the first ones, that are looked at.
    """
    chosen = [processor.row_frames(row) for row in rows.select(range(min(max_rows, len(rows))))]
    spread = torch.cat(chosen).std(0) if processor.layout == "continuous" else None
    found = [longest_loop(frames, processor.frame_rate, spread)[2] for frames in chosen]
    return max(found, default=0) / processor.frame_rate


def symbols_per_second(rows: Any, processor: SpeechLMProcessor, max_rows: int = 500) -> float:
    """
    Frames, or runs, of a second of speech, as they stand in sequences.

    Args:
        rows (`datasets.Dataset`): Rows.
        processor ([`SpeechLMProcessor`]): The processor, for its coding and its alignment.
        max_rows (`int`, *optional*, defaults to 500): Most rows, the first ones, that are counted.
    """
    timed = PIECE_COLUMNS[processor.text_alignment][0] if processor.text_alignment != "none" else None
    columns = ["seconds", *columns_of_counts(rows, processor), *([timed] if timed in rows.column_names else [])]
    total, seconds = 0, 0.0
    for row in rows.select(range(min(max_rows, len(rows)))).select_columns(columns):
        total += sum(processor.frame_counts(row, (row.get(timed) or None) if timed else None))
        seconds += row["seconds"]
    return total / seconds


def rows_fingerprint(path: str) -> str:
    """Short hash of the files of rows in a folder."""
    digest = hashlib.sha256()
    folder = Path(path)
    for file in sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]:
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
