# SPDX-License-Identifier: Apache-2.0
"""The parts of a training step. A clock that each part moves by hand stands in for the processor's."""

import pytest
import torch

from speech_tokenizers.modeling.vector_quantization import VectorQuantizer
from speech_tokenizers.training.codec.arguments import load_codec_recipe
from speech_tokenizers.training.studies import step_cost, step_profile
from speech_tokenizers.training.studies.step_profile import ProfiledTrainer, profile_training


RECONSTRUCTION_PARTS = {
    "data",
    "encoder forward",
    "encoder backward",
    "quantizer",
    "decoder forward",
    "decoder backward",
    "losses",
    "optimizer",
    "weight average",
    "other",
}


class Clock:
    """Stands still unless it is moved."""

    def __init__(self):
        self.now = 0.0

    def process_time(self) -> float:
        return self.now

    perf_counter = process_time


class Delayed(torch.autograd.Function):
    """What passes unchanged, and moves the clock on its way there and back."""

    @staticmethod
    def forward(ctx, value, clock, there, back):
        ctx.clock, ctx.back = clock, back
        clock.now += there
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.now += ctx.back
        return gradient, None, None, None


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(step_profile, "time", clock)
    monkeypatch.setattr(step_cost, "time", clock)
    return clock


def delay(module, clock: Clock, there: float, back: float) -> None:
    """Let a module's forward and backward passes take seconds."""
    forward = module.forward
    module.forward = lambda *arguments, **named: Delayed.apply(forward(*arguments, **named), clock, there, back)


class DelayedTrainer(ProfiledTrainer):
    """Encoder, decoder, data, losses and the average of the weights take known times."""

    clock: Clock

    def start(self) -> None:
        delay(self.unwrapped_model.encoder, self.clock, 1.0, 2.0)
        delay(self.unwrapped_model.decoder, self.clock, 4.0, 8.0)
        super().start()

    def train_batches(self):
        for batch in super().train_batches():
            self.clock.now += 16.0
            yield batch

    def average_weights(self) -> None:
        update = self.weight_average.update

        def slow_update(model) -> None:
            self.clock.now += 32.0
            update(model)

        self.weight_average.update = slow_update
        super().average_weights()
        self.weight_average.update = update

    def _time_alone(self, name, loss):
        super()._time_alone(name, Delayed.apply(loss, self.clock, 64.0, 128.0))


def test_time_goes_to_the_part_that_takes_it(recipe_file, clock, monkeypatch):
    monkeypatch.setattr(step_profile, "ProfiledTrainer", DelayedTrainer)
    monkeypatch.setattr(DelayedTrainer, "clock", clock, raising=False)
    # Two of these losses share a spectrum.
    names = ("mel", "waveform", "compressed_magnitude", "low_frequency_complex", "decorrelation")
    weights = dict.fromkeys((*names, "commitment"), 1.0)
    recipe = recipe_file(adversarial={"discriminators": {}}, loss_weights=weights)
    profile = profile_training(load_codec_recipe(str(recipe)), num_steps=2, num_warmup_steps=1)
    expected = dict.fromkeys(RECONSTRUCTION_PARTS, 0.0)
    expected |= {"data": 16.0, "encoder forward": 1.0, "encoder backward": 2.0}
    expected |= {"decoder forward": 4.0, "decoder backward": 8.0, "weight average": 32.0}
    assert profile["parts_ms"] == {part: 1000 * seconds for part, seconds in expected.items()}
    assert profile["losses_ms"] == dict.fromkeys(names, 192_000.0)
    assert profile["step_ms"] == 63_000.0
    assert profile["audio_seconds_per_second"] == pytest.approx(4 * 0.1 / 63)


def test_discriminators_have_a_part_where_there_are_any(recipe_file, tmp_path):
    # They act from the first step, whatever the recipe's schedule.
    recipe = recipe_file(adversarial={"start_step": 1000}, max_steps=2000, latent_health={"revival_steps": [1500]})
    profile = profile_training(load_codec_recipe(str(recipe)), 2, 1)
    assert set(profile["parts_ms"]) == RECONSTRUCTION_PARTS | {"discriminators"}
    assert set(profile["losses_ms"]) == {"mel", "waveform"}
    assert all(ms >= 0 for ms in profile["parts_ms"].values())
    assert profile["step_ms"] > 0
    assert profile["mixed_precision"] == "no"
    assert "peak_memory_gb" not in profile
    assert not (tmp_path / "run").exists()


def test_the_quantizer_acts_in_every_step_however_late_its_start(recipe_file, monkeypatch):
    coded = []
    encode = VectorQuantizer.encode
    monkeypatch.setattr(
        VectorQuantizer, "encode", lambda quantizer, vectors: (coded.append(1), encode(quantizer, vectors))[1]
    )
    changes = {"adversarial": {"discriminators": {}}, "model": {"overrides": {"quantizer_dropout": 0.0}}}
    recipe = str(recipe_file(**changes, max_steps=1000, latent_health={"quantizer_start_step": 900}))
    profile_training(load_codec_recipe(recipe), num_steps=2, num_warmup_steps=1)
    assert len(coded) == 2 * 6  # of two codebooks, in steps with a stopwatch and without
    coded.clear()
    step_cost.measure_steps({"late": load_codec_recipe(recipe)}, num_steps=2, num_warmup_steps=1)
    assert len(coded) == 2 * 3


def test_a_frozen_encoder_has_no_backward_pass(recipe_file):
    scales = {"encoder": 0.0, "quantizer": 0.0}
    recipe = recipe_file(adversarial={"discriminators": {}}, optimizer={"learning_rate_scales": scales})
    profile = profile_training(load_codec_recipe(str(recipe)), 1, 1)
    assert set(profile["parts_ms"]) == RECONSTRUCTION_PARTS - {"encoder backward"}
