# SPDX-License-Identifier: Apache-2.0
"""
Another voice for the same words by Praat's "Change gender", as NANSY, ContentVec and Spin perturb speakers.

It needs `praat-parselmouth`, which is under the GPL and therefore an extra; [`change_voice`] is the alternative.
"""

import numpy as np

from .optional_packages import require_package
from .pitch_tracking import track_pitch
from .sampling_rates import whole_sampling_rate


def change_voice_by_praat(
    waveform: np.ndarray,
    sampling_rate: float,
    formant_ratio: float = 1.0,
    f0_ratio: float = 1.0,
    f0_range_ratio: float = 1.0,
    f0_floor: float = 60.0,
    f0_ceiling: float = 500.0,
    narrow: bool = True,
    f0_median: float | None = None,
    seed: int = 5489,
) -> np.ndarray:
    """
    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): Speech of one speaker.
        sampling_rate (`int`): Sampling rate of the waveform, in Hz.
        formant_ratio, f0_ratio, f0_range_ratio (`float`): Ratios of the formants, and of the median and range of the
            fundamental frequency; see [`change_voice`].
        f0_floor, f0_ceiling (`float`), narrow (`bool`): Range in which the fundamental frequency is looked for, in Hz,
            and whether [`track_pitch`] first finds the speaker's own range within it.
        f0_median (`float`, *optional*): New median of the fundamental frequency in Hz, in place of `f0_ratio`.
        seed (`int`): Seed for Praat's own random numbers, which place periods. Other generators do not touch them, and
            without a seed no two calls are alike.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float64: Changed speech; an unchanged copy if nothing in it is voiced.

    Raises:
        MissingPackageError: If parselmouth is not installed.
    """
    require_package("parselmouth", "The perturbation by Praat", command="pip install 'speech-tokenizers[praat]'")
    import parselmouth
    from parselmouth.praat import call

    sampling_rate = whole_sampling_rate(sampling_rate)
    waveform = np.asarray(waveform, np.float64)
    if narrow:
        track = track_pitch(waveform, sampling_rate, f0_floor, f0_ceiling)
        if not track.voiced.any():
            return waveform.copy()
        low, high = np.quantile(track.frequencies[track.voiced], [0.25, 0.75])
        f0_floor, f0_ceiling = max(f0_floor, 0.75 * low), min(f0_ceiling, 1.9 * high)
    if len(waveform) < 3.1 * sampling_rate / f0_floor:  # Praat refuses what is shorter than three periods
        return waveform.copy()
    parselmouth.praat.run(f"random_initializeWithSeedUnsafelyButPredictably ({seed})")
    sound = parselmouth.Sound(waveform, sampling_rate)
    pitch = sound.to_pitch_ac(pitch_floor=f0_floor, pitch_ceiling=f0_ceiling, time_step=0.8 / f0_floor)
    frequencies = pitch.selected_array["frequency"]
    if not (frequencies > 0).any():
        return waveform.copy()
    if f0_median is None:
        f0_median = float(np.median(frequencies[frequencies > 0])) * f0_ratio
    changed = call([sound, pitch], "Change gender", formant_ratio, f0_median, f0_range_ratio, 1.0).values[0]
    result = np.zeros_like(waveform)
    result[: len(changed)] = changed[: len(waveform)]
    return result
