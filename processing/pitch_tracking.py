# SPDX-License-Identifier: Apache-2.0
"""
The fundamental frequency of speech, frame by frame: autocorrelation and the best path through its maxima.

The method and the values of its costs are those of Boersma (1993), "Accurate short-term analysis of the fundamental
frequency and the harmonics-to-noise ratio of a sampled sound", except that maxima are interpolated by parabolas, the
frames are longer than three periods only by rounding, and the range can be narrowed to the speaker's in a second pass.
"""

import dataclasses

import numpy as np

from .sampling_rates import whole_sampling_rate


NUM_CANDIDATES = 5  # maxima of the autocorrelation in a frame that the path may take
SILENCE_THRESHOLD = 0.03  # of the greatest amplitude of the recording
VOICING_THRESHOLD = 0.45  # of the autocorrelation
OCTAVE_COST = 0.01  # an octave: favours the higher of two equal maxima
OCTAVE_JUMP_COST = 0.35  # an octave in 10 ms
VOICING_CHANGE_COST = 0.14  # in 10 ms
BATCH_FRAMES = 512


@dataclasses.dataclass(frozen=True)
class PitchTrack:
    """
    Args:
        times (`np.ndarray` of shape `(num_frames,)`): Centres of the frames in seconds, evenly spaced.
        frequencies (`np.ndarray` of shape `(num_frames,)`): Fundamental frequency of each frame in Hz; 0 where the
            frame is unvoiced.
    """

    times: np.ndarray
    frequencies: np.ndarray

    @property
    def voiced(self) -> np.ndarray:
        """Whether each frame is voiced, of shape `(num_frames,)`."""
        return self.frequencies > 0

    @property
    def median(self) -> float:
        """Of the voiced frames, in Hz; NaN if there are none."""
        return float(np.median(self.frequencies[self.voiced])) if self.voiced.any() else float("nan")


def track_pitch(
    waveform: np.ndarray,
    sampling_rate: float,
    floor: float = 60.0,
    ceiling: float = 500.0,
    hop_seconds: float = 0.01,
    narrow: bool = True,
) -> PitchTrack:
    """
    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): Speech of one speaker, at any level.
        sampling_rate (`int`): Sampling rate of the waveform, in Hz.
        floor, ceiling (`float`): Least and greatest frequency that is looked for, in Hz. A frame spans three periods
            of `floor`.
        hop_seconds (`float`): Time from one frame to the next, in seconds.
        narrow (`bool`): Whether to look a second time between 0.75 times the lower and 1.9 times the upper quartile of
            what was found, which mends most octave errors (after De Looze and Hirst 2008).

    Returns:
        [`PitchTrack`]: Fundamental frequency of each frame. There are no frames if `waveform` is shorter than three
            periods of `floor`.

    Raises:
        ValueError: If the range is empty or beyond a fourth of the sampling rate, or `waveform` is no finite vector.
    """
    waveform = np.asarray(waveform, np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise ValueError(f"`waveform` must be finite and of shape (num_samples,), but has shape {waveform.shape}.")
    sampling_rate = whole_sampling_rate(sampling_rate)
    if not 0 < floor < ceiling <= sampling_rate / 4:
        raise ValueError(
            f"`floor` and `ceiling` must rise and lie between 0 and {sampling_rate / 4:g} Hz (a fourth of the sampling"
            f" rate), but got {floor} and {ceiling}."
        )
    if hop_seconds <= 0:
        raise ValueError(f"`hop_seconds` must be positive, but got {hop_seconds}.")
    size = round(3 * sampling_rate / floor)
    num_frames = 1 + int((len(waveform) - size) / (hop_seconds * sampling_rate)) if len(waveform) >= size else 0
    starts = np.round(np.arange(num_frames) * hop_seconds * sampling_rate).astype(np.int64)
    times = (starts + size / 2) / sampling_rate
    loudest = float(np.abs(waveform - waveform.mean()).max()) if num_frames else 0.0
    if loudest == 0:
        return PitchTrack(times, np.zeros(num_frames))

    lags, heights, peaks = [], [], []
    for first in range(0, num_frames, BATCH_FRAMES):
        frames = waveform[starts[first : first + BATCH_FRAMES, None] + np.arange(size)]
        frames = frames - frames.mean(axis=1, keepdims=True)
        lag, height = _maxima(frames, sampling_rate / ceiling, sampling_rate / floor)
        lags.append(lag)
        heights.append(height)
        peaks.append(np.abs(frames[:, size // 3 : size - size // 3]).max(axis=1))  # of a period of `floor`
    frequencies = sampling_rate / np.concatenate(lags)  # (num_frames, NUM_CANDIDATES)
    strengths = np.concatenate(heights)
    peak = np.concatenate(peaks) / loudest
    # How likely it is that a frame is unvoiced (Boersma 1993, equation 23).
    unvoiced = VOICING_THRESHOLD + np.maximum(0.0, 2 - peak * (1 + VOICING_THRESHOLD) / SILENCE_THRESHOLD)

    path = _best_path(frequencies, strengths, unvoiced, floor, ceiling, hop_seconds)
    if narrow and path.any():
        low, high = np.quantile(path[path > 0], [0.25, 0.75])
        path = _best_path(frequencies, strengths, unvoiced, 0.75 * low, 1.9 * high, hop_seconds)
    return PitchTrack(times, path)


def _maxima(frames: np.ndarray, shortest: float, longest: float) -> tuple[np.ndarray, np.ndarray]:
    # Lags in samples and heights of the greatest maxima of the autocorrelation, both (num_frames, NUM_CANDIDATES).
    size = frames.shape[1]
    window = np.hanning(size + 2)[1:-1].astype(np.float32)
    first, last = max(2, int(shortest)), int(np.ceil(longest)) + 1
    length = 1 << int(np.ceil(np.log2(size + last)))

    def autocorrelation(values: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(values, length)
        return np.fft.irfft(spectrum.real**2 + spectrum.imag**2, length)[..., : last + 2]

    of_window = autocorrelation(window.astype(np.float64))
    values = autocorrelation(frames * window)
    values = values / np.maximum(values[:, :1], np.finfo(np.float32).tiny) / (of_window / of_window[0])
    before, here, after = values[:, first - 1 : last], values[:, first : last + 1], values[:, first + 1 : last + 2]
    is_maximum = (here > before) & (here >= after) & (here > 0)
    ranked = np.where(is_maximum, here - OCTAVE_COST * np.log2(np.arange(first, last + 1)), -np.inf)
    chosen = np.argpartition(-ranked, NUM_CANDIDATES - 1, axis=1)[:, :NUM_CANDIDATES]

    before, middle, after = (np.take_along_axis(part, chosen, 1).astype(np.float64) for part in (before, here, after))
    found = np.take_along_axis(is_maximum, chosen, 1)
    curvature = np.where(found, before - 2 * middle + after, -1.0)
    shift = np.where(found, 0.5 * (before - after) / curvature, 0.0)
    heights = np.where(found, middle - 0.25 * (before - after) * shift, -np.inf)
    # A height above 1 comes from a short window and says little (Boersma 1993, section 4).
    heights = np.where(heights > 1, 1 / np.maximum(heights, 1), heights)
    return chosen + first + shift, heights


def _best_path(
    frequencies: np.ndarray,
    strengths: np.ndarray,
    unvoiced: np.ndarray,
    floor: float,
    ceiling: float,
    hop_seconds: float,
) -> np.ndarray:
    # Viterbi; the last candidate of each frame is to be unvoiced.
    octaves = np.log2(frequencies)
    allowed = (frequencies >= floor) & (frequencies <= ceiling) & np.isfinite(strengths)
    gains = np.where(allowed, strengths + OCTAVE_COST * (octaves - np.log2(floor)), -1e9)
    gains = np.concatenate([gains, unvoiced[:, None]], axis=1)
    num_frames, width = gains.shape
    scale = 0.01 / hop_seconds
    step = np.zeros((num_frames - 1, width, width))
    step[:, -1, :] = step[:, :, -1] = scale * VOICING_CHANGE_COST
    step[:, -1, -1] = 0.0
    step[:, :-1, :-1] = scale * OCTAVE_JUMP_COST * np.abs(octaves[:-1, :, None] - octaves[1:, None, :])

    origins = np.zeros((num_frames, width), np.int64)
    score = gains[0]
    columns = np.arange(width)
    for frame in range(1, num_frames):
        through = score[:, None] - step[frame - 1]
        origins[frame] = through.argmax(axis=0)
        score = through[origins[frame], columns] + gains[frame]
    states = np.empty(num_frames, np.int64)
    states[-1] = score.argmax()
    for frame in range(num_frames - 1, 0, -1):
        states[frame - 1] = origins[frame, states[frame]]
    rows = np.concatenate([frequencies, np.zeros((num_frames, 1))], axis=1)
    return rows[np.arange(num_frames), states]
