# SPDX-License-Identifier: Apache-2.0
"""Crops depend on a seed and a position, and processes share each global batch."""

import io
import pickle

import datasets
import numpy as np
import pytest
import soundfile
import torch

from speech_tokenizers.processing.recordings import load_recordings
from speech_tokenizers.training.codec.crops import (
    AudioCropDataset,
    CropSettings,
    GlobalBatchSampler,
    StreamedCropDataset,
)


def test_crop_depends_on_seed_epoch_and_index_only(recordings):
    dataset, same = AudioCropDataset(recordings, 1600, seed=1), AudioCropDataset(recordings, 1600, seed=1)
    torch.manual_seed(0)
    later = [same[i]["input_values"] for i in reversed(range(len(same)))][::-1]
    assert all(torch.equal(dataset[i]["input_values"], crop) for i, crop in enumerate(later))
    other_seed = AudioCropDataset(recordings, 1600, seed=2)
    assert not torch.equal(dataset[0]["input_values"], other_seed[0]["input_values"])
    # An index beyond the length is the same crop of the next epoch, as is that of `set_epoch`.
    next_epoch = dataset[len(dataset)]["input_values"]
    assert not torch.equal(dataset[0]["input_values"], next_epoch)
    dataset.set_epoch(1)
    assert torch.equal(dataset[0]["input_values"], next_epoch)


def test_an_epoch_draws_each_recording_as_often_as_it_holds_crops(recordings):
    dataset = AudioCropDataset(recordings, 1600)
    assert len(dataset) == sum(round(len(recording) / 1600) for recording in recordings)
    assert len(list(dataset)) == len(dataset)
    assert len(AudioCropDataset([np.zeros(10, np.float32)], 1600)) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_do_not_change_crops(recordings, num_workers):
    dataset = AudioCropDataset(recordings, 1600)
    sampler = GlobalBatchSampler(len(dataset), 4, 0, range(3))
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers)
    batches = [batch["input_values"] for batch in loader]
    expected = [torch.stack([dataset[i]["input_values"] for i in indices]) for indices in sampler]
    assert all(torch.equal(a, b) for a, b in zip(batches, expected, strict=True))


def test_short_recordings_are_followed_by_silence():
    crop = AudioCropDataset([np.full(100, 0.5, np.float32)], 300)[0]["input_values"]
    assert crop.shape == (1, 300)
    assert (crop[0, :100] == 0.5).all()
    assert (crop[0, 100:] == 0).all()


def test_level_gain_and_peak():
    recording = 0.1 * np.sin(np.arange(16000)).astype(np.float32)
    generator = np.random.default_rng(0)
    levelled = CropSettings(8000, target_level_db=-20.0).cut(recording, generator)[0]
    assert levelled.square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-3)
    gains = [
        CropSettings(16000, gain_db=(-6.0, 6.0)).cut(recording, np.random.default_rng(i))[0].abs().max().item() / 0.1
        for i in range(200)
    ]
    assert 0.5 < min(gains) < 0.55
    assert 1.85 < max(gains) < 2.0
    loud = CropSettings(8000, gain_db=(40.0, 40.0)).cut(recording, generator)[0]
    assert loud.abs().max().item() == pytest.approx(0.99, rel=1e-3)


def test_silent_crops_are_drawn_again():
    recording = np.zeros(16000, np.float32)
    recording[8000:] = 0.1
    silent = sum(not CropSettings(1000).cut(recording, np.random.default_rng(i))[0].any().item() for i in range(100))
    assert silent < 5
    assert not CropSettings(1000).cut(np.zeros(16000, np.float32), np.random.default_rng(0))[0].any()


def test_a_crop_starts_where_it_says():
    recording = np.arange(5000, dtype=np.float32) / 10000
    crop, first_sample = CropSettings(1000).cut(recording, np.random.default_rng(3))
    assert first_sample > 0
    assert crop[0].numpy() == pytest.approx(recording[first_sample : first_sample + 1000])


def test_int16_and_float32_recordings_give_the_same_crops():
    samples = np.random.default_rng(0).integers(-20000, 20000, 5000).astype(np.int16)
    settings = CropSettings(1000, gain_db=(-6.0, 6.0))
    ours, _ = settings.cut(samples, np.random.default_rng(1))
    floats, _ = settings.cut((samples / 32767.0).astype(np.float32), np.random.default_rng(1))
    torch.testing.assert_close(ours, floats, atol=1e-6, rtol=0)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_together_see_the_batch_of_one(world_size, accumulation):
    alone = list(GlobalBatchSampler(13, 8, 5, range(7)))
    shares = [
        list(GlobalBatchSampler(13, 8, 5, range(7), rank, world_size, accumulation)) for rank in range(world_size)
    ]
    for step, batch in enumerate(alone):
        together = [
            index
            for micro in range(accumulation)
            for rank in range(world_size)
            for index in shares[rank][step * accumulation + micro]
        ]
        assert together == batch


def test_epochs_are_permutations_and_a_run_may_start_anywhere():
    batches = list(GlobalBatchSampler(10, 4, 0, range(10)))
    indices = [index for batch in batches for index in batch]
    assert sorted(indices[:10]) == list(range(10))
    assert sorted(indices[10:20]) == list(range(10, 20))
    assert [i % 10 for i in indices[:10]] != [i % 10 for i in indices[10:20]]
    assert list(GlobalBatchSampler(10, 4, 0, range(6, 10))) == batches[6:]


@pytest.fixture
def stream(tmp_path, recordings, monkeypatch):
    # datasets waits this long, 5 s, whenever a stream ends.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    rows = []
    for i, recording in enumerate(recordings):
        buffer = io.BytesIO()
        soundfile.write(buffer, recording, 16000, format="WAV")
        rows.append({"audio": {"bytes": b"broken" if i == 2 else buffer.getvalue(), "path": f"{i}.wav"}})
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "stream.parquet"))
    return load_recordings(str(tmp_path / "stream.parquet"), streaming=True)


def test_streamed_batches_are_shared_and_resumed(stream, tmp_path):
    settings = CropSettings(800)

    def batches(steps, rank=0, world_size=1):
        positions = GlobalBatchSampler(None, 4, 0, steps, rank, world_size)
        dataset = StreamedCropDataset(stream, 16000, settings, positions, 0, 3, tmp_path / f"rejected-{rank}.jsonl")
        return [batch["input_values"] for batch in dataset]

    whole = batches(range(4))
    assert [tuple(batch.shape) for batch in whole] == [(4, 1, 800)] * 4
    assert all(torch.equal(a, b) for a, b in zip(batches(range(2, 4)), whole[2:], strict=True))
    halves = [torch.cat(pair) for pair in zip(batches(range(4), 0, 2), batches(range(4), 1, 2), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(halves, whole, strict=True))
    # The broken recording leaves silence in its place, and a line.
    assert any(not crop.any() for batch in whole for crop in batch)
    assert "2.wav" in (tmp_path / "rejected-0.jsonl").read_text(encoding="utf-8")


def test_crops_travel_to_workers_without_their_audio(audio_folder, tmp_path):
    from speech_tokenizers.processing.recordings import decode_all

    dataset = AudioCropDataset(decode_all(load_recordings(str(audio_folder)), 16000, tmp_path), 1600)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 5000
    assert torch.equal(pickle.loads(pickled)[3]["input_values"], dataset[3]["input_values"])
