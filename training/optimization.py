# SPDX-License-Identifier: Apache-2.0
"""Optimizers, learning rates that follow from the step, and freezing."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from speech_tokenizers.training.arguments import OptimizerArguments


def make_optimizer(module: nn.Module, args: OptimizerArguments) -> torch.optim.AdamW:
    """AdamW over the parameters; vectors such as biases and gains are not decayed."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=tuple(args.betas), fused=True)


def learning_rate_factor(args: OptimizerArguments, step: int, total_steps: int) -> float:
    """Learning rate at a step relative to the peak."""
    if step < args.warmup_steps:
        return (step + 1) / args.warmup_steps
    if args.schedule == "constant":
        return 1.0
    if args.schedule == "exponential":
        return args.decay_rate ** ((step - args.warmup_steps) / args.decay_steps)
    progress = min(1.0, (step - args.warmup_steps) / max(1, total_steps - args.warmup_steps))
    return args.final_ratio + (1 - args.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer, args: OptimizerArguments, step: int, total_steps: int) -> None:
    """Set the learning rate of a step. It follows from the step, so a resumed run needs no state of a scheduler."""
    for group in optimizer.param_groups:
        group["lr"] = args.learning_rate * learning_rate_factor(args, step, total_steps)


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """Within this context the module's parameters need no gradient, which spares computing it."""
    parameters = [] if module is None else [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def detached(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values without their graphs."""
    return {name: value.detach() for name, value in values.items()}
