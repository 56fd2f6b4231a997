# SPDX-License-Identifier: Apache-2.0
"""Positions of Ogg pages that leave audio out are told."""

import io
import struct

import numpy as np
import pytest
import soundfile

from speech_tokenizers import AudioFileError, load_audio


RATE = 16000
ENDS = 4


def encoded(codec: str, num_samples: int, rate: int = RATE, channels: int = 1) -> bytes:
    # Clicks, so that Vorbis takes short blocks as well as long ones.
    file = io.BytesIO()
    noise = np.random.default_rng(num_samples).normal(0, 0.1, (num_samples, channels))
    noise *= (np.arange(num_samples) % 5000 < 1000)[:, None]
    soundfile.write(file, noise, rate, codec, format="OGG")
    return file.getvalue()


def pages(content: bytes) -> list[bytearray]:
    found, at = [], 0
    while at < len(content):
        length = 27 + content[at + 26] + sum(content[at + 27 : at + 27 + content[at + 26]])
        found.append(bytearray(content[at : at + length]))
        at += length
    return found


def position(page: bytearray) -> int:
    return struct.unpack("<q", page[6:14])[0]


def put(page: bytearray, granule: int) -> None:
    # With a true checksum.
    page[6:14], page[22:26] = struct.pack("<q", granule), bytes(4)
    remainder = 0
    for byte in page:
        remainder ^= byte << 24
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x104C11DB7 if remainder >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", remainder)


@pytest.mark.parametrize("codec", ["OPUS", "VORBIS"])
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
@pytest.mark.parametrize("num_samples", [1, 300, 8000, 16001, 95993])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_libsndfile_writes_is_read(codec, rate, num_samples, channels):
    content = encoded(codec, num_samples, rate, channels)
    assert load_audio(content, rate, mono=False).shape == (channels, num_samples)


@pytest.mark.parametrize("codec", ["OPUS", "VORBIS"])
@pytest.mark.parametrize("num_samples", [8000, 32000])
def test_a_last_page_without_a_position_is_refused(codec, num_samples):
    found = pages(encoded(codec, num_samples))
    put(found[-1], -1)
    with pytest.raises(AudioFileError, match="its last Ogg page does not say where the audio ends"):
        load_audio(b"".join(found), RATE)


@pytest.mark.parametrize("codec", ["OPUS", "VORBIS"])
def test_a_position_before_the_one_of_the_page_in_front_is_refused(codec):
    content = encoded(codec, 96000)
    assert len(pages(content)) > 5
    for number in (4, -1):
        found = pages(content)
        before = position(found[number - 1])
        put(found[number], before - 1)
        with pytest.raises(AudioFileError, match=f"position {before - 1}, before the page in front .* at {before};"):
            load_audio(b"".join(found), RATE)


@pytest.mark.parametrize("codec", ["OPUS", "VORBIS"])
@pytest.mark.parametrize("num_samples", [8000, 32000, 96000])
def test_a_last_position_before_the_end_of_the_packets_is_refused(codec, num_samples):
    # The longest packets hold 20 ms of Opus, and 64 ms of Vorbis at 16 kHz.
    per_second, longest = (48000, 960) if codec == "OPUS" else (RATE, 1024)
    content = encoded(codec, num_samples)
    for lost in (2 * longest, per_second // 3):
        found = pages(content)
        put(found[-1], position(found[-1]) - lost)
        with pytest.raises(AudioFileError, match="announces the end at position .* but its packets reach to|before"):
            load_audio(b"".join(found), RATE)


@pytest.mark.parametrize("codec", ["OPUS", "VORBIS"])
def test_a_last_position_within_the_last_packet_is_where_the_audio_ends(codec):
    found = pages(encoded(codec, 31990))
    put(found[-1], position(found[-1]) - (30 if codec == "OPUS" else 10))
    assert len(load_audio(b"".join(found), RATE)) == 31980


@pytest.mark.parametrize("has_position", [True, False])
@pytest.mark.parametrize("codec", ["OPUS", "VORBIS"])
def test_an_empty_last_page_ends_the_stream_where_the_page_in_front_does(codec, has_position):
    # 104 samples of Opus are put in front of it, and packets of 320 hold the rest.
    num_samples = 32 * 960 - 104
    found = pages(encoded(codec, num_samples))
    end = position(found[-1])
    last = bytearray(found[-1][:27])
    found[-1][5] &= ~ENDS
    put(found[-1], end)
    last[18:22], last[26] = struct.pack("<I", len(found)), 0
    put(last, end if has_position else -1)
    assert len(load_audio(b"".join([*found, last]), RATE)) == num_samples
