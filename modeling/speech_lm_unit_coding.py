# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""How a speech language model reads and writes units: frame by frame, or as runs of equal frames with durations."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from .input_checks import check_codebook_sizes
from .speech_lm_ids import check_code_range, check_integers
from .speech_lm_layouts import piece_ends
from .unit_runs import deduplicate_codes, expand_codes


UNIT_CODINGS = ("frames", "units", "runs", "bpe")
# Fields of a configuration or processor, in the order of the arguments of `UnitCoding`.
CODING_FIELDS = ("unit_coding", "num_units", "max_duration", "unit_merges", "unit_durations")
# Of runs of the released units at 50 Hz, fewer than 0.1 % are longer.
DEFAULT_MAX_DURATION = 32
# Units are spelt as characters of Unicode's private-use plane 15 where they are merged.
_FIRST_CHARACTER, _MOST_UNITS = 0xF0000, 65534


class UnitCoding:
    """
    Turn the codes of a clip into what stands in the sequence of a language model, and back.

    `"frames"` leaves codes as they are. `"runs"` merges neighbouring frames of equal units into runs: codebook 0 of a
    run is its unit, codebook 1 its duration. `"bpe"` merges frequent sequences of runs further into tokens, as
    [`UnitBPE`] has learnt them; codebook 1 is the duration of the token, the sum of those of its units. `"units"` are
    runs whose durations are dropped: one codebook alone.

    A duration of `d` frames is the code `d - 1`. A run of more than `max_duration` frames becomes several runs of one
    unit, and a token of more becomes its single units, so that no frame is lost.

    Decoding inverts `"runs"` exactly. Of `"bpe"` the order of the units, and the frames of each token, are exact. The
    units of a token share its frames in proportion to `unit_durations`, each at least one; so boundaries within a
    token are approximate. Of `"units"` the order alone is exact: each lasts as long as `unit_durations` says, rounded.

    Runs are decoded one by one: the frames of the first runs of a clip do not depend on those that follow.

    Args:
        kind (`str`, *optional*, defaults to `"frames"`): `"frames"`, `"units"`, `"runs"` or `"bpe"`.
        num_units (`int`, *optional*, defaults to 0): Units of the codec; 0 with `"frames"`, which takes any codes.
        max_duration (`int`, *optional*, defaults to 0): Most frames of a run; 0 where durations are not written.
        merges (sequence of `str`, *optional*): With `"bpe"` the merges in their order, as [`UnitBPE`] gives them: two
            numbers of tokens with a space between. Tokens below `num_units` are units; each merge makes the next one,
            unless an earlier one has made the same sequence of units.
        unit_durations (sequence of `float`, *optional*): Mean duration of each unit in frames; needed for `"units"`.
            With `"bpe"` it defaults to equal ones.

    Raises:
        ValueError: If the kind is unknown, a number does not belong to it, or the merges are not in order.
    """

    def __init__(
        self,
        kind: str = "frames",
        num_units: int = 0,
        max_duration: int = 0,
        merges: Sequence[str] = (),
        unit_durations: Sequence[float] = (),
    ):
        if kind not in UNIT_CODINGS:
            raise ValueError(f"`unit_coding` must be one of {', '.join(UNIT_CODINGS)}, but is {kind!r}.")
        has_durations = kind in ("runs", "bpe")
        if (kind == "frames") != (num_units == 0) or not 0 <= num_units <= _MOST_UNITS:
            raise ValueError(
                f"`num_units` must be 0 with `unit_coding='frames'` and else lie between 1 and {_MOST_UNITS}, but with"
                f" {kind!r} it is {num_units}."
            )
        if has_durations != (max_duration != 0) or max_duration < 0:
            raise ValueError(
                "`max_duration` must be at least 1 frame with `unit_coding` 'runs' and 'bpe', and 0 with others, but"
                f" with {kind!r} it is {max_duration}."
            )
        if (kind == "bpe") != bool(merges):
            raise ValueError(
                f"`unit_merges` must hold the merges of a `UnitBPE` with `unit_coding='bpe'`, and be empty with"
                f" others, but with {kind!r} there are {len(merges)}."
            )
        if unit_durations or kind == "units":
            is_wanted = kind in ("units", "bpe") and len(unit_durations) == num_units
            if not is_wanted or not all(1 <= duration < float("inf") for duration in unit_durations):
                raise ValueError(
                    "`unit_durations` must hold a mean duration of at least 1 frame for each unit with `unit_coding`"
                    f" 'units', may do so with 'bpe', and must be empty with others, but with {kind!r} and"
                    f" {num_units} units they are {len(unit_durations)}, from {min(unit_durations, default=None)} on."
                )
        self.kind, self.num_units, self.max_duration = kind, num_units, max_duration
        self.unit_durations = list(unit_durations) or [1.0] * num_units
        self.tokens: list[tuple[int, ...]] = [(unit,) for unit in range(num_units)]
        self._tokenizer = self._with_merges(merges) if merges else None
        self._sizes = torch.tensor([len(token) for token in self.tokens])
        self._spreads: dict[tuple[int, int], list[int]] = {}

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
        """Codes of each codebook of a run: tokens, and durations if there are any. Frames have none of their own."""
        return [size for size in (len(self.tokens), self.max_duration) if size]

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
        return len(self.sizes), max(self.sizes)

    def codec_sizes(self, num_codebooks: int, codebook_size: int) -> tuple[int, int]:
        """
        Codebooks and their size that the codec has, for those of the language model; the inverse of `model_sizes`.

        Raises:
            ValueError: If there are runs, and the language model has other codebooks than these need.
        """
        if self.kind == "frames":
            return num_codebooks, codebook_size
        if (num_codebooks, codebook_size) != (len(self.sizes), max(self.sizes)):
            raise ValueError(
                f"`unit_coding={self.kind!r}` needs {len(self.sizes)} codebooks of {max(self.sizes)}, for"
                f" {len(self.tokens)} tokens and {self.max_duration} durations, but there are {num_codebooks} of"
                f" {codebook_size}."
            )
        return 1, self.num_units

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
            `tuple`: The runs, long, of shape `(2, num_runs)`: unit or token, and duration less one; or of shape
            `(1, num_runs)` without durations. And `ends` in runs, or `None`.

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
        if self.max_duration:
            parts = (runs[2] + self.max_duration - 1) // self.max_duration
            runs = runs.repeat_interleave(parts, dim=1)
            is_last = torch.zeros(runs.shape[1], dtype=torch.bool)
            is_last[parts.cumsum(0) - 1] = True
            runs[2] = torch.where(is_last, (runs[2] - 1) % self.max_duration + 1, self.max_duration)
        coded = torch.stack([runs[0], runs[2] - 1])[: len(self.sizes)]
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
            runs (`torch.Tensor` of shape `(2, num_runs)`): Units or tokens, and durations less one; or of shape
                `(1, num_runs)` without durations.

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
            units += token
            frames += self._spread(number, duration)
        spread = torch.tensor([units, frames], dtype=torch.long, device=runs.device)
        return expand_codes(spread[None, :1], spread[1:])[0][0]

    def _spread(self, number: int, duration: int) -> list[int]:
        # The frames of each unit of a token.
        found = self._spreads.get((number, duration))
        if found is None:
            weights = torch.tensor([self.unit_durations[unit] for unit in self.tokens[number]], dtype=torch.float64)
            ends = piece_ends(weights.cumsum(0) * (duration / weights.sum()), 1.0, duration)
            found = self._spreads[number, duration] = ends.diff(prepend=ends.new_zeros(1)).tolist()
        return found

    def frames_of_runs(self, runs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """
        The frames at which runs begin; with `"frames"` the positions themselves.

        Args:
            runs (`torch.Tensor` of shape `(2, num_runs)` or `(1, num_runs)`): As `decode` takes them.
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
        if runs.dim() != 2 or len(runs) != len(self.sizes):
            raise ValueError(f"`runs` must have shape ({len(self.sizes)}, num_runs), but has {tuple(runs.shape)}.")
        for row, size, name in zip(runs, self.sizes, ("token", "duration"), strict=False):
            if row.numel() and not 0 <= int(row.min()) <= int(row.max()) < size:
                raise ValueError(
                    f"`runs` has a {name} between {int(row.min())} and {int(row.max())}, but must lie between 0 and"
                    f" {size - 1}; the language model wrote what no clip has."
                )
        if len(runs) == 1:
            lasting = torch.tensor([math.floor(duration + 0.5) for duration in self.unit_durations])
            return lasting.to(runs.device)[runs[0].long()]
        return torch.maximum(runs[1].long() + 1, self._sizes.to(runs.device)[runs[0].long()])


FRAMES = UnitCoding()


@functools.lru_cache(maxsize=16)
def _cached(
    kind: str, num_units: int, max_duration: int, merges: tuple[str, ...], unit_durations: tuple[float, ...]
) -> UnitCoding:
    return UnitCoding(kind, num_units, max_duration, merges, unit_durations)


def check_has_codes(unit_coding: str, layout: str) -> None:
    """Refuse, by a `ValueError`, units in the continuous layout."""
    if unit_coding != "frames" and layout == "continuous":
        raise ValueError(f"`unit_coding={unit_coding!r}` needs codes, which `layout='continuous'` has not.")


def coding_fields(
    unit_coding: str,
    codec_sizes: Mapping[str, int],
    unit_bpe: Any = None,
    max_duration: int | None = None,
    unit_durations: Sequence[float] = (),
) -> dict[str, Any]:
    """
    The fields `CODING_FIELDS`, and `num_codebooks` and `codebook_size` of the language model.

    Args:
        unit_coding (`str`), unit_bpe ([`UnitBPE`], *optional*), max_duration (`int`, *optional*), unit_durations
            (sequence of `float`): See [`SpeechLMProcessor.from_tokenizer`].
        codec_sizes (`Mapping`): `num_codebooks` and `codebook_size` of the codec.

    Raises:
        ValueError: If they do not belong together.
    """
    num_codebooks, codebook_size = codec_sizes["num_codebooks"], codec_sizes["codebook_size"]
    if unit_bpe is not None and unit_bpe.codebook_size != codebook_size:
        raise ValueError(f"`unit_bpe` merges {unit_bpe.codebook_size} units, but the codec has {codebook_size}.")
    if max_duration is None:
        max_duration = DEFAULT_MAX_DURATION if unit_coding in ("runs", "bpe") else 0
    num_units = 0 if unit_coding == "frames" else codebook_size
    merges = [] if unit_bpe is None else list(unit_bpe.merges)
    values = (unit_coding, num_units, max_duration, merges, list(unit_durations))
    sizes = UnitCoding(*values).model_sizes(num_codebooks, codebook_size)
    return {**dict(zip(CODING_FIELDS, values, strict=True)), "num_codebooks": sizes[0], "codebook_size": sizes[1]}


def check_codec_sizes(fields: Any) -> None:
    """
    Refuse, by a `ValueError`, fields `codebook_sizes` of a configuration or processor that do not fit its codebooks.
    """
    if fields.codebook_sizes is None:
        return
    if fields.layout == "continuous" or fields.unit_coding != "frames":
        raise ValueError(
            f"`codebook_sizes` is for codes of frames, not for `layout={fields.layout!r}` with"
            f" `unit_coding={fields.unit_coding!r}`; leave it out."
        )
    check_codebook_sizes(fields.codebook_sizes, fields.num_codebooks, fields.codebook_size)


def written_sizes(fields: Any) -> tuple[int, ...] | None:
    """
    Codes that each codebook has in the sequence of the language model that a configuration or processor describes:
    those of runs, or of the codec's `codebook_sizes`; `None` where all have `codebook_size`.
    """
    sizes = unit_coding_of(fields).sizes or fields.codebook_sizes
    return tuple(sizes) if sizes else None


def unit_coding_of(fields: Any) -> UnitCoding:
    """The coding that the fields `CODING_FIELDS` of a configuration or a processor name."""
    kind, num_units, max_duration, merges, unit_durations = (getattr(fields, name) for name in CODING_FIELDS)
    return _cached(kind, num_units, max_duration, tuple(merges), tuple(unit_durations))


def _spelling(units: Sequence[int]) -> str:
    return "".join(chr(_FIRST_CHARACTER + unit) for unit in units)


__all__ = [
    "CODING_FIELDS",
    "DEFAULT_MAX_DURATION",
    "FRAMES",
    "UNIT_CODINGS",
    "UnitCoding",
    "check_has_codes",
    "coding_fields",
    "check_codec_sizes",
    "unit_coding_of",
    "written_sizes",
]
