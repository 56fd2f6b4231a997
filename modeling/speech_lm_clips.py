# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Clips that a speech language model is given: codes, rows with codes, and recordings that a codec encodes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.audio_utils import load_audio


def clip_codes(audio_codes: Any, name: str, num_codebooks: int, codebook_size: int) -> torch.Tensor:
    """
    Codes of one clip, with the codebooks that the language model has.

    Args:
        audio_codes (`torch.Tensor`, `np.ndarray` or nested lists of shape `(num_codebooks, num_frames)`): Codes, of
            any integer type. More codebooks than needed are left out.
        name (`str`): Name of the clip, for messages.
        num_codebooks (`int`): Codebooks that the language model has.
        codebook_size (`int`): Codes of a codebook.

    Returns:
        `torch.LongTensor` of shape `(num_codebooks, num_frames)`: The codes.

    Raises:
        TypeError: If they are no integers.
        ValueError: If their shape is wrong, there is no frame, there are too few codebooks, or a code lies outside its
            codebook.
    """
    if isinstance(audio_codes, torch.Tensor):
        audio_codes = audio_codes.detach().cpu().numpy()
    codes = np.asarray(audio_codes)
    if codes.dtype.kind not in "iu":
        raise TypeError(f"{name}: `audio_codes` must be integers, but are {codes.dtype}.")
    if codes.ndim != 2 or codes.shape[1] == 0:
        raise ValueError(
            f"{name}: `audio_codes` must have shape (num_codebooks, num_frames) with at least one frame, but has"
            f" {codes.shape}."
        )
    if len(codes) < num_codebooks:
        raise ValueError(
            f"{name}: `audio_codes` has {len(codes)} codebooks, but the language model needs {num_codebooks};"
            " encode with at least as many."
        )
    codes = codes[:num_codebooks].astype(np.int64)
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ValueError(
            f"{name}: `audio_codes` must lie between 0 and {codebook_size - 1}, but reach from {codes.min()} to"
            f" {codes.max()}; they are of another codec, or padded."
        )
    return torch.from_numpy(codes)


def clip_latents(audio_latents: Any, name: str, latent_dim: int) -> torch.Tensor:
    """
    Latents of one clip.

    Args:
        audio_latents (`torch.Tensor`, `np.ndarray` or nested lists of shape `(num_frames, latent_dim)`): Latents.
        name (`str`): Name of the clip, for messages.
        latent_dim (`int`): Numbers of a frame.

    Returns:
        `torch.FloatTensor` of shape `(num_frames, latent_dim)`: The latents in float32.

    Raises:
        TypeError: If they are no numbers of floating point.
        ValueError: If their shape is wrong, there is no frame, or one is not finite.
    """
    if isinstance(audio_latents, torch.Tensor):
        audio_latents = audio_latents.detach().float().cpu().numpy()
    latents = np.asarray(audio_latents)
    if latents.dtype.kind != "f":
        raise TypeError(f"{name}: `audio_latents` must be of floating point, but are {latents.dtype}.")
    if latents.ndim != 2 or latents.shape[1] != latent_dim or not len(latents):
        raise ValueError(
            f"{name}: `audio_latents` must have shape (num_frames, {latent_dim}) with at least one frame, but have"
            f" {latents.shape}."
        )
    if not np.isfinite(latents).all():
        raise ValueError(f"{name}: `audio_latents` must be finite, but hold numbers that are not.")
    return torch.from_numpy(latents.astype(np.float32))


def row_codes(
    row: Mapping[str, Any], name: str, codec_fingerprint: str, num_codebooks: int, codebook_size: int
) -> torch.Tensor:
    """
    Codes of a row of a corpus, `(num_codebooks, num_frames)`, long.

    Args:
        row (`Mapping`): Row with `audio_codes` (row-major, codebook by codebook), `num_quantizers`, `num_frames` and
            `codec_fingerprint`; of de-duplicated rows with `durations`, too.
        name (`str`): Name of the row, for messages.
        codec_fingerprint (`str`): Fingerprint of the language model's codec.
        num_codebooks (`int`): Codebooks that the language model has.
        codebook_size (`int`): Codes of a codebook.

    Raises:
        ValueError: If the row is of another codec or does not say of which, its numbers contradict each other, or its
            codes are not what the language model reads.
    """
    values = _row_values(row, name, codec_fingerprint, "audio_codes", ("num_quantizers", "num_frames"))
    return clip_codes(values, name, num_codebooks, codebook_size)


def row_latents(
    row: Mapping[str, Any],
    name: str,
    codec: Any,
    codec_fingerprint: str,
    latent_dim: int,
    num_codebooks: int,
    source: str | None = None,
) -> torch.Tensor:
    """
    Latents of a row of a corpus, `(num_frames, latent_dim)`, float32; those of a row of codes are what these stand
    for.

    Args:
        row (`Mapping`): Row with `audio_latents` (row-major, frame by frame), `latent_dim`, `num_frames` and
            `codec_fingerprint`; or a row of codes, see [`row_codes`].
        name (`str`): Name of the row, for messages.
        codec ([`SpeechCodec`] or `None`): The codec that is attached, which rows of codes need.
        codec_fingerprint (`str`): Fingerprint of the language model's codec.
        latent_dim (`int`): Numbers of a frame.
        num_codebooks (`int`): First codebooks of a row of codes whose vectors are summed.
        source (`str`, *optional*): What is needed: `"features"`, `"quantized"`, or `"both"` beside each other, of a
            row with `audio_latents` and `audio_codes`. Defaults to what the row has.

    Raises:
        ValueError: As [`row_codes`]; or if no codec is attached that a row of codes needs.
    """
    if source is None:
        source = "features" if row.get("audio_latents") is not None else "quantized"
    parts = []
    if source != "quantized":
        values = _row_values(row, name, codec_fingerprint, "audio_latents", ("num_frames", "latent_dim"))
        parts.append(torch.from_numpy(values.astype(np.float32)))
    if source != "features":
        codes = _row_values(row, name, codec_fingerprint, "audio_codes", ("num_quantizers", "num_frames"))
        parts.append(dequantized(codec, codes, name, num_codebooks))
    return clip_latents(torch.cat(parts, dim=-1), name, latent_dim)


def dequantized(codec: Any, audio_codes: Any, name: str, num_codebooks: int) -> torch.Tensor:
    """
    The latents `(num_frames, latent_dim)` that the first `num_codebooks` codes of a clip `(num_quantizers,
    num_frames)` stand for. Raises `ValueError` if no codec is attached, or there are fewer codebooks.
    """
    if codec is None:
        raise ValueError(f"{name} has codes, which only the codec turns into latents; call `attach_codec` first.")
    codes = torch.as_tensor(np.asarray(audio_codes).astype(np.int64))
    if len(codes) < num_codebooks:
        raise ValueError(
            f"{name} has {len(codes)} codebooks, but {num_codebooks} make the latents here; encode with as many."
        )
    codes = codes[:num_codebooks]
    with torch.no_grad():
        return codec.dequantize(codes[None].to(codec.device))[0].float().cpu()


def _row_values(
    row: Mapping[str, Any], name: str, codec_fingerprint: str, column: str, sizes: tuple[str, str]
) -> np.ndarray:
    found = row.get("codec_fingerprint")
    if found != codec_fingerprint:
        origin = f"of the codec {row.get('codec')!r}, fingerprint {found}" if found else "of an unknown codec"
        raise ValueError(
            f"{name} is {origin}, but the language model needs fingerprint {codec_fingerprint}; encode the recordings"
            " anew with its codec."
        )
    if row.get(column) is None:
        held = [kind for kind in ("codes", "latents") if row.get(f"audio_{kind}") is not None]
        raise ValueError(
            f"{name} holds {' and '.join(held) or 'neither codes nor latents'}, but `{column}` are needed; encode the"
            f" recordings with `--kind {column.removeprefix('audio_')}`, or train a model that reads what rows hold"
            " (`audio_in`, `layout`)."
        )
    shape = tuple(int(row[field]) for field in sizes)
    values = np.asarray(row[column])
    if column == "audio_codes" and row.get("durations") is not None and values.size % shape[0] == 0:
        # De-duplicated codes, spread over the frames that they last.
        runs = values.reshape(shape[0], -1)
        if len(row["durations"]) == runs.shape[1]:
            values = np.repeat(runs, row["durations"], axis=1)
    if values.size != shape[0] * shape[1]:
        raise ValueError(
            f"{name} has {values.size} numbers in `{column}`, but `{sizes[0]}` {shape[0]}"
            f" times `{sizes[1]}` {shape[1]} are {shape[0] * shape[1]}; it is damaged."
        )
    return values.reshape(shape)


def as_clips(
    audio: Any, audio_codes: Any, audio_pieces: Any, audio_latents: Any = None
) -> list[tuple[Any, Any, Any, Any]]:
    """
    The clips of a call, each as a waveform or `None`, codes or `None`, latents or `None`, and pieces or `None`.

    Args:
        audio: One waveform, path or `{"array", "sampling_rate"}`, or a list of them, with `None` for clips of codes.
        audio_codes: Codes `(num_codebooks, num_frames)`, or a list of them, with `None` where there is a waveform.
        audio_pieces: Pieces of one clip, or a list with those of each.
        audio_latents: Latents `(num_frames, latent_dim)`, or a list of them, with `None` likewise.

    Raises:
        ValueError: If they are not as many, or a clip is given twice or not at all.
    """
    given = {
        "audio": _listed(audio, _is_one_waveform),
        "audio_codes": _listed(audio_codes, _is_one_matrix),
        "audio_latents": _listed(audio_latents, _is_one_matrix),
        "audio_pieces": _listed(audio_pieces, _is_one_text),
    }
    counts = {name: len(clips) for name, clips in given.items() if clips is not None}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"`{name}` {count}" for name, count in counts.items())
        raise ValueError(
            f"Each list must name all clips, with `None` where another has the clip, but they have: {said}."
        )
    total = max(counts.values(), default=0)
    clips = list(zip(*(clips or [None] * total for clips in given.values()), strict=True))
    for place, clip in enumerate(clips):
        if (count := sum(part is not None for part in clip[:3])) != 1:
            raise ValueError(
                f"Clip {place} must be given by one of `audio`, `audio_codes` and `audio_latents`, but is by"
                f" {('neither', 'one', 'both')[count] if count < 3 else 'all'}."
            )
    return clips


def _listed(given: Any, is_one: Any) -> list[Any] | None:
    return None if given is None else [given] if is_one(given) else list(given)


def encode_waveforms(
    codec: Any,
    feature_extractor: Any,
    recordings: Sequence[Any],
    sampling_rate: int | None = None,
    kind: str = "codes",
    source: str = "features",
    num_codebooks: int | None = None,
) -> list[torch.Tensor]:
    """
    Codes of recordings, `(num_quantizers, num_frames)` each, or latents, `(num_frames, latent_dim)` each.

    Args:
        codec (`SpeechCodec` or `None`): The codec that is attached.
        feature_extractor (`SequenceFeatureExtractor`): Its feature extractor.
        recordings (sequence): Waveforms, paths or `{"array", "sampling_rate"}`.
        sampling_rate (`int`, *optional*): Rate of the waveforms in Hz.
        kind (`str`, *optional*, defaults to `"codes"`): `"codes"` or `"latents"`.
        source (`str`, *optional*, defaults to `"features"`): What latents are; see [`row_latents`].
        num_codebooks (`int`, *optional*): First codebooks whose vectors are summed. Defaults to all.

    Raises:
        ValueError: If no codec is attached, it is in training mode, a rate is not the codec's, or a waveform is not
            what it takes.
    """
    if not recordings:
        return []
    if codec is None:
        raise ValueError(
            "No codec is attached, which would encode `audio`; call `attach_codec`, or give `audio_codes`."
        )
    if codec.training:
        raise ValueError(
            "The attached codec is in training mode, in which codes differ from call to call; call its `eval()`."
        )
    waveforms = [_samples(recording, codec.sampling_rate, sampling_rate) for recording in recordings]
    features = codec.batch_features(waveforms, feature_extractor)
    with torch.no_grad():
        encoded = codec.encode(**{name: value.to(codec.device) for name, value in features.items()})
    masks = encoded.audio_codes_mask.bool()
    if kind == "latents":
        parts = [] if source == "quantized" else [encoded.latents]
        if source != "features":
            with torch.no_grad():
                parts.append(codec.dequantize(encoded.audio_codes[:, :num_codebooks]).to(codec.device))
        return [latents[mask].cpu() for latents, mask in zip(torch.cat(parts, dim=-1), masks, strict=True)]
    return [codes[:, mask].cpu() for codes, mask in zip(encoded.audio_codes, masks, strict=True)]


def decode_codes(codec: Any, audio_codes: torch.Tensor) -> torch.Tensor:
    """
    The waveform `(num_samples,)` of codes `(num_codebooks, num_frames)`, on the CPU; without frames, it is empty.

    Args:
        codec (`SpeechCodec`): The codec that is attached.
        audio_codes (`torch.Tensor`): The codes.
    """
    if audio_codes.shape[1] == 0:
        return torch.zeros(0)
    with torch.no_grad():
        decoded = codec.decode(audio_codes=audio_codes[None].to(codec.device), **codec.voice_arguments())
    return decoded.audio_values[0, 0].cpu()


def _samples(recording: Any, needed: int, given: int | None) -> np.ndarray:
    if isinstance(recording, str | os.PathLike):
        return load_audio(os.fspath(recording), sampling_rate=needed)
    if isinstance(recording, Mapping):
        given = recording.get("sampling_rate", given)
        recording = recording["array"]
    if given is not None and given != needed:
        raise ValueError(f"`audio` is of {given} Hz, but the codec needs {needed} Hz; resample it first.")
    if isinstance(recording, torch.Tensor):
        recording = recording.detach().cpu().numpy()
    samples = np.asarray(recording, dtype=np.float32)
    if samples.ndim == 2 and len(samples) == 1:
        samples = samples[0]
    if samples.ndim != 1:
        raise ValueError(f"A waveform in `audio` must be mono, (num_samples,), but has shape {samples.shape}.")
    return samples


def _is_one_waveform(audio: Any) -> bool:
    if isinstance(audio, str | os.PathLike | Mapping):
        return True
    if isinstance(audio, np.ndarray | torch.Tensor):
        return audio.ndim == 1 or (audio.ndim == 2 and audio.shape[0] == 1)
    return len(audio) > 0 and isinstance(audio[0], float | int)


def _is_one_matrix(given: Any) -> bool:
    if isinstance(given, np.ndarray | torch.Tensor):
        return given.ndim == 2
    # Rows of a nested list hold numbers; clips hold rows.
    return any(isinstance(row, Sequence) and len(row) > 0 and isinstance(row[0], int | float) for row in given)


def _is_one_text(audio_pieces: Any) -> bool:
    return len(audio_pieces) > 0 and isinstance(audio_pieces[0], Mapping)


__all__ = [
    "as_clips",
    "clip_codes",
    "clip_latents",
    "decode_codes",
    "dequantized",
    "encode_waveforms",
    "row_codes",
    "row_latents",
]
