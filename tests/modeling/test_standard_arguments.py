# SPDX-License-Identifier: Apache-2.0
"""Arguments that transformers passes to any model work in ours, and misspelt ones are refused."""

import pytest
import torch
from transformers import HubertConfig, LlamaConfig

from helpers.tiny_codecs import ENCODER, OURS
from speech_tokenizers import (
    HubertForMaskedPrediction,
    HubertMaskedPredictionConfig,
    LatentLanguageModel,
    LatentLMConfig,
    SpeechEncoderCTCConfig,
    SpeechEncoderForCTC,
)


ALL = (*OURS, "vocoder", "hubert", "ctc", "lm")
STANDARD = [
    {"output_hidden_states": True},
    {"output_hidden_states": False},
    {"output_attentions": True},
    {"use_cache": True},
    {"return_dict": True},
    {"return_dict": None},
    {"output_hidden_states": True, "output_attentions": False, "use_cache": False, "return_dict": True},
]


def make_hubert(**fields) -> HubertForMaskedPrediction:
    torch.manual_seed(0)
    config = HubertMaskedPredictionConfig(**ENCODER, label_vocab_size=7, final_dim=8, **fields)
    return HubertForMaskedPrediction(config).eval()


def make_recogniser(**fields) -> SpeechEncoderForCTC:
    torch.manual_seed(0)
    config = SpeechEncoderCTCConfig(encoder_config=HubertConfig(**ENCODER), vocab_size=5, **fields)
    return SpeechEncoderForCTC(config).eval()


@pytest.fixture
def model_and_input(make_model, signal):
    """Function: a model by its name, and the first argument of its `forward`."""

    def make(name: str):
        if name == "vocoder":
            return make_model("kmeans-vocoder").vocoder, torch.zeros(2, 2, 5, dtype=torch.long)
        if name == "hubert":
            return make_hubert(), signal(2, 4000)[:, 0]
        if name == "ctc":
            return make_recogniser(), signal(2, 4000)[:, 0]
        if name == "lm":
            sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            text = LlamaConfig(**sizes, vocab_size=8)
            return LatentLanguageModel(LatentLMConfig(text_config=text, latent_dim=6)).eval(), torch.randn(2, 5, 6)
        return make_model(name), signal(2, 4000)

    return make


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_standard_arguments_work_in_forward(name, model_and_input):
    model, inputs = model_and_input(name)
    expected = set(model(inputs))
    for arguments in STANDARD:
        assert expected <= set(model(inputs, **arguments)), arguments
    assert isinstance(model(inputs, return_dict=False), tuple)


@pytest.mark.parametrize("name", ALL)
def test_misspelt_arguments_are_refused_in_forward(name, model_and_input):
    model, inputs = model_and_input(name)
    for wrong in ("output_hidden_state", "attention_masks", "deduplicated"):
        with pytest.raises(TypeError, match=wrong):
            model(inputs, **{wrong: True})


@pytest.mark.parametrize("name", [*OURS, "kmeans-vocoder"])
@torch.no_grad()
def test_a_configuration_that_wants_tuples_changes_no_token_and_no_stream(name, make_model, signal):
    model, recording = make_model(name), signal(1, 4000)
    time, tokens = (-1, "audio_codes") if model.kind == "codes" else (-2, "latents")
    expected = model.encode(recording)
    kinds = [kind for kind in model.decodable_kinds if kind == model.kind]
    decoded = [model.decode_encoded(expected) for _ in kinds]
    model.config.return_dict = False
    assert isinstance(model.encode(recording), tuple)
    assert isinstance(model(recording), tuple)
    encoded = model.encode_features({"input_values": recording})
    assert torch.equal(encoded[tokens], expected[tokens])
    stream = model.encode_stream()
    streamed = torch.cat([stream.encode(recording), stream.finish_encode()], dim=time)
    torch.testing.assert_close(streamed, expected[tokens], atol=1e-5, rtol=0)
    for samples in decoded:
        assert torch.equal(model.decode_encoded(encoded), samples)
        stream = model.decode_stream()
        joined = torch.cat([stream.decode(expected[tokens]), stream.finish_decode()], dim=-1)
        torch.testing.assert_close(joined, samples, atol=1e-5, rtol=0)


@torch.no_grad()
def test_masked_prediction_gives_the_states_and_attentions_of_its_encoder(signal):
    model, waveforms = make_hubert(attn_implementation="eager"), signal(2, 4000)[:, 0]
    mask = torch.zeros(2, 12, dtype=torch.bool)
    plain = model(waveforms, mask_time_indices=mask)
    assert plain.hidden_states is None
    assert plain.attentions is None
    outputs = model(waveforms, mask_time_indices=mask, output_hidden_states=True, output_attentions=True)
    expected = model.hubert(waveforms, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == len(expected.hidden_states) == 3
    for state, wanted in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, wanted)
    assert len(outputs.attentions) == 2
    for weights, wanted in zip(outputs.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(weights, wanted)


@torch.no_grad()
def test_a_recogniser_gives_the_states_and_attentions_of_its_encoder(signal):
    model, waveforms = make_recogniser(), signal(2, 4000)[:, 0]
    model.set_attn_implementation("eager")  # which has attentions to give
    assert model(waveforms).hidden_states is None
    outputs = model(waveforms, output_hidden_states=True, output_attentions=True)
    expected = model.encoder(waveforms, output_hidden_states=True, output_attentions=True)
    assert torch.equal(outputs.hidden_states[-1], expected.hidden_states[-1])
    assert torch.equal(outputs.attentions[0], expected.attentions[0])
