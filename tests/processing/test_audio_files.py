# SPDX-License-Identifier: Apache-2.0
import io
import os
import pickle

import numpy as np
import pytest
import soundfile

from speech_tokenizers import AudioFileError, AudioReader, AudioWriter, find_audio_files, load_audio
from speech_tokenizers.processing.audio_bytes import ByteSource, is_whole
from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES, announced_num_samples, find_files


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("sampling_rate", [16000, 44100])
def test_blocks_joined_are_the_whole_file(tmp_path, write_audio, suffix, sampling_rate):
    path = write_audio(tmp_path / f"a.{suffix}", 0.7, sampling_rate, channels=2)
    whole = load_audio(path, 16000)
    assert whole.dtype == np.float32
    assert abs(len(whole) - 0.7 * 16000) <= 1
    with AudioReader(path, 16000, block_seconds=0.0123) as reader:
        blocks = list(reader)
    assert len(blocks) > 10
    assert all(len(block) for block in blocks)
    # libsndfile's MP3 decoder rounds differently where a block begins.
    assert np.allclose(np.concatenate(blocks), whole, atol=1e-6 if suffix == "mp3" else 0, rtol=0)


def test_opus_is_read(tmp_path, write_audio):
    path = write_audio(tmp_path / "a.opus", 0.5, 48000, format="OGG", subtype="OPUS")
    assert len(load_audio(path, 16000)) == 8000


def test_stereo_is_averaged_on_request(tmp_path):
    left, right = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    assert np.allclose(load_audio(tmp_path / "a.wav", 16000), (left + right) / 2, atol=1e-7)
    assert np.array_equal(load_audio(tmp_path / "a.wav", 16000, mono=False), np.stack([left, right]))


def test_resampling_keeps_a_tone(tmp_path):
    time = np.arange(44100) / 44100
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), 44100, subtype="FLOAT")
    resampled = load_audio(tmp_path / "a.wav", 16000)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert len(resampled) == 16000
    assert np.abs(resampled - expected)[1000:-1000].max() < 1e-3


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_truncated_file_is_refused(tmp_path, write_audio, suffix):
    path = write_audio(tmp_path / f"a.{suffix}", 2.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioFileError, match=r"truncated|damaged"):
        load_audio(path, 16000)


def test_a_wav_of_unknown_length_from_a_pipe_is_read(tmp_path, write_audio):
    path = write_audio(tmp_path / "a.wav", 0.5)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)
    assert len(load_audio(path, 16000)) == 8000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"RIFF", "is not readable as audio"),
        (bytes(range(256)) * 20, "is not readable as audio"),
        (b"a text, not audio" * 100, "is not readable as audio"),
    ],
)
def test_a_corrupt_file_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(AudioFileError, match=reason) as caught:
        load_audio(path, 16000)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_files_folders_and_headers_without_samples_are_refused(tmp_path):
    with pytest.raises(AudioFileError, match="no such file"):
        load_audio(tmp_path / "missing.wav", 16000)
    with pytest.raises(AudioFileError, match="is a folder"):
        load_audio(tmp_path, 16000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    with pytest.raises(AudioFileError, match="contains no samples"):
        load_audio(tmp_path / "none.wav", 16000)
    (tmp_path / "headerless.raw").write_bytes(b"12345678")
    with pytest.raises(AudioFileError, match="is not readable as audio"):
        load_audio(tmp_path / "headerless.raw", 16000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, value):
    samples = np.zeros(1000, np.float32)
    samples[500] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioFileError, match="NaN or infinite"):
        load_audio(tmp_path / "a.wav", 16000)


def test_the_error_survives_a_process_boundary(tmp_path):
    error = pickle.loads(pickle.dumps(AudioFileError(tmp_path / "a.wav", "is empty (0 bytes).")))
    assert (error.path, error.reason) == (tmp_path / "a.wav", "is empty (0 bytes).")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_what_is_written_has_the_length_that_was_written(tmp_path, suffix):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 100_001).astype(np.float32)
    with AudioWriter(tmp_path / "new" / f"a.{suffix}", 16000) as writer:
        for start in range(0, len(samples), 70_000):
            writer.write(samples[start : start + 70_000])
    decoded = load_audio(tmp_path / "new" / f"a.{suffix}", 16000)
    assert writer.num_samples == len(decoded) == len(samples)
    if suffix != "ogg":
        assert np.abs(decoded - samples).max() < 1 / 32768


def test_values_beyond_full_scale_are_clipped(tmp_path):
    with AudioWriter(tmp_path / "a.wav", 16000) as writer:
        writer.write(np.array([2.0, -2.0]))
    assert load_audio(tmp_path / "a.wav", 16000) == pytest.approx([1, -1], abs=1e-4)


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")

    def write():
        with AudioWriter(path, 16000) as writer:
            writer.write(np.zeros(1000))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.wav"]


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AudioFileError, match="cannot be written"):
        AudioWriter(tmp_path / "file" / "a.wav", 16000)
    with pytest.raises(AudioFileError, match="choose one of these suffixes"):
        AudioWriter(tmp_path / "a.mp4", 16000)
    with pytest.raises(AudioFileError, match="cannot hold audio at 44100 Hz"):
        AudioWriter(tmp_path / "a.opus", 44100)
    with AudioWriter(tmp_path / "a.wav", 16000) as writer:
        with pytest.raises(ValueError, match="NaN"):
            writer.write(np.array([np.nan]))
        with pytest.raises(ValueError, match=r"shape \(num_samples,\)"):
            writer.write(np.zeros((1, 5)))
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "file"]


def test_files_folders_and_globs_are_found_once_each(tmp_path, write_audio):
    names = ["a.wav", "b/c.flac", "b/d/e.ogg", "b/notes.txt", "b/.hidden.wav", ".cache/f.wav"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    relative = [str(path) for _, path in find_files([tmp_path], AUDIO_SUFFIXES)]
    assert relative == ["a.wav", "b/c.flac", "b/d/e.ogg"]
    assert find_audio_files([tmp_path / "a.wav", tmp_path]) == [tmp_path / name for name in names[:3]]
    assert [str(path) for _, path in find_files([tmp_path / "**" / "*.ogg"], AUDIO_SUFFIXES)] == ["b/d/e.ogg"]
    assert [str(path) for _, path in find_files([tmp_path / "*"], AUDIO_SUFFIXES)] == relative
    assert find_audio_files(tmp_path / "b" / "notes.txt") == [tmp_path / "b" / "notes.txt"]


def test_a_name_that_looks_like_a_glob_but_exists_is_a_file(tmp_path, write_audio):
    path = write_audio(tmp_path / "take[1].wav")
    assert find_audio_files([path]) == [path]


@pytest.mark.parametrize(
    ("pattern", "reason"), [("nope", "no such"), ("*.wav", "no file matches"), ("", "holds no file")]
)
def test_a_pattern_without_a_match_is_refused(tmp_path, pattern, reason):
    with pytest.raises(AudioFileError, match=reason):
        find_audio_files(tmp_path / pattern)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_quick_look_tells_the_length_and_finds_no_fault(tmp_path, write_audio, suffix):
    path = write_audio(tmp_path / f"a{suffix}", 2.0, 48000)
    assert abs(announced_num_samples(path, 16000) - 32000) <= 1
    assert announced_num_samples(path.read_bytes(), 16000) == announced_num_samples(str(path), 16000)
    (tmp_path / "text.wav").write_text("none")
    (tmp_path / "empty.raw").write_bytes(b"")
    for name in ("text.wav", "empty.raw", "missing.wav", "."):
        assert announced_num_samples(tmp_path / name, 16000) is None
    assert announced_num_samples(b"none", 16000) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_quick_look_waits_for_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert announced_num_samples(tmp_path / "pipe.wav", 16000) is None


def test_a_file_is_read_as_it_is_only_where_nothing_is_corrected():
    source = ByteSource(io.BytesIO(b"0123456789"))
    assert is_whole(source, (b"01", range(2, 10), b""))
    assert is_whole(source, (range(0, 4), b"45", range(6, 10)))
    for pieces in ((b"0x", range(2, 10)), (range(0, 9),), (range(1, 10),), (range(0, 4), range(5, 10)), (b"01",)):
        assert not is_whole(source, pieces)
