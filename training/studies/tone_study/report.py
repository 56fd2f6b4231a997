# SPDX-License-Identifier: Apache-2.0
"""The report of a study of tone: what units keep, at which rate, beside the paper's claims."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from speech_tokenizers.evaluation.report_figures import INK, dress, new_figure
from speech_tokenizers.evaluation.report_pages import DASH, Figure, Report, Section, excludes_zero, interval
from speech_tokenizers.training.studies.tone_study.arguments import (
    ALL_DIMS,
    CONTINUOUS,
    SHUFFLED,
    ToneStudyArguments,
)
from speech_tokenizers.training.studies.tone_study.cells import LSTM_SUFFIX, SYSTEMS
from speech_tokenizers.training.studies.tone_study.comparison import PLAIN
from speech_tokenizers.training.studies.tone_study.folds import KNOWN_SPEAKERS, NEW_SPEAKER, SETTING_WORDS


if TYPE_CHECKING:
    import matplotlib.figure

Setting = Mapping[str, Any]  # `arms` by name, `num_syllables` and `num_groups`
# Arms that have no codes of their own.
_NO_CODES = (CONTINUOUS, ALL_DIMS, SHUFFLED)
# Shares of what lies above chance in which tone and vowel differ by less are not called different.
_EQUAL_SHARE = 10.0


def study_report(args: ToneStudyArguments, results: Mapping[str, Any]) -> Report:
    """
    Args:
        args ([`ToneStudyArguments`]): The study.
        results (mapping): `views`, what [`~comparison.study_results`] gives, `set_aside` and `unvoiced`.
    """
    views = results["views"]
    main = views[str(args.main_view)]
    sections = [Section("What was expected", "Written in the recipe before the run.", lines=args.expected)]
    for setting, found in main.items():
        sections += _setting_sections(args, setting, found)
    sections.append(_paper_section(args, main))
    sections += _view_sections(args, views)
    if SYSTEMS in views:
        sections += [
            Section(
                f"Other models' codes, {setting}: {SETTING_WORDS[setting]}",
                "Models as they are, trained on other speech. A number behind the slash counts the first codebooks"
                " that are read. Macro-F1 in percent.",
                tables=[_score_table(args, found)],
            )
            for setting, found in views[SYSTEMS].items()
        ]
    failures = [f"{entry['name']}: {entry['reason']}" for entry in results["set_aside"]]
    return Report("Tone in discrete units", _notes(args, results), sections, failures, results=results)


def _notes(args: ToneStudyArguments, results: Mapping[str, Any]) -> list[str]:
    main = next(iter(results["views"][str(args.main_view)].values()))
    reduced = f", reduced to {args.pca_dims} principal components" if args.pca_dims else ""
    told = [
        f"{main['num_syllables']} syllables, in {main['num_groups']} pairs of speaker and syllable.",
        f"Main view: {args.main_view}{reduced}; seeds {', '.join(map(str, args.seeds))}. Codebooks, directions,"
        " components and bins are learnt in each fold from its training syllables alone.",
        _said_of_settings(results["are_cut"]),
        f"Probe: ridge regression on means over {args.num_segments} parts of a syllable, of frames or of what the"
        " codes stand for. Its penalty is chosen on syllables that directions are learnt from, too; test syllables are"
        " in neither. F0 is a source that frames do not have.",
        "Intervals: 95 %, by redrawing pairs of speaker and syllable, paired for differences; an asterisk marks those"
        " that exclude 0. Speakers are not redrawn: what holds for these speakers need not hold for others. Seeds are"
        " averaged over.",
        "Nominal: bits a second of equally frequent codes. Entropy: as often as codes occur, each stream by itself.",
    ]
    if NEW_SPEAKER not in results["views"][str(args.main_view)]:
        told.append("There is one speaker, so that setting A was not measured.")
    for setting, counts in results["never_learnt"].items():
        if counts:
            listed = ", ".join(f"{target} {count}" for target, count in counts.items())
            told.append(
                f"{setting}: labels that training of a fold lacks count as missed, with any arm. Syllables: {listed}."
            )
    if results["unvoiced"]:
        told.append(f"{len(results['unvoiced'])} syllables have no voiced frame; their codes of F0 all say so.")
    return [*told, *args.notes]


def _said_of_settings(are_cut: bool) -> str:
    if are_cut:
        return (
            "Syllables are cut from recordings. A: a new speaker's recordings. B: known speakers' recordings that are"
            " new. Syllables of test occur in training, in other recordings."
        )
    return "A: a new speaker says new syllables. B: known speakers say new syllables. No tested one is in training."


def _title(setting: str) -> str:
    return f"{setting}: {SETTING_WORDS[setting]}"


def _setting_sections(args: ToneStudyArguments, setting: str, found: Setting) -> list[Section]:
    arms = found["arms"]
    pooled = {name: told for name, told in arms.items() if not name.endswith(LSTM_SUFFIX)}
    slug = f"tone-{setting.lower()}"
    figures = [
        Figure(
            _plot_frontier(args, pooled),
            f"{_title(setting)}: tone against the mean of the other targets, macro-F1 in percent. Numbers are nominal"
            " bits a second.",
            f"{slug}-frontier.png",
        ),
        Figure(
            _plot_confusions(pooled, args.arms),
            f"{_title(setting)}: which tone (row) was taken for which (column), share of the true tone.",
            f"{slug}-confusions.png",
        ),
    ]
    if contours := _plot_contours(pooled, args.pictured or []):
        figures.append(
            Figure(
                contours,
                f"{_title(setting)}: F0 of a tested syllable as tracked (black) and as decoded linearly from what the"
                " codes stand for, in deviations of the speaker.",
                f"{slug}-contours.png",
            )
        )
    sections = [
        Section(
            _title(setting),
            "Macro-F1 in percent; what an arm was not told is in the same table as what it was told.",
            tables=[_score_table(args, {**found, "arms": pooled})],
            figures=figures,
        ),
        Section(
            f"{_title(setting)}, differences",
            f"Macro-F1 less that of continuous frames, and less that of {PLAIN}, whatever the rates (above).",
            tables=[_difference_table(args, pooled, "less_continuous"), _difference_table(args, pooled, "less_units")],
        ),
        Section(
            f"{_title(setting)}, tone by speaker",
            "Macro-F1 of the tone; by how many bits a frame the best stream of codes tells the tone of tested"
            " syllables beyond the final, a lower bound of I(tone; unit | final); the correlation of F0 with what is"
            " decoded linearly from the codes.",
            tables=[_speaker_table(pooled)],
        ),
    ]
    if lstm := {name: told for name, told in arms.items() if name.endswith(LSTM_SUFFIX)}:
        sections.append(
            Section(
                f"{_title(setting)}, the paper's probe",
                "An LSTM of 128 cells over the codes in their order, beside the pooled probe. Macro-F1 in percent.",
                tables=[_lstm_table(lstm, pooled)],
            )
        )
    return sections


def _rates(told: Mapping[str, Any]) -> list[str]:
    rates = told["facts"].get("rates")
    return [f"{rates['nominal']:.0f}", f"{rates['entropy']:.0f}"] if rates else [DASH, DASH]


def _told_words(args: ToneStudyArguments, arm: str) -> str:
    told = args.arms[arm].told if arm in args.arms else []
    return (", ".join(told) or DASH) + (" (dealt)" if _is_control(args, arm) else "")


def _is_control(args: ToneStudyArguments, arm: str) -> bool:
    return arm in args.arms and any(stream.deals_labels for stream in args.arms[arm].streams.values())


def _score_table(args: ToneStudyArguments, found: Setting) -> list[list[str]]:
    rows = [["Arm", "Told", "Nominal", "Entropy", *(target.capitalize() for target in args.targets), "Tone, balanced"]]
    for name, told in found["arms"].items():
        scores = told["scores"]
        rows.append(
            [
                name,
                _told_words(args, name),
                *_rates(told),
                *(interval(scores[target]["macro_f1"], 1) for target in args.targets),
                interval(scores["tone"]["balanced_accuracy"], 1),
            ]
        )
    return rows


def _difference_table(args: ToneStudyArguments, arms: Mapping[str, Any], kind: str) -> list[list[str]]:
    other = CONTINUOUS if kind == "less_continuous" else PLAIN
    rows = [[f"Arm less {other}", *(target.capitalize() for target in args.targets)]]
    for name, told in arms.items():
        if kind in told:
            rows.append([name, *(interval(told[kind][target], 1, signed=True) for target in args.targets)])
    return rows


def _speaker_table(arms: Mapping[str, Any]) -> list[list[str]]:
    speakers = list(next(iter(arms.values()))["scores"]["tone"]["by_speaker"])
    rows = [["Arm", *speakers, "Seeds", "I(tone; unit given final)", "F0"]]
    for name, told in arms.items():
        score, facts = told["scores"]["tone"], told["facts"]
        information, correlation = facts.get("information"), facts.get("f0_correlation")
        rows.append(
            [
                name,
                *(f"{score['by_speaker'][speaker]:.1f}" for speaker in speakers),
                ", ".join(f"{value:.1f}" for value in score["by_seed"].values()),
                f"{information['bits']:.3f}" if information else DASH,
                f"{correlation:.2f}" if correlation is not None else DASH,
            ]
        )
    return rows


def _lstm_table(lstm: Mapping[str, Any], pooled: Mapping[str, Any]) -> list[list[str]]:
    targets = list(next(iter(lstm.values()))["scores"])
    rows = [["Arm", "Probe", *(target.capitalize() for target in targets)]]
    for name, told in lstm.items():
        arm = name.removesuffix(LSTM_SUFFIX)
        for words, of in (("LSTM", told), ("pooled", pooled.get(arm))):
            if of is not None:
                rows.append([arm, words, *(interval(of["scores"][target]["macro_f1"], 1) for target in targets)])
    return rows


def share_kept(arms: Mapping[str, Any], arm: str, target: str) -> float | None:
    """
    Share of what continuous frames tell above chance that an arm keeps, in percent.

    Args:
        arms (mapping): Arms of a setting.
        arm (`str`), target (`str`): What is asked for.

    Returns:
        `float`, or `None` where the continuous frames or the control are missing, or tell nothing.
    """
    if CONTINUOUS not in arms or SHUFFLED not in arms or arm not in arms:
        return None
    value, most, chance = (arms[name]["scores"][target]["macro_f1"]["value"] for name in (arm, CONTINUOUS, SHUFFLED))
    return 100 * (value - chance) / (most - chance) if most > chance else None


def _paper_section(args: ToneStudyArguments, main: Mapping[str, Setting]) -> Section:
    lines = []
    rows = [["Setting", "Arm", *(f"{target.capitalize()} kept" for target in args.targets)]]
    for setting, found in main.items():
        arms = found["arms"]
        for name in arms:
            if name in _NO_CODES or name.endswith(LSTM_SUFFIX):
                continue
            shares = [share_kept(arms, name, target) for target in args.targets]
            rows.append([setting, name, *(DASH if share is None else f"{share:.0f} %" for share in shares)])
    for setting in (NEW_SPEAKER, KNOWN_SPEAKERS):
        if setting in main:
            lines += _claims(args, setting, main[setting]["arms"])
    return Section(
        "The paper's claims beside ours",
        "Of arXiv 2410.19935 (Mandarin and Yoruba, HuBERT and others, layer 9): units keep vowels and lose tone; the"
        " cure is a better discretization, not an encoder of the language. Its splits share speakers and recordings."
        " Its follow-up (arXiv 2604.07467) says that residual k-means keeps more tone. We know none of their tables:"
        " the claims are those of their abstracts. The table says how much an arm keeps of what continuous frames tell"
        " above chance.",
        tables=[rows],
        lines=lines,
    )


def _claims(args: ToneStudyArguments, setting: str, arms: Mapping[str, Any]) -> list[str]:
    found = []
    further = arms.get(PLAIN, {}).get("vowel_kept_more_than_tone")
    if further is not None:
        tone, vowel = (share_kept(arms, PLAIN, target) for target in ("tone", "vowel"))
        is_large = abs(further["value"]) > _EQUAL_SHARE and excludes_zero(further)
        said = "not shown" if not is_large else "confirmed" if further["value"] > 0 else "refuted"
        found.append(
            f"Setting {setting}: units keep {tone:.0f} % of the tone and {vowel:.0f} % of the vowel,"
            f" {interval(further, 0, signed=True)} points more. That units lose tone rather than vowels is {said} (it"
            f" takes more than {_EQUAL_SHARE:.0f} points, and an interval without 0)."
        )
    for name, arm in args.arms.items():
        if name not in arms or "less_units" not in arms[name]:
            continue
        less = arms[name]["less_units"]["tone"]
        stages = [stream.num_stages for stream in arm.streams.values()]
        if max(stages) > 1 and _has_rate_of_units(args, name):
            said = (
                "more tone than" if less["low"] > 0 else "less tone than" if less["high"] < 0 else "no other tone than"
            )
            found.append(
                f"Setting {setting}: residual k-means ({name}) shows {said} one codebook of the same rate:"
                f" {interval(less, 1, signed=True)}."
            )
    if best := _best(args, arms):
        found.append(f"Setting {setting}: {best}")
    return found


def _has_rate_of_units(args: ToneStudyArguments, name: str) -> bool:
    # Whether an arm has the rate of plain units, within a twentieth.
    if PLAIN not in args.arms:
        return False
    return abs(args.arms[name].bits_per_frame / args.arms[PLAIN].bits_per_frame - 1) < 0.05


def _best(args: ToneStudyArguments, arms: Mapping[str, Any]) -> str:
    # What was asked for: at the rate of units, tone near that of continuous frames, and no other target below units.
    if PLAIN not in arms or CONTINUOUS not in arms:
        return ""
    same = [name for name in args.arms if name in arms and name != PLAIN and _has_rate_of_units(args, name)]
    same = [name for name in same if "less_units" in arms[name] and not _is_control(args, name)]
    if not same:
        return ""
    lost = {name: _lost(args, arms[name]["less_units"]) for name in same}
    # One that loses nothing is better than any that does.
    best = max(same, key=lambda name: (not lost[name], arms[name]["scores"]["tone"]["macro_f1"]["value"]))
    less = interval(arms[best]["less_continuous"]["tone"], 1, signed=True)
    which = "that are shown to lose no target" if not lost[best] else "(each is shown to lose a target)"
    rest = f"it loses {', '.join(lost[best])}" if lost[best] else "of the other targets it has"
    if not lost[best]:
        others = [target for target in args.targets if target != "tone"]
        said = [f"{target} {interval(arms[best]['less_units'][target], 1, signed=True)}" for target in others]
        rest += f" {', '.join(said)} against {PLAIN}"
    untold = [target for target in args.targets if target not in args.arms[best].told]
    rest += f" (not told: {', '.join(untold)})" if untold else " (it was told all that is measured)"
    return (
        f"of arms at the rate of {PLAIN} {which}, {best} has most tone on these syllables, {less} against continuous"
        f" frames; {rest}."
    )


def _lost(args: ToneStudyArguments, less_units: Mapping[str, Any]) -> list[str]:
    # Targets but the tone that are shown to be below those of units, and by how much.
    return [
        f"{target} {interval(less_units[target], 1, signed=True)}"
        for target in args.targets
        if target != "tone" and less_units[target]["value"] < 0 and excludes_zero(less_units[target])
    ]


def _view_sections(args: ToneStudyArguments, views: Mapping[str, Any]) -> list[Section]:
    others = [str(view) for view in args.views if str(view) in views]
    settings = list(dict.fromkeys(setting for view in others for setting in views[view]))
    sections = []
    for setting in settings:
        rows = [["View", "Arm", *(target.capitalize() for target in args.targets)]]
        for view in others:
            arms = views[view].get(setting, {"arms": {}})["arms"]
            for name in (CONTINUOUS, *args.arms_of(args.views[-1])):
                if name in arms:
                    scores = arms[name]["scores"]
                    rows.append([view, name, *(interval(scores[target]["macro_f1"], 1) for target in args.targets)])
        sections.append(
            Section(
                f"Encoders and layers, {setting}: {SETTING_WORDS[setting]}",
                "`by-speaker`: each dimension has mean 0 and deviation 1 over the frames of each speaker, which need"
                " no labels. Views other than the main one have the first seed. Macro-F1 in percent.",
                tables=[rows],
            )
        )
    return sections


def _plot_frontier(args: ToneStudyArguments, arms: Mapping[str, Any]) -> "matplotlib.figure.Figure":
    figure = new_figure(9.0, 4.6)
    axes = figure.subplots()
    others = [target for target in args.targets if target != "tone"]
    shown = {name: told for name, told in arms.items() if name != SHUFFLED}
    ranked = sorted(shown, key=lambda name: -shown[name]["scores"]["tone"]["macro_f1"]["value"])
    for number, name in enumerate(ranked, 1):
        scores = {target: shown[name]["scores"][target]["macro_f1"]["value"] for target in args.targets}
        rates = shown[name]["facts"].get("rates")
        x, y = sum(scores[target] for target in others) / max(1, len(others)), scores["tone"]
        colour = INK if name in _NO_CODES else "#3d7fc1" if rates and rates["nominal"] < 500 else "#c1663d"
        words = name if not rates else f"{name} ({rates['nominal']:.0f})"
        axes.plot(x, y, "o", color=colour, markersize=5, label=f"{number}  {words}")
        # Neighbours of nearly the same height have their numbers on different sides.
        place = ((4, 3), (-4, -10), (4, -10), (-9, 3))[number % 4]
        axes.annotate(f"{number}", (x, y), xytext=place, textcoords="offset points", fontsize=8, color=INK)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False, handletextpad=0.3)
    axes.margins(x=0.08, y=0.08)
    dress(axes, "", f"mean of {', '.join(others)}", "tone")
    return figure


def _plot_confusions(arms: Mapping[str, Any], coded: Mapping[str, Any]) -> "matplotlib.figure.Figure":
    names = [name for name in (CONTINUOUS, *coded) if name in arms]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(1.9 * columns, 2.0 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels.flat, names, strict=False):
        found = arms[name]["confusion"]
        panel.imshow(found["shares"], vmin=0, vmax=1, cmap="Blues")
        for row, shares in enumerate(found["shares"]):
            for column, share in enumerate(shares):
                panel.text(
                    column,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if share > 0.5 else "#333333",
                )
        ticks = range(len(found["tones"]))
        panel.set_xticks(ticks, found["tones"])
        panel.set_yticks(ticks, found["tones"])
        dress(panel, name)
    return figure


def _plot_contours(arms: Mapping[str, Any], pictured: Sequence[str]) -> "matplotlib.figure.Figure | None":
    names = [name for name in (CONTINUOUS, *pictured) if name in arms and arms[name]["contours"]]
    if not names:
        return None
    tones = [clip["tone"] for clip in arms[names[0]]["contours"]]
    figure = new_figure(7.0, 1.3 * len(names))
    panels = figure.subplots(len(names), len(tones), squeeze=False, sharey=True)
    for row, name in zip(panels, names, strict=True):
        for panel, clip in zip(row, arms[name]["contours"], strict=False):
            true = [float("nan") if value is None else value for value in clip["f0"]]
            panel.plot(true, color=INK, linewidth=2)
            panel.plot(clip["decoded"], color="#c1663d", linewidth=1.2)
            dress(panel, f"{name}, {clip['name']}" if panel is row[0] else clip["name"])
            panel.title.set_fontsize(6)
            panel.tick_params(labelsize=6)
    return figure


__all__ = ["share_kept", "study_report"]
