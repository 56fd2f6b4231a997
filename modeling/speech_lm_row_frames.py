# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Rows of a corpus as the frames that a speech language model reads and writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .speech_lm_clips import clip_codes, clip_latents, dequantized, encode_waveforms, row_codes, row_latents
from .speech_lm_tasks import SPEECH_COLUMN, Task
from .speech_lm_unit_coding import UnitCoding, unit_coding_of


class RowFrames:
    """The part of a [`SpeechLMProcessor`] that knows frames; see there for its fields."""

    layout: str
    num_codebooks: int
    codebook_size: int
    latent_dim: int
    delays: list[int] | None
    unit_coding: str
    codec_fingerprint: str
    audio_in: str
    projector_stack: int
    latent_source: str
    feature_extractor: Any
    _attached: Any

    @property
    def coding(self) -> UnitCoding:
        """What stands in the sequence for the codec's codes."""
        return unit_coding_of(self)

    @property
    def codec_sizes(self) -> tuple[int, int]:
        """Codebooks of the codec that are used, and their size; those of the model differ where it has runs."""
        return self.coding.codec_sizes(self.num_codebooks, self.codebook_size)

    def frame_counts(
        self: Any, row: Mapping[str, Any], pieces: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """
        How many frames, or with a `unit_coding` runs, a row has in the sequence.

        Args:
            row (`Mapping`): Row of a corpus, with the columns of `count_columns`.
            pieces (sequence of `Mapping`, *optional*): Words or phones with their `end` in seconds.

        Returns:
            `list[int]`: That of each piece, or of the row as a whole.

        Raises:
            ValueError: As [`~SpeechLMProcessor.row_inputs`].
        """
        name = f"Row {row.get('id')!r}"
        if self.unit_coding == "frames":
            codes = torch.zeros(1, int(row["num_frames"]), dtype=torch.long)
        else:
            codes = row_codes(row, name, self.codec_fingerprint, *self.codec_sizes)
        if pieces is None:
            return [self.coding.encode(codes)[0].shape[1]]
        return self._writer.lengths(codes, pieces, name)

    @property
    def count_columns(self) -> list[str]:
        """The columns of a row that `frame_counts` reads."""
        codes = ["id", "audio_codes", "num_quantizers", "codec", "codec_fingerprint"]
        return ["num_frames", *([] if self.unit_coding == "frames" else codes)]

    @property
    def codebook_delays(self) -> list[int]:
        """Columns by which each codebook is late; none outside of the delay layout."""
        if self.layout != "delay":
            return [0]
        return list(range(self.num_codebooks)) if self.delays is None else list(self.delays)

    def row_frames(self, row: Mapping[str, Any]) -> torch.Tensor:
        """
        The frames of a row of a corpus, as the model has them: codes `(num_codebooks, num_frames)`, or latents
        `(num_frames, latent_dim)`.

        Raises:
            ValueError: If the row is of another codec, or does not hold what the model reads.
        """
        name = f"Row {row.get('id')!r}"
        if self.layout == "continuous":
            source = None if self.audio_in == "tokens" else self.latent_source
            sizes = (self.latent_dim, self.num_codebooks)
            return row_latents(row, name, self._attached.codec, self.codec_fingerprint, *sizes, source)
        return row_codes(row, name, self.codec_fingerprint, *self.codec_sizes)

    def _recorded_frames(
        self, recordings: Mapping[str, Any], sampling_rate: int | None = None
    ) -> dict[str, torch.Tensor]:
        # The frames of recordings, by their names, as the attached codec gives them.
        is_latent = self.layout == "continuous"
        chosen = ("latents" if is_latent else "codes", self.latent_source, self.num_codebooks if is_latent else None)
        waveforms, codec = list(recordings.values()), self._attached.codec
        encoded = encode_waveforms(codec, self.feature_extractor, waveforms, sampling_rate, *chosen)
        return {
            name: clip_latents(frames, name, self.latent_dim)
            if is_latent
            else clip_codes(frames, name, *self.codec_sizes)
            for name, frames in zip(recordings, encoded, strict=True)
        }

    def _given_frames(self, audio_codes: Any, audio_latents: Any, name: str) -> torch.Tensor:
        # The frames of a clip that is given as codes or latents.
        if self.layout != "continuous":
            return clip_codes(audio_codes, name, *self.codec_sizes)
        given = "latents" if audio_codes is None else "codes"
        if self.audio_in == "embeds" and given != {"features": "latents", "quantized": "codes"}.get(
            self.latent_source
        ):
            raise ValueError(
                f"{name} is given as {given}, but with `latent_source={self.latent_source!r}` the model reads"
                " others; give the recording."
            )
        if audio_codes is not None:
            audio_latents = dequantized(self._attached.codec, audio_codes, name, self.num_codebooks)
        return clip_latents(audio_latents, name, self.latent_dim)

    def check_speaks(self, task: Task) -> None:
        """Raises `ValueError` if a task is answered by speech, but the model only hears."""
        if self.audio_in == "embeds" and task.output == "speech":
            raise ValueError(
                f"The task {task.name!r} is answered by speech, but with `audio_in='embeds'` the model only hears."
            )

    def _clips_of_row(self, row: Mapping[str, Any], task: Task, name: str) -> tuple[Any, Any]:
        # The frames that are heard and those that are said, or `None`.
        if SPEECH_COLUMN not in task.columns:
            return None, None
        frames, axis = self.row_frames(row), 0 if self.layout == "continuous" else 1
        if task.source != task.target:
            return (frames, None) if task.source == SPEECH_COLUMN else (None, frames)
        middle = frames.shape[axis] // 2
        if middle == 0:
            raise ValueError(f"{name} has one frame, but the task {task.name!r} needs two; leave it out.")
        return frames.narrow(axis, 0, middle), frames.narrow(axis, middle, frames.shape[axis] - middle)


__all__ = ["RowFrames"]
