# SPDX-License-Identifier: Apache-2.0
"""
Audio in Ogg pages (Vorbis, Opus, FLAC, ...) and in FLAC frames.

libsndfile reads the first of several Ogg streams, takes pages whose checksum is wrong for gaps, and stops where a FLAC
header says so. Here each page and the last frame are looked at. (RFC 3533, RFC 9639)
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from .audio_bytes import AudioPart, ByteSource, DamagedAudio
from .audio_chunks import next_recording


_BEGINS, _ENDS = 2, 4
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# A FLAC frame is rarely longer than 100 KB; the last one is looked for within this many bytes.
_LAST_FRAME_BYTES = 1 << 20
_FLAC_BLOCK_SIZES = {1: 192, 2: 576, 3: 1152, 4: 2304, 5: 4608, **{code: 256 << (code - 8) for code in range(8, 16)}}


class _Page(NamedTuple):
    start: int
    stop: int
    flags: int
    serial: int
    number: int


def ogg_part(source: ByteSource, position: int) -> AudioPart:
    """
    One link of an Ogg file: all streams that begin together.

    Args:
        source (`ByteSource`): The file.
        position (`int`): Where the first page begins.

    Raises:
        DamagedAudio: If a page is cut, damaged or missing, or there are several streams at once.
    """
    numbers: dict[int, int] = {}  # of the newest page of each stream
    ended: set[int] = set()
    all_begun, stop = False, position
    for page in _pages(source, position):
        if page.flags & _BEGINS:
            if all_begun or ended:
                break  # the next link
        elif page.serial not in numbers or page.serial in ended:
            raise DamagedAudio("is damaged: it holds an Ogg page of a stream that has not begun; copy it anew.")
        elif page.number != numbers[page.serial] + 1:
            raise DamagedAudio(
                f"is damaged: the Ogg page {numbers[page.serial]} is followed by page {page.number}; copy it anew."
            )
        else:
            all_begun = True
        numbers[page.serial] = page.number
        if page.flags & _ENDS:
            ended.add(page.serial)
        stop = page.stop
    if len(numbers) > 1:
        raise DamagedAudio(f"holds {len(numbers)} Ogg streams at once; take the audio out of it.")
    if not ended:
        raise DamagedAudio(
            "is truncated: the Ogg page that ends the stream is missing; copy or convert it anew. If there never was "
            "more, `ffmpeg -i IN -c copy OUT` writes that page."
        )
    return AudioPart((range(position, stop),), stop)


def _pages(source: ByteSource, position: int) -> Iterator[_Page]:
    # Whole pages with a true checksum, until something else than a page follows.
    while (header := source.read(position, 282))[:4] == b"OggS":
        if len(header) < 27 or len(header) < 27 + header[26]:
            raise DamagedAudio("is truncated in an Ogg page; copy or convert it anew.")
        flags = header[5]
        serial, number, checksum = struct.unpack("<III", header[14:26])
        length = 27 + header[26] + sum(header[27 : 27 + header[26]])
        page = source.read(position, length)
        if len(page) < length:
            raise DamagedAudio(
                f"truncated in an Ogg page: the last {length - len(page)} bytes are missing; copy or convert it anew."
            )
        if _page_checksum(page[:22] + bytes(4) + page[26:]) != checksum:
            raise DamagedAudio(f"is damaged in the Ogg page at byte {position}: its checksum is wrong; copy it anew.")
        yield _Page(position, position + length, flags, serial, number)
        position += length


def _page_checksum(page: bytes) -> int:
    # CRC-32 with zlib's polynomial, but the highest bit first, and without inverting: zlib's of the mirrored bits.
    mirrored = zlib.crc32(page.translate(_BITS_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def flac_part(source: ByteSource, position: int) -> AudioPart:
    """
    Args:
        source (`ByteSource`): The file.
        position (`int`): Where `fLaC` stands.

    Raises:
        DamagedAudio: If samples are missing, or there are more than the header announces.
    """
    begin = position + 4
    while True:
        header = source.read(begin, 4)
        if len(header) < 4:
            raise DamagedAudio("is truncated in its header; copy or convert it anew.")
        begin += 4 + int.from_bytes(header[1:], "big")
        if header[0] & 0x80:
            break
    if begin > source.size:
        raise DamagedAudio("is truncated in its header; copy or convert it anew.")
    info = source.read(position + 8, 34)
    announced = int.from_bytes(info[13:18], "big") & 0xFFFFFFFFF
    block_size = int.from_bytes(info[:2], "big")

    def begins(place: int) -> bool:
        return source.read(place + 4, 4) in (b"\0\0\0\x22", b"\x80\0\0\x22")

    stop = source.find(b"fLaC", begin, source.size, begins)
    stop = stop if stop >= 0 else source.size
    found = _last_flac_sample(source, begin, stop, block_size)
    if found is None:  # perhaps something else than FLAC follows
        stop = min(stop, next_recording(source, begin))
        found = _last_flac_sample(source, begin, stop, block_size)
    if found is None:
        raise DamagedAudio(
            "is truncated in its last FLAC frame, or followed by what is neither audio nor a tag; copy or convert it "
            "anew."
        )
    if announced and found < announced:
        raise DamagedAudio(f"truncated: {found} of {announced} announced samples; copy or convert it anew.")
    # The number of samples stands in the last 36 bits before the MD5 of the samples.
    before = info[13] & 0xF0
    total = bytes([before | found >> 32]) + (found & 0xFFFFFFFF).to_bytes(4, "big")
    pieces = (range(position, position + 8), info[:13] + total, range(position + 8 + 18, stop))
    return AudioPart(pieces, stop, found)


def _last_flac_sample(source: ByteSource, begin: int, stop: int, block_size: int) -> int | None:
    # Number of the sample behind the last whole frame; None if there is no frame that ends where the audio ends.
    first = max(begin, stop - _LAST_FRAME_BYTES)
    tail = source.read(first, stop - first)
    # Zeros behind the frame leave its checksum at 0; tags do not.
    ends = [len(tail)]
    for tag in re.finditer(rb"TAG|APETAGEX|ID3|LYRICSBEGIN", tail):
        ends.append(tag.start())
        if tag[0] == b"APETAGEX":  # or the last 32 bytes of one
            ends.append(tag.start() + 32 - int.from_bytes(tail[tag.start() + 12 : tag.start() + 16], "little"))
    num_tried, at = 0, len(tail)
    while num_tried < 3 and (at := tail.rfind(b"\xff", 0, at)) >= 0:
        sample = _flac_header(tail[at : at + 16], block_size)
        if sample is None:
            continue
        if any(_flac_checksum(tail[at:end]) == 0 for end in ends if end > at):
            return sample
        num_tried += 1
    return None


def _flac_header(header: bytes, block_size: int) -> int | None:
    # Number of the sample behind the frame that has this header; None if it is no header.
    if len(header) < 7 or header[1] & 0xFE != 0xF8 or header[3] & 1:
        return None
    size_code, rate_code = header[2] >> 4, header[2] & 15
    if size_code == 0 or rate_code == 15:
        return None
    number, at = _coded_number(header, 4)
    extra = {6: 1, 7: 2}.get(size_code, 0)
    num_samples = _FLAC_BLOCK_SIZES.get(size_code, 0) or int.from_bytes(header[at : at + extra], "big") + 1
    at += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if number is None or at >= len(header) or _checksum(header[:at], 8, 0x07) != header[at]:
        return None
    return number + num_samples if header[1] & 1 else number * block_size + num_samples


def _coded_number(header: bytes, at: int) -> tuple[int | None, int]:
    # UTF-8, extended to 36 bits.
    lead = header[at]
    if lead < 0x80:
        return lead, at + 1
    length = 8 - (lead ^ 0xFF).bit_length()
    rest = header[at + 1 : at + length]
    if not 2 <= length <= 7 or len(rest) < length - 1 or any(byte & 0xC0 != 0x80 for byte in rest):
        return None, at
    number = lead & (0x7F >> length)
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, at + length


def _checksum(content: bytes, num_bits: int, polynomial: int) -> int:
    remainder, top, mask = 0, 1 << (num_bits - 1), (1 << num_bits) - 1
    for byte in content:
        remainder ^= byte << (num_bits - 8)
        for _ in range(8):
            remainder = (remainder << 1 ^ (polynomial if remainder & top else 0)) & mask
    return remainder


_CRC16 = [_checksum(bytes([byte]), 16, 0x8005) for byte in range(256)]


def _flac_checksum(frame: bytes) -> int:
    # 0 if the last two bytes are the checksum of those before.
    remainder = 0
    for byte in frame:
        remainder = (remainder << 8 & 0xFFFF) ^ _CRC16[remainder >> 8 ^ byte]
    return remainder


__all__ = ["flac_part", "ogg_part"]
