# SPDX-License-Identifier: Apache-2.0
"""Features of a frozen speech encoder as a loss: what it hears, and that only the codec learns."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from speech_tokenizers.modeling.speech_encoders import WaveformEncoder
from speech_tokenizers.training.codec.arguments import SpeechFeatureArguments
from speech_tokenizers.training.codec.frozen_encoder import SpeechFeatureObjective


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory) -> str:
    """An untrained Whisper whose encoder has three layers and hears two seconds."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    sizes |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "max_source_positions": 100}
    WhisperModel(WhisperConfig(**sizes, num_mel_bins=20, vocab_size=60, pad_token_id=0)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=20, chunk_length=2).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["whisper", "hubert"])
def objective(request, recordings, tmp_path):
    folder = request.getfixturevalue("whisper_folder" if request.param == "whisper" else "speech_teacher_folder")
    made = SpeechFeatureObjective(SpeechFeatureArguments(str(folder), layers=[1, 2]))
    made.prepare(recordings, SimpleNamespace(sampling_rate=16000), Accelerator(), tmp_path)
    return made


def loss_of(objective, decoded, recorded) -> torch.Tensor:
    return objective.losses(SimpleNamespace(audio_values=decoded), {"input_values": recorded})["speech_features"]


def test_it_is_the_squared_difference_of_features_in_units_of_their_deviation(whisper_folder, recordings, tmp_path):
    objective = SpeechFeatureObjective(SpeechFeatureArguments(whisper_folder, layers=[2]))
    objective.prepare(recordings[:1], SimpleNamespace(sampling_rate=16000), Accelerator(), tmp_path)
    recorded, decoded = (torch.from_numpy(recording[:3200])[None] for recording in recordings[1:3])
    encoder = WaveformEncoder.from_pretrained(whisper_folder, window="tight")
    over_data = encoder(torch.from_numpy(recordings[0])[None], 2)[0][0]
    expected = ((encoder(decoded, 2)[0] - encoder(recorded, 2)[0]) / over_data.std(0)).square().mean()
    torch.testing.assert_close(loss_of(objective, decoded[None], recorded[None]), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stable", [False, True])
def test_layers_that_nobody_listens_to_are_cut_without_a_change(recordings, tmp_path, stable):
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 12}
    sizes |= {"conv_dim": (8, 8), "conv_kernel": (40, 16), "conv_stride": (20, 16)}
    sizes |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "do_stable_layer_norm": stable}
    HubertModel(HubertConfig(**sizes, feat_extract_norm="layer")).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    objective = SpeechFeatureObjective(SpeechFeatureArguments(str(tmp_path), layers=[1, 2]))
    objective.prepare(recordings, SimpleNamespace(sampling_rate=16000), Accelerator(), tmp_path)
    waveform = torch.from_numpy(recordings[0][:3200])[None]
    found, whole = objective.encoder(waveform).hidden_states, WaveformEncoder.from_pretrained(str(tmp_path))
    assert len(objective.encoder.encoder.encoder.layers) == 3
    for layer in (1, 2):
        torch.testing.assert_close(found[layer], whole(waveform, layer)[0])


def test_gradients_reach_the_decoded_waveform_alone(objective, recordings):
    recorded = torch.from_numpy(recordings[0][:3200])[None, None]
    decoded = (0.9 * recorded).requires_grad_()
    loss_of(objective, decoded, recorded).backward()
    assert decoded.grad.isfinite().all()
    assert decoded.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in objective.encoder.encoder.parameters())
    assert loss_of(objective, recorded, recorded) == 0


def test_a_recipe_trains_by_it_and_resumes_exactly(make_trainer, whisper_folder, tmp_path):
    weights = {"mel": 1.0, "waveform": 1.0, "commitment": 1.0, "speech_features": 2.0}
    changes = {
        "loss_weights": weights,
        "adversarial": {"discriminators": {}},
        "speech_features": {"model": whisper_folder},
    }
    whole = make_trainer(**changes, max_steps=4, output_dir=str(tmp_path / "whole"))
    logged = whole.train()
    assert logged["loss"] == pytest.approx(sum(weight * logged[name] for name, weight in weights.items()), rel=1e-5)
    first = make_trainer(**changes, max_steps=4, save_steps=2)
    first.args.max_steps = 2
    first.train()
    resumed = make_trainer(**changes, max_steps=4)
    assert resumed.train(resume_from_checkpoint="latest")["speech_features"] == logged["speech_features"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [4]}, "names layer 4, but the encoder has 3"),
        ({"model": "nowhere/at-all"}, "`speech_features.model` is 'nowhere/at-all', which cannot be loaded"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(whisper_folder, recordings, tmp_path, changes, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    objective = SpeechFeatureObjective(SpeechFeatureArguments(**{"model": whisper_folder, **changes}))
    with pytest.raises(ValueError, match=message):
        objective.prepare(recordings, SimpleNamespace(sampling_rate=16000), Accelerator(), tmp_path)


def test_what_it_cannot_hear_is_refused(whisper_folder, recordings, tmp_path):
    objective = SpeechFeatureObjective(SpeechFeatureArguments(whisper_folder))
    with pytest.raises(ValueError, match="hears 16000 Hz, but the codec has 24000 Hz"):
        objective.prepare(recordings, SimpleNamespace(sampling_rate=24000), Accelerator(), tmp_path)
    with pytest.raises(ValueError, match="set `data.streaming=false`"):
        objective.prepare(iter(recordings), SimpleNamespace(sampling_rate=16000), Accelerator(), tmp_path)
    with pytest.raises(ValueError, match="must name at least one layer, from 0 on"):
        SpeechFeatureArguments(whisper_folder, layers=[])


def test_int16_recordings_are_heard_at_their_level(whisper_folder, recordings, tmp_path):
    scales = []
    for data in (recordings, [np.round(recording * 32767).astype(np.int16) for recording in recordings]):
        objective = SpeechFeatureObjective(SpeechFeatureArguments(whisper_folder, layers=[1]))
        objective.prepare(data, SimpleNamespace(sampling_rate=16000), Accelerator(), tmp_path)
        scales.append(objective.scales[1])
    torch.testing.assert_close(*scales, rtol=1e-2, atol=1e-2)
