# SPDX-License-Identifier: Apache-2.0
"""Finding and decoding recordings: folders, metadata, lists, Parquet and streams, without torchcodec."""

import io
import json

import datasets
import numpy as np
import pytest
import soundfile

from speech_tokenizers.processing.recordings import decode_all, decode_recording, load_recordings


@pytest.fixture
def folder_with_metadata(tmp_path, recordings):
    rows = []
    for i, recording in enumerate(recordings):
        name = f"{'train' if i % 2 else 'eval'}/{i}.flac"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, recording, 16000)
        rows.append({"file_name": name, "split": name.split("/")[0], "speaker": f"s{i % 3}"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def file_names(dataset):
    return [row["file_name"] for row in dataset]


def test_folder_without_metadata(audio_folder, recordings, tmp_path):
    decoded = decode_all(load_recordings(str(audio_folder)), 16000, tmp_path)
    assert decoded.names == [f"{i}.wav" for i in range(6)]
    for ours, original in zip(decoded, recordings, strict=True):
        assert ours.dtype == np.int16
        np.testing.assert_allclose(ours / 32767.0, original, atol=1e-4)
    assert [len(recording) for recording in decoded[-2:]] == [len(recordings[4]), len(recordings[5])]
    with pytest.raises(IndexError, match="6 recordings"):
        decoded[6]
    assert decoded.seconds == pytest.approx(sum(map(len, recordings)) / 16000)


def test_metadata_filters_by_value_and_by_list_of_values(folder_with_metadata):
    rows = load_recordings(str(folder_with_metadata), {"split": "train"})
    assert file_names(rows) == ["train/1.flac", "train/3.flac", "train/5.flac"]
    rows = load_recordings(str(folder_with_metadata), {"split": "train", "speaker": ["s1", "s2"]})
    assert file_names(rows) == ["train/1.flac", "train/5.flac"]
    # The file itself may be named, too.
    assert len(load_recordings(str(folder_with_metadata / "metadata.jsonl"))) == 6


def test_csv_metadata(folder_with_metadata):
    (folder_with_metadata / "metadata.jsonl").unlink()
    table = "file_name,speaker\neval/0.flac,a\neval/2.flac,b\n"
    (folder_with_metadata / "metadata.csv").write_text(table, encoding="utf-8")
    assert file_names(load_recordings(str(folder_with_metadata), {"speaker": "b"})) == ["eval/2.flac"]


def test_list_of_files(folder_with_metadata):
    (folder_with_metadata / "list.txt").write_text("eval/4.flac\n\ntrain/1.flac\n", encoding="utf-8")
    rows = load_recordings(str(folder_with_metadata), file_list=str(folder_with_metadata / "list.txt"))
    assert file_names(rows) == ["train/1.flac", "eval/4.flac"]


def test_errors_say_what_is_wrong(folder_with_metadata):
    with pytest.raises(ValueError, match="no column 'spilt' to filter by"):
        load_recordings(str(folder_with_metadata), {"spilt": "train"})
    with pytest.raises(ValueError, match="no recording left"):
        load_recordings(str(folder_with_metadata), {"split": "test"})
    (folder_with_metadata / "metadata.jsonl").write_text('{"path": "eval/0.flac"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="must have a column `file_name`"):
        load_recordings(str(folder_with_metadata))


@pytest.fixture
def parquet_folder(tmp_path, recordings):
    rows = []
    for i, recording in enumerate(recordings):
        buffer = io.BytesIO()
        soundfile.write(buffer, recording, 16000, format="FLAC")
        rows.append({"speech": {"bytes": buffer.getvalue(), "path": f"{i}.flac"}, "speaker": i % 2})
    folder = tmp_path / "parquet"
    folder.mkdir()
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "part.parquet"))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet(parquet_folder, recordings, streaming):
    rows = load_recordings(str(parquet_folder), {"speaker": 1}, audio_column="speech", streaming=streaming)
    decoded = [decode_recording(row, 16000) for row in rows]
    assert [len(audio) for audio in decoded] == [len(recordings[i]) for i in (1, 3, 5)]
    np.testing.assert_allclose(decoded[0], recordings[1], atol=1e-4)


def test_parquet_without_the_column(parquet_folder):
    with pytest.raises(ValueError, match="`audio_column` is 'audio', but"):
        load_recordings(str(parquet_folder))


def test_recordings_are_resampled_and_mixed_to_mono(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone, np.zeros_like(tone)], axis=1), 44100)
    row = load_recordings(str(tmp_path))[0]
    audio = decode_recording(row, 16000)
    assert audio.shape == (16000,)
    assert np.abs(audio[2000:-2000]).max() == pytest.approx(0.5, abs=0.01)


def test_bad_files_are_set_aside_with_a_reason(tmp_path, recordings):
    soundfile.write(tmp_path / "good.wav", recordings[0], 16000)
    (tmp_path / "noise.opus").write_bytes(b"OggS" + bytes(60))
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 16000, subtype="FLOAT")
    decoded = decode_all(load_recordings(str(tmp_path)), 16000, tmp_path / "cache")
    assert decoded.names == ["good.wav"]
    assert sorted(entry["name"] for entry in decoded.rejected) == ["empty.wav", "nan.wav", "noise.opus"]
    assert all(entry["reason"] for entry in decoded.rejected)


def test_nothing_to_decode_is_an_error(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="Not one recording could be decoded"):
        decode_all(load_recordings(str(tmp_path)), 16000, tmp_path / "cache")


def test_second_call_reads_what_the_first_decoded_unless_a_file_changed(audio_folder, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "speech_tokenizers.processing.recordings.decode_recording",
        lambda row, rate: calls.append(row) or decode_recording(row, rate),
    )
    rows = load_recordings(str(audio_folder))
    first = decode_all(rows, 16000, tmp_path)
    second = decode_all(rows, 16000, tmp_path)
    assert len(calls) == 6
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    decode_all(rows, 8000, tmp_path)
    assert len(calls) == 12


def test_metadata_may_name_files_elsewhere(tmp_path, write_audio):
    (tmp_path / "lists").mkdir()
    elsewhere = write_audio(tmp_path / "audio" / "a.wav")
    lines = [{"file_name": str(elsewhere)}, {"file_name": "../audio/a.wav"}]
    (tmp_path / "lists" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for row in load_recordings(str(tmp_path / "lists")):
        assert len(decode_recording(row, 16000)) == 8000


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_cache_of_an_older_version_without_a_checksum_is_used(audio_folder, tmp_path, capsys):
    rows = load_recordings(str(audio_folder))
    decode_all(rows, 16000, tmp_path)
    (path,) = tmp_path.glob("*.json")
    index = json.loads(path.read_text())
    del index["checksum"]
    path.write_text(json.dumps(index))
    decode_all(rows, 16000, tmp_path)
    assert "anew" not in capsys.readouterr().err
    assert "checksum" not in json.loads(path.read_text())


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("*.int16", halve),
        ("*.int16", lambda path: path.unlink()),
        ("*.int16", lambda path: path.write_bytes(bytes(path.stat().st_size))),
        ("*.int16", lambda path: path.write_bytes(path.read_bytes()[:-2] + b"\1\1")),
        ("*.json", halve),
        ("*.json", lambda path: path.write_bytes(b"")),
        ("*.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_cache_is_decoded_anew_with_a_word(audio_folder, tmp_path, capsys, pattern, damage):
    rows = load_recordings(str(audio_folder))
    sound = [recording.copy() for recording in decode_all(rows, 16000, tmp_path)]
    (path,) = tmp_path.glob(pattern)
    damage(path)
    again = decode_all(rows, 16000, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(sound, again, strict=True))
    told = capsys.readouterr().err
    assert str(path) in told
    assert "the recordings are decoded anew" in told
