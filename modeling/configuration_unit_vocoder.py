# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Configuration of the unit vocoder and its named presets."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_codec import check_spectra
from .input_checks import check_codebook_sizes


UNIT_VOCODER_PRESETS = {
    # 3 million parameters: one CPU core trains some ten minutes of speech a minute.
    "unit-vocoder-16khz": {
        "hidden_size": 128,
        "decoder_hidden_size": 256,
        "decoder_num_layers": 6,
        "n_fft": 640,
        "decoder_spectra": 2,
        "decoder_complex_residual": True,
    },
}


@strict
class UnitVocoderConfig(PreTrainedConfig):
    """
    Configuration of a [`UnitVocoderModel`]: tables of units and speakers, ConvNeXt blocks and an inverse STFT.

    Args:
        num_quantizers (`int`, defaults to 1): Codes per frame.
        codebook_size (`int`, defaults to 100): Entries per codebook.
        codebook_sizes (`list[int]`, *optional*): Codes that each codebook of the units has, where these are not
            equally large, as with F0: at most `codebook_size`. Others are refused. Defaults to `codebook_size` each.
        sampling_rate (`int`, defaults to 16000): Samples per second of the waveform, in Hz.
        hop_length (`int`, defaults to 320): Samples per frame.
        hidden_size (`int`, defaults to 128): Dimension of the units' and speakers' vectors.
        decoder_hidden_size (`int`, defaults to 256): Width of the ConvNeXt blocks.
        decoder_num_layers (`int`, defaults to 6): Number of ConvNeXt blocks.
        convnext_kernel_size (`int`, defaults to 7): Kernel of the blocks' depthwise convolutions, in frames.
        convnext_expansion (`int`, defaults to 3): Inner width of a block relative to its width.
        n_fft (`int`, *optional*): Window of the inverse STFT, in samples; a multiple of `hop_length /
            decoder_spectra`. Defaults to four hops.
        decoder_spectra (`int`, defaults to 1), decoder_complex_residual (`bool`, defaults to `False`): Number of
            spectra that the inverse STFT makes of a frame, and whether it adds real and imaginary parts to them; see
            [`CodecConfig`].
        num_speakers (`int`, *optional*): Number of speakers; `speaker_ids` are below it.
        speaker_names (`list[str]`, *optional*): Names of the speakers, in the order of their numbers.
        default_speaker (`int`, *optional*): Number of the speaker for calls that name none. Without it, each call must
            name a speaker.
        speaker_embedding_dim (`int`, *optional*): Dimension of `speaker_embeddings`, in place of `num_speakers`.
        predicts_durations (`bool`, defaults to `False`): Whether the model also predicts how many frames a unit lasts,
            for units that were de-duplicated.
    """

    model_type = "speech_tokenizers_unit_vocoder"
    # What the codecs' layers also ask for.
    causal: ClassVar[bool] = False
    pad_mode: ClassVar[str] = "constant"
    use_weight_norm: ClassVar[bool] = False

    num_quantizers: int = 1
    codebook_size: int = 100
    codebook_sizes: list[int] | None = None
    sampling_rate: int = 16000
    hop_length: int = 320
    hidden_size: int = 128
    decoder_hidden_size: int = 256
    decoder_num_layers: int = 6
    convnext_kernel_size: int = 7
    convnext_expansion: int = 3
    n_fft: int | None = None
    decoder_spectra: int = 1
    decoder_complex_residual: bool = False
    num_speakers: int | None = None
    speaker_names: list[str] | None = None
    default_speaker: int | None = None
    speaker_embedding_dim: int | None = None
    predicts_durations: bool = False

    def __post_init__(self, **kwargs):
        if self.n_fft is None:
            self.n_fft = 4 * self.hop_length
        if self.speaker_names is not None and self.num_speakers is None:
            self.num_speakers = len(self.speaker_names)
        super().__post_init__(**kwargs)

    @property
    def decoder_n_fft(self) -> int | None:
        """`n_fft`, under the name that codecs have for it."""
        return self.n_fft

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sampling_rate / self.hop_length

    @property
    def has_default_voice(self) -> bool:
        """Whether it speaks without being told in whose voice."""
        is_single = self.num_speakers is None and self.speaker_embedding_dim is None
        return is_single or self.default_speaker is not None

    @property
    def bits_per_second(self) -> float:
        """Nominal bit rate of the codes, in bit/s, with a code of each codebook for each frame."""
        sizes = self.codebook_sizes or [self.codebook_size] * self.num_quantizers
        return self.frame_rate * sum(math.log2(size) for size in sizes)

    def validate_architecture(self):
        """Raises `ValueError` where fields contradict each other."""
        positive = [
            "num_quantizers",
            "sampling_rate",
            "hop_length",
            "hidden_size",
            "decoder_hidden_size",
            "decoder_num_layers",
            "convnext_kernel_size",
            "convnext_expansion",
            "num_speakers",
            "speaker_embedding_dim",
        ]
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {value}.")
        if self.codebook_size < 2:
            raise ValueError(f"`codebook_size` must be at least 2, but got {self.codebook_size}.")
        check_codebook_sizes(self.codebook_sizes, self.num_quantizers, self.codebook_size)
        if self.default_speaker is not None and not 0 <= self.default_speaker < (self.num_speakers or 0):
            raise ValueError(
                f"`default_speaker` must lie below `num_speakers` ({self.num_speakers or 0}), but got"
                f" {self.default_speaker}."
            )
        check_spectra(self.n_fft, self.decoder_spectra, self.hop_length, "hop_length", causal=False, name="n_fft")
        if self.num_speakers is not None and self.speaker_embedding_dim is not None:
            raise ValueError("`num_speakers` and `speaker_embedding_dim` exclude each other; give one of them.")
        if self.speaker_names is not None and len(set(self.speaker_names)) != self.num_speakers:
            raise ValueError(
                f"`speaker_names` must be {self.num_speakers} different names, but has {len(self.speaker_names)}, of "
                f"which {len(set(self.speaker_names))} differ."
            )


__all__ = ["UNIT_VOCODER_PRESETS", "UnitVocoderConfig"]
