# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Models some of whose parts compute in float32 or better, by whichever road the others went to half precision."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import nn
from transformers.utils import logging


logger = logging.get_logger(__name__)
Module = TypeVar("Module", bound=nn.Module)


class MixedPrecisionModel:
    """
    A model whose `_keep_in_fp32_modules_strict` holds for `.half()`, `.bfloat16()` and `.to(dtype)` too.

    `from_pretrained(dtype=...)` leaves these modules in float32 when the others become half precision. PyTorch's own
    methods know nothing of that, so codebooks would be rounded, and codes would depend on the road. `.double()` turns
    all of the model into float64, as `from_pretrained` does.
    """

    def post_init(self) -> None:
        """See `PreTrainedModel.post_init`."""
        super().post_init()  # type: ignore[misc]
        guard_convolutions(self)  # type: ignore[type-var]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> Self:
        names = set(self._keep_in_fp32_modules_strict or ())  # type: ignore[attr-defined]
        kept = set()
        for module_name, module in self.named_modules():  # type: ignore[attr-defined]
            if names & set(module_name.split(".")):
                own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
                kept |= {id(tensor) for tensor in own} | {id(tensor.grad) for tensor in own if tensor.grad is not None}

        def keeping_precision(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            if id(tensor) in kept and is_half(changed.dtype) and not is_half(tensor.dtype):
                return tensor.to(changed.device)
            return changed

        return super()._apply(keeping_precision, *args, **kwargs)  # type: ignore[misc]


def guard_convolutions(model: Module) -> Module:
    """
    Let the convolutions of a model give right results in bfloat16 on a CPU.

    There, on processors with AMX, oneDNN gets convolutions of few channels a group wrong, by as much as their output
    (PyTorch 2.13; seen from 2 to 30 channels and from kernel 4 on), such as the positional one of a small HuBERT. They
    are computed in float32.

    Args:
        model (`nn.Module`): The model, which is changed in place. What it computes elsewhere stays as it is.

    Returns:
        `nn.Module`: The same model.
    """
    for module in model.modules():
        is_narrow = isinstance(module, nn.Conv1d) and 1 < module.in_channels // module.groups < 32
        if is_narrow and module.kernel_size[0] > 1 and _in_float32 not in module._forward_hooks.values():
            module.register_forward_hook(_in_float32)
    return model


def _in_float32(conv: nn.Conv1d, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
    if output.dtype != torch.bfloat16 or output.device.type != "cpu":
        return None
    with torch.autocast("cpu", enabled=False):
        bias = None if conv.bias is None else conv.bias.float()
        return conv._conv_forward(args[0].float(), conv.weight.float(), bias).to(output.dtype)


def is_half(dtype: torch.dtype) -> bool:
    """Whether numbers of this type have fewer bits than float32."""
    return dtype.is_floating_point and dtype.itemsize < 4


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """Floating-point values in float32; those in float64 stay as they are."""
    return values if values.dtype == torch.float64 else values.float()


def warn_of_half_precision(model: Any) -> None:
    """
    Say once a process that a model in half precision, or under autocast, gives other tokens than in float32.

    A model that `warns_of_half` has said it when it was loaded or cast.
    """
    if torch.compiler.is_compiling():
        return
    dtype, device = model.dtype, model.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    elif getattr(model, "warns_of_half", False):
        return
    if not is_half(dtype):
        return
    dtype = str(dtype).removeprefix("torch.")
    logger.warning_once(
        f"A {type(model).__name__} encodes in {dtype}: some of its tokens differ from those in float32. Load the model"
        " with `dtype=torch.float32` where tokens are stored or compared."
    )


__all__ = ["MixedPrecisionModel"]
