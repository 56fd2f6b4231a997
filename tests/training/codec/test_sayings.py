# SPDX-License-Identifier: Apache-2.0
"""What is said in a recording is what its metadata say; a recogniser is asked only where they say nothing."""

import json

import numpy as np
import pytest
import soundfile
import torch

from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.training.codec import sayings
from speech_tokenizers.training.codec.arguments import LanguageTeacherArguments
from speech_tokenizers.training.codec.sayings import Sayings


class Recogniser:
    key = "ear"

    def transcribe(self, audio):
        return "heard"


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A function: what is said in recordings of the given texts."""
    monkeypatch.setattr(sayings, "find_model", lambda name, **_: name)
    monkeypatch.setattr(sayings, "load_recognizer", lambda *_: Recogniser())

    def find(*given):
        rows = [{"file_name": f"{index}.wav", "text": text} for index, text in enumerate(given)]
        for row in rows:
            soundfile.write(tmp_path / row["file_name"], np.zeros(1600), 16000)
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recordings = decode_all(load_recordings(str(tmp_path)), 16000, tmp_path / "cache", show_progress=False)
        args = LanguageTeacherArguments(model="none", alignment="interpolate", recognizer="ear")
        found = Sayings(args, recordings, torch.device("cpu"))
        return [found.utterance(index, recordings[index], 16000).find_text() for index in range(len(given))]

    return find


def test_a_text_of_digits_is_not_replaced_by_what_is_heard(texts, capsys):
    assert texts("0", "7", 0, "false") == ["0", "7", "0", "false"]
    assert capsys.readouterr().err == ""


def test_a_recording_without_a_text_is_heard_and_named(texts, capsys):
    assert texts("0", None, "") == ["0", "heard", "heard"]
    assert "2 of 3 recordings (1.wav, 2.wav) have no transcript" in capsys.readouterr().err


def test_one_file_of_word_times_tells_of_a_recording_once(tmp_path):
    from speech_tokenizers.processing.timed_labels import read_word_times

    line = json.dumps({"file_name": "a\u2028.wav", "words": [{"word": "0", "start": 0, "end": 1}]}, ensure_ascii=False)
    (tmp_path / "words.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert read_word_times(tmp_path / "words.jsonl", ["a\u2028.wav"])[0][0].word == "0"
    (tmp_path / "words.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: .* stands in line 1 too"):
        read_word_times(tmp_path / "words.jsonl", ["a\u2028.wav"])


def test_word_times_of_two_recordings_of_one_name_are_refused(tmp_path):
    from speech_tokenizers.processing.timed_labels import read_word_times

    (tmp_path / "words.jsonl").write_text('{"file_name": "a", "words": []}\n')
    with pytest.raises(ValueError, match="two recordings are named 'a'"):
        read_word_times(tmp_path / "words.jsonl", ["a", "b", "a"])
