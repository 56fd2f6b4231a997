# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints that are complete or absent, and the moving average of a model's weights."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """
    Complete checkpoints in `output_dir`, oldest first. An interrupted save leaves none: its folder starts with a dot.
    """
    found = [folder for folder in output_dir.glob("checkpoint-*") if CHECKPOINT_NAME.fullmatch(folder.name)]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def write_checkpoint(
    folder: Path, write: Callable[[Path], None], is_main_process: bool, wait: Callable[[], None]
) -> None:
    r"""
    Let `write` fill a temporary folder, and rename that to `folder` when all of it is on the disk.

    Args:
        folder (`Path`): The checkpoint's final place.
        write (callable): Called by every process with the temporary folder.
        is_main_process (`bool`): Whether this process creates and renames folders.
        wait (callable): Waits for all processes.
    """
    temporary = folder.with_name(f".{folder.name}.incomplete")
    if is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    wait()
    write(temporary)
    wait()
    if is_main_process:
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    wait()


def remove_old_checkpoints(output_dir: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints (`None` keeps all), and what interrupted saves left behind."""
    for leftover in output_dir.glob(".checkpoint-*.incomplete"):
        shutil.rmtree(leftover, ignore_errors=True)
    if keep is not None:
        for folder in list_checkpoints(output_dir)[: -max(keep, 1)]:
            # Renamed first, so that a kill while deleting does not leave half a checkpoint under a complete one's
            # name.
            doomed = folder.with_name(f".{folder.name}.incomplete")
            os.replace(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


class WeightAverage:
    r"""
    Exponential moving average of a model's parameters and floating-point buffers, codebooks included.

    The decay starts low, min(decay, (1 + n) / (10 + n)) at update n, so that the first weights are soon forgotten.

    Args:
        model (`nn.Module`): Whose weights to average.
        decay (`float`): Decay at each update.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.averages = {name: tensor.clone() for name, tensor in _weights(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """
        Move the averages towards the model's weights. The first update copies them, since codebooks start with the
        data.
        """
        decay = 0.0 if self.num_updates == 0 else min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.averages.values()), list(_weights(model).values()), 1 - decay)
        self.num_updates += 1

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within this context the model has the averaged weights; afterwards its own again."""
        weights = _weights(model)
        own = {name: tensor.clone() for name, tensor in weights.items()}
        _copy(self.averages, weights)
        try:
            yield
        finally:
            _copy(own, weights)

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        _copy(state["averages"], self.averages)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


@torch.no_grad()
def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
