# SPDX-License-Identifier: Apache-2.0
"""
The tokens of a study: frames of its encoder, units that are fitted on them, and codes of other models, as rows.

The encoder hears each clip once, for all layers and seeds. Its frames are rows of latents, in half precision; units
are fitted on these frames and assigned to them, so that all views of a clip are of the same numbers. Everything below
`output_dir` is made once, and made anew, with a word, where the clips or the model have changed.

- `encoded/encoder/latents/TASK`: frames of all `encoder.layers`, beside each other, and `encoded/NAME/codes/TASK`, the
  codes of other models. A clip that several tasks have is encoded for the first of them alone;
- `systems/layer4-seed0`: units of a layer, a [`KMeansUnitsModel`], with `bpe/`, the merges of its units;
- `rows/SYSTEM/KIND/TASK`: rows with the answers of a task, for language models, once they are asked for.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speech_tokenizers.coding.command_options import choose_device
from speech_tokenizers.coding.loading import load
from speech_tokenizers.coding.row_coding import RowCoding, RowFields
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.speech_row_format import read_shard_metadata, shards_in
from speech_tokenizers.processing.speech_rows import (
    RowsFacts,
    SpeechRowsWriter,
    set_aside_path,
)
from speech_tokenizers.processing.task_manifests import TaskClip
from speech_tokenizers.processing.unit_bpe import UnitBPE, train_unit_bpe
from speech_tokenizers.processing.whole_files import whole_folder
from speech_tokenizers.training.common.run_record import fingerprint_of
from speech_tokenizers.training.studies.clip_tokens import encode_clips, make_current, read_set_aside, read_tokens
from speech_tokenizers.training.studies.token_study.arguments import TokenStudyArguments, encoder_system
from speech_tokenizers.training.studies.token_study.clips import (
    PreparedClips,
    check_share_set_aside,
    prepare_clips,
)
from speech_tokenizers.training.units.units_fitting import fit_units, save_units


# System of the encoder's frames, of all layers.
ENCODER = "encoder"
_BPE_FOLDER = "bpe"
# Draws of first centroids, of which k-means takes the best. The twenty of `fit-units` take longer than what follows.
_STARTS_OF_KMEANS = 3


@dataclass
class TaskArrays:
    """
    What a system makes of the clips of a task.

    Args:
        clips (`list` of [`TaskClip`]): Clips, in the order of the manifest.
        seconds (`list[float]`): Length of each clip.
        features (`list` of `np.ndarray` of shape `(num_frames, dim)`, *optional*): Frames before quantization, float32
            with the values of float16; `None` where they were not kept.
        codes (`list` of `np.ndarray` of shape `(num_codebooks, num_frames)`, *optional*): Codes, int64; `None` of
            continuous tokens.
        frame_rate (`float`): Frames a second.
        codebook_size (`int`, *optional*): Codes of a codebook lie below it.
        codebook_vectors (`np.ndarray` of shape `(num_codebooks, codebook_size, dim)`, *optional*): What each code adds
            to a frame; the frame that codes stand for is the sum of theirs.
        group_columns (tuple of `str`): Columns whose values do not cross splits.
    """

    clips: list[TaskClip]
    seconds: list[float]
    features: list[np.ndarray] | None
    codes: list[np.ndarray] | None
    frame_rate: float
    codebook_size: int | None
    codebook_vectors: np.ndarray | None
    group_columns: tuple[str, ...]

    def centroids(self, index: int) -> np.ndarray:
        """Frames `(num_frames, dim)`, float32, that the codes of a clip stand for."""
        if self.codes is None or self.codebook_vectors is None:
            raise ValueError("continuous tokens have no codes, and so no centroids.")
        pairs = zip(self.codebook_vectors, self.codes[index], strict=True)
        return np.stack([vectors[codes] for vectors, codes in pairs]).sum(axis=0, dtype=np.float32)


class StudySystems:
    """
    The systems of a study. Each part is made when it is first asked for, and read afterwards.

    Args:
        args ([`TokenStudyArguments`]): The study.
        show_progress (`bool`, *optional*): Whether to show bars. Defaults to whether standard error is a terminal.
    """

    def __init__(self, args: TokenStudyArguments, show_progress: bool | None = None):
        self.args = args
        self.output = Path(args.output_dir)
        self.show_progress = show_progress
        self._prepared: dict[str, PreparedClips] = {}
        self._loaded: dict[str, tuple[Any, Any]] = {}
        self._checked: set[Path] = set()
        self._codes: dict[tuple[str, str], dict[str, np.ndarray]] = {}

    def prepared(self, task: str) -> PreparedClips:
        """The clips of a task; see [`prepare_clips`]."""
        if task not in self._prepared:
            self._prepared[task] = prepare_clips(self.args, task, self.show_progress)
        return self._prepared[task]

    def rows_folder(self, system: str, kind: str, task: str) -> Path:
        """
        Folder of the rows of a system, for language models; they are written if they are missing.

        Args:
            system (`str`): Units such as `"layer4-seed0"` (see [`encoder_system`]), or a name of `args.systems`.
            kind (`str`): `"codes"` or `"latents"`.
            task (`str`): Name of the task.

        Returns:
            `Path`: A folder that [`read_speech_rows`] reads. Rows are called by the names of the clips.

        Raises:
            ValueError: If there is no such system, it has nothing of that kind, or too many clips cannot be encoded.
        """
        if system == ENCODER:
            raise ValueError(f"{system!r} has all layers at once, for no language model; choose units of one layer.")
        folder = self.output / "rows" / system / kind / task
        if folder in self._checked:
            return folder
        model, extractor = self._model(system)
        is_own = _layer_and_seed(self.args, system) is not None
        name = str(self.output / "systems" / system) if is_own else self.args.systems[system]
        facts = RowsFacts.of_codec(as_speech_codec(model, extractor), name, kind=kind)
        prepared = self.prepared(task)
        fields = RowFields(prepared.recordings)
        inputs = fields.fingerprints(prepared.recordings)

        def rows() -> Iterator[dict[str, Any]]:
            tokens = self._tokens(system, kind, task)
            for row, seconds in zip(prepared.recordings.remove_columns("audio"), prepared.seconds, strict=True):
                if row["id"] in tokens:
                    yield {**fields.of(row), facts.column: tokens[row["id"]], "seconds": seconds}
                else:
                    yield {"name": row["id"], "reason": f"could not be encoded; see {self.output / 'encoded'}."}

        def write(overwrite: bool) -> None:
            with SpeechRowsWriter(folder, facts, len(inputs), fields.others, overwrite) as writer:
                writer.check_number_of_shards(1)
                if writer.kept(0, inputs) is None:
                    writer.write(0, list(rows()), inputs)
                writer.finish(1)

        make_current(write)
        self._checked.add(folder)
        return folder

    def units(self) -> list[tuple[int, int]]:
        """Layer and seed of all units that can be fitted."""
        return [(layer, seed) for layer in self.args.encoder.layers for seed in self.args.seeds]

    def units_model(self, layer: int, seed: int) -> KMeansUnitsModel:
        """
        Units of a layer of the encoder, fitted on training clips of all tasks; of few-shot tasks, on those of any
        seed. Each task gives as many seconds, `encoder.fit_seconds`, or all that it has.

        Args:
            layer (`int`): One of `encoder.layers`.
            seed (`int`): Seed of the clips that are drawn and of k-means.

        Raises:
            ValueError: If there are fewer frames than units.
        """
        name = encoder_system(layer, seed)
        if name not in self._loaded:
            folder = self.output / "systems" / name
            begun_with = self._fit_inputs(layer, seed)
            known = folder / "fit.json"
            if known.is_file() and json.loads(known.read_text("utf-8")).get("begun_with") != begun_with:
                print(f"{folder}: was fitted on other clips or otherwise; the units are fitted anew", file=sys.stderr)
                known.unlink()
            if not known.is_file():
                self._fit(folder, layer, seed, begun_with)
            model = KMeansUnitsModel.from_pretrained(folder).eval()
            self._loaded[name] = model, KMeansUnitsFeatureExtractor.from_pretrained(folder)
        return self._loaded[name][0]

    def unit_bpe(self, layer: int, seed: int) -> UnitBPE:
        """Merges of frequent units, learnt on training clips of all tasks; each recording counts once."""
        folder = self.output / "systems" / encoder_system(layer, seed) / _BPE_FOLDER
        model = self.units_model(layer, seed)
        made_of = folder / "made_of.json"
        clips = self._training_clips()
        key = _digest([model.fingerprint(), self.args.encoder.bpe_tokens, [name for _, name in clips]])
        if not made_of.is_file() or json.loads(made_of.read_text("utf-8")) != key:
            units: dict[tuple[str, str], np.ndarray] = {}
            for task in dict.fromkeys(task for task, _ in clips):
                codes = self._tokens(encoder_system(layer, seed), "codes", task)
                units |= {(task, name): found[0] for name, found in codes.items()}
            merged = train_unit_bpe(
                [units[clip] for clip in clips if clip in units],
                self.args.encoder.num_units,
                self.args.encoder.bpe_tokens,
            )
            with whole_folder(folder) as temporary:
                merged.save_pretrained(temporary)
                (temporary / made_of.name).write_text(json.dumps(key))
        return UnitBPE.from_pretrained(folder)

    def arrays(self, system: str, task: str) -> TaskArrays:
        """
        What a system makes of the clips of a task.

        Args:
            system (`str`): See [`~StudySystems.rows_folder`]. `"encoder"` has the frames of the task's own layer.
            task (`str`): Name of the task.

        Raises:
            ValueError: See [`~StudySystems.rows_folder`].
        """
        prepared = self.prepared(task)
        if system == ENCODER:
            return self.layer_arrays(self.args.layer_of(task), task)
        if (layer_and_seed := _layer_and_seed(self.args, system)) is not None:
            model = self.units_model(*layer_and_seed)
            frames = self._tokens(system, "latents", task)
            return self._arrays(prepared, frames, self._units(system, task, model, frames), model, model)
        codec = as_speech_codec(*self._model(system))
        if codec.kind == "latents":
            return self._arrays(prepared, self._tokens(system, "latents", task), None, codec, None)
        return self._arrays(prepared, None, self._tokens(system, "codes", task), codec, codec)

    def layer_arrays(self, layer: int, task: str) -> TaskArrays:
        """Frames of another layer of the encoder than the task's own; see [`~StudySystems.arrays`]."""
        return self._arrays(self.prepared(task), self._frames(task, layer, None), None, self._model(ENCODER)[0], None)

    @staticmethod
    def _arrays(
        prepared: PreparedClips,
        features: dict[str, np.ndarray] | None,
        codes: dict[str, np.ndarray] | None,
        codec: Any,
        quantizer: Any,
    ) -> TaskArrays:
        found = [given for given in (features, codes) if given is not None]
        kept = [number for number, clip in enumerate(prepared.clips) if all(clip.name in given for given in found)]
        clips = [prepared.clips[number] for number in kept]
        return TaskArrays(
            clips=clips,
            seconds=[prepared.seconds[number] for number in kept],
            features=None if features is None else [features[clip.name] for clip in clips],
            codes=None if codes is None else [codes[clip.name] for clip in clips],
            frame_rate=float(codec.frame_rate),
            codebook_size=None if quantizer is None else quantizer.codebook_size,
            codebook_vectors=None if quantizer is None else quantizer.codebook_vectors().cpu().numpy(),
            group_columns=prepared.group_columns,
        )

    def _model(self, system: str) -> tuple[Any, Any]:
        if system in self._loaded:
            return self._loaded[system]
        if (layer_and_seed := _layer_and_seed(self.args, system)) is not None:
            self.units_model(*layer_and_seed)
        elif system == ENCODER:
            settings = self.args.encoder
            model = KMeansUnitsModel.from_encoder(
                settings.name, layers=settings.layers, codebook_size=2, window=settings.window
            )
            # It has to have centroids before it encodes; nobody reads its codes.
            model.set_centroids(torch.ones_like(model.centroids))
            extractor = KMeansUnitsFeatureExtractor(sampling_rate=model.sampling_rate, hop_length=model.hop_length)
            self._loaded[system] = model.to(choose_device(None)), extractor
        elif system in self.args.systems:
            model, extractor = load(self.args.systems[system])
            self._loaded[system] = model.to(choose_device(None)), extractor
        else:
            known = [*(encoder_system(layer, seed) for layer, seed in self.units()), *self.args.systems]
            raise ValueError(f"there is no system {system!r}; choose one of {', '.join(known)}.")
        return self._loaded[system]

    def _owners(self) -> dict[str, tuple[str, str]]:
        # Task and name by which each file is encoded: those of the first task that has it.
        found: dict[str, tuple[str, str]] = {}
        for task in self.args.tasks:
            for clip in self.prepared(task).clips:
                found.setdefault(clip.path, (task, clip.name))
        return found

    def _tokens(self, system: str, kind: str, task: str) -> dict[str, np.ndarray]:
        # Codes (num_codebooks, num_frames) or latents (num_frames, dim) of a task's clips, by their names.
        if (layer_and_seed := _layer_and_seed(self.args, system)) is not None:
            model = self.units_model(*layer_and_seed)
            frames = self._frames(task, layer_and_seed[0], model)
            return frames if kind == "latents" else self._units(system, task, model, frames)
        owners = self._owners()
        places = {clip.name: owners[clip.path] for clip in self.prepared(task).clips}
        read = {
            owner: read_tokens(self._encoded(system, kind, owner))
            for owner in dict.fromkeys(owner for owner, _ in places.values())
        }
        found = {name: read[owner][known_as] for name, (owner, known_as) in places.items() if known_as in read[owner]}
        missing = [{"name": name, "reason": "could not be encoded."} for name in places if name not in found]
        check_share_set_aside(task, missing, len(places), self.output / "encoded" / system / kind)
        return found

    def _units(
        self, system: str, task: str, model: KMeansUnitsModel, frames: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        # Units (1, num_frames) of normalized frames (num_frames, dim), by the clip's name.
        if (system, task) not in self._codes:
            with torch.no_grad():
                self._codes[system, task] = {
                    name: model.quantizer.encode(torch.from_numpy(rows)[None, None])[0].numpy()
                    for name, rows in frames.items()
                }
        return self._codes[system, task]

    def _encoded(self, system: str, kind: str, owner: str) -> Path:
        # Folder of what the model itself, which hears the clips, made of those that no earlier task has.
        folder = self.output / "encoded" / system / kind / owner
        if folder in self._checked:
            return folder
        prepared, owners = self.prepared(owner), self._owners()
        mine = [number for number, clip in enumerate(prepared.clips) if owners[clip.path] == (owner, clip.name)]
        recordings = prepared.recordings.select(mine)
        model, extractor = self._model(system)
        name = self.args.encoder.name if system == ENCODER else self.args.systems[system]
        coding = RowCoding(
            model, extractor, name, RowFields(recordings), None, self.args.encoder.batch_seconds, kind=kind
        )
        encode_clips(coding, recordings, folder, f"{system}, {owner}", self.show_progress)
        if (path := set_aside_path(folder)).is_file():
            check_share_set_aside(owner, read_set_aside(path), len(prepared.clips), path)
        self._checked.add(folder)
        return folder

    def _frames(self, task: str, layer: int, model: KMeansUnitsModel | None) -> dict[str, np.ndarray]:
        # Frames (num_frames, dim), float32, of a layer by the clip's name; with a model, normalized as it does.
        size = self._model(ENCODER)[0].config.hidden_size
        first = self.args.encoder.layers.index(layer) * size
        states = self._tokens(ENCODER, "latents", task)
        frames = {name: rows[:, first : first + size].astype(np.float32) for name, rows in states.items()}
        if model is None:
            return frames
        return {name: model.streams(torch.from_numpy(rows)[None, None])[0, 0].numpy() for name, rows in frames.items()}

    def _training_clips(self) -> list[tuple[str, str]]:
        # Task and name of all training clips; a file that several tasks have counts for the first, and not at all if
        # one of them holds it or its speaker out.
        owners = self._owners()
        clips = [(task, clip) for task in self.args.tasks for clip in self.prepared(task).clips]
        held_out = {mark for _, clip in clips if clip.split != "train" for mark in _marks(clip)}
        return [
            (task, clip.name)
            for task, clip in clips
            if clip.split == "train" and owners[clip.path] == (task, clip.name) and held_out.isdisjoint(_marks(clip))
        ]

    def _drawn(self, seed: int) -> dict[str, list[str]]:
        # Names of the clips of each task that units are fitted on.
        drawn: dict[str, list[str]] = {}
        mine = set(self._training_clips())
        for task in self.args.tasks:
            prepared = self.prepared(task)
            training = [number for number, clip in enumerate(prepared.clips) if (task, clip.name) in mine]
            left = self.args.encoder.fit_seconds
            for number in np.random.default_rng(seed).permutation(training).astype(int).tolist():
                if left > 0:
                    drawn.setdefault(task, []).append(prepared.clips[number].name)
                    left -= prepared.seconds[number]
        return drawn

    def _fit_inputs(self, layer: int, seed: int) -> dict[str, Any]:
        # All that the units depend on.
        settings = self.args.encoder
        names = ("window", "num_units", "normalization", "fit_seconds", "fit_epochs")
        facts = {task: _rows_key(self._encoded(ENCODER, "latents", task)) for task, _ in self._training_clips()}
        return {
            "encoder": fingerprint_of(settings.name),
            "layer": layer,
            "seed": seed,
            "clips": _digest([self._drawn(seed), facts]),
            **{name: getattr(settings, name) for name in names},
        }

    def _fit(self, folder: Path, layer: int, seed: int, begun_with: dict[str, Any]) -> None:
        settings = self.args.encoder
        model = KMeansUnitsModel.from_encoder(
            settings.name,
            layers=[layer],
            codebook_size=settings.num_units,
            normalization=settings.normalization,
            window=settings.window,
        )
        parts = []
        for task, names in self._drawn(seed).items():
            # A model without statistics yet: `fit_units` itself standardizes.
            frames = self._frames(task, layer, model)
            parts += [frames[name].astype(np.float16) for name in names if name in frames]
        features = np.concatenate(parts)[None]
        unfinished = folder.with_name(f".{folder.name}.fit-{_digest(begun_with)}")
        fit = fit_units(model, features, unfinished, seed, max_epochs=settings.fit_epochs, num_init=_STARTS_OF_KMEANS)
        save_units(model, fit, folder, begun_with=begun_with, encoder=Path(settings.name).name, layers=[layer])
        for path in sorted(unfinished.iterdir()):
            path.unlink()
        unfinished.rmdir()


def _marks(clip: TaskClip) -> set[Any]:
    # What another task's clip of the same recording or speaker has, too.
    return {clip.path, clip.name, *((column, value) for column, value in clip.groups.items() if column == "speaker")}


def _layer_and_seed(args: TokenStudyArguments, system: str) -> tuple[int, int] | None:
    # Of units of the study's encoder.
    found = re.fullmatch(r"layer(\d+)-seed(\d+)", system)
    if found is None:
        return None
    layer, seed = int(found[1]), int(found[2])
    if layer not in args.encoder.layers or seed not in args.seeds:
        raise ValueError(
            f"there are no units {system!r}; the study has the layers {args.encoder.layers} and the seeds"
            f" {args.seeds}."
        )
    return layer, seed


def _rows_key(folder: Path) -> list[str]:
    # What the rows of a folder were made from.
    said = [read_shard_metadata(path) for _, path in sorted(shards_in(folder).items())]
    return [said[0]["encoder_fingerprint"], *(shard["inputs"] for shard in said)]


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]
