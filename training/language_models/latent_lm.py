# SPDX-License-Identifier: Apache-2.0
"""
Train a small language model on the continuous tokens of speech, once with each of several heads, and compare them on
held-out speech.

After an interruption, the same command skips what is finished and continues at the newest checkpoint, with the results
of an uninterrupted run.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import set_seed

from speech_tokenizers.coding.loading import load
from speech_tokenizers.modeling.configuration_latent_lm import LatentLMConfig
from speech_tokenizers.modeling.continuous_heads import build_head
from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel
from speech_tokenizers.processing.whole_files import whole_folder, write_whole
from speech_tokenizers.training.common.checkpoint_faults import file_fault
from speech_tokenizers.training.common.data import EvaluatedRecordingsArguments, decode_part
from speech_tokenizers.training.common.hub_pushes import HubPushes, HubSettings, PushCallback
from speech_tokenizers.training.common.processes import process_state
from speech_tokenizers.training.common.recipe_files import check_not_negative, check_positive, load_recipe
from speech_tokenizers.training.common.recipe_trainer import (
    RecipeTrainer,
    ScheduledRecipeArguments,
    claim_output,
    train_until_done,
)
from speech_tokenizers.training.common.run_record import RunRecord, fingerprint_of, recordings_named
from speech_tokenizers.training.common.set_aside import shorter_than, write_set_aside
from speech_tokenizers.training.language_models.latent_prediction import (
    generation_milliseconds,
    judge,
    write_continuations,
)
from speech_tokenizers.training.units.pseudo_labels import MIN_LABELLED_SECONDS, PseudoLabels, TokenLabeler, label_all


@dataclass(kw_only=True)
class LatentDataArguments(EvaluatedRecordingsArguments):
    """Where the recordings are; see [`EvaluatedRecordingsArguments`]. The latents are kept beside decoded audio."""

    max_seconds: float = 10.0


@dataclass
class ContinuationArguments:
    """
    What is drawn in the end.

    Args:
        count (`int`): Held-out recordings to go on after.
        prompt_seconds (`float`), seconds (`float`): Lengths of the beginning and of what follows.
        temperature (`float`), cfg_scale (`float`): See [`ContinuousHead.sample`].
    """

    count: int = 4
    prompt_seconds: float = 2.0
    seconds: float = 3.0
    temperature: float = 1.0
    cfg_scale: float = 1.0

    def __post_init__(self):
        check_positive(self, "prompt_seconds", "seconds", prefix="continuations.")
        check_not_negative(self, "count", "temperature", "cfg_scale", prefix="continuations.")


@dataclass(kw_only=True)
class LatentLMArguments(HubSettings, ScheduledRecipeArguments):
    """
    A training of a language model on continuous tokens. The learning rate rises to its peak and falls as a cosine.

    The folder gets one for each head, with `final`, `results.json`, `training_log.jsonl` and `continuations`, and the
    table of all, `results.md`. On the Hub, each of several heads has a repository of its own, `hub_model_id` with the
    head's name.

    Args:
        model (`str`): Name, folder or Hub id of the model whose `latents` are the tokens: continuous tokens, or a
            codec's latents before its quantizer.
        heads (`dict`): By name, the options of each head's class, with `kind` where the name is not that of the kind.
        language_model (`dict`): Configuration of the transformer with its `model_type`. Defaults to
            [`LatentLMConfig`]'s.
        input_noise_std, stop_loss_weight, stop_pos_weight (`float`): See [`LatentLMConfig`].
        continuations ([`ContinuationArguments`]): Speech to listen to in the end.
        num_draws (`int`): Draws of each frame for the held-out score.
        kwargs: See [`ScheduledRecipeArguments`] and [`HubSettings`]. `max_steps` are those of each head; the seed is
            that of draws, too.
    """

    trainer: ClassVar[str] = "latent_lm"

    data: LatentDataArguments
    model: str
    heads: dict[str, dict[str, Any]]
    language_model: dict[str, Any] = field(default_factory=dict)
    input_noise_std: float = 0.0
    stop_loss_weight: float = 1.0
    stop_pos_weight: float = 10.0
    continuations: ContinuationArguments = field(default_factory=ContinuationArguments)
    num_draws: int = 8
    max_steps: int = 2000
    learning_rate: float = 1e-3
    warmup_steps: int = 100

    def __post_init__(self):
        super().__post_init__()
        check_not_negative(self, "input_noise_std", "stop_loss_weight", "stop_pos_weight")
        if not self.heads:
            raise ValueError("`heads` must name at least one.")
        for name in self.heads:
            # Wrong ones are found before the latents are computed.
            kind, options = kind_and_options(name, self.heads[name])
            with torch.device("meta"):
                build_head(kind, 8, 8, **options)
        if self.num_draws < 2:
            raise ValueError(f"`num_draws` must be at least 2, but got {self.num_draws}.")


def kind_and_options(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What [`build_head`] needs of a head in `LatentLMArguments.heads`."""
    return options.get("kind", name), {key: value for key, value in options.items() if key != "kind"}


class LatentDataset(torch.utils.data.Dataset):
    """
    Latents of recordings, or of parts of long ones.

    An item depends on the seed and its index only. Indices beyond the length belong to later epochs, as a
    [`LengthBatchSampler`] gives them.

    Args:
        latents ([`PseudoLabels`]): Latents of each recording.
        min_seconds, max_seconds (`float`): See [`LatentDataArguments`].
        seed (`int`): Seed of the parts.

    Attributes:
        lengths (`np.ndarray` of shape `(len(dataset),)`): Frames of each item.

    Raises:
        ValueError: If every recording is too short.
    """

    def __init__(self, latents: PseudoLabels, min_seconds: float, max_seconds: float, seed: int = 0):
        self.latents, self.seed = latents, seed
        self.max_frames = round(max_seconds * latents.label_rate)
        lengths = np.array([len(latents[index]) for index in range(len(latents))])
        self.recording_of_item = np.flatnonzero(lengths >= max(1, min_seconds * latents.label_rate))
        if len(self.recording_of_item) == 0:
            raise ValueError(f"Every recording is shorter than `data.min_seconds` ({min_seconds}).")
        self.lengths = np.minimum(lengths[self.recording_of_item], self.max_frames)

    def __len__(self) -> int:
        return len(self.recording_of_item)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`latents` `(num_frames, dim)`, and `ended`, whether the recording ends there."""
        epoch, item = divmod(index, len(self))
        recording = self.latents[int(self.recording_of_item[item])]
        first = 0
        if len(recording) > self.max_frames:
            generator = np.random.default_rng((self.seed, epoch, item))
            first = int(generator.integers(len(recording) - self.max_frames + 1))
        part = recording[first : first + self.max_frames]
        return {
            "latents": torch.from_numpy(np.array(part)),
            "ended": torch.tensor(first + len(part) == len(recording)),
        }

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of each dimension over all recordings, `(dim,)` each."""
        total, squares, count = 0.0, 0.0, 0
        for number in self.recording_of_item:
            rows = np.asarray(self.latents[int(number)], dtype=np.float64)
            total, squares, count = total + rows.sum(0), squares + np.square(rows).sum(0), count + len(rows)
        mean = total / count
        return torch.from_numpy(mean), torch.from_numpy(squares / count - np.square(mean))


def pad_latents(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad items of a [`LatentDataset`] on the right into the arguments of [`LatentLanguageModel`]."""
    latents = pad_sequence([item["latents"] for item in items], batch_first=True)
    lengths = torch.tensor([len(item["latents"]) for item in items])
    mask = (torch.arange(latents.shape[1]) < lengths[:, None]).long()
    return {"latents": latents, "latents_mask": mask, "ended": torch.stack([item["ended"] for item in items])}


class LatentLMTrainer(RecipeTrainer):
    """
    [`RecipeTrainer`] of a [`LatentLanguageModel`].

    Args:
        args, kwargs: See [`RecipeTrainer`]; `train_dataset` is a [`LatentDataset`].
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, data_collator=pad_latents, **kwargs)

    def measures(self, outputs: Any, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, int | None]]:
        """Means of the parts of the loss over micro-batches, and the speed."""
        seconds = inputs["latents_mask"].sum() / self.train_dataset.latents.label_rate
        return {
            "prediction_loss": (outputs["prediction_loss"], 1),
            "stop_loss": (outputs["stop_loss"], 1),
            "audio_seconds_per_second": (seconds, None),
        }


def train_all(args: LatentLMArguments) -> dict[str, dict[str, float]]:
    """
    Train with each head that is not finished, and measure it.

    Args:
        args ([`LatentLMArguments`]): The recipe.

    Returns:
        `dict`: The results by head, as `results.md` has them.

    Raises:
        ValueError: If the output folder belongs to another recipe, or there is nothing to learn from.
    """
    inputs = {"model": fingerprint_of(args.model)}
    inputs |= {f"data.{part}": recordings_named(args.data, part) for part in ("train", "eval")}
    output, processes = Path(args.output_dir), process_state()
    # Heads are compared, so that what is settled for one is for all.
    finished = ("",) if any((output / name / "results.json").is_file() for name in args.heads) else ()
    RunRecord(output, args, inputs, finished).check()  # before hours of speech are decoded for nothing
    pushes = {
        name: HubPushes(_hub_settings(args, name), output / name)
        for name in args.heads
        if not (output / name / "results.json").is_file()
    }
    codec = load(args.model)[0]
    train, held_out = cached_latents(codec, args)
    claim_output(args, inputs, finished)
    for name in args.heads:
        if name in pushes:
            train_head(name, args, codec, train, held_out, output / name, pushes[name])
        processes.wait_for_everyone()
    for name in args.heads:
        if (fault := file_fault(output / name / "results.json")) is not None:
            raise ValueError(f"{output / name / 'results.json'} {fault}; delete it to measure anew.")
    results = {name: json.loads((output / name / "results.json").read_text("utf-8")) for name in args.heads}
    if processes.is_main_process:
        (output / "results.md").write_text(results_table(results) + "\n", encoding="utf-8")
    return results


def _hub_settings(args: LatentLMArguments, head: str) -> HubSettings:
    repo_id = args.hub_model_id or Path(args.output_dir).resolve().name
    return HubSettings.of(args, hub_model_id=repo_id if len(args.heads) == 1 else f"{repo_id}-{head}")


def cached_latents(codec: Any, args: LatentLMArguments) -> tuple[PseudoLabels, list[tuple[str, np.ndarray, bool]]]:
    """
    The latents of all recordings, computed once.

    Returns:
        Those to train on; and of each recording to measure on its name, its latents up to `data.max_seconds`, and
        whether these are all.
    """
    data, found, processes = args.data, [], process_state()
    rejected: list[dict[str, str]] = []
    for part in ("train", "eval"):
        recordings = decode_part(data, part, codec.sampling_rate, args.cache_dir)
        labeler = TokenLabeler(codec, codec.sampling_rate, kind="latents")
        with processes.main_process_first():
            latents = label_all(
                recordings, labeler, args.cache_dir / "latents", show_progress=processes.is_main_process
            )
        least = max(data.min_seconds, MIN_LABELLED_SECONDS) * codec.sampling_rate
        rejected += recordings.rejected + shorter_than(recordings, least, "the training")
        found.append((recordings.names, latents))
    write_set_aside(Path(args.output_dir) / "rejected.jsonl", rejected)
    (_, train), (names, held_out) = found
    least, most = (seconds * held_out.label_rate for seconds in (data.min_seconds, data.max_seconds))
    usable = [index for index in range(len(held_out)) if len(held_out[index]) >= max(1, least)]
    if not usable:
        raise ValueError(f"Every held-out recording is shorter than `data.min_seconds` ({data.min_seconds}).")
    spread = np.linspace(0, len(usable) - 1, min(len(usable), data.max_eval_recordings)).round().astype(int)
    chosen = [usable[index] for index in spread]
    return train, [
        (Path(names[index]).stem, held_out[index][: round(most)], len(held_out[index]) <= round(most))
        for index in chosen
    ]


def new_model(name: str, args: LatentLMArguments, dim: int) -> LatentLanguageModel:
    """An untrained language model with the head that a recipe names."""
    kind, options = kind_and_options(name, args.heads[name])
    config = LatentLMConfig(
        text_config=copy.deepcopy(args.language_model) or None,
        latent_dim=dim,
        head=kind,
        head_options=options,
        input_noise_std=args.input_noise_std,
        stop_loss_weight=args.stop_loss_weight,
        stop_pos_weight=args.stop_pos_weight,
    )
    set_seed(args.seed)
    return LatentLanguageModel(config)


def train_head(
    name: str,
    args: LatentLMArguments,
    codec: Any,
    train: PseudoLabels,
    held_out: list[tuple[str, np.ndarray, bool]],
    folder: Path,
    pushes: HubPushes,
) -> None:
    """
    Train with one head from the newest checkpoint in `folder/checkpoints`, or from the beginning; measure, and write
    continuations.

    Args:
        name (`str`): Key of `args.heads`.
        args ([`LatentLMArguments`]): The recipe.
        codec (`PreTrainedModel`): Model that gave the latents.
        train ([`PseudoLabels`]), held_out (`list`): See [`cached_latents`].
        folder (`Path`): Gets everything; `results.json` is written last.
        pushes ([`HubPushes`]): The pushes of this head.
    """
    dataset = LatentDataset(train, args.data.min_seconds, args.data.max_seconds, args.seed)
    model = new_model(name, args, train[0].shape[-1])
    model.set_statistics(*dataset.moments())
    trainer = LatentLMTrainer(
        model,
        args.training_arguments(folder, args, lr_scheduler_type="cosine"),
        batch_length=round(args.batch_seconds * train.label_rate),
        train_dataset=dataset,
    )
    trainer.add_callback(PushCallback(pushes, trainer, None))
    train_until_done(trainer, folder, ["loss", "prediction_loss", "stop_loss"])
    if not trainer.is_world_process_zero():
        return
    model.eval()
    # The codec may lie elsewhere.
    codec.to(model.device)
    sampling = {"temperature": args.continuations.temperature, "cfg_scale": args.continuations.cfg_scale}
    recordings, ended = [latents for _, latents, _ in held_out], [is_whole for *_, is_whole in held_out]
    results: dict[str, Any] = judge(model, recordings, ended, args.num_draws, args.seed, **sampling)
    lengths = args.continuations.prompt_seconds, args.continuations.seconds
    longest = sorted(held_out, key=lambda item: -len(item[1]))[: args.continuations.count]
    prompts = [(recording_name, latents) for recording_name, latents, _ in longest]
    write_continuations(
        model,
        codec,
        prompts,
        folder / "continuations",
        *lengths,
        args.seed,
        stop_threshold=None,
        **sampling,
    )
    with whole_folder(folder / "final") as final:
        model.save_pretrained(final)
    results |= generation_milliseconds(model.cpu())
    results["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    write_whole(folder / "results.json", json.dumps(results, indent=2))
    pushes.finish(folder / "final")


def results_table(results: dict[str, dict[str, float]]) -> str:
    """The results by head as a table in Markdown, with the scores of two forecasts that learn nothing."""
    lines = [
        "| head | energy score | spread of draws | training loss "
        "| end-of-speech loss | head, ms a frame | all, ms a frame |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        lines.append(
            f"| {name} | {row['energy_score']:.3f} | {row['draw_spread']:.3f} | {row['prediction_loss']:.3f} |"
            f" {row['stop_loss']:.3f} | {row['head_ms']:.2f} | {row['frame_ms']:.2f} |"
        )
    row = next(iter(results.values()))
    lines.append(f"| previous frame | {row['repetition_score']:.3f} | 0 | | | | |")
    lines.append(f"| random frame | {row['marginal_score']:.3f} | | | | | |")
    return "\n".join(lines)


def run_recipe(path_or_name: str, overrides: Sequence[str]) -> str:
    """Train by a recipe; returns the table of results, which the command `train` prints."""
    return results_table(train_all(load_recipe(path_or_name, overrides, LatentLMArguments)))
