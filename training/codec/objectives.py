# SPDX-License-Identifier: Apache-2.0
"""Further objectives of a codec's training, and conditions that a model may be trained from."""

from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator


class CodecObjective(Protocol):
    """
    Further named losses of a [`CodecTrainer`]. Each has its weight in `args.loss_weights`.

    `loss_names` lists what `losses` returns.
    """

    loss_names: tuple[str, ...]

    @property
    def reported(self) -> dict[str, torch.Tensor]:
        """Scalars about the last batch, which are logged and not weighted."""
        return {}

    def prepare(self, recordings: Any, model: Any, accelerator: Accelerator, folder: Path) -> None:
        """
        Prepare the objective; called once before training.

        Args:
            recordings: Recordings of the training: [`DecodedRecordings`], a sequence of arrays, or a stream.
            model (`PreTrainedModel`): Codec that is trained.
            accelerator (`Accelerator`): Accelerator of the run.
            folder (`Path`): Folder for what takes long to compute.
        """
        ...

    def targets(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        """Tensors that a crop brings along for `losses`, by names that only this objective uses. Called in workers."""
        ...

    def losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Scalar losses by name, from the codec's output for a batch."""
        ...


class Conditions(Protocol):
    """
    Tensors that a model is given in place of the waveform, under the names of the arguments of its `forward`.
    """

    def prepare(self, recordings: Any, eval_recordings: Any, model: Any, accelerator: Accelerator, folder: Path):
        """
        Prepare the conditions; called once before training or evaluation.

        Args:
            recordings, eval_recordings: Recordings of the training and of the evaluation, each [`DecodedRecordings`]
                or `None`.
            model (`PreTrainedModel`): Model that is given the conditions.
            accelerator (`Accelerator`): Accelerator of the run.
            folder (`Path`): Folder for what takes long to compute.
        """
        ...

    def of_crop(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        """Conditions of a training crop that begins where a frame of its recording does. Called in workers."""
        ...

    def of_evaluated(self, recording: int, num_samples: int) -> dict[str, torch.Tensor]:
        """Conditions of the beginning of a recording that is evaluated."""
        ...
