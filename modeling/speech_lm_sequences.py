# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Prompts, answers and clips as one sequence of ids and frames, and sequences as a batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .speech_lm_frames import stacked_frames
from .speech_lm_layouts import (
    IGNORED,
    SpeechIds,
    align_pieces,
    codes_to_flat,
    delay_labels,
    piece_ends,
    to_delay_grid,
)
from .speech_lm_text import AUDIO, ControlTokens, spoken_words
from .speech_lm_unit_coding import FRAMES, UnitCoding


# Where rows keep the times of their pieces, and the field with the piece itself, by the alignment.
PIECE_COLUMNS = {"word": ("words", "word"), "phone": ("phones", "label")}


@dataclass
class WrittenClip:
    """
    A clip as it stands in a sequence, without its start and end.

    Args:
        ids (`list[int]`): Codes or, beside the pieces, `<|audio|>` for each frame.
        frames (`torch.Tensor`, *optional*): The frames, where the ids do not hold them: columns `(num_codebooks,
            num_columns)`, or latents `(num_frames, latent_dim)`.
        is_told (`list[bool]`): Whether each id is for the language model's words to say, if the clip is to be learnt.
    """

    ids: list[int]
    frames: torch.Tensor | None
    is_told: list[bool]


class SequenceWriter:
    """
    Writes prompts, answers and clips as ids, and frames beside them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model.
        template (`str`, *optional*): The chat template, whose tokens users cannot write.
        ids (`SpeechIds`): Ids of speech; beside frames, `<|audio|>` is the only unit.
        text_alignment (`str`): `"none"`, `"word"` or `"phone"`.
        piece_ids (`Mapping[str, int]`): Id of each phone.
        frame_rate (`float`): Frames a second, in Hz.
        max_length (`int`, *optional*): Most positions of a sequence.
        layout (`str`): `"flat"`, `"delay"` or `"continuous"`.
        codebook_size (`int`): Codes of a codebook.
        delays (sequence of `int`): Columns by which each codebook is late, in the delay layout.
        latent_dim (`int`): Numbers of a frame, in the continuous layout.
        coding ([`UnitCoding`]): What stands in the sequence for the codes of a clip.
        stack (`int`, *optional*): Latents of a position, where they are only read; else each has one.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        ids: SpeechIds,
        text_alignment: str,
        piece_ids: Mapping[str, int],
        frame_rate: float,
        max_length: int | None,
        layout: str = "flat",
        codebook_size: int = 1,
        delays: Sequence[int] = (0,),
        latent_dim: int = 1,
        coding: UnitCoding = FRAMES,
        stack: int | None = None,
    ):
        self.tokenizer, self.ids, self.text_alignment = tokenizer, ids, text_alignment
        self.piece_ids, self.frame_rate, self.max_length = piece_ids, frame_rate, max_length
        self.layout, self.codebook_size = layout, codebook_size
        self.delays, self.latent_dim, self.coding, self.stack = list(delays), latent_dim, coding, stack
        self.control = ControlTokens(tokenizer, template)
        self._audio_id = tokenizer.convert_tokens_to_ids(AUDIO)

    def sequence(
        self, prompt: str, target: str | None, clips: Iterator[WrittenClip], name: str
    ) -> dict[str, torch.Tensor]:
        """
        One sequence: the prompt, and behind it the answer with the end of sequence.

        Args:
            prompt (`str`): The prompt, in which each `<|audio|>` stands for a clip.
            target (`str`, *optional*): The answer, likewise.
            clips (iterator of [`WrittenClip`]): The clips, of which as many are taken as there are places.
            name (`str`): Name of the sequence, for messages.

        Returns:
            `dict` of `torch.Tensor`: `input_ids` and `labels`, each at its own position, `(num_positions,)`. Labels
            are -100 in the prompt, and in an `<|audio_start|>` that begins the answer. Beside frames there are
            `audio_codes` `(num_codebooks, num_positions)`, -1 where there is none, and labels of `(1 + num_codebooks,
            num_positions)`; or `audio_latents` `(num_positions, latent_dim)` with `audio_mask` `(num_positions,)`, and
            labels of `(2, num_positions)`, or of `(num_positions,)` where latents are only read; see
            [`SpeechLMForConditionalGeneration`].

        Raises:
            ValueError: If the prompt is empty, the answer changes the ids of the prompt, clips are lacking, or the
                sequence is too long.
        """
        given = self.control.encode(prompt)
        if not given:
            raise ValueError(f"{name} is empty; give it a text.")
        written = given
        if target is not None:
            written = self.control.encode(prompt + target)
            if written[: len(given)] != given:
                raise ValueError(
                    f"{name}: the tokenizer joins the end of the prompt, {prompt[-20:]!r}, with the beginning of the"
                    f" answer, {target[:20]!r}, so that the prompt alone has other ids; end the template with a token"
                    " that is never joined, such as a newline, and begin the answer without white space."
                )
        ids, _, heard = self._with_clips(given, clips, name)
        labels = [IGNORED] * len(ids)
        said: list[WrittenClip] = []
        if target is not None:
            answer, is_told, said = self._with_clips(written[len(given) :], clips, name)
            if answer[:1] == [self.ids.audio_start]:
                is_told[0] = False
            if answer[-1:] != [self.tokenizer.eos_token_id]:
                answer.append(self.tokenizer.eos_token_id)
                is_told.append(True)
            ids += answer
            labels += [number if told else IGNORED for number, told in zip(answer, is_told, strict=True)]
        check_length(len(ids), self.max_length, name)
        sequence = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        return sequence if self.layout == "flat" else self._with_frames(sequence, heard, said)

    def _with_frames(
        self, sequence: dict[str, torch.Tensor], heard: list[WrittenClip], said: list[WrittenClip]
    ) -> dict[str, torch.Tensor]:
        # What is heard comes first, and only what is said is learnt.
        ids = sequence["input_ids"]
        is_frame = ids == self.ids.audio_offset
        clips = [clip.frames for clip in [*heard, *said] if clip.frames is not None]
        if self.layout == "delay":
            codes = torch.full((len(self.delays), len(ids)), -1)
            learnt = torch.full_like(codes, IGNORED)
            if clips:
                codes[:, is_frame] = torch.cat(clips, dim=1)
            if said:
                grids = [delay_labels(clip.frames[None], self.codebook_size)[0] for clip in said]  # type: ignore[index]
                columns = torch.cat(grids, dim=1)
                learnt[:, is_frame.nonzero()[-columns.shape[1] :, 0]] = columns
            return {**sequence, "audio_codes": codes, "labels": torch.cat([sequence["labels"][None], learnt])}
        latents = torch.zeros(len(ids), self.latent_dim * (self.stack or 1))
        learnt = torch.full_like(ids, IGNORED)
        if clips:
            latents[is_frame] = torch.cat(clips)
        heard_alone = {**sequence, "audio_latents": latents, "audio_mask": is_frame.long()}
        if self.stack is not None:
            return heard_alone
        if said:
            places = is_frame.nonzero()[-sum(len(clip.frames) for clip in said) :, 0]  # type: ignore[arg-type, misc]
            learnt[places] = 0
            is_end = ids == self.ids.audio_end
            is_end[: int(places[0])] = False
            learnt[is_end] = 1
        return {**heard_alone, "labels": torch.stack([sequence["labels"], learnt])}

    def clip(self, values: torch.Tensor, pieces: Sequence[Mapping[str, Any]] | None, name: str) -> WrittenClip:
        """
        A clip as it stands in a sequence.

        Args:
            values (`torch.Tensor`): Codes `(num_codebooks, num_frames)`, or latents `(num_frames, latent_dim)`.
            pieces (sequence of `Mapping`, *optional*): Words or phones with their `end` in seconds, which stand before
                their frames.
            name (`str`): Name of the clip, for messages.

        Raises:
            ValueError: If the processor aligns nothing, a phone is unknown, or the times do not fit the clip.
        """
        frames: torch.Tensor | None = None
        piece_ids, ends = [], None
        if pieces is not None:
            piece_ids = self.ids_of_pieces(self.labels(pieces, name), name)
            ends = self._ends(pieces, len(values) if self.layout == "continuous" else values.shape[1], name)
        values, ends = self.coding.encode(values, ends)
        num_frames = len(values) if self.layout == "continuous" else values.shape[1]
        num_columns, codes = num_frames, values
        if self.layout == "delay":
            lengths = torch.tensor([num_frames])
            frames = to_delay_grid(values[None], lengths, self.delays, self.codebook_size)[0]
            num_columns = frames.shape[1]
        elif self.layout == "continuous":
            frames = stacked_frames(values, self.stack or 1)
            num_columns = len(frames)
        if frames is not None:
            codes = torch.zeros(1, num_columns, dtype=torch.long)
        if ends is None:
            ids = codes_to_flat(codes, self.ids).tolist()
            return WrittenClip(ids, frames, [frames is None] * len(ids))
        if frames is not None:
            ends[-1] = num_columns  # what is late belongs to the last piece
        ids = align_pieces(piece_ids, ends, codes, self.ids).tolist()
        # Columns behind the end of the first codebook follow by themselves.
        late = num_columns - num_frames - 1 if self.layout == "delay" else 0
        return WrittenClip(ids, frames, [True] * (len(ids) - late) + [False] * late)

    def lengths(self, values: torch.Tensor, pieces: Sequence[Mapping[str, Any]], name: str) -> list[int]:
        """Frames, or runs, of each piece of a clip of codes; see `clip`."""
        ends = self.coding.encode(values, self._ends(pieces, values.shape[1], name))[1]
        return ends.diff(prepend=ends.new_zeros(1)).tolist()  # type: ignore[union-attr]

    def _ends(self, pieces: Sequence[Mapping[str, Any]], num_frames: int, name: str) -> torch.Tensor:
        # In frames of the codec.
        try:
            return piece_ends([float(piece["end"]) for piece in pieces], self.frame_rate, num_frames)
        except (ValueError, KeyError, TypeError) as error:
            what = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{name}: the times of the pieces do not fit its {num_frames} frames. {what}") from None

    def labels(self, pieces: Sequence[Mapping[str, Any]], name: str) -> list[str]:
        """The words or phones among the pieces of a row; raises `ValueError` where a piece holds none."""
        if self.text_alignment == "none":
            raise ValueError(f"{name} has pieces, but with `text_alignment='none'` nothing stands before its frames.")
        field = PIECE_COLUMNS[self.text_alignment][1]
        labels: list[Any] = [piece.get(field) for piece in pieces]
        if None in labels:
            raise ValueError(f"{name}: piece {labels.index(None)} has no `{field}`, which the alignment needs.")
        if self.text_alignment == "phone":
            return labels
        # Words are written here as in texts whose speech is generated.
        words = [" ".join(spoken_words(label)) for label in labels]
        if "" in words:
            place = words.index("")
            raise ValueError(f"{name}: the word {labels[place]!r} has neither letters nor digits; join it to another.")
        return words

    def ids_of_pieces(self, labels: Sequence[str], name: str) -> list[list[int]]:
        """The ids of each word or phone; raises `ValueError` for a phone that is unknown."""
        if self.text_alignment == "word":
            return [self.control.word_ids(word) for word in labels]
        unknown = [label for label in labels if label not in self.piece_ids]
        if unknown:
            raise ValueError(
                f"{name} has the phone {unknown[0]!r}, which is not among `piece_labels`: {', '.join(self.piece_ids)}."
                " Phones are those of the lexicon that the model says texts by, in its own spelling."
            )
        return [[self.piece_ids[label]] for label in labels]

    def _with_clips(
        self, written: list[int], clips: Iterator[WrittenClip], name: str
    ) -> tuple[list[int], list[bool], list[WrittenClip]]:
        # The ids with clips in their places, which of them words tell, and the clips.
        ids: list[int] = []
        is_told: list[bool] = []
        used: list[WrittenClip] = []
        for number in written:
            if number != self._audio_id:
                ids.append(number)
                is_told.append(True)
                continue
            clip = next(clips, None)
            if clip is None:
                raise ValueError(f"{name} has a place {AUDIO}, but there is no clip left for it; give as many clips.")
            ids += [self.ids.audio_start, *clip.ids, self.ids.audio_end]
            # Where latents end is told by a head of its own.
            is_told += [True, *clip.is_told, self.layout != "continuous"]
            used.append(clip)
        return ids, is_told, used


def check_length(length: int, max_length: int | None, name: str) -> None:
    """
    Raises:
        ValueError: If a sequence is longer than it may be. Nothing is ever cut.
    """
    if max_length is not None and length > max_length:
        raise ValueError(
            f"{name} has {length} positions, but at most {max_length} are allowed; leave it out or split it. Nothing"
            " is cut, since a sequence without its end teaches a model never to stop."
        )


# What stands in padding, of each part of a sequence. Time is the last axis, but for latents.
_FILLS = {"labels": IGNORED, "audio_codes": -1, "audio_latents": 0, "audio_mask": 0, "attention_mask": 0}


def pad_sequences(
    sequences: Sequence[Mapping[str, torch.Tensor]],
    pad_id: int,
    padding_side: str,
    pad_to_multiple_of: int | None = None,
) -> dict[str, torch.Tensor]:
    """
    Sequences as a batch.

    Args:
        sequences (sequence of `Mapping`): Sequences, as [`SequenceWriter.sequence`] gives them, all with the same
            parts. A sequence may have an `attention_mask` of its own.
        pad_id (`int`): Id in padding, which the mask hides.
        padding_side (`str`): `"right"` or `"left"`.
        pad_to_multiple_of (`int`, *optional*): Number of which the length becomes the next multiple.

    Returns:
        `dict` of `torch.Tensor`, each with the batch as a further first axis: the parts, and `attention_mask` of shape
        `(batch, num_positions)`, 1 for what is real. Labels are -100 in padding.

    Raises:
        ValueError: If `padding_side` is another.
    """
    if padding_side not in ("right", "left"):
        raise ValueError(f"`padding_side` must be 'right' or 'left', but is {padding_side!r}.")
    length = max(len(sequence["input_ids"]) for sequence in sequences)
    if pad_to_multiple_of:
        length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
    rows = [{"attention_mask": torch.ones_like(sequence["input_ids"]), **sequence} for sequence in sequences]
    batch = {}
    for name in sorted(rows[0], key=("input_ids", "attention_mask").__contains__, reverse=True):
        fill = pad_id if name == "input_ids" else _FILLS[name]
        padded = []
        for row in rows:
            missing = length - len(row["input_ids"])
            sides = [0, missing] if padding_side == "right" else [missing, 0]
            if name == "audio_latents":
                sides = [0, 0, *sides]
            padded.append(torch.nn.functional.pad(row[name], sides, value=fill))
        batch[name] = torch.stack(padded)
    return batch


__all__ = ["PIECE_COLUMNS", "SequenceWriter", "WrittenClip", "check_length", "pad_sequences"]
