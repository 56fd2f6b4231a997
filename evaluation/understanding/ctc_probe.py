# SPDX-License-Identifier: Apache-2.0
"""
A probe of sequences: what a linear map reads from a few neighbouring frames, such as the phones that are said.

The map goes from a window of three frames to a score for each symbol and for none (the blank of CTC, Graves et al.
2006). It sees no further and has no hidden layer: what it gets right lies open in the frames. Features and units pass
through the same map; that of units adds up a row of weights for each code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from speech_tokenizers.evaluation.understanding.metrics import by_seed
from speech_tokenizers.evaluation.understanding.probes import ProbeAnswers, check_codes, checked_splits


WINDOW = 3  # frames
# Windows a second, about: phones are said at 10 to 15 a second.
WINDOW_RATE = 25.0
NUM_STEPS = 1500
# Passes after which the development clips are looked at, as shares of all.
SNAPSHOTS = (0.4, 0.6, 0.8, 1.0)
BATCH_SIZE = 16  # clips
# Chosen by development clips. Rows of codes are seen seldom, so that decay would undo their steps. Without decay, the
# many directions of features are learnt by heart.
LEARNING_RATE, CODE_LEARNING_RATE = 3e-2, 3e-2
DECAY, CODE_DECAY = 1.0, 0.0
BLANK = 0
# Added to the variances of uncorrelated directions, which are 1 on average, so that the least are not blown up.
ADDED_VARIANCE = 1.0


class _Batch(NamedTuple):
    # Clips of about one length.
    clips: np.ndarray
    num_windows: torch.Tensor  # (batch,)


def ctc_probe(
    targets: Sequence[str],
    splits: Sequence[str],
    frame_rate: float,
    features: Sequence[np.ndarray] | None = None,
    codes: Sequence[np.ndarray] | None = None,
    codebook_size: int = 0,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
) -> ProbeAnswers:
    """
    Learn to write symbols from frames, and write those of the test clips.

    Weights start at 0 and are learnt by AdamW with a rate that falls to 0 along half a cosine, those of features in
    coordinates in which these are nearly uncorrelated. Clips of about one length make a batch, and the seed gives the
    order of the batches. The weights are those of the pass, out of four, that makes the fewest errors on the
    development clips.

    Args:
        targets (sequence of `str`): Symbols of each clip, parted by white space. Those of test clips are not looked
            at.
        splits (sequence of `str`): Split of each clip: `train`, `dev` or `test`.
        frame_rate (`float`): Frames a second. Above 37 Hz, windows step by several frames, to about 25 Hz.
        features (sequence of `np.ndarray` of shape `(num_frames, dim)`, *optional*): Features of each clip, or the
            centroids that its units stand for.
        codes (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`, *optional*): Codes of each clip. With
            both, the scores of both are added up.
        codebook_size (`int`, *optional*): Number of units in a codebook; needed with `codes`.
        num_steps (`int`, *optional*, defaults to 1500): Number of steps, of 16 clips each; the last pass over the
            training clips is completed.
        seed (`int`, *optional*, defaults to 0): Seed for the order of the batches.

    Returns:
        [`ProbeAnswers`] with the number of passes, the error rate on the development clips and the training losses.

    Raises:
        ValueError: If there are neither features nor codes, the numbers of clips or frames differ, a split has no
            clip, a code is out of range, features are not finite, or no training clip has as many windows as its
            target needs.
    """
    given = [part for part in (features, codes) if part is not None]
    if not given:
        raise ValueError("Give `features`, `codes` or both.")
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, but got {num_steps}.")
    numbers = checked_splits(splits, targets, *given)
    symbols = sorted({symbol for clip in numbers["train"] for symbol in targets[clip].split()})
    frames = _Frames(features, codes, codebook_size, numbers["train"], max(1, round(frame_rate / WINDOW_RATE)))
    ids_of = {symbol: number for number, symbol in enumerate(symbols, 1)}
    ids = {clip: [ids_of[symbol] for symbol in targets[clip].split()] for clip in numbers["train"]}
    learnt = np.array([clip for clip in numbers["train"] if _fits(ids[clip], frames.num_windows[clip])], np.int64)
    if not len(learnt):
        raise ValueError("No training clip has as many windows as its target needs; are targets and frames in order?")

    generator = torch.Generator().manual_seed(seed)
    weights = frames.initial_weights(1 + len(symbols))
    settings = {
        "biases": {"lr": LEARNING_RATE, "weight_decay": 0.0},
        "features": {"lr": LEARNING_RATE, "weight_decay": DECAY},
        "codes": {"lr": CODE_LEARNING_RATE, "weight_decay": CODE_DECAY},
    }
    optimizer = torch.optim.AdamW([{"params": [tensor], **settings[name]} for name, tensor in weights.items()])
    batches = frames.batches(learnt)
    num_passes = -(-num_steps // len(batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_passes * len(batches))
    looks = sorted({max(1, round(share * num_passes)) for share in SNAPSHOTS})
    dev_targets = [targets[clip] for clip in numbers["dev"]]
    best, losses = (np.inf, 0, weights), []
    for number in range(1, num_passes + 1):
        total = 0.0
        for place in torch.randperm(len(batches), generator=generator).tolist():
            batch = batches[place]
            wanted = [ids[clip] for clip in batch.clips]
            lengths = torch.tensor([len(part) for part in wanted])
            flat = torch.tensor([symbol for part in wanted for symbol in part])
            scores = frames.scores(batch, weights).log_softmax(-1)
            loss = F.ctc_loss(scores.transpose(0, 1), flat, batch.num_windows, lengths, BLANK, reduction="sum")
            optimizer.zero_grad()
            (loss / lengths.sum()).backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total / sum(len(ids[clip]) for clip in learnt))
        if number in looks:
            (error,) = by_seed("per", frames.write(numbers["dev"], weights, symbols), dev_targets)
            if error < best[0]:
                best = (error, number, {name: tensor.detach().clone() for name, tensor in weights.items()})
    error, chosen, weights = best
    answers = frames.write(numbers["test"], weights, symbols)
    return ProbeAnswers(answers, float(chosen), float(error), losses, len(numbers["train"]) - len(learnt))


def _fits(symbols: Sequence[int], num_windows: int) -> bool:
    # CTC parts equal neighbours by a blank. A target of no symbol cannot be learnt.
    repeats = sum(one == next_one for one, next_one in zip(symbols, symbols[1:], strict=False))
    return 0 < len(symbols) + repeats <= num_windows


def _moments(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    # Mean and inverse spread of each dimension, and a matrix that makes standardised features less correlated.
    # It is applied to the weights: the map stays linear in the features, and steps are as long in all directions.
    total = sum(len(part) for part in features)
    mean = sum(part.sum(0, dtype=np.float64) for part in features) / total
    products = sum((part - mean).T @ (part - mean) for part in features) / total
    spread = np.sqrt(np.diagonal(products))
    varies = spread > 1e-6 * np.abs(mean)  # a dimension that is constant in training is left out
    scale = np.where(varies, 1 / np.where(varies, spread, 1.0), 0.0)
    eigenvalues, vectors = np.linalg.eigh(products * scale * scale[:, None])
    whitening = vectors / np.sqrt(np.maximum(eigenvalues, 0.0) + ADDED_VARIANCE)
    return mean, scale, torch.from_numpy(whitening.astype(np.float32))


class _Frames:
    # Windows of the frames of all clips, and their scores by a linear map.
    def __init__(
        self,
        features: Sequence[np.ndarray] | None,
        codes: Sequence[np.ndarray] | None,
        codebook_size: int,
        train: np.ndarray,
        stride: int,
    ):
        self.features, self.codes, self.codebook_size, self.stride = features, codes, codebook_size, stride
        lengths = [[len(part) for part in features]] if features is not None else []
        if codes is not None:
            for clip, units in enumerate(codes):
                check_codes(units, codebook_size, clip)
            lengths.append([units.shape[1] for units in codes])
            self.num_quantizers = len(codes[0])
        if lengths[0] != lengths[-1]:
            raise ValueError("Features and codes of a clip must have the same number of frames.")
        self.num_frames = np.array(lengths[0])
        if not self.num_frames.all():
            raise ValueError(f"Clip {int(np.argmin(self.num_frames))} has no frame; leave it out of the manifest.")
        self.num_windows = -(-self.num_frames // stride)
        if features is not None:
            if not all(np.isfinite(part).all() for part in features):
                raise ValueError("The features of some clip are not finite.")
            self.mean, self.scale, self.whitening = _moments([features[clip] for clip in train])

    def initial_weights(self, num_scores: int) -> dict[str, torch.Tensor]:
        weights = {"biases": torch.zeros(num_scores)}
        if self.features is not None:
            weights["features"] = torch.zeros(WINDOW, len(self.mean), num_scores)
        if self.codes is not None:
            # The last row is that of frames beyond the ends of a clip.
            weights["codes"] = torch.zeros(1 + WINDOW * self.num_quantizers * self.codebook_size, num_scores)
        return {name: tensor.requires_grad_() for name, tensor in weights.items()}

    def batches(self, clips: np.ndarray) -> list[_Batch]:
        ordered = clips[np.argsort(self.num_frames[clips], kind="stable")]
        parts = [ordered[start : start + BATCH_SIZE] for start in range(0, len(ordered), BATCH_SIZE)]
        return [_Batch(part, torch.from_numpy(self.num_windows[part])) for part in parts]

    def scores(self, batch: _Batch, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        """Scores of the symbols, of shape `(batch, num_windows, num_scores)`."""
        num_windows = int(batch.num_windows.max())
        scores = weights["biases"]
        if self.features is not None:
            scores = scores + (
                self._feature_windows(self.features, batch.clips, num_windows)
                @ (self.whitening @ weights["features"]).flatten(0, 1)
            )
        if self.codes is not None:
            rows = self._code_windows(self.codes, batch.clips, num_windows)
            added = F.embedding_bag(
                rows.flatten(0, 1), weights["codes"], mode="sum", padding_idx=len(weights["codes"]) - 1
            )
            scores = scores + added.unflatten(0, rows.shape[:2])
        return scores

    def _feature_windows(self, features: Sequence[np.ndarray], clips: np.ndarray, num_windows: int) -> torch.Tensor:
        # Frames that do not exist are the mean, 0. The window's middle is a multiple of the stride.
        padded = np.zeros((len(clips), num_windows * self.stride + WINDOW - 1, len(self.mean)), np.float32)
        for row, clip in zip(padded, clips, strict=True):
            row[WINDOW // 2 : WINDOW // 2 + self.num_frames[clip]] = (features[clip] - self.mean) * self.scale
        windows = torch.from_numpy(padded).unfold(1, WINDOW, self.stride)[:, :num_windows]
        return windows.transpose(2, 3).flatten(2)

    def _code_windows(self, codes: Sequence[np.ndarray], clips: np.ndarray, num_windows: int) -> torch.Tensor:
        # Each place in the window and each codebook has rows of weights of its own.
        num_rows = WINDOW * self.num_quantizers * self.codebook_size
        padded = np.full((len(clips), num_windows * self.stride + WINDOW - 1, self.num_quantizers), -1)
        for row, clip in zip(padded, clips, strict=True):
            row[WINDOW // 2 : WINDOW // 2 + self.num_frames[clip]] = codes[clip].T
        windows = torch.from_numpy(padded).unfold(1, WINDOW, self.stride)[:, :num_windows].flatten(2)
        rows = windows + self.codebook_size * torch.arange(windows.shape[-1])
        return rows.masked_fill(windows < 0, num_rows)

    @torch.no_grad()
    def write(self, clips: np.ndarray, weights: dict[str, torch.Tensor], symbols: Sequence[str]) -> list[str]:
        """The symbols of the highest scores, one after the other, of each clip."""
        texts = {}
        for batch in self.batches(clips):
            for clip, best, length in zip(
                batch.clips.tolist(), self.scores(batch, weights).argmax(-1), batch.num_windows.tolist(), strict=True
            ):
                runs = best[:length].unique_consecutive().tolist()
                texts[clip] = " ".join(symbols[number - 1] for number in runs if number != BLANK)
        return [texts[clip] for clip in clips.tolist()]
