# SPDX-License-Identifier: Apache-2.0
"""What is compared and concluded, from answers that are given and not measured."""

import dataclasses
import re

import numpy as np
import pytest

from speech_tokenizers.training.studies.token_study.arguments import (
    EncoderArguments,
    LMLevelArguments,
    TaskArguments,
    TokenStudyArguments,
    VariantArguments,
)
from speech_tokenizers.training.studies.token_study.cells import Cell
from speech_tokenizers.training.studies.token_study.comparison import TaskCounts, compared, sizes_compared
from speech_tokenizers.training.studies.token_study.report import study_report
from speech_tokenizers.training.studies.token_study.report_analyses import analysis_sections
from speech_tokenizers.training.studies.token_study.report_tables import level_sections, paper_section
from speech_tokenizers.training.studies.token_study.report_verdicts import (
    conclusions,
    task_verdicts,
    unpaired,
    verdicts,
)


NUM_CLIPS = 40
TARGETS = [("high", "low")[number % 2] for number in range(NUM_CLIPS)]


def cell(right=1.0, bits=None, seed=0, targets=TARGETS, **facts):
    """A cell of 40 clips by ten speakers, of which a share is right; bits an id of about `bits`, two ids a clip."""
    generator = np.random.default_rng(seed)
    answers = [text if generator.random() < right else "?" for text in targets]
    if bits is not None:
        facts |= {"bits": [2 * bits + generator.normal(0, 0.05) for _ in targets], "num_tokens": [2] * len(targets)}
    names = [f"clip{number}" for number in range(len(targets))]
    return Cell(names, list(targets), [f"s{number % 10}" for number in range(len(targets))], answers, facts)


def study(task="keyword", variants=None, **settings):
    lm = LMLevelArguments(sizes={"small": {}, "big": {}}, variants=variants or {})
    tasks = {"mine": TaskArguments("x.jsonl", task, **settings)}
    return TokenStudyArguments("out", EncoderArguments("encoder", [1]), tasks, lm=lm)


def told_of(args, cells, fixed=()):
    return compared(args, "mine", TaskCounts("mine", cells, fixed))


def results_of(levels, **more):
    return {"levels": levels, "sizes": [], "set_aside": {}, **more}


def test_bits_are_a_ratio_of_sums_with_paired_differences():
    cells = {"continuous": {0: cell(bits=1.0)}, "units": {0: cell(bits=2.0, seed=1)}, "no-audio": {0: cell(bits=4.0)}}
    first = cells["units"][0]
    first.facts["num_tokens"] = [1, 3] * 20
    told = told_of(study(), cells)
    units = told["arms"]["units"]
    assert units["scores"]["bits"]["value"] == pytest.approx(sum(first.facts["bits"]) / 80)
    assert units["differences"]["bits"]["value"] == pytest.approx(
        units["scores"]["bits"]["value"] - told["arms"]["continuous"]["scores"]["bits"]["value"]
    )
    over = units["controls"]["bits"]["no-audio"]
    assert over["low"] <= over["value"] <= over["high"] < 0
    assert told["judge"] == "accuracy"
    header, *rows = level_sections("lm/small", {"mine": told})[-1].tables[0]
    assert header == ["task", "arm", "Bits an id ↓", "less continuous", "less no-audio"]
    assert [row[1] for row in rows] == ["continuous", "units", "no-audio"]
    assert rows[0][3] == "–" != rows[1][3]


def test_differences_are_of_shared_seeds_and_an_exact_probe_stands_beside_all():
    rates = {0: 1.0, 1: 0.5, 2: 0.5}
    cells = {"continuous": {seed: cell(rate, seed=seed) for seed, rate in rates.items()}, "rvq": {0: cell(0.0)}}
    args = study()
    assert told_of(args, cells)["arms"]["rvq"]["differences"]["accuracy"]["value"] == -100.0
    mean = told_of(args, cells)["arms"]["continuous"]["scores"]["accuracy"]["value"]
    exact = told_of(args, cells, fixed=["rvq"])["arms"]["rvq"]["differences"]["accuracy"]["value"]
    assert exact == pytest.approx(-mean)
    assert -100 < exact < 0
    cells["rvq"] = {5: cell(0.0)}
    alone = told_of(args, cells)["arms"]["rvq"]
    assert alone["differences"] == {}
    assert alone["scores"]["accuracy"]["value"] == 0.0


def speakers_of_two_kinds(seed, times=1.0):
    """A cell of 300 clips by twelve speakers, half of whom are hard to understand."""
    generator = np.random.default_rng(0)
    speakers = np.repeat(np.arange(12), 25)
    right = generator.random(300) < np.where(speakers % 2, 0.9, 0.3)
    right &= np.random.default_rng(seed).random(300) < times
    names, groups = [f"clip{number}" for number in range(300)], [f"s{number}" for number in speakers]
    return Cell(names, ["yes"] * 300, groups, ["yes" if hit else "no" for hit in right])


def test_the_paired_interval_is_narrower_than_either_and_leaves_out_nought():
    cells = {"continuous": {0: speakers_of_two_kinds(1)}, "units": {0: speakers_of_two_kinds(1, times=0.9)}}
    told = TaskCounts("mine", cells)
    paired = told.less("accuracy", "units", "continuous")
    units, continuous = (told.value("accuracy", arm) for arm in ("units", "continuous"))
    assert paired.value == pytest.approx(units.value - continuous.value)
    assert paired.high - paired.low < (units.high - units.low) / 2
    assert paired.high < 0


def test_counts_are_averaged_over_seeds_and_so_bleu_is_that_of_all_answers():
    cells = {"continuous": {seed: speakers_of_two_kinds(seed, times=0.8) for seed in range(3)}}
    told = TaskCounts("mine", cells)
    seeds = told.by_seed("accuracy", "continuous")
    assert len(set(seeds.values())) == 3
    assert told.value("accuracy", "continuous").value == pytest.approx(np.mean(list(seeds.values())))
    package = pytest.importorskip("sacrebleu")
    targets = ["the cat sat on the mat", "where is the station"]
    said = [["the cat sat on a mat", "there is a station"], ["the cat", "where is the station"]]
    of_seeds = {seed: Cell(["a", "b"], targets, ["s", "t"], answers) for seed, answers in enumerate(said)}
    pooled = package.corpus_bleu(said[0] + said[1], [targets * 2]).score
    assert TaskCounts("mine", {"units": of_seeds}).value("bleu", "units").value == pytest.approx(pooled)


def test_clips_that_an_arm_lacks_count_for_none_and_bits_follow_the_names():
    lacking = cell(bits=1.0)
    backwards = Cell(
        *(getattr(lacking, name)[:3:-1] for name in ("names", "targets", "groups", "answers")),
        {name: values[:3:-1] for name, values in lacking.facts.items()},
    )
    other = cell(bits=1.0)
    told = TaskCounts("mine", {"continuous": {0: other}, "units": {0: backwards}})
    assert len(told.names) == NUM_CLIPS - 4
    less = told.less("bits", "units", "continuous")
    assert (less.low, less.value, less.high) == (0.0, 0.0, 0.0)


def test_one_group_gives_no_interval():
    single = cell()
    single.groups = ["s"] * NUM_CLIPS
    with pytest.raises(ValueError, match="one group"):
        TaskCounts("mine", {"continuous": {0: single}})


@pytest.mark.parametrize(
    ("task", "settings", "column", "is_shown"),
    [
        ("emotion", {}, "38.65", True),
        ("slots", {"is_closed": True}, "57.04", True),
        ("slots", {}, "57.04", True),
        ("emotion", {"metrics": ["macro_f1"]}, "38.65", False),
    ],
)
def test_rows_of_the_paper_stand_in_the_column_of_their_task(task, settings, column, is_shown):
    targets = TARGETS if settings.get("is_closed") or task != "slots" else [f"drink: {text}" for text in TARGETS]
    tasks = {"mine": told_of(study(task, **settings), {"continuous": {0: cell(targets=targets)}})}
    sections = level_sections("probe", tasks)
    (row,) = [row for row in sections[0].tables[0] if row[0] == "paper: HuBERT-L discrete"] or [None]
    assert (row == ["paper: HuBERT-L discrete", column]) == is_shown
    left = paper_section({"probe": tasks}).tables[0]
    assert (column in left[1]) != is_shown
    assert len(left) == 5


def test_the_table_tells_seeds_where_they_differ_and_every_measure_is_shown():
    args = study()
    cells = {"continuous": {0: cell(), 1: cell()}, "rvq": {0: cell(0.5)}}
    main, _, others, seeds = level_sections("lm/small", {"mine": told_of(args, cells)})
    assert main.tables[0][0][:2] == ["arm", "seeds"]
    assert [row[:2] for row in main.tables[0][1:3]] == [["continuous", "2"], ["rvq", "1"]]
    assert len({len(row) for row in main.tables[0]}) == 1
    assert "mine: Macro F1 ↑" in others.tables[0][0]
    assert seeds.tables[0][1] == ["continuous", "100.0 / 100.0"]
    cells["continuous"].pop(1)
    assert "seeds" not in level_sections("lm/small", {"mine": told_of(args, cells)})[0].tables[0][0]


def judged(low, high, groups=20, above=True, seeds=(1.0, 1.0)):
    """A task of which only the difference of units to continuous, and what makes it count, is given."""
    value = (low + high) / 2
    less = {"value": value, "low": low, "high": high, "seeds": {n: value * sign for n, sign in enumerate(seeds)}}
    arms = {
        "continuous": {"differences": {}, "above_controls": above},
        "units": {"scores": {}, "differences": {"accuracy": less}, "above_controls": None if above is None else False},
    }
    return {"claim": "continuous", "metrics": ["accuracy"], "judge": "accuracy", "num_groups": groups, "arms": arms}


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        (judged(-30.0, -10.0), "confirmed", "continuous better; the paper: continuous better (confirmed here)."),
        (judged(10.0, 30.0), "refuted", "units better; the paper: continuous better (refuted here)."),
        (judged(-10.0, 30.0), "cannot be said", "no difference is shown; the paper: continuous better (neither"),
        (judged(10.0, 30.0, groups=4), "cannot be said", "(neither confirmed nor refuted here); only 4 groups"),
        (judged(10.0, 30.0, above=False), "cannot be said", "neither continuous nor units is above all controls"),
        (judged(10.0, 30.0, above=None), "cannot be said", "no control of continuous and units is measured"),
        (judged(10.0, 30.0, seeds=(2.0, 1.0, -0.1)), "cannot be said", "seeds do not agree on the sign"),
        (judged(10.0, 30.0, seeds=(1.0, 0.0)), "cannot be said", "seeds do not agree on the sign"),
        (judged(10.0, 30.0, seeds=(1.0,)), "refuted", "(refuted here); one seed."),
    ],
)
def test_what_the_report_concludes_follows_from_intervals_seeds_groups_and_controls(task, kind, words):
    (verdict,) = task_verdicts({"emotion": task}, "lm/small")
    assert verdict.kind == kind
    assert words in verdict.text
    (verdict,) = task_verdicts({"emotion": task}, "probe")
    assert verdict.kind == "cannot be said"
    assert " here)" not in verdict.text


def test_seeds_of_differences_are_kept_and_a_control_of_another_seed_is_none():
    cells = {
        "continuous": {0: cell(1.0), 1: cell(0.9, seed=1)},
        "units": {0: cell(0.4, seed=2), 1: cell(0.5, seed=3)},
        "no-audio": {5: cell(0.0)},
    }
    told = told_of(study(claim="continuous"), cells)
    units, seeds = told["arms"]["units"], told["arms"]["continuous"]["seeds"]["accuracy"]
    less = units["differences"]["accuracy"]["seeds"]
    assert less == {seed: units["seeds"]["accuracy"][seed] - value for seed, value in seeds.items()}
    assert units["above_controls"] is None
    (verdict,) = task_verdicts({"mine": told}, "lm/small")
    assert verdict.kind == "cannot be said"
    assert "no control of continuous and units is measured" in verdict.text
    cells["no-audio"] = {1: cell(0.0)}
    (verdict,) = task_verdicts({"mine": told_of(study(claim="continuous"), cells)}, "lm/small")
    assert verdict.kind == "confirmed"
    assert "one seed" not in verdict.text
    exact = TaskCounts("mine", {"continuous": {0: cell(1.0)}, "units": cells["units"]}, fixed=["continuous"])
    assert set(exact.less_by_seed("accuracy", "units", "continuous")) == {0, 1}


def phones(continuous, units, no_audio_bits=5.0):
    """Phones of which nothing is written, so that each clip has as many errors as its answer has words."""
    cells = {}
    rates = {"continuous": (continuous, 1.0), "units": (units, 2.0), "no-audio": (4, no_audio_bits)}
    for arm, (num_words, bits) in rates.items():
        cells[arm] = {0: cell(0.0, bits)}
        cells[arm][0].answers = ["? " * num_words] * NUM_CLIPS
    return told_of(study("phones", claim="units"), cells)


def test_error_rates_of_models_that_cannot_write_say_nothing_and_bits_are_told():
    told = phones(2, 3)
    assert told["arms"]["units"]["scores"]["per"]["value"] == 300
    assert told["arms"]["units"]["above_controls"]
    (verdict,) = task_verdicts({"mine": told}, "lm/small")
    assert verdict.kind == "cannot be said"
    assert "phone error rate of continuous and units is 100 % or more" in verdict.text
    found = re.findall(r"(\w+) less ([\w-]+) (.[\d.]+) \[[^]]+\] \* bits an id", verdict.text)
    assert found == [
        ("continuous", "no-audio", "-4.00"),
        ("units", "no-audio", "-3.00"),
        ("units", "continuous", "+1.00"),
    ]
    (verdict,) = task_verdicts({"mine": phones(5, 6, no_audio_bits=1.0)}, "lm/small")
    assert "units less no-audio +1.00" in verdict.text


def test_bits_are_told_where_no_arm_is_above_its_controls():
    cells = {arm: {0: cell(0.5, bits, 0)} for arm, bits in (("continuous", 1.0), ("units", 2.0), ("no-audio", 5.0))}
    (verdict,) = task_verdicts({"mine": told_of(study(claim="continuous"), cells)}, "lm/small")
    assert verdict.kind == "cannot be said"
    assert "neither continuous nor units is above all controls, so that nothing follows; by the bits" in verdict.text
    assert re.search(r"continuous less no-audio -4.00 \[.*\] \* bits an id, units less no-audio -3.00 ", verdict.text)
    assert "units less continuous +1.00 " in verdict.text
    for of_seeds in cells.values():
        of_seeds[0].facts.clear()
    (line,) = verdicts({"mine": told_of(study(claim="continuous"), cells)}, "lm/small")
    assert "bits" not in line


def translation(continuous=1.0, units=2.0, other_audio=3.0):
    arms = {"continuous": continuous, "units": units, "other-audio": other_audio, "no-audio": 5.0}
    return {arm: {0: cell(0.0, bits, seed)} for seed, (arm, bits) in enumerate(arms.items())}


def test_translation_is_judged_by_bits_since_bleu_says_nothing():
    pytest.importorskip("sacrebleu")
    args = study("translate", claim="continuous")
    told = told_of(args, translation())
    assert told["judge"] == "bits"
    (line,) = verdicts({"mine": told}, "lm/small")
    assert "+1.0" in line
    assert "confirmed here" in line
    assert "continuous needs fewer bits than with another clip's audio" in line
    assert "units needs fewer bits than without audio" in line
    # Wrong audio misleads the model of continuous: units that hear nothing need fewer bits than it, and pass for deaf.
    deaf = told_of(args, translation(continuous=3.0, units=5.0, other_audio=9.0))
    assert deaf["arms"]["continuous"]["controls"]["bits"].keys() == {"no-audio", "other-audio"}
    assert deaf["arms"]["units"]["controls"]["bits"].keys() == {"no-audio"}
    (line,) = verdicts({"mine": deaf}, "lm/small")
    assert "units is not shown to need fewer bits than without audio" in line
    (line,) = verdicts({"mine": told_of(args, translation(3.0, 3.0))}, "lm/small")
    assert "continuous is not shown to need fewer bits than with another clip's audio" in line
    without = {arm: {0: dataclasses.replace(of[0], facts={})} for arm, of in translation().items()}
    assert told_of(args, without)["judge"] == "bleu"


def with_rarity(given, first, last, speakers=10):
    """Bits of an id of a cell: those of the rarest fifth of its clips, and those of all others."""
    rarest = range(8)
    noise = np.random.default_rng(0).normal(0, 0.05, NUM_CLIPS)
    given.facts["bits"] = [2 * (first if clip in rarest else last) + noise[clip] for clip in range(NUM_CLIPS)]
    given.facts["num_tokens"] = [2] * NUM_CLIPS
    fifths = [list(range(begin, begin + 8)) for begin in range(0, NUM_CLIPS, 8)]
    loss = {"value": 1.0, "low": 0.9, "high": 1.1}
    given.facts["rarity"] = [{"count": 8, "share": 0.2, "loss": loss, "clips": fifth} for fifth in fifths]
    given.groups = [f"s{clip % 8 % speakers if clip in rarest else clip % 10}" for clip in range(NUM_CLIPS)]


def keyword_results(units_of_big=0.9, rare=((3.0, 1.0), (1.1, 1.0)), merged=1.0, continuous_of_big=1.0, speakers=10):
    def level(continuous, units):
        rates = {"continuous": continuous, "units": units, "units+bpe": merged, "mine-tied": 0.6, "no-audio": 0.1}
        cells = {arm: {0: cell(rate, seed=number)} for number, (arm, rate) in enumerate(rates.items())}
        for of_seeds in cells.values():
            with_rarity(of_seeds[0], 1.0, 1.0, speakers)
        for arm, (first, last) in zip(("units", "continuous"), rare, strict=True):
            with_rarity(cells[arm][0], first, last, speakers)
        return TaskCounts("mine", cells)

    args = study(claim="continuous", variants={"mine-tied": VariantArguments("centroids", {"x": 1})})
    small, big = level(1.0, 0.4), level(continuous_of_big, units_of_big)
    levels = {name: {"mine": compared(args, "mine", told)} for name, told in (("lm/small", small), ("lm/big", big))}
    change = sizes_compared(small, big, "accuracy")
    return args, results_of(levels, sizes=[{"task": "mine", "levels": ["lm/small", "lm/big"], **change}])


def lines_of(args, results, *words):
    return [line for line in conclusions(args, results) if all(word in line for word in words)]


def test_conclusions_of_sizes_rare_units_merges_and_variants():
    args, results = keyword_results()
    change = results["sizes"][0]
    assert change["change"]["value"] == pytest.approx(change["larger"]["value"] - change["smaller"]["value"])
    assert change["change"]["seeds"] == {0: pytest.approx(change["change"]["value"])}
    (line,) = lines_of(args, results, "narrows the gap")
    assert line.startswith("confirmed: ")
    assert line.endswith("; one seed.")
    rare, _ = lines_of(args, results, "rare units", "less those of the most frequent")
    assert rare.startswith("confirmed: ")
    assert "for units +2.00" in rare
    assert "for continuous +0.10" in rare
    assert "so by +1.90" in rare
    merges = lines_of(args, results, "units+bpe less units", "`small`")
    assert merges[0].startswith("confirmed: ")
    (tied,) = lines_of(args, results, "mine-tied less units", "`big`")
    assert tied.startswith("beside the paper: ")
    assert "worse" in tied
    order = [line.split(":")[0] for line in conclusions(args, results)]
    assert order == sorted(
        order, key=("confirmed", "refuted", "cannot be said", "beside the paper", "not measured").index
    )
    assert lines_of(args, results, "not measured", "with no language model here", "ASR WER")
    assert "What is confirmed" in study_report(args, results).markdown()


def test_other_numbers_give_other_conclusions():
    args, results = keyword_results(units_of_big=0.1, rare=((3.0, 1.0), (3.0, 1.0)), merged=0.2)
    assert lines_of(args, results, "refuted: ", "wider with the larger model")
    args, results = keyword_results(units_of_big=0.4)
    assert lines_of(args, results, "cannot be said: ", "no change of the gap")
    args, results = keyword_results(units_of_big=0.9, merged=0.2)
    assert lines_of(args, results, "refuted: ", "merges do harm", "`big`")
    args, results = keyword_results(units_of_big=1.0)
    assert lines_of(args, results, "confirmed: ", "the larger model closes the gap")
    # The gap is smaller since continuous has failed, and not since units are better.
    args, results = keyword_results(units_of_big=0.4, continuous_of_big=0.0)
    assert results["sizes"][0]["change"]["low"] > 0
    assert lines_of(args, results, "cannot be said: ", "with `big` continuous is not above all controls")
    assert not lines_of(args, results, "the gap")


def test_rare_units_are_judged_by_the_same_clips_of_both_arms():
    args, results = keyword_results(units_of_big=1.0, rare=((3.0, 1.0), (3.0, 1.0)))
    (line,) = lines_of(args, results, "cannot be said: ", "`big`", "rare units")
    assert "not shown to be for their units" in line
    args, results = keyword_results(units_of_big=1.0, rare=((3.0, 1.0), (4.0, 1.0)))
    assert lines_of(args, results, "refuted: ", "`big`", "rare units cost less")
    args, results = keyword_results(continuous_of_big=0.0)
    assert lines_of(args, results, "cannot be said: ", "`big`", "rare units", "continuous is not above all controls")
    args, results = keyword_results(speakers=3)
    assert lines_of(args, results, "cannot be said: ", "`big`", "rare units", "only 3 groups")
    args, results = keyword_results(speakers=1)
    assert results["levels"]["lm/big"]["mine"]["rarity"] is None
    (line,) = lines_of(args, results, "rare units")
    assert line.startswith(
        "cannot be said: rare units, mine with `small`, mine with `big`: units and continuous cannot"
    )


def test_rare_units_are_compared_with_the_first_shared_seed_where_clips_are_known():
    units, continuous, other = cell(), cell(), cell()
    with_rarity(units, 3.0, 1.0)
    with_rarity(other, 9.0, 1.0)
    with_rarity(continuous, 1.5, 1.0)
    cells = {"units": {0: other, 1: units}, "continuous": {1: continuous}}
    gaps = TaskCounts("mine", cells).rarity_gaps()
    bits = np.array([units.facts["bits"], continuous.facts["bits"]]) / 2
    expected = bits[:, :8].mean(1) - bits[:, 32:].mean(1)
    assert [gaps[arm]["value"] for arm in ("units", "continuous")] == pytest.approx(expected.tolist())
    assert gaps["more"]["value"] == pytest.approx(expected[0] - expected[1])
    # The noise of a clip is the same in both arms, and cancels: the interval is paired.
    assert gaps["more"]["high"] - gaps["more"]["low"] < 1e-9 < gaps["units"]["high"] - gaps["units"]["low"]
    assert gaps["more"]["seeds"].keys() == {1}
    for fifth in units.facts["rarity"]:
        fifth.pop("clips")
    assert TaskCounts("mine", cells).rarity_gaps() is None
    assert TaskCounts("mine", {"units": {0: other}, "continuous": {1: continuous}}).rarity_gaps() is None


def test_a_fifth_of_one_group_has_no_interval_in_the_table():
    args, results = keyword_results()
    rarity = results["levels"]["lm/small"]["mine"]["arms"]["units"]["facts"]["rarity"]
    rarity[0]["loss"] = {"value": 2.0, "low": 2.0, "high": 2.0}
    rarity[1]["loss"] = None
    (section,) = [section for section in analysis_sections(results) if section.title == "Rare units"]
    (row,) = [row for row in section.tables[0] if row[:2] == ["small, mine", "units"]]
    assert row[2:5] == ["–", "–", "1.00 [0.90, 1.10]"]


def test_captions_tell_seeds_and_positions_as_they_are():
    args = study()
    cells = {"continuous": {0: cell()}, "rvq": {1: cell(0.5)}}
    of_seeds = level_sections("lm/small", {"mine": told_of(args, cells)})[0].caption
    assert "seeds" not in of_seeds
    cells["rvq"] = {0: cell(0.5)}
    assert (
        "Every arm of a task has the same seeds."
        in level_sections("lm/small", {"mine": told_of(args, cells)})[0].caption
    )
    cells["rvq"] = {0: cell(0.5), 1: cell()}
    tasks = {"mine": told_of(args, cells)}
    assert "exact probe" not in level_sections("lm/small", tasks)[0].caption
    assert "exact probe" in level_sections("probe", tasks)[0].caption
    assert "at most as many positions" in level_sections("lm/small@positions", tasks)[0].caption


def test_what_was_not_measured_is_said_to_be_so():
    args = study(variants={"mine-tied": VariantArguments("centroids", {"x": 1})})
    lines = conclusions(args, results_of({"probe": {"mine": told_of(args, {"continuous": {0: cell()}})}}))
    assert len(lines) == 6
    assert all(line.startswith("not measured: ") for line in lines)


def test_noise_is_told_by_what_a_mean_of_conditions_takes():
    def near(value):
        return {"value": value, "low": value - 3, "high": value + 3}

    scores = {
        "continuous": {"clean": near(90), "noise_0db": near(80), "far": near(84)},
        "units": {"clean": near(80), "noise_0db": near(40), "far": near(44)},
    }
    args = study()
    (line,) = lines_of(args, results_of({}, robustness={"mine": {"scores": scores}}), "noise and rooms")
    assert line.startswith("cannot be said: ")
    assert "+30.0" in line
    assert "units lose more; the paper" in line
    assert unpaired(near(5), near(2)) == pytest.approx({"value": 3, "low": 3 - 18**0.5, "high": 3 + 18**0.5})
