# SPDX-License-Identifier: Apache-2.0
"""Arms of an ablation against their baseline, on tiny codecs and synthetic recordings."""

import collections
import dataclasses
import json

import numpy as np
import pytest
import soundfile

from speech_tokenizers.evaluation.bootstrap import ratio
from speech_tokenizers.evaluation.clip_results import ClipCounts
from speech_tokenizers.evaluation.clips import read_clips
from speech_tokenizers.evaluation.reconstruction import arms as arm_comparison
from speech_tokenizers.evaluation.reconstruction.arm_report import (
    build_report,
    cost_rows,
    difference_rows,
    score_rows,
    verdicts,
)
from speech_tokenizers.evaluation.reconstruction.arms import (
    TrainedArm,
    compare_arms,
    compare_scores,
    pool,
    read_frame_labels,
)
from speech_tokenizers.evaluation.reconstruction.comparison import CodecComparison, build_metrics


def mean_of(**scores: float) -> ClipCounts:
    return ClipCounts(ratio, {clip: (score, 1.0) for clip, score in scores.items()})


def test_seeds_are_added_up_clip_by_clip():
    one, other = mean_of(a=1.0, b=2.0, c=9.0), mean_of(a=3.0, b=5.0)
    other.failures = collections.Counter({"too long": 1})
    pooled = pool([one, other])
    assert pooled.counts == {"a": [4.0, 2.0], "b": [7.0, 2.0]}
    assert pooled.failures == {"too long": 1}
    assert pooled.estimate().value == pytest.approx((1 + 2 + 3 + 5) / 4)


def test_arms_are_compared_on_the_clips_that_both_have():
    arms = {"none": [{"score": mean_of(a=1.0, b=2.0, c=7.0)}], "more": [{"score": mean_of(a=2.0, b=3.0, d=50.0)}]}
    compared = compare_scores(arms, "none")
    difference = compared["more"]["score"]["difference"]
    assert difference == {"value": 1.0, "low": 1.0, "high": 1.0, "num_clips": 2}
    assert compared["more"]["score"]["estimate"]["value"] == pytest.approx(55 / 3)
    assert compared["none"]["score"]["difference"] is None
    assert compared["more"]["score"]["seeds"] == [pytest.approx(55 / 3)]


def test_a_score_that_one_arm_lacks_has_no_difference():
    compared = compare_scores({"none": [{}], "more": [{"score": mean_of(a=1.0)}]}, "none")
    assert compared["more"]["score"]["difference"] is None
    assert compared["more"]["score"]["estimate"]["value"] == 1.0


@pytest.fixture
def data(tmp_path):
    """Six recordings of as many speakers: low in their first half, high in their second."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows, labels = [], []
    time = np.arange(8000) / 16000
    for number in range(6):
        audio = np.concatenate([0.2 * np.sin(2 * np.pi * (hertz + 20 * number) * time) for hertz in (200, 1500)])
        soundfile.write(folder / f"{number}.wav", audio, 16000)
        part = "eval" if number > 3 else "train"
        rows.append({"file_name": f"{number}.wav", "speaker": f"speaker {number}", "split": part})
        spans = [{"label": "low", "start": 0.0, "end": 0.5}, {"label": "high", "start": 0.5, "end": 1.0}]
        labels.append({"file_name": f"{number}.wav", "labels": spans})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    return folder


def test_who_is_held_out(data, tmp_path):
    by_hash = read_frame_labels(tmp_path / "labels.jsonl", data)
    assert len(by_hash.held_out) == 2
    assert by_hash.description == "a quarter of the speakers (2)"
    by_column = read_frame_labels(tmp_path / "labels.jsonl", data, "split=eval")
    assert by_column.held_out == {"4.wav", "5.wav"}
    assert by_column.key != by_hash.key


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("split=test", "holds out 0 of 6"),
        ("part=eval", "no `part` for 6 labelled recordings"),
        ("half=a", "leaves 1 speakers on both sides, e.g. speaker 0"),
    ],
)
def test_a_split_that_proves_nothing_is_refused(data, tmp_path, held_out, message):
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"half": "ab"[number % 2], "speaker": "speaker 0" if number < 2 else row["speaker"]}
        if held_out.startswith("split"):
            row["speaker"] = f"speaker {number}"
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=message):
        read_frame_labels(tmp_path / "labels.jsonl", data, held_out)


def test_recordings_without_speakers_are_refused(data, tmp_path):
    (data / "metadata.jsonl").write_text(json.dumps({"file_name": "0.wav", "speaker": "a"}))
    with pytest.raises(ValueError, match="no `speaker` for 5 labelled recordings"):
        read_frame_labels(tmp_path / "labels.jsonl", data)
    (data / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"{number}.wav", "speaker": number}) for number in range(6))
    )
    (data / "3.wav").unlink()
    with pytest.raises(ValueError, match="lacks 1 labelled recordings, such as 3.wav"):
        read_frame_labels(tmp_path / "labels.jsonl", data)
    (data / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="metadata.jsonl is missing"):
        read_frame_labels(tmp_path / "labels.jsonl", data)


@pytest.fixture
def compare(data, tmp_path, make_rvq_codec):
    """Compare a baseline, its copy, and a codec with other weights; or two seeds of each, without frame probe."""
    arms = []
    for name, seed in (("none", 0), ("same", 0), ("other", 1)):
        for part in make_rvq_codec(seed):
            part.save_pretrained(tmp_path / name)
        arms.append(TrainedArm(name, 0, tmp_path / name, {"steps": 5.0, "seconds_per_step": 0.5 + 0.05 * seed}))

    def run(several_seeds: bool = False) -> dict:
        metrics = build_metrics(["mel_distance"] if several_seeds else ["stoi", "mel_distance"])[0]
        clips = read_clips(data, None, None, None)
        comparison = CodecComparison(clips, metrics, [], tmp_path / "out", num_examples=1)
        (tmp_path / "out").mkdir(exist_ok=True)
        trained = arms + [dataclasses.replace(arm, seed=1) for arm in arms] if several_seeds else arms
        labels = None if several_seeds else read_frame_labels(tmp_path / "labels.jsonl", data, "split=eval")
        return compare_arms(trained, comparison, "none", [None, 1], labels, [(1, 1), (1, 4)])

    return run


def test_equal_codecs_do_not_differ_and_others_do(compare, tmp_path, read_page):
    report = compare()
    assert list(report["decoded"]) == ["all codebooks", "the first codebook alone"]
    assert list(report["probe"]["stages"]) == ["codebook 1", "codebooks 1 to 4"]
    for scores in (*report["decoded"].values(), *report["probe"]["stages"].values()):
        for score in scores["same"].values():
            assert (score["difference"]["value"], score["difference"]["high"]) == (0.0, 0.0)
    mel = {arm: scores["mel_distance"] for arm, scores in report["decoded"]["all codebooks"].items()}
    difference = mel["other"]["estimate"]["value"] - mel["none"]["estimate"]["value"]
    assert mel["other"]["difference"]["value"] == pytest.approx(difference)
    assert len(report["arms"]["other"]["perplexities"]) == 4
    assert (report["probe"]["num_train"], report["probe"]["num_test"]) == (200, 100)

    rows = difference_rows(report, report["decoded"]["all codebooks"])
    assert rows[0] == ["minus none", "STOI", "Mel distance (nepers)"]
    assert [row[0] for row in rows[1:]] == ["same", "other"]
    assert rows[1][2] == "+0.00 [+0.00, +0.00]"
    assert cost_rows(report)[3] == ["other", "5", "0.550 (1.10x)"]
    assert not any("shuffled" in cell for cell in difference_rows(report, report["probe"]["stages"]["codebook 1"])[0])
    same = [line for line in verdicts(report) if line.startswith("same")]
    assert len(same) == 4
    assert all("better" not in line and "worse" not in line for line in same)

    paths = build_report(report).write(tmp_path / "out", "ablation")
    assert json.loads(paths[0].read_text())["baseline"] == "none"
    assert "### Frame probe of codebook 1" in paths[1].read_text()
    page = read_page(paths[2].read_text())
    assert page.tags.count("audio") == len(page.references) == 1 + 3 * 2
    assert all((tmp_path / "out" / path).is_file() for path in page.references)
    assert "Differences from none, with intervals. Decoded from all codebooks." in page.alts


def test_what_is_known_is_not_measured_again(compare, monkeypatch):
    first = compare()
    monkeypatch.setattr(arm_comparison, "probe_system", None)
    monkeypatch.setattr("speech_tokenizers.evaluation.reconstruction.comparison.measure_clip", None)
    assert compare() == first


def test_the_values_of_several_seeds_are_shown(compare):
    report = compare(several_seeds=True)
    assert report["arms"]["none"]["seeds"] == [0, 1]
    score = report["decoded"]["all codebooks"]["none"]["mel_distance"]
    assert score["seeds"] == [score["estimate"]["value"]] * 2
    row = score_rows(report, report["decoded"]["all codebooks"])[1]
    value = f"{score['estimate']['value']:.2f}"
    assert row[1].startswith(value)
    assert row[1].endswith(f"({value}, {value})")
