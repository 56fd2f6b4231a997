# SPDX-License-Identifier: Apache-2.0
"""What a study of tokens is told: its tasks, encoder, systems and arms, and what is expected."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from speech_tokenizers.evaluation.understanding.metrics import METRICS
from speech_tokenizers.modeling.speech_lm_tasks import SPEECH_COLUMN, Task, defined_tasks, find_task, register_task
from speech_tokenizers.training.common.recipe_files import check_names, check_positive, check_seed
from speech_tokenizers.training.language_models.recipe_tasks import NewTaskArguments, recipe_definitions


LEVELS = ("probe", "lm")
# Arms of the study's encoder; those of other systems have the names of these.
ENCODER_ARMS = ("continuous", "units", "units+bpe", "centroids", "continuous+units")
# Arms that should do badly: without audio, with that of another clip, with labels that were dealt out anew.
CONTROL_ARMS = ("no-audio", "other-audio", "shuffled-labels")
# What all arms have as much of at the level `lm`; the first always belongs to it.
MATCHED = ("steps", "positions")
NOISES = ("speech_shaped", "pink", "white")
# Settings of a training that the study decides, whole sections among them, and those by which its arms differ.
_OF_STUDY = (
    *("output_dir", "codec", "data.train", "data.train_split", "data.eval", "data.eval_split"),
    *("language_model", "tasks", "new_tasks", "closed_tasks", "seed"),
)
_OF_ARM = ("audio_in", "layout", "unit_coding", "unit_bpe", "latent_source")
# Tasks and systems give folders their names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass
class EncoderArguments:
    """
    The speech encoder whose frames are compared with their units.

    Args:
        name (`str`): Folder or Hub id of a speech encoder of transformers.
        layers (`list[int]`): Layers to measure, counted from 1; 0 is the input of the first.
        layer (`int`, *optional*): Layer of tasks that name none. Defaults to the last of `layers`.
        window (`str`): Form of Whisper's input: `"tight"` leaves out the silence up to 30 s, which takes a fraction of
            the time; see [`WaveformEncoder`]. Of no matter to other encoders.
        num_units (`int`): Number of k-means units.
        bpe_tokens (`int`): Number of ids after byte-pair merging of units, the two special ones among them.
        normalization (`str`, *optional*): What is done to frames before they are clustered: `"standardize"` or
            `"layer_norm"`. Defaults to nothing.
        fit_seconds (`float`): Training audio of each task that the units are fitted on, in seconds; less where a task
            has less. A recording that several tasks have is heard once.
        fit_epochs (`int`): Most epochs of k-means.
        batch_seconds (`float`): Audio that the encoder hears at once, in seconds.
    """

    name: str
    layers: list[int]
    layer: int | None = None
    window: str = "tight"
    num_units: int = 500
    bpe_tokens: int = 1500
    normalization: str | None = None
    fit_seconds: float = 1800.0
    fit_epochs: int = 30
    batch_seconds: float = 60.0

    def __post_init__(self):
        check_positive(self, "fit_seconds", "fit_epochs", "batch_seconds")
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise ValueError(f"`layers` must name at least one layer, none twice, but got {self.layers}.")
        self.layer = self.layers[-1] if self.layer is None else self.layer
        _check_among("layer", self.layer, self.layers)
        _check_among("window", self.window, ("tight", "padded"))
        _check_among("normalization", self.normalization, (None, "standardize", "layer_norm"))
        if self.num_units < 2:
            raise ValueError(f"`num_units` must be at least 2, but got {self.num_units}.")
        if self.bpe_tokens < self.num_units + 2:
            raise ValueError(
                f"`bpe_tokens` must be at least {self.num_units + 2}, `num_units` and two special ids, but got"
                f" {self.bpe_tokens}."
            )


@dataclass
class TaskArguments:
    """
    A task of the study.

    Args:
        manifest (`str`): Manifest of its recordings; see [`read_manifest`].
        task (`str`): Name of a task of speech language models, whose instruction and metrics it has: one of the
            package, or of `new_tasks`.
        folder (`str`, *optional*): Folder that the manifest's names are relative to. Defaults to that of the manifest.
        group (`str` or `list[str]`, *optional*): Columns that must not cross splits; an empty list checks nothing.
            Defaults to `speaker`, `voice` and `scene`, where there are such.
        is_closed (`bool`, *optional*): Whether the answer is one of the labels of training. Defaults to what the task
            says.
        metrics (`list[str]`, *optional*): What is measured, the main one first. Defaults to what the task says, or to
            accuracy and macro-F1 of a closed task that is an open one else.
        layer (`int`, *optional*): Layer of the encoder. Defaults to the encoder's `layer`.
        trim (`bool`): Whether to cut silence off both ends: what is more than 30 dB below the loudest 20 ms, but for
            50 ms.
        clips_per_label (`int`, *optional*): Training clips of each label, drawn anew by each seed. Defaults to all.
        noise_snr (`float`, *optional*): Signal-to-noise ratio of noise that is added to all clips, in dB. Defaults to
            none.
        noise (`str`): Kind of this noise: `"speech_shaped"`, `"pink"` or `"white"`; see [`Noise`].
        num_seeds (`int`, *optional*): Number of the study's first seeds that this task is measured with. Defaults to
            all.
        max_seconds (`float`, *optional*): Longer clips, after trimming, are left out and counted. Defaults to all.
        claim (`str`, *optional*): What a paper found better for such a task, `"continuous"` or `"units"`; the report
            says whether it is confirmed.
        expected (`str`): What is expected and why, written before the run.
    """

    manifest: str
    task: str
    folder: str | None = None
    group: str | list[str] | None = None
    is_closed: bool | None = None
    metrics: list[str] | None = None
    layer: int | None = None
    trim: bool = False
    clips_per_label: int | None = None
    noise_snr: float | None = None
    noise: str = "speech_shaped"
    num_seeds: int | None = None
    max_seconds: float | None = None
    claim: str | None = None
    expected: str = ""

    def __post_init__(self):
        check_positive(self, "clips_per_label", "max_seconds", "num_seeds")
        _check_among("noise", self.noise, NOISES)
        _check_among("claim", self.claim, (None, "continuous", "units"))


@dataclass
class RobustnessArguments:
    """
    What is measured of clips that are disturbed after training.

    Args:
        tasks (`list[str]`): Tasks whose test clips are disturbed. Defaults to none.
        snr (`list[float]`): Signal-to-noise ratios of speech-shaped noise, in dB.
        room (`bool`): Whether to measure in a reverberant room, too.
        far (`bool`): Whether to measure with a far microphone, too: a room, little treble, and noise.
    """

    tasks: list[str] = field(default_factory=list)
    snr: list[float] = field(default_factory=lambda: [20.0, 10.0, 5.0, 0.0])
    room: bool = True
    far: bool = True

    def __post_init__(self):
        if len(set(self.snr)) < len(self.snr):
            raise ValueError(f"`snr` must name no ratio twice, but got {self.snr}.")


@dataclass
class VariantArguments:
    """
    An arm that is trained otherwise, at the level `lm`.

    Args:
        arm (`str`): The arm whose tokens it has.
        overrides (`dict`): Settings of its trainings that differ, by dotted keys, such as `{"init": "normal"}`.
    """

    arm: str
    overrides: dict[str, Any]


class LMLevelName(NamedTuple):
    """
    A level of language models.

    Args:
        size (`str`): Name of the language model's size.
        matched (`str`): What all arms have as much of, `"steps"` or `"positions"`.
    """

    size: str
    matched: str

    def __str__(self) -> str:
        return f"lm/{self.size}" + ("" if self.matched == MATCHED[0] else f"@{self.matched}")


@dataclass
class LMLevelArguments:
    """
    How the language models of the level `lm` are trained.

    Args:
        sizes (`dict`): Language models by a name: the name or folder of one, or the configuration of one that begins
            at random; see `language_model` of [`SpeechLMArguments`].
        recipe (`str`): Recipe of all trainings.
        overrides (`dict`): Settings that differ from the recipe, by dotted keys. What the study and its arms decide
            themselves, such as `seed` and `unit_coding`, is refused.
        task_overrides (`dict`): The same by task, such as `{"phones": {"max_steps": 2000}}`.
        variants (`dict` of [`VariantArguments`]): Further arms, by their names: others with other settings.
        matched (`list[str]`): What all arms of a task have as much of: always `"steps"`, of about the same seconds of
            speech, and perhaps beside it `"positions"`, for which every batch holds as many positions of the sequence
            as that of `continuous` does. The second trains again the arms that take more or fewer positions a second.
        size_names (`list[str]`, *optional*): Sizes to train now. Defaults to all.
        task_names (`list[str]`, *optional*): Tasks to train now. Defaults to all.
        arm_names (`list[str]`, *optional*): Arms to train now. Defaults to all.
        seeds_now (`list[int]`, *optional*): Seeds to train now. Defaults to all.
    """

    sizes: dict[str, Any] = field(default_factory=dict)
    recipe: str = "speech_lm_understanding_16khz"
    overrides: dict[str, Any] = field(default_factory=dict)
    task_overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    variants: dict[str, Any] = field(default_factory=dict)
    matched: list[str] = field(default_factory=lambda: ["steps"])
    size_names: list[str] | None = None
    task_names: list[str] | None = None
    arm_names: list[str] | None = None
    seeds_now: list[int] | None = None

    def __post_init__(self):
        for name in self.sizes:
            if not _NAME.fullmatch(name):
                raise ValueError(f"`lm.sizes` has the name {name!r}, but folders are called by them; rename it.")
        try:
            self.variants = {
                name: given if isinstance(given, VariantArguments) else VariantArguments(**given)
                for name, given in self.variants.items()
            }
        except TypeError as error:
            raise ValueError(f"`lm.variants` need arm and overrides: {error}.") from None
        for place, settings in (
            ("overrides", self.overrides),
            *((f"task_overrides.{name}", given) for name, given in self.task_overrides.items()),
        ):
            _check_free(f"lm.{place}", settings, (*_OF_STUDY, *_OF_ARM))
        for name, variant in self.variants.items():
            _check_free(f"lm.variants.{name}.overrides", variant.overrides, _OF_STUDY)
        for name in self.size_names or ():
            _check_among("lm.size_names", name, self.sizes)
        for name in self.matched:
            _check_among("lm.matched", name, MATCHED)
        if MATCHED[0] not in self.matched:
            raise ValueError(f"`lm.matched` must name {MATCHED[0]}, but got {self.matched}.")
        for setting in ("matched", "size_names", "task_names", "arm_names", "seeds_now"):
            given = getattr(self, setting)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise ValueError(f"`lm.{setting}` must name at least one, none twice, but got {given}.")

    @property
    def chosen_sizes(self) -> list[str]:
        """Sizes to train now."""
        if not self.sizes:
            raise ValueError("`lm.sizes` names no language model; the level `lm` needs one.")
        return list(self.sizes) if self.size_names is None else self.size_names

    @property
    def chosen_levels(self) -> list[LMLevelName]:
        """Levels to train now."""
        return [LMLevelName(size, matched) for size in self.chosen_sizes for matched in self.matched]

    def settings_of(self, task: str) -> dict[str, Any]:
        """Settings of the trainings of a task that differ from the recipe."""
        return {**self.overrides, **self.task_overrides.get(task, {})}


@dataclass
class TokenStudyArguments:
    """
    A study of discrete against continuous speech tokens.

    Args:
        output_dir (`str`): Folder for clips, systems, rows, what was measured, and the report. The same call goes on
            in it after an interruption.
        encoder ([`EncoderArguments`]): The encoder that is compared with its own units.
        tasks (`dict` of [`TaskArguments`]): Tasks, by a name.
        level (`str`): `"probe"`, which measures linear probes in minutes, or `"lm"`, which trains language models.
        seeds (`list[int]`): Seeds of what is drawn: few-shot choice, units, training.
        systems (`dict` of `str`): Names, folders or Hub ids of other models that give codes, by the name of their arm.
        arms (`list[str]`): What is compared: `continuous`, `units`, `units+bpe`, `centroids`, `continuous+units`, the
            controls `no-audio`, `other-audio` and `shuffled-labels`, and names of `systems`. Defaults to all.
        robustness ([`RobustnessArguments`]): Disturbed test clips.
        ctc_steps (`int`): Steps of the probes that write phones; see [`ctc_probe`].
        notes (`list[str]`): Sentences for the head of the report, such as of what the data are.
        lm ([`LMLevelArguments`]): Settings of the level `lm`.
        new_tasks (`dict` of [`NewTaskArguments`]): Definitions of tasks that the package does not have, by the name
            that `tasks.NAME.task` gives. They become known to this process, as by [`register_task`], and to the models
            that learn them.
    """

    trainer: ClassVar[str] = "token_study"

    output_dir: str
    encoder: EncoderArguments
    tasks: dict[str, TaskArguments]
    level: str = "probe"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    systems: dict[str, str] = field(default_factory=dict)
    arms: list[str] | None = None
    robustness: RobustnessArguments = field(default_factory=RobustnessArguments)
    ctc_steps: int = 1500
    notes: list[str] = field(default_factory=list)
    lm: LMLevelArguments = field(default_factory=LMLevelArguments)
    new_tasks: dict[str, NewTaskArguments] = field(default_factory=dict)

    def __post_init__(self):
        self._definitions = definitions = recipe_definitions(self.new_tasks)
        _check_among("level", self.level, LEVELS)
        check_positive(self, "ctc_steps")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must name at least one seed, none twice, but got {self.seeds}.")
        for seed in self.seeds:
            check_seed(seed)
            if seed >= 2**31:
                raise ValueError(f"`seeds` must lie below 2**31, but got {seed}.")
        if not self.tasks:
            raise ValueError("`tasks` must name at least one.")
        for setting, names in (("tasks", self.tasks), ("systems", self.systems)):
            if wrong := [name for name in names if not _NAME.fullmatch(name)]:
                raise ValueError(
                    f"`{setting}` has the name {wrong[0]!r}, but names are of letters, digits, `.`, `_` and `-`, since"
                    " folders are called by them."
                )
        fitted = {encoder_system(layer, seed) for layer in self.encoder.layers for seed in self.seeds}
        if clash := sorted({*ENCODER_ARMS, *CONTROL_ARMS, *fitted} & self.systems.keys()):
            raise ValueError(f"`systems.{clash[0]}` has the name of an arm, or of units of the encoder; rename it.")
        known = (*ENCODER_ARMS, *self.systems, *CONTROL_ARMS)
        self.arms = list(known) if self.arms is None else self.arms
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"`arms` must name at least one arm, none twice, but got {self.arms}.")
        for arm in self.arms:
            _check_among("arms", arm, known)
        for name, task in self.tasks.items():
            known_task = self._task_of(name)
            if known_task.output != "text":
                raise ValueError(f"`tasks.{name}.task` must be one that answers in text, but {task.task!r} speaks.")
            if known_task.source != SPEECH_COLUMN:
                raise ValueError(
                    f"`tasks.{name}.task` must be one that hears speech, but {task.task!r} reads"
                    f" `{known_task.source}`; leave out `source` where the task is defined."
                )
            _check_among(f"tasks.{name}.layer", self.layer_of(name), self.encoder.layers)
            if not self.metrics_of(name):
                has = bool(known_task.metrics)
                why = "leave it out for those of the task" if has else f"the task {task.task!r} has none"
                raise ValueError(f"`tasks.{name}.metrics` must name a measure; {why}.")
            check_names(self.metrics_of(name), METRICS, f"`tasks.{name}.metrics`:")
            if task.clips_per_label is not None and task.is_closed is False:
                raise ValueError(f"`tasks.{name}.clips_per_label` is for closed tasks, which have labels.")
        now = self.lm
        for setting, names, allowed in (
            ("lm.task_overrides", now.task_overrides, self.tasks),
            ("lm.task_names", now.task_names or (), self.tasks),
            ("lm.arm_names", now.arm_names or (), self.arms_of("lm")),
            ("lm.seeds_now", now.seeds_now or (), self.seeds),
        ):
            for name in names:
                _check_among(setting, name, allowed)
        for name, variant in self.lm.variants.items():
            if name in known or not _NAME.fullmatch(name):
                raise ValueError(f"`lm.variants` has the name {name!r}, which is that of an arm or of no folder.")
            _check_among(f"lm.variants.{name}.arm", variant.arm, [arm for arm in known if arm not in CONTROL_ARMS])
        for name in self.robustness.tasks:
            _check_among("robustness.tasks", name, self.tasks)
            if not self.is_closed(name):
                raise ValueError(f"`robustness.tasks` has {name!r}, but only tasks with labels are measured in noise.")
        # Last, so that a recipe that is refused leaves nothing behind.
        for known in defined_tasks(definitions).values():
            register_task(known)

    def _task_of(self, task: str) -> Task:
        return find_task(self.tasks[task].task, self._definitions)

    def is_closed(self, task: str) -> bool:
        """Whether the answer of a task is one of the labels of its training."""
        given = self.tasks[task].is_closed
        return self._task_of(task).is_closed if given is None else given

    def arms_of(self, level: str) -> list[str]:
        """The arms of a level: `"probe"`, or `"lm"` with its variants."""
        assert self.arms is not None
        return [*self.arms, *(self.lm.variants if level != "probe" else ())]

    def metrics_of(self, task: str) -> list[str]:
        """Metrics of a task, the main one first."""
        asked, known = self.tasks[task], self._task_of(task)
        if asked.metrics is not None:
            return list(asked.metrics)
        if self.is_closed(task) and not known.is_closed:
            return ["accuracy", "macro_f1"]
        return list(known.metrics)

    def seeds_of(self, task: str) -> list[int]:
        """Seeds that a task is measured with."""
        return self.seeds[: self.tasks[task].num_seeds]

    def layer_of(self, task: str) -> int:
        """Layer of the encoder that a task uses."""
        chosen = self.tasks[task].layer
        layer = self.encoder.layer if chosen is None else chosen
        assert layer is not None  # filled in by the encoder's section
        return layer


def chosen_now(known: Iterable[Any], now: Iterable[Any] | None) -> list[Any]:
    """The known ones that are chosen now, in their order; without a choice, all."""
    return [name for name in known if now is None or name in now]


def encoder_system(layer: int, seed: int) -> str:
    """Name of the units of a layer of the study's encoder, fitted by a seed."""
    return f"layer{layer}-seed{seed}"


def _check_free(place: str, settings: Iterable[str], taken: Sequence[str]) -> None:
    # A key within a section of the study is refused, and so is a section with a key of the study.
    for given in sorted(settings):
        for decided in taken:
            if f"{given}.".startswith(f"{decided}.") or f"{decided}.".startswith(f"{given}."):
                raise ValueError(
                    f"`{place}` has `{given}`, but the study decides `{decided}` itself; leave `{given}` out."
                )


def _check_among(setting: str, value: Any, known: Iterable[Any]) -> None:
    known = list(known)
    if value not in known:
        listed = ", ".join("null" if choice is None else str(choice) for choice in known)
        raise ValueError(f"`{setting}` must be among {listed}, but got {value!r}.")
