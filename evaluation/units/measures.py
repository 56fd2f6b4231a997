# SPDX-License-Identifier: Apache-2.0
"""Measures of units over a set of clips, from material that is computed once: codes, features and labels."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from speech_tokenizers.evaluation.bootstrap import Estimate, Statistic, bootstrap_sums, ratio
from speech_tokenizers.evaluation.clips import SAMPLING_RATE, Clip
from speech_tokenizers.evaluation.codec_systems import system_codebook_sizes, system_codebook_strides
from speech_tokenizers.evaluation.units import abx as phone_abx
from speech_tokenizers.evaluation.units.agreement import joint_counts, joint_symbols, roll_labels
from speech_tokenizers.evaluation.units.code_statistics import (
    bit_rates,
    entropy,
    ngram_bits,
    ngram_perplexity,
    perplexity,
    rarest_share,
    run_counts,
    run_lengths,
    share_used,
    usage_counts,
)
from speech_tokenizers.evaluation.units.encoded_clips import (
    EncodedClips,
    EncodingFailure,
    Labels,
    Measured,
    UnitSettings,
)
from speech_tokenizers.evaluation.units.perturbations import Perturbation, perturb
from speech_tokenizers.evaluation.units.robustness import UnitEdits, unit_edit_distance, unit_edits


NGRAM_ORDER = 3
# Units that occur less often on average agree with any labels.
MIN_FRAMES_A_SYMBOL = 10


def grouped(counts: np.ndarray, groups: Sequence[str] | np.ndarray) -> np.ndarray:
    """The rows of each group, such as a speaker's clips, added up."""
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((numbers.max() + 1, *counts.shape[1:]))
    np.add.at(sums, numbers, counts)
    return sums


def centred_estimate(counts: np.ndarray, statistic: Statistic, seed: int, num_resamples: int = 500) -> Estimate:
    """
    A statistic of summed counts that falls when some clips are drawn twice and others not at all, such as an entropy.

    The percentile interval is moved so that the mean of the redrawn values is the value, as in
    [`~evaluation.units.agreement.JointCounts`].

    Args:
        counts (`np.ndarray` of shape `(num_groups, num_counts)`): Contribution of each clip or group to the sums.
        statistic (`Callable`): Function that maps the sums to the value.
        seed (`int`), num_resamples (`int`, *optional*, defaults to 500): Seed for the resampling, and number of
            bootstrap samples.
    """
    num_groups, value = len(counts), float(statistic(counts.sum(0)))
    generator = np.random.default_rng(seed)
    times_drawn = generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), num_resamples)
    values = statistic(times_drawn @ counts)
    low, high = value - values.mean() + np.percentile(values, [2.5, 97.5])
    return Estimate(value, float(low), float(high), num_groups)


def measure_agreement(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """PNMI and purities of the first codebook, of each codebook, and of all together, with what chance reaches."""
    measured = Measured()
    names = {"mutual_information": "pnmi", "label_purity": "phone_purity", "unit_purity": "cluster_purity"}
    _agree(encoded, settings, encoded.data.phones, names, measured)
    return measured


def measure_characters(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """As [`measure_agreement`], with characters in place of phones."""
    measured = Measured()
    names = {"mutual_information": "cnmi", "label_purity": "character_purity"}
    _agree(encoded, settings, encoded.data.characters, names, measured)
    return measured


def _agree(
    encoded: EncodedClips, settings: UnitSettings, labels: Labels, names: Mapping[str, str], measured: Measured
) -> None:
    frames, classes = encoded.frame_labels(labels)
    groups = encoded.of_clips(encoded.data.groups)
    num_labelled = sum(bool((part >= 0).any()) for part in frames)
    unlabelled = [clip.name for clip, part in zip(encoded.clips, frames, strict=True) if not (part >= 0).any()]
    rolled = roll_labels(frames, settings.seed)
    num_quantizers = len(encoded.codes[0])
    views = {"": [codes[0] for codes in encoded.codes]}
    together = joint_symbols(encoded.codes)
    if num_quantizers > 1 and _frames_a_symbol(together) >= MIN_FRAMES_A_SYMBOL:
        views["[all codebooks]"] = together
    for view, units in views.items():
        counts = joint_counts(units, frames, groups)
        chance = joint_counts(units, rolled, groups).value()._asdict()
        for field, estimate in counts.estimates(seed=settings.seed).items():
            if field in names:
                measured.add(names[field] + view, estimate, num_labelled)
                measured.add_value(f"{names[field]}{view}[chance]", chance[field], num_labelled)
    if unlabelled:
        measured.failures[names["mutual_information"]] = {"no frame has a label": unlabelled}
    counts = joint_counts(views[""], frames, groups)
    measured.details[f"{names['mutual_information']}_confusion"] = {
        "units": counts.units.tolist(),
        "labels": [classes[number] for number in counts.labels],
        "counts": counts.table().tolist(),
    }
    measured.details[f"{names['mutual_information']}_by_codebook"] = [
        joint_counts([codes[stage] for codes in encoded.codes], frames).value().mutual_information
        for stage in range(num_quantizers)
    ]


def _frames_a_symbol(symbols: Sequence[np.ndarray]) -> float:
    together = np.concatenate(symbols)
    return len(together) / (together.max() + 1)


def measure_abx(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """ABX error within and across speakers, by angles between the units' entries and between the features."""
    measured = Measured()
    speakers = encoded.of_clips(encoded.data.speakers)
    tokens = [
        token
        for number, (spans, codes, speaker) in enumerate(
            zip(encoded.labels(encoded.data.phones), encoded.codes, speakers, strict=True)
        )
        if speaker is not None
        for token in phone_abx.phone_tokens(spans, codes.shape[1], encoded.system.frame_rate, speaker, number)
    ]
    num_clips = len({token.clip for token in tokens})
    symbols, entries = encoded.symbols()
    views: dict[str, Callable[[], tuple[list[np.ndarray], phone_abx.FrameDistance]]] = {
        "centroids": lambda: (symbols, phone_abx.entry_distance(entries)),
        "features": lambda: (encoded.features, phone_abx.angular_distance),
    }
    for view, material in views.items():
        for mode in ("within", "across"):
            name = f"abx_{mode}[{view}]"
            try:
                frames, distance = material()
            except ValueError as error:
                measured.add(name, None, 0, str(error))
                continue
            result = phone_abx.abx(
                tokens, frames, distance, mode, settings.abx_context, settings.abx_tokens, seed=settings.seed
            )
            reason = "no triplet of phones has the speakers and neighbours that it needs"
            measured.add(name, result.estimate(seed=settings.seed), num_clips, reason)
            measured.details[name] = {"num_cells": result.num_cells, "num_triplets": result.num_triplets}
    return measured


def measure_rate(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """Bit rates of all codebooks together, in bit/s."""
    measured = Measured()
    system, num_clips = encoded.system, len(encoded.codes)
    sizes = system_codebook_sizes(system, len(encoded.codes[0]))
    rates = bit_rates(encoded.codes, sizes, system.frame_rate, system_codebook_strides(system, len(sizes)))
    for field, value in dataclasses.asdict(rates).items():
        if field != "units_per_second":
            measured.add_value(f"bits_{field}", value, num_clips)
    counts = grouped(run_counts(encoded.codes, system.frame_rate), encoded.of_clips(encoded.data.groups))
    measured.add("units_per_second", bootstrap_sums(counts, ratio, seed=settings.seed), num_clips)
    return measured


USAGE: dict[str, Statistic] = {
    "share_used": share_used,
    "perplexity": perplexity,
    "entropy": entropy,
    "rarest_share": rarest_share,
}


def measure_usage(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """Use of the first codebook; in the details, use of each codebook."""
    measured = Measured()
    counts = usage_counts(encoded.codes, encoded.system.codebook_size)
    first = grouped(counts[:, 0], encoded.of_clips(encoded.data.groups))
    for name, statistic in USAGE.items():
        if name == "share_used":  # at its bound, where redrawing tells nothing
            measured.add_value(name, statistic(first.sum(0)), len(counts))
        else:
            measured.add(name, centred_estimate(first, statistic, settings.seed), len(counts))
    total = counts.sum(0)  # (num_quantizers, codebook_size)
    measured.details["rank_frequency"] = np.sort(total[0])[::-1].tolist()
    measured.details["usage_by_codebook"] = [
        {name: float(statistic(row[:size])) for name, statistic in USAGE.items()}
        for row, size in zip(total, system_codebook_sizes(encoded.system, len(total)), strict=True)
    ]
    return measured


def measure_ngrams(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """Perplexity of the first codebook's de-duplicated units under n-gram models of other speakers."""
    measured = Measured()
    groups = encoded.of_clips(encoded.data.groups)
    streams = [run_lengths(codes[:1])[0][0] for codes in encoded.codes]
    for order in range(1, NGRAM_ORDER + 1):
        name = f"ngram_perplexity[{order}]"
        try:
            counts = ngram_bits(streams, encoded.system.codebook_size, order, groups)
        except ValueError as error:
            measured.add(name, None, 0, str(error))
            continue
        estimate = bootstrap_sums(grouped(counts, groups), ngram_perplexity, seed=settings.seed)
        measured.add(name, estimate, len(streams))
    return measured


def measure_robustness(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """
    Unit edit distance of all codebooks together under each perturbation, over clips drawn with the seed; in the
    details, that of each codebook. The chance level is the distance between different clips.
    """
    measured = Measured()
    order = np.random.default_rng(settings.seed).permutation(len(encoded.data.clips))
    drawn = sorted(order[: settings.robustness_clips].tolist())
    # The same for every system: a clip that it cannot encode is missing, not replaced.
    codes_of = {number: codes for number, codes in zip(encoded.numbers, encoded.codes, strict=True) if number in drawn}
    if not codes_of:
        raise ValueError("none of the clips that were drawn could be encoded; raise --robustness-clips")
    perturbations = settings.chosen_perturbations()
    num_quantizers = len(encoded.codes[0])
    with tqdm(total=len(perturbations) * len(codes_of), desc="robustness", leave=False, disable=None) as progress:
        for name, perturbation in perturbations.items():
            edits, by_codebook, groups = [], [], []
            failures: dict[str, list[str]] = {}
            for number, codes in codes_of.items():
                clip = encoded.data.clips[number]
                try:
                    changed = _encode_perturbed(encoded, clip, perturbation, settings.seed)
                except EncodingFailure as failure:
                    failures.setdefault(str(failure), []).append(clip.name)
                else:
                    edits.append(unit_edits(codes, changed))
                    groups.append(encoded.data.groups[number])
                    if num_quantizers > 1:
                        by_codebook.append(
                            [unit_edits(*rows) for rows in zip(codes[:, None], changed[:, None], strict=True)]
                        )
                progress.update()
            score = f"ued[{name}]"
            measured.add(score, _edit_distance(edits, groups, settings.seed), len(edits), "it failed for every clip")
            if failures:
                measured.failures[score] = failures
            measured.details.setdefault("perturbations", {})[name] = perturbation.description
            if by_codebook:
                distances = unit_edit_distance(np.sum(by_codebook, axis=0)).tolist()
                measured.details.setdefault("ued_by_codebook", {})[name] = distances
    if len(codes_of) > 1:
        # Clips of about the same length, so that lengths alone add no edits.
        by_length = sorted(codes_of.values(), key=lambda codes: codes.shape[1])
        others = [unit_edits(*pair) for pair in itertools.pairwise(by_length)]
        measured.add_value("ued[chance]", float(unit_edit_distance(np.sum(others, axis=0))), len(others))
    return measured


def _encode_perturbed(encoded: EncodedClips, clip: Clip, perturbation: Perturbation, seed: int) -> np.ndarray:
    view = f"{perturbation.key} seed {seed}"
    return encoded.encode_view(clip, view, lambda: perturb(clip.load(), perturbation, seed, clip.key, SAMPLING_RATE))


def _edit_distance(edits: Sequence[UnitEdits], groups: Sequence[str], seed: int) -> Estimate | None:
    if not edits:
        return None
    return bootstrap_sums(grouped(np.array(edits), groups), unit_edit_distance, seed=seed)
