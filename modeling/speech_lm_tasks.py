# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What a speech language model is asked to do with a row of a corpus: which column it reads, and which it answers."""

from dataclasses import dataclass


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

    Raises:
        ValueError: If one of them is empty, or `source` and `target` are the same column of text.
    """

    name: str
    instruction: str
    source: str
    target: str

    def __post_init__(self):
        for field in ("name", "instruction", "source", "target"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"`{field}` of a task must be a text that is not empty, but is {value!r}.")
        if self.source == self.target != SPEECH_COLUMN:
            raise ValueError(
                f"The task {self.name!r} reads `{self.source}` and answers it, too; name another column as `target`."
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


def find_task(task: "str | Task") -> Task:
    """
    The task of a name, or the task itself.

    Raises:
        ValueError: If there is no such task.
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose one of {', '.join(TASKS)}, or add it by `register_task`.")
    return TASKS[task]


register_task(Task("tts", "Say", source=TEXT_COLUMN, target=SPEECH_COLUMN))
register_task(Task("asr", "Transcribe", source=SPEECH_COLUMN, target=TEXT_COLUMN))
register_task(Task("continuation", "Continue", source=SPEECH_COLUMN, target=SPEECH_COLUMN))


__all__ = ["SPEECH_COLUMN", "TASKS", "TEXT_COLUMN", "Task", "find_task", "register_task"]
