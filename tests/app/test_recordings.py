# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import soundfile

from speech_tokenizers.app.recordings import PageError, read_recording, spoken_length
from speech_tokenizers.processing.audio_files import AudioFileError


def test_a_recording_is_read_at_the_rate_of_the_model(tmp_path, write_audio):
    waveform = read_recording(write_audio(tmp_path / "a.wav", 1.0, sampling_rate=44100, channels=2), 16000)
    assert waveform.shape == (16000,)
    assert waveform.dtype == np.float32


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(60.0, None), (61.0, "lasts 61.0 s, but this page takes at most 60 s"), (1800.0, "lasts 30 min 0 s")],
)
def test_the_limit_of_length_is_told_with_what_to_do(tmp_path, seconds, told):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.sin(np.arange(round(seconds * 8000)) * 0.1) * 0.2, 8000)
    if told is None:
        assert len(read_recording(path, 8000)) == 480000
        return
    with pytest.raises(PageError, match=told) as refused:
        read_recording(path, 8000)
    assert "scissors" in str(refused.value)
    assert "`speech-tokenizers reconstruct`" in str(refused.value)


def test_silence_and_what_is_too_short_are_refused(tmp_path, write_audio):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    with pytest.raises(PageError, match="is silent: there is no speech"):
        read_recording(tmp_path / "silent.wav", 16000)
    with pytest.raises(PageError, match=r"lasts 0.10 s, but 0.5 s are needed"):
        read_recording(write_audio(tmp_path / "a.wav", 0.1), 16000)


def test_nothing_and_a_text_are_refused_without_the_folder_of_the_page(tmp_path):
    with pytest.raises(PageError, match="no recording yet"):
        read_recording(None, 16000)
    (tmp_path / "notes.wav").write_text("These are notes, not audio. " * 40)
    with pytest.raises(AudioFileError, match="notes.wav") as refused:
        read_recording(tmp_path / "notes.wav", 16000)
    assert str(tmp_path) not in str(refused.value)


def test_a_length_in_words():
    assert [spoken_length(seconds) for seconds in (0.04, 119.9, 120.0, 1799.6)] == [
        *("0.0 s", "119.9 s", "2 min 0 s", "30 min 0 s")
    ]
