# SPDX-License-Identifier: Apache-2.0
"""The steps of a study: commands in processes of their own, none of which is run again once it is finished."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from speech_tokenizers.processing.termination import interruption
from speech_tokenizers.training.common.child_process import run_command


@dataclass
class StageArguments:
    """
    One kind of training.

    Args:
        recipe (`str`): Recipe of `speech-tokenizers train`.
        overrides (`dict`): Settings that differ from the recipe, by dotted keys.
    """

    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)


class Stage(NamedTuple):
    """
    A command of `speech-tokenizers`.

    Args:
        title (`str`): Title that says what it does.
        arguments (`list[str]`): The command and its arguments.
        done (`Path`): File that exists once it is finished.
    """

    title: str
    arguments: list[str]
    done: Path


def as_options(options: Mapping[str, Any]) -> list[str]:
    """Settings as a command line has them: `{"max_epochs": 30, "layers": [4]}` is `--max-epochs 30 --layers 4`."""
    line = []
    for name, value in options.items():
        if value is None or value is False or value == []:
            continue
        line.append(f"--{name.replace('_', '-')}")
        if value is not True:
            line += [str(item) for item in (value if isinstance(value, list) else [value])]
    return line


def training_command(stage: StageArguments, settings: Mapping[str, Any]) -> list[str]:
    """
    The command of a training.

    Args:
        stage ([`StageArguments`]): Recipe, and settings that win over the others.
        settings (mapping): What the study says, by dotted keys.
    """
    # JSON is YAML, and keeps a path's colons and blanks.
    given = {**settings, **stage.overrides}
    return ["train", stage.recipe, *(f"{key}={json.dumps(value)}" for key, value in given.items())]


def run_stage(stage: Stage) -> None:
    """
    Run a stage, unless it is finished.

    Raises:
        ChildProcessError: If it failed. Its output is above.
        KeyboardInterrupt: If it was told to stop.
    """
    if stage.done.is_file():
        return
    print(f"{stage.title}: speech-tokenizers {' '.join(stage.arguments)}", file=sys.stderr)
    finished = run_command(stage.arguments)
    if finished.stopped_by:
        raise interruption(finished.stopped_by)
    if finished.returncode or not stage.done.is_file():
        raise ChildProcessError(
            f"{stage.title} ended with code {finished.returncode}; its words are above. The same command goes on."
        )
