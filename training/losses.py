# SPDX-License-Identifier: Apache-2.0
"""Named losses of codec training: functions of tensors, without weights."""

from typing import Any

import torch
import torch.nn.functional as F

from speech_tokenizers.modeling.spectral_losses import DEFAULT_MEL_SCALES, SPEECHTOKENIZER_MEL_SCALES, MelScale
from speech_tokenizers.training.arguments import check_names
from speech_tokenizers.training.discriminators import DiscriminatorOutput


MEL_SCALES = {"default": DEFAULT_MEL_SCALES, "speechtokenizer": SPEECHTOKENIZER_MEL_SCALES}


def waveform_loss(decoded: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    r"""Mean absolute difference of two waveforms, in float32; the longer is cut to the shorter."""
    num_samples = min(decoded.shape[-1], recorded.shape[-1])
    return F.l1_loss(decoded[..., :num_samples].float(), recorded[..., :num_samples].float())


def discriminator_loss(
    recorded: list[DiscriminatorOutput], decoded: list[DiscriminatorOutput], objective: str = "least_squares"
) -> torch.Tensor:
    r"""
    What the discriminators minimise, summed over them.

    Args:
        recorded, decoded (`list` of [`DiscriminatorOutput`]): Their opinions of recorded and of decoded speech.
        objective (`str`): `"least_squares"`: (1 - D(x))^2 + D(x')^2 (LSGAN, arXiv 1611.04076);
            `"hinge"`: max(0, 1 - D(x)) + max(0, 1 + D(x')). Means over positions.
    """
    terms = []
    for real, fake in zip(recorded, decoded, strict=True):
        real_logits, fake_logits = real.logits.float(), fake.logits.float()
        if objective == "hinge":
            terms.append(F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())
        else:
            terms.append((1 - real_logits).square().mean() + fake_logits.square().mean())
    return torch.stack(terms).sum()


def adversarial_loss(decoded: list[DiscriminatorOutput], objective: str = "least_squares") -> torch.Tensor:
    r"""
    What the codec minimises to pass for a recording, summed over discriminators: (1 - D(x'))^2, or -D(x') for hinge.
    """
    if objective == "hinge":
        return torch.stack([-fake.logits.float().mean() for fake in decoded]).sum()
    return torch.stack([(1 - fake.logits.float()).square().mean() for fake in decoded]).sum()


def feature_matching_loss(
    recorded: list[DiscriminatorOutput], decoded: list[DiscriminatorOutput], relative: bool = False
) -> torch.Tensor:
    r"""
    Mean absolute difference of the discriminators' features of recorded and decoded speech.

    Args:
        recorded, decoded (`list` of [`DiscriminatorOutput`]): No gradient flows into the former.
        relative (`bool`, *optional*, defaults to `False`):
            `False` sums over layers and discriminators (HiFi-GAN, whose code also doubles it; put that into the
            weight). `True` divides each difference by the mean size of the recording's feature and takes the mean of
            all (EnCodec, equation 2).
    """
    terms = []
    for real, fake in zip(recorded, decoded, strict=True):
        for real_feature, fake_feature in zip(real.features, fake.features, strict=True):
            real_feature = real_feature.detach().float()
            difference = F.l1_loss(fake_feature.float(), real_feature)
            terms.append(difference / real_feature.abs().mean().clamp_min(1e-6) if relative else difference)
    return torch.stack(terms).mean() if relative else torch.stack(terms).sum()


def parse_mel_scales(scales: Any) -> tuple[MelScale, ...]:
    """The mel scales that a recipe names or lists."""
    if isinstance(scales, str):
        if scales not in MEL_SCALES:
            raise ValueError(
                f"`mel_scales` must be one of {sorted(MEL_SCALES)} or a list of scales, but got {scales!r}."
            )
        return MEL_SCALES[scales]
    for scale in scales:
        check_names(scale, MelScale.__dataclass_fields__, "The field of `mel_scales`")
    return tuple(MelScale(**scale) for scale in scales)
