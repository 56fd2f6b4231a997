# SPDX-License-Identifier: Apache-2.0
"""The clips of a task as its systems hear them: chosen, trimmed, in noise; what is changed is written once."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from tqdm import tqdm

from speech_tokenizers.evaluation.units.perturbations import Noise, NoiseColour, perturb
from speech_tokenizers.modeling.speech_lm_tasks import find_task
from speech_tokenizers.processing.audio_files import AudioReader, AudioWriter, load_audio
from speech_tokenizers.processing.metadata_files import MetadataRow
from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint
from speech_tokenizers.processing.recording_tables import from_metadata
from speech_tokenizers.processing.task_manifests import TaskClip, read_manifest
from speech_tokenizers.training.common.set_aside import write_set_aside
from speech_tokenizers.training.studies.token_study.arguments import TaskArguments, TokenStudyArguments


# Rate of clips that are written, in Hz.
SAMPLING_RATE = 16000
# Of all clips of a task, that may be set aside.
LARGEST_SHARE_SET_ASIDE = 0.05
# All seeds of a study hear the same noise.
_NOISE_SEED = 0
# Of trimming: stretches whose power is compared, what is silence below the loudest of them, and what is kept of it.
_FRAME_SECONDS, _SILENCE_DECIBELS, _KEPT_SECONDS = 0.02, 30.0, 0.05


@dataclass(frozen=True)
class PreparedClips:
    """
    The clips of a task.

    Args:
        clips (`list` of [`TaskClip`]): Clips in the order of the manifest; `path` is what is to be heard.
        recordings (`datasets.Dataset`): The same clips as recordings, with `file_name`, `audio`, `id` (the clip's
            name), `target`, the column that the task answers, `split`, and the group columns.
        seconds (`list[float]`): Length of each.
        set_aside (`list` of `dict`): `{"name", "reason"}` of what cannot be read.
        num_too_long (`int`): Number of clips that `max_seconds` left out.
        group_columns (tuple of `str`): Columns whose values do not cross splits.
    """

    clips: list[TaskClip]
    recordings: datasets.Dataset
    seconds: list[float]
    set_aside: list[dict[str, str]]
    num_too_long: int
    group_columns: tuple[str, ...]


def prepare_clips(args: TokenStudyArguments, name: str, show_progress: bool | None = None) -> PreparedClips:
    """
    Read the manifest of a task, choose clips and change them as the task says. Changed clips are FLAC files of 16 bits
    and 16 kHz in `output_dir/clips/changed`, which tasks share; those that are there are not made again. Others are
    used where they are.

    Args:
        args ([`TokenStudyArguments`]): The study.
        name (`str`): Name of the task.
        show_progress (`bool`, *optional*): Whether to show a bar. Defaults to whether standard error is a terminal.

    Returns:
        [`PreparedClips`]: With few-shot training, the training clips that any seed chooses; see [`few_shot`].

    Raises:
        ValueError: If the manifest is wrong, more than 5 % of the clips cannot be read, or nothing is left to train on
            or to test. What cannot be read is named in `output_dir/clips/NAME.set_aside.jsonl`.
        OSError: If a clip cannot be written.
    """
    task = args.tasks[name]
    group = tuple(task.group) if isinstance(task.group, list) else task.group
    manifest = read_manifest(task.manifest, task.folder, group, args.is_closed(name))
    chosen = list(manifest.clips)
    if task.clips_per_label is not None:
        wanted = {clip.name for seed in args.seeds for clip in few_shot(chosen, task.clips_per_label, seed)}
        chosen = [clip for clip in chosen if clip.split != "train" or clip.name in wanted]
    folder = Path(args.output_dir) / "clips"
    clips, seconds, set_aside, num_too_long = [], [], [], 0
    disable = None if show_progress is None else not show_progress
    for clip in tqdm(chosen, desc=f"clips of {name}", unit="clip", disable=disable):
        try:
            path, length = _prepared(clip, task, folder / "changed")
        except (ValueError, RuntimeError, MemoryError) as error:
            set_aside.append({"name": clip.name, "reason": str(error)})
            continue
        if task.max_seconds is not None and length > task.max_seconds:
            num_too_long += 1
            continue
        clips.append(dataclasses.replace(clip, path=str(path)))
        seconds.append(length)
    aside_path = folder / f"{name}.set_aside.jsonl"
    write_set_aside(aside_path, set_aside)
    if num_too_long:
        print(f"{name}: {num_too_long} clips are longer than {task.max_seconds:g} s and left out", file=sys.stderr)
    check_share_set_aside(name, set_aside, len(chosen), aside_path)
    for split in ("train", "test"):
        if not any(clip.split == split for clip in clips):
            raise ValueError(f"the task {name!r} has no clip left of the split {split!r}; raise `max_seconds`.")
    known = {clip.target for clip in clips if clip.split == "train"}
    if args.is_closed(name) and (lost := sorted({clip.target for clip in clips} - known)):
        raise ValueError(
            f"the task {name!r} has no training clip left of the label {lost[0]!r}; raise `max_seconds`, or mend the"
            f" recordings that {aside_path} names."
        )
    return PreparedClips(
        clips, _recordings(clips, task), seconds, set_aside, num_too_long, tuple(manifest.group_columns)
    )


def check_share_set_aside(name: str, set_aside: Sequence[dict[str, str]], num_clips: int, path: Path) -> None:
    """
    Args:
        name (`str`): Name of the task.
        set_aside (sequence of `dict`): `{"name", "reason"}` of each clip that was set aside.
        num_clips (`int`): Number of clips of the task, these among them.
        path (`Path`): File that names them.

    Raises:
        ValueError: If they are more than 5 %.
    """
    if len(set_aside) > LARGEST_SHARE_SET_ASIDE * num_clips:
        raise ValueError(
            f"{len(set_aside)} of {num_clips} clips of the task {name!r} cannot be used, more than"
            f" {LARGEST_SHARE_SET_ASIDE:.0%}; the first, {set_aside[0]['name']!r}: {set_aside[0]['reason']} Mend them"
            f" or take them out of the manifest; {path} names all."
        )


def few_shot(clips: Sequence[TaskClip], clips_per_label: int | None, seed: int) -> list[TaskClip]:
    """
    Training clips of each label, drawn by a seed, from as many groups (speakers) as possible.

    Args:
        clips (sequence of [`TaskClip`]): Clips to draw from. Those of other splits than training are not looked at.
        clips_per_label (`int`, *optional*): Number of clips of a label, or all where there are fewer. Defaults to all.
        seed (`int`): Seed of the draw.

    Returns:
        `list` of [`TaskClip`]: Chosen clips, in the order of `clips`.
    """
    training = [clip for clip in clips if clip.split == "train"]
    if clips_per_label is None:
        return training
    # By the name, so that the draw does not depend on which other clips there are beside it.
    drawn = sorted(training, key=lambda clip: hashlib.sha256(f"{seed} {clip.name}".encode()).digest())
    chosen: set[str] = set()
    taken: dict[str, int] = {}  # clips of each group, over all labels
    for label in sorted({clip.target for clip in training}):
        left = [clip for clip in drawn if clip.target == label]
        within: dict[str, int] = {}
        for _ in range(min(clips_per_label, len(left))):
            clip = min(left, key=lambda clip: (within.get(clip.group, 0), taken.get(clip.group, 0)))
            left.remove(clip)
            chosen.add(clip.name)
            for counts in (within, taken):
                counts[clip.group] = counts.get(clip.group, 0) + 1
    return [clip for clip in training if clip.name in chosen]


def trim_silence(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """
    Cut silence off both ends.

    Args:
        audio (`np.ndarray` of shape `(num_samples,)`): Waveform.
        sampling_rate (`int`): Sampling rate of `audio`, in Hz.

    Returns:
        `np.ndarray`: From 50 ms before the first stretch of 20 ms that is at most 30 dB below the loudest, to 50 ms
        after the last. Silence alone stays as it is.
    """
    size = max(1, round(_FRAME_SECONDS * sampling_rate))
    padded = np.pad(np.asarray(audio, dtype=np.float64), (0, -len(audio) % size))
    power = np.square(padded.reshape(-1, size)).mean(axis=1)
    if not power.any():
        return audio
    loud = np.flatnonzero(power >= power.max() * 10 ** (-_SILENCE_DECIBELS / 10))
    kept = round(_KEPT_SECONDS * sampling_rate)
    return audio[max(0, loud[0] * size - kept) : (loud[-1] + 1) * size + kept]


def _prepared(clip: TaskClip, task: TaskArguments, folder: Path) -> tuple[Path, float]:
    # The file to hear, and its length in seconds.
    source = Path(clip.path)
    if not task.trim and task.noise_snr is None:
        with AudioReader(source, SAMPLING_RATE) as reader:
            length = reader.expected_num_samples
        if not length:
            raise ValueError(f"{source}: contains no samples.")
        return source, length / SAMPLING_RATE
    made_of = [clip.name, recording_fingerprint(source), task.trim]
    if task.noise_snr is not None:
        made_of += [task.noise_snr, task.noise, _NOISE_SEED]
    target = folder / f"{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:20]}.flac"
    if target.is_file():
        with AudioReader(target, SAMPLING_RATE) as reader:
            return target, reader.expected_num_samples / SAMPLING_RATE
    audio = changed_audio(load_audio(source, SAMPLING_RATE), task, clip.name)
    with AudioWriter(target, SAMPLING_RATE) as writer:
        writer.write(audio)
    return target, len(audio) / SAMPLING_RATE


def changed_audio(audio: np.ndarray, task: TaskArguments, name: str) -> np.ndarray:
    """
    A clip as a task wants it.

    Args:
        audio (`np.ndarray` of shape `(num_samples,)`): Waveform at 16 kHz.
        task ([`TaskArguments`]): Its `trim`, `noise_snr` and `noise` count.
        name (`str`): Name of the clip, from which the noise follows.

    Returns:
        `np.ndarray`: The changed waveform. Where noise would lead beyond 1, speech and noise are made softer.
    """
    if task.trim:
        audio = trim_silence(audio, SAMPLING_RATE)
    if task.noise_snr is not None:
        colour: NoiseColour = task.noise  # type: ignore[assignment]
        audio = perturb(audio, Noise(task.noise_snr, task.noise_snr, source=colour), _NOISE_SEED, name, SAMPLING_RATE)
        audio = audio / max(1.0, float(np.abs(audio).max()))
    return audio


def _recordings(clips: Sequence[TaskClip], task: TaskArguments) -> datasets.Dataset:
    answered = find_task(task.task).target
    rows = [
        MetadataRow(
            clip.path,
            {
                "file_name": clip.path,
                "id": clip.name,
                "target": clip.target,
                answered: clip.target,
                "split": clip.split,
                **clip.groups,
            },
        )
        for clip in clips
    ]
    return from_metadata(rows, Path())
