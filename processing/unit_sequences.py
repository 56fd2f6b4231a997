# SPDX-License-Identifier: Apache-2.0
"""The units of one recording: runs of equal frames, and the strings that language models of speech read."""

import re

import numpy as np


def deduplicate(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Merge neighbouring frames of equal units.

    Args:
        units (`np.ndarray` of shape `(num_frames,)` or `(num_quantizers, num_frames)`): Units, as integers. A run of
            several codebooks lasts as long as none of them changes.

    Returns:
        `tuple`: The units of shape `(num_units,)` or `(num_quantizers, num_units)` and their durations in frames of
        shape `(num_units,)`, int64 both.

    Raises:
        TypeError, ValueError: If `units` are no integers, negative, or of another shape.
    """
    units = check_units(units)
    num_frames = units.shape[-1]
    is_start = np.ones(num_frames, dtype=bool)
    frames = np.atleast_2d(units)  # (Q, F)
    is_start[1:] = (frames[:, 1:] != frames[:, :-1]).any(axis=0)
    starts = np.flatnonzero(is_start)
    return units[..., starts], np.diff(starts, append=num_frames)


def expand(units: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """
    Repeat each unit for as many frames as it lasts; the inverse of [`deduplicate`].

    Args:
        units (`np.ndarray` of shape `(num_units,)` or `(num_quantizers, num_units)`): Units, as integers.
        durations (`np.ndarray` of shape `(num_units,)`): Frames that each unit lasts, at least 1.

    Returns:
        `np.ndarray`: Units of shape `(num_frames,)` or `(num_quantizers, num_frames)`, int64.

    Raises:
        TypeError, ValueError: If either is malformed, or their lengths differ.
    """
    units, durations = check_units(units), check_durations(durations)
    if durations.shape != units.shape[-1:]:
        raise ValueError(f"`durations` must have one entry a unit, {units.shape[-1]}, but got {len(durations)}.")
    return np.repeat(units, durations, axis=-1)


def units_to_string(units: np.ndarray, prefix: str = "Un") -> str:
    """
    Write units as a string, `<Un12><Un7>`, or frame by frame for several codebooks, `<Q1_Un12><Q2_Un3><Q1_Un7>...`.

    Args:
        units (`np.ndarray` of shape `(num_units,)` or `(num_quantizers, num_units)`): Units, as integers.
        prefix (`str`, *optional*, defaults to `"Un"`): Letters in front of the number.

    Raises:
        TypeError, ValueError: If `units` are malformed, or `prefix` is not made of letters.
    """
    units = check_units(units)
    if units.ndim == 1:
        return "".join(unit_name(unit, prefix) for unit in units.tolist())
    return "".join(
        unit_name(unit, prefix, codebook) for frame in units.T.tolist() for codebook, unit in enumerate(frame, start=1)
    )


def string_to_units(text: str, prefix: str = "Un") -> np.ndarray:
    """
    Read what [`units_to_string`] wrote.

    Returns:
        `np.ndarray`: Units of shape `(num_units,)`, or `(num_quantizers, num_units)` where the names carry codebooks;
            int64.

    Raises:
        ValueError: If anything else stands in the string, or the codebooks do not take turns.
    """
    _check_prefix(prefix)
    pattern = re.compile(rf"<(?:Q([1-9][0-9]{{0,3}})_)?{prefix}(0|[1-9][0-9]{{0,8}})>")
    codebooks, units, position = [], [], 0
    while position < len(text):
        match = pattern.match(text, position)
        if match is None:
            raise ValueError(
                f"`text` must be a string of units such as <{prefix}12><{prefix}7>, but has "
                f"{text[position : position + 20]!r} at character {position}."
            )
        codebooks.append(int(match[1] or 0))
        units.append(int(match[2]))
        position = match.end()
    num_quantizers = max(codebooks, default=0)
    if num_quantizers == 0:
        return np.array(units, dtype=np.int64)
    num_frames, remainder = divmod(len(units), num_quantizers)
    if remainder or codebooks != [*range(1, num_quantizers + 1)] * num_frames:
        raise ValueError(f"`text` must name the codebooks Q1 to Q{num_quantizers} in turn, whole frames of them.")
    return np.array(units, dtype=np.int64).reshape(num_frames, num_quantizers).T


def unit_name(unit: int, prefix: str = "Un", codebook: int | None = None) -> str:
    """A unit as strings write it, such as `<Un12>` or, with the codebook's number from 1, `<Q1_Un12>`."""
    _check_prefix(prefix)
    return f"<{prefix}{unit}>" if codebook is None else f"<Q{codebook}_{prefix}{unit}>"


def check_units(units: np.ndarray) -> np.ndarray:
    """
    Units as an int64 array of one or two dimensions.

    Raises:
        TypeError: If they are no integers.
        ValueError: If they have another shape, or one is negative.
    """
    units = _as_integers(units, "units")
    if units.ndim not in (1, 2) or (units.ndim == 2 and not len(units)):
        raise ValueError(
            f"`units` must have shape (num_units,) or (num_quantizers, num_units), but got {units.shape}; "
            "pass the recordings of a batch one by one."
        )
    if units.size and units.min() < 0:
        raise ValueError(f"`units` must not be negative, but got {units.min()}; leave padding out.")
    return units


def check_durations(durations: np.ndarray) -> np.ndarray:
    """
    Durations in frames as an int64 array of one dimension.

    Raises:
        TypeError: If they are no integers.
        ValueError: If they have another shape, or one is below 1.
    """
    durations = _as_integers(durations, "durations")
    if durations.ndim != 1:
        raise ValueError(f"`durations` must have shape (num_units,), but got {durations.shape}.")
    if durations.size and durations.min() < 1:
        raise ValueError(f"`durations` must be at least 1 frame, but got {durations.min()}.")
    return durations


def _as_integers(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"`{name}` must be integers, but got {array.dtype}.")
    return array.astype(np.int64, copy=False)


def _check_prefix(prefix: str) -> None:
    if not (prefix.isascii() and prefix.isalpha()):
        raise ValueError(f"`prefix` must be made of ASCII letters, but got {prefix!r}.")
