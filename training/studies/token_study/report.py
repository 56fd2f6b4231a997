# SPDX-License-Identifier: Apache-2.0
"""The report of a study of tokens: arms and tasks beside the paper's table, pictures, and what follows."""

from collections.abc import Mapping
from typing import Any

from speech_tokenizers.evaluation.report_pages import Report, Section
from speech_tokenizers.training.studies.token_study.arguments import CONTROL_ARMS, TokenStudyArguments
from speech_tokenizers.training.studies.token_study.report_analyses import analysis_sections, cost_sections
from speech_tokenizers.training.studies.token_study.report_tables import level_sections, level_title, paper_section
from speech_tokenizers.training.studies.token_study.report_verdicts import conclusions, verdicts


def study_report(args: TokenStudyArguments, results: Mapping[str, Any]) -> Report:
    """
    Args:
        args ([`TokenStudyArguments`]): The study.
        results (mapping): What [`study_results`] gives: `levels` (by its name, the tasks that [`compared`] gives),
            `sizes`, `set_aside`, and where measured `facts`, `layers`, `robustness` and `convergence`.
    """
    expected = [f"{name}: {task.expected}" for name, task in args.tasks.items() if task.expected]
    sections = [Section("What was expected", "Written in the recipe before the run.", lines=expected)]
    for level, tasks in results["levels"].items():
        sections += level_sections(level, tasks)
        sections.append(Section(f"{level_title(level)}: what follows", lines=verdicts(tasks, level)))
    sections.append(paper_section(results["levels"]))
    sections += cost_sections(results)
    sections += analysis_sections(results)
    sections.append(
        Section(
            "What is confirmed, what is refuted, and what this scale cannot say",
            "Of the findings of arXiv 2411.08742. Only language models confirm or refute. Where no difference is"
            " shown, there may be one that this study is too small for.",
            lines=conclusions(args, results),
        )
    )
    failures = [
        f"{task}: {entry['name']}: {entry['reason']}"
        for task, entries in results["set_aside"].items()
        for entry in entries
    ]
    return Report("Discrete and continuous speech tokens", _notes(args), sections, failures, results=results)


def _notes(args: TokenStudyArguments) -> list[str]:
    return [
        f"Encoder: {args.encoder.name.rsplit('/', 1)[-1]}, frozen; {args.encoder.num_units} k-means units of its"
        " frames, fitted on training clips alone.",
        "continuous: the encoder's frames. units: their k-means units. centroids: the frames that the units stand for,"
        " by the way of continuous; less continuous it is what quantizing costs. units less centroids is what the"
        " other way in costs or gains: in probes shares of units against means of frames, in language models runs of"
        " units without durations against stacked frames. Other arms are other models' tokens.",
        f"Controls: {', '.join(arm for arm in args.arms_of('lm') if arm in CONTROL_ARMS) or 'none'}.",
        "Intervals: 95 %, by redrawing groups (speakers, voices or scenes; single clips where a task names none). With"
        " several seeds, counts are averaged over them. Seeds are not in the intervals: how far"
        " they lie apart stands in a table of its own. Of few groups an interval says little.",
        *args.notes,
    ]


__all__ = ["study_report"]
