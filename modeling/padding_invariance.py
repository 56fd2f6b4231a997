# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""
Let the speech encoders of transformers give each row of a padded batch what they give it alone.

HuBERT-base and its relatives (wav2vec 2.0, WavLM, UniSpeech) normalise the output of their first convolution over
time, and transformers takes the statistics over the padding too: up to a third of the units of a padded row differ.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


FRAME_RULES = ("conv", "fairseq")


class RowwiseGroupNorm(nn.GroupNorm):
    """
    A group norm that normalises each row of a batch over its own steps; the steps beyond are 0.

    Attributes:
        lengths (`list[int]`, *optional*): Steps of each row of the next batch. Without it, each row is normalised over
            all steps.
    """

    lengths: list[int] | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        longest = hidden_states.shape[-1]
        if self.lengths is None or all(length == longest for length in self.lengths):
            return super().forward(hidden_states)
        # Row by row, so that a row's numbers are summed in the same order as when it is alone.
        rows = [
            F.pad(super(RowwiseGroupNorm, self).forward(row[None, :, :length]), (0, longest - length))
            for row, length in zip(hidden_states, self.lengths, strict=True)
        ]
        return torch.cat(rows)


def make_padding_invariant(model: nn.Module) -> nn.Module:
    """
    Change a model of transformers, in place, so that an `attention_mask` makes a padded batch equal its rows alone.

    Weights and their names stay. Models without a group norm in their convolutional front end stay as they are.

    Args:
        model (`nn.Module`): A `HubertModel`, a `HubertForCTC` or any other model that holds such an encoder.

    Returns:
        `nn.Module`: The same model.
    """
    for encoder in [module for module in model.modules() if _has_conv_stem(module)]:
        normalised = [
            layer
            for layer in encoder.feature_extractor.conv_layers
            if type(getattr(layer, "layer_norm", None)) is nn.GroupNorm
        ]
        for layer in normalised:
            layer.layer_norm = _rowwise(layer.layer_norm)
        if normalised:
            encoder.register_forward_pre_hook(_note_lengths, with_kwargs=True)
            encoder.register_forward_hook(_forget_lengths, always_call=True)
    return model


def conv_stem_states(stem: nn.Module, waveforms: torch.Tensor, num_samples: torch.Tensor | None) -> torch.Tensor:
    """
    Run the convolutional front end of an encoder on which [`make_padding_invariant`] was called.

    Args:
        stem (`nn.Module`): The encoder's `feature_extractor`.
        waveforms (`torch.Tensor` of shape `(batch, num_samples)`): Waveforms, padded on the right.
        num_samples (`torch.Tensor` of shape `(batch,)`, *optional*): Real samples of each row. Without it, the padding
            is normalised over too, as in transformers and fairseq.

    Returns:
        `torch.Tensor` of shape `(batch, conv_dim, num_frames)`.
    """
    _set_lengths(stem, num_samples)
    try:
        return stem(waveforms)
    finally:
        _set_lengths(stem, None)


def num_conv_frames(config: Any, num_samples: int | torch.Tensor) -> Any:
    """
    Frames that the convolutional front end gives, 0 where the recording is shorter than its first frame.

    Args:
        config (`PreTrainedConfig`): Configuration of the encoder, for its `conv_kernel` and `conv_stride`.
        num_samples (`int` or `torch.Tensor` of `long`): Real samples.
    """
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples.clamp(min=0) if isinstance(num_samples, torch.Tensor) else max(0, num_samples)


def num_mask_frames(config: Any, num_samples: torch.Tensor, padded_samples: int, frame_rule: str) -> torch.Tensor:
    """
    Frames of each row of a padded batch that count as real.

    Args:
        config (`PreTrainedConfig`): Configuration of the encoder, for its `conv_kernel` and `conv_stride`.
        num_samples (`torch.Tensor` of shape `(batch,)`): Real samples of each row.
        padded_samples (`int`): Length of the padded rows.
        frame_rule (`str`): Rule for the frames that count: `"conv"`, the frames that the convolutions make of the real
            samples alone; or `"fairseq"`, which cuts the padded row into as many equal parts as it has frames and
            counts those with a real sample: in rows shorter than the longest, one or two frames more, which hear
            padding.
    """
    if frame_rule == "conv":
        return num_conv_frames(config, num_samples)
    frames = num_conv_frames(config, padded_samples)
    samples_per_frame = max(1, padded_samples // max(1, frames))
    return (-(-num_samples // samples_per_frame)).clamp(max=frames)


def frame_mask(num_frames: torch.Tensor, padded_frames: int) -> torch.Tensor:
    """Boolean mask of shape `(batch, padded_frames)` whose rows begin with `num_frames` (shape `(batch,)`) ones."""
    return torch.arange(padded_frames, device=num_frames.device) < num_frames[:, None]


def _has_conv_stem(module: nn.Module) -> bool:
    return hasattr(getattr(module, "feature_extractor", None), "conv_layers")


def _rowwise(norm: nn.GroupNorm) -> RowwiseGroupNorm:
    changed = RowwiseGroupNorm(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
    changed.weight, changed.bias = norm.weight, norm.bias
    return changed.train(norm.training)


def _set_lengths(stem: nn.Module, num_samples: torch.Tensor | None) -> None:
    lengths = num_samples
    for layer in stem.conv_layers:
        if lengths is not None:
            lengths = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
        if isinstance(getattr(layer, "layer_norm", None), RowwiseGroupNorm):
            layer.layer_norm.lengths = None if lengths is None else lengths.clamp(min=1).tolist()


def _note_lengths(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    attention_mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    _set_lengths(encoder.feature_extractor, None if attention_mask is None else attention_mask.long().sum(-1))


def _forget_lengths(encoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    _set_lengths(encoder.feature_extractor, None)
