# SPDX-License-Identifier: Apache-2.0
"""Run codecs side by side over the same clips, keep each result, and sum them up."""

import argparse
import collections
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from speech_tokenizers.processing.audio_files import AudioFileError, find_audio_files, load_audio

from .codebook import entropy_bits_per_second, nominal_bits_per_second, stage_statistics
from .codec_systems import CodecSystem, CodedClip, ModelSystem
from .neural_metrics import DNSMOS, SpeakerSimilarity
from .peers import ProgramError, estimate_delay, load_peer, resample
from .recognition import Recognizer, count_errors, load_recognizer, text_normalizer
from .reconstruction_metrics import (
    PESQ,
    STOI,
    ClipMetric,
    MelDistance,
    MetricFailure,
    MissingPackageError,
    ScaleInvariantSDR,
)
from .reconstruction_report import write_reports
from .summaries import bootstrap


SAMPLING_RATE = 16000  # the rate at which every metric listens
# Raise it when a metric changes: earlier results are then measured anew.
SCORES_VERSION = 1
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
r"""What the command measures, by `score_name`, in the order of its tables."""


@dataclasses.dataclass(frozen=True)
class Clip:
    r"""
    One recording of the evaluation.

    Args:
        name (`str`): Path relative to the data folder.
        path (`Path`): Where it is.
        key (`str`): Hash of its bytes.
        text (`str`, *optional*): What is said, where known.
    """

    name: str
    path: Path
    key: str
    text: str | None = None

    @property
    def group(self) -> str:
        """Name of the folder it lies in."""
        return Path(self.name).parent.name or "."

    def load(self) -> np.ndarray:
        """Waveform of shape `(num_samples,)` at 16 kHz."""
        return load_audio(self.path, SAMPLING_RATE)


class RecordingSystem:
    r"""The recording itself, as the row that decoded speech is compared with."""

    name = "recording"
    key = "recording"
    sampling_rate = SAMPLING_RATE
    codebook_size = None
    frame_rate = None

    def code(self, audio: np.ndarray) -> CodedClip:
        return CodedClip(audio, 16.0 * len(audio), 0.0, 0.0, 0.0, 0.0)


class ResultsFile:
    r"""
    Results by system and clip in a file of JSON lines, to which a line is appended as soon as it is known.

    A line that a crash cut short is passed over. Where a pair has several lines the last one counts.

    Args:
        path (`Path`): The file; it need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
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
                if record.get("version") == SCORES_VERSION:
                    self.records[record["system_key"], record["clip_key"]] = record

    def get(self, system: CodecSystem, clip: Clip) -> dict[str, Any]:
        r"""What is known of a pair so far; an empty record where nothing is."""
        empty = {"scores": {}, "failures": {}, "texts": {}}
        return self.records.get((system.key, clip.key), empty)

    def append(self, record: dict[str, Any]) -> None:
        r"""Add a record in one write, so that a line is there whole or is told by its missing end."""
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


def read_clips(folder: Path, list_file: Path | None, transcripts: Path | None, limit: int | None) -> list[Clip]:
    r"""
    Args:
        folder (`Path`): Folder of recordings.
        list_file (`Path`, *optional*): Text file with a path relative to `folder` on each line. Defaults to every
            audio file.
        transcripts (`Path`, *optional*): JSON lines with `file_name` and `text`. Defaults to `metadata.jsonl` in
            `folder`, if any.
        limit (`int`, *optional*): Take only the first so many.
    """
    if list_file is None:
        paths = find_audio_files([folder])
    else:
        lines = list_file.read_text(encoding="utf-8").splitlines()
        paths = [folder / line.strip() for line in lines if line.strip()]
    texts = {}
    if transcripts is None and (folder / "metadata.jsonl").is_file():
        transcripts = folder / "metadata.jsonl"
    if transcripts is not None:
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts[row["file_name"]] = row.get("text")
    clips = []
    for path in paths[:limit]:
        if not path.is_file():
            raise AudioFileError(path, "no such file; check the spelling.")
        name = path.relative_to(folder).as_posix()
        clips.append(Clip(name, path, hashlib.sha256(path.read_bytes()).hexdigest()[:16], texts.get(name)))
    if not clips:
        raise ValueError(f"There is no clip to evaluate in {list_file or folder}.")
    return clips


def build_metrics(names: Iterable[str]) -> tuple[list[ClipMetric], dict[str, str]]:
    r"""The metrics of `names`, and for each whose package is missing, what to install."""
    metrics, skipped = [], {}
    for name in names:
        try:
            metrics.append(METRICS[name]())
        except MissingPackageError as error:
            skipped[name] = str(error)
    return metrics, skipped


def measure_clip(
    system: CodecSystem,
    clip: Clip,
    known: dict[str, Any],
    metrics: list[ClipMetric],
    recognizers: list[Recognizer],
    example: Path | None,
) -> dict[str, Any]:
    r"""
    Code one clip and measure what is not yet known.

    Args:
        known (`dict`): The record so far, whose scores are kept.
        metrics (`list` of [`ClipMetric`]): Those still to be measured.
        recognizers (`list` of [`Recognizer`]): Those that have not yet heard the clip.
        example (`Path`, *optional*): Where to write the decoded clip as a WAV file.

    Returns:
        `dict`: The record for the results file. Where coding itself fails, every metric has that reason.
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
        coded = system.code(resample(recorded, SAMPLING_RATE, system.sampling_rate))
    except (ProgramError, RuntimeError, ValueError) as error:
        reason = f"coding failed: {' '.join(str(error).split()) or type(error).__name__}"
        record["failures"] |= {metric.score_name: reason for metric in metrics}
        record["coding_failure"] = reason
        return record
    decoded = resample(coded.audio_values, system.sampling_rate, SAMPLING_RATE).astype(np.float32)
    decoded = np.pad(decoded[: len(recorded)], (0, max(0, len(recorded) - len(decoded))))
    fields = ["num_bits", "encode_seconds", "decode_seconds", "encode_cpu_seconds", "decode_cpu_seconds"]
    record |= {field: float(getattr(coded, field)) for field in fields}
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
    system: CodecSystem,
    clips: list[Clip],
    results: ResultsFile,
    metrics: list[ClipMetric],
    recognizers: list[Recognizer],
    language: str,
) -> dict[str, Any]:
    r"""Means, intervals, failures, code use, bit rates and speed of one system over `clips`, as plain JSON values."""
    records = [results.get(system, clip) for clip in clips]
    coded = [record for record in records if "num_bits" in record]
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

    def add(name: str, estimate: Any, failures: Iterable[str]) -> None:
        summary["scores"][name] = None if estimate is None else dataclasses.asdict(estimate)
        if counted := collections.Counter(failures):
            summary["failures"][name] = dict(counted)

    for metric in metrics:
        name = metric.score_name
        if not (metric.uses_recording and isinstance(system, RecordingSystem)):
            values = [record["scores"][name] for record in records if name in record["scores"]]
            add(
                name, bootstrap(values), [record["failures"][name] for record in records if name in record["failures"]]
            )

    normalize = text_normalizer(language) if recognizers else str
    recording = RecordingSystem()
    for recognizer in recognizers:
        references = {
            "transcript": [clip.text for clip in clips],
            "recording": [results.get(recording, clip)["texts"].get(recognizer.key) for clip in clips],
        }
        for against, texts in references.items():
            if against == "recording" and isinstance(system, RecordingSystem):
                continue
            for unit, rate in (("word", "wer"), ("character", "cer")):
                pairs = [
                    (record["texts"][recognizer.key], text)
                    for record, text in zip(records, texts, strict=True)
                    if recognizer.key in record["texts"] and text is not None and normalize(text).strip()
                ]
                counts = [count_errors(normalize(said), normalize(true), unit) for said, true in pairs]
                estimate = bootstrap([100.0 * errors for errors, _ in counts], [length for _, length in counts])
                lost = [record["coding_failure"] for record in records if "coding_failure" in record]
                if estimate is not None or lost:
                    add(f"{rate}_{against}[{recognizer.name}]", estimate, lost)

    if coded and not isinstance(system, RecordingSystem):
        summary["kbps_measured"] = sum(record["num_bits"] for record in coded) / seconds / 1000
        for side in ("encode", "decode"):
            for clock in ("", "_cpu"):
                spent = sum(record[f"{side}{clock}_seconds"] for record in coded)
                summary[f"real_time_factor_{side}{clock}"] = spent / seconds
        summary["residual_delay_samples"] = float(np.median([record["residual_delay"] for record in coded]))
        if system.codebook_size is not None:
            stages = stage_statistics((np.array(record["audio_codes"]) for record in coded), system.codebook_size)
            summary["kbps_nominal"] = (
                nominal_bits_per_second(len(stages), system.codebook_size, system.frame_rate) / 1000
            )
            summary["kbps_entropy"] = entropy_bits_per_second(stages, system.frame_rate) / 1000
            summary["num_frames"] = sum(len(record["audio_codes"][0]) for record in coded)
            summary["stages"] = [
                {**dataclasses.asdict(stage), "share_used": stage.share_used, "perplexity": stage.perplexity}
                for stage in stages
            ]
    return summary


def load_systems(args: argparse.Namespace) -> tuple[list[Callable[[], CodecSystem]], dict[str, str]]:
    r"""Functions that load each system asked for, and the peers that cannot run here with the reason."""
    import speech_tokenizers

    def load_model(name: str, num_quantizers: int | None) -> CodecSystem:
        model, feature_extractor = speech_tokenizers.load(name)
        # Checkpoints of different runs may lie in folders of one name.
        unique = sum(Path(other).name == Path(name).name for other in args.models) == 1
        return ModelSystem(model, feature_extractor, Path(name).name if unique else name, num_quantizers, args.device)

    loaders: list[Callable[[], CodecSystem]] = [RecordingSystem]
    skipped = {}
    for name in args.models:
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


def set_aside_unreadable(clips: list[Clip]) -> tuple[list[Clip], int]:
    r"""The clips that can be read, and how many cannot, each of which is named with the reason."""
    readable = []
    for clip in clips:
        try:
            clip.load()
        except AudioFileError as error:
            print(f"set aside: {error}", file=sys.stderr)
        else:
            readable.append(clip)
    if not readable:
        raise ValueError("No clip can be read.")
    return readable, len(clips) - len(readable)


def compare(args: argparse.Namespace) -> int:
    r"""What `speech-tokenizers evaluate` does; returns the exit code."""
    torch.set_num_threads(args.threads)
    try:
        if not args.models and not args.peers:
            raise ValueError("Name at least one model or one of --peers.")
        args.output.mkdir(parents=True, exist_ok=True)
        clips, unreadable = set_aside_unreadable(read_clips(args.data, args.list, args.transcripts, args.limit))
        loaders, skipped = load_systems(args)
        metrics, missing = build_metrics(args.metrics)
        recognizers: list[Recognizer] = []
        for name in args.recognizer:
            try:
                count_errors("", "a")
                recognizers.append(load_recognizer(name, args.language))
            except MissingPackageError as error:
                skipped[f"error rates by {name}"] = str(error)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    skipped |= missing
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)

    results = ResultsFile(args.output / "results.jsonl")
    chosen = np.linspace(0, len(clips) - 1, min(args.examples, len(clips))).round().astype(int)
    examples = {clips[number].key: f"{number:03d}.wav" for number in chosen}
    summaries = []
    with tqdm(total=len(loaders) * len(clips), unit="clip", disable=None) as progress:
        for load in loaders:
            try:
                system = load()
            except (ValueError, OSError) as error:
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
                return 2
            progress.set_description(system.name)
            folder = args.output / "audio" / hashlib.sha256(system.key.encode()).hexdigest()[:12]
            for clip in clips:
                known = results.get(system, clip)
                open_metrics = [
                    metric
                    for metric in metrics
                    if not (metric.uses_recording and isinstance(system, RecordingSystem))
                    and metric.score_name not in known["scores"]
                    and metric.score_name not in known["failures"]
                ]
                open_recognizers = [
                    recognizer
                    for recognizer in recognizers
                    if recognizer.key not in known["texts"] and "coding_failure" not in known
                ]
                example = folder / examples[clip.key] if clip.key in examples else None
                if example is not None and (example.exists() or "coding_failure" in known):
                    example = None
                if open_metrics or open_recognizers or example is not None or "seconds" not in known:
                    results.append(measure_clip(system, clip, known, open_metrics, open_recognizers, example))
                progress.update()
            summary = summarize(system, clips, results, metrics, recognizers, args.language)
            summary["groups"] = {
                group: summarize(
                    system,
                    [clip for clip in clips if clip.group == group],
                    results,
                    metrics,
                    recognizers,
                    args.language,
                )
                for group in sorted({clip.group for clip in clips})
            }
            summary["audio"] = {
                name: f"audio/{folder.name}/{name}" for name in examples.values() if (folder / name).exists()
            }
            summaries.append(summary)

    packages = (
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
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": {
            "list": args.list.name if args.list else None,
            "num_clips": len(clips),
            "seconds": summaries[0]["seconds"],
            "groups": dict(collections.Counter(clip.group for clip in clips)),
            "key": hashlib.sha256("".join(clip.key for clip in clips).encode()).hexdigest()[:16],
        },
        "settings": {"threads": args.threads, "device": args.device, "dnsmos_windows": DNSMOS_WINDOWS},
        "recognizers": [recognizer.name for recognizer in recognizers],
        "titles": {metric.score_name: metric.title for metric in metrics},
        "higher_is_better": {metric.score_name: metric.higher_is_better for metric in metrics},
        "versions": {name: version for name in packages if (version := installed_version(name))},
        "skipped": skipped,
        "systems": summaries,
    }
    written = write_reports(report, args.output, {examples[clip.key]: clip for clip in clips if clip.key in examples})
    print((args.output / "results.md").read_text(encoding="utf-8"))
    print("written: " + ", ".join(str(path) for path in written))
    return int(unreadable > 0)


def installed_version(package: str) -> str | None:
    r"""Version of an installed distribution, or `None`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
