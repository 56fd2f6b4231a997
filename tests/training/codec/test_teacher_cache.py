# SPDX-License-Identifier: Apache-2.0
"""Features on disk are those of the teacher, whole, and nobody else's."""

import pickle

import pytest
import torch
from accelerate import Accelerator

from speech_tokenizers.training.codec.teacher_cache import TeacherCache, TeacherCacheError, fill_cache
from speech_tokenizers.training.codec.teachers import TimedFeatures


DESCRIPTION = {"kind": "speech", "model": "abc", "layer": "average"}


def features_of(index: int) -> TimedFeatures:
    generator = torch.Generator().manual_seed(index)
    starts = torch.arange(5 + index) * 0.1
    return TimedFeatures(torch.randn(5 + index, 3, generator=generator), torch.stack([starts, starts + 0.1], -1))


class CountingTeacher:
    """Knows as many recordings as it is allowed to; then it breaks down."""

    description = DESCRIPTION

    def __init__(self, limit=10**9):
        self.asked, self.limit = [], limit

    def to(self, device):
        pass

    def features(self, index):
        if len(self.asked) == self.limit:
            raise KeyboardInterrupt
        self.asked.append(index)
        return features_of(index)


def fill(cache, teacher, count=7):
    fill_cache(cache, [f"key{i}" for i in range(count)], lambda index: index, teacher, Accelerator(cpu=True), "")


def test_what_is_read_is_what_the_teacher_gave_in_half_precision(tmp_path):
    cache = TeacherCache(tmp_path, DESCRIPTION)
    fill(cache, CountingTeacher())
    for where in (cache, TeacherCache(tmp_path, DESCRIPTION), pickle.loads(pickle.dumps(cache))):
        for index in range(7):
            torch.testing.assert_close(where[f"key{index}"].features, features_of(index).features.half())
            torch.testing.assert_close(where[f"key{index}"].times, features_of(index).times)


def test_a_part_is_read_with_one_neighbour_on_each_side(tmp_path):
    cache = TeacherCache(tmp_path, DESCRIPTION)
    cache.write({"key": features_of(6)})
    part = cache.read("key", 0.35, 0.55)  # rows 3 to 6 start at 0.3, 0.4, 0.5, 0.6
    torch.testing.assert_close(part.times[:, 0], torch.tensor([0.3, 0.4, 0.5, 0.6]))
    torch.testing.assert_close(part.features, cache["key"].features[3:7])


def test_mean_is_over_all_rows_of_the_recordings(tmp_path):
    cache = TeacherCache(tmp_path, DESCRIPTION)
    fill(cache, CountingTeacher())
    expected = torch.cat([features_of(i).features.half().float() for i in (1, 4)]).mean(0)
    torch.testing.assert_close(cache.mean(["key1", "key4"]), expected)


def test_only_what_is_missing_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("speech_tokenizers.training.codec.teacher_cache.RECORDINGS_PER_SHARD", 2)
    with pytest.raises(KeyboardInterrupt):
        fill(TeacherCache(tmp_path, DESCRIPTION), CountingTeacher(limit=5))
    assert not list(tmp_path.glob(".*"))
    cache = TeacherCache(tmp_path, DESCRIPTION)
    assert len(cache) == 4  # the shard that was under way is gone, and nothing else
    teacher = CountingTeacher()
    fill(cache, teacher)
    assert teacher.asked == [4, 5, 6]
    again = CountingTeacher()
    fill(TeacherCache(tmp_path, DESCRIPTION), again)
    assert again.asked == []


@pytest.mark.parametrize("change", [{"layer": "last"}, {"model": "abd"}, {"kind": "language"}])
def test_another_teacher_s_cache_is_an_error(tmp_path, change):
    TeacherCache(tmp_path, DESCRIPTION)
    with pytest.raises(TeacherCacheError, match=f"{next(iter(change))}: .* there, .* here"):
        TeacherCache(tmp_path, {**DESCRIPTION, **change})


def test_an_unknown_recording_is_an_error(tmp_path):
    with pytest.raises(TeacherCacheError, match="no features of recording key9"):
        TeacherCache(tmp_path, DESCRIPTION)["key9"]


def test_a_damaged_shard_is_named(tmp_path):
    cache = TeacherCache(tmp_path, DESCRIPTION)
    fill(cache, CountingTeacher())
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(TeacherCacheError, match=f"{shard.name}` is damaged"):
        TeacherCache(tmp_path, DESCRIPTION)
