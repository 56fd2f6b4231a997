# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""
Heads that predict a continuous token from what a language model knows before it, all with one interface.

`head.loss(hidden, target, mask)` is a scalar to minimise, and `head.sample(hidden, temperature, steps, cfg_scale)`
draws a token. `hidden` at position t is what stands *before* token t, so that it must not have seen `target` there;
[`LatentInput`] shifts the tokens accordingly. Targets should have zero mean and unit variance.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .input_checks import check_number, check_whole_number


class HeadLinear(nn.Linear):
    """
    A linear map with PyTorch's initial weights, or with zeros.

    Args:
        in_features, out_features (`int`): Sizes of the input and of the output.
        zero (`bool`, defaults to `False`): Whether to start with zeros, so that a modulated layer starts as the
            identity.
    """

    def __init__(self, in_features: int, out_features: int, zero: bool = False):
        self.zero = zero
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Start anew; parameters that were loaded stay as they are."""
        if self.zero:
            init.zeros_(self.weight)
            init.zeros_(self.bias)
        else:
            bound = 1 / math.sqrt(self.in_features)
            init.uniform_(self.weight, -bound, bound)
            init.uniform_(self.bias, -bound, bound)


class ResidualBlock(nn.Module):
    """
    x + g * MLP((1 + s) * LayerNorm(x) + b), where s, b and g are linear in a condition (AdaLN; arXiv 2406.11838); with
    no condition, x + MLP(LayerNorm(x)).

    Args:
        width (`int`): Dimension of x and of the condition.
        conditional (`bool`): Whether there is a condition.
        zero (`bool`): Whether to start as the identity.
    """

    def __init__(self, width: int, conditional: bool, zero: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=not conditional)
        self.modulation = HeadLinear(width, 3 * width, zero) if conditional else None
        self.inner = HeadLinear(width, width)
        self.outer = HeadLinear(width, width)

    def forward(self, states: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """(..., width), (..., width) -> (..., width)."""
        normed = self.norm(states)
        if self.modulation is None or condition is None:
            return states + self.outer(F.silu(self.inner(normed)))
        scale, shift, gate = self.modulation(F.silu(condition)).chunk(3, dim=-1)
        return states + gate * self.outer(F.silu(self.inner((1 + scale) * normed + shift)))


class ResidualNetwork(nn.Module):
    """
    [`ResidualBlock`]s between two linear maps.

    Args:
        input_dim, output_dim (`int`): Sizes of the input and of the output.
        width (`int`): Width of the blocks.
        num_layers (`int`): Number of blocks.
        conditional (`bool`): Whether `forward` gets a condition.
        zero (`bool`): Whether to start with blocks that are the identity, and an output of zero.
    """

    def __init__(
        self, input_dim: int, output_dim: int, width: int, num_layers: int, conditional: bool = False, zero=False
    ):
        super().__init__()
        self.enter = HeadLinear(input_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, conditional, zero) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.leave = HeadLinear(width, output_dim, zero)

    def forward(self, inputs: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """(..., input_dim), (..., width) -> (..., output_dim)."""
        states = self.enter(inputs)
        for block in self.blocks:
            states = block(states, condition)
        return self.leave(self.norm(states))


def check_draw(temperature: float, steps: int | None, cfg_scale: float) -> None:
    """Check arguments of [`ContinuousHead.sample`]. Raises `ValueError` if one is no number or out of its range."""
    check_number(temperature, "temperature", 0)
    check_number(cfg_scale, "cfg_scale", 0)
    if steps is not None:
        check_whole_number(steps, "steps", 1)


class ContinuousHead(nn.Module):
    """
    Predicts tokens of `dim` numbers from states of `width` numbers.

    Args:
        width (`int`): Dimension of the language model's states.
        dim (`int`): Dimension of a token.
        condition_dropout (`float`, defaults to 0.0): Share of tokens that are learnt from a state of zeros, for
            classifier-free guidance, which `sample` offers as `cfg_scale`.
    """

    def __init__(self, width: int, dim: int, condition_dropout: float = 0.0):
        super().__init__()
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"`condition_dropout` must be at least 0 and below 1, but got {condition_dropout}.")
        self.width, self.dim, self.condition_dropout = width, dim, condition_dropout

    def loss(
        self,
        hidden: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """
        The mean over the tokens that count, in float32 whatever the type of the head.

        Args:
            hidden (`torch.Tensor` of shape `(batch, num_frames, width)` or `(batch, width)`): State before each token.
            target (`torch.Tensor` of shape `(batch, num_frames, dim)` or `(batch, dim)`): The tokens.
            mask (`torch.Tensor` of shape `(batch, num_frames)` or `(batch,)`, *optional*): Mask with 1 for tokens that
                count.
            generator (`torch.Generator`, *optional*): Generator of the noise and of the dropout. Defaults to PyTorch's
                global one.

        Raises:
            ValueError: If a shape does not fit.
        """
        self._check(hidden)
        if target.shape != (*hidden.shape[:-1], self.dim):
            raise ValueError(
                f"`target` must be of shape {(*hidden.shape[:-1], self.dim)}, but is {tuple(target.shape)}."
            )
        if mask is not None and mask.shape != hidden.shape[:-1]:
            raise ValueError(f"`mask` must be of shape {tuple(hidden.shape[:-1])}, but is {tuple(mask.shape)}.")
        if self.training and self.condition_dropout > 0:
            drawn = torch.rand(hidden.shape[:-1], generator=generator, device=hidden.device)
            hidden = hidden * (drawn >= self.condition_dropout).unsqueeze(-1)
        return self._loss(hidden, target, mask, generator)

    @torch.no_grad()
    def sample(
        self,
        hidden: torch.Tensor,
        temperature: float = 1.0,
        steps: int | None = None,
        cfg_scale: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        unconditional: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Draw a token for each state.

        Args:
            hidden (`torch.Tensor` of shape `(batch, num_frames, width)` or `(batch, width)`): State before each token.
            temperature (`float`, defaults to 1.0): Factor of the variance of the noise; 0 gives one token that
                depends on `hidden` alone.
            steps (`int`, *optional*): Number of steps of a head that needs several; others take one.
            cfg_scale (`float`, defaults to 1.0): Strength s of the guidance u + s (c - u), where c is what the head
                makes of the state and u what it makes of none; 1 is no guidance.
            generator (`torch.Generator` or a sequence of them, *optional*): Generator of the noise, or one for each
                item of the batch, so that an item is what it is alone. Defaults to PyTorch's global one.
            unconditional (`torch.Tensor` of the shape of `hidden`, *optional*): States that u is made of, such as
                those of a language model without its text. Defaults to zeros, as `condition_dropout` teaches them.

        Returns:
            `torch.Tensor` of shape `(batch, num_frames, dim)` or `(batch, dim)`, of the type of `hidden`.

        Raises:
            ValueError: If a shape does not fit, or a number is none or out of its range.
        """
        self._check(hidden)
        check_draw(temperature, steps, cfg_scale)
        shape = hidden.shape[:-1]
        if cfg_scale != 1:
            none = torch.zeros_like(hidden) if unconditional is None else unconditional
            hidden = torch.stack([hidden, none.expand_as(hidden)])  # each of the two is computed with the same noise
        if isinstance(generator, Sequence):
            noise = torch.stack([_noise((*shape[1:], self.noise_dim), one, one.device) for one in generator])
        else:
            device = hidden.device if generator is None else generator.device
            noise = _noise((*shape, self.noise_dim), generator, device)
        noise = noise.to(hidden)
        return self._sample(hidden, math.sqrt(temperature) * noise, steps, cfg_scale).to(hidden.dtype)

    @property
    def noise_dim(self) -> int:
        """Random numbers that a token is drawn from."""
        return self.dim

    def _loss(self, hidden, target, mask, generator) -> torch.Tensor:
        raise NotImplementedError

    def _sample(self, hidden, noise, steps, cfg_scale) -> torch.Tensor:
        raise NotImplementedError

    def _check(self, hidden: torch.Tensor) -> None:
        if hidden.dim() not in (2, 3) or hidden.shape[-1] != self.width:
            raise ValueError(
                f"`hidden` must be of shape (batch, num_frames, {self.width}) or (batch, {self.width}), but is"
                f" {tuple(hidden.shape)}."
            )


class MeanSquareHead(ContinuousHead):
    """
    The squared error of a prediction (arXiv 2410.17081, Eq. 7). It learns the mean of the tokens that may follow and
    draws nothing. Where several tokens are possible, the mean is none of them.

    Args:
        width, dim (`int`), condition_dropout (`float`): Sizes and dropout; see [`ContinuousHead`].
        num_layers (`int`, defaults to 0): Number of residual blocks of the prediction; 0 is the paper's linear map.
        hidden_size (`int`, defaults to 512): Width of the residual blocks.
    """

    def __init__(
        self, width: int, dim: int, num_layers: int = 0, hidden_size: int = 512, condition_dropout: float = 0.0
    ):
        super().__init__(width, dim, condition_dropout)
        if num_layers == 0:
            self.network: nn.Module = HeadLinear(width, dim)
        else:
            self.network = ResidualNetwork(width, dim, hidden_size, num_layers)

    def _loss(self, hidden, target, mask, generator):
        return masked_mean((self.network(hidden).float() - target.float()).square().mean(dim=-1), mask)

    def _sample(self, hidden, noise, steps, cfg_scale):
        return guided(self.network(hidden), cfg_scale)


class GaussianHead(ContinuousHead):
    """
    A normal distribution, learnt by likelihood or as MELLE does (arXiv 2407.08551).

    `"likelihood"`: the loss is -log N(y; m, s^2), the mean over dimensions without its constant.

    `"melle"`: z is drawn from N(m, s^2) and the token is y' = z + MLP(z). The loss is |y' - y| + |y' - y|^2 plus
    `kl_weight` times KL(N(m, s^2) || N(y, 1)), minus `flux_weight` times |m_t - y_(t-1)|, which rewards change and is
    0 for the first token. Each term is a mean over dimensions. The draws of this objective are narrow, since its
    errors are least for a y' that does not depend on the noise. Hence it is not the default. MELLE counts the
    divergence only after 10000 steps; to do so, set `kl_weight` during training.

    Args:
        width, dim (`int`), condition_dropout (`float`): Sizes and dropout; see [`ContinuousHead`].
        objective (`str`, defaults to `"likelihood"`): Kind of loss, `"likelihood"` or `"melle"`, as described above.
        num_layers (`int`, defaults to 2): Number of residual blocks before the distribution, and in MELLE's network
            after it. 0 is MELLE's linear map before it, and one block after it.
        hidden_size (`int`, defaults to 512): Width of the residual blocks.
        kl_weight (`float`, defaults to 0.1), flux_weight (`float`, defaults to 0.5): Weights of the terms of MELLE's
            loss, as described above.
    """

    # What exp can take; a standard deviation below exp(-7) is none.
    LOG_VARIANCE_RANGE = (-14.0, 14.0)

    def __init__(
        self,
        width: int,
        dim: int,
        objective: str = "likelihood",
        num_layers: int = 2,
        hidden_size: int = 512,
        kl_weight: float = 0.1,
        flux_weight: float = 0.5,
        condition_dropout: float = 0.0,
    ):
        super().__init__(width, dim, condition_dropout)
        if objective not in ("likelihood", "melle"):
            raise ValueError(f"`objective` must be 'likelihood' or 'melle', but got {objective!r}.")
        self.kl_weight, self.flux_weight = kl_weight, flux_weight
        if num_layers == 0:
            self.moments: nn.Module = HeadLinear(width, 2 * dim)
        else:
            self.moments = ResidualNetwork(width, 2 * dim, hidden_size, num_layers)
        self.refinement = None
        if objective == "melle":
            self.refinement = ResidualNetwork(dim, dim, hidden_size, max(num_layers, 1), zero=True)

    def _loss(self, hidden, target, mask, generator):
        mean, log_variance = self.moments(hidden).float().chunk(2, dim=-1)
        log_variance, target = log_variance.clamp(*self.LOG_VARIANCE_RANGE), target.float()
        if self.refinement is None:
            terms = 0.5 * ((target - mean).square() * (-log_variance).exp() + log_variance)
            return masked_mean(terms.mean(dim=-1), mask)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        drawn = mean + (0.5 * log_variance).exp() * noise
        errors = self._refine(drawn.to(hidden.dtype)).float() - target
        divergence = 0.5 * (log_variance.exp() + (mean - target).square() - 1 - log_variance)
        terms = (errors.abs() + errors.square() + self.kl_weight * divergence).mean(dim=-1)
        if self.flux_weight and target.dim() == 3:
            # Of each token from the one before it; the first has none. A term of its token like the others, so that
            # the loss of a batch is the mean over its tokens, however long its rows are.
            changes = (mean[:, 1:] - target[:, :-1]).abs().mean(dim=-1)
            if mask is not None:
                changes = changes * mask[:, :-1]
            terms = terms - self.flux_weight * F.pad(changes, (1, 0))
        return masked_mean(terms, mask)

    def _sample(self, hidden, noise, steps, cfg_scale):
        mean, log_variance = guided(self.moments(hidden), cfg_scale).chunk(2, dim=-1)
        return self._refine(mean + (0.5 * log_variance.clamp(*self.LOG_VARIANCE_RANGE)).exp() * noise)

    def _refine(self, drawn: torch.Tensor) -> torch.Tensor:
        return drawn if self.refinement is None else drawn + self.refinement(drawn)


class FlowHead(ContinuousHead):
    """
    Rectified flow (arXiv 2209.03003) by a small network for each token, as in arXiv 2406.11838 and 2508.19098.

    With noise e and a time t in (0, 1), the network sees (1 - t) e + t y and learns y - e; a token is drawn by
    following that from noise in Euler steps.

    Args:
        width, dim (`int`): Sizes; see [`ContinuousHead`].
        num_layers (`int`, defaults to 6), hidden_size (`int`, defaults to 512): Number and width of the residual
            blocks, which the state and the time modulate.
        num_draws (`int`, defaults to 4): Draws of noise and time for each token in the loss; the state is used for all
            of them.
        num_steps (`int`, defaults to 10): Number of Euler steps, if `sample` gets no `steps`. Below 4 much is lost.
        condition_dropout (`float`, defaults to 0.1): Share of tokens that are learnt without their state; see
            [`ContinuousHead`].
    """

    TIME_FREQUENCIES = 64

    def __init__(
        self,
        width: int,
        dim: int,
        num_layers: int = 6,
        hidden_size: int = 512,
        num_draws: int = 4,
        num_steps: int = 10,
        condition_dropout: float = 0.1,
    ):
        super().__init__(width, dim, condition_dropout)
        self.num_draws, self.num_steps = num_draws, num_steps
        self.state_projection = HeadLinear(width, hidden_size)
        self.time_projection = nn.Sequential(
            HeadLinear(2 * self.TIME_FREQUENCIES, hidden_size), nn.SiLU(), HeadLinear(hidden_size, hidden_size)
        )
        self.network = ResidualNetwork(dim, dim, hidden_size, num_layers, conditional=True, zero=True)

    def _loss(self, hidden, target, mask, generator):
        shape, target = (self.num_draws, *target.shape), target.float()
        noise = torch.randn(shape, generator=generator, device=target.device)
        # Logit-normal: most times lie where noise and token are hardest to tell apart (arXiv 2403.03206).
        time = torch.randn((*shape[:-1], 1), generator=generator, device=target.device).sigmoid()
        mixed = torch.lerp(noise, target.expand(shape), time)
        velocity = self._velocity(mixed.to(hidden.dtype), time, self.state_projection(hidden)).float()
        errors = (velocity - (target - noise)).square().mean(dim=-1)
        return masked_mean(errors.mean(dim=0), mask)

    def _sample(self, hidden, noise, steps, cfg_scale):
        steps = self.num_steps if steps is None else steps
        states, drawn = self.state_projection(hidden), noise
        for step in range(steps):
            time = torch.full((*drawn.shape[:-1], 1), step / steps, device=drawn.device)
            drawn = drawn + guided(self._velocity(drawn, time, states), cfg_scale) / steps
        return drawn

    def _velocity(self, mixed: torch.Tensor, time: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(self.TIME_FREQUENCIES, device=time.device) / self.TIME_FREQUENCIES
        angles = 1000.0 * time.float() * torch.exp(-math.log(10000.0) * exponents)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(mixed.dtype)
        return self.network(mixed, states + self.time_projection(waves))


class EnergyHead(ContinuousHead):
    """
    A network that turns a state and noise into a token in one step, and learns by the energy distance (SLED, arXiv
    2505.13181).

    With draws x and x', the loss is |x - y| + |x' - y| - |x - x'| in Euclidean norms. It is least where the draws have
    the distribution of y (Gneiting and Raftery 2007).

    Args:
        width, dim (`int`), condition_dropout (`float`): Sizes and dropout; see [`ContinuousHead`].
        num_layers (`int`, defaults to 6), hidden_size (`int`, defaults to 512): Number and width of the residual
            blocks, which noise modulates.
        noise_dim (`int`, defaults to 128): Number of random numbers for each token.
        num_draws (`int`, defaults to 2): Number of draws for each token in the loss; at least 2.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        num_layers: int = 6,
        hidden_size: int = 512,
        noise_dim: int = 128,
        num_draws: int = 2,
        condition_dropout: float = 0.1,
    ):
        super().__init__(width, dim, condition_dropout)
        if num_draws < 2:
            raise ValueError(f"`num_draws` must be at least 2, but got {num_draws}.")
        self.num_random, self.num_draws = noise_dim, num_draws
        self.noise_projection = HeadLinear(noise_dim, hidden_size)
        self.network = ResidualNetwork(width, dim, hidden_size, num_layers, conditional=True)

    @property
    def noise_dim(self) -> int:
        """Random numbers that a token is drawn from."""
        return self.num_random

    def _loss(self, hidden, target, mask, generator):
        shape = (self.num_draws, *hidden.shape[:-1], self.num_random)
        noise = torch.randn(shape, generator=generator, device=hidden.device).to(hidden.dtype)
        drawn = self._draw(hidden, noise).float()
        errors = torch.linalg.vector_norm(drawn - target.float(), dim=-1).mean(dim=0)
        # Each pair of different draws, once.
        first, second = torch.triu_indices(self.num_draws, self.num_draws, offset=1, device=hidden.device)
        spread = torch.linalg.vector_norm(drawn[first] - drawn[second], dim=-1).mean(dim=0)
        return masked_mean(2 * errors - spread, mask)

    def _sample(self, hidden, noise, steps, cfg_scale):
        return guided(self._draw(hidden, noise), cfg_scale)

    def _draw(self, hidden: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.network(hidden, self.noise_projection(noise))


HEADS: dict[str, type[ContinuousHead]] = {
    "mse": MeanSquareHead,
    "gaussian": GaussianHead,
    "flow": FlowHead,
    "energy": EnergyHead,
}


def build_head(kind: str, width: int, dim: int, **options) -> ContinuousHead:
    """
    A head by its name in `HEADS`.

    Args:
        kind (`str`): Name of the head: `"mse"`, `"gaussian"`, `"flow"` or `"energy"`.
        width (`int`): Dimension of the language model's states.
        dim (`int`): Dimension of a token.
        options: Further arguments of the class.

    Raises:
        ValueError: If there is no such head.
        TypeError: If it has no such option.
    """
    if kind not in HEADS:
        raise ValueError(f"`head` must be one of {', '.join(HEADS)}, but got {kind!r}.")
    return HEADS[kind](width, dim, **options)


class LatentEmbedding(nn.Module):
    """
    Continuous tokens as inputs of a language model.

    Args:
        dim (`int`): Dimension of a token.
        width (`int`): Dimension of the language model's inputs.
        noise_std (`float`, defaults to 0.0): Standard deviation of noise on the tokens in training mode. It makes a
            model forgive the errors of the tokens that it has drawn itself.
    """

    def __init__(self, dim: int, width: int, noise_std: float = 0.0):
        super().__init__()
        if noise_std < 0:
            raise ValueError(f"`noise_std` must not be negative, but got {noise_std}.")
        self.dim, self.noise_std = dim, noise_std
        self.projection = HeadLinear(dim, width)

    def embed(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(batch, num_frames, dim) -> (batch, num_frames, width), none of them shifted."""
        if self.training and self.noise_std > 0:
            noise = torch.randn(latents.shape, generator=generator, device=latents.device)
            latents = latents + (self.noise_std * noise).to(latents.dtype)
        return self.projection(latents.to(self.projection.weight.dtype))


class LatentInput(LatentEmbedding):
    """
    A [`LatentEmbedding`] with a vector before the first token, so that each position is to predict the next token.

    Args:
        dim, width (`int`), noise_std (`float`): See [`LatentEmbedding`].
    """

    def __init__(self, dim: int, width: int, noise_std: float = 0.0):
        super().__init__(dim, width, noise_std)
        self.begin = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the vector before the first token anew."""
        init.normal_(self.begin, std=0.02)

    def first(self, batch_size: int) -> torch.Tensor:
        """What stands before the first token, (batch_size, 1, width)."""
        return self.projection(self.begin.expand(batch_size, 1, -1))

    def forward(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """
        Args:
            latents (`torch.Tensor` of shape `(batch, num_frames, dim)`): Tokens.
            generator (`torch.Generator`, *optional*): Generator of the noise. Defaults to PyTorch's global one.

        Returns:
            `torch.Tensor` of shape `(batch, num_frames + 1, width)`: The learnt vector and then the tokens. Position t
            holds the tokens before t, for the prediction of token t, and the last one for what follows the end.
        """
        return torch.cat([self.first(len(latents)), self.embed(latents, generator)], dim=1)


class StopHead(nn.Module):
    """
    The logit that no token follows.

    Args:
        width (`int`): Dimension of the language model's states.
        pos_weight (`float`, defaults to 1.0): Weight of the one end of an utterance against its many tokens.
    """

    def __init__(self, width: int, pos_weight: float = 1.0):
        super().__init__()
        self.pos_weight = pos_weight
        self.projection = HeadLinear(width, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (...), in float32."""
        return self.projection(hidden).squeeze(-1).float()

    def loss(self, hidden: torch.Tensor, ended: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Binary cross entropy.

        Args:
            hidden (`torch.Tensor` of shape `(batch, num_frames, width)`): State before each token.
            ended (`torch.Tensor` of shape `(batch, num_frames)`): Labels of the end: 1 where no token follows.
            mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for positions that count.
        """
        logits = self(hidden)
        losses = F.binary_cross_entropy_with_logits(
            logits, ended.to(logits), reduction="none", pos_weight=logits.new_tensor(self.pos_weight)
        )
        return masked_mean(losses, mask)


def init_head_weights(module: nn.Module) -> bool:
    """
    For the `_init_weights` of a model that has these modules: start one of them anew.

    Returns:
        `bool`: Whether the module is one of them.
    """
    if isinstance(module, (HeadLinear, LatentInput)):
        module.reset_parameters()
        return True
    return False


def _noise(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=device)


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of the values where the mask, of the same shape, is 1; 0 where it is nowhere."""
    if mask is None:
        return values.mean()
    counts = mask.to(values.dtype)
    return (values * counts).sum() / counts.sum().clamp(min=1)


def guided(outputs: torch.Tensor, cfg_scale: float) -> torch.Tensor:
    """u + s (c - u) of the outputs c and u, stacked; without guidance there is c alone."""
    if cfg_scale == 1:
        return outputs
    conditional, unconditional = outputs
    return unconditional + cfg_scale * (conditional - unconditional)
