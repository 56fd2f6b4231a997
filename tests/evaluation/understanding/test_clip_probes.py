# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from speech_tokenizers.evaluation.understanding.probes import (
    Block,
    bag_block,
    bag_of_units,
    no_audio,
    other_clips,
    pooled_block,
    pooled_ridge,
    ridge_probe,
    shuffle_targets,
    split_numbers,
)


LABELS = ("calm", "happy", "sad")
CODEBOOK_SIZE = 12


def share_right(answers, targets):
    return np.mean([said == true for said, true in zip(answers, targets, strict=True)])


class Planted:
    """Clips whose label is coded in their features and units, in all of the clip or only in the order of its parts."""

    def __init__(self, num_clips=240, dim=8, by_order=False, seed=0):
        generator = np.random.default_rng(seed)
        classes = generator.integers(0, 2 if by_order else 3, num_clips)
        self.targets = [LABELS[number] for number in classes]
        self.splits = ["train"] * (num_clips // 2) + ["dev"] * (num_clips // 4) + ["test"] * (num_clips // 4)
        directions = generator.standard_normal((3, dim))
        self.features, self.codes = [], []
        for number in classes:
            num_frames = int(generator.integers(9, 30))
            shift = np.repeat(directions[number][None], num_frames, axis=0)
            if by_order:  # the mean over the clip says nothing
                shift = np.where(np.arange(num_frames)[:, None] < num_frames / 2, 1, -1) * directions[0]
                shift = shift * (1 if number else -1)
            self.features.append((shift + generator.standard_normal((num_frames, dim))).astype(np.float32))
            told = generator.integers(0, 4, num_frames) + 4 * number
            units = np.where(generator.random(num_frames) < 0.4, told, generator.integers(0, 12, num_frames))
            self.codes.append(np.stack([generator.integers(0, 12, num_frames), units]))
        self.tested = self.targets[-(num_clips // 4) :]


@pytest.fixture(scope="module")
def planted():
    return Planted()


def test_a_label_that_is_coded_in_the_features_is_read(planted):
    for num_segments in (1, 4):
        probe = pooled_ridge(planted.features, planted.targets, planted.splits, num_segments)
        assert share_right(probe.answers, planted.tested) > 0.95
    # The first codebook says nothing, the second does.
    probe = bag_of_units(planted.codes, CODEBOOK_SIZE, planted.targets, planted.splits)
    assert share_right(probe.answers, planted.tested) > 0.9
    first = [codes[:1] for codes in planted.codes]
    probe = bag_of_units(first, CODEBOOK_SIZE, planted.targets, planted.splits)
    assert share_right(probe.answers, planted.tested) < 0.6


def test_what_only_the_order_tells_needs_segments():
    planted = Planted(by_order=True)
    right = {
        num_segments: share_right(
            pooled_ridge(planted.features, planted.targets, planted.splits, num_segments).answers, planted.tested
        )
        for num_segments in (1, 4)
    }
    assert right[1] < 0.75
    assert right[4] > 0.95


def test_blocks_add_to_each_other(planted):
    """Features tell the first label from the others, units the second: only both together tell three."""
    features = [
        frames if target == "calm" else frames - frames.mean(0)
        for frames, target in zip(planted.features, planted.targets, strict=True)
    ]
    codes = [
        units if target == "happy" else np.random.default_rng(number).integers(0, CODEBOOK_SIZE, units.shape)
        for number, (units, target) in enumerate(zip(planted.codes, planted.targets, strict=True))
    ]
    one, other = pooled_block(features), bag_block(codes, CODEBOOK_SIZE)
    right = [
        share_right(ridge_probe(blocks, planted.targets, planted.splits).answers, planted.tested)
        for blocks in ([one], [other], [one, other])
    ]
    assert right[2] > max(right[:2]) + 0.1


def test_a_block_that_says_nothing_does_no_harm(planted):
    """Where blocks weighed the same, a block of noise would be half of what the probe sees."""
    noise = Block(np.random.default_rng(0).standard_normal((240, 300)))
    told = bag_block([codes[1:] for codes in planted.codes], CODEBOOK_SIZE)
    alone, beside = (
        share_right(ridge_probe(blocks, planted.targets, planted.splits).answers, planted.tested)
        for blocks in ([told], [told, noise])
    )
    assert beside > alone - 0.05


def test_blocks_weigh_the_same_whatever_their_width(planted):
    block = pooled_block(planted.features)
    wide = Block(np.tile(block.values, 50))
    learnt = split_numbers(planted.splits)["train"]
    for each in (block, wide, bag_block(planted.codes, CODEBOOK_SIZE)):
        assert (each.standardized(learnt)[learnt] ** 2).sum(1).mean() == pytest.approx(1)
    # Copies of columns change nothing, though there are more columns than clips now: both ways to solve agree.
    assert wide.values.shape[1] > len(learnt)
    narrow, broad = (ridge_probe([each], planted.targets, planted.splits) for each in (block, wide))
    assert narrow == broad


def test_the_answers_are_those_of_scikit_learn(planted):
    linear_model = pytest.importorskip("sklearn.linear_model")
    block = pooled_block(planted.features, 2)
    probe = ridge_probe([block], planted.targets, planted.splits)
    numbers = split_numbers(planted.splits)
    both = np.concatenate([numbers["train"], numbers["dev"]])
    values = block.standardized(both)
    wanted = np.array([[target == label for label in LABELS] for target in planted.targets], np.float64)
    ridge = linear_model.Ridge(alpha=probe.setting).fit(values[both], wanted[both])
    expected = [LABELS[number] for number in ridge.predict(values[numbers["test"]]).argmax(1)]
    assert probe.answers == expected


def test_columns_that_are_constant_in_training_are_left_out():
    values = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0], [9.0, 3.0]])
    standardized = Block(values).standardized(np.arange(3))
    assert not standardized[:, 0].any()
    assert standardized[:3, 1].mean() == pytest.approx(0)


def test_rare_units_are_not_blown_up():
    values = np.zeros((100, 2))
    values[::2, 0], values[0, 1] = 1.0, 0.01
    rare = Block(values, by_column=False).standardized(np.arange(100))[:, 1]
    assert np.abs(rare).max() < 0.05
    assert np.abs(Block(values).standardized(np.arange(100))[:, 1]).max() > 5


def test_shuffled_labels_reach_chance(planted):
    shuffled = shuffle_targets(planted.targets, planted.splits, seed=0)
    numbers = split_numbers(planted.splits)
    for name, clips in numbers.items():
        true, control = ([texts[clip] for clip in clips] for texts in (planted.targets, shuffled))
        assert sorted(true) == sorted(control)
        assert (true == control) == (name == "test")
    assert shuffled == shuffle_targets(planted.targets, planted.splits, seed=0)
    assert shuffled != shuffle_targets(planted.targets, planted.splits, seed=1)
    right = [
        share_right(
            pooled_ridge(
                planted.features, shuffle_targets(planted.targets, planted.splits, seed), planted.splits
            ).answers,
            planted.tested,
        )
        for seed in range(10)
    ]
    assert 0.2 < np.mean(right) < 0.47


def test_the_audio_of_other_clips_reaches_chance(planted):
    source = other_clips(planted.splits, seed=0)
    numbers = split_numbers(planted.splits)
    assert (source[numbers["train"]] == numbers["train"]).all()
    assert (source[numbers["dev"]] == numbers["dev"]).all()
    assert (source[numbers["test"]] != numbers["test"]).all()
    assert sorted(source[numbers["test"]]) == numbers["test"].tolist()
    assert (source == other_clips(planted.splits, seed=0)).all()
    assert (source != other_clips(planted.splits, seed=1)).any()
    probe = pooled_ridge([planted.features[clip] for clip in source], planted.targets, planted.splits)
    assert share_right(probe.answers, planted.tested) < 0.6


def test_without_audio_the_most_frequent_label_is_said(planted):
    targets = ["sad" if number % 3 else target for number, target in enumerate(planted.targets)]
    for probe in (
        pooled_ridge(no_audio(planted.features), targets, planted.splits),
        bag_of_units(no_audio(planted.codes, time_axis=1), CODEBOOK_SIZE, targets, planted.splits),
    ):
        assert set(probe.answers) == {"sad"}
    clips = [np.ones((2, length)) for length in (9, 1, 4)]
    assert [codes.shape for codes in no_audio(clips, time_axis=1)] == [(2, 4)] * 3
    assert not any(codes.any() for codes in no_audio(clips))


def test_the_same_input_gives_the_same_answers(planted):
    first, again = (pooled_ridge(planted.features, planted.targets, planted.splits) for _ in range(2))
    assert first == again


def test_test_labels_are_not_looked_at(planted):
    unknown = [
        "?" if split == "test" else target for target, split in zip(planted.targets, planted.splits, strict=True)
    ]
    assert pooled_ridge(planted.features, unknown, planted.splits) == pooled_ridge(
        planted.features, planted.targets, planted.splits
    )


def test_pooling_by_hand():
    frames = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert pooled_block([frames], 2).values.tolist() == [[1, 2, 6, 7]]
    assert pooled_block([frames[:1]], 3).values.tolist() == [[0, 1] * 3]
    assert bag_block([np.array([[0, 1, 1, 1], [2, 2, 2, 2]])], 3).values == pytest.approx(
        np.sqrt([[0.25, 0.75, 0, 0, 0, 1]])
    )
    assert bag_block([np.array([[0, 1, 1, 1]])], 2, 2).values == pytest.approx(np.sqrt([[0.5, 0.5, 0, 1]]))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: pooled_ridge(p.features, ["calm"] * 240, p.splits), "at least two labels"),
        (lambda p: pooled_ridge(p.features, p.targets, ["train"] * 180 + ["test"] * 60), "split dev has no clip"),
        (lambda p: pooled_ridge(p.features, p.targets, ["eval"] * 240), "there is 'eval'"),
        (lambda p: pooled_ridge(p.features[1:], p.targets, p.splits), "239 for 240"),
        (lambda p: pooled_ridge([np.zeros((0, 8)), *p.features[1:]], p.targets, p.splits), "Clip 0 has no frame"),
        (lambda p: pooled_ridge([np.full((3, 8), np.nan), *p.features[1:]], p.targets, p.splits), "not finite"),
        (lambda p: pooled_ridge(p.features, p.targets, p.splits, 0), "at least 1"),
        (lambda p: ridge_probe([], p.targets, p.splits), "`blocks` is empty"),
        (lambda p: bag_of_units(p.codes, 11, p.targets, p.splits), "Codes must lie in 0 to 10"),
        (lambda p: bag_of_units([codes[0] for codes in p.codes], 12, p.targets, p.splits), "num_quantizers"),
        (lambda p: other_clips(["train", "dev", "test"], 0), "single test clip"),
    ],
)
def test_bad_input_is_refused(call, said, planted):
    with pytest.raises(ValueError) as error:
        call(planted)
    assert said in str(error.value)
