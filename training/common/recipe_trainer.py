# SPDX-License-Identifier: Apache-2.0
"""
What the recipe trainers on `transformers.Trainer` share: their settings, their batches, what they log, and how they go
on where they stopped.

A family derives its settings from [`ScheduledRecipeArguments`] and its trainer from [`RecipeTrainer`], whose
`measures` it writes; a module function `run_recipe(path_or_name, overrides) -> str` joins the two for the command
`train`, which finds it by the recipe's key `trainer`.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from speech_tokenizers.training.common.checkpoint_faults import checkpoint_fault, newest_sound, write_checksums
from speech_tokenizers.training.common.checkpoints import (
    StopRequest,
    copy_record,
    list_checkpoints,
    stopping_on_signals,
)
from speech_tokenizers.training.common.data import RecordingsArguments
from speech_tokenizers.training.common.length_batches import length_batch_loader
from speech_tokenizers.training.common.processes import agreed_signal, decided_by_main, process_state, stop_together
from speech_tokenizers.training.common.recipe_files import (
    check_betas,
    check_not_negative,
    check_positive,
    check_seed,
)
from speech_tokenizers.training.common.reporting import TrainingLog, draw_loss_curves, has_matplotlib
from speech_tokenizers.training.common.run_record import RunRecord


@dataclass(kw_only=True)
class ScheduleArguments:
    """
    How long a training is, and how fast.

    Args:
        max_steps (`int`): Optimizer steps.
        learning_rate (`float`): Peak of the learning rate, positive.
        warmup_steps (`int`): Steps in which the learning rate rises to its peak.
    """

    max_steps: int
    learning_rate: float
    warmup_steps: int = 0

    def __post_init__(self):
        if self.max_steps < 1 or self.warmup_steps < 0:
            raise ValueError(
                "`max_steps` must be at least 1, and `warmup_steps` not negative, but got"
                f" {self.max_steps} and {self.warmup_steps}."
            )
        if self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` must be positive, but got {self.learning_rate}.")


@dataclass(kw_only=True)
class RunArguments:
    """
    The settings that recipes of every family have.

    Args:
        output_dir (`str`): Folder of all that a training leaves.
        gradient_accumulation_steps (`int`): Micro-batches of a process in each step.
        betas (`list` of two `float`), epsilon (`float`), weight_decay (`float`): Settings of AdamW.
        max_grad_norm (`float`): Norm to which longer gradients are scaled down.
        mixed_precision (`str`, *optional*): `"bf16"` or `"fp16"`. Defaults to what `accelerate launch
            --mixed_precision` says, and without that to float32.
        seed (`int`): Seed of all that is random: weights, order and parts of the recordings.
        logging_steps (`int`): Steps between entries of the log.
        save_steps (`int`): Steps between checkpoints.
        save_total_limit (`int`): Number of checkpoints to keep.
        num_workers (`int`): Processes that prepare batches. Batches do not depend on it.

    Attributes:
        trainer (`str`): Name of the family, which its recipes give as `trainer`.
    """

    trainer: ClassVar[str]

    output_dir: str
    gradient_accumulation_steps: int = 1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mixed_precision: str | None = None
    seed: int = 0
    logging_steps: int = 50
    save_steps: int = 500
    save_total_limit: int = 2
    num_workers: int = 0

    def __post_init__(self):
        for name in ("gradient_accumulation_steps", "logging_steps", "save_steps", "save_total_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        check_betas(self.betas)
        check_positive(self, "epsilon", "max_grad_norm")
        check_not_negative(self, "weight_decay", "num_workers")
        check_seed(self.seed)
        if self.mixed_precision not in (None, "bf16", "fp16"):
            raise ValueError(f"`mixed_precision` must be 'bf16', 'fp16' or null, but got {self.mixed_precision!r}.")

    def training_arguments(self, folder: Path, schedule: ScheduleArguments, **differing: Any) -> TrainingArguments:
        """
        The settings as `transformers.Trainer` takes them.

        Args:
            folder (`Path`): Gets the checkpoints, in `checkpoints`.
            schedule ([`ScheduleArguments`]): Steps and learning rate; of most families the recipe itself.
            differing: Fields of `TrainingArguments` that the family needs otherwise, such as `lr_scheduler_type`.
        """
        settings: dict[str, Any] = {
            "output_dir": str(folder / "checkpoints"),
            "max_steps": schedule.max_steps,
            "learning_rate": schedule.learning_rate,
            "warmup_steps": schedule.warmup_steps,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "adam_beta1": self.betas[0],
            "adam_beta2": self.betas[1],
            "adam_epsilon": self.epsilon,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "bf16": self.mixed_precision == "bf16",
            "fp16": self.mixed_precision == "fp16",
            # Without it, a `Trainer` without a GPU refuses bf16.
            "use_cpu": process_state().device.type == "cpu",
            "seed": self.seed,
            "logging_steps": self.logging_steps,
            "logging_first_step": True,
            "save_steps": self.save_steps,
            "save_total_limit": self.save_total_limit,
            "dataloader_num_workers": self.num_workers,
            "remove_unused_columns": False,
            "report_to": "none",
        }
        return TrainingArguments(**(settings | differing))


@dataclass(kw_only=True)
class RecipeArguments(RunArguments):
    """
    The settings that recipes of all families that learn from recordings have.

    Args:
        data ([`RecordingsArguments`]): The recordings.
        batch_seconds (`float`): Audio of a micro-batch of one process, with padding, in seconds.
        kwargs: See [`RunArguments`].
    """

    data: RecordingsArguments
    batch_seconds: float = 80.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "batch_seconds")
        if self.batch_seconds < self.data.max_seconds:
            raise ValueError(
                f"`batch_seconds` ({self.batch_seconds}) must hold a recording of `data.max_seconds`"
                f" ({self.data.max_seconds})."
            )

    @property
    def cache_dir(self) -> Path:
        """Folder of decoded audio: `data.cache_dir`, or else `audio_cache` in the output folder."""
        return Path(self.data.cache_dir or Path(self.output_dir) / "audio_cache")


@dataclass(kw_only=True)
class ScheduledRecipeArguments(RecipeArguments, ScheduleArguments):
    """The settings of a recipe with one schedule; see [`RecipeArguments`] and [`ScheduleArguments`]."""

    def __post_init__(self):
        ScheduleArguments.__post_init__(self)
        RecipeArguments.__post_init__(self)


def claim_output(args: Any, inputs: Mapping[str, Any], finished: Collection[str] = ()) -> Path:
    """
    Make the output folder of a recipe and write down what it is for; see [`RunRecord`].

    Call it once the training can begin: until then the settings can be corrected.

    Args:
        args (dataclass): Settings with `output_dir`, such as [`RecipeArguments`].
        inputs (mapping), finished (collection of `str`): See [`RunRecord`].

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If the folder was begun with other settings or data.
    """
    output = Path(args.output_dir)
    RunRecord(output, args, inputs, finished).keep()
    return output


class RecipeTrainer(Trainer):
    """
    `transformers.Trainer` on batches by length, which logs the means of a family's measures.

    Args:
        model (`PreTrainedModel`): The model to train.
        args (`TrainingArguments`): Settings, with `max_steps`; see [`RecipeArguments.training_arguments`].
        batch_length (`int`): Largest length of a micro-batch with padding, in the unit of `train_dataset.lengths`.
        batches (`dict`, *optional*): Options of the [`LengthBatchSampler`], such as `share_batches`.
        kwargs: Further arguments of the `Trainer`; `train_dataset` must have `lengths`.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        batch_length: int,
        batches: dict[str, bool] | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, args, **kwargs)
        self.batch_length, self.batches = batch_length, batches or {}
        self._start_window()

    def measures(
        self, outputs: Any, inputs: dict[str, torch.Tensor]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | int | None]]:
        """
        What a micro-batch adds to the log, beside the loss. A family writes this.

        Args:
            outputs (`ModelOutput`): What the model returned, the loss included.
            inputs (`dict`): What it was given.

        Returns:
            `dict`: A sum (scalar tensor) and a count by name. The log shows the sum over the count, both over all
            micro-batches and processes since the entry before. The count `None` stands for the seconds that have
            passed. The names must be the same for all micro-batches.
        """
        return {}

    def num_items(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """
        Number of items of a micro-batch whose mean the loss is, as a scalar tensor.

        The model then gets the number over all micro-batches and processes of a step as `num_items_in_batch` and
        divides its sum by that. Without an override, `Trainer` counts the `labels` that are not -100, for a model
        that takes `num_items_in_batch`; for another one, every micro-batch counts alike.
        """
        return None

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """See [`length_batch_loader`]."""
        return length_batch_loader(self, self.batch_length, **self.batches)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        counts = [self.num_items(batch) for batch in batch_samples]
        if not counts or counts[0] is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        return self.accelerator.reduce(torch.stack(counts).sum().to(device), "sum").clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a micro-batch; notes the measures of those that are trained on."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            self._note(outputs, inputs)
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _unfinished_mark(folder).touch()
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()  # each process writes its random state
        if self.is_world_process_zero():
            if folder.is_dir():
                copy_record(folder.parent, folder)
                write_checksums(folder)
            _unfinished_mark(folder).unlink(missing_ok=True)

    def _start_window(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._window_start = time.perf_counter()

    @torch.no_grad()
    def _note(self, outputs: Any, inputs: dict[str, torch.Tensor]) -> None:
        # Sums on the device, so that no step waits for them; in double precision, since tokens come by the million.
        device = self.args.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name, (total, count) in self.measures(outputs, inputs).items():
            self._sums[name] = self._sums.get(name, 0) + total.detach().to(device, dtype)
            if count is not None:
                self._counts[name] = self._counts.get(name, 0) + torch.as_tensor(count, dtype=dtype, device=device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the measures since the last entry."""
        if "loss" in logs and self._sums:
            sums, counts = (self.accelerator.reduce(values, "sum") for values in (self._sums, self._counts))
            seconds = time.perf_counter() - self._window_start
            for name, total in sums.items():
                count = float(counts.get(name, seconds))
                logs[name] = float(f"{float(total) / count if count else 0.0:.5g}")
            self._start_window()
        super().log(logs, start_time)


def train_until_done(trainer: Trainer, folder: Path, curves: list[str]) -> None:
    """
    Train to the last step, from the newest sound checkpoint in the trainer's `output_dir` or from the beginning.

    A training that was interrupted ends with the weights and the log of one that was not. (The first entry of the log
    after a checkpoint has the steps since that checkpoint only.)

    Args:
        trainer (`transformers.Trainer`): The trainer.
        folder (`Path`): Gets the log, `training_log.jsonl`, and its picture, `loss_curves.png`.
        curves (`list[str]`): Names of the log that are drawn.

    Raises:
        ValueError: If there are checkpoints, and all are damaged.
        KeyboardInterrupt: If it was told to stop, by Ctrl-C or SIGTERM. It has saved a checkpoint.
    """
    checkpoint = decided_by_main(lambda: sound_checkpoint(Path(trainer.args.output_dir), trainer.args))
    log_path = folder / "training_log.jsonl"
    trainer.add_callback(JsonLinesCallback(log_path))
    with stopping_on_signals() as request:
        stopping = StopCallback(trainer, request)
        trainer.add_callback(stopping)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if stopping.stopped_by:
        if trainer.is_world_process_zero():
            place = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
            print(f"Stopped at {place}; the same command goes on.", file=sys.stderr)
        stop_together(stopping.stopped_by)
    if trainer.is_world_process_zero() and has_matplotlib():
        draw_loss_curves(log_path, folder / "loss_curves.png", curves)


class StopCallback(TrainerCallback):
    """
    Lets a `Trainer` save a checkpoint and end once a signal asks for it.

    Args:
        trainer (`transformers.Trainer`): The trainer.
        request ([`StopRequest`]): What the signal sets.

    Attributes:
        stopped_by (`int`): Number of the signal that ended the training before its last step; 0 if none did.
    """

    def __init__(self, trainer: Trainer, request: StopRequest):
        self.trainer, self.request, self.stopped_by = trainer, request, 0

    def on_step_end(self, args, state, control, **kwargs):
        """Called by the `Trainer`."""
        number = agreed_signal(
            self.trainer.accelerator, self.request.signal_number, state.global_step, max(1, state.logging_steps)
        )
        if number and state.global_step < state.max_steps:
            self.stopped_by = number
            control.should_save = control.should_training_stop = True
        return control


class JsonLinesCallback(TrainerCallback):
    """
    Writes what is logged as JSON lines, one an entry, in the main process.

    Entries of steps after the one that a training goes on from are removed.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.log_file: TrainingLog | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Called by the `Trainer`."""
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.log_file = TrainingLog(self.path, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Called by the `Trainer`."""
        if self.log_file is not None and logs and "loss" in logs:
            entry = {"step": state.global_step, **logs}
            entry.pop("epoch", None)  # the trainer takes the whole training for one
            self.log_file.write(entry)


def _unfinished_mark(checkpoint: Path) -> Path:
    # Stands beside a checkpoint while it is saved: where a save was interrupted, and nowhere else.
    return checkpoint.with_name(f".{checkpoint.name}.incomplete")


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a `Trainer` in a folder, sound or not, oldest first; none whose save was interrupted."""
    return [path for path in list_checkpoints(folder) if path.is_dir() and not _unfinished_mark(path).exists()]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest of the saved checkpoints, sound or not."""
    return max(saved_checkpoints(folder), key=step_of, default=None)


def remove_unfinished(folder: Path) -> None:
    """Remove the checkpoints of a `Trainer` whose save was interrupted, and say so."""
    for mark in folder.glob(".checkpoint-*.incomplete"):
        checkpoint = mark.with_name(mark.name.removeprefix(".").removesuffix(".incomplete"))
        if checkpoint.is_dir():
            tqdm.write(f"{checkpoint}: its save was interrupted; it is removed.", file=sys.stderr)
            shutil.rmtree(checkpoint)
        mark.unlink()


def sound_checkpoint(folder: Path, args: TrainingArguments) -> Path | None:
    """
    The newest checkpoint of a `Trainer` in a folder from which it can go on; see [`newest_sound`].

    Args:
        folder (`Path`): The folder.
        args (`TrainingArguments`): Settings of the trainer, which say what a checkpoint has.

    Raises:
        NoSoundCheckpoint: If there are checkpoints, and all are damaged.
    """
    required = ["trainer_state.json", "*model*.*"]
    if not args.save_only_model:
        required += ["optimizer.pt", "scheduler.pt", "rng_state*.pth"]

    def fault(checkpoint: Path) -> str | None:
        if (found := checkpoint_fault(checkpoint, required)) is not None:
            return found
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return None if isinstance(state.get("global_step"), int) else "trainer_state.json lacks global_step"

    remove_unfinished(folder)
    return newest_sound(saved_checkpoints(folder), fault)


def step_of(checkpoint: Path) -> int:
    """Step of a checkpoint, from its name."""
    return int(re.sub(r"\D", "", checkpoint.name))
