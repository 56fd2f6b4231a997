# SPDX-License-Identifier: Apache-2.0
"""Feature extractor of the RVQ codec: checks waveforms and pads them into a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import PaddingStrategy, TensorType, is_torch_tensor, logging

from .resampling import resample_waveform
from .sampling_rates import whole_sampling_rate
from .waveform_rows import Waveform, as_samples, as_waveforms, check_mask, one_row, padded_rows


logger = logging.get_logger(__name__)


class RVQCodecFeatureExtractor(SequenceFeatureExtractor):
    """
    Turn mono waveforms into the input of an [`RVQCodecModel`].

    The waveform is passed on as it is: no normalisation, and no padding to whole frames, since the codec gives every
    length back. Only the shorter items of a batch are padded, and `padding_mask` says where. Waveforms of another rate
    are refused, or resampled where that is asked for.

    Args:
        feature_size (`int`, *optional*, defaults to 1): Number of channels; only 1 (mono) is supported.
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate of the waveforms, in Hz.
        padding_value (`float`, *optional*, defaults to 0.0): Value of padded samples.
        kwargs: Arguments of `SequenceFeatureExtractor`; `padding_side` is `"right"` by default and may be `"left"`.

    Attributes:
        padding_sides (`tuple` of `str`): Sides on which the model takes padding.
    """

    model_input_names = ["input_values", "padding_mask"]
    padding_sides: tuple[str, ...] = ("right", "left")

    def __init__(self, feature_size: int = 1, sampling_rate: int = 16000, padding_value: float = 0.0, **kwargs):
        if feature_size != 1:
            raise ValueError(f"`feature_size` must be 1, since the codec is mono, but got {feature_size}.")
        if kwargs.get("padding_side", "right") not in self.padding_sides:
            sides = " or ".join(map(repr, self.padding_sides))
            raise ValueError(f"`padding_side` must be {sides}, but got {kwargs['padding_side']!r}.")
        if isinstance(padding_value, bool) or not np.isfinite(
            np.float32(np.nan if padding_value is None else padding_value)
        ):
            raise ValueError(f"`padding_value` must be a number, but got {padding_value!r}.")
        super().__init__(
            feature_size=feature_size,
            sampling_rate=whole_sampling_rate(sampling_rate),
            padding_value=padding_value,
            **kwargs,
        )

    def __call__(
        self,
        raw_audio: Any,
        padding: bool | str | PaddingStrategy | None = True,
        truncation: bool = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        sampling_rate: int | None = None,
        resample: bool = False,
    ) -> BatchFeature:
        """
        Args:
            raw_audio (`np.ndarray`, `torch.Tensor`, `list[float]`, `dict` or a list of these):
                One waveform of shape `(num_samples,)` or `(1, num_samples)`, or a list of them, as floats of any
                precision in [-1, 1]. Decoded rows of `datasets`, `{"array", "sampling_rate"}`, bring their own rate.
            padding (`bool`, `str` or `PaddingStrategy`, *optional*, defaults to `True`): Length to pad to: with `True`
                or `"longest"`, the longest of the batch; with `"max_length"`, `max_length`. `False` pads nothing.
            truncation (`bool`, *optional*, defaults to `False`): Whether to cut waveforms longer than `max_length`.
            max_length (`int`, *optional*): Length for `padding="max_length"` and for `truncation`, in samples.
            pad_to_multiple_of (`int`, *optional*): Number of samples of which the length that is padded to, and
                `max_length`, become the next multiple.
            return_tensors (`str` or `TensorType`, *optional*): Type of the arrays: `"pt"` or `"np"`. Defaults to lists
                of arrays, which rows of different lengths stay with `"np"`, too.
            sampling_rate (`int`, *optional*): Sampling rate of `raw_audio` in Hz, to be checked. Pass it: audio at
                another rate gives wrong codes without an error.
            resample (`bool`, *optional*, defaults to `False`): Whether to bring waveforms of another rate to the
                model's, by a windowed sinc; see [`resample_waveform`].

        Returns:
            `BatchFeature`: `input_values` of shape `(batch, 1, num_samples)` and `padding_mask` of shape
            `(batch, num_samples)`, 1 for real samples and 0 for padding.

        Raises:
            TypeError: If the samples are not floats.
            ValueError: If a rate is wrong or two rates contradict each other, a length makes no sense, or a waveform
            is empty, has several channels, or holds NaN, infinity or what is no audio.
        """
        given_rate = None if sampling_rate is None else whole_sampling_rate(sampling_rate)
        recordings = as_waveforms(raw_audio)
        if given_rate is None and any(recording.sampling_rate is None for recording in recordings):
            if resample:
                raise ValueError("`resample=True` needs the `sampling_rate` of `raw_audio`, but got none.")
            logger.warning(
                "`sampling_rate` was not passed, so the rate of `raw_audio` cannot be checked; "
                f"pass the rate of your audio, which must be {self.sampling_rate} Hz for this codec."
            )
        names = ["raw_audio"] if len(recordings) == 1 else [f"raw_audio[{k}]" for k in range(len(recordings))]
        rows = [
            self._samples(recording, given_rate, resample, name)
            for recording, name in zip(recordings, names, strict=True)
        ]
        waveforms = {"input_values": rows}
        batch = self._batch(waveforms, padding, max_length, truncation, pad_to_multiple_of, return_tensors)
        return _converted(batch, return_tensors)

    def pad(
        self,
        processed_features: Any,
        padding: bool | str | PaddingStrategy | None = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """
        Pad rows that `__call__` or a dataset gave, so that a `Trainer` with this extractor as `processing_class` and a
        `DataCollatorWithPadding` give the model what it takes.

        Args:
            processed_features (`list[dict]` or `dict` of lists): Rows with `input_values` of shape `(num_samples,)` or
                `(1, num_samples)`, and perhaps their `padding_mask`; what it hides is dropped. Further waveforms of a
                row, such as `perturbed_values`, have names that end in `_values` and the same length. Anything else
                is stacked. A dictionary of waveforms without channels gives `(batch, num_samples)`, as in other
                feature extractors; the models take that, too.
            padding, truncation, max_length, pad_to_multiple_of: See `__call__`.
            return_attention_mask (`bool`, *optional*): Not used: the models take a `padding_mask` in any case.
            return_tensors (`str` or `TensorType`, *optional*): Type of the arrays. Defaults to that of the rows.

        Returns:
            `BatchFeature`: `input_values` of shape `(batch, 1, num_samples)`, `padding_mask` of shape
            `(batch, num_samples)`, and what else the rows had.

        Raises:
            TypeError: If the samples are not floats.
            ValueError: If a row lacks what another has, or its samples, mask or lengths are wrong.
        """
        columns = _columns(processed_features)
        if not len(columns.get("input_values", ())):
            raise ValueError(f"The rows to pad must have `input_values`, but have {list(columns)}.")
        if "attention_mask" in columns:
            raise ValueError("The models take a `padding_mask`; rename `attention_mask`, so that it is not lost.")
        has_channels = not isinstance(processed_features, Mapping) or np.ndim(columns["input_values"][0]) > 1
        tensors = "pt" if is_torch_tensor(columns["input_values"][0]) else "np"
        waveforms = {
            name: [as_samples(one_row(row), f"{name}[{k}]") for k, row in enumerate(rows)]
            for name, rows in columns.items()
            if name.endswith("_values")
        }
        lengths = [len(row) for row in waveforms["input_values"]]
        for name, rows in waveforms.items():
            if [len(row) for row in rows] != lengths:
                raise ValueError(f"`{name}` must be as long as `input_values` in each row, {lengths} samples.")
        if "padding_mask" in columns:
            masks = [
                check_mask(mask, length, f"padding_mask[{k}]")
                for k, (mask, length) in enumerate(zip(columns["padding_mask"], lengths, strict=True))
            ]
            waveforms = {
                name: [row[mask] for row, mask in zip(rows, masks, strict=True)] for name, rows in waveforms.items()
            }
            lengths = [int(mask.sum()) for mask in masks]
        others = {
            name: [np.asarray(row.detach().cpu() if is_torch_tensor(row) else row) for row in rows]
            for name, rows in columns.items()
            if name not in waveforms and name != "padding_mask"
        }
        for name, rows in others.items():
            if len({row.shape for row in rows}) > 1:
                raise ValueError(
                    f"`{name}` has different shapes in the rows of a batch, {sorted({row.shape for row in rows})};"
                    " pad it in a collator of your own."
                )
        batch = self._batch(waveforms, padding, max_length, truncation, pad_to_multiple_of, return_tensors)
        if not has_channels:
            batch.update({name: [row[0] for row in batch[name]] for name in waveforms})
        batch.update(others)
        return _converted(batch, return_tensors or tensors)

    def _samples(self, recording: Waveform, given_rate: int | None, resample: bool, name: str) -> np.ndarray:
        # Samples `(num_samples,)` of a recording, at the extractor's rate.
        own_rate = recording.sampling_rate
        if own_rate is not None and given_rate is not None and own_rate != given_rate:
            raise ValueError(
                f"`sampling_rate` is {given_rate}, but `{name}` has {own_rate} Hz; leave out"
                " `sampling_rate`, since rows bring their own."
            )
        rate = own_rate or given_rate or self.sampling_rate
        if rate != self.sampling_rate and not resample:
            raise ValueError(
                f"`sampling_rate` is {rate}, but this codec was trained at {self.sampling_rate} Hz; pass"
                f" `resample=True`, or resample first, e.g. with `soxr.resample(audio, {rate}, {self.sampling_rate})`."
            )
        samples = as_samples(recording.samples, name)
        return samples if rate == self.sampling_rate else resample_waveform(samples, rate, self.sampling_rate)

    def _batch(
        self,
        waveforms: dict[str, list[np.ndarray]],
        padding: bool | str | PaddingStrategy | None,
        max_length: int | None,
        truncation: bool,
        pad_to_multiple_of: int | None,
        return_tensors: str | TensorType | None,
    ) -> BatchFeature:
        # Lists of waveforms `(1, num_samples)` and their masks.
        strategy = self._get_padding_strategies(padding=True if padding is None else padding, max_length=max_length)
        for name, value in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
                raise ValueError(f"`{name}` must be a positive number of samples, but got {value!r}.")
        if truncation and max_length is None:
            raise ValueError("`truncation=True` needs `max_length`, the number of samples to keep.")
        multiple = pad_to_multiple_of or 1
        limit = None if max_length is None else -(-max_length // multiple) * multiple
        if max_length is not None and not truncation and strategy != PaddingStrategy.MAX_LENGTH:
            logger.warning("`max_length` does nothing without `truncation=True` or `padding='max_length'`.")
        if pad_to_multiple_of is not None and strategy == PaddingStrategy.DO_NOT_PAD and not truncation:
            logger.warning("`pad_to_multiple_of` does nothing with `padding=False`.")
        masks = [np.ones(len(row), np.int32) for row in waveforms["input_values"]]
        columns: dict[str, Any] = {**waveforms, "padding_mask": masks}
        if truncation:
            columns = {name: [row[:limit] for row in rows] for name, rows in columns.items()}
        lengths = [len(row) for row in columns["padding_mask"]]
        if strategy != PaddingStrategy.DO_NOT_PAD:
            longest = -(-max(lengths) // multiple) * multiple
            target = longest if strategy == PaddingStrategy.LONGEST or limit is None else limit
            for name, rows in columns.items():
                columns[name] = padded_rows(
                    rows, target, self.padding_side, 0 if name == "padding_mask" else self.padding_value
                )
        found = {len(row) for row in columns["padding_mask"]}
        if return_tensors == TensorType.PYTORCH and len(found) > 1:
            remedy = "pass `padding=True`, or leave out `return_tensors`"
            if strategy == PaddingStrategy.MAX_LENGTH:
                remedy = f"some are longer than `max_length` ({max_length}); pass `truncation=True` to cut them"
            raise ValueError(f"No tensor can hold rows of {len(found)} different lengths: {remedy}.")
        for name in waveforms:
            rows = columns[name]
            columns[name] = rows[:, np.newaxis] if isinstance(rows, np.ndarray) else [row[np.newaxis] for row in rows]
        return BatchFeature(columns)


def _converted(batch: BatchFeature, return_tensors: str | TensorType | None) -> BatchFeature:
    # Rows of different lengths stay a list.
    if return_tensors is None or len({len(mask) for mask in batch["padding_mask"]}) > 1:
        batch.update({name: list(rows) for name, rows in batch.items() if isinstance(rows, np.ndarray)})
        return batch
    return batch.convert_to_tensors(return_tensors)


def _columns(rows: Any) -> dict[str, Sequence[Any]]:
    # A list of rows, or a dictionary of columns -> columns of equal length.
    if isinstance(rows, Mapping):
        columns = dict(rows)
        # One row by itself.
        if len(columns.get("input_values", ())) and np.ndim(columns["input_values"][0]) == 0:
            columns = {name: [value] for name, value in columns.items()}
    else:
        rows = list(rows)
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise ValueError("The rows to pad must be dictionaries with `input_values`, at least one.")
        names = list(rows[0])
        for number, row in enumerate(rows):
            if set(row) != set(names):
                raise ValueError(f"Row {number} has {sorted(row)}, but row 0 has {sorted(names)}.")
        columns = {name: [row[name] for row in rows] for name in names}
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"The columns have different lengths: { {name: len(c) for name, c in columns.items()} }.")
    return columns


__all__ = ["RVQCodecFeatureExtractor"]
