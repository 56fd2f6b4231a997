# SPDX-License-Identifier: Apache-2.0
"""The discriminators of a training run, with their optimizer and their schedule."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from speech_tokenizers.training.codec.adversarial_schedule import AdversarialSchedule
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.codec.discriminators import DiscriminatorEnsemble, DiscriminatorOutput
from speech_tokenizers.training.codec.losses import adversarial_loss, discriminator_loss, feature_matching_loss
from speech_tokenizers.training.common.optimization import make_optimizer


class Adversary:
    """
    Discriminators that learn to tell recorded from decoded speech, and what a codec learns from them.

    Args:
        args ([`CodecTrainingArguments`]): Recipe of the run, which may name no discriminators.
        accelerator (`Accelerator`): Accelerator of the run.

    Attributes:
        discriminator (`nn.Module`, *optional*): Module of all discriminators; `None` where the recipe names none.
        optimizer (`torch.optim.Optimizer`, *optional*): Optimizer of the discriminators.
        schedule ([`AdversarialSchedule`]): Schedule that says when they act.
    """

    loss_names = ("adversarial", "feature_matching")

    def __init__(self, args: CodecTrainingArguments, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        self.schedule = AdversarialSchedule(args.adversarial)
        self.discriminator: Any = None
        self.optimizer: Any = None
        if args.adversarial.discriminators:
            discriminator = DiscriminatorEnsemble(**args.adversarial.discriminators)
            if args.compile:
                discriminator.compile()
            self.discriminator, self.optimizer = accelerator.prepare(
                discriminator, make_optimizer(discriminator, args.discriminator_optimizer)
            )

    @property
    def acts(self) -> bool:
        """Whether the discriminators run and learn at the present step."""
        return self.discriminator is not None and self.schedule.first_step is not None

    @property
    def is_too_late(self) -> bool:
        """Whether the run ends before its discriminators start."""
        return self.discriminator is not None and self.args.adversarial.start_step >= self.args.max_steps

    def begin_step(self, step: int, progress: float) -> None:
        """
        Let the discriminators begin if it is time, and set their learning rate.

        Args:
            step (`int`): Number of steps taken.
            progress (`float`): Progress of the run, in steps; the same on all processes.
        """
        self.schedule.begin(step, progress)
        if self.acts:
            self.schedule.set_learning_rate(
                self.optimizer, self.args.discriminator_optimizer, step, self.args.max_steps, progress
            )

    def discriminator_loss(self, recorded: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """The discriminators' loss on recorded and decoded audio `(batch, 1, num_samples)`, judged in one forward."""
        outputs = self.discriminator(torch.cat([recorded, decoded.detach()]))
        count = len(recorded)
        of_recorded = [DiscriminatorOutput(output.logits[:count], []) for output in outputs]
        of_decoded = [DiscriminatorOutput(output.logits[count:], []) for output in outputs]
        return discriminator_loss(of_recorded, of_decoded, self.args.adversarial.objective)

    def codec_losses(self, recorded: torch.Tensor, decoded: torch.Tensor) -> dict[str, torch.Tensor]:
        """The codec's losses by name, without weights; none before the discriminators act."""
        if not self.acts:
            return {}
        # Unwrapped: the discriminators' parameters are frozen here, and data parallelism would wait for their
        # gradients.
        discriminator = self.accelerator.unwrap_model(self.discriminator)
        of_decoded = discriminator(decoded)
        with torch.no_grad():
            of_recorded = discriminator(recorded)
        adversarial = self.args.adversarial
        return {
            "adversarial": adversarial_loss(of_decoded, adversarial.objective),
            "feature_matching": feature_matching_loss(of_recorded, of_decoded, adversarial.relative_features),
        }

    def parts(self) -> dict[str, Any]:
        """Parts that a checkpoint keeps, by name; none without discriminators."""
        if self.discriminator is None:
            return {}
        return {
            "discriminator": self.accelerator.unwrap_model(self.discriminator),
            "discriminator_optimizer": self.optimizer,
        }

    def state_dict(self) -> dict[str, int | None]:
        """State of the schedule."""
        return self.schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a trainer's state."""
        self.schedule.load_state_dict(state)
