# SPDX-License-Identifier: Apache-2.0
"""A training that is told to stop saves a checkpoint, ends by the signal, and goes on to the same result."""

import os
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import HubertModel, TrainerCallback, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.training.codec.codec_trainer import CodecTrainer
from speech_tokenizers.training.common import recipe_trainer
from speech_tokenizers.training.recognition import ctc_finetuning


@pytest.fixture
def units_recipe(tmp_path, audio_folder):
    """A recipe of tiny units, with a function of a folder's name."""
    torch.manual_seed(0)
    HubertModel(tiny_hubert(conv_dim=(8,) * 7)).save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "encoder")
    contents = {
        "trainer": "dc_spin",
        "output_dir": str(tmp_path / "run"),
        "model": {
            "encoder": str(tmp_path / "encoder"),
            "encoder_layer": 2,
            "trainable_layers": 1,
            "projection_dim": 8,
            "primary_codebook_size": 6,
            "auxiliary_codebook_size": None,
        },
        "data": {"train": str(audio_folder), "min_seconds": 0.2, "max_seconds": 0.4},
        "batch_seconds": 1.2,
        "max_steps": 4,
        "warmup_steps": 2,
    }
    path = tmp_path / "units.yaml"
    path.write_text(yaml.safe_dump(contents), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_of_units_ends_by_its_signal_and_goes_on(
    units_recipe, tmp_path, monkeypatch, capsys, number, code
):
    assert main(["train", units_recipe, f"output_dir={tmp_path / 'whole'}"]) == 0

    class Signalling(recipe_trainer.StopCallback, TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(recipe_trainer, "StopCallback", Signalling)
        assert main(["train", units_recipe]) == code
    assert "Stopped at step 2 of 4; the same command goes on." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not (tmp_path / "run" / "final").exists()
    assert main(["train", units_recipe]) == 0
    whole, run = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(value, run[name]) for name, value in whole.items())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_of_a_codec_ends_by_its_signal(recipe_file, tmp_path, monkeypatch, number, code):
    step = CodecTrainer._step_over

    def signalling(trainer, batches):
        if trainer.step == 1:
            os.kill(os.getpid(), number)
        return step(trainer, batches)

    monkeypatch.setattr(CodecTrainer, "_step_over", signalling)
    assert main(["train", str(recipe_file())]) == code
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-00000002"]


def test_a_training_that_was_told_to_stop_in_its_last_step_is_finished(recipe_file, tmp_path, monkeypatch):
    step = CodecTrainer._step_over

    def signalling(trainer, batches):
        if trainer.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batches)

    monkeypatch.setattr(CodecTrainer, "_step_over", signalling)
    assert main(["train", str(recipe_file())]) == 0
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_a_stop_before_the_first_step_is_a_stop(units_recipe, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ctc_finetuning, "decode_all", interrupted)
    monkeypatch.setattr("speech_tokenizers.training.units.dc_spin_trainer.decode_part", interrupted)
    assert main(["train", units_recipe]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
