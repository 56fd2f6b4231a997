# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Audio out of the stock `generate` of transformers, while it runs."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import torch
from transformers.generation.streamers import BaseStreamer

from .speech_lm_streaming import ChunkDecoder, FlatFrames, decoded_frames


class AudioStreamer(BaseStreamer):
    """
    A streamer for `generate(streamer=...)` of any language model of the flat layout, which gives audio in chunks.

    Each clip among the new ids is decoded while it is written; text between clips is left out. Frames are read as by
    [`flat_to_codes`]. To have the model write nothing else than whole frames, give `generate` an [`AudioOnly`].

    Generation runs in a thread of its own. [`~AudioStreamer.start`] begins one, and an error in it is raised where the
    chunks are read. A thread of your own works, too; if it dies once the prompt was read, the reader gets an error.

    Args:
        processor ([`SpeechLMProcessor`]): The processor, to which the codec is attached.
        chunk_frames (`int`, *optional*, defaults to 10): Frames of a chunk.
        first_chunk_frames (`int`, *optional*, defaults to 3): Frames of the first chunk of each clip.
        timeout (`float`, *optional*): Longest time to wait for a chunk, in seconds. Defaults to no limit.

    Raises:
        ValueError: If the layout is not flat, or no codec is attached.

    Example:

    ```python
    streamer = AudioStreamer(processor)
    streamer.start(model.generate, **inputs, max_new_tokens=500)
    for audio_values in streamer:  # (1, 1, num_samples)
        play(audio_values)
    ```
    """

    def __init__(
        self, processor: Any, chunk_frames: int = 10, first_chunk_frames: int = 3, timeout: float | None = None
    ):
        if processor.layout != "flat":
            raise ValueError(
                f"`AudioStreamer` reads codes among ids, which the layout {processor.layout!r} has not; use"
                " `stream_speech` of the model."
            )
        if processor.codec is None:
            raise ValueError("No codec is attached, which decodes codes; call `attach_codec` of the processor.")
        self.ids, self.codec, self.timeout = processor.speech_ids, processor.codec, timeout
        self._coding = processor.coding
        self.sizes = (chunk_frames, first_chunk_frames)
        self._chunks: queue.Queue[Any] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._is_over = self._has_audio = False
        self._begin(has_prompt=False)

    def _begin(self, has_prompt: bool) -> None:
        self._has_prompt = has_prompt
        self._decoder = ChunkDecoder(self.codec, "codes", *self.sizes)
        self._frames = FlatFrames(self.ids)

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> threading.Thread:
        """
        Run `function(*args, **kwargs, streamer=self)` in a thread. What it raises is raised where chunks are read.

        Args:
            function (callable): The `generate` of a model.
            args, kwargs: Its arguments.

        Returns:
            `threading.Thread`: The thread, which has begun.
        """

        chunks: queue.Queue[Any] = queue.Queue()
        self._chunks, self._is_over, self._has_audio = chunks, False, False
        self._begin(has_prompt=False)

        def run() -> None:
            try:
                function(*args, **kwargs, streamer=self)
            except BaseException as error:  # noqa: BLE001
                chunks.put(error)  # which the reader raises
            else:
                chunks.put(None)  # where the function never called `end`

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        return self._thread

    @torch.no_grad()
    def put(self, value: torch.Tensor) -> None:
        """
        Take ids; `generate` calls it first with the prompt, and then with each new id.

        Raises:
            ValueError: If there are several rows.
        """
        if value.dim() > 1 and len(value) > 1 or (self._has_prompt and value.dim() == 1 and len(value) > 1):
            raise ValueError(f"`AudioStreamer` streams one row, but `generate` writes {len(value)}; use one for each.")
        if not self._has_prompt:
            self._has_prompt = True
            self._thread = self._thread or threading.current_thread()
            return
        for number in value.flatten().tolist():
            frame = self._frames.push(number)
            if frame is not None:
                self._give(self._decoder.push(decoded_frames([frame], self._coding)))
            elif number == self.ids.audio_end:
                self._finish_clip()

    def end(self) -> None:
        """The ids have ended; `generate` calls it."""
        self._finish_clip()
        self._chunks.put(None)
        self._has_prompt = False

    def _finish_clip(self) -> None:
        self._give(self._decoder.finish())
        self._begin(has_prompt=True)

    def _give(self, values: torch.Tensor | None) -> None:
        if values is not None and values.shape[-1]:
            self._chunks.put(values)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.Tensor:
        """
        The next chunk, `(1, 1, num_samples)`.

        Raises:
            ValueError: If `generate` has ended without a whole frame.
            TimeoutError: If no chunk came within `timeout` seconds.
            RuntimeError: If the thread that generates has died.
        """
        if self._is_over:
            raise StopIteration
        found = self._next()
        if torch.is_tensor(found):
            self._has_audio = True
            return found
        self._is_over = True
        if found is not None:
            raise found
        if not self._has_audio:
            raise ValueError(
                "`generate` has ended without a whole frame of audio; end the prompt with `<|audio_start|>`, as"
                " `speech_prompt` does, and allow more `max_new_tokens`."
            )
        raise StopIteration

    def _next(self) -> Any:
        limit = None if self.timeout is None else time.monotonic() + self.timeout
        while True:
            # Read before the queue: what the thread put before it died is there.
            is_dead = self._thread is not None and not self._thread.is_alive()
            left = _PATIENCE if limit is None else max(0.0, min(_PATIENCE, limit - time.monotonic()))
            try:
                return self._chunks.get(timeout=0.0 if is_dead else left)
            except queue.Empty:
                if is_dead:
                    return RuntimeError(
                        "The thread that generates has died before it ended the audio; its error is printed above. Use"
                        " `start`, which raises it here."
                    )
                if left == 0.0:
                    raise TimeoutError(f"No audio came within {self.timeout} s; raise `timeout`.") from None


# Seconds after which the reader looks whether the writer still lives.
_PATIENCE = 0.2


__all__ = ["AudioStreamer"]
