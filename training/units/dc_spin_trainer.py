# SPDX-License-Identifier: Apache-2.0
r"""
Train DC-Spin or Spin units on a speech encoder: its top layers and codebooks learn to give a recording and the same
in another voice the same units.

The recipe is that of Spin's code (Chang et al. 2023, https://huggingface.co/papers/2305.11072), also for DC-Spin,
whose own is not public. The same command goes on after a kill, at the newest checkpoint, as if it had not been
stopped.
"""

import argparse
import dataclasses
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.processing.feature_extraction_dc_spin import DCSpinFeatureExtractor
from speech_tokenizers.processing.optional_packages import MissingPackageError
from speech_tokenizers.processing.recordings import DecodedRecordings, decode_all, load_recordings
from speech_tokenizers.processing.speaker_perturbation import SpeakerPerturbation
from speech_tokenizers.training.common.data import PretrainingDataArguments
from speech_tokenizers.training.common.length_batches import length_batch_loader
from speech_tokenizers.training.common.processes import leave_together, process_state
from speech_tokenizers.training.common.recipe_files import check_names, keep_recipe, load_recipe
from speech_tokenizers.training.common.recipe_trainer import JsonLinesCallback, newest_checkpoint
from speech_tokenizers.training.common.reporting import draw_loss_curves, has_matplotlib
from speech_tokenizers.training.units.perturbed_views import PerturbedViewsDataset, pad_views


@dataclass
class PerturbationArguments:
    r"""
    How voices are changed; see [`SpeakerPerturbation`] for all of it.

    Args:
        formant_ratio, f0_ratio, f0_range_ratio (`list` of two `float`, *optional*): Bounds; `null` switches a part
            off. For tone languages both of the fundamental frequency should be off.
        equalizer (`bool`): Whether there is one.
        noise_snr (`list` of two `float`, *optional*): Bounds in dB of noise to add; `null` adds none, as in Spin.
        backend (`str`): `"psola"`, or `"praat"` with the extra of that name.
        f0_floor, f0_ceiling (`float`): In Hz.
    """

    formant_ratio: list[float] | None = field(default_factory=lambda: [1.0, 1.4])
    f0_ratio: list[float] | None = field(default_factory=lambda: [1.0, 2.0])
    f0_range_ratio: list[float] | None = field(default_factory=lambda: [1.0, 1.5])
    equalizer: bool = True
    noise_snr: list[float] | None = None
    backend: str = "psola"
    f0_floor: float = 60.0
    f0_ceiling: float = 500.0


@dataclass
class DCSpinTrainingArguments:
    r"""
    A training of units. The defaults are those of Spin's code.

    Args:
        output_dir (`str`): Gets `checkpoints`, `training_log.jsonl`, `loss_curves.png` and, as `final`, the model.
        model (`dict`): `encoder`, folder or Hub id of the speech encoder to start from (also one that was fine-tuned
            by CTC), and fields of the [`DCSpinConfig`].
        data ([`PretrainingDataArguments`]): The recordings.
        perturbation ([`PerturbationArguments`]): The other voice.
        max_steps (`int`): Optimizer steps.
        batch_seconds (`float`): Audio of a micro-batch with padding, over all processes, which share each of them. Its
            frames are the ones that use all codes equally, so that it should hold many more of them than there are
            codes.
        gradient_accumulation_steps (`int`): Micro-batches a step.
        learning_rate, initial_learning_rate, final_learning_rate (`float`), warmup_steps (`int`): See
            [`warmup_decay_rate`].
        betas (`list` of two `float`), epsilon (`float`), weight_decay (`float`): Of Adam. The decay is part of the
            gradient, other than in AdamW.
        max_grad_norm (`float`): Longer gradients are scaled down to this norm.
        mixed_precision (`str`, *optional*): `"bf16"` or `"fp16"`.
        seed (`int`): Of codes, data and voices.
        logging_steps, save_steps (`int`): Intervals of the log and of checkpoints.
        save_total_limit (`int`): Checkpoints to keep.
        num_workers (`int`): Processes that prepare batches, of which changing voices is most of the work. Batches do
            not depend on it.
    """

    output_dir: str
    model: dict[str, Any]
    data: PretrainingDataArguments
    perturbation: PerturbationArguments = field(default_factory=PerturbationArguments)
    max_steps: int = 5000
    batch_seconds: float = 256.0
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    initial_learning_rate: float = 1e-6
    final_learning_rate: float = 1e-6
    warmup_steps: int = 2500
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    epsilon: float = 1e-8
    weight_decay: float = 1e-6
    max_grad_norm: float = 10.0
    mixed_precision: str | None = None
    seed: int = 0
    logging_steps: int = 50
    save_steps: int = 500
    save_total_limit: int = 2
    num_workers: int = 0

    def __post_init__(self):
        if not isinstance(self.model.get("encoder"), str):
            raise ValueError("The recipe lacks `model.encoder`, folder or Hub id of a speech encoder.")
        known = {"encoder", *DCSpinConfig.__dataclass_fields__} - {"encoder_config", "vocoder_config"}
        check_names(self.model, known, "The recipe's key", "model.")
        if self.max_steps < 1 or self.warmup_steps < 0:
            raise ValueError("`max_steps` must be at least 1, and `warmup_steps` not negative.")
        if self.batch_seconds < self.data.max_seconds:
            raise ValueError(
                f"`batch_seconds` ({self.batch_seconds}) must hold a recording of `data.max_seconds`"
                f" ({self.data.max_seconds})."
            )


def warmup_decay_rate(
    step: int, learning_rate: float, warmup_steps: int, max_steps: int, initial_rate: float, final_rate: float
) -> float:
    r"""
    The learning rate of a step, counted from 0: a straight line from `initial_rate` to `learning_rate` at
    `warmup_steps`, and another one to `final_rate` at the last step.
    """
    if step <= warmup_steps and warmup_steps > 0:
        return initial_rate + (learning_rate - initial_rate) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps - 1)
    return learning_rate + (final_rate - learning_rate) * min(1.0, progress)


class NormalizeCodebooksCallback(TrainerCallback):
    r"""
    Gives all codes unit length between the backward pass and the update, as Spin's code does.

    There it happens before the backward pass, to weights that this still needs, and works in half precision alone,
    where the pass has a copy of them.

    Args:
        model ([`DCSpinModel`]): Not wrapped.
    """

    def __init__(self, model: DCSpinModel):
        self.model = model

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Called by the `Trainer`."""
        self.model.normalize_codebooks()


# What is logged besides the loss, for each codebook.
_MEASURES = ("swapped_prediction_loss", "accuracy", "code_perplexity", "probability_perplexity")


class DCSpinTrainer(Trainer):
    r"""
    `transformers.Trainer` of a [`DCSpinModel`], on batches by seconds.

    Args:
        model ([`DCSpinModel`]): What is trained.
        args ([`DCSpinTrainingArguments`]): Settings.
        train_dataset ([`PerturbedViewsDataset`]): The recordings.
        kwargs: Of the `Trainer`.
    """

    def __init__(
        self, model: DCSpinModel, args: DCSpinTrainingArguments, train_dataset: PerturbedViewsDataset, **kwargs: Any
    ):
        self.recipe = args
        training_args = TrainingArguments(
            output_dir=str(Path(args.output_dir) / "checkpoints"),
            max_steps=args.max_steps,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            learning_rate=args.learning_rate,
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
        )
        super().__init__(model, training_args, data_collator=pad_views, train_dataset=train_dataset, **kwargs)
        self.add_callback(NormalizeCodebooksCallback(model))
        self._window: dict[str, torch.Tensor] = {}
        self._window_start = time.perf_counter()

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """All batches of this process, as one epoch, so that a resumed training skips those it has taken."""
        batch_samples = round(self.recipe.batch_seconds * self.train_dataset.recordings.sampling_rate)
        return length_batch_loader(self, batch_samples, share_batches=True, drop_incomplete=True)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Adam over all that is trained."""
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(
                [parameter for parameter in self.model.parameters() if parameter.requires_grad],
                lr=self.recipe.learning_rate,
                betas=(self.recipe.betas[0], self.recipe.betas[1]),
                eps=self.recipe.epsilon,
                weight_decay=self.recipe.weight_decay,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """See [`warmup_decay_rate`]."""
        if self.lr_scheduler is None:
            recipe = self.recipe
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                lambda step: (
                    warmup_decay_rate(
                        step,
                        recipe.learning_rate,
                        recipe.warmup_steps,
                        num_training_steps,
                        recipe.initial_learning_rate,
                        recipe.final_learning_rate,
                    )
                    / recipe.learning_rate
                ),
            )
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            self._note(outputs, inputs)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _note(self, outputs: Any, inputs: dict[str, torch.Tensor]) -> None:
        # Sums on the device, so that no step waits for them.
        values = {"batches": torch.ones((), device=outputs["loss"].device), "samples": inputs["padding_mask"].sum()}
        for codebook in ("primary", "auxiliary"):
            for measure in _MEASURES:
                value = outputs.get(f"{codebook}_{measure}")
                if value is not None:
                    values[f"{codebook}_{measure}"] = value
        for name, value in values.items():
            self._window[name] = self._window.get(name, 0) + value.detach().float()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add means of the measures since the last log, and the speed."""
        if "loss" in logs and self._window:
            sums = {name: float(value) for name, value in self.accelerator.reduce(self._window, "sum").items()}
            num_batches, num_samples = sums.pop("batches"), sums.pop("samples")
            logs |= {name: round(value / num_batches, 4) for name, value in sums.items()}
            seconds = num_samples / self.train_dataset.recordings.sampling_rate
            logs["audio_seconds_per_second"] = round(seconds / (time.perf_counter() - self._window_start), 2)
            self._window, self._window_start = {}, time.perf_counter()
        super().log(logs, start_time)


def train_dc_spin(args: DCSpinTrainingArguments) -> Path:
    r"""
    Train by a recipe, from the newest checkpoint in `args.output_dir` or from the beginning.

    Args:
        args ([`DCSpinTrainingArguments`]): The recipe.

    Returns:
        `Path`: The folder of the model and its feature extractor, `final`.

    Raises:
        ValueError: If the output folder belongs to another recipe, a setting is wrong, or there is nothing to learn
            from.
    """
    output = Path(args.output_dir)
    processes = process_state()
    final = output / "final"
    is_finished = (final / "config.json").is_file()
    if not is_finished:
        model = build_model(args)
        recordings = _decoded(args, model.sampling_rate, processes)
    with processes.main_process_first():
        output.mkdir(parents=True, exist_ok=True)
        keep_recipe(output / "recipe.yaml", args)  # not before: what could not begin may begin otherwise
    if is_finished:
        return final
    checkpoint = newest_checkpoint(output / "checkpoints")
    last_step = 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))
    perturbation = SpeakerPerturbation(**dataclasses.asdict(args.perturbation), sampling_rate=model.sampling_rate)
    trainer = DCSpinTrainer(
        model,
        args,
        PerturbedViewsDataset(recordings, perturbation, args.data.min_seconds, args.data.max_seconds, args.seed),
        callbacks=[JsonLinesCallback(output / "training_log.jsonl", last_step)],
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if processes.is_main_process:
        if has_matplotlib():
            names = [
                "loss",
                *(f"{codebook}_{name}" for codebook in ("primary", "auxiliary") for name in _MEASURES[:3]),
            ]
            draw_loss_curves(output / "training_log.jsonl", output / "loss_curves.png", names)
        _save_whole(model, final)
    processes.wait_for_everyone()
    return final


def build_model(args: DCSpinTrainingArguments) -> DCSpinModel:
    r"""
    The encoder with new codebooks.

    Raises:
        ValueError: If the encoder does not fit the fields, or cannot hear `data.max_seconds` at once.
    """
    set_seed(args.seed)
    fields = {name: value for name, value in args.model.items() if name != "encoder"}
    try:
        model = DCSpinModel.from_encoder(args.model["encoder"], **fields)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    if model.longest_input is not None and args.data.max_seconds * model.sampling_rate > model.longest_input:
        raise ValueError(
            f"`data.max_seconds` ({args.data.max_seconds}) is more than the encoder hears at once,"
            f" {model.longest_input / model.sampling_rate:g} s."
        )
    return model


def _decoded(args: DCSpinTrainingArguments, sampling_rate: int, processes: PartialState) -> DecodedRecordings:
    data = args.data
    with processes.main_process_first():
        recordings = decode_all(
            load_recordings(data.train, data.train_filter, data.train_files, data.train_split, data.audio_column),
            sampling_rate,
            data.cache_dir or Path(args.output_dir) / "audio_cache",
            processes.is_main_process,
        )
    if processes.is_main_process:
        print(f"{len(recordings)} recordings, {recordings.seconds / 3600:.2f} h", file=sys.stderr)
    return recordings


def _save_whole(model: DCSpinModel, folder: Path) -> None:
    # Whole or not at all: where the folder exists, the training is finished.
    temporary = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    # The last update has moved the codes off unit length a little.
    model.normalize_codebooks()
    model.eval().save_pretrained(temporary)
    DCSpinFeatureExtractor(sampling_rate=model.sampling_rate).save_pretrained(temporary)
    os.replace(temporary, folder)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of this installation")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    try:
        final = train_dc_spin(load_recipe(args.recipe, args.overrides, DCSpinTrainingArguments))
    except (ValueError, OSError, MissingPackageError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"the units: {final}")
    leave_together()
    return 0
