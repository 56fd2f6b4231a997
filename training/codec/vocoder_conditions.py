# SPDX-License-Identifier: Apache-2.0
"""Conditions that a unit vocoder is trained from: codes of recordings, computed once, and their speakers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from speech_tokenizers.coding.loading import load
from speech_tokenizers.modeling.codec_interface import codebook_sizes
from speech_tokenizers.modeling.configuration_unit_vocoder import UNIT_VOCODER_PRESETS, UnitVocoderConfig
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.processing.recordings import DecodedRecordings, load_recordings
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments, UnitArguments
from speech_tokenizers.training.common.recipe_files import check_names
from speech_tokenizers.training.units.pseudo_labels import PseudoLabels, TokenLabeler, label_all


class UnitConditions:
    """
    Codes and speakers that a [`UnitVocoderModel`] is given for a crop. The codes are those of the whole recording that
    lie in the crop.

    Frame f of the vocoder gets the code numbered `floor(f * code rate / frame rate)`. A recording's last code is held
    to its end, as `decode` does.

    Args:
        args ([`UnitArguments`]): Settings of the codes and the speakers.
    """

    def __init__(self, args: UnitArguments):
        self.args = args

    def prepare(
        self, recordings: Any, eval_recordings: Any, model: Any, accelerator: Accelerator, folder: Path
    ) -> None:
        """
        See [`Conditions`]. Computes the codes of all recordings, unless they are there.

        Raises:
            ValueError: If the vocoder is for other codes, or a speaker has no voice.
        """
        self.hop_length, self.num_quantizers = model.hop_length, model.config.num_quantizers
        units = load_units(self.args).to(accelerator.device)
        labeler = TokenLabeler(units, model.sampling_rate, num_quantizers=self.args.num_quantizers)
        found = unit_sizes(units, self.args)
        for name, value in found.items():
            has = getattr(model.config, name)
            if name == "codebook_sizes" and has is None:
                continue  # begun before vocoders could say them
            if value != has:
                raise ValueError(f"`units.model` has `{name}` {value}, but the vocoder is for {has}.")
        self.codes_per_frame = units.frame_rate / model.frame_rate
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
        labeler: TokenLabeler,
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


def load_units(args: UnitArguments) -> Any:
    """Model whose codes a vocoder speaks, as a [`SpeechCodec`]."""
    units = as_speech_codec(*load(args.model))
    units.check_kind("codes")
    return units


def unit_sizes(units: Any, args: UnitArguments) -> dict[str, Any]:
    """Number of codes per frame, number of different codes, and that of each codebook where they differ."""
    sizes = {"num_quantizers": args.num_quantizers or units.num_quantizers, "codebook_size": units.codebook_size}
    own = codebook_sizes(units)[: sizes["num_quantizers"]]
    return sizes if len({*own, units.codebook_size}) == 1 else {**sizes, "codebook_sizes": list(own)}


def new_vocoder(args: CodecTrainingArguments) -> UnitVocoderModel:
    """
    An untrained vocoder that fits a recipe's units and speakers.

    Raises:
        ValueError: If the recipe has no `units`, or an override is unknown.
    """
    if args.units is None:
        raise ValueError("A vocoder needs units to speak; name their model as units.model=PATH.")
    overrides = args.model.overrides
    check_names(overrides, UnitVocoderConfig.__dataclass_fields__, "The field", "model.overrides.")
    units = load_units(args.units)
    sizes: dict[str, Any] = {
        **unit_sizes(units, args.units),
        "sampling_rate": units.sampling_rate,
        "hop_length": units.hop_length,
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
