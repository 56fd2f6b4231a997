# SPDX-License-Identifier: Apache-2.0
"""A loss against latents whose dimensions carry the same information."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed.nn.functional import all_reduce

from speech_tokenizers.modeling.vector_quantization import several_processes
from speech_tokenizers.training.codec.latent_health import latents_of
from speech_tokenizers.training.codec.objectives import CodecObjective


def decorrelation_loss(latents: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Mean squared correlation of two different dimensions of latents, over a batch of all processes, in float32. With
    gradient accumulation this is a micro-batch of all processes. Its fewer frames correlate more by chance: the loss
    of a step is the mean over its micro-batches, and not that of the whole batch.

    The loss is the redundancy term of Barlow Twins (equation 1, arXiv 2103.03230) within one view, as VICReg takes it
    (equation 3, arXiv 2105.04906). It uses correlations rather than covariances, so that smaller latents do not lower
    it.

    Args:
        latents (`torch.Tensor` of shape `(batch, num_frames, dim)`): Latents with gradients; `dim` is at least 2.
        mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask, 1 for frames that count.

    Returns:
        Sum of the squared off-diagonal correlations, divided by dim * (dim - 1): 0 without correlation, 1 where all
        dimensions are the same. A dimension that does not vary correlates with none.
    """
    several = several_processes()
    with torch.autocast(latents.device.type, enabled=False):
        rows = latents.float().flatten(0, 1)
        weights = torch.ones_like(rows[:, :1]) if mask is None else mask.reshape(-1, 1).float()
        totals = torch.cat([(rows.detach() * weights).sum(0), weights.sum().view(1)])
        if several:
            distributed.all_reduce(totals)
        count = totals[-1].clamp(min=1)
        # A constant: the covariance about the mean does not change with the mean to first order, so that its gradient
        # is complete without that of the mean.
        deviations = (rows - totals[:-1] / count) * weights
        scatter = deviations.T @ deviations
        if several:
            scatter = all_reduce(scatter)
        covariance = scatter / count
        inverse = covariance.diagonal().clamp(min=1e-10).rsqrt()
        correlations = inverse.unsqueeze(1) * covariance * inverse
        dim = len(correlations)
        squares = correlations.square()
        return (squares.sum() - squares.diagonal().sum()) / (dim * (dim - 1))


class Decorrelation(CodecObjective):
    """The loss `decorrelation`, see [`decorrelation_loss`], of the latents of any codec, as a [`CodecObjective`]."""

    loss_names: tuple[str, ...] = ("decorrelation",)

    def prepare(self, recordings: Any, model: Any, accelerator: Accelerator, folder: Path) -> None:
        """See [`CodecObjective`]."""

    def targets(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]. Needs none."""
        return {}

    def losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]."""
        latents = latents_of(outputs)
        if latents is None:
            raise ValueError("The model has no latents to decorrelate; remove `loss_weights.decorrelation`.")
        return {"decorrelation": decorrelation_loss(latents, outputs.get("audio_codes_mask"))}
