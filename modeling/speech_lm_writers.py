# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""
How a speech language model writes: the loop over positions, and what each layout makes of a choice.

At each step one id a row is chosen from `config.written_ids`: text, a mark, or a frame. In the flat layout these are
the ids of the model. Beside frames, a frame is a code of the first codebook, or one id that stands for any latent. The
writer of the layout gives the scores of all of them, fills in the rest of the frame, and tells what is read next. So
the same logits processors guide all layouts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LogitsProcessorList

from .audio_logits import RowSampling
from .speech_lm_ids import SpeechIds


class FlatWriter:
    """
    Writes codes as ids.

    Attributes:
        num_late (`int`): Positions that a clip still takes behind its end.
        num_branches (`int`): Times that each row is read: 2 where it is read once more without its text.
        start (`int`): Id before a clip, where it matters whether a row is within one.
    """

    num_late = 0
    num_branches = 1
    start = -1

    def scores(self, outputs: Any, is_open: torch.Tensor) -> torch.Tensor:
        """
        Scores of all ids of `config.written_ids`, `(batch, num_ids)` in float32.

        Args:
            outputs ([`SpeechLMOutput`]): What the model gave at the last position.
            is_open (`torch.BoolTensor` of shape `(batch,)`): Which rows are within a clip.
        """
        return outputs.logits[:, -1].float()

    def read(self, written: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        What the model reads next.

        Args:
            written (`torch.LongTensor` of shape `(batch,)`): The ids that were chosen; the end again behind an end.
        """
        return {"input_ids": written[:, None]}

    def is_hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Which ids the second branch does not see, of the shape of `ids`."""
        return torch.zeros_like(ids, dtype=torch.bool)


class FrameWriter(FlatWriter):
    """
    What the writers of frames share.

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model.

    Attributes:
        ids_read (`list` of `torch.LongTensor` of shape `(batch,)`): The ids that the model read, step by step.
    """

    def __init__(self, model: Any):
        config = model.config
        self.model, self.is_aligned = model, config.text_alignment != "none"
        self.ids: SpeechIds = config.written_ids
        self.marker, self.start, self.end = config.audio_token_id, config.audio_start_token_id, self.ids.audio_end
        self.ids_read: list[torch.Tensor] = []

    def _joint(self, outputs: Any, is_open: torch.Tensor, frames: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        # Log probabilities (batch, num_ids). `frames` (batch, n) and `end` (batch,) are those of a frame that comes,
        # and words tell whether one comes: always within a clip without pieces, and never outside of clips.
        words = outputs.logits[: len(is_open), -1].float().log_softmax(-1)
        if self.is_aligned:
            comes = words[:, self.marker]
        else:
            comes = torch.zeros_like(words[:, 0])
            words = words.masked_fill(is_open[:, None], -torch.inf)
        comes = comes.masked_fill(~is_open, -torch.inf)
        words = words.index_fill(1, torch.tensor([self.marker, self.end], device=words.device), -torch.inf)
        words[:, self.end] = comes + end
        return torch.cat([words, comes[:, None] + frames], dim=1)

    def _next_ids(self, ids: torch.Tensor) -> torch.Tensor:
        self.ids_read.append(ids)
        return ids[:, None]


class DelayWriter(FrameWriter):
    """
    Writes columns of the delay grid, which can be decoded whatever is drawn.

    The first codebook is chosen with the ids: its code, or its EOS as the end of the clip. The others are drawn beside
    it. Behind the end they write what is late, so that all frames are whole.

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model.
        sampling ([`RowSampling`], *optional*): What draws the other codebooks. Defaults to the likeliest codes.

    Attributes:
        columns (`list` of `torch.LongTensor` of shape `(batch, num_codebooks)`): The columns so far; -1 where a row
            had none.
    """

    def __init__(self, model: Any, sampling: RowSampling | None = None):
        super().__init__(model)
        self.size, self.sampling = model.config.codebook_size, sampling
        self.late = torch.tensor(model.config.codebook_delays, device=model.device)
        self.num_late = int(self.late.max())
        self.columns: list[torch.Tensor] = []
        # Columns of each row, and the one in which its first codebook ended.
        self._widths = self._ends = torch.zeros(0, dtype=torch.long)

    def scores(self, outputs: Any, is_open: torch.Tensor) -> torch.Tensor:
        self._logits = outputs.audio_logits[:, -1].float()  # (B, Q, K + 2)
        first = self._logits[:, 0].clone()
        first[:, self.size] = -torch.inf  # no BOS
        first = first.log_softmax(-1)
        return self._joint(outputs, is_open, first[:, : self.size], first[:, self.size + 1])

    def read(self, written: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.columns:
            self._widths, self._ends = torch.zeros_like(written), torch.full_like(written, 2**62)
        is_code, has_ended = self.ids.is_unit(written), written == self.end
        self._ends = torch.where(has_ended, self._ends.minimum(self._widths), self._ends)
        is_column = is_code | (has_ended & (self._widths < self._ends + self.num_late))
        others = self._others()
        first = written - self.ids.audio_offset
        column = torch.cat([first[:, None], others], dim=1)
        frame = self._widths[:, None] - self.late
        column = torch.where(frame < 0, self.size, column)
        column = torch.where(frame >= self._ends[:, None], self.size + 1, column)
        column = torch.where(is_column[:, None], column, -1)
        self.columns.append(column)
        self._widths = self._widths + is_column
        return {
            "input_ids": self._next_ids(torch.where(is_column, self.marker, written)),
            "audio_codes": column[:, :, None],
        }

    def _others(self) -> torch.Tensor:
        # Codes of the codebooks behind the first, (batch, num_codebooks - 1).
        scores = self._logits[:, 1:, : self.size]
        if self.sampling is not None and scores.shape[1]:
            drawn = self.sampling(None, scores.flatten(0, 1))  # type: ignore[arg-type]
            scores = drawn.view(scores.shape)
        return scores.argmax(-1)

    def grid(self, row: int) -> torch.Tensor:
        """The columns of a row, `(num_codebooks, num_columns)`."""
        if not self.columns:
            return torch.zeros(len(self.late), 0, dtype=torch.long)
        columns = torch.stack([column[row] for column in self.columns], dim=1)
        return columns[:, columns[0] >= 0].cpu()


class LatentWriter(FrameWriter):
    """
    Writes continuous tokens, each drawn by the model's head; the stop head gives the probability of the end.

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model.
        temperature (`float`), steps (`int`, *optional*), cfg_scale (`float`): See [`ContinuousHead.sample`]. With a
            `cfg_scale` other than 1 each row is read twice, once without its text, and drawn away from what the model
            says then.
        generators (sequence of `torch.Generator`, *optional*): One for each row.

    Attributes:
        latents (`list` of `torch.FloatTensor` of shape `(batch, latent_dim)`): The latents so far.
        masks (`list` of `torch.BoolTensor` of shape `(batch,)`): Which rows had one.
    """

    def __init__(
        self,
        model: Any,
        temperature: float = 1.0,
        steps: int | None = None,
        cfg_scale: float = 1.0,
        generators: Sequence[torch.Generator] | None = None,
    ):
        super().__init__(model)
        self.settings, self.generators = (temperature, steps, cfg_scale), generators
        self.num_branches = 1 if cfg_scale == 1 else 2
        self.latents: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []

    def scores(self, outputs: Any, is_open: torch.Tensor) -> torch.Tensor:
        self._states = outputs.frame_states[:, -1]  # those without text come behind the others
        stop = self.model.frames.stop_head(self._states[: len(is_open)])
        return self._joint(outputs, is_open, F.logsigmoid(-stop)[:, None], F.logsigmoid(stop))

    def read(self, written: torch.Tensor) -> dict[str, torch.Tensor]:
        frames, is_frame = self.model.frames, self.ids.is_unit(written)
        states, without = self._states[: len(written)], self._states[len(written) :]
        drawn = frames.head.sample(
            states, *self.settings, generator=self.generators, unconditional=without if len(without) else None
        )
        latents = frames.statistics.denormalize(drawn.float()) * is_frame[:, None]
        self.latents.append(latents)
        self.masks.append(is_frame)
        return {
            "input_ids": self._next_ids(torch.where(is_frame, self.marker, written)),
            "audio_latents": latents[:, None],
            "audio_mask": is_frame.long()[:, None],
        }

    def is_hidden(self, ids: torch.Tensor) -> torch.Tensor:
        return is_text(ids, self.model.config) & ~self.ids.is_unit(ids)

    def clip(self, row: int) -> torch.Tensor:
        """The latents of a row, `(num_frames, latent_dim)`."""
        found = [latents[row] for latents, mask in zip(self.latents, self.masks, strict=True) if bool(mask[row])]
        return torch.stack(found).cpu() if found else torch.zeros(0, self.model.config.latent_dim)


def is_text(input_ids: torch.Tensor, config: Any) -> torch.Tensor:
    """Which ids are neither frames nor the marks around clips, of the shape of `input_ids`."""
    ids = config.speech_ids
    return ~ids.is_unit(input_ids) & (input_ids != ids.audio_start) & (input_ids != ids.audio_end)


@dataclass
class Writing:
    """
    What was written so far.

    Args:
        ids (`torch.LongTensor` of shape `(batch, num_positions + num_written)`): Prompts and what was chosen behind
            them, from `config.written_ids`; behind its end a row repeats its last id.
        lengths (`torch.LongTensor` of shape `(batch,)`): How many ids each row chose, its end included. A row without
            the end in these was cut.
        is_going (`torch.BoolTensor` of shape `(batch,)`): Which rows go on.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    is_going: torch.Tensor


def write_ids(
    model: Any,
    inputs: dict[str, torch.Tensor],
    writer: FlatWriter,
    processors: LogitsProcessorList,
    max_new_tokens: int | Sequence[int],
    stops: Sequence[int],
    codes: SpeechIds | None = None,
    max_codes: Sequence[int] | None = None,
    past_key_values: Any = None,
) -> Iterator[Writing]:
    """
    Write the likeliest ids, step by step, without the settings of a generation configuration.

    Rows may be padded on the left. What a row writes does not depend on the others.

    Args:
        model (`PreTrainedModel`): A causal language model.
        inputs (`dict`): The prompts: `input_ids` and `attention_mask`, `(batch, num_positions)`, and their frames.
        writer ([`FlatWriter`]): The writer of the model's layout.
        processors (`LogitsProcessorList`): What changes the scores before the best is taken.
        max_new_tokens (`int` or sequence of `int`): Most ids that are chosen, of all rows or of each.
        stops (sequence of `int`): Ids behind which a row ends. The first is the end of a clip.
        codes (`SpeechIds`, *optional*): `config.written_ids`, for `max_codes`.
        max_codes (sequence of `int`, *optional*): Most codes of each row. A row that has them may only end; else it is
            cut there.
        past_key_values (`Cache`, *optional*): What the model remembers of the first positions of the prompts, which it
            does not read again. It is added to.

    Returns:
        Iterator of [`Writing`], after each step.
    """
    prompts, attention_mask = inputs["input_ids"], inputs["attention_mask"]
    batch_size, length = prompts.shape
    device = prompts.device
    end, stop_ids = stops[0], torch.tensor(list(stops), device=device)
    most = torch.as_tensor(max_new_tokens, device=device).expand(batch_size)
    most_codes = None if max_codes is None else torch.as_tensor(max_codes, device=device)
    longest = int(most.max())
    ids = torch.cat([prompts, prompts.new_full((batch_size, longest + writer.num_late), end)], dim=1)
    is_going = most > 0
    lengths, num_codes = torch.zeros_like(most), torch.zeros_like(most)
    marks = (prompts == end) * 1 + (prompts == writer.start) * 2
    is_open = marks.gather(1, (marks > 0).long().cumsum(1).argmax(1, keepdim=True))[:, 0] == 2
    known = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    read = {
        name: at_times(name, part, slice(known, None)) for name, part in inputs.items() if name != "attention_mask"
    }
    past = past_key_values
    # A mask costs time, so that rows without padding have none.
    mask = torch.cat([attention_mask, attention_mask.new_ones(batch_size, longest + writer.num_late)], dim=1)
    branches = [mask] * writer.num_branches
    is_padded = len(branches) > 1 or not bool(attention_mask.all())
    last_place = length - 1  # at which a row went on
    for place in range(length, length + longest + writer.num_late):
        padding = {}
        if is_padded:
            if len(branches) > 1:
                branches[1] = torch.where(writer.is_hidden(ids), 0, mask)
            seen = torch.cat(branches)[:, :place]
            positions = (seen.cumsum(-1) - 1).clamp(min=0)
            padding = {
                "attention_mask": seen,
                "position_ids": positions[:, place - read["input_ids"].shape[1] :],
            }
        repeated = {name: torch.cat([part] * len(branches)) for name, part in read.items()}
        outputs = model(**repeated, past_key_values=past, use_cache=True, logits_to_keep=1, **padding)
        past = outputs.past_key_values
        scores = writer.scores(outputs, is_open)
        # A row that has ended chooses nothing, and has nothing that could be chosen.
        scores = torch.where(is_going[:, None], scores, 0.0)
        written = processors(ids[:, :place], scores).argmax(-1)
        if codes is not None and most_codes is not None:
            is_going = is_going & ((num_codes < most_codes) | (written == end))
            num_codes = num_codes + codes.is_unit(written)
        last = torch.where(torch.isin(ids[:, place - 1], stop_ids) & (lengths > 0), ids[:, place - 1], end)
        written = torch.where(is_going, written, last)
        ids[:, place] = written
        is_open = (is_open | (written == writer.start)) & (written != end)
        lengths = lengths + is_going
        is_going = is_going & ~torch.isin(written, stop_ids) & (lengths < most)
        read = writer.read(written)
        yield Writing(ids[:, : place + 1], lengths, is_going)
        if bool(is_going.any()):
            last_place = place
        elif place > last_place + writer.num_late:
            return


def at_times(name: str, part: torch.Tensor, place: slice) -> torch.Tensor:
    """Some positions of a part of a batch, such as `audio_codes`: time is its last axis, but for latents."""
    return part[:, place] if name == "audio_latents" else part[..., place]


__all__ = ["DelayWriter", "FlatWriter", "FrameWriter", "LatentWriter", "Writing", "at_times", "is_text", "write_ids"]
