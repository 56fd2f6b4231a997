# SPDX-License-Identifier: Apache-2.0
"""Tasks that a recipe defines go with the model, and rows of other splits are never learnt by accident."""

import json

import datasets
import numpy as np
import pytest
import soundfile
import yaml

from helpers.tiny_speaking_lm import tiny_codec
from speech_tokenizers.cli import main
from speech_tokenizers.coding.speech_lm_loading import load_speech_lm
from speech_tokenizers.modeling.speech_lm_tasks import TASKS, Task
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.training.language_models.row_splits import check_apart, rows_of_split


INTENT = {"instruction": "Name the intent", "target": "intent", "is_closed": True}
SPLITS = ["train", "train", "train", "train", "test", "test"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with six recordings, a codec, and the rows of all of them in `rows`."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "recordings").mkdir()
    lines = []
    for number, split in enumerate(SPLITS):
        audio = 0.5 * np.sin(np.arange(480 + 160 * number) / (3 + number % 2 * 40))
        soundfile.write(folder / "recordings" / f"{number}.wav", audio, 1600)
        line = {"file_name": f"{number}.wav", "split": split, "speaker": f"s{number}"}
        line |= {"intent": ("stop", "go")[number % 2], "slots": ("size: large", "size: small")[number % 2]}
        lines.append(line)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "recordings" / "metadata.jsonl").write_text(text)
    codec = tiny_codec()
    codec.save_pretrained(folder / "codec")
    RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate).save_pretrained(folder / "codec")
    assert encode(folder, "rows") == 0
    return folder


def encode(folder, name, *options):
    command = ["encode-rows", folder / "recordings", "-o", folder / name, "--model", folder / "codec", *options]
    return main([*map(str, command), "--device", "cpu", "--quiet"])


@pytest.fixture
def train(corpus, tmp_path, capsys):
    """Function: train a tiny model with changes of its recipe; returns the exit code and what was told."""

    def call(name="run", **changes):
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
        contents = {
            "trainer": "speech_lm",
            "output_dir": str(tmp_path / name),
            "codec": str(corpus / "codec"),
            "data": {"train": str(corpus / "rows"), "train_split": "train"},
            "language_model": {"model_type": "llama", **sizes, "max_position_embeddings": 256},
            "tasks": {"intent": 1},
            "new_tasks": {"intent": INTENT},
            "batch_positions": 400,
            "max_steps": 1,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "logging_steps": 1,
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(contents))
        code = main(["train", str(path)])
        return code, capsys.readouterr().err

    return call


def test_a_task_of_a_recipe_is_known_wherever_its_model_is(train, corpus, tmp_path, capsys):
    """The commands know it from the checkpoint; this process does not."""
    assert train(max_steps=60)[0] == 0
    assert "intent" not in TASKS
    final = tmp_path / "run" / "final"
    model, processor = load_speech_lm(final)
    definition = {**INTENT, "source": "audio_codes", "metrics": ["accuracy", "macro_f1"]}
    assert model.config.new_tasks == processor.new_tasks == {"intent": definition}
    assert (model.config.tasks, model.config.task_labels) == (["intent"], {"intent": ["go", "stop"]})
    assert "Name the intent" in processor.task_prompt("intent")

    recordings = [str(corpus / "recordings" / f"{number}.wav") for number in range(4)]
    assert main(["ask", *recordings, "--task", "intent", "--model", str(final), "--device", "cpu"]) == 0
    answers = [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert answers == ["stop", "go", "stop", "go"]
    options = ["--rows", corpus / "rows", "--split", "test", "--task", "intent", "-o", tmp_path / "out"]
    assert main(["evaluate", "understanding", *map(str, [final, *options]), "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["instruction"], results["labels"]) == ("Name the intent", ["go", "stop"])
    assert set(results["scores"]) == {"accuracy", "macro_f1", "target_bits"}
    assert main(["ask", *recordings, "--task", "mood", "--model", str(final)]) == 2
    assert "choose one of intent" in capsys.readouterr().err


def test_a_task_that_was_registered_goes_with_the_model_too(train, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "aim", Task("aim", "Name the aim", "audio_codes", "intent"))
    assert train(tasks={"aim": 1}, new_tasks={})[0] == 0
    monkeypatch.delitem(TASKS, "aim")
    _, processor = load_speech_lm(tmp_path / "run" / "final")
    assert processor.find_task("aim").instruction == "Name the aim"


def test_a_model_that_learns_on_keeps_its_tasks(train, tmp_path):
    assert train("first")[0] == 0
    told = {"language_model": str(tmp_path / "first" / "final"), "tasks": {"aim": 1}}
    aim = {"instruction": "Name the aim", "target": "slots"}
    assert train("second", **told, new_tasks={"aim": aim})[0] == 0
    model, processor = load_speech_lm(tmp_path / "second" / "final")
    assert set(model.config.new_tasks) == set(processor.new_tasks) == {"intent", "aim"}
    assert model.config.tasks == ["intent", "aim"]
    told["tasks"] = {"intent": 1}
    code, errors = train("third", **told, new_tasks={"intent": {**INTENT, "instruction": "What is wanted"}})
    assert code == 2
    assert "The language model has a task 'intent' already" in errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_tasks": {}}, "There is no task 'intent'; choose one of tts, asr"),
        ({"new_tasks": {"intent": {"instruction": "Name"}}}, "lacks `new_tasks.intent.target`"),
        ({"new_tasks": {"intent": {**INTENT, "colour": 1}}}, "`new_tasks.intent.colour` is unknown"),
        ({"new_tasks": {"intent": {**INTENT, "metrics": ["accurate"]}}}, "did you mean `accuracy`?"),
        ({"new_tasks": {"intent": {**INTENT, "instruction": " "}}}, "`instruction` of a task must be a text"),
        (
            {"new_tasks": {"asr": {"instruction": "Write", "target": "text"}}, "tasks": {"asr": 1}},
            "The definition of the task 'asr' has instruction='Write', but the task of this name that is known here"
            " has 'Transcribe'",
        ),
        ({"closed_tasks": ["slots"]}, "`closed_tasks` `slots` is unknown"),
        ({"closed_tasks": ["tts"], "tasks": {"tts": 1}}, "`closed_tasks` has 'tts', which answers by speech"),
    ],
)
def test_what_cannot_be_defined_is_told(train, tmp_path, changes, message):
    code, errors = train(**changes)
    assert code == 2
    assert message in errors
    assert not (tmp_path / "run").exists()


def test_labels_of_a_task_that_is_closed_here_alone_are_remembered(train, tmp_path):
    assert train("open", tasks={"slots": 1})[0] == 0
    assert load_speech_lm(tmp_path / "open" / "final")[0].config.task_labels == {}
    assert train("closed", tasks={"slots": 1}, closed_tasks=["slots"])[0] == 0
    config = load_speech_lm(tmp_path / "closed" / "final")[0].config
    assert config.task_labels == {"slots": ["size: large", "size: small"]}
    assert config.new_tasks == {}


def test_rows_that_were_set_apart_are_not_learnt(train, corpus, tmp_path):
    rows = str(corpus / "rows")
    code, errors = train(data={"train": rows})
    assert code == 2
    assert "`data.train`: the rows are of the splits test, train; choose by `data.train_split=train`" in errors
    code, errors = train(data={"train": rows, "train_split": "train", "eval": rows})
    assert code == 2
    assert "`data.eval`: the rows are of the splits test, train; choose by `data.eval_split=test`" in errors
    code, errors = train(data={"train": rows, "train_split": "dev"})
    assert code == 2
    assert "`data.train_split` is 'dev', but there is no such row; `data.train`: the rows are of the splits" in errors
    code, errors = train(data={"train": rows, "train_split": "train", "eval": rows + "/.", "eval_split": "train"})
    assert code == 2
    assert "`data.train` and `data.eval` are one folder, of which both have train; give each other rows" in errors
    code, errors = train(data={"train": rows, "train_split": []})
    assert code == 2
    assert "`data.train_split` names no split; `data.train`: the rows are of the splits test, train." in errors
    assert "needs `data.eval`" in train(data={"train": rows, "eval_split": "test"})[1]
    assert not (tmp_path / "run").exists()
    assert train(data={"train": rows, "train_split": "train", "eval": rows, "eval_split": ["test"]})[0] == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["training_rows"], results["held_out_rows"]) == (4, 2)


def test_rows_of_one_split_are_learnt_unless_they_are_held_out_ones(train, corpus, tmp_path):
    for split in ("train", "test"):
        assert encode(corpus, f"rows-{split}", "--split", split) == 0
    assert train("one", data={"train": str(corpus / "rows-train")})[0] == 0
    code, errors = train("two", data={"train": str(corpus / "rows-test")})
    assert code == 2
    assert "`data.train`: the rows are of the split test, which is not named as one to learn from" in errors
    assert train("two", data={"train": str(corpus / "rows-test"), "train_split": "test"})[0] == 0
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [found["training_rows"] for found in results] == [4, 2]


@pytest.mark.parametrize(
    ("values", "chosen", "expected"),
    [
        ([None, "train", ""], None, [0, 1, 2]),
        (["a", "b", None], ["a", "b"], [0, 1]),
        (["Training", "Training"], None, [0, 1]),
        (["clean", "clean"], "clean", [0, 1]),
        (["x", " dev "], "dev", [1]),
    ],
)
def test_splits_are_chosen_by_their_names(values, chosen, expected):
    rows = datasets.Dataset.from_dict({"split": values, "place": range(len(values))})
    assert rows_of_split(rows, "data.train", chosen)["place"] == expected
    without = rows.remove_columns("split")
    assert rows_of_split(without, "data.train", None) is without


@pytest.mark.parametrize("name", ["test", "Validation", "dev", "eval", "test-clean", "held_out", "heldout", "clean"])
def test_only_splits_for_training_are_learnt_unasked(name):
    rows = datasets.Dataset.from_dict({"split": [name]})
    with pytest.raises(ValueError, match=f"of the split {name}, which is not named .*`data.train_split={name}`"):
        rows_of_split(rows, "data.train", None)
    assert len(rows_of_split(rows, "data.train", name)) == 1
    assert rows_of_split(rows, "data.eval", None) is rows


def test_rows_for_training_are_not_measured_on_unasked():
    rows = datasets.Dataset.from_dict({"split": ["train"]})
    with pytest.raises(ValueError, match="of the split train, which is for learning; .*`data.eval_split=train`"):
        rows_of_split(rows, "data.eval", None)
    assert len(rows_of_split(rows, "data.eval", "train")) == 1


@pytest.mark.parametrize(
    ("known", "train", "held_out"),
    [
        (["heldout", "train"], "train", "heldout"),
        (["dev", "test", "training"], "training", "dev"),
        (["test-clean", "train-clean-100"], "train-clean-100", "test-clean"),
    ],
)
def test_the_hint_names_a_split_for_training(known, train, held_out):
    rows = datasets.Dataset.from_dict({"split": known})
    for setting, expected in (("data.train", train), ("data.eval", held_out)):
        with pytest.raises(ValueError, match=f"choose by `{setting}_split={expected}`"):
            rows_of_split(rows, setting, None)


def test_rows_without_splits_are_not_learnt_and_measured_on(tmp_path):
    rows = datasets.Dataset.from_dict({"id": ["a"]})
    with pytest.raises(ValueError, match="are one folder, of which both have rows without a split"):
        check_apart(str(tmp_path), rows, str(tmp_path / "."), rows)
    check_apart(str(tmp_path / "one"), rows, str(tmp_path / "two"), rows)
