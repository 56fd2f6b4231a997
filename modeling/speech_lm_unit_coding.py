# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""How a speech language model reads and writes units: frame by frame, or as runs of equal frames with durations."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from .speech_lm_ids import SpeechIds, check_code_range, check_integers
from .unit_runs import deduplicate_codes, expand_codes


UNIT_CODINGS = ("frames", "runs", "bpe")
# Of runs of the released units at 50 Hz, fewer than 0.1 % are longer.
DEFAULT_MAX_DURATION = 32
# Units are spelt as characters of Unicode's private-use plane 15 where they are merged.
_FIRST_CHARACTER, _MOST_UNITS = 0xF0000, 65534


class UnitCoding:
    """
    Turn the codes of a clip into what stands in the sequence of a language model, and back.

    `"frames"` leaves codes as they are. `"runs"` merges neighbouring frames of equal units into runs: codebook 0 of a
    run is its unit, codebook 1 its duration. `"bpe"` merges frequent sequences of runs further into tokens, as
    [`UnitBPE`] has learnt them; codebook 1 is the duration of the token, the sum of those of its units.

    A duration of `d` frames is the code `d - 1`. A run of more than `max_duration` frames becomes several runs of one
    unit, and a token of more becomes its single units, so that no frame is lost.

    Decoding inverts `"runs"` exactly. Of `"bpe"` the order of the units, and the frames of each token, are exact. The
    units of a token share its frames as evenly as they can, the earlier ones get what is left over, and each has at
    least one frame. So boundaries within a token are approximate.

    Runs are decoded one by one: the frames of the first runs of a clip do not depend on those that follow.

    Args:
        kind (`str`, *optional*, defaults to `"frames"`): `"frames"`, `"runs"` or `"bpe"`.
        num_units (`int`, *optional*, defaults to 0): Units of the codec; 0 with `"frames"`, which takes any codes.
        max_duration (`int`, *optional*, defaults to 0): Most frames of a run; 0 with `"frames"`.
        merges (sequence of `str`, *optional*): With `"bpe"` the merges in their order, as [`UnitBPE`] gives them: two
            numbers of tokens with a space between. Tokens below `num_units` are units; each merge makes the next one,
            unless an earlier one has made the same sequence of units.

    Raises:
        ValueError: If the kind is unknown, a number does not belong to it, or the merges are not in order.
    """

    def __init__(self, kind: str = "frames", num_units: int = 0, max_duration: int = 0, merges: Sequence[str] = ()):
        if kind not in UNIT_CODINGS:
            raise ValueError(f"`unit_coding` must be one of {', '.join(UNIT_CODINGS)}, but is {kind!r}.")
        if kind == "frames":
            if num_units or max_duration or merges:
                raise ValueError(
                    "`num_units`, `max_duration` and `unit_merges` belong to runs of units; leave them out with"
                    " `unit_coding='frames'`."
                )
        elif not 1 <= num_units <= _MOST_UNITS or max_duration < 1:
            raise ValueError(
                f"`unit_coding={kind!r}` needs `num_units` between 1 and {_MOST_UNITS} and a `max_duration` of at"
                f" least 1 frame, but they are {num_units} and {max_duration}."
            )
        if (kind == "bpe") != bool(merges):
            raise ValueError(
                f"`unit_merges` must hold the merges of a `UnitBPE` with `unit_coding='bpe'`, and be empty with"
                f" others, but with {kind!r} there are {len(merges)}."
            )
        self.kind, self.num_units, self.max_duration = kind, num_units, max_duration
        self.tokens = [(unit,) for unit in range(num_units)]
        self._tokenizer = self._with_merges(merges) if merges else None
        self._sizes = torch.tensor([len(token) for token in self.tokens])

    def _with_merges(self, merges: Sequence[str]) -> Tokenizer:
        # The units of each token go to `tokens`.
        numbers = {token: number for number, token in enumerate(self.tokens)}
        pairs = []
        for place, merge in enumerate(merges):
            parts = str(merge).split(" ")
            if len(parts) != 2 or not all(part.isdecimal() and int(part) < len(self.tokens) for part in parts):
                raise ValueError(
                    f"Merge {place} of `unit_merges` must be two numbers of tokens that are there before it, with a"
                    f" space between, but is {merge!r}; take those of a `UnitBPE`."
                )
            left, right = (self.tokens[int(part)] for part in parts)
            pairs.append((_spelling(left), _spelling(right)))
            if left + right not in numbers:
                numbers[left + right] = len(self.tokens)
                self.tokens.append(left + right)
        longest = max(map(len, self.tokens))
        if longest > self.max_duration:
            raise ValueError(
                f"`max_duration` is {self.max_duration}, but the longest token of `unit_merges` has {longest} units,"
                " each with a frame; raise it, or learn fewer merges."
            )
        return Tokenizer(BPE({_spelling(token): number for token, number in numbers.items()}, pairs))

    # --- Sizes ---

    @property
    def sizes(self) -> list[int]:
        """Codes that are used of each codebook of a run: tokens, and durations. Frames have none of their own."""
        return [] if self.kind == "frames" else [len(self.tokens), self.max_duration]

    def model_sizes(self, num_codebooks: int, codebook_size: int) -> tuple[int, int]:
        """
        Codebooks and their size that the language model has, for those of the codec.

        Raises:
            ValueError: If there are runs, and the codec's are not one codebook of `num_units`.
        """
        if self.kind == "frames":
            return num_codebooks, codebook_size
        if (num_codebooks, codebook_size) != (1, self.num_units):
            raise ValueError(
                f"`unit_coding={self.kind!r}` needs one codebook of {self.num_units} units, but there are"
                f" {num_codebooks} of {codebook_size}; choose the first by `num_codebooks=1`."
            )
        return 2, max(self.sizes)

    def codec_sizes(self, num_codebooks: int, codebook_size: int) -> tuple[int, int]:
        """
        Codebooks and their size that the codec has, for those of the language model; the inverse of `model_sizes`.

        Raises:
            ValueError: If there are runs, and the language model has other codebooks than these need.
        """
        if self.kind == "frames":
            return num_codebooks, codebook_size
        if (num_codebooks, codebook_size) != (2, max(self.sizes)):
            raise ValueError(
                f"`unit_coding={self.kind!r}` needs 2 codebooks of {max(self.sizes)}, for {len(self.tokens)} tokens"
                f" and {self.max_duration} durations, but there are {num_codebooks} of {codebook_size}."
            )
        return 1, self.num_units

    def is_unused(self, num_codebooks: int, codebook_size: int) -> torch.Tensor:
        """
        Which codes no clip has, since the codebooks of runs are not equally large: `(num_codebooks, codebook_size)`.
        """
        sizes = self.sizes[:num_codebooks] or [codebook_size] * num_codebooks
        return torch.arange(codebook_size) >= torch.tensor(sizes)[:, None]

    def unused_ids(self, ids: SpeechIds) -> list[int]:
        """The ids of the codes that no clip has."""
        is_unused = self.is_unused(ids.num_codebooks, ids.codebook_size)
        return (ids.audio_offset + is_unused.flatten().nonzero()[:, 0]).tolist()

    def token_vectors(self, vectors: torch.Tensor) -> list[torch.Tensor]:
        """
        Vectors of the codes that sound: those of the codec, and for each token the mean of those of its units.

        Args:
            vectors (`torch.Tensor` of shape `(num_codebooks, codebook_size, dim)`): Vectors of the codec.

        Returns:
            `list` of `torch.Tensor` of shape `(num_codes, dim)`, one a codebook. Durations have none.
        """
        if self.kind == "frames":
            return list(vectors)
        units = [unit for token in self.tokens for unit in token]
        of_token = torch.repeat_interleave(torch.arange(len(self.tokens)), self._sizes)
        sums = vectors.new_zeros(len(self.tokens), vectors.shape[2]).index_add_(0, of_token, vectors[0, units])
        return [sums / self._sizes[:, None]]

    # --- Clips ---

    def encode(
        self, codes: torch.Tensor, ends: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Codes of a clip as runs. No run crosses the end of a piece, and each piece has at least one.

        Args:
            codes (`torch.Tensor` of shape `(1, num_frames)`): Units, one a frame, of any integer type; with
                `"frames"` any number of codebooks.
            ends (`torch.Tensor` of shape `(num_pieces,)`, *optional*): Frame behind the last one of each piece, as
                [`piece_ends`] gives them.

        Returns:
            `tuple`: The runs, long, of shape `(2, num_runs)`: unit or token, and duration less one. And `ends` in
            runs, or `None`.

        Raises:
            TypeError: If the codes are no integers.
            ValueError: If their shape is wrong, a unit does not exist, or the ends do not fit.
        """
        if self.kind == "frames":
            return codes, ends
        check_integers(codes, "codes")
        if codes.dim() != 2 or len(codes) != 1:
            raise ValueError(f"`codes` must have shape (1, num_frames) to be runs, but has {tuple(codes.shape)}.")
        check_code_range(codes, self.num_units)
        frames, num_frames = codes.long(), codes.shape[1]
        stops = torch.tensor([num_frames]) if ends is None else torch.as_tensor(ends).long()
        if ends is not None and (
            stops.tolist()[-1:] != [num_frames] or bool((stops.diff(prepend=stops[:1] * 0) < 1).any())
        ):
            raise ValueError(
                f"`ends` must leave at least a frame to each piece and end with the {num_frames} frames, but are"
                f" {stops.tolist()}; see `piece_ends`."
            )
        # The number of its piece is a second code of each frame, so that runs end with their pieces.
        piece = torch.searchsorted(stops, torch.arange(num_frames), right=True)
        merged, _, durations = deduplicate_codes(torch.cat([frames, piece[None]])[None])
        runs = torch.cat([merged[0], durations])  # unit, piece, duration
        if self._tokenizer is not None:
            runs = self._merged(runs)
        parts = (runs[2] + self.max_duration - 1) // self.max_duration
        runs = runs.repeat_interleave(parts, dim=1)
        is_last = torch.zeros(runs.shape[1], dtype=torch.bool)
        is_last[parts.cumsum(0) - 1] = True
        rest = (runs[2] - 1) % self.max_duration + 1
        coded = torch.stack([runs[0], torch.where(is_last, rest, self.max_duration) - 1])
        return coded, None if ends is None else torch.bincount(runs[1], minlength=len(stops)).cumsum(0)

    def _merged(self, runs: torch.Tensor) -> torch.Tensor:
        # (3, num_runs) -> (3, num_tokens): the runs of each piece as tokens.
        assert self._tokenizer is not None
        counts = torch.unique_consecutive(runs[1], return_counts=True)[1].tolist()
        texts = [_spelling(part.tolist()) for part in runs[0].split(counts)]
        ids = [number for found in self._tokenizer.encode_batch(texts) for number in found.ids]
        columns, place = [], 0
        for number in ids:
            stop = place + len(self.tokens[number])
            duration = int(runs[2, place:stop].sum())
            if stop - place == 1 or duration <= self.max_duration:
                columns.append(torch.tensor([[number], [int(runs[1, place])], [duration]]))
            else:
                columns.append(runs[:, place:stop])
            place = stop
        return torch.cat([runs[:, :0], *columns], dim=1)

    def decode(self, runs: torch.Tensor) -> torch.Tensor:
        """
        The codes `(1, num_frames)` of runs; with `"frames"` what is given.

        Args:
            runs (`torch.Tensor` of shape `(2, num_runs)`): Units or tokens, and durations less one.

        Raises:
            TypeError: If the runs are no integers.
            ValueError: If their shape is wrong, or a token or a duration does not exist.
        """
        if self.kind == "frames":
            return runs
        durations = self._durations(runs)
        if self._tokenizer is None:
            return expand_codes(runs[None, :1].long(), durations[None])[0][0]
        units, frames = [], []
        for number, duration in zip(runs[0].tolist(), durations.tolist(), strict=True):
            token = self.tokens[number]
            each, left = divmod(duration, len(token))
            units += token
            frames += [each + (place < left) for place in range(len(token))]
        spread = torch.tensor([units, frames], dtype=torch.long, device=runs.device)
        return expand_codes(spread[None, :1], spread[1:])[0][0]

    def frames_of_runs(self, runs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """
        The frames at which runs begin; with `"frames"` the positions themselves.

        Args:
            runs (`torch.Tensor` of shape `(2, num_runs)`): Units or tokens, and durations less one.
            positions (`torch.Tensor`): Numbers of runs, from 0 to `num_runs`, which stands for the end.

        Returns:
            `torch.LongTensor` of the shape of `positions`.
        """
        if self.kind == "frames":
            return positions
        begins = torch.nn.functional.pad(self._durations(runs).cumsum(0), (1, 0))
        return begins[positions]

    def _durations(self, runs: torch.Tensor) -> torch.Tensor:
        # In frames, (num_runs,): at least one for each unit of a token.
        check_integers(runs, "runs")
        if runs.dim() != 2 or len(runs) != 2:
            raise ValueError(f"`runs` must have shape (2, num_runs), but has {tuple(runs.shape)}.")
        for row, size, name in zip(runs, self.sizes, ("token", "duration"), strict=True):
            if row.numel() and not 0 <= int(row.min()) <= int(row.max()) < size:
                raise ValueError(
                    f"`runs` has a {name} between {int(row.min())} and {int(row.max())}, but must lie between 0 and"
                    f" {size - 1}; the language model wrote what no clip has."
                )
        return torch.maximum(runs[1].long() + 1, self._sizes.to(runs.device)[runs[0].long()])


FRAMES = UnitCoding()


@functools.lru_cache(maxsize=16)
def _cached(kind: str, num_units: int, max_duration: int, merges: tuple[str, ...]) -> UnitCoding:
    return UnitCoding(kind, num_units, max_duration, merges)


def unit_coding_of(fields: Any) -> UnitCoding:
    """The coding of a configuration or processor: by its `unit_coding`, `num_units`, `max_duration`, `unit_merges`."""
    return _cached(fields.unit_coding, fields.num_units, fields.max_duration, tuple(fields.unit_merges))


def _spelling(units: Sequence[int]) -> str:
    return "".join(chr(_FIRST_CHARACTER + unit) for unit in units)


__all__ = ["DEFAULT_MAX_DURATION", "FRAMES", "UNIT_CODINGS", "UnitCoding", "unit_coding_of"]
