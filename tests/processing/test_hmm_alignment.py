# SPDX-License-Identifier: Apache-2.0
"""Alignment by Pocketsphinx of the recording that comes with the package, to the text that its credits give."""

from importlib import resources

import numpy as np
import pytest

from speech_tokenizers import load_audio
from speech_tokenizers.processing.hmm_alignment import PocketsphinxWordAligner


pytest.importorskip("pocketsphinx", reason="Pocketsphinx is the aligner; the extra `alignment` installs it")

# "ill-disposed" is no word of the dictionary.
TEXT = """
And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them.
He was not an ill disposed young man,
"""


@pytest.fixture(scope="module")
def aligner():
    return PocketsphinxWordAligner()


@pytest.fixture(scope="module")
def audio():
    path = resources.files("speech_tokenizers").joinpath("recordings", "sense_and_sensibility.flac")
    return load_audio(path, 16000)[: round(10.1 * 16000)]


@pytest.fixture(scope="module")
def aligned(aligner, audio):
    return aligner.align_labels(audio, TEXT)


def test_words_are_found_in_order_as_they_are_written(aligned, audio):
    words, _ = aligned
    assert [word.word for word in words] == TEXT.split()
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0 < times[0] < 0.5
    assert 9.5 < times[-1] < len(audio) / 16000
    assert all(word.end > word.start for word in words)
    # The longer the word, the longer it takes.
    lengths = [len(word.word) for word in words]
    assert np.corrcoef(lengths, [word.end - word.start for word in words])[0, 1] > 0.5


def test_between_sentences_it_is_quiet_and_in_words_it_is_not(aligned, audio):
    words, _ = aligned
    places = [word.word for word in words].index("them."), [word.word for word in words].index("He")
    end, start = words[places[0]].end, words[places[1]].start
    assert places[1] == places[0] + 1
    assert 0.3 < start - end < 0.8

    def level(start: float, end: float) -> float:
        part = audio[round(16000 * start) : round(16000 * end)]
        return 10 * np.log10(np.mean(part**2) + 1e-12)

    spoken = [level(word.start, word.end) for word in words]
    assert level(end + 0.05, start - 0.05) < np.median(spoken) - 15
    assert min(spoken) > level(end + 0.05, start - 0.05)


def test_phones_fill_their_words_without_stress(aligned):
    words, phones = aligned
    assert [phone.label for phone in phones if 0.98 < phone.end <= 1.585] == ["D", "AE", "SH", "W", "UH", "D"]
    starts, ends = ({getattr(item, name) for item in phones} for name in ("start", "end"))
    assert {word.start for word in words} <= starts
    assert {word.end for word in words} <= ends
    assert all(before.end <= after.start + 1e-9 for before, after in zip(phones, phones[1:], strict=False))
    assert not any(phone.label[-1].isdigit() for phone in phones)


def test_given_phones_are_aligned_as_the_words_are(aligner, audio, aligned):
    words, phones = aligned
    groups = [[phone.label for phone in phones if word.start <= phone.start < word.end] for word in words]
    # Stress is ignored.
    groups[3][1] += "1"
    text = " | ".join(" ".join(group) for group in groups)
    same_words, same_phones = aligner.align_labels(audio, text)
    assert [word.word for word in same_words] == [" ".join(group) for group in groups]
    assert [phone.label for phone in same_phones] == [phone.label for phone in phones]
    shifts = [abs(one.start - other.start) for one, other in zip(same_phones, phones, strict=True)]
    assert np.mean(shifts) < 0.01
    # Without bars it is one word.
    (word,), labels = aligner.align_labels(audio[: round(0.64 * 16000)], "AE N D M IH S T ER")
    assert word.word == "AE N D M IH S T ER"
    assert len(labels) == 8


def test_a_recording_that_starts_later_has_later_times(aligner, audio, aligned):
    noise = 1e-4 * np.random.default_rng(0).standard_normal(16000)
    later = aligner.align(np.concatenate([noise, audio]).astype(np.float32), TEXT)
    shifts = [one.start - other.start for one, other in zip(later, aligned[0], strict=True)]
    assert np.median(shifts) == pytest.approx(1.0, abs=0.03)


def test_what_cannot_be_aligned_is_refused_with_the_reason(aligner, audio):
    with pytest.raises(ValueError, match="has no word 'ill-disposed', 'qwxz'"):
        aligner.align(audio, "an ill-disposed young qwxz")
    with pytest.raises(ValueError, match="pocketsphinx has no phone 'XX'"):
        aligner.align(audio, "AO1 R | XX AH0")
    for text in (None, " "):
        with pytest.raises(ValueError, match="aligns a given text only"):
            aligner.align(audio, text)
    with pytest.raises(ValueError, match="does not fit the recording"):
        aligner.align(audio[:1600], TEXT)
    # It is not confused by what went wrong.
    assert [word.word for word in aligner.align(audio, TEXT)] == TEXT.split()
