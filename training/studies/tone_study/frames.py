# SPDX-License-Identifier: Apache-2.0
"""
What the models of a study of tone make of its syllables: frames of encoders, and codes of other models, as rows.

Everything lies below `output_dir/encoded`, and is made once.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from tqdm import tqdm

from speech_tokenizers.coding.command_options import choose_device
from speech_tokenizers.coding.loading import load
from speech_tokenizers.coding.row_coding import RowCoding, RowFields
from speech_tokenizers.modeling.codec_interface import codebook_sizes, codebook_strides
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.modeling.unit_model import UnitPreTrainedModel
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.speech_rows import set_aside_path
from speech_tokenizers.processing.whole_files import write_whole
from speech_tokenizers.training.common.shared_work import share_work
from speech_tokenizers.training.studies.clip_tokens import encode_clips, read_set_aside, read_tokens
from speech_tokenizers.training.studies.token_study.clips import check_share_set_aside
from speech_tokenizers.training.studies.tone_study.arguments import EncoderArguments, ToneStudyArguments, View
from speech_tokenizers.training.studies.tone_study.syllables import PreparedSyllables, Syllable


@dataclass(frozen=True)
class ClipFrames:
    """
    Frames of syllables, one behind the other.

    Args:
        syllables (list of [`Syllable`]): Syllables that the model could hear.
        values (`np.ndarray` of shape `(num_frames, dim)`): Frames, float32.
        ends (`np.ndarray` of shape `(num_syllables,)`): Number of frames up to the end of each.
        pitch (`np.ndarray` of shape `(num_frames,)`): Log2 of F0 in Hz by the mean and deviation of the speaker, NaN
            where unvoiced.
        frame_rate (`float`): Frames a second.
    """

    syllables: list[Syllable]
    values: np.ndarray
    ends: np.ndarray
    pitch: np.ndarray
    frame_rate: float

    @property
    def starts(self) -> np.ndarray:
        """Number of frames before each syllable."""
        return np.concatenate([[0], self.ends[:-1]])

    def of_clips(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of the frames of some syllables, in their order."""
        starts = self.starts
        return np.concatenate([np.arange(starts[number], self.ends[number]) for number in numbers])

    def clip_parts(self, numbers: np.ndarray, num_parts: int) -> np.ndarray:
        """For each frame of [`~ClipFrames.of_clips`], in which of so many equal parts of its syllable it lies."""
        lengths = (self.ends - self.starts)[numbers]
        return np.concatenate([np.arange(length) * num_parts // length for length in lengths])


@dataclass(frozen=True)
class ClipCodes:
    """
    Codes of syllables by a model that was trained elsewhere.

    Args:
        syllables (list of [`Syllable`]): Syllables that the model could hear.
        codes (list of `np.ndarray` of shape `(num_quantizers, num_frames)`): Their codes.
        adds_up (`bool`): Whether codes of several codebooks stand for the sum of what each stands for, as those of a
            residual quantizer do; else for all beside each other.
        vectors (`np.ndarray` of shape `(num_quantizers, codebook_size, dim)`): What each code adds to a frame.
        sizes, strides (lists of `int`): Codes of each codebook, and frames that one lasts.
        frame_rate (`float`): Frames a second.
    """

    syllables: list[Syllable]
    codes: list[np.ndarray]
    adds_up: bool
    vectors: np.ndarray
    sizes: list[int]
    strides: list[int]
    frame_rate: float


def frames_model(encoder: EncoderArguments) -> KMeansUnitsModel:
    """
    A model whose latents are an encoder's frames of all its `layers`, beside each other. Nobody reads its codes.

    Args:
        encoder ([`EncoderArguments`]): Encoder of transformers, or a model of units, whose encoder is taken.

    Raises:
        ValueError: If there is no such encoder, or it lacks a layer.
    """
    given = None
    with contextlib.suppress(ValueError, OSError):  # of what is no model of ours, transformers says what is wrong
        given, _ = load(encoder.name)
    if isinstance(given, UnitPreTrainedModel):
        names = ("do_normalize", "frame_rule", "padding_invariant", "window", "sampling_rate")
        config = KMeansUnitsConfig(
            encoder_config=given.config.encoder_config,
            layers=encoder.layers,
            codebook_size=2,
            **{name: getattr(given.config, name) for name in names},
        )
        model = KMeansUnitsModel(config)
        model.encoder.load_state_dict(given.encoder.state_dict())
    else:
        model = KMeansUnitsModel.from_encoder(
            encoder.name, layers=encoder.layers, codebook_size=2, window=encoder.window
        )
    # It has to have centroids before it encodes.
    model.set_centroids(torch.ones_like(model.centroids))
    return model.eval()


class StudyModels:
    """
    The frames and codes of a study, made when they are first asked for, and read afterwards.

    Args:
        args ([`ToneStudyArguments`]): The study.
        prepared ([`PreparedSyllables`]): Its syllables.
        show_progress (`bool`, *optional*): Whether to show bars. Defaults to whether standard error is a terminal.
    """

    def __init__(self, args: ToneStudyArguments, prepared: PreparedSyllables, show_progress: bool | None = None):
        self.args, self.prepared, self.show_progress = args, prepared, show_progress
        self.output = Path(args.output_dir) / "encoded"

    def encode_all(self) -> None:
        """Encode what is not encoded yet, in `args.num_workers` processes."""
        args, names = self.args, [*self.args.encoders, *self.args.systems]
        shows_clips = self.show_progress if args.num_workers == 1 else False
        disable = None if self.show_progress is None else not self.show_progress
        if args.num_workers == 1:
            disable = True
        with tqdm(total=len(names), desc="models", unit="model", disable=disable) as bar:
            for _ in share_work(_encode, names, args.num_workers, StudyModels, (args, self.prepared, shows_clips)):
                bar.update()

    def encode(self, name: str) -> None:
        """Encode what an encoder or a system has not encoded yet."""
        if name in self.args.encoders:
            encoder = self.args.encoders[name]
            model = frames_model(encoder).to(choose_device(None))
            extractor = KMeansUnitsFeatureExtractor(sampling_rate=model.sampling_rate, hop_length=model.hop_length)
            self._encode(name, "latents", model, extractor, encoder.name)
            self._say(name, model)
            return
        path = self.args.systems[name]
        model, extractor = load(path)
        codec = as_speech_codec(model, extractor)
        if codec.kind != "codes":
            raise ValueError(f"the system {name!r} has no codes; leave {path} out, or name its encoder.")
        self._encode(name, "codes", model.to(choose_device(None)), extractor, path)
        adds_up = np.array(not isinstance(model, UnitPreTrainedModel))
        vectors = codec.codebook_vectors().cpu().numpy()
        sizes, strides = (np.array(found(codec)) for found in (codebook_sizes, codebook_strides))
        self._say(name, codec, vectors=vectors, adds_up=adds_up, sizes=sizes, strides=strides)

    def set_aside(self) -> list[dict[str, str]]:
        """`{"name", "reason"}` of what models could not hear, each once for each model."""
        found = []
        for name in (*self.args.encoders, *self.args.systems):
            if (path := set_aside_path(self.output / name)).is_file():
                found += [
                    {"name": entry["name"], "reason": f"{name}: {entry['reason']}"} for entry in read_set_aside(path)
                ]
        return found

    def _encode(self, name: str, kind: Any, model: Any, extractor: Any, path: str) -> None:
        recordings = self.prepared.recordings
        coding = RowCoding(model, extractor, path, RowFields(recordings), None, self.args.batch_seconds, kind=kind)
        encode_clips(coding, recordings, self.output / name, name, self.show_progress)
        if (aside := set_aside_path(self.output / name)).is_file():
            check_share_set_aside(name, read_set_aside(aside), len(recordings), aside)

    def _say(self, name: str, model: Any, **arrays: np.ndarray) -> None:
        # What measuring needs to know of the model without loading it.
        longest = max(len(times) for times in self.prepared.pitch_times) + 100
        centres = model.frame_centres(2 * longest).numpy()
        content = {"centres": centres, "frame_rate": np.float64(model.frame_rate), **arrays}
        write_whole(
            self.output / f"{name}.safetensors", save({key: np.asarray(value) for key, value in content.items()})
        )

    def _facts(self, name: str) -> dict[str, np.ndarray]:
        return load_file(self.output / f"{name}.safetensors")

    def frames(self, view: View) -> ClipFrames:
        """The frames of a view."""
        facts, tokens = self._facts(view.encoder), read_tokens(self.output / view.encoder)
        layers = self.args.encoders[view.encoder].layers
        size = next(iter(tokens.values())).shape[1] // len(layers)
        first = layers.index(view.layer) * size
        syllables = [syllable for syllable in self.prepared.syllables if syllable.name in tokens]
        rows = [tokens[syllable.name][:, first : first + size] for syllable in syllables]
        ends = np.cumsum([len(row) for row in rows])
        values = np.concatenate(rows).astype(np.float32)
        if view.is_normalized:
            speakers = np.repeat([syllable.speaker for syllable in syllables], [len(row) for row in rows])
            for speaker in np.unique(speakers):
                mine = speakers == speaker
                deviation = values[mine].std(0)
                values[mine] = (values[mine] - values[mine].mean(0)) / np.where(deviation > 0, deviation, 1)
        pitch = self._pitch(syllables, facts["centres"], [len(row) for row in rows])
        return ClipFrames(syllables, values, ends, np.concatenate(pitch), float(facts["frame_rate"]))

    def codes(self, name: str) -> ClipCodes:
        """The codes of a system."""
        facts, tokens = self._facts(name), read_tokens(self.output / name)
        syllables = [syllable for syllable in self.prepared.syllables if syllable.name in tokens]
        codes = [tokens[syllable.name] for syllable in syllables]
        sizes, strides = facts["sizes"].tolist(), facts["strides"].tolist()
        rate = float(facts["frame_rate"])
        return ClipCodes(syllables, codes, bool(facts["adds_up"]), facts["vectors"], sizes, strides, rate)

    def _pitch(self, syllables: list[Syllable], centres: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
        # At the middles of frames: that of the nearest frame of the tracker, if one is near.
        prepared = self.prepared
        places = {syllable.name: place for place, syllable in enumerate(prepared.syllables)}
        found = []
        for syllable, length in zip(syllables, lengths, strict=True):
            times, pitch = (part[places[syllable.name]] for part in (prepared.pitch_times, prepared.pitches))
            values = np.full(length, np.nan)
            nearest = np.abs(centres[:length, None] - times).argmin(1)
            is_near = np.abs(centres[:length] - times[nearest]) <= 0.02
            values[is_near] = pitch[nearest[is_near]]
            found.append(values)
        return _by_speaker(syllables, found)


def _encode(models: StudyModels, name: str) -> None:
    models.encode(name)


def _by_speaker(syllables: list[Syllable], pitch: list[np.ndarray]) -> list[np.ndarray]:
    # Less the mean of the speaker, by the deviation; a speaker of one pitch, or of none, has zeros or NaN.
    together: dict[str, list[np.ndarray]] = {}
    for syllable, values in zip(syllables, pitch, strict=True):
        together.setdefault(syllable.speaker, []).append(values[~np.isnan(values)])
    known = {}
    for speaker, parts in together.items():
        voiced = np.concatenate(parts)
        known[speaker] = (voiced.mean(), voiced.std() or 1.0) if len(voiced) else (0.0, 1.0)
    return [
        (values - known[syllable.speaker][0]) / known[syllable.speaker][1]
        for syllable, values in zip(syllables, pitch, strict=True)
    ]


__all__ = ["ClipCodes", "ClipFrames", "StudyModels", "frames_model"]
