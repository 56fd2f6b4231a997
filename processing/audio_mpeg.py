# SPDX-License-Identifier: Apache-2.0
"""
Audio in MPEG frames (MP3, MP2), which have no header for the whole.

mpg123 leaves out what it cannot decode and stops where the first Xing frame says so. Here the frames are walked, so
that a cut, a gap and a second recording are seen. (ISO 11172-3, ISO 13818-3)
"""

import struct
from typing import NamedTuple

from .audio_bytes import AudioPart, ByteSource, DamagedAudio


_BITRATES = {  # kbit/s, by (is MPEG 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_BLOCK_BYTES = 1 << 20
_EARLY_BYTES = 1 << 16
_ROOMY_BITRATE = 9  # of the codes
_MOST_ZEROS = 3  # bytes of audio that may be 0 by chance


class _Frame(NamedTuple):
    length: int  # bytes; 0 if the bitrate is free
    num_samples: int
    kind: tuple[int, int, int, bool]  # version, layer, sampling rate, is mono: the same in all frames of a recording
    side_bytes: int  # where a Xing header would begin


class _Announced(NamedTuple):
    frames: int
    bytes: int  # with this frame; 0 if it says nothing


def is_mpeg(source: ByteSource, position: int) -> bool:
    """Whether an MPEG frame begins at `position`, and another one or nothing behind it."""
    frame = _frame(source.read(position, 4))
    if frame is None:
        return False
    following = source.read(position + frame.length, 4)
    if not frame.length:  # a free bitrate: nothing tells where the next frame is
        return position == 0
    if len(following) < 4 or following[:3] in (b"TAG", b"ID3", b"APE", b"LYR", b"\0\0\0"):
        return True
    other = _frame(following)
    return other is not None and other.kind[:3] == frame.kind[:3]


def find_mpeg(source: ByteSource) -> int | None:
    """Where the first of three MPEG frames in a row begins, if it does so early; else `None`."""
    head = source.read(0, _EARLY_BYTES)
    at = -1
    while (at := head.find(b"\xff", at + 1)) >= 0:
        frame = _frame(head[at : at + 4])
        if frame is not None and frame.length and is_mpeg(source, at) and is_mpeg(source, at + frame.length):
            return at
    return None


def mpeg_part(source: ByteSource, position: int) -> AudioPart:
    """
    Args:
        source (`ByteSource`): The file.
        position (`int`): Where the first frame begins.

    Raises:
        DamagedAudio: If a frame is cut or runs into zeros, or fewer are there than the first one announces.
    """
    start = position
    header = source.read(position, 4)
    first = _frame(header)
    assert first is not None
    if not first.length:  # a free bitrate: nothing tells where a frame ends
        return AudioPart((range(position, source.size),), source.size, is_known=False)
    announcing = source.read(position, first.length)
    announced = _announced(announcing, first)
    begin = start if announced is None else start + first.length
    position, num_frames = begin, 0
    last, before_last = range(0), range(0)  # bytes of the two last frames

    buffer, buffer_start = b"", position
    while True:
        if position + 4 > buffer_start + len(buffer):
            buffer, buffer_start = source.read(position, _BLOCK_BYTES), position
        frame = _frame(buffer[position - buffer_start : position - buffer_start + 4])
        if frame is None or not frame.length or frame.kind != first.kind:
            break
        if announced is not None and num_frames >= announced.frames and position - start >= announced.bytes:
            break  # what follows was not there when the header was written
        if position > start and _announced(source.read(position, min(frame.length, 256)), frame) is not None:
            break
        if position + frame.length > source.size:
            missing = position + frame.length - source.size
            raise DamagedAudio(
                f"truncated: the last {missing} bytes of an MPEG frame are missing; copy or convert it anew."
            )
        last, before_last = range(position, position + frame.length), last
        position += frame.length
        num_frames += 1
    if source.read(position, 1) == b"\0":
        _check_not_zeroed(source, last, before_last)
    # Some writers count the frame that announces, too.
    one_less = announced is not None and 0 < announced.bytes <= position - start
    if announced is not None and num_frames < announced.frames - one_less:
        raise DamagedAudio(
            f"truncated: {num_frames} of {announced.frames} announced MPEG frames; copy or convert it anew. If there "
            "never was more, `ffmpeg -i IN -c copy OUT` announces what is there."
        )
    is_layer_3 = first.kind[1] == 3  # in the other layers, mpg123 would take the announcing frame for silence
    if is_layer_3 and (announced is None or num_frames != announced.frames):
        # mpg123 guesses where nothing is announced, and reads no further than it guessed.
        announcing = _announcement(announcing, header, first, num_frames, position - begin)
    pieces = (announcing if is_layer_3 else b"", range(begin, position))
    return AudioPart(pieces, position, num_frames * first.num_samples, 4 * first.num_samples)


def announces_frames(source: ByteSource, position: int) -> bool:
    """Whether the MPEG frame at `position` says how many frames follow, so that a recording begins with it."""
    frame = _frame(source.read(position, 4))
    return frame is not None and _announced(source.read(position, 256), frame) is not None


def _check_not_zeroed(source: ByteSource, last: range, before_last: range) -> None:
    # Zeros behind the last frame are padding, unless they begin within it: then a download or a copy was not finished.
    # Where silence or filling ends frames with zeros, the frame before the last one does so, too.
    content, before = (source.read(frame.start, len(frame)) for frame in (last, before_last))
    num_zeros, usual = (len(frame) - len(frame.rstrip(b"\0")) for frame in (content, before))
    if num_zeros > max(_MOST_ZEROS, usual):
        raise DamagedAudio(
            f"truncated: from byte {last.stop - num_zeros} on, within an MPEG frame, there are zeros in place of "
            "audio; copy, download or convert it anew."
        )


def _announcement(announcing: bytes, header: bytes, first: _Frame, num_frames: int, num_bytes: int) -> bytes:
    # A Xing frame that announces what is there. That of the file is mended, lest its delay and padding be lost.
    at = 4 + first.side_bytes
    if announcing[at : at + 4] in (b"Xing", b"Info"):
        return announcing[: at + 8] + struct.pack(">I", num_frames) + announcing[at + 12 :]
    # A bitrate with enough room, and no checksum.
    header = bytes([header[0], header[1] | 1, _ROOMY_BITRATE << 4 | header[2] & 0x0C, header[3]])
    frame = _frame(header)
    assert frame is not None
    content = header + bytes(first.side_bytes)
    content += b"Xing" + struct.pack(">III", 3, num_frames, num_bytes + frame.length)
    return content.ljust(frame.length, b"\0")


def _announced(content: bytes, frame: _Frame) -> _Announced | None:
    # What this frame announces, if it is a header of Xing, LAME or Fraunhofer and no audio.
    at = 4 + frame.side_bytes
    if content[at : at + 4] in (b"Xing", b"Info"):
        flags, *fields = struct.unpack(">III", content[at + 4 : at + 16].ljust(12, b"\0"))
        if not flags & 1 or not fields[0]:
            return None
        return _Announced(fields[0], fields[1] if flags & 2 else 0)
    if content[36:40] == b"VBRI":
        num_bytes, num_frames = struct.unpack(">II", content[46:54].ljust(8, b"\0"))
        return _Announced(num_frames, num_bytes) if num_frames else None
    return None


def _frame(header: bytes) -> _Frame | None:
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate_code, rate_code = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate_code == 15 or rate_code == 3:
        return None
    is_first, is_mono = version == 3, header[3] >> 6 == 3
    rate = _RATES[version][rate_code]
    bitrate = _BITRATES[is_first, layer][bitrate_code] * 1000
    padding = header[2] >> 1 & 1
    num_samples = 384 if layer == 1 else 576 if layer == 3 and not is_first else 1152
    length = (12 * bitrate // rate + padding) * 4 if layer == 1 else num_samples // 8 * bitrate // rate + padding
    side_bytes = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[is_first, is_mono]
    return _Frame(length if bitrate else 0, num_samples, (version, layer, rate, is_mono), side_bytes)


__all__ = ["announces_frames", "find_mpeg", "is_mpeg", "mpeg_part"]
