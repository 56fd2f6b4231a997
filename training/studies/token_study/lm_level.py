# SPDX-License-Identifier: Apache-2.0
"""
The level `lm` of a study of tokens: the same language model learns each task from each kind of tokens.

Of all arms of a task the prompt, the targets, the clips and the number of steps are the same, and about the seconds
of speech of a step; the positions that they take differ, and so the report compares at equal steps and at equal
positions. Only the answer is learnt, not what is heard.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm import tqdm

from speech_tokenizers.coding.command_options import choose_device
from speech_tokenizers.coding.loading import load
from speech_tokenizers.coding.speech_lm_loading import load_speech_lm
from speech_tokenizers.evaluation.understanding.answering import Question, as_written, target_bits
from speech_tokenizers.evaluation.understanding.probes import derangement, shuffle_targets
from speech_tokenizers.evaluation.understanding.token_facts import loss_by_clip_rarity
from speech_tokenizers.modeling.speech_lm_tasks import find_task
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.processing.speech_rows import read_speech_rows
from speech_tokenizers.processing.task_manifests import TaskClip
from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.common.run_record import fingerprint_of
from speech_tokenizers.training.language_models.speech_lm import SpeechLMArguments, train_on_rows
from speech_tokenizers.training.language_models.speech_lm_items import rows_fingerprint
from speech_tokenizers.training.studies.measured_files import plain
from speech_tokenizers.training.studies.stages import StageArguments, training_command
from speech_tokenizers.training.studies.token_study.arguments import (
    MATCHED,
    LMLevelName,
    TokenStudyArguments,
    chosen_now,
    encoder_system,
)
from speech_tokenizers.training.studies.token_study.cells import (
    Cell,
    ChosenClips,
    cell_path,
    chosen_clips,
    finished_cell,
    is_measured,
    level_key,
)
from speech_tokenizers.training.studies.token_study.systems import StudySystems


# Test clips that are asked about at once.
_BATCH_SIZE = 16
# Parts of the test clips, from those with rare units to those with frequent ones.
_NUM_BUCKETS = 5
_READ_AS_TOKENS = {"audio_in": "tokens", "layout": "flat"}
# The control that has the model of another arm.
_OTHER_AUDIO, _OTHERS_MODEL = "other-audio", "continuous"


@dataclasses.dataclass
class ArmTokens:
    """
    What an arm reads, and how.

    Args:
        system (`str`): System whose rows it has.
        kinds (`tuple` of `str`): Kinds of these rows: `"codes"`, `"latents"`, or both.
        settings (`dict`): Settings of the training that say how they are read.
    """

    system: str
    kinds: tuple[str, ...]
    settings: dict[str, Any]


class LMLevel:
    """
    The trainings of a study. Each cell is trained once and kept; an interrupted training goes on.

    Args:
        args ([`TokenStudyArguments`]): The study.
        systems ([`StudySystems`]): Its systems.
    """

    def __init__(self, args: TokenStudyArguments, systems: StudySystems):
        self.args, self.systems = args, systems

    def cells(self) -> list[tuple[LMLevelName, str, str, int]]:
        """Level, task, arm and seed of the cells to train now: all arms of a task with one seed, before the next."""
        lm = self.args.lm
        return [
            (level, task, arm, seed)
            for level in lm.chosen_levels
            for seed in chosen_now(self.args.seeds, lm.seeds_now)
            for task in chosen_now(self.args.tasks, lm.task_names)
            for arm in chosen_now(self.args.arms_of("lm"), lm.arm_names)
            if seed in self.args.seeds_of(task)
        ]

    def is_finished(self) -> bool:
        """Whether all cells to train now are there."""
        return all(is_measured(self.args, *place) for place in self.cells())

    def run(self) -> None:
        """Train and ask what is not there yet."""
        cells = self.cells()
        with tqdm(total=len(cells), desc="language models", unit="cell", disable=None) as bar:
            for level, task, arm, seed in cells:
                bar.set_postfix_str(f"{level} {task} {arm} {seed}")
                self.cell(level, task, arm, seed)
                bar.update()

    def cell(self, level: LMLevelName, task: str, arm: str, seed: int) -> Cell:
        """One cell."""
        path = cell_path(self.args, level, task, arm, seed)
        key = level_key(self.args, level, task, arm, seed)
        return finished_cell(path, key, lambda: self.measure(level, task, arm, seed))

    def measure(self, level: LMLevelName, task: str, arm: str, seed: int) -> Cell:
        """Train an arm, unless it has the model of another, and ask about the test clips."""
        begun = time.perf_counter()
        settings: dict[str, Any] = {}
        if level.matched != MATCHED[0]:
            at_steps = level._replace(matched=MATCHED[0])
            kept, positions = self.cell(at_steps, task, arm, seed), self.batch_positions(at_steps, task, arm, seed)
            reference = self.batch_positions(at_steps, task, _OTHERS_MODEL, seed)
            if arm == _OTHER_AUDIO or positions == reference:
                return kept
            settings = {"batch_seconds": None, "batch_positions": reference}
        trained = arm
        if arm == _OTHER_AUDIO:
            trained = _OTHERS_MODEL
            self.cell(level, task, trained, seed)
        tokens = self.arm_tokens(task, trained, seed)
        rows, chosen = self.rows(task, trained, seed, tokens)
        by_split = {name: rows.select(chosen.of(name)) for name in ("train", "dev", "test")}
        # A training of other rows or settings is another one, in a folder of its own.
        key = level_key(self.args, level, task, trained, seed)
        inputs = {"study": key, "rows": self._rows_digest(task, tokens, rows, chosen)}
        digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]
        folder = cell_path(self.args, level, task, trained, seed).with_suffix("") / digest
        recipe = self.recipe(level.size, task, tokens, seed, folder, settings)
        results = train_on_rows(recipe, lambda codec: (by_split["train"], by_split["dev"]), inputs)
        tested = [chosen.clips[place] for place in chosen.of("test")]
        found = self._asked(task, recipe, by_split["test"], tested, arm, seed)
        spent = time.perf_counter() - begun
        told = ("parameters", "positions_of_training_rows", "training_rows", "positions_per_second")
        facts = {name: results[name] for name in told}
        curve = _curve(folder, recipe, results)
        facts["rarity"] = self._rarity(task, seed, chosen, found)
        cell = Cell.of(tested, found.pop("answers"), **facts, **found, curve=curve, seconds=spent)
        cell.targets = cell.facts.pop("targets")
        return cell

    def _rows_digest(self, task: str, tokens: ArmTokens, rows: datasets.Dataset, chosen: ChosenClips) -> str:
        # What is heard and told: the tokens' own files, and names, splits and answers in their order.
        folders = [self.systems.rows_folder(tokens.system, kind, task) for kind in tokens.kinds]
        files = [rows_fingerprint(str(folder)) for folder in folders]
        told = [rows["id"][:], chosen.splits, rows[find_task(self.args.tasks[task].task).target][:]]
        merges = tokens.settings.get("unit_bpe")
        codec = fingerprint_of(self._codec(tokens))
        content = [files, told, codec, None if merges is None else fingerprint_of(merges)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]

    def _codec(self, tokens: ArmTokens) -> str:
        # Name or folder of what wrote the tokens.
        if tokens.system in self.args.systems:
            return self.args.systems[tokens.system]
        return str(Path(self.args.output_dir) / "systems" / tokens.system)

    def arm_tokens(self, task: str, arm: str, seed: int) -> ArmTokens:
        """What an arm reads."""
        if (variant := self.args.lm.variants.get(arm)) is not None:
            tokens = self.arm_tokens(task, variant.arm, seed)
            return dataclasses.replace(tokens, settings={**tokens.settings, **variant.overrides})
        units = encoder_system(self.args.layer_of(task), seed)
        heard = {"audio_in": "embeds", "layout": "continuous"}
        known = {
            "units": (("codes",), {**_READ_AS_TOKENS, "unit_coding": "units"}),
            "units+bpe": (("codes",), {**_READ_AS_TOKENS, "unit_coding": "bpe"}),
            "centroids": (("codes",), {**heard, "latent_source": "quantized"}),
            "continuous+units": (("latents", "codes"), {**heard, "latent_source": "both"}),
        }
        if arm in known:
            kinds, settings = known[arm]
            if arm == "units+bpe":
                self.systems.unit_bpe(self.args.layer_of(task), seed)
                settings["unit_bpe"] = str(Path(self.args.output_dir) / "systems" / units / "bpe")
            return ArmTokens(units, kinds, settings)
        if arm not in self.args.systems:
            return ArmTokens(units, ("latents",), heard)
        codec = as_speech_codec(*load(self.args.systems[arm]))
        if codec.kind == "latents":
            return ArmTokens(arm, ("latents",), heard)
        one, several = {"unit_coding": "units"}, {"layout": "delay"}
        told = one if codec.num_quantizers == 1 else several
        return ArmTokens(arm, ("codes",), {**_READ_AS_TOKENS, **told})

    def rows(self, task: str, arm: str, seed: int, tokens: ArmTokens) -> tuple[datasets.Dataset, ChosenClips]:
        """The rows of an arm, as it hears them and as it is told the answers, and the clips that they are."""
        read = [read_speech_rows(self.systems.rows_folder(tokens.system, kind, task)) for kind in tokens.kinds]
        rows = read[0]
        if len(read) > 1:
            others = dict(zip(read[1]["id"], range(len(read[1])), strict=True))
            chosen = read[1].select([others[name] for name in rows["id"]])
            for column in ("audio_codes", "num_quantizers"):
                rows = rows.add_column(column, chosen[column], feature=chosen.features[column])
        everything = self.systems.prepared(task).clips
        known = {clip.name: clip for clip in everything}
        shots = self.args.tasks[task].clips_per_label
        chosen_of = chosen_clips([known[name] for name in rows["id"]], shots, seed, everything)
        rows = rows.select(chosen_of.indices)
        target = find_task(self.args.tasks[task].task).target
        answers = chosen_of.targets
        if arm == "shuffled-labels":
            answers = shuffle_targets(answers, chosen_of.splits, seed)
        if target in rows.column_names:
            rows = rows.remove_columns(target)
        rows = rows.add_column(target, answers)
        if arm == "no-audio":
            rows = rows.map(_without_audio, load_from_cache_file=False)
        return rows, chosen_of

    def batch_positions(self, level: LMLevelName, task: str, arm: str, seed: int) -> int:
        """Positions of a batch of an arm, which is trained at this level if it was not yet."""
        tokens = self.arm_tokens(task, arm, seed)
        recipe = self.recipe(level.size, task, tokens, seed, Path(self.args.output_dir), {})
        return _batch_positions(recipe, self.cell(level, task, arm, seed).facts["positions_per_second"])

    def recipe(
        self, size: str, task: str, tokens: ArmTokens, seed: int, folder: Path, more: Mapping[str, Any]
    ) -> SpeechLMArguments:
        """The recipe of a training, with the settings `more` of its level."""
        lm = self.args.lm
        settings = {
            "output_dir": str(folder),
            "codec": self._codec(tokens),
            # The rows are given, and not read from there.
            "data.train": str(Path(self.args.output_dir) / "rows"),
            "language_model": lm.sizes[size],
            "tasks": {self.args.tasks[task].task: 1.0},
            "closed_tasks": [self.args.tasks[task].task] if self.args.is_closed(task) else [],
            "seed": seed,
            **lm.settings_of(task),
            **tokens.settings,
            **more,
        }
        command = training_command(StageArguments(lm.recipe), settings)
        return load_recipe(command[1], command[2:], SpeechLMArguments)

    def _rarity(self, task: str, seed: int, chosen: ChosenClips, found: Mapping[str, Any]) -> list[dict[str, Any]]:
        # Bits of a target id in the test clips whose units are rare in training, up to those with frequent ones.
        arrays = self.systems.arrays(encoder_system(self.args.layer_of(task), seed), task)
        assert arrays.codes is not None
        codes = dict(zip((clip.name for clip in arrays.clips), (units[0] for units in arrays.codes), strict=True))
        trained = [
            codes[chosen.clips[place].name] for place in chosen.of("train") if chosen.clips[place].name in codes
        ]
        counts = np.bincount(np.concatenate(trained), minlength=self.args.encoder.num_units)
        bits = zip(chosen.of("test"), found["bits"], found["num_tokens"], strict=True)
        told = [(chosen.clips[place], spent / count) for place, spent, count in bits]
        told = [(clip, loss) for clip, loss in told if clip.name in codes]  # what the encoder could not hear has none
        if len(told) < _NUM_BUCKETS:
            return []
        units, groups = [codes[clip.name] for clip, _ in told], [clip.group for clip, _ in told]
        return plain(loss_by_clip_rarity([loss for _, loss in told], units, counts, groups, _NUM_BUCKETS))

    def _asked(
        self,
        task: str,
        recipe: SpeechLMArguments,
        rows: datasets.Dataset,
        tested: Sequence[TaskClip],
        arm: str,
        seed: int,
    ) -> dict[str, Any]:
        model, processor = load_speech_lm(Path(recipe.output_dir) / "final", recipe.codec)
        model.to(choose_device(None))
        known = find_task(self.args.tasks[task].task)
        known_answers = sorted({clip.target for clip in self.systems.prepared(task).clips if clip.split == "train"})
        labels = tuple(known_answers) if self.args.is_closed(task) else None
        longest = max(map(len, processor.answer_ids(known_answers).ids))
        question = Question(known, labels, None if labels else 2 * longest)
        heard = derangement(len(rows), seed) if arm == _OTHER_AUDIO else list(range(len(rows)))
        answers, bits, counts, unended = [], [], [], 0
        for begin in range(0, len(rows), _BATCH_SIZE):
            places = range(begin, min(begin + _BATCH_SIZE, len(rows)))
            asked = [{**rows[heard[place]], known.target: tested[place].target} for place in places]
            found = question.answers(model, processor, processor.task_inputs(known, asked))
            answers += [entry["answer"] for entry in found]
            unended += sum(not entry.get("ended", True) for entry in found)
            for told, count in target_bits(model, processor, known, asked):
                bits.append(told)
                counts.append(count)
        targets = [clip.target if labels else as_written(processor, clip.target) for clip in tested]
        return {"answers": answers, "targets": targets, "bits": bits, "num_tokens": counts, "not_ended": unended}


def _without_audio(row: dict[str, Any]) -> dict[str, Any]:
    # One frame that says nothing.
    dim = int(row["latent_dim"])
    return {"audio_latents": [0.0] * dim, "num_frames": 1}


def _batch_positions(recipe: SpeechLMArguments, positions_per_second: float) -> int:
    if recipe.batch_seconds is None:
        return recipe.batch_positions
    return math.ceil(recipe.batch_seconds * positions_per_second)


def _curve(folder: Path, recipe: SpeechLMArguments, results: Mapping[str, Any]) -> dict[str, list[float]]:
    # Held-out losses against the positions that were seen, about so many a step.
    positions = _batch_positions(recipe, results["positions_per_second"])
    lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text("utf-8").splitlines()]
    told = [line for line in lines if "held_out_text_loss" in line]
    steps = [line["step"] for line in told]
    return {
        "steps": steps,
        "positions": [float(step * positions) for step in steps],
        "losses": [line["held_out_text_loss"] for line in told],
    }


__all__ = ["ArmTokens", "LMLevel"]
