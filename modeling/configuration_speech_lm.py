# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of a causal language model that reads and writes audio tokens."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .continuous_heads import HEADS
from .speech_lm_ids import SpeechIds, checked_delays
from .speech_lm_layouts import LAYOUTS
from .speech_lm_tasks import Task, defined_tasks, find_task, task_definitions
from .speech_lm_unit_coding import UnitCoding, check_codec_sizes, check_has_codes, unit_coding_of, written_sizes


TEXT_ALIGNMENTS = ("none", "word", "phone")
AUDIO_INPUTS = ("tokens", "embeds")
# What a frame of the continuous layout is: the frames before quantization, what their codes stand for, or both.
LATENT_SOURCES = ("features", "quantized", "both")


@strict
class SpeechLMConfig(PreTrainedConfig):
    """
    Configuration of a [`SpeechLMForConditionalGeneration`].

    The vocabulary of the language model goes on behind its own names with `<|audio_start|>`, `<|audio_end|>`,
    `<|audio|>`, the pieces of an alignment by phones, and, in the flat layout, one row for each code of each codebook:
    code `c` of codebook `q` is the id `audio_offset + q * codebook_size + c`.

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*): Configuration of the causal language model, whose
            `vocab_size` counts all rows. Defaults to a Llama of four layers of 256.
        layout (`str`, defaults to `"flat"`): How audio lies in the sequence. `"flat"`: one code after another, frame
            by frame. `"delay"`: a column of codes a position, each codebook later by its delay. `"continuous"`: a
            latent vector a position.
        text_alignment (`str`, defaults to `"none"`): Where the text to be spoken stands: only before the audio
            (`"none"`), or also within it, each word (`"word"`) or phone (`"phone"`) before its frames.
        num_codebooks (`int`, defaults to 1): Number of the codec's first codebooks that are read and written.
        codebook_size (`int`, defaults to 1024): Codes of a codebook.
        codebook_sizes (`list[int]`, *optional*): Codes that each codebook of the codec has, where these are not
            equally large, as those of units with F0: at most `codebook_size`. What a codebook lacks is never written.
            Defaults to `codebook_size` each.
        frame_rate (`float`, defaults to 50.0): Frames of the codec a second, in Hz.
        sampling_rate (`int`, defaults to 16000): Samples of the codec's audio a second, in Hz.
        codec_name (`str`, *optional*): Name, folder or Hub id of the codec. The codec itself is attached; see
            [`SpeechLMForConditionalGeneration.attach_codec`].
        codec_fingerprint (`str`, *optional*): What [`SpeechCodec.fingerprint`] of the codec gives.
        audio_start_token_id, audio_end_token_id, audio_token_id (`int`): Ids of `<|audio_start|>`, `<|audio_end|>`,
            and of `<|audio|>`, which stands for a recording in text.
        audio_offset (`int`): Id of the first code of the first codebook.
        piece_offset (`int`, defaults to 0): Id of the first label of `piece_labels`.
        piece_labels (`list[str]`): Labels of the phones, in the order of their ids; empty without phones.
        piece_frames (`list` of two `int` each): Fewest and most frames of each label that generation allows, as
            training measured them; empty before.
        frames_per_character (`list` of two `float`, *optional*): Mean and largest number of frames that a character of
            text takes, as training measured them. They limit how long generation may take without phones.
        longest_loop_seconds (`float`, *optional*): Longest stretch of training speech whose frames repeat those before
            them, in seconds. Generated speech that repeats itself for longer is told.
        text_loss_weight, audio_loss_weight (`float`, default to 1.0): Weights of targets that are text, pieces and
            marks, and of targets that are codes or latents.
        delays (`list[int]`, *optional*): Columns by which each codebook is late in the delay layout. Defaults to 0, 1,
            2 and so on.
        codebook_weights (`list[float]`, *optional*): Weight of each codebook's targets in the delay layout, beside
            `audio_loss_weight`. Defaults to 1 for each.
        audio_in (`str`, defaults to `"tokens"`): How audio is read: as tokens, which the model can also write, or
            (`"embeds"`, in the continuous layout) as features through a projector. Such a model hears, and answers by
            text alone.
        projector_stack (`int`, defaults to 2): With `audio_in="embeds"`, neighbouring frames that make one position.
        projector_hidden (`int`, defaults to 0): Width of the projector's hidden layer; 0 is twice that of the inputs.
        latent_source (`str`, defaults to `"features"`): With `audio_in="embeds"`, what a frame is: the codec's or the
            encoder's frame before quantization (`"features"`), what its codes stand for (`"quantized"`), or both
            beside each other (`"both"`).
        latent_dim (`int`, defaults to 0): Dimension of the latents of the continuous layout.
        head (`str`, defaults to `"flow"`): What draws latents: `"mse"`, `"gaussian"`, `"flow"` or `"energy"`; see
            [`build_head`].
        head_options (`dict`): Arguments of the head's class.
        input_noise_std (`float`, defaults to 0.0): Standard deviation of the noise on the latents that the model reads
            in training.
        stop_loss_weight (`float`, defaults to 1.0): Weight of the loss of the head that says where a clip ends.
        stop_pos_weight (`float`, defaults to 1.0): Weight of an end against a frame in that loss.
        unit_coding (`str`, defaults to `"frames"`): What stands in the sequence: the codes of each frame (`"frames"`),
            or runs of equal units (`"units"`, with durations `"runs"`, merged to tokens `"bpe"`); see [`UnitCoding`].
            Numbers of frames in this configuration are then numbers of runs.
        num_units, max_duration (`int`, default to 0), unit_merges (`list[str]`), unit_durations (`list[float]`): See
            [`UnitCoding`].
        piece_context (`int`, defaults to 0): With an alignment by phones, each position of speech is told the phone
            that sounds, for how many frames (or runs) it has, and so many that come next; 0 tells nothing. See
            [`piece_context`].
        condition_dropout (`float`, defaults to 0.0): Share of rows whose text the training hid, so that generation can
            be guided away from what the model says without it.
        tasks (`list[str]`): Names of the tasks that the model was trained on; empty where that is unknown.
        task_labels (`dict[str, list[str]]`): The answers of tasks whose answer is one of a set, as training saw them.
        new_tasks (`dict[str, dict]`): Definitions of tasks that the package does not have; see [`SpeechLMProcessor`].
        template_version (`int`, defaults to 1): Version of the prompts; see [`SpeechLMProcessor`].
    """

    model_type = "speech_tokenizers_speech_lm"
    sub_configs = {"text_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    layout: str = "flat"
    text_alignment: str = "none"
    num_codebooks: int = 1
    codebook_size: int = 1024
    codebook_sizes: list[int] | None = None
    frame_rate: float | int = 50.0
    sampling_rate: int = 16000
    codec_name: str | None = None
    codec_fingerprint: str | None = None
    audio_start_token_id: int = 3
    audio_end_token_id: int = 4
    audio_token_id: int = 5
    audio_offset: int = 6
    piece_offset: int = 0
    piece_labels: list[str] = field(default_factory=list)
    piece_frames: list[list[int]] = field(default_factory=list)
    frames_per_character: list[float] | None = None
    longest_loop_seconds: float | None = None
    text_loss_weight: float | int = 1.0
    audio_loss_weight: float | int = 1.0
    delays: list[int] | None = None
    codebook_weights: list[float] | None = None
    audio_in: str = "tokens"
    projector_stack: int = 2
    projector_hidden: int = 0
    latent_source: str = "features"
    latent_dim: int = 0
    head: str = "flow"
    head_options: dict[str, Any] = field(default_factory=dict)
    input_noise_std: float | int = 0.0
    stop_loss_weight: float | int = 1.0
    stop_pos_weight: float | int = 1.0
    unit_coding: str = "frames"
    num_units: int = 0
    max_duration: int = 0
    unit_merges: list[str] = field(default_factory=list)
    unit_durations: list[float] = field(default_factory=list)
    piece_context: int = 0
    condition_dropout: float | int = 0.0
    tasks: list[str] = field(default_factory=list)
    task_labels: dict[str, list[str]] = field(default_factory=dict)
    new_tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    template_version: int = 1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any):
        if self.text_config is None:
            sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 688}
            rows = 64 * -(-self.rows_needed // 64)
            self.text_config = AutoConfig.for_model(
                "llama", vocab_size=rows, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes
            )
        elif isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        self.new_tasks = task_definitions(defined_tasks(self.new_tasks))
        text_config: Any = self.text_config
        # Who reads the configuration of a model of text looks for these at the top.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
            kwargs.setdefault(name, getattr(text_config, name, None))
        super().__post_init__(**kwargs)

    @property
    def rows_needed(self) -> int:
        """Fewest rows of the vocabulary."""
        units = self.num_codebooks * self.codebook_size if self.layout == "flat" else 0
        return self.audio_offset + units

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """Codes that each codebook has in the sequence: those of runs, if there are any, or of the codec."""
        return written_sizes(self) or (self.codebook_size,) * self.num_codebooks

    @property
    def speech_ids(self) -> SpeechIds:
        """Where audio lies in `input_ids`: the codes, or `<|audio|>` alone for each frame."""
        if self.layout == "flat":
            return self._ids_with(self.audio_offset, self.num_codebooks, self.codebook_size, written_sizes(self))
        return self._ids_with(self.audio_token_id, 1, 1)

    @property
    def written_ids(self) -> SpeechIds:
        """
        What is chosen from in generation: the ids, and in the delay layout the first codebook's codes behind all rows
        of the vocabulary, in the continuous layout one further id for a frame.
        """
        if self.layout == "flat":
            return self.speech_ids
        rows = self.text_config.vocab_size  # type: ignore[union-attr]
        if self.layout == "delay":
            sizes = written_sizes(self)
            return self._ids_with(rows, 1, self.codebook_size, None if sizes is None else sizes[:1])
        return self._ids_with(rows, 1, 1)

    def _ids_with(
        self, audio_offset: int, num_codebooks: int, codebook_size: int, codebook_sizes: tuple[int, ...] | None = None
    ) -> SpeechIds:
        return SpeechIds(
            audio_start=self.audio_start_token_id,
            audio_end=self.audio_end_token_id,
            audio_offset=audio_offset,
            num_codebooks=num_codebooks,
            codebook_size=codebook_size,
            piece_offset=self.piece_offset,
            num_pieces=len(self.piece_labels),
            codebook_sizes=codebook_sizes,
        )

    @property
    def coding(self) -> UnitCoding:
        """What stands in the sequence for the codec's codes."""
        return unit_coding_of(self)

    @property
    def codebook_delays(self) -> list[int]:
        """Columns by which each codebook is late; none outside of the delay layout."""
        if self.layout != "delay":
            return [0]
        return list(range(self.num_codebooks)) if self.delays is None else list(self.delays)

    @property
    def frame_size(self) -> int:
        """Numbers at a position of the continuous layout."""
        return self.latent_dim * (self.projector_stack if self.audio_in == "embeds" else 1)

    @property
    def positions_per_frame(self) -> int:
        """Positions that a frame takes."""
        return self.num_codebooks if self.layout == "flat" else 1

    def find_task(self, task: str | Task) -> Task:
        """
        The task of a name that this model defines, or that is known to all; or the task itself.

        Raises:
            ValueError: As the function [`find_task`].
        """
        return find_task(task, self.new_tasks)

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        for name, known in (
            ("layout", LAYOUTS),
            ("text_alignment", TEXT_ALIGNMENTS),
            ("audio_in", AUDIO_INPUTS),
            ("latent_source", LATENT_SOURCES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, but got {getattr(self, name)!r}.")
        for name in ("num_codebooks", "codebook_size", "sampling_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        if self.frame_rate <= 0:
            raise ValueError(f"`frame_rate` must be positive, but got {self.frame_rate}.")
        for name in (
            "text_loss_weight",
            "audio_loss_weight",
            "input_noise_std",
            "stop_loss_weight",
            "stop_pos_weight",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, but got {getattr(self, name)}.")
        if self.text_alignment == "phone" and not self.piece_labels:
            raise ValueError("`text_alignment='phone'` needs the labels of the phones, `piece_labels`.")
        if self.piece_context and (self.piece_context < 0 or self.text_alignment != "phone"):
            raise ValueError(
                f"`piece_context` is {self.piece_context}, but must be at least 0, and 0 without"
                " `text_alignment='phone'`."
            )
        rows = self.text_config.vocab_size  # type: ignore[union-attr]
        if rows < self.rows_needed:
            raise ValueError(
                f"`text_config.vocab_size` is {rows}, but {self.rows_needed} rows are needed, up to the last code;"
                " `from_causal_lm` adds them."
            )
        if self.piece_frames and len(self.piece_frames) != len(self.piece_labels):
            raise ValueError(
                f"`piece_frames` must have a pair for each of the {len(self.piece_labels)} labels, but has"
                f" {len(self.piece_frames)}."
            )
        self._check_tasks()
        self._check_layout()

    def _check_tasks(self) -> None:
        if not all(name.strip() for name in self.tasks) or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"`tasks` must hold different names that are not empty, but is {self.tasks}.")
        for task, labels in self.task_labels.items():
            if self.tasks and task not in self.tasks:
                raise ValueError(f"`task_labels` has the task {task!r}, which is not among `tasks`, {self.tasks}.")
            if not labels or not all(label.strip() for label in labels) or len(set(labels)) < len(labels):
                raise ValueError(
                    f"`task_labels` of the task {task!r} must be different labels, none empty, but are {labels}."
                )

    def _check_layout(self) -> None:
        if self.delays is not None and self.layout != "delay":
            raise ValueError(f"`delays` belong to `layout='delay'`, but with {self.layout!r} they are {self.delays}.")
        if self.layout == "continuous" and self.stop_pos_weight <= 0:
            raise ValueError("`stop_pos_weight` must be above 0, since ends are never learnt at 0.")
        check_audio_in(self)
        check_has_codes(self.unit_coding, self.layout)
        self.coding.codec_sizes(self.num_codebooks, self.codebook_size)
        check_codec_sizes(self)
        if self.layout == "delay":
            checked_delays(self.codebook_delays, self.num_codebooks)
            if self.delays is not None and self.codebook_delays[0] != 0:
                raise ValueError(
                    f"The first codebook must not be late, since it ends clips, but `delays` is {self.delays}."
                )
            if self.codebook_weights is not None and len(self.codebook_weights) != self.num_codebooks:
                raise ValueError(
                    f"`codebook_weights` must have one for each of {self.num_codebooks} codebooks, but has"
                    f" {len(self.codebook_weights)}."
                )
        if self.layout == "continuous":
            if self.latent_dim < 1:
                raise ValueError(
                    f"`latent_dim` must be at least 1 with `layout='continuous'`, but is {self.latent_dim}."
                )
            if self.head not in HEADS:
                raise ValueError(f"`head` must be one of {', '.join(HEADS)}, but is {self.head!r}.")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"`condition_dropout` must be at least 0 and below 1, but is {self.condition_dropout}.")


def check_audio_in(fields: Any) -> None:
    """
    Check how audio is read.

    Args:
        fields ([`SpeechLMConfig`] or [`SpeechLMProcessor`]): What has `audio_in`, `layout`, `text_alignment`,
            `projector_stack` and `latent_source`.

    Raises:
        ValueError: If they contradict each other.
    """
    if fields.audio_in not in AUDIO_INPUTS or fields.latent_source not in LATENT_SOURCES:
        raise ValueError(
            f"`audio_in` must be one of {', '.join(AUDIO_INPUTS)} and `latent_source` one of"
            f" {', '.join(LATENT_SOURCES)}, but they are {fields.audio_in!r} and {fields.latent_source!r}."
        )
    if fields.projector_stack < 1:
        raise ValueError(f"`projector_stack` must be at least 1, but is {fields.projector_stack}.")
    if fields.audio_in == "tokens":
        if fields.latent_source != "features":
            raise ValueError(f"`latent_source={fields.latent_source!r}` needs `audio_in='embeds'`.")
    elif fields.layout != "continuous" or fields.text_alignment != "none":
        raise ValueError(
            f"`audio_in='embeds'` needs `layout='continuous'` and `text_alignment='none'`, but they are"
            f" {fields.layout!r} and {fields.text_alignment!r}."
        )


__all__ = ["SpeechLMConfig", "check_audio_in"]
