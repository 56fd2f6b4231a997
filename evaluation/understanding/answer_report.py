# SPDX-License-Identifier: Apache-2.0
"""Ask a speech language model about held-out rows, and sum its answers up to scores and a report."""

import argparse
import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging

from speech_tokenizers.coding.speech_lm_loading import load_speech_lm, load_speech_lm_without_codec
from speech_tokenizers.evaluation.bootstrap import bootstrap_sums, ratio
from speech_tokenizers.evaluation.report_pages import Report, Section, Table, interval
from speech_tokenizers.evaluation.understanding.answering import (
    AnswersFile,
    Question,
    answer_rows,
    question_of,
    read_labels,
)
from speech_tokenizers.evaluation.understanding.metrics import METRICS, counts, score
from speech_tokenizers.evaluation.units.measures import grouped
from speech_tokenizers.modeling.speech_lm_voices import model_fingerprint
from speech_tokenizers.processing.speech_rows import read_speech_rows
from speech_tokenizers.processing.task_manifests import GROUP_COLUMNS


_LABEL_METRICS = ("accuracy", "macro_f1")
_NUM_EXAMPLES = 30
_HEARD = {
    "own": "Each recording was heard.",
    "other": "Control: for each row the recording of another row was heard.",
    "none": "Control: nothing was heard but one constant frame, the same for all rows.",
}


@dataclasses.dataclass(frozen=True)
class AskedRows:
    """
    Rows to ask about.

    Args:
        table (`datasets.Dataset`): The rows.
        targets (`list[str]`): True answer of each.
        groups (`list[str]`): Group of each, such as its speaker, that is redrawn as a whole for intervals.
        group_column (`str`, *optional*): Column of the groups; without one each row is its own.
        num_left_out (`int`): Rows that were left out, since they have no true answer: those of other tasks.
    """

    table: Any
    targets: list[str]
    groups: list[str]
    group_column: str | None
    num_left_out: int


def read_asked_rows(
    folder: Path,
    codec_fingerprint: str,
    target_column: str,
    split: str | None = None,
    split_column: str = "split",
    group: str | None = None,
    limit: int | None = None,
) -> AskedRows:
    """
    Args:
        folder (`Path`): Folder that `speech-tokenizers encode-rows` wrote.
        codec_fingerprint (`str`): Fingerprint of the model's codec; rows of another one are refused.
        target_column (`str`): Column of true answers. As in training, rows without one (null) are for other tasks, and
            are left out.
        split (`str`, *optional*): Value of `split_column` of the rows to take. Needed where there are several.
        split_column (`str`, *optional*, defaults to `"split"`): Column of splits.
        group (`str`, *optional*): Column of groups. Defaults to the first of `speaker`, `voice` and `scene` that has
            two values.
        limit (`int`, *optional*): Largest number of rows, the first ones.

    Raises:
        ValueError: If a column is missing, rows of several splits are mixed, there are fewer than two rows, a true
            answer or a group is empty, or two rows have one id.
    """
    table = read_speech_rows(folder, codec=codec_fingerprint)
    columns = table.column_names
    for column, needed in ((target_column, True), (split_column, split is not None), (group, group is not None)):
        if needed and column not in columns:
            hint = " Name another by `--target-column`." if column == target_column else ""
            raise ValueError(f"{folder}: has no column `{column}`; it has {', '.join(columns)}.{hint}")
    if split_column in columns:
        found = [str(value) for value in table[split_column]]
        known = ", ".join(sorted(set(found)))
        if split is None and len(set(found)) > 1:
            raise ValueError(
                f"{folder}: has rows of the splits {known}; choose the held-out one by --split, since a model must not"
                " be measured on what it was trained on."
            )
        if split is not None:
            table = table.select([number for number, value in enumerate(found) if value == split])
            if not len(table):
                raise ValueError(f"{folder}: has no row of the split {split!r}; it has {known}.")
    of_task = [number for number, target in enumerate(table[target_column]) if target is not None]
    num_left_out = len(table) - len(of_task)
    table = table.select(of_task[: limit or len(of_task)])
    if len(table) < 2:
        others = f", and {num_left_out} without `{target_column}`" if num_left_out else ""
        raise ValueError(f"{folder}: has {len(table)} row to ask about{others}, but an interval needs at least 2.")
    ids, targets = list(table["id"]), [str(value).strip() for value in table[target_column]]
    if twice := [name for name, number in Counter(ids).items() if number > 1]:
        raise ValueError(f"{folder}: {len(twice)} ids stand in several rows, first {twice[0]!r}; give each its own.")
    if empty := [name for name, target in zip(ids, targets, strict=True) if not target]:
        raise ValueError(
            f"{folder}: {len(empty)} rows have an empty `{target_column}`, first {empty[0]!r}; write the answer,"
            " or null where the row is not for this task."
        )
    column = group or next((name for name in GROUP_COLUMNS if name in columns and len(set(table[name])) > 1), None)
    groups = [str(value or "").strip() for value in table[column]] if column else ids
    if "" in groups:
        raise ValueError(f"{folder}: the row {ids[groups.index('')]!r} has no `{column}`; choose another by --group.")
    return AskedRows(table, targets, groups, column, num_left_out)


def check_labels(question: Question, rows: AskedRows) -> None:
    """
    Raises:
        ValueError: If a true answer is not among those to choose from.
    """
    if question.labels is None:
        return
    unknown = sorted(set(rows.targets) - set(question.labels))
    if unknown:
        raise ValueError(
            f"{len(unknown)} true answers are not among those to choose from, first {unknown[0]!r}; those are"
            f" {', '.join(question.labels)}. Name all by --answers, or leave such rows out."
        )


def summarize(
    records: Sequence[Mapping[str, Any]], groups: Sequence[str], metrics: Sequence[str], language: str = "en"
) -> dict[str, Any]:
    """
    Scores of answers with their intervals over groups, as plain JSON values.

    Args:
        records (sequence of mapping): Lines of an [`AnswersFile`].
        groups (sequence of `str`): Group of each.
        metrics (sequence of `str`): Keys of `METRICS`.
        language (`str`, *optional*, defaults to `"en"`): Language of the answers.

    Returns:
        `dict` of `str` to `dict`: An estimate for each metric, and `target_bits`, the mean bits of an id of the true
        answers, their ends included.

    Raises:
        ValueError: As [`score`].
    """
    answers, targets = ([record[name] for record in records] for name in ("answer", "target"))
    found = {name: dataclasses.asdict(score(name, answers, targets, groups, language=language)) for name in metrics}
    table = np.array([(record["bits"], record["num_tokens"]) for record in records])
    bits = bootstrap_sums(grouped(table, groups), ratio, num_resamples=1000)
    assert bits is not None  # each true answer has its end
    found["target_bits"] = {**dataclasses.asdict(bits), "num_clips": len(records)}
    return found


def build_answer_report(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Report:
    """
    The report of an evaluation.

    Args:
        results (mapping): What `evaluate_answers` found.
        records (sequence of mapping): Lines of the [`AnswersFile`].
    """
    group = results["group_column"]
    notes = [
        f"`{results['model']}` answered {results['num_clips']} rows of the task `{results['task']}`"
        + (f" ({results['instruction']})." if results["instruction"] else "."),
        *([f"{results['num_left_out']} rows without a true answer were left out."] if results["num_left_out"] else []),
        _HEARD[results["audio"]],
        f"The answer is the likeliest of {len(results['labels'])} labels."
        if results["labels"]
        else "Answers were generated freely, the likeliest id at each step; "
        f"{results['num_cut']} of them did not end by themselves and were cut.",
        f"Intervals cover 95 % of redraws of the {results['num_groups']} values of `{group}`."
        if group
        else "Intervals cover 95 % of redraws of single rows, since no column tells groups: speakers may be in several"
        " rows, so that the intervals may be too narrow.",
    ]
    scores: list[list[str]] = [["measure", "value"]]
    for name, estimate in results["scores"].items():
        metric = METRICS.get(name)
        title = "Bits of an id of the true answer" if metric is None else f"{metric.title} %"
        better = metric is not None and metric.higher_is_better
        scores.append([f"{title} ({'higher' if better else 'lower'} is better)", interval(estimate, 2)])
    sections = [Section("Scores", tables=[scores])]
    if results["labels"]:
        sections.append(Section("By label", "Rows of each label, and what they were taken for.", [_by_label(records)]))
    shown = [["row", "true answer", "answer"]]
    shown += [[record["id"], record["target"], record["answer"]] for record in records[:_NUM_EXAMPLES]]
    sections.append(Section("Answers", f"The first rows; `answers.jsonl` has all {len(records)}.", [shown]))
    title = f"Understanding: {results['task']} by {results['model']}"
    return Report(title, notes, sections, results=results)


def _by_label(records: Sequence[Mapping[str, Any]]) -> Table:
    rows = [["label", "rows", "right", "taken for"]]
    for label in sorted({record["target"] for record in records}):
        answers = Counter(record["answer"] for record in records if record["target"] == label)
        right = answers.pop(label, 0)
        others = ", ".join(f"{name} {number}" for name, number in sorted(answers.items(), key=lambda a: (-a[1], a[0])))
        rows.append([label, str(right + answers.total()), str(right), others])
    return rows


def evaluate_answers(args: argparse.Namespace) -> int:
    """Measure answers, as `speech-tokenizers evaluate understanding` does; returns the exit code."""
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    model, processor = load_speech_lm_without_codec(args.model)
    labels = None if args.answers is None else read_labels(args.answers)
    question = question_of(model.config, args.task, labels, args.max_new_tokens, args.beams)
    task = question.task
    is_choice = question.labels is not None
    if is_choice and (args.max_new_tokens is not None or args.beams != 1):
        raise ValueError("--max-new-tokens and --beams are for free answers, but here one of a set is chosen.")
    own = task.metrics if task.is_closed or not is_choice else ()
    metrics = list(args.metrics or own or (_LABEL_METRICS if is_choice else ()))
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"--metrics: there is no metric {unknown[0]!r}; choose of {', '.join(METRICS)}.")
    rows = read_asked_rows(
        args.rows,
        processor.codec_fingerprint,
        args.target_column or task.target,
        args.split,
        args.split_column,
        args.group,
        args.limit,
    )
    if rows.num_left_out:
        print(f"{args.rows}: {rows.num_left_out} rows without a true answer are left out", file=sys.stderr)
    check_labels(question, rows)
    if len(set(rows.groups)) < 2:
        raise ValueError(f"All rows have the same `{rows.group_column}`; choose another column by --group.")
    for name in metrics:
        counts(name, rows.targets, rows.targets, args.language)  # a target that it cannot take is told before the work
    if model.config.layout == "continuous" and "audio_latents" not in rows.table.column_names:
        model, processor = load_speech_lm(args.model)  # which turns codes into latents
    model.to(args.device)
    told = [[row, *pair] for row, *pair in zip(rows.table["id"], rows.targets, rows.table["num_frames"], strict=True)]
    settings = {
        "model": model_fingerprint(model),
        "task": task.name,
        "instruction": task.instruction,
        "labels": None if question.labels is None else list(question.labels),
        "rows": hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16],
        "audio": args.audio,
        "seed": args.seed if args.audio == "other" else None,
        "max_new_tokens": args.max_new_tokens,
        "beams": args.beams,
        "batch_size": args.batch_size,
    }
    with (
        AnswersFile(args.output / "answers.jsonl", settings, args.batch_size, len(rows.targets)) as file,
        tqdm(total=len(rows.targets), unit="row", disable=None) as progress,
    ):
        asked = (rows.table, rows.targets, file, args.batch_size, args.audio, args.seed)
        for number in answer_rows(model, processor, question, *asked):
            progress.update(number)
        records = file.records
    results = {
        "model": Path(args.model).name,
        **{name: settings[name] for name in ("task", "instruction", "labels", "audio")},
        "num_clips": len(records),
        "num_left_out": rows.num_left_out,
        "num_groups": len(set(rows.groups)),
        "group_column": rows.group_column,
        "num_cut": sum(not record.get("ended", True) for record in records),
        "scores": summarize(records, rows.groups, metrics, args.language),
        "settings": settings,
    }
    report = build_answer_report(results, records)
    written = report.write(args.output, "results")
    print(report.markdown())
    print("written: " + ", ".join(str(path) for path in written))
    return 0
