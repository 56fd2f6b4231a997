# SPDX-License-Identifier: Apache-2.0
"""
Audio in containers of chunks: WAV (RIFF, RIFX, RF64, BW64), AIFF, CAF and W64; and in those of one header: AU, SPHERE.

libsndfile quietly shortens audio to what is there, stops where a header says so, and refuses sizes that it does not
know. Here the chunks are walked, so that the decoder gets a header that is true, or the user an error.
"""

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .audio_bytes import AudioPart, ByteSource, DamagedAudio, check_not_cut, is_unknown_size


# Whether what stands at a place is the end, a tag, or the beginning of another recording.
IsBoundary = Callable[[int], bool]

# How W64, CAF, FLAC and Ogg begin.
_OTHER_STARTS = (
    b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000"),
    b"caff\0\1\0\0desc",
    b"fLaC\0\0\0\x22",
    b"fLaC\x80\0\0\x22",
    b"OggS\0\2\0\0",
)
# Bytes a sample for AIFF-C's compression types of fixed size; 0 if the number of bits tells.
_AIFC_BYTES = {
    b"NONE": 0, b"twos": 0, b"sowt": 0, b"in24": 3, b"in32": 4, b"42ni": 3, b"23ni": 4, b"raw ": 1,
    b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8, b"ulaw": 1, b"ULAW": 1, b"alaw": 1, b"ALAW": 1,
}  # fmt: skip
_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
# Chunks that may stand behind the samples. One of these names is a chunk even if its own end is missing.
_NAMES = (
    b"LIST|list|INFO|fact|PEAK|cue |plst|labl|note|ltxt|smpl|inst|bext|cart|iXML|axml|aXML|chna|link|umid|id3 |ID3 |"
    b"_PMX|JUNK|junk|FLLR|PAD |pad |acid|afsp|DISP|levl|strc|MARK|INST|COMT|NAME|AUTH|(c) |ANNO|APPL|MIDI|FVER|COMM|"
    b"SAXL|AESD|CHAN|desc|pakt|chan|kuki|strg|mark|regn|midi|ovvw|peak|edct|info|uuid|free"
)
_KNOWN_NAMES = frozenset(_NAMES.split(b"|"))
# A packet of ALAC ends with three set bits and less than a byte of zeros; more bytes than one, to be on the safe side.
_MARK_BYTES = 8
# Such chunks are looked for within so many bytes from the end, which is more than a picture of an album takes.
_LAST_CHUNKS_BYTES = 1 << 24


class _Layout(NamedTuple):
    # How the chunks of a container are written.
    size_format: str
    name_bytes: int = 4
    alignment: int = 2
    counts_header: bool = False  # whether a size includes the chunk's own header

    @property
    def header_bytes(self) -> int:
        return self.name_bytes + struct.calcsize(self.size_format)

    def size(self, content: int) -> bytes:
        return struct.pack(self.size_format, content + self.header_bytes * self.counts_header)


class _Chunk(NamedTuple):
    name: bytes  # four bytes
    start: int
    body: int
    size: int  # of the body


_RIFF, _RIFX, _IFF = _Layout("<I"), _Layout(">I"), _Layout(">I")
_CAF = _Layout(">q", alignment=1)
_W64 = _Layout("<q", name_bytes=16, alignment=8, counts_header=True)


def wav_part(source: ByteSource, position: int, is_boundary: IsBoundary) -> AudioPart:
    """
    Args:
        source (`ByteSource`): The file.
        position (`int`): Where the container begins.
        is_boundary (callable): Whether something other than audio begins at a place.

    Raises:
        DamagedAudio: If audio is missing, or it cannot be told where it ends.
    """
    magic = source.read(position, 4)
    layout = _RIFX if magic == b"RIFX" else _RIFF
    (form_size,) = struct.unpack(layout.size_format, source.read(position + 4, 4))
    kept: dict[bytes, bytes] = {}
    data = None
    for chunk in _chunks(source, position + 12, layout):
        if chunk.name == b"data":
            data = chunk
            break
        if chunk.name in (b"fmt ", b"fact", b"ds64") and chunk.size < 1 << 16:
            kept[chunk.name] = source.read(chunk.body, chunk.size)
    if data is None or len(kept.get(b"fmt ", b"")) < 16:
        raise DamagedAudio("is cut, or holds no audio: it has no `fmt ` and `data` chunks; copy or convert it anew.")

    fmt = kept[b"fmt "]
    order = layout.size_format[0]
    tag, block_bytes = _checked_format(fmt, order)
    announced = data.size
    if announced == 0xFFFFFFFF and len(kept.get(b"ds64", b"")) >= 16:
        form_size, announced = struct.unpack("<QQ", kept[b"ds64"][:16])
    length, stop = _extent(source, data.body, announced, _fits(source, position + 8, form_size), layout, is_boundary)

    is_plain = tag in (1, 3, 6, 7) and block_bytes > 0
    chunks = [_written(layout, name, kept[name]) for name in (b"fmt ", b"fact") if name in kept]
    header = b"".join(chunks) + b"data"
    if len(header) + length + 64 < 1 << 32:
        start = magic if magic == b"RIFX" else b"RIFF"
        start += layout.size(len(header) + 8 + length + length % 2) + b"WAVE"
        header = start + header + layout.size(length)
    else:
        sizes = struct.pack("<QQQI", len(header) + 44 + length, length, length // max(1, block_bytes), 0)
        header = b"RF64" + b"\xff" * 4 + b"WAVE" + _written(layout, b"ds64", sizes) + header + b"\xff" * 4
    pieces = (header, range(data.body, data.body + length), b"\0" * (length % 2))
    return AudioPart(pieces, stop, length // block_bytes if is_plain else None)


def aiff_part(source: ByteSource, position: int, is_boundary: IsBoundary) -> AudioPart:
    """See [`wav_part`]."""
    (form_size,) = struct.unpack(">I", source.read(position + 4, 4))
    form_type = source.read(position + 8, 4)
    comm, data = b"", None
    for chunk in _chunks(source, position + 12, _IFF):
        if chunk.name == b"COMM" and chunk.size < 1 << 16:
            comm = source.read(chunk.body, chunk.size)
        if chunk.name == b"SSND":
            data = chunk
        if comm and data or is_unknown_size(chunk.size):
            break
    if data is None or len(comm) < 18:
        raise DamagedAudio("is cut, or holds no audio: it has no `COMM` and `SSND` chunks; copy or convert it anew.")
    offset_bytes = source.read(data.body, 8)
    first = data.body + 8 + struct.unpack(">I", offset_bytes[:4].ljust(4, b"\0"))[0]
    announced = data.size if is_unknown_size(data.size) else max(0, data.size - (first - data.body))
    length, stop = _extent(source, first, announced, _fits(source, position + 8, form_size), _IFF, is_boundary)

    num_channels, announced_frames, num_bits = struct.unpack(">HIH", comm[:8])
    kind = comm[18:22] if form_type == b"AIFC" else b"NONE"
    frame_bytes = num_channels * (_AIFC_BYTES.get(kind, 0) or -(-num_bits // 8))
    num_frames = length // frame_bytes if kind in _AIFC_BYTES and frame_bytes else None
    if num_frames is not None:
        if length == announced and announced_frames not in (0, num_frames):
            raise DamagedAudio(
                f"contradicts itself: its `COMM` chunk announces {announced_frames} samples a channel, and its `SSND` "
                f"chunk {num_frames}; convert it anew."
            )
        comm = comm[:2] + struct.pack(">I", num_frames) + comm[6:]
    chunks = _written(_IFF, b"COMM", comm) + b"SSND" + _IFF.size(8 + length) + bytes(8)
    if form_type == b"AIFC":
        chunks = _written(_IFF, b"FVER", bytes.fromhex("a2805140")) + chunks
    header = b"FORM" + _IFF.size(4 + len(chunks) + length + length % 2) + form_type + chunks
    return AudioPart((header, range(first, first + length), b"\0" * (length % 2)), stop, num_frames)


def caf_part(source: ByteSource, position: int, is_boundary: IsBoundary) -> AudioPart:
    """See [`wav_part`]."""
    description, data, packets = b"", None, None
    for chunk in _chunks(source, position + 8, _CAF):
        if chunk.name == b"desc":
            description = source.read(chunk.body, min(chunk.size, 32))
        if chunk.name == b"pakt":
            packets = chunk
        if chunk.name == b"data":
            data = chunk
            break
    if data is None or len(description) < 32:
        raise DamagedAudio("is cut, or holds no audio: it has no `desc` and `data` chunks; copy or convert it anew.")
    announced = data.size if data.size < 4 else data.size - 4  # a count of edits stands before the samples
    length, stop = _extent(source, data.body + 4, announced, False, _CAF, is_boundary)
    samples = range(data.body + 4, data.body + 4 + length)
    head = (range(position, data.start + 4), _CAF.size(length + 4), range(data.body, samples.stop))
    for chunk in _chunks(source, samples.stop, _CAF) if packets is None else ():
        if chunk.name == b"pakt" and chunk.body <= stop:
            packets = chunk
            break
    if packets is not None and description[8:12] == b"alac":
        _check_alac_packets(source, packets, samples, description)
    frame_bytes = struct.unpack(">I", description[16:20])[0] if description[8:12] in (b"lpcm", b"ulaw", b"alaw") else 0
    return AudioPart((*head, range(samples.stop, stop)), stop, length // frame_bytes if frame_bytes else None)


def _check_alac_packets(source: ByteSource, table: _Chunk, samples: range, description: bytes) -> None:
    # That all packets of the table are there. Each ends with a mark, so that none ends with zeros.
    packet_bytes, packet_frames = struct.unpack(">II", description[16:24])
    content = source.read(table.body, max(0, min(table.size, source.size - table.body)))
    if packet_bytes or not packet_frames or len(content) < 24:
        return  # the table lists something else than the sizes of the packets
    (num_packets,) = struct.unpack(">q", content[:8])
    end = samples.start
    for number, size in zip(range(num_packets), _numbers(content[24:]), strict=False):
        end += size
        if end > samples.stop:
            raise DamagedAudio(
                f"truncated: packet {number + 1} of {num_packets} goes on behind the end of the audio; copy or "
                "convert it anew."
            )
        if size and not any(source.read(end - min(size, _MARK_BYTES), min(size, _MARK_BYTES))):
            raise DamagedAudio(
                f"is damaged: packet {number + 1} of {num_packets}, before byte {end}, ends with zeros in place of "
                "audio; copy or download it anew."
            )


def _numbers(content: bytes) -> Iterator[int]:
    # Of seven bits a byte, the highest ones first; all bytes of a number but the last have the eighth bit set.
    number = 0
    for byte in content:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            yield number
            number = 0


def w64_part(source: ByteSource, position: int, is_boundary: IsBoundary) -> AudioPart:
    """See [`wav_part`]."""
    (form_size,) = struct.unpack("<q", source.read(position + 16, 8).ljust(8, b"\0"))
    fmt, fact, data = b"", b"", None
    for chunk in _chunks(source, position + 40, _W64):
        if chunk.name == b"fmt ":
            fmt = source.read(chunk.body, min(max(chunk.size, 0), 64))
        if chunk.name == b"fact":
            fact = source.read(chunk.body, 8)
        if chunk.name == b"data":
            data = chunk
            break
    if data is None or len(fmt) < 16:
        raise DamagedAudio("is cut, or holds no audio: it has no `fmt ` and `data` chunks; copy or convert it anew.")
    tag, block_bytes = _checked_format(fmt, "<")
    length, stop = _extent(source, data.body, data.size, _fits(source, position, form_size), _W64, is_boundary)
    if tag in (1, 3, 6, 7) and len(fact) == 8:
        # FFmpeg counts the padding as audio.
        fact_length = int.from_bytes(fact, "little") * block_bytes
        padding = source.read(data.body + fact_length, length - fact_length)
        if 0 < len(padding) < _W64.alignment and not any(padding):
            length = fact_length
    pieces = (
        range(position, position + 16),
        struct.pack("<q", data.body + length - position),
        range(position + 24, data.start + 16),
        _W64.size(length),
        range(data.body, data.body + length),  # libsndfile takes padding at the end for samples
    )
    return AudioPart(pieces, stop, length // block_bytes if tag in (1, 3, 6, 7) and block_bytes else None)


def au_part(source: ByteSource, position: int, is_boundary: IsBoundary) -> AudioPart:
    """See [`wav_part`]."""
    order = ">" if source.read(position, 4) == b".snd" else "<"
    offset, announced, encoding, _, num_channels = struct.unpack(order + "5I", source.read(position + 4, 20))
    first = position + offset
    length, stop = _extent(source, first, announced, False, None, is_boundary)
    frame_bytes = _AU_BYTES.get(encoding, 0) * num_channels
    pieces = (range(position, position + 8), struct.pack(order + "I", length), range(position + 12, first + length))
    return AudioPart(pieces, stop, length // frame_bytes if frame_bytes else None)


def sphere_part(source: ByteSource, position: int, is_boundary: IsBoundary) -> AudioPart:
    """See [`wav_part`]."""
    sizes = re.match(rb"NIST_1A\s+(\d{1,9})\s", source.read(position, 32))
    first = position + (int(sizes[1]) if sizes else 1024)
    text = source.read(position, min(first - position, 1 << 16))
    # libsndfile writes some numbers as strings: `sample_n_bytes -s1 1`.
    found = dict(re.findall(rb"(?m)^(sample_count|sample_n_bytes|channel_count) -(?:i|s\d+) (\d{1,18})", text))
    if b"sample_count" not in found or b"shorten" in text or b"wavpack" in text:
        return AudioPart((range(position, source.size),), source.size, is_known=False)
    frame_bytes = int(found.get(b"sample_n_bytes", 2)) * int(found.get(b"channel_count", 1))
    announced = int(found[b"sample_count"]) * frame_bytes
    length, stop = _extent(source, first, announced, False, None, is_boundary)
    return AudioPart((range(position, first + length),), stop, length // frame_bytes if frame_bytes else None)


def _checked_format(fmt: bytes, order: str) -> tuple[int, int]:
    # The kind of samples and the bytes a frame, which must be those of the channels and bits: libsndfile looks at the
    # latter, and makes noise of what differs.
    tag, num_channels, _, _, block_bytes, num_bits = struct.unpack(order + "HHIIHH", fmt[:16])
    if tag == 0xFFFE and len(fmt) >= 26:
        (tag,) = struct.unpack(order + "H", fmt[24:26])
    expected = num_channels * -(-num_bits // 8)
    if tag in (1, 3) and expected not in (0, block_bytes):
        raise DamagedAudio(
            f"contradicts itself: its `fmt ` chunk announces {block_bytes} bytes for a sample of every channel, but "
            f"channels ({num_channels}) of {num_bits} bits need {expected}; correct the header, or convert it anew."
        )
    return tag, block_bytes


def _extent(
    source: ByteSource,
    body: int,
    announced: int,
    form_fits: bool,
    layout: _Layout | None,
    is_boundary: IsBoundary,
) -> tuple[int, int]:
    # Bytes of audio from `body` on, and where what follows begins. `form_fits`: the container claims to end where the
    # file does.
    available = source.size - body
    if available < 0:
        raise DamagedAudio("is truncated in its header; copy or convert it anew.")
    is_unknown = is_unknown_size(announced)
    if announced > available and not is_unknown:
        check_not_cut(announced, available)
    if 0 <= announced <= available:
        stop = _behind(source, body, announced, layout, is_boundary)
        # Nothing but zeros behind a size that means nothing: silence.
        rest = body + announced
        is_silence = (not announced or is_unknown) and rest < source.size == source.after_zeros(rest)
        if stop is not None and not is_silence:
            return announced, stop
        # A container that reaches to the end and holds no chunk behind its samples holds more samples.
        if announced and not is_unknown and not form_fits:
            raise DamagedAudio(
                f"its header announces {announced} bytes of audio, but {available - announced} more follow, which are "
                "no chunk and no tag; if they are audio, correct the header, e.g. with `sox --ignore-length IN OUT`, "
                "else cut them off."
            )
    stop = next_recording(source, body)
    if stop == source.size and source.read(stop - 128, 3) == b"TAG":
        stop -= 128
    return (stop if layout is None else _last_chunks(source, body, stop, layout)) - body, stop


def _last_chunks(source: ByteSource, body: int, stop: int, layout: _Layout) -> int:
    # Where known chunks begin of which the last one ends at `stop`, or `stop`: where the samples end whose number is
    # unknown. That samples look so by chance is next to impossible.
    first = max(body, stop - _LAST_CHUNKS_BYTES)
    names = b"|".join(map(re.escape, _KNOWN_NAMES))
    for match in re.finditer(b"(?=" + names + b")", source.read(first, stop - first)):
        begin = place = first + match.start()
        for chunk in _chunks(source, begin, layout):
            if chunk.name not in _KNOWN_NAMES or not 0 <= chunk.size <= stop - chunk.body:
                break
            place = _after(source, chunk, layout)
            if place >= stop:  # the padding of the last one may be missing
                return begin
    return stop


def _fits(source: ByteSource, position: int, form_size: int) -> bool:
    return form_size == 0 or is_unknown_size(form_size) or abs(position + form_size - source.size) <= 1


def _behind(source: ByteSource, body: int, size: int, layout: _Layout | None, is_boundary: IsBoundary) -> int | None:
    # Where the chunks behind the samples end; None if what follows is none.
    padding = 0 if layout is None else -size % layout.alignment
    for place in (body + size + padding, body + size) if padding else (body + size,):  # some writers forget to pad
        if place >= source.size and source.read(body + size, 1) in (b"", b"\0"):
            return source.size
        if place < source.size and is_boundary(place):
            return place
        if layout is None:
            continue
        for chunk in _chunks(source, place, layout):
            if chunk.name in (b"data", b"SSND"):
                raise DamagedAudio("holds samples in several chunks; convert it anew.")
            if not _is_chunk(source, chunk):
                break
            stop = _after(source, chunk, layout)
            if stop >= source.size or is_boundary(stop):
                return min(stop, source.size)
    return None


def _is_chunk(source: ByteSource, chunk: _Chunk) -> bool:
    if chunk.name in _KNOWN_NAMES:
        return True
    return all(32 <= byte < 127 for byte in chunk.name) and 0 <= chunk.size <= source.size - chunk.body


def next_recording(source: ByteSource, position: int) -> int:
    """Where another header stands among samples whose number is unknown, or the end."""

    def is_wav(place: int) -> bool:
        return (
            source.read(place - 8, 4) in (b"RIFF", b"RIFX", b"RF64", b"BW64") and source.read(place + 4, 3).isalnum()
        )

    def is_au(place: int) -> bool:
        fields = struct.unpack(">6I", source.read(place, 24).ljust(24, b"\0"))
        return 24 <= fields[1] < 1 << 16 and fields[3] in range(1, 28) and 1 <= fields[5] <= 64

    def is_aiff(place: int) -> bool:
        return source.read(place, 4) == b"FORM"

    candidates = [
        source.find(b"WAVE", position, source.size, is_wav) - 8,
        source.find(b".snd", position, source.size, is_au),
        source.find(b"AIFFCOMM", position, source.size, lambda place: is_aiff(place - 8)) - 8,
        source.find(b"AIFCFVER", position, source.size, lambda place: is_aiff(place - 8)) - 8,
        *(source.find(start, position, source.size) for start in _OTHER_STARTS),
    ]
    return min((place for place in candidates if place >= position), default=source.size)


def _chunks(source: ByteSource, position: int, layout: _Layout) -> Iterator[_Chunk]:
    # Chunks one behind the other, until the end of the file.
    while len(header := source.read(position, layout.header_bytes)) == layout.header_bytes:
        (size,) = struct.unpack(layout.size_format, header[layout.name_bytes :])
        size -= layout.header_bytes * layout.counts_header
        chunk = _Chunk(header[:4], position, position + layout.header_bytes, size)
        yield chunk
        if size < 0:
            return
        position = _after(source, chunk, layout)


def _after(source: ByteSource, chunk: _Chunk, layout: _Layout) -> int:
    stop = chunk.body + chunk.size
    padding = -chunk.size % layout.alignment
    # Some writers forget to pad; a name where the padding should be tells.
    return stop if padding and source.read(stop, 4) in _KNOWN_NAMES | {b"data", b"fmt ", b"SSND"} else stop + padding


def _written(layout: _Layout, name: bytes, body: bytes) -> bytes:
    return name + layout.size(len(body)) + body + b"\0" * (len(body) % 2)


__all__ = ["IsBoundary", "aiff_part", "au_part", "caf_part", "next_recording", "sphere_part", "w64_part", "wav_part"]
