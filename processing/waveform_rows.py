# SPDX-License-Identifier: Apache-2.0
"""What users pass as audio, as rows of samples; and rows of samples padded into a batch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers.utils import is_torch_tensor, logging

from .sampling_rates import whole_sampling_rate


logger = logging.get_logger(__name__)

_NOT_FLOAT = "`{}` must hold floats in [-1, 1], but got {}; divide 16-bit integers by 32768."
# Resampling and mixing overshoot 1 a little.
_LOUDEST_PLAUSIBLE = 10.0
# No audio is a hundred times as loud as it can be.
_LOUDEST_POSSIBLE = 100.0


class Waveform(NamedTuple):
    """
    Audio of one recording.

    Args:
        samples: What the user gave, unchecked.
        sampling_rate (`int`, *optional*): Rate that came with the samples, in Hz.
    """

    samples: Any
    sampling_rate: int | None


def as_waveforms(raw_audio: Any) -> list[Waveform]:
    """
    The recordings in what a user passes to a feature extractor.

    Args:
        raw_audio: A waveform (`np.ndarray`, `torch.Tensor` or list of floats), a row of `datasets` (`{"array",
            "sampling_rate"}`, or a decoder of torchcodec), or a list of these.

    Returns:
        `list[Waveform]`: The recordings, one or more.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(raw_audio, np.ndarray) and raw_audio.dtype == object:
        raw_audio = list(raw_audio.flat)
    # A column of `datasets` is a sequence, too.
    if not isinstance(raw_audio, Sequence) or isinstance(raw_audio, str | bytes):
        return [_as_waveform(raw_audio)]
    if not len(raw_audio):
        raise ValueError("`raw_audio` is empty; pass at least one waveform with at least one sample.")
    # A list of numbers is one waveform; an element without a dimension is a number.
    if _is_number(raw_audio[0]):
        return [Waveform(raw_audio, None)]
    return [_as_waveform(item) for item in raw_audio]


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float | complex) or getattr(item, "ndim", None) == 0


def _as_waveform(item: Any) -> Waveform:
    if hasattr(item, "get_all_samples"):  # torchcodec's decoder, as `datasets` gives it
        decoded = item.get_all_samples()
        return Waveform(decoded.data, whole_sampling_rate(decoded.sample_rate))
    if not isinstance(item, Mapping):
        return Waveform(item, None)
    if "array" not in item or "sampling_rate" not in item:
        raise ValueError(
            f"`raw_audio` is a dictionary of {sorted(map(str, item))}, but a row of audio has `array` and"
            ' `sampling_rate`; pass `row["audio"]`, decoded.'
        )
    return Waveform(item["array"], whole_sampling_rate(item["sampling_rate"]))


def as_samples(waveform: Any, name: str = "raw_audio") -> np.ndarray:
    """
    Check one mono waveform.

    Args:
        waveform (`np.ndarray`, `torch.Tensor` or `list[float]` of shape `(num_samples,)` or `(1, num_samples)`): The
            samples, floats of any precision.
        name (`str`, *optional*, defaults to `"raw_audio"`): Name of the argument, for messages.

    Returns:
        `np.ndarray` of shape `(num_samples,)`: The samples in float32.

    Raises:
        TypeError: If the samples are no floats.
        ValueError: If there are none or several channels, or some are not finite or no audio.
    """
    if is_torch_tensor(waveform):
        if not waveform.is_floating_point():
            raise TypeError(_NOT_FLOAT.format(name, waveform.dtype))
        waveform = waveform.detach().cpu()
        waveform = (waveform if waveform.element_size() > 2 else waveform.float()).numpy()
    if isinstance(waveform, list | tuple) and len(waveform) and is_torch_tensor(waveform[0]):
        waveform = [item.item() if is_torch_tensor(item) and item.ndim == 0 else item for item in waveform]
    if np.ma.is_masked(waveform):
        raise TypeError(f"`{name}` hides samples (np.ma); pass those that count, or all and a mask beside them.")
    try:
        waveform = np.asarray(waveform)
    except ValueError as error:
        raise ValueError(
            f"`{name}` mixes numbers and lists, or lists of different lengths; pass a list of waveforms, each of"
            " shape (num_samples,)."
        ) from error
    if waveform.size == 0:
        raise ValueError(f"`{name}` is empty; pass at least one waveform with at least one sample.")
    if waveform.dtype.kind in "OUS":
        kind = type(waveform.flat[0]).__name__
        raise TypeError(f"`{name}` must hold floats in [-1, 1], but got {kind}; pass arrays of samples.")
    if waveform.dtype.name == "bfloat16":
        waveform = waveform.astype(np.float32)
    if not np.issubdtype(waveform.dtype, np.floating):
        raise TypeError(_NOT_FLOAT.format(name, waveform.dtype))
    if waveform.ndim == 2 and waveform.shape[0] == 1:
        waveform = waveform[0]
    if waveform.ndim != 1:
        axis = int(np.argmin(waveform.shape or [0]))
        advice = f"average the channels first, e.g. `audio.mean(axis={axis})`, and pass a batch as a list of waveforms"
        if waveform.size == max(waveform.shape or [0]):
            advice = "drop the other dimensions, `audio.reshape(-1)`"
        raise ValueError(
            f"`{name}` must hold mono waveforms of shape (num_samples,), but got one of shape {waveform.shape};"
            f" {advice}."
        )
    if not np.isfinite(waveform).all():
        raise ValueError(
            f"`{name}` contains {np.count_nonzero(~np.isfinite(waveform))} NaN or infinite samples; "
            "remove them first, e.g. with `np.nan_to_num`."
        )
    loudest = np.abs(waveform).max()
    if loudest > _LOUDEST_PLAUSIBLE:
        message = f"`{name}` reaches {loudest:.6g}, but samples must lie in [-1, 1]; divide 16-bit integers by 32768."
        if loudest > _LOUDEST_POSSIBLE:
            raise ValueError(message)
        logger.warning(message)
    return waveform.astype(np.float32, copy=False)


def check_mask(mask: Any, num_samples: int, name: str = "padding_mask") -> np.ndarray:
    """
    Check the mask of one waveform.

    Args:
        mask (array of shape `(num_samples,)` or `(1, num_samples)`): 1 or true for real samples, which follow each
            other, and 0 for padding.
        num_samples (`int`): Length of the waveform.
        name (`str`, *optional*, defaults to `"padding_mask"`): Name of the argument, for messages.

    Returns:
        `np.ndarray` of shape `(num_samples,)`: The mask as booleans.

    Raises:
        ValueError: If it has another length or other values, no 1, or holes.
    """
    mask = one_row(mask)
    if mask.shape != (num_samples,):
        raise ValueError(f"`{name}` must have shape ({num_samples},) like its samples, but has {mask.shape}.")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"`{name}` must hold 1 for real samples and 0 for padding, but holds other values.")
    real = np.flatnonzero(mask)
    if not len(real):
        raise ValueError(f"`{name}` is 0 everywhere; each row needs at least one real sample.")
    if real[-1] - real[0] + 1 != len(real):
        raise ValueError(f"`{name}` has 0 between real samples; padding lies before or after them.")
    return mask.astype(bool)


def one_row(values: Any) -> np.ndarray:
    """The same values as an array, without leading dimensions of 1."""
    if is_torch_tensor(values):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = np.asarray(values)
    while values.ndim > 1 and values.shape[0] == 1:
        values = values[0]
    return values


def padded_rows(
    rows: Sequence[np.ndarray], length: int, side: str, value: float = 0.0
) -> np.ndarray | list[np.ndarray]:
    """
    Rows with as much padding as they need for a length; longer ones stay as they are.

    Args:
        rows (sequence of `np.ndarray` of shape `(num_samples,)`): The rows.
        length (`int`): Length to pad to.
        side (`str`): Side of the padding: `"right"` or `"left"`.
        value (`float`, *optional*, defaults to 0.0): Value of the padding.

    Returns:
        `np.ndarray` of shape `(num_rows, length)`, or a list of rows where some are longer.
    """
    if any(len(row) > length for row in rows):
        return [row if len(row) > length else padded_rows([row], length, side, value)[0] for row in rows]
    # One array for all, which is filled once.
    kind = rows[0].dtype
    padded = np.full((len(rows), length), value, kind) if value else np.zeros((len(rows), length), kind)
    for target, row in zip(padded, rows, strict=True):
        target[slice(len(row)) if side == "right" else slice(length - len(row), length)] = row
    return padded


__all__ = ["Waveform", "as_samples", "as_waveforms", "check_mask", "one_row", "padded_rows"]
