# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Swapped prediction: a codebook learns to give a frame the same code in two views, by online clustering."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init


# Cosines of frames and codes that are held at once, in each of a few tensors: 64 MB in float32.
_LOGITS_AT_ONCE = 2**24


def sinkhorn(logits: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """
    Soft assignments of frames to codes that use all codes about equally, by optimal transport.

    In turn, the assignments to each code and those of each frame are scaled to sum to the same, the frames last.
    (SwAV, equation 4 and appendix A: https://huggingface.co/papers/2006.09882)

    Args:
        logits (`torch.Tensor` of shape `(num_frames, num_codes)`): Cosines of frames and codes.
        epsilon (`float`): Temperature; the smaller, the harder the assignments.
        iterations (`int`): Number of iterations. With 0, all assignments are scaled by one factor, so that their sum
            is the number of frames.

    Returns:
        `torch.Tensor` of shape `(num_frames, num_codes)`: Assignments in float32. Rows sum to 1 if `iterations` is at
            least 1.
    """
    scaled = logits.detach().float() / epsilon
    if iterations == 0:
        return (scaled - scaled.logsumexp((0, 1))).exp() * len(logits)
    return (scaled + sinkhorn_log_weights(lambda: [logits], epsilon, iterations)).softmax(-1)


@torch.no_grad()
def sinkhorn_log_weights(
    chunks: Callable[[], Iterable[torch.Tensor]], epsilon: float, iterations: int, all_processes: bool = False
) -> torch.Tensor:
    """
    Weights that Sinkhorn's iterations add to the logits of each code, given the logits chunk by chunk.

    The scale of a frame follows from those of the codes, so these are all that has to be kept: the assignments are
    `softmax(logits / epsilon + log_weights)`. In the domain of logarithms nothing overflows.

    Args:
        chunks (callable): Function that gives the logits, in parts of shape `(num_frames, num_codes)`. It is called
            once an iteration.
        epsilon (`float`): Temperature.
        iterations (`int`): Number of iterations, at least 1.
        all_processes (`bool`, *optional*, defaults to `False`): Whether the frames of all processes of the default
            group share the codes. All must call this.

    Returns:
        `torch.Tensor` of shape `(num_codes,)`, in float32.
    """
    log_weights: torch.Tensor | None = None
    for _ in range(iterations):
        usage: torch.Tensor | None = None  # of each code: log of the sum over frames
        for logits in chunks():
            scaled = logits.float() / epsilon
            if log_weights is not None:
                scaled = scaled - (scaled + log_weights).logsumexp(-1, keepdim=True)
            part = scaled.logsumexp(0)
            usage = part if usage is None else torch.logaddexp(usage, part)
        assert usage is not None
        log_weights = -(_sum_logs_of_processes(usage) if all_processes else usage)
    assert log_weights is not None
    return log_weights


def _sum_logs_of_processes(logs: torch.Tensor) -> torch.Tensor:
    # log(sum(exp(logs))) over the processes.
    largest = logs.clone()
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    total = (logs - largest).exp()
    torch.distributed.all_reduce(total)
    return total.log() + largest


class SwappedPredictionOutput(NamedTuple):
    """
    Args:
        loss (`torch.Tensor`): Mean cross-entropy over frames and views, in nats. With several processes, those of all
            have the mean over all frames as their mean.
        accuracy (`torch.Tensor`): Share of frames whose nearest code in one view is the likeliest target in the other.
        code_perplexity (`torch.Tensor`): Perplexity of the nearest codes of both views, from 1 to the number of codes.
        probability_perplexity (`torch.Tensor`): Perplexity of the mean predicted probabilities.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor
    code_perplexity: torch.Tensor
    probability_perplexity: torch.Tensor


class SwappedPrediction(nn.Module):
    """
    A codebook, and the loss by which Spin learns it (https://huggingface.co/papers/2305.11072, section 2).

    A frame is projected in two views, which differ in what the codes should not tell. The assignment of each view to
    the codes, made by [`sinkhorn`], is the target that the other view predicts:

        loss = -1/2 mean_n sum_k (q1[n, k] log p2[n, k] + q2[n, k] log p1[n, k]),  p = softmax(cosines / temperature)

    All is computed in float32, also under autocast, and in chunks of frames, so that memory does not grow with the
    number of frames times the number of codes. Codes begin as random directions; the original's begin shorter, and
    have unit length from the first update on.

    Args:
        codebook_size (`int`): Number of codes.
        codebook_dim (`int`): Dimension of a code.
        temperature (`float`): Temperature of the predictions.
        epsilon (`float`): Temperature of the targets.
        iterations (`int`): Number of Sinkhorn's iterations.
        hard_target (`bool`): Whether only the likeliest target is learnt.
        target_mix (`float`): Weight of a view's own logits in those of its target; the other view's have the rest.
        normalize (`bool`): Whether frames and codes have unit length.
        logits_at_once (`int`, *optional*): Frames times codes of a chunk.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        iterations: int = 3,
        hard_target: bool = False,
        target_mix: float = 1.0,
        normalize: bool = True,
        logits_at_once: int = _LOGITS_AT_ONCE,
    ):
        super().__init__()
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.hard_target, self.target_mix, self.normalize = hard_target, target_mix, normalize
        self.frames_at_once = max(1, logits_at_once // codebook_size)
        self.codebook = nn.Parameter(torch.empty(codebook_size, codebook_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the codes anew."""
        init.normal_(self.codebook)
        init.copy_(self.codebook, F.normalize(self.codebook, dim=-1))

    @torch.no_grad()
    def normalize_codebook(self) -> None:
        """
        Give all codes unit length, if the loss normalises. To be called with every update of the weights; between
        backward and the update, as the original does, or after the update.
        """
        if self.normalize:
            self.codebook.copy_(F.normalize(self.codebook.float(), dim=-1))

    def latents(self, projected: torch.Tensor) -> torch.Tensor:
        """The frames as they are compared with codes, of unit length if the loss normalises; in float32."""
        projected = projected.float()
        return F.normalize(projected, dim=-1) if self.normalize else projected

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        """Similarities `(..., num_codes)` of `latents` `(..., codebook_dim)` and codes, not yet by a temperature."""
        return latents @ self.codebook.float().T

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """The nearest code of each frame, `(batch, num_frames)`, of `latents` `(batch, num_frames, codebook_dim)`."""
        parts = [self.logits(part).argmax(-1) for part in latents.flatten(0, 1).split(self.frames_at_once)]
        return torch.cat(parts).view(latents.shape[:2])

    def forward(self, projected: torch.Tensor, projected_other: torch.Tensor) -> SwappedPredictionOutput:
        """
        In training mode with several processes, their frames share the codes, so all must call this.

        Args:
            projected, projected_other (`torch.Tensor` of shape `(num_frames, codebook_dim)`): The frames in both
                views, none of them padding.

        Raises:
            ValueError: If the views differ in shape, or are empty.
        """
        if projected.shape != projected_other.shape or not len(projected):
            raise ValueError(
                "The two views must have the same frames, at least one, but have the shapes "
                f"{tuple(projected.shape)} and {tuple(projected_other.shape)}."
            )
        all_processes = self.training and torch.distributed.is_available() and torch.distributed.is_initialized()
        with torch.autocast(projected.device.type, enabled=False):
            views = self.latents(projected), self.latents(projected_other)
            log_weights = [
                sinkhorn_log_weights(
                    partial(self._target_logits, own, other), self.epsilon, self.iterations, all_processes
                )
                for own, other in (views, views[::-1])
            ]
            chunks = list(zip(*(view.split(self.frames_at_once) for view in views), strict=True))
            sums = [self._chunk_sums(*chunk, log_weights, recompute=len(chunks) > 1) for chunk in chunks]
        loss, num_correct, code_counts, probabilities = (
            torch.stack(parts).sum(0) for parts in zip(*sums, strict=True)
        )
        num_predictions = 2 * len(projected)
        return SwappedPredictionOutput(
            loss=loss / self._loss_divisor(projected, all_processes),
            accuracy=num_correct / num_predictions,
            code_perplexity=_perplexity(code_counts / num_predictions),
            probability_perplexity=_perplexity(probabilities / num_predictions),
        )

    @torch.no_grad()
    def _target_logits(self, own: torch.Tensor, other: torch.Tensor) -> Iterator[torch.Tensor]:
        for part, other_part in zip(own.split(self.frames_at_once), other.split(self.frames_at_once), strict=True):
            yield self._mixed(self.logits(part), other_part)

    def _mixed(self, logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if self.target_mix == 1:
            return logits
        return self.target_mix * logits + (1 - self.target_mix) * self.logits(other)

    def _chunk_sums(
        self, view: torch.Tensor, other: torch.Tensor, log_weights: list[torch.Tensor], recompute: bool
    ) -> tuple[torch.Tensor, ...]:
        if recompute and torch.is_grad_enabled():
            # What backward needs of a chunk is computed there once more.
            return checkpoint(self._sums, view, other, *log_weights, use_reentrant=False)
        return self._sums(view, other, *log_weights)

    def _sums(
        self, view: torch.Tensor, other: torch.Tensor, log_weights: torch.Tensor, other_log_weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        # Sums over the frames of both views: loss, correct predictions, nearest codes, probabilities.
        logits, other_logits = self.logits(view), self.logits(other)
        with torch.no_grad():
            scores = self._mixed(logits, other) / self.epsilon + log_weights
            other_scores = self._mixed(other_logits, view) / self.epsilon + other_log_weights
        sums = []
        for predicted, target_scores in ((logits, other_scores), (other_logits, scores)):
            log_probabilities = (predicted / self.temperature).log_softmax(-1)
            likeliest = target_scores.argmax(-1)
            if self.hard_target:
                loss = F.nll_loss(log_probabilities, likeliest, reduction="sum")
            else:
                loss = -(target_scores.softmax(-1) * log_probabilities).sum()
            nearest = predicted.detach().argmax(-1)
            counts = nearest.bincount(minlength=len(self.codebook))
            probabilities = log_probabilities.detach().exp().sum(0)
            sums.append((loss, (nearest == likeliest).sum(), counts, probabilities))
        first, second = sums
        return tuple(a + b for a, b in zip(first, second, strict=True))

    def _loss_divisor(self, projected: torch.Tensor, all_processes: bool) -> torch.Tensor | int:
        if not all_processes:
            return 2 * len(projected)
        # Gradients are averaged over processes, which may hold unequally many frames.
        num_frames = torch.tensor(float(len(projected)), device=projected.device)
        torch.distributed.all_reduce(num_frames)
        return 2 * num_frames / torch.distributed.get_world_size()


def _perplexity(shares: torch.Tensor) -> torch.Tensor:
    return (-(shares * (shares + 1e-7).log()).sum()).exp()


__all__ = ["SwappedPrediction", "SwappedPredictionOutput", "sinkhorn", "sinkhorn_log_weights"]
