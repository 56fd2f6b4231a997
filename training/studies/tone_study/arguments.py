# SPDX-License-Identifier: Apache-2.0
"""What a study of tone is told: its syllables, encoders, arms and probes, and what is expected."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from speech_tokenizers.training.common.recipe_files import check_positive, check_seed


# What is told of a syllable, besides columns of the manifest.
MANDARIN_TARGETS = ("tone", "vowel", "final", "initial")
# What a stream of codes is made of: frames of the encoder, or the fundamental frequency.
SOURCES = ("frames", "f0")
# Arms that every view has: its frames, and its frames with labels that were dealt out anew.
CONTINUOUS, SHUFFLED = "continuous", "shuffled-labels"
# The frames of the main view without the reduction to principal components.
ALL_DIMS = "continuous-all-dims"
# Encoders, systems and arms give folders their names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass
class EncoderArguments:
    """
    A speech encoder, whose frames are clustered.

    Args:
        name (`str`): Folder or Hub id of a speech encoder of transformers, or of a model of units, whose encoder is
            taken.
        layers (`list[int]`): Layers to measure, counted from 1; 0 is the input of the first.
        window (`str`): Form of Whisper's input; see [`WaveformEncoder`]. Of no matter to other encoders, and to a
            model of units, which has its own.
    """

    name: str
    layers: list[int]
    window: str = "tight"

    def __post_init__(self):
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise ValueError(f"`layers` must name at least one layer, none twice, but got {self.layers}.")
        if self.window not in ("tight", "padded"):
            raise ValueError(f"`window` must be 'tight' or 'padded', but got {self.window!r}.")


@dataclass
class StreamArguments:
    """
    A stream of codes of an arm.

    Args:
        num_units (`int`): Number of codes. Of `f0`, one of them stands for unvoiced frames.
        source (`str`): `"frames"`, or `"f0"`: quantile bins of log F0, by the mean and deviation of the speaker.
        stride (`int`): Frames that a code lasts. It codes their mean; of F0 that of the voiced ones, and nothing where
            fewer than half are.
        num_stages (`int`): Number of codebooks, each of what those before it leave over (residual quantization).
        told (`dict`): Labels whose discriminative directions are appended to the frames, with their weights. They are
            learnt from the syllables that an arm is trained on.
        base (`float`): Weight of the frames themselves beside those directions; with 0, these alone are clustered.
        deals_labels (`bool`): Whether the labels are dealt out anew before directions are learnt; a control.
    """

    num_units: int
    source: str = "frames"
    stride: int = 1
    num_stages: int = 1
    told: dict[str, float] = field(default_factory=dict)
    base: float = 1.0
    deals_labels: bool = False

    def __post_init__(self):
        if self.num_units < 2:
            raise ValueError(f"`num_units` must be at least 2, but got {self.num_units}.")
        check_positive(self, "stride", "num_stages")
        if self.source not in SOURCES:
            raise ValueError(f"`source` must be one of {', '.join(SOURCES)}, but got {self.source!r}.")
        if self.source == "f0" and (self.told or self.num_stages > 1 or self.num_units < 3):
            raise ValueError("a stream of `f0` has one stage, at least 3 units, and is told nothing.")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.told.values()):
            raise ValueError(f"the weights of `told` must be positive, but are {self.told}.")
        if self.base < 0 or (self.base == 0 and not self.told):
            raise ValueError(f"`base` must be positive, or 0 where there is `told`, but got {self.base}.")
        if self.deals_labels and not self.told:
            raise ValueError("`deals_labels` needs `told`.")

    @property
    def bits_per_frame(self) -> float:
        """Nominal bits of a frame."""
        return self.num_stages * math.log2(self.num_units) / self.stride


@dataclass
class ArmArguments:
    """
    Codes of an encoder's frames.

    Args:
        streams (`dict`): Streams of codes by their names, such as `units` and `f0`.
    """

    streams: dict[str, StreamArguments]

    def __post_init__(self):
        if not self.streams:
            raise ValueError("an arm needs at least one of `streams`.")

    @property
    def bits_per_frame(self) -> float:
        """Nominal bits of a frame."""
        return sum(stream.bits_per_frame for stream in self.streams.values())

    @property
    def told(self) -> list[str]:
        """Labels that it is told."""
        return list(dict.fromkeys(name for stream in self.streams.values() for name in stream.told))


@dataclass
class LSTMArguments:
    """
    The paper's probe, which reads codes in their order. It takes a minute a fold, an arm and a target.

    Args:
        arms (`list[str]`): Arms that it reads; none by default.
        targets (`list[str]`): What it is asked.
        epochs (`int`), batch_size (`int`), learning_rate (`float`): Of its training. Defaults to the paper's.
    """

    arms: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=lambda: ["tone"])
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-3

    def __post_init__(self):
        check_positive(self, "epochs", "batch_size", "learning_rate")


class View(NamedTuple):
    """
    The frames that arms are made of.

    Args:
        encoder (`str`): Key of `encoders`.
        layer (`int`): Layer of it.
        is_normalized (`bool`): Whether each dimension has mean 0 and deviation 1 over the frames of each speaker.
    """

    encoder: str
    layer: int
    is_normalized: bool

    def __str__(self) -> str:
        return f"{self.encoder}-layer{self.layer}" + ("-by-speaker" if self.is_normalized else "")


@dataclass
class ToneStudyArguments:
    """
    Args:
        output_dir (`str`): Folder of all that is made and measured. The same command continues there.
        manifest (`str`): Syllables: JSON lines, CSV or Parquet with `file_name`, `speaker`, `syllable` and `tone`; see
            [`read_syllables`].
        folder (`str`, *optional*): Folder that the manifest's names are relative to. Defaults to that of the manifest.
        encoders (`dict` of [`EncoderArguments`]): Encoders by their names.
        arms (`dict` of [`ArmArguments`]): Arms by their names. Others are compared with the one that is called
            `units`.
        main_encoder (`str`), main_layer (`int`), main_normalized (`bool`): View that has all arms and seeds. Others
            have `other_arms` and the first seed.
        systems (`dict`): Further models, whose codes are measured as they are, by name: folders or Hub ids.
        other_arms (`list[str]`, *optional*): Arms of the other views. Defaults to all.
        targets (`list[str]`): What is to be told of a syllable: `tone`, and columns of the manifest. `vowel`, `final`
            and `initial` follow from pinyin where there is no such column.
        seeds (`list[int]`): Seeds of k-means and of what is drawn.
        num_folds (`int`): Number of parts of the syllables, each of which is tested once.
        num_segments (`int`): Parts of a syllable whose means the probe sees.
        pca_dims (`int`, *optional*): Principal components of the frames that are kept, which makes all faster. They
            are those of the frames that an arm is trained on. Defaults to all dimensions.
        fit_frames (`int`): Frames that units are fitted on, drawn anew by each seed.
        fit_epochs (`int`): Most epochs of k-means.
        trim (`bool`): Whether to cut silence off both ends of a clip; see [`trim_silence`].
        lstm ([`LSTMArguments`]): The paper's probe beside the pooled one.
        num_workers (`int`): Processes that share all work, each of one thread.
        batch_seconds (`float`): Audio that an encoder hears at once, in seconds.
        pictured (`list[str]`, *optional*): Arms whose decoded F0 is drawn. Defaults to the first five.
        expected (`list[str]`): What is expected and why, written before the run.
        notes (`list[str]`): Sentences for the report.
    """

    trainer: ClassVar[str] = "tone_study"

    output_dir: str
    manifest: str
    encoders: dict[str, EncoderArguments]
    arms: dict[str, ArmArguments]
    main_encoder: str
    main_layer: int
    main_normalized: bool = True
    folder: str | None = None
    systems: dict[str, str] = field(default_factory=dict)
    other_arms: list[str] | None = None
    targets: list[str] = field(default_factory=lambda: list(MANDARIN_TARGETS))
    seeds: list[int] = field(default_factory=lambda: [0])
    num_folds: int = 3
    num_segments: int = 4
    pca_dims: int | None = 128
    fit_frames: int = 40000
    fit_epochs: int = 10
    trim: bool = True
    lstm: LSTMArguments = field(default_factory=LSTMArguments)
    num_workers: int = 1
    batch_seconds: float = 60.0
    pictured: list[str] | None = None
    expected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        check_positive(self, "fit_frames", "fit_epochs", "num_segments", "num_workers", "batch_seconds")
        if self.pca_dims is not None:
            check_positive(self, "pca_dims")
        if self.num_folds < 2:
            raise ValueError(f"`num_folds` must be at least 2, but got {self.num_folds}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must name at least one seed, none twice, but got {self.seeds}.")
        for seed in self.seeds:
            check_seed(seed)
        if "tone" not in self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"`targets` must name `tone`, and nothing twice, but got {self.targets}.")
        if not self.encoders:
            raise ValueError("`encoders` must name at least one encoder.")
        for name in (*self.encoders, *self.arms, *self.systems):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of a folder; use letters, digits, '-', '+' and '_'.")
        if reserved := {CONTINUOUS, ALL_DIMS, SHUFFLED} & {*self.arms, *self.systems}:
            raise ValueError(f"every view has an arm {sorted(reserved)[0]!r}; give yours another name.")
        if shared := {*self.encoders} & {*self.systems}:
            raise ValueError(f"an encoder and a system are both called {sorted(shared)[0]!r}; rename one of them.")
        _check_among("main_encoder", [self.main_encoder], self.encoders)
        _check_among("main_layer", [self.main_layer], self.encoders[self.main_encoder].layers)
        _check_among("other_arms", self.other_arms or [], self.arms)
        _check_among("lstm.arms", self.lstm.arms, self.arms)
        _check_among("lstm.targets", self.lstm.targets, self.targets)
        _check_among("pictured", self.pictured or [], self.arms)
        if self.pictured is None:
            self.pictured = list(self.arms)[:5]
        for name, arm in self.arms.items():
            _check_among(f"arms.{name}: told", arm.told, self.targets)

    @property
    def main_view(self) -> View:
        """View with all arms and seeds."""
        return View(self.main_encoder, self.main_layer, self.main_normalized)

    @property
    def views(self) -> list[View]:
        """All views, the main one first."""
        found = [
            View(name, layer, is_normalized)
            for name, encoder in self.encoders.items()
            for layer in encoder.layers
            for is_normalized in (True, False)
        ]
        return [self.main_view, *(view for view in found if view != self.main_view)]

    def arms_of(self, view: View) -> list[str]:
        """Arms of a view, without [`CONTINUOUS`] and [`SHUFFLED`], which each has."""
        if view == self.main_view or self.other_arms is None:
            return list(self.arms)
        return [name for name in self.arms if name in self.other_arms]

    def seeds_of(self, view: View) -> list[int]:
        """Seeds of a view's arms."""
        return self.seeds if view == self.main_view else self.seeds[:1]


def _check_among(name: str, given: Iterable, known: Iterable) -> None:
    for value in given:
        if value not in known:
            listed = ", ".join(str(option) for option in known)
            raise ValueError(f"`{name}` is {value!r}, which is not among: {listed}.")


__all__ = [
    *(
        "ALL_DIMS",
        "CONTINUOUS",
        "MANDARIN_TARGETS",
        "SHUFFLED",
        "SOURCES",
        "ArmArguments",
        "EncoderArguments",
        "LSTMArguments",
    ),
    *("StreamArguments", "ToneStudyArguments", "View"),
]
