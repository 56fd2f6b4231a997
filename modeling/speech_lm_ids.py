# SPDX-License-Identifier: Apache-2.0
"""The ids that speech has in the vocabulary of a language model, and what the layouts demand of ids and codes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .input_checks import check_codebook_sizes


# Labels of this value are no targets; the value that `torch.nn.functional.cross_entropy` leaves out.
IGNORED = -100


@dataclass(frozen=True)
class SpeechIds:
    """
    The ids that speech has in a vocabulary. Units (the codes) have no names; their ids follow from arithmetic.

    Args:
        audio_start (`int`): Id that stands before a clip.
        audio_end (`int`): Id that stands behind a clip.
        audio_offset (`int`): Id of code 0 of codebook 0.
        num_codebooks (`int`): Number of codebooks, Q.
        codebook_size (`int`): Codes of a codebook, K.
        piece_offset (`int`): Id of the first phone.
        num_pieces (`int`): Number of phones; their ids are contiguous. 0 if pieces have no ids of their own.
        codebook_sizes (`tuple` of `int`, *optional*): Codes that each codebook has, at most K; the ids behind them are
            never written. Defaults to K each.

    Raises:
        ValueError: If a number is too small or too large, or two kinds of ids overlap.
    """

    audio_start: int
    audio_end: int
    audio_offset: int
    num_codebooks: int
    codebook_size: int
    piece_offset: int = 0
    num_pieces: int = 0
    codebook_sizes: tuple[int, ...] | None = None

    def __post_init__(self):
        check_codebook_sizes(self.codebook_sizes, self.num_codebooks, self.codebook_size)
        least = {"num_codebooks": 1, "codebook_size": 1}
        for name in self.__dataclass_fields__:
            if name != "codebook_sizes" and getattr(self, name) < least.get(name, 0):
                raise ValueError(f"`{name}` must be at least {least.get(name, 0)}, but is {getattr(self, name)}.")
        kinds = {
            "`audio_start`": range(self.audio_start, self.audio_start + 1),
            "`audio_end`": range(self.audio_end, self.audio_end + 1),
            "the pieces": range(self.piece_offset, self.piece_offset + self.num_pieces),
            "the units": range(self.audio_offset, self.audio_stop),
        }
        names = list(kinds)
        for place, name in enumerate(names):
            for other in names[place + 1 :]:
                first, second = kinds[name], kinds[other]
                if first and second and first[0] <= second[-1] and second[0] <= first[-1]:
                    raise ValueError(
                        f"The ids {first[0]} to {first[-1]} of {name} overlap the ids {second[0]} to {second[-1]} of"
                        f" {other}; give each its own."
                    )

    @property
    def audio_stop(self) -> int:
        """The id behind the last unit; a vocabulary needs at least so many rows."""
        return self.audio_offset + self.num_codebooks * self.codebook_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes that each codebook has."""
        return self.codebook_sizes or (self.codebook_size,) * self.num_codebooks

    def is_unit(self, ids: torch.Tensor) -> torch.Tensor:
        """Which ids are units, of the shape of `ids`, bool."""
        return (ids >= self.audio_offset) & (ids < self.audio_stop)

    def is_piece(self, ids: torch.Tensor) -> torch.Tensor:
        """Which ids are phones, of the shape of `ids`, bool."""
        return (ids >= self.piece_offset) & (ids < self.piece_offset + self.num_pieces)


def check_vocabulary(vocab_size: int, ids: SpeechIds) -> None:
    """
    Raises:
        ValueError: If the vocabulary lacks rows for the units or the marks.
    """
    needed = max(ids.audio_stop, ids.audio_start + 1, ids.audio_end + 1, ids.piece_offset + ids.num_pieces)
    if vocab_size < needed:
        raise ValueError(
            f"The vocabulary has {vocab_size} rows, but speech needs {needed}; resize the language model's embeddings"
            " to at least as many."
        )


def check_pieces(pieces: Sequence[Sequence[int]], ids: SpeechIds) -> None:
    """
    Raises:
        ValueError: If a piece has no ids, or an id that is negative, a unit or a mark.
    """
    for place, piece in enumerate(pieces):
        if len(piece) == 0:
            raise ValueError(f"Piece {place} has no ids; leave it out, or give it at least one.")
        for number in piece:
            if number < 0 or number in (ids.audio_start, ids.audio_end) or ids.audio_offset <= number < ids.audio_stop:
                raise ValueError(
                    f"Piece {place} holds the id {number}, but a piece needs ids of text: not negative, no unit"
                    f" ({ids.audio_offset} to {ids.audio_stop - 1}), and neither start {ids.audio_start} nor end"
                    f" {ids.audio_end} of audio."
                )


def checked_codes(audio_codes: torch.Tensor, ids: SpeechIds) -> torch.Tensor:
    """
    Returns:
        `torch.LongTensor` of shape `(num_codebooks, num_frames)`: The codes of one clip.

    Raises:
        TypeError: If they are no integers.
        ValueError: If their shape is wrong, or a code lies outside its codebook.
    """
    check_integers(audio_codes, "audio_codes")
    if audio_codes.dim() != 2 or audio_codes.shape[0] != ids.num_codebooks:
        raise ValueError(
            f"`audio_codes` must have shape ({ids.num_codebooks}, num_frames), but has {tuple(audio_codes.shape)};"
            " give one clip, and the codebooks that the language model has."
        )
    codes = audio_codes.long()
    check_code_range(codes, ids.codebook_size)
    for codebook, (row, size) in enumerate(zip(codes, ids.sizes, strict=True)):
        if len(row) and int(row.max()) >= size:
            raise ValueError(
                f"`audio_codes` hold {int(row.max())} in codebook {codebook}, which has {size} codes; they are of"
                " another codec."
            )
    return codes


def checked_ids(input_ids: torch.Tensor) -> torch.Tensor:
    """
    Returns:
        `torch.LongTensor` of shape `(num_ids,)`: The ids of one row.

    Raises:
        TypeError: If they are no integers.
        ValueError: If they have more than one dimension.
    """
    check_integers(input_ids, "input_ids")
    if input_ids.dim() != 1:
        raise ValueError(f"`input_ids` must have one dimension, but has shape {tuple(input_ids.shape)}; give one row.")
    return input_ids.long()


def check_code_range(codes: torch.Tensor, codebook_size: int) -> None:
    """
    Raises:
        ValueError: If a code lies outside its codebook.
    """
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise ValueError(
            f"`audio_codes` must lie between 0 and {codebook_size - 1}, but reach from {int(codes.min())} to"
            f" {int(codes.max())}; they are of another codec."
        )


def unused_codes(codebook_sizes: Sequence[int], codebook_size: int) -> torch.Tensor:
    """
    Which codes no clip has, where codebooks are not equally large, `(num_codebooks, codebook_size)`, bool.

    Args:
        codebook_sizes (sequence of `int`): Codes of each codebook.
        codebook_size (`int`): Codes that there is room for, K.
    """
    return torch.arange(codebook_size) >= torch.tensor(list(codebook_sizes))[:, None]


def checked_delays(delays: Sequence[int], num_codebooks: int) -> list[int]:
    """
    Returns:
        `list[int]`: The delays.

    Raises:
        ValueError: If there is not one a codebook, one is negative, or none is 0.
    """
    late = [int(delay) for delay in delays]
    if len(late) != num_codebooks or min(late) != 0:
        raise ValueError(
            f"`delays` must hold a number for each of {num_codebooks} codebooks, none negative and at least one 0, but"
            f" are {late}."
        )
    return late


def check_integers(values: torch.Tensor, name: str) -> None:
    """
    Raises:
        TypeError: If the numbers are no integers.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"`{name}` must be integers, but is {values.dtype}.")
