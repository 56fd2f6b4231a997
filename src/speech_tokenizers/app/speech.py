# SPDX-License-Identifier: Apache-2.0
"""What a page lets people hear: waveforms in, waveforms and numbers out. Nothing here knows of a page."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speech_tokenizers.app.models import OfferedModel
from speech_tokenizers.app.recordings import PageError


MAX_CHARACTERS = 300


@dataclass
class Heard:
    """
    Speech that came back from tokens.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): The speech, in [-1, 1].
        sampling_rate (`int`): Its sampling rate, in Hz.
        tokens (`np.ndarray`): Codes `(num_quantizers, num_frames)` or latents `(num_frames, latent_dim)`.
        bits_per_second (`float`): Bit rate of the tokens.
        stoi (`float`, *optional*): Intelligibility beside the recording; `None` where it cannot be measured.
    """

    waveform: np.ndarray
    sampling_rate: int
    tokens: np.ndarray
    bits_per_second: float
    stoi: float | None


@dataclass
class UnitRuns:
    """
    Units of a recording, merged into runs.

    Args:
        units, durations (`np.ndarray` of shape `(num_units,)`): Units, and how many frames each lasts.
        hop_length, sampling_rate (`int`): Samples a frame, and samples a second.
        num_units (`int`): How many different units there are.
        bits_per_second (`float`): Bit rate of the frames, before they are merged.
        f0 (`np.ndarray` of shape `(num_frames,)`, *optional*): F0 of units that have codes of it; see [`decoded_f0`].
        spoken (`np.ndarray` of shape `(num_samples,)`, *optional*): What a vocoder makes of the units, where there is
            one.
    """

    units: np.ndarray
    durations: np.ndarray
    hop_length: int
    sampling_rate: int
    num_units: int
    bits_per_second: float
    f0: np.ndarray | None
    spoken: np.ndarray | None

    @property
    def times(self) -> np.ndarray:
        """Start and end of each run in seconds, `(num_units, 2)`."""
        ends = np.cumsum(self.durations)
        return np.stack([ends - self.durations, ends], axis=1) * self.hop_length / self.sampling_rate


@dataclass
class Said:
    """
    What a voice said.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`), sampling_rate (`int`): The speech, and its rate in Hz.
        words (`list`): Each word with its start and end in seconds; empty of a voice that does not know them.
        ended (`bool`): Whether the voice ended by itself.
    """

    waveform: np.ndarray
    sampling_rate: int
    words: list[tuple[str, float, float]]
    ended: bool


def decode_levels(offered: OfferedModel, waveform: np.ndarray) -> list[Heard]:
    """
    A recording as a codec gives it back from its first codebook, its first two, and so on to all.

    Args:
        offered ([`OfferedModel`]): A codec, or continuous tokens, which have one level.
        waveform (`np.ndarray` of shape `(num_samples,)`): Recording at the model's rate.
    """
    with offered.in_use() as model:
        tokens = _encode(model, waveform)
        count = 1 if model.kind == "latents" else len(tokens)
        return [_decode(model, waveform, tokens, level) for level in range(1, count + 1)]


def decode_all(offered: OfferedModel, waveform: np.ndarray) -> Heard:
    """A recording as a model gives it back from all its tokens; see [`decode_levels`]."""
    with offered.in_use() as model:
        tokens = _encode(model, waveform)
        return _decode(model, waveform, tokens, len(tokens))


def find_units(offered: OfferedModel, waveform: np.ndarray) -> UnitRuns:
    """
    Units of a recording, with what a vocoder makes of them.

    Args:
        offered ([`OfferedModel`]): Units of one codebook, with F0 or without.
        waveform (`np.ndarray` of shape `(num_samples,)`): Recording at the model's rate.
    """
    from speech_tokenizers.demo.units import decoded_f0
    from speech_tokenizers.processing.unit_sequences import deduplicate

    with offered.in_use() as model:
        codes = _encode(model, waveform)
        units, durations = deduplicate(codes[0])
        return UnitRuns(
            units=units,
            durations=durations,
            hop_length=model.hop_length,
            sampling_rate=model.sampling_rate,
            num_units=model.config.unit_codebook_sizes[0],
            bits_per_second=model.bits_per_second,
            f0=decoded_f0(model, codes),
            spoken=_speak(model, codes, len(waveform)) if offered.speaks else None,
        )


def say_text(offered: OfferedModel, text: str) -> Said:
    """
    A sentence as a voice says it. The same sentence sounds the same each time.

    Args:
        offered ([`OfferedModel`]): A speech language model.
        text (`str`): What it says.

    Raises:
        PageError: If there is no text, or it is too long.
        ValueError: If the voice cannot read the text.
    """
    import torch

    text = " ".join(text.split())
    if not text:
        raise PageError("There is no sentence yet. Type one.")
    if len(text) > MAX_CHARACTERS:
        raise PageError(
            f"The text has {len(text)} characters, but this page takes at most {MAX_CHARACTERS}. Say it in parts, or"
            " give it to `speech-tokenizers say`."
        )
    with offered.in_use() as model, torch.no_grad():
        model.check_text(text, offered.processor)
        knows_words = model.config.text_alignment != "none"
        said = model.generate_speech(
            text,
            offered.processor,
            temperature=0.0 if knows_words else 0.8,
            generators=[torch.Generator(model.device).manual_seed(0)],
        )
        length = int(said.audio_mask[0].sum())
        return Said(
            waveform=said.audio_values[0, 0, :length].float().cpu().numpy(),
            sampling_rate=model.config.sampling_rate,
            words=[tuple(word) for word in said.word_times[0]] if knows_words else [],
            ended=bool(said.ended[0]),
        )


def measured_stoi(recorded: np.ndarray, decoded: np.ndarray, sampling_rate: int) -> float | None:
    """
    Short-time objective intelligibility of decoded speech, up to 1; `None` where there is too little speech for it.

    Args:
        recorded, decoded (`np.ndarray` of shape `(num_samples,)`): Waveforms of one length.
        sampling_rate (`int`): Their sampling rate, in Hz.
    """
    from pystoi import stoi

    with warnings.catch_warnings():
        # By a warning pystoi says that too few frames hold speech; its number means nothing then.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            score = float(stoi(recorded, decoded, sampling_rate))
        except RuntimeWarning:
            return None
    return score if math.isfinite(score) else None


def _encode(model: Any, waveform: np.ndarray) -> np.ndarray:
    import torch

    from speech_tokenizers.coding.file_coding import encode_blocks

    with torch.no_grad():
        found = list(encode_blocks(model, [torch.from_numpy(waveform)]))
        return torch.cat(found, dim=0 if model.kind == "latents" else -1).numpy()


def _decode(model: Any, waveform: np.ndarray, tokens: np.ndarray, level: int) -> Heard:
    if model.kind == "codes":
        tokens, bits = tokens[:level], _bits_per_second(model, level)
    else:
        bits = model.bits_per_second
    decoded = _speak(model, tokens, len(waveform))
    return Heard(decoded, model.sampling_rate, tokens, bits, measured_stoi(waveform, decoded, model.sampling_rate))


def _speak(model: Any, tokens: np.ndarray, num_samples: int) -> np.ndarray:
    import torch

    from speech_tokenizers.coding.file_coding import decode_blocks

    with torch.no_grad():
        blocks: Sequence[Any] = list(decode_blocks(model, tokens, num_samples))
        return torch.cat(list(blocks))[:num_samples].float().cpu().numpy()


def _bits_per_second(model: Any, level: int) -> float:
    from speech_tokenizers.modeling.codec_interface import codebook_sizes, codebook_strides

    books = zip(codebook_sizes(model)[:level], codebook_strides(model)[:level], strict=True)
    return model.frame_rate * sum(math.log2(size) / stride for size, stride in books)
