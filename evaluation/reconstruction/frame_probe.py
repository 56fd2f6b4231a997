# SPDX-License-Identifier: Apache-2.0
"""What a codec's codes say about the sounds in their frames: phones or characters, predicted for unseen speakers."""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from speech_tokenizers.evaluation.bootstrap import ratio
from speech_tokenizers.evaluation.clip_results import ClipCounts
from speech_tokenizers.evaluation.frame_labels import IGNORED_LABELS, label_frames
from speech_tokenizers.processing.timed_labels import TimedLabel


class ProbedUtterance(NamedTuple):
    """
    Codes and labels of one recording.

    Args:
        name (`str`): Name of the recording.
        codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codebook indices.
        labels (`np.ndarray` of shape `(num_frames,)`): Label of each frame as a number, -1 for none.
    """

    name: str
    codes: np.ndarray
    labels: np.ndarray


@dataclass
class ProbeResult:
    """
    Scores of a probe on frames of held-out speakers.

    Args:
        labels (`list` of `str`): Names of the classes, in alphabetical order.
        num_train, num_test (`int`): Numbers of labelled frames.
        scores (`dict` of `str` to [`ClipCounts`]): Scores in percent: `accuracy` and `macro_f1` of each classifier,
            such as `accuracy[linear]`. Their clips are the utterances of held-out speakers.
    """

    labels: list[str]
    num_train: int
    num_test: int
    scores: dict[str, ClipCounts]


def held_out_speakers(speakers: Sequence[str], share: float = 0.25) -> set[str]:
    """
    Part of the speakers, chosen by a hash of their names, so that more data moves no speaker.

    Args:
        speakers (sequence of `str`): Names, with repetitions.
        share (`float`, *optional*, defaults to 0.25): Share of the speakers that are held out, 0 to 1. At least one
            speaker is held out, and at least one is not.

    Raises:
        ValueError: If there are fewer than two speakers.
    """
    ordered = sorted(set(speakers), key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(ordered) < 2:
        raise ValueError(f"The frame probe needs at least two speakers, one of them held out, but got {ordered}.")
    return set(ordered[: min(len(ordered) - 1, max(1, round(share * len(ordered))))])


def fit_linear(
    features: torch.Tensor, counts: torch.Tensor, decay: float = 1e-4, max_iterations: int = 300
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Multinomial logistic regression by L-BFGS, to convergence.

    Args:
        features (`torch.Tensor` of shape `(num_rows, dim)`): Distinct inputs, of about unit scale. A
            [`~evaluation.units.probes.CodeRows`] can take their place, since it has `shape`, `dtype` and a matrix
            product.
        counts (`torch.Tensor` of shape `(num_rows, num_classes)`): Number of times that each input occurs with each
            class. Where classes are weighted, it is the sum of the weights.
        decay (`float`, *optional*, defaults to 1e-4): Weight of half the squared weights, beside the mean
            cross-entropy of a frame.
        max_iterations (`int`, *optional*, defaults to 300): Largest number of iterations, after which the fit stops
            even if it has not converged.

    Returns:
        `tuple`: Weights of shape `(dim, num_classes)` and biases `(num_classes,)`.
    """
    shares = counts / counts.sum()
    weights = torch.zeros(features.shape[1], counts.shape[1], dtype=features.dtype, requires_grad=True)
    biases = torch.zeros(counts.shape[1], dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, biases],
        max_iter=max_iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -(shares * F.log_softmax(features @ weights + biases, dim=-1)).sum()
        loss = loss + decay / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach(), biases.detach()


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """
    Mean over classes of F1 = 2 hits / (predicted + true), in percent, of the classes that truly occur.

    Args:
        sums (`np.ndarray` of shape `(..., 3 * num_classes)`): Hits, predictions and true frames, by class.
    """
    hits, predicted, true = np.split(np.asarray(sums, np.float64), 3, axis=-1)
    occurs = true > 0
    f1 = np.where(occurs, 2 * hits / np.maximum(predicted + true, 1), 0.0)
    with np.errstate(invalid="ignore"):
        return 100 * f1.sum(-1) / occurs.sum(-1)


def probe(
    train: Sequence[ProbedUtterance],
    test: Sequence[ProbedUtterance],
    labels: Sequence[str],
    entries: Callable[[np.ndarray], np.ndarray],
    stages: tuple[int, int] = (1, 1),
    max_train_frames: int = 100_000,
    seed: int = 0,
) -> ProbeResult:
    """
    Learn to classify single frames from their codes, and score the classifiers on other utterances.

    Three classifiers: `linear` (logistic regression on what the decoder gets from these codebooks), `majority` (the
    commonest label of each code; for one stage only) and `linear, shuffled`, the control, whose training labels are
    shuffled among all frames.

    Args:
        train, test (sequence of [`ProbedUtterance`]): Utterances to learn from and to score. No speaker is in both.
        labels (sequence of `str`): Names of the classes.
        entries (`Callable`): Function that maps codes `(num_quantizers, num_frames)` of the first codebooks to the
            vectors `(num_frames, dim)` that the decoder is given for them.
        stages (`tuple` of two `int`, *optional*, defaults to `(1, 1)`): First and last codebook, counted from 1.
        max_train_frames (`int`, *optional*, defaults to 100000): Largest number of frames to learn from. Where there
            are more, so many are drawn at random.
        seed (`int`, *optional*, defaults to 0): Seed for that draw and for the shuffling.

    Raises:
        ValueError: If the codec lacks such stages, or either set has no labelled frame.
    """
    first, last = stages
    available = min((len(utterance.codes) for utterance in (*train, *test)), default=0)
    if not 1 <= first <= last <= available:
        raise ValueError(f"`stages` must lie within 1 to {available}, but got {first} to {last}.")
    train_codes, train_labels = _labelled_frames(train, first, last, "train")
    test_codes, _ = _labelled_frames(test, first, last, "test")
    num_train = len(train_codes)
    generator = np.random.default_rng(seed)
    if num_train > max_train_frames:
        chosen = np.sort(generator.choice(num_train, max_train_frames, replace=False))
        train_codes, train_labels = train_codes[chosen], train_labels[chosen]

    def features_of(codes: np.ndarray) -> torch.Tensor:
        # The entries of the stages before cancel, whichever they are.
        earlier = np.zeros((first - 1, len(codes)), codes.dtype)
        values = entries(np.concatenate([earlier, codes.T])).astype(np.float64)
        return torch.from_numpy(values - entries(earlier) if first > 1 else values)

    # Frames of equal codes have equal features: they are one row, with counts.
    train_rows, train_index = np.unique(train_codes, axis=0, return_inverse=True)
    test_rows, test_index = np.unique(test_codes, axis=0, return_inverse=True)
    train_index, test_index = train_index.reshape(-1), test_index.reshape(-1)
    features = features_of(train_rows)
    shares = torch.from_numpy(np.bincount(train_index) / len(train_index))[:, None]
    mean = (shares * features).sum(0)
    scale = (shares * (features - mean).square()).sum(0).sqrt().clamp_min(1e-8)
    features, test_features = (features - mean) / scale, (features_of(test_rows) - mean) / scale

    def count_classes(numbers: np.ndarray) -> np.ndarray:
        table = np.zeros((len(train_rows), len(labels)))
        np.add.at(table, (train_index, numbers), 1.0)
        return table

    counts = count_classes(train_labels)
    predictions = {}
    for name, table in (("linear", counts), ("linear, shuffled", count_classes(generator.permutation(train_labels)))):
        weights, biases = fit_linear(features, torch.from_numpy(table))
        predictions[name] = (test_features @ weights + biases).argmax(-1).numpy()[test_index]
    if first == last:
        commonest = {int(code): int(row.argmax()) for (code,), row in zip(train_rows, counts, strict=True)}
        otherwise = int(counts.sum(0).argmax())
        predictions["majority"] = np.array([commonest.get(int(code), otherwise) for (code,) in test_rows])[test_index]

    scores = {}
    for name, predicted in predictions.items():
        for measure, score in _score(test, predicted, len(labels)).items():
            scores[f"{measure}[{name}]"] = score
    return ProbeResult(list(labels), num_train, len(test_codes), scores)


def _score(test: Sequence[ProbedUtterance], predicted: np.ndarray, num_labels: int) -> dict[str, ClipCounts]:
    accuracy, f1 = ClipCounts(ratio), ClipCounts(macro_f1)
    start = 0
    for utterance in test:
        true = utterance.labels[utterance.labels >= 0]
        said = predicted[start : start + len(true)]
        start += len(true)
        if len(true):
            hit = true[said == true]
            accuracy.counts[utterance.name] = (100.0 * len(hit), len(true))
            by_class = [np.bincount(part, minlength=num_labels) for part in (hit, said, true)]
            f1.counts[utterance.name] = np.concatenate(by_class).tolist()
    return {"accuracy": accuracy, "macro_f1": f1}


def _labelled_frames(
    utterances: Sequence[ProbedUtterance], first: int, last: int, which: str
) -> tuple[np.ndarray, np.ndarray]:
    # Codes (num_frames, num_stages) and labels (num_frames,) of the frames that have a label.
    masks = [utterance.labels >= 0 for utterance in utterances]
    if not any(mask.any() for mask in masks):
        raise ValueError(f"No frame of the frame probe's {which} set has a label.")
    pairs = list(zip(utterances, masks, strict=True))
    codes = np.concatenate([utterance.codes[first - 1 : last, mask].T for utterance, mask in pairs])
    return codes, np.concatenate([utterance.labels[mask] for utterance, mask in pairs])


def probe_system(
    system: Any,
    load: Callable[[str], np.ndarray],
    labels: Mapping[str, Sequence[TimedLabel]],
    held_out: set[str],
    stages: Sequence[tuple[int, int]] = ((1, 1),),
    on_progress: Callable[[], object] = lambda: None,
) -> dict[tuple[int, int], ProbeResult]:
    """
    Probe codebooks of a codec. A recording that it cannot encode, such as one shorter than a frame, is named and left
    out.

    Args:
        system ([`ModelSystem`]): System of the codec. It needs `encode` and `dequantize`.
        load (`Callable`): Function that maps a recording's name to its waveform `(num_samples,)`, at the system's
            rate.
        labels (mapping of `str` to sequence of [`TimedLabel`]): Labels of each recording, by its name.
        held_out (`set` of `str`): Names of the recordings that are classified. The probe learns from the others.
        stages (sequence of `tuple`, *optional*): Ranges of codebooks, first and last, counted from 1.
        on_progress (`Callable`, *optional*): Function called after each recording.

    Raises:
        ValueError: See [`probe`].
    """
    names = sorted({item.label for spans in labels.values() for item in spans} - set(IGNORED_LABELS))
    classes = {label: number for number, label in enumerate(names)}
    utterances: dict[bool, list[ProbedUtterance]] = {True: [], False: []}
    for name, spans in labels.items():
        try:
            codes = system.encode(load(name))
        except (RuntimeError, ValueError) as error:
            print(f"set aside: {name}: {' '.join(str(error).split())}", file=sys.stderr)
            on_progress()
            continue
        numbers = label_frames(spans, codes.shape[1], system.frame_rate, classes)
        utterances[name in held_out].append(ProbedUtterance(name, codes, numbers))
        on_progress()
    return {
        (first, last): probe(utterances[False], utterances[True], names, system.dequantize, (first, last))
        for first, last in stages
    }
