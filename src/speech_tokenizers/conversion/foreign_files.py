# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of others as files: read without running anything in them, and replaced by a folder that is complete."""

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from speech_tokenizers.modeling.checked_loading import describe_other_content, is_finite


Model = TypeVar("Model", bound=nn.Module)

_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]


class CheckpointError(ValueError):
    """A checkpoint, or its config, cannot be converted. The message names the file and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")


def read_checkpoint_file(path: Path, stand_ins: Sequence[tuple[Any, str]] = ()) -> Any:
    """
    Read what a PyTorch or safetensors file holds. Nothing in it is executed.

    Args:
        path (`Path`): The file.
        stand_ins (sequence of `tuple`, *optional*): Pairs of a class that is made in place of another, and the other's
            full name, for objects that are not needed.

    Raises:
        CheckpointError: If the file is none, or holds anything but tensors, plain values and what has a stand-in.
        OSError: If it cannot be read.
    """
    if (reason := describe_other_content(path)) is not None:
        raise CheckpointError(path, reason)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path, stand_ins)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(path, f"is no valid safetensors file ({error}); is it complete?") from error


def _read_pytorch(path: Path, stand_ins: Sequence[tuple[Any, str]]) -> Any:
    # A trainer may have saved its best loss as a number of NumPy's.
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    harmless = [*((_NUMPY_SCALAR, name) for name in names), np.dtype, type(np.dtype("f4")), type(np.dtype("f8"))]
    harmless.extend(stand_ins)
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(harmless):
            # Mapped, not read: a trainer's file is four times as large as its model.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                path,
                f"holds Python objects besides tensors ({found.group(1)}), which could run code when they are loaded; "
                "if you trust the file, save its state dict alone.",
            ) from error
        raise CheckpointError(path, "is no PyTorch checkpoint, or is damaged or incomplete.") from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, struct.error) as error:
        # What the readers of the formats make of bytes that are none of theirs.
        raise CheckpointError(path, "is no PyTorch checkpoint, or is damaged or incomplete.") from error


def _check_archive(path: Path) -> None:
    # PyTorch itself does not look at the checksums of its archives.
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error) as error:
        raise CheckpointError(path, "is no PyTorch checkpoint, or is damaged or incomplete.") from error
    if damaged is not None:
        raise CheckpointError(path, f"is damaged: the checksum of `{damaged}` does not fit; fetch or save it again.")


def check_state(state: dict[Any, Any], path: Path) -> dict[str, torch.Tensor]:
    """
    Check that a state dict holds names, and tensors of real numbers that are all there.

    Args:
        state (`dict`): What a checkpoint holds.
        path (`Path`): The file, for messages.

    Raises:
        CheckpointError: If it does not. The message names the first entry that does not fit.
    """
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(path, f"has the key {name!r}, but weights have names.")
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(path, f"`{name}` is of type {type(value).__name__}, but must be a tensor.")
        if (fault := _fault(value)) is not None:
            raise CheckpointError(path, f"`{name}` {fault}")
    return state


def _fault(value: torch.Tensor) -> str | None:
    # Why a tensor is no array of numbers, told before anything is computed with it.
    if value.is_nested or value.layout != torch.strided:
        return "is a sparse or nested tensor; save it as a dense one."
    if value.is_meta:
        return "has a shape, but no values (it lies on the device `meta`)."
    if value.is_quantized or value.is_complex():
        return f"is of type {value.dtype}, but must hold real numbers."
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has the shape {tuple(value.shape)}, for which the file holds too few values."
    return None


def make_model(make: Callable[[], Model], compare: Callable[[Model], Any], path: Path) -> tuple[Model, Any]:
    """
    Make a model for weights that are known to fit. No memory is taken for one that they do not fit.

    Args:
        make (callable): Function that makes the model.
        compare (callable): Function that compares the weights with a model that has shapes, but no values.
        path (`Path`): The file that says the sizes, for messages.

    Returns:
        `tuple`: The model, and what `compare` returned.

    Raises:
        CheckpointError: If there is no model of these sizes, or `compare` raises it.
    """
    try:
        with torch.device("meta"):
            shapes = make()
    except (RuntimeError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(path, f"describes a network of impossible sizes ({reason}).") from error
    compared = compare(shapes)
    return make(), compared


def compare_tensor(
    path: Path, name: str, value: torch.Tensor, shape: Sequence[int], expectation: str = "{} was expected."
) -> None:
    """Raises `CheckpointError` if a weight has another shape than `shape`, or is not finite."""
    if tuple(value.shape) != tuple(shape):
        raise CheckpointError(path, f"`{name}` has shape {tuple(value.shape)}, but {expectation.format(tuple(shape))}")
    if not is_finite(value):
        raise CheckpointError(path, f"`{name}` holds values that are not finite.")


def check_output(output: Path, overwrite: bool) -> None:
    """Raises `ValueError` if `output` is no folder of a model, or is one and is not to be replaced."""
    if not output.exists():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / "config.json").is_file()):
        raise ValueError(f"`output` is {output}, which exists and is no model's folder; choose another.")
    if not overwrite and any(output.iterdir()):
        raise ValueError(f"`output` is {output}, which exists; choose another, or allow to replace it (`overwrite`).")


def some_names(names: Iterable[Any]) -> str:
    """The first few names, for a message."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


__all__ = [
    "CheckpointError",
    "check_output",
    "check_state",
    "compare_tensor",
    "make_model",
    "read_checkpoint_file",
    "some_names",
]
