# SPDX-License-Identifier: Apache-2.0
"""
ABX discriminability of phones: is a token X of one phone nearer to a token A of the same than to a token B of another?

Tokens are stretches of frames, which may be features, units, or units as entries of their codebook. Their distance is
that of the frames along the best path of dynamic time warping, divided by the length of the path (Schatz et al. 2013;
Libri-light, section 4.1: https://huggingface.co/papers/1912.07875). A, B and X have the same neighbouring phones.
Within speakers all three are of one speaker, across speakers X is of another. The error is the share of triplets
where B is nearer, ties counting half. It is averaged over the triplets of a cell (two phones, their neighbours,
speakers), then over speakers of X, over speakers of A and B, over neighbours and over ordered pairs of phones, so
that each pair of phones counts the same.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from speech_tokenizers.evaluation.bootstrap import Estimate
from speech_tokenizers.evaluation.frame_labels import IGNORED_LABELS
from speech_tokenizers.processing.timed_labels import TimedLabel


# A function of frames (num_frames_1, ...) and (num_frames_2, ...), which gives distances (num_frames_1, num_frames_2).
FrameDistance = Callable[[np.ndarray, np.ndarray], np.ndarray]


class PhoneToken(NamedTuple):
    """
    One phone in a recording.

    Args:
        phone (`str`): Label of the phone.
        previous, next (`str`): Labels of its neighbours; empty at a pause or an end.
        speaker (`str`): Name of the speaker.
        clip (`int`): Number of the recording.
        start, end (`int`): Number of the first frame, and of the one after the last.
    """

    phone: str
    previous: str
    next: str
    speaker: str
    clip: int
    start: int
    end: int


def phone_tokens(
    labels: Sequence[TimedLabel],
    num_frames: int,
    frame_rate: float,
    speaker: str,
    clip: int,
    span: str = "phone",
    max_pause: float = 0.1,
) -> list[PhoneToken]:
    """
    The phones of one recording, each as the frames whose middle lies in it.

    Phones in which no frame has its middle, or that come after the last frame, are left out; they still count as
    neighbours of others. Word boundaries are no labels: a phone's neighbour is the next sound, unless a pause of more
    than `max_pause` parts them.

    Args:
        labels (sequence of [`TimedLabel`]): Labels of the recording, in order of time.
        num_frames (`int`), frame_rate (`float`): Number of frames, and frames per second. Frame k lasts from
            k / frame_rate to (k + 1) / frame_rate seconds.
        speaker (`str`), clip (`int`): Speaker and number of the recording.
        span (`"phone"` or `"triphone"`, *optional*, defaults to `"phone"`): Frames of a token: those of the phone, or
            also those of its neighbours, as in the Zero Resource challenges to 2017.
        max_pause (`float`, *optional*, defaults to 0.1): Longest pause, in seconds, that does not part neighbours.

    Raises:
        ValueError: If `span` is another word.
    """
    if span not in ("phone", "triphone"):
        raise ValueError(f"`span` must be 'phone' or 'triphone', but got {span!r}.")
    sounds = [item for item in labels if item.label not in IGNORED_LABELS]
    middles = (np.arange(num_frames) + 0.5) / frame_rate
    tokens = []
    for number, item in enumerate(sounds):
        before = sounds[number - 1] if number and item.start - sounds[number - 1].end <= max_pause else None
        after = sounds[number + 1] if number + 1 < len(sounds) else None
        if after is not None and after.start - item.end > max_pause:
            after = None
        first, last = item, item
        if span == "triphone":
            first, last = before or item, after or item
        start, end = np.searchsorted(middles, [first.start, last.end])
        if start < end:
            neighbours = (before.label if before else "", after.label if after else "")
            tokens.append(PhoneToken(item.label, *neighbours, speaker, clip, int(start), int(end)))
    return tokens


def angular_distance(frames_1: np.ndarray, frames_2: np.ndarray) -> np.ndarray:
    """Angles between features `(num_frames, dim)`, divided by pi; zeros are at right angles to everything."""
    frames_1, frames_2 = (
        frames / np.maximum(np.linalg.norm(frames, axis=-1, keepdims=True), 1e-12) for frames in (frames_1, frames_2)
    )
    return np.arccos(np.clip(frames_1 @ frames_2.T, -1.0, 1.0)) / np.pi


def euclidean_distance(frames_1: np.ndarray, frames_2: np.ndarray) -> np.ndarray:
    """Euclidean distances between features `(num_frames, dim)`."""
    squares = (frames_1**2).sum(-1)[:, None] + (frames_2**2).sum(-1) - 2 * frames_1 @ frames_2.T
    return np.sqrt(np.maximum(squares, 0.0))


def unit_mismatch(codes_1: np.ndarray, codes_2: np.ndarray) -> np.ndarray:
    """Number of quantizers whose codes differ, for each pair of frames of codes `(num_frames, num_quantizers)`."""
    return np.sum([stage_1[:, None] != stage_2 for stage_1, stage_2 in zip(codes_1.T, codes_2.T, strict=True)], axis=0)


def entry_distance(entries: np.ndarray, distance: FrameDistance = angular_distance) -> FrameDistance:
    """
    A distance of units `(num_frames,)` by their entries in the codebook.

    It is the distance of the units' entries, rounded to 16 binary places, and 0 for equal units. So sums along paths
    are exact, whatever their order, and ties between tokens, frequent among units, are ties.

    Args:
        entries (`np.ndarray` of shape `(num_symbols, dim)`): Entry of each unit. With several quantizers, it is the
            entry of each of their [`~evaluation.units.agreement.joint_symbols`].
        distance (`Callable`, *optional*): Distance of entries.
    """
    entries = np.asarray(entries, np.float64)

    def of_units(units_1: np.ndarray, units_2: np.ndarray) -> np.ndarray:
        (unique_1, places_1), (unique_2, places_2) = (
            np.unique(units, return_inverse=True) for units in (units_1, units_2)
        )
        between = np.round(distance(entries[unique_1], entries[unique_2]) * 2.0**16) / 2.0**16
        between[unique_1[:, None] == unique_2] = 0.0
        return between[places_1][:, places_2]

    return of_units


def warped_distances(frame_distances: np.ndarray, spans_1: np.ndarray, spans_2: np.ndarray) -> np.ndarray:
    """
    Distances of all tokens of one set to all of another by dynamic time warping.

    A path goes from the first frames of both to the last, each step by a frame in one or in both. The cheapest sum of
    frame distances is divided by the number of frame pairs on its path. Of predecessors of equal cost, the path takes
    the one by a frame in both, then the one by a frame of the second token.

    Args:
        frame_distances (`np.ndarray` of shape `(num_frames_1, num_frames_2)`): Distances between all frames of the two
            sets.
        spans_1, spans_2 (`np.ndarray` of shape `(num_tokens, 2)`): Number of the first frame of each token, and of the
            one after its last.

    Returns:
        `np.ndarray` of shape `(num_tokens_1, num_tokens_2)`, float32.
    """
    frame_distances = np.asarray(frame_distances, np.float32)
    result = np.empty((len(spans_1), len(spans_2)), np.float32)
    for rows, frames_1, last_1 in _length_groups(spans_1):
        of_rows = frame_distances[frames_1.reshape(-1)]
        for columns, frames_2, last_2 in _length_groups(spans_2):
            shape = (*frames_1.shape, *frames_2.shape)
            costs = of_rows[:, frames_2.reshape(-1)].reshape(shape)  # (length_1, tokens_1, length_2, tokens_2)
            result[np.ix_(rows, columns)] = _warp(costs.transpose(0, 2, 1, 3), last_1, last_2)
    return result


def _length_groups(spans: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    # Tokens of similar lengths: their places, their frames (max_length, num_tokens) and their last steps.
    lengths = spans[:, 1] - spans[:, 0]
    order = np.argsort(lengths, kind="stable")
    for places in np.array_split(order, np.arange(_TOKENS_AT_ONCE, len(order), _TOKENS_AT_ONCE)):
        steps = np.arange(lengths[places].max())[:, None]
        # Steps after a token's end repeat its last frame; what follows the end cannot change the cost up to it.
        yield places, spans[places, 0] + np.minimum(steps, lengths[places] - 1), lengths[places] - 1


# Number of tokens in a group: more waste time on padding to the longest, fewer on calls.
_TOKENS_AT_ONCE = 64


def _warp(costs: np.ndarray, last_1: np.ndarray, last_2: np.ndarray) -> np.ndarray:
    # With costs (length_1, length_2, tokens_1, tokens_2): sum over path length at each pair's own end.
    length_1, length_2 = costs.shape[:2]
    result = np.empty(costs.shape[2:], np.float32)
    above: list[tuple[np.ndarray, np.ndarray]] = []
    for i in range(length_1):
        row: list[tuple[np.ndarray, np.ndarray]] = []
        for j in range(length_2):
            cost = costs[i, j]
            if i and j:
                (diagonal, diagonal_steps), (up, up_steps), (left, left_steps) = above[j - 1], above[j], row[j - 1]
                best, steps = np.minimum(up, left), np.where(left <= up, left_steps, up_steps)
                steps = np.where(diagonal <= best, diagonal_steps, steps) + 1
                row.append((cost + np.minimum(diagonal, best), steps))
            elif i or j:
                before, steps = above[j] if i else row[j - 1]
                row.append((cost + before, steps + 1))
            else:
                row.append((cost, np.ones(cost.shape, np.float32)))
        above = row
        ended = np.flatnonzero(last_1 == i)
        if len(ended):
            for j in np.unique(last_2):
                cell = np.ix_(ended, np.flatnonzero(last_2 == j))
                result[cell] = row[j][0][cell] / row[j][1][cell]
    return result


@dataclass(frozen=True)
class ABXResult:
    """
    ABX errors by cell, which is two phones with their neighbours, a speaker of A and B, and one of X.

    Args:
        pairs (`list` of `tuple`): Phone of A and X, and phone of B, for each pair.
        num_speakers (`int`): Number of speakers of A and B.
        cell_pairs, cell_contexts, cell_speakers (`np.ndarray` of shape `(num_cells,)`): Number of each cell's pair, of
            its neighbours, and of its speaker of A and B.
        cell_errors (`np.ndarray` of shape `(num_cells,)`): Share of triplets where B is nearer.
        cell_triplets (`np.ndarray` of shape `(num_cells,)`): Number of triplets of each cell.
    """

    pairs: list[tuple[str, str]]
    num_speakers: int
    cell_pairs: np.ndarray
    cell_contexts: np.ndarray
    cell_speakers: np.ndarray
    cell_errors: np.ndarray
    cell_triplets: np.ndarray

    @property
    def num_cells(self) -> int:
        """Number of cells that have triplets."""
        return len(self.cell_errors)

    @property
    def num_triplets(self) -> int:
        """Number of triplets that were compared."""
        return int(self.cell_triplets.sum())

    @property
    def error(self) -> float:
        """The error in percent, 50 for chance; NaN where there is no cell."""
        return float(np.mean(list(self.pair_errors().values()))) if self.pairs else float("nan")

    def pair_errors(self) -> dict[tuple[str, str], float]:
        """The error of each ordered pair of phones in percent. The phone of A and X comes first."""
        if not self.pairs:
            return {}
        return dict(zip(self.pairs, self._averaged(np.ones((1, self.num_speakers)))[0].tolist(), strict=True))

    def estimate(self, num_resamples: int = 500, confidence: float = 0.95, seed: int = 0) -> Estimate | None:
        """
        The error in percent with its percentile interval when the speakers of A and B are redrawn with replacement.

        Args:
            num_resamples (`int`, *optional*, defaults to 500): Number of bootstrap samples.
            confidence (`float`, *optional*, defaults to 0.95): Coverage of the interval.
            seed (`int`, *optional*, defaults to 0): Seed for the resampling.

        Returns:
            [`Estimate`], whose `num_clips` counts speakers, or `None` where there is no cell.
        """
        if not self.pairs:
            return None
        shares = np.full(self.num_speakers, 1 / self.num_speakers)
        times_drawn = np.random.default_rng(seed).multinomial(self.num_speakers, shares, num_resamples)
        redrawn = np.nanmean(self._averaged(times_drawn), axis=1)
        tail = 100 * (1 - confidence) / 2
        low, high = np.percentile(redrawn, [tail, 100 - tail])
        return Estimate(self.error, float(low), float(high), self.num_speakers)

    def _averaged(self, times_drawn: np.ndarray) -> np.ndarray:
        # Percent of each pair, (num_resamples, num_pairs), for speakers that were drawn (num_resamples, num_speakers)
        # times; NaN for pairs that none of them has.
        contexts, cell_places = np.unique([self.cell_pairs, self.cell_contexts], axis=1, return_inverse=True)
        shape = (self.num_speakers, contexts.shape[1])
        # 1. Over the speakers of X.
        sums, counts = (
            sparse.coo_array((values, (self.cell_speakers, cell_places.reshape(-1))), shape=shape).tocsr()
            for values in (self.cell_errors, np.ones(self.num_cells))
        )
        has_cells = counts.astype(bool).astype(np.float64)
        means = sparse.csr_array((sums.data / counts.data, sums.indices, sums.indptr), shape=shape)
        # 2. Over the speakers of A and B, each as often as drawn.
        weights = times_drawn @ has_cells
        drawn = weights > 0
        errors = np.where(drawn, (times_drawn @ means) / np.maximum(weights, 1.0), 0.0)
        # 3. Over neighbours; contexts are sorted by pair.
        starts = np.flatnonzero(np.diff(contexts[0], prepend=-1))
        with np.errstate(invalid="ignore"):
            return 100 * np.add.reduceat(errors, starts, axis=1) / np.add.reduceat(drawn, starts, axis=1, dtype=float)


def abx(
    tokens: Sequence[PhoneToken],
    frames: Sequence[np.ndarray],
    distance: FrameDistance,
    mode: str = "within",
    context: str = "triphone",
    max_tokens: int = 10,
    max_other_speakers: int = 5,
    seed: int = 0,
) -> ABXResult:
    """
    Measure the ABX error.

    Args:
        tokens (sequence of [`PhoneToken`]): Tokens of all recordings.
        frames (sequence of `np.ndarray` of shape `(num_frames, ...)`): Frames of each recording, by `PhoneToken.clip`,
            in the form that `distance` takes.
        distance (`Callable`): Distance of frames: [`angular_distance`] or [`euclidean_distance`] for features,
            [`unit_mismatch`] for codes, or what [`entry_distance`] returns for units.
        mode (`"within"` or `"across"`, *optional*, defaults to `"within"`): Whether the speaker of X is the speaker of
            A and B, or another.
        context (`"triphone"` or `"any"`, *optional*, defaults to `"triphone"`): Whether A, B and X must have the same
            neighbours, no pause among them. `"any"` drops this condition, for speech that has too few triphones. Its
            errors are not comparable with others, since neighbours colour a phone.
        max_tokens (`int`, *optional*, defaults to 10): Largest number of tokens of a phone that share neighbours and
            speaker. Where there are more, so many are drawn.
        max_other_speakers (`int`, *optional*, defaults to 5): Largest number of speakers of X for a speaker of A and
            B. Where there are more, so many are drawn.
        seed (`int`, *optional*, defaults to 0): Seed for both draws.

    Raises:
        ValueError: If `mode` or `context` is another word.
    """
    if mode not in ("within", "across"):
        raise ValueError(f"`mode` must be 'within' or 'across', but got {mode!r}.")
    if context not in ("triphone", "any"):
        raise ValueError(f"`context` must be 'triphone' or 'any', but got {context!r}.")
    generator = np.random.default_rng(seed)
    by_context: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for token in tokens:
        neighbours = (token.previous, token.next) if context == "triphone" else ("", "")
        if context == "any" or all(neighbours):
            by_context[neighbours][token.speaker][token.phone].append(token)

    cells = []
    for neighbours in sorted(by_context):
        speakers = by_context[neighbours]
        drawn = {
            speaker: {
                phone: _draw(speakers[speaker][phone], max_tokens, generator) for phone in sorted(speakers[speaker])
            }
            for speaker in sorted(speakers)
        }
        for speaker, own in drawn.items():
            if len(own) < 2:
                continue
            if mode == "within":
                others = [speaker] if any(len(part) > 1 for part in own.values()) else []
            else:
                others = [name for name, phones in drawn.items() if name != speaker and phones.keys() & own.keys()]
                others = _draw(others, max_other_speakers, generator)
            for other in others:
                for pair, error, num_triplets in _compare(own, drawn[other], frames, distance, speaker == other):
                    cells.append((pair, neighbours, speaker, error, num_triplets))
    return _result(cells)


def _result(cells: list[tuple]) -> ABXResult:
    pairs, contexts, speakers, errors, num_triplets = zip(*cells, strict=True) if cells else [()] * 5
    (pairs, cell_pairs), (_, cell_contexts), (speakers, cell_speakers) = map(_numbered, (pairs, contexts, speakers))
    return ABXResult(
        pairs, len(speakers), cell_pairs, cell_contexts, cell_speakers, np.array(errors), np.array(num_triplets)
    )


def _numbered(values: Sequence) -> tuple[list, np.ndarray]:
    # The distinct values in order, and the place of each value among them.
    distinct = sorted(set(values))
    places = {value: place for place, value in enumerate(distinct)}
    return distinct, np.array([places[value] for value in values], np.int64)


def _draw(values: list, number: int, generator: np.random.Generator) -> list:
    if len(values) <= number:
        return values
    return [values[place] for place in np.sort(generator.choice(len(values), number, replace=False))]


def _compare(
    own: dict[str, list[PhoneToken]],
    others: dict[str, list[PhoneToken]],
    frames: Sequence[np.ndarray],
    distance: FrameDistance,
    same_speaker: bool,
) -> Iterator[tuple[tuple[str, str], float, int]]:
    # The error of each ordered pair of phones, with A and B of `own` and X of `others`.
    tokens_1 = [token for part in own.values() for token in part]
    tokens_2 = [token for phone, part in others.items() if phone in own for token in part]
    frames_1, spans_1 = _gathered(tokens_1, frames)
    frames_2, spans_2 = (frames_1, spans_1) if same_speaker else _gathered(tokens_2, frames)
    distances = warped_distances(distance(frames_1, frames_2), spans_1, spans_2)

    phones = list(own)
    sizes = np.array([len(part) for part in own.values()])
    starts = np.cumsum(sizes) - sizes
    column = 0
    for phone in others:
        if phone not in own:
            continue
        number = phones.index(phone)
        rows = slice(starts[number], starts[number] + sizes[number])
        to_x = distances[:, column : column + len(others[phone])]  # (tokens_1, X)
        column += len(others[phone])
        to_a = to_x[rows]  # (A, X)
        # Twice the errors of each A, B and X, summed over A and X: 2 where B is nearer, 1 for a tie.
        doubled = (to_a[:, None] > to_x).astype(np.int64) + (to_a[:, None] >= to_x)  # (A, tokens_1, X)
        num_pairs = to_a.size
        if same_speaker:
            # A token is not compared with itself.
            itself = np.arange(len(to_a))
            doubled[itself, :, itself] = 0
            num_pairs -= len(to_a)
        if not num_pairs:
            continue
        sums = np.add.reduceat(doubled.sum(axis=(0, 2)), starts)
        for place, phone_b in enumerate(phones):
            if phone_b != phone:
                num_triplets = int(num_pairs * sizes[place])
                yield (phone, phone_b), sums[place] / (2 * num_triplets), num_triplets


def _gathered(tokens: Sequence[PhoneToken], frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    # The tokens' frames one after the other, and where each token lies in them, (num_tokens, 2).
    ends = np.cumsum([token.end - token.start for token in tokens])
    spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    return np.concatenate([frames[token.clip][token.start : token.end] for token in tokens]), spans
