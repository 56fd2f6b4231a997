# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers align` writes the times of words, once for each recording."""

import json

import pytest

from speech_tokenizers.cli import main
from speech_tokenizers.processing import word_alignment
from speech_tokenizers.processing.timed_labels import TimedLabel, TimedWord


class Ear:
    """Hears "um", or gives each word of a text a tenth of a second; refuses the text "no"."""

    name = key = "ear"

    def __init__(self):
        self.heard = []

    def align(self, audio, text=None):
        self.heard.append((len(audio), text))
        if text == "no":
            raise ValueError("too short for the text")
        words = (text or "um").split()
        return [TimedWord(word, index / 10, (index + 1) / 10) for index, word in enumerate(words)]


class SpellingEar(Ear):
    """Says too that a word is an "x"."""

    def align_labels(self, audio, text=None):
        words = self.align(audio, text)
        return words, [TimedLabel("x", word.start, word.end) for word in words]


@pytest.fixture
def folder(tmp_path, write_audio):
    """Three recordings, one of them broken, and metadata without a text for the second."""
    write_audio(tmp_path / "in" / "a.wav", 0.5)
    write_audio(tmp_path / "in" / "b.flac", 0.25, 8000)
    (tmp_path / "in" / "c.wav").write_bytes(b"noise" * 100)
    rows = [
        {"file_name": "a.wav", "text": "Two words", "phones": "T UW1 | W"},
        {"file_name": "b.flac", "text": None, "phones": "B"},
        {"file_name": "c.wav", "text": "lost", "phones": "C"},
    ]
    (tmp_path / "in" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def align(folder, monkeypatch):
    """A function: run the command with an aligner and more arguments; returns the exit code and the lines written."""

    def run(ear, *arguments):
        monkeypatch.setattr(word_alignment, "load_word_aligner", lambda name, device: ear)
        output = folder / "words.jsonl"
        code = main(["align", str(folder / "in"), "-o", str(output), "--aligner", str(folder), *arguments])
        return code, [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []

    return run


def test_a_text_is_timed_and_without_one_it_is_heard(align, folder):
    code, lines = align(Ear())
    first = [{"word": "Two", "start": 0.0, "end": 0.1}, {"word": "words", "start": 0.1, "end": 0.2}]
    second = [{"word": "um", "start": 0.0, "end": 0.1}]
    assert lines == [
        {"file_name": "a.wav", "text": "Two words", "words": first},
        {"file_name": "b.flac", "text": "um", "words": second},
    ]
    # The broken one is set aside with the reason.
    rejected = [json.loads(line) for line in (folder / "words.jsonl.rejected.jsonl").read_text().splitlines()]
    assert code == 1
    assert [entry["name"] for entry in rejected] == ["c.wav"]
    assert "not readable as audio" in rejected[0]["reason"]


def test_a_second_run_adds_what_is_missing_and_heals_the_end(align, folder, write_audio):
    (folder / "files.txt").write_text("a.wav\n")
    assert align(Ear(), "--list", str(folder / "files.txt"))[0] == 0
    with (folder / "words.jsonl").open("a") as file:
        file.write('{"file_name": "b.fl')
    write_audio(folder / "in" / "c.wav", 0.5)
    ear = Ear()
    code, lines = align(ear)
    assert code == 0
    assert [line["file_name"] for line in lines] == ["a.wav", "b.flac", "c.wav"]
    assert ear.heard == [(4000, None), (8000, "lost")]
    assert not (folder / "words.jsonl.rejected.jsonl").exists()


def test_labels_are_written_where_they_are_asked_for(align):
    _, lines = align(SpellingEar(), "--unit", "label", "--text-column", "phones", "--filter", "file_name=b.flac")
    assert lines[0]["labels"] == [{"label": "x", "start": 0.0, "end": 0.1}]
    assert lines[0]["text"] == "B"


def test_phones_of_the_metadata_share_the_words_time(align):
    _, lines = align(Ear(), "--phones-column", "phones", "--filter", "file_name=a.wav")
    assert lines[0]["labels"] == [
        {"label": "T", "start": 0.0, "end": 0.05},
        {"label": "UW", "start": 0.05, "end": 0.1},
        {"label": "W", "start": 0.1, "end": 0.2},
    ]


def test_a_text_that_does_not_fit_is_set_aside(align, folder):
    metadata = folder / "in" / "metadata.jsonl"
    metadata.write_text(json.dumps({"file_name": "a.wav", "text": "no"}) + "\n")
    assert align(Ear()) == (1, [])
    assert "too short for the text" in (folder / "words.jsonl.rejected.jsonl").read_text()


def test_a_folder_without_metadata_is_recognised(align, folder):
    (folder / "in" / "metadata.jsonl").unlink()
    _, lines = align(Ear())
    assert [(line["file_name"], line["text"]) for line in lines] == [("a.wav", "um"), ("b.flac", "um")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text-column", "words"], "`text_column` is 'words'"),
        (["--unit", "label"], "labels need a CTC model"),
        (["--filter", "split"], "COLUMN=VALUE"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, align, capsys):
    assert align(Ear(), *arguments)[0] == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.splitlines()[-1].startswith("speech-tokenizers align: error: ")
    assert "Traceback" not in errors


def test_another_file_is_not_overwritten(align, folder, capsys):
    (folder / "words.jsonl").write_text('["other"]\n')
    assert align(Ear())[0] == 2
    assert "line 1" in capsys.readouterr().err
    assert (folder / "words.jsonl").read_text() == '["other"]\n'
