# SPDX-License-Identifier: Apache-2.0
"""Neural codecs as systems under evaluation: models of the common interface and transformers' own codecs."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from speech_tokenizers.coding.file_coding import encode_blocks
from speech_tokenizers.coding.loading import load
from speech_tokenizers.evaluation.stopwatch import Stopwatch
from speech_tokenizers.modeling.codec_interface import codebook_sizes, codebook_strides
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec


@dataclass
class CodedClip:
    """
    A clip that went through a codec.

    Args:
        audio_values (`np.ndarray` of shape `(num_samples,)`): Decoded audio at the system's sampling rate, aligned
            with the recording (the codec's delay is removed) and as long as it.
        num_bits (`float`, *optional*): Size of the code, without file headers, where known.
        encode_seconds, decode_seconds (`float`, *optional*): Wall-clock time, where known.
        encode_cpu_seconds, decode_cpu_seconds (`float`, *optional*): Processor time, which other processes on the
            machine do not lengthen.
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`, *optional*): Codebook indices.
    """

    audio_values: np.ndarray
    num_bits: float | None = None
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    encode_cpu_seconds: float | None = None
    decode_cpu_seconds: float | None = None
    audio_codes: np.ndarray | None = None


class CodecSystem(Protocol):
    """
    What the evaluation asks of a codec.

    `name` is what tables show. `key` changes whenever the output could: it decides whether earlier results are used
    again. `codebook_size` is `None` for codecs without codebooks, and `frame_rate` for those without frames.
    """

    name: str
    key: str
    sampling_rate: int
    codebook_size: int | None
    frame_rate: float | None

    def code(self, audio: np.ndarray) -> CodedClip:
        """Encode and decode one clip of shape `(num_samples,)`, in [-1, 1] at `sampling_rate`."""
        ...


def system_codebook_sizes(system: Any, num_quantizers: int) -> tuple[int, ...]:
    """Codes of each codebook of a system with codebooks; all have as many, unless it says otherwise."""
    own = getattr(system, "codebook_sizes", None)
    return (system.codebook_size,) * num_quantizers if own is None else tuple(own)


def system_codebook_strides(system: Any, num_quantizers: int) -> tuple[int, ...]:
    """Frames that a code of each codebook of a system lasts; 1, unless it says otherwise."""
    own = getattr(system, "codebook_strides", None)
    return (1,) * num_quantizers if own is None else tuple(own)


def model_fingerprint(model: nn.Module, **settings: Any) -> str:
    """Short hash of a model's class, configuration, weights and buffers, and of further settings."""
    digest = hashlib.sha256(f"{type(model).__name__} {sorted(settings.items())}".encode())
    digest.update(json.dumps(_without_places(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _without_places(config: Any) -> Any:
    # A configuration without where it, or a part of it, was loaded from: a model is the same in another folder.
    if isinstance(config, dict):
        return {name: _without_places(value) for name, value in config.items() if name != "_name_or_path"}
    return config


@dataclass
class EncodedClip:
    """
    A clip as codes, and as the frames that were quantized.

    Args:
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codebook indices.
        features (`np.ndarray` of shape `(num_frames, dimension)`, *optional*): Frames that were quantized, float32,
            where the model returns them.
    """

    audio_codes: np.ndarray
    features: np.ndarray | None


class NeedsWindows(ValueError):
    """A clip is too long to be encoded at once."""


class _RunningModel:
    """A model and its feature extractor, on a device; `key` tells apart also what `settings` change."""

    def __init__(self, model: Any, feature_extractor: Any, name: str, device: str, **settings: Any):
        self.model = as_speech_codec(model, feature_extractor).eval().to(device)
        self.feature_extractor = feature_extractor
        self.name = name
        self.sampling_rate = int(feature_extractor.sampling_rate)
        self.device = torch.device(device)
        self.key = f"{name}-{model_fingerprint(model, device=self.device.type, **settings)}"
        self.frame_rate: float | None = self.model.frame_rate

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _features(self, audio: np.ndarray) -> dict[str, torch.Tensor]:
        features = self.feature_extractor(audio, sampling_rate=self.sampling_rate, return_tensors="pt")
        return {
            name: value.to(self.device, self.model.dtype if value.is_floating_point() else value.dtype)
            for name, value in features.items()
        }

    def frame_centres(self, num_frames: int) -> np.ndarray:
        """Times of the middles of the first frames, of shape `(num_frames,)`, in seconds."""
        return np.asarray(self.model.frame_centres(num_frames), np.float64)

    def _code(self, audio: np.ndarray, kind: str, num_quantizers: int | None = None) -> tuple[Any, CodedClip]:
        # What `encode` gave, and the clip without what only the kind knows.
        features = self._features(audio)
        with Stopwatch() as encoding:
            encoded = self.model.encode_features(features, num_quantizers)
            self._synchronize()
        with Stopwatch() as decoding:
            audio_values = self.model.decode_encoded(encoded, kind)
            self._synchronize()
        clip = CodedClip(
            audio_values=first_samples(audio_values, len(audio)),
            encode_seconds=encoding.seconds,
            decode_seconds=decoding.seconds,
            encode_cpu_seconds=encoding.cpu_seconds,
            decode_cpu_seconds=decoding.cpu_seconds,
        )
        return encoded, clip


class EncodingSystem(_RunningModel):
    """
    A model that turns speech into codes, and its feature extractor; it need not have a decoder.

    Args:
        model (`PreTrainedModel`): Model with codebooks: a [`SpeechCodec`] or a codec of transformers; see
            [`as_speech_codec`].
        feature_extractor (`SequenceFeatureExtractor`): Feature extractor of the model. Its rate is the system's.
        name (`str`): Name that tables show.
        num_quantizers (`int`, *optional*): Number of codebooks, the first ones, that are used. Defaults to all.
        device (`str`, *optional*, defaults to `"cpu"`): Device that the model runs on.

    Raises:
        ValueError: If the model has no codebooks, or not so many.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        name: str,
        num_quantizers: int | None = None,
        device: str = "cpu",
    ):
        used = f"{num_quantizers} codebook{'s' if num_quantizers != 1 else ''}"
        title = name if num_quantizers is None else f"{name} ({used})"
        super().__init__(model, feature_extractor, title, device, num_quantizers=num_quantizers)
        try:
            self.model.check_kind("codes")
            self.model.encode_stream("codes", num_quantizers)  # refuses a number that cannot be had
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self.num_quantizers = num_quantizers
        self.codebook_size: int = self.model.codebook_size
        self.codebook_sizes: tuple[int, ...] = codebook_sizes(self.model)[:num_quantizers]
        self.codebook_strides: tuple[int, ...] = codebook_strides(self.model)[:num_quantizers]

    def needs_windows(self, num_samples: int) -> bool:
        """Whether a clip is too long to be encoded at once; see [`SpeechCodec.longest_exact_stream`]."""
        longest = self.model.longest_exact_stream
        return longest is not None and num_samples > longest

    @torch.inference_mode()
    def encode(self, audio: np.ndarray) -> np.ndarray:
        """
        Codes of shape `(num_quantizers, num_frames)` of a clip of shape `(num_samples,)`. A long clip of units is
        encoded in windows, as by the command `units`.
        """
        if self.needs_windows(len(audio)):
            blocks = torch.from_numpy(audio).split(10 * self.sampling_rate)
            return torch.cat(list(encode_blocks(self.model, blocks, self.num_quantizers, "codes")), dim=-1).numpy()
        encoded = self.model.encode_features(self._features(audio), self.num_quantizers)
        return encoded.audio_codes[0].cpu().numpy()

    @torch.inference_mode()
    def encode_frames(self, audio: np.ndarray) -> EncodedClip:
        """
        Codes of a clip of shape `(num_samples,)`, and the frames that were quantized.

        Raises:
            NeedsWindows: If the clip is encoded in windows, which give no frames.
        """
        if self.needs_windows(len(audio)):
            raise NeedsWindows(
                f"it is {len(audio) / self.sampling_rate:g} s long and would be encoded in windows, which do not tell"
                " what is quantized; cut it, or leave out the measures that need it (abx and probes)"
            )
        encoded = self.model.encode_features(self._features(audio), self.num_quantizers)
        features = encoded.get("latents")
        if features is not None:
            features = features[0].float().cpu().numpy()
        return EncodedClip(encoded.audio_codes[0].cpu().numpy(), features)

    @torch.inference_mode()
    def dequantize(self, audio_codes: np.ndarray) -> np.ndarray:
        """
        The frames that codes stand for, which the decoder is given.

        Args:
            audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of the first codebooks.

        Returns:
            `np.ndarray` of shape `(num_frames, dimension)`.

        Raises:
            ValueError: If the model has no residual quantizer.
        """
        codes = torch.from_numpy(np.ascontiguousarray(audio_codes)).to(self.device)[None]
        return self.model.dequantize(codes)[0].float().cpu().numpy()


class ModelSystem(EncodingSystem):
    """
    A codec model and its feature extractor, which encode and decode. Its `decode` takes what `encode` gives.

    Args:
        model, feature_extractor, name, num_quantizers, device: See [`EncodingSystem`].
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        name: str,
        num_quantizers: int | None = None,
        device: str = "cpu",
    ):
        super().__init__(model, feature_extractor, name, num_quantizers, device)
        # The first call allocates and warms caches; it would count against the first clip.
        self.code(np.zeros(self.sampling_rate, np.float32))

    @torch.inference_mode()
    def code(self, audio: np.ndarray) -> CodedClip:
        encoded, clip = self._code(audio, "codes", self.num_quantizers)
        codes = encoded.audio_codes[0]
        rows = zip(self.codebook_sizes, self.codebook_strides, strict=True)
        clip.num_bits = sum(-(-codes.shape[1] // stride) * math.log2(size) for size, stride in rows)
        clip.audio_codes = codes.cpu().numpy()
        return clip


class LatentSystem(_RunningModel):
    """
    A model of continuous latents and its feature extractor, or a codec whose quantizer is not used. `decode` is given
    the `latents` that `encode` gives. For our codecs these are the frames before quantization. For models that can
    draw latents at random they are the mean.

    Args:
        model (`PreTrainedModel`): Model with latents: a [`CSTModel`], an [`RVQCodecModel`], transformers'
            VibeVoiceAcousticTokenizerModel, PocketTTSAudioTokenizerModel and the like.
        feature_extractor (`SequenceFeatureExtractor`): Feature extractor of the model. Its rate is the system's.
        name (`str`): Name that tables show. `(latents)` is added where the model has codebooks too.
        device (`str`, *optional*, defaults to `"cpu"`): Device that the model runs on.

    Raises:
        ValueError: If the model's `decode` takes no latents, or its `encode` gives none.
    """

    codebook_size: int | None = None
    # Bits that a number of a latent counts as; see `CSTConfig.bits_per_second`.
    bits_per_number = 16

    def __init__(self, model: Any, feature_extractor: Any, name: str, device: str = "cpu"):
        codec = as_speech_codec(model, feature_extractor)
        if "latents" not in codec.decodable_kinds:
            raise ValueError(f"{name} is a {type(model).__name__}, which decodes no latents.")
        title = f"{name} (latents)" if codec.kind == "codes" else name
        super().__init__(model, feature_extractor, title, device, latents=True)
        self.code(np.zeros(self.sampling_rate, np.float32))  # see `ModelSystem`

    @torch.inference_mode()
    def code(self, audio: np.ndarray) -> CodedClip:
        encoded, clip = self._code(audio, "latents")
        clip.num_bits = float(encoded.latents.numel() * self.bits_per_number)
        return clip


def first_samples(audio_values: torch.Tensor, num_samples: int) -> np.ndarray:
    """The waveform of one clip `(1, 1, any)`, cut or extended with zeros to `num_samples`."""
    values = audio_values.reshape(-1)[:num_samples].float().cpu().numpy()
    return np.pad(values, (0, num_samples - len(values)))


LATENTS_SUFFIX = ":latents"


def load_system(name: str, title: str, num_quantizers: int | None = None, device: str = "cpu") -> CodecSystem:
    """
    Load a model that encodes and decodes.

    Args:
        name (`str`): Name of a checkpoint, a folder or a Hub id. With `:latents` behind it, a codec is measured
            without its quantizer.
        title (`str`): Name that tables show.
        num_quantizers (`int`, *optional*): Number of codebooks, the first ones, that are used. Defaults to all.
        device (`str`, *optional*, defaults to `"cpu"`): Device that the model runs on.

    Raises:
        ValueError: If there is no such model, or it cannot be run so.
        OSError: If it cannot be read.
    """
    model, feature_extractor = load(name.removesuffix(LATENTS_SUFFIX))
    is_discrete = as_speech_codec(model, feature_extractor).kind == "codes"
    if is_discrete and not name.endswith(LATENTS_SUFFIX):
        return ModelSystem(model, feature_extractor, title, num_quantizers, device)
    if num_quantizers is not None:
        raise ValueError(f"{title} is continuous: it has no codebooks of which some could be used; measure it apart.")
    return LatentSystem(model, feature_extractor, title, device)
