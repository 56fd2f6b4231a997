# SPDX-License-Identifier: Apache-2.0
"""Recordings with what is known of them, coded once for all measures of units."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech_tokenizers.evaluation.bootstrap import Estimate
from speech_tokenizers.evaluation.clip_results import ResultsFile
from speech_tokenizers.evaluation.clips import SAMPLING_RATE, Clip
from speech_tokenizers.evaluation.codec_systems import EncodingSystem, NeedsWindows
from speech_tokenizers.evaluation.frame_labels import IGNORED_LABELS, label_frames
from speech_tokenizers.evaluation.peers import resample
from speech_tokenizers.evaluation.stopwatch import Stopwatch
from speech_tokenizers.evaluation.units.agreement import joint_symbols
from speech_tokenizers.evaluation.units.perturbations import Perturbation, default_perturbations
from speech_tokenizers.processing.timed_labels import TimedLabel


# Raise it when a measure changes: earlier results are then computed anew.
UNITS_VERSION = 1


CLEAN = "clean"


Labels = Mapping[str, Sequence[TimedLabel]]


@dataclasses.dataclass(frozen=True)
class SpokenClips:
    """
    Recordings, with their speakers, genders and labels.

    Args:
        clips (`list` of [`Clip`]): Recordings. No two have the same name.
        speakers, genders (`list` of `str` or `None`): Speaker and gender of each recording, where known.
        phones, characters (mapping of `str` to sequence of [`TimedLabel`], *optional*): Labels of the recordings, by
            their names.
    """

    clips: list[Clip]
    speakers: list[str | None]
    genders: list[str | None]
    phones: Labels | None = None
    characters: Labels | None = None

    @property
    def groups(self) -> list[str]:
        """Group that each clip is redrawn with: its speaker, or the clip alone where its speaker is unknown."""
        return [speaker or clip.name for clip, speaker in zip(self.clips, self.speakers, strict=True)]

    @property
    def key(self) -> str:
        """Hash of all of it."""
        labels = [
            None if of_clips is None else [of_clips.get(clip.name) for clip in self.clips]
            for of_clips in (self.phones, self.characters)
        ]
        content = json.dumps([[clip.key for clip in self.clips], self.speakers, self.genders, labels])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class UnitSettings:
    """
    Amount of what is measured.

    Args:
        seed (`int`): Seed for everything that is drawn.
        robustness_clips (`int`): Number of clips that are perturbed.
        perturbations (sequence of `str`, *optional*): Names of perturbations, out of
            [`~evaluation.units.perturbations.default_perturbations`]. Defaults to all.
        noise_folder (`str`, *optional*): Folder with recordings of noise. Defaults to generated noise.
        abx_context (`"triphone"` or `"any"`), abx_tokens (`int`): Arguments `context` and `max_tokens` of
            [`~evaluation.units.abx.abx`].
        probe_frames (`int`): Number of labelled frames of a clip that the phone probe learns from or is tested on.
        recognizer (`str`, *optional*): Folder or Hub id of the recogniser that hears resynthesized units.
        language (`str`, *optional*, defaults to `"en"`): Language of the speech, as a code.
        voice (`str`, *optional*): Voice that speaks the units; see [`~evaluation.units.resynthesis.resynthesize`].
        resynthesis_clips (`int`): Number of clips that are resynthesized.
    """

    seed: int = 0
    robustness_clips: int = 60
    perturbations: Sequence[str] | None = None
    noise_folder: str | None = None
    abx_context: str = "any"
    abx_tokens: int = 5
    probe_frames: int = 20
    recognizer: str | None = None
    language: str = "en"
    voice: str | None = None
    resynthesis_clips: int = 60

    def chosen_perturbations(self) -> dict[str, Perturbation]:
        """
        The perturbations by their names.

        Raises:
            ValueError: If there is no such perturbation, or no recording of noise.
        """
        known = default_perturbations(None if self.noise_folder is None else Path(self.noise_folder))
        chosen = known if self.perturbations is None else self.perturbations
        for name in chosen:
            if name not in known:
                raise ValueError(f"`perturbations` must be among {', '.join(known)}, but got {name!r}.")
        return {name: known[name] for name in chosen}

    @property
    def perturbation_keys(self) -> dict[str, str]:
        """Keys that identify the perturbations, noise in a folder by its content."""
        return {name: perturbation.key for name, perturbation in self.chosen_perturbations().items()}


@dataclasses.dataclass
class Measured:
    """
    Result of one measure.

    Args:
        scores (`dict` of `str` to `dict`): Estimate of each score: `value`, `low` and `high` (`None` where there is no
            interval) and `num_clips`. A score that failed is `None`.
        failures (`dict` of `str` to `dict` of `str` to `list` of `str`): Reasons of each score's failures, each with
            the names of the clips that failed for it. The list of names is empty where the measure failed as a whole.
        details (`dict`): Further values that plots and tables need.
    """

    scores: dict[str, dict[str, Any] | None] = dataclasses.field(default_factory=dict)
    failures: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, name: str, estimate: Estimate | None, num_clips: int, reason: str = "it has no value") -> None:
        """
        Args:
            name (`str`): Name of the score.
            estimate ([`Estimate`], *optional*): Value of the score. Without one the score failed for `reason`.
            num_clips (`int`): Number of clips that it is taken over.
        """
        if estimate is None or math.isnan(estimate.value):
            self.scores[name] = None
            self.failures.setdefault(name, {})[reason] = []
        else:
            self.scores[name] = {**dataclasses.asdict(estimate), "num_clips": num_clips}

    def add_value(self, name: str, value: float, num_clips: int) -> None:
        """A score without interval."""
        self.scores[name] = {"value": float(value), "low": None, "high": None, "num_clips": num_clips}


class EncodingFailure(RuntimeError):
    """A clip could not be encoded; the message is one line."""


class EncodedClips:
    """
    The codes of clips by one system, kept in its results file, and their features, kept in memory.

    A clip that cannot be encoded is left out and named in `failures`.

    Args:
        system ([`EncodingSystem`]): System that encodes.
        data ([`SpokenClips`]): Clips to encode.
        results ([`ResultsFile`]): Results file of the system. What it holds is not computed again.
        on_progress (`Callable`, *optional*): Function called after each clip.
    """

    def __init__(
        self,
        system: EncodingSystem,
        data: SpokenClips,
        results: ResultsFile,
        on_progress: Callable[[], object] = lambda: None,
    ):
        self.system, self.data, self.results, self.on_progress = system, data, results, on_progress
        self.failures: dict[str, list[str]] = {}
        self.codes: list[np.ndarray] = []  # (num_quantizers, num_frames) of each clip that could be encoded
        self.numbers: list[int] = []  # which of the data's clips these are
        self._features: list[np.ndarray] | None = None

    def encode(self, with_features: bool) -> None:
        """
        Encode every clip.

        Args:
            with_features (`bool`): Whether to find features too, which the model gives and the results file does not.
        """
        self.failures, self.codes, self.numbers = {}, [], []
        features = []
        for number, clip in enumerate(self.data.clips):
            try:
                if with_features:
                    codes, frames = self._with_features(clip)
                    features.append(frames)
                else:
                    codes = self.encode_view(clip, CLEAN, clip.load)
            except EncodingFailure as failure:
                self.failures.setdefault(str(failure), []).append(clip.name)
            else:
                self.codes.append(codes)
                self.numbers.append(number)
            self.on_progress()
        if not self.codes:
            reason, names = next(iter(self.failures.items()))
            raise EncodingFailure(f"{self.system.name} can encode no clip; {names[0]}: {reason}")
        if with_features and all(frames is not None for frames in features):
            self._features = features

    def encode_view(
        self,
        clip: Clip,
        view: str,
        load: Callable[[], np.ndarray],
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """
        Codes `(num_quantizers, num_frames)` of a clip as it is, as it was changed, or as it is encoded in another way.

        Args:
            clip ([`Clip`]): The clip.
            view (`str`): Name of the change, with its settings.
            load (`Callable`): Function that gives the clip's waveform `(num_samples,)` at 16 kHz. It is called only if
                the codes are not known.
            encode (`Callable`, *optional*): Function that maps a waveform at the system's rate to codes. Defaults to
                the system's own.

        Raises:
            EncodingFailure: If it cannot be encoded.
        """
        record = self.results.records.get((self.system.key, f"{clip.key} {view}"))
        if record is None:
            encode = self.system.encode if encode is None else encode
            return self._keep(clip, view, lambda: encode(self._resampled(load())))
        if "failure" in record:
            raise EncodingFailure(record["failure"])
        return np.array(record["audio_codes"], np.int64)

    def _with_features(self, clip: Clip) -> tuple[np.ndarray, np.ndarray | None]:
        features = None

        def encode() -> np.ndarray:
            nonlocal features
            encoded = self.system.encode_frames(self._resampled(clip.load()))
            features = encoded.features
            return encoded.audio_codes

        return self._keep(clip, CLEAN, encode), features

    def _resampled(self, audio: np.ndarray) -> np.ndarray:
        return resample(audio, SAMPLING_RATE, self.system.sampling_rate)

    def _keep(self, clip: Clip, view: str, encode: Callable[[], np.ndarray]) -> np.ndarray:
        record = {
            "version": UNITS_VERSION,
            "system_key": self.system.key,
            "clip_key": f"{clip.key} {view}",
            "clip": clip.name,
        }
        try:
            with Stopwatch() as watch:
                codes = encode()
            if not codes.shape[1]:
                raise ValueError("there is no frame")
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, NeedsWindows):  # else measures of codes alone could not have the clip later
                self.results.append({**record, "failure": reason})
            raise EncodingFailure(reason) from error
        if (self.system.key, record["clip_key"]) not in self.results.records:
            self.results.append({**record, "audio_codes": codes.tolist(), "seconds": watch.seconds})
        return codes

    @property
    def features(self) -> list[np.ndarray]:
        """
        What was quantized for each clip in `codes`, `(num_frames, dimension)`.

        Raises:
            ValueError: If the model does not tell.
        """
        if self._features is None:
            raise ValueError("the model does not tell what it quantizes")
        return self._features

    @property
    def seconds(self) -> float:
        """Seconds that encoding the clips in `codes` took when it was done."""
        records = [self.results.records[self.system.key, f"{clip.key} {CLEAN}"] for clip in self.clips]
        return sum(record["seconds"] for record in records)

    @property
    def clips(self) -> list[Clip]:
        """The clips in `codes`."""
        return [self.data.clips[number] for number in self.numbers]

    def of_clips(self, values: Sequence[Any]) -> list[Any]:
        """The entries of the clips in `codes`, of a sequence with one for each of the data's clips."""
        return [values[number] for number in self.numbers]

    def symbols(self) -> tuple[list[np.ndarray], np.ndarray]:
        """
        Each frame's codes as one number `(num_frames,)`, and the entries `(num_symbols, dimension)` that the numbers
        stand for, as [`~EncodingSystem.dequantize`] gives them.
        """
        distinct = np.unique(np.concatenate(self.codes, axis=1), axis=1)
        return joint_symbols(self.codes), self.system.dequantize(distinct)

    def labels(self, labels: Labels) -> list[list[TimedLabel]]:
        """
        Labels of the clips in `codes`, moved in time so that frame k is at (k + 0.5) / frame rate, where readers of
        the labels expect it. An encoder's convolutions hear a frame's samples later or earlier than that.
        """
        later = 0.5 / self.system.frame_rate - float(self.system.frame_centres(1)[0])
        return [
            [TimedLabel(item.label, item.start + later, item.end + later) for item in labels.get(clip.name, ())]
            for clip in self.clips
        ]

    def frame_labels(self, labels: Labels) -> tuple[list[np.ndarray], list[str]]:
        """The label of each frame `(num_frames,)` as a number, -1 for none, and what the numbers stand for."""
        names = sorted({item.label for spans in labels.values() for item in spans} - set(IGNORED_LABELS))
        classes = {name: number for number, name in enumerate(names)}
        frames = [
            label_frames(spans, codes.shape[1], self.system.frame_rate, classes)
            for spans, codes in zip(self.labels(labels), self.codes, strict=True)
        ]
        return frames, names


def without_stress(labels: Labels) -> dict[str, list[TimedLabel]]:
    """Labels without the stress digits of ARPAbet vowels, as is usual for PNMI: `IH0` and `IH1` are one phone."""
    return {
        name: [
            TimedLabel(
                item.label[:2] if re.fullmatch("[A-Z]{2}[0-2]", item.label) else item.label, item.start, item.end
            )
            for item in spans
        ]
        for name, spans in labels.items()
    }
