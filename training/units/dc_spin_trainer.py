# SPDX-License-Identifier: Apache-2.0
"""
Train DC-Spin or Spin units on a speech encoder: its top layers and codebooks learn to give a recording and the same
in another voice the same units.

The recipe is that of Spin's code (Chang et al. 2023, https://huggingface.co/papers/2305.11072), also for DC-Spin,
whose own is not public. After an interruption, the same command continues at the newest checkpoint, with the result of
an uninterrupted run.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainerCallback, set_seed

from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.processing.feature_extraction_dc_spin import DCSpinFeatureExtractor
from speech_tokenizers.processing.speaker_perturbation import SpeakerPerturbation
from speech_tokenizers.processing.whole_files import whole_folder
from speech_tokenizers.training.common.data import check_shortest, decode_part
from speech_tokenizers.training.common.hub_pushes import HubPushes, HubSettings, PushCallback
from speech_tokenizers.training.common.processes import process_state
from speech_tokenizers.training.common.recipe_files import check_names, check_positive, load_recipe
from speech_tokenizers.training.common.recipe_trainer import (
    RecipeTrainer,
    ScheduledRecipeArguments,
    claim_output,
    train_until_done,
)
from speech_tokenizers.training.common.run_record import RunRecord, fingerprint_of, recordings_named
from speech_tokenizers.training.common.set_aside import shorter_than, write_set_aside
from speech_tokenizers.training.units.perturbed_views import PerturbedViewsDataset, pad_views


@dataclass
class PerturbationArguments:
    """
    How voices are changed; see [`SpeakerPerturbation`] for all of it.

    Args:
        formant_ratio, f0_ratio, f0_range_ratio (`list` of two `float`, *optional*): Bounds; `null` switches a part
            off. For tone languages both of the fundamental frequency should be off.
        equalizer (`bool`): Change the spectrum by an equalizer, too.
        noise_snr (`list` of two `float`, *optional*): Bounds in dB of noise to add; `null` adds none, as in Spin.
        backend (`str`): `"psola"`, or `"praat"` with the extra of that name.
        f0_floor, f0_ceiling (`float`): Bounds of the fundamental frequency, in Hz.
    """

    formant_ratio: list[float] | None = field(default_factory=lambda: [1.0, 1.4])
    f0_ratio: list[float] | None = field(default_factory=lambda: [1.0, 2.0])
    f0_range_ratio: list[float] | None = field(default_factory=lambda: [1.0, 1.5])
    equalizer: bool = True
    noise_snr: list[float] | None = None
    backend: str = "psola"
    f0_floor: float = 60.0
    f0_ceiling: float = 500.0


@dataclass(kw_only=True)
class DCSpinTrainingArguments(HubSettings, ScheduledRecipeArguments):
    """
    A training of units. The defaults are those of Spin's code. The folder gets `checkpoints`, `training_log.jsonl`,
    `loss_curves.png` and, as `final`, the model.

    Args:
        model (`dict`): `encoder`, folder or Hub id of the speech encoder to start from (also one that was fine-tuned
            by CTC), and fields of the [`DCSpinConfig`].
        perturbation ([`PerturbationArguments`]): The other voice.
        batch_seconds (`float`): Audio of a micro-batch with padding, over all processes, which share each of them. Its
            frames are the ones that use all codes equally, so that it should hold many more of them than there are
            codes.
        initial_learning_rate, final_learning_rate (`float`): Learning rates of the first and of the last step; see
            [`warmup_decay_rate`].
        betas (`list` of two `float`), epsilon (`float`), weight_decay (`float`): Settings of Adam. The decay is part
            of the gradient, other than in AdamW.
        kwargs: See [`ScheduledRecipeArguments`]. The seed is that of codes and voices, too. `num_workers` matters:
            changing voices is most of the work of preparing batches.
    """

    trainer: ClassVar[str] = "dc_spin"

    model: dict[str, Any]
    perturbation: PerturbationArguments = field(default_factory=PerturbationArguments)
    max_steps: int = 5000
    learning_rate: float = 1e-4
    initial_learning_rate: float = 1e-6
    final_learning_rate: float = 1e-6
    warmup_steps: int = 2500
    batch_seconds: float = 256.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 1e-6
    max_grad_norm: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "initial_learning_rate", "final_learning_rate")
        if not isinstance(self.model.get("encoder"), str):
            raise ValueError("The recipe lacks `model.encoder`, folder or Hub id of a speech encoder, in quotes.")
        known = {"encoder", *DCSpinConfig.__dataclass_fields__} - {"encoder_config", "vocoder_config"}
        check_names(self.model, known, "The recipe's key", "model.")


def warmup_decay_rate(
    step: int, learning_rate: float, warmup_steps: int, max_steps: int, initial_rate: float, final_rate: float
) -> float:
    """
    The learning rate of a step, counted from 0: a straight line from `initial_rate` to `learning_rate` at
    `warmup_steps`, and another one to `final_rate` at the last step.
    """
    if step <= warmup_steps and warmup_steps > 0:
        return initial_rate + (learning_rate - initial_rate) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps - 1)
    return learning_rate + (final_rate - learning_rate) * min(1.0, progress)


class NormalizeCodebooksCallback(TrainerCallback):
    """
    Gives all codes unit length between the backward pass and the update, as Spin's code does.

    There it happens before the backward pass, to weights that this still needs, and works in half precision alone,
    where the pass has a copy of them.

    Args:
        model ([`DCSpinModel`]): Not wrapped.
    """

    def __init__(self, model: DCSpinModel):
        self.model = model

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Called by the `Trainer`."""
        self.model.normalize_codebooks()


# What is logged besides the loss, for each codebook.
_MEASURES = ("swapped_prediction_loss", "accuracy", "code_perplexity", "probability_perplexity")


class DCSpinTrainer(RecipeTrainer):
    """
    [`RecipeTrainer`] of a [`DCSpinModel`]. All processes share each micro-batch, whose frames use the codes equally.

    Args:
        model ([`DCSpinModel`]): The model to train.
        args ([`DCSpinTrainingArguments`]): Settings.
        train_dataset ([`PerturbedViewsDataset`]): The recordings.
        kwargs: Further arguments of the `Trainer`.
    """

    def __init__(
        self, model: DCSpinModel, args: DCSpinTrainingArguments, train_dataset: PerturbedViewsDataset, **kwargs: Any
    ):
        self.recipe = args
        super().__init__(
            model,
            args.training_arguments(Path(args.output_dir), args),
            batch_length=round(args.batch_seconds * train_dataset.recordings.sampling_rate),
            batches={"share_batches": True, "drop_incomplete": True},
            data_collator=pad_views,
            train_dataset=train_dataset,
            **kwargs,
        )
        self.add_callback(NormalizeCodebooksCallback(model))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Adam over all that is trained."""
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(
                [parameter for parameter in self.model.parameters() if parameter.requires_grad],
                lr=self.recipe.learning_rate,
                betas=(self.recipe.betas[0], self.recipe.betas[1]),
                eps=self.recipe.epsilon,
                weight_decay=self.recipe.weight_decay,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """See [`warmup_decay_rate`]."""
        if self.lr_scheduler is None:
            recipe = self.recipe
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                lambda step: (
                    warmup_decay_rate(
                        step,
                        recipe.learning_rate,
                        recipe.warmup_steps,
                        num_training_steps,
                        recipe.initial_learning_rate,
                        recipe.final_learning_rate,
                    )
                    / recipe.learning_rate
                ),
            )
        return self.lr_scheduler

    def measures(self, outputs: Any, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, int | None]]:
        """Means of `_MEASURES` over micro-batches, for each codebook, and the speed."""
        names = [f"{codebook}_{measure}" for codebook in ("primary", "auxiliary") for measure in _MEASURES]
        found: dict[str, tuple[torch.Tensor, int | None]] = {
            name: (outputs[name], 1) for name in names if outputs.get(name) is not None
        }
        seconds = inputs["padding_mask"].sum() / self.train_dataset.recordings.sampling_rate
        return {**found, "audio_seconds_per_second": (seconds, None)}


def train_dc_spin(args: DCSpinTrainingArguments) -> Path:
    """
    Train by a recipe, from the newest checkpoint in `args.output_dir` or from the beginning.

    Args:
        args ([`DCSpinTrainingArguments`]): The recipe.

    Returns:
        `Path`: The folder of the model and its feature extractor, `final`.

    Raises:
        ValueError: If the output folder belongs to another recipe, a setting is wrong, or there is nothing to learn
            from.
    """
    output = Path(args.output_dir)
    final = output / "final"
    inputs = {"model.encoder": fingerprint_of(args.model["encoder"]), "data.train": recordings_named(args.data)}
    if (final / "config.json").is_file():
        claim_output(args, inputs, finished=("",))
        return final
    model = build_model(args)
    perturbation = SpeakerPerturbation(**dataclasses.asdict(args.perturbation), sampling_rate=model.sampling_rate)
    RunRecord(output, args, inputs).check()  # before hours of speech are decoded for nothing
    pushes = HubPushes(args, output)
    recordings = decode_part(args.data, "train", model.sampling_rate, args.cache_dir)
    claim_output(args, inputs)
    too_short = shorter_than(recordings, args.data.min_seconds * model.sampling_rate, "the training")
    write_set_aside(output / "rejected.jsonl", [*recordings.rejected, *too_short])
    feature_extractor = DCSpinFeatureExtractor(sampling_rate=model.sampling_rate)
    trainer = DCSpinTrainer(
        model,
        args,
        PerturbedViewsDataset(recordings, perturbation, args.data.min_seconds, args.data.max_seconds, args.seed),
        processing_class=feature_extractor,  # saved with each checkpoint
    )
    curves = [f"{codebook}_{name}" for codebook in ("primary", "auxiliary") for name in _MEASURES[:3]]
    trainer.add_callback(PushCallback(pushes, trainer, feature_extractor))
    train_until_done(trainer, output, ["loss", *curves])
    processes = process_state()
    if processes.is_main_process:
        # The last update has moved the codes off unit length a little.
        model.normalize_codebooks()
        with whole_folder(final) as folder:  # where it exists, the training is finished
            model.eval().save_pretrained(folder)
            feature_extractor.save_pretrained(folder)
    pushes.finish(final)
    processes.wait_for_everyone()
    return final


def build_model(args: DCSpinTrainingArguments) -> DCSpinModel:
    """
    The encoder with new codebooks.

    Raises:
        ValueError: If the encoder does not fit the fields, or cannot hear `data.max_seconds` at once.
    """
    set_seed(args.seed)
    fields = {name: value for name, value in args.model.items() if name != "encoder"}
    try:
        model = DCSpinModel.from_encoder(args.model["encoder"], **fields)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    check_shortest(args.data, model.sampling_rate, model.shortest_input)
    if model.longest_input is not None and args.data.max_seconds * model.sampling_rate > model.longest_input:
        raise ValueError(
            f"`data.max_seconds` ({args.data.max_seconds}) is more than the encoder hears at once,"
            f" {model.longest_input / model.sampling_rate:g} s."
        )
    return model


def run_recipe(path_or_name: str, overrides: Sequence[str]) -> str:
    """Train by a recipe; returns what the command `train` prints."""
    return f"the units: {train_dc_spin(load_recipe(path_or_name, overrides, DCSpinTrainingArguments))}"
