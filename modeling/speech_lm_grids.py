# SPDX-License-Identifier: Apache-2.0
"""The layouts with a whole frame a position: the delay grid of codes, and continuous latents."""

from collections.abc import Sequence

import torch

from .input_checks import check_codebook_sizes
from .speech_lm_ids import (
    IGNORED,
    check_code_range,
    check_integers,
    checked_delays,
    unused_codes,
)


# --- Delay grid ---


def to_delay_grid(
    audio_codes: torch.Tensor,
    lengths: torch.Tensor,
    delays: Sequence[int],
    codebook_size: int,
    padding_side: str = "right",
) -> torch.Tensor:
    """
    Move each codebook to the right by its delay, so that a column predicts the next with no codebook before its turn.

    Column `j` holds the code of frame `j - delay`. Before the first frame stands BOS (`codebook_size`), and behind the
    last at least one EOS (`codebook_size + 1`). A shorter row is filled with EOS on the right or with BOS on the left.
    (MusicGen, section 2.2: https://huggingface.co/papers/2306.05284)

    Args:
        audio_codes (`torch.Tensor` of shape `(batch, num_codebooks, num_frames)`): Codes, of any integer type, padded
            on the right.
        lengths (`torch.Tensor` of shape `(batch,)`): Frames of each row.
        delays (`Sequence[int]`): Columns by which each codebook is late; at least one is 0.
        codebook_size (`int`): Codes of a codebook, K.
        padding_side (`str`): Side on which shorter rows of the grid are filled, `"right"` or `"left"`.

    Returns:
        `torch.LongTensor` of shape `(batch, num_codebooks, num_columns)`: The grid, which has
        `max(lengths) + max(delays) + 1` columns.

    Raises:
        TypeError: If the codes or the lengths are no integers.
        ValueError: If a shape, a length, a delay, the side or a code is impossible.
    """
    codes, lengths = _checked_batch(audio_codes, lengths, codebook_size)
    late = torch.tensor(checked_delays(delays, codes.shape[1]), device=codes.device)
    widths = lengths + late.max() + 1
    num_columns = int(widths.max())
    first = num_columns - widths if _is_left(padding_side) else torch.zeros_like(widths)
    frames = torch.arange(num_columns, device=codes.device) - first[:, None, None] - late[:, None]  # (B, Q, C)
    grid = torch.nn.functional.pad(codes, (0, 1)).gather(2, frames.clamp(0, codes.shape[2]))
    grid = grid.masked_fill(frames < 0, codebook_size)
    return grid.masked_fill(frames >= lengths[:, None, None], codebook_size + 1)


def from_delay_grid(
    grid: torch.Tensor, delays: Sequence[int], codebook_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Read whole frames from a delay grid, padded on either side, finished or not; the inverse of [`to_delay_grid`].

    A row ends before the first frame that lacks the code of a codebook.

    Args:
        grid (`torch.Tensor` of shape `(batch, num_codebooks, num_columns)`): Codes, BOS and EOS.
        delays (`Sequence[int]`): Columns by which each codebook is late; at least one is 0.
        codebook_size (`int`): Codes of a codebook, K.

    Returns:
        `tuple`: The codes of shape `(batch, num_codebooks, num_frames)`, 0 behind a row's own frames, and the frames
        of each row, `(batch,)`; both long.

    Raises:
        TypeError: If the grid does not hold integers.
        ValueError: If it does not have three dimensions, or a delay is impossible.
    """
    grid, late, first = _read_grid(grid, delays, codebook_size)
    num_columns = grid.shape[2]
    columns = first[:, None, None] + late[:, None] + torch.arange(num_columns, device=grid.device)  # (B, Q, C)
    ended = torch.nn.functional.pad(grid, (0, 1), value=codebook_size + 1)
    codes = ended.gather(2, columns.clamp(max=num_columns))
    is_code = (codes >= 0) & (codes < codebook_size)
    lengths = is_code.long().cumprod(2).sum(2).amin(1)
    longest = int(lengths.max()) if len(lengths) else 0
    is_real = torch.arange(longest, device=grid.device) < lengths[:, None]
    return codes[..., :longest] * is_real[:, None], lengths


def delay_labels(grid: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """
    What a model learns of a delay grid: the codes, and the first EOS of each codebook, so that it learns to end.

    Args:
        grid (`torch.Tensor` of shape `(batch, num_codebooks, num_columns)`): Grid of [`to_delay_grid`].
        codebook_size (`int`): Codes of a codebook, K.

    Returns:
        `torch.Tensor` of the same shape: The labels at their own positions, -100 for BOS and further EOS.
    """
    is_end = grid == codebook_size + 1
    is_further = is_end & (is_end.cumsum(-1) > 1)
    return grid.masked_fill((grid == codebook_size) | is_further, IGNORED)


def delay_legal_mask(
    grid: torch.Tensor, delays: Sequence[int], codebook_size: int, codebook_sizes: Sequence[int] | None = None
) -> torch.Tensor:
    """
    What may stand in the next column of a grid, so that it can be decoded whatever is drawn.

    Each codebook has BOS until its delay is over, and then codes. The first codebook without a delay may also end. The
    others end where it has ended. (A second codebook without a delay is drawn beside that end, and has a code too many
    there. [`from_delay_grid`] leaves it out.)

    Args:
        grid (`torch.Tensor` of shape `(batch, num_codebooks, num_columns)`): Columns so far; there may be none. On the
            left, rows may be filled with BOS.
        delays (`Sequence[int]`): Columns by which each codebook is late; at least one is 0.
        codebook_size (`int`): Codes of a codebook, K.
        codebook_sizes (`Sequence[int]`, *optional*): Codes that each codebook has, at most K. Defaults to K each.

    Returns:
        `torch.BoolTensor` of shape `(batch, num_codebooks, codebook_size + 2)`: True for what may follow: codes, BOS,
        EOS.

    Raises:
        TypeError: If the grid does not hold integers.
        ValueError: If it does not have three dimensions, or a delay or a size is impossible.
    """
    grid, late, first = _read_grid(grid, delays, codebook_size)
    leader = int(late.argmin())
    has_ended = (grid[:, leader] == codebook_size + 1).cumsum(1) > 0  # (B, C)
    frames_since_end = has_ended.sum(1)[:, None] - late  # (B, Q); 0 or more where a codebook is to end
    is_late = grid.shape[2] - first[:, None] < late
    is_over = has_ended.any(1)[:, None] & (frames_since_end >= 0) & ~is_late
    legal = torch.empty(*grid.shape[:2], codebook_size + 2, dtype=torch.bool, device=grid.device)
    legal[..., :codebook_size] = ~(is_late | is_over)[..., None]
    legal[..., codebook_size] = is_late
    legal[..., codebook_size + 1] = is_over
    legal[:, leader, codebook_size + 1] = True
    if codebook_sizes is not None:
        check_codebook_sizes(codebook_sizes, grid.shape[1], codebook_size)
        legal[..., :codebook_size] &= ~unused_codes(codebook_sizes, codebook_size).to(grid.device)
    return legal


def _read_grid(
    grid: torch.Tensor, delays: Sequence[int], codebook_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The grid, the delays `(num_codebooks,)`, and the column of frame 0 without a delay `(batch,)`; all long."""
    check_integers(grid, "grid")
    if grid.dim() != 3:
        raise ValueError(f"`grid` must have shape (batch, num_codebooks, num_columns), but has {tuple(grid.shape)}.")
    grid = grid.long()
    late = torch.tensor(checked_delays(delays, grid.shape[1]), device=grid.device)
    first = (grid[:, int(late.argmin())] == codebook_size).long().cumprod(1).sum(1)
    return grid, late, first


# --- Continuous ---


def to_continuous(
    latents: Sequence[torch.Tensor], padding_side: str = "right"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Put latents of clips on the positions of a language model, between a start and an end.

    Args:
        latents (`Sequence[torch.Tensor]`, each of shape `(num_frames, dim)`): Latents of each clip, of one
            floating-point type.
        padding_side (`str`): Side on which shorter clips are padded, `"right"` or `"left"`.

    Returns:
        `tuple`: The latents of shape `(batch, num_positions, dim)`, 0 where there is no frame; their mask
        `(batch, num_positions)`, long, 1 for frames; and the stop targets `(batch, num_positions)`, long, at their own
        positions: 0 for frames, 1 for the end, and -100 for the start and padding.

    Raises:
        TypeError: If the latents are not of one floating-point type.
        ValueError: If there is no clip, a shape is wrong, or the side is unknown.
    """
    if len(latents) == 0:
        raise ValueError("`latents` is empty; give the latents of at least one clip.")
    for row, clip in enumerate(latents):
        if not clip.is_floating_point() or clip.dtype != latents[0].dtype:
            raise TypeError(
                f"`latents` must be of one floating-point type, but row {row} is {clip.dtype} and row 0"
                f" {latents[0].dtype}."
            )
        if clip.dim() != 2 or clip.shape[1] != latents[0].shape[-1]:
            raise ValueError(
                f"`latents` must have shape (num_frames, {latents[0].shape[-1]}), but row {row} has"
                f" {tuple(clip.shape)}; give one clip a row, all of one codec."
            )
    is_left = _is_left(padding_side)
    num_positions = 2 + max(len(clip) for clip in latents)
    values = latents[0].new_zeros(len(latents), num_positions, latents[0].shape[1])
    mask = torch.zeros(len(latents), num_positions, dtype=torch.long, device=values.device)
    stops = torch.full_like(mask, IGNORED)
    for row, clip in enumerate(latents):
        first = num_positions - len(clip) - 1 if is_left else 1
        end = first + len(clip)
        values[row, first:end] = clip
        mask[row, first:end] = 1
        stops[row, first:end] = 0
        stops[row, end] = 1
    return values, mask, stops


def from_continuous(latents: torch.Tensor, audio_mask: torch.Tensor) -> list[torch.Tensor]:
    """
    Take the latents of clips from their positions; the inverse of [`to_continuous`].

    Args:
        latents (`torch.Tensor` of shape `(batch, num_positions, dim)`): Latents, padded on either side.
        audio_mask (`torch.Tensor` of shape `(batch, num_positions)`): Mask with 1 for frames.

    Returns:
        `list[torch.Tensor]`: Latents of each clip, `(num_frames, dim)`.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if latents.dim() != 3 or audio_mask.shape != latents.shape[:2]:
        raise ValueError(
            "`latents` must have shape (batch, num_positions, dim), and `audio_mask` the first two of these, but they"
            f" have {tuple(latents.shape)} and {tuple(audio_mask.shape)}."
        )
    return [clip[is_frame] for clip, is_frame in zip(latents, audio_mask.bool(), strict=True)]


# --- Checks and helpers ---


def _is_left(padding_side: str) -> bool:
    if padding_side not in ("left", "right"):
        raise ValueError(f'`padding_side` must be "left" or "right", but is {padding_side!r}.')
    return padding_side == "left"


def _checked_batch(
    audio_codes: torch.Tensor, lengths: torch.Tensor, codebook_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes, 0 behind a row's own frames, and the lengths; both long."""
    check_integers(audio_codes, "audio_codes")
    check_integers(lengths, "lengths")
    if audio_codes.dim() != 3 or 0 in audio_codes.shape[:2] or lengths.shape != audio_codes.shape[:1]:
        raise ValueError(
            "`audio_codes` must have shape (batch, num_codebooks, num_frames), not empty, and `lengths` (batch,), but"
            f" they have {tuple(audio_codes.shape)} and {tuple(lengths.shape)}."
        )
    num_frames = audio_codes.shape[2]
    if not 0 <= int(lengths.min()) <= int(lengths.max()) <= num_frames:
        raise ValueError(f"`lengths` must lie between 0 and {num_frames}, but are {lengths.tolist()}.")
    is_real = torch.arange(num_frames, device=audio_codes.device) < lengths[:, None]
    codes = audio_codes.long() * is_real[:, None]
    check_code_range(codes, codebook_size)
    return codes, lengths.long()
