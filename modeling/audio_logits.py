# SPDX-License-Identifier: Apache-2.0
"""
Logits processors for `generate` of a language model that writes speech in the flat layout.

They allow only what can be decoded ([`AudioOnly`]) or only what says a given text ([`GuidedText`]). They keep the
model from repeating itself ([`WindowedRepetition`]) and from ending too early ([`MinFrames`]). They sample each row by
its own generator ([`RowSampling`]). Put them into a `LogitsProcessorList` in this order. [`AllowedIds`] is for answers
of text.

They keep no state: they read all that they know from `input_ids`, from the last `audio_start` of each row on. So rows
may be padded on the left, and may finish at different times. A beam search may reorder them. A prompt may hold a clip
of its own, such as a voice to imitate.

An item is one prompt of the batch. The first rows are those of item 0, then come as many of item 1 and so on, as
`num_beams` and `num_return_sequences` arrange them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor

from .speech_lm_ids import SpeechIds, check_pieces, check_vocabulary
from .speech_lm_layouts import flat_legal_mask, units_mask


# Stands for no limit of frames.
_NO_LIMIT = 2**62


class AudioOnly(LogitsProcessor):
    """
    Allow within a clip only ids that make whole frames: units of the codebook whose turn it is, and the end behind a
    whole frame.

    Outside of a clip (before the first `audio_start`, and behind `audio_end`) it allows everything but units and
    `audio_end`.

    Args:
        ids (`SpeechIds`): Ids of the vocabulary.
        pieces (`bool`): Whether phones may stand between whole frames, for a model that was trained on aligned phones
            and is to find the next phone by itself.

    Raises:
        ValueError: If phones are asked for, and `ids` has none; in a call, if the vocabulary is too small for the
            units, or no id is left in a row.
    """

    def __init__(self, ids: SpeechIds, pieces: bool = False):
        if pieces and not ids.num_pieces:
            raise ValueError("`pieces` is set, but `ids.num_pieces` is 0; guide words by `GuidedText`.")
        self.ids, self.pieces = ids, pieces

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        clips = _last_clips(input_ids, self.ids)
        legal = flat_legal_mask(_tensor(clips.num_units, scores), scores.shape[-1], self.ids)
        if self.pieces:
            phones = slice(self.ids.piece_offset, self.ids.piece_offset + self.ids.num_pieces)
            legal[:, phones] = legal[:, self.ids.audio_end, None]
        return _only(legal, scores, clips, self.ids, "AudioOnly")


class GuidedText(LogitsProcessor):
    """
    Allow only what says the pieces of a text, each once and in order, and then ends.

    At each step the units of the codebook whose turn it is may follow. Behind a whole frame the first id of the next
    piece may follow, too; the further ids of a piece follow at once. The first piece follows `audio_start`. Behind the
    frames of the last piece, `audio_end` takes the place of the next piece. So nothing is skipped or said twice, and
    with `max_frames` the speech ends whatever the model gives.

    The next piece gets the probability of all ids that are no units: that a piece is over is one question, and which
    one comes next is another, which the text has answered. (A model that does not know the text's order yet spreads
    that probability over many pieces, and would hold each sound for too long.)

    Outside of a clip it allows what [`AudioOnly`] does.

    Args:
        ids (`SpeechIds`): Ids of the vocabulary.
        pieces (`Sequence[Sequence[Sequence[int]]]`): Ids of each piece of each item.
        min_frames (`int` or `Sequence[Sequence[int]]`): Frames that a piece has at least; one number, or one for each
            piece of each item.
        max_frames (`int` or `Sequence[Sequence[int]]`, *optional*): Frames that a piece has at most. The same numbers
            as in `min_frames` force durations. Defaults to no limit.

    Raises:
        ValueError: If an item has no pieces, a piece has no ids or ids of speech, or the numbers of frames do not fit;
            in a call, if the rows are no multiple of the items, a row has no `audio_start`, the vocabulary is too
            small, or no id is left in a row.
    """

    def __init__(
        self,
        ids: SpeechIds,
        pieces: Sequence[Sequence[Sequence[int]]],
        min_frames: int | Sequence[Sequence[int]] = 1,
        max_frames: int | Sequence[Sequence[int]] | None = None,
    ):
        if len(pieces) == 0:
            raise ValueError("`pieces` has no item; give a list of pieces for each row that is generated.")
        for item, said in enumerate(pieces):
            if len(said) == 0:
                raise ValueError(f"Item {item} of `pieces` has no pieces; leave the item out, or give it a text.")
            check_pieces(said, ids)
        least = _frames_of_pieces(min_frames, pieces, "min_frames")
        most = _frames_of_pieces(_NO_LIMIT if max_frames is None else max_frames, pieces, "max_frames")
        for item, (low, high) in enumerate(zip(least, most, strict=True)):
            for piece in range(len(low)):
                if not 1 <= low[piece] <= high[piece]:
                    raise ValueError(
                        f"`min_frames` of piece {piece} of item {item} must be at least 1 and not above `max_frames`,"
                        f" but they are {low[piece]} and {high[piece]}."
                    )
        self.ids, self.num_items = ids, len(pieces)
        self.largest_id = max(number for said in pieces for piece in said for number in piece)
        self.steps = _guide_steps(pieces, least, most, ids.audio_end)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        vocab_size = scores.shape[-1]
        check_vocabulary(vocab_size, self.ids)
        if self.largest_id >= vocab_size:
            raise ValueError(
                f"`pieces` hold the id {self.largest_id}, but the model has {vocab_size} ids; use the tokenizer of"
                " this model."
            )
        clips = _last_clips(input_ids, self.ids)
        if not clips.is_begun.all():
            raise ValueError(
                f"Row {int(clips.is_begun.argmin())} of `input_ids` holds no `audio_start` ({self.ids.audio_start}),"
                " behind which text could be guided; end the prompt with it, and pass the prompt as ids."
            )
        # A beam search also carries on rows that are impossible, if too few others are left: they may have said more.
        said = np.minimum(clips.num_others, self.steps.shape[2] - 1)
        next_id, least, most = self.steps[:, _items_of_rows(len(scores), self.num_items, "pieces"), said]
        frames, turn = np.divmod(clips.units_since, self.ids.num_codebooks)
        is_whole = turn == 0
        first = np.where(
            is_whole & (frames >= most), vocab_size, self.ids.audio_offset + turn * self.ids.codebook_size
        )
        legal = units_mask(_tensor(first, scores), vocab_size, self.ids)
        may_go_on = is_whole & (frames >= least)
        place = _tensor(next_id[:, None], scores)
        legal.scatter_(1, place, _tensor(may_go_on[:, None], scores))
        others = scores.float().clone()
        others[:, self.ids.audio_offset : self.ids.audio_stop] = -torch.inf
        moved = others.logsumexp(1, keepdim=True).to(scores.dtype)
        is_open = _tensor(clips.is_open[:, None], scores)
        scores = scores.scatter(1, place, torch.where(is_open, moved, scores.gather(1, place)))
        return _only(legal, scores, clips, self.ids, "GuidedText")


class WindowedRepetition(LogitsProcessor):
    """
    Keep a clip from repeating codes. Only units count and only units are changed, never a piece or an end.

    The codes of each codebook are counted in its last `window` frames since the last `audio_start`. (After the
    repetition-aware sampling of VALL-E 2, https://huggingface.co/papers/2406.05370, which draws anew instead.)

    Args:
        ids (`SpeechIds`): Ids of the vocabulary.
        window (`int`): Frames that count.
        limit (`int`, *optional*): A code that occurs so many times in the window is not allowed.
        penalty (`float`, *optional*): Number that is taken from the score of a code for each time that it occurs.
        num_codebooks (`int`, *optional*): First codebooks that count. Defaults to all.

    Raises:
        ValueError: If both or none of `limit` and `penalty` are given, a number is too small, or all codes of a
            codebook could reach the limit. In a call, if no id is left in a row.
    """

    def __init__(
        self,
        ids: SpeechIds,
        window: int,
        limit: int | None = None,
        penalty: float | None = None,
        num_codebooks: int | None = None,
    ):
        if window < 1:
            raise ValueError(f"`window` must be at least 1 frame, but is {window}.")
        if (limit is None) == (penalty is None):
            raise ValueError(f"Give one of `limit` and `penalty`, but not both; they are {limit} and {penalty}.")
        counted = ids.num_codebooks if num_codebooks is None else num_codebooks
        fewest = min(ids.sizes[:counted])
        if limit is not None and (limit < 1 or window // limit >= fewest):
            raise ValueError(
                f"`limit` must be at least 1, and leave one of {fewest} codes in a window of {window}"
                f" frames, but is {limit}; raise it, or shorten the window."
            )
        if penalty is not None and not 0 < penalty < float("inf"):
            raise ValueError(f"`penalty` must be a number above 0, but is {penalty}.")
        self.ids, self.window, self.limit, self.penalty = ids, window, limit, penalty
        self.stop = ids.audio_offset + counted * ids.codebook_size

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        clips = _last_clips(input_ids, self.ids)
        before = clips.is_unit.cumsum(1)  # units up to here, (R, N)
        is_recent = before > (clips.num_units - self.window * self.ids.num_codebooks)[:, None]
        is_counted = _tensor(clips.is_unit & is_recent & clips.is_open[:, None], scores)
        is_counted &= input_ids.to(scores.device) < self.stop
        occurrences = torch.zeros_like(scores, dtype=torch.float32)
        occurrences.scatter_add_(1, input_ids.to(scores.device) * is_counted, is_counted.float())
        if self.limit is None:
            return scores - (self.penalty * occurrences).to(scores.dtype)
        return _checked(scores.masked_fill(occurrences >= self.limit, -torch.inf), "WindowedRepetition")


class MinFrames(LogitsProcessor):
    """
    Forbid the end of a clip before it has so many whole frames.

    Args:
        ids (`SpeechIds`): Ids of the vocabulary.
        num_frames (`int` or `Sequence[int]`): Frames at least; one number, or one for each item.

    Raises:
        ValueError: If a number is negative; in a call, if the rows are no multiple of the items, or no id is left.
    """

    def __init__(self, ids: SpeechIds, num_frames: int | Sequence[int]):
        numbers = [num_frames] if isinstance(num_frames, int) else list(num_frames)
        if not numbers or min(numbers) < 0:
            raise ValueError(f"`num_frames` must hold numbers that are not negative, but is {num_frames}.")
        self.ids, self.num_frames = ids, np.array(numbers)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        clips = _last_clips(input_ids, self.ids)
        least = self.num_frames[_items_of_rows(len(scores), len(self.num_frames), "num_frames")]
        is_early = clips.is_open & (clips.num_units < least * self.ids.num_codebooks)
        scores = scores.clone()
        scores[:, self.ids.audio_end].masked_fill_(_tensor(is_early, scores), -torch.inf)
        return _checked(scores, "MinFrames")


class AllowedIds(LogitsProcessor):
    """
    Allow the same ids at every step, such as those of text alone.

    Args:
        is_allowed (`torch.BoolTensor` of shape `(vocab_size,)`): Which ids may be written.

    Raises:
        ValueError: If none is allowed; in a call, if there are other ids than these, or none is left.
    """

    def __init__(self, is_allowed: torch.Tensor):
        if not bool(is_allowed.any()):
            raise ValueError("`is_allowed` allows no id; allow at least the end of sequence.")
        self.is_allowed = is_allowed

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if scores.shape[-1] != len(self.is_allowed):
            raise ValueError(f"`is_allowed` has {len(self.is_allowed)} ids, but there are {scores.shape[-1]} scores.")
        self.is_allowed = self.is_allowed.to(scores.device)
        return _checked(scores.masked_fill(~self.is_allowed, -torch.inf), "AllowedIds")


class RowSampling(LogitsProcessor):
    """
    Sample by adding noise, so that the id of the highest score is a draw: use it with `do_sample=False`.

    The scores are divided by the temperature and cut by `top_k` and then `top_p`, as transformers does. Gumbel noise
    then makes the highest score a draw from their softmax. Each item draws its noise from its own generator, so that a
    row of a batch is what it is alone. It must be the last processor. For greedy generation leave it out.

    Args:
        temperature (`float`): Number above 0; below 1 the likely ids become likelier.
        top_k (`int`, *optional*): Number of highest scores that are kept.
        top_p (`float`, *optional*): Share of the probability that the kept ids, the likeliest, reach together; in
            (0, 1].
        generators (`Sequence[torch.Generator]`, *optional*): A generator for each item. One on the CPU draws the same
            noise for every device. Defaults to torch's own generator for all rows.

    Raises:
        ValueError: If a number is out of its range; in a call, if the rows are no multiple of the generators, or every
            score of a row is -inf or NaN.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ):
        if not 0 < temperature < float("inf"):
            raise ValueError(
                f"`temperature` must be above 0, but is {temperature}; to take the likeliest id, leave out"
                " `RowSampling`."
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, but is {top_k}.")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, but is {top_p}.")
        if generators is not None and len(generators) == 0:
            raise ValueError("`generators` is empty; give one for each item, or `None`.")
        self.temperature, self.top_k, self.top_p = temperature, top_k, None if top_p == 1 else top_p
        self.generators = None if generators is None else list(generators)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = self._cut(_checked(scores, "the processors before RowSampling").float() / self.temperature)
        # Noise of a uniform number 0 or 1 would be infinite. The type has no number between 1 - 2**-24 and 1.
        uniform = self._uniform(scores).clamp_(torch.finfo(torch.float32).tiny, 1 - 2**-24)
        return scores - uniform.log_().neg_().log_()

    def _cut(self, scores: torch.Tensor) -> torch.Tensor:
        """Set the scores that `top_k` and `top_p` do not keep to -inf."""
        num_kept = scores.shape[-1] if self.top_k is None else min(self.top_k, scores.shape[-1])
        if num_kept == scores.shape[-1] and self.top_p is None:
            return scores
        highest = scores.topk(num_kept, dim=-1).values  # (R, num_kept), highest first
        if self.top_p is None:
            lowest = highest[:, -1:]
        else:
            probabilities = highest.softmax(-1)
            reached_before = probabilities.cumsum(-1) - probabilities
            last = (reached_before < self.top_p).sum(-1, keepdim=True).clamp_(min=1) - 1
            lowest = highest.gather(1, last)
        return scores.masked_fill(scores < lowest, -torch.inf)

    def _uniform(self, scores: torch.Tensor) -> torch.Tensor:
        """Uniform numbers in [0, 1) of the shape of the scores, each item's by its own generator."""
        if self.generators is None:
            return torch.rand_like(scores)
        num_rows, num_items = len(scores), len(self.generators)
        _check_rows(num_rows, num_items, "generators")
        shape = (num_rows // num_items, scores.shape[-1])
        drawn = [torch.rand(shape, generator=each, device=each.device) for each in self.generators]
        return (drawn[0] if num_items == 1 else torch.cat(drawn)).to(scores.device)


# --- What the rows have said ---


@dataclass(frozen=True)
class _Clips:
    """
    The last clip of each row: R rows of N ids. Arrays of NumPy, since these many small steps cost torch much longer.

    Args:
        is_begun (`np.ndarray` of shape `(R,)`): Whether a row holds an `audio_start`.
        is_open (`np.ndarray` of shape `(R,)`): Whether no `audio_end` stands behind the last `audio_start`.
        is_unit (`np.ndarray` of shape `(R, N)`): Units behind the last `audio_start`.
        num_units, num_others (`np.ndarray` of shape `(R,)`): Units and other ids behind the last `audio_start`.
        units_since (`np.ndarray` of shape `(R,)`): Units behind the last id that is no unit.
    """

    is_begun: np.ndarray
    is_open: np.ndarray
    is_unit: np.ndarray
    num_units: np.ndarray
    num_others: np.ndarray
    units_since: np.ndarray


def _last_clips(input_ids: torch.Tensor, ids: SpeechIds) -> _Clips:
    rows = input_ids.cpu().numpy()
    num_ids = rows.shape[1]
    # Places count from 1, so that 0 stands for nowhere.
    places = np.arange(1, num_ids + 1)
    start = _last(rows == ids.audio_start, places)
    is_behind = places > start[:, None]
    is_unit = (rows >= ids.audio_offset) & (rows < ids.audio_stop)
    units_since = num_ids - _last(~is_unit, places)
    is_unit &= is_behind
    num_units = is_unit.sum(1)
    is_begun = start > 0
    return _Clips(
        is_begun=is_begun,
        is_open=is_begun & ~((rows == ids.audio_end) & is_behind).any(1),
        is_unit=is_unit,
        num_units=num_units,
        num_others=num_ids - start - num_units,
        units_since=units_since,
    )


def _last(is_there: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The last place of each row where something is, 0 if nowhere: (R,)."""
    return (is_there * places).max(1, initial=0)


def _tensor(values: np.ndarray, scores: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(scores.device)


# --- Masks ---


def _only(legal: torch.Tensor, scores: torch.Tensor, clips: _Clips, ids: SpeechIds, name: str) -> torch.Tensor:
    """The scores of legal ids; in rows outside of a clip, those of all ids that belong there."""
    if not clips.is_open.all():
        outside = torch.ones_like(legal[0])
        outside[ids.audio_offset : ids.audio_stop] = False
        outside[ids.audio_end] = False
        legal = torch.where(_tensor(clips.is_open[:, None], scores), legal, outside)
    return _checked(scores.masked_fill(~legal, -torch.inf), name)


def _checked(scores: torch.Tensor, name: str) -> torch.Tensor:
    # The highest of a row with NaN is NaN, which exceeds nothing.
    is_good = scores.amax(1) > -torch.inf
    if not bool(is_good.all()):
        raise ValueError(
            f"No id is left in row {int((~is_good).long().argmax())} after {name}: every score is -inf, or one is NaN."
            " Loosen the limits that exclude each other, or look for NaN in the model."
        )
    return scores


# --- Items and rows ---


def _check_rows(num_rows: int, num_items: int, name: str) -> None:
    if num_rows % num_items:
        raise ValueError(
            f"`{name}` has {num_items} items, but there are {num_rows} rows, which is no multiple; give one for each"
            " prompt of the batch."
        )


def _items_of_rows(num_rows: int, num_items: int, name: str) -> np.ndarray:
    """The item of each row: (R,). A single item is that of all rows."""
    _check_rows(num_rows, num_items, name)
    return np.arange(num_rows) // (num_rows // num_items)


def _frames_of_pieces(
    frames: int | Sequence[Sequence[int]], pieces: Sequence[Sequence[Sequence[int]]], name: str
) -> list[list[int]]:
    """A number of frames for each piece of each item."""
    if isinstance(frames, int):
        return [[frames] * len(said) for said in pieces]
    numbers = [[int(number) for number in item] for item in frames]
    if [len(item) for item in numbers] != [len(said) for said in pieces]:
        raise ValueError(
            f"`{name}` must be a number, or hold a number for each piece of each item, which has"
            f" {[len(said) for said in pieces]} pieces, but it has {[len(item) for item in numbers]} numbers."
        )
    return numbers


def _guide_steps(
    pieces: Sequence[Sequence[Sequence[int]]], least: list[list[int]], most: list[list[int]], audio_end: int
) -> np.ndarray:
    """
    Returns:
        `np.ndarray` of shape `(3, num_items, num_ids + 1)`: What follows when 0, 1, 2 and so on ids of text were said:
        the next id, and the frames that must and that may stand before it.
    """
    num_ids = max(sum(map(len, said)) for said in pieces)
    steps = np.empty((3, len(pieces), num_ids + 1), dtype=np.int64)
    for item, said in enumerate(pieces):
        columns: list[tuple[int, int, int]] = []
        before = (0, 0)
        for piece, low, high in zip(said, least[item], most[item], strict=True):
            columns.append((piece[0], *before))
            columns += [(number, 0, 0) for number in piece[1:]]
            before = (low, high)
        columns += [(audio_end, *before)] * (num_ids + 1 - len(columns))
        steps[:, item] = np.array(columns).T
    return steps
