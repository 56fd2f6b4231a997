# SPDX-License-Identifier: Apache-2.0
"""HuBERT's masked prediction: what padding, masks, labels and saving do to it."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers import AutoModel, HubertModel

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.modeling.configuration_hubert_masked_prediction import HubertMaskedPredictionConfig
from speech_tokenizers.modeling.modeling_hubert_masked_prediction import HubertForMaskedPrediction, span_mask
from speech_tokenizers.modeling.padding_invariance import num_conv_frames


TINY = {
    "conv_dim": (8,) * 7,
    "label_vocab_size": 7,
    "final_dim": 6,
    "mask_length": 3,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
}
LENGTHS = [9000, 5005, 3000]


def make_model(**fields) -> HubertForMaskedPrediction:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = HubertForMaskedPrediction(tiny_hubert(HubertMaskedPredictionConfig, **{**TINY, **fields}))
        for parameter in model.parameters():  # else norms and biases are those of the start
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.train()


@pytest.fixture
def batch(signal):
    """Rows of three lengths with noise in the padding, and labels, some of which are missing."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    noise = torch.rand(len(LENGTHS), max(LENGTHS), generator=generator)
    config = tiny_hubert(HubertMaskedPredictionConfig, **TINY)
    frames = num_conv_frames(config, max(LENGTHS))
    labels = torch.randint(7, (len(LENGTHS), frames), generator=generator)
    labels[0, -2:] = -100
    spans = torch.zeros(len(LENGTHS), frames, dtype=torch.bool)
    for row, length in zip(spans, LENGTHS, strict=True):
        own = num_conv_frames(config, length)
        row[:own] = span_mask(own, 0.8, 3, generator=generator)
    return {
        "input_values": torch.where(mask.bool(), signal(len(LENGTHS), max(LENGTHS))[:, 0], noise),
        "attention_mask": mask,
        "labels": labels,
        "mask_time_indices": spans,
    }


def alone(batch, row):
    frames = num_conv_frames(tiny_hubert(HubertMaskedPredictionConfig, **TINY), LENGTHS[row])
    return {
        "input_values": batch["input_values"][row : row + 1, : LENGTHS[row]],
        "labels": batch["labels"][row : row + 1, :frames],
        "mask_time_indices": batch["mask_time_indices"][row : row + 1, :frames],
    }


@pytest.mark.parametrize("architecture", [{}, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}])
def test_a_padded_batch_is_its_rows_alone(batch, architecture):
    model = make_model(**architecture)
    together = model(**batch)
    together.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sums = {"loss": 0.0, "masked_loss": 0.0, "masked_accuracy": 0.0, "features_penalty": 0.0}
    for row in range(len(LENGTHS)):
        outputs = model(**alone(batch, row), num_items_in_batch=together.num_masked)
        outputs.loss.backward()  # already a share of the batch's
        sums["loss"] += outputs.loss
        for name in ("masked_loss", "masked_accuracy", "features_penalty"):
            sums[name] += outputs[name] * outputs.num_masked / together.num_masked
    for name, value in sums.items():
        torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_as_in_fairseq_the_padding_counts(batch):
    """Else the test above would show nothing."""
    model = make_model(padding_invariant=False)
    sums = sum(
        (out := model(**alone(batch, row))).masked_loss * out.num_masked / model(**batch).num_masked
        for row in range(len(LENGTHS))
    )
    assert abs(sums - model(**batch).masked_loss) > 1e-4


def test_loss_is_the_cross_entropy_of_cosines(batch):
    model = make_model()
    outputs = model(**batch)
    projected = model.final_proj(outputs.last_hidden_state)
    cosines = F.cosine_similarity(projected[:, :, None], model.label_embeddings, dim=-1)
    labels = batch["labels"].masked_fill(~outputs.frame_mask, -100)
    masked = batch["mask_time_indices"] & (labels >= 0)
    expected = F.cross_entropy((cosines / 0.1)[masked], labels[masked])
    torch.testing.assert_close(outputs.masked_loss, expected)
    features = model.hubert.feature_extractor(alone(batch, 1)["input_values"])
    single = model(**alone(batch, 1))
    torch.testing.assert_close(single.features_penalty, features.square().mean())
    torch.testing.assert_close(single.loss, single.masked_loss + 10 * single.features_penalty)


def test_masked_frames_say_nothing_of_what_was_there(batch):
    """All frames masked: any waveform of this length gives the same output."""
    model = make_model().eval()
    everything = torch.ones_like(batch["mask_time_indices"][:1])
    waveforms = batch["input_values"][:1]
    one, other = (
        model(values, mask_time_indices=everything).last_hidden_state for values in (waveforms, waveforms.flip(-1))
    )
    assert torch.equal(one, other)
    seen = model(waveforms, mask_time_indices=~everything).last_hidden_state
    assert not torch.allclose(one, seen)


def test_gradient_of_the_stem_is_scaled(batch):
    scaled, plain = make_model(feature_grad_mult=0.1), make_model(feature_grad_mult=1.0)
    scaled(**batch).loss.backward()
    plain(**batch).loss.backward()
    expected = dict(plain.named_parameters())
    for name, parameter in scaled.named_parameters():
        factor = 0.1 if "feature_extractor" in name else 1.0
        torch.testing.assert_close(parameter.grad, factor * expected[name].grad, rtol=1e-4, atol=1e-6)


def test_masks_are_drawn_on_real_frames_only(batch):
    model = make_model()
    outputs = model(batch["input_values"], batch["attention_mask"], batch["labels"])
    own = [num_conv_frames(model.config, length) for length in LENGTHS]
    assert outputs.frame_mask.sum(1).tolist() == own
    assert outputs.mask_time_indices.any(1).all()
    assert not (outputs.mask_time_indices & ~outputs.frame_mask).any()
    # A mask that is given may cover the padding; there it does not count.
    given = model(**{**batch, "mask_time_indices": torch.ones_like(batch["mask_time_indices"])})
    assert given.num_masked == (outputs.frame_mask & (batch["labels"] >= 0)).sum()


@pytest.mark.parametrize("num_frames", [1, 2, 9, 10, 11, 25, 400])
def test_spans_have_their_length_and_number(num_frames):
    for seed in range(20):
        mask = span_mask(num_frames, 0.8, 10, 2, torch.Generator().manual_seed(seed))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.int().numpy(), [0]])))
        runs = edges[1::2] - edges[::2]
        assert len(mask) == num_frames
        assert runs.min() >= min(10, num_frames)
        assert runs.sum() <= 10 * max(2, np.ceil(0.8 * num_frames / 10))


def test_share_of_masked_frames_is_that_of_independent_starts():
    """In a long recording a frame stays unmasked if none of 10 frames begins a span: 0.92 ** 10."""
    mask = span_mask(200_000, 0.8, 10, generator=torch.Generator().manual_seed(0))
    assert mask.float().mean() == pytest.approx(1 - 0.92**10, abs=0.005)


def test_a_seed_repeats_a_mask():
    first, again, other = (span_mask(300, 0.8, 10, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_encoder_is_a_hubert_of_transformers(batch, tmp_path):
    model = make_model().eval()
    model.save_encoder(str(tmp_path))
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is HubertModel
    waveform = alone(batch, 1)["input_values"]
    nothing = torch.zeros_like(alone(batch, 1)["mask_time_indices"])
    with torch.no_grad():
        expected = model(waveform, mask_time_indices=nothing).last_hidden_state
        torch.testing.assert_close(encoder(waveform).last_hidden_state, expected, rtol=0, atol=1e-6)


def test_save_and_load_are_exact(batch, tmp_path):
    model = make_model().eval()
    model.save_pretrained(tmp_path)
    loaded = HubertForMaskedPrediction.from_pretrained(tmp_path).eval()
    assert loaded.config.label_vocab_size == 7
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_label_embeddings_begin_between_0_and_1():
    model = HubertForMaskedPrediction(tiny_hubert(HubertMaskedPredictionConfig, **{**TINY, "label_vocab_size": 500}))
    assert 0 <= model.label_embeddings.min() < 0.01
    assert 0.99 < model.label_embeddings.max() <= 1


def test_what_does_not_fit_is_refused(batch):
    model = make_model()
    with pytest.raises(ValueError, match="`labels` must lie below `label_vocab_size`"):
        model(**{**batch, "labels": batch["labels"] + 7})
    with pytest.raises(ValueError, match=r"`labels` must have the shape .* = \(3, 27\), but got \(3, 26\)"):
        model(**{**batch, "labels": batch["labels"][:, :26]})
    with pytest.raises(ValueError, match="`mask_time_indices` must have the shape"):
        model(**{**batch, "mask_time_indices": batch["mask_time_indices"][:, :20]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frame_rule": "fairseq"}, "`padding_invariant` needs"),
        ({"frame_rule": "longest", "padding_invariant": False}, "`frame_rule` must be one of"),
        ({"mask_prob": 1.5}, "`mask_prob` must lie between 0 and 1"),
        ({"mask_time_prob": 0.0}, "`mask_time_prob` must be positive"),
        ({"label_vocab_size": 0}, "`label_vocab_size` must be positive"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_hubert(HubertMaskedPredictionConfig, **{**TINY, **fields})
