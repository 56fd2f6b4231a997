# SPDX-License-Identifier: Apache-2.0
"""Speech of a language model, one sentence at a time, with the time that it takes."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from speech_tokenizers.evaluation.codec_systems import model_fingerprint
from speech_tokenizers.evaluation.stopwatch import Stopwatch
from speech_tokenizers.modeling.speech_lm_layouts import flat_to_codes


# Seconds of speech that a listener is given first.
FIRST_AUDIO_SECONDS = 0.2


@dataclass(frozen=True)
class SynthesisItem:
    """
    A text to speak.

    Args:
        text (`str`): What to say.
        name (`str`, *optional*): Name from which the random numbers are drawn, so that a sentence sounds the same
            whichever others are spoken.
        durations (sequence of `int`, *optional*): Frames of each piece. Defaults to what the model chooses.
        pieces (sequence of `str`, *optional*): Phones to say. Defaults to those that the processor looks up.
    """

    text: str
    name: str = ""
    durations: Sequence[int] | None = None
    pieces: Sequence[str] | None = None


@dataclass(frozen=True)
class SynthesisResult:
    """
    A text that was spoken.

    Args:
        audio_values (`np.ndarray` of shape `(num_samples,)`): Speech at the voice's `sampling_rate`.
        frames (`np.ndarray` of shape `(num_codebooks, num_frames)`): Its codes; or its latents, `(latent_dim,
            num_frames)`.
        ended (`bool`): Whether the model ended by itself.
        said, asked (`list` of `int`, *optional*): Ids of the pieces that stand among the codes, and of those that were
            asked for; `None` where the model speaks by no pieces.
        num_dropped (`int`): Number of codes that were in no whole frame.
        seconds, cpu_seconds (`float`): Time on the clock and of the processor, from the text to the whole waveform.
        first_audio_seconds (`float`, *optional*): Time from the text to the first piece of the waveform; see
            [`Voice.synthesize`].
        no_first_audio (`str`, *optional*): Reason why that is not known.
    """

    audio_values: np.ndarray
    frames: np.ndarray
    ended: bool
    said: list[int] | None
    asked: list[int] | None
    num_dropped: int
    seconds: float
    cpu_seconds: float
    first_audio_seconds: float | None = None
    no_first_audio: str | None = None


class _NoTime(ValueError):
    """The time to the first audio cannot be told; the message says why."""


@dataclass
class Voice:
    """
    A speech language model with its processor and its codec.

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model; its codec is attached.
        processor ([`SpeechLMProcessor`]): Its processor.
        name (`str`): Name that tables show.
        options (mapping, *optional*): Further arguments of `generate_speech`, such as `temperature`.
        seed (`int`, *optional*, defaults to 0): Seed for what is drawn.
    """

    model: Any
    processor: Any
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        self.codec = self.model.codec
        config = self.model.config
        self.layout, self.text_alignment = config.layout, config.text_alignment
        self.num_codebooks, self.codebook_size = config.coding.codec_sizes(config.num_codebooks, config.codebook_size)
        self.frame_rate, self.sampling_rate = float(config.frame_rate), int(config.sampling_rate)
        self.device = next(self.model.parameters()).device
        settings = {**self.options, "seed": self.seed, "device": self.device.type}
        self.codec_key = f"{self.codec.fingerprint()}-{self.codec.decoder_fingerprint()}-{self.num_codebooks}"
        self.key = f"{self.name}-{model_fingerprint(self.model, codec=self.codec_key, **settings)}"

    @torch.inference_mode()
    def decode(self, frames: np.ndarray) -> np.ndarray:
        """
        Args:
            frames (`np.ndarray` of shape `(num_codebooks, num_frames)` or `(latent_dim, num_frames)`): Codes, or
                latents in the continuous layout.

        Returns:
            `np.ndarray` of shape `(num_samples,)` at `sampling_rate`.
        """
        tokens = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)[None]
        if self.layout == "continuous":
            values = self.codec.decode(latents=tokens.transpose(1, 2)).audio_values
        else:
            values = self.codec.decode(audio_codes=tokens).audio_values
        self._synchronize()
        return values.reshape(-1).float().cpu().numpy()

    def synthesize(self, items: Sequence[SynthesisItem]) -> list[SynthesisResult]:
        """
        Speak texts, one after another.

        The time to the first audio is that until the ids of the first 0.2 s are chosen, and one step more, in the
        generation of the whole sentence; the time to decode these frames alone is added. A model that streams needs no
        more than this.

        Args:
            items (sequence of [`SynthesisItem`]): Texts.

        Raises:
            ValueError, RuntimeError: If a text cannot be spoken.
        """
        return [self._synthesize(item) for item in items]

    @torch.no_grad()
    def _synthesize(self, item: SynthesisItem) -> SynthesisResult:
        seed = hashlib.sha256(f"{self.seed} {item.name}".encode()).digest()[:7]
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(seed, "big"))
        given = {"pieces": item.pieces, "durations": item.durations}
        given = {name: [list(value)] for name, value in given.items() if value is not None}
        asked = self._asked(item)
        with _step_times(self.model, self._synchronize) as times, Stopwatch() as spent:
            started = time.perf_counter()
            output = self.model.generate_speech(
                [item.text], processor=self.processor, generators=[generator], **given, **self.options
            )
            self._synchronize()
        said = output.audio_latents.transpose(1, 2) if self.layout == "continuous" else output.audio_codes
        frames = said[0][:, output.audio_codes_mask[0].bool()].cpu().numpy()
        written = self._written(output.sequences[0])
        is_code = self.model.config.speech_ids.is_unit(written)
        first, reason = None, None
        try:
            first = self._first_audio(written, frames, [moment - started for moment in times])
        except _NoTime as error:
            reason = str(error)
        return SynthesisResult(
            audio_values=output.audio_values[0, 0][output.audio_mask[0].bool()].float().cpu().numpy(),
            frames=frames,
            ended=bool(output.ended[0]),
            said=None if asked is None else written[~is_code].tolist(),
            asked=asked,
            num_dropped=int(output.num_dropped[0]),
            seconds=spent.seconds,
            cpu_seconds=spent.cpu_seconds,
            first_audio_seconds=first,
            no_first_audio=reason,
        )

    def _asked(self, item: SynthesisItem) -> list[int] | None:
        # Ids of the pieces of a text, one after another.
        if self.text_alignment == "none":
            return None
        if item.pieces is None:
            pieces = self.processor.speech_pieces(item.text)[1]
        else:
            pieces = self.processor.piece_ids(item.pieces)
        return [number for ids in pieces for number in ids]

    def _written(self, sequence: torch.Tensor) -> torch.Tensor:
        # Ids behind the last start of audio and before its end.
        ids = self.model.config.speech_ids
        written = sequence[int((sequence == ids.audio_start).nonzero()[-1]) + 1 :]
        ends = (written == ids.audio_end).nonzero()
        return written[: int(ends[0])] if len(ends) else written

    def _first_audio(self, written: torch.Tensor, codes: np.ndarray, times: Sequence[float]) -> float:
        # `written` are the ids of the speech, and `times` when each forward pass ended. What one of them chose is
        # known at the end of the next.
        if self.layout != "flat":
            raise _NoTime(f"it is measured in the flat layout only, and this is {self.layout}")
        num_frames = min(codes.shape[1], math.ceil(FIRST_AUDIO_SECONDS * self.frame_rate))
        if not num_frames:
            raise _NoTime("nothing was said")
        if not len(written) <= len(times) <= len(written) + 1:  # one more for the end
            raise _NoTime(f"{len(times)} steps chose {len(written)} ids, so that a step is not an id")
        config, ids = self.model.config, self.model.config.speech_ids
        runs = flat_to_codes(written.cpu(), ids).audio_codes
        begins = config.coding.frames_of_runs(runs, torch.arange(runs.shape[1] + 1))
        num_codes = int(torch.searchsorted(begins, num_frames)) * config.num_codebooks
        last = int(ids.is_unit(written).nonzero()[num_codes - 1])
        with Stopwatch() as decoding:
            self.decode(codes[:, :num_frames])
        return times[min(last + 1, len(times) - 1)] + decoding.seconds

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def _step_times(model: nn.Module, synchronize: Any) -> Iterator[list[float]]:
    # Moments at which forward passes end: the output layer is the last of each.
    times: list[float] = []

    def note(*_: Any) -> None:
        synchronize()
        times.append(time.perf_counter())

    output_layer = model.get_output_embeddings()  # type: ignore[operator]
    handle = output_layer.register_forward_hook(note)
    try:
        yield times
    finally:
        handle.remove()


def load_voice(
    name_or_path: str, device: str = "cpu", options: Mapping[str, Any] | None = None, seed: int = 0
) -> Voice:
    """
    Load a speech language model, its processor and its codec.

    Args:
        name_or_path (`str`): Name of a checkpoint, a folder or a Hub id.
        device (`str`, *optional*, defaults to `"cpu"`): Device that the model runs on.
        options (mapping, *optional*), seed (`int`, *optional*): See [`Voice`].

    Raises:
        ValueError: If there is no such model, or its codec is missing or another one.
        OSError: If it cannot be read.
    """
    from speech_tokenizers.coding.speech_lm_loading import load_speech_lm

    model, processor = load_speech_lm(name_or_path)
    model.to(device)
    model.codec.to(device)
    return Voice(model, processor, Path(name_or_path).name, options or {}, seed)
