# SPDX-License-Identifier: Apache-2.0
"""Every model that turns speech into tokens says of itself what is true, ours and transformers' alike."""

import numpy as np
import pytest
import torch

from helpers.tiny_codecs import OURS, THEIRS
from speech_tokenizers.modeling.codec_interface import pad_waveforms
from speech_tokenizers.modeling.configuration_cst import CSTConfig
from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.modeling.transformers_codecs import TransformersCodec, as_speech_codec
from speech_tokenizers.training.units.pseudo_labels import TokenLabeler


@pytest.fixture
def recorded(signal):
    return signal(1, 9013, seed=3)


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_what_is_said_is_what_encode_gives(name, make_model, recorded):
    model = make_model(name)
    with torch.no_grad():
        encoded = model.encode(recorded)
    num_frames = encoded.audio_codes_mask.shape[1]
    assert num_frames == model.get_encoded_length(recorded.shape[-1])
    # X-Codec keeps to itself what it quantizes.
    frames = model.dequantize(encoded.audio_codes) if name == "xcodec" else encoded.latents
    assert frames.shape == (1, num_frames, model.latent_dim)
    assert num_frames == pytest.approx(recorded.shape[-1] / model.sampling_rate * model.frame_rate, abs=2)
    if model.kind == "codes":
        assert encoded.audio_codes.shape == (1, model.num_quantizers, num_frames)
        assert encoded.audio_codes.max() < model.codebook_size
    else:
        assert model.num_quantizers is None
        assert model.codebook_size is None
    for kind in model.decodable_kinds:
        tokens = encoded["audio_codes" if kind == "codes" else "latents"]
        with torch.no_grad():
            decoded = model.decode(**{"audio_codes" if kind == "codes" else "latents": tokens}).audio_values
        assert decoded.shape[:2] == (1, 1)
        assert decoded.shape[-1] == pytest.approx(num_frames * model.hop_length, abs=2 * model.hop_length)


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_a_stream_gives_the_tokens_of_the_whole(name, make_model, recorded):
    model = make_model(name)
    stream = model.encode_stream()
    parts = [stream.encode(part) for part in recorded.split([1, 4000, 12, 5000], dim=-1)]
    time = -1 if model.kind == "codes" else -2
    tokens = torch.cat([*parts, stream.finish_encode()], dim=time)
    with torch.no_grad():
        encoded = model.encode(recorded)
    whole = encoded.audio_codes if model.kind == "codes" else encoded.latents
    # Units are exact too as long as a window holds the recording.
    torch.testing.assert_close(tokens, whole, atol=1e-4, rtol=0)
    if model.kind not in model.decodable_kinds:
        for kind in (None, "latents"):
            with pytest.raises(ValueError, match="no vocoder"):
                model.decode_stream(kind)
        return
    stream = model.decode_stream()
    parts = [stream.decode(part) for part in tokens.split([1, 2, tokens.shape[time] - 3], dim=time)]
    samples = torch.cat([*parts, stream.finish_decode()], dim=-1)
    with torch.no_grad():
        decoded = model.decode(**{"audio_codes" if model.kind == "codes" else "latents": whole}).audio_values
    torch.testing.assert_close(samples, decoded, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in OURS if name != "cst"])
def test_the_first_codebook_is_the_same_by_every_road(name, make_model, recorded):
    model = make_model(name)
    with torch.no_grad():
        expected = model.encode(recorded).audio_codes[:, :1]
        assert torch.equal(model.encode_features({"input_values": recorded}, 1).audio_codes, expected)
    stream = model.encode_stream(num_quantizers=1)
    assert torch.equal(torch.cat([stream.encode(recorded), stream.finish_encode()], dim=-1), expected)
    (labels,) = TokenLabeler(model, num_quantizers=1)([recorded[0, 0].numpy()])
    assert labels.tolist() == expected[0, 0].tolist()


def test_a_stream_of_units_begins_anew_once_it_has_finished(make_model, recorded):
    model = make_model("kmeans")
    stream = model.encode_stream()
    first, second = (torch.cat([stream.encode(recorded), stream.finish_encode()], dim=-1) for _ in range(2))
    assert torch.equal(first, second)
    stream.encode(recorded[..., :399])
    with pytest.raises(ValueError, match="has 399 samples, but a frame needs 400"):
        stream.finish_encode()


@pytest.mark.parametrize("name", [name for name in (*OURS, *THEIRS) if name not in ("cst", "vibevoice", "kmeans")])
def test_the_vectors_of_codes_sum_to_what_they_stand_for(name, make_model, recorded):
    model = make_model(name)
    with torch.no_grad():
        codes = model.encode(recorded).audio_codes
    vectors = model.codebook_vectors()
    assert vectors.shape == (model.num_quantizers, model.codebook_size, model.latent_dim)
    summed = sum(stage[code] for stage, code in zip(vectors, codes[0], strict=True))
    torch.testing.assert_close(summed, model.dequantize(codes)[0].float(), atol=1e-4, rtol=1e-4)
    assert summed.std() > 0


def test_the_vectors_of_units_are_their_centroids(make_model):
    model = make_model("kmeans")
    assert torch.equal(model.codebook_vectors(), model.centroids)


@pytest.mark.parametrize("name", [*OURS, "encodec", "dac", "mimi", "xcodec"])
def test_a_fingerprint_tells_weights_apart_but_not_their_precision(name, make_model):
    model = make_model(name)
    if name == "cst":
        assert model.fingerprint() == ""  # nothing is decided before speech was seen
        model.train()
        model(0.1 * torch.randn(1, 1, 3200, generator=torch.Generator().manual_seed(0)))
        model.eval()
    before = model.fingerprint()
    assert len(before) == 16
    module = getattr(model, "model", model)
    values = [*module.named_buffers(), *module.named_parameters()]
    for key, value in values:
        if value.is_floating_point() and not key.startswith("statistics"):  # which stay in single precision
            value.data = value.data.half().float()
    assert model.fingerprint() == before
    parts = ("quantizer", "primary", "statistics.mean", "vq")
    for key, value in values:
        if key.startswith(parts) and value.is_floating_point():
            value.data += 0.1
    assert model.fingerprint() != before


@pytest.mark.parametrize("name", ["rvq", "causal", "dm", "cst", "kmeans", "dc_spin", "kmeans-vocoder"])
def test_fingerprints_of_both_directions_tell_what_decides_them(name, make_model):
    model = make_model(name)
    parts = {part for part, _ in model.named_children()}
    assert len(parts) > 1
    for part in parts:
        encoder, decoder = model.encoder_fingerprint(), model.decoder_fingerprint()
        tensors = [value for value in getattr(model, part).state_dict().values() if value.is_floating_point()]
        for tensor in tensors:
            tensor.mul_(1.5).add_(0.1)
        decides = bool(tensors) and part not in model.trained_parts.values()
        assert (model.encoder_fingerprint() != encoder) == (decides and part not in ("decoder", "vocoder"))
        assert (model.decoder_fingerprint() != decoder) == (decides and part != "encoder")


@pytest.mark.parametrize("name", ["encodec", "dac", "mimi", "xcodec"])
def test_transformers_codecs_hear_no_padding(name, make_model, signal):
    model = make_model(name)
    waveforms = [signal(1, length, seed=length)[0, 0].numpy() for length in (9013, 4000, 6222)]
    batch = model.encode(**pad_waveforms(waveforms))
    for row, waveform in enumerate(waveforms):
        alone = model.encode(torch.from_numpy(waveform)[None, None])
        count = int(batch.audio_codes_mask[row].sum())
        assert count == alone.audio_codes.shape[-1]
        assert torch.equal(batch.audio_codes[row, :, :count], alone.audio_codes[0])
    decoded = model.decode(batch.audio_codes, audio_codes_mask=batch.audio_codes_mask).audio_values
    alone = model.decode(model.encode(torch.from_numpy(waveforms[1])[None, None]).audio_codes).audio_values
    torch.testing.assert_close(decoded[1:2, :, : alone.shape[-1]], alone, atol=1e-6, rtol=0)


def test_a_part_that_no_loss_trains_gets_no_gradient(new_codec, signal):
    codec = new_codec(semantic_dimension=5, contextual_dimension=7, contextual_stage=1, quantizer_dropout=0.0)
    tokens = CSTModel(
        CSTConfig.from_preset(
            "cst-fast-16khz",
            hidden_size=6,
            network_hidden_size=16,
            encoder_hidden_size=16,
            decoder_hidden_size=16,
            encoder_num_layers=1,
            decoder_num_layers=1,
            ctc_labels=["<pad>", "a"],
        )
    )
    assert set(codec.trained_parts) == {"semantic_distillation", "contextual_distillation"}
    assert set(tokens.trained_parts) == {"latent_ctc"}
    for model in (codec.train(), tokens.train()):
        outputs = model(signal(2, 3200))
        for name in model.loss_names:
            assert outputs[f"{name}_loss"].requires_grad
        outputs.loss.backward()
        untrained = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is None}
        assert untrained == set(model.trained_parts.values())


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("cst", lambda model: model.check_kind("codes"), "A CSTModel has no codebooks"),
        ("cst", lambda model: model.encode_stream(num_quantizers=1), "`num_quantizers` chooses among codebooks"),
        ("rvq", lambda model: model.encode_stream("codes", 5), "must lie between 1 and 4, but got 5"),
        ("rvq", lambda model: model.encode_stream("sound"), "`kind` must be 'codes' or 'latents', but got 'sound'"),
        ("kmeans", lambda model: model.encode_stream("latents"), "A KMeansUnitsModel decodes no latents"),
        ("kmeans", lambda model: model.voice_arguments("Ann"), "no choice of voices"),
        ("encodec", lambda model: model.decode_stream("latents"), "A EncodecModel decodes no latents"),
        ("encodec", lambda model: model.encode_stream(num_quantizers=3), "offers 0.5, 1, 2 kbps"),
        ("vibevoice", lambda model: model.dequantize(torch.zeros(1, 1, 1).long()), "has no residual quantizer"),
    ],
)
def test_what_a_model_cannot_do_is_said(name, call, message, make_model):
    with pytest.raises(ValueError, match=message):
        call(make_model(name))


def test_a_model_without_tokens_is_no_codec():
    with pytest.raises(ValueError, match="A Linear turns no speech into tokens"):
        as_speech_codec(torch.nn.Linear(1, 1))


def test_a_codec_of_transformers_needs_its_feature_extractor(make_transformers_codec):
    with pytest.raises(ValueError, match="`feature_extractor` is needed: this DacModel was loaded from no folder"):
        as_speech_codec(make_transformers_codec("dac")[0])


def test_a_codec_of_transformers_is_wrapped_once(make_transformers_codec):
    codec = as_speech_codec(*make_transformers_codec("dac"))
    assert isinstance(codec, TransformersCodec)
    assert as_speech_codec(codec) is codec


def test_empty_and_broken_recordings_are_refused(make_model):
    model = make_model("dac")
    for broken in (np.zeros(0, np.float32), np.full(100, np.nan, np.float32)):
        with pytest.raises(ValueError, match=r"`waveforms\[1\]` (is empty|has NaN)"):
            model.batch_features([np.zeros(10, np.float32), broken], None)
    with pytest.raises(ValueError, match="stream is empty"):
        model.encode_stream().finish_encode()
