# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of a run is a model that loads, and is the one that the run would have ended with there."""

import pytest
import torch

from speech_tokenizers import RVQCodecFeatureExtractor, load
from speech_tokenizers.cli import main
from speech_tokenizers.training.codec.codec_building import build_model
from speech_tokenizers.training.codec.codec_trainer import CodecTrainer


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_checkpoint_of_a_run_loads_as_what_the_run_would_have_saved(make_args, recordings, decay):
    args = make_args(max_steps=2, save_steps=1, weight_ema_decay=decay)
    trainer = CodecTrainer(
        build_model(args), args, recordings, feature_extractor=RVQCodecFeatureExtractor(sampling_rate=16000)
    )
    trainer.train()
    trainer.save_model()
    final, _ = load(trainer.output_dir / "final")
    last, feature_extractor = load(trainer.output_dir / "checkpoint-00000002")
    first, _ = load(trainer.output_dir / "checkpoint-00000001")
    assert feature_extractor.sampling_rate == 16000
    state = last.state_dict()
    assert state.keys() == final.state_dict().keys()
    for name, tensor in final.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert any(not torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


def test_a_checkpoint_encodes_from_the_command_line(make_args, recordings, write_audio, tmp_path):
    args = make_args(max_steps=1, save_steps=1)
    trainer = CodecTrainer(
        build_model(args), args, recordings, feature_extractor=RVQCodecFeatureExtractor(sampling_rate=16000)
    )
    trainer.train()
    recording = write_audio(tmp_path / "a.wav", 0.2)
    checkpoint = trainer.output_dir / "checkpoint-00000001"
    assert main(["encode", str(recording), "-o", str(tmp_path / "codes"), "--model", str(checkpoint)]) == 0


def test_a_checkpoint_without_a_model_says_what_it_is(tmp_path):
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no config\.json.* checkpoint of a training that had no codes yet"):
        load(tmp_path)
