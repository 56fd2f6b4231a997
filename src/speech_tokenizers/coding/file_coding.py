# SPDX-License-Identifier: Apache-2.0
"""
Encode and decode files of any length, block by block: memory holds the codec, some seconds of audio and the codes or
latents.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.processing.audio_files import AudioReader, AudioWriter
from speech_tokenizers.processing.code_files import AudioCodes, CodeFileError, save_codes
from speech_tokenizers.processing.latent_files import AudioLatents, load_encoded, save_latents
from speech_tokenizers.processing.provenance import Provenance
from speech_tokenizers.processing.recording_fingerprint import recording_fingerprint


# Called with the seconds of audio done since the last call, e.g. `tqdm.update`.
OnProgress = Callable[[float], object]

_BLOCK_SECONDS = 10.0


def encode_blocks(
    model: Any,
    blocks: Iterable[torch.Tensor],
    num_quantizers: int | None = None,
    kind: str | None = None,
    speaker_f0: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """
    Codes or latents of a recording that comes block by block; see [`SpeechCodec.encode_stream`].

    Args:
        model ([`SpeechCodec`]): Codec, units or continuous tokens, in evaluation mode.
        blocks (iterable of `torch.Tensor` of shape `(num_samples,)`): The recording, in [-1, 1].
        num_quantizers (`int`, *optional*): Number of first codebooks to use. Defaults to all.
        kind (`str`, *optional*): Kind of tokens: `"codes"` or `"latents"`. Defaults to the model's.
        speaker_f0 (`torch.Tensor` of shape `(1, 2)`, *optional*): Mean and deviation of log2 F0 in Hz of the speaker,
            for units with F0; see [`UnitStream`].

    Returns:
        Iterator of `torch.Tensor`, which follow each other: codes `(num_quantizers, num_frames)` or latents
        `(num_frames, latent_dim)`.

    Raises:
        ValueError: If `speaker_f0` is wrong, or given to a model without F0; and see [`SpeechCodec.encode_stream`].
    """
    if speaker_f0 is None:
        stream = model.encode_stream(kind, num_quantizers)
    elif getattr(model, "f0_codebook", None) is None:
        raise ValueError(f"`speaker_f0` is for units with F0 (`f0_bins`), which this {model.family} has not.")
    else:
        stream = model.encode_stream(kind, num_quantizers, speaker_f0=speaker_f0)
    for block in blocks:
        yield stream.encode(block[None, None])[0].cpu()
    yield stream.finish_encode()[0].cpu()


def decode_blocks(
    model: Any, tokens: np.ndarray, num_samples: int | None = None, kind: str | None = None
) -> Iterator[torch.Tensor]:
    """
    The audio of codes or latents block by block, equal to that of all at once; see [`SpeechCodec.decode_stream`].

    Args:
        model ([`SpeechCodec`]): Codec, units or continuous tokens, in evaluation mode.
        tokens (`np.ndarray`): Codes `(num_quantizers, num_frames)` or latents `(num_frames, latent_dim)`.
        num_samples (`int`, *optional*): Length of the recording, in samples.
        kind (`str`, *optional*): Kind of tokens: `"codes"` or `"latents"`. Defaults to the model's.

    Returns:
        Iterator of `torch.FloatTensor` of shape `(num_samples,)`, which follow each other.

    Raises:
        ValueError: If the model does not decode them, such as units without a vocoder.
    """
    stream = model.decode_stream(kind, num_samples)
    time = -2 if (kind or model.kind) == "latents" else -1
    for block in torch.from_numpy(np.ascontiguousarray(tokens)).split(_frames_per_block(model), dim=time):
        yield stream.decode(block[None].float() if time == -2 else block[None])[0, 0]
    yield stream.finish_decode()[0, 0]


def _frames_per_block(model: Any) -> int:
    return max(1, round(_BLOCK_SECONDS * model.frame_rate))


def encode_file(
    model: Any,
    audio_path: str | os.PathLike[str],
    codes_path: str | os.PathLike[str] | None = None,
    num_quantizers: int | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
    latents: bool = False,
    dtype: str = "float32",
    facts: Mapping[str, str] | None = None,
) -> AudioCodes | AudioLatents:
    """
    Encode an audio file.

    Args:
        model (`PreTrainedModel`): A codec, units or continuous tokens, in evaluation mode.
        audio_path (`str` or `Path`): Audio file at any rate. Channels are averaged, and the result is resampled to the
            codec's rate.
        codes_path (`str` or `Path`, *optional*): File to write; see [`save_codes`] and [`save_latents`].
        num_quantizers (`int`, *optional*): Number of first codebooks to use. Defaults to all.
        model_name (`str`, *optional*): Name under which the decoder will look for the codec.
        on_progress (`Callable`, *optional*): Function that is called with the seconds done since the last call.
        latents (`bool`, *optional*, defaults to `False`): Whether to give a codec's frames before quantization instead
            of its codes. Continuous tokens are given in any case.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of latents: `"float32"` or `"float16"`.
        facts (`Mapping`, *optional*): What [`model_facts`] returns, for many files by one model.

    Returns:
        [`AudioCodes`] or [`AudioLatents`].

    Raises:
        ValueError: If the model decodes no latents, or has no codebooks of which `num_quantizers` could be used.
        AudioFileError: If the audio cannot be read.
        CodeFileError: If the result cannot be written.
    """
    model = as_speech_codec(model)
    kind = model.check_kind("latents" if latents else None)
    # Before the recording is opened: what is asked for wrongly is no fault of a file.
    model.encode_stream(kind, num_quantizers)
    num_samples = 0
    with AudioReader(audio_path, model.sampling_rate, block_seconds=_BLOCK_SECONDS) as reader:

        def blocks() -> Iterator[torch.Tensor]:
            nonlocal num_samples
            for block in reader:
                yield torch.from_numpy(block)
                num_samples += len(block)
                if on_progress is not None:
                    on_progress(len(block) / model.sampling_rate)

        found = list(encode_blocks(model, blocks(), num_quantizers, kind))
        if kind == "latents":
            encoded = torch.cat(found, dim=0).float().numpy().astype(dtype)
        else:
            encoded = torch.cat(found, dim=-1).numpy()
    facts = facts or model_facts(model)
    metadata = {
        "num_samples": num_samples,
        "sampling_rate": model.sampling_rate,
        "hop_length": model.hop_length,
        "model_name": model_name,
        "model_fingerprint": facts["model"],
        "encoder_fingerprint": facts["encoder"],
        "recording_fingerprint": recording_fingerprint(audio_path),
    }
    if kind == "latents":
        if codes_path is not None:
            save_latents(codes_path, encoded, metadata)
        return AudioLatents(encoded, **metadata)
    metadata["codebook_size"] = model.codebook_size
    if codes_path is not None:
        save_codes(codes_path, encoded, metadata)
    return AudioCodes(encoded, **metadata)


def decode_file(
    model: Any,
    codes: AudioCodes | AudioLatents | str | os.PathLike[str],
    audio_path: str | os.PathLike[str],
    on_progress: OnProgress | None = None,
    facts: Mapping[str, str] | None = None,
) -> int:
    """
    Decode codes or latents to an audio file as long as the original at the codec's rate.

    Args:
        model (`PreTrainedModel`): Model that made them, in evaluation mode.
        codes ([`AudioCodes`], [`AudioLatents`], `str` or `Path`): Codes, latents, or a file of either.
        audio_path (`str` or `Path`): File to write; its suffix chooses the format.
        on_progress (`Callable`, *optional*): Function that is called with the seconds done since the last call.
        facts (`Mapping`, *optional*): What [`model_facts`] returns, for many files by one model.

    Returns:
        `int`: Number of samples written.

    Raises:
        CodeFileError: If the codes cannot be read or come from another codec.
        AudioFileError: If the audio cannot be written.
    """
    model = as_speech_codec(model)
    if isinstance(codes, AudioCodes | AudioLatents):
        encoded = codes
        _check_is_of(model, encoded, "codes")
    else:
        encoded = load_encoded(codes)
        _check_is_of(model, encoded, codes)
    if isinstance(encoded, AudioLatents):
        blocks = decode_blocks(model, encoded.latents, encoded.num_samples, "latents")
    else:
        blocks = decode_blocks(model, encoded.audio_codes, encoded.num_samples, "codes")
    remaining = encoded.num_samples
    with AudioWriter(audio_path, model.sampling_rate, str(provenance(encoded, facts or model_facts(model)))) as writer:
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
    facts: Mapping[str, str] | None = None,
) -> AudioCodes | AudioLatents:
    """
    Encode an audio file, decode it again, and return the codes or latents; see [`encode_file`] and [`decode_file`].

    `on_progress` counts the audio twice, once for each direction.
    """
    facts = facts or model_facts(model)
    codes = encode_file(
        model, audio_path, num_quantizers=num_quantizers, on_progress=on_progress, latents=latents, facts=facts
    )
    decode_file(model, codes, output_path, on_progress=on_progress, facts=facts)
    return codes


def model_facts(model: Any) -> dict[str, str]:
    """
    What [`Provenance`] says of a model: fingerprints of `model` (how codes are read), `encoder` and `decoder`.

    Args:
        model ([`SpeechCodec`]): Codec, units or continuous tokens.
    """
    model = as_speech_codec(model)
    return {
        "model": model.fingerprint(),
        "encoder": model.encoder_fingerprint(),
        "decoder": model.decoder_fingerprint(),
    }


def provenance(encoded: AudioCodes | AudioLatents, decoded_by: Mapping[str, str] | None = None) -> Provenance:
    """
    What codes or latents were made by and from, or the audio that is decoded from them.

    Args:
        encoded ([`AudioCodes`] or [`AudioLatents`]): Codes or latents.
        decoded_by (`Mapping`, *optional*): [`model_facts`] of the model that decodes them. It counts as the model that
            made them where they do not name theirs.
    """
    if isinstance(encoded, AudioLatents):
        tokens, num_quantizers, dtype = encoded.latents, None, encoded.dtype
    else:
        tokens, num_quantizers, dtype = encoded.audio_codes, encoded.num_quantizers, None
    facts = {"model": encoded.model_fingerprint, "encoder": encoded.encoder_fingerprint}
    recording = encoded.recording_fingerprint
    if decoded_by is not None:
        recording = recording or recording_fingerprint(tokens)
        facts |= {"model": facts["model"] or decoded_by["model"], "decoder": decoded_by["decoder"]}
    return coding_provenance(facts, recording, num_quantizers, dtype)


def coding_provenance(
    facts: Mapping[str, str], recording: str, num_quantizers: int | None = None, dtype: str | None = None
) -> Provenance:
    """
    Provenance of codes with `num_quantizers` codebooks, or of latents of type `dtype`, or of audio decoded from them.

    Args:
        facts (`Mapping`): Those of [`model_facts`] that count.
        recording (`str`): [`recording_fingerprint`].
        num_quantizers (`int`, *optional*): Number of codebooks.
        dtype (`str`, *optional*): Type of latents.

    Raises:
        FileNotFoundError: If `recording` is the fingerprint of a file that is missing.
    """
    if recording == "missing":
        raise FileNotFoundError("The recording cannot be read.")
    option = {"codebooks": str(num_quantizers)} if dtype is None else {"latents": dtype}
    return Provenance({**facts, "recording": recording, **option})


def _check_is_of(model: Any, encoded: AudioCodes | AudioLatents, path: str | os.PathLike[str]) -> None:
    expected = {"sampling_rate": model.sampling_rate, "hop_length": model.hop_length}
    kind = "latents" if isinstance(encoded, AudioLatents) else "codes"
    if kind == "latents" and kind not in model.decodable_kinds:
        raise CodeFileError(
            path, f"holds latents, but a {type(model).__name__} decodes none; name the model that made them."
        )
    if kind == "codes" and model.kind == "latents":
        raise CodeFileError(
            path, f"holds codes, but a {type(model).__name__} decodes latents; name the codec that made them."
        )
    if isinstance(encoded, AudioLatents):
        expected["hidden_size"] = model.latent_dim
    else:
        expected["codebook_size"] = model.codebook_size
    for name, value in expected.items():
        if getattr(encoded, name) != value:
            raise CodeFileError(
                path,
                f"has `{name}` {getattr(encoded, name)}, but this codec has {value}; name the codec that made it.",
            )
    if isinstance(encoded, AudioCodes) and encoded.num_quantizers > model.num_quantizers:
        raise CodeFileError(
            path,
            f"has {encoded.num_quantizers} codebooks, but this codec has {model.num_quantizers}; "
            "name the codec that made the codes.",
        )
    known = model.fingerprint()
    if encoded.model_fingerprint and known and encoded.model_fingerprint != known:
        kind = "codebooks" if model.kind == "codes" else "latents"
        raise CodeFileError(
            path,
            f"was made by a codec with other {kind} ({encoded.model_fingerprint}, here {known}); "
            f"it was called {encoded.model_name!r}, and the weights under a name may change between versions. Name "
            "the folder of those that made the file, or encode the recording again.",
        )
