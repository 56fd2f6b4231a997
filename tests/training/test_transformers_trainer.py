# SPDX-License-Identifier: Apache-2.0
"""transformers.Trainer fine-tunes the codec with the losses of its forward, on this package's crops."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

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
