# SPDX-License-Identifier: Apache-2.0
"""Every model computes in any float type, reached by any road, on inputs of any float type."""

import logging
import warnings

import pytest
import torch
from transformers import AutoModel, HubertConfig, LlamaConfig, WhisperConfig

from helpers.tiny_codecs import ENCODER, OURS, THEIRS
from speech_tokenizers import (
    HubertForMaskedPrediction,
    HubertMaskedPredictionConfig,
    KMeansUnitsConfig,
    KMeansUnitsModel,
    LatentLanguageModel,
    LatentLMConfig,
    SpeechEncoderCTCConfig,
    SpeechEncoderForCTC,
)
from speech_tokenizers.modeling import mixed_precision


TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROADS = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "to": lambda model: model.to(torch.float16),
    "to device and type": lambda model: model.to("cpu", torch.bfloat16),
}
KEPT = {"rvq": "quantizer", "dm": "quantizer", "cst": "statistics", "kmeans": "quantizer", "dc_spin": "primary"}


def tokens_of(model, *args, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        encoded = model.encode(*args, **kwargs)
    return encoded.audio_codes if model.kind == "codes" else encoded.latents


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", [*OURS, *THEIRS, "kmeans-vocoder", "dc_spin-vocoder"])
@torch.no_grad()
def test_a_model_cast_by_any_road_codes_inputs_of_any_float_type(name, road, make_model, signal):
    model, waveforms = make_model(name), signal(2, 4000)
    exact = tokens_of(model, waveforms)  # before the cast, so that what the model keeps by then has to follow
    model = ROADS[road](model)
    mask = torch.ones(2, 4000)
    mask[1, 2500:] = 0
    for dtype in TYPES:
        encoded = model.encode(waveforms.to(dtype), mask.to(dtype))
        assert tokens_of(model, waveforms.to(dtype)).shape == exact.shape
        kinds = [kind for kind in model.decodable_kinds if encoded.get(_name(kind)) is not None]
        for kind in kinds:
            tokens = encoded[_name(kind)]
            tokens = tokens.to(dtype) if kind == "latents" else tokens
            decoded = model.decode(**{_name(kind): tokens}, audio_codes_mask=encoded.audio_codes_mask.to(dtype))
            assert decoded.audio_values.isfinite().all()
    if road == "double" and model.kind == "codes":
        assert torch.equal(tokens_of(model, waveforms), exact)


def _name(kind: str) -> str:
    return "audio_codes" if kind == "codes" else "latents"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", KEPT)
def test_a_cast_model_codes_as_one_that_was_loaded_in_that_type(name, dtype, make_model, signal, tmp_path):
    model, waveforms = make_model(name), signal(2, 4000)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
    for cast in (make_model(name).to(dtype), torch.nn.ModuleList([model]).to(dtype)[0]):
        floats = {key: value.dtype for key, value in cast.state_dict().items() if value.is_floating_point()}
        assert floats == {key: value.dtype for key, value in loaded.state_dict().items() if key in floats}
        assert torch.equal(tokens_of(cast, waveforms), tokens_of(loaded, waveforms))
    kept = {value.dtype for key, value in loaded.state_dict().items() if key.startswith(KEPT[name])}
    assert kept - {torch.int64, torch.bool} == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_gradients_of_parts_that_stay_in_float32_stay_so(make_model, signal):
    model = make_model("dc_spin").train()
    model(signal(2, 4000), perturbed_values=signal(2, 4000, seed=1)).loss.backward()
    model.half()
    assert model.primary.codebook.grad.dtype == torch.float32
    assert model.primary_projection.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*OURS, *THEIRS])
@torch.no_grad()
def test_autocast_codes_inputs_of_any_float_type_batched_and_streamed(name, dtype, make_model, signal):
    model, waveforms = make_model(name), signal(2, 4000)
    shape = tokens_of(model, waveforms).shape
    with torch.autocast("cpu", dtype=dtype):
        for kind in TYPES:
            assert tokens_of(model, waveforms.to(kind)).shape == shape
            stream = model.encode_stream()
            parts = [stream.encode(part.to(kind)) for part in waveforms[:1].split(1500, dim=-1)]
            tokens = torch.cat([*parts, stream.finish_encode()], dim=-1 if model.kind == "codes" else 1)
            assert tokens.shape[1:] == shape[1:]


def test_centroids_are_compared_in_float32_under_autocast(make_model):
    quantizer = make_model("kmeans").quantizer
    features = torch.randn(1, 2, 4000, 16, generator=torch.Generator().manual_seed(0))
    expected = quantizer.encode(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(features), expected)


@pytest.mark.parametrize("dtype", TYPES)
@torch.no_grad()
def test_units_of_whisper_take_any_float_type(dtype, signal):
    whisper = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, decoder_attention_heads=2
    )
    torch.manual_seed(0)
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=whisper, layers=[1], codebook_size=8)).eval()
    model.set_centroids(torch.randn(1, 8, 16))
    expected = model.encode(signal(1, 4000)).audio_codes.shape
    assert model.encode(signal(1, 4000).to(dtype)).audio_codes.shape == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.encode(signal(1, 4000).to(dtype)).audio_codes.shape == expected
    assert model.to(dtype).encode(signal(1, 4000)).audio_codes.shape == expected


def make_hubert() -> HubertForMaskedPrediction:
    torch.manual_seed(0)
    return HubertForMaskedPrediction(HubertMaskedPredictionConfig(**ENCODER, label_vocab_size=7, final_dim=8)).eval()


def make_recogniser() -> SpeechEncoderForCTC:
    torch.manual_seed(0)
    config = SpeechEncoderCTCConfig(encoder_config=HubertConfig(**ENCODER), vocab_size=5, layer="weighted")
    return SpeechEncoderForCTC(config).eval()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("make", [make_hubert, make_recogniser])
@torch.no_grad()
def test_encoders_with_labels_take_any_float_type(make, dtype, signal):
    model, waveforms = make(), signal(2, 4000)[:, 0]
    mask = torch.ones(2, 4000)
    mask[1, 2500:] = 0
    for cast in (lambda: model, lambda: model.to(dtype)):
        for kind in TYPES:
            logits = cast()(waveforms.to(kind), attention_mask=mask.to(kind)).logits
            assert logits.isfinite().all()


@pytest.mark.parametrize("dtype", TYPES)
@torch.no_grad()
def test_a_latent_language_model_takes_any_float_type(dtype):
    torch.manual_seed(0)
    text = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    model = LatentLanguageModel(LatentLMConfig(text_config=text, latent_dim=6)).eval().to(dtype)
    assert model.statistics.mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for kind in TYPES:
        latents = torch.randn(2, 5, 6).to(kind)
        assert model(latents).loss.isfinite()
        assert model.generate_latents(latents, 3, stop_threshold=None).latents.shape == (2, 3, 6)


@pytest.mark.parametrize("name", ["rvq", "dac"])
def test_half_precision_is_warned_of_once_and_float32_is_not(name, make_model, signal, caplog):
    mixed_precision.logger.warning_once.cache_clear()
    model, waveforms = make_model(name), signal(1, 400)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(waveforms)
        model.double().encode(waveforms.double())
        model.float()
        assert "differ" not in caplog.text
        with torch.autocast("cpu", torch.bfloat16):
            model.encode(waveforms)
            model.encode(waveforms)
    assert caplog.text.count("encodes in bfloat16: some of its tokens differ from those in float32") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.half()
        model.encode(waveforms)
        model.encode(waveforms)
    said = [str(warning.message) for warning in told if "computes in torch.float16" in str(warning.message)]
    assert len(said) + caplog.text.count("encodes in float16") == 1


@pytest.mark.parametrize("road", ROADS)
def test_a_wrapped_codec_stays_wrapped_when_it_is_cast(road, make_model):
    codec = make_model("dac")
    assert ROADS[road](codec) is codec


@pytest.mark.parametrize(("channels", "groups", "kernel", "stride"), [(192, 16, 128, 1), (16, 1, 12, 6), (8, 1, 8, 4)])
@torch.no_grad()
def test_narrow_convolutions_are_right_in_bfloat16(channels, groups, kernel, stride):
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(channels, channels, kernel, stride, groups=groups, padding=kernel // 2)
    inputs = torch.randn(1, channels, 3000)
    exact = conv(inputs)
    guarded = mixed_precision.guard_convolutions(mixed_precision.guard_convolutions(torch.nn.Sequential(conv)))
    assert len(conv._forward_hooks) == 1
    assert torch.equal(guarded(inputs), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = guarded(inputs)
    for output in (under_autocast, guarded.bfloat16()(inputs.bfloat16())):
        assert output.dtype == torch.bfloat16
        assert (output.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("name", ["kmeans", "dc_spin", "mimi", "xcodec"])
@torch.no_grad()
def test_states_of_encoders_in_bfloat16_are_near_those_in_float32(name, make_model, signal):
    waveforms = signal(1, 8000)
    exact, rounded = (model.encode(waveforms) for model in (make_model(name), make_model(name).bfloat16()))
    if name == "xcodec":  # keeps its latents to itself
        assert (exact.audio_codes[:, 0] == rounded.audio_codes[:, 0]).float().mean() > 0.8
    else:
        assert (exact.latents - rounded.latents.float()).norm() < 0.1 * exact.latents.norm()
