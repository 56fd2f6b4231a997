# SPDX-License-Identifier: Apache-2.0
"""Latents of which some directions died get new ones from what their encoder knows besides."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from speech_tokenizers.training.codec.latent_health import LatentMoments


# Standard deviation after revival: of a live direction its own to the power of 1 - 0.7, relative to the largest, which
# becomes 1; of a new one 0.7 times the square root of that of the hidden layer. These values were measured to work.
# The floor keeps new directions live that the hidden layer knows little of.
EQUALISATION = 0.7
NEW_DEVIATION = 0.7
NEW_FLATTENING = 0.5
LEAST_NEW_VARIANCE = 0.01
# Below this share of the largest variance there is nothing but rounding to scale up.
ROUNDING_SHARE = 1e-8


def check_revivable(model: Any) -> None:
    """
    Raises:
        ValueError: If [`revive_latents`] cannot change this model's latents.
    """
    quantizer = model.quantizer
    if not isinstance(quantizer.project_in, nn.Identity):
        raise ValueError(
            "`latent_health.revival_steps` needs codebooks of the latents themselves; set"
            f" `model.overrides.codebook_dim` to `hidden_size` ({model.config.hidden_size}), or give no steps."
        )
    width = model.encoder.layers[-1].conv.in_channels
    if width < model.config.hidden_size:
        raise ValueError(
            f"`latent_health.revival_steps`: the encoder's last layer reads {width} channels, which cannot fill"
            f" {model.config.hidden_size} directions; raise its width, or give no steps."
        )
    parts = {"encoder": model.encoder.layers[-1], "decoder": model.decoder.layers[0]}
    parts |= {name: module for name, module in model.named_children() if name.endswith("_projection")}
    fixed = [
        name for name, part in parts.items() if not all(parameter.requires_grad for parameter in part.parameters())
    ]
    fixed += ["quantizer"] if quantizer.quantizers[0].frozen else []
    if fixed:
        raise ValueError(
            f"`latent_health.revival_steps` changes {fixed[0]}, which `optimizer.learning_rate_scales` freezes; give"
            " no steps, or let it learn."
        )


@torch.no_grad()
def hidden_and_latents(model: Any, input_values: torch.Tensor) -> torch.Tensor:
    """Input and output of the encoder's last layer, side by side: (batch, num_frames, width + dim)."""
    hidden = input_values
    for layer in model.encoder.layers[:-1]:
        hidden = layer(hidden)
    return torch.cat([hidden, model.encoder.layers[-1](hidden)], dim=1).transpose(1, 2)


@torch.no_grad()
def revive_latents(model: Any, moments: LatentMoments, threshold: float) -> tuple[int, list[nn.Parameter]]:
    """
    Express the latents anew, in place: live directions keep what they tell, on more equal scales, and the others get
    the principal directions of what the encoder's last hidden layer knows beyond the live ones.

    The decoder's first convolution computes from the new latents what it did from the old ones, but for what the dead
    directions carried: their mean goes into its bias (so that it is exact wherever it sees no zeros of padding), and
    their variation, below `threshold`, is lost. Its weights for the new directions are 0: it learns to use them. A
    model's projections to teachers change alike.

    Args:
        model ([`RVQCodecModel`]): Model to change; see [`check_revivable`]. Its codebooks code the old latents and
            have to be fitted anew.
        moments ([`LatentMoments`]): Moments of [`hidden_and_latents`] over some speech.
        threshold (`float`): Share of the largest variance above which a direction is live.

    Returns:
        Number of live directions, and the parameters that changed: none where all directions are live.
    """
    encoder, decoder = model.encoder.layers[-1], model.decoder.layers[0]
    width, dim = encoder.conv.in_channels, model.config.hidden_size
    covariance, mean = moments.covariance.cpu(), moments.mean.cpu()
    variances, directions = _principal(covariance[width:, width:])
    num_live = int((variances > threshold * variances[0]).sum())
    if num_live == dim:
        return num_live, []
    variances, directions = variances[:num_live], directions[:, :num_live]
    scale = (variances / variances[0]) ** (-EQUALISATION / 2) / variances[0].sqrt()
    to_live = scale.unsqueeze(1) * directions.T  # (num_live, dim)
    from_live = directions / scale  # (dim, num_live)

    # What linear regression on the live directions does not tell of the hidden layer.
    variance = scale.square() * variances
    regression = (to_live @ covariance[width:, :width]) / variance.unsqueeze(1)  # (num_live, width)
    rest = covariance[:width, :width] - (regression.T * variance) @ regression
    known, axes = _principal(rest)
    known, axes = known[: dim - num_live], axes[:, : dim - num_live]
    shares = (known / known[0].clamp(min=1e-300)).clamp(min=ROUNDING_SHARE)
    wanted = (NEW_DEVIATION**2 * shares**NEW_FLATTENING).clamp(min=LEAST_NEW_VARIANCE)
    to_new = axes.T * (wanted / (shares * known[0].clamp(min=1e-300))).sqrt().unsqueeze(1)  # (num_new, width)
    from_old = to_new @ regression.T  # (num_new, num_live)

    weight, bias = encoder.conv.weight.double().cpu(), encoder.conv.bias.double().cpu()
    live_weight, live_bias = torch.einsum("ld,dck->lck", to_live, weight), to_live @ bias
    new_weight = -torch.einsum("nl,lck->nck", from_old, live_weight)
    new_weight[:, :, encoder.pad_left] += to_new  # the kernel's position at the latent's own frame
    new_mean = to_new @ mean[:width] - from_old @ (to_live @ mean[width:])
    new_bias = -from_old @ live_bias - new_mean
    changed = assign_weights(encoder.conv, torch.cat([live_weight, new_weight]), torch.cat([live_bias, new_bias]))

    dead_mean = mean[width:] - directions @ (directions.T @ mean[width:])
    weight, bias = decoder.conv.weight.double().cpu(), decoder.conv.bias.double().cpu()
    reading = torch.zeros_like(weight)
    reading[:, :num_live] = torch.einsum("odk,dl->olk", weight, from_live)
    changed += assign_weights(decoder.conv, reading, bias + weight.sum(-1) @ dead_mean)
    for name, projection in model.named_children():
        if name.endswith("_projection"):
            stage = getattr(model.config, f"{name.removesuffix('_projection')}_stage")
            weight, bias = projection.weight.double().cpu(), projection.bias.double().cpu()
            reading = torch.zeros_like(weight)
            reading[:, :num_live] = weight @ from_live
            mean_share = _share_of_mean(stage, model.config.num_quantizers)
            changed += assign_weights(projection, reading, bias + mean_share * weight @ dead_mean)
    return num_live, changed


def _share_of_mean(stage: int | str, num_quantizers: int) -> float:
    # The first codebook has the mean of the latents; those after it code residuals without one.
    if isinstance(stage, int):
        return float(stage == 1)
    return 1 / num_quantizers if stage == "mean" else 1.0


def _principal(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (dim,) in descending order and eigenvectors as columns, whose largest element is positive."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()


def assign_weights(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> list[nn.Parameter]:
    """Give a layer, with weight normalization or without, this weight and bias; its parameters."""
    layer.bias.copy_(bias)
    if parametrize.is_parametrized(layer, "weight"):
        parts = layer.parametrizations.weight
        originals = [parts.original0, parts.original1]
        sizes, directions = parts[0].right_inverse(weight)
        parts.original0.copy_(sizes)
        # A row of zeros has no direction; it keeps its own.
        parts.original1.copy_(torch.where(sizes > 0, directions, parts.original1))
        return [*originals, layer.bias]
    layer.weight.copy_(weight)
    return [layer.weight, layer.bias]
