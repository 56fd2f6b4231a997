# SPDX-License-Identifier: Apache-2.0
"""Manifests of tasks: what is read, and what is refused."""

import json

import pytest

from speech_tokenizers.processing.task_manifests import TaskClip, read_manifest


ROWS = [
    {"file_name": "a.wav", "target": "yes", "split": "train", "speaker": "anna", "age": "7"},
    {"file_name": "b.wav", "target": "no", "split": "train", "speaker": "bert", "age": None},
    {"file_name": "c.wav", "target": "no", "split": "dev", "speaker": "cleo", "age": None},
    {"file_name": "d.wav", "target": "yes", "split": "test", "speaker": "dora", "age": None},
]


@pytest.fixture
def write(tmp_path):
    """Function: write a manifest with changes by row, and empty files; returns its path."""

    def write(changes=None, rows=ROWS, without=()):
        rows = [{**row, **(changes or {}).get(number, {})} for number, row in enumerate(rows)]
        for row in rows:
            if row["file_name"] != "missing.wav":
                (tmp_path / row["file_name"]).touch()
        lines = [json.dumps({name: value for name, value in row.items() if name not in without}) for row in rows]
        path = tmp_path / "manifest.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def test_clips_splits_labels_and_groups(write, tmp_path):
    manifest = read_manifest(write(), is_closed=True)
    assert manifest.clips[0] == TaskClip(
        "a.wav", str(tmp_path / "a.wav"), "yes", "train", {"speaker": "anna"}, {"speaker": "anna", "age": "7"}
    )
    assert manifest.clips[0].group == "anna"
    assert manifest.group_columns == ("speaker",)
    assert manifest.labels == ["no", "yes"]
    assert [clip.name for clip in manifest.of("train")] == ["a.wav", "b.wav"]
    assert [clip.name for clip in manifest.of("test")] == ["d.wav"]
    with pytest.raises(ValueError, match="must be one of train, dev, test"):
        manifest.of("eval")


def test_csv_and_another_folder(write, tmp_path):
    write()
    table = tmp_path / "elsewhere" / "manifest.csv"
    table.parent.mkdir()
    table.write_text("file_name,target,split,speaker,id\na.wav,1,train,x,first\nd.wav,2,test,y,last\n")
    manifest = read_manifest(table, folder=tmp_path)
    assert [(clip.name, clip.target) for clip in manifest.clips] == [("first", "1"), ("last", "2")]
    assert manifest.of("dev") == []


@pytest.mark.parametrize("column", ["target", "split"])
def test_a_missing_column(write, column):
    with pytest.raises(ValueError, match=rf"manifest\.jsonl: must have a column `{column}`; it has .*make-manifest"):
        read_manifest(write(without=[column]))


@pytest.mark.parametrize("target", ["", "  ", None])
def test_an_empty_target(write, target):
    with pytest.raises(ValueError, match=r"manifest\.jsonl, line 2: `target` is .*give the answer"):
        read_manifest(write({1: {"target": target}}))


def test_a_target_that_is_no_text(write):
    with pytest.raises(ValueError, match="line 2: `target` is an object, but must be a text"):
        read_manifest(write({1: {"target": {"size": "large"}}}))


def test_a_missing_file(write):
    with pytest.raises(ValueError, match=r"line 3: there is no file '.*missing\.wav' \(1 of 4 files are missing\)"):
        read_manifest(write({2: {"file_name": "missing.wav"}}))


def test_one_file_twice(write):
    with pytest.raises(ValueError, match=r"line 4: the file '.*a\.wav' stands in line 1 too"):
        read_manifest(write({3: {"file_name": "./a.wav"}}))


def test_one_id_twice(write):
    with pytest.raises(ValueError, match="line 3: the `id` 'x' stands in line 2 too"):
        read_manifest(write({0: {"id": "w"}, 1: {"id": "x"}, 2: {"id": "x"}}))


@pytest.mark.parametrize(
    ("split", "hint"),
    [("validation", r" \(dev was"), ("eval", r" \(dev or test was"), ("Train", ", but"), (None, ", but")],
)
def test_another_split(write, split, hint):
    with pytest.raises(ValueError, match=rf"line 3: `split` is {split!r}.*{hint}"):
        read_manifest(write({2: {"split": split}}))


@pytest.mark.parametrize(("split", "purpose"), [("train", "to learn from"), ("test", "to measure on")])
def test_nothing_to_train_on_or_to_test(write, split, purpose):
    rows = [row for row in ROWS if row["split"] != split]
    with pytest.raises(ValueError, match=rf"none of the \d rows has the split '{split}'.*nothing {purpose}"):
        read_manifest(write(rows=rows))


@pytest.mark.parametrize("column", ["speaker", "voice", "scene"])
def test_a_group_that_crosses(write, column):
    changes = {number: {column: value} for number, value in enumerate(["p", "q", "q", "p"])}
    expected = (
        rf"line 3: `{column}` 'q' stands in more than one split: train \(line 2\), dev \(line 3\); 2 of 2 values"
    )
    with pytest.raises(ValueError, match=expected):
        read_manifest(write(changes, without=[] if column == "speaker" else ["speaker"]))


def test_every_group_column_is_checked(write):
    with pytest.raises(ValueError, match="`scene` 's' stands in more than one split"):
        read_manifest(write({0: {"scene": "s"}, 1: {"scene": "t"}, 2: {"scene": "u"}, 3: {"scene": "s"}}))


def test_the_caller_chooses_what_must_not_cross(write):
    path = write({3: {"speaker": "anna"}, **{n: {"speaker": "anna", "scene": str(n)} for n in range(4)}})
    with pytest.raises(ValueError, match="`speaker` 'anna'"):
        read_manifest(path)
    manifest = read_manifest(path, group="scene")
    assert manifest.group_columns == ("scene",)
    assert [clip.group for clip in manifest.clips] == ["0", "1", "2", "3"]
    unchecked = read_manifest(path, group=())
    assert unchecked.group_columns == ()
    assert unchecked.clips[0].group == "a.wav"
    with pytest.raises(ValueError, match=r"must have a column `speakr`.*\('speaker' was probably meant\)"):
        read_manifest(path, group="speakr")


def test_no_group_column(write):
    with pytest.raises(ValueError, match="must have one of the columns `speaker`, `voice`, `scene`"):
        read_manifest(write(without=["speaker"]))
    with pytest.raises(ValueError, match="must have one of the columns `speaker`, `voice`, `scene`"):
        read_manifest(write({number: {"speaker": None} for number in range(4)}))


def test_a_group_that_is_not_given_everywhere(write):
    with pytest.raises(ValueError, match="line 2: `speaker` is None, so that nobody can tell"):
        read_manifest(write({1: {"speaker": None}}))


@pytest.mark.parametrize(("number", "split"), [(2, "dev"), (3, "test")])
def test_a_label_that_training_lacks(write, number, split):
    path = write({number: {"target": "perhaps"}})
    expected = rf"line {number + 1}: the label 'perhaps' of the split '{split}' does not occur in training.*no, yes"
    with pytest.raises(ValueError, match=expected):
        read_manifest(path, is_closed=True)
    assert len(read_manifest(path).clips) == 4  # a text to write may be new


def test_one_class(write):
    with pytest.raises(ValueError, match="`target` of all training rows is 'yes'.*nothing to tell apart"):
        read_manifest(write({number: {"target": "yes"} for number in range(4)}), is_closed=True)
