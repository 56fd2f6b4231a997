# SPDX-License-Identifier: Apache-2.0
"""What the recipe trainers on `transformers.Trainer` share."""

import re
from pathlib import Path

from transformers import TrainerCallback

from speech_tokenizers.training.common.reporting import TrainingLog


class JsonLinesCallback(TrainerCallback):
    r"""
    Writes what is logged as JSON lines.

    Args:
        path (`Path`): The file.
        last_step (`int`): Of the checkpoint that the training goes on from; later entries are removed.
    """

    def __init__(self, path: Path, last_step: int):
        self.log_file = TrainingLog(path, last_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Called by the `Trainer`."""
        if state.is_world_process_zero and logs and "loss" in logs:
            entry = {"step": state.global_step, **logs}
            entry.pop("epoch", None)  # the trainer takes the whole training for one
            self.log_file.write(entry)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a `Trainer` in a folder; it writes `trainer_state.json` last."""
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(re.sub(r"\D", "", checkpoint.name))
