# SPDX-License-Identifier: Apache-2.0
"""When the discriminators of a training run act, and how much the codec heeds them."""

from collections.abc import Mapping
from typing import Any

from speech_tokenizers.training.codec.arguments import AdversarialArguments
from speech_tokenizers.training.common.optimization import OptimizerArguments, set_learning_rate


class AdversarialSchedule:
    """
    Discriminators begin at the first step before which the run has come as far as `args.start_step`, by steps or by
    time. From then on they act to the end, even if the run gets more time later.

    Args:
        args ([`AdversarialArguments`]): Settings of the discriminators: when they begin, and how fast their weights
            grow.

    Attributes:
        first_step (`int`, *optional*): Step at which they began; `None` until then.
    """

    def __init__(self, args: AdversarialArguments):
        self.args = args
        self.first_step: int | None = None

    def begin(self, step: int, progress: float) -> None:
        """
        Let them begin with the step that follows `step` steps if it is time.

        Args:
            step (`int`): Number of steps taken.
            progress (`float`): Progress of the run, in steps of its schedule; the same on all processes.
        """
        if self.first_step is None and progress >= self.args.start_step:
            self.first_step = step

    def weight(self, step: int) -> float:
        """Share of the adversarial losses' weights at a step of theirs: it grows to 1 over the warm-up."""
        assert self.first_step is not None
        if self.args.warmup_steps == 0:
            return 1.0
        return min(1.0, (step + 1 - self.first_step) / self.args.warmup_steps)

    def set_learning_rate(
        self, optimizer, args: OptimizerArguments, step: int, max_steps: int, progress: float
    ) -> None:
        """Set their learning rate. Its warm-up begins with them; the rest is spread from `start_step` to the end."""
        assert self.first_step is not None
        start = self.args.start_step
        set_learning_rate(optimizer, args, step - self.first_step, max_steps - start, progress - start)

    def state_dict(self) -> dict[str, int | None]:
        return {"discriminators_first_step": self.first_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a trainer's state. In older ones, without `discriminators_first_step`, steps alone counted."""
        start = self.args.start_step
        self.first_step = state.get("discriminators_first_step", start if state["step"] > start else None)
