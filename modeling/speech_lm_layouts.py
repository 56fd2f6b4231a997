# SPDX-License-Identifier: Apache-2.0
"""
How a language model lays out speech: codes, latents and pieces of text on one time axis, and the way back.

Three layouts. The *flat* one writes one id a code, frame by frame, into the vocabulary of the language model:
`id = audio_offset + q * codebook_size + code` for codebook `q`. The *delay grid* puts all codebooks of a frame side by
side and shifts each codebook by a few columns. The *continuous* one has one latent vector a position.

In the *aligned* form of the flat layout each piece of the text (a phone or a word) stands before its own frames.

Labels stand at their own positions. [`next_targets`] is the only place of the package that shifts them.

Everything here is a pure function on tensors, without a model or a tokenizer. Import all layouts from this file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .speech_lm_grids import (
    delay_labels,
    delay_legal_mask,
    from_continuous,
    from_delay_grid,
    to_continuous,
    to_delay_grid,
)
from .speech_lm_ids import (
    IGNORED,
    SpeechIds,
    check_pieces,
    check_vocabulary,
    checked_codes,
    checked_delays,
    checked_ids,
)


__all__ = [
    "IGNORED",
    "LAYOUTS",
    "AlignedCodes",
    "FlatCodes",
    "SpeechIds",
    "align_pieces",
    "codes_to_flat",
    "delay_labels",
    "delay_legal_mask",
    "flat_legal_mask",
    "flat_to_codes",
    "from_continuous",
    "from_delay_grid",
    "next_targets",
    "piece_ends",
    "sequence_length",
    "split_pieces",
    "to_continuous",
    "to_delay_grid",
    "units_mask",
]

LAYOUTS = ("flat", "delay", "continuous")


@dataclass
class FlatCodes:
    """
    Codes read from flat ids.

    Args:
        audio_codes (`torch.LongTensor` of shape `(num_codebooks, num_frames)`): Whole frames, in order.
        num_dropped (`int`): Number of units that are in no whole frame.
    """

    audio_codes: torch.Tensor
    num_dropped: int


@dataclass
class AlignedCodes:
    """
    Codes and pieces read from aligned ids.

    Args:
        audio_codes (`torch.LongTensor` of shape `(num_codebooks, num_frames)`): Whole frames, in order.
        starts (`torch.LongTensor` of shape `(num_pieces,)`): First frame of each piece.
        ends (`torch.LongTensor` of shape `(num_pieces,)`): Frame behind the last one of each piece.
        num_dropped (`int`): Number of units that are in no whole frame.
        pieces (`list[list[int]]`): Ids of each piece, as they stand in the sequence.
    """

    audio_codes: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor
    num_dropped: int
    pieces: list[list[int]]


# --- Flat ---


def codes_to_flat(audio_codes: torch.Tensor, ids: SpeechIds) -> torch.Tensor:
    """
    Write codes as ids, frame by frame, and codebook by codebook within a frame.

    Args:
        audio_codes (`torch.Tensor` of shape `(num_codebooks, num_frames)`): Codes, of any integer type.
        ids (`SpeechIds`): Ids of the vocabulary.

    Returns:
        `torch.LongTensor` of shape `(num_frames * num_codebooks,)`: The ids, without start and end.

    Raises:
        TypeError: If the codes are no integers.
        ValueError: If their shape is wrong, or a code lies outside its codebook.
    """
    codes = checked_codes(audio_codes, ids)
    first = ids.audio_offset + ids.codebook_size * torch.arange(ids.num_codebooks, device=codes.device)
    return (codes + first[:, None]).T.reshape(-1)


def flat_to_codes(input_ids: torch.Tensor, ids: SpeechIds) -> FlatCodes:
    """
    Read whole frames from flat ids; the inverse of [`codes_to_flat`] for any ids a model may give.

    Ids that are no units (marks and pieces) are skipped. A unit that is not of the codebook whose turn it is, is
    dropped; a unit of codebook 0 begins a new frame, and what stood of the frame before is dropped. So is an
    incomplete last frame.

    Args:
        input_ids (`torch.Tensor` of shape `(num_ids,)`): Ids of one clip.
        ids (`SpeechIds`): Ids of the vocabulary.

    Raises:
        TypeError: If the ids are no integers.
        ValueError: If they have more than one dimension.
    """
    input_ids = checked_ids(input_ids)
    kept = _frame_positions(input_ids, ids)  # (F, Q)
    codes = (input_ids[kept] - ids.audio_offset) % ids.codebook_size
    return FlatCodes(codes.T.contiguous(), int(ids.is_unit(input_ids).sum()) - kept.numel())


def flat_legal_mask(num_units: torch.Tensor, vocab_size: int, ids: SpeechIds) -> torch.Tensor:
    """
    The ids that may follow within a clip: codes of the codebook whose turn it is, and the end behind a whole frame.

    Args:
        num_units (`torch.Tensor` of shape `(batch,)`): Units since the start of the clip.
        vocab_size (`int`): Rows of the vocabulary.
        ids (`SpeechIds`): Ids of the vocabulary.

    Returns:
        `torch.BoolTensor` of shape `(batch, vocab_size)`: True for ids that may follow.

    Raises:
        ValueError: If the vocabulary is too small for the units.
    """
    check_vocabulary(vocab_size, ids)
    turn = num_units % ids.num_codebooks
    legal = units_mask(ids.audio_offset + turn * ids.codebook_size, vocab_size, ids)
    legal[:, ids.audio_end] = turn == 0
    return legal


def units_mask(first: torch.Tensor, vocab_size: int, ids: SpeechIds) -> torch.Tensor:
    """
    The units of one codebook a row.

    Args:
        first (`torch.Tensor` of shape `(batch,)`): Id of code 0 of each row's codebook; `vocab_size` for no codebook.
        vocab_size (`int`): Rows of the vocabulary.
        ids (`SpeechIds`): Ids of the vocabulary.

    Returns:
        `torch.BoolTensor` of shape `(batch, vocab_size)`: True for the units of the row's codebook.
    """
    code = torch.arange(vocab_size, device=first.device) - first[:, None]
    if ids.codebook_sizes is None:
        return (code >= 0) & (code < ids.codebook_size)
    sizes = torch.tensor([*ids.codebook_sizes, 0], device=first.device)
    codebook = (first - ids.audio_offset).div(ids.codebook_size, rounding_mode="floor").clamp(max=ids.num_codebooks)
    return (code >= 0) & (code < sizes[codebook][:, None])


# --- Targets and lengths ---


def next_targets(labels: torch.Tensor) -> torch.Tensor:
    """
    What each position predicts: the label of the next one. No other line of the package shifts labels.

    Args:
        labels (`torch.Tensor` of shape `(..., num_positions)`): Labels at their own positions; -100 is no target.

    Returns:
        `torch.Tensor` of shape `(..., num_positions)`: Labels moved left by one, with -100 at the last position.
    """
    targets = torch.full_like(labels, IGNORED)
    targets[..., :-1] = labels[..., 1:]
    return targets


def sequence_length(
    num_frames: int,
    num_codebooks: int,
    layout: str = "flat",
    num_piece_ids: int = 0,
    delays: Sequence[int] | None = None,
) -> int:
    """
    Positions that a clip takes, its start and its end included.

    Args:
        num_frames (`int`): Frames of the clip.
        num_codebooks (`int`): Number of codebooks; the continuous layout has none and leaves this out of account.
        layout (`str`): `"flat"`, `"delay"` or `"continuous"`.
        num_piece_ids (`int`): Ids of all pieces that stand between the frames.
        delays (`Sequence[int]`, *optional*): Columns by which each codebook is late, in the delay layout. Defaults to
            0, 1, 2 and so on.

    Raises:
        ValueError: If a number is negative, the layout is unknown, or the delays do not fit the codebooks.
    """
    if num_frames < 0 or num_codebooks < 1 or num_piece_ids < 0:
        raise ValueError(
            "`num_frames` and `num_piece_ids` must not be negative and `num_codebooks` must be at least 1, but they"
            f" are {num_frames}, {num_piece_ids} and {num_codebooks}."
        )
    if layout == "flat":
        return 2 + num_frames * num_codebooks + num_piece_ids
    if layout == "delay":
        late = checked_delays(range(num_codebooks) if delays is None else delays, num_codebooks)
        return 2 + num_frames + max(late) + 1 + num_piece_ids
    if layout == "continuous":
        return 2 + num_frames + num_piece_ids
    raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, but is {layout!r}.")


# --- Aligned: each piece of the text before its frames ---


def piece_ends(end_seconds: Sequence[float] | torch.Tensor, frame_rate: float, num_frames: int) -> torch.Tensor:
    """
    The frames at which pieces end, nearest to their times, so that each piece has at least one frame.

    Args:
        end_seconds (`Sequence[float]` or `torch.Tensor` of shape `(num_pieces,)`): End of each piece in seconds.
        frame_rate (`float`): Frames a second, in Hz.
        num_frames (`int`): Frames of the clip; the last piece ends there, whatever its time.

    Returns:
        `torch.LongTensor` of shape `(num_pieces,)`: Frame behind the last one of each piece, strictly increasing.

    Raises:
        ValueError: If there are fewer frames than pieces, frames without a piece, or times that are not finite or
            go backwards.
    """
    times = torch.as_tensor(end_seconds, dtype=torch.float64)
    if times.dim() != 1:
        raise ValueError(f"`end_seconds` must have one dimension, but has shape {tuple(times.shape)}.")
    if not 0 < frame_rate < float("inf"):
        raise ValueError(f"`frame_rate` must be a number of Hz above 0, but is {frame_rate}.")
    num_pieces = len(times)
    if num_frames < num_pieces or (num_pieces == 0 and num_frames > 0):
        raise ValueError(
            f"{num_pieces} pieces need at least a frame each, and frames need a piece, but there are {num_frames}"
            " frames; merge or leave out pieces, or leave out the clip."
        )
    if num_pieces == 0:
        return torch.zeros(0, dtype=torch.long)
    if not bool(times.isfinite().all()) or bool((times[1:] < times[:-1]).any()):
        raise ValueError("`end_seconds` must be finite and must not go backwards; sort the pieces by their times.")

    # Less its place, a strictly increasing number must only not decrease; and it must leave a frame to each piece.
    place = torch.arange(num_pieces)
    most = num_frames - num_pieces + 1
    nearest = (times * frame_rate + 0.5).floor().clamp(0, num_frames).long()
    spare = (nearest - place).clamp(1, most).cummax(0).values
    spare[-1] = most
    return spare + place


def align_pieces(
    pieces: Sequence[Sequence[int]], ends: Sequence[int] | torch.Tensor, audio_codes: torch.Tensor, ids: SpeechIds
) -> torch.Tensor:
    """
    Write codes as flat ids, each piece's own ids before its frames.

    Args:
        pieces (`Sequence[Sequence[int]]`): Ids of each piece.
        ends (`Sequence[int]` or `torch.Tensor` of shape `(num_pieces,)`): Frame behind the last one of each piece, as
            [`piece_ends`] gives them.
        audio_codes (`torch.Tensor` of shape `(num_codebooks, num_frames)`): Codes, of any integer type.
        ids (`SpeechIds`): Ids of the vocabulary.

    Returns:
        `torch.LongTensor` of shape `(num_ids,)`: The ids, without start and end.

    Raises:
        TypeError: If the codes are no integers.
        ValueError: If a piece has no ids or ids of speech, the ends do not fit, or a code lies outside its codebook.
    """
    flat = codes_to_flat(audio_codes, ids)
    check_pieces(pieces, ids)
    stops = [int(end) for end in ends]
    num_frames = len(flat) // ids.num_codebooks
    starts = [0, *stops[:-1]] if stops else []
    if len(stops) != len(pieces) or (stops[-1] if stops else 0) != num_frames:
        raise ValueError(
            f"`ends` must hold an end for each of {len(pieces)} pieces, and the last must be {num_frames}, the number"
            f" of frames, but they are {stops}."
        )
    if any(start >= stop for start, stop in zip(starts, stops, strict=True)):
        raise ValueError(f"`ends` must leave at least a frame to each piece, but they are {stops}; see `piece_ends`.")
    parts = []
    for piece, start, stop in zip(pieces, starts, stops, strict=True):
        parts.append(torch.tensor(list(piece), dtype=torch.long, device=flat.device))
        parts.append(flat[start * ids.num_codebooks : stop * ids.num_codebooks])
    return torch.cat(parts) if parts else flat


def split_pieces(
    input_ids: torch.Tensor, ids: SpeechIds, pieces: Sequence[Sequence[int]] | None = None
) -> AlignedCodes:
    """
    Read codes and the frames of each piece; the inverse of [`align_pieces`] for any ids a model may give.

    Args:
        input_ids (`torch.Tensor` of shape `(num_ids,)`): Ids of one clip. Those of a prompt do not belong here.
        ids (`SpeechIds`): Ids of the vocabulary.
        pieces (`Sequence[Sequence[int]]`, *optional*): Ids of the pieces that were to be said. Ids that are neither
            units nor marks are cut into pieces of as many ids. Defaults to each phone id being a piece.

    Returns:
        `AlignedCodes`: The whole frames as in [`flat_to_codes`]. A piece begins behind the whole frames before its
        first id, and ends where the next begins. If the ids stop before all pieces are said, there are fewer.

    Raises:
        TypeError: If the ids are no integers.
        ValueError: If they have more than one dimension, a piece has no ids, or there are more ids than pieces have.
    """
    input_ids = checked_ids(input_ids)
    frames = _frame_positions(input_ids, ids)
    num_dropped = int(ids.is_unit(input_ids).sum()) - frames.numel()
    codes = ((input_ids[frames] - ids.audio_offset) % ids.codebook_size).T.contiguous()
    if pieces is None:
        positions = ids.is_piece(input_ids).nonzero()[:, 0].tolist()
        sizes = [1] * len(positions)
    else:
        check_pieces(pieces, ids)
        is_mark = (input_ids == ids.audio_start) | (input_ids == ids.audio_end)
        positions = (~ids.is_unit(input_ids) & ~is_mark).nonzero()[:, 0].tolist()
        sizes = _sizes_said([len(piece) for piece in pieces], len(positions))
    first_of_piece, said = [], []
    for size in sizes:
        first_of_piece.append(positions[0])
        said.append(input_ids[positions[:size]].tolist())
        positions = positions[size:]
    firsts = torch.tensor(first_of_piece, dtype=torch.long, device=input_ids.device)
    starts = torch.searchsorted(frames[:, -1].contiguous(), firsts)
    ends = torch.cat([starts[1:], starts.new_full((min(len(starts), 1),), len(frames))])
    return AlignedCodes(codes, starts, ends, num_dropped, said)


def _sizes_said(sizes: list[int], num_ids: int) -> list[int]:
    """The sizes of the pieces that `num_ids` ids begin; the last may be cut short."""
    if num_ids > sum(sizes):
        raise ValueError(
            f"`input_ids` hold {num_ids} ids that are neither units nor marks, but `pieces` have {sum(sizes)}; give"
            " the ids of one clip alone, and all its pieces."
        )
    said = []
    for size in sizes:
        if num_ids == 0:
            break
        said.append(min(size, num_ids))
        num_ids -= said[-1]
    return said


def _frame_positions(input_ids: torch.Tensor, ids: SpeechIds) -> torch.Tensor:
    """Where the units of whole frames stand: (num_frames, num_codebooks), long."""
    positions = ids.is_unit(input_ids).nonzero()[:, 0]
    codebooks = (input_ids[positions] - ids.audio_offset) // ids.codebook_size
    in_turn = torch.arange(len(codebooks), device=codebooks.device) % ids.num_codebooks
    if not torch.equal(codebooks, in_turn):
        positions = positions[_in_whole_frames(codebooks.tolist(), ids.num_codebooks)]
    num_frames = len(positions) // ids.num_codebooks
    return positions[: num_frames * ids.num_codebooks].reshape(num_frames, ids.num_codebooks)


def _in_whole_frames(codebooks: list[int], num_codebooks: int) -> list[int]:
    """The places of the units that make up whole frames, in order."""
    kept: list[int] = []
    frame: list[int] = []
    for place, codebook in enumerate(codebooks):
        if codebook == 0:
            frame = [place]
        elif codebook == len(frame):
            frame.append(place)
        if len(frame) == num_codebooks:
            kept += frame
            frame = []
    return kept
