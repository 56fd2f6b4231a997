# SPDX-License-Identifier: Apache-2.0
"""
What DM-Codec adds to the RVQ codec: features of its codebooks for two teachers.

What both promise is tested on both in test_codec_exactness.py and test_modeling_rvq_codec.py.
"""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

import speech_tokenizers  # noqa: F401 (registers the classes)
from speech_tokenizers.modeling.codec_layers import CodecLSTM
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.processing.feature_extraction_dm_codec import DMCodecFeatureExtractor


BOTH = {"semantic_dimension": 6, "contextual_dimension": 10}


def test_features_have_the_size_of_their_teachers(codec, signal):
    outputs = codec(**BOTH)(signal(2, 777))
    assert outputs.semantic_features.shape == (2, 20, 6)
    assert outputs.contextual_features.shape == (2, 20, 10)


@torch.no_grad()
def test_without_a_teacher_there_is_no_projection(codec, signal):
    model = codec(semantic_dimension=6)
    outputs = model(signal(1, 400))
    assert outputs.contextual_features is None
    assert "contextual_features" not in outputs
    assert not any("contextual" in name for name in model.state_dict())


@torch.no_grad()
def test_it_codes_as_an_rvq_codec_of_the_same_weights(codec, tiny_config, signal):
    model, waveform = codec(encoder_lstm="bidirectional", **BOTH), signal(2, 777)
    plain = RVQCodecModel(tiny_config(encoder_lstm="bidirectional")).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "_projection" not in name})
    outputs, expected = model(waveform), plain(waveform)
    for name in ("loss", "audio_values", "audio_codes", "latents", "quantized_latents"):
        assert torch.equal(outputs[name], expected[name]), name


def test_teachers_do_not_change_where_a_seed_begins(tiny_config):
    # The arms of an ablation start from the same codec.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = RVQCodecModel(tiny_config()).state_dict()
        torch.manual_seed(0)
        distilled = DMCodecModel(tiny_config(**BOTH)).state_dict()
    assert all(torch.equal(plain[name], distilled[name]) for name in plain)


@pytest.mark.parametrize("stage", [1, 2, 4, "mean", "sum"])
@pytest.mark.parametrize("kind", ["semantic", "contextual"])
@torch.no_grad()
def test_the_chosen_codebooks_are_projected(codec, signal, kind, stage):
    model = codec(**BOTH, **{f"{kind}_stage": stage})
    outputs = model(signal(2, 777))
    codebooks = zip(model.quantizer.quantizers, outputs.audio_codes.unbind(dim=1), strict=True)
    entries = torch.stack([quantizer.decode(codes) for quantizer, codes in codebooks])
    chosen = {"mean": entries.mean(dim=0), "sum": entries.sum(dim=0)}.get(stage)
    chosen = entries[stage - 1] if chosen is None else chosen
    projection = getattr(model, f"{kind}_projection")
    torch.testing.assert_close(outputs[f"{kind}_features"], projection(chosen))
    # The other keeps the first codebook.
    other = "contextual" if kind == "semantic" else "semantic"
    torch.testing.assert_close(outputs[f"{other}_features"], getattr(model, f"{other}_projection")(entries[0]))


@pytest.mark.parametrize("stage", [1, 2, 4, "mean", "sum"])
def test_distillation_of_any_stage_reaches_the_whole_encoder(new_codec, signal, stage):
    model = new_codec(semantic_dimension=6, semantic_stage=stage).train()
    model(signal(2, 800)).semantic_features.square().sum().backward()
    for part in (model.encoder, model.semantic_projection):
        for name, parameter in part.named_parameters():
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in model.decoder.parameters())


@torch.no_grad()
def test_features_of_a_stage_that_is_not_used_are_none(new_codec, signal):
    model = new_codec(**BOTH, semantic_stage=3, contextual_stage="mean")
    for num_quantizers in (1, 2, 3):
        outputs = model(signal(1, 400), num_quantizers=num_quantizers)
        assert (outputs.semantic_features is None) == (num_quantizers < 3)
        assert outputs.contextual_features.shape == (1, 10, 10)


@torch.no_grad()
def test_a_shared_projection_is_one(new_codec, signal):
    model = new_codec(semantic_dimension=6, contextual_dimension=6, share_projection=True, contextual_stage=2)
    assert model.contextual_projection is None
    outputs = model(signal(1, 400))
    second = model.quantizer.quantizers[1].decode(outputs.audio_codes[:, 1])
    torch.testing.assert_close(outputs.contextual_features, model.semantic_projection(second))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_features_in_a_padded_batch_are_those_of_each_item_alone(codec, signal, side):
    model = codec(encoder_lstm="bidirectional", pad_mode="reflect", semantic_stage="sum", **BOTH)
    long, short = signal(1, 777, seed=1), signal(1, 333, seed=2)
    batch, mask = torch.full((2, 1, 777), 0.9), torch.ones(2, 777, dtype=torch.long)
    batch[0] = long[0]
    place = slice(444, None) if side == "left" else slice(0, 333)
    batch[1, :, place] = short[0]
    mask[1] = 0
    mask[1, place] = 1
    together, alone = model(batch, padding_mask=mask), model(short)
    frames = together.audio_codes_mask[1].bool()
    for name in ("semantic_features", "contextual_features"):
        torch.testing.assert_close(together[name][1, frames], alone[name][0], rtol=0, atol=1e-5)
        assert not together[name][1, ~frames].any()


def test_the_auto_classes_know_the_codec_and_its_feature_extractor(codec, tmp_path):
    codec(**BOTH).save_pretrained(tmp_path)
    DMCodecFeatureExtractor().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "DMCodecConfig"
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is DMCodecFeatureExtractor
    for auto_class in (AutoModel, AutoModelForAudioTokenization):
        assert type(auto_class.from_pretrained(tmp_path)) is DMCodecModel


# Frozen, yet differentiable


def state_of(model) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_unchanged(model, before: dict[str, torch.Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("overrides", [BOTH, {"encoder_lstm": "bidirectional", "quantizer_dropout": 0.9}])
def test_a_frozen_codec_passes_gradients_on_and_keeps_everything(new_codec, signal, overrides, training):
    model, waveform = new_codec(**overrides), signal(2, 800).requires_grad_()
    expected = model(waveform.detach(), return_loss=False)
    before = state_of(model)
    model.freeze()
    model.train(training)
    # cuDNN differentiates LSTMs in training mode alone.
    assert all(part.training == training for part in model.modules() if isinstance(part, CodecLSTM))
    for _ in range(2):
        outputs = model(waveform)
        assert torch.equal(outputs.audio_codes, expected.audio_codes)
        assert torch.equal(outputs.audio_values, expected.audio_values)
        outputs.loss.backward()
    assert waveform.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_unchanged(model, before)


def test_a_frozen_codec_passes_gradients_to_latents(new_codec, signal):
    model = new_codec(encoder_lstm="bidirectional", **BOTH)
    latents = model.encode(signal(2, 800)).latents.detach().requires_grad_()
    before = state_of(model)
    model.freeze()
    model.train()
    model.decode(latents=latents).audio_values.square().sum().backward()
    assert latents.grad.abs().sum() > 0
    assert_unchanged(model, before)


def test_an_optimizer_lowers_a_loss_through_a_frozen_codec(new_codec, signal):
    model = new_codec()
    model.freeze()
    waveform, target = signal(1, 400, seed=1).requires_grad_(), model.encode(signal(1, 400, seed=2)).latents.detach()
    optimizer, losses = torch.optim.Adam([waveform], lr=1e-2), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model.train()(waveform, return_loss=False).latents - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_what_was_frozen_learns_again(new_codec, signal):
    model = new_codec()
    before = state_of(model)
    model.freeze()
    model.train()
    model.freeze(False)
    assert model.quantizer.training
    model(signal(2, 800)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(model.quantizer.quantizers[0].codebook, before["quantizer.quantizers.0.codebook"])
