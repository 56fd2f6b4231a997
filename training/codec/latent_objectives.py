# SPDX-License-Identifier: Apache-2.0
"""Objectives of a model of continuous latents: noise, texts, and latents that do not collapse."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tqdm import tqdm

from speech_tokenizers.coding.loading import find_checkpoint, load_config
from speech_tokenizers.modeling.codec_layers import ceil_divide
from speech_tokenizers.modeling.codec_model import shift_steps
from speech_tokenizers.modeling.configuration_cst import CST_PRESETS, CSTConfig
from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.processing.ctc_labels import CTCLabels, build_tokenizer, tokenizer_of
from speech_tokenizers.processing.metadata_files import as_text
from speech_tokenizers.processing.recordings import DecodedRecordings, append_rejected, load_recordings
from speech_tokenizers.processing.text_normalization import words_of
from speech_tokenizers.processing.timed_labels import TimedWord, read_word_times
from speech_tokenizers.training.codec.arguments import CodecTrainingArguments
from speech_tokenizers.training.codec.frozen_recognizer import FrozenRecognizer
from speech_tokenizers.training.codec.latent_arguments import LatentArguments, RecognitionArguments
from speech_tokenizers.training.codec.latent_health import CollapseGuard, latent_health
from speech_tokenizers.training.codec.objectives import CodecObjective
from speech_tokenizers.training.common.recipe_files import check_names
from speech_tokenizers.training.recognition.ctc_targets import COLUMNS, UnusableText, check_column, learnable_labels


class LatentObjective(CodecObjective):
    """
    Noise and a report of the latents' health, with which every [`CSTModel`] is trained. The noise follows from a seed
    and a crop, whatever the number of processes.

    Args:
        args ([`LatentArguments`]): Limits at which to stop.
        seed (`int`): Seed for the noise.
    """

    loss_names: tuple[str, ...] = ()

    def __init__(self, args: LatentArguments, seed: int = 0):
        self.args, self.seed = args, seed
        self._reported: dict[str, torch.Tensor] = {}

    @property
    def reported(self) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]: the latents' health."""
        return self._reported

    def prepare(self, recordings: Any, model: Any, accelerator: Accelerator, folder: Path) -> None:
        """See [`CodecObjective`]."""
        self.hop_length, self.dim = model.hop_length, model.config.hidden_size
        self.bottleneck = model.bottleneck
        statistics = model.statistics
        normal_variance = float(statistics.variance.mean()) if statistics.frozen else None
        self.guard = CollapseGuard(self.args, self.dim, accelerator, normal_variance)

    def targets(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]: `noise` (num_frames, dim)."""
        generator = torch.Generator().manual_seed(hash((self.seed, recording, first_sample)) % 2**63)
        shape = (1, ceil_divide(num_samples, self.hop_length), self.dim)
        return {"noise": self.bottleneck.noise(shape, generator)[0]}

    def losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]. Has none, but reports and judges the latents."""
        self._reported = latent_health(outputs.raw_latents, outputs.audio_codes_mask)
        self.guard(self._reported)
        return {}


class CropLabels:
    """
    Labels of the words that lie wholly in a crop, and the seconds of it that are theirs.

    Args:
        labels ([`CTCLabels`]): Labels that the words are written in.
        texts (list): Texts of the recordings: for each a text, a list of [`TimedWord`], or `None`.
        seconds (list of `float`): Length of each recording.
    """

    def __init__(self, labels: CTCLabels, texts: list, seconds: list[float]):
        self.labels, self.texts, self.seconds = labels, texts, seconds

    def of_crop(self, recording: int, start: float, end: float) -> tuple[list[int], tuple[float, float]]:
        """
        Args:
            recording (`int`): Index of the recording.
            start, end (`float`): Ends of the crop, in seconds of the recording. The crop may end after the recording.

        Returns:
            The labels, none where they are not known, and the span in seconds of the crop.
        """
        text = self.texts[recording]
        if text is None:
            return [], (0.0, 0.0)
        if isinstance(text, str):
            is_whole = start <= 0 and end >= self.seconds[recording] - 1e-3
            return (self._write(text) if is_whole else []), (0.0, self.seconds[recording])
        inside = [
            k for k, word in enumerate(text) if word.start >= start and word.end <= end and word.end > word.start
        ]
        if not inside:
            return [], (0.0, 0.0)
        first, last = inside[0], inside[-1]
        # What lies between a word of the crop and one that the crop cuts is shared evenly.
        left = max(start, (text[first - 1].end + text[first].start) / 2) if first else start
        right = min(end, (text[last].end + text[last + 1].start) / 2) if last + 1 < len(text) else end
        right = min(right, self.seconds[recording])
        return self._write(" ".join(word.word for word in text[first : last + 1])), (left - start, right - start)

    def unusable(self, recording: int) -> tuple[int, list[str]]:
        """
        How many parts of a recording's text can be learnt, of which timed words are each one and a text without times
        is the only one; and why each of the others cannot.
        """
        text, reasons, num_usable = self.texts[recording], [], 0
        parts = [] if text is None else [text] if isinstance(text, str) else [word.word for word in text]
        for part in parts:
            if isinstance(text, str) or words_of(part):
                try:
                    learnable_labels(self.labels, part)
                    num_usable += 1
                except UnusableText as error:
                    reasons.append(f"what is said in it is not learnt: {error}")
        return num_usable, reasons

    def _write(self, text: str) -> list[int]:
        try:
            return learnable_labels(self.labels, text)
        except UnusableText:
            return []


def span_ctc_loss(
    logits: torch.Tensor, labels: torch.Tensor, spans: torch.Tensor, seconds: float, blank: int
) -> torch.Tensor:
    """
    CTC loss per label of the words in a part of each crop.

    Args:
        logits (`torch.Tensor` of shape `(batch, num_frames, num_labels)`): Logits, evenly spread over `seconds`.
        labels (`torch.Tensor` of shape `(batch, max_labels)`): Labels of each item, padded with -100.
        spans (`torch.Tensor` of shape `(batch, 2)`): First and last second of each part.
        seconds (`float`): Length of the crops.
        blank (`int`): Number of the blank label.

    Returns:
        Mean over the batch. An item without labels, or with more than its frames can write, adds 0, and the size of
        the batch stays the divisor, so that the mean over processes and accumulated batches is that over all.
    """
    num_frames = logits.shape[1]
    edges = (spans.to(logits.device) / seconds * num_frames).clamp(0, num_frames)
    starts, ends = edges[:, 0].floor().long(), edges[:, 1].ceil().long()
    counts = (labels >= 0).sum(-1)
    lengths = torch.where(counts > 0, ends - starts, 0)
    log_probs = logits.float().log_softmax(-1)
    log_probs = shift_steps(log_probs.transpose(1, 2), -starts).permute(2, 0, 1)  # (F, B, V)
    with torch.backends.cudnn.flags(enabled=False):
        losses = F.ctc_loss(
            log_probs, labels.clamp(min=0), lengths, counts, blank=blank, reduction="none", zero_infinity=True
        )
    return (losses * (counts > 0) / counts.clamp(min=1)).mean()


class RecognitionObjective(CodecObjective):
    """
    CTC losses on the latents, on the reconstruction, or on both, so that the speech can still be understood (Loss_ASR
    of arXiv 2410.17081).

    Args:
        args ([`RecognitionArguments`]): Settings of the losses.
    """

    def __init__(self, args: RecognitionArguments):
        self.args = args
        self.loss_names = (
            *(["latent_ctc"] if args.head else []),
            *(["reconstruction_ctc"] if args.recognizer is not None else []),
        )

    def prepare(self, recordings: Any, model: Any, accelerator: Accelerator, folder: Path) -> None:
        """See [`CodecObjective`]."""
        if not isinstance(recordings, DecodedRecordings):
            raise ValueError("Texts are learnt from decoded recordings; set `data.streaming=false`.")
        self.sampling_rate, self.hop_length = model.sampling_rate, model.hop_length
        vocabularies: dict[str, CTCLabels] = {}
        if self.args.head:
            if model.config.ctc_labels is None:
                raise ValueError(
                    "The model has no CTC head; give its labels as model.overrides.ctc_labels, or set"
                    " recognition.head=false."
                )
            vocabularies["latent"] = labels_of(model.config.ctc_labels, self.args.unit)
        self.recognizer = None
        if self.args.recognizer is not None:
            self.recognizer = FrozenRecognizer(self.args.recognizer, accelerator.device)
            if self.recognizer.sampling_rate != model.sampling_rate:
                raise ValueError(
                    f"The recogniser hears {self.recognizer.sampling_rate} Hz, but the model has"
                    f" {model.sampling_rate} Hz."
                )
            vocabularies["reconstruction"] = self.recognizer.labels
        self.blanks = {name: vocabulary.blank for name, vocabulary in vocabularies.items()}
        seconds = [len(recording) / model.sampling_rate for recording in recordings]
        self.crop_labels = {}
        for name, vocabulary in vocabularies.items():
            texts = self._texts(recordings, "phone" if vocabulary.is_phones else "character")
            self.crop_labels[name] = CropLabels(vocabulary, texts, seconds)
        self._tell_of_unusable_texts(recordings.names, folder, accelerator.is_main_process)

    def _tell_of_unusable_texts(self, names: list[str], folder: Path, is_main_process: bool) -> None:
        for kind, crop_labels in self.crop_labels.items():
            found = {name: crop_labels.unusable(index) for index, name in enumerate(names)}
            reasons = {name: reasons[0] for name, (_, reasons) in found.items() if reasons}
            if not any(num_usable for num_usable, _ in found.values()):
                first = next(iter(reasons.values()), "there is none")
                raise ValueError(f"No text is left to learn from; the first reason: {first}.")
            if reasons and is_main_process:
                path = folder / "rejected.jsonl"
                append_rejected(path, ({"name": name, "reason": why} for name, why in reasons.items()))
                tqdm.write(f"{kind}: texts of {len(reasons)} recordings were set aside; see {path}.", file=sys.stderr)

    def _texts(self, recordings: DecodedRecordings, unit: str) -> list:
        column = COLUMNS[unit] if self.args.column is None or unit != self.args.unit else self.args.column
        timed: dict[int, list[TimedWord]] = {}
        if self.args.word_times is not None and unit == "character":
            timed = read_word_times(Path(self.args.word_times), recordings.names)
        if column not in recordings.metadata.column_names and timed:
            return [timed.get(index) for index in range(len(recordings))]
        check_column(column, recordings.metadata)
        return [timed.get(index, as_text(text)) for index, text in enumerate(recordings.metadata[column][:])]

    def targets(self, recording: int, first_sample: int, num_samples: int) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]: `<kind>_ctc_labels` (num_labels,), padded with -100, and `<kind>_ctc_span` (2,)."""
        start = first_sample / self.sampling_rate
        seconds = num_samples / self.sampling_rate
        found = {}
        for name, crop_labels in self.crop_labels.items():
            labels, span = crop_labels.of_crop(recording, start, start + seconds)
            # More labels than 50 a second are no speech; all crops have tensors of one size.
            padded = torch.full((ceil_divide(50 * num_samples, self.sampling_rate),), -100)
            labels = labels if len(labels) <= len(padded) else []
            padded[: len(labels)] = torch.tensor(labels, dtype=torch.long)
            found |= {f"{name}_ctc_labels": padded, f"{name}_ctc_span": torch.tensor(span)}
        return found

    def losses(self, outputs: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See [`CodecObjective`]."""
        seconds = batch["input_values"].shape[-1] / self.sampling_rate
        logits = {}
        if self.args.head:
            # The last frame may reach beyond the crop.
            num_frames = outputs.ctc_logits.shape[1]
            logits["latent"] = outputs.ctc_logits, num_frames * self.hop_length / self.sampling_rate
        if self.recognizer is not None:
            logits["reconstruction"] = self.recognizer(outputs.audio_values[:, 0]), seconds
        return {
            f"{name}_ctc": span_ctc_loss(
                of_crops, batch[f"{name}_ctc_labels"], batch[f"{name}_ctc_span"], length, self.blanks[name]
            )
            for name, (of_crops, length) in logits.items()
        }


def labels_of(names: list[str], unit: str) -> CTCLabels:
    """
    The labels of a model's CTC head.

    Args:
        names (`list[str]`): Labels in `config.ctc_labels`, as [`new_cst`] makes them.
        unit (`str`): Unit of the labels: `"character"` or `"phone"`.

    Raises:
        ValueError: If they are no such labels.
    """
    tokenizer = tokenizer_of(names[3:], unit)
    are_single = unit == "phone" or all(len(name) == 1 for name in names[3:])
    if label_names(tokenizer) != list(names) or list(names[3:]) != sorted(names[3:]) or not are_single:
        raise ValueError(
            f"`ctc_labels` must be {label_names(tokenizer)[:3]} and then {unit}s in order, but are {names}."
        )
    return CTCLabels(tokenizer)


def label_names(tokenizer: Any) -> list[str]:
    """The vocabulary of a CTC tokenizer by number."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def trains_cst(args: CodecTrainingArguments) -> bool:
    """Whether a recipe trains a [`CSTModel`]."""
    if args.model.pretrained is None:
        return str(args.model.preset) in CST_PRESETS
    config = load_config(find_checkpoint(args.model.pretrained))
    return isinstance(config, CSTConfig)


def new_cst(args: CodecTrainingArguments) -> CSTModel:
    """An untrained model as a recipe describes it; the labels of its CTC head are those of the training texts."""
    overrides = dict(args.model.overrides)
    check_names(overrides, CSTConfig.__dataclass_fields__, "The field", "model.overrides.")
    recognition = args.recognition
    if recognition is not None and recognition.head and overrides.get("ctc_labels") is None:
        overrides["ctc_labels"] = label_names(build_tokenizer(_training_texts(args, recognition), recognition.unit))
    return CSTModel(CSTConfig.from_preset(str(args.model.preset), **overrides))


def _training_texts(args: CodecTrainingArguments, recognition: RecognitionArguments) -> list[str]:
    data = args.data
    if data.train is None:
        raise ValueError("`data.train` must name the training recordings; give it as data.train=PATH.")
    recordings = load_recordings(data.train, data.train_filter, data.train_files, data.train_split, data.audio_column)
    column = COLUMNS[recognition.unit] if recognition.column is None else recognition.column
    check_column(column, recordings)
    return [as_text(text) for text in recordings[column][:] if text is not None]


def cst_objectives(args: CodecTrainingArguments) -> list[LatentObjective | RecognitionObjective]:
    """Objectives that a recipe of a [`CSTModel`] trains for besides reconstruction."""
    objectives: list[LatentObjective | RecognitionObjective] = [LatentObjective(args.latents, args.seed)]
    if args.recognition is not None:
        objectives.append(RecognitionObjective(args.recognition))
    return objectives
