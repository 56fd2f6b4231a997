# SPDX-License-Identifier: Apache-2.0
"""Which syllables a study of tone learns from: nothing leaks, and what would leak is refused."""

import dataclasses
import json

import numpy as np
import pytest

from speech_tokenizers.training.studies.tone_study.folds import Fold, check_apart, make_folds, settings_of
from speech_tokenizers.training.studies.tone_study.syllables import Syllable, read_syllables


def _syllables(speakers="abcd", splits=None):
    spoken = [f"{initial}{vowel}" for initial in ("", "b", "d", "g", "m", "l") for vowel in "aeiou"]
    found = [
        Syllable(f"{who}/{what}{tone}", f"{who}/{what}{tone}", "x", None, who, what, {"tone": tone}, None)
        for who in speakers
        for what in spoken
        for tone in "1234"
    ]
    if splits is None:
        return found
    return [dataclasses.replace(one, split=splits(one)) for one in found]


@pytest.mark.parametrize(("speakers", "num_new"), [("abcd", 4), ("abcdefghijklm", 8)])
def test_each_syllable_is_tested_once_and_nothing_is_on_both_sides(speakers, num_new):
    syllables = _syllables(speakers)
    for setting, num_folds in (("A", 3 * num_new), ("B", 3)):
        folds = make_folds(syllables, setting, 3)
        assert len(folds) == num_folds
        tested = np.concatenate([fold.test for fold in folds])
        assert sorted(tested) == list(range(len(syllables)))
        for fold in folds:
            learnt, tested = ([syllables[number] for number in numbers] for numbers in (fold.learnt, fold.test))
            assert not {one.syllable for one in learnt} & {one.syllable for one in tested}
            assert not set(fold.train) & set(fold.dev)
            shared = {one.speaker for one in learnt} & {one.speaker for one in tested}
            assert (shared == set()) == (setting == "A")


def test_a_new_speakers_penalty_is_chosen_on_a_whole_speaker():
    syllables = _syllables()
    for fold in make_folds(syllables, "A", 3):
        chosen = {syllables[number].speaker for number in fold.dev}
        assert len(chosen) == 1
        assert chosen.isdisjoint(syllables[number].speaker for number in fold.train)


def test_folds_do_not_depend_on_the_order_of_rows():
    syllables = _syllables()
    for setting in "AB":
        for one, other in zip(make_folds(syllables, setting, 3), make_folds(syllables[::-1], setting, 3), strict=True):
            assert {syllables[number].name for number in one.test} == {
                syllables[::-1][number].name for number in other.test
            }


def test_one_speaker_has_no_new_one():
    assert settings_of(_syllables("a")) == ["B"]
    assert settings_of(_syllables("ab", lambda one: "test" if one.speaker == "b" else "train")) == ["A", "B", "given"]


def test_the_manifests_own_split_is_used():
    syllables = _syllables("abc", lambda one: "test" if one.speaker == "c" else "train")
    (fold,) = make_folds(syllables, "given", 3)
    assert {syllables[number].speaker for number in fold.test} == {"c"}


def test_a_fold_that_leaks_is_refused():
    syllables = _syllables()
    everything = np.arange(len(syllables))
    fold = Fold("x", everything[::3], everything[1::3], everything[2::3])
    with pytest.raises(ValueError, match="stands in training and in test"):
        check_apart(syllables, fold, "B")
    with pytest.raises(ValueError, match="nothing to learn from"):
        check_apart(syllables, Fold("x", everything[:0], everything[:0], everything), "B")


def _write(tmp_path, rows):
    for row in rows:
        (tmp_path / row["file_name"]).write_bytes(b"")
    path = tmp_path / "syllables.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(number, **fields):
    return {
        "file_name": f"{number}.wav",
        "speaker": "a",
        "syllable": ("ma", "lu")[number % 2],
        "tone": 1 + number % 4,
    } | fields


def test_a_manifest_is_read(tmp_path):
    spans = [{"start": 0.5, "end": 0.75}, {"start": 0, "end": 1}, {"start": 1000.121, "end": 1000.5}]
    rows = [_row(0, **spans[0]), _row(1, tone=None, syllable="lǜ", **spans[1]), _row(2, **spans[2])]
    found = read_syllables(_write(tmp_path, rows), ["tone", "final", "initial"])
    assert [one.labels for one in found] == [
        {"tone": "1", "final": "a", "initial": "m"},
        {"tone": "4", "final": "ü", "initial": "l"},
        {"tone": "3", "final": "a", "initial": "m"},
    ]
    assert found[0].span == (0.5, 0.75)
    assert found[2].name == "2.wav 1000.121-1000.5"


def test_the_labels_of_align_are_read(tmp_path):
    spans = [("b", 0.0, 0.1), ("i1", 0.1, 0.3), ("|", 0.3, 0.3), ("iang4", 0.4, 0.6)]
    labels = [{"label": label, "start": start, "end": end} for label, start, end in spans]
    rows = [{"file_name": "0.wav", "speaker": "a", "labels": labels, "words": []}]
    found = read_syllables(_write(tmp_path, rows), ["tone", "vowel", "final"])
    assert [(one.labels["tone"], one.labels["final"], one.span) for one in found] == [
        ("1", "i", (0.1, 0.3)),
        ("4", "iang", (0.4, 0.6)),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [row.pop("speaker") for row in rows], "must have a column `speaker`"),
        (lambda rows: rows[1].update(speaker=""), "line 2.*`speaker` is ''"),
        (lambda rows: [row.update(tone="1") for row in rows], "`tone` of all 4 syllables is '1'"),
        (lambda rows: rows[1].update(syllable="ma3"), "the syllable says '3'"),
        (lambda rows: rows[2].update(tone=None), "line 3.*there is no `tone`"),
        (lambda rows: rows[1].update(syllable="strength"), "no syllable of pinyin"),
        (lambda rows: rows[1].update(file_name="0.wav"), "earlier row"),
        (lambda rows: rows[1].update(start=1, end=1), "`end` must lie behind"),
        (lambda rows: rows[1].update(start=1, end=2), "give all of them, or none"),
        (lambda rows: [row.update(split="train") for row in rows], "both must occur"),
        (
            lambda rows: [
                row.update(split=split) for row, split in zip(rows, ("train", "test", "test", "test"), strict=True)
            ],
            "too good",
        ),
    ],
)
def test_a_manifest_that_would_give_a_wrong_number_is_refused(tmp_path, change, message):
    rows = [_row(number) for number in range(4)]
    change(rows)
    with pytest.raises(ValueError, match=message):
        read_syllables(_write(tmp_path, rows), ["tone", "vowel"])


def test_a_missing_file_is_named(tmp_path):
    path = _write(tmp_path, [_row(0), _row(1)])
    (tmp_path / "1.wav").unlink()
    with pytest.raises(ValueError, match="line 2.*there is no file"):
        read_syllables(path, ["tone"])


def test_one_sound_spelt_in_two_ways_is_one_syllable(tmp_path):
    rows = [_row(0, syllable="lü"), _row(1, syllable="luu"), _row(2, syllable="lv"), _row(3, syllable="ma")]
    found = read_syllables(_write(tmp_path, rows), ["tone", "vowel"])
    assert len({one.syllable for one in found[:3]}) == 1
    assert found[0].group == found[2].group != found[3].group


def test_marks_of_other_languages_give_way_to_the_column(tmp_path):
    rows = [_row(0, syllable="bá", tone="H", vowel="a"), _row(1, syllable="bà", tone="L", vowel="e")]
    found = read_syllables(_write(tmp_path, rows), ["tone", "vowel"])
    assert [(one.syllable, one.labels["tone"]) for one in found] == [("ba", "H"), ("ba", "L")]
