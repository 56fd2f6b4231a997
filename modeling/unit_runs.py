# SPDX-License-Identifier: Apache-2.0
"""Runs of equal frames in a batch of codes: merged into one unit with a duration, and spread over frames again."""

import torch


def deduplicate_codes(
    audio_codes: torch.Tensor, audio_codes_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Merge neighbouring frames whose codes are equal in every codebook.

    Args:
        audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Codebook indices, long.
        audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for real frames; the
            others are dropped, on whichever side they are. Defaults to all real.

    Returns:
        `tuple`: The codes of shape `(batch, num_quantizers, num_units)`, their mask, and their durations in frames,
        both `(batch, num_units)` and long. All three are 0 behind a row's own units.
    """
    if audio_codes_mask is None:
        audio_codes_mask = torch.ones_like(audio_codes[:, 0])
    is_real = audio_codes_mask.bool()  # (B, F)
    is_start = is_real.clone()
    is_start[:, 1:] &= (audio_codes[..., 1:] != audio_codes[..., :-1]).any(dim=1) | ~is_real[:, :-1]
    num_units = is_start.sum(dim=1)  # (B,)
    longest = int(num_units.max()) if len(num_units) else 0

    # What starts no run, or is no frame, goes to a place behind the last unit that is cut off.
    unit_of_frame = (is_start.cumsum(dim=1) - 1).masked_fill(~is_real, longest)  # (B, F)
    unit_of_start = unit_of_frame.masked_fill(~is_start, longest)[:, None].expand_as(audio_codes)
    durations = unit_of_frame.new_zeros(len(audio_codes), longest + 1)
    durations.scatter_add_(1, unit_of_frame, torch.ones_like(unit_of_frame))
    codes = audio_codes.new_zeros(*audio_codes.shape[:2], longest + 1).scatter_(2, unit_of_start, audio_codes)
    mask = torch.arange(longest, device=audio_codes.device) < num_units[:, None]
    return codes[..., :longest], mask.long(), durations[:, :longest]


def expand_codes(audio_codes: torch.Tensor, durations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Repeat each unit for as many frames as it lasts; the inverse of [`deduplicate_codes`].

    Args:
        audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_units)`): Codebook indices, long.
        durations (`torch.Tensor` of shape `(batch, num_units)`): Frames that each unit lasts, long; 0 where there is
            no unit.

    Returns:
        `tuple`: The codes of shape `(batch, num_quantizers, num_frames)`, 0 behind a row's own frames, and their mask
        of shape `(batch, num_frames)`, long.

    Raises:
        ValueError: If the shapes do not fit, or a duration is negative.
    """
    if audio_codes.ndim != 3 or durations.shape != (audio_codes.shape[0], audio_codes.shape[2]):
        raise ValueError(
            "`durations` must have shape (batch, num_units) for `audio_codes` of shape (batch, num_quantizers, "
            f"num_units), but got {tuple(durations.shape)} and {tuple(audio_codes.shape)}."
        )
    if (durations < 0).any():
        raise ValueError(f"`durations` must not be negative, but got {int(durations.min())}.")
    ends = durations.cumsum(dim=1)  # (B, U)
    num_frames = durations.sum(dim=1)  # (B,)
    longest = int(num_frames.max()) if len(num_frames) else 0
    frames = torch.arange(longest, device=audio_codes.device).expand(len(audio_codes), longest)
    mask = frames < num_frames[:, None]
    unit_of_frame = torch.searchsorted(ends, frames.contiguous(), right=True).clamp(max=ends.shape[1] - 1)
    codes = audio_codes.gather(2, unit_of_frame[:, None].expand(-1, audio_codes.shape[1], -1))
    return codes * mask[:, None], mask.long()
