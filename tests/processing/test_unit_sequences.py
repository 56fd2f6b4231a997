# SPDX-License-Identifier: Apache-2.0
"""Units become runs and strings, and come back."""

import itertools

import numpy as np
import pytest
import torch

from speech_tokenizers.processing.unit_sequences import deduplicate, expand, string_to_units, units_to_string


def random_units(seed: int) -> np.ndarray:
    """One to three codebooks of few or many entries, so that runs are long or short; sometimes no frame at all."""
    generator = np.random.default_rng(seed)
    num_frames = int(generator.integers(0, 60))
    shape = (num_frames,) if seed % 3 == 0 else (int(generator.integers(1, 4)), num_frames)
    return generator.integers(0, [2, 3, 500][seed % 3], shape)


@pytest.mark.parametrize("seed", range(60))
def test_expanding_what_was_deduplicated_gives_the_frames(seed):
    frames = random_units(seed)
    units, durations = deduplicate(frames)
    assert np.array_equal(expand(units, durations), frames)
    assert units.shape == (*frames.shape[:-1], len(durations))
    assert durations.sum() == frames.shape[-1]
    columns = [tuple(np.atleast_1d(frames[..., index])) for index in range(frames.shape[-1])]
    assert durations.tolist() == [len(list(run)) for _, run in itertools.groupby(columns)]
    # What has no runs is left as it is.
    again, ones = deduplicate(units)
    assert np.array_equal(again, units)
    assert (ones == 1).all()


def test_a_run_of_two_codebooks_lasts_while_both_stay():
    units, durations = deduplicate(np.array([[1, 1, 1, 2], [7, 7, 8, 8]]))
    assert units.tolist() == [[1, 1, 2], [7, 8, 8]]
    assert durations.tolist() == [2, 1, 1]


def test_tensors_and_lists_are_units_too():
    assert [part.tolist() for part in deduplicate(torch.tensor([3, 3, 4]))] == [[3, 4], [2, 1]]
    assert expand([3, 4], [2, 1]).tolist() == [3, 3, 4]
    assert [part.tolist() for part in deduplicate([])] == [[], []]


def test_strings_are_those_of_slamkit():
    assert units_to_string([12, 7, 7]) == "<Un12><Un7><Un7>"
    assert units_to_string([[12, 7], [0, 3]]) == "<Q1_Un12><Q2_Un0><Q1_Un7><Q2_Un3>"
    assert units_to_string([5], prefix="Hu") == "<Hu5>"
    assert units_to_string([]) == ""
    assert string_to_units("").shape == (0,)


@pytest.mark.parametrize("seed", range(60))
def test_strings_come_back(seed):
    units = random_units(seed)
    if not units.shape[-1]:
        units = np.zeros(0, dtype=np.int64)  # an empty string says nothing of its codebooks
    text = units_to_string(units)
    assert np.array_equal(string_to_units(text), units)
    assert units_to_string(string_to_units(text)) == text


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("<Un1> <Un2>", 5),
        ("<Un1><Un2", 5),
        ("Un1", 0),
        ("<Un-1>", 0),
        ("<Un01>", 0),
        ("<Un>", 0),
        ("<Un1><Hu2>", 5),
        ("<Q0_Un1>", 0),
        ("<Un1>\n", 5),
        ("<Un1><Un1234567890>", 5),
        ("<Un\u0661>", 0),
    ],
)
def test_malformed_strings_are_refused_where_they_break(text, position):
    with pytest.raises(ValueError, match=f"at character {position}"):
        string_to_units(text)


@pytest.mark.parametrize(
    "text", ["<Q1_Un1><Q2_Un1><Q1_Un1>", "<Q2_Un1><Q1_Un1>", "<Q1_Un1><Q1_Un1><Q2_Un1><Q2_Un1>", "<Un1><Q1_Un1>"]
)
def test_codebooks_must_take_turns(text):
    with pytest.raises(ValueError, match="in turn, whole frames"):
        string_to_units(text)


def test_malformed_units_and_durations_are_refused():
    with pytest.raises(TypeError, match="`units` must be integers, but got float64"):
        deduplicate([0.5, 1.0])
    with pytest.raises(ValueError, match="must not be negative, but got -100"):
        deduplicate([3, -100])
    with pytest.raises(ValueError, match="pass the recordings of a batch one by one"):
        deduplicate(np.zeros((2, 1, 5), dtype=int))
    with pytest.raises(ValueError, match="one entry a unit, 2, but got 3"):
        expand([1, 2], [1, 1, 1])
    with pytest.raises(ValueError, match="at least 1 frame, but got 0"):
        expand([1, 2], [1, 0])
    with pytest.raises(ValueError, match=r"must have shape \(num_units,\)"):
        expand([1, 2], [[1, 1]])
    with pytest.raises(TypeError, match="`durations` must be integers"):
        expand([1, 2], [1.0, 2.0])
    with pytest.raises(ValueError, match="`prefix` must be made of ASCII letters"):
        units_to_string([1], prefix="Un<")
