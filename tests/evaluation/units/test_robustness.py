# SPDX-License-Identifier: Apache-2.0
"""The unit edit distance against the numbers of NAST's formula, jiwer and hand counts."""

from pathlib import Path

import jiwer
import numpy as np
import pytest
from safetensors.numpy import load_file

from speech_tokenizers.evaluation.units.robustness import (
    UnitEditDistance,
    UnitEdits,
    unit_edit_distance,
    unit_edits,
)


FIXTURE = Path(__file__).parents[2] / "fixtures" / "unit_edit_distance.safetensors"


def test_equals_the_published_formula():
    stored = load_file(FIXTURE)
    clean, changed = (
        np.split(stored[f"{name}_units_concat"], np.cumsum(stored[f"{name}_lens"])[:-1]) for name in ("clean", "aug")
    )
    edits = [unit_edits(*pair) for pair in zip((x[None] for x in clean), (x[None] for x in changed), strict=True)]
    shares = [pair.edits / pair.num_units for pair in edits]
    np.testing.assert_allclose(shares, stored["ued_per_utt"], rtol=0, atol=1e-12)
    assert shares[5] == 0
    expected = float(stored["ued_corpus_percent"])
    assert unit_edit_distance(np.sum(edits, axis=0)) == pytest.approx(expected, abs=1e-10)
    result = UnitEditDistance().compute(predictions=changed, references=clean)
    assert result["ued"] == pytest.approx(expected, abs=1e-10)
    assert result["num_clips"] == 12
    assert result["num_units"] == sum(pair.num_units for pair in edits)


def test_by_hand():
    # De-duplicated: 1 2 3 2 against 1 3 3-run-merged 4: one left out, one replaced.
    assert unit_edits(np.array([[1, 1, 2, 3, 3, 2]]), np.array([[1, 3, 3, 3, 4]])) == UnitEdits(2, 4)
    # Only lengths of sounds differ.
    assert unit_edits(np.array([[5, 5, 5, 7]]), np.array([[5, 7, 7, 7, 7]])) == UnitEdits(0, 2)
    # Long clips count more: (2 + 0) / (4 + 2), not the mean of 1/2 and 0.
    result = UnitEditDistance().compute(
        predictions=[[1, 3, 3, 3, 4], [5, 7, 7, 7, 7]], references=[[1, 1, 2, 3, 3, 2], [5, 5, 5, 7]]
    )
    assert result == {"ued": pytest.approx(100 * 2 / 6), "num_units": 6, "num_clips": 2}


def test_it_can_exceed_a_hundred_and_has_no_value_without_units():
    assert unit_edits(np.array([[1, 1]]), np.array([[2, 3, 4]])) == UnitEdits(3, 1)
    assert UnitEditDistance().compute(predictions=[[2, 3, 4]], references=[[1, 1]])["ued"] == 300
    assert unit_edits(np.empty((1, 0), int), np.array([[2, 3]])) == UnitEdits(2, 0)
    assert UnitEditDistance().compute(predictions=[[2, 3]], references=[[]])["ued"] is None
    assert np.isnan(unit_edit_distance(np.zeros(2)))


def test_of_several_codebooks_a_frame_is_one_unit():
    clean = np.array([[1, 1, 1, 2], [0, 0, 1, 1]])  # (1,0) (1,1) (2,1)
    assert unit_edits(clean, np.array([[1, 1, 2, 2], [0, 1, 1, 1]])) == UnitEdits(0, 3)
    assert unit_edits(clean, np.array([[1, 1, 1, 2], [0, 0, 0, 1]])) == UnitEdits(1, 3)
    with pytest.raises(ValueError, match="as many quantizers"):
        unit_edits(clean, clean[:1])


@pytest.mark.parametrize("seed", range(5))
def test_equals_jiwer(seed):
    generator = np.random.default_rng(seed)
    clean, changed = (generator.integers(0, 4, (1, generator.integers(1, 60))) for _ in range(2))
    words = [
        " ".join(str(unit) for unit, before in zip(row[0], [-1, *row[0]], strict=False) if unit != before)
        for row in (clean, changed)
    ]
    edits, num_units = unit_edits(clean, changed)
    assert num_units == len(words[0].split())
    assert edits / num_units == pytest.approx(jiwer.wer(*words))
