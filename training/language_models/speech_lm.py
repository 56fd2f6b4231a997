# SPDX-License-Identifier: Apache-2.0
"""
Train a causal language model to read and write the codes of a codec, on rows of a corpus that was encoded once.

After an interruption, the same command continues at the newest checkpoint, with the results of an uninterrupted run.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from speech_tokenizers.coding.loading import find_checkpoint, load, load_config
from speech_tokenizers.coding.speech_lm_loading import SPEECH_LM, load_speech_lm
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.pronunciations import PronunciationLexicon
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.processing.speech_rows import read_speech_rows
from speech_tokenizers.processing.unit_bpe import UnitBPE
from speech_tokenizers.processing.whole_files import whole_folder, write_whole
from speech_tokenizers.training.common.checkpoint_faults import file_fault
from speech_tokenizers.training.common.processes import process_state
from speech_tokenizers.training.common.recipe_files import check_not_negative, check_positive, load_recipe
from speech_tokenizers.training.common.recipe_trainer import (
    RecipeTrainer,
    RunArguments,
    ScheduleArguments,
    claim_output,
    train_until_done,
)
from speech_tokenizers.training.common.run_record import RunRecord, fingerprint_of
from speech_tokenizers.training.language_models.speech_lm_items import (
    SpeechLMItems,
    frames_per_character,
    pad_items,
    piece_frames,
    rows_fingerprint,
    unit_durations,
)


@dataclasses.dataclass(kw_only=True)
class SpeechRowsArguments:
    """
    Where the rows are that `encode-rows` wrote.

    Args:
        train (`str`): Folder of the rows to learn from.
        eval (`str`, *optional*): Folder of held-out rows, whose losses are measured every `eval_steps` and in the end.
        max_length (`int`, *optional*): Most positions of a row; a longer one is refused by its name. Defaults to the
            language model's context.
        max_eval_rows (`int`): Most held-out rows that are measured.
        pronunciations (`str`, *optional*): Lexicon that comes with the model, by which it says texts; needed for
            `text_alignment: phone`, unless the model that learns on has one.
    """

    train: str
    eval: str | None = None
    max_length: int | None = None
    max_eval_rows: int = 500
    pronunciations: str | None = None

    def __post_init__(self):
        check_positive(self, "max_eval_rows", prefix="data.")


@dataclasses.dataclass(kw_only=True)
class SpeechLMArguments(RunArguments, ScheduleArguments):
    """
    A training of a speech language model. The learning rate rises to its peak and falls as a cosine.

    The folder gets `final` (model, processor and lexicon), `results.json`, `training_log.jsonl` and its picture.

    Args:
        data ([`SpeechRowsArguments`]): The rows.
        codec (`str`): Name, folder or Hub id of the codec whose codes they hold.
        language_model (`str` or `dict`): Name, folder or Hub id of a speech language model, which learns on with its
            own processor; or of another causal language model, which learns the codes as new words; or the
            configuration of one that begins at random, with its `model_type`, whose vocabulary is that of
            [`build_speech_vocabulary`].
        num_codebooks (`int`, *optional*): First codebooks that are used. Defaults to those of the speech language
            model that learns on, and else to those of the rows.
        text_alignment (`str`): See [`SpeechLMConfig`].
        unit_coding (`str`, *optional*): `"frames"`, `"units"`, `"runs"` or `"bpe"`; see [`UnitCoding`]. Defaults to
            that of the speech language model that learns on, and else to `"frames"`.
        unit_bpe (`str`, *optional*): For `unit_coding: bpe`, the folder that `units-bpe` wrote.
        max_duration (`int`, *optional*): Most frames of a run; see [`~SpeechLMProcessor.from_tokenizer`].
        tasks (`dict`): Weight of each task in the mixture; see [`TASKS`].
        init (`str`): How the rows of new words begin; see [`SpeechLMForConditionalGeneration.init_audio_rows`]. A
            speech language model has them already.
        text_loss_weight, audio_loss_weight (`float`): See [`SpeechLMConfig`].
        batch_positions (`int`): Positions of a micro-batch of one process, with padding.
        eval_steps (`int`): Steps between measurements of the held-out rows; the next entry of the log has them.
        kwargs: See [`RunArguments`] and [`ScheduleArguments`].
    """

    trainer: ClassVar[str] = "speech_lm"

    data: SpeechRowsArguments
    codec: str
    language_model: str | dict[str, Any]
    num_codebooks: int | None = None
    text_alignment: str = "none"
    unit_coding: str | None = None
    unit_bpe: str | None = None
    max_duration: int | None = None
    tasks: dict[str, float] = dataclasses.field(default_factory=lambda: {"tts": 1.0})
    init: str = "codebook"
    text_loss_weight: float = 1.0
    audio_loss_weight: float = 1.0
    batch_positions: int = 4096
    eval_steps: int = 500
    max_steps: int = 2000
    learning_rate: float = 1e-3
    warmup_steps: int = 100

    def __post_init__(self):
        ScheduleArguments.__post_init__(self)
        RunArguments.__post_init__(self)
        check_positive(self, "batch_positions", "eval_steps")
        check_not_negative(self, "text_loss_weight", "audio_loss_weight")
        if not self.tasks or any(weight <= 0 for weight in self.tasks.values()):
            raise ValueError("`tasks` must name at least one task, each with a positive weight.")


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
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def measures(
        self, outputs: Any, inputs: dict[str, torch.Tensor]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | int | None]]:
        """Means over targets of each kind, codebook and task, in nats, and the speed."""
        is_target = inputs["labels"] != -100
        is_target[:, 0] = False
        config = self.accelerator.unwrap_model(self.model).config
        is_code = config.speech_ids.is_unit(inputs["labels"]) & is_target
        losses = outputs["target_losses"]
        found: dict[str, tuple[torch.Tensor, torch.Tensor | int | None]] = {
            "text_loss": ((losses * ~is_code).sum(), (is_target & ~is_code).sum()),
            "audio_loss": ((losses * is_code).sum(), is_code.sum()),
        }
        names = self.train_dataset.tasks
        if self._tasks is not None and len(names) > 1:
            for number, name in enumerate(names):
                chosen = (self._tasks == number)[:, None] & is_target
                found[f"{name}_loss"] = ((losses * chosen).sum(), chosen.sum())
        found["positions_per_second"] = (inputs["attention_mask"].sum(), None)
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
    if args.data.pronunciations is not None:
        processor.attach_pronouncer(PronunciationLexicon.from_file(args.data.pronunciations))
    return model, processor


def _with_new_words(
    args: SpeechLMArguments, folder: str | None, codec: Any, feature_extractor: Any, rows: Any
) -> tuple[SpeechLMForConditionalGeneration, SpeechLMProcessor]:
    # Of a language model in a folder, or of one that begins at random.
    tokenizer = build_speech_vocabulary() if folder is None else AutoTokenizer.from_pretrained(folder)
    processor = SpeechLMProcessor.from_tokenizer(
        tokenizer,
        codec,
        feature_extractor,
        text_alignment=args.text_alignment,
        piece_labels=_piece_labels(args, rows),
        num_codebooks=args.num_codebooks or int(rows[0]["num_quantizers"]),
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
    own = {name: getattr(config, name) for name in ("text_alignment", "unit_coding", "max_duration")}
    own["num_codebooks"] = config.coding.codec_sizes(config.num_codebooks, config.codebook_size)[0]
    for name, has in own.items():
        value = getattr(args, name)
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
    output, processes = Path(args.output_dir), process_state()
    inputs: dict[str, Any] = {"codec": fingerprint_of(args.codec), "data.train": rows_fingerprint(args.data.train)}
    if isinstance(args.language_model, str):
        inputs["language_model"] = fingerprint_of(args.language_model)
    if args.unit_bpe is not None:
        inputs["unit_bpe"] = fingerprint_of(args.unit_bpe)
    if args.data.eval is not None:
        inputs["data.eval"] = rows_fingerprint(args.data.eval)
    result_file = output / "results.json"
    finished = ("",) if result_file.is_file() else ()
    RunRecord(output, args, inputs, finished).check()
    codec, feature_extractor = load(args.codec)
    codec = as_speech_codec(codec, feature_extractor)
    if not finished:
        rows = read_speech_rows(args.data.train, codec=codec)
        model, processor = build_speech_lm(args, codec, feature_extractor, rows)
        _train(args, codec, model, processor, rows, output, inputs)
    processes.wait_for_everyone()
    if (fault := file_fault(result_file)) is not None:
        raise ValueError(f"{result_file} {fault}; delete it to measure anew.")
    return json.loads(result_file.read_text("utf-8"))


def _train(
    args: SpeechLMArguments,
    codec: Any,
    model: SpeechLMForConditionalGeneration,
    processor: SpeechLMProcessor,
    rows: Any,
    output: Path,
    inputs: dict[str, Any],
) -> None:
    longest = args.data.max_length or getattr(model.config.text_config, "max_position_embeddings", None)
    items = SpeechLMItems(rows, processor, args.tasks, seed=args.seed, max_length=longest)
    held_out = None
    if args.data.eval is not None:
        held_out = SpeechLMItems(
            read_speech_rows(args.data.eval, codec=codec), processor, args.tasks, seed=args.seed, max_length=longest
        )
    if int(items.lengths.max()) > args.batch_positions:
        raise ValueError(
            f"`batch_positions` ({args.batch_positions}) must hold the longest row, of {int(items.lengths.max())}"
            " positions."
        )
    if processor.text_alignment == "phone":
        model.set_piece_frames(piece_frames(rows, processor, known=model.config.piece_frames))
    model.config.frames_per_character = frames_per_character(rows, processor)
    claim_output(args, inputs)
    trainer = SpeechLMTrainer(
        model,
        args.training_arguments(output, args, lr_scheduler_type="cosine"),
        batch_length=args.batch_positions,
        train_dataset=items,
        data_collator=pad_items(processor),
        recipe=args,
        held_out=held_out,
    )
    curves = ["loss", "text_loss", "audio_loss", *(["held_out_audio_loss"] if held_out is not None else [])]
    train_until_done(trainer, output, curves)
    if not trainer.is_world_process_zero():
        return
    model.eval()
    results: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    results |= {"positions_of_training_rows": int(items.lengths.sum()), "training_rows": len(rows)}
    if held_out is not None:
        results |= held_out_losses(model, held_out, args)
    with whole_folder(output / "final") as final:
        model.save_pretrained(final)
        processor.save_pretrained(final)
    write_whole(output / "results.json", json.dumps(results, indent=2))


@torch.no_grad()
def held_out_losses(
    model: SpeechLMForConditionalGeneration, items: SpeechLMItems, args: SpeechLMArguments
) -> dict[str, Any]:
    """Mean losses over the targets of held-out rows, in nats: of text and pieces, of codes, of each codebook."""
    collate = pad_items(items.processor)
    ids = model.config.speech_ids
    size, num_codebooks = model.config.codebook_size, model.config.num_codebooks
    totals = torch.zeros(num_codebooks + 1, dtype=torch.float64)
    counts = torch.zeros_like(totals)
    chosen = sorted(range(min(len(items), args.data.max_eval_rows)), key=lambda index: items.lengths[index])
    size_of_batch = max(1, args.batch_positions // max(1, int(items.lengths.max())))
    for first in range(0, len(chosen), size_of_batch):
        batch = collate([items[index] for index in chosen[first : first + size_of_batch]])
        batch = {name: value.to(model.device) for name, value in batch.items() if name != "tasks"}
        losses, labels = model(**batch).target_losses[:, 1:].double().cpu(), batch["labels"][:, 1:].cpu()
        kinds = torch.where(ids.is_unit(labels), (labels - ids.audio_offset) // size, num_codebooks)
        wanted = labels != -100
        totals.index_add_(0, kinds[wanted], losses[wanted])
        counts.index_add_(0, kinds[wanted], torch.ones_like(losses[wanted]))
    means = totals / counts.clamp(min=1)
    return {
        "held_out_rows": len(chosen),
        "held_out_text_loss": float(means[-1]),
        "held_out_audio_loss": float(totals[:-1].sum() / counts[:-1].sum().clamp(min=1)),
        "held_out_codebook_losses": [float(value) for value in means[:-1]],
    }


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
