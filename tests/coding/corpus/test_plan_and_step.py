# SPDX-License-Identifier: Apache-2.0
"""A corpus that is encoded by tasks, in any order and number, is the one that one call gives."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from speech_tokenizers.coding.corpus import engines
from speech_tokenizers.coding.corpus.engines import run_here
from speech_tokenizers.coding.corpus.plan import CorpusPlan, CorpusPlanError, plan_folder
from speech_tokenizers.coding.corpus.preparation import CorpusRequest, prepared_corpus, stored_rows
from speech_tokenizers.coding.corpus.step import CorpusStep
from speech_tokenizers.coding.corpus.verification import verify_corpus
from speech_tokenizers.coding.loading import load
from speech_tokenizers.coding.row_coding import RowCoding, RowFields, encode_speech_rows
from speech_tokenizers.processing.recordings import load_recordings
from speech_tokenizers.processing.speech_rows import (
    SpeechRowsError,
    read_speech_rows,
    row_audio_codes,
    set_aside_path,
)


@pytest.fixture
def request_of(tiny_checkpoint, tmp_path):
    """Function: a request for rows of a corpus, three a shard, and the step that makes them."""

    def make(data, output="rows", webdataset=None, **options):
        step = CorpusStep(str(plan_folder(tmp_path / output)), str(tiny_checkpoint), "cpu", webdataset=webdataset)
        fixed = {"rows_per_shard": 3, "codec_name": "tiny"}
        return CorpusRequest(str(data), str(tmp_path / output), str(tiny_checkpoint), **{**fixed, **options}), step

    return make


@pytest.fixture
def encoded(request_of, tmp_path):
    """Function: encode a corpus; returns the folder of rows and its plan."""

    def encode(data, output="rows", **options):
        request, step = request_of(data, output, **options)
        with prepared_corpus(request, step) as (plan, _):
            run_here(step, plan)
        return tmp_path / output, plan

    return encode


def contents(folder):
    """All files of the folder, hidden ones too, and the one beside it."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | ({"aside": set_aside_path(folder).read_bytes()} if set_aside_path(folder).exists() else {})


def test_tasks_give_the_bytes_that_one_call_gives(encoded, corpus, tiny_checkpoint, tmp_path):
    recordings = load_recordings(str(corpus))
    coding = RowCoding(*load(tiny_checkpoint), "tiny", RowFields(recordings))
    list(encode_speech_rows(coding, recordings, tmp_path / "expected", 3))
    assert contents(encoded(corpus)[0]) == contents(tmp_path / "expected")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_in_any_number_and_order_give_the_same(request_of, encoded, corpus, tmp_path, world_size):
    request, step = request_of(corpus, "ranks")
    with prepared_corpus(request, step):
        pass
    for rank in reversed(range(world_size)):
        assert not (tmp_path / "ranks" / "dataset_info.json").exists()
        step(None, rank, world_size)
    assert contents(tmp_path / "ranks") == contents(encoded(corpus)[0])


@pytest.mark.parametrize("lost", ["rows-00001.parquet", "dataset_info.json", "done"])
def test_what_is_lost_is_made_again(request_of, encoded, corpus, lost):
    folder, plan = encoded(corpus)
    expected = contents(folder)
    (plan.done_path(0) if lost == "done" else folder / lost).unlink()
    request, step = request_of(corpus)
    made = []
    with prepared_corpus(request, step) as (plan, _):
        run_here(step, plan, lambda: made.append(1))
    assert contents(folder) == expected
    assert len(made) == (3 if lost == "rows-00001.parquet" else 0)


def test_a_shard_that_was_cut_is_made_again(request_of, encoded, corpus):
    folder, _ = encoded(corpus)
    expected = contents(folder)
    shard = folder / "rows-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    encoded(corpus)
    assert contents(folder) == expected


def test_a_recording_that_has_changed_is_told_and_not_mixed_in(encoded, corpus):
    folder, plan = encoded(corpus)
    expected = contents(folder)
    soundfile.write(corpus / "0.wav", np.zeros(5000), 16000)
    with pytest.raises(CorpusPlanError, match="recordings or their metadata have changed"):
        encoded(corpus)
    # Without the plan, the shard tells.
    for path in sorted(plan.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    plan.folder.rmdir()
    with pytest.raises(SpeechRowsError, match="was made from other recordings"):
        encoded(corpus)
    assert {name: content for name, content in contents(folder).items() if name.endswith("parquet")} == {
        name: content for name, content in expected.items() if name.endswith("parquet")
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_quantizers": 1}, "num_quantizers=4 instead of num_quantizers=1"),
        ({"rows_per_shard": 4}, "rows_per_shard=3 instead of rows_per_shard=4"),
        ({"filter_by": {"split": "train"}}, "of 8 recordings, but there are 6 now"),
        ({"webdataset": "tars"}, "with webdataset=None instead of"),
    ],
)
def test_other_options_are_refused(encoded, corpus, options, told):
    encoded(corpus)
    with pytest.raises(ValueError, match=told):
        encoded(corpus, **options)


def test_deduplicated_rows_hold_the_codes_of_all_frames(encoded, corpus):
    plain, _ = encoded(corpus, "plain")
    short, _ = encoded(corpus, "short", deduplicate=True)
    for row, other in zip(read_speech_rows(plain), read_speech_rows(short), strict=True):
        assert np.array_equal(row_audio_codes(row), row_audio_codes(other))
        assert sum(other["durations"]) == row["num_frames"] == other["num_frames"]


def test_what_is_set_aside_names_the_reason_and_can_be_tried_again(request_of, encoded, corpus, tmp_path):
    folder, _ = encoded(corpus)
    (line,) = set_aside_path(folder).read_text().splitlines()
    assert json.loads(line) == {
        "name": "4.wav",
        "reason": "is not readable as audio (Format not recognised); convert it to WAV or FLAC.",
    }
    request, step = request_of(corpus)
    made = []
    with prepared_corpus(request, step, retry_set_aside=True) as (plan, _):
        run_here(step, plan, lambda: made.append(1))
    assert len(made) == 3  # the shard of the recording, and no other
    assert set_aside_path(folder).exists()


def test_a_model_of_that_name_that_has_changed_is_refused(request_of, corpus, other_checkpoint):
    request, step = request_of(corpus)
    with prepared_corpus(request, step) as (plan, _):
        pass
    other = CorpusStep(step.plan, str(other_checkpoint), "cpu")
    with pytest.raises(ValueError, match="is another model than that of"):
        other(None, 0, 1)
    assert plan.num_done() == 0


def test_verification_finds_what_was_changed(request_of, encoded, corpus, tiny_checkpoint):
    folder, plan = encoded(corpus)
    step = CorpusStep(str(plan.folder), str(tiny_checkpoint), "cpu")
    assert [row.agreement for row in verify_corpus(plan, step, sample=8)] == [1.0] * 8
    assert [row.name for row in verify_corpus(plan, step, sample=8) if row.is_set_aside] == ["4.wav"]
    soundfile.write(corpus / "3.wav", np.random.default_rng(99).normal(0, 0.1, 4000), 16000)
    (corpus / "5.wav").unlink()
    found = {row.name: row for row in verify_corpus(plan, step, sample=8)}
    assert found["3.wav"].agreement < 1
    assert "cannot be read any more" in found["5.wav"].reason
    assert found["0.wav"].agreement == 1.0
    assert plan.faults(0) == []
    content = bytearray((folder / "rows-00000.parquet").read_bytes())
    content[100] ^= 1
    (folder / "rows-00000.parquet").write_bytes(content)
    assert "holds other bytes" in plan.faults(0)[0]


def test_rows_and_plan_can_be_moved_and_the_copy_is_what_is_verified(encoded, corpus, tmp_path):
    folder, plan = encoded(corpus)
    (tmp_path / "moved").mkdir()
    shutil.copytree(folder, tmp_path / "moved" / "rows")
    shutil.copytree(plan.folder, tmp_path / "moved" / "rows.plan")
    content = bytearray((tmp_path / "moved" / "rows" / "rows-00000.parquet").read_bytes())
    content[100] ^= 1
    (tmp_path / "moved" / "rows" / "rows-00000.parquet").write_bytes(content)
    moved = CorpusPlan.read(tmp_path / "moved" / "rows.plan", tmp_path / "moved" / "rows")
    shutil.rmtree(folder)
    assert [bool(moved.faults(number)) for number in range(moved.num_tasks)] == [True, False, False]


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_threads_change_no_bit(request_of, corpus, tmp_path, kind):
    for threads in (1, 2):
        request, step = request_of(corpus, f"threads-{threads}", kind=kind)
        step = dataclasses.replace(step, torch_threads=threads)
        before = torch.get_num_threads()
        try:
            with prepared_corpus(request, step) as (plan, _):
                run_here(step, plan)
        finally:
            torch.set_num_threads(before)
    assert contents(tmp_path / "threads-1") == contents(tmp_path / "threads-2")


def test_overwriting_leaves_no_tar_of_before(request_of, encoded, corpus, tmp_path):
    encoded(corpus, webdataset=str(tmp_path / "tars"), rows_per_shard=2)
    request, step = request_of(corpus, webdataset=str(tmp_path / "tars"), rows_per_shard=4)
    with prepared_corpus(request, step, overwrite=True) as (plan, _):
        run_here(step, plan)
    assert sorted(path.name for path in (tmp_path / "tars").iterdir()) == ["rows-00000.tar", "rows-00001.tar"]


def test_tars_of_webdataset_hold_the_rows(encoded, corpus, tmp_path):
    import datasets

    folder, _ = encoded(corpus, webdataset=str(tmp_path / "tars"))
    rows = list(read_speech_rows(folder))
    tars = sorted(map(str, (tmp_path / "tars").glob("*.tar")))
    samples = list(datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True))
    assert [sample["json"]["id"] for sample in samples] == [row["id"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        assert np.array_equal(sample["npy"], row_audio_codes(row))
        assert sample["json"]["text"] == row["text"]


def test_bits_of_a_code_are_measured_in_the_files(encoded, corpus):
    stored = stored_rows(encoded(corpus)[0])
    assert stored.num_rows == 7
    assert 0 < stored.bits_per_code < 40
    assert stored.num_bytes > stored.bits_per_code * 4 / 8


def test_a_corpus_without_a_readable_recording_has_no_shard_and_says_so(encoded, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.wav").write_bytes(b"no audio")
    folder, plan = encoded(tmp_path / "broken")
    assert [path.name for path in folder.iterdir()] == ["dataset_info.json"]
    assert plan.done(0)["num_rows"] == 0


def test_a_missing_plan_is_told(tmp_path):
    with pytest.raises(CorpusPlanError, match="holds no plan"):
        CorpusPlan.read(tmp_path)


def test_more_workers_without_datatrove_name_the_extra(request_of, corpus, monkeypatch):
    import importlib.util

    request, step = request_of(corpus)
    really = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datatrove" else really(name))
    with prepared_corpus(request, step) as (plan, _), pytest.raises(ImportError, match=r"speech-tokenizers\[corpus\]"):
        engines.run_workers(step, plan, 2)
