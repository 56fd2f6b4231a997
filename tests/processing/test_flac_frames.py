# SPDX-License-Identifier: Apache-2.0
"""FLAC frames that are missing, repeated or elsewhere are told; what encoders write is read."""

import io
import itertools
import struct

import numpy as np
import pytest
import soundfile

from speech_tokenizers import AudioFileError, load_audio


RATE = 16000
ID3V2 = b"ID3\x04\0\0\0\0\x01\x00" + b"t" * 128
BLOCK = 4096


def encoded(
    num_samples: int, rate: int = RATE, channels: int = 1, subtype: str = "PCM_16", loud: float = 0.1
) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(num_samples).normal(0, loud, (num_samples, channels))
    noise[:, channels // 2 :] += noise[:, :1]  # so that the sum and the difference of two channels are worth storing
    soundfile.write(file, noise, rate, subtype, format="FLAC")
    return file.getvalue()


def header_bytes(content: bytes) -> int:
    # Where the frames begin.
    at = 4
    while True:
        is_last, at = content[at] & 0x80, at + 4 + int.from_bytes(content[at + 1 : at + 4], "big")
        if is_last:
            return at


def split(content: bytes) -> tuple[bytes, list[bytes]]:
    # The blocks in front, and the frames of a mono file of at most 127.
    starts = [header_bytes(content)]
    while (at := content.find(b"\xff\xf8", starts[-1] + 2)) >= 0:
        if content[at + 3 : at + 5] == content[starts[0] + 3 : starts[0] + 4] + bytes([len(starts)]):
            starts.append(at)
        else:
            content = content[: at + 1] + b"\xff" + content[at + 2 :]
    return content[: starts[0]], [content[a:b] for a, b in itertools.pairwise([*starts, len(content)])]


def with_total(content: bytes, total: int) -> bytes:
    return content[:22] + struct.pack(">I", total) + content[26:]


def checksum(content: bytes, num_bits: int, polynomial: int) -> bytes:
    remainder = 0
    for byte in content:
        remainder ^= byte << (num_bits - 8)
        for _ in range(8):
            remainder = remainder << 1 ^ (polynomial | 1 << num_bits if remainder >> (num_bits - 1) else 0)
    return remainder.to_bytes(num_bits // 8, "big")


def plain_frame(samples: np.ndarray, start: int) -> bytes:
    # A frame of a stream whose blocks vary in size: 16 bits, mono, uncompressed.
    number = bytes([start]) if start < 0x80 else chr(start).encode("utf-8", "surrogatepass")
    header = b"\xff\xf9\x75\x08" + number + struct.pack(">H", len(samples) - 1)
    frame = header + checksum(header, 8, 0x07) + b"\x02" + samples.astype(">i2").tobytes()
    return frame + checksum(frame, 16, 0x8005)


def varying(sizes: list[int], announces: bool) -> tuple[bytes, list[bytes], np.ndarray]:
    # The header, the frames and the samples of a stream whose blocks vary in size.
    samples = np.random.default_rng(0).integers(-9000, 9000, sum(sizes))
    starts = [0, *itertools.accumulate(sizes)]
    frames = [plain_frame(samples[a:b], a) for a, b in itertools.pairwise(starts)]
    rate_and_total = RATE << 44 | 15 << 36 | (len(samples) if announces else 0)
    info = struct.pack(">HH6xQ16x", min(sizes), max(sizes), rate_and_total)
    return b"fLaC\x80\0\0\x22" + info, frames, samples


@pytest.mark.parametrize("num_samples", [1, 15, 4095, 4096, 4097, 40000])
@pytest.mark.parametrize(
    "made",
    [{}, {"channels": 2}, {"channels": 3}, {"subtype": "PCM_24"}, {"subtype": "PCM_S8"}, {"loud": 0.0}]
    + [{"rate": rate} for rate in (8000, 11025, 12345, 44100, 65432, 96000)],
)
def test_what_libsndfile_writes_is_read(num_samples, made):
    content = encoded(num_samples, **made)
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    for whole in (content, with_total(content, 0), ID3V2 + content):
        assert np.array_equal(load_audio(whole, rate, mono=False), samples.T)


def test_blocks_of_tags_pictures_and_padding_are_passed_over():
    head, frames = split(encoded(40000))
    assert head[4] == 0  # another block follows on the description of the stream
    # The picture holds what looks like frames.
    image = frames[2] + frames[3]
    picture = struct.pack(">II9sI16xI", 3, 9, b"image/png", 0, len(image)) + image
    seek_table = struct.pack(">QQH", 0, 0, BLOCK)
    blocks = [(1, bytes(8192)), (3, seek_table), (6, picture), (2, b"appl" + frames[0])]
    inserted = b"".join(bytes([kind]) + len(block).to_bytes(3, "big") + block for kind, block in blocks)
    content = head[:42] + inserted + head[42:] + b"".join(frames)
    assert np.array_equal(load_audio(content, RATE), load_audio(head + b"".join(frames), RATE))


@pytest.mark.parametrize("total", [40000, 0])
@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ([0, 1, 2, 4, 5, 6, 7, 8, 9], "missing, or stand elsewhere: those of the samples 12288 to 16383"),
        ([0, 1, 2, 7, 8, 9], "missing, or stand elsewhere: those of the samples 12288 to 28671"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 9], "missing, or stand elsewhere: those of the samples 32768 to 36863"),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], "missing, or stand elsewhere: those of the samples 0 to 4095"),
        ([5, 6, 7, 8, 9], "missing, or stand elsewhere: those of the samples 0 to"),
        ([0, 1, 3, 2, 4, 5, 6, 7, 8, 9], "missing, or stand elsewhere: those of the samples 8192 to 12287"),
        ([0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9], "sample 8192 follows where sample 12288 belongs"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9], "sample 36864 follows where sample 40000 belongs"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 9, 8], "truncated: 36864 of 40000|those of the samples 32768 to 36863"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1], "truncated: 8192 of 40000|sample 0 follows where sample 40000"),
    ],
)
def test_frames_that_are_missing_twice_or_elsewhere_are_told(order, reason, total):
    head, frames = split(encoded(40000))
    assert len(frames) == 10
    with pytest.raises(AudioFileError, match=reason):
        load_audio(with_total(head + b"".join(frames[number] for number in order), total), RATE)


@pytest.mark.parametrize("gone", [range(3, 5), range(1), range(6)])
def test_frames_in_whose_place_zeros_stand_are_told(gone):
    head, frames = split(encoded(40000))
    kept = [bytes(len(frame)) if number in gone else frame for number, frame in enumerate(frames)]
    start = gone.start * BLOCK
    with pytest.raises(AudioFileError, match=f"those of the samples {start} to {len(gone) * BLOCK + start - 1}"):
        load_audio(head + b"".join(kept), RATE)


@pytest.mark.parametrize("announces", [True, False])
def test_blocks_that_vary_in_size_are_read_and_told_if_they_are_missing(announces):
    sizes = [100, 4096, 33, 700, 4096, 2000, 17]
    head, frames, samples = varying(sizes, announces)
    assert np.array_equal(load_audio(head + b"".join(frames), RATE), (samples / 32768).astype(np.float32))
    with pytest.raises(AudioFileError, match="those of the samples 4196 to 4228"):
        load_audio(head + b"".join(frames[:2] + frames[3:]), RATE)
    with pytest.raises(AudioFileError, match="sample 4929 follows where sample 9025 belongs"):
        load_audio(head + b"".join(frames[:5] + frames[4:]), RATE)


@pytest.mark.parametrize("number", [2, 3, 50_000])
def test_a_header_within_a_frame_is_no_frame(number):
    # The samples of an uncompressed frame may look like anything, even like the header of another one.
    head, frames, _ = varying([4096, 1000], True)
    within = np.frombuffer(plain_frame(np.arange(9), number)[:-1], dtype=">i2")
    samples = np.random.default_rng(1).integers(-9000, 9000, 4096)
    samples[500 : 500 + len(within)] = within
    content = head + plain_frame(samples, 0) + frames[1]
    assert np.array_equal(load_audio(content, RATE)[:4096], (samples / 32768).astype(np.float32))
