# SPDX-License-Identifier: Apache-2.0
"""
How many bits units take, how evenly they are used, and how well earlier units predict the next.

Codes of a clip have shape `(num_quantizers, num_frames)`. Counts are given by clip, so that
[`~evaluation.bootstrap.bootstrap_sums`] can redraw clips. A run is a stretch of frames that are equal in all
quantizers, and de-duplicated units are one for each run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech_tokenizers.evaluation.reconstruction.codebook import (
    entropy_bits_per_second,
    nominal_bits_per_second,
    stage_statistics,
)


@dataclass(frozen=True)
class BitRates:
    """
    Bit rates of units, in bit/s of audio.

    Entropies are those of the sample. They are entropies of single symbols without regard to their neighbours. With
    few frames they are too low. With Q quantizers of K codes, F frames a second, and R runs a second:

    Args:
        nominal (`float`): Nominal rate, F Q log2(K). Quantizers may have sizes of their own, and a code that lasts
            several frames, as one of F0 with a stride, counts once.
        entropy (`float`): Rate of an ideal entropy coder: F times the summed entropies of the quantizers' codes; what
            lasts several frames counts once.
        deduplicated (`float`): Nominal rate of the runs, R Q log2(K), without their durations. Each run has a code of
            each quantizer, however long one lasts.
        deduplicated_entropy (`float`): Rate of an ideal entropy coder of the runs, without their durations: R times
            the summed entropies of the quantizers' codes, counted once a run.
        deduplicated_entropy_with_durations (`float`): `deduplicated_entropy` and R times the entropy of a run's
            duration. This is all that is needed to restore the frames.
        units_per_second (`float`): Number of runs a second, R.
    """

    nominal: float
    entropy: float
    deduplicated: float
    deduplicated_entropy: float
    deduplicated_entropy_with_durations: float
    units_per_second: float


def bit_rates(
    audio_codes: Sequence[np.ndarray],
    codebook_size: int | Sequence[int],
    frame_rate: float,
    codebook_strides: Sequence[int] | None = None,
) -> BitRates:
    """
    Args:
        audio_codes (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of the clips.
        codebook_size (`int` or sequence of `int`): Entries per codebook, or of each.
        frame_rate (`float`): Frames a second.
        codebook_strides (sequence of `int`, *optional*): Frames that a code of each quantizer lasts. Defaults to one
            each.

    Raises:
        ValueError: If there is no frame, or as [`~codebook.stage_statistics`] does.
    """
    stages = stage_statistics(audio_codes, codebook_size)
    if not stages:
        raise ValueError("`audio_codes` holds no frame.")
    runs = [run_lengths(codes) for codes in audio_codes]
    durations = np.concatenate([lengths for _, lengths in runs])
    units_per_second = frame_rate * len(durations) / durations.sum()
    sizes = [stage.codebook_size for stage in stages]
    run_stages = stage_statistics([units for units, _ in runs], codebook_size)
    deduplicated_entropy = entropy_bits_per_second(run_stages, units_per_second)
    return BitRates(
        nominal=nominal_bits_per_second(sizes, frame_rate, codebook_strides),
        entropy=entropy_bits_per_second(stages, frame_rate, codebook_strides),
        deduplicated=nominal_bits_per_second(sizes, units_per_second),
        deduplicated_entropy=deduplicated_entropy,
        deduplicated_entropy_with_durations=deduplicated_entropy
        + units_per_second * float(entropy(np.bincount(durations))),
        units_per_second=float(units_per_second),
    )


def run_lengths(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Remove repetitions.

    Args:
        codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of one clip.

    Returns:
        `tuple`: Units of shape `(num_quantizers, num_runs)`, each unlike the one before in some quantizer, and their
        durations in frames, of shape `(num_runs,)`.
    """
    num_frames = codes.shape[1]
    changes = 1 + np.flatnonzero((codes[:, 1:] != codes[:, :-1]).any(axis=0))
    starts = np.concatenate([[0], changes])[: min(1, num_frames) + len(changes)].astype(np.int64)
    return codes[:, starts], np.diff(starts, append=num_frames)


def run_counts(audio_codes: Sequence[np.ndarray], frame_rate: float) -> np.ndarray:
    """
    Runs and seconds of each clip, of shape `(num_clips, 2)`; their ratio is the units a second.

    Args:
        audio_codes (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of the clips.
        frame_rate (`float`): Frames a second.
    """
    return np.array([(len(run_lengths(codes)[1]), codes.shape[1] / frame_rate) for codes in audio_codes])


def usage_counts(audio_codes: Sequence[np.ndarray], codebook_size: int) -> np.ndarray:
    """
    How often each clip has each code, of shape `(num_clips, num_quantizers, codebook_size)`.

    Args:
        audio_codes (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of the clips.
        codebook_size (`int`): Entries per codebook.
    """
    return np.array([[np.bincount(row, minlength=codebook_size) for row in codes] for codes in audio_codes])


def entropy(counts: np.ndarray) -> np.ndarray:
    """
    Entropy in bits of what was counted, of shape `(...)`; NaN where nothing was.

    Args:
        counts (`np.ndarray` of shape `(..., num_symbols)`): Number of times that each symbol occurs.
    """
    with np.errstate(invalid="ignore"):
        shares = counts / np.sum(counts, axis=-1, keepdims=True)
    return (shares * -np.log2(np.where(shares > 0, shares, 1.0))).sum(-1)


def perplexity(counts: np.ndarray) -> np.ndarray:
    """Number of evenly used codes that has the same [`entropy`], of shape `(...)`."""
    return 2.0 ** entropy(counts)


def share_used(counts: np.ndarray) -> np.ndarray:
    """Share of the codes that occur, of shape `(...)`."""
    return (np.asarray(counts) > 0).mean(-1)


def rarest_share(counts: np.ndarray, share: float = 0.2) -> np.ndarray:
    """
    Imbalance: share of the frames that the rarest codes carry, of shape `(...)`; NaN where there are no frames.

    It is the Lorenz curve at `share`: codes are sorted by their frames, those that never occur come first with none,
    and where `share * codebook_size` is no whole number the next code counts in part. Which of equally frequent codes
    comes first makes no difference. Even use gives `share` itself, and a codebook with unused codes less.

    Args:
        counts (`np.ndarray` of shape `(..., codebook_size)`): Frames of each code.
        share (`float`, *optional*, defaults to 0.2): Share of the codes.
    """
    ordered = np.sort(np.asarray(counts, np.float64), axis=-1)
    rank = share * ordered.shape[-1]
    parts = np.clip(rank - np.arange(ordered.shape[-1]), 0.0, 1.0)
    with np.errstate(invalid="ignore"):
        return (ordered * parts).sum(-1) / ordered.sum(-1)


class NgramModel:
    """
    An n-gram model of units with interpolated Witten-Bell smoothing (Chen and Goodman 1999, section 2.4).

    With c(h, w) how often unit w follows history h, c(h) the sum and t(h) the number of distinct units after h,
    p(w | h) = (c(h, w) + t(h) p(w | h')) / (c(h) + t(h)), where h' is h without its oldest unit. An unseen history
    leaves p(w | h'). The shortest model, without history, falls back to 1 / `vocabulary_size`. The first units of a
    stream have shorter histories, and its end is not predicted.

    Args:
        streams (sequence of `np.ndarray` of shape `(num_units,)`): Streams of units to learn from. Units are numbers
            from 0 to `vocabulary_size` - 1.
        vocabulary_size (`int`): Number of units that there can be.
        order (`int`): Length of an n-gram: units of history plus one.

    Raises:
        ValueError: If `order` is below 1 or too large to number the n-grams, or a unit is outside the vocabulary.
    """

    def __init__(self, streams: Sequence[np.ndarray], vocabulary_size: int, order: int):
        if order < 1:
            raise ValueError(f"`order` must be at least 1, but got {order}.")
        self.vocabulary_size, self.order = vocabulary_size, order
        for stream in streams:
            self._check(stream)
        # Only units that occur are numbered: a vocabulary of tuples can be larger than any table.
        self.known = np.unique(np.concatenate([*streams, np.empty(0, np.int64)]))
        if self._base**order > np.iinfo(np.int64).max:
            raise ValueError(f"`order` is {order}: too large for {len(self.known)} units that occur.")
        numbered = [self._number(stream) for stream in streams]
        self.levels = []
        for length in range(1, order + 1):
            grams, counts = np.unique(
                np.concatenate([self._grams(stream, length) for stream in numbered] or [np.empty(0, np.int64)]),
                return_counts=True,
            )
            # Grams are sorted, so those of one history are neighbours.
            histories, first = np.unique(grams // self._base, return_index=True)
            totals = np.add.reduceat(counts, first) if len(first) else np.empty(0, np.int64)
            self.levels.append((grams, counts, histories, totals, np.diff(first, append=len(grams))))

    def bits(self, stream: np.ndarray) -> np.ndarray:
        """
        -log2 p of each unit after those before it, of shape `(num_units,)`.

        Args:
            stream (`np.ndarray` of shape `(num_units,)`): Units of one clip.

        Raises:
            ValueError: If a unit is outside the vocabulary.
        """
        self._check(stream)
        numbered = self._number(stream)
        probability = np.full(len(numbered), 1.0 / self.vocabulary_size)
        for length, (grams, counts, histories, totals, followers) in enumerate(self.levels, 1):
            said = self._grams(numbered, length)
            count = _look_up(said, grams, counts)
            total, distinct = (_look_up(said // self._base, histories, values) for values in (totals, followers))
            shorter = probability[length - 1 :]
            longer = (count + distinct * shorter) / np.maximum(total + distinct, 1)
            probability[length - 1 :] = np.where(total > 0, longer, shorter)
        return -np.log2(probability)

    @property
    def _base(self) -> int:
        # One number more than there are known units: the unknown ones share it.
        return len(self.known) + 1

    def _check(self, stream: np.ndarray) -> None:
        if len(stream) and not (np.min(stream) >= 0 and np.max(stream) < self.vocabulary_size):
            raise ValueError(
                f"Units must lie in 0 to {self.vocabulary_size - 1}, but got {np.min(stream)} to {np.max(stream)}."
            )

    def _number(self, stream: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self.known, stream)
        found = self.known[np.minimum(places, len(self.known) - 1)] == stream if len(self.known) else False
        return np.where(found, places, len(self.known)).astype(np.int64)

    def _grams(self, numbered: np.ndarray, length: int) -> np.ndarray:
        # Each stretch of `length` units as one number whose last digit is the last unit.
        grams = np.zeros(max(0, len(numbered) - length + 1), np.int64)
        for place in range(length):
            grams = grams * self._base + numbered[place : place + len(grams)]
        return grams


def _look_up(keys: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    # The values of known keys, which are sorted; 0 for others.
    if not len(known):
        return np.zeros(len(keys), np.int64)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[places] == keys, values[places], 0)


def ngram_bits(
    streams: Sequence[np.ndarray],
    vocabulary_size: int,
    order: int,
    groups: Sequence[str] | None = None,
    num_folds: int = 5,
) -> np.ndarray:
    """
    Bits and units of each clip under an n-gram model of other clips, of shape `(num_clips, 2)`.

    The clips (or groups) are dealt into folds in their order, and each fold is measured by an [`NgramModel`] of all
    other folds.

    Args:
        streams (sequence of `np.ndarray` of shape `(num_units,)`): Units of each clip: a quantizer's codes, or
            [`~evaluation.units.agreement.joint_symbols`]; de-duplicated or not.
        vocabulary_size (`int`): Number of units that there can be: the codebook's size, or its power for tuples.
        order (`int`): Length of an n-gram: units of history plus one.
        groups (sequence of `str`, *optional*): Group of each clip, such as its speaker. A group stays in one fold.
            Defaults to a group for each clip.
        num_folds (`int`, *optional*, defaults to 5): Number of folds, at most one for each group.

    Raises:
        ValueError: If there are fewer than two groups.
    """
    _, numbers = np.unique(np.arange(len(streams)) if groups is None else np.asarray(groups), return_inverse=True)
    num_folds = min(num_folds, len(set(numbers.tolist())))
    if num_folds < 2:
        raise ValueError("An n-gram model needs at least two clips or groups, one of them held out.")
    rows = np.zeros((len(streams), 2))
    for fold in range(num_folds):
        held_out = numbers % num_folds == fold
        model = NgramModel([streams[number] for number in np.flatnonzero(~held_out)], vocabulary_size, order)
        for number in np.flatnonzero(held_out):
            rows[number] = model.bits(streams[number]).sum(), len(streams[number])
    return rows


def ngram_perplexity(sums: np.ndarray) -> np.ndarray:
    """2 to the bits a unit, of shape `(...)`, from sums of [`ngram_bits`] of shape `(..., 2)`; NaN without units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, 2.0 ** (sums[..., 0] / sums[..., 1]), np.nan)
