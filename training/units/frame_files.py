# SPDX-License-Identifier: Apache-2.0
"""Files of frames that are larger than memory: whether they are whole, their moments, and files of changed frames."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.lib.format import open_memmap

from speech_tokenizers.processing.whole_files import WholeFile


# Frames that are changed and written at once.
_FRAMES_AT_ONCE = 65536


def is_readable(path: Path) -> bool:
    """Whether a file of frames is there and as long as it says."""
    try:
        open_memmap(path, mode="r")
    except (OSError, ValueError):
        return False
    return True


def frame_moments(frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each dimension, `(hidden_size,)`; in double precision, block by block."""
    total = torch.zeros(2, frames.shape[1], dtype=torch.float64)
    for first in range(0, len(frames), _FRAMES_AT_ONCE):
        block = torch.from_numpy(frames[first : first + _FRAMES_AT_ONCE].astype(np.float64))
        total += torch.stack([block.sum(0), block.square().sum(0)])
    mean, square = total / len(frames)
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()


def changed_frames(
    frames: np.ndarray, path: Path, change: Any, accelerator: Accelerator | None, dim: int | None = None
) -> np.ndarray:
    """
    A second file, of changed frames; where it is there already, it is only read.

    Args:
        frames (`np.ndarray` of shape `(num_frames, hidden_size)`): Frames.
        path (`Path`): The `.npy` file, of float32.
        change (callable): Function from some frames, a tensor in float32, to as many others.
        accelerator (`Accelerator`, *optional*): Of the processes, of which one writes.
        dim (`int`, *optional*): Dimension of the changed frames. Defaults to that of the others.

    Returns:
        A memory map `(num_frames, dim)`.
    """
    if not is_readable(path) and (accelerator is None or accelerator.is_main_process):
        with WholeFile(path) as temporary:
            target = open_memmap(temporary, mode="w+", dtype=np.float32, shape=(len(frames), dim or frames.shape[1]))
            for first in range(0, len(frames), _FRAMES_AT_ONCE):
                block = torch.from_numpy(frames[first : first + _FRAMES_AT_ONCE].astype(np.float32))
                target[first : first + len(block)] = change(block).numpy()
            target.flush()
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return open_memmap(path, mode="c")


def remove_frames(folder: Path, accelerator: Accelerator | None) -> None:
    """Remove the files of frames in a folder, once all processes are here."""
    if accelerator is not None:
        accelerator.wait_for_everyone()
    if accelerator is None or accelerator.is_main_process:
        for path in folder.glob("*.npy"):
            path.unlink()
