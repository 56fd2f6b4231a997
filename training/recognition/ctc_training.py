# SPDX-License-Identifier: Apache-2.0
"""
Train a CTC recogniser of characters or phones on a frozen speech encoder of transformers.

The encoder hears each recording once. Its states are kept on disk while the linear map on them learns.
"""

import argparse
import contextlib
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from tqdm import tqdm
from transformers import AutoConfig, Trainer, TrainingArguments

from speech_tokenizers.modeling.configuration_speech_encoder_ctc import SpeechEncoderCTCConfig
from speech_tokenizers.modeling.encoder_geometry import shortest_input
from speech_tokenizers.modeling.model_names import find_model
from speech_tokenizers.modeling.modeling_speech_encoder_ctc import SpeechEncoderForCTC
from speech_tokenizers.processing.audio_files import AudioFileError
from speech_tokenizers.processing.ctc_labels import CTCLabels, build_tokenizer
from speech_tokenizers.processing.labelled_rows import check_one_row_each
from speech_tokenizers.processing.metadata_files import as_text
from speech_tokenizers.processing.recordings import (
    append_rejected,
    decode_recording,
    parse_filter,
    recording_name,
)
from speech_tokenizers.processing.whole_files import whole_folder
from speech_tokenizers.training.common.processes import decided_by_main, leave_together, process_state
from speech_tokenizers.training.common.recipe_files import check_seed
from speech_tokenizers.training.recognition.ctc_recordings import load_to_learn_and_measure, tell_of_overlap
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


class EncoderStates(torch.utils.data.Dataset):
    """
    States of a frozen encoder for recordings, in half precision in a file, with the labels of their texts.

    Args:
        model ([`SpeechEncoderForCTC`]): Model whose encoder is run.
        feature_extractor (`FeatureExtractionMixin`): Feature extractor of the encoder.
        labels ([`CTCLabels`]): Labels that texts are written in.
        recordings (`datasets.Dataset`): Recordings: rows with `audio` and the column `column`.
        column (`str`): Column of the text or of the phones.
        path (`Path`): File to write.
        is_evaluation (`bool`, *optional*, defaults to `False`): Whether the recordings are measured on: letters and
            phones that have no label then count as errors. A recording to learn from is set aside for them.

    Attributes:
        rejected (`list[dict]`): Recordings that are set aside, each as `{"name", "reason"}`.

    Raises:
        ValueError: If no recording is left.
    """

    def __init__(
        self,
        model: SpeechEncoderForCTC,
        feature_extractor: Any,
        labels: CTCLabels,
        recordings: datasets.Dataset,
        column: str,
        path: Path,
        is_evaluation: bool = False,
    ):
        label_text = reference_labels if is_evaluation else learnable_labels
        self.rejected: list[dict[str, str]] = []
        self._labels: list[list[int]] = []
        self._shapes: list[tuple[int, int, int]] = []
        with path.open("wb") as file:
            for index, row in enumerate(tqdm(recordings, desc="Encoding", unit="file", disable=None)):
                try:
                    sequence = label_text(labels, as_text(row[column]))
                    states = self._states_of(model, feature_extractor, row)
                    check_num_frames(states.shape[1], sequence)
                except (AudioFileError, UnusableText) as error:
                    self.rejected.append({"name": recording_name(row, index), "reason": str(error)})
                    continue
                self._labels.append(sequence)
                self._shapes.append(states.shape)
                file.write(states.tobytes())
        if not self._labels:
            name, reason = self.rejected[0].values()
            what = "measure on" if is_evaluation else "learn from"
            raise ValueError(f"No recording is left to {what}; the first reason: {name}: {reason}.")
        self._starts = np.cumsum([0, *(np.prod(shape) for shape in self._shapes)])
        self._states = np.memmap(path, dtype=np.float16, mode="r")

    @staticmethod
    def _states_of(model: SpeechEncoderForCTC, feature_extractor: Any, row: dict[str, Any]) -> np.ndarray:
        # (num_layers, num_frames, hidden_size)
        sampling_rate = feature_extractor.sampling_rate
        audio = decode_recording(row, sampling_rate)
        longest = getattr(feature_extractor, "n_samples", len(audio))
        if len(audio) > longest:
            raise UnusableText(f"it is longer than the {longest / sampling_rate:g} s that the encoder hears")
        if len(audio) < shortest_input(model.encoder.config):
            raise UnusableText(f"its {len(audio)} samples are too few for a frame of the encoder")
        inputs = feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="pt").to(model.device)
        states, _ = model.encode(inputs[model.main_input_name], inputs.get("attention_mask"))
        return states[0].half().cpu().numpy()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        states = self._states[self._starts[index] : self._starts[index + 1]].reshape(self._shapes[index])
        return {"encoder_states": torch.from_numpy(states.astype(np.float32)), "labels": self._labels[index]}


def pad_batch(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """
    Pad items of [`EncoderStates`] into the arguments of [`SpeechEncoderForCTC.forward`].

    Returns:
        `dict`: `encoder_states` of shape `(batch, num_layers, num_frames, hidden_size)`, `attention_mask` of shape
        `(batch, num_frames)`, 1 = real, and `labels` of shape `(batch, num_labels)`, padded with -100.
    """
    num_layers, _, hidden_size = items[0]["encoder_states"].shape
    lengths = [item["encoder_states"].shape[1] for item in items]
    states = torch.zeros(len(items), num_layers, max(lengths), hidden_size)
    labels = torch.full((len(items), max(len(item["labels"]) for item in items)), -100)
    for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
        states[row, :, :length] = item["encoder_states"]
        labels[row, : len(item["labels"])] = torch.tensor(item["labels"])
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"encoder_states": states, "attention_mask": mask, "labels": labels}


def train_recognizer(
    encoder: str,
    recordings: datasets.Dataset,
    eval_recordings: datasets.Dataset | None,
    unit: str,
    args: TrainingArguments,
    column: str | None = None,
    overwrite: bool = False,
    language: str = "en",
    **fields: Any,
) -> Trainer:
    """
    Train a recogniser and save it, with its feature extractor and tokenizer, in `args.output_dir`.

    What cannot be learnt from or measured on is named, with the reason, in `rejected.jsonl` there. The folder appears
    once the recogniser is complete.

    Args:
        encoder (`str`): Folder or Hub id of the speech encoder.
        recordings, eval_recordings (`datasets.Dataset`): Recordings, as [`load_recordings`] returns them.
        unit (`str`): Unit that the recogniser writes: `"character"` or `"phone"`.
        args (`TrainingArguments`): Settings of the training of the linear map.
        column (`str`, *optional*): Column of the text, or of the phones (parted by spaces, words by `|`). Defaults to
            `"text"` or `"phones"`.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace a recogniser in `args.output_dir`. None
            of its files stays.
        language (`str`, *optional*, defaults to `"en"`): Language of the texts, as a code, which the tokenizer keeps.
        fields: Fields of the [`SpeechEncoderCTCConfig`], such as `layer`.

    Returns:
        `Trainer`: Trainer with the trained `model`, and with its log in `state.log_history`.

    Raises:
        ValueError: If the folder exists and is not to be replaced, a setting is out of range, there is no such column,
            or no recording can be learnt from.
    """
    output = Path(args.output_dir)
    check_output(output, encoder, overwrite)
    check_numbers(
        args.num_train_epochs if args.max_steps <= 0 else 1.0,
        args.per_device_train_batch_size,
        args.learning_rate,
        args.seed,
    )
    check_fields(encoder, fields)
    column = column_of(unit, column)
    for dataset in filter(None, (recordings, eval_recordings)):
        check_one_row_each(dataset)
        check_column(column, dataset)
    if eval_recordings is not None and args.process_index == 0:
        tell_of_overlap(recordings, eval_recordings)
    tokenizer = build_tokenizer((as_text(text) for text in recordings[column][:] if text is not None), unit, language)
    labels = CTCLabels(tokenizer)
    model, feature_extractor = SpeechEncoderForCTC.from_encoder(
        encoder, vocab_size=len(tokenizer), pad_token_id=labels.blank, **fields
    )
    model.to(args.device)
    with _new_folder(output, args) as folder, tempfile.TemporaryDirectory(dir=folder, prefix=".states-") as kept:

        def states(name: str, dataset: datasets.Dataset) -> EncoderStates:
            is_evaluation = name == "evaluation"
            result = EncoderStates(model, feature_extractor, labels, dataset, column, Path(kept, name), is_evaluation)
            if result.rejected and args.process_index == 0:
                for entry in result.rejected:
                    tqdm.write(f"left out of {name}: {entry['name']}: {entry['reason']}", file=sys.stderr)
                append_rejected(folder / "rejected.jsonl", result.rejected)
            return result

        eval_states = None if eval_recordings is None else states("evaluation", eval_recordings)
        trainer = train_on_states(model, labels, states("training", recordings), eval_states, args)
        if args.process_index == 0:
            for part in (model, feature_extractor, tokenizer):
                part.save_pretrained(folder)
    return trainer


def check_output(output: Path, encoder: str, overwrite: bool) -> None:
    """
    Raises:
        ValueError: If the folder of a new recogniser exists and is not to be replaced, or is no recogniser's.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir():
        raise ValueError(f"`output` (-o) is {output}, which is no folder; choose another.")
    if not overwrite:
        raise ValueError(f"`output` (-o) {output} exists; pass --overwrite to replace it, or choose another.")
    left = [path.name for path in output.iterdir() if path.name != "rejected.jsonl" and path.name[:8] != ".states-"]
    if left and not (output / "config.json").is_file():
        raise ValueError(f"`output` (-o) is {output}, which is no recogniser (it has {left[0]}); choose another.")
    if output.resolve() in (Path(encoder).resolve(), *Path(encoder).resolve().parents):
        raise ValueError(f"`output` (-o) is {output}, which holds the encoder; choose another.")


def check_numbers(epochs: float, batch_size: int, learning_rate: float, seed: int) -> None:
    """
    Raises:
        ValueError: If a number cannot be trained with; the message names its option.
    """
    for name, value in (("epochs", epochs), ("batch-size", batch_size), ("learning-rate", learning_rate)):
        if not 0 < value < math.inf:
            raise ValueError(f"--{name} must be a positive number, but got {value}.")
    try:
        check_seed(seed)
    except ValueError as error:
        raise ValueError(f"--seed: {error}") from error


def check_fields(encoder: str, fields: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: If the fields of a [`SpeechEncoderCTCConfig`] do not suit an encoder; the message names the option.
    """
    config = AutoConfig.from_pretrained(find_model(encoder, argument="encoder"))
    for name, value in fields.items():
        try:
            SpeechEncoderCTCConfig(encoder_config=config, **{name: value})
        except StrictDataclassError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise ValueError(f"--{name.replace('_', '-')}: {reason}") from error


@contextlib.contextmanager
def _new_folder(output: Path, args: TrainingArguments) -> Iterator[Path]:
    # The folder that becomes `output`, one for all processes. What the `Trainer` saves goes there, too.
    with whole_folder(output) if args.process_index == 0 else contextlib.nullcontext(output) as main_folder:
        folder = Path(decided_by_main(lambda: str(main_folder)))
        args.output_dir = str(folder)
        try:
            yield folder
            process_state().wait_for_everyone()  # no process has files there any more
        finally:
            args.output_dir = str(output)


def train_on_states(
    model: SpeechEncoderForCTC,
    labels: CTCLabels,
    states: torch.utils.data.Dataset,
    eval_states: torch.utils.data.Dataset | None,
    args: TrainingArguments,
) -> Trainer:
    """
    Train the linear map of a recogniser, and measure its label error rate.

    Args:
        model ([`SpeechEncoderForCTC`]): Model whose linear map is trained. Its encoder is not.
        labels ([`CTCLabels`]): Labels that the model writes.
        states, eval_states (`Dataset`): Items like those of [`EncoderStates`].
        args (`TrainingArguments`): Settings of the training. `remove_unused_columns` and `label_names` are set here.
    """
    args.remove_unused_columns = False
    args.label_names = ["labels"]
    set_statistics(model, states)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=states,
        eval_dataset=eval_states,
        data_collator=pad_batch,
        compute_metrics=LabelErrorRate(labels),
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
    )
    trainer.train()
    if eval_states is not None:
        trainer.evaluate()
    return trainer


@torch.no_grad()
def set_statistics(model: SpeechEncoderForCTC, states: torch.utils.data.Dataset, num_items: int = 300) -> None:
    """
    Give a recogniser the mean and the standard deviation of its input. This speeds up its training a lot.

    Args:
        model ([`SpeechEncoderForCTC`]): Model whose `states_mean` and `states_std` are set.
        states (`Dataset`): Items like those of [`EncoderStates`].
        num_items (`int`, *optional*, defaults to 300): Number of items that are looked at, spread over all.
    """
    num_frames, total, squares = 0, 0.0, 0.0
    for index in np.unique(np.linspace(0, len(states) - 1, num_items).round().astype(int)):
        item = states[int(index)]["encoder_states"].double()  # (L, F, H)
        num_frames += item.shape[1]
        total += item.sum(dim=1)
        squares += item.square().sum(dim=1)
    mean = total / num_frames
    model.states_mean.copy_(mean)
    model.states_std.copy_((squares / num_frames - mean.square()).clamp(min=1e-8).sqrt())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", metavar="ENCODER", help="folder or Hub id of a speech encoder of transformers")
    parser.add_argument("data", metavar="RECORDINGS", help="folder with metadata, or a dataset")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="the recogniser, new")
    parser.add_argument("--overwrite", action="store_true", help="replace a recogniser in the folder")
    parser.add_argument("--unit", choices=tuple(COLUMNS), default="character", help="unit that it writes")
    parser.add_argument(
        "--column", metavar="NAME", default=None, help="holds the text, or the phones (`AO1 R | DH AH0`)"
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
    parser.add_argument("--layer", default="weighted", help="weighted, average, last or a number (default: weighted)")
    parser.add_argument(
        "--window", choices=("padded", "tight"), default="tight", help="window of Whisper's encoder (default: tight)"
    )
    parser.add_argument("--kernel-size", type=int, default=1, help="frames that a label is read from (default: 1)")
    parser.add_argument("--epochs", type=float, default=15.0, help="epochs (default: 15)")
    parser.add_argument("--batch-size", type=int, default=16, help="recordings in a batch (default: 16)")
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="peak of the learning rate (default: 0.005)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the head and the order (default: 0)")


def run(args: argparse.Namespace) -> int:
    trainer = _train(args)
    for name, value in trainer.state.log_history[-1].items():
        if name.endswith("_error_rate"):
            print(f"{name.removeprefix('eval_').replace('_', ' ')}: {value:.2f} %")
    leave_together()
    return 0


def _train(args: argparse.Namespace) -> Trainer:
    # Before the recordings are read and encoded.
    check_output(Path(args.output), args.encoder, args.overwrite)
    check_numbers(args.epochs, args.batch_size, args.learning_rate, args.seed)
    layer = int(args.layer) if args.layer.lstrip("-").isdecimal() else args.layer
    fields = {"layer": layer, "window": args.window, "kernel_size": args.kernel_size}
    check_fields(args.encoder, fields)
    training_args = TrainingArguments(
        output_dir=args.output,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        logging_steps=50,
        eval_strategy="no",
        save_strategy="no",
        seed=args.seed,
        report_to="none",
    )
    recordings, eval_recordings = load_to_learn_and_measure(
        args.data,
        parse_filter(args.filter),
        parse_filter(args.eval_filter),
        column_of(args.unit, args.column),
        training_args.process_index == 0,
    )
    return train_recognizer(
        args.encoder,
        recordings,
        eval_recordings,
        args.unit,
        training_args,
        args.column,
        args.overwrite,
        args.language,
        **fields,
    )
