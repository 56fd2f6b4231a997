# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers align` keeps texts as they are written, and a second run skips what it has aligned, only that."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from speech_tokenizers.cli import main
from speech_tokenizers.processing import word_alignment
from speech_tokenizers.processing.timed_labels import TimedLabel, TimedWord


class Ear:
    """Hears "um", or gives each word of a text a tenth of a second; stops at the recording `stop_at`."""

    def __init__(self, key="ear", stop_at=None):
        self.name = self.key = key
        self.heard, self.stop_at = [], stop_at

    def align(self, audio, text=None):
        if len(self.heard) == self.stop_at:
            raise KeyboardInterrupt
        self.heard.append(text)
        words = ("um" if text is None else text).split()
        return [TimedWord(word, index / 10, (index + 1) / 10) for index, word in enumerate(words)]

    def align_labels(self, audio, text=None):
        words = self.align(audio, text)
        return words, [TimedLabel("x", word.start, word.end) for word in words]


@pytest.fixture
def align(tmp_path, monkeypatch):
    """A function: align a folder or file; returns the exit code and the lines written."""

    def run(ear, data, *arguments):
        monkeypatch.setattr(word_alignment, "load_word_aligner", lambda name, device: ear)
        output, place = tmp_path / "words.jsonl", tmp_path / "ear"
        place.mkdir(exist_ok=True)  # the command looks for the aligner before it loads one
        code = main(["align", str(data), "-o", str(output), "--aligner", str(place), *arguments])
        return code, [json.loads(line) for line in output.read_text().split("\n")[:-1]] if output.exists() else []

    return run


def wav_bytes(seed=0):
    buffer = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.1, 0.1, 1600)
    soundfile.write(buffer, samples, 16000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.wav").write_bytes(wav_bytes(index))
    return folder


def write_parquet(path, audio, **columns):
    pyarrow.parquet.write_table(pyarrow.table({"audio": audio, **columns}), path)
    return path


def test_texts_of_digits_are_aligned_and_not_replaced_by_what_is_heard(align, folder):
    (folder / "metadata.csv").write_text("file_name,text\n0.wav,0\n1.wav,7\n2.wav,NA\n")
    ear = Ear()
    code, lines = align(ear, folder)
    assert code == 0
    assert ear.heard == ["0", "7", "NA"]
    assert [line["text"] for line in lines] == ["0", "7", "NA"]


def test_numbers_of_parquet_are_texts(align, tmp_path):
    ear = Ear()
    align(ear, write_parquet(tmp_path / "x.parquet", [wav_bytes(0), wav_bytes(1)], text=[0, 7]))
    assert ear.heard == ["0", "7"]


def test_a_missing_text_is_heard_and_told_and_an_empty_one_stays_empty(align, folder, capsys):
    rows = [{"file_name": "0.wav", "text": ""}, {"file_name": "1.wav", "text": None}, {"file_name": "2.wav"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, lines = align(Ear(), folder)
    assert [(line["text"], len(line["words"])) for line in lines] == [("", 0), ("um", 1), ("um", 1)]
    assert "2 of 3 recordings have no text in a column 'text'; what ear hears is written" in capsys.readouterr().err


def test_texts_with_line_separators_are_read_again(align, folder):
    text = "one\u2028two\u0085three"
    row = {"file_name": "0.wav", "text": text}
    (folder / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    align(Ear(), folder)
    code, lines = align(Ear(), folder)
    assert code == 0
    assert [line["text"] for line in lines] == [text]


@pytest.mark.parametrize(
    "audio",
    [
        [wav_bytes(0), wav_bytes(1), wav_bytes(2)],
        [{"path": "a.wav", "bytes": wav_bytes(index)} for index in range(3)],
    ],
    ids=["no name", "one base name"],
)
def test_an_interrupted_run_skips_no_recording_when_it_is_called_again(align, tmp_path, audio):
    path = write_parquet(tmp_path / "x.parquet", audio, text=["zero", "one", "two"], split=["a", "b", "b"])
    assert align(Ear(stop_at=1), path)[0] == 130
    code, lines = align(Ear(), path, "--filter", "split=b")
    assert code == 0
    assert [line["text"] for line in lines] == ["zero", "one", "two"]
    assert len({line["file_name"] for line in lines}) == 3
    ear = Ear()
    assert align(ear, path) == (0, lines)
    assert ear.heard == []


def test_two_rows_of_one_name_are_refused(align, tmp_path, capsys):
    path = write_parquet(tmp_path / "x.parquet", [wav_bytes(0), wav_bytes(1)], file_name=["a", "a"])
    assert align(Ear(), path) == (2, [])
    assert "'a' stands in the rows 0 and 1" in capsys.readouterr().err


def test_another_recording_of_the_same_name_is_not_taken_for_done(align, folder, capsys):
    assert align(Ear(), folder)[0] == 0
    (folder / "1.wav").write_bytes(wav_bytes(9))
    code, lines = align(Ear(), folder)
    assert code == 2
    assert len(lines) == 4
    assert "words.jsonl, line 2: when '1.wav' was aligned, its audio was another" in capsys.readouterr().err


def test_another_text_is_not_taken_for_done(align, folder, capsys):
    (folder / "metadata.csv").write_text("file_name,text\n0.wav,one\n")
    align(Ear(), folder)
    (folder / "metadata.csv").write_text("file_name,text\n0.wav,two\n")
    assert align(Ear(), folder)[0] == 2
    assert "its text was 'one' and now is 'two'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--unit", "label"]])
def test_another_aligner_is_not_mixed_into_one_file(align, folder, capsys, arguments):
    (folder / "list.txt").write_text("0.wav\n")
    align(Ear(), folder, "--list", str(folder / "list.txt"))
    code, lines = align(Ear("ear" if arguments else "other"), folder, *arguments)
    assert (code, len(lines)) == (2, 1)
    assert "'0.wav' was aligned by ear without labels" in capsys.readouterr().err


def test_what_is_no_unfinished_line_of_ours_is_left_in_place(align, folder, tmp_path):
    output = tmp_path / "words.jsonl"
    for content in ("a note", '{"name": 1'):
        output.write_text(content)
        assert align(Ear(), folder)[0] == 2
        assert output.read_text() == content


def test_a_whole_last_line_without_a_line_feed_is_kept(align, folder, tmp_path):
    (tmp_path / "words.jsonl").write_text(json.dumps({"file_name": "0.wav", "text": "by hand", "words": []}))
    code, lines = align(Ear(), folder)
    assert code == 0
    assert [line["text"] for line in lines] == ["by hand", "um", "um", "um"]


def test_a_list_with_names_that_do_not_exist_is_refused_before_the_work(align, folder, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("0.wav\n8.wav\n9.wav\n")
    assert align(Ear(), folder, "--list", str(tmp_path / "list.txt")) == (2, [])
    assert "2 of 3 names are not in" in capsys.readouterr().err


def test_a_filter_may_be_given_in_several_options(align, folder):
    (folder / "metadata.csv").write_text("file_name,a,b\n0.wav,1,1\n1.wav,1,2\n2.wav,2,2\n")
    _, lines = align(Ear(), folder, "--filter", "a=1", "--filter", "b=2")
    assert [line["file_name"] for line in lines] == ["1.wav"]


def test_an_aligner_that_does_not_exist_is_told_before_recordings_are_read(tmp_path, capsys):
    code = main(["align", str(tmp_path / "none"), "-o", str(tmp_path / "words.jsonl"), "--aligner", "nosuch/ear"])
    assert code == 2
    assert "`--aligner` is 'nosuch/ear', but there is no such file or folder" in capsys.readouterr().err


def test_two_rows_of_one_recording_are_refused_by_their_lines(align, folder, capsys):
    (folder / "metadata.csv").write_text("file_name,text\n0.wav,one\n./0.wav,two\n")
    ear = Ear()
    assert align(ear, folder) == (2, [])
    assert ear.heard == []
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder / 'metadata.csv'}, line 3: `file_name` './0.wav' stands in line 2 too" in line


@pytest.mark.parametrize(("column", "options"), [("text", []), ("said", ["--text-column", "said"])])
def test_a_text_that_is_a_list_is_refused_by_file_and_line(align, folder, capsys, column, options):
    rows = [{"file_name": f"{number}.wav", column: ["a", "b"]} for number in range(4)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ear = Ear()
    assert align(ear, folder, *options, "--filter", "file_name=2.wav") == (2, [])
    assert ear.heard == []
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder / 'metadata.jsonl'}, line 3: `{column}` is a list, but must be text; write one text" in line


def test_phones_that_are_a_list_are_refused_by_file_and_line(align, folder, capsys):
    rows = [{"file_name": f"{number}.wav", "text": "a", "phones": ["AH0"]} for number in range(4)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert align(Ear(), folder, "--phones-column", "phones") == (2, [])
    assert "metadata.jsonl, line 1: `phones` is a list" in capsys.readouterr().err.splitlines()[-1]
