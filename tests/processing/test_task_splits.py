# SPDX-License-Identifier: Apache-2.0
"""Groups are dealt so that each label is in every split where it can be, and the same again."""

import numpy as np
import pytest

from speech_tokenizers.processing.task_splits import deal_groups


def labels_of(splits, groups, labels):
    """The labels of each split."""
    found = {name: set() for name in ("train", "dev", "test")}
    for group, label in zip(groups, labels, strict=True):
        found[splits[group]].add(label)
    return found


def test_of_groups_that_are_alike_the_last_are_measured_on():
    groups = [f"s{number:02}" for number in range(20) for _ in "ab"]
    splits = deal_groups(groups, ["a", "b"] * 20)
    assert {group for group, split in splits.items() if split == "test"} == {"s16", "s17", "s18", "s19"}
    assert {group for group, split in splits.items() if split == "dev"} == {"s14", "s15"}
    texts = [f"text {number}" for number in range(40)]
    assert deal_groups(groups, texts) == splits  # answers of one group each are no labels


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_groups_of_one_label_each_are_in_every_split(seed):
    """By their names all of the test groups would have the label `b`."""
    groups = [f"{label}{number}" for label in "ab" for number in range(5)]
    labels = [group[0] for group in groups]
    for is_closed in (False, True):
        splits = deal_groups(groups, labels, is_closed, seed)
        assert all(found == {"a", "b"} for found in labels_of(splits, groups, labels).values())
        assert list(splits.values()).count("train") >= 5
    assert splits == deal_groups(groups[::-1], labels[::-1], True, seed)


def test_a_rare_label_is_shared_out():
    generator = np.random.default_rng(0)
    groups, labels = [], []
    for number in range(60):
        said = generator.choice(["a", "b", "c"], 8).tolist() + (["rare"] if number >= 57 else [])
        groups += [f"s{number:02}"] * len(said)
        labels += said
    splits = deal_groups(groups, labels, is_closed=True)
    assert sorted(splits[name] for name in ("s57", "s58", "s59")) == ["dev", "test", "train"]
    assert [list(splits.values()).count(name) for name in ("test", "dev")] == [12, 6]
    test = [label for group, label in zip(groups, labels, strict=True) if splits[group] == "test"]
    for label in "abc":
        assert test.count(label) / labels.count(label) == pytest.approx(0.2, abs=0.02)


def test_training_has_what_others_cannot_have():
    groups = ["g1", "g2", "g3", "g4", "g5", "g6"]
    labels = ["twice", "a", "a", "a", "twice", "once"]
    splits = deal_groups(groups, labels, is_closed=True)
    assert labels_of(splits, groups, labels) == {
        "train": {"twice", "a", "once"}, "test": {"twice", "a"}, "dev": {"a"},
    }  # fmt: skip


def test_of_texts_a_split_has_about_its_share_of_recordings():
    """By their names those who speak most would be measured on."""
    groups = [f"s{number:02}" for number in range(40) for _ in range(number)]
    splits = deal_groups(groups, [f"text {number}" for number in range(len(groups))])
    found = {name: sum(splits[group] == name for group in groups) for name in ("train", "dev", "test")}
    assert found["test"] / len(groups) == pytest.approx(0.2, abs=0.01)
    assert found["dev"] / len(groups) == pytest.approx(0.1, abs=0.01)
    few = [f"s{number}" for number in range(10) for _ in range(500 if number > 7 else 1)]
    splits = deal_groups(few, [f"text {number}" for number in range(len(few))])
    assert splits["s8"] == splits["s9"] == "train"


def test_other_seeds_deal_otherwise():
    groups = [f"s{number:02}" for number in range(20)]
    dealt = [deal_groups(groups, ["a"] * 20, seed=seed) for seed in (None, 0, 0, 1)]
    assert dealt[1] == dealt[2]
    assert len({str(sorted(splits.items())) for splits in dealt}) == 3
    with pytest.raises(ValueError, match="Three splits need three groups, but there are 2"):
        deal_groups(["a", "b"], ["x", "x"])
