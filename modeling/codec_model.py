# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What all codecs have in common, whatever lies between their encoder and their decoder."""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from .checked_loading import CheckedLoading
from .codec_interface import SpeechCodec, SpeechStream, TokenKind
from .codec_layers import LSTMWeights, Snake, ceil_divide, mask_beyond
from .codec_streaming import CodecStream, LatentStream
from .configuration_codec import CodecConfig
from .input_checks import check_num_samples
from .mixed_precision import MixedPrecisionModel
from .spectral_layers import ConvNeXtBlock, InverseSpectrum, Spectrum, hann_window
from .spectral_losses import multi_scale_mel_loss
from .vector_quantization import FreezableModule


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


def place_frames(values: torch.Tensor, mask: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Zero what (batch, ..., num_frames) has where the mask, aligned left, is 0, and move each item to its start."""
    shape = (len(mask), *[1] * (values.dim() - 2), mask.shape[-1])
    return shift_steps(values * mask.view(shape).to(values.dtype), starts)


def channels_last(values: torch.Tensor) -> torch.Tensor:
    """(batch, channels, num_frames) -> (batch, num_frames, channels)."""
    return values.transpose(1, 2)


class CodecPreTrainedModel(MixedPrecisionModel, SpeechCodec, CheckedLoading, PreTrainedAudioTokenizerBase):
    """
    A codec's `encoder` and `decoder`, which every family has, and how they are run.

    Both are layers of `codec_layers`; what a family puts between them is its own.
    """

    config_class = CodecConfig
    main_input_name = "input_values"
    input_modalities = "audio"
    # The loss is a mean, which `Trainer` has to divide among accumulated batches itself.
    accepts_loss_kwargs = False
    lies_on_one_device = True
    warns_of_half = True
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
            init.copy_(module.window, hann_window(len(module.window)))
        else:
            super()._init_weights(module)

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

    def encode_stream(self, kind: TokenKind | None = None, num_quantizers: int | None = None) -> SpeechStream:
        """See [`SpeechCodec.encode_stream`]. The tokens are those of the whole recording."""
        return self._stream(self.check_kind(kind), num_quantizers)

    @property
    def decode_look_ahead(self) -> int:
        """See [`SpeechCodec.decode_look_ahead`]."""
        return 0 if self.is_streamable else self.decoder_context[1]

    def decode_stream(
        self, kind: TokenKind | None = None, num_samples: int | None = None, eager: bool = False
    ) -> SpeechStream:
        """See [`SpeechCodec.decode_stream`]. The samples are those of all tokens at once, in whole frames."""
        if num_samples is not None:
            check_num_samples(num_samples, 1, 1)
        return self._stream(self.check_kind(kind, decode=True), eager=eager)

    def _stream(self, kind: TokenKind, num_quantizers: int | None = None, eager: bool = False) -> SpeechStream:
        if kind == "codes":
            return CodecStream(self, num_quantizers, eager=eager)
        if num_quantizers is not None:
            raise ValueError("`num_quantizers` chooses among codebooks, of which latents have none; leave it out.")
        return LatentStream(self, eager=eager)

    def get_encoded_length(self, num_samples):
        """Frames for a number of samples (integer or integer tensor): the quotient by `hop_length`, rounded up."""
        return ceil_divide(num_samples, self.hop_length)

    def freeze(self, frozen: bool = True):
        """
        Keep weights and codebooks as they are, also in `train()` mode. Gradients still flow through the codec to its
        input and to latents that it decodes, so the codec can be part of a loss.

        Differentiate in `train()` mode on a GPU: cuDNN has no backward pass for LSTMs in evaluation mode. A frozen
        quantizer stays in evaluation mode, so both modes compute the same.

        Args:
            frozen (`bool`, defaults to `True`): Whether to freeze. `False` lets everything learn again.
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
        if padding_cache is not None:
            padding_cache.follow(self.encoder, len(input_values), input_values.shape[-1] % self.hop_length > 0)
        latents = self.encoder(input_values.to(self.dtype), lengths, padding_cache).transpose(1, 2)
        return latents, frame_lengths, frame_starts

    def _decode(self, latents, lengths=None, padding_cache=None):
        """Waveform (batch, 1, num_frames * hop_length) in float32 from latents aligned left."""
        self._check_streaming(padding_cache, lengths)
        if padding_cache is not None:
            padding_cache.follow(self.decoder, len(latents), is_last=False)
        return self.decoder(latents.to(self.dtype).transpose(1, 2), lengths, padding_cache).float()

    def _frame_mask(self, frames: torch.Tensor, frame_lengths) -> torch.Tensor:
        """1 for the real frames of (batch, num_frames, ...) aligned left, (batch, num_frames)."""
        if frame_lengths is None:
            return torch.ones(frames.shape[:2], dtype=torch.long, device=frames.device)
        positions = torch.arange(frames.shape[1], device=frames.device)
        return (positions < frame_lengths.unsqueeze(-1)).long()

    def _decode_placed(self, frames, mask, num_samples, padding_cache, to_latents):
        """
        Decode (batch, channels, num_frames) with items on either side, which `to_latents` makes (batch, F, dim).

        Returns:
            The waveforms, and their mask (batch, num_samples), long, or `None` where all rows are whole.
        """
        starts = lengths = None
        if mask is not None:
            starts, lengths = real_span(mask)
            frames = shift_steps(frames, -starts)
        last, ends = self._sample_ends(num_samples, frames, starts, lengths)
        audio_values = self._decode(to_latents(frames), lengths, padding_cache)
        if ends is None:
            return audio_values[..., :last], None
        audio_values = mask_beyond(audio_values, ends)
        padding_mask = mask_beyond(torch.ones_like(audio_values[:, 0], dtype=torch.long), ends)
        if starts is not None:
            audio_values = shift_steps(audio_values, starts * self.hop_length)
            padding_mask = shift_steps(padding_mask, starts * self.hop_length)
        return audio_values[..., :last], padding_mask[..., :last]

    def _sample_ends(self, num_samples, frames, starts, lengths):
        """Samples of the batch, `None` for all; and of each row from its first on, `None` where all rows are whole."""
        num_frames, hop = frames.shape[-1], self.hop_length
        ends = None if lengths is None else lengths * hop
        if num_samples is None:
            return None, ends
        num_samples = check_num_samples(num_samples, len(frames))
        if isinstance(num_samples, int):
            if self.get_encoded_length(num_samples) != num_frames:
                raise ValueError(
                    f"`num_samples` must lie between {(num_frames - 1) * hop + 1} and {num_frames * hop} for"
                    f" {num_frames} frames, but got {num_samples}."
                )
            return num_samples, None if ends is None else torch.where(lengths == num_frames, num_samples, ends)
        num_samples = num_samples.to(frames.device)
        if lengths is None:
            lengths = torch.full_like(num_samples, num_frames)
        misfits = self.get_encoded_length(num_samples) != lengths
        if bool(misfits.any()):
            row = int(misfits.long().argmax())
            length = int(lengths[row])
            raise ValueError(
                f"`num_samples` must lie between {(length - 1) * hop + 1} and {length * hop} for the {length} frames"
                f" of row {row}, but got {int(num_samples[row])}."
            )
        last = num_samples if starts is None else starts * hop + num_samples
        return int(last.max()), num_samples

    def _reconstruction_losses(self, audio_values, input_values, padding_mask):
        """The multi-scale mel loss, and the mean absolute difference of the real samples."""
        recorded = input_values.float() if padding_mask is None else input_values.float() * padding_mask.unsqueeze(1)
        mel_loss = multi_scale_mel_loss(audio_values, recorded, self.sampling_rate, padding_mask=padding_mask)
        num_real = recorded.numel() if padding_mask is None else padding_mask.sum().clamp(min=1)
        return mel_loss, (audio_values - recorded).abs().sum() / num_real

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


__all__ = ["CodecPreTrainedModel"]
