# SPDX-License-Identifier: Apache-2.0
"""Tables and pictures of a level in the report of a study of tokens, with the paper's rows below ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from speech_tokenizers.evaluation.report_figures import plot_panels
from speech_tokenizers.evaluation.report_pages import DASH, Figure, Section, interval
from speech_tokenizers.training.studies.token_study.arguments import CONTROL_ARMS
from speech_tokenizers.training.studies.token_study.comparison import BITS, REFERENCE, measure_of


# Table 1 of https://huggingface.co/papers/2411.08742 (Qwen1.5-0.5B), as others have transcribed it. ASR is LibriSpeech
# clean / other; two values of ST and KS are those of its two test sets.
PAPER_COLUMNS = ("ASR WER", "phones PER", "ST BLEU", "keywords %", "intents %", "emotions %")
PAPER_ROWS = {
    "HuBERT-L discrete": ("4.56 / 9.79", "9.69", "22.75 / 20.14", "93.70 / 93.85", "57.04", "38.65"),
    "WavLM-L discrete": ("4.72 / 10.45", "9.64", "24.62 / 21.22", "92.87 / 92.45", "59.96", "37.98"),
    "HuBERT-L continuous": ("4.91 / 6.43", "12.84", "26.63 / 25.42", "95.38 / 95.70", "76.84", "56.72"),
    "WavLM-L continuous": ("2.92 / 4.61", "12.62", "29.44 / 28.12", "97.76 / 97.36", "81.35", "59.45"),
}
# The paper's column of each registered task, and the measures that it can stand below. Slots are its intents.
_PAPER_PLACES = {
    "asr": (0, ("wer",)),
    "phones": (1, ("per",)),
    "translate": (2, ("bleu",)),
    "keyword": (3, ("accuracy",)),
    "slots": (4, ("accuracy", "slots_right")),
    "emotion": (5, ("accuracy",)),
}

# A column: name of a task, and a measure.
_Column = tuple[str, str]


def level_title(level: str) -> str:
    """Heading of a level: `"probe"`, `"lm/SIZE"` or `"lm/SIZE@positions"`."""
    if level == "probe":
        return "Probes"
    size, _, matched = level.partition("/")[2].partition("@")
    return f"Language model `{size}`" + (f", at equal {matched}" if matched else "")


def level_sections(level: str, tasks: Mapping[str, Any]) -> list[Section]:
    """
    Tables and pictures of a level.

    Args:
        level (`str`): See [`level_title`].
        tasks (mapping): Its tasks, as [`compared`] gives them.
    """
    title, mains = level_title(level), _mains(tasks)
    further = [(name, metric) for name, task in tasks.items() for metric in task["metrics"][1:]]
    paper = _paper_rows(tasks)
    caption = _level_caption(level) + (_PAPER_CAPTION if paper else "") + _seeds_caption(level, tasks)
    sections = [
        Section(title, caption, [_main_table(tasks, paper)], [_score_figure(level, tasks)]),
        Section(
            f"{title}: less {REFERENCE}",
            f"By how much each arm exceeds {REFERENCE}, paired, over the seeds that both have, in points; *: the 95 %"
            " interval excludes 0.",
            [_differences(tasks, mains, [_centroids_row(tasks)])],
            [_difference_figure(level, tasks)] if any(len(task["arms"]) > 1 for task in tasks.values()) else [],
        ),
    ]
    if further:
        caption = f"What else is measured of the same answers; below, by how much each arm exceeds {REFERENCE}."
        tables = [_scores(tasks, further), _differences(tasks, further)]
        sections.append(Section(f"{title}: other measures", caption, tables))
    sections.append(Section(f"{title}: seeds", "Each seed by itself.", [_seed_table(tasks, mains)]))
    if len(bits := _bits_table(tasks)) > 1:
        sections.append(Section(f"{title}: bits", _BITS_CAPTION, [bits]))
    return sections


_PAPER_CAPTION = (
    " Rows that begin with `paper` are not ours: table 1 of arXiv 2411.08742 (Qwen1.5-0.5B, encoders of 300 M"
    " parameters, hundreds of hours of other data), as others have transcribed it; its intents stand below slots. Two"
    " values are of two test sets. Compare what is above what, and not the numbers."
)
_BITS_CAPTION = (
    "Bits of an id of the true answer, with its end, that the model needs: sum of bits over sum of ids. Differences"
    " are paired, over the seeds that both have; *: the 95 % interval excludes 0. Fewer bits than without audio:"
    " what is heard tells of the answer, unless the model's training went better by chance, which only seeds show, and"
    " no interval. `other-audio` is the model of continuous, which another clip's"
    " audio misleads; an arm that hears nothing would need fewer bits too, and so only continuous stands beside it."
)


def paper_section(levels: Mapping[str, Mapping[str, Any]]) -> Section:
    """The columns of the paper's table for which the study has no task; empty where it has all."""
    shown = {
        place for tasks in levels.values() for task in tasks.values() if (place := _paper_place(task)) is not None
    }
    left = [place for place in range(len(PAPER_COLUMNS)) if place not in shown]
    rows = [["encoder and tokens", *(PAPER_COLUMNS[place] for place in left)]]
    rows += [[f"paper: {name}", *(row[place] for place in left)] for name, row in PAPER_ROWS.items() if left]
    caption = (
        "The other columns of table 1 of arXiv 2411.08742: the paper's numbers, for which there are none of ours."
    )
    return Section("The paper's other tasks", caption if left else "", [rows])


def missing_of_paper(levels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Columns of the paper's table for which no task of these levels stands."""
    shown = {_paper_place(task) for tasks in levels.values() for task in tasks.values()}
    return [name for place, name in enumerate(PAPER_COLUMNS) if place not in shown]


def _paper_place(task: Mapping[str, Any]) -> int | None:
    place, measures = _PAPER_PLACES.get(task["task"], (None, ()))
    return place if task["metrics"][0] in measures else None


def _paper_rows(tasks: Mapping[str, Any]) -> list[list[str]]:
    places = [_paper_place(task) for task in tasks.values()]
    if all(place is None for place in places):
        return []
    return [
        [f"paper: {name}", *(DASH if place is None else row[place] for place in places)]
        for name, row in PAPER_ROWS.items()
    ]


def _level_caption(level: str) -> str:
    if level == "probe":
        return "Ridge regression from the whole clip, and for phones a linear map with CTC; no language model."
    if level.endswith("@positions"):
        return (
            "As many steps as above, and in each at most as many positions of the sequence for every arm as for"
            " continuous, since these limit a batch, so that arms of more positions a second hear less speech. Arms of"
            " as many as continuous stand as above."
        )
    return "The same language model, prompt, targets and steps for every arm; closed answers by likelihood."


def _seeds_caption(level: str, tasks: Mapping[str, Any]) -> str:
    if _seeds_differ(tasks):
        told = " `seeds`: number of seeds of each arm, in the order of the columns"
        return told + ("; an exact probe needs but one." if level == "probe" else ".")
    seeds = [
        {frozenset(found(task, arm, "seeds", task["metrics"][0]) or ()) for arm in task["arms"]}
        for task in tasks.values()
    ]
    return " Every arm of a task has the same seeds." if all(len(of_task) == 1 for of_task in seeds) else ""


def _arms(tasks: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(arm for task in tasks.values() for arm in task["arms"]))


def _mains(tasks: Mapping[str, Any]) -> list[_Column]:
    return [(name, task["metrics"][0]) for name, task in tasks.items()]


def _heading(column: _Column) -> str:
    return f"{column[0]}: {measure_of(column[1]).heading}"


def found(task: Mapping[str, Any], arm: str, kind: str, measure: str) -> Mapping[str, Any] | None:
    """What is known of an arm by a measure: its `"scores"`, `"seeds"` or `"differences"`."""
    return task["arms"].get(arm, {}).get(kind, {}).get(measure)


def _cell(tasks: Mapping[str, Any], column: _Column, arm: str, kind: str) -> str:
    name, measure = column
    return interval(found(tasks[name], arm, kind, measure), measure_of(measure).digits, signed=kind == "differences")


def _scores(tasks: Mapping[str, Any], columns: Sequence[_Column]) -> list[list[str]]:
    rows = [[arm, *(_cell(tasks, column, arm, "scores") for column in columns)] for arm in _arms(tasks)]
    return [["arm", *map(_heading, columns)], *rows]


def _differences(
    tasks: Mapping[str, Any], columns: Sequence[_Column], more: Sequence[list[str]] = ()
) -> list[list[str]]:
    arms = [arm for arm in _arms(tasks) if arm != REFERENCE]
    rows = [[arm, *(_cell(tasks, column, arm, "differences") for column in columns)] for arm in arms]
    return [["arm", *map(_heading, columns)], *rows, *more]


def _centroids_row(tasks: Mapping[str, Any]) -> list[str]:
    told = []
    for task in tasks.values():
        pairs = {(pair["arm"], pair["other"]): pair["less"] for pair in task["pairs"]}
        # By the measure that the task is judged by, which need not be that of its column.
        less = pairs.get(("units", "centroids"))
        text = interval(less, measure_of(task["judge"]).digits, signed=True)
        told.append(f"{text} bits" if less is not None and task["judge"] == BITS else text)
    return ["units less centroids", *told]


def _number_of_seeds(tasks: Mapping[str, Any], arm: str) -> list[int]:
    return [len(found(task, arm, "seeds", task["metrics"][0]) or ()) for task in tasks.values()]


def _seeds_differ(tasks: Mapping[str, Any]) -> bool:
    return len({number for arm in _arms(tasks) for number in _number_of_seeds(tasks, arm) if number}) > 1


def _main_table(tasks: Mapping[str, Any], paper: Sequence[list[str]]) -> list[list[str]]:
    counts = [f"{task['num_clips']} clips, {task['num_groups']} groups" for task in tasks.values()]
    rows = [*_scores(tasks, _mains(tasks)), ["tested on", *counts], *paper]
    if not _seeds_differ(tasks):
        return rows
    told = ["seeds"]
    for arm in _arms(tasks):
        numbers = _number_of_seeds(tasks, arm)
        several = [str(number) if number else DASH for number in numbers]
        told.append(several[0] if len(set(several)) == 1 else " / ".join(several))
    told += [DASH] * (len(rows) - len(told))
    return [[row[0], number, *row[1:]] for row, number in zip(rows, told, strict=True)]


def _seed_table(tasks: Mapping[str, Any], columns: Sequence[_Column]) -> list[list[str]]:
    rows = [["arm", *map(_heading, columns)]]
    for arm in _arms(tasks):
        values = [(found(tasks[name], arm, "seeds", measure) or {}).values() for name, measure in columns]
        rows.append([arm, *(" / ".join(f"{value:.1f}" for value in told) or DASH for told in values)])
    return rows


def _bits_table(tasks: Mapping[str, Any]) -> list[list[str]]:
    measure = measure_of(BITS)
    controls = [arm for arm in CONTROL_ARMS if any(arm in task["arms"] for task in tasks.values())]
    rows = [["task", "arm", measure.heading, f"less {REFERENCE}", *(f"less {arm}" for arm in controls)]]
    for name, task in tasks.items():
        for arm, entry in task["arms"].items():
            if (value := found(task, arm, "scores", BITS)) is None:
                continue
            over = entry["controls"].get(BITS, {})
            less = [found(task, arm, "differences", BITS), *(over.get(control) for control in controls)]
            told = [interval(part, measure.digits, signed=True) for part in less]
            rows.append([name, arm, interval(value, measure.digits), *told])
    return rows


def _score_figure(level: str, tasks: Mapping[str, Any]) -> Figure:
    arms = _arms(tasks)
    panels = [
        (_heading((name, metric)), [found(tasks[name], arm, "scores", metric) for arm in arms])
        for name, metric in _mains(tasks)
    ]
    alt = f"{level_title(level)}: scores of the arms with 95 % intervals, a panel a task."
    return Figure(plot_panels(arms, panels), alt, f"{level.replace('/', '-')}-scores.png")


def _difference_figure(level: str, tasks: Mapping[str, Any]) -> Figure:
    arms = [arm for arm in _arms(tasks) if arm != REFERENCE and arm not in CONTROL_ARMS]
    panels = []
    for name, metric in _mains(tasks):
        measure = measure_of(metric)
        better = "right" if measure.higher_is_better else "left"
        told = [found(tasks[name], arm, "differences", metric) for arm in arms]
        panels.append((f"{name}: {measure.title} less {REFERENCE} (better: {better})", told))
    alt = f"{level_title(level)}: paired differences to {REFERENCE} with 95 % intervals, a panel a task."
    return Figure(plot_panels(arms, panels, about_zero=True), alt, f"{level.replace('/', '-')}-differences.png")


__all__ = [
    "PAPER_COLUMNS",
    "PAPER_ROWS",
    "found",
    "level_sections",
    "level_title",
    "missing_of_paper",
    "paper_section",
]
