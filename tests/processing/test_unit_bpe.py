# SPDX-License-Identifier: Apache-2.0
"""Merged units are fewer, and give every frame back."""

import json
import math

import numpy as np
import pytest
from transformers import AutoTokenizer

from speech_tokenizers.processing.unit_bpe import LARGEST_CODEBOOK, UnitBPE, train_unit_bpe
from speech_tokenizers.processing.unit_sequences import deduplicate, expand
from speech_tokenizers.processing.unit_vocabulary import build_unit_vocabulary


CODEBOOK_SIZE = 40


def speech_like(seed: int, num_units: int = 200) -> np.ndarray:
    """Frames of "words" of units that come again, with durations of their own; units 30 to 39 never occur."""
    words = [np.random.default_rng(word).integers(0, 30, 2 + word % 5) for word in range(12)]
    generator = np.random.default_rng(seed)
    units = np.concatenate([words[index] for index in generator.integers(0, len(words), num_units // 4)])
    units, _ = deduplicate(units)
    return expand(units, generator.integers(1, 6, len(units)))


@pytest.fixture(scope="module")
def bpe():
    return train_unit_bpe((speech_like(seed) for seed in range(40)), CODEBOOK_SIZE, vocab_size=120)


@pytest.mark.parametrize("seed", range(20))
def test_durations_make_it_lossless_for_speech_and_noise(bpe, seed):
    noise = np.random.default_rng(seed).integers(0, [2, CODEBOOK_SIZE][seed % 2], 100)
    for frames in (speech_like(100 + seed), noise, noise[:1], noise[:0]):
        ids, durations = bpe.encode(frames)
        assert np.array_equal(bpe.decode(ids, durations), frames)
        assert np.array_equal(bpe.decode(ids), deduplicate(frames)[0])
        assert sum(part.sum() for part in durations) == len(frames)


def test_units_that_training_never_saw_keep_their_own_ids(bpe):
    ids, durations = bpe.encode(np.repeat(np.arange(30, 40), 2))
    assert ids.tolist() == [unit + 2 for unit in range(30, 40)]
    assert [part.tolist() for part in durations] == [[2]] * 10


def test_a_hand_made_merge():
    # 1 2 is the only pair that comes twice.
    bpe = train_unit_bpe([[1, 1, 2], [0, 1, 2, 2, 2]], codebook_size=4, vocab_size=7)
    ids, durations = bpe.encode([3, 1, 1, 2, 2, 2, 0])
    assert ids.tolist() == [5, 6, 2]
    assert [part.tolist() for part in durations] == [[1], [2, 3], [1]]
    assert bpe.decode([1, 6, 6, 1, 0]).tolist() == [1, 2, 1, 2]
    assert bpe.decode([1, 6, 1], [[], [2, 1], []]).tolist() == [1, 1, 2]


def test_durations_that_a_model_gave_are_kept():
    bpe = train_unit_bpe([[1, 2], [1, 2]], codebook_size=4, vocab_size=7)
    ids, durations = bpe.encode([1, 2, 3], durations=[4, 5, 6])
    assert (ids.tolist(), [part.tolist() for part in durations]) == ([6, 5], [[4, 5], [6]])


def test_training_is_repeatable_and_merges_what_is_frequent(bpe):
    again = train_unit_bpe([speech_like(seed) for seed in range(40)], CODEBOOK_SIZE, vocab_size=120)
    assert again.tokenizer.get_vocab() == bpe.tokenizer.get_vocab()
    assert len(bpe) == 120
    ids, _ = bpe.encode(speech_like(99))
    assert len(ids) < 0.5 * len(deduplicate(speech_like(99))[0])
    # Without merges left to learn, the vocabulary stays smaller than allowed.
    assert len(train_unit_bpe([[0, 1]], 2, vocab_size=50)) == 4


def test_a_saved_one_is_the_same_and_holds_no_pickle(bpe, tmp_path):
    bpe.save_pretrained(tmp_path)
    loaded = UnitBPE.from_pretrained(tmp_path)
    assert (loaded.codebook_size, len(loaded)) == (CODEBOOK_SIZE, 120)
    assert np.array_equal(loaded.encode(speech_like(7))[0], bpe.encode(speech_like(7))[0])
    for file in tmp_path.iterdir():
        json.loads(file.read_text(encoding="utf-8"))
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == 0


def test_compression_of_a_hand_made_case():
    bpe = train_unit_bpe([[1, 2], [1, 2]], codebook_size=4, vocab_size=7)
    # 8 frames, 4 units and 2 ids in a second of 8 frames; half of the durations are 1 and half are 3.
    figures = bpe.compression([[1, 2, 2, 2], [1, 2, 2, 2]], frame_rate=8)
    assert figures == pytest.approx(
        {
            "frames_per_unit": 2,
            "units_per_id": 2,
            "bits_per_second": 16,
            "deduplicated_bits_per_second": 8,
            "merged_bits_per_second": 2 * math.log2(5),
            "duration_bits_per_second": 4,
        }
    )
    with pytest.raises(ValueError, match="hold no frame"):
        bpe.compression([], frame_rate=8)


def test_the_largest_codebook_has_characters_enough():
    bpe = train_unit_bpe([[0, LARGEST_CODEBOOK - 1]] * 2, LARGEST_CODEBOOK, LARGEST_CODEBOOK + 3)
    ids, durations = bpe.encode([0, LARGEST_CODEBOOK - 1, 17])
    assert ids.tolist() == [LARGEST_CODEBOOK + 2, 19]
    assert bpe.decode(ids, durations).tolist() == [0, LARGEST_CODEBOOK - 1, 17]


def test_what_does_not_fit_is_refused(bpe, tmp_path):
    with pytest.raises(ValueError, match="`units` must be below 40, but got 40"):
        bpe.encode([40])
    with pytest.raises(ValueError, match="merge one codebook at a time"):
        bpe.encode([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="one entry a unit, 2, but got 1"):
        bpe.encode([1, 2], durations=[3])
    with pytest.raises(ValueError, match="`ids` must be below 120, but got 120"):
        bpe.decode([120])
    with pytest.raises(ValueError, match=r"must hold \[1, 1\] entries for `ids`, but got \[1, 2\]"):
        bpe.decode([2, 3], [[1], [1, 1]])
    with pytest.raises(ValueError, match="`vocab_size` must be at least 42"):
        train_unit_bpe([[1]], 40, vocab_size=41)
    with pytest.raises(ValueError, match="must lie between 1 and 65534"):
        train_unit_bpe([[1]], 65535, vocab_size=70000)
    build_unit_vocabulary(8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="merges no units"):
        UnitBPE.from_pretrained(tmp_path)
