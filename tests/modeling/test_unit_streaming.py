# SPDX-License-Identifier: Apache-2.0
"""Units of arriving speech do not depend on how it arrives, and are the whole recording's where all is heard."""

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, WhisperConfig

from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.unit_streaming import UnitStream


@pytest.fixture(scope="module")
def models(make_encoder, signal):
    encoder = make_encoder(HubertConfig, HubertModel)
    torch.manual_seed(0)
    kmeans = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder.config, layers=[1, 3], codebook_size=50)).eval()
    frames = kmeans.features(signal(1, 20000, seed=3))[0][0]  # (S, F, D)
    kmeans.set_centroids(frames[:, :50])
    sizes = {"encoder_layer": 3, "projection_dim": 16, "primary_codebook_size": 50, "auxiliary_codebook_size": None}
    dc_spin = DCSpinModel(DCSpinConfig(encoder_config=encoder.config, **sizes)).eval()
    whisper = WhisperConfig(
        d_model=32, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=64, decoder_attention_heads=4
    )
    fields = {**sizes, "encoder_layer": 1, "trainable_layers": 1, "window": "tight"}
    return {
        "kmeans": kmeans,
        "dc-spin": dc_spin,
        "whisper": DCSpinModel(DCSpinConfig(encoder_config=whisper, **fields)).eval(),
    }


def streamed(stream: UnitStream, parts) -> torch.Tensor:
    codes = [stream.push(part) for part in parts]
    return torch.cat([*codes, stream.flush()], dim=1)


@pytest.mark.parametrize("num_samples", [16000, 15999, 16079, 16080, 16081])
@pytest.mark.parametrize("name", ["kmeans", "dc-spin", "whisper"])
def test_any_sizes_of_the_parts_give_the_same_units(models, signal, name, num_samples):
    model = models[name]
    waveform = signal(1, num_samples)[0, 0]
    stream = UnitStream(model, 0.2, 0.3, 0.1)
    expected = streamed(stream, [waveform])
    assert expected.shape == (model.config.num_quantizers, model.get_encoded_length(num_samples))
    generator = torch.Generator().manual_seed(num_samples)
    for longest in (50, 700, 5000):
        sizes = torch.randint(0, longest + 1, (4 * num_samples // longest,), generator=generator)
        assert sizes.sum() > num_samples
        ends = sizes.cumsum(0).clamp(max=num_samples).tolist()
        parts = [waveform[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        # The same stream, as it begins anew after each flush.
        assert torch.equal(streamed(stream, parts), expected)


@pytest.mark.parametrize("name", ["kmeans", "dc-spin", "whisper"])
def test_where_the_context_covers_the_recording_units_are_those_of_the_whole(models, signal, name):
    waveform = signal(1, 16000)
    expected = models[name].encode(waveform).audio_codes[0]
    stream = UnitStream(models[name], 0.2, 1.0, 1.0)
    assert torch.equal(streamed(stream, waveform[0, 0].split(999)), expected)


def test_more_context_brings_the_units_nearer_to_those_of_the_whole(models, signal):
    model, waveform = models["dc-spin"], signal(1, 48000)
    expected = model.encode(waveform).audio_codes[0]
    wrong = [
        int((streamed(UnitStream(model, 0.2, context, context), [waveform[0, 0]]) != expected).sum())
        for context in (0.0, 0.2, 1.4)
    ]
    assert wrong[0] > wrong[1] > wrong[2]


def test_units_come_as_soon_as_their_context_has_arrived(models, signal):
    stream = UnitStream(models["dc-spin"], 0.2, 0.3, 0.1)
    needed = round(stream.latency_seconds * 16000)
    assert needed == 14 * 320 + 400
    waveform = signal(1, needed)[0, 0]
    assert stream.push(waveform[:-1]).shape == (1, 0)
    assert stream.push(waveform[-1:]).shape == (1, 10)


def test_memory_is_bounded(models, signal):
    """What is held never exceeds the chunk, its contexts and what was pushed at once."""
    stream = UnitStream(models["whisper"], 0.1, 0.1, 0.1)
    limit = stream.num_samples(15) + 320 + 500
    for part in signal(1, 40000)[0, 0].split(500):
        stream.push(part)
        assert stream._states["encode"].held.untyped_storage().nbytes() <= 4 * limit


def test_a_recording_without_a_frame_has_no_units(models):
    stream = UnitStream(models["kmeans"])
    assert stream.flush().shape == (2, 0)
    assert stream.push(torch.zeros(399)).shape == (2, 0)
    assert stream.flush().shape == (2, 0)


def test_impossible_chunks_are_refused(models):
    with pytest.raises(ValueError, match="at least a frame"):
        UnitStream(models["kmeans"], 0.001)
    with pytest.raises(ValueError, match="30 s that the encoder hears"):
        UnitStream(models["whisper"], 10.0, 20.0, 1.0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        UnitStream(models["kmeans"]).push(torch.tensor([0.1, torch.nan]))
    for samples in (np.zeros(100, dtype=np.float32), torch.zeros(100, dtype=torch.int16)):
        with pytest.raises(TypeError, match="tensor of floating point, but is"):
            UnitStream(models["kmeans"]).push(samples)
    with pytest.raises(ValueError, match=r"shape \(num_samples,\)"):
        UnitStream(models["kmeans"]).push(torch.zeros(1, 800))
