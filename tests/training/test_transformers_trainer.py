# SPDX-License-Identifier: Apache-2.0
"""transformers.Trainer trains our models with the losses of their forward, and keeps the feature extractor."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from helpers.tiny_models import tiny_hubert
from speech_tokenizers import (
    DCSpinConfig,
    DCSpinFeatureExtractor,
    DCSpinModel,
    DMCodecConfig,
    DMCodecFeatureExtractor,
    DMCodecModel,
    load,
)
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.codec.codec_building import build_model
from speech_tokenizers.training.codec.crops import AudioCropDataset


def test_trainer_lowers_and_reports_eval_loss(make_args, audio_folder, tmp_path):
    torch.manual_seed(0)
    model = build_model(make_args())
    recordings = decode_all(load_recordings(str(audio_folder)), model.sampling_rate, tmp_path / "cache")
    crops = AudioCropDataset(recordings, 1600)
    args = TrainingArguments(
        str(tmp_path / "fine-tuned"),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        eval_steps=12,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(model, args, train_dataset=crops, eval_dataset=AudioCropDataset(recordings[:2], 1600, seed=1))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    reported = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert reported[-1] < before
    model.eval()
    crop = crops[0]["input_values"][None]
    assert model(crop, return_loss=True).loss.item() == pytest.approx(
        model.config.mel_loss_weight * model(crop).mel_loss.item()
        + model.config.waveform_loss_weight * model(crop).waveform_loss.item()
        + model.config.commitment_loss_weight * model(crop).commitment_loss.item(),
        rel=1e-5,
    )


def make_dm_codec() -> tuple:
    config = DMCodecConfig.from_preset(
        "dm-codec-fast-16khz",
        hidden_size=16,
        encoder_hidden_size=16,
        decoder_hidden_size=16,
        encoder_num_layers=1,
        decoder_num_layers=1,
        num_quantizers=2,
        codebook_size=32,
    )
    return DMCodecModel(config), DMCodecFeatureExtractor()


def make_dc_spin() -> tuple:
    config = DCSpinConfig(
        encoder_config=tiny_hubert(num_hidden_layers=2, conv_dim=(8,) * 7),
        encoder_layer=1,
        trainable_layers=1,
        projection_dim=8,
        primary_codebook_size=12,
        auxiliary_codebook_size=32,
    )
    return DCSpinModel(config), DCSpinFeatureExtractor()


@pytest.mark.parametrize("family", ["rvq", "dm", "cst", "dc_spin"])
def test_checkpoints_hold_the_feature_extractor(family, make_rvq_codec, make_cst, tmp_path):
    makers = {"rvq": make_rvq_codec, "dm": make_dm_codec, "cst": make_cst, "dc_spin": make_dc_spin}
    model, feature_extractor = makers[family]()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (1600, 1200, 2000, 1300):
        rows.append({"input_values": 0.1 * torch.randn(1, length, generator=generator)})
        if family == "dc_spin":
            rows[-1]["perturbed_values"] = 0.9 * rows[-1]["input_values"]
    args = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none"
    )
    trainer = Trainer(model, args, train_dataset=rows, processing_class=feature_extractor)
    trainer.train()
    for step in (1, 2):
        loaded, extractor = load(tmp_path / f"checkpoint-{step}")
        assert type(extractor) is type(feature_extractor)
    with torch.no_grad():
        waveform = rows[0]["input_values"][None]
        assert torch.equal(loaded.encode(waveform).latents, trainer.model.eval().encode(waveform).latents)
