# SPDX-License-Identifier: Apache-2.0
"""Measure units of several models over the same clips, keep each result, and sum them up."""

import argparse
import dataclasses
import datetime
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging

from speech_tokenizers.coding.loading import find_checkpoint, load
from speech_tokenizers.evaluation.clip_results import ResultsFile
from speech_tokenizers.evaluation.clips import Clip, check_limit
from speech_tokenizers.evaluation.codec_systems import EncodingSystem
from speech_tokenizers.evaluation.frame_labels import read_labels
from speech_tokenizers.evaluation.recognition import check_language
from speech_tokenizers.evaluation.reconstruction.comparison import installed_version
from speech_tokenizers.evaluation.stopwatch import Stopwatch
from speech_tokenizers.evaluation.units.encoded_clips import (
    UNITS_VERSION,
    EncodedClips,
    EncodingFailure,
    Measured,
    SpokenClips,
    UnitSettings,
    without_stress,
)
from speech_tokenizers.evaluation.units.latency import measure_streaming
from speech_tokenizers.evaluation.units.measures import (
    measure_abx,
    measure_agreement,
    measure_characters,
    measure_ngrams,
    measure_rate,
    measure_robustness,
    measure_usage,
)
from speech_tokenizers.evaluation.units.probes import measure_probes
from speech_tokenizers.evaluation.units.report import build_report
from speech_tokenizers.evaluation.units.resynthesis import measure_resynthesis
from speech_tokenizers.modeling.model_names import find_model
from speech_tokenizers.processing.recordings import load_recordings, parse_filter, recording_name


@dataclasses.dataclass(frozen=True)
class Measure:
    """
    One of the things that `--measures` chooses.

    Args:
        run (`Callable`): Function that makes a [`Measured`] from [`EncodedClips`] and [`UnitSettings`].
        needs_features (`bool`): Whether it needs what was quantized, which the model gives and the results file does
            not.
        needs (sequence of `str`): Fields of [`SpokenClips`] without which there is nothing to measure.
        settings (sequence of `str`): Fields and properties of [`UnitSettings`], beside the seed, that change its
            result.
        needs_settings (sequence of `str`): Names out of `settings` that must be given.
    """

    run: Callable[[EncodedClips, UnitSettings], Measured]
    needs_features: bool = False
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    needs_settings: tuple[str, ...] = ()


MEASURES: dict[str, Measure] = {
    "agreement": Measure(measure_agreement, needs=("phones",)),
    "characters": Measure(measure_characters, needs=("characters",)),
    "abx": Measure(measure_abx, True, ("phones", "speakers"), ("abx_context", "abx_tokens")),
    "robustness": Measure(measure_robustness, settings=("robustness_clips", "perturbation_keys")),
    "streaming": Measure(measure_streaming, settings=("robustness_clips",)),
    "rate": Measure(measure_rate),
    "usage": Measure(measure_usage),
    "ngrams": Measure(measure_ngrams),
    "probes": Measure(measure_probes, True, ("speakers",), ("probe_frames",)),
    "resynthesis": Measure(
        measure_resynthesis,
        needs_settings=("recognizer",),
        settings=("recognizer", "language", "voice", "resynthesis_clips"),
    ),
}
"""What the command measures, in the order of its tables."""

REQUIREMENTS = {
    "phones": "phones and their times (--labels)",
    "characters": "characters and their times (--character-labels)",
    "speakers": "a column `speaker` in the metadata",
    "recognizer": "a recogniser (--recognizer)",
}


def read_spoken_clips(
    path: str,
    filter_by: Mapping[str, Any],
    file_list: str | None = None,
    limit: int | None = None,
    labels: Path | None = None,
    character_labels: Path | None = None,
    seed: int = 0,
) -> SpokenClips:
    """
    Args:
        path (`str`), filter_by (mapping), file_list (`str`, *optional*): Arguments of
            [`~processing.recordings.load_recordings`]; the recordings are files.
        limit (`int`, *optional*): Number of recordings to draw, at least 1. Defaults to all.
        labels, character_labels (`Path`, *optional*): Files of phones and characters; see
            [`~evaluation.frame_labels.read_labels`]. Stress digits of phones are left out.
        seed (`int`, *optional*, defaults to 0): Seed for the draw.

    Raises:
        ValueError: If `limit` leaves no recording, there is none, or none of them has labels.
    """
    check_limit(limit)
    recordings = load_recordings(path, dict(filter_by), file_list, unique_names=True)
    chosen = range(len(recordings))
    if limit is not None and limit < len(recordings):
        chosen = np.sort(np.random.default_rng(seed).choice(len(recordings), limit, replace=False)).tolist()
    clips, speakers, genders = [], [], []
    for number in chosen:
        row = recordings[number]
        audio = row["audio"] if isinstance(row["audio"], dict) else {"path": row["audio"]}
        file = Path(audio.get("path") or "") if isinstance(audio.get("path"), str | None) else Path()
        if not file.is_file():
            raise ValueError(f"`{path}` lists {recording_name(row, number)}, which is no file.")
        key = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        clips.append(Clip(recording_name(row, number), file, key, row.get("text")))
        speakers.append(None if row.get("speaker") is None else str(row["speaker"]))
        genders.append(None if row.get("gender") is None else str(row["gender"]))
    found = []
    for source in (labels, character_labels):
        of_clips = None if source is None else read_labels(source)
        if of_clips is not None and not any(of_clips.get(clip.name) for clip in clips):
            raise ValueError(f"{source} has no labels of these recordings, such as {clips[0].name}.")
        found.append(of_clips)
    phones, characters = found
    return SpokenClips(clips, speakers, genders, None if phones is None else without_stress(phones), characters)


def usable_measures(
    names: Iterable[str], data: SpokenClips, settings: UnitSettings
) -> tuple[list[str], dict[str, str]]:
    """Those of the measures that the data and the settings permit, and for each other one, what it lacks."""
    usable, skipped = [], {}
    for name in names:
        measure = MEASURES[name]
        lacking = [need for need in measure.needs if not any(getattr(data, need) or ())]
        lacking += [need for need in measure.needs_settings if getattr(settings, need) is None]
        if lacking:
            skipped[name] = f"it needs {' and '.join(REQUIREMENTS[need] for need in lacking)}"
        else:
            usable.append(name)
    return usable, skipped


@dataclasses.dataclass
class UnitComparison:
    """
    Clips, what to measure on them, and the folder in which results are kept. A later comparison with the same folder
    reuses its results.

    Args:
        data ([`SpokenClips`]): Clips to measure on.
        measures (`list` of `str`): Names in `MEASURES`.
        settings ([`UnitSettings`]): Amount of what is measured.
        output (`Path`): Folder for results: a file for each system. The codes of every clip and every measure are
            added to it as soon as they are known.
    """

    data: SpokenClips
    measures: list[str]
    settings: UnitSettings
    output: Path

    def measure(self, system: EncodingSystem) -> dict[str, Any]:
        """
        Measure what is not yet known of a system.

        Returns:
            `dict`: Description of the system, and its `scores`, `failures`, `details` and `seconds`, as plain JSON
            values. `seconds` is the time that computing each measure took.
        """
        folder = self.output / "systems"
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(system.key.encode()).hexdigest()[:16]
        results = ResultsFile(folder / f"{name}.jsonl", UNITS_VERSION)
        unknown = [name for name in self.measures if self._record(results, system, name) is None]
        summary = {**describe_system(system), "scores": {}, "failures": {}, "details": {}, "seconds": {}}
        with tqdm(total=len(self.data.clips), desc=system.name, unit="clip", disable=None) as progress:
            encoded = EncodedClips(system, self.data, results, progress.update)
            try:
                encoded.encode(any(MEASURES[name].needs_features for name in unknown))
                summary["seconds"]["encoding"] = encoded.seconds
                for name in self.measures:
                    progress.set_postfix_str(name)
                    record = self._record(results, system, name) or self._compute(name, encoded)
                    for field in ("scores", "failures", "details"):
                        summary[field] |= record[field]
                    summary["seconds"][name] = record["seconds"]
            except EncodingFailure as failure:
                summary["failures"]["encoding"] = {str(failure): []}
        summary["num_quantizers"] = len(encoded.codes[0]) if encoded.codes else 0
        summary["num_clips"] = len(encoded.codes)
        summary["encoding_failures"] = encoded.failures
        return summary

    def _record(self, results: ResultsFile, system: EncodingSystem, name: str) -> dict[str, Any] | None:
        return results.records.get((system.key, self._measure_key(name)))

    def _measure_key(self, name: str) -> str:
        settings = {field: getattr(self.settings, field) for field in ("seed", *MEASURES[name].settings)}
        return f"{name} {self.data.key} {json.dumps(settings, sort_keys=True)}"

    def _compute(self, name: str, encoded: EncodedClips) -> dict[str, Any]:
        with Stopwatch() as watch:
            try:
                measured = MEASURES[name].run(encoded, self.settings)
            except ValueError as error:
                measured = Measured(failures={name: {" ".join(str(error).split()): []}})
        record = {
            "version": UNITS_VERSION,
            "system_key": encoded.system.key,
            "clip_key": self._measure_key(name),
            **dataclasses.asdict(measured),
            "seconds": watch.seconds,
        }
        encoded.results.append(record)
        return json.loads(json.dumps(record))


def describe_system(system: EncodingSystem) -> dict[str, Any]:
    """Facts about a system that tables and plots show besides its scores."""
    config = system.model.config
    encoder = getattr(config, "encoder_config", None)
    layers = list(getattr(config, "layers", None) or ())
    family = system.model.family if encoder is None else f"{encoder.model_type} {encoder.hidden_size}"
    return {
        "system": system.name,
        "system_key": system.key,
        "family": family,
        "layers": layers,
        "codebook_size": system.codebook_size,
        "frame_rate": system.frame_rate,
        "sampling_rate": system.sampling_rate,
    }


def named_models(models: Iterable[str], systems: Iterable[str]) -> dict[str, str]:
    """
    Models by the names that tables show. A name is given as `NAME=MODEL`; otherwise it is that of the model's folder.

    Raises:
        ValueError: If there is none, or two have one name.
    """
    pairs = [(Path(model).name, model) for model in models]
    for system in systems:
        name, equals, model = system.partition("=")
        if not equals or not name or not model:
            raise ValueError(f"--systems takes NAME=MODEL, but got {system!r}.")
        pairs.append((name, model))
    if not pairs:
        raise ValueError("Name at least one model or one of --systems.")
    names = [name for name, _ in pairs]
    if double := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Two models are named {double[0]}; tell them apart by --systems NAME=MODEL.")
    return dict(pairs)


PACKAGES = ("speech-tokenizers", "torch", "transformers", "numpy", "scipy")


def compare(args: argparse.Namespace) -> int:
    """Compare units, as `speech-tokenizers evaluate units` does; returns the exit code."""

    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    settings = UnitSettings(
        seed=args.seed,
        robustness_clips=args.robustness_clips,
        perturbations=args.perturbations,
        noise_folder=args.noise,
        abx_context=args.abx_context,
        abx_tokens=args.abx_tokens,
        recognizer=args.recognizer,
        language=args.language,
        voice=args.voice,
        resynthesis_clips=args.resynthesis_clips,
        probe_frames=args.probe_frames,
    )
    check_language(args.language)
    summaries = []
    models = named_models(args.models, args.systems)
    if args.recognizer is not None:
        find_model(args.recognizer, argument="--recognizer")  # a missing one is told of before any work
    data = read_spoken_clips(
        args.data, parse_filter(args.filter), args.list, args.limit, args.labels, args.character_labels, args.seed
    )
    measures, skipped = usable_measures(args.measures, data, settings)
    settings.chosen_perturbations()  # a folder without noise is told of before any work
    for model in models.values():
        find_checkpoint(model)  # a missing one is told of, too
    args.output.mkdir(parents=True, exist_ok=True)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    comparison = UnitComparison(data, measures, settings, args.output)
    for name, model in models.items():
        system = EncodingSystem(*load(model), name, args.num_quantizers, args.device)
        summaries.append(comparison.measure(system))

    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": describe_data(data),
        "settings": {**dataclasses.asdict(settings), "device": args.device, "threads": args.threads},
        "measures": measures,
        "skipped": skipped,
        "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
        "systems": summaries,
    }
    report = build_report(results)
    written = report.write(args.output, "units")
    print(report.markdown())
    print("written: " + ", ".join(str(path) for path in written))
    return int(any(summary["encoding_failures"] for summary in summaries))


def describe_data(data: SpokenClips) -> dict[str, Any]:
    """Facts about the clips that tables show, as plain JSON values."""
    return {
        "num_clips": len(data.clips),
        "num_speakers": len(set(data.speakers) - {None}),
        "num_labelled": sum(bool((data.phones or {}).get(clip.name)) for clip in data.clips),
        "key": data.key,
    }
