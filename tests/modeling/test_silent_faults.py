# SPDX-License-Identifier: Apache-2.0
"""What once gave wrong tokens or audio without a word."""

import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecFeatureExtractor, EncodecModel

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.modeling.codec_interface import pad_waveforms
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec


@pytest.fixture
def wrapped(make_transformers_codec):
    return as_speech_codec(*make_transformers_codec("encodec"))


def test_a_wrapped_encoder_that_gives_nan_is_refused(wrapped):
    with torch.no_grad():
        next(wrapped.model.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="weights are damaged"):
        wrapped.encode(torch.randn(1, 1, 3000) * 0.1)


def test_a_wrapped_model_stays_wrapped_and_is_refused_in_training_mode(wrapped):
    stream = wrapped.encode_stream()
    assert wrapped.requires_grad_(False) is wrapped
    assert wrapped.cpu() is wrapped
    assert wrapped.train() is wrapped
    with pytest.raises(ValueError, match="training mode"):
        wrapped.encode(torch.zeros(1, 1, 3000))
    with pytest.raises(ValueError, match="training mode"):
        stream.encode(torch.zeros(1, 1, 3000))
    assert wrapped.eval() is wrapped
    assert wrapped.encode(torch.zeros(1, 1, 3000)).audio_codes.shape[0] == 1


def test_an_extractor_of_another_rate_is_refused():
    model = EncodecModel(EncodecConfig(sampling_rate=16000, num_filters=4, hidden_size=16, codebook_dim=16))
    with pytest.raises(ValueError, match="makes audio of 24000 Hz, but this EncodecModel takes 16000 Hz"):
        as_speech_codec(model, EncodecFeatureExtractor(sampling_rate=24000))


@pytest.mark.parametrize(
    ("waveforms", "error", "message"),
    [
        ([np.full(9, 30000, np.int16)], TypeError, "divide integers"),
        ([np.zeros((2, 9), np.float32)], ValueError, "must be mono"),
        ([np.zeros(0, np.float32)], ValueError, "is empty"),
        ([np.array([np.nan], np.float32)], ValueError, "NaN or infinity"),
        ([], ValueError, "is empty"),
    ],
)
def test_what_is_no_recording_is_not_padded(waveforms, error, message):
    with pytest.raises(error, match=message):
        pad_waveforms(waveforms)
    assert pad_waveforms([np.zeros((1, 9), np.float32)])["input_values"].shape == (1, 1, 9)


@pytest.mark.parametrize("maker", ["make_rvq_codec", "make_cst"])
def test_forward_in_evaluation_mode_refuses_damaged_weights(maker, request):
    model, _ = request.getfixturevalue(maker)()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match="weights are damaged"):
        model(torch.zeros(1, 1, 2000))


def test_audio_that_is_not_finite_is_refused(make_rvq_codec):
    model, _ = make_rvq_codec()
    latents = model.encode(torch.zeros(1, 1, 2000)).latents
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match="The decoder gives NaN or infinity"):
        model.decode(latents=latents)


@pytest.mark.parametrize("num_samples", [-5, 0, 1.5, "x", float("nan")])
def test_a_length_that_makes_no_sense_is_refused_by_streams(make_rvq_codec, wrapped, num_samples):
    for model in (make_rvq_codec()[0], wrapped):
        with pytest.raises(ValueError, match="`num_samples`"):
            model.decode_stream(num_samples=num_samples)
        with pytest.raises(ValueError, match="`kind` must be"):
            model.decode_stream(kind="")


def test_statistics_that_make_no_sense_are_refused():
    config = tiny_hubert(num_hidden_layers=1, conv_dim=(4,) * 7)
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=config, layers=[1], normalization="standardize"))
    ones = torch.ones(1, config.hidden_size)
    for mean, std in ((ones, 0 * ones), (ones, torch.nan * ones), (ones[0], ones), (torch.ones(1), ones)):
        with pytest.raises(ValueError, match="must"):
            model.set_statistics(mean, std)
