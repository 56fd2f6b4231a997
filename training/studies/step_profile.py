# SPDX-License-Identifier: Apache-2.0
"""Time of the parts of a training step: data, encoder, quantizer, decoder, losses, discriminators, optimizer."""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from speech_tokenizers.training.codec.adversary import Adversary
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments, load_codec_recipe
from speech_tokenizers.training.codec.reconstruction_losses import WaveformPair
from speech_tokenizers.training.common.optimization import OptimizerArguments
from speech_tokenizers.training.common.recipe_files import recipe_errors
from speech_tokenizers.training.studies.step_cost import SteppedTrainer, start_trainer


class Stopwatch:
    """
    Time since the last lap, added up by the part of a step that took it.

    Args:
        device (`torch.device`): Device of the steps. With CUDA each lap waits for it, and time is wall-clock time.
            Otherwise, with one thread in torch, time is the processor's, which other processes do not lengthen. With
            more threads it is wall-clock time.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.is_processor_time = device.type != "cuda" and torch.get_num_threads() == 1
        self.seconds: dict[str, float] = {}
        self._running = False
        self._last = 0.0

    def start(self) -> None:
        """Forget earlier laps and begin to count."""
        self.seconds = {}
        self._running = True
        self._last = self._now()

    def lap(self, part: str) -> None:
        """Add the time since the last lap to a part. Does nothing between `stop` and `start`."""
        if self._running:
            now = self._now()
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
            self._last = now

    def stop(self) -> None:
        """Count no more."""
        self._running = False

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.is_processor_time else time.perf_counter()


class ProfiledTrainer(SteppedTrainer):
    """A [`SteppedTrainer`] with a [`Stopwatch`] that tells the parts of its steps apart."""

    def start(self) -> None:
        super().start()
        self.stopwatch = Stopwatch(self.accelerator.device)
        self.micro_batches = self._timed(self.micro_batches)
        self.adversary.discriminator_loss = self._discriminator_loss  # type: ignore[method-assign]
        # Gradients arrive at these places in this order; what follows each is the backward pass of the next part.
        self._backward_part = "losses"
        model = self.unwrapped_model
        between = next(
            (name for name in ("quantizer", "bottleneck") if getattr(model, name, None) is not None), "other"
        )
        self._watch("encoder", after_output="encoder backward")
        self._watch(between)
        self._watch("decoder", after_output="decoder backward", after_input=between)

    def _watch(self, name: str, after_output: str | None = None, after_input: str | None = None) -> None:
        module = getattr(self.unwrapped_model, name, None)
        if not isinstance(module, nn.Module):
            return
        part = name if after_output is None else f"{name} forward"

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.stopwatch.lap("other")
            self._on_gradient(inputs[0], after_input)

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.stopwatch.lap(part)
            self._on_gradient(output, after_output)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _on_gradient(self, tensor: Any, next_part: str | None) -> None:
        if next_part is None or not isinstance(tensor, torch.Tensor) or not tensor.requires_grad:
            return

        def arrived(gradient: torch.Tensor) -> None:
            self.stopwatch.lap(self._backward_part)
            self._backward_part = next_part

        tensor.register_hook(arrived)

    def _timed(self, batches: Iterator[dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        while (batch := next(batches, None)) is not None:
            self.stopwatch.lap("data")
            yield batch
            self.stopwatch.lap("other")

    def _discriminator_loss(self, recorded: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        self.stopwatch.lap("other")
        loss = Adversary.discriminator_loss(self.adversary, recorded, decoded)
        self.stopwatch.lap("discriminators")
        return loss

    def codec_losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.stopwatch.lap("other")
        losses = super().codec_losses(outputs, batch)
        self._last_outputs, self._last_batch = apart(outputs), batch
        self.stopwatch.lap("losses")
        return losses

    def update(self, module: nn.Module, optimizer, loss: torch.Tensor, args: OptimizerArguments) -> torch.Tensor:
        is_codec = module is self.model
        self._backward_part = "losses" if is_codec else "discriminators"
        norm = super().update(module, optimizer, loss, args)
        self.stopwatch.lap("optimizer" if is_codec else "discriminators")
        return norm

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss)
        self.stopwatch.lap(self._backward_part)

    def average_weights(self) -> None:
        self.stopwatch.lap("other")
        super().average_weights()
        if self.weight_average.is_kept:
            self.stopwatch.lap("weight average")

    def profile_step(self) -> tuple[dict[str, float], dict[str, float]]:
        """
        Take a step.

        Returns:
            Seconds of the step's parts, and those of each reconstruction loss and each objective by itself on the same
            audio, forward and backward.
        """
        self.stopwatch.start()
        self.take_step()
        self.stopwatch.lap("other")
        parts = self.stopwatch.seconds
        outputs, batch = self._last_outputs, self._last_batch
        self.stopwatch.start()
        for name, loss in self.reconstruction_losses.items():
            # A pair of its own: losses share the spectra of one pair.
            pair = WaveformPair(outputs.audio_values, batch["input_values"], self.sampling_rate)
            self._time_alone(name, loss(pair))
        for objective in self.objectives:
            values = objective.losses(outputs, batch)
            self._time_alone(", ".join(values), torch.stack(list(values.values())).sum())
        self.stopwatch.stop()
        return parts, self.stopwatch.seconds

    def _time_alone(self, name: str, loss: torch.Tensor) -> None:
        if loss.requires_grad:
            loss.backward()
        self.stopwatch.lap(name)


def apart(outputs: ModelOutput) -> ModelOutput:
    """A model's outputs without what made them, ready to receive gradients."""

    def leaf(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(leaf, value))
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().requires_grad_(value.requires_grad)

    return type(outputs)(**{name: leaf(value) for name, value in outputs.items()})


def profile_training(args: CodecTrainingArguments, num_steps: int = 10, num_warmup_steps: int = 2) -> dict[str, Any]:
    """
    Profile the training steps of a recipe, with its discriminators acting and without compilation.

    Steps with a stopwatch and steps without take turns. The whole step is timed without one.

    Args:
        args ([`CodecTrainingArguments`]): Recipe of the training. Its output folder is left alone.
        num_steps (`int`, *optional*, defaults to 10): Number of steps of each kind.
        num_warmup_steps (`int`, *optional*, defaults to 2): Number of steps of each kind before, the first of which
            initialises the codebooks.

    Returns:
        `dict`: Medians over the steps, and what they were measured on. `step_ms` is the whole step. `parts_ms` has the
        parts by name: `losses` are all losses forward and backward, with what the codec hears from its discriminators;
        `discriminators` is their own update; `quantizer` is forward and backward. Parts that the model or the recipe
        lacks are absent. `losses_ms` has the forward and backward of each reconstruction loss and each objective by
        itself. `audio_seconds_per_second` is the speed of the whole step. The conditions are `device`,
        `mixed_precision`, `threads`, `clock`, `batch` and `segment_seconds`; with CUDA there is also `peak_memory_gb`.
    """
    args = dataclasses.replace(
        args, compile=False, adversarial=dataclasses.replace(args.adversarial, start_step=0, warmup_steps=0)
    )
    whole: list[float] = []
    parts: list[dict[str, float]] = []
    losses: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = start_trainer(args, folder, 2 * (num_warmup_steps + num_steps), ProfiledTrainer)
        device, stopwatch = trainer.accelerator.device, trainer.stopwatch
        for step in range(num_warmup_steps + num_steps):
            if step == num_warmup_steps and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            wall, processor = trainer.take_step()
            of_parts, of_losses = trainer.profile_step()
            if step >= num_warmup_steps:
                whole.append(processor if stopwatch.is_processor_time else wall)
                parts.append(of_parts)
                losses.append(of_losses)
    step_seconds = statistics.median(whole)
    memory = {}
    if device.type == "cuda":
        memory["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return {
        "step_ms": 1000 * step_seconds,
        "parts_ms": median_ms(parts),
        "losses_ms": median_ms(losses),
        "audio_seconds_per_second": args.global_batch_size * args.data.segment_seconds / step_seconds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "clock": "processor" if stopwatch.is_processor_time else "wall-clock",
        "batch": args.global_batch_size,
        "segment_seconds": args.data.segment_seconds,
        **memory,
    }


def median_ms(steps: list[dict[str, float]]) -> dict[str, float]:
    """Median milliseconds of each part over steps that all have the same parts, given in seconds."""
    return {part: 1000 * statistics.median(step[part] for step in steps) for part in steps[0]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a codec's recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe's")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed; default: 10")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; default: 1")


def run(args: argparse.Namespace) -> int:
    """Print the profile as JSON; returns the exit code."""
    torch.set_num_threads(args.threads)
    with recipe_errors():
        profile = profile_training(load_codec_recipe(args.recipe, args.overrides), args.steps)
    print(json.dumps(profile))
    return 0
