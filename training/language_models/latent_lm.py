# SPDX-License-Identifier: Apache-2.0
"""
Train a small language model on the continuous tokens of speech, once with each of several heads, and compare them on
held-out speech.

What is finished is not done again: the same command goes on after a kill, at the newest checkpoint, as if it had not
been stopped.
"""

import argparse
import copy
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError  # what a contradictory configuration raises
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments, set_seed

from speech_tokenizers.coding.loading import load
from speech_tokenizers.modeling.configuration_latent_lm import LatentLMConfig
from speech_tokenizers.modeling.continuous_heads import build_head
from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.common.length_batches import length_batch_loader
from speech_tokenizers.training.common.processes import leave_together
from speech_tokenizers.training.common.recipe_files import keep_recipe, load_recipe
from speech_tokenizers.training.common.recipe_trainer import JsonLinesCallback, newest_checkpoint
from speech_tokenizers.training.language_models.latent_prediction import (
    generation_milliseconds,
    judge,
    write_continuations,
)
from speech_tokenizers.training.units.pseudo_labels import PseudoLabels, TokenLabeler, label_all


@dataclass
class LatentDataArguments:
    r"""
    Where the recordings are; see [`load_recordings`].

    Args:
        train, eval (`str`): A folder, a file of metadata, Parquet, or a dataset's id on the Hub.
        train_filter, eval_filter (`dict`), train_files, eval_files (`str`, *optional*), train_split, eval_split
            (`str`), audio_column (`str`): Which of them.
        cache_dir (`str`, *optional*): Where decoded audio and latents are kept. Defaults to `cache` in the output
            folder.
        min_seconds (`float`): Shorter recordings are left out.
        max_seconds (`float`): Of a longer one, a part of this length is drawn each time; for evaluation, its first
            part is taken.
        max_eval_recordings (`int`): Held-out recordings to measure on, spread evenly over all.
    """

    train: str
    eval: str
    train_filter: dict[str, Any] = field(default_factory=dict)
    eval_filter: dict[str, Any] = field(default_factory=dict)
    train_files: str | None = None
    eval_files: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    audio_column: str = "audio"
    cache_dir: str | None = None
    min_seconds: float = 0.5
    max_seconds: float = 10.0
    max_eval_recordings: int = 40

    def __post_init__(self):
        if not 0 < self.min_seconds <= self.max_seconds:
            raise ValueError("`data.min_seconds` must be positive and not above `data.max_seconds`.")


@dataclass
class ContinuationArguments:
    r"""
    What is drawn in the end.

    Args:
        count (`int`): Held-out recordings to go on after.
        prompt_seconds (`float`), seconds (`float`): Lengths of the beginning and of what follows.
        temperature (`float`), cfg_scale (`float`): See [`ContinuousHead.sample`].
    """

    count: int = 4
    prompt_seconds: float = 2.0
    seconds: float = 3.0
    temperature: float = 1.0
    cfg_scale: float = 1.0


@dataclass
class LatentLMArguments:
    r"""
    A training of a language model on continuous tokens.

    Args:
        output_dir (`str`): Gets a folder for each head, with `final`, `results.json`, `training_log.jsonl` and
            `continuations`, and the table of all, `results.md`.
        model (`str`): Name, folder or Hub id of the model whose `latents` are the tokens: continuous tokens, or a
            codec's latents before its quantizer.
        data ([`LatentDataArguments`]): The recordings.
        heads (`dict`): By name, the options of each head's class, with `kind` where the name is not that of the kind.
        language_model (`dict`): Configuration of the transformer with its `model_type`. Defaults to
            [`LatentLMConfig`]'s.
        input_noise_std, stop_loss_weight, stop_pos_weight (`float`): See [`LatentLMConfig`].
        continuations ([`ContinuationArguments`]): What to listen to.
        num_draws (`int`): Of the held-out score.
        batch_seconds (`float`): Speech of a micro-batch, with padding, of one process.
        gradient_accumulation_steps (`int`): Micro-batches a step and process.
        max_steps (`int`): Optimizer steps for each head.
        learning_rate (`float`): Its peak; it rises from 0 over `warmup_steps` and falls as a cosine.
        warmup_steps (`int`): See above.
        betas (`list` of two `float`), weight_decay (`float`): Of AdamW.
        max_grad_norm (`float`): Longer gradients are scaled down to this norm.
        mixed_precision (`str`, *optional*): `"bf16"` or `"fp16"`.
        seed (`int`): Of weights, data and draws.
        logging_steps, save_steps (`int`): Intervals of the log and of checkpoints.
        save_total_limit (`int`): Checkpoints to keep.
        num_workers (`int`): Processes that prepare batches. Batches do not depend on it.
    """

    output_dir: str
    model: str
    data: LatentDataArguments
    heads: dict[str, dict[str, Any]]
    language_model: dict[str, Any] = field(default_factory=dict)
    input_noise_std: float = 0.0
    stop_loss_weight: float = 1.0
    stop_pos_weight: float = 10.0
    continuations: ContinuationArguments = field(default_factory=ContinuationArguments)
    num_draws: int = 8
    batch_seconds: float = 80.0
    gradient_accumulation_steps: int = 1
    max_steps: int = 2000
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mixed_precision: str | None = None
    seed: int = 0
    logging_steps: int = 50
    save_steps: int = 500
    save_total_limit: int = 2
    num_workers: int = 0

    def __post_init__(self):
        if not self.heads:
            raise ValueError("`heads` must name at least one.")
        for name in self.heads:
            # Wrong ones are found before the latents are computed.
            kind, options = kind_and_options(name, self.heads[name])
            with torch.device("meta"):
                build_head(kind, 8, 8, **options)
        if self.num_draws < 2:
            raise ValueError(f"`num_draws` must be at least 2, but got {self.num_draws}.")
        if self.batch_seconds < self.data.max_seconds:
            raise ValueError(
                f"`batch_seconds` ({self.batch_seconds}) must hold a recording of `data.max_seconds`"
                f" ({self.data.max_seconds})."
            )


def kind_and_options(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What [`build_head`] needs of a head in `LatentLMArguments.heads`."""
    return options.get("kind", name), {key: value for key, value in options.items() if key != "kind"}


class LatentDataset(torch.utils.data.Dataset):
    r"""
    Latents of recordings, or of parts of long ones.

    An item depends on the seed and its index only. Indices beyond the length belong to later epochs, as a
    [`LengthBatchSampler`] gives them.

    Args:
        latents ([`PseudoLabels`]): Of each recording.
        min_seconds, max_seconds (`float`): See [`LatentDataArguments`].
        seed (`int`): Of the parts.

    Attributes:
        lengths (`np.ndarray` of shape `(len(dataset),)`): Frames of each item.

    Raises:
        ValueError: If every recording is too short.
    """

    def __init__(self, latents: PseudoLabels, min_seconds: float, max_seconds: float, seed: int = 0):
        self.latents, self.seed = latents, seed
        self.max_frames = round(max_seconds * latents.label_rate)
        lengths = np.array([len(latents[index]) for index in range(len(latents))])
        self.recording_of_item = np.flatnonzero(lengths >= max(1, min_seconds * latents.label_rate))
        if len(self.recording_of_item) == 0:
            raise ValueError(f"Every recording is shorter than `data.min_seconds` ({min_seconds}).")
        self.lengths = np.minimum(lengths[self.recording_of_item], self.max_frames)

    def __len__(self) -> int:
        return len(self.recording_of_item)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        r"""`latents` `(num_frames, dim)`, and `ended`, whether the recording ends there."""
        epoch, item = divmod(index, len(self))
        recording = self.latents[int(self.recording_of_item[item])]
        first = 0
        if len(recording) > self.max_frames:
            generator = np.random.default_rng((self.seed, epoch, item))
            first = int(generator.integers(len(recording) - self.max_frames + 1))
        part = recording[first : first + self.max_frames]
        return {
            "latents": torch.from_numpy(np.array(part)),
            "ended": torch.tensor(first + len(part) == len(recording)),
        }

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of each dimension over all recordings, `(dim,)` each."""
        total, squares, count = 0.0, 0.0, 0
        for number in self.recording_of_item:
            rows = np.asarray(self.latents[int(number)], dtype=np.float64)
            total, squares, count = total + rows.sum(0), squares + np.square(rows).sum(0), count + len(rows)
        mean = total / count
        return torch.from_numpy(mean), torch.from_numpy(squares / count - np.square(mean))


def pad_latents(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad items of a [`LatentDataset`] on the right into the arguments of [`LatentLanguageModel`]."""
    latents = pad_sequence([item["latents"] for item in items], batch_first=True)
    lengths = torch.tensor([len(item["latents"]) for item in items])
    mask = (torch.arange(latents.shape[1]) < lengths[:, None]).long()
    return {"latents": latents, "latents_mask": mask, "ended": torch.stack([item["ended"] for item in items])}


class LatentLMTrainer(Trainer):
    r"""
    `transformers.Trainer` on batches by seconds.

    Args:
        batch_frames (`int`): Frames of a micro-batch, with padding.
        kwargs: Of the `Trainer`; `train_dataset` is a [`LatentDataset`], `args.max_steps` is set.
    """

    def __init__(self, *args: Any, batch_frames: int, **kwargs: Any):
        super().__init__(*args, data_collator=pad_latents, **kwargs)
        self.batch_frames = batch_frames
        self._window: dict[str, torch.Tensor] = {}

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """See [`length_batch_loader`]."""
        return length_batch_loader(self, self.batch_frames)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            sums = {name: outputs[name].detach() for name in ("prediction_loss", "stop_loss")}
            for name, value in {**sums, "count": torch.ones_like(loss.detach())}.items():
                self._window[name] = self._window.get(name, 0) + value
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss since the last log."""
        if "loss" in logs and self._window:
            sums = {name: float(value) for name, value in self.accelerator.reduce(self._window, "sum").items()}
            for name in ("prediction_loss", "stop_loss"):
                logs[name] = round(sums[name] / sums["count"], 5)
            self._window = {}
        super().log(logs, start_time)


def train_all(args: LatentLMArguments) -> dict[str, dict[str, float]]:
    r"""
    Train with each head that is not finished, and measure it.

    Args:
        args ([`LatentLMArguments`]): The recipe.

    Returns:
        `dict`: The results by head, as `results.md` has them.

    Raises:
        ValueError: If the output folder belongs to another recipe, or there is nothing to learn from.
    """
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    keep_recipe(output / "recipe.yaml", args)
    codec = load(args.model)[0]
    train, held_out = cached_latents(codec, args)
    for name in args.heads:
        folder = output / name
        if not (folder / "results.json").is_file():
            train_head(name, args, codec, train, held_out, folder)
    results = {name: json.loads((output / name / "results.json").read_text("utf-8")) for name in args.heads}
    (output / "results.md").write_text(results_table(results) + "\n", encoding="utf-8")
    return results


def cached_latents(codec: Any, args: LatentLMArguments) -> tuple[PseudoLabels, list[tuple[str, np.ndarray, bool]]]:
    r"""
    The latents of all recordings, computed once.

    Returns:
        Those to train on; and of each recording to measure on its name, its latents up to `data.max_seconds`, and
        whether these are all.
    """
    data, found = args.data, []
    cache_dir = Path(data.cache_dir or Path(args.output_dir) / "cache")
    for source, kept, files, split in (
        (data.train, data.train_filter, data.train_files, data.train_split),
        (data.eval, data.eval_filter, data.eval_files, data.eval_split),
    ):
        recordings = decode_all(
            load_recordings(source, kept, files, split, data.audio_column), codec.sampling_rate, cache_dir
        )
        labeler = TokenLabeler(codec, codec.sampling_rate, kind="latents")
        found.append((recordings.names, label_all(recordings, labeler, cache_dir / "latents")))
        print(f"{source}: {len(recordings)} recordings, {recordings.seconds / 3600:.2f} h", file=sys.stderr)
    (_, train), (names, held_out) = found
    least, most = (seconds * held_out.label_rate for seconds in (data.min_seconds, data.max_seconds))
    usable = [index for index in range(len(held_out)) if len(held_out[index]) >= max(1, least)]
    if not usable:
        raise ValueError(f"Every held-out recording is shorter than `data.min_seconds` ({data.min_seconds}).")
    spread = np.linspace(0, len(usable) - 1, min(len(usable), data.max_eval_recordings)).round().astype(int)
    chosen = [usable[index] for index in spread]
    return train, [
        (Path(names[index]).stem, held_out[index][: round(most)], len(held_out[index]) <= round(most))
        for index in chosen
    ]


def new_model(name: str, args: LatentLMArguments, dim: int) -> LatentLanguageModel:
    """An untrained language model with the head that a recipe names."""
    kind, options = kind_and_options(name, args.heads[name])
    config = LatentLMConfig(
        text_config=copy.deepcopy(args.language_model) or None,
        latent_dim=dim,
        head=kind,
        head_options=options,
        input_noise_std=args.input_noise_std,
        stop_loss_weight=args.stop_loss_weight,
        stop_pos_weight=args.stop_pos_weight,
    )
    set_seed(args.seed)
    return LatentLanguageModel(config)


def train_head(
    name: str,
    args: LatentLMArguments,
    codec: Any,
    train: PseudoLabels,
    held_out: list[tuple[str, np.ndarray, bool]],
    folder: Path,
) -> None:
    r"""
    Train with one head from the newest checkpoint in `folder/checkpoints`, or from the beginning; measure, and write
    continuations.

    Args:
        name (`str`): Of `args.heads`.
        args ([`LatentLMArguments`]): The recipe.
        codec (`PreTrainedModel`): What the latents come from.
        train ([`PseudoLabels`]), held_out (`list`): See [`cached_latents`].
        folder (`Path`): Gets everything; `results.json` is written last.
    """
    dataset = LatentDataset(train, args.data.min_seconds, args.data.max_seconds, args.seed)
    model = new_model(name, args, train[0].shape[-1])
    model.set_statistics(*dataset.moments())
    checkpoint = newest_checkpoint(folder / "checkpoints")
    last_step = 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))
    folder.mkdir(parents=True, exist_ok=True)
    trainer = LatentLMTrainer(
        model,
        TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            max_steps=args.max_steps,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.warmup_steps,
            adam_beta1=args.betas[0],
            adam_beta2=args.betas[1],
            weight_decay=args.weight_decay,
            max_grad_norm=args.max_grad_norm,
            bf16=args.mixed_precision == "bf16",
            fp16=args.mixed_precision == "fp16",
            logging_steps=args.logging_steps,
            logging_first_step=True,
            save_steps=args.save_steps,
            save_total_limit=args.save_total_limit,
            seed=args.seed,
            dataloader_num_workers=args.num_workers,
            remove_unused_columns=False,
            report_to="none",
        ),
        batch_frames=round(args.batch_seconds * train.label_rate),
        train_dataset=dataset,
        callbacks=[JsonLinesCallback(folder / "training_log.jsonl", last_step)],
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if not trainer.is_world_process_zero():
        return
    model.eval()
    # The codec may lie elsewhere.
    codec.to(model.device)
    sampling = {"temperature": args.continuations.temperature, "cfg_scale": args.continuations.cfg_scale}
    recordings, ended = [latents for _, latents, _ in held_out], [is_whole for *_, is_whole in held_out]
    results: dict[str, Any] = judge(model, recordings, ended, args.num_draws, args.seed, **sampling)
    lengths = args.continuations.prompt_seconds, args.continuations.seconds
    longest = sorted(held_out, key=lambda item: -len(item[1]))[: args.continuations.count]
    prompts = [(recording_name, latents) for recording_name, latents, _ in longest]
    write_continuations(
        model,
        codec,
        prompts,
        folder / "continuations",
        *lengths,
        args.seed,
        stop_threshold=None,
        **sampling,
    )
    _save_whole(model, folder / "final")
    results |= generation_milliseconds(model.cpu())
    results["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    temporary = folder / ".results.json.incomplete"
    temporary.write_text(json.dumps(results, indent=2), encoding="utf-8")
    os.replace(temporary, folder / "results.json")


def _save_whole(model: LatentLanguageModel, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def results_table(results: dict[str, dict[str, float]]) -> str:
    """The results by head as a table in Markdown, with the scores of two forecasts that learn nothing."""
    lines = [
        "| head | energy score | spread of draws | its own loss | loss of ends | head, ms a frame | all, ms a frame |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        lines.append(
            f"| {name} | {row['energy_score']:.3f} | {row['draw_spread']:.3f} | {row['prediction_loss']:.3f} |"
            f" {row['stop_loss']:.3f} | {row['head_ms']:.2f} | {row['frame_ms']:.2f} |"
        )
    row = next(iter(results.values()))
    lines.append(f"| the frame before | {row['repetition_score']:.3f} | 0 | | | | |")
    lines.append(f"| frames of anywhere | {row['marginal_score']:.3f} | | | | | |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of this installation")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    try:
        results = train_all(load_recipe(args.recipe, args.overrides, LatentLMArguments))
    except (ValueError, TypeError, OSError, StrictDataclassError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(results_table(results))
    leave_together()
    return 0
