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


# Seconds of speech that a listener is given first.
FIRST_AUDIO_SECONDS = 0.2
# Forward passes of a generation that choose no code and no piece: at most the end of the speech, that of the answer,
# and one before the loop notices.
_FURTHER_STEPS = 3


@dataclass(frozen=True)
class SynthesisItem:
    """
    A text to speak.

    Args:
        text (`str`): What to say.
        name (`str`, *optional*): Name from which the random numbers are drawn, so that a sentence sounds the same
            whichever others are spoken.
        durations (sequence of `int`, *optional*): Frames of each piece. Defaults to what the model chooses.
    """

    text: str
    name: str = ""
    durations: Sequence[int] | None = None


@dataclass(frozen=True)
class SynthesisResult:
    """
    A text that was spoken.

    Args:
        audio_values (`np.ndarray` of shape `(num_samples,)`): Speech at the voice's `sampling_rate`.
        audio_codes (`np.ndarray` of shape `(num_codebooks, num_frames)`): Its codes.
        ended (`bool`): Whether the model ended by itself.
        pieces (`list` of `str`, *optional*): Pieces that were said; `None` where the model says none.
        num_dropped (`int`, *optional*): Number of codes that were in no whole frame; `None` where the model does not
            say.
        seconds, cpu_seconds (`float`): Time on the clock and of the processor, from the text to the whole waveform.
        first_audio_seconds (`float`, *optional*): Time from the text to the first piece of the waveform; see
            [`Voice.synthesize`].
        no_first_audio (`str`, *optional*): Reason why that is not known.
    """

    audio_values: np.ndarray
    audio_codes: np.ndarray
    ended: bool
    pieces: list[str] | None
    num_dropped: int | None
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
        if self.codec is None:
            raise ValueError(f"{self.name} has no codec to speak with; attach one by `model.attach_codec`.")
        config = self.model.config
        self.layout, self.text_alignment = config.layout, config.text_alignment
        self.num_codebooks, self.codebook_size = config.num_codebooks, config.codebook_size
        self.frame_rate, self.sampling_rate = float(config.frame_rate), int(config.sampling_rate)
        self.device = next(self.model.parameters()).device
        settings = {**self.options, "seed": self.seed, "device": self.device.type}
        self.codec_key = f"{self.codec.fingerprint()}-{self.codec.decoder_fingerprint()}-{self.num_codebooks}"
        self.key = f"{self.name}-{model_fingerprint(self.model, codec=self.codec_key, **settings)}"

    def asked_pieces(self, text: str) -> list[str] | None:
        """
        Pieces that a text is spoken by, in order; `None` where the model speaks by none.

        Raises:
            ValueError: If the text cannot be pronounced.
        """
        return None if self.text_alignment == "none" else list(self.processor.speech_pieces(text)[0])

    @torch.inference_mode()
    def decode(self, audio_codes: np.ndarray) -> np.ndarray:
        """
        Args:
            audio_codes (`np.ndarray` of shape `(num_codebooks, num_frames)`): Codes.

        Returns:
            `np.ndarray` of shape `(num_samples,)` at `sampling_rate`.
        """
        codes = torch.from_numpy(np.ascontiguousarray(audio_codes)).to(self.device)[None]
        values = self.codec.decode(audio_codes=codes).audio_values
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
        durations = None if item.durations is None else [list(item.durations)]
        with _step_times(self.model, self._synchronize) as times, Stopwatch() as spent:
            started = time.perf_counter()
            output = self.model.generate_speech(
                [item.text], processor=self.processor, generators=[generator], durations=durations, **self.options
            )
            self._synchronize()
        codes = output.audio_codes[0][:, output.audio_codes_mask[0].bool()].cpu().numpy()
        first, reason = None, None
        try:
            first = self._first_audio(item.text, output, codes, [moment - started for moment in times])
        except _NoTime as error:
            reason = str(error)
        dropped = getattr(output, "num_dropped", None)
        return SynthesisResult(
            audio_values=output.audio_values[0, 0][output.audio_mask[0].bool()].float().cpu().numpy(),
            audio_codes=codes,
            ended=bool(output.ended[0]),
            pieces=None if self.text_alignment == "none" else list(output.pieces[0]),
            num_dropped=None if dropped is None else int(dropped[0]),
            seconds=spent.seconds,
            cpu_seconds=spent.cpu_seconds,
            first_audio_seconds=first,
            no_first_audio=reason,
        )

    def _first_audio(self, text: str, output: Any, codes: np.ndarray, times: Sequence[float]) -> float:
        # `times` are the ends of the forward passes; the ids that pass n chose are known at the end of pass n + 1.
        if self.layout != "flat":
            raise _NoTime(f"it is measured in the flat layout only, and this is {self.layout}")
        num_frames = min(codes.shape[1], math.ceil(FIRST_AUDIO_SECONDS * self.frame_rate))
        if not num_frames:
            raise _NoTime("nothing was said")
        ids_until, ids_in_all = num_frames * self.num_codebooks, codes.size
        if self.text_alignment != "none":
            sizes = [len(ids) for ids in self.processor.speech_pieces(text)[1]]
            starts = np.round(np.asarray(output.piece_times[0])[:, 0] * self.frame_rate)
            if len(starts) > len(sizes):
                raise _NoTime("more pieces were said than asked for")
            ids_until += sum(size for size, start in zip(sizes, starts, strict=False) if start < num_frames)
            ids_in_all += sum(sizes[: len(starts)])
        if not ids_in_all <= len(times) <= ids_in_all + _FURTHER_STEPS:
            raise _NoTime(f"{len(times)} steps chose {ids_in_all} ids, so that a step is not an id")
        with Stopwatch() as decoding:
            self.decode(codes[:, :num_frames])
        return times[min(ids_until, len(times) - 1)] + decoding.seconds

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
    from speech_tokenizers.coding.loading import find_checkpoint, load
    from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
    from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
    from speech_tokenizers.modeling.transformers_codecs import as_speech_codec

    checkpoint = find_checkpoint(name_or_path)
    model = SpeechLMForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = SpeechLMProcessor.from_pretrained(checkpoint)
    if model.codec is None:
        own = Path(checkpoint, "codec")
        codec = as_speech_codec(*load(own if own.is_dir() else model.config.codec_name))
        model.attach_codec(codec)
    model.to(device)
    model.codec.to(device)
    if processor.codec is None:
        processor.attach_codec(model.codec)
    return Voice(model, processor, Path(name_or_path).name, options or {}, seed)
