# SPDX-License-Identifier: Apache-2.0
"""
Data that a codec is trained and evaluated on: recordings, conditions in place of them, and targets of objectives.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.codec.crops import training_batches
from speech_tokenizers.training.codec.objectives import CodecObjective, Conditions
from speech_tokenizers.training.common.data import prepare_recordings
from speech_tokenizers.training.common.run_record import recordings_named, recordings_of


class TrainingData:
    """
    Recordings and all that is known of their crops.

    Args:
        args ([`CodecTrainingArguments`]): Recipe of the run.
        sampling_rate (`int`): Rate of the codec, in Hz.
        accelerator (`Accelerator`): Accelerator of the run.
        objectives (sequence of [`CodecObjective`]): Objectives that give targets to crops.
        conditions ([`Conditions`], *optional*): Conditions that the model is given in place of the waveform.
        train, evaluation ([`DecodedRecordings`] and others, *optional*): Recordings. Defaults to what `args.data`
            names, once `find` was called.
    """

    def __init__(
        self,
        args: CodecTrainingArguments,
        sampling_rate: int,
        accelerator: Accelerator,
        objectives: Sequence[CodecObjective],
        conditions: Conditions | None,
        train: Any = None,
        evaluation: Any = None,
    ):
        self.args, self.sampling_rate, self.accelerator = args, sampling_rate, accelerator
        self.objectives, self.conditions = objectives, conditions
        self.train, self.evaluation = train, evaluation
        self._is_named = train is None
        self._inputs: dict[str, Any] | None = None
        self.output_dir = Path(args.output_dir)
        self._has_conditions = False

    def find(self) -> None:
        """Find and decode what `args.data` names; what cannot be decoded goes to `rejected.jsonl`."""
        cache_dir = Path(self.args.data.cache_dir or self.output_dir / "audio_cache")
        self.train, self.evaluation = prepare_recordings(
            self.args.data, self.sampling_rate, cache_dir, self.accelerator, self.output_dir / "rejected.jsonl"
        )

    def inputs(self, columns: Sequence[str]) -> dict[str, Any]:
        """
        What tells the recordings from others, as a [`RunRecord`] takes it; nothing of a stream.

        Args:
            columns (sequence of `str`): Columns that are learnt from.
        """
        data = self.args.data
        is_stream = data.streaming if self._is_named else isinstance(self.train, torch.utils.data.IterableDataset)
        if self._inputs is None:
            self._inputs = {}
            if not self._is_named and not is_stream:
                self._inputs["data.train"] = recordings_of(self.train)
            for part in ["train"] * (not is_stream) + ["eval"] if self._is_named else []:
                if getattr(data, part) is not None:
                    self._inputs[f"data.{part}"] = recordings_named(data, part, columns)
        return self._inputs

    def prepare_objectives(self, model: Any) -> None:
        """Let the objectives see the recordings; finds these first."""
        if self.train is None:
            self.find()
        for objective in self.objectives:
            objective.prepare(self.train, model, self.accelerator, self.output_dir)

    def prepare_conditions(self, model: Any) -> None:
        """Compute the conditions of all recordings, once."""
        if self.conditions is not None and not self._has_conditions:
            self.conditions.prepare(self.train, self.evaluation, model, self.accelerator, self.output_dir)
            self._has_conditions = True

    def batches(self, steps: range, model: Any, with_targets: bool = True) -> torch.utils.data.DataLoader:
        """
        Micro-batches of this process.

        Args:
            steps (`range`): Steps of the run, which decide what is drawn.
            model (`PreTrainedModel`): Codec that is trained.
            with_targets (`bool`, *optional*, defaults to `True`): Whether they hold what the model and the objectives
                need besides waveforms.
        """
        wanted = with_targets and (self.objectives or self.conditions)
        return training_batches(
            self.train,
            self.args.data,
            self.sampling_rate,
            self.args.seed,
            self.args.global_batch_size,
            self.args.gradient_accumulation_steps,
            steps,
            self.accelerator,
            self.output_dir / "rejected.jsonl",
            self._targets if wanted else None,
            1 if self.conditions is None else model.hop_length,
        )

    def evaluated(self, index: int, recorded: torch.Tensor) -> dict[str, torch.Tensor]:
        """An evaluation recording `(1, 1, num_samples)` as a batch, with its conditions."""
        batch = {"input_values": recorded}
        if self.conditions is not None:
            of_recording = self.conditions.of_evaluated(index, recorded.shape[-1])
            batch |= {name: value.to(recorded.device)[None] for name, value in of_recording.items()}
        return batch

    def _targets(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        if self.conditions is not None:
            found |= self.conditions.of_crop(recording, first_sample, num_samples)
        for objective in self.objectives:
            found |= objective.targets(recording, first_sample, num_samples)
        return found
