# SPDX-License-Identifier: Apache-2.0
"""
Directions of a speech encoder's frames that tell given labels apart, and frames that k-means sees with them appended.

K-means spends its centroids on the largest variance, whatever that stands for. Directions in which a label is told
apart, appended with a weight of their own, make differences in that label as large as the weight says.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speech_tokenizers.processing.timed_labels import TimedLabel


# Most directions of a set of labels, unless a number is asked for.
MOST_DIRECTIONS = 40

# Frames whose products are computed at once.
_FRAMES_AT_ONCE = 65536


@dataclass(frozen=True)
class KeptDirections:
    """
    Args:
        mean (`np.ndarray` of shape `(dim,)`): Mean of the labelled frames, float64.
        projection (`np.ndarray` of shape `(dim, num_directions)`): Directions as columns, float64, the most
            discriminative first. Within a class, the projected frames have variance 1 in each, and no correlation.
        eigenvalues (`np.ndarray` of shape `(num_directions,)`): Variance of the classes' means in each direction, in
            units of the variance within a class.
    """

    mean: np.ndarray
    projection: np.ndarray
    eigenvalues: np.ndarray

    @property
    def num_directions(self) -> int:
        """Number of directions."""
        return self.projection.shape[1]

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Projections `(num_frames, num_directions)` of frames `(num_frames, dim)`."""
        return (frames - self.mean) @ self.projection


def discriminative_directions(
    frames: np.ndarray, labels: np.ndarray, num_directions: int | None = None, shrinkage: float = 1e-3
) -> KeptDirections:
    """
    The directions in which the classes of frames lie farthest apart. (Linear discriminant analysis: the generalised
    eigenvectors of the scatter between classes and the scatter within them; Fukunaga 1990, section 10.2)

    Args:
        frames (`np.ndarray` of shape `(num_frames, dim)`): Frames; they may be memory-mapped and of half precision.
        labels (`np.ndarray` of shape `(num_frames,)`): Class of each frame, a whole number. Frames with a number below
            0 have no label and are left out.
        num_directions (`int`, *optional*): Number of directions. Defaults to one fewer than there are classes, at most
            `dim`, and at most 40.
        shrinkage (`float`, *optional*, defaults to 0.001): Share of each dimension's own variance that is added to the
            scatter within classes, so that directions which the frames hardly determine are not taken for good ones.

    Raises:
        ValueError: If shapes differ, the frames are not finite, there are fewer than two classes or not more frames
            than classes, the classes do not differ at all, or the number of directions is impossible.
    """
    labels = np.asarray(labels)
    if frames.ndim != 2 or labels.shape != frames.shape[:1]:
        raise ValueError(
            "`frames` must have shape (num_frames, dim) and `labels` (num_frames,), but they have"
            f" {tuple(frames.shape)} and {tuple(labels.shape)}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`labels` must be whole numbers, but are of type {labels.dtype}.")
    if not shrinkage >= 0:
        raise ValueError(f"`shrinkage` must not be negative, but is {shrinkage}.")
    rows = np.flatnonzero(labels >= 0)
    classes, numbers = np.unique(labels[rows], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"`labels` must have two classes or more, but have {len(classes)}: there is nothing to tell apart."
        )
    if len(rows) <= len(classes):
        raise ValueError(
            f"There are {len(rows)} labelled frames of {len(classes)} classes; there must be more frames than classes."
        )
    dim = frames.shape[1]
    most = min(len(classes) - 1, dim)
    if num_directions is None:
        num_directions = min(most, MOST_DIRECTIONS)
    if not 1 <= num_directions <= most:
        raise ValueError(
            f"`num_directions` must lie between 1 and {most}, for {len(classes)} classes of frames of dimension {dim},"
            f" but is {num_directions}."
        )

    counts = np.bincount(numbers)
    sums = np.zeros((len(classes), dim))
    for part, block in _blocks(frames, rows):
        if not np.isfinite(block).all():
            raise ValueError("`frames` have NaN or infinity.")
        order = np.argsort(numbers[part], kind="stable")
        found, first = np.unique(numbers[part][order], return_index=True)
        sums[found] += np.add.reduceat(block[order], first)
    means = sums / counts[:, None]
    mean = sums.sum(0) / len(rows)
    if np.abs(means - mean).max() <= 1e-9 * max(np.abs(means).max(), np.finfo(np.float64).tiny):
        raise ValueError("The means of all classes are the same; no direction tells the labels apart.")
    within = np.zeros((dim, dim))
    for part, block in _blocks(frames, rows):
        block -= means[numbers[part]]
        within += block.T @ block
    within /= len(rows) - len(classes)

    variances = np.diag(within)
    # A dimension that never changes within a class would leave the matrix singular.
    floor = 1e-9 * max(float(variances.mean()), float(np.square(means - mean).mean()))
    within = within + np.diag(shrinkage * variances + floor)
    factor = np.linalg.cholesky(within)
    # With frames x = factor @ y, y is white within a class, and the means' main axes are the directions.
    spread = np.linalg.solve(factor, ((means - mean) * np.sqrt(counts / len(rows))[:, None]).T)  # (D, C)
    axes, lengths, _ = np.linalg.svd(spread, full_matrices=False)
    projection = np.linalg.solve(factor.T, axes[:, :num_directions])
    largest = projection[np.abs(projection).argmax(0), np.arange(num_directions)]
    return KeptDirections(mean, projection * np.sign(largest), np.square(lengths[:num_directions]))


def _blocks(frames: np.ndarray, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    # Frames of some rows in double precision, with their places among those rows.
    for first in range(0, len(rows), _FRAMES_AT_ONCE):
        part = slice(first, first + _FRAMES_AT_ONCE)
        yield part, np.asarray(frames[rows[part]], dtype=np.float64)


def framewise_classes(
    labels: Sequence[TimedLabel], centres: np.ndarray, classes: Mapping[str, int], parts: int = 1
) -> np.ndarray:
    """
    The class of each frame: its label, and in which part of the label's time it lies.

    Args:
        labels (sequence of [`TimedLabel`]): Labels of one recording. Of labels that overlap, the later one counts.
        centres (`np.ndarray` of shape `(num_frames,)`): Middles of the frames, in seconds.
        classes (mapping of `str` to `int`): Number of each label. Other labels are left out.
        parts (`int`, *optional*, defaults to 1): Parts of equal length of each label's time, with a class each. What
            is a contour, such as a tone, is told by its course and wants several.

    Returns:
        `np.ndarray` of shape `(num_frames,)`: `parts` times the label's number, plus the number of the part; -1 where
        there is no label.

    Raises:
        ValueError: If `parts` is below 1, or a label ends before it begins.
    """
    if parts < 1:
        raise ValueError(f"`parts` must be at least 1, but is {parts}.")
    centres = np.asarray(centres, dtype=np.float64)
    numbers = np.full(len(centres), -1)
    for item in labels:
        if item.end < item.start:
            raise ValueError(f"The label {item.label!r} ends at {item.end:g} s, before it begins at {item.start:g} s.")
        if item.label in classes:
            inside = (centres >= item.start) & (centres < item.end)
            elapsed = (centres[inside] - item.start) / (item.end - item.start) if inside.any() else centres[inside]
            part = np.minimum((elapsed * parts).astype(np.int64), parts - 1)
            numbers[inside] = classes[item.label] * parts + part
    return numbers


@dataclass(frozen=True)
class FrameWeighting:
    """
    An affine map from frames to the frames that k-means sees: the frames themselves, centred and scaled, and beside
    them their projections on directions that are kept.

    Args:
        base_scale (`float`): Factor of the frames themselves.
        base_offset (`np.ndarray` of shape `(dim,)`): What is added to them then.
        matrix (`np.ndarray` of shape `(dim, kept_dims)`): Columns on which frames are projected.
        offset (`np.ndarray` of shape `(kept_dims,)`): What is added to the projections.
    """

    base_scale: float
    base_offset: np.ndarray
    matrix: np.ndarray
    offset: np.ndarray

    @property
    def kept_dims(self) -> int:
        """Dimensions that are appended."""
        return self.matrix.shape[1]

    def kept(self, frames: np.ndarray) -> np.ndarray:
        """What is appended to frames `(num_frames, dim)`, `(num_frames, kept_dims)`."""
        return frames @ self.matrix + self.offset

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """The weighted frames `(num_frames, dim + kept_dims)` of frames `(num_frames, dim)`."""
        return np.concatenate([frames * self.base_scale + self.base_offset, self.kept(frames)], axis=1)

    def compact(self, frames: np.ndarray) -> np.ndarray:
        """
        The weighted frames, moved and turned so that they need as few dimensions as the frames have: `(num_frames,
        dim)`. Their differences have the lengths and angles that those of the weighted frames have, so that k-means
        finds the same clusters. Of all ways to turn them, this one leaves the frames nearest to where they were: each
        dimension remains that of the frames, which matters to what scales each by itself.
        """
        squared = self.base_scale**2 * np.eye(len(self.matrix)) + self.matrix @ self.matrix.T
        lengths, axes = np.linalg.eigh(squared)
        return frames @ (axes * np.sqrt(np.maximum(lengths, 0)) @ axes.T).astype(frames.dtype)


def fit_weighting(
    frames: np.ndarray, base_weight: float, kept: Sequence[tuple[KeptDirections, float]]
) -> FrameWeighting:
    """
    Fit a [`FrameWeighting`]. The frames themselves, and the projections of each set of labels, are blocks. Each is
    centred and scaled so that its squared norm is 1 in the mean over the frames, and multiplied by its weight.

    Args:
        frames (`np.ndarray` of shape `(num_frames, dim)`): Frames; they may be memory-mapped and of half precision.
        base_weight (`float`): Weight of the frames themselves.
        kept (sequence of ([`KeptDirections`], `float`)): Directions of each set of labels, and their weight.

    Raises:
        ValueError: If there are no frames or no directions, dimensions differ, a weight is negative or not finite, all
            weights are 0, or the frames are not finite or all the same.
    """
    if frames.ndim != 2 or len(frames) == 0:
        raise ValueError(f"`frames` must have shape (num_frames, dim), but have {tuple(frames.shape)}.")
    if not kept:
        raise ValueError("`kept` must have the directions of one set of labels or more, but is empty.")
    weights = [base_weight, *(weight for _, weight in kept)]
    if not all(np.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(f"Weights must not be negative, and not all 0, but are {weights}.")
    dim = frames.shape[1]
    for directions, _ in kept:
        if len(directions.projection) != dim:
            raise ValueError(
                f"The directions are of frames of dimension {len(directions.projection)}, but `frames` have {dim}."
            )

    everything = np.arange(len(frames))
    mean = sum(block.sum(0) for _, block in _blocks(frames, everything)) / len(frames)
    if not np.isfinite(mean).all():
        raise ValueError("`frames` have NaN or infinity.")
    squares = np.zeros(1 + len(kept))
    for _, block in _blocks(frames, everything):
        block -= mean
        squares[0] += np.square(block).sum()
        squares[1:] += [np.square(block @ directions.projection).sum() for directions, _ in kept]
    norms = np.sqrt(squares / len(frames))
    if not (norms > 0).all():
        raise ValueError("All frames are the same; there is nothing to weigh.")
    scales = np.array(weights) / norms
    matrix = np.concatenate(
        [scale * directions.projection for scale, (directions, _) in zip(scales[1:], kept, strict=True)], axis=1
    )
    return FrameWeighting(float(scales[0]), -scales[0] * mean, matrix, -mean @ matrix)
