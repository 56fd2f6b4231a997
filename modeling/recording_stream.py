# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What all streams have in common: their rule for bad input, and that each recording begins anew."""

import copy
from typing import Any, Self

import torch

from .codec_interface import TokenKind
from .input_checks import check_codes, check_latents, check_waveforms


EMPTY_STREAM = "The stream is empty; push at least one sample or frame before finishing it."


class StreamState:
    """
    What a stream holds of one recording in one direction.

    All tensors are (batch, channels, length). A push works on a copy, so they are replaced and never changed in place.
    """

    def push(self, inputs: torch.Tensor) -> torch.Tensor:
        """Take what follows; returns what is settled by now."""
        raise NotImplementedError

    def finish(self) -> torch.Tensor:
        """The recording has ended; returns what was held back."""
        raise NotImplementedError

    def copied(self) -> Self:
        """A copy that can change while this one stays."""
        return copy.copy(self)


class RecordingStream:
    """
    One recording after the other through a model, in either direction.

    Bad input raises: what is no tensor, integers in place of samples, NaN, infinity, a wrong shape, codes that do not
    exist, another batch size than before. Such a call leaves the recording as it was, and the next chunk may follow.
    A chunk without steps is none. After `finish_encode` or `finish_decode`, also where they raise, the next recording
    begins; `reset` drops one that was left in the middle.

    A subclass gives a [`StreamState`] for each new recording, by `_new_encoder` and `_new_decoder`.

    Args:
        model ([`SpeechCodec`]): The model, in evaluation mode.

    Raises:
        TypeError: If it is a model of another kind.
        ValueError: If the model is in training mode.
    """

    tokens: TokenKind = "codes"
    needs_all_codebooks = False  # in `decode`
    batch_size: int | None = None  # where only so many recordings can be streamed together
    input_name = "input_values"
    model_attribute = "encode"  # what a model must have to be streamed so

    def __init__(self, model: Any):
        if not hasattr(model, self.model_attribute):
            kind = type(model).__name__
            raise TypeError(
                f"A {kind} cannot be streamed by {type(self).__name__}; a model's `encode_stream()` and"
                " `decode_stream()` give the streams that fit it."
            )
        self.model = model
        self._check_mode()
        self.reset()

    def _check_mode(self) -> None:
        if getattr(self.model, "training", False):
            raise ValueError(
                "`model` is in training mode, in which coding is random or changes the model; call `model.eval()`"
                " first."
            )

    def _new_encoder(self) -> StreamState:
        raise NotImplementedError

    def _new_decoder(self) -> StreamState:
        raise NotImplementedError

    def reset(self) -> None:
        """Drop what is held of a recording that was left in the middle, in both directions."""
        self._states: dict[str, StreamState] = {}
        self._shapes: dict[str, tuple[int, int]] = {}  # (batch, channels) of what was pushed

    @torch.no_grad()
    def encode(self, input_values: torch.Tensor) -> torch.Tensor:
        """
        Push samples.

        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)`): The samples that follow, in [-1, 1], any
                number of them.

        Returns:
            Tokens of the frames that are settled by now; perhaps none.

        Raises:
            TypeError: If they are no tensor of floating point.
            ValueError: If the shape is wrong, the batch size another than before, or a sample is not finite.
        """
        if torch.is_tensor(input_values) and input_values.dim() != 3:
            raise ValueError(
                f"`{self.input_name}` must have shape (batch, 1, num_samples), but has {tuple(input_values.shape)}."
            )
        input_values, _ = check_waveforms(input_values, may_be_empty=True, name=self.input_name)
        return self._given(self._push("encode", input_values))

    @torch.no_grad()
    def finish_encode(self) -> torch.Tensor:
        """Tokens of the frames still held back. Raises `ValueError` if the recording has no frame."""
        return self._given(self._finish("encode"))

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """
        Push tokens.

        Args:
            tokens (`torch.Tensor`): Codes `(batch, num_quantizers, num_frames)`, or latents `(batch, num_frames,
                latent_dim)`, of the frames that follow, any number of them.

        Returns:
            Samples that are settled by now, (batch, 1, num_samples); perhaps none.

        Raises:
            TypeError: If they are no tensor of integers, or latents of floating point.
            ValueError: If the shape is wrong or another than before, a code does not exist, or a latent is not
                finite.
        """
        model = self.model
        if self.tokens == "latents":
            tokens = check_latents(tokens, model.latent_dim, may_be_empty=True)[0].transpose(1, 2)
        else:
            need_all = self.needs_all_codebooks
            tokens, _ = check_codes(
                tokens, model.num_quantizers, model.codebook_size, need_all=need_all, may_be_empty=True
            )
        return self._push("decode", tokens)

    @torch.no_grad()
    def finish_decode(self) -> torch.Tensor:
        """Samples still held back. Raises `ValueError` if no frame was pushed."""
        return self._finish("decode")

    def _push(self, direction: str, inputs: torch.Tensor) -> torch.Tensor:
        self._check_mode()
        shape = batch_size, channels = inputs.shape[0], inputs.shape[1]
        if self.batch_size not in (None, batch_size):
            raise ValueError(
                f"This stream takes {self.batch_size} recording at a time, but got {batch_size}; use a stream for"
                " each."
            )
        before = self._shapes.get(direction, shape)
        if before != shape:
            held = f"{before[0]} recordings of {before[1]} channels or codebooks"
            raise ValueError(
                f"The stream holds {held}, but now got {batch_size} of {channels}; finish it, or call `reset`, before"
                " others begin."
            )
        state = self._state(direction).copied()
        # A copy, since the caller may fill the same buffer with the next chunk.
        outputs = state.push(inputs.detach().to(self.model.device, copy=True))
        self._states[direction], self._shapes[direction] = state, before
        return outputs

    def _finish(self, direction: str) -> torch.Tensor:
        state = self._state(direction)
        self._states.pop(direction, None)
        self._shapes.pop(direction, None)
        return state.finish()

    def _state(self, direction: str) -> StreamState:
        if direction in self._states:
            return self._states[direction]
        return self._new_encoder() if direction == "encode" else self._new_decoder()

    def _given(self, encoded: torch.Tensor) -> torch.Tensor:
        return encoded.transpose(1, 2) if self.tokens == "latents" else encoded


__all__ = ["RecordingStream", "StreamState"]
