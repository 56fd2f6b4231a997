# SPDX-License-Identifier: Apache-2.0
"""Let a speech language model and its ceilings speak the same sentences, keep each result, and sum them up."""

import argparse
import dataclasses
import datetime
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm
from transformers.utils import logging

from speech_tokenizers.evaluation.bootstrap import Estimate, paired_difference, ratio
from speech_tokenizers.evaluation.clip_results import (
    ClipCounts,
    ClipMetric,
    MetricFailure,
    ResultsFile,
    metric_counts,
    recognition_counts,
)
from speech_tokenizers.evaluation.clips import SAMPLING_RATE
from speech_tokenizers.evaluation.peers import resample
from speech_tokenizers.evaluation.reconstruction.comparison import (
    DNSMOS_WINDOWS,
    PACKAGES,
    build_metrics,
    installed_version,
    load_recognizers,
)
from speech_tokenizers.evaluation.reconstruction.neural_metrics import SpeakerSimilarity
from speech_tokenizers.evaluation.speech_lm.measures import bootstrap_median
from speech_tokenizers.evaluation.speech_lm.report import build_report
from speech_tokenizers.evaluation.speech_lm.sentences import Sentence, read_sentences
from speech_tokenizers.evaluation.speech_lm.synthesis import Voice, load_voice
from speech_tokenizers.evaluation.speech_lm.systems import Recordings, Resynthesis, SpeakingSystem, Synthesis
from speech_tokenizers.processing.audio_files import load_audio
from speech_tokenizers.processing.speech_recognition import Recognizer
from speech_tokenizers.processing.whole_files import WholeFile


# Raise it when a measure changes: earlier results are then measured anew.
SYNTHESIS_VERSION = 2
# Scores whose difference to each ceiling is taken, besides the error rates.
_COMPARED = ("speaker_similarity", "dnsmos")


@dataclasses.dataclass
class SynthesisComparison:
    """
    Sentences, what to measure on them, and the folder in which speech and results are kept. A later comparison with
    the same folder speaks and measures only what is not there.

    Args:
        sentences (`list` of [`Sentence`]): Sentences to speak.
        metrics (`list` of [`ClipMetric`]), recognizers (`list` of [`Recognizer`]): Metrics and recognisers to measure
            with.
        output (`Path`): Folder for `results.jsonl` and `audio/`.
        language (`str`, *optional*, defaults to `"en"`): Language of the speech, as a code.
    """

    sentences: list[Sentence]
    metrics: list[ClipMetric]
    recognizers: list[Recognizer]
    output: Path
    language: str = "en"

    def __post_init__(self):
        self.output.mkdir(parents=True, exist_ok=True)
        self.results = ResultsFile(self.output / "results.jsonl", SYNTHESIS_VERSION)

    def record(self, system: SpeakingSystem, sentence: Sentence) -> dict[str, Any]:
        """Known results of a pair; an empty record where nothing is known."""
        empty: dict[str, Any] = {"scores": {}, "failures": {}, "texts": {}}
        return self.results.records.get((system.key, system.clip_key(sentence)), empty)

    def audio_path(self, system: SpeakingSystem, sentence: Sentence) -> Path:
        """Path of the speech, from the output folder."""
        folder = hashlib.sha256(system.key.encode()).hexdigest()[:12]
        name = hashlib.sha256(system.clip_key(sentence).encode()).hexdigest()[:16]
        return Path("audio", folder, f"{name}.wav")

    def measure(self, system: SpeakingSystem, progress: tqdm) -> None:
        """
        Speak and measure what is not yet known of a system. A sentence that could not be spoken is tried again.

        Raises:
            OSError: If something cannot be written.
        """
        for sentence in self.sentences:
            known = self.record(system, sentence)
            is_there = "seconds" in known and (self.output / self.audio_path(system, sentence)).is_file()
            record = self._kept(known, sentence) if is_there else self._speak(system, sentence)
            is_new = not is_there
            if "coding_failure" not in record:
                is_new |= self._listen(system, sentence, record)
            if is_new:
                self.results.append(record)
            progress.update()

    def _kept(self, known: dict[str, Any], sentence: Sentence) -> dict[str, Any]:
        # A copy of what is known, without what was measured against another recording.
        record = {**known, **{field: dict(known[field]) for field in ("scores", "failures", "texts")}}
        if record.get("recording_key") != sentence.recording_key:
            for metric in self.metrics:
                if metric.uses_recording:
                    record["scores"].pop(metric.score_name, None)
                    record["failures"].pop(metric.score_name, None)
            record["recording_key"] = sentence.recording_key
        return record

    def _speak(self, system: SpeakingSystem, sentence: Sentence) -> dict[str, Any]:
        record: dict[str, Any] = {
            "version": SYNTHESIS_VERSION,
            "system": system.name,
            "system_key": system.key,
            "clip": sentence.clip.name,
            "clip_key": system.clip_key(sentence),
            "recording_key": sentence.recording_key,
            "scores": {},
            "failures": {},
            "texts": {},
        }
        try:
            spoken = system.speak(sentence)
            if not np.isfinite(spoken.audio_values).all():
                raise ValueError("the speech holds NaN or infinite samples")
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return {**record, "coding_failure": f"not spoken: {reason}"}
        audio = np.clip(spoken.audio_values, -1, 1)
        path = self.output / self.audio_path(system, sentence)
        with WholeFile(path) as temporary:
            soundfile.write(temporary, audio, spoken.sampling_rate, subtype="PCM_16", format="WAV")
        return {**record, "seconds": len(audio) / spoken.sampling_rate, "facts": spoken.facts}

    def _listen(self, system: SpeakingSystem, sentence: Sentence, record: dict[str, Any]) -> bool:
        # Adds what is not yet measured to the record; whether there was anything.
        has_recording = sentence.recording is not None and not isinstance(system, Recordings)
        metrics = [
            metric
            for metric in self.metrics
            if metric.score_name not in record["scores"]
            and metric.score_name not in record["failures"]
            and (has_recording or not metric.uses_recording)
        ]
        recognizers = [recognizer for recognizer in self.recognizers if recognizer.key not in record["texts"]]
        if not metrics and not recognizers:
            return False
        # What is in the file is measured, so that a later run measures the same.
        audio, rate = soundfile.read(self.output / self.audio_path(system, sentence), dtype="float32")
        audio = resample(audio, rate, SAMPLING_RATE).astype(np.float32)
        for metric in metrics:
            try:
                record["scores"][metric.score_name] = score_speech(metric, audio, sentence)
            except (MetricFailure, RuntimeError, ValueError) as failure:
                record["failures"][metric.score_name] = str(failure) or type(failure).__name__
        for recognizer in recognizers:
            # In nothing there is nothing to hear; some recognisers fail on it.
            record["texts"][recognizer.key] = recognizer.transcribe(audio) if len(audio) else ""
        return True

    def scores(self, system: SpeakingSystem) -> dict[str, ClipCounts]:
        """
        Every score of a system that was measured, as counts by sentence. Error rates by the recogniser NAME are named
        `wer[NAME]`, `wil[NAME]` and `cer[NAME]`.
        """
        clips = [sentence.clip for sentence in self.sentences]
        records = [self.record(system, sentence) for sentence in self.sentences]
        texts = [clip.text for clip in clips]
        found: dict[str, ClipCounts] = {}
        for recognizer in self.recognizers:
            rates = recognition_counts(recognizer.key, clips, records, texts, self.language)
            found |= {f"{rate}[{recognizer.name}]": counts for rate, counts in rates.items()}
        for metric in self.metrics:
            if not (metric.uses_recording and isinstance(system, Recordings)):
                found[metric.score_name] = metric_counts(metric, clips, records)
        found |= behaviour_counts(self.sentences, records)
        return {name: counts for name, counts in found.items() if counts.counts or counts.failures}

    def summarize(self, system: SpeakingSystem) -> dict[str, Any]:
        """Scores with their intervals, failures and times of a system, as plain JSON values."""
        records = [self.record(system, sentence) for sentence in self.sentences]
        spoken = [record for record in records if "seconds" in record]
        summary: dict[str, Any] = {
            "system": system.name,
            "system_key": system.key,
            "num_clips": len(records),
            "num_spoken": len(spoken),
            "seconds": sum(record["seconds"] for record in spoken),
            "scores": {},
            "failures": {},
        }
        for name, score in self.scores(system).items():
            summary["scores"][name] = _plain(score.estimate())
            if score.failures:
                summary["failures"][name] = dict(score.failures)
        failed = [record["coding_failure"] for record in records if "coding_failure" in record]
        summary["not_spoken"] = {reason: failed.count(reason) for reason in dict.fromkeys(failed)}
        for name, values in times(spoken).items():
            summary["scores"][name] = _plain(bootstrap_median(values))
        reasons = [reason for record in spoken if (reason := record.get("facts", {}).get("no_first_audio"))]
        if reasons:
            summary["failures"]["first_audio"] = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
        return summary

    def differences(self, system: SpeakingSystem, ceiling: SpeakingSystem) -> dict[str, Any]:
        """
        By how much each score of a system exceeds that of a ceiling, over the sentences that both have.

        Returns:
            `dict` of `str` to `dict`: Estimates by the score's name, as plain JSON values.
        """
        own, other = self.scores(system), self.scores(ceiling)
        found = {}
        for name in own.keys() & other.keys():
            if not (name in _COMPARED or name.startswith(("wer[", "cer["))):
                continue
            names = [clip for clip in own[name].counts if clip in other[name].counts]
            if names:
                tables = own[name].table(names), other[name].table(names)
                found[name] = _plain(paired_difference(*tables, ratio))
        return found


def score_speech(metric: ClipMetric, audio: np.ndarray, sentence: Sentence) -> float:
    """
    The score of speech that need not be as long as the recording.

    Args:
        metric ([`ClipMetric`]): DNSMOS, or the similarity of speakers.
        audio (`np.ndarray` of shape `(num_samples,)`): Speech at 16 kHz.
        sentence ([`Sentence`]): Sentence, whose recording is compared with where the metric needs one.

    Raises:
        MetricFailure: If the metric has no value for this speech.
    """
    if not len(audio):
        raise MetricFailure("nothing was said")
    if isinstance(metric, SpeakerSimilarity):
        return float(metric.embed(audio) @ metric.embed(load_audio(str(sentence.recording), SAMPLING_RATE)))
    if metric.uses_recording:
        raise ValueError(f"{metric.title} compares sample by sample, which speech of another length does not bear.")
    return float(metric.score_clip(audio, audio, SAMPLING_RATE))


def behaviour_counts(sentences: Sequence[Sentence], records: Sequence[dict[str, Any]]) -> dict[str, ClipCounts]:
    """
    How a model spoke, as counts by sentence: `ended` (percent of sentences), `invalid_frames` (percent of frames with
    a code outside its codebook), `dropped_codes` (percent of codes that were in no whole frame), `skipped_pieces` and
    `added_pieces` (percent of the pieces that were asked for), and `length_ratio` (to the recordings).
    """
    found = {
        name: ClipCounts(ratio)
        for name in ("ended", "invalid_frames", "dropped_codes", "skipped_pieces", "added_pieces", "length_ratio")
    }
    for sentence, record in zip(sentences, records, strict=True):
        if "coding_failure" in record:
            for name in ("ended", "length_ratio"):
                found[name].failures[record["coding_failure"]] += 1
        if "seconds" not in record:
            continue
        name, facts = sentence.clip.name, record["facts"]
        found["length_ratio"].counts[name] = (record["seconds"], sentence.seconds)
        if "ended" in facts:
            found["ended"].counts[name] = (100.0 * facts["ended"], 1.0)
            found["invalid_frames"].counts[name] = (100.0 * facts["invalid_frames"], facts["num_frames"])
            codes = facts["num_frames"] * sentence.codes_per_frame + facts["dropped_codes"]
            found["dropped_codes"].counts[name] = (100.0 * facts["dropped_codes"], codes)
        if "pieces" in facts:
            for kind in ("skipped_pieces", "added_pieces"):
                found[kind].counts[name] = (100.0 * facts[kind], facts["pieces"])
    return found


def times(records: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """
    Times of each sentence that a model spoke: `real_time_factor` and `real_time_factor_cpu` (seconds of the clock and
    of the processor a second of speech), and `first_audio` and `first_audio_cpu` (the same until the first samples of
    its stream).
    """
    made = [record for record in records if "wall_seconds" in record["facts"]]
    with_speech = [record for record in made if record["seconds"] > 0]
    streamed = [record for record in made if "no_first_audio" not in record["facts"]]
    found = {
        "real_time_factor": [record["facts"]["wall_seconds"] / record["seconds"] for record in with_speech],
        "real_time_factor_cpu": [record["facts"]["cpu_seconds"] / record["seconds"] for record in with_speech],
        "first_audio": [record["facts"]["first_audio_seconds"] for record in streamed],
        "first_audio_cpu": [record["facts"]["first_audio_cpu_seconds"] for record in streamed],
    }
    return {name: values for name, values in found.items() if values}


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else dataclasses.asdict(estimate)


def speaking_systems(voice: Voice, has_recordings: bool) -> Iterator[SpeakingSystem]:
    """The ceilings from the highest to the lowest, and then the model. Without pieces there are no true durations."""
    if has_recordings:
        yield Recordings()
    yield Resynthesis(voice)
    if voice.text_alignment != "none" and voice.model.config.unit_coding == "frames":
        yield Synthesis(voice, with_true_durations=True)
    yield Synthesis(voice)


def evaluate_synthesis(
    voice: Voice, comparison: SynthesisComparison, description: dict[str, Any] | None = None
) -> dict[str, Any]:
    """
    Speak, measure and sum up.

    Args:
        voice ([`Voice`]): Voice to measure.
        comparison ([`SynthesisComparison`]): Sentences and what to measure.
        description (`dict`, *optional*): Further plain values for the results.

    Returns:
        `dict`: All results, as plain JSON values.
    """
    systems = list(speaking_systems(voice, comparison.sentences[0].recording is not None))
    with tqdm(total=len(systems) * len(comparison.sentences), unit="sentence", disable=None) as progress:
        for system in systems:
            progress.set_description(system.name)
            comparison.measure(system, progress)
    *ceilings, model = systems
    look_ahead = voice.model.look_ahead_seconds
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": voice.name,
        **(description or {}),
        "num_sentences": len(comparison.sentences),
        "seconds": sum(sentence.seconds for sentence in comparison.sentences),
        "codec": voice.model.config.codec_name,
        "num_codebooks": voice.num_codebooks,
        "text_alignment": voice.text_alignment,
        "layout": voice.layout,
        "look_ahead_seconds": None if math.isinf(look_ahead) else look_ahead,
        "recognizers": [recognizer.name for recognizer in comparison.recognizers],
        "metrics": {metric.score_name: metric.title for metric in comparison.metrics},
        "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
        "systems": [comparison.summarize(system) for system in systems],
        "differences": {ceiling.name: comparison.differences(model, ceiling) for ceiling in ceilings},
        "sentences": [sentence_results(comparison, systems, sentence) for sentence in comparison.sentences],
    }


def sentence_results(
    comparison: SynthesisComparison, systems: Sequence[SpeakingSystem], sentence: Sentence
) -> dict[str, Any]:
    """The text of a sentence and, for each system, its speech and what each recogniser heard in it."""
    spoken = {}
    for system in systems:
        record = comparison.record(system, sentence)
        if "seconds" in record:
            texts = {recognizer.name: record["texts"][recognizer.key] for recognizer in comparison.recognizers}
            spoken[system.name] = {"audio": comparison.audio_path(system, sentence).as_posix(), "heard": texts}
        else:
            spoken[system.name] = {"failure": record["coding_failure"]}
    return {"id": sentence.clip.name, "text": sentence.text, "systems": spoken}


def compare(args: argparse.Namespace) -> int:
    """Measure a speech language model, as `speech-tokenizers evaluate speech-lm` does; returns the exit code."""
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    recognizers, skipped = load_recognizers(args.recognizer, args.language)
    names = [recognizer.name for recognizer in recognizers]
    if len(set(names)) < len(names):
        raise ValueError(f"--recognizer: {', '.join(names)} are not told apart by their names; rename a folder.")
    metrics, unavailable = build_metrics(args.metrics)
    skipped |= unavailable
    if args.recordings is None:
        skipped["recordings"] = "no folder of them was named by --recordings"
        skipped |= {metric.score_name: "it needs --recordings" for metric in metrics if metric.uses_recording}
        metrics = [metric for metric in metrics if not metric.uses_recording]
    if not recognizers:
        skipped["error rates"] = "no recogniser was named by --recognizer"
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    options = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    voice = load_voice(args.model, args.device, options, args.seed)
    sentences = read_sentences(
        args.rows,
        voice.num_codebooks,
        voice.text_alignment,
        voice.codec,
        args.recordings,
        args.split,
        args.limit,
        voice.model.config.latent_dim,
    )
    comparison = SynthesisComparison(sentences, metrics, recognizers, args.output, args.language)
    settings = {"threads": args.threads, "device": args.device, "seed": args.seed, "dnsmos_windows": DNSMOS_WINDOWS}
    results = evaluate_synthesis(voice, comparison, {"settings": {**settings, **options}, "skipped": skipped})
    written = build_report(results).write(args.output, "results")
    print(build_report(results, with_sentences=False).markdown())
    print("written: " + ", ".join(str(path) for path in written))
    return int(any(system["not_spoken"] for system in results["systems"]))


SAMPLING = ("temperature", "top_k", "top_p")
"""Options of the command that `generate_speech` takes."""
