# SPDX-License-Identifier: Apache-2.0
"""The recordings that stand one behind the other in an audio file, with tags and zeros between them left out."""

import dataclasses

from .audio_bytes import AudioPart, ByteSource, DamagedAudio
from .audio_chunks import aiff_part, au_part, caf_part, sphere_part, w64_part, wav_part
from .audio_flac import flac_part
from .audio_mpeg import announces_frames, find_mpeg, is_mpeg, mpeg_part
from .audio_pages import ogg_part


_APE_BYTES = 1 << 16
_FRAME_READERS = {"flac": flac_part, "mpeg": mpeg_part, "ogg": ogg_part}
_CHUNK_READERS = {
    "aiff": aiff_part,
    "au": au_part,
    "caf": caf_part,
    "sphere": sphere_part,
    "w64": w64_part,
    "wav": wav_part,
}


def audio_parts(source: ByteSource) -> list[AudioPart]:
    """
    Args:
        source (`ByteSource`): The file.

    Returns:
        `list[AudioPart]`: At least one. Of a container that is not known here, it is the whole file.

    Raises:
        DamagedAudio: If audio is missing, or something follows it that is neither audio nor a tag.
    """
    parts: list[AudioPart] = []
    position = _behind_tags(source, 0)
    while position < source.size or not parts:
        part = _part(source, position)
        if part is None:
            if parts:
                raise DamagedAudio(
                    f"is damaged at byte {position} of {source.size}, where neither audio nor a tag begins; copy or "
                    "convert it anew, or cut off what does not belong to it."
                )
            # A stream that was cut at its front begins within a frame, and mpg123 looks for the next one.
            first_frame = find_mpeg(source)
            if first_frame is None:
                part = AudioPart((range(source.size),), source.size, is_known=False)
            else:
                part = dataclasses.replace(mpeg_part(source, first_frame), is_known=False)
        parts.append(part)
        begin, position = position, _behind_tags(source, part.stop)
        if position < source.size:
            _check_no_hole(source, begin, part.stop, position)
    return parts


def _check_no_hole(source: ByteSource, begin: int, stop: int, following: int) -> None:
    # Zeros between MPEG frames that nothing announces: of one recording, not between two.
    begins = (begin, following)
    is_one = all(_container(source, at) == "mpeg" and not announces_frames(source, at) for at in begins)
    if is_one and source.after_zeros(stop) == following > stop:
        raise DamagedAudio(
            f"is damaged: from byte {stop} to {following} there are zeros between MPEG frames; copy or download it "
            "anew, or cut off what is no part of it."
        )


def _part(source: ByteSource, position: int) -> AudioPart | None:
    kind = _container(source, position)
    if kind is None:
        return None
    if kind in _FRAME_READERS:
        return _FRAME_READERS[kind](source, position)
    return _CHUNK_READERS[kind](source, position, lambda place: _is_boundary(source, place))


def _container(source: ByteSource, position: int) -> str | None:
    head = source.read(position, 40)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] in (b".snd", b"dns.") and len(head) >= 24:
        return "au"
    if head[:4] == b"riff" and head[24:28] == b"wave":
        return "w64"
    starts = {b"OggS": "ogg", b"fLaC": "flac", b"caff": "caf", b"NIST": "sphere"}
    return starts.get(head[:4]) or ("mpeg" if is_mpeg(source, position) else None)


def _is_boundary(source: ByteSource, position: int) -> bool:
    # Whether the end, a tag, or another recording is what comes next, apart from zeros.
    position = source.after_zeros(position)
    return (
        position >= source.size or _tag_stop(source, position) is not None or _container(source, position) is not None
    )


def _behind_tags(source: ByteSource, position: int) -> int:
    # Where what is neither a tag nor a zero begins.
    position = source.after_zeros(position)
    while (stop := _tag_stop(source, position)) is not None:
        position = source.after_zeros(stop)
    return position


def _tag_stop(source: ByteSource, position: int) -> int | None:
    # Where the tag that begins here ends; None if there is none.
    head = source.read(position, 32)
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[3], head[4]) < 0xFF and max(head[6:10]) < 0x80:
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return min(source.size, position + 10 + length + (10 if head[5] & 0x10 else 0))
    if head[:3] == b"TAG":
        if head[3:4] == b"+":
            return min(source.size, position + 227)
        return min(source.size, position + 128)
    if head[:8] == b"APETAGEX" and len(head) == 32:
        size, has_header = int.from_bytes(head[12:16], "little"), head[23] & 0x80
        is_header = head[23] & 0x20
        return min(source.size, position + 32 + (size if is_header or not has_header else 0))
    if head[:11] == b"LYRICSBEGIN":
        ends = [source.find(end, position, source.size) for end in (b"LYRICS200", b"LYRICSEND")]
        return min((end + 9 for end in ends if end >= 0), default=None)
    # The first version of APE tags is announced at its end alone.
    at = source.find(b"APETAGEX", position, min(source.size, position + _APE_BYTES))
    footer = source.read(at, 32) if at >= 0 else b""
    if len(footer) == 32 and at + 32 - int.from_bytes(footer[12:16], "little") == position:
        return at + 32
    return None


__all__ = ["audio_parts"]
