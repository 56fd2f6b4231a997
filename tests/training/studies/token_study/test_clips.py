# SPDX-License-Identifier: Apache-2.0
"""Clips of a task: what is chosen, what is changed, and what is set aside."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_tokenizers.processing.task_manifests import TaskClip
from speech_tokenizers.training.studies.token_study.clips import few_shot, prepare_clips, trim_silence


def test_unchanged_clips_stay_where_they_are(study, two_labels):
    prepared = prepare_clips(study(), "tone")
    assert [Path(clip.path).parent for clip in prepared.clips] == [two_labels.parent] * 24
    assert prepared.seconds == [0.5] * 24
    assert not list(Path(study().output_dir).rglob("*.flac"))
    row = prepared.recordings[0]
    assert row["audio"] == {"path": str(two_labels.parent / "anna-high-0.wav"), "bytes": None}
    assert (row["id"], row["target"], row["keyword"], row["split"], row["speaker"]) == (
        *("anna-high-0.wav", "high", "high", "train", "anna"),
    )


def test_trimmed_clips_keep_a_little_of_the_silence(study, two_labels):
    prepared = prepare_clips(study(trim=True), "tone")
    assert prepared.seconds == pytest.approx([0.2] * 24, abs=1e-3)
    for clip in prepared.clips[:3]:
        assert soundfile.info(clip.path).subtype == "PCM_16"
        found, _ = soundfile.read(clip.path)
        whole, _ = soundfile.read(two_labels.parent / clip.name)
        np.testing.assert_allclose(found, whole[2400:5600], atol=1e-4)


def test_silence_below_the_loudest_is_cut():
    loud, soft, silent = (
        np.full(1600, 0.5),
        np.full(1600, 0.5 * 10 ** (-29 / 20)),
        np.full(3200, 0.5 * 10 ** (-31 / 20)),
    )
    audio = np.concatenate([silent, soft, loud, silent])
    np.testing.assert_array_equal(trim_silence(audio, 16000), audio[2400:7200])
    np.testing.assert_array_equal(trim_silence(np.zeros(100), 16000), np.zeros(100))


@pytest.mark.parametrize("noise", ["speech_shaped", "white"])
def test_noise_has_its_ratio_and_is_the_same_again(study, two_labels, tmp_path, noise):
    prepared = prepare_clips(study(noise_snr=6.0, noise=noise), "tone")
    again = prepare_clips(study(tmp_path / "again", noise_snr=6.0, noise=noise), "tone")
    for clip, other in zip(prepared.clips[:4], again.clips, strict=False):
        assert Path(clip.path).read_bytes() == Path(other.path).read_bytes()
        noisy, _ = soundfile.read(clip.path)
        clean, _ = soundfile.read(two_labels.parent / clip.name)
        ratio = 10 * np.log10(np.square(clean).mean() / np.square(noisy - clean).mean())
        assert ratio == pytest.approx(6.0, abs=0.05)
    assert len({Path(clip.path).read_bytes() for clip in prepared.clips}) == 24


def test_a_second_call_makes_nothing_again_and_heals(study):
    args = study(trim=True)
    first = prepare_clips(args, "tone")
    paths = [Path(clip.path) for clip in first.clips]
    times = [path.stat().st_mtime_ns for path in paths]
    content = paths[5].read_bytes()
    paths[5].unlink()
    assert prepare_clips(args, "tone").clips == first.clips
    assert [path.stat().st_mtime_ns for path in paths if path != paths[5]] == times[:5] + times[6:]
    assert paths[5].read_bytes() == content
    other = prepare_clips(study(trim=True, noise_snr=0.0), "tone")
    assert {clip.path for clip in other.clips}.isdisjoint(map(str, paths))


def test_few_clips_of_each_label_from_different_speakers(study):
    args = study(clips_per_label=3, seeds=(0, 1))
    prepared = prepare_clips(args, "tone")
    assert Counter(clip.split for clip in prepared.clips if clip.split != "train") == {"dev": 4, "test": 8}
    chosen = [few_shot(prepared.clips, 3, seed) for seed in (0, 1)]
    assert {clip.name for clips in chosen for clip in clips} == {
        clip.name for clip in prepared.clips if clip.split == "train"
    }
    for clips in chosen:
        assert Counter((clip.target, clip.group) for clip in clips) == {
            (label, speaker): 1 for label in ("high", "low") for speaker in ("anna", "bert", "cleo")
        }
    assert chosen[0] != chosen[1]


def test_few_clips_are_even_over_speakers_of_all_labels():
    clips = [
        TaskClip(f"{speaker}-{label}-{take}", "", label, "train", {"speaker": speaker}, {})
        for speaker in "abcd"
        for label in ("x", "y")
        for take in range(5)
    ]
    for seed in range(5):
        assert Counter(clip.group for clip in few_shot(clips, 2, seed)) == dict.fromkeys("abcd", 1)
        assert Counter(clip.target for clip in few_shot(clips, 6, seed)) == {"x": 6, "y": 6}
        assert set(Counter(clip.group for clip in few_shot(clips, 6, seed)).values()) == {3}
    assert few_shot(clips, None, 0) == clips
    assert len(few_shot(clips, 100, 0)) == len(clips)


def damaged(two_labels, tmp_path, count):
    folder = tmp_path / "damaged"
    shutil.copytree(two_labels.parent, folder)
    names = sorted(path.name for path in folder.glob("anna*.wav"))[:count]
    for name in names:
        (folder / name).write_bytes(b"nothing")
    return folder / "manifest.jsonl", names


def test_what_cannot_be_read_is_set_aside(study, two_labels, tmp_path, capsys):
    path, names = damaged(two_labels, tmp_path, 1)
    args = study(manifest=str(path))
    prepared = prepare_clips(args, "tone")
    assert [entry["name"] for entry in prepared.set_aside] == names
    assert len(prepared.clips) == len(prepared.recordings) == 23
    aside = Path(args.output_dir) / "clips" / "tone.set_aside.jsonl"
    assert json.loads(aside.read_text())["name"] == names[0]
    assert f"1 recording was set aside; see {aside}" in capsys.readouterr().err


def test_too_many_that_cannot_be_read(study, two_labels, tmp_path):
    path, names = damaged(two_labels, tmp_path, 2)
    with pytest.raises(ValueError, match=rf"2 of 24 clips of the task 'tone' cannot be used, .*'{names[0]}'"):
        prepare_clips(study(manifest=str(path), trim=True), "tone")


def test_long_clips_are_left_out(study, capsys):
    prepared = prepare_clips(study(trim=True, max_seconds=0.25), "tone")
    assert (len(prepared.clips), prepared.num_too_long) == (24, 0)
    with pytest.raises(ValueError, match="no clip left of the split 'train'; raise `max_seconds`"):
        prepare_clips(study(max_seconds=0.25), "tone")
    assert "24 clips are longer than 0.25 s and left out" in capsys.readouterr().err
