# SPDX-License-Identifier: Apache-2.0
"""
Encode and decode files of any length, block by block: memory holds the codec, some seconds of audio and the codes.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from speech_tokenizers.modeling.codec_streaming import CodecStream
from speech_tokenizers.modeling.windowed_encoding import WindowedEncoder
from speech_tokenizers.processing.audio_files import AudioReader, AudioWriter
from speech_tokenizers.processing.code_files import AudioCodes, CodeFileError, load_codes, save_codes


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
    if _are_units(model):
        yield from (codes[:num_quantizers] for codes in WindowedEncoder(model).windows(blocks))
        return
    stream = CodecStream(model, num_quantizers=num_quantizers)
    for block in blocks:
        yield stream.encode(block[None, None].to(model.device))[0].cpu()
    yield stream.finish_encode()[0].cpu()


def decode_blocks(model: Any, audio_codes: np.ndarray, num_samples: int) -> Iterator[torch.Tensor]:
    r"""
    The audio of codes block by block, equal to that of all at once.

    Args:
        model (`PreTrainedModel`): A codec, or units with a vocoder of a single voice, in evaluation mode.
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
    if not _are_units(model):
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
) -> AudioCodes:
    r"""
    Encode an audio file.

    Args:
        model (`PreTrainedModel`): A codec or units, in evaluation mode.
        audio_path (`str` or `Path`): Audio at any rate; channels are averaged, and the result resampled to the codec's
            rate.
        codes_path (`str` or `Path`, *optional*): File of codes to write; see [`save_codes`].
        num_quantizers (`int`, *optional*): Use only the first codebooks. Defaults to all.
        model_name (`str`, *optional*): Name under which the decoder will look for the codec.
        on_progress (`Callable`, *optional*): Called with the seconds done since the last call.

    Raises:
        AudioFileError: If the audio cannot be read.
        CodeFileError: If the codes cannot be written.
    """
    num_samples = 0
    with AudioReader(audio_path, model.sampling_rate, block_seconds=_BLOCK_SECONDS) as reader:

        def blocks() -> Iterator[torch.Tensor]:
            nonlocal num_samples
            for block in reader:
                yield torch.from_numpy(block)
                num_samples += len(block)
                if on_progress is not None:
                    on_progress(len(block) / model.sampling_rate)

        audio_codes = torch.cat(list(encode_blocks(model, blocks(), num_quantizers)), dim=-1).numpy()
    metadata = {
        "num_samples": num_samples,
        "sampling_rate": model.sampling_rate,
        "codebook_size": model.config.codebook_size,
        "hop_length": model.hop_length,
        "model_name": model_name,
        "model_fingerprint": fingerprint(model),
    }
    if codes_path is not None:
        save_codes(codes_path, audio_codes, metadata)
    return AudioCodes(audio_codes, **metadata)


def decode_file(
    model: Any,
    codes: AudioCodes | str | os.PathLike[str],
    audio_path: str | os.PathLike[str],
    on_progress: OnProgress | None = None,
) -> int:
    r"""
    Decode codes to an audio file as long as the original at the codec's rate.

    Args:
        model (`PreTrainedModel`): The codec or the units that made the codes, in evaluation mode.
        codes ([`AudioCodes`], `str` or `Path`): Codes or a file of them.
        audio_path (`str` or `Path`): File to write; its suffix chooses the format.
        on_progress (`Callable`, *optional*): Called with the seconds done since the last call.

    Returns:
        `int`: Number of samples written.

    Raises:
        CodeFileError: If the codes cannot be read or come from another codec.
        AudioFileError: If the audio cannot be written.
    """
    codes_path = "codes" if isinstance(codes, AudioCodes) else codes
    codes = codes if isinstance(codes, AudioCodes) else load_codes(codes)
    _check_codes_are_of(model, codes, codes_path)
    remaining = codes.num_samples
    with AudioWriter(audio_path, model.sampling_rate) as writer:
        for block in decode_blocks(model, codes.audio_codes, codes.num_samples):
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
) -> AudioCodes:
    r"""
    Encode an audio file, decode it again, and return the codes; see [`encode_file`] and [`decode_file`].

    `on_progress` counts the audio twice, once for each direction.
    """
    codes = encode_file(model, audio_path, num_quantizers=num_quantizers, on_progress=on_progress)
    decode_file(model, codes, output_path, on_progress=on_progress)
    return codes


def fingerprint(model: Any) -> str:
    r"""
    Hash of a codec's codebooks, the same whether its weights are held in half or single precision.

    Two codecs of one shape decode each other's codes without an error, to noise; this tells them apart.
    """
    digest = hashlib.sha256()
    if _are_units(model):
        codebooks = list(model.centroids)
    else:
        codebooks = [quantizer.codebook for quantizer in model.quantizer.quantizers]
    for codebook in codebooks:
        digest.update(codebook.detach().cpu().to(torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _are_units(model: Any) -> bool:
    # Units of an encoder that hears all it is given; codecs can be streamed.
    return hasattr(model, "frame_span")


def _check_codes_are_of(model: Any, codes: AudioCodes, path: str | os.PathLike[str]) -> None:
    expected = {
        "sampling_rate": model.sampling_rate,
        "hop_length": model.hop_length,
        "codebook_size": model.config.codebook_size,
    }
    for name, value in expected.items():
        if getattr(codes, name) != value:
            raise CodeFileError(
                path,
                f"has `{name}` {getattr(codes, name)}, but this codec has {value}; name the codec that made it.",
            )
    if codes.num_quantizers > model.config.num_quantizers:
        raise CodeFileError(
            path,
            f"has {codes.num_quantizers} codebooks, but this codec has {model.config.num_quantizers}; "
            "name the codec that made the codes.",
        )
    if codes.model_fingerprint and codes.model_fingerprint != fingerprint(model):
        raise CodeFileError(
            path,
            f"was made by a codec with other codebooks ({codes.model_fingerprint}, here {fingerprint(model)}); "
            "name the codec that made the codes, or encode the recording again.",
        )
