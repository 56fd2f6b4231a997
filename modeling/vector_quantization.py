# SPDX-License-Identifier: Apache-2.0
"""Vector quantization with moving-average codebooks, plain and residual."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import distributed, nn

from .input_checks import check_whole_number


class QuantizerOutput(NamedTuple):
    """
    Attributes:
        quantized_latents: Latents (batch, num_frames, hidden_size); gradients pass straight through to those before
            quantization.
        audio_codes: Codebook indices (batch, num_quantizers, num_frames), long.
        commitment_loss: Scalar, mean over stages.
        stage_quantized: One (batch, num_frames, codebook_dim) tensor a stage, each with a straight-through gradient.
    """

    quantized_latents: torch.Tensor
    audio_codes: torch.Tensor
    commitment_loss: torch.Tensor
    stage_quantized: tuple[torch.Tensor, ...]


def nearest_entries(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """
    Index of the nearest codebook entry in Euclidean distance: (..., dim), (codebook_size, dim) -> (...), long.
    """
    # Seen from the codebook's centre, since a common offset larger than the spread would drown the differences in
    # rounding. |v|^2 is the same for every entry and left out.
    centre = codebook.mean(dim=0)
    vectors, codebook = vectors - centre, codebook - centre
    scores = torch.addmm(codebook.square().sum(dim=-1), vectors.flatten(0, -2), codebook.t(), beta=-0.5)
    return scores.max(dim=-1).indices.view(vectors.shape[:-1])  # on CPUs, `argmax` takes several times as long


def cluster_sums(
    vectors: torch.Tensor, clusters: torch.Tensor, num_clusters: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Number of vectors in each cluster, (num_clusters,), and their sum, (num_clusters, dim), in the vectors' dtype.

    Args:
        vectors (`torch.Tensor` of shape `(num_vectors, dim)`): The vectors.
        clusters (`torch.Tensor` of shape `(num_vectors,)`): Index of the cluster of each vector.
        num_clusters (`int`): Number of clusters.
    """
    if vectors.device.type == "cpu":
        counts = torch.bincount(clusters, minlength=num_clusters).to(vectors.dtype)
        return counts, vectors.new_zeros(num_clusters, vectors.shape[1]).index_add_(0, clusters, vectors)
    # Elsewhere sums of one cluster would be added in an order that changes from run to run.
    assignment = F.one_hot(clusters, num_clusters).to(vectors.dtype)  # (N, K)
    return assignment.sum(dim=0), assignment.t() @ vectors


def kmeans(vectors: torch.Tensor, means: torch.Tensor, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Lloyd's algorithm; a cluster that loses all its vectors keeps its mean.

    Args:
        vectors (`torch.Tensor` of shape `(num_vectors, dim)`): Vectors to cluster.
        means (`torch.Tensor` of shape `(num_clusters, dim)`): Means to start from.
        iterations (`int`): Largest number of times that the means move; they stop earlier if nothing changes any more.

    Returns:
        The means, and the number of vectors in each cluster at the last assignment, (num_clusters,).
    """
    counts, clusters = means.new_zeros(len(means)), None
    for _ in range(iterations):
        previous, clusters = clusters, nearest_entries(vectors, means)
        if previous is not None and torch.equal(previous, clusters):
            break  # nothing moves any more
        counts, sums = cluster_sums(vectors, clusters, len(means))
        moved = sums / counts.clamp(min=1).unsqueeze(-1)
        means = torch.where(counts.unsqueeze(-1) > 0, moved, means)
    return means, counts


def several_processes() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows (num_rows, dim) of all processes in rank order; their number may differ from process to process."""
    if not several_processes():
        return rows
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(size) for size in sizes]
    padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows))).contiguous()
    gathered = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


class FreezableModule(nn.Module):
    """A module that stays in evaluation mode, in which nothing is updated, while its `frozen` is true."""

    frozen = False

    def train(self, mode: bool = True):
        return super().train(mode and not self.frozen)


class VectorQuantizer(FreezableModule):
    """
    One codebook, learnt as exponential moving averages of the vectors it codes (van den Oord et al. 2017, appendix
    A.1).

    Entries that fall out of use are moved onto vectors of the current batch, and their averages with them. With the
    old averages, the next update would undo the move, which is what happens in the EnCodec lineage.

    Args:
        codebook_size (`int`): Number of entries.
        codebook_dim (`int`): Dimension of an entry.
        ema_decay (`float`): Decay of the averages.
        kmeans_iterations (`int`): Lloyd iterations on the first training batch; 0 starts from random entries.
        dead_code_threshold (`float`): Share of the uniform use below which an entry is replaced.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        ema_decay: float = 0.99,
        kmeans_iterations: int = 50,
        dead_code_threshold: float = 0.1,
    ):
        super().__init__()
        self.ema_decay = ema_decay
        self.kmeans_iterations = kmeans_iterations
        self.dead_code_threshold = dead_code_threshold
        self.register_buffer("codebook", torch.randn(codebook_size, codebook_dim))
        self.register_buffer("codebook_sum", self.codebook.clone())
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("initialized", torch.tensor(False))

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """(..., codebook_dim) -> (...), long."""
        return nearest_entries(vectors, self.codebook)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """(...), long -> (..., codebook_dim)."""
        return F.embedding(codes, self.codebook)

    @torch.no_grad()
    def initialize(self, vectors: torch.Tensor, generator: torch.Generator):
        """Start at the cluster means of `vectors` (num_vectors, codebook_dim), pooled over all processes."""
        self.fit(gather_rows(vectors), generator)

    @torch.no_grad()
    def fit(self, vectors: torch.Tensor, generator: torch.Generator, batch_size: int | None = None):
        """
        Start at the cluster means of vectors that all processes have alike.

        Args:
            vectors (`torch.Tensor` of shape `(num_vectors, codebook_dim)`): Vectors to cluster.
            generator (`torch.Generator`): Generator that draws the first means; in the same state on every process.
            batch_size (`int`, *optional*): Vectors of a training batch over all processes, to whose counts the
                averages are scaled. Defaults to the number of vectors.
        """
        if len(vectors) == 0:
            return
        self.initialized.fill_(True)
        if self.kmeans_iterations == 0:
            return
        means, counts = kmeans(vectors, self._sample(vectors, len(self.codebook), generator), self.kmeans_iterations)
        if batch_size is not None:
            counts = counts * (batch_size / len(vectors))
        self.codebook.copy_(means)
        self.cluster_size.copy_(counts)
        self.codebook_sum.copy_(means * counts.unsqueeze(-1))

    @torch.no_grad()
    def update(self, vectors: torch.Tensor, codes: torch.Tensor, generator: torch.Generator):
        """
        Move the entries towards the vectors that they code.

        Args:
            vectors (`torch.Tensor` of shape `(num_vectors, codebook_dim)`): Vectors of this process's share of the
                batch.
            codes (`torch.Tensor` of shape `(num_vectors,)`): Index of the entry that codes each vector.
            generator (`torch.Generator`): Generator that draws the replacements of unused entries; in the same state
                on every process.
        """
        counts, sums = cluster_sums(vectors, codes, len(self.codebook))
        statistics = torch.cat([counts.unsqueeze(-1), sums], dim=-1)  # (K, 1 + D)
        if several_processes():
            distributed.all_reduce(statistics)
        self.cluster_size.lerp_(statistics[:, 0], 1 - self.ema_decay)
        self.codebook_sum.lerp_(statistics[:, 1:], 1 - self.ema_decay)

        uniform_use = self.cluster_size.mean()
        dead = self.cluster_size < self.dead_code_threshold * uniform_use
        if dead.any():
            candidates = gather_rows(vectors)
            if len(candidates) == 0:
                return
            self.codebook_sum[dead] = self._sample(candidates, int(dead.sum()), generator) * uniform_use
            self.cluster_size[dead] = uniform_use

        # Laplace smoothing keeps an entry finite while its count goes to zero.
        total, epsilon = self.cluster_size.sum(), 1e-5
        smoothed = (self.cluster_size + epsilon) / (total + len(self.codebook) * epsilon) * total
        self.codebook.copy_(self.codebook_sum / smoothed.unsqueeze(-1))

    @staticmethod
    def _sample(vectors: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        """`count` of the vectors, without repetition where there are enough."""
        repeats = -(-count // len(vectors))
        order = torch.cat([torch.randperm(len(vectors), generator=generator) for _ in range(repeats)])
        return vectors[order[:count].to(vectors.device)]


class ResidualVectorQuantizer(FreezableModule):
    """
    Code each latent frame as a sum of entries from successive codebooks.

    With r_0 = z, stage k picks the entry e_k nearest to r_{k-1} and leaves r_k = r_{k-1} - sg(e_k), where sg stops
    gradients; the output is sum_k e_k. (SoundStream, Algorithm 1: arXiv 2107.03312)

    Random draws (initialisation, replaced entries, quantizer dropout) are seeded by the number of training batches so
    far. They are the same on every process and after a resume, and leave PyTorch's global generators alone.

    Args:
        num_quantizers (`int`): Number of codebooks, coarse to fine.
        codebook_size (`int`): Entries per codebook; a frame costs `num_quantizers * log2(codebook_size)` bits.
        codebook_dim (`int`): Dimension of an entry.
        hidden_size (`int`): Dimension of the latents; linear layers lead to `codebook_dim` and back where the two
            differ.
        quantizer_dropout (`float`): Probability of a training batch with fewer codebooks.
        codebook_options: Arguments of each [`VectorQuantizer`].
    """

    def __init__(
        self,
        num_quantizers: int,
        codebook_size: int,
        codebook_dim: int,
        hidden_size: int,
        quantizer_dropout: float = 0.0,
        **codebook_options,
    ):
        super().__init__()
        self.quantizer_dropout = quantizer_dropout
        factorised = codebook_dim != hidden_size
        self.project_in = nn.Linear(hidden_size, codebook_dim) if factorised else nn.Identity()
        self.project_out = nn.Linear(codebook_dim, hidden_size) if factorised else nn.Identity()
        self.quantizers = nn.ModuleList(
            VectorQuantizer(codebook_size, codebook_dim, **codebook_options) for _ in range(num_quantizers)
        )
        self.register_buffer("num_updates", torch.tensor(0))

    def encode(self, latents: torch.Tensor, num_quantizers: int | None = None) -> torch.Tensor:
        """(batch, num_frames, hidden_size) -> (batch, num_quantizers, num_frames), long."""
        codes = []
        with torch.autocast(latents.device.type, enabled=False):
            residual = self.project_in(latents.to(self.quantizers[0].codebook.dtype))
            for quantizer in self.quantizers[: self._check(num_quantizers)]:
                code = quantizer.encode(residual)
                residual = residual - quantizer.decode(code)
                codes.append(code)
        return torch.stack(codes, dim=1)

    def decode(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """(batch, num_quantizers, num_frames), long -> (batch, num_frames, hidden_size)."""
        self._check(audio_codes.shape[1])
        quantized = self.quantizers[0].decode(audio_codes[:, 0])
        for quantizer, codes in zip(self.quantizers[1:], audio_codes.unbind(dim=1)[1:], strict=False):
            quantized = quantized + quantizer.decode(codes)
        return self.project_out(quantized)

    @torch.no_grad()
    def fit(self, latents: torch.Tensor, generator: torch.Generator, batch_size: int | None = None):
        """
        Start each codebook at the cluster means of what the codebooks before it leave of latents.

        Args:
            latents (`torch.Tensor` of shape `(num_frames, hidden_size)`): Latents, the same on every process.
            generator, batch_size: Arguments of [`VectorQuantizer.fit`].
        """
        residual = self.project_in(latents.to(self.quantizers[0].codebook.dtype))
        for quantizer in self.quantizers:
            quantizer.fit(residual, generator, batch_size)
            residual = residual - quantizer.decode(quantizer.encode(residual))

    def forward(
        self, latents: torch.Tensor, num_quantizers: int | None = None, mask: torch.Tensor | None = None
    ) -> QuantizerOutput:
        """
        Quantize with gradients; in training mode also update the codebooks.

        With `num_quantizers=0` the latents pass unquantized (through the projections, where there are any), and
        nothing is initialised or updated.

        Args:
            latents (`torch.Tensor` of shape `(batch, num_frames, hidden_size)`): Encoder output.
            num_quantizers (`int`, *optional*): Number of first codebooks to use, for a lower bit rate, or 0 for none.
                Defaults to all.
            mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for frames that count.

        Raises:
            ValueError: If `num_quantizers` is not between 0 and the number of codebooks.
        """
        used = self._check(num_quantizers, least=0)
        if used == 0:
            return self._unquantized(latents)
        with torch.autocast(latents.device.type, enabled=False):
            projected = self.project_in(latents.to(self.quantizers[0].codebook.dtype))
            weight = torch.ones_like(projected[..., :1]) if mask is None else mask.unsqueeze(-1).to(projected.dtype)
            denominator = weight.sum().clamp(min=1) * projected.shape[-1]
            generator = learnt = None
            if self.training:
                # A frame that is not finite would stay in the averages for ever.
                learnt = projected.detach().isfinite().all(dim=-1)  # (B, F)
                learnt = learnt if mask is None else learnt & mask.bool()
                generator = torch.Generator().manual_seed(int(self.num_updates))
                self.num_updates += 1
                if num_quantizers is None and torch.rand((), generator=generator) < self.quantizer_dropout:
                    used = int(torch.randint(1, used + 1, (), generator=generator))

            residual, total, stages, codes, commitment = projected, 0.0, [], [], []
            for quantizer in self.quantizers[:used]:
                if quantizer.training:
                    rows = residual.detach()[learnt]
                    if not quantizer.initialized:
                        quantizer.initialize(rows, generator)
                code = quantizer.encode(residual.detach())
                entry = quantizer.decode(code)
                if quantizer.training:
                    quantizer.update(rows, code[learnt], generator)
                commitment.append(((residual - entry).square() * weight).sum() / denominator)
                stages.append(residual + (entry - residual).detach())
                total = total + entry
                residual = self.remainder(residual, entry)
                codes.append(code)

            quantized = total + (projected - projected.detach())  # straight-through, and exactly the sum of entries
            return QuantizerOutput(
                quantized_latents=self.project_out(quantized).to(latents.dtype),
                audio_codes=torch.stack(codes, dim=1),
                commitment_loss=torch.stack(commitment).mean(),
                stage_quantized=tuple(stages),
            )

    def _unquantized(self, latents: torch.Tensor) -> QuantizerOutput:
        with torch.autocast(latents.device.type, enabled=False):
            passed = self.project_out(self.project_in(latents.to(self.quantizers[0].codebook.dtype)))
        return QuantizerOutput(
            quantized_latents=passed.to(latents.dtype),
            audio_codes=torch.empty(len(latents), 0, latents.shape[1], dtype=torch.long, device=latents.device),
            commitment_loss=passed.new_zeros(()),
            stage_quantized=(),
        )

    def remainder(self, residual: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """What a stage leaves to the next. Entries are buffers, so every stage sends its gradient to the encoder."""
        return residual - entry

    def _check(self, num_quantizers: int | None, least: int = 1) -> int:
        if num_quantizers is None:
            return len(self.quantizers)
        return check_whole_number(num_quantizers, "num_quantizers", least, len(self.quantizers))
