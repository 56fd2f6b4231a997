# SPDX-License-Identifier: Apache-2.0
"""Run codecs side by side over the same clips, keep each result, and sum them up."""

import argparse
import collections
import dataclasses
import datetime
import hashlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm
from transformers.utils import logging

from speech_tokenizers.coding.loading import find_checkpoint
from speech_tokenizers.evaluation.clip_results import (
    SCORES_VERSION,
    ClipCounts,
    ClipMetric,
    MetricFailure,
    ResultsFile,
    metric_counts,
    recognition_counts,
)
from speech_tokenizers.evaluation.clips import (
    SAMPLING_RATE,
    Clip,
    read_clips,
    set_aside_unreadable,
    tell_missing_texts,
)
from speech_tokenizers.evaluation.codec_systems import (
    LATENTS_SUFFIX,
    CodecSystem,
    CodedClip,
    LatentSystem,
    load_system,
    system_codebook_sizes,
    system_codebook_strides,
)
from speech_tokenizers.evaluation.peers import DecodedFiles, ProgramError, estimate_delay, load_peer, resample
from speech_tokenizers.evaluation.recognition import check_language
from speech_tokenizers.evaluation.reconstruction.codebook import (
    entropy_bits_per_second,
    nominal_bits_per_second,
    stage_statistics,
)
from speech_tokenizers.evaluation.reconstruction.neural_metrics import DNSMOS, SpeakerSimilarity
from speech_tokenizers.evaluation.reconstruction.report import build_report
from speech_tokenizers.evaluation.reconstruction.signal_metrics import PESQ, STOI, MelDistance, ScaleInvariantSDR
from speech_tokenizers.modeling.model_names import find_model
from speech_tokenizers.processing.optional_packages import MissingPackageError, require_package
from speech_tokenizers.processing.speech_recognition import Recognizer, load_recognizer


DNSMOS_WINDOWS = 2

METRICS: dict[str, Callable[[], ClipMetric]] = {
    "pesq": PESQ,
    "stoi": STOI,
    "estoi": lambda: STOI(extended=True),
    "mel_distance": MelDistance,
    "si_sdr": ScaleInvariantSDR,
    "dnsmos": lambda: DNSMOS(max_windows=DNSMOS_WINDOWS),
    "speaker_similarity": SpeakerSimilarity,
}
"""What the command measures, by `score_name`, in the order of its tables."""


class RecordingSystem:
    """The recording itself, as the row that decoded speech is compared with."""

    name = "recording"
    key = "recording"
    sampling_rate = SAMPLING_RATE
    codebook_size = None
    frame_rate = None

    def code(self, audio: np.ndarray) -> CodedClip:
        return CodedClip(audio, 16.0 * len(audio), 0.0, 0.0, 0.0, 0.0)


def build_metrics(names: Iterable[str]) -> tuple[list[ClipMetric], dict[str, str]]:
    """The metrics of `names`, and for each whose package is missing, what to install."""
    metrics, skipped = [], {}
    for name in names:
        try:
            metrics.append(METRICS[name]())
        except MissingPackageError as error:
            skipped[name] = str(error)
    return metrics, skipped


def load_recognizers(names: Iterable[str], language: str) -> tuple[list[Recognizer], dict[str, str]]:
    """The recognisers of `names`, and for each whose packages are missing, what to install."""
    recognizers, skipped = [], {}
    check_language(language)  # what is none is told of before any work
    for name in names:
        try:
            require_package("jiwer", "The error rate")
            recognizers.append(load_recognizer(find_model(name, argument="--recognizer"), language))
        except MissingPackageError as error:
            skipped[f"error rates by {name}"] = str(error)
    return recognizers, skipped


def measure_clip(
    system: CodecSystem | DecodedFiles,
    clip: Clip,
    known: dict[str, Any],
    metrics: list[ClipMetric],
    recognizers: list[Recognizer],
    example: Path | None,
) -> dict[str, Any]:
    """
    Code one clip and measure what is not yet known.

    Args:
        known (`dict`): Record so far, whose scores are kept.
        metrics (`list` of [`ClipMetric`]): Metrics still to be measured.
        recognizers (`list` of [`Recognizer`]): Recognisers that have not yet heard the clip.
        example (`Path`, *optional*): Path of the WAV file to write the decoded clip to.

    Returns:
        `dict`: Record for the results file. If coding itself fails, every metric has that reason.
    """
    recorded = clip.load()
    record = {
        "version": SCORES_VERSION,
        "system": system.name,
        "system_key": system.key,
        "clip": clip.name,
        "clip_key": clip.key,
        "seconds": len(recorded) / SAMPLING_RATE,
        **{field: dict(known[field]) for field in ("scores", "failures", "texts")},
    }
    try:
        if isinstance(system, DecodedFiles):
            coded = system.read(clip.name, len(recorded))
        else:
            coded = system.code(resample(recorded, SAMPLING_RATE, system.sampling_rate))
    except (ProgramError, RuntimeError, ValueError) as error:
        reason = f"coding failed: {' '.join(str(error).split()) or type(error).__name__}"
        record["failures"] |= {metric.score_name: reason for metric in metrics}
        record["coding_failure"] = reason
        return record
    decoded = resample(coded.audio_values, system.sampling_rate, SAMPLING_RATE).astype(np.float32)
    decoded = np.pad(decoded[: len(recorded)], (0, max(0, len(recorded) - len(decoded))))
    fields = ["num_bits", "encode_seconds", "decode_seconds", "encode_cpu_seconds", "decode_cpu_seconds"]
    record |= {field: float(value) for field in fields if (value := getattr(coded, field)) is not None}
    record["is_coded"] = True
    record["residual_delay"] = estimate_delay(decoded, recorded, SAMPLING_RATE // 20)
    record["audio_codes"] = None if coded.audio_codes is None else coded.audio_codes.tolist()
    for metric in metrics:
        try:
            record["scores"][metric.score_name] = metric.score_clip(decoded, recorded, SAMPLING_RATE)
        except MetricFailure as failure:
            record["failures"][metric.score_name] = str(failure)
        except (RuntimeError, ValueError) as failure:
            record["failures"][metric.score_name] = f"{type(failure).__name__}: {failure}"
    for recognizer in recognizers:
        record["texts"][recognizer.key] = recognizer.transcribe(decoded)
    if example is not None:
        example.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(example, np.clip(decoded, -1, 1), SAMPLING_RATE, subtype="PCM_16")
    return record


def summarize(
    system: CodecSystem | DecodedFiles,
    clips: Sequence[Clip],
    results: ResultsFile,
    metrics: Sequence[ClipMetric],
    recognizers: Sequence[Recognizer],
    language: str,
) -> dict[str, Any]:
    """Means, intervals, failures, code use, bit rates and speed of one system over `clips`, as plain JSON values."""
    records = [results.get(system, clip) for clip in clips]
    # Records of earlier versions have no `is_coded`, but always a size.
    coded = [record for record in records if record.get("is_coded") or "num_bits" in record]
    seconds = sum(record["seconds"] for record in coded)
    summary: dict[str, Any] = {
        "system": system.name,
        "system_key": system.key,
        "num_clips": len(clips),
        "num_coded": len(coded),
        "seconds": seconds,
        "scores": {},
        "failures": {},
    }
    for name, score in score_clips(system, clips, results, metrics, recognizers, language).items():
        estimate = score.estimate()
        summary["scores"][name] = None if estimate is None else dataclasses.asdict(estimate)
        if score.failures:
            summary["failures"][name] = dict(score.failures)

    if coded and not isinstance(system, RecordingSystem):
        if all("num_bits" in record for record in coded):
            summary["kbps_measured"] = sum(record["num_bits"] for record in coded) / seconds / 1000
        for side in ("encode", "decode"):
            for clock in ("", "_cpu"):
                spent = [record.get(f"{side}{clock}_seconds") for record in coded]
                if None not in spent:
                    summary[f"real_time_factor_{side}{clock}"] = sum(spent) / seconds
        if isinstance(system, LatentSystem):
            summary["bits_per_number"] = system.bits_per_number
        summary["residual_delay_samples"] = float(np.median([record["residual_delay"] for record in coded]))
        if system.codebook_size is not None:
            sizes = system_codebook_sizes(system, len(coded[0]["audio_codes"]))
            stages = stage_statistics((np.array(record["audio_codes"]) for record in coded), sizes)
            strides = system_codebook_strides(system, len(sizes))
            summary["kbps_nominal"] = nominal_bits_per_second(sizes, system.frame_rate, strides) / 1000
            summary["kbps_entropy"] = entropy_bits_per_second(stages, system.frame_rate, strides) / 1000
            summary["num_frames"] = sum(len(record["audio_codes"][0]) for record in coded)
            summary["stages"] = [
                {**dataclasses.asdict(stage), "share_used": stage.share_used, "perplexity": stage.perplexity}
                for stage in stages
            ]
    return summary


def score_clips(
    system: CodecSystem | DecodedFiles,
    clips: Sequence[Clip],
    results: ResultsFile,
    metrics: Sequence[ClipMetric],
    recognizers: Sequence[Recognizer],
    language: str,
) -> dict[str, ClipCounts]:
    """
    Every score of one system over `clips`, as counts by clip. Error rates are named `wer_transcript[NAME]` (against
    the data's text), `wer_recording[NAME]` (against what the recogniser NAME hears in the recording), and so on.
    """
    records = [results.get(system, clip) for clip in clips]
    is_recording = isinstance(system, RecordingSystem)
    scores = {
        metric.score_name: metric_counts(metric, clips, records)
        for metric in metrics
        if not (metric.uses_recording and is_recording)
    }
    recording = RecordingSystem()
    for recognizer in recognizers:
        true_texts = {
            "transcript": [clip.text for clip in clips],
            "recording": [results.get(recording, clip)["texts"].get(recognizer.key) for clip in clips],
        }
        for against, texts in true_texts.items():
            if against == "recording" and is_recording:
                continue
            for rate, score in recognition_counts(recognizer.key, clips, records, texts, language).items():
                if score.counts or score.failures:
                    scores[f"{rate}_{against}[{recognizer.name}]"] = score
    return scores


def load_systems(args: argparse.Namespace) -> tuple[list[Callable[[], CodecSystem | DecodedFiles]], dict[str, str]]:
    """
    Functions that load each system asked for, and the peers that cannot run here with the reason.

    Raises:
        ValueError: If there is no such model.
    """

    def load_model(name: str, num_quantizers: int | None) -> CodecSystem:
        path = name.removesuffix(LATENTS_SUFFIX)
        others = {other.removesuffix(LATENTS_SUFFIX) for other in args.models} - {path}
        # Checkpoints of different runs may lie in folders of one name.
        unique = all(Path(other).name != Path(path).name for other in others)
        return load_system(name, Path(path).name if unique else path, num_quantizers, args.device)

    loaders: list[Callable[[], CodecSystem | DecodedFiles]] = [RecordingSystem]
    skipped = {}
    for name in args.models:
        find_checkpoint(name.removesuffix(LATENTS_SUFFIX))
        for num_quantizers in args.num_quantizers or [None]:
            loaders.append(lambda name=name, count=num_quantizers: load_model(name, count))
    for description in args.peers:
        try:
            peer = load_peer(description)
        except (ProgramError, MissingPackageError) as error:
            skipped[description] = str(error)
        else:
            loaders.append(lambda peer=peer: peer)
    return loaders, skipped


@dataclasses.dataclass
class CodecComparison:
    """
    Clips, what to measure on them, and the folder in which results are kept. A later comparison with the same folder
    reuses its results.

    Args:
        clips (`list` of [`Clip`]): Readable recordings.
        metrics (`list` of [`ClipMetric`]), recognizers (`list` of [`Recognizer`]): Metrics and recognisers to measure
            with.
        output (`Path`): Folder for `results.jsonl` and decoded examples.
        language (`str`, *optional*, defaults to `"en"`): Language of the speech, as a code.
        num_examples (`int`, *optional*, defaults to 0): Number of clips whose decoded versions are kept, evenly
            spread.
    """

    clips: list[Clip]
    metrics: list[ClipMetric]
    recognizers: list[Recognizer]
    output: Path
    language: str = "en"
    num_examples: int = 0

    def __post_init__(self):
        self.results = ResultsFile(self.output / "results.jsonl")
        chosen = np.linspace(0, len(self.clips) - 1, min(self.num_examples, len(self.clips))).round().astype(int)
        self.examples = {self.clips[number].key: f"{number:03d}.wav" for number in chosen}

    def measure(self, system: CodecSystem | DecodedFiles, progress: tqdm) -> dict[str, Any]:
        """
        Measure on each clip what is not yet known of a system.

        Returns:
            `dict`: Summary of the system over all clips. Under `groups` it has a summary for each folder of clips.
        """
        folder = self._example_folder(system)
        for clip in self.clips:
            known = self.results.get(system, clip)
            open_metrics = [
                metric
                for metric in self.metrics
                if not (metric.uses_recording and isinstance(system, RecordingSystem))
                and metric.score_name not in known["scores"]
                and metric.score_name not in known["failures"]
            ]
            open_recognizers = [
                recognizer
                for recognizer in self.recognizers
                if recognizer.key not in known["texts"] and "coding_failure" not in known
            ]
            example = folder / self.examples[clip.key] if clip.key in self.examples else None
            if example is not None and (example.exists() or "coding_failure" in known):
                example = None
            if open_metrics or open_recognizers or example is not None or "seconds" not in known:
                self.results.append(measure_clip(system, clip, known, open_metrics, open_recognizers, example))
            progress.update()
        groups = sorted({clip.group for clip in self.clips})
        return {
            **self._summarize(system, self.clips),
            "groups": {
                group: self._summarize(system, [clip for clip in self.clips if clip.group == group])
                for group in groups
            },
            "audio": {
                name: f"audio/{folder.name}/{name}" for name in self.examples.values() if (folder / name).exists()
            },
        }

    def scores(self, system: CodecSystem | DecodedFiles) -> dict[str, ClipCounts]:
        """Every score of a system that was measured, as counts by clip; see [`score_clips`]."""
        return score_clips(system, self.clips, self.results, self.metrics, self.recognizers, self.language)

    def describe(self) -> dict[str, Any]:
        """Plain JSON values that tables need besides the systems' summaries."""
        records = [self.results.get(RecordingSystem(), clip) for clip in self.clips]
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "data": {
                "num_clips": len(self.clips),
                "seconds": sum(record.get("seconds", 0.0) for record in records),
                "groups": dict(collections.Counter(clip.group for clip in self.clips)),
                "key": hashlib.sha256("".join(clip.key for clip in self.clips).encode()).hexdigest()[:16],
            },
            "recognizers": [recognizer.name for recognizer in self.recognizers],
            "titles": {metric.score_name: metric.title for metric in self.metrics},
            "higher_is_better": {metric.score_name: metric.higher_is_better for metric in self.metrics},
            "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
        }

    def _summarize(self, system: CodecSystem | DecodedFiles, clips: list[Clip]) -> dict[str, Any]:
        return summarize(system, clips, self.results, self.metrics, self.recognizers, self.language)

    def _example_folder(self, system: CodecSystem | DecodedFiles) -> Path:
        return self.output / "audio" / hashlib.sha256(system.key.encode()).hexdigest()[:12]


PACKAGES = (
    "speech-tokenizers",
    "torch",
    "transformers",
    "pesq",
    "pystoi",
    "speechmos",
    "resemblyzer",
    "jiwer",
    "vosk",
)


def prepare_comparison(args: argparse.Namespace) -> tuple[CodecComparison, dict[str, str], int]:
    """
    The comparison that the arguments of `add_measuring_arguments` describe; what cannot be measured here, with the
    reason; and the number of clips that cannot be read.

    Raises:
        ValueError: If there is nothing to measure on.
        OSError: If a file or a model is not found.
    """
    # A missing recogniser is told of before the recordings are read.
    recognizers, unavailable = load_recognizers(args.recognizer, args.language)
    metrics, skipped = build_metrics(args.metrics)
    args.output.mkdir(parents=True, exist_ok=True)
    clips = read_clips(args.data, args.list, args.transcripts, args.limit, args.pattern)
    clips, num_unreadable = set_aside_unreadable(clips)
    if recognizers:
        tell_missing_texts(clips)
    comparison = CodecComparison(clips, metrics, recognizers, args.output, args.language, args.examples)
    return comparison, skipped | unavailable, num_unreadable


def compare(args: argparse.Namespace) -> int:
    """Compare codecs, as `speech-tokenizers evaluate` does; returns the exit code."""
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    if not args.models and not args.peers:
        raise ValueError("Name at least one model or one of --peers.")
    loaders, skipped = load_systems(args)
    comparison, unavailable, num_unreadable = prepare_comparison(args)
    skipped |= unavailable
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)

    summaries = []
    with tqdm(total=len(loaders) * len(comparison.clips), unit="clip", disable=None) as progress:
        for load in loaders:
            system = load()
            progress.set_description(system.name)
            summaries.append(comparison.measure(system, progress))

    results = comparison.describe()
    results["data"] = {"list": args.list.name if args.list else None, **results["data"]}
    results |= {
        "settings": {"threads": args.threads, "device": args.device, "dnsmos_windows": DNSMOS_WINDOWS},
        "skipped": skipped,
        "systems": summaries,
    }
    by_key = {clip.key: clip for clip in comparison.clips}
    examples = {name: by_key[key] for key, name in comparison.examples.items()}
    report = build_report(results, args.output, examples)
    written = report.write(args.output, "results")
    print(report.markdown())
    print("written: " + ", ".join(str(path) for path in written))
    return int(num_unreadable > 0)


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, or `None`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
