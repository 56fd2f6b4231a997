# SPDX-License-Identifier: Apache-2.0
"""
Train a causal language model to read and write the codes of a codec, on rows of a corpus that was encoded once.

After an interruption, the same command continues at the newest checkpoint, with the results of an uninterrupted run.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from speech_tokenizers.coding.loading import find_checkpoint, load, load_config
from speech_tokenizers.coding.speech_lm_loading import SPEECH_LM, load_speech_lm
from speech_tokenizers.modeling.continuous_heads import build_head
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.pronunciations import PronunciationLexicon
from speech_tokenizers.modeling.speech_lm_frames import LatentFrames, ProjectedFrames
from speech_tokenizers.modeling.speech_lm_tasks import find_task
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.processing.speech_rows import read_speech_rows
from speech_tokenizers.processing.unit_bpe import UnitBPE
from speech_tokenizers.processing.whole_files import whole_folder, write_whole
from speech_tokenizers.training.common.checkpoint_faults import file_fault
from speech_tokenizers.training.common.hub_pushes import HubPushes, HubSettings, PushCallback
from speech_tokenizers.training.common.processes import process_state
from speech_tokenizers.training.common.recipe_files import check_names, check_not_negative, check_positive, load_recipe
from speech_tokenizers.training.common.recipe_trainer import (
    RecipeTrainer,
    RunArguments,
    ScheduleArguments,
    claim_output,
    train_until_done,
)
from speech_tokenizers.training.common.run_record import RunRecord, fingerprint_of
from speech_tokenizers.training.language_models.lora_settings import LoraArguments
from speech_tokenizers.training.language_models.recipe_tasks import (
    NewTaskArguments,
    define_tasks,
    recipe_definitions,
    remember_tasks,
)
from speech_tokenizers.training.language_models.row_splits import check_apart, rows_of_split
from speech_tokenizers.training.language_models.speech_lm_items import (
    SpeechLMItems,
    frames_per_character,
    latent_moments,
    longest_loop_seconds,
    pad_items,
    piece_frames,
    rows_fingerprint,
    symbols_per_second,
    unit_durations,
)
from speech_tokenizers.training.language_models.speech_lm_losses import held_out_losses


@dataclasses.dataclass(kw_only=True)
class SpeechRowsArguments:
    """
    Where the rows are that `encode-rows` wrote.

    Args:
        train (`str`): Folder of the rows to learn from.
        train_split (`str` or `list[str]`, *optional*): Splits of these rows, by their column `split`. Needed where
            there are several, or one of another name than `train` or `training`.
        eval (`str`, *optional*): Folder of held-out rows, whose losses are measured every `eval_steps` and in the end.
            It may be that of `train`, but of other splits.
        eval_split (`str` or `list[str]`, *optional*): Splits of these rows. Needed where there are several, or one
            that is named `train` or `training`.
        max_length (`int`, *optional*): Most positions of a row; a longer one is refused by its name. Defaults to the
            language model's context.
        max_eval_rows (`int`): Most held-out rows that are measured.
        pronunciations (`str`, *optional*): Lexicon that comes with the model, by which it says texts; needed for
            `text_alignment: phone`, unless the model that learns on has one.
    """

    train: str
    train_split: str | list[str] | None = None
    eval: str | None = None
    eval_split: str | list[str] | None = None
    max_length: int | None = None
    max_eval_rows: int = 500
    pronunciations: str | None = None

    def __post_init__(self):
        check_positive(self, "max_eval_rows", prefix="data.")
        if self.eval is None and self.eval_split is not None:
            raise ValueError("`data.eval_split` needs `data.eval`, the folder of the held-out rows.")


@dataclasses.dataclass(kw_only=True)
class LatentArguments:
    """
    How a speech language model learns continuous tokens; see [`SpeechLMConfig`] for all fields.

    Args:
        head (`str`), head_options (`dict`): The head that draws latents.
        input_noise_std (`float`): Standard deviation of the noise on the latents that are read, against their own of
            1.
        stop_loss_weight (`float`), stop_pos_weight (`float`): Weights of the ends.
        condition_dropout (`float`): Share of spoken rows whose text is hidden, for guidance in generation.
    """

    head: str = "flow"
    head_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    input_noise_std: float = 0.0
    stop_loss_weight: float = 1.0
    stop_pos_weight: float = 1.0
    condition_dropout: float = 0.0

    def __post_init__(self):
        with torch.device("meta"):
            build_head(self.head, 8, 8, **self.head_options)  # wrong ones are found before anything is read
        check_not_negative(self, "input_noise_std", "stop_loss_weight", "stop_pos_weight", "condition_dropout")
        if self.condition_dropout >= 1:
            raise ValueError(f"`latents.condition_dropout` must be below 1, but is {self.condition_dropout}.")


@dataclasses.dataclass(kw_only=True)
class SpeechLMArguments(HubSettings, RunArguments, ScheduleArguments):
    """
    A training of a speech language model. The learning rate rises to its peak and falls as a cosine.

    The folder gets `final` (model, processor and lexicon), `results.json`, `training_log.jsonl` and its picture. With
    `lora` it also gets `adapter`, what was learnt alone; `final` has it in its weights.

    Args:
        data ([`SpeechRowsArguments`]): The rows.
        codec (`str`): Name, folder or Hub id of the codec whose codes they hold.
        language_model (`str` or `dict`): Name, folder or Hub id of a speech language model, which learns on with its
            own processor; or of another causal language model, which learns the codes as new words; or the
            configuration of one that begins at random, with its `model_type`, whose vocabulary is that of
            [`build_speech_vocabulary`].
        num_codebooks (`int`, *optional*): First codebooks that are used. Defaults to those of the speech language
            model that learns on, and else to those of the rows.
        layout (`str`, *optional*): How audio lies in the sequence; see [`SpeechLMConfig`]. Defaults to that of the
            speech language model that learns on, and else to `"flat"`, or to `"continuous"` for rows of latents.
        delays (`list[int]`, *optional*), codebook_weights (`list[float]`, *optional*): Of the delay layout; see
            [`SpeechLMConfig`].
        latents ([`LatentArguments`]): What the continuous layout has.
        audio_in (`str`, *optional*), projector_stack (`int`, *optional*), projector_hidden (`int`, *optional*),
            latent_source (`str`, *optional*): How recordings are read; see [`SpeechLMConfig`]. With
            `audio_in: embeds` of the settings of `latents` only `input_noise_std` counts. Default to those of the
            speech language model that learns on, and else to the fields' own.
        text_alignment (`str`): See [`SpeechLMConfig`].
        piece_context (`int`, *optional*): Phones behind the own one that each position of speech is told, which
            makes speech by phones much quicker to learn; 0 tells nothing. Defaults to that of the speech language
            model that learns on, and else as in [`SpeechLMForConditionalGeneration.from_causal_lm`].
        unit_coding (`str`, *optional*): `"frames"`, `"units"`, `"runs"` or `"bpe"`; see [`UnitCoding`]. Defaults to
            that of the speech language model that learns on, and else to `"frames"`.
        unit_bpe (`str`, *optional*): For `unit_coding: bpe`, the folder that `units-bpe` wrote.
        max_duration (`int`, *optional*): Most frames of a run; see [`~SpeechLMProcessor.from_tokenizer`].
        tasks (`dict`): Weight of each task in the mixture; see [`TASKS`].
        new_tasks (`dict` of [`NewTaskArguments`]): Definitions of tasks that the package does not have, by name. The
            model keeps them.
        closed_tasks (`list[str]`): Those of `tasks` whose answer is one of the labels of the rows, though it is free
            by their definition, such as `slots` with rows of one slot. The model keeps the labels.
        init (`str`): How the rows of new words begin; see [`SpeechLMForConditionalGeneration.init_audio_rows`]. A
            speech language model has them already.
        lora ([`LoraArguments`], *optional*): The adapter that is trained in place of all weights.
        text_loss_weight, audio_loss_weight (`float`): See [`SpeechLMConfig`].
        batch_positions (`int`): Positions of a micro-batch of one process, with padding.
        batch_seconds (`float`, *optional*): Speech of a micro-batch, in seconds, from which `batch_positions` follows
            by what the rows take on average; for comparisons of layouts, which take different numbers of positions.
        eval_steps (`int`): Steps between measurements of the held-out rows; the next entry of the log has them.
        kwargs: See [`RunArguments`] and [`ScheduleArguments`].
    """

    trainer: ClassVar[str] = "speech_lm"

    data: SpeechRowsArguments
    codec: str
    language_model: str | dict[str, Any]
    num_codebooks: int | None = None
    layout: str | None = None
    delays: list[int] | None = None
    codebook_weights: list[float] | None = None
    latents: LatentArguments = dataclasses.field(default_factory=LatentArguments)
    audio_in: str | None = None
    projector_stack: int | None = None
    projector_hidden: int | None = None
    latent_source: str | None = None
    text_alignment: str = "none"
    piece_context: int | None = None
    unit_coding: str | None = None
    unit_bpe: str | None = None
    max_duration: int | None = None
    tasks: dict[str, float] = dataclasses.field(default_factory=lambda: {"tts": 1.0})
    new_tasks: dict[str, NewTaskArguments] = dataclasses.field(default_factory=dict)
    closed_tasks: list[str] = dataclasses.field(default_factory=list)
    init: str = "codebook"
    lora: LoraArguments | None = None
    text_loss_weight: float = 1.0
    audio_loss_weight: float = 1.0
    batch_positions: int = 4096
    batch_seconds: float | None = None
    eval_steps: int = 500
    max_steps: int = 2000
    learning_rate: float = 1e-3
    warmup_steps: int = 100

    def __post_init__(self):
        ScheduleArguments.__post_init__(self)
        HubSettings.__post_init__(self)
        check_positive(self, "batch_positions", "eval_steps", *(["batch_seconds"] if self.batch_seconds else []))
        check_not_negative(self, "text_loss_weight", "audio_loss_weight")
        definitions = recipe_definitions(self.new_tasks)
        found = {name: find_task(name, definitions) for name in self.tasks}
        if not self.tasks or any(weight <= 0 for weight in self.tasks.values()):
            raise ValueError("`tasks` must name at least one task, each with a positive weight.")
        check_names(self.closed_tasks, self.tasks, "`closed_tasks`")
        if spoken := [name for name in self.closed_tasks if found[name].output != "text"]:
            raise ValueError(f"`closed_tasks` has {spoken[0]!r}, which answers by speech; leave it out.")


class SpeechLMTrainer(RecipeTrainer):
    """
    [`RecipeTrainer`] of a [`SpeechLMForConditionalGeneration`].

    Args:
        recipe ([`SpeechLMArguments`]): The recipe.
        held_out ([`SpeechLMItems`], *optional*): Rows that are measured.
        args, kwargs: See [`RecipeTrainer`]; `train_dataset` is a [`SpeechLMItems`].
    """

    def __init__(self, *args: Any, recipe: SpeechLMArguments, held_out: SpeechLMItems | None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.recipe, self.held_out = recipe, held_out
        find = self.train_dataset.processor.find_task
        self._speaks = any(find(name).output == "speech" for name in recipe.tasks)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the losses of held-out rows, where it is time for them."""
        # From the step alone, so that a resumed training measures where an uninterrupted one does.
        step, before = self.state.global_step, max(0, self.state.global_step - self.args.logging_steps)
        is_due = step // self.recipe.eval_steps > before // self.recipe.eval_steps
        if self.held_out is not None and "loss" in logs and is_due:
            model = self.accelerator.unwrap_model(self.model)
            model.eval()
            found = held_out_losses(model, self.held_out, self.recipe)
            model.train()
            logs |= {name: value for name, value in found.items() if name.endswith("_loss")}
        super().log(logs, start_time)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a micro-batch; the model is not told of tasks, which only the log knows."""
        inputs = dict(inputs)
        self._tasks = inputs.pop("tasks", None)
        labels = inputs["labels"]
        if labels.dim() == 2 and not self._speaks:
            # Answers are short, and a vocabulary is large.
            inputs["logits_to_keep"] = (labels[:, 1:] != -100).any(0).nonzero()[:, 0]
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def measures(
        self, outputs: Any, inputs: dict[str, torch.Tensor]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | int | None]]:
        """Means over targets of each kind and task, in nats but for heads of latents, and the speed."""
        labels, losses = inputs["labels"], outputs["target_losses"]
        is_target = labels != -100
        is_target[..., 0] = False
        config = self.accelerator.unwrap_model(self.model).config
        found: dict[str, tuple[torch.Tensor, torch.Tensor | int | None]] = {}
        if labels.dim() == 2:
            is_code = config.speech_ids.is_unit(labels) & is_target
            found["text_loss"] = (losses * ~is_code).sum(), (is_target & ~is_code).sum()
            found["audio_loss"] = (losses * is_code).sum(), is_code.sum()
        elif config.layout == "delay":
            found["text_loss"] = losses[:, 0].sum(), is_target[:, 0].sum()
            found["audio_loss"] = losses[:, 1:].sum(), is_target[:, 1:].sum()
            losses, is_target = losses.sum(1), is_target.sum(1)
        else:
            found["text_loss"] = losses.sum(), is_target[:, 0].sum()
            num_frames, num_marks = (labels[:, 1] == 0).sum(), is_target[:, 1].sum()
            found["audio_loss"] = outputs["audio_loss"] * num_frames, num_frames
            found["stop_loss"] = outputs["stop_loss"] * num_marks, num_marks
            is_target = is_target[:, 0]
        names = self.train_dataset.tasks
        if self._tasks is not None and len(names) > 1:
            for number, name in enumerate(names):
                chosen = (self._tasks == number)[:, None]
                found[f"{name}_loss"] = (losses * chosen).sum(), (is_target * chosen).sum()
        found["positions_per_second"] = inputs["attention_mask"].sum(), None
        return found


def build_speech_lm(
    args: SpeechLMArguments, codec: Any, feature_extractor: Any, rows: Any
) -> tuple[SpeechLMForConditionalGeneration, SpeechLMProcessor]:
    """
    The model of a recipe before its first step, in float32, and its processor.

    Args:
        args ([`SpeechLMArguments`]): The recipe.
        codec ([`SpeechCodec`]): The codec.
        feature_extractor: The codec's feature extractor.
        rows (`datasets.Dataset`): The rows to learn from, whose phones become pieces.

    Raises:
        ValueError: If the recipe asks a speech language model for what it was not made for.
    """
    lm = args.language_model
    folder = find_checkpoint(lm, argument="language_model") if isinstance(lm, str) else None
    if folder is not None and load_config(folder).model_type == SPEECH_LM:
        model, processor = load_speech_lm(folder, codec, dtype=torch.float32)
        _check_learns_on(args, model)
        model.config.text_loss_weight = args.text_loss_weight
        model.config.audio_loss_weight = args.audio_loss_weight
    else:
        model, processor = _with_new_words(args, folder, codec, feature_extractor, rows)
    define_tasks(model.config, processor, args.tasks, recipe_definitions(args.new_tasks))
    if folder is None or model.config.tasks or load_config(folder).model_type != SPEECH_LM:
        # Of a model that does not say what it knows, nothing is said.
        remember_tasks(model.config, args.tasks, rows, args.closed_tasks)
    if args.data.pronunciations is not None:
        processor.attach_pronouncer(PronunciationLexicon.from_file(args.data.pronunciations))
    return model, processor


def _with_new_words(
    args: SpeechLMArguments, folder: str | None, codec: Any, feature_extractor: Any, rows: Any
) -> tuple[SpeechLMForConditionalGeneration, SpeechLMProcessor]:
    # Of a language model in a folder, or of one that begins at random.
    tokenizer = build_speech_vocabulary() if folder is None else AutoTokenizer.from_pretrained(folder)
    has_latents = "audio_latents" in rows.column_names
    audio_in = args.audio_in or "tokens"
    layout = args.layout or ("continuous" if has_latents or audio_in == "embeds" else "flat")
    if layout != "continuous" and args.latents != LatentArguments():
        raise ValueError(f"`latents` belongs to `layout: continuous`, but the layout is {layout!r}; leave it out.")
    of_rows = None if "audio_codes" not in rows.column_names else int(rows[0]["num_quantizers"])
    given = ("projector_stack", "latent_source")
    reading = {name: getattr(args, name) for name in given if getattr(args, name) is not None}
    processor = SpeechLMProcessor.from_tokenizer(
        tokenizer,
        codec,
        feature_extractor,
        text_alignment=args.text_alignment,
        piece_labels=_piece_labels(args, rows),
        num_codebooks=args.num_codebooks or of_rows,
        layout=layout,
        delays=args.delays,
        audio_in=audio_in,
        **reading,
        unit_coding=args.unit_coding or "frames",
        unit_bpe=None if args.unit_bpe is None else UnitBPE.from_pretrained(args.unit_bpe),
        max_duration=args.max_duration,
        unit_durations=unit_durations(rows, codec.codebook_size) if args.unit_coding in ("units", "bpe") else (),
        # So that it is found from any folder.
        codec_name=str(Path(args.codec).resolve()) if Path(args.codec).is_dir() else args.codec,
    )
    set_seed(args.seed)
    lm: Any = folder
    if folder is None:
        ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        sizes = {"vocab_size": processor.vocab_size_needed, **ends, **dict(args.language_model)}
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes))
    model = SpeechLMForConditionalGeneration.from_causal_lm(
        lm,
        codec,
        processor,
        init=args.init,
        seed=args.seed,
        text_loss_weight=args.text_loss_weight,
        audio_loss_weight=args.audio_loss_weight,
        codebook_weights=args.codebook_weights,
        piece_context=args.piece_context,
        projector_hidden=args.projector_hidden or 0,
        **(dataclasses.asdict(args.latents) if layout == "continuous" else {}),
    )
    return model, processor


def _piece_labels(args: SpeechLMArguments, rows: Any) -> list[str]:
    if args.text_alignment != "phone":
        return []
    if args.data.pronunciations is None:
        raise ValueError(
            "`text_alignment: phone` needs `data.pronunciations`, the lexicon by which texts are said; a corpus of"
            " `make-tts-corpus` has one."
        )
    labels = sorted({phone["label"] for phones in rows["phones"] for phone in phones or ()})
    if not labels:
        raise ValueError(f"{args.data.train}: the rows have no `phones`, which `text_alignment: phone` needs.")
    return labels


def _check_learns_on(args: SpeechLMArguments, model: SpeechLMForConditionalGeneration) -> None:
    config = model.config
    names = ("text_alignment", "piece_context", "layout", "delays", "unit_coding", "max_duration")
    names += ("audio_in", "projector_stack", "projector_hidden", "latent_source")  # type: ignore[assignment]
    own = {name: getattr(config, name) for name in names}
    own["num_codebooks"] = config.coding.codec_sizes(config.num_codebooks, config.codebook_size)[0]
    own["codebook_weights"] = config.codebook_weights
    asked = {name: getattr(args, name) for name in own}
    if config.layout == "continuous":
        usual = LatentArguments()
        for name, value in dataclasses.asdict(args.latents).items():
            own[f"latents.{name}"] = getattr(config, name)
            asked[f"latents.{name}"] = None if value == getattr(usual, name) else value
    for name, has in own.items():
        value = asked[name]
        if value is not None and value != has:
            raise ValueError(
                f"The recipe asks for `{name}: {value}`, but {args.language_model} was made with {has}; write"
                f" `{name}: {has}`, or begin with another language model."
            )
    if args.unit_bpe is not None and list(UnitBPE.from_pretrained(args.unit_bpe).merges) != config.unit_merges:
        raise ValueError(f"{args.language_model} was made with other merges than `unit_bpe`; leave it out.")


def train_speech_lm(args: SpeechLMArguments) -> dict[str, Any]:
    """
    Train from the newest checkpoint, or from the beginning, and measure the held-out losses.

    Args:
        args ([`SpeechLMArguments`]): The recipe.

    Returns:
        `dict`: What `results.json` holds.

    Raises:
        ValueError: If the output folder belongs to another recipe, the rows to another codec, or a row is too long.
    """
    if args.lora is not None:
        args.lora.require()
    inputs: dict[str, Any] = {"codec": fingerprint_of(args.codec), "data.train": rows_fingerprint(args.data.train)}
    if isinstance(args.language_model, str):
        inputs["language_model"] = fingerprint_of(args.language_model)
    if args.unit_bpe is not None:
        inputs["unit_bpe"] = fingerprint_of(args.unit_bpe)
    if args.data.eval is not None:
        inputs["data.eval"] = rows_fingerprint(args.data.eval)

    def read(codec: Any) -> list[Any]:
        data = args.data
        trained = rows_of_split(read_speech_rows(data.train, codec=codec), "data.train", data.train_split)
        if data.eval is None:
            return [trained, None]
        held_out = rows_of_split(read_speech_rows(data.eval, codec=codec), "data.eval", data.eval_split)
        check_apart(data.train, trained, data.eval, held_out)
        return [trained, held_out]

    return train_on_rows(args, read, inputs)


def train_on_rows(
    args: SpeechLMArguments, read: Callable[[Any], Sequence[Any]], inputs: dict[str, Any]
) -> dict[str, Any]:
    """
    [`train_speech_lm`] on rows that are read otherwise than from the folders of the recipe.

    Args:
        args ([`SpeechLMArguments`]): The recipe.
        read (callable): Function of the codec that gives the rows to learn from and the held-out rows or `None`.
        inputs (`dict`): Fingerprints of what the training begins with; with others, it is not continued.

    Raises:
        ValueError: As [`train_speech_lm`].
    """
    output = Path(args.output_dir)
    result_file = output / "results.json"
    finished = ("",) if result_file.is_file() else ()
    RunRecord(output, args, inputs, finished).check()
    if not finished:
        codec, feature_extractor = load(args.codec)
        codec = as_speech_codec(codec, feature_extractor)
        rows, held_out = read(codec)
        model, processor = build_speech_lm(args, codec, feature_extractor, rows)
        _train(args, model, processor, rows, held_out, output, inputs)
    process_state().wait_for_everyone()
    if (fault := file_fault(result_file)) is not None:
        raise ValueError(f"{result_file} {fault}; delete it to measure anew.")
    return json.loads(result_file.read_text("utf-8"))


def _train(
    args: SpeechLMArguments,
    model: SpeechLMForConditionalGeneration,
    processor: SpeechLMProcessor,
    rows: Any,
    eval_rows: Any,
    output: Path,
    inputs: dict[str, Any],
) -> None:
    longest = args.data.max_length or getattr(model.config.text_config, "max_position_embeddings", None)
    config = model.config
    hidden = config.condition_dropout
    items = SpeechLMItems(rows, processor, args.tasks, args.seed, max_length=longest, condition_dropout=hidden)
    rank = None
    if isinstance(model.frames, LatentFrames | ProjectedFrames):
        mean, covariance = latent_moments(rows, processor)
        rank = float(covariance.trace() ** 2 / covariance.square().sum())
        if not bool(model.frames.statistics.num_updates):  # a model that learns on has them
            model.frames.set_statistics(mean, covariance.diagonal())
    held_out = None
    if eval_rows is not None:
        held_out = SpeechLMItems(eval_rows, processor, args.tasks, seed=args.seed, max_length=longest)
    positions_per_second = float(items.lengths.sum() / sum(rows["seconds"]))
    batch_positions = args.batch_positions
    if args.batch_seconds is not None:
        batch_positions = math.ceil(args.batch_seconds * positions_per_second)
    if int(items.lengths.max()) > batch_positions:
        raise ValueError(
            f"A micro-batch of {batch_positions} positions must hold the longest row, of {int(items.lengths.max())}:"
            " raise `batch_positions`, or `batch_seconds` if it is given."
        )
    if processor.text_alignment == "phone":
        model.set_piece_frames(piece_frames(rows, processor, known=model.config.piece_frames))
    speaks = any(processor.find_task(name).output == "speech" for name in args.tasks)
    if speaks:
        model.config.frames_per_character = frames_per_character(rows, processor)
        model.config.longest_loop_seconds = longest_loop_seconds(rows, processor)
    claim_output(args, inputs)
    learner: Any = model if args.lora is None else args.lora.add_to(model, args.seed)
    trainer = SpeechLMTrainer(
        learner,
        args.training_arguments(output, args, lr_scheduler_type="cosine"),
        batch_length=batch_positions,
        train_dataset=items,
        data_collator=pad_items(processor),
        recipe=args,
        held_out=held_out,
    )
    main = "audio" if speaks else "text"
    curves = ["loss", "text_loss", "audio_loss"] if speaks else ["text_loss"]
    curves += [f"held_out_{main}_loss"] if held_out is not None else []
    if rank is not None and math.isfinite(rank):
        print(f"effective rank of the latents: {rank:.1f} of {config.latent_dim}", file=sys.stderr)
    pushes = HubPushes(args, output)
    if args.lora is None:  # an adapter is pushed once it is merged
        trainer.add_callback(PushCallback(pushes, trainer, processor))
    train_until_done(trainer, output, curves)
    if not trainer.is_world_process_zero():
        return
    results: dict[str, Any] = {}
    if args.lora is not None:
        from speech_tokenizers.training.language_models.speech_lm_adapters import merge_adapter, save_adapter

        results["trained_parameters"] = learner.get_nb_trainable_parameters()[0]
        save_adapter(learner, output / "adapter", processor)
        model = merge_adapter(learner)
    model.eval()
    results = {"parameters": sum(parameter.numel() for parameter in model.parameters()), **results}
    results |= {"positions_of_training_rows": int(items.lengths.sum()), "training_rows": len(rows)}
    results["positions_per_second"] = positions_per_second
    if config.layout != "continuous":
        results["symbols_per_second"] = symbols_per_second(rows, processor)
    results |= {} if rank is None else {"effective_rank_of_latents": rank}
    if held_out is not None:
        results |= held_out_losses(model, held_out, args)
    with whole_folder(output / "final") as final:
        model.save_pretrained(final)
        processor.save_pretrained(final)
    write_whole(output / "results.json", json.dumps(results, indent=2))
    pushes.finish(output / "final")


def results_table(results: dict[str, Any]) -> str:
    """The results as a table in Markdown."""
    lines = ["| measure | value |", "|---|---|"]
    for name, value in results.items():
        told = ", ".join(f"{part:.3f}" for part in value) if isinstance(value, list) else value
        lines.append(f"| {name.replace('_', ' ')} | {told if not isinstance(told, float) else f'{told:.4f}'} |")
    return "\n".join(lines)


def run_recipe(path_or_name: str, overrides: Sequence[str]) -> str:
    """Train by a recipe; returns the table of results, which the command `train` prints."""
    return results_table(train_speech_lm(load_recipe(path_or_name, overrides, SpeechLMArguments)))
