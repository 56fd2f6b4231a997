# SPDX-License-Identifier: Apache-2.0
"""Audio that is not what its header says: all of it is read, or an error says what is wrong."""

import io
import os
import struct
import wave

import numpy as np
import pytest
import soundfile

from speech_tokenizers import AudioFileError, AudioReader, load_audio


RATE = 16000
ID3V1 = b"TAG" + b"t" * 125
ID3V2 = b"ID3\x04\0\0\0\0\x01\x00" + b"t" * 128
APE_FOOTER = struct.pack("<8sIIII8x", b"APETAGEX", 2000, 32 + 20, 1, 0)
CONTAINERS = {
    "wav": ("WAV", "PCM_16"), "wav-float": ("WAV", "FLOAT"), "wav-8bit": ("WAV", "PCM_U8"),
    "wav-ima": ("WAV", "IMA_ADPCM"), "wavex": ("WAVEX", "PCM_24"), "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "aifc": ("AIFF", "FLOAT"), "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"), "alac": ("CAF", "ALAC_16"), "sphere": ("NIST", "PCM_16"), "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip


def encoded(container: str, seconds: float = 1.0, rate: int = RATE, channels: int = 1, seed: int = 0) -> bytes:
    file = io.BytesIO()
    kind, subtype = CONTAINERS[container]
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.01, (len(time), channels))
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * 440 * time)[:, None] + noise, rate, subtype, format=kind)
    return file.getvalue()


def wav(data_size: int, riff_size: int, behind: bytes = b"", magic: bytes = b"RIFF", before: bytes = b"") -> bytes:
    samples = encoded("wav")[44:]
    head = magic + struct.pack("<I", riff_size) + b"WAVE" + before + encoded("wav")[12:36]
    return head + b"data" + struct.pack("<I", data_size) + samples + behind


def length(content: bytes) -> int:
    return len(load_audio(content, RATE))


@pytest.mark.parametrize("container", CONTAINERS)
def test_bytes_an_open_file_and_a_path_give_the_same_samples(tmp_path, container):
    content = encoded(container)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b"before" + content)
    expected = load_audio(tmp_path / "a", RATE)
    assert np.array_equal(load_audio(content, RATE), expected)
    with open(tmp_path / "b", "rb") as file:
        file.seek(6)
        assert np.array_equal(load_audio(file, RATE), expected)
        assert not file.closed


def test_a_file_that_cannot_seek_is_read(tmp_path):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    assert length(Pipe(encoded("flac"))) == RATE
    with pytest.raises(AudioFileError, match="binary file"):
        load_audio(io.StringIO("text"), RATE)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"text" * 100, encoded("wav")[:-100]])
def test_what_is_refused_as_a_file_is_refused_as_bytes(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioFileError) as of_file:
        load_audio(tmp_path / "a.wav", RATE)
    with pytest.raises(AudioFileError) as of_bytes:
        load_audio(content, RATE, name="row 7")
    assert of_bytes.value.reason == of_file.value.reason
    assert str(of_bytes.value).startswith("row 7: ")


@pytest.mark.parametrize("container", ["vorbis", "opus"])
def test_two_ogg_streams_are_read_whole(container):
    first, second = encoded(container, 2.0), encoded(container, 1.0, seed=1)
    joined = load_audio(first + second, RATE)
    assert np.array_equal(joined, np.concatenate([load_audio(first, RATE), load_audio(second, RATE)]))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("between", [b"", ID3V1, ID3V2, bytes(1000)], ids=["nothing", "ID3v1", "ID3v2", "zeros"])
def test_two_recordings_in_one_file_are_read_whole(container, between):
    first, second = encoded(container), encoded(container, 0.5, seed=1)
    content = first + between + second
    assert length(content) == length(first) + length(second)
    with AudioReader(content, RATE) as reader:
        assert reader.expected_num_samples == length(first) + length(second)


@pytest.mark.parametrize("first", ["wav", "vorbis", "mp3", "aiff"])
@pytest.mark.parametrize("second", ["wav", "flac", "opus", "mp3"])
def test_two_containers_in_one_file_are_read_whole(first, second):
    assert length(encoded(first) + encoded(second)) == 2 * RATE


def test_what_follows_a_flac_is_read_or_refused():
    for second in ("wav", "opus", "caf"):
        assert length(encoded("flac") + encoded(second)) == 2 * RATE
    # Nothing tells where a FLAC frame ends, and an MPEG frame has no mark to look for.
    with pytest.raises(AudioFileError, match="followed by what is neither audio nor a tag"):
        load_audio(encoded("flac") + encoded("mp3"), RATE)


@pytest.mark.parametrize("container", ["wav", "flac", "vorbis", "mp3"])
@pytest.mark.parametrize("other", [{"rate": 8000}, {"channels": 2}])
def test_a_second_recording_of_another_rate_or_channel_count_is_refused(container, other):
    with pytest.raises(AudioFileError, match="holds 2 recordings one behind the other"):
        load_audio(encoded(container) + encoded(container, **other), RATE)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("cut", [0.3, 0.5, 0.7, 0.99, 1])
def test_a_cut_file_is_refused(container, cut):
    content = encoded(container)
    content = content[:-1] if cut == 1 else content[: round(cut * len(content))]
    for tag in (b"", ID3V1):
        with pytest.raises(AudioFileError, match="truncated|is cut|damaged|more follow"):
            load_audio(content + tag, RATE)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "tag", [ID3V1, ID3V2, b"k" * 20 + APE_FOOTER, bytes(5000)], ids=["ID3v1", "ID3v2", "APE", "0"]
)
def test_tags_and_zeros_behind_the_audio_are_no_audio(container, tag):
    content = encoded(container)
    assert length(content + tag) == length(content)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_tag_in_front_of_the_audio_is_skipped(container):
    content = encoded(container)
    assert np.array_equal(load_audio(ID3V2 + content, RATE), load_audio(content, RATE))


@pytest.mark.parametrize("container", ["wav", "rf64", "au", "caf", "sphere", "flac", "vorbis", "opus", "mp3"])
def test_what_is_neither_audio_nor_a_tag_is_not_passed_over(container):
    with pytest.raises(AudioFileError, match="neither audio nor a tag|no chunk and no tag"):
        load_audio(encoded(container) + b"\x01\x02\x03\x04 something else" * 20, RATE)


@pytest.mark.parametrize("container", ["vorbis", "opus"])
def test_an_ogg_page_that_is_missing_or_damaged_is_noticed(container):
    content = encoded(container, 6.0)
    starts = [at for at in range(len(content)) if content.startswith(b"OggS", at)]
    assert len(starts) > 5
    with pytest.raises(AudioFileError, match="the Ogg page that ends the stream is missing"):
        load_audio(content[: starts[-1]], RATE)
    with pytest.raises(AudioFileError, match="is followed by page"):
        load_audio(content[: starts[4]] + content[starts[5] :], RATE)
    with pytest.raises(AudioFileError, match="checksum is wrong"):
        load_audio(content[: starts[4] + 200] + b"\xaa\xbb" + content[starts[4] + 202 :], RATE)


def mpeg_frames(content: bytes) -> list[int]:
    # Where each frame of an MP3 file at 16 kHz begins; the first one is the header of LAME.
    rates = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
    at, starts = 0, []
    while at + 4 <= len(content):
        starts.append(at)
        at += 72 * rates[content[at + 2] >> 4] * 1000 // RATE + (content[at + 2] >> 1 & 1)
    return starts


def test_an_mp3_without_a_header_is_read_to_its_end_and_refused_if_cut():
    content = encoded("mp3", 4.0)
    starts = mpeg_frames(content)
    bare = content[starts[1] :]
    # libsndfile takes off the delay of the decoder, 529 samples.
    assert length(bare) == 576 * (len(starts) - 1) - 529
    assert abs(length(bare + bare) - 2 * length(bare)) < 1000
    assert abs(length(content + bare) - 4 * RATE - length(bare)) < 1000
    with pytest.raises(AudioFileError, match="truncated: the last 7 bytes of an MPEG frame"):
        load_audio(bare[:-7], RATE)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_zeros_in_place_of_the_rest_of_an_mp3_are_refused_and_zeros_behind_it_are_not(rate, channels):
    content = encoded("mp3", 2.0, rate, channels)
    at = max(content.find(b"Xing"), content.find(b"Info"))
    bare = content[content.index(content[:2], at) :]
    assert length(bare + bytes(5000)) == length(bare)
    for cut in range(len(bare) // 2, len(bare) // 2 + 300, 20):
        # The middle of a frame, save where the cut happens to lie close to the beginning of one.
        if content[:2] not in bare[cut - 8 : cut + 8]:
            with pytest.raises(AudioFileError, match="zeros in place of audio"):
                load_audio(bare[:cut] + bytes(len(bare) - cut), RATE)


def test_zeros_between_mpeg_frames_of_one_recording_are_refused():
    content = encoded("mp3", 4.0)
    starts = mpeg_frames(content)
    bare, hole = content[starts[1] :], bytes(starts[30] - starts[20])
    with pytest.raises(AudioFileError, match="zeros between MPEG frames"):
        load_audio(content[starts[1] : starts[20]] + hole + content[starts[30] :], RATE)
    # Those that the first frame announces are all there, so that another recording follows.
    assert length(content + hole + bare) > length(content)


def test_an_mp3_that_lacks_whole_frames_is_refused():
    content = encoded("mp3")
    starts = mpeg_frames(content)
    for damaged in (content[: starts[-1]], content[: starts[5]] + content[starts[6] :]):
        with pytest.raises(AudioFileError, match=f"truncated: {len(starts) - 2} of {len(starts) - 1} announced"):
            load_audio(damaged, RATE)


def test_an_mp3_that_announces_too_few_frames_is_read_whole():
    content = bytearray(encoded("mp3"))
    at = max(content.find(b"Xing"), content.find(b"Info"))
    content[at + 8 : at + 12] = struct.pack(">I", 10)
    assert length(bytes(content)) == RATE


def test_an_mp3_that_was_cut_in_front_is_read_with_a_warning(tmp_path):
    content = encoded("mp3")[700:]
    (tmp_path / "a.mp3").write_bytes(content)
    for source in (content, tmp_path / "a.mp3"):
        with pytest.warns(UserWarning, match="cannot be told whether this MP3 file is whole"):
            assert 0.7 * RATE < len(load_audio(source, RATE)) < RATE + 1000


def flac_of(total: int) -> bytes:
    content = bytearray(encoded("flac"))
    content[22:26] = struct.pack(">I", total)  # the lower 32 of 36 bits
    return bytes(content)


def test_a_flac_of_unknown_length_is_read_whole_and_refused_if_cut():
    assert length(flac_of(0)) == RATE
    assert length(flac_of(0) + ID3V1 + flac_of(0)) == 2 * RATE
    for cut in (1, 100, 5000):
        with pytest.raises(AudioFileError, match="truncated"):
            load_audio(flac_of(0)[:-cut], RATE)
    with AudioReader(flac_of(0), RATE) as reader:
        assert reader.seconds == 1


def test_a_flac_that_announces_too_few_samples_is_read_whole():
    assert length(flac_of(1000)) == RATE
    with pytest.raises(AudioFileError, match="truncated: 16000 of 20000"):
        load_audio(flac_of(20000), RATE)


UNKNOWN = [
    (0, 0), (0, 36), (0x7FFFF000, 0x7FFFF024), (0x7FFFFFFF, 0x7FFFFFFF), (0x80000000, 0x80000024),
    (0xFFFFFFDB, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFF0000, 0x7FFF0024), (0x7F000000, 0x7F000024),
    (0xFFFFF000, 0), (0xFFFFFFFF, 36),
]  # fmt: skip


@pytest.mark.parametrize(("data_size", "riff_size"), UNKNOWN)
def test_a_wav_from_a_pipe_is_read_to_its_end(data_size, riff_size):
    content = wav(data_size, riff_size)
    assert np.array_equal(load_audio(content, RATE), load_audio(encoded("wav"), RATE))
    assert length(content + content) == 2 * RATE
    assert length(content + ID3V1) == RATE
    with AudioReader(content, RATE) as reader:
        assert reader.seconds == 1


def test_silence_from_a_pipe_is_read_to_its_end():
    header = wav(0, 0)[:44]
    assert np.array_equal(load_audio(header + bytes(2000), RATE), np.zeros(1000))


@pytest.mark.parametrize("size", [2, 1000, 31998])
@pytest.mark.parametrize("riff_size", [32036, 0, 0xFFFFFFFF])
def test_a_wav_whose_data_size_is_too_small_is_read_whole(size, riff_size):
    assert length(wav(size, riff_size)) == RATE


def test_a_wav_with_unexplained_bytes_behind_the_announced_ones_is_refused():
    with pytest.raises(AudioFileError, match="its header announces 1000 bytes of audio, but 31000 more follow"):
        load_audio(wav(1000, 1036), RATE)


def test_what_pythons_wave_writes_to_a_pipe_is_refused():
    # Its header, which cannot be corrected there, announces what is written first.
    first = io.BytesIO()
    with wave.open(first, "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframesraw(encoded("wav")[44:])
    with pytest.raises(AudioFileError, match="its header announces 32000 bytes of audio, but 64000 more follow"):
        load_audio(first.getvalue() + 2 * encoded("wav")[44:], RATE)


LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"


@pytest.mark.parametrize("chunk", [LIST, LIST[:-3], b"xYz9" + struct.pack("<I", 3) + b"abc\0", LIST + ID3V1])
def test_chunks_behind_the_samples_are_no_audio(chunk):
    assert length(wav(32000, 32036 + len(chunk), behind=chunk)) == RATE


@pytest.mark.parametrize(("data_size", "riff_size"), [(0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF000, 0x7FFFF024), (0, 0)])
@pytest.mark.parametrize(
    "chunks", [LIST, b"id3 " + struct.pack("<I", len(ID3V2)) + ID3V2, LIST + LIST + b"JUNK\0\0\0\0"]
)
def test_chunks_behind_samples_of_unknown_number_are_no_audio(data_size, riff_size, chunks):
    content = wav(data_size, riff_size, behind=chunks)
    for behind in (b"", ID3V1):
        assert np.array_equal(load_audio(content + behind, RATE), load_audio(encoded("wav"), RATE))
    assert length(content + content) == 2 * RATE
    # A name among samples is none of a chunk, unless its chunk ends where the file does.
    assert length(wav(data_size, riff_size, behind=b"LIST\x10\0\0\0" + bytes(range(1, 41)))) == RATE + 24


@pytest.mark.parametrize(
    ("tag", "channels", "bits", "block_bytes"),
    [(1, 1, 8, 2), (1, 1, 16, 1), (1, 2, 16, 2), (1, 1, 24, 4), (3, 1, 32, 8)],
)
def test_a_wav_whose_format_contradicts_itself_is_refused(tag, channels, bits, block_bytes):
    content = wav(32000, 32036)
    fmt = struct.pack("<HHIIHH", tag, channels, RATE, RATE * block_bytes, block_bytes, bits)
    with pytest.raises(AudioFileError, match=f"contradicts itself: its `fmt ` chunk announces {block_bytes} bytes"):
        load_audio(content[:20] + fmt + content[36:], RATE)


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_an_odd_number_of_bytes_is_read_with_and_without_padding(padding):
    samples = bytes(np.random.default_rng(0).integers(1, 256, 8001, dtype=np.uint8))
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE, 1, 8)
    content = b"RIFF" + struct.pack("<I", 8037) + b"WAVE" + fmt + b"data" + struct.pack("<I", 8001) + samples + padding
    for behind in (b"", LIST, ID3V1):
        assert length(content + behind) == 8001
    assert length(content + encoded("wav-8bit")) == 8001 + RATE
    list_before = b"LIST" + struct.pack("<I", 13) + b"INFOISFT\1\0\0\0a" + padding
    assert length(wav(32000, 32036, before=list_before)) == RATE


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
@pytest.mark.parametrize("size", [32000, 0, 2**64 - 1, 2**63 - 1])
def test_sizes_of_64_bits_are_read_or_known_as_unknown(magic, size):
    ds64 = b"ds64" + struct.pack("<IQQQI", 28, size, size, size // 2, 0)
    content = wav(0xFFFFFFFF, 0xFFFFFFFF, magic=magic, before=ds64)
    assert length(content) == RATE
    if size == 32000:
        with pytest.raises(AudioFileError, match="truncated: the last 10 bytes"):
            load_audio(content[:-10], RATE)


def test_samples_in_two_chunks_are_refused():
    with pytest.raises(AudioFileError, match="several chunks"):
        load_audio(wav(32000, 32036, behind=b"data" + struct.pack("<I", 4) + b"abcd"), RATE)


@pytest.mark.parametrize(
    ("container", "marker", "offset", "form"),
    [("aiff", b"SSND", 4, ">I"), ("aifc", b"SSND", 4, ">I"), ("au", b".snd", 8, ">I"), ("caf", b"data\0", 4, ">q"),
     ("alac", b"data\0", 4, ">q"), ("w64", b"data\xf3", 16, "<q")],
)  # fmt: skip
def test_unknown_sizes_of_other_containers_are_read_to_the_end(container, marker, offset, form):
    content = encoded(container)
    at = content.index(marker) + offset
    sizes = [0, 0x7FFFFFFF, -1, 2**63 - 1] if form[-1] == "q" else [0, 0x7FFFFFFF, 0x7F000008, 0xFFFFFFFF]
    for size in sizes:
        size_bytes = struct.pack(form, size)
        assert length(content[:at] + size_bytes + content[at + len(size_bytes) :]) == length(content)
    size_bytes = struct.pack(form, 10_000_000)
    with pytest.raises(AudioFileError, match="truncated"):
        load_audio(content[:at] + size_bytes + content[at + len(size_bytes) :], RATE)


def test_an_aiff_that_contradicts_itself_is_refused():
    content = encoded("aiff")
    at = content.index(b"COMM") + 10
    with pytest.raises(
        AudioFileError, match="`COMM` chunk announces 500 samples a channel, and its `SSND` chunk 16000"
    ):
        load_audio(content[:at] + struct.pack(">I", 500) + content[at + 4 :], RATE)


def test_a_container_that_cannot_be_checked_is_read_with_a_warning(tmp_path):
    soundfile.write(tmp_path / "a.voc", np.zeros(1000), RATE, format="VOC", subtype="PCM_16")
    with pytest.warns(UserWarning, match="a.voc: it cannot be told whether this VOC file is whole"):
        assert len(load_audio(tmp_path / "a.voc", RATE)) == 1000


@pytest.mark.parametrize("rate", [1, 999, 2_000_000])
def test_a_rate_that_no_audio_has_is_refused(rate):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(100), rate, format="WAV")
    with pytest.raises(AudioFileError, match=f"has a sampling rate of {rate} Hz by its header"):
        load_audio(file.getvalue(), RATE)


@pytest.mark.parametrize("peak", [1e30, -3.4e38, 32767.0])
def test_samples_that_are_no_audio_are_refused(peak):
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0, peak, 0.0]), RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioFileError, match=r"audio lies in \[-1, 1\]; scale it"):
        load_audio(file.getvalue(), RATE)


@pytest.mark.parametrize("rate", [16000.0, np.float32(16000), np.int64(16000), np.array(16000)])
def test_a_whole_number_is_a_sampling_rate_whatever_its_type(rate):
    assert length(encoded("wav")) == len(load_audio(encoded("wav"), rate))
    with AudioReader(encoded("wav"), rate) as reader:
        assert type(reader.sampling_rate) is int


@pytest.mark.parametrize("rate", [44100.5, True, "16000", float("nan"), float("inf"), 0, -16000, None])
def test_what_is_no_sampling_rate_is_refused(rate):
    with pytest.raises(ValueError, match="`sampling_rate` must be a positive whole number of Hz"):
        load_audio(encoded("wav"), rate)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioFileError, match="is a pipe or a device"):
        load_audio(tmp_path / "a.wav", RATE)


def test_a_name_that_is_too_long_to_exist_is_refused(tmp_path):
    with pytest.raises(AudioFileError, match="cannot be read"):
        load_audio(tmp_path / ("語" * 100 + ".wav"), RATE)
