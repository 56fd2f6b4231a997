# SPDX-License-Identifier: Apache-2.0
"""
Which syllables a study of tone learns from, and which it is tested on.

Setting A: a new speaker says new syllables; of more than eight speakers, some are new together. Setting B: known
speakers say new syllables. A setting has as many folds as it takes to test each syllable once. No fold has a syllable
of test in training, and in A no speaker of test. Of syllables that are cut from recordings, those of one recording
stay on one side instead: running speech has all syllables everywhere.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from speech_tokenizers.training.studies.tone_study.syllables import Syllable


NEW_SPEAKER, KNOWN_SPEAKERS, GIVEN = "A", "B", "given"
SETTING_WORDS = {
    NEW_SPEAKER: "new speaker",
    KNOWN_SPEAKERS: "known speakers",
    GIVEN: "split of the manifest",
}
# Setting A has so many times the folds of B at most: of more speakers, some are new together.
MOST_SPEAKER_GROUPS = 8
# Share of training that chooses the penalty, where no whole speaker can.
_DEV_SHARE = 5


@dataclass(frozen=True)
class Fold:
    """
    Args:
        name (`str`): Name of the fold within its setting.
        train, dev, test (`np.ndarray` of `int`): Numbers of the syllables that weights are learnt from, of those that
            choose the penalty and are learnt from afterwards, and of those that are tested.
    """

    name: str
    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray

    @property
    def learnt(self) -> np.ndarray:
        """All that may be learnt from."""
        return np.sort(np.concatenate([self.train, self.dev]))

    def among(self, kept: Sequence[int]) -> "Fold":
        """The fold of some of the syllables, by their numbers among these; `kept` rises."""
        places = {number: place for place, number in enumerate(kept)}
        parts = (self.train, self.dev, self.test)
        return Fold(
            self.name,
            *(np.array([places[number] for number in part.tolist() if number in places], np.int64) for part in parts),
        )


def settings_of(syllables: Sequence[Syllable]) -> list[str]:
    """The settings that the syllables allow: A needs two speakers, and the manifest's own split is one more."""
    given = [GIVEN] if syllables[0].split is not None else []
    speakers = {syllable.speaker for syllable in syllables}
    return [*([NEW_SPEAKER] if len(speakers) > 1 else []), KNOWN_SPEAKERS, *given]


def make_folds(syllables: Sequence[Syllable], setting: str, num_folds: int) -> list[Fold]:
    """
    Folds of a setting.

    Args:
        syllables (sequence of [`Syllable`]): All syllables.
        setting (`str`): `"A"`, `"B"` or `"given"`.
        num_folds (`int`): Number of parts of the syllables.

    Raises:
        ValueError: If training and test of a fold share what they must not, or one of them lacks a tone of the other.
    """
    parts = np.array([_number(key) % num_folds for key in _kept_together(syllables)])
    speakers = np.array([syllable.speaker for syllable in syllables], dtype=object)
    if setting == GIVEN:
        is_test = np.array([syllable.split == "test" for syllable in syllables])
        found = [_fold("0", syllables, ~is_test, is_test)]
    elif setting == KNOWN_SPEAKERS:
        found = [_fold(str(part), syllables, parts != part, parts == part) for part in range(num_folds)]
    else:
        found = [
            _fold(
                f"{group}-{part}",
                syllables,
                (parts != part) & ~np.isin(speakers, members),
                (parts == part) & np.isin(speakers, members),
            )
            for group, members in _speaker_groups(speakers.tolist()).items()
            for part in range(num_folds)
        ]
    found = [fold for fold in found if len(fold.test)]
    for fold in found:
        check_apart(syllables, fold, setting)
    return found


def check_apart(syllables: Sequence[Syllable], fold: Fold, setting: str) -> None:
    """
    Refuse a fold that leaks.

    Args:
        syllables (sequence of [`Syllable`]): All syllables.
        fold ([`Fold`]): Fold to check.
        setting (`str`): Setting of the fold.

    Raises:
        ValueError: If training and test share a recording or a syllable, or in A a speaker; or if training lacks a
            tone of test, or one of the two is empty.
    """
    keys: dict[str, Callable[[Syllable], str]] = {"recording": lambda one: one.recording}
    if setting != GIVEN and not _has_spans(syllables):
        keys["syllable"] = lambda one: one.syllable
    if setting == NEW_SPEAKER:
        keys["speaker"] = lambda one: one.speaker
    if not len(fold.learnt) or not len(fold.dev) or not len(fold.train):
        raise ValueError(f"the fold {fold.name} of setting {setting} has nothing to learn from; give more syllables.")
    for what, key in keys.items():
        shared = {key(syllables[number]) for number in fold.learnt} & {key(syllables[number]) for number in fold.test}
        if shared:
            raise ValueError(
                f"the {what} {sorted(shared)[0]!r} stands in training and in test of the fold {fold.name} of setting"
                f" {setting}, so that what is measured would be too good."
            )
    known = {syllables[number].labels["tone"] for number in fold.train}
    if lost := {syllables[number].labels["tone"] for number in fold.test} - known:
        raise ValueError(
            f"the tone {sorted(lost)[0]!r} is tested in the fold {fold.name} of setting {setting}, but does not occur"
            " in its training; give more syllables of it, or leave it out."
        )


def _has_spans(syllables: Sequence[Syllable]) -> bool:
    return any(syllable.span is not None for syllable in syllables)


def _kept_together(syllables: Sequence[Syllable]) -> list[str]:
    # Of syllables cut from longer recordings, those of one recording; else those that sound alike.
    return [syllable.recording if _has_spans([syllable]) else syllable.syllable for syllable in syllables]


def _speaker_groups(speakers: Sequence[str]) -> dict[str, list[str]]:
    # Speakers that are new in a fold together: each by itself, or where there are many, some.
    names = sorted(set(speakers))
    if len(names) <= MOST_SPEAKER_GROUPS:
        return {name: [name] for name in names}
    dealt = sorted(names, key=_number)
    return {f"group{number}": dealt[number::MOST_SPEAKER_GROUPS] for number in range(MOST_SPEAKER_GROUPS)}


def _number(key: str, salt: str = "") -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}{key}".encode()).digest()[:8], "big")


def _fold(name: str, syllables: Sequence[Syllable], learnt: np.ndarray, tested: np.ndarray) -> Fold:
    # A whole training speaker chooses the penalty where there are enough and the tested speakers are others; else a
    # fifth of the training syllables.
    numbers, test = np.flatnonzero(learnt).tolist(), np.flatnonzero(tested).tolist()
    speakers = sorted({syllables[number].speaker for number in numbers})
    are_new = not set(speakers) & {syllables[number].speaker for number in test}
    if are_new and len(speakers) > 2:
        keys = [syllable.speaker for syllable in syllables]
        chosen = {speakers[_number(name) % len(speakers)]}
    else:
        keys = _kept_together(syllables)
        drawn = sorted({keys[number] for number in numbers}, key=lambda key: _number(key, "dev "))
        chosen = set(drawn[: max(1, len(drawn) // _DEV_SHARE)])
    train, dev = ([number for number in numbers if (keys[number] in chosen) is is_dev] for is_dev in (False, True))
    return Fold(name, *(np.array(part, np.int64) for part in (train, dev, test)))


__all__ = [
    *("GIVEN", "KNOWN_SPEAKERS", "NEW_SPEAKER", "SETTING_WORDS", "Fold", "check_apart", "make_folds", "settings_of"),
]
