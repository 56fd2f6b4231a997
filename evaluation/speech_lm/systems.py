# SPDX-License-Identifier: Apache-2.0
"""What the evaluation of synthesis listens to: a model, and the three ceilings that stand above it."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from speech_tokenizers.evaluation.clips import SAMPLING_RATE
from speech_tokenizers.evaluation.speech_lm.measures import count_slips
from speech_tokenizers.evaluation.speech_lm.sentences import Sentence
from speech_tokenizers.evaluation.speech_lm.synthesis import SynthesisItem, SynthesisResult, Voice


@dataclass
class SpokenSentence:
    """
    Speech of a sentence.

    Args:
        audio_values (`np.ndarray` of shape `(num_samples,)`): Speech.
        sampling_rate (`int`): Its rate in Hz.
        facts (`dict`): What is known of how it was made, as plain values for JSON.
    """

    audio_values: np.ndarray
    sampling_rate: int
    facts: dict[str, Any] = field(default_factory=dict)


class SpeakingSystem(Protocol):
    """What speaks sentences. `name` is what tables show; `key` changes whenever the speech could."""

    name: str
    key: str

    def clip_key(self, sentence: Sentence) -> str:
        """Key under which results of a sentence are kept."""
        ...

    def speak(self, sentence: Sentence) -> SpokenSentence:
        """Speech of a sentence; raises `ValueError` or `RuntimeError` where there is none."""
        ...


class Recordings:
    """The recordings: what the recognisers make of real speech of these texts."""

    name = key = "recording"

    def clip_key(self, sentence: Sentence) -> str:
        """See [`SpeakingSystem`]."""
        return f"{sentence.clip.key} {sentence.recording_key}"

    def speak(self, sentence: Sentence) -> SpokenSentence:
        """The recording, at 16 kHz."""
        return SpokenSentence(sentence.clip.load(), SAMPLING_RATE)


class Resynthesis:
    """
    The codec's decoding of the recordings' codes: what the best model of these codes could reach.

    Args:
        voice ([`Voice`]): Voice whose codec decodes.
    """

    def __init__(self, voice: Voice):
        self.voice = voice
        codebooks = f"{voice.num_codebooks} codebook{'s' if voice.num_codebooks != 1 else ''}"
        self.name = f"codec ({'latents' if voice.layout == 'continuous' else codebooks})"
        self.key = f"codec-{voice.codec_key}"

    def clip_key(self, sentence: Sentence) -> str:
        """See [`SpeakingSystem`]."""
        return sentence.clip.key

    def speak(self, sentence: Sentence) -> SpokenSentence:
        """The frames of the row, decoded."""
        return SpokenSentence(self.voice.decode(sentence.frames), self.voice.sampling_rate)


class Synthesis:
    """
    A model that speaks the texts.

    Args:
        voice ([`Voice`]): Voice that speaks.
        with_true_durations (`bool`, *optional*, defaults to `False`): Whether each piece lasts as long as in the
            recording. What is missing to the codec is then no matter of timing.
    """

    def __init__(self, voice: Voice, with_true_durations: bool = False):
        self.voice, self.with_true_durations = voice, with_true_durations
        self.name = f"{voice.name} (true durations)" if with_true_durations else voice.name
        self.key = f"{voice.key}-true-durations" if with_true_durations else voice.key

    def clip_key(self, sentence: Sentence) -> str:
        """See [`SpeakingSystem`]."""
        return sentence.clip.key

    def speak(self, sentence: Sentence) -> SpokenSentence:
        """
        The text, spoken.

        Raises:
            ValueError: If the text cannot be pronounced, or the row's times do not fit it.
        """
        item = SynthesisItem(sentence.text, sentence.clip.name)
        if self.with_true_durations:
            durations = sentence.durations(self.voice.frame_rate)
            # A lexicon may know another pronunciation, which the times are not of.
            pieces = sentence.pieces if self.voice.text_alignment == "phone" else None
            item = SynthesisItem(sentence.text, sentence.clip.name, durations, pieces)
        (result,) = self.voice.synthesize([item])
        return SpokenSentence(result.audio_values, self.voice.sampling_rate, self._facts(result))

    def _facts(self, result: SynthesisResult) -> dict[str, Any]:
        frames = result.frames
        is_wrong = ~np.isfinite(frames)
        if self.voice.layout != "continuous":
            is_wrong = (frames < 0) | (frames >= self.voice.codebook_size)
        facts: dict[str, Any] = {
            "ended": result.ended,
            "num_frames": int(frames.shape[1]),
            "invalid_frames": int(is_wrong.any(axis=0).sum()),
            "dropped_codes": result.num_dropped,
            "wall_seconds": result.seconds,
            "cpu_seconds": result.cpu_seconds,
            "first_audio_seconds": result.first_audio_seconds,
            "first_audio_cpu_seconds": result.first_audio_cpu_seconds,
        }
        if result.no_first_audio is not None:
            facts["no_first_audio"] = result.no_first_audio
        if result.said is not None and result.asked is not None:
            slips = count_slips(result.said, result.asked)
            facts |= {"pieces": slips.asked, "skipped_pieces": slips.skipped, "added_pieces": slips.added}
        return facts
