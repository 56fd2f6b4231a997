# SPDX-License-Identifier: Apache-2.0
"""The arms of a study of tone in one fold: what its training syllables teach, and what its codes stand for."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from speech_tokenizers.evaluation.understanding.probes import Block, pooled_block
from speech_tokenizers.evaluation.units.code_statistics import entropy
from speech_tokenizers.training.studies.tone_study.arguments import ArmArguments, StreamArguments, ToneStudyArguments
from speech_tokenizers.training.studies.tone_study.folds import Fold
from speech_tokenizers.training.studies.tone_study.frames import ClipCodes, ClipFrames
from speech_tokenizers.training.units.kept_directions import discriminative_directions, fit_weighting
from speech_tokenizers.training.units.kmeans import assign, fit_kmeans


# Points of the contour that a probe of F0 sees, evenly over the voiced frames.
_PITCH_POINTS = 6
# Most frames from which the decoder of F0 learns, and its penalty relative to the mean variance.
_DECODER_FRAMES, _DECODER_PENALTY = 20000, 1e-3
_BATCH_SIZE = 10000


@dataclass(frozen=True)
class Coded:
    """
    What an arm makes of the syllables of a fold.

    Args:
        blocks (list of [`Block`]): What the pooled probe sees: a block for each stream.
        entries (`np.ndarray` of shape `(num_frames, dim)`): What the codes of all streams stand for, beside each
            other.
        codes (`np.ndarray` of shape `(num_codes, num_frames)`, *optional*): Codes of all streams; `None` of continuous
            frames.
        sizes (list of `int`): Size of each codebook.
        strides (list of `int`): Frames that a code of each lasts. Codes stand at each of these frames.
    """

    blocks: list[Block]
    entries: np.ndarray
    codes: np.ndarray | None
    sizes: list[int]
    strides: list[int]


class FoldFrames:
    """
    The frames of a fold's syllables, reduced to the principal components of those that are learnt from.

    Args:
        args ([`ToneStudyArguments`]): The study.
        frames ([`ClipFrames`]): Frames of all syllables.
        fold ([`Fold`]): Fold, whose numbers are those of `frames.syllables`.
        pca_dims (`int`, *optional*): Components that are kept. Defaults to all dimensions.
    """

    def __init__(self, args: ToneStudyArguments, frames: ClipFrames, fold: Fold, pca_dims: int | None):
        self.args = args
        self.numbers = np.sort(np.concatenate([fold.learnt, fold.test]))
        self.syllables = [frames.syllables[number] for number in self.numbers]
        self.splits = splits_of(fold, self.numbers)
        lengths = (frames.ends - frames.starts)[self.numbers]
        self.cuts = np.cumsum(lengths)[:-1]
        rows = frames.of_clips(self.numbers)
        self.values, self.pitch = frames.values[rows], frames.pitch[rows]
        self.parts = frames.clip_parts(self.numbers, args.num_segments)
        self.is_learnt = np.repeat(np.array([split != "test" for split in self.splits]), lengths)
        self.lengths = lengths
        self.frame_rate = frames.frame_rate
        self._seen: tuple[Any, np.ndarray] | None = None
        if pca_dims is not None and pca_dims < self.values.shape[1]:
            known = self.values[self.is_learnt].astype(np.float64)
            mean = known.mean(0)
            _, axes = np.linalg.eigh(np.cov(known, rowvar=False))
            self.values = ((self.values - mean) @ axes[:, ::-1][:, :pca_dims]).astype(np.float32)

    def by_clip(self, frames: np.ndarray) -> list[np.ndarray]:
        """Rows of each syllable."""
        return np.split(frames, self.cuts)

    def continuous(self) -> Coded:
        """The frames themselves."""
        return Coded([self._pooled(self.values)], self.values, None, [], [])

    def coded(self, arm: ArmArguments, seed: int) -> Coded:
        """
        Codes of an arm. Codebooks, directions and bins are learnt from the frames of the training syllables.

        Args:
            arm ([`ArmArguments`]): The arm.
            seed (`int`): Seed of the draw of frames and of k-means.
        """
        blocks, entries, codes, sizes, strides = [], [], [], [], []
        for stream in arm.streams.values():
            if stream.source == "f0":
                numbers, values = self._pitch_bins(stream)
                blocks.append(pitch_block(self.by_clip(values)))
                entries.append(np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=1).astype(np.float32))
                codes.append(numbers[None])
            else:
                of_stream, stands_for = self._clustered(stream, seed)
                blocks.append(self._pooled(stands_for))
                entries.append(stands_for)
                codes.append(of_stream)
            sizes += [stream.num_units] * stream.num_stages
            strides += [stream.stride] * stream.num_stages
        return Coded(blocks, np.concatenate(entries, axis=1), np.concatenate(codes), sizes, strides)

    def _pooled(self, values: np.ndarray) -> Block:
        return pooled_block(self.by_clip(values), self.args.num_segments)

    def _pitch_bins(self, stream: StreamArguments) -> tuple[np.ndarray, np.ndarray]:
        # Codes, 0 where unvoiced, and the medians of the bins, NaN where unvoiced.
        num_units, pitch = stream.num_units, self._averaged_pitch(stream.stride)
        is_voiced = ~np.isnan(pitch)
        known = np.sort(pitch[is_voiced & self.is_learnt])
        if len(known) < num_units:
            raise ValueError(
                f"the training syllables have {len(known)} voiced frames, too few for {num_units - 1} bins of F0."
            )
        edges = np.quantile(known, np.arange(1, num_units - 1) / (num_units - 1))
        bins = np.searchsorted(edges, pitch[is_voiced], side="right")
        medians = np.array(
            [np.median(part) if len(part) else np.nan for part in np.split(known, np.searchsorted(known, edges))]
        )
        medians = np.where(np.isnan(medians), np.concatenate([edges, edges[-1:]]), medians)
        numbers = np.zeros(len(pitch), np.int64)
        numbers[is_voiced] = bins + 1
        values = np.full(len(pitch), np.nan)
        values[is_voiced] = medians[bins]
        return numbers, values

    def _averaged_pitch(self, stride: int) -> np.ndarray:
        # Of the voiced frames of each group; NaN where fewer than half are.
        groups, sizes = self._groups(stride)
        is_voiced = ~np.isnan(self.pitch)
        voiced = np.bincount(groups[is_voiced], minlength=len(sizes))
        total = np.bincount(groups[is_voiced], self.pitch[is_voiced], minlength=len(sizes))
        with np.errstate(invalid="ignore"):
            return np.where(2 * voiced >= sizes, total / voiced, np.nan)[groups]

    def _groups(self, stride: int) -> tuple[np.ndarray, np.ndarray]:
        # The group of each frame, and their sizes: so many frames of a syllable. In running speech, syllables begin
        # anywhere within a group; so each begins where the hash of its name says.
        phases = np.array([zlib.crc32(one.name.encode()) % stride for one in self.syllables])
        counts = -(-(self.lengths + phases) // stride)
        within = np.arange(self.lengths.sum()) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        groups = np.repeat(np.cumsum(counts) - counts, self.lengths)
        groups += (within + np.repeat(phases, self.lengths)) // stride
        return groups, np.bincount(groups)

    def _clustered(self, stream: StreamArguments, seed: int) -> tuple[np.ndarray, np.ndarray]:
        values = self._weighted(stream, seed)
        generator = np.random.default_rng([seed, self.args.fit_frames])
        learnt = np.flatnonzero(self.is_learnt)
        drawn = np.sort(generator.permutation(learnt)[: self.args.fit_frames])
        residual, stands_for, codes = values, np.zeros_like(values), []
        for stage in range(stream.num_stages):
            fitted = fit_kmeans(
                residual[drawn],
                stream.num_units,
                seed=seed + 1000 * stage,
                batch_size=min(_BATCH_SIZE, len(drawn)),
                init_size=_BATCH_SIZE,
                max_epochs=self.args.fit_epochs,
                num_init=1,
                show_progress=False,
            ).centroids
            numbers = assign(torch.from_numpy(residual), fitted).numpy()
            found = fitted.numpy()[numbers]
            codes.append(numbers)
            stands_for, residual = stands_for + found, residual - found
        return np.stack(codes), stands_for

    def _weighted(self, stream: StreamArguments, seed: int) -> np.ndarray:
        # What k-means sees. The last is remembered, since seeds and sizes do not matter to it.
        dealt_by = seed if stream.deals_labels else None
        key = (tuple(stream.told.items()), stream.base, stream.stride, dealt_by)
        if self._seen is None or self._seen[0] != key:
            values = self.values
            if stream.told:
                known = values[self.is_learnt]
                kept = [
                    (discriminative_directions(known, self._classes(label, stream.deals_labels, seed)), weight)
                    for label, weight in stream.told.items()
                ]
                weighting = fit_weighting(known, stream.base, kept)
                values = (weighting.compact(values) if stream.base else weighting.kept(values)).astype(np.float32)
            if stream.stride > 1:
                groups, sizes = self._groups(stream.stride)
                first = np.cumsum(sizes) - sizes
                values = (np.add.reduceat(values, first) / sizes[:, None]).astype(np.float32)[groups]
            self._seen = (key, values)
        return self._seen[1]

    def _classes(self, label: str, deals_labels: bool, seed: int) -> np.ndarray:
        # Of the frames that are learnt from: the label of the syllable and the part of it.
        answers = np.array([syllable.labels[label] for syllable in self.syllables], dtype=object)
        is_known = np.array([split != "test" for split in self.splits])
        if deals_labels:
            places = np.flatnonzero(is_known)
            answers[places] = answers[np.random.default_rng(seed).permutation(places)]
        _, numbers = np.unique(answers.astype(str), return_inverse=True)
        return (np.repeat(numbers, self.lengths) * self.args.num_segments + self.parts)[self.is_learnt]

    def decoded_pitch(self, coded: Coded) -> np.ndarray:
        """
        F0 as a linear map of what the codes stand for tells it, `(num_frames,)`, by the mean and deviation of the
        speaker. The map is learnt from the voiced frames of the training syllables.
        """
        voiced = np.flatnonzero(self.is_learnt & ~np.isnan(self.pitch))
        learnt = voiced[:: max(1, len(voiced) // _DECODER_FRAMES)]
        known, wanted = coded.entries[learnt].astype(np.float64), self.pitch[learnt]
        mean, offset = known.mean(0), wanted.mean()
        known = known - mean
        products = known.T @ known
        products += np.eye(len(products)) * _DECODER_PENALTY * max(np.trace(products) / len(products), 1e-12)
        weights = np.linalg.solve(products, known.T @ (wanted - offset))
        return (coded.entries - mean) @ weights + offset


def splits_of(fold: Fold, numbers: np.ndarray) -> list[str]:
    """The split of each of some syllables."""
    is_dev, is_test = np.isin(numbers, fold.dev), np.isin(numbers, fold.test)
    return ["test" if tested else "dev" if chosen else "train" for tested, chosen in zip(is_test, is_dev, strict=True)]


def pitch_block(pitch: Sequence[np.ndarray]) -> Block:
    """
    Contours of F0 for a probe: six points over the voiced frames of each syllable, and the share of these.

    Args:
        pitch (sequence of `np.ndarray` of shape `(num_frames,)`): F0 of each syllable by its speaker, NaN where
            unvoiced. Of a syllable without a voiced frame, all is 0.
    """
    rows = np.zeros((len(pitch), _PITCH_POINTS + 1))
    for row, values in zip(rows, pitch, strict=True):
        voiced = values[~np.isnan(values)]
        if len(voiced):
            places = np.linspace(0, len(voiced) - 1, _PITCH_POINTS)
            row[:-1] = np.interp(places, np.arange(len(voiced)), voiced)
            row[-1] = len(voiced) / len(values)
    return Block(rows)


def system_coded(codes: ClipCodes, numbers: np.ndarray, num_quantizers: int, num_segments: int) -> Coded:
    """
    What a model that was trained elsewhere makes of some syllables.

    Args:
        codes ([`ClipCodes`]): Its codes of all syllables.
        numbers (`np.ndarray` of `int`): Numbers of the syllables.
        num_quantizers (`int`): First codebooks to use.
        num_segments (`int`): Parts of a syllable whose means the probe sees.
    """
    vectors = codes.vectors[:num_quantizers]
    chosen = [codes.codes[number][:num_quantizers] for number in numbers]
    entries = []
    for clip in chosen:
        found = [table[row] for table, row in zip(vectors, clip, strict=True)]
        joined = np.sum(found, axis=0) if codes.adds_up else np.concatenate(found, axis=1)
        entries.append(joined.astype(np.float32))
    block = pooled_block(entries, num_segments)
    sizes, strides = codes.sizes[:num_quantizers], codes.strides[:num_quantizers]
    return Coded([block], np.concatenate(entries), np.concatenate(chosen, axis=1), sizes, strides)


def rate_facts(coded: Coded, frame_rate: float, tested: np.ndarray) -> dict[str, Any]:
    """
    Bit rates of codes: `nominal`, of equally frequent codes, and `entropy`, of each stream's codes as often as they
    occur in the frames that are tested; both in bit/s. Empty for continuous frames. A code of a slow stream counts for
    all frames that it lasts, as in running speech; the ends of syllables cut some short.
    """
    if coded.codes is None:
        return {}
    used = [
        float(entropy(np.bincount(row[tested], minlength=size))) / stride
        for row, size, stride in zip(coded.codes, coded.sizes, coded.strides, strict=True)
    ]
    nominal = sum(math.log2(size) / stride for size, stride in zip(coded.sizes, coded.strides, strict=True))
    return {"nominal": nominal * frame_rate, "entropy": sum(used) * frame_rate}


__all__ = ["Coded", "FoldFrames", "pitch_block", "rate_facts", "splits_of", "system_coded"]
