# SPDX-License-Identifier: Apache-2.0
"""Run the speech encoders of transformers on waveforms of any length, with the time of every frame."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel


def check_layer(layer: int | str, num_layers: int) -> int | str:
    r"""
    Args:
        layer (`int` or `str`): `"average"` (mean over the embedding output and all layers), `"last"` (what the model
            returns), or a layer counted from 1; 0 is the embedding output.
        num_layers (`int`): Layers that the model has.

    Raises:
        ValueError: If there is no such layer.
    """
    if layer not in ("average", "last") and type(layer) is not int:
        raise ValueError(f"`layer` must be 'average', 'last' or a whole number, but got {layer!r}.")
    if not isinstance(layer, str) and not 0 <= layer <= num_layers:
        raise ValueError(f"`layer` must lie between 0 and {num_layers}, but got {layer}.")
    return layer


def select_layer(outputs: Any, layer: int | str) -> torch.Tensor:
    """Hidden states (batch, length, hidden_size) of a model's output with `hidden_states`; see [`check_layer`]."""
    if layer == "average":
        return torch.stack(outputs.hidden_states).mean(dim=0)
    return outputs.last_hidden_state if layer == "last" else outputs.hidden_states[layer]


@contextmanager
def shortened_positions(encoder: Any, num_frames: int) -> Iterator[None]:
    """Let Whisper's encoder take inputs of `num_frames` frames, and those alone."""
    # transformers refuses other lengths than its table of positions has.
    positions, full_length = encoder.embed_positions, encoder.config.max_source_positions
    encoder.embed_positions = nn.Embedding.from_pretrained(positions.weight[:num_frames])
    encoder.config.max_source_positions = num_frames
    try:
        yield
    finally:
        encoder.embed_positions, encoder.config.max_source_positions = positions, full_length


class WaveformEncoder:
    r"""
    A speech encoder of transformers (HuBERT, WavLM, wav2vec 2.0, Whisper's encoder, ...) in evaluation mode.

    Args:
        encoder (`PreTrainedModel`): The encoder; of an encoder-decoder, that part.
        feature_extractor (`FeatureExtractionMixin`): Its feature extractor.
        window (`str`, *optional*, defaults to `"padded"`): For Whisper, whose encoder always hears 30 seconds:
            `"padded"` fills them up with silence, as in its training; `"tight"` drops the positions after the end,
            which costs a fraction of the time and changes the features somewhat.

    Raises:
        ValueError: If `window` is neither.
    """

    def __init__(self, encoder: nn.Module, feature_extractor: Any, window: str = "padded"):
        if window not in ("padded", "tight"):
            raise ValueError(f"`window` must be 'padded' or 'tight', but got {window!r}.")
        self.encoder = encoder.eval()
        self.feature_extractor = feature_extractor
        self.window = window

    @classmethod
    def from_pretrained(cls, name_or_path: str, window: str = "padded", **kwargs) -> "WaveformEncoder":
        r"""
        Args:
            name_or_path (`str`): Folder or Hub id of any model that `AutoModel` knows; of an encoder-decoder the
                encoder is taken.
            window (`str`): See the class.
            kwargs: Passed to `from_pretrained`, such as `revision`.
        """
        model = AutoModel.from_pretrained(name_or_path, dtype=torch.float32, **kwargs)
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        return cls(encoder, AutoFeatureExtractor.from_pretrained(name_or_path, **kwargs), window)

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the encoder expects, in Hz."""
        return self.feature_extractor.sampling_rate

    @property
    def hidden_size(self) -> int:
        """Dimension of the features."""
        return self.encoder.config.hidden_size

    @property
    def num_layers(self) -> int:
        """Layers of the encoder."""
        config = self.encoder.config
        return getattr(config, "encoder_layers", None) or config.num_hidden_layers

    @property
    def has_fixed_window(self) -> bool:
        """Whether the encoder takes inputs of one length only, as Whisper's does."""
        return hasattr(self.encoder.config, "max_source_positions") and hasattr(self.feature_extractor, "n_samples")

    def __call__(self, waveforms: torch.Tensor, layer: int | str = "last") -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Features of waveforms of one length. Different lengths are different calls: padding would change the features.

        Args:
            waveforms (`torch.Tensor` of shape `(batch, num_samples)`): In [-1, 1], at the encoder's rate. Gradients do
                not flow.
            layer (`int` or `str`): See [`check_layer`].

        Returns:
            Features `(batch, num_frames, hidden_size)` and the centre of each frame in seconds, `(num_frames,)`.
        """
        check_layer(layer, self.num_layers)
        if not self.has_fixed_window:
            features = self._run(waveforms, layer)
            return features, self._centres(features.shape[1], waveforms.shape[-1])
        longest = self.feature_extractor.n_samples
        parts = [self._run_window(part, layer) for part in waveforms.split(longest, dim=-1)]
        features = torch.cat(parts, dim=1)
        return features, torch.arange(features.shape[1]) * self._fixed_hop / self.sampling_rate

    @property
    def _fixed_hop(self) -> int:
        return self.feature_extractor.n_samples // self.encoder.config.max_source_positions

    def _run_window(self, waveforms, layer):
        num_frames = math.ceil(waveforms.shape[-1] / self._fixed_hop)
        if self.window == "padded":
            return self._run(waveforms, layer)[:, :num_frames]
        num_steps = num_frames * self._fixed_hop // self.feature_extractor.hop_length
        with shortened_positions(self.encoder, num_frames):
            return self._run(waveforms, layer, num_steps)

    @torch.no_grad()
    def _run(self, waveforms, layer, num_steps=None):
        arrays = list(waveforms.float().cpu().numpy())
        inputs = self.feature_extractor(arrays, sampling_rate=self.sampling_rate, return_tensors="pt")
        values = inputs[self.encoder.main_input_name][..., :num_steps].to(self.encoder.device, self.encoder.dtype)
        return select_layer(self.encoder(values, output_hidden_states=True), layer).float()

    def _centres(self, num_frames: int, num_samples: int) -> torch.Tensor:
        config = self.encoder.config
        frames = torch.arange(num_frames)
        if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
            # The middle of what a frame of the convolutional front end hears.
            span, hop = 1, 1
            for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
                span, hop = span + (kernel - 1) * hop, hop * stride
            return (frames * hop + (span - 1) / 2) / self.sampling_rate
        return (frames + 0.5) * num_samples / self.sampling_rate / num_frames
