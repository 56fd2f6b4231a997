# SPDX-License-Identifier: Apache-2.0
"""Folders, Parquet and saved datasets: every recording keeps its text, its name and its own failure."""

import io
import json
import os

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from speech_tokenizers.processing import recording_tables
from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint
from speech_tokenizers.processing.recordings import decode_all, decode_recording, load_recordings


SAMPLES = (0.1 * np.sin(np.arange(1600))).tolist()


def wav_bytes(num_samples=1600, **kwargs):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.resize(SAMPLES, num_samples), 16000, format="WAV", **kwargs)
    return buffer.getvalue()


@pytest.fixture
def parquet(tmp_path):
    """A function: write columns as a Parquet file, and return the path."""

    def write(name, **columns):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path

    return write


def decoded(path, tmp_path):
    result = decode_all(load_recordings(str(path)), 16000, tmp_path / "cache", show_progress=False)
    lengths = dict(zip(result.names, map(len, result), strict=True))
    return lengths, {entry["name"]: entry["reason"] for entry in result.rejected}


def test_samples_with_their_rate_are_read(parquet, tmp_path):
    audio = [{"array": SAMPLES, "sampling_rate": 16000}, {"array": SAMPLES, "sampling_rate": 8000}]
    assert decoded(parquet("x.parquet", audio=audio), tmp_path) == ({"row 0": 1600, "row 1": 3200}, {})
    np.testing.assert_allclose(
        decode_recording(load_recordings(str(tmp_path / "x.parquet"))[0], 16000), SAMPLES, atol=1e-6
    )


def test_lists_of_samples_are_read_beside_a_column_of_rates(parquet, tmp_path):
    path = parquet("x.parquet", audio=[SAMPLES, SAMPLES[:800]], sampling_rate=[16000, 16000])
    assert decoded(path, tmp_path) == ({"row 0": 1600, "row 1": 800}, {})


def test_lists_of_samples_without_a_rate_are_refused(parquet, tmp_path):
    with pytest.raises(ValueError, match="row 0: the sampling rate of its samples is None"):
        decoded(parquet("x.parquet", audio=[SAMPLES]), tmp_path)


def test_one_row_without_usable_samples_costs_that_row_alone(parquet, tmp_path):
    audio = [
        {"array": SAMPLES, "sampling_rate": 16000, "path": "good"},
        {"array": [], "sampling_rate": 16000, "path": "empty"},
        {"array": [float("nan")] * 9, "sampling_rate": 16000, "path": "nan"},
        {"array": SAMPLES, "sampling_rate": 0, "path": "rate"},
        {"array": None, "sampling_rate": None, "path": None},
        None,
    ]
    lengths, rejected = decoded(parquet("x.parquet", audio=audio), tmp_path)
    assert lengths == {"good": 1600}
    assert list(rejected) == ["empty", "nan", "rate", "row 4", "row 5"]
    reasons = ["is empty", "NaN", "sampling rate of its samples is 0", "no audio", "no audio"]
    assert all(reason in rejected[name] for name, reason in zip(rejected, reasons, strict=True))


@pytest.mark.parametrize("as_struct", [True, False])
def test_a_url_costs_its_row_alone_and_is_called_one(parquet, tmp_path, as_struct):
    soundfile.write(tmp_path / "good.wav", SAMPLES, 16000)
    paths = ["good.wav", "https://example.org/a.wav", "s3://bucket/b.wav"]
    audio = [{"path": path, "bytes": None} for path in paths] if as_struct else paths
    lengths, rejected = decoded(parquet("x.parquet", audio=audio), tmp_path)
    assert list(lengths) == ["good.wav"]
    assert list(rejected) == paths[1:]
    assert all("is a URL, which is not read; download the recording" in reason for reason in rejected.values())


@pytest.mark.parametrize("samples", [[1, 2, 3], [[0.5], [0.5]]], ids=["integers", "two dimensions"])
def test_samples_of_another_kind_are_refused(samples):
    with pytest.raises(ValueError, match="`samples` must"):
        decode_recording({"audio": samples, "sampling_rate": 16000}, 16000)


def test_what_is_refused_as_a_file_is_refused_as_bytes(tmp_path):
    whole = wav_bytes()
    contents = [whole[:900], b"", b"noise" * 50, wav_bytes(0)]
    nan = io.BytesIO()
    soundfile.write(nan, np.full(100, np.nan, np.float32), 16000, format="WAV", subtype="FLOAT")
    for content in [*contents, nan.getvalue()]:
        path = tmp_path / "a.wav"
        path.write_bytes(content)
        with pytest.raises(ValueError) as of_file:
            decode_recording({"audio": str(path)}, 16000)
        with pytest.raises(ValueError) as of_bytes:
            decode_recording({"audio": {"bytes": content, "path": "b.wav"}}, 16000)
        assert of_bytes.value.reason == of_file.value.reason
        assert str(of_bytes.value).startswith("b.wav: ")
    np.testing.assert_allclose(decode_recording({"audio": whole}, 16000), SAMPLES, atol=1e-4)


@pytest.mark.parametrize("kind", ["text", "struct", "Audio"])
@pytest.mark.parametrize("streaming", [False, True])
def test_relative_paths_count_from_the_folder_of_the_parquet_file(parquet, tmp_path, monkeypatch, kind, streaming):
    for folder, length in (("one", 100), ("two", 200)):
        audio = ["a.wav"] if kind == "text" else [{"path": "a.wav", "bytes": None}]
        path = parquet(f"data[1]/{folder}/x.parquet", audio=audio)
        soundfile.write(path.with_name("a.wav"), np.resize(SAMPLES, length), 16000)
        if kind == "Audio":
            monkeypatch.chdir(path.parent)  # where the writer finds it
            table = datasets.Dataset.from_dict({"audio": audio}).cast_column("audio", datasets.Audio(decode=True))
            table.to_parquet("x.parquet")
    monkeypatch.chdir(tmp_path)
    rows = load_recordings(str(tmp_path / "data[1]"), streaming=streaming)
    assert [len(decode_recording(row, 16000)) for row in rows] == [100, 200]


@pytest.mark.parametrize("streaming", [False, True])
def test_cells_of_parquet_are_texts(parquet, streaming):
    path = parquet("x.parquet", audio=[wav_bytes()] * 3, text=[0, 7, None], number=[0.0, 1.5, float("nan")])
    rows = list(load_recordings(str(path), streaming=streaming))
    assert [(row["text"], row["number"]) for row in rows] == [("0", "0"), ("7", "1.5"), (None, None)]
    (kept,) = load_recordings(str(path), {"text": "0"}, streaming=streaming)
    assert kept["text"] == "0"
    with pytest.raises(ValueError, match="no row with text=8"):
        load_recordings(str(path), {"text": ["0", "8"]}, streaming=streaming)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_parquet_file_is_named(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.parquet: is no whole Parquet file"):
        load_recordings(str(tmp_path))


def test_parquet_without_rows_is_named_and_skipped_beside_others(parquet, tmp_path):
    path = parquet("x.parquet", audio=pyarrow.array([], pyarrow.binary()))
    with pytest.raises(ValueError, match="x.parquet: holds no recording"):
        load_recordings(str(path))
    parquet("y.parquet", audio=[wav_bytes()])
    assert len(load_recordings(str(tmp_path))) == 1


@pytest.fixture
def folder(tmp_path):
    for name in ("split/train/a.wav", "split/test/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        soundfile.write(tmp_path / name, SAMPLES, 16000)
    return tmp_path


def write_row(path, text, name="a.wav"):
    path.write_text(json.dumps({"file_name": name, "text": text}) + "\n")


def test_metadata_in_folders_are_read_with_names_relative_to_the_whole(folder, capsys):
    write_row(folder / "split" / "train" / "metadata.jsonl", "hello")
    rows = load_recordings(str(folder))
    assert [(row["file_name"], row["text"]) for row in rows] == [("split/train/a.wav", "hello")]
    assert len(decode_recording(rows[0], 16000)) == 1600
    # What no metadata names is not left out silently.
    assert "1 audio files are left out, such as 'split/test/a.wav'" in capsys.readouterr().err
    (folder / "split" / "test" / "metadata.csv").write_text("file_name,text,speaker\na.wav,0,s\n")
    rows = load_recordings(str(folder))
    assert [(row["text"], row["speaker"]) for row in rows] == [("0", "s"), ("hello", None)]
    assert capsys.readouterr().err == ""


def test_metadata_of_parquet_are_read(folder):
    table = pyarrow.table({"file_name": ["a.wav"], "text": ["hello"]})
    pyarrow.parquet.write_table(table, folder / "split" / "train" / "metadata.parquet")
    assert load_recordings(str(folder / "split" / "train"))["text"][:] == ["hello"]
    assert load_recordings(str(folder))["file_name"][:] == ["split/train/a.wav"]


def test_a_column_of_audio_that_nothing_would_read_is_refused(folder):
    refused = "column 'sound' is for tables that hold audio"
    with pytest.raises(ValueError, match=refused):
        load_recordings(str(folder), audio_column="sound")
    write_row(folder / "metadata.jsonl", "hello", "split/train/a.wav")
    for where in (folder, folder / "metadata.jsonl"):
        with pytest.raises(ValueError, match=refused):
            load_recordings(str(where), audio_column="sound")
    assert load_recordings(str(folder))["text"][:] == ["hello"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("metadata.csv", "metadata.jsonl"),
        ("metadata.jsonl", "split/train/metadata.jsonl"),
        ("split/metadata.jsonl", "split/test/metadata.csv"),
    ],
)
def test_two_files_of_metadata_for_the_same_recordings_are_refused(folder, first, second):
    for name in (first, second):
        (folder / name).write_text("x")
    with pytest.raises(ValueError) as error:
        load_recordings(str(folder))
    assert str(folder / first) in str(error.value)
    assert str(folder / second) in str(error.value)
    assert "name the one to read" in str(error.value)


@pytest.mark.parametrize("name", ["metadata.tsv", "metadata.json", "transcripts.csv", "split/train/metadata.txt"])
def test_a_table_beside_the_audio_that_is_not_read_is_told(folder, capsys, name):
    (folder / name).write_text("x")
    assert len(load_recordings(str(folder))) == 2
    assert f"{folder / name}: not read" in capsys.readouterr().err


def test_a_saved_dataset_is_read_with_its_texts(tmp_path):
    rows = {"audio": [{"path": "a.wav", "bytes": wav_bytes()}, {"path": "b.wav", "bytes": b""}], "text": [0, 7]}
    saved = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())
    saved.save_to_disk(tmp_path / "one")
    recordings = load_recordings(str(tmp_path / "one"))
    assert [(row["file_name"], row["text"]) for row in recordings] == [("a.wav", "0"), ("b.wav", "7")]
    assert decoded(tmp_path / "one", tmp_path)[0] == {"a.wav": 1600}
    datasets.DatasetDict({"test": saved, "dev": saved.select([1])}).save_to_disk(tmp_path / "two")
    assert load_recordings(str(tmp_path / "two"), split="dev")["text"][:] == ["7"]
    with pytest.raises(ValueError, match="has no split 'train'; name the folder of one that it has: .*two/test"):
        load_recordings(str(tmp_path / "two"))
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"cut")
    with pytest.raises(ValueError, match="one: cannot be read"):
        load_recordings(str(tmp_path / "one"))


@pytest.mark.parametrize("is_split", [True, False])
def test_a_saved_dataset_within_a_folder_of_audio_is_told(folder, tmp_path, capsys, is_split):
    saved = datasets.Dataset.from_dict({"audio": ["x.wav"], "text": ["hello"]})
    saved = datasets.DatasetDict({"train": saved}) if is_split else saved
    count = len(load_recordings(str(folder)))
    saved.save_to_disk(folder / "saved")
    capsys.readouterr()
    assert len(load_recordings(str(folder))) == count
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(folder / "saved"))]
    assert told == [
        f"{folder / 'saved'}: not read, since it is a dataset that `save_to_disk` wrote within {folder}; name it by"
        " itself"
    ]


def test_rows_without_names_are_named_by_their_number_whatever_is_filtered(parquet):
    path = parquet("x.parquet", audio=[wav_bytes()] * 3, split=["a", "b", "b"])
    assert load_recordings(str(path))["file_name"][:] == ["row 0", "row 1", "row 2"]
    assert load_recordings(str(path), {"split": "b"})["file_name"][:] == ["row 1", "row 2"]


def test_recordings_of_one_base_name_are_told_apart_by_their_number(parquet):
    audio = [{"path": name, "bytes": wav_bytes()} for name in ("a.wav", "b.wav", "a.wav")]
    path = parquet("x.parquet", audio=audio, split=["x", "x", "y"])
    assert load_recordings(str(path))["file_name"][:] == ["a.wav (row 0)", "b.wav", "a.wav (row 2)"]
    assert load_recordings(str(path), {"split": "y"})["file_name"][:] == ["a.wav (row 2)"]


def test_equal_names_are_refused_and_two_rows_are_named(parquet):
    path = parquet("x.parquet", audio=[wav_bytes()] * 4, file_name=["c", "a", "b", "a"], split=["1", "2", "2", "2"])
    with pytest.raises(ValueError, match=r"'a' stands in the rows 1 and 3 \(from 0\)"):
        load_recordings(str(path), {"split": "2"}, unique_names=True)


def test_decoded_audio_is_kept_for_the_name_too(parquet, tmp_path):
    path = parquet("x.parquet", audio=[wav_bytes()], file_name=["a"])
    assert list(decoded(path, tmp_path)[0]) == ["a"]
    path = parquet("y.parquet", audio=[wav_bytes()], file_name=["b"])
    assert list(decoded(path, tmp_path)[0]) == ["b"]


@pytest.mark.parametrize("path", ["nowhere/metadata.csv", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_mistyped_path_is_no_name_on_the_hub(path):
    with pytest.raises(ValueError, match="there is no such file or folder; check the spelling"):
        load_recordings(path)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (OSError("no route"), r"from the Hub \(the Hub cannot be reached: no route\)"),
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), r"from the Hub \(it has none"),
    ],
)
def test_the_hub_is_asked_once_for_a_dataset_that_is_not_here(monkeypatch, answer, message):
    asked = []

    def refuse(api, name, timeout):
        asked.append((name, timeout))
        raise answer

    monkeypatch.setattr(recording_tables, "is_offline_mode", lambda: False)
    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets, "load_dataset", None)  # which would ask for half a minute
    with pytest.raises(ValueError, match=f"nosuch/dir: there is no such file or folder here, and .* {message}"):
        load_recordings("nosuch/dir")
    assert [name for name, _ in asked] == ["nosuch/dir"]
    assert asked[0][1] <= 10


def test_a_dataset_that_was_loaded_before_needs_no_hub(monkeypatch, tmp_path):
    def refuse(api, name, timeout):
        raise OSError("no route")

    (tmp_path / "org___my_speech").mkdir()
    monkeypatch.setattr(recording_tables, "is_offline_mode", lambda: False)
    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": wav_bytes(), "path": None}], "file_name": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **kwargs: rows)
    assert len(load_recordings("org/MySpeech")) == 1


def test_samples_of_a_row_have_a_fingerprint():
    audio = {"array": SAMPLES, "sampling_rate": 16000}
    assert recording_fingerprint({"audio": audio}) != recording_fingerprint(
        {"audio": {**audio, "sampling_rate": 8000}}
    )
    assert recording_fingerprint({"audio": SAMPLES}) != recording_fingerprint({"audio": SAMPLES[1:]})
    assert recording_fingerprint({"audio": None}) == "missing"


def test_a_file_whose_name_is_no_unicode_is_left_out_by_name_and_no_other(tmp_path, capsys):
    for name in (b"a.wav", b"b\xff.wav"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(wav_bytes())
    assert load_recordings(str(tmp_path))["file_name"][:] == ["a.wav"]
    assert "b\\udcff.wav': the name is not UTF-8; rename the file" in capsys.readouterr().err
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ValueError, match="no recording in it has a name in UTF-8"):
        load_recordings(str(tmp_path))


def audio_column(*names):
    return [{"bytes": wav_bytes(), "path": name} for name in names]


def texts_of(path, streaming, column="text"):
    return [row[column] for row in load_recordings(str(path), streaming=streaming)]


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_of_different_types_are_joined_as_the_text_of_each(parquet, tmp_path, streaming):
    parquet("d/a.parquet", audio=audio_column("a"), text=[7])
    parquet("d/b.parquet", audio=audio_column("b"), text=["007"], speaker=["x"])
    parquet("d/c.parquet", audio=audio_column("c"), text=pyarrow.nulls(1), speaker=pyarrow.nulls(1))
    parquet("d/e.parquet", audio=audio_column("e"), text=[b"the family"])
    assert texts_of(tmp_path / "d", streaming) == ["7", "007", None, "the family"]
    assert texts_of(tmp_path / "d", streaming, "speaker") == [None, "x", None, None]


def test_parquet_files_that_cannot_be_joined_are_both_named_with_the_column(parquet, tmp_path):
    parquet("d/a.parquet", audio=audio_column("a"), text=["one"])
    parquet("d/b.parquet", audio=audio_column("b"), text=[["one"]])
    with pytest.raises(ValueError, match=r"`text` is text in \S*a.parquet, but .* in \S*b.parquet"):
        load_recordings(str(tmp_path / "d"))


def test_bytes_that_are_no_text_are_refused_by_file_and_row(parquet):
    path = parquet("a.parquet", audio=audio_column("a", "b"), text=[b"one", b"\xff"])
    with pytest.raises(ValueError, match=r"a.parquet, row 1 \(from 0\): `text` is not UTF-8"):
        load_recordings(str(path))


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_are_read_as_their_names(tmp_path, streaming):
    audio = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    kinds = datasets.Features({"audio": audio, "word": datasets.ClassLabel(names=["no", "yes"])})
    saved = datasets.Dataset.from_dict({"audio": audio_column("a", "b"), "word": [1, None]}, kinds)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "a.parquet")
    saved.select_columns("word").add_column("file_name", ["a", "b"]).to_parquet(
        tmp_path / "names" / "metadata.parquet"
    )
    for name in ("saved", "a.parquet", "names"):
        assert texts_of(tmp_path / name, streaming, "word") == ["yes", None]
    assert len(list(load_recordings(str(tmp_path / "a.parquet"), {"word": "yes"}, streaming=streaming))) == 1


def test_recordings_beside_those_that_are_read_are_told(parquet, tmp_path, capsys):
    (tmp_path / "d/train").mkdir(parents=True)
    (tmp_path / "d/train/a.wav").write_bytes(wav_bytes())
    parquet("d/test/t.parquet", audio=audio_column("t"))
    assert len(load_recordings(str(tmp_path / "d"))) == 1
    assert "1 audio files are left out, such as 'train/a.wav'" in capsys.readouterr().err
    (tmp_path / "d/train/metadata.csv").write_text("file_name\na.wav\n")
    assert len(load_recordings(str(tmp_path / "d"))) == 1
    assert "1 recordings of" in (told := capsys.readouterr().err)
    assert "t.parquet are left out" in told
