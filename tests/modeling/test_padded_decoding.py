# SPDX-License-Identifier: Apache-2.0
"""A padded batch of tokens decodes to the audio of each row alone, and a mask says where it is."""

import pytest
import torch

from helpers.tiny_codecs import OURS, THEIRS


SPEAKING = [name for name in (*OURS, *THEIRS) if name not in ("kmeans", "dc_spin")]
SPEAKING += ["kmeans-vocoder", "dc_spin-vocoder"]
LENGTHS = (9013, 4000, 6222)


@pytest.fixture
def batch(signal):
    """Three recordings, (3, 1, num_samples), padded on the right with zeros, and their mask."""
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return signal(3, max(LENGTHS)) * mask[:, None], mask


def tokens_name(model) -> str:
    return "audio_codes" if model.kind == "codes" else "latents"


def flipped(batch):
    # Each row is padded on the left; its samples are in their order.
    waveforms, mask = (value.clone() for value in batch)
    for row, length in enumerate(LENGTHS):
        waveforms[row] = waveforms[row].roll(max(LENGTHS) - length, dims=-1)
        mask[row] = mask[row].roll(max(LENGTHS) - length, dims=-1)
    return waveforms, mask


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("name", SPEAKING)
@torch.no_grad()
def test_the_mask_cuts_the_audio_of_each_row_from_a_padded_batch(name, with_lengths, make_model, batch):
    model, (waveforms, mask) = make_model(name), batch
    tokens = tokens_name(model)
    encoded = model.encode(waveforms, mask)
    lengths = {"num_samples": torch.tensor(LENGTHS)} if with_lengths else {}
    decoded = model.decode(**{tokens: encoded[tokens]}, audio_codes_mask=encoded.audio_codes_mask, **lengths)
    assert decoded.padding_mask.shape == (3, decoded.audio_values.shape[-1])
    assert decoded.padding_mask.dtype == torch.long
    assert not decoded.audio_values[decoded.padding_mask[:, None] == 0].any()
    for row, length in enumerate(LENGTHS):
        alone = model.encode(waveforms[row : row + 1, :, :length])
        expected = model.decode(
            **{tokens: alone[tokens]}, **({"num_samples": length} if with_lengths else {})
        ).audio_values[0, 0]
        audio = decoded.audio_values[row, 0, decoded.padding_mask[row] > 0]
        torch.testing.assert_close(audio, expected, atol=2e-5, rtol=0)
        assert not with_lengths or len(audio) == length


@pytest.mark.parametrize("name", [name for name in SPEAKING if not name.endswith("vocoder")])
@torch.no_grad()
def test_the_mask_cuts_the_audio_of_rows_that_are_padded_on_the_left(name, make_model, batch):
    model, (waveforms, mask) = make_model(name), flipped(batch)
    tokens = tokens_name(model)
    encoded = model.encode(waveforms, mask)
    decoded = model.decode(
        **{tokens: encoded[tokens]}, audio_codes_mask=encoded.audio_codes_mask, num_samples=torch.tensor(LENGTHS)
    )
    for row, length in enumerate(LENGTHS):
        alone = model.encode(waveforms[row : row + 1, :, max(LENGTHS) - length :])
        expected = model.decode(**{tokens: alone[tokens]}, num_samples=length).audio_values[0, 0]
        audio = decoded.audio_values[row, 0, decoded.padding_mask[row] > 0]
        torch.testing.assert_close(audio, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", SPEAKING)
@torch.no_grad()
def test_lengths_of_rows_need_no_mask(name, make_model, signal):
    model = make_model(name)
    encoded = model.encode(signal(2, 6400))
    lengths = torch.tensor([6400, 6390])
    decoded = model.decode(**{tokens_name(model): encoded[tokens_name(model)]}, num_samples=lengths)
    assert decoded.padding_mask.sum(-1).tolist() == lengths.tolist()
    assert not decoded.audio_values[1, 0, 6390:].any()


@pytest.mark.parametrize("name", SPEAKING)
@torch.no_grad()
def test_rows_that_are_all_whole_have_no_mask(name, make_model, signal):
    model = make_model(name)
    encoded = model.encode(signal(2, 6400))
    decoded = model.decode(**{tokens_name(model): encoded[tokens_name(model)]}, num_samples=6400)
    assert decoded.get("padding_mask") is None


@torch.no_grad()
def test_units_with_durations_have_a_mask(make_model):
    vocoder = make_model("kmeans-vocoder").vocoder
    durations = torch.tensor([[1, 2, 3], [1, 1, 1]])
    decoded = vocoder.decode(torch.zeros(2, 2, 3, dtype=torch.long), durations=durations)
    assert decoded.padding_mask.sum(-1).tolist() == [6 * 320, 3 * 320]
    assert not decoded.audio_values[1, 0, 3 * 320 :].any()


def test_a_length_that_does_not_fit_the_frames_of_its_row_is_refused(codec):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    codes = torch.zeros(2, 4, 3, dtype=torch.long)
    message = "`num_samples` must lie between 41 and 80 for the 2 frames of row 1, but got 100"
    with pytest.raises(ValueError, match=message):
        codec().decode(codes, audio_codes_mask=mask, num_samples=torch.tensor([100, 100]))
