# SPDX-License-Identifier: Apache-2.0
"""Groups of recordings, such as speakers, dealt into splits greedily, so that labels are in every split."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np


# Of all groups, at least one each; the others are for training.
_SHARES = {"test": 0.2, "dev": 0.1}
# Of how many groups an answer needs to be in every split.
NUM_SPLITS = 3


def deal_groups(
    groups: Sequence[str], labels: Sequence[str], is_closed: bool = False, seed: int | None = None
) -> dict[str, str]:
    """
    A split for each group: a fifth of the groups for test, a tenth for dev, the others for training.

    A group never crosses splits. A label of three groups or more is meant for every split, one of two for training and
    test, and one of a single group for training. Groups are dealt greedily, one after another to the split that is
    being filled, first those with most of the labels that it lacks. So where groups have several labels, a label may
    miss a split that another deal would give it. For the labels a split may get more groups than its share, and dev
    none. Otherwise a split gets the groups that bring it nearest to its share of all recordings and of those of each
    label; where several do as well, the last of them.

    Args:
        groups (sequence of `str`): Group of each recording, of three different ones at least.
        labels (sequence of `str`): Answer of each recording.
        is_closed (`bool`, *optional*, defaults to `False`): Whether all answers are labels. Else only those of three
            groups or more are; the others are taken for texts, which need not be anywhere.
        seed (`int`, *optional*): Seed of the order of the groups. Defaults to that of their names.

    Returns:
        `dict` of `str` to `str`: `"train"`, `"dev"` or `"test"` for each group.

    Raises:
        ValueError: If there are fewer than three groups.
    """
    order = sorted(set(groups))
    if len(order) < NUM_SPLITS:
        raise ValueError(f"Three splits need three groups, but there are {len(order)}.")
    if seed is not None:
        order = [order[place] for place in np.random.default_rng(seed).permutation(len(order))]
    order.reverse()  # the last are dealt first
    spread = groups_of_labels(groups, labels)
    names = sorted(label for label, found in spread.items() if is_closed or len(found) >= NUM_SPLITS)
    counts = _counts(groups, labels, order, names)  # (num_groups, num_labels)
    recordings = Counter(groups)
    sizes = np.array([recordings[group] for group in order], dtype=float)
    num_groups = (counts > 0).sum(0)
    is_left = np.ones(len(order), dtype=bool)
    splits = dict.fromkeys(order, "train")
    # How many of the splits that come later, training among them, still want a group of each label.
    later = {"test": np.minimum(num_groups, 1) + (num_groups >= NUM_SPLITS), "dev": np.minimum(num_groups, 1)}
    wanted = {"test": num_groups >= NUM_SPLITS - 1, "dev": num_groups >= NUM_SPLITS}
    for split, share in _SHARES.items():
        for place in _chosen(counts, sizes, is_left, wanted[split], later[split], share, split == "test"):
            splits[order[place]] = split
            is_left[place] = False
    return splits


def groups_of_labels(groups: Sequence[str], labels: Sequence[str]) -> dict[str, set[str]]:
    """The groups that have each label."""
    found: dict[str, set[str]] = {}
    for group, label in zip(groups, labels, strict=True):
        found.setdefault(label, set()).add(group)
    return found


def _counts(groups: Sequence[str], labels: Sequence[str], order: Sequence[str], names: Sequence[str]) -> np.ndarray:
    rows, columns = ({name: place for place, name in enumerate(known)} for known in (order, names))
    counts = np.zeros((len(order), len(names)))
    pairs: Mapping[tuple[str, str], int] = Counter(zip(groups, labels, strict=True))
    for (group, label), number in pairs.items():
        if label in columns:
            counts[rows[group], columns[label]] = number
    return counts


def _chosen(
    counts: np.ndarray,
    sizes: np.ndarray,
    is_left: np.ndarray,
    wanted: np.ndarray,
    later: np.ndarray,
    share: float,
    is_needed: bool,
) -> list[int]:
    # Places of the groups of a split, one after another; none where a split that is not needed would take from others.
    is_left, chosen = is_left.copy(), list[int]()
    num_chosen = max(1, round(share * len(counts)))
    has = counts > 0
    # Of each group, its share of all recordings and of those of each label.
    shares = np.column_stack([sizes / sizes.sum(), counts / np.maximum(counts.sum(0), 1)])
    squares = np.einsum("ij,ij->i", shares, shares)
    # The sum of squares of what a group would bring above the share, less what is the same with all groups.
    misfit = squares - 2 * share * shares.sum(1)
    num_left = has[is_left].sum(0)  # groups of each label
    lacking = wanted.copy()
    num_lacking = has[:, lacking].sum(1)  # labels that a group has and the split lacks
    while is_left.sum() > 1:  # training gets one at least
        # What the later splits need stays: a group goes only if enough others have each of its labels.
        is_free = is_left & ~has[:, num_left <= later].any(1)
        helps = num_lacking * is_free
        if not helps.any() and len(chosen) >= num_chosen:
            break
        if not is_free.any():
            if chosen or not is_needed:
                break
            is_free = is_left
        best = is_free & (helps == helps[is_free].max())
        place = int(np.where(best, misfit.round(12), np.inf).argmin())
        chosen.append(place)
        is_left[place] = False
        # What changes does so by the labels of this group alone.
        (touched,) = shares[place].nonzero()
        misfit += 2 * np.einsum("ij,j->i", shares[:, touched], shares[place, touched])
        num_lacking -= has[:, lacking & has[place]].sum(1)
        num_left -= has[place]
        lacking &= ~has[place]
    return chosen


__all__ = ["NUM_SPLITS", "deal_groups", "groups_of_labels"]
