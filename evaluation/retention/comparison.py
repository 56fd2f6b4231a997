# SPDX-License-Identifier: Apache-2.0
"""Measure what tokenizers retain of each frequency, over the same clips, and sum it up."""

import argparse
import collections
import dataclasses
import datetime
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging

from speech_tokenizers.evaluation.clip_results import ResultsFile
from speech_tokenizers.evaluation.clips import Clip, read_clips, set_aside_unreadable
from speech_tokenizers.evaluation.codec_systems import CodecSystem, CodedClip
from speech_tokenizers.evaluation.peers import DecodedFiles, estimate_delay, fit_length, resample
from speech_tokenizers.evaluation.reconstruction.comparison import installed_version, load_systems
from speech_tokenizers.evaluation.retention.report import build_report
from speech_tokenizers.evaluation.retention.transfer import (
    QUANTITIES,
    audible_bins,
    curve_cells,
    estimate_retention,
    frequency_ranges,
    pack_table,
    retention_counts,
    sum_spectra,
    unpack_table,
)
from speech_tokenizers.processing.audio_files import AudioReader, load_audio
from speech_tokenizers.processing.metadata_files import by_file_name
from speech_tokenizers.processing.metadata_folders import read_folder_metadata


# Raise it when what is kept of a clip changes: earlier results are then measured anew.
RETENTION_VERSION = 2
PACKAGES = ("speech-tokenizers", "torch", "transformers", "numpy", "soxr")


class ResamplingAlone:
    """
    No tokenizer: a recording is resampled to a rate and back. Every tokenizer at this rate loses at least what this
    loses.

    Args:
        sampling_rate (`int`): Rate that recordings are brought to, in Hz.
    """

    codebook_size: int | None = None
    frame_rate: float | None = None

    def __init__(self, sampling_rate: int):
        self.sampling_rate = sampling_rate
        self.name = f"none, {sampling_rate / 1000:g} kHz"
        self.key = f"resampling-{sampling_rate}-soxr-{installed_version('soxr')}"

    def code(self, audio: np.ndarray) -> CodedClip:
        return CodedClip(audio)


def window_samples(milliseconds: float, sampling_rate: int) -> int:
    """Length of a window in samples."""
    return round(milliseconds * sampling_rate / 1000)


def measure_clip(system: CodecSystem, clip: Clip, sampling_rate: int, windows: Sequence[float]) -> dict[str, Any]:
    """
    Code one clip of an original sampling rate.

    Args:
        sampling_rate (`int`): Original sampling rate, in Hz.
        windows (sequence of `float`): Lengths of the analysis windows, in ms.

    Returns:
        `dict`: The clip's contribution to the pooled spectra for each window, or under `failure` the reason why there
        is none.
    """
    recorded = load_audio(clip.path, sampling_rate)
    with AudioReader(clip.path, sampling_rate) as reader:
        file_sampling_rate = reader.file_sampling_rate
    record: dict[str, Any] = {"seconds": len(recorded) / sampling_rate, "tables": {}, "num_windows": {}}
    try:
        coded = system.code(resample(recorded, sampling_rate, system.sampling_rate))
    except (RuntimeError, ValueError) as error:
        return {**record, "failure": " ".join(str(error).split()) or type(error).__name__}
    decoded = fit_length(resample(coded.audio_values, system.sampling_rate, sampling_rate), len(recorded))
    delay = estimate_delay(decoded, recorded, sampling_rate // 20)
    record["residual_delay_seconds"] = delay / sampling_rate
    record["correlation"] = shifted_correlation(decoded, recorded, delay)
    power = float(np.mean(np.square(recorded, dtype=np.float64)))
    for milliseconds in windows:
        spectra = sum_spectra(recorded, decoded, window_samples(milliseconds, sampling_rate))
        audible = audible_bins(spectra, sampling_rate, file_sampling_rate)
        record["tables"][f"{milliseconds:g}"] = pack_table(retention_counts(spectra, power, audible))
        record["num_windows"][f"{milliseconds:g}"] = spectra.num_windows
    return record


def shifted_correlation(decoded: np.ndarray, recorded: np.ndarray, delay: int) -> float:
    """
    Correlation of two waveforms of shape `(num_samples,)`, of which the first lags by `delay` samples; without it, a
    lag is that of waveforms that have nothing to do with each other. 0 where one is silent.
    """
    count = len(recorded) - abs(delay)
    late, early = decoded[max(0, delay) :][:count], recorded[max(0, -delay) :][:count]
    norms = float(np.linalg.norm(late.astype(np.float64)) * np.linalg.norm(early.astype(np.float64)))
    return float(np.dot(late.astype(np.float64), early.astype(np.float64)) / norms) if norms > 0 else 0.0


@dataclasses.dataclass
class RetentionComparison:
    """
    Clips, and the folder in which results are kept. A later comparison with the same folder reuses its results.

    Args:
        clips (`list` of [`Clip`]): Readable recordings.
        clusters (`list` of `int`): Number of the group that each clip belongs to. The bootstrap redraws whole groups.
        rates (`list` of `int`): Original sampling rates, in Hz.
        windows (`list` of `float`): Lengths of the analysis windows in ms. Curves are made with the first.
        output (`Path`): Folder for results: a file for each system. Every clip is added to it as soon as it is known.
    """

    clips: list[Clip]
    clusters: list[int]
    rates: list[int]
    windows: list[float]
    output: Path

    def measure(self, system: CodecSystem, progress: tqdm) -> dict[str, Any]:
        """
        Measure what is not yet known of a system.

        Returns:
            `dict`: Quantities of each range of frequencies, for each original rate and window. The first window also
            has curves. All are plain JSON values.
        """
        folder = self.output / "systems"
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(system.key.encode()).hexdigest()[:16]
        results = ResultsFile(folder / f"{name}.jsonl", RETENTION_VERSION)
        summary: dict[str, Any] = {
            "system": system.name,
            "system_key": system.key,
            "sampling_rate": system.sampling_rate,
            "rates": {},
            "failures": {},
        }
        for rate in self.rates:
            records = []
            for clip in self.clips:
                # Other windows of a clip are other results, since the decoded clip is not kept.
                key = f"{clip.key} {rate} {' '.join(f'{window:g}' for window in self.windows)}"
                record = results.records.get((system.key, key))
                if record is None:
                    record = {
                        "version": RETENTION_VERSION,
                        "system": system.name,
                        "system_key": system.key,
                        "clip": clip.name,
                        "clip_key": key,
                        **measure_clip(system, clip, rate, self.windows),
                    }
                    results.append(record)
                records.append(record)
                progress.update()
            failures = collections.Counter(record["failure"] for record in records if "failure" in record)
            if failures:
                summary["failures"][str(rate)] = dict(failures)
            summary["rates"][str(rate)] = self._summarize(records, rate)
        return summary

    def _summarize(self, records: list[dict[str, Any]], rate: int) -> dict[str, Any] | None:
        coded = [number for number, record in enumerate(records) if "failure" not in record]
        if not coded:
            return None
        clusters = [self.clusters[number] for number in coded]
        records = [records[number] for number in coded]
        delays = [record["residual_delay_seconds"] for record in records]
        summary: dict[str, Any] = {
            "num_clips": len(records),
            "seconds": sum(record["seconds"] for record in records),
            "residual_delay_ms": 1000 * float(np.median(delays)),
            "correlation": float(np.median([record["correlation"] for record in records])),
            "windows": {},
        }
        for window in self.windows:
            name = f"{window:g}"
            tables = np.stack([unpack_table(record["tables"][name]) for record in records])

            def estimate(quantity: str, low: float, high: float, tables: np.ndarray = tables) -> dict | None:
                found = estimate_retention(tables, quantity, low, high, rate, clusters)
                return None if found is None else dataclasses.asdict(found)

            summary["windows"][name] = {
                "num_windows": sum(record["num_windows"][name] for record in records),
                "samples": window_samples(window, rate),
                "scores": {
                    quantity: {title: estimate(quantity, *ends) for title, ends in frequency_ranges(rate).items()}
                    for quantity in QUANTITIES
                },
            }
            if "curves" not in summary:
                cells = curve_cells(rate)
                summary["curves"] = {"frequencies": [(low + high) / 2 for low, high in cells]}
                summary["curves"] |= {
                    quantity: [estimate(quantity, *cell) for cell in cells] for quantity in QUANTITIES
                }
        return summary


def speakers_of(clips: Sequence[Clip], folder: Path) -> list[int]:
    """
    A number for the speaker of each clip, from the column `speaker` of the metadata in `folder`.

    Raises:
        ValueError: If a clip has none there.
    """
    speakers = {
        name: fields.get("speaker") for name, (_, fields) in by_file_name(read_folder_metadata(folder)).items()
    }
    lacking = [clip.name for clip in clips if speakers.get(clip.name) is None]
    if lacking:
        raise ValueError(f"the metadata of {folder} names no speaker of {lacking[0]}; use --resample clips.")
    names = [str(speakers[clip.name]) for clip in clips]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def compare(args: argparse.Namespace) -> int:
    """Compare tokenizers, as `speech-tokenizers evaluate retention` does; returns the exit code."""
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    summaries: list[dict[str, Any]] = []
    if not args.models and not args.peers:
        raise ValueError("Name at least one model or one of --peers.")
    for option, values, least in (("--rates", args.rates, 2000), ("--windows", args.windows, 1.0)):
        if min(values) < least or len(set(values)) < len(values):
            raise ValueError(f"{option} takes different numbers of at least {least:g}, but got {values}.")
    loaders, skipped = load_systems(args)
    loaders = loaders[1:]  # the recording itself is the first
    args.output.mkdir(parents=True, exist_ok=True)
    clips, num_unreadable = set_aside_unreadable(read_clips(args.data, args.list, None, args.limit, args.pattern))
    clusters = speakers_of(clips, args.data) if args.resample == "speakers" else list(range(len(clips)))
    comparison = RetentionComparison(clips, clusters, args.rates, args.windows, args.output)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    num_coded = len(clips) * len(args.rates)
    with tqdm(total=len(loaders) * num_coded, unit="clip", disable=None) as progress:
        for load in loaders:
            system = load()
            if isinstance(system, DecodedFiles):
                raise ValueError(f"{system.name} is known by files of one rate; other rates need the codec itself.")
            progress.set_description(system.name)
            summaries.append(comparison.measure(system, progress))
        for rate in sorted({summary["sampling_rate"] for summary in summaries}, reverse=True):
            progress.set_description("resampling")
            progress.reset(num_coded)
            summaries.insert(0, comparison.measure(ResamplingAlone(rate), progress))
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": {
            "list": args.list.name if args.list else None,
            "num_clips": len(clips),
            "num_speakers": len(set(clusters)) if args.resample == "speakers" else None,
            "groups": dict(collections.Counter(clip.group for clip in clips)),
            "key": hashlib.sha256("".join(clip.key for clip in clips).encode()).hexdigest()[:16],
        },
        "settings": {"rates": args.rates, "windows": args.windows, "resample": args.resample, "device": args.device},
        "skipped": skipped,
        "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
        "systems": summaries,
    }
    report = build_report(results)
    written = report.write(args.output, "retention")
    print(report.markdown())
    print("written: " + ", ".join(str(path) for path in written))
    return int(num_unreadable > 0)
