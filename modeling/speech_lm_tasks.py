# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What a speech language model is asked to do with a row of a corpus: which column it reads, and which it answers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


# The column of rows that holds speech. A task that reads it listens; a task that answers it speaks.
SPEECH_COLUMN = "audio_codes"
TEXT_COLUMN = "text"


@dataclass(frozen=True)
class Task:
    """
    One task of a speech language model.

    Args:
        name (`str`): Name of the task, by which recipes weigh it.
        instruction (`str`): Text that tells the model what to do; it stands before what the model reads.
        source (`str`): Column that the model reads: `"audio_codes"` for speech, else a column of text.
        target (`str`): Column that the model answers: `"audio_codes"` for speech, else a column of text. With speech
            in both, the model hears the first half of a recording and goes on with the other.
        metrics (`tuple` of `str`, *optional*): Names of the measures of answers, the main one first, as
            `evaluate understanding` knows them. Only for answers of text.
        is_closed (`bool`, *optional*, defaults to `False`): Whether the answer is one of a set of labels. Then the
            labels are compared by their likelihoods, and nothing is generated.

    Raises:
        ValueError: If one of the texts is empty, `source` and `target` are the same column of text, a metric is named
            twice, or a task that answers by speech has metrics or a set of labels.
    """

    name: str
    instruction: str
    source: str
    target: str
    metrics: tuple[str, ...] = ()
    is_closed: bool = False

    def __post_init__(self):
        for field in ("name", "instruction", "source", "target"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"`{field}` of a task must be a text that is not empty, but is {value!r}.")
        if self.source == self.target != SPEECH_COLUMN:
            raise ValueError(
                f"The task {self.name!r} reads `{self.source}` and answers it, too; name another column as `target`."
            )
        if isinstance(self.metrics, str) or not all(isinstance(name, str) and name.strip() for name in self.metrics):
            raise ValueError(f"`metrics` of a task must be a tuple of names, but is {self.metrics!r}.")
        object.__setattr__(self, "metrics", tuple(self.metrics))
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"`metrics` of the task {self.name!r} names one twice: {', '.join(self.metrics)}.")
        if not isinstance(self.is_closed, bool):
            raise ValueError(f"`is_closed` of a task must be True or False, but is {self.is_closed!r}.")
        if self.output == "speech" and (self.metrics or self.is_closed):
            raise ValueError(
                f"The task {self.name!r} answers by speech, which has neither a set of labels nor metrics of text;"
                " leave out `metrics` and `is_closed`."
            )

    @property
    def output(self) -> str:
        """What the model answers: `"speech"` or `"text"`."""
        return "speech" if self.target == SPEECH_COLUMN else "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a row needs for this task; aligned speech needs the times of its pieces besides."""
        return (self.source,) if self.source == self.target else (self.source, self.target)

    @property
    def speaks_its_text(self) -> bool:
        """Whether the speech says the row's own text, so that pieces of the text can stand before their frames."""
        return self.source == TEXT_COLUMN and self.target == SPEECH_COLUMN


# The tasks by name; `register_task` adds to them.
TASKS: dict[str, Task] = {}


def register_task(task: Task, replace: bool = False) -> Task:
    """
    Make a task known by its name.

    Args:
        task (`Task`): The task.
        replace (`bool`, *optional*, defaults to `False`): Whether it may take the place of another of its name.

    Returns:
        `Task`: The same task.

    Raises:
        ValueError: If another task has the name already.
    """
    known = TASKS.get(task.name)
    if known is not None and known != task and not replace:
        raise ValueError(f"There is a task {task.name!r} already; choose another name, or pass `replace=True`.")
    TASKS[task.name] = task
    return task


def find_task(task: "str | Task", own: Mapping[str, Mapping[str, Any]] | None = None) -> Task:
    """
    The task of a name, or the task itself.

    Args:
        task (`str` or `Task`): The task.
        own (`Mapping`, *optional*): Definitions that come with a model; see [`defined_tasks`]. They are known to that
            model alone, so that two models may each have a task of one name.

    Raises:
        ValueError: If there is no such task, or the model's own contradicts the one that is known here: a model that
            was trained with one instruction must not be asked with another. Its other tasks can be asked for.
    """
    if isinstance(task, Task):
        return task
    if own and task in own:
        return _as_known(defined_tasks({task: own[task]})[task])
    if task not in TASKS:
        raise ValueError(
            f"There is no task {task!r}; choose one of {', '.join({**TASKS, **(own or {})})}, or define it: by"
            " `new_tasks` of a recipe or a processor, or by `register_task`."
        )
    return TASKS[task]


def defined_tasks(definitions: Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
    """
    The tasks that plain values define, as configurations and recipes have them. Whether other tasks of their names
    are known is asked by [`find_task`], so that a model can be loaded whose task got another meaning since.

    Args:
        definitions (`Mapping`): For the name of each task `instruction`, `target`, and perhaps `source`, `metrics` and
            `is_closed`, as [`Task`] takes them. `source` defaults to `"audio_codes"`.

    Returns:
        `dict[str, Task]`: The tasks by name.

    Raises:
        ValueError: If a definition is none.
    """
    known_fields = _task_fields()
    found = {}
    for name, given in definitions.items():
        if not isinstance(given, Mapping) or not {"instruction", "target"} <= set(given) <= set(known_fields):
            raise ValueError(
                f"The task {name!r} is defined by {given!r}, but a definition has `instruction` and `target`, and may"
                f" have {', '.join(f'`{field}`' for field in known_fields if field not in ('instruction', 'target'))}."
            )
        found[name] = Task(name=name, **{"source": SPEECH_COLUMN, **given})
    return found


def _task_fields() -> list[str]:
    return [field.name for field in fields(Task) if field.name != "name"]


def _as_known(task: Task) -> Task:
    known = TASKS.get(task.name, task)
    if known != task:
        differing = next(field for field in _task_fields() if getattr(known, field) != getattr(task, field))
        raise ValueError(
            f"The definition of the task {task.name!r} has {differing}={getattr(task, differing)!r}, but the task of"
            f" this name that is known here has {getattr(known, differing)!r}; give one of them another name."
        )
    return task


def task_definitions(tasks: "Mapping[str, Task]") -> dict[str, dict[str, Any]]:
    """What [`defined_tasks`] reads, with all fields; tasks that the package itself has are left out."""
    found = {}
    for name, task in tasks.items():
        if _BUILT_IN.get(name) != task:
            values = asdict(task)
            del values["name"]
            found[name] = {**values, "metrics": list(task.metrics)}
    return found


register_task(Task("tts", "Say", source=TEXT_COLUMN, target=SPEECH_COLUMN))
register_task(Task("asr", "Transcribe", source=SPEECH_COLUMN, target=TEXT_COLUMN, metrics=("wer", "cer")))
register_task(Task("continuation", "Continue", source=SPEECH_COLUMN, target=SPEECH_COLUMN))
# A row's column `phones` holds phones with their times, so that their plain text has another name.
register_task(Task("phones", "Name the phones", source=SPEECH_COLUMN, target="pronunciation", metrics=("per",)))
_LABEL_METRICS = ("accuracy", "macro_f1")
register_task(Task("keyword", "Name the keyword", SPEECH_COLUMN, "keyword", _LABEL_METRICS, is_closed=True))
# Slots are written `drink: latte; size: large`: names in one order, and only those that are said.
register_task(Task("slots", "Name the slots", SPEECH_COLUMN, "slots", ("slots_right", "slot_f1")))
register_task(Task("emotion", "Name the emotion", SPEECH_COLUMN, "emotion", _LABEL_METRICS, is_closed=True))
register_task(Task("translate", "Translate", SPEECH_COLUMN, "translation", ("bleu", "chrf")))
# Those of the package, which no checkpoint needs to define.
_BUILT_IN = dict(TASKS)


__all__ = [
    "SPEECH_COLUMN",
    "TASKS",
    "TEXT_COLUMN",
    "Task",
    "defined_tasks",
    "find_task",
    "register_task",
    "task_definitions",
]
