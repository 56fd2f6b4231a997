# SPDX-License-Identifier: Apache-2.0
"""A frozen recogniser hears what its own pipeline hears, and sends gradients back to the waveform."""

import json
import math

import pytest
import soundfile
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

import speech_tokenizers  # noqa: F401 (registers the classes)
from speech_tokenizers.modeling.configuration_cst import CSTConfig
from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.modeling.modeling_speech_encoder_ctc import SpeechEncoderForCTC
from speech_tokenizers.processing.ctc_labels import build_tokenizer
from speech_tokenizers.training.codec.frozen_recognizer import FrozenRecognizer
from speech_tokenizers.training.codec.latent_arguments import RecognitionArguments
from speech_tokenizers.training.codec.latent_objectives import RecognitionObjective


WAV2VEC2 = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_kernel": (40, 16),
    "conv_stride": (20, 16),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
}


def save(folder, model, feature_extractor, tokenizer):
    for part in (model, feature_extractor, tokenizer):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["wav2vec2", "on-wav2vec2", "on-whisper-tight", "on-whisper-padded"])
def recognizer_folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("recognizer")
    tokenizer = build_tokenizer(["abc"], "character")
    torch.manual_seed(0)
    if request.param == "wav2vec2":
        config = Wav2Vec2Config(**WAV2VEC2, vocab_size=len(tokenizer), pad_token_id=0)
        return save(root, Wav2Vec2ForCTC(config), Wav2Vec2FeatureExtractor(do_normalize=True), tokenizer)
    if "whisper" in request.param:
        sizes = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
        sizes |= {
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 16,
            "max_source_positions": 100,
        }
        WhisperModel(WhisperConfig(**sizes, num_mel_bins=20, vocab_size=60, pad_token_id=0)).save_pretrained(
            root / "e"
        )
        WhisperFeatureExtractor(feature_size=20, chunk_length=2).save_pretrained(root / "e")
    else:
        Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC2)).save_pretrained(root / "e")
        Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(root / "e")
    model, feature_extractor = SpeechEncoderForCTC.from_encoder(
        str(root / "e"),
        vocab_size=len(tokenizer),
        pad_token_id=0,
        layer="weighted" if "whisper" in request.param else "last",
        window="tight" if "tight" in request.param else "padded",
    )
    model.states_mean.uniform_(-0.1, 0.1)
    return save(root / "recognizer", model, feature_extractor, tokenizer)


def test_it_hears_what_its_own_pipeline_hears(recognizer_folder, recordings):
    recognizer = FrozenRecognizer(recognizer_folder)
    waveforms = torch.stack([torch.from_numpy(recording[:4000]) for recording in recordings[:2]])
    inputs = recognizer.feature_extractor(
        list(waveforms.numpy()), sampling_rate=16000, return_tensors="pt", return_attention_mask=True
    )
    name = recognizer.model.main_input_name
    with torch.no_grad():
        arguments = {name: inputs[name]}
        if isinstance(recognizer.model, SpeechEncoderForCTC):
            arguments["attention_mask"] = inputs["attention_mask"]
        expected = recognizer.model(**arguments).logits
        found = recognizer(waveforms)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_gradients_reach_the_waveform_and_nothing_learns(recognizer_folder, recordings):
    recognizer = FrozenRecognizer(recognizer_folder)
    waveforms = torch.from_numpy(recordings[0][:4000])[None].requires_grad_()
    recognizer(waveforms).logsumexp(-1).sum().backward()
    assert waveforms.grad.isfinite().all()
    assert waveforms.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in recognizer.model.parameters())


def test_silence_has_a_finite_gradient(recognizer_folder):
    waveforms = torch.zeros(1, 4000, requires_grad=True)
    FrozenRecognizer(recognizer_folder)(waveforms).sum().backward()
    assert waveforms.grad.isfinite().all()


def test_the_reconstruction_is_heard(recognizer_folder, make_trainer, recordings, tmp_path):
    folder = tmp_path / "spoken"
    folder.mkdir()
    rows = [{"file_name": f"{k}.wav", "text": "cab"} for k in range(2)]
    for row, recording in zip(rows, recordings, strict=False):
        soundfile.write(folder / row["file_name"], recording, 16000)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    overrides = {"hidden_size": 6, "latent_stride": 2, "network_hidden_size": 16, "decoder_hidden_size": 16}
    overrides |= {"encoder_hidden_size": 16, "encoder_num_layers": 1, "decoder_num_layers": 1, "n_fft": 640}
    model = CSTModel(CSTConfig.from_preset("cst-fast-16khz", **overrides))
    objective = RecognitionObjective(RecognitionArguments(head=False, recognizer=recognizer_folder))
    trainer = make_trainer()  # for its accelerator and its data
    trainer.args.data.train = str(folder)
    trainer.data.find()
    objective.prepare(trainer.data.train, model, trainer.accelerator, tmp_path)
    assert objective.loss_names == ("reconstruction_ctc",)
    crops = [objective.targets(k, 0, 8000) for k in range(2)]
    batch = {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}
    batch["input_values"] = torch.zeros(2, 1, 8000)
    batch["input_values"][0, 0, :4000] = torch.from_numpy(recordings[0][:4000])
    losses = objective.losses(model(batch["input_values"]), batch)
    assert math.isfinite(losses["reconstruction_ctc"].detach())
    losses["reconstruction_ctc"].backward()
    assert sum(float(parameter.grad.abs().sum()) for parameter in model.encoder.parameters()) > 0
