# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Audio while a speech language model still writes, and speech of texts that arrive in pieces."""

import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .input_checks import check_whole_number
from .speech_lm_ids import SpeechIds
from .speech_lm_plans import SpeechPlan, SpeechSettings
from .speech_lm_text import joined_surrogates
from .speech_lm_unit_coding import UnitCoding
from .speech_lm_writers import DelayWriter, FlatWriter, LatentWriter, Writing


@dataclass
class SpeechChunk:
    """
    A piece of speech that is being said.

    Args:
        audio_values (`torch.FloatTensor` of shape `(1, 1, num_samples)`): Samples that follow, in [-1, 1]; the last
            chunk may have none.
        text (`str`): The text, or sentence, that they belong to.
        start (`float`): Time of the first sample from the beginning of all speech, in seconds.
        seconds (`float`): Time from the text's arrival to that of the chunk, in seconds.
        is_last (`bool`): Whether it ends its text.
        ended (`bool`, *optional*): In the last chunk, whether the model itself wrote the end; else a limit cut it.
        alarm (`str`, *optional*): In the last chunk, what seems to be wrong with the text's speech.
    """

    audio_values: torch.Tensor
    text: str
    start: float
    seconds: float
    is_last: bool = False
    ended: bool | None = None
    alarm: str | None = None


def look_ahead_seconds(codec: Any, config: Any) -> float:
    """See [`~SpeechGeneration.look_ahead_seconds`]."""
    after = codec.decode_look_ahead
    return math.inf if after is None else (after + max(config.codebook_delays)) / config.frame_rate


def check_chunks(chunk_frames: int, first_chunk_frames: int) -> None:
    """
    Raises:
        ValueError: If a number of frames is no whole number above 0.
    """
    check_whole_number(chunk_frames, "chunk_frames", 1)
    check_whole_number(first_chunk_frames, "first_chunk_frames", 1)


class ChunkDecoder:
    """
    Frames of one clip to audio, chunk by chunk.

    Args:
        codec ([`SpeechCodec`]): The codec.
        kind (`str`): `"codes"` or `"latents"`.
        chunk_frames (`int`), first_chunk_frames (`int`): Frames of a chunk, and of the first one.
    """

    def __init__(self, codec: Any, kind: str, chunk_frames: int, first_chunk_frames: int):
        check_chunks(chunk_frames, first_chunk_frames)
        self.codec, self.kind, self.chunk_frames = codec, kind, chunk_frames
        self.stream = codec.decode_stream(kind, eager=True)
        after = codec.decode_look_ahead
        self.due = math.inf if after is None else first_chunk_frames + after
        self.held: list[torch.Tensor] = []
        self.num_frames = 0

    def push(self, frames: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """
        Take frames.

        Args:
            frames (sequence of `torch.Tensor` of shape `(num_codebooks,)` or `(latent_dim,)`): Frames that follow.

        Returns:
            `torch.FloatTensor` of shape `(1, 1, num_samples)`: A chunk, once there are enough frames for one.
        """
        self.held += frames
        self.num_frames += len(frames)
        return self._decoded() if len(self.held) >= self.due else None

    def finish(self) -> torch.Tensor:
        """The samples that are left, `(1, 1, num_samples)`; none if there was no frame."""
        if not self.num_frames:
            return torch.zeros(1, 1, 0)
        held = [self._decoded()] if self.held else []
        return torch.cat([*held, self.stream.finish_decode().float().cpu()], dim=-1)

    def _decoded(self) -> torch.Tensor:
        tokens = torch.stack(self.held, dim=0 if self.kind == "latents" else 1)[None]
        device = getattr(self.codec, "device", None)
        self.held, self.due = [], self.chunk_frames
        return self.stream.decode(tokens.to(device)).float().cpu()


class FlatFrames:
    """
    Whole frames of codes among ids that arrive one by one; those of [`flat_to_codes`].

    Args:
        ids (`SpeechIds`): Ids of the vocabulary.
    """

    def __init__(self, ids: SpeechIds):
        self.ids = ids
        self.frame: list[int] = []

    def push(self, number: int) -> torch.Tensor | None:
        """The frame `(num_codebooks,)` that an id completes, if it does."""
        if not self.ids.audio_offset <= number < self.ids.audio_stop:
            return None
        codebook, code = divmod(number - self.ids.audio_offset, self.ids.codebook_size)
        if codebook == 0:
            self.frame = [code]
        elif codebook == len(self.frame):
            self.frame.append(code)
        if len(self.frame) < self.ids.num_codebooks:
            return None
        frame, self.frame = torch.tensor(self.frame), []
        return frame


def decoded_frames(frames: Sequence[torch.Tensor], coding: UnitCoding) -> list[torch.Tensor]:
    """The codec's frames `(num_codebooks,)` that frames, or runs, of a language model stand for, one by one."""
    if coding.kind == "frames" or not frames:
        return list(frames)
    return list(coding.decode(torch.stack(list(frames), dim=1)).T)


class _FrameReader:
    # The frames of a single row that are whole, step by step; those of `SpeechPlan.said`.

    def __init__(self, writer: FlatWriter, config: Any, prompt_length: int):
        self.writer, self.config, self.place = writer, config, prompt_length
        self.flat = FlatFrames(config.speech_ids)
        self.columns: list[torch.Tensor] = []
        self.num_read = self.num_frames = 0

    def read(self, writing: Writing) -> list[torch.Tensor]:
        if isinstance(self.writer, DelayWriter):
            return decoded_frames(self._read_columns(self.writer), self.config.coding)
        if isinstance(self.writer, LatentWriter):
            new = slice(self.num_read, None)
            pairs = list(zip(self.writer.latents[new], self.writer.masks[new], strict=True))
            self.num_read += len(pairs)
            return [latents[0] for latents, mask in pairs if bool(mask[0])]
        new_ids = writing.ids[0, self.place :].tolist()
        self.place += len(new_ids)
        frames = [frame for frame in map(self.flat.push, new_ids) if frame is not None]
        return decoded_frames(frames, self.config.coding)

    def _read_columns(self, writer: DelayWriter) -> list[torch.Tensor]:
        new = [column[0] for column in writer.columns[self.num_read :]]
        self.num_read += len(new)
        self.columns += [column for column in new if int(column[0]) >= 0]
        late = self.config.codebook_delays
        frames = []
        while self.num_frames + max(late) < len(self.columns):
            frame = torch.stack([self.columns[self.num_frames + by][book] for book, by in enumerate(late)])
            if int(frame.max()) >= self.config.codebook_size:  # where the first codebook ended
                break
            frames.append(frame)
            self.num_frames += 1
        return frames


@torch.no_grad()
def stream_texts(
    model: Any,
    processor: Any,
    text: str | Iterable[str],
    settings: SpeechSettings,
    sizes: tuple[int, int],
    codec: Any,
) -> Iterator[SpeechChunk]:
    """See [`~SpeechGeneration.stream_speech`]; `sizes` are the frames of a chunk, and of the first."""
    if isinstance(text, str):
        plan = SpeechPlan(model, processor, [text], settings)
        return _stream([plan], codec, sizes)
    if isinstance(text, list | tuple):
        raise TypeError(
            "`text` is a list, which elsewhere means several texts. One text is streamed at a time: give a `str`, or"
            " an iterator of its pieces, such as `iter([...])`."
        )
    given = next((name for name in ("durations", "pieces") if getattr(settings, name) is not None), None)
    if given is not None:
        raise ValueError(f"`{given}` belong to one text; give `text` as a `str`, and not in pieces.")
    processor.check_model(model)
    plans = (SpeechPlan(model, processor, [sentence], settings) for sentence in sentences(text))
    return _stream(plans, codec, sizes)


@torch.no_grad()
def _stream(plans: Iterable[SpeechPlan], codec: Any, sizes: tuple[int, int]) -> Iterator[SpeechChunk]:
    num_samples = 0
    for plan in plans:
        decoder = ChunkDecoder(codec, "latents" if plan.config.layout == "continuous" else "codes", *sizes)
        writer, steps = plan.write()
        reader = _FrameReader(writer, plan.config, plan.inputs["input_ids"].shape[1])
        text = plan.utterances[0].text
        for writing in steps:
            values = decoder.push(reader.read(writing))
            if values is not None:
                yield SpeechChunk(values, text, num_samples / codec.sampling_rate, time.perf_counter() - plan.begun)
                num_samples += values.shape[-1]
        values = decoder.finish()
        (row,) = plan.said(writer, writing)
        start, seconds = num_samples / codec.sampling_rate, time.perf_counter() - plan.begun
        yield SpeechChunk(values, text, start, seconds, is_last=True, ended=row.ended, alarm=row.alarm)
        num_samples += values.shape[-1]


# A mark at the end of a sentence, with what closes it; the white space behind it shows that no number goes on.
_SENTENCE_END = re.compile("[.!?…。！？]+[\"'”’»)\\]]*(?=\\s)|\n")


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """
    The sentences of a text that arrives in pieces, each once it is complete; see
    [`~SpeechGeneration.stream_speech`] for where it is cut.

    Args:
        pieces (iterable of `str`): The pieces, which are joined as they are. One may end within a surrogate pair.

    Raises:
        TypeError: If a piece is no text.
        ValueError: If there is nothing to say in all of them.
    """
    held, is_empty = "", True
    for piece in pieces:
        if not isinstance(piece, str):
            raise TypeError(f"`text` must give texts, but gives {type(piece).__name__}.")
        held = joined_surrogates(held + piece)
        place = 0
        while found := _SENTENCE_END.search(held, place):
            place = found.end()
            if _can_be_said(held[:place]):
                yield held[:place].strip()
                held, place, is_empty = held[place:], 0, False
    if _can_be_said(held):
        yield held.strip()
    elif is_empty:
        raise ValueError(f"`text` has ended without a word; nothing can be said of {held.strip()!r}.")


def _can_be_said(text: str) -> bool:
    return any(character.isalnum() for character in text)


__all__ = [
    "ChunkDecoder",
    "FlatFrames",
    "SpeechChunk",
    "check_chunks",
    "decoded_frames",
    "look_ahead_seconds",
    "sentences",
    "stream_texts",
]
