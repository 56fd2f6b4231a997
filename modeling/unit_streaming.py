# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Units of speech that is still arriving."""

from typing import Any

import torch


class UnitStream:
    """
    Encode a recording while its samples arrive, chunk by chunk, in bounded memory.

    The encoders of units hear all that they are given, so codes near the edge of their input differ from those of the
    whole recording. Each chunk is therefore encoded with context before and after it, and the codes of the context are
    dropped. A chunk's codes come as soon as the context after it has arrived. They do not depend on how the samples
    were split. With more context they come later, and nearer to those of the whole recording; where the context
    reaches to both ends, they are the same. With `do_normalize` each chunk is normalised with its context alone.

    Args:
        model ([`KMeansUnitsModel`] or [`DCSpinModel`]): Unit model in evaluation mode, or another model with its
            `hop_length`, `frame_span`, `get_encoded_length`, `longest_input` and `config.num_quantizers`.
        chunk_seconds (`float`, *optional*, defaults to 0.5): Speech whose codes come together, in seconds; rounded to
            frames, as are the contexts.
        left_context_seconds (`float`, *optional*, defaults to 4): Speech that is heard before a chunk, in seconds.
        right_context_seconds (`float`, *optional*, defaults to 0.5): Speech that is heard after a chunk, in seconds.
        whole_samples (`int`, *optional*, defaults to 0): A recording that is no longer than this is heard whole, once
            it has ended. The first codes of a longer one come when so many samples have arrived.

    Raises:
        ValueError: If the chunk is shorter than a frame, a context negative, or Whisper's encoder cannot hear a chunk
            with its context.
    """

    def __init__(
        self,
        model: Any,
        chunk_seconds: float = 0.5,
        left_context_seconds: float = 4.0,
        right_context_seconds: float = 0.5,
        whole_samples: int = 0,
    ):
        self.model = model
        self.chunk = round(chunk_seconds * model.frame_rate)  # in frames
        self.left_context = round(left_context_seconds * model.frame_rate)
        self.right_context = round(right_context_seconds * model.frame_rate)
        self.whole_samples = whole_samples
        if self.chunk < 1 or self.left_context < 0 or self.right_context < 0:
            raise ValueError(
                "A chunk must be at least a frame and its contexts not negative, but got "
                f"{chunk_seconds}, {left_context_seconds} and {right_context_seconds} seconds."
            )
        longest = model.longest_input
        heard = self.left_context + self.chunk + self.right_context
        if longest is not None and self.num_samples(heard) > longest:
            raise ValueError(
                f"A chunk of {chunk_seconds} s with {left_context_seconds} s before and {right_context_seconds} s "
                f"after is longer than the {longest / model.sampling_rate:g} s that the encoder hears; shorten it."
            )
        self._reset()

    def _reset(self) -> None:
        self._held = torch.zeros(0)  # from the sample where frame `_first` begins
        self._first, self._done = 0, 0

    def num_samples(self, num_frames: int) -> int:
        """Fewest samples that give so many frames."""
        return (num_frames - 1) * self.model.hop_length + self.model.frame_span

    @property
    def latency_seconds(self) -> float:
        """Seconds from the beginning of a chunk to the arrival of the last sample that its codes need."""
        needed = max(self.num_samples(self.chunk + self.right_context), self.whole_samples + 1)
        return needed / self.model.sampling_rate

    @torch.no_grad()
    def push(self, samples: torch.Tensor) -> torch.Tensor:
        """
        Args:
            samples (`torch.Tensor` of shape `(num_samples,)`): Samples that follow, in [-1, 1]; any number of them.

        Returns:
            `torch.LongTensor` of shape `(num_quantizers, num_frames)`: Codes of the frames that are new; often none.

        Raises:
            TypeError: If they are no tensor of floating point.
            ValueError: If the samples are not in one row, or not finite.
        """
        if not isinstance(samples, torch.Tensor) or not samples.is_floating_point():
            kind = getattr(samples, "dtype", type(samples).__name__)
            raise TypeError(
                f"`samples` must be a tensor of floating point, but is {kind}; `torch.from_numpy` makes one."
            )
        if samples.dim() != 1:
            raise ValueError(f"`samples` must have shape (num_samples,), but has {tuple(samples.shape)}.")
        if not samples.isfinite().all():
            raise ValueError("`samples` has NaN or infinity.")
        hop = self.model.hop_length
        self._held = torch.cat([self._held, samples.detach().float().cpu()])
        codes = []
        if self._done == 0 and len(self._held) <= self.whole_samples:
            return self._joined(codes)
        while len(self._held) >= self.num_samples(self._done - self._first + self.chunk + self.right_context):
            end = self._done + self.chunk
            # The context after, so that what is heard does not depend on how much more has arrived.
            heard = self._held[: self.num_samples(end + self.right_context - self._first)]
            codes.append(self._codes(heard)[:, self._done - self._first : end - self._first])
            start = max(0, end - self.left_context)
            self._held = self._held[(start - self._first) * hop :].clone()
            self._first, self._done = start, end
        return self._joined(codes)

    @torch.no_grad()
    def flush(self) -> torch.Tensor:
        """
        The recording has ended. What is pushed next begins another.

        Returns:
            `torch.LongTensor` of shape `(num_quantizers, num_frames)`: Codes of the frames that are left, so that
            there are `model.get_encoded_length(num_samples)` in all.
        """
        codes = []
        # A rest without a frame of its own is what the last chunk has heard already.
        if len(self._held) and self.model.get_encoded_length(len(self._held)) > self._done - self._first:
            codes.append(self._codes(self._held)[:, self._done - self._first :])
        self._reset()
        return self._joined(codes)

    def _codes(self, samples: torch.Tensor) -> torch.Tensor:
        return self.model.encode(samples[None, None].to(self.model.device)).audio_codes[0].cpu()

    def _joined(self, codes: list[torch.Tensor]) -> torch.Tensor:
        if not codes:
            return torch.zeros(self.model.config.num_quantizers, 0, dtype=torch.long)
        return torch.cat(codes, dim=1)


class WindowedUnitStream:
    """
    A recording through units in windows, in the shapes of [`SpeechStream`]; see [`WindowedEncoder`].

    Args:
        model ([`UnitPreTrainedModel`]): Unit model in evaluation mode; it needs a vocoder to decode.
        num_quantizers (`int`, *optional*): Number of first codebooks to give. Defaults to all.
        num_samples (`int`, *optional*): Length of the recording that is decoded, in samples. Defaults to whole frames.
        window_seconds (`float`, *optional*, defaults to 20): Speech whose codes a window gives, in seconds.
        context_seconds (`float`, *optional*, defaults to 2): Speech that the encoder hears before and after a window,
            in seconds.
        decode_seconds (`float`, *optional*, defaults to 10): Speech that is decoded at once, in seconds.
        whole_samples (`int`, *optional*): Length up to which a recording is heard whole. Defaults to the model's
            `longest_exact_stream`.
    """

    def __init__(
        self,
        model: Any,
        num_quantizers: int | None = None,
        num_samples: int | None = None,
        window_seconds: float = 20.0,
        context_seconds: float = 2.0,
        decode_seconds: float = 10.0,
        whole_samples: int | None = None,
    ):
        self.model, self.num_quantizers, self.num_samples = model, num_quantizers, num_samples
        whole_samples = model.longest_exact_stream if whole_samples is None else whole_samples
        self._stream = UnitStream(model, window_seconds, context_seconds, context_seconds, whole_samples)
        self._num_pushed = self._num_frames = 0
        self._window = max(1, round(decode_seconds * model.frame_rate))
        self._codes: torch.Tensor | None = None  # from `_first` frames of the recording on
        self._first = self._done = self._before = self._after = 0

    @property
    def chunk_samples(self) -> int:
        """Samples of a window without its context."""
        return self._stream.num_samples(self._stream.chunk)

    def encode(self, input_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input_values (`torch.Tensor` of shape `(1, 1, num_samples)`): The samples that follow, in [-1, 1].

        Returns:
            `torch.LongTensor` of shape `(1, num_quantizers, num_frames)`: Codes of the frames that are new.
        """
        if input_values.dim() != 3 or input_values.shape[:2] != (1, 1):
            raise ValueError(
                f"`input_values` must have shape (1, 1, num_samples), but has {tuple(input_values.shape)}."
            )
        self._num_pushed += input_values.shape[-1]
        return self._counted(self._stream.push(input_values[0, 0]))

    def finish_encode(self) -> torch.Tensor:
        """The codes that are left, `(1, num_quantizers, num_frames)`. Raises `ValueError` if there is no frame."""
        codes, num_pushed, num_frames = self._counted(self._stream.flush()), self._num_pushed, self._num_frames
        self._num_pushed = self._num_frames = 0  # what is pushed next begins another recording
        if num_frames == 0:
            raise ValueError(
                f"The recording has {num_pushed} samples, but a frame needs {self.model.frame_span}; leave it out."
            )
        return codes

    def _counted(self, codes: torch.Tensor) -> torch.Tensor:
        self._num_frames += codes.shape[1]
        return codes[None, : self.num_quantizers]

    def decode(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """Push codes `(1, num_quantizers, num_frames)`; returns samples `(1, 1, num_samples)` that are settled."""
        if self._codes is None and self.model.vocoder is not None:
            self._before, self._after = self.model.vocoder.decoder_context
        audio_codes = audio_codes.to(self.model.device)
        self._codes = audio_codes if self._codes is None else torch.cat([self._codes, audio_codes], dim=-1)
        parts = []
        while self._first + self._codes.shape[-1] > self._done + self._window + self._after:
            parts.append(self._decode(self._window, is_end=False))
        return self._joined(parts)

    def finish_decode(self) -> torch.Tensor:
        """The samples that are left, `(1, 1, num_samples)`. Raises `ValueError` if no code was pushed."""
        if self._codes is None or self._codes.shape[-1] == 0:
            raise ValueError("The stream is empty; push at least one frame before finishing it.")
        parts = []
        while (left := self._first + self._codes.shape[-1] - self._done) > 0:
            parts.append(self._decode(min(self._window, left), is_end=True))
        self._codes, self._first, self._done = None, 0, 0
        return self._joined(parts)

    @torch.no_grad()
    def _decode(self, count: int, is_end: bool) -> torch.Tensor:
        assert self._codes is not None
        hop, first, end = self.model.hop_length, self._first, self._done + count
        num_frames = first + self._codes.shape[-1]
        last = min(num_frames, end + self._after)
        known = self.num_samples if is_end and last == num_frames else None
        audio_values = self.model.decode(
            self._codes[..., : last - first], num_samples=None if known is None else known - first * hop
        ).audio_values
        is_last = is_end and end == num_frames
        result = audio_values[..., (self._done - first) * hop : None if is_last else (end - first) * hop]
        self._first = max(first, end - self._before)
        self._codes = self._codes[..., self._first - first :].clone()
        self._done = end
        return result

    def _joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts, dim=-1) if parts else torch.zeros(1, 1, 0, device=self.model.device)


__all__ = ["UnitStream", "WindowedUnitStream"]
