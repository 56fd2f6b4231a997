# SPDX-License-Identifier: Apache-2.0
"""The probe that reads units in their order."""

import numpy as np
import pytest

from speech_tokenizers.evaluation.understanding.lstm_probe import lstm_probe


def _clips(num_clips=90, seed=0):
    # Rising or falling runs over the same units: their order alone tells them apart.
    generator = np.random.default_rng(seed)
    codes, targets = [], []
    for number in range(num_clips):
        row = np.sort(generator.integers(0, 6, generator.integers(4, 12)))
        row[0], row[-1] = 0, 5
        rises = number % 2 == 0
        codes.append((row if rises else row[::-1])[None].copy())
        targets.append("rise" if rises else "fall")
    return codes, targets, (["train"] * 2 + ["dev"] + ["test"]) * (num_clips // 4) + ["train"] * (num_clips % 4)


def test_order_is_read_and_unit_0_counts():
    codes, targets, splits = _clips()
    wanted = [target for target, split in zip(targets, splits, strict=True) if split == "test"]
    found = lstm_probe(codes, [6], targets, splits, epochs=30, batch_size=8, learning_rate=1e-2)
    assert np.mean([said == right for said, right in zip(found.answers, wanted, strict=True)]) > 0.9
    assert found.losses[-1] < 0.5 * found.losses[0]


def test_answers_do_not_depend_on_what_is_padded_beside_a_clip():
    codes, targets, splits = _clips()
    longest = [*codes, np.zeros((1, 60), np.int64)]
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2}
    alone = lstm_probe(codes, [6], targets, splits, **settings)
    beside = lstm_probe(longest, [6], [*targets, "rise"], [*splits, "test"], **settings)
    assert beside.answers[:-1] == alone.answers
    assert lstm_probe(codes, [6], targets, splits, **settings) == alone


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (np.full((1, 3), 6), [6], "outside"),
        (np.zeros((2, 3), np.int64), [6], "shape"),
        (np.zeros((1, 0), np.int64), [6], "frame"),
    ],
)
def test_codes_that_cannot_be_are_refused(codes, sizes, message):
    known, targets, splits = _clips()
    with pytest.raises(ValueError, match=message):
        lstm_probe([*known[:-1], codes], sizes, targets, splits)
