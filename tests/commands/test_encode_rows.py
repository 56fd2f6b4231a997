# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers encode-rows`: killed anywhere and started again, it leaves what an undisturbed run leaves."""

import json
import re
import signal

import numpy as np
import pytest
import soundfile
import torch

from helpers.processes import start
from speech_tokenizers import load, load_audio
from speech_tokenizers.processing.speech_rows import (
    read_speech_rows,
    row_audio_codes,
    row_audio_latents,
    set_aside_path,
)


# Runs the command for each case, in a fork that kills itself at the n-th time that something happens; prints how each
# ended. What is slow to import is there before the forks, and no thread has run yet that a fork could break.
KILLED = """
import json, os, signal, sys
import pyarrow.parquet
from speech_tokenizers import load
from speech_tokenizers.coding import row_coding
from speech_tokenizers.cli import main
from speech_tokenizers.processing import recordings

load(sys.argv[2])

def happens(what):
    global count
    if what == place:
        count -= 1
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)

def replace(source, target, really=os.replace):
    happens("before a file is in place")
    really(source, target)
    happens("after a file is in place")

def write_table(table, path, really=pyarrow.parquet.write_table, **options):
    really(table, path, **options)
    os.truncate(path, os.path.getsize(path) // 2)
    happens("half a shard")
    really(table, path, **options)

def encode_recordings(*args, really=row_coding.encode_recordings, **options):
    for result in really(*args, **options):
        happens("a recording is encoded")
        yield result

os.replace, pyarrow.parquet.write_table = replace, write_table
row_coding.encode_recordings = encode_recordings
ends = []
for place, count, words in json.load(open(sys.argv[1])):
    if not (child := os.fork()):
        os._exit(main(words))
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("ends", ends)
"""
PLACES = [
    ("a recording is encoded", 1),
    ("a recording is encoded", 5),
    ("half a shard", 1),
    ("half a shard", 3),
    ("before a file is in place", 2),
    ("after a file is in place", 2),
    ("before a file is in place", 4),  # the list of what was set aside
    ("before a file is in place", 5),  # dataset_info.json
    ("after a file is in place", 5),
]


@pytest.fixture
def corpus(tmp_path):
    """Folder of eight recordings with metadata, one of which is no audio."""
    folder = tmp_path / "speech"
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w") as file:
        for number in range(8):
            samples = np.random.default_rng(number).normal(0, 0.1, 3000 + 700 * (number * 5 % 8))
            soundfile.write(folder / f"{number}.wav", samples, 16000)
            words = [{"word": str(number), "start": 0.0, "end": 0.1}]
            line = {"file_name": f"{number}.wav", "text": str(number), "words": words}
            print(json.dumps(line | {"split": "eval" if number > 5 else "train"}), file=file)
    (folder / "4.wav").write_bytes(b"no audio")
    return folder


@pytest.fixture
def words_of(corpus, tiny_checkpoint):
    """Function: arguments of the command that encodes `corpus` into a folder, in shards of three recordings."""

    def words(output, *more):
        fixed = ["encode-rows", corpus, "-o", output, "--model", tiny_checkpoint, "--device", "cpu"]
        return [*map(str, [*fixed, "--rows-per-shard", 3, *more])]

    return words


def contents(folder):
    """All files of the folder, hidden ones too, and the one beside it."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | ({"aside": set_aside_path(folder).read_bytes()} if set_aside_path(folder).exists() else {})


def test_a_corpus_becomes_rows_that_decode_to_its_recordings(run, words_of, corpus, tmp_path, tiny_checkpoint):
    (corpus / "4.wav").write_bytes((corpus / "3.wav").read_bytes())
    code, errors = run(*words_of(tmp_path / "rows", "--num-quantizers", 2))
    assert code == 0
    assert errors[-1] == f"encode-rows: 8 of 8 files written, 0 skipped, 0 failed: {tmp_path / 'rows'}"
    model, _ = load(tiny_checkpoint)
    rows = read_speech_rows(tmp_path / "rows", model)
    assert rows["num_quantizers"][:] == [2] * 8
    assert rows[3]["words"] == [{"word": "3", "start": 0.0, "end": 0.1}]
    assert (
        run("reconstruct", corpus, "-o", tmp_path / "out", "--model", tiny_checkpoint, "--num-quantizers", 2)[0] == 0
    )
    for row in rows:
        expected = load_audio(tmp_path / "out" / row["id"], 16000)
        decoded = model.decode(np_codes(row), num_samples=len(expected)).audio_values[0, 0].detach().numpy()
        assert np.abs(decoded.clip(-1, 1) - expected).max() < 1e-4


def np_codes(row):

    return torch.from_numpy(row_audio_codes(row))[None]


def test_what_cannot_be_read_is_set_aside_with_the_reason_and_the_exit_code_tells(run, words_of, tmp_path):
    for _ in range(2):
        code, errors = run(*words_of(tmp_path / "rows"))
        assert code == 1
        (line,) = set_aside_path(tmp_path / "rows").read_text().splitlines()
        entry = json.loads(line)
        assert entry["name"] == "4.wav"
        assert entry["reason"] in " ".join(errors)
        assert any("1 recording was set aside; see" in error for error in errors)
    assert errors[-1].startswith("encode-rows: 0 of 8 files written, 7 skipped, 1 failed: ")
    assert read_speech_rows(tmp_path / "rows")["id"][:] == [f"{number}.wav" for number in (0, 1, 2, 3, 5, 6, 7)]


@pytest.fixture
def undisturbed(run, words_of, tmp_path):
    folder = tmp_path / "undisturbed"
    assert run(*words_of(folder))[0] == 1
    return contents(folder)


def test_a_run_that_is_killed_anywhere_and_started_again_leaves_the_same_bytes(
    run, words_of, tmp_path, tiny_checkpoint
):
    undisturbed = {}
    for kind in ("codes", "latents"):
        assert run(*words_of(tmp_path / kind, "--kind", kind))[0] == 1
        undisturbed[kind] = contents(tmp_path / kind)
    # Latents differ in what they hold, and not in how they are written.
    places = [("codes", *place) for place in PLACES] + [("latents", *place) for place in PLACES[1:4:2]]
    cases = [(*place, words_of(tmp_path / f"rows-{at}", "--kind", kind)) for at, (kind, *place) in enumerate(places)]
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    process = start(tmp_path / "killed.py", tmp_path / "cases.json", tiny_checkpoint)
    output, _ = process.communicate(timeout=250)
    assert output.splitlines()[-1] == f"ends {[-signal.SIGKILL] * len(places)}", output
    for at, ((kind, *place), (*_, words)) in enumerate(zip(places, cases, strict=True)):
        folder = tmp_path / f"rows-{at}"
        assert contents(folder).keys() != undisturbed[kind].keys(), place  # the lock, at least
        assert run(*words)[0] == 1, place
        assert contents(folder) == undisturbed[kind], place


def test_a_stopped_run_goes_on_where_it_stopped(run, words_of, tmp_path, undisturbed, monkeypatch):
    from speech_tokenizers.processing import speech_rows

    really, count = speech_rows.pyarrow.parquet.write_table, 0

    def write_table(*args, **options):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        really(*args, **options)

    monkeypatch.setattr(speech_rows.pyarrow.parquet, "write_table", write_table)
    code, errors = run(*words_of(tmp_path / "rows"))
    assert code == 130
    assert any("encode-rows: 5 of 8 files written, 0 skipped, 1 failed, 2 not reached" in error for error in errors)
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["rows-00000.parquet", "rows-00001.parquet"]
    code, errors = run(*words_of(tmp_path / "rows"))
    assert code == 1
    assert errors[-1].startswith("encode-rows: 2 of 8 files written, 5 skipped, 1 failed: ")
    assert contents(tmp_path / "rows") == undisturbed


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_rows_do_not_depend_on_the_length_of_a_batch(run, words_of, tmp_path, kind):
    for folder, seconds in (("whole", 60), ("rows", 0.3)):
        assert run(*words_of(tmp_path / folder, "--kind", kind, "--batch-seconds", seconds))[0] == 1
    assert contents(tmp_path / "rows") == contents(tmp_path / "whole")


def test_rows_of_another_codec_are_not_continued(run, words_of, tmp_path, undisturbed, other_checkpoint):
    folder = tmp_path / "undisturbed"
    code, errors = run(*words_of(folder, "--model", other_checkpoint))
    assert code == 2
    assert re.search(r"rows-00000\.parquet: was made with codec=\S+ instead of codec=\S+; choose another", errors[-1])
    code, errors = run(*words_of(folder, "--num-quantizers", 2))
    assert code == 2
    assert "was made with num_quantizers=4 instead of num_quantizers=2" in errors[-1]
    code, errors = run(*words_of(folder, "--kind", "latents"))
    assert code == 2
    assert "was made with kind=codes instead of kind=latents; choose another folder" in errors[-1]
    assert contents(folder) == undisturbed
    assert run(*words_of(folder, "--model", other_checkpoint, "--overwrite"))[0] == 1
    read_speech_rows(folder, load(other_checkpoint)[0])
    with pytest.raises(ValueError, match="would read as noise; encode the recordings anew by it"):
        read_speech_rows(folder, load(words_of(folder)[5])[0])


def test_times_that_align_wrote_stand_in_the_rows(run, words_of, tmp_path):
    times = tmp_path / "times.jsonl"
    word = {"word": "zero", "start": 0.01, "end": 0.02}
    times.write_text(json.dumps({"file_name": "0.wav", "text": "0", "words": [word], "labels": []}) + "\n")
    code, errors = run(*words_of(tmp_path / "rows", "--times", times, "--filter", "file_name=0.wav,1.wav"))
    assert code == 0
    assert any(f"1 of 2 recordings have no times in {times}" in error for error in errors)
    first, second = read_speech_rows(tmp_path / "rows")
    assert (first["words"], first["phones"]) == ([word], [])
    assert second["words"][0]["word"] == "1"


def test_a_split_is_chosen_by_the_metadata(run, words_of, tmp_path):
    assert run(*words_of(tmp_path / "rows", "--split", "eval"))[0] == 0
    assert read_speech_rows(tmp_path / "rows")["id"][:] == ["6.wav", "7.wav"]
    code, errors = run(*words_of(tmp_path / "other", "--split", "test"))
    assert code == 2
    assert "has no recording left with split=test; there is 'eval', 'train'" in errors[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-quantizers", 9], "--num-quantizers: `num_quantizers`"),
        (["--num-quantizers", 2, "--kind", "latents"], "--num-quantizers: `num_quantizers` chooses among codebooks"),
        (["--text-column", "Text"], "there is no column 'Text' of texts"),
        (["--split", "eval", "--filter", "split=eval"], "--split and --filter split=... say the same"),
        (["--batch-seconds", 0], "--batch-seconds must be positive"),
        (["-o", "rows.parquet"], "--output rows.parquet names a file, but several are written; name a folder"),
        (["-o", "speech/rows"], "--output speech/rows lies within "),
        (["--times", "none.jsonl"], "none.jsonl"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    run, words_of, tmp_path, monkeypatch, more, message
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, errors = run(*words_of("rows", *more))
    assert code == 2
    assert message in errors[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_continuous_tokens_give_latents_without_a_word_and_no_codes(run, words_of, tmp_path, make_cst):
    model, feature_extractor = make_cst()
    words = words_of(tmp_path / "rows", "--model", tmp_path / "cst", "--split", "eval")
    for updates, ending in ((0, "has no statistics of its latents yet"), (1, "2 of 2 files written")):
        model.statistics.num_updates.fill_(updates)
        model.save_pretrained(tmp_path / "cst")
        feature_extractor.save_pretrained(tmp_path / "cst")
        code, errors = run(*words)
        assert ending in errors[-1]
        assert code == (0 if updates else 2)
    rows = read_speech_rows(tmp_path / "rows", model, kind="latents")
    assert [row_audio_latents(row).shape for row in rows] == [(12, 6), (8, 6)]
    code, errors = run(*words, "--kind", "codes", "--overwrite")
    assert code == 2
    assert "--kind: A CSTModel has no codebooks" in errors[-1]
