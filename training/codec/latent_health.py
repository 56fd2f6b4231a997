# SPDX-License-Identifier: Apache-2.0
"""Number of directions that latents use, variance that each codebook leaves, and an alarm when latents collapse."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from speech_tokenizers.training.codec.latent_arguments import LatentArguments


# Variance of a dimension above which it is active (Burda et al., arXiv 1509.00519).
ACTIVE_VARIANCE = 0.01
# Variance of a direction, relative to the largest, above which it is live.
LIVE_SHARE = 1e-3


class LatentCollapseError(ValueError):
    """The latents tell too little apart; the message says what was measured."""


class LatentMoments(NamedTuple):
    """
    Mean and scatter of vectors, in float64. Those of two parts give those of the whole (Chan et al. 1979).

    Attributes:
        count: Number of vectors, a scalar.
        mean: Mean of shape (dim,).
        scatter: Scatter of shape (dim, dim), the sum of products of the deviations from the mean.
    """

    count: torch.Tensor
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(cls, latents: torch.Tensor, mask: torch.Tensor | None = None) -> "LatentMoments":
        """Moments of `(..., dim)`. Vectors count where the mask `(...)` is 1."""
        rows = latents.detach().double().flatten(0, -2)
        weights = torch.ones_like(rows[:, :1]) if mask is None else mask.reshape(-1, 1).double()
        count = weights.sum()
        mean = (rows * weights).sum(0) / count.clamp(min=1)
        deviations = (rows - mean) * weights
        return cls(count, mean, deviations.T @ deviations)

    def plus(self, other: "LatentMoments") -> "LatentMoments":
        """Moments of both parts together."""
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        distance = other.mean - self.mean
        scatter = self.scatter + other.scatter + self.count * share * torch.outer(distance, distance)
        return LatentMoments(count, self.mean + share * distance, scatter)

    @property
    def covariance(self) -> torch.Tensor:
        """
        Covariance (dim, dim). It is 0 where there is nothing but rounding, which would look like many directions.
        """
        covariance = self.scatter / self.count.clamp(min=1)
        variance = covariance.trace()
        power = (variance + self.mean.square().sum()) / len(self.mean)
        return torch.where(variance > 1e-12 * power.clamp(min=1e-6), covariance, covariance * 0)


def participation_ratio(covariance: torch.Tensor) -> torch.Tensor:
    """trace(C)^2 / trace(C^2), the number of directions if all had the same variance; 0 without any variance."""
    return covariance.trace().square() / covariance.square().sum().clamp(min=1e-300)


def effective_rank(covariance: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of the eigenvalues as shares of their sum (Roy and Vetterli 2007); 0 if all are 0."""
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp(min=0)
    total = eigenvalues.sum()
    shares = eigenvalues / total.clamp(min=1e-300)
    return torch.where(total > 0, torch.exp(-torch.xlogy(shares, shares).sum()), total)


def live_directions(covariance: torch.Tensor, threshold: float = LIVE_SHARE) -> torch.Tensor:
    """Number of eigenvalues above `threshold` times the largest; 0 if all are 0."""
    eigenvalues = torch.linalg.eigvalsh(covariance)
    return (eigenvalues > threshold * eigenvalues[-1].clamp(min=0)).sum()


@torch.no_grad()
def latent_health(latents: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """
    Measures of how many dimensions latents use.

    Args:
        latents (`torch.Tensor` of shape `(batch, num_frames, dim)`): Latents without noise and before normalization.
        mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask, 1 for frames that count.

    Returns:
        `dict`: `latent_rank`, see [`effective_rank`]; `active_dimensions`, the number of dimensions with a variance
        above `ACTIVE_VARIANCE`; and `latent_variance`, the mean variance of a dimension.
    """
    covariance = LatentMoments.of(latents, mask).covariance
    variances = covariance.diagonal()
    return {
        "latent_rank": effective_rank(covariance).float(),
        "active_dimensions": (variances > ACTIVE_VARIANCE).sum().float(),
        "latent_variance": variances.mean().float(),
    }


def latents_of(outputs: Any) -> torch.Tensor | None:
    """The latents `(batch, num_frames, dim)` in a model's output, before any normalization; `None` if it has none."""
    raw = outputs.get("raw_latents")
    return outputs.get("latents") if raw is None else raw


class LatentReport:
    """Measures of latents and their codebooks over many recordings. The reports of several processes add up."""

    def __init__(self):
        self.latents: LatentMoments | None = None
        self.coded: LatentMoments | None = None
        self.left = torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def add(self, latents: torch.Tensor, coded: torch.Tensor, stages: Sequence[torch.Tensor] = ()) -> None:
        """
        Add a recording.

        Args:
            latents (`torch.Tensor` of shape `(1, num_frames, dim)`): Latents before quantization.
            coded (`torch.Tensor` of shape `(1, num_frames, codebook_dim)`): Vectors that the first codebook codes: the
                latents, or their projection.
            stages (sequence of `torch.Tensor` of that shape): Contribution of each codebook to the quantized vectors.
        """
        residual, left = coded.double(), []
        for stage in stages:
            residual = residual - stage
            left.append(residual.square().sum())
        addition = LatentReport()
        addition.latents, addition.coded = (
            LatentMoments(*(part.cpu() for part in LatentMoments.of(values))) for values in (latents, coded)
        )
        if left:
            addition.left = torch.stack(left).cpu()
        self.merge(addition)

    def merge(self, other: "LatentReport") -> None:
        """Add what another report has seen."""
        if other.latents is None or other.coded is None:
            return
        if self.latents is None or self.coded is None:
            self.latents, self.coded, self.left = other.latents, other.coded, other.left
        else:
            self.latents, self.coded = self.latents.plus(other.latents), self.coded.plus(other.coded)
            self.left = self.left + other.left

    def values(self) -> dict[str, float]:
        """
        Returns:
            `dict`: `latent_participation_ratio` and `latent_live_directions`, see the functions; and
            `variance_left_<stage>`, the mean squared length of what each codebook leaves, relative to the variance of
            what the first one codes. Empty if nothing was added. NaN where latents are not finite.
        """
        if self.latents is None or self.coded is None:
            return {}
        covariance = self.latents.covariance
        # There are no eigenvalues of what is not finite.
        live = live_directions(covariance) if covariance.isfinite().all() else torch.tensor(torch.nan)
        found = {
            "latent_participation_ratio": float(participation_ratio(covariance)),
            "latent_live_directions": float(live),
        }
        shares = self.left / self.coded.scatter.trace().clamp(min=1e-300)
        return found | {f"variance_left_{stage}": float(share) for stage, share in enumerate(shares, start=1)}


# Words for a measure that is too low.
_SHORTFALLS = {
    "latent_rank": "their effective rank is {value:.2f} (at least {least:g} is wanted)",
    "active_dimensions": "{value:.1f} of {dim} dimensions are active (at least {least:g} are wanted)",
    "latent_variance": "the mean variance is {value:.2e} (at least {least:.2e} is wanted)",
    "latent_live_directions": "{value:.0f} of {dim} directions are live (at least {least:g} are wanted)",
}


def shortfalls(health: Mapping[str, float], least: Mapping[str, float], dim: int) -> str:
    """
    Judge latents.

    Args:
        health (mapping): Measures by name, from [`latent_health`] or [`LatentReport`].
        least (mapping): Least good value of each measure that counts.
        dim (`int`): Number of dimensions of the latents.

    Returns:
        `str`: Description of what is too low, in words; empty where nothing is. NaN is too low.
    """
    return ", ".join(
        _SHORTFALLS[name].format(value=health[name], least=limit, dim=dim)
        for name, limit in least.items()
        if not health[name] >= limit
    )


def collapse_warning(health: Mapping[str, float], min_live_share: float, dim: int) -> str:
    """
    Warning about latents that an evaluation finds collapsed; empty where they are not.

    It is a warning and no error: a codec whose codebooks code few directions goes on learning, and a revival that is
    still to come repairs it. Latents that drown in their noise do not recover; there [`CollapseGuard`] ends the run.

    Args:
        health (mapping): `latent_live_directions` as [`LatentReport`] measures it, unless the model has no latents.
        min_live_share (`float`): Least share of live directions. A share of 0 is always reached.
        dim (`int`): Number of dimensions of the latents.
    """
    if not min_live_share or "latent_live_directions" not in health:
        return ""
    found = shortfalls(health, {"latent_live_directions": min_live_share * dim}, dim)
    return found and (
        f"The latents have collapsed: {found}. The codebooks spend their bits on few directions, however evenly their"
        " entries are used. A step in `latent_health.revival_steps` fills the dead directions,"
        " `loss_weights.decorrelation` keeps directions apart, and `latent_health.quantizer_start_step` prevents this"
        " from the start; `latent_health.min_live_share=0` silences this warning."
    )


class CollapseGuard:
    """
    Callable that raises an error when the means of [`latent_health`] over some batches are too low.

    Args:
        args ([`LatentArguments`]): Limits of the measures.
        dim (`int`): Number of dimensions of the latents.
        accelerator (`Accelerator`, *optional*): Accelerator of the processes that are judged together. Defaults to
            this process alone.
        normal_variance (`float`, *optional*): Normal mean variance of a dimension, which the measured one is compared
            with. Without it the variance is not judged.
    """

    def __init__(
        self,
        args: LatentArguments,
        dim: int,
        accelerator: Accelerator | None = None,
        normal_variance: float | None = None,
    ):
        self.args, self.dim, self.accelerator = args, dim, accelerator
        self.least = {
            "latent_rank": min(args.min_rank, dim),
            "active_dimensions": args.min_active_share * dim,
            "latent_variance": 0.0 if normal_variance is None else args.min_variance_share * normal_variance,
        }
        self.num_seen = 0
        self._sums: torch.Tensor | None = None

    def __call__(self, health: dict[str, torch.Tensor]) -> None:
        """
        Judge another batch.

        Raises:
            LatentCollapseError: If the latents have collapsed.
        """
        self.num_seen += 1
        if self.num_seen <= self.args.grace_steps:
            return
        values = torch.stack([health[name] for name in self.least])
        self._sums = values if self._sums is None else self._sums + values
        if (self.num_seen - self.args.grace_steps) % self.args.window_steps:
            return
        means = self._sums / self.args.window_steps
        self._sums = None
        if self.accelerator is not None:
            means = self.accelerator.reduce(means, reduction="mean")
        found = shortfalls(dict(zip(self.least, means.tolist(), strict=True)), self.least, self.dim)
        if found:
            raise LatentCollapseError(
                f"The latents have collapsed: over the last {self.args.window_steps} batches {found}. Lower"
                " `loss_weights.kl` or the noise, or keep the reconstruction loss while a language model learns along."
            )
