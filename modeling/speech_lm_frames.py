# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""
What a speech language model has beside its words: the inputs and outputs of whole frames of audio.

In the delay and the continuous layout the ids hold `<|audio|>` where a frame stands. The frame itself is a column of
codes ([`CodeFrames`]) or a latent vector, which the model also writes ([`LatentFrames`]) or only reads
([`ProjectedFrames`]).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .continuous_heads import LatentEmbedding, StopHead, build_head
from .latent_bottleneck import LatentStatistics
from .speech_lm_ids import IGNORED
from .speech_lm_layouts import next_targets


class CodeFrames(nn.Module):
    """
    Columns of the delay grid: each codebook has a table of its codes, BOS and EOS.

    A column is read as the sum of its rows, and written by one matrix for all codebooks. (MusicGen,
    https://huggingface.co/papers/2306.05284)

    Args:
        num_codebooks (`int`): Number of codebooks, Q.
        codebook_size (`int`): Codes of a codebook, K.
        input_size (`int`): Dimension of the language model's inputs.
        state_size (`int`): Dimension of the states that its output table reads.
    """

    def __init__(self, num_codebooks: int, codebook_size: int, input_size: int, state_size: int):
        super().__init__()
        self.num_codebooks, self.num_rows = num_codebooks, codebook_size + 2
        self.embedding = nn.Embedding(num_codebooks * self.num_rows, input_size)
        self.head = nn.Linear(state_size, num_codebooks * self.num_rows, bias=False)

    def embed(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """(batch, num_codebooks, num_positions), -1 for none -> (batch, num_positions, input_size)."""
        first = self.num_rows * torch.arange(self.num_codebooks, device=audio_codes.device)
        return self.embedding(audio_codes.clamp(min=0) + first[:, None]).sum(1)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(..., state_size) -> (..., num_codebooks, codebook_size + 2): the scores of the next column."""
        return self.head(states).unflatten(-1, (self.num_codebooks, self.num_rows))

    def entropies(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Cross entropies of the codes that stand at each position.

        Args:
            states (`torch.Tensor` of shape `(batch, num_positions, state_size)`): States at all positions.
            labels (`torch.Tensor` of shape `(batch, num_codebooks, num_positions)`): Codes at their own positions, or
                -100.

        Returns:
            `torch.Tensor` of the shape of `labels`, float32: In nats, each at the position of its label; else 0.
        """
        targets = next_targets(labels)
        is_column = (targets != IGNORED).any(1)  # (B, T)
        wanted = targets.transpose(1, 2)[is_column]  # (N, Q)
        scores = self.logits(states[is_column]).float()  # (N, Q, K + 2)
        found = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
        told = scores.new_zeros(labels.shape[0], labels.shape[2], labels.shape[1])
        told[:, 1:][is_column[:, :-1]] = found.view_as(wanted)
        return told.transpose(1, 2)


class FrozenStatistics(LatentStatistics):
    """[`LatentStatistics`] that stay in float32 when a model is put to another type."""

    def _apply(self, fn, recurse=True):
        kept = {name: buffer.clone() for name, buffer in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            now = self._buffers[name]
            if now is not None and now.dtype != before.dtype and not before.is_meta:
                self._buffers[name] = before.to(now.device)
        return self


class LatentFrames(nn.Module):
    """
    Continuous tokens: what reads them, draws the next one, and says where they end.

    Latents come and go on their own scale. Inside they have zero mean and unit variance, by `statistics`, which a
    training measures once and which then stay.

    Args:
        config ([`SpeechLMConfig`]): Kind of the head, weights and sizes.
        input_size (`int`): Dimension of the language model's inputs.
        state_size (`int`): Dimension of the states that its output table reads.
    """

    def __init__(self, config: Any, input_size: int, state_size: int):
        super().__init__()
        self.statistics = FrozenStatistics(config.latent_dim, 1, 0.5)
        self.statistics.frozen = True
        self.input = LatentEmbedding(config.latent_dim, input_size, float(config.input_noise_std))
        # Guidance here goes away from states without text, so that no head has to know states of zeros.
        options = {"condition_dropout": 0.0, **config.head_options}
        self.head = build_head(config.head, state_size, config.latent_dim, **options)
        self.stop_head = StopHead(state_size, float(config.stop_pos_weight))

    def set_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Mean and variance, each `(latent_dim,)`, of the latents of the training speech."""
        self.statistics.set(mean, variance)

    def embed(self, audio_latents: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(batch, num_positions, latent_dim) -> (batch, num_positions, input_size)."""
        return self.input.embed(self.statistics.normalize(audio_latents), generator)

    def losses(
        self,
        states: torch.Tensor,
        audio_latents: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The mean loss of the head over frames, and that of the stop head over frames and ends; 0 of none.

        Args:
            states (`torch.Tensor` of shape `(batch, num_positions, state_size)`): States at all positions.
            audio_latents (`torch.Tensor` of shape `(batch, num_positions, latent_dim)`): Latents at their positions.
            labels (`torch.Tensor` of shape `(batch, num_positions)`): At their own positions, 0 for a frame to learn,
                1 for an end, -100 for others.
            generator (`torch.Generator`, *optional*): Generator of the noise.
        """
        targets = next_targets(labels)
        normal = self.statistics.normalize(audio_latents)
        # Frames side by side, as the head reads them; other positions may lie between.
        before = [row[wanted] for row, wanted in zip(states, targets == 0, strict=True)]
        frames = [row[1:][wanted] for row, wanted in zip(normal, targets[:, :-1] == 0, strict=True)]
        hidden, wanted = pad_sequence(before, batch_first=True), pad_sequence(frames, batch_first=True)
        lengths = torch.tensor([len(row) for row in frames], device=states.device)
        mask = torch.arange(hidden.shape[1], device=states.device) < lengths[:, None]
        prediction = self.head.loss(hidden, wanted, mask.long(), generator) if hidden.shape[1] else states.sum() * 0.0
        return prediction, self.stop_head.loss(states, targets == 1, targets != IGNORED)


class ProjectedFrames(nn.Module):
    """
    Features of a speech encoder as inputs alone: neighbours stacked, through two layers, as large as words.

    (https://huggingface.co/papers/2411.08742 halves the frame rate likewise, before a single layer.)

    Args:
        config ([`SpeechLMConfig`]): Dimension of the features, stack and hidden size.
        input_size (`int`): Dimension of the language model's inputs.
    """

    def __init__(self, config: Any, input_size: int):
        super().__init__()
        self.stack, self.noise_std = int(config.projector_stack), float(config.input_noise_std)
        self.statistics = FrozenStatistics(config.latent_dim, 1, 0.5)
        self.statistics.frozen = True
        hidden = int(config.projector_hidden) or 2 * input_size
        self.hidden = nn.Linear(config.frame_size, hidden)
        self.output = nn.Linear(hidden, input_size)
        self.size = nn.Parameter(torch.ones(()))

    def set_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Mean and variance, each `(latent_dim,)`, of the features of the training speech."""
        self.statistics.set(mean, variance)

    @torch.no_grad()
    def match(self, words: torch.Tensor) -> None:
        """Make what is read as large as words `(num_words, input_size)`, by the root of their mean square."""
        self.size.fill_(float(words.float().square().mean().sqrt()))

    def embed(self, audio_latents: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(batch, num_positions, stack * latent_dim) -> (batch, num_positions, input_size)."""
        frames = self.statistics.normalize(audio_latents.unflatten(-1, (self.stack, -1))).flatten(-2)
        if self.training and self.noise_std > 0:
            frames = frames + self.noise_std * torch.randn(frames.shape, generator=generator, device=frames.device)
        read = self.output(F.gelu(self.hidden(frames.to(self.hidden.weight.dtype))))
        return self.size * F.rms_norm(read, read.shape[-1:])


def stacked_frames(frames: torch.Tensor, stack: int) -> torch.Tensor:
    """
    Neighbouring frames beside each other; the last one is repeated where they do not fill a position.

    Args:
        frames (`torch.Tensor` of shape `(num_frames, latent_dim)`): Frames, at least one.
        stack (`int`): Number of frames of a position.

    Returns:
        `torch.Tensor` of shape `(ceil(num_frames / stack), stack * latent_dim)`.
    """
    missing = -len(frames) % stack
    return torch.cat([frames, frames[-1:].expand(missing, -1)]).reshape(-1, stack * frames.shape[1])


__all__ = ["CodeFrames", "LatentFrames", "ProjectedFrames", "stacked_frames"]
