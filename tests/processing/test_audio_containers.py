# SPDX-License-Identifier: Apache-2.0
"""Audio containers of all kinds are found, and read to the last sample and not beyond."""

import io
import struct

import numpy as np
import pytest
import soundfile

from speech_tokenizers import AudioFileError, find_audio_files, load_audio
from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES


RATE = 16000
ID3V1 = b"TAG" + b"t" * 125


def written(num_samples: int, kind: str, subtype: str, channels: int = 1) -> tuple[bytes, np.ndarray]:
    # A file of libsndfile, and what it holds: `(num_channels, num_samples)`.
    file = io.BytesIO()
    samples = np.random.default_rng(num_samples).normal(0, 0.1, (num_samples, channels))
    soundfile.write(file, samples, RATE, subtype, format=kind)
    found, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32", always_2d=True)
    return file.getvalue(), found.T


@pytest.mark.parametrize("num_samples", [16000, 16001, 16002, 16003, 16007])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_a_w64_of_any_length_holds_its_samples_alone(num_samples, subtype):
    content, samples = written(num_samples, "W64", subtype)
    assert samples.shape == (1, num_samples)
    # libsndfile leaves out the padding at the end, and other writers do not.
    padded = content + bytes(-len(content) % 8)
    for whole in (content, padded):
        assert np.array_equal(load_audio(whole, RATE, mono=False), samples)
    for joined in (content + content, padded + padded):
        assert np.array_equal(load_audio(joined, RATE, mono=False), np.concatenate([samples, samples], axis=1))


@pytest.mark.parametrize("num_samples", [16000, 16001, 16003])
@pytest.mark.parametrize("subtype", ["FLOAT", "ULAW"])
def test_padding_that_a_w64_counts_as_audio_is_none_where_the_number_of_samples_is_told(num_samples, subtype):
    # As FFmpeg writes it.
    content, samples = written(num_samples, "W64", subtype)
    padding = bytes(-len(content) % 8)
    at = content.index(b"data\xf3") + 16
    size = int.from_bytes(content[at : at + 8], "little") + len(padding)
    content = content[:at] + struct.pack("<q", size) + content[at + 8 :] + padding
    assert content.index(b"fact") < at
    assert np.array_equal(load_audio(content, RATE, mono=False), samples)


@pytest.mark.parametrize("num_frames", [5, 100])
def test_mpeg_audio_of_layer_2_holds_its_frames_alone(num_frames):
    # Silence at 16 kHz and 64 kbit/s: no band gets a bit.
    frame = bytes.fromhex("fff588c4").ljust(576, b"\0")
    for content in (frame * num_frames, ID3V1 + frame * num_frames + ID3V1):
        assert np.array_equal(load_audio(content, RATE), np.zeros(1152 * num_frames))


@pytest.mark.parametrize("num_samples", [8000, 8001])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "PCM_S8", "PCM_16", "PCM_24"])
def test_a_sphere_file_of_any_kind_of_samples_is_read_and_refused_if_cut(subtype, channels, num_samples):
    content, samples = written(num_samples, "NIST", subtype, channels)
    assert np.array_equal(load_audio(content, RATE, mono=False), samples)
    assert np.array_equal(load_audio(content + content, RATE, mono=False), np.concatenate([samples, samples], axis=1))
    with pytest.raises(AudioFileError, match="truncated: the last 5 bytes are missing"):
        load_audio(content[:-5], RATE)


def chunks(content: bytes) -> dict[bytes, range]:
    # The bodies of the chunks of a CAF file.
    found, at = {}, 8
    while at + 12 <= len(content):
        name, size = struct.unpack(">4sq", content[at : at + 12])
        found[name] = range(at + 12, at + 12 + size)
        at += 12 + size
    return found


def with_table_behind(content: bytes) -> bytes:
    # As others than libsndfile write it.
    table, data = chunks(content)[b"pakt"], chunks(content)[b"data"]
    before, moved = content[: table.start - 12], content[table.start - 12 : table.stop]
    return before + content[table.stop : data.stop] + moved + content[data.stop :]


@pytest.mark.parametrize("num_samples", [100, 16000, 65536, 300_000])
@pytest.mark.parametrize("subtype", ["ALAC_16", "ALAC_24"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("is_silent", [False, True])
def test_alac_is_read(num_samples, subtype, channels, is_silent):
    file = io.BytesIO()
    samples = np.random.default_rng(0).normal(0, 0 if is_silent else 0.1, (num_samples, channels))
    soundfile.write(file, samples, RATE, subtype, format="CAF")
    content = file.getvalue()
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    assert expected.shape == samples.shape
    for whole in (content, with_table_behind(content)):
        assert np.array_equal(load_audio(whole, RATE, mono=False), expected.T)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("arranged", [lambda content: content, with_table_behind], ids=["in front", "behind"])
def test_zeros_in_place_of_alac_are_refused(channels, arranged):
    content = arranged(written(65536, "CAF", "ALAC_16", channels)[0])
    data = chunks(content)[b"data"]
    middle = (data.start + data.stop) // 2
    for zeros, packets in ((range(middle, data.stop), "8"), (range(data.stop - 50, data.stop), "16"),
                           (range(data.start + 4, middle), "1")):  # fmt: skip
        damaged = content[: zeros.start] + bytes(len(zeros)) + content[zeros.stop :]
        with pytest.raises(AudioFileError, match=f"packet {packets} of 16, before byte .* ends with zeros"):
            load_audio(damaged, RATE)


@pytest.mark.parametrize("arranged", [lambda content: content, with_table_behind], ids=["in front", "behind"])
def test_alac_that_holds_fewer_packets_than_its_table_is_refused(arranged):
    content = arranged(written(65536, "CAF", "ALAC_16")[0])
    data = chunks(content)[b"data"]
    size = struct.pack(">q", len(data) - 10_000)
    shorter = content[: data.start - 8] + size + content[data.start : data.stop - 10_000] + content[data.stop :]
    with pytest.raises(AudioFileError, match="packet 15 of 16 goes on behind the end of the audio"):
        load_audio(shorter, RATE)


SUFFIXES = {
    "AIFF": [".aif", ".aifc", ".aiff"], "AU": [".au", ".snd"], "AVR": [".avr"], "CAF": [".caf"], "FLAC": [".flac"],
    "IRCAM": [".ircam"], "MP3": [".mp2", ".mp3"], "NIST": [".nist", ".sph"], "OGG": [".oga", ".ogg", ".opus"],
    "PAF": [".paf"], "PVF": [".pvf"], "RF64": [".bw64", ".rf64"], "SDS": [".sds"], "SVX": [".8svx", ".svx"],
    "VOC": [".voc"], "W64": [".w64"], "WAV": [".bwf", ".wav", ".wave"], "WVE": [".wve"],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*it cannot be told whether")
@pytest.mark.parametrize(("kind", "suffix"), [(kind, suffix) for kind in SUFFIXES for suffix in SUFFIXES[kind]])
def test_what_is_found_in_a_folder_is_read(tmp_path, kind, suffix):
    path = tmp_path / f"a{suffix.upper()}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 8000), 8000, format=kind)
    assert find_audio_files(tmp_path) == [path]
    assert len(load_audio(path, 8000)) == 8000


def test_each_suffix_that_is_looked_for_is_one_that_is_read():
    assert sorted(AUDIO_SUFFIXES) == sorted(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
