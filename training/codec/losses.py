# SPDX-License-Identifier: Apache-2.0
"""Named losses of codec training: functions of tensors, without weights."""

from typing import Any

import torch
import torch.nn.functional as F

from speech_tokenizers.modeling.spectral_losses import DEFAULT_MEL_SCALES, SPEECHTOKENIZER_MEL_SCALES, MelScale
from speech_tokenizers.training.codec.discriminators import DiscriminatorOutput
from speech_tokenizers.training.common.recipe_files import build_section, check_names


MEL_SCALES = {"default": DEFAULT_MEL_SCALES, "speechtokenizer": SPEECHTOKENIZER_MEL_SCALES}


def waveform_loss(decoded: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of two waveforms, in float32; the longer is cut to the shorter."""
    num_samples = min(decoded.shape[-1], recorded.shape[-1])
    return F.l1_loss(decoded[..., :num_samples].float(), recorded[..., :num_samples].float())


def discriminator_loss(
    recorded: list[DiscriminatorOutput], decoded: list[DiscriminatorOutput], objective: str = "least_squares"
) -> torch.Tensor:
    """
    Loss that the discriminators minimise, summed over them.

    Args:
        recorded, decoded (`list` of [`DiscriminatorOutput`]): Outputs of the discriminators for recorded and for
            decoded speech.
        objective (`str`): Objective of the discriminators, as a mean over positions. `"least_squares"` is
            (1 - D(x))^2 + D(x')^2 (LSGAN, arXiv 1611.04076). `"hinge"` is max(0, 1 - D(x)) + max(0, 1 + D(x')).
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
    """
    Loss that the codec minimises to pass for a recording, summed over discriminators: (1 - D(x'))^2, or -D(x') for
    hinge.
    """
    if objective == "hinge":
        return torch.stack([-fake.logits.float().mean() for fake in decoded]).sum()
    return torch.stack([(1 - fake.logits.float()).square().mean() for fake in decoded]).sum()


def feature_matching_loss(
    recorded: list[DiscriminatorOutput], decoded: list[DiscriminatorOutput], relative: bool = False
) -> torch.Tensor:
    """
    Mean absolute difference of the discriminators' features of recorded and decoded speech.

    Args:
        recorded, decoded (`list` of [`DiscriminatorOutput`]): Outputs of the discriminators. No gradient flows into
            those of the recordings.
        relative (`bool`, *optional*, defaults to `False`): Whether the differences are relative. `False` sums over
            layers and discriminators (HiFi-GAN, whose code also doubles it; put that into the weight). `True` divides
            each difference by the mean size of the recording's feature and takes the mean of all (EnCodec,
            equation 2).
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
    if not isinstance(scales, list | tuple) or not scales:
        raise ValueError(f"`mel_scales` must be one of {sorted(MEL_SCALES)} or a list of scales, but got {scales!r}.")
    for scale in scales:
        if isinstance(scale, dict):
            check_names(scale, MelScale.__dataclass_fields__, "The field of `mel_scales`")
    return tuple(build_section(MelScale, scale, f"mel_scales[{i}].") for i, scale in enumerate(scales))


def distillation_loss(
    features: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None = None, axis: str = "dimension"
) -> torch.Tensor:
    """
    Distance between a codec's features and a teacher's. The longer of the two is cut to the shorter.

    `"dimension"`: the mean over feature dimensions d of -log sigmoid(cos(Q'[:, d], S[:, d])), the cosine taken over
    time (DM-Codec's L_L and L_S, SpeechTokenizer's D-axis loss); at least log(1 + 1/e) = 0.3133. `"time"`: the mean
    absolute difference, plus the mean over frames of -log sigmoid of the cosine over dimensions.

    Args:
        features (`torch.Tensor` of shape `(batch, num_frames, dim)`): Features of the codec, with gradients.
        targets (`torch.Tensor` of shape `(batch, num_frames, dim)`): Features of the teacher.
        mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask, 1 for frames that count. An item
            without such frames adds nothing to the mean over the batch. The size of the batch stays the divisor, so
            that the mean over processes and accumulated batches is that over all.
        axis (`str`, *optional*, defaults to `"dimension"`): Axis of the cosine; see above.

    Raises:
        ValueError: If a shape is wrong. Nothing is broadcast.
    """
    if features.dim() != 3 or targets.dim() != 3 or features.shape[::2] != targets.shape[::2]:
        raise ValueError(
            "`features` and `targets` must both be (batch, num_frames, dim) with equal batch and dim, but are "
            f"{tuple(features.shape)} and {tuple(targets.shape)}."
        )
    num_frames = min(features.shape[1], targets.shape[1])
    if mask is None:
        mask = torch.ones(features.shape[:2], device=features.device)
    if mask.dim() != 2 or mask.shape[0] != features.shape[0] or mask.shape[1] < num_frames:
        raise ValueError(f"`mask` must be (batch, num_frames), but is {tuple(mask.shape)}.")
    features, targets = features[:, :num_frames].float(), targets[:, :num_frames].float()
    mask = mask[:, :num_frames].float()
    if axis == "dimension":
        weight = mask.unsqueeze(-1)
        distances = -F.logsigmoid(F.cosine_similarity(features * weight, targets * weight, dim=1))  # (B, D)
        return (distances.mean(dim=-1) * mask.any(dim=1)).mean()
    difference = (features - targets).abs().mean(dim=-1)  # (B, F)
    distances = -F.logsigmoid(F.cosine_similarity(features, targets, dim=-1))
    return (((difference + distances) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
