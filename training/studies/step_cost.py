# SPDX-License-Identifier: Apache-2.0
"""Time of a training step under several recipes, in turn, so that other work on the machine affects all alike."""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from typing import TypeVar

from accelerate.utils import set_seed
from tqdm import tqdm

from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.codec.codec_building import build_conditions, build_model, build_objectives
from speech_tokenizers.training.codec.codec_trainer import CodecTrainer
from speech_tokenizers.training.common.precision import resolve_precision
from speech_tokenizers.training.common.processes import process_state


class SteppedTrainer(CodecTrainer):
    """A [`CodecTrainer`] that takes its steps one by one when told to, and saves nothing."""

    def start(self) -> None:
        """Everything that comes before the first step, teachers' features included."""
        self.data.prepare_objectives(self.unwrapped_model)
        self.model.train()
        self.micro_batches = iter(self.train_batches())

    def take_step(self) -> tuple[float, float]:
        """One step, data loading included; its wall-clock and processor seconds."""
        wall, processor = time.perf_counter(), time.process_time()
        losses = self._step_over(self.micro_batches)
        self.run.step += 1
        self.average_weights()
        float(losses["loss"])  # waits for the device
        return time.perf_counter() - wall, time.process_time() - processor

    def average_weights(self) -> None:
        """Let the average of the weights, if there is one, follow the step."""
        self.weight_average.update(self.unwrapped_model)


SomeTrainer = TypeVar("SomeTrainer", bound=SteppedTrainer)


def start_trainer(
    args: CodecTrainingArguments, folder: str, num_steps: int, trainer_class: type[SomeTrainer]
) -> SomeTrainer:
    """
    A trainer of a recipe that is ready for its first step, in which the quantizer acts even if its start is late.

    Args:
        args ([`CodecTrainingArguments`]): Recipe of the training. Its output folder is left alone, but for the caches
            of decoded audio and teachers' features in it, unless it says where to keep them.
        folder (`str`): Folder that is used in place of the output folder.
        num_steps (`int`): Number of steps that the trainer is to take.
        trainer_class (subclass of [`SteppedTrainer`]): Class of the trainer.
    """
    data = dataclasses.replace(args.data, cache_dir=args.data.cache_dir or f"{args.output_dir}/audio_cache")
    cache_dir = args.distillation.cache_dir or f"{args.output_dir}/teacher_cache"
    distillation = dataclasses.replace(args.distillation, cache_dir=cache_dir)
    latent_health = dataclasses.replace(args.latent_health, quantizer_start_step=0, revival_steps=[])
    args = dataclasses.replace(
        args,
        data=data,
        distillation=distillation,
        latent_health=latent_health,
        output_dir=folder,
        max_steps=num_steps,
    )
    set_seed(args.seed)
    trainer = trainer_class(
        build_model(args), args, objectives=build_objectives(args), conditions=build_conditions(args)
    )
    trainer.start()
    return trainer


def check_one_precision(recipes: Mapping[str, CodecTrainingArguments]) -> None:
    """Raise `ValueError` if recipes differ in `mixed_precision`, of which a process has one in Accelerate."""
    default = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    device = process_state().device.type
    precisions = {name: resolve_precision(args.mixed_precision, device) or default for name, args in recipes.items()}
    if len(set(precisions.values())) > 1:
        described = ", ".join(f"{name}: {precision}" for name, precision in precisions.items())
        raise ValueError(
            f"Steps of recipes that differ in `mixed_precision` ({described}) cannot be timed in turn in one process;"
            " give `ablate` --cost-steps 0, and profile each with `speech-tokenizers benchmark --sections training"
            " --recipe RECIPE mixed_precision=...`."
        )


def measure_steps(
    recipes: Mapping[str, CodecTrainingArguments], num_steps: int = 20, num_warmup_steps: int = 3
) -> dict[str, dict[str, float]]:
    """
    Take steps of several recipes in turn: one of each, and over again.

    Args:
        recipes (mapping of `str` to [`CodecTrainingArguments`]): Recipes of the trainings, by name. Their output
            folders are left alone; their caches of decoded audio and teachers' features are used and filled.
        num_steps (`int`, *optional*, defaults to 20): Number of timed steps of each.
        num_warmup_steps (`int`, *optional*, defaults to 3): Number of steps of each before, the first of which
            initialises the codebooks.

    Returns:
        `dict`: Medians `seconds_in_turn` and `cpu_seconds_in_turn` of a step, by name.

    Raises:
        ValueError: If the recipes differ in `mixed_precision`.
    """
    check_one_precision(recipes)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in recipes}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: start_trainer(args, folder, num_warmup_steps + num_steps, SteppedTrainer)
            for name, args in recipes.items()
        }
        for step in tqdm(range(num_warmup_steps + num_steps), desc="cost of a step", unit="step", disable=None):
            for name, trainer in trainers.items():
                taken = trainer.take_step()
                if step >= num_warmup_steps:
                    seconds[name].append(taken)
    return {
        name: {
            "seconds_in_turn": statistics.median(wall for wall, _ in taken),
            "cpu_seconds_in_turn": statistics.median(processor for _, processor in taken),
        }
        for name, taken in seconds.items()
    }
