# SPDX-License-Identifier: Apache-2.0
"""The agreement of units with labels against the original of Spin (commit 73edb7a), scikit-learn and hand counts."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from speech_tokenizers.evaluation.units.agreement import (
    Agreement,
    UnitAgreement,
    agreement,
    joint_counts,
    joint_symbols,
    repeat_units,
    roll_labels,
)


FIXTURE = Path(__file__).parents[2] / "fixtures" / "unit_agreement.safetensors"


@pytest.fixture
def clips():
    """Units that follow labels loosely, in runs, of 12 clips of 6 speakers."""
    generator = np.random.default_rng(1)
    labels = [np.repeat(generator.integers(0, 6, 30), generator.integers(1, 8, 30)) for _ in range(12)]
    units = [
        np.where(generator.random(len(part)) < 0.6, 3 * part, generator.integers(0, 20, len(part))) for part in labels
    ]
    return units, labels, [f"speaker{number // 2}" for number in range(12)]


@pytest.mark.parametrize("case", [0, 1, 2])
def test_equals_the_original(case):
    with safe_open(FIXTURE, "np") as file:
        settings = json.loads(file.metadata()["cases"])[case]
    stored = {name.removeprefix(f"case{case}."): array for name, array in load_file(FIXTURE).items()}
    units = np.split(stored["codes_concat"], np.cumsum(stored["code_lens"])[:-1])
    labels = np.split(stored["ref_phones_concat"], np.cumsum(stored["ref_lens"])[:-1])
    expected = Agreement(stored["pnmi"], stored["phn_pur"], stored["cls_pur"])
    pairs = [repeat_units(*pair, settings["upsample"]) for pair in zip(units, labels, strict=True)]
    counts = joint_counts([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    np.testing.assert_allclose(counts.value(), expected, rtol=0, atol=1e-6)
    result = UnitAgreement().compute(predictions=units, references=labels, upsample=settings["upsample"])
    assert result.pop("num_frames") == counts.num_frames
    np.testing.assert_allclose([result[name] for name in Agreement._fields], expected, rtol=0, atol=1e-6)


def test_by_hand():
    # Unit 0 has 2 frames of each label, unit 1 has 4 of the second. H(l) = H(1/4), I = H(l) - 1/2 * 1 bit.
    label_entropy = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    value = agreement(np.array([[2, 2], [0, 4]]))
    assert value.mutual_information == pytest.approx((label_entropy - 0.5) / label_entropy)
    assert value.label_purity == 6 / 8
    assert value.unit_purity == 6 / 8
    assert agreement(np.eye(3)) == (1.0, 1.0, 1.0)
    assert agreement(np.ones((3, 4))) == pytest.approx((0.0, 1 / 4, 1 / 3))


def test_one_label_leaves_nothing_to_tell():
    value = agreement(np.array([[2], [1]]))
    assert np.isnan(value.mutual_information)
    assert value[1:] == (1.0, 2 / 3)


def test_equals_scikit_learn(clips):
    units, labels, _ = clips
    counts = joint_counts(units, labels)
    units, labels = np.concatenate(units), np.concatenate(labels)
    table = contingency_matrix(units, labels)
    value = counts.value()
    assert value.mutual_information == pytest.approx(mutual_info_score(labels, units) / entropy(np.bincount(labels)))
    assert value.label_purity == pytest.approx(table.max(1).sum() / len(units))
    assert value.unit_purity == pytest.approx(table.max(0).sum() / len(units))
    assert np.array_equal(counts.table(), table)
    assert (counts.num_frames, counts.num_units, counts.num_labels) == (len(units), *table.shape)


def test_frames_without_a_label_are_left_out(clips):
    units, labels, _ = clips
    masked = [np.where(np.arange(len(part)) % 3 == 0, -1, part) for part in labels]
    kept = [np.arange(len(part)) % 3 != 0 for part in labels]
    alone = joint_counts(
        [part[keep] for part, keep in zip(units, kept, strict=True)],
        [part[keep] for part, keep in zip(labels, kept, strict=True)],
    )
    assert joint_counts(units, masked).value() == alone.value()


def test_joint_symbols_are_equal_where_all_codes_are(clips):
    generator = np.random.default_rng(0)
    codes = [generator.integers(0, 3, (2, length)) for length in (40, 1, 25)]
    numbers = joint_symbols(codes)
    assert [len(part) for part in numbers] == [40, 1, 25]
    pairs = [tuple(pair) for part in codes for pair in part.T.tolist()]
    flat = np.concatenate(numbers).tolist()
    assert [[a == b for b in pairs] for a in pairs] == [[a == b for b in flat] for a in flat]
    assert set(flat) == set(range(len(set(pairs))))


def test_two_quantizers_together_tell_what_neither_tells_alone():
    first, second = np.tile([0, 0, 1, 1], 10), np.tile([0, 1, 0, 1], 10)
    labels = [first ^ second]
    alone = [joint_counts([stage], labels).value().mutual_information for stage in (first, second)]
    assert alone == pytest.approx([0.0, 0.0])
    together = joint_symbols([np.stack([first, second])])
    assert joint_counts(together, labels).value().mutual_information == pytest.approx(1.0)


def test_rolled_labels_keep_shares_durations_and_gaps(clips):
    units, labels, _ = clips
    labels = [np.where(np.arange(len(part)) < 5, -1, part) for part in labels]
    before = [part.copy() for part in labels]
    rolled = roll_labels(labels, seed=3)
    assert all(np.array_equal(part, copy) for part, copy in zip(labels, before, strict=True))
    flat, flat_rolled = np.concatenate(labels), np.concatenate(rolled)
    assert np.array_equal(flat < 0, flat_rolled < 0)
    kept, kept_rolled = flat[flat >= 0], flat_rolled[flat >= 0]
    assert any(np.array_equal(np.roll(kept, turn), kept_rolled) for turn in range(len(kept) // 4, len(kept)))
    assert joint_counts(units, rolled).value().mutual_information < 0.3 * joint_counts(units, labels).value()[0]


def test_chance_agreement_of_independent_frames_is_about_miller_s():
    generator = np.random.default_rng(0)
    units, labels = [generator.integers(0, 50, 20000)], [generator.integers(0, 10, 20000)]
    nats = joint_counts(units, roll_labels(labels)).value().mutual_information * np.log(10)
    assert nats == pytest.approx(49 * 9 / (2 * 20000), rel=0.15)


def test_bootstrap_redraws_whole_groups_as_a_naive_one_does(clips):
    units, labels, speakers = clips
    estimates = joint_counts(units, labels, speakers).estimates(num_resamples=4000)
    generator = np.random.default_rng(5)
    names = sorted(set(speakers))
    redrawn = []
    for _ in range(1500):
        drawn = [number for name in generator.choice(names, 6) for number in range(12) if speakers[number] == name]
        tables = contingency_matrix(
            np.concatenate([units[number] for number in drawn]), np.concatenate([labels[number] for number in drawn])
        )
        redrawn.append(agreement(tables))
    spread = np.percentile(redrawn, [2.5, 97.5], axis=0) - np.mean(redrawn, axis=0)
    for number, (name, estimate) in enumerate(estimates.items()):
        assert estimate.num_clips == 6
        assert estimate.value == joint_counts(units, labels).value()[number]
        assert estimate.low - estimate.value == pytest.approx(spread[0, number], rel=0.2), name
        assert estimate.high - estimate.value == pytest.approx(spread[1, number], rel=0.2), name


def test_bootstrap_in_small_parts_gives_finite_ordered_intervals(clips):
    units, labels, _ = clips
    for estimate in joint_counts(units, labels).estimates(num_resamples=50).values():
        assert estimate.low < estimate.value < estimate.high
        assert estimate.num_clips == 12


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"clip 1 has \(3,\) and \(2,\)"):
        joint_counts([np.zeros(2, int), np.zeros(3, int)], [np.zeros(2, int), np.zeros(2, int)])
    with pytest.raises(ValueError, match="no labelled frame"):
        joint_counts([np.zeros(2, int)], [np.full(2, -1)])
    with pytest.raises(ValueError, match="entry a clip, but have 1, 1 and 2"):
        joint_counts([np.zeros(2, int)], [np.zeros(2, int)], ["a", "b"])
