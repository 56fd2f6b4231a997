# SPDX-License-Identifier: Apache-2.0
"""
Pre-train HuBERT by masked prediction, in iterations: the first learns k-means of MFCC, each later one k-means of a
layer of the encoder before it, or the codes of any model.

What is finished is not done again: the same command goes on after a kill, at the newest checkpoint, as if it had not
been stopped.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments, Wav2Vec2FeatureExtractor, set_seed

from speech_tokenizers.coding.loading import load
from speech_tokenizers.modeling.configuration_hubert_masked_prediction import HubertMaskedPredictionConfig
from speech_tokenizers.modeling.modeling_hubert_masked_prediction import HubertForMaskedPrediction
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.recordings import DecodedRecordings, decode_all, load_recordings
from speech_tokenizers.training.common.data import PretrainingDataArguments
from speech_tokenizers.training.common.processes import leave_together, process_state
from speech_tokenizers.training.common.recipe_files import check_names, keep_recipe, load_recipe
from speech_tokenizers.training.common.recipe_trainer import JsonLinesCallback, newest_checkpoint, step_of
from speech_tokenizers.training.common.reporting import draw_loss_curves, has_matplotlib
from speech_tokenizers.training.units.kmeans import fit_kmeans
from speech_tokenizers.training.units.masked_prediction import MaskedPredictionDataset, MaskedPredictionTrainer
from speech_tokenizers.training.units.mfcc import mfcc_features
from speech_tokenizers.training.units.pseudo_labels import (
    Labeler,
    MfccLabeler,
    PseudoLabels,
    TokenLabeler,
    as_float,
    label_all,
)
from speech_tokenizers.training.units.spectral_stem import check_spectral_stem, init_spectral_stem
from speech_tokenizers.training.units.units_fitting import fit_on_recordings, save_units


@dataclass
class LabelArguments:
    r"""
    What an iteration learns to predict.

    Args:
        kind (`str`): `"mfcc"`, k-means of MFCC; `"layer"`, k-means of a layer of an encoder; or `"codes"`, those of a
            model of the common interface, such as a codec.
        num_clusters (`int`): Of the k-means.
        subtract_mean (`bool`): Of MFCC, whether each recording's mean is taken off, so that labels tell less of its
            level and microphone, which a front end that normalises cannot hear. The paper does not.
        layer (`int`): Of the encoder, counted from 1.
        model (`str`, *optional*): Folder or Hub id of the encoder or of the model with codes. The encoder defaults to
            that of the iteration before.
        codebook (`int`): Which of the codes, counted from 0.
        fit_seconds (`float`, *optional*): Audio that the k-means sees, drawn at random. Defaults to all.
    """

    kind: str
    num_clusters: int = 100
    subtract_mean: bool = False
    layer: int = 6
    model: str | None = None
    codebook: int = 0
    fit_seconds: float | None = None

    def __post_init__(self):
        if self.kind not in ("mfcc", "layer", "codes"):
            raise ValueError(f"`labels.kind` must be 'mfcc', 'layer' or 'codes', but got {self.kind!r}.")
        if self.kind == "codes" and self.model is None:
            raise ValueError("`labels.kind=codes` needs `labels.model`, whose codes they are.")
        if self.subtract_mean and self.kind != "mfcc":
            raise ValueError(f"`labels.subtract_mean` is of MFCC, but `labels.kind` is {self.kind!r}.")


@dataclass
class IterationArguments:
    r"""
    One iteration.

    Args:
        labels ([`LabelArguments`]): What is predicted.
        max_steps (`int`): Optimizer steps.
        learning_rate (`float`): Its peak; it rises from 0 over `warmup_steps` and falls to 0 at the last step.
        warmup_steps (`int`): See above.
        start_from (`str`): `"scratch"`, as in the paper, or `"previous"`: the encoder of the iteration before, which
            saves steps where there are few.
    """

    labels: LabelArguments
    max_steps: int
    learning_rate: float = 5e-4
    warmup_steps: int = 0
    start_from: str = "scratch"

    def __post_init__(self):
        if self.start_from not in ("scratch", "previous"):
            raise ValueError(f"`start_from` must be 'scratch' or 'previous', but got {self.start_from!r}.")
        if self.max_steps < 1:
            raise ValueError(f"`max_steps` must be at least 1, but got {self.max_steps}.")


@dataclass
class HubertPretrainingArguments:
    r"""
    A pre-training of HuBERT.

    Args:
        output_dir (`str`): Gets a folder for each iteration, with its `encoder` and `training_log.jsonl`, and the last
            encoder as `final`.
        model (`dict`): Fields of the [`HubertMaskedPredictionConfig`].
        data ([`PretrainingDataArguments`]): The recordings.
        stem_init (`str`): How the convolutional front end begins: `"random"`, as published, or `"spectral"`; see
            [`init_spectral_stem`].
        iterations (`dict`): By name, in order.
        batch_seconds (`float`): Audio of a micro-batch, with padding, of one process.
        gradient_accumulation_steps (`int`): Micro-batches a step and process.
        betas (`list` of two `float`), epsilon (`float`), weight_decay (`float`): Of AdamW.
        max_grad_norm (`float`): Longer gradients are scaled down to this norm.
        mixed_precision (`str`, *optional*): `"bf16"` or `"fp16"`.
        seed (`int`): Of weights, data, masks and k-means.
        logging_steps, save_steps (`int`): Intervals of the log and of checkpoints.
        save_total_limit (`int`): Checkpoints to keep.
        num_workers (`int`): Processes that prepare batches. Batches do not depend on it.
    """

    output_dir: str
    model: dict[str, Any]
    data: PretrainingDataArguments
    iterations: dict[str, IterationArguments]
    stem_init: str = "random"
    batch_seconds: float = 87.5
    gradient_accumulation_steps: int = 1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 10.0
    mixed_precision: str | None = None
    seed: int = 0
    logging_steps: int = 50
    save_steps: int = 500
    save_total_limit: int = 2
    num_workers: int = 0

    def __post_init__(self):
        if not self.iterations:
            raise ValueError("`iterations` must have at least one.")
        if self.stem_init not in ("random", "spectral"):
            raise ValueError(f"`stem_init` must be 'random' or 'spectral', but got {self.stem_init!r}.")
        if self.batch_seconds < self.data.max_seconds:
            raise ValueError(
                f"`batch_seconds` ({self.batch_seconds}) must hold a recording of `data.max_seconds`"
                f" ({self.data.max_seconds})."
            )
        first = next(iter(self.iterations.values()))
        if first.start_from == "previous" or (first.labels.kind == "layer" and first.labels.model is None):
            raise ValueError("The first iteration has none before it: give `labels.model`, and start from scratch.")


def load_pretraining_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> HubertPretrainingArguments:
    r"""
    Read a recipe of pre-training and change some of it.

    Args:
        path_or_name (`str`): A YAML file, or the name of a recipe of this package, such as `hubert_small_16khz`.
        overrides (sequence of `str`): `key=value` pairs; dots lead into sections
            (`iterations.second.max_steps=100`), values are YAML.

    Raises:
        ValueError: If the recipe does not exist, or a key is unknown or has a value of the wrong type.
    """
    return load_recipe(path_or_name, overrides, HubertPretrainingArguments)


def pretrain(args: HubertPretrainingArguments) -> Path:
    r"""
    Run all iterations that are not finished.

    Args:
        args ([`HubertPretrainingArguments`]): The recipe.

    Returns:
        `Path`: The folder of the last encoder, `final`.

    Raises:
        ValueError: If the output folder belongs to another recipe, or there is nothing to learn from.
    """
    output = Path(args.output_dir)
    config = _check_model(args)
    data = args.data
    processes = process_state()
    with processes.main_process_first():
        recordings = decode_all(
            load_recordings(data.train, data.train_filter, data.train_files, data.train_split, data.audio_column),
            16000,
            data.cache_dir or output / "audio_cache",
            processes.is_main_process,
        )
    output.mkdir(parents=True, exist_ok=True)
    keep_recipe(output / "recipe.yaml", args)  # not before: what could not begin may begin otherwise
    print(f"{len(recordings)} recordings, {recordings.seconds / 3600:.2f} h", file=sys.stderr)
    previous = None
    for name, iteration in args.iterations.items():
        folder = output / name
        if not (folder / "encoder" / "config.json").is_file():
            run_iteration(args, name, iteration, config, recordings, folder, previous)
        previous = folder / "encoder"
    assert previous is not None
    if processes.is_main_process:
        shutil.copytree(previous, output / "final", dirs_exist_ok=True)
    return output / "final"


def _check_model(args: HubertPretrainingArguments) -> HubertMaskedPredictionConfig:
    # The configuration. What is wrong with it should not come out after hours.
    check_names(args.model, HubertMaskedPredictionConfig.__dataclass_fields__, "The field", "model.")
    try:
        config = HubertMaskedPredictionConfig(**args.model)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    with torch.device("meta"):
        model = HubertForMaskedPrediction(config)
    if args.stem_init == "spectral":
        check_spectral_stem(model.hubert.feature_extractor)
    for name, iteration in args.iterations.items():
        labels = iteration.labels
        if labels.kind == "layer" and labels.model is None and not 0 <= labels.layer <= config.num_hidden_layers:
            raise ValueError(
                f"`iterations.{name}.labels.layer` must lie between 0 and {config.num_hidden_layers}, the model's"
                f" layers, but got {labels.layer}."
            )
    return config


def run_iteration(
    args: HubertPretrainingArguments,
    name: str,
    iteration: IterationArguments,
    config: HubertMaskedPredictionConfig,
    recordings: DecodedRecordings,
    folder: Path,
    previous: Path | None,
) -> None:
    r"""
    Label the recordings, train, and save `encoder` in `folder`.

    Args:
        args ([`HubertPretrainingArguments`]): The recipe.
        name (`str`), iteration ([`IterationArguments`]): What to do.
        config ([`HubertMaskedPredictionConfig`]): Its number of labels is set here.
        recordings ([`DecodedRecordings`]): The data.
        folder (`Path`): Of the iteration.
        previous (`Path`, *optional*): The encoder of the iteration before.
    """
    processes = process_state()
    with processes.main_process_first():
        labeler = make_labeler(iteration.labels, recordings, folder / "labels", previous, args.seed)
        labels = label_all(recordings, labeler, folder / "labels", show_progress=processes.is_main_process)
    del labeler
    shares = labels.shares()
    print(
        f"{name}: {labels.num_labels} labels at {labels.label_rate:g} Hz, {(shares > 0).sum()} used; "
        f"the most frequent has {100 * shares.max():.1f} %",
        file=sys.stderr,
    )
    config = HubertMaskedPredictionConfig.from_dict({**config.to_dict(), "label_vocab_size": labels.num_labels})
    set_seed(args.seed)
    model = HubertForMaskedPrediction(config)
    if iteration.start_from == "previous":
        model.hubert.load_state_dict(load_file(previous / "model.safetensors"))
    elif args.stem_init == "spectral":
        init_spectral_stem(model.hubert.feature_extractor, recordings.sampling_rate)
    train_iteration(args, iteration, model, recordings, labels, folder)
    if processes.is_main_process:
        _save_encoder(model, recordings.sampling_rate, folder)
    processes.wait_for_everyone()


def _save_encoder(model: HubertForMaskedPrediction, sampling_rate: int, folder: Path) -> None:
    temporary = folder / ".encoder.incomplete"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_encoder(str(temporary))
    feature_extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=sampling_rate, do_normalize=False, return_attention_mask=True
    )
    feature_extractor.save_pretrained(temporary)
    # Whole or not at all: where the folder exists, the iteration is finished.
    os.replace(temporary, folder / "encoder")


def train_iteration(
    args: HubertPretrainingArguments,
    iteration: IterationArguments,
    model: HubertForMaskedPrediction,
    recordings: DecodedRecordings,
    labels: PseudoLabels,
    folder: Path,
) -> Trainer:
    r"""
    Train a model from the newest checkpoint in `folder/checkpoints`, or from the beginning.

    Args:
        args ([`HubertPretrainingArguments`]), iteration ([`IterationArguments`]): The recipe.
        model ([`HubertForMaskedPrediction`]): What is trained.
        recordings ([`DecodedRecordings`]), labels ([`PseudoLabels`]): The data.
        folder (`Path`): Gets checkpoints, the log and the picture of losses.
    """
    dataset = MaskedPredictionDataset(
        recordings, labels, model.config, args.data.min_seconds, args.data.max_seconds, args.seed
    )
    checkpoint = newest_checkpoint(folder / "checkpoints")
    log_path = folder / "training_log.jsonl"
    trainer = MaskedPredictionTrainer(
        model,
        TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            max_steps=iteration.max_steps,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            learning_rate=iteration.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=iteration.warmup_steps,
            adam_beta1=args.betas[0],
            adam_beta2=args.betas[1],
            adam_epsilon=args.epsilon,
            weight_decay=args.weight_decay,
            max_grad_norm=args.max_grad_norm,
            bf16=args.mixed_precision == "bf16",
            fp16=args.mixed_precision == "fp16",
            logging_steps=args.logging_steps,
            logging_first_step=True,
            save_steps=args.save_steps,
            save_total_limit=args.save_total_limit,
            seed=args.seed,
            dataloader_num_workers=args.num_workers,
            remove_unused_columns=False,
            label_names=["labels"],
            report_to="none",
        ),
        batch_samples=round(args.batch_seconds * recordings.sampling_rate),
        train_dataset=dataset,
        callbacks=[JsonLinesCallback(log_path, 0 if checkpoint is None else step_of(checkpoint))],
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.is_world_process_zero() and has_matplotlib():
        names = ["masked_loss", "masked_accuracy", "unmasked_accuracy", "features_penalty"]
        draw_loss_curves(log_path, folder / "loss_curves.png", names)
    return trainer


def make_labeler(
    args: LabelArguments, recordings: DecodedRecordings, folder: Path, previous: Path | None, seed: int
) -> Labeler:
    r"""
    What labels the recordings; its k-means is fitted where `folder` does not hold it yet.

    Args:
        args ([`LabelArguments`]): Of the iteration.
        recordings ([`DecodedRecordings`]): What k-means sees.
        folder (`Path`): Where its centroids, or its units as a [`KMeansUnitsModel`], are kept.
        previous (`Path`, *optional*): The encoder of the iteration before.
        seed (`int`): Of k-means.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if args.kind == "mfcc":
        path = folder / "mfcc_centroids.safetensors"
        if not path.is_file():
            temporary = path.with_suffix(f".tmp-{os.getpid()}")
            save_file({"centroids": fit_mfcc(args, recordings, seed)}, temporary)
            os.replace(temporary, path)
        return MfccLabeler(load_file(path)["centroids"], recordings.sampling_rate, args.subtract_mean)
    if args.kind == "codes":
        model, feature_extractor = load(args.model)
        return TokenLabeler(model, recordings.sampling_rate, args.codebook, feature_extractor=feature_extractor)
    units = folder / "units"
    if not (units / "config.json").is_file():
        model = KMeansUnitsModel.from_encoder(
            str(args.model or previous), layers=[args.layer], codebook_size=args.num_clusters, window="tight"
        )
        cache = folder / "frames"
        [(fitted, fit)] = fit_on_recordings(model, recordings, cache, None, args.fit_seconds, seed=seed)
        save_units(fitted, fit, units, seed=seed, layers=[args.layer])
        shutil.rmtree(cache)
    return TokenLabeler(KMeansUnitsModel.from_pretrained(units), recordings.sampling_rate, codebook=0)


def fit_mfcc(args: LabelArguments, recordings: DecodedRecordings, seed: int) -> torch.Tensor:
    """Centroids `(num_clusters, 39)` of the MFCC of recordings drawn at random, `args.fit_seconds` of them in all."""
    parts, left = [], args.fit_seconds or float("inf")
    for index in np.random.default_rng(seed).permutation(len(recordings)):
        recording = recordings[int(index)]
        if left > 0 and len(recording) >= 0.1 * recordings.sampling_rate:
            features = mfcc_features(as_float(recording), recordings.sampling_rate, args.subtract_mean)
            parts.append(np.asarray(features))
            left -= len(recording) / recordings.sampling_rate
    return fit_kmeans(np.concatenate(parts), args.num_clusters, seed=seed, description="k-means of MFCC").centroids


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of this installation")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from the recipe")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    try:
        final = pretrain(load_pretraining_recipe(args.recipe, args.overrides))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"the encoder: {final}")
    leave_together()
    return 0
