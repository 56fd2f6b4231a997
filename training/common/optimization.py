# SPDX-License-Identifier: Apache-2.0
"""Optimizers, learning rates that follow from the step and the part of the model, and freezing."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from speech_tokenizers.modeling.vector_quantization import VectorQuantizer
from speech_tokenizers.training.common.recipe_files import check_betas, check_names, check_not_negative, check_positive


@dataclass
class OptimizerArguments:
    """
    AdamW and the schedule of its learning rate, a function of the step alone unless the run has `max_minutes`.

    Args:
        learning_rate (`float`): Peak learning rate.
        betas (`list` of two `float`): Decay of the first and second moments.
        weight_decay (`float`): Decoupled weight decay.
        schedule (`str`): Kind of schedule: `"cosine"` (to `final_ratio` at the last step), `"exponential"` or
            `"constant"`.
        warmup_steps (`int`): Number of steps of linear warm-up.
        final_ratio (`float`): Learning rate at the end of the cosine, relative to the peak.
        decay_rate (`float`), decay_steps (`int`): Factor and interval of the exponential schedule, which multiplies by
            `decay_rate` every `decay_steps` steps.
        max_grad_norm (`float`, *optional*): Largest norm of a gradient. Longer gradients are scaled down to it.
        learning_rate_scales (`dict`): Learning rate of parts of the model relative to the rest, by the submodule's
            name, such as `{"encoder": 0, "quantizer": 0}` to train a codec's decoder alone; the innermost part named
            counts. A part of scale 0 is frozen: its parameters need no gradient, its codebooks are not updated.
    """

    learning_rate: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_steps: int = 0
    final_ratio: float = 0.0
    decay_rate: float = 0.98
    decay_steps: int = 1000
    max_grad_norm: float | None = None
    learning_rate_scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.schedule not in ("cosine", "exponential", "constant"):
            raise ValueError(f"`schedule` must be 'cosine', 'exponential' or 'constant', but got {self.schedule!r}.")
        if self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` must be positive, but got {self.learning_rate}.")
        check_betas(self.betas)
        check_positive(self, "max_grad_norm")
        check_not_negative(self, "weight_decay", "warmup_steps", "final_ratio", "decay_rate")
        if self.decay_steps < 1:
            raise ValueError(f"`decay_steps` must be at least 1, but got {self.decay_steps}.")
        if any(scale < 0 for scale in self.learning_rate_scales.values()):
            raise ValueError(f"`learning_rate_scales` must not be negative, but got {self.learning_rate_scales}.")


def make_optimizer(module: nn.Module, args: OptimizerArguments) -> torch.optim.AdamW:
    """
    AdamW over the parameters; vectors such as biases and gains are not decayed.

    Parts of `module` whose `args.learning_rate_scales` is 0 are frozen. Codebooks learn without gradients; where they
    alone are left to learn, the parameters keep their gradients and get a learning rate of 0 instead, so that any
    trainer finds something to differentiate.

    Raises:
        ValueError: If `args.learning_rate_scales` names a part that `module` does not have.
    """
    names = [name for name, _ in module.named_modules() if name]
    check_names(args.learning_rate_scales, names, "The part in `learning_rate_scales`")
    scales = {
        parameter: learning_rate_scale(name, args.learning_rate_scales)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    # Projections to teachers' features lie beside the way from input to output.
    beside = {parameter for name, parameter in module.named_parameters() if "_projection." in name}
    if any(scale for parameter, scale in scales.items() if parameter not in beside):
        for parameter, scale in scales.items():
            parameter.requires_grad_(scale > 0)
    for name, part in module.named_modules():
        if isinstance(part, VectorQuantizer) and learning_rate_scale(name, args.learning_rate_scales) == 0:
            part.frozen = True
            part.eval()

    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, scale in scales.items():
        if parameter.requires_grad:
            groups.setdefault((scale, parameter.dim() > 1), []).append(parameter)
    options = [
        {
            "params": parameters,
            "lr": args.learning_rate * scale,
            "learning_rate_scale": scale,
            "weight_decay": args.weight_decay if is_decayed else 0.0,
        }
        for (scale, is_decayed), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]
    return torch.optim.AdamW(options, lr=args.learning_rate, betas=tuple(args.betas), fused=True)


def learning_rate_scale(name: str, scales: Mapping[str, float]) -> float:
    """Scale of the module or parameter `name`: that of the innermost part named in `scales` which holds it, or 1."""
    parts = [part for part in scales if f"{name}.".startswith(f"{part}.")]
    return scales[max(parts, key=len)] if parts else 1.0


def learning_rate_factor(
    args: OptimizerArguments, step: int, total_steps: int, progress: float | None = None
) -> float:
    """
    Learning rate at a step relative to the peak.

    Args:
        args ([`OptimizerArguments`]): Settings of the schedule.
        step (`int`): Number of steps taken. The warm-up follows it.
        total_steps (`int`): Number of steps at which the schedule ends.
        progress (`float`, *optional*): Progress of the run, in steps of the schedule. It is more than `step` where the
            run ends by time and its time passes faster than its steps. Defaults to `step`.
    """
    past_warmup = max(0, (step if progress is None else progress) - args.warmup_steps)
    if args.schedule == "constant":
        factor = 1.0
    elif args.schedule == "exponential":
        factor = args.decay_rate ** (past_warmup / args.decay_steps)
    else:
        share = min(1.0, past_warmup / max(1, total_steps - args.warmup_steps))
        factor = args.final_ratio + (1 - args.final_ratio) * 0.5 * (1 + math.cos(math.pi * share))
    # The smaller of the two, so that the rate does not jump where time is far ahead of the warm-up.
    return factor if step >= args.warmup_steps else min(factor, (step + 1) / args.warmup_steps)


def set_learning_rate(
    optimizer, args: OptimizerArguments, step: int, total_steps: int, progress: float | None = None
) -> None:
    """
    Set the learning rate of a step; see [`learning_rate_factor`]. It follows from the arguments, so a resumed run
    needs no state of a scheduler.
    """
    factor = learning_rate_factor(args, step, total_steps, progress)
    for group in optimizer.param_groups:
        scale = group.get("learning_rate_scale", 1.0)  # absent where an older checkpoint was loaded
        group["lr"] = args.learning_rate * scale * factor


def forget(optimizer, replaced: Iterable[torch.Tensor]) -> None:
    """Let the moments of parameters that were replaced start anew; other tensors have none."""
    for tensor in replaced:
        optimizer.state.pop(tensor, None)


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
