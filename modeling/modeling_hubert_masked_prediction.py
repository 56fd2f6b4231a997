# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""HuBERT's pre-training: predict the pseudo-labels of masked frames."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import HubertModel, HubertPreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import capture_outputs

from .checked_loading import CheckedLoading
from .configuration_hubert_masked_prediction import HubertMaskedPredictionConfig
from .input_checks import check_arguments, check_waveforms
from .mixed_precision import MixedPrecisionModel
from .padding_invariance import conv_stem_states, frame_mask, make_padding_invariant, num_mask_frames


@dataclass
class HubertMaskedPredictionOutput(ModelOutput):
    """
    Output of [`HubertForMaskedPrediction`].

    Args:
        loss (`torch.Tensor`, *optional*): `masked_loss + features_penalty_weight * features_penalty`, a mean over
            masked frames; or over all, with those unmasked at their weight.
        logits (`torch.Tensor` of shape `(batch, num_frames, label_vocab_size)`): Cosines of frames and labels, divided
            by the temperature.
        masked_loss (`torch.Tensor`, *optional*): Mean cross-entropy of the masked frames, in nats.
        unmasked_loss (`torch.Tensor`, *optional*): Mean cross-entropy of the frames that are not masked, in nats.
        masked_accuracy, unmasked_accuracy (`torch.Tensor`, *optional*): Shares of frames whose label is found.
        features_penalty (`torch.Tensor`, *optional*): Mean square of the convolutional front end's output.
        num_masked, num_unmasked (`torch.Tensor`, *optional*): Frames with a label that were masked, and that were not.
        mask_time_indices (`torch.Tensor` of shape `(batch, num_frames)`): Whether a frame was masked.
        frame_mask (`torch.Tensor` of shape `(batch, num_frames)`): Whether a frame is real.
        last_hidden_state (`torch.Tensor` of shape `(batch, num_frames, hidden_size)`): The encoder's output.
        hidden_states, attentions (`tuple` of `torch.Tensor`, *optional*): The encoder's, as a `HubertModel` gives
            them, with `output_hidden_states` and `output_attentions`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    masked_loss: torch.Tensor | None = None
    unmasked_loss: torch.Tensor | None = None
    masked_accuracy: torch.Tensor | None = None
    unmasked_accuracy: torch.Tensor | None = None
    features_penalty: torch.Tensor | None = None
    num_masked: torch.Tensor | None = None
    num_unmasked: torch.Tensor | None = None
    mask_time_indices: torch.Tensor | None = None
    frame_mask: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def span_mask(
    num_frames: int,
    mask_prob: float,
    mask_length: int,
    min_spans: int = 2,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Draw the frames of one recording to mask: spans that may overlap but begin at different frames.

    Args:
        num_frames (`int`): Frames of the recording, without padding.
        mask_prob (`float`): Number of spans times their length, relative to `num_frames`; rounded up or down by
            chance.
        mask_length (`int`): Length of a span, in frames.
        min_spans (`int`): Least number of spans, where there is room for so many.
        generator (`torch.Generator`, *optional*): Generator of the draws. Defaults to PyTorch's global one.

    Returns:
        `torch.Tensor` of shape `(num_frames,)`, boolean.
    """
    mask = torch.zeros(num_frames, dtype=torch.bool)
    if num_frames == 0 or mask_prob == 0:
        return mask
    length = min(mask_length, num_frames)
    num_spans = max(min_spans, int(mask_prob * num_frames / mask_length + torch.rand((), generator=generator)))
    starts = torch.randperm(num_frames - length + 1, generator=generator)[:num_spans]
    mask[starts[:, None] + torch.arange(length)] = True
    return mask


class HubertForMaskedPrediction(MixedPrecisionModel, CheckedLoading, HubertPreTrainedModel):
    """
    HuBERT with what its pre-training needs: a projection of its frames and an embedding for each pseudo-label.

    Frames are masked after the convolutional front end, and the loss is the cross-entropy of their pseudo-labels,
    where the logit of a label is the cosine of its embedding and the projected frame, divided by a temperature.
    (HuBERT, equations 3 and 4: https://huggingface.co/papers/2106.07447)

    Args:
        config ([`HubertMaskedPredictionConfig`]): Sizes of the encoder, and what is predicted from it.
    """

    config_class = HubertMaskedPredictionConfig
    config: HubertMaskedPredictionConfig
    # The trainer then counts the masked frames of a whole step, over micro-batches and processes.
    accepts_loss_kwargs = True
    # transformers' claim for HuBERT; no test can compare it here.
    _supports_flash_attn = False

    def __init__(self, config: HubertMaskedPredictionConfig):
        super().__init__(config)
        self.hubert = HubertModel(config)
        self.final_proj = nn.Linear(config.hidden_size, config.final_dim)
        self.label_embeddings = nn.Parameter(torch.rand(config.label_vocab_size, config.final_dim))
        if config.padding_invariant:
            make_padding_invariant(self.hubert)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.uniform_(self.label_embeddings)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HubertMaskedPredictionOutput:
        """
        Args:
            input_values (`torch.Tensor` of shape `(batch, num_samples)`): Waveforms, padded on the right, of any
                floating-point type.
            attention_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples.
            labels (`torch.Tensor` of shape `(batch, at least num_frames)`, *optional*): Pseudo-label of each frame,
                -100 where it has none; more than the frames are cut off.
            mask_time_indices (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Frames to mask, boolean.
                Drawn by [`span_mask`] where it is not given.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): Divisor of the sum over frames that gives `loss`,
                in place of the number of [`~HubertForMaskedPrediction.learnt_frames`] in this batch.
            kwargs: Arguments that transformers passes to any model, such as `output_hidden_states`.

        Raises:
            TypeError: If the waveforms are no tensor of floating point, `attention_mask` no tensor, or another
                argument is given.
            ValueError: If a shape is wrong, `attention_mask` malformed, a sample not finite (in evaluation mode), the
                labels too few or out of range, or the mask not as long as the frames.
        """
        check_arguments(kwargs)
        config = self.config
        waveforms, attention_mask = check_waveforms(
            input_values, attention_mask, side="right", finite=not self.training, mask_name="attention_mask"
        )
        input_values = waveforms[:, 0].to(self.dtype)
        num_samples = self._num_samples(input_values, attention_mask)
        features = conv_stem_states(
            self.hubert.feature_extractor, input_values, num_samples if config.padding_invariant else None
        ).transpose(1, 2)  # (B, F, C)
        features = _ScaledGradient.apply(features, config.feature_grad_mult)
        num_frames = num_mask_frames(config, num_samples, input_values.shape[1], config.frame_rule)
        frames = frame_mask(num_frames, features.shape[1])  # (B, F)
        if mask_time_indices is None:
            mask_time_indices = self.draw_mask(num_frames, features.shape[1])
        masked = _fitting(mask_time_indices, "mask_time_indices", frames).bool() & frames

        projected = self.hubert.feature_projection(features)
        projected = torch.where(masked[..., None], self.hubert.masked_spec_embed.to(projected.dtype), projected)
        hidden = self.hubert.encoder(projected, attention_mask=frames).last_hidden_state  # (B, F, H)
        cosines = F.normalize(self.final_proj(hidden), dim=-1) @ F.normalize(self.label_embeddings, dim=-1).T
        logits = cosines / config.logit_temperature  # (B, F, V)
        outputs = HubertMaskedPredictionOutput(
            logits=logits, mask_time_indices=masked, frame_mask=frames, last_hidden_state=hidden
        )
        if labels is None:
            return outputs
        labels = _fitting(labels[:, : features.shape[1]], "labels", frames).masked_fill(~frames, -100)
        if labels.max() >= config.label_vocab_size:
            raise ValueError(
                f"`labels` must lie below `label_vocab_size` ({config.label_vocab_size}), but got {int(labels.max())}."
            )
        if ((labels < 0) & (labels != -100)).any():
            raise ValueError(f"`labels` must not be negative, but for -100 (no label), and got {int(labels.min())}.")
        return self._add_losses(outputs, features, labels, num_items_in_batch)

    def draw_mask(
        self, num_frames: torch.Tensor, padded_frames: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """
        Draw the frames to mask, none of them padding.

        Args:
            num_frames (`torch.Tensor` of shape `(batch,)`): Frames of each row, without padding.
            padded_frames (`int`): Frames of the longest row.
            generator (`torch.Generator`, *optional*): Generator of the draws, on the CPU. Defaults to PyTorch's global
                one.

        Returns:
            `torch.Tensor` of shape `(batch, padded_frames)`, boolean.
        """
        config = self.config
        mask = torch.zeros(len(num_frames), padded_frames, dtype=torch.bool)
        for row, length in zip(mask, num_frames.tolist(), strict=True):
            row[:length] = span_mask(length, config.mask_prob, config.mask_length, config.mask_min_spans, generator)
        return mask.to(num_frames.device)

    def learnt_frames(self, labels: torch.Tensor, mask_time_indices: torch.Tensor) -> torch.Tensor:
        """Frames whose number divides the loss: those with a label, masked unless `unmasked_loss_weight` is set."""
        return (labels >= 0) & (mask_time_indices | (self.config.unmasked_loss_weight > 0))

    def save_encoder(self, folder: str) -> None:
        """Save the encoder in a folder, so that `AutoModel.from_pretrained` reads it as a `HubertModel`."""
        encoder = HubertModel(self.config.encoder_config)
        encoder.load_state_dict(self.hubert.state_dict())
        encoder.to(self.dtype).save_pretrained(folder)

    def _num_samples(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if attention_mask is None:
            return torch.full((len(input_values),), input_values.shape[1], device=input_values.device)
        return attention_mask.long().sum(-1)

    def _add_losses(
        self,
        outputs: HubertMaskedPredictionOutput,
        features: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> HubertMaskedPredictionOutput:
        has_label, masked, frames = labels >= 0, outputs.mask_time_indices, outputs.frame_mask
        assert outputs.logits is not None
        assert masked is not None
        assert frames is not None
        losses = F.cross_entropy(outputs.logits.float().transpose(1, 2), labels, reduction="none")  # (B, F)
        correct = outputs.logits.detach().argmax(-1) == labels
        for name, chosen in (("masked", masked & has_label), ("unmasked", ~masked & has_label)):
            count = chosen.sum()
            outputs[f"num_{name}"] = count
            outputs[f"{name}_loss"] = (losses * chosen).sum() / count.clamp(min=1)
            outputs[f"{name}_accuracy"] = (correct & chosen).sum() / count.clamp(min=1)

        learnt = self.learnt_frames(labels, masked)
        num_learnt = learnt.sum()
        squares = features.float().square().mean(-1)  # (B, F)
        if self.config.padding_invariant:
            # Each row counts by the frames that are learnt from, as if it were alone.
            of_row = (squares * frames).sum(1) / frames.sum(1).clamp(min=1)
            outputs.features_penalty = (of_row * learnt.sum(1)).sum() / num_learnt.clamp(min=1)
        else:
            outputs.features_penalty = squares.mean()
        weights = torch.where(masked, 1.0, float(self.config.unmasked_loss_weight)) * has_label
        total = (losses * weights).sum() + self.config.features_penalty_weight * outputs.features_penalty * num_learnt
        outputs.loss = total / (num_learnt.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        # Made anew, since a tuple of outputs has them in the order in which they were set, and begins with the loss.
        return HubertMaskedPredictionOutput(**outputs)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, scale):
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.scale, None


def _fitting(values: torch.Tensor, name: str, frames: torch.Tensor) -> torch.Tensor:
    if values.shape != frames.shape:
        raise ValueError(
            f"`{name}` must have the shape (batch, num_frames) = {tuple(frames.shape)}, but got {tuple(values.shape)}."
        )
    return values.to(frames.device)


__all__ = ["HubertForMaskedPrediction", "HubertMaskedPredictionOutput", "span_mask"]
