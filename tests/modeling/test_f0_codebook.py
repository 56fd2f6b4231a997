# SPDX-License-Identifier: Apache-2.0
"""Units with F0: the same alone, in batches, streams and windows; saved, loaded and spoken like other units."""

import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, HubertConfig, HubertModel, WhisperConfig

from helpers.voices import voice
from speech_tokenizers.coding.file_coding import encode_blocks
from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.modeling.unit_streaming import UnitStream
from speech_tokenizers.modeling.windowed_encoding import WindowedEncoder


WHISPER = WhisperConfig(
    d_model=32, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=64, decoder_attention_heads=4
)
NAMES = ["kmeans", "dc-spin", "whisper"]


def make_kmeans(encoder, signal, **fields) -> KMeansUnitsModel:
    config = KMeansUnitsConfig(encoder_config=encoder.config, layers=[1, 3], codebook_size=50, **fields)
    torch.manual_seed(0)
    model = KMeansUnitsModel(config).eval()
    model.set_centroids(model.features(signal(1, 20000, seed=3))[0][0][:, :50])
    return model


@pytest.fixture(scope="module")
def encoder(make_encoder):
    return make_encoder(HubertConfig, HubertModel)


@pytest.fixture(scope="module")
def models(encoder, signal):
    sizes = {"projection_dim": 16, "primary_codebook_size": 50, "auxiliary_codebook_size": None}
    torch.manual_seed(0)
    dc_spin = DCSpinModel(DCSpinConfig(encoder_config=encoder.config, encoder_layer=3, f0_bins=12, **sizes)).eval()
    fields = {**sizes, "encoder_layer": 1, "trainable_layers": 1, "window": "tight", "f0_bins": 8, "f0_stride": 3}
    return {
        "kmeans": make_kmeans(encoder, signal, f0_bins=16),
        "dc-spin": dc_spin,
        "whisper": DCSpinModel(DCSpinConfig(encoder_config=WHISPER, **fields)).eval(),
    }


@pytest.fixture(scope="module")
def speech():
    """Two voiced stretches with silence around them, `(1, 35000)`."""
    parts = [np.geomspace(110, 190, 14000), np.geomspace(200, 95, 12000)]
    return torch.cat([torch.zeros(1, 5000), voice(parts[0]), torch.zeros(1, 4000), voice(parts[1])], 1)


def streamed(stream, parts) -> torch.Tensor:
    return torch.cat([*(stream.push(part) for part in parts), stream.flush()], dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_f0_is_the_last_row_and_knows_voice_from_silence(models, speech, name):
    model = models[name]
    encoded = model.encode(speech)
    assert encoded.audio_codes.shape[1] == model.num_quantizers
    f0 = encoded.audio_codes[0, -1]
    assert not f0[:12].any()
    assert (f0[18:55] > 0).all()
    assert f0.max() < model.config.f0_bins
    assert f0.unique().numel() > 4
    silent = model.encode(torch.zeros(2, 8000))
    assert not silent.audio_codes[:, -1].any()
    assert torch.isfinite(silent.latents).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_padded_batch_have_the_f0_that_they_have_alone(models, speech, name):
    model, lengths = models[name], [35000, 17003, 9000]
    mask = (torch.arange(35000) < torch.tensor(lengths)[:, None]).long()
    batch = model.encode(speech.expand(3, -1) * mask, mask)
    for row, length in enumerate(lengths):
        alone = model.encode(speech[:, :length])
        count = alone.audio_codes.shape[2]
        assert torch.equal(batch.audio_codes[row, :, :count], alone.audio_codes[0])
        assert not batch.audio_codes[row, :, count:].any()
        assert not batch.latents[row, count:].any()


@pytest.mark.parametrize("name", NAMES)
def test_streams_and_windows_give_the_f0_of_the_whole(models, speech, name):
    model = models[name]
    waveform = speech[0]
    expected = model.encode(speech).audio_codes[0, -1]
    whole = streamed(UnitStream(model, 0.2, 0.3, 0.0), [waveform])
    assert whole.shape == (model.num_quantizers, model.get_encoded_length(35000))
    assert torch.equal(whole[-1], expected)
    for size in (533, 4000, 16000):
        assert torch.equal(streamed(UnitStream(model, 0.2, 0.3, 0.0), waveform.split(size)), whole)
    assert torch.equal(WindowedEncoder(model, 0.5, 0.1, whole_samples=0).encode(waveform)[-1], expected)
    stream = model.encode_stream(num_quantizers=1)
    first = torch.cat([stream.encode(waveform[None, None]), stream.finish_encode()], dim=-1)
    assert torch.equal(first, model.encode(speech).audio_codes[:, :1])


def test_a_push_that_fails_leaves_f0_as_it_was(models, speech):
    stream = UnitStream(models["kmeans"], 0.2, 0.3, 0.1)
    expected = streamed(stream, [speech[0]])
    parts = [stream.push(speech[0, :20000])]
    with pytest.raises(ValueError, match="NaN"):
        stream.push(torch.full((5000,), float("nan")))
    parts += [stream.push(speech[0, 20000:]), stream.flush()]
    assert torch.equal(torch.cat(parts, dim=1), expected)


def test_codes_come_when_the_stream_says(models, speech):
    stream = UnitStream(models["kmeans"], 0.2, 0.3, 0.0)
    needed = round(stream.latency_seconds * 16000)
    assert stream.push(speech[0, : needed - 1]).shape[1] < stream.chunk
    assert stream.push(speech[0, needed - 1 : needed]).shape[1] + stream.chunk > stream.chunk
    stream.reset()
    assert stream.push(speech[0, :needed]).shape[1] == stream.chunk


def test_running_normalization_is_that_of_the_frames_before(models, speech):
    model = models["kmeans"]
    codebook, config = model.f0_codebook, model.config
    octaves = codebook.pitch_frames().track(speech, torch.tensor([35000]), model.get_encoded_length(35000))[0].numpy()
    latents = model.encode(speech).latents[0, :, -2:].numpy()
    before: list[float] = []
    for value, (is_voiced, deviation) in zip(octaves, latents, strict=True):
        assert is_voiced == (value > 0)
        if value > 0:
            before.append(value)
            weight = config.f0_prior_frames + len(before)
            mean = (config.f0_prior_frames * config.f0_prior_mean + sum(before)) / weight
            spread = len(before) * np.var(before) + config.f0_prior_frames * config.f0_prior_deviation**2
            assert deviation == pytest.approx((value - mean) / math.sqrt(spread / weight), abs=1e-4)
        else:
            assert deviation == 0


@pytest.mark.parametrize("name", NAMES)
def test_speakers_an_octave_apart_have_the_same_codes_where_they_are_known(models, name):
    model = models[name]
    contour = np.geomspace(100, 150, 16000)
    low, high = voice(contour), voice(2 * contour)
    known = model.encode(torch.cat([low, high]), speaker_f0=torch.tensor([[7.0, 0.2], [8.0, 0.2]])).audio_codes[:, -1]
    assert (known[0, 4:-4] - known[1, 4:-4]).abs().max() <= 1
    running = model.encode(torch.cat([low, high])).audio_codes[:, -1]
    assert (running[0] - running[1]).abs().max() > 1
    stream = UnitStream(model, 0.2, 0.3, 0.1, speaker_f0=torch.tensor([[8.0, 0.2]]))
    assert torch.equal(streamed(stream, high[0].split(3000))[-1], known[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_known_speaker_is_streamed_as_encoded(models, speech, name):
    model, speaker = models[name], torch.tensor([[7.6, 0.1]])
    expected = model.encode(speech, speaker_f0=speaker).audio_codes
    assert not torch.equal(expected, model.encode(speech).audio_codes)
    for num_quantizers in (None, model.num_quantizers):
        stream = model.encode_stream("codes", num_quantizers, speaker_f0=speaker)
        parts = [stream.encode(part[None]) for part in speech.split(3100, dim=1)]
        assert torch.equal(torch.cat([*parts, stream.finish_encode()], dim=-1), expected)
    blocks = encode_blocks(model, speech[0].split(7000), speaker_f0=speaker)
    assert torch.equal(torch.cat(list(blocks), dim=-1), expected[0])
    with pytest.raises(ValueError, match="leaves out"):
        model.encode_stream(num_quantizers=1, speaker_f0=speaker)


def test_a_code_lasts_its_stride(models, speech):
    model = models["whisper"]
    f0 = model.encode(speech).audio_codes[0, -1]
    assert model.config.f0_stride == 3
    whole = f0[: len(f0) // 3 * 3].view(-1, 3)
    assert (whole == whole[:, :1]).all()
    assert (f0.diff() != 0).sum() > 5


@pytest.mark.parametrize("name", NAMES)
def test_vectors_of_codes_sum_to_what_they_stand_for(models, speech, name):
    model = models[name]
    encoded = model.encode(speech)
    frames, vectors = model.dequantize(encoded.audio_codes), model.codebook_vectors()
    assert vectors.shape == (model.num_quantizers, model.codebook_size, model.centroids.shape[2] + 2)
    assert frames.shape == encoded.latents.shape == (1, encoded.audio_codes.shape[2], model.latent_dim)
    f0 = vectors[-1][encoded.audio_codes[0, -1]][:, -2:]
    torch.testing.assert_close(frames[0, :, -2:], f0)
    assert torch.equal(frames[..., -2], encoded.latents[..., -2])
    if name != "kmeans":  # whose streams lie beside each other
        summed = sum(rows[codes] for rows, codes in zip(vectors, encoded.audio_codes[0], strict=True))
        torch.testing.assert_close(summed, frames[0])
    without = model.dequantize(encoded.audio_codes[:, :-1])
    assert torch.equal(without[..., :-2], frames[..., :-2])
    assert not without[..., -2:].any()
    with pytest.raises(ValueError, match="below `f0_bins`"):
        model.dequantize(torch.full_like(encoded.audio_codes, model.config.f0_bins))


def test_bits_are_counted_as_they_are_sent():
    sizes = {"encoder_config": HubertConfig(), "codebook_size": 64}
    assert KMeansUnitsConfig(**sizes, f0_bins=16).bits_per_second == pytest.approx(50 * (6 + 4))
    config = KMeansUnitsConfig(**sizes, f0_bins=16, f0_stride=2, num_stages=2)
    assert config.bits_per_second == pytest.approx(50 * (12 + 2))
    assert config.num_quantizers == 3
    assert (config.codebook_sizes, config.codebook_strides) == ((64, 64, 16), (1, 1, 2))
    kept = KMeansUnitsConfig(**sizes, f0_bins=16, f0_stride=4, kept_dims=2, kept_codebook_size=8)
    assert (kept.codebook_sizes, kept.codebook_strides) == ((64, 8, 16), (1, 1, 4))
    assert kept.bits_per_second == pytest.approx(50 * (6 + 3 + 1))
    assert KMeansUnitsConfig(**sizes).bits_per_second == pytest.approx(300)


@pytest.mark.parametrize("name", NAMES)
def test_runs_last_as_long_as_units_and_f0_stay(models, speech, name):
    model = models[name]
    codes = model.encode(speech).audio_codes
    merged = model.encode(speech, deduplicate=True)
    expected = torch.unique_consecutive(codes[0], dim=1)
    assert torch.equal(merged.audio_codes[0], expected)
    assert int(merged.durations.sum()) == codes.shape[2]


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_units_give_the_same_f0(models, speech, name, tmp_path):
    model = models[name]
    model.save_pretrained(tmp_path)
    for loader in (type(model), AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        assert torch.equal(loaded.encode(speech).audio_codes, model.encode(speech).audio_codes)
        assert loaded.fingerprint() == model.fingerprint()
        assert loaded.encoder_fingerprint() == model.encoder_fingerprint()
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.f0_codebook.boundaries.dtype == torch.float32
    assert torch.equal(half.encode(speech).audio_codes[:, -1], model.encode(speech).audio_codes[:, -1])


def test_f0_can_be_added_to_units(encoder, signal, speech, tmp_path):
    model = make_kmeans(encoder, signal)
    plain, fingerprint = model.encode(speech).audio_codes, model.encoder_fingerprint()
    with pytest.raises(ValueError, match="codebook_size"):
        model.add_f0(51)
    with pytest.raises(TypeError, match="f0_bin"):
        model.add_f0(16, f0_bin=3)
    assert torch.equal(model.encode(speech).audio_codes, plain)
    model.add_f0(16, f0_stride=2, f0_prior_mean=7.0)
    assert torch.equal(model.encode(speech).audio_codes[:, :-1], plain)
    assert model.encoder_fingerprint() != fingerprint
    model.f0_codebook.set_bins(torch.linspace(-2, 2, 14), torch.linspace(-2.1, 2.1, 15))
    model.save_pretrained(tmp_path)
    loaded = KMeansUnitsModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(speech).audio_codes, model.encode(speech).audio_codes)
    with pytest.raises(ValueError, match="already"):
        model.add_f0(16)
    model.config.f0_prior_mean, before = 7.5, model.encoder_fingerprint()
    assert model.encoder_fingerprint() != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"f0_bins": 101}, "f0_bins"),
        ({"f0_bins": 2}, "f0_bins"),
        ({"f0_bins": 8, "f0_stride": 0}, "f0_stride"),
        ({"f0_bins": 8, "f0_floor": 600}, "f0_floor"),
        ({"f0_bins": 8, "f0_prior_frames": 0}, "f0_prior_frames"),
        ({"f0_bins": 8, "f0_prior_mean": float("nan")}, "f0_prior_mean"),
    ],
    ids=str,
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        KMeansUnitsConfig(encoder_config=HubertConfig(), **fields)


@pytest.mark.parametrize(
    ("speaker", "message"),
    [
        (torch.tensor([7.0, 0.3]), "shape"),
        (torch.tensor([[7.0, 0.3], [7.5, 0.3]]), "shape"),
        (torch.tensor([[7.0, 0.0]]), "positive"),
        (torch.tensor([[float("nan"), 0.3]]), "finite"),
    ],
    ids=["shape", "rows", "zero", "nan"],
)
def test_impossible_speakers_are_refused(models, speech, speaker, message):
    with pytest.raises(ValueError, match=message):
        models["kmeans"].encode(speech, speaker_f0=speaker)
    with pytest.raises(ValueError, match=message):
        UnitStream(models["kmeans"], speaker_f0=speaker)
    with pytest.raises(ValueError, match=message):
        models["kmeans"].encode_stream(speaker_f0=speaker)
    with pytest.raises(ValueError, match=message):
        list(encode_blocks(models["kmeans"], speech, speaker_f0=speaker))


def test_speakers_are_refused_where_units_have_no_f0(encoder, signal, speech):
    model = make_kmeans(encoder, signal)
    with pytest.raises(ValueError, match="leave it out"):
        model.encode(speech, speaker_f0=torch.tensor([[7.0, 0.3]]))
    with pytest.raises(ValueError, match="leave it out"):
        UnitStream(model, speaker_f0=torch.tensor([[7.0, 0.3]]))
    with pytest.raises(ValueError, match="leave it out"):
        model.encode_stream(speaker_f0=torch.tensor([[7.0, 0.3]]))
    with pytest.raises(ValueError, match="which this KMeansUnitsModel has not"):
        list(encode_blocks(model, speech, speaker_f0=torch.tensor([[7.0, 0.3]])))


def test_bins_must_rise(models):
    codebook = models["kmeans"].f0_codebook
    with pytest.raises(ValueError, match="rise"):
        codebook.set_bins(torch.zeros(14), torch.zeros(15))
    with pytest.raises(ValueError, match="shape"):
        codebook.set_bins(torch.zeros(3), torch.zeros(15))


def test_a_vocoder_speaks_units_with_f0(encoder, signal, speech, tmp_path):
    model = make_kmeans(encoder, signal, f0_bins=16)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "codebook_size": 50}
    with pytest.raises(ValueError, match="num_quantizers"):
        model.attach_vocoder(UnitVocoderModel(UnitVocoderConfig(num_quantizers=2, **sizes)))
    torch.manual_seed(0)
    model.attach_vocoder(UnitVocoderModel(UnitVocoderConfig(num_quantizers=3, **sizes)).eval())
    codes = model.encode(speech).audio_codes
    spoken = model.decode(codes).audio_values
    assert spoken.shape[-1] == codes.shape[2] * 320
    monotone = torch.cat([codes[:, :-1], torch.full_like(codes[:, -1:], 3)], dim=1)
    assert not torch.allclose(model.decode(monotone).audio_values, spoken)  # F0 is heard
    assert model.vocoder.config.codebook_sizes is None  # a vocoder of before; its units know better
    stranger = torch.cat([codes[:, :-1], torch.full_like(codes[:, -1:], 16)], dim=1)
    with pytest.raises(ValueError, match="between 0 and 15 in codebook 2"):
        model.decode(stranger)
    model.save_pretrained(tmp_path)
    loaded = KMeansUnitsModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(codes).audio_values, spoken)
    with pytest.raises(ValueError, match="between 0 and 15 in codebook 2"):
        loaded.decode(stranger)
    with pytest.raises(ValueError, match="codebook_sizes"):
        model.attach_vocoder(
            UnitVocoderModel(UnitVocoderConfig(num_quantizers=3, codebook_sizes=[50, 50, 8], **sizes))
        )
    assert torch.equal(model.decode(codes).audio_values, spoken)


@pytest.mark.parametrize("num_samples", [0, 100, 400, 720])
def test_short_recordings_have_as_many_codes_as_frames(models, speech, num_samples):
    model = models["kmeans"]
    part = speech[0, 8000 : 8000 + num_samples]
    given = streamed(UnitStream(model, 0.2, 0.3, 0.1), [part])
    assert given.shape == (3, max(0, model.get_encoded_length(num_samples)))
    if given.shape[1]:
        assert torch.equal(given, model.encode(part[None]).audio_codes[0])
