# SPDX-License-Identifier: Apache-2.0
"""
Another voice for the same words: fundamental frequency and formants changed, the length kept.

Periods of the voice are cut out around marks, one a period, and added up again at other distances (TD-PSOLA:
Moulines and Charpentier 1990, "Pitch-synchronous waveform processing techniques for text-to-speech synthesis using
diphones"). Stretching each of them in time moves the formants. What is unvoiced is cut into pieces of like length,
which stay where they are.
"""

import numpy as np
from scipy import fft

from .pitch_tracking import PitchTrack, track_pitch
from .sampling_rates import whole_sampling_rate


OVERSAMPLING = 4  # of the waveform that pieces are read from, between whose samples is interpolated
UNVOICED_SECONDS = 0.006  # between pieces of what is unvoiced
LOWEST_F0 = 30.0  # Hz; a wider range could ask for less


def change_voice(
    waveform: np.ndarray,
    sampling_rate: float,
    formant_ratio: float = 1.0,
    f0_ratio: float = 1.0,
    f0_range_ratio: float = 1.0,
    f0_floor: float = 60.0,
    f0_ceiling: float = 500.0,
    narrow: bool = True,
) -> np.ndarray:
    """
    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): Speech of one speaker.
        sampling_rate (`int`): Sampling rate of the waveform, in Hz.
        formant_ratio (`float`): Factor on the frequencies of the formants; above 1, the vocal tract is shorter.
        f0_ratio (`float`): Factor on the median of the fundamental frequency.
        f0_range_ratio (`float`): Factor on the distance in Hz of the fundamental frequency from its median.
        f0_floor, f0_ceiling (`float`), narrow (`bool`): Range in which the fundamental frequency of `waveform` is
            looked for, in Hz, and whether the speaker's own range is found within it; see [`track_pitch`].

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float64: Changed speech; an unchanged copy if nothing in it is voiced.

    Raises:
        ValueError: If a ratio is not positive; see also [`track_pitch`].
    """
    for name, ratio in (("formant", formant_ratio), ("f0", f0_ratio), ("f0_range", f0_range_ratio)):
        if not 0 < ratio < np.inf:
            raise ValueError(f"`{name}_ratio` must be positive, but got {ratio}.")
    sampling_rate = whole_sampling_rate(sampling_rate)
    track = track_pitch(waveform, sampling_rate, f0_floor, f0_ceiling, narrow=narrow)
    waveform = np.asarray(waveform, np.float64)
    if not track.voiced.any() or formant_ratio == f0_ratio == f0_range_ratio == 1:
        return waveform.copy()

    stretches = []  # of pieces: where each belongs, where it is cut out, and how far it reaches, all in samples
    for first, f0 in _voiced_stretches(track, sampling_rate, len(waveform)):
        marks = _period_marks(waveform, first, sampling_rate / f0)
        wanted = f0_ratio * (track.median + f0_range_ratio * (f0 - track.median))
        wanted = np.clip(wanted, LOWEST_F0, sampling_rate / 8)
        cycles = np.cumsum(wanted / sampling_rate)
        samples = np.arange(len(f0))
        cycles -= np.interp(marks[0] - first, samples, cycles)
        target = first + np.interp(np.arange(np.ceil(cycles[0]), cycles[-1]), cycles, samples)
        source = marks[np.searchsorted((marks[1:] + marks[:-1]) / 2, target)]
        # As far as the next period, before and after: more would add up to a louder voice where it is higher.
        reach = np.minimum(
            sampling_rate / formant_ratio / np.interp(source - first, samples, f0),
            sampling_rate / np.interp(target - first, samples, wanted),
        )
        stretches.append((target, source, reach))
    pieces = _with_unvoiced(stretches, UNVOICED_SECONDS * sampling_rate, len(waveform))
    return _overlap_add(_oversampled(waveform, formant_ratio), len(waveform), *pieces, formant_ratio)


def _voiced_stretches(track: PitchTrack, sampling_rate: int, num_samples: int) -> list[tuple[int, np.ndarray]]:
    # The first sample of every run of voiced frames, and the frequency at each of its samples.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], track.voiced, [0]])))
    half = (track.times[1] - track.times[0]) / 2 if len(track.times) > 1 else 0.5 / track.frequencies.max()
    stretches = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        first = max(0, int((track.times[begin] - half) * sampling_rate))
        last = min(num_samples, int((track.times[end - 1] + half) * sampling_rate))
        moments = np.arange(first, last) / sampling_rate
        stretches.append((first, np.interp(moments, track.times[begin:end], track.frequencies[begin:end])))
    return stretches


def _period_marks(waveform: np.ndarray, first: int, period: np.ndarray) -> np.ndarray:
    # One moment a period, from the loudest one near the middle of the stretch both ways: where a piece of one period
    # is most like the piece at the mark before.
    num_samples, middle = len(period), len(period) // 2
    around = slice(max(0, middle - int(period[middle])), middle + int(period[middle]) + 1)
    start = first + around.start + int(np.abs(waveform[first : first + num_samples][around]).argmax())
    marks = [float(start)]
    for direction in (-1, 1):
        mark = float(start)
        while True:
            length = period[min(max(int(mark) - first, 0), num_samples - 1)]
            if not first <= mark + direction * length < first + num_samples:
                break
            shift = _best_shift(waveform, round(mark), direction, length)
            mark += direction * shift
            if not first <= mark < first + num_samples:
                break
            marks.append(mark)
    return np.sort(marks)


def _best_shift(waveform: np.ndarray, mark: int, direction: int, period: float) -> float:
    # The distance, between 0.8 and 1.25 periods, at which the waveform is most like that around the mark.
    half = max(2, round(period / 2))
    shortest, longest = int(0.8 * period), int(np.ceil(1.25 * period))
    low, high = (mark - longest, mark - shortest) if direction < 0 else (mark + shortest, mark + longest)
    if min(low, mark) < half or max(high, mark) + half > len(waveform):
        return period
    here = waveform[mark - half : mark + half]
    there = waveform[low - half : high + half]
    products = np.correlate(there, here)
    energies = np.cumsum(np.concatenate([[0.0], there * there]))
    energies = energies[2 * half :] - energies[: -2 * half]
    likeness = products / np.sqrt(energies + 1e-12)
    best = int(likeness.argmax())
    position = float(best)
    if 0 < best < len(likeness) - 1:
        before, at, after = likeness[best - 1 : best + 2]
        curvature = before - 2 * at + after
        position += 0.5 * (before - after) / curvature if curvature < 0 else 0.0
    return direction * (low + position - mark)


def _with_unvoiced(
    stretches: list[tuple[np.ndarray, np.ndarray, np.ndarray]], distance: float, num_samples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    # All pieces in order: where each belongs, where it is cut out, and how far it reaches to the left and the right.
    # Unvoiced ones fill what lies between the stretches, and stay where they are.
    targets: list[np.ndarray] = []
    sources: list[np.ndarray] = []
    lefts: list[np.ndarray] = []
    rights: list[np.ndarray] = []
    edge = np.array([num_samples + distance])
    before = -distance
    for target, source, reach in [*stretches, (edge, edge, edge)]:
        if len(target) == 0:
            continue
        gap = target[0] - before
        count = max(1, round(gap / distance))
        # Uneven distances, so that what is unvoiced gets no pitch; those of the golden ratio need no random numbers.
        uneven = (np.arange(1, count) * 0.6180339887 % 1 - 0.5) / 2
        unvoiced = before + gap * (np.arange(1, count) + uneven) / count
        gaps = np.diff(np.concatenate([[before], unvoiced, target[:1]]))
        if rights:
            rights[-1][-1] = gaps[0]
        left = reach.copy()
        left[0] = gaps[-1]
        targets += [unvoiced, target]
        sources += [unvoiced, source]
        lefts += [gaps[:-1], left]
        rights += [gaps[1:], reach.copy()]
        before = target[-1]
    # The last stretch is the edge, which is no piece.
    moved, cut, left, right = (np.concatenate(parts)[:-1] for parts in (targets, sources, lefts, rights))
    return moved, cut, left, right


def _oversampled(waveform: np.ndarray, formant_ratio: float) -> np.ndarray:
    # Without what would lie above half the sampling rate once the formants are moved.
    # With silence at the end, so that it does not leak into the start.
    length = fft.next_fast_len(len(waveform) + 1024, real=True)
    spectrum = fft.rfft(waveform, length)
    spectrum = spectrum[: int(len(spectrum) / max(1.0, formant_ratio))]
    return OVERSAMPLING * fft.irfft(spectrum, OVERSAMPLING * length)[: OVERSAMPLING * len(waveform)]


def _overlap_add(
    oversampled: np.ndarray,
    num_samples: int,
    target: np.ndarray,
    source: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    formant_ratio: float,
) -> np.ndarray:
    # Pieces under a window that rises over `left` and falls over `right`, as the halves of Hann's do.
    left, right = np.maximum(left, 1.0), np.maximum(right, 1.0)
    begin = np.maximum(np.ceil(target - left), 0).astype(np.int64)
    sizes = np.maximum(np.minimum(np.floor(target + right).astype(np.int64) + 1, num_samples) - begin, 0)
    piece = np.repeat(np.arange(len(target)), sizes)
    places = np.arange(len(piece)) + np.repeat(begin - (np.cumsum(sizes) - sizes), sizes)
    offsets = places - target[piece]
    phase = np.where(offsets < 0, -offsets / left[piece], offsets / right[piece])
    window = 0.5 + 0.5 * np.cos(np.pi * np.minimum(phase, 1.0))

    read = OVERSAMPLING * (source[piece] + offsets * formant_ratio)
    inside = (read >= 0) & (read < len(oversampled) - 1)
    read = np.where(inside, read, 0.0)
    whole = read.astype(np.int64)
    lower, upper = oversampled[whole], oversampled[whole + 1]
    values = np.where(inside, window * (lower + (read - whole) * (upper - lower)), 0.0)
    return np.bincount(places, values, minlength=num_samples)[:num_samples]
