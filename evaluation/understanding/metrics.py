# SPDX-License-Identifier: Apache-2.0
"""
Scores of answers about speech, with intervals by redrawing speakers.

Every metric is a function of counts that are added up over clips: hits for an accuracy, errors and words for a word
error rate, matching n-grams for BLEU. So one bootstrap serves all of them, and a clip without an answer counts as
wrong. All values are in percent.

The bootstrap redraws whole groups of clips, such as the clips of one speaker: clips of one speaker succeed and fail
together, and redrawing them one by one would give intervals that are too narrow. The interval tells how far other
speakers would move the result; how far other seeds would, [`by_seed`] shows.
"""

import dataclasses
import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from speech_tokenizers.evaluation.bootstrap import Estimate, Statistic, bootstrap_sums, ratio
from speech_tokenizers.evaluation.recognition import language_code, match_texts, text_normalizer
from speech_tokenizers.evaluation.reconstruction.frame_probe import macro_f1
from speech_tokenizers.evaluation.units.measures import grouped
from speech_tokenizers.processing.optional_packages import MissingPackageError
from speech_tokenizers.processing.word_alignment import edit_distance


# One list of answers, or one for each seed.
Answers = Sequence[str] | Sequence[Sequence[str]]
# Counts of all clips from answers, targets and the language.
Counting = Callable[[Sequence[str], Sequence[str], str], np.ndarray]

BLEU_ORDER = 4
CHRF_ORDER, CHRF_BETA = 6, 2
# Scripts without spaces between words, which BLEU has to cut itself. The others are cut as mteval-v13a does.
_BLEU_TOKENIZATION = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}


@dataclasses.dataclass(frozen=True)
class TaskMetric:
    """
    A score of answers, in percent.

    Args:
        name (`str`): Short name, such as `wer`.
        title (`str`): Title for tables.
        higher_is_better (`bool`): Whether a higher value is better.
        count (`Callable`): Function of answers, targets and the language that gives the counts of each clip, of shape
            `(num_clips, num_counts)`.
        statistic (`Callable`): Function of summed counts `(..., num_counts)` that gives the value `(...)`.
        needs_fluency (`bool`, *optional*, defaults to `False`): Whether answers must be nearly right as whole
            sentences before it tells systems apart. Of weaker ones it is near 0 for all, whatever they hear, and the
            bits of the true answer say more.
    """

    name: str
    title: str
    higher_is_better: bool
    count: Counting = dataclasses.field(repr=False)
    statistic: Statistic = dataclasses.field(repr=False)
    needs_fluency: bool = False


def counts(metric: str, answers: Sequence[str], targets: Sequence[str], language: str = "en") -> np.ndarray:
    """
    Contribution of each clip to the sums of a metric.

    Args:
        metric (`str`): Key of `METRICS`.
        answers, targets (sequence of `str`): Answer to each clip, and the true one.
        language (`str`, *optional*, defaults to `"en"`): Language of the texts, for `wer`, `cer` and `bleu`.

    Returns:
        `np.ndarray` of shape `(num_clips, num_counts)`, float64.

    Raises:
        ValueError: If the metric is unknown, an answer is no text, the numbers of answers and targets differ, there is
            no clip, or a target is empty or, for slots, malformed.
    """
    if metric not in METRICS:
        raise ValueError(f"`metric` is {metric!r}; choose one of {', '.join(METRICS)}.")
    if isinstance(answers, str):
        raise ValueError("`answers` must be a sequence of texts, but got a single text.")
    if not len(answers):
        raise ValueError("`answers` holds no answer.")
    if wrong := [said for said in answers if not isinstance(said, str)]:
        raise ValueError(f"`answers` must hold a text for each clip, but one is {wrong[0]!r}.")
    if len(answers) != len(targets):
        raise ValueError(f"There must be one answer for each target, but got {len(answers)} for {len(targets)}.")
    empty = [number for number, target in enumerate(targets) if not target.strip()]
    if empty:
        raise ValueError(f"The target of clip {empty[0]} is empty; leave such clips out ({len(empty)} in all).")
    return np.asarray(METRICS[metric].count(answers, targets, language), np.float64)


def score(
    metric: str,
    answers: Sequence[str],
    targets: Sequence[str],
    groups: Sequence[str],
    num_resamples: int = 1000,
    seed: int = 0,
    language: str = "en",
) -> Estimate:
    """
    Value of a metric over all clips together, with its 95 % interval when groups are redrawn.

    Args:
        metric (`str`): Key of `METRICS`.
        answers, targets (sequence of `str`): Answer to each clip, and the true one.
        groups (sequence of `str`): Group of each clip, such as its speaker. Give each clip's own name if clips are
            independent.
        num_resamples (`int`, *optional*, defaults to 1000): Number of bootstrap samples.
        seed (`int`, *optional*, defaults to 0): Seed for the resampling. Equal input gives an equal interval.
        language (`str`, *optional*, defaults to `"en"`): Language of the texts, for `wer`, `cer` and `bleu`.

    Returns:
        [`~evaluation.bootstrap.Estimate`] in percent. Its `num_clips` counts clips, not groups.

    Raises:
        ValueError: As [`counts`]; if there are fewer than two groups, or the metric has no value.
    """
    table = counts(metric, answers, targets, language)
    by_group = _by_group(table, groups)
    estimate = bootstrap_sums(by_group, METRICS[metric].statistic, num_resamples, seed=seed)
    if estimate is None:
        raise ValueError(_no_value(metric))
    return dataclasses.replace(estimate, num_clips=len(table))


def by_seed(metric: str, answers: Answers, targets: Sequence[str], language: str = "en") -> list[float]:
    """
    Value of a metric for each seed by itself, in percent.

    Args:
        answers (sequence of `str`, or a sequence of such sequences): Answer to each clip, or those of each seed.
        metric, targets, language: See [`score`].

    Raises:
        ValueError: As [`counts`]; if the metric has no value.
    """
    tables = [counts(metric, said, targets, language) for said in _seeds(answers)]
    values = [float(METRICS[metric].statistic(table.sum(0))) for table in tables]
    if np.isnan(values).any():
        raise ValueError(_no_value(metric))
    return values


def _seeds(answers: Answers) -> list[Sequence[str]]:
    # What is neither all texts nor all lists of them, [`counts`] refuses.
    lists: list[Any] = [answers] if isinstance(answers, str) else list(answers)
    if not lists or isinstance(answers, str) or any(isinstance(answer, str) for answer in lists):
        return [answers]  # type: ignore[list-item]
    return lists


def _by_group(table: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    if len(groups) != len(table):
        raise ValueError(f"There must be one group for each clip, but got {len(groups)} for {len(table)}.")
    if len(set(groups)) < 2:
        raise ValueError(
            "An interval needs at least two groups to be redrawn, but all clips are of one; give each clip's own name "
            "as its group, and say that the interval holds for this speaker only."
        )
    return grouped(table, groups)


def _no_value(metric: str) -> str:
    return f"`{metric}` has no value: no target has a word left once it is spelt in the common way."


def plain(text: str) -> str:
    """A label without regard to case and white space: `calm` for ` Calm\\n`."""
    return " ".join(text.casefold().split())


def _count_hits(answers: Sequence[str], targets: Sequence[str], language: str) -> np.ndarray:
    return np.array([(plain(said) == plain(true), 1) for said, true in zip(answers, targets, strict=True)])


def class_counts(answers: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    """
    Hits, answers and true labels by the class of each clip, for [`macro_f1`] and balanced accuracy.

    Labels are compared letter by letter: phones of SAMPA differ in case alone. The metric `macro_f1` of this module
    is of what language models write, where case says nothing.

    Args:
        answers, targets (sequence of `str`): Answer to each clip, and the true one. Classes are those of the targets.
            Any other answer is a miss of its clip's class, and no class of its own.

    Returns:
        `np.ndarray` of shape `(num_clips, 3 * num_classes)`, float64.
    """
    labels = np.array(sorted(set(targets)), dtype=object)
    true, said = (np.array(texts, dtype=object)[:, None] == labels for texts in (targets, answers))
    return np.concatenate([true & said, said, true], axis=1).astype(np.float64)


def _count_classes(answers: Sequence[str], targets: Sequence[str], language: str) -> np.ndarray:
    return class_counts([plain(answer) for answer in answers], [plain(target) for target in targets])


def _count_text_errors(unit: str) -> Counting:
    def count(answers: Sequence[str], targets: Sequence[str], language: str) -> np.ndarray:
        normalize = text_normalizer(language)
        pairs = zip(answers, targets, strict=True)
        matches = [match_texts(normalize(said), normalize(true), unit) for said, true in pairs]
        return np.array([(match.errors, match.reference_length) for match in matches])

    return count


def _count_phone_errors(answers: Sequence[str], targets: Sequence[str], language: str) -> np.ndarray:
    # Case is kept: it tells phones apart in SAMPA.
    pairs = [(said.split(), true.split()) for said, true in zip(answers, targets, strict=True)]
    return np.array([(edit_distance(said, true), len(true)) for said, true in pairs])


def parse_slots(text: str) -> Counter[tuple[str, str]]:
    """
    Slots of a text such as `drink: latte; size: large`, without regard to case, white space and order.

    Args:
        text (`str`): Slots as `name: value`, parted by semicolons. A part without a colon is a slot without a name.

    Returns:
        `Counter` of (name, value): how often the text has each; more than once only where it repeats itself.
    """
    slots: Counter[tuple[str, str]] = Counter()
    for part in text.split(";"):
        name, colon, value = part.partition(":")
        if part.strip():
            slots[(plain(name), plain(value)) if colon else ("", plain(part))] += 1
    return slots


def _slot_pairs(
    answers: Sequence[str], targets: Sequence[str]
) -> list[tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]]:
    pairs = [(parse_slots(said), parse_slots(true)) for said, true in zip(answers, targets, strict=True)]
    for number, (_, true) in enumerate(pairs):
        names = [name for name, _ in true.elements()]
        if not names or len(set(names)) < len(names) or not all(name and value for name, value in true):
            raise ValueError(
                f"The target of clip {number} is {targets[number]!r}; slots are written `name: value; name: value`, "
                "each name once."
            )
    return pairs


def _count_right_slots(answers: Sequence[str], targets: Sequence[str], language: str) -> np.ndarray:
    return np.array([(said == true, 1) for said, true in _slot_pairs(answers, targets)])


def _count_slots(answers: Sequence[str], targets: Sequence[str], language: str) -> np.ndarray:
    return np.array(
        [(2 * (said & true).total(), said.total() + true.total()) for said, true in _slot_pairs(answers, targets)]
    )


def _sacrebleu(module: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError("sacrebleu", purpose) from error


def _count_bleu(answers: Sequence[str], targets: Sequence[str], language: str) -> np.ndarray:
    package = _sacrebleu("sacrebleu.metrics", "BLEU")
    tokenization = _BLEU_TOKENIZATION.get(language_code(language), "13a")
    # The effective order changes a sentence's score, which is not used, and not its counts.
    bleu = package.BLEU(tokenize=tokenization, effective_order=True)
    scores = [bleu.sentence_score(said, [true]) for said, true in zip(answers, targets, strict=True)]
    return np.array([[*clip.counts, *clip.totals, clip.sys_len, clip.ref_len] for clip in scores])


def _bleu(sums: np.ndarray) -> np.ndarray:
    # Papineni et al. 2002, smoothed as in mteval-v13a: the k-th order without a match counts as 1 / 2^k of one. Not by
    # sacrebleu's own function, which takes whole numbers only, and means over seeds are not.
    sums = np.asarray(sums, np.float64)
    hits, totals, (said, true) = (
        sums[..., :BLEU_ORDER],
        sums[..., BLEU_ORDER : 2 * BLEU_ORDER],
        np.moveaxis(sums[..., 2 * BLEU_ORDER :], -1, 0),
    )
    has_score = (hits > 0).any(-1) & (totals > 0).all(-1)
    smoothed = np.where(hits > 0, hits, 0.5 ** np.cumsum(hits == 0, axis=-1))
    precisions = smoothed / np.where(totals > 0, totals, 1.0)
    brevity = np.minimum(0.0, 1 - true / np.where(said > 0, said, 1.0))
    return np.where(has_score, 100 * np.exp(brevity + np.log(precisions).mean(-1)), 0.0)


def _count_chrf(answers: Sequence[str], targets: Sequence[str], language: str) -> np.ndarray:
    # Of each order: n-grams of the answer, of the target, and those they share.
    helpers = _sacrebleu("sacrebleu.metrics.helpers", "chrF")
    rows = []
    for texts in zip(answers, targets, strict=True):
        said, true = (helpers.extract_all_char_ngrams(text, CHRF_ORDER) for text in texts)
        rows.append(
            [
                # An order that the target is too short for says nothing about the answer.
                *(ngrams.total() if known else 0 for ngrams, known in zip(said, true, strict=True)),
                *(ngrams.total() for ngrams in true),
                *((ngrams & known).total() for ngrams, known in zip(said, true, strict=True)),
            ]
        )
    return np.array(rows)


def _chrf(sums: np.ndarray) -> np.ndarray:
    # Precision and recall are means over the orders that both sides have.
    said, true, shared = np.split(np.asarray(sums, np.float64), 3, axis=-1)
    has_order = (said > 0) & (true > 0)
    num_orders = np.maximum(has_order.sum(-1), 1)
    precision, recall = (
        (np.where(has_order, shared, 0.0) / np.where(has_order, total, 1.0)).sum(-1) / num_orders
        for total in (said, true)
    )
    weight = CHRF_BETA**2
    bottom = weight * precision + recall
    return np.where(bottom > 0, 100 * (1 + weight) * precision * recall / np.where(bottom > 0, bottom, 1.0), 0.0)


def _percent(sums: np.ndarray) -> np.ndarray:
    return 100 * ratio(sums)


METRICS: dict[str, TaskMetric] = {
    metric.name: metric
    for metric in (
        TaskMetric("accuracy", "Accuracy", True, _count_hits, _percent),
        TaskMetric("macro_f1", "Macro F1", True, _count_classes, macro_f1),
        TaskMetric("wer", "Word error rate", False, _count_text_errors("word"), _percent),
        TaskMetric("cer", "Character error rate", False, _count_text_errors("character"), _percent),
        TaskMetric("per", "Phone error rate", False, _count_phone_errors, _percent),
        TaskMetric("slots_right", "Clips with all slots right", True, _count_right_slots, _percent),
        TaskMetric("slot_f1", "Slot F1", True, _count_slots, _percent),
        TaskMetric("bleu", "BLEU", True, _count_bleu, _bleu, needs_fluency=True),
        TaskMetric("chrf", "chrF", True, _count_chrf, _chrf, needs_fluency=True),
    )
}
