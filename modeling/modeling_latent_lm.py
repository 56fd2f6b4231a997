# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""A causal language model whose tokens are vectors: it reads continuous tokens and draws the next one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .checked_loading import CheckedLoading
from .configuration_latent_lm import LatentLMConfig
from .continuous_heads import LatentInput, StopHead, build_head, check_draw, init_head_weights
from .input_checks import (
    check_arguments,
    check_flags,
    check_latents,
    check_mask,
    check_number,
    check_whole_number,
)
from .latent_bottleneck import LatentStatistics
from .mixed_precision import MixedPrecisionModel


@dataclass
class LatentLMOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): Loss of the head, plus the loss of the ends times its weight.
        prediction_loss (`torch.FloatTensor` of shape `()`): Loss of the head.
        stop_loss (`torch.FloatTensor` of shape `()`): Binary cross entropy of the ends.
        hidden_states (`torch.FloatTensor` of shape `(batch, num_frames + 1, hidden_size)`): States of the transformer.
            The one at position t knows the tokens before t.
    """

    loss: torch.FloatTensor | None = None
    prediction_loss: torch.FloatTensor | None = None
    stop_loss: torch.FloatTensor | None = None
    hidden_states: torch.FloatTensor | None = None


class GeneratedLatents(NamedTuple):
    """
    Attributes:
        latents: Latents (batch, num_frames, latent_dim); 0 where the mask is 0.
        mask: Mask (batch, num_frames), 1 before an item's end.
    """

    latents: torch.Tensor
    mask: torch.Tensor


class LatentLanguageModel(MixedPrecisionModel, CheckedLoading, PreTrainedModel):
    """
    A causal transformer between a [`LatentInput`] and a [`ContinuousHead`], with a [`StopHead`].

    It takes and gives latents on their own scale; inside they have zero mean and unit variance by `statistics`, which
    are frozen. Those of a [`CSTModel`] have that already.

    Args:
        config ([`LatentLMConfig`]): Sizes of the model, and the kind of its head.
    """

    config_class = LatentLMConfig
    base_model_prefix = "latent_lm"
    main_input_name = "latents"
    # The loss is a mean, which `Trainer` has to divide among accumulated batches itself.
    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = ["statistics"]
    _supports_sdpa = True

    def __init__(self, config: LatentLMConfig):
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        embeddings = self.language_model.get_input_embeddings()
        embeddings.requires_grad_(False)  # of words, of which there are none
        self.statistics = LatentStatistics(config.latent_dim, 1, 0.5)
        self.statistics.frozen = True
        self.latent_input = LatentInput(config.latent_dim, embeddings.embedding_dim, float(config.input_noise_std))
        self.head = build_head(config.head, config.hidden_size, config.latent_dim, **config.head_options)
        self.stop_head = StopHead(config.hidden_size, float(config.stop_pos_weight))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LatentStatistics):
            module.reset_parameters()
        elif not init_head_weights(module):
            super()._init_weights(module)

    def set_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Mean and variance, each (latent_dim,), of the latents of the training speech."""
        self.statistics.set(mean, variance)

    @can_return_tuple
    def forward(
        self,
        latents: torch.Tensor,
        latents_mask: torch.Tensor | None = None,
        ended: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LatentLMOutput:
        """
        The losses of latents each of which is predicted from those before it.

        Args:
            latents (`torch.Tensor` of shape `(batch, num_frames, latent_dim)`): Latents, padded on the right.
            latents_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for real frames.
            ended (`torch.Tensor` of shape `(batch,)`, *optional*): Whether the last frame of an item is the end of its
                utterance. Otherwise the item was cut, and says nothing about ends. Without `ended` the ends are not
                learnt.
            targets (`torch.Tensor` of the shape of `latents`, *optional*): Latents to predict in place of `latents`,
                such as the same without gradients.
            generator (`torch.Generator`, *optional*): Generator of the noise. In evaluation mode it defaults to one of
                a fixed seed, so that the same latents have the same loss.
            kwargs: Arguments that transformers passes to any model, such as `output_attentions`. They have no effect
                here.

        Raises:
            TypeError: If the latents are no tensor of floating point, the mask no tensor, or another argument is
                given.
            ValueError: If a shape is wrong, the mask malformed, or a latent not finite.
        """
        check_arguments(kwargs)
        latents, _ = check_latents(latents, self.config.latent_dim)
        if latents_mask is not None:
            latents_mask = check_mask(latents_mask, "latents_mask", tuple(latents.shape[:2]), "right")
        if ended is not None:
            ended = check_flags(ended, "ended", len(latents))
        if generator is None and not self.training:
            generator = torch.Generator(latents.device).manual_seed(0)
        normal = self.statistics.normalize(latents)
        targets = normal if targets is None else self.statistics.normalize(targets)
        hidden_states = self._hidden_states(normal, generator)
        prediction_loss = self.head.loss(hidden_states[:, :-1], targets, latents_mask, generator)
        loss, stop_loss = prediction_loss, None
        if ended is not None:
            stop_loss = self._stop_loss(hidden_states, latents_mask, ended)
            loss = loss + self.config.stop_loss_weight * stop_loss
        return LatentLMOutput(
            loss=loss, prediction_loss=prediction_loss, stop_loss=stop_loss, hidden_states=hidden_states
        )

    def hidden_states(self, latents: torch.Tensor) -> torch.Tensor:
        """(batch, num_frames, latent_dim) -> (batch, num_frames + 1, hidden_size): what is known before each frame."""
        latents, _ = check_latents(latents, self.config.latent_dim)
        return self._hidden_states(self.statistics.normalize(latents), None)

    def _hidden_states(self, normal: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        # Padding on the right needs no mask: nothing real attends to it.
        inputs = self.latent_input(normal, generator)
        return self.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state

    def _stop_loss(self, hidden_states: torch.Tensor, mask: torch.Tensor | None, ended: torch.Tensor) -> torch.Tensor:
        batch_size, num_positions = hidden_states.shape[:2]
        if mask is None:
            lengths = torch.full((batch_size,), num_positions - 1, device=hidden_states.device)
        else:
            lengths = mask.long().sum(-1)
        positions = torch.arange(num_positions, device=hidden_states.device)
        is_end = (positions == lengths[:, None]) & ended[:, None]
        return self.stop_head.loss(hidden_states, is_end, (positions < lengths[:, None]) | is_end)

    @torch.no_grad()
    def draw(self, latents: torch.Tensor, num_draws: int, generator: torch.Generator | None = None, **options):
        """
        Draws of each frame given the real ones before it.

        Args:
            latents (`torch.Tensor` of shape `(batch, num_frames, latent_dim)`): The frames.
            num_draws (`int`): Number of draws of each frame.
            generator (`torch.Generator`, *optional*): Generator of the noise. Defaults to PyTorch's global one.
            options: Arguments of [`ContinuousHead.sample`].

        Returns:
            `torch.Tensor` of shape `(num_draws, batch, num_frames, latent_dim)`.

        Raises:
            TypeError, ValueError: If there are no finite latents, or a number is none or out of its range.
        """
        check_whole_number(num_draws, "num_draws", 1)
        hidden_states = self.hidden_states(latents)[:, :-1]
        draws = [self.head.sample(hidden_states, generator=generator, **options) for _ in range(num_draws)]
        return self.statistics.denormalize(torch.stack(draws))

    def stream(
        self,
        prompt: torch.Tensor | None = None,
        max_frames: int = 250,
        batch_size: int = 1,
        temperature: float = 1.0,
        steps: int | None = None,
        cfg_scale: float = 1.0,
        stop_threshold: float | None = 0.5,
        min_frames: int = 0,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """
        Draw frame after frame; each costs one step of the transformer, whose past is kept.

        Args:
            prompt (`torch.Tensor` of shape `(batch, num_frames, latent_dim)`, *optional*): Latents that come before
                the drawn frames. They are not given again.
            max_frames (`int`): Largest number of frames to draw.
            batch_size (`int`): Number of items, if there is no prompt.
            temperature, steps, cfg_scale: Arguments of [`ContinuousHead.sample`].
            stop_threshold (`float`, *optional*): Probability of the end at which an item ends. With `None` every item
                lasts `max_frames`.
            min_frames (`int`): Number of frames before which no item ends.
            generator (`torch.Generator`, *optional*): Generator of the noise. Defaults to PyTorch's global one.

        Returns:
            Iterator of a frame of each item, (batch, latent_dim), 0 after its end, and which items go on, (batch,). It
            stops before a frame that no item has.

        Raises:
            RuntimeError: If the model is in training mode, in which it would disturb what it reads.
            TypeError, ValueError: If the prompt is no tensor of finite latents, or a number is none or out of its
                range.
        """
        if self.training:
            raise RuntimeError("Call `eval()` before drawing: in training mode the input gets noise.")
        check_draw(temperature, steps, cfg_scale)
        check_whole_number(max_frames, "max_frames", 0)
        check_whole_number(min_frames, "min_frames", 0)
        if stop_threshold is not None:
            check_number(stop_threshold, "stop_threshold", 0, 1)
        check_whole_number(batch_size, "batch_size", 1)
        if prompt is not None:
            prompt, _ = check_latents(prompt, self.config.latent_dim)
        settings = (temperature, steps, cfg_scale, generator)
        return self._drawn_frames(prompt, max_frames, batch_size, stop_threshold, min_frames, settings)

    @torch.no_grad()
    def _drawn_frames(
        self,
        prompt: torch.Tensor | None,
        max_frames: int,
        batch_size: int,
        stop_threshold: float | None,
        min_frames: int,
        settings: tuple[float, int | None, float, torch.Generator | None],
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if prompt is None:
            inputs = self.latent_input.first(batch_size)
        else:
            inputs = self.latent_input(self.statistics.normalize(prompt))
        going_on = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
        past = None
        for number in range(max_frames):
            outputs = self.language_model(inputs_embeds=inputs, past_key_values=past, use_cache=True)
            past, hidden = outputs.past_key_values, outputs.last_hidden_state[:, -1]
            if stop_threshold is not None and number >= min_frames:
                going_on = going_on & (self.stop_head(hidden).sigmoid() < stop_threshold)
                if not going_on.any():
                    return
            drawn = self.head.sample(hidden, *settings)
            yield self.statistics.denormalize(drawn) * going_on[:, None], going_on
            inputs = self.latent_input.embed(drawn[:, None])

    def generate_latents(
        self, prompt: torch.Tensor | None = None, max_frames: int = 250, batch_size: int = 1, **options: Any
    ) -> GeneratedLatents:
        """
        All that [`~LatentLanguageModel.stream`] gives, with its arguments.

        Raises:
            RuntimeError, TypeError, ValueError: See [`~LatentLanguageModel.stream`].
        """
        frames, masks = [], []
        for frame, going_on in self.stream(prompt, max_frames, batch_size, **options):
            frames.append(frame)
            masks.append(going_on)
        if not frames:
            num_items = batch_size if prompt is None else len(prompt)
            empty = self.latent_input.begin.new_zeros((num_items, 0, self.config.latent_dim))
            return GeneratedLatents(empty, empty.new_zeros((num_items, 0), dtype=torch.long))
        return GeneratedLatents(torch.stack(frames, dim=1), torch.stack(masks, dim=1).long())


__all__ = ["GeneratedLatents", "LatentLMOutput", "LatentLanguageModel"]
