# SPDX-License-Identifier: Apache-2.0
"""
Encode and decode files of any length, block by block: memory holds the codec, some seconds of audio and the codes or
latents.
"""

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from speech_tokenizers.modeling.codec_streaming import CodecStream, LatentStream
from speech_tokenizers.modeling.windowed_encoding import WindowedEncoder
from speech_tokenizers.processing.audio_files import AudioReader, AudioWriter
from speech_tokenizers.processing.code_files import AudioCodes, CodeFileError, save_codes
from speech_tokenizers.processing.latent_files import AudioLatents, load_encoded, save_latents


# Called with the seconds of audio done since the last call, e.g. `tqdm.update`.
OnProgress = Callable[[float], object]

_BLOCK_SECONDS = 10.0


def encode_blocks(
    model: Any, blocks: Iterable[torch.Tensor], num_quantizers: int | None = None
) -> Iterator[torch.Tensor]:
    r"""
    Codes of a recording that comes block by block: of codecs those of the whole recording, of units those of
    [`WindowedEncoder`].

    Args:
        model (`PreTrainedModel`): A codec or units, in evaluation mode.
        blocks (iterable of `torch.Tensor` of shape `(num_samples,)`): The recording, in [-1, 1].
        num_quantizers (`int`, *optional*): Use only the first codebooks. Defaults to all.

    Returns:
        Iterator of `torch.LongTensor` of shape `(num_quantizers, num_frames)`, which follow each other.
    """
    if are_units(model):
        yield from (codes[:num_quantizers] for codes in WindowedEncoder(model).windows(blocks))
        return
    stream = CodecStream(model, num_quantizers=num_quantizers)
    for block in blocks:
        yield stream.encode(block[None, None].to(model.device))[0].cpu()
    yield stream.finish_encode()[0].cpu()


def encode_latent_blocks(model: Any, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    r"""
    Latents of a recording that comes block by block, equal to those of the whole: continuous tokens, or a codec's
    frames before quantization.

    Args:
        model (`PreTrainedModel`): A model of continuous tokens or a codec, in evaluation mode.
        blocks (iterable of `torch.Tensor` of shape `(num_samples,)`): The recording, in [-1, 1].

    Returns:
        Iterator of `torch.FloatTensor` of shape `(num_frames, hidden_size)`, which follow each other.
    """
    stream = LatentStream(model)
    for block in blocks:
        yield stream.encode(block[None, None].to(model.device))[0].cpu()
    yield stream.finish_encode()[0].cpu()


def decode_latent_blocks(model: Any, latents: np.ndarray) -> Iterator[torch.Tensor]:
    r"""
    The audio of latents block by block, equal to that of all at once.

    Args:
        model (`PreTrainedModel`): A model of continuous tokens or a codec, in evaluation mode.
        latents (`np.ndarray` of shape `(num_frames, hidden_size)`): What to decode.

    Returns:
        Iterator of `torch.FloatTensor` of shape `(num_samples,)`, which follow each other.
    """
    frames_per_block = max(1, round(_BLOCK_SECONDS * model.frame_rate))
    stream = LatentStream(model)
    for start in range(0, len(latents), frames_per_block):
        block = torch.from_numpy(np.ascontiguousarray(latents[start : start + frames_per_block], np.float32))
        yield stream.decode(block[None].to(model.device))[0, 0]
    yield stream.finish_decode()[0, 0]


def decode_blocks(model: Any, audio_codes: np.ndarray, num_samples: int) -> Iterator[torch.Tensor]:
    r"""
    The audio of codes block by block, equal to that of all at once.

    Args:
        model (`PreTrainedModel`): A codec, or units with a vocoder that has one voice or a
            `default_speaker`, in evaluation mode.
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): What to decode.
        num_samples (`int`): Length of the recording.

    Returns:
        Iterator of `torch.FloatTensor` of shape `(num_samples,)`, which follow each other.

    Raises:
        ValueError: If units have no vocoder.
    """
    num_frames = audio_codes.shape[1]
    frames_per_block = max(1, round(_BLOCK_SECONDS * model.frame_rate))
    codes = torch.from_numpy(np.ascontiguousarray(audio_codes))[None].to(model.device)
    if not are_units(model):
        stream = CodecStream(model)
        for start in range(0, num_frames, frames_per_block):
            yield stream.decode(codes[..., start : start + frames_per_block])[0, 0]
        yield stream.finish_decode()[0, 0]
        return
    hop = model.hop_length
    before, after = (0, 0) if model.vocoder is None else model.vocoder.decoder_context
    for start in range(0, num_frames, frames_per_block):
        end = min(num_frames, start + frames_per_block)
        first, last = max(0, start - before), min(num_frames, end + after)
        is_last = last == num_frames
        with torch.no_grad():
            audio_values = model.decode(
                codes[..., first:last], num_samples=num_samples - first * hop if is_last else None
            ).audio_values[0, 0]
        yield audio_values[(start - first) * hop : None if end == num_frames else (end - first) * hop]


def encode_file(
    model: Any,
    audio_path: str | os.PathLike[str],
    codes_path: str | os.PathLike[str] | None = None,
    num_quantizers: int | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
    latents: bool = False,
    dtype: str = "float32",
) -> AudioCodes | AudioLatents:
    r"""
    Encode an audio file.

    Args:
        model (`PreTrainedModel`): A codec, units or continuous tokens, in evaluation mode.
        audio_path (`str` or `Path`): Audio at any rate; channels are averaged, and the result resampled to the codec's
            rate.
        codes_path (`str` or `Path`, *optional*): File to write; see [`save_codes`] and [`save_latents`].
        num_quantizers (`int`, *optional*): Use only the first codebooks. Defaults to all.
        model_name (`str`, *optional*): Name under which the decoder will look for the codec.
        on_progress (`Callable`, *optional*): Called with the seconds done since the last call.
        latents (`bool`, *optional*, defaults to `False`): Give a codec's frames before quantization instead of its
            codes. Continuous tokens are given in any case.
        dtype (`str`, *optional*, defaults to `"float32"`): Of latents: `"float32"` or `"float16"`.

    Returns:
        [`AudioCodes`] or [`AudioLatents`].

    Raises:
        ValueError: If the model decodes no latents, or has no codebooks of which `num_quantizers` could be used.
        AudioFileError: If the audio cannot be read.
        CodeFileError: If the result cannot be written.
    """
    latents = latents or is_continuous(model)
    if latents and not decodes_latents(model):
        raise ValueError(f"`latents` needs a model that decodes them, but this is a {type(model).__name__}.")
    if latents and num_quantizers is not None:
        raise ValueError("`num_quantizers` chooses among codebooks, of which latents have none; leave it out.")
    num_samples = 0
    with AudioReader(audio_path, model.sampling_rate, block_seconds=_BLOCK_SECONDS) as reader:

        def blocks() -> Iterator[torch.Tensor]:
            nonlocal num_samples
            for block in reader:
                yield torch.from_numpy(block)
                num_samples += len(block)
                if on_progress is not None:
                    on_progress(len(block) / model.sampling_rate)

        if latents:
            encoded = torch.cat(list(encode_latent_blocks(model, blocks())), dim=0).float().numpy().astype(dtype)
        else:
            encoded = torch.cat(list(encode_blocks(model, blocks(), num_quantizers)), dim=-1).numpy()
    metadata = {
        "num_samples": num_samples,
        "sampling_rate": model.sampling_rate,
        "hop_length": model.hop_length,
        "model_name": model_name,
        "model_fingerprint": fingerprint(model),
    }
    if latents:
        if codes_path is not None:
            save_latents(codes_path, encoded, metadata)
        return AudioLatents(encoded, **metadata)
    metadata["codebook_size"] = model.config.codebook_size
    if codes_path is not None:
        save_codes(codes_path, encoded, metadata)
    return AudioCodes(encoded, **metadata)


def decode_file(
    model: Any,
    codes: AudioCodes | AudioLatents | str | os.PathLike[str],
    audio_path: str | os.PathLike[str],
    on_progress: OnProgress | None = None,
) -> int:
    r"""
    Decode codes or latents to an audio file as long as the original at the codec's rate.

    Args:
        model (`PreTrainedModel`): What made them, in evaluation mode.
        codes ([`AudioCodes`], [`AudioLatents`], `str` or `Path`): Codes, latents, or a file of either.
        audio_path (`str` or `Path`): File to write; its suffix chooses the format.
        on_progress (`Callable`, *optional*): Called with the seconds done since the last call.

    Returns:
        `int`: Number of samples written.

    Raises:
        CodeFileError: If the codes cannot be read or come from another codec.
        AudioFileError: If the audio cannot be written.
    """
    if isinstance(codes, AudioCodes | AudioLatents):
        encoded = codes
        _check_is_of(model, encoded, "codes")
    else:
        encoded = load_encoded(codes)
        _check_is_of(model, encoded, codes)
    if isinstance(encoded, AudioLatents):
        blocks = decode_latent_blocks(model, encoded.latents)
    else:
        blocks = decode_blocks(model, encoded.audio_codes, encoded.num_samples)
    remaining = encoded.num_samples
    with AudioWriter(audio_path, model.sampling_rate) as writer:
        for block in blocks:
            samples = block[:remaining].float().cpu().numpy()
            writer.write(samples)
            remaining -= len(samples)
            if on_progress is not None:
                on_progress(len(samples) / model.sampling_rate)
    return writer.num_samples


def reconstruct_file(
    model: Any,
    audio_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    num_quantizers: int | None = None,
    on_progress: OnProgress | None = None,
    latents: bool = False,
) -> AudioCodes | AudioLatents:
    r"""
    Encode an audio file, decode it again, and return the codes or latents; see [`encode_file`] and [`decode_file`].

    `on_progress` counts the audio twice, once for each direction.
    """
    codes = encode_file(model, audio_path, num_quantizers=num_quantizers, on_progress=on_progress, latents=latents)
    decode_file(model, codes, output_path, on_progress=on_progress)
    return codes


def is_continuous(model: Any) -> bool:
    r"""Whether a model has no codebooks, so that its latents are all there is."""
    return not hasattr(model.config, "codebook_size")


def decodes_latents(model: Any) -> bool:
    r"""Whether a model's `decode` takes latents."""
    return "latents" in inspect.signature(model.decode).parameters


def fingerprint(model: Any) -> str:
    r"""
    Hash of a codec's codebooks, or of the mean and standard deviation of continuous tokens, the same whether the
    weights are held in half or single precision. Empty for continuous tokens that have seen no speech.

    Two codecs of one shape decode each other's codes without an error, to noise; this tells them apart.
    """
    digest = hashlib.sha256()
    if are_units(model):
        tensors = list(model.centroids)
    elif is_continuous(model):
        if not bool(model.statistics.num_updates):
            return ""
        tensors = [model.statistics.mean, model.statistics.std]
    else:
        tensors = [quantizer.codebook for quantizer in model.quantizer.quantizers]
    for tensor in tensors:
        digest.update(tensor.detach().cpu().to(torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def are_units(model: Any) -> bool:
    r"""Whether a model gives units of an encoder that hears all it is given; codecs can be streamed."""
    return hasattr(model, "frame_span")


def _check_is_of(model: Any, encoded: AudioCodes | AudioLatents, path: str | os.PathLike[str]) -> None:
    expected = {"sampling_rate": model.sampling_rate, "hop_length": model.hop_length}
    if isinstance(encoded, AudioLatents):
        if not decodes_latents(model):
            raise CodeFileError(
                path, f"holds latents, but a {type(model).__name__} decodes none; name the model that made them."
            )
        expected["hidden_size"] = model.config.hidden_size
    elif is_continuous(model):
        raise CodeFileError(
            path, f"holds codes, but a {type(model).__name__} decodes latents; name the codec that made them."
        )
    else:
        expected["codebook_size"] = model.config.codebook_size
    for name, value in expected.items():
        if getattr(encoded, name) != value:
            raise CodeFileError(
                path,
                f"has `{name}` {getattr(encoded, name)}, but this codec has {value}; name the codec that made it.",
            )
    if isinstance(encoded, AudioCodes) and encoded.num_quantizers > model.config.num_quantizers:
        raise CodeFileError(
            path,
            f"has {encoded.num_quantizers} codebooks, but this codec has {model.config.num_quantizers}; "
            "name the codec that made the codes.",
        )
    known = fingerprint(model)
    if encoded.model_fingerprint and known and encoded.model_fingerprint != known:
        kind = "latents" if is_continuous(model) else "codebooks"
        raise CodeFileError(
            path,
            f"was made by a codec with other {kind} ({encoded.model_fingerprint}, here {known}); "
            f"it was called {encoded.model_name!r}, and the weights under a name may change between versions. Name "
            "the folder of those that made the file, or encode the recording again.",
        )
