# SPDX-License-Identifier: Apache-2.0
"""What a codec training run is made of, and how a YAML recipe with overrides becomes that."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from speech_tokenizers.training.codec.latent_arguments import (
    JointArguments,
    LatentArguments,
    LatentHealthArguments,
    RecognitionArguments,
)


@dataclass
class ModelArguments:
    r"""
    The model to train: a named preset with changes, or a trained one to continue from.

    Args:
        preset (`str`, *optional*): Name in `RVQ_CODEC_PRESETS`, `DM_CODEC_PRESETS`, `UNIT_VOCODER_PRESETS` or
            `CST_PRESETS`, which also decides between [`RVQCodecModel`], [`DMCodecModel`], [`UnitVocoderModel`] and
            [`CSTModel`].
        overrides (`dict`): Fields of the configuration that differ from the preset.
        pretrained (`str`, *optional*): Folder or Hub id of a codec to fine-tune, in place of `preset`; `overrides`
            change its configuration, and layers that it lacks, such as projections to teachers, start anew.
        warm_start (`bool`): Let a model of other sizes start from `pretrained`: one of `preset`, if that is given too,
            else of the trained configuration with `overrides`. [`warm_start`] says what is kept. Where each part comes
            from is written to `warm_start.json` in the output folder.
    """

    preset: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    warm_start: bool = False

    def __post_init__(self):
        if self.preset is not None and self.pretrained is not None and not self.warm_start:
            raise ValueError(
                "`model` needs either `preset` or `pretrained`, and not both; to fine-tune by a recipe that has a"
                " preset, give model.preset=null, or model.warm_start=true to start a new model from trained weights."
            )
        if self.preset is None and self.pretrained is None:
            raise ValueError("`model` needs `preset`, for a new model, or `pretrained`, for a trained one.")
        if self.warm_start and self.pretrained is None:
            raise ValueError("`model.warm_start` needs trained weights to start from; give model.pretrained.")


@dataclass
class DataArguments:
    r"""
    Where the recordings are and how they become crops.

    Args:
        train, eval (`str`, *optional*): A folder of audio files, with or without `metadata.jsonl` or `metadata.csv`;
            such a file itself; a Parquet file or a folder of them; or the id of a dataset on the Hub.
        train_filter, eval_filter (`dict`): Keep only rows where each named column has this value, or one of these
            values.
        train_files, eval_files (`str`, *optional*): A text file that lists, one a line, the `file_name`s to keep.
        train_split, eval_split (`str`): Split of a Hub dataset.
        audio_column (`str`): Column of Parquet and Hub datasets that holds the audio.
        streaming (`bool`): Read the training data as a stream, decoded as it comes, instead of decoding all of it
            first.
        shuffle_buffer (`int`): Recordings among which a stream is shuffled.
        segment_seconds (`float`): Length of a training crop.
        max_eval_seconds (`float`): Recordings are cut to this length for evaluation.
        max_eval_recordings (`int`, *optional*): Evaluate on so many of the recordings that `eval` names, spread evenly
            over them. Defaults to all.
        cache_dir (`str`, *optional*): Where decoded audio is kept. Defaults to `audio_cache` in the output folder.
        target_level_db (`float`, *optional*): Bring every crop to this RMS level (dB relative to full scale) first.
        gain_db (`list` of two `float`): Range of a random gain. Peaks are kept below full scale.
        min_level_db (`float`): A crop below this level is drawn again, eight times in all, so that few crops are
            silence.
        num_workers (`int`): Worker processes that prepare crops. Crops do not depend on it. Reading decoded audio
            needs none.
    """

    train: str | None = None
    eval: str | None = None
    train_filter: dict[str, Any] = field(default_factory=dict)
    eval_filter: dict[str, Any] = field(default_factory=dict)
    train_files: str | None = None
    eval_files: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    audio_column: str = "audio"
    streaming: bool = False
    shuffle_buffer: int = 1000
    segment_seconds: float = 1.0
    max_eval_seconds: float = 10.0
    max_eval_recordings: int | None = None
    cache_dir: str | None = None
    target_level_db: float | None = None
    gain_db: list[float] = field(default_factory=lambda: [0.0, 0.0])
    min_level_db: float = -60.0
    num_workers: int = 0

    def __post_init__(self):
        if self.segment_seconds <= 0 or self.max_eval_seconds <= 0:
            raise ValueError("`segment_seconds` and `max_eval_seconds` must be positive.")
        if self.max_eval_recordings is not None and self.max_eval_recordings < 1:
            raise ValueError(f"`max_eval_recordings` must be at least 1, but got {self.max_eval_recordings}.")
        if len(self.gain_db) != 2 or self.gain_db[0] > self.gain_db[1]:
            raise ValueError(f"`gain_db` must be a pair [lowest, highest], but got {self.gain_db}.")


@dataclass
class AdversarialArguments:
    r"""
    The discriminators and when they act.

    Args:
        discriminators (`dict`): Sizes by kind: `multi_scale_stft`, `multi_period`, `multi_scale`, each a dict of the
            arguments of the class in `discriminators.py`. Empty trains without.
        objective (`str`): `"hinge"` or `"least_squares"`.
        start_step (`int`): Until this step the discriminators neither run nor learn. In a run with `max_minutes` they
            begin when its time is as far as this step would be: with half of `max_steps`, after half of the time.
        warmup_steps (`int`): Steps after that over which the adversarial and feature-matching weights grow from 0.
        relative_features (`bool`): Divide each feature difference by the mean size of the recording's feature, as
            EnCodec does.
    """

    discriminators: dict[str, dict[str, Any]] = field(default_factory=dict)
    objective: str = "least_squares"
    start_step: int = 0
    warmup_steps: int = 0
    relative_features: bool = False

    def __post_init__(self):
        if self.objective not in ("hinge", "least_squares"):
            raise ValueError(f"`objective` must be 'hinge' or 'least_squares', but got {self.objective!r}.")
        _check_not_negative(self, "start_step", "warmup_steps")


@dataclass
class SpeechTeacherArguments:
    r"""
    The speech model that a codec learns from.

    Args:
        model (`str`): Folder or Hub id of any speech encoder that `AutoModel` knows.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        layer (`int` or `str`): `"average"` of all layers, `"last"`, or a layer counted from 1 (DM-Codec, Table 6).
        window (`str`): For Whisper, `"padded"` or `"tight"`; see [`WaveformEncoder`].
    """

    model: str
    revision: str | None = None
    layer: Any = "average"
    window: str = "padded"


@dataclass
class LanguageTeacherArguments:
    r"""
    The language model that a codec learns from, and how its vectors meet the codec's frames.

    Args:
        model (`str`): Folder or Hub id of any text model that `AutoModel` knows.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        layer (`int` or `str`): `"average"` of all layers, `"last"`, or a layer counted from 1.
        alignment (`str`): `"ctc"`: each frame gets the vector of the word that is spoken in it; `"interpolate"`: the
            tokens are spread evenly over the recording; `"pad"`: token k is frame k of the recording, and padding
            tokens fill the rest. DM-Codec as published does so with crops that were cut and transcribed beforehand;
            give such crops as recordings to do the same.
        silence (`str`): With `"ctc"`, the vector of frames without a word: `"zero"`, `"mean"` of the recording's
            words, or `"ignore"`: such frames do not count.
        text_column (`str`): Column of the transcripts.
        words_column (`str`): Column of word times, lists of `{"word", "start", "end"}` in seconds, where the data has
            them.
        word_times (`str`, *optional*): JSON lines with `file_name` and `words`, as `speech-tokenizers align` writes
            them.
        aligner (`str`, *optional*): Folder or Hub id of a CTC recogniser, or a Vosk folder: finds the word times of
            recordings that have none.
        recognizer (`str`, *optional*): Folder or Hub id of a speech-to-text model, which transcribes recordings
            without a transcript.
        language (`str`): Told to a recogniser that knows several.
    """

    model: str
    revision: str | None = None
    layer: Any = "average"
    alignment: str = "ctc"
    silence: str = "zero"
    text_column: str = "text"
    words_column: str = "words"
    word_times: str | None = None
    aligner: str | None = None
    recognizer: str | None = None
    language: str = "en"

    def __post_init__(self):
        if self.alignment not in ("ctc", "interpolate", "pad"):
            raise ValueError(f"`alignment` must be 'ctc', 'interpolate' or 'pad', but got {self.alignment!r}.")
        if self.silence not in ("zero", "mean", "ignore"):
            raise ValueError(f"`silence` must be 'zero', 'mean' or 'ignore', but got {self.silence!r}.")


@dataclass
class DistillationArguments:
    r"""
    What a [`DMCodecModel`] learns from besides its recordings.

    Args:
        speech_teacher ([`SpeechTeacherArguments`], *optional*): Adds the loss `semantic_distillation`.
        language_teacher ([`LanguageTeacherArguments`], *optional*): Adds the loss `contextual_distillation`.
        axis (`str`): `"dimension"` or `"time"`; see [`distillation_loss`].
        centered (`bool`): Subtract from the teachers' features their means over the training data. As published they
            are not, and then a constant, which is the bias of the projection, has most of the cosine. Needs `cache`.
        cache (`bool`): Compute the teachers' features of all recordings once and keep them on disk; otherwise at each
            step, the speech teacher hearing the crop alone.
        cache_dir (`str`, *optional*): Where they are kept. Defaults to `teacher_cache` in the output folder.
    """

    speech_teacher: SpeechTeacherArguments | None = None
    language_teacher: LanguageTeacherArguments | None = None
    axis: str = "dimension"
    centered: bool = False
    cache: bool = True
    cache_dir: str | None = None

    def __post_init__(self):
        if self.axis not in ("dimension", "time"):
            raise ValueError(f"`axis` must be 'dimension' or 'time', but got {self.axis!r}.")
        if self.centered and not self.cache:
            raise ValueError("`centered` needs the means of all features, which `cache=false` does not compute.")


@dataclass
class SpeechFeatureArguments:
    r"""
    A frozen speech encoder whose features decoded speech should share with the recording. Adds the loss
    `speech_features`.

    Args:
        model (`str`): Folder or Hub id of any speech encoder that `AutoModel` knows. Whisper's hears the crop alone,
            without the silence that fills up its 30 seconds.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        layers (`list[int]`): Layers that are compared, counted from 1; 0 is what enters the first.
    """

    model: str
    revision: str | None = None
    layers: list[int] = field(default_factory=lambda: [1, 2])

    def __post_init__(self):
        if not self.layers or min(self.layers) < 0:
            raise ValueError(
                f"`speech_features.layers` must name at least one layer, from 0 on, but is {self.layers}."
            )


@dataclass
class UnitArguments:
    r"""
    What a [`UnitVocoderModel`] speaks from. A new vocoder gets the sizes that fit.

    Args:
        model (`str`): Folder, name or Hub id of the model whose codes it speaks: k-means units, a codec of this
            package or of transformers. The codes of each recording are computed once, of all of it, and kept on disk.
        num_quantizers (`int`, *optional*): Use only the first codebooks. Defaults to all.
        speaker_column (`str`, *optional*): Column of the data that names the speakers, each of whom gets a voice.
        speaker_embedding_column (`str`, *optional*): Column of vectors that describe the speakers, instead.
        cache_dir (`str`, *optional*): Where the codes are kept. Defaults to `unit_cache` in the output folder.
    """

    model: str
    num_quantizers: int | None = None
    speaker_column: str | None = None
    speaker_embedding_column: str | None = None
    cache_dir: str | None = None

    def __post_init__(self):
        if self.speaker_column is not None and self.speaker_embedding_column is not None:
            raise ValueError("`speaker_column` and `speaker_embedding_column` exclude each other; give one of them.")


@dataclass
class OptimizerArguments:
    r"""
    AdamW and the schedule of its learning rate, a function of the step alone unless the run has `max_minutes`.

    Args:
        learning_rate (`float`): Peak learning rate.
        betas (`list` of two `float`): Decay of the first and second moments.
        weight_decay (`float`): Decoupled weight decay.
        schedule (`str`): `"cosine"` (to `final_ratio` at the last step), `"exponential"` or `"constant"`.
        warmup_steps (`int`): Steps of linear warm-up.
        final_ratio (`float`): Where the cosine ends, relative to the peak.
        decay_rate (`float`), decay_steps (`int`): The exponential schedule multiplies by `decay_rate` every
            `decay_steps`.
        max_grad_norm (`float`, *optional*): Longer gradients are scaled down to this norm.
        learning_rate_scales (`dict`): Learning rate of parts of the model relative to the rest, by the submodule's
            name, such as `{"encoder": 0, "quantizer": 0}` to train a codec's decoder alone; the innermost part named
            counts. A part of scale 0 is frozen: its parameters need no gradient, its codebooks are not updated.
    """

    learning_rate: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_steps: int = 0
    final_ratio: float = 0.0
    decay_rate: float = 0.98
    decay_steps: int = 1000
    max_grad_norm: float | None = None
    learning_rate_scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.schedule not in ("cosine", "exponential", "constant"):
            raise ValueError(f"`schedule` must be 'cosine', 'exponential' or 'constant', but got {self.schedule!r}.")
        if self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` must be positive, but got {self.learning_rate}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"`betas` must be two numbers from 0 to below 1, but got {self.betas}.")
        _check_not_negative(self, "weight_decay", "warmup_steps", "final_ratio", "decay_rate")
        if self.decay_steps < 1:
            raise ValueError(f"`decay_steps` must be at least 1, but got {self.decay_steps}.")
        if any(scale < 0 for scale in self.learning_rate_scales.values()):
            raise ValueError(f"`learning_rate_scales` must not be negative, but got {self.learning_rate_scales}.")


@dataclass
class CodecTrainingArguments:
    r"""
    Everything a [`CodecTrainer`] needs to know besides the model and the data.

    Args:
        output_dir (`str`): Folder of checkpoints, log, samples and, in `final`, the trained codec.
        model, data, adversarial, distillation, speech_features, units, latents, recognition, joint, optimizer,
            discriminator_optimizer: See their classes. `units` is for vocoders; `latents`, `recognition` and `joint`
            are for continuous tokens.
        latent_health ([`LatentHealthArguments`]): How latents are kept from collapse, and codebooks started.
        loss_weights (`dict`): Weight of each loss by name. Must name those of the model, the discriminators and the
            objectives, `mel` and `waveform`; further ones of `RECONSTRUCTION_LOSSES` as wanted.
        losses (`dict`): Settings of reconstruction losses by name, such as `{"loudness": {"asymmetry": 0.0}}`; see
            their classes in `reconstruction_losses.py`.
        mel_scales (`str` or `list`): `"default"`, `"speechtokenizer"`, or a list of dicts of [`MelScale`]'s fields.
        global_batch_size (`int`): Crops per step, over all processes and accumulated micro-batches.
        gradient_accumulation_steps (`int`): Micro-batches that a process splits its share into.
        max_steps (`int`): Steps of the run. An optimizer step of codec and discriminators counts once.
        max_minutes (`float`, *optional*): The run ends after so much training time, if not at `max_steps` before. Its
            time is the wall-clock time of its steps; evaluating, saving, fitting codebooks, reviving latents and
            pauses between sessions do not count. The learning rates and the start of the discriminators follow
            whichever is further: the share of the steps or that of the time. Several processes agree on the time when
            they log, and end then. What depends on the time, learning rates and with them weights, is not
            reproducible; the order of the data and the warm-up are.
        weight_ema_decay (`float`, *optional*): Decay of the moving average of the weights that is evaluated and saved.
        mixed_precision (`str`, *optional*): "no", "bf16", "fp16", or "auto": what `accelerate launch
            --mixed_precision` asks for; where it asks for none, bf16 if the device computes in it without emulating
            it. The launcher says "no" also when it is not asked, so that only "no" here rules bf16 out. Defaults to
            what the launcher says.
        compile (`bool`): Compile the codec and the discriminators with `torch.compile`.
        seed (`int`): Seed of weights and data.
        logging_steps, eval_steps, save_steps (`int`): Intervals; 0 switches evaluation or checkpoints off.
        save_total_limit (`int`, *optional*): Checkpoints to keep.
        metrics (`list[str]`): What evaluation measures besides the losses, such as `[stoi, pesq]`: `score_name`s of
            [`evaluation.codec_comparison`]. A metric without a value for a recording leaves it out of its mean.
        num_audio_samples (`int`): Recordings whose decoded audio and spectrograms are saved at each evaluation.
        report_to (`list[str]`): Accelerate's trackers: "tensorboard", "trackio", ...
        resume_from_checkpoint (`str`, *optional*): "latest" (the newest complete checkpoint, if there is one) or a
            folder.
        hub_model_id (`str`, *optional*): Repository for `push_to_hub`.
    """

    output_dir: str
    model: ModelArguments
    data: DataArguments
    loss_weights: dict[str, float]
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    adversarial: AdversarialArguments = field(default_factory=AdversarialArguments)
    distillation: DistillationArguments = field(default_factory=DistillationArguments)
    speech_features: SpeechFeatureArguments | None = None
    units: UnitArguments | None = None
    latents: LatentArguments = field(default_factory=LatentArguments)
    latent_health: LatentHealthArguments = field(default_factory=LatentHealthArguments)
    recognition: RecognitionArguments | None = None
    joint: JointArguments | None = None
    optimizer: OptimizerArguments = field(default_factory=OptimizerArguments)
    discriminator_optimizer: OptimizerArguments = field(default_factory=OptimizerArguments)
    mel_scales: Any = "default"
    global_batch_size: int = 12
    gradient_accumulation_steps: int = 1
    max_steps: int = 100_000
    max_minutes: float | None = None
    weight_ema_decay: float | None = None
    mixed_precision: str | None = None
    compile: bool = False
    seed: int = 0
    logging_steps: int = 50
    eval_steps: int = 1000
    save_steps: int = 1000
    save_total_limit: int | None = 2
    metrics: list[str] = field(default_factory=list)
    num_audio_samples: int = 2
    report_to: list[str] = field(default_factory=list)
    resume_from_checkpoint: str | None = None
    hub_model_id: str | None = None

    def __post_init__(self):
        for name in ("global_batch_size", "gradient_accumulation_steps", "max_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        _check_not_negative(self, "eval_steps", "save_steps", "num_audio_samples")
        start = self.latent_health.quantizer_start_step
        if start >= self.max_steps:
            raise ValueError(
                f"`latent_health.quantizer_start_step` is {start}, but `max_steps` {self.max_steps}, so that the"
                " codebooks would never start; lower the former (0 starts them with the first step), or raise the"
                " latter."
            )
        if late := [step for step in self.latent_health.revival_steps if step >= self.max_steps]:
            raise ValueError(
                f"`latent_health.revival_steps` has {late[0]}, but the run ends at `max_steps` {self.max_steps}."
            )
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ValueError(f"`max_minutes` must be positive, but got {self.max_minutes}.")
        if self.mixed_precision not in (None, "no", "bf16", "fp16", "auto"):
            raise ValueError(
                f"`mixed_precision` must be 'no', 'bf16', 'fp16' or 'auto', but got {self.mixed_precision!r}."
            )
        if self.weight_ema_decay is not None and not 0 < self.weight_ema_decay < 1:
            raise ValueError(f"`weight_ema_decay` must lie strictly between 0 and 1, but got {self.weight_ema_decay}.")

    def to_dict(self) -> dict[str, Any]:
        """Nested dict of plain values, as a recipe would state them."""
        return dataclasses.asdict(self)


def _check_not_negative(section: Any, *names: str) -> None:
    for name in names:
        if getattr(section, name) < 0:
            raise ValueError(f"`{name}` must not be negative, but got {getattr(section, name)}.")


def load_recipe(path_or_name: str, overrides: Sequence[str] = (), section: type | None = None) -> Any:
    r"""
    Read a recipe and change some of it.

    Args:
        path_or_name (`str`): A YAML file, or the name of a recipe of this package, such as `rvq_codec_16khz_4kbps`.
        overrides (sequence of `str`): `key=value` pairs; dots lead into sections (`data.train=recordings`), values are
            YAML.
        section (`type`, *optional*): Dataclass of what the recipe describes. Defaults to [`CodecTrainingArguments`].

    Raises:
        ValueError: If the recipe does not exist, or a key is unknown or has a value of the wrong type.
    """
    return build_section(CodecTrainingArguments if section is None else section, _read(path_or_name, overrides), "")


# By a section that such recipes alone have, the module whose `run` trains by them.
_TRAINERS = {
    "iterations": "speech_tokenizers.training.units.hubert_pretraining",
    "perturbation": "speech_tokenizers.training.units.dc_spin_trainer",
    "finetuning": "speech_tokenizers.training.recognition.ctc_recipe",
    "heads": "speech_tokenizers.training.language_models.latent_lm",
}


def recipe_trainer(path_or_name: str) -> str | None:
    r"""
    The module that trains by a recipe, where that is not a codec's; its `run` takes what the command `train` parsed.

    Raises:
        ValueError: If the recipe does not exist.
    """
    recipe = _read(path_or_name, ())
    return next((module for section, module in _TRAINERS.items() if section in recipe), None)


def _read(path_or_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    named = Path(path_or_name)
    if named.suffix not in (".yaml", ".yml"):
        named = named.with_name(named.name + ".yaml")
    path: Path | Traversable = named
    if not path.is_file() and named.parent == Path("."):
        path = resources.files("speech_tokenizers.training").joinpath("recipes", named.name)
    if not path.is_file():
        raise ValueError(f"`{path_or_name}` is neither a YAML file nor a recipe; the recipes are {recipe_names()}.")
    recipe = parse_yaml(path.read_text(encoding="utf-8"), f"`{path_or_name}`")
    if not isinstance(recipe, dict):
        raise ValueError(f"`{path_or_name}` must hold a mapping of keys to values.")
    for override in overrides:
        override_key(recipe, override)
    return recipe


# Of a recipe's settings those that say how often and where, not what is trained.
_INCIDENTAL = ("output_dir", "logging_steps", "save_steps", "save_total_limit", "num_workers")


def keep_recipe(path: Path, args: Any, incidental: Sequence[str] = _INCIDENTAL) -> None:
    r"""
    Write down what an output folder is for, or see that it is still for that.

    Args:
        path (`Path`): The YAML file.
        args (dataclass): The settings.
        incidental (sequence of `str`): Settings that may change. Defaults to those that say how often and where.

    Raises:
        ValueError: If the file tells of other settings.
    """
    if changed := changed_settings(path, args, incidental):
        key, (before, now) = next(iter(changed.items()))
        raise ValueError(
            f"{path.parent} was begun with other settings (`{key}` was {before!r} and is {now!r}); choose another"
            " `output_dir`, or delete that folder."
        )
    path.write_text(yaml.safe_dump(dataclasses.asdict(args), sort_keys=False), encoding="utf-8")


def changed_settings(path: Path, args: Any, incidental: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    r"""
    What an output folder's recipe and the settings differ in: both values by their dotted keys.

    Args:
        path (`Path`): The YAML file; nothing differs where there is none.
        args (dataclass): The settings.
        incidental (sequence of `str`): Settings that may change.
    """
    if not path.is_file():
        return {}
    settings = dataclasses.asdict(args)
    before, now = _flattened(yaml.safe_load(path.read_text(encoding="utf-8"))), _flattened(settings)
    compared = settings.keys() - set(incidental)
    return {
        key: (before.get(key), now.get(key))
        for key in {**now, **before}
        if key.split(".")[0] in compared and before.get(key) != now.get(key)
    }


def _flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    # Values by their dotted keys.
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("speech_tokenizers.training").joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def override_key(recipe: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in the nested dict `recipe`."""
    dotted_key, separator, value = override.partition("=")
    if not separator or not dotted_key:
        raise ValueError(f"An override must read `key=value`, but got {override!r}.")
    *sections, key = dotted_key.split(".")
    for section in sections:
        if not isinstance(recipe.get(section), dict):
            recipe[section] = {}
        recipe = recipe[section]
    recipe[key] = parse_yaml(value, f"The value in {override!r}")


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; `what` it is stands in the error if it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is no YAML: {' '.join(str(error).split())}.") from error


def build_section(section: type, values: Any, prefix: str) -> Any:
    r"""Make the dataclass `section` from a dict, refusing keys that it lacks and values of the wrong type."""
    if not isinstance(values, dict):
        raise ValueError(f"`{prefix.rstrip('.')}` must be a mapping of keys to values, but got {values!r}.")
    hints = typing.get_type_hints(section)
    check_names(values, hints, "The recipe's key", prefix)
    required = {
        f.name
        for f in dataclasses.fields(section)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise ValueError(
            f"The recipe lacks {', '.join(f'`{prefix}{name}`' for name in missing)}; give it as key=value."
        )
    return section(**{key: convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()})


def check_names(given: typing.Iterable[str], known: typing.Iterable[str], what: str, prefix: str = "") -> None:
    """Raises `ValueError`, with the nearest known name, if one of the names `given` is not `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known are {', '.join(known)}."
            raise ValueError(f"{what} `{prefix}{name}` is unknown; {hint}")


def convert(value: Any, hint: Any, key: str) -> Any:
    """Check a recipe value against a field's annotation. YAML reads 1e-4 as text, which becomes a number here."""
    if hint is Any:
        return value
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in hint.__args__:
            return None
        (hint,) = (option for option in hint.__args__ if option is not type(None))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build_section(hint, value, f"{key}.")
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"`{key}` must be a number, but got {value!r}.")
        return number
    if origin is str and isinstance(value, bool):
        return "yes" if value else "no"  # what YAML took for a truth value
    if origin is str and isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        raise ValueError(f"`{key}` must be of type {origin.__name__}, but got {value!r}.")
    if origin is list and arguments:
        return [convert(element, arguments[0], f"{key}[{i}]") for i, element in enumerate(value)]
    if origin is dict and arguments:
        return {name: convert(element, arguments[1], f"{key}.{name}") for name, element in value.items()}
    return value
