# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of HuBERT's masked-prediction pre-training."""

from huggingface_hub.dataclasses import strict
from transformers import HubertConfig

from .padding_invariance import FRAME_RULES


@strict
class HubertMaskedPredictionConfig(HubertConfig):
    """
    Configuration of a [`HubertForMaskedPrediction`]: that of its HuBERT, and of what is predicted from it.

    Args:
        label_vocab_size (`int`, defaults to 100): Number of pseudo-labels that are told apart.
        final_dim (`int`, defaults to 256): Dimension in which frames and labels are compared.
        logit_temperature (`float`, defaults to 0.1): Divisor of the cosine of a frame and a label.
        unmasked_loss_weight (`float`, defaults to 0.0): Weight of the cross-entropy of a frame that is not masked,
            relative to one that is. With 0, as published, such frames are not learnt from; where there is little data,
            they teach the encoder sooner what a frame sounds like.
        features_penalty_weight (`float`, defaults to 10.0): Weight of the mean square of the convolutional front end's
            output, per frame that is learnt from.
        feature_grad_mult (`float`, defaults to 0.1): Factor on the gradient that reaches the convolutional front end;
            0 freezes it.
        mask_prob (`float`, defaults to 0.8): Number of spans times their length, relative to the frames of a
            recording. Spans overlap, so fewer frames are masked.
        mask_length (`int`, defaults to 10): Length of a span, in frames.
        mask_min_spans (`int`, defaults to 2): Least number of spans in a recording.
        padding_invariant (`bool`, defaults to `True`): Whether a row of a padded batch counts as it would alone. In
            fairseq it does not; `False` repeats that.
        frame_rule (`str`, defaults to `"conv"`): Rule for the real frames of a padded row: `"conv"`, those of its own
            samples, or `"fairseq"`, one or two more.
        apply_spec_augment (`bool`, defaults to `False`): SpecAugment in the encoder that is saved. This model masks
            spans in any case.
        kwargs: Fields of [`~transformers.HubertConfig`]. `mask_time_prob` must be positive, since the encoder has no
            vector for masked frames otherwise.
    """

    model_type = "speech_tokenizers_hubert_masked_prediction"

    label_vocab_size: int = 100
    final_dim: int = 256
    logit_temperature: float | int = 0.1
    unmasked_loss_weight: float | int = 0.0
    features_penalty_weight: float | int = 10.0
    feature_grad_mult: float | int = 0.1
    mask_prob: float | int = 0.8
    mask_length: int = 10
    mask_min_spans: int = 2
    padding_invariant: bool = True
    frame_rule: str = "conv"
    apply_spec_augment: bool = False

    def validate_architecture(self):
        """Raises `ValueError` where fields are out of range or contradict each other."""
        super().validate_architecture()
        for name in ("label_vocab_size", "final_dim", "logit_temperature", "mask_length", "mask_time_prob"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, but got {getattr(self, name)}.")
        if self.unmasked_loss_weight < 0:
            raise ValueError(f"`unmasked_loss_weight` must not be negative, but got {self.unmasked_loss_weight}.")
        if not 0 <= self.mask_prob <= 1:
            raise ValueError(f"`mask_prob` must lie between 0 and 1, but got {self.mask_prob}.")
        if self.frame_rule not in FRAME_RULES:
            raise ValueError(f"`frame_rule` must be one of {FRAME_RULES}, but got {self.frame_rule!r}.")
        if self.padding_invariant and self.frame_rule != "conv":
            raise ValueError(
                "`padding_invariant` needs `frame_rule='conv'`, since fairseq's rule counts frames that hear padding."
            )

    @property
    def encoder_config(self) -> HubertConfig:
        """Of the encoder alone."""
        fields = self.to_dict()
        known = HubertConfig().to_dict()
        return HubertConfig(**{name: fields[name] for name in known if name in fields and name != "model_type"})


__all__ = ["HubertMaskedPredictionConfig"]
