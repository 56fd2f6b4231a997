# SPDX-License-Identifier: Apache-2.0
"""Groups of recordings, such as speakers, dealt into splits so that each label is in every split where it can be."""

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

    A group never crosses splits. A label of three groups or more gets into every split, one of two into training and
    test, and one of a single group into training, wherever groups of several labels allow it. For that a split may
    get more groups than its share, and dev none. Otherwise a split gets the groups that bring it nearest to its share
    of the recordings of each label; where several do as well, the last of them.

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
    num_groups = (counts > 0).sum(0)
    is_left = np.ones(len(order), dtype=bool)
    splits = dict.fromkeys(order, "train")
    # How many of the splits that come later, training among them, still want a group of each label.
    later = {"test": np.minimum(num_groups, 1) + (num_groups >= NUM_SPLITS), "dev": np.minimum(num_groups, 1)}
    wanted = {"test": num_groups >= NUM_SPLITS - 1, "dev": num_groups >= NUM_SPLITS}
    for split, share in _SHARES.items():
        for place in _chosen(counts, is_left, wanted[split], later[split], share, split == "test"):
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
    counts: np.ndarray, is_left: np.ndarray, wanted: np.ndarray, later: np.ndarray, share: float, is_needed: bool
) -> list[int]:
    # Places of the groups of a split, one after another; none where a split that is not needed would take from others.
    is_left, chosen = is_left.copy(), list[int]()
    num_chosen = max(1, round(share * len(counts)))
    has = counts > 0
    totals = np.maximum(counts.sum(0), 1)
    got = np.zeros(counts.shape[1])
    while is_left.sum() > 1:  # training gets one at least
        lacking = wanted & (got == 0)
        # What the later splits need stays: a group goes only if enough others have each of its labels.
        is_free = is_left & ~(has & ((has & is_left[:, None]).sum(0) <= later)).any(1)
        helps = (has & lacking).sum(1) * is_free
        if not helps.any() and len(chosen) >= num_chosen:
            break
        if not is_free.any():
            if chosen or not is_needed:
                break
            is_free = is_left
        best = is_free & (helps == helps[is_free].max())
        misfit = (((got + counts) / totals - share) ** 2).sum(1).round(12)
        place = int(np.where(best, misfit, np.inf).argmin())
        chosen.append(place)
        is_left[place] = False
        got += counts[place]
    return chosen


__all__ = ["NUM_SPLITS", "deal_groups", "groups_of_labels"]
