# SPDX-License-Identifier: Apache-2.0
"""
Pre-train HuBERT by masked prediction, in iterations: the first learns k-means of MFCC, each later one k-means of a
layer of the encoder before it, or the codes of any model.

After an interruption, the same command skips what is finished and continues at the newest checkpoint, with the results
of an uninterrupted run.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2FeatureExtractor, set_seed

from speech_tokenizers.coding.loading import load
from speech_tokenizers.modeling.configuration_hubert_masked_prediction import HubertMaskedPredictionConfig
from speech_tokenizers.modeling.modeling_hubert_masked_prediction import HubertForMaskedPrediction
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.recordings import DecodedRecordings
from speech_tokenizers.processing.whole_files import WholeFile, whole_folder
from speech_tokenizers.training.common.checkpoint_faults import checkpoint_fault, remove_damaged
from speech_tokenizers.training.common.data import check_shortest, decode_part
from speech_tokenizers.training.common.processes import process_state
from speech_tokenizers.training.common.recipe_files import check_names, check_not_negative, check_positive, load_recipe
from speech_tokenizers.training.common.recipe_trainer import (
    RecipeArguments,
    ScheduleArguments,
    claim_output,
    train_until_done,
)
from speech_tokenizers.training.common.run_record import RunRecord, fingerprint_of, recordings_named
from speech_tokenizers.training.common.set_aside import shorter_than, write_set_aside
from speech_tokenizers.training.units.kmeans import fit_kmeans
from speech_tokenizers.training.units.masked_prediction import (
    MaskedPredictionDataset,
    MaskedPredictionTrainer,
    least_samples,
)
from speech_tokenizers.training.units.mfcc import mfcc_features
from speech_tokenizers.training.units.pseudo_labels import (
    MIN_LABELLED_SECONDS,
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
    """
    What an iteration learns to predict.

    Args:
        kind (`str`): `"mfcc"`, k-means of MFCC; `"layer"`, k-means of a layer of an encoder; or `"codes"`, those of a
            model of the common interface, such as a codec.
        num_clusters (`int`): Number of clusters of the k-means.
        subtract_mean (`bool`): Subtract each recording's mean from its MFCC, so that labels tell less of its level and
            microphone, which a front end that normalises cannot hear. The paper does not.
        layer (`int`): Layer of the encoder, counted from 1.
        model (`str`, *optional*): Folder or Hub id of the encoder or of the model with codes. The encoder defaults to
            that of the iteration before.
        codebook (`int`): Index of the codebook, counted from 0.
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
        check_positive(self, "num_clusters", "fit_seconds", prefix="labels.")
        check_not_negative(self, "codebook", "layer", prefix="labels.")


@dataclass(kw_only=True)
class IterationArguments(ScheduleArguments):
    """
    One iteration.

    The learning rate rises from 0 to its peak and falls to 0 at the last step.

    Args:
        labels ([`LabelArguments`]): Labels to predict.
        start_from (`str`): `"scratch"`, as in the paper, or `"previous"`: the encoder of the iteration before, which
            saves steps where there are few.
        max_steps, learning_rate, warmup_steps: See [`ScheduleArguments`].
    """

    labels: LabelArguments
    learning_rate: float = 5e-4
    start_from: str = "scratch"

    def __post_init__(self):
        super().__post_init__()
        if self.start_from not in ("scratch", "previous"):
            raise ValueError(f"`start_from` must be 'scratch' or 'previous', but got {self.start_from!r}.")


@dataclass(kw_only=True)
class HubertPretrainingArguments(RecipeArguments):
    """
    A pre-training of HuBERT. Its folder gets one for each iteration, with its `encoder` and `training_log.jsonl`, the
    last encoder as `final`, and in `rejected.jsonl` the recordings that are set aside.

    Args:
        model (`dict`): Fields of the [`HubertMaskedPredictionConfig`].
        stem_init (`str`): Beginning of the convolutional front end: `"random"`, as published, or `"spectral"`; see
            [`init_spectral_stem`].
        iterations (`dict`): Iterations by name, in order.
        kwargs: See [`RecipeArguments`]. The seed is that of masks and k-means, too.
    """

    trainer: ClassVar[str] = "hubert"

    model: dict[str, Any]
    iterations: dict[str, IterationArguments]
    stem_init: str = "random"
    batch_seconds: float = 87.5
    epsilon: float = 1e-6
    max_grad_norm: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        if not self.iterations:
            raise ValueError("`iterations` must have at least one.")
        if self.stem_init not in ("random", "spectral"):
            raise ValueError(f"`stem_init` must be 'random' or 'spectral', but got {self.stem_init!r}.")
        first = next(iter(self.iterations.values()))
        if first.start_from == "previous" or (first.labels.kind == "layer" and first.labels.model is None):
            raise ValueError("The first iteration has none before it: give `labels.model`, and start from scratch.")


def load_pretraining_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> HubertPretrainingArguments:
    """
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
    """
    Run all iterations that are not finished.

    Args:
        args ([`HubertPretrainingArguments`]): The recipe.

    Returns:
        `Path`: The folder of the last encoder, `final`.

    Raises:
        ValueError: If the output folder belongs to another recipe, or there is nothing to learn from.
    """
    config = _check_model(args)
    inputs: dict[str, Any] = {"data.train": recordings_named(args.data)}
    for name, iteration in args.iterations.items():
        if iteration.labels.model is not None:
            inputs[f"iterations.{name}.labels.model"] = fingerprint_of(iteration.labels.model)
    output = Path(args.output_dir)
    finished = [
        f"iterations.{name}." for name in args.iterations if (output / name / "encoder" / "config.json").is_file()
    ]
    RunRecord(output, args, inputs, finished).check()  # before hours of speech are decoded for nothing
    recordings = decode_part(args.data, "train", 16000, args.cache_dir)
    claim_output(args, inputs, finished)
    least = least_samples(config, args.data.min_seconds, recordings.sampling_rate)
    too_short = shorter_than(recordings, least, "the training")
    write_set_aside(output / "rejected.jsonl", [*recordings.rejected, *too_short])
    previous = None
    for name, iteration in args.iterations.items():
        folder = output / name
        if not (folder / "encoder" / "config.json").is_file():
            run_iteration(args, name, iteration, config, recordings, folder, previous)
        previous = folder / "encoder"
        if (fault := checkpoint_fault(previous, ["config.json", "model.safetensors"])) is not None:
            raise ValueError(f"{previous}: {fault}; put a copy back, or delete that folder to make it anew.")
    assert previous is not None
    if process_state().is_main_process:
        with whole_folder(output / "final") as final:
            shutil.copytree(previous, final, dirs_exist_ok=True)
    return output / "final"


def _check_model(args: HubertPretrainingArguments) -> HubertMaskedPredictionConfig:
    # The configuration. What is wrong with it should not come out after hours.
    check_names(args.model, HubertMaskedPredictionConfig.__dataclass_fields__, "The field", "model.")
    try:
        config = HubertMaskedPredictionConfig(**args.model)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    for name, value in args.model.items():
        if name.endswith(("dropout", "layerdrop")) and not 0 <= value <= 1:
            raise ValueError(f"`model.{name}` must lie between 0 and 1, but got {value}.")
    try:
        with torch.device("meta"):
            model = HubertForMaskedPrediction(config)
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"`model` cannot be built from its sizes: {error}.") from error
    check_shortest(args.data, 16000, receptive_field(config))
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


def receptive_field(config: HubertMaskedPredictionConfig) -> int:
    """Number of samples that the first frame of the convolutional front end is computed from."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def run_iteration(
    args: HubertPretrainingArguments,
    name: str,
    iteration: IterationArguments,
    config: HubertMaskedPredictionConfig,
    recordings: DecodedRecordings,
    folder: Path,
    previous: Path | None,
) -> None:
    """
    Label the recordings, train, and save `encoder` in `folder`.

    Args:
        args ([`HubertPretrainingArguments`]): The recipe.
        name (`str`), iteration ([`IterationArguments`]): What to do.
        config ([`HubertMaskedPredictionConfig`]): Its number of labels is set here.
        recordings ([`DecodedRecordings`]): The data.
        folder (`Path`): Folder of the iteration.
        previous (`Path`, *optional*): The encoder of the iteration before.
    """
    processes = process_state()
    with processes.main_process_first():
        labeler = make_labeler(iteration.labels, recordings, folder / "labels", previous, args.seed)
        labels = label_all(recordings, labeler, folder / "labels", show_progress=processes.is_main_process)
    del labeler
    shares = labels.shares()
    if processes.is_main_process:
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
    feature_extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=sampling_rate, do_normalize=False, return_attention_mask=True
    )
    with whole_folder(folder / "encoder") as encoder:  # where it exists, the iteration is finished
        model.save_encoder(str(encoder))
        feature_extractor.save_pretrained(encoder)


def train_iteration(
    args: HubertPretrainingArguments,
    iteration: IterationArguments,
    model: HubertForMaskedPrediction,
    recordings: DecodedRecordings,
    labels: PseudoLabels,
    folder: Path,
) -> None:
    """
    Train a model from the newest checkpoint in `folder/checkpoints`, or from the beginning.

    Args:
        args ([`HubertPretrainingArguments`]), iteration ([`IterationArguments`]): The recipe.
        model ([`HubertForMaskedPrediction`]): The model to train.
        recordings ([`DecodedRecordings`]), labels ([`PseudoLabels`]): The data.
        folder (`Path`): Gets checkpoints, the log and the picture of losses.
    """
    dataset = MaskedPredictionDataset(
        recordings, labels, model.config, args.data.min_seconds, args.data.max_seconds, args.seed
    )
    trainer = MaskedPredictionTrainer(
        model,
        args.training_arguments(folder, iteration, lr_scheduler_type="linear", label_names=["labels"]),
        batch_length=round(args.batch_seconds * recordings.sampling_rate),
        train_dataset=dataset,
    )
    train_until_done(trainer, folder, ["masked_loss", "masked_accuracy", "unmasked_accuracy", "features_penalty"])


def make_labeler(
    args: LabelArguments, recordings: DecodedRecordings, folder: Path, previous: Path | None, seed: int
) -> Labeler:
    """
    What labels the recordings; its k-means is fitted where `folder` does not hold it yet.

    Args:
        args ([`LabelArguments`]): Labels of the iteration.
        recordings ([`DecodedRecordings`]): Recordings that k-means sees.
        folder (`Path`): Place of its centroids, or of its units as a [`KMeansUnitsModel`].
        previous (`Path`, *optional*): The encoder of the iteration before.
        seed (`int`): Seed of k-means.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if args.kind == "mfcc":
        path = folder / "mfcc_centroids.safetensors"
        remove_damaged(path, "this k-means is fitted anew, to the same result")
        if not path.is_file():
            with WholeFile(path) as temporary:
                save_file({"centroids": fit_mfcc(args, recordings, seed)}, temporary)
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
    parts, left = [], float("inf") if args.fit_seconds is None else args.fit_seconds
    for index in np.random.default_rng(seed).permutation(len(recordings)):
        recording = recordings[int(index)]
        if left > 0 and len(recording) >= MIN_LABELLED_SECONDS * recordings.sampling_rate:
            features = mfcc_features(as_float(recording), recordings.sampling_rate, args.subtract_mean)
            parts.append(np.asarray(features))
            left -= len(recording) / recordings.sampling_rate
    return fit_kmeans(np.concatenate(parts), args.num_clusters, seed=seed, description="k-means of MFCC").centroids


def run_recipe(path_or_name: str, overrides: Sequence[str]) -> str:
    """Pre-train by a recipe; returns what the command `train` prints."""
    return f"the encoder: {pretrain(load_pretraining_recipe(path_or_name, overrides))}"
