# SPDX-License-Identifier: Apache-2.0
"""Tasks that a recipe defines, and what a model remembers of the tasks that it learns."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from speech_tokenizers.evaluation.understanding.metrics import METRICS
from speech_tokenizers.modeling.speech_lm_tasks import SPEECH_COLUMN, find_task, task_definitions
from speech_tokenizers.training.common.recipe_files import check_names


@dataclasses.dataclass(kw_only=True)
class NewTaskArguments:
    """
    A task that a recipe defines; see [`Task`] for all fields. Its name is the key in `new_tasks`.

    Args:
        instruction (`str`): Text that tells the model what to do.
        target (`str`): Column of the rows that the model answers.
        source (`str`): Column that it reads. Defaults to speech.
        metrics (`list[str]`): Measures of answers, the main one first. Of a closed task they default to accuracy and
            macro-F1.
        is_closed (`bool`): Whether the answer is one of the labels of training.
    """

    instruction: str
    target: str
    source: str = SPEECH_COLUMN
    metrics: list[str] = dataclasses.field(default_factory=list)
    is_closed: bool = False

    def __post_init__(self):
        check_names(self.metrics, METRICS, "`metrics` of a task:")
        if self.is_closed and not self.metrics:
            self.metrics = ["accuracy", "macro_f1"]


def recipe_definitions(new_tasks: Mapping[str, NewTaskArguments]) -> dict[str, dict[str, Any]]:
    """
    The definitions of a recipe as plain values, as processors and configurations take them.

    Raises:
        ValueError: If one makes no sense, or another task of its name is known; see [`find_task`].
    """
    definitions = {name: dataclasses.asdict(given) for name, given in new_tasks.items()}
    for name in definitions:
        find_task(name, definitions)
    return definitions


def define_tasks(
    config: Any, processor: Any, tasks: Iterable[str], definitions: Mapping[str, Mapping[str, Any]]
) -> None:
    """
    Write into a model and its processor the definitions of the tasks that it is about to learn, but for those that the
    package has. So whoever loads them knows the tasks.

    Args:
        config ([`SpeechLMConfig`]), processor ([`SpeechLMProcessor`]): The model's.
        tasks (iterable of `str`): Names of the tasks.
        definitions (`Mapping`): Definitions of the recipe; see [`recipe_definitions`]. Others are known by
            [`register_task`].

    Raises:
        ValueError: If the model has another task of a name already.
    """
    chosen = {name: find_task(name, definitions) for name in tasks}
    for name, definition in task_definitions(chosen).items():
        if processor.new_tasks.setdefault(name, definition) != definition:
            raise ValueError(
                f"The language model has a task {name!r} already, {processor.new_tasks[name]}, but the recipe defines"
                f" it as {definition}; give the recipe's another name."
            )
    config.new_tasks = dict(processor.new_tasks)


def remember_tasks(config: Any, tasks: Iterable[str], rows: Any, closed: Collection[str] = ()) -> None:
    """
    Write into a configuration what a model is about to learn: the names of tasks, and the labels of closed ones.

    Args:
        config ([`SpeechLMConfig`]): The configuration. What it names already stays.
        tasks (iterable of `str`): Names of the tasks.
        rows (`datasets.Dataset`): The rows to learn from.
        closed (collection of `str`, *optional*): Tasks whose answer is one of the labels of these rows, though it is
            free by their definition.
    """
    names = list(tasks)
    labels = dict(config.task_labels)
    for name in names:
        task = config.find_task(name)
        if (task.is_closed or name in closed) and task.target in rows.column_names:
            found = {label.strip() for label in rows[task.target] if label is not None and label.strip()}
            labels[name] = sorted(found | set(labels.get(name, ())))
    config.tasks = [*config.tasks, *(name for name in names if name not in config.tasks)]
    config.task_labels = labels


__all__ = ["NewTaskArguments", "define_tasks", "recipe_definitions", "remember_tasks"]
