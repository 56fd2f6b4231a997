# SPDX-License-Identifier: Apache-2.0
"""Speech of a language model, one sentence at a time, with the time that it takes."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speech_tokenizers.evaluation.codec_systems import model_fingerprint
from speech_tokenizers.evaluation.stopwatch import Stopwatch


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
        first_audio_seconds, first_audio_cpu_seconds (`float`, *optional*): Time on the clock and of the processor,
            from the text to the first samples of its stream; see [`Voice.synthesize`].
        no_first_audio (`str`, *optional*): Reason why these are not known.
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
    first_audio_cpu_seconds: float | None = None
    no_first_audio: str | None = None


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

        Each text is said as a whole, and then, from the same random numbers, as a stream that is stopped at its first
        samples. These are the beginning of the whole, and the time to them is that to the first audio. The whole comes
        first, so that no stream is the first call of a process. Where the codec decodes the whole at once, the options
        forbid a stream, or nothing was said, there is a reason and no such time.

        Args:
            items (sequence of [`SynthesisItem`]): Texts.

        Raises:
            ValueError, RuntimeError: If a text cannot be spoken.
        """
        return [self._synthesize(item) for item in items]

    @torch.no_grad()
    def _synthesize(self, item: SynthesisItem) -> SynthesisResult:
        asked, request = self._asked(item), self._request(item)
        with Stopwatch() as spent:
            output = self.model.generate_speech([item.text], processor=self.processor, **request)
            self._synchronize()
        said = output.audio_latents.transpose(1, 2) if self.layout == "continuous" else output.audio_codes
        frames = said[0][:, output.audio_codes_mask[0].bool()].cpu().numpy()
        written = self._written(output.sequences[0])
        is_code = self.model.config.speech_ids.is_unit(written)
        return SynthesisResult(
            audio_values=output.audio_values[0, 0][output.audio_mask[0].bool()].float().cpu().numpy(),
            frames=frames,
            ended=bool(output.ended[0]),
            said=None if asked is None else written[~is_code].tolist(),
            asked=asked,
            num_dropped=int(output.num_dropped[0]),
            seconds=spent.seconds,
            cpu_seconds=spent.cpu_seconds,
            **self._first_audio(item),
        )

    def _request(self, item: SynthesisItem) -> dict[str, Any]:
        # What is asked of the model beside the text. The generator is new, so that each request draws the same.
        seed = hashlib.sha256(f"{self.seed} {item.name}".encode()).digest()[:7]
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(seed, "big"))
        given = {"pieces": item.pieces, "durations": item.durations}
        given = {name: [list(value)] for name, value in given.items() if value is not None}
        return {"generators": [generator], **given, **self.options}

    def _first_audio(self, item: SynthesisItem) -> dict[str, Any]:
        # Fields of the result: the time that it took, or the reason why it cannot be told.
        if math.isinf(self.model.look_ahead_seconds):
            return {"no_first_audio": "the codec decodes the whole at once"}
        try:
            with Stopwatch() as spent:
                stream = self.model.stream_speech(item.text, self.processor, **self._request(item))
                is_there = any(chunk.audio_values.shape[-1] for chunk in stream)
            stream.close()  # the rest is not written
        except ValueError as error:
            return {"no_first_audio": "it cannot be streamed: " + " ".join(str(error).split())}
        if not is_there:
            return {"no_first_audio": "nothing was said"}
        return {"first_audio_seconds": spent.seconds, "first_audio_cpu_seconds": spent.cpu_seconds}

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

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


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
