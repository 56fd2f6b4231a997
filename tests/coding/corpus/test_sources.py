# SPDX-License-Identifier: Apache-2.0
"""A corpus is the same in all its forms, and only the audio that is asked for is read."""

import tarfile

import datasets
import pyarrow.parquet
import pytest

from speech_tokenizers.coding.corpus.places import read_groups
from speech_tokenizers.coding.corpus.plan import write_plan
from speech_tokenizers.coding.corpus.sources import find_corpus
from speech_tokenizers.coding.row_coding import RowFields
from speech_tokenizers.processing import recording_tables
from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint
from speech_tokenizers.processing.speech_row_format import RowsFacts
from speech_tokenizers.processing.speech_row_shards import SpeechRowShards


FACTS = RowsFacts("tiny", "0123", "4567", 2, 1024, 50.0, 16000)


def plan_of(source, tmp_path, rows_per_shard=100):
    fields = RowFields(source.recordings)
    shards = SpeechRowShards(tmp_path / "rows", FACTS, rows_per_shard, fields.others)
    return write_plan(tmp_path / "plan", source, fields, shards, {})


def contents(source, tmp_path, group_bytes=1 << 20):
    """Text, and what the audio holds, of each recording in order; `None` where it cannot be read."""
    plan = plan_of(source, tmp_path)
    recordings = plan.recordings(0)
    found = [(recording.fields["text"], None) for recording in recordings]
    groups = list(read_groups(plan, recordings, group_bytes))
    for position, row in [entry for group in groups for entry in group]:
        if "reason" not in row:
            found[position] = (found[position][0], recording_fingerprint(row))
    return found, groups


@pytest.mark.parametrize("form", ["as_parquet", "as_tars", "saved"])
def test_audio_is_the_same_in_all_forms(corpus, tmp_path, request, form):
    source = find_corpus(str(corpus))
    assert source.kind == "files"
    expected, _ = contents(source, tmp_path)
    if form == "saved":
        rows = [
            {"audio": {"bytes": (corpus / f"{n}.wav").read_bytes(), "path": None}, "text": str(n)} for n in range(8)
        ]
        audio = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        features = datasets.Features({"audio": audio, "text": datasets.Value("string")})
        datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
        other = find_corpus(str(tmp_path / "saved"))
        assert other.kind == "rows"
    else:
        other = find_corpus(str(request.getfixturevalue(form)))
        assert other.kind == form.removeprefix("as_").rstrip("s")
    assert contents(other, tmp_path)[0] == expected
    assert len({content for _, content in expected}) == 8


@pytest.mark.parametrize("form", ["as_parquet", "as_tars"])
def test_groups_hold_as_much_as_they_may(tmp_path, request, form):
    source = find_corpus(str(request.getfixturevalue(form)))
    whole, _ = contents(source, tmp_path)
    small, groups = contents(source, tmp_path, group_bytes=12000)
    assert small == whole
    assert len(groups) > 2
    for group in groups:
        assert len(group) == 1 or sum(len(row["audio"]["bytes"]) for _, row in group) <= 12000


def test_rows_can_be_chosen_by_columns(as_parquet, tmp_path):
    source = find_corpus(str(as_parquet), {"take": ["2", "6"]})
    assert [(text, content is not None) for text, content in contents(source, tmp_path)[0]] == [
        ("2", True),
        ("6", True),
    ]


@pytest.mark.parametrize("form", ["corpus", "as_parquet", "as_tars"])
def test_a_split_and_a_configuration_are_never_ignored(request, tmp_path, form):
    data = str(request.getfixturevalue(form))
    if form == "corpus":
        assert len(find_corpus(data, split="eval").recordings) == 2
        with pytest.raises(ValueError, match="say the same"):
            find_corpus(data, {"split": ["eval"]}, split="eval")
    else:
        with pytest.raises(ValueError, match="has no column 'split' to filter by"):
            find_corpus(data, split="eval")
    with pytest.raises(ValueError, match="is for datasets of the Hub"):
        find_corpus(data, config="en")


def test_row_groups_that_are_not_wanted_are_not_read(as_parquet, tmp_path, monkeypatch):
    source = find_corpus(str(as_parquet), {"take": ["4"]})
    read = []
    really = pyarrow.parquet.ParquetFile.iter_batches

    def iter_batches(file, *args, row_groups, columns, **options):
        read.append((row_groups, columns))
        return really(file, *args, row_groups=row_groups, columns=columns, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    contents(source, tmp_path)
    assert read == [([1], ["audio"])]


def test_names_that_occur_twice_are_told_apart(corpus, tmp_path):
    (corpus / "metadata.jsonl").unlink()
    for folder in ("a", "b"):
        (corpus / folder).mkdir()
        (corpus / folder / "0.wav").write_bytes((corpus / "0.wav").read_bytes())
    names = [recording.fields["id"] for recording in plan_of(find_corpus(str(corpus)), tmp_path).recordings(0)]
    assert {"0.wav", "a/0.wav", "b/0.wav"} <= set(names)
    assert len(set(names)) == len(names) == 10


def test_a_name_that_a_tar_holds_twice_is_set_aside(corpus, tmp_path):
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for _ in range(2):
            tar.add(corpus / "0.wav", "0.wav")
    recordings = plan_of(find_corpus(str(tmp_path / "twice.tar")), tmp_path).recordings(0)
    assert [recording.fault is None for recording in recordings] == [True, False]
    assert "twice" in recordings[1].fault


def test_a_column_of_audio_is_not_asked_of_tars(as_tars):
    with pytest.raises(ValueError, match="column 'sound' is for tables that hold audio"):
        find_corpus(str(as_tars), audio_column="sound")


def test_of_a_tar_that_is_cut_the_whole_members_are_found_and_the_rest_is_told(as_tars, tmp_path):
    content = (as_tars / "0.tar").read_bytes()
    (as_tars / "0.tar").write_bytes(content[: len(content) // 2])
    recordings = plan_of(find_corpus(str(as_tars / "0.tar")), tmp_path).recordings(0)
    assert 1 < len(recordings) < 6
    assert "the tar is not whole" in recordings[-1].fault
    assert all(recording.fault is None for recording in recordings[:-1])


def test_a_name_in_a_tar_may_have_full_stops_and_what_is_said_of_it_may_be_broken(corpus, tmp_path):
    said = {
        "v1.0.0.wav": b'{"text": "a"}',
        "b.en.wav": b'{"text": "b"}',
        "c.wav": b'{"text": NaN1}',
        "d.wav": b'{"text": "d"}',
    }
    with tarfile.open(tmp_path / "dots.tar", "w") as tar:
        for name, content in said.items():
            tar.add(corpus / "0.wav", name)
            (tmp_path / "beside").write_bytes(content)
            stem = name.removesuffix(".wav")
            tar.add(tmp_path / "beside", f"{'b' if stem == 'b.en' else stem}.json")
    recordings = plan_of(find_corpus(str(tmp_path / "dots.tar")), tmp_path).recordings(0)
    assert [recording.fields["text"] for recording in recordings] == ["a", "b", None, "d"]
    assert [recording.fault is None for recording in recordings] == [True, True, False, True]
    assert "c.json beside it cannot be read" in recordings[2].fault


def test_a_plan_does_not_depend_on_how_a_tar_is_named(as_tars, tmp_path, monkeypatch):
    content = (as_tars / "0.tar").read_bytes()
    (as_tars / "0.tar").write_bytes(content[: len(content) // 2])
    first = plan_of(find_corpus(str(as_tars)), tmp_path).said
    monkeypatch.chdir(tmp_path)
    assert plan_of(find_corpus("tars"), tmp_path).said == first


def test_audio_files_beside_tars_are_told(as_tars, corpus, capsys):
    (as_tars / "loose.wav").write_bytes((corpus / "0.wav").read_bytes())
    find_corpus(str(as_tars))
    assert "1 audio files are left out" in capsys.readouterr().err


def test_a_compressed_tar_is_refused_with_a_remedy(corpus, tmp_path):
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "a.tar.gz", "w:gz") as tar:
        tar.add(corpus / "0.wav", "0.wav")
    with pytest.raises(ValueError, match="unpack it to a .tar"):
        find_corpus(str(tmp_path / "packed"))


def test_what_is_nowhere_is_told(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        find_corpus(str(tmp_path / "missing"))


def test_a_dataset_of_the_hub_is_read_by_its_files(as_parquet, tmp_path, monkeypatch):
    # `datasets` finds the files of a repository as it finds those of a folder.
    really = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config: really(str(as_parquet)))
    monkeypatch.setattr(recording_tables, "ask_hub", lambda name: None)
    source = find_corpus("namespace/name")
    assert source.kind == "parquet"
    assert [text for text, content in contents(source, tmp_path)[0] if content] == [str(n) for n in range(8)]
    with pytest.raises(ValueError, match="has no split 'test'; it has 'train'"):
        find_corpus("namespace/name", split="test")
