# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest

from speech_tokenizers.evaluation.understanding.metrics import (
    METRICS,
    by_seed,
    counts,
    parse_slots,
    score,
)
from speech_tokenizers.processing.optional_packages import MissingPackageError


# Targets of the free metrics, and answers that are right, wrong, too long, too short and missing.
TARGETS = ["the cat sat on the mat", "two shots please", "i'll have a large latte", "no", "where is the station"]
ANSWERS = ["the cat sat on a mat", "2 shots", "I will have the large latte, please", "", "there is a station here"]
CLIPS = ["a", "b", "c", "d", "e"]


def one(metric, answers, targets, **kwargs):
    return score(metric, answers, targets, [str(number) for number in range(len(targets))], **kwargs).value


@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_error_rates_are_those_of_jiwer(metric):
    jiwer = pytest.importorskip("jiwer")
    targets = [text for text in TARGETS if "'" not in text and "two" not in text]
    answers = [said for said, text in zip(ANSWERS, TARGETS, strict=True) if text in targets]
    assert one(metric, answers, targets) == pytest.approx(100 * getattr(jiwer, metric)(targets, answers))


def test_texts_are_spelt_in_one_way_before_they_are_compared():
    assert one("wer", ["2 shots, please!", "I will"], ["two shots please", "I'll"]) == 0
    assert one("wer", ["zwei", "ja"], ["2", "ja"], language="de") == 50


def test_phone_error_rate_is_that_of_jiwer_and_keeps_case():
    jiwer = pytest.importorskip("jiwer")
    targets, answers = ["HH AH L OW", "s S t", "a b c"], ["HH AH L", "S S t  t", ""]
    assert one("per", answers, targets) == pytest.approx(100 * jiwer.wer(targets, answers))
    assert one("per", answers, targets) == pytest.approx(100 * 6 / 10)


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
@pytest.mark.parametrize(
    "answers", [ANSWERS, TARGETS, ["x"] * 5, [""] * 5, ["the cat"] * 5, ["no two the cat no"] * 5], ids=range(6)
)
def test_translation_scores_are_those_of_sacrebleu(metric, answers):
    package = pytest.importorskip("sacrebleu")
    expected = getattr(package, f"corpus_{metric}")(answers, [TARGETS]).score
    assert one(metric, answers, TARGETS) == pytest.approx(expected, abs=1e-9)


def test_chinese_is_cut_into_characters_for_bleu():
    package = pytest.importorskip("sacrebleu")
    answers, targets = ["今天天气很好。", "我喜欢喝茶"], ["今天天气真好。", "我喜欢喝咖啡"]
    expected = package.corpus_bleu(answers, [targets], tokenize="zh").score
    assert one("bleu", answers, targets, language="zh") == pytest.approx(expected)
    assert one("bleu", answers, targets) != pytest.approx(expected)


def test_classification_scores_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    labels = ["calm", "happy", "sad", "angry"]
    targets = [labels[number] for number in generator.integers(0, 4, 60)]
    # `angry` is never answered, and some answers are no label or missing.
    answers = generator.choice(["calm", "happy", "sad", "joyful", ""], 60).tolist()
    assert one("accuracy", answers, targets) == pytest.approx(100 * sklearn.accuracy_score(targets, answers))
    expected = sklearn.f1_score(targets, answers, labels=labels, average="macro", zero_division=0)
    assert one("macro_f1", answers, targets) == pytest.approx(100 * expected)


def test_a_class_that_is_never_answered_counts_as_nought():
    assert one("macro_f1", ["a", "a", "a", "a"], ["a", "a", "a", "b"]) == pytest.approx((100 * 6 / 7 + 0) / 2)


def test_case_and_white_space_of_a_label_do_not_matter_and_a_missing_answer_is_wrong():
    assert one("accuracy", [" Calm\n", "very  Sad", "", "calm."], ["calm", "very sad", "calm", "calm"]) == 50


def test_slots_by_hand():
    targets = ["drink: latte; size: large", "drink: mocha", "drink: tea; shots: 2; milk: oat"]
    answers = ["Size: large;drink:latte;", "drink: mocha; drink: mocha", "drink: tea; shots: 3; soy"]
    assert one("slots_right", answers, targets) == pytest.approx(100 / 3)
    # Hits 2 + 1 + 1, answered 2 + 2 + 3, true 2 + 1 + 3.
    assert one("slot_f1", answers, targets) == pytest.approx(100 * 2 * 4 / 13)
    assert one("slot_f1", ["", ""], targets[:2]) == 0
    assert parse_slots("time: 10:30") == {("time", "10:30"): 1}


def test_slot_f1_is_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    targets = ["a: 1; b: 2", "a: 2", "b: 1; c: 1", "c: 2"]
    answers = ["a: 1; b: 1", "a: 2; c: 1", "", "c: 2; a: 1; b: 2"]
    sets = [[set(parse_slots(text)) for text in texts] for texts in (targets, answers)]
    binarizer = preprocessing.MultiLabelBinarizer().fit(sets[0] + sets[1])
    expected = sklearn.f1_score(*map(binarizer.transform, sets), average="micro")
    assert one("slot_f1", answers, targets) == pytest.approx(100 * expected)


@pytest.mark.parametrize("metric", METRICS)
def test_right_answers_are_right_and_missing_ones_wrong(metric):
    if metric in ("bleu", "chrf"):
        pytest.importorskip("sacrebleu")
    targets = ["a: large latte; b: three", "a: no milk; b: two", "a: some sugar; b: two"]
    best, worst = (100, 0) if METRICS[metric].higher_is_better else (0, 100)
    assert one(metric, targets, targets) == pytest.approx(best)
    assert one(metric, ["", "", ""], targets) == worst
    # A clip without an answer is an error, and not left out.
    some = one(metric, [targets[0], "", targets[2]], targets)
    assert min(best, worst) < some < max(best, worst)


def answers_by_speaker(num_speakers=12, num_clips=25, seed=0):
    """Answers of two systems: half of the speakers are hard, and the second system fails a little more often."""
    generator = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(num_speakers), num_clips)
    right = generator.random(len(speakers)) < np.where(speakers % 2, 0.9, 0.3)
    worse = right & (generator.random(len(speakers)) < 0.9)
    texts = [["yes" if hit else "no" for hit in hits] for hits in (right, worse)]
    return *texts, ["yes"] * len(speakers), [f"speaker {number}" for number in speakers]


def width(estimate):
    return estimate.high - estimate.low


def test_redrawing_speakers_is_wider_than_redrawing_clips():
    answers, _, targets, speakers = answers_by_speaker()
    by_speaker = score("accuracy", answers, targets, speakers)
    by_clip = score("accuracy", answers, targets, [str(number) for number in range(len(targets))])
    assert by_speaker.value == by_clip.value
    assert by_speaker.num_clips == by_clip.num_clips == len(targets)
    assert width(by_speaker) > 2 * width(by_clip)


def test_a_seed_gives_the_same_numbers_and_another_other_ones():
    answers, _, targets, speakers = answers_by_speaker()
    first, again, other = (
        score("accuracy", answers, targets, speakers, num_resamples=50, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.value == other.value
    assert (first.low, first.high) != (other.low, other.high)


def test_each_seed_has_its_value():
    answers, worse, targets, _ = answers_by_speaker()
    expected = [one("accuracy", answers, targets), one("accuracy", worse, targets)]
    assert expected[0] > expected[1]
    assert by_seed("accuracy", [answers, worse], targets) == pytest.approx(expected)
    assert by_seed("accuracy", worse, targets) == pytest.approx(expected[1:])


def test_counts_have_a_row_for_each_clip():
    assert counts("wer", ["a b", ""], ["a c", "d"]).tolist() == [[1, 2], [1, 1]]
    assert counts("macro_f1", ["x", "b"], ["a", "b"]).tolist() == [[0, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: score("f1", ["a"], ["a"], ["s"]), "choose one of accuracy, macro_f1"),
        (lambda: score("accuracy", ["a"], ["a", "b"], ["s", "t"]), "1 for 2"),
        (lambda: by_seed("accuracy", [["a", "b"], ["a"]], ["a", "b"]), "1 for 2"),
        (lambda: score("accuracy", [["a", "b"], ["b", "a"]], ["a", "b"], ["s", "t"]), "one is ['a', 'b']"),
        (lambda: score("accuracy", ["a", "b"], ["a", " "], ["s", "t"]), "target of clip 1 is empty"),
        (lambda: score("accuracy", ["a", "b"], ["a", "b"], ["s"]), "one group for each clip"),
        (lambda: score("accuracy", ["a", "b"], ["a", "b"], ["s", "s"]), "at least two groups"),
        (lambda: score("accuracy", [], [], []), "no answer"),
        (lambda: score("accuracy", "ab", ["a", "b"], ["s", "t"]), "single text"),
        (lambda: by_seed("accuracy", ["a", ["b"]], ["a", "b"]), "one is ['b']"),
        (lambda: by_seed("accuracy", "ab", ["a", "b"]), "single text"),
        (lambda: by_seed("accuracy", [], []), "no answer"),
        (lambda: score("slot_f1", ["a: 1", ""], ["a: 1", "latte"], ["s", "t"]), "clip 1 is 'latte'"),
        (lambda: score("slots_right", ["a: 1", ""], ["a: 1; a: 2", "a: 1"], ["s", "t"]), "each name once"),
        (lambda: score("wer", ["a", "b"], ["[noise]", "[breath]"], ["s", "t"]), "no value"),
        (lambda: by_seed("wer", ["a"], ["[noise]"]), "no value"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_a_missing_package_is_named(metric, monkeypatch):
    for name in ("sacrebleu", "sacrebleu.metrics", "sacrebleu.metrics.helpers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match="sacrebleu"):
        score(metric, ANSWERS, TARGETS, CLIPS)
