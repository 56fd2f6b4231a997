# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""The RVQ codec: speech to codes of a residual vector quantizer, and back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .codec_layers import SEANetDecoder, SEANetEncoder, StreamingCache
from .codec_model import CodecPreTrainedModel, channels_last, place_frames, real_span, shift_steps
from .configuration_rvq_codec import RVQCodecConfig
from .input_checks import (
    check_arguments,
    check_codes,
    check_encoded,
    check_finite,
    check_latents,
    check_waveforms,
)
from .mixed_precision import warn_of_half_precision
from .spectral_layers import SpectralDecoder, SpectralEncoder
from .vector_quantization import ResidualVectorQuantizer, VectorQuantizer


@dataclass
class RVQCodecEncoderOutput(ModelOutput):
    """
    Args:
        audio_codes (`torch.LongTensor` of shape `(batch, num_quantizers, num_frames)`): Codebook indices, coarse to
            fine; 0 where the mask is 0.
        latents (`torch.FloatTensor` of shape `(batch, num_frames, hidden_size)`): Continuous frames before
            quantization.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): Mask with 1 for frames of real audio.
    """

    audio_codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None


@dataclass
class RVQCodecDecoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): Waveform; 0 where the mask is 0.
        padding_mask (`torch.LongTensor` of shape `(batch, num_samples)`): Mask with 1 for real samples. `None` where
            all rows are whole: without `audio_codes_mask` and a `num_samples` for each row.
    """

    audio_values: torch.FloatTensor | None = None
    padding_mask: torch.LongTensor | None = None


@dataclass
class RVQCodecOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): Weighted sum of the three losses below (with `return_loss=True`).
        audio_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): Reconstruction, as long as the input.
        audio_codes (`torch.LongTensor` of shape `(batch, num_quantizers, num_frames)`): Codebook indices.
        latents (`torch.FloatTensor` of shape `(batch, num_frames, hidden_size)`): Frames before quantization.
        quantized_latents (`torch.FloatTensor` of shape `(batch, num_frames, hidden_size)`): Frames after quantization.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): Mask with 1 for frames of real audio.
        mel_loss (`torch.FloatTensor` of shape `()`): Multi-scale log-mel distance.
        waveform_loss (`torch.FloatTensor` of shape `()`): Mean absolute difference of the samples.
        commitment_loss (`torch.FloatTensor` of shape `()`): Mean squared distance of the residuals from their entries.
        stage_latents (`tuple` of `torch.FloatTensor` of shape `(batch, num_frames, codebook_dim)`): Part of each used
            codebook in the quantized frames. Gradients pass straight through to the latents.
    """

    loss: torch.FloatTensor | None = None
    audio_values: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized_latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None
    mel_loss: torch.FloatTensor | None = None
    waveform_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    stage_latents: tuple[torch.FloatTensor, ...] | None = None


class RVQCodecPreTrainedModel(CodecPreTrainedModel):
    """Weight initialisation and loading, shared by the family."""

    config_class = RVQCodecConfig
    base_model_prefix = "rvq_codec"
    _keep_in_fp32_modules_strict = ["quantizer"]

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, VectorQuantizer):
            init.normal_(module.codebook)
            init.copy_(module.codebook_sum, module.codebook)
            init.ones_(module.cluster_size)
            init.zeros_(module.initialized)
        elif isinstance(module, ResidualVectorQuantizer):
            init.zeros_(module.num_updates)
        else:
            super()._init_weights(module)


class RVQCodecModel(RVQCodecPreTrainedModel):
    """
    Neural codec with a residual vector quantizer, in the line of SoundStream (arXiv 2107.03312) and EnCodec (arXiv
    2210.13438).

    A padded batch gives each item the codes and samples that it gets alone; a code differs only where two entries are
    equally near up to rounding. In `train()` mode `forward` also updates the codebooks (moving averages, over all
    processes).

    Args:
        config ([`RVQCodecConfig`]): Sizes and kinds of the networks; see its presets.
    """

    def __init__(self, config: RVQCodecConfig):
        super().__init__(config)
        self.encoder = (SEANetEncoder if config.encoder_type == "seanet" else SpectralEncoder)(config)
        self.quantizer = ResidualVectorQuantizer(
            config.num_quantizers,
            config.codebook_size,
            config.codebook_dim or config.hidden_size,
            config.hidden_size,
            quantizer_dropout=config.quantizer_dropout,
            ema_decay=config.ema_decay,
            kmeans_iterations=config.kmeans_iterations,
            dead_code_threshold=config.dead_code_threshold,
        )
        self.decoder = (SEANetDecoder if config.decoder_type == "seanet" else SpectralDecoder)(config)
        self.post_init()

    @property
    def loss_names(self) -> tuple[str, ...]:
        """See [`SpeechCodec.loss_names`]."""
        return ("commitment",)

    def _fingerprinted(self) -> list[torch.Tensor]:
        return [quantizer.codebook for quantizer in self.quantizer.quantizers]

    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
        padding_cache: StreamingCache | None = None,
    ) -> RVQCodecEncoderOutput:
        """
        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveform in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples,
                padded on either side.
            num_quantizers (`int`, *optional*): Number of first codebooks to use. Defaults to all.
            padding_cache ([`StreamingCache`], *optional*): The past of a stream; each chunk but the last must be a
                multiple of `hop_length` long. Only for causal codecs. [`CodecStream`] does this for chunks of any
                length.

        Raises:
            TypeError: If `input_values` is no tensor of floating point, or the mask no tensor.
            ValueError: If a shape, the mask, `num_quantizers` or the use of the cache is wrong, or a sample is not
                finite.
        """
        input_values, padding_mask = check_waveforms(input_values, padding_mask)
        num_quantizers = self.check_num_quantizers(num_quantizers)
        warn_of_half_precision(self)
        latents, frame_lengths, frame_starts = self._encode(input_values, padding_mask, padding_cache)
        check_encoded(latents)
        audio_codes = self.quantizer.encode(latents, num_quantizers)
        mask = self._frame_mask(latents, frame_lengths)
        if frame_lengths is not None:
            audio_codes = place_frames(audio_codes, mask, frame_starts)
            latents = place_frames(latents.transpose(1, 2), mask, frame_starts).transpose(1, 2)
            mask = shift_steps(mask, frame_starts)
        return RVQCodecEncoderOutput(audio_codes=audio_codes, latents=latents, audio_codes_mask=mask)

    @can_return_tuple
    def decode(
        self,
        audio_codes: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        audio_codes_mask: torch.Tensor | None = None,
        num_samples: int | None = None,
        padding_cache: StreamingCache | None = None,
    ) -> RVQCodecDecoderOutput:
        """
        Args:
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`, *optional*): Codes to decode.
                If they have fewer codebooks than the codec, these are its first ones.
            latents (`torch.Tensor` of shape `(batch, num_frames, hidden_size)`, *optional*): Frames to decode in place
                of codes. With both given, the codes count.
            audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for real frames,
                padded on either side.
            num_samples (`int` or `torch.Tensor` of shape `(batch,)`, *optional*): Length of the originals, of the
                whole batch or of each row, which is up to `hop_length - 1` shorter than their frames.
            padding_cache ([`StreamingCache`], *optional*): The past of a stream. Only for causal codecs.

        Returns:
            [`RVQCodecDecoderOutput`]: Each row as it is decoded alone, with a mask of its samples where rows may
                differ in length. Padding on the left stays there.

        Raises:
            TypeError: If the codes are no tensor of integers, or the latents none of floating point.
            ValueError: If neither codes nor latents are given, or a shape, a code, a latent, the mask or
                `num_samples` does not fit.
        """
        if audio_codes is None and latents is None:
            raise ValueError("`decode` needs `audio_codes` or `latents`, but got neither.")
        if audio_codes is not None:
            config = self.config
            frames, mask = check_codes(audio_codes, config.num_quantizers, config.codebook_size, audio_codes_mask)
            to_latents: Callable[[torch.Tensor], torch.Tensor] = self.quantizer.decode
        else:
            latents, mask = check_latents(latents, self.config.hidden_size, audio_codes_mask)
            frames, to_latents = latents.transpose(1, 2), channels_last
        audio_values, padding_mask = self._decode_placed(frames, mask, num_samples, padding_cache, to_latents)
        check_finite(audio_values, "The decoder gives")
        return RVQCodecDecoderOutput(audio_values=audio_values, padding_mask=padding_mask)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RVQCodecOutput:
        """
        Encode, quantize and decode, with gradients.

        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveform in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples,
                padded on either side.
            num_quantizers (`int`, *optional*): Number of first codebooks to use. Defaults to all. With 0, which
                `encode` refuses, the decoder hears the latents as they are, and there are no codes.
            return_loss (`bool`, defaults to `True`): Whether to compute the losses that need no discriminator.
            kwargs: Arguments that transformers passes to any model, such as `output_attentions`. A codec has no
                attentions.

        Raises:
            TypeError: If another argument is given.
        """
        check_arguments(kwargs)
        input_values, padding_mask = check_waveforms(input_values, padding_mask, finite=False)
        latents, frame_lengths, frame_starts = self._encode(input_values, padding_mask)
        if not self.training:
            check_encoded(latents, input_values)
            warn_of_half_precision(self)
        mask = None if frame_lengths is None else self._frame_mask(latents, frame_lengths)
        quantized = self.quantizer(latents, num_quantizers, mask)
        audio_values = self._decode(quantized.quantized_latents, frame_lengths)[..., : input_values.shape[-1]]
        audio_codes, quantized_latents = quantized.audio_codes, quantized.quantized_latents
        stage_latents = quantized.stage_quantized
        if mask is None or padding_mask is None:
            mask = self._frame_mask(latents, None)
        else:
            # Back to where the items were in the input.
            starts, _ = real_span(padding_mask)
            audio_values = shift_steps(audio_values, starts) * padding_mask.unsqueeze(1)
            audio_codes = place_frames(audio_codes, mask, frame_starts)
            latents, quantized_latents, *stage_latents = (
                place_frames(value.transpose(1, 2), mask, frame_starts).transpose(1, 2)
                for value in (latents, quantized_latents, *stage_latents)
            )
            mask = shift_steps(mask, frame_starts)

        loss = mel_loss = waveform_loss = None
        if return_loss:
            mel_loss, waveform_loss = self._reconstruction_losses(audio_values, input_values, padding_mask)
            loss = (
                self.config.mel_loss_weight * mel_loss
                + self.config.waveform_loss_weight * waveform_loss
                + self.config.commitment_loss_weight * quantized.commitment_loss
            )
        return RVQCodecOutput(
            loss=loss,
            audio_values=audio_values,
            audio_codes=audio_codes,
            latents=latents,
            quantized_latents=quantized_latents,
            audio_codes_mask=mask,
            mel_loss=mel_loss,
            waveform_loss=waveform_loss,
            commitment_loss=quantized.commitment_loss,
            stage_latents=tuple(stage_latents),
        )

    def dequantize(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """
        The sum of the codes' entries, `(batch, num_frames, hidden_size)`.

        Args:
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Codes of the first codebooks.

        Raises:
            TypeError: If the codes are no tensor of integers.
            ValueError: If the shape is wrong, or a code lies outside its codebook.
        """
        codes, _ = check_codes(audio_codes, self.config.num_quantizers, self.config.codebook_size)
        return self.quantizer.decode(codes)


__all__ = [
    "RVQCodecDecoderOutput",
    "RVQCodecEncoderOutput",
    "RVQCodecModel",
    "RVQCodecOutput",
    "RVQCodecPreTrainedModel",
]
