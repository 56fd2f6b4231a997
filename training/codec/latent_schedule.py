# SPDX-License-Identifier: Apache-2.0
"""When a codec's quantizer begins, and when its latents are revived."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from speech_tokenizers.modeling.vector_quantization import ResidualVectorQuantizer, gather_rows
from speech_tokenizers.training.codec.latent_arguments import LatentHealthArguments
from speech_tokenizers.training.codec.latent_health import LatentMoments
from speech_tokenizers.training.codec.latent_revival import check_revivable, hidden_and_latents, revive_latents


# Number of frames an entry for k-means, where a recipe does not say.
FRAMES_PER_ENTRY = 8
# Share of a run's `max_minutes` after which a late quantizer starts, if its step has not come before.
LATEST_START = 0.1


class LatentSchedule:
    """
    Actions that [`LatentHealthArguments`] asks for before some steps of a [`CodecTrainer`].

    All of it depends only on the model, the step, the run's time and the coming crops. So a run that resumes at such a
    step does the same again. The model itself records that a late quantizer has started: its codebooks are marked as
    initialized.

    Args:
        args ([`LatentHealthArguments`]): Settings of the actions.
        model (`PreTrainedModel`): Codec of the run. Codebooks that are initialized are those of a trained codec: they
            are kept, and neither a late start nor `kmeans_frames` is for them.
        loss_names (sequence of `str`): Names of the losses that the codec is trained with.

    Raises:
        ValueError: If the model cannot do what is asked.
    """

    def __init__(self, args: LatentHealthArguments, model: Any, loss_names: Sequence[str]):
        self.args = args
        asked = [name for name in ("quantizer_start_step", "kmeans_frames", "revival_steps") if getattr(args, name)]
        if not asked:
            return
        quantizer = getattr(model, "quantizer", None)
        if not isinstance(quantizer, ResidualVectorQuantizer):
            raise ValueError(
                f"`latent_health.{asked[0]}` is for codecs with a residual vector quantizer, which a"
                f" {type(model).__name__} has not; leave it out."
            )
        config = model.config
        if config.kmeans_iterations == 0:
            raise ValueError(
                f"`latent_health.{asked[0]}` fits codebooks by k-means; set `model.overrides.kmeans_iterations`, which"
                " is 0."
            )
        if args.kmeans_frames is not None and args.kmeans_frames < config.codebook_size:
            raise ValueError(
                f"`latent_health.kmeans_frames` is {args.kmeans_frames}, but {config.codebook_size} entries need at"
                f" least as many frames; {FRAMES_PER_ENTRY} an entry are good."
            )
        taught = [name for name in loss_names if name.endswith("_distillation")]
        if args.quantizer_start_step and taught:
            raise ValueError(
                f"`latent_health.quantizer_start_step` is {args.quantizer_start_step}, but `{taught[0]}` needs the"
                " codebooks from the first step on; set it to 0, and give `kmeans_frames` to start them well."
            )
        if args.revival_steps:
            check_revivable(model)

    def quantizes(self, model: Any) -> bool:
        """Whether the decoder hears quantized latents."""
        return self.args.quantizer_start_step == 0 or _is_initialized(model)

    def missed_revivals(self, step: int) -> str:
        """Steps after which the recipe has revivals that a run which ended after `step` steps did not reach."""
        return ", ".join(str(missed) for missed in self.args.revival_steps if missed >= step)

    def check_started(self, model: Any) -> None:
        """
        Raises:
            ValueError: If a codec is to be saved whose quantizer has not started.
        """
        if not self.quantizes(model):
            raise ValueError(
                "The run ended before its codebooks started (`latent_health.quantizer_start_step` is"
                f" {self.args.quantizer_start_step}), so that there is no codec to save; raise `max_minutes` or"
                " `max_steps`, and go on with `resume_from_checkpoint=latest`."
            )

    def has_work(self, step: int, time_share: float, model: Any) -> bool:
        """Whether [`apply`] has something to do before the step that follows `step` steps."""
        return step in self.args.revival_steps or self._starts(step, time_share, model)

    def _starts(self, step: int, time_share: float, model: Any) -> bool:
        start = self.args.quantizer_start_step
        if start:
            due = step >= start or time_share >= LATEST_START
        else:
            due = step == 0 and self.args.kmeans_frames is not None
        return due and not _is_initialized(model)

    @torch.no_grad()
    def apply(
        self,
        step: int,
        time_share: float,
        model: Any,
        accelerator: Accelerator,
        coming: Callable[[int], Iterable[dict[str, torch.Tensor]]],
        frames_per_step: int,
    ) -> tuple[list[torch.Tensor], list[str]]:
        """
        Revive the latents, fit the codebooks, or both.

        Args:
            step (`int`): Number of steps done.
            time_share (`float`): Share of the run's time that has passed; the same on all processes.
            model ([`RVQCodecModel`]): Codec, which is changed in place, alike on all processes.
            accelerator (`Accelerator`): Accelerator of the run.
            coming (callable): Function that gives this process's micro-batches of a number of coming steps.
            frames_per_step (`int`): Number of latents of a step over all processes.

        Returns:
            Parameters and codebooks that changed, and what was done, in sentences.
        """
        was_training = model.training
        model.eval()
        changed: list[torch.Tensor] = []
        done: list[str] = []
        if step in self.args.revival_steps:
            needed = math.ceil(self.args.revival_seconds * model.frame_rate / frames_per_step)
            moments: LatentMoments | None = None
            for rows in self._rows(model, accelerator, coming(needed), hidden_and_latents):
                addition = LatentMoments.of(rows)
                moments = addition if moments is None else moments.plus(addition)
            assert moments is not None
            num_live, revived = revive_latents(model, moments, self.args.live_threshold)
            changed += revived
            for parameter in revived:
                parameter.copy_(broadcast(parameter.detach().clone()))
            outcome = "the others are revived" if revived else "there is nothing to revive"
            done.append(f"{num_live} of {model.config.hidden_size} latent directions are live; {outcome}")
        if self._starts(step, time_share, model) or (changed and self.quantizes(model)):
            wanted = self.args.kmeans_frames or FRAMES_PER_ENTRY * model.config.codebook_size
            latents = torch.cat(
                [*self._rows(model, accelerator, coming(math.ceil(wanted / frames_per_step)), _latents)]
            )
            model.quantizer.fit(latents[:wanted], torch.Generator().manual_seed(step), frames_per_step)
            changed += [quantizer.codebook for quantizer in model.quantizer.quantizers]
            done.append(f"the codebooks are fitted to {min(wanted, len(latents)):,} frames")
        model.train(was_training)
        return changed, done

    @staticmethod
    def _rows(model, accelerator, batches, encode) -> Iterator[torch.Tensor]:
        """Finite frames (num_frames, dim) of a micro-batch of all processes, in the order one would have."""
        for batch in batches:
            frames = encode(model, batch["input_values"].to(accelerator.device)).flatten(0, 1)
            yield gather_rows(frames[frames.isfinite().all(-1)])


def _is_initialized(model: Any) -> bool:
    # The last codebook has its first vectors from those before it.
    return bool(model.quantizer.quantizers[-1].initialized)


def _latents(model: Any, input_values: torch.Tensor) -> torch.Tensor:
    return model.encoder(input_values).transpose(1, 2)
