# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Units of recordings of any length, in windows that overlap, in bounded memory."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch


class WindowedEncoder:
    r"""
    Encode a recording chunk by chunk, in windows with context on both sides.

    The encoders of units hear all that they are given, so codes near the edge of a window are not those of the whole
    recording: each window is encoded with context before and after, whose codes are dropped. Recordings that fit into
    one window get exactly the codes of `encode`. With `do_normalize` each window is normalised by itself.

    Args:
        model ([`KMeansUnitsModel`]): Or another model with its `hop_length`, `frame_span` and `get_encoded_length`.
        window_seconds (`float`, *optional*, defaults to 20): Speech whose codes a window gives.
        context_seconds (`float`, *optional*, defaults to 2): Speech that it hears before and after.

    Raises:
        ValueError: If a length is not positive, or Whisper's encoder cannot hear a window with its context.
    """

    def __init__(self, model: Any, window_seconds: float = 20.0, context_seconds: float = 2.0):
        self.model = model
        self.window = round(window_seconds * model.frame_rate)
        self.context = round(context_seconds * model.frame_rate)
        if self.window < 1 or self.context < 0:
            raise ValueError(
                "`window_seconds` must be at least a frame and `context_seconds` not negative, but got "
                f"{window_seconds} and {context_seconds}."
            )
        longest = model.longest_input
        if longest is not None and self._samples(self.window + 2 * self.context) > longest:
            raise ValueError(
                f"A window of {window_seconds} s with {context_seconds} s before and after is longer than the "
                f"{longest / model.sampling_rate:g} s that the encoder hears; shorten it."
            )

    def _samples(self, num_frames: int) -> int:
        # Fewest samples that give so many frames.
        return (num_frames - 1) * self.model.hop_length + self.model.frame_span

    def encode(self, chunks: torch.Tensor | Iterable[torch.Tensor]) -> torch.Tensor:
        r"""
        Args:
            chunks (`torch.Tensor` of shape `(num_samples,)`, or an iterable of such): The recording, in [-1, 1].

        Returns:
            `torch.LongTensor` of shape `(num_quantizers, num_frames)`: As many frames as
            `model.get_encoded_length(num_samples)`.

        Raises:
            ValueError: If the recording is shorter than a frame.
        """
        return torch.cat(list(self.windows(chunks)), dim=1)

    @torch.no_grad()
    def windows(self, chunks: torch.Tensor | Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        r"""
        The codes of `encode`, window by window. No more than a window with its context is held.

        Args:
            chunks (`torch.Tensor` of shape `(num_samples,)`, or an iterable of such): See `encode`.
        """
        hop = self.model.hop_length
        if isinstance(chunks, torch.Tensor):
            chunks = chunks.split(self._samples(self.window))
        held = torch.zeros(0)  # from the sample where frame `first` begins
        first, done = 0, 0
        for chunk in chunks:
            held = torch.cat([held, chunk.detach().float().cpu()])
            while len(held) > self._samples(done - first + self.window + self.context):
                end = done + self.window
                # The context after, so that all windows but the first and the last are equally long.
                num_samples = self._samples(end + self.context - first)
                yield self._codes(held[:num_samples])[:, done - first : end - first]
                done = end
                start = max(0, done - self.context)
                held, first = held[(start - first) * hop :], start
        # A rest without a frame of its own is what the last window has heard already.
        if done == 0 or self.model.get_encoded_length(len(held)) > done - first:
            yield self._codes(held)[:, done - first :]

    def _codes(self, samples: torch.Tensor) -> torch.Tensor:
        return self.model.encode(samples[None, None].to(self.model.device)).audio_codes[0].cpu()
