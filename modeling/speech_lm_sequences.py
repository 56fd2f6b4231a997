# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Prompts, answers and clips as one sequence of ids, and sequences as a batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .speech_lm_layouts import IGNORED, SpeechIds, align_pieces, codes_to_flat, piece_ends
from .speech_lm_text import AUDIO, ControlTokens, spoken_words


# Where rows keep the times of their pieces, and the field with the piece itself, by the alignment.
PIECE_COLUMNS = {"word": ("words", "word"), "phone": ("phones", "label")}


class SequenceWriter:
    """
    Writes prompts, answers and clips as ids.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model.
        template (`str`, *optional*): The chat template, whose tokens users cannot write.
        ids (`SpeechIds`): Ids of speech.
        text_alignment (`str`): `"none"`, `"word"` or `"phone"`.
        piece_ids (`Mapping[str, int]`): Id of each phone.
        frame_rate (`float`): Frames a second, in Hz.
        max_length (`int`, *optional*): Most positions of a sequence.
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
    ):
        self.tokenizer, self.ids, self.text_alignment = tokenizer, ids, text_alignment
        self.piece_ids, self.frame_rate, self.max_length = piece_ids, frame_rate, max_length
        self.control = ControlTokens(tokenizer, template)
        self._audio_id = tokenizer.convert_tokens_to_ids(AUDIO)

    def sequence(
        self, prompt: str, target: str | None, clips: Iterator[list[int]], name: str
    ) -> tuple[list[int], int]:
        """
        One sequence: the prompt, and behind it the answer with the end of sequence.

        Args:
            prompt (`str`): The prompt, in which each `<|audio|>` stands for a clip.
            target (`str`, *optional*): The answer, likewise.
            clips (iterator of `list[int]`): Ids of the clips, of which as many are taken as there are places.
            name (`str`): Name of the sequence, for messages.

        Returns:
            `tuple` of `list[int]` and `int`: The ids, and how many of them are given and not to be learnt: the prompt,
            and an `<|audio_start|>` that begins the answer.

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
        ids = self._with_clips(given, clips, name)
        num_given = len(ids)
        if target is not None:
            answer = self._with_clips(written[len(given) :], clips, name)
            num_given += answer[:1] == [self.ids.audio_start]
            ids += answer
            if ids[-1:] != [self.tokenizer.eos_token_id]:
                ids.append(self.tokenizer.eos_token_id)
        check_length(len(ids), self.max_length, name)
        return ids, num_given

    def clip(self, codes: torch.Tensor, pieces: Sequence[Mapping[str, Any]] | None, name: str) -> list[int]:
        """
        The ids of a clip without its start and end.

        Args:
            codes (`torch.LongTensor` of shape `(num_codebooks, num_frames)`): Codes.
            pieces (sequence of `Mapping`, *optional*): Words or phones with their `end` in seconds, which stand before
                their frames.
            name (`str`): Name of the clip, for messages.

        Raises:
            ValueError: If the processor aligns nothing, a phone is unknown, or the times do not fit the clip.
        """
        if pieces is None:
            return codes_to_flat(codes, self.ids).tolist()
        piece_ids = self.ids_of_pieces(self.labels(pieces, name), name)
        try:
            ends = piece_ends([float(piece["end"]) for piece in pieces], self.frame_rate, codes.shape[1])
            return align_pieces(piece_ids, ends, codes, self.ids).tolist()
        except (ValueError, KeyError, TypeError) as error:
            what = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{name}: the times of the pieces do not fit its {codes.shape[1]} frames. {what}"
            ) from None

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

    def _with_clips(self, written: list[int], clips: Iterator[list[int]], name: str) -> list[int]:
        ids: list[int] = []
        for number in written:
            if number != self._audio_id:
                ids.append(number)
                continue
            clip = next(clips, None)
            if clip is None:
                raise ValueError(f"{name} has a place {AUDIO}, but there is no clip left for it; give as many clips.")
            ids += [self.ids.audio_start, *clip, self.ids.audio_end]
        return ids


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


def pad_sequences(
    rows: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]] | None,
    pad_id: int,
    padding_side: str,
    pad_to_multiple_of: int | None = None,
) -> dict[str, torch.Tensor]:
    """
    Sequences as a batch.

    Args:
        rows (sequence of `list[int]`): Ids of each sequence.
        labels (sequence of `list[int]`, *optional*): Labels of each sequence, as many.
        pad_id (`int`): Id in padding, which the mask hides.
        padding_side (`str`): `"right"` or `"left"`.
        pad_to_multiple_of (`int`, *optional*): Number of which the length becomes the next multiple.

    Returns:
        `dict` of `torch.LongTensor` of shape `(batch, num_positions)`: `input_ids`, `attention_mask` (1 for what is
        real), and `labels` if there are any, -100 in padding.

    Raises:
        ValueError: If `padding_side` is another.
    """
    if padding_side not in ("right", "left"):
        raise ValueError(f"`padding_side` must be 'right' or 'left', but is {padding_side!r}.")
    length = max(map(len, rows))
    if pad_to_multiple_of:
        length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
    values = {"input_ids": (rows, pad_id), "attention_mask": ([[1] * len(row) for row in rows], 0)}
    if labels is not None:
        values["labels"] = (labels, IGNORED)
    batch = {}
    for name, (lists, fill) in values.items():
        batch[name] = torch.full((len(rows), length), fill, dtype=torch.long)
        for place, row in enumerate(lists):
            start = 0 if padding_side == "right" else length - len(row)
            batch[name][place, start : start + len(row)] = torch.as_tensor(row, dtype=torch.long)
    return batch


__all__ = ["PIECE_COLUMNS", "SequenceWriter", "check_length", "pad_sequences"]
