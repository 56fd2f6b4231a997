# SPDX-License-Identifier: Apache-2.0
"""What units tell of a tone beyond the final, measured on clips that nothing was learnt from."""

import numpy as np
import pytest

from speech_tokenizers.training.studies.tone_study.information import conditional_information


def _clips(num_nuisances=1, reliability=1.0, num_clips=400, seed=0):
    # The unit is the tone, mixed with nuisances that say nothing.
    generator = np.random.default_rng(seed)
    tones = generator.integers(0, 4, num_clips)
    finals = generator.integers(0, 5, num_clips)
    units = []
    for tone in tones:
        heard = np.where(generator.random(20) < reliability, tone, generator.integers(0, 4, 20))
        units.append(heard * num_nuisances + generator.integers(0, num_nuisances, 20))
    is_learnt = np.arange(num_clips) % 2 == 0
    return units, [str(tone) for tone in tones], [str(final) for final in finals], is_learnt


def test_a_unit_that_is_the_tone_tells_all_of_it():
    assert conditional_information(*_clips()) == pytest.approx(2.0, abs=0.1)


def test_units_that_say_nothing_tell_nothing_however_many_they_are():
    for num_nuisances in (1, 64, 512):
        units, tones, finals, is_learnt = _clips(num_nuisances, reliability=0.0)
        assert abs(conditional_information(units, tones, finals, is_learnt)) < 0.15


def test_finer_units_are_not_taken_for_worse_ones():
    few, many = (conditional_information(*_clips(number, reliability=0.8)) for number in (1, 64))
    assert few > 1.0
    assert many > 0.6 * few


def test_what_the_final_tells_already_does_not_count():
    units, _, finals, is_learnt = _clips()
    assert abs(conditional_information(units, finals, finals, is_learnt)) < 0.05


def test_there_must_be_clips_on_both_sides():
    units, tones, finals, _ = _clips()
    for is_learnt in (np.ones(400, bool), np.zeros(400, bool)):
        with pytest.raises(ValueError, match="to learn from"):
            conditional_information(units, tones, finals, is_learnt)
