# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""
What every model and every stream of the common interface demands of waveforms, masks, tokens and further arguments.

Numbers are looked at, for which the host waits. Within `torch.compile` and `torch.export`, where they are not known,
types and shapes alone are checked.
"""

import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers.utils import TransformersKwargs

from .mixed_precision import at_least_single


# No audio is a hundred times as loud as it can be. Feature extractors have the same limit.
_LOUDEST_POSSIBLE = 100.0
# Arguments that transformers passes to any model and that are not among its `TransformersKwargs`. `return_dict` is
# taken by `can_return_tuple` before.
_STANDARD_ARGUMENTS = frozenset(TransformersKwargs.__annotations__) | {"use_cache"}


def numbers_are_known() -> bool:
    """Whether the numbers in a tensor can be looked at; while a graph is traced they cannot."""
    return not torch.compiler.is_compiling()


def check_waveforms(
    input_values: torch.Tensor,
    padding_mask: torch.Tensor | None = None,
    side: str = "either",
    finite: bool = True,
    may_be_empty: bool = False,
    name: str = "input_values",
    mask_name: str = "padding_mask",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Args:
        input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveforms in
            [-1, 1], of any floating-point type.
        padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples.
        side (`str`): Side on which rows may be padded; see [`check_mask`].
        finite (`bool`): Whether NaN, infinity and numbers that are no audio are refused.
        may_be_empty (`bool`): Whether there may be no sample.
        name, mask_name (`str`): Names of the two arguments, for messages.

    Returns:
        The waveforms of shape `(batch, 1, num_samples)`, in float32 or better, and the mask, long.

    Raises:
        TypeError: If the waveforms or the mask are no tensor, or the samples are not floating point.
        ValueError: If a shape is wrong, a sample is not finite or beyond what 32-bit integers reach, or the mask is
            malformed.
    """
    check_floats(input_values, name, "divide integers by their range, to have samples in [-1, 1]")
    shape = tuple(input_values.shape)
    if input_values.dim() == 2:
        input_values = input_values.unsqueeze(1)
    if input_values.dim() != 3 or input_values.shape[1] != 1:
        advice = "average the channels first" if input_values.dim() == 3 else "give it these dimensions"
        raise ValueError(f"`{name}` must be mono, (batch, 1, num_samples), but has shape {shape}; {advice}.")
    if shape[0] == 0 or (shape[-1] == 0 and not may_be_empty):
        raise ValueError(f"`{name}` is empty, of shape {shape}; it needs at least one row and one sample.")
    input_values = at_least_single(input_values)
    if finite:
        check_finite(input_values, f"`{name}` has")
        if numbers_are_known() and input_values.numel() and float(input_values.abs().max()) > _LOUDEST_POSSIBLE:
            raise ValueError(
                f"`{name}` reaches {float(input_values.abs().max()):.6g}, which is no audio; samples must lie in"
                " [-1, 1], so divide 16-bit integers by 32768."
            )
    if padding_mask is not None:
        padding_mask = check_mask(padding_mask, mask_name, (shape[0], shape[-1]), side)
    return input_values, padding_mask


def check_mask(mask: torch.Tensor, name: str, shape: tuple[int, ...], side: str = "either") -> torch.Tensor:
    """
    Args:
        mask (`torch.Tensor` of shape `(batch, length)`): Mask with 1 for what is real and 0 for padding, of any type.
        name (`str`): Name of the argument, for messages.
        shape (`tuple` of two `int`): Shape that it must have.
        side (`str`): Side on which rows may be padded: `"either"`, or `"right"` alone.

    Returns:
        `torch.LongTensor`: The same mask.

    Raises:
        TypeError: If it is no tensor, or complex.
        ValueError: If the shape is wrong, there are numbers besides 0 and 1, or the ones of a row are none, not in
            one run, or not on the left where padding belongs on the right.
    """
    _check_tensor(mask, name)
    if mask.is_complex():
        raise TypeError(f"`{name}` must hold real numbers, 1 and 0, but is {mask.dtype}; give its real part.")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"`{name}` must have shape {tuple(shape)}, but has {tuple(mask.shape)}.")
    if not numbers_are_known():
        return mask.long()
    real = mask.bool()
    is_binary = (mask == real).all(-1)
    num_runs = real[:, 0].long() + (real[:, 1:] & ~real[:, :-1]).sum(-1)
    begins_right = real[:, 0] | (num_runs == 0) if side == "right" else torch.ones_like(is_binary)
    good = is_binary & (num_runs == 1) & begins_right
    if not bool(good.all()):
        row = int((~good).long().argmax())
        if not is_binary[row]:
            other = mask[row][mask[row] != real[row]][0].item()
            problem = f"holds {other:g} in row {row}: 1 is for what is real, 0 for padding, and nothing else is known"
        elif num_runs[row] == 0:
            problem = f"has no 1 in row {row}: leave out rows that are nothing but padding"
        elif num_runs[row] > 1:
            problem = f"has {int(num_runs[row])} runs of ones in row {row}: pad at the ends, and leave no holes"
        else:
            problem = f"must be 1 and then 0 in each row, but row {row} begins with 0: pad on the right"
        raise ValueError(f"`{name}` {problem}.")
    return mask.long()


def check_flags(values: torch.Tensor, name: str, batch_size: int) -> torch.Tensor:
    """
    Args:
        values (`torch.Tensor` of shape `(batch,)`): 1 or `True` for the rows of which something holds.
        name (`str`): Name of the argument, for messages.
        batch_size (`int`): Number of rows.

    Returns:
        `torch.BoolTensor` of shape `(batch,)`: The same.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If the shape is wrong, or there are numbers besides 0 and 1.
    """
    _check_tensor(values, name)
    if tuple(values.shape) != (batch_size,):
        raise ValueError(f"`{name}` must have shape {(batch_size,)}, but has {tuple(values.shape)}.")
    if numbers_are_known() and bool((values != values.bool()).any()):
        raise ValueError(f"`{name}` must hold 1 and 0 alone.")
    return values.bool()


def check_codes(
    audio_codes: torch.Tensor,
    num_quantizers: int,
    codebook_size: int | None,
    audio_codes_mask: torch.Tensor | None = None,
    side: str = "either",
    need_all: bool = False,
    may_be_empty: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Args:
        audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Codes of all or of the first
            codebooks, of any integer type.
        num_quantizers (`int`): Codebooks that the model has.
        codebook_size (`int`, *optional*): Codes lie below it.
        audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for real frames.
        side (`str`): Side on which rows may be padded; see [`check_mask`].
        need_all (`bool`): Whether all codebooks are needed.
        may_be_empty (`bool`): Whether there may be no frame.

    Returns:
        The codes, long, 0 where the mask is 0 (what stands there does not matter), and the mask, long.

    Raises:
        TypeError: If the codes or the mask are no tensor, or the codes no integers.
        ValueError: If a shape is wrong, a code lies outside its codebook, or the mask is malformed.
    """
    _check_tensor(audio_codes, "audio_codes")
    shape = tuple(audio_codes.shape)
    if len(shape) != 3:
        raise ValueError(f"`audio_codes` must have shape (batch, num_quantizers, num_frames), but has {shape}.")
    if need_all and shape[1] != num_quantizers:
        raise ValueError(f"`audio_codes` must have all {num_quantizers} codebooks, but has {shape[1]}.")
    if not 1 <= shape[1] <= num_quantizers:
        raise ValueError(f"`audio_codes` must have 1 to {num_quantizers} codebooks, but has {shape[1]}.")
    if shape[0] == 0 or (shape[2] == 0 and not may_be_empty):
        raise ValueError(f"`audio_codes` is empty, of shape {shape}; it needs at least one row and one frame.")
    if audio_codes.is_floating_point() or audio_codes.is_complex() or audio_codes.dtype == torch.bool:
        raise TypeError(f"`audio_codes` must be integers, but is {audio_codes.dtype}.")
    audio_codes = audio_codes.long()
    if audio_codes_mask is not None:
        audio_codes_mask = check_mask(audio_codes_mask, "audio_codes_mask", (shape[0], shape[2]), side)
        audio_codes = audio_codes * audio_codes_mask.unsqueeze(1)
    if codebook_size is not None and numbers_are_known():
        wrong = (audio_codes < 0) | (audio_codes >= codebook_size)
        if bool(wrong.any()):
            row = int(wrong.flatten(1).any(-1).long().argmax())
            raise ValueError(
                f"`audio_codes` must lie between 0 and {codebook_size - 1}, but row {row} holds"
                f" {int(audio_codes[wrong][0])}."
            )
    return audio_codes, audio_codes_mask


def check_codebook_sizes(codebook_sizes: Sequence[int] | None, num_codebooks: int, codebook_size: int) -> None:
    """
    Raises:
        ValueError: If sizes are given, but not one for each codebook, or one is not between 1 and `codebook_size`.
    """
    if codebook_sizes is None:
        return
    if len(codebook_sizes) != num_codebooks or not all(1 <= size <= codebook_size for size in codebook_sizes):
        raise ValueError(
            f"`codebook_sizes` must hold a size for each of {num_codebooks} codebooks, between 1 and `codebook_size`,"
            f" {codebook_size}, but is {list(codebook_sizes)}."
        )


def check_codes_of_rows(audio_codes: torch.Tensor, codebook_sizes: Sequence[int] | None) -> None:
    """
    Check codes of codebooks that are not equally large.

    Args:
        audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Codes that [`check_codes`] gave.
        codebook_sizes (sequence of `int`, *optional*): Codes of each codebook. `None` checks nothing.

    Raises:
        ValueError: If a code lies outside its codebook.
    """
    if codebook_sizes is None or not audio_codes.numel() or not numbers_are_known():
        return
    for codebook, (size, row) in enumerate(zip(codebook_sizes, audio_codes.unbind(1), strict=True)):
        if int(row.max()) >= size:
            raise ValueError(
                f"`audio_codes` must lie between 0 and {size - 1} in codebook {codebook}, counted from 0, which has"
                f" {size} codes, but holds {int(row.max())} there."
            )


def check_latents(
    latents: torch.Tensor, dim: int, audio_codes_mask: torch.Tensor | None = None, may_be_empty: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Args:
        latents (`torch.Tensor` of shape `(batch, num_frames, dim)`): Latents, of any floating-point type.
        dim (`int`): Dimension of a frame.
        audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for real frames.
        may_be_empty (`bool`): Whether there may be no frame.

    Returns:
        The latents, in float32 or better, 0 where the mask is 0 (what stands there does not matter), and the mask,
        long.

    Raises:
        TypeError: If the latents or the mask are no tensor, or the latents not floating point.
        ValueError: If a shape is wrong, a number is not finite, or the mask is malformed.
    """
    check_floats(latents, "latents", "give them as `encode` made them")
    shape = tuple(latents.shape)
    if len(shape) != 3 or shape[-1] != dim:
        raise ValueError(f"`latents` must have shape (batch, num_frames, {dim}), but has {shape}.")
    if shape[0] == 0 or (shape[1] == 0 and not may_be_empty):
        raise ValueError(f"`latents` is empty, of shape {shape}; it needs at least one row and one frame.")
    latents = at_least_single(latents)
    if audio_codes_mask is not None:
        audio_codes_mask = check_mask(audio_codes_mask, "audio_codes_mask", shape[:2])
        latents = latents.masked_fill(audio_codes_mask.unsqueeze(-1) == 0, 0.0)
    check_finite(latents, "`latents` has")
    return latents, audio_codes_mask


def check_finite(values: torch.Tensor, subject: str, advice: str = "") -> None:
    """
    Args:
        values (`torch.Tensor` of shape `(batch, ...)`): Numbers.
        subject (`str`): Beginning of the message, to which "NaN or infinity in row ..." is added.
        advice (`str`): End of the message.

    Raises:
        ValueError: If a number is not finite.
    """
    if not numbers_are_known() or bool(torch.isfinite(values).all()):
        return
    row = int((~torch.isfinite(values)).flatten(1).any(-1).long().argmax())
    raise ValueError(f"{subject} NaN or infinity in row {row}{advice}.")


def check_encoded(latents: torch.Tensor, input_values: torch.Tensor | None = None) -> None:
    """
    Args:
        latents (`torch.Tensor` of shape `(batch, ...)`): What an encoder gave.
        input_values (`torch.Tensor` of shape `(batch, ...)`, *optional*): What it was given, unchecked. Rows that are
            not finite there may be so in `latents`.

    Raises:
        ValueError: If latents are not finite, which have no codes.
    """
    if input_values is not None and numbers_are_known():
        spoilt = ~input_values.flatten(1).isfinite().all(-1)
        latents = latents.masked_fill(spoilt.view(-1, *[1] * (latents.dim() - 1)), 0.0)
    check_finite(
        latents,
        "The encoder gives",
        ": the samples are far beyond [-1, 1], or the model's weights are damaged",
    )


def check_whole_number(value: Any, name: str, lowest: int | None = None, highest: int | None = None) -> int:
    """
    A number that counts things.

    Args:
        value: Number that was given: an `int`, or an integer of NumPy or PyTorch.
        name (`str`): Name of the argument, for messages.
        lowest, highest (`int`, *optional*): Range that it must lie in.

    Raises:
        ValueError: If it is no whole number (`True` is none), or lies outside.
    """
    asked = "" if lowest is None else f"at least {lowest}" if highest is None else f"between {lowest} and {highest}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"`{name}` must be a whole number{' ' if asked else ''}{asked}, but got {value!r}.")
    if (lowest is not None and number < lowest) or (highest is not None and number > highest):
        raise ValueError(f"`{name}` must {'be' if highest is None else 'lie'} {asked}, but got {number}.")
    return number


def check_number(value: Any, name: str, lowest: float, highest: float | None = None) -> None:
    """
    Args:
        value (`float`): Number that was given.
        name (`str`): Name of the argument, for messages.
        lowest, highest (`float`, *optional*): Range that it must lie in.

    Raises:
        ValueError: If it is no finite number (`True` is none), or lies outside.
    """
    asked = f"at least {lowest}" if highest is None else f"between {lowest} and {highest}"
    if not _is_finite(value) or value < lowest or (highest is not None and value > highest):
        raise ValueError(f"`{name}` must be a number {asked}, but got {value!r}.")


def check_seconds(value: Any, name: str, above_zero: bool = False) -> None:
    """
    Args:
        value (`float`): A duration that was given, in seconds.
        name (`str`): Name of the argument, for messages.
        above_zero (`bool`, *optional*, defaults to `False`): Whether zero is too short.

    Raises:
        ValueError: If it is no finite number (`True` is none), or too small.
    """
    if not _is_finite(value) or value < 0 or (above_zero and value == 0):
        raise ValueError(
            f"`{name}` must be a number of seconds{' above 0' if above_zero else ', 0 or more'}, but got {value!r}."
        )


def check_whole_numbers(
    values: torch.Tensor, name: str, shape: tuple[int, ...], lowest: int | None = None, highest: int | None = None
) -> torch.Tensor:
    """
    Numbers that count things, as [`check_whole_number`] has one.

    Args:
        values (`torch.Tensor` of shape `shape`): Numbers that were given, of any type.
        name (`str`): Name of the argument, for messages.
        shape (`tuple` of `int`): Shape that they must have.
        lowest, highest (`int`, *optional*): Range that they must lie in.

    Returns:
        `torch.LongTensor`: The same numbers.

    Raises:
        TypeError: If they are no tensor, or one of truth values.
        ValueError: If the shape is wrong, or a number is no whole one or lies outside.
    """
    _check_tensor(values, name)
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"`{name}` must be integers, but is {values.dtype}.")
    if tuple(values.shape) != tuple(shape):
        raise ValueError(f"`{name}` must have shape {tuple(shape)}, but has {tuple(values.shape)}.")
    if numbers_are_known():
        wrong = ~torch.isfinite(values) | (values != values.long())
        asked = []
        if highest is not None:
            wrong = wrong | (values > highest)
            asked.append(f"lie below {highest + 1}")
        if lowest is not None:
            wrong = wrong | (values < lowest)
            asked.append(f"be at least {lowest}")
        asked.append("be whole numbers")
        if bool(wrong.any()):
            raise ValueError(f"`{name}` must {', '.join(asked)}, but some are {values[wrong][0].item():g}.")
    return values.long()


def check_num_samples(num_samples: Any, batch_size: int, lowest: int | None = None) -> int | torch.Tensor:
    """
    Lengths of recordings.

    Args:
        num_samples (`int` or `torch.Tensor` of shape `(batch,)`): Length of the whole batch, or of each row.
        batch_size (`int`): Number of rows.
        lowest (`int`, *optional*): Shortest length.

    Returns:
        `int` or `torch.LongTensor` of shape `(batch,)`: The same.

    Raises:
        TypeError: If they are a tensor of truth values.
        ValueError: If they are no whole numbers, too small, or not as many as there are rows.
    """
    if isinstance(num_samples, torch.Tensor) and num_samples.dim() > 0:
        return check_whole_numbers(num_samples, "num_samples", (batch_size,), lowest)
    if isinstance(num_samples, Sequence) or getattr(num_samples, "ndim", 0):
        kind = type(num_samples).__name__
        raise ValueError(f"`num_samples` must be a whole number, or a tensor with one for each row, but is a {kind}.")
    return check_whole_number(num_samples, "num_samples", lowest)


def check_arguments(names: Iterable[str]) -> None:
    """
    Args:
        names (iterable of `str`): Arguments that `forward` was given beside its own.

    Raises:
        TypeError: If one of them is none that transformers passes to any model, such as `output_attentions`.
    """
    if unknown := sorted(set(names) - _STANDARD_ARGUMENTS):
        raise TypeError(f"`forward` has no argument {', '.join(unknown)}.")


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_tensor(values: Any, name: str, kind: str = "tensor") -> None:
    # A dense tensor that holds numbers.
    if not isinstance(values, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a {kind}, but is {type(values).__name__}; `torch.as_tensor` makes one of a NumPy array"
            " or a list."
        )
    if values.is_nested:
        raise TypeError(f"`{name}` is nested; pad it, and give a mask.")
    if values.layout != torch.strided:
        raise TypeError(f"`{name}` is {values.layout}; `to_dense` makes it a tensor that models take.")
    if values.is_meta and numbers_are_known():
        raise TypeError(f"`{name}` is on the device `meta`, where there are no numbers; make it on a real one.")


def check_floats(values: Any, name: str, advice: str = "convert it") -> torch.Tensor:
    """The values. Raises `TypeError`, with `advice`, unless they are a tensor of floating point."""
    _check_tensor(values, name, "tensor of floating point")
    if values.is_complex():
        advice = "give its real part, if nothing else is meant"
    if not values.is_floating_point():
        raise TypeError(f"`{name}` must be a tensor of floating point, but is {values.dtype}; {advice}.")
    return values
