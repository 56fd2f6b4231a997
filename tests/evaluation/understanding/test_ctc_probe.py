# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from speech_tokenizers.evaluation.understanding.ctc_probe import ctc_probe
from speech_tokenizers.evaluation.understanding.metrics import by_seed
from speech_tokenizers.evaluation.understanding.probes import no_audio, other_clips, shuffle_targets


PHONES = ["AH", "B", "K", "S"]
CODEBOOK_SIZE = 12


class Spoken:
    """Clips of some phones, six frames each, that are coded in features and units."""

    def __init__(self, num_clips=120, dim=6, seed=0):
        generator = np.random.default_rng(seed)
        directions = 3 * generator.standard_normal((len(PHONES), dim))
        self.targets, self.features, self.codes = [], [], []
        for _ in range(num_clips):
            said = generator.integers(0, len(PHONES), generator.integers(2, 7))
            said = said[np.append(True, said[1:] != said[:-1])]
            frames = np.repeat(said, 6)
            self.targets.append(" ".join(PHONES[number] for number in said))
            noise = generator.standard_normal((len(frames), dim))
            self.features.append((directions[frames] + noise).astype(np.float32))
            self.codes.append(np.stack([3 * frames + generator.integers(0, 3, len(frames)), 0 * frames]))
        self.splits = ["train"] * (num_clips - 40) + ["dev"] * 20 + ["test"] * 20
        self.tested = self.targets[-20:]

    def error_rate(self, **kwargs):
        """Phone error rate of the test clips, of what was learnt from the given material."""
        kwargs = {"targets": self.targets, "num_steps": 200, **kwargs}
        probe = ctc_probe(splits=self.splits, frame_rate=50.0, **kwargs)
        return by_seed("per", probe.answers, self.tested)[0]


@pytest.fixture(scope="module")
def spoken():
    return Spoken()


def test_phones_that_are_coded_in_frames_are_written(spoken):
    units = {"codes": spoken.codes, "codebook_size": CODEBOOK_SIZE}
    assert spoken.error_rate(features=spoken.features) < 10
    assert spoken.error_rate(**units) < 10
    assert spoken.error_rate(features=spoken.features, **units) < 10


def test_either_input_alone_is_enough_of_both(spoken):
    """The other one is the same frame everywhere."""
    nothing = [np.zeros_like(frames) for frames in spoken.features]
    constant = [np.zeros_like(units) for units in spoken.codes]
    assert spoken.error_rate(features=nothing, codes=spoken.codes, codebook_size=CODEBOOK_SIZE) < 10
    assert spoken.error_rate(features=spoken.features, codes=constant, codebook_size=CODEBOOK_SIZE) < 10


def test_controls_know_nothing(spoken):
    shuffled = shuffle_targets(spoken.targets, spoken.splits, seed=0)
    assert spoken.error_rate(features=spoken.features, targets=shuffled) > 60
    assert spoken.error_rate(features=no_audio(spoken.features)) > 60
    codes = no_audio(spoken.codes, time_axis=1)
    assert spoken.error_rate(codes=codes, codebook_size=CODEBOOK_SIZE) > 60
    source = other_clips(spoken.splits, seed=0)
    assert spoken.error_rate(features=[spoken.features[clip] for clip in source]) > 40


def test_the_seed_gives_the_same_bits(spoken):
    first, again, other = (
        ctc_probe(spoken.targets, spoken.splits, 50.0, spoken.features, num_steps=10, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.losses != other.losses


def test_losses_fall_and_the_passes_are_chosen_on_dev(spoken):
    probe = ctc_probe(spoken.targets, spoken.splits, 50.0, spoken.features, num_steps=200)
    assert len(probe.losses) == 40  # passes of five batches
    assert probe.losses[-1] < probe.losses[0] / 3
    assert probe.setting in (16, 24, 32, 40)
    assert probe.num_too_short == 0
    assert probe.dev_value < 10


def test_test_targets_are_not_looked_at(spoken):
    unknown = ["?" if split == "test" else text for text, split in zip(spoken.targets, spoken.splits, strict=True)]
    known, hidden = (
        ctc_probe(targets, spoken.splits, 50.0, spoken.features, num_steps=10) for targets in (spoken.targets, unknown)
    )
    assert known == hidden


def test_clips_do_not_see_the_clips_beside_them_in_a_batch(spoken):
    """Another test clip makes its batch longer, and changes no answer."""
    longest = np.concatenate(spoken.features)[:200]
    probe = ctc_probe(spoken.targets, spoken.splits, 50.0, spoken.features, num_steps=40)
    more = ctc_probe([*spoken.targets, "K"], [*spoken.splits, "test"], 50.0, [*spoken.features, longest], num_steps=40)
    assert more.answers[:-1] == probe.answers


def test_a_slow_stream_is_not_thinned(spoken):
    """At 25 frames a second every frame is seen: phones of two frames are still found."""
    features = [frames[::3] for frames in spoken.features]
    slow = ctc_probe(spoken.targets, spoken.splits, 25.0, features, num_steps=200)
    assert by_seed("per", slow.answers, spoken.tested)[0] < 15


def test_clips_that_are_too_short_are_counted(spoken):
    features = [spoken.features[0][:2], *spoken.features[1:]]
    probe = ctc_probe(spoken.targets, spoken.splits, 50.0, features, num_steps=3)
    assert probe.num_too_short == 1
    assert np.isfinite(probe.losses).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features": None}, "`features`, `codes` or both"),
        ({"num_steps": 0}, "at least 1"),
        ({"codes": [np.zeros((1, 1), int)] * 120, "codebook_size": 2}, "same number of frames"),
        ({"features": [np.full((9, 6), np.inf)] * 120}, "not finite"),
        ({"features": [np.zeros((0, 6))] * 120}, "Clip 0 has no frame"),
        ({"features": [np.zeros((1, 6))] * 120, "targets": ["B K"] * 120}, "No training clip has as many windows"),
        ({"features": [np.zeros((9, 6))]}, "1 for 120"),
    ],
)
def test_bad_input_is_refused(change, said, spoken):
    given = {"targets": spoken.targets, "features": spoken.features, "num_steps": 1, **change}
    with pytest.raises(ValueError) as error:
        ctc_probe(splits=spoken.splits, frame_rate=50.0, **given)
    assert said in str(error.value)
