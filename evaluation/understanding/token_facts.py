# SPDX-License-Identifier: Apache-2.0
"""
Facts about the units that a language model reads: what they cost, how unevenly they occur, and what that does.

Units are looked at in the three forms that a model may be given: one a frame, without repetitions, and merged by
byte-pair encoding. The published study of discrete tokens (https://huggingface.co/papers/2411.08742) blames a part of
their loss on rare units, which are trained too little: [`token_facts`] says how rare they are, and
[`loss_by_unit_frequency`] and [`loss_by_clip_rarity`] whether rare units go with errors.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from speech_tokenizers.evaluation.bootstrap import Estimate, bootstrap_sums, ratio
from speech_tokenizers.evaluation.units.code_statistics import (
    BitRates,
    bit_rates,
    entropy,
    perplexity,
    rarest_share,
    run_lengths,
    usage_counts,
)
from speech_tokenizers.evaluation.units.measures import grouped
from speech_tokenizers.evaluation.units.robustness import unit_edit_distance, unit_edits
from speech_tokenizers.processing.unit_bpe import UnitBPE


@dataclasses.dataclass(frozen=True)
class UnitUsage:
    """
    How evenly the units of a codebook, or merged units, occur.

    Args:
        num_units (`int`): Number of units that there are.
        num_dead (`int`): Number of units that never occur.
        perplexity (`float`): Number of evenly used units that has the same entropy.
        rarest_share (`float`): Share of the occurrences, 0 to 1, that the rarest fifth of the units has; 0.2 if all
            are equally frequent. See [`~evaluation.units.code_statistics.rarest_share`].
        zipf (`list` of `tuple`): Points of Zipf's curve: a rank, 1 for the most frequent unit, and the share of the
            occurrences that the unit of this rank has.
    """

    num_units: int
    num_dead: int
    perplexity: float
    rarest_share: float
    zipf: list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class TokenFacts:
    """
    Rates and usage of units.

    Args:
        rates ([`~evaluation.units.code_statistics.BitRates`]): Nominal and empirical bit rates of frames and of runs.
        frames_per_second (`float`): Frames a second; each has a token a codebook.
        runs_per_second (`float`): Runs of equal frames a second, which is what is left without repetitions.
        merged_per_second (`float`, *optional*): Merged units a second.
        merged_bits_per_second (`float`, *optional*): Nominal bit rate of the merged units: log2 of how many there are,
            each.
        merged_entropy_bits_per_second (`float`, *optional*): Bit rate of an ideal entropy coder of the merged units.
        frames, runs (`list` of [`UnitUsage`]): Usage of each codebook, counted in frames and in runs.
        merged ([`UnitUsage`], *optional*): Usage of the merged units.
    """

    rates: BitRates
    frames_per_second: float
    runs_per_second: float
    merged_per_second: float | None
    merged_bits_per_second: float | None
    merged_entropy_bits_per_second: float | None
    frames: list[UnitUsage]
    runs: list[UnitUsage]
    merged: UnitUsage | None


@dataclasses.dataclass(frozen=True)
class LossBucket:
    """
    Losses at units, or in clips, of about one frequency.

    Args:
        count (`int`): Number of units or clips in the bucket.
        share (`float`): Share of all tokens that lie in it, 0 to 1.
        loss ([`~evaluation.bootstrap.Estimate`], *optional*): Mean loss with its interval when groups are redrawn;
            `None` where fewer than two groups have tokens in the bucket, since an interval needs two.
        clips (`list` of `int`, *optional*): Numbers of the clips in the bucket, where it holds clips.
    """

    count: int
    share: float
    loss: Estimate | None
    clips: list[int] | None = None


def token_facts(
    audio_codes: Sequence[np.ndarray], codebook_size: int, frame_rate: float, bpe: UnitBPE | None = None
) -> TokenFacts:
    """
    Args:
        audio_codes (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of the clips.
        codebook_size (`int`): Number of units in a codebook.
        frame_rate (`float`): Frames a second.
        bpe ([`~processing.unit_bpe.UnitBPE`], *optional*): Encoding that merges units, of a single codebook.

    Raises:
        ValueError: If there is no frame, a code is out of range, or `bpe` is given for several codebooks or for
            another number of units.
    """
    rates = bit_rates(audio_codes, codebook_size, frame_rate)
    runs = [run_lengths(codes)[0] for codes in audio_codes]
    merged_per_second = merged_bits = merged_entropy = merged = None
    if bpe is not None:
        counts = _merged_counts(audio_codes, codebook_size, bpe)
        seconds = sum(codes.shape[1] for codes in audio_codes) / frame_rate
        merged_per_second = float(counts.sum() / seconds)
        merged_bits = float(merged_per_second * np.log2(len(counts)))
        merged_entropy = float(merged_per_second * entropy(counts))
        merged = unit_usage(counts)
    return TokenFacts(
        rates=rates,
        frames_per_second=float(frame_rate),
        runs_per_second=rates.units_per_second,
        merged_per_second=merged_per_second,
        merged_bits_per_second=merged_bits,
        merged_entropy_bits_per_second=merged_entropy,
        frames=[unit_usage(row) for row in usage_counts(audio_codes, codebook_size).sum(0)],
        runs=[unit_usage(row) for row in usage_counts(runs, codebook_size).sum(0)],
        merged=merged,
    )


def _merged_counts(audio_codes: Sequence[np.ndarray], codebook_size: int, bpe: UnitBPE) -> np.ndarray:
    if bpe.codebook_size != codebook_size:
        raise ValueError(f"`bpe` merges {bpe.codebook_size} units, but the codebook has {codebook_size}.")
    if any(len(codes) != 1 for codes in audio_codes):
        raise ValueError("`bpe` merges the units of a single codebook, but the codes have several.")
    ids = np.concatenate([bpe.encode(codes[0])[0] for codes in audio_codes])
    return np.bincount(ids - 2, minlength=len(bpe) - 2)  # without padding and end


def unit_usage(counts: np.ndarray, num_points: int = 50) -> UnitUsage:
    """
    Args:
        counts (`np.ndarray` of shape `(num_units,)`): How often each unit occurs.
        num_points (`int`, *optional*, defaults to 50): Number of points of Zipf's curve, at most; evenly spaced ranks
            on a logarithmic axis, up to the rarest unit that occurs.

    Raises:
        ValueError: If no unit occurs.
    """
    ordered = np.sort(np.asarray(counts))[::-1]
    num_used = int((ordered > 0).sum())
    if not num_used:
        raise ValueError("No unit occurs.")
    ranks = np.unique(np.geomspace(1, num_used, num_points).round().astype(int))
    return UnitUsage(
        num_units=len(ordered),
        num_dead=len(ordered) - num_used,
        perplexity=float(perplexity(ordered)),
        rarest_share=float(rarest_share(ordered)),
        zipf=[(int(rank), float(ordered[rank - 1] / ordered.sum())) for rank in ranks],
    )


def loss_by_unit_frequency(
    losses: Sequence[float] | Sequence[np.ndarray],
    tokens: Sequence[np.ndarray],
    training_counts: np.ndarray,
    groups: Sequence[str],
    num_buckets: int = 5,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[LossBucket]:
    """
    Mean loss at the tokens of units that are rare in training, up to that at the most frequent ones.

    Units are sorted by how often they occur in training and dealt into buckets of as many units each. Units that never
    occur there are the rarest. Where a clip has a single loss, it is that of each of its tokens: the differences are
    small then, because most tokens of every clip are frequent, and [`loss_by_clip_rarity`] says more.

    Args:
        losses (sequence of `float`, or of `np.ndarray` of shape `(num_tokens,)`): Loss of each clip, or of each of its
            tokens.
        tokens (sequence of `np.ndarray` of shape `(num_tokens,)`): Units of each clip, as the model is given them.
        training_counts (`np.ndarray` of shape `(num_units,)`): How often each unit occurs in training.
        groups (sequence of `str`): Group of each clip, such as its speaker, for the intervals.
        num_buckets (`int`, *optional*, defaults to 5): Number of buckets.
        num_resamples (`int`, *optional*, defaults to 1000), seed (`int`, *optional*, defaults to 0): Number of
            bootstrap samples, and seed for the resampling.

    Returns:
        `list` of [`LossBucket`], the rarest units first.

    Raises:
        ValueError: If the numbers of clips or tokens differ, a token is no unit, a loss is not finite, or there are
            fewer units than buckets.
    """
    bucket_of = _bucket_of(training_counts, num_buckets, "units")
    rows = np.zeros((len(tokens), num_buckets, 2))
    for row, loss, units in zip(rows, *_checked_losses(losses, tokens, len(bucket_of), groups), strict=True):
        buckets = bucket_of[units]
        row[:, 0] = np.bincount(buckets, np.broadcast_to(loss, units.shape), num_buckets)
        row[:, 1] = np.bincount(buckets, minlength=num_buckets)
    return _loss_buckets(rows, groups, np.bincount(bucket_of, minlength=num_buckets), num_resamples, seed)


def loss_by_clip_rarity(
    losses: Sequence[float],
    tokens: Sequence[np.ndarray],
    training_counts: np.ndarray,
    groups: Sequence[str],
    num_buckets: int = 5,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[LossBucket]:
    """
    Mean loss of the clips whose units are rare in training, up to that of the clips with the most frequent ones.

    A clip is as rare as its units are on average: the mean of the logarithm of their occurrences in training plus one.
    Clips are dealt into buckets of as many clips each.

    Args:
        losses (sequence of `float`): Loss of each clip.
        tokens, training_counts, groups, num_buckets, num_resamples, seed: See [`loss_by_unit_frequency`].

    Returns:
        `list` of [`LossBucket`], the clips of the rarest units first. Its means are over clips.

    Raises:
        ValueError: As [`loss_by_unit_frequency`]; if a clip has no token, or there are fewer clips than buckets.
    """
    losses, tokens = _checked_losses(losses, tokens, len(training_counts), groups)
    if any(np.ndim(loss) for loss in losses) or not all(len(units) for units in tokens):
        raise ValueError("Every clip must have one loss, and at least one token.")
    frequency = np.log1p(np.asarray(training_counts, np.float64))
    bucket_of = _bucket_of(np.array([frequency[units].mean() for units in tokens]), num_buckets, "clips")
    rows = np.zeros((len(tokens), num_buckets, 2))
    rows[np.arange(len(tokens)), bucket_of] = [(float(loss), 1.0) for loss in losses]
    lengths = np.bincount(bucket_of, [len(units) for units in tokens], num_buckets)
    buckets = _loss_buckets(rows, groups, np.bincount(bucket_of, minlength=num_buckets), num_resamples, seed)
    shares = lengths / lengths.sum()
    return [
        dataclasses.replace(bucket, share=float(share), clips=np.flatnonzero(bucket_of == number).tolist())
        for number, (bucket, share) in enumerate(zip(buckets, shares, strict=True))
    ]


def unit_edit_distances(
    clean: Sequence[np.ndarray],
    changed: Mapping[str, Sequence[np.ndarray]],
    groups: Sequence[str],
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate | None]:
    """
    How far the units of each condition are from those of the clean recordings, in percent.

    Args:
        clean (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of the clean clips.
        changed (`Mapping` of `str` to such sequences): Codes of the same clips in each condition, such as a
            signal-to-noise ratio; see [`~evaluation.units.perturbations.listening_conditions`].
        groups (sequence of `str`): Group of each clip, for the intervals.
        num_resamples (`int`, *optional*, defaults to 1000), seed (`int`, *optional*, defaults to 0): Number of
            bootstrap samples, and seed for the resampling.

    Returns:
        `dict` with the [`~evaluation.units.robustness.unit_edit_distance`] of each condition.

    Raises:
        ValueError: If the numbers of clips or of quantizers differ.
    """
    distances = {}
    for name, codes in changed.items():
        if not len(codes) == len(clean) == len(groups):
            raise ValueError(f"{name} must have {len(clean)} clips and groups, but got {len(codes)}, {len(groups)}.")
        edits = np.array([unit_edits(*pair) for pair in zip(clean, codes, strict=True)])
        distances[name] = bootstrap_sums(grouped(edits, groups), unit_edit_distance, num_resamples, seed=seed)
    return distances


def _bucket_of(values: np.ndarray, num_buckets: int, what: str) -> np.ndarray:
    # The bucket of each item, that of the smallest values first; among equals, the first items come first.
    values = np.asarray(values)
    if len(values) < num_buckets or num_buckets < 1:
        raise ValueError(f"`num_buckets` must lie between 1 and the number of {what}, {len(values)}.")
    buckets = np.empty(len(values), np.int64)
    buckets[np.argsort(values, kind="stable")] = np.arange(len(values)) * num_buckets // len(values)
    return buckets


def _checked_losses(losses, tokens, num_units, groups):
    if not len(losses) == len(tokens) == len(groups):
        raise ValueError(
            f"Every clip needs losses, tokens and a group, but there are {len(losses)}, {len(tokens)}, {len(groups)}."
        )
    losses, tokens = [np.asarray(loss, np.float64) for loss in losses], [np.asarray(units) for units in tokens]
    for number, (loss, units) in enumerate(zip(losses, tokens, strict=True)):
        if units.ndim != 1 or (len(units) and not 0 <= units.min() <= units.max() < num_units):
            raise ValueError(f"The tokens of clip {number} must be of shape (num_tokens,) and below {num_units}.")
        if loss.ndim and loss.shape != units.shape:
            raise ValueError(f"Clip {number} has {len(units)} tokens, but {loss.size} losses.")
        if not np.isfinite(loss).all():
            raise ValueError(f"A loss of clip {number} is not finite.")
    return losses, tokens


def _loss_buckets(
    rows: np.ndarray, groups: Sequence[str], sizes: np.ndarray, num_resamples: int, seed: int
) -> list[LossBucket]:
    by_group = grouped(rows, groups)
    total = by_group[..., 1].sum()
    num_groups = (by_group[..., 1] > 0).sum(0)
    return [
        LossBucket(
            count=int(size),
            share=float(by_group[:, bucket, 1].sum() / total) if total else 0.0,
            loss=(
                bootstrap_sums(by_group[:, bucket], ratio, num_resamples, seed=seed)
                if num_groups[bucket] > 1
                else None
            ),
        )
        for bucket, size in enumerate(sizes)
    ]
