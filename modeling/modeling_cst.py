# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Continuous speech tokens: speech to low-dimensional latents at a low rate, and back."""

from dataclasses import dataclass

import torch
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .codec_interface import TokenKind
from .codec_layers import (
    CodecConv1d,
    CodecConvTranspose1d,
    CodecSequential,
    PointwiseConv1d,
    SEANetDecoder,
    SEANetEncoder,
    StreamingCache,
)
from .codec_model import CodecPreTrainedModel, channels_last, place_frames, real_span, shift_steps
from .configuration_cst import CSTConfig
from .input_checks import check_arguments, check_encoded, check_finite, check_latents, check_waveforms
from .latent_bottleneck import CTCProjection, LatentBottleneck, LatentStatistics
from .mixed_precision import warn_of_half_precision
from .spectral_layers import SpectralDecoder, SpectralEncoder


@dataclass
class CSTEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch, num_frames, hidden_size)`): Continuous tokens of zero mean and
            unit variance over the training speech; 0 where the mask is 0.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): Mask with 1 for frames of real audio.
    """

    latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None


@dataclass
class CSTDecoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): Waveform; 0 where the mask is 0.
        padding_mask (`torch.LongTensor` of shape `(batch, num_samples)`): Mask with 1 for real samples. `None` where
            all rows are whole: without `audio_codes_mask` and a `num_samples` for each row.
    """

    audio_values: torch.FloatTensor | None = None
    padding_mask: torch.LongTensor | None = None


@dataclass
class CSTOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): Weighted sum of the three losses below (with `return_loss=True`).
        audio_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): Reconstruction, as long as the input.
        latents (`torch.FloatTensor` of shape `(batch, num_frames, hidden_size)`): Continuous tokens, as `encode` gives
            them.
        raw_latents (`torch.FloatTensor` of shape `(batch, num_frames, hidden_size)`): The latents before
            normalization, on the scale of the noise.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): Mask with 1 for frames of real audio.
        mel_loss (`torch.FloatTensor` of shape `()`): Multi-scale log-mel distance.
        waveform_loss (`torch.FloatTensor` of shape `()`): Mean absolute difference of the samples.
        kl_loss (`torch.FloatTensor` of shape `()`): Loss of the bottleneck, in nats; see [`LatentBottleneck`].
        ctc_logits (`torch.FloatTensor` of shape `(batch, num_frames, num_labels)`): Logits of the CTC labels, from the
            latents with their noise. Only models with `ctc_labels` have them.
    """

    loss: torch.FloatTensor | None = None
    audio_values: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    raw_latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None
    mel_loss: torch.FloatTensor | None = None
    waveform_loss: torch.FloatTensor | None = None
    kl_loss: torch.FloatTensor | None = None
    ctc_logits: torch.FloatTensor | None = None


class CSTPreTrainedModel(CodecPreTrainedModel):
    """Weight initialisation and loading, shared by the family."""

    config_class = CSTConfig
    base_model_prefix = "cst"
    _keep_in_fp32_modules_strict = ["statistics"]

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, LatentStatistics):
            module.reset_parameters()
        else:
            super()._init_weights(module)


class CSTModel(CSTPreTrainedModel):
    """
    Continuous speech tokens, in the line of Cont-SPT (arXiv 2410.17081): a codec whose quantizer is replaced by a
    bottleneck of few dimensions with noise.

    The latents that it gives and takes have zero mean and unit variance over the training speech. A padded batch gives
    each item the latents and samples that it gets alone. In `train()` mode `forward` adds noise to the latents, and
    for its first `statistics_steps` batches also follows their mean and standard deviation, over all processes.

    Args:
        config ([`CSTConfig`]): Sizes and kinds of the networks; see its presets.
    """

    def __init__(self, config: CSTConfig):
        super().__init__(config)
        self.bottleneck = LatentBottleneck(config.bottleneck_type, config.noise_std)
        self.statistics = LatentStatistics(config.hidden_size, config.statistics_steps, config.statistics_decay)
        self.encoder = make_encoder(config, self.bottleneck.num_channels(config.hidden_size))
        self.decoder = make_decoder(config)
        self.ctc_projection = None
        if config.ctc_labels is not None:
            self.ctc_projection = CTCProjection(
                config, config.hidden_size, config.ctc_hidden_size, len(config.ctc_labels)
            )
        self.post_init()

    @property
    def kind(self) -> TokenKind:
        """See [`SpeechCodec.kind`]."""
        return "latents"

    @property
    def decodable_kinds(self) -> tuple[TokenKind, ...]:
        """See [`SpeechCodec.decodable_kinds`]."""
        return ("latents",)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """See [`SpeechCodec.loss_names`]."""
        return ("kl",)

    @property
    def trained_parts(self) -> dict[str, str]:
        """See [`SpeechCodec.trained_parts`]."""
        return {} if self.ctc_projection is None else {"latent_ctc": "ctc_projection"}

    def _fingerprinted(self) -> list[torch.Tensor]:
        # Statistics that have seen no speech decide nothing.
        return [self.statistics.mean, self.statistics.std] if bool(self.statistics.num_updates) else []

    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        sample: bool = False,
        padding_cache: StreamingCache | None = None,
    ) -> CSTEncoderOutput:
        """
        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveform in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples,
                padded on either side.
            sample (`bool`, defaults to `False`): Whether to add the noise of the bottleneck, as in training.
            padding_cache ([`StreamingCache`], *optional*): The past of a stream; each chunk but the last must be a
                multiple of `hop_length` long. Only for causal models. [`LatentStream`] does this for chunks of any
                length.

        Raises:
            TypeError: If `input_values` is no tensor of floating point, or the mask no tensor.
            ValueError: If a shape, the mask or the use of the cache is wrong, or a sample is not finite.
        """
        input_values, padding_mask = check_waveforms(input_values, padding_mask)
        warn_of_half_precision(self)
        moments, frame_lengths, frame_starts = self._encode(input_values, padding_mask, padding_cache)
        check_encoded(moments)
        mask = self._frame_mask(moments, frame_lengths)
        latents = self.statistics.normalize(self.bottleneck(moments, mask, sample).latents)
        if frame_lengths is not None:
            latents = place_frames(latents.transpose(1, 2), mask, frame_starts).transpose(1, 2)
            mask = shift_steps(mask, frame_starts)
        return CSTEncoderOutput(latents=latents, audio_codes_mask=mask)

    @can_return_tuple
    def decode(
        self,
        latents: torch.Tensor,
        audio_codes_mask: torch.Tensor | None = None,
        num_samples: int | None = None,
        padding_cache: StreamingCache | None = None,
    ) -> CSTDecoderOutput:
        """
        Args:
            latents (`torch.Tensor` of shape `(batch, num_frames, hidden_size)`): Continuous tokens to decode.
            audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for real frames,
                padded on either side.
            num_samples (`int` or `torch.Tensor` of shape `(batch,)`, *optional*): Length of the originals, of the
                whole batch or of each row, which is up to `hop_length - 1` shorter than their frames.
            padding_cache ([`StreamingCache`], *optional*): The past of a stream. Only for causal models.

        Returns:
            [`CSTDecoderOutput`]: Each row as it is decoded alone, with a mask of its samples where rows may differ in
                length. Padding on the left stays there.

        Raises:
            TypeError: If the latents are no tensor of floating point, or the mask no tensor.
            ValueError: If a shape, a latent, the mask or `num_samples` does not fit.
        """
        latents, mask = check_latents(latents, self.config.hidden_size, audio_codes_mask)
        audio_values, padding_mask = self._decode_placed(
            latents.transpose(1, 2),
            mask,
            num_samples,
            padding_cache,
            lambda placed: self.statistics.denormalize(channels_last(placed)),
        )
        check_finite(audio_values, "The decoder gives")
        return CSTDecoderOutput(audio_values=audio_values, padding_mask=padding_mask)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CSTOutput:
        """
        Encode and decode, with gradients, and in training mode with noise.

        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveform in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples,
                padded on either side.
            noise (`torch.Tensor` of shape `(batch, num_frames, hidden_size)`, *optional*): Noise of the bottleneck;
                see [`LatentBottleneck.noise`]. By default it is drawn. Evaluation mode does not use it.
            return_loss (`bool`, defaults to `True`): Whether to compute the losses that need no discriminator.
            kwargs: Arguments that transformers passes to any model, such as `output_attentions`. A codec has no
                attentions.

        Raises:
            TypeError: If another argument is given.
        """
        check_arguments(kwargs)
        input_values, padding_mask = check_waveforms(input_values, padding_mask, finite=False)
        moments, frame_lengths, frame_starts = self._encode(input_values, padding_mask)
        if not self.training:
            check_encoded(moments, input_values)
            warn_of_half_precision(self)
        mask = None if frame_lengths is None else self._frame_mask(moments, frame_lengths)
        passed = self.bottleneck(moments, mask, self.bottleneck.training, noise)
        self.statistics.update(passed.mean, mask)
        raw_latents, latents = passed.mean, self.statistics.normalize(passed.mean)
        audio_values = self._decode(passed.latents, frame_lengths)[..., : input_values.shape[-1]]
        logits = None
        if self.ctc_projection is not None:
            hidden_states = passed.latents.to(self.dtype).transpose(1, 2)
            logits = self.ctc_projection(hidden_states, frame_lengths).transpose(1, 2)
        if mask is None or padding_mask is None:
            mask = self._frame_mask(moments, None)
        else:
            # Back to where the items were in the input.
            starts, _ = real_span(padding_mask)
            audio_values = shift_steps(audio_values, starts) * padding_mask.unsqueeze(1)
            latents, raw_latents, logits = (
                None if value is None else place_frames(value.transpose(1, 2), mask, frame_starts).transpose(1, 2)
                for value in (latents, raw_latents, logits)
            )
            mask = shift_steps(mask, frame_starts)

        loss = mel_loss = waveform_loss = None
        if return_loss:
            mel_loss, waveform_loss = self._reconstruction_losses(audio_values, input_values, padding_mask)
            loss = (
                self.config.mel_loss_weight * mel_loss
                + self.config.waveform_loss_weight * waveform_loss
                + self.config.kl_loss_weight * passed.kl_loss
            )
        return CSTOutput(
            loss=loss,
            audio_values=audio_values,
            latents=latents,
            raw_latents=raw_latents,
            audio_codes_mask=mask,
            mel_loss=mel_loss,
            waveform_loss=waveform_loss,
            kl_loss=passed.kl_loss,
            ctc_logits=logits,
        )


def make_encoder(config: CSTConfig, num_channels: int) -> CodecSequential:
    """Waveform (batch, 1, T) -> (batch, num_channels, ceil(T / hop_length))."""
    width, stride = config.network_hidden_size, config.latent_stride
    if config.encoder_type == "seanet":
        network = SEANetEncoder(config, width)
    else:
        network = SpectralEncoder(config, width, config.network_hop_length)
    if stride == 1:
        return CodecSequential(network, PointwiseConv1d(config, width, num_channels))
    return CodecSequential(network, CodecConv1d(config, width, num_channels, 2 * stride, stride=stride))


def make_decoder(config: CSTConfig) -> CodecSequential:
    """Latents (batch, hidden_size, F) -> waveform (batch, 1, F * hop_length)."""
    width, stride = config.network_hidden_size, config.latent_stride
    if config.decoder_type == "seanet":
        network = SEANetDecoder(config, width)
    else:
        network = SpectralDecoder(config, width, config.network_hop_length)
    if stride == 1:
        return CodecSequential(PointwiseConv1d(config, config.hidden_size, width), network)
    return CodecSequential(CodecConvTranspose1d(config, config.hidden_size, width, 2 * stride, stride), network)


__all__ = [
    "CSTDecoderOutput",
    "CSTEncoderOutput",
    "CSTModel",
    "CSTOutput",
    "CSTPreTrainedModel",
]
