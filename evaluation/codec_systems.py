# SPDX-License-Identifier: Apache-2.0
"""Neural codecs as systems under evaluation: models of the common interface and transformers' own codecs."""

import hashlib
import inspect
import json
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from speech_tokenizers.evaluation.stopwatch import Stopwatch
from speech_tokenizers.modeling.vector_quantization import ResidualVectorQuantizer


@dataclass
class CodedClip:
    r"""
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
    r"""
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
        r"""Encode and decode one clip of shape `(num_samples,)`, in [-1, 1] at `sampling_rate`."""
        ...


def model_fingerprint(model: nn.Module, **settings: Any) -> str:
    r"""Short hash of a model's class, configuration, weights and buffers, and of further settings."""
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


def join_chunks(audio_codes: torch.Tensor) -> torch.Tensor:
    r"""
    Codes of the only clip of a batch, `(num_quantizers, num_frames)`. EnCodec's are `(num_chunks, batch,
    num_quantizers, num_frames)`.
    """
    return torch.cat(list(audio_codes), dim=-1)[0] if audio_codes.dim() == 4 else audio_codes[0]


@dataclass
class EncodedClip:
    r"""
    A clip as codes, and as the frames before they were quantized.

    Args:
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codebook indices.
        features (`np.ndarray` of shape `(num_frames, dimension)`, *optional*): What was quantized, float32, where the
            model tells.
    """

    audio_codes: np.ndarray
    features: np.ndarray | None


def has_codebooks(model: Any) -> bool:
    r"""Whether a model quantizes: it has codebooks, or a grid of levels as X-Codec2 and NeuCodec do."""
    config = model.config
    return bool(getattr(config, "codebook_size", None) or getattr(config, "quantization_levels", None))


class _RunningModel:
    r"""A model and its feature extractor, on a device; `key` tells apart also what `settings` change."""

    def __init__(self, model: Any, feature_extractor: Any, name: str, device: str, **settings: Any):
        self.model = model.eval().to(device)
        self.feature_extractor = feature_extractor
        self.name = name
        self.sampling_rate = int(feature_extractor.sampling_rate)
        self.device = torch.device(device)
        self.key = f"{name}-{model_fingerprint(model, device=self.device.type, **settings)}"
        hop_length = getattr(model.config, "hop_length", None)
        # Mimi's `hop_length` leaves its last downsampling out.
        frame_rate = getattr(model.config, "frame_rate", None) or self.sampling_rate / hop_length
        self.frame_rate: float | None = float(
            self.sampling_rate / hop_length if type(frame_rate) is int and hop_length else frame_rate
        )
        self._encode_arguments = inspect.signature(model.encode).parameters

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _features(self, audio: np.ndarray) -> dict[str, torch.Tensor]:
        features = self.feature_extractor(audio, sampling_rate=self.sampling_rate, return_tensors="pt")
        return {
            name: value.to(self.device, self.model.dtype if value.is_floating_point() else value.dtype)
            for name, value in features.items()
            if name in self._encode_arguments
        }

    def frame_centres(self, num_frames: int) -> np.ndarray:
        r"""Times of the middles of the first frames, of shape `(num_frames,)`, in seconds."""
        if hasattr(self.model, "frame_centres"):
            return np.asarray(self.model.frame_centres(num_frames), np.float64)
        return (np.arange(num_frames) + 0.5) / self.frame_rate


class EncodingSystem(_RunningModel):
    r"""
    A model that turns speech into codes, and its feature extractor; it need not have a decoder.

    The model has `encode` in the manner of transformers: it takes the feature extractor's output and gives
    `audio_codes`. EnCodec's and X-Codec's `bandwidth` and DAC's `n_quantizers` are translated.

    Args:
        model (`PreTrainedModel`): A [`KMeansUnitsModel`], an [`RVQCodecModel`], or transformers' EncodecModel,
            DacModel, MimiModel, XcodecModel and the like.
        feature_extractor (`SequenceFeatureExtractor`): Its feature extractor; its rate is the system's.
        name (`str`): What tables show.
        num_quantizers (`int`, *optional*): Use only the first codebooks. Defaults to all.
        device (`str`, *optional*, defaults to `"cpu"`): Where the model runs.

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
        if not has_codebooks(model):
            raise ValueError(f"{name} is a {type(model).__name__}, which has no codebooks: its frames are continuous.")
        used = f"{num_quantizers} codebook{'s' if num_quantizers != 1 else ''}"
        title = name if num_quantizers is None else f"{name} ({used})"
        super().__init__(model, feature_extractor, title, device, num_quantizers=num_quantizers)
        self.num_quantizers = num_quantizers
        # X-Codec2 and NeuCodec quantize to a grid of levels instead of a codebook.
        self.codebook_size = getattr(model.config, "codebook_size", None) or math.prod(
            model.config.quantization_levels
        )
        self._quantizer_arguments = self._choose_quantizers(num_quantizers)

    def _choose_quantizers(self, num_quantizers: int | None) -> dict[str, Any]:
        available = getattr(self.model.config, "num_quantizers", None) or getattr(self.model.config, "n_codebooks", 1)
        if num_quantizers is not None and not 1 <= num_quantizers <= available:
            raise ValueError(
                f"`num_quantizers` must lie between 1 and {available} for {self.name}, but got {num_quantizers}."
            )
        if "bandwidth" in self._encode_arguments:
            bandwidths = self.model.config.target_bandwidths
            if num_quantizers is None:
                return {"bandwidth": max(bandwidths)}
            per_stage = math.log2(self.codebook_size) * self.frame_rate / 1000
            nearest = min(bandwidths, key=lambda bandwidth: abs(bandwidth - num_quantizers * per_stage))
            if abs(nearest - num_quantizers * per_stage) > per_stage / 2:
                raise ValueError(
                    f"`num_quantizers` {num_quantizers} gives {num_quantizers * per_stage:g} kbps, but {self.name} "
                    f"offers {', '.join(f'{bandwidth:g}' for bandwidth in bandwidths)} kbps."
                )
            return {"bandwidth": nearest}
        if num_quantizers is None:
            return {}
        for argument in ("num_quantizers", "n_quantizers"):
            if argument in self._encode_arguments:
                return {argument: num_quantizers}
        raise ValueError(f"`num_quantizers` cannot be chosen for {self.name}; leave it out.")

    @torch.inference_mode()
    def encode(self, audio: np.ndarray) -> np.ndarray:
        r"""Codes of shape `(num_quantizers, num_frames)` of a clip of shape `(num_samples,)`."""
        encoded = self.model.encode(**self._features(audio), **self._quantizer_arguments)
        return join_chunks(encoded.audio_codes).cpu().numpy()

    @torch.inference_mode()
    def encode_frames(self, audio: np.ndarray) -> EncodedClip:
        r"""
        Codes of a clip of shape `(num_samples,)` and the frames that were quantized: `latents` of our models, the
        output of the last module before the quantizer of EnCodec, DAC and Mimi.
        """
        outputs: list[torch.Tensor] = []
        parts = dict(self.model.named_children())
        # Older versions of Mimi have their last downsampling beside the encoder, not in it.
        module = parts.get("downsample") or parts.get("encoder", nn.Identity())
        hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            encoded = self.model.encode(**self._features(audio), **self._quantizer_arguments)
        finally:
            hook.remove()
        audio_codes = join_chunks(encoded.audio_codes).cpu().numpy()
        features = encoded.get("latents")
        if features is None and outputs:
            # Channels first; EnCodec's long recordings come in chunks. Newer versions of Mimi give an object.
            latents = [output if torch.is_tensor(output) else output.latents for output in outputs]
            features = torch.cat(latents, dim=-1).transpose(1, 2)
        if features is not None:
            features = features[0].float().cpu().numpy()
        return EncodedClip(audio_codes, features)

    @torch.inference_mode()
    def dequantize(self, audio_codes: np.ndarray) -> np.ndarray:
        r"""
        The frames that codes stand for: what the decoder is given.

        Args:
            audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of the first codebooks.

        Returns:
            `np.ndarray` of shape `(num_frames, dimension)`.

        Raises:
            ValueError: If the model has no residual quantizer.
        """
        codes = torch.from_numpy(np.ascontiguousarray(audio_codes)).to(self.device)[None]
        # transformers' own `dequantize` has another meaning: weights of fewer bits.
        own = getattr(self.model, "dequantize", None)
        if own is not None and "audio_codes" in inspect.signature(own).parameters:
            return own(codes)[0].float().cpu().numpy()
        quantizer = getattr(self.model, "quantizer", None)
        if isinstance(quantizer, ResidualVectorQuantizer):
            return quantizer.decode(codes)[0].float().cpu().numpy()
        if hasattr(quantizer, "from_codes"):  # DAC
            frames = quantizer.from_codes(codes)[0]
        elif hasattr(quantizer, "decode"):
            # EnCodec's has the stages first.
            frames = quantizer.decode(codes.transpose(0, 1) if "bandwidth" in self._encode_arguments else codes)
        else:
            raise ValueError(f"{self.name} has no residual quantizer whose entries could be looked up.")
        return frames[0].T.float().cpu().numpy()


class ModelSystem(EncodingSystem):
    r"""
    A codec model and its feature extractor, to be heard: its `decode` takes what `encode` gives. EnCodec's scales are
    handed on.

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
        self._decode_arguments = inspect.signature(model.decode).parameters
        # The first call allocates and warms caches; it would count against the first clip.
        self.code(np.zeros(self.sampling_rate, np.float32))

    @torch.inference_mode()
    def code(self, audio: np.ndarray) -> CodedClip:
        features = self._features(audio)
        with Stopwatch() as encoding:
            encoded = self.model.encode(**features, **self._quantizer_arguments)
            self._synchronize()
        extra = {
            name: encoded[name]
            for name in ("audio_scales", "last_frame_pad_length", "audio_codes_mask")
            if name in self._decode_arguments and encoded.get(name) is not None
        }
        if "audio_scales" in self._decode_arguments:
            extra.setdefault("audio_scales", [None] * len(encoded.audio_codes))
        with Stopwatch() as decoding:
            decoded = self.model.decode(audio_codes=encoded.audio_codes, **extra)
            self._synchronize()
        codes = join_chunks(encoded.audio_codes)
        return CodedClip(
            audio_values=first_samples(decoded, len(audio)),
            num_bits=codes.numel() * math.log2(self.codebook_size),
            encode_seconds=encoding.seconds,
            decode_seconds=decoding.seconds,
            encode_cpu_seconds=encoding.cpu_seconds,
            decode_cpu_seconds=decoding.cpu_seconds,
            audio_codes=codes.cpu().numpy(),
        )


class LatentSystem(_RunningModel):
    r"""
    A model of continuous latents and its feature extractor, or a codec whose quantizer is passed over: `decode` is
    given the `latents` that `encode` gives. Of our codecs these are the frames before quantization, and of models
    that can draw them at random the mean.

    Args:
        model (`PreTrainedModel`): A [`CSTModel`], an [`RVQCodecModel`], transformers'
            VibeVoiceAcousticTokenizerModel, PocketTTSAudioTokenizerModel and the like.
        feature_extractor (`SequenceFeatureExtractor`): Its feature extractor; its rate is the system's.
        name (`str`): What tables show; where the model has codebooks too, `(latents)` is added.
        device (`str`, *optional*, defaults to `"cpu"`): Where the model runs.

    Raises:
        ValueError: If the model's `decode` takes no latents, or its `encode` gives none.
    """

    codebook_size: int | None = None
    # What a number of a latent is counted as; see `CSTConfig.bits_per_second`.
    bits_per_number = 16

    def __init__(self, model: Any, feature_extractor: Any, name: str, device: str = "cpu"):
        self._decode_arguments = inspect.signature(model.decode).parameters
        if "latents" not in self._decode_arguments:
            raise ValueError(f"{name} is a {type(model).__name__}, which decodes no latents.")
        title = f"{name} (latents)" if has_codebooks(model) else name
        super().__init__(model, feature_extractor, title, device, latents=True)
        self.code(np.zeros(self.sampling_rate, np.float32))  # see `ModelSystem`

    @torch.inference_mode()
    def code(self, audio: np.ndarray) -> CodedClip:
        features: dict[str, Any] = self._features(audio)
        if "sample" in self._encode_arguments:
            features["sample"] = False
        with Stopwatch() as encoding:
            encoded = self.model.encode(**features)
            self._synchronize()
        latents = encoded.get("latents")
        if latents is None:
            raise ValueError(f"{self.name}: `encode` gives no `latents`.")
        extra = {
            name: encoded[name]
            for name in ("audio_codes_mask",)
            if name in self._decode_arguments and encoded.get(name) is not None
        }
        with Stopwatch() as decoding:
            decoded = self.model.decode(latents=latents, **extra)
            self._synchronize()
        return CodedClip(
            audio_values=first_samples(decoded, len(audio)),
            num_bits=float(latents.numel() * self.bits_per_number),
            encode_seconds=encoding.seconds,
            decode_seconds=decoding.seconds,
            encode_cpu_seconds=encoding.cpu_seconds,
            decode_cpu_seconds=decoding.cpu_seconds,
        )


def first_samples(decoded: Any, num_samples: int) -> np.ndarray:
    r"""The waveform of a decoder's output for one clip, cut or extended with zeros to `num_samples`."""
    audio_values = decoded.audio_values if "audio_values" in decoded else decoded.audio  # VibeVoice's name
    values = audio_values.reshape(-1)[:num_samples].float().cpu().numpy()
    return np.pad(values, (0, num_samples - len(values)))


LATENTS_SUFFIX = ":latents"


def load_system(name: str, title: str, num_quantizers: int | None = None, device: str = "cpu") -> CodecSystem:
    r"""
    Load a model to be heard.

    Args:
        name (`str`): A checkpoint's name, a folder or a Hub id; with `:latents` behind it, a codec is measured without
            its quantizer.
        title (`str`): What tables show.
        num_quantizers (`int`, *optional*): Use only the first codebooks. Defaults to all.
        device (`str`, *optional*, defaults to `"cpu"`): Where the model runs.

    Raises:
        ValueError: If there is no such model, or it cannot be run so.
        OSError: If it cannot be read.
    """
    import speech_tokenizers

    model, feature_extractor = speech_tokenizers.load(name.removesuffix(LATENTS_SUFFIX))
    if has_codebooks(model) and not name.endswith(LATENTS_SUFFIX):
        return ModelSystem(model, feature_extractor, title, num_quantizers, device)
    if num_quantizers is not None:
        raise ValueError(f"{title} is continuous: it has no codebooks of which some could be used; measure it apart.")
    return LatentSystem(model, feature_extractor, title, device)
