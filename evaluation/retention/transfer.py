# SPDX-License-Identifier: Apache-2.0
"""
How much of each frequency of a recording x is found in its reconstruction y (arXiv 2410.17081, Table 3 and Figure 2;
the paper does not say how its transfer function was estimated).

By Welch's method, with Hann windows that overlap by half, whose spectra X and Y are summed over all windows of all
recordings:

- transfer: |H| = |S_xy| / S_xx (the estimator H1), with S_xx = sum |X|^2 and S_xy = sum conj(X) Y: the part of y that
  is a filtered x. 1 is right; noise in y does not count, a level that is too high does.
- coherence: |S_xy|^2 / (S_xx S_yy), between 0 and 1, which no filter and no level changes. White noise of a
  signal-to-noise ratio r leaves r / (1 + r).
- gain: sqrt(S_yy / S_xx), whatever the phase and the moment. Transfer is gain times the root of the coherence.

These three ask for the waveform, which decoders that learn from spectra alone do not keep though they sound alike. The
same two of the magnitudes |X| and |Y| around their means over the windows are blind to phases, and ask whether the
energy comes and goes with that of the recording:

- magnitude_transfer: cov(|X|, |Y|) / var(|X|).
- magnitude_correlation: cov(|X|, |Y|) / sqrt(var(|X|) var(|Y|)); 0 for what has nothing to do with the recording.

A recording counts by its length and not by its level: its spectra are divided by its mean power. A delay of 5 % of a
window leaves 98 % of the transfer and 97 % of the coherence, one of 10 % leaves 94 % and 88 %. Coherence is biased
upwards by about (1 - coherence)^2 / (number of windows), which is why windows are pooled before they are divided.
"""

import base64
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from speech_tokenizers.evaluation.bootstrap import Estimate, Statistic, bootstrap_sums


# A frequency of a recording counts where its mean power exceeds this multiple of what rounding to 16 bits leaves.
SILENCE_FACTOR = 10.0
ROUNDING_POWER = (2.0**-15) ** 2 / 12
# Share of the highest frequency that a rate has. Filters that precede a change of rate leave nothing above.
USABLE_SHARE = 0.95
TOP_SHARES = (0.8, USABLE_SHARE)

POINTS = (2000, 5000, 8000)  # the paper's, in Hz
POINT_WIDTH = 500  # averaged over, in Hz
BANDS = ((100, 1000), (1000, 2000), (2000, 4000), (4000, 6000), (6000, 8000), (8000, 12000))
CELL_WIDTH = 250  # of the curves, in Hz


@dataclasses.dataclass(frozen=True)
class CrossSpectra:
    """
    Spectra of a recording and its reconstruction, summed over windows.

    Args:
        recorded, decoded (`np.ndarray` of shape `(num_bins,)`): Sums S_xx and S_yy over the windows.
        cross (`np.ndarray` of shape `(num_bins,)`): Sum S_xy over the windows, complex.
        recorded_magnitude, decoded_magnitude (`np.ndarray` of shape `(num_bins,)`): Sums of |X| and of |Y| over the
            windows.
        cross_magnitude (`np.ndarray` of shape `(num_bins,)`): Sum of |X| |Y| over the windows.
        num_windows (`int`): Number of windows that were summed.
    """

    recorded: np.ndarray
    decoded: np.ndarray
    cross: np.ndarray
    recorded_magnitude: np.ndarray
    decoded_magnitude: np.ndarray
    cross_magnitude: np.ndarray
    num_windows: int

    def table(self, power: float = 1.0) -> np.ndarray:
        """
        The sums that the quantities are functions of.

        Args:
            power (`float`): Mean power of the recording. It scales the sums so that the level of the recording does
                not count.

        Returns:
            `np.ndarray` of shape `(8, num_bins)`: S_xx, S_yy, the real and imaginary part of S_xy, the sums of
            magnitudes in the order of the fields, and the number of windows.
        """
        powers = [self.recorded, self.decoded, self.cross.real, self.cross.imag]
        magnitudes = [self.recorded_magnitude / power**0.5, self.decoded_magnitude / power**0.5]
        count = np.full(len(self.recorded), float(self.num_windows))
        return np.stack([*[sums / power for sums in powers], *magnitudes, self.cross_magnitude / power, count])


def sum_spectra(recorded: np.ndarray, decoded: np.ndarray, window_length: int) -> CrossSpectra:
    """
    Args:
        recorded, decoded (`np.ndarray` of shape `(num_samples,)`): Waveforms at one rate. Zeros fill up a waveform
            that is shorter than a window. Of a longer one, the end that fills no half window is left out.
        window_length (`int`): Length of a window in samples, at least 2.

    Raises:
        ValueError: If the waveforms differ in length, or the window is too short.
    """
    if recorded.shape != decoded.shape or recorded.ndim != 1:
        raise ValueError(
            f"`recorded` and `decoded` must be one-dimensional and equally long, but have shapes {recorded.shape} and "
            f"{decoded.shape}."
        )
    if window_length < 2:
        raise ValueError(f"`window_length` must be at least 2 samples, but got {window_length}.")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_length) / window_length)
    spectra = []
    for waveform in (recorded, decoded):
        padded = np.pad(waveform.astype(np.float64), (0, max(0, window_length - len(waveform))))
        frames = np.lib.stride_tricks.sliding_window_view(padded, window_length)[:: max(1, window_length // 2)]
        spectra.append(np.fft.rfft(frames * window) / np.sqrt((window**2).sum()))
    x, y = spectra
    magnitudes = np.abs(x), np.abs(y)
    return CrossSpectra(
        recorded=(magnitudes[0] ** 2).sum(0),
        decoded=(magnitudes[1] ** 2).sum(0),
        cross=(np.conj(x) * y).sum(0),
        recorded_magnitude=magnitudes[0].sum(0),
        decoded_magnitude=magnitudes[1].sum(0),
        cross_magnitude=(magnitudes[0] * magnitudes[1]).sum(0),
        num_windows=len(x),
    )


def audible_bins(spectra: CrossSpectra, sampling_rate: int, file_sampling_rate: int) -> np.ndarray:
    """
    Where a recording holds something that could be kept: above the noise of 16 bits, and below the highest frequency
    of the file and of the rate that it was brought to.

    Returns:
        `np.ndarray` of shape `(num_bins,)`: Whether each bin counts, as booleans.
    """
    frequencies = np.linspace(0, sampling_rate / 2, len(spectra.recorded))
    limit = USABLE_SHARE * min(sampling_rate, file_sampling_rate) / 2
    loud = spectra.recorded > SILENCE_FACTOR * ROUNDING_POWER * spectra.num_windows
    return loud & (frequencies <= limit)


def retention_counts(spectra: CrossSpectra, power: float, audible: np.ndarray) -> np.ndarray:
    """
    What a recording adds to the pooled spectra.

    Args:
        spectra ([`CrossSpectra`]): Spectra of the recording and its reconstruction.
        power (`float`): Mean power of the recording. It scales the sums so that the level of the recording does not
            count.
        audible (`np.ndarray` of shape `(num_bins,)`): Whether each bin counts; see [`audible_bins`].

    Returns:
        `np.ndarray` of shape `(8, num_bins)`, float32.
    """
    return np.where(audible, spectra.table(max(power, np.finfo(np.float32).tiny)), 0.0).astype(np.float32)


def _of_bins(function: Callable[..., np.ndarray]) -> Statistic:
    # The mean of a function of the rows of `CrossSpectra.table` over the bins that any recording has.
    def statistic(sums: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(sums.reshape(*sums.shape[:-1], NUM_ROWS, -1), -2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(rows[0] > 0, function(*rows), np.nan)
            known = ~np.isnan(values)
            return np.where(known, values, 0.0).sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan)

    return statistic


def _transfer(xx, yy, real, imaginary, *_):
    return np.hypot(real, imaginary) / xx


def _coherence(xx, yy, real, imaginary, *_):
    return np.where(yy > 0, (real**2 + imaginary**2) / (xx * yy), 0.0)  # of silence nothing coheres


def _gain(xx, yy, *_):
    return np.sqrt(yy / xx)


def _covariances(xx, yy, real, imaginary, x, y, xy, count):
    return xx / count - (x / count) ** 2, yy / count - (y / count) ** 2, xy / count - x * y / count**2


def _magnitude_transfer(*rows):
    of_x, _, joint = _covariances(*rows)
    return np.where(of_x > 0, joint / of_x, np.nan)


def _magnitude_correlation(*rows):
    of_x, of_y, joint = _covariances(*rows)
    return np.where(of_x > 0, np.where(of_y > 0, joint / np.sqrt(of_x * of_y), 0.0), np.nan)


NUM_ROWS = 8
QUANTITIES: dict[str, Statistic] = {
    "transfer": _of_bins(_transfer),
    "coherence": _of_bins(_coherence),
    "gain": _of_bins(_gain),
    "magnitude_transfer": _of_bins(_magnitude_transfer),
    "magnitude_correlation": _of_bins(_magnitude_correlation),
}
"""Statistics of summed tables whose last axis is `(8 * num_bins,)`, by the names of the module's description."""


def frequency_ranges(sampling_rate: int) -> dict[str, tuple[float, float]]:
    """
    The paper's three frequencies, the highest usable ones, and bands, by title, as ranges in Hz. Those that a sampling
    rate does not have are left out: 8 kHz is beyond what 16 kHz hold, and the `top` takes its place.
    """
    usable = USABLE_SHARE * sampling_rate / 2
    ranges: dict[str, tuple[float, float]] = {}
    for point in POINTS:
        if point + POINT_WIDTH / 2 <= usable:
            ranges[f"{point / 1000:g} kHz"] = (point - POINT_WIDTH / 2, point + POINT_WIDTH / 2)
    ranges["top"] = (TOP_SHARES[0] * sampling_rate / 2, TOP_SHARES[1] * sampling_rate / 2)
    for low, high in BANDS:
        if low < usable:
            ranges[f"{low / 1000:g}–{high / 1000:g} kHz"] = (low, min(high, usable))
    return ranges


def curve_cells(sampling_rate: int) -> list[tuple[float, float]]:
    """Equally wide ranges in Hz, from the lowest to the highest usable frequency."""
    edges = np.arange(0, USABLE_SHARE * sampling_rate / 2 - CELL_WIDTH + 1e-6, CELL_WIDTH)
    return [(float(max(low, BANDS[0][0])), float(low + CELL_WIDTH)) for low in edges]


def bins_between(low: float, high: float, num_bins: int, sampling_rate: int) -> np.ndarray:
    """Indices of the bins from `low` up to, but without, `high` (in Hz); the nearest one where there is none."""
    frequencies = np.linspace(0, sampling_rate / 2, num_bins)
    inside = np.flatnonzero((frequencies >= low) & (frequencies < high))
    return inside if len(inside) else np.array([np.abs(frequencies - (low + high) / 2).argmin()])


def estimate_retention(
    tables: np.ndarray, quantity: str, low: float, high: float, sampling_rate: int, clusters: Sequence[int]
) -> Estimate | None:
    """
    A quantity in a range of frequencies, with its bootstrap interval.

    Args:
        tables (`np.ndarray` of shape `(num_clips, 8, num_bins)`): Tables of the recordings, from [`retention_counts`].
        quantity (`str`): Name in `QUANTITIES`.
        low, high (`float`): Ends of the range, in Hz.
        sampling_rate (`int`): Sampling rate of the waveforms, in Hz.
        clusters (sequence of `int`): Number of the group of each clip, such as its speaker. The bootstrap redraws
            whole groups.

    Returns:
        [`Estimate`], whose `num_clips` is the number of clusters that hold something there; `None` where none does.
    """
    part = tables[..., bins_between(low, high, tables.shape[-1], sampling_rate)].astype(np.float64)
    part = part.reshape(len(part), -1)
    numbers = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.zeros((numbers.max() + 1, part.shape[1]))
    np.add.at(sums, numbers, part)
    return bootstrap_sums(sums[sums.any(axis=1)], QUANTITIES[quantity])


def pack_table(table: np.ndarray) -> str:
    """A float32 array of shape `(8, num_bins)` as text for a results file."""
    return base64.b64encode(np.ascontiguousarray(table, "<f4").tobytes()).decode()


def unpack_table(text: str) -> np.ndarray:
    """Array that [`pack_table`] packed, float32 of shape `(8, num_bins)`."""
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(NUM_ROWS, -1)
