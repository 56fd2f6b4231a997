# SPDX-License-Identifier: Apache-2.0
"""Long recordings in windows: every frame once, in order, in bounded memory."""

from types import SimpleNamespace

import pytest
import torch
from transformers import HubertConfig, WhisperConfig

from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.windowed_encoding import WindowedEncoder


class CountingModel:
    """Its code of a frame is in the frame's first sample, in thousandths, so windows can only get them right."""

    sampling_rate, hop_length, frame_span, frame_rate, device = 16000, 320, 400, 50.0, "cpu"
    longest_input, longest_exact_stream = None, 0
    config = SimpleNamespace(num_quantizers=1)

    def __init__(self):
        self.longest = 0

    def get_encoded_length(self, num_samples):
        return max(0, (num_samples - 400) // 320 + 1)

    def encode(self, input_values):
        self.longest = max(self.longest, input_values.shape[-1])
        frames = input_values[0, 0].unfold(0, 400, 320)
        if not len(frames):
            raise ValueError("too short")
        return type("Output", (), {"audio_codes": (1000 * frames[:, 0]).round().long()[None, None]})


@pytest.mark.parametrize("context_seconds", [0, 0.1])
@pytest.mark.parametrize(
    "num_samples", [400, 16000, 16080, 16081, 16400, 17679, 17680, 19280, 19281, 50000, *range(32000, 32800, 79)]
)
@pytest.mark.parametrize("chunk", [700, 100_000])
def test_every_frame_comes_once_and_in_order(num_samples, chunk, context_seconds):
    model = CountingModel()
    recording = torch.arange(num_samples) // 320 / 1000
    codes = WindowedEncoder(model, 1.0, context_seconds).encode(recording.split(chunk))
    assert codes.tolist() == [list(range(model.get_encoded_length(num_samples)))]
    assert model.longest <= (50 + 3 * round(50 * context_seconds)) * 320 + 400


def test_recordings_of_one_window_get_the_codes_of_the_whole(signal):
    config = HubertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, conv_dim=[24] * 7
    )
    torch.manual_seed(0)
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=config, layers=[1])).eval()
    model.set_centroids(model.features(signal(1, 40000))[0][0, 0, :100][None])
    waveform = signal(1, 30000, seed=2)
    codes = WindowedEncoder(model, 2.0, 0.5, whole_samples=0).encode(waveform[0, 0])
    assert torch.equal(codes, model.encode(waveform).audio_codes[0])


def test_more_context_brings_the_codes_nearer_to_those_of_the_whole(signal):
    config = HubertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, conv_dim=[24] * 7
    )
    torch.manual_seed(0)
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=config, layers=[1])).eval()
    model.set_centroids(model.features(signal(1, 40000))[0][0, 0, :100][None])
    waveform = signal(1, 160_000, seed=2)
    whole = model.encode(waveform).audio_codes[0]
    wrong = [
        int((WindowedEncoder(model, 1.0, context, whole_samples=0).encode(waveform[0, 0]) != whole).sum())
        for context in (0.0, 1.5)
    ]
    assert wrong[1] < wrong[0]


def test_whisper_hears_30_seconds_at_most():
    config = KMeansUnitsConfig(
        encoder_config=WhisperConfig(
            d_model=32, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=64, decoder_attention_heads=4
        ),
        layers=[1],
    )
    model = KMeansUnitsModel(config).eval()
    WindowedEncoder(model, 26.0, 2.0)
    with pytest.raises(ValueError, match="30 s that the encoder hears"):
        WindowedEncoder(model, 26.1, 2.0)


@pytest.mark.parametrize("shape", [(1, 1, 8000), (1, 8000), (2, 8000), ()])
def test_a_recording_is_one_row(shape):
    for chunks in (torch.zeros(shape), [torch.zeros(8000), torch.zeros(shape)]):
        with pytest.raises(ValueError, match=r"`chunks` must be of shape \(num_samples,\), but one has \("):
            WindowedEncoder(CountingModel(), 1.0).encode(chunks)


def test_windows_without_a_frame_are_refused():
    with pytest.raises(ValueError, match="at least a frame"):
        WindowedEncoder(CountingModel(), 0.001)
