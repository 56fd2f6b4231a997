# SPDX-License-Identifier: Apache-2.0
"""
Audio in Ogg pages (Vorbis, Opus, FLAC, ...).

libsndfile reads the first of several Ogg streams, and takes pages whose checksum is wrong for gaps. Here each page is
looked at. (RFC 3533)
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from .audio_bytes import AudioPart, ByteSource, DamagedAudio
from .audio_granules import OggClock


_BEGINS, _ENDS = 2, 4
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Page(NamedTuple):
    start: int
    stop: int
    flags: int
    serial: int
    number: int
    granule: int
    lacing: bytes
    content: bytes


def ogg_part(source: ByteSource, position: int) -> AudioPart:
    """
    One link of an Ogg file: all streams that begin together.

    Args:
        source (`ByteSource`): The file.
        position (`int`): Where the first page begins.

    Raises:
        DamagedAudio: If a page is cut, damaged or missing, its position is wrong, or there are several streams at
            once.
    """
    numbers: dict[int, int] = {}  # of the newest page of each stream
    ended: set[int] = set()
    all_begun, stop = False, position
    clock = OggClock()
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
        if len(numbers) == 1:  # several are refused below
            clock.add(page.lacing, page.content, page.granule, bool(page.flags & _ENDS))
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
        granule, serial, number, checksum = struct.unpack("<qIII", header[6:26])
        body = 27 + header[26]
        lacing = header[27:body]
        length = body + sum(lacing)
        page = source.read(position, length)
        if len(page) < length:
            raise DamagedAudio(
                f"truncated in an Ogg page: the last {length - len(page)} bytes are missing; copy or convert it anew."
            )
        if _page_checksum(page[:22] + bytes(4) + page[26:]) != checksum:
            raise DamagedAudio(f"is damaged in the Ogg page at byte {position}: its checksum is wrong; copy it anew.")
        yield _Page(position, position + length, flags, serial, number, granule, lacing, page[body:])
        position += length


def _page_checksum(page: bytes) -> int:
    # CRC-32 with zlib's polynomial, but the highest bit first, and without inverting: zlib's of the mirrored bits.
    mirrored = zlib.crc32(page.translate(_BITS_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


__all__ = ["ogg_part"]
