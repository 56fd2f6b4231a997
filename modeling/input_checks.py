# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What every model of the common interface demands of waveforms, codes and further arguments."""

from collections.abc import Iterable

import torch
from transformers.utils import TransformersKwargs


def check_waveforms(input_values: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
    """
    Args:
        input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveforms in
            [-1, 1].
        padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples.

    Returns:
        `torch.Tensor` of shape `(batch, 1, num_samples)`.

    Raises:
        TypeError: If the samples are not floating point.
        ValueError: If a shape is wrong.
    """
    if input_values.dim() == 2:
        input_values = input_values.unsqueeze(1)
    if input_values.dim() != 3 or input_values.shape[1] != 1:
        shape = tuple(input_values.shape)
        raise ValueError(
            f"`input_values` must be mono, (batch, 1, num_samples), but has shape {shape}; average the channels first."
        )
    if input_values.shape[-1] == 0:
        raise ValueError("`input_values` is empty; it needs at least one sample.")
    if not input_values.is_floating_point():
        raise TypeError(
            f"`input_values` must be floating point in [-1, 1], but is {input_values.dtype}; "
            "divide integers by their range."
        )
    if padding_mask is not None and padding_mask.shape != (input_values.shape[0], input_values.shape[-1]):
        expected = (input_values.shape[0], input_values.shape[-1])
        raise ValueError(f"`padding_mask` must have shape {expected}, but has {tuple(padding_mask.shape)}.")
    return input_values


def check_codes(audio_codes: torch.Tensor, num_quantizers: int) -> torch.Tensor:
    """
    Args:
        audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Codes of all or of the first
            codebooks.
        num_quantizers (`int`): Codebooks that the model has.

    Returns:
        `torch.LongTensor`: The same codes.

    Raises:
        TypeError: If the codes are not integers.
        ValueError: If the shape is wrong.
    """
    if audio_codes.dim() != 3:
        shape = tuple(audio_codes.shape)
        raise ValueError(f"`audio_codes` must have shape (batch, num_quantizers, num_frames), but has {shape}.")
    if not 1 <= audio_codes.shape[1] <= num_quantizers:
        raise ValueError(f"`audio_codes` must have 1 to {num_quantizers} codebooks, but has {audio_codes.shape[1]}.")
    if audio_codes.shape[-1] == 0:
        raise ValueError("`audio_codes` is empty; it needs at least one frame.")
    if audio_codes.is_floating_point():
        raise TypeError(f"`audio_codes` must be integers, but is {audio_codes.dtype}.")
    return audio_codes.long()


def check_arguments(names: Iterable[str]) -> None:
    """
    Args:
        names (iterable of `str`): Arguments that `forward` was given beside its own.

    Raises:
        TypeError: If one of them is none that transformers passes to any model, such as `output_attentions`.
    """
    if unknown := sorted(set(names) - set(TransformersKwargs.__annotations__)):
        raise TypeError(f"`forward` has no argument {', '.join(unknown)}.")
