# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""
The fundamental frequency (F0) of speech at the frames of a model, which comes out the same however speech arrives.

A frame's candidates are maxima of the cross-correlation of two neighbouring stretches of the waveform, whose length
grows with the lag (after Talkin 1995, "A robust algorithm for pitch tracking"); the costs of a path through them are
those of Boersma (1993) in form. What lies below `LOW_CUT` is taken away, so that hum is no voice; harmonics above it
tell also of a lower F0. Each decision waits for `LOOK_AHEAD_SECONDS` only, also where the whole recording is there.
"""

import math

import torch
from torch.nn import functional as F


# Raise it with every change of what is found: files and measurements that hold F0 name it.
PITCH_VERSION = 1
LOW_CUT, HIGH_CUT = 75.0, 1000.0  # Hz: what the correlation hears
LOW_CUT_SECONDS, HIGH_CUT_SECONDS = 0.05, 0.004  # lengths of the filters
CORRELATED_RATE = 8000  # Hz: the waveform is not brought below
SHORTEST_STRETCH = 0.02  # seconds
PERIODS = 1.5  # of a lag, in a stretch
FAINTEST = 3e-4  # of full scale: what is much fainter has no voice
NUM_CANDIDATES = 6
OCTAVE_COST = 0.05  # of an octave down: favours the higher of two equal maxima
JUMP_COST = 0.7  # of an octave in 10 ms
VOICING_COST = 0.2  # of a change in 10 ms
VOICING_THRESHOLD = 0.6  # of the correlation
SILENCE_THRESHOLD = 0.03  # of the loudest frame within `LOUDNESS_SECONDS` before and `LOOK_AHEAD_SECONDS` behind
LOUDNESS_SECONDS = 2.0
LOOK_AHEAD_SECONDS = 0.1
# F0 is rounded to this part of an octave (0.3 cents), so that sums of it are exact in any order.
STEPS_PER_OCTAVE = 4096

_FRAMES_AT_ONCE = 4096
_BLOCK = 256
_NEVER = -1e9


def check_pitch_range(floor: float, ceiling: float, sampling_rate: int) -> None:
    """Raises `ValueError` if the range of F0, in Hz, is empty or beyond what the tracker can hear."""
    if not (20 <= floor < ceiling <= min(HIGH_CUT, sampling_rate / 8)):
        raise ValueError(
            "`f0_floor` and `f0_ceiling` must rise and lie between 20 and "
            f"{min(HIGH_CUT, sampling_rate / 8):g} Hz, but got {floor} and {ceiling}."
        )


class PitchFrames:
    """
    A tracker of F0 for frames of one place and rate.

    Args:
        hop_length (`int`): Samples per frame.
        first_centre (`int`): Sample in the middle of the first frame.
        sampling_rate (`int`): Sampling rate of the waveforms, in Hz.
        floor, ceiling (`float`): Least and greatest F0, in Hz.

    Raises:
        ValueError: If the range is empty, or beyond 20 Hz to the lower of 1000 Hz and an eighth of the rate.
    """

    def __init__(
        self,
        hop_length: int,
        first_centre: int,
        sampling_rate: int = 16000,
        floor: float = 55.0,
        ceiling: float = 550.0,
    ):
        check_pitch_range(floor, ceiling, sampling_rate)
        self.hop_length, self.first_centre = hop_length, first_centre
        most = max(1, sampling_rate // CORRELATED_RATE)
        self.decimation = max(factor for factor in range(1, most + 1) if hop_length % factor == 0)
        self.rate = sampling_rate / self.decimation
        self.lags = range(math.floor(self.rate / ceiling) - 1, math.ceil(self.rate / floor) + 2)
        widths = [max(round(SHORTEST_STRETCH * self.rate), round(PERIODS * lag)) for lag in self.lags]
        self.half = (self.lags[-1] + max(widths)) // 2 + 1  # samples at `rate`, on both sides of the centre
        self.starts = [self.half - (lag + width) // 2 for lag, width in zip(self.lags, widths, strict=True)]
        self.windows = [_hann(width) / _hann(width).sum() for width in widths]
        # Weights of the earlier and of the later stretch of each lag, (2 * half + 1, num_lags).
        self.earlier, self.later = torch.zeros(2, 2 * self.half + 1, len(self.lags), dtype=torch.float64)
        for number, (lag, start, window) in enumerate(zip(self.lags, self.starts, self.windows, strict=True)):
            self.earlier[start : start + len(window), number] = window
            self.later[start + lag : start + lag + len(window), number] = window
        self.level = _hann(2 * self.half + 1) / _hann(2 * self.half + 1).sum()
        self.high_cut = _low_pass(HIGH_CUT / sampling_rate, round(HIGH_CUT_SECONDS * sampling_rate) | 1)
        self.low_cut = -_low_pass(LOW_CUT / self.rate, round(LOW_CUT_SECONDS * self.rate) | 1)
        self.low_cut[len(self.low_cut) // 2] += 1
        # Samples on both sides of a frame's centre that it hears.
        self.reach = len(self.high_cut) // 2 + self.decimation * (len(self.low_cut) // 2 + self.half)
        frames_per_second = sampling_rate / hop_length
        self.look_ahead = max(1, round(LOOK_AHEAD_SECONDS * frames_per_second))  # of the path, in frames
        self.loudness = round(LOUDNESS_SECONDS * frames_per_second)
        if not 0 <= first_centre <= self.reach:
            raise ValueError(f"`first_centre` must lie between 0 and {self.reach}, but is {first_centre}.")
        self.scale = 0.01 * frames_per_second
        self.floor, self.ceiling = floor, ceiling

    @property
    def look_ahead_samples(self) -> int:
        """Samples behind a frame's centre that its decision waits for."""
        return 2 * self.look_ahead * self.hop_length + self.reach

    def track(self, waveforms: torch.Tensor, num_samples: torch.Tensor, num_frames: int) -> torch.Tensor:
        """
        F0 of whole recordings. Beyond its ends, a recording is taken to be silent.

        Args:
            waveforms (`torch.Tensor` of shape `(batch, max_num_samples)`): Waveforms in [-1, 1].
            num_samples (`torch.Tensor` of shape `(batch,)`): Their lengths. What is behind does not count.
            num_frames (`int`): Frames to tell.

        Returns:
            `torch.Tensor` of shape `(batch, num_frames)`: log2 of F0 in Hz, float64; 0 where a frame is unvoiced.
        """
        is_real = torch.arange(waveforms.shape[1], device=waveforms.device) < num_samples.to(waveforms.device)[:, None]
        state = PitchState(self)
        settled = state.push(torch.where(is_real, waveforms, 0.0))
        return torch.cat([settled, state.finish(num_frames)], dim=1)[:, :num_frames]

    def candidates(self, waveforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        What frames may be.

        Args:
            waveforms (`torch.Tensor` of shape `(batch, num_samples)`): Samples from `reach` before the centre of the
                first frame on, float64. There is a frame for each centre that has as many samples behind it.

        Returns:
            log2 of F0 in Hz and gain of each candidate, both `(batch, num_frames, NUM_CANDIDATES)`, and the amplitude
            of each frame `(batch, num_frames)`.
        """
        device = waveforms.device
        filtered = F.conv1d(waveforms[:, None], self.high_cut.to(device)[None, None], stride=self.decimation)
        filtered = _filtered(filtered[:, 0], self.low_cut.to(device))
        frames = filtered.unfold(1, 2 * self.half + 1, self.hop_length // self.decimation)
        batch_size, num_frames, _ = frames.shape
        frames = frames.flatten(0, 1)
        parts = [self._candidates(part) for part in frames.split(_FRAMES_AT_ONCE)]
        octaves, gains, amplitudes = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        shape = (batch_size, num_frames)
        return octaves.unflatten(0, shape), gains.unflatten(0, shape), amplitudes.unflatten(0, shape)

    def _candidates(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = frames.device
        earlier, later, squares = self.earlier.to(device), self.later.to(device), frames.square()
        means = frames @ earlier, frames @ later
        products = [
            (frames[:, start : start + len(window)] * frames[:, start + lag : start + lag + len(window)])
            @ window.to(device)
            for lag, start, window in zip(self.lags, self.starts, self.windows, strict=True)
        ]
        covariance = torch.stack(products, dim=1) - means[0] * means[1]
        variances = [
            (squares @ weights - mean.square()).clamp(min=0)
            for weights, mean in zip((earlier, later), means, strict=True)
        ]
        correlation = covariance / ((variances[0] * variances[1]).sqrt() + FAINTEST**2)  # (F, num_lags)

        before, here, after = correlation[:, :-2], correlation[:, 1:-1], correlation[:, 2:]
        lags = torch.arange(self.lags[1], self.lags[-1], dtype=torch.float64, device=device)
        is_maximum = (here > before) & (here >= after) & (here > 0)
        chosen = torch.where(is_maximum, here - OCTAVE_COST * lags.log2(), _NEVER).topk(NUM_CANDIDATES, dim=1).indices
        found, before, here, after = (part.gather(1, chosen) for part in (is_maximum, before, here, after))
        # A parabola through the maximum and its neighbours.
        curvature = torch.where(found, before - 2 * here + after, -1.0)
        shift = torch.where(found, 0.5 * (before - after) / curvature, 0.0)
        height = here - 0.25 * (before - after) * shift
        octaves = ((self.rate / (lags[chosen] + shift)).log2() * STEPS_PER_OCTAVE).round() / STEPS_PER_OCTAVE
        found = found & (octaves >= math.log2(self.floor)) & (octaves <= math.log2(self.ceiling))
        gains = torch.where(found, height + OCTAVE_COST * (octaves - math.log2(self.ceiling)), _NEVER)
        return octaves, gains, (squares @ self.level.to(device)).sqrt()


class PitchState:
    """
    What is known of recordings that are still arriving. `push` replaces tensors and changes none, so that a shallow
    copy stays as it was.

    Args:
        pitch ([`PitchFrames`]): The tracker.
    """

    def __init__(self, pitch: PitchFrames):
        self.pitch = pitch
        self.samples: torch.Tensor | None = None  # from `reach` before the centre of the next frame on
        # Of frames that are not settled: what they may be; amplitudes also of those before.
        self.octaves = self.gains = self.amplitudes = self.score = torch.zeros(0)
        self.origins = self.ends = torch.zeros(0, dtype=torch.long)
        self.num_given = self.num_searched = 0

    def push(self, waveforms: torch.Tensor) -> torch.Tensor:
        """
        Args:
            waveforms (`torch.Tensor` of shape `(batch, num_samples)`): Samples that follow, in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch, num_frames)`: log2 of F0 in Hz of the frames that are settled by now,
            float64 on the CPU; 0 where a frame is unvoiced. A frame is settled once `look_ahead_samples` behind its
            centre have arrived.
        """
        pitch = self.pitch
        waveforms = (waveforms.cpu() if waveforms.device.type == "mps" else waveforms).to(torch.float64)
        if self.samples is None:
            self.samples = F.pad(waveforms, (pitch.reach - pitch.first_centre, 0))  # silence before the recording
            empty = torch.zeros(len(waveforms), 0, dtype=torch.float64)
            self.amplitudes, self.octaves, self.gains = empty, empty[..., None], empty[..., None]
        else:
            self.samples = torch.cat([self.samples, waveforms], dim=1)
        num_frames = (self.samples.shape[1] - 2 * pitch.reach - 1) // pitch.hop_length + 1
        if num_frames > 0:
            heard = (num_frames - 1) * pitch.hop_length + 2 * pitch.reach + 1
            octaves, gains, amplitudes = pitch.candidates(self.samples[:, :heard])
            self.samples = self.samples[:, num_frames * pitch.hop_length :].clone()
            joined = self.octaves.shape[1] > 0
            self.octaves = torch.cat([self.octaves, octaves], dim=1) if joined else octaves
            self.gains = torch.cat([self.gains, gains], dim=1) if joined else gains
            self.amplitudes = torch.cat([self.amplitudes, amplitudes], dim=1)
            self._search()
        return self._settled()

    def finish(self, num_frames: int) -> torch.Tensor:
        """
        The recordings have ended, and silence follows. Returns the rest of `num_frames` frames, as `push` does.
        """
        if self.samples is None:
            raise ValueError("No samples were pushed; push at least one before finishing.")
        pitch, given = self.pitch, self.num_given
        missing = num_frames - given
        if missing <= 0:
            return torch.zeros(len(self.samples), 0, dtype=torch.float64)
        heard = (num_frames - 1) * pitch.hop_length + pitch.look_ahead_samples + pitch.reach + 1
        num_known = (self.num_searched + self._num_waiting) * pitch.hop_length + self.samples.shape[1]
        silence = self.samples.new_zeros(len(self.samples), max(0, heard - num_known))
        return self.push(silence)[:, :missing]

    @property
    def _num_waiting(self) -> int:
        # Frames whose loudness is not settled.
        return self.gains.shape[1] - (self.num_searched - self.num_given)

    def _search(self) -> None:
        # The best path to each candidate of the frames whose loudness is settled.
        pitch, known = self.pitch, self.num_searched - self.num_given
        ready = self.gains.shape[1] - pitch.look_ahead - known
        if ready <= 0:
            return
        amplitudes, num_before = self.amplitudes, self.amplitudes.shape[1] - self._num_waiting
        reaching = F.pad(amplitudes, (pitch.loudness - num_before, 0))  # as of `loudness` frames before the first
        loudest = reaching.unfold(1, pitch.loudness + 1 + pitch.look_ahead, 1).amax(-1)  # (B, ready)
        here = amplitudes[:, num_before : num_before + ready]
        ratio = here / loudest.clamp(min=1e-12)
        # How likely it is that a frame is unvoiced (Boersma 1993, equation 23).
        unvoiced = VOICING_THRESHOLD + (2 - ratio * (1 + VOICING_THRESHOLD) / SILENCE_THRESHOLD).clamp(min=0)
        gains = torch.cat([self.gains[:, known : known + ready], unvoiced[..., None]], dim=-1)  # (B, ready, C)

        first = max(0, known - 1)
        octaves = self.octaves[:, first : known + ready]
        costs = F.pad((octaves[:, :-1, :, None] - octaves[:, 1:, None, :]).abs() * JUMP_COST, (0, 1, 0, 1))
        costs[..., -1, :-1] = costs[..., :-1, -1] = VOICING_COST
        costs = costs * pitch.scale
        scores, origins, score = [], [], self.score
        for number in range(ready):
            if self.num_searched + number == 0:
                score, origin = gains[:, 0], torch.zeros(gains.shape[::2], dtype=torch.long)
            else:
                step = number - (self.num_searched == 0)
                score, origin = (score[:, :, None] - costs[:, step]).max(dim=1)
                score = score + gains[:, number]
            scores.append(score)
            origins.append(origin)
        ends = torch.stack(scores, dim=1).argmax(-1)
        found = torch.stack(origins, dim=1)
        self.origins = torch.cat([self.origins, found], dim=1) if known else found
        self.ends = torch.cat([self.ends, ends], dim=1) if known else ends
        self.score = score
        self.num_searched += ready
        self.amplitudes = amplitudes[:, max(0, num_before + ready - pitch.loudness) :]

    def _settled(self) -> torch.Tensor:
        # Frames with `look_ahead` frames of path behind them: the best path to the last of these.
        lag = self.pitch.look_ahead
        ready = self.num_searched - self.num_given - lag
        if ready <= 0:
            return torch.zeros(0 if self.samples is None else len(self.samples), 0, dtype=torch.float64)
        state = self.ends[:, lag : lag + ready]
        for back in range(lag, 0, -1):
            state = self.origins[:, back : back + ready].gather(2, state[..., None])[..., 0]
        octaves = F.pad(self.octaves[:, :ready], (0, 1)).gather(2, state[..., None])[..., 0]
        # The last frame that was given stays as the one before the next.
        self.octaves, self.gains = self.octaves[:, ready:], self.gains[:, ready:]
        self.origins, self.ends = self.origins[:, ready:], self.ends[:, ready:]
        self.num_given += ready
        return octaves


def _filtered(signals: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    # What `conv1d` gives for symmetric taps, block by block as a product of matrices, which is far faster for many.
    num_outputs = signals.shape[1] - len(taps) + 1
    num_blocks = -(-num_outputs // _BLOCK)
    rows = torch.arange(_BLOCK + len(taps) - 1, device=taps.device)[:, None] - torch.arange(_BLOCK, device=taps.device)
    matrix = torch.where((rows >= 0) & (rows < len(taps)), taps[rows.clamp(0, len(taps) - 1)], 0.0)
    signals = F.pad(signals, (0, num_blocks * _BLOCK - num_outputs))
    return (signals.unfold(1, len(matrix), _BLOCK) @ matrix).flatten(1)[:, :num_outputs]


def _hann(size: int) -> torch.Tensor:
    return torch.hann_window(size + 2, periodic=False, dtype=torch.float64)[1:-1]


def _low_pass(cut: float, size: int) -> torch.Tensor:
    # A windowed sinc; `cut` in cycles per sample.
    times = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    response = torch.sinc(2 * cut * times) * _hann(size)
    return response / response.sum()


__all__ = ["PITCH_VERSION", "PitchFrames", "PitchState", "check_pitch_range"]
