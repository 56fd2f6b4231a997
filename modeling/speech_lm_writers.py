# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""
How a speech language model writes: the loop over positions, and what each layout makes of a choice.

At each step one id a row is chosen from `config.written_ids`: text, a mark, or a frame. In the flat layout these are
the ids of the model. Beside frames, a frame is a code of the first codebook, or one id that stands for any latent. The
writer of the layout gives the scores of all of them, fills in the rest of the frame, and tells what is read next. So
the same logits processors guide all layouts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria
from transformers.utils import ModelOutput

from .audio_logits import RowSampling
from .continuous_heads import check_draw
from .speech_lm_grids import from_delay_grid
from .speech_lm_ids import SpeechIds, unused_codes


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

    def check_prompts(self, prompts: torch.Tensor, is_open: torch.Tensor) -> None:
        """
        Raises:
            ValueError: If the writer cannot go on behind a prompt `(batch, num_positions)`.
        """

    def is_hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Which ids the second branch does not see, of the shape of `ids`; it reads the start of a clip there."""
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
        self.is_unused = unused_codes(model.config.code_sizes, self.size).to(model.device)
        self.num_late = int(self.late.max())
        self.columns: list[torch.Tensor] = []
        # Columns of each row, and the one in which its first codebook ended.
        self._widths = self._ends = torch.zeros(0, dtype=torch.long)

    def check_prompts(self, prompts: torch.Tensor, is_open: torch.Tensor) -> None:
        # The columns of a clip that is begun are not known here.
        if bool((is_open & (prompts[:, -1] == self.marker)).any()):
            raise ValueError(
                "A prompt ends within a clip, which the delay layout cannot go on with; end it with `<|audio_start|>`,"
                " and give what was said before as a clip of its own."
            )

    def scores(self, outputs: Any, is_open: torch.Tensor) -> torch.Tensor:
        self._logits = outputs.audio_logits[:, -1].float()  # (B, Q, K + 2)
        first = self._logits[:, 0].clone()
        first[:, self.size] = -torch.inf  # no BOS
        first[:, : self.size].masked_fill_(self.is_unused[0], -torch.inf)
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
        scores = self._logits[:, 1:, : self.size].masked_fill(self.is_unused[1:], -torch.inf)
        if self.sampling is not None and scores.shape[1]:
            drawn = self.sampling(None, scores.flatten(0, 1))  # type: ignore[arg-type]
            scores = drawn.view(scores.shape)
        return scores.argmax(-1)

    def clips(self, batch_size: int) -> dict[str, torch.Tensor]:
        """
        What was written: `audio_codes` (batch, num_codebooks, num_frames), long, 0 behind a row's own frames, and
        `audio_codes_mask` (batch, num_frames); on the CPU.
        """
        clips = []
        columns = (
            torch.stack(self.columns, dim=2).cpu()
            if self.columns
            else self.late.new_zeros(batch_size, len(self.late), 0)
        )
        for row in columns:
            grid = row[:, row[0] >= 0]
            clips.append(from_delay_grid(grid[None], self.late.tolist(), self.size)[0][0].T)
        codes, mask = padded(clips)
        return {"audio_codes": codes.transpose(1, 2).contiguous(), "audio_codes_mask": mask}


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
        head = self.model.frames.stop_head
        # The weight of ends in its loss is a prior, which is taken out again.
        stop = head(self._states[: len(is_open)]) - math.log(head.pos_weight)
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
        return is_text(ids, self.model.config.speech_ids) & ~self.ids.is_unit(ids)

    def clips(self, batch_size: int) -> dict[str, torch.Tensor]:
        """
        What was written: `audio_latents` (batch, num_frames, latent_dim), 0 behind a row's own frames, and
        `audio_codes_mask` (batch, num_frames); on the CPU.
        """
        dim = self.model.config.latent_dim
        if not self.latents:
            return {
                "audio_latents": torch.zeros(batch_size, 0, dim),
                "audio_codes_mask": torch.zeros(batch_size, 0).long(),
            }
        latents, masks = torch.stack(self.latents, dim=1).cpu(), torch.stack(self.masks, dim=1).cpu()
        found, mask = padded([row[is_frame] for row, is_frame in zip(latents, masks, strict=True)])
        return {"audio_latents": found, "audio_codes_mask": mask}


def padded(clips: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (num_frames, n) as a batch (batch, num_frames, n), 0 behind each, and their mask (batch, num_frames)."""
    batch = pad_sequence(list(clips), batch_first=True)
    lengths = torch.tensor([len(clip) for clip in clips])
    return batch, (torch.arange(batch.shape[1]) < lengths[:, None]).long()


def is_text(input_ids: torch.Tensor, ids: SpeechIds) -> torch.Tensor:
    """Which ids are neither frames nor the marks around clips, of the shape of `input_ids`."""
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
    writer.check_prompts(prompts, is_open)
    reads_pieces = getattr(model, "pieces", None) is not None
    known = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    read = {
        name: at_times(name, part, slice(known, None)) for name, part in inputs.items() if name != "attention_mask"
    }
    all_read = ids.clone()  # as `ids`, but as the model reads them
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
        readings = all_read[:, :place]
        if len(branches) > 1:
            # What stands there is also known to the state that tells the next frame.
            readings = torch.cat([readings, readings.masked_fill(writer.is_hidden(readings), writer.start)])
        repeated["input_ids"] = readings[:, -read["input_ids"].shape[1] :]
        if reads_pieces:
            repeated["piece_context"] = model.context_of_pieces(readings)[:, -read["input_ids"].shape[1] :]
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
        all_read[:, place] = read["input_ids"][:, 0]
        yield Writing(ids[:, : place + 1], lengths, is_going)
        if bool(is_going.any()):
            last_place = place
        elif place > last_place + writer.num_late:
            return


def at_times(name: str, part: torch.Tensor, place: slice) -> torch.Tensor:
    """Some positions of a part of a batch, such as `audio_codes`: time is its last axis, but for latents."""
    return part[:, place] if name == "audio_latents" else part[..., place]


@dataclass
class WrittenFrames(ModelOutput):
    """
    What `generate` gives beside the flat layout, with `return_dict_in_generate`.

    Args:
        sequences (`torch.LongTensor` of shape `(batch, num_positions)`): All ids, with `<|audio|>` for each frame.
        audio_codes (`torch.LongTensor` of shape `(batch, num_codebooks, num_frames)`): In the delay layout the codes
            that were written; 0 behind a row's own frames.
        audio_latents (`torch.FloatTensor` of shape `(batch, num_frames, latent_dim)`): In the continuous layout the
            latents, likewise.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): 1 for a row's own frames.
    """

    sequences: torch.LongTensor | None = None
    audio_codes: torch.LongTensor | None = None
    audio_latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None


# Settings of `generate` that would change the ids, and not the rest of a frame, with what leaves them out.
_NOT_TAKEN = {
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "penalty_alpha": 0.0,
    "prompt_lookup_num_tokens": None,
}


def check_guidance(config: Any, cfg_scale: float, head_steps: int | None) -> None:
    """
    Check what only the continuous layout takes.

    Raises:
        ValueError: If the layout is another, or the model never learnt to speak without its text.
    """
    check_draw(1.0, head_steps, cfg_scale)
    if config.layout != "continuous":
        if cfg_scale != 1 or head_steps is not None:
            raise ValueError(
                f"`cfg_scale` and `head_steps` belong to the continuous layout; this model's is {config.layout!r}."
            )
    elif cfg_scale != 1 and not config.condition_dropout:
        raise ValueError(
            f"`cfg_scale` is {cfg_scale}, but this model never learnt to speak without its text; train it with"
            " `condition_dropout` above 0."
        )


def generate_frames(
    model: Any,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    generators: Sequence[torch.Generator] | None = None,
    cfg_scale: float = 1.0,
    head_steps: int | None = None,
    **model_kwargs: Any,
) -> torch.LongTensor | WrittenFrames:
    """
    The loop of `generate` for the layouts with frames: what transformers' `custom_generate` calls.

    Args:
        model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs: As transformers gives
            them. Logits processors see the scores of `config.written_ids`.
        generators (sequence of `torch.Generator`, *optional*): One for each row, so that it is what it is alone.
        cfg_scale (`float`), head_steps (`int`, *optional*): See [`SpeechGeneration.generate_speech`].

    Raises:
        ValueError: If a search over beams or a stopping criterion is asked for that this loop does not know.
    """
    if generation_config.num_beams is not None and generation_config.num_beams > 1:
        raise ValueError(
            f"Frames are not searched over beams; leave `num_beams` out, which is {generation_config.num_beams}."
        )
    if input_ids.shape[1] == 0:
        raise ValueError("Give `input_ids`: `inputs_embeds` alone do not tell where clips begin.")
    for name, usual in _NOT_TAKEN.items():
        if (value := getattr(generation_config, name, None)) not in (None, usual):
            raise ValueError(f"`{name}` is {value}, but frames are drawn by `temperature`, `top_k` and `top_p` alone.")
    if generators is not None and len(generators) != len(input_ids):
        raise ValueError(f"`generators` must have one a row ({len(input_ids)}), but has {len(generators)}.")
    check_guidance(model.config, cfg_scale, head_steps)
    for criterion in stopping_criteria:
        if not isinstance(criterion, MaxLengthCriteria | EosTokenCriteria):
            raise ValueError(f"{type(criterion).__name__} does not stop frames; limit them by `max_new_tokens`.")
    processors = LogitsProcessorList(logits_processor)
    sampling = None
    if generation_config.do_sample:
        sampling = RowSampling(1.0, generators=generators)
        processors.append(sampling)
    config = model.config
    writer: DelayWriter | LatentWriter
    if config.layout == "delay":
        others = sampling and RowSampling(
            generation_config.temperature or 1.0,
            generation_config.top_k or None,
            generation_config.top_p,
            generators,
        )
        writer = DelayWriter(model, others)
    else:
        temperature = float(generation_config.temperature or 1.0) if generation_config.do_sample else 0.0
        writer = LatentWriter(model, temperature, head_steps, cfg_scale, generators)
    ends = generation_config.eos_token_id
    stops = {config.audio_end_token_id: None} | dict.fromkeys([ends] if isinstance(ends, int) else ends or [])
    parts: tuple[str, ...] = ("audio_codes", "audio_latents", "audio_mask")
    inputs: dict[str, torch.Tensor] = {name: model_kwargs[name] for name in parts if name in model_kwargs}
    mask = model_kwargs.get("attention_mask")
    inputs |= {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids) if mask is None else mask}
    most = int(generation_config.max_length) - input_ids.shape[1] - writer.num_late
    if most < 1:
        raise ValueError(
            f"The delays take {writer.num_late} positions behind the end, so that at least {writer.num_late + 1} new"
            " ones are needed; raise `max_new_tokens`, or shorten the prompt."
        )
    past = model_kwargs.get("past_key_values")
    for _ in write_ids(model, inputs, writer, processors, most, list(stops), past_key_values=past):
        pass
    read = [] if not writer.ids_read else [torch.stack(writer.ids_read, dim=1)]
    sequences = torch.cat([input_ids, *read], dim=1)
    if not generation_config.return_dict_in_generate:
        return sequences
    return WrittenFrames(sequences=sequences, **writer.clips(len(input_ids)))


__all__ = [
    "DelayWriter",
    "FlatWriter",
    "FrameWriter",
    "LatentWriter",
    "Writing",
    "WrittenFrames",
    "at_times",
    "check_guidance",
    "generate_frames",
    "is_text",
    "padded",
    "write_ids",
]
