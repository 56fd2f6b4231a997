# SPDX-License-Identifier: Apache-2.0
"""A codec's codebooks learn from a speech model and a language model (DM-Codec, SpeechTokenizer)."""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from speech_tokenizers.processing.recordings import append_rejected
from speech_tokenizers.training.codec.arguments import DistillationArguments
from speech_tokenizers.training.codec.losses import distillation_loss
from speech_tokenizers.training.codec.objectives import CodecObjective
from speech_tokenizers.training.codec.sayings import Sayings
from speech_tokenizers.training.codec.teacher_cache import TeacherCache, fill_cache
from speech_tokenizers.training.codec.teachers import (
    LanguageTeacher,
    SpeechTeacher,
    Teacher,
    TimedFeatures,
    Utterance,
    place_on_frames,
)


DISTILLATION_LOSS_NAMES = ("semantic_distillation", "contextual_distillation")


class Distillation(CodecObjective):
    """
    Losses that draw projected codebook outputs of a [`DMCodecModel`] towards the features of its teachers.

    `semantic_distillation` is the paper's L_S, `contextual_distillation` its L_L; with both, weights of w/2 make
    L_LS = (L_L + L_S) / 2 weighted by w. (DM-Codec, arXiv 2410.15017)

    Args:
        args ([`DistillationArguments`]): Settings of the teachers.
    """

    def __init__(self, args: DistillationArguments):
        self.args = args
        named = {"semantic": args.speech_teacher, "contextual": args.language_teacher}
        self.kinds = [kind for kind, teacher in named.items() if teacher is not None]
        self.loss_names = tuple(f"{kind}_distillation" for kind in self.kinds)

    def prepare(self, recordings: Any, model: Any, accelerator: Accelerator, folder: Path) -> None:
        """See [`CodecObjective`]. Computes the teachers' features of all recordings, unless they are there."""
        self.recordings, self.hop_length, self.sampling_rate = recordings, model.hop_length, model.sampling_rate
        self.accelerator = accelerator
        is_stream = isinstance(recordings, torch.utils.data.IterableDataset)
        if is_stream and (self.args.cache or "contextual" in self.kinds):
            raise ValueError(
                "A stream of recordings can be distilled from a speech teacher alone, with `distillation.cache=false`."
            )
        teachers: dict[str, Teacher] = {}
        if self.args.speech_teacher is not None:
            teachers["semantic"] = SpeechTeacher(self.args.speech_teacher)
        if self.args.language_teacher is not None:
            teachers["contextual"] = LanguageTeacher(self.args.language_teacher, model.frame_rate)
            self.sayings = Sayings(self.args.language_teacher, recordings, accelerator.device)
        for kind, teacher in teachers.items():
            self._check_model(model, kind, teacher)
        self.interpolated = {kind: teacher.interpolated for kind, teacher in teachers.items()}
        self.teachers, self.caches, self.keys, self.means = {}, {}, {}, {}
        if not self.args.cache:
            speech_rate = teachers["semantic"].encoder.sampling_rate if "semantic" in teachers else self.sampling_rate
            if speech_rate != self.sampling_rate:
                raise ValueError(
                    f"The speech teacher hears {speech_rate} Hz, but the codec has {self.sampling_rate} Hz; set"
                    " `distillation.cache=true`, which resamples whole recordings."
                )
            self.teachers = teachers
            for teacher in teachers.values():
                teacher.to(accelerator.device)
            return
        for kind, teacher in teachers.items():
            description = teacher.description
            if kind == "contextual":
                description = {**description, **self.sayings.description}
            cache_dir = Path(self.args.cache_dir or folder / "teacher_cache")
            with accelerator.main_process_first():
                self.caches[kind] = TeacherCache(cache_dir / kind, description)
            self.keys[kind] = [teacher.key(self._utterance(index)) for index in range(len(recordings))]
            fill_cache(
                self.caches[kind],
                self.keys[kind],
                self._utterance,
                teacher,
                accelerator,
                f"Features of the {'speech' if kind == 'semantic' else 'language'} model",
            )
            if kind == "contextual" and self.sayings.unaligned:
                path = folder / "rejected.jsonl"
                unaligned = self.sayings.unaligned.items()
                append_rejected(
                    path, ({"name": n, "reason": f"its words are not learnt: {why}"} for n, why in unaligned)
                )
                tqdm.write(f"the words of {len(unaligned)} recordings were set aside; see {path}.", file=sys.stderr)
            if self.args.centered:
                self.means[kind] = self.caches[kind].mean(self.keys[kind])

    def targets(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        """
        See [`CodecObjective`]. From the caches: `<kind>_targets` (num_frames, dim), `<kind>_mask` (num_frames,).
        """
        if not self.args.cache:
            return {"recording": torch.tensor(recording), "first_sample": torch.tensor(first_sample)}
        found = {}
        for kind, cache in self.caches.items():
            # Silence may stand for the mean of all the recording's vectors.
            whole = kind == "contextual" and not self.interpolated[kind]
            span = (
                (0.0, math.inf)
                if whole
                else (
                    first_sample / self.sampling_rate,
                    (first_sample + num_samples) / self.sampling_rate,
                )
            )
            timed = cache.read(self.keys[kind][recording], *span)
            if self.args.centered:
                timed = timed._replace(features=timed.features.float() - self.means[kind])
            found |= self._placed(kind, timed, recording, first_sample, num_samples)
        return found

    def losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]."""
        if not self.args.cache:
            batch = {**batch, **self._targets_of_batch(batch)}
        return {
            f"{kind}_distillation": distillation_loss(
                getattr(outputs, f"{kind}_features"),
                batch[f"{kind}_targets"],
                batch[f"{kind}_mask"],
                self.args.axis,
            )
            for kind in self.kinds
        }

    def _targets_of_batch(self, batch):
        # The speech teacher hears the crops; the language teacher reads the whole texts.
        recorded = batch["input_values"][:, 0]
        frame_times = self._frame_times(0, recorded.shape[-1])
        found: dict[str, list[torch.Tensor]] = {}
        if "semantic" in self.kinds:
            teacher = self.teachers["semantic"]
            assert isinstance(teacher, SpeechTeacher)
            features, times = teacher.of_waveforms(recorded)
            for index, item in enumerate(features):
                length = recorded.shape[-1]
                if "recording" in batch:
                    length = len(self.recordings[int(batch["recording"][index])]) - int(batch["first_sample"][index])
                placed = place_on_frames(TimedFeatures(item, times), frame_times, length / self.sampling_rate, True)
                for name, value in zip(("semantic_targets", "semantic_mask"), placed, strict=True):
                    found.setdefault(name, []).append(value)
        if "contextual" in self.kinds:
            crops = zip(batch["recording"].tolist(), batch["first_sample"].tolist(), strict=True)
            for recording, first_sample in crops:
                timed = self.teachers["contextual"].features(self._utterance(recording))
                placed = self._placed("contextual", timed, recording, first_sample, recorded.shape[-1])
                for name, value in placed.items():
                    found.setdefault(name, []).append(value.to(recorded.device))
        return {name: torch.stack(values) for name, values in found.items()}

    def _placed(self, kind, timed, recording, first_sample, num_samples):
        targets, mask = place_on_frames(
            timed,
            self._frame_times(first_sample, num_samples),
            len(self.recordings[recording]) / self.sampling_rate,
            self.interpolated[kind],
            self.args.language_teacher.silence if kind == "contextual" else "zero",
        )
        return {f"{kind}_targets": targets, f"{kind}_mask": mask}

    def _frame_times(self, first_sample: int, num_samples: int) -> torch.Tensor:
        frames = torch.arange(math.ceil(num_samples / self.hop_length))
        return (first_sample + (frames + 0.5) * self.hop_length) / self.sampling_rate

    def _utterance(self, index: int) -> Utterance:
        recording = self.recordings[index]
        if self.args.language_teacher is None:
            return Utterance(recording, self.sampling_rate)
        return self.sayings.utterance(index, recording, self.sampling_rate)

    @staticmethod
    def _check_model(model: Any, kind: str, teacher: Teacher) -> None:
        if not hasattr(model.config, f"{kind}_dimension"):
            raise ValueError(
                f"A {type(model).__name__} has no features to compare with a teacher's; choose a preset of"
                " `DM_CODEC_PRESETS`."
            )
        dimension = getattr(model.config, f"{kind}_dimension")
        if dimension != teacher.dimension:
            raise ValueError(
                f"`{kind}_dimension` of the codec is {dimension}, but the teacher's features have {teacher.dimension};"
                f" set model.overrides.{kind}_dimension={teacher.dimension}."
            )
        stage = getattr(model.config, f"{kind}_stage")
        if isinstance(stage, int) and stage > 1 and model.config.quantizer_dropout > 0:
            raise ValueError(
                f"`{kind}_stage` is {stage}, which quantizer dropout leaves out of some batches; set"
                " model.overrides.quantizer_dropout=0."
            )
