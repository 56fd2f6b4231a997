# SPDX-License-Identifier: Apache-2.0
"""
Codecs that differ in one choice of their training, the arms of an ablation, compared with one of them.

Every score is compared clip by clip, so that what makes a clip hard for all arms does not widen the interval of their
difference.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from speech_tokenizers.coding.loading import load
from speech_tokenizers.evaluation.bootstrap import paired_difference, ratio
from speech_tokenizers.evaluation.clip_results import ClipCounts
from speech_tokenizers.evaluation.codec_systems import ModelSystem
from speech_tokenizers.evaluation.frame_labels import read_labels
from speech_tokenizers.evaluation.reconstruction.comparison import CodecComparison, RecordingSystem
from speech_tokenizers.evaluation.reconstruction.frame_probe import (
    ProbeResult,
    held_out_speakers,
    macro_f1,
    probe_system,
)
from speech_tokenizers.processing.audio_files import load_audio
from speech_tokenizers.processing.metadata_files import by_file_name
from speech_tokenizers.processing.metadata_folders import read_folder_metadata
from speech_tokenizers.processing.timed_labels import TimedLabel
from speech_tokenizers.processing.whole_files import write_whole


# Raise it when the frame probe changes: earlier results are then computed anew.
PROBE_VERSION = 1

PROBE_TITLES = {
    "macro_f1[linear]": "macro F1 % (linear)",
    "accuracy[linear]": "accuracy % (linear)",
    "macro_f1[majority]": "macro F1 % (commonest label of a code)",
    "accuracy[majority]": "accuracy % (commonest label of a code)",
    "macro_f1[linear, shuffled]": "macro F1 % (linear, labels shuffled)",
    "accuracy[linear, shuffled]": "accuracy % (linear, labels shuffled)",
}


@dataclasses.dataclass(frozen=True)
class TrainedArm:
    """
    One codec of an ablation.

    Args:
        name (`str`): Name of the arm.
        seed (`int`): Seed of the arm's training.
        folder (`Path`): Folder of the trained codec.
        cost (`dict` of `str` to `float`): Cost of the training, where known: `steps`; `seconds_per_step` during the
            training; `seconds_in_turn` and `cpu_seconds_in_turn` of a step when the arms took their steps in turn;
            `peak_memory_gb` and `peak_gpu_memory_gb`.
    """

    name: str
    seed: int
    folder: Path
    cost: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FrameLabels:
    """
    Labelled recordings for the frame probe.

    Args:
        folder (`Path`): Folder of the recordings.
        labels (`dict` of `str` to sequence of [`TimedLabel`]): Labels of each recording, by its path in `folder`.
        held_out (`set` of `str`): Paths of the recordings that are classified. The probe learns from the others.
        description (`str`): Description of what was held out, in words.
    """

    folder: Path
    labels: dict[str, list[TimedLabel]]
    held_out: set[str]
    description: str

    @property
    def key(self) -> str:
        """Hash of the labels and of what is held out."""
        content = json.dumps([PROBE_VERSION, self.labels, sorted(self.held_out)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_frame_labels(path: Path, folder: Path, held_out: str | None = None) -> FrameLabels:
    """
    Args:
        path (`Path`): File of labels; see [`read_labels`].
        folder (`Path`): Folder of the recordings, with metadata that name each recording's speaker.
        held_out (`str`, *optional*): Condition `COLUMN=VALUE` on the metadata. Recordings with this value are held
            out. Defaults to a quarter of the speakers (column `speaker`).

    Raises:
        ValueError: If a labelled recording is missing, there or in the metadata, or a column, or if a speaker would be
            on both sides.
    """
    labels = read_labels(path)
    metadata = by_file_name(read_folder_metadata(folder))
    if not metadata:
        raise ValueError(
            f"{folder / 'metadata.jsonl'} is missing; the frame probe needs to know who speaks (column `speaker`)."
        )
    labelled = {PurePosixPath(name).as_posix(): name for name in labels}
    rows = {labelled[name]: fields for name, (_, fields) in metadata.items() if name in labelled}
    column, _, value = (held_out or "").partition("=")
    for needed in ("speaker", column):
        lacking = [name for name in labels if needed and rows.get(name, {}).get(needed) is None]
        if lacking:
            raise ValueError(
                f"the metadata of {folder} have no `{needed}` for {len(lacking)} labelled recordings, as {lacking[0]}."
            )
    if absent := [name for name in labels if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {len(absent)} labelled recordings, such as {absent[0]}.")
    speakers = {name: str(row["speaker"]) for name, row in rows.items()}
    if held_out is None:
        chosen = held_out_speakers(list(speakers.values()))
        names = {name for name in labels if speakers[name] in chosen}
        description = f"a quarter of the speakers ({len(chosen)})"
    else:
        names = {name for name in labels if str(rows[name][column]) == value}
        if not names or len(names) == len(labels):
            raise ValueError(f"`{held_out}` holds out {len(names)} of {len(labels)} labelled recordings.")
        description = f"recordings with {held_out}"
        both = {speakers[name] for name in names} & {speakers[name] for name in set(labels) - names}
        if both:
            raise ValueError(f"`{held_out}` leaves {len(both)} speakers on both sides, e.g. {sorted(both)[0]}.")
    return FrameLabels(folder, labels, names, description)


def pool(tables: Sequence[ClipCounts]) -> ClipCounts:
    """The counts of several seeds added up clip by clip, for the clips that all of them have."""
    names = [name for name in tables[0].counts if all(name in table.counts for table in tables)]
    summed = np.sum([table.table(names) for table in tables], axis=0) if names else []
    failures = sum((table.failures for table in tables), start=type(tables[0].failures)())
    return ClipCounts(tables[0].statistic, dict(zip(names, map(list, summed), strict=True)), failures)


def compare_scores(
    arms: Mapping[str, Sequence[Mapping[str, ClipCounts]]], baseline: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """
    Estimate every score of every arm, and its difference from the baseline's on the clips that both have.

    Args:
        arms (mapping of `str` to sequence of mappings): Scores of each arm: for each seed a mapping from a score's
            name to its counts.
        baseline (`str`): Name of the arm that the others are compared with.

    Returns:
        `dict`: Entries of each arm and score: `estimate` and `difference` (each with `value`, `low`, `high`,
        `num_clips`, or `None`), `seeds` (the value of each seed) and `failed` (clips without a score).
    """
    pooled = {
        arm: {
            name: pool([scores[name] for scores in seeds])
            for name in seeds[0]
            if all(name in scores for scores in seeds)
        }
        for arm, seeds in arms.items()
    }
    compared: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, scores in pooled.items():
        compared[arm] = {}
        for name, score in scores.items():
            difference = None
            if arm != baseline and name in pooled[baseline]:
                other = pooled[baseline][name]
                shared = [clip for clip in score.counts if clip in other.counts]
                if shared:
                    difference = paired_difference(score.table(shared), other.table(shared), score.statistic)
            estimates = [scores_of_seed[name].estimate() for scores_of_seed in arms[arm]]
            compared[arm][name] = {
                "estimate": _plain(score.estimate()),
                "difference": _plain(difference),
                "seeds": [None if estimate is None else estimate.value for estimate in estimates],
                "failed": sum(score.failures.values()),
            }
    return compared


def compare_arms(
    arms: Sequence[TrainedArm],
    comparison: CodecComparison,
    baseline: str,
    num_quantizers: Sequence[int | None] = (None, 1),
    frame_labels: FrameLabels | None = None,
    stages: Sequence[tuple[int, int]] = ((1, 1),),
    device: str = "cpu",
) -> dict[str, Any]:
    """
    Measure every arm, with all its codebooks and with fewer, and compare each with the baseline.

    Args:
        arms (sequence of [`TrainedArm`]): Codecs to compare. Arms of one name and several seeds are pooled.
        comparison ([`CodecComparison`]): Clips and what to measure on them. It does not measure again what it has
            measured before.
        baseline (`str`): Name of the arm that the others are compared with.
        num_quantizers (sequence of `int` or `None`, *optional*): Numbers of codebooks to decode from. `None` stands
            for all.
        frame_labels ([`FrameLabels`], *optional*): Labelled recordings of the frame probe. Without them there is no
            frame probe.
        stages (sequence of `tuple`, *optional*): Ranges of codebooks that are probed: the first and the last of each,
            counted from 1.
        device (`str`, *optional*): Device that models run on.

    Returns:
        `dict`: Plain JSON values for `write_arm_reports`.
    """
    names = list(dict.fromkeys(arm.name for arm in arms))
    views = {count: "all codebooks" if count is None else f"the first {count} codebooks" for count in num_quantizers}
    views = {count: "the first codebook alone" if count == 1 else title for count, title in views.items()}
    scores: dict[str, dict[str, list[dict[str, ClipCounts]]]] = {
        title: {name: [] for name in names} for title in views.values()
    }
    summaries: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    probed: dict[str, dict[str, list[dict[str, ClipCounts]]]] = {}
    num_probed = {}
    audio: dict[str, dict[str, str]] = {}
    total = (len(arms) * len(views) + 1) * len(comparison.clips)
    with tqdm(total=total, unit="clip", disable=None, desc="recording") as progress:
        recording = RecordingSystem()
        audio["recording"] = comparison.measure(recording, progress)["audio"]
        for arm in arms:
            model, feature_extractor = load(arm.folder)
            name = f"{arm.name}, seed {arm.seed}"
            for count, title in views.items():
                system = ModelSystem(model, feature_extractor, name, count, device)
                progress.set_description(system.name)
                summary = comparison.measure(system, progress)
                audio[system.name] = summary["audio"]
                scores[title][arm.name].append(comparison.scores(system))
                if count is None:
                    summaries[arm.name].append(summary)
            if frame_labels is not None:
                system = ModelSystem(model, feature_extractor, name, None, device)
                for (first, last), result in probe_arm(system, frame_labels, stages, comparison.output).items():
                    title = f"codebook {first}" if first == last else f"codebooks {first} to {last}"
                    of_arms = probed.setdefault(title, {name: [] for name in names})
                    of_arms[arm.name].append(result.scores)
                    num_probed = {
                        "num_labels": len(result.labels), "num_train": result.num_train, "num_test": result.num_test
                    }  # fmt: skip

    return {
        **comparison.describe(),
        "baseline": baseline,
        "arms": {
            name: {
                "seeds": [arm.seed for arm in arms if arm.name == name],
                "perplexities": _mean_perplexities(summaries[name]),
                "kbps_entropy": [summary["kbps_entropy"] for summary in summaries[name] if "kbps_entropy" in summary],
                "cost": _mean_cost([arm.cost for arm in arms if arm.name == name]),
            }
            for name in names
        },
        "recording": {name: _plain(score.estimate()) for name, score in comparison.scores(recording).items()},
        "decoded": {title: compare_scores(of_arms, baseline) for title, of_arms in scores.items()},
        "probe": {
            "held_out": None if frame_labels is None else frame_labels.description,
            **num_probed,
            "titles": PROBE_TITLES,
            "stages": {title: compare_scores(of_arms, baseline) for title, of_arms in probed.items()},
        },
        "audio": audio,
    }


def probe_arm(
    system: ModelSystem, frame_labels: FrameLabels, stages: Sequence[tuple[int, int]], output: Path
) -> dict[tuple[int, int], ProbeResult]:
    """The frame probe of one codec, from `output` where it is known there."""
    folder = output / "probe"
    folder.mkdir(parents=True, exist_ok=True)

    def path(first: int, last: int) -> Path:
        key = f"{system.key} {frame_labels.key} {first} {last}"
        return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    results = {part: _load_probe(path(*part)) for part in stages if path(*part).is_file()}
    if missing := [part for part in stages if part not in results]:

        def load(name: str) -> np.ndarray:
            return load_audio(frame_labels.folder / name, system.sampling_rate)

        with tqdm(total=len(frame_labels.labels), unit="clip", disable=None, desc=f"{system.name}, probe") as progress:
            found = probe_system(
                system, load, frame_labels.labels, frame_labels.held_out, missing, on_progress=progress.update
            )
        for part, result in found.items():
            counts = {name: score.counts for name, score in result.scores.items()}
            content = {**dataclasses.asdict(dataclasses.replace(result, scores={})), "counts": counts}
            write_whole(path(*part), json.dumps(content) + "\n")
        results |= found
    return {part: results[part] for part in stages}


def _load_probe(path: Path) -> ProbeResult:
    content = json.loads(path.read_text(encoding="utf-8"))
    statistics: dict[str, Callable] = {"accuracy": ratio, "macro_f1": macro_f1}
    scores = {
        name: ClipCounts(statistics[name.partition("[")[0]], counts) for name, counts in content.pop("counts").items()
    }
    return ProbeResult(**{**content, "scores": scores})


def _plain(estimate: Any) -> dict[str, Any] | None:
    return None if estimate is None else dataclasses.asdict(estimate)


def _mean_perplexities(summaries: Sequence[Mapping[str, Any]]) -> list[float]:
    of_seeds = [[stage["perplexity"] for stage in summary["stages"]] for summary in summaries if "stages" in summary]
    return np.mean(of_seeds, axis=0).tolist() if of_seeds else []


def _mean_cost(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    shared = [name for name in costs[0] if all(name in cost for cost in costs)]
    return {name: float(np.mean([cost[name] for cost in costs])) for name in shared}
