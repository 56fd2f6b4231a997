# SPDX-License-Identifier: Apache-2.0
"""F0 at a model's frames: right for known voices, and the same however speech arrives."""

import numpy as np
import pytest
import torch

from helpers.voices import FORMANTS, RATE, voice
from speech_tokenizers.modeling.pitch_frames import PitchFrames, PitchState


def tracked(waveform: torch.Tensor, pitch: PitchFrames | None = None) -> torch.Tensor:
    pitch = PitchFrames(320, 199) if pitch is None else pitch
    num_samples = waveform.shape[1]
    octaves = pitch.track(waveform, torch.tensor([num_samples]), (num_samples - 400) // 320 + 1)[0]
    return torch.where(octaves > 0, 2.0**octaves, 0.0)


@pytest.mark.parametrize("formants", FORMANTS, ids=["a", "i", "u"])
@pytest.mark.parametrize("f0", [62.0, 80.0, 110.0, 163.0, 220.0, 311.0, 440.0, 530.0])
def test_steady_voices_have_their_f0(f0, formants):
    found = tracked(voice(np.full(RATE, f0), formants))[3:-3]
    assert (found > 0).all()
    assert ((found / f0).log2().abs() < 0.04).all()  # 3 %: no octave errors


@pytest.mark.parametrize(("first", "last"), [(120, 220), (220, 120), (90, 180), (180, 70), (250, 450), (400, 200)])
def test_gliding_voices_are_followed(first, last):
    contour = np.geomspace(first, last, RATE // 2)
    found = tracked(voice(contour))[2:-2]
    true = torch.from_numpy(contour)[199 + 320 * torch.arange(2, 2 + len(found))]
    assert ((found / true).log2().abs() < 0.06).all()


@pytest.mark.parametrize("f0", [100.0, 140.0])
def test_pulses_that_alternate_a_little_do_not_halve_f0(f0):
    found = tracked(voice(np.full(RATE, f0), every=2, depth=0.15))[3:-3]
    assert ((found / f0).log2().abs() < 0.04).all()


@pytest.mark.parametrize("level", [1.0, 0.1, 1e-5])
def test_noise_and_silence_have_no_voice(level):
    noise = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0)) * 0.3 * level
    assert (tracked(noise) > 0).float().mean() < 0.05
    assert not tracked(torch.zeros(1, RATE)).any()
    assert not tracked(torch.full((1, RATE), 0.5))[3:-3].any()


def test_hum_is_no_voice_and_does_not_hide_one():
    hum = 0.02 * torch.sin(2 * torch.pi * 50 * torch.arange(RATE) / RATE)[None]
    assert not tracked(hum)[3:-3].any()
    found = tracked(voice(np.full(RATE, 200.0)) + hum)[3:-3]
    assert ((found / 200).log2().abs() < 0.04).all()


def test_voices_outside_the_range_are_not_told():
    pitch = PitchFrames(320, 199, floor=200, ceiling=300)
    assert not tracked(voice(np.full(RATE, 400.0), FORMANTS[2]), pitch)[3:-3].gt(300).any()


@pytest.mark.parametrize(("hop", "first"), [(320, 0), (320, 199), (161, 80), (640, 300)])
def test_any_chunks_give_what_the_whole_gives(hop, first):
    waveform = voice(np.geomspace(90, 300, 24000))
    pitch, num_frames = PitchFrames(hop, first), (24000 - first) // hop + 1
    expected = pitch.track(waveform, torch.tensor([24000]), num_frames)
    assert expected.shape == (1, num_frames)
    assert (expected > 0).sum() > num_frames // 2
    for size in (1000, 137, 24000, 23):
        state = PitchState(pitch)
        parts = [state.push(part) for part in waveform.split(size, dim=1)[: 24000 if size > 100 else 200]]
        if size > 100:
            parts.append(state.finish(num_frames))
            assert torch.equal(torch.cat(parts, dim=1), expected)
        else:
            settled = torch.cat(parts, dim=1)
            assert torch.equal(settled, expected[:, : settled.shape[1]])


def test_frames_come_when_the_look_ahead_has_arrived():
    pitch = PitchFrames(320, 199)
    needed = 199 + pitch.look_ahead_samples + 1
    assert needed / RATE < 0.4
    state = PitchState(pitch)
    assert state.push(torch.zeros(1, needed - 1)).shape == (1, 0)
    assert state.push(torch.zeros(1, 1)).shape == (1, 1)


def test_rows_of_a_padded_batch_are_tracked_as_alone():
    rows = [voice(np.full(size, f0), seed=size) for size, f0 in ((16000, 120.0), (7000, 250.0), (500, 100.0))]
    padded = torch.full((3, 16000), 0.7)  # what is behind a row does not count
    for target, row in zip(padded, rows, strict=True):
        target[: row.shape[1]] = row[0]
    pitch, lengths = PitchFrames(320, 199), torch.tensor([row.shape[1] for row in rows])
    batch = pitch.track(padded, lengths, 50)
    for number, row in enumerate(rows):
        assert torch.equal(batch[number : number + 1], pitch.track(row, lengths[number : number + 1], 50))


@pytest.mark.parametrize(("floor", "ceiling"), [(10, 500), (300, 200), (60, 3000)])
def test_an_impossible_range_is_refused(floor, ceiling):
    with pytest.raises(ValueError, match="f0_floor"):
        PitchFrames(320, 199, floor=floor, ceiling=ceiling)
