# SPDX-License-Identifier: Apache-2.0
"""What a codec training run is made of, and how a YAML recipe with overrides becomes that."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from speech_tokenizers.training.codec.latent_arguments import (
    JointArguments,
    LatentArguments,
    LatentHealthArguments,
    RecognitionArguments,
)
from speech_tokenizers.training.common.data import DataArguments
from speech_tokenizers.training.common.hub_pushes import HubSettings
from speech_tokenizers.training.common.optimization import OptimizerArguments
from speech_tokenizers.training.common.recipe_files import check_not_negative, check_positive, check_seed, load_recipe


# Weights beyond this leave no number for the other losses in single precision.
LARGEST_WEIGHT = 1e12


@dataclass
class ModelArguments:
    """
    The model to train: a named preset with changes, or a trained one to continue from.

    Args:
        preset (`str`, *optional*): Name in `RVQ_CODEC_PRESETS`, `DM_CODEC_PRESETS`, `UNIT_VOCODER_PRESETS` or
            `CST_PRESETS`. It also decides between [`RVQCodecModel`], [`DMCodecModel`], [`UnitVocoderModel`] and
            [`CSTModel`].
        overrides (`dict`): Fields of the configuration that differ from the preset.
        pretrained (`str`, *optional*): Folder or Hub id of a codec to fine-tune, in place of `preset`. `overrides`
            change its configuration. Layers that it lacks, such as projections to teachers, start anew.
        warm_start (`bool`): Whether a model of other sizes may start from `pretrained`. It is a model of `preset`, if
            that is given too, and else of the trained configuration with `overrides`. [`warm_start`] says what is
            kept. The origin of each part is written to `warm_start.json` in the output folder.
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
class AdversarialArguments:
    """
    The discriminators and the steps at which they act.

    Args:
        discriminators (`dict`): Sizes by kind: `multi_scale_stft`, `multi_period`, `multi_scale`, each a dict of the
            arguments of the class in `discriminators.py`. An empty dict trains without discriminators.
        objective (`str`): Objective of the discriminators: `"hinge"` or `"least_squares"`.
        start_step (`int`): Step until which the discriminators neither run nor learn. In a run with `max_minutes` they
            begin when its time is as far as this step would be: with half of `max_steps`, after half of the time.
        warmup_steps (`int`): Steps after that over which the adversarial and feature-matching weights grow from 0.
        relative_features (`bool`): Whether to divide each feature difference by the mean size of the recording's
            feature, as EnCodec does.
    """

    discriminators: dict[str, dict[str, Any]] = field(default_factory=dict)
    objective: str = "least_squares"
    start_step: int = 0
    warmup_steps: int = 0
    relative_features: bool = False

    def __post_init__(self):
        if self.objective not in ("hinge", "least_squares"):
            raise ValueError(f"`objective` must be 'hinge' or 'least_squares', but got {self.objective!r}.")
        check_not_negative(self, "start_step", "warmup_steps", prefix="adversarial.")


@dataclass
class SpeechTeacherArguments:
    """
    The speech model that a codec learns from.

    Args:
        model (`str`): Folder or Hub id of any speech encoder that `AutoModel` knows.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        layer (`int` or `str`): Layer whose states are the features: `"average"` of all layers, `"last"`, or a layer
            counted from 1 (DM-Codec, Table 6).
        window (`str`): Window of Whisper, `"padded"` or `"tight"`; see [`WaveformEncoder`].
    """

    model: str
    revision: str | None = None
    layer: Any = "average"
    window: str = "padded"


@dataclass
class LanguageTeacherArguments:
    """
    The language model that a codec learns from, and how its vectors meet the codec's frames.

    Args:
        model (`str`): Folder or Hub id of any text model that `AutoModel` knows.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        layer (`int` or `str`): Layer whose states are the features: `"average"` of all layers, `"last"`, or a layer
            counted from 1.
        alignment (`str`): Way in which vectors meet frames. With `"ctc"` each frame gets the vector of the word that
            is spoken in it. With `"interpolate"` the tokens are spread evenly over the recording. With `"pad"` token k
            is frame k of the recording, and padding tokens fill the rest. DM-Codec as published does so with crops
            that were cut and transcribed beforehand; give such crops as recordings to do the same.
        silence (`str`): Vector of frames without a word, with `"ctc"`: `"zero"`, `"mean"` of the recording's words, or
            `"ignore"`: such frames do not count.
        text_column (`str`): Column of the transcripts.
        words_column (`str`): Column of word times, lists of `{"word", "start", "end"}` in seconds, where the data has
            them.
        word_times (`str`, *optional*): File of JSON lines with `file_name` and `words`, as `speech-tokenizers align`
            writes them.
        aligner (`str`, *optional*): Folder or Hub id of a CTC recogniser, or a Vosk folder. It finds the word times of
            recordings that have none.
        recognizer (`str`, *optional*): Folder or Hub id of a speech-to-text model, which transcribes recordings
            without a transcript.
        language (`str`): Language that a recogniser is told, if it knows several.
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
    """
    Teachers that a [`DMCodecModel`] learns from besides its recordings.

    Args:
        speech_teacher ([`SpeechTeacherArguments`], *optional*): Speech model to learn from. It adds the loss
            `semantic_distillation`.
        language_teacher ([`LanguageTeacherArguments`], *optional*): Language model to learn from. It adds the loss
            `contextual_distillation`.
        axis (`str`): Axis of the cosine, `"dimension"` or `"time"`; see [`distillation_loss`].
        centered (`bool`): Whether to subtract from the teachers' features their means over the training data. As
            published, they are not subtracted. Then a constant, which is the bias of the projection, makes up most of
            the cosine. Needs `cache`.
        cache (`bool`): Whether to compute the teachers' features of all recordings once and keep them on disk.
            Otherwise they are computed at each step, and the speech teacher hears the crop alone.
        cache_dir (`str`, *optional*): Folder of the kept features. Defaults to `teacher_cache` in the output folder.
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
    """
    A frozen speech encoder whose features decoded speech should share with the recording. Adds the loss
    `speech_features`.

    Args:
        model (`str`): Folder or Hub id of any speech encoder that `AutoModel` knows. Whisper's encoder hears the crop
            alone, without the silence that fills up its 30 seconds.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        layers (`list[int]`): Layers that are compared, counted from 1. Layer 0 is the input of the first one.
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
    """
    Units that a [`UnitVocoderModel`] speaks from. A new vocoder gets the sizes that fit.

    Args:
        model (`str`): Folder, name or Hub id of the model whose codes it speaks: k-means units, a codec of this
            package or of transformers. The codes of each recording are computed once, of all of it, and kept on disk.
        num_quantizers (`int`, *optional*): Number of codebooks, the first ones, that are used. Defaults to all.
        speaker_column (`str`, *optional*): Column of the data that names the speakers, each of whom gets a voice.
        speaker_embedding_column (`str`, *optional*): Column of vectors that describe the speakers, in place of
            `speaker_column`.
        cache_dir (`str`, *optional*): Folder of the kept codes. Defaults to `unit_cache` in the output folder.
    """

    model: str
    num_quantizers: int | None = None
    speaker_column: str | None = None
    speaker_embedding_column: str | None = None
    cache_dir: str | None = None

    def __post_init__(self):
        check_positive(self, "num_quantizers", prefix="units.")
        if self.speaker_column is not None and self.speaker_embedding_column is not None:
            raise ValueError("`speaker_column` and `speaker_embedding_column` exclude each other; give one of them.")


@dataclass
class CodecTrainingArguments(HubSettings):
    """
    Everything a [`CodecTrainer`] needs to know besides the model and the data.

    Args:
        output_dir (`str`): Folder of checkpoints, log, samples and, in `final`, the trained codec.
        model, data, adversarial, distillation, speech_features, units, latents, recognition, joint, optimizer,
            discriminator_optimizer: Settings of the parts; see their classes. `units` is for vocoders. `latents`,
            `recognition` and `joint` are for continuous tokens.
        latent_health ([`LatentHealthArguments`]): Settings that keep latents from collapse, and that say when
            codebooks start.
        loss_weights (`dict`): Weight of each loss by name. It must name the losses of the model, the discriminators
            and the objectives, `mel` and `waveform`. It may name further ones of `RECONSTRUCTION_LOSSES`.
        losses (`dict`): Settings of reconstruction losses by name, such as `{"loudness": {"asymmetry": 0.0}}`; see
            their classes in `reconstruction_losses.py`.
        mel_scales (`str` or `list`): Scales of the mel loss: `"default"`, `"speechtokenizer"`, or a list of dicts of
            [`MelScale`]'s fields.
        global_batch_size (`int`): Number of crops per step, over all processes and accumulated micro-batches.
        gradient_accumulation_steps (`int`): Number of micro-batches that a process splits its share into.
        max_steps (`int`): Number of steps of the run. An optimizer step of codec and discriminators counts once.
        max_minutes (`float`, *optional*): Minutes of training time after which the run ends, if it has not ended at
            `max_steps` before. Its time is the wall-clock time of its steps; evaluating, saving, fitting codebooks,
            reviving latents and pauses between sessions do not count. The learning rates and the start of the
            discriminators follow whichever is further: the share of the steps or that of the time. Several processes
            agree on the time when they log, and end then. What depends on the time (learning rates, and with them
            weights) is not reproducible; the order of the data and the warm-up are.
        weight_ema_decay (`float`, *optional*): Decay of the moving average of the weights that is evaluated and saved.
        mixed_precision (`str`, *optional*): Precision of the arithmetic: "no", "bf16", "fp16", or "auto". "auto" is
            what `accelerate launch --mixed_precision` asks for. Where it asks for none, "auto" is bf16 if the device
            computes in it without emulating it. The launcher says "no" also when it is not asked, so that only "no"
            here rules bf16 out. Defaults to what the launcher says.
        compile (`bool`): Whether to compile the codec and the discriminators with `torch.compile`.
        seed (`int`): Seed of weights and data.
        logging_steps, eval_steps, save_steps (`int`): Intervals in steps. An interval of 0 switches evaluation or
            checkpoints off.
        save_total_limit (`int`, *optional*): Number of checkpoints to keep. `None` keeps all.
        metrics (`list[str]`): Metrics that evaluation measures besides the losses, such as `[stoi, pesq]`:
            `score_name`s of [`evaluation.reconstruction.comparison`]. A metric without a value for a recording leaves
            it out of its mean.
        num_audio_samples (`int`): Number of recordings whose decoded audio and spectrograms are saved at each
            evaluation.
        report_to (`list[str]`): Names of Accelerate's trackers: "tensorboard", "trackio", ...
        resume_from_checkpoint (`str`, *optional*): Folder of a checkpoint, or "latest" for the newest complete one, if
            there is one.
        allow_changes (`list[str]`): Dotted names of settings or sections in which a resumed run may differ from how it
            was begun, such as `[optimizer.learning_rate, loss_weights]`. The older recipe is kept beside.
        kwargs: Whether and how the model is pushed; see [`HubSettings`].
    """

    trainer: ClassVar[str] = "codec"

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
    allow_changes: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        for name in ("global_batch_size", "gradient_accumulation_steps", "max_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        check_not_negative(self, "eval_steps", "save_steps", "num_audio_samples")
        for name, weight in self.loss_weights.items():
            if weight < 0:
                raise ValueError(f"`loss_weights.{name}` must not be negative, but is {weight}.")
            if weight > LARGEST_WEIGHT:
                raise ValueError(f"`loss_weights.{name}` must be at most {LARGEST_WEIGHT:g}, but is {weight}.")
        check_positive(self, "save_total_limit")
        check_seed(self.seed)
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


def load_codec_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> CodecTrainingArguments:
    """The recipe of a codec; see [`load_recipe`]."""
    return load_recipe(path_or_name, overrides, CodecTrainingArguments)
