# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What all unit models have in common, however the frames of their speech encoder become codes."""

import hashlib
import sys
from collections.abc import Sequence
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, WhisperFeatureExtractor
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from .checked_loading import CheckedLoading
from .codec_interface import SpeechCodec, SpeechStream, TokenKind
from .configuration_units import UnitsConfig
from .encoder_geometry import first_frame_centre, frame_geometry, has_fixed_window, num_encoder_layers
from .f0_codebook import F0_DIM, F0Codebook, F0Stream
from .input_checks import check_codes, check_waveforms
from .mixed_precision import MixedPrecisionModel, at_least_single, guard_convolutions
from .modeling_unit_vocoder import UnitVocoderModel, UnitVocoderOutput
from .padding_invariance import frame_mask, make_padding_invariant
from .speech_encoders import encoder_of, load_pretrained, spectrogram_states, transformer_layers, waveform_states
from .unit_streaming import WindowedUnitStream


# Fields of the configuration that an F0 codebook goes by, besides its size.
F0_NUMBERS = (*("f0_stride", "f0_floor", "f0_ceiling", "f0_prior_mean", "f0_prior_deviation", "f0_prior_frames"),)
# Recordings up to this length are heard whole, longer ones in windows.
_WHOLE_SECONDS = 60


class UnitPreTrainedModel(MixedPrecisionModel, SpeechCodec, CheckedLoading, PreTrainedAudioTokenizerBase):
    """
    A speech encoder whose frames become codes, and perhaps a vocoder that speaks them.

    A padded batch gives each item the units that it gets alone, but where two codes are equally near up to rounding.

    Args:
        config ([`UnitsConfig`]): The encoder, and the fields that a family adds.
    """

    config_class = UnitsConfig
    main_input_name = "input_values"
    input_modalities = "audio"
    lies_on_one_device = True
    warns_of_half = True
    # Flash Attention is not claimed, since no test can compare it here.
    _supports_sdpa = True

    def __init__(self, config: UnitsConfig):
        super().__init__(config)
        self.encoder = encoder_of(AutoModel.from_config(config.encoder_config))
        self.vocoder = None
        if config.vocoder_config is not None:
            self.vocoder = UnitVocoderModel(config.vocoder_config)  # type: ignore[arg-type]
            self.vocoder.codebook_sizes = list(config.codebook_sizes)
        self.f0_codebook = None if config.f0_bins is None else F0Codebook(config)
        self._prepare_encoder()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, F0Codebook):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @classmethod
    def from_encoder(
        cls, name_or_path: str, from_pretrained_kwargs: dict[str, Any] | None = None, **fields: Any
    ) -> Self:
        """
        A model without codebooks of its own yet on a pretrained encoder, whose layers above the highest one read are
        dropped.

        Args:
            name_or_path (`str`): Folder or Hub id of any speech model that `AutoModel` knows.
            from_pretrained_kwargs (`dict`, *optional*): Arguments of `from_pretrained`, such as `{"revision": ...}`.
            fields: Fields of the model's configuration.

        Raises:
            ValueError: If there is no such encoder, it is of another kind, or a field is wrong.
        """
        model, processor = load_pretrained(name_or_path, **from_pretrained_kwargs or {})
        pretrained = encoder_of(model)
        fields.setdefault("do_normalize", not has_fixed_window(pretrained.config) and processor.do_normalize)
        fields.setdefault("sampling_rate", processor.sampling_rate)
        config = cls.config_class(encoder_config=pretrained.config, **fields)
        highest = max(1, config.highest_layer)
        if highest < num_encoder_layers(config.encoder_config):
            _keep_layers(pretrained, highest)
            config = cls.config_class(encoder_config=pretrained.config, **fields)
        model = cls(config)
        model.encoder = pretrained
        model._prepare_encoder()
        return model.eval()

    def _prepare_encoder(self) -> None:
        config = self.config
        if config.padding_invariant:
            make_padding_invariant(self.encoder)
        guard_convolutions(self.encoder)
        self._log_mel = None
        if has_fixed_window(config.encoder_config):
            self._log_mel = WhisperFeatureExtractor(feature_size=config.encoder_config.num_mel_bins)
        self._freeze_encoder()

    def _freeze_encoder(self) -> None:
        # Also keeps the encoder's SpecAugment, layer drop and dropout off, which go by its mode.
        self.encoder.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """The encoder stays in evaluation mode where it is frozen."""
        super().train(mode)
        self._freeze_encoder()
        return self

    def get_encoded_length(self, num_samples):
        """Frames for a number of samples (integer or integer tensor)."""
        return self.config.get_encoded_length(num_samples)

    def frame_centres(self, num_frames: int) -> torch.Tensor:
        """Times of the middles of the first frames, `(num_frames,)`, in seconds."""
        first = first_frame_centre(self.config.encoder_config)
        return (first + self.hop_length * torch.arange(num_frames, dtype=torch.float64)) / self.sampling_rate

    @property
    def decodable_kinds(self) -> tuple[TokenKind, ...]:
        """See [`SpeechCodec.decodable_kinds`]: codes, once a vocoder is attached."""
        return () if self.vocoder is None else ("codes",)

    @property
    def shortest_input(self) -> int:
        """Fewest samples that give a frame."""
        return self.frame_span

    @property
    def longest_exact_stream(self) -> int:
        """
        See [`SpeechCodec.longest_exact_stream`]: a minute, or what the encoder hears at once. The encoders of units
        hear all that they are given, so units near the edge of a window differ from those of the whole recording.
        """
        return min(_WHOLE_SECONDS * self.sampling_rate, self.longest_input or sys.maxsize)

    def voice_arguments(self, voice: str | None = None) -> dict[str, torch.Tensor]:
        """See [`SpeechCodec.voice_arguments`]: one of the vocoder's `speaker_names`, by default `default_speaker`."""
        config = None if self.vocoder is None else self.vocoder.config
        if config is not None and config.speaker_embedding_dim is not None:
            raise ValueError(
                "the vocoder wants a vector of a speaker; only voices that it has itself can be chosen here"
            )
        if config is None or config.num_speakers is None:
            return super().voice_arguments(voice)
        names = config.speaker_names or [str(number) for number in range(config.num_speakers)]
        if voice is not None and voice not in names:
            raise ValueError(f"the vocoder has no voice {voice!r}; it has {', '.join(names[:5])}, ...")
        number = (config.default_speaker or 0) if voice is None else names.index(voice)
        return {"speaker_ids": torch.tensor([number], device=self.device)}

    def encode_stream(
        self,
        kind: TokenKind | None = None,
        num_quantizers: int | None = None,
        speaker_f0: torch.Tensor | None = None,
    ) -> SpeechStream:
        """
        See [`SpeechCodec.encode_stream`]. The codes are those of [`WindowedEncoder`].

        Args:
            kind, num_quantizers: Arguments of [`SpeechCodec.encode_stream`].
            speaker_f0 (`torch.Tensor` of shape `(1, 2)`, *optional*): Mean and deviation of log2 F0 in Hz of the
                speaker; see [`UnitStream`].

        Raises:
            TypeError: If `speaker_f0` is no tensor.
            ValueError: If `speaker_f0` has another shape, is not finite, a deviation is not positive, or no row of F0
                is given; and see [`SpeechCodec.encode_stream`].
        """
        self.check_kind(kind)
        return WindowedUnitStream(self, num_quantizers, speaker_f0=speaker_f0)

    @property
    def decode_look_ahead(self) -> int:
        """See [`SpeechCodec.decode_look_ahead`]; one more than the vocoder's, since the last frame differs."""
        return self.needed_vocoder().decoder_context[1] + 1

    def decode_stream(
        self, kind: TokenKind | None = None, num_samples: int | None = None, eager: bool = False
    ) -> SpeechStream:
        """See [`SpeechCodec.decode_stream`]. The samples are those of all units at once, in one voice."""
        self.needed_vocoder()
        self.check_kind(kind, decode=True)
        return WindowedUnitStream(self, num_samples=num_samples, eager=eager)

    def encode_features(self, features: dict[str, torch.Tensor], num_quantizers: int | None = None) -> Any:
        """See [`SpeechCodec.encode_features`]. A codebook's units do not depend on the others'."""
        encoded = self.encode(**features, return_dict=True)
        encoded["audio_codes"] = encoded["audio_codes"][:, : self.check_num_quantizers(num_quantizers)]
        return encoded

    def codebook_vectors(self) -> torch.Tensor:
        """
        See [`SpeechCodec.codebook_vectors`]; the centroids, `(num_quantizers, codebook_size, dim)`. Of F0 codes, the
        last two dimensions alone are not 0.
        """
        vectors = self.unit_vectors()
        if self.f0_codebook is None:
            return vectors
        added = self.f0_codebook.vectors().to(vectors.device)
        padded = F.pad(vectors, (0, F0_DIM, 0, 0, 0, 1))
        padded[-1, : len(added), -F0_DIM:] = added
        return padded

    @torch.no_grad()
    def unit_vectors(self) -> torch.Tensor:
        """What each code of each codebook of units stands for, `(num_codebooks, codebook_size, dim)`, float32."""
        return self.centroids.detach().float()

    def _fingerprinted(self) -> list[torch.Tensor]:
        f0 = [] if self.f0_codebook is None else [self.f0_codebook.boundaries, self.f0_codebook.centres]
        return [*self.centroids, *f0]

    def encoder_fingerprint(self) -> str:
        """See [`SpeechCodec.encoder_fingerprint`]; with an F0 codebook, what it tells F0 by decides too."""
        fingerprint = super().encoder_fingerprint()
        if self.f0_codebook is None:
            return fingerprint
        numbers = [float(getattr(self.config, name)) for name in F0_NUMBERS]
        return hashlib.sha256(f"{fingerprint} {numbers}".encode()).hexdigest()[:16]

    def add_f0(self, f0_bins: int, **fields: Any) -> None:
        """
        Put a codebook of F0 beside the units; `training.units.f0_fitting` fits its bins and prior to speech.

        Args:
            f0_bins (`int`): Codes of F0; see [`UnitsConfig`].
            fields: Other fields of F0 of the configuration, such as `f0_stride` or `f0_prior_mean`.

        Raises:
            TypeError: If a field is not one of F0.
            ValueError: If there is such a codebook already, a vocoder is attached, which speaks units without it, or a
                field is wrong.
        """
        if unknown := sorted(fields.keys() - {*F0_NUMBERS}):
            raise TypeError(f"`add_f0` has no argument {unknown[0]!r}; it has {', '.join(F0_NUMBERS)}.")
        if self.f0_codebook is not None:
            raise ValueError("These units have an F0 codebook already.")
        if self.vocoder is not None:
            raise ValueError(
                "The attached vocoder speaks units without F0; set `vocoder` and `config.vocoder_config` to `None`"
                " first, and train another."
            )
        known = {name: getattr(self.config, name) for name in ("f0_bins", *fields)}
        try:
            for name, value in {"f0_bins": f0_bins, **fields}.items():
                setattr(self.config, name, value)
            self.config.validate_architecture()
        except (ValueError, StrictDataclassError):
            for name, value in known.items():
                setattr(self.config, name, value)
            raise
        with torch.device(self.device):
            self.f0_codebook = F0Codebook(self.config)

    def f0_stream(self, speaker_f0: torch.Tensor | None = None) -> F0Stream | None:
        """The F0 codes of a recording that is still arriving; `None` where units have no F0."""
        return None if self.f0_codebook is None else F0Stream(self.f0_codebook, speaker_f0)

    def unit_codes(self, input_values: torch.Tensor) -> torch.Tensor:
        """The codes of [`encode`] without those of F0."""
        raise NotImplementedError

    def _f0_of(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None,
        mask: torch.Tensor,
        speaker_f0: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        # Codes (B, F) and what they code (B, F, 2), where there is an F0 codebook.
        if self.f0_codebook is None:
            if speaker_f0 is not None:
                raise ValueError("`speaker_f0` is for units with F0 (`f0_bins`), which these have not; leave it out.")
            return None
        input_values, padding_mask = check_waveforms(input_values, padding_mask, side="right")
        waveforms = input_values[:, 0]
        num_samples = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        if padding_mask is not None:
            num_samples = padding_mask.sum(-1)
        return self.f0_codebook.encode(waveforms, num_samples, mask, speaker_f0)

    def _split_codes(self, audio_codes: torch.Tensor, codebook_size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Checked codes of all codebooks, those of units, and what those of F0 stand for. Without the row of F0, its
        # dimensions are 0, as where speech is unvoiced.
        num_units = len(self.config.unit_codebook_sizes)
        rows = audio_codes.shape[1] if torch.is_tensor(audio_codes) and audio_codes.ndim == 3 else None
        if self.f0_codebook is not None and rows is not None and rows not in (num_units, num_units + 1):
            raise ValueError(
                f"`audio_codes` must have all {num_units} codebooks of units, with that of F0 behind them or without,"
                f" but has {rows}."
            )
        lacks_f0 = rows == num_units
        num_codes = num_units if lacks_f0 else self.config.num_quantizers
        audio_codes = check_codes(audio_codes, num_codes, codebook_size, need_all=True)[0]
        if self.f0_codebook is None:
            return audio_codes, None
        f0_codes = torch.zeros_like(audio_codes[:, 0]) if lacks_f0 else audio_codes[:, -1]
        return audio_codes[:, :num_units], self.f0_codebook.decode(f0_codes)

    @property
    def frame_span(self) -> int:
        """Samples that the front end hears for a frame, from the frame's first sample on."""
        return frame_geometry(self.config.encoder_config)[1]

    @property
    def longest_input(self) -> int | None:
        """Samples that the encoder can hear at once, if that is limited; see [`WindowedEncoder`] for longer ones."""
        return None if self._log_mel is None else self._log_mel.n_samples

    def encoder_states(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None, layers: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        States of layers of the encoder.

        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveforms in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples,
                padded on the right.
            layers (sequence of `int`): Layers whose states are returned; see [`recorded_layers`].

        Returns:
            The states `(batch, len(layers), num_frames, hidden_size)` in float32 or better, and the boolean mask of
            their frames `(batch, num_frames)`.

        Raises:
            TypeError: If `input_values` is no tensor of floating point, or the mask no tensor.
            ValueError: If a shape or the mask is wrong, a sample is not finite, or a row is padded on the left,
                shorter than a frame, or longer than the window of Whisper's encoder.
        """
        input_values, padding_mask = check_waveforms(input_values, padding_mask, side="right")
        waveforms = input_values[:, 0]
        if padding_mask is None:
            num_samples = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        else:
            num_samples = padding_mask.sum(-1)
        shortest = int(num_samples.min())
        if self.get_encoded_length(shortest) < 1:
            raise ValueError(
                f"`input_values` has {shortest} samples in a row, but a frame needs {self.frame_span}; leave such "
                "recordings out."
            )
        waveforms = self._normalized(waveforms, num_samples).to(self.encoder.dtype)
        if self._log_mel is not None:
            states, num_frames = spectrogram_states(
                self.encoder, self._log_mel, waveforms, num_samples, layers, self.config.window
            )
        else:
            states, num_frames = waveform_states(self.encoder, waveforms, num_samples, layers, self.config.frame_rule)
        return at_least_single(states), frame_mask(num_frames, states.shape[2])

    def attach_vocoder(self, vocoder: UnitVocoderModel) -> None:
        """
        Let `decode` use a vocoder, which is then saved with the model.

        Raises:
            ValueError: If it is for other units.
        """
        self.config.vocoder_config = vocoder.config
        try:
            self.config.validate_architecture()
        except ValueError:
            self.config.vocoder_config = None if self.vocoder is None else self.vocoder.config
            raise
        # Also of a vocoder whose configuration does not say them, as it is from before it could.
        vocoder.codebook_sizes = list(self.config.codebook_sizes)
        self.vocoder = vocoder

    def decode(self, audio_codes: torch.Tensor, *args: Any, **kwargs: Any) -> UnitVocoderOutput:
        """
        Speech from units, by the attached vocoder; see [`UnitVocoderModel.decode`] for the arguments.

        Raises:
            ValueError: If no vocoder is attached, or a code lies outside its codebook.
        """
        return self.needed_vocoder().decode(audio_codes, *args, **kwargs)

    def needed_vocoder(self) -> UnitVocoderModel:
        """The attached vocoder. Raises `ValueError` if there is none."""
        if self.vocoder is None:
            raise ValueError(
                "These units have no vocoder, so they cannot be heard; train one with `speech-tokenizers train "
                "unit_vocoder_16khz` and attach it with `attach_vocoder`."
            )
        return self.vocoder

    def _normalized(self, waveforms: torch.Tensor, num_samples: torch.Tensor) -> torch.Tensor:
        if not self.config.do_normalize:
            return waveforms
        mask = frame_mask(num_samples, waveforms.shape[1])
        count = num_samples[:, None]
        centred = (waveforms - (waveforms * mask).sum(-1, keepdim=True) / count) * mask
        return centred / (centred.square().sum(-1, keepdim=True) / count + 1e-7).sqrt()


def with_f0(
    audio_codes: torch.Tensor, latents: torch.Tensor, f0: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Units and their F0, as one.

    Args:
        audio_codes (`torch.Tensor` of shape `(batch, num_unit_rows, num_frames)`): Codes of units.
        latents (`torch.Tensor` of shape `(batch, num_frames, dim)`): What they code.
        f0 (`tuple` of `torch.Tensor`, *optional*): Codes of F0 `(batch, num_frames)`, and what they code `(batch,
            num_frames, 2)`.

    Returns:
        The codes with a row more, and the latents with two dimensions more; unchanged where there is no F0.
    """
    if f0 is None:
        return audio_codes, latents
    codes, values = f0
    return torch.cat([audio_codes, codes[:, None]], dim=1), torch.cat([latents, values.to(latents.dtype)], dim=-1)


def _keep_layers(encoder: nn.Module, num_layers: int) -> None:
    # Drop the transformer layers above.
    del transformer_layers(encoder)[num_layers:]
    name = "encoder_layers" if has_fixed_window(encoder.config) else "num_hidden_layers"
    setattr(encoder.config, name, num_layers)


__all__ = ["F0_NUMBERS", "UnitPreTrainedModel", "with_f0"]
