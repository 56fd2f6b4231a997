# SPDX-License-Identifier: Apache-2.0
"""
What continuous tokens promise: padding, batching, streaming and windows change nothing; noise is added when it is
asked for; and the latents' statistics are those of the speech that was trained on.
"""

import copy
import functools
import math
import random

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

import speech_tokenizers  # noqa: F401 (registers the classes)
from speech_tokenizers.modeling.codec_layers import StreamingCache
from speech_tokenizers.modeling.codec_streaming import CodecStream, LatentStream
from speech_tokenizers.modeling.configuration_cst import CST_PRESETS, CSTConfig
from speech_tokenizers.modeling.latent_bottleneck import LatentBottleneck, LatentStatistics
from speech_tokenizers.modeling.modeling_cst import CSTModel


TOLERANCE = {"rtol": 0, "atol": 2e-5}
SPECTRAL = {"encoder_type": "stft", "decoder_type": "istft"}
VARIANTS = {
    "seanet": {},
    "seanet-kl": {"bottleneck_type": "kl", "latent_stride": 3, "pad_mode": "reflect", "encoder_lstm": "bidirectional"},
    "seanet-causal": {"causal": True, "latent_stride": 2, "activation": "snake"},
    "seanet-causal-reflect": {"causal": True, "latent_stride": 2, "pad_mode": "reflect"},
    "spectral": {**SPECTRAL, "latent_stride": 2, "ctc_labels": ["<pad>", "a", "b"]},
    "spectral-kl": {**SPECTRAL, "bottleneck_type": "kl", "use_weight_norm": False},
    "spectral-causal": {**SPECTRAL, "causal": True, "latent_stride": 3, "encoder_lstm": "none"},
    "spectral-replicate": {**SPECTRAL, "pad_mode": "replicate", "latent_stride": 2},
    "mixed": {"encoder_type": "stft", "latent_stride": 2, "decoder_lstm": "bidirectional"},
}
STREAMABLE = ["seanet-causal", "spectral-causal"]
every = pytest.mark.parametrize("name", VARIANTS)


def make_config(**overrides) -> CSTConfig:
    """40 samples a frame of the networks, latents of 6 dimensions."""
    sizes = {
        "downsampling_ratios": (2, 4, 5),
        "num_filters": 4,
        "hidden_size": 6,
        "network_hidden_size": 12,
        "encoder_hidden_size": 16,
        "decoder_hidden_size": 16,
        "encoder_num_layers": 2,
        "decoder_num_layers": 2,
        "num_lstm_layers": 1,
        "ctc_hidden_size": 8,
    }
    return CSTConfig(**{**sizes, **overrides})


def make_model(**overrides) -> CSTModel:
    """A tiny model in evaluation mode; no bias and no statistic is trivial, since that would hide errors."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = CSTModel(make_config(**overrides))
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "alpha")):
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
        model.statistics.mean.uniform_(-1, 1)
        model.statistics.variance.uniform_(0.3, 3)
    return model.eval()


@functools.cache
def shared_model(name: str) -> CSTModel:
    return make_model(**VARIANTS[name])


def pad_batch(items: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms (1, 1, length) as a batch with its mask; what is padded is loud, to be noticed."""
    longest = max(item.shape[-1] for item in items)
    batch = torch.full((len(items), 1, longest), 0.9)
    mask = torch.zeros(len(items), longest, dtype=torch.long)
    for k, item in enumerate(items):
        place = slice(longest - item.shape[-1], None) if side == "left" else slice(0, item.shape[-1])
        batch[k, :, place] = item[0]
        mask[k, place] = 1
    return batch, mask


def pieces_of(total: int, rng: random.Random, longest: int) -> list[int]:
    pieces = []
    while total:
        pieces.append(min(total, rng.choice([1, rng.randint(1, longest)])))
        total -= pieces[-1]
    return pieces


@pytest.mark.parametrize("side", ["left", "right"])
@every
@torch.no_grad()
def test_a_padded_batch_gives_each_item_what_it_gets_alone(name, side, signal):
    model = shared_model(name)
    hop = model.hop_length
    items = [signal(1, length, seed=length) for length in (1, hop - 1, 2 * hop, 7 * hop + 3, 333)]
    batch, mask = pad_batch(items, side)
    together = model.encode(batch, padding_mask=mask)
    decoded = model.decode(together.latents, audio_codes_mask=together.audio_codes_mask).audio_values
    whole = model(batch, padding_mask=mask, return_loss=False)
    torch.testing.assert_close(whole.latents, together.latents, **TOLERANCE)
    for k, item in enumerate(items):
        alone = model.encode(item)
        frames = together.audio_codes_mask[k].bool()
        assert frames.sum() == model.get_encoded_length(item.shape[-1]) == alone.latents.shape[1]
        torch.testing.assert_close(together.latents[k, frames], alone.latents[0], **TOLERANCE)
        assert not together.latents[k, ~frames].any()
        samples = frames.repeat_interleave(hop)
        torch.testing.assert_close(decoded[k, :, samples], model.decode(alone.latents).audio_values[0], **TOLERANCE)
        assert not decoded[k, :, ~samples].any()
        alone_whole = model(item, return_loss=False)
        torch.testing.assert_close(whole.audio_values[k, :, mask[k].bool()], alone_whole.audio_values[0], **TOLERANCE)
        assert not whole.audio_values[k, :, ~mask[k].bool()].any()
        if model.ctc_projection is not None:
            torch.testing.assert_close(whole.ctc_logits[k, frames], alone_whole.ctc_logits[0], **TOLERANCE)


@every
@torch.no_grad()
def test_any_length_decodes_to_its_own_length_as_forward_does(name, signal):
    model = shared_model(name)
    hop = model.hop_length
    for length in (1, hop - 1, hop, hop + 1, 3 * hop, 1234):
        waveform = signal(2, length, seed=length)
        latents = model.encode(waveform).latents
        assert latents.shape == (2, math.ceil(length / hop), 6)
        decoded = model.decode(latents, num_samples=length).audio_values
        assert decoded.shape == waveform.shape
        torch.testing.assert_close(decoded, model(waveform, return_loss=False).audio_values, **TOLERANCE)


@pytest.mark.parametrize("trial", range(2))
@pytest.mark.parametrize("name", STREAMABLE)
@torch.no_grad()
def test_a_causal_model_streams_as_it_codes_offline(name, trial, signal):
    model, rng = shared_model(name), random.Random(trial)
    assert model.is_streamable
    length = rng.randint(300, 1500)
    waveform = signal(2, length, seed=trial)
    offline = model.encode(waveform).latents
    stream = LatentStream(model)
    parts = [stream.encode(chunk) for chunk in waveform.split(pieces_of(length, rng, 300), dim=-1)]
    streamed = torch.cat([*parts, stream.finish_encode()], dim=1)
    torch.testing.assert_close(streamed, offline, **TOLERANCE)

    stream = LatentStream(model)
    parts = [stream.decode(part) for part in offline.split(pieces_of(offline.shape[1], rng, 5), dim=1)]
    decoded = torch.cat([*parts, stream.finish_decode()], dim=-1)
    torch.testing.assert_close(decoded, model.decode(offline).audio_values, **TOLERANCE)


@torch.no_grad()
def test_a_causal_stream_answers_each_latent_at_once(signal):
    model = shared_model("spectral-causal")
    stream = LatentStream(model)
    for chunk in signal(1, 4 * model.hop_length).split(model.hop_length, dim=-1):
        latents = stream.encode(chunk)
        assert latents.shape == (1, 1, 6)
        assert stream.decode(latents).shape == (1, 1, model.hop_length)


@pytest.mark.parametrize("name", ["seanet-causal-reflect", "spectral", "spectral-kl", "spectral-replicate"])
@torch.no_grad()
def test_windows_give_the_latents_of_the_whole(name, signal):
    overrides = VARIANTS[name] if name.startswith("spectral") else {**VARIANTS[name], "encoder_lstm": "none"}
    model = make_model(**{"decoder_lstm": "none", **overrides})
    assert not model.is_streamable
    rng = random.Random(name)
    length = rng.randint(9000, 12000)
    waveform = signal(1, length, seed=length)
    whole = model.encode(waveform).latents
    stream = LatentStream(model, window_seconds=0.1)
    parts = [stream.encode(chunk) for chunk in waveform.split(pieces_of(length, rng, 3000), dim=-1)]
    torch.testing.assert_close(torch.cat([*parts, stream.finish_encode()], dim=1), whole, **TOLERANCE)
    stream = LatentStream(model, window_seconds=0.1)
    parts = [stream.decode(part) for part in whole.split(17, dim=1)]
    decoded = torch.cat([*parts, stream.finish_decode()], dim=-1)
    torch.testing.assert_close(decoded, model.decode(whole).audio_values, **TOLERANCE)


@torch.no_grad()
def test_a_latent_stream_serves_a_codec_too(codec, signal):
    model, waveform = codec(causal=True), signal(1, 500)
    stream = LatentStream(model)
    latents = torch.cat([stream.encode(waveform[..., :123]), stream.encode(waveform[..., 123:])], dim=1)
    latents = torch.cat([latents, stream.finish_encode()], dim=1)
    torch.testing.assert_close(latents, model.encode(waveform).latents, **TOLERANCE)


def test_a_cache_is_refused_where_layers_look_ahead(signal):
    with pytest.raises(ValueError, match="`padding_cache` needs a codec with `causal=True`"):
        shared_model("spectral").encode(signal(1, 400), padding_cache=StreamingCache())
    with pytest.raises(ValueError, match="`model` is in training mode"):
        LatentStream(copy.deepcopy(shared_model("seanet-causal")).train())
    assert issubclass(LatentStream, CodecStream)


@every
@torch.no_grad()
def test_saving_and_loading_changes_no_bit(name, signal, tmp_path):
    model, waveform = shared_model(name), signal(2, 700)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CSTConfig)
    for auto_class in (AutoModel, AutoModelForAudioTokenization):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is CSTModel
        assert isinstance(loaded, PreTrainedAudioTokenizerBase)
        before, after = model(waveform), loaded(waveform)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("kind", ["sigma", "kl"])
@torch.no_grad()
def test_encoding_has_noise_only_where_it_is_asked_for(kind, signal):
    model, waveform = make_model(**SPECTRAL, bottleneck_type=kind), signal(2, 4000)
    plain = model.encode(waveform).latents
    for training in (False, True):
        model.train(training)
        assert torch.equal(model.encode(waveform).latents, plain)
        first, second = (model.encode(waveform, sample=True).latents for _ in range(2))
        assert not torch.allclose(first, second)
        assert not torch.allclose(first, plain)
    model.eval()
    assert torch.equal(model(waveform).latents, plain)


@torch.no_grad()
def test_noise_is_on_the_scale_of_the_unnormalized_latents(signal):
    model, waveform = make_model(**SPECTRAL, noise_std=0.7), signal(400, 400)
    difference = model.encode(waveform, sample=True).latents - model.encode(waveform).latents
    noise = difference * model.statistics.std
    # The product of two standard normal numbers has variance 1, the first drawn once an item.
    assert 0.6 < noise.std() < 0.8
    of_items = noise.flatten(1).std(dim=1)
    assert of_items.std() > 0.2


@torch.no_grad()
def test_forward_in_training_adds_the_noise_that_it_is_given(signal):
    model, waveform = make_model(**SPECTRAL).train(), signal(2, 400)
    noise = model.bottleneck.noise((2, 10, 6))
    outputs = model(waveform, noise=noise)
    assert torch.equal(outputs.audio_values, model(waveform, noise=noise).audio_values)
    expected = model.decode(model.statistics.normalize(outputs.raw_latents + 0.5 * noise), num_samples=400)
    torch.testing.assert_close(outputs.audio_values, expected.audio_values, **TOLERANCE)
    assert not torch.allclose(outputs.audio_values, model(waveform).audio_values, atol=1e-4)


def test_the_bottleneck_s_loss_is_the_divergence_from_a_standard_normal():
    moments = torch.tensor([[[1.0, -2.0, 0.0, math.log(0.25)]], [[5.0, 5.0, 5.0, 5.0]]])
    mask = torch.tensor([[1], [0]])
    # By torch.distributions, on the first item alone.
    posterior = torch.distributions.Normal(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.5]))
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(LatentBottleneck("kl", 0.5)(moments, mask).kl_loss, divergence)
    # (1 + 4 + 0 + log(1/4)^2) / 2 / 4
    assert LatentBottleneck("sigma", 0.5)(moments, mask).kl_loss.item() == pytest.approx((5 + math.log(4) ** 2) / 8)


def test_statistics_are_those_of_all_batches_and_then_stay():
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.normal(3, [0.5, 2.0, 0.0], size=(4, n, 3))).float() for n in (50, 80, 30)]
    masks = [torch.from_numpy(rng.integers(0, 2, size=batch.shape[:2])) for batch in batches]
    statistics = LatentStatistics(3, num_steps=3, decay=0.5)
    for batch, mask in zip(batches, masks, strict=True):
        statistics.update(torch.where(mask.unsqueeze(-1).bool(), batch, torch.nan), mask)
    # A moving average with the weights 1/4, 1/4, 1/2: shares of 1, then 1/2 (both 1 - decay and 1/2), then 1/2.
    weights = np.array([0.25, 0.25, 0.5])
    rows = [batch[mask.bool()].double().numpy() for batch, mask in zip(batches, masks, strict=True)]
    means = np.stack([part.mean(0) for part in rows])
    expected = weights @ means
    spread = weights @ np.stack([part.var(0) for part in rows]) + weights @ (means - expected) ** 2
    np.testing.assert_allclose(statistics.mean, expected, rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, spread, rtol=1e-4, atol=1e-9)
    assert statistics.std[2] == pytest.approx(1e-3)  # never divides by zero

    mean = statistics.mean.clone()
    statistics.update(torch.ones(2, 5, 3))
    assert torch.equal(statistics.mean, mean)
    assert not statistics.follows


def test_only_training_moves_the_statistics(signal):
    model, waveform = make_model(**SPECTRAL, statistics_steps=2), signal(2, 400)
    before = model.statistics.mean.clone()
    model(waveform)
    assert torch.equal(model.statistics.mean, before)
    model.train()
    model.freeze()
    model(waveform)
    assert torch.equal(model.statistics.mean, before)
    model.freeze(False)
    model.train()
    outputs = model(waveform)
    torch.testing.assert_close(model.statistics.mean, outputs.raw_latents.mean(dim=(0, 1)), **TOLERANCE)
    torch.testing.assert_close(outputs.latents.mean(dim=(0, 1)), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs.latents.var(dim=(0, 1), correction=0), torch.ones(6), rtol=1e-3, atol=0)


def test_statistics_stay_in_float32(tmp_path, signal):
    model = make_model(**SPECTRAL)
    mean = model.statistics.mean.clone()
    model.save_pretrained(tmp_path)
    for loaded in (CSTModel.from_pretrained(tmp_path, dtype=torch.bfloat16), copy.deepcopy(model).to(torch.bfloat16)):
        assert {parameter.dtype for parameter in loaded.encoder.parameters()} == {torch.bfloat16}
        assert torch.equal(loaded.statistics.mean, mean)
        with torch.no_grad():
            encoded = loaded.encode(signal(1, 400))
            assert encoded.latents.dtype == torch.float32
            assert loaded.decode(encoded.latents).audio_values.dtype == torch.float32


@pytest.mark.parametrize("name", ["seanet-kl", "spectral"])
def test_every_parameter_gets_a_gradient(name, signal):
    model = copy.deepcopy(shared_model(name)).train()
    outputs = model(signal(2, 2000))
    loss = outputs.loss if outputs.ctc_logits is None else outputs.loss + outputs.ctc_logits.square().mean()
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_a_few_steps_lower_the_loss(signal):
    model, waveform = make_model(**SPECTRAL).train(), signal(2, 2000)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model(waveform).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_derived_properties_and_presets():
    config = make_config(latent_stride=3, **SPECTRAL)
    assert (config.network_hop_length, config.hop_length, config.n_fft) == (40, 120, 160)
    assert config.frame_rate == pytest.approx(16000 / 120)
    assert config.bits_per_second == pytest.approx(16000 / 120 * 6 * 16)
    for name in CST_PRESETS:
        config = CSTConfig.from_preset(name)
        assert 16 <= config.hidden_size <= 64, name
        assert 6 <= config.frame_rate <= 50, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_stride": 0}, "`latent_stride` must be at least 1"),
        ({"bottleneck_type": "vq"}, "`bottleneck_type` must be 'sigma' or 'kl'"),
        ({"noise_std": -1.0}, "`noise_std` must not be negative"),
        ({"statistics_decay": 1.0}, "`statistics_decay` must lie strictly between 0 and 1"),
        ({"ctc_labels": ["a", "a"]}, "`ctc_labels` must be a blank and at least one label, all different"),
        ({"n_fft": 100, "latent_stride": 2}, r"`n_fft` \(100\) must be a multiple of `network_hop_length` \(40\)"),
        ({"encoder_type": "mel"}, "`encoder_type` must be one of"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        make_config(**fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.decode(torch.zeros(1, 4, 5)), r"`latents` must have shape \(batch, num_frames, 6\)"),
        (lambda model: model.decode(torch.zeros(1, 0, 6)), "`latents` is empty"),
        (
            lambda model: model.decode(torch.zeros(1, 4, 6), num_samples=500),
            "`num_samples` must lie between 241 and 320",
        ),
        (
            lambda model: model.decode(torch.zeros(1, 4, 6), audio_codes_mask=torch.ones(1, 3)),
            r"`audio_codes_mask` must have shape \(1, 4\)",
        ),
        (lambda model: model.encode(torch.zeros(1, 2, 100)), "`input_values` must be mono"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(shared_model("spectral"))


def test_an_unknown_argument_is_refused(signal):
    with pytest.raises(TypeError, match="`forward` has no argument num_quantizers"):
        shared_model("spectral")(signal(1, 100), num_quantizers=2)
