# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Units of speech that is still arriving."""

from typing import Any

import torch

from .f0_codebook import check_speaker_f0
from .input_checks import check_seconds, check_whole_number
from .recording_stream import EMPTY_STREAM, RecordingStream, StreamState


class UnitStream(RecordingStream):
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
        speaker_f0 (`torch.Tensor` of shape `(1, 2)`, *optional*): Mean and deviation of log2 F0 in Hz of the speaker,
            for units with F0. Defaults to those that run along, from the recording's beginning; see [`F0Codebook`].

    Raises:
        ValueError: If the model is in training mode, the chunk shorter than a frame, a context negative, or Whisper's
            encoder cannot hear a chunk with its context.
    """

    batch_size = 1
    input_name = "samples"
    model_attribute = "frame_span"

    def __init__(
        self,
        model: Any,
        chunk_seconds: float = 0.5,
        left_context_seconds: float = 4.0,
        right_context_seconds: float = 0.5,
        whole_samples: int = 0,
        speaker_f0: torch.Tensor | None = None,
    ):
        super().__init__(model)
        if speaker_f0 is not None and getattr(model, "f0_codebook", None) is None:
            raise ValueError("`speaker_f0` is for units with F0 (`f0_bins`), which these have not; leave it out.")
        self.speaker_f0 = None if speaker_f0 is None else check_speaker_f0(speaker_f0, 1)
        check_seconds(chunk_seconds, "chunk_seconds", above_zero=True)
        check_seconds(left_context_seconds, "left_context_seconds")
        check_seconds(right_context_seconds, "right_context_seconds")
        self.chunk = round(chunk_seconds * model.frame_rate)  # in frames
        self.left_context = round(left_context_seconds * model.frame_rate)
        self.right_context = round(right_context_seconds * model.frame_rate)
        self.whole_samples = check_whole_number(whole_samples, "whole_samples", 0)
        if self.chunk < 1:
            raise ValueError(f"A chunk must be at least a frame, but is {chunk_seconds} s.")
        longest = model.longest_input
        heard = self.left_context + self.chunk + self.right_context
        if longest is not None and self.num_samples(heard) > longest:
            raise ValueError(
                f"A chunk of {chunk_seconds} s with {left_context_seconds} s before and {right_context_seconds} s "
                f"after is longer than the {longest / model.sampling_rate:g} s that the encoder hears; shorten it."
            )

    def _new_encoder(self) -> StreamState:
        return _UnitWindows(self, may_be_empty=True)

    def num_samples(self, num_frames: int) -> int:
        """Fewest samples that give so many frames."""
        return (num_frames - 1) * self.model.hop_length + self.model.frame_span

    @property
    def latency_seconds(self) -> float:
        """Seconds from the beginning of a chunk to the arrival of the last sample that its codes need."""
        needed = max(self.num_samples(self.chunk + self.right_context), self.whole_samples + 1)
        if getattr(self.model, "f0_codebook", None) is not None:
            needed = max(needed, self.model.f0_codebook.needed_samples(self.chunk))
        return needed / self.model.sampling_rate

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
        if torch.is_tensor(samples):
            if samples.dim() != 1:
                raise ValueError(f"`samples` must have shape (num_samples,), but has {tuple(samples.shape)}.")
            samples = samples[None, None]
        return self.encode(samples)[0]

    def flush(self) -> torch.Tensor:
        """
        The recording has ended. What is pushed next begins another.

        Returns:
            `torch.LongTensor` of shape `(num_quantizers, num_frames)`: Codes of the frames that are left, so that
            there are `model.get_encoded_length(num_samples)` in all; that may be none.
        """
        return self.finish_encode()[0]


class _UnitWindows(StreamState):
    # The samples of a recording that are still needed, from the sample where frame `first` begins.

    def __init__(
        self,
        stream: UnitStream,
        may_be_empty: bool,
        num_quantizers: int | None = None,
    ):
        self.stream, self.may_be_empty, self.num_quantizers = stream, may_be_empty, num_quantizers
        self.held: torch.Tensor | None = None  # (1, 1, num_samples)
        self.first = self.done = self.num_pushed = 0
        model = stream.model
        # F0 is told of the recording as a whole, so that what it goes by runs on from window to window.
        rows = model.config.num_quantizers if num_quantizers is None else num_quantizers
        has_f0 = rows == model.config.num_quantizers and getattr(model, "f0_codebook", None) is not None
        self.f0 = model.f0_stream(stream.speaker_f0) if has_f0 else None
        self.num_given = 0
        self.waiting = torch.zeros(1, rows - has_f0, 0, dtype=torch.long)  # units whose F0 is not settled
        self.waiting_f0 = torch.zeros(1, 0, dtype=torch.long)  # F0 whose units are not

    def copied(self) -> "_UnitWindows":
        copied = super().copied()
        copied.f0 = None if self.f0 is None else self.f0.copied()
        return copied

    def push(self, inputs: torch.Tensor) -> torch.Tensor:
        stream, hop = self.stream, self.stream.model.hop_length
        self.num_pushed += inputs.shape[-1]
        if self.f0 is not None:
            self.waiting_f0 = torch.cat([self.waiting_f0, self.f0.push(inputs[:, 0])], dim=1)
        self.held = inputs if self.held is None else torch.cat([self.held, inputs], dim=-1)
        codes: list[torch.Tensor] = []
        if self.done == 0 and self.held.shape[-1] <= stream.whole_samples:
            return self._joined(codes)
        while self.held.shape[-1] >= stream.num_samples(self.done - self.first + stream.chunk + stream.right_context):
            end = self.done + stream.chunk
            # The context after, so that what is heard does not depend on how much more has arrived.
            heard = self.held[..., : stream.num_samples(end + stream.right_context - self.first)]
            codes.append(self._codes(heard)[..., self.done - self.first : end - self.first])
            start = max(0, end - stream.left_context)
            self.held = self.held[..., (start - self.first) * hop :].clone()
            self.first, self.done = start, end
        return self._joined(codes)

    def finish(self) -> torch.Tensor:
        model, codes = self.stream.model, []
        # A rest without a frame of its own is what the last chunk has heard already.
        if self.held is not None and model.get_encoded_length(self.held.shape[-1]) > self.done - self.first:
            codes.append(self._codes(self.held)[..., self.done - self.first :])
        if not codes and not self.done and not self.may_be_empty:
            raise ValueError(
                f"The recording has {self.num_pushed} samples, but a frame needs {model.frame_span}; leave it out."
            )
        if self.f0 is not None:
            num_frames = self.num_given + self.waiting.shape[-1] + sum(part.shape[-1] for part in codes)
            if num_frames:
                self.waiting_f0 = torch.cat([self.waiting_f0, self.f0.finish(num_frames)], dim=1)
        return self._joined(codes)

    def _codes(self, samples: torch.Tensor) -> torch.Tensor:
        if self.f0 is not None:
            return self.stream.model.unit_codes(samples).cpu()
        encoded = self.stream.model.encode(samples)
        # A tuple if the model's configuration says `return_dict=False`.
        codes = encoded[0] if isinstance(encoded, tuple) else encoded.audio_codes
        return codes[:, : self.num_quantizers].cpu()

    def _joined(self, codes: list[torch.Tensor]) -> torch.Tensor:
        units = torch.cat([self.waiting, *codes], dim=-1)
        if self.f0 is None:
            return units
        ready = min(units.shape[-1], self.waiting_f0.shape[1])
        given = torch.cat([units[..., :ready], self.waiting_f0[:, None, :ready]], dim=1)
        self.waiting, self.waiting_f0 = units[..., ready:], self.waiting_f0[:, ready:]
        self.num_given += ready
        return given


class WindowedUnitStream(RecordingStream):
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
        eager (`bool`, *optional*, defaults to `False`): Whether units are decoded as soon as the vocoder's context is
            there, and not in full windows.
        speaker_f0 (`torch.Tensor` of shape `(1, 2)`, *optional*): See [`UnitStream`].

    Raises:
        ValueError: If the model is in training mode, a number is no whole one, `speaker_f0` is given where
            `num_quantizers` leaves F0 out, or the windows are impossible; see [`UnitStream`].
    """

    batch_size = 1
    needs_all_codebooks = True
    model_attribute = "frame_span"

    def __init__(
        self,
        model: Any,
        num_quantizers: int | None = None,
        num_samples: int | None = None,
        window_seconds: float = 20.0,
        context_seconds: float = 2.0,
        decode_seconds: float = 10.0,
        whole_samples: int | None = None,
        eager: bool = False,
        speaker_f0: torch.Tensor | None = None,
    ):
        super().__init__(model)
        self.eager = eager
        self.num_quantizers = None if num_quantizers is None else model.check_num_quantizers(num_quantizers)
        if speaker_f0 is not None and self.num_quantizers not in (None, model.config.num_quantizers):
            raise ValueError(
                f"`speaker_f0` is for F0 codes, the last row, which `num_quantizers={num_quantizers}` leaves out; give"
                " one of them."
            )
        self.num_samples = None if num_samples is None else check_whole_number(num_samples, "num_samples", 1)
        whole_samples = model.longest_exact_stream if whole_samples is None else whole_samples
        check_seconds(decode_seconds, "decode_seconds", above_zero=True)
        self._stream = UnitStream(model, window_seconds, context_seconds, context_seconds, whole_samples, speaker_f0)
        self._window = max(1, round(decode_seconds * model.frame_rate))

    @property
    def chunk_samples(self) -> int:
        """Samples of a window without its context."""
        return self._stream.num_samples(self._stream.chunk)

    def _new_encoder(self) -> StreamState:
        return _UnitWindows(self._stream, may_be_empty=False, num_quantizers=self.num_quantizers)

    def _new_decoder(self) -> StreamState:
        return _SpokenUnits(self.model, self._window, self.num_samples, self.eager)


class _SpokenUnits(StreamState):
    # The codes of a recording that are still needed, from frame `first` on; `done` frames were decoded.

    def __init__(self, model: Any, window: int, num_samples: int | None, eager: bool):
        self.model, self.window, self.num_samples, self.eager = model, window, num_samples, eager
        self.before, self.after = model.needed_vocoder().decoder_context
        self.codes: torch.Tensor | None = None
        self.first = self.done = 0

    def push(self, inputs: torch.Tensor) -> torch.Tensor:
        self.codes = inputs if self.codes is None else torch.cat([self.codes, inputs], dim=-1)
        parts = []
        # The last frame that is known waits: the end may add samples to it.
        fewest = 1 if self.eager else self.window
        while (ready := self.first + self.codes.shape[-1] - self.done - self.after - 1) >= fewest:
            parts.append(self._decode(min(ready, self.window), is_end=False))
        return self._joined(parts)

    def finish(self) -> torch.Tensor:
        if self.codes is None or self.codes.shape[-1] == 0:
            raise ValueError(EMPTY_STREAM)
        parts = []
        while (left := self.first + self.codes.shape[-1] - self.done) > 0:
            parts.append(self._decode(min(self.window, left), is_end=True))
        return self._joined(parts)

    def _decode(self, count: int, is_end: bool) -> torch.Tensor:
        assert self.codes is not None
        hop, first, end = self.model.hop_length, self.first, self.done + count
        num_frames = first + self.codes.shape[-1]
        last = min(num_frames, end + self.after)
        known = self.num_samples if is_end and last == num_frames else None
        audio_values = self.model.decode(
            self.codes[..., : last - first],
            num_samples=None if known is None else known - first * hop,
            return_dict=True,
        ).audio_values
        is_last = is_end and end == num_frames
        result = audio_values[..., (self.done - first) * hop : None if is_last else (end - first) * hop]
        self.first = max(first, end - self.before)
        self.codes = self.codes[..., self.first - first :].clone()
        self.done = end
        return result

    def _joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts, dim=-1) if parts else torch.zeros(1, 1, 0, device=self.model.device)


__all__ = ["UnitStream", "WindowedUnitStream"]
