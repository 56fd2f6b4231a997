# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from speech_tokenizers import AudioCodes, list_checkpoints, load_audio, load_codes
from speech_tokenizers.cli import main
from speech_tokenizers.demo import measure, spectrogram


def test_the_demo_writes_its_results_and_prints_what_it_measured(tmp_path, tiny_checkpoint, capsys):
    assert main(["demo", "--model", str(tiny_checkpoint), "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for fact in ("bit rate", "real-time factor", "STOI", "PESQ"):
        assert fact in printed
    codes = load_codes(tmp_path / "codes.safetensors")
    assert isinstance(codes, AudioCodes)
    assert codes.seconds == pytest.approx(24.73)
    assert len(load_audio(tmp_path / "decoded.wav", 16000)) == codes.num_samples
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_takes_another_recording_and_refuses_a_broken_one(tmp_path, tiny_checkpoint, write_audio, capsys):
    path = write_audio(tmp_path / "a.wav", 1.0)
    assert main(["demo", "--model", str(tiny_checkpoint), "--audio", str(path), "-o", str(tmp_path / "out")]) == 0
    path.write_bytes(b"broken")
    assert main(["demo", "--model", str(tiny_checkpoint), "--audio", str(path), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") <= 2


def test_the_original_scores_full_marks():
    speech = np.random.default_rng(0).standard_normal(16000) * np.abs(np.sin(np.arange(16000) / 800))
    scores = measure(speech, speech, 16000)
    assert scores["STOI"].startswith("1.000")
    assert scores["ESTOI"].startswith("1.000")


def test_a_tone_peaks_at_its_frequency():
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 16000)
    assert (spectrogram(tone).argmax(axis=0) == round(1000 / 16000 * 512)).all()


@pytest.mark.skipif(not list_checkpoints(), reason="this tree carries no checkpoint")
def test_the_default_checkpoint_is_intelligible(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path)]) == 0
    scores = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(scores["STOI"].split()[0]) > 0.8
