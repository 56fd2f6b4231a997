# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Clips that a speech language model is given: codes, rows with codes, and recordings that a codec encodes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.audio_utils import load_audio

from .speech_lm_layouts import SpeechIds


def clip_codes(audio_codes: Any, name: str, ids: SpeechIds) -> torch.Tensor:
    """
    Codes of one clip, with the codebooks that the language model has.

    Args:
        audio_codes (`torch.Tensor`, `np.ndarray` or nested lists of shape `(num_codebooks, num_frames)`): Codes, of
            any integer type. More codebooks than needed are left out.
        name (`str`): Name of the clip, for messages.
        ids (`SpeechIds`): Ids of the vocabulary.

    Returns:
        `torch.LongTensor` of shape `(ids.num_codebooks, num_frames)`: The codes.

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
    if len(codes) < ids.num_codebooks:
        raise ValueError(
            f"{name}: `audio_codes` has {len(codes)} codebooks, but the language model needs {ids.num_codebooks};"
            " encode with at least as many."
        )
    codes = codes[: ids.num_codebooks].astype(np.int64)
    if codes.min() < 0 or codes.max() >= ids.codebook_size:
        raise ValueError(
            f"{name}: `audio_codes` must lie between 0 and {ids.codebook_size - 1}, but reach from {codes.min()} to"
            f" {codes.max()}; they are of another codec, or padded."
        )
    return torch.from_numpy(codes)


def row_codes(row: Mapping[str, Any], name: str, codec_fingerprint: str, ids: SpeechIds) -> torch.Tensor:
    """
    Codes of a row of a corpus, `(ids.num_codebooks, num_frames)`, long.

    Args:
        row (`Mapping`): Row with `audio_codes` (row-major, codebook by codebook), `num_quantizers`, `num_frames` and
            `codec_fingerprint`.
        name (`str`): Name of the row, for messages.
        codec_fingerprint (`str`): Fingerprint of the language model's codec.
        ids (`SpeechIds`): Ids of the vocabulary.

    Raises:
        ValueError: If the row is of another codec or does not say of which, its numbers contradict each other, or its
            codes are not what the language model reads.
    """
    found = row.get("codec_fingerprint")
    if found != codec_fingerprint:
        origin = f"of the codec {row.get('codec')!r}, fingerprint {found}" if found else "of an unknown codec"
        raise ValueError(
            f"{name} is {origin}, but the language model needs fingerprint {codec_fingerprint}; encode the recordings"
            " anew with its codec."
        )
    shape = tuple(int(row[field]) for field in ("num_quantizers", "num_frames"))
    codes = np.asarray(row["audio_codes"])
    if codes.size != shape[0] * shape[1]:
        raise ValueError(
            f"{name} has {codes.size} codes, but `num_quantizers` {shape[0]} times `num_frames` {shape[1]} are"
            f" {shape[0] * shape[1]}; it is damaged."
        )
    return clip_codes(codes.reshape(shape), name, ids)


def as_clips(audio: Any, audio_codes: Any, audio_pieces: Any) -> list[tuple[Any, Any, Any]]:
    """
    The clips of a call, each as a waveform or `None`, codes or `None`, and pieces or `None`.

    Args:
        audio: One waveform, path or `{"array", "sampling_rate"}`, or a list of them, with `None` for clips of codes.
        audio_codes: Codes `(num_codebooks, num_frames)`, or a list of them, with `None` where there is a waveform.
        audio_pieces: Pieces of one clip, or a list with those of each.

    Raises:
        ValueError: If they are not as many, or a clip is given twice or not at all.
    """
    given = {
        "audio": None if audio is None else [audio] if _is_one_waveform(audio) else list(audio),
        "audio_codes": None
        if audio_codes is None
        else [audio_codes]
        if _is_one_code(audio_codes)
        else list(audio_codes),
        "audio_pieces": None
        if audio_pieces is None
        else [audio_pieces]
        if _is_one_text(audio_pieces)
        else list(audio_pieces),
    }
    counts = {name: len(clips) for name, clips in given.items() if clips is not None}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"`{name}` {count}" for name, count in counts.items())
        raise ValueError(
            f"Each list must name all clips, with `None` where another has the clip, but they have: {said}."
        )
    total = max(counts.values(), default=0)
    clips = list(zip(*(clips or [None] * total for clips in given.values()), strict=True))
    for place, (waveform, codes, _) in enumerate(clips):
        if (waveform is None) == (codes is None):
            state = "both" if codes is not None else "neither"
            raise ValueError(f"Clip {place} must be given by `audio` or by `audio_codes`, but is by {state}.")
    return clips


def encode_waveforms(
    codec: Any, feature_extractor: Any, recordings: Sequence[Any], sampling_rate: int | None = None
) -> list[torch.Tensor]:
    """
    Codes of recordings, `(num_quantizers, num_frames)` each.

    Args:
        codec (`SpeechCodec` or `None`): The codec that is attached.
        feature_extractor (`SequenceFeatureExtractor`): Its feature extractor.
        recordings (sequence): Waveforms, paths or `{"array", "sampling_rate"}`.
        sampling_rate (`int`, *optional*): Rate of the waveforms in Hz.

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
        encoded = codec.encode_features({name: value.to(codec.device) for name, value in features.items()})
    masks = encoded.audio_codes_mask.bool()
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
    codes = audio_codes[None].to(codec.device)
    mask = torch.ones(1, codes.shape[2], dtype=torch.long, device=codec.device)
    with torch.no_grad():
        return codec.decode_encoded({"audio_codes": codes, "audio_codes_mask": mask})[0, 0].cpu()


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


def _is_one_code(audio_codes: Any) -> bool:
    if isinstance(audio_codes, np.ndarray | torch.Tensor):
        return audio_codes.ndim == 2
    # Codebooks of a nested list hold numbers; clips hold codebooks.
    return any(isinstance(row, Sequence) and len(row) > 0 and isinstance(row[0], int) for row in audio_codes)


def _is_one_text(audio_pieces: Any) -> bool:
    return len(audio_pieces) > 0 and isinstance(audio_pieces[0], Mapping)


__all__ = ["as_clips", "clip_codes", "decode_codes", "encode_waveforms", "row_codes"]
