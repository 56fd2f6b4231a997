# SPDX-License-Identifier: Apache-2.0
"""
Probes of whole clips: what a linear classifier reads from a clip's features or units, exactly and in seconds.

A probe is ridge regression to one column for each label. It has a closed form, so that there is nothing to tune but
the penalty, which is chosen on the development clips; the weights are then fitted on training and development clips
together, unless training is to have few. Continuous features are averaged over equal parts of the clip, units are
counted, and both are given to the same classifier. Whoever gives the features that the units stand for (centroids) to
[`pooled_block`] measures what the quantisation costs; the rest of the difference is that of the input.

A probe returns answers, which [`~evaluation.understanding.metrics`] scores. The controls tell what a probe reaches
without the audio: labels that are shuffled, the audio of another clip, or none.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from speech_tokenizers.processing.task_manifests import SPLITS


# A study keeps what probes of one version found. Raise it with every change of what a probe, of clips or of sequences,
# answers.
PROBES_VERSION = 2
# Penalties relative to the mean eigenvalue of the clips' inner products, which is 1.
PENALTIES = tuple(float(10.0 ** (exponent / 2)) for exponent in range(-8, 7))


@dataclasses.dataclass(frozen=True)
class Block:
    """
    What a probe sees of each clip.

    Args:
        values (`np.ndarray` of shape `(num_clips, num_columns)`): One row for each clip.
        by_column (`bool`): Whether each column is scaled to unit spread by itself. Otherwise one scale serves all
            columns, so that rare units are not blown up.
    """

    values: np.ndarray
    by_column: bool = True

    def standardized(self, learnt_from: np.ndarray) -> np.ndarray:
        """
        The values less their means, scaled so that the rows have squares that sum to 1 on average.

        Means and scales are those of the clips that are learnt from. A column that is constant among these is left
        out, as zeros.

        Args:
            learnt_from (`np.ndarray` of shape `(num_learnt,)`): Numbers of the clips that are learnt from.
        """
        values = np.asarray(self.values, np.float64)
        known = values[learnt_from]
        spread = known.std(0)
        varies = spread > 1e-9 * np.abs(known).max(0, initial=0.0)
        scale = np.where(varies, spread, 1.0) if self.by_column else np.ones_like(spread)
        values = np.where(varies, (values - known.mean(0)) / scale, 0.0)
        size = np.sqrt((values[learnt_from] ** 2).sum(1).mean())
        return values / size if size > 0 else values


@dataclasses.dataclass(frozen=True)
class ProbeAnswers:
    """
    What a probe says.

    Args:
        answers (`list` of `str`): Answers to the test clips, in their order.
        setting (`float`): What was chosen on the development clips: the penalty, or the number of passes.
        dev_value (`float`): What the probe reached there, in percent: accuracy, or the phone error rate.
        losses (`list` of `float`): Mean training loss of each pass in nats a target symbol, where a probe learns step
            by step; else empty.
        num_too_short (`int`): Training clips that have fewer frames than their targets need. Nothing is learnt from
            these.
    """

    answers: list[str]
    setting: float
    dev_value: float
    losses: list[float] = dataclasses.field(default_factory=list)
    num_too_short: int = 0


def split_numbers(splits: Sequence[str]) -> dict[str, np.ndarray]:
    """
    Numbers of the clips of each split.

    Args:
        splits (sequence of `str`): Split of each clip: `train`, `dev` or `test`.

    Raises:
        ValueError: If there is another split, or a split without clips.
    """
    strange = set(splits) - {*SPLITS}
    if strange:
        raise ValueError(f"Splits must be train, dev and test, but there is {sorted(strange)[0]!r}.")
    numbers = {name: np.flatnonzero(np.asarray(splits, dtype=object) == name) for name in SPLITS}
    for name, found in numbers.items():
        if not len(found):
            raise ValueError(f"The split {name} has no clip.")
    return numbers


def check_codes(units: np.ndarray, codebook_size: int, clip: int) -> None:
    """
    Raises `ValueError` if codes cannot be those of a clip.

    Args:
        units (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codes.
        codebook_size (`int`): Number of units in a codebook.
        clip (`int`): Number of the clip, for the message.
    """
    if units.ndim != 2:
        raise ValueError(f"Codes must be of shape (num_quantizers, num_frames), but those of clip {clip} are not.")
    if units.size and not 0 <= units.min() <= units.max() < codebook_size:
        raise ValueError(
            f"Codes must lie in 0 to {codebook_size - 1}, but those of clip {clip} lie in {units.min()} to "
            f"{units.max()}."
        )


def checked_splits(
    splits: Sequence[str], targets: Sequence[str], *tables: Sequence | np.ndarray
) -> dict[str, np.ndarray]:
    """
    [`split_numbers`] after a check that there is something of everything for each clip.

    Args:
        splits, targets (sequence of `str`): Split and target of each clip.
        tables (sequences): What else there is, with an entry for each clip.
    """
    for table in (targets, *tables):
        if len(table) != len(splits):
            raise ValueError(f"All clips need a target, a split and inputs, but got {len(table)} for {len(splits)}.")
    return split_numbers(splits)


def pooled_block(features: Sequence[np.ndarray], num_segments: int = 1) -> Block:
    """
    Means of a clip's features over equal parts of it, one beside the other.

    Args:
        features (sequence of `np.ndarray` of shape `(num_frames, dim)`): Features of each clip.
        num_segments (`int`, *optional*, defaults to 1): Number of parts. Of a clip with fewer frames than parts,
            neighbouring parts have the same frame.

    Raises:
        ValueError: If a clip has no frame, or features of it are not finite.
    """
    rows = []
    for number, frames in enumerate(features):
        row = np.concatenate(
            [frames[part].mean(0, dtype=np.float64) for part in _segments(len(frames), num_segments, number)]
        )
        if not np.isfinite(row).all():
            raise ValueError(f"The features of clip {number} are not finite.")
        rows.append(row)
    return Block(np.array(rows))


def bag_block(codes: Sequence[np.ndarray], codebook_size: int, num_segments: int = 1) -> Block:
    """
    Root of each unit's share of the frames, all codebooks one beside the other.

    Merged units (BPE) are given as codes of a single codebook, of shape `(1, num_ids)`.

    Args:
        codes (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of each clip.
        codebook_size (`int`): Number of units in a codebook, or of merged ids.
        num_segments (`int`, *optional*, defaults to 1): Number of equal parts of a clip that are counted by
            themselves.

    Raises:
        ValueError: If a clip has no frame, or a code is not below `codebook_size`.
    """
    rows = []
    for number, units in enumerate(codes):
        check_codes(units, codebook_size, number)
        shares = [
            np.bincount(row[part], minlength=codebook_size) / len(row[part])
            for part in _segments(units.shape[1], num_segments, number)
            for row in units
        ]
        rows.append(np.sqrt(np.concatenate(shares)))
    return Block(np.array(rows), by_column=False)


def ridge_probe(
    blocks: Sequence[Block], targets: Sequence[str], splits: Sequence[str], learns_from_dev: bool = True
) -> ProbeAnswers:
    """
    Label the test clips by ridge regression to one column for each label.

    The penalty is the one that labels most development clips rightly; among equals, the one with the least squared
    error there. Blocks weigh the same, whatever their number of columns, unless the development clips are labelled
    better where one of them has nine tenths of all weight. The result is exact: there is no seed.

    Args:
        blocks (sequence of [`Block`]): Inputs, one beside the other. All have a row for each clip.
        targets (sequence of `str`): Label of each clip. Those of test clips are not looked at.
        splits (sequence of `str`): Split of each clip: `train`, `dev` or `test`.
        learns_from_dev (`bool`, *optional*, defaults to `True`): Whether the weights are fitted once more on training
            and development clips together. Not where training is to have few clips.

    Returns:
        [`ProbeAnswers`] with the penalty and the accuracy on the development clips.

    Raises:
        ValueError: If the numbers of clips differ, a split has no clip, or the training clips have a single label.
    """
    return ridge_probes(blocks, {"": targets}, splits, learns_from_dev)[""]


def ridge_probes(
    blocks: Sequence[Block],
    targets: Mapping[str, Sequence[str]],
    splits: Sequence[str],
    learns_from_dev: bool = True,
) -> dict[str, ProbeAnswers]:
    """
    [`ridge_probe`] of several questions about the same clips, which costs little more than one of them.

    Args:
        blocks, splits, learns_from_dev: See [`ridge_probe`].
        targets (mapping of `str` to a sequence of `str`): Labels of each clip by the name of the question.

    Returns:
        `dict`: The [`ProbeAnswers`] that [`ridge_probe`] gives to each question.

    Raises:
        ValueError: As [`ridge_probe`].
    """
    if not blocks:
        raise ValueError("`blocks` is empty; a probe needs something to look at.")
    if not targets:
        raise ValueError("`targets` is empty; a probe needs something to tell.")
    for wanted in targets.values():
        numbers = checked_splits(splits, wanted, *(block.values for block in blocks))
    train, dev, test = numbers["train"], numbers["dev"], numbers["test"]
    labels = {name: np.asarray(wanted, dtype=object) for name, wanted in targets.items()}
    found: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in targets}
    all_shares = _shares(len(blocks))
    for place, shares in enumerate(all_shares):
        values = _RidgeValues(_beside(blocks, shares, train), train)
        for name, asked in labels.items():
            fit = _RidgeFit(values, asked)
            for penalty, scores in zip(PENALTIES, fit.scores(dev, PENALTIES), strict=True):
                misses = float((fit.best(scores) != asked[dev]).mean())
                error = float(((scores - fit.columns(asked[dev])) ** 2).mean())
                found[name].append((misses, error, penalty, place))
    # Of equal ones the first: smaller penalties, and equal shares.
    best = {name: min(choices, key=lambda choice: choice[:2]) for name, choices in found.items()}
    both = np.concatenate([train, dev]) if learns_from_dev else train
    answers = {}
    for place in sorted({choice[3] for choice in best.values()}):
        values = _RidgeValues(_beside(blocks, all_shares[place], both), both)
        for name, (misses, _, penalty, chosen) in best.items():
            if chosen == place:
                fit = _RidgeFit(values, labels[name])
                (scores,) = fit.scores(test, [penalty])
                answers[name] = ProbeAnswers(fit.best(scores).tolist(), penalty, float(100 * (1 - misses)))
    return {name: answers[name] for name in targets}


def pooled_ridge(
    features: Sequence[np.ndarray], targets: Sequence[str], splits: Sequence[str], num_segments: int = 4
) -> ProbeAnswers:
    """
    [`ridge_probe`] of features that are averaged over parts of the clip.

    Args:
        features (sequence of `np.ndarray` of shape `(num_frames, dim)`): Features of each clip, or the centroids that
            its units stand for.
        targets, splits: See [`ridge_probe`].
        num_segments (`int`, *optional*, defaults to 4): See [`pooled_block`].
    """
    return ridge_probe([pooled_block(features, num_segments)], targets, splits)


def bag_of_units(
    codes: Sequence[np.ndarray], codebook_size: int, targets: Sequence[str], splits: Sequence[str]
) -> ProbeAnswers:
    """
    [`ridge_probe`] of how often a clip has each unit.

    Args:
        codes (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`), codebook_size (`int`): See
            [`bag_block`].
        targets, splits: See [`ridge_probe`].
    """
    return ridge_probe([bag_block(codes, codebook_size)], targets, splits)


def shuffle_targets(targets: Sequence[str], splits: Sequence[str], seed: int) -> list[str]:
    """
    Control: targets that say nothing of their clips. Those of the training and of the development clips are permuted,
    each among themselves; those of the test clips stay.

    Args:
        targets, splits (sequence of `str`): Target and split of each clip.
        seed (`int`): Seed for the permutations.
    """
    numbers = checked_splits(splits, targets)
    generator = np.random.default_rng(seed)
    shuffled = np.array(targets, dtype=object)
    for name in ("train", "dev"):
        shuffled[numbers[name]] = shuffled[generator.permutation(numbers[name])]
    return shuffled.tolist()


def other_clips(splits: Sequence[str], seed: int) -> np.ndarray:
    """
    Control: the clip whose audio each clip is given. Training and development clips keep theirs; each test clip gets
    that of another test clip, and each is used once.

    Args:
        splits (sequence of `str`): Split of each clip.
        seed (`int`): Seed for the draw.

    Returns:
        `np.ndarray` of shape `(num_clips,)`: Numbers of clips.

    Raises:
        ValueError: If there is a single test clip, or as [`split_numbers`].
    """
    test = split_numbers(splits)["test"]
    if len(test) < 2:
        raise ValueError("There is a single test clip, so that there is no other whose audio it could be given.")
    source = np.arange(len(splits))
    source[test] = test[derangement(len(test), seed)]
    return source


def derangement(num_items: int, seed: int = 0) -> list[int]:
    """
    A random order in which nothing stays in its place.

    Args:
        num_items (`int`): Number of items, at least 2.
        seed (`int`, *optional*, defaults to 0): Seed of the draw.

    Raises:
        ValueError: If there are fewer than two items.
    """
    if num_items < 2:
        raise ValueError(f"With {num_items} recording there is no other one; take at least 2.")
    # Each item goes where the next one of a random circle was.
    circle = np.random.default_rng(seed).permutation(num_items)
    order = np.arange(num_items)
    order[circle] = np.roll(circle, 1)
    return order.tolist()


def no_audio(clips: Sequence[np.ndarray], time_axis: int = 0) -> list[np.ndarray]:
    """
    Control: the same frames of zeros for every clip, as many as the clip of median length has, so that not even the
    length is told.

    Args:
        clips (sequence of `np.ndarray`): Features `(num_frames, dim)`, or codes `(num_quantizers, num_frames)`.
        time_axis (`int`, *optional*, defaults to 0): Axis of the frames; for codes 1.
    """
    shape = list(clips[0].shape)
    shape[time_axis] = sorted(clip.shape[time_axis] for clip in clips)[len(clips) // 2]
    return [np.zeros(shape, clips[0].dtype)] * len(clips)


class _RidgeValues:
    # What ridge regression needs of the columns, whatever is asked: one eigendecomposition, that of the columns' inner
    # products, or where there are more columns than clips that of the clips'.
    def __init__(self, values: np.ndarray, learnt_from: np.ndarray):
        self.values, self.learnt_from = values, learnt_from
        known = values[learnt_from]
        self.is_wide = known.shape[1] > len(known)
        products = known @ known.T if self.is_wide else known.T @ known
        eigenvalues, self.vectors = np.linalg.eigh(products)
        self.eigenvalues = np.maximum(eigenvalues, 0.0)
        self.left = known.T @ self.vectors if self.is_wide else self.vectors

    def right(self, wanted: np.ndarray) -> np.ndarray:
        """The wanted columns of the clips that are learnt from, in the directions of `left`."""
        return self.vectors.T @ (wanted if self.is_wide else self.values[self.learnt_from].T @ wanted)


class _RidgeFit:
    # Ridge regression to labels, for all penalties at once.
    def __init__(self, of: _RidgeValues, labels: np.ndarray):
        known = labels[of.learnt_from]
        self.values, self.left, self.eigenvalues = of.values, of.left, of.eigenvalues
        self.labels = np.array(sorted(set(known.tolist())), dtype=object)
        if len(self.labels) < 2:
            raise ValueError(
                f"All training clips have the label {self.labels[0]!r}; a classifier needs at least two labels."
            )
        wanted = self.columns(known)
        self.offsets = wanted.mean(0)
        self.right = of.right(wanted - self.offsets)

    def columns(self, labels: np.ndarray) -> np.ndarray:
        """1 in the column of each clip's label, `(num_clips, num_labels)`; zeros for a label that was not learnt."""
        return (labels[:, None] == self.labels).astype(np.float64)

    def scores(self, clips: np.ndarray, penalties: Sequence[float]) -> list[np.ndarray]:
        """Scores of the labels by the weights of each penalty, `(num_clips, num_labels)` each."""
        seen = self.values[clips] @ self.left
        return [seen @ (self.right / (self.eigenvalues[:, None] + penalty)) + self.offsets for penalty in penalties]

    def best(self, scores: np.ndarray) -> np.ndarray:
        """The label with the highest score of each clip."""
        return self.labels[scores.argmax(1)]


def _shares(num_blocks: int) -> list[np.ndarray]:
    # Shares of the blocks in the clips' inner products: equal ones, and those where one block has most.
    equal = np.full(num_blocks, 1 / num_blocks)
    if num_blocks == 1:
        return [equal]
    return [
        equal,
        *(np.where(np.arange(num_blocks) == most, 0.9, 0.1 / (num_blocks - 1)) for most in range(num_blocks)),
    ]


def _beside(blocks: Sequence[Block], shares: np.ndarray, learnt_from: np.ndarray) -> np.ndarray:
    parts = [block.standardized(learnt_from) * share**0.5 for block, share in zip(blocks, shares, strict=True)]
    return np.concatenate(parts, axis=1)


def _segments(num_frames: int, num_segments: int, clip: int) -> list[slice]:
    if num_segments < 1:
        raise ValueError(f"`num_segments` must be at least 1, but got {num_segments}.")
    if not num_frames:
        raise ValueError(f"Clip {clip} has no frame; leave it out of the manifest.")
    starts = [part * num_frames // num_segments for part in range(num_segments)]
    ends = [(part + 1) * num_frames // num_segments for part in range(num_segments)]
    return [slice(start, max(start + 1, end)) for start, end in zip(starts, ends, strict=True)]
