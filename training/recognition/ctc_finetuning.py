# SPDX-License-Identifier: Apache-2.0
"""
Fine-tune a whole speech encoder of transformers as a CTC recogniser of characters or phones.

The encoder hears a recording in a padded batch as it hears it alone. What is saved is a recogniser, and serves as an
encoder again.
"""

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoTokenizer,
    TrainerCallback,
    Wav2Vec2Processor,
    set_seed,
)

from speech_tokenizers.modeling.encoder_geometry import first_frame_centre
from speech_tokenizers.modeling.model_names import find_model
from speech_tokenizers.modeling.modeling_hubert_masked_prediction import span_mask
from speech_tokenizers.modeling.padding_invariance import frame_mask, make_padding_invariant, num_conv_frames
from speech_tokenizers.modeling.speech_encoders import EXACT_IN_BATCHES
from speech_tokenizers.processing.ctc_labels import CTCLabels, build_tokenizer, keep_text_language
from speech_tokenizers.processing.labelled_rows import check_one_row_each
from speech_tokenizers.processing.metadata_files import as_text
from speech_tokenizers.processing.recordings import (
    DecodedRecordings,
    append_rejected,
    decode_all,
    parse_filter,
)
from speech_tokenizers.training.common.processes import leave_together
from speech_tokenizers.training.common.recipe_trainer import RecipeTrainer, newest_checkpoint, train_until_done
from speech_tokenizers.training.common.run_record import RunRecord, fingerprint_of, recordings_of
from speech_tokenizers.training.recognition.ctc_recordings import load_to_learn_and_measure, tell_of_overlap
from speech_tokenizers.training.recognition.ctc_settings import (
    CTCFinetuningArguments,
    check_masks,
    deciding_settings,
)
from speech_tokenizers.training.recognition.ctc_targets import (
    COLUMNS,
    LabelErrorRate,
    UnusableText,
    add_language_argument,
    check_column,
    check_num_frames,
    column_of,
    learnable_labels,
    reference_labels,
)


# The learning rate of the first step, relative to the peak.
_INITIAL_RATIO = 0.01


class LabelledRecordings(torch.utils.data.Dataset):
    """
    Recordings with the labels of what is said in them.

    An item depends on the seed and its index only. Indices beyond the length belong to later epochs, as a
    [`LengthBatchSampler`] gives them.

    Args:
        recordings ([`DecodedRecordings`]): int16 audio.
        texts (sequence of `str`): What is said in each.
        labels ([`CTCLabels`]): Gives the labels of a text.
        feature_extractor (`FeatureExtractionMixin`): The encoder's.
        config (`PreTrainedConfig`): The encoder's; has `conv_kernel` and `conv_stride`.
        args ([`CTCFinetuningArguments`]): How to mask, and the length and the seed.
        is_masked (`bool`, *optional*, defaults to `True`): Whether the recordings are learnt from: items have frames
            to mask, and a text with letters that have no label is set aside. In recordings to measure on, such letters
            count as errors.

    Attributes:
        lengths (`np.ndarray` of shape `(len(dataset),)`): Samples of each item.
        rejected (`list[dict]`): `{"name", "reason"}` of the recordings that are set aside.

    Raises:
        ValueError: If no recording is left.
    """

    def __init__(
        self,
        recordings: DecodedRecordings,
        texts: Sequence[str | None],
        labels: CTCLabels,
        feature_extractor: Any,
        config: Any,
        args: CTCFinetuningArguments,
        is_masked: bool = True,
    ):
        self.recordings, self.feature_extractor, self.config = recordings, feature_extractor, config
        self.args, self.is_masked = args, is_masked
        self.rejected = list(recordings.rejected)
        self._items: list[tuple[int, list[int]]] = []
        num_samples = np.diff(recordings.starts)
        for index, (name, text) in enumerate(zip(recordings.names, texts, strict=True)):
            try:
                sequence = (learnable_labels if is_masked else reference_labels)(labels, text)
                check_num_frames(num_conv_frames(config, int(num_samples[index])), sequence)
                if num_samples[index] > args.batch_seconds * recordings.sampling_rate:
                    raise UnusableText(f"it is longer than the {args.batch_seconds:g} s of a batch")
            except UnusableText as error:
                self.rejected.append({"name": name, "reason": str(error)})
                continue
            self._items.append((index, sequence))
        if not self._items:
            name, reason = self.rejected[0].values()
            what = "learn from" if is_masked else "measure on"
            raise ValueError(f"No recording is left to {what}; the first reason: {name}: {reason}.")
        self.lengths = num_samples[[index for index, _ in self._items]]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """
        `input_values` `(num_samples,)`, `labels` `(num_labels,)`, and if masked `mask_time_indices` `(num_frames,)`.
        """
        epoch, number = divmod(index, len(self))
        recording, sequence = self._items[number]
        rate = self.recordings.sampling_rate
        audio = self.recordings[recording].astype(np.float32) / np.float32(32767.0)
        features = self.feature_extractor(audio, sampling_rate=rate, return_tensors="pt")
        item = {"input_values": features["input_values"][0], "labels": torch.tensor(sequence)}
        if self.is_masked and self.args.mask_time_prob > 0:
            seed = np.random.default_rng((self.args.seed, epoch, number)).integers(2**63)
            item["mask_time_indices"] = span_mask(
                num_conv_frames(self.config, len(audio)),
                self.args.mask_time_prob,
                self.args.mask_time_length,
                generator=torch.Generator().manual_seed(int(seed)),
            )
        return item


def pad_recordings(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    Pad items of [`LabelledRecordings`] into the arguments of an `AutoModelForCTC`; labels with -100, the mask with
    `False`; and add `attention_mask` of shape `(batch, num_samples)`, 1 = real.
    """
    padding = {"input_values": 0.0, "labels": -100, "mask_time_indices": False}
    batch = {
        name: pad_sequence([item[name] for item in items], batch_first=True, padding_value=padding[name])
        for name in items[0]
    }
    num_samples = torch.tensor([len(item["input_values"]) for item in items])
    batch["attention_mask"] = frame_mask(num_samples, batch["input_values"].shape[1]).long()
    return batch


class FreezeEncoderCallback(TrainerCallback):
    """
    Keeps the encoder as it is in the first steps, in which the head learns from nothing.

    Args:
        model (`PreTrainedModel`): An `AutoModelForCTC`. What is frozen already stays so.
        num_steps (`int`): Steps.
    """

    def __init__(self, model: Any, num_steps: int):
        self.parameters = [parameter for parameter in model.base_model.parameters() if parameter.requires_grad]
        self.num_steps = num_steps

    def on_step_begin(self, args, state, control, **kwargs):
        """Called by the `Trainer`."""
        for parameter in self.parameters:
            parameter.requires_grad_(state.global_step >= self.num_steps)


class CTCTrainer(RecipeTrainer):
    """
    [`RecipeTrainer`] of an `AutoModelForCTC`.

    Args:
        model (`PreTrainedModel`): As [`load_ctc_model`] returns it.
        args ([`CTCFinetuningArguments`]): Settings.
        labels ([`CTCLabels`]): What the model writes.
        train_dataset, eval_dataset ([`LabelledRecordings`]): The recordings.
        kwargs: Further arguments of the `Trainer`.
    """

    def __init__(
        self,
        model: Any,
        args: CTCFinetuningArguments,
        labels: CTCLabels,
        train_dataset: LabelledRecordings,
        eval_dataset: LabelledRecordings | None = None,
        **kwargs: Any,
    ):
        if eval_dataset is not None:
            # Those of like length together, so that batches have little padding.
            eval_dataset = torch.utils.data.Subset(eval_dataset, np.argsort(eval_dataset.lengths).tolist())
        super().__init__(
            model,
            args,
            batch_length=round(args.batch_seconds * train_dataset.recordings.sampling_rate),
            data_collator=pad_recordings,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=LabelErrorRate(labels),
            callbacks=[FreezeEncoderCallback(model, args.get_freeze_encoder_steps())],
            **kwargs,
        )
        # The models take any keyword, but do not divide by the number of labels that they would be told.
        self.model_accepts_loss_kwargs = False

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """See [`tri_stage_factor`]."""
        if self.lr_scheduler is None:
            warmup, hold = self.args.get_warmup_steps(num_training_steps), self.args.get_hold_steps()
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                lambda step: tri_stage_factor(
                    step, warmup, hold, num_training_steps, self.args.final_learning_rate_ratio
                ),
            )
        return self.lr_scheduler

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, the most probable label of each frame (-100 where padded), and the labels."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if logits is None:
            return loss, None, None
        num_frames = num_conv_frames(self.model.config, inputs["attention_mask"].sum(-1)).to(logits.device)
        paths = logits.argmax(-1).masked_fill(~frame_mask(num_frames, logits.shape[1]), -100)
        return loss, paths, labels


def tri_stage_factor(step: int, warmup_steps: int, hold_steps: int, total_steps: int, final_ratio: float) -> float:
    """
    Learning rate of a step relative to the peak, as fairseq's `tri_stage` schedule has it: it rises linearly from
    1/100, stays, and decays exponentially.

    Args:
        step (`int`): Counted from 0.
        warmup_steps, hold_steps, total_steps (`int`): The decay has the steps that are left.
        final_ratio (`float`): After the last step.
    """
    if step < warmup_steps:
        return _INITIAL_RATIO + (1 - _INITIAL_RATIO) * step / warmup_steps
    progress = (step - warmup_steps - hold_steps) / max(1, total_steps - warmup_steps - hold_steps)
    return final_ratio ** min(1.0, max(0.0, progress))


def load_ctc_model(encoder: str, tokenizer: Any, args: CTCFinetuningArguments) -> tuple[Any, Any]:
    """
    An encoder with a head that writes what a tokenizer knows.

    The head is new, unless `encoder` is a CTC model whose tokenizer knows all those labels; then both are its own.

    Args:
        encoder (`str`): Folder or Hub id of an encoder or of an `AutoModelForCTC`.
        tokenizer (`Wav2Vec2CTCTokenizer` or `Wav2Vec2PhonemeCTCTokenizer`): See [`build_tokenizer`].
        args ([`CTCFinetuningArguments`]): How it masks and drops layers, and the seed of the head.

    Returns:
        `tuple`: The model, whose convolutional front end is frozen and which hears rows of a batch as alone; and its
        tokenizer.

    Raises:
        ValueError: If the encoder is of another kind.
    """
    config = _encoder_config(encoder)
    own = _own_tokenizer(encoder, config, tokenizer)
    tokenizer = own or tokenizer
    fields = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
        "apply_spec_augment": True,
        "layerdrop": args.layerdrop,
        # What an aligner asks for.
        "first_frame_centre": first_frame_centre(config),
    }
    for name in ("mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length"):
        fields[name] = getattr(args, name)
    config.update(fields)
    set_seed(args.seed)
    model = AutoModelForCTC.from_pretrained(encoder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True)
    if own is None:
        model.lm_head.reset_parameters()
    model.freeze_feature_encoder()
    return make_padding_invariant(model), tokenizer


def _encoder_config(encoder: str) -> Any:
    config = AutoConfig.from_pretrained(find_model(encoder, argument="encoder"))
    if config.model_type not in EXACT_IN_BATCHES:
        raise ValueError(
            f"`encoder` is a `{config.model_type}`; those that can be fine-tuned are {', '.join(EXACT_IN_BATCHES)}."
            " `speech-tokenizers train-ctc` trains a recogniser on any other, which stays as it is."
        )
    return config


def _own_tokenizer(encoder: str, config: Any, built: Any) -> Any:
    # The tokenizer of a CTC model, if it knows the labels of another one.
    if not any(name.endswith("ForCTC") for name in config.architectures or ()):
        return None
    with contextlib.suppress(OSError, ValueError):
        own = AutoTokenizer.from_pretrained(encoder)
        known, needed = CTCLabels(own), CTCLabels(built)
        names = [needed.name(label) for label in range(len(built)) if label not in needed.special_ids]
        if known.is_phones == needed.is_phones and all(map(known.knows, names)):
            return own
    return None


def finetune_ctc(
    encoder: str,
    recordings: datasets.Dataset,
    eval_recordings: datasets.Dataset | None,
    unit: str,
    args: CTCFinetuningArguments,
    column: str | None = None,
    phonemizer: Callable[[Iterable[str]], list[str]] | None = None,
    resume: bool = False,
    language: str = "en",
) -> CTCTrainer:
    """
    Fine-tune an encoder and save it, with its feature extractor and tokenizer, in `args.output_dir`.

    What cannot be learnt from is named, with the reason, in `rejected.jsonl` there.

    Args:
        encoder (`str`): Folder or Hub id of an encoder (HuBERT, WavLM, wav2vec 2.0, ...) or of a CTC model of it.
        recordings, eval_recordings (`datasets.Dataset`): As [`load_recordings`] returns them.
        unit (`str`): `"character"` or `"phone"`.
        args ([`CTCFinetuningArguments`]): Settings.
        column (`str`, *optional*): Holds the text, or the phones (parted by spaces, words by `|`). Defaults to
            `"phones"` for phones without a phonemizer, else to `"text"`.
        phonemizer (callable, *optional*): Makes phones of texts, such as an [`EspeakPhonemizer`].
        resume (`bool`, *optional*, defaults to `False`): Go on from the newest checkpoint in `args.output_dir`, if
            there is one.
        language (`str`, *optional*, defaults to `"en"`): Language of the texts, as a code, which the tokenizer keeps.

    Returns:
        `CTCTrainer`: With the trained `model` and its log in `state.log_history`.

    Raises:
        ValueError: If there is no such column, no recording can be learnt from, a phonemizer is given for characters,
            the folder holds a model or checkpoints that are not to be gone on from, or was begun with other settings,
            recordings, labels or another encoder.
    """
    if phonemizer is not None and unit != "phone":
        raise ValueError(f"`phonemizer` makes phones, but `unit` is {unit!r}.")
    output = Path(args.output_dir)
    checkpoint = newest_checkpoint(output)
    if checkpoint is not None and not resume:
        raise ValueError(f"{output} holds {checkpoint.name}; resume from it, or choose another folder.")
    if checkpoint is None and (output / "config.json").is_file():
        raise ValueError(f"{output} holds a model and no checkpoint to go on from; choose another folder.")
    column = column_of(unit, column, phonemizer is not None)
    # Before hours of speech are decoded for nothing.
    for dataset in filter(None, (recordings, eval_recordings)):
        check_one_row_each(dataset)
        check_column(column, dataset)
    if eval_recordings is not None and args.process_index == 0:
        tell_of_overlap(recordings, eval_recordings)
    record = RunRecord(
        output,
        {
            "unit": unit,
            "column": column,
            "language": language,
            "phonemizer": getattr(phonemizer, "language", None),
            **deciding_settings(args),
        },
        {
            "encoder": fingerprint_of(encoder),
            "recordings": recordings_of(recordings, [column]),
            # Of another column, too: the recordings do not tell one from another.
            "transcripts": _fingerprint_of_texts(recordings[column][:]),
        },
        recipe_name="settings.yaml",
    )
    if checkpoint is not None:
        record.check()
    check_masks(args, _encoder_config(encoder))
    feature_extractor = AutoFeatureExtractor.from_pretrained(encoder)
    # The recogniser was trained to know where padded recordings end.
    feature_extractor.return_attention_mask = True

    def decoded(dataset: datasets.Dataset) -> tuple[DecodedRecordings, list[str]]:
        cache_dir = args.cache_dir or output / "audio_cache"
        with args.main_process_first(desc="decoding"):
            result = decode_all(dataset, feature_extractor.sampling_rate, cache_dir, args.process_index == 0)
        texts = [as_text(text) or "" for text in result.metadata[column][:]]
        return result, texts if phonemizer is None else phonemizer(texts)

    train, train_texts = decoded(recordings)
    model, tokenizer = load_ctc_model(encoder, build_tokenizer(train_texts, unit, language), args)
    if unit == "character":
        keep_text_language(tokenizer, language)  # of a recogniser of its own, too
    labels = CTCLabels(tokenizer)
    record.inputs = {**record.inputs, "vocabulary": [labels.name(label) for label in range(len(tokenizer))]}
    if checkpoint is not None:
        record.keep()
    elif args.process_index == 0:
        record.write()
    common = labels, feature_extractor, model.config, args
    train_dataset = LabelledRecordings(train, train_texts, *common)
    rejected, eval_dataset = train_dataset.rejected, None
    if eval_recordings is not None:
        eval_dataset = LabelledRecordings(*decoded(eval_recordings), *common, is_masked=False)
        rejected = rejected + eval_dataset.rejected
    if args.process_index == 0:
        (output / "rejected.jsonl").unlink(missing_ok=True)
        if rejected:
            append_rejected(output / "rejected.jsonl", rejected)
            tqdm.write(f"{len(rejected)} recordings were set aside; see {output / 'rejected.jsonl'}.", file=sys.stderr)

    processor = Wav2Vec2Processor(feature_extractor, tokenizer)
    trainer = CTCTrainer(model, args, labels, train_dataset, eval_dataset, processing_class=processor)
    train_until_done(trainer, output, ["loss"])
    if eval_dataset is not None:
        trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    return trainer


def _fingerprint_of_texts(texts: Iterable[str | None]) -> str:
    written = json.dumps([as_text(text) for text in texts], ensure_ascii=False)
    return hashlib.sha256(written.encode(errors="surrogatepass")).hexdigest()[:24]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("encoder", metavar="ENCODER", help="folder or Hub id of a HuBERT, WavLM, wav2vec 2.0, ...")
    parser.add_argument("data", metavar="RECORDINGS", help="folder with metadata, or a dataset")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="the recogniser")
    parser.add_argument("--unit", choices=tuple(COLUMNS), default="character", help="unit that it writes")
    parser.add_argument(
        "--column", metavar="NAME", help="holds the text, or the phones (`AO1 R | DH AH0`); default: text or phones"
    )
    parser.add_argument(
        "--phonemize", metavar="LANGUAGE", help="make phones of the text by espeak-ng, in this language, such as en-us"
    )
    parser.add_argument(
        "--filter",
        metavar="COLUMN=VALUE[,VALUE]",
        nargs="*",
        action="extend",
        default=[],
        help="rows of RECORDINGS to train on",
    )
    parser.add_argument(
        "--eval-filter",
        metavar="COLUMN=VALUE[,VALUE]",
        nargs="*",
        action="extend",
        default=[],
        help="rows of RECORDINGS to measure on; training leaves them out",
    )
    add_language_argument(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in FOLDER, if any")
    parser.add_argument("--save-steps", type=int, default=500, help="between checkpoints (default: 500)")
    parser.add_argument("--eval-steps", type=int, help="between measurements; by default only after the last step")
    defaults = CTCFinetuningArguments.__dataclass_fields__
    for name, text in _OPTIONS.items():
        default = defaults[name].default
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{text} (default: {default:g})"
        )


# Fields of the settings that are options of the command too.
_OPTIONS = {
    "max_steps": "steps in all",
    "batch_seconds": "audio of a batch, with padding",
    "gradient_accumulation_steps": "batches a step",
    "learning_rate": "peak of the learning rate",
    "warmup_steps": "steps in which it rises; below 1, their share",
    "hold_steps": "steps at its peak, likewise",
    "freeze_encoder_steps": "steps in which the head alone learns, likewise",
    "mask_time_prob": "share of masked frames, with overlaps",
    "mask_time_length": "frames of a masked span",
    "mask_feature_prob": "share of masked channels, with overlaps",
    "mask_feature_length": "channels of a masked span",
    "layerdrop": "share of skipped layers",
    "seed": "seed of the head, the order and the masks",
}


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.processing.phonemization import EspeakPhonemizer

    settings = _settings(args)
    column = column_of(args.unit, args.column, args.phonemize is not None)
    filters = parse_filter(args.filter), parse_filter(args.eval_filter)
    trainer = finetune_ctc(
        args.encoder,
        *load_to_learn_and_measure(args.data, *filters, column, settings.process_index == 0),
        args.unit,
        settings,
        column,
        None if args.phonemize is None else EspeakPhonemizer(args.phonemize),
        args.resume,
        args.language,
    )
    for name, value in trainer.state.log_history[-1].items():
        if name.endswith("_error_rate"):
            print(f"{name.removeprefix('eval_').replace('_', ' ')}: {value:.2f} %")
    leave_together()
    return 0


def _settings(args: argparse.Namespace) -> CTCFinetuningArguments:
    try:
        return CTCFinetuningArguments(
            output_dir=args.output,
            logging_steps=10,
            save_steps=args.save_steps,
            save_total_limit=2,
            eval_strategy="steps" if args.eval_steps and args.eval_filter else "no",
            eval_steps=args.eval_steps,
            report_to="none",
            **{name: getattr(args, name) for name in _OPTIONS},
        )
    except ValueError as error:
        named = [name for name in (*_OPTIONS, "save_steps", "eval_steps") if f"`{name}`" in str(error)]
        options = ", ".join(f"--{name.replace('_', '-')}" for name in named)
        raise ValueError(f"{options}: {error}" if named else str(error)) from error
