# SPDX-License-Identifier: Apache-2.0
"""
The level `probe` of a study of tokens: linear probes of frozen features and units, in minutes.

A task with labels is read by ridge regression from the whole clip: means of frames, or shares of units, over the clip
and over its four quarters. A task of phones is read by a linear map of short windows with CTC. Tasks whose answers are
free texts of another kind wait for the level `lm`.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from speech_tokenizers.evaluation.understanding.ctc_probe import ctc_probe
from speech_tokenizers.evaluation.understanding.metrics import score
from speech_tokenizers.evaluation.understanding.probes import (
    Block,
    ProbeAnswers,
    bag_block,
    no_audio,
    other_clips,
    pooled_block,
    ridge_probe,
    shuffle_targets,
)
from speech_tokenizers.evaluation.understanding.token_facts import token_facts, unit_edit_distances
from speech_tokenizers.evaluation.units.perturbations import listening_conditions, perturb
from speech_tokenizers.processing.audio_files import load_audio
from speech_tokenizers.processing.unit_bpe import UnitBPE
from speech_tokenizers.training.studies.measured_files import plain
from speech_tokenizers.training.studies.token_study.arguments import (
    CONTROL_ARMS,
    TokenStudyArguments,
    encoder_system,
)
from speech_tokenizers.training.studies.token_study.cells import (
    Cell,
    ChosenClips,
    cell_path,
    chosen_clips,
    finished_cell,
    is_measured,
    kept_analysis,
    level_key,
)
from speech_tokenizers.training.studies.token_study.systems import StudySystems, TaskArrays


LEVEL = "probe"
# Whole clip and quarters: both are given to the probe, which weighs them on the development clips.
_SEGMENTS = (1, 4)
# Most columns of quarters. Eight codebooks of 1,024 codes would have more, and are counted over the whole clip alone.
_MOST_COLUMNS = 16384
# Other noise than a task has of itself.
_DISTURBANCE_SEED = 1


def probe_kind(args: TokenStudyArguments, task: str) -> str | None:
    """How a task is probed: `"labels"`, `"symbols"`, or `None` where no probe here answers it."""
    if args.is_closed(task):
        return "labels"
    return "symbols" if args.metrics_of(task)[0] == "per" else None


def probe_arms(args: TokenStudyArguments, task: str) -> list[str]:
    """The arms that a probe of a task has; none reads merged units frame by frame."""
    kind = probe_kind(args, task)
    assert args.arms is not None
    return [arm for arm in args.arms if kind and not (kind == "symbols" and arm == "units+bpe")]


def probe_seeds(args: TokenStudyArguments, task: str, arm: str) -> list[int]:
    """The seeds with which a probe differs: ridge regression of the same features is exact."""
    is_fixed = probe_kind(args, task) == "labels" and args.tasks[task].clips_per_label is None
    is_fixed = is_fixed and (arm in ("continuous", "no-audio") or arm in args.systems)
    seeds = args.seeds_of(task)
    return seeds[:1] if is_fixed else seeds


class ProbeLevel:
    """
    The probes of a study. Each cell is measured once and kept.

    Args:
        args ([`TokenStudyArguments`]): The study.
        systems ([`StudySystems`]): Its systems.
    """

    def __init__(self, args: TokenStudyArguments, systems: StudySystems):
        self.args, self.systems = args, systems
        self._kept: dict[tuple[str, str], TaskArrays] = {}

    def cells(self) -> list[tuple[str, str, int]]:
        """Task, arm and seed of all cells."""
        return [
            (task, arm, seed)
            for task in self.args.tasks
            for arm in probe_arms(self.args, task)
            for seed in probe_seeds(self.args, task, arm)
        ]

    def is_finished(self) -> bool:
        """Whether all cells and analyses are there."""
        places = [(LEVEL, *cell) for cell in self.cells()]
        analyses = [("robustness", task) for task in self.args.robustness.tasks]
        analyses += [(kind, task) for task in self.args.tasks for kind in ("layers", "facts")]
        return all(is_measured(self.args, *place) for place in places) and all(
            kept_analysis(self.args, *place) is not None for place in analyses
        )

    def run(self) -> None:
        """Measure all cells and analyses that are not there yet."""
        cells = self.cells()
        with tqdm(total=len(cells), desc="probes", unit="cell", disable=None) as bar:
            for task, arm, seed in cells:
                bar.set_postfix_str(f"{task} {arm} {seed}")
                place = (LEVEL, task, arm, seed)
                path, key = cell_path(self.args, *place), level_key(self.args, *place)

                def measure(task: str = task, arm: str = arm, seed: int = seed) -> Cell:
                    return self.measure(task, arm, seed)

                finished_cell(path, key, measure)
                bar.update()
        for task in self.args.robustness.tasks:
            kept_analysis(self.args, "robustness", task, functools.partial(self.disturbed, task))
        for task in self.args.tasks:
            kept_analysis(self.args, "layers", task, functools.partial(self.layers, task))
            kept_analysis(self.args, "facts", task, functools.partial(self.facts, task))

    def _arrays(self, system: str, task: str) -> TaskArrays:
        # Those of one task are kept: they are large, and every arm reads them.
        if any(known != task for _, known in self._kept):
            self._kept.clear()
        if (system, task) not in self._kept:
            self._kept[system, task] = self.systems.arrays(system, task)
        return self._kept[system, task]

    def measure(self, task: str, arm: str, seed: int) -> Cell:
        """One cell; see [`probe_arms`]."""
        begun = time.perf_counter()
        arrays = self._arrays(self._system(task, arm, seed), task)
        chosen = self._chosen(arrays, task, seed)
        targets, order = chosen.targets, chosen.indices
        if arm == "shuffled-labels":
            targets = shuffle_targets(targets, chosen.splits, seed)
        elif arm == "other-audio":
            order = [order[place] for place in other_clips(chosen.splits, seed)]
        view = "continuous" if arm in CONTROL_ARMS else arm
        features, codes, size = self._view(arrays, task, view, seed, order)
        if arm == "no-audio":
            features, codes = no_audio(features or codes or [], 0 if features else 1), None
        answers = self._probe(task, chosen, targets, features, codes, size, arrays.frame_rate, seed)
        tested = [chosen.clips[place] for place in chosen.of("test")]
        facts = {name: value for name, value in vars(answers).items() if name != "answers"}
        return Cell.of(tested, answers.answers, **plain(facts), seconds=time.perf_counter() - begun)

    def _system(self, task: str, arm: str, seed: int) -> str:
        return arm if arm in self.args.systems else encoder_system(self.args.layer_of(task), seed)

    def _view(
        self, arrays: TaskArrays, task: str, arm: str, seed: int, order: Sequence[int]
    ) -> tuple[list[np.ndarray] | None, list[np.ndarray] | None, int]:
        # Features and codes that an arm sees, in an order of clips, and the number of codes.
        features = codes = None
        size = arrays.codebook_size or 0
        if arm in ("continuous", "continuous+units") or arrays.codes is None:
            assert arrays.features is not None
            features = [arrays.features[index] for index in order]
        if arm == "centroids":
            features = [arrays.centroids(index) for index in order]
        elif arm != "continuous" and arrays.codes is not None:
            codes = [arrays.codes[index] for index in order]
        if arm == "units+bpe":
            bpe = self.systems.unit_bpe(self.args.layer_of(task), seed)
            codes, size = _merged(codes or [], bpe)
        return features, codes, size

    def _ridge(
        self, task: str, blocks: Sequence[Block], targets: Sequence[str], splits: Sequence[str]
    ) -> ProbeAnswers:
        return ridge_probe(blocks, targets, splits, self.args.tasks[task].clips_per_label is None)

    def _chosen(self, arrays: TaskArrays, task: str, seed: int) -> ChosenClips:
        shots = self.args.tasks[task].clips_per_label
        return chosen_clips(arrays.clips, shots, seed, self.systems.prepared(task).clips)

    def _probe(
        self,
        task: str,
        chosen: ChosenClips,
        targets: Sequence[str],
        features: list[np.ndarray] | None,
        codes: list[np.ndarray] | None,
        size: int,
        frame_rate: float,
        seed: int,
    ) -> ProbeAnswers:
        if probe_kind(self.args, task) == "labels":
            return self._ridge(task, _blocks(features, codes, size), targets, chosen.splits)
        return ctc_probe(
            targets, chosen.splits, frame_rate, features, codes, size, num_steps=self.args.ctc_steps, seed=seed
        )

    # --- Analyses ---

    def disturbed(self, task: str) -> dict[str, Any]:
        """
        Scores of test clips in noise, in a room and far away, by probes of the first seed that learnt from clean
        clips, and how far the units move.
        """
        settings, seed = self.args.robustness, self.args.seeds[0]
        conditions = listening_conditions(settings.snr, settings.room, settings.far)
        layer = self.args.layer_of(task)
        arrays = self._arrays(encoder_system(layer, seed), task)
        chosen = self._chosen(arrays, task, seed)
        model = self.systems.units_model(layer, seed)
        test = [chosen.indices[place] for place in chosen.of("test")]
        heard: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        for name, condition in conditions.items():
            features, codes = [], []
            for index in tqdm(test, desc=f"{task}: {name}", unit="clip", leave=False, disable=None):
                clip = arrays.clips[index]
                audio = load_audio(clip.path, model.sampling_rate)
                found = _encoded(model, perturb(audio, condition, _DISTURBANCE_SEED, clip.name, model.sampling_rate))
                features.append(found[0])
                codes.append(found[1])
            heard[name] = features, codes
        assert arrays.codes is not None
        clean = [arrays.codes[index] for index in test]
        tested = [arrays.clips[index] for index in test]
        groups = [clip.group for clip in tested]
        scores: dict[str, dict[str, Any]] = {}
        for arm in ("continuous", "units", "centroids"):
            answers = self._answers_in(task, arrays, chosen, arm, heard)
            metric, targets = self.args.metrics_of(task)[0], [clip.target for clip in tested]
            scores[arm] = {name: plain(score(metric, said, targets, groups)) for name, said in answers.items()}
        moved = unit_edit_distances(clean, {name: codes for name, (_, codes) in heard.items()}, groups)
        return {"scores": scores, "unit_edit_distance": plain(moved)}

    def _answers_in(
        self,
        task: str,
        arrays: TaskArrays,
        chosen: ChosenClips,
        arm: str,
        heard: dict[str, tuple[list[np.ndarray], list[np.ndarray]]],
    ) -> dict[str, list[str]]:
        # Answers to the clean test clips and to those of each condition, which join these as further test clips.
        order = chosen.indices
        assert arrays.features is not None
        assert arrays.codes is not None
        assert arrays.codebook_vectors is not None
        features, codes = [arrays.features[index] for index in order], [arrays.codes[index] for index in order]
        for more_features, more_codes in heard.values():
            features, codes = features + more_features, codes + more_codes
        if arm == "centroids":
            features = [arrays.codebook_vectors[0][units[0]] for units in codes]
        blocks = _blocks(None if arm == "units" else features, codes if arm == "units" else None, _size(arrays))
        places = chosen.of("test")
        targets = chosen.targets + [chosen.targets[place] for place in places] * len(heard)
        splits = chosen.splits + ["test"] * (len(places) * len(heard))
        answers = self._ridge(task, blocks, targets, splits).answers
        parts = [answers[begin : begin + len(places)] for begin in range(0, len(answers), len(places))]
        return dict(zip(["clean", *heard], parts, strict=True))

    def layers(self, task: str) -> dict[str, Any]:
        """Scores of a task's probes from each layer of the encoder, continuous and by units of the first seed."""
        if probe_kind(self.args, task) != "labels" or len(self.args.encoder.layers) < 2:
            return {}
        seed = self.args.seeds[0]
        found = {}
        for layer in self.args.encoder.layers:
            arrays = self._arrays(encoder_system(layer, seed), task)
            chosen = self._chosen(arrays, task, seed)
            assert arrays.features is not None
            assert arrays.codes is not None
            views = {
                "continuous": _blocks([arrays.features[index] for index in chosen.indices], None, 0),
                "units": _blocks(None, [arrays.codes[index] for index in chosen.indices], self.args.encoder.num_units),
            }
            tested = [chosen.clips[place] for place in chosen.of("test")]
            metric = self.args.metrics_of(task)[0]
            for view, blocks in views.items():
                answers = self._ridge(task, blocks, chosen.targets, chosen.splits).answers
                told = score(metric, answers, [clip.target for clip in tested], [clip.group for clip in tested])
                found[f"{view} {layer}"] = plain(told)
        return found

    def facts(self, task: str) -> dict[str, Any]:
        """Rates and usage of the units of a task's test clips, which merges did not learn from, by arm."""
        seed = self.args.seeds[0]
        found: dict[str, Any] = {}
        for arm in ("units", *self.args.systems):
            arrays = self._arrays(self._system(task, arm, seed), task)
            if arrays.codes is None:
                continue
            bpe = self.systems.unit_bpe(self.args.layer_of(task), seed) if arm == "units" else None
            tested = [codes for clip, codes in zip(arrays.clips, arrays.codes, strict=True) if clip.split == "test"]
            found[arm] = plain(token_facts(tested, _size(arrays), arrays.frame_rate, bpe))
        return found


def _size(arrays: TaskArrays) -> int:
    assert arrays.codebook_size is not None
    return arrays.codebook_size


def _blocks(features: list[np.ndarray] | None, codes: list[np.ndarray] | None, size: int) -> list[Block]:
    blocks = [] if features is None else [pooled_block(features, parts) for parts in _SEGMENTS]
    if codes is not None:
        columns = size * len(codes[0])
        fitting = [parts for parts in _SEGMENTS if parts == 1 or parts * columns <= _MOST_COLUMNS]
        blocks += [bag_block(codes, size, parts) for parts in fitting]
    return blocks


def _merged(codes: Sequence[np.ndarray], bpe: UnitBPE) -> tuple[list[np.ndarray], int]:
    # Without the ids of padding and end.
    return [bpe.encode(units[0])[0][None] - 2 for units in codes], len(bpe) - 2


@torch.no_grad()
def _encoded(model: Any, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Frames (num_frames, dim) with the values of float16, as rows keep them, and their units (1, num_frames).
    features, mask = model.features(torch.from_numpy(audio)[None])
    frames = features[0, 0, mask[0]].half().float()
    return frames.numpy(), model.quantizer.encode(frames[None, None])[0].numpy()
