# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What the configurations of all unit models have in common: their speech encoder, and how it hears a batch."""

import math

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_unit_vocoder import UnitVocoderConfig
from .encoder_geometry import frame_geometry, has_fixed_window
from .padding_invariance import FRAME_RULES, num_conv_frames
from .pitch_frames import check_pitch_range


@strict
class UnitsConfig(PreTrainedConfig):
    """
    The encoder of a unit model, which [`UnitPreTrainedModel`] runs. Families add how its frames become codes: a
    `codebook_size`, `num_quantizers`, and the `highest_layer` that they read.

    Args:
        encoder_config (`PreTrainedConfig` or `dict`, *optional*): Configuration of the encoder: one with a
            convolutional front end on the waveform, such as HuBERT's, or Whisper's. Of an encoder-decoder, the encoder
            is used. Defaults to that of HuBERT-base.
        do_normalize (`bool`, defaults to `False`): Whether each waveform is brought to zero mean and unit variance, as
            the large wav2vec 2.0, HuBERT and WavLM want it.
        frame_rule (`str`, defaults to `"conv"`): Rule for the real frames of a padded row: `"conv"`, those that the
            row has alone, or `"fairseq"`, one or two more; see [`num_mask_frames`].
        padding_invariant (`bool`, defaults to `True`): Whether each row of a padded batch gets the units that it gets
            alone. `False` lets the encoder hear the padding, as transformers and fairseq do.
        window (`str`, defaults to `"padded"`): Form of the input of Whisper's encoder; see [`WaveformEncoder`].
        sampling_rate (`int`, defaults to 16000): Sampling rate of the encoder, in Hz.
        vocoder_config (`UnitVocoderConfig` or `dict`, *optional*): Configuration of the vocoder that `decode` uses, if
            one is attached.
        f0_bins (`int`, *optional*): Codes of a codebook of F0 beside the units, the last row of `audio_codes`: 0 for
            what is unvoiced, the others for bins of F0 relative to the speaker's; see [`F0Codebook`]. At most
            `codebook_size`. `None` leaves it out.
        f0_stride (`int`, defaults to 1): Frames that an F0 code lasts.
        f0_floor, f0_ceiling (`float`, defaults to 55 and 550): Range in which F0 is looked for, in Hz.
        f0_prior_mean, f0_prior_deviation (`float`, defaults to 7.4 and 0.3): Mean and deviation of log2 F0 in Hz that
            a recording is taken to have before anything is heard.
        f0_prior_frames (`float`, defaults to 25): Voiced frames that this prior counts for.
    """

    sub_configs = {"encoder_config": AutoConfig, "vocoder_config": UnitVocoderConfig}

    encoder_config: dict | PreTrainedConfig | None = None
    do_normalize: bool = False
    frame_rule: str = "conv"
    padding_invariant: bool = True
    window: str = "padded"
    sampling_rate: int = 16000
    vocoder_config: dict | PreTrainedConfig | None = None
    f0_bins: int | None = None
    f0_stride: int = 1
    f0_floor: float | int = 55.0
    f0_ceiling: float | int = 550.0
    f0_prior_mean: float | int = 7.4
    f0_prior_deviation: float | int = 0.3
    f0_prior_frames: float | int = 25.0

    def __post_init__(self, **kwargs):
        if self.encoder_config is None:
            self.encoder_config = AutoConfig.for_model("hubert")
        elif isinstance(self.encoder_config, dict):
            self.encoder_config = AutoConfig.for_model(**self.encoder_config)
        if isinstance(self.vocoder_config, dict):
            self.vocoder_config = UnitVocoderConfig(**self.vocoder_config)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Dimension of the encoder's frames."""
        return self.encoder_config.hidden_size  # type: ignore[union-attr]

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return frame_geometry(self.encoder_config)[0]

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def bits_per_second(self) -> float:
        """Nominal bit rate, in bit/s."""
        rows = zip(self.codebook_sizes, self.codebook_strides, strict=True)
        return self.frame_rate * sum(math.log2(size) / stride for size, stride in rows)

    @property
    def unit_codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each codebook of units."""
        return (self.codebook_size,) * (self.num_quantizers - self.num_f0_rows)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each codebook, that of F0 the last."""
        return self.unit_codebook_sizes if self.f0_bins is None else (*self.unit_codebook_sizes, self.f0_bins)

    @property
    def codebook_strides(self) -> tuple[int, ...]:
        """Frames that a code of each codebook lasts: `f0_stride` for F0, and 1 for units."""
        strides = (1,) * len(self.unit_codebook_sizes)
        return strides if self.f0_bins is None else (*strides, self.f0_stride)

    @property
    def num_f0_rows(self) -> int:
        """Rows of `audio_codes` that hold F0: 1 or 0."""
        return 0 if self.f0_bins is None else 1

    def get_encoded_length(self, num_samples):
        """Frames for a number of samples (integer or integer tensor)."""
        if has_fixed_window(self.encoder_config):
            return -(-num_samples // self.hop_length)
        return num_conv_frames(self.encoder_config, num_samples)

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        frame_geometry(self.encoder_config)
        if self.frame_rule not in FRAME_RULES:
            raise ValueError(f"`frame_rule` must be 'conv' or 'fairseq', but got {self.frame_rule!r}.")
        if self.frame_rule == "fairseq" and has_fixed_window(self.encoder_config):
            raise ValueError("`frame_rule` 'fairseq' is for encoders with a convolutional front end; use 'conv'.")
        if self.window not in ("padded", "tight"):
            raise ValueError(f"`window` must be 'padded' or 'tight', but got {self.window!r}.")
        if self.f0_bins is not None:
            self._validate_f0()
        if self.vocoder_config is not None:
            for name in ("num_quantizers", "codebook_size", "hop_length", "sampling_rate"):
                wanted, given = getattr(self, name), getattr(self.vocoder_config, name)
                if wanted != given:
                    raise ValueError(f"The vocoder's `{name}` must be that of the units, {wanted}, but is {given}.")
            # Vocoders that say nothing are from before they could.
            sizes = self.vocoder_config.codebook_sizes  # type: ignore[union-attr]
            if sizes is not None and tuple(sizes) != self.codebook_sizes:
                raise ValueError(
                    f"The vocoder's `codebook_sizes` must be those of the units, {list(self.codebook_sizes)}, but are"
                    f" {sizes}."
                )

    def _validate_f0(self) -> None:
        assert self.f0_bins is not None
        if not 3 <= self.f0_bins <= self.codebook_size:
            raise ValueError(
                f"`f0_bins` must lie between 3 and the units' `codebook_size`, {self.codebook_size}, but got"
                f" {self.f0_bins}."
            )
        if self.f0_stride < 1:
            raise ValueError(f"`f0_stride` must be at least 1, but got {self.f0_stride}.")
        check_pitch_range(self.f0_floor, self.f0_ceiling, self.sampling_rate)
        for name in ("f0_prior_deviation", "f0_prior_frames"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, but got {getattr(self, name)}.")
        if not math.isfinite(self.f0_prior_mean):
            raise ValueError(f"`f0_prior_mean` must be finite, but got {self.f0_prior_mean}.")


__all__ = ["UnitsConfig"]
