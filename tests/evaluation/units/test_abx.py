# SPDX-License-Identifier: Apache-2.0
import functools
import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from speech_tokenizers.evaluation.units.abx import (
    PhoneToken,
    abx,
    angular_distance,
    entry_distance,
    euclidean_distance,
    phone_tokens,
    unit_mismatch,
    warped_distances,
)
from speech_tokenizers.processing.timed_labels import TimedLabel


def naive_warping(costs: np.ndarray) -> float:
    """The cheapest path's cost over its length, by its definition: the table, then back along it."""
    table = np.full(costs.shape, np.inf)
    for i, j in np.ndindex(costs.shape):
        before = [table[k, m] for k, m in ((i - 1, j - 1), (i, j - 1), (i - 1, j)) if k >= 0 and m >= 0]
        table[i, j] = costs[i, j] + (min(before) if before else 0)
    i, j = costs.shape[0] - 1, costs.shape[1] - 1
    length = 1
    while i or j:
        steps = [(k, m) for k, m in ((i - 1, j - 1), (i, j - 1), (i - 1, j)) if k >= 0 and m >= 0]
        i, j = min(steps, key=lambda step: table[step])
        length += 1
    return table[-1, -1] / length


def naive_abx(tokens, frames, distance, mode, context) -> float:
    """Every triplet by itself, averaged level by level."""

    @functools.cache
    def between(one, other):
        return naive_warping(
            distance(frames[one.clip][one.start : one.end], frames[other.clip][other.start : other.end])
        )

    scores = defaultdict(list)
    for a, b, x in itertools.product(tokens, repeat=3):
        if a is x or a.phone != x.phone or a.phone == b.phone or a.speaker != b.speaker:
            continue
        if (x.speaker == a.speaker) != (mode == "within"):
            continue
        neighbours = {(token.previous, token.next) if context == "triphone" else () for token in (a, b, x)}
        if len(neighbours) > 1 or (context == "triphone" and not all(next(iter(neighbours)))):
            continue
        near, far = between(a, x), between(b, x)
        error = 0.5 if abs(near - far) < 1e-6 else float(near > far)
        scores[a.phone, b.phone, neighbours.pop(), a.speaker, x.speaker].append(error)
    for level in (5, 4, 3, 2):
        upper = defaultdict(list)
        for key, values in scores.items():
            upper[key[: level - 1] if level > 2 else ()].append(np.mean(values))
        scores = upper
    return 100 * np.mean(scores[()])


@pytest.fixture
def speech():
    """Tokens of three speakers and clips of frames and units, with few phones so that triphones recur."""
    generator = np.random.default_rng(0)
    sounds = {phone: generator.standard_normal(6) for phone in "aeiou"}
    tokens, features, units = [], [], []
    for clip in range(6):
        speaker = f"s{clip % 3}"
        labels, time = [], 0.0
        for phone in generator.choice(list("aei"), 10):
            seconds = generator.integers(1, 5) / 50
            labels.append(TimedLabel(str(phone), time, time + seconds))
            time += seconds
        num_frames = round(time * 50)
        tokens += phone_tokens(labels, num_frames, 50.0, speaker, clip)
        frames = np.stack(
            [
                next(sounds[item.label] for item in labels if middle < item.end)
                for middle in np.arange(0.01, time, 0.02)
            ]
        )
        features.append(frames + 1.2 * generator.standard_normal(frames.shape))
        units.append((frames[:, 0] > 0) + 2 * generator.integers(0, 2, num_frames))
    return tokens, features, units


def test_warping_by_hand():
    # Frames 0, 1 against 0, 0, 1 differ by 0 on a path of three pairs; against 2 by 2 and 1, on two pairs.
    costs = euclidean_distance(np.array([[0.0], [1.0]]), np.array([[0.0], [0.0], [1.0], [2.0]]))
    distances = warped_distances(costs, np.array([[0, 2], [0, 1]]), np.array([[0, 3], [3, 4], [1, 4]]))
    # 0 against 0, 1, 2: 3 over three pairs. 0, 1 against 0, 1, 2: 1 over three pairs.
    np.testing.assert_allclose(distances, [[0, 3 / 2, 1 / 3], [1 / 3, 2, 1]], rtol=1e-6)


def test_warping_equals_a_naive_one():
    generator = np.random.default_rng(0)
    # Whole numbers make ties between paths, which differ in length.
    for costs in (generator.random((400, 300)), generator.integers(0, 3, (400, 300)).astype(float)):
        spans = []
        for size, number in ((400, 40), (300, 30)):
            starts = generator.integers(0, size - 9, number)
            spans.append(np.stack([starts, starts + generator.integers(1, 9, number)], axis=1))
        expected = [[naive_warping(costs[i:j, k:m]) for k, m in spans[1]] for i, j in spans[0]]
        np.testing.assert_allclose(warped_distances(costs, *spans), expected, rtol=1e-5)


def test_distances_by_hand():
    one, two = np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(angular_distance(one, two), [[0, 1 / 2, 1, 1 / 4], [1 / 2] * 4], atol=1e-7)
    np.testing.assert_allclose(euclidean_distance(one, two)[0], [2, math.sqrt(13), 4, math.sqrt(5)])
    codes = np.array([[1, 2], [1, 3]]), np.array([[1, 2], [2, 3], [4, 4]])
    assert unit_mismatch(*codes).tolist() == [[0, 2, 2], [1, 1, 2]]


@pytest.mark.parametrize("distance", [angular_distance, euclidean_distance])
def test_distance_of_units_is_that_of_their_entries(distance):
    generator = np.random.default_rng(0)
    entries = generator.standard_normal((9, 4))
    one, two = generator.integers(0, 9, 30), generator.integers(0, 9, 20)
    of_units = entry_distance(entries, distance)(one, two)
    np.testing.assert_allclose(of_units, distance(entries[one], entries[two]), atol=2.0**-17 + 1e-7)
    assert (of_units[one[:, None] == two] == 0).all()


def test_tokens_have_frames_by_their_middles_and_neighbours_across_word_boundaries():
    labels = [
        TimedLabel("h", 0.0, 0.05),  # middles at 0.01 and 0.03
        TimedLabel("i", 0.05, 0.06),  # 0.05
        TimedLabel("|", 0.06, 0.1),
        TimedLabel("j", 0.1, 0.105),  # too short to have one
        TimedLabel("u", 0.105, 0.14),  # 0.11 and 0.13
        TimedLabel("h", 0.5, 0.6),  # after a pause; from 0.51 to the last frame
        TimedLabel("i", 0.6, 0.7),  # after the last frame
    ]
    assert phone_tokens(labels, 28, 50.0, "s", 3) == [
        PhoneToken("h", "", "i", "s", 3, 0, 2),
        PhoneToken("i", "h", "j", "s", 3, 2, 3),
        PhoneToken("u", "j", "", "s", 3, 5, 7),
        PhoneToken("h", "", "i", "s", 3, 25, 28),
    ]
    assert [token[5:] for token in phone_tokens(labels, 28, 50.0, "s", 3, span="triphone")] == [
        (0, 3),
        (0, 5),
        (2, 7),
        (5, 7),
        (25, 28),
        (25, 28),
    ]
    with pytest.raises(ValueError, match="must be 'phone' or 'triphone', but got 'word'"):
        phone_tokens(labels, 28, 50.0, "s", 3, span="word")


def test_error_by_hand():
    """One frame a token, so that distances are differences: X = 0 of `a` against A at 1, and B at 0.5, 1 or 3."""

    def token(phone, speaker, place):
        return PhoneToken(phone, "p", "n", speaker, 0, place, place + 1)

    frames = [np.array([[0.0], [1.0], [0.5], [1.0], [3.0]])]
    of_x, near, *others = [token("a", "t", 0), token("a", "s", 1)] + [token("b", "s", place) for place in (2, 3, 4)]
    for others_of_b, error in ((others[:1], 1.0), (others[1:2], 0.5), (others[2:], 0.0), (others, 0.5)):
        result = abx([of_x, near, *others_of_b], frames, euclidean_distance, mode="across")
        assert result.pair_errors() == {("a", "b"): 100 * error}
        assert result.num_triplets == len(others_of_b)
    # Within: A and X swap places. X = 0: B at 0.5 is nearer than A at 1. X = 1: again.
    within = [token("a", "s", 0), token("a", "s", 1), token("b", "s", 2)]
    assert abx(within, frames, euclidean_distance).error == 100.0
    # B's of `c` at 3 are never nearer.
    result = abx([*within, token("c", "s", 4)], frames, euclidean_distance)
    assert result.pair_errors() == {("a", "b"): 100.0, ("a", "c"): 0.0}
    assert result.error == 50.0
    assert result.num_triplets == 4


@pytest.mark.parametrize("mode", ["within", "across"])
@pytest.mark.parametrize("context", ["triphone", "any"])
@pytest.mark.parametrize("kind", ["features", "mismatch", "entries"])
def test_equals_a_naive_abx(speech, mode, context, kind):
    tokens, features, units = speech
    entries = np.random.default_rng(1).standard_normal((4, 5))
    rounded = np.round(angular_distance(entries, entries) * 65536) / 65536 * (1 - np.eye(4))
    frames, distance, of_frames = {
        "features": (features, angular_distance, angular_distance),
        "mismatch": ([part[:, None] for part in units], unit_mismatch, unit_mismatch),
        "entries": (units, entry_distance(entries), lambda one, two: rounded[one][:, two]),
    }[kind]
    result = abx(tokens, frames, distance, mode, context, max_tokens=1000)
    assert result.error == pytest.approx(naive_abx(tokens, frames, of_frames, mode, context), abs=1e-6)


def test_caps_bound_the_triplets_and_are_seeded(speech):
    tokens, features, _ = speech
    options = {"mode": "across", "context": "any", "max_tokens": 2, "max_other_speakers": 1}
    results = [abx(tokens, features, angular_distance, seed=seed, **options) for seed in (0, 0, 1)]
    # Three speakers, six pairs of phones, 2 * 2 * 2 tokens.
    assert results[0].num_cells == 18
    assert results[0].num_triplets <= 18 * 8
    assert results[0].pair_errors() == results[1].pair_errors()
    assert results[0].pair_errors() != results[2].pair_errors()


def test_shifted_phones_are_at_chance(speech):
    tokens, features, _ = speech
    generator = np.random.default_rng(0)
    noise = [generator.standard_normal(part.shape) for part in features]
    assert abx(tokens, noise, angular_distance, context="any").error == pytest.approx(50.0, abs=10)
    assert abx(tokens, features, angular_distance, context="any").error < 30


def test_units_that_say_nothing_tie(speech):
    tokens, _, units = speech
    assert abx(tokens, [0 * part for part in units], entry_distance(np.ones((1, 3)))).error == 50.0


def test_interval_redraws_speakers(speech):
    tokens, features, _ = speech
    options = {"context": "any", "max_tokens": 1000}
    result = abx(tokens, features, angular_distance, **options)
    estimate = result.estimate(num_resamples=3000)
    assert estimate.value == result.error
    assert estimate.num_clips == 3
    # Every draw of three speakers, by speakers' own errors of each pair: all have all pairs here.
    own = [
        abx([token for token in tokens if token.speaker == f"s{number}"], features, angular_distance, **options)
        for number in range(3)
    ]
    assert {len(part.pairs) for part in own} == {6}
    errors = [part.error for part in own]
    draws = [np.mean(draw) for draw in itertools.product(errors, repeat=3)]
    # 27 equally likely draws: the 2.5 % ends are the extremes, of one draw in 27 each.
    assert estimate.low == pytest.approx(min(draws))
    assert estimate.high == pytest.approx(max(draws))


def test_pairs_of_few_speakers_are_averaged_over_the_redrawn_ones_that_have_them():
    def token(phone, speaker, place):
        return PhoneToken(phone, "p", "n", speaker, 0, place, place + 1)

    frames = [np.array([[0.0], [1.0], [0.5], [3.0]])]
    # Speaker s has a and b, all wrong; t has a and c, all right.
    tokens = [token("a", "s", 0), token("a", "s", 1), token("b", "s", 2)]
    tokens += [token("a", "t", 0), token("a", "t", 1), token("c", "t", 3)]
    result = abx(tokens, frames, euclidean_distance)
    estimate = result.estimate()
    assert (estimate.value, estimate.low, estimate.high) == (50.0, 0.0, 100.0)


def test_no_cell_has_no_error(speech):
    tokens, features, _ = speech
    result = abx(tokens[:1], features, angular_distance)
    assert math.isnan(result.error)
    assert (result.estimate(), result.pair_errors(), result.num_cells, result.num_triplets) == (None, {}, 0, 0)


def test_other_words_are_refused(speech):
    tokens, features, _ = speech
    with pytest.raises(ValueError, match="'within' or 'across', but got 'both'"):
        abx(tokens, features, angular_distance, mode="both")
    with pytest.raises(ValueError, match="'triphone' or 'any', but got 'word'"):
        abx(tokens, features, angular_distance, context="word")
