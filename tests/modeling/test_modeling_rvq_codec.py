# SPDX-License-Identifier: Apache-2.0
"""
The RVQ codec's interface: outputs, losses, training, precision, and every input that it refuses.

tests/modeling/test_codec_exactness.py holds what it promises to the sample.
"""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

import speech_tokenizers  # noqa: F401 (registers the classes)
from speech_tokenizers.modeling.codec_layers import StreamingCache
from speech_tokenizers.modeling.codec_streaming import CodecStream
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel


CODECS = [{}, {"encoder_type": "stft", "decoder_type": "istft"}]


@pytest.fixture(params=CODECS, ids=["seanet", "spectral"])
def either(request, codec):
    return codec(**request.param)


def test_outputs_have_their_documented_shapes_and_types(codec, signal):
    model = codec()
    with torch.no_grad():
        encoded = model.encode(signal(2, 777))
        outputs = model(signal(2, 777))
    assert encoded.audio_codes.shape == (2, 4, 20)
    assert encoded.audio_codes.dtype == encoded.audio_codes_mask.dtype == torch.long
    assert encoded.latents.shape == (2, 20, 16)
    assert encoded.audio_codes_mask.tolist() == [[1] * 20] * 2
    assert outputs.audio_values.shape == (2, 1, 777)
    assert outputs.quantized_latents.shape == (2, 20, 16)
    assert [latents.shape for latents in outputs.stage_latents] == [(2, 20, 16)] * 4
    torch.testing.assert_close(sum(outputs.stage_latents), outputs.quantized_latents)
    for name in ("loss", "mel_loss", "waveform_loss", "commitment_loss"):
        assert outputs[name].shape == (), name
    assert isinstance(model, PreTrainedAudioTokenizerBase)


def test_derived_properties_are_the_config_s(codec):
    model = codec()
    assert (model.sampling_rate, model.hop_length, model.frame_rate) == (16000, 40, 400.0)
    assert model.bits_per_second == 400 * 4 * 5
    assert [model.get_encoded_length(n) for n in (1, 40, 41)] == [1, 1, 2]
    assert model.get_encoded_length(torch.tensor([1, 40, 41])).tolist() == [1, 1, 2]


def test_outputs_can_be_tuples(codec, signal):
    model, waveform = codec(), signal(1, 100)
    with torch.no_grad():
        audio_codes, latents, mask = model.encode(waveform, return_dict=False)
        (audio_values,) = model.decode(audio_codes, return_dict=False)
    assert torch.equal(audio_codes, model.encode(waveform).audio_codes)
    assert audio_values.shape == (1, 1, 120)


@torch.no_grad()
def test_the_channel_may_be_left_out(either, signal):
    waveform = signal(2, 500)
    assert torch.equal(either.encode(waveform[:, 0]).audio_codes, either.encode(waveform).audio_codes)
    assert either(waveform[:, 0], return_loss=False).audio_values.shape == waveform.shape


def test_the_auto_classes_know_the_codec(codec, tmp_path):
    codec().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "RVQCodecConfig"
    for auto_class in (AutoModel, AutoModelForAudioTokenization):
        assert type(auto_class.from_pretrained(tmp_path)) is RVQCodecModel


def test_encoding_changes_no_input(either, signal):
    waveform, mask = signal(2, 333), torch.ones(2, 333, dtype=torch.long)
    mask[1, 100:] = 0
    copies = waveform.clone(), mask.clone()
    with torch.no_grad():
        encoded = either.encode(waveform, padding_mask=mask)
        codes = encoded.audio_codes.clone()
        either.decode(encoded.audio_codes, audio_codes_mask=encoded.audio_codes_mask)
    assert torch.equal(waveform, copies[0])
    assert torch.equal(mask, copies[1])
    assert torch.equal(encoded.audio_codes, codes)


# Losses and training


def test_the_loss_is_the_weighted_sum_of_its_terms(new_codec, signal):
    model = new_codec(mel_loss_weight=3.0, waveform_loss_weight=5.0, commitment_loss_weight=7.0)
    with torch.no_grad():
        outputs = model(signal(2, 4000))
        silent = model(signal(2, 4000), return_loss=False)
    expected = 3 * outputs.mel_loss + 5 * outputs.waveform_loss + 7 * outputs.commitment_loss
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(outputs.waveform_loss, (outputs.audio_values - signal(2, 4000)).abs().mean())
    assert silent.loss is None
    assert silent.mel_loss is None


@pytest.mark.parametrize("overrides", CODECS, ids=["seanet", "spectral"])
def test_padding_does_not_enter_waveform_and_commitment_loss(codec, signal, overrides):
    model, waveform = codec(**overrides), signal(1, 2345)
    padded = torch.full((1, 1, 4000), 0.7)
    padded[..., :2345] = waveform
    with torch.no_grad():
        alone = model(waveform)
        together = model(padded, padding_mask=(torch.arange(4000) < 2345).long().unsqueeze(0))
    torch.testing.assert_close(together.waveform_loss, alone.waveform_loss)
    torch.testing.assert_close(together.commitment_loss, alone.commitment_loss)


@pytest.mark.parametrize("overrides", CODECS, ids=["seanet", "spectral"])
def test_every_parameter_learns(new_codec, signal, overrides):
    model = new_codec(**overrides).train()
    model(signal(2, 4000)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("overrides", CODECS, ids=["seanet", "spectral"])
def test_training_overfits_one_batch(new_codec, signal, overrides):
    model, waveform = new_codec(**overrides).train(), signal(2, 2000)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(waveform).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


def test_training_updates_codebooks_and_evaluation_does_not(new_codec, signal):
    model = new_codec()
    before = copy.deepcopy(model.quantizer.state_dict())
    with torch.no_grad():
        model.eval()(signal(2, 4000))
        assert all(torch.equal(value, before[name]) for name, value in model.quantizer.state_dict().items())
        model.train()(signal(2, 4000))
    assert not torch.equal(model.quantizer.quantizers[0].codebook, before["quantizers.0.codebook"])
    assert model.quantizer.num_updates == before["num_updates"] + 1


def test_quantizer_dropout_trains_every_bit_rate_and_spares_evaluation(new_codec, signal):
    model, waveform = new_codec(quantizer_dropout=1.0), signal(1, 800)
    with torch.no_grad():
        model.train()
        counts = {model(waveform, return_loss=False).audio_codes.shape[1] for _ in range(40)}
        assert counts == {1, 2, 3, 4}
        assert model(waveform, num_quantizers=3, return_loss=False).audio_codes.shape[1] == 3
        assert model.eval()(waveform, return_loss=False).audio_codes.shape[1] == 4


# Precision


@torch.no_grad()
def test_loading_in_bfloat16_keeps_the_codebooks_in_float32(either, signal, tmp_path):
    either.save_pretrained(tmp_path)
    model, waveform = RVQCodecModel.from_pretrained(tmp_path, dtype=torch.bfloat16), signal(2, 2000)
    assert {parameter.dtype for parameter in model.encoder.parameters()} == {torch.bfloat16}
    assert {value.dtype for name, value in model.quantizer.named_buffers() if "codebook" in name} == {torch.float32}
    encoded = model.encode(waveform)
    agreement = (encoded.audio_codes[:, 0] == either.encode(waveform).audio_codes[:, 0]).float().mean()
    assert agreement > 0.8
    assert model.decode(encoded.audio_codes).audio_values.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("overrides", CODECS, ids=["seanet", "spectral"])
@torch.no_grad()
def test_a_codec_works_in_another_precision(new_codec, signal, overrides, dtype):
    model, waveform = new_codec(codebook_dim=6, **overrides), signal(2, 800)
    expected = model(waveform, return_loss=False)
    model = model.to(dtype)
    outputs = model(waveform, return_loss=False)
    assert outputs.audio_values.shape == expected.audio_values.shape
    assert torch.equal(outputs.audio_codes, model.encode(waveform).audio_codes)
    if dtype == torch.float64:
        assert torch.equal(outputs.audio_codes, expected.audio_codes)
        torch.testing.assert_close(outputs.audio_values, expected.audio_values, rtol=0, atol=1e-4)


# Inputs that are no audio


@torch.no_grad()
def test_silence_and_clipping_give_finite_speech(either):
    for waveform in (torch.zeros(1, 1, 1000), torch.ones(1, 1, 1000), 100 * torch.ones(1, 1, 1000)):
        outputs = either(waveform)
        assert outputs.audio_values.isfinite().all()
        assert outputs.loss.isfinite()


@torch.no_grad()
def test_nan_in_one_recording_stays_there(either, signal):
    waveform = signal(2, 500)
    spoilt = waveform.clone()
    spoilt[1, 0, 250] = float("nan")
    clean, outputs = either(waveform, return_loss=False), either(spoilt, return_loss=False)
    assert torch.equal(outputs.audio_codes[0], clean.audio_codes[0])
    assert torch.equal(outputs.audio_values[0], clean.audio_values[0])


@pytest.mark.parametrize(
    ("waveform", "error", "message"),
    [
        (torch.zeros(2, 2, 400), ValueError, r"must be mono, .*\(2, 2, 400\); average the channels"),
        (torch.zeros(400), ValueError, r"must be mono, .*\(400,\)"),
        (torch.zeros(1, 1, 1, 400), ValueError, r"must be mono"),
        (torch.zeros(1, 1, 0), ValueError, r"`input_values` is empty"),
        (torch.zeros(1, 0), ValueError, r"`input_values` is empty"),
        (torch.zeros(1, 1, 400, dtype=torch.int16), TypeError, r"floating point.* but is torch.int16; divide"),
    ],
)
def test_waveforms_that_are_none_are_refused(either, waveform, error, message):
    with pytest.raises(error, match=message):
        either.encode(waveform)
    with pytest.raises(error, match=message):
        either(waveform)


def test_a_mask_of_another_shape_is_refused(codec, signal):
    with pytest.raises(ValueError, match=r"`padding_mask` must have shape \(2, 400\), but has \(2, 399\)"):
        codec().encode(signal(2, 400), padding_mask=torch.ones(2, 399))


@pytest.mark.parametrize("num_quantizers", [0, 5, -1])
def test_a_wrong_number_of_quantizers_is_refused(codec, signal, num_quantizers):
    with pytest.raises(ValueError, match=f"`num_quantizers` must lie between 1 and 4, but got {num_quantizers}"):
        codec().encode(signal(1, 400), num_quantizers=num_quantizers)


@pytest.mark.parametrize(
    ("audio_codes", "error", "message"),
    [
        (torch.zeros(1, 5, 3, dtype=torch.long), ValueError, r"must have 1 to 4 codebooks, but has 5"),
        (torch.zeros(1, 0, 3, dtype=torch.long), ValueError, r"must have 1 to 4 codebooks, but has 0"),
        (torch.zeros(4, 3, dtype=torch.long), ValueError, r"must have shape \(batch, num_quantizers, num_frames\)"),
        (torch.zeros(1, 4, 0, dtype=torch.long), ValueError, r"`audio_codes` is empty"),
        (torch.zeros(1, 4, 3), TypeError, r"must be integers, but is torch.float32"),
        (torch.full((1, 4, 3), 32), ValueError, r"must lie between 0 and 31"),
        (torch.full((1, 4, 3), -1), ValueError, r"must lie between 0 and 31"),
    ],
)
def test_codes_that_are_none_are_refused(either, audio_codes, error, message):
    with pytest.raises(error, match=message):
        either.decode(audio_codes)


def test_decoding_nothing_is_refused(codec):
    with pytest.raises(ValueError, match="needs `audio_codes` or `latents`, but got neither"):
        codec().decode()


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(1, 3, 15), r"must have shape \(batch, num_frames, 16\), but has \(1, 3, 15\)"),
        (torch.zeros(3, 16), r"must have shape"),
        (torch.zeros(1, 0, 16), r"`latents` is empty"),
    ],
)
def test_latents_of_another_shape_are_refused(codec, latents, message):
    with pytest.raises(ValueError, match=message):
        codec().decode(latents=latents)


@pytest.mark.parametrize("num_samples", [80, 121, 0, 10_000])
def test_a_length_that_does_not_fit_the_frames_is_refused(codec, num_samples):
    message = f"`num_samples` must lie between 81 and 120 for 3 frames, but got {num_samples}"
    with pytest.raises(ValueError, match=message):
        codec().decode(torch.zeros(1, 4, 3, dtype=torch.long), num_samples=num_samples)


@pytest.mark.parametrize(
    "overrides", [{}, {"causal": True, "pad_mode": "reflect"}, {"causal": True, "trim_right_ratio": 0.5}]
)
def test_a_cache_needs_a_codec_that_can_stream(codec, signal, overrides):
    model = codec(**overrides)
    with pytest.raises(ValueError, match=r"`padding_cache` needs .*`causal=True`"):
        model.encode(signal(1, 400), padding_cache=StreamingCache())
    with pytest.raises(ValueError, match=r"`padding_cache` needs .*`causal=True`"):
        model.decode(torch.zeros(1, 4, 3, dtype=torch.long), padding_cache=StreamingCache())


def test_a_cache_and_a_mask_exclude_each_other(codec, signal):
    with pytest.raises(ValueError, match="exclude each other"):
        codec(causal=True).encode(signal(1, 400), padding_mask=torch.ones(1, 400), padding_cache=StreamingCache())


def test_streams_refuse_what_they_cannot_do(new_codec):
    model = new_codec()
    with pytest.raises(ValueError, match="The stream is empty"):
        CodecStream(model).finish_encode()
    stream = CodecStream(model, window_seconds=0.0025)  # one frame
    with pytest.raises(ValueError, match="must lie between 0 and 31"):
        stream.decode(torch.full((1, 4, 1000), 99))
    with pytest.raises(ValueError, match="training mode"):
        CodecStream(model.train())


def test_a_misspelt_argument_is_refused(codec):
    model, waveform = codec(), torch.zeros(1, 1, 400)
    for call in (model, model.encode):
        with pytest.raises(TypeError, match="num_quantiser"):
            call(waveform, num_quantiser=2)


def test_a_mask_of_another_shape_is_refused_in_decoding(codec):
    codes = torch.zeros(2, 2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"`audio_codes_mask` must have shape \(2, 5\)"):
        codec().decode(codes, audio_codes_mask=torch.ones(2, 4))
