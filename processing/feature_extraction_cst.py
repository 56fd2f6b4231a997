# SPDX-License-Identifier: Apache-2.0
"""Feature extractor of the continuous speech tokens."""

import math

import numpy as np
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import is_torch_tensor

from .feature_extraction_rvq_codec import RVQCodecFeatureExtractor


# Zero crossings of the interpolation's sinc on either side, and the Kaiser window's shape: 80 dB of stop band.
_NUM_ZEROS, _KAISER_BETA = 32, 8.0


class CSTFeatureExtractor(RVQCodecFeatureExtractor):
    """
    Waveforms to padded batches, as [`RVQCodecFeatureExtractor`] does it, and resampled where that is asked for.

    Args:
        kwargs: Arguments of [`RVQCodecFeatureExtractor`].
    """

    def __call__(
        self, raw_audio, *args, sampling_rate: int | None = None, resample: bool = False, **kwargs
    ) -> BatchFeature:
        """
        Args:
            raw_audio: Waveforms; see [`RVQCodecFeatureExtractor`].
            sampling_rate (`int`, *optional*): Sampling rate of `raw_audio`, in Hz. Another rate than the model's is an
                error, unless `resample` is true.
            resample (`bool`, *optional*, defaults to `False`): Whether to bring waveforms of another `sampling_rate`
                to the model's, by a windowed sinc. Frequencies that one of the two rates does not have are removed.
            args, kwargs: Arguments of the call of [`RVQCodecFeatureExtractor`].

        Raises:
            TypeError: If the samples are not floats.
            ValueError: If `resample` lacks a `sampling_rate`, or for what [`RVQCodecFeatureExtractor`] refuses.
        """
        if resample:
            if sampling_rate is None:
                raise ValueError("`resample=True` needs the `sampling_rate` of `raw_audio`, but got none.")
            if sampling_rate != self.sampling_rate:
                raw_audio = self._resampled(raw_audio, sampling_rate)
                sampling_rate = self.sampling_rate
        return super().__call__(raw_audio, *args, sampling_rate=sampling_rate, **kwargs)  # type: ignore[misc]

    def _resampled(self, raw_audio, sampling_rate: int):
        if isinstance(raw_audio, list | tuple) and any(np.ndim(item) > 0 for item in raw_audio):
            return [self._resampled(item, sampling_rate) for item in raw_audio]
        waveform = raw_audio.detach().cpu().numpy() if is_torch_tensor(raw_audio) else np.asarray(raw_audio)
        # What is no waveform is refused, with the reason, by the class above.
        if (
            waveform.size == 0
            or not np.issubdtype(waveform.dtype, np.floating)
            or waveform.shape[:-1] not in ((), (1,))
        ):
            return waveform
        return resample_waveform(waveform.reshape(-1), sampling_rate, self.sampling_rate)


def resample_waveform(waveform: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """
    Resample by a Kaiser-windowed sinc.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): Samples, as floats.
        source_rate, target_rate (`int`): Sampling rates of the waveform and of the result, in Hz.

    Returns:
        `np.ndarray` of shape `(ceil(num_samples * target_rate / source_rate),)`: Resampled waveform in float32, in
            time with the original.

    Raises:
        ValueError: If a rate is not positive.
    """
    if source_rate < 1 or target_rate < 1:
        raise ValueError(f"Sampling rates must be positive, but are {source_rate} and {target_rate}.")
    divisor = math.gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    # The pass band, relative to the source's; a little is left for the slope of the filter.
    cutoff = min(1.0, up / down) * (1 - 2.0 / _NUM_ZEROS)
    reach = math.ceil(_NUM_ZEROS / cutoff)
    padded = np.pad(waveform.astype(np.float64), (reach, reach + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)  # window k is centred on sample k
    num_samples = -(-len(waveform) * up // down)
    result = np.empty(num_samples)
    for phase in range(min(up, num_samples)):
        # Output samples phase, phase + up, ... lie at the same fraction behind a sample of the input.
        first, numerator = divmod(phase * down, up)
        offsets = np.arange(-reach, reach + 1) - numerator / up
        taper = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (offsets / (reach + 1)) ** 2, 0, None))) / np.i0(_KAISER_BETA)
        taps = cutoff * np.sinc(cutoff * offsets) * taper
        taps /= taps.sum()  # a constant stays what it is
        count = -(-(num_samples - phase) // up)
        result[phase::up] = windows[first : first + (count - 1) * down + 1 : down] @ taps
    return result.astype(np.float32)


__all__ = ["CSTFeatureExtractor"]
