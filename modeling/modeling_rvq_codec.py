# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""The RVQ codec: speech to codes of a residual vector quantizer, and back."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .codec_layers import (
    ConvNeXtBlock,
    InverseSpectrum,
    LSTMWeights,
    SEANetDecoder,
    SEANetEncoder,
    Snake,
    SpectralDecoder,
    SpectralEncoder,
    Spectrum,
    StreamingCache,
    ceil_divide,
)
from .configuration_rvq_codec import RVQCodecConfig
from .input_checks import check_codes, check_waveforms
from .spectral_losses import multi_scale_mel_loss
from .vector_quantization import FreezableModule, ResidualVectorQuantizer, VectorQuantizer


@dataclass
class RVQCodecEncoderOutput(ModelOutput):
    r"""
    Args:
        audio_codes (`torch.LongTensor` of shape `(batch, num_quantizers, num_frames)`): Codebook indices, coarse to
            fine; 0 where the mask is 0.
        latents (`torch.FloatTensor` of shape `(batch, num_frames, hidden_size)`): Continuous frames before
            quantization.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): 1 for frames of real audio.
    """

    audio_codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None


@dataclass
class RVQCodecDecoderOutput(ModelOutput):
    r"""
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): Waveform.
    """

    audio_values: torch.FloatTensor | None = None


@dataclass
class RVQCodecOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`): Weighted sum of the three losses below (with `return_loss=True`).
        audio_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): Reconstruction, as long as the input.
        audio_codes (`torch.LongTensor` of shape `(batch, num_quantizers, num_frames)`): Codebook indices.
        latents (`torch.FloatTensor` of shape `(batch, num_frames, hidden_size)`): Frames before quantization.
        quantized_latents (`torch.FloatTensor` of shape `(batch, num_frames, hidden_size)`): Frames after quantization.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): 1 for frames of real audio.
        mel_loss (`torch.FloatTensor` of shape `()`): Multi-scale log-mel distance.
        waveform_loss (`torch.FloatTensor` of shape `()`): Mean absolute difference of the samples.
        commitment_loss (`torch.FloatTensor` of shape `()`): Mean squared distance of the residuals from their entries.
        stage_latents (`tuple` of `torch.FloatTensor` of shape `(batch, num_frames, codebook_dim)`): What each codebook
            that was used adds to the quantized frames; gradients pass straight through to the latents.
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


def shift_steps(values: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Move each item of (batch, ..., length) right by its shift (left where negative); zeros move in."""
    length = values.shape[-1]
    source = torch.arange(length, device=values.device) - shifts.unsqueeze(-1)  # (B, length)
    shape = (len(shifts), *[1] * (values.dim() - 2), length)
    moved = values.gather(-1, source.clamp(0, length - 1).view(shape).expand_as(values))
    return moved * ((source >= 0) & (source < length)).view(shape).to(values.dtype)


def real_span(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First real step and number of real steps of each item of a (batch, length) mask whose ones are in one run."""
    mask = mask.long()
    return mask.argmax(dim=-1), mask.sum(dim=-1)


class RVQCodecPreTrainedModel(PreTrainedAudioTokenizerBase):
    """Weight initialisation and loading, shared by the family."""

    config_class = RVQCodecConfig
    base_model_prefix = "rvq_codec"
    main_input_name = "input_values"
    input_modalities = "audio"
    # The loss is a mean, which `Trainer` has to divide among accumulated batches itself.
    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = ["quantizer"]
    _no_split_modules = ["ResidualUnit", "ConvNeXtBlock"]

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, parametrize.ParametrizationList):
            # Weight norm. Not a branch of the convolution: transformers skips a module whose own parameters (here the
            # bias alone) were all loaded, and the weight of a parametrized layer belongs to this module.
            init.kaiming_uniform_(module.original1, a=math.sqrt(5))
            init.copy_(module.original0, torch.linalg.vector_norm(module.original1, dim=(1, 2), keepdim=True))
        elif isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            if not parametrize.is_parametrized(module, "weight"):
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.zeros_(module.bias)
        elif isinstance(module, LSTMWeights):
            bound = 1 / math.sqrt(module.hidden_size)
            for parameter in module.parameters(recurse=False):
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.zeros_(module.bias)
        elif isinstance(module, Snake):
            init.ones_(module.alpha)
        elif isinstance(module, ConvNeXtBlock):
            init.constant_(module.scale, module.initial_scale)
        elif isinstance(module, (Spectrum, InverseSpectrum)):
            init.copy_(module.window, torch.hann_window(len(module.window)))
        elif isinstance(module, VectorQuantizer):
            init.normal_(module.codebook)
            init.copy_(module.codebook_sum, module.codebook)
            init.ones_(module.cluster_size)
            init.zeros_(module.initialized)
        elif isinstance(module, ResidualVectorQuantizer):
            init.zeros_(module.num_updates)
        else:
            super()._init_weights(module)


class RVQCodecModel(RVQCodecPreTrainedModel):
    r"""
    Neural codec with a residual vector quantizer, in the line of SoundStream (arXiv 2107.03312) and EnCodec (arXiv
    2210.13438).

    A padded batch gives each item the codes and samples that it gets alone. In `train()` mode `forward` also updates
    the codebooks (moving averages, over all processes).

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
    def sampling_rate(self) -> int:
        """Samples per second, in Hz."""
        return self.config.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.config.frame_rate

    @property
    def bits_per_second(self) -> float:
        """Nominal bit rate with all codebooks, in bit/s."""
        return self.config.bits_per_second

    @property
    def is_streamable(self) -> bool:
        """Whether the layers carry a stream: none looks ahead, not even for its padding."""
        return self.config.causal and self.config.pad_mode == "constant" and self.config.trim_right_ratio == 1

    @property
    def encoder_context(self) -> tuple[int, int]:
        """Frames before and after its own that a code depends on."""
        first, last = self.encoder.input_span(0, 0)
        return max(0, ceil_divide(-first, self.hop_length)), max(0, last // self.hop_length)

    @property
    def decoder_context(self) -> tuple[int, int]:
        """Frames before and after its own that a hop of samples depends on."""
        first, last = self.decoder.input_span(0, self.hop_length - 1)
        return max(0, -first), max(0, last)

    def get_encoded_length(self, num_samples):
        """Frames for a number of samples (integer or integer tensor): the quotient by `hop_length`, rounded up."""
        return ceil_divide(num_samples, self.hop_length)

    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
        padding_cache: StreamingCache | None = None,
    ) -> RVQCodecEncoderOutput:
        r"""
        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveform in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): 1 for real samples, padded on
                either side.
            num_quantizers (`int`, *optional*): Use only the first codebooks. Defaults to all.
            padding_cache ([`StreamingCache`], *optional*): The past of a stream; each chunk but the last must be a
            multiple of
                `hop_length` long. Only for causal codecs. [`CodecStream`] does this for chunks of any length.

        Raises:
            ValueError: If a shape, `num_quantizers` or the use of the cache is wrong.
        """
        input_values = check_waveforms(input_values, padding_mask)
        latents, frame_lengths, frame_starts = self._encode(input_values, padding_mask, padding_cache)
        audio_codes = self.quantizer.encode(latents, num_quantizers)
        if frame_lengths is None:
            mask = torch.ones(latents.shape[:2], dtype=torch.long, device=latents.device)
        else:
            positions = torch.arange(latents.shape[1], device=latents.device)
            mask = (positions < frame_lengths.unsqueeze(-1)).long()
            audio_codes = shift_steps(audio_codes * mask.unsqueeze(1), frame_starts)
            latents = shift_steps((latents * mask.unsqueeze(-1)).transpose(1, 2), frame_starts).transpose(1, 2)
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
        r"""
        Args:
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`, *optional*): What to decode;
                fewer codebooks than the codec has are its first ones.
            latents (`torch.Tensor` of shape `(batch, num_frames, hidden_size)`, *optional*): Decode these frames
                instead. With both given, the codes count.
            audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): 1 for real frames, padded on
                either side.
            num_samples (`int`, *optional*): Length of the original, which is up to `hop_length - 1` shorter than its
                frames.
            padding_cache ([`StreamingCache`], *optional*): The past of a stream. Only for causal codecs.

        Raises:
            ValueError: If neither codes nor latents are given, or a shape, a code or `num_samples` does not fit.
        """
        if audio_codes is None and latents is None:
            raise ValueError("`decode` needs `audio_codes` or `latents`, but got neither.")
        if audio_codes is not None:
            frames = check_codes(audio_codes, self.config.num_quantizers)
        else:
            frames = self._check_latents(latents)
        num_frames = frames.shape[-1] if audio_codes is not None else frames.shape[1]
        if num_samples is not None and self.get_encoded_length(num_samples) != num_frames:
            low, high = (num_frames - 1) * self.hop_length + 1, num_frames * self.hop_length
            raise ValueError(
                f"`num_samples` must lie between {low} and {high} for {num_frames} frames, but got {num_samples}."
            )
        lengths = None
        if audio_codes_mask is not None:
            expected = (frames.shape[0], num_frames)
            if audio_codes_mask.shape != expected:
                raise ValueError(
                    f"`audio_codes_mask` must have shape {expected}, but has {tuple(audio_codes_mask.shape)}."
                )
            starts, lengths = real_span(audio_codes_mask)
            if audio_codes is not None:
                frames = shift_steps(frames * audio_codes_mask.unsqueeze(1).long(), -starts)
            else:
                frames = shift_steps(frames.transpose(1, 2), -starts).transpose(1, 2)
        hidden_states = self._dequantize(frames) if audio_codes is not None else frames
        audio_values = self._decode(hidden_states, lengths, padding_cache)
        if lengths is not None:
            positions = torch.arange(audio_values.shape[-1], device=audio_values.device)
            audio_values = audio_values * (positions < (lengths * self.hop_length).unsqueeze(-1)).unsqueeze(1)
            audio_values = shift_steps(audio_values, starts * self.hop_length)
        return RVQCodecDecoderOutput(audio_values=audio_values[..., :num_samples])

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RVQCodecOutput:
        r"""
        Encode, quantize and decode, with gradients.

        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveform in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): 1 for real samples, padded on
                either side.
            num_quantizers (`int`, *optional*): Use only the first codebooks. Defaults to all.
            return_loss (`bool`, defaults to `True`): Also compute the losses that need no discriminator.
            kwargs: What transformers passes to any model, such as `output_attentions`, of which a codec has none.

        Raises:
            TypeError: If another argument is given.
        """
        if unknown := sorted(set(kwargs) - set(TransformersKwargs.__annotations__)):
            raise TypeError(f"`forward` has no argument {', '.join(unknown)}.")
        input_values = check_waveforms(input_values, padding_mask)
        latents, frame_lengths, frame_starts = self._encode(input_values, padding_mask)
        mask = None
        if frame_lengths is not None:
            positions = torch.arange(latents.shape[1], device=latents.device)
            mask = (positions < frame_lengths.unsqueeze(-1)).long()
        quantized = self.quantizer(latents, num_quantizers, mask)
        audio_values = self._decode(quantized.quantized_latents, frame_lengths)[..., : input_values.shape[-1]]
        audio_codes, quantized_latents = quantized.audio_codes, quantized.quantized_latents
        stage_latents = quantized.stage_quantized
        if mask is None or padding_mask is None:
            mask = torch.ones(latents.shape[:2], dtype=torch.long, device=latents.device)
        else:
            # Back to where the items were in the input.
            starts, _ = real_span(padding_mask)
            audio_values = shift_steps(audio_values, starts) * padding_mask.unsqueeze(1)
            audio_codes = shift_steps(audio_codes * mask.unsqueeze(1), frame_starts)
            latents, quantized_latents, *stage_latents = (
                shift_steps((value * mask.unsqueeze(-1)).transpose(1, 2), frame_starts).transpose(1, 2)
                for value in (latents, quantized_latents, *stage_latents)
            )
            mask = shift_steps(mask, frame_starts)

        loss = mel_loss = waveform_loss = None
        if return_loss:
            recorded = (
                input_values.float() if padding_mask is None else input_values.float() * padding_mask.unsqueeze(1)
            )
            mel_loss = multi_scale_mel_loss(audio_values, recorded, self.sampling_rate, padding_mask=padding_mask)
            num_real = recorded.numel() if padding_mask is None else padding_mask.sum().clamp(min=1)
            waveform_loss = (audio_values - recorded).abs().sum() / num_real
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

    def freeze(self, frozen: bool = True):
        r"""
        Keep weights and codebooks as they are, also in `train()` mode, while gradients still flow through the codec to
        its input and to latents that it decodes: the codec as part of a loss.

        Differentiate in `train()` mode on a GPU: cuDNN has no backward pass for LSTMs in evaluation mode. A frozen
        quantizer stays in evaluation mode, so both modes compute the same.

        Args:
            frozen (`bool`, defaults to `True`): `False` lets everything learn again.
        """
        self.requires_grad_(not frozen)
        for module in self.modules():
            if isinstance(module, FreezableModule):
                module.frozen = frozen
        self.train(self.training)

    @torch.enable_grad()  # without gradients the folded weights would become buffers
    def remove_weight_norm(self):
        """Fold weight normalisation into plain weights, which are faster. What is saved afterwards has none."""
        for module in self.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        self.config.use_weight_norm = False

    def _encode(self, input_values, padding_mask=None, padding_cache=None):
        """Latents (batch, num_frames, hidden_size) aligned left; with a mask, lengths and starts in frames."""
        lengths = frame_lengths = frame_starts = None
        if padding_mask is not None:
            starts, lengths = real_span(padding_mask)
            input_values = shift_steps(input_values, -starts)
            frame_lengths = self.get_encoded_length(lengths)
            num_frames = self.get_encoded_length(input_values.shape[-1])
            frame_starts = torch.where(starts > 0, num_frames - frame_lengths, 0)
        self._check_streaming(padding_cache, padding_mask)
        latents = self.encoder(input_values.to(self.dtype), lengths, padding_cache).transpose(1, 2)
        return latents, frame_lengths, frame_starts

    def _decode(self, latents, lengths=None, padding_cache=None):
        """Waveform (batch, 1, num_frames * hop_length) in float32 from latents aligned left."""
        self._check_streaming(padding_cache, lengths)
        return self.decoder(latents.to(self.dtype).transpose(1, 2), lengths, padding_cache).float()

    def _dequantize(self, audio_codes):
        if torch.compiler.is_compiling():
            return self.quantizer.decode(audio_codes)
        try:
            return self.quantizer.decode(audio_codes)
        except IndexError as error:  # raised by the look-up itself: checking beforehand would wait for the device
            raise ValueError(
                f"`audio_codes` must lie between 0 and {self.config.codebook_size - 1}, but some do not."
            ) from error

    def _check_latents(self, latents):
        if latents.dim() != 3 or latents.shape[-1] != self.config.hidden_size:
            expected = f"(batch, num_frames, {self.config.hidden_size})"
            raise ValueError(f"`latents` must have shape {expected}, but has {tuple(latents.shape)}.")
        if latents.shape[1] == 0:
            raise ValueError("`latents` is empty; it needs at least one frame.")
        return latents

    def _check_streaming(self, padding_cache, mask):
        if padding_cache is None:
            return
        if not self.is_streamable:
            raise ValueError(
                "`padding_cache` needs a codec with `causal=True`, `pad_mode='constant'` and "
                "`trim_right_ratio=1`; use `CodecStream`, which codes any codec in windows."
            )
        if mask is not None:
            raise ValueError("`padding_cache` and a mask exclude each other: the items of a stream arrive together.")


__all__ = [
    "RVQCodecDecoderOutput",
    "RVQCodecEncoderOutput",
    "RVQCodecModel",
    "RVQCodecOutput",
    "RVQCodecPreTrainedModel",
]
