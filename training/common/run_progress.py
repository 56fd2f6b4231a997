# SPDX-License-Identifier: Apache-2.0
"""Progress of a training run, by steps and by time, and its losses since the last log."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from speech_tokenizers.training.common.processes import agreed_signal
from speech_tokenizers.training.common.reporting import LossWindow


class RunProgress:
    """
    Steps and training time of a run, on which all processes agree.

    Args:
        accelerator (`Accelerator`): Accelerator of the run.
        args (dataclass): Recipe with `max_steps` and `max_minutes`, after which the run ends.

    Attributes:
        step (`int`): Number of steps taken.
        training_seconds (`float`): Seconds of the steps up to the last log.
        window ([`LossWindow`]): Losses and time since the last log.
    """

    def __init__(self, accelerator: Accelerator, args: Any):
        self.accelerator, self.args = accelerator, args
        self.step = 0
        self.training_seconds = 0.0
        self.window = LossWindow()

    @property
    def elapsed_seconds(self) -> float:
        """Training time in seconds, on which all processes agree. Several processes do so when they log."""
        return self.training_seconds + (self.window.seconds if self.accelerator.num_processes == 1 else 0.0)

    @property
    def time_share(self) -> float:
        """Share of `max_minutes` that has passed, on which all processes agree; 0 where time does not count."""
        max_minutes = self.args.max_minutes
        return 0.0 if max_minutes is None else min(1.0, self.elapsed_seconds / (60 * max_minutes))

    @property
    def position(self) -> float:
        """Progress of the run, in steps of `max_steps`: more than `step` where its time is further."""
        return max(self.step, self.args.max_steps * self.time_share)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, by steps or by time."""
        return self.position >= self.args.max_steps

    def close_window(self, audio_seconds_per_step: float) -> dict[str, float]:
        """
        Means of the losses since the last log, over steps and processes, and the speed of these steps.

        Args:
            audio_seconds_per_step (`float`): Seconds of audio in a step of all processes.
        """
        window, self.window = self.window, LossWindow()
        entry = window.means(self.accelerator)
        # Else the processes, each with a clock of its own, would have different learning rates and ends.
        (seconds,) = broadcast_object_list([window.seconds])
        self.training_seconds += seconds
        steps_per_second = window.steps / max(seconds, 1e-9)
        entry |= {
            "steps_per_second": steps_per_second,
            "audio_seconds_per_second": steps_per_second * audio_seconds_per_step,
            "training_seconds": self.training_seconds,
        }
        if self.accelerator.device.type == "cuda":
            entry["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return entry

    def state_dict(self) -> dict[str, float]:
        """State that all processes share."""
        return {"step": self.step, "training_seconds": self.training_seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a shared state. Its other keys are left alone."""
        self.step, self.training_seconds = state["step"], state["training_seconds"]

    def agreed(self, signal_number: int, logging_steps: int) -> int:
        """See [`agreed_signal`]."""
        return agreed_signal(self.accelerator, signal_number, self.step, logging_steps)
