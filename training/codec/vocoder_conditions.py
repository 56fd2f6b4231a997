# SPDX-License-Identifier: Apache-2.0
"""What a unit vocoder is trained from: codes of recordings, computed once, and their speakers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from accelerate import Accelerator

from speech_tokenizers.coding.loading import load
from speech_tokenizers.evaluation.codec_systems import EncodingSystem
from speech_tokenizers.modeling.configuration_unit_vocoder import UNIT_VOCODER_PRESETS, UnitVocoderConfig
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.processing.recordings import DecodedRecordings, load_recordings
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments, UnitArguments
from speech_tokenizers.training.common.recipe_files import check_names
from speech_tokenizers.training.units.pseudo_labels import PseudoLabels, label_all


# Encoders refuse what is shorter than their window; 25 ms is common.
_MIN_SECONDS = 0.1


class RecordingCodes:
    r"""
    All codes of whole recordings, one recording at a time, as a [`Labeler`] of frame after frame.

    Args:
        system ([`EncodingSystem`]): Gives the codes.
        num_quantizers (`int`): Codes per frame.
        sampling_rate (`int`): Of the recordings, which are resampled where the system wants another.
    """

    def __init__(self, system: EncodingSystem, num_quantizers: int, sampling_rate: int):
        self.system, self.sampling_rate = system, sampling_rate
        self.label_rate, self.num_labels = system.frame_rate * num_quantizers, system.codebook_size

    @property
    def description(self) -> dict[str, Any]:
        """The model's weights and settings."""
        return {"kind": "recordings' codes", "system": self.system.key, "sampling_rate": self.sampling_rate}

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes `(num_frames * num_quantizers,)` of each float32 waveform `(num_samples,)`."""
        return [self._codes(waveform).T.reshape(-1) for waveform in waveforms]

    def _codes(self, waveform: np.ndarray) -> np.ndarray:
        if self.system.sampling_rate != self.sampling_rate:
            waveform = soxr.resample(waveform, self.sampling_rate, self.system.sampling_rate)
        shortest = round(_MIN_SECONDS * self.system.sampling_rate)
        return self.system.encode(np.pad(waveform, (0, max(0, shortest - len(waveform)))))


class UnitConditions:
    r"""
    What a [`UnitVocoderModel`] is given for a crop: the codes of the whole recording that lie in it, and the speaker.

    Of frame f of the vocoder it is the code numbered `floor(f * code rate / frame rate)`; a recording's last code is
    held to its end, as `decode` does.

    Args:
        args ([`UnitArguments`]): Where codes and speakers come from.
    """

    def __init__(self, args: UnitArguments):
        self.args = args

    def prepare(
        self, recordings: Any, eval_recordings: Any, model: Any, accelerator: Accelerator, folder: Path
    ) -> None:
        r"""
        See [`Conditions`]. Computes the codes of all recordings, unless they are there.

        Raises:
            ValueError: If the vocoder is for other codes, or a speaker has no voice.
        """
        self.hop_length, self.num_quantizers = model.hop_length, model.config.num_quantizers
        system = load_units(self.args, accelerator.device.type)
        found = {"num_quantizers": _num_quantizers(system), "codebook_size": system.codebook_size}
        for name, value in found.items():
            if value != getattr(model.config, name):
                raise ValueError(
                    f"`units.model` has `{name}` {value}, but the vocoder is for {getattr(model.config, name)}."
                )
        labeler = RecordingCodes(system, self.num_quantizers, model.sampling_rate)
        self.codes_per_frame = system.frame_rate / model.frame_rate
        cache_dir = Path(self.args.cache_dir or folder / "unit_cache")
        self.train = self.evaluation = None
        with accelerator.main_process_first():
            if recordings is not None:
                self.train = _Units(recordings, labeler, cache_dir, self.args, model.config)
            if eval_recordings is not None:
                self.evaluation = _Units(eval_recordings, labeler, cache_dir, self.args, model.config)

    def of_crop(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        """
        See [`Conditions`]. `audio_codes` (num_quantizers, num_frames), `audio_codes_mask` (num_frames,), and
        `speaker_ids` () or `speaker_embeddings` (dim,).
        """
        return self._of(self.train, recording, first_sample, num_samples)

    def of_evaluated(self, recording: int, num_samples: int) -> dict[str, torch.Tensor]:
        """See [`Conditions`]."""
        return self._of(self.evaluation, recording, 0, num_samples)

    def _of(self, units, recording, first_sample, num_samples):
        codes = units.codes[recording].reshape(-1, self.num_quantizers)
        frames = first_sample // self.hop_length + np.arange(math.ceil(num_samples / self.hop_length))
        # A ratio of rates such as 1 / 4 is exact; others may be a hair below the whole number that is meant.
        positions = np.floor(frames * self.codes_per_frame + 1e-6).astype(np.int64)
        audio_codes = codes[positions.clip(max=len(codes) - 1)].T.astype(np.int64)
        is_real = frames * self.hop_length < len(units.recordings[recording])
        return {
            "audio_codes": torch.from_numpy(audio_codes * is_real),
            "audio_codes_mask": torch.from_numpy(is_real.astype(np.int64)),
            **{name: values[recording] for name, values in units.speakers.items()},
        }


class _Units:
    # Recordings with their codes and speakers.

    def __init__(
        self,
        recordings: DecodedRecordings,
        labeler: RecordingCodes,
        cache_dir: Path,
        args: UnitArguments,
        config: UnitVocoderConfig,
    ):
        if not isinstance(recordings, DecodedRecordings):
            raise ValueError(
                "A vocoder is trained on decoded recordings, whose codes are computed once; set"
                " `data.streaming=false`."
            )
        self.recordings = recordings
        self.codes: PseudoLabels = label_all(recordings, labeler, cache_dir, min_seconds=0.0)
        self.speakers: dict[str, torch.Tensor] = {}
        if config.num_speakers is not None:
            names = [str(name) for name in self._column(args.speaker_column, "units.speaker_column")]
            numbers = {name: number for number, name in enumerate(config.speaker_names or [])}
            if unknown := sorted(set(names) - numbers.keys()):
                raise ValueError(
                    f"The vocoder has no voice for {len(unknown)} of the speakers ({', '.join(unknown[:3])}); leave"
                    " their recordings out by `data.train_filter` and `data.eval_filter`."
                )
            self.speakers["speaker_ids"] = torch.tensor([numbers[name] for name in names])
        elif config.speaker_embedding_dim is not None:
            column = self._column(args.speaker_embedding_column, "units.speaker_embedding_column")
            self.speakers["speaker_embeddings"] = torch.tensor(column, dtype=torch.float32)

    def _column(self, name: str | None, what: str) -> list:
        if name is None or name not in self.recordings.metadata.column_names:
            raise ValueError(
                f"`{what}` must be a column of the data, which has {self.recordings.metadata.column_names}, but got"
                f" {name!r}."
            )
        return self.recordings.metadata[name][:]


def load_units(args: UnitArguments, device: str = "cpu") -> EncodingSystem:
    """The model whose codes a vocoder speaks."""
    model, feature_extractor = load(args.model)
    return EncodingSystem(model, feature_extractor, "units", args.num_quantizers, device)


def _num_quantizers(system: EncodingSystem) -> int:
    # Of a second of silence: models of other packages do not say how many they give.
    return len(system.encode(np.zeros(system.sampling_rate, dtype=np.float32)))


def new_vocoder(args: CodecTrainingArguments) -> UnitVocoderModel:
    r"""
    An untrained vocoder that fits a recipe's units and speakers.

    Raises:
        ValueError: If the recipe has no `units`, or an override is unknown.
    """
    if args.units is None:
        raise ValueError("A vocoder needs units to speak; name their model as units.model=PATH.")
    overrides = args.model.overrides
    check_names(overrides, UnitVocoderConfig.__dataclass_fields__, "The field", "model.overrides.")
    system = load_units(args.units)
    sizes: dict[str, Any] = {
        "num_quantizers": _num_quantizers(system),
        "codebook_size": system.codebook_size,
        "sampling_rate": system.sampling_rate,
        "hop_length": round(system.sampling_rate / system.frame_rate),
    }
    if args.units.speaker_column is not None:
        sizes["speaker_names"] = sorted({str(name) for name in _training_column(args, args.units.speaker_column)})
    if args.units.speaker_embedding_column is not None:
        sizes["speaker_embedding_dim"] = len(_training_column(args, args.units.speaker_embedding_column)[0])
    preset = UNIT_VOCODER_PRESETS[str(args.model.preset)]
    return UnitVocoderModel(UnitVocoderConfig(**{**preset, **sizes, **overrides}))


def _training_column(args: CodecTrainingArguments, name: str) -> list:
    data = args.data
    if data.train is None:
        raise ValueError("`data.train` must name the training recordings; give it as data.train=PATH.")
    recordings = load_recordings(data.train, data.train_filter, data.train_files, data.train_split, data.audio_column)
    if name not in recordings.column_names:
        raise ValueError(f"`{data.train}` has no column {name!r}; it has {recordings.column_names}.")
    return recordings[name][:]
