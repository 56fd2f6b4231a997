# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of others as files: read without running anything in them, and replaced by a folder that is complete."""

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


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
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(path, "is empty.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(path, "is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(path, "is a web page, not a checkpoint; download the file itself.")
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
    try:
        with torch.serialization.safe_globals(harmless):
            # Mapped, not read: a trainer's file is four times as large as its model.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
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


__all__ = ["CheckpointError", "check_output", "read_checkpoint_file", "some_names"]
