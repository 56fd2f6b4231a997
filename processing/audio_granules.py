# SPDX-License-Identifier: Apache-2.0
"""
Positions ("granules") of Ogg pages against the packets that the pages hold.

libsndfile believes the position of the last page, and leaves out what lies behind it. (RFC 3533, RFC 7845, Vorbis I)
"""

from collections.abc import Callable

from .audio_bytes import DamagedAudio


# Samples of an Opus packet at 48 kHz, by the first five bits; and how many frames of that length follow each other.
_OPUS_SAMPLES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4
_NUM_HEADERS = {b"OpusHead": 2, b"\x01vorbis": 3}
_MODE_BITS = 41  # of a mode in the last header of Vorbis: long or short, 32 zeros, 8 bits for the mapping
_MOST_MODES = 64


class OggClock:
    """Adds up what the packets of one Ogg stream hold, and compares it with what its last page announces."""

    def __init__(self) -> None:
        self._open = b""  # a packet that goes on in the next page
        self._headers: list[bytes] = []
        self._num_headers = 0
        self._samples: Callable[[bytes], int] | None = None  # of a packet; None if the codec is another
        self._granule = 0  # of the last page that has one
        self._since = 0  # samples since then
        self._has_unplaced = False  # whether packets ended since then
        self._last_two = (0, 0)  # samples of the two last packets

    def add(self, lacing: bytes, content: bytes, granule: int, is_last: bool) -> None:
        """
        Args:
            lacing (`bytes`): The lengths of the segments of a page.
            content (`bytes`): The segments, one behind the other.
            granule (`int`): The position that the page announces, -1 if no packet ends in it.
            is_last (`bool`): Whether the stream ends with this page.

        Raises:
            DamagedAudio: If the position lies before the one of an earlier page, or that of the last page before the
                end of its packets.
        """
        packets = self._packets(lacing, content)
        for packet in packets:
            self._take(packet)
        if granule == -1:
            self._has_unplaced = self._has_unplaced or bool(packets)
            if is_last and (self._has_unplaced or self._open):
                raise DamagedAudio("is damaged: its last Ogg page does not say where the audio ends; convert it anew.")
            return
        if granule < self._granule:
            raise DamagedAudio(
                f"is damaged: an Ogg page ends at position {granule}, before the page in front of it, which ends at "
                f"{self._granule}; copy or convert it anew."
            )
        expected = self._granule + self._since
        # Encoders fill up the last packet, and some add one more.
        if is_last and granule < expected and granule <= expected - max(1, sum(self._last_two)):
            raise DamagedAudio(
                f"is damaged: its last Ogg page announces the end at position {granule}, but its packets reach to "
                f"{expected}; copy or convert it anew."
            )
        self._granule, self._since, self._has_unplaced = granule, 0, False

    def _packets(self, lacing: bytes, content: bytes) -> list[bytes]:
        # Those that end in this page.
        packets, begin, end = [], 0, 0
        for length in lacing:
            end += length
            if length < 255:
                packets.append(self._open + content[begin:end])
                self._open, begin = b"", end
        self._open += content[begin:end]
        return packets

    def _take(self, packet: bytes) -> None:
        if not self._headers:
            self._num_headers = next((n for name, n in _NUM_HEADERS.items() if packet.startswith(name)), 1)
        if len(self._headers) < self._num_headers:
            self._headers.append(packet)
            if len(self._headers) == self._num_headers:
                self._samples = _counter(self._headers)
        elif self._samples is not None:
            num_samples = self._samples(packet)
            self._since += num_samples
            self._last_two = (self._last_two[1], num_samples)


def _counter(headers: list[bytes]) -> Callable[[bytes], int] | None:
    if headers[0].startswith(b"OpusHead"):
        return _opus_samples
    if headers[0].startswith(b"\x01vorbis") and len(headers[0]) >= 29:
        return _vorbis_counter(headers[0][28], _long_modes(headers[-1]))
    return None


def _opus_samples(packet: bytes) -> int:
    if not packet:
        return 0
    count = packet[0] & 3
    num_frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[count]
    return num_frames * _OPUS_SAMPLES[packet[0] >> 3]


def _vorbis_counter(sizes: int, long_modes: list[bool]) -> Callable[[bytes], int] | None:
    # A packet completes a quarter of the block before and a quarter of its own; the first one completes nothing.
    if not long_modes:
        return None
    block_sizes = (1 << (sizes & 15), 1 << (sizes >> 4))
    mask = (1 << (len(long_modes) - 1).bit_length()) - 1
    before = 0

    def count(packet: bytes) -> int:
        nonlocal before
        mode = packet[0] >> 1 & mask if packet else _MOST_MODES
        if mode >= len(long_modes) or packet[0] & 1:
            return 0
        size = block_sizes[long_modes[mode]]
        num_samples = (before + size) // 4 if before else 0
        before = size
        return num_samples

    return count


def _long_modes(setup: bytes) -> list[bool]:
    # Whether each mode has long blocks. The modes stand at the end of the header, behind what is laborious to read:
    # so they are read backwards, for as long as they look like modes, and their number in front of them decides.
    bits = int.from_bytes(setup.rstrip(b"\0"), "little")
    end = bits.bit_length() - 1  # the last bit that is set ends the header
    found: list[bool] = []
    modes: list[bool] = []
    while len(modes) < _MOST_MODES and end >= _MODE_BITS + 6:
        end -= _MODE_BITS
        mode = bits >> end & (1 << _MODE_BITS) - 1
        if mode >> 1 & (1 << 32) - 1 or mode >> 33 > 63:
            break
        modes.insert(0, bool(mode & 1))
        if bits >> end - 6 & 63 == len(modes) - 1:
            found = list(modes)
    return found


__all__ = ["OggClock"]
