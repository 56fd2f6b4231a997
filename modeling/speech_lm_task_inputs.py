# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Prompts of the tasks that hear a recording and answer by text, and the ids of such answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature

from .speech_lm_layouts import IGNORED
from .speech_lm_sequences import WrittenClip, pad_sequences
from .speech_lm_tasks import SPEECH_COLUMN, Task
from .speech_lm_text import checked_text


@dataclass(frozen=True)
class AnswerIds:
    """
    Answers as ids.

    Args:
        ids (`list` of `list[int]`): Ids of each answer, with the end of sequence.
        prompt_end (`list[int]`): Ids with which the prompts end, behind the clip, whatever the task is.
    """

    ids: list[list[int]]
    prompt_end: list[int]


class TaskInputs:
    """The part of a [`SpeechLMProcessor`] that asks for text about recordings; see there for its fields."""

    tokenizer: Any
    audio_offset: int

    def task_inputs(
        self: Any,
        task: str | Task,
        rows: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        audio: Any = None,
        audio_codes: Any = None,
        audio_latents: Any = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """
        The prompts of a task that hears and answers by text, as they stand in training before the answers.

        Args:
            task (`str` or `Task`): The task.
            rows (`Mapping` or sequence of `Mapping`, *optional*): Rows of a corpus, as
                [`~SpeechLMProcessor.row_inputs`] takes them. The column with the answer is not needed.
            audio, audio_codes, audio_latents (*optional*): Recordings in place of rows, one or a list, as
                [`~SpeechLMProcessor.__call__`] takes them.
            sampling_rate (`int`, *optional*): Rate of the waveforms in Hz, to be checked.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask`, `(batch, num_positions)`, padded on the left; beside the
            flat layout the frames, too.

        Raises:
            ValueError: If the task hears nothing or answers by speech, there is no clip, rows and recordings are given
                at once, or a clip is not what the processor takes.
        """
        asked: Task = self.find_task(task)
        if asked.source != SPEECH_COLUMN or asked.output != "text":
            raise ValueError(
                f"The task {asked.name!r} reads `{asked.source}` and answers by {asked.output}, but a task is needed"
                " that hears a recording and answers by text."
            )
        recordings = (audio, audio_codes, audio_latents)
        if (rows is not None) == any(part is not None for part in recordings):
            raise ValueError("Give either `rows`, or recordings by `audio`, `audio_codes` or `audio_latents`.")
        if rows is not None:
            named = [(f"Row {row.get('id')!r}", row) for row in ([rows] if isinstance(rows, Mapping) else rows)]
            clips = [(name, self._writer.clip(self.row_frames(row), None, name)) for name, row in named]
        else:
            if audio_latents is not None and self.layout != "continuous":
                raise ValueError(
                    f"`audio_latents` need `layout='continuous'`, but the processor's is {self.layout!r}."
                )
            written = self._clips(audio, audio_codes, None, audio_latents, sampling_rate)
            clips = [(f"Clip {place}", clip) for place, clip in enumerate(written)]
        if not clips:
            raise ValueError("There is no clip to ask about; give at least one.")
        prompt = self.task_prompt(asked)
        sequences = [self._writer.sequence(prompt, None, iter([clip]), name) for name, clip in clips]
        for sequence in sequences:
            del sequence["labels"]
        return BatchFeature(pad_sequences(sequences, self.pad_token_id, "left"))

    def answer_ids(self: Any, answers: Sequence[str]) -> AnswerIds:
        """
        Answers of text as ids, as they stand in training behind the prompts of [`~SpeechLMProcessor.task_inputs`].

        Args:
            answers (sequence of `str`): The answers. Control tokens in them are ordinary text.

        Raises:
            ValueError: If there is none, one is empty, or the tokenizer joins its beginning with the end of the
                prompt.
        """
        if isinstance(answers, str) or not len(answers):
            raise ValueError(f"`answers` must be a list of at least one text, but is {answers!r}.")
        # All tasks that hear have their prompts end alike; one frame stands for the clip.
        prompt, ids = self.task_prompt("asr"), self._writer.ids
        found, prompt_end = [], []
        for place, answer in enumerate(answers):
            name = f"Answer {place}"
            target = self.as_plain_text(checked_text(answer, name))
            clip = WrittenClip([ids.audio_offset], None, [True])
            sequence = self._writer.sequence(prompt, target, iter([clip]), name)
            labels = sequence["labels"] if sequence["labels"].dim() == 1 else sequence["labels"][0]
            is_answer = labels != IGNORED
            found.append(sequence["input_ids"][is_answer].tolist())
            written = sequence["input_ids"][~is_answer].tolist()
            prompt_end = written[written.index(ids.audio_end) + 1 :]
        return AnswerIds(found, prompt_end)

    def is_text_id(self: Any, num_ids: int) -> torch.BoolTensor:
        """
        Which of the first `num_ids` ids of the vocabulary are text that an answer may hold, `(num_ids,)`: those that
        have a name and are no control token, phone, mark or code.
        """
        named = {*self.tokenizer.get_vocab().values(), *self.tokenizer.added_tokens_decoder}
        allowed = sorted(
            number for number in named - self._writer.control.ids if 0 <= number < min(self.audio_offset, num_ids)
        )
        is_text = torch.zeros(num_ids, dtype=torch.bool)
        is_text[allowed] = True
        return is_text  # type: ignore[return-value]


__all__ = ["AnswerIds", "TaskInputs"]
