# SPDX-License-Identifier: Apache-2.0
"""Results of each clip: kept in a file, and summed up to scores with intervals."""

import collections
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np

from speech_tokenizers.evaluation.bootstrap import Estimate, Statistic, bootstrap_sums, ratio
from speech_tokenizers.evaluation.clips import Clip
from speech_tokenizers.evaluation.codec_systems import CodecSystem
from speech_tokenizers.evaluation.recognition import match_texts, text_normalizer, word_information_lost


class MetricFailure(ValueError):
    """A metric has no value for this clip; the message says why."""


class ClipMetric(evaluate.Metric):
    """
    A score of one decoded clip, and its mean over clips.

    `compute(predictions=..., references=..., sampling_rate=...)` takes decoded clips and recordings of shape
    `(num_samples,)`. It returns the mean under `score_name`, the number of clips it is taken over as `num_clips`, each
    clip's score as `scores` (`None` where there is none) and the reasons as `failures`, a dictionary from the clip's
    number to a text. A clip that cannot be scored never gets a default score. Where no clip can be, the mean is
    `None`.

    Subclasses write `score_clip`. Class attributes: `score_name`, `title` (with the unit), `higher_is_better` and
    `uses_recording` (false for metrics that judge the decoded clip alone).
    """

    score_name: str
    title: str
    higher_is_better = True
    uses_recording = True
    citation = ""

    def __init__(self, **kwargs: Any):
        # Clips are large and read once: the Arrow file that `evaluate` would write has no use.
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        audio = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=f"{self.title}. {(self.__doc__ or '').strip()}",
            citation=self.citation,
            inputs_description="predictions, references: decoded and recorded clips, each of shape (num_samples,)",
            features=datasets.Features({"predictions": audio, "references": audio}),
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[float]], sampling_rate: int = 16000
    ) -> dict[str, Any]:
        scores: list[float | None] = []
        failures = {}
        for number, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            try:
                decoded, recorded = np.asarray(prediction, np.float32), np.asarray(reference, np.float32)
                scores.append(self.score_clip(decoded, recorded, sampling_rate))
            except MetricFailure as failure:
                scores.append(None)
                failures[number] = str(failure)
        worked = [score for score in scores if score is not None]
        mean = float(np.mean(worked)) if worked else None
        return {self.score_name: mean, "num_clips": len(worked), "scores": scores, "failures": failures}

    def score_clip(self, decoded: np.ndarray, recorded: np.ndarray, sampling_rate: int) -> float:
        """
        Args:
            decoded (`np.ndarray` of shape `(num_samples,)`): Output of the codec in [-1, 1].
            recorded (`np.ndarray` of shape `(num_samples,)`): Recording, of the same length.
            sampling_rate (`int`): Rate of both in Hz.

        Raises:
            MetricFailure: If the metric has no value for this clip.
        """
        raise NotImplementedError


# Raise it when a metric changes: earlier results are then measured anew.
SCORES_VERSION = 1


class ResultsFile:
    """
    Results by system and clip in a file of JSON lines, to which a line is appended as soon as it is known.

    A line that a crash cut short is passed over. Where a pair has several lines the last one counts.

    Args:
        path (`Path`): File of results, which need not exist.
        version (`int`, *optional*): Version of the lines. Lines of another version are passed over.
    """

    def __init__(self, path: Path, version: int = SCORES_VERSION):
        self.path, self.version = path, version
        self.records: dict[tuple[str, str], dict[str, Any]] = {}
        self._ends_in_newline = True
        if path.exists():
            data = path.read_bytes()
            self._ends_in_newline = data.endswith(b"\n") or not data
            for line in data.splitlines():
                try:
                    record = json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError):
                    continue
                if record.get("version") == version:
                    self.records[record["system_key"], record["clip_key"]] = record

    def get(self, system: CodecSystem, clip: Clip) -> dict[str, Any]:
        """Known results of a pair; an empty record where nothing is known."""
        empty = {"scores": {}, "failures": {}, "texts": {}}
        return self.records.get((system.key, clip.key), empty)

    def append(self, record: dict[str, Any]) -> None:
        """Add a record in one write. A line is then there whole, or its end is missing."""
        line = json.dumps(record).encode() + b"\n"
        if not self._ends_in_newline:
            line = b"\n" + line
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
        self._ends_in_newline = True
        self.records[record["system_key"], record["clip_key"]] = record


@dataclass
class ClipCounts:
    """
    One score of one system, as the contribution of each clip to the sums that the score is a function of.

    Args:
        statistic (`Callable`): Function that maps the sums to the score.
        counts (`dict` of `str` to sequence of `float`): Row of each clip that has one, by the clip's name.
        failures (`collections.Counter`): Number of clips without a row, by the reason.
    """

    statistic: Statistic
    counts: dict[str, Sequence[float]] = field(default_factory=dict)
    failures: collections.Counter = field(default_factory=collections.Counter)

    def estimate(self) -> Estimate | None:
        """The score with its bootstrap interval over clips; `None` where there is none."""
        return bootstrap_sums(np.array(list(self.counts.values())), self.statistic) if self.counts else None

    def table(self, names: Iterable[str]) -> np.ndarray:
        """The rows of these clips, of shape `(num_clips, num_counts)`."""
        return np.array([self.counts[name] for name in names], np.float64)


def metric_counts(metric: ClipMetric, clips: Sequence[Clip], records: Sequence[dict[str, Any]]) -> ClipCounts:
    """The mean of a metric over the clips where it worked."""
    score = ClipCounts(ratio)
    for clip, record in zip(clips, records, strict=True):
        if metric.score_name in record["scores"]:
            score.counts[clip.name] = (record["scores"][metric.score_name], 1.0)
        if metric.score_name in record["failures"]:
            score.failures[record["failures"][metric.score_name]] += 1
    return score


def recognition_counts(
    recognizer_key: str,
    clips: Sequence[Clip],
    records: Sequence[dict[str, Any]],
    true_texts: Sequence[str | None],
    language: str,
) -> dict[str, ClipCounts]:
    """
    Word error rate, word information lost and character error rate, each in percent, of what a recogniser heard.

    Args:
        recognizer_key (`str`): Attribute `key` of the recogniser.
        clips (sequence of [`Clip`]), records (sequence of `dict`): Clips, and the results of each so far.
        true_texts (sequence of `str` or `None`): True text of each clip. Clips whose true text is not known are left
            out. Where the true text has no word, each recognised word is an insertion.
        language (`str`): Language that chooses the normaliser of both texts.

    Returns:
        `dict` of `str` to [`ClipCounts`]: Counts by the names `wer`, `wil` and `cer`.
    """
    normalize = text_normalizer(language)
    scores = {"wer": ClipCounts(ratio), "wil": ClipCounts(word_information_lost), "cer": ClipCounts(ratio)}
    for clip, record, text in zip(clips, records, true_texts, strict=True):
        if "coding_failure" in record:
            for score in scores.values():
                score.failures[record["coding_failure"]] += 1
        if recognizer_key not in record["texts"] or text is None:
            continue
        true, said = normalize(text), normalize(record["texts"][recognizer_key])
        words, characters = match_texts(said, true), match_texts(said, true, "character")
        scores["wer"].counts[clip.name] = (100.0 * words.errors, words.reference_length)
        scores["wil"].counts[clip.name] = (words.hits, words.reference_length, words.hypothesis_length)
        scores["cer"].counts[clip.name] = (100.0 * characters.errors, characters.reference_length)
    return scores
