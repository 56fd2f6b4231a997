# SPDX-License-Identifier: Apache-2.0
"""Training of neural codecs with discriminators, on Accelerate."""

import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import nn
from tqdm import tqdm
from transformers import SequenceFeatureExtractor

from speech_tokenizers.training.codec.adversarial_schedule import AdversarialSchedule
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.codec.codec_building import (
    build_discriminators,
    check_loss_weights,
    default_feature_extractor,
    untrained_parts,
)
from speech_tokenizers.training.codec.crops import training_batches
from speech_tokenizers.training.codec.discriminators import DiscriminatorOutput
from speech_tokenizers.training.codec.latent_health import collapse_warning
from speech_tokenizers.training.codec.latent_schedule import LatentSchedule
from speech_tokenizers.training.codec.losses import adversarial_loss, discriminator_loss, feature_matching_loss
from speech_tokenizers.training.codec.objectives import CodecObjective, Conditions
from speech_tokenizers.training.codec.reconstruction_losses import WaveformPair, make_reconstruction_losses
from speech_tokenizers.training.codec.validation import validate
from speech_tokenizers.training.common.checkpoints import (
    WeightAverage,
    find_state,
    load_states,
    random_state,
    remove_old_checkpoints,
    save_states,
    set_random_state,
    stopping_on_signals,
    write_checkpoint,
)
from speech_tokenizers.training.common.data import prepare_recordings
from speech_tokenizers.training.common.optimization import (
    OptimizerArguments,
    detached,
    forget,
    frozen,
    make_optimizer,
    set_learning_rate,
)
from speech_tokenizers.training.common.precision import resolve_precision
from speech_tokenizers.training.common.processes import process_state
from speech_tokenizers.training.common.recipe_files import changed_settings
from speech_tokenizers.training.common.reporting import LossWindow, TrainingLog, draw_training, save_sample


# Settings that say how often, how long and where, of which a resumed run need not warn.
MAY_CHANGE = (
    *("output_dir", "max_steps", "max_minutes", "logging_steps", "eval_steps", "save_steps", "save_total_limit"),
    *("metrics", "num_audio_samples", "report_to", "resume_from_checkpoint", "hub_model_id"),
)


class CodecTrainer:
    r"""
    Train a codec and its discriminators, each with its own optimizer, on one or more processes.

    Further losses come as `objectives`; each loss has its weight in `args.loss_weights`. A vocoder is trained in the
    same way, from `conditions`.

    Args:
        model ([`RVQCodecModel`] or [`UnitVocoderModel`]): The codec. In training mode its forward updates its
            codebooks.
        args ([`CodecTrainingArguments`]): The recipe.
        train_recordings ([`DecodedRecordings`], sequence of arrays or `datasets.IterableDataset`, *optional*):
            What to train on. Defaults to what `args.data` names.
        eval_recordings ([`DecodedRecordings`] or sequence of `(num_samples,)` arrays, *optional*): Held out.
        feature_extractor (`SequenceFeatureExtractor`, *optional*): Saved beside the codec. Defaults to that of its
            family, if there is one.
        compute_metrics (callable, *optional*): Called with a recorded and a decoded `(num_samples,)` float array and
            the sampling rate for each evaluated recording; returns a dict of numbers, whose means `evaluate` reports;
            `None` in place of a number leaves the recording out. Defaults to what `args.metrics` names.
        objectives (sequence of [`CodecObjective`], *optional*): What else the codec is trained for, such as
            [`Distillation`].
        conditions ([`Conditions`], *optional*): What the model is given in place of the waveform, such as
            [`UnitConditions`].

    Raises:
        ValueError: If `args.loss_weights` does not name exactly the losses, a name in `args.metrics` is unknown, or a
            size does not fit.
        MissingPackageError: If a metric of `args.metrics` needs a package that is not installed.
    """

    adversarial_loss_names = ("adversarial", "feature_matching")

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
        self.conditions = conditions
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
        self.loss_weights = check_loss_weights(args, self.loss_names, self.adversarial_loss_names)

        # Buffers are not broadcast: the quantizer itself keeps codebooks equal on all processes.
        parallel = DistributedDataParallelKwargs(
            broadcast_buffers=False,
            # Such as projections that a model has for teachers which this training does without.
            find_unused_parameters=bool(untrained_parts(model, self.loss_names)),
        )
        self.accelerator = Accelerator(
            mixed_precision=resolve_precision(args.mixed_precision, process_state().device.type),
            log_with=list(args.report_to) or None,
            project_dir=args.output_dir,
            kwargs_handlers=[parallel],
        )
        if self.accelerator.device.type == "cpu":
            # Denormal numbers, as in fading silence, are slow and inaudible.
            torch.set_flush_denormal(True)

        discriminator = build_discriminators(args.adversarial)
        if args.compile:
            for module in (getattr(model, "encoder", None), model.decoder, discriminator):
                if module is not None:
                    module.compile()
        optimizer = make_optimizer(model, args.optimizer)
        self.adversarial_schedule = AdversarialSchedule(args.adversarial)
        self.latent_schedule = LatentSchedule(args.latent_health, model, self.loss_names)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.discriminator: Any = None
        self.discriminator_optimizer: Any = None
        if discriminator is not None:
            self.discriminator, self.discriminator_optimizer = self.accelerator.prepare(
                discriminator, make_optimizer(discriminator, args.discriminator_optimizer)
            )
        self.weight_average = None
        if args.weight_ema_decay is not None:
            self.weight_average = WeightAverage(self.unwrapped_model, args.weight_ema_decay)

        self.train_recordings, self.eval_recordings = train_recordings, eval_recordings
        self._has_conditions = False
        self.step = 0
        self.training_seconds = 0.0
        self._window = LossWindow()
        self._synchronize = True
        self.log: TrainingLog | None = None

    # What is minimised

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that `codec_losses` returns and `args.loss_weights` weights."""
        further = (name for objective in self.objectives for name in objective.loss_names)
        return (*self.reconstruction_losses, *self.model_loss_names, *self.adversarial_loss_names, *further)

    def codec_losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        r"""
        The codec's losses by name, without weights; the adversarial ones only once the discriminators act.

        Args:
            outputs ([`RVQCodecOutput`] or [`UnitVocoderOutput`]): What the model made of the batch.
            batch (`dict`): `input_values` of shape `(batch, 1, num_samples)`, and what else the data gives.
        """
        recorded, decoded = batch["input_values"], outputs.audio_values
        pair = WaveformPair(decoded, recorded, self.sampling_rate)
        losses = {
            **{name: loss(pair) for name, loss in self.reconstruction_losses.items()},
            **{name: outputs[f"{name}_loss"] for name in self.model_loss_names},
        }
        if self.discriminators_act:
            # Unwrapped: the discriminators' parameters are frozen here, and data parallelism would wait for their
            # gradients.
            discriminator = self.accelerator.unwrap_model(self.discriminator)
            of_decoded = discriminator(decoded)
            with torch.no_grad():
                of_recorded = discriminator(recorded)
            adversarial = self.args.adversarial
            losses["adversarial"] = adversarial_loss(of_decoded, adversarial.objective)
            losses["feature_matching"] = feature_matching_loss(of_recorded, of_decoded, adversarial.relative_features)
        for objective in self.objectives:
            losses |= objective.losses(outputs, batch)
        return losses

    def discriminator_loss(self, recorded: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """The discriminators' loss on recorded and decoded audio `(batch, 1, num_samples)`, judged in one forward."""
        outputs = self.discriminator(torch.cat([recorded, decoded.detach()]))
        count = len(recorded)
        of_recorded = [DiscriminatorOutput(output.logits[:count], []) for output in outputs]
        of_decoded = [DiscriminatorOutput(output.logits[count:], []) for output in outputs]
        return discriminator_loss(of_recorded, of_decoded, self.args.adversarial.objective)

    @property
    def discriminators_act(self) -> bool:
        """Whether the discriminators run and learn at the present step."""
        return self.discriminator is not None and self.adversarial_schedule.first_step is not None

    def current_weight(self, name: str) -> float:
        """Weight of a loss at the present step: the recipe's, and for the adversarial ones grown from 0."""
        weight = self.loss_weights[name]
        return weight * self.adversarial_schedule.weight(self.step) if name in self.adversarial_loss_names else weight

    def reconstruct(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
        """What a model makes of a batch: of the waveforms, or of the conditions that it takes in their place."""
        given = {**batch, "num_samples": batch["input_values"].shape[-1], "return_loss": False}
        if not self.latent_schedule.quantizes(self.unwrapped_model):
            given["num_quantizers"] = 0
        return model(**{name: value for name, value in given.items() if name in self._model_arguments})

    def training_step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        r"""Both updates from one forward of the codec on a micro-batch. Returns detached losses by name."""
        recorded = batch["input_values"]  # (B, 1, T)
        outputs = self.reconstruct(self.model, batch)  # one forward serves both updates
        logged = {}

        # 1. The discriminators learn to tell recorded from decoded speech.
        if self.discriminators_act:
            logged["discriminator"] = self.discriminator_loss(recorded, outputs.audio_values)
            logged["discriminator_grad_norm"] = self.update(
                self.discriminator,
                self.discriminator_optimizer,
                logged["discriminator"],
                self.args.discriminator_optimizer,
            )

        # 2. The codec learns to reconstruct, to pass for a recording, and to stay near its codebooks.
        with frozen(self.discriminator):
            losses = self.codec_losses(outputs, batch)
            loss = torch.stack([self.current_weight(name) * value for name, value in losses.items()]).sum()
            grad_norm = self.update(self.model, self.optimizer, loss, self.args.optimizer)

        for objective in self.objectives:
            logged |= getattr(objective, "reported", {})
        return detached({"loss": loss, **losses, **logged, "grad_norm": grad_norm})

    def update(self, module: nn.Module, optimizer, loss: torch.Tensor, args: OptimizerArguments) -> torch.Tensor:
        r"""
        Add the gradient of `loss`, and at the last micro-batch clip it and take a step; a gradient that is not finite
        is dropped.

        Returns:
            `torch.Tensor`: The norm of the gradient before clipping, 0 between micro-batches.
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

    # The loop

    @property
    def elapsed_seconds(self) -> float:
        """Training time that all processes agree on; several do so when they log."""
        return self.training_seconds + (self._window.seconds if self.accelerator.num_processes == 1 else 0.0)

    @property
    def time_share(self) -> float:
        """Share of `args.max_minutes` that has passed, on which all processes agree; 0 where time does not count."""
        return 0.0 if self.args.max_minutes is None else min(1.0, self.elapsed_seconds / (60 * self.args.max_minutes))

    @property
    def progress(self) -> float:
        """How far the run is, in steps of `args.max_steps`: more than `step` where its time is further."""
        return max(self.step, self.args.max_steps * self.time_share)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, by steps or by time."""
        return self.progress >= self.args.max_steps

    def train(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, float]:
        r"""
        Train to `args.max_steps`, or until `args.max_minutes` have passed.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint folder; `True` or `"latest"` for the
                newest complete one, if there is one. Defaults to `args.resume_from_checkpoint`.

        Returns:
            `dict`: The last logged losses.
        """
        if self.train_recordings is None:
            self._prepare_recordings()
        for objective in self.objectives:
            objective.prepare(self.train_recordings, self.unwrapped_model, self.accelerator, self.output_dir)
        self._resume(self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint)
        self._start_reports()
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
                self._window.add(losses, time.perf_counter() - started)
                self.step += 1
                progress.update()
                if self.weight_average is not None:
                    self.weight_average.update(self.unwrapped_model)
                if self.step % self.args.logging_steps == 0 or self.finished:
                    logged = self._log_window()
                    progress.set_postfix({name: f"{logged[name]:.4g}" for name in ("loss", "mel") if name in logged})
                finished = self.finished
                stopping = self._agreed(stop.made)
                if (self.args.save_steps and self.step % self.args.save_steps == 0) or finished or stopping:
                    self.save_checkpoint()
                if stopping:
                    break
                if self.args.eval_steps and (self.step % self.args.eval_steps == 0 or finished):
                    self.evaluate()
        if self.finished and (missed := [step for step in self.args.latent_health.revival_steps if step >= self.step]):
            steps = ", ".join(map(str, missed))
            self._tell("warning", f"The time was over before the revivals after these steps: {steps}.", self.step)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return logged

    def _tend_latents(self) -> None:
        """Do what the recipe's `latent_health` asks for before the next step."""
        model, time_share = self.unwrapped_model, self.time_share
        if not self.latent_schedule.has_work(self.step, time_share, model):
            return
        crop_frames = model.get_encoded_length(round(self.args.data.segment_seconds * self.sampling_rate))
        changed, done = self.latent_schedule.apply(
            self.step,
            time_share,
            model,
            self.accelerator,
            lambda num_steps: self._batches(range(self.step, self.step + num_steps)),
            crop_frames * self.args.global_batch_size,
        )
        forget(self.optimizer, changed)
        if changed and self.weight_average is not None:
            self.weight_average.restart()
        for sentence in done:
            # Of the coming step: a run that resumes here does it again, and logs it again.
            self._tell("latents", sentence, self.step + 1)

    def _step_over(self, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        args = self.args
        progress = self.progress
        set_learning_rate(self.optimizer, args.optimizer, self.step, args.max_steps, progress)
        self.adversarial_schedule.begin(self.step, progress)
        if self.discriminators_act:
            self.adversarial_schedule.set_learning_rate(
                self.discriminator_optimizer, args.discriminator_optimizer, self.step, args.max_steps, progress
            )
        totals: dict[str, torch.Tensor] = {}
        for micro_batch in range(args.gradient_accumulation_steps):
            batch = next(batches)
            batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
            self._synchronize = micro_batch == args.gradient_accumulation_steps - 1
            with self._without_synchronization() if not self._synchronize else nullcontext():
                for name, value in self.training_step(batch).items():
                    share = value if name.endswith("grad_norm") else value / args.gradient_accumulation_steps
                    totals[name] = totals[name] + share if name in totals else share
        return totals

    @contextmanager
    def _without_synchronization(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in (self.model, self.discriminator):
                if module is not None:
                    stack.enter_context(self.accelerator.no_sync(module))
            yield

    def _log_window(self) -> dict[str, float]:
        """Log the means since the last log, over steps and processes."""
        window, self._window = self._window, LossWindow()
        entry = window.means(self.accelerator)
        # Else the processes, each with a clock of its own, would have different learning rates and ends.
        (seconds,) = broadcast_object_list([window.seconds])
        steps_per_second = window.steps / max(seconds, 1e-9)
        self.training_seconds += seconds
        entry |= {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "steps_per_second": steps_per_second,
            "audio_seconds_per_second": (
                steps_per_second * self.args.global_batch_size * self.args.data.segment_seconds
            ),
            "training_seconds": self.training_seconds,
        }
        if self.accelerator.device.type == "cuda":
            entry["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._write_log(entry)
        if not math.isfinite(entry["loss"]):
            raise FloatingPointError(
                f"The loss is {entry['loss']} at step {self.step}; lower `optimizer.learning_rate` and resume from a"
                " checkpoint."
            )
        return entry

    def _write_log(self, entry: dict[str, float]) -> None:
        entry = {"training_minutes": self.elapsed_seconds / 60, **entry}
        if self.log is not None:
            self.log.write({"step": self.step, **entry})
        if self.args.report_to and self.accelerator.trackers:
            self.accelerator.log(entry, step=self.step)

    def _tell(self, kind: str, sentence: str, step: int) -> None:
        """Say on the terminal and in the log what happened at a step."""
        if self.accelerator.is_main_process:
            tqdm.write(f"{kind}, step {step}: {sentence}")
            if self.log is not None:
                self.log.write({"step": step, kind: sentence})

    def _start_reports(self) -> None:
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            path = self.output_dir / "recipe.yaml"
            if self.step and (changed := changed_settings(path, self.args, MAY_CHANGE)):
                # What was trained until here has its own recipe.
                path.rename(path.with_name(f"recipe-until-{self.step:08d}.yaml"))
                listed = "; ".join(f"`{key}` was {before!r} and is {now!r}" for key, (before, now) in changed.items())
                tqdm.write(f"warning: the run goes on from step {self.step} with other settings: {listed}.")
            if self.discriminator is not None and self.args.adversarial.start_step >= self.args.max_steps:
                tqdm.write("warning: the run ends before `adversarial.start_step`; its discriminators never act.")
            recipe = yaml.safe_dump(self.args.to_dict(), sort_keys=False, allow_unicode=True)
            path.write_text(recipe, encoding="utf-8")
            self.log = TrainingLog(self.output_dir / "training_log.jsonl", self.step)
        if self.args.report_to:
            self.accelerator.init_trackers(self.output_dir.name or "codec", config=None)

    # Data

    def train_batches(self) -> torch.utils.data.DataLoader:
        """Micro-batches of this process from the present step on, with what the model and the objectives need."""
        self._prepare_conditions()
        return self._batches(
            range(self.step, self.args.max_steps), self._targets if self.objectives or self.conditions else None
        )

    def _batches(self, steps: range, targets: Callable | None = None) -> torch.utils.data.DataLoader:
        return training_batches(
            self.train_recordings,
            self.args.data,
            self.sampling_rate,
            self.args.seed,
            self.args.global_batch_size,
            self.args.gradient_accumulation_steps,
            steps,
            self.accelerator,
            self.output_dir / "rejected.jsonl",
            targets,
            1 if self.conditions is None else self.unwrapped_model.hop_length,
        )

    def _targets(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        if self.conditions is not None:
            found |= self.conditions.of_crop(recording, first_sample, num_samples)
        for objective in self.objectives:
            found |= objective.targets(recording, first_sample, num_samples)
        return found

    def _prepare_conditions(self) -> None:
        if self.conditions is not None and not self._has_conditions:
            self.conditions.prepare(
                self.train_recordings, self.eval_recordings, self.unwrapped_model, self.accelerator, self.output_dir
            )
            self._has_conditions = True

    def _prepare_recordings(self) -> None:
        """Find and decode what `args.data` names; what cannot be decoded goes to `rejected.jsonl`."""
        cache_dir = Path(self.args.data.cache_dir or self.output_dir / "audio_cache")
        self.train_recordings, self.eval_recordings = prepare_recordings(
            self.args.data, self.sampling_rate, cache_dir, self.accelerator, self.output_dir / "rejected.jsonl"
        )

    # Evaluation

    def evaluate(self) -> dict[str, float]:
        r"""
        Code and decode the evaluation recordings, with the averaged weights if there are any.

        Returns:
            `dict`: What [`validate`] measures, with `eval_` before each name. Empty without evaluation recordings.
        """
        if self.train_recordings is None and self.eval_recordings is None:
            self._prepare_recordings()
        if self.eval_recordings is None:
            return {}
        self._prepare_conditions()
        model = self.unwrapped_model
        was_training = model.training
        with self.averaged_weights():
            model.eval()
            values = validate(
                model,
                self.eval_recordings,
                self.accelerator,
                self.reconstruction_losses,
                self.args.data.max_eval_seconds,
                self._reconstruct_evaluated,
                self.model_loss_names,
                self.compute_metrics,
                self._keep_sample,
            )
            model.train(was_training)
        entry = {f"eval_{name}": value for name, value in values.items()}
        self._write_log(entry)
        if warning := collapse_warning(values, self.args.latent_health.min_live_share, model.config.hidden_size):
            self._tell("warning", warning, self.step)
        if self.accelerator.is_main_process:
            self.draw_curves()
        return entry

    def draw_curves(self) -> None:
        """Draw the log into `loss_curves.png`, where matplotlib is installed and something was trained."""
        draw_training(self.log, ["loss", *self.loss_names, "discriminator", *self.args.metrics])

    def _reconstruct_evaluated(self, index: int, recorded: torch.Tensor) -> Any:
        batch = {"input_values": recorded}
        if self.conditions is not None:
            of_recording = self.conditions.of_evaluated(index, recorded.shape[-1])
            batch |= {name: value.to(recorded.device)[None] for name, value in of_recording.items()}
        return self.reconstruct(self.unwrapped_model, batch)

    def _keep_sample(self, index: int, recorded: torch.Tensor, decoded: torch.Tensor) -> None:
        if index < self.args.num_audio_samples:
            folder = self.output_dir / "samples" / f"{index:03d}"
            save_sample(folder, f"step-{self.step:08d}", recorded, decoded, self.sampling_rate)

    # Saving

    @property
    def unwrapped_model(self) -> nn.Module:
        """The codec without the wrapper of data parallelism."""
        return self.accelerator.unwrap_model(self.model)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this context the codec has its averaged weights, if the recipe asks for an average."""
        average = self.weight_average
        with (
            nullcontext() if average is None or average.num_updates == 0 else average.applied_to(self.unwrapped_model)
        ):
            yield

    def save_model(self, output_dir: str | Path | None = None) -> Path:
        r"""
        Save the codec, with the averaged weights if there are any, and its feature extractor, for `from_pretrained`.

        Args:
            output_dir (`str` or `Path`, *optional*): Defaults to `final` in `args.output_dir`.

        Raises:
            ValueError: If its codebooks have not started.
        """
        self.latent_schedule.check_started(self.unwrapped_model)
        folder = self.output_dir / "final" if output_dir is None else Path(output_dir)
        if self.accelerator.is_main_process:
            with self.averaged_weights():
                self.unwrapped_model.save_pretrained(folder)
            if self.feature_extractor is not None:
                self.feature_extractor.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        return folder

    def push_to_hub(self, repo_id: str | None = None, **options) -> None:
        r"""
        Upload the codec, as `save_model` would save it, and its feature extractor.

        Args:
            repo_id (`str`, *optional*): Repository on the Hub. Defaults to `args.hub_model_id`.
            options: Passed to `push_to_hub` of transformers (`private`, `token`, `commit_message`, ...).
        """
        repo_id = repo_id or self.args.hub_model_id
        if repo_id is None:
            raise ValueError("`push_to_hub` needs `repo_id`, here or as `hub_model_id` in the recipe.")
        self.latent_schedule.check_started(self.unwrapped_model)
        if self.accelerator.is_main_process:
            with self.averaged_weights():
                self.unwrapped_model.push_to_hub(repo_id, **options)
            if self.feature_extractor is not None:
                self.feature_extractor.push_to_hub(repo_id, **options)
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self) -> Path:
        """Save all that `resume_from_checkpoint` needs in `checkpoint-<step>`, which exists only when complete."""
        folder = self.output_dir / f"checkpoint-{self.step:08d}"

        def write(temporary: Path) -> None:
            if self.accelerator.is_main_process:
                save_states(temporary, self._modules(), self._optimization())
                state = {
                    "step": self.step,
                    "training_seconds": self.training_seconds,
                    "seed": self.args.seed,
                    "global_batch_size": self.args.global_batch_size,
                    **self.adversarial_schedule.state_dict(),
                }
                (temporary / "trainer_state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
            process_state = {"random": random_state(), "window": self._window.state_dict()}
            torch.save(process_state, temporary / f"process_{self.accelerator.process_index}.pt")

        write_checkpoint(folder, write, self.accelerator.is_main_process, self.accelerator.wait_for_everyone)
        if self.accelerator.is_main_process:
            remove_old_checkpoints(self.output_dir, self.args.save_total_limit)
        return folder

    def _resume(self, checkpoint: str | bool | None) -> None:
        kept = {"seed": self.args.seed, "global_batch_size": self.args.global_batch_size}
        found = find_state(self.output_dir, checkpoint, kept)
        if found is None:
            return
        folder, state = found
        modules, optimization = self._modules(), self._optimization()
        self.adversarial_schedule.load_state_dict(state)
        if self.adversarial_schedule.first_step is None:
            # Discriminators that have not learnt anything yet may be exchanged for others.
            modules.pop("discriminator", None)
            optimization.pop("discriminator_optimizer", None)
        load_states(folder, modules, optimization)
        self.step, self.training_seconds = state["step"], state["training_seconds"]
        # A run that continues on more processes than it began with has no state for the new ones, and needs none.
        process_file = folder / f"process_{self.accelerator.process_index}.pt"
        if process_file.is_file():
            process_state = torch.load(process_file, map_location="cpu", weights_only=True)
            set_random_state(process_state["random"])
            self._window.load_state_dict(process_state["window"], self.accelerator.device)

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"codec": self.unwrapped_model}
        if self.discriminator is not None:
            modules["discriminator"] = self.accelerator.unwrap_model(self.discriminator)
        return modules

    def _optimization(self) -> dict[str, Any]:
        """What has a `state_dict` besides the modules."""
        objects = {
            "codec_optimizer": self.optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
            "weight_average": self.weight_average,
            "scaler": self.accelerator.scaler,
        }
        return {name: value for name, value in objects.items() if value is not None}

    # Checks

    def _agreed(self, stop: bool) -> bool:
        """Whether any process was told to stop. Several processes ask each other when they log, to save time."""
        if self.accelerator.num_processes == 1:
            return stop
        if self.step % self.args.logging_steps:
            return False
        told = torch.tensor(float(stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, reduction="sum") > 0)
