# SPDX-License-Identifier: Apache-2.0
"""Equal neighbouring frames become one unit, and come back."""

import itertools

import pytest
import torch

from speech_tokenizers.modeling.unit_runs import deduplicate_codes, expand_codes


def test_runs_of_a_hand_written_batch():
    audio_codes = torch.tensor([[[5, 5, 7, 7, 7, 5]], [[3, 3, 0, 0, 0, 0]]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    codes, unit_mask, durations = deduplicate_codes(audio_codes, mask)
    # A real code 0 is a unit, and padding of the same number is none.
    assert codes.tolist() == [[[5, 7, 5]], [[3, 0, 0]]]
    assert unit_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert durations.tolist() == [[2, 3, 1], [2, 1, 0]]


def test_a_run_ends_where_any_codebook_changes():
    codes, _, durations = deduplicate_codes(torch.tensor([[[1, 1, 1, 2], [4, 4, 5, 5]]]))
    assert codes.tolist() == [[[1, 1, 2], [4, 5, 5]]]
    assert durations.tolist() == [[2, 1, 1]]


@pytest.mark.parametrize("num_quantizers", [1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_each_row_equals_itertools_and_expands_to_itself(num_quantizers, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 40, (5,), generator=generator)
    mask = (torch.arange(40) < lengths[:, None]).long()
    audio_codes = torch.randint(0, 2, (5, num_quantizers, 40), generator=generator) * mask[:, None]
    codes, unit_mask, durations = deduplicate_codes(audio_codes, mask)
    for row in range(5):
        frames = map(tuple, audio_codes[row, :, : lengths[row]].T.tolist())
        runs = [(unit, len(list(group))) for unit, group in itertools.groupby(frames)]
        num_units = int(unit_mask[row].sum())
        assert list(map(tuple, codes[row, :, :num_units].T.tolist())) == [unit for unit, _ in runs]
        assert durations[row].tolist() == [length for _, length in runs] + [0] * (durations.shape[1] - num_units)

    frames, frame_mask = expand_codes(codes, durations)
    longest = int(lengths.max())
    assert torch.equal(frames, audio_codes[..., :longest])
    assert torch.equal(frame_mask, mask[:, :longest])


def test_padding_on_the_left_is_dropped_too():
    codes, _, durations = deduplicate_codes(torch.tensor([[[0, 0, 0, 9, 9]]]), torch.tensor([[0, 0, 1, 1, 1]]))
    assert codes.tolist() == [[[0, 9]]]
    assert durations.tolist() == [[1, 2]]


def test_no_frames_are_no_units():
    codes, mask, durations = deduplicate_codes(torch.ones(2, 1, 4, dtype=torch.long), torch.zeros(2, 4))
    assert codes.shape == (2, 1, 0)
    assert mask.shape == durations.shape == (2, 0)
    frames, frame_mask = expand_codes(codes, durations)
    assert frames.shape == (2, 1, 0)
    assert frame_mask.shape == (2, 0)


def test_durations_that_do_not_fit_are_refused():
    codes = torch.zeros(1, 1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="must have shape"):
        expand_codes(codes, torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="must not be negative, but got -1"):
        expand_codes(codes, torch.tensor([[1, -1, 1]]))
