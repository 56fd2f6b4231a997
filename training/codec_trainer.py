# SPDX-License-Identifier: Apache-2.0
"""Training of neural codecs with discriminators, on Accelerate."""

import json
import math
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.modeling.spectral_losses import (
    DEFAULT_MEL_SCALES,
    SPEECHTOKENIZER_MEL_SCALES,
    MelScale,
    multi_scale_mel_loss,
)
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.training.arguments import CodecTrainingArguments, OptimizerArguments, check_names, load_recipe
from speech_tokenizers.training.checkpoints import (
    WeightAverage,
    list_checkpoints,
    remove_old_checkpoints,
    write_checkpoint,
)
from speech_tokenizers.training.data import (
    AudioCropDataset,
    CropSettings,
    DecodedRecordings,
    GlobalBatchSampler,
    StreamedCropDataset,
    append_rejected,
    decode_all,
    load_recordings,
)
from speech_tokenizers.training.discriminators import DiscriminatorEnsemble, DiscriminatorOutput
from speech_tokenizers.training.losses import (
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    waveform_loss,
)
from speech_tokenizers.training.reporting import TrainingLog, draw_loss_curves, has_matplotlib, save_sample


MEL_SCALES = {"default": DEFAULT_MEL_SCALES, "speechtokenizer": SPEECHTOKENIZER_MEL_SCALES}


class CodecTrainer:
    r"""
    Train a codec and its discriminators, each with its own optimizer, on one or more processes.

    To add losses, extend `loss_names` and `codec_losses`; each has its weight in `args.loss_weights`.

    Args:
        model ([`RVQCodecModel`]): The codec. In training mode its forward updates its codebooks.
        args ([`CodecTrainingArguments`]): The recipe.
        train_recordings ([`DecodedRecordings`], sequence of arrays or `datasets.IterableDataset`, *optional*):
            What to train on. Defaults to what `args.data` names.
        eval_recordings ([`DecodedRecordings`] or sequence of `(num_samples,)` arrays, *optional*): What to evaluate
        on. feature_extractor ([`RVQCodecFeatureExtractor`], *optional*): Saved beside the codec. Defaults to the
        codec's rates. compute_metrics (callable, *optional*): Called with a recorded and a decoded `(num_samples,)`
        float array and the sampling
            rate for each evaluated recording; returns a dict of numbers, whose means `evaluate` reports.

    Raises:
        ValueError: If `args.loss_weights` does not name exactly the losses, or a size does not fit.
    """

    adversarial_loss_names = ("adversarial", "feature_matching")

    def __init__(
        self,
        model: nn.Module,
        args: CodecTrainingArguments,
        train_recordings=None,
        eval_recordings=None,
        feature_extractor: RVQCodecFeatureExtractor | None = None,
        compute_metrics: Callable[[np.ndarray, np.ndarray, int], Mapping[str, float]] | None = None,
    ):
        self.args = args
        self.sampling_rate = model.sampling_rate
        self.output_dir = Path(args.output_dir)
        self.feature_extractor = feature_extractor or RVQCodecFeatureExtractor(
            sampling_rate=model.sampling_rate, hop_length=model.hop_length
        )
        self.compute_metrics = compute_metrics
        self.mel_scales = parse_mel_scales(args.mel_scales)
        self.loss_weights = self._check_loss_weights(args.loss_weights)

        # Buffers are not broadcast: the quantizer itself keeps codebooks equal on all processes.
        parallel = DistributedDataParallelKwargs(
            broadcast_buffers=False,
            find_unused_parameters=getattr(model.config, "semantic_dimension", None) is not None,
        )
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            log_with=list(args.report_to) or None,
            project_dir=args.output_dir,
            kwargs_handlers=[parallel],
        )
        if self.accelerator.device.type == "cpu":
            # Denormal numbers, as in fading silence, are slow and inaudible.
            torch.set_flush_denormal(True)

        discriminator = None
        if args.adversarial.discriminators:
            kinds = ("multi_scale_stft", "multi_period", "multi_scale")
            check_names(args.adversarial.discriminators, kinds, "The discriminator")
            discriminator = DiscriminatorEnsemble(**args.adversarial.discriminators)
        if args.compile:
            for module in (model.encoder, model.decoder, discriminator):
                if module is not None:
                    module.compile()
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, args.optimizer))
        self.discriminator, self.discriminator_optimizer = None, None
        if discriminator is not None:
            self.discriminator, self.discriminator_optimizer = self.accelerator.prepare(
                discriminator, make_optimizer(discriminator, args.discriminator_optimizer)
            )
        self.weight_average = None
        if args.weight_ema_decay is not None:
            self.weight_average = WeightAverage(self.unwrapped_model, args.weight_ema_decay)

        self.train_recordings, self.eval_recordings = train_recordings, eval_recordings
        self.step = 0
        self.training_seconds = 0.0
        self._window: dict[str, torch.Tensor] = {}
        self._window_counts: dict[str, int] = {}
        self._window_start, self._window_seconds = 0, 0.0
        self._synchronize = True
        self._stop_requested = False

    # What is minimised

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that `codec_losses` returns and `args.loss_weights` weights."""
        return ("mel", "waveform", "commitment", *self.adversarial_loss_names)

    def codec_losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        r"""
        The codec's losses by name, without weights; the adversarial ones only once the discriminators act.

        Args:
            outputs ([`RVQCodecOutput`]): What the codec made of the batch.
            batch (`dict`): `input_values` of shape `(batch, 1, num_samples)`, and what else the data gives.
        """
        recorded, decoded = batch["input_values"], outputs.audio_values
        losses = {
            "mel": multi_scale_mel_loss(decoded, recorded, self.sampling_rate, self.mel_scales),
            "waveform": waveform_loss(decoded, recorded),
            "commitment": outputs.commitment_loss,
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
        return self.discriminator is not None and self.step >= self.args.adversarial.start_step

    def current_weight(self, name: str) -> float:
        """Weight of a loss at the present step: the recipe's, and for the adversarial ones grown from 0."""
        if name not in self.adversarial_loss_names or self.args.adversarial.warmup_steps == 0:
            return self.loss_weights[name]
        steps_acting = self.step + 1 - self.args.adversarial.start_step
        return self.loss_weights[name] * min(1.0, steps_acting / self.args.adversarial.warmup_steps)

    def training_step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        r"""Both updates from one forward of the codec on a micro-batch. Returns detached losses by name."""
        recorded = batch["input_values"]  # (B, 1, T)
        outputs = self.model(recorded, return_loss=False)  # one forward serves both updates
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

        return detached({"loss": loss, **losses, **logged, "grad_norm": grad_norm})

    def update(self, module: nn.Module, optimizer, loss: torch.Tensor, args: OptimizerArguments) -> torch.Tensor:
        r"""
        Add the gradient of `loss`, and at the last micro-batch clip it and take a step; a gradient that is not finite
        is dropped.

        Returns:
            `torch.Tensor`: The norm of the gradient before clipping, 0 between micro-batches.
        """
        self.accelerator.backward(loss / self.args.gradient_accumulation_steps)
        if not self._synchronize:
            return loss.new_zeros(())
        max_norm = math.inf if args.max_grad_norm is None else args.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(module.parameters(), max_norm)
        # With a gradient scaler (fp16) the optimizer skips such steps by itself and adapts its scale.
        if self.accelerator.scaler is not None or torch.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()
        return norm

    # The loop

    def train(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, float]:
        r"""
        Train to `args.max_steps`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint folder; `True` or `"latest"` for the
                newest complete one, if there is one. Defaults to `args.resume_from_checkpoint`.

        Returns:
            `dict`: The last logged losses.
        """
        if self.train_recordings is None:
            self.train_recordings, self.eval_recordings = self.prepare_recordings()
        self._resume(self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint)
        self._start_reports()
        self.model.train()
        logged: dict[str, float] = {}
        batches = iter(self.train_batches())
        progress = tqdm(
            total=self.args.max_steps, initial=self.step, unit="step", disable=not self.accelerator.is_main_process
        )
        with self._stopping_on_signals(), progress:
            while self.step < self.args.max_steps:
                started = time.perf_counter()
                self._accumulate(self._step_over(batches))
                self._window_seconds += time.perf_counter() - started
                self.step += 1
                progress.update()
                if self.weight_average is not None:
                    self.weight_average.update(self.unwrapped_model)
                finished = self.step == self.args.max_steps
                if self.step % self.args.logging_steps == 0 or finished:
                    logged = self._log_window()
                    progress.set_postfix({name: f"{logged[name]:.4g}" for name in ("loss", "mel") if name in logged})
                stopping = self._stop_agreed()
                if (self.args.save_steps and self.step % self.args.save_steps == 0) or finished or stopping:
                    self.save_checkpoint()
                if stopping:
                    break
                if self.args.eval_steps and (self.step % self.args.eval_steps == 0 or finished):
                    self.evaluate()
        if self.args.report_to:
            self.accelerator.end_training()
        return logged

    def _step_over(self, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        args = self.args
        set_learning_rate(self.optimizer, args.optimizer, self.step, args.max_steps)
        if self.discriminators_act:
            start = args.adversarial.start_step
            set_learning_rate(
                self.discriminator_optimizer, args.discriminator_optimizer, self.step - start, args.max_steps - start
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

    def _accumulate(self, losses: dict[str, torch.Tensor]) -> None:
        for name, value in losses.items():
            self._window[name] = self._window[name] + value if name in self._window else value
            self._window_counts[name] = self._window_counts.get(name, 0) + 1

    def _log_window(self) -> dict[str, float]:
        """Log the means since the last log, over steps and processes."""
        steps = self.step - self._window_start
        means = self.accelerator.reduce(dict(self._window), reduction="mean") if self._window else {}
        entry = {name: float(value) / self._window_counts[name] for name, value in means.items()}
        audio_seconds = steps * self.args.global_batch_size * self.args.data.segment_seconds
        self.training_seconds += self._window_seconds
        entry |= {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "steps_per_second": steps / max(self._window_seconds, 1e-9),
            "audio_seconds_per_second": audio_seconds / max(self._window_seconds, 1e-9),
            "training_seconds": self.training_seconds,
        }
        if self.accelerator.device.type == "cuda":
            entry["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._window, self._window_counts = {}, {}
        self._window_start, self._window_seconds = self.step, 0.0
        self._write_log(entry)
        if not math.isfinite(entry["loss"]):
            raise FloatingPointError(
                f"The loss is {entry['loss']} at step {self.step}; lower `optimizer.learning_rate` and resume from a checkpoint."
            )
        return entry

    def _write_log(self, entry: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.log.write({"step": self.step, **entry})
        if self.args.report_to:
            self.accelerator.log(entry, step=self.step)

    def _start_reports(self) -> None:
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            recipe = yaml.safe_dump(self.args.to_dict(), sort_keys=False, allow_unicode=True)
            (self.output_dir / "recipe.yaml").write_text(recipe, encoding="utf-8")
            self.log = TrainingLog(self.output_dir / "training_log.jsonl", self.step)
        if self.args.report_to:
            self.accelerator.init_trackers(self.output_dir.name or "codec", config=None)

    # Data

    def prepare_recordings(self) -> tuple[Any, DecodedRecordings | None]:
        r"""
        Training and evaluation recordings as `args.data` names them, decoded once for all epochs and processes.

        What cannot be decoded is listed with the reason in `rejected.jsonl` in the output folder.
        """
        data = self.args.data
        if data.train is None:
            raise ValueError("`data.train` must name the training recordings; give it as data.train=PATH.")
        cache_dir = data.cache_dir or self.output_dir / "audio_cache"
        rejected: list[dict[str, str]] = []

        def decoded(path: str, split: str, filter_by: dict[str, Any], files: str | None) -> DecodedRecordings:
            recordings = load_recordings(path, filter_by, files, split, data.audio_column)
            with self.accelerator.main_process_first():
                result = decode_all(recordings, self.sampling_rate, cache_dir, self.accelerator.is_main_process)
            rejected.extend(result.rejected)
            return result

        if data.streaming:
            train_recordings = load_recordings(
                data.train, data.train_filter, data.train_files, data.train_split, data.audio_column, streaming=True
            )
        else:
            train_recordings = decoded(data.train, data.train_split, data.train_filter, data.train_files)
        eval_recordings = None
        if data.eval is not None:
            eval_recordings = decoded(data.eval, data.eval_split, data.eval_filter, data.eval_files)
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / "rejected.jsonl").unlink(missing_ok=True)
            if rejected:
                append_rejected(self.output_dir / "rejected.jsonl", rejected)
                tqdm.write(f"{len(rejected)} recordings were set aside; see {self.output_dir / 'rejected.jsonl'}.")
        return train_recordings, eval_recordings

    def train_batches(self) -> torch.utils.data.DataLoader:
        """Micro-batches of this process from the present step on."""
        data, accelerator = self.args.data, self.accelerator
        settings = CropSettings(
            num_samples=round(data.segment_seconds * self.sampling_rate),
            target_level_db=data.target_level_db,
            gain_db=tuple(data.gain_db),
            min_level_db=data.min_level_db,
        )
        crops = None if data.streaming else AudioCropDataset(self.train_recordings, settings, self.args.seed)
        sampler = GlobalBatchSampler(
            None if crops is None else len(crops),
            self.args.global_batch_size,
            self.args.seed,
            range(self.step, self.args.max_steps),
            accelerator.process_index,
            accelerator.num_processes,
            self.args.gradient_accumulation_steps,
        )
        # Its own generator: iterating would otherwise draw from the global one, which a resumed run has in another
        # state.
        loading = {"generator": torch.Generator(), "pin_memory": accelerator.device.type == "cuda"}
        if crops is not None:
            return torch.utils.data.DataLoader(crops, batch_sampler=sampler, num_workers=data.num_workers, **loading)
        stream = StreamedCropDataset(
            self.train_recordings,
            self.sampling_rate,
            settings,
            sampler,
            self.args.seed,
            data.shuffle_buffer,
            self.output_dir / "rejected.jsonl",
        )
        # One worker at most, which decodes ahead: a second one would read the same stream again.
        return torch.utils.data.DataLoader(stream, batch_size=None, num_workers=min(1, data.num_workers), **loading)

    # Evaluation

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        r"""
        Code and decode the evaluation recordings, shared among processes, with the averaged weights if there are any.

        Returns:
            `dict`: Means over recordings of `eval_mel`, `eval_waveform`, `eval_commitment` and of `compute_metrics`;
            the share of codes used and their perplexity over all recordings, `eval_codes_used_<stage>` and
            `eval_perplexity_<stage>`.
        """
        if self.eval_recordings is None and self.args.data.eval is not None and self.train_recordings is None:
            self.train_recordings, self.eval_recordings = self.prepare_recordings()
        if self.eval_recordings is None:
            return {}
        accelerator, model = self.accelerator, self.unwrapped_model
        was_training = model.training
        with self.averaged_weights():
            model.eval()
            sums: dict[str, float] = {}
            counts = torch.zeros(model.config.num_quantizers, model.config.codebook_size, dtype=torch.float64)
            for index in range(accelerator.process_index, len(self.eval_recordings), accelerator.num_processes):
                values, codes = self._evaluate_recording(model, index)
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
                for stage, stage_codes in enumerate(codes):
                    counts[stage] += torch.bincount(stage_codes, minlength=counts.shape[1])
            model.train(was_training)
        if accelerator.num_processes > 1:
            gathered = gather_objects((sums, counts))
            names = {name for part, _ in gathered for name in part}
            sums = {name: sum(part.get(name, 0.0) for part, _ in gathered) for name in sorted(names)}
            counts = torch.stack([part for _, part in gathered]).sum(0)
        entry = {f"eval_{name}": value / len(self.eval_recordings) for name, value in sums.items()}
        shares = counts / counts.sum(-1, keepdim=True)
        perplexities = torch.exp(-torch.xlogy(shares, shares).sum(-1))
        for stage in range(len(counts)):
            entry[f"eval_codes_used_{stage + 1}"] = float((counts[stage] > 0).double().mean())
            entry[f"eval_perplexity_{stage + 1}"] = float(perplexities[stage])
        if hasattr(self, "log") or not accelerator.is_main_process:
            self._write_log(entry)
        if accelerator.is_main_process and hasattr(self, "log") and has_matplotlib():
            names = ["loss", *self.loss_names, "discriminator"]
            draw_loss_curves(self.log.path, self.output_dir / "loss_curves.png", names)
        return entry

    def _evaluate_recording(self, model: nn.Module, index: int) -> tuple[dict[str, float], torch.Tensor]:
        """Losses and metrics of one recording, and its codes (num_quantizers, num_frames)."""
        recording = np.asarray(
            self.eval_recordings[index][: round(self.args.data.max_eval_seconds * self.sampling_rate)]
        )
        scale = 32767.0 if recording.dtype == np.int16 else 1.0
        recorded = torch.from_numpy(recording.astype(np.float32) / scale).to(self.accelerator.device)[None, None]
        outputs = model(recorded, return_loss=False)
        decoded = outputs.audio_values
        values = {
            "mel": float(multi_scale_mel_loss(decoded, recorded, self.sampling_rate, self.mel_scales)),
            "waveform": float(waveform_loss(decoded, recorded)),
            "commitment": float(outputs.commitment_loss),
        }
        if self.compute_metrics is not None:
            values |= self.compute_metrics(
                recorded[0, 0].cpu().numpy(), decoded[0, 0].cpu().numpy(), self.sampling_rate
            )
        if index < self.args.num_audio_samples:
            folder = self.output_dir / "samples" / f"{index:03d}"
            save_sample(folder, f"step-{self.step:08d}", recorded[0, 0], decoded[0, 0], self.sampling_rate)
        return values, outputs.audio_codes[0].cpu()

    # Saving

    @property
    def unwrapped_model(self) -> nn.Module:
        """The codec without the wrapper of data parallelism."""
        return self.accelerator.unwrap_model(self.model)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this context the codec has its averaged weights, if the recipe asks for an average."""
        averages = self.weight_average is not None and self.weight_average.num_updates > 0
        with self.weight_average.applied_to(self.unwrapped_model) if averages else nullcontext():
            yield

    def save_model(self, output_dir: str | Path | None = None) -> Path:
        r"""
        Save the codec, with the averaged weights if there are any, and its feature extractor, for `from_pretrained`.

        Args:
            output_dir (`str` or `Path`, *optional*): Defaults to `final` in `args.output_dir`.
        """
        folder = self.output_dir / "final" if output_dir is None else Path(output_dir)
        if self.accelerator.is_main_process:
            with self.averaged_weights():
                self.unwrapped_model.save_pretrained(folder)
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
        if self.accelerator.is_main_process:
            with self.averaged_weights():
                self.unwrapped_model.push_to_hub(repo_id, **options)
            self.feature_extractor.push_to_hub(repo_id, **options)
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self) -> Path:
        """Save all that `resume_from_checkpoint` needs in `checkpoint-<step>`, which exists only when complete."""
        folder = self.output_dir / f"checkpoint-{self.step:08d}"

        def write(temporary: Path) -> None:
            if self.accelerator.is_main_process:
                for name, module in self._modules().items():
                    save_file(
                        contiguous_state(self.accelerator.unwrap_model(module)), temporary / f"{name}.safetensors"
                    )
                torch.save(self._optimization_state(), temporary / "optimization.pt")
                state = {
                    "step": self.step,
                    "training_seconds": self.training_seconds,
                    "window_start": self._window_start,
                    "window_seconds": self._window_seconds,
                    "seed": self.args.seed,
                    "global_batch_size": self.args.global_batch_size,
                }
                (temporary / "trainer_state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
            process_state = {"random": random_state(), "window": self._window, "window_counts": self._window_counts}
            torch.save(process_state, temporary / f"process_{self.accelerator.process_index}.pt")

        write_checkpoint(folder, write, self.accelerator.is_main_process, self.accelerator.wait_for_everyone)
        if self.accelerator.is_main_process:
            remove_old_checkpoints(self.output_dir, self.args.save_total_limit)
        return folder

    def _resume(self, checkpoint: str | bool | None) -> None:
        if not checkpoint:
            return
        if checkpoint is True or checkpoint == "latest":
            checkpoints = list_checkpoints(self.output_dir)
            if not checkpoints:
                return
            folder = checkpoints[-1]
        else:
            folder = Path(checkpoint)
            if not (folder / "trainer_state.json").is_file():
                raise ValueError(f"`resume_from_checkpoint` is {str(folder)!r}, which is no complete checkpoint.")
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        for name in ("seed", "global_batch_size"):
            if state[name] != getattr(self.args, name):
                raise ValueError(
                    f"`{name}` is {getattr(self.args, name)}, but the checkpoint was trained with {state[name]}, which decides"
                    " the order of the data; keep it, or start anew from the checkpoint's weights with `model.pretrained`."
                )
        self._load_weights(folder, discriminators_acted=state["step"] > self.args.adversarial.start_step)
        self.step = state["step"]
        self.training_seconds = state["training_seconds"]
        self._window_start, self._window_seconds = state["window_start"], state["window_seconds"]
        # A run that continues on more processes than it began has no state for the new ones, and needs none.
        process_file = folder / f"process_{self.accelerator.process_index}.pt"
        if process_file.is_file():
            process_state = torch.load(process_file, map_location="cpu", weights_only=True)
            set_random_state(process_state["random"])
            device = self.accelerator.device
            self._window = {name: value.to(device) for name, value in process_state["window"].items()}
            self._window_counts = process_state["window_counts"]

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"codec": self.model, "discriminator": self.discriminator}
        return {name: module for name, module in modules.items() if module is not None}

    def _optimization_state(self) -> dict[str, Any]:
        state = {"codec": self.optimizer.state_dict()}
        if self.discriminator_optimizer is not None:
            state["discriminator"] = self.discriminator_optimizer.state_dict()
        if self.weight_average is not None:
            state["weight_average"] = self.weight_average.state_dict()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def _load_weights(self, folder: Path, discriminators_acted: bool) -> None:
        state = torch.load(folder / "optimization.pt", map_location="cpu", weights_only=True)
        self.unwrapped_model.load_state_dict(load_file(folder / "codec.safetensors"))
        self.optimizer.load_state_dict(state["codec"])
        if self.weight_average is not None and "weight_average" in state:
            self.weight_average.load_state_dict(state["weight_average"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        # Discriminators that have not learnt anything yet may be exchanged for others.
        if self.discriminator is not None and discriminators_acted:
            if "discriminator" not in state:
                raise ValueError(
                    f"`{folder}` has no discriminators; set `adversarial.start_step` to its step or later."
                )
            discriminator = self.accelerator.unwrap_model(self.discriminator)
            discriminator.load_state_dict(load_file(folder / "discriminator.safetensors"))
            self.discriminator_optimizer.load_state_dict(state["discriminator"])

    # Stopping

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C end the run after the step, with a checkpoint."""

        def request_stop(signum, frame):
            self._stop_requested = True
            signal.signal(signum, previous[signum])

        try:
            previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            for number in previous:
                signal.signal(number, request_stop)
        except ValueError:  # not in the main thread
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop_agreed(self) -> bool:
        """Whether any process was told to stop. Several processes ask each other when they log, to save time."""
        if self.accelerator.num_processes == 1:
            return self._stop_requested
        if self.step % self.args.logging_steps:
            return False
        told = torch.tensor(float(self._stop_requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, reduction="sum") > 0)

    def _check_loss_weights(self, weights: dict[str, float]) -> dict[str, float]:
        check_names(weights, self.loss_names, "The loss in `loss_weights`")
        needed = [
            name
            for name in self.loss_names
            if self.args.adversarial.discriminators or name not in self.adversarial_loss_names
        ]
        if missing := [name for name in needed if name not in weights]:
            raise ValueError(
                f"`loss_weights` lacks {', '.join(missing)}; give each loss a weight, 0 to switch it off."
            )
        return dict(weights)


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """Within this context the module's parameters need no gradient, which spares computing it."""
    parameters = [] if module is None else [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def detached(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values without their graphs."""
    return {name: value.detach() for name, value in values.items()}


def contiguous_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's state as safetensors can write it."""
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}


def random_state() -> dict[str, Any]:
    """States of the global generators of Python, NumPy and PyTorch."""
    numpy_state = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def make_optimizer(module: nn.Module, args: OptimizerArguments) -> torch.optim.AdamW:
    """AdamW over the parameters; vectors such as biases and gains are not decayed."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=tuple(args.betas), fused=True)


def learning_rate_factor(args: OptimizerArguments, step: int, total_steps: int) -> float:
    """Learning rate at a step relative to the peak."""
    if step < args.warmup_steps:
        return (step + 1) / args.warmup_steps
    if args.schedule == "constant":
        return 1.0
    if args.schedule == "exponential":
        return args.decay_rate ** ((step - args.warmup_steps) / args.decay_steps)
    progress = min(1.0, (step - args.warmup_steps) / max(1, total_steps - args.warmup_steps))
    return args.final_ratio + (1 - args.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer, args: OptimizerArguments, step: int, total_steps: int) -> None:
    """Set the learning rate of a step. It follows from the step, so a resumed run needs no state of a scheduler."""
    for group in optimizer.param_groups:
        group["lr"] = args.learning_rate * learning_rate_factor(args, step, total_steps)


def parse_mel_scales(scales: Any) -> tuple[MelScale, ...]:
    """The mel scales that a recipe names or lists."""
    if isinstance(scales, str):
        if scales not in MEL_SCALES:
            raise ValueError(
                f"`mel_scales` must be one of {sorted(MEL_SCALES)} or a list of scales, but got {scales!r}."
            )
        return MEL_SCALES[scales]
    for scale in scales:
        check_names(scale, MelScale.__dataclass_fields__, "The field of `mel_scales`")
    return tuple(MelScale(**scale) for scale in scales)


def build_model(args: CodecTrainingArguments) -> RVQCodecModel:
    """The codec that a recipe names, new or trained."""
    if args.model.pretrained is not None:
        return RVQCodecModel.from_pretrained(args.model.pretrained, dtype=torch.float32)
    return RVQCodecModel(RVQCodecConfig.from_preset(args.model.preset, **args.model.overrides))


def train_from_recipe(path_or_name: str, overrides: list[str] = ()) -> CodecTrainer:
    r"""
    Train as a recipe says, save the codec in `final` in the output folder, and return the trainer.

    Args:
        path_or_name (`str`): See [`load_recipe`].
        overrides (`list[str]`): `key=value` pairs.
    """
    args = load_recipe(path_or_name, overrides)
    set_seed(args.seed)
    trainer = CodecTrainer(build_model(args), args)
    trainer.train()
    trainer.save_model()
    return trainer


def main() -> None:
    """`python -m speech_tokenizers.training.codec_trainer RECIPE key=value ...`, also under `accelerate launch -m`."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(main.__doc__)
    try:
        train_from_recipe(sys.argv[1], sys.argv[2:])
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
