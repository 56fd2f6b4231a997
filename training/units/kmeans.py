# SPDX-License-Identifier: Apache-2.0
"""
Mini-batch k-means over frames that need not fit into memory, on CPU or GPU, shared among processes.

The same frames, options and seed give exactly the same centroids in any number of processes: a frame's distances are
computed in blocks of one size, and sums are of whole numbers, which do not depend on their order.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from tqdm import tqdm

from speech_tokenizers.processing.whole_files import WholeFile
from speech_tokenizers.training.common.checkpoint_faults import remove_damaged
from speech_tokenizers.training.common.checkpoints import load_plain


# Number of frames that are compared with the centroids at once. Processes share a batch by such blocks.
FRAMES_PER_BLOCK = 512


@dataclass(frozen=True)
class FrameStream:
    """
    Frames that can be read in order only, again for each epoch.

    Args:
        blocks (callable): Function that gives, for an epoch counted from 0, its frames as arrays or tensors of shape
            `(any, feature_size)`. They are the same for the same epoch, in every process. Their order should be
            random.
        num_frames (`int`): Number of frames of an epoch.
    """

    blocks: Callable[[int], Iterable[np.ndarray | torch.Tensor]]
    num_frames: int


Frames: TypeAlias = np.ndarray | torch.Tensor | FrameStream


@dataclass(frozen=True)
class KMeansResult:
    """
    Args:
        centroids (`torch.Tensor` of shape `(num_clusters, feature_size)`): Centroids in float32, on the CPU.
        counts (`torch.Tensor` of shape `(num_clusters,)`): Number of frames that each centroid is the mean of, in
            `long`.
        inertia (`float`): Squared distance of a frame to its centroid, averaged over the last batches.
        num_steps (`int`): Number of batches that were seen.
    """

    centroids: torch.Tensor
    counts: torch.Tensor
    inertia: float
    num_steps: int


def fit_kmeans(
    frames: Frames,
    num_clusters: int,
    *,
    seed: int = 0,
    batch_size: int = 10000,
    max_epochs: float = 100,
    max_no_improvement: int | None = 100,
    num_init: int = 20,
    init_size: int | None = None,
    reassignment_ratio: float = 0.0,
    initial_centroids: torch.Tensor | None = None,
    accelerator: Accelerator | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_steps: int = 200,
    description: str = "k-means",
    show_progress: bool | None = None,
) -> KMeansResult:
    """
    Fit centroids by mini-batch k-means, with the options of HuBERT's authors by default. (Sculley 2010,
    https://doi.org/10.1145/1772690.1772862, with the start and the stopping rule of scikit-learn's `MiniBatchKMeans`)

    The centroids start as the best of `num_init` draws by k-means++. A centroid is always the mean of all frames that
    it was given.

    Args:
        frames (`np.ndarray` or `torch.Tensor` of shape `(num_frames, feature_size)`, or [`FrameStream`]): Frames to
            cluster. An array may be memory-mapped and of half precision; each batch is drawn from it at random. Every
            process is given the same frames and computes its share of each batch.
        num_clusters (`int`): Number of centroids.
        seed (`int`, *optional*, defaults to 0): Seed for all draws.
        batch_size (`int`, *optional*, defaults to 10000): Number of frames of a step, over all processes.
        max_epochs (`float`, *optional*, defaults to 100): Number of epochs after which the fit stops. A part of an
            epoch counts by its frames.
        max_no_improvement (`int`, *optional*, defaults to 100): Number of steps without a fall of the smoothed inertia
            after which the fit stops. With `None`, all steps are made.
        num_init (`int`, *optional*, defaults to 20): Number of draws of initial centroids.
        init_size (`int`, *optional*): Number of frames that the initial centroids are drawn from. Defaults to three
            batches.
        reassignment_ratio (`float`, *optional*, defaults to 0.0): Share of the largest centroid's frames. Centroids
            with this share or less are moved onto random frames now and then. With 0, none is.
        initial_centroids (`torch.Tensor` of shape `(num_clusters, feature_size)`, *optional*): Centroids to start
            from.
        accelerator (`Accelerator`, *optional*): Accelerator of the processes that share the work. It tells the device
            too. Without it, this process works alone, on the CPU.
        checkpoint (`str` or `Path`, *optional*): File to keep the state in. Where it exists, the fit continues from
            there, to the same result as without the interruption.
        checkpoint_steps (`int`, *optional*, defaults to 200): Number of steps from one writing of the checkpoint to
            the next.
        description (`str`, *optional*, defaults to `"k-means"`): Words for the progress bar.
        show_progress (`bool`, *optional*): Whether to show bars. Defaults to whether standard error is a terminal.

    Returns:
        [`KMeansResult`], the same in all processes.

    Raises:
        ValueError: If an option is impossible, there are fewer distinct frames than clusters, a frame has NaN or
            infinity, or the checkpoint is of another fit.
    """
    num_frames = frames.num_frames if isinstance(frames, FrameStream) else len(frames)
    if not isinstance(frames, FrameStream) and frames.ndim != 2:
        raise ValueError(f"`frames` must have the shape (num_frames, feature_size), but has {tuple(frames.shape)}.")
    positive = {
        "num_clusters": num_clusters,
        "batch_size": batch_size,
        "max_epochs": max_epochs,
        "num_init": num_init,
        "checkpoint_steps": checkpoint_steps,
        "max_no_improvement": 1 if max_no_improvement is None else max_no_improvement,
        "init_size": 1 if init_size is None else init_size,
    }
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, but got {value}.")
    if not 0 <= reassignment_ratio < 1:
        raise ValueError(f"`reassignment_ratio` must lie between 0 and 1, but got {reassignment_ratio}.")
    if num_frames < num_clusters:
        raise ValueError(
            f"`num_clusters` is {num_clusters}, but there are only {num_frames} frames; give more speech."
        )

    batch_size = min(batch_size, num_frames)
    init_size = min(num_frames, max(init_size or 3 * batch_size, 3 * num_clusters))
    processes = _Processes(accelerator, show_progress)
    initial_frames = _initial_frames(frames, init_size, seed).to(processes.device)
    if not torch.isfinite(initial_frames).all():
        raise ValueError("`frames` have NaN or infinity.")
    if initial_centroids is not None and initial_centroids.shape != (num_clusters, initial_frames.shape[1]):
        raise ValueError(
            f"`initial_centroids` must have the shape {(num_clusters, initial_frames.shape[1])}, but has"
            f" {tuple(initial_centroids.shape)}."
        )
    identity = {
        "num_frames": num_frames,
        "frames": _digest(initial_frames),
        "num_clusters": num_clusters,
        "seed": seed,
        "batch_size": batch_size,
        "num_init": num_init,
        "init_size": init_size,
        "reassignment_ratio": reassignment_ratio,
        "initial_centroids": None if initial_centroids is None else _digest(initial_centroids),
    }
    path = None if checkpoint is None else Path(checkpoint)
    state = None if path is None else _load_state(path, identity, processes)
    if state is None:
        if initial_centroids is None:
            initial_centroids = _best_start(initial_frames, num_clusters, num_init, seed, processes)
        state = _State(
            initial_centroids.to(processes.device, torch.float64),
            torch.zeros(num_clusters, dtype=torch.long, device=processes.device),
        )
        _save_state(path, state, identity, processes)
    del initial_frames

    num_steps = max(1, int(max_epochs * num_frames) // batch_size)
    smoothing = min(1.0, 2 * batch_size / (num_frames + 1))
    batches = _batches(frames, batch_size, seed, state.num_steps, processes)
    with tqdm(
        total=num_steps, initial=state.num_steps, desc=description, unit="batch", disable=processes.progress_disabled
    ) as progress:
        while state.num_steps < num_steps and not state.has_converged(max_no_improvement):
            _step(state, next(batches), batch_size, seed, reassignment_ratio, smoothing, processes)
            progress.update()
            progress.set_postfix(inertia=f"{state.inertia:.4g}", refresh=False)
            if state.num_steps % checkpoint_steps == 0:
                _save_state(path, state, identity, processes)
    _save_state(path, state, identity, processes)
    return KMeansResult(state.centroids.float().cpu(), state.counts.cpu(), state.inertia, state.num_steps)


def assign(frames: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """
    Number of the nearest centroid of each frame.

    Args:
        frames (`torch.Tensor` of shape `(num_frames, feature_size)`): Frames of any floating-point type.
        centroids (`torch.Tensor` of shape `(num_clusters, feature_size)`): Centroids on the same device.

    Returns:
        `torch.Tensor` of shape `(num_frames,)` and type `long`.

    Raises:
        ValueError: If the sizes of features differ.
    """
    if frames.ndim != 2 or frames.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"`frames` must have the shape (num_frames, {centroids.shape[1]}), but has {tuple(frames.shape)}."
        )
    labels = torch.empty(len(frames), dtype=torch.long, device=frames.device)
    transposed = centroids.float().T.contiguous()
    half_norms = transposed.square().sum(dim=0) / 2
    for first in range(0, len(frames), FRAMES_PER_BLOCK):
        block = frames[first : first + FRAMES_PER_BLOCK].float()
        # All blocks have one size, since a matrix product may round otherwise when it has fewer rows.
        padded = F.pad(block, (0, 0, 0, FRAMES_PER_BLOCK - len(block)))
        labels[first : first + len(block)] = torch.addmm(half_norms, padded, transposed, alpha=-1).argmin(1)[
            : len(block)
        ]
    return labels


def mean_squared_distance(
    frames: np.ndarray | torch.Tensor, centroids: torch.Tensor, accelerator: Accelerator | None = None
) -> float:
    """
    Squared distance of a frame to its centroid, averaged over all frames.

    Args:
        frames (`np.ndarray` or `torch.Tensor` of shape `(num_frames, feature_size)`): Frames, as in [`fit_kmeans`].
        centroids (`torch.Tensor` of shape `(num_clusters, feature_size)`): Centroids of a [`KMeansResult`].
        accelerator (`Accelerator`, *optional*): Accelerator of the processes, as in [`fit_kmeans`].
    """
    processes = _Processes(accelerator)
    centroids = centroids.to(processes.device)
    total = torch.zeros((), dtype=torch.float64, device=processes.device)
    size = 16 * FRAMES_PER_BLOCK
    for first in range(processes.index * size, len(frames), processes.count * size):
        block = _float_tensor(frames[first : first + size]).to(processes.device)
        total += (block - centroids[assign(block, centroids)]).square().sum(dtype=torch.float64)
    return float(processes.sum(total)) / len(frames)


class _Processes:
    # The processes that share the work, or this one alone.

    def __init__(self, accelerator: Accelerator | None, show_progress: bool | None = None):
        self.device = torch.device("cpu") if accelerator is None else accelerator.device
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.index = 0 if accelerator is None else accelerator.process_index
        self.is_main = self.index == 0
        self.progress_disabled = True if not self.is_main else None if show_progress is None else not show_progress

    def share(self, size: int) -> np.ndarray:
        # Rows of a batch that this process works on: every `count`-th block.
        rows = np.arange(size)
        return rows[rows // FRAMES_PER_BLOCK % self.count == self.index]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.count > 1:
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor


@dataclass
class _State:
    centroids: torch.Tensor  # (K, D), float64
    counts: torch.Tensor  # (K,), long
    num_steps: int = 0
    inertia: float = math.nan
    lowest_inertia: float = math.inf
    steps_without_improvement: int = 0
    frames_since_reassignment: int = 0

    def has_converged(self, max_no_improvement: int | None) -> bool:
        return max_no_improvement is not None and self.steps_without_improvement >= max_no_improvement


def _step(
    state: _State,
    batch: torch.Tensor,
    batch_size: int,
    seed: int,
    reassignment_ratio: float,
    smoothing: float,
    processes: _Processes,
) -> None:
    # `batch` is this process's share of the `batch_size` frames, (n, D).
    labels = assign(batch, state.centroids)
    distances = (batch - state.centroids.float()[labels]).square().sum(dim=1)
    sums, counts, inertia = _exact_sums(batch, labels, distances, len(state.counts), batch_size, processes)

    total = state.counts + counts
    weighted = state.centroids * state.counts[:, None] + sums
    state.centroids = torch.where(counts[:, None] > 0, weighted / total.clamp(min=1)[:, None], state.centroids)
    state.counts = total
    if reassignment_ratio > 0:
        _reassign(state, batch, batch_size, seed, reassignment_ratio, processes)

    state.num_steps += 1
    if state.num_steps == 1:  # measured with the initial centroids, it would be no fair start of the average
        state.inertia = inertia
        return
    state.inertia = inertia if state.num_steps == 2 else state.inertia + smoothing * (inertia - state.inertia)
    if state.inertia < state.lowest_inertia:
        state.lowest_inertia, state.steps_without_improvement = state.inertia, 0
    else:
        state.steps_without_improvement += 1


def _exact_sums(
    batch: torch.Tensor,
    labels: torch.Tensor,
    distances: torch.Tensor,
    num_clusters: int,
    batch_size: int,
    processes: _Processes,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    # Sum (K, D) and number (K,) of the frames of each cluster, and the mean distance, over all processes. Numbers are
    # scaled by a power of two and rounded to whole ones: their sums are the same in any order and on any device.
    largest = torch.stack([part.abs().max() if part.numel() else part.new_zeros(()) for part in (batch, distances)])
    largest = processes.maximum(largest.double().nan_to_num(nan=math.inf, posinf=math.inf)).tolist()
    if not all(map(math.isfinite, largest)):
        raise ValueError("`frames` have NaN or infinity, or numbers too large to square.")
    frame_scale, distance_scale = (2.0 ** (61 - math.frexp(max(value, 1e-30) * batch_size)[1]) for value in largest)

    feature_size = batch.shape[1]
    packed = torch.zeros(num_clusters + 1, feature_size + 1, dtype=torch.long, device=batch.device)
    packed[:-1, :-1].index_add_(0, labels, (batch.double() * frame_scale).round().long())
    packed[:-1, -1] = torch.bincount(labels, minlength=num_clusters)
    packed[-1, -1] = (distances.double() * distance_scale).round().long().sum()
    packed = processes.sum(packed)
    sums, counts, distance = packed[:-1, :-1].double() / frame_scale, packed[:-1, -1], int(packed[-1, -1])
    return sums, counts, distance / distance_scale / batch_size


def _reassign(
    state: _State, batch: torch.Tensor, batch_size: int, seed: int, ratio: float, processes: _Processes
) -> None:
    # As in scikit-learn: at once while a cluster is empty, else after ten frames for each cluster.
    state.frames_since_reassignment += batch_size
    if state.counts.min() > 0 and state.frames_since_reassignment < 10 * len(state.counts):
        return
    state.frames_since_reassignment = 0
    order = state.counts.argsort(stable=True)[: batch_size // 2]
    poor = order[state.counts[order] < ratio * state.counts.max()]
    if len(poor) == 0:
        return
    generator = np.random.default_rng([seed, 2, state.num_steps])
    chosen = generator.choice(batch_size, len(poor), replace=False)
    places = {row: place for place, row in enumerate(processes.share(batch_size).tolist())}
    moved = torch.zeros(len(poor), batch.shape[1], dtype=torch.float64, device=batch.device)
    for i, row in enumerate(chosen.tolist()):
        if row in places:
            moved[i] = batch[places[row]].double()
    rich = torch.ones_like(state.counts, dtype=torch.bool)
    rich[poor] = False
    state.centroids[poor] = processes.sum(moved)
    state.counts[poor] = state.counts[rich].min()


def _float_tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    return array.float() if isinstance(array, torch.Tensor) else torch.from_numpy(np.asarray(array, dtype=np.float32))


def _rows(frames: np.ndarray | torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    return _float_tensor(frames[torch.from_numpy(rows)] if isinstance(frames, torch.Tensor) else frames[rows])


def _initial_frames(frames: Frames, size: int, seed: int) -> torch.Tensor:
    if isinstance(frames, FrameStream):
        return next(_regrouped(frames.blocks(0), size))
    if size == len(frames):
        return _float_tensor(frames[:])
    return _rows(frames, np.sort(np.random.default_rng([seed, 0]).choice(len(frames), size, replace=False)))


def _batches(
    frames: Frames, batch_size: int, seed: int, first_step: int, processes: _Processes
) -> Iterator[torch.Tensor]:
    # This process's share of every batch from `first_step` on, without end.
    share = processes.share(batch_size)
    if isinstance(frames, FrameStream):
        steps_per_epoch = frames.num_frames // batch_size
        epoch, skipped = divmod(first_step, steps_per_epoch)
        while True:
            for number, batch in enumerate(_regrouped(frames.blocks(epoch), batch_size)):
                if skipped <= number < steps_per_epoch:
                    yield batch[torch.from_numpy(share)].to(processes.device)
            if number + 1 < steps_per_epoch:
                raise ValueError(
                    f"`frames.num_frames` is {frames.num_frames}, but epoch {epoch} has fewer than"
                    f" {(number + 2) * batch_size} frames."
                )
            epoch, skipped = epoch + 1, 0
    for step in range(first_step, 2**62):
        # In their order in the file, which is read faster so.
        rows = np.sort(np.random.default_rng([seed, 1, step]).integers(len(frames), size=batch_size))
        yield _rows(frames, rows[share]).to(processes.device)


def _regrouped(blocks: Iterable[np.ndarray | torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    # The same frames in parts of `size`; what is left at the end is dropped, unless it is all.
    kept: list[torch.Tensor] = []
    num_kept, num_parts = 0, 0
    for block in blocks:
        kept.append(_float_tensor(block))
        num_kept += len(block)
        while num_kept >= size:
            joined = torch.cat(kept)
            yield joined[:size]
            kept, num_kept, num_parts = [joined[size:]], num_kept - size, num_parts + 1
    if num_parts == 0:
        raise ValueError(f"`frames` should have {size} frames in an epoch, but have {num_kept}.")


def _best_start(
    frames: torch.Tensor, num_clusters: int, num_init: int, seed: int, processes: _Processes
) -> torch.Tensor:
    # Each draw is one process's work from beginning to end, so that it is the same however many there are.
    best_rows = None
    inertias = torch.zeros(num_init, dtype=torch.float64, device=frames.device)
    starts = torch.zeros(num_init, num_clusters, dtype=torch.long, device=frames.device)
    mine = range(processes.index, num_init, processes.count)
    for number in tqdm(mine, desc="initial centroids", unit="draw", disable=processes.progress_disabled):
        starts[number], inertias[number] = _k_means_plus_plus(frames, num_clusters, [seed, 3, number])
    inertias, starts = processes.sum(inertias), processes.sum(starts)
    best_rows = starts[int(inertias.argmin())]
    if len(torch.unique(best_rows)) < num_clusters:
        raise ValueError(
            f"`num_clusters` is {num_clusters}, but the {len(frames)} frames that the centroids are to start from have"
            " fewer distinct ones; give other speech or fewer clusters."
        )
    return frames[best_rows]


def _k_means_plus_plus(frames: torch.Tensor, num_clusters: int, seed: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    # Rows of the chosen frames, and the inertia that they leave. Each is the best of several frames drawn with a
    # probability proportional to the squared distance to those chosen before (Arthur and Vassilvitskii 2007).
    generator = np.random.default_rng(seed)
    num_trials = 2 + int(math.log(num_clusters))
    norms = frames.square().sum(dim=1)

    def squared_distances(rows: torch.Tensor) -> torch.Tensor:  # (trials, N)
        return (norms + norms[rows, None] - 2 * frames[rows] @ frames.T).clamp_(min=0).scatter_(1, rows[:, None], 0)

    row = torch.tensor([int(generator.integers(len(frames)))], device=frames.device)
    chosen, distances = [row], squared_distances(row)[0]
    for _ in range(1, num_clusters):
        cumulative = distances.cumsum(0, dtype=torch.float64)
        targets = torch.from_numpy(generator.random(num_trials)).to(frames.device) * cumulative[-1]
        rows = torch.searchsorted(cumulative, targets, right=True).clamp(max=len(frames) - 1)
        candidates = torch.minimum(distances, squared_distances(rows))
        best = candidates.sum(dim=1, dtype=torch.float64).argmin()
        chosen.append(rows[best][None])
        distances = candidates[best]
    return torch.cat(chosen), distances.sum(dtype=torch.float64)


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _save_state(path: Path | None, state: _State, identity: dict[str, Any], processes: _Processes) -> None:
    # Whole or not at all. Only the main process writes; the others hold the same.
    if path is None or not processes.is_main:
        return
    with WholeFile(path) as temporary, temporary.open("wb") as file:
        torch.save({"identity": identity, "state": vars(state)}, file)
        file.flush()
        os.fsync(file.fileno())


def _load_state(path: Path, identity: dict[str, Any], processes: _Processes) -> _State | None:
    # Read by the main process alone, which is the one that writes.
    if processes.is_main:
        remove_damaged(path, "this k-means begins anew, to the same result")
    saved = [load_plain(path) if processes.is_main and path.is_file() else None]
    if processes.count > 1:
        torch.distributed.broadcast_object_list(saved)
    if saved[0] is None:
        return None
    found, values = saved[0]["identity"], saved[0]["state"]
    differing = [
        f"{name}: {found.get(name)!r} there, {value!r} here"
        for name, value in identity.items()
        if found.get(name) != value
    ]
    if differing:
        raise ValueError(f"`{path}` is the checkpoint of another fit ({'; '.join(differing)}); remove it.")
    tensors = {name: values[name].to(processes.device) for name in ("centroids", "counts")}
    return _State(**{**values, **tensors})
