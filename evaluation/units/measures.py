# SPDX-License-Identifier: Apache-2.0
"""What is measured of units over a set of clips, from material that is computed once: codes, features and labels."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from speech_tokenizers.evaluation.bootstrap import Estimate, Statistic, bootstrap_sums, ratio
from speech_tokenizers.evaluation.clip_results import ResultsFile
from speech_tokenizers.evaluation.clips import SAMPLING_RATE, Clip
from speech_tokenizers.evaluation.codec_systems import EncodingSystem, Stopwatch
from speech_tokenizers.evaluation.peers import resample
from speech_tokenizers.evaluation.reconstruction.frame_probe import IGNORED_LABELS, FrameLabel, label_frames
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
from speech_tokenizers.evaluation.units.perturbations import Perturbation, default_perturbations, perturb
from speech_tokenizers.evaluation.units.robustness import UnitEdits, unit_edit_distance, unit_edits


# Raise it when a measure changes: earlier results are then computed anew.
UNITS_VERSION = 1
NGRAM_ORDER = 3
# Units that occur less often on average agree with any labels.
MIN_FRAMES_A_SYMBOL = 10
CLEAN = "clean"

Labels = Mapping[str, Sequence[FrameLabel]]


@dataclasses.dataclass(frozen=True)
class SpokenClips:
    r"""
    Recordings, who speaks in them and what.

    Args:
        clips (`list` of [`Clip`]): Recordings of different names.
        speakers, genders (`list` of `str` or `None`): Of each, where known.
        phones, characters (mapping of `str` to sequence of [`FrameLabel`], *optional*): Of the recordings, by their
            names.
    """

    clips: list[Clip]
    speakers: list[str | None]
    genders: list[str | None]
    phones: Labels | None = None
    characters: Labels | None = None

    @property
    def groups(self) -> list[str]:
        """What the bootstrap redraws as one: a speaker, or a clip whose speaker is unknown."""
        return [speaker or clip.name for clip, speaker in zip(self.clips, self.speakers, strict=True)]

    @property
    def key(self) -> str:
        """Hash of all of it."""
        labels = [
            None if of_clips is None else [of_clips.get(clip.name) for clip in self.clips]
            for of_clips in (self.phones, self.characters)
        ]
        content = json.dumps([[clip.key for clip in self.clips], self.speakers, self.genders, labels])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class UnitSettings:
    r"""
    How much is measured.

    Args:
        seed (`int`): Of whatever is drawn.
        robustness_clips (`int`): Clips that are perturbed.
        perturbations (sequence of `str`, *optional*): How; names of [`~perturbations.default_perturbations`]. Defaults
            to all.
        noise_folder (`str`, *optional*): Recordings of noise. Defaults to generated noise.
        abx_context (`"triphone"` or `"any"`), abx_tokens (`int`): See [`~abx.abx`].
        probe_frames (`int`): Labelled frames of a clip that the phone probe learns from or is tested on.
        recognizer (`str`, *optional*): Folder or Hub id of the recogniser that hears resynthesized units.
        voice (`str`, *optional*): In which they are spoken; see [`~unit_resynthesis.resynthesize`].
        resynthesis_clips (`int`): Clips that are resynthesized.
    """

    seed: int = 0
    robustness_clips: int = 60
    perturbations: Sequence[str] | None = None
    noise_folder: str | None = None
    abx_context: str = "any"
    abx_tokens: int = 5
    probe_frames: int = 20
    recognizer: str | None = None
    voice: str | None = None
    resynthesis_clips: int = 60

    def chosen_perturbations(self) -> dict[str, Perturbation]:
        r"""
        The perturbations by their names.

        Raises:
            ValueError: If there is no such perturbation, or no recording of noise.
        """
        known = default_perturbations(None if self.noise_folder is None else Path(self.noise_folder))
        chosen = known if self.perturbations is None else self.perturbations
        for name in chosen:
            if name not in known:
                raise ValueError(f"`perturbations` must be among {', '.join(known)}, but got {name!r}.")
        return {name: known[name] for name in chosen}

    @property
    def perturbation_keys(self) -> dict[str, str]:
        """What tells the perturbations from others, noise in a folder by its content."""
        return {name: perturbation.key for name, perturbation in self.chosen_perturbations().items()}


@dataclasses.dataclass
class Measured:
    r"""
    What one measure found.

    Args:
        scores (`dict` of `str` to `dict`): `value`, `low` and `high` (`None` where there is no interval) and
            `num_clips` of each score; `None` where it failed.
        failures (`dict` of `str` to `dict` of `str` to `list` of `str`): Of each score the reasons, each with the
            names of the clips that failed for it; no names where it failed as a whole.
        details (`dict`): What plots and tables need besides.
    """

    scores: dict[str, dict[str, Any] | None] = dataclasses.field(default_factory=dict)
    failures: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, name: str, estimate: Estimate | None, num_clips: int, reason: str = "it has no value") -> None:
        r"""
        Args:
            name (`str`): Of the score.
            estimate ([`Estimate`], *optional*): The score; without one it failed for `reason`.
            num_clips (`int`): Clips that it is taken over.
        """
        if estimate is None or math.isnan(estimate.value):
            self.scores[name] = None
            self.failures.setdefault(name, {})[reason] = []
        else:
            self.scores[name] = {**dataclasses.asdict(estimate), "num_clips": num_clips}

    def add_value(self, name: str, value: float, num_clips: int) -> None:
        """A score without interval."""
        self.scores[name] = {"value": float(value), "low": None, "high": None, "num_clips": num_clips}


class EncodingFailure(RuntimeError):
    """A clip could not be encoded; the message is one line."""


class EncodedClips:
    r"""
    The codes of clips by one system, kept in its results file, and their features, kept in memory.

    A clip that cannot be encoded is left out and named in `failures`.

    Args:
        system ([`EncodingSystem`]): What encodes.
        data ([`SpokenClips`]): The clips.
        results ([`ResultsFile`]): Of the system; what it holds is not computed again.
        on_progress (`Callable`, *optional*): Called after each clip.
    """

    def __init__(
        self,
        system: EncodingSystem,
        data: SpokenClips,
        results: ResultsFile,
        on_progress: Callable[[], object] = lambda: None,
    ):
        self.system, self.data, self.results, self.on_progress = system, data, results, on_progress
        self.failures: dict[str, list[str]] = {}
        self.codes: list[np.ndarray] = []  # (num_quantizers, num_frames) of each clip that could be encoded
        self.numbers: list[int] = []  # which of the data's clips these are
        self._features: list[np.ndarray] | None = None

    def encode(self, with_features: bool) -> None:
        r"""
        Encode every clip.

        Args:
            with_features (`bool`): Also find features, which only the model gives.
        """
        self.failures, self.codes, self.numbers = {}, [], []
        features = []
        for number, clip in enumerate(self.data.clips):
            try:
                if with_features:
                    codes, frames = self._with_features(clip)
                    features.append(frames)
                else:
                    codes = self.encode_view(clip, CLEAN, clip.load)
            except EncodingFailure as failure:
                self.failures.setdefault(str(failure), []).append(clip.name)
            else:
                self.codes.append(codes)
                self.numbers.append(number)
            self.on_progress()
        if not self.codes:
            reason, names = next(iter(self.failures.items()))
            raise EncodingFailure(f"{self.system.name} can encode no clip; {names[0]}: {reason}")
        if with_features and all(frames is not None for frames in features):
            self._features = features

    def encode_view(
        self,
        clip: Clip,
        view: str,
        load: Callable[[], np.ndarray],
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        r"""
        Codes `(num_quantizers, num_frames)` of a clip as it is, as it was changed, or as it is encoded otherwise.

        Args:
            clip ([`Clip`]): The clip.
            view (`str`): Names the change, with its settings.
            load (`Callable`): Gives its waveform `(num_samples,)` at 16 kHz; called where the codes are not known.
            encode (`Callable`, *optional*): From a waveform at the system's rate to codes. Defaults to the system's.

        Raises:
            EncodingFailure: If it cannot be encoded.
        """
        record = self.results.records.get((self.system.key, f"{clip.key} {view}"))
        if record is None:
            encode = self.system.encode if encode is None else encode
            return self._keep(clip, view, lambda: encode(self._resampled(load())))
        if "failure" in record:
            raise EncodingFailure(record["failure"])
        return np.array(record["audio_codes"], np.int64)

    def _with_features(self, clip: Clip) -> tuple[np.ndarray, np.ndarray | None]:
        features = None

        def encode() -> np.ndarray:
            nonlocal features
            encoded = self.system.encode_frames(self._resampled(clip.load()))
            features = encoded.features
            return encoded.audio_codes

        return self._keep(clip, CLEAN, encode), features

    def _resampled(self, audio: np.ndarray) -> np.ndarray:
        return resample(audio, SAMPLING_RATE, self.system.sampling_rate)

    def _keep(self, clip: Clip, view: str, encode: Callable[[], np.ndarray]) -> np.ndarray:
        record = {
            "version": UNITS_VERSION,
            "system_key": self.system.key,
            "clip_key": f"{clip.key} {view}",
            "clip": clip.name,
        }
        try:
            with Stopwatch() as watch:
                codes = encode()
            if not codes.shape[1]:
                raise ValueError("there is no frame")
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self.results.append({**record, "failure": reason})
            raise EncodingFailure(reason) from error
        if (self.system.key, record["clip_key"]) not in self.results.records:
            self.results.append({**record, "audio_codes": codes.tolist(), "seconds": watch.seconds})
        return codes

    @property
    def features(self) -> list[np.ndarray]:
        r"""
        What was quantized of each clip in `codes`, `(num_frames, dimension)`.

        Raises:
            ValueError: If the model does not tell.
        """
        if self._features is None:
            raise ValueError("the model does not tell what it quantizes")
        return self._features

    @property
    def seconds(self) -> float:
        """What encoding the clips in `codes` took when it was done."""
        records = [self.results.records[self.system.key, f"{clip.key} {CLEAN}"] for clip in self.clips]
        return sum(record["seconds"] for record in records)

    @property
    def clips(self) -> list[Clip]:
        """The clips in `codes`."""
        return [self.data.clips[number] for number in self.numbers]

    def of_clips(self, values: Sequence[Any]) -> list[Any]:
        """The entries of the clips in `codes`, of a sequence with one for each of the data's clips."""
        return [values[number] for number in self.numbers]

    def symbols(self) -> tuple[list[np.ndarray], np.ndarray]:
        r"""
        Each frame's codes as one number `(num_frames,)`, and the entries that the numbers stand for, as
        [`~EncodingSystem.dequantize`] gives them, `(num_symbols, dimension)`.
        """
        distinct = np.unique(np.concatenate(self.codes, axis=1), axis=1)
        return joint_symbols(self.codes), self.system.dequantize(distinct)

    def labels(self, labels: Labels) -> list[list[FrameLabel]]:
        r"""
        Labels of the clips in `codes`, moved so that frame k is at (k + 0.5) / frame rate: where the labels' readers
        expect it. An encoder's convolutions hear a frame's samples later or earlier than that.
        """
        later = 0.5 / self.system.frame_rate - float(self.system.frame_centres(1)[0])
        return [
            [FrameLabel(item.label, item.start + later, item.end + later) for item in labels.get(clip.name, ())]
            for clip in self.clips
        ]

    def frame_labels(self, labels: Labels) -> tuple[list[np.ndarray], list[str]]:
        r"""The label of each frame `(num_frames,)` as a number, -1 for none, and what the numbers stand for."""
        names = sorted({item.label for spans in labels.values() for item in spans} - set(IGNORED_LABELS))
        classes = {name: number for number, name in enumerate(names)}
        frames = [
            label_frames(spans, codes.shape[1], self.system.frame_rate, classes)
            for spans, codes in zip(self.labels(labels), self.codes, strict=True)
        ]
        return frames, names


def without_stress(labels: Labels) -> dict[str, list[FrameLabel]]:
    r"""Labels without the stress digits of ARPAbet vowels, as is usual for PNMI: `IH0` and `IH1` are one phone."""
    return {
        name: [
            FrameLabel(
                item.label[:2] if re.fullmatch("[A-Z]{2}[0-2]", item.label) else item.label, item.start, item.end
            )
            for item in spans
        ]
        for name, spans in labels.items()
    }


def grouped(counts: np.ndarray, groups: Sequence[str] | np.ndarray) -> np.ndarray:
    r"""The rows of each group, such as a speaker's clips, added up."""
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((numbers.max() + 1, *counts.shape[1:]))
    np.add.at(sums, numbers, counts)
    return sums


def centred_estimate(counts: np.ndarray, statistic: Statistic, seed: int, num_resamples: int = 500) -> Estimate:
    r"""
    A statistic of summed counts that falls where some are drawn twice and others not, such as an entropy.

    The percentile interval is moved to where the mean of the redrawn values is the value, as that of
    [`~unit_agreement.JointCounts`].

    Args:
        counts (`np.ndarray` of shape `(num_groups, num_counts)`): What each clip or group adds to the sums.
        statistic (`Callable`): From the sums to the value.
        seed (`int`), num_resamples (`int`, *optional*, defaults to 500): Of the redrawing.
    """
    num_groups, value = len(counts), float(statistic(counts.sum(0)))
    generator = np.random.default_rng(seed)
    times_drawn = generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), num_resamples)
    values = statistic(times_drawn @ counts)
    low, high = value - values.mean() + np.percentile(values, [2.5, 97.5])
    return Estimate(value, float(low), float(high), num_groups)


def measure_agreement(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    r"""PNMI and purities of the first codebook, of each codebook, and of all together, with what chance reaches."""
    measured = Measured()
    names = {"mutual_information": "pnmi", "label_purity": "phone_purity", "unit_purity": "cluster_purity"}
    _agree(encoded, settings, encoded.data.phones, names, measured)
    return measured


def measure_characters(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    r"""As [`measure_agreement`], with characters."""
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
    r"""ABX error within and across speakers, by angles between the units' entries and between the features."""
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
    r"""Bit rates of all codebooks together, in bit/s."""
    measured = Measured()
    system, num_clips = encoded.system, len(encoded.codes)
    rates = bit_rates(encoded.codes, system.codebook_size, system.frame_rate)
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
    r"""How the first codebook is used; in the details, how each is."""
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
        {name: float(statistic(row)) for name, statistic in USAGE.items()} for row in total
    ]
    return measured


def measure_ngrams(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    r"""Perplexity of the first codebook's de-duplicated units under n-gram models of other speakers."""
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
    r"""
    Unit edit distance of all codebooks together under each perturbation, over clips drawn by the seed; in the details,
    of each codebook. Chance: between clips that are not the same.
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
