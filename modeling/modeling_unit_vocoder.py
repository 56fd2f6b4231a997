# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""The unit vocoder: speech from k-means units, or from any other codes."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .checked_loading import CheckedLoading
from .codec_interface import FramedModel
from .codec_layers import CodecConv1d, CodecSequential, PointwiseConv1d, mask_beyond
from .configuration_unit_vocoder import UnitVocoderConfig
from .input_checks import (
    check_arguments,
    check_codes,
    check_codes_of_rows,
    check_finite,
    check_floats,
    check_num_samples,
    check_whole_numbers,
)
from .mixed_precision import MixedPrecisionModel
from .spectral_layers import ChannelNorm, ConvNeXtBlock, InverseSpectrum, SpectralDecoder, hann_window
from .unit_runs import deduplicate_codes, expand_codes


# An encoder without padding, such as HuBERT's, has up to one and a quarter frames fewer than the hops in its input.
_MAX_HELD_FRAMES = 2


@dataclass
class UnitVocoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): Waveform; 0 where the mask is 0.
        padding_mask (`torch.LongTensor` of shape `(batch, num_samples)`): Mask with 1 for real samples. `None` where
            all rows are whole: without `audio_codes_mask`, `durations` and a `num_samples` for each row.
        duration_loss (`torch.FloatTensor` of shape `()`): Loss of the durations; see [`~UnitVocoderModel.forward`].
            `None` unless the model predicts durations.
    """

    audio_values: torch.FloatTensor | None = None
    padding_mask: torch.LongTensor | None = None
    duration_loss: torch.FloatTensor | None = None


class DurationPredictor(CodecSequential):
    """Vectors of units (batch, hidden_size, num_units) -> logarithms of their durations (batch, 1, num_units)."""

    def __init__(self, config: UnitVocoderConfig):
        width = config.hidden_size
        super().__init__(
            CodecConv1d(config, width, width, config.convnext_kernel_size),
            ChannelNorm(width),
            ConvNeXtBlock(config, width, 2),
            ConvNeXtBlock(config, width, 2),
            ChannelNorm(width),
            PointwiseConv1d(config, width, 1),
        )


class UnitVocoderPreTrainedModel(MixedPrecisionModel, FramedModel, CheckedLoading, PreTrainedModel):
    """Weight initialisation and loading."""

    config_class = UnitVocoderConfig
    base_model_prefix = "unit_vocoder"
    main_input_name = "audio_codes"
    input_modalities = "audio"
    lies_on_one_device = True
    _no_split_modules = ["ConvNeXtBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, ConvNeXtBlock):
            init.constant_(module.scale, module.initial_scale)
        elif isinstance(module, InverseSpectrum):
            init.copy_(module.window, hann_window(len(module.window)))
        else:
            super()._init_weights(module)


class UnitVocoderModel(UnitVocoderPreTrainedModel):
    """
    Speech from discrete units (as in arXiv 2104.00355) by a network at the frame rate (Vocos, arXiv 2306.00814).

    The vectors of a frame's codes, one table a codebook, and the speaker's vector are added up. A padded batch gives
    each item the samples that it gets alone. Frame f gives the samples from `f * hop_length` on, wherever the middle
    of what the encoder heard for it lies: the network learns that shift, which is less than a frame.

    Args:
        config ([`UnitVocoderConfig`]): Sizes of the network, and of the codes and speakers that it speaks from.
    """

    def __init__(self, config: UnitVocoderConfig):
        super().__init__(config)
        self.codebook_sizes = config.codebook_sizes
        self.unit_embeddings = nn.ModuleList(
            nn.Embedding(config.codebook_size, config.hidden_size) for _ in range(config.num_quantizers)
        )
        self.speaker_table = self.speaker_projection = self.duration_predictor = None
        if config.num_speakers is not None:
            self.speaker_table = nn.Embedding(config.num_speakers, config.hidden_size)
        elif config.speaker_embedding_dim is not None:
            self.speaker_projection = nn.Linear(config.speaker_embedding_dim, config.hidden_size)
        self.decoder = SpectralDecoder(config)
        if config.predicts_durations:
            self.duration_predictor = DurationPredictor(config)
        self.post_init()

    @property
    def loss_names(self) -> tuple[str, ...]:
        """See [`FramedModel.loss_names`]."""
        return () if self.duration_predictor is None else ("duration",)

    @property
    def decoder_context(self) -> tuple[int, int]:
        """Frames before and after its own that a hop of samples depends on."""
        first, last = self.decoder.input_span(0, self.hop_length - 1)
        return max(0, -first), max(0, last)

    @can_return_tuple
    def decode(
        self,
        audio_codes: torch.Tensor,
        audio_codes_mask: torch.Tensor | None = None,
        durations: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
        speaker_embeddings: torch.Tensor | None = None,
        num_samples: int | torch.Tensor | None = None,
    ) -> UnitVocoderOutput:
        """
        Args:
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Units to speak.
            audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for real frames
                or units, padded on the right.
            durations (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Frames that each unit lasts, for
                codes that were de-duplicated; what the mask leaves out lasts 0. Defaults to one each.
            speaker_ids (`torch.Tensor` of shape `(batch,)`, *optional*): Numbers of the speakers, of a model with
                `num_speakers`. Defaults to its `default_speaker`, if it has one.
            speaker_embeddings (`torch.Tensor` of shape `(batch, speaker_embedding_dim)`, *optional*): Vectors of the
                speakers, of a model with `speaker_embedding_dim`.
            num_samples (`int` or `torch.Tensor` of shape `(batch,)`, *optional*): Length of the original, of each row
                or of the whole batch, within two hops of its frames. What the frames lack is spoken by the last one,
                which is held. An integer is the length of the rows without padding; the others end with their last
                frame. Defaults to `hop_length` times the frames.

        Returns:
            [`UnitVocoderOutput`]: Each row as it is decoded alone, with a mask of its samples where rows may differ in
                length.

        Raises:
            TypeError: If the codes, the durations or `speaker_ids` are no tensors of integers, or the mask no tensor.
            ValueError: If a shape, a code, the mask, a duration, a speaker or `num_samples` does not fit.
        """
        frames, mask = self._frames(audio_codes, audio_codes_mask, durations)
        frames, lengths, ends = self._hold(frames, mask, num_samples)
        hidden_states = self._embed(frames, speaker_ids, speaker_embeddings)
        audio_values = self.decoder(hidden_states, lengths).float()
        if ends is not None:
            audio_values = mask_beyond(audio_values, ends)[..., : int(ends.max())]
        padding_mask = None
        if audio_codes_mask is not None or durations is not None or torch.is_tensor(num_samples):
            ends = mask.sum(-1) * self.hop_length if ends is None else ends
            padding_mask = mask_beyond(torch.ones_like(audio_values[:, 0], dtype=torch.long), ends)
        if not self.training:
            check_finite(audio_values, "The vocoder gives")
        return UnitVocoderOutput(audio_values=audio_values, padding_mask=padding_mask)

    @can_return_tuple
    def forward(
        self,
        audio_codes: torch.Tensor,
        audio_codes_mask: torch.Tensor | None = None,
        durations: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
        speaker_embeddings: torch.Tensor | None = None,
        num_samples: int | torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> UnitVocoderOutput:
        """
        As [`~UnitVocoderModel.decode`], with the loss of the predicted durations where there are any: the mean squared
        difference of their logarithms. The first and the last unit of a row do not count, since a crop may cut them.
        `kwargs` is what transformers passes to any model, such as `output_attentions`, of which a vocoder has none.
        """
        check_arguments(kwargs)
        speakers = {"speaker_ids": speaker_ids, "speaker_embeddings": speaker_embeddings}
        outputs = self.decode(
            audio_codes, audio_codes_mask, durations, **speakers, num_samples=num_samples, return_dict=True
        )
        if self.duration_predictor is not None:
            frames, mask = self._frames(audio_codes, audio_codes_mask, durations)
            units, unit_mask, lasting = deduplicate_codes(frames, mask)
            counts = unit_mask.bool()
            counts[:, 0] = False
            counts &= F.pad(counts[:, 1:], (0, 1))
            error = self._log_durations(units, unit_mask, **speakers) - lasting.clamp(min=1).log()
            outputs.duration_loss = (error.square() * counts).sum() / counts.sum().clamp(min=1)
        return outputs

    @torch.no_grad()
    def predict_durations(
        self,
        audio_codes: torch.Tensor,
        audio_codes_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
        speaker_embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Predict the durations of units that come de-duplicated, as from a language model.

        Args:
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_units)`): The units.
            audio_codes_mask, speaker_ids, speaker_embeddings: Mask and speakers; see [`~UnitVocoderModel.decode`].

        Returns:
            `torch.LongTensor` of shape `(batch, num_units)`: Durations in frames, at least 1, and 0 where the mask is
                0.

        Raises:
            ValueError: If the model predicts no durations; and see [`~UnitVocoderModel.decode`].
        """
        if self.duration_predictor is None:
            raise ValueError(
                "This vocoder predicts no durations; give them, or train one with `predicts_durations=True`."
            )
        units, mask = self._frames(audio_codes, audio_codes_mask, None)
        durations = self._log_durations(units, mask, speaker_ids, speaker_embeddings).exp().round().long()
        return durations.clamp(min=1) * mask

    def _frames(self, audio_codes, audio_codes_mask, durations):
        """Codes frame by frame (batch, num_quantizers, num_frames), and their mask (batch, num_frames), long."""
        config = self.config
        audio_codes, mask = check_codes(
            audio_codes, config.num_quantizers, config.codebook_size, audio_codes_mask, side="right", need_all=True
        )
        expected = (audio_codes.shape[0], audio_codes.shape[2])
        check_codes_of_rows(audio_codes, self.codebook_sizes)
        if mask is None:
            mask = audio_codes.new_ones(expected)
        if durations is None:
            return audio_codes, mask
        durations = check_whole_numbers(durations, "durations", expected, 0) * mask
        audio_codes, mask = expand_codes(audio_codes, durations)
        if bool((durations.sum(-1) < 1).any()):
            raise ValueError("`durations` are all 0 in a row; a row needs at least one frame.")
        return audio_codes, mask

    def _hold(self, frames, mask, num_samples):
        """The frames with the last ones held, rows' numbers of frames, and rows' numbers of samples (or `None`)."""
        hop, num_frames = self.hop_length, frames.shape[-1]
        lengths = mask.sum(-1)  # (B,)
        is_full = lengths == num_frames
        if num_samples is None:
            return (frames, None, None) if is_full.all() else (frames, lengths, lengths * hop)
        num_samples = check_num_samples(num_samples, len(lengths))
        if isinstance(num_samples, int):
            ends = torch.where(is_full, num_samples, lengths * hop)
            if not is_full.any():
                raise ValueError(
                    "`num_samples` is that of the rows without padding, but there is none; give it for each row."
                )
        else:
            ends = num_samples.to(lengths)
        missing = ends - lengths * hop
        misfits = (missing.abs() > _MAX_HELD_FRAMES * hop) | (ends < 1)
        if misfits.any():
            row = int(misfits.long().argmax())
            low, high = ((int(lengths[row]) + k) * hop for k in (-_MAX_HELD_FRAMES, _MAX_HELD_FRAMES))
            raise ValueError(
                f"`num_samples` must lie between {max(1, low)} and {high} for {int(lengths[row])} frames, but got "
                f"{int(ends[row])}."
            )
        held = lengths + (missing.clamp(min=0) + hop - 1) // hop  # (B,)
        source = torch.arange(int(held.max()), device=frames.device).minimum((lengths - 1).clamp(min=0)[:, None])
        frames = frames.gather(-1, source[:, None].expand(-1, frames.shape[1], -1))
        return frames, held, ends

    def _embed(self, codes, speaker_ids, speaker_embeddings):
        """Vectors (batch, hidden_size, num_frames) of codes, with the speaker's."""
        tables = zip(self.unit_embeddings, codes.unbind(1), strict=True)
        hidden_states = torch.stack([table(stage) for table, stage in tables]).sum(0)
        speaker = self._speaker_vectors(len(codes), speaker_ids, speaker_embeddings)
        if speaker is not None:
            hidden_states = hidden_states + speaker.unsqueeze(1)
        return hidden_states.transpose(1, 2)

    def _speaker_vectors(self, batch_size, speaker_ids, speaker_embeddings):
        config = self.config
        given = {"speaker_ids": speaker_ids, "speaker_embeddings": speaker_embeddings}
        wanted = None
        if config.num_speakers is not None:
            wanted = "speaker_ids"
        elif config.speaker_embedding_dim is not None:
            wanted = "speaker_embeddings"
        if surplus := [name for name, value in given.items() if value is not None and name != wanted]:
            expects = f"`{wanted}`" if wanted else "no speakers: it has a single voice"
            raise ValueError(f"`{surplus[0]}` was given, but this vocoder expects {expects}.")
        if wanted is None:
            return None
        speakers = given[wanted]
        if speakers is None and config.default_speaker is not None:
            speakers = torch.full((batch_size,), config.default_speaker, device=self.device)
        if speakers is None:
            raise ValueError(f"This vocoder has several voices; choose one with `{wanted}`.")
        if wanted == "speaker_ids":
            return self.speaker_table(
                check_whole_numbers(speakers, wanted, (batch_size,), 0, config.num_speakers - 1).to(self.device)
            )
        expected = (batch_size, config.speaker_embedding_dim)
        if tuple(check_floats(speakers, wanted).shape) != expected:
            raise ValueError(f"`{wanted}` must have shape {expected}, but has {tuple(speakers.shape)}.")
        check_finite(speakers, f"`{wanted}` has")
        return self.speaker_projection(speakers.to(self.device, self.dtype))

    def _log_durations(self, units, mask, speaker_ids, speaker_embeddings):
        # The predictor listens to the vectors without changing them: they belong to the sound.
        vectors = self._embed(units, speaker_ids, speaker_embeddings).detach()
        return self.duration_predictor(vectors, mask.sum(-1))[:, 0].float()


__all__ = ["UnitVocoderModel", "UnitVocoderOutput"]
