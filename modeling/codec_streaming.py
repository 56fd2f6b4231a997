# SPDX-License-Identifier: Apache-2.0
"""Code speech that arrives in chunks, or that is too long for the memory, exactly as the whole would be coded."""

import torch

from .codec_layers import StreamingCache
from .input_checks import check_seconds
from .recording_stream import EMPTY_STREAM, RecordingStream, StreamState


class CodecStream(RecordingStream):
    """
    One stream of speech through a codec, in either direction, with memory that does not grow with its length.

    A codec without look-ahead (`model.is_streamable`) carries the state of its layers from chunk to chunk and answers
    each whole frame at once. Any other is run in windows with as many frames of context on either side as its layers
    see, and answers a window late. Either way the codes are those of the whole recording. (A recurrent layer that is
    not streamed sees all of the past; its context is cut at `codec_layers.LSTM_CONTEXT` frames.)

    Args:
        model ([`RVQCodecModel`]): The codec, in `eval()` mode.
        num_quantizers (`int`, *optional*): Number of first codebooks to use. Defaults to all.
        window_seconds (`float`, defaults to 4.0): Longest stretch that is coded at once, in seconds; it bounds the
            memory.
        eager (`bool`, *optional*, defaults to `False`): Whether a codec with look-ahead answers, in place of full
            windows, each call with the frames whose context has arrived.

    Raises:
        ValueError: If the model is in training mode, has not so many codebooks, or the window is not positive.

    Example:

    ```python
    stream = CodecStream(model)  # serves one recording after the other
    codes = [stream.encode(chunk) for chunk in chunks] + [stream.finish_encode()]  # chunks: (batch, 1, any length)
    audio = [stream.decode(part) for part in codes] + [stream.finish_decode()]
    ```
    """

    model_attribute = "encoder_context"

    def __init__(self, model, num_quantizers: int | None = None, window_seconds: float = 4.0, eager: bool = False):
        super().__init__(model)
        self.eager = eager
        model.check_kind(self.tokens)
        self.num_quantizers = model.check_num_quantizers(num_quantizers)
        check_seconds(window_seconds, "window_seconds", above_zero=True)
        self.window = max(1, round(window_seconds * model.frame_rate))

    def _new_encoder(self) -> StreamState:
        model = self.model
        context, hop = model.encoder_context, model.hop_length
        return _Windows(self._encode_frames, context, self.window, hop, 1, model.is_streamable, self.eager)

    def _new_decoder(self) -> StreamState:
        model = self.model
        context, hop = model.decoder_context, model.hop_length
        return _Windows(self._decode_frames, context, self.window, 1, hop, model.is_streamable, self.eager)

    def _encode_frames(self, input_values, cache):
        return self.model.encode(
            input_values, num_quantizers=self.num_quantizers, padding_cache=cache, return_dict=True
        ).audio_codes

    def _decode_frames(self, audio_codes, cache):
        return self.model.decode(audio_codes, padding_cache=cache, return_dict=True).audio_values


class LatentStream(CodecStream):
    """
    One stream of speech through a model of continuous latents: as [`CodecStream`], with latents in place of codes.

    Args:
        model ([`CSTModel`]): The model, in `eval()` mode. A codec's latents before quantization are streamed likewise.
        window_seconds (`float`, defaults to 4.0), eager (`bool`, *optional*): See [`CodecStream`].
    """

    tokens = "latents"

    def __init__(self, model, window_seconds: float = 4.0, eager: bool = False):
        super().__init__(model, window_seconds=window_seconds, eager=eager)

    def _encode_frames(self, input_values, cache):
        return self.model.encode(input_values, padding_cache=cache, return_dict=True).latents.transpose(1, 2)

    def _decode_frames(self, latents, cache):
        latents = latents.transpose(1, 2)
        return self.model.decode(latents=latents, padding_cache=cache, return_dict=True).audio_values


class _Windows(StreamState):
    """
    Run `function` over a growing sequence in windows.

    Args:
        function: Maps ((batch, channels, n * input_hop), cache) to (batch, channels, n * output_hop).
        context: Frames that the function sees before and after a frame.
        window: Frames per call.
        input_hop, output_hop: Steps per frame on either side.
        streamable: Whether the function carries its own past in a cache, so that no context is needed.
        eager: Whether frames are answered once their context is there, and not in full windows.
    """

    def __init__(
        self,
        function,
        context,
        window: int,
        input_hop: int,
        output_hop: int,
        streamable: bool,
        eager: bool = False,
    ):
        self.function, self.window, self.eager = function, window, eager or streamable
        self.input_hop, self.output_hop = input_hop, output_hop
        self.cache = StreamingCache() if streamable else None
        left, right = (0, 0) if streamable else context
        self.left, self.right = int(left), int(right)
        self.pending: torch.Tensor | None = None  # inputs from `self.done` frames of left context on
        self.done = 0  # frames of left context at the start of `pending`, already answered
        self.is_empty = True  # whether no step was pushed yet
        self.example: torch.Tensor | None = None  # a result, for the shape and type of an empty one

    def copied(self) -> "_Windows":
        copy = super().copied()
        copy.cache = None if self.cache is None else self.cache.copied()
        return copy

    def push(self, inputs: torch.Tensor) -> torch.Tensor:
        self.is_empty = self.is_empty and inputs.shape[-1] == 0
        self.pending = inputs if self.pending is None else torch.cat([self.pending, inputs], dim=-1)
        results = []
        while True:
            ready = self.pending.shape[-1] // self.input_hop - self.done - self.right
            # A stream answers at once; windows wait until they are full.
            count = min(ready, self.window) if self.eager or ready >= self.window else 0
            if count <= 0:
                break
            results.append(self._run(count, (self.done + count + self.right) * self.input_hop))
        return torch.cat(results, dim=-1) if results else self._empty()

    def finish(self) -> torch.Tensor:
        if self.pending is None or self.is_empty:
            raise ValueError(EMPTY_STREAM)
        results = []
        while True:
            rest = -(-self.pending.shape[-1] // self.input_hop) - self.done
            if rest <= 0:
                break
            count = min(rest, self.window)
            results.append(self._run(count, (self.done + count + self.right) * self.input_hop))
        return torch.cat(results, dim=-1) if results else self._empty()

    def _run(self, count: int, end: int) -> torch.Tensor:
        assert self.pending is not None
        outputs = self.function(self.pending[..., :end], self.cache)
        result = outputs[..., self.done * self.output_hop : (self.done + count) * self.output_hop]
        kept = min(self.left, self.done + count)
        # A copy, so that what is dropped is freed.
        self.pending = self.pending[..., (self.done + count - kept) * self.input_hop :].clone()
        self.done = kept
        self.example = result[..., :0].clone()
        return result

    def _empty(self) -> torch.Tensor:
        if self.example is None:
            assert self.pending is not None
            with torch.no_grad():
                probe = self.function(self.pending.new_zeros(*self.pending.shape[:-1], self.input_hop), None)
            self.example = probe[..., :0].clone()
        return self.example
