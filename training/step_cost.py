# SPDX-License-Identifier: Apache-2.0
"""How long a training step takes under several recipes, in turn, so that other work on the machine meets all alike."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping

from accelerate.utils import set_seed
from tqdm import tqdm

from .arguments import CodecTrainingArguments
from .codec_trainer import CodecTrainer, build_conditions, build_model, build_objectives


class SteppedTrainer(CodecTrainer):
    r"""A [`CodecTrainer`] that takes its steps one by one when told to, and saves nothing."""

    def start(self) -> None:
        r"""Everything that comes before the first step, teachers' features included."""
        self._prepare_recordings()
        for objective in self.objectives:
            objective.prepare(self.train_recordings, self.unwrapped_model, self.accelerator, self.output_dir)
        self.model.train()
        self._batches = iter(self.train_batches())

    def take_step(self) -> tuple[float, float]:
        r"""One step, data loading included; its wall-clock and processor seconds."""
        wall, processor = time.perf_counter(), time.process_time()
        losses = self._step_over(self._batches)
        self.step += 1
        if self.weight_average is not None:
            self.weight_average.update(self.unwrapped_model)
        float(losses["loss"])  # waits for the device
        return time.perf_counter() - wall, time.process_time() - processor


def measure_steps(
    recipes: Mapping[str, CodecTrainingArguments], num_steps: int = 20, num_warmup_steps: int = 3
) -> dict[str, dict[str, float]]:
    r"""
    Take steps of several recipes in turn: one of each, and over again.

    Args:
        recipes (mapping of `str` to [`CodecTrainingArguments`]): What is trained, by name. Their output folders are
            left alone; their caches of decoded audio and teachers' features are used and filled.
        num_steps (`int`, *optional*, defaults to 20): Timed steps of each.
        num_warmup_steps (`int`, *optional*, defaults to 3): Steps of each before, the first of which initialises the
            codebooks.

    Returns:
        `dict`: For each name the medians `seconds_in_turn` and `cpu_seconds_in_turn` of a step.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in recipes}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for name, args in recipes.items():
            # They keep caches in their output folder unless the recipe says where.
            data = dataclasses.replace(args.data, cache_dir=args.data.cache_dir or f"{args.output_dir}/audio_cache")
            cache_dir = args.distillation.cache_dir or f"{args.output_dir}/teacher_cache"
            distillation = dataclasses.replace(args.distillation, cache_dir=cache_dir)
            args = dataclasses.replace(
                args, data=data, distillation=distillation, output_dir=folder, max_steps=num_warmup_steps + num_steps
            )
            set_seed(args.seed)
            trainers[name] = SteppedTrainer(
                build_model(args), args, objectives=build_objectives(args), conditions=build_conditions(args)
            )
            trainers[name].start()
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
