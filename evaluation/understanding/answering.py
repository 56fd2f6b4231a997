# SPDX-License-Identifier: Apache-2.0
"""Answers of a speech language model about recordings: what is asked, what comes back, and the file that keeps it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speech_tokenizers.evaluation.understanding.probes import derangement
from speech_tokenizers.modeling.speech_lm_sequences import pad_sequences
from speech_tokenizers.modeling.speech_lm_tasks import SPEECH_COLUMN, TASKS, Task, defined_tasks
from speech_tokenizers.processing.metadata_files import read_text_lines
from speech_tokenizers.processing.whole_files import LinesFile


# Most sequences that are read at once when answers of a set are compared.
_SEQUENCES_AT_ONCE = 64
# What stands for the recordings: their own, those of other rows, or the same frame for all.
AUDIO_CONTROLS = ("own", "other", "none")


@dataclass(frozen=True)
class Question:
    """
    What a model is asked about each recording, and how its answer is found.

    Args:
        task ([`Task`]): The task.
        labels (`tuple` of `str`, *optional*): Answers that are compared by their likelihoods. Without them the model
            writes what it likes.
        max_new_tokens (`int`, *optional*), num_beams (`int`): See [`SpeechAnswers.answer`].
    """

    task: Task
    labels: tuple[str, ...] | None = None
    max_new_tokens: int | None = None
    num_beams: int = 1

    def answers(self, model: Any, processor: Any, inputs: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        """
        The answers to a batch of prompts.

        Args:
            model ([`SpeechLMForConditionalGeneration`]), processor ([`SpeechLMProcessor`]): Model and its processor.
            inputs (`Mapping`): Prompts, as [`SpeechLMProcessor.task_inputs`] gives them.

        Returns:
            `list` of `dict`: For each prompt `answer`; with labels `probabilities` and `scores`, the log likelihoods
            in nats, of each label, else `ended`.

        Raises:
            ValueError: As [`SpeechAnswers.choose`] and [`SpeechAnswers.answer`].
        """
        if self.labels is None:
            said = model.answer(inputs, processor, self.max_new_tokens, self.num_beams)
            pairs = zip(said.texts, said.ended.tolist(), strict=True)
            return [{"answer": text, "ended": ended} for text, ended in pairs]
        chosen = model.choose(inputs, self.labels, processor, _SEQUENCES_AT_ONCE)
        return [
            {
                "answer": text,
                "probabilities": dict(zip(self.labels, probabilities, strict=True)),
                "scores": dict(zip(self.labels, scores, strict=True)),
            }
            for text, probabilities, scores in zip(
                chosen.texts, chosen.probabilities.tolist(), chosen.scores.tolist(), strict=True
            )
        ]


def question_of(
    config: Any,
    task: str | Task,
    labels: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
) -> Question:
    """
    The question that a task is to a model.

    Args:
        config ([`SpeechLMConfig`]): The model's configuration, which may define tasks, and name those that it learnt
            and their labels.
        task (`str` or [`Task`]): The task.
        labels (sequence of `str`, *optional*): Answers to choose from. Defaults to those of the configuration, if it
            has some for this task.
        max_new_tokens, num_beams: See [`Question`].

    Raises:
        ValueError: If the task does not hear and answer by text, the model never learnt it, a label is empty or named
            twice, or the answer is one of a set that nobody knows.
    """
    # Definitions of the model itself are not looked up by name: another task of one's name may be known here, which
    # matters if it is asked for alone.
    own = defined_tasks(config.new_tasks)
    hearing = [name for name, known in {**TASKS, **own}.items() if _hears(known)]
    if isinstance(task, str) and task not in hearing:
        known = ", ".join(name for name in hearing if name in (config.tasks or hearing))
        raise ValueError(f"There is no task {task!r} that is about a recording; choose one of {known}.")
    chosen: Task = config.find_task(task)
    if not _hears(chosen):
        raise ValueError(f"The task {chosen.name!r} is not about a recording; choose one of {', '.join(hearing)}.")
    if config.tasks and chosen.name not in config.tasks:
        raise ValueError(
            f"This model never learnt the task {chosen.name!r}; it knows {', '.join(config.tasks)}. Ask for one of"
            " these, or train it on rows of the task."
        )
    if labels is None:
        labels = config.task_labels.get(chosen.name)
        if labels is None and chosen.is_closed:
            raise ValueError(
                f"The answer to {chosen.name!r} is one of a set of labels, which the model does not say; name them"
                " (`--answers`)."
            )
    if labels is None:
        return Question(chosen, None, max_new_tokens, num_beams)
    labels = tuple(label.strip() for label in labels)
    if not labels or not all(labels) or len(set(labels)) < len(labels):
        raise ValueError(f"The answers to choose from must be different and not empty, but are {', '.join(labels)!r}.")
    return Question(chosen, labels)


def read_labels(given: Sequence[str]) -> list[str]:
    """
    The answers that a user names for a command.

    Args:
        given (sequence of `str`): Answers, or `@FILE` for the lines of a file.

    Raises:
        ValueError: If there is no answer.
        OSError: If a file cannot be read.
    """
    labels: list[str] = []
    for answer in given:
        if answer.startswith("@"):
            labels += [line.strip() for _, line in read_text_lines(answer[1:]) if line.strip()]
        else:
            labels.append(answer)
    if not labels:
        raise ValueError(f"--answers {' '.join(given)}: there is no answer to choose from.")
    return labels


def _hears(task: Task) -> bool:
    return task.source == SPEECH_COLUMN and task.output == "text"


@torch.no_grad()
def target_bits(model: Any, processor: Any, task: Task, rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """
    How surprising the true answer of each row is to a model: the bits of its ids and of the end, and their number.

    Args:
        model ([`SpeechLMForConditionalGeneration`]), processor ([`SpeechLMProcessor`]): Model and its processor.
        task ([`Task`]): Task that answers by text.
        rows (sequence of `Mapping`): Rows, as [`SpeechLMProcessor.row_inputs`] takes them.

    Raises:
        ValueError: As there.
    """
    sequences = [processor.row_inputs(row, task) for row in rows]
    batch = pad_sequences(sequences, processor.pad_token_id, "right")
    losses = model(**{name: part.to(model.device) for name, part in batch.items()}).target_losses
    # Beside frames, words are the first row; no frame is a target here.
    labels, losses = (part if part.dim() == 2 else part[:, 0] for part in (batch["labels"], losses))
    bits = losses.double().sum(-1).cpu() / math.log(2)
    return list(zip(bits.tolist(), (labels[:, 1:] != -100).sum(-1).tolist(), strict=True))


def as_written(processor: Any, target: str) -> str:
    """
    A true answer in the letters that a model writes: in lower case, where its tokenizer knows no other.

    Args:
        processor ([`SpeechLMProcessor`]): The model's processor.
        target (`str`): The answer. Where the model cannot write it at all, it stays as it is.
    """
    (ids,) = processor.answer_ids([target]).ids
    written = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return written if written.lower() == target.lower() else target


def constant_row(processor: Any) -> dict[str, Any]:
    """A row of one frame, which says nothing: code 0 of each codebook, a latent of zeros, or both."""
    row = {"id": "none", "num_frames": 1, "codec_fingerprint": processor.codec_fingerprint}
    num_codebooks = processor.codec_sizes[0]
    codes = {"audio_codes": [0] * num_codebooks, "num_quantizers": num_codebooks}
    if processor.layout != "continuous":
        return {**row, **codes}
    dim = processor.latent_dim // (2 if processor.latent_source == "both" else 1)
    latents = {"audio_latents": [0.0] * dim, "latent_dim": dim}
    parts = {"features": latents, "quantized": codes, "both": {**latents, **codes}}
    return {**row, **parts[processor.latent_source]}


class AnswersFile:
    """
    Answers in a file of JSON lines, behind a line that says how they came about. A batch is appended as a whole, and
    a later run with the same settings goes on behind the last whole batch.

    Args:
        path (`Path`): The file, which need not exist.
        settings (`dict`): What the answers depend on, as plain JSON values.
        batch_size (`int`): Answers of a batch.
        num_answers (`int`): Answers in all.

    Attributes:
        records (`list` of `dict`): The answers so far.

    Raises:
        ValueError: If the file holds answers of other settings, or is no such file.
        OSError: If it cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], batch_size: int, num_answers: int):
        self.path, self.records = path, list[dict[str, Any]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = LinesFile(path)
        try:
            self._resume(json.loads(json.dumps(settings)), batch_size, num_answers)
        except BaseException:
            self._file.__exit__(None)
            raise

    def _resume(self, settings: dict[str, Any], batch_size: int, num_answers: int) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        if not whole:
            self._file.cut(0)
            self._file.append(json.dumps({"settings": settings}, ensure_ascii=False))
            return
        try:
            found = json.loads(whole[0])["settings"]
            records = [json.loads(line) for line in whole[1:]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} holds no answers; remove it, or choose another output folder.") from error
        if others := sorted(name for name in found.keys() | settings if found.get(name) != settings.get(name)):
            raise ValueError(
                f"{self.path} holds answers of another run, which differs in {', '.join(others)}; choose another"
                " output folder, or remove it."
            )
        num_kept = len(records) if len(records) == num_answers else len(records) // batch_size * batch_size
        self._file.cut(sum(map(len, whole[: 1 + num_kept])))
        self.records = records[:num_kept]

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Keep a batch."""
        self._file.append("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
        self.records += records

    def __enter__(self) -> "AnswersFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None)


def answer_rows(
    model: Any,
    processor: Any,
    question: Question,
    rows: Any,
    targets: Sequence[str],
    file: AnswersFile,
    batch_size: int,
    audio: str = "own",
    seed: int = 0,
) -> Iterator[int]:
    """
    Ask about each row what is not yet in a file, and keep it there.

    Args:
        model ([`SpeechLMForConditionalGeneration`]), processor ([`SpeechLMProcessor`]): Model and its processor.
        question ([`Question`]): What is asked.
        rows (`datasets.Dataset`): The rows.
        targets (sequence of `str`): True answer of each row.
        file ([`AnswersFile`]): File for the answers.
        batch_size (`int`): Rows that are asked about at once.
        audio (`str`, *optional*, defaults to `"own"`): What is heard: each row's `"own"` recording, that of an
            `"other"` row, or `"none"`, the same frame for all.
        seed (`int`, *optional*, defaults to 0): Seed of the order of others.

    Returns:
        Iterator of `int`: How many rows each batch had; those that the file knew come first.

    Raises:
        ValueError: If a row is not what the processor reads.
    """
    if audio not in AUDIO_CONTROLS:
        raise ValueError(f"`audio` must be one of {', '.join(AUDIO_CONTROLS)}, but is {audio!r}.")
    places = derangement(len(rows), seed) if audio == "other" else list(range(len(rows)))
    nothing = constant_row(processor)
    yield len(file.records)
    for begin in range(len(file.records), len(rows), batch_size):
        chosen = range(begin, min(begin + batch_size, len(rows)))
        asked = [nothing if audio == "none" else rows[places[number]] for number in chosen]
        asked = [{**row, question.task.target: targets[number]} for row, number in zip(asked, chosen, strict=True)]
        answers = question.answers(model, processor, processor.task_inputs(question.task, asked))
        bits = target_bits(model, processor, question.task, asked)
        file.append(
            [
                {
                    "id": rows[number]["id"],
                    "target": targets[number] if question.labels else as_written(processor, targets[number]),
                    **answer,
                    "bits": told,
                    "num_tokens": number_told,
                }
                for number, answer, (told, number_told) in zip(chosen, answers, bits, strict=True)
            ]
        )
        yield len(chosen)


__all__ = [
    "AUDIO_CONTROLS",
    "AnswersFile",
    "Question",
    "answer_rows",
    "as_written",
    "constant_row",
    "question_of",
    "read_labels",
    "target_bits",
]
