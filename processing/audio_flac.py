# SPDX-License-Identifier: Apache-2.0
"""
Audio in FLAC frames.

libsndfile stops where the header says so, and puts silence or other samples in place of frames that are missing. Here
the headers of all frames are looked at: each begins at the sample behind the one before. (RFC 9639)
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from .audio_bytes import AudioPart, ByteSource, DamagedAudio
from .audio_chunks import next_recording


_BLOCK_SIZES = {1: 192, 2: 576, 3: 1152, 4: 2304, 5: 4608, **{code: 256 << (code - 8) for code in range(8, 16)}}
# A FLAC frame is rarely longer than 100 KB; the last one is looked for within this many bytes.
_LAST_FRAME_BYTES = 1 << 20
_SEARCH_BYTES = 1 << 22
_HEADER_BYTES = 16


class _Header(NamedTuple):
    # Of a frame.
    start: int  # its first sample where the blocks vary in size, else the number of the frame
    num_samples: int
    kind: tuple[int, int, int]  # whether the blocks vary, rate, bits: the same in all frames of a recording

    def first_sample(self, block_size: int) -> int:
        return self.start if self.kind[0] else self.start * block_size


def flac_part(source: ByteSource, position: int) -> AudioPart:
    """
    Args:
        source (`ByteSource`): The file.
        position (`int`): Where `fLaC` stands.

    Raises:
        DamagedAudio: If samples are missing, stand twice or elsewhere, or there are more than the header announces.
    """
    begin = _behind_blocks(source, position)
    info = source.read(position + 8, 34)
    announced = int.from_bytes(info[13:18], "big") & 0xFFFFFFFFF

    def begins(place: int) -> bool:
        return source.read(place + 4, 4) in (b"\0\0\0\x22", b"\x80\0\0\x22")

    stop = source.find(b"fLaC", begin, source.size, begins)
    stop = stop if stop >= 0 else source.size
    block_size = _block_size(source, begin, info)
    found = _last_sample(source, begin, stop, block_size)
    if found is None:  # perhaps something else than FLAC follows
        stop = min(stop, next_recording(source, begin))
        found = _last_sample(source, begin, stop, block_size)
    if found is None:
        raise DamagedAudio(
            "is truncated in its last FLAC frame, or followed by what is neither audio nor a tag; copy or convert it "
            "anew."
        )
    if announced and found < announced:
        raise DamagedAudio(f"truncated: {found} of {announced} announced samples; copy or convert it anew.")
    _check_order(source, range(begin, stop), block_size, found)
    # The number of samples stands in the last 36 bits before the MD5 of the samples.
    before = info[13] & 0xF0
    total = bytes([before | found >> 32]) + (found & 0xFFFFFFFF).to_bytes(4, "big")
    pieces = (range(position, position + 8), info[:13] + total, range(position + 8 + 18, stop))
    return AudioPart(pieces, stop, found)


def _behind_blocks(source: ByteSource, position: int) -> int:
    # Where the frames begin: behind the description of the stream, the tags, the pictures, ...
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
    return begin


def _block_size(source: ByteSource, begin: int, info: bytes) -> int:
    # Samples of each frame but the last. What the first frame holds is true, and what the header says need not be.
    first = _header(source.read(begin, _HEADER_BYTES))
    return first.num_samples if first is not None and not first.start else int.from_bytes(info[:2], "big")


def _check_order(source: ByteSource, frames: range, block_size: int, found: int) -> None:
    # Each frame begins with the sample behind the one before, from 0 to `found`. A header that does not may be one by
    # chance. It is none by chance if the frame before ends there, or if the next such header follows on it.
    due, place = 0, frames.start
    stray, behind_stray = 0, -1
    for at, header in _headers(source, frames):
        first = header.first_sample(block_size)
        if first == due:
            due, place, behind_stray = first + header.num_samples, at, -1
            continue
        if first == behind_stray:
            raise _gap(due, stray)
        if at == frames.start or _is_frame(source, place, at):
            raise _gap(due, first)
        stray, behind_stray = first, first + header.num_samples
    if due != found:
        raise _gap(due, found)


def _gap(due: int, first: int) -> DamagedAudio:
    if first > due:
        what = f"FLAC frames are missing, or stand elsewhere: those of the samples {due} to {first - 1}"
    else:
        what = f"FLAC frames stand twice, or elsewhere: sample {first} follows where sample {due} belongs"
    return DamagedAudio(f"is damaged: {what}; copy or download it anew.")


def _headers(source: ByteSource, frames: range) -> Iterator[tuple[int, _Header]]:
    # The headers of frames and where they stand, all of the kind of the first one.
    head = source.read(frames.start, 2)
    if head not in (b"\xff\xf8", b"\xff\xf9"):
        head = b"\xff\xf8"
    kind = None
    for position in range(frames.start, frames.stop, _SEARCH_BYTES):
        block = source.read(position, min(_SEARCH_BYTES + _HEADER_BYTES, frames.stop - position))
        at = -1
        while 0 <= (at := block.find(head, at + 1)) < _SEARCH_BYTES:
            header = _header(block[at : at + _HEADER_BYTES])
            if header is not None and kind in (None, header.kind):
                kind = header.kind
                yield position + at, header


def _is_frame(source: ByteSource, start: int, stop: int) -> bool:
    # Whether one frame, or several, lie between these bytes.
    length = stop - start
    return 0 < length <= _LAST_FRAME_BYTES and _frame_checksum(source.read(start, length)) == 0


def _last_sample(source: ByteSource, begin: int, stop: int, block_size: int) -> int | None:
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
        header = _header(tail[at : at + _HEADER_BYTES])
        if header is None:
            continue
        if any(_frame_checksum(tail[at:end]) == 0 for end in ends if end > at):
            return header.first_sample(block_size) + header.num_samples
        num_tried += 1
    return None


def _header(header: bytes) -> _Header | None:
    # None if it is no header.
    if len(header) < 7 or header[1] & 0xFE != 0xF8 or header[3] & 1:
        return None
    size_code, rate_code = header[2] >> 4, header[2] & 15
    if size_code == 0 or rate_code == 15:
        return None
    number, at = _coded_number(header, 4)
    extra = {6: 1, 7: 2}.get(size_code, 0)
    num_samples = _BLOCK_SIZES.get(size_code, 0) or int.from_bytes(header[at : at + extra], "big") + 1
    at += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if number is None or at >= len(header) or _header_checksum(header[:at]) != header[at]:
        return None
    return _Header(number, num_samples, (header[1] & 1, rate_code, header[3] & 0x0E))


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


_CRC8 = [_checksum(bytes([byte]), 8, 0x07) for byte in range(256)]
_CRC16 = [_checksum(bytes([byte]), 16, 0x8005) for byte in range(256)]


def _header_checksum(header: bytes) -> int:
    remainder = 0
    for byte in header:
        remainder = _CRC8[remainder ^ byte]
    return remainder


def _frame_checksum(frame: bytes) -> int:
    # 0 if the last two bytes are the checksum of those before.
    remainder = 0
    for byte in frame:
        remainder = (remainder << 8 & 0xFFFF) ^ _CRC16[remainder >> 8 ^ byte]
    return remainder


__all__ = ["flac_part"]
