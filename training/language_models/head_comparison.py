# SPDX-License-Identifier: Apache-2.0
"""
How well each head of continuous tokens learns a distribution that is known: a mixture whose weights, means and spreads
depend on a condition.

The measure is the energy distance between what a head draws and what the mixture draws for the same conditions,
2 E|x - y| - E|x - x'| - E|y - y'| in Euclidean norms (Szekely and Rizzo, 2013). Two finite samples of the mixture
itself are not at distance 0 either; theirs is the floor.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from speech_tokenizers.modeling.continuous_heads import ContinuousHead, build_head
from speech_tokenizers.processing.whole_files import check_folder_is_writable, check_replaceable, write_whole


# Name in `HEADS` and options of each variant.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mse": ("mse", {}),
    "melle": ("gaussian", {"objective": "melle"}),
    "gaussian": ("gaussian", {}),
    "energy": ("energy", {}),
    "flow": ("flow", {}),
}
FLOW_STEPS = (1, 4, 10)


class ConditionalMixture(nn.Module):
    """
    Four normal distributions whose weights, means and standard deviations are smooth functions of a condition.

    Args:
        condition_dim (`int`), dim (`int`): Sizes of the condition and of a draw.
        num_modes (`int`): Number of modes of the mixture.
        seed (`int`): Seed for the functions.
    """

    def __init__(self, condition_dim: int = 8, dim: int = 16, num_modes: int = 4, seed: int = 0):
        super().__init__()
        self.condition_dim, self.dim, self.num_modes = condition_dim, dim, num_modes
        generator = torch.Generator().manual_seed(seed)
        sizes = {"weights": num_modes, "means": num_modes * dim, "spreads": num_modes * dim}
        self.inner = nn.ParameterDict()
        self.outer = nn.ParameterDict()
        for name, size in sizes.items():
            self.inner[name] = torch.randn(condition_dim, 32, generator=generator) / condition_dim**0.5
            self.outer[name] = torch.randn(32, size, generator=generator) / 32**0.5
        self.requires_grad_(False)

    def conditions(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Random conditions, (count, condition_dim)."""
        return torch.randn(count, self.condition_dim, generator=generator)

    def draw(self, conditions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One draw (count, dim) for each of the conditions (count, condition_dim)."""
        of = {name: torch.sin(2 * conditions @ self.inner[name]) @ self.outer[name] for name in self.inner}
        shape = (len(conditions), self.num_modes, self.dim)
        modes = torch.multinomial((1.5 * of["weights"]).softmax(-1), 1, generator=generator)[:, 0]
        rows = torch.arange(len(conditions))
        mean = 2 * of["means"].view(shape)[rows, modes]
        spread = 0.3 * of["spreads"].view(shape)[rows, modes].exp()
        noise = torch.randn(mean.shape, generator=generator)
        # Divided so that the variance of a dimension is about 1.
        return (mean + spread * noise) / 1.6


@dataclass
class HeadResult:
    """
    Args:
        head (`str`): Name in `VARIANTS`.
        sampling_steps (`int`): Number of sampling steps of a draw.
        energy_distance (`float`): Energy distance to the true conditional distribution, the mean over conditions.
        loss (`float`): Mean loss of the last hundred training steps. It is not comparable between heads.
        sampling_ms (`float`): Milliseconds of one core that a token takes at batch size 1.
        training_seconds (`float`): Processor seconds of the training.
        parameters (`int`): Number of weights.
    """

    head: str
    sampling_steps: int
    energy_distance: float
    loss: float
    sampling_ms: float
    training_seconds: float
    parameters: int


def energy_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """
    Energy distance between two samples of each of several distributions.

    Args:
        first, second (`torch.Tensor` of shape `(count, num_draws, dim)`): Samples to compare.

    Returns:
        `torch.Tensor` of shape `(count,)`, not negative.
    """

    def mean_distance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        # Not by inner products, in which near points would lose their distance.
        return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").mean(dim=(1, 2))

    return 2 * mean_distance(first, second) - mean_distance(first, first) - mean_distance(second, second)


def train_head(
    head: ContinuousHead, mixture: ConditionalMixture, steps: int, batch_size: int, learning_rate: float, seed: int
) -> tuple[float, float]:
    """
    Train a head on draws of a mixture.

    Returns:
        Mean loss of the last hundred steps, and processor seconds of the training.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * max(0.02, 1 - step / steps)
    )
    started, losses = time.process_time(), []
    for _ in tqdm(range(steps), desc=type(head).__name__, leave=False, disable=None):
        conditions = mixture.conditions(batch_size, generator)
        loss = head.loss(conditions, mixture.draw(conditions, generator), generator=generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses[-100:]).mean()), time.process_time() - started


class HeadJudge:
    """
    Measures heads against the same draws of a mixture.

    Args:
        mixture ([`ConditionalMixture`]): Mixture that is the truth.
        num_conditions (`int`), num_draws (`int`): Number of conditions, and number of draws for each.
        seed (`int`): Seed for conditions and draws. The training draws with another seed.
    """

    def __init__(self, mixture: ConditionalMixture, num_conditions: int = 100, num_draws: int = 400, seed: int = 1000):
        self.generator = torch.Generator().manual_seed(seed)
        conditions = mixture.conditions(num_conditions, self.generator)
        self.shape = (num_conditions, num_draws, mixture.dim)
        self.conditions = conditions.repeat_interleave(num_draws, dim=0)
        self.truth = mixture.draw(self.conditions, self.generator).view(self.shape)
        again = mixture.draw(self.conditions, self.generator).view(self.shape)
        self.floor = float(energy_distance(again, self.truth).mean())

    def distance(self, head: ContinuousHead, steps: int | None = None) -> float:
        """Mean energy distance of a head's draws."""
        drawn = head.eval().sample(self.conditions, steps=steps, generator=self.generator)
        return float(energy_distance(drawn.view(self.shape), self.truth).mean())


def sampling_milliseconds(head: ContinuousHead, steps: int | None = None, repetitions: int = 100) -> float:
    """Mean milliseconds of one token at batch size 1, on one core. Other work on the machine does not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        head.eval()
        hidden = torch.randn(1, head.width)
        for _ in range(5):
            head.sample(hidden, steps=steps)
        started = time.process_time()
        for _ in range(repetitions):
            head.sample(hidden, steps=steps)
        return 1000 * (time.process_time() - started) / repetitions
    finally:
        torch.set_num_threads(threads)


def compare_heads(
    names: Sequence[str] = tuple(VARIANTS),
    steps: int = 8000,
    batch_size: int = 256,
    num_layers: int = 3,
    hidden_size: int = 160,
    learning_rate: float = 1e-3,
    seed: int = 0,
    num_conditions: int = 100,
    num_draws: int = 400,
) -> tuple[list[HeadResult], float]:
    """
    Train heads of one size on the same data and measure them.

    Args:
        names (sequence of `str`): Names of `VARIANTS`.
        steps (`int`), batch_size (`int`), learning_rate (`float`): Number of steps, draws per step and learning rate
            of each training.
        num_layers (`int`), hidden_size (`int`): Number of layers and width of each head.
        seed (`int`): Seed for weights and data.
        num_conditions (`int`), num_draws (`int`): Number of conditions of the measurement, and number of draws for
            each.

    Returns:
        A result for each head, and for `flow` one for each number in `FLOW_STEPS`; and the floor, which is the energy
        distance between two samples of the mixture.

    Raises:
        ValueError: If there is no such variant.
    """
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"`names` must be among {', '.join(VARIANTS)}, but got {', '.join(unknown)}.")
    mixture = ConditionalMixture(seed=seed)
    judge = HeadJudge(mixture, num_conditions, num_draws)
    results = []
    for name in names:
        kind, options = VARIANTS[name]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sizes = {"num_layers": num_layers, "hidden_size": hidden_size, "condition_dropout": 0.0}
            head = build_head(kind, mixture.condition_dim, mixture.dim, **sizes, **options)
        loss, seconds = train_head(head, mixture, steps, batch_size, learning_rate, seed + 1)
        for sampling_steps in FLOW_STEPS if kind == "flow" else (1,):
            results.append(
                HeadResult(
                    name,
                    sampling_steps,
                    judge.distance(head, sampling_steps),
                    loss,
                    sampling_milliseconds(head, sampling_steps),
                    seconds,
                    sum(parameter.numel() for parameter in head.parameters()),
                )
            )
    return results, judge.floor


def results_table(results: Sequence[HeadResult], floor: float) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| head | sampling steps | energy distance | ms a token | weights | training, s |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        lines.append(
            f"| {result.head} | {result.sampling_steps} | {result.energy_distance:.3f} | {result.sampling_ms:.2f} |"
            f" {result.parameters / 1e6:.2f} M | {result.training_seconds:.0f} |"
        )
    lines.append(f"| the mixture itself | | {floor:.3f} | | | |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--heads", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), help="which to compare")
    parser.add_argument("--steps", type=int, default=8000, help="steps of each training (default: 8000)")
    parser.add_argument("--batch-size", type=int, default=256, help="default: 256")
    parser.add_argument("--num-layers", type=int, default=3, help="layers of each head (default: 3)")
    parser.add_argument("--hidden-size", type=int, default=160, help="width of each head (default: 160)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak of the learning rate (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("-o", "--output", metavar="JSON", type=Path, help="write the numbers there too")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.output is not None:
        check_folder_is_writable(args.output.absolute().parent)
        check_replaceable(args.output)
    results, floor = compare_heads(
        args.heads, args.steps, args.batch_size, args.num_layers, args.hidden_size, args.learning_rate, args.seed
    )
    print(results_table(results, floor))
    if args.output is not None:
        contents = {"floor": floor, "steps": args.steps, "results": [asdict(result) for result in results]}
        write_whole(args.output, json.dumps(contents, indent=2))
    return 0
