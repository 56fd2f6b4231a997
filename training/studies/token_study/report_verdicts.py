# SPDX-License-Identifier: Apache-2.0
"""What follows from a study of tokens: what of a paper's findings is confirmed or refuted, and what cannot be said."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speech_tokenizers.evaluation.report_pages import excludes_zero, interval
from speech_tokenizers.training.studies.token_study.arguments import TokenStudyArguments
from speech_tokenizers.training.studies.token_study.comparison import (
    BITS,
    CENTROIDS,
    MERGED,
    NO_AUDIO,
    OTHER_AUDIO,
    REFERENCE,
    UNITS,
    measure_of,
)
from speech_tokenizers.training.studies.token_study.report_tables import found, level_title, missing_of_paper


# Below so many groups an interval says little.
FEWEST_GROUPS = 8
CONFIRMED, REFUTED, OPEN, BESIDE = "confirmed", "refuted", "cannot be said", "beside the paper"
NOT_MEASURED = "not measured"
_ORDER = (CONFIRMED, REFUTED, OPEN, BESIDE, NOT_MEASURED)


@dataclass(frozen=True)
class Verdict:
    """
    A sentence and what it says of a finding of the paper.

    Args:
        kind (`str`): `"confirmed"`, `"refuted"`, `"cannot be said"`, `"beside the paper"` for what the paper does not
            speak of, or `"not measured"`.
        text (`str`): The sentence, with its numbers.
    """

    kind: str
    text: str


def verdicts(tasks: Mapping[str, Any], level: str) -> list[str]:
    """
    For each task a sentence on units against continuous, beside what a paper found.

    Args:
        tasks (mapping): Tasks of a level, as [`compared`] gives them.
        level (`str`): The level; linear probes neither confirm nor refute what was found with language models.
    """
    return [verdict.text for verdict in task_verdicts(tasks, level)]


def task_verdicts(tasks: Mapping[str, Any], level: str) -> list[Verdict]:
    """The same with the kind of each."""
    told = []
    for name, task in tasks.items():
        less = found(task, UNITS, "differences", task["judge"])
        if less is not None:
            told.append(_task_verdict(name, task, less, level))
    return told


def _task_verdict(name: str, task: Mapping[str, Any], less: Mapping[str, Any], level: str) -> Verdict:
    claim, judge = task["claim"], task["judge"]
    line = f"{name}: units less {REFERENCE} {_told(less, judge)}"
    if (reason := _why_nothing_follows(task, (REFERENCE, UNITS))) is not None:
        return Verdict(OPEN, f"{line}: {reason}{_bits(task)}{_hearing(task)}.")
    kind = OPEN
    if not excludes_zero(less):
        line += ": no difference is shown"
    else:
        better = UNITS if measure_of(judge).is_better(less) else REFERENCE
        line += f": {better} better"
        kind = BESIDE if claim is None else CONFIRMED if better == claim else REFUTED
    kind, note = _settled(kind, task["num_groups"], less)
    kind = kind if level != "probe" else OPEN
    if claim is not None:
        agrees = kind if kind != OPEN else "neither confirmed nor refuted"
        line += f"; the paper: {claim} better" + (f" ({agrees} here)" if level != "probe" else "")
    return Verdict(kind, f"{line}{_hearing(task)}{note}.")


def _why_nothing_follows(task: Mapping[str, Any], arms: Sequence[str]) -> str | None:
    # Why differences between some arms say nothing; `None` where one of them is above all its controls.
    measure, named = measure_of(task["judge"]), " and ".join(arms)
    scores = [found(task, arm, "scores", task["judge"]) for arm in arms]
    is_error_rate = task["judge"] != BITS and not measure.higher_is_better
    if is_error_rate and all(score is not None and score["value"] >= 100 for score in scores):
        reason = f"the {measure.title.lower()} of {named} is 100 % or more, so that the model did not learn to write"
        return f"{reason}, and nothing follows"
    above = [task["arms"][arm]["above_controls"] for arm in arms]
    if any(above):
        return None
    if all(known is None for known in above):
        return f"no control of {named} is measured, so that nothing follows"
    shown = f"neither {arms[0]} nor {arms[1]} is" if len(arms) > 1 else f"{named} is not"
    return f"{shown} above all controls, so that nothing follows"


def _settled(kind: str, num_groups: int, *differences: Mapping[str, Any]) -> tuple[str, str]:
    # The kind, which only enough groups and seeds of one sign leave as it is, and what is to be said of these.
    note = ""
    for less in differences:
        signs = {(value > 0) - (value < 0) for value in less["seeds"].values()}
        if kind != OPEN and signs not in ({1}, {-1}):
            kind = OPEN
            note = "; seeds do not agree on the sign" if signs else "; no seed is shared"
    if any(len(less["seeds"]) == 1 for less in differences):
        note += "; one seed"
    if num_groups < FEWEST_GROUPS:
        kind = OPEN
        note += f"; only {num_groups} groups: an indication"
    return kind, note


def _bits(task: Mapping[str, Any]) -> str:
    # What the bits of the true answers say where scores of answers say nothing.
    told = []
    for arm in (REFERENCE, UNITS):
        less = task["arms"][arm].get("controls", {}).get(BITS, {}).get(NO_AUDIO)
        if less is not None:
            told.append(f"{arm} less {NO_AUDIO} {_told(less, BITS)}")
    if task["judge"] != BITS and (less := found(task, UNITS, "differences", BITS)) is not None:
        told.append(f"units less {REFERENCE} {_told(less, BITS)}")
    return f"; by the bits of the true answers: {', '.join(told)}" if told else ""


def _hearing(task: Mapping[str, Any]) -> str:
    # Whether a model whose answers are too weak to be scored hears anything. Only the model of the reference was asked
    # about other clips' audio.
    if task["judge"] != BITS:
        return ""
    told = []
    for arm in (REFERENCE, UNITS):
        over = task["arms"][arm].get("controls", {}).get(BITS, {})
        for control, named in ((OTHER_AUDIO, "with another clip's audio"), (NO_AUDIO, "without audio")):
            if (less := over.get(control)) is None:
                continue
            if measure_of(BITS).is_better(less):
                told.append(f"{arm} needs fewer bits than {named} ({_told(less, BITS)}): it hears something")
            else:
                told.append(f"{arm} is not shown to need fewer bits than {named} ({_told(less, BITS)})")
            break
    return "".join(f"; {part}" for part in told)


def _told(less: Mapping[str, Any] | None, measure: str, signed: bool = True) -> str:
    return interval(less, measure_of(measure).digits, signed) + (" bits an id" if measure == BITS else "")


def conclusions(args: TokenStudyArguments, results: Mapping[str, Any]) -> list[str]:
    """
    What is confirmed, refuted, or cannot be said of the paper's findings, in this order.

    Args:
        args ([`TokenStudyArguments`]): The study.
        results (mapping): What [`study_results`] gives.

    Returns:
        `list` of `str`: Sentences with their numbers. Only language models confirm or refute.
    """
    levels = {level: tasks for level, tasks in results["levels"].items() if level != "probe"}
    told = []
    for level, tasks in levels.items():
        told += [_of(level, verdict) for verdict in task_verdicts(tasks, level)]
    if not told:
        text = "units against continuous: no language model has both yet, and probes neither confirm nor refute."
        told.append(Verdict(NOT_MEASURED, text))
    elif missing := missing_of_paper(levels):
        told.append(Verdict(NOT_MEASURED, f"of the paper's tasks, with no language model here: {', '.join(missing)}."))
    told += _of_sizes(results["sizes"], levels)
    told += _of_rare_units(levels)
    told += _of_pairs(args, levels)
    told += _of_noise(args, results.get("robustness", {}))
    return [f"{part.kind}: {part.text}" for part in sorted(told, key=lambda verdict: _ORDER.index(verdict.kind))]


def _of(level: str, verdict: Verdict) -> Verdict:
    return Verdict(verdict.kind, f"{level_title(level)}: {verdict.text}")


def _of_sizes(sizes: Sequence[Mapping[str, Any]], levels: Mapping[str, Any]) -> list[Verdict]:
    if not sizes:
        return [Verdict(NOT_MEASURED, "a larger language model closes the gap: no two sizes have the same task.")]
    told = []
    for entry in sizes:
        smaller, larger = entry["levels"]
        task = levels[smaller][entry["task"]]
        judge = task["judge"]
        measure = measure_of(judge)
        gaps = [
            f"{_told(entry[n], judge)} with `{_size(level)}`"
            for n, level in zip(("smaller", "larger"), entry["levels"], strict=True)
        ]
        line = f"{entry['task']}: units less {REFERENCE} {gaps[0]}, {gaps[1]}; change {_told(entry['change'], judge)}"
        of_sizes = {_size(level): levels[level][entry["task"]] for level in entry["levels"]}
        failed = {size: _why_nothing_follows(of_size, (REFERENCE,)) for size, of_size in of_sizes.items()}
        reasons = [f"with `{size}` {reason}" for size, reason in failed.items() if reason is not None]
        is_behind, is_still_behind = (
            excludes_zero(entry[name]) and not measure.is_better(entry[name]) for name in ("smaller", "larger")
        )
        kind = OPEN
        if reasons:
            follows = reasons[0]
        elif not is_behind:
            follows = "units are not shown to be behind with the smaller model, so there is no gap to close"
        elif not excludes_zero(entry["change"]):
            follows = "no change of the gap is shown"
        elif not measure.is_better(entry["change"]):
            kind, follows = REFUTED, "the gap is wider with the larger model; the paper: it closes"
        elif is_still_behind:
            kind, follows = CONFIRMED, "the larger model narrows the gap, as the paper says, and does not close it"
        else:
            kind, follows = CONFIRMED, "the larger model closes the gap, as the paper says"
        num_groups = min(of_size["num_groups"] for of_size in of_sizes.values())
        kind, note = _settled(kind, num_groups, entry["smaller"], entry["change"])
        told.append(Verdict(kind, f"{line}: {follows}{note}."))
    return told


def _size(level: str) -> str:
    return level.partition("/")[2]


def _of_rare_units(levels: Mapping[str, Any]) -> list[Verdict]:
    told, unknown = [], []
    for level, tasks in levels.items():
        for name, task in tasks.items():
            if not task["arms"].get(UNITS, {}).get("facts", {}).get("rarity"):
                continue
            if task["rarity"] is None:
                unknown.append(f"{name} with `{_size(level)}`")
            else:
                told.append(_of(level, _rarity_verdict(name, task, task["rarity"])))
    if unknown:
        text = (
            f"rare units, {', '.join(unknown)}: units and {REFERENCE} cannot be compared, since they share no seed, a"
            " fifth of the clips has one group, or the cells do not keep which clips a fifth has."
        )
        told.append(Verdict(OPEN, text))
    return told or [Verdict(NOT_MEASURED, "whether rare units are under-trained: no language model reads units yet.")]


def _rarity_verdict(name: str, task: Mapping[str, Any], gaps: Mapping[str, Any]) -> Verdict:
    more = gaps["more"]
    line = (
        f"{name}, rare units: clips of the rarest fifth less those of the most frequent one, for units"
        f" {_told(gaps[UNITS], BITS)}, for {REFERENCE} {_told(gaps[REFERENCE], BITS)}, so by {_told(more, BITS)} more"
    )
    reasons = [_why_nothing_follows(task, (arm,)) for arm in (UNITS, REFERENCE)]
    kind, follows = OPEN, "no difference is shown"
    if any(reasons):
        follows = next(reason for reason in reasons if reason is not None)
    elif more["low"] > 0:
        kind, follows = CONFIRMED, "rare units cost more than their clips are hard; the paper: under-trained"
    elif more["high"] < 0:
        kind, follows = REFUTED, "rare units cost less than their clips are hard; the paper: under-trained"
    elif gaps[UNITS]["low"] > 0:
        follows = "such clips cost more, but this is not shown to be for their units"
    kind, note = _settled(kind, gaps["num_groups"], more)
    return Verdict(kind, f"{line}: {follows}{note}.")


def unpaired(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """
    The difference of two estimates, with the interval that it has if they are independent.

    Args:
        one, other (mapping): `value`, `low` and `high` of each.
    """
    below = math.hypot(one["value"] - one["low"], other["high"] - other["value"])
    above = math.hypot(one["high"] - one["value"], other["value"] - other["low"])
    value = one["value"] - other["value"]
    return {"value": value, "low": value - below, "high": value + above}


def _of_pairs(args: TokenStudyArguments, levels: Mapping[str, Any]) -> list[Verdict]:
    told = []
    for level, tasks in levels.items():
        for name, task in tasks.items():
            for pair in task["pairs"]:
                if (pair["arm"], pair["other"]) != (UNITS, CENTROIDS):
                    told.append(_of(level, _pair_verdict(name, task, pair)))
    measured = {
        (pair["arm"], pair["other"]) for tasks in levels.values() for t in tasks.values() for pair in t["pairs"]
    }
    if (MERGED, UNITS) not in measured:
        told.append(Verdict(NOT_MEASURED, "whether byte-pair merges of units help."))
    for variant in args.lm.variants:
        if not any(arm == variant for arm, _ in measured):
            told.append(Verdict(NOT_MEASURED, f"what the variant {variant} changes."))
    return told


def _pair_verdict(name: str, task: Mapping[str, Any], pair: Mapping[str, Any]) -> Verdict:
    judge, less = task["judge"], pair["less"]
    line = f"{name}: {pair['arm']} less {pair['other']} {_told(less, judge)}"
    is_claim = (pair["arm"], pair["other"]) == (MERGED, UNITS)
    if (reason := _why_nothing_follows(task, (pair["arm"], pair["other"]))) is not None:
        return Verdict(OPEN, f"{line}: {reason}.")
    kind, follows = OPEN, "no difference is shown"
    if excludes_zero(less):
        helps = measure_of(judge).is_better(less)
        kind, follows = BESIDE, "it is better" if helps else "it is worse"
        if is_claim:
            kind = CONFIRMED if helps else REFUTED
            follows = ("merges help" if helps else "merges do harm") + "; the paper: they help"
    kind, note = _settled(kind, task["num_groups"], less)
    return Verdict(kind, f"{line}: {follows}{note}.")


def _of_noise(args: TokenStudyArguments, robustness: Mapping[str, Any]) -> list[Verdict]:
    told = []
    for task, facts in robustness.items():
        measure = args.metrics_of(task)[0]
        if not {REFERENCE, UNITS} <= facts["scores"].keys():
            continue
        of_reference, of_units = (_lost(facts["scores"][arm], measure) for arm in (REFERENCE, UNITS))
        if of_reference is None or of_units is None:
            continue
        parts = [interval(lost, 1) for lost in (of_reference, of_units)]
        more = unpaired(of_units, of_reference)
        line = (
            f"{task}, noise and rooms: a mean of {len(facts['scores'][UNITS]) - 1} conditions takes {parts[0]} points"
            f" from {REFERENCE} and {parts[1]} from units, a difference of {interval(more, 1, signed=True)} (unpaired)"
        )
        follows = "no difference is shown"
        if excludes_zero(more):
            follows = "units lose more" if more["value"] > 0 else "units lose less"
        told.append(Verdict(OPEN, f"{line}: {follows}; the paper: they lose more. Probes are an indication alone."))
    return told or [Verdict(NOT_MEASURED, "whether noise hurts discrete tokens more.")]


def _lost(scores: Mapping[str, Any], metric: str) -> dict[str, float] | None:
    # What a score loses over the mean of all conditions; they share clips, so that their intervals are not narrowed.
    disturbed = [score for name, score in scores.items() if name != "clean"]
    if not disturbed or "clean" not in scores:
        return None
    mean = {end: sum(score[end] for score in disturbed) / len(disturbed) for end in ("value", "low", "high")}
    clean = scores["clean"]
    return unpaired(clean, mean) if measure_of(metric).higher_is_better else unpaired(mean, clean)


__all__ = ["Verdict", "conclusions", "task_verdicts", "unpaired", "verdicts"]
