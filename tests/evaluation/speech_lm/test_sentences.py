# SPDX-License-Identifier: Apache-2.0
import types

import numpy as np
import pytest

from speech_tokenizers.evaluation.speech_lm.sentences import find_recording, read_sentences


CODEC = types.SimpleNamespace(fingerprint=lambda: "levels", encoder_fingerprint=lambda: "levels")


def test_sentences_have_what_the_rows_say(make_rows):
    rows, recordings = make_rows()
    first, second, *_ = read_sentences(rows, 1, "word", CODEC, recordings)
    assert (first.text, first.clip.name, first.pieces) == ("alpha bravo", "s0.wav", ("alpha", "bravo"))
    assert np.array_equal(first.frames, [[1] * 10 + [2] * 11])
    assert first.seconds == 0.21
    assert first.durations(100.0) == [10, 11]
    assert second.durations(100.0) == [10, 11, 12]
    assert len(first.clip.load()) == 21 * 160
    assert first.recording_key != second.recording_key


def test_the_key_of_a_sentence_tells_other_codes_texts_and_times_apart(make_rows):
    rows, _ = make_rows()
    before = [sentence.clip.key for sentence in read_sentences(rows, 2, "word")]
    assert len(set(before)) == 4
    assert [sentence.clip.key for sentence in read_sentences(rows, 2, "word", limit=2)] == before[:2]
    assert before[0] not in [sentence.clip.key for sentence in read_sentences(rows, 1, "word")]
    assert before[0] not in [sentence.clip.key for sentence in read_sentences(rows, 2, "none")]
    make_rows({1: {"text": "charlie delta echo"}})
    after = [sentence.clip.key for sentence in read_sentences(rows, 2, "word")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]


def test_rows_without_a_text_are_left_out_and_told_of(make_rows, capsys):
    rows, _ = make_rows({0: {"text": None}, 2: {"text": " "}})
    assert [sentence.clip.name for sentence in read_sentences(rows, 2)] == ["s1.wav", "s3.wav"]
    assert "2 rows have no text" in capsys.readouterr().err


def test_only_the_chosen_split_is_spoken(make_rows):
    rows, _ = make_rows({number: {"split": "train" if number else "test"} for number in range(4)})
    with pytest.raises(ValueError, match=r"splits test, train; choose the held-out one by --split"):
        read_sentences(rows, 2)
    assert [sentence.clip.name for sentence in read_sentences(rows, 2, split="test")] == ["s0.wav"]
    with pytest.raises(ValueError, match="no row of the split 'dev'; it has test, train"):
        read_sentences(rows, 2, split="dev")


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"num_codebooks": 3}, r"'s0.wav' has 2 codebooks, but the model speaks 3"),
        ({}, {"limit": 0}, "`limit` must be at least 1"),
        ({}, {"split": "test"}, "has no column `split`"),
        ({1: {"id": "s0.wav"}}, {}, "1 ids stand in several rows, first 's0.wav'"),
        ({n: {"text": ""} for n in range(4)}, {}, "has no row with a text"),
        ({}, {"codec": "another"}, "would read as noise"),
    ],
)
def test_rows_that_cannot_be_spoken_are_refused(make_rows, changes, arguments, message):
    rows, _ = make_rows(changes)
    with pytest.raises(ValueError, match=message):
        read_sentences(rows, **{"num_codebooks": 2, **arguments})


def test_a_recording_is_found_by_file_name_by_id_or_without_its_suffix(tmp_path, write_audio):
    path = write_audio(tmp_path / "a" / "b.flac")
    for row in ({"id": "a/b"}, {"id": "a/b.flac"}, {"id": "7", "file_name": "a/b.flac"}):
        assert find_recording(row, tmp_path) == path
    with pytest.raises(ValueError, match="no recording of row 'a/c'"):
        find_recording({"id": "a/c", "file_name": None}, tmp_path)


def test_times_that_are_missing_give_no_durations(make_rows):
    rows, _ = make_rows({0: {"words": None}})
    first, *_ = read_sentences(rows, 2, "word")
    with pytest.raises(ValueError, match="no times of its pieces"):
        first.durations(100.0)
