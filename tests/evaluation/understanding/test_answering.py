# SPDX-License-Identifier: Apache-2.0
"""Answers about rows: what they are, what controls hear, and that a killed run goes on as if it had not been."""

import copy
import json
import math

import numpy as np
import pyarrow
import pytest
import torch

from helpers.tiny_listening_lm import listening_lm, save_with_codec
from helpers.tiny_speaking_lm import tiny_codec, tiny_row, tiny_speech_lm
from speech_tokenizers.cli import main
from speech_tokenizers.evaluation.understanding.answer_report import read_asked_rows, summarize
from speech_tokenizers.evaluation.understanding.answering import (
    AnswersFile,
    answer_rows,
    as_written,
    constant_row,
    question_of,
    target_bits,
)
from speech_tokenizers.evaluation.understanding.probes import derangement
from speech_tokenizers.modeling.speech_lm_tasks import TASKS, Task
from speech_tokenizers.processing.speech_row_format import RowsFacts
from speech_tokenizers.processing.speech_rows import SpeechRowsWriter


LABELS = ["calm", "angry"]
NUM_ROWS = 10


def row_of(number):
    """Calm clips say code 1 or 2, angry ones 9 or 10; speakers have two clips each."""
    is_angry = number % 3 == 0
    row = tiny_row("hi", number, num_frames=3 + number % 4)
    codes = [(9 if is_angry else 1) + code % 2 for code in row["audio_codes"]]
    labels = {"emotion": LABELS[is_angry], "slots": f"mood: {LABELS[is_angry]}", "part": "test"}
    return {**row, "audio_codes": codes, "speaker": f"speaker-{number // 2}", **labels}


ROWS = [row_of(number) for number in range(NUM_ROWS)]


def write_rows(folder, rows=ROWS, columns=("emotion", "slots", "part")):
    own = ("codec", "codec_fingerprint", "encoder_fingerprint", "num_quantizers", "num_frames")
    plain = [{name: value for name, value in row.items() if name not in own} for row in rows]
    for row in plain:
        row["audio_codes"] = np.array(row["audio_codes"]).reshape(2, -1)
    others = [pyarrow.field(name, pyarrow.string()) for name in columns]
    with SpeechRowsWriter(folder, RowsFacts.of_codec(tiny_codec(), "tiny-codec"), others=others) as writer:
        writer.write(0, plain, [row["id"] for row in rows])
        writer.finish(1)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def learnt():
    """A model that tells both emotions of all rows apart."""
    pairs = [(task, row) for row in ROWS for task in ("emotion", "slots")]
    return listening_lm(pairs, tasks=["emotion", "slots"], task_labels={"emotion": LABELS})


@pytest.fixture(scope="module")
def checkpoint(learnt, tmp_path_factory):
    return save_with_codec(*learnt, tmp_path_factory.mktemp("model"))


def evaluate(checkpoint, rows, output, *options):
    arguments = ["--rows", rows, "-o", output, "--device", "cpu", *options]
    return main(["evaluate", "understanding", *map(str, [checkpoint, *arguments])])


def read(folder):
    results = json.loads((folder / "results.json").read_text())
    settings, *records = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    assert settings == {"settings": results["settings"]}
    return results, records


# --- What is asked ---


def test_a_question_takes_labels_from_the_model_or_the_caller(learnt):
    config = learnt[0].config
    assert question_of(config, "emotion").labels == tuple(LABELS)
    assert question_of(config, "emotion", ["sad", "calm"]).labels == ("sad", "calm")
    free = question_of(config, "slots", max_new_tokens=5, num_beams=2)
    assert (free.labels, free.max_new_tokens, free.num_beams) == (None, 5, 2)
    mine = Task("accent", "Name the accent", "audio_codes", "accent", is_closed=True)
    with pytest.raises(ValueError, match="never learnt the task 'accent'; it knows emotion, slots"):
        question_of(config, mine, ["scots"])
    unknown = tiny_speech_lm()[0].config  # which does not say what it learnt
    assert question_of(unknown, mine, ["scots"]).labels == ("scots",)
    with pytest.raises(ValueError, match="one of a set of labels, which the model does not say"):
        question_of(unknown, mine)
    with pytest.raises(ValueError, match="must be different and not empty"):
        question_of(unknown, mine, ["scots", " "])
    with pytest.raises(ValueError, match="The task 'continuation' is not about a recording"):
        question_of(unknown, TASKS["continuation"])


def test_a_task_that_got_another_meaning_does_not_hinder_the_others(learnt, monkeypatch):
    config = copy.deepcopy(learnt[0].config)
    config.new_tasks = {"accent": {"instruction": "Name the accent", "target": "accent"}}
    monkeypatch.setitem(TASKS, "accent", Task("accent", "Name the land", "audio_codes", "accent"))
    assert question_of(config, "emotion").task == TASKS["emotion"]
    with pytest.raises(ValueError, match="The definition of the task 'accent' has instruction='Name the accent', but"):
        question_of(config, "accent")


@pytest.mark.parametrize("num_items", [2, 3, 10])
def test_nothing_stays_in_its_place(num_items):
    for seed in range(20):
        order = derangement(num_items, seed)
        assert sorted(order) == list(range(num_items))
        assert all(place != found for place, found in enumerate(order))
        assert order == derangement(num_items, seed)
    assert len({tuple(derangement(10, seed)) for seed in range(20)}) > 10
    with pytest.raises(ValueError, match="no other one"):
        derangement(1)


@pytest.mark.parametrize("layout", ["flat", "delay", "continuous"])
def test_bits_are_those_of_scores_and_a_constant_row_is_read(layout):
    model, processor = tiny_speech_lm(layout=layout)
    asked = [*ROWS[:3], {**constant_row(processor), "emotion": "calm"}]
    found = target_bits(model, processor, TASKS["emotion"], asked)
    for row, (bits, length) in zip(asked, found, strict=True):
        scores = model.score_answers(processor.task_inputs("emotion", row), [row["emotion"]], processor)
        assert bits == pytest.approx(-float(scores) / math.log(2), rel=1e-4)
        assert length == len(row["emotion"]) + 1  # letters, and the end
    inputs = processor.task_inputs("emotion", constant_row(processor))
    frames = {"flat": "input_ids", "delay": "audio_codes", "continuous": "audio_latents"}[layout]
    same = processor.task_inputs(
        "emotion",
        **(
            {"audio_latents": torch.zeros(1, processor.latent_dim)}
            if layout == "continuous"
            else {"audio_codes": [[0], [0]]}
        ),
    )
    assert torch.equal(inputs[frames], same[frames])


# --- Answers of rows ---


def answers(learnt, tmp_path, audio="own", task="emotion", batch_size=3):
    model, processor = learnt
    question = question_of(model.config, task)
    targets = [row[task] for row in ROWS]
    with AnswersFile(tmp_path / f"{task}-{audio}.jsonl", {"audio": audio}, batch_size, NUM_ROWS) as file:
        counted = list(answer_rows(model, processor, question, ROWS, targets, file, batch_size, audio, seed=1))
    assert sum(counted) == NUM_ROWS
    return file.records


def test_what_was_learnt_is_right_and_controls_are_not(learnt, tmp_path):
    own = answers(learnt, tmp_path)
    assert [record["answer"] for record in own] == [row["emotion"] for row in ROWS]
    assert [record["id"] for record in own] == [row["id"] for row in ROWS]
    assert all(sum(record["probabilities"].values()) == pytest.approx(1) for record in own)
    free = answers(learnt, tmp_path, task="slots")
    assert [record["answer"] for record in free] == [row["slots"] for row in ROWS]
    assert all(record["ended"] for record in free)
    other = answers(learnt, tmp_path, "other")
    assert [record["answer"] for record in other] == [ROWS[place]["emotion"] for place in derangement(NUM_ROWS, 1)]
    assert [record["target"] for record in other] == [row["emotion"] for row in ROWS]
    none = answers(learnt, tmp_path, "none")
    assert len({record["answer"] for record in none}) == 1
    bits = {name: np.mean([record["bits"] for record in found]) for name, found in (("own", own), ("other", other))}
    assert bits["own"] < 1 < bits["other"]


def test_a_killed_run_goes_on_with_the_same_numbers(learnt, tmp_path):
    whole = answers(learnt, tmp_path)
    path = tmp_path / "emotion-own.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for kept in (b"", b"".join(lines[:1]), b"".join(lines[:5]), b"".join(lines[:7]) + lines[7][:20], content):
        path.write_bytes(kept)
        assert answers(learnt, tmp_path) == whole
        assert path.read_bytes() == content


def test_a_file_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, {"seed": 1, "task": "a"}, 2, 4) as file:
        file.append([{"answer": "x"}, {"answer": "y"}])
    with AnswersFile(path, {"seed": 1, "task": "a"}, 2, 4) as file:
        assert file.records == [{"answer": "x"}, {"answer": "y"}]
    with pytest.raises(ValueError, match=r"answers of another run, which differs in seed, task; choose another"):
        AnswersFile(path, {"seed": 2}, 2, 4)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="holds no answers"):
        AnswersFile(path, {"seed": 2}, 2, 4)


def test_a_true_answer_is_compared_in_the_letters_of_the_model(learnt):
    _, processor = learnt
    assert as_written(processor, "IH T S") == "ih t s"
    assert as_written(processor, "coffeeDrink: latte") == "coffeedrink: latte"
    assert as_written(processor, "caf\N{LATIN SMALL LETTER E WITH ACUTE}") == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"


def test_scores_are_over_speakers():
    records = [
        {"answer": "calm", "target": "calm", "bits": 2.0, "num_tokens": 4},
        {"answer": "calm", "target": "angry", "bits": 7.0, "num_tokens": 5},
        {"answer": "calm", "target": "calm", "bits": 3.0, "num_tokens": 4},
    ]
    found = summarize(records, ["x", "x", "y"], ["accuracy"])
    assert found["accuracy"]["value"] == pytest.approx(200 / 3)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (50, 100)  # two speakers
    assert found["target_bits"]["value"] == pytest.approx(12 / 13)
    assert (found["target_bits"]["low"], found["target_bits"]["high"]) == (3 / 4, 1)
    assert found["target_bits"]["num_clips"] == 3


# --- The command ---


def test_the_command_measures_and_goes_on(checkpoint, rows, tmp_path, capsys):
    output = tmp_path / "out"
    assert evaluate(checkpoint, rows, output, "--task", "emotion", "--batch-size", "4") == 0
    results, records = read(output)
    assert {name: score["value"] for name, score in results["scores"].items() if name != "target_bits"} == {
        "accuracy": 100,
        "macro_f1": 100,
    }
    assert (results["num_clips"], results["num_groups"], results["group_column"]) == (NUM_ROWS, 5, "speaker")
    assert len(records) == NUM_ROWS
    told = capsys.readouterr().out
    assert "| Accuracy % (higher is better) | 100.00 [100.00, 100.00] |" in told
    assert "| angry | 4 | 4 |" in told
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(before) == {"answers.jsonl", "results.json", "results.md", "results.html"}
    lines = before["answers.jsonl"].splitlines(keepends=True)
    (output / "answers.jsonl").write_bytes(b"".join(lines[:6]))
    assert evaluate(checkpoint, rows, output, "--task", "emotion", "--batch-size", "4") == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert evaluate(checkpoint, rows, output, "--task", "emotion", "--batch-size", "5") == 2
    assert "another run, which differs in batch_size" in capsys.readouterr().err


def test_the_command_has_controls_and_free_answers(checkpoint, rows, tmp_path):
    for name, options in (
        ("none", ["--task", "emotion", "--audio", "none"]),
        ("free", ["--task", "slots", "--split", "test", "--split-column", "part", "--limit", "6"]),
        ("set", ["--task", "slots", "--answers", "mood: calm", "mood: angry"]),
        ("column", ["--task", "slots", "--answers", *LABELS, "--target-column", "emotion"]),
    ):
        assert evaluate(checkpoint, rows, tmp_path / name, *options) == 0
    results = {name: read(tmp_path / name)[0] for name in ("none", "free", "set", "column")}
    assert results["none"]["scores"]["accuracy"]["value"] in (40, 60)  # the same label for all
    assert results["free"]["scores"]["slots_right"]["value"] == 100
    assert (results["free"]["num_clips"], results["free"]["num_cut"]) == (6, 0)
    assert results["set"]["scores"]["accuracy"]["value"] == 100
    assert set(results["column"]["scores"]) == {"accuracy", "macro_f1", "target_bits"}
    assert "Control: nothing was heard" in (tmp_path / "none" / "results.md").read_text()


def test_codes_are_heard_as_latents_where_the_model_reads_these(rows, tmp_path):
    pairs = [("emotion", row) for row in ROWS]
    model = save_with_codec(*listening_lm(pairs, "continuous", head="mse"), tmp_path / "model")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    options = ("--task", "emotion", "--answers", f"@{tmp_path / 'labels.txt'}")
    assert evaluate(model, rows, tmp_path / "own", *options) == 0
    assert read(tmp_path / "own")[0]["scores"]["accuracy"]["value"] == 100
    assert evaluate(model, rows, tmp_path / "none", *options, "--audio", "none") == 0
    assert read(tmp_path / "none")[0]["scores"]["accuracy"]["value"] in (40, 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "keyword"], "never learnt the task 'keyword'"),
        (["--task", "emotion", "--answers", "calm", "sad"], "not among those to choose from, first 'angry'"),
        (["--task", "emotion", "--metrics", "f7"], "there is no metric 'f7'"),
        (["--task", "emotion", "--metrics", "slot_f1"], "slots are written `name: value"),
        (["--task", "emotion", "--target-column", "mood"], "has no column `mood`; it has id"),
        (["--task", "emotion", "--split", "test"], "has no column `split`"),
        (["--task", "emotion", "--split", "dev", "--split-column", "part"], "no row of the split 'dev'; it has test"),
        (["--task", "emotion", "--limit", "1"], "has 1 row to ask about, but an interval needs at least 2"),
        (["--task", "emotion", "--group", "language"], "All rows have the same `language`"),
        (["--task", "emotion", "--beams", "2"], "--max-new-tokens and --beams are for free answers"),
    ],
)
def test_what_cannot_be_measured_is_told(checkpoint, rows, tmp_path, capsys, options, message):
    assert evaluate(checkpoint, rows, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_asked_about_are_told(tmp_path):
    fingerprint = ROWS[0]["codec_fingerprint"]

    def without_answer(folder, places, instead):
        changed = [
            {**row, "emotion": instead if place in places else row["emotion"]} for place, row in enumerate(ROWS)
        ]
        write_rows(folder, changed)
        return read_asked_rows(folder, fingerprint, "emotion")

    with pytest.raises(ValueError, match="1 rows have an empty `emotion`, first 'row-4'"):
        without_answer(tmp_path / "empty", [4], " ")
    kept = without_answer(tmp_path / "others", [1, 4], None)
    assert kept.num_left_out == 2
    assert kept.table["id"][:] == [row["id"] for place, row in enumerate(ROWS) if place not in (1, 4)]
    assert len(kept.targets) == len(kept.groups) == len(ROWS) - 2
    with pytest.raises(ValueError, match="has 0 row to ask about, and 10 without `emotion`"):
        without_answer(tmp_path / "all", range(len(ROWS)), None)
    changed = [{**row, "part": "test" if place else "train"} for place, row in enumerate(ROWS)]
    write_rows(tmp_path / "splits", changed)
    with pytest.raises(ValueError, match="rows of the splits test, train; choose the held-out one by --split"):
        read_asked_rows(tmp_path / "splits", fingerprint, "emotion", split_column="part")
    assert len(read_asked_rows(tmp_path / "splits", fingerprint, "emotion", "test", "part").targets) == 9
    write_rows(tmp_path / "speakers", [{**row, "speaker": "one"} for row in ROWS])
    found = read_asked_rows(tmp_path / "speakers", fingerprint, "emotion")
    assert (found.group_column, found.groups) == (None, [row["id"] for row in ROWS])
    with pytest.raises(ValueError, match="would read as noise"):
        read_asked_rows(tmp_path / "speakers", "other", "emotion")
