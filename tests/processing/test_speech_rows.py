# SPDX-License-Identifier: Apache-2.0
"""Rows of codes come back as they were written, whole and of one codec, or are refused by name."""

import dataclasses
import json

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from speech_tokenizers.processing.speech_row_format import RowsFacts, SpeechRowsError, rows_schema
from speech_tokenizers.processing.speech_rows import (
    SpeechRowsWriter,
    read_rows_facts,
    read_speech_rows,
    row_audio_codes,
)


FACTS = RowsFacts("tiny", "0123", "4567", 2, 1024, 50.0, 16000)


class Codec:
    """What a codec says of itself."""

    def __init__(self, codec="0123", encoder="4567"):
        self.fingerprints = codec, encoder

    def fingerprint(self):
        return self.fingerprints[0]

    def encoder_fingerprint(self):
        return self.fingerprints[1]


def row(number: int, facts: RowsFacts = FACTS) -> dict:
    codes = np.random.default_rng(number).integers(facts.codebook_size, size=(facts.num_quantizers, 3 + number))
    return {"id": f"r{number}", "text": f"text {number}", "audio_codes": codes, "seconds": (3 + number) / 50}


def write(folder, count=5, facts=FACTS, per_shard=2, **options):
    """Rows in shards of two; returns what was written."""
    rows = [row(number, facts) for number in range(count)]
    with SpeechRowsWriter(folder, facts, per_shard, **options) as writer:
        for number, first in enumerate(range(0, count, per_shard)):
            some = rows[first : first + per_shard]
            if writer.kept(number, [entry["id"] for entry in some]) is None:
                writer.write(number, some, [entry["id"] for entry in some])
        writer.finish(-(-count // per_shard))
    return rows


def test_rows_come_back_as_they_were_written(tmp_path):
    written = write(tmp_path)
    read = read_speech_rows(tmp_path, Codec())
    assert read["id"][:] == [entry["id"] for entry in written]
    for one, other in zip(read, written, strict=True):
        codes = row_audio_codes(one)
        assert codes.dtype == np.int64
        assert np.array_equal(codes, other["audio_codes"])
        assert (one["text"], one["seconds"]) == (other["text"], other["seconds"])
        assert (one["codec"], one["codec_fingerprint"], one["encoder_fingerprint"]) == ("tiny", "0123", "4567")
        assert one["speaker"] is one["words"] is one["phones"] is None
    assert read.features["audio_codes"] == datasets.List(datasets.Value("uint16"))
    assert read_rows_facts(tmp_path) == FACTS


def test_times_and_columns_of_the_corpus_come_back(tmp_path):
    words = [{"word": "hi", "start": 0.0, "end": 0.25}]
    phones = [{"label": "HH", "start": 0.0, "end": 0.1}, {"label": "AY", "start": 0.1, "end": 0.25}]
    others = [pyarrow.field("intent", pyarrow.string()), pyarrow.field("slots", pyarrow.list_(pyarrow.string()))]
    entry = row(0) | {"words": words, "phones": phones, "intent": "greet", "slots": ["a", "b"]}
    with SpeechRowsWriter(tmp_path, FACTS, others=others) as writer:
        writer.write(0, [entry, row(1)], ["a", "b"])
        writer.finish(1)
    first, second = read_speech_rows(tmp_path)
    assert {name: first[name] for name in ("words", "phones", "intent", "slots")} == {
        name: entry[name] for name in ("words", "phones", "intent", "slots")
    }
    assert second["words"] is second["intent"] is None


def test_datasets_reads_the_folder_by_itself(tmp_path):
    written = write(tmp_path)
    for where in ({"data_files": str(tmp_path / "rows-*.parquet")}, {"data_dir": str(tmp_path)}):
        read = datasets.load_dataset("parquet", split="train", **where)
        assert read["id"][:] == [entry["id"] for entry in written]


def test_rows_are_mapped_into_memory(tmp_path):
    write(tmp_path)
    assert read_speech_rows(tmp_path).cache_files


def test_a_shard_without_rows_has_no_file_and_disturbs_no_reader(tmp_path):
    folder, failed = tmp_path / "rows", {"name": "r0", "reason": "is no audio."}
    with SpeechRowsWriter(folder, FACTS, 1) as writer:
        assert writer.write(0, [failed], ["a"]).set_aside == {0: failed}
        writer.write(1, [row(1)], ["b"])
        writer.finish(2)
    assert [path.name for path in sorted(folder.iterdir())] == ["dataset_info.json", "rows-00001.parquet"]
    assert [json.loads(line) for line in (tmp_path / "rows.set_aside.jsonl").open()] == [failed]
    assert read_speech_rows(folder)["id"][:] == ["r1"]
    assert len(datasets.load_dataset("parquet", data_dir=str(folder), split="train")) == 1


def test_a_folder_of_which_all_was_set_aside_says_so(tmp_path):
    with SpeechRowsWriter(tmp_path, FACTS) as writer:
        writer.write(0, [{"name": "r0", "reason": "is no audio."}], ["a"])
        writer.finish(1)
    with pytest.raises(SpeechRowsError, match=r"all recordings were set aside; see .*\.set_aside\.jsonl"):
        read_speech_rows(tmp_path)


@pytest.mark.parametrize(("size", "bits"), [(1 << 16, 16), ((1 << 16) + 1, 32)])
def test_codes_take_the_bits_that_the_codebook_needs(tmp_path, size, bits):
    facts = dataclasses.replace(FACTS, codebook_size=size)
    codes = np.array([[size - 1], [0]])
    with SpeechRowsWriter(tmp_path, facts) as writer:
        writer.write(0, [row(0) | {"audio_codes": codes}], ["a"])
        writer.finish(1)
    read = read_speech_rows(tmp_path)
    assert read.features["audio_codes"] == datasets.List(datasets.Value(f"uint{bits}"))
    assert np.array_equal(row_audio_codes(read[0]), codes)


@pytest.mark.parametrize("codec", [Codec("89ab"), "89ab"])
def test_rows_of_another_codec_are_refused_with_the_command_that_encodes_anew(tmp_path, codec):
    write(tmp_path)
    with pytest.raises(SpeechRowsError) as caught:
        read_speech_rows(tmp_path, codec)
    for part in ("'tiny'", "0123", "89ab", "encode-rows DATA -o NEW_FOLDER --model CODEC --num-quantizers 2"):
        assert part in str(caught.value)


def test_rows_of_another_encoder_are_read_and_told(tmp_path, capsys):
    write(tmp_path)
    assert len(read_speech_rows(tmp_path, Codec(encoder="cdef"))) == 5
    told = capsys.readouterr().err
    assert "another encoder gave these codes (fingerprint 4567, here cdef)" in told
    read_speech_rows(tmp_path, Codec())
    assert "another encoder" not in capsys.readouterr().err


def test_a_codec_without_a_fingerprint_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(TypeError, match=r"`codec` is a dict, which has no fingerprint"):
        read_speech_rows(tmp_path, {})


def test_a_missing_shard_is_refused_by_name(tmp_path):
    write(tmp_path)
    (tmp_path / "rows-00001.parquet").unlink()
    with pytest.raises(SpeechRowsError, match=r"1 of 3 shards are missing, first rows-00001\.parquet"):
        read_speech_rows(tmp_path)


def test_a_shard_of_another_run_is_refused(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", 2, dataclasses.replace(FACTS, codec_fingerprint="89ab"))
    stray = (tmp_path / "b" / "rows-00000.parquet").rename(tmp_path / "a" / "rows-00007.parquet")
    with pytest.raises(SpeechRowsError, match=r"holds rows-00007\.parquet, of which dataset_info\.json knows nothing"):
        read_speech_rows(tmp_path / "a")
    stray.rename(tmp_path / "a" / "rows-00001.parquet")
    with pytest.raises(SpeechRowsError, match=r"rows-00001\.parquet: was made with codec_fingerprint=89ab instead of"):
        read_speech_rows(tmp_path / "a")


def test_files_of_two_codecs_are_refused_and_of_one_are_joined(tmp_path):
    write(tmp_path / "a", 2)
    write(tmp_path / "b", 2)
    write(tmp_path / "c", 2, dataclasses.replace(FACTS, num_quantizers=1))
    files = [tmp_path / name / "rows-00000.parquet" for name in "abc"]
    assert len(read_speech_rows(files[:2])) == 4
    assert len(read_speech_rows(files[0])) == 2
    write(tmp_path / "d", 2, dataclasses.replace(FACTS, codec="the same in a folder"))
    assert len(read_speech_rows([files[0], tmp_path / "d" / "rows-00000.parquet"])) == 4
    with pytest.raises(SpeechRowsError, match="was made with num_quantizers=1 instead of num_quantizers=2"):
        read_speech_rows(files)
    with pytest.raises(ValueError, match="`folder_or_files` is empty"):
        read_speech_rows([])


def test_a_folder_without_rows_is_refused_with_the_command_that_writes_them(tmp_path):
    with pytest.raises(SpeechRowsError, match="holds no rows; write them by speech-tokenizers encode-rows DATA"):
        read_speech_rows(tmp_path)
    with pytest.raises(SpeechRowsError, match="there is no such file or folder"):
        read_speech_rows(tmp_path / "typo")


def test_a_folder_whose_writing_has_not_ended_is_refused(tmp_path):
    with SpeechRowsWriter(tmp_path, FACTS, 2) as writer:
        writer.write(0, [row(0), row(1)], ["a", "b"])
        with pytest.raises(SpeechRowsError, match=r"rows-00001\.parquet: was not written"):
            writer.finish(2)
    with pytest.raises(SpeechRowsError, match="its writing has not ended; start the same command again"):
        read_speech_rows(tmp_path)


def test_a_damaged_shard_is_refused_and_written_anew(tmp_path, capsys):
    write(tmp_path)
    shard = tmp_path / "rows-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    with pytest.raises(SpeechRowsError, match=r"rows-00001\.parquet: is no whole Parquet file"):
        read_speech_rows(tmp_path)
    write(tmp_path)
    assert "rows-00001.parquet: is damaged, and written anew" in capsys.readouterr().err
    assert shard.read_bytes() == whole
    assert len(read_speech_rows(tmp_path)) == 5


def test_what_others_wrote_is_no_rows(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"]}), tmp_path / "rows-00000.parquet")
    with pytest.raises(SpeechRowsError, match="is Parquet, but no rows of codes"):
        read_speech_rows(tmp_path / "rows-00000.parquet")
    with pytest.raises(SpeechRowsError, match="is Parquet, but no rows of codes"):
        SpeechRowsWriter(tmp_path, FACTS)
    assert (tmp_path / "rows-00000.parquet").exists()
    (tmp_path / "dataset_info.json").write_text('{"features": {}}')
    with pytest.raises(SpeechRowsError, match=r"dataset_info\.json: is not what `encode-rows` writes"):
        read_speech_rows(tmp_path)


def test_rows_of_a_later_version_are_refused(tmp_path):
    write(tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    (tmp_path / "dataset_info.json").write_text(json.dumps(info | {"format_version": 2}))
    with pytest.raises(SpeechRowsError, match="has version 2 of the format, but this package reads 1"):
        read_speech_rows(tmp_path)


def test_columns_are_chosen_by_name(tmp_path):
    write(tmp_path)
    read = read_speech_rows(tmp_path, columns=["id", "text"])
    assert read.column_names == ["id", "text"]
    with pytest.raises(ValueError, match=r"`row` lacks 'audio_codes', 'num_quantizers', 'num_frames'"):
        row_audio_codes(read[0])
    with pytest.raises(ValueError, match=r"`columns` has 'Text', but rows have .*'text' was probably meant"):
        read_speech_rows(tmp_path, columns=["Text"])


def test_codes_that_do_not_fill_the_frames_are_refused():
    with pytest.raises(
        ValueError, match="`audio_codes` of 'a' has 5 codes, but 2 codebooks of 3 frames were expected"
    ):
        row_audio_codes({"id": "a", "audio_codes": [1, 2, 3, 4, 5], "num_quantizers": 2, "num_frames": 3})


def test_a_written_folder_is_continued_by_the_same_codec_alone(tmp_path):
    write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    other = dataclasses.replace(FACTS, encoder_fingerprint="cdef")
    for facts, per_shard, difference in (
        (other, 2, "encoder_fingerprint=4567 instead of encoder_fingerprint=cdef"),
        (FACTS, 3, "rows_per_shard=2 instead of rows_per_shard=3"),
    ):
        with pytest.raises(SpeechRowsError, match=f"was made with {difference}; choose another folder"):
            write(tmp_path, facts=facts, per_shard=per_shard)
    with pytest.raises(SpeechRowsError, match=r"rows-00001\.parquet: is of a larger corpus"):
        write(tmp_path, count=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write(tmp_path, 3, other, overwrite=True)
    assert read_rows_facts(tmp_path) == other
    assert len(read_speech_rows(tmp_path)) == 3


def test_rows_of_other_recordings_are_not_continued(tmp_path):
    write(tmp_path)
    with SpeechRowsWriter(tmp_path, FACTS, 2) as writer:
        assert writer.kept(0, ["r0", "r1"]).is_kept
        with pytest.raises(SpeechRowsError, match=r"rows-00001\.parquet: was made from other recordings"):
            writer.kept(1, ["r2", "other"])


def test_one_process_at_a_time_writes_a_folder(tmp_path):
    with SpeechRowsWriter(tmp_path, FACTS), pytest.raises(OSError, match="is being written by another process"):
        SpeechRowsWriter(tmp_path, FACTS)
    write(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = [tmp_path / f".{'0a' * 8}.tmp", tmp_path / ".writing"]
    kept = [tmp_path / ".hidden.tmp", tmp_path / "notes.txt"]
    for path in left + kept:
        path.write_text("half")
    write(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_codes": np.zeros((1, 3), int)}, r"must have shape \(2, num_frames\), but got \(1, 3\)"),
        ({"audio_codes": np.zeros((2, 0), int)}, r"must have shape \(2, num_frames\), but got \(2, 0\)"),
        ({"audio_codes": np.full((2, 3), 1024)}, "must lie between 0 and 1023, but range from 1024 to 1024"),
        ({"mood": "glad"}, r"`rows` has columns \['mood'\], which were not announced"),
        ({"text": 7}, "`rows` from 'r0' on do not fit the columns"),
    ],
)
def test_a_row_that_is_none_is_not_written(tmp_path, change, message):
    with SpeechRowsWriter(tmp_path, FACTS) as writer, pytest.raises(ValueError, match=message):
        writer.write(0, [row(0) | change], ["a"])
    assert not list(tmp_path.iterdir())


def test_more_rows_than_a_shard_takes_are_refused(tmp_path):
    with SpeechRowsWriter(tmp_path, FACTS, 1) as writer, pytest.raises(ValueError, match="a shard takes up to 1"):
        writer.write(0, [row(0), row(1)], ["a", "b"])
    with pytest.raises(ValueError, match="`rows_per_shard` must be at least 1, but got 0"):
        SpeechRowsWriter(tmp_path, FACTS, 0)


def test_a_column_of_the_corpus_takes_no_name_of_the_rows():
    with pytest.raises(ValueError, match="rows have 'num_frames' of their own; rename the other column"):
        rows_schema(FACTS, [pyarrow.field("num_frames", pyarrow.string())])
