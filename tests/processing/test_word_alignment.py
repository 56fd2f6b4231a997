# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest

from speech_tokenizers.processing.timed_labels import TimedWord
from speech_tokenizers.processing.word_alignment import (
    CTCWordAligner,
    VoskWordAligner,
    edit_distance,
    load_word_aligner,
    match_words,
    share_word_times,
)


def timed(*words: tuple[str, float, float]) -> list[TimedWord]:
    return [TimedWord(*word) for word in words]


def spans(words: list[TimedWord]) -> list[tuple[float, float]]:
    return [(pytest.approx(word.start), pytest.approx(word.end)) for word in words]


def test_words_get_the_times_of_their_like_and_the_rest_is_shared():
    heard = timed(("chapter", 0.4, 0.8), ("[unk]", 0.8, 1.1), ("mrs", 1.4, 1.8), ("lind", 2.0, 2.4), ("is", 3.4, 3.5))
    words = match_words("Chapter 1. Mrs. — Lind, he is", heard, 4.0)
    assert [word.word for word in words] == ["Chapter", "1.", "Mrs.", "—", "Lind,", "he", "is"]
    # "1." was heard as something else, the dash takes no time, "he" was not heard and has the gap.
    expected = [(0.4, 0.8), (0.8, 1.1), (1.4, 1.8), (1.8, 1.8), (2.0, 2.4), (2.4, 3.4), (3.4, 3.5)]
    assert spans(words) == expected


def test_words_in_a_gap_share_it_by_their_letters():
    assert spans(match_words("a bcd e", timed(("e", 2.0, 3.0)), 3.0)) == [(0.0, 0.5), (0.5, 2.0), (2.0, 3.0)]
    assert spans(match_words("one two", [], 2.0)) == [(0.0, 1.0), (1.0, 2.0)]
    assert match_words("", timed(("a", 0.0, 1.0)), 1.0) == []


def test_parts_of_a_word_are_joined():
    heard = timed(("well-known", 0.0, 1.0), ("al", 1.0, 1.2), ("madi", 1.3, 1.6))
    assert spans(match_words("well known Al-Madi", heard, 2.0)) == [(0.0, 0.5), (0.5, 1.0), (1.0, 1.6)]


@pytest.mark.parametrize("seed", range(20))
def test_times_never_go_back_and_every_word_has_one(seed):
    draw = random.Random(seed)
    words = [draw.choice(["a", "bc", "d-e", "5", "-", "it’s"]) for _ in range(draw.randint(0, 8))]
    said = [draw.choice(["a", "bc", "d", "e", "[unk]", "it's"]) for _ in range(draw.randint(0, 8))]
    heard = [TimedWord(word, draw.uniform(-1, 4), draw.uniform(-1, 4)) for word in said]
    result = match_words(" ".join(words), heard, 3.0)
    assert [word.word for word in result] == words
    times = [time for word in result for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0 <= time <= 3.0 for time in times)


def test_the_edit_distance_of_a_hand_counted_case():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "ab") == edit_distance("ab", "") == 2


def test_a_given_text_keeps_its_words(ctc_folder):
    aligner = load_word_aligner(str(ctc_folder))
    audio = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    words, labels = aligner.align_labels(audio, "Bad 12 – cab")
    assert [word.word for word in words] == ["Bad", "12", "–", "cab"]
    assert [label.label for label in labels] == ["b", "a", "d", "<unk>", "c", "a", "b"]
    assert words == aligner.align(audio, "Bad 12 – cab")
    assert (words[0].start, words[0].end) == (labels[0].start, labels[2].end)
    assert words[2].start == words[2].end == words[1].end
    times = [time for label in labels for time in label[1:]]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= 1


def test_without_a_text_the_words_are_those_of_the_recogniser(ctc_folder):
    aligner = load_word_aligner(str(ctc_folder))
    assert isinstance(aligner, CTCWordAligner)
    audio = np.random.default_rng(1).standard_normal(24000).astype(np.float32)
    text = aligner.recognizer.transcribe(audio)
    assert " ".join(word.word for word in aligner.align(audio)) == " ".join(text.replace("<unk>", "").split())


def test_a_text_that_does_not_fit_is_refused(ctc_folder):
    with pytest.raises(ValueError, match="frames, but there are"):
        load_word_aligner(str(ctc_folder)).align(np.zeros(1600, dtype=np.float32), "abcdefgh" * 2)


def test_a_recording_without_a_frame_is_refused(ctc_folder):
    aligner = CTCWordAligner(str(ctc_folder))
    shortest = aligner.recognizer.shortest_input
    assert len(aligner.align(np.zeros(shortest, np.float32), "a")) == 1
    with pytest.raises(ValueError, match=f"has {shortest - 1} samples at 16 kHz, but .* needs {shortest}"):
        aligner.align(np.zeros(shortest - 1, np.float32), "a")


def test_vosk_hears_a_given_text_as_one_phrase(monkeypatch):
    heard_phrases = []

    class Recognizer:
        name, key = "ear", "ear-1"

        def __init__(self, folder):
            pass

        def results(self, audio, phrase=None):
            heard_phrases.append(phrase)
            return [
                {"text": "it's", "result": [{"word": "it's", "start": 0.1, "end": 0.4, "conf": 1.0}]},
                {"text": ""},
            ]

    monkeypatch.setattr("speech_tokenizers.processing.word_alignment.VoskRecognizer", Recognizer)
    aligner = VoskWordAligner("folder")
    audio = np.zeros(16000, dtype=np.float32)
    assert spans(aligner.align(audio, "It’s -- Al-Madi.")) == [(0.1, 0.4), (0.4, 0.4), (0.4, 1.0)]
    assert aligner.align(audio) == [TimedWord("it's", 0.1, 0.4)]
    assert spans(aligner.align(audio, "...")) == [(0.0, 0.0)]
    assert heard_phrases == ["it's al madi", None]


def test_phones_share_their_word_s_time():
    words = [TimedWord("our", 0.5, 0.8), TimedWord("a", 1.0, 1.1)]
    labels = share_word_times(words, "AW1 ER0 R | AH0")
    assert [label.label for label in labels] == ["AW", "ER", "R", "AH"]
    assert [label.start for label in labels] == pytest.approx([0.5, 0.6, 0.7, 1.0])
    assert [label.end for label in labels] == pytest.approx([0.6, 0.7, 0.8, 1.1])
    assert share_word_times([], "") == []
    with pytest.raises(ValueError, match="2 words, but the phones are those of 1"):
        share_word_times(words, "AW1 ER0")


def test_a_symbol_that_is_spoken_takes_time():
    heard = [TimedWord("rock", 0.0, 0.3), TimedWord("roll", 0.6, 1.0)]
    times = match_words("rock & roll – !", heard, 1.0)
    assert [(word.start, word.end) for word in times[:3]] == [(0.0, 0.3), (0.3, 0.6), (0.6, 1.0)]
    assert all(word.start == word.end for word in times[3:])


def test_turkish_words_are_matched_in_turkish():
    heard = [TimedWord("ışık", 0.0, 0.3), TimedWord("iz", 0.5, 1.0)]
    times = match_words("IŞIK İZ", heard, 1.0, "tr")
    assert [(word.word, word.start, word.end) for word in times] == [("IŞIK", 0.0, 0.3), ("İZ", 0.5, 1.0)]


def test_pocketsphinx_is_not_told_another_language():
    with pytest.raises(ValueError, match="pocketsphinx knows English"):
        load_word_aligner("pocketsphinx", language="tr")
