# SPDX-License-Identifier: Apache-2.0
"""
What units tell of who speaks and what is said: classifiers that see nothing else, tested on speech they have not seen.

Speaker and gender are predicted from a clip, phones from a single frame. A classifier sees one of three inputs:

- `units`: the codes alone. For a frame they are one-hot, all codebooks beside each other; for a clip the input is the
  root of each code's share of the frames, codebooks beside each other too.
- `centroids`: the entries that the codes stand for, as a decoder is given them. For a clip, the input is their mean
  and standard deviation.
- `features`: the vectors before they were quantized, likewise. The difference between features and units is what
  quantizing loses.

`linear` is multinomial logistic regression, `mlp` has one hidden layer. Units hold at least as much information as the
better classifier finds: from few clips with many codes `mlp` learns less than `linear`. The control, `shuffled`,
learns from shuffled labels and is tested on true ones.

Every clip is tested once, in five folds. The folds of gender and phones split speakers: no speaker is both learnt from
and tested. A speaker that was never heard cannot be named, so the folds of the speaker probe split clips: what it
finds may also be the speaker's microphone or room. All classes weigh the same while learning, however rare.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from speech_tokenizers.evaluation.bootstrap import Statistic, bootstrap_sums
from speech_tokenizers.evaluation.reconstruction.frame_probe import fit_linear, macro_f1
from speech_tokenizers.evaluation.units.encoded_clips import EncodedClips, Measured, UnitSettings
from speech_tokenizers.evaluation.units.measures import grouped


INPUTS = ("units", "centroids", "features")
CLASSIFIERS = ("linear", "mlp")
NUM_FOLDS = 5
# Weight of half the squared weights, beside the mean cross-entropy.
DECAY = 1e-3
MAX_ITERATIONS = 100
HIDDEN_UNITS, NUM_STEPS, BATCH_SIZE, MLP_DECAY = 64, 300, 128, 1e-2
# A row of a code is seen seldom, and needs longer steps.
LEARNING_RATE, CODE_LEARNING_RATE = 3e-3, 1e-2


class CodeRows:
    """
    One-hot codes as a matrix that is never made: its product with weights adds up a row of weights for each code.

    Args:
        codes (`torch.Tensor` of shape `(num_items, num_quantizers)`): Columns that are 1 in each row.
        num_columns (`int`): Number of columns of the matrix.
    """

    dtype = torch.float32

    def __init__(self, codes: torch.Tensor, num_columns: int):
        self.codes, self.shape = codes, (len(codes), num_columns)

    def __getitem__(self, rows: torch.Tensor) -> "CodeRows":
        return CodeRows(self.codes[rows], self.shape[1])

    def __matmul__(self, weights: torch.Tensor) -> torch.Tensor:
        return F.embedding_bag(self.codes, weights, mode="sum")


class ProbeInputs(NamedTuple):
    """
    What a classifier sees of each item.

    Args:
        values (`torch.Tensor` or [`CodeRows`] of shape `(num_items, num_columns)`): Inputs, one row for each clip or
            frame.
        by_column (`bool`): Whether each column is scaled to unit spread by itself. Otherwise one scale serves all
            columns, so that rare codes are not blown up. Codes of single frames are not scaled.
    """

    values: torch.Tensor | CodeRows
    by_column: bool = True

    def standardized(self, learnt_from: torch.Tensor) -> torch.Tensor | CodeRows:
        """
        The values with a mean of 0 and a spread of 1 over the items that are learnt from.

        Args:
            learnt_from (`torch.Tensor` of shape `(num_learnt,)`): Numbers of the items that are learnt from.
        """
        if isinstance(self.values, CodeRows):
            return self.values
        known = self.values[learnt_from]
        variance = known.var(0, correction=0)
        scale = (variance if self.by_column else variance.mean()).sqrt().clamp_min(1e-6)
        return (self.values - known.mean(0)) / scale


@dataclasses.dataclass(frozen=True)
class ProbeTask:
    """
    Items to classify, and the folds in which they are tested.

    Args:
        labels (`list` of `str`): Names of the classes.
        items (`np.ndarray` of shape `(num_items,)`): Numbers of the task's items among those that were given.
        classes (`np.ndarray` of shape `(num_items,)`): Class of each item, as a number.
        folds (`np.ndarray` of shape `(num_items,)`): Number of the fold in which each item is tested.
        groups (`np.ndarray` of shape `(num_items,)`): Number of each item's group. A group stays in one fold, and the
            bootstrap redraws it as a whole.
        left_out (`list` of `str`): Names of classes that have a single group, which cannot be both learnt and tested.
    """

    labels: list[str]
    items: np.ndarray
    classes: np.ndarray
    folds: np.ndarray
    groups: np.ndarray
    left_out: list[str]


def probe_task(labels: Sequence[str], groups: Sequence[str], num_folds: int = NUM_FOLDS, seed: int = 0) -> ProbeTask:
    """
    Deal groups into folds, those of each class evenly.

    Args:
        labels (sequence of `str`): Class of each item.
        groups (sequence of `str`): Group of each item: its speaker, or its clip. A group stays in one fold. The class
            of its first item counts as the group's class.
        num_folds (`int`, *optional*, defaults to 5): Number of folds, at most one for each group.
        seed (`int`, *optional*, defaults to 0): Seed for the order in which groups are dealt.

    Raises:
        ValueError: If fewer than two classes have two groups.
    """
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    group_names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    pairs = np.unique(np.stack([classes, numbers]), axis=1)
    has_two = np.bincount(pairs[0], minlength=len(names)) > 1
    if has_two.sum() < 2:
        raise ValueError("it needs at least two classes of at least two speakers (of speakers: two clips) each")
    items = np.flatnonzero(has_two[classes])
    classes, numbers = np.cumsum(has_two)[classes[items]] - 1, numbers[items]
    kept, first, numbers = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(kept))
    order = order[np.argsort(classes[first][order], kind="stable")]
    fold_of = np.empty(len(kept), np.int64)
    fold_of[order] = np.arange(len(kept)) % min(num_folds, len(kept))
    return ProbeTask(
        names[has_two].tolist(), items, classes, fold_of[numbers], numbers.reshape(-1), names[~has_two].tolist()
    )


def class_weights(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """
    A weight for each item, of shape `(num_items,)`: all classes that occur weigh the same, and the mean is 1.

    Args:
        classes (`torch.Tensor` of shape `(num_items,)`): Class of each item.
        num_classes (`int`): Number of classes.
    """
    counts = torch.bincount(classes, minlength=num_classes)
    return (len(classes) / ((counts > 0).sum() * counts[classes])).float()


def fit_mlp(
    values: torch.Tensor | CodeRows, classes: torch.Tensor, num_classes: int, seed: int = 0
) -> list[torch.Tensor]:
    """
    Learn a classifier with one hidden layer of 64 rectified units by 300 steps of AdamW, with a rate that falls to 0
    along half a cosine.

    Args:
        values (`torch.Tensor` or [`CodeRows`] of shape `(num_items, num_columns)`): Inputs, of about unit scale.
        classes (`torch.Tensor` of shape `(num_items,)`): Class of each item. Classes weigh the same.
        num_classes (`int`): Number of classes.
        seed (`int`, *optional*, defaults to 0): Seed for the first weights and the batches.

    Returns:
        `list` of `torch.Tensor`: Weights and biases of the two layers, for [`mlp_scores`].
    """
    generator = torch.Generator().manual_seed(seed)
    num_columns = values.shape[1]
    if isinstance(values, CodeRows):
        # Rare codes keep much of their first rows, which are small therefore. A code that is never seen here adds
        # nothing, as in logistic regression.
        seen = torch.zeros(num_columns, 1)
        seen[values.codes.reshape(-1)] = 1.0
        first = 0.1 * seen * torch.randn(num_columns, HIDDEN_UNITS, generator=generator)
    else:
        first = torch.randn(num_columns, HIDDEN_UNITS, generator=generator) / num_columns**0.5
    second = torch.randn(HIDDEN_UNITS, num_classes, generator=generator) / HIDDEN_UNITS**0.5
    layers = [first, torch.zeros(HIDDEN_UNITS), second, torch.zeros(num_classes)]
    for parameter in layers:
        parameter.requires_grad_()
    learning_rate = CODE_LEARNING_RATE if isinstance(values, CodeRows) else LEARNING_RATE
    optimizer = torch.optim.AdamW(layers, lr=learning_rate, weight_decay=MLP_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    weights = class_weights(classes, num_classes)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(NUM_STEPS):
        while len(order) < BATCH_SIZE:
            order = torch.cat([order, torch.randperm(len(classes), generator=generator)])
        batch, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        losses = F.cross_entropy(mlp_scores(layers, values[batch]), classes[batch], reduction="none")
        optimizer.zero_grad()
        (weights[batch] * losses).mean().backward()
        optimizer.step()
        schedule.step()
    return [parameter.detach() for parameter in layers]


def mlp_scores(layers: Sequence[torch.Tensor], values: torch.Tensor | CodeRows) -> torch.Tensor:
    """Scores that the classifier of [`fit_mlp`] gives each class, `(num_items, num_classes)`."""
    first, first_bias, second, second_bias = layers
    return F.relu(values @ first + first_bias) @ second + second_bias


def cross_validate(
    inputs: ProbeInputs, task: ProbeTask, classifier: str, shuffled: bool = False, seed: int = 0
) -> np.ndarray:
    """
    The class `(num_items,)` that each item is given by a classifier that has learnt from the other folds.

    Args:
        inputs ([`ProbeInputs`]): Inputs of the task's items.
        task ([`ProbeTask`]): Classes and folds of the items.
        classifier (`"linear"` or `"mlp"`): Kind of classifier; see the module.
        shuffled (`bool`, *optional*, defaults to `False`): Whether to learn from shuffled labels.
        seed (`int`, *optional*, defaults to 0): Seed for the shuffling and the first weights.

    Raises:
        ValueError: If an input is not finite.
    """
    num_classes = len(task.labels)
    predicted = np.empty(len(task.classes), np.int64)
    generator = np.random.default_rng(seed)
    for fold in np.unique(task.folds):
        tested, learnt_from = (
            torch.from_numpy(np.flatnonzero(part)) for part in (task.folds == fold, task.folds != fold)
        )
        classes = task.classes[task.folds != fold]
        classes = torch.from_numpy(generator.permutation(classes) if shuffled else classes)
        values = inputs.standardized(learnt_from)
        if not isinstance(values, CodeRows) and not values.isfinite().all():
            raise ValueError("what it would learn from is not finite")
        if classifier == "linear":
            weighted = F.one_hot(classes, num_classes) * class_weights(classes, num_classes)[:, None]
            weights, biases = fit_linear(values[learnt_from], weighted, DECAY, MAX_ITERATIONS)
            scores = values[tested] @ weights + biases
        else:
            layers = fit_mlp(values[learnt_from], classes, num_classes, seed)
            scores = mlp_scores(layers, values[tested])
        # By numpy's own numbers: a tensor with a single one would be taken for a scalar.
        predicted[tested.numpy()] = scores.argmax(-1).numpy()
    return predicted


def class_counts(task: ProbeTask, predicted: np.ndarray) -> np.ndarray:
    """
    Hits, predictions and true items by class, of each group, `(num_groups, 3 * num_classes)`: for [`macro_f1`] and
    [`balanced_accuracy`].

    Args:
        task ([`ProbeTask`]): Items with their classes and groups.
        predicted (`np.ndarray` of shape `(num_items,)`): Class that each item was given.
    """
    identity = np.eye(len(task.labels))
    true, said = identity[task.classes], identity[predicted]
    return grouped(np.concatenate([true * said, said, true], axis=1), task.groups)


def balanced_accuracy(sums: np.ndarray) -> np.ndarray:
    """
    Mean over the classes that truly occur of the share of their items that are recognised, in percent.

    Args:
        sums (`np.ndarray` of shape `(..., 3 * num_classes)`): Hits, predictions and true items, by class.
    """
    hits, _, true = np.split(np.asarray(sums, np.float64), 3, axis=-1)
    occurs = true > 0
    with np.errstate(invalid="ignore"):
        return 100 * (hits / np.maximum(true, 1)).sum(-1) / occurs.sum(-1)


def measure_probes(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """Macro F1 and balanced accuracy of each probe, and macro F1 of its control."""
    measured = Measured()
    material = _Material(encoded, settings)
    for target in ("speaker", "gender", "phone"):
        try:
            labels, groups = getattr(material, f"{target}_items")(measured)
            task = probe_task(labels, groups, seed=settings.seed)
        except ValueError as error:
            measured.failures.setdefault(f"probe_{target}", {})[str(error)] = []
            continue
        if task.left_out:
            reason = f"left out, with a single {'clip' if target == 'speaker' else 'speaker'}"
            measured.failures.setdefault(f"probe_{target}", {})[reason] = task.left_out
        measured.details.setdefault("probes", {})[target] = {
            "num_items": len(task.items),
            "num_classes": len(task.labels),
            "num_groups": int(task.groups.max()) + 1,
            "num_folds": int(task.folds.max()) + 1,
        }
        for view in INPUTS:
            try:
                inputs = material.inputs(target, view, task.items)
            except ValueError as error:
                measured.failures.setdefault(f"probe_{target}[{view}]", {})[str(error)] = []
                for classifier in CLASSIFIERS:
                    measured.scores[f"probe_{target}[{view}][{classifier}]"] = None
                continue
            num_clips = len(set(material.item_clips(target)[task.items].tolist()))
            for classifier in CLASSIFIERS:
                _score(
                    measured, f"probe_{target}[{view}][{classifier}]", inputs, task, classifier, num_clips, settings
                )
    return measured


def _score(
    measured: Measured,
    name: str,
    inputs: ProbeInputs,
    task: ProbeTask,
    classifier: str,
    num_clips: int,
    settings: UnitSettings,
) -> None:
    statistics: dict[bool, dict[str, Statistic]] = {
        False: {"": macro_f1, "[balanced_accuracy]": balanced_accuracy},
        True: {"[shuffled]": macro_f1},
    }
    for shuffled, of_counts in statistics.items():
        try:
            counts = class_counts(task, cross_validate(inputs, task, classifier, shuffled, settings.seed))
        except ValueError as error:
            for suffix in of_counts:
                measured.add(name + suffix, None, 0, str(error))
            continue
        for suffix, statistic in of_counts.items():
            measured.add(name + suffix, bootstrap_sums(counts, statistic, seed=settings.seed), num_clips)


class _Material:
    # What is classified, of clips whose speaker is known: clips for the speaker and gender, drawn frames for phones.
    def __init__(self, encoded: EncodedClips, settings: UnitSettings):
        self.encoded = encoded
        self.speakers = encoded.of_clips(encoded.data.speakers)
        self.genders = encoded.of_clips(encoded.data.genders)
        self._clips: dict[str, np.ndarray] = {}
        self._frames, self._phones = self._draw_frames(settings)

    def _draw_frames(self, settings: UnitSettings) -> tuple[list[np.ndarray], list[str]]:
        # Numbers of the frames of each clip that are classified, and their phones one after the other.
        if self.encoded.data.phones is None:
            return [], []
        labels, names = self.encoded.frame_labels(self.encoded.data.phones)
        generator = np.random.default_rng(settings.seed)
        frames, phones = [], []
        for numbers, speaker in zip(labels, self.speakers, strict=True):
            chosen = np.flatnonzero(numbers >= 0) if speaker is not None else np.empty(0, np.int64)
            if len(chosen) > settings.probe_frames:
                chosen = np.sort(generator.choice(chosen, settings.probe_frames, replace=False))
            frames.append(chosen)
            phones += [names[number] for number in numbers[chosen]]
        return frames, phones

    def item_clips(self, target: str) -> np.ndarray:
        # The clip of each item, as its place among the codes.
        if target == "phone":
            return np.repeat(np.arange(len(self._frames)), [len(chosen) for chosen in self._frames])
        return self._clips[target]

    def speaker_items(self, measured: Measured) -> tuple[list[str], list[str]]:
        self._choose_clips("speaker", self.speakers, measured)
        clips = self._clips["speaker"]
        return [self.speakers[clip] for clip in clips], [self.encoded.clips[clip].name for clip in clips]

    def gender_items(self, measured: Measured) -> tuple[list[str], list[str]]:
        known = [
            gender if speaker is not None else None
            for gender, speaker in zip(self.genders, self.speakers, strict=True)
        ]
        self._choose_clips("gender", known, measured)
        clips = self._clips["gender"]
        return [self.genders[clip] for clip in clips], [self.speakers[clip] for clip in clips]

    def _choose_clips(self, target: str, values: Sequence[str | None], measured: Measured) -> None:
        clips = np.array([number for number, value in enumerate(values) if value is not None], np.int64)
        if not len(clips):
            raise ValueError(f"it needs a column `{target}` in the metadata")
        self._clips[target] = clips
        unknown = [clip.name for clip, value in zip(self.encoded.clips, values, strict=True) if value is None]
        if unknown:
            measured.failures[f"probe_{target}"] = {f"the {target} is not known": unknown}

    def phone_items(self, measured: Measured) -> tuple[list[str], list[str]]:
        if not self._phones:
            raise ValueError("it needs phones and their times (--labels)")
        unlabelled = [
            clip.name for clip, chosen in zip(self.encoded.clips, self._frames, strict=True) if not len(chosen)
        ]
        if unlabelled:
            measured.failures["probe_phone"] = {"no frame has a label, or the speaker is not known": unlabelled}
        return self._phones, [self.speakers[clip] for clip in self.item_clips("phone")]

    def _code_columns(self) -> tuple[list[np.ndarray], int]:
        # The codes of each clip, numbered over all codebooks, without those that never occur.
        offsets = self.encoded.system.codebook_size * np.arange(len(self.encoded.codes[0]))[:, None]
        used, columns = np.unique(np.concatenate(self.encoded.codes, axis=1) + offsets, return_inverse=True)
        ends = np.cumsum([codes.shape[1] for codes in self.encoded.codes])
        return np.split(columns.reshape(len(offsets), -1), ends[:-1], axis=1), len(used)

    def inputs(self, target: str, view: str, items: np.ndarray) -> ProbeInputs:
        clips = self.item_clips(target)
        of_frames = target == "phone"
        if view == "units":
            columns, num_columns = self._code_columns()
            if of_frames:
                drawn = [part[:, chosen].T for part, chosen in zip(columns, self._frames, strict=True)]
                return ProbeInputs(CodeRows(torch.from_numpy(np.concatenate(drawn)[items]), num_columns))
            counts = [np.bincount(columns[clip].reshape(-1), minlength=num_columns) for clip in clips[items]]
            lengths = [columns[clip].shape[1] for clip in clips[items]]
            return ProbeInputs(_rows(np.sqrt(np.array(counts) / np.array(lengths)[:, None])), by_column=False)
        if view == "centroids":
            symbols, entries = self.encoded.symbols()
            frames = [entries[part] for part in symbols]
        else:
            frames = self.encoded.features
        if of_frames:
            return ProbeInputs(
                _rows(np.concatenate([part[chosen] for part, chosen in zip(frames, self._frames, strict=True)])[items])
            )
        return ProbeInputs(
            _rows([np.concatenate([frames[clip].mean(0), frames[clip].std(0)]) for clip in clips[items]])
        )


def _rows(values: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
