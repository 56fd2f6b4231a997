# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""transformers' own codecs through the interface of this package's models."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from transformers import AutoFeatureExtractor
from transformers.utils import ModelOutput

from .codec_interface import (
    SpeechCodec,
    SpeechStream,
    TokenKind,
    is_speech_codec,
    pad_waveforms,
    tensor_fingerprint,
)
from .input_checks import (
    check_codes,
    check_encoded,
    check_finite,
    check_latents,
    check_num_samples,
    check_waveforms,
)
from .mixed_precision import guard_convolutions, warn_of_half_precision
from .recording_stream import EMPTY_STREAM, RecordingStream, StreamState
from .vector_quantization import ResidualVectorQuantizer


# Frames by which a recording may be longer than what its tokens are decoded to.
_MOST_FRAMES_MISSING = 3


def as_speech_codec(model: Any, feature_extractor: Any = None) -> Any:
    """
    A model as a [`SpeechCodec`]: itself if it is one, else a [`TransformersCodec`] around it.

    Args:
        model (`PreTrainedModel`): A model of this package, or EncodecModel, DacModel, MimiModel, XcodecModel,
            VibeVoiceAcousticTokenizerModel and the like.
        feature_extractor (`SequenceFeatureExtractor`, *optional*): Feature extractor of a model of transformers.
            Defaults to the one in the folder that the model was loaded from.

    Raises:
        ValueError: If the model turns no speech into tokens.
    """
    if is_speech_codec(model):
        return model
    return TransformersCodec(model, feature_extractor)


class TransformersCodec(SpeechCodec):
    """
    A codec of transformers as a [`SpeechCodec`].

    transformers' codecs hear the padding of a batch, so each recording is encoded and decoded alone. A batch gives
    what single recordings give, at their speed. For the same reason a stream holds the whole recording and codes it
    once it has ended. Its memory grows with its length.

    Args:
        model (`PreTrainedModel`): Codec to wrap; see [`as_speech_codec`].
        feature_extractor (`SequenceFeatureExtractor`, *optional*): The codec's feature extractor; see
            [`as_speech_codec`].

    Raises:
        ValueError: If the model turns no speech into tokens.
    """

    def __init__(self, model: Any, feature_extractor: Any = None):
        name = type(model).__name__
        config = getattr(model, "config", None)
        if not all(hasattr(model, method) for method in ("encode", "decode")) or config is None:
            raise ValueError(f"A {name} turns no speech into tokens: it lacks `encode` or `decode`.")
        if feature_extractor is None and not model.name_or_path:
            raise ValueError(f"`feature_extractor` is needed: this {name} was loaded from no folder that has one.")
        if feature_extractor is None:
            feature_extractor = AutoFeatureExtractor.from_pretrained(model.name_or_path, trust_remote_code=False)
        guard_convolutions(model)
        self.model, self.config, self.feature_extractor = model, config, feature_extractor
        self._sampling_rate = int(feature_extractor.sampling_rate)
        rate = getattr(config, "sampling_rate", None) or getattr(config, "sample_rate", None)
        if rate is not None and rate != self._sampling_rate:
            raise ValueError(
                f"`feature_extractor` makes audio of {self._sampling_rate} Hz, but this {name} takes {rate} Hz; pass"
                " the model's own."
            )
        hop_length: Any = getattr(config, "hop_length", None)
        frame_rate: Any = getattr(config, "frame_rate", None)
        if hop_length is None and frame_rate is None:
            raise ValueError(f"A {name} does not say how long its frames are; `config.frame_rate` would.")
        # Mimi's `hop_length` leaves its last downsampling out; EnCodec's whole number of frames is rounded up.
        if hop_length is not None and (frame_rate is None or type(frame_rate) is int):
            frame_rate = self.sampling_rate / hop_length
        self._frame_rate = float(frame_rate)
        self._encode_arguments = tuple(inspect.signature(model.encode).parameters)
        self._decode_arguments = tuple(inspect.signature(model.decode).parameters)

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        found = getattr(self.model, name)
        return partial(self._call, found) if inspect.ismethod(found) else found

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # `model.half()`, `model.train()` and the like return the model; the caller wants this object.
        result = method(*args, **kwargs)
        return self if result is self.model else result

    @property
    def family(self) -> str:
        """See [`SpeechCodec.family`]; that of the model in transformers."""
        return type(self.model).__name__

    @property
    def sampling_rate(self) -> int:
        """Samples per second, in Hz; the feature extractor's."""
        return self._sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return round(self.sampling_rate / self.frame_rate)

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self._frame_rate

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        return self.model.dtype

    @property
    def kind(self) -> TokenKind:
        """See [`SpeechCodec.kind`]. X-Codec2 and NeuCodec quantize to a grid of levels, which counts as a codebook."""
        has_codes = getattr(self.config, "codebook_size", None) or getattr(self.config, "quantization_levels", None)
        return "codes" if has_codes else "latents"

    @property
    def decodable_kinds(self) -> tuple[TokenKind, ...]:
        """See [`SpeechCodec.decodable_kinds`]."""
        arguments: dict[TokenKind, str] = {"codes": "audio_codes", "latents": "latents"}
        return tuple(kind for kind, argument in arguments.items() if argument in self._decode_arguments)

    @property
    def codebook_size(self) -> int | None:
        """See [`SpeechCodec.codebook_size`]."""
        if self.kind == "latents":
            return None
        size = getattr(self.config, "codebook_size", None)
        return int(size or math.prod(self.config.quantization_levels))

    @property
    def num_quantizers(self) -> int | None:
        """See [`SpeechCodec.num_quantizers`]; EnCodec's and X-Codec's at their highest bandwidth."""
        if self.kind == "latents":
            return None
        if "bandwidth" in self._encode_arguments:
            return round(max(self.config.target_bandwidths) / self._kilobits_per_quantizer)
        names = ("num_quantizers", "n_codebooks")
        return next((value for value in (getattr(self.config, name, None) for name in names) if value), 1)

    @property
    def _kilobits_per_quantizer(self) -> float:
        assert self.codebook_size is not None
        return math.log2(self.codebook_size) * self.frame_rate / 1000

    @property
    def bits_per_second(self) -> float:
        """See [`SpeechCodec.bits_per_second`]."""
        if self.num_quantizers is None:
            return self.frame_rate * self.latent_dim * 16
        return self.num_quantizers * self._kilobits_per_quantizer * 1000

    @cached_property
    def latent_dim(self) -> int:  # type: ignore[override]
        """See [`SpeechCodec.latent_dim`]; of what the model gives for silence."""
        encoded = self.encode(torch.zeros(1, 1, self.sampling_rate, device=self.device))
        latents = encoded.get("latents")
        return (self.dequantize(encoded["audio_codes"]) if latents is None else latents).shape[-1]

    @cached_property
    def gives_latents(self) -> bool:  # type: ignore[override]
        """See [`SpeechCodec.gives_latents`]; what the model gives for silence tells."""
        return "latents" in self.encode(torch.zeros(1, 1, self.sampling_rate, device=self.device))

    def get_encoded_length(self, num_samples: int) -> int:
        """Frames for a number of samples."""
        silence = torch.zeros(1, 1, num_samples, device=self.device)
        encoded = self.encode(silence)
        return encoded.audio_codes_mask.shape[-1]

    @torch.no_grad()
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> ModelOutput:
        """
        Encode each recording of a batch alone.

        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveforms in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): Mask with 1 for real samples,
                padded on either side. Frames are padded on the same side.
            num_quantizers (`int`, *optional*): Number of first codebooks to give. Defaults to all.

        Returns:
            `ModelOutput` with `audio_codes` (batch, num_quantizers, num_frames) where there are codebooks, `latents`
            (batch, num_frames, latent_dim) where the model tells, and `audio_codes_mask` (batch, num_frames).

        Raises:
            TypeError: If `input_values` is no tensor of floating point, or the mask no tensor.
            ValueError: If a shape or the mask is wrong, a sample is not finite, or the number of codebooks cannot be
                chosen, or is too large.
        """
        input_values, padding_mask = check_waveforms(input_values, padding_mask)
        warn_of_half_precision(self.model)
        rows, on_left = [], []
        for number, waveform in enumerate(input_values[:, 0]):
            real = waveform if padding_mask is None else waveform[padding_mask[number] > 0]
            on_left.append(padding_mask is not None and not padding_mask[number, 0])
            with torch.autocast(waveform.device.type, enabled=False):  # the extractor goes through NumPy
                features = self.feature_extractor(
                    real.float().cpu().numpy(), sampling_rate=self.sampling_rate, return_tensors="pt"
                )
            rows.append(self.encode_features(features, num_quantizers))
        longest = max(row.audio_codes_mask.shape[-1] for row in rows)
        output = ModelOutput()
        for name, time in (("audio_codes", -1), ("latents", -2), ("audio_codes_mask", -1)):
            if rows[0].get(name) is not None:
                padded = [_pad(row[name], longest, time, left) for row, left in zip(rows, on_left, strict=True)]
                output[name] = torch.cat(padded)
        return output

    def batch_features(self, waveforms: Sequence[Any], feature_extractor: Any) -> dict[str, torch.Tensor]:
        """See [`SpeechCodec.batch_features`]. The feature extractor of the model hears each recording alone, later."""
        return pad_waveforms(waveforms)

    @torch.no_grad()
    def encode_features(self, features: dict[str, torch.Tensor], num_quantizers: int | None = None) -> ModelOutput:
        """
        See [`SpeechCodec.encode_features`]; of one recording.

        The output has what `encode` gives, and `native`: what the model itself gave, with EnCodec's scales and chunks.
        """
        if self.model.training:
            raise ValueError(
                f"This {self.family} is in training mode, in which its tokens are random; call `model.eval()` first."
            )
        _drop_stale_tables(self.model)
        given: dict[str, Any] = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for name, value in features.items()
            if name in self._encode_arguments
        }
        given |= self._choose_quantizers(num_quantizers)
        if "sample" in self._encode_arguments:
            given["sample"] = False  # what can be drawn at random is not
        frames: list[torch.Tensor] = []
        parts = dict(self.model.named_children())
        # Older versions of Mimi have their last downsampling beside the encoder, not in it.
        module = parts.get("downsample") or parts.get("encoder", nn.Identity())
        hook = module.register_forward_hook(lambda _, __, output: frames.append(output))
        try:
            native = self.model.encode(**given, return_dict=True)
        finally:
            hook.remove()
        output = ModelOutput()
        if (audio_codes := native.get("audio_codes")) is not None:
            # EnCodec's are (num_chunks, batch, num_quantizers, num_frames).
            output["audio_codes"] = torch.cat(list(audio_codes), dim=-1) if audio_codes.dim() == 4 else audio_codes
        latents = _latents(native, frames)
        if latents is not None:
            check_encoded(latents)
            output["latents"] = latents
        tokens = output["audio_codes"][:, 0] if "audio_codes" in output else output["latents"][..., 0]
        output["audio_codes_mask"] = torch.ones_like(tokens, dtype=torch.long)
        output["native"] = native
        return output

    def _choose_quantizers(self, num_quantizers: int | None) -> dict[str, Any]:
        if "bandwidth" in self._encode_arguments:
            bandwidths, per_stage = self.config.target_bandwidths, self._kilobits_per_quantizer
            if num_quantizers is None:
                return {"bandwidth": max(bandwidths)}
            self.check_num_quantizers(num_quantizers)
            nearest = min(bandwidths, key=lambda bandwidth: abs(bandwidth - num_quantizers * per_stage))
            if abs(nearest - num_quantizers * per_stage) > per_stage / 2:
                raise ValueError(
                    f"`num_quantizers` {num_quantizers} gives {num_quantizers * per_stage:g} kbps, but a"
                    f" {self.family} offers {', '.join(f'{each:g}' for each in bandwidths)} kbps."
                )
            return {"bandwidth": nearest}
        if self.check_num_quantizers(num_quantizers) is None:
            return {}
        for argument in ("num_quantizers", "n_quantizers"):
            if argument in self._encode_arguments:
                return {argument: num_quantizers}
        raise ValueError(f"`num_quantizers` cannot be chosen for a {self.family}; leave it out.")

    @torch.no_grad()
    def decode(
        self,
        audio_codes: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        audio_codes_mask: torch.Tensor | None = None,
        num_samples: int | None = None,
    ) -> ModelOutput:
        """
        Decode each recording of a batch alone.

        Args:
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`, *optional*): Codes to decode.
            latents (`torch.Tensor` of shape `(batch, num_frames, latent_dim)`, *optional*): Latents to decode, in
                place of codes.
            audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): Mask with 1 for real frames,
                padded on either side.
            num_samples (`int` or `torch.Tensor` of shape `(batch,)`, *optional*): Length of the result, of the whole
                batch or of each row, in samples: that of a recording of so many frames. Defaults to that of the
                model's output.

        Returns:
            `ModelOutput` with `audio_values` (batch, 1, num_samples), each row as it is decoded alone, and where there
            is a mask or a `num_samples` for each row, `padding_mask` (batch, num_samples), 1 for real samples.

        Raises:
            TypeError: If the codes are no tensor of integers, or the latents none of floating point.
            ValueError: If there is nothing to decode, a shape, a code, a latent, the mask or `num_samples` does not
                fit, or the model does not decode them, or its codes are not all that it needs to.
        """
        if audio_codes is None and latents is None:
            raise ValueError("`decode` needs `audio_codes` or `latents`, but got neither.")
        name: str = "latents" if audio_codes is None else "audio_codes"
        self.check_kind("latents" if audio_codes is None else "codes", decode=True)
        if getattr(self.config, "normalize", False) or getattr(self.config, "chunk_length_s", None):
            raise ValueError(
                f"A {self.family} with `normalize` or `chunk_length_s` decodes codes with their scales"
                " and chunks alone; `decode_encoded` has them."
            )
        if audio_codes is None:
            tokens, mask = check_latents(latents, self.latent_dim, audio_codes_mask)
            tokens = tokens.to(self.dtype)
        else:
            tokens, mask = check_codes(audio_codes, self.num_quantizers or 1, self.codebook_size, audio_codes_mask)
        _drop_stale_tables(self.model)
        batch_size, time = len(tokens), -1 if name == "audio_codes" else -2
        lengths = None if num_samples is None else check_num_samples(num_samples, batch_size, 1)
        waveforms, on_left = [], []
        for number, row in enumerate(tokens):
            real = row if mask is None else row.index_select(time, mask[number].nonzero()[:, 0])
            on_left.append(mask is not None and not mask[number, 0])
            real, extra = real[None].to(self.device), {}
            if "audio_scales" in self._decode_arguments:
                real, extra = real[None], {"audio_scales": [None]}
            waveform = _waveform(self.model.decode(**{name: real}, **extra, return_dict=True))
            check_finite(waveform, f"The decoder of a {self.family} gives")
            is_whole = mask is None or bool(mask[number].all())
            if lengths is not None and (is_whole or torch.is_tensor(lengths)):
                length = int(lengths if isinstance(lengths, int) else lengths[number])
                found, num_frames = waveform.shape[-1], real.shape[time]
                is_plain = found - self.hop_length < length <= found
                is_near = length <= found + _MOST_FRAMES_MISSING * self.hop_length
                if not is_plain and not (is_near and self.get_encoded_length(length) == num_frames):
                    raise ValueError(
                        f"`num_samples` must be the length of a recording of {num_frames} frames, about {found}, for"
                        f" row {number}, but got {length}; for a part of it take a slice of `audio_values`."
                    )
                waveform = _pad(waveform[..., :length], length, -1)
            waveforms.append(waveform)
        longest = lengths if isinstance(lengths, int) else max(waveform.shape[-1] for waveform in waveforms)
        waveforms = [waveform[..., :longest] for waveform in waveforms]
        padded = [_pad(row, longest, -1, left) for row, left in zip(waveforms, on_left, strict=True)]
        output = ModelOutput(audio_values=torch.cat(padded))
        if mask is not None or torch.is_tensor(lengths):
            ones = [torch.ones_like(row[:, 0], dtype=torch.long) for row in waveforms]
            output["padding_mask"] = torch.cat(
                [_pad(row, longest, -1, left) for row, left in zip(ones, on_left, strict=True)]
            )
        return output

    @torch.no_grad()
    def decode_encoded(self, encoded: Any, kind: TokenKind | None = None) -> torch.Tensor:
        """See [`SpeechCodec.decode_encoded`]; with all that the model's own `encode` gave."""
        kind = self.check_kind(kind, decode=True)
        _drop_stale_tables(self.model)
        native = encoded["native"]
        if kind == "latents":
            if native.get("latents") is None:
                raise ValueError(f"`encode` of a {self.family} gives no `latents`.")
            return _waveform(self.model.decode(latents=native["latents"]))
        extra = {
            name: native[name]
            for name in ("audio_scales", "last_frame_pad_length", "audio_codes_mask")
            if name in self._decode_arguments and native.get(name) is not None
        }
        if "audio_scales" in self._decode_arguments:
            extra.setdefault("audio_scales", [None] * len(native["audio_codes"]))
        return _waveform(self.model.decode(audio_codes=native["audio_codes"], **extra))

    def encode_stream(self, kind: TokenKind | None = None, num_quantizers: int | None = None) -> SpeechStream:
        """See [`SpeechCodec.encode_stream`]. The recording is held until it ends, and then encoded as a whole."""
        kind = self.check_kind(kind)
        self._choose_quantizers(num_quantizers)
        return _WholeRecordingStream(self, kind, num_quantizers)

    def decode_stream(self, kind: Any = None, num_samples: int | None = None, eager: bool = False) -> SpeechStream:
        """See [`SpeechCodec.decode_stream`]. The tokens are held until they end, and then decoded as a whole."""
        if num_samples is not None:
            check_num_samples(num_samples, 1, 1)
        return _WholeRecordingStream(self, self.check_kind(kind, decode=True))

    @torch.no_grad()
    def dequantize(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """
        See [`SpeechCodec.dequantize`]; of the first codebooks.

        Raises:
            ValueError: If the model has no residual quantizer.
        """
        audio_codes, _ = check_codes(audio_codes, self.num_quantizers or 1, self.codebook_size)
        _drop_stale_tables(self.model)
        quantizer: Any = getattr(self.model, "quantizer", None)
        if isinstance(quantizer, ResidualVectorQuantizer):
            return quantizer.decode(audio_codes)
        if hasattr(quantizer, "from_codes"):  # DAC
            return quantizer.from_codes(audio_codes)[0].transpose(1, 2)
        if hasattr(quantizer, "decode"):
            # EnCodec's has the stages first.
            stages_first = "bandwidth" in self._encode_arguments
            return quantizer.decode(audio_codes.transpose(0, 1) if stages_first else audio_codes).transpose(1, 2)
        raise ValueError(f"A {self.family} has no residual quantizer whose entries could be looked up.")

    def fingerprint(self) -> str:
        """See [`SpeechCodec.fingerprint`]; of the quantizer's weights, or of all where there is none."""
        module = getattr(self.model, "quantizer", self.model)
        return tensor_fingerprint(value for _, value in sorted(module.state_dict().items()))

    def encoder_fingerprint(self) -> str:
        """See [`SpeechCodec.encoder_fingerprint`]; of all weights, since each family names its parts otherwise."""
        return tensor_fingerprint(value for _, value in sorted(self.model.state_dict().items()))

    decoder_fingerprint = encoder_fingerprint


class _WholeRecordingStream(RecordingStream):
    # A stream that waits for the end, since what a model hears at the edge of a part would change its tokens.

    def __init__(self, codec: TransformersCodec, kind: TokenKind, num_quantizers: int | None = None):
        self.tokens, self.num_quantizers = kind, num_quantizers
        super().__init__(codec)

    def _new_encoder(self) -> StreamState:
        name, channels = "audio_codes", self.num_quantizers or self.model.num_quantizers
        if self.tokens == "latents":
            name, channels = "latents", self.model.latent_dim

        def encode(whole: torch.Tensor) -> torch.Tensor:
            encoded = self.model.encode(whole, num_quantizers=self.num_quantizers)[name]
            return self._given(encoded)

        return _Whole(encode, channels, torch.long if name == "audio_codes" else self.model.dtype)

    def _new_decoder(self) -> StreamState:
        name = "audio_codes" if self.tokens == "codes" else "latents"
        return _Whole(lambda whole: self.model.decode(**{name: self._given(whole)}).audio_values, 1, torch.float32)


class _Whole(StreamState):
    # The parts of a recording, and the function that is called with the whole.

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], channels: int, dtype: torch.dtype):
        self.function, self.channels, self.dtype = function, channels, dtype
        self.parts: tuple[torch.Tensor, ...] = ()

    def push(self, inputs: torch.Tensor) -> torch.Tensor:
        self.parts = (*self.parts, inputs)
        return inputs.new_zeros(len(inputs), self.channels, 0, dtype=self.dtype)

    def finish(self) -> torch.Tensor:
        if not sum(part.shape[-1] for part in self.parts):
            raise ValueError(EMPTY_STREAM)
        return self.function(torch.cat(self.parts, dim=-1))


def _drop_stale_tables(model: nn.Module) -> None:
    # Mimi's codebooks keep a table of entries that does not follow the model to another type or device.
    for module in model.modules():
        table, source = getattr(module, "_embed", None), getattr(module, "embed_sum", None)
        if table is None or source is None:
            continue
        if (table.dtype, table.device) != (source.dtype, source.device):
            module._embed = None


def _latents(native: Any, frames: list[Any]) -> torch.Tensor | None:
    # What the model tells, or else what its encoder gave.
    latents = native.get("latents")
    if latents is None and frames:
        # Channels first; EnCodec's long recordings come in chunks. Newer versions of Mimi give an object.
        found = [output if torch.is_tensor(output) else output.latents for output in frames]
        latents = torch.cat(found, dim=-1).transpose(1, 2)
    return latents


def _waveform(decoded: Any) -> torch.Tensor:
    # (1, 1, num_samples); two channels are averaged. `audio` is VibeVoice's name.
    audio_values = decoded.audio_values if "audio_values" in decoded else decoded.audio
    values = audio_values.reshape(1, -1, audio_values.shape[-1]).float()
    return values.mean(1, keepdim=True)


def _pad(values: torch.Tensor, length: int, time: int, left: bool = False) -> torch.Tensor:
    missing = length - values.shape[time]
    shape = [*values.shape]
    shape[time] = missing
    zeros = values.new_zeros(shape)
    return torch.cat([zeros, values] if left else [values, zeros], dim=time) if missing else values


__all__ = ["TransformersCodec", "as_speech_codec"]
