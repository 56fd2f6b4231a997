# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Units of recordings of any length, in windows that overlap, in bounded memory."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from .unit_streaming import WindowedUnitStream


class WindowedEncoder:
    """
    Encode a recording chunk by chunk, in windows with context on both sides.

    The encoders of units hear all that they are given, so codes near the edge of a window differ from those of the
    whole recording. Each window is therefore encoded with context before and after it, and the codes of the context
    are dropped. Recordings that fit into one window, or have no more than `whole_samples`, get exactly the codes of
    `encode`. With `do_normalize` each window is normalised with its context alone.

    Args:
        model ([`KMeansUnitsModel`] or [`DCSpinModel`]): Unit model in evaluation mode; see [`UnitStream`].
        window_seconds (`float`, *optional*, defaults to 20): Speech whose codes a window gives, in seconds.
        context_seconds (`float`, *optional*, defaults to 2): Speech that the encoder hears before and after a window,
            in seconds.
        whole_samples (`int`, *optional*): Length up to which a recording is heard whole. Defaults to the model's
            `longest_exact_stream`, so that the codes are those of `encode_stream`.
        speaker_f0 (`torch.Tensor` of shape `(1, 2)`, *optional*): See [`UnitStream`].

    Raises:
        ValueError: If the window is shorter than a frame, the context negative, or Whisper's encoder cannot hear a
            window with its context.
    """

    def __init__(
        self,
        model: Any,
        window_seconds: float = 20.0,
        context_seconds: float = 2.0,
        whole_samples: int | None = None,
        speaker_f0: torch.Tensor | None = None,
    ):
        self._new_stream = partial(
            WindowedUnitStream,
            model,
            window_seconds=window_seconds,
            context_seconds=context_seconds,
            whole_samples=whole_samples,
            speaker_f0=speaker_f0,
        )
        self._new_stream()  # what is wrong is said now

    def encode(self, chunks: torch.Tensor | Iterable[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            chunks (`torch.Tensor` of shape `(num_samples,)`, or an iterable of such): The recording, in [-1, 1].

        Returns:
            `torch.LongTensor` of shape `(num_quantizers, num_frames)`: Codes of as many frames as
                `model.get_encoded_length(num_samples)`.
            `model.get_encoded_length(num_samples)`.

        Raises:
            ValueError: If the recording is shorter than a frame, or not in one row.
        """
        return torch.cat(list(self.windows(chunks)), dim=1)

    @torch.no_grad()
    def windows(self, chunks: torch.Tensor | Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """
        The codes of `encode`, window by window. No more than `whole_samples`, or a window with its context, are held.

        Args:
            chunks (`torch.Tensor` of shape `(num_samples,)`, or an iterable of such): The recording, in [-1, 1]; see
                `encode`.
        """
        stream = self._new_stream()
        if isinstance(chunks, torch.Tensor):
            chunks = chunks.split(stream.chunk_samples) if chunks.dim() == 1 else [chunks]
        for chunk in chunks:
            if torch.is_tensor(chunk) and chunk.dim() != 1:
                raise ValueError(f"`chunks` must be of shape (num_samples,), but one has {tuple(chunk.shape)}.")
            codes = stream.encode(chunk[None, None])[0]
            if codes.shape[1]:
                yield codes
        codes = stream.finish_encode()[0]
        if codes.shape[1]:
            yield codes


__all__ = ["WindowedEncoder"]
