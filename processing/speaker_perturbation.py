# SPDX-License-Identifier: Apache-2.0
"""
The same words by somebody else: random formants, fundamental frequency and equalizer, as Spin perturbs speakers.

With noise on top it is the perturbation of R-Spin (https://huggingface.co/papers/2311.09117), for units that are to be
the same in noise.

The ranges are those of NANSY (https://huggingface.co/papers/2110.14513), ContentVec
(https://huggingface.co/papers/2204.09224) and Spin (https://huggingface.co/papers/2305.11072).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .parametric_equalizer import HIGHEST_CENTRE, NUM_BANDS, equalize, equalizer_sections
from .praat_voice_change import change_voice_by_praat
from .sampling_rates import whole_sampling_rate
from .voice_change import change_voice


BACKENDS = ("psola", "praat")
GREATEST_GAIN = 12.0  # dB, of a band
LEAST_QUALITY, GREATEST_QUALITY = 2.0, 5.0
LOWEST_NOISE = 100.0  # Hz
STEEPEST_NOISE = 2.0  # power falls with its frequency to this; 0 is white noise, 2 is brown


@dataclass(frozen=True)
class SpeakerChange:
    """
    What is done to one recording.

    Args:
        formant_ratio, f0_ratio, f0_range_ratio (`float`): Ratios of the formants, and of the median and range of the
            fundamental frequency; see [`change_voice`]. 1 changes nothing.
        gains, qualities (`np.ndarray` of shape `(10,)`, *optional*): Gain in dB and Q of each band of the equalizer;
            see [`equalizer_sections`]. `None` is no equalizer.
        noise_snr (`float`, *optional*): Ratio of the speech to the noise that is added, in dB. `None` adds none.
        noise_slope (`float`): Exponent s of the noise, whose power falls as 1 / frequency^s.
        noise_seed (`int`): Seed for the noise.
    """

    formant_ratio: float = 1.0
    f0_ratio: float = 1.0
    f0_range_ratio: float = 1.0
    gains: np.ndarray | None = None
    qualities: np.ndarray | None = None
    noise_snr: float | None = None
    noise_slope: float = 0.0
    noise_seed: int = 0


class SpeakerPerturbation:
    """
    Draws a change of the speaker and applies it. Length and words stay.

    A pair of numbers bounds a ratio, of which in half of the cases the inverse is taken. `None` switches a part off.
    Where the pitch carries words, as in Mandarin, `f0_ratio` and `f0_range_ratio` should be off: a model that learns
    to ignore pitch loses it in its units.

    Args:
        formant_ratio (pair of `float`, *optional*, defaults to `(1.0, 1.4)`): Bounds of the ratio of the formants.
        f0_ratio (pair of `float`, *optional*, defaults to `(1.0, 2.0)`): Bounds of the ratio of the median of the
            fundamental frequency.
        f0_range_ratio (pair of `float`, *optional*, defaults to `(1.0, 1.5)`): Bounds of the ratio of the range of the
            fundamental frequency.
        equalizer (`bool`, *optional*, defaults to `True`): Whether a random equalizer of ten bands follows, with gains
            of up to 12 dB and Q between 2 and 5.
        noise_snr (pair of `float`, *optional*): Bounds of the ratio of speech to added noise, in dB. The noise is
            steady and its colour random, from white to brown. Spin adds none.
        backend (`str`, *optional*, defaults to `"psola"`): Method of the change: `"psola"`, [`change_voice`], or
            `"praat"`, what was published, which needs the extra `praat`, under the GPL.
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate of the waveforms, in Hz.
        f0_floor, f0_ceiling (`float`), narrow (`bool`): Range in which the fundamental frequency is looked for, in Hz,
            and whether the speaker's own range is found within it; see [`change_voice`].
        praat_seed (`int`, *optional*, defaults to 5489): Seed for Praat's random numbers; see
            [`change_voice_by_praat`].

    Raises:
        ValueError: If a pair of ratios does not rise from at least 1, or that of the noise not at all, the backend is
            unknown, or the sampling rate is too low for the equalizer.

    Example:

    ```python
    perturbation = SpeakerPerturbation()
    perturbed = perturbation(waveform, np.random.default_rng(0))  # (num_samples,), like the waveform
    ```
    """

    def __init__(
        self,
        formant_ratio: Sequence[float] | None = (1.0, 1.4),
        f0_ratio: Sequence[float] | None = (1.0, 2.0),
        f0_range_ratio: Sequence[float] | None = (1.0, 1.5),
        equalizer: bool = True,
        noise_snr: Sequence[float] | None = None,
        backend: str = "psola",
        sampling_rate: float = 16000,
        f0_floor: float = 60.0,
        f0_ceiling: float = 500.0,
        narrow: bool = True,
        praat_seed: int = 5489,
    ):
        self.bounds = {"formant_ratio": formant_ratio, "f0_ratio": f0_ratio, "f0_range_ratio": f0_range_ratio}
        for name, pair in self.bounds.items():
            if pair is not None and (len(pair) != 2 or not 1 <= pair[0] <= pair[1] < np.inf):
                raise ValueError(f"`{name}` must be a pair that rises from at least 1, or None, but got {pair}.")
        if noise_snr is not None and not _is_rising_pair(noise_snr):
            raise ValueError(f"`noise_snr` must be a pair that rises, in dB, or None, but got {noise_snr}.")
        if backend not in BACKENDS:
            raise ValueError(f"`backend` must be one of {BACKENDS}, but got {backend!r}.")
        sampling_rate = whole_sampling_rate(sampling_rate)
        if equalizer and sampling_rate <= 2 * HIGHEST_CENTRE:
            raise ValueError(
                f"`sampling_rate` must be above {2 * HIGHEST_CENTRE:g} Hz for the equalizer, but is {sampling_rate};"
                " resample, or give equalizer=False."
            )
        self.equalizer, self.noise_snr = equalizer, noise_snr
        self.backend, self.sampling_rate = backend, sampling_rate
        self.f0_range: dict[str, Any] = {"f0_floor": f0_floor, "f0_ceiling": f0_ceiling, "narrow": narrow}
        self.praat_seed = praat_seed

    def draw(self, generator: np.random.Generator) -> SpeakerChange:
        """
        A random change. It takes the same numbers from `generator`, in the order of Spin's code, whichever parts are
        switched off. The numbers of the noise come last, and only if there is some.
        """
        ratios = []
        for pair in self.bounds.values():
            low, high = pair or (1.0, 1.0)
            ratio = generator.uniform(low, high)
            ratios.append(ratio if generator.random() > 0.5 else 1 / ratio)
        qualities = LEAST_QUALITY * (GREATEST_QUALITY / LEAST_QUALITY) ** generator.uniform(size=NUM_BANDS)
        gains = generator.uniform(-GREATEST_GAIN, GREATEST_GAIN, NUM_BANDS)
        formant_ratio, f0_ratio, f0_range_ratio = ratios
        change = SpeakerChange(formant_ratio, f0_ratio, f0_range_ratio)
        if self.equalizer:
            change = dataclasses.replace(change, gains=gains, qualities=qualities)
        if self.noise_snr is not None:
            change = dataclasses.replace(
                change,
                noise_snr=generator.uniform(*self.noise_snr),
                noise_slope=generator.uniform(0.0, STEEPEST_NOISE),
                noise_seed=int(generator.integers(2**63)),
            )
        return change

    def apply(self, waveform: np.ndarray, change: SpeakerChange) -> np.ndarray:
        """
        Args:
            waveform (`np.ndarray` of shape `(num_samples,)`): Speech of one speaker, in [-1, 1]. Where nothing is
                voiced, the equalizer and the noise alone act.
            change ([`SpeakerChange`]): Change to apply.

        Returns:
            `np.ndarray` of shape `(num_samples,)`, float32: Changed speech, in [-1, 1].

        Raises:
            ValueError: If `waveform` has another shape, is empty, or has samples that are not finite.
        """
        waveform = np.asarray(waveform)
        if waveform.ndim != 1 or len(waveform) == 0 or not np.isfinite(waveform).all():
            raise ValueError(
                "`waveform` must be of shape (num_samples,), not empty and finite, but has shape"
                f" {waveform.shape}{'' if np.isfinite(waveform).all() else ' and NaN or infinite samples'}."
            )
        ratios = change.formant_ratio, change.f0_ratio, change.f0_range_ratio
        if self.backend == "praat":
            changed = change_voice_by_praat(
                waveform, self.sampling_rate, *ratios, **self.f0_range, seed=self.praat_seed
            )
        else:
            changed = change_voice(waveform, self.sampling_rate, *ratios, **self.f0_range)
        if change.gains is not None and change.qualities is not None:
            changed = equalize(changed, equalizer_sections(change.gains, change.qualities, self.sampling_rate))
        if change.noise_snr is not None:
            noise = coloured_noise(
                len(changed), change.noise_slope, np.random.default_rng(change.noise_seed), self.sampling_rate
            )
            level = np.sqrt(np.mean(np.square(changed))) * 10 ** (-change.noise_snr / 20)
            changed = changed + level * noise
        return np.clip(changed, -1.0, 1.0).astype(np.float32)

    def __call__(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """[`apply`] to `waveform` what [`draw`] draws from `generator`."""
        return self.apply(waveform, self.draw(generator))


def _is_rising_pair(pair: Any) -> bool:
    return np.shape(pair) == (2,) and bool(-np.inf < pair[0] <= pair[1] < np.inf)


def coloured_noise(num_samples: int, slope: float, generator: np.random.Generator, sampling_rate: float) -> np.ndarray:
    """
    Gaussian noise of mean square 1, whose power falls as 1 / frequency^`slope`. It begins at 100 Hz, since what cannot
    be heard should not count as noise.

    Args:
        num_samples (`int`): Length of the noise, in samples.
        slope (`float`): Exponent of the fall: 0 is white, 1 pink and 2 brown.
        generator (`np.random.Generator`): Generator of the noise.
        sampling_rate (`int`): Sampling rate of the noise, in Hz.

    Returns:
        `np.ndarray` of shape `(num_samples,)`; zeros where it is too short to have such a frequency.
    """
    spectrum = np.fft.rfft(generator.standard_normal(num_samples))
    frequencies = np.fft.rfftfreq(num_samples, 1 / whole_sampling_rate(sampling_rate))
    audible = frequencies >= LOWEST_NOISE
    spectrum[audible] *= frequencies[audible] ** (-slope / 2)
    spectrum[~audible] = 0.0
    noise = np.fft.irfft(spectrum, num_samples)
    power = np.mean(np.square(noise))
    return noise / np.sqrt(power) if power > 0 else noise
