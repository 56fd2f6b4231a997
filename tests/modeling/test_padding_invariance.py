# SPDX-License-Identifier: Apache-2.0
"""Encoders of transformers give a row of a padded batch what they give it alone."""

import pytest
import torch
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    UniSpeechSatConfig,
    UniSpeechSatModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from speech_tokenizers.modeling.padding_invariance import (
    conv_stem_states,
    frame_mask,
    make_padding_invariant,
    num_conv_frames,
    num_mask_frames,
)


LENGTHS = torch.tensor([9000, 5005, 400])
FAMILIES = [
    (HubertConfig, HubertModel),
    (WavLMConfig, WavLMModel),
    (Wav2Vec2Config, Wav2Vec2Model),
    (UniSpeechSatConfig, UniSpeechSatModel),
]


@pytest.fixture
def batch(signal):
    waveforms = signal(len(LENGTHS), int(LENGTHS.max()))[:, 0]
    mask = frame_mask(LENGTHS, waveforms.shape[1])
    # What stands in the padding must not matter.
    return torch.where(mask, waveforms, torch.full_like(waveforms, 0.7)), mask.long()


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize(("config_class", "model_class"), FAMILIES)
@torch.no_grad()
def test_each_row_of_a_padded_batch_is_what_it_is_alone(batch, make_encoder, config_class, model_class, pre_norm):
    encoder = make_padding_invariant(make_encoder(config_class, model_class, pre_norm))
    waveforms, mask = batch
    states = encoder(waveforms, attention_mask=mask, output_hidden_states=True).hidden_states
    for row, length in enumerate(LENGTHS.tolist()):
        alone = encoder(waveforms[row : row + 1, :length], output_hidden_states=True).hidden_states
        assert alone[0].shape[1] == num_conv_frames(encoder.config, length)
        for ours, expected in zip(states, alone, strict=True):
            torch.testing.assert_close(ours[row, : expected.shape[1]], expected[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_transformers_own_rows_hear_the_padding(batch, make_encoder):
    """Else there would be nothing to mend, and the test above would show nothing."""
    encoder = make_encoder(HubertConfig, HubertModel, False)
    waveforms, mask = batch
    padded = encoder(waveforms, attention_mask=mask).last_hidden_state
    alone = encoder(waveforms[1:2, : int(LENGTHS[1])]).last_hidden_state
    assert (padded[1, : alone.shape[1]] - alone[0]).abs().max() > 0.01


@torch.no_grad()
def test_nothing_changes_without_padding(batch, make_encoder):
    encoder = make_encoder(HubertConfig, HubertModel, False)
    waveforms, _ = batch
    before = encoder(waveforms).last_hidden_state
    names = list(encoder.state_dict())
    make_padding_invariant(encoder)
    assert list(encoder.state_dict()) == names
    assert torch.equal(encoder(waveforms).last_hidden_state, before)
    assert torch.equal(encoder(waveforms, attention_mask=torch.ones_like(waveforms)).last_hidden_state, before)


@torch.no_grad()
def test_a_model_around_the_encoder_is_changed_too(batch, make_encoder):
    recognizer = make_padding_invariant(make_encoder(HubertConfig, HubertForCTC, False))
    waveforms, mask = batch
    logits = recognizer(waveforms, attention_mask=mask).logits
    alone = recognizer(waveforms[1:2, : int(LENGTHS[1])]).logits
    torch.testing.assert_close(logits[1, : alone.shape[1]], alone[0], rtol=0, atol=1e-5)


def test_gradients_of_a_padded_row_are_those_of_the_row_alone(batch, make_encoder):
    encoder = make_padding_invariant(make_encoder(HubertConfig, HubertModel, False))
    waveforms, _ = batch
    length = int(LENGTHS[1])
    weight = encoder.feature_extractor.conv_layers[0].conv.weight
    padded = conv_stem_states(encoder.feature_extractor, waveforms, LENGTHS)
    frames = num_conv_frames(encoder.config, length)
    (of_padded,) = torch.autograd.grad(padded[1, :, :frames].square().sum(), weight)
    alone = conv_stem_states(encoder.feature_extractor, waveforms[1:2, :length], None)
    (expected,) = torch.autograd.grad(alone.square().sum(), weight)
    torch.testing.assert_close(of_padded, expected, rtol=1e-4, atol=1e-4)


def test_lengths_are_forgotten_after_a_failed_call(batch, make_encoder):
    encoder = make_padding_invariant(make_encoder(HubertConfig, HubertModel, False))
    waveforms, mask = batch
    with pytest.raises(RuntimeError):
        encoder(waveforms.double(), attention_mask=mask)
    assert encoder.feature_extractor.conv_layers[0].layer_norm.lengths is None


def test_frames_of_the_convolutions():
    config = HubertConfig()
    assert [num_conv_frames(config, samples) for samples in (0, 399, 400, 719, 720, 16000)] == [0, 0, 1, 1, 2, 49]
    assert num_conv_frames(config, torch.tensor([399, 720])).tolist() == [0, 2]


def test_frame_counts_are_the_original_s(spin_encoder):
    """The original counts of a batch, and those of the convolutions (parity data)."""
    lengths, config = spin_encoder["frames.sample_lens"], HubertConfig()
    padded = int(lengths.max())
    assert torch.equal(num_mask_frames(config, lengths, padded, "fairseq"), spin_encoder["frames.original_rule"])
    assert torch.equal(num_mask_frames(config, lengths, padded, "conv"), spin_encoder["frames.conv_formula"])
