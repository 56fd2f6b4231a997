# SPDX-License-Identifier: Apache-2.0
"""Training of neural codecs with discriminators, on Accelerate."""

import inspect
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import SequenceFeatureExtractor

from speech_tokenizers.training.codec.adversary import Adversary
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.codec.codec_building import (
    check_crops,
    check_loss_weights,
    default_feature_extractor,
    untrained_parts,
)
from speech_tokenizers.training.codec.codec_record import keep_codec_run
from speech_tokenizers.training.codec.latent_health import collapse_warning
from speech_tokenizers.training.codec.latent_schedule import LatentSchedule
from speech_tokenizers.training.codec.objectives import CodecObjective, Conditions
from speech_tokenizers.training.codec.reconstruction_losses import WaveformPair, make_reconstruction_losses
from speech_tokenizers.training.codec.training_data import TrainingData
from speech_tokenizers.training.codec.validation import validate
from speech_tokenizers.training.common.checkpoints import Checkpoints, WeightAverage, stopping_on_signals
from speech_tokenizers.training.common.hub_pushes import HubPushes, HubSettings
from speech_tokenizers.training.common.optimization import (
    OptimizerArguments,
    detached,
    forget,
    frozen,
    make_optimizer,
    set_learning_rate,
)
from speech_tokenizers.training.common.processes import make_accelerator, without_synchronization
from speech_tokenizers.training.common.reporting import RunReports, draw_training
from speech_tokenizers.training.common.run_progress import RunProgress


class CodecTrainer:
    """
    Train a codec and its discriminators, each with its own optimizer, on one or more processes.

    Further losses come as `objectives`; each loss has its weight in `args.loss_weights`. A vocoder is trained in the
    same way, from `conditions`.

    Args:
        model ([`RVQCodecModel`] or [`UnitVocoderModel`]): Model to train. In training mode its forward updates its
            codebooks.
        args ([`CodecTrainingArguments`]): Recipe of the run.
        train_recordings ([`DecodedRecordings`], sequence of arrays or `datasets.IterableDataset`, *optional*):
            Recordings to train on. Defaults to what `args.data` names.
        eval_recordings ([`DecodedRecordings`] or sequence of `(num_samples,)` arrays, *optional*): Held-out
            recordings. Where `train_recordings` is left out, `args.data` names these too.
        feature_extractor (`SequenceFeatureExtractor`, *optional*): Feature extractor that is saved beside the codec.
            Defaults to that of its family, if there is one.
        compute_metrics (callable, *optional*): Function of a recorded and a decoded `(num_samples,)` float array and
            the sampling rate, called for each evaluated recording. It returns numbers by name, whose means `evaluate`
            reports; `None` leaves the recording out. Defaults to what `args.metrics` names.
        objectives (sequence of [`CodecObjective`], *optional*): Losses besides reconstruction, such as
            [`Distillation`].
        conditions ([`Conditions`], *optional*): Conditions that the model is given in place of the waveform, such as
            [`UnitConditions`].

    Attributes:
        stopped_by (`int`): Number of the signal that ended the run before its time; 0 if none did.

    Raises:
        ValueError: If `args.loss_weights` does not name exactly the losses, a name in `args.metrics` is unknown, or a
            size does not fit.
        MissingPackageError: If a metric of `args.metrics` needs a package that is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        args: CodecTrainingArguments,
        train_recordings=None,
        eval_recordings=None,
        feature_extractor: SequenceFeatureExtractor | None = None,
        compute_metrics: Callable[[np.ndarray, np.ndarray, int], Mapping[str, float | None]] | None = None,
        objectives: Sequence[CodecObjective] = (),
        conditions: Conditions | None = None,
    ):
        self.args = args
        self.objectives = list(objectives)
        self.sampling_rate = model.sampling_rate
        self.output_dir = Path(args.output_dir)
        self.feature_extractor = feature_extractor or default_feature_extractor(model)
        self.model_loss_names = model.loss_names
        self._model_arguments = inspect.signature(model.forward).parameters
        self.compute_metrics = compute_metrics
        self.reconstruction_losses = make_reconstruction_losses(args.loss_weights, args.losses, args.mel_scales)
        if compute_metrics is None and args.metrics:
            # What it needs takes a second to import, which other trainings are spared.
            from speech_tokenizers.training.codec.clip_metrics import ClipMetrics

            self.compute_metrics = ClipMetrics(args.metrics, model.sampling_rate)
        self.loss_weights = check_loss_weights(args, self.loss_names, Adversary.loss_names)
        check_crops(args, model)

        self.accelerator = make_accelerator(args, bool(untrained_parts(model, self.loss_names)))
        if args.compile:
            for module in (getattr(model, "encoder", None), model.decoder):
                if module is not None:
                    module.compile()
        optimizer = make_optimizer(model, args.optimizer)
        self.latent_schedule = LatentSchedule(args.latent_health, model, self.loss_names)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.adversary = Adversary(args, self.accelerator)
        self.weight_average = WeightAverage(self.unwrapped_model, args.weight_ema_decay)
        self.data = TrainingData(
            args, self.sampling_rate, self.accelerator, self.objectives, conditions, train_recordings, eval_recordings
        )
        self.run = RunProgress(self.accelerator, args)
        self.reports = RunReports(
            self.accelerator, self.output_dir, args.report_to, args.num_audio_samples, self.sampling_rate
        )
        parts = {
            "codec": self.unwrapped_model,
            "codec_optimizer": self.optimizer,
            **self.adversary.parts(),
            "weight_average": self.weight_average if self.weight_average.is_kept else None,
            "scaler": self.accelerator.scaler,
        }
        self.checkpoints = Checkpoints(self.accelerator, args, parts)
        self.stopped_by = 0
        self.pushes: HubPushes | None = None  # from the beginning of `train` on
        self._synchronize = True

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that `codec_losses` returns and `args.loss_weights` weights."""
        further = (name for objective in self.objectives for name in objective.loss_names)
        return (*self.reconstruction_losses, *self.model_loss_names, *Adversary.loss_names, *further)

    def codec_losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        The codec's losses by name, without weights; the adversarial ones only once the discriminators act.

        Args:
            outputs ([`RVQCodecOutput`] or [`UnitVocoderOutput`]): Output of the model for the batch.
            batch (`dict`): Batch with `input_values` of shape `(batch, 1, num_samples)`, and what else the data gives.
        """
        recorded, decoded = batch["input_values"], outputs.audio_values
        pair = WaveformPair(decoded, recorded, self.sampling_rate)
        losses = {
            **{name: loss(pair) for name, loss in self.reconstruction_losses.items()},
            **{name: outputs[f"{name}_loss"] for name in self.model_loss_names},
            **self.adversary.codec_losses(recorded, decoded),
        }
        for objective in self.objectives:
            losses |= objective.losses(outputs, batch)
        return losses

    def current_weight(self, name: str) -> float:
        """Weight of a loss at the present step: the recipe's, and for the adversarial ones grown from 0."""
        weight = self.loss_weights[name]
        return weight * self.adversary.schedule.weight(self.step) if name in Adversary.loss_names else weight

    def reconstruct(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
        """Output of a model for a batch: for the waveforms, or for the conditions that it takes in their place."""
        given = {**batch, "num_samples": batch["input_values"].shape[-1], "return_loss": False}
        if not self.latent_schedule.quantizes(self.unwrapped_model):
            given["num_quantizers"] = 0
        return model(**{name: value for name, value in given.items() if name in self._model_arguments})

    def training_step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Both updates from one forward of the codec on a micro-batch. Returns detached losses by name."""
        recorded = batch["input_values"]  # (B, 1, T)
        outputs = self.reconstruct(self.model, batch)  # one forward serves both updates
        logged = {}

        # 1. The discriminators learn to tell recorded from decoded speech.
        if self.adversary.acts:
            logged["discriminator"] = self.adversary.discriminator_loss(recorded, outputs.audio_values)
            logged["discriminator_grad_norm"] = self.update(
                self.adversary.discriminator,
                self.adversary.optimizer,
                logged["discriminator"],
                self.args.discriminator_optimizer,
            )

        # 2. The codec learns to reconstruct, to pass for a recording, and to stay near its codebooks.
        with frozen(self.adversary.discriminator):
            losses = self.codec_losses(outputs, batch)
            loss = torch.stack([self.current_weight(name) * value for name, value in losses.items()]).sum()
            grad_norm = self.update(self.model, self.optimizer, loss, self.args.optimizer)

        for objective in self.objectives:
            logged |= objective.reported
        return detached({"loss": loss, **losses, **logged, "grad_norm": grad_norm})

    def update(self, module: nn.Module, optimizer, loss: torch.Tensor, args: OptimizerArguments) -> torch.Tensor:
        """
        Add the gradient of `loss`, and at the last micro-batch clip it and take a step; a gradient that is not finite
        is dropped.

        Returns:
            `torch.Tensor`: Norm of the gradient before clipping, a scalar; 0 between micro-batches.
        """
        self.backward(loss)
        if not self._synchronize:
            return loss.new_zeros(())
        max_norm = math.inf if args.max_grad_norm is None else args.max_grad_norm
        # This optimizer's alone: `accelerator.clip_grad_norm_` would unscale both, one of them in mid-accumulation.
        self.accelerator.unscale_gradients(optimizer)
        norm = nn.utils.clip_grad_norm_(module.parameters(), max_norm)
        # With a gradient scaler (fp16) the optimizer skips such steps by itself and adapts its scale.
        if self.accelerator.scaler is not None or torch.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()
        return norm

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's loss."""
        self.accelerator.backward(loss / self.args.gradient_accumulation_steps)

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.run.step

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, by steps or by time."""
        return self.run.finished

    def train(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, float]:
        """
        Train to `args.max_steps`, or until `args.max_minutes` have passed.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): Folder of a checkpoint; `True` or `"latest"` for the
                newest sound one, if there is one. Defaults to `args.resume_from_checkpoint`.

        Returns:
            `dict`: Losses that were logged last, by name.

        Raises:
            ValueError: If the run was begun with other settings or data than `args.allow_changes` lets differ, or
                its checkpoints are damaged.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        keep_codec_run(self, resume_from_checkpoint, early=True)
        self.data.prepare_objectives(self.unwrapped_model)
        self._resume(resume_from_checkpoint)
        keep_codec_run(self, resume_from_checkpoint)
        self.pushes = HubPushes(self.args, self.output_dir)
        self.reports.start(self.step)
        if self.adversary.is_too_late:
            self.reports.warn("the run ends before `adversarial.start_step`; its discriminators never act.")
        self.model.train()
        logged: dict[str, float] = {}
        batches = iter(self.train_batches())
        progress = tqdm(
            total=self.args.max_steps, initial=self.step, unit="step", disable=not self.accelerator.is_main_process
        )
        with stopping_on_signals() as stop, progress:
            while not self.finished:
                self._tend_latents()
                started = time.perf_counter()
                losses = self._step_over(batches)
                self.run.window.add(losses, time.perf_counter() - started)
                self.run.step += 1
                progress.update()
                self.weight_average.update(self.unwrapped_model)
                if self.step % self.args.logging_steps == 0 or self.finished:
                    logged = self._log_window()
                    progress.set_postfix({name: f"{logged[name]:.4g}" for name in ("loss", "mel") if name in logged})
                finished = self.finished
                self.stopped_by = self.run.agreed(stop.signal_number, self.args.logging_steps)
                if (self.args.save_steps and self.step % self.args.save_steps == 0) or finished or self.stopped_by:
                    self.save_checkpoint()
                if self.stopped_by:
                    break
                if self.args.eval_steps and (self.step % self.args.eval_steps == 0 or finished):
                    self.evaluate()
        if self.finished and (missed := self.latent_schedule.missed_revivals(self.step)):
            sentence = f"The time was over before the revivals after these steps: {missed}."
            self.reports.tell("warning", sentence, self.step)
        self.reports.finish()
        return logged

    def _tend_latents(self) -> None:
        """Do what the recipe's `latent_health` asks for before the next step."""
        model, time_share = self.unwrapped_model, self.run.time_share
        if not self.latent_schedule.has_work(self.step, time_share, model):
            return
        crop_frames = model.get_encoded_length(round(self.args.data.segment_seconds * self.sampling_rate))
        changed, done = self.latent_schedule.apply(
            self.step,
            time_share,
            model,
            self.accelerator,
            lambda num_steps: self.data.batches(range(self.step, self.step + num_steps), model, with_targets=False),
            crop_frames * self.args.global_batch_size,
        )
        forget(self.optimizer, changed)
        if changed:
            self.weight_average.restart()
        for sentence in done:
            # Of the coming step: a run that resumes here does it again, and logs it again.
            self.reports.tell("latents", sentence, self.step + 1)

    def _step_over(self, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        args = self.args
        progress = self.run.position
        set_learning_rate(self.optimizer, args.optimizer, self.step, args.max_steps, progress)
        self.adversary.begin_step(self.step, progress)
        totals: dict[str, torch.Tensor] = {}
        for micro_batch in range(args.gradient_accumulation_steps):
            batch = next(batches)
            batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
            self._synchronize = micro_batch == args.gradient_accumulation_steps - 1
            modules = () if self._synchronize else (self.model, self.adversary.discriminator)
            with without_synchronization(self.accelerator, modules):
                for name, value in self.training_step(batch).items():
                    share = value if name.endswith("grad_norm") else value / args.gradient_accumulation_steps
                    totals[name] = totals[name] + share if name in totals else share
        return totals

    def _log_window(self) -> dict[str, float]:
        """Log the means since the last log, over steps and processes."""
        entry = self.run.close_window(self.args.global_batch_size * self.args.data.segment_seconds)
        entry["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.reports.write(self.step, entry, self.run.elapsed_seconds)
        if not math.isfinite(entry["loss"]):
            raise FloatingPointError(
                f"The loss is {entry['loss']} at step {self.step}; lower `optimizer.learning_rate` and resume from a"
                " checkpoint, with `allow_changes=[optimizer.learning_rate]`."
            )
        return entry

    def train_batches(self) -> torch.utils.data.DataLoader:
        """Micro-batches of this process from the present step on, with what the model and the objectives need."""
        self.data.prepare_conditions(self.unwrapped_model)
        return self.data.batches(range(self.step, self.args.max_steps), self.unwrapped_model)

    def evaluate(self) -> dict[str, float]:
        """
        Code and decode the evaluation recordings, with the averaged weights if there are any.

        Returns:
            `dict`: Values of [`validate`], with `eval_` before each name. Empty without evaluation recordings.
        """
        if self.data.train is None and self.data.evaluation is None:
            self.data.find()
        if self.data.evaluation is None:
            return {}
        model = self.unwrapped_model
        self.data.prepare_conditions(model)
        was_training = model.training
        with self.weight_average.applied_to(model):
            model.eval()
            values = validate(
                model,
                self.data.evaluation,
                self.accelerator,
                self.reconstruction_losses,
                self.args.data.max_eval_seconds,
                lambda index, recorded: self.reconstruct(model, self.data.evaluated(index, recorded)),
                self.model_loss_names,
                self.compute_metrics,
                lambda index, recorded, decoded: self.reports.keep_sample(index, self.step, recorded, decoded),
            )
            model.train(was_training)
        entry = {f"eval_{name}": value for name, value in values.items()}
        self.reports.write(self.step, entry, self.run.elapsed_seconds)
        if warning := collapse_warning(values, self.args.latent_health.min_live_share, model.config.hidden_size):
            self.reports.tell("warning", warning, self.step)
        if self.accelerator.is_main_process:
            self.draw_curves()
        return entry

    def draw_curves(self) -> None:
        """Draw the log into `loss_curves.png`, where matplotlib is installed and something was trained."""
        draw_training(self.reports.log, ["loss", *self.loss_names, "discriminator", *self.args.metrics])

    @property
    def unwrapped_model(self) -> nn.Module:
        """The codec without the wrapper of data parallelism."""
        return self.accelerator.unwrap_model(self.model)

    def save_model(self, output_dir: str | Path | None = None) -> Path:
        """
        Save the codec, with the averaged weights if there are any, and its feature extractor, for `from_pretrained`.

        Args:
            output_dir (`str` or `Path`, *optional*): Folder to save in. Defaults to `final` in `args.output_dir`.

        Raises:
            ValueError: If its codebooks have not started.
        """
        folder = self.output_dir / "final" if output_dir is None else Path(output_dir)
        self._publish(_save_here, folder)
        return folder

    def push_to_hub(self, repo_id: str | None = None, **options: Any) -> None:
        """
        Push the codec, as `save_model` would save it, with its feature extractor, its code and its card.

        Args:
            repo_id (`str`, *optional*): Repository on the Hub; created if absent. Defaults to `args.hub_model_id`.
            options: `commit_message`; and `private`, `revision` and `token`, which default to those of `args`.

        Raises:
            ValueError: If there is no `repo_id`, the codebooks have not started, or the Hub refuses.
        """
        self._publish(_push_now, _repo_id(self, repo_id), **options)

    def _publish(self, how: Callable[..., None], *args: Any, **options: Any) -> None:
        self.latent_schedule.check_started(self.unwrapped_model)
        if self.accelerator.is_main_process:
            how(self, *args, **options)
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self) -> Path:
        """All that `resume_from_checkpoint` needs, in `checkpoint-<step>`; beside it the codec, for `load`."""
        shared = {**self.run.state_dict(), **self.adversary.state_dict()}
        own = {"window": self.run.window.state_dict()}
        return _push_saved(self, self.checkpoints.save(self.step, shared, own, partial(_save_beside, self)))

    def _left_out(self, shared: Mapping[str, Any]) -> Collection[str]:
        # Discriminators that have not learnt anything yet may be exchanged for others.
        self.adversary.load_state_dict(shared)
        return () if self.adversary.acts else self.adversary.parts()

    def _resume(self, checkpoint: str | bool | None) -> None:
        found = self.checkpoints.find(checkpoint, self._left_out)
        if found is None:
            return
        folder, shared = found
        own = self.checkpoints.load(folder, self._left_out(shared))
        self.run.load_state_dict(shared)
        if own is not None:
            self.run.window.load_state_dict(own["window"], self.accelerator.device)


def _save_here(trainer: CodecTrainer, folder: Path) -> None:
    with trainer.weight_average.applied_to(trainer.unwrapped_model):
        trainer.unwrapped_model.save_pretrained(folder)
    if trainer.feature_extractor is not None:
        trainer.feature_extractor.save_pretrained(folder)


def _repo_id(trainer: CodecTrainer, repo_id: str | None) -> str:
    repo_id = repo_id or trainer.args.hub_model_id
    if repo_id is None:
        raise ValueError("`push_to_hub` needs `repo_id`, here or as `hub_model_id` in the recipe.")
    return repo_id


def _push_now(
    trainer: CodecTrainer,
    repo_id: str,
    *,
    commit_message: str = "Upload codec",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> None:
    if trainer.pushes is not None:
        trainer.pushes.wait()  # else what it pushes would come last
    given = {"hub_private_repo": private, "hub_revision": revision, "hub_token": token}
    settings = HubSettings.of(trainer.args, push_to_hub=True, hub_model_id=repo_id, **given)
    pushes = HubPushes(settings, trainer.output_dir)
    with trainer.weight_average.applied_to(trainer.unwrapped_model):
        pushed = pushes.push(trainer.unwrapped_model, trainer.feature_extractor, commit_message)
    pushed.result()


def _push_saved(trainer: CodecTrainer, checkpoint: Path) -> Path:
    if trainer.pushes is None or not (checkpoint / "config.json").is_file():
        return checkpoint  # there are no codes yet
    if trainer.accelerator.is_main_process:
        with trainer.weight_average.applied_to(trainer.unwrapped_model):
            trainer.pushes.at_save(trainer.unwrapped_model, trainer.feature_extractor, trainer.step, checkpoint)
    trainer.accelerator.wait_for_everyone()
    return checkpoint


def _save_beside(trainer: CodecTrainer, folder: Path) -> None:
    try:
        trainer.latent_schedule.check_started(trainer.unwrapped_model)
    except ValueError:
        return  # there are no codes yet
    _save_here(trainer, folder)
