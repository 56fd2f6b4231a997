# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""
Where a speech language model is in its text, told at each position of speech that is aligned by phones.

A phone stands once in the ids, before its frames, so that a model has to find it again at each of them. What is told
here it need not find: which phone sounds, for how long it has, and which come next. All of it follows from the ids
before: the phones that were asked for stand before the start of the clip. (The idea to stack text on the positions of
speech is that of CTC-TTS, arXiv 2602.19574.)
"""

from typing import Any

import torch
from torch import nn

from .speech_lm_ids import SpeechIds


# Ages from here on are told alike, in frames.
_OLDEST = 63


def piece_context(
    input_ids: torch.Tensor, ids: SpeechIds, num_coming: int, positions_per_frame: int = 1
) -> torch.Tensor:
    """
    Which phone sounds at each position, which come next, and how many frames have passed since it began.

    The phones of a clip are those between the clip before it, or the beginning, and its start. Without any, and
    outside of clips, nothing is told. A position tells nothing of those behind it. Rows that are packed into one are
    told apart by the ends of their clips, so none may be cut.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, num_positions)`): The ids from the beginning, as the model
            reads them. They may be padded on either side.
        ids (`SpeechIds`): Where audio lies in them.
        num_coming (`int`): Phones behind the own one that are told.
        positions_per_frame (`int`, *optional*, defaults to 1): Positions that a frame, or a run of units, takes.

    Returns:
        `torch.LongTensor` of shape `(batch, num_positions, 2 + num_coming)`: The own phone, those that come, and the
        frames, or runs, since the own one, or the start, was read. Phones are counted from 0; -1 where there is none.
    """
    batch_size, length = input_ids.shape
    place = torch.arange(length, device=input_ids.device).expand(batch_size, length)
    is_piece, is_start = ids.is_piece(input_ids), input_ids == ids.audio_start
    number = is_piece.long().cumsum(1)  # phones so far

    def last(marks: torch.Tensor) -> torch.Tensor:  # place of the last mark so far, or -1
        return torch.where(marks, place, -1).cummax(1).values

    def at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:  # 0 before the first
        return torch.where(places < 0, 0, values.gather(1, places.clamp(min=0)))

    start, end = last(is_start), last(input_ids == ids.audio_end)
    before, asked = at(number, end), at(number, start)  # phones before the request, and with it
    # Within a clip that phones were asked for; `end` is then that of the clip before.
    is_told = (start > end) & (asked > before)
    said = number - asked
    order = input_ids.new_full((batch_size, length + 1), -1)  # phones by their number
    row = torch.arange(batch_size, device=input_ids.device)[:, None].expand_as(place)
    order[row[is_piece], number[is_piece]] = input_ids[is_piece] - ids.piece_offset
    told = [torch.where(said > 0, order.gather(1, number), -1)]
    for step in range(1, num_coming + 1):
        coming = before + said + step
        told.append(torch.where(coming <= asked, order.gather(1, coming.clamp(max=length)), -1))
    told.append((place - last(is_piece | is_start)).div(positions_per_frame, rounding_mode="floor"))
    return torch.stack(told, dim=-1).masked_fill(~is_told[..., None], -1)


def check_all_ids(past_key_values: Any, position_ids: torch.Tensor | None) -> None:
    """
    Check that ids, which are to tell where a model is in its text, begin at the beginning.

    Args:
        past_key_values (`Cache`, *optional*): What the model remembers of ids before.
        position_ids (`torch.LongTensor` of shape `(batch, num_positions)`, *optional*): Positions of the ids.

    Raises:
        ValueError: If there were ids before.
    """
    num_past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    if num_past or (position_ids is not None and bool((position_ids[..., 0] != 0).any())):
        raise ValueError(
            "The model has read positions before these ids, which alone do not tell where it is in its text; pass"
            " `piece_context`, which `context_of_pieces` makes of all ids."
        )


def check_piece_context(given: torch.Tensor | None, input_ids: torch.Tensor | None, num_coming: int) -> None:
    """
    Raises:
        ValueError: If what is told of the ids has another shape, or the model reads nothing of the kind.
    """
    if given is None:
        return
    if not num_coming:
        raise ValueError("`piece_context` is given, but this model was made without (`config.piece_context` is 0).")
    if input_ids is None:
        raise ValueError("`piece_context` goes with `input_ids`; `inputs_embeds` hold it already.")
    if given.shape != (*input_ids.shape, 2 + num_coming):
        raise ValueError(
            f"`piece_context` must have shape {(*input_ids.shape, 2 + num_coming)} for these ids, but has"
            f" {tuple(given.shape)}."
        )


class PieceContext(nn.Module):
    """
    Turns what [`piece_context`] tells into vectors that are added to what the model reads.

    Args:
        num_pieces (`int`): Number of phones.
        num_coming (`int`): Phones behind the own one that are told.
        input_size (`int`): Dimension of the language model's inputs.
    """

    def __init__(self, num_pieces: int, num_coming: int, input_size: int):
        super().__init__()
        self.num_pieces, self.num_coming = num_pieces, num_coming
        self.table = nn.Embedding((1 + num_coming) * num_pieces, input_size)
        self.age = nn.Embedding(_OLDEST + 1, input_size)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """(batch, num_positions, 2 + num_coming) -> (batch, num_positions, input_size); 0 where nothing is told."""
        pieces, age = context[..., :-1], context[..., -1]
        first = self.num_pieces * torch.arange(1 + self.num_coming, device=context.device)
        told = self.table(pieces.clamp(min=0) + first) * (pieces >= 0)[..., None]
        return told.sum(-2) + self.age(age.clamp(0, _OLDEST)) * (age >= 0)[..., None]


class PieceReading:
    """The part of a [`SpeechLMForConditionalGeneration`] that tells it where it is in its text."""

    def context_of_pieces(self: Any, input_ids: torch.LongTensor) -> torch.LongTensor:
        """
        What `forward` takes as `piece_context`; see [`piece_context`].

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, num_positions)`): The ids from the beginning, as the model
                reads them.

        Returns:
            `torch.LongTensor` of shape `(batch, num_positions, 2 + config.piece_context)`.
        """
        config = self.config
        return piece_context(input_ids, config.speech_ids, config.piece_context, config.positions_per_frame)

    def prepare_inputs_for_generation(
        self: Any,
        input_ids: torch.LongTensor,
        *args: Any,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers calls it: what `forward` takes, of all ids so far."""
        base: Any = super()
        inputs = base.prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        if self.pieces is not None and inputs.get("input_ids") is not None:
            past, num_new = inputs.get("past_key_values"), inputs["input_ids"].shape[1]
            if (0 if past is None else int(past.get_seq_length())) + num_new != input_ids.shape[1]:
                raise ValueError(
                    "`generate` needs all `input_ids` at each step, since their text is read at each position: leave"
                    " `inputs_embeds` and `prefill_chunk_size` out, and go on from a cache with all ids."
                )
            inputs["piece_context"] = self.context_of_pieces(input_ids)[:, -num_new:]
        return inputs

    def init_continuous_batching(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Of transformers, for models that read ids alone. Raises `ValueError` if this one reads more."""
        if self.frames is not None or self.pieces is not None:
            raise ValueError(
                "`generate_batch` gives a model ids alone, but this one reads more; use `generate_speech` with a list"
                " of texts, or a flat model with `piece_context=0`."
            )
        base: Any = super()
        return base.init_continuous_batching(*args, **kwargs)


__all__ = ["PieceContext", "PieceReading", "check_all_ids", "check_piece_context", "piece_context"]
