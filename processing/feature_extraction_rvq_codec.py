# SPDX-License-Identifier: Apache-2.0
"""Feature extractor of the RVQ codec: checks waveforms and pads them into a batch."""

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import PaddingStrategy, TensorType, is_torch_tensor, logging


logger = logging.get_logger(__name__)

_NOT_FLOAT = "`raw_audio` must hold floats in [-1, 1], but got {}; divide 16-bit integers by 32768."
# Resampling and mixing overshoot 1 a little; far beyond it are integers that were cast and not scaled.
_LOUDEST_PLAUSIBLE = 10.0


class RVQCodecFeatureExtractor(SequenceFeatureExtractor):
    """
    Turn mono waveforms into the input of an [`RVQCodecModel`].

    The waveform is passed on as it is: no normalisation, and no padding to whole frames, since the codec gives every
    length back. Only the shorter items of a batch are padded, and `padding_mask` says where.

    Args:
        feature_size (`int`, *optional*, defaults to 1): Number of channels; only 1 (mono) is supported.
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate of the waveforms, in Hz.
        padding_value (`float`, *optional*, defaults to 0.0): Value of padded samples.
        kwargs: Arguments of `SequenceFeatureExtractor`; `padding_side` is `"right"` by default and may be `"left"`.
    """

    model_input_names = ["input_values", "padding_mask"]

    def __init__(self, feature_size: int = 1, sampling_rate: int = 16000, padding_value: float = 0.0, **kwargs):
        if feature_size != 1:
            raise ValueError(f"`feature_size` must be 1, since the codec is mono, but got {feature_size}.")
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)

    def __call__(
        self,
        raw_audio: np.ndarray | list[float] | list[np.ndarray] | list[list[float]],
        padding: bool | str | PaddingStrategy | None = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | TensorType | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_audio (`np.ndarray`, `torch.Tensor`, `list[float]` or a list of these):
                One waveform of shape `(num_samples,)` or `(1, num_samples)`, or a list of them, as floats in [-1, 1].
            padding (`bool`, `str` or `PaddingStrategy`, *optional*, defaults to `True`): Length to pad to: with `True`
                or `"longest"`, the longest of the batch; with `"max_length"`, `max_length`. `False` pads nothing.
            truncation (`bool`, *optional*, defaults to `False`): Whether to cut waveforms longer than `max_length`.
            max_length (`int`, *optional*): Length for `padding="max_length"` and for `truncation`, in samples.
            return_tensors (`str` or `TensorType`, *optional*): Type of the arrays: `"pt"` or `"np"`. Defaults to lists
                of arrays.
            sampling_rate (`int`, *optional*): Sampling rate of `raw_audio` in Hz, to be checked. Pass it: audio at
                another rate gives wrong codes without an error.

        Returns:
            `BatchFeature`: `input_values` of shape `(batch, 1, num_samples)` and `padding_mask` of shape
            `(batch, num_samples)`, 1 for real samples and 0 for padding.

        Raises:
            TypeError: If the samples are not floats.
            ValueError: If `sampling_rate` is wrong, or a waveform is empty, has several channels, or holds NaN or
            infinity.
        """
        if sampling_rate is None:
            logger.warning(
                "`sampling_rate` was not passed, so the rate of `raw_audio` cannot be checked; "
                f"pass the rate of your audio, which must be {self.sampling_rate} Hz for this codec."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"`sampling_rate` is {sampling_rate}, but this codec was trained at {self.sampling_rate} Hz; "
                f"resample first, e.g. with `soxr.resample(audio, {sampling_rate}, {self.sampling_rate})`."
            )

        is_batched = isinstance(raw_audio, list | tuple) and (
            len(raw_audio) == 0 or isinstance(raw_audio[0], list | tuple | np.ndarray) or is_torch_tensor(raw_audio[0])
        )
        # A zero-dimensional element is a single number of a plain list of samples, not a waveform.
        if is_batched and len(raw_audio) and getattr(raw_audio[0], "ndim", 1) == 0:
            is_batched = False
        if is_batched and not len(raw_audio):
            raise ValueError("`raw_audio` is empty; pass at least one waveform with at least one sample.")
        waveforms = list(raw_audio) if is_batched else [raw_audio]
        waveforms = [_to_mono_float32(waveform) for waveform in waveforms]

        # `pad` would stack unpadded waveforms of unequal length, so without padding each goes through it alone.
        strategy = self._get_padding_strategies(padding=True if padding is None else padding, max_length=max_length)
        groups = [[waveform] for waveform in waveforms] if strategy == PaddingStrategy.DO_NOT_PAD else [waveforms]
        input_values: list[np.ndarray] = []
        padding_mask: list[np.ndarray] = []
        for group in groups:
            padded = self.pad(
                {"input_values": group},
                padding=strategy,
                max_length=max_length,
                truncation=truncation,
                return_attention_mask=True,
                return_tensors="np",
            )
            input_values.extend(values[np.newaxis, :] for values in padded["input_values"])
            padding_mask.extend(padded["attention_mask"])
        return BatchFeature({"input_values": input_values, "padding_mask": padding_mask}, tensor_type=return_tensors)


def _to_mono_float32(waveform) -> np.ndarray:
    # Waveform -> array `(num_samples,)` of float32.
    if is_torch_tensor(waveform):
        if not waveform.is_floating_point():
            raise TypeError(_NOT_FLOAT.format(waveform.dtype))
        waveform = waveform.detach().cpu().float().numpy()
    waveform = np.asarray(waveform)
    if waveform.size == 0:
        raise ValueError("`raw_audio` is empty; pass at least one waveform with at least one sample.")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise TypeError(_NOT_FLOAT.format(waveform.dtype))
    if waveform.ndim == 2 and waveform.shape[0] == 1:
        waveform = waveform[0]
    if waveform.ndim != 1:
        raise ValueError(
            f"`raw_audio` must hold mono waveforms of shape (num_samples,), but got one of shape {waveform.shape}; "
            "average the channels first, e.g. `audio.mean(axis=0)`, and pass a batch as a list of waveforms."
        )
    waveform = waveform.astype(np.float32, copy=False)
    if not np.isfinite(waveform).all():
        raise ValueError(
            f"`raw_audio` contains {np.count_nonzero(~np.isfinite(waveform))} NaN or infinite samples; "
            "remove them first, e.g. with `np.nan_to_num`."
        )
    if np.abs(waveform).max() > _LOUDEST_PLAUSIBLE:
        logger.warning(
            f"`raw_audio` reaches {np.abs(waveform).max():.6g}, but samples must lie in [-1, 1]; "
            "divide 16-bit integers by 32768."
        )
    return waveform


__all__ = ["RVQCodecFeatureExtractor"]
