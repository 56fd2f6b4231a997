# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of the continuous speech tokens and its named presets."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_codec import CodecConfig


CST_PRESETS = {
    # For CPUs: both networks at 50 Hz, latents of 32 dimensions at 25 Hz.
    "cst-fast-16khz": {
        "encoder_type": "stft",
        "decoder_type": "istft",
        "encoder_lstm": "none",
        "decoder_lstm": "none",
        "hidden_size": 32,
        "latent_stride": 2,
        "network_hidden_size": 192,
        "encoder_hidden_size": 192,
        "encoder_num_layers": 4,
        "decoder_hidden_size": 320,
        "decoder_num_layers": 6,
        "n_fft": 640,
        "decoder_spectra": 2,
        "decoder_complex_residual": True,
        "use_weight_norm": False,
    },
    # SEANet on both sides: the better choice where a GPU trains and runs it.
    "cst-16khz": {
        "hidden_size": 32,
        "latent_stride": 2,
        "activation": "snake",
        "num_filters": 32,
        "encoder_lstm": "none",
        "decoder_lstm": "none",
    },
    # No look-ahead: one latent (80 ms) of latency.
    "cst-streaming-16khz": {
        "hidden_size": 32,
        "latent_stride": 4,
        "num_filters": 32,
        "encoder_lstm": "none",
        "decoder_lstm": "none",
        "causal": True,
    },
    # The paper's rate (arXiv 2410.17081) and EnCodec's networks; dimension and strides are not stated there.
    "cst-24khz": {
        "sampling_rate": 24000,
        "hidden_size": 64,
        "downsampling_ratios": [2, 4, 5, 8],
        "latent_stride": 3,
        "num_filters": 32,
        "activation": "elu",
    },
}


@strict
class CSTConfig(CodecConfig):
    """
    Configuration of a [`CSTModel`]: an encoder, a low-dimensional bottleneck with noise, and a decoder.

    Args:
        hidden_size (`int`, defaults to 32): Dimension of the latents.
        latent_stride (`int`, defaults to 1): Frames of the networks per latent; a strided convolution leads to the
            latents' rate, and a transposed one back.
        network_hidden_size (`int`, defaults to 128): Channels between the networks and those convolutions.
        bottleneck_type (`str`, defaults to `"sigma"`): Kind of bottleneck. With `"sigma"`, training adds noise of a
            standard deviation that is itself drawn for each item, `noise_std` times a standard normal number
            (sigma-VAE; arXiv 2412.08635). With `"kl"`, the encoder predicts the standard deviation of each number.
        noise_std (`float`, defaults to 0.5): Factor on the standard deviation of the noise of `"sigma"`; `"kl"` does
            not use it.
        statistics_steps (`int`, defaults to 1000): Training batches over which the latents' mean and standard
            deviation follow the encoder; then they stay as they are.
        statistics_decay (`float`, defaults to 0.99): Decay of their moving average, which starts as a plain one.
        ctc_labels (`list[str]`, *optional*): Labels of a CTC head on the latents, which serves training alone; the
            first is the blank. Without them there is no head.
        ctc_hidden_size (`int`, defaults to 128): Width of the head.
        mel_loss_weight, waveform_loss_weight, kl_loss_weight (`float`, default to 15.0, 1.0, 0.01): Weights of the
            terms in the loss that `forward` returns.
        kwargs: Fields of [`CodecConfig`].
    """

    model_type = "speech_tokenizers_cst"
    presets: ClassVar[dict[str, dict]] = CST_PRESETS

    hidden_size: int = 32
    latent_stride: int = 1
    network_hidden_size: int = 128
    bottleneck_type: str = "sigma"
    noise_std: float | int = 0.5
    statistics_steps: int = 1000
    statistics_decay: float | int = 0.99
    ctc_labels: list[str] | None = None
    ctc_hidden_size: int = 128
    mel_loss_weight: float | int = 15.0
    waveform_loss_weight: float | int = 1.0
    kl_loss_weight: float | int = 0.01

    @property
    def hop_length(self) -> int:
        """Samples per latent."""
        return self.network_hop_length * self.latent_stride

    @property
    def bits_per_second(self) -> float:
        """Nominal bit rate of latents in half precision, in bit/s."""
        return self.frame_rate * self.hidden_size * 16

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        super().validate_architecture()
        for name in ("latent_stride", "network_hidden_size", "statistics_steps", "ctc_hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        if self.bottleneck_type not in ("sigma", "kl"):
            raise ValueError(f"`bottleneck_type` must be 'sigma' or 'kl', but got {self.bottleneck_type!r}.")
        for name in ("noise_std", "mel_loss_weight", "waveform_loss_weight", "kl_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, but got {getattr(self, name)}.")
        if not 0 < self.statistics_decay < 1:
            raise ValueError(f"`statistics_decay` must lie strictly between 0 and 1, but got {self.statistics_decay}.")
        labels = self.ctc_labels
        if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels)):
            raise ValueError(f"`ctc_labels` must be a blank and at least one label, all different, but got {labels}.")


__all__ = ["CST_PRESETS", "CSTConfig"]
