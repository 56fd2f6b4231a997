# SPDX-License-Identifier: Apache-2.0
"""Losses by name: what they hear, what they ignore, and what a recipe may say of them."""

import numpy as np
import pytest
import torch

from speech_tokenizers.modeling.spectral_losses import DEFAULT_MEL_SCALES, multi_scale_mel_loss
from speech_tokenizers.training.codec.reconstruction_losses import (
    RECONSTRUCTION_LOSSES,
    CompressedMagnitudeLoss,
    LoudnessLoss,
    LowFrequencyComplexLoss,
    MelLoss,
    WaveformPair,
    make_reconstruction_losses,
)


RATE = 16000


def tone(hertz: float, level: float = 0.1, phase: float = 0.0) -> torch.Tensor:
    time = torch.arange(RATE // 2) / RATE
    return level * torch.cos(2 * torch.pi * hertz * time + phase)[None, None]


def noise(level: float, seed: int = 0) -> torch.Tensor:
    return level * torch.randn(1, 1, RATE // 2, generator=torch.Generator().manual_seed(seed))


def value(loss, decoded: torch.Tensor, recorded: torch.Tensor) -> float:
    return float(loss(WaveformPair(decoded, recorded, RATE)))


@pytest.mark.parametrize("name", RECONSTRUCTION_LOSSES)
def test_a_loss_is_zero_where_nothing_differs_and_has_a_finite_gradient_anywhere(name):
    loss = RECONSTRUCTION_LOSSES[name]()
    recorded = tone(440) + noise(0.01)
    assert value(loss, recorded, recorded) == pytest.approx(0, abs=1e-6)
    for decoded in (recorded + noise(0.01, 1), torch.zeros_like(recorded), 0.5 * recorded):
        for target in (recorded, torch.zeros_like(recorded)):
            decoded = decoded.detach().clone().requires_grad_()
            loss(WaveformPair(decoded, target, RATE)).backward()
            assert decoded.grad.isfinite().all()
    assert value(loss, recorded + noise(0.05, 1), recorded) > value(loss, recorded + noise(0.01, 1), recorded) > 0


@pytest.mark.parametrize("name", RECONSTRUCTION_LOSSES)
def test_a_batch_has_the_mean_of_its_items(name):
    loss = RECONSTRUCTION_LOSSES[name]()
    recorded, decoded = torch.cat([tone(300), tone(900, 0.02)]), torch.cat([noise(0.02), noise(0.1, 1)])
    alone = [value(loss, decoded[i : i + 1], recorded[i : i + 1]) for i in range(2)]
    assert value(loss, decoded, recorded) == pytest.approx(np.mean(alone), rel=1e-5)


def test_the_mel_loss_is_the_models_own():
    decoded, recorded = noise(0.1), tone(500)
    assert value(MelLoss(), decoded, recorded) == pytest.approx(
        float(multi_scale_mel_loss(decoded, recorded, RATE, DEFAULT_MEL_SCALES)), rel=1e-6
    )


def test_only_the_complex_loss_hears_the_phase_of_low_tones():
    shifted = tone(500, phase=torch.pi / 2), tone(500)
    # The ends, where a tone is reflected, do change.
    assert value(CompressedMagnitudeLoss(), *shifted) < 0.3 * value(CompressedMagnitudeLoss(), tone(900), tone(500))
    assert value(LoudnessLoss(), *shifted) < 0.1 * value(LoudnessLoss(), tone(900), tone(500))
    assert value(LowFrequencyComplexLoss(), *shifted) > 0.5 * value(LowFrequencyComplexLoss(), -tone(500), tone(500))
    # Higher tones matter less, those above `max_hertz` not at all.
    high = value(LowFrequencyComplexLoss(), -tone(3000), tone(3000))
    assert high < 0.5 * value(LowFrequencyComplexLoss(), -tone(500), tone(500))
    assert value(LowFrequencyComplexLoss(), -tone(6000), tone(6000)) < 0.2 * high


def test_the_complex_loss_is_what_its_formula_says():
    decoded, recorded = noise(0.1)[..., :256], noise(0.1, 1)[..., :256]
    loss = LowFrequencyComplexLoss([[256, 256]], max_hertz=2000.0, corner_hertz=1000.0)
    spectra = [
        np.fft.rfft(x[0, 0].double() * np.hanning(257)[:-1]) / np.sqrt(0.375 * 256) for x in (decoded, recorded)
    ]
    a, b = (x[:32] * (np.abs(x[:32]) ** 2 + 1e-8) ** -0.35 for x in spectra)
    weights = 1 / (1 + (np.arange(32) * 62.5 / 1000) ** 2)
    assert value(loss, decoded, recorded) == pytest.approx(
        (np.abs(a - b) ** 2 * weights).mean() / weights.mean(), rel=1e-4
    )


def test_loudness_follows_the_ear():
    speech = tone(300, 0.1) + tone(600, 0.05) + tone(2000, 0.01)
    loss = LoudnessLoss(asymmetry=0.0)
    # A loud tone masks a change that is heard where it is quiet.
    assert value(loss, speech + tone(310, 0.005), speech) < 0.2 * value(loss, speech + tone(5000, 0.005), speech)
    # What was added counts more than what is missing.
    gained, lost = (
        value(LoudnessLoss(), speech + noise(0.01), speech),
        value(LoudnessLoss(), speech, speech + noise(0.01)),
    )
    assert gained > 1.2 * lost
    # The level of a recording does not matter.
    quiet = value(loss, 0.5 * (speech + noise(0.01)), 0.5 * speech)
    assert quiet == pytest.approx(value(loss, speech + noise(0.01), speech), rel=1e-3)


def test_spectra_are_computed_once_for_all_losses():
    pair = WaveformPair(noise(0.1), tone(300), RATE)
    assert pair.spectra(512, 128)[0] is pair.spectra(512, 128)[0]


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        ({"mel": 1.0}, {"loudnes": {}}, "`loudnes` is unknown; did you mean `loudness`"),
        ({"mel": 1.0}, {"mel": {"scales": "default"}}, "`mel` is unknown"),
        ({"mel": 1.0}, {"loudness": {}}, r"`loss_weights.loudness` is missing; add a weight"),
        ({"loudness": 1.0}, {"loudness": {"asymetry": 1}}, "`losses.loudness.asymetry` is unknown; did you mean"),
        ({"loudness": 1.0}, {"loudness": {"num_bands": 0}}, "`num_bands` must be positive"),
        ({"loudness": 1.0}, {"loudness": {"asymmetry": -5}}, "`asymmetry` must not be negative"),
        ({"loudness": 1.0}, {"loudness": {"asymmetry": "much"}}, "`losses.loudness.asymmetry` must be a number"),
        ({"compressed_magnitude": 1.0}, {"compressed_magnitude": {"resolutions": []}}, "`resolutions` is empty"),
        ({"compressed_magnitude": 1.0}, {"compressed_magnitude": {"resolutions": [[8]]}}, r"A resolution is \[n_fft"),
    ],
)
def test_settings_that_do_not_fit_are_refused(weights, settings, message):
    with pytest.raises(ValueError, match=message):
        make_reconstruction_losses(weights, settings)


def test_a_recipe_trains_by_the_losses_that_it_weights(make_trainer):
    weights = {"mel": 1.0, "waveform": 1.0, "commitment": 1.0, "loudness": 0.5, "low_frequency_complex": 2.0}
    trainer = make_trainer(loss_weights=weights, adversarial={"discriminators": {}}, max_steps=1)
    logged = trainer.train()
    assert logged["loss"] == pytest.approx(sum(weight * logged[name] for name, weight in weights.items()), rel=1e-5)
    assert "compressed_magnitude" not in logged
    assert {"eval_loudness", "eval_low_frequency_complex"} <= trainer.evaluate().keys()
    wrong = {
        "loudnes": "`loudnes` is unknown; did you mean `loudness`",
        "speech_features": "give speech_features.model",
    }
    for name, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            make_trainer(loss_weights={**weights, name: 1.0})
    with pytest.raises(ValueError, match="`loss_weights.mel` must not be negative"):
        make_trainer(loss_weights={**weights, "mel": -1.0})
