# SPDX-License-Identifier: Apache-2.0
"""The sentences that a speech language model is to speak: held-out rows, and their recordings where there are any."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speech_tokenizers.evaluation.clips import Clip, check_limit
from speech_tokenizers.modeling.speech_lm_clips import row_latents
from speech_tokenizers.modeling.speech_lm_layouts import piece_ends
from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES
from speech_tokenizers.processing.speech_rows import read_speech_rows, row_audio_codes


@dataclass(frozen=True)
class Sentence:
    """
    A sentence to speak.

    Args:
        clip ([`Clip`]): Its name, which is the row's id, its text, and the hash of all that the row says.
        frames (`np.ndarray` of shape `(num_codebooks, num_frames)`): Codes of its recording; or its latents,
            `(latent_dim, num_frames)`.
        seconds (`float`): Length of its recording.
        pieces (`tuple` of `str`): Phones or words of the recording; empty where they are not needed.
        piece_end_seconds (`tuple` of `float`): End of each in the recording.
        recording (`Path`, *optional*): Path of the recording, where there is one.
        recording_key (`str`, *optional*): Hash of the recording's bytes.
        codes_per_frame (`int`): Codes that make up a frame; 1 for latents.
    """

    clip: Clip
    frames: np.ndarray
    seconds: float
    pieces: tuple[str, ...] = ()
    piece_end_seconds: tuple[float, ...] = ()
    recording: Path | None = None
    recording_key: str | None = None
    codes_per_frame: int = 1

    @property
    def text(self) -> str:
        """What is said."""
        return self.clip.text or ""

    def durations(self, frame_rate: float) -> list[int]:
        """
        Frames of each piece in the recording.

        Args:
            frame_rate (`float`): Frames a second.

        Raises:
            ValueError: If there are no pieces, or their times do not fit the codes.
        """
        if not self.pieces:
            raise ValueError("the row has no times of its pieces")
        ends = piece_ends(list(self.piece_end_seconds), frame_rate, self.frames.shape[1]).tolist()
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


# The column of a row that has the pieces of an alignment, and the field of their labels.
_COLUMNS = {"phone": ("phones", "label"), "word": ("words", "word")}


def read_sentences(
    rows: Path,
    num_codebooks: int,
    text_alignment: str = "none",
    codec: Any = None,
    recordings: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    latent_dim: int = 0,
) -> list[Sentence]:
    """
    Args:
        rows (`Path`): Folder that `speech-tokenizers encode-rows` wrote.
        num_codebooks (`int`): Number of codebooks, the first ones, that the model speaks.
        text_alignment (`str`, *optional*, defaults to `"none"`): Pieces that the model speaks by: `"none"`, `"word"`
            or `"phone"`.
        codec ([`SpeechCodec`], *optional*): Codec of the model; rows of another one are refused.
        recordings (`Path`, *optional*): Folder of the recordings, which rows name by `file_name` or by their id.
        split (`str`, *optional*): Value of the column `split` of the rows to take. Needed where there are several.
        limit (`int`, *optional*): Largest number of sentences, the first ones, that are taken.
        latent_dim (`int`, *optional*): Dimension of the latents that the model speaks in place of codes.

    Raises:
        ValueError: If there is no row to speak, rows of several splits are mixed, two rows have one id, codebooks are
            missing, or a recording is.
    """
    check_limit(limit)
    table = _of_split(read_speech_rows(rows, codec=codec), split, rows)
    with_text = [number for number, text in enumerate(table["text"]) if (text or "").strip()]
    if len(with_text) < len(table):
        print(f"{rows}: {len(table) - len(with_text)} rows have no text and are left out", file=sys.stderr)
    sentences = []
    for number in with_text[:limit]:
        row = table[number]
        if latent_dim:
            frames = row_latents(
                row, f"row {row['id']!r}", codec, row["codec_fingerprint"], latent_dim, num_codebooks
            ).T.numpy()
        else:
            frames = _first_codebooks(row, num_codebooks)
        sentences.append(_sentence(row, frames, 1 if latent_dim else num_codebooks, text_alignment, recordings))
    if not sentences:
        raise ValueError(f"{rows}: has no row with a text to speak.")
    names = [sentence.clip.name for sentence in sentences]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{rows}: {len(twice)} ids stand in several rows, first {twice[0]!r}; give each row its own.")
    return sentences


def _of_split(table: Any, split: str | None, rows: Path) -> Any:
    found = table["split"] if "split" in table.column_names else None
    if split is None:
        if found is not None and len(known := sorted({str(value) for value in found})) > 1:
            raise ValueError(
                f"{rows}: has rows of the splits {', '.join(known)}; choose the held-out one by --split, since a"
                " model must not be measured on what it was trained on."
            )
        return table
    if found is None:
        raise ValueError(f"{rows}: has no column `split`; leave --split out.")
    if not (chosen := [number for number, value in enumerate(found) if value == split]):
        known = sorted({str(value) for value in found})
        raise ValueError(f"{rows}: has no row of the split {split!r}; it has {', '.join(known)}.")
    return table.select(chosen)


def _first_codebooks(row: Mapping[str, Any], num_codebooks: int) -> np.ndarray:
    audio_codes = row_audio_codes(row)
    if len(audio_codes) < num_codebooks:
        raise ValueError(
            f"row {row['id']!r} has {len(audio_codes)} codebooks, but the model speaks {num_codebooks}; encode the"
            f" recordings anew with --num-quantizers {num_codebooks} or more."
        )
    return np.ascontiguousarray(audio_codes[:num_codebooks])


def _sentence(
    row: Mapping[str, Any], frames: np.ndarray, codes_per_frame: int, text_alignment: str, recordings: Path | None
) -> Sentence:
    column, field = _COLUMNS.get(text_alignment, ("", ""))
    pieces = row.get(column) or []
    labels, ends = tuple(piece[field] for piece in pieces), tuple(float(piece["end"]) for piece in pieces)
    digest = hashlib.sha256(json.dumps([row["id"], row["text"], labels, ends]).encode())
    digest.update(frames.astype("<i8" if frames.dtype.kind in "iu" else "<f4").tobytes())
    recording = None if recordings is None else find_recording(row, recordings)
    return Sentence(
        clip=Clip(row["id"], recording or Path(row["id"]), digest.hexdigest()[:16], row["text"]),
        frames=frames,
        seconds=float(row["seconds"]),
        pieces=labels,
        piece_end_seconds=ends,
        recording=recording,
        recording_key=None if recording is None else hashlib.sha256(recording.read_bytes()).hexdigest()[:16],
        codes_per_frame=codes_per_frame,
    )


def find_recording(row: Mapping[str, Any], folder: Path) -> Path:
    """
    The recording of a row: the file of its `file_name`, or of its id, with or without a suffix.

    Args:
        row (mapping): A row.
        folder (`Path`): Folder of the recordings.

    Raises:
        ValueError: If there is none.
    """
    names: Sequence[str] = [name for name in (row.get("file_name"), row["id"]) if name]
    for name in names:
        for path in (folder / name, *(folder / f"{name}{suffix}" for suffix in sorted(AUDIO_SUFFIXES))):
            if path.is_file():
                return path
    raise ValueError(f"{folder}: has no recording of row {row['id']!r}; name the folder that the rows were made of.")
