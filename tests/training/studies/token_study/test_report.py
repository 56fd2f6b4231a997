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
from speech_tokenizers.training.studies.token_study.report_tables import level_sections, paper_section
from speech_tokenizers.training.studies.token_study.report_verdicts import conclusions, unpaired, verdicts


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


def test_what_the_report_concludes_follows_from_intervals():
    def task(low, high, groups=20, above=True):
        value = (low + high) / 2
        units = {"scores": {}, "differences": {"accuracy": {"value": value, "low": low, "high": high}}}
        over = {"accuracy": {"no-audio": {"value": 9.0, "low": 8.0, "high": 10.0}}}
        arms = {
            "continuous": {"differences": {}, "above_controls": above, "controls": over},
            "units": {**units, "above_controls": False, "controls": over},
        }
        facts = {"metrics": ["accuracy"], "judge": "accuracy", "num_groups": groups}
        return {"claim": "continuous", "arms": arms, **facts}

    (line,) = verdicts({"emotion": task(-30.0, -10.0)}, "lm/small")
    assert re.search("continuous better; the paper: continuous better .confirmed here", line)
    (line,) = verdicts({"emotion": task(10.0, 30.0)}, "lm/small")
    assert "refuted" in line
    (line,) = verdicts({"emotion": task(10.0, 30.0)}, "probe")
    assert "refuted" not in line
    (line,) = verdicts({"emotion": task(-10.0, 30.0)}, "lm/small")
    assert "neither confirmed nor refuted" in line
    (line,) = verdicts({"emotion": task(10.0, 30.0, groups=4)}, "lm/small")
    assert "only 4 groups" in line
    (line,) = verdicts({"emotion": task(10.0, 30.0, above=False)}, "lm/small")
    assert "nothing follows" in line


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
    deaf = told_of(args, translation(continuous=3.0, units=3.0))
    (line,) = verdicts({"mine": deaf}, "lm/small")
    assert "continuous is not shown to need fewer bits" in line
    without = {arm: {0: dataclasses.replace(of[0], facts={})} for arm, of in translation().items()}
    assert told_of(args, without)["judge"] == "bleu"


def keyword_results(units_of_big=0.9, rare=((3.0, 1.0), (1.1, 1.0)), merged=1.0):
    def near(value):
        return {"loss": {"value": value, "low": value - 0.1, "high": value + 0.1}}

    def level(units):
        rates = {"continuous": 1.0, "units": units, "units+bpe": merged, "mine-tied": 0.6, "no-audio": 0.1}
        cells = {arm: {0: cell(rate, seed=number)} for number, (arm, rate) in enumerate(rates.items())}
        for arm, (first, last) in zip(("units", "continuous"), rare, strict=True):
            cells[arm][0].facts["rarity"] = [near(first), near(last)]
        return TaskCounts("mine", cells)

    args = study(claim="continuous", variants={"mine-tied": VariantArguments("centroids", {"x": 1})})
    small, big = level(0.4), level(units_of_big)
    levels = {name: {"mine": compared(args, "mine", told)} for name, told in (("lm/small", small), ("lm/big", big))}
    change = sizes_compared(small, big, "accuracy")
    return args, results_of(levels, sizes=[{"task": "mine", "levels": ["lm/small", "lm/big"], **change}])


def lines_of(args, results, *words):
    return [line for line in conclusions(args, results) if all(word in line for word in words)]


def test_conclusions_of_sizes_rare_units_merges_and_variants():
    args, results = keyword_results()
    change = results["sizes"][0]
    assert change["change"]["value"] == pytest.approx(change["larger"]["value"] - change["smaller"]["value"])
    (line,) = lines_of(args, results, "closes the gap")
    assert line.startswith("confirmed: ")
    rare, _ = lines_of(args, results, "rare units", "less those of the most frequent")
    assert rare.startswith("confirmed: ")
    assert "+2.00" in rare
    merges = lines_of(args, results, "units+bpe less units", "`small`")
    assert merges[0].startswith("confirmed: ")
    (tied,) = lines_of(args, results, "mine-tied less units", "`big`")
    assert tied.startswith("beside the paper: ")
    assert "worse" in tied
    order = [line.split(":")[0] for line in conclusions(args, results)]
    assert order == sorted(
        order, key=("confirmed", "refuted", "cannot be said", "beside the paper", "not measured").index
    )
    assert lines_of(args, results, "not measured", "ASR WER")
    assert "What is confirmed" in study_report(args, results).markdown()


def test_other_numbers_give_other_conclusions():
    args, results = keyword_results(units_of_big=0.1, rare=((3.0, 1.0), (3.0, 1.0)), merged=0.2)
    assert lines_of(args, results, "refuted: ", "wider with the larger model")
    assert lines_of(args, results, "cannot be said: ", "not shown to be for their units")
    assert lines_of(args, results, "refuted: ", "merges do harm", "`small`")
    args, results = keyword_results(units_of_big=0.4)
    assert lines_of(args, results, "cannot be said: ", "no change of the gap")


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
