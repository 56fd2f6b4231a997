# SPDX-License-Identifier: Apache-2.0
"""The mel loss: SpeechTokenizer's own numbers, a naive version, and what it promises about padding and precision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speech_tokenizers.modeling.spectral_losses import (
    DEFAULT_MEL_SCALES,
    SPEECHTOKENIZER_MEL_SCALES,
    MelScale,
    RealFourierTransform,
    log_mel_spectrogram,
    mel_filters,
    mel_loss_of_spectra,
    multi_scale_mel_loss,
    short_time_spectrum,
)


@pytest.fixture(scope="module")
def reference():
    return load_file(Path(__file__).parents[1] / "fixtures" / "speechtokenizer_losses.safetensors")


@pytest.mark.parametrize("i", range(4))
def test_log_mel_equals_speechtokenizer(reference, i):
    scale = SPEECHTOKENIZER_MEL_SCALES[i]
    mel = log_mel_spectrogram(reference["wav"][:1, 0], 16000, scale.n_fft, scale.hop_length, scale.num_mels)
    torch.testing.assert_close(mel, reference[f"mel.{i}"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("i", range(4))
def test_loss_of_one_scale_equals_speechtokenizer(reference, i):
    scale = SPEECHTOKENIZER_MEL_SCALES[i]
    unweighted = (MelScale(scale.n_fft, scale.hop_length, scale.num_mels),)
    loss = multi_scale_mel_loss(reference["wav_hat"], reference["wav"], 16000, unweighted)
    torch.testing.assert_close(loss, reference[f"mel_loss.{i}"], atol=1e-6, rtol=0)


def test_weighted_loss_equals_speechtokenizer(reference):
    loss = multi_scale_mel_loss(reference["wav_hat"], reference["wav"], 16000, SPEECHTOKENIZER_MEL_SCALES)
    torch.testing.assert_close(loss, reference["mel_loss_weighted_total"], atol=0, rtol=1e-6)


def test_longer_signal_is_cut_to_the_shorter(reference):
    decoded, recorded = reference["wav_hat"], reference["wav"]
    loss = multi_scale_mel_loss(decoded[..., :15800], recorded, 16000)
    assert loss == multi_scale_mel_loss(decoded[..., :15800], recorded[..., :15800], 16000)


def test_spectra_give_the_same_loss_as_their_waveforms(reference):
    waveforms = reference["wav_hat"], reference["wav"]
    asked = []

    def spectra(n_fft, hop_length):
        asked.append((n_fft, hop_length))
        return tuple(short_time_spectrum(waveform[:, 0], n_fft, hop_length) for waveform in waveforms)

    loss = mel_loss_of_spectra(spectra, 16000, SPEECHTOKENIZER_MEL_SCALES)
    assert loss == multi_scale_mel_loss(*waveforms, 16000, SPEECHTOKENIZER_MEL_SCALES)
    assert asked == [(scale.n_fft, scale.hop_length) for scale in SPEECHTOKENIZER_MEL_SCALES]


def test_log_mel_equals_a_naive_version():
    audio = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 0.1
    n_fft, hop, num_mels = 64, 16, 8
    padded = np.pad(audio, 24, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = [padded[i : i + n_fft] * window for i in range(0, len(padded) - n_fft + 1, hop)]
    magnitude = np.sqrt(np.abs(np.fft.rfft(frames)) ** 2 + 1e-9)

    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), num_mels + 2) / 2595) - 1)
    frequencies = np.arange(n_fft // 2 + 1) * 16000 / n_fft
    filters = np.zeros((num_mels, len(frequencies)))
    for m in range(num_mels):
        low, centre, high = edges[m : m + 3]
        for k, f in enumerate(frequencies):
            if low < f <= centre:
                filters[m, k] = (f - low) / (centre - low)
            elif centre < f < high:
                filters[m, k] = (high - f) / (high - centre)
        filters[m] *= 2 / (high - low)
    expected = np.log(np.maximum(magnitude @ filters.T, 1e-5)).T

    mel = log_mel_spectrogram(torch.from_numpy(audio)[None], 16000, n_fft, hop, num_mels)[0]
    np.testing.assert_allclose(mel.numpy(), expected, atol=1e-4)


def test_every_default_filter_sees_a_frequency():
    for scale in DEFAULT_MEL_SCALES:
        filters = mel_filters(16000, scale.n_fft, scale.num_mels, 0.0, 8000.0, torch.device("cpu"))
        assert (filters.sum(1) > 0).all()


def test_identical_signals_have_no_loss_and_louder_ones_have_log_of_the_gain():
    audio = torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0))
    assert multi_scale_mel_loss(audio, audio, 16000) == 0
    # The default weights make the loss a mean, and ten times the amplitude adds log(10) to each value.
    torch.testing.assert_close(
        multi_scale_mel_loss(audio * 10, audio, 16000), torch.tensor(10.0).log(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("num_samples", [1, 30, 500, 3000])
def test_any_length_has_a_finite_loss_and_gradient(num_samples):
    decoded = torch.zeros(1, 1, num_samples, requires_grad=True)
    loss = multi_scale_mel_loss(decoded, torch.full((1, 1, num_samples), 0.1), 16000)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(decoded.grad).all()


def test_what_lies_in_the_padding_does_not_count():
    generator = torch.Generator().manual_seed(0)
    decoded, recorded = torch.randn(2, 2, 1, 8000, generator=generator) * 0.1
    mask = torch.ones(2, 8000)
    mask[0, 5000:] = 0
    noisy = decoded.clone()
    noisy[0, :, 5000:] = 1.0
    clean_loss = multi_scale_mel_loss(decoded, recorded, 16000, padding_mask=mask)
    assert multi_scale_mel_loss(noisy, recorded, 16000, padding_mask=mask) == clean_loss


def test_a_full_mask_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    decoded, recorded = torch.randn(2, 2, 1, 4000, generator=generator) * 0.1
    torch.testing.assert_close(
        multi_scale_mel_loss(decoded, recorded, 16000, padding_mask=torch.ones(2, 4000)),
        multi_scale_mel_loss(decoded, recorded, 16000),
    )


def test_autocast_does_not_lower_the_precision():
    generator = torch.Generator().manual_seed(0)
    decoded, recorded = torch.randn(2, 1, 1, 4000, generator=generator) * 0.1
    exact = multi_scale_mel_loss(decoded, recorded, 16000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert multi_scale_mel_loss(decoded, recorded, 16000) == exact


def test_filters_made_under_inference_mode_serve_training():
    scale = (MelScale(96, 24, 7),)
    decoded = torch.randn(1, 1, 480, requires_grad=True)
    with torch.inference_mode():
        multi_scale_mel_loss(decoded, decoded, 16000, scale)
    multi_scale_mel_loss(decoded, torch.zeros(1, 1, 480), 16000, scale).backward()
    assert decoded.grad is not None


def test_a_hop_beyond_the_window_is_an_error():
    with pytest.raises(ValueError, match="hop_length"):
        MelScale(64, 128, 10)


@pytest.mark.parametrize("length", [2, 8, 30])
def test_the_real_transform_and_its_gradient_are_pytorchs(length):
    frames = torch.randn(3, length, dtype=torch.float64, requires_grad=True)
    mixing = torch.randn(3, length // 2 + 1, dtype=torch.complex128)
    expected, found = torch.fft.rfft(frames), RealFourierTransform.apply(frames)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad((spectrum * mixing).real.sum(), frames)[0] for spectrum in (expected, found)]
    torch.testing.assert_close(*gradients)
